//! A request's way through one node: admission, log, apply, reply; and recovery.

pub mod admin;
pub mod engine;
pub mod figures;
pub mod forward;
pub mod memory;
pub mod pools;
pub mod request;
pub mod shard;
pub mod sweep;
