//! Writing the space map, which must hold its own new places.
//!
//! The map's new blocks are allocated from areas whose bitmaps it is about to write, and what it sets free goes into the freed list of
//! this same consistency point, whose blocks are allocated from there too. So the plan is repeated until it closes:
//!
//! 1. load the areas of everything that is to be cleared;
//! 2. plan the update of all areas that differ: that tells how many blocks it takes and which it frees;
//! 3. take what is missing for the update and for both lists; if that opened a new area, plan again. Each round opens a new area or
//!    ends, and one area holds 32768 blocks, so two rounds are the rule;
//! 4. only now clear bits (rule R9: nothing freed by the last consistency point is taken while this one is written), and write.

use super::lists::{merge, total};
use crate::{
    alloc::space_map::{Ready, SpaceMap},
    base::{CpNumber, Lsn},
    format::{
        chain::{AddressRange, Subtree, chain_blocks},
        superblock::TreeRoot,
    },
    pool::{
        io::{Io, Tag},
        tree::{Aux, Dirty, DirtyBlock, TreeUpdate, levels_for},
    },
};
use std::{collections::BTreeSet, rc::Rc};
use twinlog_device::BlockDevice;

/// Areas loaded in one turn.
const STEP_AREAS: usize = 16;

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Load,
    Plan,
    Fit,
    Write,
    Done,
}

/// The map's part of a consistency point.
pub struct MapUpdate {
    cp: CpNumber,
    update_owner: u16,
    tag: Tag,
    stage: Stage,
    clears: Vec<AddressRange>,
    clear_areas: BTreeSet<u64>,
    loaded: usize,
    /// Freed by this consistency point, the map's own blocks apart.
    freed: Vec<AddressRange>,
    reap: Vec<Subtree>,
    planned: BTreeSet<u64>,
    granted: Vec<AddressRange>,
    update: Option<TreeUpdate>,
}

/// What the map's update leaves to do and to know.
pub struct MapResult {
    /// The new space map.
    pub tree: TreeRoot,
    /// The freed list to write.
    pub freed: Vec<AddressRange>,
    /// Its places.
    pub freed_places: Vec<AddressRange>,
    /// The reap list to write.
    pub reap: Vec<Subtree>,
    /// Its places.
    pub reap_places: Vec<AddressRange>,
    /// Blocks taken for map and lists.
    pub allocated_blocks: u64,
    /// Blocks that the map shows free again.
    pub cleared_blocks: u64,
}

impl MapUpdate {
    /// Clears `last_freed`, as far as it lies in `clear_areas_max` areas, and lists the rest, `freed` and `reap`. Fetches are made for `tag`, those of the tree for `update_owner`.
    ///
    /// # Errors
    /// `last_freed` names blocks that the pool does not have.
    pub fn new(
        space: &SpaceMap,
        ((cp, update_owner, tag), clear_areas_max): ((CpNumber, u16, Tag), usize),
        last_freed: Vec<AddressRange>,
        mut freed: Vec<AddressRange>,
        reap: Vec<Subtree>,
    ) -> Result<Self, String> {
        let mut clear_areas = BTreeSet::new();
        let mut clears = Vec::new();
        for range in last_freed {
            let areas =
                space.areas_of(&range).ok_or_else(|| format!("freed block {} is not of this pool", range.first))?;
            if clear_areas.len() < clear_areas_max {
                clear_areas.extend(areas);
                clears.push(range);
            } else {
                freed.push(range);
            }
        }
        Ok(Self {
            cp,
            update_owner,
            tag,
            stage: Stage::Load,
            clears,
            clear_areas,
            loaded: 0,
            freed,
            reap,
            planned: BTreeSet::new(),
            granted: Vec::new(),
            update: None,
        })
    }

    /// The tree update, for its I/O events.
    pub fn update(&mut self) -> Option<&mut TreeUpdate> {
        self.update.as_mut()
    }

    /// Whether everything of the map has been written.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Goes on for one turn. Returns whether anything was done.
    ///
    /// # Errors
    /// The map contradicts itself, or has no room where room was kept.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, space: &mut SpaceMap) -> Result<bool, String> {
        let before = (self.stage, self.loaded);
        let mut worked = false;
        match self.stage {
            Stage::Load => {
                for &area in self.clear_areas.iter().skip(self.loaded).take(STEP_AREAS) {
                    if space.load(io, self.tag, area) != Ready::Yes {
                        break;
                    }
                    self.loaded += 1;
                }
                if self.loaded == self.clear_areas.len() {
                    self.plan(io, space)?;
                }
            }
            Stage::Plan => {
                let update = self.update.as_mut().expect("made by the plan");
                worked = update.step(io, 64);
                if update.is_ready() {
                    self.stage = Stage::Fit;
                }
            }
            Stage::Fit => self.fit(io, space)?,
            Stage::Write => {
                let update = self.update.as_mut().expect("made by the plan");
                worked = update.step(io, 64);
                if update.is_done() {
                    self.stage = Stage::Done;
                }
            }
            Stage::Done => {}
        }
        Ok(worked || (self.stage, self.loaded) != before)
    }

    /// The end.
    #[must_use]
    pub fn into_result(self) -> MapResult {
        let update = self.update.expect("the map was written");
        let cleared_blocks = total(&self.clears);
        let allocated_blocks = total(&self.granted);
        let result = update.into_result();
        let mut places = result.unused;
        let freed_places = take(&mut places, chain_blocks::<AddressRange>(self.freed.len()) as u64);
        let reap_places = take(&mut places, chain_blocks::<Subtree>(self.reap.len()) as u64);
        assert!(places.is_empty(), "the plan is exact");
        MapResult {
            tree: result.tree,
            freed: self.freed,
            freed_places,
            reap: self.reap,
            reap_places,
            allocated_blocks,
            cleared_blocks,
        }
    }

    fn plan<D: BlockDevice>(&mut self, io: &mut Io<D>, space: &SpaceMap) -> Result<(), String> {
        self.planned = space.dirty_areas().map(|(index, _)| index).chain(self.clear_areas.iter().copied()).collect();
        let Some(placeholder) = io.allocate() else { return Ok(()) };
        let placeholder = placeholder.freeze();
        let levels = levels_for(space.geometry().area_count());
        let mut dirty = Dirty::default();
        for &area in &self.planned {
            dirty.insert(area, DirtyBlock { data: placeholder.clone(), lsn: Lsn(0) }, levels);
        }
        let tree = space.tree();
        self.update =
            Some(TreeUpdate::new(tree, levels, Rc::new(dirty), self.cp, (self.update_owner, Aux::FreeBlocks)));
        self.stage = Stage::Plan;
        Ok(())
    }

    fn fit<D: BlockDevice>(&mut self, io: &mut Io<D>, space: &mut SpaceMap) -> Result<(), String> {
        let update = self.update.as_ref().expect("made by the plan");
        let freed = merge(self.freed.iter().chain(update.freed()).copied().collect());
        let lists = chain_blocks::<AddressRange>(freed.len()) + chain_blocks::<Subtree>(self.reap.len());
        let needed = update.needed_blocks() + lists as u64;
        let missing = needed.saturating_sub(total(&self.granted));
        if missing > 0 {
            match space.ensure(io, self.tag, missing) {
                Ready::Pending => return Ok(()),
                Ready::Never => return Err("no space is left for the maps: the reservation was too small".to_owned()),
                Ready::Yes => self.granted.append(&mut space.allocate(missing)),
            }
        }
        if space.dirty_areas().any(|(index, _)| !self.planned.contains(&index)) {
            return self.plan(io, space);
        }
        // A later plan may need one list block less than an earlier one: joined frees are fewer.
        while total(&self.granted) > needed {
            let last = self.granted.last_mut().expect("more than needed");
            last.count -= 1;
            space.clear(&AddressRange { first: last.first.plus(last.count), count: 1 })?;
            if last.count == 0 {
                self.granted.pop();
            }
        }
        self.finish(io, space, freed)
    }

    fn finish<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        space: &mut SpaceMap,
        freed: Vec<AddressRange>,
    ) -> Result<(), String> {
        let room = self.planned.len();
        let buffers: Option<Vec<_>> = (0..room).map(|_| io.allocate()).collect();
        let Some(mut buffers) = buffers else { return Ok(()) };
        for range in &self.clears {
            space.clear(range)?;
        }
        let levels = levels_for(space.geometry().area_count());
        let mut dirty = Dirty::default();
        for (area, loaded) in space.dirty_areas() {
            let mut buffer = buffers.pop().expect("one for each planned area");
            buffer.copy_from_slice(loaded.bitmap());
            dirty.insert(area, DirtyBlock { data: buffer.freeze(), lsn: Lsn(0) }, levels);
        }
        self.freed = freed;
        let update = self.update.as_mut().expect("made by the plan");
        update.replace_content(Rc::new(dirty));
        update.grant(self.granted.clone());
        self.stage = Stage::Write;
        Ok(())
    }
}

/// Takes `count` blocks from the front of `ranges`.
fn take(ranges: &mut Vec<AddressRange>, mut count: u64) -> Vec<AddressRange> {
    let mut taken = Vec::new();
    while count > 0 {
        let first = ranges.first_mut().expect("the plan is exact");
        let part = first.count.min(count);
        taken.push(AddressRange { first: first.first, count: part });
        count -= part;
        if part == first.count {
            ranges.remove(0);
        } else {
            *first = AddressRange { first: first.first.plus(part), count: first.count - part };
        }
    }
    taken
}
