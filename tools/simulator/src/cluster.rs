//! Machines and the nodes that run on them, in one world: one thread polls everything, in an order drawn from the seed.
//!
//! A [`Machine`] is hardware: it outlives its nodes. A [`Node`] is a process: it is dropped at a crash. A cluster is the world that they
//! share; nodes know of each other only through what the world carries.

use crate::{
    clients::{Front, Port},
    setup::{BLOCK, Setup, index},
};
use std::{
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use twinlog::{
    alloc::budget::Budget,
    base::{LaneIndex, PoolId, ReactorIndex},
    changelog::{Format, LaneIdentity, PortionRole},
    node::{
        admin::{AdminCall, AdminReply, AdminRequest},
        engine::{Engine, EngineLimits, EngineParts},
        request::VolumeService,
    },
    pool::{
        io::Io,
        superblocks::{CreatePool, first_superblock},
    },
    reactor::{Idle, IdlePolicy, MailboxSender, Waker, mailbox},
    serve::{NbdServer, Reactor, ReactorParts},
};
use twinlog_device::{BlockDevice, BlockPool, DurabilityClass, Prng, Wait};
use twinlog_sim::{
    Agenda, FaultPlan, LogMedium, SimDisk, SimListener, SimMedium, SimNet, SimPlatform, SimWaker, SimWorld,
};

/// The pool of every machine.
const POOL: PoolId = PoolId(7);
/// Messages that wait between reactors: so few that the bound is met.
const MESSAGES_MAX: usize = 8;
/// Clients of one reactor.
const CONNECTIONS_MAX: usize = 16;

/// Every machine and node of a history.
pub struct Cluster {
    /// What they share.
    pub world: SimWorld,
    /// One for now; the pair has two.
    pub machines: Vec<Machine>,
}

impl Cluster {
    /// Machines with a pool each, as `setup` says.
    #[must_use]
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let world = SimWorld::new(seed);
        let machines = vec![Machine::new(&world, setup)];
        Self { world, machines }
    }
}

/// One machine's disks, log and memory.
pub struct Machine {
    world: SimWorld,
    setup: Setup,
    /// Its disks.
    pub media: Vec<SimMedium>,
    /// Its log memory, by lane.
    pub logs: Vec<LogMedium>,
    /// Memory, used by one life after the other.
    pub blocks: BlockPool,
}

struct MailWaker(SimWaker);

impl Waker for MailWaker {
    fn wake(&self) {
        self.0.wake();
    }
}

impl Machine {
    /// A machine whose disks hold a new pool.
    ///
    /// # Panics
    /// When the pool cannot be made.
    #[must_use]
    pub fn new(world: &SimWorld, setup: &Setup) -> Self {
        let media: Vec<_> =
            (0..setup.device_blocks.len()).map(|position| SimMedium::new(world, setup.medium(position))).collect();
        let logs = (0..setup.lanes).map(|_| LogMedium::new(world, "log", setup.log())).collect();
        let blocks = BlockPool::new(setup.memory_blocks).expect("a small mapping");
        let machine = Self { world: world.clone(), setup: setup.clone(), media, logs, blocks };
        machine.make_pool();
        machine.format_logs();
        machine
    }

    fn make_pool(&self) {
        let agenda = Agenda::new(&self.world);
        let devices: Vec<SimDisk> = self.media.iter().map(|medium| medium.open(&agenda)).collect();
        let sizes: Vec<_> = (1..).zip(&devices).map(|(id, device)| (id, device.info().block_count)).collect();
        let mut io = Io::new(devices, self.blocks.clone(), 16);
        let mut create = CreatePool::new(&mut io, 0, first_superblock(POOL, "a", &sizes, self.setup.lanes, 0), false);
        let mut is_done = false;
        while !is_done {
            io.poll();
            while let Some(event) = io.next_event() {
                is_done |= create.event(&mut io, event).expect("the devices are empty and sound");
            }
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
    }

    /// Makes the lanes anew: what they held is gone.
    fn format_logs(&self) {
        let agenda = Agenda::new(&self.world);
        for (lane, log) in (0..).zip(&self.logs) {
            let (role, lane_count) = (PortionRole::Own, self.setup.lanes);
            let identity = LaneIdentity { pool: POOL, role, lane: LaneIndex(lane), lane_count };
            let mut format = Format::new(log.open(&agenda), &identity);
            while !format.poll().expect("the log is sound") {
                agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            }
        }
    }

    /// Empties a log that does not outlive its process, as the composition of the real node does at its start.
    pub fn renew_log(&self) {
        if self.setup.durability == DurabilityClass::Volatile {
            self.logs.iter().for_each(LogMedium::repair);
            self.logs.iter().for_each(|log| log.restore(&vec![0; index((1 + self.setup.ring_blocks) * BLOCK)]));
            self.format_logs();
        }
    }

    /// Starts a process with so many reactors.
    ///
    /// # Panics
    /// When a former process still holds memory: it was not dropped, or leaks.
    #[must_use]
    pub fn start(&self, reactor_count: u16) -> Node {
        assert_eq!(self.blocks.free_count(), self.blocks.block_count(), "a process that ended holds no memory");
        let agendas: Vec<_> = (0..reactor_count).map(|_| Agenda::new(&self.world)).collect();
        let wakers: Vec<Arc<dyn Waker>> =
            agendas.iter().map(|agenda| Arc::new(MailWaker(agenda.waker())) as Arc<dyn Waker>).collect();
        let (peers, mailboxes): (Vec<_>, Vec<_>) =
            wakers.iter().map(|waker| mailbox(MESSAGES_MAX, waker.clone())).unzip();
        let (calls, called) = mailbox(MESSAGES_MAX, wakers[0].clone());
        let mut called = Some(called);
        let (budget, ended) = (Budget::default(), Arc::new(AtomicBool::new(false)));
        let mut node = Node { reactors: Vec::new(), ports: Vec::new(), listeners: Vec::new(), calls };
        for ((number, agenda), mailbox) in (0..).zip(&agendas).zip(mailboxes) {
            let own = |(lane, log): (u16, &LogMedium)| {
                (lane % reactor_count == number).then(|| (LaneIndex(lane), log.open(agenda)))
            };
            let engine = Engine::open(EngineParts {
                index: ReactorIndex(number),
                reactor_count,
                devices: self.media.iter().map(|medium| medium.open(agenda)).collect(),
                lanes: (0..).zip(&self.logs).filter_map(own).collect(),
                blocks: self.blocks.clone(),
                budget: budget.clone(),
                limits: EngineLimits::for_memory(self.blocks.block_count() as u64, u64::from(self.setup.lanes)),
                mailbox,
                peers: peers.clone(),
            });
            let (net, listener) = SimNet::open(agenda);
            let port = Port::new(agenda.waker());
            let front = if self.setup.is_nbd {
                Front::Nbd(Box::new(NbdServer::new(CONNECTIONS_MAX)))
            } else {
                Front::Direct(port.clone())
            };
            node.reactors.push(Some(Reactor::new(ReactorParts {
                platform: SimPlatform::new(agenda.clone(), self.blocks.clone()),
                engine: engine.expect("the devices are large enough"),
                net,
                front,
                idle: Idle::new(IdlePolicy::Adaptive),
                calls: called.take(),
                open_device: Box::new(|name| Err(format!("no device called {name}"))),
                ended: ended.clone(),
                peers: (0..)
                    .zip(&wakers)
                    .filter(|(other, _)| *other != number)
                    .map(|(_, waker)| waker.clone())
                    .collect(),
            })));
            node.ports.push(port);
            node.listeners.push(Some(listener));
        }
        node
    }

    /// Ends what ran here, by loss of power.
    pub fn power_cut(&self, prng: &mut Prng) {
        self.media.iter().for_each(|medium| medium.power_cut(prng));
        self.logs.iter().for_each(|log| log.power_cut(prng));
    }

    /// Ends what ran here, by the end of its process.
    pub fn process_kill(&self, prng: &mut Prng) {
        self.media.iter().for_each(|medium| medium.process_kill(prng));
        self.logs.iter().for_each(|log| log.power_cut(prng));
    }

    /// Faults of every disk from now on.
    pub fn set_faults(&self, plan: &FaultPlan) {
        self.media.iter().for_each(|medium| medium.set_faults(plan.clone()));
    }

    /// Ends every fault that heals.
    pub fn heal(&self) {
        self.set_faults(&FaultPlan::default());
        self.media.iter().for_each(SimMedium::repair);
        self.logs.iter().for_each(LogMedium::repair);
    }

    /// A number that differs when any durable byte differs.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let disks = self.media.iter().map(SimMedium::digest);
        let logs = self.logs.iter().map(|log| twinlog::base::checksum(0, &log.image()));
        disks.chain(logs).fold(0, |sum, part| sum.rotate_left(9) ^ part)
    }
}

type SimReactor = Reactor<SimPlatform, Front>;

/// A running process: its reactors.
pub struct Node {
    /// `None`: it has left.
    reactors: Vec<Option<SimReactor>>,
    ports: Vec<Rc<Port>>,
    listeners: Vec<Option<SimListener>>,
    calls: MailboxSender<AdminCall>,
}

impl Node {
    /// Gives each reactor a turn, in an order drawn from `prng`.
    pub fn poll(&mut self, prng: &mut Prng) {
        let count = self.reactors.len();
        let first = if count > 1 { index(prng.below(count as u64)) } else { 0 };
        for position in 0..count {
            let chosen = (first + position) % count;
            if let Some(reactor) = &mut self.reactors[chosen]
                && !reactor.poll_once()
            {
                self.reactors[chosen] = None;
                self.listeners[chosen] = None;
            }
        }
    }

    /// Reactors.
    #[must_use]
    pub fn reactor_count(&self) -> usize {
        self.reactors.len()
    }

    /// Whether every reactor has left.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.reactors.iter().all(Option::is_none)
    }

    /// Whether every reactor serves.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.reactors.iter().all(|reactor| reactor.as_ref().is_some_and(|reactor| reactor.engine().is_serving()))
    }

    /// Why the pool stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.reactors[0].as_ref().and_then(Reactor::failure)
    }

    /// Phase of the consistency point in progress.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        let engine = self.reactors[0].as_ref().map(Reactor::engine);
        engine.and_then(Engine::coordinator).map_or("none", twinlog::cp::coordinator::Coordinator::phase)
    }

    /// The volume called `name`, as a front end sees it.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<(twinlog::base::ObjectId, u64)> {
        let engine = self.reactors[0].as_ref().map(Reactor::engine)?;
        engine.volume(name).map(|volume| (volume.id, volume.size_bytes))
    }

    /// Puts an order to reactor 0; the answer comes through the returned channel. `None` while too many wait.
    #[must_use]
    pub fn call(&self, request: AdminRequest) -> Option<crossbeam_channel::Receiver<AdminReply>> {
        let (reply, replies) = crossbeam_channel::bounded(1);
        self.calls.send(AdminCall { request, reply }).ok().map(|()| replies)
    }

    /// The way of requests to a reactor.
    #[must_use]
    pub fn port(&self, reactor: usize) -> &Rc<Port> {
        &self.ports[reactor]
    }

    /// Where clients of a reactor connect; `None` once it has left.
    #[must_use]
    pub fn listener(&self, reactor: usize) -> Option<&SimListener> {
        self.listeners[reactor].as_ref()
    }
}
