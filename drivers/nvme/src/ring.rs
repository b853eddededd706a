//! The two rings of a queue pair (base 3.3.1).
//!
//! # Invariants
//!
//! 1. Between `head` and `tail` of a submission ring lie entries that the controller may not have read; the caller never has more
//!    commands in flight than the ring has entries less one, so that it never overruns.
//! 2. A completion is new when its phase bit differs from the last lap's: the controller inverts it with every lap, beginning with one.
//!    The bit is read first, with acquire order; it lies in the last word, which the controller writes last.

use crate::{
    Violation,
    registers::Controls,
    spec::{CompletionEntry, SubmissionEntry},
};
use std::sync::{Arc, atomic::Ordering};
use twinlog_pci::{DmaMemory, Registers};
use zerocopy::IntoBytes;

const SUBMISSION_BYTES: usize = size_of::<SubmissionEntry>();
const COMPLETION_BYTES: usize = size_of::<CompletionEntry>();

/// Bytes of a submission ring.
pub(crate) fn submission_bytes(entries: u16) -> usize {
    usize::from(entries) * SUBMISSION_BYTES
}

/// Bytes of a completion ring.
pub(crate) fn completion_bytes(entries: u16) -> usize {
    usize::from(entries) * COMPLETION_BYTES
}

/// The pair of one queue number.
pub(crate) struct Rings<R, M> {
    id: u16,
    entries: u16,
    controls: Controls<R>,
    submissions: Arc<M>,
    completions: Arc<M>,
    /// How far the controller has read, as it said last.
    head: u16,
    /// How far we have written.
    tail: u16,
    /// The tail that the controller was told.
    told_tail: u16,
    /// The next completion.
    next: u16,
    /// The next completion that the controller was told.
    told_next: u16,
    /// Phase bit of new completions: 0 or 1.
    phase: u64,
}

impl<R: Registers, M: DmaMemory> Rings<R, M> {
    /// Empty rings of `entries` (2 at least) in zeroed memory.
    pub(crate) fn new(id: u16, entries: u16, controls: Controls<R>, submissions: Arc<M>, completions: Arc<M>) -> Self {
        assert!(entries >= 2, "a ring of one entry is always full");
        assert!(submissions.length_bytes() >= submission_bytes(entries), "the memory holds every command");
        assert!(completions.length_bytes() >= completion_bytes(entries), "the memory holds every answer");
        let (head, tail, told_tail, next, told_next) = (0, 0, 0, 0, 0);
        Self { id, entries, controls, submissions, completions, head, tail, told_tail, next, told_next, phase: 1 }
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Where the rings lie on the bus: submissions, completions.
    pub(crate) fn addresses(&self) -> [u64; 2] {
        [self.submissions.bus_address(), self.completions.bus_address()]
    }

    /// Begins anew. Only while the controller does not know the rings.
    pub(crate) fn reset(&mut self) {
        (self.head, self.tail, self.told_tail, self.next, self.told_next, self.phase) = (0, 0, 0, 0, 0, 1);
        self.completions.clear(0, completion_bytes(self.entries));
    }

    /// Writes a command; the controller hears of it with the next [`Self::tell`].
    pub(crate) fn push(&mut self, entry: &SubmissionEntry) {
        let tail = self.after(self.tail);
        self.submissions.write(usize::from(self.tail) * SUBMISSION_BYTES, entry.as_bytes());
        self.tail = tail;
    }

    /// Tells the controller of what was written and read since the last time: one doorbell each.
    pub(crate) fn tell(&mut self) {
        if self.tail != self.told_tail {
            self.told_tail = self.tail;
            self.controls.ring(self.id, false, self.tail);
        }
        if self.next != self.told_next {
            self.told_next = self.next;
            self.controls.ring(self.id, true, self.next);
        }
    }

    /// Whether there is a completion that was not taken.
    pub(crate) fn has_answer(&self) -> bool {
        let offset = usize::from(self.next) * COMPLETION_BYTES;
        self.completions.load(offset + 8, Ordering::Acquire) >> 48 & 1 == self.phase
    }

    /// The next completion, if there is one.
    ///
    /// # Errors
    /// When it is none that a controller may give.
    pub(crate) fn pop(&mut self) -> Result<Option<CompletionEntry>, Violation> {
        let offset = usize::from(self.next) * COMPLETION_BYTES;
        let high = self.completions.load(offset + 8, Ordering::Acquire);
        if high >> 48 & 1 != self.phase {
            return Ok(None);
        }
        let low = self.completions.load(offset, Ordering::Relaxed);
        let entry: CompletionEntry = zerocopy::transmute!([low.to_le_bytes(), high.to_le_bytes()]);
        if entry.submission_id.get() != self.id {
            return Err(Violation::ForeignQueue);
        }
        let head = entry.submission_head.get();
        if head >= self.entries || self.distance(self.head, head) > self.distance(self.head, self.told_tail) {
            return Err(Violation::QueueHead);
        }
        self.head = head;
        self.next = self.after(self.next);
        if self.next == 0 {
            self.phase ^= 1;
        }
        Ok(Some(entry))
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }

    /// Entries from `from` on to `to`.
    fn distance(&self, from: u16, to: u16) -> u16 {
        if to >= from { to - from } else { self.entries - from + to }
    }
}
