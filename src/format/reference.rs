//! References: the only way to reach a block. The parent knows where its child lies, which consistency point wrote it, and the
//! checksum of its bytes, so bit rot and torn, lost and misdirected writes are all found when the child is read.
//!
//! ```text
//!  0        8        16         24    28    32
//!  | address | birth  | checksum | aux | flags |
//! ```

use crate::base::{BlockAddress, CpNumber, checksum, limits::TREE_FANOUT};
use twinlog_device::{BLOCK_BYTES, BlockBytes};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// A reference on disk. All zero means: a hole, no block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct BlockRef {
    address: U64,
    birth: U64,
    checksum: U64,
    /// In the space map: most free blocks of any one area below. Zero elsewhere.
    aux: U32,
    /// Bit 0: the reference is present. The rest is zero.
    flags: U32,
}

const _: () = assert!(size_of::<BlockRef>() == 32);
const _: () = assert!(std::mem::offset_of!(BlockRef, checksum) == 16);

const PRESENT: u32 = 1;

/// What distinguishes one block's content from any other that the same address ever held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// Where.
    pub address: BlockAddress,
    /// Since which consistency point.
    pub birth: CpNumber,
}

impl BlockRef {
    /// The reference to `bytes`, written at `address` by consistency point `birth`.
    #[must_use]
    pub fn new(address: BlockAddress, birth: CpNumber, bytes: &BlockBytes) -> Self {
        Self {
            address: address.0.into(),
            birth: birth.0.into(),
            checksum: checksum(seed(address, birth), bytes).into(),
            aux: 0.into(),
            flags: PRESENT.into(),
        }
    }

    /// The same with `aux` set.
    #[must_use]
    pub fn with_aux(mut self, aux: u32) -> Self {
        self.aux = aux.into();
        self
    }

    /// The hint of the space map: see the field.
    #[must_use]
    pub fn aux(&self) -> u32 {
        self.aux.get()
    }

    /// Whether there is no block.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.flags.get() & PRESENT == 0
    }

    /// Where the block lies; meaningless for a hole.
    #[must_use]
    pub fn address(&self) -> BlockAddress {
        BlockAddress(self.address.get())
    }

    /// Which consistency point wrote it.
    #[must_use]
    pub fn birth(&self) -> CpNumber {
        CpNumber(self.birth.get())
    }

    /// Its identity for caches.
    #[must_use]
    pub fn key(&self) -> BlockKey {
        BlockKey { address: self.address(), birth: self.birth() }
    }

    /// Whether `bytes` are what this reference was made for.
    #[must_use]
    pub fn matches(&self, bytes: &BlockBytes) -> bool {
        checksum(seed(self.address(), self.birth()), bytes) == self.checksum.get()
    }

    /// Whether the reference is well formed: a hole is all zero, and no unknown flag is set.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        if self.is_hole() { *self == Self::default() } else { self.flags.get() == PRESENT }
    }
}

/// Binds a block's checksum to its place and time.
fn seed(address: BlockAddress, birth: CpNumber) -> u64 {
    address.0.rotate_left(32) ^ birth.0
}

/// A tree node: the references of [`TREE_FANOUT`] children, nothing else; its own checksum is in its parent.
pub type Node = [BlockRef; FANOUT];
const FANOUT: usize = BLOCK_BYTES / size_of::<BlockRef>();
const _: () = assert!(FANOUT as u64 == TREE_FANOUT);

/// The children of a node whose bytes have been verified against its reference.
#[must_use]
pub fn node(bytes: &BlockBytes) -> &Node {
    Node::ref_from_bytes(bytes).expect("a node has the size of a block and no alignment")
}

/// The children of a node, to be changed.
pub fn node_mut(bytes: &mut BlockBytes) -> &mut Node {
    Node::mut_from_bytes(bytes).expect("a node has the size of a block and no alignment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_matches_only_its_own_block() {
        let bytes = [7; BLOCK_BYTES];
        let at = |block, cp| BlockRef::new(BlockAddress::new(1, block), CpNumber(cp), &bytes);
        assert!(at(5, 9).matches(&bytes));
        assert_ne!(at(5, 9), at(6, 9));
        assert_ne!(at(5, 9).checksum, at(6, 9).checksum);
        assert_ne!(at(5, 9).checksum, at(5, 10).checksum);
        let mut flipped = bytes;
        flipped[4095] ^= 1;
        assert!(!at(5, 9).matches(&flipped));
    }

    #[test]
    fn holes_are_all_zero() {
        assert!(BlockRef::default().is_hole() && BlockRef::default().is_sane());
        let mut bytes = [0; BLOCK_BYTES];
        assert!(node(&bytes).iter().all(BlockRef::is_hole));
        bytes[0] = 1;
        assert!(!node(&bytes)[0].is_sane());
    }
}
