//! Back-pressure without a cliff: when to checkpoint, and how much to slow down changes as a lane fills.
//!
//! # Theory
//!
//! A consistency point gives a lane's space back in one step, when it is durable. If changes arrived at full speed until the ring
//! is full, the next one would wait for the whole rest of the consistency point: seconds. Instead, each change is
//! delayed a little once the lane is fuller than [`FREE_PERCENT`], so that the rate of arrival meets the rate at which the disks drain it
//! somewhere before the ring is full, and every change pays the same small price.
//!
//! The delay is a hyperbola in the fill, as OpenZFS has it for dirty data (`module/zfs/dmu_tx.c`):
//!
//! ```text
//!                 used - free_limit
//! delay = SCALE x ----------------- x record / 4 KiB,   at most DELAY_MAX
//!                    ring - used
//! ```
//!
//! It is zero at the limit, continuous, grows without a jump, and its inverse spans all rates: 4 KiB records pass at 80 % of the ring
//! with 39 MiB/s, at 65 % with 273 MiB/s, at 95 % with 5 MiB/s. A lane of any disk finds its own point on the curve.
//! Delays must follow each other, not overlap, else many clients together would undo them: [`Pace`] sees to that.
//!
//! # Invariants
//!
//! 1. The delay is zero up to the limit, never falls as the lane fills, and never exceeds [`DELAY_MAX`].
//! 2. A full ring is refused by `Lane::room_for`, whatever the delay says.

use crate::base::limits::BLOCK_BYTES;
use std::time::Duration;
use twinlog_device::Nanos;

/// Fill below which no change is delayed: a consistency point starts at 50 %, and has this much head start.
pub const FREE_PERCENT: u64 = 60;

/// Fill at which a consistency point starts.
pub const CHECKPOINT_PERCENT: u64 = 50;

/// Age of the oldest change at which a consistency point starts: bounds replay after a crash on a lane with little load.
pub const CHECKPOINT_AGE: Duration = Duration::from_secs(5);

/// Delay of a 4 KiB record half-way between the limit and a full ring.
const SCALE_NS: u128 = 100_000;

/// Longest delay of one change: what a client takes for a slow disk, not for a dead one.
pub const DELAY_MAX: Duration = Duration::from_millis(100);

/// How much the next change of `record_bytes` is delayed on a lane where `used_bytes` of `ring_bytes` are in use.
#[must_use]
pub fn delay(used_bytes: u64, ring_bytes: u64, record_bytes: u64) -> Duration {
    let free_limit = u128::from(ring_bytes) * u128::from(FREE_PERCENT) / 100;
    let above = u128::from(used_bytes).saturating_sub(free_limit);
    if above == 0 {
        return Duration::ZERO;
    }
    let left = u128::from(ring_bytes.saturating_sub(used_bytes));
    if left == 0 {
        return DELAY_MAX;
    }
    // Each factor is below 2^64, 2^17 and 2^64 in any real lane; saturation only meets nonsense, which gets the longest delay.
    let scaled = above.saturating_mul(SCALE_NS).saturating_mul(u128::from(record_bytes));
    let delay_ns = scaled / (left * u128::from(BLOCK_BYTES));
    u64::try_from(delay_ns).map_or(DELAY_MAX, |ns| Duration::from_nanos(ns).min(DELAY_MAX))
}

/// Whether a consistency point should start: the lane is half full, or its oldest change is old. `oldest_age` is `None` when no
/// change waits for one (`Lane::has_changes`): marks alone never cause one.
#[must_use]
pub fn should_checkpoint(used_bytes: u64, ring_bytes: u64, oldest_age: Option<Duration>) -> bool {
    let half_full = u128::from(used_bytes) * 100 >= u128::from(ring_bytes) * u128::from(CHECKPOINT_PERCENT);
    oldest_age.is_some_and(|age| half_full || age >= CHECKPOINT_AGE)
}

/// Puts the delays of one lane's changes one after the other, so that the delay is the reciprocal of a rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Nanos,
}

impl Pace {
    /// When a change that arrived at `now` may be appended: `now` without a delay.
    pub fn admit_at(&mut self, now: Nanos, delay: Duration) -> Nanos {
        if delay.is_zero() {
            return now;
        }
        self.last = self.last.max(now) + delay;
        self.last
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
            for used in (0..=ring).step_by(usize::try_from(step).expect("64 bits")) {
                let now = delay(used, ring, 4224);
                assert!(now >= before && now <= DELAY_MAX, "at {used} of {ring}");
                before = now;
            }
            assert_eq!(delay(ring, ring, 4224), DELAY_MAX);
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
        for used in (limit..ring * 99 / 100).step_by(4224) {
            let (before, after) = (delay(used, ring, 4224), delay(used + 4224, ring, 4224));
            assert!(after <= before + before / 10 + Duration::from_micros(1), "at {used}");
        }
    }

    #[test]
    fn the_rates_of_the_theory_hold() {
        let ring = 1_000_000_000;
        let mib_per_s = |percent: u64| {
            let delay = delay(ring * percent / 100, ring, 4096);
            4096 * 1_000_000_000 / u64::try_from(delay.as_nanos()).expect("small") / (1 << 20)
        };
        assert_eq!((mib_per_s(65), mib_per_s(80), mib_per_s(95)), (273, 39, 5));
    }

    #[test]
    fn delays_follow_each_other() {
        let mut pace = Pace::default();
        let delay = Duration::from_nanos(10);
        let times: Vec<u64> = (0..3).map(|_| pace.admit_at(Nanos(100), delay).0).collect();
        assert_eq!(times, [110, 120, 130]);
        assert_eq!(pace.admit_at(Nanos(500), delay), Nanos(510));
        assert_eq!(pace.admit_at(Nanos(501), Duration::ZERO), Nanos(501));
    }

    #[test]
    fn a_checkpoint_needs_a_change_and_a_reason() {
        let young = Some(Duration::from_millis(1));
        let cases = [
            (0, None, false),
            (100, None, false),
            (49, young, false),
            (50, young, true),
            (1, Some(CHECKPOINT_AGE), true),
            (1, Some(CHECKPOINT_AGE - Duration::from_nanos(1)), false),
        ];
        for (used, age, expected) in cases {
            assert_eq!(should_checkpoint(used, 100, age), expected, "{used} {age:?}");
        }
    }
}
