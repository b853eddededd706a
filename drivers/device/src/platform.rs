//! The bundle of drivers that one reactor runs on: production and simulation differ in nothing else.

use crate::{BlockDevice, BlockPool, LogMemory, Network};
use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// Nanoseconds of the reactor's monotonic clock, from an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Time since `earlier`; zero if that lies in the future.
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Nanos {
    type Output = Self;
    #[inline]
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Nanos {
    type Output = Duration;
    #[inline]
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// What a turn of the loop may do when nothing has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Return at once.
    No,
    /// Sleep until an I/O completes, the waker is called, or this much time has passed.
    UpTo(Duration),
}

impl Wait {
    /// The same, and not longer than `limit`.
    #[must_use]
    pub fn at_most(self, limit: Duration) -> Self {
        match self {
            Self::UpTo(time) if !limit.is_zero() => Self::UpTo(time.min(limit)),
            _ => Self::No,
        }
    }
}

/// Everything that one reactor knows of the world.
pub trait Platform {
    /// Its disks.
    type Disk: BlockDevice;
    /// Its log memory.
    type Log: LogMemory;
    /// Its connections.
    type Net: Network;

    /// The monotonic clock, read at the last turn of the loop (cheap; constant within a turn).
    fn now(&self) -> Nanos;

    /// Nanoseconds since the Unix epoch, for records and messages that people read; never for decisions.
    fn wall_clock_ns(&self) -> u64;

    /// The memory that this reactor's blocks come from.
    fn blocks(&self) -> &BlockPool;

    /// Whether something in flight is finished by a thread of the operating system that may need this reactor's processor: while the
    /// reactor spins it can be kept waiting for the rest of a time slice (4 ms were measured on Linux 6.18), so it should sleep.
    fn should_sleep(&self) -> bool {
        false
    }

    /// How long the next turn may sleep at most, asked right before it and after everything was polled. Zero while something is in flight
    /// whose end nobody announces: it is seen by looking.
    fn longest_sleep(&self) -> Duration {
        Duration::MAX
    }

    /// Hands everything queued to the machine in at most one system call, collects what has finished, and reads the clock.
    /// Returns whether anything finished.
    fn turn(&mut self, wait: Wait) -> bool;
}
