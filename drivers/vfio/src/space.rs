//! Which addresses on the bus are whose: what the IOMMU can translate, less what has been given out.

use crate::abi::Capability;
use std::collections::BTreeMap;
use vfio_bindings::bindings::vfio::{VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE};
use zerocopy::{FromBytes, IntoBytes};

/// Left free, so that an address of zero is always a mistake.
const FIRST: u64 = 1 << 20;

/// What every IOMMU can translate, of a kernel that does not say: 39 bits, the fewest of Intel's, above the place of interrupt messages.
const RANGE_UNKNOWN: (u64, u64) = (1 << 32, (1 << 39) - 1);

/// Capabilities that are looked at, so that a chain which bites its tail ends.
const CAPABILITIES_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Space {
    /// First and last address of each range.
    ranges: Vec<(u64, u64)>,
    /// Length of what begins at an address.
    used: BTreeMap<u64, u64>,
}

impl Space {
    pub(crate) fn new(ranges: Vec<(u64, u64)>) -> Self {
        Self { ranges, used: BTreeMap::new() }
    }

    /// The lowest free range of `length` bytes whose address leaves `remainder` when divided by `alignment`, a power of two.
    pub(crate) fn take(&mut self, length: u64, alignment: u64, remainder: u64) -> Option<u64> {
        assert!(alignment.is_power_of_two() && remainder < alignment && length > 0, "a place can be wished for");
        let place = self.ranges.iter().find_map(|range| self.find(*range, length, alignment, remainder))?;
        self.used.insert(place, length);
        Some(place)
    }

    pub(crate) fn give_back(&mut self, place: u64, length: u64) {
        assert_eq!(self.used.remove(&place), Some(length), "it was taken so");
    }

    fn find(&self, (first, last): (u64, u64), length: u64, alignment: u64, remainder: u64) -> Option<u64> {
        let aligned = |from: u64| from.checked_add(remainder.wrapping_sub(from) & (alignment - 1));
        let mut place = aligned(first.max(FIRST))?;
        for (&start, &taken) in &self.used {
            if place.checked_add(length)? <= start {
                break;
            }
            let end = start + taken;
            if end > place {
                place = aligned(end)?;
            }
        }
        (place.checked_add(length - 1)? <= last).then_some(place)
    }
}

/// The ranges in the answer to `VFIO_IOMMU_GET_INFO`.
pub(crate) fn ranges(info: &[u32]) -> Vec<(u64, u64)> {
    let found = stated(info).unwrap_or_default();
    if found.is_empty() { vec![RANGE_UNKNOWN] } else { found }
}

fn stated(info: &[u32]) -> Option<Vec<(u64, u64)>> {
    // argsz, flags, page sizes in two words, offset of the first capability.
    let (flags, mut offset) = (*info.get(1)?, *info.get(4)?);
    let bytes = info.as_bytes();
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    for _ in 0..CAPABILITIES_MAX {
        let (head, rest) = Capability::read_from_prefix(bytes.get(usize::try_from(offset).ok()?..)?).ok()?;
        if u32::from(head.id) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE && head.version == 1 {
            // Number of ranges, a reserved word, and the ranges.
            let ([count, _], rest) = <[u32; 2]>::read_from_prefix(rest).ok()?;
            let ranges = rest.chunks_exact(16).take(usize::try_from(count).ok()?);
            let range = |bytes: &[u8]| <[u64; 2]>::read_from_bytes(bytes).ok().map(|[first, last]| (first, last));
            return Some(ranges.filter_map(range).filter(|(first, last)| first <= last).collect());
        }
        offset = head.next;
        if offset == 0 {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn places_are_disjoint_aligned_and_used_again() {
        let mut space = Space::new(vec![(0, 8 * MIB - 1), (16 * MIB, 64 * MIB - 1)]);
        assert_eq!(space.take(4096, 4096, 0), Some(MIB));
        assert_eq!(space.take(MIB, 2 * MIB, 0), Some(2 * MIB));
        assert_eq!(space.take(4 * MIB, 2 * MIB, MIB), Some(3 * MIB));
        assert_eq!(space.take(4096, 4096, 0), Some(MIB + 4096));
        assert_eq!(space.take(4 * MIB, 4096, 0), Some(16 * MIB), "not over the gap between the ranges");
        space.give_back(2 * MIB, MIB);
        assert_eq!(space.take(2 * MIB, 4096, 0), Some(20 * MIB));
        assert_eq!(space.take(MIB, 4096, 0), Some(MIB + 8192), "across the end of the alignment");
        assert_eq!(space.take(48 * MIB, 4096, 0), None);
        assert_eq!(space.take(u64::MAX, 1, 0), None);
    }

    #[test]
    fn a_range_ends_with_its_last_byte() {
        let mut space = Space::new(vec![(MIB, 2 * MIB - 1)]);
        assert_eq!(space.take(MIB + 1, 1, 0), None);
        assert_eq!(space.take(MIB, 1, 0), Some(MIB));
        assert_eq!(space.take(1, 1, 0), None);
        let mut all = Space::new(vec![(0, u64::MAX)]);
        assert_eq!(all.take(1 << 63, 1 << 63, 0), Some(1 << 63));
    }

    #[test]
    #[should_panic = "it was taken so"]
    fn nothing_is_given_back_that_was_not_taken() {
        Space::new(Vec::new()).give_back(0, 1);
    }

    /// An answer with two capabilities, the second one with two ranges.
    fn info() -> Vec<u32> {
        let mut words = vec![0, VFIO_IOMMU_INFO_CAPS, 0, 0, 24, 0];
        words.extend([3 | 1 << 16, 40, 5, 0]);
        words.extend([1 | 1 << 16, 0, 2, 0]);
        words.extend([0, 0, 0xFEDF_FFFF, 0, 0xFEF0_0000, 0, 0xFFFF_FFFF, 0x7F]);
        words
    }

    #[test]
    fn ranges_are_read_from_the_kernels_answer() {
        assert_eq!(ranges(&info()), [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]);
        assert_eq!(ranges(&[]), [RANGE_UNKNOWN]);
        assert_eq!(ranges(&[24, 0, 0, 0, 24, 0]), [RANGE_UNKNOWN]);
    }

    #[test]
    fn an_answer_that_is_wrong_is_bounded() {
        let whole = info();
        for length in 0..whole.len() {
            let _ranges = ranges(&whole[..length]);
            let mut words = whole.clone();
            for value in [0, 1, 24, 25, u32::MAX, u32::MAX - 1] {
                words[length] = value;
                assert!(ranges(&words).iter().all(|(first, last)| first <= last));
            }
        }
        let mut loops = info();
        loops[7] = 24;
        assert_eq!(ranges(&loops), [RANGE_UNKNOWN]);
    }
}
