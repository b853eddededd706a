//! The NBD front end as its clients see it: bytes in, bytes out.

mod commands;
mod handshake;
mod landing;
mod misbehaviour;
mod support;
