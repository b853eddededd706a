//! The bounds of every value in a configuration, with the message for each that is broken.

use super::{LogBackend, NodeConfig};
use crate::{
    base::limits::{BLOCK_BYTES, DEVICES_MAX, LANE_BYTES_MIN, LANES_MAX, NAME_BYTES_MAX},
    control::size::ByteSize,
};
use std::{collections::BTreeSet, path::Path};

/// Listening addresses of one kind.
pub const LISTENERS_MAX: usize = 8;
/// Least memory for blocks per reactor: one largest request (32 MiB), its log record's worth, and a cache worth having.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Most memory for blocks: a pool of blocks counts them in 32 bits (16 TiB), and nobody asked for more than this.
pub const MEMORY_BYTES_MAX: u64 = 4 << 40;
/// Least size of a log portion, per reactor: a lane with room for full-size writes during a consistency point.
pub const LOG_BYTES_MIN: u64 = 8 << 20;
/// Largest log portion. Recovery reads it whole, so more than this would make a restart last minutes.
pub const LOG_BYTES_MAX: u64 = 1 << 40;
/// Length of a Unix socket's path: `sun_path` has 108 bytes, the last one zero; and the admin socket is made under a name one byte longer.
const SOCKET_PATH_BYTES_MAX: usize = 106;
/// Highest CPU number: the kernel's `cpu_set_t` has 1024 bits.
const CPUS_MAX: usize = 1024;

const _: () = assert!(LOG_BYTES_MIN >= LANE_BYTES_MIN);

/// A broken bound.
pub(super) struct Broken {
    pub(super) key: &'static str,
    pub(super) message: String,
    pub(super) hint: String,
}

fn ensure(holds: bool, key: &'static str, message: impl FnOnce() -> String, hint: &str) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { key, message: message(), hint: hint.to_owned() }) }
}

/// Checks every bound.
pub(super) fn check(config: &NodeConfig) -> Result<(), Broken> {
    check_name("name", &config.name)?;
    check_name("pool.name", &config.pool.name)?;
    check_socket("admin", &config.admin)?;
    check_nbd(config)?;
    check_reactors(config)?;
    check_memory_and_log(config)?;
    check_log_place(config)?;
    check_devices(config)
}

fn check_name(key: &'static str, name: &str) -> Result<(), Broken> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && name.starts_with(|letter: char| letter.is_ascii_alphanumeric());
    let hint = "use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a letter or digit";
    ensure(good, key, || format!("`{name}` is not a name"), hint)
}

fn check_socket(key: &'static str, path: &Path) -> Result<(), Broken> {
    let length = path.as_os_str().len();
    let message = || {
        format!(
            "the socket's path has {length} bytes; at most {SOCKET_PATH_BYTES_MAX} can be bound: {}",
            path.display()
        )
    };
    ensure(length <= SOCKET_PATH_BYTES_MAX, key, message, "give a shorter path, for example one below /run/twinlog")
}

fn check_nbd(config: &NodeConfig) -> Result<(), Broken> {
    let nbd = &config.nbd;
    for path in &nbd.unix {
        check_socket("nbd.unix", path)?;
        ensure(
            *path != config.admin,
            "nbd.unix",
            || "the same socket as `admin`".to_owned(),
            "give each its own path",
        )?;
    }
    let count = |key, length: usize| {
        ensure(length <= LISTENERS_MAX, key, || format!("{length} addresses; at most {LISTENERS_MAX}"), "remove some")
    };
    count("nbd.unix", nbd.unix.len())?;
    count("nbd.tcp", nbd.tcp.len())?;
    let some = !nbd.unix.is_empty() || !nbd.tcp.is_empty();
    ensure(
        some,
        "nbd",
        || "neither `unix` nor `tcp` names an address: nobody could connect".to_owned(),
        "add unix = [\"nbd.sock\"]",
    )?;
    for address in &nbd.tcp {
        let message = || format!("{address} can be reached from other machines, and NBD has no password here");
        let hint = "use 127.0.0.1, or set `allow_remote = true` in [nbd] if every machine that reaches the port may read and write all volumes";
        ensure(nbd.allow_remote || address.ip().is_loopback(), "nbd.tcp", message, hint)?;
    }
    if let Some(address) = config.metrics.address {
        let message = || format!("{address} is not a loopback address; metrics are served on loopback only");
        ensure(address.ip().is_loopback(), "metrics.address", message, "use 127.0.0.1, and a proxy to go further")?;
    }
    Ok(())
}

fn check_reactors(config: &NodeConfig) -> Result<(), Broken> {
    let reactors = &config.reactors;
    let (count, cpus) = (reactors.count, &reactors.cpus);
    ensure(
        (1..=LANES_MAX).contains(&count),
        "reactors.count",
        || format!("{count} is outside 1 to {LANES_MAX}"),
        "one per core that Twinlog may use",
    )?;
    let fits = cpus.is_empty() || cpus.len() == count;
    ensure(
        fits,
        "reactors.cpus",
        || format!("{} CPUs for {count} reactors", cpus.len()),
        "give one CPU per reactor, or an empty list",
    )?;
    if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= CPUS_MAX) {
        ensure(
            false,
            "reactors.cpus",
            || format!("CPU {cpu} is beyond {}", CPUS_MAX - 1),
            "`lscpu -e` lists the CPUs",
        )?;
    }
    let distinct = cpus.iter().collect::<BTreeSet<_>>().len() == cpus.len();
    ensure(
        distinct,
        "reactors.cpus",
        || "a CPU is named twice".to_owned(),
        "two polling loops on one CPU would halve each other",
    )
}

fn check_memory_and_log(config: &NodeConfig) -> Result<(), Broken> {
    let count = config.reactors.count as u64;
    let between = |key, size: ByteSize, min: u64, max: u64| {
        let (smallest, largest) = (ByteSize(min), ByteSize(max));
        let message = || format!("{size} is outside {smallest} to {largest} (with {count} reactors)");
        ensure((min..=max).contains(&size.bytes()), key, message, "change the size, or `reactors.count`")
    };
    between("memory.limit", config.memory.limit, MEMORY_BYTES_MIN * count, MEMORY_BYTES_MAX)?;
    between("log.size", config.log.size, LOG_BYTES_MIN * count, LOG_BYTES_MAX)?;
    let size = config.log.size;
    let whole = size.bytes().is_multiple_of(BLOCK_BYTES);
    ensure(whole, "log.size", || format!("{size} is not a multiple of {BLOCK_BYTES} bytes"), "round it to MiB")
}

fn check_log_place(config: &NodeConfig) -> Result<(), Broken> {
    let log = &config.log;
    let backend = log.backend;
    if backend == LogBackend::Memory {
        let message = || "`memory` loses every answered change when the process ends".to_owned();
        ensure(
            log.allow_volatile,
            "log.backend",
            message,
            "use \"file\", or set `allow_volatile = true` in [log] to accept that",
        )?;
        ensure(
            log.path.is_none(),
            "log.path",
            || "a log in memory has no path".to_owned(),
            "remove `path`, or use backend = \"file\"",
        )
    } else {
        ensure(log.path.is_some(), "log", || format!("a log on `{backend}` needs a `path`"), "add path = \"log\"")
    }
}

fn check_devices(config: &NodeConfig) -> Result<(), Broken> {
    let devices = &config.pool.devices;
    let count = devices.len();
    ensure(
        (1..=DEVICES_MAX).contains(&count),
        "pool.devices",
        || format!("{count} devices; a pool has 1 to {DEVICES_MAX}"),
        "list files or block devices",
    )?;
    let mut seen = BTreeSet::new();
    for device in devices {
        ensure(seen.insert(device), "pool.devices", || format!("{} is named twice", device.display()), "remove one")?;
        let same = config.log.path.as_ref() == Some(device);
        ensure(
            !same,
            "pool.devices",
            || format!("{} is also the log", device.display()),
            "give the log a place of its own",
        )?;
    }
    Ok(())
}
