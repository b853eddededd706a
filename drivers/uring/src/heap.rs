//! Aligned memory that the kernel reads and writes while we look at other parts of it.
//!
//! A part that an operation in flight may write is never seen as `&[u8]`; the parts are handed out through raw pointers or through
//! borrows whose precondition is that no such operation is in flight for them.

// The kernel writes this memory outside of Rust's borrows: raw pointers are the honest form.
#![expect(unsafe_code, reason = "memory shared with operations in flight")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::Range,
    ptr::NonNull,
};

/// Zeroed memory, aligned to pages, for `O_DIRECT`. Not touched before use, so that unused parts cost nothing.
pub(crate) struct HeapBuffer {
    base: NonNull<u8>,
    layout: Layout,
}

impl HeapBuffer {
    /// `length_bytes` of zeroes, at least one.
    pub(crate) fn new(length_bytes: usize) -> Self {
        assert!(length_bytes > 0, "a buffer has bytes");
        let layout = Layout::from_size_align(length_bytes, 4096).expect("page alignment is a power of two");
        // SAFETY: the layout's size is not zero (asserted above).
        let base = unsafe { alloc_zeroed(layout) };
        Self { base: NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Where `range` begins, for an operation.
    pub(crate) fn address(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.len(), "the range lies in the buffer");
        // SAFETY: the offset is inside the allocation or one past it (asserted above).
        unsafe { self.base.as_ptr().add(range.start) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    /// No operation in flight may write in `range`, and nothing else may while the borrow lives.
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let address = self.address(&range);
        // SAFETY: inside the allocation (checked by `address`), initialised (zeroed at first), not written (caller's promise).
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
        // SAFETY: both places lie inside the allocation and may overlap; nobody else uses them (caller's promise).
        unsafe { self.base.as_ptr().copy_from(source, range.len()) };
    }
}

impl Drop for HeapBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the owner waited for its operations.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
