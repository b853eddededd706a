//! The two lists that a consistency point carries along: reading them at open, writing them anew each time.

use crate::{
    base::CpNumber,
    format::{
        chain::{AddressRange, ChainEntry, decode_chain_block, encode_chain_block, entries_per_block},
        reference::BlockRef,
    },
    pool::io::{Io, Tag},
};
use twinlog_device::{BlockDevice, Persistence, SharedBlock};

/// Sorts ranges and joins neighbours.
#[must_use]
pub fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable();
    let mut merged: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.first.0 + last.count == range.first.0 => last.count += range.count,
            _ => merged.push(range),
        }
    }
    merged
}

/// Blocks of all ranges.
#[must_use]
pub fn total(ranges: &[AddressRange]) -> u64 {
    ranges.iter().map(|range| range.count).sum()
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

/// Writes a list into `places`, which it fills exactly. Returns the reference of its first block; the writes end under `tag`.
pub fn write_list<E: ChainEntry, D: BlockDevice>(
    io: &mut Io<D>,
    entries: &[E],
    places: &[AddressRange],
    (cp, tag): (CpNumber, Tag),
) -> BlockRef {
    let addresses: Vec<_> =
        places.iter().flat_map(|range| (0..range.count).map(|offset| range.first.plus(offset))).collect();
    let chunks: Vec<_> = entries.chunks(entries_per_block::<E>()).collect();
    assert_eq!(chunks.len(), addresses.len(), "a list fills its places");
    let mut next = BlockRef::default();
    for (chunk, &address) in chunks.iter().zip(&addresses).rev() {
        let mut buffer = io.allocate().expect("the block pool keeps room for lists");
        encode_chain_block(&mut buffer, chunk, next);
        next = BlockRef::new(address, cp, &buffer);
        let block: SharedBlock = buffer.freeze();
        io.write(tag, address, vec![block], Persistence::Volatile);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockAddress;

    #[test]
    fn neighbours_are_joined() {
        let range = |first, count| AddressRange { first: BlockAddress::new(0, first), count };
        assert_eq!(merge(vec![range(9, 1), range(4, 2), range(6, 3), range(20, 1)]), vec![range(4, 6), range(20, 1)]);
        assert_eq!(total(&[range(4, 6), range(20, 1)]), 7);
    }
}
