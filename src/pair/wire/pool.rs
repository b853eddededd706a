//! Frames about who has a pool, and what is in it.

use super::{
    FrameError,
    hello::{name_of, pad_name},
    mirror::lsn_of,
    need, take, text_of, write_text,
};
use crate::{
    base::{
        Lsn, ObjectId, PortionId,
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

/// What a node wants of the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum OrderKind {
    /// To the owner: hand the pool over to the sender.
    HandOver = 1,
    /// To the node that is not the owner: take the pool over from the sender.
    TakeOver = 2,
}

/// An order about a pool, at the frame's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Names it: the answers repeat it.
    pub number: u64,
    /// What is wanted.
    pub kind: OrderKind,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOrder {
    number: U64,
    kind: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawOrder>() == 16);

impl Order {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw = RawOrder { number: self.number.into(), kind: (self.kind as u16).into(), reserved: [0; 6] };
        output.extend_from_slice(raw.as_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (raw, rest) = take::<RawOrder>(bytes)?;
        let kind = match raw.kind.get() {
            1 => OrderKind::HandOver,
            2 => OrderKind::TakeOver,
            _ => return Err(FrameError::Malformed("an unknown order")),
        };
        need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
        Ok((Self { number: raw.number.get(), kind }, rest))
    }
}

/// What has become of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum AnswerCode {
    /// It is being carried out; another answer follows.
    Begun = 1,
    /// It is done.
    Done = 2,
    /// It will not be done.
    Refused = 3,
    /// It was begun and could not be finished.
    Failed = 4,
}

impl AnswerCode {
    /// Every code.
    pub const ALL: [Self; 4] = [Self::Begun, Self::Done, Self::Refused, Self::Failed];
}

/// An answer to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The order's.
    pub number: u64,
    /// For programs.
    pub code: AnswerCode,
    /// For people.
    pub text: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAnswer {
    number: U64,
    code: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawAnswer>() == 16);

impl Answer {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw = RawAnswer { number: self.number.into(), code: (self.code as u16).into(), reserved: [0; 6] };
        output.extend_from_slice(raw.as_bytes());
        write_text(&self.text, output);
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, text) = take::<RawAnswer>(bytes)?;
        let code = AnswerCode::ALL.into_iter().find(|&code| code as u16 == raw.code.get());
        need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
        let code = code.ok_or(FrameError::Malformed("an unknown answer"))?;
        Ok(Self { number: raw.number.get(), code, text: text_of(text)? })
    }
}

/// A volume of the frame's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its id, for requests.
    pub id: ObjectId,
    /// Its size.
    pub size_bytes: u64,
    /// Its name.
    pub name: String,
}

/// Volumes of the frame's pool: all of them, or as many as one frame takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes {
    /// Grows with every change of the list. Frames of one list have the same.
    pub generation: u64,
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
    generation: U64,
    total_count: U32,
    first: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVolume {
    id: U64,
    size_bytes: U64,
    name_bytes: u8,
    reserved: [u8; 7],
    name: [u8; NAME_BYTES_MAX],
}

const _: () = assert!(size_of::<RawVolumes>() == 16);
const _: () = assert!(size_of::<RawVolume>() == 88);
const _: () = assert!(VOLUMES_PER_FRAME_MAX * size_of::<RawVolume>() <= super::PAYLOAD_BYTES_MAX);

impl Volumes {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        assert!(self.entries.len() <= VOLUMES_PER_FRAME_MAX, "more volumes are told in several frames");
        let raw = RawVolumes {
            generation: self.generation.into(),
            total_count: self.total_count.into(),
            first: self.first.into(),
        };
        output.extend_from_slice(raw.as_bytes());
        for entry in &self.entries {
            let (name, name_bytes) = pad_name(&entry.name);
            let (id, size_bytes) = (entry.id.0.into(), entry.size_bytes.into());
            output.extend_from_slice(RawVolume { id, size_bytes, name_bytes, reserved: [0; 7], name }.as_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, rest) = take::<RawVolumes>(bytes)?;
        let entries = <[RawVolume]>::ref_from_bytes(rest).map_err(|_| FrameError::Malformed("half a volume"))?;
        need(entries.len() <= VOLUMES_PER_FRAME_MAX, "too many volumes for a frame")?;
        let end = u64::from(raw.first.get()) + entries.len() as u64;
        need(end <= u64::from(raw.total_count.get()), "more volumes than there are")?;
        let entries = entries.iter().map(|entry| {
            need(entry.reserved == [0; 7] && entry.size_bytes.get() <= VOLUME_BYTES_MAX, "a volume that cannot be")?;
            let name = name_of(&entry.name, entry.name_bytes)?;
            Ok(VolumeEntry { id: ObjectId(entry.id.get()), size_bytes: entry.size_bytes.get(), name })
        });
        Ok(Self {
            generation: raw.generation.get(),
            total_count: raw.total_count.get(),
            first: raw.first.get(),
            entries: entries.collect::<Result<_, _>>()?,
        })
    }
}
