//! Simulated log memory: a region whose bytes survive a restart, and what a power cut does to the rest.
//!
//! The [`LogMedium`] is the hardware: it outlives the process under test. A [`SimLog`] is one opening of it: it implements
//! [`LogMemory`] and panics when the caller breaks the trait's contract, so that every test of the log tests its manners too.
//!
//! # Fault model
//!
//! 1. Stored bytes become durable when their persist's completion was polled. At a power cut each unit of
//!    [`LogShape::atomic_bytes`] of everything younger is old or new: none, all, a prefix, a suffix, or each by itself by chance.
//! 2. A persist can fail: it leaves its bytes as a power cut would, and the region accepts nothing more until it is opened anew.
//! 3. Bits of the medium can flip at any time (`rot`); reads can fail.
//! 4. Every fault is counted when it *matters*: when it changes a byte that a reader could see, or a result.

use std::{cell::RefCell, collections::VecDeque, fmt, rc::Rc, time::Duration};
use twinlog_device::{
    DeviceError, DeviceErrorKind, DurabilityClass, LogCompletion, LogInfo, LogMemory, Nanos, Prng, Token,
};

/// Most persists in flight that the contract allows.
const PERSISTS_MAX: usize = 8;
/// Most operations in flight.
const OPERATIONS_MAX: usize = 16;
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
    /// Unit that a power cut leaves whole.
    pub atomic_bytes: u32,
    /// Bytes that may wait for their persist.
    pub pending_bytes_max: u64,
}

impl LogShape {
    /// Persistent memory: cache lines are stored, words are whole.
    #[must_use]
    pub fn pmem(size_bytes: u64) -> Self {
        Self { size_bytes, unit_bytes: 64, atomic_bytes: 8, pending_bytes_max: size_bytes }
    }

    /// A file on a disk: sectors are stored, sectors are whole.
    #[must_use]
    pub fn file(size_bytes: u64) -> Self {
        Self { size_bytes, unit_bytes: 512, atomic_bytes: 512, pending_bytes_max: 4 << 20 }
    }
}

/// Faults that mattered, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFaults {
    /// Units that a power cut or a failed persist kept old.
    pub lost_units: u64,
    /// Units, not durable, that a power cut or a failed persist made new.
    pub kept_units: u64,
    /// Power cuts that tore one persist: some units old, some new.
    pub torn_persists: u64,
    /// Bits that flipped.
    pub rotted_bits: u64,
    /// Persists that failed.
    pub failed_persists: u64,
    /// Reads that failed.
    pub failed_reads: u64,
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
    info: LogInfo,
    bytes: Vec<u8>,
    faults: LogFaults,
    now: Nanos,
    latency: Duration,
    /// Counts openings; an older [`SimLog`] is of a process that died.
    opening: u64,
    stored: Vec<Store>,
    operations: VecDeque<Operation>,
    failed: bool,
    persist_fails_in: Option<u64>,
    read_fails_in: Option<u64>,
}

/// The medium of one region. Clones are handles of the same medium.
#[derive(Clone)]
pub struct LogMedium(Rc<RefCell<State>>);

impl LogMedium {
    /// A region of zeroes.
    #[must_use]
    pub fn new(name: &str, shape: LogShape) -> Self {
        assert!(shape.size_bytes.is_multiple_of(READ_ALIGN), "the region has whole blocks");
        assert!(shape.unit_bytes.is_power_of_two() && (64..=4096).contains(&shape.unit_bytes), "the unit of stores");
        assert!(shape.atomic_bytes.is_power_of_two() && (8..=4096).contains(&shape.atomic_bytes), "the unit of tears");
        assert!(shape.pending_bytes_max >= u64::from(shape.unit_bytes), "at least one unit may wait");
        let info = LogInfo {
            name: name.to_owned(),
            backend: "memory",
            size_bytes: shape.size_bytes,
            unit_bytes: shape.unit_bytes,
            atomic_bytes: shape.atomic_bytes,
            durability: DurabilityClass::Durable,
            pending_bytes_max: shape.pending_bytes_max,
        };
        let bytes = vec![0; to_index(shape.size_bytes)];
        Self(Rc::new(RefCell::new(State {
            info,
            bytes,
            faults: LogFaults::default(),
            now: Nanos(0),
            latency: Duration::ZERO,
            opening: 0,
            stored: Vec::new(),
            operations: VecDeque::new(),
            failed: false,
            persist_fails_in: None,
            read_fails_in: None,
        })))
    }

    /// Opens the region, as a process does that has just started. The opening before it dies, as [`Self::power_cut`] must have seen
    /// to if it had anything in flight.
    #[must_use]
    pub fn open(&self) -> SimLog {
        let mut state = self.0.borrow_mut();
        assert!(state.operations.is_empty() && state.stored.is_empty(), "cut the power before opening again");
        state.opening += 1;
        state.failed = false;
        SimLog { info: state.info.clone(), opening: state.opening, state: self.0.clone() }
    }

    /// Ends the current opening: everything in flight is torn as `prng` says, and its handle is dead.
    pub fn power_cut(&self, prng: &mut Prng) {
        let mut state = self.0.borrow_mut();
        state.opening += 1;
        let operations = std::mem::take(&mut state.operations);
        for operation in operations {
            if let Work::Persist(stores) = operation.work {
                state.tear(&stores, prng);
            }
        }
        let stored = std::mem::take(&mut state.stored);
        state.tear(&stored, prng);
    }

    /// Moves the medium's clock; what is due by then completes at the next poll.
    pub fn set_now(&self, now: Nanos) {
        self.0.borrow_mut().now = now;
    }

    /// When the next operation completes.
    #[must_use]
    pub fn next_due(&self) -> Option<Nanos> {
        self.0.borrow().operations.iter().map(|operation| operation.due).min()
    }

    /// How long operations take that are queued from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.0.borrow_mut().latency = latency;
    }

    /// Flips the bits of `mask` in the byte at `offset_bytes` of the medium.
    pub fn rot(&self, offset_bytes: u64, mask: u8) {
        let mut state = self.0.borrow_mut();
        state.bytes[to_index(offset_bytes)] ^= mask;
        state.faults.rotted_bits += u64::from(mask.count_ones());
    }

    /// Lets the persist fail that follows after `count` others.
    pub fn fail_persist_after(&self, count: u64) {
        self.0.borrow_mut().persist_fails_in = Some(count);
    }

    /// Lets the read fail that follows after `count` others.
    pub fn fail_read_after(&self, count: u64) {
        self.0.borrow_mut().read_fails_in = Some(count);
    }

    /// What lies on the medium now.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    /// Replaces what lies on the medium, from the start.
    pub fn restore(&self, image: &[u8]) {
        self.0.borrow_mut().bytes[..image.len()].copy_from_slice(image);
    }

    /// Another medium with the same shape and bytes, for an experiment that leaves this one alone.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.0.borrow();
        let info = &state.info;
        let copy = Self::new(
            &info.name,
            LogShape {
                size_bytes: info.size_bytes,
                unit_bytes: info.unit_bytes,
                atomic_bytes: info.atomic_bytes,
                pending_bytes_max: info.pending_bytes_max,
            },
        );
        copy.restore(&state.bytes);
        copy
    }

    /// Faults so far.
    #[must_use]
    pub fn faults(&self) -> LogFaults {
        self.0.borrow().faults
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

    fn write(&mut self, store: &Store) {
        let start = to_index(store.offset);
        self.bytes[start..start + store.bytes.len()].copy_from_slice(&store.bytes);
    }

    /// Leaves each atomic unit of `stores` old or new.
    fn tear(&mut self, stores: &[Store], prng: &mut Prng) {
        let atomic = u64::from(self.info.atomic_bytes);
        let units: u64 = stores.iter().map(|store| store.bytes.len() as u64 / atomic).sum();
        if units == 0 {
            return;
        }
        let (style, cut) = (prng.below(5), prng.below(units + 1));
        let (mut lost, mut kept) = (0, 0);
        let mut index = 0;
        for store in stores {
            for (part, offset) in store.bytes.chunks(to_index(atomic)).zip((store.offset..).step_by(to_index(atomic))) {
                let new = match style {
                    0 => false,
                    1 => true,
                    2 => index < cut,
                    3 => index >= cut,
                    _ => prng.chance(1, 2),
                };
                index += 1;
                let start = to_index(offset);
                let target = &mut self.bytes[start..start + part.len()];
                if target != part {
                    if new {
                        target.copy_from_slice(part);
                        kept += 1;
                    } else {
                        lost += 1;
                    }
                }
            }
        }
        self.faults.lost_units += lost;
        self.faults.kept_units += kept;
        self.faults.torn_persists += u64::from(lost > 0 && kept > 0);
    }

    fn finish(&mut self, operation: Operation) -> LogCompletion {
        let token = operation.token;
        let result = match operation.work {
            Work::Persist(stores) => self.finish_persist(&stores).map(|()| Vec::new()),
            Work::Read { offset, length } => self.finish_read(offset, length),
        };
        LogCompletion { token, result }
    }

    fn finish_persist(&mut self, stores: &[Store]) -> Result<(), DeviceError> {
        let offset = stores.first().map_or(0, |store| store.offset);
        let length = stores.iter().map(|store| store.bytes.len() as u64).sum();
        if self.failed {
            return Err(self.error("write", offset, length, DeviceErrorKind::Gone));
        }
        if count_down(&mut self.persist_fails_in) {
            self.failed = true;
            self.faults.failed_persists += 1;
            self.tear(stores, &mut Prng::new(offset));
            return Err(self.error("write", offset, length, DeviceErrorKind::Medium));
        }
        for store in stores {
            self.write(store);
        }
        Ok(())
    }

    fn finish_read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DeviceError> {
        if self.failed || count_down(&mut self.read_fails_in) {
            self.faults.failed_reads += 1;
            let kind = if self.failed { DeviceErrorKind::Gone } else { DeviceErrorKind::Medium };
            return Err(self.error("read", offset, length as u64, kind));
        }
        let start = to_index(offset);
        Ok(self.bytes[start..start + length].to_vec())
    }

    fn pending_bytes(&self) -> u64 {
        let in_flight = self.operations.iter().filter_map(|operation| match &operation.work {
            Work::Persist(stores) => Some(stores),
            Work::Read { .. } => None,
        });
        let stores = self.stored.iter().chain(in_flight.flatten());
        stores.map(|store| store.bytes.len() as u64).sum()
    }

    fn persist_count(&self) -> usize {
        self.operations.iter().filter(|operation| matches!(operation.work, Work::Persist(_))).count()
    }
}

/// One opening of a [`LogMedium`].
pub struct SimLog {
    info: LogInfo,
    opening: u64,
    state: Rc<RefCell<State>>,
}

impl SimLog {
    fn live(&self) -> std::cell::RefMut<'_, State> {
        let state = self.state.borrow_mut();
        assert_eq!(state.opening, self.opening, "this opening ended with a power cut");
        state
    }

    fn queue(&self, token: Token, work: Work) {
        let mut state = self.live();
        assert!(state.operations.len() < OPERATIONS_MAX, "the caller asks for room first");
        let due = state.now + state.latency;
        state.operations.push_back(Operation { token, due, work });
    }
}

impl LogMemory for SimLog {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        let pending = self.live().pending_bytes();
        let unit = u64::from(self.info.unit_bytes);
        self.info.pending_bytes_max.saturating_sub(pending) / unit * unit
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
        state.stored.push(Store { offset: offset_bytes, bytes: bytes.to_vec() });
    }

    fn persist(&mut self, token: Token) {
        assert!(self.room() > 0, "the caller asks for room first");
        let stores = std::mem::take(&mut self.live().stored);
        self.queue(token, Work::Persist(stores));
    }

    fn room(&self) -> usize {
        let state = self.live();
        (OPERATIONS_MAX - state.operations.len()).min(PERSISTS_MAX - state.persist_count().min(PERSISTS_MAX))
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
        let mut state = self.live();
        // In order of arrival: persists must not overtake each other.
        while state.operations.front().is_some_and(|operation| operation.due <= state.now) {
            let operation = state.operations.pop_front().expect("seen above");
            completions.push(state.finish(operation));
        }
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
