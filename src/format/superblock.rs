//! The superblock: the one block that makes a consistency point current.
//!
//! Every device of a pool carries four copies: slot `cp mod 2` and the other slot, each at the head and at the tail of the device. A
//! consistency point writes only its own slot, so whatever a crash does to it, the other slot holds the previous one whole.
//!
//! # Invariants
//!
//! 1. A superblock is written only after everything that it reaches is durable.
//! 2. It names the applied LSN of every lane: recovery performs exactly the records above (rule R6).
//! 3. It names the newest change of each slot that the partner forwarded and that is contained: records above add to that (rule R6).
//! 4. It carries the epoch; records of an older epoch are never replayed on top of it (rule R4).

use super::reference::BlockRef;
use crate::base::{
    BlockAddress, CpNumber, Epoch, ForwardedChanges, Lsn, ObjectId, PoolId, checksum,
    forwarded::forward_slots,
    limits::{DEVICES_MAX, FORWARD_SLOTS, LANES_MAX},
};
use twinlog_device::{BLOCK_BYTES, BlockBytes};
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Format version written by this program. Version 1: the first.
pub const POOL_VERSION: u32 = 1;
/// Blocks at the head of a device that never hold data: block 0 stays zero, 1 and 2 are the slots, the rest is reserved.
pub const HEAD_BLOCKS: u64 = 16;
/// Blocks at the tail of a device that never hold data: the second copies of the two slots.
pub const TAIL_BLOCKS: u64 = 2;
/// Smallest device: 4 MiB.
pub const DEVICE_BLOCKS_MIN: u64 = 1024;

/// Feature, read-only compatible: the pool remembers forwarded changes. Who does not keep them up to date may not change the pool.
const FEATURE_FORWARDED: u64 = 1;
/// Feature, incompatible: a volume is offline. Who does not know that would take its tree for the newest state of it.
const FEATURE_OFFLINE: u64 = 1;
/// Feature, incompatible: hosts have registered with a volume. Who does not know that would let anybody write, and not find its objects whole.
const FEATURE_RESERVATIONS: u64 = 2;

const MAGIC: [u8; 8] = *b"TWLPOOL1";

/// Where the copies of consistency point `cp` lie on a device: head, tail.
#[must_use]
pub fn slot_blocks(cp: CpNumber, device_blocks: u64) -> [u64; 2] {
    assert!(device_blocks >= DEVICE_BLOCKS_MIN, "a pool's devices are large enough");
    let slot = cp.0 % 2;
    [1 + slot, device_blocks - TAIL_BLOCKS + slot]
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawDevice {
    id: U128,
    block_count: U64,
    /// Which plex it belongs to: zero or one.
    plex: U16,
    reserved: [u8; 6],
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    length: U32,
    incompatible: U64,
    read_only_compatible: U64,
    compatible: U64,
    /// Block of the device where this copy belongs.
    own_block: U64,
    pool: U128,
    cp: U64,
    epoch: U64,
    time_ns: U64,
    next_object: U64,
    free_blocks: U64,
    deferred_blocks: U64,
    object_table: BlockRef,
    space_map: BlockRef,
    freed: BlockRef,
    reap: BlockRef,
    object_table_levels: u8,
    space_map_levels: u8,
    device_index: U16,
    device_count: U16,
    lane_count: U16,
    name: [u8; 64],
    applied: [U64; LANES_MAX],
    devices: [RawDevice; DEVICES_MAX],
    /// Lane by lane, [`forward_slots`] of each.
    forwarded: [U64; FORWARD_SLOTS],
    reserved: [u8; RESERVED_BYTES],
    checksum: U64,
}

const RESERVED_BYTES: usize = 4096 - 112 - 128 - 8 - 64 - 8 * LANES_MAX - 32 * DEVICES_MAX - 8 * FORWARD_SLOTS - 8;
const _: () = assert!(size_of::<RawSuperblock>() == BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, object_table) == 112);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, checksum) == BLOCK_BYTES - 8);

/// A device of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDevice {
    /// Random, drawn when the device joined.
    pub id: u128,
    /// Its blocks when it joined.
    pub block_count: u64,
    /// Which plex it belongs to.
    pub plex: u16,
}

/// A tree and its height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeRoot {
    /// Its root; a hole when it is empty.
    pub root: BlockRef,
    /// Node levels; zero: the root is the only data block.
    pub levels: u8,
}

/// A verified superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the pool.
    pub pool: PoolId,
    /// Its name.
    pub name: String,
    /// This consistency point.
    pub cp: CpNumber,
    /// Ownership generation.
    pub epoch: Epoch,
    /// When it was taken, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The next object's id.
    pub next_object: ObjectId,
    /// Blocks that the space map shows free.
    pub free_blocks: u64,
    /// Blocks in the freed list.
    pub deferred_blocks: u64,
    /// The object table.
    pub object_table: TreeRoot,
    /// The space map.
    pub space_map: TreeRoot,
    /// The freed list's first block.
    pub freed: BlockRef,
    /// The reap list's first block.
    pub reap: BlockRef,
    /// Per lane: changes below this position are contained.
    pub applied: Vec<Lsn>,
    /// Per lane: forwarded changes that are contained.
    pub forwarded: Vec<ForwardedChanges>,
    /// Whether a volume is offline.
    pub has_offline: bool,
    /// Whether a host has ever registered with a volume that is still there.
    pub has_reservations: bool,
    /// The pool's devices, by index.
    pub devices: Vec<PoolDevice>,
}

/// Why a block is not a usable superblock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It never was one.
    #[error("no superblock")]
    Absent,
    /// Written by a program with another format.
    #[error("format version {0} or its features are not known to this program")]
    Unsupported(u32),
    /// It was one, and is damaged.
    #[error("damaged superblock: {0}")]
    Damaged(&'static str),
}

impl Superblock {
    /// Lanes of the pool's portions.
    #[must_use]
    pub fn lane_count(&self) -> u16 {
        u16::try_from(self.applied.len()).expect("at most LANES_MAX")
    }

    /// The bytes of the copy for block `own_block` of device `device_index`.
    #[must_use]
    pub fn encode(&self, device_index: u16, own_block: u64) -> BlockBytes {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version = POOL_VERSION.into();
        raw.length = 4096.into();
        let feature = |is_used, feature| if is_used { feature } else { 0 };
        let offline = feature(self.has_offline, FEATURE_OFFLINE);
        raw.incompatible = (offline | feature(self.has_reservations, FEATURE_RESERVATIONS)).into();
        raw.own_block = own_block.into();
        raw.pool = self.pool.0.into();
        raw.cp = self.cp.0.into();
        raw.epoch = self.epoch.0.into();
        raw.time_ns = self.time_ns.into();
        raw.next_object = self.next_object.0.into();
        raw.free_blocks = self.free_blocks.into();
        raw.deferred_blocks = self.deferred_blocks.into();
        raw.object_table = self.object_table.root;
        raw.object_table_levels = self.object_table.levels;
        raw.space_map = self.space_map.root;
        raw.space_map_levels = self.space_map.levels;
        raw.freed = self.freed;
        raw.reap = self.reap;
        raw.device_index = device_index.into();
        raw.device_count = u16::try_from(self.devices.len()).expect("at most DEVICES_MAX").into();
        raw.lane_count = self.lane_count().into();
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        for (place, lsn) in raw.applied.iter_mut().zip(&self.applied) {
            *place = lsn.0.into();
        }
        let slots = self.forwarded.iter().flat_map(|lane| lane.slots());
        for (place, &bits) in raw.forwarded.iter_mut().zip(slots) {
            *place = bits.into();
            if bits != 0 {
                raw.read_only_compatible = FEATURE_FORWARDED.into();
            }
        }
        for (place, device) in raw.devices.iter_mut().zip(&self.devices) {
            place.id = device.id.into();
            place.block_count = device.block_count.into();
            place.plex = device.plex.into();
        }
        let body = &raw.as_bytes()[..BLOCK_BYTES - 8];
        raw.checksum = checksum(own_block, body).into();
        raw.as_bytes().try_into().expect("the size is asserted above")
    }

    /// The same with a further device, all of whose blocks are free.
    #[must_use]
    pub fn with_device(&self, device: PoolDevice) -> Self {
        let mut larger = self.clone();
        larger.devices.push(device);
        larger.free_blocks += device.block_count - HEAD_BLOCKS - TAIL_BLOCKS;
        larger
    }

    /// The superblock in `bytes`, read from block `own_block`, and the index of the device that it was written for.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn verify(bytes: &BlockBytes, own_block: u64) -> Result<(Self, u16), SuperblockError> {
        use SuperblockError::{Absent, Damaged, Unsupported};
        let raw = RawSuperblock::ref_from_bytes(bytes).map_err(|_| Absent)?;
        if raw.magic != MAGIC {
            return Err(Absent);
        }
        if checksum(own_block, &bytes[..BLOCK_BYTES - 8]) != raw.checksum.get() {
            return Err(Damaged("checksum, or written to another place"));
        }
        if raw.version.get() != POOL_VERSION
            || raw.incompatible.get() & !(FEATURE_OFFLINE | FEATURE_RESERVATIONS) != 0
            || raw.read_only_compatible.get() & !FEATURE_FORWARDED != 0
        {
            return Err(Unsupported(raw.version.get()));
        }
        let (device_count, lane_count) = (usize::from(raw.device_count.get()), usize::from(raw.lane_count.get()));
        let counts_fit = (1..=DEVICES_MAX).contains(&device_count) && (1..=LANES_MAX).contains(&lane_count);
        if !counts_fit || raw.device_index.get() >= raw.device_count.get() || raw.own_block.get() != own_block {
            return Err(Damaged("counts"));
        }
        let references = [&raw.object_table, &raw.space_map, &raw.freed, &raw.reap];
        if !references.iter().all(|reference| reference.is_sane())
            || raw.object_table_levels.max(raw.space_map_levels) > 6
        {
            return Err(Damaged("references"));
        }
        if raw.reserved != [0; RESERVED_BYTES] || raw.cp.get() == 0 {
            return Err(Damaged("reserved bytes"));
        }
        let name_end = raw.name.iter().position(|&byte| byte == 0).unwrap_or(raw.name.len());
        let name = str::from_utf8(&raw.name[..name_end]).map_err(|_| Damaged("name"))?;
        let devices: Vec<_> = raw.devices[..device_count]
            .iter()
            .map(|device| PoolDevice {
                id: device.id.get(),
                block_count: device.block_count.get(),
                plex: device.plex.get(),
            })
            .collect();
        let size_fits =
            |device: &PoolDevice| (DEVICE_BLOCKS_MIN..BlockAddress::DEVICE_BLOCKS_MAX).contains(&device.block_count);
        if !devices.iter().all(size_fits) {
            return Err(Damaged("device sizes"));
        }
        let blocks: u64 = devices.iter().map(|device| device.block_count).sum();
        if raw.free_blocks.get() > blocks || raw.deferred_blocks.get() > blocks {
            return Err(Damaged("block counts"));
        }
        let forwarded = forwarded_of(&raw.forwarded, lane_count).ok_or(Damaged("forwarded changes"))?;
        let superblock = Self {
            pool: PoolId(raw.pool.get()),
            name: name.to_owned(),
            cp: CpNumber(raw.cp.get()),
            epoch: Epoch(raw.epoch.get()),
            time_ns: raw.time_ns.get(),
            next_object: ObjectId(raw.next_object.get()),
            free_blocks: raw.free_blocks.get(),
            deferred_blocks: raw.deferred_blocks.get(),
            object_table: TreeRoot { root: raw.object_table, levels: raw.object_table_levels },
            space_map: TreeRoot { root: raw.space_map, levels: raw.space_map_levels },
            freed: raw.freed,
            reap: raw.reap,
            applied: raw.applied[..lane_count].iter().map(|lsn| Lsn(lsn.get())).collect(),
            forwarded,
            has_offline: raw.incompatible.get() & FEATURE_OFFLINE != 0,
            has_reservations: raw.incompatible.get() & FEATURE_RESERVATIONS != 0,
            devices,
        };
        Ok((superblock, raw.device_index.get()))
    }
}

/// The forwarded changes of each lane; places beyond the last lane's are zero.
fn forwarded_of(raw: &[U64; FORWARD_SLOTS], lane_count: usize) -> Option<Vec<ForwardedChanges>> {
    let (used, rest) = raw.split_at(lane_count * forward_slots(lane_count));
    let lanes = used.chunks(forward_slots(lane_count));
    let lanes =
        lanes.map(|slots| ForwardedChanges::from_slots(slots.iter().map(|bits| bits.get()).collect())).collect();
    if rest.iter().all(|bits| bits.get() == 0) { lanes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ForwardId;

    fn sample() -> Superblock {
        Superblock {
            pool: PoolId(1 << 100),
            name: "a".repeat(64),
            cp: CpNumber(9),
            epoch: Epoch(2),
            time_ns: 3,
            next_object: ObjectId(4),
            free_blocks: 5,
            deferred_blocks: 6,
            object_table: TreeRoot::default(),
            space_map: TreeRoot::default(),
            freed: BlockRef::default(),
            reap: BlockRef::default(),
            applied: vec![Lsn(128); LANES_MAX],
            forwarded: vec![noted(); LANES_MAX],
            has_offline: true,
            has_reservations: true,
            devices: vec![PoolDevice { id: 8, block_count: 4096, plex: 0 }; DEVICES_MAX],
        }
    }

    fn noted() -> ForwardedChanges {
        let mut changes = ForwardedChanges::none(LANES_MAX);
        (0..forward_slots(LANES_MAX)).for_each(|slot| changes.note(ForwardId::new(77, slot).bits()));
        changes
    }

    #[test]
    fn a_superblock_survives_the_round_trip() {
        let bytes = sample().encode(3, 2);
        assert_eq!(Superblock::verify(&bytes, 2), Ok((sample(), 3)));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = sample().encode(3, 2);
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::verify(&flipped, 2).is_err(), "bit {bit}");
        }
        assert!(Superblock::verify(&bytes, 1).is_err(), "misdirected");
        assert_eq!(Superblock::verify(&[0; BLOCK_BYTES], 1), Err(SuperblockError::Absent));
    }

    #[test]
    fn counts_beyond_the_pool_are_refused_whatever_the_checksum_says() {
        let mut superblock = sample();
        superblock.free_blocks = 4096 * DEVICES_MAX as u64;
        assert!(Superblock::verify(&superblock.encode(0, 1), 1).is_ok());
        superblock.free_blocks += 1;
        assert_eq!(Superblock::verify(&superblock.encode(0, 1), 1), Err(SuperblockError::Damaged("block counts")));
    }

    #[test]
    fn slots_alternate_and_never_meet_data() {
        assert_eq!(slot_blocks(CpNumber(2), 1024), [1, 1022]);
        assert_eq!(slot_blocks(CpNumber(3), 1024), [2, 1023]);
    }
}
