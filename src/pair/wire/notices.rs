//! Frames about what hosts of the other node are to be told of reservations of the frame's pool.

use super::{FrameError, need, take};
use crate::{
    base::{HostId, ObjectId},
    fs::reservation::Notice,
    node::request::ReservationNotice,
};
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U64};

/// Most notices of one frame: what one command tells all registrants of a volume. More are told in several.
pub const NOTICES_PER_FRAME_MAX: usize = 128;

/// Notices of one pool in their order, each with a number that is one more than the last one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notices {
    /// The number of the first of these in the life of the sender's process, from 1.
    pub first: u64,
    /// At least one, at most [`NOTICES_PER_FRAME_MAX`]; volumes by their own ids in the pool.
    pub entries: Vec<ReservationNotice>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawNotice {
    volume: U64,
    host: [u8; 16],
    /// [`Notice`].
    kind: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<RawNotice>() == 32);
const _: () = assert!(NOTICES_PER_FRAME_MAX >= crate::base::limits::REGISTRANTS_MAX);
const _: () = assert!(8 + NOTICES_PER_FRAME_MAX * size_of::<RawNotice>() <= super::PAYLOAD_BYTES_MAX);

impl Notices {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        assert!((1..=NOTICES_PER_FRAME_MAX).contains(&self.entries.len()), "{} notices", self.entries.len());
        output.extend_from_slice(&self.first.to_le_bytes());
        for notice in &self.entries {
            let raw = RawNotice {
                volume: notice.volume.0.into(),
                host: notice.host.bytes(),
                kind: notice.notice as u8,
                reserved: [0; 7],
            };
            output.extend_from_slice(raw.as_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (first, rest) = take::<U64>(bytes)?;
        let entries = <[RawNotice]>::ref_from_bytes(rest).map_err(|_| FrameError::Malformed("half a notice"))?;
        need((1..=NOTICES_PER_FRAME_MAX).contains(&entries.len()), "no notices, or too many for a frame")?;
        let first = first.get();
        let last = first.checked_add(entries.len() as u64 - 1);
        need(first > 0 && last.is_some(), "notices have numbers from 1")?;
        let notice = |raw: &RawNotice| {
            need(raw.reserved == [0; 7], "reserved bytes are not zero")?;
            let (host, notice) = (HostId::new(raw.host), Notice::from_byte(raw.kind));
            let volume = ObjectId(raw.volume.get());
            match (host, notice) {
                (Some(host), Some(notice)) => Ok(ReservationNotice { host, volume, notice }),
                _ => Err(FrameError::Malformed("a notice of nothing, or to nobody")),
            }
        };
        Ok(Self { first, entries: entries.iter().map(notice).collect::<Result<_, _>>()? })
    }
}
