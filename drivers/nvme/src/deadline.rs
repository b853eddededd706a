//! Until when something is to be answered, over pauses of the controller.

use std::time::Duration;
use twinlog_device::Nanos;

/// Longest pause that a controller is granted, however long a firmware's activation takes by its own word (up to 109 minutes): clients wait meanwhile. And
/// how long pauses may keep one command, of a controller that pauses again and again.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(120);

/// A time that pauses move, by [`PAUSE_MAX`] in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    at: Nanos,
    /// What pauses may still add.
    grace: Duration,
}

impl Deadline {
    pub(crate) fn new(at: Nanos) -> Self {
        Self { at, grace: PAUSE_MAX }
    }

    /// The same thing is to be answered until another time.
    pub(crate) fn set(&mut self, at: Nanos) {
        self.at = at;
    }

    /// The controller had paused for so long.
    pub(crate) fn postpone(&mut self, by: Duration) {
        let by = by.min(self.grace);
        self.at = self.at + by;
        self.grace -= by;
    }

    pub(crate) fn is_over(self, now: Nanos) -> bool {
        self.at <= now
    }

    /// How long it is until then.
    pub(crate) fn left(self, now: Nanos) -> Duration {
        self.at.since(now)
    }
}
