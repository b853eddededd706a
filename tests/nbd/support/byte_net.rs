//! Connections in memory: the test puts bytes in at one end, and takes bytes out, as many at a time as it likes.

use std::{collections::BTreeMap, ops::Range};
use twinlog_device::{
    Accepted, BlockBuf, ConnectionFailure, ConnectionId, ConnectionState, Landing, NetAddress, Network, SharedBlock,
    Unread,
};

/// What a driver holds of a client's input at most: the smallest that the trait allows.
const INPUT_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
struct Wire {
    /// Sent by the client; the first `INPUT_BYTES_MAX` have arrived.
    to_server: Vec<u8>,
    consumed: usize,
    /// Bytes that were consumed and are not kept any more, or have landed.
    dropped: usize,
    /// Where what comes next goes.
    landing: Option<Landing>,
    to_client: Vec<u8>,
    /// Input that waits at most; what the trait promises unless more was asked for.
    input_bytes_max: usize,
    input_ended: bool,
    failed: bool,
    /// The server has closed it.
    closed: Option<Closed>,
}

/// How the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// After everything was sent.
    Gracefully,
    /// At once.
    Aborted,
}

/// A network in memory.
#[derive(Debug, Default)]
pub(crate) struct ByteNet {
    wires: BTreeMap<ConnectionId, Wire>,
    waiting: Vec<ConnectionId>,
    changed: Vec<ConnectionId>,
    /// Parts of payloads that were received into blocks.
    landing_count: u64,
}

impl ByteNet {
    /// A new client.
    pub(crate) fn new_client(&mut self) -> ConnectionId {
        let connection = ConnectionId(self.connection_count() + 1);
        self.wires.insert(connection, Wire { input_bytes_max: INPUT_BYTES_MAX, ..Wire::default() });
        self.waiting.push(connection);
        connection
    }

    /// Connections that there ever were: their ids are the numbers from 1 to this.
    pub(crate) fn connection_count(&self) -> u64 {
        self.wires.len() as u64
    }

    /// The client sends.
    pub(crate) fn client_send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let wire = self.wire(connection);
        let rest = wire.landing.as_mut().map_or(bytes, |landing| landing.fill(bytes));
        wire.dropped += bytes.len() - rest.len();
        wire.to_server.extend_from_slice(rest);
        self.changed.push(connection);
    }

    /// The client has sent everything.
    pub(crate) fn client_end(&mut self, connection: ConnectionId) {
        self.wire(connection).input_ended = true;
        self.changed.push(connection);
    }

    /// The client is gone.
    pub(crate) fn client_drop(&mut self, connection: ConnectionId) {
        self.wire(connection).failed = true;
        self.changed.push(connection);
    }

    /// The client takes up to `count` bytes of what was sent to it.
    pub(crate) fn client_take(&mut self, connection: ConnectionId, count: usize) -> Vec<u8> {
        let wire = self.wire(connection);
        let mut taken = std::mem::take(&mut wire.to_client);
        wire.to_client = taken.split_off(count.min(taken.len()));
        self.changed.push(connection);
        taken
    }

    /// How the server ended the connection, if it did.
    pub(crate) fn closed(&self, connection: ConnectionId) -> Option<Closed> {
        self.wires[&connection].closed
    }

    /// Bytes that wait for the client.
    pub(crate) fn waiting_bytes(&self, connection: ConnectionId) -> usize {
        self.wires[&connection].to_client.len()
    }

    /// Bytes of the client that the server has not consumed.
    pub(crate) fn unread_bytes(&self, connection: ConnectionId) -> usize {
        let wire = &self.wires[&connection];
        wire.to_server.len() - wire.consumed
    }

    /// Parts of payloads that were received into blocks so far.
    pub(crate) fn landing_count(&self) -> u64 {
        self.landing_count
    }

    fn wire(&mut self, connection: ConnectionId) -> &mut Wire {
        self.wires.get_mut(&connection).expect("a connection of this network")
    }

    fn open(&self, connection: ConnectionId) -> &Wire {
        let wire = &self.wires[&connection];
        assert_eq!(wire.closed, None, "a closed connection is not touched");
        wire
    }
}

impl Network for ByteNet {
    fn accept(&mut self) -> Option<Accepted> {
        let connection = (!self.waiting.is_empty()).then(|| self.waiting.remove(0))?;
        Some(Accepted { connection, listener: 0, peer: format!("memory:{}", connection.0) })
    }

    /// The test plays the peer, which answers at once.
    fn connect(&mut self, _address: &NetAddress) -> ConnectionId {
        let connection = self.new_client();
        self.waiting.retain(|&other| other != connection);
        self.changed.push(connection);
        connection
    }

    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure> {
        self.open(connection).failed.then_some(ConnectionFailure::Reset)
    }

    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize) {
        let wire = self.wire(connection);
        wire.input_bytes_max = wire.input_bytes_max.max(count_bytes);
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.retain(|connection| self.wires[connection].closed.is_none() && !self.waiting.contains(connection));
        ready.append(&mut changed);
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        let wire = self.open(connection);
        if wire.failed {
            ConnectionState::Failed
        } else if wire.input_ended && wire.to_server.len() - wire.consumed <= wire.input_bytes_max {
            ConnectionState::InputEnded
        } else {
            ConnectionState::Open
        }
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        let wire = self.open(connection);
        let unread = &wire.to_server[wire.consumed..];
        &unread[..unread.len().min(wire.input_bytes_max)]
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        assert!(count_bytes <= self.input(connection).len(), "only what is there is consumed");
        let wire = self.wire(connection);
        wire.consumed += count_bytes;
        if wire.consumed > 8 << 20 {
            wire.to_server.drain(..wire.consumed);
            wire.dropped += wire.consumed;
            wire.consumed = 0;
        }
        self.changed.push(connection);
    }

    fn land(&mut self, connection: ConnectionId, landing: Landing) -> Result<(), Landing> {
        assert!(self.input(connection).is_empty() && self.wire(connection).landing.is_none(), "behind the input");
        self.wire(connection).landing = Some(landing);
        self.landing_count += 1;
        Ok(())
    }

    fn landed_bytes(&self, connection: ConnectionId) -> usize {
        self.open(connection).landing.as_ref().map_or(0, Landing::landed_bytes)
    }

    fn take_landed(&mut self, connection: ConnectionId) -> Option<Vec<BlockBuf>> {
        let whole = self.wire(connection).landing.take_if(|landing| landing.left_bytes() == 0);
        whole.map(Landing::into_blocks)
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.open(connection);
        self.wire(connection).to_client.extend_from_slice(bytes);
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        self.send(connection, &block[range]);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        self.open(connection).to_client.len()
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        self.open(connection);
        self.wire(connection).landing = None;
        self.wire(connection).closed = Some(if abort { Closed::Aborted } else { Closed::Gracefully });
    }
}

impl Unread for ByteNet {
    fn received_bytes(&self, connection: ConnectionId) -> u64 {
        let wire = self.open(connection);
        (wire.dropped + wire.consumed + self.input(connection).len()) as u64
    }

    fn unread_bytes(&self, connection: ConnectionId) -> u64 {
        let wire = self.open(connection);
        (wire.to_server.len() - wire.consumed - self.input(connection).len()) as u64
    }
}
