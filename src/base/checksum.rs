//! The one checksum of the project: XXH3 with 64 bits.
//!
//! It finds damage, not malice. 64 bits because a pool verifies billions of blocks in its life; XXH3 because it runs at
//! memory speed on any x86-64 or AArch64 without special instructions. The seed binds bytes to the place they belong to.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Checksum of `bytes` that belong to the place named by `seed` (a block address, an LSN, ...).
#[must_use]
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}
