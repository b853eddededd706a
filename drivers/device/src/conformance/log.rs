//! The contracts of [`LogMemory`].

use super::{TURNS_MAX, pattern};
use crate::{DurabilityClass, LogCompletion, LogMemory, Prng, Token};

/// Offset and length granularity of reads, in bytes.
const READ_BYTES: usize = 4096;

/// Largest read, in bytes.
const READ_BYTES_MAX: usize = 1 << 20;

/// Persists that every log memory takes at the same time.
const PERSISTS_MAX: usize = 8;

/// What a driver's test gives the log suite: one region of 64 KiB to 16 MiB, whose content the suite overwrites.
pub trait LogHarness {
    /// The driver's log memory.
    type Log: LogMemory;

    /// The open region.
    fn log(&mut self) -> &mut Self::Log;

    /// One turn of the loop: hands what is queued to the machine, and waits a short time (milliseconds, or until the next event in
    /// virtual time) for something to finish.
    fn turn(&mut self);

    /// Closes the region, as the end of the process would, and opens it again. False when the content is lost with the process.
    fn reopen(&mut self) -> bool;

    /// Cuts the region's power and opens it again; false when this harness cannot do that.
    fn power_cut(&mut self) -> bool {
        false
    }

    /// Lets the next persist fail; false when this harness cannot do that.
    fn fail_next_persist(&mut self) -> bool {
        false
    }
}

/// Checks every contract of a log memory.
///
/// # Panics
/// When a contract is broken, with its words.
pub fn log_memory<H: LogHarness>(mut make: impl FnMut() -> H) {
    let parts: [fn(&mut Driver<H>); 10] = [
        info_is_sane_and_constant,
        persisted_bytes_are_read,
        persists_complete_in_order,
        the_pending_bound_holds,
        both_ends_of_the_region_work,
        reads_of_every_size_work,
        laps_agree_with_a_model,
        persisted_bytes_survive,
        a_power_cut_leaves_units_old_or_new,
        a_failed_persist_ends_everything,
    ];
    for part in parts {
        let mut harness = make();
        part(&mut Driver { harness: &mut harness, tokens: 0 });
    }
}

/// Queues persists and reads until one has no room; the caller's test expects the panic.
pub fn log_memory_overfilled<H: LogHarness>(harness: &mut H) {
    for token in 0..=harness.log().room() as u64 {
        harness.log().read(Token(token), 0, READ_BYTES);
    }
}

/// The suite's hand on a harness.
struct Driver<'a, H> {
    harness: &'a mut H,
    tokens: u64,
}

impl<H: LogHarness> Driver<'_, H> {
    fn log(&mut self) -> &mut H::Log {
        self.harness.log()
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    fn unit(&mut self) -> usize {
        self.log().info().unit_bytes as usize
    }

    fn size(&mut self) -> usize {
        usize::try_from(self.log().info().size_bytes).expect("a region fits the address space")
    }

    /// Turns until `count` operations have completed, and proves that no further one does.
    fn collect(&mut self, count: usize) -> Vec<LogCompletion> {
        let mut completions = Vec::new();
        let mut idle_turns = 0;
        while completions.len() < count {
            let before = completions.len();
            self.harness.turn();
            self.log().poll(&mut completions);
            idle_turns = if completions.len() == before { idle_turns + 1 } else { 0 };
            assert!(idle_turns < TURNS_MAX, "every operation completes: {before} of {count} did");
        }
        self.harness.turn();
        self.log().poll(&mut completions);
        assert_eq!(completions.len(), count, "an operation completes once");
        completions
    }

    fn one(&mut self) -> LogCompletion {
        self.collect(1).pop().expect("one was collected")
    }

    fn store(&mut self, offset: usize, length: usize, tag: u64) {
        let mut bytes = vec![0; length];
        pattern::fill(&mut bytes, offset, tag);
        assert!(self.log().room_bytes() >= length as u64, "an idle region has room for what the suite stores");
        self.log().store(offset as u64, &bytes);
    }

    fn persist(&mut self) {
        let token = self.token();
        self.log().persist(token);
        let completion = self.one();
        assert_eq!(completion.token, token, "a completion carries its operation's token");
        assert_eq!(completion.result, Ok(Vec::new()), "a persist succeeds and returns no bytes");
    }

    fn read(&mut self, offset: usize, length: usize) -> Vec<u8> {
        let token = self.token();
        self.log().read(token, offset as u64, length);
        let completion = self.one();
        assert_eq!(completion.token, token, "a completion carries its operation's token");
        let bytes = completion.result.expect("a read within the region succeeds");
        assert_eq!(bytes.len(), length, "a read returns what was asked for");
        bytes
    }

    /// Reads the aligned range around `offset..offset + length` and returns exactly those bytes.
    fn read_exactly(&mut self, offset: usize, length: usize) -> Vec<u8> {
        let first = offset / READ_BYTES * READ_BYTES;
        let end = (offset + length).next_multiple_of(READ_BYTES);
        self.read(first, end - first)[offset - first..offset - first + length].to_vec()
    }

    #[track_caller]
    fn expect(&mut self, offset: usize, length: usize, tag: u64, contract: &str) {
        let bytes = self.read_exactly(offset, length);
        assert!(
            pattern::holds(&bytes, offset, tag),
            "{contract}: bytes {offset} to {} are not those of write {tag}",
            offset + length
        );
    }
}

fn info_is_sane_and_constant<H: LogHarness>(driver: &mut Driver<H>) {
    let info = driver.log().info().clone();
    assert!(!info.name.is_empty() && !info.backend.is_empty(), "a region has a name and a backend");
    assert!(info.size_bytes.is_multiple_of(4096), "a region is a multiple of 4096 bytes");
    assert!((64 << 10..=16 << 20).contains(&info.size_bytes), "the suite needs a region of 64 KiB to 16 MiB");
    assert!(info.unit_bytes.is_power_of_two() && (64..=4096).contains(&info.unit_bytes), "a unit has 64 to 4096 bytes");
    assert!(
        info.atomic_bytes.is_power_of_two() && (8..=4096).contains(&info.atomic_bytes),
        "8 to 4096 bytes are atomic"
    );
    assert!(info.pending_bytes_max >= 16 << 10, "a region takes at least 16 KiB before it asks to wait");
    assert!(driver.log().room() >= PERSISTS_MAX, "an idle region has room for eight persists");
    let unit = driver.unit();
    driver.store(0, unit, 1);
    driver.persist();
    assert_eq!(*driver.log().info(), info, "what a region is does not change");
}

fn persisted_bytes_are_read<H: LogHarness>(driver: &mut Driver<H>) {
    let unit = driver.unit();
    driver.store(0, unit, 1);
    driver.store(unit, 2 * unit, 2);
    driver.store(3 * unit, unit, 3);
    driver.persist();
    for (offset, length, tag) in [(0, unit, 1), (unit, 2 * unit, 2), (3 * unit, unit, 3)] {
        driver.expect(offset, length, tag, "a persist covers every store before it");
    }
    driver.store(unit, unit, 4);
    driver.persist();
    driver.expect(0, unit, 1, "a store leaves the bytes before it alone");
    driver.expect(unit, unit, 4, "a read returns the newest persisted bytes");
    driver.expect(2 * unit, unit, 2, "a store leaves the bytes after it alone");
}

fn persists_complete_in_order<H: LogHarness>(driver: &mut Driver<H>) {
    let unit = driver.unit();
    for round in 0..20 {
        let mut expected = Vec::new();
        for index in 0..PERSISTS_MAX {
            assert!(driver.log().room() > 0, "eight persists may be in flight");
            // Lengths differ, so that a later persist could be quicker than an earlier one. Eight of them stay below 16 KiB.
            let length = if unit < 1024 && index % 2 == 0 { 2 * unit } else { unit };
            if driver.log().room_bytes() >= length as u64 {
                driver.store(index * 2 * unit, length, round * 100 + index as u64);
            }
            // Extremes and repetitions of tokens come back like any other.
            let token = if index == 3 { Token(u64::MAX) } else { Token(index as u64 / 2) };
            driver.log().persist(token);
            expected.push(token);
        }
        let returned: Vec<_> = driver.collect(PERSISTS_MAX).iter().map(|completion| completion.token).collect();
        assert_eq!(returned, expected, "persists complete in the order in which they were queued, each once");
    }
}

fn the_pending_bound_holds<H: LogHarness>(driver: &mut Driver<H>) {
    let (unit, size) = (driver.unit(), driver.size());
    let idle = driver.log().room_bytes();
    let maximum = driver.log().info().pending_bytes_max;
    assert!((unit as u64..=maximum).contains(&idle), "an idle region has room, within its bound");
    let (mut offset, mut stored) = (0, 0);
    while driver.log().room_bytes() >= unit as u64 && offset + unit <= size {
        driver.store(offset, unit, 1);
        (offset, stored) = (offset + unit, stored + unit as u64);
        assert!(stored <= maximum, "no more may be pending than the bound says");
    }
    driver.persist();
    assert_eq!(driver.log().room_bytes(), idle, "a completed persist gives its room back");
    driver.expect(offset - unit, unit, 1, "the last store within the bound is persisted");
}

fn both_ends_of_the_region_work<H: LogHarness>(driver: &mut Driver<H>) {
    let (unit, size) = (driver.unit(), driver.size());
    driver.store(size - unit, unit, 1);
    driver.persist();
    driver.store(0, unit, 2);
    driver.persist();
    driver.expect(size - unit, unit, 1, "the last unit belongs to the region");
    driver.expect(0, unit, 2, "the first unit belongs to the region");
}

fn reads_of_every_size_work<H: LogHarness>(driver: &mut Driver<H>) {
    let size = driver.size();
    let part = 4096.max(driver.unit());
    for offset in (0..size).step_by(part) {
        driver.store(offset, part, offset as u64);
        driver.persist();
    }
    for length in [READ_BYTES, 3 * READ_BYTES, READ_BYTES_MAX.min(size)] {
        let offset = size - length;
        for (index, bytes) in driver.read(offset, length).chunks(part).enumerate() {
            let place = offset + index * part;
            let start = place / part * part;
            assert!(pattern::holds(bytes, place, start as u64), "a read of {length} bytes returns what was persisted");
        }
    }
}

fn laps_agree_with_a_model<H: LogHarness>(driver: &mut Driver<H>) {
    let (unit, size) = (driver.unit(), driver.size().min(128 << 10));
    let mut prng = Prng::new(0x106);
    let mut model: Vec<Option<u64>> = vec![None; size / unit];
    let (mut offset, mut tag) = (0, 0);
    for _ in 0..200 {
        for _ in 0..prng.between(1, 3) {
            let most = (8192 / unit).clamp(1, (size - offset) / unit) as u64;
            let length = usize::try_from(prng.between(1, most)).expect("small") * unit;
            if driver.log().room_bytes() < length as u64 {
                break;
            }
            tag += 1;
            driver.store(offset, length, tag);
            model[offset / unit..(offset + length) / unit].fill(Some(tag));
            offset += length;
            if offset == size {
                break;
            }
        }
        driver.persist();
        offset %= size;
        let index = usize::try_from(prng.below(model.len() as u64)).expect("small");
        if let Some(tag) = model[index] {
            driver.expect(index * unit, unit, tag, "a read returns the newest persisted bytes");
        }
    }
    for (index, tag) in model.into_iter().enumerate() {
        if let Some(tag) = tag {
            driver.expect(index * unit, unit, tag, "laps leave the newest bytes everywhere");
        }
    }
}

fn persisted_bytes_survive<H: LogHarness>(driver: &mut Driver<H>) {
    let unit = driver.unit();
    let durability = driver.log().info().durability;
    for round in 1..6 {
        driver.store(0, unit, round);
        driver.store(unit, unit, round + 10);
        driver.persist();
        let info = driver.log().info().clone();
        let survived = driver.harness.reopen();
        assert_eq!(survived, durability >= DurabilityClass::Process, "what survives is what the durability class says");
        assert_eq!(*driver.log().info(), info, "a region is the same when it is opened again");
        if survived {
            driver.expect(0, unit, round, "persisted bytes survive the process");
            driver.expect(unit, unit, round + 10, "persisted bytes survive the process");
        }
        if durability == DurabilityClass::Durable && driver.harness.power_cut() {
            driver.expect(0, unit, round, "persisted bytes survive a power cut");
            driver.expect(unit, unit, round + 10, "persisted bytes survive a power cut");
        }
    }
}

fn a_power_cut_leaves_units_old_or_new<H: LogHarness>(driver: &mut Driver<H>) {
    if driver.log().info().durability != DurabilityClass::Durable {
        return;
    }
    let unit = driver.unit();
    let atomic = driver.log().info().atomic_bytes as usize;
    for round in 1..40 {
        let (old, new) = (round * 10, round * 10 + 1);
        driver.store(0, 4 * unit, old);
        driver.persist();
        driver.store(unit, unit, new);
        let token = driver.token();
        driver.log().persist(token);
        driver.store(2 * unit, unit, new);
        if !driver.harness.power_cut() {
            driver.one();
            return;
        }
        driver.expect(0, unit, old, "a power cut leaves bytes alone that nothing was stored to");
        driver.expect(3 * unit, unit, old, "a power cut leaves bytes alone that nothing was stored to");
        let bytes = driver.read_exactly(unit, 2 * unit);
        for (index, part) in bytes.chunks(atomic).enumerate() {
            let offset = unit + index * atomic;
            let whole = pattern::holds(part, offset, old) || pattern::holds(part, offset, new);
            assert!(whole, "a power cut leaves each atomic unit old or new");
        }
    }
}

fn a_failed_persist_ends_everything<H: LogHarness>(driver: &mut Driver<H>) {
    let unit = driver.unit();
    driver.store(0, unit, 1);
    driver.persist();
    if !driver.harness.fail_next_persist() {
        return;
    }
    driver.store(unit, unit, 2);
    for _ in 0..2 {
        let token = driver.token();
        driver.log().persist(token);
    }
    for completion in driver.collect(2) {
        assert!(completion.result.is_err(), "after a failed persist every later one fails");
    }
    let token = driver.token();
    driver.log().read(token, 0, READ_BYTES);
    assert!(driver.one().result.is_err(), "after a failed persist reads fail too");
}
