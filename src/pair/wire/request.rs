//! Frames of clients' requests that the owner of a pool performs for its partner.
//!
//! A request is at most as long as a payload: a longer one is forwarded in parts. Requests and replies have no order among each other.

use super::{
    FrameError, PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX, need,
    reservation::{COMMAND_BYTES, read_command},
    take,
};
use crate::{
    base::{
        Epoch, HostId, ObjectId, Pass,
        limits::{BLOCK_BYTES, VOLUME_BYTES_MAX},
    },
    format::reservation::Reservation,
};
use std::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Bytes of the SHA-256 in front of the payload of a [`RequestKind::CompareAndWrite`].
const SUM_BYTES: u64 = 32;

/// Most extents of a reply.
pub const EXTENTS_MAX: usize = 4096;

/// What is to be done with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RequestKind {
    /// Returns the bytes.
    Read = 1,
    /// Replaces them by the payload.
    Write = 2,
    /// Makes every change answered before durable on the disks' side too.
    Flush = 3,
    /// The bytes are not needed any more.
    Discard = 4,
    /// The bytes become zeroes.
    WriteZeroes = 5,
    /// Returns which of them are allocated.
    BlockStatus = 6,
    /// Brings them into the cache.
    Cache = 7,
    /// Changes who has registered with the volume, and who holds it reserved: the payload says how.
    Reserve = 8,
    /// Returns who has.
    Reservation = 9,
    /// Replaces the bytes, which lie in one block of the pool, if they are what is expected: the payload is the SHA-256 of that, and the new bytes.
    CompareAndWrite = 10,
}

impl RequestKind {
    /// Whether it changes something: it leaves a record, and has a name that is remembered.
    #[must_use]
    pub fn is_change(self) -> bool {
        match self {
            Self::Write | Self::CompareAndWrite | Self::Discard | Self::WriteZeroes | Self::Reserve => true,
            Self::Read | Self::Flush | Self::BlockStatus | Self::Cache | Self::Reservation => false,
        }
    }

    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::BlockStatus,
        Self::Cache,
        Self::Reserve,
        Self::Reservation,
        Self::CompareAndWrite,
    ];

    /// Whether the bytes themselves travel, in one direction or the other.
    fn carries_bytes(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::CompareAndWrite)
    }

    /// Whether it is about the volume as a whole.
    fn has_no_range(self) -> bool {
        matches!(self, Self::Flush | Self::Reserve | Self::Reservation)
    }
}

/// The reply waits until the change survives power loss of everything.
const FLAG_DURABLE: u16 = 1;
/// Blocks of zeroes may be freed.
const FLAG_MAY_FREE: u16 = 2;

/// A request to a volume of the frame's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names it: never used again in a session; the reply repeats it.
    pub id: u64,
    /// Which volume.
    pub volume: ObjectId,
    /// Whose it is, to reservations: the owner decides.
    pub host: Option<HostId>,
    /// Of a host's change: the owner's leave to perform it.
    pub pass: Option<Pass>,
    /// What to do.
    pub kind: RequestKind,
    /// Force unit access.
    pub durable: bool,
    /// Of [`RequestKind::WriteZeroes`]: blocks may be freed.
    pub may_free: bool,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes, at least one but for what has no range: a flush, and what is about reservations.
    pub length_bytes: u64,
    /// Of [`RequestKind::BlockStatus`]: most extents wanted, at least one.
    pub extents_max: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRequest {
    id: U64,
    volume: U64,
    offset_bytes: U64,
    length_bytes: U64,
    kind: U16,
    flags: U16,
    extents_max: U32,
    /// Zero: a client that cannot register.
    host: [u8; 16],
    /// Zero: none.
    pass: RawPass,
}

/// A pass, in a request or as the payload of a reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPass {
    epoch: U64,
    number: U64,
}

impl RawPass {
    fn new(pass: Option<Pass>) -> Self {
        let (epoch, number) = pass.map_or((0, 0), |pass| (pass.epoch.0, pass.number));
        Self { epoch: epoch.into(), number: number.into() }
    }

    fn pass(&self) -> Option<Pass> {
        let (epoch, number) = (Epoch(self.epoch.get()), self.number.get());
        (number > 0).then_some(Pass { epoch, number })
    }
}

const _: () = assert!(size_of::<RawPass>() == 16);
const _: () = assert!(size_of::<RawRequest>() == 72);

impl Request {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let flags = if self.durable { FLAG_DURABLE } else { 0 } | if self.may_free { FLAG_MAY_FREE } else { 0 };
        let raw = RawRequest {
            id: self.id.into(),
            volume: self.volume.0.into(),
            offset_bytes: self.offset_bytes.into(),
            length_bytes: self.length_bytes.into(),
            kind: (self.kind as u16).into(),
            flags: flags.into(),
            extents_max: self.extents_max.into(),
            host: self.host.map_or([0; 16], HostId::bytes),
            pass: RawPass::new(self.pass),
        };
        output.extend_from_slice(raw.as_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (raw, payload) = take::<RawRequest>(bytes)?;
        let kind = RequestKind::ALL.into_iter().find(|&kind| kind as u16 == raw.kind.get());
        let flags = raw.flags.get();
        need(flags & !(FLAG_DURABLE | FLAG_MAY_FREE) == 0, "an unknown flag of a request")?;
        need(raw.pass.number.get() > 0 || raw.pass.epoch.get() == 0, "half a pass")?;
        let request = Self {
            id: raw.id.get(),
            volume: ObjectId(raw.volume.get()),
            host: HostId::new(raw.host),
            pass: raw.pass.pass(),
            kind: kind.ok_or(FrameError::Malformed("an unknown request"))?,
            durable: flags & FLAG_DURABLE != 0,
            may_free: flags & FLAG_MAY_FREE != 0,
            offset_bytes: raw.offset_bytes.get(),
            length_bytes: raw.length_bytes.get(),
            extents_max: raw.extents_max.get(),
        };
        request.check(payload.len() as u64)?;
        if request.kind == RequestKind::Reserve {
            read_command(payload).ok_or(FrameError::Malformed("an unknown command of a reservation"))?;
        }
        Ok((request, payload))
    }

    fn check(&self, payload_bytes: u64) -> Result<(), FrameError> {
        let payload_wanted = match self.kind {
            RequestKind::Write => self.length_bytes,
            RequestKind::CompareAndWrite => self.length_bytes.saturating_add(SUM_BYTES),
            RequestKind::Reserve => COMMAND_BYTES as u64,
            _ => 0,
        };
        let may_have_pass = self.host.is_some() && self.kind.is_change();
        need(self.pass.is_none() || may_have_pass, "a pass of another request")?;
        need(payload_bytes == payload_wanted, "a payload that is not the request's")?;
        need(self.kind.has_no_range() == (self.length_bytes == 0), "a request of no bytes")?;
        let end = self.offset_bytes.checked_add(self.length_bytes);
        need(end.is_some_and(|end| end <= VOLUME_BYTES_MAX), "a request beyond any volume")?;
        let is_short = self.length_bytes <= PAYLOAD_BYTES_MAX as u64;
        need(is_short || !self.kind.carries_bytes(), "a request that is forwarded in parts")?;
        let within = self.offset_bytes % BLOCK_BYTES;
        let is_one_block = self.length_bytes <= BLOCK_BYTES - within;
        need(is_one_block || self.kind != RequestKind::CompareAndWrite, "more bytes than are compared at once")?;
        need(!self.may_free || self.kind == RequestKind::WriteZeroes, "a flag of another request")?;
        let wants_extents = self.kind == RequestKind::BlockStatus;
        need(wants_extents == (self.extents_max > 0), "extents of another request, or none")?;
        need(self.extents_max as usize <= EXTENTS_MAX, "more extents than a reply holds")
    }
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum ReplyStatus {
    /// Done.
    Done = 0,
    /// No such volume.
    NoSuchVolume = 1,
    /// Part of the range lies beyond the volume's end.
    OutOfRange = 2,
    /// The pool has no room.
    NoSpace = 3,
    /// A block cannot be read: the reply's `detail` is its index in the volume.
    Unreadable = 4,
    /// The pool has stopped.
    Stopped = 5,
    /// The node is shutting down.
    ShuttingDown = 6,
    /// The node is not the owner of the pool, or not at this epoch.
    NotOwner = 7,
    /// The volume is offline.
    Offline = 8,
    /// A reservation forbids it.
    ReservationConflict = 9,
    /// It asks of a reservation what cannot be.
    ReservationInvalid = 10,
    /// There is no room for a further registrant.
    RegistrantsFull = 11,
    /// The host was preempted, and its commands ended.
    Preempted = 12,
    /// The change may be late: it is not performed, and the payload is a pass for what comes later.
    Late = 13,
    /// The bytes are not what a compare-and-write expects: nothing was written.
    Differs = 14,
}

impl ReplyStatus {
    /// Whether it is the end of the request; else that is asked for again.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::NotOwner | Self::ShuttingDown | Self::Stopped)
    }

    /// Every status.
    pub const ALL: [Self; 15] = [
        Self::Done,
        Self::NoSuchVolume,
        Self::OutOfRange,
        Self::NoSpace,
        Self::Unreadable,
        Self::Stopped,
        Self::ShuttingDown,
        Self::NotOwner,
        Self::Offline,
        Self::ReservationConflict,
        Self::ReservationInvalid,
        Self::RegistrantsFull,
        Self::Preempted,
        Self::Late,
        Self::Differs,
    ];
}

/// What the payload of a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum ReplyContent {
    /// None.
    Nothing = 0,
    /// The bytes of a read.
    Bytes = 1,
    /// None: all bytes of the read are zeroes; the reply's `detail` says how many.
    Zeroes = 2,
    /// Extents: for each its bytes, at least one, and 1 if blocks are allocated for them, else 0, as two numbers of 64 bits.
    Extents = 3,
    /// A text for people: why the request has failed.
    Text = 4,
    /// Registrants and reservation, [as the log has them](crate::format::reservation).
    Reservation = 5,
    /// A pass: epoch and number, as two numbers of 64 bits.
    Pass = 6,
}

impl ReplyContent {
    /// Every content.
    pub const ALL: [Self; 7] =
        [Self::Nothing, Self::Bytes, Self::Zeroes, Self::Extents, Self::Text, Self::Reservation, Self::Pass];
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub id: u64,
    /// How it has ended.
    pub status: ReplyStatus,
    /// What the payload is.
    pub content: ReplyContent,
    /// See [`ReplyStatus::Unreadable`] and [`ReplyContent::Zeroes`]; else zero.
    pub detail: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReply {
    id: U64,
    detail: U64,
    status: U16,
    content: U16,
    reserved: [u8; 4],
}

/// An extent in the payload of a reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    length_bytes: U64,
    allocated: U64,
}

const _: () = assert!(size_of::<RawReply>() == 24);
const _: () = assert!(size_of::<RawExtent>() == 16);
const _: () = assert!(EXTENTS_MAX * size_of::<RawExtent>() <= PAYLOAD_BYTES_MAX);

impl Reply {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw = RawReply {
            id: self.id.into(),
            detail: self.detail.into(),
            status: (self.status as u16).into(),
            content: (self.content as u16).into(),
            reserved: [0; 4],
        };
        output.extend_from_slice(raw.as_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (raw, payload) = take::<RawReply>(bytes)?;
        let status = ReplyStatus::ALL.into_iter().find(|&status| status as u16 == raw.status.get());
        let content = ReplyContent::ALL.into_iter().find(|&content| content as u16 == raw.content.get());
        let (Some(status), Some(content)) = (status, content) else {
            return Err(FrameError::Malformed("an unknown kind of reply"));
        };
        need(raw.reserved == [0; 4], "reserved bytes are not zero")?;
        let reply = Self { id: raw.id.get(), status, content, detail: raw.detail.get() };
        reply.check(payload)?;
        Ok((reply, payload))
    }

    fn check(&self, payload: &[u8]) -> Result<(), FrameError> {
        let is_done = self.status == ReplyStatus::Done;
        let fits = match self.content {
            ReplyContent::Nothing => payload.is_empty(),
            ReplyContent::Bytes => is_done && !payload.is_empty(),
            ReplyContent::Zeroes => is_done && payload.is_empty() && self.detail > 0,
            ReplyContent::Extents => is_done && extents_of(payload).is_some(),
            ReplyContent::Reservation => is_done && Reservation::read(payload).is_ok(),
            ReplyContent::Pass => pass_of(payload).is_some(),
            ReplyContent::Text => !is_done && payload.len() <= TEXT_BYTES_MAX && str::from_utf8(payload).is_ok(),
        };
        need(fits, "a payload that is not the reply's")?;
        let has_pass = self.content == ReplyContent::Pass;
        need(has_pass == (self.status == ReplyStatus::Late), "a pass of another reply, or none")?;
        let has_detail = self.status == ReplyStatus::Unreadable || self.content == ReplyContent::Zeroes;
        need(has_detail || self.detail == 0, "a detail that is not the reply's")
    }
}

/// The pass in the payload of a reply.
#[must_use]
pub fn pass_of(payload: &[u8]) -> Option<Pass> {
    RawPass::ref_from_bytes(payload).ok()?.pass()
}

/// The payload of a reply with a pass.
#[must_use]
pub fn write_pass(pass: Pass) -> Vec<u8> {
    RawPass::new(Some(pass)).as_bytes().to_vec()
}

/// The extents in the payload of a reply: bytes of each, and whether blocks are allocated for them.
#[must_use]
pub fn extents_of(payload: &[u8]) -> Option<impl Iterator<Item = (u64, bool)>> {
    let extents = <[RawExtent]>::ref_from_bytes(payload).ok()?;
    let good = |extent: &RawExtent| extent.length_bytes.get() > 0 && extent.allocated.get() <= 1;
    let all_good = (1..=EXTENTS_MAX).contains(&extents.len()) && extents.iter().all(good);
    all_good.then(|| extents.iter().map(|extent| (extent.length_bytes.get(), extent.allocated.get() == 1)))
}

/// Appends an extent to the payload of a reply.
pub fn write_extent(length_bytes: u64, allocated: bool, payload: &mut Vec<u8>) {
    let raw = RawExtent { length_bytes: length_bytes.into(), allocated: u64::from(allocated).into() };
    payload.extend_from_slice(raw.as_bytes());
}
