//! The contracts of [`Network`] between two nodes: connecting, and large messages.

use super::{pattern, turn_until};
use crate::{BlockPool, ConnectionFailure, ConnectionId, ConnectionState, NetAddress, Network};
use std::{ops::Range, sync::Arc};

/// The node that connects, and the one that listens.
const CONNECTING: usize = 0;
const LISTENING: usize = 1;

/// A message of the interconnect: what must be able to wait whole after `widen_input`.
const MESSAGE_BYTES: usize = (1 << 20) + 12_345;

/// What no driver buffers for one connection, together with the kernel's socket buffers.
const FLOOD_BYTES: usize = 64 << 20;

/// Turns without any movement that are taken for rest: longer than a simulated network takes to send a lost packet again.
const QUIET_TURNS: usize = 500;

/// What a driver's test gives the suite: two networks, the second of which listens. No call waits except `turn`.
pub trait ConnectHarness {
    /// The driver.
    type Network: Network;

    /// The memory that blocks to be sent come from: at least eight.
    fn blocks(&self) -> &BlockPool;

    /// The first network (0), which connects, or the second (1).
    fn network(&mut self, index: usize) -> &mut Self::Network;

    /// One turn of both loops, as in [`NetworkHarness::turn`](super::NetworkHarness::turn).
    fn turn(&mut self);

    /// Where the second network listens, as its listener 0.
    fn address(&self) -> NetAddress;

    /// An address that can be reached, and at which nobody listens.
    fn deserted_address(&self) -> NetAddress;
}

/// Checks every contract of connecting.
///
/// # Panics
/// When a contract is broken, with its words.
pub fn connections<H: ConnectHarness>(mut make: impl FnMut() -> H) {
    let parts: [fn(&mut Nodes<H>); 9] = [
        connecting_ends_open,
        what_is_sent_before_is_sent_after,
        both_ways_at_once,
        nobody_listens,
        a_connection_can_be_given_up,
        a_message_waits_whole,
        wide_input_is_bounded,
        shared_bytes_arrive,
        a_lost_peer_has_a_reason,
    ];
    for part in parts {
        let mut harness = make();
        part(&mut Nodes { harness: &mut harness });
    }
}

struct Nodes<'a, H> {
    harness: &'a mut H,
}

impl<H: ConnectHarness> Nodes<'_, H> {
    fn net(&mut self, node: usize) -> &mut H::Network {
        self.harness.network(node)
    }

    fn ready(&mut self, node: usize) -> Vec<ConnectionId> {
        let mut ready = Vec::new();
        self.net(node).poll(&mut ready);
        ready
    }

    /// Turns until `done`, which says whether it is and what has changed since the last time.
    #[track_caller]
    fn until(&mut self, what: &str, done: impl FnMut(&mut Self) -> Option<usize>) {
        turn_until(self, what, |nodes| nodes.harness.turn(), done);
    }

    fn connect(&mut self) -> ConnectionId {
        let address = self.harness.address();
        let connection = self.net(CONNECTING).connect(&address);
        assert_eq!(self.net(CONNECTING).input(connection), b"", "a new connection has no input");
        connection
    }

    fn accept(&mut self) -> ConnectionId {
        let mut accepted = None;
        self.until("a connection is accepted", |nodes| {
            nodes.ready(CONNECTING);
            accepted = nodes.net(LISTENING).accept();
            accepted.is_none().then_some(0)
        });
        let accepted = accepted.expect("one was accepted");
        assert_eq!(accepted.listener, 0, "a connection names its listener");
        accepted.connection
    }

    /// A connection that is open at both ends.
    fn open(&mut self) -> [ConnectionId; 2] {
        let connecting = self.connect();
        let accepted = self.accept();
        self.until("a connection that was accepted is open", |nodes| {
            nodes.ready(CONNECTING);
            (nodes.net(CONNECTING).state(connecting) != ConnectionState::Open).then_some(0)
        });
        [connecting, accepted]
    }

    /// Takes what has arrived at `node`, all of it.
    fn take(&mut self, node: usize, connection: ConnectionId, seen: &mut Vec<u8>) {
        self.ready(node);
        let input = self.net(node).input(connection);
        seen.extend_from_slice(input);
        let count = input.len();
        self.net(node).consume(connection, count);
    }
}

fn stream(length: usize, tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern::fill(&mut bytes, 0, tag);
    bytes
}

fn connecting_ends_open<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let first = nodes.connect();
    let state = nodes.net(CONNECTING).state(first);
    assert!(state != ConnectionState::Failed, "a connection is open or will be");
    assert_eq!(nodes.net(CONNECTING).failure(first), None, "what has not failed has no reason");
    let (mut named, mut is_open) = (false, false);
    nodes.until("a connection that became open is named by poll", |nodes| {
        let is_ready = nodes.ready(CONNECTING).contains(&first);
        is_open |= nodes.net(CONNECTING).state(first) == ConnectionState::Open;
        named |= is_ready && is_open;
        (!named).then_some(0)
    });
    let accepted = nodes.accept();
    assert_eq!(nodes.net(LISTENING).state(accepted), ConnectionState::Open, "an accepted connection is open");
    let [second, _] = nodes.open();
    assert_ne!(first, second, "connections have names of their own");
    nodes.net(CONNECTING).close(first, true);
    let [third, _] = nodes.open();
    assert!(third != first && third != second, "an id is never used again");
}

fn what_is_sent_before_is_sent_after<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let connecting = nodes.connect();
    let bytes = stream(100_000, 1);
    for part in bytes.chunks(7001) {
        nodes.net(CONNECTING).send(connecting, part);
    }
    assert_eq!(nodes.net(CONNECTING).unsent_bytes(connecting), bytes.len(), "what waits is unsent");
    let accepted = nodes.accept();
    let mut seen = Vec::new();
    nodes.until("what was sent before the connection was open arrives", |nodes| {
        nodes.ready(CONNECTING);
        nodes.take(LISTENING, accepted, &mut seen);
        (seen.len() < bytes.len()).then_some(seen.len())
    });
    assert!(seen == bytes, "what was sent before the connection was open arrives whole and in order");
    let closing = nodes.connect();
    nodes.net(CONNECTING).send(closing, b"hello and farewell");
    nodes.net(CONNECTING).close(closing, false);
    let (accepted, mut seen) = (nodes.accept(), Vec::new());
    nodes.until("a connection that is closed before it is open says what was queued", |nodes| {
        nodes.ready(CONNECTING);
        nodes.take(LISTENING, accepted, &mut seen);
        (nodes.net(LISTENING).state(accepted) == ConnectionState::Open).then_some(seen.len())
    });
    assert_eq!(seen, b"hello and farewell");
}

fn both_ways_at_once<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let ends = nodes.open();
    let sent = [stream(5_000_001, 1), stream(4_000_003, 2)];
    let (mut queued, mut seen) = ([0; 2], [Vec::new(), Vec::new()]);
    nodes.until("streams in both directions arrive", |nodes| {
        for node in [CONNECTING, LISTENING] {
            if nodes.net(node).unsent_bytes(ends[node]) < 1 << 20 && queued[node] < sent[node].len() {
                let part: Range<usize> = queued[node]..(queued[node] + 300_000).min(sent[node].len());
                nodes.net(node).send(ends[node], &sent[node][part.clone()]);
                queued[node] = part.end;
            }
            nodes.take(node, ends[node], &mut seen[node]);
        }
        let total = seen[0].len() + seen[1].len();
        (total < sent[0].len() + sent[1].len()).then_some(total)
    });
    assert!(seen[LISTENING] == sent[CONNECTING], "what the connecting node sends arrives whole and in order");
    assert!(seen[CONNECTING] == sent[LISTENING], "what the listening node sends arrives whole and in order");
}

fn nobody_listens<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let address = nodes.harness.deserted_address();
    let connection = nodes.net(CONNECTING).connect(&address);
    nodes.net(CONNECTING).send(connection, b"hello?");
    let mut named = false;
    nodes.until("a refused connection is named by poll and has failed", |nodes| {
        let is_ready = nodes.ready(CONNECTING).contains(&connection);
        named |= is_ready && nodes.net(CONNECTING).state(connection) == ConnectionState::Failed;
        (!named).then_some(0)
    });
    assert_eq!(nodes.net(CONNECTING).failure(connection), Some(ConnectionFailure::Refused), "why it has failed");
    nodes.net(CONNECTING).send(connection, b"hello?");
    assert_eq!(nodes.net(CONNECTING).unsent_bytes(connection), 0, "a failed connection drops what is queued");
    nodes.net(CONNECTING).close(connection, false);
    assert!(!nodes.ready(CONNECTING).contains(&connection), "a closed connection is not named any more");
    let [_, accepted] = nodes.open();
    assert_eq!(nodes.net(LISTENING).state(accepted), ConnectionState::Open, "a refusal harms nobody else");
}

fn a_connection_can_be_given_up<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let block = pattern::block(nodes.harness.blocks(), 1);
    let mut given_up = Vec::new();
    for turns in [0, 0, 1] {
        let connection = nodes.connect();
        nodes.net(CONNECTING).send_block(connection, &block, 0..100);
        for _ in 0..turns {
            nodes.harness.turn();
        }
        nodes.net(CONNECTING).close(connection, true);
        given_up.push(connection);
    }
    let deserted = nodes.harness.deserted_address();
    let refused = nodes.net(CONNECTING).connect(&deserted);
    nodes.net(CONNECTING).close(refused, true);
    given_up.push(refused);
    let mut holder = Some(block);
    nodes.until("a connection that was given up gives its blocks back", |nodes| {
        let ready = nodes.ready(CONNECTING);
        assert!(given_up.iter().all(|connection| !ready.contains(connection)), "what was given up is not named");
        let block = holder.take().expect("put back below");
        block.try_unique().err().map(|block| {
            holder = Some(block);
            0
        })
    });
    // Those that were made and given up are accepted, if at all, and have ended.
    let kept = nodes.connect();
    nodes.net(CONNECTING).send(kept, b"kept");
    let mut accepted = Vec::new();
    nodes.until("a connection that was given up ends at the other node", |nodes| {
        nodes.ready(CONNECTING);
        nodes.ready(LISTENING);
        accepted.extend(nodes.net(LISTENING).accept().map(|accepted| accepted.connection));
        let net = nodes.net(LISTENING);
        let open = |connection: &&ConnectionId| net.state(**connection) == ConnectionState::Open;
        let left: Vec<&ConnectionId> = accepted.iter().filter(open).collect();
        let done = left.len() == 1 && net.input(*left[0]) == b"kept";
        (!done).then_some(accepted.len() * 100 + left.len())
    });
}

fn a_message_waits_whole<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let ends = nodes.open();
    let bytes = stream(4 * MESSAGE_BYTES, 1);
    nodes.net(LISTENING).widen_input(ends[LISTENING], MESSAGE_BYTES);
    let mut queued = 0;
    for message in bytes.chunks(MESSAGE_BYTES) {
        nodes.until("a message can wait until it is whole", |nodes| {
            if queued < bytes.len() && nodes.net(CONNECTING).unsent_bytes(ends[CONNECTING]) < 1 << 20 {
                let part = queued..(queued + 777_777).min(bytes.len());
                nodes.net(CONNECTING).send(ends[CONNECTING], &bytes[part.clone()]);
                queued = part.end;
            }
            nodes.ready(CONNECTING);
            nodes.ready(LISTENING);
            let waiting = nodes.net(LISTENING).input(ends[LISTENING]).len();
            (waiting < MESSAGE_BYTES).then_some(waiting)
        });
        let input = nodes.net(LISTENING).input(ends[LISTENING]);
        assert!(input[..MESSAGE_BYTES] == *message, "a message arrives whole and in order");
        nodes.net(LISTENING).consume(ends[LISTENING], MESSAGE_BYTES);
    }
}

fn wide_input_is_bounded<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let ends = nodes.open();
    nodes.net(LISTENING).widen_input(ends[LISTENING], MESSAGE_BYTES);
    let block = pattern::block(nodes.harness.blocks(), 1);
    for _ in 0..FLOOD_BYTES / block.len() {
        nodes.net(CONNECTING).send_block(ends[CONNECTING], &block, 0..block.len());
    }
    let (mut moved, mut quiet_turns) = (0, 0);
    while quiet_turns < QUIET_TURNS {
        nodes.harness.turn();
        nodes.ready(CONNECTING);
        nodes.ready(LISTENING);
        let unsent = nodes.net(CONNECTING).unsent_bytes(ends[CONNECTING]);
        let now = unsent + nodes.net(LISTENING).input(ends[LISTENING]).len();
        quiet_turns = if now == moved { quiet_turns + 1 } else { 0 };
        moved = now;
    }
    assert!(nodes.net(CONNECTING).unsent_bytes(ends[CONNECTING]) > 0, "a peer whose input is not consumed is stopped");
    let waiting = nodes.net(LISTENING).input(ends[LISTENING]).len();
    assert!(waiting >= MESSAGE_BYTES, "what was asked for can wait: {waiting} bytes did");
}

fn shared_bytes_arrive<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let ends = nodes.open();
    let shared = Arc::new(stream(MESSAGE_BYTES, 3));
    let mut expected = Vec::new();
    for range in [0..MESSAGE_BYTES, 5..6, 7..7, 4096..100_000] {
        nodes.net(CONNECTING).send(ends[CONNECTING], b"header");
        expected.extend_from_slice(b"header");
        expected.extend_from_slice(&shared[range.clone()]);
        nodes.net(CONNECTING).send_shared(ends[CONNECTING], &shared, range);
    }
    let mut seen = Vec::new();
    nodes.until("shared bytes arrive", |nodes| {
        nodes.ready(CONNECTING);
        nodes.take(LISTENING, ends[LISTENING], &mut seen);
        (seen.len() < expected.len()).then_some(seen.len())
    });
    assert!(seen == expected, "shared bytes arrive whole and in order");
    nodes.until("shared bytes that have been sent come back", |nodes| {
        nodes.ready(CONNECTING);
        (Arc::strong_count(&shared) > 1).then_some(0)
    });
}

fn a_lost_peer_has_a_reason<H: ConnectHarness>(nodes: &mut Nodes<H>) {
    let [connecting, accepted] = nodes.open();
    nodes.net(LISTENING).send(accepted, b"last words");
    nodes.net(LISTENING).close(accepted, false);
    let mut seen = Vec::new();
    nodes.until("what was sent before a close arrives, then the end", |nodes| {
        nodes.ready(LISTENING);
        nodes.take(CONNECTING, connecting, &mut seen);
        (nodes.net(CONNECTING).state(connecting) == ConnectionState::Open).then_some(seen.len())
    });
    assert_eq!(seen, b"last words");
    let [connecting, accepted] = nodes.open();
    nodes.net(LISTENING).close(accepted, true);
    nodes.until("sending to a peer that is gone fails", |nodes| {
        nodes.net(CONNECTING).send(connecting, b"is anybody there?");
        nodes.ready(CONNECTING);
        nodes.ready(LISTENING);
        (nodes.net(CONNECTING).state(connecting) != ConnectionState::Failed).then_some(0)
    });
    assert_eq!(nodes.net(CONNECTING).failure(connecting), Some(ConnectionFailure::Reset), "why it has failed");
}
