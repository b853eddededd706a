//! NVMe controllers, driven from user space through the seam of `twinlog-pci`.
//!
//! A [`Controller`] is one PCI function; [`Controller::open`] makes an [`NvmeDisk`] of a namespace for one reactor, with a queue pair of its
//! own where the controller grants enough. Everything is polled; there is no thread and no clock but the caller's. A reactor without work sleeps until an
//! interrupt tells it to poll, where it asked for that ([`Watch`]).
//!
//! ```text
//!  NvmeDisk  NvmeDisk  NvmeDisk      one for each namespace and reactor: requests since the last poll
//!      \        /         |
//!       Queue 1        Queue 2       slots, identifiers, lists of pages, time-outs; rings and doorbells
//!          \              /
//!           Core (Controller)        registers, admin queue, steps of bringing up, watch, reset, failure
//!                 |
//!           PciFunction              windows, memory, reset: VFIO, uio, or the model
//! ```
//!
//! # Invariants
//!
//! 1. Every operation completes exactly once, whatever the controller does: with its own answer, or because the controller was stopped.
//! 2. A block that the controller may write is nobody's ([`twinlog_memory::DeviceBlock`]); it comes back with the answer to its command, or
//!    when the controller is known to have stopped. A controller that cannot be stopped keeps it for ever.
//! 3. Everything that a controller writes is checked before it is used. A completion that cannot be is a [`Violation`]: the controller is
//!    stopped and failed, never the process.
//! 4. Every wait ends: bringing up, commands, aborts, resets and shutdown have deadlines, and a controller that needs too many resets fails.
//!
//! # Failure cases
//!
//! | what | outcome |
//! |---|---|
//! | a command is not answered in time | abort; then reset of the controller; then of the function. It ends with `Os(ETIMEDOUT)`; others in flight are given again |
//! | CSTS.PP: it processes nothing for a while | it is given nothing, nothing is late, also while it is brought up; reset if that lasts longer than it said, and than a command may take; pauses one after the other give a command two minutes more in all |
//! | it may have another firmware, after a pause or as it has announced | nothing more is given to it, or taken from it, until it was asked again what it is |
//! | CSTS.CFS, or ready goes away | reset; everything in flight is given again |
//! | CSTS reads all ones, or the kernel wants the function back | it is stopped as far as it answers; everything ends with `Gone` |
//! | the controller breaks the protocol | it is stopped; everything ends with `Gone` |
//! | after a reset or a new firmware it is another controller, or does not keep what disks were told; or a namespace has another size | the same |
//! | another host has reserved a namespace | what would change it ends with `Fenced`, and whatever a preemption ends; of a disk that has met that, changes without asking the controller again |
//! | neither controller nor function can be reset | the same; blocks and queues that it has are never used again |
//!
//! # What this does not handle
//!
//! Metadata and protection information, namespaces of other command sets, queues in controller memory, namespace
//! management, giving it a firmware, sanitize. A reset is trusted not to lose the volatile write cache, as the specification has it.

#![forbid(unsafe_code)]

mod admin;
mod bring_up;
mod controller;
mod core;
mod deadline;
mod disk;
mod failure;
mod health;
mod lock;
#[cfg(feature = "model")]
pub mod model;
mod namespace;
mod prp;
mod queue;
mod registers;
mod reservation;
mod ring;
mod sgl;
pub mod spec;
mod watch;

pub use controller::{Clock, Controller, OpenError};
pub use core::{ControllerOptions, ControllerState};
pub use disk::NvmeDisk;
pub use failure::{Failure, Unsupported, Violation};
pub use health::{Health, LoggedError};
pub use namespace::{ControllerIdentity, Namespace};
pub use reservation::{
    HostId, REPORT_BYTES, REPORT_HOSTS_MAX, Registrant, Reservation, ReservationKind, ReservationReport,
};
pub use watch::Watch;
