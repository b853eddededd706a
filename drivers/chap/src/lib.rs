//! What both ends of DH-HMAC-CHAP compute (NVMe base 2.0, section 8.13.5): no messages, no states, no randomness.
//!
//! ```text
//! secret      what people hand on, and the key that it stands for
//! hash        HMAC and hash functions by their identifiers
//! group       the groups of RFC 7919
//! response    what is proven with all of them
//! ```
//!
//! The target and the load tool each have messages of their own, so that what one of them gets wrong the other does not repeat. What is here they share: it
//! is held against what other implementations compute, here and in `tests/nvme_tcp/authentication.rs`.

mod group;
mod hash;
mod response;
mod secret;

pub use group::{EXPONENT_BYTES, Group};
pub use hash::Hash;
pub use response::{Challenge, Prover, Role};
pub use secret::{NoSecret, Secret};
