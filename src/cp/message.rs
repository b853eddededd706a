//! What the coordinator of a pool and its shards tell each other. Messages between two parties arrive in order.

use crate::{
    base::{CpNumber, Epoch, LaneIndex, Lsn, ObjectId, PoolId},
    format::{
        chain::{AddressRange, Subtree},
        object::VolumeRecord,
    },
    fs::directory::ObjectUpdate,
};

/// What a shard must know to replay its lane.
#[derive(Clone, Debug)]
pub struct ShardOpening {
    /// The pool.
    pub pool: PoolId,
    /// Number of lanes of the portion.
    pub lane_count: u16,
    /// The pool's epoch: records of an older one are not replayed.
    pub epoch: Epoch,
    /// Newest consistency point.
    pub cp: CpNumber,
    /// Changes below are in it.
    pub applied: Lsn,
    /// The volumes of this lane.
    pub volumes: Vec<VolumeRecord>,
}

/// A change of a volume as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeChange {
    /// Make it.
    Create {
        /// Its name, checked and free.
        name: String,
        /// Its size, checked.
        size_bytes: u64,
        /// When, in nanoseconds since the Unix epoch; zero: now.
        time_ns: u64,
    },
    /// Change its size to this, checked.
    Resize(u64),
    /// Delete it.
    Delete,
}

/// From the coordinator to a shard.
#[derive(Clone, Debug)]
pub enum ToShard {
    /// Replay the lane on top of these volumes.
    Open(Box<ShardOpening>),
    /// Freeze for this consistency point, and write.
    Freeze(CpNumber),
    /// Places for the volume that is being written.
    Space(Vec<AddressRange>),
    /// The consistency point is durable.
    Durable(CpNumber),
    /// Change a volume; the answer is `VolumeDone` with the same number.
    Volume {
        /// Number of the call.
        call: u64,
        /// Which volume.
        id: ObjectId,
        /// What to do.
        change: VolumeChange,
    },
    /// The pool has stopped for this reason.
    Stop(String),
}

/// What a shard wrote.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// The lane position of the freeze.
    pub applied: Lsn,
    /// New descriptions of volumes.
    pub objects: Vec<ObjectUpdate>,
    /// Blocks that are not reached any more.
    pub freed: Vec<AddressRange>,
    /// Subtrees that are not reached any more.
    pub reap: Vec<Subtree>,
    /// Granted places that were not used.
    pub unused: Vec<AddressRange>,
    /// Blocks that had been reserved for these changes.
    pub reserved_blocks: u64,
}

/// From a shard to the coordinator.
#[derive(Clone, Debug)]
pub enum ToCoordinator {
    /// The lane has been replayed.
    Replayed {
        /// Which.
        lane: LaneIndex,
        /// Changes performed.
        records: u64,
        /// The lane's volumes now.
        volumes: Vec<VolumeRecord>,
        /// The largest object id in any record.
        object_max: ObjectId,
    },
    /// A consistency point would help.
    Wanted,
    /// Places are needed, this many.
    NeedSpace {
        /// For which lane.
        lane: LaneIndex,
        /// How many blocks.
        blocks: u64,
    },
    /// Everything frozen has been written.
    Written {
        /// Which lane.
        lane: LaneIndex,
        /// What.
        report: Box<ShardReport>,
    },
    /// A volume was made, changed or deleted, and the change is stable.
    VolumeDone {
        /// Number of the call.
        call: u64,
        /// The volume now; `None`: deleted.
        volume: Result<Option<VolumeRecord>, String>,
    },
    /// The lane or a device failed: the pool must stop.
    Failed {
        /// Which lane.
        lane: LaneIndex,
        /// Why.
        reason: String,
    },
}
