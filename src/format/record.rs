//! One record of the change log: a header of 128 bytes and a body.
//!
//! ```text
//!   0 magic "TWLR"      32 stable_lsn         72 request_id
//!   4 version           40 object             80 body_checksum
//!   5 kind              48 offset_bytes       88 pool_tag
//!   6 flags             56 argument           96 reserved, zero
//!   8 lane              64 time_ns           120 header_checksum (seeded with lsn)
//!  10 reserved, zero                         128 body: payload, then zeroes to a multiple of 128
//!  12 payload_bytes
//!  16 epoch
//!  24 lsn
//! ```
//!
//! # Invariants
//!
//! 1. A record begins at a multiple of [`RECORD_ALIGN`], its `lsn` is its position, its length a multiple of [`RECORD_ALIGN`].
//! 2. Fields that a kind does not use are zero ([`Draft::check`]); the same function judges a change before it is logged and
//!    after it was read, so that nothing is logged that replay would refuse (rule R8).
//! 3. `stable_lsn <= lsn`: records before it were stable (rule R1) when this one was made, so they may have been answered. That
//!    is what tells a damaged record from a torn tail.
//! 4. The body of a `Pad` means nothing, is not checked and need not have been written.

use crate::{
    base::{
        Epoch, LaneIndex, Lsn, ObjectId, PoolId, checksum,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX, NAME_BYTES_MAX, VOLUME_BYTES_MAX},
        planted,
    },
    format::{Unverified, Verify, reservation},
};
use std::mem::{offset_of, size_of};
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Records begin and end on multiples of this: two cache lines, which is what adjacent-line prefetch and one header cover.
pub const RECORD_ALIGN: u64 = 128;

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: u64 = 128;

/// Bytes of the longest record that carries a payload.
pub const RECORD_BYTES_MAX: u64 = RECORD_HEADER_BYTES + CHANGE_BYTES_MAX;

/// Flag of [`RecordKind::WriteZeroes`]: blocks keep their space.
pub const FLAG_KEEP_ALLOCATED: u16 = 1;

/// In `flags` of a create record: the volume's logical blocks have 512 bytes; without it 4096.
pub const FLAG_BLOCKS_512: u16 = 2;

const MAGIC: [u8; 4] = *b"TWLR";
const VERSION: u8 = 1;

const _: () = assert!(CHANGE_BYTES_MAX.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(CHANGE_BYTES_MAX <= u32::MAX as u64);

/// Bytes of a record whose payload has `payload_bytes`.
#[must_use]
pub const fn record_bytes(payload_bytes: u64) -> u64 {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(RECORD_ALIGN)
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Fills space up to a unit of the log memory or the end of the ring.
    Pad = 1,
    /// Nothing happened; its `stable_lsn` proves what may have been answered before it.
    Mark = 2,
    /// Whole aligned blocks are replaced by the payload.
    Block = 3,
    /// Bytes of any alignment are replaced by the payload.
    Write = 4,
    /// `argument` bytes are not needed any more.
    Discard = 5,
    /// `argument` bytes become zeroes.
    WriteZeroes = 6,
    /// A volume of `argument` bytes is made, named by the payload.
    Create = 7,
    /// The volume's size becomes `argument` bytes.
    Resize = 8,
    /// The volume goes.
    Delete = 9,
    /// Registrants and reservation of the volume become what the payload says.
    Reserve = 10,
}

impl RecordKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Pad,
        Self::Mark,
        Self::Block,
        Self::Write,
        Self::Discard,
        Self::WriteZeroes,
        Self::Create,
        Self::Resize,
        Self::Delete,
        Self::Reserve,
    ];

    /// Whether replay performs it.
    #[must_use]
    pub fn is_change(self) -> bool {
        !matches!(self, Self::Pad | Self::Mark)
    }

    /// Its name for people: lower case, words joined by `-`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pad => "pad",
            Self::Mark => "mark",
            Self::Block => "block",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::Create => "create",
            Self::Resize => "resize",
            Self::Delete => "delete",
            Self::Reserve => "reserve",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A change as its author states it; the log adds position, epoch and checksums.
///
/// | kind | `offset_bytes` | `argument` | payload | `flags` |
/// |---|---|---|---|---|
/// | `Block` | multiple of 4096 | 0 | 1 or more whole blocks | 0 |
/// | `Write` | any | 0 | 1 byte or more | 0 |
/// | `Discard` | any | length, 1 or more | - | 0 |
/// | `WriteZeroes` | any | length, 1 or more | - | 0 or [`FLAG_KEEP_ALLOCATED`] |
/// | `Create` | 0 | size | name, 1 to 64 bytes | 0 or [`FLAG_BLOCKS_512`] |
/// | `Resize` | 0 | new size | - | 0 |
/// | `Delete` | 0 | 0 | - | 0 |
/// | `Reserve` | 0 | 0 | a [state](super::reservation) | 0 |
///
/// No range reaches beyond [`VOLUME_BYTES_MAX`], no payload is longer than [`CHANGE_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What is done.
    pub kind: RecordKind,
    /// To which object.
    pub object: ObjectId,
    /// First byte of the object.
    pub offset_bytes: u64,
    /// Length of a range or a new size, in bytes.
    pub argument: u64,
    /// `FLAG_*`.
    pub flags: u16,
    /// Nanoseconds since the Unix epoch: for people who read the log, never for decisions.
    pub time_ns: u64,
    /// The request that it came with: for people who read the log, and the name of a forwarded change
    /// ([`ForwardId`](crate::base::ForwardId)), which tells whether it was performed.
    pub request_id: u64,
}

impl Draft {
    /// A record that changes nothing.
    #[must_use]
    pub(crate) fn without_change(kind: RecordKind, time_ns: u64) -> Self {
        assert!(!kind.is_change());
        Self { kind, object: ObjectId(0), offset_bytes: 0, argument: 0, flags: 0, time_ns, request_id: 0 }
    }

    /// Whether a record may say this with a payload of `payload_bytes`: the table above.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence.
    pub fn check(&self, payload_bytes: u64) -> Result<(), &'static str> {
        let need = |good: bool, wrong: &'static str| if good { Ok(()) } else { Err(wrong) };
        use RecordKind::{Block, Create, Delete, Reserve, Write};
        let has_payload = matches!(self.kind, Block | Write | Create | Reserve);
        let has_argument = !matches!(self.kind, Block | Write | Delete | Reserve);
        let flags_allowed = match self.kind {
            RecordKind::WriteZeroes => FLAG_KEEP_ALLOCATED,
            Create => FLAG_BLOCKS_512,
            _ => 0,
        };
        need(self.flags & !flags_allowed == 0, "has flags that its kind does not know")?;
        if self.kind.is_change() {
            need(payload_bytes <= CHANGE_BYTES_MAX, "has a payload above the limit of one change")?;
            need((payload_bytes > 0) == has_payload, "has a payload without need or lacks one")?;
            need(has_argument || self.argument == 0, "has an argument that its kind does not know")?;
        } else {
            let blank = Self::without_change(self.kind, self.time_ns);
            need(*self == blank, "changes nothing but names an object, a range or a request")?;
            return need(self.kind == RecordKind::Pad || payload_bytes == 0, "is a mark with a payload");
        }
        match self.kind {
            Block => {
                let whole = self.offset_bytes.is_multiple_of(BLOCK_BYTES) && payload_bytes.is_multiple_of(BLOCK_BYTES);
                need(whole, "is not made of whole blocks")?;
                need(in_volume(self.offset_bytes, payload_bytes), "reaches beyond the largest volume")
            }
            Write => need(in_volume(self.offset_bytes, payload_bytes), "reaches beyond the largest volume"),
            RecordKind::Discard | RecordKind::WriteZeroes => {
                need(self.argument > 0, "has an empty range")?;
                need(in_volume(self.offset_bytes, self.argument), "reaches beyond the largest volume")
            }
            Reserve => {
                need(self.offset_bytes == 0, "has an offset that its kind does not know")?;
                need(reservation::is_valid_length(payload_bytes), "has the length of no reservation")
            }
            _ => {
                need(self.offset_bytes == 0, "has an offset that its kind does not know")?;
                need(self.argument <= VOLUME_BYTES_MAX, "has a size above the largest volume")?;
                need(payload_bytes <= NAME_BYTES_MAX as u64, "has a name that is too long")
            }
        }
    }
}

fn in_volume(offset_bytes: u64, length_bytes: u64) -> bool {
    offset_bytes.checked_add(length_bytes).is_some_and(|end| end <= VOLUME_BYTES_MAX)
}

/// Where and in whose name a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// The pool.
    pub pool: PoolId,
    /// The lane.
    pub lane: LaneIndex,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Its position.
    pub lsn: Lsn,
    /// Records before this position are stable (rule R1).
    pub stable_lsn: Lsn,
}

/// A record as it lies in the log: header, first 128 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRecord {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    flags: U16,
    lane: U16,
    reserved_lane: [u8; 2],
    payload_bytes: U32,
    epoch: U64,
    lsn: U64,
    stable_lsn: U64,
    object: U64,
    offset_bytes: U64,
    argument: U64,
    time_ns: U64,
    request_id: U64,
    body_checksum: U64,
    pool_tag: U64,
    reserved: [u8; 24],
    header_checksum: U64,
}

const _: () = assert!(size_of::<RawRecord>() as u64 == RECORD_HEADER_BYTES);
const _: () = assert!(offset_of!(RawRecord, epoch) == 16);
const _: () = assert!(offset_of!(RawRecord, stable_lsn) == 32);
const _: () = assert!(offset_of!(RawRecord, body_checksum) == 80);
const _: () = assert!(offset_of!(RawRecord, reserved) == 96);
const _: () = assert!(offset_of!(RawRecord, header_checksum) == HEADER_CHECKED_BYTES);

/// The header checksum covers everything before itself.
const HEADER_CHECKED_BYTES: usize = 120;

impl RawRecord {
    /// The header of a record with this body: payload of `payload_bytes`, filled with zeroes to a multiple of [`RECORD_ALIGN`].
    ///
    /// # Panics
    /// When the draft or the body breaks invariant 2.
    #[must_use]
    pub fn new(place: &RecordPlace, draft: &Draft, payload_bytes: u64, body: &[u8]) -> Self {
        assert_ne!(draft.kind, RecordKind::Pad, "a pad has no body to check");
        assert_eq!(body.len() as u64, record_bytes(payload_bytes) - RECORD_HEADER_BYTES, "the body is filled up");
        Self::build(place, draft, payload_bytes, checksum(place.lsn.0, body))
    }

    /// The header of a pad of `total_bytes`, header included.
    #[must_use]
    pub fn pad(place: &RecordPlace, time_ns: u64, total_bytes: u64) -> Self {
        assert!(total_bytes >= RECORD_HEADER_BYTES && total_bytes.is_multiple_of(RECORD_ALIGN), "a pad is a record");
        let draft = Draft::without_change(RecordKind::Pad, time_ns);
        Self::build(place, &draft, total_bytes - RECORD_HEADER_BYTES, 0)
    }

    fn build(place: &RecordPlace, draft: &Draft, payload_bytes: u64, body_checksum: u64) -> Self {
        assert!(place.lsn.0.is_multiple_of(RECORD_ALIGN), "records are aligned");
        assert!(place.stable_lsn <= place.lsn, "what is stable lies before the record");
        let checked = draft.check(payload_bytes);
        assert!(checked.is_ok(), "a {} record that {}", draft.kind.name(), checked.err().unwrap_or_default());
        let mut raw = Self {
            magic: MAGIC,
            version: VERSION,
            kind: draft.kind as u8,
            flags: draft.flags.into(),
            lane: place.lane.0.into(),
            reserved_lane: [0; 2],
            payload_bytes: u32::try_from(payload_bytes)
                .expect("bounded by the change and by the rest of a ring")
                .into(),
            epoch: place.epoch.0.into(),
            lsn: place.lsn.0.into(),
            stable_lsn: place.stable_lsn.0.into(),
            object: draft.object.0.into(),
            offset_bytes: draft.offset_bytes.into(),
            argument: draft.argument.into(),
            time_ns: draft.time_ns.into(),
            request_id: draft.request_id.into(),
            body_checksum: body_checksum.into(),
            pool_tag: pool_tag(place.pool).into(),
            reserved: [0; 24],
            header_checksum: 0.into(),
        };
        raw.header_checksum = raw.checksum().into();
        raw
    }

    /// Whether a search for records should look closer: true for every record, and rarely for anything else.
    #[must_use]
    pub fn looks_like_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    fn checksum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum(self.lsn.get(), bytes.get(..HEADER_CHECKED_BYTES).unwrap_or(bytes))
    }

    fn understand(&self) -> Result<RecordHeader, &'static str> {
        let need = |good: bool, wrong: &'static str| if good { Ok(()) } else { Err(wrong) };
        need(self.version == VERSION, "has a version that this program does not know")?;
        need(self.reserved_lane == [0; 2] && self.reserved == [0; 24], "uses bytes that are reserved")?;
        let kind = RecordKind::from_byte(self.kind).ok_or("has a kind that this program does not know")?;
        let draft = Draft {
            kind,
            object: ObjectId(self.object.get()),
            offset_bytes: self.offset_bytes.get(),
            argument: self.argument.get(),
            flags: self.flags.get(),
            time_ns: self.time_ns.get(),
            request_id: self.request_id.get(),
        };
        let payload_bytes = u64::from(self.payload_bytes.get());
        draft.check(payload_bytes)?;
        let padded = payload_bytes.is_multiple_of(RECORD_ALIGN) && self.body_checksum.get() == 0;
        need(kind != RecordKind::Pad || padded, "is a pad of odd length")?;
        need(self.lsn.get().is_multiple_of(RECORD_ALIGN), "has a position that is not aligned")?;
        need(self.stable_lsn <= self.lsn, "claims that later records are stable")?;
        let end = self.lsn.get().checked_add(record_bytes(payload_bytes)).ok_or("ends beyond every position")?;
        Ok(RecordHeader {
            lane: LaneIndex(self.lane.get()),
            epoch: Epoch(self.epoch.get()),
            lsn: Lsn(self.lsn.get()),
            end: Lsn(end),
            stable_lsn: Lsn(self.stable_lsn.get()),
            payload_bytes,
            body_checksum: self.body_checksum.get(),
            draft,
        })
    }
}

/// What a reader of a lane knows beforehand.
#[derive(Clone, Copy, Debug)]
pub struct RecordExpected {
    /// The pool whose log it reads.
    pub pool: PoolId,
    /// The lane it reads.
    pub lane: LaneIndex,
}

impl Verify for RawRecord {
    type Expected<'a> = RecordExpected;
    type Verified = RecordHeader;
    type Error = RecordFault;

    /// Whether this is the header of a record of this pool and lane. Its position and epoch are for the caller to compare.
    fn verify(&self, expected: &RecordExpected) -> Result<RecordHeader, RecordFault> {
        if self.magic != MAGIC {
            return Err(RecordFault::NotARecord);
        }
        if self.header_checksum.get() != self.checksum() {
            return Err(RecordFault::HeaderDamaged);
        }
        if self.pool_tag.get() != pool_tag(expected.pool) {
            return Err(RecordFault::OtherPool);
        }
        if self.lane.get() != expected.lane.0 {
            return Err(RecordFault::OtherLane(LaneIndex(self.lane.get())));
        }
        self.understand().map_err(|what| RecordFault::Unsupported {
            lsn: Lsn(self.lsn.get()),
            epoch: Epoch(self.epoch.get()),
            what,
        })
    }
}

/// The checked header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Its lane.
    pub lane: LaneIndex,
    /// Its author's epoch.
    pub epoch: Epoch,
    /// Its position.
    pub lsn: Lsn,
    /// Position of the next record.
    pub end: Lsn,
    /// Records before this position were stable when it was made.
    pub stable_lsn: Lsn,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// Checksum of its body; zero for a pad.
    pub body_checksum: u64,
    /// What it says.
    pub draft: Draft,
}

impl RecordHeader {
    /// Reads and checks the header at the start of `bytes`.
    ///
    /// # Errors
    /// Why this is not the header of a record of this pool and lane.
    pub fn read(bytes: &[u8], expected: &RecordExpected) -> Result<Self, RecordFault> {
        Unverified::<RawRecord>::read(bytes).ok_or(RecordFault::NotARecord)?.verify(expected)
    }

    /// Bytes of the body that [`Self::payload`] needs: none for a pad, whose body means nothing.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        if self.draft.kind == RecordKind::Pad { 0 } else { self.end.0 - self.lsn.0 - RECORD_HEADER_BYTES }
    }

    /// The payload in `body`, which has [`Self::body_bytes`].
    ///
    /// # Errors
    /// [`RecordFault::BodyDamaged`] when the checksum does not match or the filling is not zero.
    pub fn payload<'a>(&self, body: &'a [u8]) -> Result<&'a [u8], RecordFault> {
        if self.draft.kind == RecordKind::Pad {
            return Ok(&[]);
        }
        let is_whole = checksum(self.lsn.0, body) == self.body_checksum || planted::is("record-body-not-checked");
        if body.len() as u64 != self.body_bytes() || !is_whole {
            return Err(RecordFault::BodyDamaged);
        }
        let payload_bytes = usize::try_from(self.payload_bytes).map_err(|_| RecordFault::BodyDamaged)?;
        let (payload, filling) = body.split_at_checked(payload_bytes).ok_or(RecordFault::BodyDamaged)?;
        if filling.iter().any(|&byte| byte != 0) {
            return Err(RecordFault::BodyDamaged);
        }
        Ok(payload)
    }
}

/// Why bytes are not a record of this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordFault {
    /// No record was ever written here, or its first bytes are gone.
    #[error("no record")]
    NotARecord,
    /// The header's checksum does not match.
    #[error("a record whose header is damaged")]
    HeaderDamaged,
    /// The body's checksum does not match.
    #[error("a record whose payload is damaged")]
    BodyDamaged,
    /// A whole record of another pool.
    #[error("a record of another pool")]
    OtherPool,
    /// A whole record of another lane.
    #[error("a record of lane {0}")]
    OtherLane(LaneIndex),
    /// A whole record of another position: an earlier lap, or a misdirected write.
    #[error("a record of position {0}")]
    OtherPosition(Lsn),
    /// A whole record of a former owner.
    #[error("a record of epoch {0}, which is over")]
    OlderEpoch(Epoch),
    /// A whole record that reaches into the lap after the one that is read.
    #[error("a record that reaches into the next lap")]
    NextLap,
    /// A whole record that this program cannot perform: a newer program or a defect wrote it.
    #[error("a whole record that {what}")]
    Unsupported {
        /// Its position.
        lsn: Lsn,
        /// Its epoch.
        epoch: Epoch,
        /// What it does that is not known, as the rest of a sentence.
        what: &'static str,
    },
}

/// A checked record with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Its position.
    pub lsn: Lsn,
    /// Position of the next record.
    pub end: Lsn,
    /// Its author's epoch.
    pub epoch: Epoch,
    /// Its lane.
    pub lane: LaneIndex,
    /// Records before this position were stable when it was made.
    pub stable_lsn: Lsn,
    /// What it says.
    pub draft: Draft,
    /// The payload.
    pub payload: Vec<u8>,
}

impl OwnedRecord {
    /// The bytes of the record as they stand in the log of `pool`.
    #[must_use]
    pub fn to_bytes(&self, pool: PoolId) -> Vec<u8> {
        let Self { lsn, end, epoch, lane, stable_lsn, draft, payload } = self;
        let place = RecordPlace { pool, lane: *lane, epoch: *epoch, lsn: *lsn, stable_lsn: *stable_lsn };
        let mut body = payload.clone();
        body.resize(body.len().next_multiple_of(usize::try_from(RECORD_ALIGN).expect("small")), 0);
        let mut bytes = RawRecord::new(&place, draft, payload.len() as u64, &body).as_bytes().to_vec();
        bytes.append(&mut body);
        assert_eq!(bytes.len() as u64, end.0 - lsn.0, "a record ends where the next one begins");
        bytes
    }

    /// The record whose header is `header`, with its body.
    ///
    /// # Errors
    /// [`RecordFault::BodyDamaged`].
    pub fn new(header: &RecordHeader, body: &[u8]) -> Result<Self, RecordFault> {
        let payload = header.payload(body)?.to_vec();
        let RecordHeader { lsn, end, epoch, lane, stable_lsn, draft, .. } = *header;
        Ok(Self { lsn, end, epoch, lane, stable_lsn, draft, payload })
    }
}

/// The low half of the pool's id: enough to tell a log of another pool, whose ids are random.
fn pool_tag(pool: PoolId) -> u64 {
    u64::try_from(pool.0 & u128::from(u64::MAX)).expect("masked to 64 bits")
}
