//! Connections in memory: between an engine and its clients ([`SimClient`]), and between two engines, over a [`SimPath`].
//!
//! # Life of a connection
//!
//! ```text
//! SimListener::connect --> pending --accept--> open --(peer ends)--> input ended --(close)--> closing --all sent--> lingering --> closed
//! connect --> connecting --answer----------------^ |                    |
//!                  +------refused, time is over----+--(peer is gone)----+--> failed --(close)--> closed
//! ```
//!
//! # Invariants
//!
//! 1. Bytes arrive whole and in order, up to where the connection breaks; how they are cut into pieces, and when each piece arrives, is
//!    drawn from the seed.
//! 2. What the kernels of both ends would buffer is bounded: `SOCKET_BYTES` per direction, [`INPUT_BYTES`] of input unless it is widened.
//! 3. A client that is gone is noticed: by an ended input or by a failure, drawn from the seed. A machine that went dark is not.
//! 4. What clients do draws the same numbers whether or not nodes are connected to each other.

mod client;
mod connection;
mod path;
mod stream;
#[cfg(test)]
mod tests;

pub use client::{SimClient, SimListener};
pub(crate) use path::PathState;
pub use path::{Direction, PathCounts, PathPlan, SimPath};

use crate::world::Agenda;
use client::{Pending, Presence};
use connection::{Connection, Hands};
use std::{cell::RefCell, collections::BTreeMap, ops::Range, rc::Rc};
use stream::{End, SharedStream, Side, Stream};
use twinlog_device::{
    Accepted, BlockBuf, ConnectionFailure, ConnectionId, ConnectionState, Landing, NetAddress, Network, Prng,
    SharedBlock, Unread, net::INPUT_BYTES_MAX,
};

/// The engine's side. Dropping it is the end of the process: every peer sees the end of its stream, unless the machine went dark before
/// ([`SimListener::go_dark`]).
pub struct SimNet {
    agenda: Agenda,
    prng: Prng,
    listener: SimListener,
    connections: BTreeMap<ConnectionId, Connection>,
    closing: Vec<Connection>,
    connection_count: u64,
}

impl SimNet {
    /// The network of the reactor of `agenda`, and where its clients connect.
    #[must_use]
    pub fn open(agenda: &Agenda) -> (Self, SimListener) {
        let listener = SimListener::new(agenda, Rc::new(RefCell::new(Pending::default())));
        let net = Self {
            agenda: agenda.clone(),
            prng: agenda.world().fork_prng(),
            listener: listener.clone(),
            connections: BTreeMap::new(),
            closing: Vec::new(),
            connection_count: 0,
        };
        (net, listener)
    }

    fn get(&self, connection: ConnectionId) -> &Connection {
        self.connections.get(&connection).expect("the caller names a connection that it has not closed")
    }

    fn get_mut(&mut self, connection: ConnectionId) -> &mut Connection {
        self.connections.get_mut(&connection).expect("the caller names a connection that it has not closed")
    }

    fn add(&mut self, connection: Connection) -> ConnectionId {
        self.connection_count += 1;
        let id = ConnectionId(self.connection_count);
        self.connections.insert(id, connection);
        id
    }

    fn queue(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if self.get_mut(connection).queue(bytes) {
            self.agenda.wake();
        }
    }

    /// What an abort looks like from the other end: nodes see a reset as often as the end of the stream.
    fn abort(&mut self, stream: &SharedStream, side: Side) {
        let mut stream = stream.borrow_mut();
        let resets = stream.path.is_some() && self.prng.chance(1, 2);
        stream.leave(side, if resets { End::Reset } else { End::Gone });
    }
}

impl Network for SimNet {
    fn accept(&mut self) -> Option<Accepted> {
        let (listener, stream) = self.listener.take()?;
        stream.borrow_mut().attach(Side::Listening, &self.agenda);
        let connection = self.add(Connection::accepted(stream));
        Some(Accepted { connection, listener, peer: format!("simulated client {}", self.connection_count) })
    }

    fn connect(&mut self, address: &NetAddress) -> ConnectionId {
        let stream = Stream::shared();
        stream.borrow_mut().attach(Side::Connecting, &self.agenda);
        if let Some(path) = self.agenda.world().path(address) {
            path.begin(&self.listener, &stream);
        }
        self.agenda.wake();
        self.add(Connection::connecting(stream, self.agenda.world().now()))
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        let mut hands = Hands::new(&self.agenda, &mut self.prng);
        for (&id, connection) in &mut self.connections {
            if connection.pump(&mut hands) {
                ready.push(id);
            }
        }
        let agenda = &self.agenda;
        self.closing.retain_mut(|connection| {
            connection.pump(&mut hands);
            !connection.proceed_closing(agenda)
        });
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        self.get(connection).state()
    }

    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure> {
        self.get(connection).failure()
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        self.get(connection).input()
    }

    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize) {
        assert!(count_bytes <= INPUT_BYTES_MAX, "input that waits is bounded");
        self.get_mut(connection).widen_input(count_bytes);
        self.agenda.wake();
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        if self.get_mut(connection).consume(count_bytes) {
            self.agenda.wake();
        }
    }

    fn land(&mut self, connection: ConnectionId, landing: Landing) -> Result<(), Landing> {
        self.get_mut(connection).land(landing)
    }

    fn landed_bytes(&self, connection: ConnectionId) -> usize {
        self.get(connection).landed_bytes()
    }

    fn take_landed(&mut self, connection: ConnectionId) -> Option<Vec<BlockBuf>> {
        self.get_mut(connection).take_landed()
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.queue(connection, bytes);
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        self.queue(connection, &block[range]);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        self.get(connection).unsent_bytes()
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        let mut connection = self.connections.remove(&connection).expect("the caller closes a connection once");
        if abort {
            self.abort(connection.stream(), connection.side());
        } else if !connection.proceed_closing(&self.agenda) {
            self.closing.push(connection);
        }
    }
}

impl Unread for SimNet {
    fn received_bytes(&self, connection: ConnectionId) -> u64 {
        self.get(connection).received_bytes()
    }

    fn unread_bytes(&self, connection: ConnectionId) -> u64 {
        self.get(connection).unread_bytes()
    }
}

impl Drop for SimNet {
    fn drop(&mut self) {
        let (presence, waiting) = self.listener.end();
        let end = if presence == Presence::Dark { End::Dark } else { End::Gone };
        for stream in waiting {
            stream.borrow_mut().leave(Side::Listening, end);
        }
        for connection in self.connections.values().chain(&self.closing) {
            connection.stream().borrow_mut().leave(connection.side(), end);
        }
    }
}
