//! What one generation wrote below one node of level 1: up to [`TREE_FANOUT`] blocks, found by a bit and a count instead of a search.

use super::dirty::DirtyBlock;
use crate::base::limits::TREE_FANOUT;
use std::ops::Range;

const _: () = assert!(TREE_FANOUT == u128::BITS as u64);

/// Blocks by child of the node.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    /// Bit `i`: child `i` was written.
    written: u128,
    /// The blocks of the bits that are set, in order.
    blocks: Vec<DirtyBlock>,
}

/// The bits of the children below `end`, at most 128.
fn below(end: u32) -> u128 {
    u128::MAX.checked_shr(u128::BITS - end).unwrap_or(0)
}

impl Leaf {
    pub(super) fn is_empty(&self) -> bool {
        self.written == 0
    }

    pub(super) fn has(&self, child: u32) -> bool {
        self.written & 1 << child != 0
    }

    pub(super) fn get(&self, child: u32) -> Option<&DirtyBlock> {
        self.has(child).then(|| &self.blocks[self.position(child)])
    }

    /// Records that `child` now holds `block`. Returns whether it was not written before.
    pub(super) fn insert(&mut self, child: u32, block: DirtyBlock) -> bool {
        let position = self.position(child);
        let is_new = !self.has(child);
        if is_new {
            self.blocks.insert(position, block);
            self.written |= 1 << child;
        } else {
            self.blocks[position] = block;
        }
        is_new
    }

    /// Forgets what was written to `children`. Returns how many blocks those were.
    pub(super) fn remove(&mut self, children: &Range<u32>) -> u64 {
        let removed = self.positions(children);
        self.written &= below(children.start) | !below(children.end);
        self.blocks.drain(removed).count() as u64
    }

    /// Written blocks among `children`, ascending.
    pub(super) fn blocks_in(&self, children: Range<u32>) -> impl Iterator<Item = (u32, &DirtyBlock)> {
        let mut rest = self.written & below(children.end) & !below(children.start);
        let next = move || {
            let child = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            (child < u128::BITS).then_some(child)
        };
        std::iter::from_fn(next).zip(&self.blocks[self.positions(&children)])
    }

    /// The first written child at or after `child`.
    pub(super) fn next(&self, child: u32) -> Option<u32> {
        let next = (self.written & !below(child)).trailing_zeros();
        (next < u128::BITS).then_some(next)
    }

    /// Where the block of `child` is, or would be.
    fn position(&self, child: u32) -> usize {
        (self.written & below(child)).count_ones() as usize
    }

    fn positions(&self, children: &Range<u32>) -> Range<usize> {
        self.position(children.start)..self.position(children.end)
    }
}
