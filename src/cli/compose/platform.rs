//! What one reactor of a node runs on: an io_uring, and queues to NVMe namespaces beside it.
//!
//! # Invariants
//!
//! 1. While operations are at namespaces the reactor sleeps only if each of their queues says that the controller will signal its next answer:
//!    it listens first, looks once more then, and sleeps until it is signalled ([`twinlog_nvme::Watch`]). Otherwise answers are seen by looking.
//! 2. A namespace hears of nothing more once this node has stood still over the end of its lease: its doorbells are no part of the turn of the machine, before
//!    which a reactor looks at that.
//! 3. Where it has to look and a thread of the kernel has something to finish meanwhile (the flush of a log) it naps, so that this thread gets a processor.

use super::{devices::Opened, no_ring, nvme::NvmeQueue, reservation::Hold, storage::QUEUE_DEPTH};
use crate::cli::output::Failure;
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::BorrowedFd,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use twinlog::serve::reactor::NodeEnd;
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceErrorKind, DeviceHealth, DeviceInfo, Nanos,
    Persistence, Platform, SharedBlock, Token, Wait,
};
use twinlog_nvme::{Clock, Watch};
use twinlog_uring::{AnyLog, Events, FileDisk, Listened, Ring, UringNetwork, UringPlatform, monotonic};
use twinlog_vfio::VfioFunction;

/// A nap (invariant 3): about what a sleep and wake-up costs.
const NAP: Duration = Duration::from_micros(50);

/// The monotonic clock of a reactor, as its last turn has read it.
pub(super) struct TurnClock(Ring);

impl Clock for TurnClock {
    fn now(&self) -> Nanos {
        self.0.now()
    }
}

/// What a queue says of its reactor's sleep.
trait Sleeper {
    /// As [`Watch::longest_sleep`].
    fn longest_sleep(&self) -> Duration;
}

impl Sleeper for Watch<VfioFunction> {
    fn longest_sleep(&self) -> Duration {
        Watch::longest_sleep(self)
    }
}

/// A queue to a namespace, as its platform sees it.
struct Member {
    busy_count: Cell<usize>,
    sleeper: Arc<dyn Sleeper>,
    /// Where its answers are signalled.
    _listened: Option<Listened>,
}

/// The queues to namespaces of one reactor.
struct Members {
    events: RefCell<Events>,
    all: RefCell<Vec<Weak<Member>>>,
}

impl Members {
    fn join(&self, sleeper: Arc<dyn Sleeper>, event: Option<BorrowedFd<'_>>) -> io::Result<Rc<Member>> {
        let listened = event.map(|event| self.events.borrow().add(event)).transpose()?;
        let member = Rc::new(Member { busy_count: Cell::new(0), sleeper, _listened: listened });
        let mut all = self.all.borrow_mut();
        all.retain(|other| other.strong_count() > 0);
        all.push(Rc::downgrade(&member));
        Ok(member)
    }

    /// How long all of them let the reactor sleep, as far as it can be seen now; none when they do nothing.
    fn look(&self) -> Option<Duration> {
        let all = self.all.borrow();
        let busy = all.iter().filter_map(Weak::upgrade).filter(|member| member.busy_count.get() > 0);
        busy.map(|member| member.sleeper.longest_sleep()).min()
    }

    /// How long the reactor may sleep from here on, until it is signalled.
    fn longest_sleep(&self) -> Duration {
        match self.look() {
            None => {
                self.events.borrow_mut().settle();
                Duration::MAX
            }
            Some(Duration::ZERO) => Duration::ZERO,
            Some(_) => {
                // Once more: what was written before it listened was perhaps signalled before, too.
                self.events.borrow_mut().listen();
                self.look().unwrap_or(Duration::ZERO)
            }
        }
    }
}

/// Makes a reactor's queues to devices.
#[derive(Clone)]
pub(super) struct Queues {
    ring: Ring,
    members: Rc<Members>,
    end: Arc<NodeEnd>,
}

impl Queues {
    /// A queue to `device`, of a pool whose reservations are `hold`.
    pub(super) fn open(&self, device: &Opened, hold: &Arc<Hold>) -> Result<Disk, Failure> {
        Ok(match device {
            Opened::File(file) => Disk::File(FileDisk::new(&self.ring, file, QUEUE_DEPTH)?),
            Opened::Nvme(namespace) => {
                let queue = namespace.queue(TurnClock(self.ring.clone()))?;
                let watch = queue.watch();
                let member = self.members.join(watch.clone(), watch.event()).map_err(no_ring)?;
                let lease = (Arc::clone(&self.end), Arc::clone(hold));
                Disk::Nvme(Box::new(Watched::new(queue, namespace.name(), member, lease)))
            }
        })
    }
}

/// A disk whose operations the platform counts.
pub(super) struct Watched<D> {
    queue: D,
    /// With the name that a person configured.
    info: DeviceInfo,
    member: Rc<Member>,
    end: Arc<NodeEnd>,
    hold: Arc<Hold>,
}

impl<D> Watched<D> {
    fn begin(&mut self) -> &mut D {
        self.member.busy_count.update(|count| count + 1);
        &mut self.queue
    }
}

impl<D: BlockDevice> Watched<D> {
    fn new(queue: D, name: String, member: Rc<Member>, (end, hold): (Arc<NodeEnd>, Arc<Hold>)) -> Self {
        let info = DeviceInfo { name, ..queue.info().clone() };
        Self { queue, info, member, end, hold }
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        // What waits is handed over by looking.
        if self.member.busy_count.get() > 0 && !self.end.may_serve(monotonic) {
            return;
        }
        let before = completions.len();
        self.queue.poll(completions);
        let is_fenced = |completion: &BlockCompletion| {
            completion.result.as_ref().is_err_and(|error| error.kind == DeviceErrorKind::Fenced)
        };
        if completions[before..].iter().any(is_fenced) {
            self.hold.is_lost.store(true, Ordering::Release);
        }
        let ended = completions.len() - before;
        self.member.busy_count.update(|count| count.checked_sub(ended).expect("what ends has begun"));
    }
}

/// A device of a pool, as one reactor has it.
pub(super) enum Disk {
    File(FileDisk),
    Nvme(Box<Watched<NvmeQueue<TurnClock>>>),
}

impl BlockDevice for Disk {
    fn info(&self) -> &DeviceInfo {
        match self {
            Self::File(disk) => disk.info(),
            Self::Nvme(disk) => &disk.info,
        }
    }

    fn health(&self) -> Option<DeviceHealth> {
        match self {
            Self::File(disk) => disk.health(),
            Self::Nvme(disk) => disk.queue.health(),
        }
    }

    fn room(&self) -> usize {
        match self {
            Self::File(disk) => disk.room(),
            Self::Nvme(disk) => disk.queue.room(),
        }
    }

    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>) {
        match self {
            Self::File(disk) => disk.read(token, first, blocks),
            Self::Nvme(disk) => disk.begin().read(token, first, blocks),
        }
    }

    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, persistence: Persistence) {
        match self {
            Self::File(disk) => disk.write(token, first, blocks, persistence),
            Self::Nvme(disk) => disk.begin().write(token, first, blocks, persistence),
        }
    }

    fn flush(&mut self, token: Token) {
        match self {
            Self::File(disk) => disk.flush(token),
            Self::Nvme(disk) => disk.begin().flush(token),
        }
    }

    fn discard(&mut self, token: Token, range: BlockRange) {
        match self {
            Self::File(disk) => disk.discard(token, range),
            Self::Nvme(disk) => disk.begin().discard(token, range),
        }
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        match self {
            Self::File(disk) => disk.poll(completions),
            Self::Nvme(disk) => disk.poll(completions),
        }
    }
}

/// The platform of a node's reactor.
pub(super) struct NodePlatform {
    uring: UringPlatform,
    queues: Queues,
}

impl NodePlatform {
    pub(super) fn new(ring: &Ring, end: Arc<NodeEnd>) -> Result<Self, Failure> {
        let events = RefCell::new(Events::new(ring).map_err(no_ring)?);
        let members = Rc::new(Members { events, all: RefCell::default() });
        Ok(Self { uring: UringPlatform::new(ring.clone()), queues: Queues { ring: ring.clone(), members, end } })
    }

    /// What makes queues on it.
    pub(super) fn queues(&self) -> Queues {
        self.queues.clone()
    }
}

impl Platform for NodePlatform {
    type Disk = Disk;
    type Log = AnyLog;
    type Net = UringNetwork;

    fn now(&self) -> Nanos {
        self.uring.now()
    }

    fn wall_clock_ns(&self) -> u64 {
        self.uring.wall_clock_ns()
    }

    fn blocks(&self) -> &BlockPool {
        self.uring.blocks()
    }

    fn should_sleep(&self) -> bool {
        self.uring.should_sleep()
    }

    fn longest_sleep(&self) -> Duration {
        let sleep = self.queues.members.longest_sleep();
        if self.should_sleep() { sleep.max(NAP) } else { sleep }
    }

    fn turn(&mut self, wait: Wait) -> bool {
        self.uring.turn(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::{
        fs::File,
        os::fd::AsFd,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        thread,
    };
    use twinlog_uring::{DiskOptions, RingOptions};

    /// A queue that says what it is told to, and a controller that answers.
    struct Said {
        sleep: AtomicU64,
        answered: AtomicBool,
    }

    impl Sleeper for Said {
        fn longest_sleep(&self) -> Duration {
            let sleep = Duration::from_millis(self.sleep.load(Ordering::Relaxed));
            if self.answered.load(Ordering::Acquire) { Duration::ZERO } else { sleep }
        }
    }

    fn said(sleep_ms: u64) -> Arc<Said> {
        Arc::new(Said { sleep: AtomicU64::new(sleep_ms), answered: AtomicBool::new(false) })
    }

    fn platform(blocks: &BlockPool) -> NodePlatform {
        let ring = Ring::new(RingOptions::default(), blocks).expect("io_uring");
        NodePlatform::new(&ring, Arc::default()).expect("epoll")
    }

    #[test]
    fn a_reactor_sleeps_over_namespaces_only_as_far_as_their_queues_let_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk");
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("made");
        let blocks = BlockPool::new(4).expect("a small mapping");
        let mut platform = platform(&blocks);
        let queue = FileDisk::open(&platform.queues.ring, &path, DiskOptions::default()).expect("there");
        let sleeper = said(0);
        let member = platform.queues.members.join(sleeper.clone(), None).expect("nothing to listen to");
        let mut disk = Watched::new(queue, "nvme:S1".to_owned(), member, Default::default());
        assert_eq!(disk.info.name, "nvme:S1");
        let block = || blocks.allocate().expect("there are four");
        assert_eq!(platform.longest_sleep(), Duration::MAX);
        disk.begin().read(Token(1), 0, vec![block()]);
        disk.begin().read(Token(2), 1, vec![block()]);
        assert_eq!(platform.longest_sleep(), Duration::ZERO);
        sleeper.sleep.store(7, Ordering::Relaxed);
        assert_eq!(platform.longest_sleep(), Duration::from_millis(7));
        let mut completions = Vec::new();
        while completions.len() < 2 {
            platform.turn(Wait::UpTo(Duration::from_secs(1)));
            disk.poll(&mut completions);
        }
        assert_eq!(platform.longest_sleep(), Duration::MAX);
        disk.begin().flush(Token(3));
        sleeper.sleep.store(0, Ordering::Relaxed);
        assert_eq!(platform.longest_sleep(), NAP, "a thread of the kernel flushes");
        drop(disk);
        assert_eq!(platform.longest_sleep(), Duration::MAX);
    }

    #[test]
    fn a_namespace_hears_nothing_after_the_end_of_the_lease() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk");
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("made");
        let blocks = BlockPool::new(4).expect("a small mapping");
        let ring = Ring::new(RingOptions::default(), &blocks).expect("io_uring");
        let end = Arc::new(NodeEnd::default());
        let mut platform = NodePlatform::new(&ring, Arc::clone(&end)).expect("epoll");
        let queue = FileDisk::open(&ring, &path, DiskOptions::default()).expect("there");
        let member = platform.queues.members.join(said(10), None).expect("nothing to listen to");
        let mut disk = Watched::new(queue, "nvme:S1".to_owned(), member, (end.clone(), Arc::default()));
        disk.begin().read(Token(1), 0, vec![blocks.allocate().expect("there are four")]);
        end.serve_until(Some(Nanos(1)));
        let mut completions = Vec::new();
        for _ in 0..10 {
            platform.turn(Wait::UpTo(Duration::from_millis(10)));
            disk.poll(&mut completions);
        }
        assert!(completions.is_empty(), "this node stood still over the end of its lease");
        end.serve_until(None);
        while completions.is_empty() {
            platform.turn(Wait::UpTo(Duration::from_secs(1)));
            disk.poll(&mut completions);
        }
    }

    /// Two reactors wait for one counter: each has its own controller's answer, and the other's signal.
    #[test]
    fn no_signal_is_slept_over_however_the_threads_run() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an event counter");
        let reactors = [said(60_000), said(60_000)];
        thread::scope(|scope| {
            for sleeper in &reactors {
                let event = &event;
                scope.spawn(move || {
                    let blocks = BlockPool::new(1).expect("a small mapping");
                    let mut platform = platform(&blocks);
                    let member = platform.queues.members.join(sleeper.clone(), Some(event.as_fd())).expect("epoll");
                    member.busy_count.set(1);
                    for _ in 0..ROUNDS {
                        // A sleep over an answer would last a minute, and this test for hours.
                        while !sleeper.answered.load(Ordering::Acquire) {
                            let sleep = platform.longest_sleep();
                            platform.turn(Wait::UpTo(sleep));
                        }
                        sleeper.answered.store(false, Ordering::Release);
                    }
                });
            }
            for round in 0..ROUNDS {
                for sleeper in &reactors {
                    while sleeper.answered.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                    (0..round % 400).for_each(|_| std::hint::spin_loop());
                    sleeper.answered.store(true, Ordering::Release);
                    event.write(1).expect("far from full");
                }
            }
        });
    }

    /// Answers of each controller.
    const ROUNDS: u64 = 3000;
}
