//! Simulated log memory: a region whose bytes survive a restart, and what a power cut does to the rest.
//!
//! The [`LogMedium`] is the hardware: it outlives the process under test. A [`SimLog`] is one opening of it: it implements
//! [`LogMemory`] and panics when the caller breaks the trait's contract, so that every test of the log tests its manners too.
//!
//! # Fault model
//!
//! 1. Stored bytes become durable when their persist's completion is polled, one durable step of the world for each unit of
//!    stores and one for the persist. When the world crashes in between, the units before that are durable and the persist never completes.
//! 2. At a power cut, or when the process ends, each unit of [`LogShape::atomic_bytes`] of everything younger is old or
//!    new: none, all, a prefix, a suffix, or each by itself by chance. Nothing lands in a world that has crashed.
//! 3. A persist can fail: its bytes are as after a power cut, and the region accepts nothing more until it is opened anew.
//! 4. Bits can flip at any time; reads can fail.
//! 5. A fault matters when it changes a byte that a reader could see, or a result.

use crate::{
    fault::Fault,
    world::{Agenda, SimWorld},
};
use std::{
    cell::{RefCell, RefMut},
    collections::{BTreeSet, VecDeque},
    fmt,
    rc::Rc,
};
use twinlog_device::{
    DeviceError, DeviceErrorKind, DurabilityClass, LogCompletion, LogInfo, LogMemory, Nanos, Prng, Token,
};

/// Operations in flight: as many persists as the contract asks for, and no more.
const OPERATIONS_MAX: usize = 8;
/// Reads begin and end on multiples of this.
const READ_ALIGN: u64 = 4096;
/// Longest read.
const READ_MAX: usize = 1 << 20;

/// What kind of log memory is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogShape {
    /// Bytes of the region: a multiple of 4096.
    pub size_bytes: u64,
    /// Stores begin and end on multiples of this.
    pub unit_bytes: u32,
    /// Unit that a power cut leaves whole; at most `unit_bytes`.
    pub atomic_bytes: u32,
    /// Bytes that may wait for their persist.
    pub pending_bytes_max: u64,
    /// Shortest and longest latency of an operation, in nanoseconds.
    pub latency_ns: (u64, u64),
    /// What it says of itself; what a crash does to it is the caller's choice ([`LogMedium::power_cut`], [`LogMedium::restore`]).
    pub durability: DurabilityClass,
}

impl LogShape {
    /// Persistent memory: cache lines are stored, words are whole, nothing waits.
    #[must_use]
    pub fn pmem(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            unit_bytes: 64,
            atomic_bytes: 8,
            pending_bytes_max: size_bytes,
            latency_ns: (0, 0),
            durability: DurabilityClass::Durable,
        }
    }

    /// A file on a disk: sectors are stored, sectors are whole, 20 to 200 microseconds.
    #[must_use]
    pub fn file(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            unit_bytes: 512,
            atomic_bytes: 512,
            pending_bytes_max: 4 << 20,
            latency_ns: (20_000, 200_000),
            durability: DurabilityClass::Durable,
        }
    }
}

#[derive(Debug)]
struct Store {
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Work {
    Persist(Vec<Store>),
    Read { offset: u64, length: usize },
}

#[derive(Debug)]
struct Operation {
    token: Token,
    due: Nanos,
    work: Work,
}

struct State {
    world: SimWorld,
    prng: Prng,
    shape: LogShape,
    info: LogInfo,
    bytes: Vec<u8>,
    /// Counts openings and their ends; a [`SimLog`] with another number is of a process that died.
    opening: u64,
    stored: Vec<Store>,
    /// In the order in which they were queued and will complete.
    operations: VecDeque<Operation>,
    /// Bytes of `stored` and of the persists among `operations`.
    pending_bytes: u64,
    failed: bool,
    /// The current opening was dropped by a process that may have gone on.
    is_let_go: bool,
    persist_fails_in: Option<u64>,
    read_fails_in: Option<u64>,
    /// Offsets of bytes that rotted and were not read since.
    rotted: BTreeSet<u64>,
}

/// The medium of one region. Clones are handles of the same medium.
#[derive(Clone)]
pub struct LogMedium(Rc<RefCell<State>>);

impl LogMedium {
    /// A region of zeroes.
    ///
    /// # Panics
    /// When the shape is none that log memory can have.
    #[must_use]
    pub fn new(world: &SimWorld, name: &str, shape: LogShape) -> Self {
        assert!(shape.size_bytes.is_multiple_of(READ_ALIGN), "the region has whole blocks");
        assert!(shape.unit_bytes.is_power_of_two() && (64..=4096).contains(&shape.unit_bytes), "the unit of stores");
        assert!(shape.atomic_bytes.is_power_of_two() && shape.atomic_bytes >= 8, "the unit of tears");
        assert!(shape.atomic_bytes <= shape.unit_bytes, "a store is not torn by the one beside it");
        assert!(shape.pending_bytes_max >= u64::from(shape.unit_bytes), "at least one unit may wait");
        assert!(shape.latency_ns.0 <= shape.latency_ns.1, "the shortest latency is not above the longest");
        let info = LogInfo {
            name: name.to_owned(),
            backend: "simulated",
            size_bytes: shape.size_bytes,
            unit_bytes: shape.unit_bytes,
            atomic_bytes: shape.atomic_bytes,
            durability: shape.durability,
            pending_bytes_max: shape.pending_bytes_max,
        };
        Self(Rc::new(RefCell::new(State {
            world: world.clone(),
            prng: world.fork_prng(),
            shape,
            info,
            bytes: vec![0; to_index(shape.size_bytes)],
            opening: 0,
            stored: Vec::new(),
            operations: VecDeque::new(),
            pending_bytes: 0,
            failed: false,
            is_let_go: false,
            persist_fails_in: None,
            read_fails_in: None,
            rotted: BTreeSet::new(),
        })))
    }

    /// Opens the region for the reactor of `agenda`. When its process lives on that had it open and let it go, what was in flight then has
    /// landed: log memory that is dropped waits for that.
    ///
    /// # Panics
    /// When it is open and has anything in flight.
    #[must_use]
    pub fn open(&self, agenda: &Agenda) -> SimLog {
        let mut state = self.0.borrow_mut();
        if std::mem::take(&mut state.is_let_go) {
            state.land();
        }
        assert!(state.operations.is_empty() && state.stored.is_empty(), "cut the power before opening again");
        state.opening += 1;
        state.failed = false;
        SimLog { info: state.info.clone(), opening: state.opening, agenda: agenda.clone(), state: self.0.clone() }
    }

    /// Ends the current opening, by loss of power or because its process ended: everything in flight is torn as `prng` says.
    pub fn power_cut(&self, prng: &mut Prng) {
        let mut state = self.0.borrow_mut();
        state.pending_bytes = 0;
        state.opening += 1;
        state.is_let_go = false;
        for operation in std::mem::take(&mut state.operations) {
            if let Work::Persist(stores) = operation.work {
                state.tear(&stores, prng);
            }
        }
        let stored = std::mem::take(&mut state.stored);
        state.tear(&stored, prng);
    }

    /// Ends the current opening as no real crash does: everything in flight lands whole.
    pub fn land_all(&self) {
        let mut state = self.0.borrow_mut();
        state.pending_bytes = 0;
        state.opening += 1;
        let operations = std::mem::take(&mut state.operations).into_iter();
        let persists = operations.filter_map(|operation| match operation.work {
            Work::Persist(stores) => Some(stores),
            Work::Read { .. } => None,
        });
        let mut stores: Vec<Store> = persists.flatten().collect();
        stores.append(&mut state.stored);
        for store in stores {
            state.write(store.offset, &store.bytes);
        }
    }

    /// The world that the medium is part of.
    #[must_use]
    pub fn world(&self) -> SimWorld {
        self.0.borrow().world.clone()
    }

    /// What kind it is.
    #[must_use]
    pub fn shape(&self) -> LogShape {
        self.0.borrow().shape
    }

    /// How long operations take that are queued from now on: shortest and longest, in nanoseconds.
    pub fn set_latency_ns(&self, shortest: u64, longest: u64) {
        assert!(shortest <= longest, "the shortest latency is not above the longest");
        self.0.borrow_mut().shape.latency_ns = (shortest, longest);
    }

    /// Flips the bits of `mask` in the byte at `offset_bytes`.
    pub fn rot(&self, offset_bytes: u64, mask: u8) {
        let mut state = self.0.borrow_mut();
        state.bytes[to_index(offset_bytes)] ^= mask;
        state.rotted.insert(offset_bytes);
        state.world.count_fired(Fault::LogRot);
    }

    /// Lets the persist fail that follows after `count` others.
    pub fn fail_persist_after(&self, count: u64) {
        self.0.borrow_mut().persist_fails_in = Some(count);
    }

    /// Lets the read fail that follows after `count` others.
    pub fn fail_read_after(&self, count: u64) {
        self.0.borrow_mut().read_fails_in = Some(count);
    }

    /// Whether a persist has failed since it was opened last: it stores nothing more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.borrow().failed
    }

    /// Forgets failures that were asked for and have not happened.
    pub fn repair(&self) {
        let mut state = self.0.borrow_mut();
        (state.persist_fails_in, state.read_fails_in) = (None, None);
    }

    /// What lies on the medium now.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    /// The first `length_bytes` of it, at most all.
    #[must_use]
    pub fn head(&self, length_bytes: u64) -> Vec<u8> {
        let state = self.0.borrow();
        state.bytes[..to_index(length_bytes.min(state.shape.size_bytes))].to_vec()
    }

    /// Replaces what lies on the medium, from the start.
    pub fn restore(&self, image: &[u8]) {
        self.0.borrow_mut().bytes[..image.len()].copy_from_slice(image);
    }

    /// Another medium of the same world, shape and bytes: for an experiment that leaves this one alone.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.0.borrow();
        let copy = Self::new(&state.world, &state.info.name, state.shape);
        copy.restore(&state.bytes);
        copy
    }
}

impl fmt::Debug for LogMedium {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LogMedium({})", self.0.borrow().info.name)
    }
}

impl State {
    fn error(&self, operation: &'static str, offset: u64, length: u64, kind: DeviceErrorKind) -> DeviceError {
        let (first, count) = (offset / READ_ALIGN, length.div_ceil(READ_ALIGN));
        DeviceError { device: self.info.name.clone(), operation, first, count, kind }
    }

    fn queue(&mut self, token: Token, work: Work) -> Nanos {
        let (shortest, longest) = self.shape.latency_ns;
        let due = self.world.now().0 + self.prng.between(shortest, longest);
        let due = Nanos(self.operations.back().map_or(due, |last| due.max(last.due.0)));
        self.operations.push_back(Operation { token, due, work });
        due
    }

    /// The next operation that is due; `None` when there is none, or when the world crashes.
    fn next_completion(&mut self) -> Option<LogCompletion> {
        if self.operations.front()?.due > self.world.now() || self.world.crashed() {
            return None;
        }
        let operation = self.operations.pop_front()?;
        let token = operation.token;
        let result = match operation.work {
            Work::Persist(stores) => match self.end_persist(&stores) {
                Some(result) => result.map(|()| Vec::new()),
                None => {
                    // Its process never hears of it; nothing lands any more.
                    return None;
                }
            },
            Work::Read { offset, length } => self.finish_read(offset, length),
        };
        Some(LogCompletion { token, result })
    }

    fn end_persist(&mut self, stores: &[Store]) -> Option<Result<(), DeviceError>> {
        self.pending_bytes -= stores.iter().map(|store| store.bytes.len() as u64).sum::<u64>();
        self.finish_persist(stores)
    }

    /// `None` when the world crashes on the way.
    fn finish_persist(&mut self, stores: &[Store]) -> Option<Result<(), DeviceError>> {
        let offset = stores.first().map_or(0, |store| store.offset);
        let length = stores.iter().map(|store| store.bytes.len() as u64).sum();
        if self.failed {
            return Some(Err(self.error("write", offset, length, DeviceErrorKind::Gone)));
        }
        if count_down(&mut self.persist_fails_in) {
            self.failed = true;
            self.world.count_fired(Fault::LogPersistError);
            self.world.count_mattered(Fault::LogPersistError);
            let mut prng = self.prng.fork();
            self.tear(stores, &mut prng);
            return Some(Err(self.error("write", offset, length, DeviceErrorKind::Medium)));
        }
        let unit = to_index(u64::from(self.info.unit_bytes));
        for store in stores {
            for (part, offset) in store.bytes.chunks(unit).zip((store.offset..).step_by(unit)) {
                if self.world.durable_steps(1) == 0 {
                    return None;
                }
                self.write(offset, part);
            }
        }
        (self.world.durable_steps(1) == 1).then_some(Ok(()))
    }

    fn finish_read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DeviceError> {
        if count_down(&mut self.read_fails_in) {
            self.world.count_fired(Fault::LogReadError);
            self.world.count_mattered(Fault::LogReadError);
            return Err(self.error("read", offset, length as u64, DeviceErrorKind::Medium));
        }
        if self.failed {
            return Err(self.error("read", offset, length as u64, DeviceErrorKind::Gone));
        }
        let seen: Vec<u64> = self.rotted.range(offset..offset + length as u64).copied().collect();
        for offset in seen {
            self.rotted.remove(&offset);
            self.world.count_mattered(Fault::LogRot);
        }
        let start = to_index(offset);
        Ok(self.bytes[start..start + length].to_vec())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let start = to_index(offset);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        if !self.rotted.is_empty() {
            self.rotted.retain(|at| !(offset..offset + bytes.len() as u64).contains(at));
        }
    }

    /// Lets everything in flight end; what no persist has covered lands or not.
    fn land(&mut self) {
        self.pending_bytes = 0;
        for operation in std::mem::take(&mut self.operations) {
            if let Work::Persist(stores) = operation.work {
                // A failure is nobody's: who would have heard it has gone.
                let _unheard = self.finish_persist(&stores);
            }
        }
        let (stored, mut prng) = (std::mem::take(&mut self.stored), self.prng.fork());
        self.tear(&stored, &mut prng);
    }

    /// Leaves each atomic unit of `stores` old or new.
    fn tear(&mut self, stores: &[Store], prng: &mut Prng) {
        let atomic = to_index(u64::from(self.info.atomic_bytes));
        let units: usize = stores.iter().map(|store| store.bytes.len() / atomic).sum();
        if units == 0 {
            return;
        }
        let (style, cut) = (prng.below(5), prng.below(units as u64 + 1));
        let (mut lost, mut kept) = (false, false);
        let mut index = 0;
        for store in stores {
            for (part, offset) in store.bytes.chunks(atomic).zip((store.offset..).step_by(atomic)) {
                let new = match style {
                    0 => false,
                    1 => true,
                    2 => index < cut,
                    3 => index >= cut,
                    _ => prng.chance(1, 2),
                };
                index += 1;
                let start = to_index(offset);
                if self.bytes[start..start + atomic] != *part {
                    if new && self.world.durable_steps(1) == 1 {
                        self.write(offset, part);
                        kept = true;
                    } else {
                        lost = true;
                    }
                }
            }
        }
        let faults = [(Fault::LogLost, lost), (Fault::LogUnanswered, kept), (Fault::LogTorn, lost && kept)];
        for (fault, _) in faults.into_iter().filter(|&(_, happened)| happened) {
            self.world.count_fired(fault);
            self.world.count_mattered(fault);
        }
    }
}

/// One opening of a [`LogMedium`]. After a power cut nothing completes any more.
pub struct SimLog {
    info: LogInfo,
    opening: u64,
    agenda: Agenda,
    state: Rc<RefCell<State>>,
}

impl SimLog {
    fn live(&self) -> RefMut<'_, State> {
        let state = self.state.borrow_mut();
        assert_eq!(state.opening, self.opening, "this opening has ended");
        state
    }

    fn queue(&self, token: Token, work: Work) {
        assert!(self.room() > 0, "the caller asks for room first");
        let due = self.live().queue(token, work);
        self.agenda.at(due);
    }
}

impl LogMemory for SimLog {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        let unit = u64::from(self.info.unit_bytes);
        self.info.pending_bytes_max.saturating_sub(self.live().pending_bytes) / unit * unit
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let (unit, length) = (u64::from(self.info.unit_bytes), bytes.len() as u64);
        assert!(length > 0 && length.is_multiple_of(unit), "a store has whole units, not {length} bytes");
        assert!(offset_bytes.is_multiple_of(unit), "a store begins on a unit, not at {offset_bytes}");
        assert!(offset_bytes + length <= self.info.size_bytes, "a store ends inside the region");
        assert!(length <= self.room_bytes(), "the caller asks for room first");
        let mut state = self.live();
        if let Some(last) = state.stored.last() {
            assert_eq!(last.offset + last.bytes.len() as u64, offset_bytes, "stores between persists are contiguous");
        }
        state.pending_bytes += length;
        state.stored.push(Store { offset: offset_bytes, bytes: bytes.to_vec() });
    }

    fn persist(&mut self, token: Token) {
        let stores = std::mem::take(&mut self.live().stored);
        self.queue(token, Work::Persist(stores));
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.live().operations.len()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let length = length_bytes as u64;
        assert!(
            offset_bytes.is_multiple_of(READ_ALIGN) && length.is_multiple_of(READ_ALIGN),
            "reads have whole blocks"
        );
        assert!(length_bytes > 0 && length_bytes <= READ_MAX, "reads have 4096 bytes to 1 MiB");
        assert!(offset_bytes + length <= self.info.size_bytes, "a read ends inside the region");
        self.queue(token, Work::Read { offset: offset_bytes, length: length_bytes });
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        let mut state = self.state.borrow_mut();
        if state.opening == self.opening {
            while let Some(completion) = state.next_completion() {
                completions.push(completion);
            }
        }
    }
}

impl Drop for SimLog {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.is_let_go |= state.opening == self.opening;
    }
}

impl fmt::Debug for SimLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SimLog({}, opening {})", self.info.name, self.opening)
    }
}

/// Whether the fault fires now.
fn count_down(counter: &mut Option<u64>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn to_index(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}
