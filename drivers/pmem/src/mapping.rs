//! A file, mapped.

// Mapped memory is reached through raw pointers.
#![expect(unsafe_code, reason = "memory mapping")]

use crate::{
    bus_error::{self, Window},
    instructions::{REACHES_MEMORY, Stores},
    system::{Device, PersistenceDomain, SYSFS},
};
use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{num::NonZeroUsize, ops::Range, os::fd::AsFd, path::Path, ptr::NonNull};
use twinlog_device::DurabilityClass;
use twinlog_file::{Access, Cache, FileError, FileKind, StorageFile};

/// What a mapping is, as far as its lanes need to know.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length_bytes: NonZeroUsize,
    window: Window,
    pub(crate) file: StorageFile,
    pub(crate) domain: PersistenceDomain,
    pub(crate) durability: DurabilityClass,
    pub(crate) stores: Stores,
    /// Bytes of the file that the memory has lost, in order.
    pub(crate) bad: Vec<Range<u64>>,
}

// SAFETY: an owned mapping; regions of it are used through raw pointers, each by the one reactor that has its lane.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned, and every log on the mapping holds it by an `Arc`.
        let unmapped = unsafe { munmap(self.base.cast(), self.length_bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping of ours cannot fail");
    }
}

impl Mapping {
    /// Opens, locks and maps all of `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let file = StorageFile::open(path, Access::Exclusive, Cache::Kernel)?;
        if file.kind() == FileKind::Block {
            return Err(FileError::Kind { path: path.to_owned() });
        }
        let facts = path.metadata().map_err(FileError::io(path, "read its properties"))?;
        let device = Device::of(Path::new(SYSFS), &facts);
        let bad = device.bad_ranges(file.as_fd()).map_err(FileError::io(path, "find the bad blocks in it"))?;
        let handler = bus_error::install().map_err(FileError::io(path, "prepare for the loss of its memory"))?;
        let length = usize::try_from(file.size_bytes()).ok().and_then(NonZeroUsize::new);
        let length_bytes = length.ok_or_else(|| FileError::io(path, "map it")(Errno::EINVAL))?;
        let map = |flags: MapFlags| {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new mapping at a place of the kernel's choice aliases nothing.
            unsafe { mmap(None, length_bytes, protection, flags, &file, 0) }
        };
        let (base, synchronous) = match map(MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC) {
            Ok(base) => (base, true),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {
                (map(MapFlags::MAP_SHARED).map_err(FileError::io(path, "map it"))?, file.kind() == FileKind::Dax)
            }
            Err(error) => return Err(FileError::io(path, "map it")(error)),
        };
        // SAFETY: the mapping is whole, belongs to `Self`, and is only reached through `access`.
        let window = unsafe { Window::new(base.as_ptr().expose_provenance(), length_bytes.get(), handler) };
        let domain = device.domain();
        let durability = durability(file.durability(), synchronous, domain);
        let stores = if domain == PersistenceDomain::CpuCache { Stores::Cached } else { Stores::NonTemporal };
        Ok(Self { base: base.cast(), length_bytes, window, file, domain, durability, stores, bad })
    }

    /// Whether memory was missing in some access.
    pub(crate) fn has_failed(&self) -> bool {
        self.window.has_failed()
    }

    /// Does something with the bytes of `range`; [`Self::has_failed`] tells afterwards whether they were there.
    pub(crate) fn access<T>(&self, range: &Range<u64>, access: impl FnOnce(NonNull<u8>) -> T) -> T {
        assert!(
            range.start <= range.end && range.end <= self.length_bytes.get() as u64,
            "an access lies in the mapping"
        );
        let start = usize::try_from(range.start).expect("inside a mapping");
        // SAFETY: inside the mapping (asserted above).
        let place = unsafe { self.base.add(start) };
        self.window.guard(|| access(place))
    }

    /// The first bad bytes in `range`.
    pub(crate) fn bad_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let overlap = |bad: &Range<u64>| bad.start.max(range.start)..bad.end.min(range.end);
        self.bad.iter().map(overlap).find(|found| found.start < found.end)
    }
}

/// What a fenced store survives. `synchronous`: the file system's own data need no flush for the mapped bytes to be found again.
fn durability(of_file: DurabilityClass, synchronous: bool, domain: PersistenceDomain) -> DurabilityClass {
    let safe = synchronous && REACHES_MEMORY && domain != PersistenceDomain::Unknown;
    match of_file {
        DurabilityClass::Durable if !safe => DurabilityClass::Process,
        class => class,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_platform_saves_is_durable() {
        use DurabilityClass::{Durable, Process, Volatile};
        use PersistenceDomain::{CpuCache, MemoryController, Unknown};
        let full = if REACHES_MEMORY { Durable } else { Process };
        for (synchronous, domain, class) in [
            (true, MemoryController, full),
            (true, CpuCache, full),
            (true, Unknown, Process),
            (false, MemoryController, Process),
            (false, CpuCache, Process),
            (false, Unknown, Process),
        ] {
            assert_eq!(durability(Durable, synchronous, domain), class, "{synchronous} {domain:?}");
            assert_eq!(durability(Volatile, synchronous, domain), Volatile);
        }
    }
}
