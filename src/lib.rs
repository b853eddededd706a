//! Twinlog: a highly available storage target for a pair of Linux nodes.
//!
//! A write is answered once its record is stable in the change log; disks follow in atomic consistency points.
//!
//! # Layers
//!
//! A module imports only from layers above it in this table (`tests/tidy.rs` holds it to that):
//!
//! | layer | what it is |
//! |---|---|
//! | [`base`] | ids and units as newtypes, limits with their arithmetic, checksum, seeded random numbers |
//! | [`format`](mod@format) | every byte that outlives the process; pure |
//! | [`reactor`] | mailboxes between reactors, idle policy |
//! | [`changelog`] | lanes of the change log: append, persist, trim, recover |
//! | [`pool`] | devices, superblocks, verified block store |
//! | [`alloc`] | write-anywhere allocator: areas, reservations, deferred frees |
//! | [`fs`] | objects: block trees, buffer cache, volumes |
//! | [`cp`] | consistency points |
//! | [`node`] | a request's way through one node; recovery |
//! | [`pair`] | who serves a pool: register, arbiter, fence, decisions; the interconnect |
//! | [`serve`] | front ends: NBD, NVMe/TCP |
//! | [`control`] | configuration, admin API, metrics, status |
//!
//! The engine is generic over [`twinlog_device::Platform`] and reads time, disks, log memory and sockets only through it;
//! `src/cli/` is the one place that names concrete drivers.

pub mod alloc;
pub mod base;
pub mod changelog;
pub mod control;
pub mod cp;
pub mod format;
pub mod fs;
pub mod node;
pub mod pair;
pub mod pool;
pub mod reactor;
pub mod serve;

/// The commit this was built from, with `+` appended when tracked files differed from it; `unknown` without git.
pub const COMMIT: &str = env!("TWINLOG_COMMIT");
