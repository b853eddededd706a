//! Log memory: a flat region of bytes in which one lane of a change log lives.
//!
//! Bytes are *stored*, then *persisted*. What a persist covers is durable when it completes, in the sense of
//! [`LogInfo::durability`].
//!
//! # Contract
//!
//! 1. `store` copies; the caller's bytes are free at once. Stores between two persists are ascending and contiguous, begin and end
//!    on multiples of [`LogInfo::unit_bytes`], and never wrap around the end of the region.
//! 2. `persist` covers every store since the previous `persist`. Persists complete in the order in which they were queued.
//! 3. At a power cut, bytes of a persist that has not completed may be old or new, each aligned unit of
//!    [`LogInfo::atomic_bytes`] by itself, in any subset.
//! 4. `read` returns what was persisted; what was only stored may or may not be seen.
//! 5. After a failed persist the region accepts nothing more: every later operation fails.

use crate::{DeviceError, Token};
use std::fmt;

/// What durable content survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DurabilityClass {
    /// Lost with the process or the node's power: memory, tmpfs.
    Volatile,
    /// Survives the process, lost with power: a shared mapping of a file that is not on persistent memory.
    Process,
    /// Survives power loss: a disk's durable write, or persistent memory.
    Durable,
}

impl fmt::Display for DurabilityClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Volatile => "volatile",
            Self::Process => "process",
            Self::Durable => "durable",
        })
    }
}

/// What a region of log memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogInfo {
    /// The name that a person configured.
    pub name: String,
    /// `pmem`, `file` or `memory`.
    pub backend: &'static str,
    /// Bytes of the region: a multiple of 4096.
    pub size_bytes: u64,
    /// Stores begin and end on multiples of this: a power of two, 64 to 4096.
    pub unit_bytes: u32,
    /// Unit that a power cut leaves old or new as a whole: a power of two, 8 to 4096.
    pub atomic_bytes: u32,
    /// What a completed persist survives.
    pub durability: DurabilityClass,
    /// Most bytes of stores that may wait for their persist's completion at the same time.
    pub pending_bytes_max: u64,
}

/// The end of a persist or a read.
#[derive(Debug)]
pub struct LogCompletion {
    /// The caller's token.
    pub token: Token,
    /// The bytes of a read, empty for a persist; or why not.
    pub result: Result<Vec<u8>, DeviceError>,
}

/// One lane's region of log memory, used by one reactor. Dropping it waits for what is in flight, so that whoever opens the region next meets
/// nothing of it.
pub trait LogMemory {
    /// What the region is. Constant while it is open.
    fn info(&self) -> &LogInfo;

    /// How many bytes may be stored now: zero when the pending bound is reached.
    fn room_bytes(&self) -> u64;

    /// Copies `bytes` to `offset_bytes`.
    fn store(&mut self, offset_bytes: u64, bytes: &[u8]);

    /// Queues a persist of everything stored since the last one. At most eight are in flight.
    fn persist(&mut self, token: Token);

    /// How many further persists or reads may be queued now.
    fn room(&self) -> usize;

    /// Queues a read; offset and length are multiples of 4096, the length at most 1 MiB.
    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize);

    /// Moves finished operations to the end of `completions`.
    fn poll(&mut self, completions: &mut Vec<LogCompletion>);
}
