//! What is done with the files of a node that does not run: made, checked, tried.

use super::{
    devices::{Devices, Opened},
    no_memory, no_ring,
    platform::{Disk, NodePlatform},
    storage::{Portion, in_use, open_file, patiently},
};
use crate::cli::{
    foreign::Foreign,
    output::{Exit, Failure},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use twinlog::{
    base::{LaneIndex, PoolId, PortionId, limits::BLOCK_BYTES},
    changelog::{Format, ReadHeader},
    control::config::{LogConfig, NodeConfig},
    cp::check::{Check, CheckReport},
    format::{
        lane_header::{LaneIdentity, PortionRole},
        superblock::Superblock,
    },
    pool::{
        io::{Io, Tag},
        superblocks::{CreatePool, first_superblock},
    },
};
use twinlog_device::{BlockPool, DurabilityClass, Platform, Wait};
use twinlog_uring::{
    Access, AnyLog, Cache, PersistenceDomain, PmemFile, Ring, RingOptions, StorageFile, UringPlatform,
};

/// Memory for making or checking a pool without serving it: 64 MiB.
pub(super) const OFFLINE_BLOCKS: u32 = 16_384;
/// Longest sleep while nothing but a completion is waited for.
const OFFLINE_WAIT: Wait = Wait::UpTo(Duration::from_secs(1));

/// Makes a ring and says what it has; or why there is none.
pub(crate) fn try_io_uring() -> Result<String, String> {
    let pool = BlockPool::new(1).map_err(|error| error.to_string())?;
    let facts = Ring::new(RingOptions::default(), &pool).map_err(|error| error.to_string())?.facts();
    let word = |there: bool, word: &'static str| if there { word } else { "" };
    let words = [
        "works",
        word(facts.deferred_completions, "deferred completions"),
        word(facts.registered_files, "registered files"),
        word(facts.multishot_accept, "multishot accept"),
    ];
    Ok(words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", "))
}

/// Makes a file in `directory` and opens it with `O_DIRECT`; or says why that fails. Leaves nothing behind.
pub(crate) fn try_direct(directory: &Path) -> Result<(), String> {
    let path = directory.join(format!(".twinlog-doctor-{}", std::process::id()));
    let tried = std::fs::write(&path, [0; 4096]).map_err(|error| error.to_string()).and_then(|()| {
        let file = StorageFile::open(&path, Access::Exclusive, Cache::Bypass).map_err(|error| error.to_string())?;
        if file.is_direct() { Ok(()) } else { Err("the file system goes through the page cache".to_owned()) }
    });
    // When it cannot be removed it could not be made.
    let _never_made = std::fs::remove_file(&path);
    tried
}

/// What a file is when it is mapped as log memory.
pub(crate) struct MappedFacts {
    pub(crate) durability: DurabilityClass,
    pub(crate) domain: PersistenceDomain,
    /// Bytes that the memory has lost.
    pub(crate) bad_bytes: u64,
}

/// Maps a file that nobody uses, for a moment.
pub(crate) fn try_pmem(path: &Path) -> Result<MappedFacts, Failure> {
    let file = PmemFile::open(path)?;
    let bad_bytes = file.bad_ranges().iter().map(|range| range.end - range.start).sum();
    Ok(MappedFacts { durability: file.durability(), domain: file.domain(), bad_bytes })
}

/// A device-DAX node, which can only be read through a mapping; read from its begin.
pub(crate) struct DaxNode {
    file: PmemFile,
    place: u64,
}

impl DaxNode {
    /// Opens `path` if it is such a node.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, Failure> {
        if !path.metadata().is_ok_and(|facts| facts.file_type().is_char_device()) {
            return Ok(None);
        }
        Ok(Some(Self { file: patiently(|| PmemFile::open(path), in_use)?, place: 0 }))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    /// What it holds, if not only zeroes.
    pub(crate) fn find(&self) -> io::Result<Option<Foreign>> {
        let mut buffer = vec![0; 1 << 20];
        let mut place = 0;
        while place < self.size_bytes() {
            let length = usize::try_from((self.size_bytes() - place).min(buffer.len() as u64)).expect("a buffer");
            let piece = &mut buffer[..length];
            self.read_exact_at(piece, place)?;
            if let Some(at) = piece.iter().position(|&byte| byte != 0) {
                return Ok(Some(Foreign { what: "data".to_owned(), byte: place + at as u64, is_ours: false }));
            }
            place += length as u64;
        }
        Ok(None)
    }
}

impl Read for DaxNode {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from((self.size_bytes() - self.place).min(buffer.len() as u64)).expect("a buffer");
        self.read_exact_at(&mut buffer[..length], self.place)?;
        self.place += length as u64;
        Ok(length)
    }
}

/// What the system says of the memory of a device.
pub(crate) fn persistence_domain(device: &Path) -> String {
    PersistenceDomain::of(device).to_string()
}

/// Makes a log file of zeroes that is written through; `progress` is told the bytes done.
pub(crate) fn create_log_file(path: &Path, size_bytes: u64, progress: impl FnMut(u64)) -> Result<(), Failure> {
    Ok(twinlog_uring::create_log_file(path, size_bytes, progress)?)
}

/// A random id, never zero.
pub(crate) fn random_id() -> Result<u128, Failure> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|error| Failure::system("read", "/dev/urandom", &error))?;
    Ok(u128::from_le_bytes(bytes).max(1))
}

/// What a new pool is called and identified by.
pub(crate) struct NewPool {
    pub(crate) id: PoolId,
    /// One per device.
    pub(crate) device_ids: Vec<u128>,
    /// The portion of its home node.
    pub(crate) portion: PortionId,
    pub(crate) lane_count: u16,
    /// Nanoseconds since the Unix epoch.
    pub(crate) time_ns: u64,
}

/// Writes the header of a lane, durably.
fn format_lane(
    log: AnyLog,
    identity: &LaneIdentity,
    id: PortionId,
    platform: &mut UringPlatform,
) -> Result<(), Failure> {
    let mut format = Format::new(log, identity, id);
    while !format
        .poll()
        .map_err(|error| Failure::new(Exit::Error, format!("cannot format the log: {error}"), "twinlog doctor"))?
    {
        platform.turn(OFFLINE_WAIT.at_most(platform.longest_sleep()));
    }
    Ok(())
}

/// The id in a portion's headers; `None` when they cannot be read or do not agree: a node of a pair makes it anew before it is used.
pub(super) fn portion_id(portion: &Portion) -> Result<Option<PortionId>, Failure> {
    let blocks = BlockPool::new(1).map_err(no_memory)?;
    let ring = Ring::new(RingOptions::default(), &blocks).map_err(no_ring)?;
    let mut platform = UringPlatform::new(ring.clone());
    let mut found = None;
    for lane in (0..portion.lane_count()).map(LaneIndex) {
        let mut reading = ReadHeader::new(portion.lane(&ring, lane)?);
        let header = loop {
            match reading.poll() {
                Ok(Some(header)) => break header,
                Ok(None) => drop(platform.turn(OFFLINE_WAIT.at_most(platform.longest_sleep()))),
                Err(error) => {
                    tracing::warn!(%error, "a portion of change log cannot be used as it is");
                    return Ok(None);
                }
            }
        };
        if header.identity != portion.identity(lane) || found.is_some_and(|id| id != header.portion) {
            tracing::warn!(%lane, "a portion of change log is not this pool's, or was not made at once");
            return Ok(None);
        }
        found = Some(header.portion);
    }
    Ok(found)
}

/// Formats every lane of a portion.
pub(super) fn format_portion(portion: &Portion, id: PortionId) -> Result<(), Failure> {
    let blocks = BlockPool::new(1).map_err(no_memory)?;
    let ring = Ring::new(RingOptions::default(), &blocks).map_err(no_ring)?;
    let mut platform = UringPlatform::new(ring.clone());
    for lane in (0..portion.lane_count()).map(LaneIndex) {
        format_lane(portion.lane(&ring, lane)?, &portion.identity(lane), id, &mut platform)?;
    }
    Ok(())
}

/// Formats the portion of change log that `config` describes.
pub(crate) fn create_portion(
    config: &LogConfig,
    pool: PoolId,
    role: PortionRole,
    lane_count: u16,
    id: PortionId,
) -> Result<(), Failure> {
    format_portion(&Portion::open(config, pool, role, lane_count)?, id)
}

/// Formats the log's lanes, then the devices: the pool exists when its first superblock is durable.
pub(crate) fn create_pool(
    config: &NodeConfig,
    devices: &Devices,
    new: &NewPool,
    overwrite: bool,
) -> Result<(), Failure> {
    // The devices first: nothing is written while another process has one.
    let names = config.pool.devices.iter();
    let opened = names.map(|name| devices.open(name, Access::Exclusive)).collect::<Result<Vec<_>, _>>()?;
    create_portion(&config.log, new.id, PortionRole::Own, new.lane_count, new.portion)?;
    let (blocks, mut platform) = offline_platform(devices)?;
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Error, format!("cannot make pool {}: {error}", config.pool.name), "twinlog doctor")
    };
    let sizes = opened.iter().map(|device| device.size_bytes() / BLOCK_BYTES);
    let table: Vec<(u128, u64)> = new.device_ids.iter().copied().zip(sizes).collect();
    let superblock = first_superblock(new.id, &config.pool.name, &table, new.lane_count, new.time_ns);
    let disks = queues(&opened, &platform)?;
    let mut io = Io::new(disks, blocks, 0);
    let mut create = CreatePool::new(&mut io, 0, superblock, overwrite);
    loop {
        io.poll();
        while let Some(event) = io.next_event() {
            if create.event(&mut io, event).map_err(|error| failed(&error))? {
                return Ok(());
            }
        }
        // Hands over what the events have led to.
        io.poll();
        platform.turn(OFFLINE_WAIT.at_most(platform.longest_sleep()));
    }
}

/// A platform on the memory that the controllers of `devices` reach.
fn offline_platform(devices: &Devices) -> Result<(BlockPool, NodePlatform), Failure> {
    let blocks = devices.blocks()?.clone();
    let ring = Ring::new(RingOptions::default(), &blocks).map_err(no_ring)?;
    Ok((blocks, NodePlatform::new(&ring, Arc::default())?))
}

fn queues(opened: &[Opened], platform: &NodePlatform) -> Result<Vec<Disk>, Failure> {
    opened.iter().map(|device| platform.queues().open(device, &Arc::default())).collect()
}

/// Checks the consistency point of `superblock` on the devices of a stopped node. Reads only; `progress` is told blocks done and in all.
pub(crate) fn check(
    devices: &Devices,
    names: &[PathBuf],
    superblock: Superblock,
    mut progress: impl FnMut(u64, u64),
) -> Result<CheckReport, Failure> {
    let opened = names.iter().map(|name| devices.open(name, Access::ReadOnly)).collect::<Result<Vec<_>, _>>()?;
    let (blocks, mut platform) = offline_platform(devices)?;
    let disks = queues(&opened, &platform)?;
    let mut io = Io::new(disks, blocks, usize::try_from(OFFLINE_BLOCKS / 4).expect("small"));
    let mut check = Check::new(superblock, Tag { owner: 0, id: 0 });
    loop {
        io.poll();
        while let Some(event) = io.next_event() {
            check.event(event);
        }
        if let Some(report) = check.step(&mut io) {
            return Ok(report);
        }
        let (done, total) = check.progress();
        progress(done, total);
        platform.turn(Wait::No);
    }
}

/// Writes zeroes over the first and the last `bytes` of a file or device that nobody else uses.
pub(crate) fn wipe(path: &Path, bytes: u64) -> Result<(), Failure> {
    let open = open_file(path)?;
    let zeroes = vec![0; usize::try_from(bytes.min(open.size_bytes())).expect("small")];
    let wiped = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.write_all_at(&zeroes, 0)?;
        file.write_all_at(&zeroes, open.size_bytes() - zeroes.len() as u64)?;
        file.sync_all()
    });
    wiped.map_err(|error| Failure::system("wipe", path.display(), &error))
}
