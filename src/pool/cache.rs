//! Verified blocks in memory, by identity.
//!
//! The key holds the block's birth as well as its address, and a block on disk never changes while anything refers to it (rule R9), so
//! an entry can be old but never wrong: nothing has to be invalidated. Replacement is second chance over one queue.
//!
//! Under writes every block that comes has another one go, and both waited for memory in a table that holds the entries themselves. Here
//! the table holds places of four bytes, most of which the processor's own cache has, and entries come and go in the order in which they lie.

use crate::{
    base::{CpNumber, IdHasher, planted},
    format::reference::BlockKey,
};
use hashbrown::HashTable;
use std::{cell::Cell, collections::VecDeque, hash::Hasher as _};
use twinlog_device::SharedBlock;

/// Index of an entry.
type Place = u32;

struct Entry {
    key: BlockKey,
    block: SharedBlock,
    used: Cell<bool>,
}

/// The cache. Its size is bounded by whoever calls [`Cache::evict`].
#[derive(Default)]
pub struct Cache {
    /// The place of each entry, by the hash of its key.
    table: HashTable<Place>,
    entries: Vec<Option<Entry>>,
    /// Places without an entry.
    vacant: Vec<Place>,
    /// The places of all entries; the first is the next to go.
    order: VecDeque<Place>,
}

impl Cache {
    /// The block, if it is here.
    pub fn get(&self, key: BlockKey) -> Option<&SharedBlock> {
        let entry = self.find(known_by(key))?;
        entry.used.set(true);
        Some(&entry.block)
    }

    /// Has the processor load what [`Self::get`] will look at, for somebody who looks for many: without this they wait for memory one after
    /// the other. That is the table, the entry, and the count of the block's handles.
    pub fn look_ahead(&self, key: BlockKey) {
        let entry = self.find(known_by(key));
        std::hint::black_box(entry.map(|entry| entry.block.handle_count()));
    }

    /// Keeps a verified block.
    pub fn insert(&mut self, key: BlockKey, block: SharedBlock) {
        let key = known_by(key);
        let entry = Some(Entry { key, block, used: Cell::new(false) });
        if let Some(&place) = self.table.find(hash(key), |&place| at(&self.entries, place).key == key) {
            self.entries[place as usize] = entry;
            return;
        }
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Place::try_from(self.entries.len() - 1).expect("fewer blocks of memory than 2^32")
        });
        self.entries[place as usize] = entry;
        self.table.insert_unique(hash(key), place, |&place| hash(at(&self.entries, place).key));
        self.order.push_back(place);
    }

    /// Drops the entry that was unused for longest, roughly. False when the cache is empty.
    pub fn evict(&mut self) -> bool {
        while let Some(place) = self.order.pop_front() {
            let entry = at(&self.entries, place);
            if entry.used.take() {
                self.order.push_back(place);
            } else {
                let found = self.table.find_entry(hash(entry.key), |&other| other == place);
                found.expect("every entry is in the table").remove();
                self.entries[place as usize] = None;
                self.vacant.push(place);
                return true;
            }
        }
        false
    }

    fn find(&self, key: BlockKey) -> Option<&Entry> {
        let place = self.table.find(hash(key), |&place| at(&self.entries, place).key == key)?;
        Some(at(&self.entries, *place))
    }

    /// Blocks in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

fn at(entries: &[Option<Entry>], place: Place) -> &Entry {
    entries[place as usize].as_ref().expect("the table and the order name entries")
}

/// Of a key as one word.
fn hash(key: BlockKey) -> u64 {
    let mut hasher = IdHasher::default();
    hasher.write_u64(key.address.0 ^ key.birth.0.rotate_left(40));
    hasher.finish()
}

fn known_by(key: BlockKey) -> BlockKey {
    if planted::is("cache-ignores-birth") { BlockKey { birth: CpNumber(0), ..key } } else { key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockAddress, Prng};
    use twinlog_device::BlockPool;

    #[test]
    fn used_blocks_outlive_unused_ones() {
        let pool = BlockPool::new(8).expect("a small mapping");
        let mut cache = Cache::default();
        let key = |block, cp| BlockKey { address: BlockAddress::new(0, block), birth: CpNumber(cp) };
        for block in 0..4 {
            cache.insert(key(block, 1), pool.allocate_zeroed().expect("eight are free").freeze());
        }
        assert!(cache.get(key(0, 1)).is_some());
        assert!(cache.get(key(0, 2)).is_none(), "another birth is another block");
        assert!(cache.evict());
        assert!(cache.get(key(0, 1)).is_some() && cache.get(key(1, 1)).is_none());
        while cache.evict() {}
        assert!(cache.is_empty() && pool.free_count() == 8);
    }

    #[test]
    fn it_holds_what_a_map_and_a_queue_hold() {
        const KEYS: u64 = 40;
        let pool = BlockPool::new(64).expect("a small mapping");
        let (mut cache, mut prng) = (Cache::default(), Prng::new(1));
        // Keys in their order, with the first byte of the block, and whether it was used.
        let mut model: VecDeque<(u64, u8, bool)> = VecDeque::new();
        for _ in 0..20_000 {
            let number = prng.below(KEYS);
            // The same blocks in two births.
            let key = BlockKey { address: BlockAddress::new(0, number / 2), birth: CpNumber(number % 2) };
            let known = model.iter_mut().find(|(known, ..)| *known == number);
            match prng.below(8) {
                0..3 if pool.free_count() > 0 => {
                    let mut block = pool.allocate_zeroed().expect("one is free");
                    let byte = prng.below(256).to_le_bytes()[0];
                    block[0] = byte;
                    cache.insert(key, block.freeze());
                    match known {
                        Some(known) => *known = (number, byte, false),
                        None => model.push_back((number, byte, false)),
                    }
                }
                3..6 => {
                    let found = known.map(|(_, byte, used)| {
                        *used = true;
                        *byte
                    });
                    assert_eq!(cache.get(key).map(|block| block[0]), found);
                }
                _ => {
                    while model.front().is_some_and(|(.., used)| *used) {
                        let (number, byte, _) = model.pop_front().expect("it is there");
                        model.push_back((number, byte, false));
                    }
                    assert_eq!(cache.evict(), model.pop_front().is_some());
                }
            }
            assert_eq!((cache.len(), pool.free_count()), (model.len(), 64 - model.len()));
        }
    }
}
