//! What the system says of the memory below a file: when stored bytes are safe, and which of them are lost.
//!
//! The kernel shows persistent memory below `/sys` as a region; the block devices and device-DAX nodes on it are folders inside:
//!
//! ```text
//! region0/persistence_domain           memory_controller | cpu_cache | nothing
//! region0/badblocks                    "sector count" lines, sectors of 512 bytes, from the region's begin
//! region0/resource                     physical address of the region
//! region0/pfn0.1/block/pmem0/badblocks the same list, from the disk's begin
//! region0/dax0.1/dax0.0/resource       physical address of the node's memory
//! ```
//!
//! # Failure cases
//!
//! - A file that is on no such region (`memmap=` on the kernel's command line, memory of a device driver, a file system on a volume manager) has
//!   no known domain: nothing on it is called durable.
//! - Bad ranges that cannot be placed in the file are an error: a log would be read where reading can stop the machine.

// The ioctl that maps a file.
#![expect(unsafe_code, reason = "the kernel writes an answer to memory that is given to it")]

use nix::{
    errno::Errno,
    sys::stat::{major, minor},
};
use std::{
    fmt, fs, io,
    ops::Range,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

/// Where the kernel shows its devices.
pub(crate) const SYSFS: &str = "/sys";

/// Unit of lists of bad blocks, whatever the device's own is.
const SECTOR_BYTES: u64 = 512;

/// What is safe when power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersistenceDomain {
    /// What has reached the processor's caches (eADR).
    CpuCache,
    /// What has reached the memory controller (ADR): caches must be written back.
    MemoryController,
    /// The system does not say.
    Unknown,
}

impl fmt::Display for PersistenceDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CpuCache => "processor caches are flushed when power fails (eADR)",
            Self::MemoryController => "memory controllers are flushed when power fails (ADR)",
            Self::Unknown => "no known persistence domain",
        })
    }
}

impl PersistenceDomain {
    /// Of a file, or a block device, or a device-DAX node; `Unknown` also when there is none.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        fs::metadata(path).map_or(Self::Unknown, |facts| Device::of(Path::new(SYSFS), &facts).domain())
    }
}

/// What a file or a device-DAX node lies on, as the kernel shows it.
pub(crate) struct Device {
    /// The folder of the block device or node; `None` when the kernel shows none.
    folder: Option<PathBuf>,
    is_node: bool,
}

impl Device {
    /// Of a file, a block device, or a device-DAX node, whose properties are given.
    pub(crate) fn of(sysfs: &Path, facts: &fs::Metadata) -> Self {
        let is_node = facts.file_type().is_char_device();
        let (kind, device) = match () {
            () if is_node => ("char", facts.rdev()),
            () if facts.file_type().is_block_device() => ("block", facts.rdev()),
            () => ("block", facts.dev()),
        };
        let link = sysfs.join(format!("dev/{kind}/{}:{}", major(device), minor(device)));
        Self { folder: fs::canonicalize(link).ok(), is_node }
    }

    /// The folder of the region that it lies on.
    fn region(&self) -> Option<&Path> {
        self.folder.as_deref()?.ancestors().find(|folder| folder.join("persistence_domain").is_file())
    }

    pub(crate) fn domain(&self) -> PersistenceDomain {
        let text = self.region().and_then(|region| fs::read_to_string(region.join("persistence_domain")).ok());
        match text.as_deref().map(str::trim) {
            Some("cpu_cache") => PersistenceDomain::CpuCache,
            Some("memory_controller") => PersistenceDomain::MemoryController,
            _ => PersistenceDomain::Unknown,
        }
    }

    /// The bytes of `file`, which lies on it, that are known to be lost.
    pub(crate) fn bad_ranges(&self, file: BorrowedFd<'_>) -> io::Result<Vec<Range<u64>>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        if self.is_node {
            let Some(region) = self.region() else { return Ok(Vec::new()) };
            let bad = listed(region)?;
            if bad.is_empty() {
                return Ok(bad);
            }
            let offset = number(&folder.join("resource"))?.checked_sub(number(&region.join("resource"))?);
            let offset = offset.ok_or_else(|| io::Error::other("a device-DAX node begins before its region"))?;
            return Ok(within(&bad, &[Extent { file: 0, device: offset, length: u64::MAX - offset }]));
        }
        let (disk, start) = match folder.join("partition").is_file() {
            true => (folder.parent().unwrap_or(folder), number(&folder.join("start"))? * SECTOR_BYTES),
            false => (folder.as_path(), 0),
        };
        let bad = listed(disk)?;
        if bad.is_empty() {
            return Ok(bad);
        }
        let mut extents = extents(file)?;
        for extent in &mut extents {
            extent.device += start;
        }
        Ok(within(&bad, &extents))
    }
}

/// A number in a file, decimal or hexadecimal.
fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let text = text.trim();
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    number.map_err(|error| io::Error::other(format!("{} holds '{text}': {error}", path.display())))
}

/// The list `badblocks` in `folder`, in bytes; a device that has none has no bad blocks.
fn listed(folder: &Path) -> io::Result<Vec<Range<u64>>> {
    let text = match fs::read_to_string(folder.join("badblocks")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let range = |line: &str| {
        let (first, count) = line.split_once(' ')?;
        let (first, count): (u64, u64) = (first.parse().ok()?, count.trim().parse().ok()?);
        let end = first.checked_add(count)?;
        Some(first.checked_mul(SECTOR_BYTES)?..end.checked_mul(SECTOR_BYTES)?)
    };
    let ranges = text.lines().map(|line| range(line).ok_or_else(|| io::Error::other(format!("bad blocks '{line}'"))));
    ranges.collect()
}

/// A part of a file and where it lies on the device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    file: u64,
    device: u64,
    length: u64,
}

/// Those parts of `bad`, which is of the device, that lie in extents: of the file, in its order.
fn within(bad: &[Range<u64>], extents: &[Extent]) -> Vec<Range<u64>> {
    let common = |bad: &Range<u64>, extent: &Extent| {
        let start = bad.start.max(extent.device);
        let end = bad.end.min(extent.device.saturating_add(extent.length));
        (start < end).then(|| extent.file + (start - extent.device)..extent.file + (end - extent.device))
    };
    let mut found: Vec<Range<u64>> =
        bad.iter().flat_map(|bad| extents.iter().filter_map(move |extent| common(bad, extent))).collect();
    found.sort_by_key(|range| range.start);
    found
}

/// Extents of one call.
const EXTENTS: usize = 64;
/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose fixed part has 32 bytes (linux/fiemap.h).
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
/// Allocate what is delayed first.
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_count: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

const _: () = assert!(size_of::<FiemapExtent>() == 56 && size_of::<Fiemap>() == 32 + 56 * EXTENTS);

/// Where a file's bytes lie on the device of its file system.
fn extents(file: BorrowedFd<'_>) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_FLAG_SYNC,
            mapped_count: 0,
            count: u32::try_from(EXTENTS).expect("a few"),
            reserved: 0,
            extents: [FiemapExtent::default(); EXTENTS],
        };
        // SAFETY: the file is open, and the kernel writes at most `count` extents after the fixed part, which has room for them.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        Errno::result(result)?;
        let mapped = map.extents.get(..map.mapped_count as usize).unwrap_or(&map.extents);
        found.extend(mapped.iter().map(|extent| Extent {
            file: extent.logical,
            device: extent.physical,
            length: extent.length,
        }));
        match mapped.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => start = last.logical + last.length,
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    /// A `/sys` of its own, with one region, in which the file system of `file` lies.
    struct System {
        root: tempfile::TempDir,
        file: File,
    }

    impl System {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            let file = File::create_new(root.path().join("file")).expect("a new file");
            let device = file.metadata().expect("its properties").dev();
            let links = root.path().join("dev/block");
            fs::create_dir_all(&links).expect("folders");
            fs::create_dir_all(root.path().join("region0/pfn0.1/block/pmem0/pmem0p1")).expect("folders");
            let link = links.join(format!("{}:{}", major(device), minor(device)));
            std::os::unix::fs::symlink("../../region0/pfn0.1/block/pmem0", link).expect("a link");
            Self { root, file }
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.root.path().join(path), text).expect("a file in the region");
        }

        fn device(&self) -> Device {
            Device::of(self.root.path(), &self.file.metadata().expect("its properties"))
        }
    }

    #[test]
    fn the_domain_is_what_the_region_says() {
        let system = System::new();
        assert_eq!(system.device().domain(), PersistenceDomain::Unknown, "a region without one");
        for (text, domain) in [
            ("memory_controller\n", PersistenceDomain::MemoryController),
            ("cpu_cache\n", PersistenceDomain::CpuCache),
            ("\n", PersistenceDomain::Unknown),
            ("something newer\n", PersistenceDomain::Unknown),
        ] {
            system.write("region0/persistence_domain", text);
            assert_eq!(system.device().domain(), domain, "{text}");
        }
        let facts = system.file.metadata().expect("its properties");
        let elsewhere = Device::of(&system.root.path().join("none"), &facts);
        assert_eq!(elsewhere.domain(), PersistenceDomain::Unknown, "a device that the kernel does not show");
        assert_eq!(elsewhere.bad_ranges(system.file.as_fd()).expect("nothing is known of it"), []);
    }

    #[test]
    fn bad_blocks_of_a_disk_are_found_in_a_file() {
        let system = System::new();
        assert_eq!(system.device().bad_ranges(system.file.as_fd()).expect("no list"), []);
        system.write("region0/pfn0.1/block/pmem0/badblocks", "");
        assert_eq!(system.device().bad_ranges(system.file.as_fd()).expect("an empty list"), []);
        nix::unistd::ftruncate(&system.file, 4096).expect("longer");
        std::os::unix::fs::FileExt::write_all_at(&system.file, &[1; 4096], 0).expect("written");
        let Ok(extents) = extents(system.file.as_fd()) else { return }; // no FIEMAP on this file system
        let first = extents[0].device / SECTOR_BYTES;
        system.write("region0/pfn0.1/block/pmem0/badblocks", &format!("0 1\n{} 2\n{} 100\n", first + 1, first + 7));
        let found = system.device().bad_ranges(system.file.as_fd()).expect("a list");
        let inside: Vec<_> = found.into_iter().filter(|range| range.start < 4096).collect();
        assert_eq!(inside[0], 512..1536);
        assert!(inside[1].start == 3584 && inside[1].end >= 4096, "{inside:?}");
        system.write("region0/pfn0.1/block/pmem0/badblocks", "nonsense\n");
        system.device().bad_ranges(system.file.as_fd()).expect_err("a list that cannot be read");
    }

    #[test]
    fn bad_blocks_of_a_region_are_found_in_a_node() {
        let system = System::new();
        let node = Device { is_node: true, ..system.device() };
        system.write("region0/persistence_domain", "memory_controller\n");
        system.write("region0/badblocks", "8 1\n16 8\n");
        node.bad_ranges(system.file.as_fd()).expect_err("where the node begins is not known");
        system.write("region0/resource", "0x100000000\n");
        system.write("region0/pfn0.1/block/pmem0/resource", "0x100002200\n");
        let found = node.bad_ranges(system.file.as_fd()).expect("both lists");
        assert_eq!(found.first(), Some(&(0..3584)), "byte 8704 of the region is the node's first");
    }

    #[test]
    fn ranges_are_cut_at_extents() {
        let extents =
            [Extent { file: 8192, device: 4096, length: 4096 }, Extent { file: 0, device: 65536, length: 8192 }];
        assert_eq!(within(&[0..4096, 8192..65536, 73728..80000], &extents), []);
        assert_eq!(within(&[4000..5000, 65000..99999], &extents), [0..8192, 8192..9096]);
        assert_eq!(within(&[8191..8192, 0..1], &extents).first(), Some(&(12287..12288)));
    }
}
