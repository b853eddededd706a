//! The composition: the only folder that names concrete drivers. Everything else is generic over them.
//!
//! | file | what it is |
//! |---|---|
//! | `mod.rs` | starting a node: its reactors' threads, and what lies on each |
//! | [`storage`] | files and sockets, open and locked |
//! | [`devices`], [`nvme`] | a pool's devices by name; controllers that the node drives |
//! | [`platform`] | what a reactor runs on |
//! | [`opener`] | opening a pool's devices, for every reactor |
//! | [`pair`] | a partner: the way to it, and what both share |
//! | [`interconnect`] | that way on a thread of its own |
//! | [`registers`], [`partner_beats`] | a node's way to the registers of its pair, wherever they are |
//! | [`mailbox_file`], [`mailbox_worker`] | in a file that both nodes reach |
//! | [`witness_client`], [`witness_server`] | at a process on a third machine, and that process |
//! | [`fence`], [`process`], [`command`] | how its partner is stopped |
//! | [`reservation`] | and how its namespaces are kept from it |
//! | [`offline`] | files of a node that does not run: made, checked, tried |
//!
//! Each reactor's thread, and that of an interconnect beside them, makes a ring of its own and its queues to the node's open files on it. Starting takes two steps, because a
//! reactor's mailbox needs the waker that only its own thread can make:
//!
//! ```text
//! main thread:     spawn all -------- collect wakers -- make mailboxes -- send them -------- collect results -- serve
//! reactor thread:        make ring -- send waker --------------------- receive them -- open -- send result -- run
//! ```

#![expect(
    clippy::disallowed_types,
    reason = "taken only when a device joins the pool, never while requests are served"
)]

mod devices;
mod fence;
mod interconnect;
mod mailbox_file;
mod mailbox_worker;
mod nvme;
mod offline;
mod opener;
mod pair;
mod partner_beats;
mod platform;
mod powers;
mod registers;
mod reservation;
mod storage;
mod witness_client;
mod witness_server;

pub(crate) use devices::Devices;
pub(crate) use fence::try_fence;
pub(crate) use interconnect::{has_thread as has_interconnect_thread, words as interconnect_words};
pub(crate) use offline::{
    DaxNode, NewPool, check, create_log_file, create_pool, create_portion, persistence_domain, random_id, try_direct,
    try_io_uring, try_pmem, wipe,
};

pub(crate) use pair::key as read_key;

pub(crate) use witness_server::serve as serve_witness;

use super::{
    foreign::{self, Foreign},
    output::{Exit, Failure},
    superblocks,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use devices::Opened;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::prctl::set_timerslack,
    unistd::Pid,
};
use opener::{Deliveries, Opener, ReactorOpener};
use pair::PairStart;
use platform::{Disk, NodePlatform, Queues};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{Builder, JoinHandle},
};
use storage::{Portion, listeners};
use twinlog::{
    base::{
        Epoch, PortionId,
        limits::{BLOCK_BYTES, CONNECTIONS_MAX},
    },
    changelog::PortionRole,
    control::{
        admin::{CALLS_MAX, NodeHandle},
        config::{LogConfig, NodeConfig, PoolConfig},
        hosts::{self, HostBook},
    },
    cp::message::Grant,
    node::{
        admin::AdminCall,
        engine::EngineLimits,
        forward::ForwardPort,
        pools::{PoolOpener, PoolSlot, Pools},
        sweep::{ReactorSweeps, Sweeps},
    },
    reactor::{Idle, Mailbox, Waker, mailbox},
    serve::{
        NvmeTcp, Reactor, ReactorParts, Server,
        nvme_tcp::{
            Target, TargetParts,
            auth::{Calculator, Means},
        },
        reactor::{NodeEnd, OpenDevice},
    },
};
use twinlog_device::BlockPool;
use twinlog_uring::{Access, Listener, Ring, RingOptions, UringNetwork};

fn no_ring(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Error, error, "twinlog doctor")
}

fn no_memory(error: std::io::Error) -> Failure {
    Failure::new(Exit::Error, format!("no memory for blocks: {error}"), "a smaller `limit` in [memory] of node.toml")
}

/// The driver's waker as the engine's trait.
struct RingWaker(twinlog_uring::Waker);

impl Waker for RingWaker {
    fn wake(&self) {
        self.0.wake();
    }
}

/// What the main thread gives to a reactor's thread once all wakers are known.
struct Connections {
    deliveries: Deliveries,
    /// Of all of them, by index; after them that of an interconnect beside them.
    wakers: Vec<Arc<dyn Waker>>,
    sweeps: Arc<Sweeps>,
    /// Of a pair.
    port: Option<ForwardPort>,
    first: Option<First>,
}

/// What only reactor 0 has.
struct First {
    calls: Mailbox<AdminCall>,
    /// Of a pair: what was opened for it, and where pools are asked for.
    pair: Option<(PairStart, Sender<(PoolSlot, Grant)>)>,
}

/// A thread with a ring, and the main thread's ways to it.
struct Starting<C> {
    thread: JoinHandle<Option<String>>,
    waker: Receiver<Result<Arc<dyn Waker>, Failure>>,
    connections: Sender<C>,
    result: Receiver<Result<(), Failure>>,
}

/// A node whose reactors run.
pub(crate) struct RunningNode {
    pub(crate) handle: NodeHandle,
    threads: Vec<JoinHandle<Option<String>>>,
}

impl RunningNode {
    /// Waits until all threads have ended.
    pub(crate) fn wait(self) -> Result<(), Failure> {
        let mut failure = None;
        for thread in self.threads {
            match thread.join() {
                Ok(reason) => failure = failure.or(reason),
                // A panic has ended the process already, see `serve`.
                Err(_) => failure = Some("a thread panicked".to_owned()),
            }
        }
        match failure {
            Some(reason) => Err(Failure::new(
                Exit::Error,
                format!("the pool had stopped: {reason}"),
                "twinlog pool check --config FILE",
            )),
            None => Ok(()),
        }
    }
}

/// The memory of a node.
fn memory(config: &NodeConfig) -> Result<BlockPool, Failure> {
    let blocks = u32::try_from(config.memory.limit.bytes() / BLOCK_BYTES).expect("bounded by the configuration");
    let blocks = BlockPool::new(blocks).map_err(no_memory)?;
    blocks.prefer_huge_pages();
    Ok(blocks)
}

/// Opens everything that the configuration names and starts the reactors: they recover the pool, then serve; a pair's when they own it.
pub(crate) fn start(config: &NodeConfig) -> Result<RunningNode, Failure> {
    let partner = config.partner_pool.as_ref().zip(config.mirror.as_ref());
    let blocks = memory(config)?;
    let identity = reservation::Identity::of(config)?;
    let devices = Devices::of_node(&blocks, config, identity.map(|identity| identity.host));
    let listeners = listeners(config)?;
    let home = Held::open(&devices, &config.pool, &config.log, PortionRole::Own)?;
    let partner = partner.map(|(pool, log)| Held::open(&devices, pool, log, PortionRole::Mirror)).transpose()?;
    let (calculator, powers) = powers::channel();
    let hosts = nvme_tcp(config, (&home, partner.as_ref()), calculator)?;
    let (target, book) = hosts.unzip();
    let nvme_tcp = target.map(|target| NvmeTcp { target, first_listener: listeners.len() - 1 });
    let shared = Arc::new(Shared {
        config: config.clone(),
        blocks,
        nvme_tcp,
        listeners,
        home,
        partner,
        devices,
        end: Arc::default(),
        joining: Joining::default(),
        identity,
        holds: Default::default(),
    });
    reservation::verify(&shared)?;
    let reactors =
        (0..shared.reactor_count()).map(|index| spawn_reactor(&shared, index)).collect::<Result<Vec<_>, _>>()?;
    let wakers = reactors.iter().map(|reactor| hear(&reactor.waker)).collect::<Result<Vec<_>, _>>()?;
    if shared.nvme_tcp.is_some() {
        powers::start(powers, wakers.clone()).map_err(|error| Failure::system("start", "a thread", &error))?;
    }
    let (sweeps, (opener, deliveries)) = (Arc::new(Sweeps::new(&wakers)), Opener::new(&shared, &wakers));
    let (calls, called) = mailbox(CALLS_MAX, Arc::clone(&wakers[0]));
    let (mut ports, mut beside, mut wakers) = (Vec::new(), None, wakers);
    let mut first = match &config.pair {
        None => {
            opener.open(PoolSlot::Home, Grant::SINGLE)?;
            Some(First { calls: called, pair: None })
        }
        Some(pair) => {
            let hub;
            (hub, ports) = pair::ports(&shared, &wakers);
            let mut start = pair::start(config, pair, (hub, Arc::clone(&sweeps)), Arc::clone(&wakers[0]))?;
            if interconnect::has_thread(config, pair) {
                let waker;
                (beside, waker) = interconnect::start(&shared, pair, &mut start, &wakers[0])
                    .map(|(thread, waker)| (Some(thread), waker))?;
                // It is told of the end, as the reactors are.
                wakers.push(waker);
            }
            let requests = opener.start().map_err(|error| Failure::system("start", "a thread", &error))?;
            Some(First { calls: called, pair: Some((start, requests)) })
        }
    };
    let mut ports = ports.into_iter();
    for (reactor, deliveries) in reactors.iter().zip(deliveries) {
        let (port, first) = (ports.next(), first.take());
        let connections = Connections { deliveries, wakers: wakers.clone(), sweeps: Arc::clone(&sweeps), port, first };
        // A thread that is gone has said why: heard below.
        let _thread_gone = reactor.connections.send(connections);
    }
    for result in reactors.iter().map(|reactor| &reactor.result).chain(beside.as_ref().map(|beside| &beside.result)) {
        hear(result)?;
    }
    let threads = reactors.into_iter().map(|reactor| reactor.thread);
    Ok(RunningNode {
        handle: NodeHandle::new(calls).with_hosts(book.map(Arc::new)),
        threads: threads.chain(beside.map(|beside| beside.thread)).collect(),
    })
}

/// What hosts find at this node, and the list of them.
fn nvme_tcp(
    config: &NodeConfig,
    (home, partner): (&Held, Option<&Held>),
    calculator: Box<dyn Calculator>,
) -> Result<Option<(Arc<Target>, HostBook)>, Failure> {
    let Some(front) = &config.nvme_tcp else { return Ok(None) };
    let hosts = front.hosts_file.as_deref().map(hosts::read).transpose();
    let hosts = hosts.map_err(|error| Failure::new(Exit::Usage, error, "twinlog host --help"))?.flatten();
    let [low, high] = [random_id()?, random_id()?].map(u128::to_le_bytes);
    let means = Means::new([low, high].concat().try_into().expect("twice sixteen"), calculator);
    let target = Target::new(TargetParts {
        home: home.portion.pool(),
        partner: partner.map(|held| held.portion.pool()),
        address: front.listen,
        partner_address: front.partner,
        hosts: front.hosts.clone(),
    });
    let target = Arc::new(target.with_means(means));
    if let Some(hosts) = &hosts {
        target.replace_hosts(hosts.clone());
    }
    tracing::info!(subsystem = target.subsystem(), address = %front.listen, "hosts are awaited");
    let book =
        HostBook::new(front.hosts_file.clone(), hosts.unwrap_or_default(), front.hosts.clone(), Arc::clone(&target));
    Ok(Some((target, book)))
}

fn hear<T>(from: &Receiver<Result<T, Failure>>) -> Result<T, Failure> {
    from.recv().unwrap_or_else(|_| Err(no_ring("a thread ended before it was ready")))
}

/// A pool that this node may have open, and its portion of that pool's log.
struct Held {
    name: String,
    portion: Portion,
    /// `None`: it cannot be used as it is.
    portion_id: Option<PortionId>,
    /// Of the newest superblock.
    epoch: Epoch,
}

impl Held {
    fn open(devices: &Devices, pool: &PoolConfig, log: &LogConfig, role: PortionRole) -> Result<Self, Failure> {
        let superblock = superblocks::assemble(devices, &pool.devices)?.superblock;
        let portion = Portion::open(log, superblock.pool, role, superblock.lane_count())?;
        if portion.is_new() {
            offline::format_portion(&portion, PortionId(random_id()?))?;
        }
        let portion_id = offline::portion_id(&portion)?;
        Ok(Self { name: pool.name.clone(), portion, portion_id, epoch: superblock.epoch })
    }
}

/// What all reactors' threads share.
struct Shared {
    config: NodeConfig,
    blocks: BlockPool,
    devices: Devices,
    listeners: Vec<Listener>,
    nvme_tcp: Option<NvmeTcp>,
    home: Held,
    partner: Option<Held>,
    end: Arc<NodeEnd>,
    joining: Joining,
    /// Where reservations are among the fences.
    identity: Option<reservation::Identity>,
    /// By slot.
    holds: [Arc<reservation::Hold>; 2],
}

impl Shared {
    /// A slot's pool.
    fn held(&self, slot: PoolSlot) -> &Held {
        match slot {
            PoolSlot::Home => &self.home,
            PoolSlot::Partner => self.partner.as_ref().expect("a node of a pair"),
        }
    }

    /// The memory of each pool, when all that this node may have open are.
    fn limits(&self) -> EngineLimits {
        let lanes = |held: &Held| u64::from(held.portion.lane_count());
        let all = lanes(&self.home) + self.partner.as_ref().map_or(0, lanes);
        EngineLimits::for_memory(self.blocks.block_count() as u64, all)
    }

    /// The names of a slot's devices, in any order.
    fn names(&self, slot: PoolSlot) -> &[PathBuf] {
        match slot {
            PoolSlot::Home => &self.config.pool.devices,
            PoolSlot::Partner => self.config.partner_pool.as_ref().map_or(&[], |pool| &pool.devices),
        }
    }

    fn reactor_count(&self) -> u16 {
        u16::try_from(self.config.reactors.count).expect("bounded by the configuration")
    }
}

/// Devices on their way into a pool: opened and locked by a thread that may wait for them, shared by the reactors.
#[derive(Default)]
struct Joining(Mutex<BTreeMap<String, Join>>);

/// One of them.
#[derive(Default)]
struct Join {
    /// None while it is being opened.
    opened: Option<Result<Opened, String>>,
    /// Reactors that have it already; the last one takes it out.
    taken: usize,
}

impl Joining {
    /// The open device, for one of the reactors, once it is open: the thread that opens it wakes all of them then.
    fn device(name: &str, shared: &Arc<Shared>, reactors: &[Arc<dyn Waker>]) -> Option<Result<Opened, String>> {
        let mut all = shared.joining.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(join) = all.get_mut(name) else {
            all.insert(name.to_owned(), Join::default());
            let (joining, shared, reactors) = (name.to_owned(), Arc::clone(shared), reactors.to_vec());
            let started = Builder::new().name("joining".to_owned()).spawn(move || {
                let opened = join(&joining, &shared);
                let mut all = shared.joining.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.entry(joining).or_default().opened = Some(opened);
                drop(all);
                reactors.iter().for_each(|reactor| reactor.wake());
            });
            let error = started.err()?;
            all.remove(name);
            return Some(Err(format!("no thread to open it: {error}")));
        };
        let opened = join.opened.clone()?;
        join.taken += 1;
        if join.taken == shared.config.reactors.count {
            all.remove(name);
        }
        Some(opened)
    }
}

/// Opens and locks a device that joins a pool.
fn join(name: &str, shared: &Shared) -> Result<Opened, String> {
    let path = Path::new(name);
    let device = shared.devices.open(path, Access::Exclusive).map_err(|failure| failure.message)?;
    reservation::join(shared, &path.to_owned()).map_err(|failure| failure.message)?;
    refuse_foreign(&shared.devices, path, device.size_bytes())?;
    Ok(device)
}

/// The engine looks where its superblocks go; labels of others lie beside those places. Not everywhere: a person waits for this.
fn refuse_foreign(devices: &Devices, path: &Path, bytes: u64) -> Result<(), String> {
    let (medium, _) = devices.read(path).map_err(|failure| failure.message)?;
    let found = foreign::find(&medium, path, bytes, false);
    match found.map_err(|error| error.to_string())? {
        None => Ok(()),
        Some(Foreign { what, byte, .. }) => Err(format!("it holds {what} (byte {byte})")),
    }
}

fn open_device(shared: &Arc<Shared>, queues: Queues, reactors: Vec<Arc<dyn Waker>>) -> OpenDevice<Disk> {
    let shared = Arc::clone(shared);
    Box::new(move |name| {
        let device = Joining::device(name, &shared, &reactors)?;
        let hold = &shared.holds[PoolSlot::Home.index()];
        Some(device.and_then(|device| queues.open(&device, hold).map_err(|failure| failure.message)))
    })
}

fn spawn_reactor(shared: &Arc<Shared>, index: u16) -> Result<Starting<Connections>, Failure> {
    let cpu = shared.config.reactors.cpus.get(usize::from(index)).copied();
    spawn(shared, (format!("reactor {index}"), cpu), move |shared, ring, connections| {
        let reactor = open(shared, index, ring, connections)?;
        Ok(move || reactor.run())
    })
}

/// Starts a thread called so, on that CPU: it makes a ring, opens with it what it needs, and runs that. Its end may say why the pool stopped.
fn spawn<C: Send + 'static, R: FnOnce() -> Option<String>>(
    shared: &Arc<Shared>,
    (name, cpu): (String, Option<usize>),
    open: impl FnOnce(&Arc<Shared>, &Ring, C) -> Result<R, Failure> + Send + 'static,
) -> Result<Starting<C>, Failure> {
    let (waker_sender, waker) = bounded(1);
    let (connections, connections_receiver) = bounded::<C>(1);
    let (result_sender, result) = bounded(1);
    let shared = Arc::clone(shared);
    let body = move || {
        let ring = match make_ring(&shared, cpu) {
            Ok(ring) => ring,
            Err(failure) => {
                // The main thread has given up already if it does not listen.
                let _unheard = waker_sender.send(Err(failure));
                return None;
            }
        };
        let waker: Arc<dyn Waker> = Arc::new(RingWaker(ring.waker()));
        let _unheard = waker_sender.send(Ok(waker));
        // Closed when another thread failed: this one ends too.
        let connections = connections_receiver.recv().ok()?;
        let (run, said) = match open(&shared, &ring, connections) {
            Ok(run) => (Some(run), Ok(())),
            Err(failure) => (None, Err(failure)),
        };
        let _unheard = result_sender.send(said);
        run?()
    };
    let thread = Builder::new().name(name.clone()).spawn(body);
    let thread = thread.map_err(|error| Failure::system("start", name, &error))?;
    Ok(Starting { thread, waker, connections, result })
}

fn make_ring(shared: &Shared, cpu: Option<usize>) -> Result<Ring, Failure> {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        pinned.map_err(|error| Failure::system("pin a thread to CPU", cpu, &error.into()))?;
    }
    // The kernel may round a sleep up by this much; the default of 50 us is as long as a whole durable write.
    set_timerslack(1).map_err(|error| Failure::system("set the timer slack of", "a thread", &error.into()))?;
    let options = RingOptions { register_buffers: shared.config.memory.pinned, ..RingOptions::default() };
    Ring::new(options, &shared.blocks).map_err(no_ring)
}

/// Opens one reactor's part of the node, on the reactor's own thread.
fn open(
    shared: &Arc<Shared>,
    index: u16,
    ring: &Ring,
    connections: Connections,
) -> Result<Reactor<NodePlatform, Server>, Failure> {
    let config = &shared.config;
    let Connections { deliveries, mut wakers, sweeps, port, first } = connections;
    let (calls, pair) = first.map_or((None, None), |first| (Some(first.calls), first.pair));
    let (start, requests) = pair.unzip();
    let reactors = wakers.clone();
    wakers.remove(usize::from(index));
    let cpu = config.reactors.cpus.get(usize::from(index)).map(|cpu| *cpu as u64);
    let mut pools = Pools::new(shared.blocks.clone(), cpu);
    if let Some(port) = port {
        pools.set_port(port);
    }
    let platform = NodePlatform::new(ring, Arc::clone(&shared.end))?;
    let queues = platform.queues();
    let mut opener = ReactorOpener::new(shared, index, (ring, queues.clone()), deliveries, requests);
    while let Some((slot, opened)) = opener.poll() {
        let parts = opened.map_err(|failure| {
            let hint = "twinlog inspect; the devices of node.toml must be all of the pool's";
            Failure::new(Exit::Error, failure.reason(), hint)
        })?;
        pools.open(slot, Ok(parts)).expect("its parts are there");
    }
    let connections_max = CONNECTIONS_MAX / config.reactors.count;
    let net = UringNetwork::new(ring, shared.listeners.clone(), connections_max).map_err(no_ring)?;
    Ok(Reactor::new(ReactorParts {
        platform,
        pools,
        net,
        front: Server::new(connections_max)
            .with_nvme_tcp(shared.nvme_tcp.clone())
            .with_sweeps(ReactorSweeps::new(sweeps, usize::from(index))),
        idle: Idle::new(config.reactors.idle),
        calls,
        open_device: open_device(shared, queues, reactors),
        opener: Box::new(opener),
        pair: start.map(|start| pair::parts(shared, ring, start)).transpose()?.map(Box::new),
        end: Arc::clone(&shared.end),
        peers: wakers,
    }))
}
