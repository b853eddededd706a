//! What a connection has received and its reader has not consumed.
//!
//! ```text
//!   0 ......... head ====== input ====== filled ---- receive in flight writes here ---- capacity
//! ```
//!
//! # Invariants
//!
//! 1. `head <= filled <= capacity`. A receive in flight writes at `filled..capacity` only.
//! 2. Bytes move, and the buffer grows, only while no receive is in flight, and only in calls that have the inbox mutably: a
//!    borrow of the input never sees it.
//! 3. While any part of a buffer is lent, nothing is written below `filled` in it: the inbox goes on behind, and at the end in another buffer.
//! 4. A receive in flight into a [landing](Flight) writes there first, and what is left at `filled..`.
//! 5. A receive is in flight, or can be, whenever less than `full_bytes` wait; from there on the peer is slowed down.

// The kernel writes into the buffer while the input is being looked at.
#![expect(unsafe_code, reason = "memory shared with a receive in flight")]

use super::landing::Flight;
use crate::buffer::PageBuffer;
use std::{ops::Range, sync::Arc};
use twinlog_device::{BlockBuf, Landing, Lent};

/// Input that must be able to wait, by the contract of [`twinlog_device::Network::input`].
const FULL_BYTES: usize = 64 << 10;

/// First and largest capacity. A buffer grows when a receive has filled it: then more comes at once. The largest is four times what must be able to
/// wait: input that is not whole yet is moved to the front when the end is reached, and of four parts at most one is moved.
const CAPACITY_BYTES: [usize; 2] = [64 << 10, 4 * FULL_BYTES];

/// A receive into less room than this is not worth its entry: the input is moved to the front first.
const ROOM_BYTES_MIN: usize = 16 << 10;

/// Most that a receive takes as input while landings follow each other: room for the headers between them. What it takes of the next one's bytes is copied.
const BRIEF_BYTES: usize = 8 << 10;

/// So many receives that fill that much, and no landing, and the client is taken to send something else: they take all there is room for again.
const BRIEF_COUNT: u8 = 4;

/// Where a receive writes.
pub(super) enum Room {
    /// So many bytes from here.
    Input(*mut u8, u32),
    /// What this header names.
    Landing(*mut libc::msghdr),
}

/// Input that somebody keeps.
struct Part {
    buffer: Arc<PageBuffer>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was below `filled` when it was lent, and nothing is written there while this holds the buffer (invariant 3).
        unsafe { self.buffer.bytes(self.range.clone()) }
    }
}

pub(super) struct Inbox {
    buffer: Arc<PageBuffer>,
    /// One that was full while parts of it were lent: used again when they are back.
    spare: Option<Arc<PageBuffer>>,
    head: usize,
    filled: usize,
    received_bytes: u64,
    in_flight: bool,
    /// What comes next goes there.
    landing: Option<Flight>,
    /// Input that the receive in flight may bring.
    offered: usize,
    /// Receives that are brief still.
    brief: u8,
    /// Input that must be able to wait.
    full_bytes: usize,
    /// The last receive filled all the room that it had: more may wait in the socket.
    was_filled: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: Arc::new(PageBuffer::new(CAPACITY_BYTES[0])),
            spare: None,
            head: 0,
            filled: 0,
            received_bytes: 0,
            in_flight: false,
            landing: None,
            offered: 0,
            brief: 0,
            full_bytes: FULL_BYTES,
            was_filled: false,
        }
    }

    /// From now on at least `count` bytes can wait.
    pub(super) fn widen(&mut self, count: usize) {
        self.full_bytes = self.full_bytes.max(count);
    }

    /// Largest capacity.
    fn capacity_max(&self) -> usize {
        CAPACITY_BYTES[1].max(4 * self.full_bytes)
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.in_flight
    }

    /// Whether the last receive took all that the socket had.
    pub(super) fn has_drained(&self) -> bool {
        !self.was_filled
    }

    /// All that was received.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    pub(super) fn input(&self) -> &[u8] {
        // SAFETY: a receive in flight writes behind `filled` (invariant 1), and nothing here moves while this is borrowed.
        unsafe { self.buffer.bytes(self.head..self.filled) }
    }

    /// Part of the input, for longer than it waits here.
    pub(super) fn lend(&self, range: Range<usize>) -> Lent {
        let range = self.head + range.start..self.head + range.end;
        assert!(range.start <= range.end && range.end <= self.filled, "only what is there can be lent");
        Lent::new(Part { buffer: Arc::clone(&self.buffer), range })
    }

    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.filled - self.head, "only what is there can be consumed");
        self.head += count;
    }

    /// Room for a receive that is to be queued now, or `None` while one is in flight or the inbox is full.
    pub(super) fn begin(&mut self) -> Option<Room> {
        let waiting = self.filled - self.head;
        if self.in_flight || waiting >= self.full_bytes {
            return None;
        }
        self.make_room(waiting);
        self.in_flight = true;
        let free = self.buffer.len() - self.filled;
        self.offered = if self.brief > 0 { free.min(BRIEF_BYTES) } else { free };
        let address = self.buffer.address(&(self.filled..self.buffer.len()));
        Some(match self.landing.as_mut().filter(|flight| flight.landing().left_bytes() > 0) {
            Some(flight) => Room::Landing(flight.message(address, self.offered)),
            None => Room::Input(address, u32::try_from(self.offered).expect("at most 32 MiB")),
        })
    }

    /// The receive that was begun last has not been queued, and will not be.
    pub(super) fn withdraw(&mut self) {
        assert!(self.in_flight, "one was begun");
        self.in_flight = false;
    }

    /// What is received next goes to `landing`.
    pub(super) fn land(&mut self, landing: Landing) {
        let is_idle = !self.in_flight && self.input().is_empty() && self.landing.is_none();
        assert!(is_idle, "one landing at a time, behind the input");
        self.landing = Some(Flight::new(landing));
        self.brief = BRIEF_COUNT;
    }

    /// Bytes of the landing that are there.
    pub(super) fn landed_bytes(&self) -> usize {
        self.landing.as_ref().map_or(0, |flight| flight.landing().landed_bytes())
    }

    /// The blocks of a landing that is whole.
    pub(super) fn take_landed(&mut self) -> Option<Vec<BlockBuf>> {
        self.landing.take_if(|flight| flight.landing().left_bytes() == 0).map(Flight::into_blocks)
    }

    fn make_room(&mut self, waiting: usize) {
        let capacity = self.buffer.len();
        let is_lent = Arc::get_mut(&mut self.buffer).is_none();
        let is_short = capacity - self.filled < ROOM_BYTES_MIN;
        if self.was_filled && self.filled == capacity && capacity < self.capacity_max() {
            self.replace(self.capacity_max());
        } else if is_lent && is_short {
            self.replace(capacity);
        } else if is_lent || (waiting > 0 && !is_short) {
            return;
        } else if waiting > 0 {
            // SAFETY: no receive is in flight, nothing is lent, and the inbox is borrowed mutably.
            unsafe { self.buffer.move_to_front(self.head..self.filled) };
        }
        (self.head, self.filled) = (0, waiting);
    }

    /// Goes on in another buffer.
    fn replace(&mut self, capacity: usize) {
        let is_fit = |spare: &mut Arc<PageBuffer>| Arc::get_mut(spare).is_some_and(|spare| spare.len() == capacity);
        let next = self.spare.take_if(is_fit).unwrap_or_else(|| Arc::new(PageBuffer::new(capacity)));
        // SAFETY: the other buffer is ours alone: a new one, or one of which nothing is lent any more.
        unsafe { next.write(0, self.input()) };
        self.spare = Some(std::mem::replace(&mut self.buffer, next)).filter(|full| full.len() == capacity);
    }

    /// A receive has ended with `count` bytes.
    pub(super) fn end(&mut self, count: usize) {
        assert!(self.in_flight, "the kernel ends what was begun");
        self.in_flight = false;
        self.received_bytes += count as u64;
        let landing = self.landing.as_mut().filter(|flight| flight.landing().left_bytes() > 0);
        let has_landed = landing.is_some();
        let rest = landing.map_or(count, |flight| flight.advance(count));
        assert!(rest <= self.offered, "the kernel fills only what it was given");
        self.was_filled = rest == self.offered;
        self.filled += rest;
        if self.was_filled && !has_landed {
            self.brief = self.brief.saturating_sub(1);
        }
    }

    /// Forgets the input, for a connection whose reader is gone; the landing as soon as the kernel is done with it.
    pub(super) fn discard(&mut self) {
        self.head = self.filled;
        if !self.in_flight {
            self.landing = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the kernel: fills as much of the room as `bytes` has.
    fn receive(inbox: &mut Inbox, bytes: &[u8]) -> usize {
        let Some(Room::Input(address, room)) = inbox.begin() else { return 0 };
        let count = bytes.len().min(room as usize);
        // SAFETY: the room that the inbox gave, not more than it has.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), count) };
        inbox.end(count);
        count
    }

    #[test]
    fn a_stream_passes_whole_whatever_the_sizes() {
        let stream: Vec<u8> = (0..3_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (part, consumed) in [(1000, 999), (70_000, 65_000), (300_000, 300_000), (4124, 4124), (5000, 1)] {
            let mut inbox = Inbox::new();
            let (mut received, mut seen) = (0, Vec::new());
            for round in 0.. {
                received += receive(&mut inbox, &stream[received..(received + part).min(stream.len())]);
                let input = inbox.input();
                // A reader that needs all it can get before it consumes never starves.
                assert!(!input.is_empty() || received == stream.len(), "a receive is possible while nothing waits");
                let count = if round % 7 == 0 { input.len() } else { input.len().min(consumed) };
                seen.extend_from_slice(&input[..count]);
                inbox.consume(count);
                if seen.len() == stream.len() {
                    break;
                }
            }
            assert!(seen == stream, "parts of {part} bytes, consumed by {consumed}");
        }
    }

    #[test]
    fn what_is_lent_stays_as_it_is_and_only_as_much_memory_is_used_as_is_lent() {
        let stream: Vec<u8> = (0..5_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (part, keeps) in [(4124, 40), (60_000, 3), (300, 1), (20_000, 0)] {
            let mut inbox = Inbox::new();
            let (mut received, mut seen, mut kept) = (0, 0, std::collections::VecDeque::new());
            while seen + part <= stream.len() {
                let end = (received + 30_011).min(stream.len());
                received += receive(&mut inbox, &stream[received..end]);
                while inbox.input().len() >= part {
                    kept.push_back((seen, inbox.lend(0..part)));
                    inbox.consume(part);
                    seen += part;
                }
                assert!(kept.iter().all(|(at, lent)| lent[..64] == stream[*at..at + 64]), "parts of {part} bytes");
                kept.drain(..kept.len().saturating_sub(keeps)).for_each(|(at, lent)| {
                    assert!(*lent == stream[at..at + part], "parts of {part} bytes, {keeps} kept");
                });
                assert!(inbox.buffer.len() <= CAPACITY_BYTES[1], "memory stays bounded");
            }
            assert!(seen > stream.len() / 2);
        }
    }

    #[test]
    fn at_least_the_promised_input_can_wait_and_no_more_than_the_capacity() {
        let mut inbox = Inbox::new();
        let flood = vec![7; 1 << 20];
        let mut received = 0;
        loop {
            match receive(&mut inbox, &flood) {
                0 => break,
                count => received += count,
            }
        }
        assert!((FULL_BYTES..=CAPACITY_BYTES[1]).contains(&received));
        assert_eq!(inbox.input().len(), received);
        inbox.consume(received - FULL_BYTES);
        assert!(inbox.begin().is_none(), "full at the bound");
        inbox.consume(1);
        assert!(inbox.begin().is_some(), "not full below the bound");
    }

    #[test]
    fn a_message_of_the_promised_size_can_wait_whole_wherever_it_begins() {
        const MESSAGE_BYTES: usize = 1_100_000;
        let stream: Vec<u8> =
            (0..12_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut inbox = Inbox::new();
        inbox.widen(MESSAGE_BYTES);
        let (mut received, mut seen) = (0, 0);
        while seen + MESSAGE_BYTES <= stream.len() {
            while inbox.input().len() < MESSAGE_BYTES {
                let end = (received + 90_001).min(stream.len());
                let count = receive(&mut inbox, &stream[received..end]);
                assert!(count > 0 || received == stream.len(), "a receive is possible until a message is whole");
                received += count;
            }
            assert!(inbox.input()[..MESSAGE_BYTES] == stream[seen..seen + MESSAGE_BYTES]);
            assert!(inbox.buffer.len() <= 4 * MESSAGE_BYTES, "memory stays bounded");
            inbox.consume(MESSAGE_BYTES);
            seen += MESSAGE_BYTES;
        }
    }
}
