//! The change log's promise: after any crash, every durable change comes back, in order, once; and damage is named.

mod bounds;
mod damage;
mod mirror;
mod model;
mod pair;
#[cfg(feature = "planted-bugs")]
mod planted;
mod support;
