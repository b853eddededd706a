//! The one checksum of the project: XXH3 with 64 bits.
//!
//! It finds damage, not malice. 64 bits because a pool verifies billions of blocks in its life; XXH3 because it runs at
//! memory speed on any x86-64 or AArch64, and takes wider instructions where the processor has them. The seed binds bytes to the place they belong to.

use std::hash::Hasher as _;
use twox_hash::XxHash3_64;

/// Checksum of `bytes` that belong to the place named by `seed` (a block address, an LSN, ...).
#[must_use]
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// Checksum of bytes that lie in several places, as if they lay behind each other.
#[must_use]
pub fn checksum_of_parts<'a>(seed: u64, parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = XxHash3_64::with_seed(seed);
    parts.into_iter().for_each(|part| hasher.write(part));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_up_to_the_whole() {
        let bytes: Vec<u8> = (0..5000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for cut in [0, 1, 16, 240, 241, 1024, 4999, 5000] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(checksum_of_parts(7, [head, tail]), checksum(7, &bytes));
            assert_eq!(checksum_of_parts(7, [head]), checksum(7, head));
        }
    }
}
