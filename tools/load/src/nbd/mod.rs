//! The NBD client: several connections, one thread, no blocking but in [`Engine::turn`]'s wait.
//!
//! # Invariants
//!
//! 1. A slot's requests go over one connection (slot modulo the number of connections), except a flush on a server that does not promise
//!    coherence between connections (no NBD_FLAG_CAN_MULTI_CONN): it goes over all, and is done when all have answered.
//! 2. A reply is believed only when its cookie names a request that is open on that very connection.
//! 3. After a loss, `recover` opens the lost connections and sends every unanswered request of theirs once more, with the same cookie,
//!    range and data. An export that came back with another size or as read-only is refused.

mod connection;
mod handshake;
mod wire;

use std::time::{Duration, Instant};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    engine::{Buffers, Completion, Engine, Geometry, Kind, Lost, Request, Wait},
    target::Address,
};
use connection::{Connection, Slots};

/// The most connections: one bit each in a slot's mask of awaited replies.
pub(crate) const CONNECTIONS_LIMIT: usize = 64;

/// A set of connections to one export.
pub(crate) struct NbdEngine {
    address: Address,
    export: String,
    geometry: Geometry,
    /// None: lost, to be opened by `recover`.
    connections: Vec<Option<Connection>>,
    slots: Slots,
}

impl NbdEngine {
    /// Connects `connections` times (1 to [`CONNECTIONS_LIMIT`]).
    pub(crate) fn open(address: &Address, export: &str, connections: usize) -> Result<Self, Lost> {
        assert!((1..=CONNECTIONS_LIMIT).contains(&connections), "checked by the command line");
        let mut opened: Vec<Option<Connection>> = Vec::with_capacity(connections);
        let mut geometry = wire::unknown_geometry();
        for number in 0..connections {
            let (connection, seen) = connect(address, export, number)?;
            geometry = seen;
            opened.push(Some(connection));
        }
        let slots = Slots::new(Buffers::new(0, 0), 0, false);
        Ok(Self { address: address.clone(), export: export.to_owned(), geometry, connections: opened, slots })
    }

    /// Gives the engine its slots; `keep_data` says whether what is read is wanted.
    pub(crate) fn with_slots(mut self, buffers: Buffers, count: usize, keep_data: bool) -> Self {
        self.slots = Slots::new(buffers, count, keep_data);
        self
    }

    /// The connections over which a request goes, as bits.
    fn route(&self, request: &Request) -> u64 {
        if request.kind == Kind::Flush && !self.geometry.multi_conn {
            return u64::MAX >> (CONNECTIONS_LIMIT - self.connections.len());
        }
        1 << (request.slot % self.connections.len())
    }

    /// Sends and receives on every connection; the first loss after all had their turn.
    fn exchange(&mut self, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let mut result = Ok(());
        for entry in &mut self.connections {
            let Some(connection) = entry else {
                result = Err(Lost("a connection is lost".to_owned()));
                continue;
            };
            let sent = connection.send(&self.slots);
            // What the server answered before it went away still counts.
            if let Err(lost) = connection.receive(&mut self.slots, done).and(sent) {
                *entry = None;
                result = Err(lost);
            }
        }
        result
    }

    /// Waits until a socket has something to say, or `deadline`.
    fn wait(&self, deadline: Instant) -> Result<(), Lost> {
        let last = self.connections.len() - 1;
        let mut polled: [PollFd<'_>; CONNECTIONS_LIMIT] = std::array::from_fn(|number| {
            let connection =
                self.connections[number.min(last)].as_ref().expect("a turn without a loss has every connection");
            let sending = if connection.wants_to_send() { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(connection.fd(), PollFlags::POLLIN | sending)
        });
        let timeout = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
        match ppoll(&mut polled[..=last], Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(Lost(format!("waiting failed: {error}"))),
        }
    }
}

impl Engine for NbdEngine {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(self.slots.requests[slot].is_none(), "the slot is free");
        self.slots.buffers.slot_mut(slot)
    }

    fn submit(&mut self, request: Request) {
        let route = self.route(&request);
        self.slots.begin(request, route);
        for (number, connection) in self.connections.iter_mut().enumerate() {
            if route & 1 << number != 0
                && let Some(connection) = connection
            {
                connection.enqueue(request.slot);
            }
        }
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let before = done.len();
        self.exchange(done)?;
        let Wait::Until(deadline) = wait else { return Ok(()) };
        if done.len() > before {
            return Ok(());
        }
        self.wait(deadline)?;
        self.exchange(done)
    }

    fn abandon(&mut self) {
        self.connections.iter_mut().for_each(|connection| *connection = None);
    }

    fn recover(&mut self) -> Result<usize, Lost> {
        let mut again = 0;
        for number in 0..self.connections.len() {
            if self.connections[number].is_some() {
                continue;
            }
            let (mut connection, geometry) = connect(&self.address, &self.export, number)?;
            if geometry.size_bytes != self.geometry.size_bytes || geometry.read_only != self.geometry.read_only {
                return Err(Lost(format!("the export came back changed: {geometry:?} instead of {:?}", self.geometry)));
            }
            for slot in (0..self.slots.requests.len()).filter(|slot| self.slots.awaiting[*slot] & 1 << number != 0) {
                connection.enqueue(slot);
                again += 1;
            }
            self.connections[number] = Some(connection);
        }
        Ok(again)
    }
}

impl Drop for NbdEngine {
    fn drop(&mut self) {
        self.connections.iter_mut().flatten().for_each(Connection::disconnect);
    }
}

fn connect(address: &Address, export: &str, number: usize) -> Result<(Connection, Geometry), Lost> {
    Connection::open(address, export, 1 << number)
        .map_err(|error| Lost(format!("connecting to {address} failed: {error}")))
}
