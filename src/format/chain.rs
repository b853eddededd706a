//! Chains: lists that a consistency point carries along in blocks of their own, each with the reference of the next.
//!
//! Two lists exist. The **freed** list names extents that this consistency point no longer reaches but the one before does; the next
//! one marks them free (rule R9). The **reap** list names subtrees that were cut off whole and are freed bit by bit.
//!
//! ```text
//!  0      8       16          48                       4096
//!  | magic | count | next ref  | entries ...             |
//! ```

use super::reference::BlockRef;
use crate::base::BlockAddress;
use twinlog_device::{BLOCK_BYTES, BlockBytes};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// Consecutive blocks of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// The first block.
    pub first: BlockAddress,
    /// How many, at least one.
    pub count: u64,
}

/// A subtree that nobody reaches any more: its root, and the levels of nodes from there down (zero: a data block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// Its root.
    pub root: BlockRef,
    /// Node levels.
    pub levels: u8,
}

/// What a chain is a list of.
pub trait ChainEntry: Sized + Copy {
    /// Names the list in its blocks.
    const MAGIC: [u8; 8];
    /// The entry on disk.
    type Raw: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy;
    /// To disk.
    fn encode(&self) -> Self::Raw;
    /// From disk; `None` if it is malformed.
    fn decode(raw: &Self::Raw) -> Option<Self>;
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct ChainHeader {
    magic: [u8; 8],
    count: U32,
    reserved: U32,
    next: BlockRef,
}

const HEADER_BYTES: usize = 48;
const _: () = assert!(size_of::<ChainHeader>() == HEADER_BYTES);

/// An extent of the freed list on disk.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RawRange {
    first: U64,
    count: U64,
}

/// A subtree of the reap list on disk.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RawSubtree {
    root: BlockRef,
    levels: U64,
}

impl ChainEntry for AddressRange {
    const MAGIC: [u8; 8] = *b"TWLFREED";
    type Raw = RawRange;
    fn encode(&self) -> RawRange {
        RawRange { first: self.first.0.into(), count: self.count.into() }
    }
    fn decode(raw: &RawRange) -> Option<Self> {
        let first = BlockAddress(raw.first.get());
        let end = first.block().checked_add(raw.count.get())?;
        (raw.count.get() > 0 && end < BlockAddress::DEVICE_BLOCKS_MAX).then_some(Self { first, count: raw.count.get() })
    }
}

impl ChainEntry for Subtree {
    const MAGIC: [u8; 8] = *b"TWLREAP\0";
    type Raw = RawSubtree;
    fn encode(&self) -> RawSubtree {
        RawSubtree { root: self.root, levels: u64::from(self.levels).into() }
    }
    fn decode(raw: &RawSubtree) -> Option<Self> {
        let levels = u8::try_from(raw.levels.get()).ok().filter(|&levels| levels <= super::object::LEVELS_MAX)?;
        (!raw.root.is_hole() && raw.root.is_sane()).then_some(Self { root: raw.root, levels })
    }
}

/// Entries that one block holds.
#[must_use]
pub const fn entries_per_block<E: ChainEntry>() -> usize {
    (BLOCK_BYTES - HEADER_BYTES) / size_of::<E::Raw>()
}

/// Blocks that a list of `count` entries takes.
#[must_use]
pub fn chain_blocks<E: ChainEntry>(count: usize) -> usize {
    count.div_ceil(entries_per_block::<E>())
}

/// Fills `block` with `entries`, at most [`entries_per_block`], followed by the chain that `next` begins.
pub fn encode_chain_block<E: ChainEntry>(block: &mut BlockBytes, entries: &[E], next: BlockRef) {
    assert!(!entries.is_empty() && entries.len() <= entries_per_block::<E>(), "a chain block holds its share");
    let count = u32::try_from(entries.len()).expect("a few hundred");
    let header = ChainHeader { magic: E::MAGIC, count: count.into(), reserved: 0.into(), next };
    block.fill(0);
    let (head, body) = block.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(header.as_bytes());
    for (place, entry) in body.chunks_exact_mut(size_of::<E::Raw>()).zip(entries) {
        place.copy_from_slice(entry.encode().as_bytes());
    }
}

/// The entries of a block whose checksum has been verified, and the reference of the next block.
///
/// # Errors
/// What is wrong with it.
pub fn decode_chain_block<E: ChainEntry>(block: &BlockBytes) -> Result<(Vec<E>, BlockRef), String> {
    let (head, body) = block.split_at(HEADER_BYTES);
    let header = ChainHeader::ref_from_bytes(head).map_err(|_| "a chain block has the wrong size".to_owned())?;
    let count = header.count.get() as usize;
    if header.magic != E::MAGIC || header.reserved.get() != 0 || count == 0 || count > entries_per_block::<E>() {
        return Err("a chain block has a wrong header".to_owned());
    }
    if !header.next.is_sane() {
        return Err("a chain block has a malformed next reference".to_owned());
    }
    let raw = |place: &[u8]| E::Raw::read_from_bytes(place).ok().and_then(|raw| E::decode(&raw));
    let entries: Option<Vec<E>> = body.chunks_exact(size_of::<E::Raw>()).take(count).map(raw).collect();
    entries.map(|entries| (entries, header.next)).ok_or_else(|| "a chain block has a malformed entry".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CpNumber;

    #[test]
    fn a_full_block_survives_the_round_trip() {
        let ranges: Vec<_> = (0..entries_per_block::<AddressRange>() as u64)
            .map(|n| AddressRange { first: BlockAddress::new(1, n * 10), count: n + 1 })
            .collect();
        let mut block = [0xAA; BLOCK_BYTES];
        encode_chain_block(&mut block, &ranges, BlockRef::default());
        assert_eq!(decode_chain_block::<AddressRange>(&block), Ok((ranges, BlockRef::default())));
        assert!(decode_chain_block::<Subtree>(&block).is_err());
        let root = BlockRef::new(BlockAddress::new(0, 77), CpNumber(3), &block);
        let subtrees = vec![Subtree { root, levels: 2 }; entries_per_block::<Subtree>()];
        encode_chain_block(&mut block, &subtrees, root);
        assert_eq!(decode_chain_block::<Subtree>(&block), Ok((subtrees, root)));
    }

    #[test]
    fn bad_entries_are_refused() {
        let mut block = [0; BLOCK_BYTES];
        encode_chain_block(
            &mut block,
            &[AddressRange { first: BlockAddress::new(0, 5), count: 1 }],
            BlockRef::default(),
        );
        let mut empty_range = block;
        empty_range[HEADER_BYTES + 8] = 0;
        assert!(decode_chain_block::<AddressRange>(&empty_range).is_err());
        let mut beyond = block;
        beyond[HEADER_BYTES + 8..HEADER_BYTES + 16].fill(0xFF);
        assert!(decode_chain_block::<AddressRange>(&beyond).is_err());
        let mut too_many = block;
        too_many[8..12].fill(0xFF);
        assert!(decode_chain_block::<AddressRange>(&too_many).is_err());
    }
}
