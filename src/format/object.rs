//! Object records: what the object table says of each object. 256 bytes, 16 to a block.
//!
//! A volume with registrants has further records, of up to 10 registrants each, in any slots of the table; all but the last one are full.

use super::{
    Verify,
    record::RECORD_ALIGN,
    reference::BlockRef,
    reservation::{RawHead, RawRegistrant, Registrant, Reservation},
    superblock::TreeRoot,
};
use crate::base::{
    BlockSize, CpNumber, LaneIndex, Lsn, ObjectId,
    limits::{BLOCK_BYTES, NAME_BYTES_MAX, REGISTRANTS_MAX, VOLUME_BYTES_MAX},
};
use std::{collections::BTreeMap, fmt};
use thiserror::Error;
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
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
    /// 1: volume. 2: registrants of one, which lie as `RawRegistrants` says. Zero: the slot is free.
    kind: U16,
    /// Node levels of the tree.
    levels: u8,
    name_bytes: u8,
    /// Logical blocks: zero for 4096 bytes, 9 for 512 ([`BlockSize::code`]).
    block_size: u8,
    reserved_a: [u8; 3],
    size_bytes: U64,
    allocated_blocks: U64,
    created_cp: U64,
    created_ns: U64,
    root: BlockRef,
    name: [u8; NAME_BYTES_MAX],
    /// All zero unless the volume is offline: written by the consistency point that ends a recovery.
    offline: RawOffline,
    /// All zero until a host registers with the volume.
    reservation: RawHead,
    reserved_b: [u8; 18],
}

/// Registrants of a volume, in the place of an object record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawRegistrants {
    /// The volume's.
    id: U64,
    kind: U16,
    /// Which of the volume's records of this kind, from 0.
    part: u8,
    count: u8,
    reserved: [u8; 4],
    /// The rest is zero.
    registrants: [RawRegistrant; REGISTRANTS_PER_RECORD],
}

/// Registrants of one record.
pub const REGISTRANTS_PER_RECORD: usize = 10;
const _: () = assert!(size_of::<RawRegistrants>() == size_of::<ObjectRecord>());
const _: () = assert!(REGISTRANTS_MAX.div_ceil(REGISTRANTS_PER_RECORD) <= u8::MAX as usize);

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
const _: () = assert!(std::mem::offset_of!(ObjectRecord, reservation) == 222);

const KIND_VOLUME: u16 = 1;
const KIND_REGISTRANTS: u16 = 2;
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
    /// In what hosts address it.
    pub block_size: BlockSize,
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
    /// Who has registered with it, and who holds it reserved.
    pub reservation: Box<Reservation>,
}

/// What stands in a slot of the object table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A volume, without its reservation, and the reservation's head.
    Volume(Box<VolumeRecord>, RawHead),
    /// Registrants of a volume.
    Registrants {
        /// Which volume.
        volume: ObjectId,
        /// Which of its records of this kind, from 0.
        part: u8,
        /// At least one, at most [`REGISTRANTS_PER_RECORD`].
        registrants: Vec<Registrant>,
    },
}

impl Object {
    /// The volume, without its reservation, if it is one.
    #[must_use]
    pub fn into_volume(self) -> Option<VolumeRecord> {
        match self {
            Self::Volume(volume, _) => Some(*volume),
            Self::Registrants { .. } => None,
        }
    }
}

/// Records of registrants that a volume with so many has.
#[must_use]
pub fn registrant_parts(registrants: usize) -> u8 {
    u8::try_from(registrants.div_ceil(REGISTRANTS_PER_RECORD)).expect("at most REGISTRANTS_MAX")
}

/// Heads and registrants as they are found in the object table, until all of it has been read.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    heads: BTreeMap<ObjectId, RawHead>,
    parts: BTreeMap<(ObjectId, u8), Vec<Registrant>>,
}

impl Joining {
    /// The head of a volume.
    pub fn head(&mut self, volume: ObjectId, head: RawHead) {
        if head != RawHead::new_zeroed() {
            self.heads.insert(volume, head);
        }
    }

    /// Registrants of a volume.
    ///
    /// # Errors
    /// They stand in the table twice.
    pub fn part(&mut self, volume: ObjectId, part: u8, registrants: Vec<Registrant>) -> Result<(), String> {
        match self.parts.insert((volume, part), registrants) {
            None => Ok(()),
            Some(_) => Err(format!("registrants of object {volume}, part {part}, stand in the object table twice")),
        }
    }

    /// The reservations, by volume. Every volume has been read.
    ///
    /// # Errors
    /// What does not belong together.
    pub fn finish(mut self) -> Result<BTreeMap<ObjectId, Reservation>, String> {
        let mut reservations = BTreeMap::new();
        for (volume, head) in self.heads {
            let mut registrants = Vec::new();
            for part in 0..registrant_parts(head.registrant_count().min(REGISTRANTS_MAX)) {
                registrants.append(&mut self.parts.remove(&(volume, part)).unwrap_or_default());
            }
            let wrong = |what| format!("object {volume} has a reservation that {what}");
            reservations.insert(volume, head.join(registrants).map_err(wrong)?);
        }
        match self.parts.keys().next() {
            None => Ok(reservations),
            Some((volume, part)) => Err(format!("registrants of object {volume}, part {part}, are nobody's")),
        }
    }
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
        (record.levels, record.block_size) = (volume.levels, volume.block_size.code());
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
        record.reservation = volume.reservation.head();
        record
    }

    /// The record of registrants of a volume: the `part`-th of [`registrant_parts`].
    ///
    /// # Panics
    /// There is no such part.
    #[must_use]
    pub fn registrants(volume: &VolumeRecord, part: u8) -> Self {
        let mut chunks = volume.reservation.registrants.chunks(REGISTRANTS_PER_RECORD);
        let registrants = chunks.nth(usize::from(part)).expect("the caller counts them");
        let mut raw = RawRegistrants::read_from_bytes(&[0; 256]).expect("the size is asserted above");
        (raw.id, raw.kind, raw.part) = (volume.id.0.into(), KIND_REGISTRANTS.into(), part);
        raw.count = u8::try_from(registrants.len()).expect("a few");
        for (place, &registrant) in raw.registrants.iter_mut().zip(registrants) {
            *place = registrant.into();
        }
        zerocopy::transmute!(raw)
    }

    /// What stands in this slot, or none if it is free.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn verify(&self) -> Result<Option<Object>, String> {
        if self.kind.get() == 0 {
            let is_zero = self.as_bytes().iter().all(|&byte| byte == 0);
            return if is_zero { Ok(None) } else { Err("a free slot is not zero".to_owned()) };
        }
        let wrong = |what: &str| Err(format!("object {}: {what}", self.id.get()));
        if self.kind.get() == KIND_REGISTRANTS {
            let raw: &RawRegistrants = zerocopy::transmute_ref!(self);
            return raw.verify(&()).map(Some).or_else(wrong);
        }
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
        let Some(block_size) = BlockSize::from_code(self.block_size) else { return wrong("unknown size of blocks") };
        if self.reserved_a != [0; 3] || self.reserved_b != [0; 18] {
            return wrong("reserved bytes are not zero");
        }
        let Ok(offline) = self.offline.verify() else { return wrong("invalid state of an offline volume") };
        let volume = VolumeRecord {
            id: ObjectId(self.id.get()),
            name: name.to_owned(),
            size_bytes: self.size_bytes.get(),
            block_size,
            levels: self.levels,
            root: self.root,
            allocated_blocks: self.allocated_blocks.get(),
            created_cp: CpNumber(self.created_cp.get()),
            created_ns: self.created_ns.get(),
            offline,
            reservation: Box::default(),
        };
        Ok(Some(Object::Volume(Box::new(volume), self.reservation)))
    }
}

impl Verify for RawRegistrants {
    type Expected<'a> = ();
    type Verified = Object;
    type Error = &'static str;

    fn verify(&self, (): &()) -> Result<Object, &'static str> {
        let count = usize::from(self.count);
        let (used, rest) = self.registrants.split_at_checked(count).ok_or("more registrants than a record holds")?;
        let is_blank = rest.as_bytes().iter().all(|&byte| byte == 0) && self.reserved == [0; 4];
        if count == 0 || self.id.get() == 0 || !is_blank {
            return Err("malformed registrants");
        }
        let registrants = used.iter().map(|registrant| registrant.verify(&())).collect::<Result<_, _>>()?;
        Ok(Object::Registrants { volume: ObjectId(self.id.get()), part: self.part, registrants })
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
    use crate::{
        base::{BlockAddress, HostId},
        format::reservation::{Held, ReservationKind},
    };

    fn sample() -> VolumeRecord {
        VolumeRecord {
            id: ObjectId(7),
            name: "vol-a".to_owned(),
            size_bytes: 1 << 30,
            block_size: BlockSize::Bytes4096,
            levels: 3,
            root: BlockRef::default(),
            allocated_blocks: 0,
            created_cp: CpNumber(2),
            created_ns: 5,
            offline: None,
            reservation: Box::default(),
        }
    }

    fn reserved(registrants: u8) -> VolumeRecord {
        let host = |number| HostId::new([number; 16]).expect("not zero");
        let registrants = (1..=registrants).map(|number| Registrant { host: host(number), key: u64::from(number) });
        let held = Some(Held { kind: ReservationKind::WriteExclusive, holder: Some(host(1)) });
        let reservation = Reservation { generation: 3, persists: true, held, registrants: registrants.collect() };
        VolumeRecord { reservation: Box::new(reservation), ..sample() }
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
        for volume in [sample(), offline()] {
            let object = Object::Volume(Box::new(volume.clone()), RawHead::new_zeroed());
            assert_eq!(ObjectRecord::volume(&volume).verify(), Ok(Some(object)));
        }
        assert_eq!(ObjectRecord::free().verify(), Ok(None));
    }

    fn join(records: &[ObjectRecord]) -> Result<BTreeMap<ObjectId, Reservation>, String> {
        let mut joining = Joining::default();
        for record in records {
            match record.verify()? {
                None => {}
                Some(Object::Volume(volume, head)) => joining.head(volume.id, head),
                Some(Object::Registrants { volume, part, registrants }) => joining.part(volume, part, registrants)?,
            }
        }
        joining.finish()
    }

    #[test]
    fn a_reservation_is_joined_from_its_records_in_any_order() {
        for count in [1, 10, 11, 128] {
            let volume = reserved(count);
            let parts = registrant_parts(usize::from(count));
            let mut records: Vec<_> = (0..parts).rev().map(|part| ObjectRecord::registrants(&volume, part)).collect();
            records.push(ObjectRecord::volume(&volume));
            let whole = BTreeMap::from([(volume.id, *volume.reservation)]);
            assert_eq!(join(&records), Ok(whole));
            assert!(join(&records[1..]).is_err(), "a part is missing");
            assert!(join(&records[..records.len() - 1]).is_err(), "the volume is missing");
            records.push(records[0]);
            assert!(join(&records).is_err(), "a part stands there twice");
        }
        assert_eq!(join(&[ObjectRecord::volume(&sample())]), Ok(BTreeMap::new()));
    }

    #[test]
    fn damaged_registrants_are_refused() {
        let record = ObjectRecord::registrants(&reserved(3), 0);
        // The id, the kind, the count both ways, a reserved byte, what lies behind the last one.
        for (place, byte) in [(0, 0), (8, 3), (11, 0), (11, 11), (11, 2), (12, 1), (16 + 3 * 24, 1)] {
            let mut bytes = record.as_bytes().to_vec();
            bytes[place] = byte;
            assert!(ObjectRecord::read_from_bytes(&bytes).expect("256 bytes").verify().is_err(), "byte {place}");
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        let record = ObjectRecord::volume(&sample());
        for place in [8, 10, 11, 12, 16, 48, 80, 200, 240] {
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
