//! Copies into and out of mapped memory.

use std::{ptr::NonNull, sync::atomic};

/// Whether [`store`] and [`fence`] together move bytes out of the processor's caches.
pub(crate) const REACHES_MEMORY: bool = cfg!(target_arch = "x86_64");

/// Copies `bytes` to `target`, past the cache where the processor can.
///
/// # Safety
/// `target` is valid for writes of `bytes.len()` bytes, a multiple of 64, and aligned to 16; no reference into it lives.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn store(target: NonNull<u8>, bytes: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let (vectors, rest) = bytes.as_chunks::<16>();
    assert!(rest.is_empty(), "stores have whole lines");
    let target = target.as_ptr().cast::<__m128i>();
    for (index, vector) in vectors.iter().enumerate() {
        // SAFETY: 16 readable bytes; the load has no alignment of its own.
        let value = unsafe { _mm_loadu_si128(vector.as_ptr().cast()) };
        // SAFETY: inside the target, whose length is that of `bytes`.
        let place = unsafe { target.add(index) };
        // SAFETY: valid and aligned (caller's promise).
        unsafe { _mm_stream_si128(place, value) };
    }
}

/// Copies `bytes` to `target`.
///
/// # Safety
/// `target` is valid for writes of `bytes.len()` bytes; no reference into it lives.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn store(target: NonNull<u8>, bytes: &[u8]) {
    // SAFETY: both sides are valid for the length (caller's promise); a mapping and a caller's slice do not overlap.
    unsafe { target.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// Everything stored before is in memory, or on its way where a power cut cannot stop it, before anything stored after.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    atomic::fence(atomic::Ordering::SeqCst);
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
