//! NBD: the network block device protocol, complete as far as its document is normative, without TLS; and its extended headers.
//!
//! ```text
//! codec         bytes <-> messages; pure
//! negotiate     the handshake: options in, replies out, until an export is entered
//! request       what a command asks for, or the error that answers it
//! transmission  requests in flight, parts, payloads, replies
//! data          what the engine returns, as bytes of replies
//! session       one connection through all of these, with time-outs
//! ```
//!
//! What clients may rely on is in `docs/operating/nbd.md`.

mod codec;
mod data;
mod negotiate;
mod request;
mod session;
mod transmission;

pub(super) use session::Session;
