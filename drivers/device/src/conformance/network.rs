//! The contracts of [`Network`].

use super::{pattern, turn_until};
use crate::{BLOCK_BYTES, BlockPool, ConnectionId, ConnectionState, Network, Unread};

/// Bytes of input that can wait at least.
const INPUT_BYTES_MIN: usize = 64 * 1024;

/// Bytes that no driver buffers for one connection, together with what the kernel's socket buffers hold.
const FLOOD_BYTES: usize = 32 << 20;

/// Largest part that the suite hands over at once.
const PART_BYTES: usize = 48 * 1024;

/// What a driver's test gives the network suite: a driver with one listener or more, and the clients' side of it. No call waits
/// except `turn`.
pub trait NetworkHarness {
    /// The driver.
    type Network: Network;
    /// A client's end of a connection.
    type Peer;

    /// The memory that blocks to be sent come from: at least eight.
    fn blocks(&self) -> &BlockPool;

    /// The driver under test.
    fn network(&mut self) -> &mut Self::Network;

    /// One turn of the loop: hands what is queued to the machine, and waits a short time (milliseconds, or until the next event in
    /// virtual time) for something to finish.
    fn turn(&mut self);

    /// Connects a client to listener 0.
    fn connect(&mut self) -> Self::Peer;

    /// Sends from the client as many of `bytes` as are taken now; returns how many. Zero after the driver has ended the connection.
    fn peer_send(&mut self, peer: &mut Self::Peer, bytes: &[u8]) -> usize;

    /// Appends what has arrived at the client to `bytes`; false once nothing more will come (end of stream, or reset).
    fn peer_receive(&mut self, peer: &mut Self::Peer, bytes: &mut Vec<u8>) -> bool;

    /// Says that the client sends no more; it still receives.
    fn peer_end(&mut self, peer: &mut Self::Peer);

    /// The client is gone: closed, in both directions.
    fn peer_drop(&mut self, peer: Self::Peer);
}

/// Checks every contract of a network driver.
///
/// # Panics
/// When a contract is broken, with its words.
pub fn network<H: NetworkHarness>(mut make: impl FnMut() -> H) {
    let parts: [fn(&mut Driver<H>); 12] = [
        connections_are_accepted,
        input_arrives_in_order,
        input_is_bounded,
        lent_input_stays,
        output_arrives_in_order,
        output_is_added_while_it_goes,
        output_waits_for_its_reader,
        an_ended_input_is_still_served,
        a_lost_client_is_noticed,
        close_sends_what_is_queued,
        abort_ends_at_once,
        ids_are_never_used_again,
    ];
    for part in parts {
        let mut harness = make();
        part(&mut Driver { harness: &mut harness });
    }
}

/// Checks that nothing that has arrived is missing from what a driver says is unread. Of what was sent and not received, `arriving_bytes_max` have surely
/// arrived; what a stream has beyond that may still be at its sender.
///
/// # Panics
/// When something is.
pub fn unread<H: NetworkHarness>(mut harness: H, arriving_bytes_max: usize)
where
    H::Network: Unread,
{
    let driver = &mut Driver { harness: &mut harness };
    let (connection, mut peer) = driver.open();
    let bytes = stream(600_000, 9);
    let (mut sent, mut seen, mut marked) = (0_usize, Vec::new(), 0);
    driver.until("every byte that a client sends arrives", |driver| {
        // Now more is sent than input can wait, now less.
        let part = if (sent / PART_BYTES).is_multiple_of(3) { 700 } else { PART_BYTES };
        let received = driver.net().received_bytes(connection);
        assert!(received + driver.net().unread_bytes(connection) <= sent as u64, "nothing is unread that was not sent");
        let on_its_way = sent - usize::try_from(received).expect("no more than was sent");
        let end = (sent + part.min(arriving_bytes_max - on_its_way)).min(bytes.len());
        sent += driver.harness.peer_send(&mut peer, &bytes[sent..end]);
        let (arrived, unread) = (sent, driver.net().unread_bytes(connection));
        driver.harness.turn();
        driver.ready();
        let received = driver.net().received_bytes(connection);
        assert!(unread + received >= arrived as u64, "what has arrived is received or unread");
        marked += usize::from(unread > 0);
        let waiting = driver.net().input(connection).len();
        let take = if sent < bytes.len() { waiting / 2 } else { waiting };
        seen.extend_from_slice(&driver.net().input(connection)[..take]);
        driver.net().consume(connection, take);
        let waiting = driver.net().input(connection).len();
        assert_eq!(driver.net().received_bytes(connection), (seen.len() + waiting) as u64, "every byte counts once");
        (seen.len() < bytes.len()).then_some(sent + seen.len())
    });
    assert!(seen == bytes && marked > 0 && driver.net().unread_bytes(connection) == 0);
}

/// The suite's hand on a harness.
pub(super) struct Driver<'a, H> {
    pub(super) harness: &'a mut H,
}

impl<H: NetworkHarness> Driver<'_, H> {
    pub(super) fn net(&mut self) -> &mut H::Network {
        self.harness.network()
    }

    /// Turns until `done`, which says whether it is and what has changed since the last time.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, done: impl FnMut(&mut Self) -> Option<usize>) {
        turn_until(self, what, |driver| driver.harness.turn(), done);
    }

    pub(super) fn open(&mut self) -> (ConnectionId, H::Peer) {
        let peer = self.harness.connect();
        let mut accepted = None;
        self.until("a connection is accepted", |driver| {
            accepted = driver.net().accept();
            accepted.is_none().then_some(0)
        });
        let accepted = accepted.expect("one was accepted");
        assert_eq!(accepted.listener, 0, "a connection names its listener");
        assert!(!accepted.peer.is_empty(), "a connection names its client");
        (accepted.connection, peer)
    }

    pub(super) fn ready(&mut self) -> Vec<ConnectionId> {
        let mut ready = Vec::new();
        self.net().poll(&mut ready);
        let mut once = ready.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ready.len(), "a poll names a connection at most once");
        ready
    }

    /// Sends `bytes` from the client and consumes them in the driver; returns what the driver saw.
    fn carry_in(&mut self, connection: ConnectionId, peer: &mut H::Peer, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut seen) = (0, Vec::new());
        self.until("every byte that a client sends arrives", |driver| {
            sent += driver.harness.peer_send(peer, &bytes[sent..(sent + PART_BYTES).min(bytes.len())]);
            if driver.ready().contains(&connection) {
                take_input(driver.net(), connection, &mut seen);
            }
            (seen.len() < bytes.len()).then_some(sent + seen.len())
        });
        seen
    }

    /// Receives at the client until `count` bytes have come, or the end of the stream when there is no count.
    pub(super) fn receive(&mut self, peer: &mut H::Peer, count: Option<usize>) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("every byte that is sent arrives, then the end", |driver| {
            let more = driver.harness.peer_receive(peer, &mut bytes);
            driver.ready();
            let done = count.map_or(!more, |count| bytes.len() >= count);
            assert!(more || done, "the stream ends after its last byte, not before");
            (!done).then_some(bytes.len())
        });
        bytes
    }
}

/// Consumes the input of `connection` in two steps, the first of an odd size.
fn take_input(net: &mut impl Network, connection: ConnectionId, seen: &mut Vec<u8>) {
    let input = net.input(connection).len();
    for count in [input.min(3), input - input.min(3)] {
        seen.extend_from_slice(&net.input(connection)[..count]);
        net.consume(connection, count);
    }
    assert!(net.input(connection).is_empty(), "consumed bytes are gone");
}

pub(super) fn stream(length: usize, tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern::fill(&mut bytes, 0, tag);
    bytes
}

fn connections_are_accepted<H: NetworkHarness>(driver: &mut Driver<H>) {
    assert!(driver.net().accept().is_none(), "nobody has connected");
    assert!(driver.ready().is_empty(), "nothing is ready");
    let (first, _first_peer) = driver.open();
    let (second, _second_peer) = driver.open();
    assert_ne!(first, second, "connections have names of their own");
    for connection in [first, second] {
        assert_eq!(driver.net().state(connection), ConnectionState::Open, "a new connection is open");
        assert!(driver.net().input(connection).is_empty(), "a new connection has no input");
        assert_eq!(driver.net().unsent_bytes(connection), 0, "a new connection has nothing to send");
    }
    assert!(driver.net().accept().is_none(), "a connection is accepted once");
}

fn input_arrives_in_order<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    for (tag, length) in [(1, 1), (2, 7), (3, 64 * 1024), (4, 1_000_001)] {
        let bytes = stream(length, tag);
        assert!(driver.carry_in(connection, &mut peer, &bytes) == bytes, "input arrives whole and in order");
    }
    driver.harness.turn();
    assert!(driver.net().input(connection).is_empty(), "nothing arrives that was not sent");
}

fn input_is_bounded<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (stalled, mut flooder) = driver.open();
    let (other, mut other_peer) = driver.open();
    let bytes = stream(FLOOD_BYTES, 1);
    let (mut sent, mut moved, mut quiet_turns) = (0, 0, 0);
    // The client sends until nothing moves any more; the driver's caller consumes nothing.
    while quiet_turns < 20 && sent < bytes.len() {
        sent += driver.harness.peer_send(&mut flooder, &bytes[sent..(sent + PART_BYTES).min(bytes.len())]);
        driver.harness.turn();
        driver.ready();
        let now = sent + driver.net().input(stalled).len();
        quiet_turns = if now == moved { quiet_turns + 1 } else { 0 };
        moved = now;
    }
    assert!(sent < bytes.len(), "a client whose input is not consumed is stopped");
    let waiting = driver.net().input(stalled).len();
    assert!(waiting >= INPUT_BYTES_MIN, "at least 64 KiB of input can wait: {waiting} bytes did");
    let greeting = stream(5000, 2);
    assert!(driver.carry_in(other, &mut other_peer, &greeting) == greeting, "a stalled client harms nobody else");
    let mut seen = Vec::new();
    driver.until("a stopped client goes on when its input is consumed", |driver| {
        take_input(driver.net(), stalled, &mut seen);
        driver.ready();
        (seen.len() < sent).then_some(seen.len())
    });
    assert!(seen == bytes[..sent], "input that had to wait arrives whole and in order");
}

fn lent_input_stays<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let bytes = stream(3000, 1);
    let mut lent = Vec::new();
    for _ in 0..40 {
        let mut sent = 0;
        driver.until("every byte that a client sends arrives", |driver| {
            sent += driver.harness.peer_send(&mut peer, &bytes[sent..]);
            driver.ready();
            let waiting = driver.net().input(connection).len();
            (waiting < bytes.len()).then_some(sent + waiting)
        });
        lent.push(driver.net().lend(connection, 100..3000));
        driver.net().consume(connection, bytes.len());
        let other = stream(5000, 2);
        assert!(driver.carry_in(connection, &mut peer, &other) == other, "input arrives whole and in order");
    }
    driver.harness.peer_drop(peer);
    driver.net().close(connection, true);
    for _ in 0..20 {
        driver.harness.turn();
        driver.ready();
    }
    assert!(lent.iter().all(|lent| **lent == bytes[100..]), "lent input stays as it is");
}

fn output_arrives_in_order<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let block = pattern::block(driver.harness.blocks(), 9);
    let free_before = driver.harness.blocks().free_count();
    let mut expected = Vec::new();
    for (tag, length) in [(1, 1), (2, 16), (3, 5000), (4, 300_000)] {
        let bytes = stream(length, tag);
        driver.net().send(connection, &bytes);
        expected.extend_from_slice(&bytes);
        for range in [0..BLOCK_BYTES, 5..6, 512..4096, 7..7] {
            expected.extend_from_slice(&block[range.clone()]);
            driver.net().send_block(connection, &block, range);
        }
    }
    assert!(driver.net().unsent_bytes(connection) <= expected.len(), "no more can be unsent than was queued");
    assert!(driver.receive(&mut peer, Some(expected.len())) == expected, "output arrives whole and in order");
    driver.until("what has arrived is not unsent", |driver| {
        let unsent = driver.net().unsent_bytes(connection);
        (unsent > 0).then_some(unsent)
    });
    driver.until("blocks that have been sent come back", |driver| {
        driver.ready();
        (driver.harness.blocks().free_count() != free_before).then_some(0)
    });
    let unique = block.try_unique().expect("the driver holds no handle of a block that was sent");
    drop(unique);
}

/// Output of more pieces than a driver hands over at once, to which every turn adds: what went in part must go on where it was.
fn output_is_added_while_it_goes<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let block = pattern::block(driver.harness.blocks(), 9);
    let (mut expected, mut received) = (Vec::new(), Vec::new());
    let mut rounds = 0..40_usize;
    driver.until("output arrives while more is added", |driver| {
        driver.harness.peer_receive(&mut peer, &mut received);
        driver.ready();
        let round = rounds.next();
        for piece in 0..round.map_or(0, |round| if round % 8 == 0 { 3000 } else { 1 }) {
            let range = piece % 4000..piece % 4000 + 90;
            expected.extend_from_slice(&block[range.clone()]);
            driver.net().send_block(connection, &block, range);
        }
        (round.is_some() || received.len() < expected.len()).then_some(received.len())
    });
    driver.until("nothing is unsent at the end", |driver| {
        driver.harness.peer_receive(&mut peer, &mut received);
        driver.ready();
        let unsent = driver.net().unsent_bytes(connection);
        (unsent > 0).then_some(unsent)
    });
    assert!(received == expected, "what is added follows what was queued before it, and nothing goes twice");
}

fn output_waits_for_its_reader<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (stalled, mut slow) = driver.open();
    let (other, mut other_peer) = driver.open();
    let bytes = stream(FLOOD_BYTES, 1);
    driver.net().send(stalled, &bytes);
    for _ in 0..20 {
        driver.harness.turn();
        driver.ready();
    }
    let unsent = driver.net().unsent_bytes(stalled);
    assert!((1..=bytes.len()).contains(&unsent), "a client that does not read leaves bytes unsent");
    driver.net().send(other, &bytes[..100]);
    assert!(driver.receive(&mut other_peer, Some(100)) == bytes[..100], "a stalled client harms nobody else");
    let (mut received, mut named) = (Vec::new(), false);
    driver.until("output goes on when its reader does", |driver| {
        driver.harness.peer_receive(&mut slow, &mut received);
        named |= driver.ready().contains(&stalled);
        let done = received.len() == bytes.len() && driver.net().unsent_bytes(stalled) == 0 && named;
        (!done).then_some(received.len())
    });
    assert!(received == bytes, "output that had to wait arrives whole and in order");
}

fn an_ended_input_is_still_served<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let bytes = stream(1000, 1);
    assert_eq!(driver.harness.peer_send(&mut peer, &bytes), bytes.len(), "a small request is taken at once");
    driver.harness.peer_end(&mut peer);
    let (mut seen, mut named) = (Vec::new(), false);
    driver.until("the end of the input is noticed", |driver| {
        named |= driver.ready().contains(&connection);
        let ended = driver.net().state(connection) == ConnectionState::InputEnded;
        let complete = ended && driver.net().input(connection).len() == bytes.len();
        (!(complete && named)).then_some(0)
    });
    take_input(driver.net(), connection, &mut seen);
    assert!(seen == bytes, "what was sent before the end arrives");
    driver.net().send(connection, &bytes);
    driver.net().close(connection, false);
    assert!(driver.receive(&mut peer, None) == bytes, "a client that sends no more still receives");
}

fn a_lost_client_is_noticed<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, peer) = driver.open();
    let (other, mut other_peer) = driver.open();
    driver.harness.peer_drop(peer);
    let mut named = false;
    driver.until("a client that is gone is named by poll", |driver| {
        named |= driver.ready().contains(&connection);
        (!named).then_some(0)
    });
    assert_ne!(driver.net().state(connection), ConnectionState::Open, "a connection without a client is not open");
    driver.until("sending to a client that is gone fails", |driver| {
        driver.net().send(connection, b"is anybody there?");
        driver.ready();
        (driver.net().state(connection) != ConnectionState::Failed).then_some(0)
    });
    driver.net().close(connection, true);
    let bytes = stream(100, 3);
    assert!(driver.carry_in(other, &mut other_peer, &bytes) == bytes, "a lost client harms nobody else");
}

fn close_sends_what_is_queued<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let bytes = stream(2_000_000, 1);
    driver.net().send(connection, &bytes);
    driver.net().close(connection, false);
    assert!(driver.receive(&mut peer, None) == bytes, "close waits until everything queued has been sent");
    assert!(!driver.ready().contains(&connection), "a closed connection is not named any more");
}

fn abort_ends_at_once<H: NetworkHarness>(driver: &mut Driver<H>) {
    let (connection, mut peer) = driver.open();
    let (other, mut other_peer) = driver.open();
    let block = pattern::block(driver.harness.blocks(), 1);
    driver.net().send(connection, &stream(FLOOD_BYTES, 1));
    driver.net().send_block(connection, &block, 0..BLOCK_BYTES);
    driver.net().close(connection, true);
    let received = driver.receive(&mut peer, None);
    assert!(received.len() < FLOOD_BYTES, "an aborted connection does not wait for its client");
    let mut holder = Some(block);
    driver.until("an aborted connection gives its blocks back", |driver| {
        driver.ready();
        let block = holder.take().expect("put back below");
        block.try_unique().err().map(|block| {
            holder = Some(block);
            0
        })
    });
    driver.net().send(other, b"still here");
    assert!(driver.receive(&mut other_peer, Some(10)) == b"still here", "an abort harms nobody else");
}

fn ids_are_never_used_again<H: NetworkHarness>(driver: &mut Driver<H>) {
    let mut used = Vec::new();
    for round in 0..10 {
        let (connection, mut peer) = driver.open();
        assert!(!used.contains(&connection), "an id is never used again");
        used.push(connection);
        driver.net().send(connection, b"hello");
        driver.net().close(connection, round % 2 == 0);
        driver.receive(&mut peer, None);
    }
}
