//! A simulated machine: devices, log memory and network in virtual time, drawn from one seed, with the fault model.
//!
//! # Life of a world
//!
//! ```text
//! SimWorld::new(seed) --> SimMedium (disks)  --open--> SimDisk  --+
//!                    \--> Agenda (a reactor) --------> SimNet   --+--> engine --> dropped at a kill or a power cut
//!                                              \-----> SimPlatform -+                 |
//!                              ^                                                      v
//!                              +---- new Agenda, open again <---- process_kill / power_cut of every medium
//! ```
//!
//! # Invariants
//!
//! 1. Everything is drawn from the world's seed and happens in virtual time: the same calls give the same bytes, always.
//! 2. What is durable changes only in durable steps, which the world counts; after [`SimWorld::crash_at_step`]`(n)` exactly `n` happen.
//! 3. A fault never breaks more than the driver contracts and the fault's own definition ([`Fault`]) allow.
//! 4. Memory and time follow what was written, not the size of a disk.
//!
//! # Fault model
//!
//! A power cut ([`SimMedium::power_cut`]) loses unflushed writes in any subset of sectors and tears writes in flight by sector. The end of
//! a process ([`SimMedium::process_kill`]) keeps what has completed; what was in flight may land or not. All other faults are drawn at
//! the rates of a [`FaultPlan`], or armed for one operation. Each class counts how often it fired and how often it mattered.

#![forbid(unsafe_code)]

mod content;
mod disk;
mod fault;
pub mod log;
mod medium;
mod net;
mod pages;
mod platform;
mod world;

pub use disk::SimDisk;
pub use fault::{Fault, FaultPlan};
pub use log::{LogMedium, LogShape, SimLog};
pub use medium::{
    Aborts, HOSTS_MAX, HostQueue, MediumConfig, Registrations, ReservationCounts, ReservationOrder, SimMedium,
};
pub use net::{Direction, PathCounts, PathPlan, SimClient, SimListener, SimNet, SimPath};
pub use platform::SimPlatform;
pub use world::{Agenda, SimWaker, SimWorld};
