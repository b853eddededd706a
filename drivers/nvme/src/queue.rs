//! One I/O queue pair and the operations on it.
//!
//! # Invariants
//!
//! 1. A slot is idle, waits to be given to the controller, or flies. There are as many slots as the ring has entries less one, and each
//!    seat (a disk that uses the queue) has at most its share of them: the ring cannot be overrun.
//! 2. A command's identifier is its slot's number and, above it, a sequence number that changes with every command of the slot. A completion
//!    whose identifier is not that of a flying command is a violation: the queue halts and the controller is failed.
//! 3. Blocks of a flying read are the device's ([`DeviceBlock`]); they come back with the command's completion, or when the controller is
//!    known to have stopped. A controller that cannot be stopped keeps them for ever, and the reader gets others.
//!
//! # Life of a slot
//!
//! ```text
//! idle --start--> waiting --submit--> flying --completion--> idle
//!                    ^                  |
//!                    +-- transient status, more to discard, written and now to be flushed, controller reset (at most RESUBMITS_MAX times)
//! ```

use crate::{
    Violation,
    deadline::Deadline,
    prp::{self, LIST_BYTES},
    reservation::{Reservation, ReservationReport},
    ring::Rings,
    sgl,
    spec::{DeallocateRange, Status, SubmissionEntry, io_opcode},
    watch::Rest,
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockRange, DeviceError, DeviceErrorKind, Nanos, Persistence, SharedBlock, Token,
};
use twinlog_memory::DeviceBlock;
use twinlog_pci::{DmaMemory, PoolMap, Registers};
use zerocopy::{IntoBytes, little_endian::U16};

/// Bits of a command identifier that are the slot's number.
const SLOT_BITS: u32 = 10;

/// Most slots of a queue.
pub(crate) const SLOTS_MAX: u16 = 1 << SLOT_BITS;

/// Times that one operation is given to the controller again before it fails: after resets, and for statuses that ask for it.
const RESUBMITS_MAX: u8 = 5;

/// How long to wait with an operation whose status says that it may succeed later.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Logical blocks of one range to deallocate (nvm 3.2.3: 32 bits), rounded down to whole blocks of any format.
const RANGE_LBAS_MAX: u64 = (1 << 32) - 8;

/// Ranges of one dataset command that a slot's list has room for.
const RANGES_MAX: u64 = (LIST_BYTES / size_of::<DeallocateRange>()) as u64;

/// Logical blocks of one write-zeroes command (nvm 3.2.8: 16 bits), rounded down likewise.
pub(crate) const ZERO_LBAS_MAX: u64 = (1 << 16) - 8;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write(Persistence),
    Flush,
    Discard,
    Zero,
    Reserve(Reservation),
}

impl Kind {
    /// Whether it would change what the namespace holds, or make a change durable.
    fn changes(self) -> bool {
        matches!(self, Self::Write(_) | Self::Flush | Self::Discard | Self::Zero)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write(_) => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Zero => "write zeroes",
            Self::Reserve(_) => "reservation",
        }
    }
}

/// One operation before it has a slot.
pub(crate) struct Request {
    pub(crate) token: Token,
    pub(crate) kind: Kind,
    pub(crate) range: BlockRange,
    pub(crate) targets: Vec<BlockBuf>,
    pub(crate) sources: Vec<SharedBlock>,
}

impl Request {
    /// The completion of a request that never reached the controller, or that left its blocks there.
    pub(crate) fn end(self, device: &str, result: Result<(), DeviceErrorKind>) -> BlockCompletion {
        let result = result.map_err(|kind| device_error(device, self.kind, self.range, kind));
        BlockCompletion { token: self.token, result, blocks: self.targets }
    }
}

fn device_error(device: &str, operation: Kind, range: BlockRange, kind: DeviceErrorKind) -> DeviceError {
    let BlockRange { first, count } = range;
    DeviceError { device: device.to_owned(), operation: operation.name(), first, count, kind }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Idle,
    /// To be given to the controller at this time or later.
    Waiting(Nanos),
    /// With the controller until this time, then to be aborted; and once it was asked to abort, until then to be reset.
    Flying(Deadline),
}

struct Slot {
    state: SlotState,
    /// Number of the slot's latest command.
    sequence: u16,
    seat: usize,
    token: Token,
    kind: Kind,
    range: BlockRange,
    targets: Vec<DeviceBlock>,
    sources: Vec<SharedBlock>,
    /// First logical block, and number of them, that are not yet discarded or zeroed.
    left: (u64, u64),
    /// Logical blocks that the latest command discards or zeroes.
    step: u64,
    /// Whether the data of a durable write are written, and a flush makes them durable.
    is_flushing: bool,
    resubmits: u8,
    timed_out: bool,
}

/// Most logical blocks of one dataset command, unless the controller wants fewer.
pub(crate) const DISCARD_LBAS_MAX: u64 = RANGES_MAX * RANGE_LBAS_MAX;

/// Logical blocks of the largest block: fewer are not discarded at once.
const DISCARD_LBAS_MIN: u64 = 8;

/// What a disk does on its queue.
pub(crate) struct Seat {
    pub(crate) name: String,
    pub(crate) namespace: u32,
    pub(crate) lba_shift: u32,
    /// Logical blocks of one dataset command: fewer after the controller has refused so many.
    pub(crate) discard_lbas_max: u64,
    /// Logical blocks of one write-zeroes command.
    pub(crate) zero_lbas_max: u64,
    /// Whether a flush does anything, and a durable write must ask for more than a write.
    pub(crate) has_write_cache: bool,
    /// Whether that is a flush of its own, and not the write's FUA.
    pub(crate) ignores_fua: bool,
    /// Whether the controller knows scatter gather lists.
    pub(crate) has_sgls: bool,
    pub(crate) is_open: bool,
    /// Whether another host's reservation has refused a change: nothing more is tried.
    pub(crate) is_fenced: bool,
    pub(crate) finished: Vec<BlockCompletion>,
    pub(crate) report: Option<ReservationReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueState {
    /// The controller does not know the queue.
    Halted,
    Live,
    /// For ever.
    Failed(DeviceErrorKind),
}

/// Times of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the doorbell to the abort.
    pub(crate) command: Duration,
    /// From the abort to the reset.
    pub(crate) abort: Duration,
}

/// A queue pair.
pub(crate) struct Queue<R, M> {
    rings: Rings<R, M>,
    /// Half a page for each slot: lists of pages or pieces, ranges, keys, reports.
    lists: Arc<M>,
    maps: Arc<[PoolMap]>,
    slots: Vec<Slot>,
    idle: Vec<u16>,
    waiting_count: usize,
    seats: Vec<Seat>,
    state: QueueState,
    patience: Patience,
    violation: Option<Violation>,
    /// Since when the controller processes nothing, and is given nothing.
    paused_at: Option<Nanos>,
    /// Slots whose blocks an unstoppable controller has, and that wait for others.
    orphans: VecDeque<usize>,
}

impl<R: Registers, M: DmaMemory> Queue<R, M> {
    /// A halted queue on `rings`, with a list for each slot in `lists`.
    pub(crate) fn new(rings: Rings<R, M>, lists: Arc<M>, maps: Arc<[PoolMap]>, patience: Patience) -> Self {
        let slot_count = rings.entries() - 1;
        assert!(slot_count <= SLOTS_MAX, "an identifier has {SLOT_BITS} bits for the slot");
        assert!(lists.length_bytes() >= usize::from(slot_count) * LIST_BYTES, "every slot has a list");
        let slot = || Slot {
            state: SlotState::Idle,
            sequence: 0,
            seat: 0,
            token: Token(0),
            kind: Kind::Flush,
            range: BlockRange { first: 0, count: 0 },
            targets: Vec::new(),
            sources: Vec::new(),
            left: (0, 0),
            step: 0,
            is_flushing: false,
            resubmits: 0,
            timed_out: false,
        };
        Self {
            rings,
            lists,
            maps,
            slots: (0..slot_count).map(|_| slot()).collect(),
            idle: (0..slot_count).rev().collect(),
            waiting_count: 0,
            seats: Vec::new(),
            state: QueueState::Halted,
            patience,
            violation: None,
            paused_at: None,
            orphans: VecDeque::new(),
        }
    }

    pub(crate) fn rings(&self) -> &Rings<R, M> {
        &self.rings
    }

    /// A place for one more disk, of at most `seats_max`.
    pub(crate) fn sit(&mut self, seat: Seat, seats_max: u16) -> Option<usize> {
        let is_busy = |index| self.slots.iter().any(|slot| slot.state != SlotState::Idle && slot.seat == index);
        let left = (0..self.seats.len()).find(|&index| !self.seats[index].is_open && !is_busy(index));
        match left {
            Some(index) => self.seats[index] = seat,
            None if self.seats.len() < usize::from(seats_max) => self.seats.push(seat),
            None => return None,
        }
        left.or(Some(self.seats.len() - 1))
    }

    pub(crate) fn seat(&mut self, seat: usize) -> &mut Seat {
        &mut self.seats[seat]
    }

    /// What the controller did wrong on this queue.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Lets the operations begin, once the controller knows the queue.
    pub(crate) fn set_live(&mut self) {
        assert!(!matches!(self.state, QueueState::Failed(_)), "a failed queue stays failed");
        self.state = QueueState::Live;
    }

    /// Gives the controller nothing more.
    pub(crate) fn hold(&mut self) {
        if self.state == QueueState::Live {
            self.state = QueueState::Halted;
        }
    }

    /// The controller has paused: it is given nothing, and what it has takes no time.
    pub(crate) fn pause(&mut self, now: Nanos) {
        if self.state == QueueState::Live {
            // What it has finished before counts.
            self.reap(now);
            self.paused_at = Some(now);
            self.hold();
        }
    }

    /// The controller goes on, if it had paused.
    pub(crate) fn resume(&mut self, now: Nanos) {
        let Some(since) = self.paused_at.take() else { return };
        for slot in &mut self.slots {
            if let SlotState::Flying(deadline) = &mut slot.state {
                deadline.postpone(now.since(since));
            }
        }
        if self.state == QueueState::Halted && self.violation.is_none() {
            self.set_live();
        }
    }

    /// Takes one operation. The controller hears of it with the next [`Self::turn`].
    pub(crate) fn start(&mut self, seat: usize, request: Request, now: Nanos) {
        if let QueueState::Failed(kind) = self.state {
            let ended = request.end(&self.seats[seat].name, Err(kind));
            self.seats[seat].finished.push(ended);
            return;
        }
        if self.seats[seat].is_fenced && request.kind.changes() {
            let ended = request.end(&self.seats[seat].name, Err(DeviceErrorKind::Fenced));
            self.seats[seat].finished.push(ended);
            return;
        }
        let index = self.idle.pop().expect("seats have no more than their share");
        let slot = &mut self.slots[usize::from(index)];
        assert_eq!(slot.state, SlotState::Idle, "an idle slot");
        let lba_shift = self.seats[seat].lba_shift;
        (slot.seat, slot.token, slot.kind, slot.range) = (seat, request.token, request.kind, request.range);
        (slot.resubmits, slot.timed_out, slot.step, slot.is_flushing) = (0, false, 0, false);
        slot.left = (request.range.first << lba_shift, request.range.count << lba_shift);
        slot.targets = request.targets.into_iter().map(BlockBuf::into_device).collect();
        slot.sources = request.sources;
        if self.state == QueueState::Live {
            self.submit(usize::from(index), now);
        } else {
            self.wait(usize::from(index), now);
        }
    }

    fn wait(&mut self, index: usize, until: Nanos) {
        self.slots[index].state = SlotState::Waiting(until);
        self.waiting_count += 1;
    }

    /// Gives a slot's operation, or the next step of it, to the controller.
    fn submit(&mut self, index: usize, now: Nanos) {
        let mut entry = self.encode(index);
        let slot = &mut self.slots[index];
        slot.sequence = slot.sequence.wrapping_add(1);
        slot.state = SlotState::Flying(Deadline::new(now + self.patience.command));
        entry.command_id = U16::new(identifier(index, slot.sequence));
        self.rings.push(&entry);
    }

    fn encode(&mut self, index: usize) -> SubmissionEntry {
        let slot = &mut self.slots[index];
        let seat = &self.seats[slot.seat];
        let offset = index * LIST_BYTES;
        let list_address = self.lists.bus_address() + offset as u64;
        let (first, count) = (slot.range.first << seat.lba_shift, slot.range.count << seat.lba_shift);
        let transfer = |opcode, is_durable| {
            let count = u32::try_from(count).expect("a transfer has at most 2048 logical blocks");
            SubmissionEntry::transfer(opcode, seat.namespace, first, count, is_durable)
        };
        match slot.kind {
            Kind::Read => {
                let pages = slot.targets.iter().map(|block| bus_address(&self.maps, block.address()));
                name_data(transfer(io_opcode::READ, false), (&*self.lists, offset), pages, seat.has_sgls)
            }
            Kind::Write(_) if slot.is_flushing => SubmissionEntry::new(io_opcode::FLUSH, seat.namespace, [0; 6]),
            Kind::Write(persistence) => {
                let pages = slot.sources.iter().map(|block| bus_address(&self.maps, block.as_ptr()));
                let is_durable = persistence == Persistence::Durable && seat.has_write_cache && !seat.ignores_fua;
                name_data(transfer(io_opcode::WRITE, is_durable), (&*self.lists, offset), pages, seat.has_sgls)
            }
            Kind::Flush => SubmissionEntry::new(io_opcode::FLUSH, seat.namespace, [0; 6]),
            Kind::Discard => {
                slot.step = slot.left.1.min(seat.discard_lbas_max);
                let ranges = write_ranges(&*self.lists, offset, slot.left.0, slot.step);
                // Attribute: deallocate (AD).
                SubmissionEntry::new(io_opcode::DATASET, seat.namespace, [ranges - 1, 1 << 2, 0, 0, 0, 0])
                    .with_data([list_address, 0])
            }
            Kind::Zero => {
                slot.step = slot.left.1.min(seat.zero_lbas_max);
                let count = u32::try_from(slot.step).expect("bounded above");
                SubmissionEntry::transfer(io_opcode::WRITE_ZEROES, seat.namespace, slot.left.0, count, false)
            }
            Kind::Reserve(reservation) => {
                let (entry, keys) = reservation.encode(seat.namespace);
                self.lists.clear(offset, LIST_BYTES);
                self.lists.write(offset, keys.map(u64::to_le_bytes).as_bytes());
                entry.with_data([list_address, 0])
            }
        }
    }

    /// Tells the controller what is new, takes what it has finished, gives it what waits. Bounded by the queue's size.
    pub(crate) fn turn(&mut self, now: Nanos) {
        if self.state == QueueState::Live {
            self.rings.tell();
            self.reap(now);
            if self.waiting_count > 0 {
                self.submit_waiting(now);
            }
            self.rings.tell();
        } else if !self.orphans.is_empty() {
            self.replace_orphans();
        }
    }

    fn submit_waiting(&mut self, now: Nanos) {
        for index in 0..self.slots.len() {
            if matches!(self.slots[index].state, SlotState::Waiting(until) if until <= now) {
                self.waiting_count -= 1;
                self.submit(index, now);
            }
        }
    }

    fn reap(&mut self, now: Nanos) {
        for _ in 0..self.rings.entries() {
            let entry = match self.rings.pop() {
                Ok(Some(entry)) => entry,
                Ok(None) => return,
                Err(violation) => return self.halt(violation),
            };
            let id = entry.command_id.get();
            let index = usize::from(id & (SLOTS_MAX - 1));
            let is_known = self.slots.get(index).is_some_and(|slot| {
                matches!(slot.state, SlotState::Flying(_)) && identifier(index, slot.sequence) == id
            });
            if !is_known {
                return self.halt(Violation::UnknownCommand);
            }
            self.complete(index, entry.status(), now);
        }
    }

    fn halt(&mut self, violation: Violation) {
        self.violation = Some(violation);
        self.state = QueueState::Halted;
    }

    fn complete(&mut self, index: usize, status: Status, now: Nanos) {
        let slot = &mut self.slots[index];
        if status.is_success() {
            if matches!(slot.kind, Kind::Discard | Kind::Zero) {
                slot.left = (slot.left.0 + slot.step, slot.left.1 - slot.step);
                if slot.left.1 > 0 {
                    return self.wait(index, now);
                }
            }
            let seat = &self.seats[slot.seat];
            let must_flush = seat.has_write_cache && seat.ignores_fua && !slot.is_flushing;
            if slot.kind == Kind::Write(Persistence::Durable) && must_flush {
                slot.is_flushing = true;
                return self.wait(index, now);
            }
            if slot.kind == Kind::Reserve(Reservation::Report) {
                let mut bytes = [0; LIST_BYTES];
                self.lists.read(index * LIST_BYTES, &mut bytes);
                self.seats[slot.seat].report = Some(ReservationReport::decode(&bytes));
            }
            return self.finish(index, Ok(()));
        }
        let seat = &mut self.seats[slot.seat];
        let is_preempted = Status(status.code()) == Status::PREEMPTED;
        let is_fenced = is_preempted || Status(status.code()) == Status::RESERVED;
        seat.is_fenced |= is_preempted || (is_fenced && slot.kind.changes());
        if status.code() == Status::TOO_LARGE.code() && slot.kind == Kind::Discard && slot.step > DISCARD_LBAS_MIN {
            seat.discard_lbas_max = (slot.step / 8).next_multiple_of(DISCARD_LBAS_MIN);
            return self.wait(index, now);
        }
        if status.is_transient() && slot.resubmits < RESUBMITS_MAX {
            slot.resubmits += 1;
            return self.wait(index, now + RETRY_DELAY);
        }
        let kind = if slot.timed_out && !is_fenced { DeviceErrorKind::Os(libc::ETIMEDOUT) } else { error_kind(status) };
        self.finish(index, Err(kind));
    }

    /// Ends a slot's operation. Its blocks are not the device's any more.
    fn finish(&mut self, index: usize, result: Result<(), DeviceErrorKind>) {
        let targets = std::mem::take(&mut self.slots[index].targets);
        let targets = targets.into_iter().map(DeviceBlock::take_back).collect();
        self.slots[index].sources.clear();
        self.finish_with(index, result, targets);
    }

    fn finish_with(&mut self, index: usize, result: Result<(), DeviceErrorKind>, targets: Vec<BlockBuf>) {
        let slot = &mut self.slots[index];
        slot.state = SlotState::Idle;
        let seat = &mut self.seats[slot.seat];
        if seat.is_open {
            let result = result.map_err(|kind| device_error(&seat.name, slot.kind, slot.range, kind));
            seat.finished.push(BlockCompletion { token: slot.token, result, blocks: targets });
        }
        self.idle.push(u16::try_from(index).expect("a slot's number"));
    }

    /// For how long the controller has had the oldest of its commands.
    pub(crate) fn oldest(&self, now: Nanos) -> Duration {
        let age = |slot: &Slot| match slot.state {
            SlotState::Flying(deadline) => {
                let all = self.patience.command + if slot.timed_out { self.patience.abort } else { Duration::ZERO };
                all.saturating_sub(deadline.left(now))
            }
            SlotState::Idle | SlotState::Waiting(_) => Duration::ZERO,
        };
        self.slots.iter().map(age).max().unwrap_or_default()
    }

    /// Finds commands that take too long: those to abort go to `aborts`. Whether one was not even aborted in time.
    pub(crate) fn watch(&mut self, now: Nanos, aborts: &mut Vec<[u16; 2]>) -> bool {
        let mut is_hopeless = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let SlotState::Flying(deadline) = &mut slot.state
                && deadline.is_over(now)
            {
                is_hopeless |= slot.timed_out;
                slot.timed_out = true;
                deadline.set(now + self.patience.abort);
                aborts.push([self.rings.id(), identifier(index, slot.sequence)]);
            }
        }
        is_hopeless
    }

    /// After a reset, known to have stopped the controller: what it finished before counts, the rest begins again when the queue is live. What has come since
    /// a pause is not counted: whether it lasts was up to a firmware that nobody knows.
    pub(crate) fn rewind(&mut self, now: Nanos) {
        if self.violation.is_none() && self.paused_at.is_none() {
            self.reap(now);
        }
        self.state = QueueState::Halted;
        (self.violation, self.paused_at) = (None, None);
        self.rings.reset();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            // What a reset does to a cache is not known: who waits for a flush is written again, too.
            slot.is_flushing = false;
            if matches!(slot.state, SlotState::Flying(_)) {
                slot.resubmits += 1;
                if slot.timed_out {
                    self.finish(index, Err(DeviceErrorKind::Os(libc::ETIMEDOUT)));
                } else if slot.resubmits > RESUBMITS_MAX || matches!(slot.kind, Kind::Reserve(_)) {
                    self.finish(index, Err(DeviceErrorKind::Os(libc::EIO)));
                } else {
                    self.wait(index, now);
                }
            }
        }
    }

    /// Ends every operation with `kind`, and every later one. Unless the controller `has_stopped` it keeps what it has.
    pub(crate) fn fail(&mut self, kind: DeviceErrorKind, has_stopped: bool) {
        self.state = QueueState::Failed(kind);
        for index in 0..self.slots.len() {
            match self.slots[index].state {
                SlotState::Idle => {}
                SlotState::Flying(_) if !has_stopped => self.orphans.push_back(index),
                SlotState::Waiting(_) | SlotState::Flying(_) => self.finish(index, Err(kind)),
            }
        }
        self.waiting_count = 0;
        self.replace_orphans();
    }

    /// Ends operations whose blocks are lost, as far as the pool has others for them.
    fn replace_orphans(&mut self) {
        let QueueState::Failed(kind) = self.state else { return };
        while let Some(&index) = self.orphans.front() {
            let slot = &mut self.slots[index];
            let mut targets = Vec::with_capacity(slot.targets.len());
            while targets.len() < slot.targets.len() {
                let Some(block) = self.maps.iter().find_map(|map| map.pool().allocate_kept()) else { return };
                targets.push(block);
            }
            // The controller may still write to the targets, and read the sources: neither may be used again.
            slot.targets.clear();
            std::mem::forget(std::mem::take(&mut slot.sources));
            self.orphans.pop_front();
            self.finish_with(index, Err(kind), targets);
        }
    }

    /// Whether the queue's one disk, which has been polled, can do nothing until the controller signals.
    pub(crate) fn rest(&self) -> Rest {
        if self.seat_count() != 1 || self.violation.is_some() || self.rings.has_answer() {
            return Rest::No;
        }
        if self.seats.iter().any(|seat| !seat.finished.is_empty()) {
            return Rest::No;
        }
        if self.state == QueueState::Live && self.waiting_count == 0 { Rest::UntilSignalled } else { Rest::Soon }
    }

    /// Disks that use the queue.
    pub(crate) fn seat_count(&self) -> usize {
        self.seats.iter().filter(|seat| seat.is_open).count()
    }
}

fn identifier(index: usize, sequence: u16) -> u16 {
    u16::try_from(index).expect("a slot's number has ten bits") | sequence << SLOT_BITS
}

/// The command with its data in `pages`, by whichever list is shorter, in the memory of its slot.
fn name_data(
    entry: SubmissionEntry,
    (lists, offset): (&impl DmaMemory, usize),
    pages: impl ExactSizeIterator<Item = u64> + Clone,
    has_sgls: bool,
) -> SubmissionEntry {
    match has_sgls.then(|| sgl::describe(lists, offset, pages.clone())).flatten() {
        Some(descriptor) => entry.with_sgl(descriptor),
        None => entry.with_data(prp::describe(lists, offset, pages)),
    }
}

fn bus_address(maps: &[PoolMap], address: *const u8) -> u64 {
    let found = maps.iter().find_map(|map| map.bus_address(address));
    found.expect("blocks come from a pool that the controller was given")
}

/// Writes the ranges of a dataset command; returns their number.
fn write_ranges(memory: &impl DmaMemory, offset: usize, first: u64, count: u64) -> u32 {
    let mut ranges = 0;
    let mut done = 0;
    while done < count {
        let part = (count - done).min(RANGE_LBAS_MAX);
        let range = DeallocateRange {
            attributes: 0.into(),
            count: u32::try_from(part).expect("bounded above").into(),
            first: (first + done).into(),
        };
        let place = usize::try_from(ranges).expect("few ranges") * size_of::<DeallocateRange>();
        memory.write(offset + place, range.as_bytes());
        done += part;
        ranges += 1;
    }
    ranges
}

/// What a status means to the caller.
fn error_kind(status: Status) -> DeviceErrorKind {
    match Status(status.code()) {
        Status::OUT_OF_RANGE => DeviceErrorKind::Beyond,
        Status::NO_SPACE => DeviceErrorKind::NoSpace,
        Status::INVALID_NAMESPACE => DeviceErrorKind::Gone,
        Status::RESERVED | Status::PREEMPTED => DeviceErrorKind::Fenced,
        Status::WRITE_PROTECTED => DeviceErrorKind::Os(libc::EROFS),
        Status::INVALID_OPCODE => DeviceErrorKind::Os(libc::EOPNOTSUPP),
        _ if status.is_medium() => DeviceErrorKind::Medium,
        _ => DeviceErrorKind::Os(libc::EIO),
    }
}
