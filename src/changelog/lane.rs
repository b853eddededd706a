//! One lane in use: records are appended, persisted in batches, and trimmed once a consistency point contains them.
//!
//! # Invariants
//!
//! 1. `applied <= appended <= min(applied, durable) + ring`, `durable <= appended`: nothing is overwritten that a
//!    recovery could need, and no two writes of the same bytes are in flight.
//! 2. Bytes that were given to a persist are never written again in the same lap: a batch begins and ends on a unit of the
//!    log memory, filled up by a `Pad`, so a torn write of a later batch cannot hurt an earlier one.
//! 3. A record never wraps around the end of the ring: a `Pad` fills the rest of the lap.
//! 4. `durable` moves only when a persist has completed, in the order of positions, and always to the end of a record: in the middle
//!    of one it would, as a later record's `stable_lsn`, prove something of a record that was never whole.
//! 5. After a failed persist nothing is accepted any more, and `poll` returns that error for ever.
//!
//! # Life of a record
//!
//! ```text
//! append -> waiting in a batch -> store, persist -> durable -> (stable, answered) -> contained in a CP: trim -> overwritten
//! ```
//!
//! # Marks
//!
//! The newest record of a lane has no successor whose `stable_lsn` could prove that it was durable, so damage to it looks like a
//! torn tail. When a lane has been quiet for [`LaneTuning::mark_after`], a `Mark` proves all before itself; damage to the mark
//! loses nothing.

use crate::{
    base::{
        Epoch, Lsn,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
        planted,
    },
    changelog::ring::{LSN_MAX, Ring},
    format::{
        lane_header::{LaneIdentity, RawLaneHeader},
        record::{Draft, RECORD_HEADER_BYTES, RawRecord, RecordKind, RecordPlace, record_bytes},
    },
};
use std::{collections::VecDeque, time::Duration};
use twinlog_device::{DeviceError, LogCompletion, LogInfo, LogMemory, Nanos, Token};
use zerocopy::IntoBytes;

/// Bytes that may wait for their persist in this lane's memory: eight of the largest changes. More is back-pressure.
pub const WAITING_BYTES_MAX: u64 = 8 * CHANGE_BYTES_MAX;

/// How a lane trades latency for throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTuning {
    /// Persists in flight, 1 to 8. With one, everything that arrives meanwhile shares the next; a second hides the turn-around.
    pub persists_in_flight_max: usize,
    /// Bytes of one persist; a multiple of 4096. Larger batches are cut, so that their parts overlap.
    pub persist_bytes_max: u64,
    /// How long a lane is quiet before it appends a `Mark`.
    pub mark_after: Duration,
}

impl Default for LaneTuning {
    fn default() -> Self {
        Self { persists_in_flight_max: 2, persist_bytes_max: 1 << 20, mark_after: Duration::from_millis(5) }
    }
}

/// Bytes on their way to the log memory: consecutive in the ring.
#[derive(Debug)]
struct Batch {
    /// Position of the first byte; on a unit.
    start: Lsn,
    /// Position after the last record. Beyond the last byte only when a `Pad` to the end of the ring closed the batch.
    end: Lsn,
    bytes: Vec<u8>,
    /// How many of `bytes` were given to a persist; on a unit.
    stored: usize,
    /// Nothing may be added.
    closed: bool,
}

impl Batch {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.stored
    }
}

/// A persist in flight.
#[derive(Debug)]
struct Flight {
    token: Token,
    end: Lsn,
    done: bool,
}

/// One lane, written by one reactor.
#[derive(Debug)]
pub struct Lane<L> {
    log: L,
    identity: LaneIdentity,
    ring: Ring,
    epoch: Epoch,
    tuning: LaneTuning,
    applied: Lsn,
    durable: Lsn,
    appended: Lsn,
    /// Oldest first; only the last may be open.
    batches: VecDeque<Batch>,
    waiting_bytes: u64,
    /// Oldest first.
    flights: VecDeque<Flight>,
    next_token: u64,
    completions: Vec<LogCompletion>,
    failed: Option<DeviceError>,
    /// End of the newest record that is a change; zero when none was appended.
    last_change_end: Lsn,
    /// Wall clock of the newest change, for pads and marks.
    last_time_ns: u64,
    /// Whether a change was appended since the last mark.
    mark_wanted: bool,
    /// Last poll that saw something happen, and what `appended` was then.
    active_at: Nanos,
    active_appended: Lsn,
    /// The buffer of a finished batch, to be used again.
    spare: Vec<u8>,
}

impl<L: LogMemory> Lane<L> {
    /// Opens a formatted lane for appending at `head`, where nothing is left to replay.
    ///
    /// `head` is a multiple of 4096: zero for a new lane, [`head_after_recovery`](crate::changelog::head_after_recovery) after a scan;
    /// and it is the applied position of the newest durable superblock.
    ///
    /// # Panics
    /// When the log memory is smaller than two blocks or `head` is no such position.
    #[must_use]
    pub fn open_at(log: L, identity: LaneIdentity, epoch: Epoch, head: Lsn) -> Self {
        Self::open_tuned(log, identity, epoch, head, LaneTuning::default())
    }

    /// As [`Self::open_at`], with other tuning.
    #[must_use]
    pub fn open_tuned(log: L, identity: LaneIdentity, epoch: Epoch, head: Lsn, tuning: LaneTuning) -> Self {
        let ring = Ring::of_region(log.info().size_bytes).expect("log memory has whole blocks, a header and a ring");
        assert!(
            Ring::may_begin(head) && head.0.is_multiple_of(BLOCK_BYTES),
            "a lane opens on a whole block, not at {head}"
        );
        assert!((1..=8).contains(&tuning.persists_in_flight_max), "log memory takes one to eight persists");
        assert!(tuning.persist_bytes_max > 0 && tuning.persist_bytes_max.is_multiple_of(BLOCK_BYTES), "whole blocks");
        Self {
            log,
            identity,
            ring,
            epoch,
            tuning,
            applied: head,
            durable: head,
            appended: head,
            batches: VecDeque::new(),
            waiting_bytes: 0,
            flights: VecDeque::new(),
            next_token: 0,
            completions: Vec::new(),
            failed: None,
            last_change_end: Lsn(0),
            last_time_ns: 0,
            mark_wanted: false,
            active_at: Nanos(0),
            active_appended: head,
            spare: Vec::new(),
        }
    }

    /// Whether a change with a payload of `payload_bytes` (at most one change's limit) can be appended now. False while the
    /// ring is full, too much waits for the log memory, or the lane has failed.
    #[must_use]
    pub fn room_for(&self, payload_bytes: u64) -> bool {
        let total = record_bytes(payload_bytes);
        let waits = self.waiting_bytes > 0 && self.waiting_bytes + total > WAITING_BYTES_MAX;
        self.failed.is_none() && !waits && self.fits(total)
    }

    /// Whether the ring has space for a change with a payload of `payload_bytes`; without, only a consistency point helps.
    #[must_use]
    pub fn has_space_for(&self, payload_bytes: u64) -> bool {
        self.fits(record_bytes(payload_bytes))
    }

    /// Appends a change. `payload` is its payload in parts. Returns the position after it: the change is durable once
    /// [`Self::durable`] is at least that.
    ///
    /// # Panics
    /// Without room ([`Self::room_for`]), or when the draft is not one ([`Draft::check`]).
    pub fn append(&mut self, draft: &Draft, payload: &[&[u8]]) -> Lsn {
        let payload_bytes = payload.iter().map(|part| part.len() as u64).sum();
        assert!(draft.kind.is_change(), "pads and marks are the lane's own");
        assert!(self.room_for(payload_bytes), "the caller asked for room first");
        self.last_time_ns = draft.time_ns;
        self.mark_wanted = true;
        self.last_change_end = self.put(draft, payload, payload_bytes);
        self.last_change_end
    }

    /// Collects what has finished and starts the next persist: everything appended so far. Appends a mark when the lane has been
    /// quiet for long enough.
    ///
    /// # Errors
    /// The log memory's error; the same one again at every later call.
    pub fn poll(&mut self, now: Nanos) -> Result<(), DeviceError> {
        self.collect()?;
        if self.mark_is_due(now) {
            let mark = Draft::without_change(RecordKind::Mark, self.last_time_ns);
            self.put(&mark, &[], 0);
            self.mark_wanted = false;
        }
        if self.start_persists() {
            // Persistent memory has finished by now.
            self.collect()?;
        }
        self.note_activity(now);
        Ok(())
    }

    /// When `poll` has something to do even if nothing completes: the next mark.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let wanted = self.mark_wanted
            && !planted::is("mark-forgotten")
            && self.failed.is_none()
            && self.durable == self.appended
            && self.room_for(0);
        wanted.then(|| self.active_at + self.tuning.mark_after)
    }

    /// Gives space back: a durable superblock says that every change before `applied` is on the disks. An older position
    /// than the last one changes nothing.
    ///
    /// # Panics
    /// When `applied` lies beyond what was appended.
    pub fn trim(&mut self, applied: Lsn) {
        assert!(applied <= self.appended, "position {applied} was never appended");
        let applied = if planted::is("trim-everything") { self.appended } else { applied };
        self.applied = self.applied.max(applied);
    }

    /// Position after the newest record.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    /// Every record before this position is durable in this lane.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Position up to which the newest durable superblock contains the changes.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Whether a change was appended that the newest durable superblock does not contain. Pads and marks need no consistency point.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.last_change_end > self.applied
    }

    /// Bytes of the ring that hold records above the applied position.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.appended.0 - self.applied.0
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.ring.bytes()
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

    /// Position after a record of `total` bytes appended now, its pads included.
    fn end_after(&self, total: u64) -> u64 {
        let rest = self.ring.bytes_before_wrap(self.appended);
        let skipped = if total > rest { rest } else { 0 };
        (self.appended.0 + skipped + total).next_multiple_of(u64::from(self.log.info().unit_bytes))
    }

    fn fits(&self, total: u64) -> bool {
        let tail = if planted::is("overwrite-in-flight") { self.applied } else { self.applied.min(self.durable) };
        let limit = tail.0 + self.ring.bytes();
        total <= self.ring.bytes() && self.end_after(total) <= limit
    }

    fn put(&mut self, draft: &Draft, payload: &[&[u8]], payload_bytes: u64) -> Lsn {
        let total = record_bytes(payload_bytes);
        let rest = self.ring.bytes_before_wrap(self.appended);
        if total > rest {
            self.pad(rest);
        }
        let place = self.place();
        let length = usize::try_from(total).expect("bounded by the limit of one change");
        self.ensure_open_batch();
        let batch = self.batches.back_mut().expect("ensured above");
        let start = batch.bytes.len();
        let header_end = start + usize::try_from(RECORD_HEADER_BYTES).expect("small");
        batch.bytes.resize(header_end, 0);
        for part in payload {
            batch.bytes.extend_from_slice(part);
        }
        batch.bytes.resize(start + length, 0);
        let raw = RawRecord::new(&place, draft, payload_bytes, &batch.bytes[header_end..]);
        batch.bytes[start..header_end].copy_from_slice(raw.as_bytes());
        let end = batch.end.plus(total);
        batch.end = end;
        batch.closed = self.ring.bytes_before_wrap(end) == self.ring.bytes();
        let full = !batch.closed && batch.bytes.len() as u64 >= self.tuning.persist_bytes_max;
        self.appended = end;
        self.waiting_bytes += total;
        assert!(end < LSN_MAX, "2^62 bytes outlive the hardware");
        if full {
            self.close_batch();
        }
        end
    }

    /// Ends the open batch, so that its memory is used again once it is stored.
    fn close_batch(&mut self) {
        self.fill_unit();
        self.batches.back_mut().expect("the caller has just filled it").closed = true;
    }

    /// Pads the newest batch to a unit. There is room: appending made sure of it.
    fn fill_unit(&mut self) {
        let missing = self.appended.0.next_multiple_of(u64::from(self.log.info().unit_bytes)) - self.appended.0;
        if missing > 0 {
            self.pad(missing);
        }
    }

    /// Appends a pad of `total` bytes. At the end of the ring only its first unit is written, and the batch is closed.
    fn pad(&mut self, total: u64) {
        let place = self.place();
        let wraps = total == self.ring.bytes_before_wrap(self.appended);
        let unit = u64::from(self.log.info().unit_bytes);
        let raw = RawRecord::pad(&place, self.last_time_ns, total);
        self.ensure_open_batch();
        let batch = self.batches.back_mut().expect("ensured above");
        let before = batch.bytes.len();
        batch.bytes.extend_from_slice(raw.as_bytes());
        let target = (batch.bytes.len() as u64).next_multiple_of(unit);
        batch.bytes.resize(usize::try_from(target).expect("a batch is small"), 0);
        batch.end = batch.end.plus(total);
        batch.closed = wraps;
        let written = (batch.bytes.len() - before) as u64;
        assert!(wraps || written == total, "a pad fills one unit or the rest of the lap");
        self.appended = batch.end;
        self.waiting_bytes += written;
    }

    fn place(&self) -> RecordPlace {
        RecordPlace {
            pool: self.identity.pool,
            lane: self.identity.lane,
            epoch: self.epoch,
            lsn: self.appended,
            stable_lsn: self.durable,
        }
    }

    fn ensure_open_batch(&mut self) {
        if self.batches.back().is_none_or(|batch| batch.closed) {
            let mut bytes = std::mem::take(&mut self.spare);
            bytes.clear();
            self.batches.push_back(Batch { start: self.appended, end: self.appended, bytes, stored: 0, closed: false });
        }
    }

    /// Returns whether a persist was queued.
    fn start_persists(&mut self) -> bool {
        let unit = u64::from(self.log.info().unit_bytes);
        let mut started = false;
        while self.flights.len() < self.tuning.persists_in_flight_max && self.log.room() > 0 {
            let room = self.log.room_bytes().min(self.tuning.persist_bytes_max) / unit * unit;
            let Some(front) = self.batches.front().filter(|_| room > 0) else { break };
            if !front.closed {
                assert_eq!(self.batches.len(), 1, "only the last batch is open");
                self.fill_unit();
            }
            let front = self.batches.front_mut().expect("seen above");
            let length = front.waiting().min(usize::try_from(room).unwrap_or(usize::MAX));
            let from = front.start.plus(front.stored as u64);
            let bytes = &front.bytes[front.stored..front.stored + length];
            self.log.store(self.ring.region_offset(from), bytes);
            front.stored += length;
            let finished = front.waiting() == 0;
            // A batch that is cut counts as durable with its last part, and takes no more records.
            front.closed = true;
            let end = match finished {
                true => front.end,
                false if planted::is("durable-inside-record") => front.start.plus(front.stored as u64),
                false => front.start,
            };
            self.waiting_bytes -= length as u64;
            if planted::is("durable-before-persisted") {
                self.durable = end;
            }
            let token = Token(self.next_token);
            self.next_token += 1;
            self.log.persist(token);
            self.flights.push_back(Flight { token, end, done: false });
            started = true;
            if finished {
                self.spare = self.batches.pop_front().expect("seen above").bytes;
            }
        }
        started
    }

    fn collect(&mut self) -> Result<(), DeviceError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.log.poll(&mut self.completions);
        for completion in self.completions.drain(..) {
            let flight = self.flights.iter_mut().find(|flight| flight.token == completion.token && !flight.done);
            let flight = flight.expect("the log memory returns each token once");
            flight.done = true;
            if let Err(error) = completion.result
                && !planted::is("log-error-ignored")
            {
                self.failed.get_or_insert(error);
            }
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        while self.flights.front().is_some_and(|flight| flight.done) {
            let end = self.flights.pop_front().expect("seen above").end;
            assert!(self.durable <= end && end <= self.appended, "persists advance");
            self.durable = end;
        }
        Ok(())
    }

    fn note_activity(&mut self, now: Nanos) {
        if self.durable < self.appended || self.active_appended != self.appended {
            self.active_at = now;
            self.active_appended = self.appended;
        }
    }

    fn mark_is_due(&self, now: Nanos) -> bool {
        self.next_deadline().is_some_and(|deadline| deadline <= now)
    }
}

/// The formatting of a lane: its header, durable. The content of the ring stays: records of another pool or of positions
/// below the lane's head mean nothing.
#[derive(Debug)]
pub struct Format<L> {
    log: L,
    done: bool,
}

impl<L: LogMemory> Format<L> {
    const TOKEN: Token = Token(0);

    /// Starts to format `log`, which has room for a store of one block and a persist.
    #[must_use]
    pub fn new(mut log: L, identity: &LaneIdentity) -> Self {
        let ring = Ring::of_region(log.info().size_bytes).expect("log memory has whole blocks, a header and a ring");
        log.store(0, RawLaneHeader::new(identity, ring.bytes()).as_bytes());
        log.persist(Self::TOKEN);
        Self { log, done: false }
    }

    /// Whether the header is durable.
    ///
    /// # Errors
    /// The log memory's error: the lane is not formatted.
    pub fn poll(&mut self) -> Result<bool, DeviceError> {
        let mut completions = Vec::new();
        self.log.poll(&mut completions);
        for completion in completions {
            assert_eq!(completion.token, Self::TOKEN, "nothing else is in flight");
            completion.result?;
            self.done = true;
        }
        Ok(self.done)
    }

    /// The log memory, formatted.
    ///
    /// # Panics
    /// Before `poll` has returned true.
    #[must_use]
    pub fn into_log(self) -> L {
        assert!(self.done, "formatting has finished");
        self.log
    }
}
