//! A processor that remembers what a power cut would take, and the log's conformance suite on it.
//!
//! The stores are made, so a read sees the newest bytes as it would on a machine. Beside them each line keeps what it held when it was last durable and
//! everything that was stored since. A cut puts back what the machine could have lost: each line by lot, and of a line each aligned 8 bytes by lot.
//!
//! | instruction | memory controller is safe (ADR) | caches are safe (eADR) |
//! |---|---|---|
//! | store past the cache | the next fence makes it durable | the same |
//! | store into the cache | nothing does; it may have been evicted at any time | the next fence makes it durable |
//! | write-back | the next fence makes what the line holds durable | the same |

use crate::{
    DurabilityClass, Instructions, LINE_BYTES, Line, LogMemory, PmemFile, PmemLog, Stores, can_write_back,
    instructions::Native,
};
use std::{cell::RefCell, collections::BTreeMap, ptr::NonNull, rc::Rc};
use twinlog_device::{
    Prng,
    conformance::{self, LogHarness},
};

const REGION_BYTES: u64 = 128 << 10;
const WORD_BYTES: usize = 8;

/// A line that is not durable as it stands in memory.
struct Versions {
    /// The durable one first, the newest last.
    content: Vec<Line>,
    /// The one that the next fence makes durable.
    accepted: usize,
}

struct Shadow {
    /// Where the mapping begins.
    base: usize,
    /// By distance from there.
    lines: BTreeMap<usize, Versions>,
    caches_are_safe: bool,
    prng: Prng,
}

impl Shadow {
    fn place(&self, target: NonNull<u8>) -> usize {
        let place = target.as_ptr().addr() - self.base;
        assert!(place.is_multiple_of(LINE_BYTES), "instructions work on whole lines");
        place
    }

    fn stored(&mut self, target: NonNull<u8>, line: &Line, accepted: bool) {
        let place = self.place(target);
        // SAFETY: a line of the mapping, valid and aligned (promise of the caller of the instruction).
        let before = unsafe { target.as_ptr().cast::<Line>().read() };
        let versions = self.lines.entry(place).or_insert_with(|| Versions { content: vec![before], accepted: 0 });
        versions.content.push(*line);
        if accepted {
            versions.accepted = versions.content.len() - 1;
        }
    }

    fn fence(&mut self) {
        for versions in self.lines.values_mut() {
            versions.content.drain(..std::mem::take(&mut versions.accepted));
        }
        self.lines.retain(|_, versions| versions.content.len() > 1);
    }

    /// The power goes: what `file`, whose mapping this is, holds afterwards.
    fn cut(&mut self, file: &PmemFile) {
        for (place, versions) in std::mem::take(&mut self.lines) {
            let newest = versions.content.len() as u64 - 1;
            let [mut lowest, mut highest] = [0, newest];
            match self.prng.below(3) {
                0 => highest = 0,
                1 => lowest = newest,
                _ => {}
            }
            let mut line = versions.content[0];
            for (index, word) in line.chunks_mut(WORD_BYTES).enumerate() {
                let version = usize::try_from(self.prng.between(lowest, highest)).expect("a few");
                word.copy_from_slice(&versions.content[version][index * WORD_BYTES..][..WORD_BYTES]);
            }
            let range = place as u64..(place + LINE_BYTES) as u64;
            // SAFETY: a line of the mapping (checked by `access`), into which nobody has a reference.
            file.0.access(&range, |target| unsafe { target.as_ptr().cast::<Line>().write(line) });
        }
    }
}

/// What is wrong with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// A persist without a fence.
    FenceForgotten,
    /// The fence before the write-backs that it is for.
    FenceTooEarly,
    /// No write-back at all.
    WriteBackForgotten,
    /// No write-back of the last line before a fence.
    LastLineForgotten,
    /// A line that is stored into the cache, as a copy's tail may be.
    TailInCache,
}

/// The instructions of a driver with a defect, on the shadow.
struct Defective {
    shadow: Rc<RefCell<Shadow>>,
    defect: Defect,
    /// Write-backs that come later than they should, or never.
    held: Vec<NonNull<u8>>,
}

impl Instructions for Defective {
    unsafe fn stream(&mut self, target: NonNull<u8>, line: &Line) {
        let is_tail = self.defect == Defect::TailInCache && target.as_ptr().addr() / LINE_BYTES % 2 == 1;
        self.shadow.borrow_mut().stored(target, line, !is_tail);
        // SAFETY: the caller's promise is the same.
        unsafe { Native.stream(target, line) };
    }

    unsafe fn store(&mut self, target: NonNull<u8>, line: &Line) {
        let safe = self.shadow.borrow().caches_are_safe;
        self.shadow.borrow_mut().stored(target, line, safe);
        // SAFETY: the caller's promise is the same.
        unsafe { Native.store(target, line) };
    }

    unsafe fn write_back(&mut self, target: NonNull<u8>) {
        self.held.push(target);
        let mut shadow = self.shadow.borrow_mut();
        let leave = match self.defect {
            Defect::FenceTooEarly | Defect::WriteBackForgotten => return,
            Defect::LastLineForgotten => 1,
            _ => 0,
        };
        for target in self.held.drain(..self.held.len() - leave) {
            shadow.write_back(target);
        }
    }

    fn fence(&mut self) {
        let mut shadow = self.shadow.borrow_mut();
        if self.defect != Defect::FenceForgotten {
            shadow.fence();
        }
        for target in self.held.drain(..).filter(|_| self.defect == Defect::FenceTooEarly) {
            shadow.write_back(target);
        }
    }
}

impl Shadow {
    fn write_back(&mut self, target: NonNull<u8>) {
        let place = self.place(target);
        if let Some(versions) = self.lines.get_mut(&place) {
            versions.accepted = versions.content.len() - 1;
        }
    }
}

struct Harness {
    directory: tempfile::TempDir,
    file: Option<PmemFile>,
    log: Option<PmemLog<Defective>>,
    shadow: Rc<RefCell<Shadow>>,
    stores: Stores,
    defect: Defect,
}

impl Harness {
    fn new(stores: Stores, defect: Defect, seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        twinlog_file::create_log_file(&path, REGION_BYTES, |_| ()).expect("space");
        let caches_are_safe = stores == Stores::Cached;
        let shadow = Shadow { base: 0, lines: BTreeMap::new(), caches_are_safe, prng: Prng::new(seed) };
        let shadow = Rc::new(RefCell::new(shadow));
        let mut harness = Self { directory, file: None, log: None, shadow, stores, defect };
        harness.open();
        harness
    }

    fn open(&mut self) {
        (self.log, self.file) = (None, None);
        let file = PmemFile::open(&self.directory.path().join("log")).expect("nobody has it");
        self.shadow.borrow_mut().base = file.0.access(&(0..0), |base| base.as_ptr().addr());
        let instructions = Defective { shadow: self.shadow.clone(), defect: self.defect, held: Vec::new() };
        let mut log = PmemLog::with(&file, 0, REGION_BYTES, self.stores, instructions).expect("a region");
        // On the memory that the shadow stands for.
        log.info.durability = DurabilityClass::Durable;
        (self.log, self.file) = (Some(log), Some(file));
    }
}

impl LogHarness for Harness {
    type Log = PmemLog<Defective>;

    fn log(&mut self) -> &mut Self::Log {
        self.log.as_mut().expect("it is open")
    }

    fn turn(&mut self) {}

    fn reopen(&mut self) -> bool {
        // Caches outlive a process.
        self.open();
        true
    }

    fn power_cut(&mut self) -> bool {
        self.shadow.borrow_mut().cut(self.file.as_ref().expect("it is open"));
        self.open();
        true
    }
}

fn suite(stores: Stores, defect: Defect) {
    let mut seed = 0;
    conformance::log_memory(|| {
        seed += 1;
        Harness::new(stores, defect, seed)
    });
}

/// Many short lives: batches of any length at any place, a cut at any time, and then what was persisted must be there and the rest old or new.
fn lives(stores: Stores, defect: Defect) {
    let mut harness = Harness::new(stores, defect, 7);
    let mut prng = Prng::new(11);
    let unit = LINE_BYTES as u64;
    let mut model = vec![0_u8; usize::try_from(REGION_BYTES).expect("small")];
    for life in 1..=60_u8 {
        let mut pending = model.clone();
        for _ in 0..prng.below(6) {
            let length = unit * prng.between(1, 40);
            let mut offset = unit * prng.below((REGION_BYTES - length) / unit);
            for _ in 0..prng.between(1, 3) {
                let bytes = vec![life; usize::try_from(length.min(REGION_BYTES - offset)).expect("small")];
                let place = usize::try_from(offset).expect("small");
                harness.log().store(offset, &bytes);
                pending[place..place + bytes.len()].copy_from_slice(&bytes);
                offset += bytes.len() as u64;
            }
            if prng.chance(2, 3) {
                harness.log().persist(twinlog_device::Token(0));
                harness.log().poll(&mut Vec::new());
                model.clone_from(&pending);
            }
        }
        harness.power_cut();
        harness.log().read(twinlog_device::Token(0), 0, model.len());
        let mut completions = Vec::new();
        harness.log().poll(&mut completions);
        let found = completions.pop().expect("a read").result.expect("readable");
        for (index, word) in found.chunks(WORD_BYTES).enumerate() {
            let range = index * WORD_BYTES..(index + 1) * WORD_BYTES;
            let whole = word == &model[range.clone()] || word == &pending[range];
            assert!(whole, "life {life}: persisted bytes survive a power cut, others are old or new: word {index}");
        }
        model = found;
    }
}

/// Both tests, where the processor has this way of storing.
fn all(stores: Stores, defect: Defect) {
    suite(stores, defect);
    lives(stores, defect);
}

#[test]
fn stores_past_the_cache_conform_and_survive_power_cuts() {
    all(Stores::NonTemporal, Defect::None);
}

#[test]
fn written_back_stores_conform_and_survive_power_cuts() {
    if can_write_back() {
        all(Stores::WrittenBack, Defect::None);
    }
}

#[test]
fn cached_stores_conform_and_survive_power_cuts_where_caches_do() {
    all(Stores::Cached, Defect::None);
}

/// Each of the two tests finds a defect by itself.
fn is_found(stores: Stores, defect: Defect) {
    for test in [suite, lives] {
        let failed = std::panic::catch_unwind(|| test(stores, defect)).expect_err("a lost line is noticed");
        let words = failed.downcast_ref::<String>().expect("an assertion's words");
        assert!(words.contains("power cut"), "{words}");
    }
}

#[test]
fn a_forgotten_fence_is_found() {
    is_found(Stores::NonTemporal, Defect::FenceForgotten);
    is_found(Stores::Cached, Defect::FenceForgotten);
}

#[test]
fn a_line_left_in_the_cache_is_found() {
    is_found(Stores::NonTemporal, Defect::TailInCache);
}

#[test]
fn a_forgotten_write_back_is_found() {
    if can_write_back() {
        is_found(Stores::WrittenBack, Defect::WriteBackForgotten);
        is_found(Stores::WrittenBack, Defect::LastLineForgotten);
    }
}

#[test]
fn a_fence_before_the_write_back_is_found() {
    if can_write_back() {
        is_found(Stores::WrittenBack, Defect::FenceTooEarly);
        is_found(Stores::WrittenBack, Defect::FenceForgotten);
    }
}
