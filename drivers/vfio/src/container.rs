//! VFIO's container, with an IOMMU of type 1 and one function's group: what every kernel has.

use crate::{
    abi,
    confinement::{in_use, open_node},
    space,
};
use std::{
    ffi::CString,
    fs::{self, File},
    io,
    path::Path,
};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU,
};

/// Closed from the first field on.
pub(crate) struct Container {
    _group: File,
    file: File,
}

impl Container {
    /// Opens the function at a PCI address, alone in a new container.
    pub(crate) fn open(address: &str) -> io::Result<(File, Self)> {
        let container = Self::of_group(group_number(address)?)?;
        let name = CString::new(address).expect("an address has no zero byte");
        let device = abi::device_fd(&container._group, &name)?;
        Ok((device.into(), container))
    }

    fn of_group(number: u32) -> io::Result<Self> {
        let file = open_node(Path::new("/dev/vfio/vfio"))?;
        if abi::api_version(&file)?.cast_unsigned() != VFIO_API_VERSION
            || !abi::has_extension(&file, VFIO_TYPE1v2_IOMMU)?
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no VFIO with an IOMMU of type 1: modprobe vfio_iommu_type1",
            ));
        }
        let group = open_node(Path::new(&format!("/dev/vfio/{number}")))?;
        if abi::group_flags(&group)? & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(in_use(&format!("another device of group {number} has a driver of the kernel")));
        }
        abi::set_container(&group, &file)?;
        abi::set_iommu(&file, VFIO_TYPE1v2_IOMMU)?;
        Ok(Self { _group: group, file })
    }

    pub(crate) fn ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        Ok(space::ranges(&abi::iommu_info(&self.file)?))
    }

    /// # Safety
    /// As of [`super::confinement::Confinement::map`].
    pub(crate) unsafe fn map(&self, address: u64, place: u64, length: u64) -> io::Result<()> {
        let rights = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        // SAFETY: the caller's promise.
        unsafe { abi::map(&self.file, rights, address, place, length) }
    }

    pub(crate) fn unmap(&self, place: u64, length: u64) -> io::Result<()> {
        abi::unmap(&self.file, place, length)
    }
}

fn group_number(address: &str) -> io::Result<u32> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group"));
    let link = link.map_err(|error| io::Error::new(error.kind(), format!("its IOMMU group: {error}")))?;
    let number = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    number.ok_or_else(|| io::Error::other("the name of its IOMMU group is no number"))
}
