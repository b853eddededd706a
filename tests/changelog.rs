//! The change log's promise: after any crash, every durable change comes back, in order, once; and damage is named.

use twinlog::{
    base::{Epoch, LaneIndex, Lsn, ObjectId, PoolId},
    changelog::{
        Draft, EndReason, Format, Lane, LaneIdentity, OwnedRecord, PortionRole, RecordKind, Scan, ScanEnd, ScanError,
        ScanStart, ScanStep,
    },
};
use twinlog_device::Nanos;
use twinlog_sim::log::{LogMedium, LogShape, SimLog};

const IDENTITY: LaneIdentity = LaneIdentity {
    pool: PoolId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321),
    role: PortionRole::Own,
    lane: LaneIndex(1),
    lane_count: 2,
};

fn formatted(shape: LogShape) -> LogMedium {
    let medium = LogMedium::new("log", shape);
    let mut format = Format::new(medium.open(), &IDENTITY);
    assert_eq!(format.poll(), Ok(true));
    medium
}

fn write(object: u64, offset_bytes: u64) -> Draft {
    Draft {
        kind: RecordKind::Write,
        object: ObjectId(object),
        offset_bytes,
        argument: 0,
        flags: 0,
        time_ns: 7,
        request_id: offset_bytes,
    }
}

fn scan(medium: &LogMedium, applied: Lsn, epoch_min: Epoch) -> Result<(Vec<OwnedRecord>, ScanEnd, SimLog), ScanError> {
    let mut scan = Scan::new(medium.open(), ScanStart { identity: IDENTITY, applied, epoch_min });
    let mut records = Vec::new();
    for _ in 0..1_000_000 {
        match scan.poll()? {
            ScanStep::Pending => {}
            ScanStep::Record(record) => records.push(record),
            ScanStep::End(end) => return Ok((records, end, scan.into_log())),
        }
    }
    panic!("a scan ends");
}

#[test]
fn what_was_appended_comes_back() {
    for shape in [LogShape::pmem(64 << 10), LogShape::file(64 << 10)] {
        let medium = formatted(shape);
        let mut lane = Lane::open_at(medium.open(), IDENTITY, Epoch(3), Lsn(0));
        let end = lane.append(&write(1, 10), &[b"hello ", b"world"]);
        lane.append(&write(2, 20), &[&[7; 5000]]);
        assert!(lane.durable() < end);
        lane.poll(Nanos(0)).expect("no fault");
        lane.poll(Nanos(0)).expect("no fault");
        assert!(lane.durable() == lane.appended() && lane.durable() > end);
        let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a whole lane");
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].payload, b"hello world");
        assert_eq!(records[0].draft, write(1, 10));
        assert_eq!(records[1].payload, [7; 5000]);
        assert_eq!((end.end, end.reason, end.hole), (lane.durable(), EndReason::Clean, None));
        assert_eq!(end.epoch, Epoch(3));
    }
}
