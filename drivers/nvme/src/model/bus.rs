//! Memory as a device sees it: by address, and only what was mapped for it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use twinlog_device::{BLOCK_BYTES, BlockPool, Prng};
use twinlog_pci::{DmaMemory, PAGE_BYTES, PoolMap, WORD_BYTES};

/// An access that no driver had allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// Where.
    pub address: u64,
    /// How much.
    pub length_bytes: usize,
    /// Whether it was a write.
    pub is_write: bool,
}

/// What is mapped.
pub(super) struct Bus {
    memories: BTreeMap<u64, Arc<[AtomicU64]>>,
    /// Pools and their first addresses, in one piece each.
    pools: Vec<(u64, BlockPool)>,
    next: u64,
    prng: Prng,
    pub(super) faults: Vec<DmaFault>,
}

impl Bus {
    pub(super) fn new(prng: Prng) -> Self {
        Self { memories: BTreeMap::new(), pools: Vec::new(), next: 0x10_0000, prng, faults: Vec::new() }
    }

    /// Addresses for `length_bytes`, with unmapped pages around them.
    fn place(&mut self, length_bytes: usize) -> u64 {
        let gap = self.prng.between(1, 1 << 12) * PAGE_BYTES as u64;
        let base = self.next + gap;
        self.next = base + length_bytes as u64;
        base
    }

    pub(super) fn map_pool(&mut self, pool: &BlockPool) -> PoolMap {
        let base = self.place(pool.region().1);
        self.pools.push((base, pool.clone()));
        PoolMap::contiguous(pool, base)
    }

    /// Words of the memory that holds all of `address..address + length_bytes`.
    fn words(&self, address: u64, length_bytes: usize) -> Option<&[AtomicU64]> {
        let (base, memory) = self.memories.range(..=address).next_back()?;
        let offset = usize::try_from(address - base).ok()?;
        if !offset.is_multiple_of(WORD_BYTES) || !length_bytes.is_multiple_of(WORD_BYTES) {
            return None;
        }
        let first = offset / WORD_BYTES;
        memory.get(first..first.checked_add(length_bytes / WORD_BYTES)?)
    }

    /// Block and offset in it of a place in a pool.
    fn block(&self, address: u64) -> Option<(&BlockPool, u32, usize)> {
        self.pools.iter().find_map(|(base, pool)| {
            let offset = usize::try_from(address.checked_sub(*base)?).ok()?;
            let index = u32::try_from(offset / BLOCK_BYTES).ok()?;
            (offset < pool.region().1).then_some((pool, index, offset % BLOCK_BYTES))
        })
    }

    /// Reads what lies in one page.
    pub(super) fn read(&mut self, address: u64, length_bytes: usize) -> Option<Vec<u8>> {
        let bytes = self.try_read(address, length_bytes);
        if bytes.is_none() {
            self.faults.push(DmaFault { address, length_bytes, is_write: false });
        }
        bytes
    }

    fn try_read(&self, address: u64, length_bytes: usize) -> Option<Vec<u8>> {
        if let Some(words) = self.words(address, length_bytes) {
            return Some(words.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes_le()).collect());
        }
        let (pool, index, offset) = self.block(address)?;
        let block = pool.shared(index)?;
        block.get(offset..offset.checked_add(length_bytes)?).map(<[u8]>::to_vec)
    }

    /// Writes what lies in one page.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let done = self.try_write(address, bytes).is_some();
        if !done {
            self.faults.push(DmaFault { address, length_bytes: bytes.len(), is_write: true });
        }
        done
    }

    fn try_write(&self, address: u64, bytes: &[u8]) -> Option<()> {
        if let Some(words) = self.words(address, bytes.len()) {
            for (word, part) in words.iter().zip(bytes.chunks_exact(WORD_BYTES)) {
                let value = u64::from_le_bytes(part.try_into().expect("a chunk is a word"));
                word.store(value.to_le(), Ordering::Release);
            }
            return Some(());
        }
        let (pool, index, offset) = self.block(address)?;
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= BLOCK_BYTES);
        (fits && pool.write_as_device(index, offset, bytes)).then_some(())
    }
}

/// Bytes of a word that lies in memory as little-endian.
trait LittleEndianWord {
    fn to_ne_bytes_le(self) -> [u8; 8];
}

impl LittleEndianWord for u64 {
    fn to_ne_bytes_le(self) -> [u8; 8] {
        u64::from_le(self).to_le_bytes()
    }
}

/// Memory that a driver allocated for a model.
pub struct ModelMemory {
    bus: Rc<RefCell<Bus>>,
    words: Arc<[AtomicU64]>,
    address: u64,
}

impl ModelMemory {
    pub(super) fn new(bus: &Rc<RefCell<Bus>>, length_bytes: usize) -> Self {
        let words: Arc<[AtomicU64]> = (0..length_bytes.div_ceil(WORD_BYTES)).map(|_| AtomicU64::new(0)).collect();
        let mut map = bus.borrow_mut();
        let address = map.place(length_bytes.next_multiple_of(PAGE_BYTES));
        map.memories.insert(address, words.clone());
        drop(map);
        Self { bus: bus.clone(), words, address }
    }
}

impl DmaMemory for ModelMemory {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn bus_address(&self) -> u64 {
        self.address
    }
}

impl Drop for ModelMemory {
    fn drop(&mut self) {
        self.bus.borrow_mut().memories.remove(&self.address);
    }
}
