//! Byte streams: from clients, and between the two nodes of a pair.
//!
//! A driver receives into a bounded buffer per connection and sends from a queue per connection; the caller looks at what came,
//! consumes it, and queues what goes out. A caller that does not consume slows its peer down, nobody else.
//!
//! # Life of a connection
//!
//! ```text
//!   accept() ------------------------> Open --peer sends no more--> InputEnded --+
//!                                       ^ |                            |         |
//!   connect() --> Connecting --answer---+ +---------broken-------------+--> Failed +--close()--> gone
//!                     +------------no answer, or a refusal------------------^
//! ```
//!
//! # Contract
//!
//! 1. Bytes arrive whole, in order and once, up to the place where the connection breaks, if it does. It can break anywhere.
//! 2. Every change of state, new input and new room to send is named by a later [`Network::poll`], for connections that the caller
//!    knows: those that `accept` or `connect` has returned.
//! 3. `Failed` is final, and [`Network::failure`] says why. What was queued is dropped, what had been received stays readable.
//! 4. A peer whose machine has vanished is not noticed by a driver in any time that matters: whoever waits sets its own limit.
//! 5. An id is valid from `accept` or `connect` to `close`, and never used again.

use crate::{BLOCK_BYTES, BlockBuf, SharedBlock};
use std::{
    fmt, io,
    net::SocketAddr,
    ops::{Deref, Range},
    path::PathBuf,
    sync::Arc,
};
use thiserror::Error;

/// Most input of one connection that a caller can ask a driver to keep.
pub const INPUT_BYTES_MAX: usize = 8 << 20;

/// Where somebody listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetAddress {
    /// A socket in the file system: at most 107 bytes.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl fmt::Display for NetAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
        }
    }
}

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
    /// Asked for by `connect`, and not answered yet.
    Connecting,
    /// Both directions work.
    Open,
    /// The peer has finished sending; what it sent may still wait in `input`, and sending to it may still work.
    InputEnded,
    /// Nothing more will come or go.
    Failed,
}

/// Why a connection has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConnectionFailure {
    /// The machine is there and nobody listens.
    #[error("nobody listens there")]
    Refused,
    /// The network does not lead there.
    #[error("the network does not lead there")]
    Unreachable,
    /// No answer for as long as the operating system tries.
    #[error("there is no answer")]
    TimedOut,
    /// The peer, or something on the way, has broken the connection.
    #[error("the connection was broken")]
    Reset,
    /// What arrives is not encrypted, or was changed on its way.
    #[error(
        "what arrives is not encrypted as it should be: the other end does not encrypt, or somebody has changed it"
    )]
    Insecure,
    /// The operating system's error with this number.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

/// Received bytes that stay as they are while anybody has them, on any thread.
#[derive(Clone)]
pub struct Lent(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Lent {
    /// The bytes that `memory` shows, always the same.
    pub fn new(memory: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(memory))
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lent({} bytes)", self.len())
    }
}

/// Blocks in a row, of which a part is being filled with the next bytes of a connection.
#[derive(Debug)]
pub struct Landing {
    blocks: Vec<BlockBuf>,
    /// What is still to be filled, counted from the start of the first block.
    left: Range<usize>,
    landed_bytes: usize,
}

impl Landing {
    /// Bytes `range` of `blocks`, counted from the start of the first, none of which has landed.
    ///
    /// # Panics
    /// When the range is empty, or does not lie in the blocks.
    #[must_use]
    pub fn new(blocks: Vec<BlockBuf>, range: Range<usize>) -> Self {
        assert!(range.start < range.end && range.end <= blocks.len() * BLOCK_BYTES, "the part lies in the blocks");
        Self { blocks, left: range, landed_bytes: 0 }
    }

    /// Bytes that have landed.
    #[must_use]
    pub fn landed_bytes(&self) -> usize {
        self.landed_bytes
    }

    /// Bytes that are still to come.
    #[must_use]
    pub fn left_bytes(&self) -> usize {
        self.left.len()
    }

    /// The memory of what is still to come, in order, cut at the blocks' bounds.
    pub fn left_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let Range { start, end } = self.left;
        let first = start / BLOCK_BYTES;
        self.blocks.iter_mut().enumerate().skip(first).map_while(move |(index, block)| {
            let base = index * BLOCK_BYTES;
            let part = start.saturating_sub(base)..end.saturating_sub(base).min(BLOCK_BYTES);
            (!part.is_empty()).then(|| &mut block[part])
        })
    }

    /// The first of `count` bytes have been written where [`left_mut`](Self::left_mut) leads; returns how many came beyond its end.
    pub fn advance(&mut self, count: usize) -> usize {
        let landed = count.min(self.left.len());
        self.left.start += landed;
        self.landed_bytes += landed;
        count - landed
    }

    /// Lets as many of `bytes` land as there is room for, and returns the rest: for drivers that have the bytes already.
    pub fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        for part in self.left_mut() {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
        }
        self.advance(bytes.len() - rest.len());
        rest
    }

    /// All of its blocks.
    #[must_use]
    pub fn into_blocks(self) -> Vec<BlockBuf> {
        self.blocks
    }
}

/// The connections of one reactor.
pub trait Network {
    /// A connection that was accepted since the last call.
    fn accept(&mut self) -> Option<Accepted>;

    /// Starts to connect to `address`: the new connection is `Connecting`, and later `Open` or `Failed`. How long the machine tries is the
    /// machine's affair (minutes, for a peer that is silent): a caller that does not want to wait closes it. What is sent meanwhile
    /// waits. Always accepted; the caller bounds how many connections it opens.
    fn connect(&mut self, address: &NetAddress) -> ConnectionId;

    /// Appends connections that got input, room to send, or another state since the last call; each at most once.
    fn poll(&mut self, ready: &mut Vec<ConnectionId>);

    /// How a connection stands.
    fn state(&self, connection: ConnectionId) -> ConnectionState;

    /// Why a connection is `Failed`; `None` while it is not.
    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure>;

    /// Bytes received and not yet consumed. At least 64 KiB can wait here, more after [`widen_input`](Self::widen_input); the driver stops
    /// receiving when it is full.
    fn input(&self, connection: ConnectionId) -> &[u8];

    /// Bytes `range` of `input`, for longer than until they are consumed: without copying them where the driver can. The caller bounds what it keeps, all of
    /// which takes the driver's memory.
    fn lend(&self, connection: ConnectionId, range: Range<usize>) -> Lent {
        Lent::new(self.input(connection)[range].to_vec())
    }

    /// From now on at least `count_bytes` of input can wait, up to [`INPUT_BYTES_MAX`]: for a caller that wants its messages whole.
    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize);

    /// Drops the first `count_bytes` of `input`.
    fn consume(&mut self, connection: ConnectionId, count_bytes: usize);

    /// Has the next bytes of the connection, behind `input`, which is empty, received into blocks, without a copy between. What comes behind the landing's
    /// last byte is input again. Each piece of it that arrives is named by `poll`. Until [`take_landed`](Self::take_landed) has returned the blocks there is at
    /// most this one landing, and nothing is consumed. When the connection is closed before, they go back to their pool as soon as the machine has let
    /// go of them.
    ///
    /// # Errors
    /// Gives the landing back when the driver cannot do this, or not now: the bytes become input, as ever.
    fn land(&mut self, _connection: ConnectionId, landing: Landing) -> Result<(), Landing> {
        Err(landing)
    }

    /// Bytes of the landing that have arrived, zero without one. They are not input.
    fn landed_bytes(&self, _connection: ConnectionId) -> usize {
        0
    }

    /// The blocks of the landing, once all of it has arrived.
    fn take_landed(&mut self, _connection: ConnectionId) -> Option<Vec<BlockBuf>> {
        None
    }

    /// Queues a copy of `bytes` to be sent. Always accepted; the caller bounds `unsent_bytes` by what it queues.
    fn send(&mut self, connection: ConnectionId, bytes: &[u8]);

    /// Queues part of `bytes` to be sent, without copying it where the driver can.
    fn send_shared(&mut self, connection: ConnectionId, bytes: &Arc<Vec<u8>>, range: Range<usize>) {
        self.send(connection, &bytes[range]);
    }

    /// Queues part of a block to be sent, without copying it.
    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>);

    /// Bytes queued that the kernel has not taken yet.
    fn unsent_bytes(&self, connection: ConnectionId) -> usize;

    /// What only the two ends of this connection know, the same at both: whoever proves something over it proves it for this connection
    /// alone (RFC 9266). `None`: the connection is not encrypted, or not yet.
    fn binding(&self, _connection: ConnectionId) -> Option<[u8; 32]> {
        None
    }

    /// Ends a connection once what is queued has been sent, or now when `abort` is set or it is not open yet and nothing is queued. The
    /// id is invalid afterwards.
    fn close(&mut self, connection: ConnectionId, abort: bool);
}

/// Connections of which the driver can tell how much has arrived that nobody has looked at.
pub trait Unread: Network {
    /// Bytes received so far: those that were consumed or have landed, and `input`.
    fn received_bytes(&self, connection: ConnectionId) -> u64;

    /// Bytes that were consumed, or have landed and were taken.
    fn consumed_bytes(&self, connection: ConnectionId) -> u64 {
        let waiting = self.input(connection).len() + self.landed_bytes(connection);
        self.received_bytes(connection) - waiting as u64
    }

    /// Bytes that lie in the machine for the connection beyond those that a turn of the machine is sure to bring. Whatever has arrived by this call is among
    /// the first `unread_bytes` + `received_bytes` of the stream, where the latter is asked for after the machine's next turn and the `poll` that follows.
    /// Zero for a connection that has failed, of which nothing more comes.
    fn unread_bytes(&self, connection: ConnectionId) -> u64;
}
