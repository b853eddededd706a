//! Consistency points: the disk moves atomically from one whole image of the pool to the next.
//!
//! # States
//!
//! ```text
//!            coordinator                          each shard (a lane and its volumes)
//! Idle
//!   | wanted
//! Gather --- Freeze ------------------------------> freeze every dirty volume at one lane position; new changes go on in
//!   |                                               the next generation
//!   | <----- NeedSpace(n) ------------------------- nodes on the way to the changes are loaded, the need is known
//!   | ------ Space(ranges) -----------------------> data and nodes are written, children before parents
//!   | <----- Written(roots, freed, lane position) - when its records are stable up to the freeze
//! Reap       subtrees cut off earlier are freed, so many nodes per consistency point
//! Directory  the object table takes the new roots
//! Map        frees of the last consistency point are cleared, the space map is written with its own new places in it
//! Lists      what this one freed, and what is left to reap
//! Commit     flush, superblock heads, superblock tails
//!   | ------ Durable -----------------------------> volumes take their new trees, the lane is trimmed
//! Idle
//! ```
//!
//! # Invariants
//!
//! 1. Until the first superblock copy of `n` is whole on a device, `n - 1` is whole and current; nothing it reaches was written.
//! 2. The superblock holds the lane position of every shard's freeze: exactly the changes below are in the image (rule R6).
//! 3. No change gets into a consistency point whose record is not durable in the log.
//! 4. The work of one turn is bounded; a consistency point costs in proportion to what changed.
//!
//! # Failure
//!
//! A crash at any step leaves `n - 1` and the log. A device error stops the pool: the process keeps nothing that the log does not
//! have, and opening the pool again finds out which consistency point is current.

pub mod check;
pub mod coordinator;
pub mod lists;
pub mod map;
pub mod message;
pub mod mirroring;
pub mod opening;
pub mod shard;
