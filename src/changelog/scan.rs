//! One lane at recovery: every record above the applied position, in order, and proof that no answered one is missing.
//!
//! # Life cycle
//!
//! ```text
//! header: whose log is this? --> records: one after the other --> search: is anything whole beyond? --> ended
//! ```
//!
//! # Invariants
//!
//! 1. Records are returned in order, without a gap, each once, from the applied position on; the first position at which no whole
//!    record of this pool, lane, position and a valid epoch lies is the end.
//! 2. Every byte of the ring is read at most once, in bounded memory; one `poll` looks at no more than is buffered.
//! 3. A scan writes nothing: it can be interrupted and repeated, with the same result, until a superblock names a new head.
//!
//! # What lies beyond the end
//!
//! | found beyond the end | meaning |
//! |---|---|
//! | nothing of this lap | clean end |
//! | whole records, none of which knew a position beyond the end as stable | torn tail: a persist in flight when power went; none was answered |
//! | a whole record that knew a position beyond the end as stable | a record that may have been answered is damaged: [`HoleKind::Damaged`] |
//! | a whole record of, or into, a later lap | the lane was used again: a newer consistency point than the given one was durable: [`HoleKind::Overwritten`] |
//!
//! A whole record at the end that this program cannot perform is an error, not an end: a newer program wrote it, and to drop it would
//! lose an answered change.

use crate::{
    base::{Epoch, Lsn, planted},
    changelog::{
        header::ReadHeader,
        reader::RingReader,
        ring::{LSN_MAX, Ring, head_after_recovery},
    },
    format::{
        lane_header::{LaneHeaderError, LaneIdentity},
        record::{
            OwnedRecord, RECORD_ALIGN, RECORD_HEADER_BYTES, RawRecord, RecordExpected, RecordFault, RecordHeader,
        },
    },
};
use thiserror::Error;
use twinlog_device::{DeviceError, LogMemory};

/// What a call of [`Scan::poll`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanStep {
    /// Reads are on their way, or the log memory has no room for one: poll again.
    Pending,
    /// The next change. Pads and marks are not returned.
    Record(OwnedRecord),
    /// There are no more.
    End(ScanEnd),
}

/// Where and how a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEnd {
    /// Position after the last whole record, pads and marks included.
    pub end: Lsn,
    /// Where the lane goes on ([`head_after_recovery`]); the applied position of the superblock that ends the recovery.
    pub new_head: Lsn,
    /// Highest epoch of a record, or the given minimum.
    pub epoch: Epoch,
    /// Why it ended there.
    pub reason: EndReason,
    /// Proof that a record which may have been answered is missing: the pool must not be opened from this lane.
    pub hole: Option<Hole>,
}

/// Why a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Nothing was written beyond the end.
    Clean,
    /// Something was, but not whole, or not without a gap.
    TornTail(RecordFault),
    /// A record of a former owner lies at the end; its epoch is over (rule R4).
    OlderEpoch(Epoch),
    /// The ring is full of records.
    Full,
}

/// A place where a record is missing that may have been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the change log has a hole at position {at} ({fault}): {kind}, as the whole record at position {proof_lsn} proves; \
     the partner's portion of this lane can repair it"
)]
pub struct Hole {
    /// Position of the first missing record.
    pub at: Lsn,
    /// What lies there instead.
    pub fault: RecordFault,
    /// The record that proves it.
    pub proof_lsn: Lsn,
    /// What it proves.
    pub kind: HoleKind,
}

/// Kinds of holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoleKind {
    /// Records from here to this position were stable.
    Damaged {
        /// As far as the proving record knew.
        stable_lsn: Lsn,
    },
    /// The records were overwritten: the consistency point that recovery starts from is not the newest.
    Overwritten,
}

impl std::fmt::Display for HoleKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged { stable_lsn } => write!(formatter, "records up to {stable_lsn} may have been answered"),
            Self::Overwritten => formatter.write_str("it was used again after a newer consistency point"),
        }
    }
}

/// Why a lane cannot be scanned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScanError {
    /// The log memory cannot be read.
    #[error("the change log cannot be read: {0}")]
    Device(#[from] DeviceError),
    /// The region is not the lane that was asked for.
    #[error("{0}")]
    Header(#[from] LaneHeaderError),
    /// A record that may have been answered cannot be performed by this program.
    #[error("the record at position {lsn} {what}; the program that wrote the log, or a newer one, can replay it")]
    Unsupported {
        /// Its position.
        lsn: Lsn,
        /// What it does, as the rest of a sentence.
        what: &'static str,
    },
    /// The given position is none.
    #[error("{0} is not a position where a record can begin")]
    Position(Lsn),
}

/// What recovery knows of a lane before it reads it.
#[derive(Clone, Copy, Debug)]
pub struct ScanStart {
    /// Whose lane it is.
    pub identity: LaneIdentity,
    /// Applied position of the newest superblock.
    pub applied: Lsn,
    /// Epoch of the newest superblock: records of older ones are not replayed.
    pub epoch_min: Epoch,
}

#[derive(Debug)]
enum Phase<L> {
    /// The lane header is on its way.
    Header(ReadHeader<L>),
    Records(RingReader<L>),
    /// Looking through the rest of the ring, up to `next` so far.
    Search {
        reader: RingReader<L>,
        fault: RecordFault,
        next: Lsn,
        seen_beyond: bool,
    },
    Ended {
        reader: RingReader<L>,
        end: ScanEnd,
    },
    /// After an error, or in the middle of a call.
    Broken(Option<ScanError>),
}

/// The scan of one lane.
#[derive(Debug)]
pub struct Scan<L> {
    phase: Phase<L>,
    start: ScanStart,
    expected: RecordExpected,
    ring: Ring,
    position: Lsn,
    /// Highest epoch seen; grows along the lane.
    epoch: Epoch,
}

impl<L: LogMemory> Scan<L> {
    /// A scan of the lane in `log`.
    ///
    /// # Panics
    /// When the log memory is smaller than two blocks.
    #[must_use]
    pub fn new(log: L, start: ScanStart) -> Self {
        let ring = Ring::of_region(log.info().size_bytes).expect("log memory has whole blocks, a header and a ring");
        let expected = RecordExpected { pool: start.identity.pool, lane: start.identity.lane };
        let phase = if Ring::may_begin(start.applied) {
            Phase::Header(ReadHeader::new(log))
        } else {
            Phase::Broken(Some(ScanError::Position(start.applied)))
        };
        Self { phase, start, expected, ring, position: start.applied, epoch: start.epoch_min }
    }

    /// Goes on.
    ///
    /// # Errors
    /// Why the lane cannot be scanned; the same at every later call.
    pub fn poll(&mut self) -> Result<ScanStep, ScanError> {
        let phase = std::mem::replace(&mut self.phase, Phase::Broken(None));
        let (phase, step) = match phase {
            Phase::Header(header) => self.poll_header(header),
            Phase::Records(reader) => self.poll_records(reader),
            Phase::Search { reader, fault, next, seen_beyond } => self.poll_search(reader, fault, next, seen_beyond),
            Phase::Ended { reader, end } => poll_ended(reader, end),
            Phase::Broken(error) => Err(error.expect("a broken scan says why")),
        }
        .inspect_err(|error| self.phase = Phase::Broken(Some(error.clone())))?;
        self.phase = phase;
        Ok(step)
    }

    /// Whether reads are on their way, whose end gives the reactor a turn. Before that a scan that was pending has nothing to do: it has looked at
    /// what was read, and asked for whatever there is room for.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        match &self.phase {
            Phase::Header(header) => header.is_awaited(),
            Phase::Records(reader) | Phase::Search { reader, .. } | Phase::Ended { reader, .. } => !reader.idle(),
            Phase::Broken(_) => false,
        }
    }

    /// The log memory, for the lane to go on in.
    ///
    /// # Panics
    /// Before the end.
    #[must_use]
    pub fn into_log(self) -> L {
        let Phase::Ended { reader, .. } = self.phase else { panic!("the scan has ended") };
        reader.into_log()
    }

    /// Where a lap that begins at the applied position ends.
    fn limit(&self) -> Lsn {
        self.start.applied.plus(self.ring.bytes())
    }

    fn poll_header(&mut self, mut header: ReadHeader<L>) -> Result<(Phase<L>, ScanStep), ScanError> {
        let Some(found) = header.poll()? else { return Ok((Phase::Header(header), ScanStep::Pending)) };
        found.must_be(&self.start.identity)?;
        self.poll_records(RingReader::new(header.into_log(), self.ring, self.start.applied, self.limit()))
    }

    fn poll_records(&mut self, mut reader: RingReader<L>) -> Result<(Phase<L>, ScanStep), ScanError> {
        reader.pump()?;
        loop {
            if self.position == self.limit() {
                return self.end(reader, EndReason::Full, None);
            }
            match self.next_record(&reader) {
                Ok(None) => {
                    reader.release(self.position);
                    return Ok((Phase::Records(reader), ScanStep::Pending));
                }
                Ok(Some(record)) => {
                    self.position = record.end;
                    self.epoch = record.epoch;
                    reader.release(self.position);
                    if record.draft.kind.is_change() {
                        return Ok((Phase::Records(reader), ScanStep::Record(record)));
                    }
                }
                Err(RecordFault::Unsupported { lsn, what, .. }) => return Err(ScanError::Unsupported { lsn, what }),
                Err(fault) => return self.poll_search(reader, fault, self.position, false),
            }
        }
    }

    /// The record at the position; `None` while it is not all buffered.
    fn next_record(&self, reader: &RingReader<L>) -> Result<Option<OwnedRecord>, RecordFault> {
        let Some(bytes) = reader.exactly(self.position, RECORD_HEADER_BYTES) else { return Ok(None) };
        let header = self.place(RecordHeader::read(bytes, &self.expected))?;
        let Some(body) = reader.exactly(self.position.plus(RECORD_HEADER_BYTES), header.body_bytes()) else {
            return Ok(None);
        };
        OwnedRecord::new(&header, body).map(Some)
    }

    /// Compares a header's place with the position: only a record that belongs here is one, or is one that is not supported.
    fn place(&self, read: Result<RecordHeader, RecordFault>) -> Result<RecordHeader, RecordFault> {
        let (lsn, epoch) = match &read {
            Ok(header) => (header.lsn, header.epoch),
            Err(RecordFault::Unsupported { lsn, epoch, .. }) => (*lsn, *epoch),
            Err(fault) => return Err(*fault),
        };
        if lsn != self.position && !planted::is("record-position-not-compared") {
            return Err(RecordFault::OtherPosition(lsn));
        }
        if epoch < self.epoch && !planted::is("record-epoch-not-compared") {
            return Err(RecordFault::OlderEpoch(epoch));
        }
        let header = read?;
        if header.end.0 - header.lsn.0 > self.ring.bytes_before_wrap(header.lsn) {
            return Err(RecordFault::Unsupported { lsn, epoch, what: "reaches beyond the end of the ring" });
        }
        if header.end > self.limit() {
            return Err(RecordFault::NextLap);
        }
        Ok(header)
    }

    fn poll_search(
        &self,
        mut reader: RingReader<L>,
        fault: RecordFault,
        mut next: Lsn,
        mut seen_beyond: bool,
    ) -> Result<(Phase<L>, ScanStep), ScanError> {
        reader.pump()?;
        while next < self.limit() && !planted::is("hole-not-searched") {
            let Some(bytes) = reader.exactly(next, RECORD_HEADER_BYTES) else {
                reader.release(next);
                return Ok((Phase::Search { reader, fault, next, seen_beyond }, ScanStep::Pending));
            };
            if RawRecord::looks_like_one(bytes) {
                match self.judge_beyond(bytes, next) {
                    Beyond::Nothing => {}
                    Beyond::Record => seen_beyond = true,
                    Beyond::Proof(proof_lsn, kind) => {
                        let hole = Hole { at: self.position, fault, proof_lsn, kind };
                        return self.end(reader, EndReason::TornTail(fault), Some(hole));
                    }
                }
            }
            next = next.plus(RECORD_ALIGN);
        }
        let untouched = matches!(
            fault,
            RecordFault::NotARecord
                | RecordFault::OtherPool
                | RecordFault::OtherLane(_)
                | RecordFault::OtherPosition(_)
        );
        let reason = match fault {
            _ if seen_beyond => EndReason::TornTail(fault),
            RecordFault::OlderEpoch(epoch) => EndReason::OlderEpoch(epoch),
            _ if untouched => EndReason::Clean,
            _ => EndReason::TornTail(fault),
        };
        self.end(reader, reason, None)
    }

    /// What the bytes at position `slot`, beyond the end, say about the end.
    fn judge_beyond(&self, bytes: &[u8], slot: Lsn) -> Beyond {
        let (lsn, end, epoch, stable_lsn) = match RecordHeader::read(bytes, &self.expected) {
            Ok(header) => (header.lsn, header.end, header.epoch, header.stable_lsn),
            Err(RecordFault::Unsupported { lsn, epoch, .. }) => (lsn, lsn, epoch, Lsn(0)),
            Err(_) => return Beyond::Nothing,
        };
        // Client data may hold a copy of any record; a copy lies elsewhere in the ring or carries a position of the past.
        let here = lsn.0 % self.ring.bytes() == slot.0 % self.ring.bytes();
        if !here || epoch < self.epoch {
            return Beyond::Nothing;
        }
        if (lsn >= self.limit() || end > self.limit()) && lsn < LSN_MAX {
            return Beyond::Proof(lsn, HoleKind::Overwritten);
        }
        if lsn != slot || slot == self.position {
            return Beyond::Nothing;
        }
        if stable_lsn > self.position {
            return Beyond::Proof(lsn, HoleKind::Damaged { stable_lsn });
        }
        Beyond::Record
    }

    fn end(
        &self,
        mut reader: RingReader<L>,
        reason: EndReason,
        hole: Option<Hole>,
    ) -> Result<(Phase<L>, ScanStep), ScanError> {
        reader.stop();
        let new_head = head_after_recovery(self.position, self.ring.bytes());
        let end = ScanEnd { end: self.position, new_head, epoch: self.epoch, reason, hole };
        poll_ended(reader, end)
    }
}

/// What bytes beyond the end say.
enum Beyond {
    Nothing,
    Record,
    Proof(Lsn, HoleKind),
}

/// Waits for the reads that were started ahead, so that the log memory can be given back.
fn poll_ended<L: LogMemory>(mut reader: RingReader<L>, end: ScanEnd) -> Result<(Phase<L>, ScanStep), ScanError> {
    reader.pump()?;
    let step = if reader.idle() { ScanStep::End(end) } else { ScanStep::Pending };
    Ok((Phase::Ended { reader, end }, step))
}
