//! Aligned memory that the kernel reads and writes while we look at other parts of it.
//!
//! A part that an operation in flight may write is never seen as `&[u8]`; the parts are handed out through raw pointers or through
//! borrows whose precondition is that no such operation is in flight for them.

// The kernel writes this memory outside of Rust's borrows: raw pointers are the honest form.
#![expect(unsafe_code, reason = "memory shared with operations in flight")]

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::{num::NonZeroUsize, ops::Range, ptr::NonNull};

/// Zeroed memory, aligned to pages, for `O_DIRECT`. A mapping of its own, because an allocator would fill it with zeroes: parts that
/// are never used cost nothing.
pub(crate) struct PageBuffer {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl Send for PageBuffer {}
// SAFETY: what a shared buffer hands out is addresses, and borrows whose callers promise that nobody writes there.
unsafe impl Sync for PageBuffer {}

impl PageBuffer {
    /// `length_bytes` of zeroes, at least one.
    ///
    /// # Panics
    /// When the machine has no memory, as every allocation does.
    pub(crate) fn new(length_bytes: usize) -> Self {
        let length_bytes = NonZeroUsize::new(length_bytes).expect("a buffer has bytes");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe { mmap_anonymous(None, length_bytes, protection, MapFlags::MAP_PRIVATE) };
        Self { base: base.expect("the machine has memory").cast(), length_bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.length_bytes.get()
    }

    /// Where `range` begins, for an operation.
    pub(crate) fn address(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.len(), "the range lies in the buffer");
        // SAFETY: the offset is inside the mapping or one past it (asserted above).
        unsafe { self.base.as_ptr().add(range.start) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    /// No operation in flight may write in `range`, and nothing else may while the borrow lives.
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let address = self.address(&range);
        // SAFETY: inside the mapping (checked by `address`), initialised (zeroed at first), not written (caller's promise).
        unsafe { std::slice::from_raw_parts(address, range.len()) }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// No operation in flight may name this part, and no borrow of it may live.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let address = self.address(&(offset..offset + bytes.len()));
        // SAFETY: both sides are valid for the length (checked by `address`), and a caller's slice cannot overlap a part that
        // nobody borrows (caller's promise).
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Moves the bytes of `range` to the front.
    ///
    /// # Safety
    /// As for [`Self::write`], for the bytes of `range` and their new place.
    pub(crate) unsafe fn move_to_front(&self, range: Range<usize>) {
        let source = self.address(&range);
        // SAFETY: both places lie inside the mapping and may overlap; nobody else uses them (caller's promise).
        unsafe { self.base.as_ptr().copy_from(source, range.len()) };
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned; the owner waited for its operations.
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}
