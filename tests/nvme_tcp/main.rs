//! The NVMe/TCP front end, against a host written out by hand, in memory and in one thread.

#[path = "../nbd/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the parts that know NBD")]
mod support;

mod access;
mod admin;
mod authentication;
mod commands;
mod conformance;
mod conformance_table;
mod fused;
mod host;
mod landing;
mod late;
mod logs;
mod misbehaviour;
mod model;
mod reservations;
