//! Front ends: each turns a protocol's bytes into [`VolumeRequest`](crate::node::request::VolumeRequest)s and the replies back into bytes.

pub mod nbd;

pub use nbd::NbdServer;
