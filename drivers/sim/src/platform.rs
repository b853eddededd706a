//! The simulated platform of one reactor.

use crate::{disk::SimDisk, log::SimLog, net::SimNet, world::Agenda};
use std::marker::PhantomData;
use twinlog_device::{BlockPool, LogMemory, Nanos, Platform, Wait};

/// Wall clock at virtual time zero, in nanoseconds since the Unix epoch: 2025-01-01.
const WALL_CLOCK_START_NS: u64 = 1_735_689_600_000_000_000;

/// One reactor's platform: [`SimDisk`], [`SimNet`], and log memory `L`, which is simulated unless a test brings its own.
///
/// A turn that waits moves the world's clock to the next event of any reactor, or to the end of its wait.
pub struct SimPlatform<L = SimLog> {
    agenda: Agenda,
    blocks: BlockPool,
    gives_way: bool,
    log: PhantomData<fn() -> L>,
}

impl<L> SimPlatform<L> {
    /// The platform of the reactor of `agenda`, whose blocks come from `blocks`.
    #[must_use]
    pub fn new(agenda: Agenda, blocks: BlockPool) -> Self {
        Self { agenda, blocks, gives_way: false, log: PhantomData }
    }

    /// The same, whose reactor never spins if `gives_way`.
    #[must_use]
    pub fn giving_way(self, gives_way: bool) -> Self {
        Self { gives_way, ..self }
    }

    /// The reactor's agenda, to open devices on.
    #[must_use]
    pub fn agenda(&self) -> &Agenda {
        &self.agenda
    }
}

impl<L: LogMemory> Platform for SimPlatform<L> {
    type Disk = SimDisk;
    type Log = L;
    type Net = SimNet;

    fn now(&self) -> Nanos {
        self.agenda.clock()
    }

    fn wall_clock_ns(&self) -> u64 {
        WALL_CLOCK_START_NS.saturating_add(self.now().0)
    }

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn turn(&mut self, wait: Wait) -> bool {
        self.agenda.turn(wait)
    }

    fn should_sleep(&self) -> bool {
        self.gives_way
    }
}
