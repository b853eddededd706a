//! What one reactor of a node runs on: an io_uring, and queues to NVMe namespaces beside it.
//!
//! # Invariants
//!
//! 1. While an operation is at a namespace the reactor does not sleep: nobody would wake it, the answer is seen by looking.
//! 2. A namespace hears of nothing more once this node has stood still over the end of its lease: its doorbells are no part of the turn of the machine, before
//!    which a reactor looks at that.
//! 3. Only where a thread of the kernel has something to finish meanwhile (the flush of a log) it naps, so that this thread gets a processor.

use super::{devices::Opened, nvme::NvmeQueue, reservation::Hold, storage::QUEUE_DEPTH};
use crate::cli::output::Failure;
use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use twinlog::serve::reactor::NodeEnd;
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceErrorKind, DeviceInfo, Nanos, Persistence,
    Platform, SharedBlock, Token, Wait,
};
use twinlog_nvme::Clock;
use twinlog_uring::{AnyLog, FileDisk, Ring, UringNetwork, UringPlatform, monotonic};

/// A nap (invariant 3): about what a sleep and wake-up costs.
const NAP: Duration = Duration::from_micros(50);

/// The monotonic clock of a reactor, as its last turn has read it.
pub(super) struct TurnClock(Ring);

impl Clock for TurnClock {
    fn now(&self) -> Nanos {
        self.0.now()
    }
}

/// Operations that one reactor has at namespaces.
#[derive(Clone, Default)]
struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    fn add(&self, count: usize) {
        self.0.set(self.0.get() + count);
    }

    fn remove(&self, count: usize) {
        self.0.set(self.0.get().checked_sub(count).expect("what ends has begun"));
    }
}

/// Makes a reactor's queues to devices.
#[derive(Clone)]
pub(super) struct Queues {
    ring: Ring,
    in_flight: InFlight,
    end: Arc<NodeEnd>,
}

impl Queues {
    /// A queue to `device`, of a pool whose reservations are `hold`.
    pub(super) fn open(&self, device: &Opened, hold: &Arc<Hold>) -> Result<Disk, Failure> {
        Ok(match device {
            Opened::File(file) => Disk::File(FileDisk::new(&self.ring, file, QUEUE_DEPTH)?),
            Opened::Nvme(namespace) => {
                let queue = namespace.queue(TurnClock(self.ring.clone()))?;
                Disk::Nvme(Box::new(Watched::new(queue, namespace.name(), self, hold)))
            }
        })
    }
}

/// A disk whose operations the platform counts.
pub(super) struct Watched<D> {
    queue: D,
    /// With the name that a person configured.
    info: DeviceInfo,
    busy_count: usize,
    in_flight: InFlight,
    end: Arc<NodeEnd>,
    hold: Arc<Hold>,
}

impl<D> Watched<D> {
    fn begin(&mut self) -> &mut D {
        self.busy_count += 1;
        self.in_flight.add(1);
        &mut self.queue
    }
}

impl<D: BlockDevice> Watched<D> {
    fn new(queue: D, name: String, queues: &Queues, hold: &Arc<Hold>) -> Self {
        let info = DeviceInfo { name, ..queue.info().clone() };
        let (in_flight, end) = (queues.in_flight.clone(), Arc::clone(&queues.end));
        Self { queue, info, busy_count: 0, in_flight, end, hold: Arc::clone(hold) }
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        // What waits is handed over by looking.
        if self.busy_count > 0 && !self.end.may_serve(monotonic) {
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
        self.busy_count -= ended;
        self.in_flight.remove(ended);
    }
}

impl<D> Drop for Watched<D> {
    fn drop(&mut self) {
        self.in_flight.remove(self.busy_count);
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
    pub(super) fn new(ring: &Ring, end: Arc<NodeEnd>) -> Self {
        let queues = Queues { ring: ring.clone(), in_flight: InFlight::default(), end };
        Self { uring: UringPlatform::new(ring.clone()), queues }
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
        match self.queues.in_flight.0.get() {
            0 => Duration::MAX,
            _ if self.should_sleep() => NAP,
            _ => Duration::ZERO,
        }
    }

    fn turn(&mut self, wait: Wait) -> bool {
        self.uring.turn(wait.at_most(self.longest_sleep()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use twinlog_uring::{DiskOptions, RingOptions};

    #[test]
    fn a_reactor_does_not_sleep_over_what_is_at_a_namespace() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk");
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("made");
        let blocks = BlockPool::new(4).expect("a small mapping");
        let ring = Ring::new(RingOptions::default(), &blocks).expect("io_uring");
        let mut platform = NodePlatform::new(&ring, Arc::default());
        let queue = FileDisk::open(&ring, &path, DiskOptions::default()).expect("there");
        let mut disk = Watched::new(queue, "nvme:S1".to_owned(), &platform.queues, &Arc::default());
        assert_eq!(disk.info.name, "nvme:S1");
        let block = || blocks.allocate().expect("there are four");
        assert_eq!(platform.longest_sleep(), Duration::MAX);
        disk.begin().read(Token(1), 0, vec![block()]);
        disk.begin().read(Token(2), 1, vec![block()]);
        assert_eq!(platform.longest_sleep(), Duration::ZERO);
        let mut completions = Vec::new();
        while completions.len() < 2 {
            platform.turn(Wait::UpTo(Duration::from_secs(1)));
            disk.poll(&mut completions);
        }
        assert_eq!(platform.longest_sleep(), Duration::MAX);
        disk.begin().flush(Token(3));
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
        let mut platform = NodePlatform::new(&ring, Arc::clone(&end));
        let queue = FileDisk::open(&ring, &path, DiskOptions::default()).expect("there");
        let mut disk = Watched::new(queue, "nvme:S1".to_owned(), &platform.queues, &Arc::default());
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
}
