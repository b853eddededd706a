//! Object records: what the object table says of each object. 256 bytes, 16 to a block.

use super::{record::RECORD_ALIGN, reference::BlockRef, superblock::TreeRoot};
use crate::base::{
    CpNumber, LaneIndex, Lsn, ObjectId,
    limits::{BLOCK_BYTES, NAME_BYTES_MAX, VOLUME_BYTES_MAX},
};
use std::fmt;
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64},
};

/// Records in one block of the object table.
pub const OBJECTS_PER_BLOCK: u64 = RECORDS as u64;
const RECORDS: usize = 16;
const _: () = assert!(OBJECTS_PER_BLOCK * 256 == BLOCK_BYTES);

/// An object as it lies in the object table. All zero: a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ObjectRecord {
    id: U64,
    /// 1: volume. Zero: the slot is free.
    kind: U16,
    /// Node levels of the tree.
    levels: u8,
    name_bytes: u8,
    reserved_a: [u8; 4],
    size_bytes: U64,
    allocated_blocks: U64,
    created_cp: U64,
    created_ns: U64,
    root: BlockRef,
    name: [u8; NAME_BYTES_MAX],
    /// All zero unless the volume is offline: written by the consistency point that ends a recovery.
    offline: RawOffline,
    reserved_b: [u8; 34],
}

/// What an object record says of a volume that is offline.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawOffline {
    held_root: BlockRef,
    start_bytes: U64,
    end_bytes: U64,
    records: U64,
    lsn: U64,
    /// Of a block that cannot be read: its index in the volume.
    block: U64,
    lane: U16,
    /// `CAUSE_*`. Zero: the volume is online.
    cause: U16,
    held_levels: u8,
    reserved: u8,
}

const _: () = assert!(size_of::<ObjectRecord>() == 256);
const _: () = assert!(std::mem::offset_of!(ObjectRecord, root) == 48);

const _: () = assert!(size_of::<RawOffline>() == 78);
const _: () = assert!(std::mem::offset_of!(ObjectRecord, offline) == 144);

const KIND_VOLUME: u16 = 1;
const CAUSE_UNREADABLE: u16 = 1;
const CAUSE_BEYOND_END: u16 = 2;
const CAUSE_INVALID: u16 = 3;

/// Why a record could not be performed on its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OfflineCause {
    /// This block of the volume, or a node of its tree on the way there, cannot be read.
    #[error("block {0} of the volume, or what leads to it, cannot be read")]
    Unreadable(u64),
    /// It is about bytes beyond the volume's end.
    #[error("it reaches beyond the end of the volume")]
    BeyondEnd,
    /// It asks for what no volume can have.
    #[error("it asks for what no volume can have")]
    Invalid,
}

/// The state of a volume that is offline: recovery came to a record that it could not perform. The record and all later ones of the volume
/// are held in a tree of their own, byte by byte as they stood in the log, from `start_bytes` to `end_bytes`; what was held at another
/// recovery begins with a block, and zeroes lie before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offline {
    /// Why the first of them could not be performed.
    pub cause: OfflineCause,
    /// The lane in which it stood.
    pub lane: LaneIndex,
    /// Its position there.
    pub lsn: Lsn,
    /// How many there are.
    pub records: u64,
    /// Where the first one begins.
    pub start_bytes: u64,
    /// Where the last one ends.
    pub end_bytes: u64,
    /// What holds them.
    pub held: TreeRoot,
}

impl fmt::Display for Offline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, lane, lsn, records, .. } = self;
        write!(
            formatter,
            "the record of log lane {lane} at position {lsn} could not be performed: {cause}; {records} record(s) are held"
        )
    }
}

/// A volume's description, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its id.
    pub id: ObjectId,
    /// Its name: 1 to [`NAME_BYTES_MAX`] bytes, see [`is_valid_name`].
    pub name: String,
    /// Its size: a multiple of the block size, at most [`VOLUME_BYTES_MAX`].
    pub size_bytes: u64,
    /// Node levels of its tree.
    pub levels: u8,
    /// Its tree.
    pub root: BlockRef,
    /// Data blocks and nodes of the tree.
    pub allocated_blocks: u64,
    /// The consistency point that made it.
    pub created_cp: CpNumber,
    /// When, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Why it is offline; `None`: it is not.
    pub offline: Option<Offline>,
}

/// Whether `name` may be a volume's: letters, digits, `-`, `_`, `.`, beginning with a letter or digit, 1 to 64 bytes.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let first_is_plain = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= NAME_BYTES_MAX && first_is_plain && name.bytes().all(allowed)
}

/// Whether `bytes` may be a volume's size.
#[must_use]
pub fn is_valid_size(bytes: u64) -> bool {
    bytes > 0 && bytes <= VOLUME_BYTES_MAX && bytes.is_multiple_of(BLOCK_BYTES)
}

impl ObjectRecord {
    /// A free slot.
    #[must_use]
    pub fn free() -> Self {
        Self::read_from_bytes(&[0; 256]).expect("the size is asserted above")
    }

    /// The record of a volume.
    #[must_use]
    pub fn volume(volume: &VolumeRecord) -> Self {
        assert!(
            is_valid_name(&volume.name) && is_valid_size(volume.size_bytes),
            "a volume is checked before it is made"
        );
        let mut record = Self::free();
        record.id = volume.id.0.into();
        record.kind = KIND_VOLUME.into();
        record.levels = volume.levels;
        record.name_bytes = u8::try_from(volume.name.len()).expect("a valid name is short");
        record.name[..volume.name.len()].copy_from_slice(volume.name.as_bytes());
        record.size_bytes = volume.size_bytes.into();
        record.allocated_blocks = volume.allocated_blocks.into();
        record.created_cp = volume.created_cp.0.into();
        record.created_ns = volume.created_ns.into();
        record.root = volume.root;
        if let Some(offline) = &volume.offline {
            record.offline = RawOffline::new(offline);
        }
        record
    }

    /// The volume in this slot, or none if it is free.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn verify(&self) -> Result<Option<VolumeRecord>, String> {
        if self.kind.get() == 0 {
            let is_zero = self.as_bytes().iter().all(|&byte| byte == 0);
            return if is_zero { Ok(None) } else { Err("a free slot is not zero".to_owned()) };
        }
        let wrong = |what: &str| Err(format!("object {}: {what}", self.id.get()));
        if self.kind.get() != KIND_VOLUME {
            return wrong(&format!("unknown kind {}", self.kind.get()));
        }
        let name = self.name.get(..usize::from(self.name_bytes)).and_then(|bytes| str::from_utf8(bytes).ok());
        let Some(name) = name.filter(|name| is_valid_name(name)) else { return wrong("invalid name") };
        if !is_valid_size(self.size_bytes.get()) || self.id.get() == 0 {
            return wrong("invalid size or id");
        }
        if self.levels == 0 || self.levels > LEVELS_MAX || !self.root.is_sane() {
            return wrong("invalid tree");
        }
        if self.reserved_a != [0; 4] || self.reserved_b != [0; 34] {
            return wrong("reserved bytes are not zero");
        }
        let Ok(offline) = self.offline.verify() else { return wrong("invalid state of an offline volume") };
        Ok(Some(VolumeRecord {
            id: ObjectId(self.id.get()),
            name: name.to_owned(),
            size_bytes: self.size_bytes.get(),
            levels: self.levels,
            root: self.root,
            allocated_blocks: self.allocated_blocks.get(),
            created_cp: CpNumber(self.created_cp.get()),
            created_ns: self.created_ns.get(),
            offline,
        }))
    }
}

impl RawOffline {
    fn new(offline: &Offline) -> Self {
        let (cause, block) = match offline.cause {
            OfflineCause::Unreadable(block) => (CAUSE_UNREADABLE, block),
            OfflineCause::BeyondEnd => (CAUSE_BEYOND_END, 0),
            OfflineCause::Invalid => (CAUSE_INVALID, 0),
        };
        Self {
            held_root: offline.held.root,
            start_bytes: offline.start_bytes.into(),
            end_bytes: offline.end_bytes.into(),
            records: offline.records.into(),
            lsn: offline.lsn.0.into(),
            block: block.into(),
            lane: offline.lane.0.into(),
            cause: cause.into(),
            held_levels: offline.held.levels,
            reserved: 0,
        }
    }

    fn verify(&self) -> Result<Option<Offline>, ()> {
        let cause = match (self.cause.get(), self.block.get()) {
            (0, _) => return if self.as_bytes().iter().all(|&byte| byte == 0) { Ok(None) } else { Err(()) },
            (CAUSE_UNREADABLE, block) => OfflineCause::Unreadable(block),
            (CAUSE_BEYOND_END, 0) => OfflineCause::BeyondEnd,
            (CAUSE_INVALID, 0) => OfflineCause::Invalid,
            _ => return Err(()),
        };
        let (start_bytes, end_bytes) = (self.start_bytes.get(), self.end_bytes.get());
        let is_aligned = start_bytes.is_multiple_of(RECORD_ALIGN) && end_bytes.is_multiple_of(RECORD_ALIGN);
        let has_records = start_bytes < end_bytes && end_bytes <= VOLUME_BYTES_MAX && self.records.get() > 0;
        let has_tree = self.held_root.is_sane() && (1..=LEVELS_MAX).contains(&self.held_levels);
        if !is_aligned || !has_records || !has_tree || self.held_root.is_hole() || self.reserved != 0 {
            return Err(());
        }
        Ok(Some(Offline {
            cause,
            lane: LaneIndex(self.lane.get()),
            lsn: Lsn(self.lsn.get()),
            records: self.records.get(),
            start_bytes,
            end_bytes,
            held: TreeRoot { root: self.held_root, levels: self.held_levels },
        }))
    }
}

/// Most levels of a tree: see [`VOLUME_BYTES_MAX`].
pub const LEVELS_MAX: u8 = 6;

/// The records of one block of the object table.
#[must_use]
pub fn records(bytes: &twinlog_device::BlockBytes) -> &[ObjectRecord; RECORDS] {
    FromBytes::ref_from_bytes(bytes).expect("16 records of 256 bytes fill a block")
}

/// The records of one block, to be changed.
pub fn records_mut(bytes: &mut twinlog_device::BlockBytes) -> &mut [ObjectRecord; RECORDS] {
    FromBytes::mut_from_bytes(bytes).expect("16 records of 256 bytes fill a block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockAddress;

    fn sample() -> VolumeRecord {
        VolumeRecord {
            id: ObjectId(7),
            name: "vol-a".to_owned(),
            size_bytes: 1 << 30,
            levels: 3,
            root: BlockRef::default(),
            allocated_blocks: 0,
            created_cp: CpNumber(2),
            created_ns: 5,
            offline: None,
        }
    }

    fn offline() -> VolumeRecord {
        let root = BlockRef::new(BlockAddress::new(0, 77), CpNumber(3), &[0; twinlog_device::BLOCK_BYTES]);
        let offline = Offline {
            cause: OfflineCause::Unreadable(1 << 40),
            lane: LaneIndex(3),
            lsn: Lsn(128 * 1001),
            records: 2,
            start_bytes: 128,
            end_bytes: 512,
            held: TreeRoot { root, levels: 1 },
        };
        VolumeRecord { offline: Some(offline), ..sample() }
    }

    #[test]
    fn a_volume_survives_the_round_trip() {
        assert_eq!(ObjectRecord::volume(&sample()).verify(), Ok(Some(sample())));
        assert_eq!(ObjectRecord::volume(&offline()).verify(), Ok(Some(offline())));
        assert_eq!(ObjectRecord::free().verify(), Ok(None));
    }

    #[test]
    fn damaged_records_are_refused() {
        let record = ObjectRecord::volume(&sample());
        for place in [8, 10, 11, 12, 16, 48, 80, 200] {
            let mut bytes = record.as_bytes().to_vec();
            bytes[place] ^= 0xFF;
            assert!(ObjectRecord::read_from_bytes(&bytes).expect("256 bytes").verify().is_err(), "byte {place}");
        }
        let record = ObjectRecord::volume(&offline());
        // The held tree's flags, both bounds, the cause, the levels, a reserved byte.
        for place in [172, 176, 184, 218, 220, 221] {
            let mut bytes = record.as_bytes().to_vec();
            bytes[place] ^= 0x7F;
            assert!(ObjectRecord::read_from_bytes(&bytes).expect("256 bytes").verify().is_err(), "byte {place}");
        }
    }

    #[test]
    fn names_are_checked_at_their_bounds() {
        assert!(is_valid_name(&"n".repeat(64)) && !is_valid_name(&"n".repeat(65)));
        assert!(!is_valid_name("") && !is_valid_name("-a") && !is_valid_name("a/b") && is_valid_name("a-_.9"));
        assert!(is_valid_size(VOLUME_BYTES_MAX) && !is_valid_size(VOLUME_BYTES_MAX + BLOCK_BYTES) && !is_valid_size(0));
    }
}
