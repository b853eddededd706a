//! The bundle of drivers of one reactor.

use crate::{AnyLog, FileDisk, Ring, UringNetwork, clock};
use twinlog_device::{BlockPool, Nanos, Platform, Wait};

/// What one reactor runs on in production.
pub struct UringPlatform {
    ring: Ring,
}

impl UringPlatform {
    /// The platform of the reactor whose disks, logs and sockets are on `ring`.
    #[must_use]
    pub fn new(ring: Ring) -> Self {
        Self { ring }
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

impl Platform for UringPlatform {
    type Disk = FileDisk;
    type Log = AnyLog;
    type Net = UringNetwork;

    fn now(&self) -> Nanos {
        self.ring.now()
    }

    fn wall_clock_ns(&self) -> u64 {
        clock::wall_ns()
    }

    fn blocks(&self) -> &BlockPool {
        self.ring.blocks()
    }

    fn should_sleep(&self) -> bool {
        self.ring.is_assisted()
    }

    fn turn(&mut self, wait: Wait) -> bool {
        self.ring.turn(wait)
    }
}
