//! The bytes between the two nodes of a pair, and nothing else: no state, no input or output, no policy.
//!
//! ```text
//!   0 magic "TWLF"     8 body_bytes          24 pool (128 bits)   48 body_checksum
//!   4 version         12 reserved, zero      40 epoch             56 header_checksum
//!   5 kind            16 sequence                                 64 body: ack_count acknowledgements of 48 bytes, then
//!   6 ack_count                                                      the fixed part of the kind, then its tail
//!   7 reserved, zero
//! ```
//!
//! # Invariants
//!
//! 1. Bytes from the partner are a [`SealedFrame`] until both checksums are true and every field is what its kind allows; only
//!    [`SealedFrame::open`] gives a [`Frame`] (rule R12). No flipped bit passes.
//! 2. Nothing is allocated, waited for or copied in proportion to a length before the header that claims it is verified, and the length is
//!    within the reader's limit.
//! 3. Both checksums are seeded with what both ends know: the frame's number on its connection, and from the third frame on a tag of both
//!    hellos. A frame that is lost, repeated, or from another connection is not taken for the next one.
//! 4. A frame about a pool names it and the epoch its sender has it at (rule R4); in the others both are zero.
//! 5. What a writer makes, a reader accepts: texts are shortened and cleaned when they are written.
//! 6. The layout of the header, and of magic and version in it, is for ever: a node of another version is told so.
//!
//! `docs/interconnect.md` draws the bytes of every kind.

#![deny(clippy::indexing_slicing)]

mod hello;
mod mirror;
mod notices;
mod pool;
mod request;
mod reservation;

pub use hello::{Heartbeat, Hello, PoolFacts, Refusal, RefusalReason, Role};
pub use mirror::{Ack, MirrorRefusal, MirrorRefusalReason};
pub use notices::{NOTICES_PER_FRAME_MAX, Notices};
pub use pool::{PoolState, VOLUMES_PER_FRAME_MAX, VolumeEntry, Volumes};
pub use request::{
    EXTENTS_MAX, Reply, ReplyContent, ReplyStatus, Request, RequestKind, extents_of, pass_of, write_extent, write_pass,
};
pub use reservation::{COMMAND_BYTES, read_command, write_command};

use crate::{
    base::{
        Epoch, LaneIndex, Lsn, PoolId,
        checksum::{checksum, checksum_of_parts},
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX, LANES_MAX, PAIR_POOLS_MAX},
    },
    format::{Unverified, Verify},
};
use std::mem::{offset_of, size_of};
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Version of this layout.
pub const VERSION: u8 = 5;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();

/// Largest payload: the largest change with its header and padding, so that a batch that holds one change is one frame.
#[expect(clippy::cast_possible_truncation, reason = "about a megabyte")]
pub const PAYLOAD_BYTES_MAX: usize = (CHANGE_BYTES_MAX + 2 * BLOCK_BYTES) as usize;

/// Most acknowledgements of one frame: half of all lanes that a pair can have, so that two frames carry everything.
pub const ACKS_MAX: usize = PAIR_POOLS_MAX * LANES_MAX / 2;

/// Largest fixed part of a kind with a payload.
const FIXED_BYTES_MAX: usize = 64;

/// Largest frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + ACKS_MAX * mirror::ACK_BYTES + FIXED_BYTES_MAX + PAYLOAD_BYTES_MAX;

/// Largest frame from somebody who has not proved yet who he is: a hello of a pair with the most pools.
pub const GREETING_BYTES_MAX: usize = 1024;

/// Bytes of a text for people, as UTF-8 without control characters.
pub const TEXT_BYTES_MAX: usize = 256;

const MAGIC: [u8; 4] = *b"TWLF";
const HEADER_CHECKED_BYTES: usize = 56;

const _: () = assert!(HEADER_BYTES == 64);
const _: () = assert!(offset_of!(RawHeader, pool) == 24);
const _: () = assert!(offset_of!(RawHeader, header_checksum) == HEADER_CHECKED_BYTES);
const _: () = assert!(ACKS_MAX <= u8::MAX as usize);
const _: () = assert!(HEADER_BYTES + hello::BYTES_MAX <= GREETING_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < twinlog_device::net::INPUT_BYTES_MAX);

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who speaks.
    Hello = 1,
    /// Proof of the pair's key.
    Proof = 2,
    /// The sender agrees with everything in the other's hello.
    Welcome = 3,
    /// The sender does not, and leaves.
    Refusal = 4,
    /// The sender lives.
    Heartbeat = 5,
    /// The sender has given up other connections.
    PathClosed = 6,
    /// Nothing but acknowledgements.
    Acknowledgement = 7,
    /// Mirroring of a lane begins.
    MirrorBegin = 8,
    /// A batch of a lane's records.
    MirrorWrite = 9,
    /// A lane is not mirrored, and why.
    MirrorRefusal = 10,
    /// What the sender does with a pool.
    PoolState = 11,
    /// The sender wants the pool handed over to it.
    Ask = 12,
    /// Volumes of a pool.
    Volumes = 13,
    /// A client's request, forwarded to the owner.
    Request = 14,
    /// Its end.
    Reply = 15,
    /// What the receiver's hosts are to be told of reservations.
    Notices = 16,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Hello,
        Self::Proof,
        Self::Welcome,
        Self::Refusal,
        Self::Heartbeat,
        Self::PathClosed,
        Self::Acknowledgement,
        Self::MirrorBegin,
        Self::MirrorWrite,
        Self::MirrorRefusal,
        Self::PoolState,
        Self::Ask,
        Self::Volumes,
        Self::Request,
        Self::Reply,
        Self::Notices,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }

    /// Whether its frames name a pool and an epoch.
    #[must_use]
    pub fn names_pool(self) -> bool {
        self as u8 >= Self::MirrorBegin as u8
    }
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// [`Kind::Hello`].
    Hello(Box<Hello>),
    /// [`Kind::Proof`]: HMAC-SHA256 over both hellos.
    Proof([u8; 32]),
    /// [`Kind::Welcome`].
    Welcome,
    /// [`Kind::Refusal`].
    Refusal(Refusal),
    /// [`Kind::Heartbeat`].
    Heartbeat(Heartbeat),
    /// [`Kind::PathClosed`]: nothing that was sent on these is taken any more.
    PathClosed {
        /// Which path.
        path: u8,
        /// Number of the newest of its connections that is meant; with it every earlier one.
        connection: u64,
    },
    /// [`Kind::Acknowledgement`].
    Acknowledgement,
    /// [`Kind::MirrorBegin`]: from this position on every record of the lane follows.
    MirrorBegin {
        /// Which lane.
        lane: LaneIndex,
        /// Its next position.
        start: Lsn,
    },
    /// [`Kind::MirrorWrite`]: the payload goes into the ring at `start`.
    MirrorWrite {
        /// Which lane.
        lane: LaneIndex,
        /// Position of the first byte.
        start: Lsn,
        /// Position after the batch; beyond the last byte when a pad to the end of the ring closed it.
        end: Lsn,
    },
    /// [`Kind::MirrorRefusal`].
    MirrorRefusal(MirrorRefusal),
    /// [`Kind::PoolState`].
    PoolState(PoolState),
    /// [`Kind::Ask`].
    Ask,
    /// [`Kind::Volumes`].
    Volumes(Volumes),
    /// [`Kind::Request`]; a write's bytes are the payload.
    Request(Request),
    /// [`Kind::Reply`]; the bytes of a read or the extents are the payload.
    Reply(Reply),
    /// [`Kind::Notices`].
    Notices(Notices),
}

impl Message {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Proof(_) => Kind::Proof,
            Self::Welcome => Kind::Welcome,
            Self::Refusal(_) => Kind::Refusal,
            Self::Heartbeat(_) => Kind::Heartbeat,
            Self::PathClosed { .. } => Kind::PathClosed,
            Self::Acknowledgement => Kind::Acknowledgement,
            Self::MirrorBegin { .. } => Kind::MirrorBegin,
            Self::MirrorWrite { .. } => Kind::MirrorWrite,
            Self::MirrorRefusal(_) => Kind::MirrorRefusal,
            Self::PoolState(_) => Kind::PoolState,
            Self::Ask => Kind::Ask,
            Self::Volumes(_) => Kind::Volumes,
            Self::Request(_) => Kind::Request,
            Self::Reply(_) => Kind::Reply,
            Self::Notices(_) => Kind::Notices,
        }
    }

    /// Appends the fixed part, and a tail that is not a payload.
    fn write(&self, output: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => hello.write(output),
            Self::Proof(proof) => output.extend_from_slice(proof),
            Self::Welcome | Self::Acknowledgement | Self::Ask => {}
            Self::Refusal(refusal) => refusal.write(output),
            Self::Heartbeat(heartbeat) => heartbeat.write(output),
            Self::PathClosed { path, connection } => hello::write_path_closed(*path, *connection, output),
            Self::MirrorBegin { lane, start } => mirror::write_begin(*lane, *start, output),
            Self::MirrorWrite { lane, start, end } => mirror::write_write(*lane, *start, *end, output),
            Self::MirrorRefusal(refusal) => refusal.write(output),
            Self::PoolState(state) => state.write(output),
            Self::Volumes(volumes) => volumes.write(output),
            Self::Request(request) => request.write(output),
            Self::Reply(reply) => reply.write(output),
            Self::Notices(notices) => notices.write(output),
        }
    }

    /// The message of `kind` in `bytes`, and its payload. Every byte belongs to one of them.
    fn read(kind: Kind, bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (message, rest) = match kind {
            Kind::Hello => return whole(Self::Hello(Box::new(Hello::read(bytes)?))),
            Kind::Refusal => return whole(Self::Refusal(Refusal::read(bytes)?)),
            Kind::MirrorRefusal => return whole(Self::MirrorRefusal(MirrorRefusal::read(bytes)?)),
            Kind::PoolState => return whole(Self::PoolState(PoolState::read(bytes)?)),
            Kind::Volumes => return whole(Self::Volumes(Volumes::read(bytes)?)),
            Kind::Notices => return whole(Self::Notices(Notices::read(bytes)?)),
            Kind::MirrorWrite => return mirror::read_write(bytes),
            Kind::Request => return Request::read(bytes).map(|(request, payload)| (Self::Request(request), payload)),
            Kind::Reply => return Reply::read(bytes).map(|(reply, payload)| (Self::Reply(reply), payload)),
            Kind::Proof => take::<[u8; 32]>(bytes).map(|(proof, rest)| (Self::Proof(proof), rest))?,
            Kind::Welcome => (Self::Welcome, bytes),
            Kind::Acknowledgement => (Self::Acknowledgement, bytes),
            Kind::Heartbeat => Heartbeat::read(bytes).map(|(beat, rest)| (Self::Heartbeat(beat), rest))?,
            Kind::PathClosed => hello::read_path_closed(bytes)?,
            Kind::MirrorBegin => mirror::read_begin(bytes)?,
            Kind::Ask => (Self::Ask, bytes),
        };
        need(rest.is_empty(), "bytes are left over")?;
        Ok((message, rest))
    }
}

fn whole(message: Message) -> Result<(Message, &'static [u8]), FrameError> {
    Ok((message, &[]))
}

/// What both ends know of the next frame in one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    tag: u64,
    sequence: u64,
}

impl Seal {
    /// Binds the following frames to the connection that `tag` was made of.
    pub fn bind(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// The number of the next frame, from 0.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.sequence
    }

    /// Goes on to the next frame.
    pub fn advance(&mut self) {
        self.sequence += 1;
    }

    fn seed_of(self, sequence: u64) -> u64 {
        self.tag ^ sequence
    }
}

/// A frame to be written.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The pool and its epoch; zero for kinds that name none.
    pub pool: PoolId,
    /// As above.
    pub epoch: Epoch,
    /// At most [`ACKS_MAX`].
    pub acks: &'a [Ack],
    /// What it says.
    pub message: &'a Message,
}

impl Outgoing<'_> {
    /// Appends everything but the payload to `output`: the caller sends the parts of `payload` behind it.
    ///
    /// # Panics
    /// When there are too many acknowledgements, too large a payload, or a pool is named where none belongs.
    pub fn write(&self, seal: &mut Seal, payload: &[&[u8]], output: &mut Vec<u8>) {
        let kind = self.message.kind();
        let payload_bytes: usize = payload.iter().map(|part| part.len()).sum();
        assert!(self.acks.len() <= ACKS_MAX, "{} acknowledgements", self.acks.len());
        assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "a payload of {payload_bytes} bytes");
        assert_eq!(kind.names_pool(), self.pool != PoolId(0) && self.epoch != Epoch(0), "{kind:?} of {}", self.pool);
        let header_at = output.len();
        output.resize(header_at + HEADER_BYTES, 0);
        for ack in self.acks {
            ack.write(output);
        }
        self.message.write(output);
        let body = output.get(header_at + HEADER_BYTES..).unwrap_or_default();
        let body_bytes = body.len() + payload_bytes;
        let seed = seal.seed_of(seal.sequence);
        let parts = std::iter::once(body).chain(payload.iter().copied());
        let mut raw = RawHeader {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u8,
            ack_count: u8::try_from(self.acks.len()).expect("checked above"),
            reserved: 0,
            body_bytes: U32::new(u32::try_from(body_bytes).expect("bounded above")),
            reserved_word: U32::ZERO,
            sequence: seal.sequence.into(),
            pool: self.pool.0.into(),
            epoch: self.epoch.0.into(),
            body_checksum: checksum_of_parts(seed, parts).into(),
            header_checksum: U64::ZERO,
        };
        raw.header_checksum = raw.compute_checksum(seed).into();
        if let Some(place) = output.get_mut(header_at..header_at + HEADER_BYTES) {
            place.copy_from_slice(raw.as_bytes());
        }
        seal.advance();
    }
}

/// A frame, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The pool and its epoch; zero for kinds that name none.
    pub pool: PoolId,
    /// As above.
    pub epoch: Epoch,
    /// What it acknowledges.
    pub acks: Vec<Ack>,
    /// What it says.
    pub message: Message,
    /// The bytes that belong to it.
    pub payload: &'a [u8],
}

/// The header as it is sent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    ack_count: u8,
    reserved: u8,
    body_bytes: U32,
    reserved_word: U32,
    sequence: U64,
    pool: U128,
    epoch: U64,
    body_checksum: U64,
    header_checksum: U64,
}

impl RawHeader {
    fn compute_checksum(&self, seed: u64) -> u64 {
        let bytes = self.as_bytes();
        checksum(seed, bytes.get(..HEADER_CHECKED_BYTES).unwrap_or(bytes))
    }
}

/// What a reader knows beforehand.
struct Expected {
    seal: Seal,
    frame_bytes_max: usize,
}

/// A verified header.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: Kind,
    ack_count: usize,
    body_bytes: usize,
    pool: PoolId,
    epoch: Epoch,
    body_checksum: u64,
}

impl Verify for RawHeader {
    type Expected<'a> = Expected;
    type Verified = Header;
    type Error = FrameError;

    fn verify(&self, expected: &Expected) -> Result<Header, FrameError> {
        let sequence = self.sequence.get();
        if self.magic != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        if self.header_checksum.get() != self.compute_checksum(expected.seal.seed_of(sequence)) {
            return Err(FrameError::HeaderDamaged);
        }
        if self.version != VERSION {
            return Err(FrameError::OtherVersion(self.version));
        }
        if sequence != expected.seal.sequence {
            return Err(FrameError::OutOfOrder { expected: expected.seal.sequence, found: sequence });
        }
        let kind = Kind::from_byte(self.kind).ok_or(FrameError::UnknownKind(self.kind))?;
        let body_bytes = usize::try_from(self.body_bytes.get()).unwrap_or(usize::MAX);
        if body_bytes > expected.frame_bytes_max.saturating_sub(HEADER_BYTES) {
            return Err(FrameError::TooLong { bytes: body_bytes, max: expected.frame_bytes_max });
        }
        let (pool, epoch) = (PoolId(self.pool.get()), Epoch(self.epoch.get()));
        need(self.reserved == 0 && self.reserved_word == U32::ZERO, "reserved bytes are not zero")?;
        need(usize::from(self.ack_count) <= ACKS_MAX, "too many acknowledgements")?;
        let names = (pool != PoolId(0), epoch != Epoch(0));
        need(names == (kind.names_pool(), kind.names_pool()), "pool and epoch do not belong to its kind")?;
        let (ack_count, body_checksum) = (usize::from(self.ack_count), self.body_checksum.get());
        Ok(Header { kind, ack_count, body_bytes, pool, epoch, body_checksum })
    }
}

/// A whole frame whose header is verified and whose body is not.
#[derive(Debug)]
pub struct SealedFrame<'a> {
    header: Header,
    body: &'a [u8],
    seed: u64,
}

impl<'a> SealedFrame<'a> {
    /// The frame at the start of `input`, which is to be the next one by `seal` and at most `frame_bytes_max` long; `None` until
    /// all of it is there.
    ///
    /// # Errors
    /// Why this is no such frame.
    pub fn read(input: &'a [u8], seal: Seal, frame_bytes_max: usize) -> Result<Option<Self>, FrameError> {
        let Some(raw) = Unverified::<RawHeader>::read(input) else {
            // Whoever sends something else is told before there are enough bytes of it.
            let is_beginning = MAGIC.iter().zip(input).all(|(magic, byte)| magic == byte);
            return if is_beginning { Ok(None) } else { Err(FrameError::NotAFrame) };
        };
        let header = raw.verify(&Expected { seal, frame_bytes_max })?;
        let body = input.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes);
        Ok(body.map(|body| Self { header, body, seed: seal.seed_of(seal.sequence) }))
    }

    /// Bytes of the frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.header.body_bytes
    }

    /// Verifies the body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn open(self) -> Result<Frame<'a>, FrameError> {
        let Header { kind, ack_count, pool, epoch, body_checksum, .. } = self.header;
        if checksum(self.seed, self.body) != body_checksum {
            return Err(FrameError::BodyDamaged);
        }
        let mut rest = self.body;
        let mut acks = Vec::with_capacity(ack_count);
        for _ in 0..ack_count {
            let (ack, after) = Ack::read(rest)?;
            acks.push(ack);
            rest = after;
        }
        let (message, payload) = Message::read(kind, rest)?;
        need(payload.len() <= PAYLOAD_BYTES_MAX, "the payload is too long")?;
        Ok(Frame { pool, epoch, acks, message, payload })
    }
}

/// Why bytes are not the frame that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Another protocol.
    #[error("what arrived is not of this protocol")]
    NotAFrame,
    /// The header's checksum does not match.
    #[error("the header of a frame is damaged")]
    HeaderDamaged,
    /// The body's checksum does not match.
    #[error("the body of a frame is damaged")]
    BodyDamaged,
    /// A newer or older program.
    #[error("the other node speaks version {0} of the interconnect, this one {VERSION}")]
    OtherVersion(u8),
    /// A frame is missing or came twice.
    #[error("frame {found} came where frame {expected} was due")]
    OutOfOrder {
        /// Number of the next frame.
        expected: u64,
        /// Number of this one.
        found: u64,
    },
    /// A kind that this version does not have.
    #[error("frames of kind {0} are unknown")]
    UnknownKind(u8),
    /// Longer than is allowed now.
    #[error("a frame with a body of {bytes} bytes, where {max} bytes are allowed in all")]
    TooLong {
        /// Bytes of its body.
        bytes: usize,
        /// Bytes of the longest frame.
        max: usize,
    },
    /// Whole, yet it says what cannot be.
    #[error("a frame is whole but cannot be meant: {0}")]
    Malformed(&'static str),
}

fn need(good: bool, wrong: &'static str) -> Result<(), FrameError> {
    if good { Ok(()) } else { Err(FrameError::Malformed(wrong)) }
}

/// The structure at the start of `bytes`, and what follows.
fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<(T, &[u8]), FrameError> {
    T::read_from_prefix(bytes).map_err(|_| FrameError::Malformed("it is too short for its kind"))
}

/// A lane that can exist.
fn lane_of(raw: U16) -> Result<LaneIndex, FrameError> {
    need(usize::from(raw.get()) < LANES_MAX, "no node has so many lanes")?;
    Ok(LaneIndex(raw.get()))
}

/// A text for people: all of `bytes`.
fn text_of(bytes: &[u8]) -> Result<String, FrameError> {
    let text =
        str::from_utf8(bytes).ok().filter(|text| text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control));
    text.map(str::to_owned).ok_or(FrameError::Malformed("a text cannot be shown"))
}

/// Appends as much of `text` as a reader takes.
fn write_text(text: &str, output: &mut Vec<u8>) {
    let mut left = TEXT_BYTES_MAX;
    for letter in text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        let Some(after) = left.checked_sub(letter.len_utf8()) else { return };
        left = after;
        output.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(test)]
mod tests;
