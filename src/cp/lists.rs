//! The two lists that a consistency point carries along: reading them at open, writing them anew each time.

use crate::{
    base::{BlockAddress, CpNumber},
    format::{
        chain::{AddressRange, ChainEntry, decode_chain_block, encode_chain_block, entries_per_block},
        reference::BlockRef,
    },
    pool::io::{Io, Tag},
};
use twinlog_device::{BlockDevice, Persistence};

/// Sorts ranges and joins neighbours.
#[must_use]
pub fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable();
    let mut merged: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.first.0.checked_add(last.count) == Some(range.first.0) => last.count += range.count,
            _ => merged.push(range),
        }
    }
    merged
}

/// Adds a block, to the last range if it is its neighbour.
pub fn push_joined(ranges: &mut Vec<AddressRange>, block: BlockAddress) {
    match ranges.last_mut() {
        Some(last) if last.first.0.checked_add(last.count) == Some(block.0) => last.count += 1,
        _ => ranges.push(AddressRange { first: block, count: 1 }),
    }
}

/// Blocks of all ranges; saturating, for a damaged list may name any.
#[must_use]
pub fn total(ranges: &[AddressRange]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.count))
}

/// Reads one list, block after block.
pub struct ListReader<E> {
    next: BlockRef,
    entries: Vec<E>,
    blocks: Vec<AddressRange>,
    blocks_max: u64,
}

impl<E: ChainEntry> ListReader<E> {
    /// The list that begins at `first`; a pool of `blocks_max` blocks cannot have a longer one.
    #[must_use]
    pub fn new(first: BlockRef, blocks_max: u64) -> Self {
        Self { next: first, entries: Vec::new(), blocks: Vec::new(), blocks_max }
    }

    /// Goes on as far as blocks are in memory; the rest is fetched for `tag`. True at the end.
    ///
    /// # Errors
    /// The list is malformed.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, tag: Tag) -> Result<bool, String> {
        while !self.next.is_hole() {
            let Some(block) = io.fetch(&self.next, tag) else { return Ok(false) };
            let (mut entries, next) = decode_chain_block::<E>(&block)?;
            if self.blocks.len() as u64 >= self.blocks_max {
                return Err("a list is longer than the pool".to_owned());
            }
            self.blocks.push(AddressRange { first: self.next.address(), count: 1 });
            self.entries.append(&mut entries);
            self.next = next;
        }
        Ok(true)
    }

    /// The entries, and the blocks that hold them.
    #[must_use]
    pub fn into_parts(self) -> (Vec<E>, Vec<AddressRange>) {
        (self.entries, self.blocks)
    }
}

/// Writes one list, last block first.
pub struct ListWriter<E> {
    entries: Vec<E>,
    /// Places of the blocks that are not written yet.
    addresses: Vec<BlockAddress>,
    cp: CpNumber,
    next: BlockRef,
}

/// Blocks of a list written in one turn.
const STEP_BLOCKS: usize = 32;

impl<E: ChainEntry> ListWriter<E> {
    /// The list of `entries` in `places`, which it fills exactly.
    #[must_use]
    pub fn new(entries: Vec<E>, places: &[AddressRange], cp: CpNumber) -> Self {
        let address =
            |range: &AddressRange| (0..range.count).map(|offset| range.first.plus(offset)).collect::<Vec<_>>();
        let addresses: Vec<_> = places.iter().flat_map(address).collect();
        assert_eq!(entries.len().div_ceil(entries_per_block::<E>()), addresses.len(), "a list fills its places");
        Self { entries, addresses, cp, next: BlockRef::default() }
    }

    /// Writes as much as memory allows, each block under `tag`; returns how many writes began.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, mut tag: impl FnMut() -> Tag) -> usize {
        let mut begun = 0;
        while begun < STEP_BLOCKS
            && let Some(&address) = self.addresses.last()
        {
            let Some(mut buffer) = io.allocate() else { break };
            let first = (self.addresses.len() - 1) * entries_per_block::<E>();
            let end = self.entries.len().min(first + entries_per_block::<E>());
            encode_chain_block(&mut buffer, &self.entries[first..end], self.next);
            self.next = BlockRef::new(address, self.cp, &buffer);
            io.write(tag(), address, vec![buffer.freeze()], Persistence::Volatile);
            self.addresses.pop();
            begun += 1;
        }
        begun
    }

    /// The reference of the first block, once every write has begun.
    #[must_use]
    pub fn first_block(&self) -> Option<BlockRef> {
        self.addresses.is_empty().then_some(self.next)
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let range = |first, count| AddressRange { first: BlockAddress::new(0, first), count };
        assert_eq!(merge(vec![range(9, 1), range(4, 2), range(6, 3), range(20, 1)]), vec![range(4, 6), range(20, 1)]);
        assert_eq!(total(&[range(4, 6), range(20, 1)]), 7);
        let mut ranges = Vec::new();
        [7, 8, 9, 3, 4, 4].into_iter().for_each(|block| push_joined(&mut ranges, BlockAddress::new(0, block)));
        assert_eq!(ranges, vec![range(7, 3), range(3, 2), range(4, 1)]);
    }
}
