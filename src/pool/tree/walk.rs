//! Reading block trees: from an index to the reference of its block.
//!
//! A tree of `n` levels has `n` levels of nodes; level 1 holds the references of data blocks. Block `i` is reached through child
//! `i / 128^(l-1) mod 128` at each level `l`. A hole at any level means that everything below is a hole.

use crate::{
    base::limits::TREE_FANOUT,
    format::{
        reference::{BlockKey, BlockRef, node},
        superblock::TreeRoot,
    },
};
use twinlog_device::SharedBlock;

/// Data blocks below one reference to a block at `level` (0: the data block itself).
#[must_use]
pub fn span(level: u8) -> u64 {
    TREE_FANOUT.pow(u32::from(level))
}

/// Node levels that a tree of `block_count` blocks needs, at least one.
#[must_use]
pub fn levels_for(block_count: u64) -> u8 {
    (1..=crate::format::object::LEVELS_MAX)
        .find(|&level| span(level) >= block_count)
        .expect("sizes are checked against the largest volume")
}

/// Which child of a node at `level` leads to block `index`.
#[must_use]
pub fn child_index(level: u8, index: u64) -> usize {
    usize::try_from(index / span(level - 1) % TREE_FANOUT).expect("below the fan-out")
}

/// Where a walk from the root to a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// There is no block; nor is there any up to this index (exclusive).
    Hole(u64),
    /// The reference of the block.
    Found(BlockRef),
    /// This node must be fetched first.
    Missing(BlockRef),
}

/// Walks to block `index`, through nodes that `cached` has.
pub fn walk(tree: &TreeRoot, index: u64, mut cached: impl FnMut(BlockKey) -> Option<SharedBlock>) -> Walk {
    if index >= span(tree.levels) {
        return Walk::Hole(u64::MAX);
    }
    let mut reference = tree.root;
    for level in (1..=tree.levels).rev() {
        if reference.is_hole() {
            return Walk::Hole((index / span(level) + 1) * span(level));
        }
        let Some(block) = cached(reference.key()) else { return Walk::Missing(reference) };
        reference = node(&block)[child_index(level, index)];
    }
    if reference.is_hole() { Walk::Hole(index + 1) } else { Walk::Found(reference) }
}

/// The first node on the way to block `index` that `cached` does not have, of the nodes down to `level`.
pub fn missing_node(
    tree: &TreeRoot,
    index: u64,
    level: u8,
    mut cached: impl FnMut(BlockKey) -> Option<SharedBlock>,
) -> Option<BlockRef> {
    let mut reference = tree.root;
    for level in (level..=tree.levels).rev() {
        if reference.is_hole() || index >= span(tree.levels) {
            return None;
        }
        let Some(block) = cached(reference.key()) else { return Some(reference) };
        reference = node(&block)[child_index(level, index)];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_change_at_the_bounds() {
        assert_eq!(levels_for(1), 1);
        assert_eq!(levels_for(128), 1);
        assert_eq!(levels_for(129), 2);
        assert_eq!(levels_for(128 * 128), 2);
        assert_eq!(levels_for((1 << 50) / 4096), 6);
    }

    #[test]
    fn an_empty_tree_is_one_hole() {
        let tree = TreeRoot { root: BlockRef::default(), levels: 2 };
        assert_eq!(walk(&tree, 5, |_| None), Walk::Hole(128 * 128));
        assert_eq!(walk(&tree, 128 * 128, |_| None), Walk::Hole(u64::MAX));
    }
}
