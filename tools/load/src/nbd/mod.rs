//! The NBD client: several connections, one thread, no blocking but in [`Engine::turn`]'s wait.
//!
//! # Invariants
//!
//! 1. A slot's requests go over one connection (slot modulo the number of connections), except a flush on a server that does not promise
//!    coherence between connections (no NBD_FLAG_CAN_MULTI_CONN): it goes over all, and is done when all have answered.
//! 2. A reply is believed only when its cookie names a request that is open on that very connection.
//! 3. After a loss, `recover` opens the lost connections and sends every unanswered request of theirs once more, with the same cookie,
//!    range and data. An export that came back with another size or as read-only is refused. Each attempt tries one of the addresses: the
//!    next one after a failure.

pub(crate) mod connection;
pub(crate) mod handshake;
mod wire;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    engine::{Buffers, Completion, Engine, Geometry, Kind, Lost, Request, Unopened, Wait},
    target::Address,
};
use connection::{Connection, Slots};
use handshake::HandshakeError;

/// The most connections: one bit each in a slot's mask of awaited replies.
pub(crate) const CONNECTIONS_LIMIT: usize = 64;

/// Where an export can be reached: its server and its name there.
pub(crate) type Place = (Address, String);

/// A set of connections to one export.
pub(crate) struct NbdEngine {
    /// Where the export can be reached, at least one; the first was used last.
    places: VecDeque<Place>,
    geometry: Geometry,
    /// None: lost, to be opened by `recover`.
    connections: Vec<Option<Connection>>,
    slots: Slots,
    /// Requests without an answer, and those of them that no turn has sent yet.
    open: usize,
    fresh: usize,
}

impl NbdEngine {
    /// Connects `connections` times (1 to [`CONNECTIONS_LIMIT`]) to the first of `places`; the others are for [`Engine::recover`].
    pub(crate) fn open(places: &[Place], connections: usize) -> Result<Self, Unopened> {
        assert!((1..=CONNECTIONS_LIMIT).contains(&connections), "checked by the command line");
        let mut opened: Vec<Option<Connection>> = Vec::with_capacity(connections);
        let mut geometry = wire::unknown_geometry();
        for number in 0..connections {
            let (connection, seen) = connect(&places[0], number)?;
            geometry = seen;
            opened.push(Some(connection));
        }
        let slots = Slots::new(Buffers::new(0, 0), 0, false);
        Ok(Self { places: places.iter().cloned().collect(), geometry, connections: opened, slots, open: 0, fresh: 0 })
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

    /// Sends on every connection and receives on those whose bit is in `ready`; a loss after all had their turn.
    fn exchange(&mut self, ready: u64, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let mut result = Ok(());
        let before = done.len();
        for (number, entry) in self.connections.iter_mut().enumerate() {
            let Some(connection) = entry else {
                result = Err(Lost("a connection is lost".to_owned()));
                continue;
            };
            let sent = connection.send(&self.slots);
            if sent.is_ok() && ready & 1 << number == 0 {
                continue;
            }
            // What the server answered before it went away still counts.
            if let Err(lost) = connection.receive(&mut self.slots, done).and(sent) {
                *entry = None;
                result = Err(lost);
            }
        }
        self.open -= done.len() - before;
        result
    }

    /// Waits until sockets have something to say, or `deadline`; the bits of those that have.
    fn wait(&self, deadline: Instant) -> Result<u64, Lost> {
        let last = self.connections.len() - 1;
        let mut polled: [PollFd<'_>; CONNECTIONS_LIMIT] = std::array::from_fn(|number| {
            let connection =
                self.connections[number.min(last)].as_ref().expect("a turn without a loss has every connection");
            let sending = if connection.wants_to_send() { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(connection.fd(), PollFlags::POLLIN | sending)
        });
        let timeout = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
        match ppoll(&mut polled[..=last], Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) => {
                let ready = |poll: &PollFd<'_>| u64::from(poll.any() != Some(false));
                Ok(polled[..=last].iter().rev().fold(0, |bits, poll| bits << 1 | ready(poll)))
            }
            Err(Errno::EINTR) => Ok(0),
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
        self.open += 1;
        self.fresh += 1;
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
        // Right after sending, only requests of earlier turns can have been answered; without any, receiving is a wasted system call.
        let earlier = self.open > std::mem::take(&mut self.fresh);
        let (speculative, deadline) = match wait {
            Wait::Never => (u64::MAX, None),
            Wait::Until(deadline) => (if earlier { u64::MAX } else { 0 }, Some(deadline)),
        };
        self.exchange(speculative, done)?;
        let Some(deadline) = deadline.filter(|_| done.len() == before) else { return Ok(()) };
        let ready = self.wait(deadline)?;
        self.exchange(ready, done)
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
            let (mut connection, geometry) = match connect(&self.places[0], number) {
                Ok(connected) => connected,
                Err(unopened) => {
                    self.places.rotate_left(1);
                    return Err(unopened.lost);
                }
            };
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

fn connect((address, export): &Place, number: usize) -> Result<(Connection, Geometry), Unopened> {
    Connection::open(address, export, 1 << number).map_err(|error| Unopened {
        lost: Lost(format!("connecting to {address} failed: {error}")),
        may_come: matches!(error, HandshakeError::Io(_) | HandshakeError::Silent),
    })
}
