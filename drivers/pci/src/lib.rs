//! How a driver in user space reaches one PCI function: three traits, and what a way to a function (VFIO, uio, a model) implements.
//!
//! | trait | what |
//! |---|---|
//! | [`PciFunction`] | the function: identity, windows, memory, interrupts, reset, removal |
//! | [`Registers`] | one window of registers (a BAR) |
//! | [`DmaMemory`] | memory that both sides read and write: queues, lists of addresses |
//!
//! Blocks of data need no memory of their own: [`PciFunction::map_pool`] makes a whole [`BlockPool`] known to the function, and
//! [`PoolMap::bus_address`] is arithmetic from then on.
//!
//! # Contracts
//!
//! 1. **No references.** Memory that the function can write at the same time is reached through atomics ([`DmaMemory::words`]) or is
//!    a [`twinlog_memory::DeviceBlock`], to which no reference exists.
//! 2. **Order.** A register write happens after every store that the same thread made before it, as the function sees them. A load of
//!    [`DmaMemory`] with acquire order is not overtaken by later loads.
//! 3. **Reset.** When [`PciFunction::reset`] has returned `Ok`, no access of the function to memory is under way or will come before a
//!    driver lets the function start again. The registers have their initial values. The windows, memory and interrupts stay.
//! 4. **Removal.** Of a function that is gone every register reads as all ones, and writes go nowhere. Nothing of this is an error.
//! 5. **End.** What a function was told to map stays mapped, and the memory alive, until the last clone of the function, its windows and
//!    its memory is gone. The driver resets the function before that.
//! 6. Registers may be used by several threads at the same time, each register by one.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
};
use thiserror::Error;
use twinlog_memory::{BLOCK_BYTES, BlockPool};

/// Bytes of a page: memory for DMA begins on such a boundary, on the bus too.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of a word of [`DmaMemory`].
pub const WORD_BYTES: usize = 8;

/// What a function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Domain, bus, device and function, as the kernel writes them: `0000:01:00.0`.
    pub address: String,
    /// The vendor's number.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// Base class, subclass and programming interface, 24 bits: 0x010802 for an NVMe controller.
    pub class: u32,
}

/// Why a function cannot be used as asked.
#[derive(Debug, Error)]
pub enum PciError {
    /// The function has no such window, or it is not in memory space.
    #[error("{address}: no register window {window}")]
    NoWindow {
        /// [`Identity::address`].
        address: String,
        /// Number of the base address register.
        window: u8,
    },
    /// The function has no such interrupt vector.
    #[error("{address}: no interrupt vector {vector}")]
    NoVector {
        /// [`Identity::address`].
        address: String,
        /// Number of the vector.
        vector: u32,
    },
    /// The kernel refused.
    #[error("{address}: {action}: {source}")]
    Refused {
        /// [`Identity::address`].
        address: String,
        /// What was tried, for a person.
        action: String,
        /// The kernel's error.
        source: std::io::Error,
    },
}

/// One PCI function that this process has for itself. Access to memory by the function is enabled from the beginning.
pub trait PciFunction {
    /// Its register windows.
    type Registers: Registers;
    /// Memory that it can reach.
    type Memory: DmaMemory;

    /// What it is.
    fn identity(&self) -> &Identity;

    /// What keeps it to the memory that was mapped for it, for a person: `IOMMUFD`; `nothing`.
    fn confined_by(&self) -> &'static str;

    /// Maps the register window of base address register `window`, 0 to 5.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    fn map_window(&self, window: u8) -> Result<Self::Registers, PciError>;

    /// Zeroed memory of at least `length_bytes`, pinned, contiguous on the bus, aligned to [`PAGE_BYTES`] there.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn allocate(&self, length_bytes: usize) -> Result<Self::Memory, PciError>;

    /// Pins the whole mapping of `pool` and makes it known to the function, for reading and writing.
    ///
    /// # Errors
    /// When the kernel refuses; most often because the process may not lock that much memory.
    fn map_pool(&self, pool: &BlockPool) -> Result<PoolMap, PciError>;

    /// How many interrupt vectors there are; zero for a way that has no interrupts.
    fn vector_count(&self) -> u32;

    /// A new event counter (eventfd, not blocking) that the kernel increments when `vector` is signalled.
    ///
    /// # Errors
    /// When there is no such vector, or the kernel refuses.
    fn interrupt(&self, vector: u32) -> Result<OwnedFd, PciError>;

    /// Resets the function: contract 3. Blocks for as long as the kernel takes: at least 100 ms on real hardware.
    ///
    /// # Errors
    /// When the function has no reset or the kernel refuses: then it may still be writing to memory.
    fn reset(&self) -> Result<(), PciError>;

    /// Whether the kernel has said that the function is removed or wants it back. It stays true.
    fn is_removed(&self) -> bool;
}

/// A window of registers. Every access is one volatile access of the machine, in the order of the program. Clones are the same window.
///
/// # Panics
/// Each function panics when an offset is not a multiple of the access's size or lies outside: offsets are the driver's, never the device's.
pub trait Registers: Clone {
    /// Bytes of the window.
    fn length_bytes(&self) -> usize;

    /// Reads four bytes.
    fn read_u32(&self, offset: usize) -> u32;

    /// Reads eight bytes.
    fn read_u64(&self, offset: usize) -> u64;

    /// Writes four bytes.
    fn write_u32(&self, offset: usize, value: u32);

    /// Writes eight bytes.
    fn write_u64(&self, offset: usize, value: u64);
}

/// Memory that a driver and its function read and write at the same time. Dropping it ends the function's right to it.
///
/// # Panics
/// Each function panics when bytes are not whole words or lie outside: offsets are the driver's, never the device's.
pub trait DmaMemory {
    /// The memory as words in the function's byte order (little-endian), first byte on a page.
    fn words(&self) -> &[AtomicU64];

    /// Where the first byte lies on the bus.
    fn bus_address(&self) -> u64;

    /// Bytes of the memory.
    fn length_bytes(&self) -> usize {
        self.words().len() * WORD_BYTES
    }

    /// The word at byte `offset`, in the machine's byte order.
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.words()[word(offset)].load(order))
    }

    /// Sets the word at byte `offset`.
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.words()[word(offset)].store(value.to_le(), order);
    }

    /// Copies whole words out of the memory. The function may be writing meanwhile: what comes is not one moment's content.
    fn read(&self, offset: usize, bytes: &mut [u8]) {
        let words = &self.words()[word(offset)..][..word(bytes.len())];
        for (part, word) in bytes.chunks_exact_mut(WORD_BYTES).zip(words) {
            part.copy_from_slice(&u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes());
        }
    }

    /// Copies whole words into the memory.
    fn write(&self, offset: usize, bytes: &[u8]) {
        let words = &self.words()[word(offset)..][..word(bytes.len())];
        for (part, word) in bytes.chunks_exact(WORD_BYTES).zip(words) {
            let value = u64::from_le_bytes(part.try_into().expect("a chunk is a word"));
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Sets `length_bytes` to zero.
    fn clear(&self, offset: usize, length_bytes: usize) {
        for word in &self.words()[word(offset)..][..word(length_bytes)] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn word(bytes: usize) -> usize {
    assert!(bytes.is_multiple_of(WORD_BYTES), "memory for DMA is used in whole words");
    bytes / WORD_BYTES
}

/// Where the blocks of a pool lie on the bus.
#[derive(Clone, Debug)]
pub struct PoolMap {
    pool: BlockPool,
    /// Logarithm of the bytes of a piece.
    shift: u32,
    /// Where each piece of the pool's region begins on the bus.
    pieces: Box<[u64]>,
}

impl PoolMap {
    /// A pool whose region lies in one piece from `bus_address` on, as an IOMMU can map it.
    #[must_use]
    pub fn contiguous(pool: &BlockPool, bus_address: u64) -> Self {
        Self { pool: pool.clone(), shift: usize::BITS - 1, pieces: Box::new([bus_address]) }
    }

    /// A pool whose region lies in pieces of `piece_bytes`, at these places: huge pages without an IOMMU.
    ///
    /// # Panics
    /// When the pieces cut blocks or do not cover the region.
    #[must_use]
    pub fn scattered(pool: &BlockPool, piece_bytes: usize, pieces: Box<[u64]>) -> Self {
        assert!(piece_bytes.is_power_of_two() && piece_bytes >= BLOCK_BYTES, "pieces hold whole blocks");
        assert!(pieces.len() >= pool.region().1.div_ceil(piece_bytes), "pieces cover the whole region");
        Self { pool: pool.clone(), shift: piece_bytes.trailing_zeros(), pieces }
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Where the byte at `address` lies on the bus; none if it is not the pool's.
    #[must_use]
    pub fn bus_address(&self, address: *const u8) -> Option<u64> {
        let offset = self.pool.offset_of(address)?;
        let piece = self.pieces[offset >> self.shift];
        Some(piece + (offset & ((1 << self.shift) - 1)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Vec<AtomicU64>);

    impl DmaMemory for Plain {
        fn words(&self) -> &[AtomicU64] {
            &self.0
        }

        fn bus_address(&self) -> u64 {
            0
        }
    }

    #[test]
    fn memory_is_copied_in_the_devices_byte_order() {
        let memory = Plain((0..4).map(|_| AtomicU64::new(0)).collect());
        memory.write(8, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(memory.load(8, Ordering::Acquire), 0x0807_0605_0403_0201);
        memory.store(24, 0x0A, Ordering::Relaxed);
        let mut bytes = [0xFF; 16];
        memory.read(16, &mut bytes);
        assert_eq!(bytes, [9, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]);
        memory.clear(16, 8);
        assert_eq!(memory.load(16, Ordering::Relaxed), 0);
        assert_eq!(memory.length_bytes(), 32);
    }

    #[test]
    #[should_panic = "range end index"]
    fn memory_ends_where_it_ends() {
        Plain((0..4).map(|_| AtomicU64::new(0)).collect()).write(24, &[0; 16]);
    }

    #[test]
    #[should_panic = "whole words"]
    fn memory_is_made_of_words() {
        Plain((0..4).map(|_| AtomicU64::new(0)).collect()).clear(4, 8);
    }

    #[test]
    fn blocks_are_found_on_the_bus() {
        let pool = BlockPool::new(4).expect("a small mapping");
        let base = pool.region().0.cast_const();
        let one = PoolMap::contiguous(&pool, 0x7000_0000);
        let two = PoolMap::scattered(&pool, 2 * BLOCK_BYTES, Box::new([0x10_0000, 0x4000]));
        for (offset, expected_one, expected_two) in [
            (0, 0x7000_0000, 0x10_0000),
            (BLOCK_BYTES, 0x7000_1000, 0x10_1000),
            (2 * BLOCK_BYTES, 0x7000_2000, 0x4000),
            (4 * BLOCK_BYTES - 1, 0x7000_3FFF, 0x5FFF),
        ] {
            let address = base.wrapping_add(offset);
            assert_eq!(one.bus_address(address), Some(expected_one));
            assert_eq!(two.bus_address(address), Some(expected_two));
        }
        assert_eq!(one.bus_address(base.wrapping_add(4 * BLOCK_BYTES)), None);
        assert_eq!(one.bus_address(base.wrapping_sub(1)), None);
    }
}
