//! The object table in memory: which volumes exist, and in which slot of the table each record lies.
//!
//! Memory and the cost of opening grow with the number of volumes, not with their size.

use crate::{
    base::{Lsn, ObjectId, planted},
    format::object::{OBJECTS_PER_BLOCK, ObjectRecord, VolumeRecord, records, records_mut},
    pool::tree::{Dirty, DirtyBlock, levels_for},
};
use std::collections::{BTreeMap, BTreeSet};
use twinlog_device::{BlockBuf, BlockBytes};

/// Volumes that one pool can have: 4096 blocks of records.
pub const VOLUMES_MAX: usize = 65_536;

/// What a consistency point says of an object.
#[derive(Clone, Debug)]
pub enum ObjectUpdate {
    /// It is new or changed.
    Put(VolumeRecord),
    /// It is no more.
    Delete(ObjectId),
}

/// The object table in memory, as of the newest consistency point.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    volumes: BTreeMap<ObjectId, (u64, VolumeRecord)>,
    slots: BTreeMap<u64, ObjectId>,
    free_slots: BTreeSet<u64>,
    dirty_blocks: BTreeSet<u64>,
    offline: BTreeSet<ObjectId>,
}

impl Directory {
    /// Adds the records of block `index` of the object table, read and verified by checksum.
    ///
    /// # Errors
    /// Which record is malformed, or stands in the table twice.
    pub fn load_block(&mut self, index: u64, bytes: &BlockBytes) -> Result<(), String> {
        for (slot, record) in (index * OBJECTS_PER_BLOCK..).zip(records(bytes)) {
            match record.verify()? {
                None => drop(self.free_slots.insert(slot)),
                Some(volume) => {
                    let id = volume.id;
                    self.slots.insert(slot, id);
                    self.note_offline(&volume);
                    if self.volumes.insert(id, (slot, volume)).is_some() {
                        return Err(format!("object {id} stands in the object table twice"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every volume.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values().map(|(_, record)| record)
    }

    /// Whether a volume is offline.
    #[must_use]
    pub fn has_offline(&self) -> bool {
        !self.offline.is_empty()
    }

    fn note_offline(&mut self, volume: &VolumeRecord) {
        if volume.offline.is_some() {
            self.offline.insert(volume.id);
        } else {
            self.offline.remove(&volume.id);
        }
    }

    /// Number of volumes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.volumes.len()
    }

    /// Whether there is no volume.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// Blocks that the table has, or will have after the updates so far.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        let last = self.slots.keys().chain(&self.free_slots).max();
        last.map_or(0, |slot| slot / OBJECTS_PER_BLOCK + 1)
    }

    /// Takes over an update.
    pub fn apply(&mut self, update: ObjectUpdate) {
        match update {
            ObjectUpdate::Put(record) => {
                let id = record.id;
                self.note_offline(&record);
                let known = self.volumes.get(&id).map(|(slot, _)| *slot);
                let slot = known.unwrap_or_else(|| self.new_slot());
                self.volumes.insert(id, (slot, record));
                self.slots.insert(slot, id);
                self.dirty_blocks.insert(slot / OBJECTS_PER_BLOCK);
            }
            ObjectUpdate::Delete(_) if planted::is("delete-not-in-cp") => {}
            ObjectUpdate::Delete(id) => {
                // An object that was made and deleted between two consistency points never had a slot.
                self.offline.remove(&id);
                if let Some((slot, _)) = self.volumes.remove(&id) {
                    self.slots.remove(&slot);
                    self.free_slots.insert(slot);
                    self.dirty_blocks.insert(slot / OBJECTS_PER_BLOCK);
                }
            }
        }
    }

    /// Whether the table on disk must be changed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty_blocks.is_empty()
    }

    /// The changed blocks of the table, and the levels that its tree needs; `None` while memory is short.
    pub fn take_dirty(&mut self, mut allocate: impl FnMut() -> Option<BlockBuf>) -> Option<(Dirty, u8)> {
        let levels = levels_for(self.block_count().max(1));
        let mut dirty = Dirty::default();
        for &block in &self.dirty_blocks {
            let mut buffer = allocate()?;
            for (slot, record) in (block * OBJECTS_PER_BLOCK..).zip(records_mut(&mut buffer)) {
                let volume = self.slots.get(&slot).map(|id| &self.volumes[id].1);
                *record = volume.map_or_else(ObjectRecord::free, ObjectRecord::volume);
            }
            dirty.insert(block, DirtyBlock { data: buffer.freeze(), lsn: Lsn(0) }, levels);
        }
        self.dirty_blocks.clear();
        Some((dirty, levels))
    }

    fn new_slot(&mut self) -> u64 {
        self.free_slots.pop_first().unwrap_or_else(|| {
            let next = self.slots.keys().next_back().map_or(0, |slot| slot + 1);
            // The rest of a new block is free slots.
            let block_end = (next / OBJECTS_PER_BLOCK + 1) * OBJECTS_PER_BLOCK;
            self.free_slots.extend(next + 1..block_end);
            next
        })
    }
}
