//! One allocation area in memory: its bitmap and how much of it is free.

use super::geometry::place;
use crate::base::limits::AREA_BLOCKS;
use std::ops::Range;
use twinlog_device::{BlockBuf, BlockBytes};

/// An area's bitmap, loaded to be changed.
pub struct Area {
    bitmap: BlockBuf,
    free: u64,
    /// Bits below are in use: where the search begins.
    cursor: u64,
    /// Whether the bitmap differs from the one on disk.
    pub dirty: bool,
}

impl Area {
    /// An area with this bitmap.
    #[must_use]
    pub fn new(bitmap: BlockBuf) -> Self {
        let free = bitmap.iter().map(|byte| u64::from(byte.count_zeros())).sum();
        Self { bitmap, free, cursor: 0, dirty: false }
    }

    /// Its bitmap.
    #[must_use]
    pub fn bitmap(&self) -> &BlockBytes {
        &self.bitmap
    }

    /// Free blocks.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Takes the next free run, at most `count_max` bits; `None` when nothing is free.
    pub fn take(&mut self, count_max: u64) -> Option<Range<u64>> {
        assert!(count_max > 0, "nothing is not taken");
        let first = self.find(self.cursor, true)?;
        let end = self.find(first, false).unwrap_or(AREA_BLOCKS).min(first + count_max);
        for bit in first..end {
            self.set(bit);
        }
        self.cursor = end;
        Some(first..end)
    }

    /// Marks a block as used. Panics if it was: two owners of one block would be the end of trust.
    fn set(&mut self, bit: u64) {
        let (byte, mask) = place(bit);
        assert_eq!(self.bitmap[byte] & mask, 0, "block {bit} of the area is already in use");
        self.bitmap[byte] |= mask;
        self.free -= 1;
        self.dirty = true;
    }

    /// Marks blocks as free.
    ///
    /// # Errors
    /// The first bit that is free already: the pool on disk contradicts itself.
    pub fn clear(&mut self, bits: Range<u64>) -> Result<(), u64> {
        for bit in bits {
            let (byte, mask) = place(bit);
            if self.bitmap[byte] & mask == 0 {
                return Err(bit);
            }
            self.bitmap[byte] &= !mask;
            self.free += 1;
            self.cursor = self.cursor.min(bit);
            self.dirty = true;
        }
        Ok(())
    }

    /// The first bit from `start` that is free (`true`) or in use (`false`). Skips eight bits at a time.
    fn find(&self, start: u64, free: bool) -> Option<u64> {
        let skip = if free { 0xFF } else { 0x00 };
        let mut bit = start;
        while bit < AREA_BLOCKS {
            let (byte, mask) = place(bit);
            if mask == 1 && self.bitmap[byte] == skip {
                bit += 8;
                continue;
            }
            if (self.bitmap[byte] & mask == 0) == free {
                return Some(bit);
            }
            bit += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;
    use twinlog_device::BlockPool;

    fn area() -> Area {
        Area::new(BlockPool::new(1).expect("a small mapping").allocate_zeroed().expect("one is free"))
    }

    #[test]
    fn an_area_is_taken_to_the_last_block_and_given_back() {
        let mut area = area();
        assert_eq!(area.take(AREA_BLOCKS + 5), Some(0..AREA_BLOCKS));
        assert_eq!((area.free(), area.take(1)), (0, None));
        assert_eq!(area.clear(9..12), Ok(()));
        assert_eq!(area.clear(11..13), Err(11));
        assert_eq!(area.take(2), Some(9..11));
        assert_eq!(area.take(2), Some(11..12));
    }

    #[test]
    fn random_use_agrees_with_a_plain_set() {
        let mut prng = Prng::new(3);
        let mut area = area();
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            if prng.chance(2, 3) {
                let taken = area.take(prng.between(1, 30)).expect("the area does not fill");
                assert!(taken.clone().all(|bit| used.insert(bit)), "never taken twice");
            } else if let Some(&bit) = used.range(prng.below(AREA_BLOCKS)..).next() {
                area.clear(bit..bit + 1).expect("it was in use");
                used.remove(&bit);
            }
            assert_eq!(area.free(), AREA_BLOCKS - used.len() as u64);
        }
    }
}
