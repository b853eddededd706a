//! The composition: the only file that names concrete drivers. Everything else is generic over them.
//!
//! One [`Storage`] holds the open files of a node, with their locks; each reactor's thread makes a ring of its own and its queues to
//! those files on it. Starting takes two steps, because a reactor's mailbox needs the waker that only its own thread can make:
//!
//! ```text
//! main thread:     spawn all -------- collect wakers -- make mailboxes -- send them -------- collect results -- serve
//! reactor thread:        make ring -- send waker --------------------- receive them -- open -- send result -- run
//! ```

#![expect(
    clippy::disallowed_types,
    reason = "taken only when a device joins the pool, never while requests are served"
)]

use super::{
    foreign::{self, Foreign},
    output::{Exit, Failure},
};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::prctl::set_timerslack,
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread::{Builder, JoinHandle},
    time::Duration,
};
use twinlog::{
    alloc::budget::Budget,
    base::{
        LaneIndex, PoolId, ReactorIndex,
        limits::{BLOCK_BYTES, CONNECTIONS_MAX},
    },
    changelog::lane::Format,
    control::{
        admin::{CALLS_MAX, NodeHandle},
        config::{LogBackend, LogConfig, NodeConfig},
    },
    cp::check::{Check, CheckReport},
    format::{
        lane_header::{LaneIdentity, PortionRole},
        superblock::Superblock,
    },
    node::{
        admin::AdminCall,
        engine::{Engine, EngineLimits, EngineParts, ReactorMessage},
    },
    pool::{
        io::{Io, Tag},
        superblocks::{CreatePool, first_superblock},
    },
    reactor::{Idle, Mailbox, MailboxSender, Waker, mailbox},
    serve::{NbdServer, Reactor, ReactorParts, reactor::OpenDevice},
};
use twinlog_device::{BlockPool, Platform, Wait};
use twinlog_uring::{
    Access, AnyLog, AtOnce, Cache, DiskOptions, FileDisk, FileError, FileLog, ListenAddress, ListenError, Listener,
    MemoryLog, PmemFile, PmemLog, Ring, RingOptions, StorageFile, UringNetwork, UringPlatform,
};

/// Messages that wait for one reactor. Senders keep what does not fit and try again.
const MESSAGES_MAX: usize = 4096;
/// Operations in flight per reactor and disk.
const QUEUE_DEPTH: u32 = 128;
/// Memory for making or checking a pool without serving it: 64 MiB.
const OFFLINE_BLOCKS: u32 = 16_384;
/// Who may connect to the NBD socket: the node's own user, and the group that owns the directory.
const NBD_SOCKET_MODE: u32 = 0o660;
/// Longest sleep while nothing but a completion is waited for.
const OFFLINE_WAIT: Wait = Wait::UpTo(Duration::from_secs(1));
/// How long a file or an address that is in use is tried again. After a SIGKILL the kernel takes the process's rings apart in the
/// background, and until then they hold its files, locks and sockets.
const IN_USE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two tries.
const IN_USE_POLL: Duration = Duration::from_millis(20);

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::InUse { .. } => {
                Self::new(Exit::Refused, &error, "`twinlog status`; stop the other program first")
            }
            _ => Self::new(Exit::Error, &error, "check the path in node.toml; `twinlog doctor`"),
        }
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::new(Exit::Error, &error, "stop the other program, or change the address in [nbd] of node.toml")
    }
}

fn no_ring(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Error, error, "twinlog doctor")
}

fn no_memory(error: std::io::Error) -> Failure {
    Failure::new(Exit::Error, format!("no memory for blocks: {error}"), "a smaller `limit` in [memory] of node.toml")
}

/// Does `attempt` again while it fails because something is in use, for a bounded time.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>, in_use: impl Fn(&E) -> bool) -> Result<T, E> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(error) if in_use(&error) && waited < IN_USE_WAIT_MAX => {
                pause(IN_USE_POLL);
                waited += IN_USE_POLL;
            }
            result => return result,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "before the node starts, on an ordinary thread")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn is_in_use(error: &FileError) -> bool {
    matches!(error, FileError::InUse { .. })
}

/// Makes a ring and says what it has; or why there is none.
pub(crate) fn try_io_uring() -> Result<String, String> {
    let pool = BlockPool::new(1).map_err(|error| error.to_string())?;
    let facts = Ring::new(RingOptions::default(), &pool).map_err(|error| error.to_string())?.facts();
    let word = |there: bool, word: &'static str| if there { word } else { "" };
    let words = [
        "works",
        word(facts.deferred_completions, "deferred completions"),
        word(facts.registered_files, "registered files"),
        word(facts.multishot_accept, "multishot accept"),
    ];
    Ok(words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", "))
}

/// Makes a file in `directory` and opens it with `O_DIRECT`; or says why that fails. Leaves nothing behind.
pub(crate) fn try_direct(directory: &Path) -> Result<(), String> {
    let path = directory.join(format!(".twinlog-doctor-{}", std::process::id()));
    let tried = std::fs::write(&path, [0; 4096]).map_err(|error| error.to_string()).and_then(|()| {
        let file = StorageFile::open(&path, Access::Exclusive, Cache::Bypass).map_err(|error| error.to_string())?;
        if file.is_direct() { Ok(()) } else { Err("the file system goes through the page cache".to_owned()) }
    });
    // When it cannot be removed it could not be made.
    let _never_made = std::fs::remove_file(&path);
    tried
}

/// Makes a log file of zeroes that is written through; `progress` is told the bytes done.
pub(crate) fn create_log_file(path: &Path, size_bytes: u64, progress: impl FnMut(u64)) -> Result<(), Failure> {
    Ok(twinlog_uring::create_log_file(path, size_bytes, progress)?)
}

fn open_file(path: &Path) -> Result<StorageFile, FileError> {
    patiently(|| StorageFile::open(path, Access::Exclusive, Cache::Bypass), is_in_use)
}

/// The log's storage, open and locked.
#[derive(Clone)]
enum OpenLog {
    File(StorageFile),
    Pmem(PmemFile),
    Memory,
}

impl OpenLog {
    fn open(config: &LogConfig) -> Result<Self, Failure> {
        match (config.backend, &config.path) {
            (LogBackend::File, Some(path)) => Ok(Self::File(open_file(path)?)),
            (LogBackend::Pmem, Some(path)) => Ok(Self::Pmem(patiently(|| PmemFile::open(path), is_in_use)?)),
            (LogBackend::Memory, _) => Ok(Self::Memory),
            (_, None) => Err(Failure::new(Exit::Usage, "the log has no path", "add `path` to [log] in node.toml")),
        }
    }

    /// One lane's region of it.
    fn lane(&self, ring: &Ring, bytes: u64, lane: u16) -> Result<AnyLog, FileError> {
        let offset = bytes * u64::from(lane);
        Ok(match self {
            Self::File(file) => AnyLog::File(FileLog::new(ring, file, offset, bytes)?),
            Self::Pmem(file) => AnyLog::Pmem(AtOnce::new(ring, PmemLog::new(file, offset, bytes)?)),
            Self::Memory => AnyLog::Memory(AtOnce::new(ring, MemoryLog::new(&format!("lane {lane}"), bytes))),
        })
    }
}

/// The open files and sockets of a node, shared by its reactors.
struct Storage {
    devices: Vec<StorageFile>,
    log: OpenLog,
    listeners: Vec<Listener>,
    blocks: BlockPool,
}

impl Storage {
    fn open(config: &NodeConfig, blocks: u32) -> Result<Self, Failure> {
        Ok(Self {
            devices: config.pool.devices.iter().map(|path| open_file(path)).collect::<Result<_, _>>()?,
            log: OpenLog::open(&config.log)?,
            listeners: Vec::new(),
            blocks: BlockPool::new(blocks).map_err(no_memory)?,
        })
    }

    fn listen(&mut self, config: &NodeConfig) -> Result<(), ListenError> {
        let unix = config.nbd.unix.iter().map(|path| ListenAddress::Unix { path: path.clone(), mode: NBD_SOCKET_MODE });
        let tcp = config.nbd.tcp.iter().copied().map(ListenAddress::Tcp);
        self.listeners = unix.chain(tcp).map(|address| listen(&address)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn disks(&self, ring: &Ring) -> Result<Vec<FileDisk>, FileError> {
        self.devices.iter().map(|file| FileDisk::new(ring, file, QUEUE_DEPTH)).collect()
    }
}

fn listen(address: &ListenAddress) -> Result<Listener, ListenError> {
    patiently(|| Listener::bind(address), |error| matches!(error, ListenError::InUse(_)))
}

/// What a new pool is called and identified by.
pub(crate) struct NewPool {
    pub(crate) id: PoolId,
    /// One per device.
    pub(crate) device_ids: Vec<u128>,
    pub(crate) lane_count: u16,
    /// Nanoseconds since the Unix epoch.
    pub(crate) time_ns: u64,
}

/// Writes a lane's header, durably.
fn format_lane(log: AnyLog, identity: &LaneIdentity, platform: &mut UringPlatform) -> Result<AnyLog, Failure> {
    let mut format = Format::new(log, identity);
    while !format
        .poll()
        .map_err(|error| Failure::new(Exit::Error, format!("cannot format the log: {error}"), "twinlog doctor"))?
    {
        platform.turn(OFFLINE_WAIT);
    }
    Ok(format.into_log())
}

/// Formats the log's lanes, then the devices: the pool exists when its first superblock is durable.
pub(crate) fn create_pool(config: &NodeConfig, new: &NewPool, overwrite: bool) -> Result<(), Failure> {
    let storage = Storage::open(config, OFFLINE_BLOCKS)?;
    let ring = Ring::new(RingOptions::default(), &storage.blocks).map_err(no_ring)?;
    let mut platform = UringPlatform::new(ring.clone());
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Error, format!("cannot make pool {}: {error}", config.pool.name), "twinlog doctor")
    };
    for lane in 0..new.lane_count {
        let log = storage.log.lane(&ring, config.log.lane_bytes(new.lane_count), lane)?;
        let identity =
            LaneIdentity { pool: new.id, role: PortionRole::Own, lane: LaneIndex(lane), lane_count: new.lane_count };
        format_lane(log, &identity, &mut platform)?;
    }
    let sizes = storage.devices.iter().map(|file| file.size_bytes() / BLOCK_BYTES);
    let devices: Vec<(u128, u64)> = new.device_ids.iter().copied().zip(sizes).collect();
    let superblock = first_superblock(new.id, &config.pool.name, &devices, new.lane_count, new.time_ns);
    let mut io = Io::new(storage.disks(&ring)?, storage.blocks.clone(), 0);
    let mut create = CreatePool::new(&mut io, 0, superblock, overwrite);
    loop {
        io.poll();
        while let Some(event) = io.next_event() {
            if create.event(&mut io, event).map_err(|error| failed(&error))? {
                return Ok(());
            }
        }
        // Hands over what the events have led to.
        io.poll();
        platform.turn(OFFLINE_WAIT);
    }
}

/// Checks the consistency point of `superblock` on the devices of a stopped node. Reads only; `progress` is told blocks done and in all.
pub(crate) fn check(
    config: &NodeConfig,
    superblock: Superblock,
    mut progress: impl FnMut(u64, u64),
) -> Result<CheckReport, Failure> {
    let blocks = BlockPool::new(OFFLINE_BLOCKS).map_err(no_memory)?;
    let ring = Ring::new(RingOptions::default(), &blocks).map_err(no_ring)?;
    let mut platform = UringPlatform::new(ring.clone());
    let options = DiskOptions { access: Access::ReadOnly, cache: Cache::Bypass, queue_depth: QUEUE_DEPTH };
    let open = |path| patiently(|| FileDisk::open(&ring, path, options.clone()), is_in_use);
    let disks = config.pool.devices.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut io = Io::new(disks, blocks, usize::try_from(OFFLINE_BLOCKS / 4).expect("small"));
    let mut check = Check::new(superblock, Tag { owner: 0, id: 0 });
    loop {
        io.poll();
        while let Some(event) = io.next_event() {
            check.event(event);
        }
        if let Some(report) = check.step(&mut io) {
            return Ok(report);
        }
        let (done, total) = check.progress();
        progress(done, total);
        platform.turn(Wait::No);
    }
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
    mailbox: Mailbox<ReactorMessage>,
    peers: Vec<MailboxSender<ReactorMessage>>,
    wakers: Vec<Arc<dyn Waker>>,
    calls: Option<Mailbox<AdminCall>>,
}

/// A reactor's thread and the main thread's ways to it.
struct Starting {
    thread: JoinHandle<Option<String>>,
    waker: Receiver<Result<Arc<dyn Waker>, Failure>>,
    connections: Sender<Connections>,
    result: Receiver<Result<(), Failure>>,
}

/// A node whose reactors run.
pub(crate) struct RunningNode {
    pub(crate) handle: NodeHandle,
    threads: Vec<JoinHandle<Option<String>>>,
}

impl RunningNode {
    /// Waits until all reactors have ended.
    pub(crate) fn wait(self) -> Result<(), Failure> {
        let mut failure = None;
        for thread in self.threads {
            match thread.join() {
                Ok(reason) => failure = failure.or(reason),
                // A panic has ended the process already, see `serve`.
                Err(_) => failure = Some("a reactor's thread panicked".to_owned()),
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

/// Opens everything that the configuration names and starts the reactors: they recover the pool, then serve. The devices are those of the
/// pool in their order; then come its id and the number of its lanes.
pub(crate) fn start((config, pool, lane_count): &(NodeConfig, PoolId, u16)) -> Result<RunningNode, Failure> {
    let blocks = u32::try_from(config.memory.limit.bytes() / BLOCK_BYTES).expect("bounded by the configuration");
    let mut storage = Storage::open(config, blocks)?;
    storage.listen(config)?;
    let storage = Arc::new(storage);
    let shared = Arc::new(Shared {
        config: config.clone(),
        storage,
        budget: Budget::default(),
        ended: Arc::default(),
        lane_count: *lane_count,
        pool: *pool,
        joining: Joining::default(),
    });
    let count = u16::try_from(config.reactors.count).expect("bounded by the configuration");
    let reactors = (0..count).map(|index| spawn(&shared, index)).collect::<Result<Vec<_>, _>>()?;
    let wakers = reactors.iter().map(|reactor| hear(&reactor.waker)).collect::<Result<Vec<_>, _>>()?;
    let (senders, mailboxes): (Vec<_>, Vec<_>) =
        wakers.iter().map(|waker| mailbox(MESSAGES_MAX, Arc::clone(waker))).unzip();
    let (calls, called) = mailbox(CALLS_MAX, Arc::clone(&wakers[0]));
    let mut called = Some(called);
    for (reactor, mailbox) in reactors.iter().zip(mailboxes) {
        let connections = Connections { mailbox, peers: senders.clone(), wakers: wakers.clone(), calls: called.take() };
        // A thread that is gone has said why: heard below.
        let _thread_gone = reactor.connections.send(connections);
    }
    for reactor in &reactors {
        hear(&reactor.result)?;
    }
    Ok(RunningNode {
        handle: NodeHandle::new(calls),
        threads: reactors.into_iter().map(|reactor| reactor.thread).collect(),
    })
}

fn hear<T>(from: &Receiver<Result<T, Failure>>) -> Result<T, Failure> {
    from.recv().unwrap_or_else(|_| Err(no_ring("a reactor's thread ended before it was ready")))
}

/// What all reactors' threads share.
struct Shared {
    config: NodeConfig,
    storage: Arc<Storage>,
    budget: Budget,
    ended: Arc<AtomicBool>,
    lane_count: u16,
    pool: PoolId,
    joining: Joining,
}

/// Devices on their way into the pool: opened and locked by the first reactor that is told, shared by the others.
#[derive(Default)]
struct Joining(Mutex<BTreeMap<String, (StorageFile, usize)>>);

impl Joining {
    /// The open file, for one of `reactor_count` reactors; the last one takes it out.
    fn file(&self, name: &str, reactor_count: usize) -> Result<StorageFile, String> {
        let mut files = self.0.lock().map_err(|_| "another reactor has panicked".to_owned())?;
        let (file, waiting) = match files.remove(name) {
            Some(joining) => joining,
            None => {
                let path = Path::new(name);
                let file = StorageFile::open(path, Access::Exclusive, Cache::Bypass);
                let file = file.map_err(|error| error.to_string())?;
                refuse_foreign(path, file.size_bytes())?;
                (file, reactor_count)
            }
        };
        if waiting > 1 {
            files.insert(name.to_owned(), (file.clone(), waiting - 1));
        }
        Ok(file)
    }
}

/// The engine looks where its superblocks go; labels of others lie beside those places. Not everywhere: a reactor waits for this.
fn refuse_foreign(path: &Path, bytes: u64) -> Result<(), String> {
    let found = File::open(path).and_then(|file| foreign::find(&file, path, bytes, false));
    match found.map_err(|error| error.to_string())? {
        None => Ok(()),
        Some(Foreign { what, byte }) => Err(format!("it holds {what} (byte {byte})")),
    }
}

/// Writes zeroes over the first and the last `bytes` of a file or device that nobody else uses.
pub(crate) fn wipe(path: &Path, bytes: u64) -> Result<(), Failure> {
    let open = open_file(path)?;
    let zeroes = vec![0; usize::try_from(bytes.min(open.size_bytes())).expect("small")];
    let wiped = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.write_all_at(&zeroes, 0)?;
        file.write_all_at(&zeroes, open.size_bytes() - zeroes.len() as u64)?;
        file.sync_all()
    });
    wiped.map_err(|error| Failure::system("wipe", path.display(), &error))
}

fn open_device(shared: &Arc<Shared>, ring: &Ring) -> OpenDevice<FileDisk> {
    let (shared, ring) = (Arc::clone(shared), ring.clone());
    Box::new(move |name| {
        let file = shared.joining.file(name, shared.config.reactors.count)?;
        FileDisk::new(&ring, &file, QUEUE_DEPTH).map_err(|error| error.to_string())
    })
}

fn spawn(shared: &Arc<Shared>, index: u16) -> Result<Starting, Failure> {
    let (waker_sender, waker) = bounded(1);
    let (connections, connections_receiver) = bounded::<Connections>(1);
    let (result_sender, result) = bounded(1);
    let shared = Arc::clone(shared);
    let body = move || {
        let ring = match make_ring(&shared, index) {
            Ok(ring) => ring,
            Err(failure) => {
                // The main thread has given up already if it does not listen.
                let _unheard = waker_sender.send(Err(failure));
                return None;
            }
        };
        let waker: Arc<dyn Waker> = Arc::new(RingWaker(ring.waker()));
        let _unheard = waker_sender.send(Ok(waker));
        // Closed when another reactor failed: this one ends too.
        let connections = connections_receiver.recv().ok()?;
        let (reactor, said) = match open(&shared, index, &ring, connections) {
            Ok(reactor) => (Some(reactor), Ok(())),
            Err(failure) => (None, Err(failure)),
        };
        let _unheard = result_sender.send(said);
        reactor?.run()
    };
    let thread = Builder::new().name(format!("reactor {index}")).spawn(body);
    let thread = thread.map_err(|error| Failure::system("start", format!("reactor {index}"), &error))?;
    Ok(Starting { thread, waker, connections, result })
}

fn make_ring(shared: &Shared, index: u16) -> Result<Ring, Failure> {
    if let Some(&cpu) = shared.config.reactors.cpus.get(usize::from(index)) {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        pinned.map_err(|error| Failure::system("pin a reactor to CPU", cpu, &error.into()))?;
    }
    // The kernel may round a sleep up by this much; the default of 50 us is as long as a whole durable write.
    set_timerslack(1).map_err(|error| Failure::system("set the timer slack of", "a reactor", &error.into()))?;
    let options = RingOptions { register_buffers: shared.config.memory.pinned, ..RingOptions::default() };
    Ring::new(options, &shared.storage.blocks).map_err(no_ring)
}

/// Opens one reactor's part of the node, on the reactor's own thread.
fn open(
    shared: &Arc<Shared>,
    index: u16,
    ring: &Ring,
    connections: Connections,
) -> Result<Reactor<UringPlatform, NbdServer>, Failure> {
    let Shared { config, storage, budget, ended, lane_count, pool, .. } = &**shared;
    let reactor_count = u16::try_from(config.reactors.count).expect("bounded by the configuration");
    let own_lanes = (index..*lane_count).step_by(usize::from(reactor_count));
    let lane_bytes = config.log.lane_bytes(*lane_count);
    let mut platform = UringPlatform::new(ring.clone());
    let mut lane = |lane| {
        let log = storage.log.lane(ring, lane_bytes, lane)?;
        // Memory begins empty with every process; what it held is lost, which its durability class says.
        let is_new = matches!(log, AnyLog::Memory(_));
        let identity =
            LaneIdentity { pool: *pool, role: PortionRole::Own, lane: LaneIndex(lane), lane_count: *lane_count };
        let log = if is_new { format_lane(log, &identity, &mut platform)? } else { log };
        Ok((LaneIndex(lane), log))
    };
    let lanes = own_lanes.map(&mut lane).collect::<Result<Vec<_>, Failure>>()?;
    let Connections { mailbox, peers, mut wakers, calls } = connections;
    wakers.remove(usize::from(index));
    let engine = Engine::open(EngineParts {
        index: ReactorIndex(index),
        reactor_count,
        devices: storage.disks(ring)?,
        lanes,
        blocks: storage.blocks.clone(),
        budget: budget.clone(),
        limits: EngineLimits::for_memory(storage.blocks.block_count() as u64, u64::from(*lane_count)),
        mailbox,
        peers,
    });
    let mut engine = engine.map_err(|error| {
        Failure::new(
            Exit::Error,
            &error,
            "twinlog inspect; the devices of node.toml must be all of the pool's, in their order",
        )
    })?;
    engine.set_cpu(config.reactors.cpus.get(usize::from(index)).map(|cpu| *cpu as u64));
    let connections_max = CONNECTIONS_MAX / config.reactors.count;
    let net = UringNetwork::new(ring, storage.listeners.clone(), connections_max).map_err(no_ring)?;
    Ok(Reactor::new(ReactorParts {
        platform,
        engine,
        net,
        front: NbdServer::new(connections_max),
        idle: Idle::new(config.reactors.idle),
        calls,
        open_device: open_device(shared, ring),
        ended: Arc::clone(ended),
        peers: wakers,
    }))
}
