//! In-band authentication, DH-HMAC-CHAP (NVMe base 2.0, section 8.13.5): a host shows that it knows its secret, and the controller, if the host wants to
//! know, that it knows its own, before any other command of a queue is performed.
//!
//! ```text
//! means       random bytes, and somebody who computes powers: they take milliseconds
//! exchange    one queue's transaction, message by message
//! ```
//!
//! What is computed is in [`twinlog_chap`], for the load tool as well, which is a host; the messages are in [`wire::auth`](super::wire::auth).
//!
//! Linux's host authenticates each queue, the admin queue first.

mod exchange;
mod means;

pub(super) use exchange::{Exchange, Given, Taken};
pub use means::{Calculator, Here, Job, Means};
pub use twinlog_chap::{NoSecret, Secret};
