//! Back-pressure without a cliff: when to checkpoint, and how much to slow down changes as the log or the memory for changes fills.
//!
//! # Theory
//!
//! A consistency point gives back what it took of the log and of memory in one step, when it is durable. A delay that followed the plain
//! fill would let changes pass at full speed right after that step, and all but stop them before the next one: most requests fast, the
//! rest waiting for the disks. So what counts is not what is used but what the disks still *owe*: of what a consistency point in
//! progress will give back, the part that by its age it has written already is not counted. That falls
//! steadily while the disks work, and has no step when the consistency point ends.
//!
//! ```text
//! owed = used - frozen x age / expected duration                    [Drain: expected from the last large consistency point]
//!
//!                 owed - free_limit
//! delay = SCALE x ------------------ x record / 4 KiB,   at most DELAY_MAX
//!                 full_limit - owed
//! ```
//!
//! The delay is a hyperbola, as OpenZFS has it for dirty data (`module/zfs/dmu_tx.c`): zero at the free limit, continuous, without a jump,
//! and its inverse spans all rates: half-way between the limits 4 KiB records pass with 39 MiB/s, a tenth of the way with
//! 352 MiB/s, nine tenths of the way with 4 MiB/s. A lane of any disk finds its own point on the curve, and stays there: with a
//! steady load a consistency point takes as long as the next one's changes need to come, so each freezes the same amount, `owed`
//! stays the same, and at most twice that is in use. Hence the full limit is half of what there is, and a consistency point
//! starts before the free limit: under load one follows the other.
//!
//! Delays must follow each other, not overlap, else many clients together would undo them: [`Pace`] sees to that.
//!
//! # Invariants
//!
//! 1. The delay is zero up to the free limit, never falls as more is owed, and never exceeds [`DELAY_MAX`].
//! 2. A full ring is refused by `Lane::room_for`, and a full memory by the shard, whatever the delay says.

use crate::base::limits::BLOCK_BYTES;
use std::time::Duration;
use twinlog_device::Nanos;

/// Part of the log, or of the memory for changes, at which a consistency point starts.
pub const CHECKPOINT_PERCENT: u64 = 30;

/// What may be owed before changes are delayed: a consistency point has begun by then.
pub const FREE_PERCENT: u64 = 33;

/// What may be owed at all: the consistency point in progress and the changes that come meanwhile are as much again.
pub const FULL_PERCENT: u64 = 50;

/// Age of the oldest change at which a consistency point starts: bounds replay after a crash on a lane with little load.
pub const CHECKPOINT_AGE: Duration = Duration::from_secs(5);

/// Delay of a 4 KiB record half-way between the limits.
const SCALE_NS: u128 = 100_000;

/// Longest delay of one change: what a client takes for a slow disk, not for a dead one.
pub const DELAY_MAX: Duration = Duration::from_millis(100);

/// A reactor that was away for longer than this does not make up for the changes that could have passed meanwhile.
const CATCH_UP_NS_MAX: u64 = 1_000_000;

/// How much the next change of `record_bytes` is delayed while `owed` of `all` is owed; any unit.
#[must_use]
pub fn delay(owed: u64, all: u64, record_bytes: u64) -> Duration {
    let part = |percent: u64| u128::from(all) * u128::from(percent) / 100;
    let above = u128::from(owed).saturating_sub(part(FREE_PERCENT));
    if above == 0 {
        return Duration::ZERO;
    }
    let left = part(FULL_PERCENT).saturating_sub(u128::from(owed));
    if left == 0 {
        return DELAY_MAX;
    }
    // Each factor is below 2^64, 2^17 and 2^64 in any real lane; saturation only meets nonsense, which gets the longest delay.
    let scaled = above.saturating_mul(SCALE_NS).saturating_mul(u128::from(record_bytes));
    let delay_ns = scaled / (left * u128::from(BLOCK_BYTES));
    u64::try_from(delay_ns).map_or(DELAY_MAX, |ns| Duration::from_nanos(ns).min(DELAY_MAX))
}

/// Whether a consistency point should start: much of the lane is in use, or its oldest change is old. `oldest_age` is `None` when no
/// change waits for one (`Lane::has_changes`): marks alone never cause one.
#[must_use]
pub fn should_checkpoint(used_bytes: u64, ring_bytes: u64, oldest_age: Option<Duration>) -> bool {
    oldest_age.is_some_and(|age| is_much(used_bytes, ring_bytes) || age >= CHECKPOINT_AGE)
}

/// Whether `used` of `all` is reason for a consistency point.
#[must_use]
pub fn is_much(used: u64, all: u64) -> bool {
    u128::from(used) * 100 >= u128::from(all) * u128::from(CHECKPOINT_PERCENT)
}

/// How far a consistency point in progress is by its age, and how long they take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drain {
    /// Of the last ones with many blocks, averaged; `None`: there was none yet.
    ns_per_block: Option<u64>,
    /// When it began, and its blocks.
    running: Option<(Nanos, u64)>,
}

impl Drain {
    /// One begins, with so many blocks.
    pub fn begin(&mut self, now: Nanos, blocks: u64) {
        self.running = Some((now, blocks));
    }

    /// It is durable. `many` is what is worth learning from: a small one takes its time for other things than blocks.
    pub fn end(&mut self, now: Nanos, many: u64) {
        if let Some((began, blocks)) = self.running.take().filter(|(_, blocks)| *blocks >= many.max(1)) {
            let took = u64::try_from(now.since(began).as_nanos()).unwrap_or(u64::MAX) / blocks;
            self.ns_per_block = Some(self.ns_per_block.map_or(took, |before| before / 2 + took / 2));
        }
    }

    /// Of `frozen`, in any unit, what the one in progress still has to write.
    #[must_use]
    pub fn owed(&self, now: Nanos, frozen: u64) -> u64 {
        let (Some((began, blocks)), Some(ns_per_block)) = (self.running, self.ns_per_block) else { return frozen };
        let expected = u128::from(blocks) * u128::from(ns_per_block);
        let age = now.since(began).as_nanos().min(expected);
        let done = (u128::from(frozen) * age).checked_div(expected).unwrap_or(0);
        frozen - u64::try_from(done).expect("at most what is frozen")
    }
}

/// Puts the delays of one lane's changes one after the other, so that the delay is the reciprocal of a rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Nanos,
}

impl Pace {
    /// When the next change may be appended if it is delayed by `delay`. The delay is asked for anew at every try: it falls while the disks work.
    #[must_use]
    pub fn next_at(&self, delay: Duration) -> Nanos {
        if delay.is_zero() { Nanos(0) } else { self.last + delay }
    }

    /// A change was appended.
    pub fn passed(&mut self, now: Nanos, delay: Duration) {
        let earliest = Nanos(now.0.saturating_sub(CATCH_UP_NS_MAX));
        self.last = if delay.is_zero() { now } else { (self.last + delay).max(earliest) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RINGS: [u64; 5] = [4096, 1 << 20, 256 << 20, 1 << 40, 1 << 61];

    #[test]
    fn the_delay_never_falls_and_is_bounded() {
        for ring in RINGS {
            let step = (ring / 5000).max(1);
            let mut before = Duration::ZERO;
            for owed in (0..=ring).step_by(usize::try_from(step).expect("64 bits")) {
                let now = delay(owed, ring, 4224);
                assert!(now >= before && now <= DELAY_MAX, "at {owed} of {ring}");
                before = now;
            }
            assert_eq!(delay(ring / 2, ring, 4224), DELAY_MAX);
            assert_eq!(delay(u64::MAX, ring, u64::MAX), DELAY_MAX);
        }
    }

    #[test]
    fn the_delay_begins_at_its_limit_and_has_no_jump() {
        let ring = 256 << 20;
        let limit = ring * FREE_PERCENT / 100;
        assert_eq!(delay(limit, ring, 4224), Duration::ZERO);
        // Between neighbouring fills, one record apart, the delay grows by less than a tenth of itself or a microsecond until the
        // last percent, where the bound lies near.
        for owed in (limit..ring * 49 / 100).step_by(4224) {
            let (before, after) = (delay(owed, ring, 4224), delay(owed + 4224, ring, 4224));
            assert!(after <= before + before / 10 + Duration::from_micros(1), "at {owed}");
        }
    }

    #[test]
    fn the_rates_of_the_theory_hold() {
        let ring = 1_000_000_000;
        let mib_per_s = |permille: u64| {
            let delay = delay(ring * permille / 1000, ring, 4096);
            4096 * 1_000_000_000 / u64::try_from(delay.as_nanos()).expect("small") / (1 << 20)
        };
        assert_eq!((mib_per_s(347), mib_per_s(415), mib_per_s(483)), (351, 39, 4));
    }

    #[test]
    fn delays_follow_each_other_and_are_asked_for_anew() {
        let mut pace = Pace::default();
        let delay = Duration::from_nanos(10);
        pace.passed(Nanos(100), Duration::ZERO);
        for at in [110, 120, 130] {
            assert_eq!(pace.next_at(delay), Nanos(at));
            pace.passed(Nanos(at + 3), delay);
        }
        assert_eq!(pace.next_at(Duration::ZERO), Nanos(0));
        assert_eq!(pace.next_at(delay / 2), Nanos(135));
        // After a long while nothing is made up for but a millisecond.
        pace.passed(Nanos(5_000_000), delay);
        assert_eq!(pace.next_at(delay), Nanos(4_000_010));
    }

    #[test]
    fn what_is_owed_falls_steadily_and_the_speed_is_learned() {
        let mut drain = Drain::default();
        assert_eq!(drain.owed(Nanos(0), 7), 7, "nothing is in progress");
        drain.begin(Nanos(1000), 100);
        assert_eq!(drain.owed(Nanos(5000), 7), 7, "nobody knows yet how long it takes");
        drain.end(Nanos(101_000), 50);
        drain.begin(Nanos(200_000), 400);
        let owed: Vec<u64> = [200_000, 300_000, 400_000, 600_000, 900_000].map(|at| drain.owed(Nanos(at), 80)).into();
        assert_eq!(owed, [80, 60, 40, 0, 0]);
        drain.end(Nanos(1_400_000), 50);
        // A small one tells nothing, one without blocks neither.
        for blocks in [49, 0] {
            drain.begin(Nanos(2_000_000), blocks);
            drain.end(Nanos(90_000_000), 50);
        }
        drain.begin(Nanos(100_000_000), 100);
        assert_eq!(drain.owed(Nanos(100_100_000), 80), 40, "2000 ns a block, the average of both");
        assert_eq!(drain.owed(Nanos(u64::MAX), u64::MAX), 0);
    }

    /// A disk of a given speed under clients that never rest: once it has settled, no change waits for much longer than the others.
    #[test]
    fn under_a_steady_load_every_change_waits_about_as_long() {
        for disk_ns_per_block in [2_000, 20_000, 200_000] {
            let all = 4_000_u64;
            let (mut drain, mut pace) = (Drain::default(), Pace::default());
            let (mut active, mut frozen, mut ends) = (0_u64, 0_u64, Nanos(u64::MAX));
            let (mut waits, mut before, mut cps) = (Vec::new(), Nanos(0), 0);
            let mut now = Nanos(0);
            while waits.len() < 100_000 {
                if now >= ends {
                    drain.end(now, all / 16);
                    (frozen, ends, cps) = (0, Nanos(u64::MAX), cps + 1);
                }
                if ends == Nanos(u64::MAX) && is_much(active, all) {
                    drain.begin(now, active);
                    (frozen, active) = (active, 0);
                    ends = Nanos(now.0 + frozen * disk_ns_per_block);
                }
                let pause = delay(active + drain.owed(now, frozen), all, 4096);
                if active + frozen < all && pace.next_at(pause) <= now {
                    pace.passed(now, pause);
                    active += 1;
                    if cps >= 8 {
                        waits.push(now.since(before));
                    }
                    before = now;
                }
                now = Nanos(now.0 + disk_ns_per_block / 8);
            }
            waits.sort_unstable();
            let at = |permille: usize| waits[waits.len() * permille / 1000];
            assert!(at(999) <= at(500) * 4, "{disk_ns_per_block} ns a block: {:?}, then {:?}", at(500), at(999));
        }
    }

    #[test]
    fn a_checkpoint_needs_a_change_and_a_reason() {
        let young = Some(Duration::from_millis(1));
        let cases = [
            (0, None, false),
            (100, None, false),
            (29, young, false),
            (30, young, true),
            (1, Some(CHECKPOINT_AGE), true),
            (1, Some(CHECKPOINT_AGE - Duration::from_nanos(1)), false),
        ];
        for (used, age, expected) in cases {
            assert_eq!(should_checkpoint(used, 100, age), expected, "{used} {age:?}");
        }
    }
}
