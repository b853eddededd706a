//! Verified blocks in memory, by identity.
//!
//! The key holds the block's birth as well as its address, and a block on disk never changes while anything refers to it (rule R9), so
//! an entry can be old but never wrong: nothing has to be invalidated. Replacement is second chance over one queue.

use crate::{
    base::{CpNumber, FixedMap, planted},
    format::reference::BlockKey,
};
use std::{
    cell::Cell,
    collections::VecDeque,
    hash::{Hash, Hasher},
};
use twinlog_device::SharedBlock;

impl BlockKey {
    fn mixed(self) -> u64 {
        self.address.0 ^ self.birth.0.rotate_left(40)
    }
}

/// Hashes a key as one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(BlockKey);

impl Hash for Key {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.0.mixed());
    }
}

struct Entry {
    block: SharedBlock,
    used: Cell<bool>,
}

/// The cache. Its size is bounded by whoever calls [`Cache::evict`].
#[derive(Default)]
pub struct Cache {
    entries: FixedMap<Key, Entry>,
    order: VecDeque<Key>,
}

impl Cache {
    /// The block, if it is here.
    pub fn get(&self, key: BlockKey) -> Option<&SharedBlock> {
        let key = known_by(key);
        let entry = self.entries.get(&Key(key))?;
        entry.used.set(true);
        Some(&entry.block)
    }

    /// Has the processor load what [`Self::get`] will look at, for somebody who looks for many: without this they wait for memory one after
    /// the other. That is the table, the entry, and the count of the block's handles.
    pub fn look_ahead(&self, key: BlockKey) {
        let entry = self.entries.get(&Key(known_by(key)));
        std::hint::black_box(entry.map(|entry| entry.block.handle_count()));
    }

    /// Keeps a verified block.
    pub fn insert(&mut self, key: BlockKey, block: SharedBlock) {
        let key = known_by(key);
        if self.entries.insert(Key(key), Entry { block, used: Cell::new(false) }).is_none() {
            self.order.push_back(Key(key));
        }
    }

    /// Drops the entry that was unused for longest, roughly. False when the cache is empty.
    pub fn evict(&mut self) -> bool {
        while let Some(key) = self.order.pop_front() {
            let entry = self.entries.get_mut(&key).expect("every queued key has an entry");
            if entry.used.take() {
                self.order.push_back(key);
            } else {
                self.entries.remove(&key);
                return true;
            }
        }
        false
    }

    /// Blocks in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn known_by(key: BlockKey) -> BlockKey {
    if planted::is("cache-ignores-birth") { BlockKey { birth: CpNumber(0), ..key } } else { key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockAddress;
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
}
