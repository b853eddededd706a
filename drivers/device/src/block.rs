//! One disk: blocks of [`BLOCK_BYTES`](crate::BLOCK_BYTES) that are read, written, flushed and discarded.
//!
//! # Durability contract
//!
//! 1. A completed [`Persistence::Volatile`] write may be lost, in any subset and order of its sectors, until a flush that was
//!    queued *after* the write's completion has completed.
//! 2. A completed [`Persistence::Durable`] write (FUA) is durable; it says nothing about other writes.
//! 3. A write in flight at a power cut leaves each aligned sector of [`DeviceInfo::sector_bytes`] old or new.
//! 4. A read returns the newest completed write of each sector, durable or not.
//!
//! # Bounds contract
//!
//! 5. A read, write or discard of which any part lies beyond the device completes with [`DeviceErrorKind::Beyond`] and changes nothing.
//! 6. A transfer of no block or of more than [`DeviceInfo::transfer_blocks_max`] is a programming error (panic), as is an operation
//!    without room.
//! 7. On an idle device `room` equals [`DeviceInfo::queue_depth`]; an operation takes one place from its call until `poll` returns it.

use crate::{BlockBuf, DurabilityClass, SharedBlock, Token};
use std::{fmt, time::Duration};
use thiserror::Error;

/// Consecutive blocks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First block, counted in blocks from the start of the device.
    pub first: u64,
    /// Number of blocks, at least one.
    pub count: u64,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The name that a person configured: a path, or a serial number.
    pub name: String,
    /// Whole blocks on the device.
    pub block_count: u64,
    /// Unit of atomic writes, in bytes: a power of two, 512 to 4096.
    pub sector_bytes: u32,
    /// Most blocks of one read or write.
    pub transfer_blocks_max: u32,
    /// Operations in flight at the same time.
    pub queue_depth: u32,
    /// Whether `discard` frees anything; otherwise it completes without effect.
    pub can_discard: bool,
    /// What a flushed write survives.
    pub durability: DurabilityClass,
}

/// When a write must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// After the next flush.
    Volatile,
    /// When it completes.
    Durable,
}

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device {device}: {operation} of block {first} ({count} blocks): {kind}")]
pub struct DeviceError {
    /// [`DeviceInfo::name`].
    pub device: String,
    /// `read`, `write`, `flush` or `discard`.
    pub operation: &'static str,
    /// First block of the operation; zero for a flush.
    pub first: u64,
    /// Blocks of the operation; zero for a flush.
    pub count: u64,
    /// What went wrong.
    pub kind: DeviceErrorKind,
}

/// Kinds of device errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceErrorKind {
    /// The medium cannot return this data (EIO, NVMe unrecovered read error).
    Medium,
    /// The operation lies beyond the device.
    Beyond,
    /// The device has no space for it (a sparse file on a full file system).
    NoSpace,
    /// The device is gone or refuses everything: it stays failed.
    Gone,
    /// Another host has reserved the device (NVMe reservation conflict, EBADE): what this one writes is refused, and changes nothing. Or it has taken the
    /// device from this one, and ended what that had under way, which may have been done before.
    Fenced,
    /// Any other error number of the kernel.
    Os(i32),
}

impl fmt::Display for DeviceErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Medium => formatter.write_str("the medium failed"),
            Self::Beyond => formatter.write_str("beyond the end of the device"),
            Self::NoSpace => formatter.write_str("no space left below the device"),
            Self::Gone => formatter.write_str("the device is gone"),
            Self::Fenced => formatter.write_str("another host has reserved the device"),
            Self::Os(number) => std::io::Error::from_raw_os_error(*number).fmt(formatter),
        }
    }
}

/// What a device says of its own condition, and what it has cost so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceHealth {
    /// What keeps the device to the memory that it was given, for a person, if this process drives it.
    pub confined_by: Option<&'static str>,
    /// Whether its driver makes a durable write of a write and a flush, because the device's own kind of durable write is none.
    pub flushes_writes: bool,
    /// Why it does not serve now; none if it does.
    pub trouble: Option<String>,
    /// What it calls critical.
    pub warnings: Vec<&'static str>,
    /// For how long it has had the oldest operation that it has not answered.
    pub oldest: Duration,
    /// Operations that it failed since it was opened, and the newest of them.
    pub error_count: u64,
    /// See [`Self::error_count`].
    pub newest_error: Option<DeviceError>,
    /// Operations that it did not answer in time.
    pub timeout_count: u64,
    /// How often it had to be reset.
    pub reset_count: u64,
    /// How often its namespaces or partitions were changed since it was opened, by somebody else.
    pub change_count: u64,
    /// What it has counted over its life, if it said.
    pub wear: Option<DeviceWear>,
}

/// What a device has counted over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceWear {
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

/// The end of an operation.
#[derive(Debug)]
pub struct BlockCompletion {
    /// The caller's token.
    pub token: Token,
    /// Success or why not.
    pub result: Result<(), DeviceError>,
    /// The buffers of a read, filled when `result` is `Ok`, unspecified otherwise; empty for other operations.
    pub blocks: Vec<BlockBuf>,
}

/// A queue to one disk, used by one reactor. Several queues to the same disk may exist; a flush on any of them covers writes that
/// completed on all of them before it was queued.
pub trait BlockDevice {
    /// What the device is. Constant while it is open.
    fn info(&self) -> &DeviceInfo;

    /// How it is, as far as is known without asking it; none if nothing ever is. Not on the path of an operation.
    fn health(&self) -> Option<DeviceHealth> {
        None
    }

    /// How many further operations may be queued now.
    fn room(&self) -> usize;

    /// Queues a read of `blocks.len()` blocks from `first`; 1 to [`DeviceInfo::transfer_blocks_max`] blocks.
    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>);

    /// Queues a write of `blocks` at `first`; 1 to [`DeviceInfo::transfer_blocks_max`] blocks.
    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, persistence: Persistence);

    /// Queues a flush of every write that has completed by now.
    fn flush(&mut self, token: Token);

    /// Queues a hint that the content of `range` is not needed any more: afterwards reads may return anything.
    fn discard(&mut self, token: Token, range: BlockRange);

    /// Moves finished operations to the end of `completions`.
    fn poll(&mut self, completions: &mut Vec<BlockCompletion>);
}
