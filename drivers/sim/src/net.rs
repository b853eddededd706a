//! Connections in memory: the engine's side is a [`Network`], the clients' side is [`SimClient`].
//!
//! # Life of a connection
//!
//! ```text
//! SimListener::connect --> pending --accept--> open --(end)--> input ended --(close)--> closing --all sent--> closed
//!                                               |                  |
//!                                               +--(client gone)---+--> failed --(close)--> closed
//! ```
//!
//! # Invariants
//!
//! 1. Bytes arrive whole and in order; how they are cut into pieces, and when each piece arrives, is drawn from the seed.
//! 2. What a client's or a server's kernel would buffer is bounded: [`SOCKET_BYTES`] per direction, [`INPUT_BYTES`] of input.
//! 3. A client that is gone is noticed: by an ended input or by a failure, drawn from the seed.

use crate::{fault::Fault, world::Agenda};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
};
use twinlog_device::{Accepted, ConnectionId, ConnectionState, Nanos, Network, Prng, SharedBlock};

/// Bytes that wait in each direction between the two ends.
const SOCKET_BYTES: usize = 128 * 1024;

/// Bytes of input that wait for the engine.
const INPUT_BYTES: usize = 128 * 1024;

/// Longest time that a piece of a stream is on its way, in nanoseconds.
const LATENCY_MAX_NS: u64 = 20_000;

/// What lies between the two ends of one connection.
#[derive(Default)]
struct Wire {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    client: ClientEnd,
    /// The server sends nothing more.
    is_closed: bool,
}

/// What the client has done to its end.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ClientEnd {
    #[default]
    Open,
    /// Sends no more.
    Ended,
    /// Closed after what it has sent.
    Gone,
    /// Vanished: what it has sent may be lost.
    Reset,
}

/// Connections that wait to be accepted.
#[derive(Default)]
struct Pending {
    queue: VecDeque<(usize, Rc<RefCell<Wire>>)>,
    is_closed: bool,
}

/// The engine's side. Dropping it is the end of the process: every client sees the end of its stream.
pub struct SimNet {
    agenda: Agenda,
    prng: Prng,
    pending: Rc<RefCell<Pending>>,
    connections: BTreeMap<ConnectionId, Connection>,
    closing: Vec<Connection>,
    accepted_count: u64,
}

struct Connection {
    wire: Rc<RefCell<Wire>>,
    input: Vec<u8>,
    consumed: usize,
    unsent: VecDeque<u8>,
    state: ConnectionState,
    /// When the next pieces arrive, if any are on their way.
    input_due: Option<Nanos>,
    output_due: Option<Nanos>,
}

/// Where clients connect to one [`SimNet`]. Clones are handles of the same listeners.
#[derive(Clone)]
pub struct SimListener {
    agenda: Agenda,
    pending: Rc<RefCell<Pending>>,
}

/// A client's end of a connection. Dropping it is a disconnect.
pub struct SimClient {
    agenda: Agenda,
    wire: Rc<RefCell<Wire>>,
}

impl SimNet {
    /// The network of the reactor of `agenda`, and where its clients connect.
    #[must_use]
    pub fn open(agenda: &Agenda) -> (Self, SimListener) {
        let pending = Rc::new(RefCell::new(Pending::default()));
        let net = Self {
            agenda: agenda.clone(),
            prng: agenda.world().fork_prng(),
            pending: pending.clone(),
            connections: BTreeMap::new(),
            closing: Vec::new(),
            accepted_count: 0,
        };
        (net, SimListener { agenda: agenda.clone(), pending })
    }

    fn get(&self, connection: ConnectionId) -> &Connection {
        self.connections.get(&connection).expect("the caller names a connection that it has not closed")
    }

    fn get_mut(&mut self, connection: ConnectionId) -> &mut Connection {
        self.connections.get_mut(&connection).expect("the caller names a connection that it has not closed")
    }

    fn queue(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let connection = self.get_mut(connection);
        if connection.state != ConnectionState::Failed {
            connection.unsent.extend(bytes);
            self.agenda.wake();
        }
    }
}

impl Network for SimNet {
    fn accept(&mut self) -> Option<Accepted> {
        let (listener, wire) = self.pending.borrow_mut().queue.pop_front()?;
        self.accepted_count += 1;
        let connection = ConnectionId(self.accepted_count);
        self.connections.insert(connection, Connection::new(wire));
        Some(Accepted { connection, listener, peer: format!("simulated client {}", self.accepted_count) })
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        let mut hands = Hands { agenda: &self.agenda, prng: &mut self.prng };
        for (&id, connection) in &mut self.connections {
            if connection.pump(&mut hands) {
                ready.push(id);
            }
        }
        self.closing.retain_mut(|connection| {
            connection.pump(&mut hands);
            let done = connection.unsent.is_empty() || connection.state == ConnectionState::Failed;
            if done {
                connection.wire.borrow_mut().is_closed = true;
            }
            !done
        });
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        self.get(connection).state
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        let connection = self.get(connection);
        &connection.input[connection.consumed..]
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        let connection = self.get_mut(connection);
        connection.consumed += count_bytes;
        assert!(connection.consumed <= connection.input.len(), "only what has arrived can be consumed");
        if connection.consumed == connection.input.len() {
            connection.input.clear();
            connection.consumed = 0;
        }
        if !connection.wire.borrow().to_server.is_empty() {
            self.agenda.wake();
        }
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.queue(connection, bytes);
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        self.queue(connection, &block[range]);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        self.get(connection).unsent.len()
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        let connection = self.connections.remove(&connection).expect("the caller closes a connection once");
        if abort || connection.unsent.is_empty() {
            connection.wire.borrow_mut().is_closed = true;
        } else {
            self.closing.push(connection);
        }
    }
}

impl Drop for SimNet {
    fn drop(&mut self) {
        let mut pending = self.pending.borrow_mut();
        pending.is_closed = true;
        let waiting = pending.queue.drain(..).map(|(_, wire)| wire);
        let connections = self.connections.values().chain(&self.closing).map(|connection| connection.wire.clone());
        for wire in waiting.chain(connections) {
            wire.borrow_mut().is_closed = true;
        }
    }
}

/// What moves bytes: when, and how many at once.
struct Hands<'a> {
    agenda: &'a Agenda,
    prng: &'a mut Prng,
}

impl Hands<'_> {
    /// Whether the next piece has arrived; otherwise it is on its way from now on, and the reactor will wake for it.
    fn has_arrived(&mut self, due: &mut Option<Nanos>) -> bool {
        let now = self.agenda.world().now();
        match *due {
            Some(at) if at <= now => {
                *due = None;
                true
            }
            Some(_) => false,
            None => {
                let at = Nanos(now.0 + self.prng.between(1, LATENCY_MAX_NS));
                *due = Some(at);
                self.agenda.at(at);
                false
            }
        }
    }

    /// Length of the next piece of at most `maximum` bytes: often all, sometimes a few, never none.
    fn piece(&mut self, maximum: usize) -> usize {
        match self.prng.below(8) {
            0 => 1,
            1 => usize::try_from(self.prng.between(1, maximum.min(64) as u64)).expect("below a usize"),
            2 => usize::try_from(self.prng.between(1, maximum as u64)).expect("below a usize"),
            _ => maximum,
        }
    }
}

impl Connection {
    fn new(wire: Rc<RefCell<Wire>>) -> Self {
        Self {
            wire,
            input: Vec::new(),
            consumed: 0,
            unsent: VecDeque::new(),
            state: ConnectionState::Open,
            input_due: None,
            output_due: None,
        }
    }

    /// Moves what has arrived; returns whether the engine should look.
    fn pump(&mut self, hands: &mut Hands) -> bool {
        if self.state == ConnectionState::Failed {
            return false;
        }
        let wire = self.wire.clone();
        let mut wire = wire.borrow_mut();
        let mut is_ready = false;
        if wire.client == ClientEnd::Reset && hands.has_arrived(&mut self.input_due) {
            self.fail();
            return true;
        }
        let piece = self.input_room().min(wire.to_server.len());
        if piece > 0 && hands.has_arrived(&mut self.input_due) {
            self.input.drain(..self.consumed);
            self.consumed = 0;
            carry(&mut wire.to_server, hands.piece(piece), |bytes| self.input.extend_from_slice(bytes));
            is_ready = true;
        }
        if wire.client != ClientEnd::Open && wire.to_server.is_empty() && self.state == ConnectionState::Open {
            self.state = ConnectionState::InputEnded;
            is_ready = true;
        }
        let piece = self.unsent.len().min(SOCKET_BYTES - wire.to_client.len());
        if piece > 0 && hands.has_arrived(&mut self.output_due) {
            if wire.client == ClientEnd::Gone {
                self.fail();
                return true;
            }
            carry(&mut self.unsent, hands.piece(piece), |bytes| wire.to_client.extend(bytes));
            is_ready = true;
        }
        // Whatever can still move puts its next piece on the way, or a reactor that waits would not come back for it.
        if self.input_due.is_none() && self.input_room().min(wire.to_server.len()) > 0 {
            hands.has_arrived(&mut self.input_due);
        }
        if self.output_due.is_none() && self.unsent.len().min(SOCKET_BYTES - wire.to_client.len()) > 0 {
            hands.has_arrived(&mut self.output_due);
        }
        is_ready
    }

    /// Bytes of input that there is room for.
    fn input_room(&self) -> usize {
        INPUT_BYTES - (self.input.len() - self.consumed)
    }

    fn fail(&mut self) {
        self.state = ConnectionState::Failed;
        self.unsent.clear();
    }
}

impl SimListener {
    /// Connects a client. When the process has ended, the client sees the end of its stream at once.
    #[must_use]
    pub fn connect(&self, listener: usize) -> SimClient {
        let wire = Rc::new(RefCell::new(Wire::default()));
        let mut pending = self.pending.borrow_mut();
        if pending.is_closed {
            wire.borrow_mut().is_closed = true;
        } else {
            pending.queue.push_back((listener, wire.clone()));
            self.agenda.wake();
        }
        SimClient { agenda: self.agenda.clone(), wire }
    }
}

impl SimClient {
    /// Sends as many of `bytes` as there is room for; returns how many. None after either end has closed.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut wire = self.wire.borrow_mut();
        if wire.is_closed || wire.client != ClientEnd::Open {
            return 0;
        }
        let count = bytes.len().min(SOCKET_BYTES - wire.to_server.len());
        wire.to_server.extend(&bytes[..count]);
        if count > 0 {
            self.agenda.wake();
        }
        count
    }

    /// Appends what has arrived to `bytes`; false once nothing more will come.
    pub fn receive(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut wire = self.wire.borrow_mut();
        let is_full = wire.to_client.len() == SOCKET_BYTES;
        let count = wire.to_client.len();
        carry(&mut wire.to_client, count, |part| bytes.extend_from_slice(part));
        if is_full {
            self.agenda.wake();
        }
        !wire.is_closed
    }

    /// Sends no more; still receives.
    pub fn end(&mut self) {
        self.leave(ClientEnd::Ended);
    }

    /// Goes away without a word; what was sent and has not arrived is lost.
    pub fn reset(self) {
        self.leave(ClientEnd::Reset);
    }

    fn leave(&self, end: ClientEnd) {
        let mut wire = self.wire.borrow_mut();
        if wire.client == ClientEnd::Gone || wire.client == ClientEnd::Reset {
            return;
        }
        let was_open = std::mem::replace(&mut wire.client, end) == ClientEnd::Open;
        if end != ClientEnd::Ended && !wire.is_closed {
            if was_open {
                self.agenda.world().count_fired(Fault::Disconnect);
                if !(wire.to_client.is_empty() && wire.to_server.is_empty()) {
                    self.agenda.world().count_mattered(Fault::Disconnect);
                }
            }
            wire.to_client.clear();
        }
        self.agenda.wake();
    }
}

impl Drop for SimClient {
    fn drop(&mut self) {
        self.leave(ClientEnd::Gone);
    }
}

/// Takes the first `count` bytes of `source`, in whole slices: byte by byte a simulated network is slow.
fn carry(source: &mut VecDeque<u8>, count: usize, mut take: impl FnMut(&[u8])) {
    let (head, tail) = source.as_slices();
    let first = count.min(head.len());
    take(&head[..first]);
    take(&tail[..count - first]);
    source.drain(..count);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::SimWorld;
    use std::time::Duration;
    use twinlog_device::Wait;

    struct Rig {
        world: SimWorld,
        agenda: Agenda,
        net: SimNet,
        listener: SimListener,
    }

    impl Rig {
        fn new(seed: u64) -> Self {
            let world = SimWorld::new(seed);
            let agenda = Agenda::new(&world);
            let (net, listener) = SimNet::open(&agenda);
            Self { world, agenda, net, listener }
        }

        fn connect(&mut self) -> (ConnectionId, SimClient) {
            let client = self.listener.connect(1);
            let accepted = self.net.accept().expect("a client waits");
            assert_eq!(accepted.listener, 1);
            (accepted.connection, client)
        }

        /// Turns until something is ready.
        fn ready(&mut self) -> Vec<ConnectionId> {
            let mut ready = Vec::new();
            while ready.is_empty() {
                assert!(self.world.now() < Nanos(1_000_000_000), "something happens within a second");
                self.agenda.turn(Wait::UpTo(Duration::from_millis(10)));
                self.net.poll(&mut ready);
            }
            ready
        }
    }

    #[test]
    fn a_waiting_reactor_wakes_for_its_clients() {
        let mut rig = Rig::new(1);
        let long = Wait::UpTo(Duration::from_secs(3600));
        let mut client = rig.listener.connect(0);
        assert!(rig.agenda.turn(long));
        let connection = rig.net.accept().expect("a client waits").connection;
        client.send(b"hello");
        while rig.net.input(connection).len() < 5 {
            assert!(rig.agenda.turn(long));
            rig.net.poll(&mut Vec::new());
        }
        rig.net.send(connection, b"world");
        let mut received = Vec::new();
        while received.len() < 5 {
            assert!(rig.agenda.turn(long));
            rig.net.poll(&mut Vec::new());
            client.receive(&mut received);
        }
        client.end();
        assert!(rig.agenda.turn(long));
        rig.net.poll(&mut Vec::new());
        assert_eq!(rig.net.state(connection), ConnectionState::InputEnded);
        assert!(rig.world.now() < Nanos(1_000_000), "nothing waited for the end of an hour");
    }

    #[test]
    fn a_reset_loses_what_was_on_its_way() {
        let mut rig = Rig::new(1);
        let (connection, mut client) = rig.connect();
        client.send(b"never seen");
        client.reset();
        assert_eq!(rig.ready(), [connection]);
        assert_eq!(rig.net.state(connection), ConnectionState::Failed);
        assert!(rig.net.input(connection).is_empty());
        assert_eq!(rig.world.faults(Fault::Disconnect), (1, 1));
        rig.net.send(connection, b"nobody listens");
        assert_eq!(rig.net.unsent_bytes(connection), 0);
        rig.net.close(connection, false);
    }

    #[test]
    fn a_client_that_closes_has_sent_what_it_sent() {
        let mut rig = Rig::new(1);
        let (connection, mut client) = rig.connect();
        client.send(b"last words");
        drop(client);
        while rig.net.state(connection) == ConnectionState::Open {
            rig.ready();
        }
        assert_eq!(rig.net.state(connection), ConnectionState::InputEnded);
        assert_eq!(rig.net.input(connection), b"last words");
    }

    #[test]
    fn the_end_of_the_process_ends_every_stream() {
        let mut rig = Rig::new(1);
        let (_, mut client) = rig.connect();
        let mut waiting = rig.listener.connect(0);
        drop(rig.net);
        let mut late = rig.listener.connect(0);
        for client in [&mut client, &mut waiting, &mut late] {
            assert!(!client.receive(&mut Vec::new()));
            assert_eq!(client.send(b"x"), 0);
        }
    }

    #[test]
    fn the_seed_cuts_streams_into_pieces() {
        fn pieces(seed: u64) -> Vec<usize> {
            let mut rig = Rig::new(seed);
            let (connection, mut client) = rig.connect();
            client.send(&[7; 10_000]);
            let mut pieces = Vec::new();
            while pieces.iter().sum::<usize>() < 10_000 {
                rig.ready();
                let count = rig.net.input(connection).len();
                rig.net.consume(connection, count);
                pieces.push(count);
            }
            pieces
        }
        assert_eq!(pieces(3), pieces(3));
        assert!((0..20).any(|seed| pieces(seed).len() > 1));
        assert!((0..20).any(|seed| pieces(seed).len() == 1));
    }
}
