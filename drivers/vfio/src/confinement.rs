//! What confines a function to memory that was mapped for it: an address space of its own, had in one of two ways.

use crate::{container::Container, iommufd::Iommufd};
use nix::errno::Errno;
use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// By which of the kernel's interfaces a function is confined. What it may reach, and what happens at its end, is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// `/dev/iommu` and the function's own node, `/dev/vfio/devices/vfioN`.
    Iommufd,
    /// VFIO's container with an IOMMU of type 1, and the function's group.
    Container,
}

impl Interface {
    /// As people know it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iommufd => "IOMMUFD",
            Self::Container => "VFIO's container",
        }
    }
}

/// An address space that a function has for itself; it ends when this is dropped, after the function.
pub(crate) enum Confinement {
    Iommufd(Iommufd),
    Container(Container),
}

impl Confinement {
    /// Opens the function at a PCI address, confined: by IOMMUFD where its nodes can be opened and it takes the function, else by a container.
    pub(crate) fn open(address: &str) -> io::Result<(File, Self)> {
        let why_not = match Iommufd::nodes(Path::new("/"), address) {
            Ok((iommu, device)) => match Iommufd::new(iommu, &device) {
                Ok(iommufd) => return Ok((device, Self::Iommufd(iommufd))),
                // A container has rules of its own for that.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => error,
                Err(error) => return Err(error),
            },
            Err(missing) => missing,
        };
        let (device, container) = Container::open(address).map_err(|error| neither(error, &why_not))?;
        Ok((device, Self::Container(container)))
    }

    pub(crate) fn interface(&self) -> Interface {
        match self {
            Self::Iommufd(_) => Interface::Iommufd,
            Self::Container(_) => Interface::Container,
        }
    }

    /// First and last address of each range that the IOMMU can translate.
    pub(crate) fn ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        match self {
            Self::Iommufd(iommufd) => iommufd.ranges(),
            Self::Container(container) => container.ranges(),
        }
    }

    /// Lets the function read and write memory, at a place on the bus.
    ///
    /// # Safety
    /// The memory at `address` stays mapped, and is used as memory that a device writes, until [`Self::unmap`] or the end of this value.
    pub(crate) unsafe fn map(&self, address: u64, place: u64, length: u64) -> io::Result<()> {
        let mapped = match self {
            // SAFETY: the caller's promise.
            Self::Iommufd(iommufd) => unsafe { iommufd.map(address, place, length) },
            // SAFETY: as above.
            Self::Container(container) => unsafe { container.map(address, place, length) },
        };
        mapped.map_err(|error| explain(error, self.interface()))
    }

    /// Ends that. Where the kernel refuses, the memory stays the function's until the end of this value.
    pub(crate) fn unmap(&self, place: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Iommufd(iommufd) => iommufd.unmap(place, length),
            Self::Container(container) => container.unmap(place, length),
        }
    }
}

/// Opens a node of the kernel; an error names it.
pub(crate) fn open_node(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| {
        let path = path.display();
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY) => in_use(&format!("{path}: another process has it")),
            _ => io::Error::new(error.kind(), format!("{path}: {error}")),
        }
    })
}

pub(crate) fn in_use(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}

/// Why there is no container, with why there is no IOMMUFD where that would have done: it is there and may not be opened, or there are no containers at all.
fn neither(container: io::Error, iommufd: &io::Error) -> io::Error {
    match (container.kind(), iommufd.kind()) {
        (io::ErrorKind::NotFound, kind) => io::Error::new(kind, format!("{container}; and no IOMMUFD: {iommufd}")),
        (_, io::ErrorKind::NotFound) => container,
        (kind, _) => io::Error::new(kind, format!("{container}; and no IOMMUFD: {iommufd}")),
    }
}

/// The kernel says "out of memory" when the limit is too low.
fn explain(error: io::Error, interface: Interface) -> io::Error {
    if error.raw_os_error() == Some(Errno::ENOMEM as i32) {
        let whose = match interface {
            Interface::Iommufd => "the processes of this user together",
            Interface::Container => "the process",
        };
        let text = format!(
            "{whose} may not lock that much memory: LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`"
        );
        return io::Error::new(io::ErrorKind::OutOfMemory, text);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind;

    #[test]
    fn whoever_gets_neither_is_told_what_would_help() {
        let error = |kind: ErrorKind, text: &str| io::Error::new(kind, text.to_owned());
        let old_kernel =
            neither(error(ErrorKind::PermissionDenied, "group"), &error(ErrorKind::NotFound, "/dev/iommu"));
        assert_eq!((old_kernel.kind(), old_kernel.to_string().as_str()), (ErrorKind::PermissionDenied, "group"));
        let no_rights =
            neither(error(ErrorKind::PermissionDenied, "group"), &error(ErrorKind::PermissionDenied, "/dev/iommu"));
        assert_eq!(no_rights.kind(), ErrorKind::PermissionDenied);
        assert_eq!(no_rights.to_string(), "group; and no IOMMUFD: /dev/iommu");
        let no_container =
            neither(error(ErrorKind::NotFound, "/dev/vfio/vfio"), &error(ErrorKind::PermissionDenied, "/dev/iommu"));
        assert_eq!(no_container.kind(), ErrorKind::PermissionDenied, "what mends it is the right to IOMMUFD's nodes");
        let refused =
            neither(error(ErrorKind::NotFound, "/dev/vfio/vfio"), &error(ErrorKind::Unsupported, "interrupts"));
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (ErrorKind::Unsupported, "/dev/vfio/vfio; and no IOMMUFD: interrupts")
        );
        let busy = neither(in_use("group"), &error(ErrorKind::PermissionDenied, "/dev/iommu"));
        assert_eq!(busy.kind(), ErrorKind::ResourceBusy, "it is worth waiting for");
    }

    #[test]
    fn a_limit_that_is_too_low_is_named() {
        for (interface, whose) in
            [(Interface::Container, "the process may"), (Interface::Iommufd, "of this user together may")]
        {
            let error = explain(Errno::ENOMEM.into(), interface);
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(
                error.to_string().contains("LimitMEMLOCK=infinity") && error.to_string().contains(whose),
                "{error}"
            );
            assert_eq!(explain(Errno::EEXIST.into(), interface).raw_os_error(), Some(17));
        }
    }

    #[test]
    fn a_node_that_is_missing_is_named() {
        let error = open_node(Path::new("/nowhere/iommu")).expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with("/nowhere/iommu: "), "{error}");
    }
}
