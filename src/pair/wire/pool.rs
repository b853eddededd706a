//! Frames about who has a pool, and what is in it.

use super::{
    FrameError,
    hello::{name_of, pad_name},
    mirror::lsn_of,
    need, take,
};
use crate::{
    base::{
        BlockSize, LaneIndex, Lsn, ObjectId, PortionId,
        limits::{LANES_MAX, NAME_BYTES_MAX, VOLUME_BYTES_MAX},
    },
    pair::decide::Word,
};
use std::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Most volumes of one frame; more are told in several.
pub const VOLUMES_PER_FRAME_MAX: usize = 4096;

/// What the sender does with a pool, at the frame's epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// What it does; never [`Word::Unknown`].
    pub word: Word,
    /// Its portion, if it has one.
    pub portion: Option<PortionId>,
    /// What each lane of its mirror expects next, `None` for one that has not begun; empty unless it mirrors the pool.
    pub expected: Vec<Option<Lsn>>,
}

/// The words that can be said, each at the place of its number less one.
const WORDS: [Word; 5] = [Word::Standby, Word::Mirroring, Word::Starting, Word::Serving, Word::Leaving];

/// No position: of a lane that has not begun.
const NOT_BEGUN: U64 = U64::new(u64::MAX);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPoolState {
    portion: U128,
    word: u8,
    lane_count: u8,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawPoolState>() == 24);
const _: () = assert!(LANES_MAX <= u8::MAX as usize);

impl PoolState {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let number = WORDS.iter().position(|&word| word == self.word).expect("a node knows what it does itself") + 1;
        assert!(self.expected.len() <= LANES_MAX, "the limit of lanes");
        let raw = RawPoolState {
            portion: self.portion.unwrap_or_default().0.into(),
            word: u8::try_from(number).expect("five words"),
            lane_count: u8::try_from(self.expected.len()).expect("checked above"),
            reserved: [0; 6],
        };
        output.extend_from_slice(raw.as_bytes());
        for expected in &self.expected {
            output.extend_from_slice(expected.map_or(NOT_BEGUN, |lsn| lsn.0.into()).as_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, rest) = take::<RawPoolState>(bytes)?;
        let word = usize::from(raw.word).checked_sub(1).and_then(|index| WORDS.get(index));
        let lanes = <[U64]>::ref_from_bytes(rest).map_err(|_| FrameError::Malformed("half a position"))?;
        need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
        need(usize::from(raw.lane_count) == lanes.len(), "another number of lanes than it says")?;
        need(lanes.len() <= LANES_MAX, "no portion has so many lanes")?;
        let expected = lanes.iter().map(|&raw| if raw == NOT_BEGUN { Ok(None) } else { lsn_of(raw).map(Some) });
        Ok(Self {
            word: *word.ok_or(FrameError::Malformed("an unknown word about a pool"))?,
            portion: Some(PortionId(raw.portion.get())).filter(|portion| *portion != PortionId::default()),
            expected: expected.collect::<Result<_, _>>()?,
        })
    }
}

/// A volume of the frame's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its id, for requests.
    pub id: ObjectId,
    /// Its size.
    pub size_bytes: u64,
    /// In what hosts address it.
    pub block_size: BlockSize,
    /// Lane and position of the record that keeps it offline, if it is.
    pub offline: Option<(LaneIndex, Lsn)>,
    /// Its name.
    pub name: String,
}

/// Volumes of the frame's pool: all of them, or as many as one frame takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes {
    /// Volumes of the whole list.
    pub total_count: u32,
    /// Index of the first of these in it.
    pub first: u32,
    /// At most [`VOLUMES_PER_FRAME_MAX`].
    pub entries: Vec<VolumeEntry>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVolumes {
    total_count: U32,
    first: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVolume {
    id: U64,
    size_bytes: U64,
    name_bytes: u8,
    /// 1: offline. Zero: not.
    offline: u8,
    /// Of the record that keeps it offline. Zero: it is online.
    offline_lane: U16,
    /// [`BlockSize::code`].
    block_size: u8,
    reserved: [u8; 3],
    /// The same.
    offline_lsn: U64,
    name: [u8; NAME_BYTES_MAX],
}

const _: () = assert!(size_of::<RawVolumes>() == 8);
const _: () = assert!(size_of::<RawVolume>() == 96);
const _: () = assert!(VOLUMES_PER_FRAME_MAX * size_of::<RawVolume>() <= super::PAYLOAD_BYTES_MAX);

impl Volumes {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        assert!(self.entries.len() <= VOLUMES_PER_FRAME_MAX, "more volumes are told in several frames");
        let raw = RawVolumes { total_count: self.total_count.into(), first: self.first.into() };
        output.extend_from_slice(raw.as_bytes());
        for entry in &self.entries {
            let (name, name_bytes) = pad_name(&entry.name);
            let (id, size_bytes) = (entry.id.0.into(), entry.size_bytes.into());
            let (LaneIndex(lane), Lsn(lsn)) = entry.offline.unwrap_or_default();
            let raw = RawVolume {
                id,
                size_bytes,
                name_bytes,
                offline: u8::from(entry.offline.is_some()),
                offline_lane: lane.into(),
                block_size: entry.block_size.code(),
                reserved: [0; 3],
                offline_lsn: lsn.into(),
                name,
            };
            output.extend_from_slice(raw.as_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, rest) = take::<RawVolumes>(bytes)?;
        let entries = <[RawVolume]>::ref_from_bytes(rest).map_err(|_| FrameError::Malformed("half a volume"))?;
        need(entries.len() <= VOLUMES_PER_FRAME_MAX, "too many volumes for a frame")?;
        let end = u64::from(raw.first.get()) + entries.len() as u64;
        need(end <= u64::from(raw.total_count.get()), "more volumes than there are")?;
        let entries = entries.iter().map(|entry| {
            let is_offline = entry.offline == 1;
            let lane = entry.offline_lane.get();
            let is_placed =
                if is_offline { usize::from(lane) < LANES_MAX } else { lane == 0 && entry.offline_lsn.get() == 0 };
            let is_sane = entry.offline <= 1 && entry.reserved == [0; 3] && is_placed;
            let block_size =
                BlockSize::from_code(entry.block_size).ok_or(FrameError::Malformed("blocks of no size"))?;
            need(is_sane && entry.size_bytes.get() <= VOLUME_BYTES_MAX, "a volume that cannot be")?;
            let name = name_of(&entry.name, entry.name_bytes)?;
            let (id, size_bytes) = (ObjectId(entry.id.get()), entry.size_bytes.get());
            let place = (LaneIndex(lane), lsn_of(entry.offline_lsn)?);
            Ok(VolumeEntry { id, size_bytes, block_size, offline: is_offline.then_some(place), name })
        });
        Ok(Self {
            total_count: raw.total_count.get(),
            first: raw.first.get(),
            entries: entries.collect::<Result<_, _>>()?,
        })
    }
}
