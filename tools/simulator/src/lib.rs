//! The engine in a simulated world: nodes, their disks, logs, clients and crashes, in one thread, in virtual time, from one seed.
//!
//! ```text
//! setup     what a history is made of, drawn from its seed
//! cluster   machines and the nodes on them: the engine, coordinator, log and NBD server that ship
//! clients   a port to the engine without a protocol, and an NBD client of its own
//! pattern   bytes that tell which write they are from
//! model     the oracle of data: linearizable, nothing answered lost, nothing half applied
//! exchanging clients that compare and write
//! reserving hosts that reserve volumes, and what is made of their answers
//! needs     what records in a log need of a volume's tree, so that it can rot
//! fault     classes of faults, what excuses an error, how often each fired and mattered
//! pair      two nodes with shared disks, interconnect, arbiter and fences: takeover, giveback, and all that fails on the way
//! history   lives, crashes, verification, the workload, the end in which everything must work
//! run       many histories on many threads
//! bank      planted bugs, each of which must be found
//! ```
//!
//! `docs/testing.md` says how to run it.

#![forbid(unsafe_code)]

#[cfg(feature = "planted-bugs")]
pub mod bank;
pub mod clients;
pub mod cluster;
mod exchanging;
pub mod fault;
pub mod history;
pub mod model;
mod needs;
pub mod pair;
pub mod pattern;
mod reserving;
pub mod resume;
pub mod run;
pub mod setup;
