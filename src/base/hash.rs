//! Hash tables whose order does not depend on chance, so that one seed always gives one run.

#![expect(clippy::disallowed_types, reason = "the one place that gives the standard tables a fixed hasher")]

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasherDefault,
};
use twox_hash::XxHash3_64;

/// A hash map with a fixed hasher.
pub type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
/// A hash set with a fixed hasher.
pub type FixedSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Hasher for ids and addresses: one multiplication per word; other input goes through XXH3.
#[derive(Default)]
pub struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(XxHash3_64::oneshot(bytes));
    }
    fn write_u64(&mut self, word: u64) {
        // Fibonacci hashing: 2^64 divided by the golden ratio; the fold brings the mixed high bits to the table's index bits.
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}
