//! What one generation of changes did to one object: blocks written and ranges freed, not yet on disk.
//!
//! # Invariants
//!
//! 1. A block is looked up in `leaves` first, then in `holes`: a block written after its range was freed is in both.
//! 2. Freeing a range removes its blocks from `leaves`: a block written before is only in `holes`. No leaf is empty.
//! 3. `reserved_blocks` is never less than the blocks that writing this generation to disk takes: one per block, and one per tree
//!    node on the path to any block or to either end of a range.

use super::leaf::Leaf;
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
    /// Written blocks, by the node of level 1 that they lie below.
    leaves: BTreeMap<u64, Leaf>,
    block_count: u64,
    /// Start to end of disjoint ranges that do not touch.
    holes: BTreeMap<u64, u64>,
    holes_lsn: Lsn,
    reserved_blocks: u64,
}

impl Dirty {
    /// What this generation knows of block `index`.
    #[must_use]
    pub fn lookup(&self, index: u64) -> DirtyLookup<'_> {
        if let Some(block) = self.leaves.get(&leaf_of(index)).and_then(|leaf| leaf.get(child_of(index))) {
            return DirtyLookup::Block(block);
        }
        if self.hole_covers(&(index..index + 1)) { DirtyLookup::Hole(self.holes_lsn) } else { DirtyLookup::Unknown }
    }

    /// Blocks that must be reserved before `insert(index, ..)`, in a tree of `levels` node levels.
    #[must_use]
    pub fn insert_cost(&self, index: u64, levels: u8) -> u64 {
        let number = leaf_of(index);
        if let Some(leaf) = self.leaves.get(&number) {
            return u64::from(!leaf.has(child_of(index)));
        }
        let previous = self.leaves.range(..number).next_back().map(|(&other, _)| other);
        let next = self.leaves.range(number..).next().map(|(&other, _)| other);
        let shares = |other: Option<u64>, span: u64| other.is_some_and(|other| other / span == number / span);
        let mut span = 1;
        let mut cost = 1;
        for _ in 0..levels {
            cost += u64::from(!shares(previous, span) && !shares(next, span));
            span *= TREE_FANOUT;
        }
        cost
    }

    /// Whether a block below the same node of level 1 was written: a consistency point copies every node on the way to `index` in any case.
    #[must_use]
    pub fn copies_path(&self, index: u64) -> bool {
        self.leaves.contains_key(&leaf_of(index))
    }

    /// Records that `index` now holds `block`.
    pub fn insert(&mut self, index: u64, block: DirtyBlock, levels: u8) {
        self.reserved_blocks += self.insert_cost(index, levels);
        let leaf = self.leaves.entry(leaf_of(index)).or_default();
        self.block_count += u64::from(leaf.insert(child_of(index), block));
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
        self.remove_blocks(range);
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

    fn remove_blocks(&mut self, range: &Range<u64>) {
        let touched: Vec<u64> = self.leaves.range(leaves_of(range)).map(|(&number, _)| number).collect();
        for number in touched {
            let leaf = self.leaves.get_mut(&number).expect("seen above");
            self.block_count -= leaf.remove(&children_of(number, range));
            if leaf.is_empty() {
                self.leaves.remove(&number);
            }
        }
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
        self.leaves.range(leaves_of(&range)).flat_map(move |(&number, leaf)| {
            let blocks = leaf.blocks_in(children_of(number, &range));
            blocks.map(move |(child, block)| (number * TREE_FANOUT + u64::from(child), block))
        })
    }

    /// The first written block at or after `index`.
    #[must_use]
    pub fn next_block(&self, index: u64) -> Option<u64> {
        self.leaves.range(leaf_of(index)..).find_map(|(&number, leaf)| {
            let from = if number == leaf_of(index) { child_of(index) } else { 0 };
            leaf.next(from).map(|child| number * TREE_FANOUT + u64::from(child))
        })
    }

    /// Written blocks.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Blocks reserved for writing this generation.
    #[must_use]
    pub fn reserved_blocks(&self) -> u64 {
        self.reserved_blocks
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.holes.is_empty()
    }
}

/// The node of level 1 above block `index`.
fn leaf_of(index: u64) -> u64 {
    index / TREE_FANOUT
}

/// Which child of that node the block is.
fn child_of(index: u64) -> u32 {
    u32::try_from(index % TREE_FANOUT).expect("below the fan-out")
}

/// The nodes of level 1 above `range`.
fn leaves_of(range: &Range<u64>) -> Range<u64> {
    leaf_of(range.start)..range.end.div_ceil(TREE_FANOUT)
}

/// The children of node `number` that lie in `range`, which meets it.
fn children_of(number: u64, range: &Range<u64>) -> Range<u32> {
    let small = |index: u64| u32::try_from(index.min(TREE_FANOUT)).expect("at most the fan-out");
    let first = number * TREE_FANOUT;
    small(range.start.saturating_sub(first))..small(range.end - first)
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

    /// Blocks below three nodes and a part of a fourth.
    const SIZE: u64 = 3 * TREE_FANOUT + 20;

    #[test]
    fn lookups_agree_with_a_plain_map() {
        let pool = BlockPool::new(2).expect("a small mapping");
        let data = pool.allocate_zeroed().expect("two are free").freeze();
        let mut prng = Prng::new(6);
        for _ in 0..200 {
            let mut dirty = Dirty::default();
            let mut model = BTreeMap::new();
            for step in 0..60 {
                let start = prng.below(SIZE - 4);
                if prng.chance(3, 4) {
                    dirty.insert(start, DirtyBlock { data: data.clone(), lsn: Lsn(step) }, 1);
                    model.insert(start, true);
                } else {
                    let end = prng.between(start + 1, SIZE);
                    dirty.free(&(start..end), Lsn(step), 1);
                    model.extend((start..end).map(|index| (index, false)));
                }
            }
            for index in 0..SIZE {
                let seen = match dirty.lookup(index) {
                    DirtyLookup::Unknown => None,
                    DirtyLookup::Hole(_) => Some(false),
                    DirtyLookup::Block(_) => Some(true),
                };
                assert_eq!(seen, model.get(&index).copied(), "block {index}");
            }
            let written = |range: Range<u64>| range.filter(|index| model.get(index) == Some(&true)).collect::<Vec<_>>();
            let from = prng.below(SIZE);
            let to = prng.between(from, SIZE + 200);
            assert_eq!(dirty.blocks_in(from..to).map(|(index, _)| index).collect::<Vec<_>>(), written(from..to));
            assert_eq!(dirty.next_block(from), written(from..SIZE).first().copied());
            assert_eq!(dirty.block_count(), written(0..SIZE).len() as u64);
            let holes: u64 = dirty.holes_in(from..SIZE).map(|hole| hole.end - hole.start).sum();
            assert_eq!(holes, (from..SIZE).filter(|&index| dirty.hole_covers(&(index..index + 1))).count() as u64);
        }
    }
}
