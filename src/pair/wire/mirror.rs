//! Frames of the mirrored change log.

use super::{FrameError, Message, lane_of, need, take, text_of, write_text};
use crate::{
    base::{Epoch, LaneIndex, Lsn, PoolId},
    changelog::ring::LSN_MAX,
    format::record::RECORD_ALIGN,
};
use std::mem::size_of;
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64, U128},
};

/// Bytes of an acknowledgement.
pub(super) const ACK_BYTES: usize = size_of::<RawAck>();

/// How far a mirrored lane has come. Cumulative: a later one makes an earlier one superfluous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The pool.
    pub pool: PoolId,
    /// Which lane.
    pub lane: LaneIndex,
    /// The epoch at which the sender mirrors it.
    pub epoch: Epoch,
    /// Everything before is durable in the mirror portion.
    pub durable: Lsn,
    /// The position that the next batch must have.
    pub expected: Lsn,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAck {
    pool: U128,
    epoch: U64,
    durable: U64,
    expected: U64,
    lane: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawAck>() == 48);

impl Ack {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw = RawAck {
            pool: self.pool.0.into(),
            epoch: self.epoch.0.into(),
            durable: self.durable.0.into(),
            expected: self.expected.0.into(),
            lane: self.lane.0.into(),
            reserved: [0; 6],
        };
        output.extend_from_slice(raw.as_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (raw, rest) = take::<RawAck>(bytes)?;
        let (durable, expected) = (lsn_of(raw.durable)?, lsn_of(raw.expected)?);
        need(raw.pool != U128::ZERO && raw.epoch != U64::ZERO, "an acknowledgement of no pool")?;
        need(durable <= expected, "more is durable than has arrived")?;
        need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
        let ack = Self {
            pool: PoolId(raw.pool.get()),
            lane: lane_of(raw.lane)?,
            epoch: Epoch(raw.epoch.get()),
            durable,
            expected,
        };
        Ok((ack, rest))
    }
}

/// A position at which records can begin or end.
pub(super) fn lsn_of(raw: U64) -> Result<Lsn, FrameError> {
    let lsn = Lsn(raw.get());
    need(lsn.0.is_multiple_of(RECORD_ALIGN) && lsn < LSN_MAX, "a position at which no record can lie")?;
    Ok(lsn)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBegin {
    start: U64,
    lane: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawBegin>() == 16);

pub(super) fn write_begin(lane: LaneIndex, start: Lsn, output: &mut Vec<u8>) {
    let raw = RawBegin { start: start.0.into(), lane: lane.0.into(), reserved: [0; 6] };
    output.extend_from_slice(raw.as_bytes());
}

pub(super) fn read_begin(bytes: &[u8]) -> Result<(Message, &[u8]), FrameError> {
    let (raw, rest) = take::<RawBegin>(bytes)?;
    need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
    Ok((Message::MirrorBegin { lane: lane_of(raw.lane)?, start: lsn_of(raw.start)? }, rest))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWrite {
    start: U64,
    end: U64,
    lane: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawWrite>() == 24);

pub(super) fn write_write(lane: LaneIndex, start: Lsn, end: Lsn, output: &mut Vec<u8>) {
    let raw = RawWrite { start: start.0.into(), end: end.0.into(), lane: lane.0.into(), reserved: [0; 6] };
    output.extend_from_slice(raw.as_bytes());
}

pub(super) fn read_write(bytes: &[u8]) -> Result<(Message, &[u8]), FrameError> {
    let (raw, payload) = take::<RawWrite>(bytes)?;
    let (start, end) = (lsn_of(raw.start)?, lsn_of(raw.end)?);
    need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
    let payload_bytes = payload.len() as u64;
    let is_whole = payload_bytes > 0 && payload_bytes.is_multiple_of(RECORD_ALIGN);
    need(is_whole && start < end && payload_bytes <= end.0 - start.0, "a batch that does not fit its place")?;
    Ok((Message::MirrorWrite { lane: lane_of(raw.lane)?, start, end }, payload))
}

/// Why a node does not mirror a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum MirrorRefusalReason {
    /// The refused frame's epoch is below the highest that the node has seen, which the refusal's frame carries.
    OldEpoch = 1,
    /// A batch is missing before this one.
    Gap = 2,
    /// Mirroring of the lane has not begun.
    NotBegun = 3,
    /// The node takes the pool over, or has.
    Closed = 4,
    /// Its log memory has failed.
    Failed = 5,
    /// It has no such lane, or what was sent cannot be a batch of it.
    Shape = 6,
    /// More waits for its log memory than an owner may send.
    TooMuch = 7,
}

impl MirrorRefusalReason {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::OldEpoch, Self::Gap, Self::NotBegun, Self::Closed, Self::Failed, Self::Shape, Self::TooMuch];
}

/// A lane is not mirrored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("lane {lane}: {text}")]
pub struct MirrorRefusal {
    /// Which lane.
    pub lane: LaneIndex,
    /// For programs.
    pub reason: MirrorRefusalReason,
    /// The position that the next batch should have had; zero when there is none.
    pub expected: Lsn,
    /// For people.
    pub text: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMirrorRefusal {
    expected: U64,
    lane: U16,
    reason: U16,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<RawMirrorRefusal>() == 16);

impl MirrorRefusal {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw = RawMirrorRefusal {
            expected: self.expected.0.into(),
            lane: self.lane.0.into(),
            reason: (self.reason as u16).into(),
            reserved: [0; 4],
        };
        output.extend_from_slice(raw.as_bytes());
        write_text(&self.text, output);
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, text) = take::<RawMirrorRefusal>(bytes)?;
        let reason = MirrorRefusalReason::ALL.into_iter().find(|&reason| reason as u16 == raw.reason.get());
        need(raw.reserved == [0; 4], "reserved bytes are not zero")?;
        Ok(Self {
            lane: lane_of(raw.lane)?,
            reason: reason.ok_or(FrameError::Malformed("an unknown reason"))?,
            expected: lsn_of(raw.expected)?,
            text: text_of(text)?,
        })
    }
}
