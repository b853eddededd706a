//! One lane in use: records are appended, persisted in batches, mirrored, and trimmed once a consistency point contains them.
//!
//! # Invariants
//!
//! 1. `applied <= appended <= min(applied, durable, mirrored) + ring`, `durable <= appended`: nothing is overwritten that a
//!    recovery could need, and no two writes of the same bytes are in flight, here or at the partner. `mirrored` counts while the lane is
//!    mirrored.
//! 2. Bytes that were given to a persist are never written again in the same lap: a batch begins and ends on a unit of the
//!    log memory, filled up by a `Pad`, so a torn write of a later batch cannot hurt an earlier one. While the lane is mirrored the unit is
//!    the larger one of both portions. There is always room to fill up to [`BLOCK_BYTES`], the largest unit.
//! 3. A record never wraps around the end of the ring: a `Pad` fills the rest of the lap.
//! 4. `durable` moves only when a persist has completed, in the order of positions, and always to the end of a record: in the middle
//!    of one it would, as a later record's `stable_lsn`, prove something of a record that was never whole.
//! 5. `stable` never falls, `stable <= durable`, and it is what records carry as their `stable_lsn`: nothing else is answered.
//! 6. After a failed persist nothing is accepted any more, and `poll` returns that error for ever.
//!
//! # Life of a record
//!
//! ```text
//!                                 .-> store, persist -> durable --.
//! append -> waiting in a batch --<                                 >--> stable, answered -> contained in a CP: trim -> overwritten
//!                                 '-> sent -> mirrored -----------'
//!                                      (only while Required)
//! ```
//!
//! The mirror's half of it lies in `lane/mirroring.rs`.
//!
//! # Marks
//!
//! The newest record of a lane has no successor whose `stable_lsn` could prove that it was stable, so damage to it looks like a
//! torn tail. When a lane has been quiet for [`LaneTuning::mark_after`], a `Mark` proves all before itself; damage to the mark
//! loses nothing.

mod batch;
mod mirroring;

pub use mirroring::{MIRROR_BYTES_MAX, MirrorItem, MirrorMode, MirroringError};

use crate::{
    base::{
        Epoch, Lsn,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
        planted,
    },
    changelog::{
        persists::Persists,
        ring::{LSN_MAX, Ring},
    },
    format::{
        lane_header::LaneIdentity,
        record::{Draft, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RecordKind, RecordPlace, record_bytes},
    },
};
use batch::{Batch, OpenBatch};
use mirroring::Mirroring;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{DeviceError, LogInfo, LogMemory, Nanos};

/// Bytes that may wait for their persist in this lane's memory: eight of the largest changes. More is back-pressure.
pub const WAITING_BYTES_MAX: u64 = 8 * CHANGE_BYTES_MAX;

/// Bytes of one batch at most: the longest record alone, filled up to a unit.
pub const BATCH_BYTES_MAX: u64 = RECORD_BYTES_MAX + BLOCK_BYTES;

/// Bound of [`LaneTuning::persist_bytes_max`].
const PERSIST_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(PERSIST_BYTES_MAX + BLOCK_BYTES <= BATCH_BYTES_MAX);

/// How a lane trades latency for throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTuning {
    /// Persists in flight, 1 to 8. With one, everything that arrives meanwhile shares the next; a second hides the turn-around.
    pub persists_in_flight_max: usize,
    /// Bytes of one persist, and of a batch of several records; a multiple of 4096, at most 1 MiB. A longer record is cut, so that its
    /// parts overlap.
    pub persist_bytes_max: u64,
    /// How long a lane is quiet before it appends a `Mark`.
    pub mark_after: Duration,
}

impl Default for LaneTuning {
    fn default() -> Self {
        Self { persists_in_flight_max: 2, persist_bytes_max: PERSIST_BYTES_MAX, mark_after: Duration::from_millis(5) }
    }
}

/// One lane, written by one reactor.
#[derive(Debug)]
pub struct Lane<L> {
    log: L,
    identity: LaneIdentity,
    ring: Ring,
    epoch: Epoch,
    tuning: LaneTuning,
    /// Batches begin and end on multiples of this.
    unit_bytes: u64,
    applied: Lsn,
    durable: Lsn,
    stable: Lsn,
    appended: Lsn,
    /// Follows the closed batches.
    open: Option<OpenBatch>,
    /// Closed batches that are not stored yet, oldest first.
    batches: VecDeque<Batch>,
    /// Bytes of both that are not stored yet.
    waiting_bytes: u64,
    mirroring: Mirroring,
    persists: Persists,
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
        assert!(tuning.persist_bytes_max <= PERSIST_BYTES_MAX, "the bound of a persist");
        let unit_bytes = u64::from(log.info().unit_bytes);
        assert!(unit_bytes <= BLOCK_BYTES, "log memory has units of at most a block");
        Self {
            log,
            identity,
            ring,
            epoch,
            tuning,
            unit_bytes,
            applied: head,
            durable: head,
            stable: head,
            appended: head,
            open: None,
            batches: VecDeque::new(),
            waiting_bytes: 0,
            mirroring: Mirroring::off(),
            persists: Persists::default(),
            last_change_end: Lsn(0),
            last_time_ns: 0,
            mark_wanted: false,
            active_at: Nanos(0),
            active_appended: head,
            spare: Vec::new(),
        }
    }

    /// Whether a change with a payload of `payload_bytes` (at most one change's limit) can be appended now. False while the
    /// ring is full, too much waits for the log memory or the partner, or the lane has failed.
    #[must_use]
    pub fn room_for(&self, payload_bytes: u64) -> bool {
        let total = record_bytes(payload_bytes);
        let waits = self.waiting_bytes > 0 && self.waiting_bytes + total > WAITING_BYTES_MAX;
        !self.persists.has_failed() && !waits && self.fits(total)
    }

    /// Whether the ring has space for a change with a payload of `payload_bytes`; without, only a consistency point helps.
    #[must_use]
    pub fn has_space_for(&self, payload_bytes: u64) -> bool {
        let total = record_bytes(payload_bytes);
        total <= self.ring.bytes() && self.end_after(total) <= self.applied.plus(self.ring.bytes())
    }

    /// Appends a change. `payload` is its payload in parts. Returns the position after it: the change may be
    /// answered once [`Self::stable`] is at least that.
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
            && !self.persists.has_failed()
            && self.stable == self.appended
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

    /// Begins to mirror the lane, to a portion whose log memory has this unit. Returns the first position that is mirrored: what lies
    /// before it is lost with this node until a consistency point contains it.
    ///
    /// # Panics
    /// When the lane is mirrored already, or the unit is none of log memory.
    pub fn start_mirroring(&mut self, partner_unit_bytes: u32) -> Lsn {
        assert!(!self.mirroring.is_on(), "mirroring is stopped before it starts anew");
        let partner_unit_bytes = u64::from(partner_unit_bytes);
        let is_unit = partner_unit_bytes.is_power_of_two() && partner_unit_bytes <= BLOCK_BYTES;
        assert!(is_unit, "log memory has units of at most a block, not of {partner_unit_bytes} bytes");
        self.unit_bytes = self.unit_bytes.max(partner_unit_bytes);
        self.close_batch();
        self.mirroring = Mirroring::start(self.appended);
        self.appended
    }

    /// From here on, what is not stable yet waits for the partner as well. The register may say that the mirror is in step once
    /// [`Self::is_caught_up`].
    ///
    /// # Panics
    /// When the lane is not mirrored.
    pub fn require_mirror(&mut self) {
        self.mirroring.require();
    }

    /// Ends mirroring: what waits for the partner does so no more. The caller's register says durably that the mirror is stale.
    pub fn stop_mirroring(&mut self) {
        self.mirroring = Mirroring::off();
        self.unit_bytes = u64::from(self.log.info().unit_bytes);
        self.advance_stable();
    }

    /// The partner has every record before `lsn`, durably. Old news change nothing.
    ///
    /// # Errors
    /// When the partner cannot have it; nothing has changed.
    pub fn mirrored(&mut self, lsn: Lsn) -> Result<(), MirroringError> {
        self.mirroring.acknowledge(lsn, |bytes| Self::recycle(&mut self.spare, bytes))?;
        self.advance_stable();
        Ok(())
    }

    /// The partner was reached again, and its mirror lane expects a position; `None`: it has not begun.
    ///
    /// # Errors
    /// When that does not continue what it had acknowledged: it is no mirror of this lane any more, until mirroring starts anew.
    pub fn resend_from(&mut self, expected: Option<Lsn>) -> Result<(), MirroringError> {
        self.mirroring.resend_from(expected)
    }

    /// What goes to the partner next: batches as they were closed by [`Self::poll`].
    pub fn next_mirror_item(&mut self) -> Option<MirrorItem> {
        self.mirroring.next_item(self.epoch)
    }

    /// Whether answers wait for the partner, and it has everything that may have been answered.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.mirror_mode() == MirrorMode::Required && self.mirrored_lsn() >= Some(self.stable)
    }

    /// Whether the lane is mirrored, and whether answers wait for it.
    #[must_use]
    pub fn mirror_mode(&self) -> MirrorMode {
        self.mirroring.mode()
    }

    /// What the partner has acknowledged; `None` while the lane is not mirrored.
    #[must_use]
    pub fn mirrored_lsn(&self) -> Option<Lsn> {
        self.mirroring.mirrored()
    }

    /// Records appended from now on, and what goes to the partner, carry `epoch`.
    ///
    /// # Panics
    /// When that is below the lane's epoch.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        assert!(epoch >= self.epoch, "epochs do not fall: {epoch} after {}", self.epoch);
        self.epoch = epoch;
    }

    /// The epoch of records appended now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
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

    /// Every record before this position may be answered: it is durable here and, while that is required, at the partner. Never falls.
    #[must_use]
    pub fn stable(&self) -> Lsn {
        self.stable
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

    /// Whether everything appended is durable.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.durable == self.appended && self.persists.len() == 0
    }

    /// The log memory, to be another's: after a pool was handed over.
    ///
    /// # Panics
    /// Unless the lane is idle.
    #[must_use]
    pub fn into_log(self) -> L {
        assert!(self.is_idle(), "nothing is on its way");
        self.log
    }

    /// Position after a record of `total` bytes appended now, its pads included, up to the largest unit.
    fn end_after(&self, total: u64) -> Lsn {
        let closes = self.overfills(total);
        let start = if closes { Lsn(self.appended.0.next_multiple_of(self.unit_bytes)) } else { self.appended };
        let rest = self.ring.bytes_before_wrap(start);
        let skipped = if total > rest { rest } else { 0 };
        Lsn((start.0 + skipped + total).next_multiple_of(BLOCK_BYTES))
    }

    /// Whether the open batch is closed before a record of `total` bytes is added.
    fn overfills(&self, total: u64) -> bool {
        self.open.as_ref().is_some_and(|open| open.length_bytes() + total > self.tuning.persist_bytes_max)
    }

    fn fits(&self, total: u64) -> bool {
        let tail = if planted::is("overwrite-in-flight") { self.applied } else { self.applied.min(self.durable) };
        let limit = tail.plus(self.ring.bytes()).min(self.mirroring.limit(self.ring));
        total <= self.ring.bytes() && self.end_after(total) <= limit
    }

    fn put(&mut self, draft: &Draft, payload: &[&[u8]], payload_bytes: u64) -> Lsn {
        let total = record_bytes(payload_bytes);
        if self.overfills(total) {
            self.close_batch();
        }
        let rest = self.ring.bytes_before_wrap(self.appended);
        if total > rest {
            self.pad(rest);
        }
        let place = self.place();
        let batch = self.open_batch();
        batch.put(&place, draft, payload, payload_bytes);
        let is_full = batch.length_bytes() >= self.tuning.persist_bytes_max;
        self.advance(total, total);
        let end = self.appended;
        if is_full {
            self.close_batch();
        }
        end
    }

    /// Ends the open batch, if there is one. There is room to fill it up: appending made sure of it.
    fn close_batch(&mut self) {
        let missing = self.appended.0.next_multiple_of(self.unit_bytes) - self.appended.0;
        if missing > 0 {
            self.pad(missing);
        }
        if let Some(open) = self.open.take() {
            assert!(open.length_bytes() <= BATCH_BYTES_MAX, "it was closed before it had too much");
            let batch = open.close(self.mirroring.is_on());
            self.mirroring.keep(&batch);
            self.batches.push_back(batch);
        }
    }

    /// Appends a pad of `total` bytes. At the end of the ring only its header is written, up to a unit.
    fn pad(&mut self, total: u64) {
        let place = self.place();
        let header_end = self.appended.plus(RECORD_HEADER_BYTES).0;
        let written = header_end.next_multiple_of(self.unit_bytes) - self.appended.0;
        let wraps = total == self.ring.bytes_before_wrap(self.appended);
        assert!(wraps || written == total, "a pad fills one unit or the rest of the lap");
        let time_ns = self.last_time_ns;
        self.open_batch().pad(&place, time_ns, total, written);
        self.advance(total, written);
    }

    /// Counts what was appended. A batch ends where the ring ends.
    fn advance(&mut self, total: u64, written: u64) {
        self.appended = self.appended.plus(total);
        assert!(self.appended < LSN_MAX, "2^62 bytes outlive the hardware");
        self.waiting_bytes += written;
        if self.ring.bytes_before_wrap(self.appended) == self.ring.bytes() {
            self.close_batch();
        }
    }

    fn place(&self) -> RecordPlace {
        RecordPlace {
            pool: self.identity.pool,
            lane: self.identity.lane,
            epoch: self.epoch,
            lsn: self.appended,
            stable_lsn: self.stable,
        }
    }

    fn open_batch(&mut self) -> &mut OpenBatch {
        let (start, spare) = (self.appended, &mut self.spare);
        self.open.get_or_insert_with(|| OpenBatch::new(start, std::mem::take(spare)))
    }

    /// Keeps the buffer of a batch that nobody needs any more, to be used again.
    fn recycle(spare: &mut Vec<u8>, bytes: Arc<Vec<u8>>) {
        if let Some(buffer) = Arc::into_inner(bytes) {
            *spare = buffer;
        }
    }

    /// Returns whether a persist was queued.
    fn start_persists(&mut self) -> bool {
        if self.open.is_none() && self.batches.is_empty() {
            return false;
        }
        let unit = u64::from(self.log.info().unit_bytes);
        let mut started = false;
        while self.persists.len() < self.tuning.persists_in_flight_max && self.log.room() > 0 {
            let room = self.log.room_bytes().min(self.tuning.persist_bytes_max) / unit * unit;
            if room > 0 && self.batches.is_empty() {
                self.close_batch();
            }
            let Some(front) = self.batches.front_mut().filter(|_| room > 0) else { break };
            let (from, bytes) = front.next_part(room);
            self.log.store(self.ring.region_offset(from), bytes);
            self.waiting_bytes -= bytes.len() as u64;
            // A batch that is cut counts as durable with its last part.
            let end = match front.is_stored() {
                true => front.end,
                false if planted::is("durable-inside-record") => front.stored_end(),
                false => front.start,
            };
            if front.is_stored() {
                let batch = self.batches.pop_front().expect("seen above");
                Self::recycle(&mut self.spare, batch.bytes);
            }
            if planted::is("durable-before-persisted") {
                self.durable = end;
            }
            self.persists.start(&mut self.log, Some(end));
            started = true;
        }
        started
    }

    fn collect(&mut self) -> Result<(), DeviceError> {
        if let Some(end) = self.persists.collect(&mut self.log)? {
            assert!(self.durable <= end && end <= self.appended, "persists advance");
            self.durable = end;
        }
        self.advance_stable();
        Ok(())
    }

    fn advance_stable(&mut self) {
        self.stable = self.stable.max(self.mirroring.stable(self.durable));
    }

    fn note_activity(&mut self, now: Nanos) {
        if self.stable < self.appended || self.active_appended != self.appended {
            self.active_at = now;
            self.active_appended = self.appended;
        }
    }

    fn mark_is_due(&self, now: Nanos) -> bool {
        // In this order: every look asks, and nearly all are answered by the first.
        self.mark_wanted
            && self.active_at + self.tuning.mark_after <= now
            && self.next_deadline().is_some_and(|deadline| deadline <= now)
    }
}
