//! The bounds of every value in a configuration, with the message for each that is broken.

use super::{
    FenceKind, InterconnectPlace, LogBackend, LogConfig, NodeConfig, NvmeName, NvmeTcpConfig, PoolConfig,
    pair::{DEADLINE_MS, FENCE_LIMIT_S, REQUEST_WAIT_S},
};
use crate::{
    base::limits::{BLOCK_BYTES, DEVICES_MAX, LANE_BYTES_MIN, LANES_MAX, NAME_BYTES_MAX},
    control::{hosts::HOSTS_MAX, size::ByteSize},
    serve::nvme_tcp::wire::command::is_name,
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

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

/// Only a pool's devices are NVMe namespaces that the node drives.
fn check_places(config: &NodeConfig) -> Result<(), Broken> {
    let mailbox = config.pair.as_ref().and_then(|pair| pair.mailbox.as_ref());
    let places = [
        ("log.path", config.log.path.as_ref(), "a file, a block device, or persistent memory"),
        (
            "mirror.path",
            config.mirror.as_ref().and_then(|log| log.path.as_ref()),
            "a file, a block device, or persistent memory",
        ),
        ("pair.mailbox", mailbox, "a file on the machine of both nodes; or a witness"),
    ];
    for (key, path, hint) in places {
        // It was joined to the configuration's folder.
        let is_namespace = |path: &PathBuf| path.iter().any(|part| NvmeName::of(Path::new(part)).is_some());
        ensure(
            !path.is_some_and(is_namespace),
            key,
            || "only a pool's devices lie on an NVMe controller that the node drives".to_owned(),
            hint,
        )?;
    }
    Ok(())
}

/// That the fences keep the partner's writes away from the devices. NVMe namespaces that a node drives have no locks: that a process has ended does not say that its
/// controller has been stopped, and that its lease has ended does not say that what the controller was given is done.
fn check_device_fences(config: &NodeConfig, pair: &super::PairConfig) -> Result<(), Broken> {
    let pools = [Some(&config.pool), config.partner_pool.as_ref()];
    let devices = || pools.into_iter().flatten().flat_map(|pool| &pool.devices);
    let namespace = devices().find(|device| NvmeName::of(device).is_some());
    let file = devices().find(|device| NvmeName::of(device).is_none());
    if let (true, Some(file)) = (pair.reserves(), file) {
        let message =
            || format!("`reservation` is held on NVMe namespaces that the node drives, and {} is none", file.display());
        ensure(false, "pair.fence", message, "all devices of both pools as nvme:SERIAL; or fence = [\"command\"]")?;
    }
    let Some(namespace) = namespace else { return Ok(()) };
    for kind in &pair.fence {
        let why = match kind {
            FenceKind::Lock | FenceKind::Process => {
                "tells that a process has ended, not that its controllers have stopped"
            }
            FenceKind::Lease if !pair.accept_in_flight_io => {
                "stops a process by its clock, not what its controllers were given"
            }
            FenceKind::Lease | FenceKind::Reservation | FenceKind::Command => continue,
        };
        let message = || {
            format!(
                "`{}` {why}: a write to {} may land after the takeover, over newer data",
                kind.word(),
                namespace.display()
            )
        };
        ensure(
            false,
            "pair.fence",
            message,
            "fence = [\"reservation\"] where the controllers know reservations, or [\"command\"] with a program that switches the machine off",
        )?;
    }
    Ok(())
}

fn within(key: &'static str, value: u64, bounds: &RangeInclusive<u64>, good: u64) -> Result<(), Broken> {
    let message = || format!("{value} is outside {} to {}", bounds.start(), bounds.end());
    ensure(bounds.contains(&value), key, message, &format!("{good} is a good value"))
}

/// Checks every bound.
pub(super) fn check(config: &NodeConfig) -> Result<(), Broken> {
    check_name("name", &config.name)?;
    check_name("pool.name", &config.pool.name)?;
    check_socket("admin", &config.admin)?;
    check_nbd(config)?;
    check_nvme_tcp(config)?;
    check_reactors(config)?;
    check_memory_and_log(config)?;
    check_log_place(["log", "log.backend", "log.path"], &config.log)?;
    check_devices("pool.devices", &config.pool, &config.log)?;
    check_places(config)?;
    check_pair(config)
}

/// `[pair]` and what belongs to it.
fn check_pair(config: &NodeConfig) -> Result<(), Broken> {
    let together = [config.pair.is_some(), config.partner_pool.is_some(), config.mirror.is_some()];
    let agree = together.iter().all(|there| *there == together[0]);
    ensure(
        agree,
        "pair",
        || "[pair], [partner_pool] and [mirror] belong together, and one of them is missing".to_owned(),
        "write all three, or none for a node without a partner",
    )?;
    let (Some(pair), Some(pool), Some(mirror)) = (&config.pair, &config.partner_pool, &config.mirror) else {
        return Ok(());
    };
    check_name("pair.partner", &pair.partner)?;
    check_name("partner_pool.name", &pool.name)?;
    ensure(
        pair.partner != config.name,
        "pair.partner",
        || format!("`{}` is this node itself", pair.partner),
        "name the other node",
    )?;
    ensure(
        pool.name != config.pool.name,
        "partner_pool.name",
        || format!("`{}` is this node's own pool", pool.name),
        "name the partner's pool",
    )?;
    check_devices("partner_pool.devices", pool, mirror)?;
    check_log_place(["mirror", "mirror.backend", "mirror.path"], mirror)?;
    ensure(
        mirror.path.is_none() || mirror.path != config.log.path,
        "mirror.path",
        || "it is also the node's own log".to_owned(),
        "give the mirror a place of its own",
    )?;
    if let Some(device) = pool.devices.iter().find(|device| config.pool.devices.contains(device)) {
        let message = || format!("{} belongs to this node's own pool too", device.display());
        ensure(false, "partner_pool.devices", message, "a device belongs to one pool")?;
    }
    // The partner replays this log with the memory that it was admitted with, and both have a lane for each reactor.
    ensure(
        mirror.size == config.log.size,
        "mirror.size",
        || format!("{} differs from log.size, {}", mirror.size, config.log.size),
        "both nodes' portions have the same size",
    )?;
    check_interconnect(pair)?;
    check_interconnect_cpu(pair, &config.reactors.cpus)?;
    within("pair.deadline_ms", pair.deadline_ms, &DEADLINE_MS, 1000)?;
    within("pair.request_wait_s", pair.request_wait_s, &REQUEST_WAIT_S, 30)?;
    ensure(
        !pair.fence.is_empty(),
        "pair.fence",
        || "without a fence nobody may take over".to_owned(),
        "fence = [\"lock\"]",
    )?;
    check_arbiter(pair)?;
    check_device_fences(config, pair)?;
    check_fence_command(pair)
}

/// Where the registers are, and that the fences fit that.
///
/// A mailbox is guarded by a lock, which tells of this machine's processes only; and a write to it that hung on its way to a disk elsewhere could land on
/// the partner's newer register. Between two machines neither a change of a register nor the fences `lock` and `process` would be safe.
fn check_arbiter(pair: &super::PairConfig) -> Result<(), Broken> {
    ensure(
        pair.mailbox.is_some() != pair.witness.is_some(),
        "pair.mailbox",
        || "the pair's registers are in a `mailbox` or at a `witness`: one of the two is needed".to_owned(),
        "mailbox = \"../disks/mailbox\", or witness = \"host:port\"",
    )?;
    if let Some(address) = pair.remote_address() {
        ensure(
            pair.mailbox.is_none(),
            "pair.mailbox",
            || format!("`mailbox` is safe between nodes of one machine only, and {address} is for other ones"),
            "witness = \"host:port\" in its place, of a third machine on which `twinlog witness` runs",
        )?;
    }
    if let Some(address) = &pair.witness {
        let is_address = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        let message = || format!("`{}` is no host and port", address.escape_debug());
        ensure(is_address, "pair.witness", message, "witness = \"192.0.2.9:7117\"")?;
        let needs_lock = pair.fence.iter().find(|kind| matches!(kind, FenceKind::Lock | FenceKind::Process));
        ensure(
            needs_lock.is_none(),
            "pair.fence",
            || {
                format!(
                    "`{}` needs the locks of a mailbox, and a witness has none",
                    needs_lock.map_or("", |kind| kind.word())
                )
            },
            "fence = [\"command\"], or [\"lease\"]",
        )?;
    }
    check_lease(pair)
}

/// A node whose lease has ended gives nothing more to its devices; what it has given to them before is theirs. On one machine the opener of a pool waits for the locks of
/// its devices, which go with the last write; between two nothing says when that was.
fn check_lease(pair: &super::PairConfig) -> Result<(), Broken> {
    let is_between_machines = pair.fence.contains(&FenceKind::Lease) && pair.remote_address().is_some();
    ensure(
        !is_between_machines || pair.accept_in_flight_io,
        "pair.fence",
        || {
            format!(
                "`lease` stops {} by its clock, not what it has given to its disks: a write that is delayed on its way may land after the takeover, over newer data",
                pair.partner
            )
        },
        "fence = [\"command\"] with a program that switches the machine off; or accept that: accept_in_flight_io = true",
    )
}

fn check_fence_command(pair: &super::PairConfig) -> Result<(), Broken> {
    let has_command = pair.fence.contains(&FenceKind::Command);
    ensure(
        has_command != pair.fence_command.is_empty(),
        "pair.fence_command",
        || "`fence` and `fence_command` disagree whether there is a command".to_owned(),
        "name \"command\" in `fence`, and the program in `fence_command`",
    )?;
    within("pair.fence_limit_s", pair.fence_limit_s, &FENCE_LIMIT_S, 60)?;
    for (key, value) in &pair.fence_options {
        // A line each: KEY=VALUE.
        let is_key =
            !key.is_empty() && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter));
        ensure(
            is_key && !value.contains(['\n', '\r', '\0']),
            "pair.fence_options",
            || format!("`{}` is no option of a fence agent, or its value has more than one line", key.escape_debug()),
            "fence_options = { ip = \"192.0.2.1\", username = \"admin\" }",
        )?;
    }
    Ok(())
}

fn check_interconnect(pair: &super::PairConfig) -> Result<(), Broken> {
    for (key, sockets) in [("pair.unix", &pair.unix), ("pair.partner_unix", &pair.partner_unix)] {
        sockets.iter().try_for_each(|path| check_socket(key, path))?;
    }
    let sides = [
        ("pair.tcp", pair.unix.len() + pair.tcp.len(), "this node"),
        ("pair.partner_tcp", pair.partner_unix.len() + pair.partner_tcp.len(), "the partner"),
    ];
    for (key, count, who) in sides {
        ensure(
            (1..=LISTENERS_MAX).contains(&count),
            key,
            || format!("{count} addresses for {who}; 1 to {LISTENERS_MAX} are possible"),
            "two on different networks survive the loss of one",
        )?;
    }
    for address in &pair.tcp {
        ensure(
            pair.allow_remote || address.ip().is_loopback(),
            "pair.tcp",
            || format!("{address} can be reached from other machines"),
            "set `allow_remote = true` in [pair], and `encrypt = true` unless nobody else reaches that network",
        )?;
    }
    Ok(())
}

fn check_interconnect_cpu(pair: &super::PairConfig, taken: &[usize]) -> Result<(), Broken> {
    let (key, Some(cpu)) = ("pair.interconnect_cpu", pair.interconnect_cpu) else { return Ok(()) };
    ensure(
        pair.interconnect != InterconnectPlace::Reactor,
        key,
        || "a CPU for an interconnect that has no thread of its own".to_owned(),
        "interconnect = \"thread\", or no interconnect_cpu",
    )?;
    ensure(cpu < CPUS_MAX, key, || format!("CPU {cpu} is beyond {}", CPUS_MAX - 1), "`lscpu -e` lists the CPUs")?;
    ensure(
        !taken.contains(&cpu),
        key,
        || format!("CPU {cpu} is a reactor's"),
        "two polling loops on one CPU would halve each other; interconnect = \"reactor\" has one do both",
    )
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

fn check_nvme_tcp(config: &NodeConfig) -> Result<(), Broken> {
    let Some(NvmeTcpConfig { listen, partner, hosts, hosts_file, allow_remote }) = &config.nvme_tcp else {
        return Ok(());
    };
    let is_address = |address: &SocketAddr| address.port() > 0 && !address.ip().is_unspecified();
    for (key, address) in [("nvme_tcp.listen", Some(listen)), ("nvme_tcp.partner", partner.as_ref())] {
        let Some(address) = address else { continue };
        let message = || format!("{address} is not an address at which hosts reach it, and they are told so");
        ensure(is_address(address), key, message, "listen = \"192.0.2.1:4420\"")?;
    }
    ensure(
        partner.is_none() || config.pair.is_some(),
        "nvme_tcp.partner",
        || "the node has no partner".to_owned(),
        "remove it",
    )?;
    if !listen.ip().is_loopback() {
        let message = || format!("{listen} can be reached from other machines");
        let hint = "use 127.0.0.1, or set `allow_remote = true` in [nvme_tcp] if that network is trusted";
        ensure(*allow_remote, "nvme_tcp.listen", message, hint)?;
        let message = || format!("no host can ever connect: {listen} can be reached from other machines");
        let hint =
            "hosts_file = \"hosts.toml\", for `twinlog host add`; or hosts = [\"nqn...\"]: a host's /etc/nvme/hostnqn";
        ensure(!hosts.is_empty() || hosts_file.is_some(), "nvme_tcp.hosts", message, hint)?;
    }
    let count = hosts.len();
    ensure(count <= HOSTS_MAX, "nvme_tcp.hosts", || format!("{count} hosts; at most {HOSTS_MAX}"), "remove some")?;
    for host in hosts {
        let message = || format!("`{}` is not a qualified name", host.escape_debug());
        ensure(
            is_name(host),
            "nvme_tcp.hosts",
            message,
            "as it stands in a host's /etc/nvme/hostnqn: nqn.YYYY-MM....",
        )?;
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

/// The keys are those of the table, its `backend` and its `path`.
fn check_log_place([table, backend_key, path_key]: [&'static str; 3], log: &LogConfig) -> Result<(), Broken> {
    let backend = log.backend;
    if backend == LogBackend::Memory {
        let message = || "`memory` loses every answered change when the process ends".to_owned();
        ensure(
            log.allow_volatile,
            backend_key,
            message,
            "use \"file\", or set `allow_volatile = true` beside it to accept that",
        )?;
        ensure(
            log.path.is_none(),
            path_key,
            || "a log in memory has no path".to_owned(),
            "remove `path`, or use backend = \"file\"",
        )
    } else {
        ensure(log.path.is_some(), table, || format!("a log on `{backend}` needs a `path`"), "add path = \"log\"")
    }
}

fn check_devices(key: &'static str, pool: &PoolConfig, log: &LogConfig) -> Result<(), Broken> {
    let devices = &pool.devices;
    let count = devices.len();
    ensure(
        (1..=DEVICES_MAX).contains(&count),
        key,
        || format!("{count} devices; a pool has 1 to {DEVICES_MAX}"),
        "list files, block devices or nvme:SERIAL",
    )?;
    let mut seen = BTreeSet::new();
    for device in devices {
        if let Some(Err(why)) = NvmeName::of(device) {
            ensure(
                false,
                key,
                || format!("{}: {why}", device.display()),
                "nvme:SERIAL, or nvme:SERIAL/2; a file: ./NAME",
            )?;
        }
        ensure(seen.insert(device), key, || format!("{} is named twice", device.display()), "remove one")?;
        let same = log.path.as_ref() == Some(device);
        ensure(!same, key, || format!("{} is also the log", device.display()), "give the log a place of its own")?;
    }
    Ok(())
}
