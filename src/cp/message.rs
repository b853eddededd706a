//! What the coordinator of a pool and its shards tell each other. Messages between two parties arrive in order.

use crate::{
    base::{BlockSize, CpNumber, Epoch, ForwardedChanges, LaneIndex, Lsn, ObjectId, PoolId},
    format::{
        chain::{AddressRange, Subtree},
        lane_header::PortionRole,
        object::VolumeRecord,
    },
    fs::directory::ObjectUpdate,
};

/// The right to open a pool, and from which portion of change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The portion that this node has of the pool: its own pool's, or the mirror of its partner's.
    pub role: PortionRole,
    /// The epoch that the arbiter has granted. Without an arbiter zero: the pool goes on in the epoch that it is in.
    pub epoch: Epoch,
    /// Whether the register says that the mirror is in step: then answers wait for the partner from the first one on.
    pub is_mirrored: bool,
    /// Whether nothing of the pool's nodes has been alive since it was last served: then reservations that do not survive that are gone.
    pub is_power_on: bool,
}

impl Grant {
    /// Of a node that has no partner.
    pub const SINGLE: Self = Self { role: PortionRole::Own, epoch: Epoch(0), is_mirrored: false, is_power_on: true };
}

/// What a shard must know to replay its lane.
#[derive(Clone, Debug)]
pub struct ShardOpening {
    /// The pool.
    pub pool: PoolId,
    /// Number of lanes of the portion.
    pub lane_count: u16,
    /// The portion in which the lane lies.
    pub role: PortionRole,
    /// The epoch of the newest consistency point: records of an older one are not replayed.
    pub epoch_min: Epoch,
    /// The epoch in which the lane is used after its replay: none of its records has a newer one.
    pub epoch: Epoch,
    /// Whether answers wait for the partner from the first one on.
    pub is_mirrored: bool,
    /// See [`Grant::is_power_on`].
    pub is_power_on: bool,
    /// Newest consistency point.
    pub cp: CpNumber,
    /// Changes below are in it.
    pub applied: Lsn,
    /// Forwarded changes among them.
    pub forwarded: ForwardedChanges,
    /// The volumes of this lane.
    pub volumes: Vec<VolumeRecord>,
}

/// What becomes of a lane's mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorOrder {
    /// Send everything from here on to a portion with this unit; answers do not wait for it yet.
    Start {
        /// Unit of stores of the partner's log memory.
        unit_bytes: u32,
    },
    /// Answers wait for the partner from now on.
    Require,
    /// The register says that the mirror is in step, at this epoch.
    InSync(Epoch),
    /// The register says that the mirror is stale, at this epoch: answers wait for nobody.
    Alone(Epoch),
    /// The partner has everything before this position.
    Mirrored(Lsn),
    /// The partner was reached again, and expects this position.
    Resend(Option<Lsn>),
}

/// What a lane tells of its mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorNews {
    /// Everything from now on is sent.
    Started,
    /// Everything that may have been answered is with the partner.
    CaughtUp,
    /// What the partner says cannot be: it is no mirror any more.
    Lost(String),
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
        /// In what hosts address it.
        block_size: BlockSize,
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
    /// Perform the held records of a volume that is offline, or drop them; the answer is `VolumeDone` with the same number.
    Online {
        /// Number of the call.
        call: u64,
        /// Which volume.
        id: ObjectId,
        /// Whether they are dropped.
        accept_loss: bool,
    },
    /// What becomes of the lane's mirror.
    Mirror(MirrorOrder),
    /// The pool has stopped for this reason.
    Stop(String),
}

/// What a shard wrote.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// The lane position of the freeze.
    pub applied: Lsn,
    /// Forwarded changes up to there.
    pub forwarded: Option<ForwardedChanges>,
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
    /// Of the lane's mirror.
    Mirror {
        /// Which lane.
        lane: LaneIndex,
        /// What.
        news: MirrorNews,
    },
    /// The lane or a device failed: the pool must stop.
    Failed {
        /// Which lane.
        lane: LaneIndex,
        /// Why.
        reason: String,
    },
}
