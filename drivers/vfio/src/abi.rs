//! The ioctls of VFIO (`linux/vfio.h`), each as a function of a file. Their numbers carry no size; the structures say theirs in `argsz`.

use nix::{ioctl_none_bad, ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr_bad, libc, request_code_none};
use std::{
    ffi::{CStr, c_char},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_region_info,
};
use zerocopy::FromBytes;

/// Longest answer about an IOMMU that is read: hundreds of ranges.
const IOMMU_INFO_BYTES_MAX: u32 = 64 << 10;

mod numbers {
    use super::*;

    ioctl_none_bad!(api_version, request_code_none!(VFIO_TYPE, VFIO_BASE));
    ioctl_write_int_bad!(check_extension, request_code_none!(VFIO_TYPE, VFIO_BASE + 1));
    ioctl_write_int_bad!(set_iommu, request_code_none!(VFIO_TYPE, VFIO_BASE + 2));
    ioctl_readwrite_bad!(group_status, request_code_none!(VFIO_TYPE, VFIO_BASE + 3), vfio_group_status);
    ioctl_write_ptr_bad!(set_container, request_code_none!(VFIO_TYPE, VFIO_BASE + 4), libc::c_int);
    ioctl_write_ptr_bad!(device_fd, request_code_none!(VFIO_TYPE, VFIO_BASE + 6), c_char);
    ioctl_readwrite_bad!(device_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 7), vfio_device_info);
    ioctl_readwrite_bad!(region_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 8), vfio_region_info);
    ioctl_readwrite_bad!(irq_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 9), vfio_irq_info);
    ioctl_write_ptr_bad!(set_irqs, request_code_none!(VFIO_TYPE, VFIO_BASE + 10), u32);
    ioctl_none_bad!(reset, request_code_none!(VFIO_TYPE, VFIO_BASE + 11));
    ioctl_readwrite_bad!(iommu_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 12), u32);
    ioctl_write_ptr_bad!(map, request_code_none!(VFIO_TYPE, VFIO_BASE + 13), vfio_iommu_type1_dma_map);
    ioctl_readwrite_bad!(unmap, request_code_none!(VFIO_TYPE, VFIO_BASE + 14), vfio_iommu_type1_dma_unmap);
    ioctl_readwrite_bad!(bind_iommufd, request_code_none!(VFIO_TYPE, VFIO_BASE + 18), vfio_device_bind_iommufd);
    ioctl_readwrite_bad!(attach_iommufd, request_code_none!(VFIO_TYPE, VFIO_BASE + 19), vfio_device_attach_iommufd_pt);
}

/// What `argsz` says of a structure.
pub(crate) fn size_of<T>() -> u32 {
    u32::try_from(std::mem::size_of::<T>()).expect("a structure of some bytes")
}

pub(crate) fn api_version(container: &impl AsRawFd) -> io::Result<i32> {
    // SAFETY: it takes no argument.
    Ok(unsafe { numbers::api_version(container.as_raw_fd()) }?)
}

pub(crate) fn has_extension(container: &impl AsRawFd, extension: u32) -> io::Result<bool> {
    // SAFETY: its argument is a number.
    Ok(unsafe { numbers::check_extension(container.as_raw_fd(), extension.cast_signed()) }? != 0)
}

pub(crate) fn set_iommu(container: &impl AsRawFd, kind: u32) -> io::Result<()> {
    // SAFETY: its argument is a number.
    unsafe { numbers::set_iommu(container.as_raw_fd(), kind.cast_signed()) }?;
    Ok(())
}

pub(crate) fn group_flags(group: &impl AsRawFd) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>(), flags: 0 };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::group_status(group.as_raw_fd(), &raw mut status) }?;
    Ok(status.flags)
}

pub(crate) fn set_container(group: &impl AsRawFd, container: &impl AsRawFd) -> io::Result<()> {
    let container = container.as_raw_fd();
    // SAFETY: the kernel reads one number of a file.
    unsafe { numbers::set_container(group.as_raw_fd(), &raw const container) }?;
    Ok(())
}

pub(crate) fn device_fd(group: &impl AsRawFd, address: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a text that ends.
    let number = unsafe { numbers::device_fd(group.as_raw_fd(), address.as_ptr()) }?;
    // SAFETY: the kernel has just made this file for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes the device this file of `/dev/iommu`'s, and this process's; from here on it answers its other ioctls.
pub(crate) fn bind_iommufd(device: &impl AsRawFd, iommufd: &impl AsRawFd) -> io::Result<()> {
    let argsz = size_of::<vfio_device_bind_iommufd>();
    let mut bind = vfio_device_bind_iommufd { argsz, iommufd: iommufd.as_raw_fd(), ..Default::default() };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::bind_iommufd(device.as_raw_fd(), &raw mut bind) }?;
    Ok(())
}

/// Puts the device into an address space.
pub(crate) fn attach_iommufd(device: &impl AsRawFd, space: u32) -> io::Result<()> {
    let argsz = size_of::<vfio_device_attach_iommufd_pt>();
    let mut attach = vfio_device_attach_iommufd_pt { argsz, pt_id: space, ..Default::default() };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::attach_iommufd(device.as_raw_fd(), &raw mut attach) }?;
    Ok(())
}

pub(crate) fn device_info(device: &impl AsRawFd) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>(), ..Default::default() };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::device_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

pub(crate) fn region_info(device: &impl AsRawFd, index: u32) -> io::Result<vfio_region_info> {
    let mut info = vfio_region_info { argsz: size_of::<vfio_region_info>(), index, ..Default::default() };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::region_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

pub(crate) fn irq_info(device: &impl AsRawFd, index: u32) -> io::Result<vfio_irq_info> {
    let mut info = vfio_irq_info { argsz: size_of::<vfio_irq_info>(), index, ..Default::default() };
    // SAFETY: the structure is writable and as long as it says.
    unsafe { numbers::irq_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// Lets interrupts of `index` from `start` on increment these event counters; -1: none.
pub(crate) fn set_irqs(device: &impl AsRawFd, flags: u32, index: u32, start: u32, events: &[i32]) -> io::Result<()> {
    // argsz, flags, index, start, count, then the files.
    let count = u32::try_from(events.len()).expect("a few thousand vectors at most");
    let mut words = vec![0, flags, index, start, count];
    words.extend(events.iter().map(|event| event.cast_unsigned()));
    words[0] = u32::try_from(words.len() * 4).expect("a few thousand words");
    // SAFETY: the kernel reads as many bytes as the first word says, which is the length of `words`.
    unsafe { numbers::set_irqs(device.as_raw_fd(), words.as_ptr()) }?;
    Ok(())
}

pub(crate) fn reset(device: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: it takes no argument; what it does to the device is its caller's matter, no memory is touched.
    unsafe { numbers::reset(device.as_raw_fd()) }?;
    Ok(())
}

/// `vfio_iommu_type1_info` with everything that follows it, as words of the machine.
pub(crate) fn iommu_info(container: &impl AsRawFd) -> io::Result<Vec<u32>> {
    let mut words: Vec<u32> = vec![0; 4];
    // Once to learn the length; a second time for the whole.
    for _ in 0..2 {
        words[0] = u32::try_from(words.len() * 4).expect("bounded below");
        // SAFETY: the kernel writes at most as many bytes as the first word says, which is the length of `words`.
        unsafe { numbers::iommu_info(container.as_raw_fd(), words.as_mut_ptr()) }?;
        let bytes = words[0].min(IOMMU_INFO_BYTES_MAX);
        words.resize((bytes as usize).div_ceil(4).max(words.len()), 0);
    }
    Ok(words)
}

/// # Safety
/// The memory at `address` stays mapped, and is used as memory that a device writes, until [`unmap`] or the end of the container.
pub(crate) unsafe fn map(
    container: &impl AsRawFd,
    flags: u32,
    address: u64,
    bus_address: u64,
    length: u64,
) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_type1_dma_map>();
    let map = vfio_iommu_type1_dma_map { argsz, flags, vaddr: address, iova: bus_address, size: length };
    // SAFETY: the structure is as long as it says; the caller answers for the memory.
    unsafe { numbers::map(container.as_raw_fd(), &raw const map) }?;
    Ok(())
}

pub(crate) fn unmap(container: &impl AsRawFd, bus_address: u64, length: u64) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_type1_dma_unmap>();
    let mut unmap = vfio_iommu_type1_dma_unmap { argsz, iova: bus_address, size: length, ..Default::default() };
    // SAFETY: the structure is writable and as long as it says; it only takes rights away from the device.
    unsafe { numbers::unmap(container.as_raw_fd(), &raw mut unmap) }?;
    Ok(())
}

/// Head of a capability in an answer of the kernel.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Capability {
    pub(crate) id: u16,
    pub(crate) version: u16,
    /// Where the next one begins, from the head of the answer; zero: it is the last.
    pub(crate) next: u32,
}
