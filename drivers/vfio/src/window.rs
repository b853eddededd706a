//! A window of registers, mapped from a file of the kernel.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    any::Any,
    fmt, io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};
use twinlog_pci::Registers;

struct Mapping {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
    /// The function, which lives as long as its windows.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: registers are reached by volatile accesses of one machine word, which any thread may make.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned, and every window on the mapping holds it by an `Arc`.
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}

/// Registers of a function. A clone is the same window.
#[derive(Clone)]
pub struct Window(Arc<Mapping>);

impl fmt::Debug for Window {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Window({} bytes)", self.0.length_bytes)
    }
}

impl Window {
    /// Maps a part of a file of the kernel that shows registers.
    pub(crate) fn map(
        file: impl AsFd,
        offset: i64,
        length_bytes: NonZeroUsize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing of this process.
        let base = unsafe { mmap(None, length_bytes, protection, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Self(Arc::new(Mapping { base: base.cast(), length_bytes, _owner: owner })))
    }

    /// The register at `offset`.
    fn register<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset.is_multiple_of(size), "a register lies on a multiple of its size: {offset:#x}");
        let length = self.0.length_bytes.get();
        assert!(
            offset <= length && size <= length - offset,
            "a register lies in its window: {offset:#x} of {length:#x}"
        );
        // SAFETY: the offset is inside the mapping (asserted above).
        unsafe { self.0.base.add(offset) }.cast().as_ptr()
    }

    fn read<T>(&self, offset: usize) -> T {
        let register = self.register::<T>(offset);
        // SAFETY: aligned and inside the mapping (`register`); any bits are a value of the integers that this is called with.
        let value = unsafe { register.read_volatile() };
        // What the register says of memory is true of loads after it.
        fence(Ordering::Acquire);
        value
    }

    fn write<T>(&self, offset: usize, value: T) {
        let register = self.register::<T>(offset);
        // Stores to memory come before, as the function sees them: x86-64 keeps that order by itself, and only the compiler has to be told.
        fence(if cfg!(target_arch = "x86_64") { Ordering::Release } else { Ordering::SeqCst });
        // SAFETY: aligned and inside the mapping (`register`), which nothing refers to.
        unsafe { register.write_volatile(value) };
    }
}

impl Registers for Window {
    fn length_bytes(&self) -> usize {
        self.0.length_bytes.get()
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.read(offset))
    }

    fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.read(offset))
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, value.to_le());
    }

    fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, value.to_le());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn window() -> (std::fs::File, Window) {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8192).expect("sized");
        let window = Window::map(&file, 4096, NonZeroUsize::new(4096).expect("some"), Arc::new(())).expect("mapped");
        (file, window)
    }

    #[test]
    fn registers_are_little_endian_words() {
        let (file, window) = window();
        window.write_u32(0x14, 0x0102_0304);
        window.write_u64(0xFF8, 0x1112_1314_1516_1718);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 4096 + 0x14).expect("read");
        assert_eq!(bytes, [4, 3, 2, 1, 0, 0, 0, 0]);
        file.read_exact_at(&mut bytes, 8192 - 8).expect("read");
        assert_eq!(bytes, [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        let again = window.clone();
        drop(window);
        assert_eq!((again.read_u32(0x14), again.read_u64(0x10)), (0x0102_0304, 0x0102_0304_0000_0000));
        assert_eq!(again.length_bytes(), 4096);
    }

    #[test]
    #[should_panic = "a register lies in its window"]
    fn a_window_ends_where_it_ends() {
        window().1.read_u32(4096);
    }

    #[test]
    #[should_panic = "a register lies in its window"]
    fn no_offset_wraps_around() {
        window().1.write_u64(usize::MAX - 7, 0);
    }

    #[test]
    #[should_panic = "a multiple of its size"]
    fn registers_are_aligned() {
        window().1.read_u64(4);
    }
}
