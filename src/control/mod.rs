//! Configuration, admin API, metrics and status.
//!
//! Everything here runs on ordinary threads, beside the reactors: it may block, read the clock and use the file system. It talks to
//! reactor 0 by [`AdminCall`](crate::node::admin::AdminCall)s through one bounded mailbox.

pub mod admin;
pub mod client;
pub mod config;
pub mod events;
pub mod file;
pub mod hosts;
pub mod logging;
pub mod metrics;
pub mod render;
pub mod size;
pub mod status;
