//! How a pool's devices are cut into allocation areas.
//!
//! An area is [`AREA_BLOCKS`] blocks, 128 MiB: what one bitmap block describes. Areas are numbered through all devices, in the order in
//! which the devices joined; a device that joins later gets the numbers after. The last area of a device may be shorter: the bits
//! beyond its end, and those of the superblocks' places, are set for ever.

use crate::{
    base::{BlockAddress, limits::AREA_BLOCKS},
    format::superblock::{HEAD_BLOCKS, PoolDevice, TAIL_BLOCKS},
};
use std::ops::Range;
use twinlog_device::BlockBytes;

/// Number of an area within the pool.
pub type AreaIndex = u64;

/// The areas of a pool.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Per device: its first area, its blocks.
    devices: Vec<(AreaIndex, u64)>,
    area_count: u64,
}

impl Geometry {
    /// The areas of these devices.
    #[must_use]
    pub fn new(devices: &[PoolDevice]) -> Self {
        let mut geometry = Self { devices: Vec::new(), area_count: 0 };
        for device in devices {
            geometry.devices.push((geometry.area_count, device.block_count));
            geometry.area_count += device.block_count.div_ceil(AREA_BLOCKS);
        }
        geometry
    }

    /// Areas of the pool.
    #[must_use]
    pub fn area_count(&self) -> u64 {
        self.area_count
    }

    /// Blocks that can hold data, on all devices.
    #[must_use]
    pub fn usable_blocks(&self) -> u64 {
        self.devices.iter().map(|(_, blocks)| blocks - HEAD_BLOCKS - TAIL_BLOCKS).sum()
    }

    /// Blocks of all devices.
    #[must_use]
    pub fn total_blocks(&self) -> u64 {
        self.devices.iter().map(|(_, blocks)| blocks).sum()
    }

    /// The area and the bit in it that describe a block; `None` if no device of the pool has it.
    #[must_use]
    pub fn locate(&self, address: BlockAddress) -> Option<(AreaIndex, u64)> {
        let &(first, blocks) = self.devices.get(address.device())?;
        (address.block() < blocks).then(|| (first + address.block() / AREA_BLOCKS, address.block() % AREA_BLOCKS))
    }

    /// The block that bit `bit` of area `area` describes.
    #[must_use]
    pub fn address(&self, area: AreaIndex, bit: u64) -> BlockAddress {
        let (device, first) = self.device_of(area);
        BlockAddress::new(u16::try_from(device).expect("at most DEVICES_MAX"), (area - first) * AREA_BLOCKS + bit)
    }

    /// Bits of an area that stand for blocks which can hold data.
    #[must_use]
    pub fn usable_bits(&self, area: AreaIndex) -> Range<u64> {
        let (device, first) = self.device_of(area);
        let start = (area - first) * AREA_BLOCKS;
        let end = self.devices[device].1 - TAIL_BLOCKS;
        let usable = start.max(HEAD_BLOCKS)..end.min(start + AREA_BLOCKS).max(start.max(HEAD_BLOCKS));
        usable.start - start..usable.end - start
    }

    /// The bitmap of an area that never was written: all its usable bits are clear.
    pub fn fill_fresh(&self, area: AreaIndex, bitmap: &mut BlockBytes) {
        let usable = self.usable_bits(area);
        bitmap.fill(0xFF);
        for bit in usable {
            let (byte, mask) = place(bit);
            bitmap[byte] &= !mask;
        }
    }

    /// Whether `range` lies on one device, within its usable blocks.
    #[must_use]
    pub fn contains(&self, first: BlockAddress, count: u64) -> bool {
        let end = first.block().checked_add(count);
        let device = self.devices.get(first.device());
        device.zip(end).is_some_and(|((_, blocks), end)| first.block() >= HEAD_BLOCKS && end <= blocks - TAIL_BLOCKS)
    }

    fn device_of(&self, area: AreaIndex) -> (usize, AreaIndex) {
        assert!(area < self.area_count, "area {area} of {}", self.area_count);
        let device = self.devices.partition_point(|&(first, _)| first <= area) - 1;
        (device, self.devices[device].0)
    }
}

/// Byte and mask of a bit in a bitmap: bit `n` is bit `n mod 8` of byte `n / 8`; set means in use.
#[must_use]
pub fn place(bit: u64) -> (usize, u8) {
    (usize::try_from(bit / 8).expect("inside a block"), 1 << (bit % 8))
}

/// Blocks kept back for consistency points themselves, so that one can always be taken: the space map with its nodes, the object table of
/// `object_blocks` and both lists of `list_blocks`, all of them twice, because what a consistency point replaces can be taken by the one
/// after the next; and a part for what is reaped.
#[must_use]
pub fn reserved_for_maps(geometry: &Geometry, object_blocks: u64, list_blocks: u64) -> u64 {
    let mut nodes = geometry.area_count();
    let mut sum = nodes;
    while nodes > 1 {
        nodes = nodes.div_ceil(crate::base::limits::TREE_FANOUT);
        sum += nodes;
    }
    2 * (sum + object_blocks + list_blocks + 8) + geometry.total_blocks() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(block_count: u64) -> PoolDevice {
        PoolDevice { id: 0, block_count, plex: 0 }
    }

    #[test]
    fn areas_number_through_the_devices() {
        let geometry = Geometry::new(&[device(AREA_BLOCKS + 1), device(1024)]);
        assert_eq!(geometry.area_count(), 3);
        assert_eq!(geometry.locate(BlockAddress::new(0, AREA_BLOCKS)), Some((1, 0)));
        assert_eq!(geometry.locate(BlockAddress::new(1, 5)), Some((2, 5)));
        assert_eq!(geometry.locate(BlockAddress::new(1, 1024)), None);
        assert_eq!(geometry.locate(BlockAddress::new(2, 0)), None);
        assert_eq!(geometry.address(2, 5), BlockAddress::new(1, 5));
        assert_eq!(geometry.address(1, 0), BlockAddress::new(0, AREA_BLOCKS));
    }

    #[test]
    fn superblocks_are_never_usable() {
        let geometry = Geometry::new(&[device(AREA_BLOCKS + 1), device(1024)]);
        assert_eq!(geometry.usable_bits(0), HEAD_BLOCKS..AREA_BLOCKS - 1);
        assert!(geometry.usable_bits(1).is_empty());
        assert_eq!(geometry.usable_bits(2), HEAD_BLOCKS..1022);
        let mut bitmap = [0; 4096];
        geometry.fill_fresh(2, &mut bitmap);
        let free: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(u64::from(free), 1022 - HEAD_BLOCKS);
        assert!(!geometry.contains(BlockAddress::new(1, 15), 1) && !geometry.contains(BlockAddress::new(1, 1021), 2));
        assert!(geometry.contains(BlockAddress::new(1, 16), 1006));
    }
}
