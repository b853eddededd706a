//! Front ends: each turns a protocol's bytes into [`VolumeRequest`](crate::node::request::VolumeRequest)s and the replies back into bytes.
//! A reactor's [`Server`] has the sessions of all of them, and the [`reactor`] is the loop that gives engine, front end and machine their turns.
//! That of an [`interconnect`] is beside it.

pub mod interconnect;
mod landing;
pub mod nbd;
pub mod nvme_tcp;
pub mod reactor;
mod server;
mod slots;
mod sweeper;
mod turn;

pub use interconnect::{InterconnectLoop, InterconnectParts};
pub use reactor::{FrontEnd, Reactor, ReactorParts};
pub use server::{NvmeTcp, STOP_GRACE, Server};
