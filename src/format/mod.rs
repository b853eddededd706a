//! Every byte that outlives the process.

pub mod lane_header;
pub mod record;
pub mod unverified;

pub use unverified::{Unverified, Verify};
