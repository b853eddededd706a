//! Ids and positions. Each is its own type: mixing them up does not compile.

use std::{fmt, str::FromStr};
use thiserror::Error;
use uuid::Uuid;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

id!(/// An object of a pool: a volume or a map. Never reused.
    ObjectId(u64));
id!(/// Number of a consistency point; the first of a pool is 1, zero means none.
    CpNumber(u64));
id!(/// Ownership generation of a pool; the first is 1, zero means none.
    Epoch(u64));
id!(/// Log sequence number: byte position in a lane's endless stream.
    Lsn(u64));
id!(/// A lane of a portion, from 0.
    LaneIndex(u16));
id!(/// A reactor of this node, from 0.
    ReactorIndex(u16));
id!(/// A block of an object, counted in blocks from its start.
    BlockIndex(u64));

/// A host as NVMe names it: the 128 bits of its Host Identifier, as they come in its Connect. Never all zero: that is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId([u8; 16]);

impl HostId {
    /// The host with these bytes; `None`: they are all zero.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// A UUID (RFC 9562, section 4), as it stands in a host's `/etc/nvme/hostid`.
impl fmt::Display for HostId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(formatter)
    }
}

/// A text is no [`HostId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("that is no host identifier, as it stands in a host's /etc/nvme/hostid: a UUID that is not zero")]
pub struct NoHostId;

impl FromStr for HostId {
    type Err = NoHostId;

    fn from_str(text: &str) -> Result<Self, NoHostId> {
        Uuid::parse_str(text).ok().and_then(|uuid| Self::new(uuid.into_bytes())).ok_or(NoHostId)
    }
}

/// Leave for a host to change a volume through the node that does not serve it, from the shard that performs the volume's changes: [`crate::node`] has the rule.
/// Later ones of a shard are greater, whatever happens to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// The ownership in which it was given.
    pub epoch: Epoch,
    /// Counts the shard's passes in it, from 1.
    pub number: u64,
}

impl Lsn {
    /// The position `bytes` further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.checked_add(bytes).expect("a lane of 2^64 bytes outlives the hardware"))
    }
}

impl LaneIndex {
    /// The lane of a pool with `lane_count` of them that a volume's changes go to.
    #[must_use]
    pub fn of(volume: ObjectId, lane_count: usize) -> Self {
        let lane = volume.0 % lane_count as u64;
        Self(u16::try_from(lane).expect("at most LANES_MAX"))
    }

    /// As an index of what a pool has for each lane.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl CpNumber {
    /// The consistency point after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 consistency points outlive the hardware"))
    }
}

macro_rules! random_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_id!(/// A pool's identity: random, drawn when it is created.
    PoolId);
random_id!(/// A pair's identity: random, drawn when the pair is made.
    PairId);
random_id!(/// A portion's identity: random, drawn when it is formatted, so that one that was lost or replaced is not taken for
    /// the one that a register names. Zero names none.
    PortionId);
random_id!(/// One life of a node's process: random, drawn at its start. Zero names none.
    Incarnation);

/// A block of a pool's plex: which device (upper 16 bits) and which block of it (lower 48 bits).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddress(pub u64);

impl BlockAddress {
    const DEVICE_SHIFT: u32 = 48;
    /// Blocks that one device can have: 2^48 blocks of 4 KiB are 1 EiB.
    pub const DEVICE_BLOCKS_MAX: u64 = 1 << Self::DEVICE_SHIFT;

    /// Block `block` of device `device`.
    #[must_use]
    pub fn new(device: u16, block: u64) -> Self {
        assert!(block < Self::DEVICE_BLOCKS_MAX, "block {block} fits 48 bits");
        Self(u64::from(device) << Self::DEVICE_SHIFT | block)
    }

    /// Index of the device in the pool's device table.
    #[must_use]
    pub fn device(self) -> usize {
        (self.0 >> Self::DEVICE_SHIFT) as usize
    }

    /// Block of the device.
    #[must_use]
    pub fn block(self) -> u64 {
        self.0 & (Self::DEVICE_BLOCKS_MAX - 1)
    }

    /// The address `blocks` further on, on the same device.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Self {
        assert!(self.block() + blocks < Self::DEVICE_BLOCKS_MAX, "the address stays on its device");
        Self(self.0 + blocks)
    }
}

impl fmt::Display for BlockAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.device(), self.block())
    }
}

impl fmt::Debug for BlockAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlockAddress({self})")
    }
}
