//! Batches: consecutive records on their way to the log memory, and to the partner.
//!
//! ```text
//! OpenBatch: records are added --close--> Batch: stored, in one part or several --> its bytes go, once the partner has them too
//! ```
//!
//! A batch that is closed never changes, so both ways share its bytes.

use crate::{
    base::Lsn,
    format::record::{Draft, RECORD_HEADER_BYTES, RawRecord, RecordPlace, record_bytes},
};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// A batch that takes records.
#[derive(Debug)]
pub(super) struct OpenBatch {
    start: Lsn,
    end: Lsn,
    bytes: Vec<u8>,
}

impl OpenBatch {
    /// A batch that begins at `start`, on a unit. `buffer` is memory to use again; what it holds is dropped.
    pub(super) fn new(start: Lsn, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { start, end: start, bytes: buffer }
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Adds a record with a payload in parts, of `payload_bytes` together.
    pub(super) fn put(&mut self, place: &RecordPlace, draft: &Draft, payload: &[&[u8]], payload_bytes: u64) {
        assert_eq!(place.lsn, self.end, "records follow each other");
        let total = record_bytes(payload_bytes);
        let start = self.bytes.len();
        let header_end = start + index(RECORD_HEADER_BYTES);
        self.bytes.resize(header_end, 0);
        for part in payload {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(start + index(total), 0);
        let raw = RawRecord::new(place, draft, payload_bytes, &self.bytes[header_end..]);
        self.bytes[start..header_end].copy_from_slice(raw.as_bytes());
        self.end = self.end.plus(total);
    }

    /// Adds a pad of `total_bytes`, of which `written_bytes` are stored: less only at the end of the ring.
    pub(super) fn pad(&mut self, place: &RecordPlace, time_ns: u64, total_bytes: u64, written_bytes: u64) {
        assert_eq!(place.lsn, self.end, "records follow each other");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(RawRecord::pad(place, time_ns, total_bytes).as_bytes());
        self.bytes.resize(start + index(written_bytes), 0);
        self.end = self.end.plus(total_bytes);
    }

    /// The batch, closed. Where many may be kept, memory that it does not need is given back.
    pub(super) fn close(mut self, is_kept: bool) -> Batch {
        if is_kept && self.bytes.capacity() > 2 * self.bytes.len() {
            self.bytes.shrink_to_fit();
        }
        Batch { start: self.start, end: self.end, bytes: Arc::new(self.bytes), stored: 0 }
    }
}

/// A batch that is closed.
#[derive(Debug)]
pub(super) struct Batch {
    /// Position of the first byte; on a unit.
    pub(super) start: Lsn,
    /// Position after the last record. Beyond the last byte only when a `Pad` to the end of the ring closed the batch.
    pub(super) end: Lsn,
    pub(super) bytes: Arc<Vec<u8>>,
    /// How many of `bytes` were given to a persist; on a unit.
    stored: usize,
}

impl Batch {
    /// The next bytes to store, at most `room_bytes`, and their position.
    pub(super) fn next_part(&mut self, room_bytes: u64) -> (Lsn, &[u8]) {
        let from = self.stored;
        let length = (self.bytes.len() - from).min(usize::try_from(room_bytes).unwrap_or(usize::MAX));
        self.stored += length;
        (self.start.plus(from as u64), &self.bytes[from..from + length])
    }

    pub(super) fn is_stored(&self) -> bool {
        self.stored == self.bytes.len()
    }

    /// Position after the bytes that were stored.
    pub(super) fn stored_end(&self) -> Lsn {
        self.start.plus(self.stored as u64)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a batch is small")
}
