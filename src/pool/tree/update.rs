//! Writing one generation of changes into a block tree, copy on write.
//!
//! # Life cycle
//!
//! ```text
//! Load ----------> Ready ------> Leaves -----> Nodes -------> Settle ----> Done
//! nodes on the     `needed`      data blocks   level by       writes that
//! paths to every   blocks are    get places,   level, up      are still
//! change are read  asked for     are written   to the root    under way
//! ```
//!
//! # Invariants
//!
//! 1. No block that the old tree reaches is written (rule R9): every changed block and node gets a new place.
//! 2. After `Load` it is known exactly what the update takes (`needed`) and what it sets free (`freed`, `reap`).
//! 3. Subtrees that a freed range covers whole are cut off unread and handed on in `reap`: freeing costs the paths to the two ends
//!    of the range, however much lies between.
//! 4. One call of `step` does a bounded amount of work.
//! 5. A node has its new place in memory, which was reserved, before it is fetched: what is read is copied there when it arrives, so a
//!    read in flight waits for nothing but its device.
//!
//! # Failure
//!
//! Nothing of the update is reachable until the superblock names it, so a crash anywhere leaves the old tree. An unreadable node or a
//! failed write fails the update, and with it the consistency point.

use super::{
    dirty::Dirty,
    walk::{child_index, span},
};
use crate::{
    base::{BlockAddress, CpNumber, limits::TREE_FANOUT},
    format::{
        chain::{AddressRange, Subtree},
        reference::{BlockKey, BlockRef, node, node_mut},
        superblock::TreeRoot,
    },
    pool::io::{Io, IoEvent, Tag},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
};
use twinlog_device::{BlockBuf, BlockBytes, BlockDevice, Persistence, SharedBlock};

/// Nodes fetched at the same time.
const LOADS_MAX: usize = 256;
/// Writes under way at the same time.
const WRITES_MAX: usize = 64;
/// Blocks of one write: 1 MiB.
const RUN_BLOCKS_MAX: usize = 256;

/// What `aux` of the tree's references means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aux {
    /// Blocks below, the referenced one included; saturating.
    Blocks,
    /// Most free blocks of any one allocation area below.
    FreeBlocks,
}

impl Aux {
    /// For a reference to this data block.
    #[must_use]
    pub fn of_leaf(self, bytes: &BlockBytes) -> u32 {
        match self {
            Self::Blocks => 1,
            Self::FreeBlocks => {
                bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word).count_zeros()).sum()
            }
        }
    }

    /// For a reference to this node.
    #[must_use]
    pub fn of_node(self, bytes: &BlockBytes) -> u32 {
        let children = node(bytes).iter();
        match self {
            Self::Blocks => children.fold(1, |sum, child| sum.saturating_add(child.aux())),
            Self::FreeBlocks => children.map(free_blocks_below).max().unwrap_or(0),
        }
    }
}

/// Most free blocks of any area below a reference of the space map: an area that never was written is all free.
#[must_use]
pub fn free_blocks_below(reference: &BlockRef) -> u32 {
    if reference.is_hole() { u32::MAX } else { reference.aux() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Load,
    Ready,
    Leaves,
    Nodes(u8),
    Settle,
    Done,
}

/// An update under way.
pub struct TreeUpdate {
    cp: CpNumber,
    owner: u16,
    aux: Aux,
    dirty: Rc<Dirty>,
    tree: TreeRoot,
    /// Levels of the old tree, if it gets more and is not empty.
    grown_from: Option<u8>,
    phase: Phase,
    /// Touched nodes by level (level 1 first) and index within the level.
    nodes: Vec<BTreeMap<u64, BlockBuf>>,
    to_load: VecDeque<(u8, u64, BlockRef)>,
    loading: BTreeMap<BlockKey, (u8, u64, BlockBuf)>,
    loaded: Vec<(u8, u64, BlockBuf)>,
    leaf_count: u64,
    freed: Vec<AddressRange>,
    reap: Vec<Subtree>,
    space: VecDeque<AddressRange>,
    cursor: u64,
    run: Run,
    writes: usize,
    next_write: u64,
}

/// Consecutive blocks that wait to be written together.
#[derive(Default)]
struct Run {
    first: BlockAddress,
    blocks: Vec<SharedBlock>,
}

/// What an update has done.
#[derive(Debug)]
pub struct UpdateResult {
    /// The new tree.
    pub tree: TreeRoot,
    /// Places that were granted and not used.
    pub unused: Vec<AddressRange>,
}

impl TreeUpdate {
    /// Applies `dirty` to `tree`, which grows to `levels` if it has fewer. I/O events come back to `owner`.
    #[must_use]
    pub fn new(tree: TreeRoot, levels: u8, dirty: Rc<Dirty>, cp: CpNumber, (owner, aux): (u16, Aux)) -> Self {
        let levels = levels.max(tree.levels).max(1);
        let mut update = Self {
            cp,
            owner,
            aux,
            leaf_count: dirty.block_count(),
            dirty,
            tree: TreeRoot { root: tree.root, levels },
            grown_from: (!tree.root.is_hole() && levels > tree.levels).then_some(tree.levels),
            phase: Phase::Load,
            nodes: (0..levels).map(|_| BTreeMap::new()).collect(),
            to_load: VecDeque::new(),
            loading: BTreeMap::new(),
            loaded: Vec::new(),
            freed: Vec::new(),
            reap: Vec::new(),
            space: VecDeque::new(),
            cursor: 0,
            run: Run::default(),
            writes: 0,
            next_write: 0,
        };
        if update.dirty.is_empty() && levels == tree.levels {
            update.phase = Phase::Ready;
        } else if let Some(old_levels) = update.grown_from {
            // Child 0 of each node on the new left edge is the node below: `write_nodes` links them.
            update.enter(old_levels, 0, tree.root);
            (old_levels + 1..=levels).for_each(|level| update.enter(level, 0, BlockRef::default()));
        } else {
            update.enter(levels, 0, tree.root);
        }
        update
    }

    /// Whether `needed`, `freed` and `reap` are known and `grant` is waited for.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether the update has been written.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Blocks that the update takes; an upper bound if ranges are freed (nodes that become empty are not written).
    #[must_use]
    pub fn needed_blocks(&self) -> u64 {
        assert_ne!(self.phase, Phase::Load, "known after loading");
        self.leaf_count + self.nodes.iter().map(|level| level.len() as u64).sum::<u64>()
    }

    /// Blocks that the new tree does not reach any more, apart from whole subtrees.
    #[must_use]
    pub fn freed(&self) -> &[AddressRange] {
        assert_ne!(self.phase, Phase::Load, "known after loading");
        &self.freed
    }

    /// Takes what `freed` shows.
    pub fn take_freed(&mut self) -> Vec<AddressRange> {
        assert_ne!(self.phase, Phase::Load, "known after loading");
        std::mem::take(&mut self.freed)
    }

    /// Subtrees that the new tree does not reach any more.
    pub fn take_reap(&mut self) -> Vec<Subtree> {
        std::mem::take(&mut self.reap)
    }

    /// Replaces the changes by others to the very same blocks: for content that depends on where the update itself lies.
    pub fn replace_content(&mut self, dirty: Rc<Dirty>) {
        assert_eq!((self.phase, dirty.block_count()), (Phase::Ready, self.leaf_count), "only the content changes");
        self.dirty = dirty;
    }

    /// Gives the update its places: at least `needed_blocks`.
    pub fn grant(&mut self, space: Vec<AddressRange>) {
        assert_eq!(self.phase, Phase::Ready, "space is granted once");
        let granted: u64 = space.iter().map(|range| range.count).sum();
        assert!(granted >= self.needed_blocks(), "the grant covers the need");
        self.space = space.into();
        self.phase = Phase::Leaves;
    }

    /// A node was fetched, or a write has finished.
    ///
    /// # Errors
    /// The node cannot be read, or the write failed: the consistency point fails.
    pub fn event(&mut self, event: IoEvent) -> Result<(), String> {
        match event {
            IoEvent::Fetched { key, result, .. } => {
                let block = result?;
                let (level, index, mut buffer) = self.loading.remove(&key).expect("only fetched nodes arrive");
                buffer.copy_from_slice(&*block);
                self.loaded.push((level, index, buffer));
            }
            IoEvent::Done { result, .. } => {
                result.map_err(|error| error.to_string())?;
                self.writes -= 1;
            }
        }
        Ok(())
    }

    /// Goes on, with at most about `budget` blocks of work. Returns whether anything was done.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, budget: usize) -> bool {
        match self.phase {
            Phase::Load => self.load(io, budget),
            Phase::Leaves => self.write_leaves(io, budget),
            Phase::Nodes(level) => self.write_nodes(io, level, budget),
            Phase::Settle => {
                self.phase = if self.writes == 0 { Phase::Done } else { Phase::Settle };
                self.writes == 0
            }
            Phase::Ready | Phase::Done => false,
        }
    }

    /// The end.
    #[must_use]
    pub fn into_result(self) -> UpdateResult {
        assert!(self.is_done(), "an update ends when it is done");
        UpdateResult { tree: self.tree, unused: self.space.into() }
    }

    fn enter(&mut self, level: u8, index: u64, reference: BlockRef) {
        self.to_load.push_back((level, index, reference));
    }

    fn load<D: BlockDevice>(&mut self, io: &mut Io<D>, budget: usize) -> bool {
        let mut work = 0;
        while work < budget && self.loading.len() < LOADS_MAX {
            if self.to_load.is_empty() {
                break;
            }
            let Some(mut buffer) = io.allocate() else { break };
            let Some((level, index, reference)) = self.to_load.pop_front() else { break };
            if reference.is_hole() {
                buffer.fill(0);
                self.expand(level, index, buffer);
            } else if let Some(block) = io.fetch(&reference, Tag { owner: self.owner, id: 0 }) {
                self.free_block(reference.address());
                buffer.copy_from_slice(&*block);
                self.loaded.push((level, index, buffer));
            } else {
                self.free_block(reference.address());
                self.loading.insert(reference.key(), (level, index, buffer));
            }
            work += 1;
        }
        while work < budget {
            let Some((level, index, buffer)) = self.loaded.pop() else { break };
            self.expand(level, index, buffer);
            work += 1;
        }
        if self.to_load.is_empty() && self.loading.is_empty() && self.loaded.is_empty() {
            self.phase = Phase::Ready;
        }
        work > 0
    }

    /// Takes over a touched node: cuts what was freed, and enters the children on the way to further changes.
    fn expand(&mut self, level: u8, index: u64, mut buffer: BlockBuf) {
        let first = index * span(level);
        let range = first..first + span(level);
        let holes: Vec<_> = self.dirty.holes_in(range.clone()).collect();
        for hole in &holes {
            self.cut(level, hole, &mut buffer);
        }
        let below = span(level - 1);
        let mut enter = Vec::new();
        let mut next = self.dirty.next_block(range.start).filter(|&leaf| leaf < range.end);
        while let Some(leaf) = next {
            enter.push(leaf / below);
            next = self.dirty.next_block((leaf / below + 1) * below).filter(|&leaf| leaf < range.end);
        }
        if level == 1 {
            for leaf in enter {
                let child = node(&buffer)[child_index(1, leaf)];
                if !child.is_hole() {
                    self.free_block(child.address());
                }
            }
        } else {
            // Children that a freed range meets only in part; at most the two at its ends.
            for hole in &holes {
                for end in [hole.start, hole.end - 1] {
                    let child = node(&buffer)[child_index(level, end)];
                    if !child.is_hole() {
                        enter.push(end / below);
                    }
                }
            }
            enter.sort_unstable();
            enter.dedup();
            for child in enter {
                self.enter_child(level - 1, child, node(&buffer)[child_index(level, child * below)]);
            }
        }
        let before = self.nodes[usize::from(level) - 1].insert(index, buffer);
        assert!(before.is_none(), "a node is expanded once");
    }

    /// Enters a child, unless it lies on the left edge of a tree that grew: those were entered at the start.
    fn enter_child(&mut self, level: u8, index: u64, reference: BlockRef) {
        let entered_at_start = index == 0 && self.grown_from.is_some_and(|old_levels| level >= old_levels);
        if !entered_at_start {
            self.enter(level, index, reference);
        }
    }

    /// Removes the children of a node that `hole` covers whole.
    fn cut(&mut self, level: u8, hole: &Range<u64>, buffer: &mut BlockBuf) {
        let below = span(level - 1);
        let first = hole.start.div_ceil(below);
        let end = hole.end / below;
        for child in first..end {
            let reference = std::mem::take(&mut node_mut(buffer)[child_index(level, child * below)]);
            if reference.is_hole() {
                continue;
            }
            if level == 1 {
                self.free_block(reference.address());
            } else {
                self.reap.push(Subtree { root: reference, levels: level - 1 });
            }
        }
    }

    fn free_block(&mut self, address: BlockAddress) {
        // An address is what a node says: whether the pool has such a block is for the space map to judge.
        match self.freed.last_mut() {
            Some(last) if last.first.0.checked_add(last.count) == Some(address.0) => last.count += 1,
            _ => self.freed.push(AddressRange { first: address, count: 1 }),
        }
    }

    fn place(&mut self) -> BlockAddress {
        let range = self.space.front_mut().expect("the grant covers the need");
        let address = range.first;
        range.first = BlockAddress(address.0 + 1);
        range.count -= 1;
        if range.count == 0 {
            self.space.pop_front();
        }
        address
    }

    fn write_leaves<D: BlockDevice>(&mut self, io: &mut Io<D>, budget: usize) -> bool {
        let dirty = self.dirty.clone();
        let mut work = 0;
        let mut leaves = dirty.blocks_in(self.cursor..u64::MAX).peekable();
        while work < budget && self.writes < WRITES_MAX {
            let Some((index, leaf)) = leaves.next() else {
                self.flush_run(io);
                self.phase = Phase::Nodes(1);
                self.cursor = 0;
                return true;
            };
            // They were written long ago: each is loaded while the one before it is hashed.
            if let Some((_, next)) = leaves.peek() {
                next.data.fetch();
            }
            let address = self.place();
            let reference = BlockRef::new(address, self.cp, &leaf.data).with_aux(self.aux.of_leaf(&leaf.data));
            let parent = self.nodes[0].get_mut(&(index / TREE_FANOUT)).expect("the path to every leaf was loaded");
            node_mut(parent)[child_index(1, index)] = reference;
            self.write(io, reference, leaf.data.clone());
            self.cursor = index + 1;
            work += 1;
        }
        work > 0
    }

    fn write_nodes<D: BlockDevice>(&mut self, io: &mut Io<D>, level: u8, budget: usize) -> bool {
        let mut work = 0;
        while work < budget && self.writes < WRITES_MAX {
            let Some((index, buffer)) = self.nodes[usize::from(level) - 1].pop_first() else {
                self.flush_run(io);
                self.phase = if level == self.tree.levels { Phase::Settle } else { Phase::Nodes(level + 1) };
                return true;
            };
            let reference = if node(&buffer).iter().all(BlockRef::is_hole) {
                BlockRef::default()
            } else {
                let aux = self.aux.of_node(&buffer);
                let reference = BlockRef::new(self.place(), self.cp, &buffer).with_aux(aux);
                self.write(io, reference, buffer.freeze());
                reference
            };
            if level == self.tree.levels {
                self.tree.root = reference;
            } else {
                let parent = self.nodes[usize::from(level)].get_mut(&(index / TREE_FANOUT));
                let parent = parent.expect("the path to every node was loaded");
                node_mut(parent)[child_index(level + 1, index * span(level))] = reference;
            }
            work += 1;
        }
        work > 0
    }

    fn write<D: BlockDevice>(&mut self, io: &mut Io<D>, reference: BlockRef, block: SharedBlock) {
        let address = reference.address();
        let adjoins = self.run.first.0 + self.run.blocks.len() as u64 == address.0;
        if !adjoins || self.run.blocks.len() == RUN_BLOCKS_MAX {
            self.flush_run(io);
        }
        if self.run.blocks.is_empty() {
            self.run.first = address;
        }
        self.run.blocks.push(block.clone());
        io.remember(reference.key(), block);
    }

    fn flush_run<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        let run = std::mem::take(&mut self.run);
        if !run.blocks.is_empty() {
            self.next_write += 1;
            self.writes += 1;
            io.write(Tag { owner: self.owner, id: self.next_write }, run.first, run.blocks, Persistence::Volatile);
        }
    }
}
