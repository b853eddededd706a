//! Counted pages of a medium: versions of blocks, shared between what is current, what is durable, and what the cache holds.
//!
//! # Invariants
//!
//! 1. Two pages are fixed: zeroes, and the junk that a discard may leave. They are never freed or changed.
//! 2. Every other page is a version of exactly one block.
//! 3. A page is free exactly while its count is zero.

use twinlog_device::{BLOCK_BYTES, BlockBytes};

/// A page of a [`Pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageId(u32);

impl PageId {
    /// All zeroes.
    pub(crate) const ZERO: Self = Self(0);
    /// What a discard may leave.
    pub(crate) const JUNK: Self = Self(1);

    fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn is_fixed(self) -> bool {
        self.0 <= Self::JUNK.0
    }
}

/// Sectors of a block, one bit each from the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sectors(u8);

impl Sectors {
    /// No sector.
    pub(crate) const NONE: Self = Self(0);

    /// The first `count` sectors.
    pub(crate) fn first(count: u64) -> Self {
        Self(u8::try_from((1_u16 << count) - 1).expect("a block has at most eight sectors"))
    }

    /// These sectors as far as `bits`, of any value, has them.
    pub(crate) fn masked(self, bits: u64) -> Self {
        Self(self.0 & bits.to_le_bytes()[0])
    }

    fn has(self, sector: usize) -> bool {
        self.0 >> sector & 1 == 1
    }
}

/// One page. Aligned like the blocks that it is copied from: a copy between addresses that differ a little in their lowest twelve bits
/// makes each load wait for an unrelated store.
#[repr(align(4096))]
struct Page(BlockBytes);

/// The pages of one medium.
pub(crate) struct Pages {
    bytes: Vec<Box<Page>>,
    counts: Vec<u32>,
    free: Vec<PageId>,
    sector_bytes: usize,
}

impl Pages {
    pub(crate) fn new(sector_bytes: u32) -> Self {
        let bytes = vec![Box::new(Page([0; BLOCK_BYTES])), Box::new(Page([0xDC; BLOCK_BYTES]))];
        Self { bytes, counts: vec![1, 1], free: Vec::new(), sector_bytes: sector_bytes as usize }
    }

    /// Every sector of a block.
    pub(crate) fn all_sectors(&self) -> Sectors {
        Sectors::first((BLOCK_BYTES / self.sector_bytes) as u64)
    }

    /// A new page with `bytes`, counted once.
    pub(crate) fn store(&mut self, bytes: &BlockBytes) -> PageId {
        if let Some(page) = self.free.pop() {
            self.bytes[page.index()].0.copy_from_slice(bytes);
            self.counts[page.index()] = 1;
            return page;
        }
        let page = PageId(u32::try_from(self.bytes.len()).expect("a simulated medium stays below 2^32 pages"));
        self.bytes.push(Box::new(Page(*bytes)));
        self.counts.push(1);
        page
    }

    pub(crate) fn bytes(&self, page: PageId) -> &BlockBytes {
        &self.bytes[page.index()].0
    }

    pub(crate) fn same_bytes(&self, first: PageId, second: PageId) -> bool {
        first == second || self.bytes(first) == self.bytes(second)
    }

    /// Counts `page` once more.
    pub(crate) fn share(&mut self, page: PageId) -> PageId {
        self.counts[page.index()] += 1;
        page
    }

    /// Counts `page` once less.
    pub(crate) fn release(&mut self, page: PageId) {
        let count = &mut self.counts[page.index()];
        *count -= 1;
        if *count == 0 {
            assert!(!page.is_fixed(), "fixed pages are never freed");
            self.free.push(page);
        }
    }

    /// Puts `page`, counted once more, into `place`, and releases what was there.
    pub(crate) fn replace(&mut self, place: &mut PageId, page: PageId) {
        self.share(page);
        self.release(std::mem::replace(place, page));
    }

    /// Replaces `place` by itself with `sectors` taken from `page`.
    pub(crate) fn merge(&mut self, place: &mut PageId, page: PageId, sectors: Sectors) {
        if sectors == Sectors::NONE {
            return;
        }
        if sectors == self.all_sectors() {
            return self.replace(place, page);
        }
        let mut bytes = *self.bytes(*place);
        for (sector, (target, source)) in
            bytes.chunks_mut(self.sector_bytes).zip(self.bytes(page).chunks(self.sector_bytes)).enumerate()
        {
            if sectors.has(sector) {
                target.copy_from_slice(source);
            }
        }
        let merged = self.store(&bytes);
        self.release(std::mem::replace(place, merged));
    }

    /// Flips one bit of `page`, wherever it is shared.
    pub(crate) fn flip(&mut self, page: PageId, bit: u64) {
        assert!(!page.is_fixed(), "fixed pages never change");
        let bit = usize::try_from(bit).expect("a bit of a block");
        self.bytes[page.index()].0[bit / 8] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_used_again_after_their_last_release() {
        let mut pages = Pages::new(512);
        let mut place = pages.store(&[1; BLOCK_BYTES]);
        let shared = pages.share(place);
        pages.replace(&mut place, PageId::ZERO);
        assert_eq!(pages.bytes(shared)[0], 1, "a shared page outlives its first place");
        pages.release(shared);
        assert_eq!(pages.store(&[2; BLOCK_BYTES]), shared);
        assert_eq!(pages.bytes(PageId::ZERO), &[0; BLOCK_BYTES]);
    }

    #[test]
    fn merges_take_exactly_their_sectors() {
        let mut pages = Pages::new(1024);
        let new = pages.store(&[2; BLOCK_BYTES]);
        let mut place = pages.store(&[1; BLOCK_BYTES]);
        let sectors = pages.all_sectors().masked(0b1111_0101);
        pages.merge(&mut place, new, sectors);
        let sectors: Vec<_> = pages.bytes(place).chunks(1024).map(|sector| (sector[0], sector[1023])).collect();
        assert_eq!(sectors, [(2, 2), (1, 1), (2, 2), (1, 1)]);
        let everything = pages.all_sectors();
        pages.merge(&mut place, new, everything);
        assert_eq!(place, new);
    }
}
