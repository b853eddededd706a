//! A request's way through one node: admission, log, apply, reply; and recovery.

pub mod admin;
pub mod request;
