//! Devices, superblocks and the verified block store.

pub mod cache;
pub mod io;
pub mod superblocks;
pub mod tree;
