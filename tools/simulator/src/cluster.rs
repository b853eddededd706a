//! Machines and the nodes that run on them, in one world: one thread polls everything, in an order drawn from the seed.
//!
//! A [`Machine`] is hardware: it outlives its nodes. A [`Node`] is a process: it is dropped at a crash. A cluster is the world that they
//! share; nodes know of each other only through what the world carries.

use crate::{
    clients::{Front, Port},
    setup::{BLOCK, Setup, index},
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use twinlog::{
    alloc::budget::Budget,
    base::{LaneIndex, PoolId, PortionId, ReactorIndex},
    changelog::{Format, LaneIdentity, PortionRole},
    cp::message::Grant,
    node::{
        admin::{AdminCall, AdminReply, AdminRequest},
        engine::{Engine, EngineLimits, EngineParts},
        pools::{OpenedPool, PoolOpener, PoolSlot, Pools},
        request::VolumeService,
        sweep::{ReactorSweeps, Sweeps},
    },
    pair::way::LinkWay,
    pool::{
        io::Io,
        superblocks::{CreatePool, first_superblock},
    },
    reactor::{Idle, IdlePolicy, MailboxSender, Waker, mailbox},
    serve::{
        InterconnectLoop, Reactor, ReactorParts, Server,
        reactor::{NodeEnd, OpenDevice},
    },
};
use twinlog_device::{BlockDevice, BlockPool, DurabilityClass, Prng, Shares, Wait};
use twinlog_sim::{
    Agenda, FaultPlan, LogMedium, SimDisk, SimListener, SimLog, SimMedium, SimNet, SimPlatform, SimWaker, SimWorld,
};

/// The pool of every machine.
const POOL: PoolId = PoolId(7);
/// Orders that wait for a node.
const CALLS_MAX: usize = 8;
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
    /// Its disks, the spare one last.
    pub media: Vec<SimMedium>,
    /// How many of them a process is started with.
    configured: Cell<usize>,
    /// Its log memory, by lane.
    pub logs: Vec<LogMedium>,
    /// Memory, used by one life after the other.
    pub blocks: BlockPool,
}

thread_local! {
    /// Memory of machines that are gone: mapping it anew for every history takes a sixth of the time.
    static MEMORY: RefCell<Vec<BlockPool>> = const { RefCell::new(Vec::new()) };
}

/// Memory of so many blocks, of any content.
pub(crate) fn memory(block_count: u32) -> BlockPool {
    let kept = MEMORY.with_borrow_mut(|pools| {
        let position = pools.iter().position(|pool| pool.block_count() == block_count as usize)?;
        Some(pools.swap_remove(position))
    });
    let blocks = kept.unwrap_or_else(|| BlockPool::new(block_count).expect("a small mapping"));
    blocks.set_shares(Shares { clients_max: usize::MAX, changes_max: 0, kept: 0 });
    blocks
}

/// Keeps memory for the next machine.
pub(crate) fn keep_memory(blocks: &BlockPool) {
    // A process that a finding has ended may hold some still.
    if blocks.free_count() == blocks.block_count() && blocks.lent_count() == 0 {
        MEMORY.with_borrow_mut(|pools| pools.push(blocks.clone()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        keep_memory(&self.blocks);
    }
}

/// The world's waker as the engine's trait.
pub(crate) struct MailWaker(pub(crate) SimWaker);

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
        let configured = setup.device_blocks.len();
        let disks = 0..configured + usize::from(setup.has_spare);
        let media = disks.map(|position| SimMedium::new(world, setup.medium(position))).collect();
        let logs = (0..setup.lanes).map(|_| LogMedium::new(world, "log", setup.log())).collect();
        let blocks = memory(setup.memory_blocks);
        let configured = Cell::new(configured);
        let machine = Self { world: world.clone(), setup: setup.clone(), media, configured, logs, blocks };
        machine.make_pool();
        machine.format_logs();
        machine
    }

    /// The disks that a process is started with.
    #[must_use]
    pub fn disks(&self) -> &[SimMedium] {
        &self.media[..self.configured.get()]
    }

    /// Whether there is a disk that can join. One that a crash kept from joining holds something, and people would have to say that it
    /// may be overwritten.
    #[must_use]
    pub fn can_grow(&self) -> bool {
        let spare = self.media[self.configured.get()..].first();
        spare.is_some_and(|spare| spare.written_blocks().is_empty())
    }

    /// Starts further processes with the spare disk, or without it.
    pub fn configure_spare(&self, is_used: bool) {
        assert!(self.setup.has_spare, "there is a spare disk");
        self.configured.set(self.media.len() - usize::from(!is_used));
    }

    /// What a reactor opens by name when the pool grows.
    fn opener(&self, agenda: &Agenda) -> OpenDevice<SimDisk> {
        let (media, agenda) = (self.media.clone(), agenda.clone());
        Box::new(move |name| {
            let named = media.iter().find(|medium| medium.name() == name);
            Some(named.map(|medium| medium.open(&agenda)).ok_or_else(|| format!("no device called {name}")))
        })
    }

    fn make_pool(&self) {
        make_pool(&self.world, self.disks(), &self.blocks, (POOL, "a"), self.setup.lanes);
    }

    /// Makes the lanes anew: what they held is gone.
    fn format_logs(&self) {
        let lane_count = self.setup.lanes;
        let identity = LaneIdentity { pool: POOL, role: PortionRole::Own, lane: LaneIndex(0), lane_count };
        format_logs(&self.world, &self.logs, identity, PortionId(1));
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
            wakers.iter().map(|waker| mailbox(self.setup.messages_max, waker.clone())).unzip();
        let (calls, called) = mailbox(CALLS_MAX, wakers[0].clone());
        let (sweeps, mut called) = (Arc::new(Sweeps::new(&wakers)), Some(called));
        let (budget, end, holders) = (Budget::default(), Arc::new(NodeEnd::default()), Arc::new(()));
        let laziness = vec![0; usize::from(reactor_count)];
        let (ports, listeners) = (Vec::new(), Vec::new());
        let mut node =
            Node { reactors: Vec::new(), interconnect: None, laziness, ports, listeners, calls, last_words: None };
        for ((number, agenda), mailbox) in (0..).zip(&agendas).zip(mailboxes) {
            let own = |(lane, log): (u16, &LogMedium)| {
                (lane % reactor_count == number).then(|| (LaneIndex(lane), log.open(agenda)))
            };
            let parts = EngineParts {
                index: ReactorIndex(number),
                reactor_count,
                devices: self.disks().iter().map(|medium| medium.open(agenda)).collect(),
                lanes: (0..).zip(&self.logs).filter_map(own).collect(),
                blocks: self.blocks.clone(),
                budget: budget.clone(),
                limits: EngineLimits::for_memory(self.blocks.block_count() as u64, u64::from(self.setup.lanes)),
                grant: Grant::SINGLE,
                mailbox,
                peers: peers.clone(),
                holders: holders.clone(),
            };
            let mut pools = Pools::new(self.blocks.clone(), None);
            pools.open(PoolSlot::Home, Ok(parts)).expect("its parts are there");
            let (net, listener) = SimNet::open(agenda);
            let port = Port::new(agenda.waker());
            let front = if self.setup.is_nbd {
                let sweeps = ReactorSweeps::new(sweeps.clone(), usize::from(number));
                Front::Nbd(Box::new(Server::new(CONNECTIONS_MAX).with_sweeps(sweeps)))
            } else {
                Front::Direct(port.clone())
            };
            node.reactors.push(Some(Reactor::new(ReactorParts {
                platform: SimPlatform::new(agenda.clone(), self.blocks.clone()),
                pools,
                net,
                front,
                idle: Idle::new(IdlePolicy::Adaptive),
                calls: called.take(),
                open_device: self.opener(agenda),
                opener: Box::new(NoOpener),
                pair: None,
                end: end.clone(),
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

/// Makes a pool on `disks`, which are empty.
pub(crate) fn make_pool(
    world: &SimWorld,
    disks: &[SimMedium],
    blocks: &BlockPool,
    (pool, name): (PoolId, &str),
    lanes: u16,
) {
    let agenda = Agenda::new(world);
    let devices: Vec<SimDisk> = disks.iter().map(|medium| medium.open(&agenda)).collect();
    let sizes: Vec<_> = (1..).zip(&devices).map(|(id, device)| (id, device.info().block_count)).collect();
    let mut io = Io::new(devices, blocks.clone(), 16);
    let mut create = CreatePool::new(&mut io, 0, first_superblock(pool, name, &sizes, lanes, 0), false);
    let mut is_done = false;
    while !is_done {
        io.poll();
        while let Some(event) = io.next_event() {
            is_done |= create.event(&mut io, event).expect("the devices are empty and sound");
        }
        agenda.turn(Wait::UpTo(Duration::from_millis(1)));
    }
}

/// Makes the lanes of a portion anew; `identity` is that of any of them.
pub(crate) fn format_logs(world: &SimWorld, logs: &[LogMedium], identity: LaneIdentity, portion: PortionId) {
    let agenda = Agenda::new(world);
    for (lane, log) in (0..).map(LaneIndex).zip(logs) {
        let mut format = Format::new(log.open(&agenda), &LaneIdentity { lane, ..identity }, portion);
        while !format.poll().expect("the log is sound") {
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
    }
}

pub(crate) type SimReactor = Reactor<SimPlatform, Front>;

/// A single node opens its pool at its start, and no other.
struct NoOpener;

impl<D, L> PoolOpener<D, L> for NoOpener {
    fn begin(&mut self, _slot: PoolSlot, _grant: Grant) {}

    fn poll(&mut self) -> Option<OpenedPool<D, L>> {
        None
    }
}

/// A reactor's part of the machine's pool.
fn home(reactor: &Option<SimReactor>) -> Option<&Engine<SimDisk, SimLog>> {
    reactor.as_ref()?.pools().engine(PoolSlot::Home)
}

/// The interconnect of a process, where it is a poller of its own.
pub(crate) type SimInterconnect = InterconnectLoop<SimPlatform, LinkWay<SimNet>>;

/// A running process: its reactors.
pub struct Node {
    /// `None`: it has left.
    reactors: Vec<Option<SimReactor>>,
    /// After the reactors in the order of turns.
    interconnect: Option<SimInterconnect>,
    /// In how many of eight turns each of all these is passed over, as a thread is that gets no processor.
    laziness: Vec<u64>,
    ports: Vec<Rc<Port>>,
    listeners: Vec<Option<SimListener>>,
    calls: MailboxSender<AdminCall>,
    /// Why the pool had stopped when reactor 0 left.
    last_words: Option<String>,
}

impl Node {
    /// A process of these reactors, the ports and listeners of each, and the way of orders to the first.
    pub(crate) fn new(
        reactors: Vec<SimReactor>,
        ports: Vec<Rc<Port>>,
        listeners: Vec<SimListener>,
        calls: MailboxSender<AdminCall>,
    ) -> Self {
        let laziness = vec![0; reactors.len()];
        let reactors = reactors.into_iter().map(Some).collect();
        let listeners = listeners.into_iter().map(Some).collect();
        Self { reactors, interconnect: None, laziness, ports, listeners, calls, last_words: None }
    }

    /// Polls an interconnect beside the reactors, passed over in so many of eight turns.
    pub(crate) fn set_interconnect(&mut self, interconnect: SimInterconnect, laziness: u64) {
        self.interconnect = Some(interconnect);
        self.laziness.push(laziness);
    }

    /// A reactor, while it has not left.
    pub(crate) fn reactor(&self, reactor: usize) -> Option<&SimReactor> {
        self.reactors[reactor].as_ref()
    }

    /// A reactor, while it has not left.
    pub(crate) fn reactor_mut(&mut self, reactor: usize) -> Option<&mut SimReactor> {
        self.reactors[reactor].as_mut()
    }

    /// Draws how much slower than the others each reactor is, if there are others.
    pub fn draw_laziness(&mut self, prng: &mut Prng) {
        if self.laziness.len() > 1 {
            self.laziness.iter_mut().for_each(|laziness| *laziness = *prng.pick(&[0, 0, 4, 7]));
        }
    }

    /// Gives every reactor every turn from now on.
    pub fn hurry(&mut self) {
        self.laziness.fill(0);
    }

    /// Gives each reactor a turn, in an order drawn from `prng`.
    pub fn poll(&mut self, prng: &mut Prng) {
        self.poll_some(prng, |_| true);
    }

    /// Gives each reactor, and the interconnect after them, of which `is_due` says so a turn, in an order drawn from `prng`.
    pub(crate) fn poll_some(&mut self, prng: &mut Prng, is_due: impl Fn(usize) -> bool) {
        let count = self.reactors.len() + usize::from(self.interconnect.is_some());
        let first = if count > 1 { index(prng.below(count as u64)) } else { 0 };
        for position in 0..count {
            let chosen = (first + position) % count;
            if !is_due(chosen) || self.laziness[chosen] > 0 && prng.chance(self.laziness[chosen], 8) {
                continue;
            }
            if chosen == self.reactors.len() {
                if self.interconnect.as_mut().is_some_and(|interconnect| !interconnect.poll_once()) {
                    self.interconnect = None;
                }
            } else if let Some(reactor) = &mut self.reactors[chosen]
                && !reactor.poll_once()
            {
                self.last_words = self.last_words.take().or_else(|| reactor.failure());
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
        self.reactors.iter().all(|reactor| home(reactor).is_some_and(Engine::is_serving))
    }

    /// Why the pool stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.reactors[0].as_ref().map_or_else(|| self.last_words.clone(), Reactor::failure)
    }

    /// Volumes that are offline, each with the position of the record that could not be performed.
    #[must_use]
    pub fn offline(&self) -> Vec<(twinlog::base::ObjectId, u64)> {
        let coordinator = home(&self.reactors[0]).and_then(Engine::coordinator);
        let volumes = coordinator.into_iter().flat_map(|coordinator| coordinator.volumes().values());
        volumes.filter_map(|volume| Some((volume.id, volume.offline?.lsn.0))).collect()
    }

    /// Phase of the consistency point in progress.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        home(&self.reactors[0])
            .and_then(Engine::coordinator)
            .map_or("none", twinlog::cp::coordinator::Coordinator::phase)
    }

    /// Whether there is a volume called `name` for the clients of every reactor.
    #[must_use]
    pub fn knows_volume(&self, name: &str) -> bool {
        self.reactors.iter().flatten().all(|reactor| reactor.pools().volume(name).is_some())
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
