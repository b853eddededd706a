//! A record that recovery cannot perform: a block that it needs has rotted while nothing ran.
//!
//! ```text
//! a block rots --> start --+--> the volume is offline: refused, the others verified --> perhaps a crash, still offline --> the block heals
//!                          |                                                        --> volume online, perhaps a crash in the middle --+
//!                          '--> no record needed the block ----------------------------------> the block heals ------------------------+--> end
//! ```
//!
//! The next life verifies every byte of every volume: what was answered before is there.

use super::{Halt, History, Oracle, Order, Violation, found};
use crate::{
    clients::Ask,
    fault::Class,
    pattern::WriteId,
    setup::{BLOCK, Weakness, index},
};
use twinlog::{
    base::{CpNumber, ObjectId},
    changelog::inspect::{Inspector, RecordRow, Row},
    format::{
        object::{VolumeRecord, records},
        reference::{BlockRef, node},
        superblock::{Superblock, TreeRoot, slot_blocks},
    },
    node::admin::AdminRequest,
    pool::tree::{child_index, span},
};
use twinlog_device::BlockBytes;

/// A block that a record in the log may need.
struct Target {
    volume: ObjectId,
    disk: usize,
    block: u64,
    bit: u64,
    rotten: Box<BlockBytes>,
}

impl History {
    /// Lets a block rot that a record in the log needs, if there is one, and sees what becomes of it.
    pub(super) fn rot_what_a_record_needs(&mut self) -> Result<(), Violation> {
        let Some(target) = self.draw_target() else { return Ok(()) };
        self.note(|_| format!("bit {} of block {} rots: volume {}", target.bit, target.block, target.volume));
        self.excuse.read = false;
        self.excuse.stop = false;
        self.turns_left = u64::MAX;
        let result = self.live_with(&target);
        self.offline = None;
        self.refuses_online = false;
        match result {
            Ok(()) => {}
            Err(Halt::Found(violation)) => return Err(violation),
            Err(Halt::Crash) => unreachable!("a planned crash is met where it is planned"),
            Err(Halt::Stopped(reason)) => {
                let what = format!("one block of one volume stops the pool: {reason}");
                return Err(Violation { oracle: Oracle::Damage, what });
            }
        }
        self.end_here();
        Ok(())
    }

    fn live_with(&mut self, target: &Target) -> Result<(), Halt> {
        let mut lsn = self.start_beside(target.volume)?;
        let is_offline = lsn.is_some();
        self.tally.count(Class::UnperformableRecord, is_offline);
        if is_offline {
            self.offline = Some(target.volume);
            self.be_refused(target.volume)?;
        }
        self.read_all_but(target.volume)?;
        if self.prng.chance(1, 2) {
            self.end_here();
            let again = self.start_beside(target.volume)?;
            if again != lsn {
                return Err(found(Oracle::Damage, format!("volume {} was {lsn:?}, and is {again:?}", target.volume)));
            }
            self.read_all_but(target.volume)?;
        }
        if is_offline && self.prng.chance(1, 3) {
            self.refuses_online = true;
            self.bring_online(target.volume)?;
            self.refuses_online = false;
            self.checkpoint()?;
        }
        self.heal_target(target);
        let mut crashes = u64::from(self.prng.chance(1, 2));
        while lsn.is_some() {
            self.turns_left = if crashes > 0 { self.prng.between(1, 150) } else { u64::MAX };
            crashes = 0;
            match self.bring_online(target.volume) {
                Ok(()) => break,
                Err(Halt::Crash) => {
                    self.turns_left = u64::MAX;
                    self.end_here();
                    lsn = self.start_beside(target.volume)?;
                }
                Err(halt) => return Err(halt),
            }
        }
        self.turns_left = u64::MAX;
        self.offline = None;
        Ok(())
    }

    /// Starts a process. Returns the position of the record that keeps the volume offline; no other is.
    fn start_beside(&mut self, volume: ObjectId) -> Result<Option<u64>, Halt> {
        let reactors = u16::try_from(self.prng.between(1, u64::from(self.setup.reactors_max))).expect("at most two");
        self.start(reactors)?;
        self.is_recovering = false;
        let offline = self.node().offline();
        if let Some((other, _)) = offline.iter().find(|(other, _)| *other != volume) {
            return Err(found(Oracle::Damage, format!("volume {other} is offline, and nothing of it has rotted")));
        }
        Ok(offline.first().map(|(_, lsn)| *lsn))
    }

    /// Ends the process; nobody waits for anything.
    fn end_here(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = None);
        self.node = None;
        let mut prng = self.prng.fork();
        let is_weak = matches!(self.setup.weakness, Some(Weakness::NoPowerCut | Weakness::NoCrash));
        if self.prng.chance(1, 2) && !is_weak {
            self.machine().power_cut(&mut prng);
        } else {
            self.machine().process_kill(&mut prng);
        }
        self.order = None;
        self.settle_clock();
    }

    /// Whatever is asked of the volume is refused.
    fn be_refused(&mut self, volume: ObjectId) -> Result<(), Halt> {
        if self.setup.is_nbd {
            return Ok(());
        }
        for _ in 0..self.prng.between(1, 4) {
            let ask = match self.prng.below(5) {
                0 | 1 => Ask::Read(0..BLOCK),
                2 => Ask::Flush,
                3 => Ask::Discard(0..BLOCK, false),
                _ => Ask::Write(0..BLOCK, WriteId(0), false),
            };
            let session = index(self.prng.below(self.setup.sessions as u64));
            self.until(|history| history.fly(session, volume, ask.clone(), false))?;
            self.until(|history| history.flying.is_empty())?;
        }
        Ok(())
    }

    fn read_all_but(&mut self, volume: ObjectId) -> Result<(), Halt> {
        self.read_volumes(|id| id != volume)
    }

    fn bring_online(&mut self, volume: ObjectId) -> Result<(), Halt> {
        let name = self.model.volumes()[&volume].name.clone();
        self.ask(Order::Online, AdminRequest::VolumeOnline { name, accept_loss: false })
    }

    /// The block is as it was, unless it was written again since.
    fn heal_target(&self, Target { disk, block, bit, rotten, .. }: &Target) {
        let medium = &self.machine().disks()[*disk];
        if medium.block(*block) == *rotten {
            medium.flip_bit(*block, *bit);
        }
    }

    /// A record that will be replayed, and one of the blocks on the way to what it changes.
    fn draw_target(&mut self) -> Option<Target> {
        let superblock = self.newest_superblock()?;
        let mut live = Vec::new();
        for (lane, applied) in superblock.applied.iter().enumerate() {
            live.extend(self.records_from(lane, applied.0)?);
        }
        let volumes = self.volumes_on_disk(&superblock);
        let wants = |record: &RecordRow| {
            let volume = volumes.iter().find(|volume| volume.id.0 == record.object)?;
            let is_known = self.model.volumes().contains_key(&volume.id) && !volume.root.is_hole();
            is_known.then(|| (volume.clone(), record.offset_bytes / BLOCK))
        };
        let wanted: Vec<_> = live.iter().filter_map(wants).collect();
        if wanted.is_empty() {
            return None;
        }
        let (volume, leaf) = self.prng.pick(&wanted).clone();
        let path = self.path(&superblock, TreeRoot { root: volume.root, levels: volume.levels }, leaf)?;
        let reference = *self.prng.pick(&path);
        let (disk, block) = self.place(&superblock, &reference)?;
        let bit = self.prng.below(32_768);
        let medium = &self.machine().disks()[disk];
        if !medium.flip_bit(block, bit) {
            return None;
        }
        Some(Target { volume: volume.id, disk, block, bit, rotten: medium.block(block) })
    }

    fn records_from(&self, lane: usize, applied: u64) -> Option<Vec<RecordRow>> {
        let image = self.machine().logs[lane].image();
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

    /// The newest superblock of the first disk, and nothing of one that could be another's.
    fn newest_superblock(&self) -> Option<Superblock> {
        let medium = self.machine().disks().first()?;
        let blocks = self.setup.device_blocks[0];
        let places = [0, 1].map(|cp| slot_blocks(CpNumber(cp), blocks)).concat();
        let found = places.into_iter().filter_map(|place| Superblock::verify(&medium.block(place), place).ok());
        found.map(|(superblock, _)| superblock).max_by_key(|superblock| superblock.cp)
    }

    /// Where a block lies, if it is whole there.
    fn place(&self, superblock: &Superblock, reference: &BlockRef) -> Option<(usize, u64)> {
        let (device, block) = (reference.address().device(), reference.address().block());
        // A disk that joined later lies behind the others, as it does in the pool.
        let medium = self.machine().disks().get(device).filter(|_| device < superblock.devices.len())?;
        reference.matches(&medium.block(block)).then_some((device, block))
    }

    fn block_of(&self, superblock: &Superblock, reference: &BlockRef) -> Option<Box<BlockBytes>> {
        let (disk, block) = self.place(superblock, reference)?;
        Some(self.machine().disks()[disk].block(block))
    }

    fn volumes_on_disk(&self, superblock: &Superblock) -> Vec<VolumeRecord> {
        let mut volumes = Vec::new();
        let TreeRoot { root, levels } = superblock.object_table;
        let mut waiting = vec![(root, levels)];
        while let Some((reference, level)) = waiting.pop() {
            let Some(block) = Some(reference).filter(|it| !it.is_hole()).and_then(|it| self.block_of(superblock, &it))
            else {
                continue;
            };
            if level > 0 {
                waiting.extend(node(&block).iter().map(|child| (*child, level - 1)));
            } else {
                volumes.extend(records(&block).iter().filter_map(|record| record.verify().ok().flatten()));
            }
        }
        volumes
    }

    /// The nodes on the way to a data block, and the block if there is one.
    fn path(&self, superblock: &Superblock, tree: TreeRoot, leaf: u64) -> Option<Vec<BlockRef>> {
        let mut path = vec![tree.root];
        if leaf >= span(tree.levels) {
            return Some(path);
        }
        for level in (1..=tree.levels).rev() {
            let block = self.block_of(superblock, path.last()?)?;
            let child = node(&block)[child_index(level, leaf)];
            if child.is_hole() {
                break;
            }
            path.push(child);
        }
        Some(path)
    }
}
