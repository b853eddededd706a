//! IOMMUFD (`linux/iommufd.h`, Documentation/userspace-api/iommufd.rst of the kernel): an address space of `/dev/iommu`, and one function in it by its own
//! node. Linux 6.6 and newer have it where they were built so.
//!
//! Each function has a file of `/dev/iommu` of its own, as it would have a container: what is mapped for one, no other one can reach.

use crate::{
    abi,
    confinement::{in_use, open_node},
};
use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE,
    iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_unmap, iommu_iova_range,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use nix::{errno::Errno, ioctl_readwrite_bad, request_code_none};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
};

/// Ranges of an address space that are read at once; one is the rule, and each hole in it makes one more.
const RANGES_GUESS: usize = 16;
/// More are not asked for: the lowest of them are enough.
const RANGES_MAX: usize = 4096;

/// Their numbers carry no size; the structures say theirs in the first word.
mod numbers {
    use super::*;

    ioctl_readwrite_bad!(alloc, request_code_none!(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOC), iommu_ioas_alloc);
    ioctl_readwrite_bad!(
        ranges,
        request_code_none!(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_IOVA_RANGES),
        iommu_ioas_iova_ranges
    );
    ioctl_readwrite_bad!(map, request_code_none!(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP), iommu_ioas_map);
    ioctl_readwrite_bad!(unmap, request_code_none!(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_UNMAP), iommu_ioas_unmap);
}

/// An address space with a function in it. Closing its file ends it, once the function's is closed too.
pub(crate) struct Iommufd {
    file: File,
    /// The kernel's number of the address space.
    space: u32,
}

impl Iommufd {
    /// Opens what it takes: `/dev/iommu`, and the node of the function at a PCI address; `root` is `/` but in tests.
    ///
    /// # Errors
    /// One of them is not there, or may not be opened.
    pub(crate) fn nodes(root: &Path, address: &str) -> io::Result<(File, File)> {
        let device = root.join("dev/vfio/devices").join(device_name(root, address)?);
        Ok((open_node(&root.join("dev/iommu"))?, open_node(&device)?))
    }

    /// A new address space, with the function in it. The kernel resets the function.
    ///
    /// # Errors
    /// `ResourceBusy`: somebody else has the function. `Unsupported`: IOMMUFD does not take it, and a container may.
    pub(crate) fn new(file: File, device: &File) -> io::Result<Self> {
        abi::bind_iommufd(device, &file).map_err(explain_bind)?;
        let mut alloc = iommu_ioas_alloc { size: abi::size_of::<iommu_ioas_alloc>(), ..Default::default() };
        // SAFETY: the structure is writable and as long as it says.
        unsafe { numbers::alloc(file.as_raw_fd(), &raw mut alloc) }?;
        abi::attach_iommufd(device, alloc.out_ioas_id)?;
        Ok(Self { file, space: alloc.out_ioas_id })
    }

    pub(crate) fn ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut found = vec![iommu_iova_range::default(); RANGES_GUESS];
        // Once to learn how many there are, where the guess was too low.
        for _ in 0..2 {
            let mut ranges = iommu_ioas_iova_ranges {
                size: abi::size_of::<iommu_ioas_iova_ranges>(),
                ioas_id: self.space,
                num_iovas: u32::try_from(found.len()).expect("bounded below"),
                allowed_iovas: found.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            // SAFETY: the structure is writable and as long as it says, and so is what it points to.
            let answer = unsafe { numbers::ranges(self.file.as_raw_fd(), &raw mut ranges) };
            let count = usize::try_from(ranges.num_iovas).unwrap_or(usize::MAX);
            match answer {
                Err(Errno::EMSGSIZE) if count <= RANGES_MAX => found.resize(count, iommu_iova_range::default()),
                // There are more than are wanted: those that came are true.
                Err(Errno::EMSGSIZE) => break,
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    found.truncate(count);
                    break;
                }
            }
        }
        Ok(in_order(&found))
    }

    /// # Safety
    /// As of [`super::confinement::Confinement::map`].
    pub(crate) unsafe fn map(&self, address: u64, place: u64, length: u64) -> io::Result<()> {
        let mut map = iommu_ioas_map {
            size: abi::size_of::<iommu_ioas_map>(),
            flags: FIXED_IOVA | READABLE | WRITEABLE,
            ioas_id: self.space,
            user_va: address,
            length,
            iova: place,
            ..Default::default()
        };
        // SAFETY: the structure is writable and as long as it says; the caller answers for the memory.
        unsafe { numbers::map(self.file.as_raw_fd(), &raw mut map) }?;
        Ok(())
    }

    pub(crate) fn unmap(&self, place: u64, length: u64) -> io::Result<()> {
        let size = abi::size_of::<iommu_ioas_unmap>();
        let mut unmap = iommu_ioas_unmap { size, ioas_id: self.space, iova: place, length };
        // SAFETY: the structure is writable and as long as it says; it only takes rights away from the device.
        unsafe { numbers::unmap(self.file.as_raw_fd(), &raw mut unmap) }?;
        Ok(())
    }
}

/// What the kernel calls the function among those that programs drive: `vfio0`.
fn device_name(root: &Path, address: &str) -> io::Result<String> {
    let place = root.join("sys/bus/pci/devices").join(address).join("vfio-dev");
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", place.display()));
    let entry = fs::read_dir(&place).and_then(|mut names| names.next().unwrap_or(Err(io::ErrorKind::NotFound.into())));
    let name = entry.map_err(named)?.file_name();
    Ok(name.to_string_lossy().into_owned())
}

/// First and last address of each range, lowest first.
fn in_order(found: &[iommu_iova_range]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = found.iter().map(|range| (range.start, range.last)).collect();
    // What the kernel has not filled in.
    ranges.retain(|(first, last)| first <= last && *last > 0);
    ranges.sort_unstable();
    ranges
}

/// What the kernel means when it does not give a function to a process.
fn explain_bind(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        // A function can be bound once. The kernel says the same of an IOMMU that lets devices pass caches by; none of x86-64 does.
        Some(Errno::EINVAL) => in_use("another process has it"),
        Some(Errno::EBUSY) => {
            in_use("another process has it by its group, or another device of the group has a driver of the kernel")
        }
        Some(Errno::EPERM) => io::Error::new(
            io::ErrorKind::Unsupported,
            "its interrupts could reach anybody, as the IOMMU does not remap them (dmesg | grep -i remapping; the firmware's setup), or another device \
             of its IOMMU group is driven",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    const ADDRESS: &str = "0000:01:00.0";

    fn put(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, "").expect("written");
    }

    #[test]
    fn all_nodes_must_be_there_and_who_misses_one_is_told_which() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        let missing = |what: &str| {
            let error = Iommufd::nodes(root, ADDRESS).expect_err("something is missing");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains(what), "{error}");
        };
        missing("0000:01:00.0/vfio-dev: ");
        // A kernel with VFIO and without IOMMUFD: functions have a name, and no node.
        put(root, &format!("sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio3/power/control"));
        missing("dev/iommu: ");
        put(root, "dev/iommu");
        missing("dev/vfio/devices/vfio3: ");
        put(root, "dev/vfio/devices/vfio3");
        Iommufd::nodes(root, ADDRESS).expect("all is there");
        let other = Iommufd::nodes(root, "0000:02:00.0").expect_err("another function's node is not taken");
        assert!(other.to_string().contains("0000:02:00.0/vfio-dev"), "{other}");
    }

    #[test]
    fn a_function_whose_name_was_taken_away_has_no_node() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join(format!("sys/bus/pci/devices/{ADDRESS}/vfio-dev"))).expect("made");
        assert_eq!(Iommufd::nodes(directory.path(), ADDRESS).expect_err("no name").kind(), ErrorKind::NotFound);
    }

    #[test]
    fn ranges_are_lowest_first_and_what_is_empty_is_none() {
        let range = |start, last| iommu_iova_range { start, last };
        let found = [range(0xFEF0_0000, 0x7F_FFFF_FFFF), range(0, 0xFEDF_FFFF), range(0, 0), range(9, 8)];
        assert_eq!(in_order(&found), [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]);
    }

    #[test]
    fn whoever_is_not_given_a_function_is_told_why() {
        let explained = |errno: Errno| explain_bind(io::Error::from_raw_os_error(errno as i32));
        assert_eq!(explained(Errno::EINVAL).kind(), ErrorKind::ResourceBusy, "worth waiting for");
        assert_eq!(explained(Errno::EBUSY).kind(), ErrorKind::ResourceBusy);
        let refused = explained(Errno::EPERM);
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "no right to a node mends it");
        assert!(refused.to_string().contains("remap") && refused.to_string().contains("group"));
        assert_eq!(explained(Errno::ENODEV).raw_os_error(), Some(Errno::ENODEV as i32));
    }

    #[test]
    fn no_file_but_iommufd_is_taken_for_it() {
        let [iommu, device] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        assert!(Iommufd::new(iommu.try_clone().expect("a file"), &device).is_err());
        let space = Iommufd { file: iommu, space: 1 };
        assert!(space.ranges().is_err() && space.unmap(0, 4096).is_err());
    }
}
