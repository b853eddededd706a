//! How bytes get into mapped memory, and out of it; and past the caches into ordinary memory ([`copy_past_caches`]).
//!
//! The instructions are a trait, so that tests can put a memory in the processor's place that loses what was not brought to safety.
//!
//! | way | a line is durable after | chosen |
//! |---|---|---|
//! | [`Stores::NonTemporal`] | its store, past the cache, and a fence | where the platform saves what has reached the memory controller |
//! | [`Stores::WrittenBack`] | its store into the cache, its write-back (`clwb`) and a fence | never: takes 1.6 times as long, and more for long ones (docs/performance.md) |
//! | [`Stores::Cached`] | its store and a fence | where the platform saves the caches too; for long stores past the cache is quicker there as well |

// Mapped memory is reached through raw pointers.
#![expect(unsafe_code, reason = "memory mapping")]

use std::{
    ptr::NonNull,
    sync::atomic::{self, Ordering},
};

/// Bytes that a processor moves to memory at once.
pub const LINE_BYTES: usize = 64;
/// The content of one line.
pub type Line = [u8; LINE_BYTES];

/// Whether this program can bring bytes to safety at all on processors of this kind.
pub(crate) const REACHES_MEMORY: bool = cfg!(target_arch = "x86_64");

/// How bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// Past the cache.
    NonTemporal,
    /// Into the cache, which is told to write each line back.
    WrittenBack,
    /// Into the cache.
    Cached,
}

/// What a processor does with lines of memory.
///
/// # Safety of its functions
/// `target` is valid for writes of a line, aligned to one, and no reference into it lives.
pub trait Instructions {
    /// Stores a line past the cache.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn stream(&mut self, target: NonNull<u8>, line: &Line);

    /// Stores a line into the cache.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn store(&mut self, target: NonNull<u8>, line: &Line);

    /// Begins to write a line of the cache back to memory.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn write_back(&mut self, target: NonNull<u8>);

    /// What was streamed or written back before is in memory, or on its way where a power cut cannot stop it, before anything that comes after.
    fn fence(&mut self);
}

/// Copies `bytes` to `target`; a fence makes them durable.
///
/// # Safety
/// `target` is valid for writes of `bytes.len()` bytes, a multiple of 64, and aligned to 64; no reference into it lives.
pub(crate) unsafe fn store<I: Instructions>(instructions: &mut I, stores: Stores, target: NonNull<u8>, bytes: &[u8]) {
    let (lines, rest) = bytes.as_chunks::<LINE_BYTES>();
    assert!(rest.is_empty(), "stores have whole lines");
    for (index, line) in lines.iter().enumerate() {
        // SAFETY: inside the target, whose length is that of `bytes`.
        let place = unsafe { target.add(index * LINE_BYTES) };
        match stores {
            // SAFETY: valid and aligned (caller's promise).
            Stores::NonTemporal => unsafe { instructions.stream(place, line) },
            // SAFETY: as above.
            Stores::WrittenBack | Stores::Cached => unsafe { instructions.store(place, line) },
        }
        if stores == Stores::WrittenBack {
            // SAFETY: as above.
            unsafe { instructions.write_back(place) };
        }
    }
}

/// Copies `source` over `target`, of the same length, past the processor's caches as far as it fills whole lines: no line is read before it is written,
/// and none that is in use leaves the caches for bytes that nobody reads soon.
///
/// # Panics
/// When the lengths differ.
pub fn copy_past_caches(target: &mut [u8], source: &[u8]) {
    assert_eq!(target.len(), source.len(), "a copy is as long as what is copied");
    let before = target.as_ptr().align_offset(LINE_BYTES).min(target.len());
    let (start, rest) = target.split_at_mut(before);
    let (lines, end) = rest.split_at_mut(rest.len() / LINE_BYTES * LINE_BYTES);
    let (source_of_start, rest) = source.split_at(before);
    let (source_of_lines, source_of_end) = rest.split_at(lines.len());
    start.copy_from_slice(source_of_start);
    // SAFETY: whole lines that are aligned, and ours alone until the slice is used again, which it is not.
    unsafe { store(&mut Native, Stores::NonTemporal, NonNull::from(lines).cast(), source_of_lines) };
    end.copy_from_slice(source_of_end);
    Native.fence();
}

/// `length` bytes at `source`, read word by word: another program may be writing there.
///
/// # Safety
/// `source` is valid for reads of `length` bytes, a multiple of 8, and aligned to 8.
pub(crate) unsafe fn load(source: NonNull<u8>, length: usize) -> Vec<u8> {
    let words = source.as_ptr().cast::<u64>();
    let mut bytes = Vec::with_capacity(length);
    for index in 0..length / 8 {
        // SAFETY: inside the source.
        let place = unsafe { words.add(index) };
        // SAFETY: valid and aligned (caller's promise).
        let word = unsafe { place.read_volatile() };
        // Memory order is kept: the bytes of the word as they lie in memory on the little-endian machines we run on.
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The processor that this program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

#[cfg(target_arch = "x86_64")]
impl Instructions for Native {
    #[inline]
    unsafe fn stream(&mut self, target: NonNull<u8>, line: &Line) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let target = target.as_ptr().cast::<__m128i>();
        for (index, vector) in line.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: 16 readable bytes; the load has no alignment of its own.
            let value = unsafe { _mm_loadu_si128(vector.as_ptr().cast()) };
            // SAFETY: inside the line.
            let place = unsafe { target.add(index) };
            // SAFETY: valid and aligned (caller's promise).
            unsafe { _mm_stream_si128(place, value) };
        }
    }

    #[inline]
    unsafe fn store(&mut self, target: NonNull<u8>, line: &Line) {
        // SAFETY: valid and aligned (caller's promise).
        unsafe { target.as_ptr().cast::<Line>().write(*line) };
    }

    #[inline]
    unsafe fn write_back(&mut self, target: NonNull<u8>) {
        // SAFETY: the processor has the instruction (`can_write_back`); it changes no register and no content of memory.
        unsafe { std::arch::asm!("clwb [{}]", in(reg) target.as_ptr(), options(nostack, preserves_flags)) };
    }

    #[inline]
    fn fence(&mut self) {
        // SAFETY: every x86-64 processor has SSE.
        unsafe { std::arch::x86_64::_mm_sfence() };
        atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// Whether this processor has [`Stores::WrittenBack`].
#[must_use]
pub fn can_write_back() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::x86_64::__cpuid_count(7, 0).ebx & (1 << 24) != 0;
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Stores as the language has them: nothing is brought to safety, see [`REACHES_MEMORY`].
#[cfg(not(target_arch = "x86_64"))]
impl Instructions for Native {
    unsafe fn stream(&mut self, target: NonNull<u8>, line: &Line) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.store(target, line) };
    }

    unsafe fn store(&mut self, target: NonNull<u8>, line: &Line) {
        // SAFETY: valid and aligned (caller's promise).
        unsafe { target.as_ptr().cast::<Line>().write(*line) };
    }

    unsafe fn write_back(&mut self, _target: NonNull<u8>) {}

    fn fence(&mut self) {
        atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_past_the_caches_copies_all_bytes_and_no_more() {
        let source: Vec<u8> = (0..300_u32).map(|index| u8::try_from(index % 251).expect("below 251")).collect();
        for from in 0..LINE_BYTES + 1 {
            for length in [0, 1, 47, 63, 64, 65, 127, 128, 129, 200] {
                let mut target = vec![0xff; 300];
                copy_past_caches(&mut target[from..from + length], &source[..length]);
                assert_eq!(target[from..from + length], source[..length]);
                assert!(
                    target[..from].iter().chain(&target[from + length..]).all(|&byte| byte == 0xff),
                    "from {from}, {length} bytes"
                );
            }
        }
    }
}
