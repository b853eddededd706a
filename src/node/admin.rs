//! What the control threads ask of a node's reactors, and what they get.
//!
//! Control runs on ordinary threads; it sends an [`AdminCall`] over a bounded channel to reactor 0 and waits for the reply there.

pub use crate::cp::check::{CheckReport, DamagedRange, OfflineVolume};
use crate::{
    base::limits::BLOCK_BYTES,
    format::{
        object::VolumeRecord,
        reservation::{Registrant, Reservation},
    },
};
use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use twinlog_device::{DeviceHealth, DeviceWear};

/// A question or an order to the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Everything `status` shows.
    Status,
    /// Make a volume.
    VolumeCreate {
        /// 1 to 64 bytes of UTF-8: letters, digits, `-`, `_`, `.`; begins with a letter or digit.
        name: String,
        /// Bytes, a multiple of 4096, at most 1 PiB.
        size_bytes: u64,
        /// Bytes of the blocks in which hosts address it: 4096 or 512.
        #[serde(default = "own_block_bytes")]
        block_bytes: u64,
    },
    /// List volumes.
    VolumeList,
    /// Change a volume's size. Shrinking discards what lies beyond.
    VolumeResize {
        /// Which.
        name: String,
        /// As for create.
        size_bytes: u64,
    },
    /// Delete a volume and its content.
    VolumeDelete {
        /// Which.
        name: String,
    },
    /// Perform the held records of a volume that is offline, and reply when it is online.
    VolumeOnline {
        /// Which.
        name: String,
        /// Drop the records instead.
        accept_loss: bool,
    },
    /// Take a consistency point now and reply when it is durable.
    Checkpoint,
    /// Prove the pool whole while it serves: reachable = allocated, no double use, every checksum true.
    PoolCheck,
    /// Read and verify every block in use.
    PoolScrub,
    /// Add a device, already opened under this index by every reactor's platform.
    PoolGrow {
        /// Path or serial number, as configured.
        device: String,
    },
    /// Progress of a running check or scrub.
    Progress,
    /// The hosts that may connect over NVMe/TCP; answered by the control side, as the next two.
    HostList,
    /// Let a host connect, or give it other secrets and another identifier.
    HostAdd {
        /// Its qualified name.
        nqn: String,
        /// Its identifier, a UUID; none: any that is nobody's.
        id: Option<String>,
        /// What it must know; none: its name is enough.
        secret: Option<SecretText>,
        /// What the controller proves to it.
        controller_secret: Option<SecretText>,
    },
    /// Let a host connect no more; its controllers end.
    HostRemove {
        /// Its qualified name.
        nqn: String,
    },
    /// What has happened; answered by the control side.
    Events {
        /// Only events after this number; zero: all that are kept.
        after: u64,
    },
    /// Become the owner of a pool of the pair.
    PairTakeover {
        /// Which pool; none: the partner's.
        pool: Option<String>,
        /// Although this node's log may lack answered changes.
        force: bool,
    },
    /// Hand a pool to the partner.
    PairGiveback {
        /// Which pool; none: the partner's.
        pool: Option<String>,
    },
    /// Hand the own pool to the partner, which keeps it until it is told to give it back.
    PairDrain,
    /// Refuse new requests, take a last consistency point, reply, and end.
    Stop,
}

/// A secret on its way through the admin API, which nobody else can read. Not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(..)")
    }
}

/// A host that may connect over NVMe/TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Its qualified name.
    pub nqn: String,
    /// It is named in the configuration, and cannot be removed while the node runs.
    pub is_configured: bool,
    /// Its identifier, a UUID; none: any that is nobody's.
    pub id: Option<String>,
    /// Fingerprint of what it must know; none: its name is enough.
    pub secret: Option<String>,
    /// Fingerprint of what the controller proves to it.
    pub controller_secret: Option<String>,
}

/// One call, with the way back.
#[derive(Debug)]
pub struct AdminCall {
    /// What is asked.
    pub request: AdminRequest,
    /// Where the reply goes; the reactor never waits for room there.
    pub reply: Sender<AdminReply>,
}

/// The reply to an [`AdminRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum AdminReply {
    /// Done; nothing to tell.
    Done,
    /// To `Status`.
    Status(Box<NodeStatus>),
    /// To `VolumeCreate`, `VolumeList`, `VolumeResize`, `VolumeOnline`.
    Volumes {
        /// One or all.
        volumes: Vec<VolumeStatus>,
    },
    /// To `HostList`.
    Hosts {
        /// All of them.
        hosts: Vec<HostEntry>,
    },
    /// To `PoolCheck`, `PoolScrub`: what was found.
    Report(CheckReport),
    /// To `Progress`.
    Progress {
        /// `check`, `scrub` or empty when nothing runs.
        work: String,
        /// Blocks done.
        done_blocks: u64,
        /// Blocks in all, as far as known.
        total_blocks: u64,
    },
    /// To `Events`.
    Events {
        /// Tells the process's life from an earlier one, whose events had numbers of their own.
        life: u64,
        /// The oldest first; not all of them when there are many.
        events: Vec<NodeEvent>,
        /// The number of the last one that happened.
        last: u64,
    },
    /// Not done.
    Refused {
        /// What failed, why, and of which object.
        message: String,
        /// A next command to try, or empty.
        hint: String,
    },
}

/// Something that happened on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// Counts the process's events from 1.
    pub sequence: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What, in words that do not vary.
    pub event: String,
    /// What varies.
    pub fields: Map<String, Value>,
}

/// State of a node at one instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `opening`, `serving`, `stopping` or `failed`.
    pub state: String,
    /// Why it failed, or what it is doing; empty otherwise.
    pub reason: String,
    /// State of the pool.
    pub pool: PoolStatus,
    /// The change log's lanes.
    pub lanes: Vec<LaneStatus>,
    /// Volumes by name.
    pub volumes: Vec<VolumeStatus>,
    /// Memory blocks in use, those of the cache apart.
    pub memory_used_bytes: u64,
    /// Memory blocks that cache what is on the disks, and are given up for anything else.
    pub memory_cached_bytes: u64,
    /// Bound of memory blocks.
    pub memory_limit_bytes: u64,
    /// Memory of the whole process, as the kernel counts it; written by the control side, zero until then.
    pub memory_resident_bytes: u64,
    /// Reactors by index.
    pub reactors: Vec<ReactorStatus>,
    /// Nanoseconds of the node's monotonic clock since it started.
    pub uptime_ns: u64,
    /// Records replayed by the recovery that opened the pool.
    pub replayed_records: u64,
    /// The pair, of a node that has a partner. What stands above is the node's own pool then, as far as this node has it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<PairStatus>,
    /// Hosts that speak NVMe/TCP, by controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostStatus>,
    /// Where they connect, and what they find there, of a node that lets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvme_tcp: Option<NvmeTcpStatus>,
}

/// A node's NVMe/TCP front end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeTcpStatus {
    /// Address and port.
    pub listen: String,
    /// The partner's, as hosts are told it; empty without one.
    pub partner: String,
    /// The subsystem's qualified name.
    pub subsystem: String,
    /// Namespaces by id.
    pub namespaces: Vec<NamespaceStatus>,
}

/// A namespace as this node's path leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Its id.
    pub id: u32,
    /// The volume that it is.
    pub volume: String,
    /// `optimized`: this node performs its commands; `non-optimized`: it forwards them; `inaccessible`: it refuses them.
    pub access: String,
}

/// A host's controller at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its qualified name.
    pub host: String,
    /// The controller's number.
    pub controller: u16,
    /// I/O queues that are connected.
    pub queues: u32,
    /// It asks for addresses only.
    pub is_discovery: bool,
}

/// The pair as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairStatus {
    /// The partner's name.
    pub partner: String,
    /// `up`, `interrupted` or `cut`.
    pub link: String,
    /// Paths of the interconnect that work.
    pub paths_up: u64,
    /// Paths that are configured.
    pub paths: u64,
    /// Newest round trip of a heartbeat.
    pub round_trip_ns: u64,
    /// Where the interconnect runs.
    #[serde(default)]
    pub placement: String,
    /// Why the nodes do not come together although they reach each other, and what mends it; both empty if nothing speaks against it.
    #[serde(default)]
    pub refusal: [String; 2],
    /// The node's own pool, then the partner's.
    pub pools: Vec<PairPoolStatus>,
    /// Volumes that are offline where the partner serves them.
    #[serde(default)]
    pub offline_there: Vec<OfflineThere>,
    /// The partner's pool, while this node serves it.
    pub taken_over: Option<Box<NodeStatus>>,
}

/// A volume that is offline at the other node, as far as this one has heard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineThere {
    /// Its name.
    pub volume: String,
    /// Lane of the change log in which the record stood that could not be performed.
    pub lane: u16,
    /// Its position there.
    pub lsn: u64,
}

/// A pool of the pair as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairPoolStatus {
    /// Its name.
    pub name: String,
    /// The node that the register names as owner; empty while that is unknown.
    pub owner: String,
    /// The register's epoch.
    pub epoch: u64,
    /// Whether the owner keeps the pool although it is not its home node, which was drained.
    #[serde(default)]
    pub kept: bool,
    /// `in sync`, `stale` or `in sync, but replaced`, of the log of the node that does not own the pool; empty while that is unknown.
    pub mirror: String,
    /// What this node does with the pool.
    pub open: String,
    /// The row of the decision table that decides now.
    pub row: String,
    /// What it makes this node do.
    pub action: String,
    /// Whether all is as it should be.
    pub is_final: bool,
    /// Whether the partner's log is being brought in step.
    pub is_resync: bool,
    /// Whether this node serves it for its partner.
    pub is_away: bool,
    /// Why.
    pub why: String,
    /// When that ends at the latest.
    pub deadline: String,
    /// What happens next, or what a person can do.
    pub next: String,
    /// What went wrong last; empty if nothing did.
    pub trouble: String,
    /// What the fences that were tried last have found; empty if none was.
    #[serde(default)]
    pub fence: String,
    /// The takeover that was asked for here and could not be carried out yet, and when it lapses; empty if there is none.
    #[serde(default)]
    pub command: String,
    /// What would become of the pool if each node died now, the own one first.
    pub if_dies: [String; 2],
    /// Bytes that were sent to the partner's log and not acknowledged yet; zero unless this node owns the pool.
    pub mirror_lag_bytes: u64,
    /// Batches that the partner has acknowledged to this process; latencies run from sending to its word.
    #[serde(default)]
    pub mirrored: OperationStatus,
    /// Takeovers of this pool by this process.
    pub takeovers: u64,
    /// Nanoseconds that this process has answered without a mirror.
    pub unmirrored_ns: u64,
}

/// State of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Ownership generation.
    pub epoch: u64,
    /// Newest durable consistency point.
    pub cp: u64,
    /// Its age.
    pub cp_age_ns: u64,
    /// How long the last one took.
    pub cp_duration_ns: u64,
    /// Phase of the one in progress, or `idle`.
    pub cp_phase: String,
    /// Bytes on all devices that can hold blocks.
    pub size_bytes: u64,
    /// Bytes free for new data.
    pub free_bytes: u64,
    /// Bytes freed that come back after the next consistency points.
    pub deferred_bytes: u64,
    /// Sum of the volumes' sizes.
    pub provisioned_bytes: u64,
    /// Blocks whose checksum did not match since start.
    pub checksum_errors: u64,
    /// Devices: name and size.
    pub devices: Vec<DeviceStatus>,
}

/// State of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// As configured.
    pub name: String,
    /// Whole blocks in bytes.
    pub size_bytes: u64,
    /// What it survives: `durable`, `process` or `volatile`.
    pub durability: String,
    /// How it is, if it can say.
    #[serde(default)]
    pub health: Option<HealthStatus>,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// What keeps it to the memory that it was given; empty if not this node drives it, but the kernel.
    #[serde(default)]
    pub confined_by: String,
    /// Whether a durable write to it is a write and a flush, because its own kind of durable write is none.
    #[serde(default)]
    pub flushes_writes: bool,
    /// Why it does not serve now; empty if it does.
    pub trouble: String,
    /// What it calls critical.
    pub warnings: Vec<String>,
    /// For how long it has had the oldest operation that it has not answered.
    #[serde(default)]
    pub oldest_ns: u64,
    /// Operations that it failed since it was opened.
    pub errors: u64,
    /// The newest of them; empty if there was none.
    pub newest_error: String,
    /// Operations that it did not answer in time.
    pub timeouts: u64,
    /// How often it had to be reset.
    pub resets: u64,
    /// How often its namespaces were changed since it was opened.
    pub changes: u64,
    /// What it has counted over its life, if it said.
    pub wear: Option<WearStatus>,
}

/// What a device has counted over its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WearStatus {
    /// Temperature.
    pub temperature_celsius: i32,
    /// Spare that is left, percent.
    pub spare_percent: u8,
    /// Endurance used, percent; may exceed 100.
    pub used_percent: u8,
    /// Errors of media or data integrity that were not recovered.
    pub media_errors: u64,
    /// Power losses without a shutdown.
    pub unsafe_shutdowns: u64,
}

impl From<DeviceHealth> for HealthStatus {
    fn from(health: DeviceHealth) -> Self {
        let wear = |wear: DeviceWear| {
            let DeviceWear { temperature_celsius, spare_percent, used_percent, media_errors, unsafe_shutdowns } = wear;
            WearStatus { temperature_celsius, spare_percent, used_percent, media_errors, unsafe_shutdowns }
        };
        Self {
            confined_by: health.confined_by.unwrap_or_default().to_owned(),
            flushes_writes: health.flushes_writes,
            trouble: health.trouble.unwrap_or_default(),
            warnings: health.warnings.into_iter().map(str::to_owned).collect(),
            oldest_ns: u64::try_from(health.oldest.as_nanos()).unwrap_or(u64::MAX),
            errors: health.error_count,
            newest_error: health.newest_error.map(|error| error.to_string()).unwrap_or_default(),
            timeouts: health.timeout_count,
            resets: health.reset_count,
            changes: health.change_count,
            wear: health.wear.map(wear),
        }
    }
}

/// State of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Its index.
    pub lane: u16,
    /// `pmem`, `file` or `memory`.
    pub backend: String,
    /// `durable`, `process` or `volatile`.
    pub durability: String,
    /// Bytes of the ring.
    pub size_bytes: u64,
    /// Bytes not yet trimmed.
    pub used_bytes: u64,
    /// Position after the newest record.
    pub head_lsn: u64,
    /// Position up to which records are durable.
    pub durable_lsn: u64,
    /// Position up to which the newest durable consistency point contains changes.
    pub applied_lsn: u64,
    /// Delay of new changes in force now.
    pub throttle_ns: u64,
}

/// State of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of the blocks in which hosts address it.
    #[serde(default = "own_block_bytes")]
    pub block_bytes: u64,
    /// Bytes of blocks allocated to it at the newest consistency point.
    pub allocated_bytes: u64,
    /// Reactor that serves it.
    pub reactor: u16,
    /// Reads since start: operations, bytes, latency.
    pub reads: OperationStatus,
    /// Changes since start.
    pub writes: OperationStatus,
    /// Why nobody can use it, and what is held; none: it is online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<OfflineStatus>,
    /// Hosts that have registered with it, and who holds it reserved; none: no host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ReservationStatus>,
}

/// Registrants and reservation of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationStatus {
    /// What it allows others, in words joined by `-`; empty while nothing is held.
    pub kind: String,
    /// The host that holds it, 32 hexadecimal digits; empty if none does, or every registrant.
    pub holder: String,
    /// Whether it survives the loss of power.
    pub persists: bool,
    /// Counts registrations, preemptions and clearings.
    pub generation: u32,
    /// Hosts that have registered.
    pub registrants: Vec<RegistrantStatus>,
}

/// A host that has registered with a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrantStatus {
    /// Its identifier, 32 hexadecimal digits.
    pub host: String,
    /// Its key, 16 hexadecimal digits.
    pub key: String,
}

impl ReservationStatus {
    /// `None` while no host is registered.
    fn of(state: &Reservation) -> Option<Self> {
        let registrant =
            |known: &Registrant| RegistrantStatus { host: known.host.to_string(), key: format!("{:016x}", known.key) };
        let holder = state.held.and_then(|held| held.holder);
        (!state.registrants.is_empty()).then(|| Self {
            kind: state.held.map_or("", |held| held.kind.name()).to_owned(),
            holder: holder.map(|holder| holder.to_string()).unwrap_or_default(),
            persists: state.persists,
            generation: state.generation,
            registrants: state.registrants.iter().map(registrant).collect(),
        })
    }
}

/// What stands of a volume that is offline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineStatus {
    /// Lane of the change log in which the record stood that could not be performed.
    pub lane: u16,
    /// Its position there.
    pub lsn: u64,
    /// Why it could not.
    pub why: String,
    /// Records that are held, this one included.
    pub held_records: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// What a program says nothing of that is older than the choice.
fn own_block_bytes() -> u64 {
    BLOCK_BYTES
}

impl VolumeStatus {
    /// A volume that reactor `reactor` serves, without what it has done.
    #[must_use]
    pub fn of(record: &VolumeRecord, reactor: u16) -> Self {
        Self {
            id: record.id.0,
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            block_bytes: record.block_size.bytes(),
            allocated_bytes: record.allocated_blocks * BLOCK_BYTES,
            reactor,
            offline: record.offline.map(|offline| OfflineStatus {
                lane: offline.lane.0,
                lsn: offline.lsn.0,
                why: offline.cause.to_string(),
                held_records: offline.records,
                held_bytes: offline.end_bytes - offline.start_bytes,
            }),
            reservation: ReservationStatus::of(&record.reservation),
            ..Self::default()
        }
    }
}

/// Counters of one kind of operation. Latencies run from submission by the front end to the reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// Operations.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Median latency.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// 99.99th percentile.
    pub p9999_ns: u64,
    /// Largest.
    pub max_ns: u64,
    /// Sum of all latencies.
    pub total_ns: u64,
}

/// State of a reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorStatus {
    /// Its index.
    pub reactor: u16,
    /// Turns of the loop since start.
    pub turns: u64,
    /// Nanoseconds not spent sleeping since start.
    pub busy_ns: u64,
    /// Open client connections.
    pub connections: u64,
    /// The CPU that it is bound to; none when the kernel chooses.
    pub cpu: Option<u64>,
}

/// What one reactor contributes to a status.
#[derive(Clone, Debug, Default)]
pub struct ReactorReport {
    /// Its lanes.
    pub lanes: Vec<LaneStatus>,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Blocks whose checksum did not match.
    pub checksum_errors: u64,
    /// Blocks in its cache.
    pub cached_blocks: u64,
    /// Itself.
    pub reactor: ReactorStatus,
}
