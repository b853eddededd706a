//! A node's configuration: `node.toml`.
//!
//! # Invariants
//!
//! 1. An unknown key is an error that names its line and the key that was probably meant; nothing is ignored.
//! 2. A [`NodeConfig`] that [`load`] returned satisfies every bound of `bounds`, and all its paths are absolute; only a pool's device may be an
//!    [`NvmeName`] instead.
//! 3. Nothing is reachable from another machine unless the file says `allow_remote = true`; metrics never are.
//! 4. Nothing here names a volume: volumes live in the pool.

mod bounds;
mod keys;
mod nvme;
mod pair;

pub use bounds::{LISTENERS_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN};
pub use nvme::{Fua, NvmeConfig, NvmeName};
pub use pair::{FenceKind, InterconnectPlace, PairConfig};

use crate::{
    base::limits::BLOCK_BYTES,
    control::{
        logging::{LogFormat, LogLevel},
        size::ByteSize,
    },
    reactor::IdlePolicy,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use toml::de::{DeTable, DeValue};

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The whole of `node.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the node within its pair: 1 to 64 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Unix socket of the admin API.
    #[serde(default = "default_admin")]
    pub admin: PathBuf,
    /// NBD front end.
    #[serde(default)]
    pub nbd: NbdConfig,
    /// NVMe/TCP front end; none: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvme_tcp: Option<NvmeTcpConfig>,
    /// Prometheus metrics.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Polling loops.
    #[serde(default)]
    pub reactors: ReactorsConfig,
    /// Memory for blocks.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// The change log.
    pub log: LogConfig,
    /// The pool.
    pub pool: PoolConfig,
    /// NVMe controllers that the node drives.
    #[serde(default)]
    pub nvme: NvmeConfig,
    /// The partner; none: the node is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<PairConfig>,
    /// The partner's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner_pool: Option<PoolConfig>,
    /// This node's portion of the partner's change log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<LogConfig>,
    /// Messages.
    #[serde(default)]
    pub logging: LoggingConfig,
}

/// `[nbd]`: where NBD clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdConfig {
    /// Unix sockets.
    pub unix: Vec<PathBuf>,
    /// TCP addresses with port.
    pub tcp: Vec<SocketAddr>,
    /// Whether a TCP address may be reachable from other machines. NBD here has neither encryption nor passwords.
    pub allow_remote: bool,
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self { unix: vec![PathBuf::from("nbd.sock")], tcp: Vec::new(), allow_remote: false }
    }
}

/// `[nvme_tcp]`: where hosts connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvmeTcpConfig {
    /// The address, as hosts reach it: the discovery service says it to them.
    pub listen: SocketAddr,
    /// The partner's, for the discovery service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<SocketAddr>,
    /// Qualified names of hosts that may connect. Empty, and no `hosts_file` yet: at a loopback address all may, elsewhere nobody.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// File with further hosts and their secrets, which `twinlog host` changes while the node runs; none: there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_file: Option<PathBuf>,
    /// Whether the address may be reachable from other machines. A host's name is no secret, and what is read and written is not encrypted.
    #[serde(default)]
    pub allow_remote: bool,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Loopback address that serves `GET /metrics`; none: no metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// `[reactors]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReactorsConfig {
    /// How many, 1 to 16. Each serves its own volumes from a thread of its own.
    pub count: usize,
    /// CPU for each reactor's thread; empty: the kernel chooses.
    pub cpus: Vec<usize>,
    /// What a reactor does without work.
    pub idle: IdlePolicy,
}

impl Default for ReactorsConfig {
    fn default() -> Self {
        Self { count: 1, cpus: Vec::new(), idle: IdlePolicy::Adaptive }
    }
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bound of the memory for caches, changes and requests of all reactors together.
    pub limit: ByteSize,
    /// Whether to take all of it at the start and register it with the kernel: saves a page lookup per operation, needs `RLIMIT_MEMLOCK`.
    pub pinned: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        // Leaves a quarter of 512 MiB for the program, its stacks, connections and kernel memory.
        Self { limit: ByteSize(384 << 20), pinned: false }
    }
}

/// Where the change log lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogBackend {
    /// A file or block device, written durably once for all changes that wait.
    #[default]
    File,
    /// Persistent memory: a file on a DAX file system, or a devdax device.
    Pmem,
    /// Plain memory: lost with the process.
    Memory,
}

impl fmt::Display for LogBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::File => "file",
            Self::Pmem => "pmem",
            Self::Memory => "memory",
        })
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Kind of storage.
    #[serde(default)]
    pub backend: LogBackend,
    /// File or device; none for `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Bytes of the whole portion, all lanes together.
    #[serde(default = "default_log_size")]
    pub size: ByteSize,
    /// Whether answered changes may be lost with the process or with power.
    #[serde(default)]
    pub allow_volatile: bool,
}

impl LogConfig {
    /// Bytes of one lane's region when the portion has `lane_count` lanes (at least one): equal parts, in whole blocks. Lane `n` begins
    /// at `n` times this.
    #[must_use]
    pub fn lane_bytes(&self, lane_count: u16) -> u64 {
        self.size.bytes() / u64::from(lane_count) / BLOCK_BYTES * BLOCK_BYTES
    }
}

/// `[pool]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Its name: as for a node.
    pub name: String,
    /// Files, block devices, or NVMe namespaces ([`NvmeName`]), in the order in which they were added.
    pub devices: Vec<PathBuf>,
}

/// `[logging]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingConfig {
    /// Least important level that is written.
    pub level: LogLevel,
    /// How a line is written.
    pub format: LogFormat,
}

fn default_admin() -> PathBuf {
    PathBuf::from("admin.sock")
}

fn default_log_size() -> ByteSize {
    ByteSize(256 << 20)
}

/// Why a configuration was not accepted. Its text is complete: file, line, key, reason and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1, when it is known.
    pub line: Option<usize>,
    /// What is wrong, of which key.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Reads and checks the configuration in `file`. Relative paths in it are relative to its directory.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(file: &Path) -> Result<NodeConfig, ConfigError> {
    let fail = |message: String| ConfigError { file: file.to_owned(), line: None, message, hint: String::new() };
    let unreadable = |error: io::Error| fail(format!("cannot read the configuration: {error}"));
    let length = fs::metadata(file).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(fail(format!("the file has {length} bytes; a configuration has at most {FILE_BYTES_MAX}")));
    }
    let text = fs::read_to_string(file).map_err(unreadable)?;
    let directory = std::path::absolute(file).map_err(unreadable)?;
    let mut config = parse(&text, file, directory.parent().unwrap_or(Path::new("/")))?;
    for path in config.paths_mut() {
        *path = tidied(path);
    }
    for device in config.devices_mut().filter(|device| NvmeName::of(device).is_none()) {
        *device = tidied(device);
    }
    Ok(config)
}

/// A pool's device as [`load`] names it, from how a person has named it.
///
/// # Errors
/// The path cannot be made absolute.
pub fn device(name: &Path) -> io::Result<PathBuf> {
    match NvmeName::of(name) {
        Some(Ok(name)) => Ok(name.to_path()),
        Some(Err(why)) => Err(io::Error::new(io::ErrorKind::InvalidInput, why)),
        None => Ok(tidied(&std::path::absolute(name)?)),
    }
}

/// `path` without `..` and links on the way to its last part, which stays as it was named: `/dev/disk/by-id/x` is what a person
/// knows. Unchanged when its directory does not exist.
#[must_use]
pub fn tidied(path: &Path) -> PathBuf {
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

/// Checks the configuration `text`, named `file` in errors; makes relative paths absolute against `directory`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str, file: &Path, directory: &Path) -> Result<NodeConfig, ConfigError> {
    let lines = keys::check(text, file)?;
    let mut config: NodeConfig = toml::from_str(text).map_err(|error| keys::from_toml(text, file, &error))?;
    for path in config.paths_mut() {
        // Joining an absolute path replaces the directory.
        *path = directory.join(&*path);
    }
    for device in config.devices_mut() {
        match NvmeName::of(device) {
            Some(Ok(name)) => *device = name.to_path(),
            // The check of bounds refuses it.
            Some(Err(_)) => {}
            None => *device = directory.join(&*device),
        }
    }
    bounds::check(&config).map_err(|broken| ConfigError {
        file: file.to_owned(),
        line: lines.of(broken.key),
        message: format!("{}: {}", broken.key, broken.message),
        hint: broken.hint,
    })?;
    Ok(config)
}

/// The text of a configuration file that [`parse`] reads back as `config`.
#[must_use]
pub fn to_text(config: &NodeConfig) -> String {
    toml::to_string(config).expect("a configuration has only tables, strings, numbers and lists of them")
}

/// `text` of a configuration with `device` as the pool's last one; comments and layout stay. `None` when the text is no configuration, or
/// the path is not UTF-8.
#[must_use]
pub fn with_device(text: &str, device: &Path) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let DeValue::Table(pool) = document.get_ref().get("pool")?.get_ref() else { return None };
    let DeValue::Array(devices) = pool.get("devices")?.get_ref() else { return None };
    let end = devices.last()?.span().end;
    let device = toml::Value::from(device.to_str()?);
    Some(format!("{}, {device}{}", &text[..end], &text[end..]))
}

impl NodeConfig {
    /// Every path in it that is no device of a pool.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = self.nbd.unix.iter_mut().chain(&mut self.log.path).chain([&mut self.admin]);
        let own = own.chain(self.nvme_tcp.iter_mut().flat_map(|hosts| &mut hosts.hosts_file));
        let pair = self.pair.iter_mut().flat_map(PairConfig::paths_mut);
        own.chain(pair).chain(self.mirror.iter_mut().flat_map(|mirror| &mut mirror.path))
    }

    /// The devices of every pool in it.
    fn devices_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.pool].into_iter().chain(&mut self.partner_pool).flat_map(|pool| &mut pool.devices)
    }
}

#[cfg(test)]
mod tests;
