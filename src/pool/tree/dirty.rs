//! What one generation of changes did to one object: blocks written and ranges freed, not yet on disk.
//!
//! # Invariants
//!
//! 1. A block is looked up in `blocks` first, then in `holes`: a block written after its range was freed is in both.
//! 2. Freeing a range removes its blocks from `blocks`: a block written before is only in `holes`.
//! 3. `reserved_blocks` is never less than the blocks that writing this generation to disk takes: one per block, and one per tree
//!    node on the path to any block or to either end of a range.

use crate::base::{Lsn, limits::TREE_FANOUT};
use std::{collections::BTreeMap, ops::Range};
use twinlog_device::SharedBlock;

/// A block's new content.
#[derive(Clone, Debug)]
pub struct DirtyBlock {
    /// Its bytes.
    pub data: SharedBlock,
    /// End of the record that wrote it: it may be read once the log is stable up to here (rule R5).
    pub lsn: Lsn,
}

/// What a generation knows of a block.
#[derive(Debug)]
pub enum DirtyLookup<'a> {
    /// Nothing: ask what lies below.
    Unknown,
    /// It was freed: zeroes.
    Hole(Lsn),
    /// It was written.
    Block(&'a DirtyBlock),
}

/// Changes of one generation to one object.
#[derive(Debug, Default)]
pub struct Dirty {
    blocks: BTreeMap<u64, DirtyBlock>,
    /// Start to end of disjoint ranges that do not touch.
    holes: BTreeMap<u64, u64>,
    holes_lsn: Lsn,
    reserved_blocks: u64,
}

impl Dirty {
    /// What this generation knows of block `index`.
    #[must_use]
    pub fn lookup(&self, index: u64) -> DirtyLookup<'_> {
        if let Some(block) = self.blocks.get(&index) {
            return DirtyLookup::Block(block);
        }
        if self.hole_covers(&(index..index + 1)) { DirtyLookup::Hole(self.holes_lsn) } else { DirtyLookup::Unknown }
    }

    /// Blocks that must be reserved before `insert(index, ..)`, in a tree of `levels` node levels.
    #[must_use]
    pub fn insert_cost(&self, index: u64, levels: u8) -> u64 {
        let mut around = self.blocks.range(index..);
        let next = around.next().map(|(&key, _)| key);
        if next == Some(index) {
            return 0;
        }
        let previous = self.blocks.range(..index).next_back().map(|(&key, _)| key);
        let shares = |other: Option<u64>, span: u64| other.is_some_and(|other| other / span == index / span);
        let mut span = 1;
        let mut cost = 1;
        for _ in 0..levels {
            span *= TREE_FANOUT;
            cost += u64::from(!shares(previous, span) && !shares(next, span));
        }
        cost
    }

    /// Records that `index` now holds `block`.
    pub fn insert(&mut self, index: u64, block: DirtyBlock, levels: u8) {
        self.reserved_blocks += self.insert_cost(index, levels);
        self.blocks.insert(index, block);
    }

    /// Blocks that must be reserved before `free`: the paths to both ends of the range.
    #[must_use]
    pub fn free_cost(levels: u8) -> u64 {
        2 * u64::from(levels)
    }

    /// Records that `range`, not empty, holds nothing any more.
    pub fn free(&mut self, range: &Range<u64>, lsn: Lsn, levels: u8) {
        assert!(range.start < range.end, "a freed range is not empty");
        self.reserved_blocks += Self::free_cost(levels);
        self.holes_lsn = lsn;
        let covered: Vec<u64> = self.blocks.range(range.clone()).map(|(&index, _)| index).collect();
        for index in covered {
            self.blocks.remove(&index);
        }
        let mut merged = range.clone();
        while let Some((&start, &end)) = self.holes.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            merged = merged.start.min(start)..merged.end.max(end);
            self.holes.remove(&start);
        }
        self.holes.insert(merged.start, merged.end);
    }

    /// Whether every block of `range` was freed (blocks written since do not count).
    #[must_use]
    pub fn hole_covers(&self, range: &Range<u64>) -> bool {
        self.holes.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// Freed ranges that meet `range`, cut to it.
    pub fn holes_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.holes.range(..range.start).next_back();
        let within = self.holes.range(range.clone());
        before
            .into_iter()
            .chain(within)
            .map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|hole| hole.start < hole.end)
    }

    /// End of the newest record that freed anything, if any of `range` was freed.
    #[must_use]
    pub fn freed_lsn(&self, range: &Range<u64>) -> Option<Lsn> {
        self.holes_in(range.clone()).next().map(|_| self.holes_lsn)
    }

    /// Written blocks in `range`, ascending.
    pub fn blocks_in(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &DirtyBlock)> + '_ {
        self.blocks.range(range).map(|(&index, block)| (index, block))
    }

    /// The first written block at or after `index`.
    #[must_use]
    pub fn next_block(&self, index: u64) -> Option<u64> {
        self.blocks.range(index..).next().map(|(&index, _)| index)
    }

    /// Written blocks.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Blocks reserved for writing this generation.
    #[must_use]
    pub fn reserved_blocks(&self) -> u64 {
        self.reserved_blocks
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.holes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;
    use std::collections::BTreeSet;
    use twinlog_device::BlockPool;

    /// Nodes on the paths to `indices`: the plain definition that the incremental cost must meet.
    fn nodes(indices: &BTreeSet<u64>, levels: u8) -> u64 {
        let at = |level: u32| {
            indices.iter().map(|index| index / TREE_FANOUT.pow(level)).collect::<BTreeSet<_>>().len() as u64
        };
        (1..=u32::from(levels)).map(at).sum()
    }

    #[test]
    fn the_reservation_is_exact_for_writes() {
        let pool = BlockPool::new(2).expect("a small mapping");
        let data = pool.allocate_zeroed().expect("two are free").freeze();
        let mut prng = Prng::new(5);
        for _ in 0..50 {
            let mut dirty = Dirty::default();
            let mut indices = BTreeSet::new();
            for _ in 0..200 {
                let index = prng.below(128 * 128 * 3);
                dirty.insert(index, DirtyBlock { data: data.clone(), lsn: Lsn(0) }, 3);
                indices.insert(index);
                assert_eq!(dirty.reserved_blocks(), indices.len() as u64 + nodes(&indices, 3));
            }
        }
    }

    #[test]
    fn lookups_agree_with_a_plain_map() {
        let pool = BlockPool::new(2).expect("a small mapping");
        let data = pool.allocate_zeroed().expect("two are free").freeze();
        let mut prng = Prng::new(6);
        for _ in 0..200 {
            let mut dirty = Dirty::default();
            let mut model = BTreeMap::new();
            for step in 0..60 {
                let start = prng.below(60);
                if prng.chance(1, 2) {
                    dirty.insert(start, DirtyBlock { data: data.clone(), lsn: Lsn(step) }, 1);
                    model.insert(start, true);
                } else {
                    let end = prng.between(start + 1, 64);
                    dirty.free(&(start..end), Lsn(step), 1);
                    model.extend((start..end).map(|index| (index, false)));
                }
            }
            for index in 0..64 {
                let seen = match dirty.lookup(index) {
                    DirtyLookup::Unknown => None,
                    DirtyLookup::Hole(_) => Some(false),
                    DirtyLookup::Block(_) => Some(true),
                };
                assert_eq!(seen, model.get(&index).copied(), "block {index}");
            }
            let from = prng.below(64);
            let holes: u64 = dirty.holes_in(from..64).map(|hole| hole.end - hole.start).sum();
            assert_eq!(holes, (from..64).filter(|&index| dirty.hole_covers(&(index..index + 1))).count() as u64);
        }
    }
}
