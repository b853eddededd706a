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
use std::borrow::Borrow;
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

/// Walks to blocks of one tree, through nodes that are lent (`N` is `&SharedBlock`: no handle is counted) or given. The leaf node where a walk ended
/// serves the walks to its neighbours.
pub struct Walker<N> {
    tree: TreeRoot,
    /// The newest leaf node, and the first block below it.
    leaf: Option<(u64, N)>,
}

impl<N: Borrow<SharedBlock>> Walker<N> {
    /// Walks from the root of `tree`.
    #[must_use]
    pub fn new(tree: TreeRoot) -> Self {
        Self { tree, leaf: None }
    }

    /// Walks to block `index`, through nodes that `cached` has.
    pub fn walk(&mut self, index: u64, cached: impl FnMut(BlockKey) -> Option<N>) -> Walk {
        if index >= span(self.tree.levels) {
            return Walk::Hole(u64::MAX);
        }
        let first = index / span(1) * span(1);
        let found = match &self.leaf {
            Some((below, leaf)) if *below == first => Ok(node(leaf.borrow())[child_index(1, index)]),
            _ => self.descend(index, cached),
        };
        match found {
            Ok(reference) if reference.is_hole() => Walk::Hole(index + 1),
            Ok(reference) => Walk::Found(reference),
            Err(end) => end,
        }
    }

    /// Has the processor load the reference of block `index`, as far as the nodes above it are at hand: for who walks there soon.
    pub fn look_ahead(&self, index: u64, mut cached: impl FnMut(BlockKey) -> Option<N>) {
        if index >= span(self.tree.levels) {
            return;
        }
        let mut reference = self.tree.root;
        for level in (1..=self.tree.levels).rev() {
            if reference.is_hole() {
                return;
            }
            let Some(block) = cached(reference.key()) else { return };
            let child = child_index(level, index);
            if level == 1 {
                return block.borrow().fetch_line(child * size_of::<BlockRef>());
            }
            reference = node(block.borrow())[child];
        }
    }

    /// Walks from the root to the reference of block `index`.
    ///
    /// # Errors
    /// The walk ended before it.
    fn descend(&mut self, index: u64, mut cached: impl FnMut(BlockKey) -> Option<N>) -> Result<BlockRef, Walk> {
        let mut reference = self.tree.root;
        for level in (1..=self.tree.levels).rev() {
            if reference.is_hole() {
                return Err(Walk::Hole((index / span(level) + 1) * span(level)));
            }
            let Some(block) = cached(reference.key()) else { return Err(Walk::Missing(reference)) };
            reference = node(block.borrow())[child_index(level, index)];
            if level == 1 {
                self.leaf = Some((index / span(1) * span(1), block));
            }
        }
        Ok(reference)
    }
}

/// Walks to one block.
pub fn walk<N: Borrow<SharedBlock>>(tree: &TreeRoot, index: u64, cached: impl FnMut(BlockKey) -> Option<N>) -> Walk {
    Walker::new(*tree).walk(index, cached)
}

/// The first node on the way to block `index` that `cached` does not have, of the nodes down to `level`.
pub fn missing_node<N: Borrow<SharedBlock>>(
    tree: &TreeRoot,
    index: u64,
    level: u8,
    mut cached: impl FnMut(BlockKey) -> Option<N>,
) -> Option<BlockRef> {
    let mut reference = tree.root;
    for level in (level..=tree.levels).rev() {
        if reference.is_hole() || index >= span(tree.levels) {
            return None;
        }
        let Some(block) = cached(reference.key()) else { return Some(reference) };
        reference = node(block.borrow())[child_index(level, index)];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{BlockAddress, CpNumber},
        format::reference::node_mut,
    };
    use twinlog_device::BlockPool;

    fn nothing(_: BlockKey) -> Option<SharedBlock> {
        None
    }

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
        assert_eq!(walk(&tree, 5, nothing), Walk::Hole(128 * 128));
        assert_eq!(walk(&tree, 128 * 128, nothing), Walk::Hole(u64::MAX));
    }

    #[test]
    fn the_root_of_a_tree_without_nodes_is_its_only_block() {
        let mut tree = TreeRoot { root: BlockRef::new(BlockAddress::new(0, 99), CpNumber(1), &[0; 4096]), levels: 0 };
        assert_eq!(walk(&tree, 0, nothing), Walk::Found(tree.root));
        assert_eq!(walk(&tree, 1, nothing), Walk::Hole(u64::MAX));
        tree.root = BlockRef::default();
        assert_eq!(walk(&tree, 0, nothing), Walk::Hole(1));
    }

    /// A tree of two levels whose node at level 1 with number `n` has blocks `n * 1000` and up, but for its last one.
    struct Planted {
        tree: TreeRoot,
        nodes: Vec<(BlockKey, SharedBlock)>,
    }

    impl Planted {
        fn new(leaves: u64) -> Self {
            let pool = BlockPool::new(8).expect("a small mapping");
            let mut nodes = Vec::new();
            let mut write = |address: u64, children: &[BlockRef]| {
                let mut block = pool.allocate_zeroed().expect("eight are free");
                node_mut(&mut block)[..children.len()].copy_from_slice(children);
                let reference = BlockRef::new(BlockAddress::new(0, address), CpNumber(1), &block);
                nodes.push((reference.key(), block.freeze()));
                reference
            };
            let child = |address| BlockRef::new(BlockAddress::new(0, address), CpNumber(1), &[0; 4096]);
            let leaves: Vec<_> = (0..leaves)
                .map(|leaf| write(10 + leaf, &(0..127).map(|at| child(1000 * (leaf + 1) + at)).collect::<Vec<_>>()))
                .collect();
            let root = write(9, &leaves);
            Self { tree: TreeRoot { root, levels: 2 }, nodes }
        }

        fn get(&self, key: BlockKey) -> Option<SharedBlock> {
            self.nodes.iter().find(|(known, _)| *known == key).map(|(_, block)| block.clone())
        }
    }

    #[test]
    fn a_walker_finds_what_walks_from_the_root_find_and_asks_for_a_leaf_once() {
        let planted = Planted::new(2);
        let mut asked = 0;
        let mut walker = Walker::new(planted.tree);
        for index in (0..400).chain([128 * 128 - 1, 128 * 128, 127, 126, 300, 5]) {
            let found = walker.walk(index, |key| {
                asked += 1;
                planted.get(key)
            });
            assert_eq!(found, walk(&planted.tree, index, |key| planted.get(key)), "block {index}");
        }
        // Twice root and leaf on the way up, the root for each block below a hole, root and leaf to go back to the first, and the root at the hole
        // between the last two, which lie below the same leaf.
        assert_eq!(asked, 2 * 2 + (400 - 256) + 1 + 2 + 1);
    }

    #[test]
    fn who_looks_ahead_asks_for_the_nodes_above_a_block_that_are_at_hand_and_for_nothing_below_a_hole() {
        let planted = Planted::new(1);
        let asked = |index, known: usize| {
            let mut asked = 0;
            Walker::new(planted.tree).look_ahead(index, |key| {
                asked += 1;
                planted.get(key).filter(|_| asked <= known)
            });
            asked
        };
        // A block, one whose leaf or root is missing, one below a hole of the root, and one beyond the tree.
        assert_eq!(
            [(3, 2), (3, 1), (3, 0), (128, 2), (128 * 128, 2)].map(|(index, known)| asked(index, known)),
            [2, 2, 1, 1, 0]
        );
    }

    #[test]
    fn a_walker_keeps_no_leaf_that_it_did_not_get() {
        let planted = Planted::new(1);
        let mut walker = Walker::new(planted.tree);
        let only_root = |key| planted.get(key).filter(|_| key == planted.tree.root.key());
        let Walk::Missing(leaf) = walker.walk(3, only_root) else { panic!("the leaf is missing") };
        assert_eq!(walker.walk(4, only_root), Walk::Missing(leaf));
        assert!(matches!(walker.walk(4, |key| planted.get(key)), Walk::Found(_)));
        assert!(matches!(walker.walk(5, |_| None), Walk::Found(_)));
    }
}
