//! Every byte that outlives the process.
//!
//! Structures are little-endian, without alignment, and asserted in size. Bytes from outside become values only through a
//! `verify` function.

pub mod chain;
pub mod lane_header;
pub mod object;
pub mod record;
pub mod reference;
pub mod register;
pub mod reservation;
pub mod superblock;
pub mod unverified;

pub use unverified::{Unverified, Verify};
