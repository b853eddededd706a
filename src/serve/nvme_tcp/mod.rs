//! NVMe over TCP: volumes as namespaces of one subsystem, for the kernel's own initiator.
//!
//! ```text
//! access        how the pools are reached, and that hosts hear of it before they see it
//! wire          bytes <-> units, commands, identify structures, log pages; pure
//! target        what hosts find: the subsystem's and the namespaces' identity, who may connect, where else
//! hosts         which hosts may connect, and what they have to prove
//! auth          how they do
//! controllers   the controllers of this node, shared by its reactors
//! gate          which of a connection's changes have arrived recently enough to be performed
//! health        what hosts have moved, for the health log page
//! admin         one controller's admin queue: properties, identify, features, logs, events, keep alive
//! io            what a command of an I/O queue asks of a volume, or the status that answers it
//! session       one connection through all of these: units in, commands in flight, units out, time-outs
//! ```
//!
//! What hosts may rely on is in `docs/nvme-tcp.md`.

mod access;
mod admin;
pub mod auth;
mod controllers;
mod gate;
mod health;
mod hosts;
mod io;
mod notices;
mod session;
mod target;
pub mod wire;

pub(super) use access::{Lookout, UNPROVEN};
pub use hosts::Host;
pub(super) use session::Session;
pub use target::{Target, TargetParts};
