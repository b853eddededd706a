//! The write-anywhere allocator: areas, reservations, deferred frees.
//!
//! # Theory
//!
//! A pool's blocks are cut into areas of 128 MiB; the space map is a tree whose leaf number `a` is the bitmap of area `a`, and whose
//! references carry the most free blocks of any area below, so that a search skips what is full without reading it. Nothing is ever
//! proportional to the size of the pool: an area that was never used has no bitmap, and bitmaps are read when their area is used.
//!
//! Blocks are only allocated inside consistency points. Between them the [`budget::Budget`] promises space.
//!
//! # Invariants
//!
//! 1. A bit that is clear in the space map of consistency point `n` is reached neither by `n` nor by `n - 1` (rule R9): blocks freed by
//!    `n` go into `n`'s freed list and are cleared in the space map of `n + 1`.
//! 2. While `n` is written, blocks are taken only from bits that are clear in the space map of `n - 1`.
//! 3. Every block is exactly one of: reached by a tree, in the freed list, part of a list's chain, in a subtree of the reap list,
//!    clear in the space map. `pool check` proves it.

pub mod area;
pub mod budget;
pub mod geometry;
pub mod space_map;
