//! Byte streams from clients.
//!
//! A driver receives into a bounded buffer per connection and sends from a bounded queue per connection; the caller looks at
//! what came, consumes it, and queues what goes out. A caller that does not consume slows its client down, nobody else.

use crate::SharedBlock;
use std::ops::Range;

/// A connection of this reactor. Never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its name from now on.
    pub connection: ConnectionId,
    /// Which of the configured listeners took it.
    pub listener: usize,
    /// The client, for messages to people.
    pub peer: String,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Both directions work.
    Open,
    /// The peer has finished sending; what it sent may still wait in `input`, and sending to it may still work.
    InputEnded,
    /// Nothing more will come or go.
    Failed,
}

/// The client connections of one reactor.
pub trait Network {
    /// A connection that was accepted since the last call.
    fn accept(&mut self) -> Option<Accepted>;

    /// Appends connections that got input, room to send, or another state since the last call; each at most once.
    fn poll(&mut self, ready: &mut Vec<ConnectionId>);

    /// How a connection stands.
    fn state(&self, connection: ConnectionId) -> ConnectionState;

    /// Bytes received and not yet consumed. At least 64 KiB can wait here; the driver stops receiving when it is full.
    fn input(&self, connection: ConnectionId) -> &[u8];

    /// Drops the first `count_bytes` of `input`.
    fn consume(&mut self, connection: ConnectionId, count_bytes: usize);

    /// Queues a copy of `bytes` to be sent. Always accepted; the caller bounds `unsent_bytes` by what it queues.
    fn send(&mut self, connection: ConnectionId, bytes: &[u8]);

    /// Queues part of a block to be sent, without copying it.
    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>);

    /// Bytes queued that the kernel has not taken yet.
    fn unsent_bytes(&self, connection: ConnectionId) -> usize;

    /// Ends a connection once what is queued has been sent, or now when `abort` is set. The id is invalid afterwards.
    fn close(&mut self, connection: ConnectionId, abort: bool);
}
