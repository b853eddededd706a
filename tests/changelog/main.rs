//! The change log's promise: after any crash, every durable change comes back, in order, once; and damage is named.

mod bounds;
mod damage;
mod model;
#[cfg(feature = "planted-bugs")]
mod planted;
mod support;
