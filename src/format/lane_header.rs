//! The first block of a lane's region: whose log this is.
//!
//! ```text
//!   0 magic "TWLLANE1"        24 pool id (128 bits)       56 portion id (128 bits)
//!   8 version                 40 role (1 own, 2 mirror)   72 reserved, zero
//!  12 features incompatible   42 lane                   4088 checksum of all before
//!  16 features read-only      44 lane_count
//!  20 features compatible     46 reserved, zero
//!                             48 ring_bytes
//! ```
//!
//! Version 1 had no portion id; its lanes have the id zero.
//!
//! It is written once, when the lane is formatted, and never changes: a torn write of it can only happen before the pool exists.

use crate::{
    base::{
        LaneIndex, PoolId, PortionId, checksum,
        limits::{BLOCK_BYTES, LANES_MAX},
        planted,
    },
    format::{Unverified, Verify},
};
use std::{
    fmt,
    mem::{offset_of, size_of},
};
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Bytes of the lane header; the ring begins after it.
pub const LANE_HEADER_BYTES: u64 = BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"TWLLANE1";
const VERSION: u32 = 2;
const VERSION_WITHOUT_PORTION: u32 = 1;
const RESERVED_BYTES: usize = 4016;

/// Whose changes a portion holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum PortionRole {
    /// Of a pool whose home is this node.
    Own = 1,
    /// Of the partner's pool: the same bytes as the partner's own portion.
    Mirror = 2,
}

/// Which lane of which portion a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneIdentity {
    /// The pool whose changes it holds.
    pub pool: PoolId,
    /// In which role.
    pub role: PortionRole,
    /// Which lane.
    pub lane: LaneIndex,
    /// Lanes of the portion.
    pub lane_count: u16,
}

impl fmt::Display for LaneIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            PortionRole::Own => "own",
            PortionRole::Mirror => "mirror",
        };
        write!(formatter, "lane {} of {} of the {role} portion of pool {}", self.lane, self.lane_count, self.pool)
    }
}

/// The lane header as it lies in the log.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawLaneHeader {
    magic: [u8; 8],
    version: U32,
    features_incompatible: U32,
    features_read_only: U32,
    features_compatible: U32,
    pool: U128,
    role: U16,
    lane: U16,
    lane_count: U16,
    reserved_lane: U16,
    ring_bytes: U64,
    portion: U128,
    reserved: [u8; RESERVED_BYTES],
    checksum: U64,
}

const _: () = assert!(size_of::<RawLaneHeader>() as u64 == LANE_HEADER_BYTES);
const _: () = assert!(offset_of!(RawLaneHeader, pool) == 24);
const _: () = assert!(offset_of!(RawLaneHeader, ring_bytes) == 48);
const _: () = assert!(offset_of!(RawLaneHeader, portion) == 56);
const _: () = assert!(offset_of!(RawLaneHeader, checksum) == CHECKED_BYTES);

/// The checksum covers everything before itself.
const CHECKED_BYTES: usize = 4088;

/// Seed of the checksum: the header's place, the start of the region.
const CHECKSUM_SEED: u64 = 0;

impl RawLaneHeader {
    /// The header of a lane of this portion, with a ring of `ring_bytes`.
    #[must_use]
    pub fn new(identity: &LaneIdentity, portion: PortionId, ring_bytes: u64) -> Self {
        assert_ne!(portion, PortionId(0), "zero is the id of portions that have none");
        assert!(ring_bytes > 0 && ring_bytes.is_multiple_of(BLOCK_BYTES), "a ring has whole blocks");
        assert!(identity.lane.0 < identity.lane_count, "lane {} of {}", identity.lane, identity.lane_count);
        assert!(usize::from(identity.lane_count) <= LANES_MAX, "the limit of lanes");
        let mut raw = Self {
            magic: MAGIC,
            version: VERSION.into(),
            features_incompatible: 0.into(),
            features_read_only: 0.into(),
            features_compatible: 0.into(),
            pool: identity.pool.0.into(),
            role: (identity.role as u16).into(),
            lane: identity.lane.0.into(),
            lane_count: identity.lane_count.into(),
            reserved_lane: 0.into(),
            ring_bytes: ring_bytes.into(),
            portion: portion.0.into(),
            reserved: [0; RESERVED_BYTES],
            checksum: 0.into(),
        };
        raw.checksum = raw.compute_checksum().into();
        raw
    }

    fn compute_checksum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum(CHECKSUM_SEED, bytes.get(..CHECKED_BYTES).unwrap_or(bytes))
    }
}

impl Verify for RawLaneHeader {
    /// Bytes of the region that the header lies in.
    type Expected<'a> = u64;
    type Verified = LaneHeader;
    type Error = LaneHeaderError;

    fn verify(&self, region_bytes: &u64) -> Result<LaneHeader, LaneHeaderError> {
        if self.magic != MAGIC {
            return Err(LaneHeaderError::NotALane);
        }
        if self.checksum.get() != self.compute_checksum() {
            return Err(LaneHeaderError::Damaged);
        }
        let is_known = matches!(self.version.get(), VERSION | VERSION_WITHOUT_PORTION);
        if !is_known || self.features_incompatible.get() != 0 || self.features_read_only.get() != 0 {
            return Err(LaneHeaderError::Unsupported {
                version: self.version.get(),
                features: self.features_incompatible.get() | self.features_read_only.get(),
            });
        }
        let role = match self.role.get() {
            1 => PortionRole::Own,
            2 => PortionRole::Mirror,
            _ => return Err(LaneHeaderError::Nonsense),
        };
        let blank = self.reserved_lane.get() == 0 && self.reserved.iter().all(|&byte| byte == 0);
        let counted = self.lane < self.lane_count && usize::from(self.lane_count.get()) <= LANES_MAX;
        let ring_bytes = self.ring_bytes.get();
        let named = (self.portion.get() != 0) == (self.version.get() == VERSION);
        if !blank || !counted || !named || ring_bytes == 0 || !ring_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(LaneHeaderError::Nonsense);
        }
        if ring_bytes.checked_add(LANE_HEADER_BYTES) != Some(*region_bytes) {
            return Err(LaneHeaderError::OtherSize { formatted: ring_bytes, region: *region_bytes });
        }
        let identity = LaneIdentity {
            pool: PoolId(self.pool.get()),
            role,
            lane: LaneIndex(self.lane.get()),
            lane_count: self.lane_count.get(),
        };
        Ok(LaneHeader { identity, portion: PortionId(self.portion.get()), ring_bytes })
    }
}

/// A checked lane header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHeader {
    /// Whose log it is.
    pub identity: LaneIdentity,
    /// The portion that it is part of.
    pub portion: PortionId,
    /// Bytes of the ring after it.
    pub ring_bytes: u64,
}

impl LaneHeader {
    /// Reads and checks the header at the start of `bytes`, the first block of a region of `region_bytes`.
    ///
    /// # Errors
    /// Why this is not the header of a lane in a region of this size.
    pub fn read(bytes: &[u8], region_bytes: u64) -> Result<Self, LaneHeaderError> {
        Unverified::<RawLaneHeader>::read(bytes).ok_or(LaneHeaderError::NotALane)?.verify(&region_bytes)
    }

    /// Compares whose log it is with whose it should be.
    ///
    /// # Errors
    /// [`LaneHeaderError::OtherLane`] with both.
    pub fn must_be(&self, expected: &LaneIdentity) -> Result<(), LaneHeaderError> {
        if self.identity == *expected || planted::is("any-log-taken") {
            return Ok(());
        }
        Err(LaneHeaderError::OtherLane { found: Box::new(self.identity), expected: Box::new(*expected) })
    }
}

/// Why a region is not the lane that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LaneHeaderError {
    /// Nothing of Twinlog is here.
    #[error("this is not a change log, or it was never formatted")]
    NotALane,
    /// The checksum does not match.
    #[error("the header of the lane is damaged")]
    Damaged,
    /// A newer program wrote it.
    #[error("the lane has format version {version} with features {features:#x}, which this program does not know")]
    Unsupported {
        /// Its version.
        version: u32,
        /// Its features that a reader must know.
        features: u32,
    },
    /// Whole, yet it says what cannot be.
    #[error("the header of the lane is whole but contradicts itself: a defect wrote it")]
    Nonsense,
    /// The region was made larger or smaller.
    #[error("the lane was formatted with a ring of {formatted} bytes, but its region has {region} bytes")]
    OtherSize {
        /// Bytes of the ring according to the header.
        formatted: u64,
        /// Bytes of the region, header included.
        region: u64,
    },
    /// The log of something else.
    #[error("the log holds {found}; {expected} is expected here")]
    OtherLane {
        /// Whose it is.
        found: Box<LaneIdentity>,
        /// Whose it should be.
        expected: Box<LaneIdentity>,
    },
}
