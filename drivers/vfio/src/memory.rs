//! Memory that a function and its driver use at the same time.

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{
    fmt, io,
    num::NonZeroUsize,
    ptr::NonNull,
    slice,
    sync::{Arc, atomic::AtomicU64},
};
use twinlog_memory::HUGE_PAGE_BYTES;
use twinlog_pci::{DmaMemory, PAGE_BYTES, WORD_BYTES};

/// What a function does about memory that is given up, before its pages go.
pub(crate) trait Owner: Send + Sync {
    /// Ends the function's right to memory.
    fn forget(&self, bus_address: u64, length_bytes: usize);
}

/// An anonymous mapping of zeroes.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
}

// SAFETY: an owned mapping, whose bytes are reached as atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `length_bytes`, in whole pages, or in huge pages that are there already.
    pub(crate) fn new(length_bytes: usize, is_huge: bool) -> io::Result<Self> {
        let page_bytes = if is_huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let whole = length_bytes.max(1).checked_next_multiple_of(page_bytes).and_then(NonZeroUsize::new);
        let length_bytes = whole.ok_or(io::ErrorKind::OutOfMemory)?;
        let huge = MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB | MapFlags::MAP_POPULATE;
        let huge = if is_huge { huge } else { MapFlags::empty() };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe { mmap_anonymous(None, length_bytes, protection, MapFlags::MAP_PRIVATE | huge) }?;
        let mapping = Self { base: base.cast(), length_bytes };
        keep_from_children(mapping.base, length_bytes.get())?;
        Ok(mapping)
    }

    pub(crate) fn length_bytes(&self) -> usize {
        self.length_bytes.get()
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.base
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, lives as long as `self`, and every bit pattern is a value; whoever writes it at the same
        // time, the function included, is a matter of atomics.
        unsafe { slice::from_raw_parts(self.base.cast().as_ptr(), self.length_bytes.get() / WORD_BYTES) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned, and references to it borrow this value.
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}

/// A process that forks would get the pages, or a copy of them, of which the function knows nothing.
pub(crate) fn keep_from_children(base: NonNull<u8>, length_bytes: usize) -> io::Result<()> {
    // SAFETY: it changes what a child process gets, and nothing of this one's memory.
    Ok(unsafe { madvise(base.cast(), length_bytes, MmapAdvise::MADV_DONTFORK) }?)
}

/// Memory for queues and lists, as [`DmaMemory`].
pub struct Memory {
    mapping: Mapping,
    bus_address: u64,
    owner: Arc<dyn Owner>,
}

impl Memory {
    pub(crate) fn new(mapping: Mapping, bus_address: u64, owner: Arc<dyn Owner>) -> Self {
        Self { mapping, bus_address, owner }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Memory({} bytes at {:#x} on the bus)", self.mapping.length_bytes, self.bus_address)
    }
}

impl DmaMemory for Memory {
    fn words(&self) -> &[AtomicU64] {
        self.mapping.words()
    }

    fn bus_address(&self) -> u64 {
        self.bus_address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.owner.forget(self.bus_address, self.mapping.length_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{OnceLock, atomic::Ordering::Relaxed};

    struct Forgotten(OnceLock<(u64, usize)>);

    impl Owner for Forgotten {
        fn forget(&self, bus_address: u64, length_bytes: usize) {
            self.0.set((bus_address, length_bytes)).expect("once");
        }
    }

    #[test]
    fn memory_is_zeroed_whole_pages_and_is_given_up_once() {
        let owner = Arc::new(Forgotten(OnceLock::new()));
        let mapping = Mapping::new(PAGE_BYTES + 1, false).expect("mapped");
        let memory = Memory::new(mapping, 0x10_0000, owner.clone());
        assert_eq!((memory.length_bytes(), memory.bus_address()), (2 * PAGE_BYTES, 0x10_0000));
        assert!(memory.words().iter().all(|word| word.load(Relaxed) == 0));
        memory.store(2 * PAGE_BYTES - 8, 7, Relaxed);
        assert_eq!(memory.load(2 * PAGE_BYTES - 8, Relaxed), 7);
        drop(memory);
        assert_eq!(owner.0.get(), Some(&(0x10_0000, 2 * PAGE_BYTES)));
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Mapping::new(usize::MAX, false).is_err());
        assert!(Mapping::new(usize::MAX / 2, false).is_err());
    }
}
