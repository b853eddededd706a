//! `pool check`: proves a consistency point whole.
//!
//! It walks everything that the superblock reaches, verifies every checksum, and proves that
//!
//! 1. no block is reached twice;
//! 2. what is reached, or listed as freed, is exactly what the space map shows in use;
//! 3. counts agree: free blocks, blocks below each reference, sizes of free areas;
//! 4. every record, list and node is well formed.
//!
//! Every block is read from its device: what the cache holds proves nothing about the medium. The walk is depth first with a
//! bounded number of fetches ahead:
//!
//! ```text
//! trees, lists, nodes of the space map --> bitmaps of the space map, each compared --> areas without a bitmap --> report
//!                                          with what was reached of its area
//! ```
//!
//! Memory is one bit per block of every area that is in use. Work, in one turn and in all, depends on what is in use, never on the
//! size of the pool.

use crate::{
    alloc::geometry::{AreaIndex, Geometry, place},
    base::{BlockAddress, ObjectId, limits::AREA_BLOCKS},
    format::{
        chain::{AddressRange, ChainEntry, Subtree, decode_chain_block},
        object::{Joining, Object, VolumeRecord, records},
        reference::{BlockKey, BlockRef, node},
        superblock::Superblock,
    },
    pool::{
        io::{Io, IoEvent, Tag},
        tree::{Aux, span},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use twinlog_device::{BLOCK_BYTES, BlockBytes, BlockDevice, SharedBlock};

/// Fetches ahead.
const AHEAD_MAX: usize = 64;
/// Blocks processed in one turn.
const STEP_BLOCKS: usize = 64;
/// Areas compared in one turn.
const STEP_AREAS: usize = 16;
/// Lines of problems in a report.
const PROBLEMS_MAX: usize = 100;
/// Damaged ranges in a report.
const DAMAGED_MAX: usize = 1000;

/// Result of a check or scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Blocks read and verified.
    pub verified_blocks: u64,
    /// Blocks in use according to the trees.
    pub reachable_blocks: u64,
    /// Blocks in use according to the space map: those that are reached, and those that were freed and come back with a later
    /// consistency point.
    pub allocated_blocks: u64,
    /// Blocks that were freed and not yet given back.
    pub freed_blocks: u64,
    /// What of which volume cannot be read, by volume and offset; neighbours are joined. At most 1000.
    pub damaged: Vec<DamagedRange>,
    /// Volumes that are offline, and what is held for them.
    #[serde(default)]
    pub offline: Vec<OfflineVolume>,
    /// Everything that is wrong, at most 100 lines; empty means whole.
    pub problems: Vec<String>,
}

/// Bytes of a volume that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRange {
    /// Name of the volume.
    pub volume: String,
    /// First byte.
    pub offset_bytes: u64,
    /// How many; up to the volume's end at most.
    pub length_bytes: u64,
}

/// A volume that is offline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineVolume {
    /// Its name.
    pub volume: String,
    /// Why, with lane and position of the record.
    pub why: String,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Volume(ObjectId),
    /// Records that are held of the volume.
    Held(ObjectId),
    ObjectTable,
    SpaceMap,
    Freed,
    ReapList,
    Reap,
}

#[derive(Clone, Copy, Debug)]
struct Visit {
    role: Role,
    reference: BlockRef,
    /// Node levels from here down.
    levels: u8,
    /// Index of the first data block below.
    first: u64,
}

/// A check in progress.
pub struct Check {
    tag: Tag,
    geometry: Geometry,
    superblock: Superblock,
    stack: Vec<Visit>,
    waiting: BTreeMap<BlockKey, Visit>,
    /// Bitmaps of the space map, which are read when everything else has been reached.
    bitmaps: Vec<Visit>,
    /// What was reached, by area; an area goes when it has been compared.
    seen: BTreeMap<AreaIndex, Box<BlockBytes>>,
    /// Free blocks according to the bitmaps compared, and blocks of their areas that can hold data.
    free_blocks: u64,
    compared_blocks: u64,
    /// A part of the space map cannot be read: what it says of the rest proves nothing.
    is_map_damaged: bool,
    /// Name and size of every volume.
    objects: BTreeMap<ObjectId, (String, u64)>,
    joining: Joining,
    names: BTreeSet<String>,
    /// Bytes of each volume that cannot be read, by their offset.
    damaged: BTreeMap<(ObjectId, u64), u64>,
    freed_blocks: u64,
    report: CheckReport,
}

impl Check {
    /// A check of the consistency point of `superblock`, whose blocks do not change meanwhile. Fetches are made for `tag`.
    #[must_use]
    pub fn new(superblock: Superblock, tag: Tag) -> Self {
        let geometry = Geometry::new(&superblock.devices);
        let mut check = Self {
            tag,
            geometry,
            stack: Vec::new(),
            waiting: BTreeMap::new(),
            bitmaps: Vec::new(),
            seen: BTreeMap::new(),
            free_blocks: 0,
            compared_blocks: 0,
            is_map_damaged: false,
            objects: BTreeMap::new(),
            joining: Joining::default(),
            names: BTreeSet::new(),
            damaged: BTreeMap::new(),
            freed_blocks: 0,
            report: CheckReport::default(),
            superblock,
        };
        let roots = [
            (Role::SpaceMap, check.superblock.space_map.root, check.superblock.space_map.levels),
            (Role::ObjectTable, check.superblock.object_table.root, check.superblock.object_table.levels),
            (Role::Freed, check.superblock.freed, 0),
            (Role::ReapList, check.superblock.reap, 0),
        ];
        for (role, reference, levels) in roots {
            check.push(Visit { role, reference, levels, first: 0 });
        }
        check
    }

    /// Blocks verified so far, and blocks in use in all as far as the superblock knows.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.report.verified_blocks, self.geometry.usable_blocks() - self.superblock.free_blocks)
    }

    /// A block that was fetched.
    pub fn event(&mut self, event: IoEvent) {
        let IoEvent::Fetched { key, result, .. } = event else { return };
        let Some(visit) = self.waiting.remove(&key) else { return };
        match result {
            Ok(block) => self.visit(visit, &block),
            Err(reason) => {
                self.note_damage(&visit);
                self.is_map_damaged |= visit.role == Role::SpaceMap;
                self.problem(format!("{}: {reason}", self.describe(&visit)));
            }
        }
    }

    /// Goes on for one turn. The report when everything has been seen.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Option<CheckReport> {
        for _ in 0..STEP_BLOCKS {
            if self.waiting.len() >= AHEAD_MAX {
                return None;
            }
            let Some(visit) = self.stack.pop() else { break };
            io.fetch_from_medium(&visit.reference, self.tag);
            self.waiting.insert(visit.reference.key(), visit);
        }
        if !self.stack.is_empty() || !self.waiting.is_empty() {
            return None;
        }
        if !self.bitmaps.is_empty() {
            self.stack = std::mem::take(&mut self.bitmaps);
            return None;
        }
        for _ in 0..STEP_AREAS {
            let Some((area, seen)) = self.seen.pop_first() else { break };
            if !self.is_map_damaged {
                self.compare(area, &seen, None);
            }
        }
        if !self.seen.is_empty() {
            return None;
        }
        self.compare_counts();
        self.join_reservations();
        self.join_damage();
        Some(std::mem::take(&mut self.report))
    }

    /// Marks a block as reached and puts it on the stack, unless it is none or cannot be one.
    fn push(&mut self, visit: Visit) {
        if visit.reference.is_hole() {
            return;
        }
        if visit.reference.birth() > self.superblock.cp {
            self.problem(format!("{}: written by a later consistency point", self.describe(&visit)));
        }
        if self.bytes_below(&visit).is_some_and(|(_, bytes)| bytes.is_empty()) {
            self.problem(format!("{}: lies beyond the volume's end", self.describe(&visit)));
        }
        if self.mark(visit.reference.address(), 1, &visit) {
            self.report.reachable_blocks += 1;
            if visit.role == Role::SpaceMap && visit.levels == 0 {
                self.bitmaps.push(visit);
            } else {
                self.stack.push(visit);
            }
        }
    }

    fn mark(&mut self, first: BlockAddress, count: u64, visit: &Visit) -> bool {
        if !self.geometry.contains(first, count) {
            self.problem(format!("{}: block {first} is not of this pool", self.describe(visit)));
            return false;
        }
        for offset in 0..count {
            let (area, bit) = self.geometry.locate(first.plus(offset)).expect("contained");
            let (byte, mask) = place(bit);
            let seen = self.seen.entry(area).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
            if seen[byte] & mask != 0 {
                self.problem(format!("{}: block {} is used twice", self.describe(visit), first.plus(offset)));
                return false;
            }
            seen[byte] |= mask;
        }
        true
    }

    fn visit(&mut self, visit: Visit, block: &SharedBlock) {
        self.report.verified_blocks += 1;
        if visit.levels > 0 {
            return self.visit_node(visit, block);
        }
        match visit.role {
            Role::Volume(_) | Role::Held(_) | Role::Reap => self.expect_aux(&visit, Aux::Blocks.of_leaf(block)),
            Role::SpaceMap => {
                self.expect_aux(&visit, Aux::FreeBlocks.of_leaf(block));
                let seen = self.seen.remove(&visit.first).unwrap_or_else(|| Box::new([0; BLOCK_BYTES]));
                self.compare(visit.first, &seen, Some(block));
            }
            Role::ObjectTable => self.visit_objects(&visit, block),
            Role::Freed => self.visit_list::<AddressRange>(&visit, block, |check, range| {
                check.freed_blocks += range.count;
                check.mark(range.first, range.count, &visit);
            }),
            Role::ReapList => self.visit_list::<Subtree>(&visit, block, |check, subtree| {
                check.push(Visit { role: Role::Reap, reference: subtree.root, levels: subtree.levels, first: 0 });
            }),
        }
    }

    fn visit_node(&mut self, visit: Visit, block: &SharedBlock) {
        let aux = if visit.role == Role::SpaceMap { Aux::FreeBlocks } else { Aux::Blocks };
        self.expect_aux(&visit, aux.of_node(block));
        let below = span(visit.levels - 1);
        for (child, reference) in (0..).zip(node(block)) {
            if !reference.is_sane() {
                self.problem(format!("{}: reference {child} is malformed", self.describe(&visit)));
                continue;
            }
            let first = visit.first + child * below;
            self.push(Visit { reference: *reference, levels: visit.levels - 1, first, ..visit });
        }
    }

    fn visit_objects(&mut self, visit: &Visit, block: &SharedBlock) {
        for record in records(block) {
            match record.verify() {
                Ok(None) => {}
                Ok(Some(Object::Volume(volume, head))) => {
                    self.joining.head(volume.id, head);
                    self.visit_volume(*volume);
                }
                Ok(Some(Object::Registrants { volume, part, registrants })) => {
                    let joined = self.joining.part(volume, part, registrants);
                    joined.unwrap_or_else(|reason| self.problem(reason));
                }
                Err(reason) => self.problem(format!("{}: {reason}", self.describe(visit))),
            }
        }
    }

    fn visit_volume(&mut self, volume: VolumeRecord) {
        let known = self.objects.insert(volume.id, (volume.name.clone(), volume.size_bytes));
        if known.is_some() || !self.names.insert(volume.name.clone()) {
            self.problem(format!("volume '{}' (object {}) exists twice", volume.name, volume.id));
        }
        if volume.id >= self.superblock.next_object {
            self.problem(format!("object {} is not below the next object's id", volume.id));
        }
        let role = Role::Volume(volume.id);
        self.push(Visit { role, reference: volume.root, levels: volume.levels, first: 0 });
        if let Some(offline) = volume.offline {
            let (role, why) = (Role::Held(volume.id), offline.to_string());
            self.push(Visit { role, reference: offline.held.root, levels: offline.held.levels, first: 0 });
            self.report.offline.push(OfflineVolume { volume: volume.name, why });
            if !self.superblock.has_offline {
                self.problem("a volume is offline that the superblock does not know of".to_owned());
            }
        }
    }

    /// Whether reservations are whole, once the object table has been read.
    fn join_reservations(&mut self) {
        match std::mem::take(&mut self.joining).finish() {
            Ok(reservations) if reservations.is_empty() || self.superblock.has_reservations => {}
            Ok(_) => self.problem("a volume is reserved that the superblock does not know of".to_owned()),
            Err(reason) => self.problem(reason),
        }
    }

    fn visit_list<E: ChainEntry>(&mut self, visit: &Visit, block: &SharedBlock, mut each: impl FnMut(&mut Self, E)) {
        match decode_chain_block::<E>(block) {
            Ok((entries, next)) => {
                entries.into_iter().for_each(|entry| each(self, entry));
                self.push(Visit { reference: next, ..*visit });
            }
            Err(reason) => self.problem(format!("{}: {reason}", self.describe(visit))),
        }
    }

    fn expect_aux(&mut self, visit: &Visit, expected: u32) {
        if visit.reference.aux() != expected {
            let line = format!("{}: counts {} where {expected} are", self.describe(visit), visit.reference.aux());
            self.problem(line);
        }
    }

    /// Compares what was reached of an area with what the space map says of it: a bitmap, or none where nothing was ever in use.
    fn compare(&mut self, area: AreaIndex, seen: &BlockBytes, map: Option<&BlockBytes>) {
        if area >= self.geometry.area_count() {
            return self.problem(format!("the space map describes area {area}, which the pool does not have"));
        }
        let mut fresh = Box::new([0; BLOCK_BYTES]);
        self.geometry.fill_fresh(area, &mut fresh);
        let map = map.unwrap_or(&fresh);
        self.free_blocks += map.iter().map(|byte| u64::from(byte.count_zeros())).sum::<u64>();
        let usable = self.geometry.usable_bits(area);
        self.compared_blocks += usable.end - usable.start;
        if map.iter().zip(seen).zip(fresh.iter()).all(|((map, seen), fresh)| *map == seen | fresh) {
            return;
        }
        for bit in 0..AREA_BLOCKS {
            let (byte, mask) = place(bit);
            let (in_map, reached) = (map[byte] & mask != 0, (seen[byte] | fresh[byte]) & mask != 0);
            if in_map != reached {
                let address = self.geometry.address(area, bit);
                let what = if in_map { "in use and not reached (a leak)" } else { "reached and marked free" };
                self.problem(format!("block {address} is {what}"));
            }
        }
    }

    /// Compares the superblock's counts with what was found. Areas that were not compared are free as a whole.
    fn compare_counts(&mut self) {
        let usable = self.geometry.usable_blocks();
        let free_blocks = usable.saturating_sub(self.compared_blocks) + self.free_blocks;
        self.report.freed_blocks = self.freed_blocks;
        self.report.allocated_blocks = usable.saturating_sub(free_blocks);
        if free_blocks != self.superblock.free_blocks && !self.is_map_damaged {
            self.problem(format!(
                "the superblock counts {} free blocks, the map {free_blocks}",
                self.superblock.free_blocks
            ));
        }
        if self.freed_blocks != self.superblock.deferred_blocks {
            let (counted, listed) = (self.superblock.deferred_blocks, self.freed_blocks);
            self.problem(format!("the superblock counts {counted} deferred blocks, the freed list {listed}"));
        }
    }

    /// The bytes of a volume below a block.
    fn bytes_below(&self, visit: &Visit) -> Option<(ObjectId, Range<u64>)> {
        let Role::Volume(id) = visit.role else { return None };
        let size_bytes = self.objects.get(&id).map_or(u64::MAX, |(_, size_bytes)| *size_bytes);
        let byte = |block: u64| block.saturating_mul(BLOCK_BYTES as u64).min(size_bytes);
        Some((id, byte(visit.first)..byte(visit.first.saturating_add(span(visit.levels)))))
    }

    fn note_damage(&mut self, visit: &Visit) {
        if let Some((id, bytes)) = self.bytes_below(visit) {
            self.damaged.insert((id, bytes.start), bytes.end);
        }
    }

    /// Puts the damaged bytes into the report, neighbours as one range.
    fn join_damage(&mut self) {
        for ((id, start), end) in std::mem::take(&mut self.damaged) {
            let volume = self.objects.get(&id).map_or_else(|| format!("object {id}"), |(name, _)| name.clone());
            let ranges = &mut self.report.damaged;
            let is_full = ranges.len() == DAMAGED_MAX;
            match ranges.last_mut() {
                Some(last) if last.volume == volume && last.offset_bytes + last.length_bytes == start => {
                    last.length_bytes += end - start;
                }
                _ if is_full => return,
                _ => ranges.push(DamagedRange { volume, offset_bytes: start, length_bytes: end - start }),
            }
        }
    }

    fn problem(&mut self, line: String) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(line);
        }
    }

    fn describe(&self, visit: &Visit) -> String {
        let what = match visit.role {
            Role::Volume(id) => {
                let name = self.objects.get(&id).map_or("?", |(name, _)| name.as_str());
                let bytes = self.bytes_below(visit).map_or(0..0, |(_, bytes)| bytes);
                format!("volume {name}, bytes {}..{}", bytes.start, bytes.end)
            }
            Role::Held(id) => {
                let name = self.objects.get(&id).map_or("?", |(name, _)| name.as_str());
                format!("held records of volume {name}")
            }
            Role::ObjectTable => "object table".to_owned(),
            Role::SpaceMap => format!("space map, from area {}", visit.first),
            Role::Freed => "freed list".to_owned(),
            Role::ReapList => "reap list".to_owned(),
            Role::Reap => "subtree to be freed".to_owned(),
        };
        format!("{what} (level {}, block {})", visit.levels, visit.reference.address())
    }
}
