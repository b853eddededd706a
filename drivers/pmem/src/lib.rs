//! A change log in mapped persistent memory.
//!
//! The region is a part of a shared mapping: a DAX file or a device-DAX node. Stores go past the cache (non-temporal), a persist is
//! one fence: about a quarter of a microsecond for 4 KiB, and no system call.
//!
//! # What is durable
//!
//! | mapping | class |
//! |---|---|
//! | `MAP_SYNC` is accepted (DAX file), or device-DAX, on x86-64 | durable: the platform flushes what has passed the fence (ADR) |
//! | a file on tmpfs or ramfs | volatile |
//! | any other file | process: the page cache has it, the disk not yet |
//!
//! On other processors the portable copy does not flush caches, so nothing is called durable there.
//!
//! # Invariants
//!
//! 1. The mapping is only reached through raw pointers, never as `&[u8]`: it is shared memory of a file.
//! 2. Every part of it lies inside the file; the file's lock keeps other processes that use this crate from cutting it short.
//! 3. What a persist covers has left the store buffers (`sfence`) before the persist is reported.
//!
//! # Failure cases
//!
//! - A line that the memory cannot return any more (poison), or a file that is cut short below the mapping, raises `SIGBUS`: the
//!   process ends and the partner, which has the same records, takes over.

// Mapped memory is reached through raw pointers.
#![expect(unsafe_code, reason = "memory mapping")]

mod copy;

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{num::NonZeroUsize, path::Path, ptr::NonNull, sync::Arc};
use twinlog_device::{DurabilityClass, LogCompletion, LogInfo, LogMemory, Token};
use twinlog_file::{Access, Cache, FileError, FileKind, StorageFile};

/// Operations that may wait for the next poll: the persists that the contract of [`LogMemory::persist`] allows.
const OPERATIONS_MAX: usize = 8;

/// Longest read, by the contract of [`LogMemory::read`].
const READ_BYTES_MAX: usize = 1 << 20;

struct Mapping {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
    file: StorageFile,
    durability: DurabilityClass,
}

// SAFETY: an owned mapping; regions of it are used through raw pointers, each by the one reactor that has its lane.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned, and every log on the mapping holds it by an `Arc`.
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}

/// An open and mapped file, shared by the lanes in it.
#[derive(Clone)]
pub struct PmemFile(Arc<Mapping>);

impl PmemFile {
    /// Opens, locks and maps all of `path`.
    ///
    /// # Errors
    /// When another process has it, or the kernel refuses to open or to map it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = StorageFile::open(path, Access::Exclusive, Cache::Kernel)?;
        if file.kind() == FileKind::Block {
            return Err(FileError::Kind { path: path.to_owned() });
        }
        let length = usize::try_from(file.size_bytes()).ok().and_then(NonZeroUsize::new);
        let length_bytes = length.ok_or_else(|| FileError::io(path, "map it")(Errno::EINVAL))?;
        let map = |flags: MapFlags| {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new mapping at a place of the kernel's choice aliases nothing.
            unsafe { mmap(None, length_bytes, protection, flags, &file, 0) }
        };
        let (base, synchronous) = match map(MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC) {
            Ok(base) => (base, true),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {
                (map(MapFlags::MAP_SHARED).map_err(FileError::io(path, "map it"))?, file.kind() == FileKind::Dax)
            }
            Err(error) => return Err(FileError::io(path, "map it")(error)),
        };
        let durability = match file.durability() {
            DurabilityClass::Durable if !(synchronous && copy::REACHES_MEMORY) => DurabilityClass::Process,
            class => class,
        };
        Ok(Self(Arc::new(Mapping { base: base.cast(), length_bytes, file, durability })))
    }
}

/// One lane in a region of a [`PmemFile`].
pub struct PmemLog {
    mapping: Arc<Mapping>,
    offset_bytes: usize,
    info: LogInfo,
    finished: Vec<LogCompletion>,
    pending_bytes: u64,
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
        let offset_bytes = usize::try_from(offset_bytes).expect("inside a mapping");
        Ok(Self { mapping, offset_bytes, info, finished: Vec::with_capacity(OPERATIONS_MAX), pending_bytes: 0 })
    }

    /// Where `length` bytes at `offset_bytes` of the region lie.
    fn address(&self, offset_bytes: u64, length: usize) -> NonNull<u8> {
        let end = offset_bytes.checked_add(length as u64);
        assert!(end.is_some_and(|end| end <= self.info.size_bytes), "an operation lies in the region");
        let offset = self.offset_bytes + usize::try_from(offset_bytes).expect("inside a mapping");
        // SAFETY: the region lies inside the mapping (checked when it was made), the place inside the region (asserted above).
        unsafe { self.mapping.base.add(offset) }
    }

    fn finish(&mut self, token: Token, bytes: Vec<u8>) {
        assert!(self.room() > 0, "the caller asks for room first");
        self.finished.push(LogCompletion { token, result: Ok(bytes) });
    }
}

impl LogMemory for PmemLog {
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
        let target = self.address(offset_bytes, bytes.len());
        // SAFETY: the target is mapped for all of `bytes` (checked by `address`) and 64-byte aligned (asserted above; the mapping
        // and the region begin on pages); nobody has a reference into the mapping (invariant 1).
        unsafe { copy::store(target, bytes) };
    }

    fn persist(&mut self, token: Token) {
        copy::fence();
        self.pending_bytes = 0;
        self.finish(token, Vec::new());
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.finished.len()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        assert!((1..=READ_BYTES_MAX).contains(&length_bytes), "a read is at most 1 MiB");
        assert!(offset_bytes.is_multiple_of(4096) && length_bytes.is_multiple_of(4096), "reads have whole blocks");
        let source = self.address(offset_bytes, length_bytes);
        // SAFETY: the source is mapped for the length (checked by `address`) and 8-byte aligned, being on a page boundary.
        let bytes = unsafe { copy::load(source, length_bytes) };
        self.finish(token, bytes);
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.finished);
    }
}
