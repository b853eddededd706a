//! The contract of [`Network::land`](crate::Network::land).

use super::{
    network::{Driver, NetworkHarness, stream},
    pattern,
};
use crate::{BLOCK_BYTES, BlockBuf, ConnectionId, ConnectionState, Landing, Network, Unread};
use std::ops::Range;

/// Parts of four blocks: whole ones, within one, and such as begin or end in the middle of one.
const PARTS: [Range<usize>; 8] = [
    0..4 * BLOCK_BYTES,
    0..1,
    4 * BLOCK_BYTES - 1..4 * BLOCK_BYTES,
    512..1024,
    BLOCK_BYTES - 1..BLOCK_BYTES + 1,
    512..4 * BLOCK_BYTES - 512,
    BLOCK_BYTES..3 * BLOCK_BYTES,
    5..3 * BLOCK_BYTES + 7,
];

/// Bytes that a client sends at once: pieces of parts, and several of them together with what lies between.
const PIECES: [usize; 4] = [700, 5000, 60_000, 1];

/// Checks a driver that receives into blocks, at least when a caller has just looked at what came.
///
/// # Panics
/// When a contract is broken, with its words.
pub fn landing<H: NetworkHarness>(mut make: impl FnMut() -> H)
where
    H::Network: Unread,
{
    let parts: [fn(&mut Driver<H>); 3] =
        [input_lands_in_blocks, what_is_lost_in_the_middle_gives_its_blocks_back, the_end_of_the_input_is_no_landing];
    for part in parts {
        let mut harness = make();
        part(&mut Driver { harness: &mut harness });
    }
}

/// As [`unread`](super::unread) does, checks that nothing that has arrived is missing from what a driver says is unread, landed and input, while one landing follows the
/// other.
///
/// # Panics
/// When something is.
pub fn unread_beside_landings<H: NetworkHarness>(mut harness: H, arriving_bytes_max: usize)
where
    H::Network: Unread,
{
    let driver = &mut Driver { harness: &mut harness };
    let (connection, mut peer) = driver.open();
    let bytes = stream(600_000, 9);
    let (mut sent, mut taken, mut marked) = (0_usize, 0_usize, 0_usize);
    let mut under_way: Option<Range<usize>> = None;
    driver.until("every byte that a client sends arrives", |driver| {
        let received = usize::try_from(driver.net().received_bytes(connection)).expect("no more than was sent");
        let piece = PIECES[sent / 30_000 % 3].min(arriving_bytes_max - (sent - received)).min(bytes.len() - sent);
        sent += driver.harness.peer_send(&mut peer, &bytes[sent..sent + piece]);
        let unread = usize::try_from(driver.net().unread_bytes(connection)).expect("no more than was sent");
        assert!(received + unread <= sent, "nothing is unread that was not sent");
        marked += usize::from(under_way.is_some() && unread > 0);
        driver.harness.turn();
        driver.ready();
        let received = usize::try_from(driver.net().received_bytes(connection)).expect("no more than was sent");
        assert!(unread + received >= sent, "what has arrived has landed, is input, or unread");
        if driver.net().take_landed(connection).is_some() {
            taken += under_way.take().expect("one was begun").len();
        }
        if under_way.is_none() {
            let waiting = driver.net().input(connection).len();
            driver.net().consume(connection, waiting);
            taken += waiting;
            let part = PARTS[taken % PARTS.len()].clone();
            let has_all = taken + part.len() <= bytes.len();
            under_way = (has_all && begin(driver, connection, &part)).then_some(part);
        }
        let landed = driver.net().landed_bytes(connection);
        (taken < bytes.len()).then_some(sent + taken + landed)
    });
    assert!(marked > 0, "something lies unread behind a landing");
    assert_eq!(driver.net().unread_bytes(connection), 0);
}

/// Has all blocks of the part filled with what no stream leaves.
fn begin<H: NetworkHarness>(driver: &mut Driver<H>, connection: ConnectionId, part: &Range<usize>) -> bool {
    let blocks = pattern::buffers(driver.harness.blocks(), 4);
    match driver.net().land(connection, Landing::new(blocks, part.clone())) {
        Ok(()) => true,
        Err(landing) => {
            assert_eq!(landing.into_blocks().len(), 4, "a refused landing comes back as it was");
            false
        }
    }
}

/// Appends the part to `seen`, and checks what lies around it.
fn look(blocks: &[BlockBuf], part: &Range<usize>, seen: &mut Vec<u8>) {
    let mut untouched = vec![0; BLOCK_BYTES];
    pattern::fill(&mut untouched, 0, u64::MAX);
    let is_untouched = |at: usize| blocks[at / BLOCK_BYTES][at % BLOCK_BYTES] == untouched[at % BLOCK_BYTES];
    let mut around = (0..part.start).chain(part.end..blocks.len() * BLOCK_BYTES);
    assert!(blocks.len() == 4 && around.all(is_untouched), "nothing outside the part is written");
    seen.extend(part.clone().map(|at| blocks[at / BLOCK_BYTES][at % BLOCK_BYTES]));
}

fn input_lands_in_blocks<H: NetworkHarness>(driver: &mut Driver<H>)
where
    H::Network: Unread,
{
    let (connection, mut peer) = driver.open();
    let free_before = driver.harness.blocks().free_count();
    let bytes = stream(900_000, 4);
    let (mut sent, mut seen, mut landed_count) = (0_usize, Vec::new(), 0_usize);
    let mut under_way: Option<Range<usize>> = None;
    driver.until("every byte that a client sends arrives, as input or in blocks", |driver| {
        let piece = PIECES[sent / 90_000 % PIECES.len()].min(bytes.len() - sent);
        // One byte at a time only for a while.
        let piece = if piece == 1 && sent % 90_000 > 200 { 3000.min(bytes.len() - sent) } else { piece };
        sent += driver.harness.peer_send(&mut peer, &bytes[sent..sent + piece]);
        let is_named = driver.ready().contains(&connection);
        if let Some(blocks) = driver.net().take_landed(connection) {
            assert!(is_named, "what arrives is named");
            look(&blocks, &under_way.take().expect("one was begun"), &mut seen);
            landed_count += 1;
            assert_eq!(driver.net().landed_bytes(connection), 0, "a landing that was taken is gone");
        }
        let landed = driver.net().landed_bytes(connection);
        let waiting = driver.net().input(connection).len();
        let received = driver.net().received_bytes(connection);
        assert_eq!(received, (seen.len() + landed + waiting) as u64, "every byte counts once");
        assert_eq!(
            driver.net().consumed_bytes(connection),
            seen.len() as u64,
            "what has landed is consumed when it is taken"
        );
        match &under_way {
            Some(part) => assert!(landed < part.len() && waiting == 0, "input is what comes behind the landing"),
            None => {
                // What comes together with the next landing's first bytes may be copied by its reader.
                seen.extend_from_slice(driver.net().input(connection));
                driver.net().consume(connection, waiting);
                let part = PARTS[(landed_count + seen.len()) % PARTS.len()].clone();
                let has_all = seen.len() + part.len() <= bytes.len();
                under_way = (has_all && begin(driver, connection, &part)).then_some(part);
            }
        }
        (seen.len() < bytes.len()).then_some(sent + seen.len() + landed)
    });
    assert!(seen == bytes, "what lands is whole and in order");
    assert!(landed_count > 10, "the driver receives into blocks: {landed_count}");
    assert_eq!(driver.harness.blocks().free_count(), free_before);
}

/// A connection whose landing has begun to arrive.
fn half_landed<H: NetworkHarness>(driver: &mut Driver<H>) -> (ConnectionId, H::Peer) {
    let (connection, mut peer) = driver.open();
    let bytes = stream(1000, 4);
    let mut is_landing = false;
    driver.until("a part of a landing arrives", |driver| {
        driver.ready();
        let waiting = driver.net().input(connection).len();
        driver.net().consume(connection, waiting);
        let was_landing = is_landing;
        is_landing = is_landing || begin(driver, connection, &PARTS[0]);
        let count = if was_landing {
            0
        } else if is_landing {
            bytes.len()
        } else {
            1
        };
        let sent = driver.harness.peer_send(&mut peer, &bytes[..count]);
        let landed = driver.net().landed_bytes(connection);
        assert!(landed < PARTS[0].len() && driver.net().take_landed(connection).is_none(), "it is not whole");
        (landed == 0).then_some(sent)
    });
    (connection, peer)
}

fn what_is_lost_in_the_middle_gives_its_blocks_back<H: NetworkHarness>(driver: &mut Driver<H>) {
    let free_before = driver.harness.blocks().free_count();
    for (is_aborted, is_peer_first) in [(true, false), (true, true), (false, true)] {
        let (connection, peer) = half_landed(driver);
        assert_eq!(driver.harness.blocks().free_count(), free_before - 4, "they are the driver's");
        let mut peer = Some(peer);
        if is_peer_first {
            driver.harness.peer_drop(peer.take().expect("it is there"));
        }
        driver.net().close(connection, is_aborted);
        driver.until("blocks of a landing that never was whole come back", |driver| {
            driver.ready();
            (driver.harness.blocks().free_count() != free_before).then_some(0)
        });
        peer.into_iter().for_each(|peer| driver.harness.peer_drop(peer));
    }
}

fn the_end_of_the_input_is_no_landing<H: NetworkHarness>(driver: &mut Driver<H>) {
    let free_before = driver.harness.blocks().free_count();
    let (connection, mut peer) = half_landed(driver);
    driver.harness.peer_end(&mut peer);
    driver.until("the end of the input is noticed", |driver| {
        driver.ready();
        (driver.net().state(connection) != ConnectionState::InputEnded).then_some(0)
    });
    assert!(driver.net().take_landed(connection).is_none(), "what came in part is not given out as whole");
    driver.net().send(connection, b"still here");
    driver.net().close(connection, false);
    assert!(driver.receive(&mut peer, None) == b"still here", "a client that sends no more still receives");
    driver.until("the blocks come back", |driver| {
        driver.ready();
        (driver.harness.blocks().free_count() != free_before).then_some(0)
    });
}
