//! What a reactor does when it has nothing to do: spin, or sleep in the kernel.
//!
//! A sleep and wake-up costs 20 us and more on the machines this was measured on; spinning costs a core. `busy` spins for
//! ever. `adaptive` spins for a short window after work, and learns from each idle period whether that pays:
//!
//! ```text
//!            work                     window over                 I/O, message or timer
//! working ----------> spinning --------------------> sleeping ---------------------------> working or sleeping
//!    ^                   | work: the gap was short
//!    +-------------------+
//! ```
//!
//! # Invariants
//!
//! 1. The window stays within [`WINDOW_MIN`] and [`WINDOW_MAX`].
//! 2. An idle period that ended while spinning, or that a spin of [`WINDOW_MAX`] would have caught, widens the window at once to one
//!    and a half times that period; a longer one narrows it by an eighth. A node that stays idle stops spinning after one window,
//!    and a timer that finds no work does not start another spin: an idle node costs its timers only.
//! 3. Nobody spins while something in flight needs the processor to end ([`Platform::should_sleep`]): not even under `busy`. Such an idle
//!    period teaches nothing about the window.
//! 4. A sleep never lasts beyond the next deadline, nor longer than [`SLEEP_MAX`].

use serde::{Deserialize, Serialize};
use std::time::Duration;
#[cfg(doc)]
use twinlog_device::Platform;
use twinlog_device::{Nanos, Wait};

/// Shortest spin after work: a few turns of the loop, for an answer that is already on its way.
pub const WINDOW_MIN: Duration = Duration::from_micros(2);
/// Longest spin after work: about the price of one sleep and wake-up (20 to 50 us), so spinning at most doubles the cost of being wrong.
pub const WINDOW_MAX: Duration = Duration::from_micros(50);
/// Longest sleep: a missed deadline would be seen by then.
pub const SLEEP_MAX: Duration = Duration::from_secs(1);

/// How a reactor waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Spin for a short, self-tuning while after work, then sleep.
    #[default]
    Adaptive,
    /// Never sleep (but see I3): for machines whose cores belong to Twinlog alone.
    Busy,
}

/// The idle state of one reactor.
#[derive(Clone, Debug)]
pub struct Idle {
    policy: IdlePolicy,
    /// How long to spin after work.
    window: Duration,
    /// When the last turn with work ended; `None` before the first.
    worked_at: Option<Nanos>,
    /// Whether the reactor slept since then because it should (I3).
    gave_way: bool,
}

impl Idle {
    /// The state of a reactor that has not worked yet: it sleeps at once.
    #[must_use]
    pub fn new(policy: IdlePolicy) -> Self {
        Self { policy, window: WINDOW_MAX / 2, worked_at: None, gave_way: false }
    }

    /// How the next turn may wait. `worked` tells whether the last turn did anything, `should_sleep` is the platform's word, `deadline`
    /// when a timer needs a turn.
    pub fn wait(&mut self, now: Nanos, worked: bool, should_sleep: bool, deadline: Option<Nanos>) -> Wait {
        if worked {
            let before = self.worked_at.replace(now);
            if let Some(before) = before.filter(|_| !self.gave_way) {
                self.learn(now.since(before));
            }
            self.gave_way = false;
            return Wait::No;
        }
        self.gave_way |= should_sleep;
        let spins = self.policy == IdlePolicy::Busy || self.worked_at.is_some_and(|at| now.since(at) < self.window);
        if spins && !should_sleep {
            return Wait::No;
        }
        match deadline.map_or(SLEEP_MAX, |at| at.since(now).min(SLEEP_MAX)) {
            Duration::ZERO => Wait::No,
            sleep => Wait::UpTo(sleep),
        }
    }

    /// The spin window in force.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Tunes the window by an idle period that has ended with work (I2).
    fn learn(&mut self, gap: Duration) {
        if gap <= WINDOW_MAX {
            self.window = self.window.max(gap * 3 / 2).min(WINDOW_MAX);
        } else {
            self.window = (self.window - self.window / 8).max(WINDOW_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Nanos {
        Nanos(micros * 1000)
    }

    #[test]
    fn adaptive_spins_for_its_window_and_then_sleeps_until_the_deadline() {
        let mut idle = Idle::new(IdlePolicy::Adaptive);
        assert_eq!(idle.wait(us(100), true, false, None), Wait::No);
        assert_eq!(idle.wait(us(124), false, false, Some(us(500))), Wait::No);
        assert_eq!(idle.wait(us(125), false, false, Some(us(500))), Wait::UpTo(Duration::from_micros(375)));
        assert_eq!(idle.wait(us(500), false, false, Some(us(500))), Wait::No, "the deadline is due");
        assert_eq!(idle.wait(us(501), false, false, None), Wait::UpTo(SLEEP_MAX));
    }

    #[test]
    fn a_reactor_without_work_sleeps_at_once_and_a_timer_starts_no_spin() {
        let mut idle = Idle::new(IdlePolicy::Adaptive);
        assert_eq!(idle.wait(us(0), false, false, None), Wait::UpTo(SLEEP_MAX));
        assert_eq!(idle.wait(us(1_000_000), false, false, None), Wait::UpTo(SLEEP_MAX));
    }

    #[test]
    fn short_gaps_widen_the_window_to_its_bound_and_long_ones_narrow_it_to_its_bound() {
        let mut idle = Idle::new(IdlePolicy::Adaptive);
        let mut now = us(0);
        for _ in 0..100 {
            now = now + WINDOW_MAX;
            idle.wait(now, true, false, None);
        }
        assert_eq!(idle.window(), WINDOW_MAX);
        for _ in 0..100 {
            now = now + WINDOW_MAX + Duration::from_nanos(1);
            idle.wait(now, true, false, None);
        }
        assert_eq!(idle.window(), WINDOW_MIN);
        idle.wait(now + Duration::from_micros(20), true, false, None);
        assert_eq!(idle.window(), Duration::from_micros(30), "one short gap is enough to spin again");
    }

    #[test]
    fn nobody_spins_while_the_processor_is_needed_and_the_gap_teaches_nothing() {
        for policy in [IdlePolicy::Adaptive, IdlePolicy::Busy] {
            let mut idle = Idle::new(policy);
            assert_eq!(idle.wait(us(100), true, true, None), Wait::No, "there may be more to do");
            assert_eq!(idle.wait(us(101), false, true, None), Wait::UpTo(SLEEP_MAX), "{policy:?}");
            let window = idle.window();
            idle.wait(us(900), true, false, None);
            assert_eq!(idle.window(), window);
            assert_eq!(idle.wait(us(901), false, false, None), Wait::No, "spins for the next request");
        }
    }

    #[test]
    fn busy_never_sleeps() {
        let mut idle = Idle::new(IdlePolicy::Busy);
        for second in 0..10 {
            assert_eq!(idle.wait(Nanos(second * 1_000_000_000), second == 0, false, None), Wait::No);
        }
    }
}
