//! Ids and units as newtypes, limits with their arithmetic, checksum, seeded random numbers.

pub mod block_size;
pub mod checksum;
pub mod forwarded;
pub mod hash;
pub mod ids;
pub mod limits;
pub mod planted;
pub mod slab;

pub use block_size::BlockSize;
pub use checksum::checksum;
pub use forwarded::{ForwardId, ForwardedChanges};
pub use hash::{FixedMap, FixedSet, IdHasher};
pub use ids::{
    BlockAddress, BlockIndex, CpNumber, Epoch, HostId, Incarnation, LaneIndex, Lsn, NoHostId, ObjectId, PairId, Pass,
    PoolId, PortionId, ReactorIndex,
};
pub use slab::Slab;
pub use twinlog_device::prng::{self, Prng};
