//! Torn tails, rot, stale records and bytes of any kind: what a scan makes of them.

use crate::support::{
    IDENTITY, RING_START, any_change, blank, formatted, index, open, reseal, scan, scan_log, settle, settle_with_mark,
    shapes, write,
};
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, PoolId, Prng},
    changelog::{EndReason, HoleKind, Lane, LaneIdentity, OwnedRecord, RecordFault, ScanError, inspect},
};
use twinlog_device::Nanos;
use twinlog_sim::{LogMedium, LogShape};

/// A lane with a history of some laps, whose last batch of changes was not durable before `before`, and is in `after`.
struct Torn {
    shape: LogShape,
    applied: Lsn,
    before: Vec<u8>,
    after: Vec<u8>,
    durable: Vec<OwnedRecord>,
    all: Vec<OwnedRecord>,
}

fn torn(shape: LogShape, seed: u64) -> Torn {
    let mut prng = Prng::new(seed);
    let medium = formatted(shape);
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    for _ in 0..prng.between(10, 60) {
        let (draft, payload) = any_change(&mut prng, 600);
        if !lane.room_for(payload.len() as u64) {
            lane.trim(lane.durable());
        }
        lane.append(&draft, &[&payload]);
        settle(&mut lane);
    }
    lane.trim(lane.appended());
    let applied = lane.applied();
    for object in 0..3 {
        lane.append(&write(object, 7), &[&vec![3; index(prng.between(1, 500))]]);
        settle(&mut lane);
    }
    let before = medium.image();
    let durable = scan(&medium, applied, Epoch(1)).expect("a whole lane").0;
    for object in 3..6 {
        lane.append(&write(object, 7), &[&vec![4; index(prng.between(1, 500))]]);
    }
    settle(&mut lane);
    let all = scan(&medium, applied, Epoch(1)).expect("a whole lane").0;
    assert_eq!((durable.len(), all.len()), (3, 6));
    Torn { shape, applied, before, after: medium.image(), durable, all }
}

impl Torn {
    /// Scans a mixture of before and after: a prefix of the changes comes back, with all durable ones, and nothing is called damaged.
    fn check(&self, medium: &LogMedium, image: &[u8]) {
        medium.restore(image);
        let (records, end, _log) = scan(medium, self.applied, Epoch(1)).expect("a readable lane");
        assert_eq!(end.hole, None);
        assert!(records.len() >= self.durable.len());
        assert_eq!(records, self.all[..records.len()]);
    }
}

#[test]
fn a_tail_torn_at_any_byte_is_a_torn_tail() {
    for (seed, shape) in (0..).zip(shapes(4096 + 16384)) {
        let torn = torn(shape, seed);
        let medium = blank(torn.shape);
        let differs: Vec<usize> = (0..torn.after.len()).filter(|&at| torn.before[at] != torn.after[at]).collect();
        assert!(differs.len() > 500);
        let mut image = torn.before.clone();
        for &at in &differs {
            image[at] = torn.after[at];
            torn.check(&medium, &image);
        }
    }
}

#[test]
pub(crate) fn a_tail_torn_into_any_subset_of_units_is_a_torn_tail() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let shape = *prng.pick(&shapes(4096 + 16384));
        let torn = torn(shape, seed);
        let medium = blank(shape);
        let atomic = shape.atomic_bytes as usize;
        for _ in 0..30 {
            let mut image = torn.before.clone();
            let share = prng.between(1, 9);
            for (target, source) in image.chunks_mut(atomic).zip(torn.after.chunks(atomic)) {
                if prng.chance(share, 10) {
                    target.copy_from_slice(source);
                }
            }
            torn.check(&medium, &image);
        }
    }
}

/// A flipped bit is harmless, or named, or hits what nothing proves: the records after the last one that knew of a stable position.
#[test]
pub(crate) fn no_flipped_bit_passes_for_a_whole_log() {
    let (mut harmless, mut named) = (0, 0);
    for seed in 0..40 {
        let mut prng = Prng::new(1000 + seed);
        let shape = *prng.pick(&shapes(4096 + 32768));
        let medium = formatted(shape);
        let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
        let mut applied = Lsn(0);
        for _ in 0..prng.between(5, 80) {
            let (draft, payload) = any_change(&mut prng, 3000);
            if !lane.room_for(payload.len() as u64) {
                settle(&mut lane);
                applied = lane.durable();
                lane.trim(applied);
            }
            lane.append(&draft, &[&payload]);
            if prng.chance(1, 2) {
                lane.poll(Nanos(0)).expect("no fault");
            }
        }
        settle_with_mark(&mut lane);
        let (records, ..) = scan(&medium, applied, Epoch(1)).expect("a whole lane");
        for _ in 0..200 {
            let (at, mask) = (prng.below(shape.size_bytes), 1 << prng.below(8));
            medium.rot(at, mask);
            match scan(&medium, applied, Epoch(1)) {
                Err(ScanError::Header(_)) => assert!(at < RING_START as u64, "the header is whole"),
                Err(error) => panic!("a flipped bit is no {error}"),
                Ok((found, end, _log)) => match end.hole {
                    // With a mark at the end, every change is proven: nothing may be missing without a word.
                    None => {
                        assert_eq!(found, records, "byte {at} of {applied} to {}", lane.appended());
                        harmless += 1;
                    }
                    Some(hole) => {
                        assert!(matches!(hole.kind, HoleKind::Damaged { .. }), "{hole}");
                        let hit = RING_START as u64 + hole.at.0 % lane.ring_bytes();
                        assert!(hit <= at, "the hole at {} names the record that byte {at} belongs to", hole.at);
                        assert_eq!(found, records[..found.len()]);
                        assert!(hole.to_string().contains("partner"));
                        named += 1;
                    }
                },
            }
            medium.rot(at, mask);
        }
    }
    assert!(harmless > 500 && named > 500, "{harmless} harmless, {named} named");
}

#[test]
pub(crate) fn without_a_successor_damage_looks_like_a_torn_tail() {
    let medium = formatted(LogShape::pmem(64 << 10));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    lane.append(&write(1, 0), &[b"first"]);
    settle(&mut lane);
    let second = lane.append(&write(1, 0), &[b"second"]);
    settle(&mut lane);
    medium.rot(RING_START as u64 + second.0 - 1, 1);
    let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a readable lane");
    assert_eq!((records.len(), end.hole), (1, None), "this is what cannot be told apart");
    assert_eq!(end.reason, EndReason::TornTail(RecordFault::BodyDamaged));
    // The mark ends that window.
    settle_with_mark(&mut lane);
    let (_, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a readable lane");
    let hole = end.hole.expect("the mark proves the second change");
    assert_eq!((hole.at, hole.kind), (records[0].end, HoleKind::Damaged { stable_lsn: second }));
}

#[test]
pub(crate) fn records_of_a_former_owner_do_not_rise_again() {
    // The former owner logs five records; the new one, who knows of two, goes on at the same position.
    let medium = formatted(LogShape::pmem(64 << 10));
    let mut former = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    let ends: Vec<Lsn> = (0..32).map(|index| former.append(&write(1, index), &[&[1; 3968]])).take(5).collect();
    settle(&mut former);
    let mut owner = Lane::open_at(open(&medium), IDENTITY, Epoch(2), Lsn(0));
    for index in 0..2 {
        owner.append(&write(2, index), &[&[2; 3968]]);
    }
    settle(&mut owner);
    assert_eq!(owner.appended(), ends[1], "the former owner's third record follows without a gap");
    for epoch_min in [1, 2] {
        let (records, end, _log) = scan(&medium, Lsn(0), Epoch(epoch_min)).expect("a readable lane");
        assert_eq!((records.len(), end.reason, end.hole), (2, EndReason::OlderEpoch(Epoch(1)), None));
        assert!(records.iter().all(|record| record.epoch == Epoch(2)));
    }
    let (records, end, _log) = scan(&medium, Lsn(0), Epoch(3)).expect("a readable lane");
    assert_eq!((records.len(), end.reason), (0, EndReason::OlderEpoch(Epoch(2))));
}

#[test]
fn a_lane_that_was_used_again_proves_it() {
    let medium = formatted(LogShape::file(4096 + 16384));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    for index in 0..9 {
        lane.append(&write(1, index), &[&[1; 2000]]);
        settle(&mut lane);
        lane.trim(lane.durable());
    }
    let (_, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a readable lane");
    let hole = end.hole.expect("a lap was overwritten");
    assert_eq!((hole.at, hole.kind), (Lsn(0), HoleKind::Overwritten));
}

#[test]
fn a_whole_record_that_is_not_known_is_an_error_not_an_end() {
    let medium = formatted(LogShape::file(64 << 10));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    let second = lane.append(&write(1, 0), &[b"first"]);
    lane.append(&write(1, 0), &[b"second"]);
    settle(&mut lane);
    let image = medium.image();
    let start = RING_START + index(second.0);
    // Version, kind, flags, reserved bytes, a length beyond the ring, a stable position of the future.
    for (at, value) in [(4, 2), (5, 99), (5, 0), (6, 1), (10, 1), (100, 1), (14, 1), (37, 1)] {
        let mut newer = image.clone();
        newer[start + at] = value;
        reseal(&mut newer[start..start + 128]);
        medium.restore(&newer);
        let error = scan(&medium, Lsn(0), Epoch(1)).expect_err("it may have been answered");
        assert!(matches!(error, ScanError::Unsupported { lsn, .. } if lsn == second), "byte {at}: {error}");
    }
}

#[test]
fn no_bytes_make_a_scan_panic_or_run_on() {
    let medium = formatted(LogShape::pmem(4096 + 16384));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    let mut prng = Prng::new(77);
    let mut headers = Vec::new();
    while lane.room_for(600) {
        headers.push(RING_START + index(lane.appended().0));
        let (draft, payload) = any_change(&mut prng, 600);
        lane.append(&draft, &[&payload]);
    }
    settle(&mut lane);
    let image = medium.image();
    let mut survived = 0;
    for round in 0..4000 {
        let mut bytes = image.clone();
        match round % 4 {
            0 => prng.fill(&mut bytes[RING_START..]),
            1 => prng.fill(&mut bytes),
            // A header that lies, under a checksum that does not.
            2 => {
                let header = *prng.pick(&headers);
                for _ in 0..prng.between(1, 4) {
                    let at = header + index(prng.below(120));
                    bytes[at] = prng.next_u64().to_le_bytes()[0];
                }
                reseal(&mut bytes[header..header + 128]);
            }
            _ => {
                for _ in 0..prng.between(1, 20) {
                    let at = index(prng.below(bytes.len() as u64));
                    bytes[at] ^= 1 << prng.below(8);
                }
            }
        }
        medium.restore(&bytes);
        let applied = Lsn(if prng.chance(3, 4) { 0 } else { prng.next_u64() >> prng.below(64) });
        let by_scan = scan_log(open(&medium), applied, Epoch(1));
        let inspected = || inspect::Inspector::open(reader(&bytes), bytes.len() as u64);
        let verified = inspected().and_then(|mut inspector| inspector.verify(Some((applied, Epoch(1)))));
        match (by_scan, verified) {
            (Ok((records, ..)), Ok(verdict)) => {
                assert_eq!(records.len() as u64, verdict.changes);
                inspected().expect("its header is whole").rows(|_| true).expect("an image can be read");
                survived += 1;
            }
            (Err(_), Err(_)) => {}
            (by_scan, verified) => panic!("two scans of the same bytes differ: {by_scan:?} {verified:?}"),
        }
    }
    assert!(survived > 1000);
}

/// Reads an image as the inspector reads a file.
fn reader(image: &[u8]) -> impl FnMut(u64, &mut [u8]) -> std::io::Result<()> {
    move |offset, buffer| {
        let start = usize::try_from(offset).map_err(std::io::Error::other)?;
        buffer.copy_from_slice(&image[start..start + buffer.len()]);
        Ok(())
    }
}

#[test]
fn the_inspector_shows_every_record_and_names_damage() {
    let medium = formatted(LogShape::file(4096 + 16384));
    let mut lane = Lane::open_at(open(&medium), IDENTITY, Epoch(1), Lsn(0));
    for index in 0..20 {
        lane.append(&write(1, index), &[&[1; 2000]]);
        settle(&mut lane);
        lane.trim(lane.durable());
    }
    settle_with_mark(&mut lane);
    let image = medium.image();
    let mut inspector = inspect::Inspector::open(reader(&image), image.len() as u64).expect("a lane");
    assert_eq!((inspector.lane().lane, inspector.lane().newest_lsn), (1, lane.appended().0));
    let mut kinds = Vec::new();
    let mut gaps = 0;
    let show = |row| {
        match row {
            inspect::Row::Record(row) => {
                assert!(row.whole);
                kinds.push(row.kind);
            }
            inspect::Row::Gap { .. } => gaps += 1,
        }
        true
    };
    inspector.rows(show).expect("an image can be read");
    assert!(gaps <= 1 && kinds.ends_with(&["write", "pad", "mark", "pad"]), "{kinds:?}");
    assert!(kinds.iter().filter(|&&kind| kind == "write").count() >= 5);
    let verdict = inspector.verify(None).expect("a whole lane");
    assert_eq!((verdict.end_lsn, verdict.hole, verdict.end), (lane.appended().0, None, "clean"));

    // A bit flips in the last change.
    let mut image = medium.image();
    let end = index(lane.appended().0 % lane.ring_bytes());
    image[RING_START + end - 512 - 1000] ^= 1;
    let mut inspector = inspect::Inspector::open(reader(&image), image.len() as u64).expect("a lane");
    let mut damaged = 0;
    let show = |row| {
        damaged += usize::from(matches!(row, inspect::Row::Record(row) if !row.whole));
        true
    };
    inspector.rows(show).expect("an image can be read");
    assert_eq!(damaged, 1);
    assert!(inspector.verify(None).expect("a readable lane").hole.is_some_and(|hole| hole.contains("may have been")));
}

#[test]
fn records_of_another_pool_or_lane_are_none() {
    let others = [
        LaneIdentity { pool: PoolId(IDENTITY.pool.0 ^ 1), ..IDENTITY },
        LaneIdentity { lane: LaneIndex(0), ..IDENTITY },
    ];
    for other in others {
        let medium = formatted(LogShape::pmem(64 << 10));
        let mut lane = Lane::open_at(open(&medium), other, Epoch(1), Lsn(0));
        lane.append(&write(1, 0), &[b"of another"]);
        lane.append(&write(1, 0), &[b"of another"]);
        settle(&mut lane);
        let (records, end, _log) = scan(&medium, Lsn(0), Epoch(1)).expect("a readable lane");
        assert_eq!((records.len(), end.end, end.reason, end.hole), (0, Lsn(0), EndReason::Clean, None));
    }
}
