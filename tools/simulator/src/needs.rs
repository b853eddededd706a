//! What records in a log need of a volume's tree, and what is held of a volume: read from outside, off the media, as recovery would find it.

use crate::setup::{BLOCK, index};
use std::ops::Range;
use twinlog::{
    base::{CpNumber, ObjectId, PoolId},
    changelog::inspect::{Inspector, RecordRow, Row},
    format::{
        object::{VolumeRecord, records},
        record::{OwnedRecord, RECORD_HEADER_BYTES, RecordExpected, RecordHeader},
        reference::{BlockRef, node},
        superblock::{Superblock, TreeRoot, slot_blocks},
    },
    pool::tree::{child_index, span},
};
use twinlog_device::{BLOCK_BYTES, BlockBytes, Prng};
use twinlog_sim::{LogMedium, SimMedium};

/// A block that has rotted, and that a record in the log needs: a node of its volume's tree, or a block under an unaligned write.
#[derive(Clone, Debug)]
pub(crate) struct Rotten {
    /// Whose it is.
    pub(crate) volume: ObjectId,
    /// Where it lies.
    pub(crate) disk: usize,
    /// And there.
    pub(crate) block: u64,
    /// What has flipped.
    pub(crate) bit: u64,
    bytes: Box<BlockBytes>,
}

impl Rotten {
    /// The block is as it was, unless it was written again since.
    pub(crate) fn heal(&self, disks: &[SimMedium]) {
        let medium = &disks[self.disk];
        if medium.block(self.block) == self.bytes {
            medium.flip_bit(self.block, self.bit);
        }
    }
}

/// A pool that nobody needs to have open.
pub(crate) struct Content<'a> {
    disks: &'a [SimMedium],
    superblock: Superblock,
}

impl<'a> Content<'a> {
    /// What the newest superblock of the first disk, which has so many blocks, reaches; nothing of one that could be another's.
    pub(crate) fn newest(disks: &'a [SimMedium], first_blocks: u64) -> Option<Self> {
        let medium = disks.first()?;
        let places = [0, 1].map(|cp| slot_blocks(CpNumber(cp), first_blocks)).concat();
        let found = places.into_iter().filter_map(|place| Superblock::verify(&medium.block(place), place).ok());
        let superblock = found.map(|(superblock, _)| superblock).max_by_key(|superblock| superblock.cp)?;
        Some(Self { disks, superblock })
    }

    /// Lets a block rot that one of the records needs that a recovery from `logs` performs, of a volume that `is_known`.
    pub(crate) fn rot(
        &self,
        logs: &[LogMedium],
        is_known: impl Fn(ObjectId) -> bool,
        prng: &mut Prng,
    ) -> Option<Rotten> {
        let mut live = Vec::new();
        for (log, applied) in logs.iter().zip(&self.superblock.applied) {
            live.extend(records_from(log, applied.0)?);
        }
        let volumes = self.volumes();
        let wants = |record: &RecordRow| {
            let volume = volumes.iter().find(|volume| volume.id.0 == record.object)?;
            let is_known = is_known(volume.id) && !volume.root.is_hole();
            is_known.then(|| (volume.clone(), record.offset_bytes / BLOCK))
        };
        let wanted: Vec<_> = live.iter().filter_map(wants).collect();
        if wanted.is_empty() {
            return None;
        }
        let (volume, leaf) = prng.pick(&wanted).clone();
        let path = self.path(TreeRoot { root: volume.root, levels: volume.levels }, leaf)?;
        let reference = *prng.pick(&path);
        let (disk, block) = self.place(&reference)?;
        let bit = prng.below(32_768);
        let medium = &self.disks[disk];
        medium.flip_bit(block, bit).then(|| Rotten { volume: volume.id, disk, block, bit, bytes: medium.block(block) })
    }

    /// The records that are held of a volume, from the first that was not performed on; `None`: it is not offline, or they cannot be read.
    pub(crate) fn held(&self, pool: PoolId, volume: ObjectId) -> Option<Vec<OwnedRecord>> {
        let offline = self.volumes().into_iter().find(|known| known.id == volume)?.offline?;
        let mut bytes = Vec::new();
        for leaf in 0..offline.end_bytes.div_ceil(BLOCK) {
            let path = self.path(offline.held, leaf)?;
            bytes.extend_from_slice(&*self.block_of(path.last()?)?);
        }
        let expected = RecordExpected { pool, lane: offline.lane };
        let (mut place, mut held) = (offline.start_bytes, Vec::new());
        while place < offline.end_bytes {
            let header = &bytes[index(place)..index(place + RECORD_HEADER_BYTES)];
            if header.iter().all(|&byte| byte == 0) && !place.is_multiple_of(BLOCK) {
                // What was held at another recovery begins with a block.
                place = place.next_multiple_of(BLOCK);
                continue;
            }
            let header = RecordHeader::read(header, &expected).ok()?;
            let end = place + (header.end.0 - header.lsn.0);
            held.push(OwnedRecord::new(&header, &bytes[index(place + RECORD_HEADER_BYTES)..index(end)]).ok()?);
            place = end;
        }
        Some(held)
    }

    /// Bytes of a volume; `None`: they cannot be read.
    pub(crate) fn read(&self, volume: ObjectId, range: &Range<u64>) -> Option<Vec<u8>> {
        let volume = self.volumes().into_iter().find(|known| known.id == volume)?;
        let tree = TreeRoot { root: volume.root, levels: volume.levels };
        let mut bytes = Vec::new();
        let first = range.start / BLOCK;
        for leaf in first..range.end.div_ceil(BLOCK) {
            bytes.extend_from_slice(&*self.leaf(tree, leaf)?);
        }
        Some(bytes[index(range.start - first * BLOCK)..index(range.end - first * BLOCK)].to_vec())
    }

    /// A data block of a tree, zeroes in a hole.
    fn leaf(&self, tree: TreeRoot, leaf: u64) -> Option<Box<BlockBytes>> {
        let path = if tree.root.is_hole() { Vec::new() } else { self.path(tree, leaf)? };
        if path.len() <= usize::from(tree.levels) || leaf >= span(tree.levels) {
            return Some(Box::new([0; BLOCK_BYTES]));
        }
        self.block_of(path.last()?)
    }

    /// Where a block lies, if it is whole there.
    fn place(&self, reference: &BlockRef) -> Option<(usize, u64)> {
        let (device, block) = (reference.address().device(), reference.address().block());
        // A disk that joined later lies behind the others, as it does in the pool.
        let medium = self.disks.get(device).filter(|_| device < self.superblock.devices.len())?;
        reference.matches(&medium.block(block)).then_some((device, block))
    }

    fn block_of(&self, reference: &BlockRef) -> Option<Box<BlockBytes>> {
        let (disk, block) = self.place(reference)?;
        Some(self.disks[disk].block(block))
    }

    fn volumes(&self) -> Vec<VolumeRecord> {
        let mut volumes = Vec::new();
        let TreeRoot { root, levels } = self.superblock.object_table;
        let mut waiting = vec![(root, levels)];
        while let Some((reference, level)) = waiting.pop() {
            let Some(block) = Some(reference).filter(|it| !it.is_hole()).and_then(|it| self.block_of(&it)) else {
                continue;
            };
            if level > 0 {
                waiting.extend(node(&block).iter().map(|child| (*child, level - 1)));
            } else {
                volumes
                    .extend(records(&block).iter().filter_map(|record| record.verify().ok().flatten()?.into_volume()));
            }
        }
        volumes
    }

    /// The nodes on the way to a data block, and the block if there is one.
    fn path(&self, tree: TreeRoot, leaf: u64) -> Option<Vec<BlockRef>> {
        let mut path = vec![tree.root];
        if leaf >= span(tree.levels) {
            return Some(path);
        }
        for level in (1..=tree.levels).rev() {
            let block = self.block_of(path.last()?)?;
            let child = node(&block)[child_index(level, leaf)];
            if child.is_hole() {
                break;
            }
            path.push(child);
        }
        Some(path)
    }
}

/// Changes of data in a log from a position on.
fn records_from(log: &LogMedium, applied: u64) -> Option<Vec<RecordRow>> {
    let image = log.image();
    let read = |offset: u64, buffer: &mut [u8]| {
        let start = index(offset);
        buffer.copy_from_slice(&image[start..start + buffer.len()]);
        Ok(())
    };
    let mut inspector = Inspector::open(read, image.len() as u64).ok()?;
    let mut records = Vec::new();
    let looked = inspector.rows(|row| {
        if let Row::Record(record) = row
            && record.whole
            && record.lsn >= applied
            && ["block", "write", "discard", "write-zeroes"].contains(&record.kind)
        {
            records.push(record);
        }
        true
    });
    looked.ok().map(|()| records)
}
