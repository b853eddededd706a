//! The object table in memory: which volumes exist, and in which slot of the table each record lies.
//!
//! Memory and the cost of opening grow with the number of volumes, not with their size.

use crate::{
    base::{Lsn, ObjectId, planted},
    format::object::{
        Joining, OBJECTS_PER_BLOCK, Object, ObjectRecord, VolumeRecord, records, records_mut, registrant_parts,
    },
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
    slots: BTreeMap<u64, (ObjectId, Part)>,
    /// Slots of the volumes' registrants.
    registrants: BTreeMap<(ObjectId, u8), u64>,
    joining: Joining,
    free_slots: BTreeSet<u64>,
    dirty_blocks: BTreeSet<u64>,
    offline: BTreeSet<ObjectId>,
    reserved: BTreeSet<ObjectId>,
}

/// What of a volume stands in a slot.
#[derive(Clone, Copy, Debug)]
enum Part {
    Volume,
    /// The so-many-th record of its registrants.
    Registrants(u8),
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
                Some(Object::Volume(volume, head)) => {
                    let id = volume.id;
                    self.slots.insert(slot, (id, Part::Volume));
                    self.joining.head(id, head);
                    self.note(&volume);
                    if self.volumes.insert(id, (slot, *volume)).is_some() {
                        return Err(format!("object {id} stands in the object table twice"));
                    }
                }
                Some(Object::Registrants { volume, part, registrants }) => {
                    self.slots.insert(slot, (volume, Part::Registrants(part)));
                    self.registrants.insert((volume, part), slot);
                    self.joining.part(volume, part, registrants)?;
                }
            }
        }
        Ok(())
    }

    /// Every block has been loaded: volumes and their registrants come together.
    ///
    /// # Errors
    /// What does not belong together.
    pub fn finish(&mut self) -> Result<(), String> {
        for (id, reservation) in std::mem::take(&mut self.joining).finish()? {
            let (_, volume) =
                self.volumes.get_mut(&id).ok_or_else(|| format!("a reservation of object {id}, which is none"))?;
            *volume.reservation = reservation;
            self.reserved.insert(id);
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

    /// Whether a host has ever registered with a volume.
    #[must_use]
    pub fn has_reservations(&self) -> bool {
        !self.reserved.is_empty()
    }

    fn note(&mut self, volume: &VolumeRecord) {
        let sets = [(&mut self.offline, volume.offline.is_some()), (&mut self.reserved, !volume.reservation.is_none())];
        for (set, is_in) in sets {
            if is_in {
                set.insert(volume.id);
            } else {
                set.remove(&volume.id);
            }
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
                self.note(&record);
                let known = self.volumes.get(&id);
                let registrants = &record.reservation.registrants;
                let is_same =
                    known.map_or(registrants.is_empty(), |(_, old)| old.reservation.registrants == *registrants);
                let parts = registrant_parts(registrants.len());
                let slot = known.map(|(slot, _)| *slot);
                let slot = slot.unwrap_or_else(|| self.new_slot());
                self.volumes.insert(id, (slot, record));
                self.slots.insert(slot, (id, Part::Volume));
                self.dirty_blocks.insert(slot / OBJECTS_PER_BLOCK);
                if !is_same {
                    self.place_registrants(id, parts);
                }
            }
            ObjectUpdate::Delete(_) if planted::is("delete-not-in-cp") => {}
            ObjectUpdate::Delete(id) => {
                // An object that was made and deleted between two consistency points never had a slot.
                self.offline.remove(&id);
                self.reserved.remove(&id);
                self.place_registrants(id, 0);
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
                *record = match self.slots.get(&slot) {
                    None => ObjectRecord::free(),
                    Some((id, Part::Volume)) => ObjectRecord::volume(&self.volumes[id].1),
                    Some((id, Part::Registrants(part))) => ObjectRecord::registrants(&self.volumes[id].1, *part),
                };
            }
            dirty.insert(block, DirtyBlock { data: buffer.freeze(), lsn: Lsn(0) }, levels);
        }
        self.dirty_blocks.clear();
        Some((dirty, levels))
    }

    /// Gives the registrants of a volume as many slots as they need; they have changed.
    fn place_registrants(&mut self, id: ObjectId, parts: u8) {
        let known: Vec<(u8, u64)> =
            self.registrants.range((id, 0)..=(id, u8::MAX)).map(|(&(_, part), &slot)| (part, slot)).collect();
        let is_left = |part: u8| part >= parts && !planted::is("registrants-left-in-the-table");
        for &(part, slot) in known.iter().filter(|(part, _)| is_left(*part)) {
            self.registrants.remove(&(id, part));
            self.slots.remove(&slot);
            self.free_slots.insert(slot);
            self.dirty_blocks.insert(slot / OBJECTS_PER_BLOCK);
        }
        for part in 0..parts {
            let slot = self.registrants.get(&(id, part)).copied().unwrap_or_else(|| self.new_slot());
            self.registrants.insert((id, part), slot);
            self.slots.insert(slot, (id, Part::Registrants(part)));
            self.dirty_blocks.insert(slot / OBJECTS_PER_BLOCK);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{CpNumber, HostId},
        format::{
            reference::BlockRef,
            reservation::{Registrant, Reservation},
        },
    };
    use twinlog_device::BlockPool;

    fn volume(id: u64, registrants: u8) -> VolumeRecord {
        let host = |number: u8| HostId::new([number; 16]).expect("not zero");
        let registrants = (1..=registrants).map(|number| Registrant { host: host(number), key: id });
        VolumeRecord {
            id: ObjectId(id),
            name: format!("vol-{id}"),
            size_bytes: 1 << 30,
            block_size: crate::base::BlockSize::default(),
            levels: 3,
            root: BlockRef::default(),
            allocated_blocks: 0,
            created_cp: CpNumber(2),
            created_ns: 5,
            offline: None,
            reservation: Box::new(Reservation { registrants: registrants.collect(), ..Reservation::default() }),
        }
    }

    /// The table as blocks, as a consistency point writes them on top of what was there.
    fn write(directory: &mut Directory, table: &mut Vec<Box<BlockBytes>>) {
        let blocks = BlockPool::new(64).expect("a small mapping");
        let (dirty, _) = directory.take_dirty(|| blocks.allocate()).expect("memory is large enough");
        for index in 0..directory.block_count() {
            let place = usize::try_from(index).expect("small");
            if table.len() <= place {
                table.push(Box::new([0; twinlog_device::BLOCK_BYTES]));
            }
            if let crate::pool::tree::DirtyLookup::Block(block) = dirty.lookup(index) {
                table[place].copy_from_slice(&*block.data);
            }
        }
    }

    fn read(table: &[Box<BlockBytes>]) -> Directory {
        let mut directory = Directory::default();
        for (index, block) in (0..).zip(table) {
            directory.load_block(index, block).expect("well formed");
        }
        directory.finish().expect("whole");
        directory
    }

    #[test]
    fn registrants_grow_shrink_and_go_with_their_volume() {
        let (mut directory, mut table) = (Directory::default(), Vec::new());
        for (id, count) in [(1, 0), (2, 25), (1, 128), (3, 1), (2, 3), (1, 0), (2, 128), (4, 11), (3, 0)] {
            directory.apply(ObjectUpdate::Put(volume(id, count)));
            write(&mut directory, &mut table);
            let found = read(&table);
            let expected: Vec<_> = directory.volumes().cloned().collect();
            assert_eq!(found.volumes().cloned().collect::<Vec<_>>(), expected, "after volume {id} with {count}");
            assert_eq!(found.volumes[&ObjectId(id)].1, volume(id, count));
            assert_eq!(found.has_reservations(), directory.has_reservations());
        }
        let blocks = directory.block_count();
        (1..=4).for_each(|id| directory.apply(ObjectUpdate::Delete(ObjectId(id))));
        write(&mut directory, &mut table);
        assert!(read(&table).is_empty() && !read(&table).has_reservations());
        assert_eq!(directory.block_count(), blocks, "slots are used again, not given back");
        assert!(table.iter().all(|block| block.iter().all(|&byte| byte == 0)));
    }

    #[test]
    fn a_volume_s_other_changes_leave_its_registrants_where_they_are() {
        let (mut directory, mut table) = (Directory::default(), Vec::new());
        (1..=15).for_each(|id| directory.apply(ObjectUpdate::Put(volume(id, 0))));
        directory.apply(ObjectUpdate::Put(volume(1, 40)));
        write(&mut directory, &mut table);
        directory.apply(ObjectUpdate::Put(VolumeRecord { allocated_blocks: 9, ..volume(1, 40) }));
        assert_eq!(directory.dirty_blocks.len(), 1);
    }
}
