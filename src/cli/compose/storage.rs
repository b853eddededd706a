//! The files and sockets of a node, open and locked: its portions of change log and its listeners for as long as it runs, a pool's devices
//! for as long as the pool is open.

use super::{
    devices::{Devices, Opened},
    platform::{Disk, Queues},
    reservation::Hold,
};
use crate::cli::{
    output::{Exit, Failure},
    pause,
    superblocks::Assembled,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use twinlog::{
    alloc::budget::Budget,
    base::{LaneIndex, PoolId},
    changelog::{LaneIdentity, PortionRole},
    control::config::{LogBackend, LogConfig, NodeConfig},
};
use twinlog_uring::{
    Access, AnyLog, AtOnce, Cache, FileError, FileLog, ListenAddress, ListenError, Listener, MemoryLog, MemoryRegion,
    PmemFile, PmemLog, Ring, StorageFile,
};

/// Operations in flight per reactor and disk.
pub(super) const QUEUE_DEPTH: u32 = 128;
/// Who may connect to the NBD socket: the node's own user, and the group that owns the directory.
const NBD_SOCKET_MODE: u32 = 0o660;
/// How long a file or an address that is in use is tried again: a process may be ending.
const IN_USE_WAIT_MAX: Duration = Duration::from_secs(5);
/// The same of a file that no process is seen to have. When a process has ended, the kernel takes its rings apart in the background, and until then they
/// hold its files and locks.
const UNSEEN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Time between two tries.
const IN_USE_POLL: Duration = Duration::from_millis(20);

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::InUse { .. } => {
                Self::new(Exit::Refused, &error, "`twinlog status`; stop the other program first")
            }
            _ => Self::new(Exit::Error, &error, "check the path in node.toml; `twinlog doctor`"),
        }
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::new(Exit::Error, &error, "stop the other program, or change the address in node.toml")
    }
}

/// Does `attempt` again while it fails because something is in use, for as long as `in_use` says.
pub(super) fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    in_use: impl Fn(&E) -> Duration,
) -> Result<T, E> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(error) if waited < in_use(&error) => {
                pause(IN_USE_POLL);
                waited += IN_USE_POLL;
            }
            result => return result,
        }
    }
}

/// How long a file is tried again.
pub(super) fn in_use(error: &FileError) -> Duration {
    match error {
        FileError::InUse { .. } if error.is_in_use_unseen() => UNSEEN_WAIT_MAX,
        FileError::InUse { .. } => IN_USE_WAIT_MAX,
        _ => Duration::ZERO,
    }
}

pub(super) fn open_file(path: &Path) -> Result<StorageFile, FileError> {
    patiently(|| StorageFile::open(path, Access::Exclusive, Cache::Bypass), in_use)
}

enum PortionStorage {
    File(StorageFile),
    Pmem(PmemFile),
    /// A region for each lane.
    Memory(Vec<MemoryRegion>),
}

/// A portion of a pool's change log, open and locked. Its lanes are opened by whoever uses them: the pool's engine while this node owns
/// the pool, the mirror while the partner does.
pub(super) struct Portion {
    storage: PortionStorage,
    lane_bytes: u64,
    pool: PoolId,
    role: PortionRole,
    lane_count: u16,
}

impl Portion {
    pub(super) fn open(config: &LogConfig, pool: PoolId, role: PortionRole, lane_count: u16) -> Result<Self, Failure> {
        let lane_bytes = config.lane_bytes(lane_count);
        let storage = match (config.backend, &config.path) {
            (LogBackend::File, Some(path)) => PortionStorage::File(open_file(path)?),
            (LogBackend::Pmem, Some(path)) => PortionStorage::Pmem(patiently(|| PmemFile::open(path), in_use)?),
            (LogBackend::Memory, _) => {
                let region = |lane| MemoryRegion::new(&format!("lane {lane}"), lane_bytes);
                PortionStorage::Memory((0..lane_count).map(region).collect())
            }
            (_, None) => {
                return Err(Failure::new(Exit::Usage, "the log has no path", "add `path` to [log] in node.toml"));
            }
        };
        Ok(Self { storage, lane_bytes, pool, role, lane_count })
    }

    /// Whether it begins empty with every process; what it held is lost, which its durability class says.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.storage, PortionStorage::Memory(_))
    }

    pub(super) fn lane_count(&self) -> u16 {
        self.lane_count
    }

    pub(super) fn pool(&self) -> PoolId {
        self.pool
    }

    pub(super) fn role(&self) -> PortionRole {
        self.role
    }

    pub(super) fn identity(&self, lane: LaneIndex) -> LaneIdentity {
        LaneIdentity { pool: self.pool, role: self.role, lane, lane_count: self.lane_count }
    }

    /// One lane, for the reactor of `ring`.
    pub(super) fn lane(&self, ring: &Ring, lane: LaneIndex) -> Result<AnyLog, FileError> {
        let offset = self.lane_bytes * u64::from(lane.0);
        Ok(match &self.storage {
            PortionStorage::File(file) => AnyLog::File(FileLog::new(ring, file, offset, self.lane_bytes)?),
            PortionStorage::Pmem(file) => AnyLog::Pmem(AtOnce::new(ring, PmemLog::new(file, offset, self.lane_bytes)?)),
            PortionStorage::Memory(regions) => {
                AnyLog::Memory(AtOnce::new(ring, MemoryLog::new(&regions[lane.index()])))
            }
        })
    }
}

/// The devices of a pool, open and locked, and what the reactors share while they have it open.
pub(super) struct PoolFiles {
    devices: Vec<Opened>,
    pub(super) budget: Budget,
    pub(super) holders: Arc<()>,
}

impl PoolFiles {
    /// Opens the devices in the order of the pool's table.
    pub(super) fn open(found: &Assembled, devices: &Devices) -> Result<Self, Failure> {
        let open = |name: &PathBuf| devices.open(name, Access::Exclusive);
        let devices = found.devices.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { devices, budget: Budget::default(), holders: Arc::new(()) })
    }

    /// A reactor's queues to them.
    pub(super) fn disks(&self, queues: &Queues, hold: &Arc<Hold>) -> Result<Vec<Disk>, Failure> {
        self.devices.iter().map(|device| queues.open(device, hold)).collect()
    }
}

/// The sockets at which clients are awaited: those of NBD, then the one of NVMe/TCP.
pub(super) fn listeners(config: &NodeConfig) -> Result<Vec<Listener>, ListenError> {
    let nbd = &config.nbd;
    let unix = nbd.unix.iter().map(|path| ListenAddress::Unix { path: path.clone(), mode: NBD_SOCKET_MODE });
    let tcp = nbd.tcp.iter().copied().map(ListenAddress::Tcp);
    let nvme_tcp = config.nvme_tcp.iter().map(|hosts| ListenAddress::Tcp(hosts.listen));
    unix.chain(tcp).chain(nvme_tcp).map(|address| listen(&address)).collect()
}

pub(super) fn listen(address: &ListenAddress) -> Result<Listener, ListenError> {
    let in_use =
        |error: &ListenError| if matches!(error, ListenError::InUse(_)) { IN_USE_WAIT_MAX } else { Duration::ZERO };
    patiently(|| Listener::bind(address), in_use)
}
