//! What the kernel tells of a device below `/sys/dev`. A file that is missing or odd counts as "not known".

use nix::sys::stat::{major, minor};
use std::{fs, io, path::PathBuf};

fn block_path(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// A property of the request queue; a partition's queue is its disk's.
fn queue_text(device: u64, name: &str) -> Option<String> {
    let path = block_path(device);
    ["queue", "../queue"].iter().find_map(|queue| fs::read_to_string(path.join(queue).join(name)).ok())
}

fn queue_number(device: u64, name: &str) -> Option<u64> {
    queue_text(device, name)?.trim().parse().ok()
}

/// Unit of a block device's transfers, in bytes.
pub(crate) fn logical_block_bytes(device: u64) -> Option<u32> {
    let bytes = u32::try_from(queue_number(device, "logical_block_size")?).ok()?;
    (bytes.is_power_of_two() && (512..=4096).contains(&bytes)).then_some(bytes)
}

/// Whether a block device clears ranges without our sending zeroes, which is what punching a hole into it does.
pub(crate) fn can_write_zeroes(device: u64) -> bool {
    queue_number(device, "write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0)
}

/// Whether one write to a block device can be durable by itself: the device has no volatile cache, or writes through it on demand
/// (FUA).
pub(crate) fn writes_through(device: u64) -> bool {
    queue_text(device, "write_cache").is_some_and(|mode| mode.trim() == "write through")
        || queue_number(device, "fua") == Some(1)
}

/// Whether a block device lives in main memory (`ram0`, `zram0`).
pub(crate) fn is_memory_disk(device: u64) -> bool {
    let Ok(target) = fs::read_link(block_path(device)) else { return false };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ram") || name.starts_with("zram")
}

/// Size of a device-DAX node.
pub(crate) fn dax_size_bytes(device: u64) -> io::Result<u64> {
    let path = format!("/sys/dev/char/{}:{}/size", major(device), minor(device));
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}
