//! The clocks.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;
use twinlog_device::Nanos;

/// The monotonic clock that goes on while the machine is suspended: a node that slept through its lease must notice.
#[must_use]
pub fn monotonic() -> Nanos {
    Nanos(read(ClockId::CLOCK_BOOTTIME))
}

/// Nanoseconds since the Unix epoch; zero before it.
pub(crate) fn wall_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has this clock since 2.6.39");
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}
