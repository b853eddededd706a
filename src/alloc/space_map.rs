//! The space map while it is changed: which areas are loaded, and where the next blocks come from.
//!
//! The search for space goes round the pool with a cursor, so that writes stay sequential and wear is even. It first looks for areas
//! that are at least a quarter free, and only when a whole round found none takes what is left.

use super::{
    area::Area,
    geometry::{AreaIndex, Geometry},
};
use crate::{
    base::limits::AREA_BLOCKS,
    format::{chain::AddressRange, reference::node, superblock::TreeRoot},
    pool::{
        io::{Io, Tag},
        tree::{Walk, span, update::free_blocks_below, walk, walk::child_index},
    },
};
use std::collections::{BTreeMap, VecDeque};
use twinlog_device::BlockDevice;

/// Free blocks that make an area worth opening in the first round.
const ROOMY_BLOCKS: u32 = 8192;
const _: () = assert!(ROOMY_BLOCKS as u64 == AREA_BLOCKS / 4);
/// Subtrees that one search looks at before it gives way.
const SEARCH_STEPS_MAX: usize = 256;

/// Outcome of asking for something that may have to be read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It is there.
    Yes,
    /// Ask again after the next I/O event, or turn.
    Pending,
    /// The pool does not have it.
    Never,
}

/// The space map of a pool.
pub struct SpaceMap {
    geometry: Geometry,
    tree: TreeRoot,
    areas: BTreeMap<AreaIndex, Area>,
    /// Loaded areas that blocks are taken from, first to last.
    open: VecDeque<AreaIndex>,
    cursor: AreaIndex,
    /// Areas passed since the search began its round.
    passed: u64,
    least_free: u32,
}

impl SpaceMap {
    /// The map that `tree` holds.
    #[must_use]
    pub fn new(geometry: Geometry, tree: TreeRoot) -> Self {
        let (areas, open) = (BTreeMap::new(), VecDeque::new());
        Self { geometry, tree, areas, open, cursor: 0, passed: 0, least_free: ROOMY_BLOCKS }
    }

    /// How the pool is cut into areas.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The map on disk.
    #[must_use]
    pub fn tree(&self) -> TreeRoot {
        self.tree
    }

    /// A device has joined.
    pub fn grow(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    /// Brings an area's bitmap into memory.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn load<D: BlockDevice>(&mut self, io: &mut Io<D>, tag: Tag, area: AreaIndex) -> Ready {
        if self.areas.contains_key(&area) {
            return Ready::Yes;
        }
        let reference = match walk(&self.tree, area, |key| io.cached(key)) {
            Walk::Missing(node) => {
                // Fetched into the cache; the walk is repeated when it is there.
                let _ = io.fetch(&node, tag);
                return Ready::Pending;
            }
            Walk::Found(reference) => Some(reference),
            Walk::Hole(_) => None,
        };
        let old = match reference.map(|reference| io.fetch(&reference, tag)) {
            Some(None) => return Ready::Pending,
            Some(Some(block)) => Some(block),
            None => None,
        };
        let Some(mut bitmap) = io.allocate() else { return Ready::Pending };
        match old {
            Some(block) => bitmap.copy_from_slice(&*block),
            None => self.geometry.fill_fresh(area, &mut bitmap),
        }
        self.areas.insert(area, Area::new(bitmap));
        Ready::Yes
    }

    /// Makes sure that `count` blocks can be taken by [`SpaceMap::allocate`].
    pub fn ensure<D: BlockDevice>(&mut self, io: &mut Io<D>, tag: Tag, count: u64) -> Ready {
        loop {
            let free: u64 = self.open.iter().map(|area| self.areas[area].free()).sum();
            if free >= count {
                return Ready::Yes;
            }
            match self.search(io, tag) {
                (Ready::Yes, area) => match self.load(io, tag, area) {
                    Ready::Yes => {
                        self.pass(area + 1);
                        self.open.push_back(area);
                    }
                    other => return other,
                },
                (other, _) => return other,
            }
        }
    }

    /// Takes `count` blocks; [`SpaceMap::ensure`] said that they are there.
    pub fn allocate(&mut self, mut count: u64) -> Vec<AddressRange> {
        let mut ranges = Vec::new();
        while count > 0 {
            let index = *self.open.front().expect("ensured before");
            let area = self.areas.get_mut(&index).expect("open areas are loaded");
            match area.take(count) {
                Some(bits) => {
                    count -= bits.end - bits.start;
                    ranges.push(AddressRange {
                        first: self.geometry.address(index, bits.start),
                        count: bits.end - bits.start,
                    });
                }
                None => {
                    self.open.pop_front();
                }
            }
        }
        ranges
    }

    /// The areas that `range` lies in.
    #[must_use]
    pub fn areas_of(&self, range: &AddressRange) -> Option<std::ops::RangeInclusive<AreaIndex>> {
        if !self.geometry.contains(range.first, range.count) {
            return None;
        }
        let (first, _) = self.geometry.locate(range.first)?;
        let (last, _) = self.geometry.locate(range.first.plus(range.count - 1))?;
        Some(first..=last)
    }

    /// Marks blocks of loaded areas as free.
    ///
    /// # Errors
    /// What contradicts the map.
    pub fn clear(&mut self, range: &AddressRange) -> Result<(), String> {
        let mut first = range.first;
        let mut rest = range.count;
        while rest > 0 {
            let (index, bit) =
                self.geometry.locate(first).ok_or_else(|| format!("block {first} is not of this pool"))?;
            let count = rest.min(AREA_BLOCKS - bit);
            let area = self.areas.get_mut(&index).ok_or_else(|| format!("area {index} is not loaded"))?;
            area.clear(bit..bit + count)
                .map_err(|bit| format!("block {} is free already", self.geometry.address(index, bit)))?;
            rest -= count;
            if rest > 0 {
                first = first.plus(count);
            }
        }
        Ok(())
    }

    /// Areas whose bitmap differs from the one on disk.
    pub fn dirty_areas(&self) -> impl Iterator<Item = (AreaIndex, &Area)> {
        self.areas.iter().filter(|(_, area)| area.dirty).map(|(&index, area)| (index, area))
    }

    /// The changes are on disk, in `tree`. Forgets every area that blocks are not taken from.
    pub fn committed(&mut self, tree: TreeRoot) {
        self.tree = tree;
        let open = &self.open;
        self.areas.retain(|index, area| {
            area.dirty = false;
            open.contains(index)
        });
        // Frees may have made room behind the cursor: begin a new round.
        self.passed = 0;
        self.least_free = ROOMY_BLOCKS;
    }

    /// The next area from the cursor that has room.
    fn search<D: BlockDevice>(&mut self, io: &mut Io<D>, tag: Tag) -> (Ready, AreaIndex) {
        for _ in 0..SEARCH_STEPS_MAX {
            if self.passed >= self.geometry.area_count() {
                if self.least_free == 1 {
                    return (Ready::Never, 0);
                }
                self.least_free = 1;
                self.passed = 0;
            }
            let area = self.cursor;
            if let Some(loaded) = self.areas.get(&area) {
                let is_open = self.open.contains(&area);
                if !is_open && loaded.free() >= u64::from(self.least_free) {
                    return (Ready::Yes, area);
                }
                self.pass(area + 1);
                continue;
            }
            let mut reference = self.tree.root;
            let mut level = self.tree.levels;
            let in_tree = area < span(level);
            loop {
                if reference.is_hole() || !in_tree {
                    let usable = self.geometry.usable_bits(area);
                    if usable.end - usable.start >= u64::from(self.least_free) {
                        return (Ready::Yes, area);
                    }
                    self.pass(area + 1);
                    break;
                }
                if free_blocks_below(&reference) < self.least_free {
                    self.pass((area / span(level) + 1) * span(level));
                    break;
                }
                if level == 0 {
                    return (Ready::Yes, area);
                }
                let Some(block) = io.fetch(&reference, tag) else { return (Ready::Pending, 0) };
                reference = node(&block)[child_index(level, area)];
                level -= 1;
            }
        }
        (Ready::Pending, 0)
    }

    /// Moves the cursor to `next`, or to the beginning.
    fn pass(&mut self, next: AreaIndex) {
        let next = next.min(self.geometry.area_count());
        self.passed += next - self.cursor;
        self.cursor = if next == self.geometry.area_count() { 0 } else { next };
    }
}
