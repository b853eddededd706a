//! Reading and writing the superblocks of a pool: choosing the newest at open, and making a consistency point current.
//!
//! # Writing, step by step, and what a crash leaves
//!
//! 1. flush every device of the pool: everything that the superblock reaches is durable. Crash: the old consistency point.
//! 2. write the head copies, durably, on every device. Crash: the new one where a copy landed whole, else the old one; either is
//!    complete, and the choice at open takes the newest of all copies.
//! 3. write the tail copies, durably. Crash: the new one.
//! 4. done: the log may be trimmed, freed blocks may come back one consistency point later.
//!
//! A consistency point with which a device joins writes both copies of that device between 1 and 2, durably. Crash, or an error there:
//! the old consistency point, as a copy on the joining device does not count alone ([`current`]); after an error the steps go on without
//! the device. So the first copy that counts finds the device with its copies.
//!
//! # Opening
//!
//! What open reads may still be in a device's volatile cache, and would vanish with the next power cut after more has been built on
//! it. So the chosen superblock goes through steps 1 to 4 again before anything trusts it; that also mends copies that were lost.
//!
//! A copy that cannot be read may be newer than all that can: its write failed, and landed. Once it can be read again it would be chosen,
//! after its blocks have been overwritten. So the chosen superblock goes on under a number that no such copy can have, and in the place of
//! the next one.

use super::{
    io::{Io, IoEvent, Tag},
    tree::levels_for,
};
use crate::{
    base::{
        BlockAddress, CpNumber, Epoch, ForwardedChanges, Lsn, ObjectId, PoolId,
        limits::{AREA_BLOCKS, DEVICES_MAX, LANES_MAX},
        planted,
    },
    format::{
        reference::BlockRef,
        superblock::{
            DEVICE_BLOCKS_MIN, HEAD_BLOCKS, PoolDevice, Superblock, SuperblockError, TAIL_BLOCKS, TreeRoot, slot_blocks,
        },
    },
};
use thiserror::Error;
use twinlog_device::{BlockBuf, BlockDevice, DeviceError, Persistence};

/// Why a pool cannot be opened or made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No device has a superblock.
    #[error("{devices}: no pool here")]
    NoPool {
        /// Names of all devices.
        devices: String,
    },
    /// Only damaged or unknown superblocks.
    #[error("{device}: {reason}")]
    Unusable {
        /// Name of a device that had one.
        device: String,
        /// Why it is not usable.
        reason: SuperblockError,
    },
    /// Devices of different pools.
    #[error("{device} belongs to pool {found}, not to pool {expected}")]
    ForeignDevice {
        /// Name of the device.
        device: String,
        /// Whose it is.
        found: PoolId,
        /// Whose it should be.
        expected: PoolId,
    },
    /// The pool has more devices.
    #[error("pool {pool}: device {index} of {count} is missing ({id:032x})")]
    MissingDevice {
        /// The pool.
        pool: PoolId,
        /// Which of its devices.
        index: usize,
        /// How many it has.
        count: usize,
        /// The device's id.
        id: u128,
    },
    /// A device is too small for a pool.
    #[error("{device} has {blocks} blocks of 4 KiB; a pool's device has at least {DEVICE_BLOCKS_MIN}")]
    TooSmall {
        /// Name of the device.
        device: String,
        /// Its blocks.
        blocks: u64,
    },
    /// A device was made larger or smaller.
    #[error(
        "{device} has {found} blocks of 4 KiB, but had {expected} when it joined the pool: give it that size again"
    )]
    Resized {
        /// Name of the device.
        device: String,
        /// Its blocks now.
        found: u64,
        /// Its blocks then.
        expected: u64,
    },
    /// A device to be added holds something.
    #[error("{device} is not empty: block {block} holds data")]
    NotEmpty {
        /// Name of the device.
        device: String,
        /// First block that is not zero.
        block: u64,
    },
    /// A block that the pool needs cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// The superblock that is current among `copies`, each with the place in the device table that it was written for: the newest that
/// counts. A copy on a device that was about to join does not count unless another device has the same.
pub fn current<'a>(copies: impl Iterator<Item = (&'a Superblock, u16)> + Clone) -> Option<&'a Superblock> {
    let counts = |&(superblock, place): &(&Superblock, u16)| {
        let is_last = usize::from(place) + 1 == superblock.devices.len();
        let mut others = copies.clone();
        let is_larger = others.clone().any(|(other, _)| other.devices.len() < superblock.devices.len());
        !is_last || !is_larger || others.any(|(other, other_place)| other_place != place && other == superblock)
    };
    copies.clone().filter(counts).map(|(superblock, _)| superblock).max_by_key(|superblock| superblock.cp)
}

/// How far a superblock's number goes ahead when a copy could not be read. That copy is one newer, or two where the copies of the one
/// between are damaged besides; and an odd number is the other slot's.
const UNREAD_AHEAD: u64 = 3;

/// Raw superblock places of one device.
struct Copies {
    blocks: Vec<(u64, BlockBuf)>,
}

/// Reads all copies, chooses, flushes and rewrites: see the module.
pub struct OpenSuperblocks {
    owner: u16,
    outstanding: usize,
    copies: Vec<Copies>,
    /// A copy could not be read.
    is_unread: bool,
    commit: Option<(CommitSuperblock, Superblock, Vec<usize>)>,
}

impl OpenSuperblocks {
    /// Starts reading. Events of `owner` must come back through `event`.
    pub fn new<D: BlockDevice>(io: &mut Io<D>, owner: u16) -> Result<Self, PoolError> {
        let sizes: Vec<_> =
            io.devices().map(|device| (device.info().block_count, device.info().name.clone())).collect();
        for (index, (blocks, name)) in sizes.iter().enumerate() {
            if *blocks < DEVICE_BLOCKS_MIN {
                return Err(PoolError::TooSmall { device: name.clone(), blocks: *blocks });
            }
            let id = index as u64 * 2;
            io.read_raw(Tag { owner, id }, index, 0, 3);
            io.read_raw(Tag { owner, id: id + 1 }, index, blocks - TAIL_BLOCKS, 2);
        }
        let copies = sizes.iter().map(|_| Copies { blocks: Vec::new() }).collect();
        Ok(Self { owner, outstanding: sizes.len() * 2, copies, is_unread: false, commit: None })
    }

    /// Takes an event. Returns the superblock and, per device of the pool, the index of the opened device, once it can be trusted.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn event<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        event: IoEvent,
    ) -> Result<Option<(Superblock, Vec<usize>)>, PoolError> {
        let IoEvent::Done { tag, result } = event else { return Ok(None) };
        if let Some((commit, superblock, order)) = &mut self.commit {
            return Ok(commit.event(io, tag, result)?.then(|| (superblock.clone(), order.clone())));
        }
        let device = usize::try_from(tag.id / 2).expect("an index of ours");
        let first = if tag.id % 2 == 0 {
            0
        } else {
            io.devices().nth(device).expect("opened").info().block_count - TAIL_BLOCKS
        };
        match result {
            Ok(blocks) => self.copies[device].blocks.extend((first..).zip(blocks)),
            // The others decide.
            Err(_) => self.is_unread = true,
        }
        self.outstanding -= 1;
        if self.outstanding == 0 {
            let (mut superblock, order) = self.choose(io)?;
            if self.is_unread {
                superblock.cp = CpNumber(superblock.cp.0 + UNREAD_AHEAD);
            }
            io.reorder(&order);
            if planted::is("superblocks-unordered") {
                return Ok(Some((superblock, order)));
            }
            let commit = CommitSuperblock::new(io, self.owner, superblock.clone(), None);
            self.commit = Some((commit, superblock, order));
        }
        Ok(None)
    }

    fn choose<D: BlockDevice>(&self, io: &Io<D>) -> Result<(Superblock, Vec<usize>), PoolError> {
        let names: Vec<_> = io.devices().map(|device| device.info().name.clone()).collect();
        let mut found: Vec<(usize, Superblock, u16)> = Vec::new();
        let mut unusable = None;
        for (index, copies) in self.copies.iter().enumerate() {
            for (block, bytes) in &copies.blocks {
                match Superblock::verify(bytes, *block) {
                    Ok((superblock, device_index)) => found.push((index, superblock, device_index)),
                    Err(SuperblockError::Absent) => {}
                    Err(reason) => unusable = Some(PoolError::Unusable { device: names[index].clone(), reason }),
                }
            }
        }
        let Some(newest) = current(found.iter().map(|(_, superblock, place)| (superblock, *place))) else {
            return Err(unusable.unwrap_or(PoolError::NoPool { devices: names.join(", ") }));
        };
        let newest = newest.clone();
        for (index, superblock, _) in &found {
            if superblock.pool != newest.pool {
                let device = names[*index].clone();
                return Err(PoolError::ForeignDevice { device, found: superblock.pool, expected: newest.pool });
            }
        }
        let mut order = Vec::new();
        for (index, device) in newest.devices.iter().enumerate() {
            let own = |(_, superblock, place): &&(usize, Superblock, u16)| {
                usize::from(*place) == index && superblock.devices.get(index).is_some_and(|entry| entry.id == device.id)
            };
            let Some((opened, ..)) = found.iter().find(own) else {
                let (pool, count) = (newest.pool, newest.devices.len());
                return Err(PoolError::MissingDevice { pool, index, count, id: device.id });
            };
            let blocks = io.devices().nth(*opened).expect("opened").info().block_count;
            if blocks != device.block_count {
                let (found, expected) = (blocks, device.block_count);
                return Err(PoolError::Resized { device: names[*opened].clone(), found, expected });
            }
            order.push(*opened);
        }
        if order.len() != names.len() {
            let stranger =
                (0..names.len()).find(|index| !order.contains(index)).expect("more devices than the pool has");
            let (found, expected) = (PoolId(0), newest.pool);
            return Err(PoolError::ForeignDevice { device: names[stranger].clone(), found, expected });
        }
        Ok((newest, order))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CommitStep {
    Flush,
    Join,
    Heads,
    Tails,
    Done,
}

/// Makes a superblock current: see the module.
pub struct CommitSuperblock {
    owner: u16,
    superblock: Superblock,
    /// Devices that belong to the pool already.
    old_count: usize,
    joining: Option<PoolDevice>,
    joined: Option<Result<(), DeviceError>>,
    step: CommitStep,
}

/// Ids of the commit's tags are above those of any other work of the same owner.
const COMMIT_ID: u64 = 1 << 62;

impl CommitSuperblock {
    /// Starts with the flush. Every write that the superblock reaches has completed. The device of `joining`, which it does not list
    /// and does not reach, joins with it if its copies can be written.
    pub fn new<D: BlockDevice>(
        io: &mut Io<D>,
        owner: u16,
        superblock: Superblock,
        joining: Option<PoolDevice>,
    ) -> Self {
        let (old_count, step) = (superblock.devices.len(), CommitStep::Flush);
        let mut commit = Self { owner, superblock, old_count, joining, joined: None, step };
        if planted::is("commit-without-flush") || planted::is("superblocks-unordered") {
            commit.next(io);
        } else {
            io.flush(Tag { owner, id: COMMIT_ID }, old_count);
        }
        commit
    }

    /// Takes the end of a step; returns whether the superblock is durable.
    ///
    /// # Errors
    /// A device failed: the consistency point may or may not be current; only opening the pool again can tell.
    pub fn event<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        tag: Tag,
        result: Result<Vec<BlockBuf>, DeviceError>,
    ) -> Result<bool, DeviceError> {
        assert_eq!(tag.id & COMMIT_ID, COMMIT_ID, "an event of the commit");
        if self.step == CommitStep::Join {
            self.joined = Some(result.map(drop));
            if let (Some(device), Some(Ok(()))) = (self.joining, &self.joined) {
                self.superblock = self.superblock.with_device(device);
            }
        } else {
            result?;
        }
        self.next(io);
        Ok(self.step == CommitStep::Done)
    }

    /// The superblock, and whether the device that was to join with it has joined.
    #[must_use]
    pub fn into_parts(self) -> (Superblock, Option<Result<(), DeviceError>>) {
        (self.superblock, self.joined)
    }

    fn next<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        self.step = match self.step {
            CommitStep::Flush if self.joining.is_some() => CommitStep::Join,
            CommitStep::Flush | CommitStep::Join => CommitStep::Heads,
            CommitStep::Heads => CommitStep::Tails,
            CommitStep::Tails | CommitStep::Done => CommitStep::Done,
        };
        match (self.step, self.joining) {
            (CommitStep::Join, Some(device)) => {
                let larger = self.superblock.with_device(device);
                (0..2).for_each(|copy| self.write(io, &larger, self.old_count, copy));
            }
            (CommitStep::Heads, _) => {
                let copies = if planted::is("superblocks-unordered") { 0..2 } else { 0..1 };
                copies.for_each(|copy| {
                    (0..self.old_count).for_each(|index| self.write(io, &self.superblock, index, copy));
                });
            }
            (CommitStep::Tails, _) => (0..self.old_count).for_each(|index| self.write(io, &self.superblock, index, 1)),
            _ => {}
        }
    }

    fn write<D: BlockDevice>(&self, io: &mut Io<D>, superblock: &Superblock, index: usize, copy: usize) {
        let device = u16::try_from(index).expect("at most DEVICES_MAX");
        let block = slot_blocks(superblock.cp, superblock.devices[index].block_count)[copy];
        let mut buffer = io.allocate_kept().expect("the block pool keeps room for superblocks");
        buffer.copy_from_slice(&superblock.encode(device, block));
        // All writes of a step end together.
        let tag = Tag { owner: self.owner, id: COMMIT_ID };
        let is_volatile = planted::is("superblock-volatile");
        let persistence = if is_volatile { Persistence::Volatile } else { Persistence::Durable };
        io.write(tag, BlockAddress::new(device, block), vec![buffer.freeze()], persistence);
    }
}

/// Refuses a device whose head or tail holds anything: what `read_raw` of those places returned.
///
/// # Errors
/// [`PoolError::NotEmpty`].
pub fn check_empty(device: &str, first: u64, blocks: &[BlockBuf]) -> Result<(), PoolError> {
    match blocks.iter().position(|block| block.iter().any(|&byte| byte != 0)) {
        Some(position) => Err(PoolError::NotEmpty { device: device.to_owned(), block: first + position as u64 }),
        None => Ok(()),
    }
}

/// The first superblock of a pool: everything is empty. `devices` are ids and block counts, `lane_count` is for ever.
#[must_use]
pub fn first_superblock(
    pool: PoolId,
    name: &str,
    devices: &[(u128, u64)],
    lane_count: u16,
    time_ns: u64,
) -> Superblock {
    assert!(name.len() <= 64 && (1..=DEVICES_MAX).contains(&devices.len()), "checked by the caller");
    assert!((1..=LANES_MAX).contains(&usize::from(lane_count)), "checked by the caller");
    let devices: Vec<_> = devices.iter().map(|&(id, block_count)| PoolDevice { id, block_count, plex: 0 }).collect();
    let geometry = |device: &PoolDevice| device.block_count - HEAD_BLOCKS - TAIL_BLOCKS;
    let areas: u64 = devices.iter().map(|device| device.block_count.div_ceil(AREA_BLOCKS)).sum();
    Superblock {
        pool,
        name: name.to_owned(),
        cp: CpNumber(1),
        epoch: Epoch(1),
        time_ns,
        next_object: ObjectId(1),
        free_blocks: devices.iter().map(geometry).sum(),
        deferred_blocks: 0,
        object_table: TreeRoot { root: BlockRef::default(), levels: 1 },
        space_map: TreeRoot { root: BlockRef::default(), levels: levels_for(areas) },
        freed: BlockRef::default(),
        reap: BlockRef::default(),
        applied: vec![Lsn(0); usize::from(lane_count)],
        forwarded: vec![ForwardedChanges::none(usize::from(lane_count)); usize::from(lane_count)],
        has_offline: false,
        has_reservations: false,
        devices,
    }
}

/// Makes a new pool on the devices of an [`Io`], which are its devices from now on.
pub struct CreatePool {
    owner: u16,
    superblock: Superblock,
    outstanding: usize,
    force: bool,
    stage: CreateStage,
}

enum CreateStage {
    Look,
    Wipe,
    Commit(Box<CommitSuperblock>),
}

impl CreatePool {
    /// Starts by looking whether the devices are empty, unless `force`.
    pub fn new<D: BlockDevice>(io: &mut Io<D>, owner: u16, superblock: Superblock, force: bool) -> Self {
        assert_eq!(superblock.cp, CpNumber(1), "a new pool begins with its first consistency point");
        let outstanding = 2 * superblock.devices.len();
        let create = Self { owner, superblock, outstanding, force, stage: CreateStage::Look };
        for index in 0..create.superblock.devices.len() {
            let blocks = create.superblock.devices[index].block_count;
            let head = usize::try_from(HEAD_BLOCKS).expect("a few");
            io.read_raw(Tag { owner, id: index as u64 * 2 }, index, 0, head);
            io.read_raw(Tag { owner, id: index as u64 * 2 + 1 }, index, blocks - TAIL_BLOCKS, 2);
        }
        create
    }

    /// Takes an event; returns whether the pool is there.
    ///
    /// # Errors
    /// A device failed or is not empty.
    pub fn event<D: BlockDevice>(&mut self, io: &mut Io<D>, event: IoEvent) -> Result<bool, PoolError> {
        let IoEvent::Done { tag, result } = event else { return Ok(false) };
        match &mut self.stage {
            CreateStage::Look => {
                let index = usize::try_from(tag.id / 2).expect("an index of ours");
                let info = io.devices().nth(index).expect("opened").info();
                let first = if tag.id % 2 == 0 { 0 } else { info.block_count - TAIL_BLOCKS };
                let blocks = result?;
                if !self.force {
                    check_empty(&info.name, first, &blocks)?;
                }
                self.outstanding -= 1;
                if self.outstanding == 0 {
                    self.wipe(io);
                }
                Ok(false)
            }
            CreateStage::Wipe => {
                result?;
                let commit = CommitSuperblock::new(io, self.owner, self.superblock.clone(), None);
                self.stage = CreateStage::Commit(Box::new(commit));
                Ok(false)
            }
            CreateStage::Commit(commit) => Ok(commit.event(io, tag, result)?),
        }
    }

    /// Removes whatever the other slot held: a superblock of an earlier pool there could be newer than ours.
    fn wipe<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        self.stage = CreateStage::Wipe;
        for (index, device) in self.superblock.devices.iter().enumerate() {
            for block in slot_blocks(CpNumber(0), device.block_count) {
                let mut zero = io.allocate_kept().expect("the block pool keeps room for superblocks");
                zero.fill(0);
                let address = BlockAddress::new(u16::try_from(index).expect("at most DEVICES_MAX"), block);
                io.write(Tag { owner: self.owner, id: 0 }, address, vec![zero.freeze()], Persistence::Durable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_on_a_device_that_was_about_to_join_does_not_count_alone() {
        let at =
            |cp| Superblock { cp: CpNumber(cp), ..first_superblock(PoolId(3), "a", &[(1, 2048), (2, 2048)], 1, 0) };
        let larger = |cp| at(cp).with_device(PoolDevice { id: 3, block_count: 1024, plex: 0 });
        let chosen = |copies: &[(Superblock, u16)]| {
            let superblock = current(copies.iter().map(|(superblock, place)| (superblock, *place)));
            superblock.map(|superblock| (superblock.cp.0, superblock.devices.len()))
        };
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[(at(4), 0), (at(5), 1)]), Some((5, 2)));
        // It was about to join, then the pool went on without it.
        assert_eq!(chosen(&[(at(4), 0), (at(4), 1), (larger(5), 2)]), Some((4, 2)));
        assert_eq!(chosen(&[(larger(5), 2), (at(5), 1), (at(4), 0), (larger(5), 2)]), Some((5, 2)));
        // It has joined: another device says so, or nothing is left that does not know it.
        assert_eq!(chosen(&[(at(4), 0), (larger(5), 1), (larger(5), 2)]), Some((5, 3)));
        assert_eq!(chosen(&[(larger(6), 2), (larger(5), 1), (larger(5), 0)]), Some((6, 3)));
    }
}
