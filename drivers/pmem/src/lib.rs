//! A change log in mapped persistent memory.
//!
//! The region is a part of a shared mapping: a DAX file or a device-DAX node. Stores go past the cache (non-temporal), a persist is
//! one fence: about a quarter of a microsecond for 4 KiB, and no system call.
//!
//! # What is durable
//!
//! | mapping | persistence domain | class | stores |
//! |---|---|---|---|
//! | device-DAX, or `MAP_SYNC` is accepted (DAX file), on x86-64 | memory controller (ADR) | durable | past the cache, fence |
//! | the same | processor caches (eADR) | durable | into the cache, long ones past it; fence |
//! | the same | unknown: DRAM that looks like persistent memory | process | past the cache, fence |
//! | a file on tmpfs or ramfs | | volatile | the same |
//! | any other file | | process: the page cache has it, the disk not yet | the same |
//!
//! On other processors the portable copy does not flush caches, so nothing is called durable there.
//!
//! # Invariants
//!
//! 1. The mapping is only reached through raw pointers, never as `&[u8]`: it is shared memory of a file.
//! 2. Every part of it lies inside the file; the file's lock keeps other processes that use this crate from cutting it short.
//! 3. What a persist covers has left the store buffers (`sfence`) before the persist is reported.
//! 4. Bytes that the system knows to be lost are never touched.
//! 5. Only a persist during which no memory was missing is reported as done: the mapping's note is looked at after the fence.
//!
//! # Failure cases
//!
//! | what | outcome |
//! |---|---|
//! | a read meets bytes that the system knew to be lost when the file was opened | that read fails (medium); nothing else does |
//! | a store meets such bytes | nothing is stored; this lane's persist fails, and all that comes later. Storing would not make the line good: the kernel clears poison when the device is told to (`ndctl clear-errors`, or a write of whole pages through a file system), and then the bytes around it are gone too |
//! | a line turns out to be lost (`SIGBUS`), or the file was cut short | the read or persist that met it fails, and everything later on this file, in every lane: `bus_error.rs` has put other memory in its place |

// Mapped memory is reached through raw pointers.
#![expect(unsafe_code, reason = "memory mapping")]

mod bus_error;
mod instructions;
mod mapping;
#[cfg(test)]
mod shadow;
mod system;

pub use instructions::{Instructions, LINE_BYTES, Line, Native, Stores, can_write_back, copy_past_caches};
pub use system::PersistenceDomain;

use mapping::Mapping;
use std::{io, ops::Range, path::Path, sync::Arc};
use twinlog_device::{DeviceError, DeviceErrorKind, DurabilityClass, LogCompletion, LogInfo, LogMemory, Token};
use twinlog_file::FileError;

/// Operations that may wait for the next poll: the persists that the contract of [`LogMemory::persist`] allows.
const OPERATIONS_MAX: usize = 8;

/// Longest read, by the contract of [`LogMemory::read`].
const READ_BYTES_MAX: usize = 1 << 20;

/// Longest store into the cache. 4 KiB take 0.63 of the time that they take past the cache, 16 KiB 1.1 times, 64 KiB 1.7 times as long
/// (docs/performance.md).
const CACHED_BYTES_MAX: usize = 8 << 10;

/// An open and mapped file, shared by the lanes in it.
#[derive(Clone)]
pub struct PmemFile(Arc<Mapping>);

impl PmemFile {
    /// Opens, locks and maps all of `path`, and reads from the system which of its bytes are lost.
    ///
    /// # Errors
    /// When another process has it, the kernel refuses to open or to map it, or says that bytes are lost and not which.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Ok(Self(Arc::new(Mapping::open(path)?)))
    }

    /// What the system says of the memory.
    #[must_use]
    pub fn domain(&self) -> PersistenceDomain {
        self.0.domain
    }

    /// What a persist survives.
    #[must_use]
    pub fn durability(&self) -> DurabilityClass {
        self.0.durability
    }

    /// Its size when it was opened.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.file.size_bytes()
    }

    /// Fills `bytes` with those at `offset_bytes`: for device-DAX nodes, which cannot be read in any other way.
    ///
    /// # Errors
    /// When they do not all lie in the file, whose size is a multiple of 8, or are lost.
    pub fn read_at(&self, offset_bytes: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes.checked_add(bytes.len() as u64).filter(|&end| end <= self.size_bytes());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?.next_multiple_of(8);
        let range = offset_bytes / 8 * 8..end;
        if !self.size_bytes().is_multiple_of(8) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let lost = || io::Error::from_raw_os_error(libc::EIO);
        if self.0.has_failed() || self.0.bad_in(&range).is_some() {
            return Err(lost());
        }
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        // SAFETY: the source is mapped for the length (checked by `access`) and 8-byte aligned.
        let words = self.0.access(&range, |source| unsafe { instructions::load(source, length) });
        if self.0.has_failed() {
            return Err(lost());
        }
        let skipped = usize::try_from(offset_bytes - range.start).expect("below eight");
        bytes.copy_from_slice(&words[skipped..skipped + bytes.len()]);
        Ok(())
    }

    /// The bytes that were lost when it was opened.
    #[must_use]
    pub fn bad_ranges(&self) -> &[Range<u64>] {
        &self.0.bad
    }
}

/// One lane in a region of a [`PmemFile`].
pub struct PmemLog<I = Native> {
    mapping: Arc<Mapping>,
    instructions: I,
    stores: Stores,
    /// Of the region in the file.
    offset_bytes: u64,
    info: LogInfo,
    finished: Vec<LogCompletion>,
    pending_bytes: u64,
    /// Why nothing more is accepted in this lane.
    failed: Option<DeviceErrorKind>,
}

impl PmemLog {
    /// Opens the file and the region in it. For several lanes in one file, open a [`PmemFile`] once and use [`Self::new`].
    ///
    /// # Errors
    /// As for [`PmemFile::open`] and [`Self::new`].
    pub fn open(path: &Path, offset_bytes: u64, length_bytes: u64) -> Result<Self, FileError> {
        Self::new(&PmemFile::open(path)?, offset_bytes, length_bytes)
    }

    /// A region of a mapped file; offset and length are multiples of 4096.
    ///
    /// # Errors
    /// When the region does not lie in the file.
    pub fn new(file: &PmemFile, offset_bytes: u64, length_bytes: u64) -> Result<Self, FileError> {
        Self::with(file, offset_bytes, length_bytes, file.0.stores, Native)
    }
}

impl<I: Instructions> PmemLog<I> {
    /// As [`PmemLog::new`], stored in another way, or by other instructions: for measurements and tests.
    ///
    /// # Errors
    /// As for [`PmemLog::new`].
    ///
    /// # Panics
    /// When the processor does not have this way.
    pub fn with(
        file: &PmemFile,
        offset_bytes: u64,
        length_bytes: u64,
        stores: Stores,
        instructions: I,
    ) -> Result<Self, FileError> {
        assert!(stores != Stores::WrittenBack || can_write_back(), "this processor has no clwb");
        let mapping = file.0.clone();
        mapping.file.check_region(offset_bytes, length_bytes)?;
        let info = LogInfo {
            name: mapping.file.name(),
            backend: "pmem",
            size_bytes: length_bytes,
            unit_bytes: 64,
            atomic_bytes: 8,
            durability: mapping.durability,
            pending_bytes_max: length_bytes,
        };
        let finished = Vec::with_capacity(OPERATIONS_MAX);
        Ok(Self { mapping, instructions, stores, offset_bytes, info, finished, pending_bytes: 0, failed: None })
    }

    /// Where in the file `length` bytes at `offset_bytes` of the region lie.
    fn place(&self, offset_bytes: u64, length: usize) -> Range<u64> {
        let end = offset_bytes.checked_add(length as u64);
        let end = end.filter(|&end| end <= self.info.size_bytes).expect("an operation lies in the region");
        self.offset_bytes + offset_bytes..self.offset_bytes + end
    }

    /// Why everything fails by now.
    fn refusal(&self) -> Option<DeviceErrorKind> {
        self.failed.or(self.mapping.has_failed().then_some(DeviceErrorKind::Medium))
    }

    /// An error about `range` of the file.
    fn error(&self, operation: &'static str, range: &Range<u64>, kind: DeviceErrorKind) -> DeviceError {
        let (start, end) = (range.start - self.offset_bytes, range.end - self.offset_bytes);
        let first = start / 4096;
        DeviceError { device: self.info.name.clone(), operation, first, count: end.div_ceil(4096) - first, kind }
    }

    fn load(&self, range: &Range<u64>, length_bytes: usize) -> Result<Vec<u8>, DeviceError> {
        if let Some(kind) = self.refusal() {
            return Err(self.error("read", range, kind));
        }
        if let Some(bad) = self.mapping.bad_in(range) {
            return Err(self.error("read", &bad, DeviceErrorKind::Medium));
        }
        // SAFETY: the source is mapped for the length (checked by `place`) and 8-byte aligned, being on a page boundary.
        let bytes = self.mapping.access(range, |source| unsafe { instructions::load(source, length_bytes) });
        match self.refusal() {
            Some(kind) => Err(self.error("read", range, kind)),
            None => Ok(bytes),
        }
    }

    fn finish(&mut self, token: Token, result: Result<Vec<u8>, DeviceError>) {
        assert!(self.room() > 0, "the caller asks for room first");
        self.finished.push(LogCompletion { token, result });
    }
}

impl<I: Instructions> LogMemory for PmemLog<I> {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        self.info.pending_bytes_max - self.pending_bytes
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let unit = u64::from(self.info.unit_bytes);
        let length = bytes.len() as u64;
        assert!(offset_bytes.is_multiple_of(unit) && length.is_multiple_of(unit), "stores have whole units");
        assert!(length <= self.room_bytes(), "the caller asks for room first");
        self.pending_bytes += length;
        let range = self.place(offset_bytes, bytes.len());
        if self.refusal().is_some() {
            return;
        }
        if self.mapping.bad_in(&range).is_some() {
            self.failed = Some(DeviceErrorKind::Medium);
            return;
        }
        let stores = match self.stores {
            Stores::Cached if bytes.len() > CACHED_BYTES_MAX => Stores::NonTemporal,
            stores => stores,
        };
        let instructions = &mut self.instructions;
        // SAFETY: the target is mapped for all of `bytes` (checked by `place`) and 64-byte aligned (asserted above; the mapping
        // and the region begin on pages); nobody has a reference into the mapping (invariant 1).
        self.mapping.access(&range, |target| unsafe { instructions::store(instructions, stores, target, bytes) });
    }

    fn persist(&mut self, token: Token) {
        self.instructions.fence();
        self.pending_bytes = 0;
        let result = match self.refusal() {
            // Which of the stores met it is not known.
            Some(kind) => Err(self.error("write", &self.place(0, 0), kind)),
            None => Ok(Vec::new()),
        };
        self.finish(token, result);
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.finished.len()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        assert!((1..=READ_BYTES_MAX).contains(&length_bytes), "a read is at most 1 MiB");
        assert!(offset_bytes.is_multiple_of(4096) && length_bytes.is_multiple_of(4096), "reads have whole blocks");
        let result = self.load(&self.place(offset_bytes, length_bytes), length_bytes);
        self.finish(token, result);
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.finished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane of 16 KiB in a file of 20 KiB, of which `bad` bytes are lost.
    fn with_bad(bad: &[Range<u64>]) -> (tempfile::TempDir, PmemLog) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        twinlog_file::create_log_file(&path, 20 << 10, |_| ()).expect("space");
        let mut mapping = Mapping::open(&path).expect("nobody has it");
        mapping.bad = bad.to_vec();
        let file = PmemFile(Arc::new(mapping));
        (directory, PmemLog::new(&file, 4096, 16 << 10).expect("a region"))
    }

    fn end(log: &mut PmemLog) -> Result<Vec<u8>, DeviceError> {
        let mut completions = Vec::new();
        log.poll(&mut completions);
        completions.pop().expect("operations end at once").result
    }

    #[test]
    fn only_a_read_that_overlaps_lost_bytes_fails() {
        let (_directory, mut log) = with_bad(&[0..512, 9000..9010, 12288..12800]);
        log.store(0, &[1; 4096]);
        log.persist(Token(0));
        end(&mut log).expect("none of these bytes is lost");
        for (block, is_good) in [(0, true), (1, false), (2, false), (3, true)] {
            log.read(Token(1), block * 4096, 4096);
            match end(&mut log) {
                Ok(bytes) => assert!(is_good && bytes == [u8::from(block == 0); 4096], "block {block}"),
                Err(error) => {
                    assert!(!is_good, "block {block}");
                    assert_eq!((error.kind, error.first, error.count), (DeviceErrorKind::Medium, block, 1));
                }
            }
        }
        log.read(Token(2), 0, 16 << 10);
        let error = end(&mut log).expect_err("two blocks of four");
        assert_eq!((error.first, error.count), (1, 1), "the first is named");
    }

    #[test]
    fn a_store_over_lost_bytes_fails_the_lane() {
        let (directory, mut log) = with_bad(&[9000..9010, 12288..12800]);
        log.store(4096, &[1; 1024]);
        log.persist(Token(0));
        assert_eq!(end(&mut log).expect_err("lost").kind, DeviceErrorKind::Medium);
        log.store(0, &[1; 64]);
        log.persist(Token(1));
        end(&mut log).expect_err("the lane has failed");
        log.read(Token(2), 0, 4096);
        end(&mut log).expect_err("the lane has failed");
        drop(log);
        let content = std::fs::read(directory.path().join("log")).expect("there");
        assert!(content.iter().all(|&byte| byte == 0), "nothing was stored");
    }
}
