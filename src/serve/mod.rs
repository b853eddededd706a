//! Front ends: each turns a protocol's bytes into [`VolumeRequest`](crate::node::request::VolumeRequest)s and the replies back into bytes.
//! And the [`reactor`]: the loop that gives engine, front end and machine their turns.

pub mod nbd;
pub mod reactor;

pub use nbd::NbdServer;
pub use reactor::{FrontEnd, Reactor, ReactorParts};
