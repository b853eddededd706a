//! Reads a ring in the order of positions, ahead of its consumer, in bounded memory.
//!
//! # Invariants
//!
//! 1. `start` to `start + buffer.len()` are the positions in `buffer`; reads in flight follow it without a gap.
//! 2. Buffered bytes and bytes in flight together are at most [`WINDOW_BYTES`], and every byte is read once.

use crate::{
    base::{Lsn, limits::BLOCK_BYTES},
    changelog::ring::Ring,
    format::record::RECORD_BYTES_MAX,
};
use std::collections::VecDeque;
use twinlog_device::{DeviceError, LogCompletion, LogMemory, Token};

/// Bytes of one read: what the log memory allows at most, and enough to keep any disk busy.
const CHUNK_BYTES: u64 = 1 << 20;

/// Bytes buffered and in flight: two reads fly while the longest record waits to be complete.
const WINDOW_BYTES: u64 = 4 * CHUNK_BYTES;

const _: () = assert!(WINDOW_BYTES >= RECORD_BYTES_MAX + 2 * CHUNK_BYTES);

/// A read in flight, or its bytes.
#[derive(Debug)]
struct Flight {
    token: Token,
    length: u64,
    bytes: Option<Vec<u8>>,
}

/// Reads the positions `start..limit` of a ring.
#[derive(Debug)]
pub(super) struct RingReader<L> {
    log: L,
    ring: Ring,
    buffer: Vec<u8>,
    start: u64,
    /// Next position to read; on a block.
    next: u64,
    /// Where reading ends; on a block.
    limit: u64,
    flights: VecDeque<Flight>,
    next_token: u64,
}

impl<L: LogMemory> RingReader<L> {
    /// Reads at most one lap and the rest of a block; `from` and `limit` are rounded outwards to blocks.
    pub(super) fn new(log: L, ring: Ring, from: Lsn, limit: Lsn) -> Self {
        let start = from.0 / BLOCK_BYTES * BLOCK_BYTES;
        let limit = limit.0.next_multiple_of(BLOCK_BYTES);
        assert!(limit - start <= ring.bytes() + BLOCK_BYTES, "one lap is all there is");
        Self { log, ring, buffer: Vec::new(), start, next: start, limit, flights: VecDeque::new(), next_token: 0 }
    }

    /// Collects finished reads. Further ones start here and as room for them is [released](Self::release).
    pub(super) fn pump(&mut self) -> Result<(), DeviceError> {
        self.start_reads();
        let mut completions: Vec<LogCompletion> = Vec::new();
        self.log.poll(&mut completions);
        for completion in completions {
            let flight = self.flights.iter_mut().find(|flight| flight.token == completion.token);
            let flight = flight.expect("the log memory returns each token once");
            let bytes = completion.result?;
            assert_eq!(bytes.len() as u64, flight.length, "a read is whole or an error");
            flight.bytes = Some(bytes);
        }
        while self.flights.front().is_some_and(|flight| flight.bytes.is_some()) {
            let bytes = self.flights.pop_front().and_then(|flight| flight.bytes).expect("seen above");
            if self.buffer.is_empty() {
                self.buffer = bytes;
            } else {
                self.buffer.extend_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// The bytes from `lsn` that are buffered: none while they are on their way.
    pub(super) fn bytes(&self, lsn: Lsn) -> &[u8] {
        let skip = lsn.0.checked_sub(self.start).expect("released bytes are not asked for again");
        usize::try_from(skip).ok().and_then(|skip| self.buffer.get(skip..)).unwrap_or(&[])
    }

    /// The `length` bytes from `lsn`, once they are all buffered.
    pub(super) fn exactly(&self, lsn: Lsn, length: u64) -> Option<&[u8]> {
        usize::try_from(length).ok().and_then(|length| self.bytes(lsn).get(..length))
    }

    /// Drops what lies before `lsn`, and starts the reads that this makes room for: before one of those in flight ends, nobody may call again.
    pub(super) fn release(&mut self, lsn: Lsn) {
        let skip = usize::try_from(lsn.0.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.buffer.len());
        // Moving the rest down costs as much as it keeps: only when that is the smaller part, or for the next read.
        if skip == self.buffer.len() || skip as u64 >= CHUNK_BYTES {
            self.buffer.drain(..skip);
            self.start += skip as u64;
            self.start_reads();
        }
    }

    /// The log memory.
    ///
    /// # Panics
    /// While reads are in flight.
    pub(super) fn into_log(self) -> L {
        assert!(self.idle(), "every read has come back");
        self.log
    }

    /// Whether no read is in flight.
    pub(super) fn idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether everything was read.
    pub(super) fn finished(&self) -> bool {
        self.next == self.limit && self.idle()
    }

    /// Starts no further read.
    pub(super) fn stop(&mut self) {
        self.limit = self.next;
    }

    fn start_reads(&mut self) {
        while self.next < self.limit && self.log.room() > 0 {
            let before_wrap = self.ring.bytes_before_wrap(Lsn(self.next));
            let length = CHUNK_BYTES.min(self.limit - self.next).min(before_wrap);
            if self.next - self.start + length > WINDOW_BYTES {
                break;
            }
            let token = Token(self.next_token);
            self.next_token += 1;
            let bytes = usize::try_from(length).expect("at most a chunk");
            self.log.read(token, self.ring.region_offset(Lsn(self.next)), bytes);
            self.flights.push_back(Flight { token, length, bytes: None });
            self.next += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use twinlog_device::Wait;
    use twinlog_sim::{Agenda, LogMedium, LogShape, SimWorld};

    /// Who waits for the end of a read is not called before it: what there is room for must be under way by then.
    #[test]
    fn released_room_is_read_into_at_once() {
        let (world, region_bytes) = (SimWorld::new(1), 16 << 20);
        let shape = LogShape { latency_ns: (1000, 1000), ..LogShape::file(region_bytes) };
        let medium = LogMedium::new(&world, "log", shape);
        let agenda = Agenda::new(&world);
        let ring = Ring::of_region(region_bytes).expect("whole blocks");
        let mut reader = RingReader::new(medium.open(&agenda), ring, Lsn(0), Lsn(8 << 20));
        while reader.buffer.is_empty() {
            reader.pump().expect("no fault");
            agenda.turn(Wait::UpTo(Duration::from_secs(1)));
        }
        let end = Lsn(reader.start + reader.buffer.len() as u64);
        reader.release(end);
        assert_eq!((reader.start, reader.next - reader.start), (end.0, WINDOW_BYTES));
    }
}
