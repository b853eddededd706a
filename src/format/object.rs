//! Object records: what the object table says of each object. 256 bytes, 16 to a block.

use super::reference::BlockRef;
use crate::base::{
    CpNumber, ObjectId,
    limits::{BLOCK_BYTES, NAME_BYTES_MAX, VOLUME_BYTES_MAX},
};
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
    reserved_b: [u8; 112],
}

const _: () = assert!(size_of::<ObjectRecord>() == 256);
const _: () = assert!(std::mem::offset_of!(ObjectRecord, root) == 48);

const KIND_VOLUME: u16 = 1;

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
        if self.reserved_a != [0; 4] || self.reserved_b != [0; 112] {
            return wrong("reserved bytes are not zero");
        }
        Ok(Some(VolumeRecord {
            id: ObjectId(self.id.get()),
            name: name.to_owned(),
            size_bytes: self.size_bytes.get(),
            levels: self.levels,
            root: self.root,
            allocated_blocks: self.allocated_blocks.get(),
            created_cp: CpNumber(self.created_cp.get()),
            created_ns: self.created_ns.get(),
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
        }
    }

    #[test]
    fn a_volume_survives_the_round_trip() {
        assert_eq!(ObjectRecord::volume(&sample()).verify(), Ok(Some(sample())));
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
    }

    #[test]
    fn names_are_checked_at_their_bounds() {
        assert!(is_valid_name(&"n".repeat(64)) && !is_valid_name(&"n".repeat(65)));
        assert!(!is_valid_name("") && !is_valid_name("-a") && !is_valid_name("a/b") && is_valid_name("a-_.9"));
        assert!(is_valid_size(VOLUME_BYTES_MAX) && !is_valid_size(VOLUME_BYTES_MAX + BLOCK_BYTES) && !is_valid_size(0));
    }
}
