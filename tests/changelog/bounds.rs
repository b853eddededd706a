//! Every bound of a lane at the bound, and the small promises of its interface.

use crate::support::{
    IDENTITY, PORTION, any_change, blank, formatted, index, open, pass, scan, scan_log, settle, settle_with_mark,
    shapes, write,
};
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, PoolId, Prng, limits::CHANGE_BYTES_MAX},
    changelog::{
        Draft, EndReason, Lane, LaneHeaderError, LaneIdentity, LaneTuning, PortionRole, ReadHeader, RecordKind,
        ScanError, head_after_recovery, record_bytes,
    },
};
use twinlog_device::{LogMemory, Nanos};
use twinlog_sim::{Fault, LogShape};

#[test]
fn what_was_appended_comes_back() {
    for shape in shapes(64 << 10) {
        let medium = formatted(shape);
        let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(3), Lsn(0));
        let end = lane.append(&write(1, 10), &[b"hello ", b"world"]);
        lane.append(&write(2, 20), &[&[7; 5000]]);
        assert!(lane.durable() < end && lane.has_changes());
        settle(&mut lane);
        let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a whole lane");
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].payload, b"hello world");
        assert_eq!(records[0].draft, write(1, 10));
        assert_eq!((records[1].payload.as_slice(), records[1].lsn), ([7; 5000].as_slice(), records[0].end));
        assert_eq!((end.end, end.reason, end.hole), (lane.durable(), EndReason::Clean, None));
        assert_eq!(end.epoch, Epoch(3));
    }
}

#[test]
fn a_ring_can_be_exactly_full() {
    for shape in shapes(4096 + 8192) {
        let medium = formatted(shape);
        let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
        // 128 bytes of header and 3968 of payload are half of the ring.
        lane.append(&write(1, 1), &[&[1; 3968]]);
        assert!(lane.room_for(3968) && !lane.room_for(3969));
        lane.append(&write(1, 2), &[&[2; 3968]]);
        assert!(!lane.room_for(0), "the ring is full");
        settle(&mut lane);
        assert_eq!((lane.used_bytes(), lane.next_deadline()), (lane.ring_bytes(), None));
        let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a whole lane");
        assert_eq!((records.len(), end.end, end.reason), (2, Lsn(8192), EndReason::Full));
        // Half of it is given back, and takes exactly as much.
        lane.trim(records[0].end);
        assert!(lane.room_for(3968) && !lane.room_for(3969));
    }
}

#[test]
fn records_never_wrap_and_may_end_where_the_ring_ends() {
    for shape in shapes(4096 + 16384) {
        for first_bytes in [0u64, 1, 127, 128, 129, 3840, 3968, 3969, 4096, 8000] {
            let medium = formatted(shape);
            let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
            let (mut applied, mut sent) = (Lsn(0), 0);
            for offset in 0..40 {
                let payload = vec![9; index(first_bytes.max(1))];
                if !lane.room_for(payload.len() as u64) {
                    settle(&mut lane);
                    let (records, end, _log) = scan(&medium, applied, Epoch(1)).expect("a whole lane");
                    assert_eq!((records.len(), end.end, end.hole), (sent, lane.durable(), None), "at {first_bytes}");
                    assert!(records.iter().all(|record| record.lsn.0 / 16384 == (record.end.0 - 1) / 16384));
                    applied = head_after_recovery(end.end, lane.ring_bytes());
                    lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), applied);
                    sent = 0;
                }
                lane.append(&write(1, offset), &[&payload]);
                sent += 1;
            }
        }
    }
}

#[test]
fn the_largest_change_fits_the_smallest_lane() {
    let size_bytes = 4096 + twinlog::base::limits::LANE_BYTES_MIN;
    for shape in [LogShape::pmem(size_bytes), LogShape::file(size_bytes)] {
        let medium = formatted(shape);
        let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
        let payload = vec![5; index(CHANGE_BYTES_MAX)];
        for _ in 0..9 {
            assert!(lane.room_for(CHANGE_BYTES_MAX), "an empty lane takes the largest change wherever it stands");
            let block = Draft { kind: RecordKind::Block, ..write(1, 0) };
            let before = lane.appended();
            lane.append(&block, &[&payload[..4096], &payload[4096..]]);
            settle(&mut lane);
            let (records, _end, _log) = scan(&medium, before, Epoch(1)).expect("a whole lane");
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].payload, payload);
            lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(lane.appended().0.next_multiple_of(4096)));
        }
    }
}

#[test]
fn what_waits_for_the_log_memory_is_bounded() {
    let medium = formatted(LogShape::file(64 << 20));
    medium.set_latency_ns(1_000_000_000, 1_000_000_000);
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    let mut bytes = 0;
    while lane.room_for(CHANGE_BYTES_MAX) {
        lane.append(&write(1, 0), &[&vec![1; index(CHANGE_BYTES_MAX)]]);
        lane.poll(Nanos(0)).expect("no fault");
        bytes += record_bytes(CHANGE_BYTES_MAX);
    }
    assert!((8 << 20..12 << 20).contains(&bytes), "{bytes} bytes");
}

#[test]
fn small_changes_share_a_persist() {
    let medium = formatted(LogShape::file(1 << 20));
    medium.set_latency_ns(1_000_000, 1_000_000);
    let tuning = LaneTuning { persists_in_flight_max: 1, ..LaneTuning::default() };
    let mut lane = Lane::open_tuned(open(&medium), IDENTITY, Epoch(1), Lsn(0), tuning);
    lane.append(&write(1, 0), &[b"first"]);
    lane.poll(Nanos(0)).expect("no fault");
    let last = (0..100).map(|index| lane.append(&write(1, index), &[b"group"])).last().unwrap();
    for expected in [512, last.0.next_multiple_of(512)] {
        lane.poll(pass(&medium, 1_000_000)).expect("no fault");
        assert_eq!(lane.durable(), Lsn(expected));
    }
}

#[test]
fn a_quiet_lane_marks_once_and_a_mark_is_no_change() {
    let medium = formatted(LogShape::file(1 << 20));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    assert_eq!(lane.next_deadline(), None, "nothing was changed yet");
    let end = lane.append(&write(1, 0), &[b"x"]);
    lane.poll(Nanos(1_000)).expect("no fault");
    let deadline = lane.next_deadline().expect("durable and quiet");
    let before = lane.appended();
    lane.poll(Nanos(deadline.0 - 1)).expect("no fault");
    assert_eq!(lane.appended(), before);
    lane.trim(end);
    assert!(!lane.has_changes());
    lane.poll(deadline).expect("no fault");
    assert_eq!(lane.appended(), before.plus(512), "the mark and its pad");
    assert!(!lane.has_changes() && lane.next_deadline().is_none());
    settle(&mut lane);
    let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a whole lane");
    assert_eq!((records.len(), end.end), (1, lane.durable()));
}

#[test]
pub(crate) fn a_failed_persist_ends_the_lane() {
    let medium = formatted(LogShape::file(1 << 20));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    medium.fail_persist_after(1);
    lane.append(&write(1, 0), &[b"arrives"]);
    settle(&mut lane);
    let durable = lane.durable();
    lane.append(&write(1, 0), &[b"does not"]);
    let error = lane.poll(Nanos(0)).expect_err("the persist fails");
    assert_eq!(lane.poll(Nanos(1)), Err(error));
    assert!(!lane.room_for(1) && lane.durable() == durable && lane.next_deadline().is_none());
    assert_eq!(medium.world().faults(Fault::LogPersistError), (1, 1));
    // Its log can be recovered: the change that was answered is there.
    let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a readable lane");
    assert_eq!((records[0].payload.as_slice(), end.hole), (b"arrives".as_slice(), None));
}

#[test]
fn another_lane_is_refused_by_name() {
    let medium = formatted(LogShape::file(1 << 20));
    let others = [
        LaneIdentity { pool: PoolId(1), ..IDENTITY },
        LaneIdentity { role: PortionRole::Mirror, ..IDENTITY },
        LaneIdentity { lane: LaneIndex(0), ..IDENTITY },
        LaneIdentity { lane_count: 3, ..IDENTITY },
    ];
    for identity in others {
        let start = twinlog::changelog::ScanStart { identity, applied: Lsn(0), epoch_min: Epoch(1) };
        let mut scan = twinlog::changelog::Scan::new(open(&medium), start);
        let error = (0..10).find_map(|_| scan.poll().err()).expect("it is another lane");
        assert!(matches!(error, ScanError::Header(LaneHeaderError::OtherLane { .. })), "{error}");
        assert_eq!(scan.poll(), Err(error));
    }
    let zeroes = blank(LogShape::file(1 << 20));
    let error = scan(&zeroes, Lsn(0), Epoch(1)).expect_err("never formatted");
    assert_eq!(error, ScanError::Header(LaneHeaderError::NotALane));
    // A region that grew is not the one that was formatted.
    let grown = blank(LogShape::file(2 << 20));
    grown.restore(&medium.image());
    let error = scan(&grown, Lsn(0), Epoch(1)).expect_err("another size");
    assert!(matches!(error, ScanError::Header(LaneHeaderError::OtherSize { .. })), "{error}");
}

#[test]
fn a_region_says_which_portion_it_is_part_of() {
    for shape in shapes(64 << 10) {
        let medium = formatted(LogShape { latency_ns: (0, 0), ..shape });
        let mut read = ReadHeader::new(open(&medium));
        let header = (0..10).find_map(|_| read.poll().expect("a whole header")).expect("it was read");
        assert_eq!((header.identity, header.portion, header.ring_bytes), (IDENTITY, PORTION, (64 << 10) - 4096));
        // The log memory goes on to whoever uses the lane.
        let mut lane = Lane::open_at(read.into_log(), IDENTITY, Epoch(1), Lsn(0));
        lane.append(&write(1, 0), &[b"x"]);
        settle(&mut lane);
    }
    let mut read = ReadHeader::new(open(&blank(LogShape::pmem(8192))));
    assert!(matches!(read.poll(), Err(ScanError::Header(LaneHeaderError::NotALane))));
}

#[test]
fn impossible_positions_and_failing_reads_are_errors() {
    let medium = formatted(LogShape::file(1 << 20));
    for lsn in [1, 127, 1 << 62, u64::MAX, u64::MAX - 127] {
        assert_eq!(scan(&medium, Lsn(lsn), Epoch(1)).err(), Some(ScanError::Position(Lsn(lsn))));
    }
    assert!(scan(&medium, Lsn((1 << 62) - 128), Epoch(1)).is_ok());
    for reads in 0..2 {
        medium.fail_read_after(reads);
        assert!(matches!(scan_log(open(&medium), Lsn(0), Epoch(1)), Err(ScanError::Device(_))));
    }
}

#[test]
fn a_slow_log_memory_gives_the_same_scan() {
    let medium = formatted(LogShape::pmem(4 << 20));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    let mut prng = Prng::new(5);
    while lane.room_for(200_000) {
        let (draft, payload) = any_change(&mut prng, 200_000);
        lane.append(&draft, &[&payload]);
        settle(&mut lane);
    }
    settle_with_mark(&mut lane);
    let (records, end, log) = scan(&medium, Lsn(0), Epoch(1)).expect("a whole lane");
    assert!(log.room() > 0);
    medium.set_latency_ns(1, 1000);
    let start = twinlog::changelog::ScanStart { identity: IDENTITY, applied: Lsn(0), epoch_min: Epoch(1) };
    let mut slow = twinlog::changelog::Scan::new(open(&medium), start);
    let mut found = Vec::new();
    loop {
        pass(&medium, 100);
        match slow.poll().expect("a whole lane") {
            twinlog::changelog::ScanStep::Pending => {}
            twinlog::changelog::ScanStep::Record(record) => found.push(record),
            twinlog::changelog::ScanStep::End(found_end) => {
                assert_eq!(found_end, end);
                break;
            }
        }
    }
    assert_eq!(found, records);
    let _log: twinlog_sim::SimLog = slow.into_log();
    assert!(scan(&medium, end.end, Epoch(1)).is_ok_and(|(records, ..)| records.is_empty()));
}

#[test]
#[should_panic(expected = "asked for room")]
fn appending_without_room_is_a_defect_of_the_caller() {
    let medium = formatted(LogShape::file(8192));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    lane.append(&write(1, 0), &[&[0; 4096]]);
}

#[test]
fn drafts_are_judged_at_their_bounds() {
    let max = 1u64 << 50;
    let block = Draft { kind: RecordKind::Block, ..write(1, 0) };
    let discard = Draft { kind: RecordKind::Discard, argument: 1, ..write(1, 0) };
    let create = Draft { kind: RecordKind::Create, argument: max, offset_bytes: 0, ..write(1, 0) };
    let delete = Draft { kind: RecordKind::Delete, ..create };
    let cases = [
        (write(1, max - 1), 1, true),
        (write(1, max), 1, false),
        (write(1, u64::MAX), 1, false),
        (write(1, 0), 0, false),
        (write(1, 0), CHANGE_BYTES_MAX, true),
        (write(1, 0), CHANGE_BYTES_MAX + 1, false),
        (Draft { argument: 1, ..write(1, 0) }, 1, false),
        (Draft { flags: 1, ..write(1, 0) }, 1, false),
        (block, 4096, true),
        (block, 4095, false),
        (Draft { offset_bytes: 512, ..block }, 4096, false),
        (Draft { offset_bytes: max - 4096, ..block }, 4096, true),
        (Draft { offset_bytes: max - 4096, ..block }, 8192, false),
        (Draft { argument: max, ..discard }, 0, true),
        (Draft { argument: max + 1, ..discard }, 0, false),
        (Draft { argument: 0, ..discard }, 0, false),
        (Draft { flags: 1, ..discard }, 0, false),
        (Draft { kind: RecordKind::WriteZeroes, flags: 1, ..discard }, 0, true),
        (Draft { kind: RecordKind::WriteZeroes, flags: 2, ..discard }, 0, false),
        (discard, 1, false),
        (create, 64, true),
        (create, 65, false),
        (create, 0, false),
        (Draft { argument: max + 1, ..create }, 1, false),
        (Draft { offset_bytes: 1, ..create }, 1, false),
        (Draft { kind: RecordKind::Resize, ..create }, 0, true),
        (Draft { kind: RecordKind::Resize, ..create }, 1, false),
        (Draft { argument: 0, ..delete }, 0, true),
        (delete, 0, false),
        (Draft { kind: RecordKind::Mark, ..write(0, 0) }, 0, true),
        (Draft { kind: RecordKind::Mark, ..write(1, 0) }, 0, false),
        (Draft { kind: RecordKind::Mark, ..write(0, 0) }, 1, false),
    ];
    for (draft, payload_bytes, good) in cases {
        assert_eq!(draft.check(payload_bytes).is_ok(), good, "{draft:?} with {payload_bytes} bytes");
    }
}
