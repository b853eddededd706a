//! The mirror of a lane, at the other node: takes the owner's batches, persists them at the same place, acknowledges them.
//!
//! # Life cycle
//!
//! ```text
//!            begin                       close
//!   opened --------> taking writes -----------------> closed: its log memory is scanned, or the node ends
//!                      |       ^           every write is refused from here on
//!                      +-------+
//!                        begin: another stretch of positions
//! ```
//!
//! # Invariants
//!
//! 1. `start <= durable <= expected`. A write is taken whole and only at `expected`, so what is durable is a gapless part of the
//!    owner's stream, byte by byte, and ends where one of its batches does.
//! 2. `durable` moves only when the persist of those bytes has completed, in the order of positions; nothing else is acknowledged.
//! 3. Nothing of an epoch below the highest that was seen is taken (rule R4). The caller says which it knows of: what its register says.
//! 4. What the partner sends is judged before it is used: no byte of it is stored outside the ring, over bytes whose persist is in
//!    flight, or where it would wrap; bytes that wait are bounded.
//! 5. After a failed persist nothing is taken any more, and every call returns that error. After `close` every write is refused.
//!
//! # What arrives, and what becomes of it
//!
//! | a write | is |
//! |---|---|
//! | at `expected` | taken |
//! | all of it before `expected` | a repetition: passed over; `durable` acknowledges it, or will |
//! | beyond `expected` | refused: writes in between were lost |
//! | of an epoch that is over | refused: its sender was fenced, and does not know yet |
//! | before `begin`, or after `close` | refused |
//! | at no possible place, or no record of this lane | refused: a defect, or another lane's |
//!
//! A refused write changes nothing. What the owner does about it is in `lane/mirroring.rs`: it asks for `expected` and sends again.

use crate::{
    base::{Epoch, Lsn, limits::BLOCK_BYTES, planted},
    changelog::{
        lane::{BATCH_BYTES_MAX, MIRROR_BYTES_MAX},
        persists::Persists,
        ring::{LSN_MAX, Ring},
    },
    format::{
        lane_header::LaneIdentity,
        record::{RECORD_HEADER_BYTES, RecordExpected, RecordFault, RecordHeader},
    },
};
use std::collections::VecDeque;
use thiserror::Error;
use twinlog_device::{DeviceError, LogInfo, LogMemory};

/// Persists in flight: while one is, what arrives shares the next; a second hides the turn-around.
const PERSISTS_MAX: usize = 2;

/// Bytes of one persist; longer runs are cut, so that their parts overlap.
const PERSIST_BYTES_MAX: u64 = 1 << 20;

/// Bytes that may wait for room in the log memory: all that an owner keeps, filled up to a unit.
const PENDING_BYTES_MAX: u64 = MIRROR_BYTES_MAX + BLOCK_BYTES;

/// Why a write, or a new start, is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MirrorRefusal {
    /// This node is about to take the pool over, or to stop.
    #[error("the mirror is closed")]
    Closed,
    /// Nothing was begun since this node started.
    #[error("mirroring has not begun")]
    NotBegun,
    /// The log memory failed.
    #[error("the mirror portion has failed: {0}")]
    Failed(DeviceError),
    /// Its sender is owner no more.
    #[error("epoch {given} is over: epoch {seen} has begun")]
    OldEpoch {
        /// The sender's.
        given: Epoch,
        /// The highest that was seen.
        seen: Epoch,
    },
    /// Something is missing before it, or it covers a part of what is there.
    #[error("a write at position {start} where one at position {expected} is expected")]
    Gap {
        /// Where it begins.
        start: Lsn,
        /// Where it should.
        expected: Lsn,
    },
    /// No lane of this size has a batch there.
    #[error("{length_bytes} bytes for positions {start} to {end} fit nowhere in the ring")]
    Misplaced {
        /// Where it begins.
        start: Lsn,
        /// Where it ends.
        end: Lsn,
        /// How many bytes it has.
        length_bytes: u64,
    },
    /// It does not begin with a record of this lane.
    #[error("the write at position {start} begins with {fault}")]
    NoRecord {
        /// Where it begins.
        start: Lsn,
        /// What is there instead.
        fault: RecordFault,
    },
    /// More waits than an owner may send.
    #[error("{0} bytes wait for the mirror portion already")]
    TooMuch(u64),
}

/// What a mirror lane has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorFigures {
    /// Writes taken.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Persists of them.
    pub persists: u64,
    /// Writes that were there already.
    pub repetitions: u64,
    /// Writes and starts that were refused.
    pub refused: u64,
}

/// Bytes that were stored since the last persist.
#[derive(Debug)]
struct Run {
    /// Where the next store goes on.
    offset_bytes: u64,
    length_bytes: u64,
    /// End of the last write whose every byte was stored.
    end: Option<Lsn>,
}

/// A write, or the rest of one, that waits for room.
#[derive(Debug)]
struct Pending {
    start: Lsn,
    end: Lsn,
    bytes: Vec<u8>,
    /// How many of `bytes` were stored.
    stored: usize,
}

/// The mirror of one lane.
#[derive(Debug)]
pub struct MirrorLane<L> {
    log: L,
    identity: LaneIdentity,
    ring: Ring,
    /// The highest that was seen.
    epoch: Epoch,
    /// The owner's epoch when the stretch began, and its first position; `None` before the first `begin`.
    begun: Option<(Epoch, Lsn)>,
    expected: Lsn,
    durable: Lsn,
    run: Option<Run>,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    persists: Persists,
    /// Persists of an earlier stretch are in flight: they may be of the same bytes as writes of this one.
    is_draining: bool,
    is_closed: bool,
    figures: MirrorFigures,
}

impl<L: LogMemory> MirrorLane<L> {
    /// Opens a formatted lane as a mirror. `epoch` is the highest that this node durably knows of: nothing older is taken.
    ///
    /// # Panics
    /// When the log memory is smaller than two blocks.
    #[must_use]
    pub fn open(log: L, identity: LaneIdentity, epoch: Epoch) -> Self {
        let ring = Ring::of_region(log.info().size_bytes).expect("log memory has whole blocks, a header and a ring");
        Self {
            log,
            identity,
            ring,
            epoch,
            begun: None,
            expected: Lsn(0),
            durable: Lsn(0),
            run: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            persists: Persists::default(),
            is_draining: false,
            is_closed: false,
            figures: MirrorFigures::default(),
        }
    }

    /// The owner's writes begin at `start`; what the lane holds means nothing any more. Said again in the same epoch, it changes nothing;
    /// in a later one the owner may have written other bytes at the same positions, or none.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed.
    pub fn begin(&mut self, epoch: Epoch, start: Lsn) -> Result<(), MirrorRefusal> {
        let judged = self.judge_begin(epoch, start);
        self.figures.refused += u64::from(judged.is_err());
        judged?;
        self.epoch = self.epoch.max(epoch);
        let is_repetition = match self.begun {
            Some((_, begun)) if planted::is("mirror-begin-epoch-not-compared") => begun == start,
            begun => begun == Some((epoch, start)),
        };
        if is_repetition {
            return Ok(());
        }
        (self.begun, self.expected, self.durable) = (Some((epoch, start)), start, start);
        self.drop_pending();
        self.persists.forget_positions();
        if let Some(run) = &mut self.run {
            run.end = None;
        }
        self.is_draining = self.run.is_some() || self.persists.len() > 0;
        Ok(())
    }

    /// A batch of the owner, from `start` up to `end`. It is acknowledged by [`Self::durable`], once [`Self::poll`] has seen it persisted.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed.
    pub fn write(&mut self, epoch: Epoch, start: Lsn, end: Lsn, bytes: &[u8]) -> Result<(), MirrorRefusal> {
        let judged = self.judge_write(epoch, start, end, bytes);
        self.figures.refused += u64::from(judged.is_err());
        judged?;
        self.epoch = self.epoch.max(epoch);
        if start < self.expected {
            self.figures.repetitions += 1;
            return Ok(());
        }
        self.expected = end;
        self.figures.writes += 1;
        self.figures.write_bytes += bytes.len() as u64;
        let may_store = self.pending.is_empty() && !self.is_draining;
        let stored = if may_store { self.store(start, end, bytes) } else { 0 };
        if stored < bytes.len() {
            let rest = bytes[stored..].to_vec();
            self.pending_bytes += rest.len() as u64;
            self.pending.push_back(Pending { start: start.plus(stored as u64), end, bytes: rest, stored: 0 });
        }
        Ok(())
    }

    /// Collects what has finished, and starts the next persist: everything that was taken so far.
    ///
    /// # Errors
    /// The log memory's error; the same one again at every later call.
    pub fn poll(&mut self) -> Result<(), DeviceError> {
        self.collect()?;
        self.store_pending();
        if self.run.is_some() && self.start_persist() {
            // Persistent memory has finished by now.
            self.collect()?;
            self.store_pending();
        }
        Ok(())
    }

    /// What is acknowledged: every byte from the stretch's start up to here is durable. `None` before the first `begin`.
    #[must_use]
    pub fn durable(&self) -> Option<Lsn> {
        self.begun.map(|_| if planted::is("mirror-acknowledges-early") { self.expected } else { self.durable })
    }

    /// Where the next write begins; what the owner asks for after a reconnect. `None` before the first `begin`, and after `close`.
    #[must_use]
    pub fn expected(&self) -> Option<Lsn> {
        self.begun.filter(|_| !self.is_closed).map(|_| self.expected)
    }

    /// Refuses everything from here on. What waits for the log memory is dropped: it was not acknowledged.
    pub fn close(&mut self) {
        self.is_closed = true;
        self.drop_pending();
    }

    /// Whether nothing is in flight. Polled after `close`, a lane becomes idle, or its log memory has failed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.persists.len() == 0 && self.pending.is_empty() && (self.run.is_none() || self.persists.has_failed())
    }

    /// The log memory, to be scanned.
    ///
    /// # Panics
    /// Unless the lane was closed and is idle.
    #[must_use]
    pub fn into_log(self) -> L {
        assert!(self.is_closed && self.is_idle(), "a mirror lane is closed, and what it stores has ended");
        self.log
    }

    /// The highest epoch that was seen.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What was done.
    #[must_use]
    pub fn figures(&self) -> MirrorFigures {
        self.figures
    }

    /// Whose lane it is.
    #[must_use]
    pub fn identity(&self) -> &LaneIdentity {
        &self.identity
    }

    /// The log memory it lives in.
    #[must_use]
    pub fn info(&self) -> &LogInfo {
        self.log.info()
    }

    fn judge(&self, epoch: Epoch) -> Result<(), MirrorRefusal> {
        if self.is_closed {
            return Err(MirrorRefusal::Closed);
        }
        self.persists.check().map_err(MirrorRefusal::Failed)?;
        if epoch < self.epoch && !planted::is("mirror-epoch-not-compared") {
            return Err(MirrorRefusal::OldEpoch { given: epoch, seen: self.epoch });
        }
        Ok(())
    }

    fn judge_begin(&self, epoch: Epoch, start: Lsn) -> Result<(), MirrorRefusal> {
        self.judge(epoch)?;
        if !self.may_begin(start) {
            return Err(MirrorRefusal::Misplaced { start, end: start, length_bytes: 0 });
        }
        match self.begun {
            Some((_, expected)) if start < expected => Err(MirrorRefusal::Gap { start, expected }),
            _ => Ok(()),
        }
    }

    fn judge_write(&self, epoch: Epoch, start: Lsn, end: Lsn, bytes: &[u8]) -> Result<(), MirrorRefusal> {
        self.judge(epoch)?;
        if self.begun.is_none() {
            return Err(MirrorRefusal::NotBegun);
        }
        let length_bytes = bytes.len() as u64;
        if !self.has_place(start, end, length_bytes) {
            return Err(MirrorRefusal::Misplaced { start, end, length_bytes });
        }
        let is_repetition = end <= self.expected;
        let is_gap = start > self.expected && !planted::is("mirror-gap-accepted");
        if is_gap || (start < self.expected && !is_repetition) {
            return Err(MirrorRefusal::Gap { start, expected: self.expected });
        }
        if is_repetition {
            return Ok(());
        }
        self.judge_record(epoch, start, bytes).map_err(|fault| MirrorRefusal::NoRecord { start, fault })?;
        if start.plus(length_bytes) > self.durable.plus(self.ring.bytes()) {
            return Err(MirrorRefusal::Misplaced { start, end, length_bytes });
        }
        if self.pending_bytes > 0 && self.pending_bytes + length_bytes > PENDING_BYTES_MAX {
            return Err(MirrorRefusal::TooMuch(self.pending_bytes));
        }
        Ok(())
    }

    /// Whether a record of this lane, of this epoch or before, lies at the beginning: cheap, and no batch ever is another lane's.
    fn judge_record(&self, epoch: Epoch, start: Lsn, bytes: &[u8]) -> Result<(), RecordFault> {
        let expected = RecordExpected { pool: self.identity.pool, lane: self.identity.lane };
        let header = RecordHeader::read(bytes.get(..header_bytes()).unwrap_or_default(), &expected)?;
        if header.lsn != start {
            return Err(RecordFault::OtherPosition(header.lsn));
        }
        if header.epoch > epoch {
            let what = "is of a later epoch than its sender";
            return Err(RecordFault::Unsupported { lsn: start, epoch: header.epoch, what });
        }
        Ok(())
    }

    fn unit_bytes(&self) -> u64 {
        u64::from(self.log.info().unit_bytes)
    }

    fn may_begin(&self, lsn: Lsn) -> bool {
        Ring::may_begin(lsn) && lsn.0.is_multiple_of(self.unit_bytes())
    }

    /// Whether a batch of `length_bytes` can lie at `start` and end at `end`: whole units, no wrap, and longer than its bytes only when it
    /// ends the ring.
    fn has_place(&self, start: Lsn, end: Lsn, length_bytes: u64) -> bool {
        if !self.may_begin(start) || !self.may_begin(end) || start >= end || end >= LSN_MAX {
            return false;
        }
        let (positions, before_wrap) = (end.0 - start.0, self.ring.bytes_before_wrap(start));
        let is_whole = (1..=BATCH_BYTES_MAX).contains(&length_bytes) && length_bytes.is_multiple_of(self.unit_bytes());
        let ends_ring = positions == before_wrap && length_bytes < positions;
        is_whole && length_bytes <= before_wrap && (positions == length_bytes || ends_ring)
    }

    /// Stores as much as there is room for; returns how much.
    fn store(&mut self, start: Lsn, end: Lsn, bytes: &[u8]) -> usize {
        let mut stored = 0;
        while stored < bytes.len() {
            let offset_bytes = self.ring.region_offset(start.plus(stored as u64));
            let room = usize::try_from(self.room_at(offset_bytes)).unwrap_or(usize::MAX);
            let part = &bytes[stored..bytes.len().min(stored.saturating_add(room))];
            if part.is_empty() {
                return stored;
            }
            if planted::is("mirror-keeps-nothing") {
                self.log.store(offset_bytes, &vec![0; part.len()]);
            } else {
                self.log.store(offset_bytes, part);
            }
            let run = self.run.get_or_insert(Run { offset_bytes, length_bytes: 0, end: None });
            run.offset_bytes += part.len() as u64;
            run.length_bytes += part.len() as u64;
            stored += part.len();
        }
        if let Some(run) = &mut self.run {
            run.end = Some(end);
        }
        stored
    }

    /// Bytes that can be stored at an offset of the region: a run that it does not continue is persisted first.
    fn room_at(&mut self, offset_bytes: u64) -> u64 {
        let is_over = |run: &Run| run.offset_bytes != offset_bytes || run.length_bytes >= PERSIST_BYTES_MAX;
        if self.run.as_ref().is_some_and(is_over) && !self.start_persist() {
            return 0;
        }
        let room = PERSIST_BYTES_MAX - self.run.as_ref().map_or(0, |run| run.length_bytes);
        self.log.room_bytes().min(room) / self.unit_bytes() * self.unit_bytes()
    }

    fn store_pending(&mut self) {
        while !self.is_draining
            && let Some(mut front) = self.pending.pop_front()
        {
            let start = front.start.plus(front.stored as u64);
            let stored = self.store(start, front.end, &front.bytes[front.stored..]);
            self.pending_bytes -= stored as u64;
            front.stored += stored;
            if front.stored < front.bytes.len() {
                self.pending.push_front(front);
                return;
            }
        }
    }

    fn drop_pending(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
    }

    /// Queues a persist of the run; false when that has to wait.
    fn start_persist(&mut self) -> bool {
        if self.persists.len() >= PERSISTS_MAX || self.log.room() == 0 {
            return false;
        }
        let end = self.run.take().and_then(|run| run.end);
        self.persists.start(&mut self.log, end);
        self.figures.persists += 1;
        true
    }

    fn collect(&mut self) -> Result<(), DeviceError> {
        if let Some(end) = self.persists.collect(&mut self.log)? {
            assert!(self.durable <= end && end <= self.expected, "persists advance");
            self.durable = end;
        }
        self.is_draining &= self.run.is_some() || self.persists.len() > 0;
        Ok(())
    }
}

fn header_bytes() -> usize {
    usize::try_from(RECORD_HEADER_BYTES).expect("small")
}
