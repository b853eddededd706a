//! A simulated disk as a thing: it outlives the reactors that open queues to it.
//!
//! # Life of an operation
//!
//! ```text
//! queued (latency drawn) --due, polled--> performed --> completed
//!    |                                        |
//!    | power cut: lands by sector or not      | the world crashes at one of its durable steps: never completes
//!    | process kill: lands by block or not    v
//!    +--------------------------------------> gone, with its queue
//! ```
//!
//! Where several hosts reach it, reservations say whose operations are performed: `medium/reservation.rs`.

mod reservation;

use crate::{
    content::{Content, Crashed},
    disk::SimDisk,
    fault::{Fault, FaultPlan},
    world::{Agenda, SimWorld},
};
use reservation::Reservations;
pub use reservation::{Aborts, HOSTS_MAX, HostQueue, Registrations, ReservationCounts, ReservationOrder};
use std::{cell::RefCell, cmp::Reverse, collections::BinaryHeap, rc::Rc};
use twinlog_device::{
    BlockBuf, BlockBytes, BlockCompletion, BlockRange, DeviceError, DeviceErrorKind, DeviceInfo, DurabilityClass,
    Nanos, Persistence, Prng, SharedBlock, Token,
};

/// How many times slower than the slowest a slow operation is.
const SLOWNESS: u64 = 100;

/// What a medium is.
#[derive(Clone, Debug)]
pub struct MediumConfig {
    /// What its queues say of it.
    pub info: DeviceInfo,
    /// Shortest and longest latency of an operation, in nanoseconds.
    pub latency_ns: (u64, u64),
    /// How many times longer reads take: of a disk that answers writes from its cache.
    pub read_slowness: u64,
    /// Unflushed blocks that the cache holds; beyond, the oldest becomes durable.
    pub cache_blocks_max: usize,
    /// Whether reservations survive a power cut.
    pub keeps_reservations: bool,
}

impl MediumConfig {
    /// A disk of `block_count` blocks with sectors of 512 bytes, a depth of 32 and 10 to 100 microseconds of latency.
    #[must_use]
    pub fn new(name: &str, block_count: u64) -> Self {
        Self {
            info: DeviceInfo {
                name: name.to_owned(),
                block_count,
                sector_bytes: 512,
                transfer_blocks_max: 64,
                queue_depth: 32,
                can_discard: true,
                durability: DurabilityClass::Durable,
            },
            latency_ns: (10_000, 100_000),
            read_slowness: 1,
            cache_blocks_max: 4096,
            keeps_reservations: true,
        }
    }
}

/// A medium. Clones are handles of the same one.
#[derive(Clone)]
pub struct SimMedium(Rc<RefCell<Medium>>);

impl SimMedium {
    /// An empty medium: every block is zero.
    ///
    /// # Panics
    /// When the configuration is none that a device can have.
    #[must_use]
    pub fn new(world: &SimWorld, config: MediumConfig) -> Self {
        let info = &config.info;
        assert!(info.sector_bytes.is_power_of_two() && (512..=4096).contains(&info.sector_bytes), "a possible sector");
        assert!(info.block_count > 0 && info.transfer_blocks_max > 0 && info.queue_depth > 0, "a possible device");
        assert!(config.latency_ns.0 <= config.latency_ns.1, "the shortest latency is not above the longest");
        Self(Rc::new(RefCell::new(Medium {
            content: Content::new(world.clone(), info.sector_bytes, config.cache_blocks_max),
            config,
            prng: world.fork_prng(),
            world: world.clone(),
            queues: Vec::new(),
            generation: 0,
            plan: FaultPlan::default(),
            armed: Vec::new(),
            faulty: false,
            gone: false,
            queued_count: 0,
            newest_performed: 0,
            reservations: Reservations::default(),
        })))
    }

    /// The name that its queues say.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.borrow().config.info.name.clone()
    }

    /// A new queue for the reactor of `agenda`.
    #[must_use]
    pub fn open(&self, agenda: &Agenda) -> SimDisk {
        let (info, queue, generation) = {
            let mut medium = self.0.borrow_mut();
            medium.queues.push(Queue::default());
            (medium.config.info.clone(), medium.queues.len() - 1, medium.generation)
        };
        SimDisk::new(self.0.clone(), agenda.clone(), info, (queue, generation))
    }

    /// Cuts the power: unflushed and unfinished writes land in any subset of their sectors, and every queue is closed. When the world
    /// has crashed nothing lands.
    pub fn power_cut(&self, prng: &mut Prng) {
        let medium = &mut *self.0.borrow_mut();
        let in_flight = medium.close_queues();
        medium.content.lose_power(prng, &in_flight);
        medium.lose_reservations();
    }

    /// The processes that use the medium end: what has completed stays, unfinished writes land or not, and every queue is closed.
    pub fn process_kill(&self, prng: &mut Prng) {
        let medium = &mut *self.0.borrow_mut();
        let in_flight = medium.close_queues();
        medium.land_partly(prng, &in_flight);
    }

    /// Draws faults from now on as `plan` says.
    pub fn set_faults(&self, plan: FaultPlan) {
        let medium = &mut *self.0.borrow_mut();
        medium.plan = plan;
        medium.faulty = !medium.plan.is_empty() || !medium.armed.is_empty();
    }

    /// Lets `fault` hit one operation: the first that it can hit after `skipped` others.
    ///
    /// # Panics
    /// When the class is none of [`FaultPlan::DRAWN`].
    pub fn arm(&self, fault: Fault, skipped: u64) {
        assert!(FaultPlan::DRAWN.contains(&fault), "{fault} cannot be armed");
        let medium = &mut *self.0.borrow_mut();
        medium.armed.push((fault, skipped));
        medium.faulty = true;
    }

    /// Brings a device back that is gone, with all its content, and forgets what was armed.
    pub fn repair(&self) {
        let medium = &mut *self.0.borrow_mut();
        medium.gone = false;
        medium.armed.clear();
        medium.faulty = !medium.plan.is_empty();
    }

    /// Flips bit `bit` (below 32 768) of `block`; false when nothing was ever written there.
    pub fn flip_bit(&self, block: u64, bit: u64) -> bool {
        let medium = &mut *self.0.borrow_mut();
        let flipped = medium.content.flip_bit(block, bit);
        if flipped {
            medium.world.count_fired(Fault::BitRot);
        }
        flipped
    }

    /// What a read of `block` would return now.
    #[must_use]
    pub fn block(&self, block: u64) -> Box<BlockBytes> {
        self.0.borrow().content.newest(block)
    }

    /// Blocks that were ever written, ascending.
    #[must_use]
    pub fn written_blocks(&self) -> Vec<u64> {
        self.0.borrow().content.written_blocks()
    }

    /// A number that differs when any durable byte differs.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.0.borrow().content.digest()
    }
}

/// The state behind a medium's handles and queues.
pub(crate) struct Medium {
    world: SimWorld,
    config: MediumConfig,
    prng: Prng,
    content: Content,
    queues: Vec<Queue>,
    /// Queues of an older generation are closed.
    generation: u64,
    plan: FaultPlan,
    armed: Vec<(Fault, u64)>,
    /// Whether any fault can be drawn: the quick answer for media without faults.
    faulty: bool,
    gone: bool,
    queued_count: u64,
    /// Order of the newest operation that was performed: tells whether a slow one was overtaken.
    newest_performed: u64,
    reservations: Reservations,
}

/// Operations in flight of one queue.
#[derive(Default)]
struct Queue {
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// When each operation is due, its order, and its place in `operations`.
    due: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Whose it is, where hosts are told apart.
    host: Option<HostQueue>,
    /// It has met the reservation of another host, and changes nothing any more.
    is_fenced: bool,
    /// Its process has ended; that of others has not.
    is_closed: bool,
}

/// An operation in flight.
struct Operation {
    token: Token,
    request: Request,
    order: u64,
    is_slow: bool,
    /// Its host was preempted, and nothing ends what the medium has begun.
    is_under_way: bool,
    /// It was ended before it was performed.
    is_aborted: bool,
    /// It was performed when its host was preempted: what it is answered.
    result: Option<Result<(), DeviceErrorKind>>,
}

/// What an operation asks for.
pub(crate) enum Request {
    Read {
        first: u64,
        blocks: Vec<BlockBuf>,
    },
    Write {
        first: u64,
        blocks: Vec<SharedBlock>,
        persistence: Persistence,
    },
    Flush,
    /// A flush that covers the writes up to a sequence.
    FlushTo(u64),
    Discard(BlockRange),
}

impl Request {
    /// Whether it is one of those that a Write Exclusive reservation keeps others from.
    fn changes(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }

    /// Name, first block and number of blocks.
    fn extent(&self) -> (&'static str, u64, u64) {
        match self {
            Self::Read { first, blocks } => ("read", *first, blocks.len() as u64),
            Self::Write { first, blocks, .. } => ("write", *first, blocks.len() as u64),
            Self::Flush | Self::FlushTo(_) => ("flush", 0, 0),
            Self::Discard(range) => ("discard", range.first, range.count),
        }
    }
}

impl Medium {
    /// Puts an operation in flight; returns when it is due.
    pub(crate) fn queue(&mut self, (queue, generation): (usize, u64), token: Token, request: Request) -> Nanos {
        let is_open = generation == self.generation && !self.queues[queue].is_closed;
        assert!(is_open, "a queue is not used after a power cut or kill");
        let request = match request {
            Request::Flush => Request::FlushTo(self.content.mark()),
            request => request,
        };
        let (shortest, longest) = self.config.latency_ns;
        let slowness = if matches!(request, Request::Read { .. }) { self.config.read_slowness } else { 1 };
        let mut latency_ns = self.prng.between(shortest, longest) * slowness;
        let is_slow = self.draw(Fault::SlowOperation);
        if is_slow {
            self.world.count_fired(Fault::SlowOperation);
            latency_ns = longest.max(1) * SLOWNESS;
        }
        self.queued_count += 1;
        let due = self.world.now().0 + latency_ns;
        let (order, result) = (self.queued_count, None);
        let operation = Operation { token, request, order, is_slow, is_under_way: false, is_aborted: false, result };
        self.queues[queue].put(due, operation);
        Nanos(due)
    }

    /// Performs the next operation of a queue that is due; `None` when there is none, or when the world has crashed.
    pub(crate) fn next_completion(&mut self, (queue, generation): (usize, u64)) -> Option<BlockCompletion> {
        if generation != self.generation || self.world.crashed() {
            return None;
        }
        let operation = self.queues[queue].take_due(self.world.now().0)?;
        if operation.is_slow && self.newest_performed > operation.order {
            self.world.count_mattered(Fault::SlowOperation);
        }
        self.newest_performed = self.newest_performed.max(operation.order);
        let (name, first, count) = operation.request.extent();
        let is_kept_out = operation.result.is_none() && self.is_kept_out(queue, &operation);
        let host = self.queues[queue].host;
        let mut request = operation.request;
        let result = match (operation.result, self.refusal(&request)) {
            (Some(result), None) => result,
            (_, Some(kind)) => Err(kind),
            (None, None) if is_kept_out => Err(DeviceErrorKind::Fenced),
            (None, None) => self.perform(&mut request, host).ok()?,
        };
        let result = result.map_err(|kind| DeviceError {
            device: self.config.info.name.clone(),
            operation: name,
            first,
            count,
            kind,
        });
        let blocks = if let Request::Read { blocks, .. } = request { blocks } else { Vec::new() };
        Some(BlockCompletion { token: operation.token, result, blocks })
    }

    /// Why an operation fails whatever it asks for.
    fn refusal(&mut self, request: &Request) -> Option<DeviceErrorKind> {
        if !self.gone && self.draw(Fault::DeviceGone) {
            self.world.count_fired(Fault::DeviceGone);
            self.gone = true;
        }
        if self.gone {
            self.world.count_mattered(Fault::DeviceGone);
            return Some(DeviceErrorKind::Gone);
        }
        let (_, first, count) = request.extent();
        let is_beyond = first.checked_add(count).is_none_or(|end| end > self.config.info.block_count);
        is_beyond.then_some(DeviceErrorKind::Beyond)
    }

    fn perform(
        &mut self,
        request: &mut Request,
        host: Option<HostQueue>,
    ) -> Result<Result<(), DeviceErrorKind>, Crashed> {
        if matches!(request, Request::Write { .. } | Request::Discard(_)) {
            self.note_change(host);
        }
        match request {
            Request::Read { first, blocks } => Ok(self.read(*first, blocks)),
            Request::Write { first, blocks, persistence } => self.write(*first, blocks, *persistence),
            Request::FlushTo(mark) => self.content.flush(*mark).map(Ok),
            Request::Discard(range) if self.config.info.can_discard && range.count > 0 => {
                self.content.discard(*range, &mut self.prng).map(Ok)
            }
            Request::Discard(_) => Ok(Ok(())),
            Request::Flush => unreachable!("a flush gets its mark when it is queued"),
        }
    }

    fn read(&mut self, first: u64, blocks: &mut [BlockBuf]) -> Result<(), DeviceErrorKind> {
        if self.hit(Fault::ReadError) {
            return Err(DeviceErrorKind::Medium);
        }
        for (block, bytes) in (first..).zip(blocks) {
            self.content.read(block, bytes);
        }
        Ok(())
    }

    fn write(
        &mut self,
        first: u64,
        blocks: &[SharedBlock],
        persistence: Persistence,
    ) -> Result<Result<(), DeviceErrorKind>, Crashed> {
        if self.faulty {
            if self.hit(Fault::NoSpace) {
                return Ok(Err(DeviceErrorKind::NoSpace));
            }
            if self.hit(Fault::WriteError) {
                let in_flight: Vec<_> = (first..).zip(blocks.iter().cloned()).collect();
                self.content.write_partly(&mut self.prng, &in_flight, None)?;
                return Ok(Err(DeviceErrorKind::Medium));
            }
            if self.draw(Fault::LostWrite) {
                self.lose(Fault::LostWrite, first, blocks);
                return Ok(Ok(()));
            }
            if self.draw(Fault::MisdirectedWrite)
                && let Some(victim) = self.victim(first, blocks.len() as u64)
            {
                self.misdirect(first, victim, blocks, persistence)?;
                return Ok(Ok(()));
            }
        }
        for (block, bytes) in (first..).zip(blocks) {
            self.content.write(block, bytes, persistence)?;
        }
        if self.draw(Fault::BitRot)
            && let Some(block) = self.content.some_written_block(&mut self.prng)
            && self.content.flip_bit(block, self.prng.below(32_768))
        {
            self.world.count_fired(Fault::BitRot);
        }
        Ok(Ok(()))
    }

    /// Draws a fault that always matters to the caller, and counts it.
    fn hit(&mut self, fault: Fault) -> bool {
        let hit = self.draw(fault);
        if hit {
            self.world.count_fired(fault);
            self.world.count_mattered(fault);
        }
        hit
    }

    /// A write of `blocks` at `first` does not happen.
    fn lose(&mut self, fault: Fault, first: u64, blocks: &[SharedBlock]) {
        self.world.count_fired(fault);
        for (block, bytes) in (first..).zip(blocks) {
            if !self.content.holds(block, bytes) {
                self.content.taint(block, fault);
            }
        }
    }

    /// Where a write of `count` blocks that was meant for `first` lands: where it destroys something, if that is possible.
    fn victim(&mut self, first: u64, count: u64) -> Option<u64> {
        let last = self.config.info.block_count.checked_sub(count)?;
        let victim = self.content.some_written_block(&mut self.prng)?.min(last);
        if victim != first { Some(victim) } else { (victim < last).then_some(victim + 1) }
    }

    fn misdirect(
        &mut self,
        first: u64,
        victim: u64,
        blocks: &[SharedBlock],
        persistence: Persistence,
    ) -> Result<(), Crashed> {
        // First: a crash in the middle of it leaves damage too.
        self.lose(Fault::MisdirectedWrite, first, blocks);
        for (block, bytes) in (victim..).zip(blocks) {
            let differs = !self.content.holds(block, bytes);
            self.content.write(block, bytes, persistence)?;
            if differs {
                self.content.taint(block, Fault::MisdirectedWrite);
            }
        }
        Ok(())
    }

    /// Whether `fault` hits the operation at hand.
    fn draw(&mut self, fault: Fault) -> bool {
        if !self.faulty {
            return false;
        }
        let mut hit = false;
        self.armed.retain_mut(|(armed, skipped)| {
            let is_next = *armed == fault && *skipped == 0;
            if *armed == fault && *skipped > 0 {
                *skipped -= 1;
            }
            hit |= is_next;
            !is_next
        });
        hit || self.prng.chance(u64::from(self.plan.per_million(fault)), 1_000_000)
    }

    /// Ends every queue; returns the blocks of the writes that were in flight, in the order in which they would have been performed.
    fn close_queues(&mut self) -> Vec<(u64, SharedBlock)> {
        self.generation += 1;
        let in_flight = self.take_in_flight(|_| true);
        self.queues.clear();
        in_flight
    }

    /// Closes these queues; returns the blocks of the writes that were in flight there and may land, in the order in which they would have been performed.
    fn take_in_flight(&mut self, is_meant: impl Fn(&Queue) -> bool) -> Vec<(u64, SharedBlock)> {
        let mut operations = Vec::new();
        for queue in self.queues.iter_mut().filter(|queue| is_meant(queue)) {
            queue.is_closed = true;
            while let Some(Reverse((due, order, place))) = queue.due.pop() {
                operations.push(((due, order), queue.host, queue.operations[place].take()));
            }
        }
        operations.sort_unstable_by_key(|(key, ..)| *key);
        let mut in_flight = Vec::new();
        for (host, operation) in operations.into_iter().filter_map(|(_, host, operation)| Some((host, operation?))) {
            if !self.may_land(host, &operation) {
                self.count_refused(&operation);
                continue;
            }
            let (_, first, count) = operation.request.extent();
            if let Request::Write { blocks, .. } = operation.request
                && !self.gone
                && first.checked_add(count).is_some_and(|end| end <= self.config.info.block_count)
            {
                self.note_change(host);
                in_flight.extend((first..).zip(blocks));
            }
        }
        in_flight
    }

    /// Of what a process has had in flight each block lands, does not, or is torn.
    fn land_partly(&mut self, prng: &mut Prng, in_flight: &[(u64, SharedBlock)]) {
        let landed = self.content.write_partly(prng, in_flight, Some(Fault::UnansweredWrite));
        assert!(landed.is_ok() || self.world.crashed(), "only a crash of the world keeps writes from landing");
    }
}

impl Queue {
    fn put(&mut self, due: u64, operation: Operation) {
        let order = operation.order;
        let place = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        self.operations[place] = Some(operation);
        self.due.push(Reverse((due, order, place)));
    }

    fn take_due(&mut self, now: u64) -> Option<Operation> {
        self.due.peek().filter(|due| due.0.0 <= now)?;
        let Reverse((_, _, place)) = self.due.pop()?;
        self.free.push(place);
        self.operations[place].take()
    }
}
