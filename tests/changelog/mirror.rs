//! A lane and its mirror, one promise at a time. `pair.rs` does everything at once, by chance.

use crate::support::{
    IDENTITY, MIRROR, any_change, formatted_as, index, open, pass, scan_as, settle, settle_with_mark, shapes, write,
};
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, PoolId, Prng, limits::CHANGE_BYTES_MAX},
    changelog::{
        EndReason, Lane, LaneIdentity, MirrorItem, MirrorLane, MirrorMode, MirrorRefusal, MirroringError, RecordFault,
        lane::{BATCH_BYTES_MAX, MIRROR_BYTES_MAX},
    },
};
use twinlog_device::Nanos;
use twinlog_sim::{LogMedium, LogShape, SimLog, SimWorld};

/// A ring that wraps soon.
const RING_BYTES: u64 = 7 * 4096;

/// An owner's lane, and its mirror at the partner.
struct Both {
    own: LogMedium,
    other: LogMedium,
    lane: Lane<SimLog>,
    mirror: MirrorLane<SimLog>,
}

impl Both {
    /// A lane that is not mirrored yet.
    fn new(own: LogShape, other: LogShape) -> Self {
        Self::seeded(1, own, other)
    }

    fn seeded(seed: u64, own: LogShape, other: LogShape) -> Self {
        let world = SimWorld::new(seed);
        let [own, other] =
            [(own, &IDENTITY), (other, &MIRROR)].map(|(shape, identity)| formatted_as(&world, shape, identity));
        let lane = Lane::open_at(open(&own), IDENTITY, Epoch(1), Lsn(0));
        let mirror = MirrorLane::open(open(&other), MIRROR, Epoch(1));
        Self { own, other, lane, mirror }
    }

    /// One whose answers wait for the mirror.
    fn in_sync(own: LogShape, other: LogShape) -> Self {
        let mut both = Self::new(own, other);
        both.start();
        both.lane.require_mirror();
        both
    }

    fn start(&mut self) -> Lsn {
        self.lane.start_mirroring(self.other.shape().unit_bytes)
    }

    /// Hands everything over, and back.
    fn settle(&mut self) {
        settle(&mut self.lane);
        self.send();
        self.persist();
        self.acknowledge();
    }

    fn send(&mut self) {
        while let Some(item) = self.lane.next_mirror_item() {
            offer(&mut self.mirror, &item).expect("an honest owner");
        }
    }

    fn persist(&mut self) {
        for _ in 0..1000 {
            self.mirror.poll().expect("no fault was asked for");
        }
        assert_eq!(self.mirror.durable(), self.mirror.expected());
    }

    fn acknowledge(&mut self) {
        let durable = self.mirror.durable().expect("it has begun");
        self.lane.mirrored(durable).expect("it was sent");
    }

    /// The payloads that a takeover finds.
    fn taken_over(&self, applied: Lsn, epoch: Epoch) -> Vec<Vec<u8>> {
        let (records, end) = scan_as(&self.other, &MIRROR, applied, epoch).expect("a readable lane");
        assert_eq!(end.hole, None);
        records.into_iter().map(|record| record.payload).collect()
    }
}

fn offer(mirror: &mut MirrorLane<SimLog>, item: &MirrorItem) -> Result<(), MirrorRefusal> {
    match item {
        MirrorItem::Begin { epoch, start } => mirror.begin(*epoch, *start),
        MirrorItem::Write { epoch, start, end, bytes } => mirror.write(*epoch, *start, *end, bytes),
    }
}

fn pmem() -> LogShape {
    LogShape::pmem(1 << 20)
}

#[test]
fn the_mirror_holds_the_same_bytes_at_the_same_places() {
    for own in shapes(64 << 10) {
        for other in shapes(64 << 10) {
            let mut both = Both::in_sync(own, other);
            let mut prng = Prng::new(7);
            let mut payloads = Vec::new();
            for _ in 0..60 {
                let (draft, payload) = any_change(&mut prng, 9000);
                if !both.lane.room_for(payload.len() as u64) {
                    both.settle();
                    assert_eq!(both.lane.stable(), both.lane.appended());
                    assert_eq!(both.taken_over(both.lane.applied(), Epoch(1)), payloads);
                    both.lane.trim(both.lane.appended());
                    payloads.clear();
                }
                both.lane.append(&draft, &[&payload]);
                payloads.push(payload);
            }
            both.settle();
            assert_eq!(both.taken_over(both.lane.applied(), Epoch(1)), payloads);
            // A takeover appends from the head that its scan found, whatever the units were.
            let (_, end) = scan_as(&both.other, &MIRROR, both.lane.applied(), Epoch(1)).expect("a readable lane");
            both.other.set_latency_ns(0, 0);
            let mut lane = Lane::open_at(open(&both.other), MIRROR, Epoch(2), end.new_head);
            lane.append(&write(1, 0), &[b"of the new owner"]);
            settle_with_mark(&mut lane);
            assert_eq!(both.taken_over(end.new_head, Epoch(2)), [b"of the new owner"]);
        }
    }
}

#[test]
fn answers_wait_for_what_the_mode_says() {
    let mut both = Both::new(pmem(), pmem());
    let first = both.lane.append(&write(1, 0), &[b"alone"]);
    settle(&mut both.lane);
    assert_eq!((both.lane.mirror_mode(), both.lane.stable()), (MirrorMode::Off, first));

    let start = both.start();
    let second = both.lane.append(&write(1, 1), &[b"streaming"]);
    settle(&mut both.lane);
    assert_eq!((both.lane.mirror_mode(), both.lane.stable()), (MirrorMode::Streaming, second));
    assert_eq!(both.lane.mirrored_lsn(), Some(start));

    both.lane.require_mirror();
    let third = both.lane.append(&write(1, 2), &[b"required"]);
    settle(&mut both.lane);
    assert_eq!((both.lane.stable(), both.lane.durable()), (second, third), "what was answered stays answered");
    assert!(!both.lane.is_caught_up());
    both.send();
    both.persist();
    assert!(both.lane.stable() == second && !both.lane.is_caught_up(), "the owner has not heard of it");
    both.acknowledge();
    assert!(both.lane.stable() == third && both.lane.is_caught_up());

    let fourth = both.lane.append(&write(1, 3), &[b"waits"]);
    settle(&mut both.lane);
    assert!(both.lane.stable() < fourth);
    both.lane.set_epoch(Epoch(2));
    both.lane.stop_mirroring();
    assert_eq!((both.lane.stable(), both.lane.mirrored_lsn(), both.lane.epoch()), (fourth, None, Epoch(2)));
    both.acknowledge();
    assert_eq!(both.lane.next_mirror_item(), None);
}

/// Fault 1 of the design: a record that was never mirrored must not rise behind a takeover.
#[test]
fn a_stale_tail_does_not_rise_again() {
    for head_skips in [true, false] {
        let mut both = Both::in_sync(pmem(), pmem());
        both.lane.append(&write(1, 30), &[b"30"]);
        both.settle();
        both.lane.append(&write(1, 31), &[b"31, logged by a alone"]);
        settle(&mut both.lane);
        let (records, end) = scan_as(&both.other, &MIRROR, Lsn(0), Epoch(1)).expect("a readable lane");
        assert_eq!(records.len(), 1);
        // b takes over, serves and dies; a opens from b's superblock. Even if that named the very end of record 30.
        let applied = if head_skips { end.new_head } else { end.end };
        let (records, end) = scan_as(&both.own, &IDENTITY, applied, Epoch(2)).expect("a readable lane");
        assert_eq!((records.len(), end.end, end.hole), (0, applied, None));
        let expected = if head_skips { EndReason::Clean } else { EndReason::OlderEpoch(Epoch(1)) };
        assert_eq!(end.reason, expected);
    }
}

/// Fault 3 of the design: the owner was fenced while it was cut off, the new owner died and came back, and the link heals.
#[test]
pub(crate) fn a_fenced_owner_is_refused() {
    let mut both = Both::in_sync(pmem(), pmem());
    both.lane.append(&write(1, 0), &[b"before"]);
    both.settle();
    let stable = both.lane.stable();
    both.lane.append(&write(1, 1), &[b"by a fenced owner"]);
    settle(&mut both.lane);
    // Its register says epoch 3 by now, and that is what the restarted node begins with.
    both.mirror = MirrorLane::open(open(&both.other), MIRROR, Epoch(3));
    let refused = Err(MirrorRefusal::OldEpoch { given: Epoch(1), seen: Epoch(3) });
    assert_eq!(both.mirror.begin(Epoch(1), Lsn(0)), refused);
    let head = both.lane.appended();
    both.mirror.begin(Epoch(3), head).expect("of the new epoch");
    while let Some(item) = both.lane.next_mirror_item() {
        assert_eq!(offer(&mut both.mirror, &item), refused);
    }
    both.persist();
    assert_eq!((both.mirror.durable(), both.lane.stable()), (Some(head), stable));
    // An epoch that a write carried counts as well.
    both.lane.set_epoch(Epoch(4));
    both.lane.stop_mirroring();
    let start = both.start();
    both.send();
    assert_eq!(both.mirror.epoch(), Epoch(4));
    assert!(matches!(both.mirror.begin(Epoch(3), start), Err(MirrorRefusal::OldEpoch { .. })));
}

#[test]
fn a_mirror_comes_back_while_changes_are_appended() {
    let mut both = Both::new(LogShape::file(1 << 20), LogShape { unit_bytes: 4096, ..pmem() });
    both.own.set_latency_ns(0, 0);
    let end = both.lane.append(&write(1, 0), &[b"before the start"]);
    settle(&mut both.lane);
    let start = both.start();
    assert!(start > end && start.0.is_multiple_of(4096), "the open batch was filled up");
    both.lane.append(&write(1, 1), &[b"answered while streaming"]);
    settle(&mut both.lane);
    assert_eq!(both.lane.stable(), both.lane.appended());
    // The consistency point contains what came before the start.
    let applied = start;
    both.lane.trim(applied);
    both.lane.require_mirror();
    assert!(!both.lane.is_caught_up());
    both.lane.append(&write(1, 2), &[b"waits"]);
    both.settle();
    assert!(both.lane.is_caught_up());
    both.lane.set_epoch(Epoch(2));
    both.lane.append(&write(1, 3), &[b"of the new epoch"]);
    both.settle();
    let expected = [b"answered while streaming".as_slice(), b"waits", b"of the new epoch"];
    assert_eq!(both.taken_over(applied, Epoch(1)), expected);
}

#[test]
fn what_the_partner_says_is_judged() {
    let mut both = Both::in_sync(pmem(), pmem());
    both.lane.append(&write(1, 0), &[b"first"]);
    settle(&mut both.lane);
    both.send();
    both.lane.append(&write(1, 1), &[b"second"]);
    settle(&mut both.lane);
    let (sent, appended) = (both.mirror.expected().expect("it has begun"), both.lane.appended());
    for lsn in [1, sent.0 - 128, sent.0 + 128, appended.0, appended.0 + 4096, u64::MAX] {
        assert_eq!(both.lane.mirrored(Lsn(lsn)), Err(MirroringError::NotSent(Lsn(lsn))));
        assert_eq!(both.lane.mirrored_lsn(), Some(Lsn(0)));
    }
    both.persist();
    both.acknowledge();
    assert_eq!(both.lane.mirrored(Lsn(0)), Ok(()), "old news");
    // It has acknowledged: from now on it cannot expect anything that was before.
    for expected in [None, Some(Lsn(0)), Some(sent.plus(128)), Some(appended), Some(Lsn(u64::MAX))] {
        let lost = MirroringError::Lost { expected, mirrored: sent };
        assert_eq!(both.lane.resend_from(expected), Err(lost));
    }
    assert_eq!(both.lane.resend_from(Some(sent)), Ok(()));
    both.settle();
    assert_eq!(both.taken_over(Lsn(0), Epoch(1)), [b"first".as_slice(), b"second"]);
}

#[test]
fn what_was_lost_on_the_way_is_sent_again() {
    let mut both = Both::in_sync(pmem(), pmem());
    let append = |both: &mut Both, name: &[u8]| {
        both.lane.append(&write(1, 0), &[name]);
        settle(&mut both.lane);
    };
    append(&mut both, b"a");
    // The connection ends before the start arrives, then after one of three writes.
    while both.lane.next_mirror_item().is_some() {}
    assert_eq!(both.lane.resend_from(both.mirror.expected()), Ok(()));
    both.settle();
    for name in [b"b", b"c", b"d"] {
        append(&mut both, name);
    }
    let items: Vec<_> = std::iter::from_fn(|| both.lane.next_mirror_item()).collect();
    assert_eq!(items.len(), 3);
    offer(&mut both.mirror, &items[0]).expect("the next one");
    assert!(matches!(offer(&mut both.mirror, &items[2]), Err(MirrorRefusal::Gap { .. })));
    assert_eq!(both.lane.resend_from(both.mirror.expected()), Ok(()));
    let again: Vec<_> = std::iter::from_fn(|| both.lane.next_mirror_item()).collect();
    assert_eq!(again, items[1..]);
    for item in items.iter().chain(&again) {
        offer(&mut both.mirror, item).expect("repetitions are no fault");
    }
    both.persist();
    both.acknowledge();
    assert_eq!(both.lane.stable(), both.lane.appended());
    assert_eq!(both.taken_over(Lsn(0), Epoch(1)), [b"a", b"b", b"c", b"d"]);
    let figures = both.mirror.figures();
    assert_eq!((figures.writes, figures.repetitions, figures.refused), (4, 3, 1));
}

#[test]
fn a_batch_is_handed_over_without_a_copy() {
    let mut both = Both::in_sync(LogShape::file(1 << 20), pmem());
    both.own.set_latency_ns(1_000_000, 1_000_000);
    both.lane.append(&write(1, 0), &[&[1; 5000]]);
    both.lane.poll(Nanos(0)).expect("no fault");
    // It leaves while the owner's own persist is in flight.
    assert!(both.lane.durable() < both.lane.appended());
    assert!(matches!(both.lane.next_mirror_item(), Some(MirrorItem::Begin { .. })));
    let Some(MirrorItem::Write { bytes, .. }) = both.lane.next_mirror_item() else { panic!("a batch was closed") };
    both.lane.resend_from(None).expect("nothing was acknowledged");
    both.lane.next_mirror_item();
    let Some(MirrorItem::Write { bytes: again, .. }) = both.lane.next_mirror_item() else { panic!("it is kept") };
    assert!(std::sync::Arc::ptr_eq(&bytes, &again));
}

#[test]
fn what_waits_for_the_partner_is_bounded() {
    let mut both = Both::in_sync(LogShape::pmem(64 << 20), LogShape::pmem(64 << 20));
    let payload = vec![1; index(CHANGE_BYTES_MAX)];
    for size_bytes in [1, 4096, CHANGE_BYTES_MAX] {
        while both.lane.room_for(size_bytes) {
            both.lane.append(&write(1, 0), &[&payload[..index(size_bytes)]]);
            settle(&mut both.lane);
        }
        let waiting = both.lane.appended().0 - both.lane.mirrored_lsn().expect("it is mirrored").0;
        assert!((MIRROR_BYTES_MAX - 2 * CHANGE_BYTES_MAX..=MIRROR_BYTES_MAX).contains(&waiting), "{waiting} bytes");
        assert!(both.lane.has_space_for(size_bytes), "a consistency point would not help");
        both.settle();
        assert!(both.lane.room_for(CHANGE_BYTES_MAX));
    }
    // A partner that takes more than an owner may send is none: the mirror has room for that much, and no more.
    both.other.set_latency_ns(u64::MAX / 2, u64::MAX / 2);
    while both.lane.room_for(CHANGE_BYTES_MAX) {
        both.lane.append(&write(1, 0), &[&payload]);
        settle(&mut both.lane);
        both.send();
    }
}

#[test]
fn a_batch_is_bounded_whatever_it_holds() {
    for unit_bytes in [64, 4096] {
        let shape = LogShape { unit_bytes, ..LogShape::pmem(16 << 20) };
        let mut both = Both::in_sync(shape, shape);
        let mut prng = Prng::new(3);
        let payload = vec![1; index(CHANGE_BYTES_MAX)];
        let (mut batches, mut bytes_max) = (0, 0);
        for _ in 0..20 {
            loop {
                let largest = *prng.pick(&[100, 5000, CHANGE_BYTES_MAX]);
                let size_bytes = if prng.chance(1, 20) { CHANGE_BYTES_MAX } else { prng.between(1, largest) };
                if !both.lane.room_for(size_bytes) {
                    break;
                }
                both.lane.append(&write(1, 0), &[&payload[..index(size_bytes)]]);
            }
            settle(&mut both.lane);
            while let Some(item) = both.lane.next_mirror_item() {
                if let MirrorItem::Write { bytes, .. } = &item {
                    (batches, bytes_max) = (batches + 1, bytes_max.max(bytes.len() as u64));
                }
                offer(&mut both.mirror, &item).expect("an honest owner");
            }
            both.persist();
            both.acknowledge();
            both.lane.trim(both.lane.appended());
        }
        assert!((CHANGE_BYTES_MAX + 1..=BATCH_BYTES_MAX).contains(&bytes_max), "{bytes_max} bytes");
        assert!(batches < 400, "{batches} batches for {} bytes", both.lane.appended());
    }
}

#[test]
fn a_new_stretch_waits_for_the_persists_of_the_former_one() {
    let mut both = Both::in_sync(LogShape::pmem(8 * 4096), LogShape::file(8 * 4096));
    both.other.set_latency_ns(100_000, 100_000);
    let mut end = both.lane.append(&write(1, 0), &[&[1; 8000]]);
    settle(&mut both.lane);
    both.send();
    both.mirror.poll().expect("no fault");
    assert_eq!((both.mirror.durable(), both.mirror.is_idle()), (Some(Lsn(0)), false));
    // The owner goes alone, and comes back one lap later.
    both.lane.stop_mirroring();
    while end.0 < 7 * 4096 {
        both.lane.trim(both.lane.appended());
        end = both.lane.append(&write(1, 0), &[&[2; 3000]]);
        settle(&mut both.lane);
    }
    both.lane.trim(both.lane.appended());
    let start = both.start();
    both.lane.append(&write(1, 0), &[&[3; 8000]]);
    settle(&mut both.lane);
    both.send();
    both.mirror.poll().expect("no fault");
    assert_eq!(both.mirror.durable(), Some(start), "the persist of the former stretch proves nothing of this one");
    for _ in 0..3 {
        pass(&both.other, 200_000);
        both.mirror.poll().expect("no fault");
    }
    assert_eq!(both.mirror.durable(), both.mirror.expected());
    assert_eq!(both.taken_over(start, Epoch(1)), [[3; 8000]]);
    // A start that lies before this one is of an old connection.
    let gap = MirrorRefusal::Gap { start: Lsn(0), expected: start };
    assert_eq!(both.mirror.begin(Epoch(1), Lsn(0)), Err(gap));
    assert_eq!(both.mirror.begin(Epoch(1), start), Ok(()), "and this one again is a repetition");
    assert_eq!(both.mirror.durable(), both.mirror.expected());
}

/// An owner that lost its own log's tail begins in a later epoch where it had begun before: what the mirror holds from there on is of a life
/// that is void, and must not count as mirrored.
#[test]
pub(crate) fn a_begin_of_a_later_epoch_is_no_repetition() {
    let mut both = Both::in_sync(pmem(), pmem());
    let start = both.lane.applied();
    both.lane.append(&write(1, 0), &[b"of the former life"]);
    both.settle();
    assert!(both.mirror.durable() > Some(start));
    both.mirror.begin(Epoch(2), start).expect("of the new epoch");
    assert_eq!((both.mirror.durable(), both.mirror.expected()), (Some(start), Some(start)));
}

#[test]
fn a_mirror_whose_log_fails_takes_nothing_more() {
    // What the failed persist had lands or not: it was not acknowledged, and a takeover may perform it, whole.
    let landed: Vec<bool> = (0..32).map(what_a_failed_persist_had_has_landed).collect();
    assert!(landed.contains(&true) && landed.contains(&false), "both are to be seen: {landed:?}");
}

fn what_a_failed_persist_had_has_landed(seed: u64) -> bool {
    let mut both = Both::seeded(seed, pmem(), LogShape::file(1 << 20));
    both.start();
    both.lane.require_mirror();
    both.other.set_latency_ns(0, 0);
    both.lane.append(&write(1, 0), &[b"arrives"]);
    both.settle();
    let stable = both.lane.stable();
    both.other.fail_persist_after(0);
    both.lane.append(&write(1, 1), &[b"does not"]);
    settle(&mut both.lane);
    both.send();
    let error = both.mirror.poll().expect_err("the persist fails");
    assert_eq!(both.mirror.poll(), Err(error.clone()));
    assert_eq!(both.mirror.durable(), Some(stable));
    assert_eq!(both.mirror.begin(Epoch(9), Lsn(1 << 30)), Err(MirrorRefusal::Failed(error)));
    both.mirror.close();
    assert!(both.mirror.is_idle() && both.mirror.begin(Epoch(9), Lsn(1 << 30)) == Err(MirrorRefusal::Closed));
    let found = both.taken_over(Lsn(0), Epoch(1));
    assert_eq!(found[0], b"arrives");
    assert!(found.len() == 1 || found[1..] == [b"does not".to_vec()], "{found:?}");
    found.len() == 2
}

/// Writes that no owner sends: nothing panics, nothing is stored that should not be, and honest ones go on afterwards.
#[test]
fn no_write_of_a_partner_reaches_beyond_its_place() {
    for (seed, shape) in (0..40).zip(shapes(4096 + RING_BYTES).into_iter().cycle()) {
        let mut prng = Prng::new(seed);
        let mut both = Both::new(LogShape { latency_ns: (0, 0), ..shape }, LogShape { latency_ns: (0, 0), ..shape });
        assert_eq!(both.mirror.write(Epoch(1), Lsn(0), Lsn(4096), &[0; 4096]), Err(MirrorRefusal::NotBegun));
        both.start();
        both.lane.require_mirror();
        let (mut payloads, mut taken) = (Vec::new(), 0);
        for _ in 0..300 {
            let (draft, payload) = any_change(&mut prng, 5000);
            if !both.lane.room_for(payload.len() as u64) {
                both.lane.trim(both.lane.stable());
                payloads.clear();
                continue;
            }
            both.lane.append(&draft, &[&payload]);
            payloads.push(payload);
            settle(&mut both.lane);
            while let Some(item) = both.lane.next_mirror_item() {
                both.persist();
                for _ in 0..4 {
                    let (before, expected) = (both.other.image(), both.mirror.expected());
                    if mangle(&mut prng, &item).is_some_and(|bad| offer(&mut both.mirror, &bad).is_ok()) {
                        taken += 1;
                    }
                    both.persist();
                    assert!(both.other.image() == before && both.mirror.expected() == expected);
                }
                offer(&mut both.mirror, &item).expect("an honest owner");
            }
            both.persist();
            both.acknowledge();
            assert_eq!(both.taken_over(both.lane.applied(), Epoch(1)), payloads);
        }
        assert!(taken > 10, "repetitions are passed over");
    }
}

/// A write that is not the expected one, or no place for it.
fn mangle(prng: &mut Prng, item: &MirrorItem) -> Option<MirrorItem> {
    let MirrorItem::Write { epoch, start, end, bytes } = item else { return None };
    let (mut start, mut end, mut bytes) = (*start, *end, bytes.to_vec());
    // A batch may be shorter than its positions where it ends the ring: how much of its last pad is stored is the owner's choice.
    let ends_ring = end.0.is_multiple_of(RING_BYTES);
    let any = |prng: &mut Prng| *prng.pick(&[0, 1, 63, 64, 128, 512, 4096, 8192, 1 << 20, 1 << 62, u64::MAX]);
    match prng.below(7) {
        0 => start = Lsn(start.0.wrapping_add(any(prng).max(1))),
        1 => start = Lsn(start.0.wrapping_sub(any(prng).max(1))),
        2 => end = Lsn(end.0.wrapping_add(any(prng).max(1))),
        3 => end = Lsn(end.0.wrapping_sub(any(prng).max(1))),
        4 => bytes.resize(bytes.len() + index(prng.between(1, 5)) * 64, 0),
        5 => bytes.truncate(index(prng.below(bytes.len() as u64))),
        _ => {
            // Both move, so that the length fits, to where it was before or will be later.
            let moved = *prng.pick(&[128, 4096, 7 * 4096, 1 << 40]);
            let back = prng.chance(1, 2) && start.0 >= moved;
            let go = |lsn: Lsn| Lsn(if back { lsn.0 - moved } else { lsn.0 + moved });
            (start, end) = (go(start), go(end));
        }
    }
    let ends_ring = ends_ring || end.0.is_multiple_of(RING_BYTES);
    (!ends_ring).then(|| MirrorItem::Write { epoch: *epoch, start, end, bytes: bytes.into() })
}

#[test]
fn the_records_of_another_lane_are_refused() {
    let mut both = Both::in_sync(pmem(), pmem());
    both.lane.append(&write(1, 0), &[b"x"]);
    settle(&mut both.lane);
    let begin = both.lane.next_mirror_item().expect("the start");
    let item = both.lane.next_mirror_item().expect("a write");
    let others = [
        (LaneIdentity { pool: PoolId(1), ..MIRROR }, RecordFault::OtherPool),
        (LaneIdentity { lane: LaneIndex(0), ..MIRROR }, RecordFault::OtherLane(IDENTITY.lane)),
    ];
    for (identity, fault) in others {
        let medium = formatted_as(&SimWorld::new(1), pmem(), &identity);
        let mut mirror = MirrorLane::open(open(&medium), identity, Epoch(1));
        offer(&mut mirror, &begin).expect("a place like any other");
        assert_eq!(offer(&mut mirror, &item), Err(MirrorRefusal::NoRecord { start: Lsn(0), fault }));
    }
}
