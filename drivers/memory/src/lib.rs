//! Blocks of memory that devices read and write.
//!
//! A [`BlockPool`] is one anonymous mapping cut into blocks of [`BLOCK_BYTES`], page-aligned, so that every driver can
//! hand them to hardware: `O_DIRECT`, registered io_uring buffers, IOMMU mappings. Its size is fixed when it is made:
//! an empty pool is back-pressure, never growth. Pages are touched only when first used.
//!
//! # Invariants
//!
//! 1. A block index is free (in the list or the one that is next; its state is zero), or owned by exactly one [`BlockBuf`] (`UNIQUE`) or one [`DeviceBlock`]
//!    (`DEVICE`), or shared by `n >= 1` [`SharedBlock`]s (its state is `n`). Never two of these.
//! 2. Bytes are written only through a `BlockBuf`, or by a device while they are a `DeviceBlock`, to which no reference exists; a
//!    `SharedBlock` never changes.
//! 3. The mapping lives until the pool and every handle are gone.
//! 4. `lent` is what live [`Loan`]s have left plus the number of live handles that are marked as lent. No loan is given that would
//!    lift it above the share it is asked of ([`Shares`]); only clones of lent handles can, by themselves.
//!
//! # Life of a block
//!
//! ```text
//! free --allocate--> BlockBuf --freeze--> SharedBlock (clones) --last drop--> free
//!                       ^                      |
//!                       +----- try_unique -----+   (only the last handle)
//!
//! BlockBuf --into_device--> DeviceBlock --take_back--> BlockBuf
//!                                |
//!                                +--drop--> lost: the device may still write
//! ```
//!
//! # Loans
//!
//! What a block is used for ends at different places: a payload in the engine, the blocks of a reply when the network has sent them. So
//! the handle itself remembers that it is lent, and gives the unit back when it is dropped or, for a payload, frozen: from then on
//! the engine counts it.

#![expect(unsafe_code, reason = "hands out disjoint parts of one mapping, which safe Rust cannot express")]

use crossbeam_queue::ArrayQueue;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{
    fmt,
    mem::ManuallyDrop,
    num::NonZeroUsize,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    },
};

/// Bytes of one block: the unit of pools, caches and transfers.
pub const BLOCK_BYTES: usize = 4096;

/// What [`SharedBlock::fetch`] asks for: a hash that goes on where these end took 0.7 of the time of one of a block that no cache had, and no less with the
/// whole block.
const FETCHED_BYTES: usize = 1024;

/// Bytes of a huge page.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks the kernel for transparent huge pages behind `bytes`, as far as they cover whole pages: one page fault and one entry of the processor's
/// table of addresses for [`HUGE_PAGE_BYTES`] instead of 512. A kernel that has none keeps small pages.
pub fn prefer_huge_pages(bytes: &mut [u8]) {
    let base = NonNull::from(&mut *bytes).cast::<u8>();
    let before = base.as_ptr().align_offset(BLOCK_BYTES).min(bytes.len());
    let length_bytes = (bytes.len() - before) / BLOCK_BYTES * BLOCK_BYTES;
    // SAFETY: the offset lies in the slice or at its end.
    let first = unsafe { base.add(before) };
    // SAFETY: the pages lie in the slice, which is borrowed; which pages the kernel takes does not change what they hold.
    let _refused = unsafe { madvise(first.cast(), length_bytes, MmapAdvise::MADV_HUGEPAGE) };
}

/// The bytes of one block.
pub type BlockBytes = [u8; BLOCK_BYTES];

/// State of a block that is one [`BlockBuf`]; states from one to below this are numbers of [`SharedBlock`]s.
const UNIQUE: u32 = 1 << 31;

/// State of a block that is one [`DeviceBlock`].
const DEVICE: u32 = UNIQUE + 1;

/// The same, while [`BlockPool::write_as_device`] writes to it.
const DEVICE_WRITES: u32 = UNIQUE + 2;

/// No block: a pool has fewer.
const NONE: u32 = u32::MAX;

struct Mapping {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
    /// Bytes of the pages that it is surely made of.
    page_bytes: usize,
    /// State of each block: invariant 1. Written by handles only.
    states: Box<[AtomicU32]>,
    free: ArrayQueue<u32>,
    /// First of the free blocks, when it is not in `free` any more but fetched; else [`NONE`].
    next: AtomicU32,
    /// Blocks of loans and lent handles: invariant 4.
    lent: AtomicUsize,
    /// The shares, by field.
    clients_max: AtomicUsize,
    changes_max: AtomicUsize,
    kept: AtomicUsize,
}

/// Who may have how many blocks of a pool at once. The engine chooses them; a new pool has no bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Lent to clients: payloads, and what reads return ([`BlockPool::lend`], [`BlockPool::allocate_many`]).
    pub clients_max: usize,
    /// Lent to changes beyond that, whatever clients have ([`BlockPool::lend_to_change`]).
    pub changes_max: usize,
    /// Left free by everybody but [`BlockPool::allocate_kept`].
    pub kept: usize,
}

// SAFETY: `base` is an owned mapping; blocks are reached only through handles, whose exclusivity is invariant 1.
unsafe impl Send for Mapping {}
// SAFETY: as above; counts and the free list are synchronised types.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} blocks", self.states.len())
    }
}

impl Mapping {
    fn block(&self, index: u32) -> NonNull<BlockBytes> {
        let offset = index as usize * BLOCK_BYTES;
        assert!(offset < self.length_bytes.get(), "block index beyond the pool");
        // SAFETY: offset is inside the mapping (asserted above).
        unsafe { self.base.add(offset) }.cast()
    }

    /// The block that has been free for longest, or among the longest when several threads take blocks.
    fn take(&self) -> Option<u32> {
        if self.next.load(Ordering::Relaxed) == NONE {
            return self.free.pop();
        }
        match self.next.swap(NONE, Ordering::Acquire) {
            NONE => self.free.pop(),
            index => Some(index),
        }
    }

    /// Has the processor fetch the block that is handed out next, so that whoever writes to it soon does not wait for its memory.
    fn fetch_next(&self) {
        // Between list and `next` other threads miss a block, so none is moved when they are likely to need it.
        let is_scarce = self.free.len() <= self.states.len() / 16;
        if is_scarce || self.next.load(Ordering::Relaxed) != NONE {
            return;
        }
        let Some(index) = self.free.pop() else { return };
        prefetch(self.block(index), 0..BLOCK_BYTES);
        // Whoever takes it from here is to see all that its last owner did, as if it had come from the list.
        let other = self.next.swap(index, Ordering::AcqRel);
        if other != NONE {
            self.free.push(other).expect("the queue holds every block");
        }
    }

    fn give_back(&self, count: usize) {
        let before = self.lent.fetch_sub(count, Ordering::Relaxed);
        assert!(before >= count, "no more is given back than was lent");
    }
}

/// Has the processor bring a part of a block into its cache. Nothing waits for it, and nothing changes.
fn prefetch(block: NonNull<BlockBytes>, part: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    for offset_bytes in part.step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = block.as_ptr().cast::<i8>().wrapping_add(offset_bytes);
        // SAFETY: a hint, which neither reads nor writes for the program, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, part);
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned, and no handle is left (each holds an Arc of this mapping).
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}

/// A bounded pool of blocks. Clones are handles of the same pool.
#[derive(Clone)]
pub struct BlockPool(Arc<Mapping>);

impl BlockPool {
    /// Reserves address space for `block_count` blocks, 1 to 2^32 - 1.
    ///
    /// # Errors
    /// The kernel's error when it refuses the mapping.
    ///
    /// # Panics
    /// When `block_count` is zero: a pool without blocks serves nobody.
    pub fn new(block_count: u32) -> std::io::Result<Self> {
        Self::map(block_count, BLOCK_BYTES, MapFlags::MAP_NORESERVE)
    }

    /// The same in huge pages of [`HUGE_PAGE_BYTES`], all of them taken now: for devices that no IOMMU translates for.
    ///
    /// # Errors
    /// The kernel's error when it refuses the mapping: most often, too few huge pages are free.
    ///
    /// # Panics
    /// As for [`Self::new`].
    pub fn in_huge_pages(block_count: u32) -> std::io::Result<Self> {
        let flags = MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB | MapFlags::MAP_POPULATE;
        Self::map(block_count, HUGE_PAGE_BYTES, flags)
    }

    /// Asks the kernel for transparent huge pages ([`prefer_huge_pages`]). Memory is then taken in their size when it is first used.
    pub fn prefer_huge_pages(&self) {
        let (base, length_bytes) = (self.0.base.cast(), self.0.length_bytes.get());
        // SAFETY: the mapping is ours; which pages the kernel takes does not change what they hold.
        let _refused = unsafe { madvise(base, length_bytes, MmapAdvise::MADV_HUGEPAGE) };
    }

    fn map(block_count: u32, page_bytes: usize, flags: MapFlags) -> std::io::Result<Self> {
        let bytes = (block_count as usize * BLOCK_BYTES).next_multiple_of(page_bytes);
        let length_bytes = NonZeroUsize::new(bytes).expect("a pool has at least one block");
        let flags = MapFlags::MAP_PRIVATE | flags;
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe { mmap_anonymous(None, length_bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        let free = ArrayQueue::new(block_count as usize);
        for index in 0..block_count {
            free.push(index).expect("the queue holds every block");
        }
        let states = (0..block_count).map(|_| AtomicU32::new(0)).collect();
        let mapping = Mapping {
            base: base.cast(),
            length_bytes,
            page_bytes,
            states,
            free,
            next: AtomicU32::new(NONE),
            lent: AtomicUsize::new(0),
            clients_max: AtomicUsize::new(usize::MAX),
            changes_max: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
        };
        Ok(Self(Arc::new(mapping)))
    }

    /// Divides the pool. What is lent already stays lent.
    pub fn set_shares(&self, shares: Shares) {
        self.0.clients_max.store(shares.clients_max, Ordering::Relaxed);
        self.0.changes_max.store(shares.changes_max, Ordering::Relaxed);
        self.0.kept.store(shares.kept, Ordering::Relaxed);
    }

    /// A block with unspecified content, or `None` while every block is in use or kept.
    #[must_use]
    pub fn allocate(&self) -> Option<BlockBuf> {
        // Threads that look at the same time can undershoot by one block each: whoever sets `kept` leaves room for that.
        if self.free_count() <= self.0.kept.load(Ordering::Relaxed) { None } else { self.allocate_kept() }
    }

    /// The same, from what [`Self::allocate`] leaves free, too: for what cannot wait.
    #[must_use]
    pub fn allocate_kept(&self) -> Option<BlockBuf> {
        let index = self.0.take()?;
        let before = self.0.states[index as usize].swap(UNIQUE, Ordering::Relaxed);
        assert_eq!(before, 0, "a free block has no handles");
        Some(BlockBuf(Handle { mapping: self.0.clone(), index, is_lent: false }))
    }

    /// A block of zeroes, or `None` while every block is in use.
    #[must_use]
    pub fn allocate_zeroed(&self) -> Option<BlockBuf> {
        let mut block = self.allocate()?;
        block.fill(0);
        Some(block)
    }

    /// `count` lent blocks with unspecified content, all or none: for the payload of a client.
    #[must_use]
    pub fn allocate_many(&self, count: usize) -> Option<Vec<BlockBuf>> {
        if self.free_count() < count.saturating_add(self.0.kept.load(Ordering::Relaxed)) {
            return None;
        }
        let mut loan = self.lend(count).filter(|loan| loan.count == count)?;
        // Another thread may take blocks between the check and here; then what was taken goes back by drop.
        let blocks = (0..count).map(|_| self.allocate().map(|block| BlockBuf(loan.mark(block.0)))).collect();
        // A payload of one block is copied from a buffer, and the next is soon to follow. Of larger ones each would push the other out of the cache.
        if count == 1 {
            self.0.fetch_next();
        }
        blocks
    }

    /// Lends `count` blocks of the clients' share, or none while too many are lent. Who wants more than the whole share gets the share.
    #[must_use]
    pub fn lend(&self, count: usize) -> Option<Loan> {
        let clients_max = self.0.clients_max.load(Ordering::Relaxed);
        self.lend_below(count.min(clients_max), clients_max)
    }

    /// The same for what a change reads before it can be admitted: clients who have their whole share leave room for it.
    #[must_use]
    pub fn lend_to_change(&self, count: usize) -> Option<Loan> {
        let changes_max = self.0.changes_max.load(Ordering::Relaxed);
        let clients_max = self.0.clients_max.load(Ordering::Relaxed);
        self.lend_below(count.min(changes_max.max(1)), clients_max.saturating_add(changes_max))
    }

    fn lend_below(&self, count: usize, max: usize) -> Option<Loan> {
        let more = |lent: usize| lent.checked_add(count).filter(|&sum| sum <= max);
        let lent = self.0.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        lent.is_ok().then(|| Loan { mapping: self.0.clone(), count })
    }

    /// Blocks that are lent.
    #[must_use]
    pub fn lent_count(&self) -> usize {
        self.0.lent.load(Ordering::Relaxed)
    }

    /// Whether clients wait for memory, or soon will: seven eighths of their share are lent, or of all blocks in use.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let clients_max = self.0.clients_max.load(Ordering::Relaxed);
        self.lent_count() >= clients_max - clients_max / 8 || self.free_count() < self.block_count() / 8
    }

    /// Blocks that are free now.
    #[must_use]
    pub fn free_count(&self) -> usize {
        // Looked at one after the other: a block that moves meanwhile can be seen in both places.
        (self.0.free.len() + usize::from(self.0.next.load(Ordering::Relaxed) != NONE)).min(self.block_count())
    }

    /// All blocks of the pool.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.0.states.len()
    }

    /// First byte and length of the mapping, for drivers that register it with the kernel or an IOMMU.
    #[must_use]
    pub fn region(&self) -> (*mut u8, usize) {
        (self.0.base.as_ptr(), self.0.length_bytes.get())
    }

    /// Whether the mapping is made of huge pages ([`Self::in_huge_pages`]).
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.0.page_bytes == HUGE_PAGE_BYTES
    }

    /// Whether `address` points into this pool.
    #[must_use]
    pub fn contains(&self, address: *const u8) -> bool {
        self.offset_of(address).is_some()
    }

    /// Where `address` lies in [`Self::region`], in bytes; none outside.
    #[must_use]
    pub fn offset_of(&self, address: *const u8) -> Option<usize> {
        let (base, length) = self.region();
        address.addr().checked_sub(base.addr()).filter(|&offset| offset < length)
    }

    /// A further handle of the block at `index`, if it is shared now: how a model of a device reads.
    #[must_use]
    pub fn shared(&self, index: u32) -> Option<SharedBlock> {
        let more = |state: u32| (1..UNIQUE / 2).contains(&state).then_some(state + 1);
        self.0.states.get(index as usize)?.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(SharedBlock(Handle { mapping: self.0.clone(), index, is_lent: false }))
    }

    /// Writes `bytes` at `offset` of the block at `index` if it is a [`DeviceBlock`] now, and says whether it is: how a model of a
    /// device writes.
    ///
    /// # Panics
    /// When the bytes do not lie in one block.
    #[must_use]
    pub fn write_as_device(&self, index: u32, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset <= BLOCK_BYTES && bytes.len() <= BLOCK_BYTES - offset, "the bytes lie in one block");
        let Some(state) = self.0.states.get(index as usize) else { return false };
        if state.compare_exchange(DEVICE, DEVICE_WRITES, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        // SAFETY: no reference to this block's bytes exists (invariant 2), nobody else writes them (`DEVICE_WRITES`), and it cannot
        // be taken back until the state is `DEVICE` again.
        let block = unsafe { self.0.block(index).as_mut() };
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
        state.store(DEVICE, Ordering::Release);
        true
    }
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlockPool({} of {} blocks free)", self.free_count(), self.block_count())
    }
}

/// The right to have some blocks: what is left of it goes back when it is dropped.
#[derive(Debug)]
pub struct Loan {
    mapping: Arc<Mapping>,
    count: usize,
}

impl Loan {
    /// Marks a handle as lent, at the cost of one block of this loan. A loan that has none left is exceeded, and that is counted.
    #[must_use]
    pub fn attach(&mut self, block: SharedBlock) -> SharedBlock {
        SharedBlock(self.mark(block.0))
    }

    fn mark(&mut self, mut handle: Handle) -> Handle {
        if !std::mem::replace(&mut handle.is_lent, true) {
            match self.count.checked_sub(1) {
                Some(rest) => self.count = rest,
                None => drop(self.mapping.lent.fetch_add(1, Ordering::Relaxed)),
            }
        }
        handle
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.mapping.give_back(self.count);
    }
}

/// One counted handle of a block; what may be done with it is the wrapper's matter.
struct Handle {
    mapping: Arc<Mapping>,
    index: u32,
    /// Whether it counts in the mapping's `lent`.
    is_lent: bool,
}

impl Handle {
    fn state(&self) -> &AtomicU32 {
        &self.mapping.states[self.index as usize]
    }

    fn end_loan(&mut self) {
        if std::mem::take(&mut self.is_lent) {
            self.mapping.give_back(1);
        }
    }

    fn bytes(&self) -> &BlockBytes {
        // SAFETY: invariant 2: no `BlockBuf` other than a borrowed one and no `DeviceBlock` exists, so nobody writes while this lives.
        unsafe { self.mapping.block(self.index).as_ref() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end_loan();
        // Nobody else changes the state of a unique block.
        if self.state().load(Ordering::Relaxed) == UNIQUE {
            self.state().store(0, Ordering::Release);
        } else {
            let before = self.state().fetch_sub(1, Ordering::Release);
            assert!((1..UNIQUE).contains(&before), "a handle was counted");
            if before > 1 {
                return;
            }
            fence(Ordering::Acquire);
        }
        self.mapping.free.push(self.index).expect("the queue holds every block");
    }
}

/// The only handle of a block: may be written.
pub struct BlockBuf(Handle);

impl BlockBuf {
    /// Ends writing, and a loan: from here on the block can be shared and never changes.
    #[must_use]
    pub fn freeze(mut self) -> SharedBlock {
        self.0.end_loan();
        self.0.state().store(1, Ordering::Release);
        SharedBlock(self.0)
    }

    /// Gives the block to a device, which may write to it until it is taken back.
    #[must_use]
    pub fn into_device(self) -> DeviceBlock {
        self.0.state().store(DEVICE, Ordering::Release);
        DeviceBlock(ManuallyDrop::new(self.0))
    }
}

impl Deref for BlockBuf {
    type Target = BlockBytes;
    fn deref(&self) -> &BlockBytes {
        self.0.bytes()
    }
}

impl DerefMut for BlockBuf {
    fn deref_mut(&mut self) -> &mut BlockBytes {
        // SAFETY: invariant 1: this is the block's only handle, and it is borrowed mutably.
        unsafe { self.0.mapping.block(self.0.index).as_mut() }
    }
}

impl fmt::Debug for BlockBuf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlockBuf({})", self.0.index)
    }
}

/// A block that a device may be writing to: nobody sees its bytes. Dropping it loses the block for ever, because who does not take it
/// back does not know that the device has finished.
pub struct DeviceBlock(ManuallyDrop<Handle>);

impl DeviceBlock {
    /// The block again, when its device has finished with it or can no longer write: it has answered, or was reset.
    #[must_use]
    pub fn take_back(mut self) -> BlockBuf {
        // A model in another thread may be writing just now; it does so for as long as it takes to copy a block.
        while self.0.state().compare_exchange_weak(DEVICE, UNIQUE, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: taken once, by the value's last use.
        BlockBuf(unsafe { ManuallyDrop::take(&mut self.0) })
    }

    /// Where the block lies.
    #[must_use]
    pub fn address(&self) -> *const u8 {
        self.0.mapping.block(self.0.index).as_ptr().cast()
    }
}

impl fmt::Debug for DeviceBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceBlock({})", self.0.index)
    }
}

/// A handle of a block that never changes again while any handle lives.
pub struct SharedBlock(Handle);

impl SharedBlock {
    /// How many handles there are just now.
    #[must_use]
    pub fn handle_count(&self) -> u32 {
        self.0.state().load(Ordering::Relaxed)
    }

    /// Has the processor begin to load the block, for who reads all of it next: the first lines, from which on it goes ahead by itself.
    pub fn fetch(&self) {
        prefetch(self.0.mapping.block(self.0.index), 0..FETCHED_BYTES);
    }

    /// Has the processor begin to load the line at `offset_bytes`.
    pub fn fetch_line(&self, offset_bytes: usize) {
        assert!(offset_bytes < BLOCK_BYTES, "the line lies in the block");
        prefetch(self.0.mapping.block(self.0.index), offset_bytes..offset_bytes + 1);
    }

    /// The block as its only handle, to be written again.
    ///
    /// # Errors
    /// Gives `self` back while another handle exists.
    pub fn try_unique(self) -> Result<BlockBuf, Self> {
        // When the state is one the handle is ours; only a model of a device could make another one meanwhile.
        let unique = self.0.state().compare_exchange(1, UNIQUE, Ordering::Acquire, Ordering::Relaxed);
        if unique.is_ok() { Ok(BlockBuf(self.0)) } else { Err(self) }
    }
}

impl Clone for SharedBlock {
    fn clone(&self) -> Self {
        let before = self.0.state().fetch_add(1, Ordering::Relaxed);
        assert!((1..UNIQUE / 2).contains(&before), "a shared block has a sane number of handles");
        if self.0.is_lent {
            self.0.mapping.lent.fetch_add(1, Ordering::Relaxed);
        }
        Self(Handle { mapping: self.0.mapping.clone(), index: self.0.index, is_lent: self.0.is_lent })
    }
}

impl Deref for SharedBlock {
    type Target = BlockBytes;
    fn deref(&self) -> &BlockBytes {
        self.0.bytes()
    }
}

impl fmt::Debug for SharedBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SharedBlock({})", self.0.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(block_count: u32) -> BlockPool {
        BlockPool::new(block_count).expect("a small mapping")
    }

    #[test]
    fn huge_pages_change_no_bytes() {
        let pool = pool(2 * 512);
        let mut block = pool.allocate_zeroed().expect("all are free");
        block[4095] = 7;
        pool.prefer_huge_pages();
        assert_eq!((block[0], block[4095]), (0, 7));
        let mut bytes = vec![7; 3 * HUGE_PAGE_BYTES];
        for range in [0..0, 1..2, 5..4096, 1..3 * HUGE_PAGE_BYTES] {
            prefer_huge_pages(&mut bytes[range]);
        }
        assert!(bytes.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn handles_are_counted() {
        let block = pool(1).allocate_zeroed().expect("one is free").freeze();
        let other = block.clone();
        assert_eq!((block.handle_count(), other.handle_count()), (2, 2));
        drop(other);
        assert_eq!(block.handle_count(), 1);
    }

    #[test]
    fn an_empty_pool_refuses_and_drops_refill_it() {
        let pool = pool(2);
        let first = pool.allocate_zeroed().expect("two are free");
        let second = pool.allocate_zeroed().expect("one is free");
        assert!(pool.allocate().is_none());
        drop(first);
        assert_eq!(pool.free_count(), 1);
        drop(second);
        assert_eq!(pool.free_count(), pool.block_count());
    }

    #[test]
    fn the_block_that_is_fetched_is_the_next_and_is_free() {
        let pool = pool(32);
        let first = pool.allocate_many(1).expect("all are free");
        assert_eq!(
            (pool.0.next.load(Ordering::Relaxed), pool.free_count()),
            (1, 31),
            "the second, which is still free"
        );
        drop(first);
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        let order: Vec<u32> = all.iter().map(|block| block.0.index).collect();
        assert_eq!(order, (1..32).chain([0]).collect::<Vec<u32>>(), "in the order in which they became free");
        assert_eq!((pool.free_count(), pool.0.next.load(Ordering::Relaxed)), (0, NONE));
    }

    #[test]
    fn threads_that_take_single_blocks_never_share_one() {
        let pool = pool(64);
        std::thread::scope(|scope| {
            for tag in 1..=4 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let Some(mut blocks) = pool.allocate_many(1) else { continue };
                        blocks[0].fill(tag);
                        assert!(blocks[0].iter().all(|&byte| byte == tag), "nobody else writes to it");
                    }
                });
            }
        });
        assert_eq!(pool.free_count(), 64, "every block came back");
    }

    #[test]
    fn allocate_many_is_all_or_none() {
        let pool = pool(3);
        let held = pool.allocate_many(2).expect("three are free");
        assert!(pool.allocate_many(2).is_none());
        assert_eq!(pool.free_count(), 1);
        drop(held);
        assert_eq!(pool.allocate_many(3).expect("all are free").len(), 3);
    }

    #[test]
    fn what_is_kept_is_for_those_who_cannot_wait() {
        let pool = pool(3);
        pool.set_shares(Shares { clients_max: 3, changes_max: 0, kept: 2 });
        assert!(pool.allocate_many(2).is_none());
        let _held = pool.allocate().expect("one is for everybody");
        assert!(pool.allocate().is_none() && pool.allocate_many(1).is_none());
        let rest = [pool.allocate_kept(), pool.allocate_kept()];
        assert!(rest.iter().all(Option::is_some) && pool.allocate_kept().is_none());
    }

    #[test]
    fn a_payload_is_lent_until_it_is_frozen() {
        let pool = pool(8);
        pool.set_shares(Shares { clients_max: 3, changes_max: 2, kept: 0 });
        let mut payload = pool.allocate_many(2).expect("three may be lent");
        assert!(pool.allocate_many(2).is_none() && !pool.is_short());
        assert_eq!(pool.lent_count(), 2);
        let frozen = payload.pop().expect("two").freeze();
        let other = pool.allocate_many(2).expect("a frozen block is the engine's");
        assert!(pool.is_short() && pool.lend(1).is_none());
        let change = pool.lend_to_change(2).expect("changes have a share of their own");
        assert!(pool.lend_to_change(1).is_none());
        drop((payload, frozen, other, change));
        assert_eq!((pool.lent_count(), pool.free_count()), (0, 8));
        assert!(pool.allocate_many(4).is_none(), "more than the share");
    }

    #[test]
    fn what_a_read_returns_is_lent_until_its_last_copy_is_gone() {
        let pool = pool(8);
        pool.set_shares(Shares { clients_max: 3, changes_max: 0, kept: 0 });
        let block = pool.allocate_zeroed().expect("all are free").freeze();
        let mut loan = pool.lend(2).expect("three may be lent");
        let lent = loan.attach(block.clone());
        assert_eq!(pool.lent_count(), 2);
        drop(loan);
        assert_eq!(pool.lent_count(), 1);
        let sent = lent.clone();
        drop(lent);
        assert_eq!(pool.lent_count(), 1, "the copy is lent, too");
        drop(sent);
        assert_eq!(pool.lent_count(), 0);
        let mut all = pool.lend(9).expect("the whole share");
        assert!(pool.lend(1).is_none());
        let exceeding: Vec<_> = (0..5).map(|_| all.attach(block.clone())).collect();
        assert_eq!(pool.lent_count(), 5);
        drop((all, exceeding));
        assert_eq!(pool.lent_count(), 0);
    }

    #[test]
    fn a_block_returns_after_its_last_handle() {
        let pool = pool(1);
        let mut block = pool.allocate_zeroed().expect("one is free");
        block[7] = 9;
        let shared = block.freeze();
        let clone = shared.clone();
        let shared = shared.try_unique().expect_err("a clone lives");
        drop(clone);
        assert_eq!(shared[7], 9);
        let mut unique = shared.try_unique().expect("the last handle");
        unique[7] = 1;
        assert!(pool.allocate().is_none());
        drop(unique);
        assert_eq!(pool.free_count(), 1);
    }

    #[test]
    fn only_a_device_writes_to_what_is_with_it() {
        let pool = pool(2);
        let block = pool.allocate_zeroed().expect("all are free");
        let index = u32::try_from(pool.offset_of(block.as_ptr()).expect("ours") / BLOCK_BYTES).expect("small");
        assert!(!pool.write_as_device(index, 0, &[1]) && pool.shared(index).is_none(), "the block is its owner's");
        let lent = block.into_device();
        assert_eq!(pool.offset_of(lent.address()), Some(index as usize * BLOCK_BYTES));
        assert!(pool.write_as_device(index, BLOCK_BYTES - 2, &[7, 8]) && pool.shared(index).is_none());
        assert!(!pool.write_as_device(2, 0, &[1]) && pool.shared(2).is_none(), "there is no third block");
        let shared = lent.take_back().freeze();
        assert_eq!(shared[BLOCK_BYTES - 3..], [0, 7, 8]);
        assert!(!pool.write_as_device(index, 0, &[1]), "a shared block never changes");
        let read = pool.shared(index).expect("it is shared");
        let shared = shared.try_unique().expect_err("the reader has a handle");
        drop(read);
        drop(shared.try_unique().expect("the last handle"));
        assert_eq!(pool.free_count(), 2);
    }

    #[test]
    fn what_a_device_may_still_write_is_never_used_again() {
        let pool = pool(2);
        drop(pool.allocate().expect("all are free").into_device());
        assert_eq!(pool.free_count(), 1);
        drop(pool.allocate().expect("one is free").into_device().take_back());
        assert_eq!(pool.free_count(), 1);
    }

    #[test]
    fn handles_outlive_the_pool_value() {
        let block = pool(1).allocate_zeroed().expect("one is free").freeze();
        assert!(block.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn blocks_are_disjoint_and_aligned() {
        let pool = pool(16);
        let mut blocks = pool.allocate_many(16).expect("all are free");
        for (index, block) in blocks.iter_mut().enumerate() {
            assert_eq!(block.as_ptr().addr() % BLOCK_BYTES, 0);
            assert!(pool.contains(block.as_ptr()));
            block.fill(u8::try_from(index).expect("small"));
        }
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.iter().all(|&byte| usize::from(byte) == index));
        }
    }
}
