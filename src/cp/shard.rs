//! The shard's half of a consistency point: its frozen volumes, written one after the other.

use super::message::{ShardReport, ToCoordinator};
use crate::{
    base::{CpNumber, ForwardedChanges, LaneIndex, Lsn, ObjectId, limits::BLOCK_BYTES, planted},
    format::{chain::AddressRange, chain::Subtree, superblock::TreeRoot},
    fs::{
        directory::ObjectUpdate,
        volume::{Frozen, Volume},
    },
    pool::{
        io::{Io, IoEvent},
        tree::{Aux, TreeUpdate, levels_for},
    },
};
use std::collections::{BTreeMap, VecDeque};
use twinlog_device::BlockDevice;

/// Blocks of work in one turn: some 10 microseconds of checksums.
const STEP_BLOCKS: usize = 32;

/// Which tree of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data,
    /// The records that are held while it is offline.
    Held,
}

/// A consistency point in the making, on one shard.
pub struct ShardCp {
    cp: CpNumber,
    lane: LaneIndex,
    owner: u16,
    waiting: VecDeque<(ObjectId, Part, Frozen)>,
    current: Option<(ObjectId, Part, Frozen, TreeUpdate)>,
    asked: bool,
    /// New trees: of the data, of the held records.
    trees: BTreeMap<ObjectId, (TreeRoot, Option<TreeRoot>)>,
    report: ShardReport,
    applied: Lsn,
    reported: bool,
}

impl ShardCp {
    /// Freezes what has changed in `volumes`, at lane position `applied`. Volumes in `deleted` are gone for good.
    pub fn freeze(
        (cp, lane, owner): (CpNumber, LaneIndex, u16),
        volumes: &mut BTreeMap<ObjectId, Volume>,
        deleted: Vec<Volume>,
        applied: Lsn,
    ) -> Self {
        let mut report = ShardReport::default();
        for volume in deleted {
            let record = volume.record();
            report.objects.push(ObjectUpdate::Delete(record.id));
            if !record.root.is_hole() {
                report.reap.push(Subtree { root: record.root, levels: record.levels });
            }
            let held = record.offline.map(|offline| Subtree { root: offline.held.root, levels: offline.held.levels });
            report.reap.extend(held.filter(|held| !held.root.is_hole()));
            report.reap.extend(volume.released());
        }
        let mut waiting = VecDeque::new();
        for (&id, volume) in volumes.iter_mut().filter(|(_, volume)| volume.is_dirty()) {
            let frozen = volume.freeze();
            report.reap.extend(frozen.released);
            waiting.push_back((id, Part::Data, frozen));
        }
        let trees = BTreeMap::new();
        Self { cp, lane, owner, waiting, current: None, asked: false, trees, report, applied, reported: false }
    }

    /// Which consistency point.
    #[must_use]
    pub fn number(&self) -> CpNumber {
        self.cp
    }

    /// Adds to what was reserved for the frozen changes.
    pub fn set_reserved(&mut self, blocks: u64) {
        self.report.reserved_blocks = blocks;
    }

    /// What the lane remembers of forwarded changes up to the freeze.
    pub fn set_forwarded(&mut self, forwarded: ForwardedChanges) {
        self.report.forwarded = Some(forwarded);
    }

    /// Position of the freeze.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Places for the volume that is being written.
    pub fn space(&mut self, ranges: Vec<AddressRange>) {
        let (.., update) = self.current.as_mut().expect("space was asked for");
        update.grant(ranges);
    }

    /// An I/O event of this consistency point.
    ///
    /// # Errors
    /// A node cannot be read or a write failed: the pool must stop.
    pub fn event(&mut self, event: IoEvent) -> Result<(), String> {
        let (.., update) = self.current.as_mut().expect("I/O belongs to the volume that is being written");
        update.event(event)
    }

    /// Goes on. `is_stable` says that the lane is durable up to the freeze. Returns whether anything was done, and a message for the
    /// coordinator.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, is_stable: bool) -> (bool, Option<ToCoordinator>) {
        if self.reported {
            return (false, None);
        }
        let Some((.., update)) = &mut self.current else {
            let Some((id, part, frozen)) = self.waiting.pop_front() else {
                // One node would lose nothing without this: what a consistency point contains needs no record, and a change that was not
                // answered may have happened or not. But recovery then finds a lane that ends before its applied position.
                if !is_stable {
                    return (false, None);
                }
                self.reported = true;
                let mut report = Box::new(std::mem::take(&mut self.report));
                report.applied = self.applied;
                return (true, Some(ToCoordinator::Written { lane: self.lane, report }));
            };
            let (tree, bytes, dirty) = match (part, &frozen.record.offline) {
                (Part::Held, Some(offline)) => (offline.held, offline.end_bytes, &frozen.held),
                _ => {
                    let tree = TreeRoot { root: frozen.record.root, levels: frozen.record.levels };
                    (tree, frozen.record.size_bytes, &frozen.dirty)
                }
            };
            let levels = levels_for(bytes.div_ceil(BLOCK_BYTES));
            let update = TreeUpdate::new(tree, levels, dirty.clone(), self.cp, (self.owner, Aux::Blocks));
            self.current = Some((id, part, frozen, update));
            self.asked = false;
            return (true, None);
        };
        let mut worked = update.step(io, STEP_BLOCKS);
        if update.is_ready() && !self.asked {
            self.asked = true;
            let blocks = update.needed_blocks();
            if blocks > 0 {
                return (true, Some(ToCoordinator::NeedSpace { lane: self.lane, blocks }));
            }
            update.grant(Vec::new());
            worked = true;
        }
        if update.is_done() {
            self.finish_tree();
            worked = true;
        }
        (worked, None)
    }

    /// Hands every volume its new tree.
    pub fn thaw(self, volumes: &mut BTreeMap<ObjectId, Volume>, deleted: &mut [Volume]) {
        assert!(self.reported, "a consistency point is durable after it was written");
        for (id, (tree, held)) in self.trees {
            let volume = volumes.get_mut(&id).or_else(|| deleted.iter_mut().find(|volume| volume.record().id == id));
            volume.expect("a frozen volume is kept until the consistency point is durable").thaw(tree, held);
        }
    }

    fn finish_tree(&mut self) {
        let (id, part, mut frozen, mut update) = self.current.take().expect("it has just been written");
        self.report.freed.append(&mut update.take_freed());
        self.report.reap.append(&mut update.take_reap());
        let mut result = update.into_result();
        self.report.unused.append(&mut result.unused);
        let trees = self.trees.entry(id).or_default();
        let record = &mut frozen.record;
        if part == Part::Held {
            trees.1 = Some(result.tree);
            record.offline.as_mut().expect("records are held of a volume that is offline").held = result.tree;
        } else {
            trees.0 = result.tree;
            record.root = result.tree.root;
            record.levels = result.tree.levels;
            record.allocated_blocks = u64::from(result.tree.root.aux());
            if !frozen.held.is_empty() {
                return self.waiting.push_front((id, Part::Held, frozen));
            }
        }
        if planted::is("forgets-offline-at-cp") {
            record.offline = None;
        }
        self.report.objects.push(ObjectUpdate::Put(frozen.record));
    }
}
