//! What a front end asks of a volume, and what it gets.
//!
//! A front end submits a [`VolumeRequest`] to [`VolumeService`] and later polls its [`VolumeReply`]. Replies come in any
//! order. A reply to a change means that the change is stable (rule R1); to a read, that everything it returns is (rule R5).

use crate::{
    base::{BlockSize, HostId, LaneIndex, Lsn, ObjectId, Pass, limits::REGISTRANTS_MAX},
    format::reservation::Reservation,
    fs::reservation::{Notice, ReservationCommand},
};
use smallvec::SmallVec;
use std::{fmt, ops::Range, time::Duration};
use thiserror::Error;
use twinlog_device::{BLOCK_BYTES, BlockBuf, BlockPool, Landing, SharedBlock};

/// Names a request to its front end: which session, which request of it. The engine returns it unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestTag {
    /// The session (a connection's number).
    pub session: u64,
    /// The request within the session.
    pub request: u64,
}

/// The session of requests that the partner forwards: their number is its name of them ([`ForwardId`](crate::base::ForwardId)), and
/// their records carry it.
pub const FORWARDED_SESSION: u64 = u64::MAX;

/// The session of requests that have waited for their pool and are performed here; connections never get this far.
pub const WAITED_SESSION: u64 = u64::MAX - 1;

/// A request to a volume.
#[derive(Debug)]
pub struct VolumeRequest {
    /// Comes back with the reply.
    pub tag: RequestTag,
    /// Which volume.
    pub volume: ObjectId,
    /// Whose it is, to reservations; `None`: of a client that cannot register, and is treated as a host that has not.
    pub host: Option<HostId>,
    /// Of a change that is not performed where it came: what lets it be performed all the same. The front end has it from an earlier
    /// [`VolumeError::Late`], and what it uses it for has arrived since.
    pub pass: Option<Pass>,
    /// What to do.
    pub operation: VolumeOperation,
}

/// SHA-256 of bytes.
pub type ContentSum = [u8; 32];

/// What can be done with a volume. Ranges are in bytes, at most [`REQUEST_BYTES_MAX`](crate::base::limits::REQUEST_BYTES_MAX)
/// for `Read`, `Write` and `Cache`, unlimited within the volume for the rest; any alignment; never empty.
#[derive(Debug)]
pub enum VolumeOperation {
    /// Returns the bytes.
    Read(Range<u64>),
    /// Replaces the bytes. With `durable` (FUA) the reply means: survives power loss of everything.
    Write {
        /// The new bytes and where they go.
        payload: Payload,
        /// Force unit access.
        durable: bool,
    },
    /// Replaces the bytes if they are what the client expects, else fails with [`VolumeError::Differs`] and changes nothing. It is one change: nothing comes
    /// between the look and the write. The payload lies in one block of the pool: no more is atomic to those who read.
    CompareAndWrite {
        /// SHA-256 of what the bytes are to be before.
        expected: ContentSum,
        /// The new bytes and where they go.
        payload: Payload,
        /// Force unit access.
        durable: bool,
    },
    /// The reply means: every change answered before this request came survives power loss of everything.
    Flush,
    /// The bytes are not needed any more; whole blocks are freed and read as zeroes, the rest keeps its content.
    Discard {
        /// Which bytes.
        range: Range<u64>,
        /// Force unit access.
        durable: bool,
    },
    /// The bytes read as zeroes afterwards.
    WriteZeroes {
        /// Which bytes.
        range: Range<u64>,
        /// Whether blocks may be freed; otherwise their space stays reserved for later writes.
        may_free: bool,
        /// Force unit access.
        durable: bool,
    },
    /// Returns which ranges are allocated, from the start of `range`, in at most `extents_max` extents.
    BlockStatus {
        /// Which bytes.
        range: Range<u64>,
        /// At least one.
        extents_max: usize,
    },
    /// Brings the bytes into the cache; a hint.
    Cache(Range<u64>),
    /// Changes registrants or reservation, in the name of the request's host.
    Reserve(ReservationCommand),
    /// Returns them.
    Reservation,
}

impl VolumeOperation {
    /// Whether it leaves a record.
    #[must_use]
    pub fn is_change(&self) -> bool {
        use VolumeOperation::{CompareAndWrite, Discard, Reserve, Write, WriteZeroes};
        matches!(self, Write { .. } | CompareAndWrite { .. } | Discard { .. } | WriteZeroes { .. } | Reserve(_))
    }

    /// Whether bytes of the volume come with it, or are returned.
    #[must_use]
    pub fn carries_bytes(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write { .. } | Self::CompareAndWrite { .. })
    }
}

/// The bytes of a write, placed as they will lie in the volume's blocks: byte `offset_bytes + i` of the volume is byte
/// `(offset_bytes + i) mod 4096` of its block, so whole blocks need no copy. Bytes outside the range are unspecified.
#[derive(Debug)]
pub struct Payload {
    offset_bytes: u64,
    length_bytes: u64,
    blocks: Vec<BlockBuf>,
}

impl Payload {
    /// Room for a write of `range`, its content unspecified, or `None` while the pool of blocks is empty.
    #[must_use]
    pub fn allocate(pool: &BlockPool, range: Range<u64>) -> Option<Self> {
        assert!(range.start < range.end, "a write is not empty");
        let block_bytes = BLOCK_BYTES as u64;
        let block_count = range.end.div_ceil(block_bytes) - range.start / block_bytes;
        let blocks = pool.allocate_many(usize::try_from(block_count).expect("bounded by the request limit"))?;
        Some(Self { offset_bytes: range.start, length_bytes: range.end - range.start, blocks })
    }

    /// A payload for `range` in blocks that the caller has: one for each that the range touches.
    #[must_use]
    pub fn new(range: Range<u64>, blocks: Vec<BlockBuf>) -> Self {
        let block_bytes = BLOCK_BYTES as u64;
        let block_count = range.end.div_ceil(block_bytes) - range.start / block_bytes;
        assert_eq!(blocks.len() as u64, block_count, "a block for each that the range touches");
        Self { offset_bytes: range.start, length_bytes: range.end - range.start, blocks }
    }

    /// The bytes of the volume that it replaces.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset_bytes..self.offset_bytes + self.length_bytes
    }

    /// The longest contiguous part from byte `position` (0 to length - 1) of the payload, to be filled.
    pub fn part_mut(&mut self, position: u64) -> &mut [u8] {
        assert!(position < self.length_bytes, "the position is inside the payload");
        let (block, within, length) = self.part(position);
        &mut self.blocks[block][within..within + length]
    }

    /// Copies `bytes` to `position` of the payload.
    pub fn fill(&mut self, mut position: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let part = self.part_mut(position);
            let length = part.len().min(bytes.len());
            part[..length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            position += length as u64;
        }
    }

    /// Becomes what bytes `part` of the payload can be received into; with its blocks it is made [again](Self::new).
    #[must_use]
    pub fn into_landing(self, part: Range<u64>) -> Landing {
        assert!(part.end <= self.length_bytes, "the part lies in the payload");
        let first = self.offset_bytes % BLOCK_BYTES as u64;
        let place = |position: u64| usize::try_from(first + position).expect("bounded by the request limit");
        Landing::new(self.blocks, place(part.start)..place(part.end))
    }

    /// Gives bytes `part` of the payload to `take`, in pieces.
    pub fn each_part(&self, part: Range<u64>, mut take: impl FnMut(&[u8])) {
        let mut position = part.start;
        while position < part.end {
            let (block, within, length) = self.part(position);
            let bytes = &self.blocks[block][within..within + length];
            let wanted = usize::try_from(part.end - position).map_or(length, |wanted| wanted.min(length));
            take(&bytes[..wanted]);
            position += wanted as u64;
        }
    }

    /// A copy of the bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < self.length_bytes {
            let (block, within, length) = self.part(bytes.len() as u64);
            bytes.extend_from_slice(&self.blocks[block][within..within + length]);
        }
        bytes
    }

    /// The blocks, first to last, and nothing else: for the engine.
    #[must_use]
    pub fn into_blocks(self) -> Vec<BlockBuf> {
        self.blocks
    }

    fn part(&self, position: u64) -> (usize, usize, usize) {
        let block_bytes = BLOCK_BYTES as u64;
        let place = self.offset_bytes % block_bytes + position;
        let within = place % block_bytes;
        let length = (block_bytes - within).min(self.length_bytes - position);
        let small = |number: u64| usize::try_from(number).expect("inside a request");
        (small(place / block_bytes), small(within), small(length))
    }
}

/// The end of a request.
#[derive(Debug)]
pub struct VolumeReply {
    /// The request's.
    pub tag: RequestTag,
    /// What came of it.
    pub result: Result<ReplyData, VolumeError>,
}

/// What a successful request returns.
#[derive(Debug)]
pub enum ReplyData {
    /// Nothing but success.
    Done,
    /// The bytes of a read, in order.
    Data(DataRuns),
    /// Extents from the start of the range, without gaps; neighbours differ.
    Extents(Vec<Extent>),
    /// Registrants and reservation.
    Reservation(Box<Reservation>),
}

/// What a read returns: of most reads, one block.
pub type DataRuns = SmallVec<[DataRun; 1]>;

/// Part of what a read returns.
#[derive(Clone, Debug)]
pub enum DataRun {
    /// Part of a block.
    Block(SharedBlock, Range<usize>),
    /// This many zero bytes that no block is allocated for.
    Zeroes(u64),
}

/// Consecutive bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least one.
    pub length_bytes: u64,
    /// Whether blocks are allocated for them; otherwise they are a hole and read as zeroes.
    pub allocated: bool,
}

/// Why a request failed. Each front end has its protocol's own number for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VolumeError {
    /// The volume does not exist, or was deleted while the request waited.
    #[error("no such volume")]
    NoSuchVolume,
    /// Part of the range lies beyond the volume's end.
    #[error("the range lies beyond the end of the volume")]
    OutOfRange,
    /// The pool has no room for the change.
    #[error("the pool is out of space")]
    NoSpace,
    /// A block cannot be read: device error or wrong checksum, and no other plex has it.
    #[error("block {block} of the volume cannot be read: {reason}")]
    Unreadable {
        /// Index of the block in the volume.
        block: u64,
        /// The device's error or the checksum's.
        reason: String,
    },
    /// The change log or a device failed: nothing more is accepted.
    #[error("the pool stopped: {0}")]
    Stopped(String),
    /// The same at a node of a pair: its partner may serve the pool, and only asking again can tell whether the request was performed. To a client it is as if
    /// the node had died: its connection ends, and it asks again.
    #[error("the pool stopped here with the request under way: {0}")]
    Interrupted(String),
    /// Neither node of the pair has served the pool for as long as a request waits.
    #[error("neither node has served the pool for {} s", .0.as_secs())]
    Unserved(Duration),
    /// Recovery could not perform a record of the volume's: it, and all later ones, are held until somebody acts.
    #[error("the volume is offline: {0}")]
    Offline(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Another host holds the volume reserved, or the host has not registered with the key that it names.
    #[error("another host has reserved the volume, or this one has not registered with that key")]
    ReservationConflict,
    /// What the host asks of a reservation cannot be.
    #[error("this cannot be asked of a reservation")]
    ReservationInvalid,
    /// So many hosts have registered with the volume that there is no room for one more.
    #[error("{REGISTRANTS_MAX} hosts have registered with the volume, and there is no room for one more")]
    RegistrantsFull,
    /// The bytes are not what a compare-and-write expects: nothing was written.
    #[error("the volume holds other bytes than the client expects")]
    Differs,
    /// Another host has preempted this one and wanted its commands to end.
    #[error("another host has preempted this one, and ended its commands")]
    Preempted,
    /// A host's change that did not come straight to the node that serves, and may be older than what the host was answered there: it is never performed. What
    /// arrives of the host from now on may be sent with this pass.
    #[error("the host may have gone on at the other node since it sent this: it is to be sent again")]
    Late(Pass),
}

/// An exported volume, for front ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id, for requests.
    pub id: ObjectId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// In what hosts address it.
    pub block_size: BlockSize,
    /// Why nobody can use it; `None`: it is online.
    pub offline: Option<OfflineAt>,
}

/// How large a volume is, and in what hosts address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeShape {
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Its logical blocks.
    pub block_size: BlockSize,
}

impl VolumeInfo {
    /// How large it is.
    #[must_use]
    pub fn shape(&self) -> VolumeShape {
        VolumeShape { size_bytes: self.size_bytes, block_size: self.block_size }
    }
}

/// What keeps a volume offline: the first of its records that could not be performed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineAt {
    /// The lane of the change log in which it stood.
    pub lane: LaneIndex,
    /// Its position there.
    pub lsn: Lsn,
    /// Why it could not.
    pub why: String,
}

impl fmt::Display for OfflineAt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lane, lsn, why } = self;
        write!(formatter, "the record of log lane {lane} at position {lsn} could not be performed: {why}")
    }
}

/// Where requests to a volume go, as far as a node knows now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// They are performed here.
    Here,
    /// They are forwarded to the partner, which says that it serves the pool.
    Partner,
    /// They wait until one of both is the case.
    #[default]
    Nobody,
}

/// A host is to be told of what another one has done with a volume's reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationNotice {
    /// The host.
    pub host: HostId,
    /// The volume.
    pub volume: ObjectId,
    /// What.
    pub notice: Notice,
}

/// Notices that wait in one place: eight commands that all registrants of a volume hear of.
pub const NOTICES_MAX: usize = 8 * REGISTRANTS_MAX;

/// What a node offers its front ends.
pub trait VolumeService {
    /// Where payloads come from.
    fn blocks(&self) -> &BlockPool;

    /// Every volume, by name.
    fn volumes(&self) -> Vec<VolumeInfo>;

    /// The volume called `name`; the empty name is the node's own (its first) volume.
    fn volume(&self, name: &str) -> Option<VolumeInfo>;

    /// How large a volume is now; `None` once it is deleted.
    fn shape(&self, id: ObjectId) -> Option<VolumeShape>;

    /// The size of a volume now, in bytes; `None` once it is deleted.
    fn size_bytes(&self, id: ObjectId) -> Option<u64> {
        self.shape(id).map(|shape| shape.size_bytes)
    }

    /// Where requests to this volume, or to any other of its pool, go.
    fn reach(&self, volume: ObjectId) -> Reach;

    /// How often this node began to serve each of the two pools that it may have, in the order of [`PoolSlot::ALL`](super::pools::PoolSlot::ALL). What had
    /// arrived by then may be older than what its host was answered elsewhere.
    fn openings(&self) -> [u64; 2];

    /// Whether a further request to this volume may be submitted now; front ends stop reading from its clients while not.
    fn has_room(&self, volume: ObjectId) -> bool;

    /// Starts a request. The reply comes from `poll_reply`, never from within this call.
    fn submit(&mut self, request: VolumeRequest);

    /// A session of this front end is over: what it has submitted and nobody has begun is not performed. Every request is replied to all the same.
    fn abandon(&mut self, session: u64);

    /// Whether everything that was submitted has reached the queue from which it is performed, or that of the forwarder: whatever is submitted there
    /// from now on, at whichever reactor, comes behind it.
    fn has_handed_on(&self) -> bool;

    /// The next reply for this front end, if one is ready.
    fn poll_reply(&mut self) -> Option<VolumeReply>;

    /// What a host is to be told, wherever it is connected, of a reservation that is stable. Each is taken by the front end of one reactor.
    fn poll_notice(&mut self) -> Option<ReservationNotice>;

    /// How many notices were lost since this was last asked, of hosts that nobody knows any more.
    fn take_lost_notices(&mut self) -> u64 {
        0
    }
}
