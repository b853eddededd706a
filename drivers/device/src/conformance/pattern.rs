//! Bytes that name the write they come from, so that any read proves which write it saw.

use crate::{BlockBuf, BlockBytes, BlockPool, SharedBlock};

/// Words of eight bytes in the smallest sector; the pattern repeats its tag in every word, mixed with the word's place.
const WORD_BYTES: usize = 8;

/// Fills `bytes`, which begin at byte `offset` of something, with the pattern of `tag`.
pub(super) fn fill(bytes: &mut [u8], offset: usize, tag: u64) {
    for (index, word) in bytes.chunks_mut(WORD_BYTES).enumerate() {
        let place = (offset / WORD_BYTES + index) as u64;
        word.copy_from_slice(&mix(tag, place).to_le_bytes()[..word.len()]);
    }
}

/// Whether `bytes`, which begin at byte `offset` of something, hold the pattern of `tag`.
pub(super) fn holds(bytes: &[u8], offset: usize, tag: u64) -> bool {
    bytes.chunks(WORD_BYTES).enumerate().all(|(index, word)| {
        let place = (offset / WORD_BYTES + index) as u64;
        word == &mix(tag, place).to_le_bytes()[..word.len()]
    })
}

/// A block with the pattern of `tag`.
pub(super) fn block(pool: &BlockPool, tag: u64) -> SharedBlock {
    let mut block = pool.allocate().expect("the harness has enough blocks");
    fill(&mut block[..], 0, tag);
    block.freeze()
}

/// `count` blocks to read into, filled with what no write of the suite leaves.
pub(super) fn buffers(pool: &BlockPool, count: usize) -> Vec<BlockBuf> {
    let mut blocks = pool.allocate_many(count).expect("the harness has enough blocks");
    for block in &mut blocks {
        fill(&mut block[..], 0, u64::MAX);
    }
    blocks
}

/// Panics unless `block` holds the pattern of `tag`.
#[track_caller]
pub(super) fn expect(block: &BlockBytes, tag: u64, contract: &str) {
    assert!(holds(block, 0, tag), "{contract}: the block does not hold the pattern of write {tag}");
}

fn mix(tag: u64, place: u64) -> u64 {
    (tag.rotate_left(32) ^ place).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ tag
}
