//! What the owner of a lane knows of its mirror: which batches the partner has yet to acknowledge, and what may be answered.
//!
//! # Modes
//!
//! ```text
//!          start                      require
//!   Off ----------> Streaming ---------------------> Required
//!    ^   batches are sent,         stable waits for       |
//!    |   stable does not wait      the mirror             |
//!    +---------------- stop -------+---------------- stop +
//! ```
//!
//! The mode follows the register, never the other way round: `Off` and `Streaming` while it durably says that the mirror is stale, `Required`
//! before it says in-sync and for as long as it does (rule R1).
//!
//! # Invariants
//!
//! 1. `start <= mirrored <= sent <= appended`; each is the end of a batch, or `start`.
//! 2. Every batch from `mirrored` on is kept until the partner acknowledges it, and can be sent again. The lane takes no change that would
//!    make them more than [`MIRROR_BYTES_MAX`].
//! 3. Batches are handed out in order, without a gap, the first after [`MirrorItem::Begin`]; after a reconnect from where the partner expects.
//! 4. What the partner says is judged, not trusted: a position where no batch that was sent ends is refused and changes nothing.
//!
//! # Failure cases
//!
//! | the partner expects, after a reconnect | answer |
//! |---|---|
//! | a position from `mirrored` on where a batch that was sent ends | goes on from there |
//! | anything else, and has acknowledged nothing since `start` | begins again at `start` |
//! | anything else | it has lost what it had acknowledged, or is another: [`MirroringError::Lost`]; only a new start helps |

use super::batch::Batch;
use crate::{
    base::{Epoch, Lsn, limits::CHANGE_BYTES_MAX, planted},
    changelog::ring::Ring,
};
use std::{collections::VecDeque, sync::Arc};
use thiserror::Error;

/// Bytes of a lane that may wait for the partner's acknowledgement: eight of the largest changes. More is back-pressure.
pub const MIRROR_BYTES_MAX: u64 = 8 * CHANGE_BYTES_MAX;

/// Whether a lane is mirrored, and whether answers wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorMode {
    /// It is not.
    Off,
    /// Batches are sent; answers do not wait for the partner.
    Streaming,
    /// Answers wait until the partner has acknowledged.
    Required,
}

/// What goes to the mirror lane at the other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorItem {
    /// From here on: what the mirror holds of earlier positions means nothing any more.
    Begin {
        /// The owner's epoch.
        epoch: Epoch,
        /// First position.
        start: Lsn,
    },
    /// A batch.
    Write {
        /// The owner's epoch; of its records, or a later one.
        epoch: Epoch,
        /// Position of the first byte.
        start: Lsn,
        /// Position after the last record: beyond the last byte when the batch ends the ring.
        end: Lsn,
        /// The records.
        bytes: Arc<Vec<u8>>,
    },
}

/// Why what the partner says of its mirror lane cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MirroringError {
    /// It acknowledges what it was not sent.
    #[error("the partner acknowledges position {0}, where nothing ends that it was sent")]
    NotSent(Lsn),
    /// It expects other batches than those that it has not acknowledged.
    #[error("the partner has acknowledged everything before position {mirrored}, and now expects {}",
        .expected.map_or("nothing".to_owned(), |lsn| format!("position {lsn}")))]
    Lost {
        /// What it expects.
        expected: Option<Lsn>,
        /// What it had acknowledged.
        mirrored: Lsn,
    },
}

#[derive(Debug)]
struct Kept {
    start: Lsn,
    end: Lsn,
    bytes: Arc<Vec<u8>>,
}

/// The owner's side of a lane's mirror.
#[derive(Debug)]
pub(super) struct Mirroring {
    mode: MirrorMode,
    start: Lsn,
    mirrored: Lsn,
    sent: Lsn,
    has_begun: bool,
    /// Batches that are not acknowledged, oldest first.
    kept: VecDeque<Kept>,
    /// How many of them were handed out since the last reconnect.
    handed: usize,
}

impl Mirroring {
    pub(super) fn off() -> Self {
        let zero = Lsn(0);
        Self {
            mode: MirrorMode::Off,
            start: zero,
            mirrored: zero,
            sent: zero,
            has_begun: false,
            kept: VecDeque::new(),
            handed: 0,
        }
    }

    pub(super) fn start(start: Lsn) -> Self {
        Self { mode: MirrorMode::Streaming, start, mirrored: start, sent: start, ..Self::off() }
    }

    pub(super) fn require(&mut self) {
        assert_ne!(self.mode, MirrorMode::Off, "mirroring was started");
        self.mode = MirrorMode::Required;
    }

    pub(super) fn mode(&self) -> MirrorMode {
        self.mode
    }

    pub(super) fn is_on(&self) -> bool {
        self.mode != MirrorMode::Off
    }

    /// Every position before this one is durable at the partner; `None` while the lane is not mirrored.
    pub(super) fn mirrored(&self) -> Option<Lsn> {
        self.is_on().then_some(self.mirrored)
    }

    /// What may be answered when `durable` is durable here.
    pub(super) fn stable(&self, durable: Lsn) -> Lsn {
        match self.mode {
            MirrorMode::Required if !planted::is("stable-without-mirror") => durable.min(self.mirrored),
            _ => durable,
        }
    }

    /// No record may end beyond this position.
    pub(super) fn limit(&self, ring: Ring) -> Lsn {
        if !self.is_on() || planted::is("ring-reused-before-mirrored") {
            return Lsn(u64::MAX);
        }
        self.mirrored.plus(ring.bytes().min(MIRROR_BYTES_MAX))
    }

    /// Takes a batch that was closed.
    pub(super) fn keep(&mut self, batch: &Batch) {
        if self.is_on() {
            let newest = self.kept.back().map_or(self.mirrored, |kept| kept.end);
            assert_eq!(newest, batch.start, "batches follow each other");
            self.kept.push_back(Kept { start: batch.start, end: batch.end, bytes: Arc::clone(&batch.bytes) });
        }
    }

    pub(super) fn next_item(&mut self, epoch: Epoch) -> Option<MirrorItem> {
        if !self.is_on() {
            return None;
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(MirrorItem::Begin { epoch, start: self.start });
        }
        let kept = self.kept.get(self.handed)?;
        self.handed += 1;
        self.sent = self.sent.max(kept.end);
        Some(MirrorItem::Write { epoch, start: kept.start, end: kept.end, bytes: Arc::clone(&kept.bytes) })
    }

    /// The partner acknowledges everything before `lsn`. Gives the bytes of each batch that is not kept any more to `release`.
    pub(super) fn acknowledge(
        &mut self,
        lsn: Lsn,
        mut release: impl FnMut(Arc<Vec<u8>>),
    ) -> Result<(), MirroringError> {
        if !self.is_on() || lsn <= self.mirrored {
            return Ok(());
        }
        let count = self.batch_ending_at(lsn).ok_or(MirroringError::NotSent(lsn))? + 1;
        self.kept.drain(..count).for_each(|kept| release(kept.bytes));
        self.handed = self.handed.saturating_sub(count);
        self.mirrored = lsn;
        // Whatever it has said that it expects: it has begun.
        self.has_begun = true;
        Ok(())
    }

    /// The partner was reached again.
    pub(super) fn resend_from(&mut self, expected: Option<Lsn>) -> Result<(), MirroringError> {
        if !self.is_on() {
            return Ok(());
        }
        let next = match expected {
            Some(lsn) if lsn == self.mirrored && self.has_begun => Some(0),
            Some(lsn) => self.batch_ending_at(lsn).map(|index| index + 1),
            None => None,
        };
        match next {
            Some(next) => self.handed = next,
            None if self.mirrored == self.start => (self.handed, self.has_begun) = (0, false),
            None => return Err(MirroringError::Lost { expected, mirrored: self.mirrored }),
        }
        self.handed = if planted::is("resend-forgets") { self.kept.len() } else { self.handed };
        Ok(())
    }

    /// Which of the kept batches that were sent ends at `lsn`.
    fn batch_ending_at(&self, lsn: Lsn) -> Option<usize> {
        let index = self.kept.partition_point(|kept| kept.end < lsn);
        self.kept.get(index).filter(|kept| kept.end == lsn && lsn <= self.sent).map(|_| index)
    }
}
