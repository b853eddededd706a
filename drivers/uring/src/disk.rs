//! A file or block device as a disk.
//!
//! # Invariants
//!
//! 1. A slot is free, or holds one operation from the caller's call until its completion is queued for `poll`. The number of slots
//!    is the queue depth.
//! 2. While a slot's operation is with the kernel, its blocks stay in the slot and its vector is not changed.
//!
//! # Failure cases
//!
//! - A transfer that ends early goes on where it stopped, in whole sectors. One that makes no progress is an error: the file was cut
//!   short (`Beyond`), or the device takes nothing (`Os(EIO)`).
//! - A discard that the file system or device does not know completes without effect, as the contract allows.
//! - A write that lies partly in the page cache of a buffered file is made durable by `flush` or by the write itself (`RWF_DSYNC`),
//!   just like one in a disk's own cache.

// Operations name blocks and vectors by address.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

use crate::{
    Access, Cache, FileError, FileKind, Ring, StorageFile,
    ring::{Event, Port, RegisteredFile},
};
use io_uring::{opcode, squeue::Entry, types::FsyncFlags};
use std::path::Path;
use twinlog_device::{
    BLOCK_BYTES, BlockBuf, BlockCompletion, BlockDevice, BlockRange, DeviceError, DeviceErrorKind, DeviceInfo,
    Persistence, SharedBlock, Token,
};
use twinlog_file::error_kind;

/// Most blocks of one transfer: 1 MiB, the size from which disks are no quicker, and far below the kernel's 1024 vector elements.
const TRANSFER_BLOCKS_MAX: u32 = 256;

/// Interruptions of one operation (`EAGAIN`, `EINTR`, early ends) that are taken up again before it is an error.
const RESUMES_MAX: u32 = 1000;

/// How a disk is opened.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Read-only users share the disk.
    pub access: Access,
    /// Whether to go around the page cache.
    pub cache: Cache,
    /// Operations in flight at the same time, 1 to 4096.
    pub queue_depth: u32,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self { access: Access::Exclusive, cache: Cache::Bypass, queue_depth: 128 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write(Persistence),
    Flush,
    Discard,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write(_) => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// One operation; its vectors keep their memory from operation to operation.
struct Slot {
    token: Token,
    kind: Kind,
    range: BlockRange,
    /// Blocks of a read.
    targets: Vec<BlockBuf>,
    /// Blocks of a write.
    sources: Vec<SharedBlock>,
    /// What is still to be transferred, neighbours in memory as one element.
    vector: Vec<libc::iovec>,
    done_bytes: usize,
    resumes: u32,
}

/// One reactor's queue to a disk.
pub struct FileDisk {
    // First, so that it is dropped, and the kernel has finished, before the slots' memory goes.
    port: Port,
    registered: RegisteredFile,
    file: StorageFile,
    info: DeviceInfo,
    slots: Vec<Slot>,
    free: Vec<u32>,
    events: Vec<Event>,
    finished: Vec<BlockCompletion>,
}

impl FileDisk {
    /// Opens the file and a queue to it. With several reactors, open a [`StorageFile`] once and use [`Self::new`] in each.
    ///
    /// # Errors
    /// When the file cannot be opened or locked, or is smaller than a block.
    pub fn open(ring: &Ring, path: &Path, options: DiskOptions) -> Result<Self, FileError> {
        Self::new(ring, &StorageFile::open(path, options.access, options.cache)?, options.queue_depth)
    }

    /// A queue of `queue_depth` (1 to 4096) operations to an open file.
    ///
    /// # Errors
    /// When the file is smaller than a block.
    pub fn new(ring: &Ring, file: &StorageFile, queue_depth: u32) -> Result<Self, FileError> {
        let block_count = file.size_bytes() / BLOCK_BYTES as u64;
        file.check_region(0, block_count * BLOCK_BYTES as u64)?;
        let queue_depth = queue_depth.clamp(1, 4096);
        let info = DeviceInfo {
            name: file.name(),
            block_count,
            sector_bytes: file.sector_bytes(),
            transfer_blocks_max: TRANSFER_BLOCKS_MAX,
            queue_depth,
            can_discard: file.can_discard(),
            durability: file.durability(),
        };
        let slot = || Slot {
            token: Token(0),
            kind: Kind::Flush,
            range: BlockRange { first: 0, count: 0 },
            targets: Vec::new(),
            sources: Vec::new(),
            vector: Vec::new(),
            done_bytes: 0,
            resumes: 0,
        };
        Ok(Self {
            port: Port::open(ring),
            registered: RegisteredFile::new(ring, file),
            file: file.clone(),
            info,
            slots: (0..queue_depth).map(|_| slot()).collect(),
            free: (0..queue_depth).rev().collect(),
            events: Vec::new(),
            finished: Vec::new(),
        })
    }

    /// The open file, for another reactor's queue to it.
    #[must_use]
    pub fn file(&self) -> &StorageFile {
        &self.file
    }

    fn start(&mut self, token: Token, kind: Kind, range: BlockRange) -> u32 {
        let index = self.free.pop().expect("the caller asks for room first");
        let slot = &mut self.slots[index as usize];
        (slot.token, slot.kind, slot.range) = (token, kind, range);
        (slot.done_bytes, slot.resumes) = (0, 0);
        index
    }

    fn is_beyond(&self, range: BlockRange) -> bool {
        range.first.checked_add(range.count).is_none_or(|end| end > self.info.block_count)
    }

    /// Whether a thread of the kernel has to finish an operation: a synchronous write flushes the disk's cache there
    /// (unless it takes the cache along by itself), and the others run there altogether.
    fn is_assisted(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read | Kind::Write(Persistence::Volatile) => false,
            Kind::Write(Persistence::Durable) => !self.file.writes_through(),
            Kind::Flush | Kind::Discard => true,
        }
    }

    /// Hands the rest of a slot's operation to the ring.
    fn submit(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let entry = match slot.kind {
            Kind::Read => {
                let blocks = slot.targets.iter_mut().map(|block| block.as_mut_ptr());
                fill_vector(&mut slot.vector, blocks, slot.done_bytes);
                self.transfer(index)
            }
            Kind::Write(_) => {
                let blocks = slot.sources.iter().map(|block| block.as_ptr().cast_mut());
                fill_vector(&mut slot.vector, blocks, slot.done_bytes);
                self.transfer(index)
            }
            Kind::Flush => opcode::Fsync::new(self.registered.target().fd()).flags(FsyncFlags::DATASYNC).build(),
            Kind::Discard => {
                let bytes = slot.range.count * BLOCK_BYTES as u64;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let target = self.registered.target().fd();
                opcode::Fallocate::new(target, bytes).offset(slot.range.first * BLOCK_BYTES as u64).mode(mode).build()
            }
        };
        let entry = self.registered.target().seal(entry);
        if self.is_assisted(self.slots[index as usize].kind) {
            self.port.begin_assisted();
        }
        // SAFETY: the slot keeps the blocks and the vector until the event has come (invariant 2), and the port is dropped first.
        unsafe { self.port.push(index, entry) };
    }

    fn transfer(&self, index: u32) -> Entry {
        let slot = &self.slots[index as usize];
        let target = self.registered.target().fd();
        let offset = slot.range.first * BLOCK_BYTES as u64 + slot.done_bytes as u64;
        let flags = if slot.kind == Kind::Write(Persistence::Durable) { libc::RWF_DSYNC } else { 0 };
        let (vector, count) = (slot.vector.as_ptr(), slot.vector.len());
        let first = slot.vector.first().expect("a transfer has bytes left");
        let length = u32::try_from(first.iov_len).expect("a transfer is at most 1 MiB");
        let base = first.iov_base.cast::<u8>();
        let core = self.port.ring().core();
        let registered = |part: &libc::iovec| core.buffer_index(part.iov_base.cast(), part.iov_len);
        let buffer = registered(first).filter(|_| count == 1 || core.facts().scattered_registered_buffers);
        let buffer = buffer.filter(|&buffer| slot.vector.iter().all(|part| registered(part) == Some(buffer)));
        let count = u32::try_from(count).expect("a transfer has at most 256 parts");
        let reads = slot.kind == Kind::Read;
        match (reads, count, buffer) {
            (true, 1, None) => opcode::Read::new(target, base, length).offset(offset).build(),
            (true, 1, Some(buffer)) => opcode::ReadFixed::new(target, base, length, buffer).offset(offset).build(),
            (true, _, None) => opcode::Readv::new(target, vector, count).offset(offset).build(),
            (true, _, Some(buffer)) => opcode::ReadvFixed::new(target, vector, count, buffer).offset(offset).build(),
            (false, 1, None) => opcode::Write::new(target, base, length).offset(offset).rw_flags(flags).build(),
            (false, 1, Some(buffer)) => {
                opcode::WriteFixed::new(target, base, length, buffer).offset(offset).rw_flags(flags).build()
            }
            (false, _, None) => opcode::Writev::new(target, vector, count).offset(offset).rw_flags(flags).build(),
            (false, _, Some(buffer)) => {
                opcode::WritevFixed::new(target, vector, count, buffer).offset(offset).rw_flags(flags).build()
            }
        }
    }

    fn handle(&mut self, event: Event) {
        if self.is_assisted(self.slots[event.index as usize].kind) {
            self.port.end_assisted();
        }
        let slot = &mut self.slots[event.index as usize];
        let is_transfer = matches!(slot.kind, Kind::Read | Kind::Write(_));
        let result = match (u32::try_from(event.result), slot.kind) {
            (Ok(count), _) if is_transfer => {
                let total = usize::try_from(slot.range.count).expect("a transfer is small") * BLOCK_BYTES;
                slot.done_bytes += count as usize;
                if slot.done_bytes >= total {
                    Ok(())
                } else if count == 0 {
                    let reads = slot.kind == Kind::Read;
                    Err(if reads { DeviceErrorKind::Beyond } else { DeviceErrorKind::Os(libc::EIO) })
                } else {
                    slot.done_bytes -= slot.done_bytes % self.info.sector_bytes as usize;
                    return self.resume(event.index, libc::EIO);
                }
            }
            (Ok(_), _) => Ok(()),
            (Err(_), Kind::Discard) if matches!(-event.result, libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
            (Err(_), _) => match -event.result {
                number @ (libc::EAGAIN | libc::EINTR) => return self.resume(event.index, number),
                number => Err(error_kind(number)),
            },
        };
        self.finish(event.index, result);
    }

    fn resume(&mut self, index: u32, error_number: i32) {
        let slot = &mut self.slots[index as usize];
        slot.resumes += 1;
        if slot.resumes > RESUMES_MAX {
            return self.finish(index, Err(error_kind(error_number)));
        }
        self.submit(index);
    }

    fn finish(&mut self, index: u32, result: Result<(), DeviceErrorKind>) {
        let slot = &mut self.slots[index as usize];
        let result = result.map_err(|kind| DeviceError {
            device: self.info.name.clone(),
            operation: slot.kind.name(),
            first: slot.range.first,
            count: slot.range.count,
            kind,
        });
        slot.sources.clear();
        let blocks = std::mem::take(&mut slot.targets);
        self.finished.push(BlockCompletion { token: slot.token, result, blocks });
        self.free.push(index);
    }

    /// Starts the operation, or ends it at once when it lies beyond the device.
    fn start_checked(&mut self, index: u32) {
        if self.is_beyond(self.slots[index as usize].range) {
            self.finish(index, Err(DeviceErrorKind::Beyond));
            self.port.ring().set_ready();
        } else {
            self.submit(index);
        }
    }

    fn check_transfer(&self, count: usize) -> u64 {
        assert!((1..=self.info.transfer_blocks_max as usize).contains(&count), "a transfer has 1 to 256 blocks");
        count as u64
    }
}

/// The parts of memory that are left of `blocks` after `done_bytes`, with neighbours in memory joined.
fn fill_vector(vector: &mut Vec<libc::iovec>, blocks: impl Iterator<Item = *mut u8>, done_bytes: usize) {
    vector.clear();
    let mut skip = done_bytes % BLOCK_BYTES;
    for block in blocks.skip(done_bytes / BLOCK_BYTES) {
        let (base, length) = (block.wrapping_add(skip), BLOCK_BYTES - skip);
        skip = 0;
        match vector.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => last.iov_len += length,
            _ => vector.push(libc::iovec { iov_base: base.cast(), iov_len: length }),
        }
    }
}

impl BlockDevice for FileDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>) {
        let count = self.check_transfer(blocks.len());
        let index = self.start(token, Kind::Read, BlockRange { first, count });
        self.slots[index as usize].targets = blocks;
        self.start_checked(index);
    }

    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, persistence: Persistence) {
        let count = self.check_transfer(blocks.len());
        let index = self.start(token, Kind::Write(persistence), BlockRange { first, count });
        self.slots[index as usize].sources = blocks;
        self.start_checked(index);
    }

    fn flush(&mut self, token: Token) {
        let index = self.start(token, Kind::Flush, BlockRange { first: 0, count: 0 });
        self.submit(index);
    }

    fn discard(&mut self, token: Token, range: BlockRange) {
        let index = self.start(token, Kind::Discard, range);
        if self.info.can_discard && range.count > 0 {
            self.start_checked(index);
        } else {
            let beyond = self.is_beyond(range);
            self.finish(index, if beyond { Err(DeviceErrorKind::Beyond) } else { Ok(()) });
            self.port.ring().set_ready();
        }
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        let mut events = std::mem::take(&mut self.events);
        self.port.take_events(&mut events);
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        completions.append(&mut self.finished);
    }
}

impl std::fmt::Debug for FileDisk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direct = if self.file.is_direct() { "direct" } else { "buffered" };
        let kind = if self.file.kind() == FileKind::Block { "block device" } else { "file" };
        write!(
            formatter,
            "FileDisk({} as {direct} {kind}, {} in flight)",
            self.info.name,
            self.slots.len() - self.free.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlog_device::{BlockPool, Wait};

    #[test]
    fn neighbours_in_memory_are_one_part_and_what_is_done_is_left_out() {
        let at = |block: usize| std::ptr::without_provenance_mut::<u8>((100 + block) * BLOCK_BYTES);
        let blocks = [at(0), at(1), at(5), at(4), at(6)];
        let parts = |done_bytes: usize| {
            let mut vector = Vec::new();
            fill_vector(&mut vector, blocks.into_iter(), done_bytes);
            vector.iter().map(|part| (part.iov_base.addr() - 100 * BLOCK_BYTES, part.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(parts(0), [(0, 8192), (5 * 4096, 4096), (4 * 4096, 4096), (6 * 4096, 4096)]);
        assert_eq!(parts(4096 + 512), [(4096 + 512, 3584), (5 * 4096, 4096), (4 * 4096, 4096), (6 * 4096, 4096)]);
        assert_eq!(parts(5 * 4096 - 512), [(7 * 4096 - 512, 512)]);
    }

    #[test]
    fn a_disk_that_was_cut_short_is_an_error_and_no_hang() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk");
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(1 << 20).expect("a size");
        let pool = BlockPool::new(64).expect("a small pool");
        let ring = Ring::new(crate::RingOptions::default(), &pool).expect("the kernel has io_uring");
        let mut disk = FileDisk::open(&ring, &path, DiskOptions::default()).expect("nobody has it");
        file.set_len(10 * 4096).expect("a size");
        disk.read(Token(1), 8, pool.allocate_many(4).expect("blocks"));
        let mut completions = Vec::new();
        while completions.is_empty() {
            ring.turn(Wait::UpTo(std::time::Duration::from_millis(10)));
            disk.poll(&mut completions);
        }
        let error = completions.remove(0).result.expect_err("two of the four blocks are gone");
        assert_eq!((error.kind, error.first, error.count), (DeviceErrorKind::Beyond, 8, 4));
    }
}
