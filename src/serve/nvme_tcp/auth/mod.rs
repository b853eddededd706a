//! In-band authentication, DH-HMAC-CHAP (NVMe base 2.0, section 8.13.5): a host shows that it knows its secret, and the controller, if the host wants to
//! know, that it knows its own, before any other command of a queue is performed.
//!
//! ```text
//! secret      what people hand on, and the key that it stands for
//! hash        HMAC and hash functions by their identifiers
//! group       the groups of RFC 7919
//! means       random bytes, and somebody who computes powers: they take milliseconds
//! exchange    one queue's transaction, message by message
//! ```
//!
//! Linux's host authenticates each queue, the admin queue first.

mod exchange;
mod group;
mod hash;
mod means;
mod secret;

pub(super) use exchange::{Exchange, Given, Taken};
pub use means::{Calculator, Here, Job, Means};
pub use secret::{NoSecret, Secret};
