//! Sleeping while commands are with the controller.
//!
//! Each completion queue signals an interrupt vector, whose event counter ([`Watch::event`]) a reactor waits for in the kernel. Vector 0 is the
//! admin queue's, which is looked at; queues share the others where there are fewer vectors than queues, and so may reactors.
//!
//! # Why no answer is slept over
//!
//! ```text
//! controller: writes the answer ---- signals the vector -----> the counter grows
//! reactor:    forgets what the counter has counted -- looks once more ([`Watch::longest_sleep`]) -- sleeps until it grows
//! ```
//!
//! The controller writes first and signals then; the reactor forgets first and looks then. An answer that the look does not see is written after
//! it, so its signal comes after what was forgotten, and ends the sleep. A controller may leave a signal out while earlier answers in the queue
//! have not been acknowledged: a polled disk has acknowledged everything that it took.
//!
//! This holds for a queue that one reactor alone empties: a queue that several disks use is looked at, and its reactors do not sleep. What nobody
//! signals (time-outs, resets, a signal that was lost) is found by looking now and then: every sleep has an end.

use crate::{controller::Shared, core::SharedQueue};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use twinlog_pci::PciFunction;

/// Longest sleep over commands that the controller has: time-outs are counted in seconds, and what else is only found by looking has waited
/// no longer than an operation on a slow disk.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Longest sleep over what the driver does by itself: bringing the controller up again, operations that wait to be given again.
const STEP: Duration = Duration::from_millis(1);

/// What a queue says to a reactor that wants to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// There is something to do, or it cannot be told.
    No,
    /// Something is to be done soon that no interrupt announces.
    Soon,
    /// The controller will signal its next answer.
    UntilSignalled,
}

/// Tells how long a disk's reactor may sleep.
pub struct Watch<F: PciFunction> {
    shared: Arc<Shared<F>>,
    queue: SharedQueue<F>,
    event: Option<Arc<OwnedFd>>,
    /// Whether the disk has operations that its queue has not heard of.
    is_behind: AtomicBool,
}

impl<F: PciFunction> Watch<F> {
    pub(crate) fn new(shared: &Arc<Shared<F>>, queue: &SharedQueue<F>, event: Option<Arc<OwnedFd>>) -> Self {
        Self { shared: shared.clone(), queue: queue.clone(), event, is_behind: AtomicBool::new(false) }
    }

    pub(crate) fn set_behind(&self, is_behind: bool) {
        self.is_behind.store(is_behind, Ordering::Relaxed);
    }

    /// The event counter that the disk's interrupts increment; none where answers are found by looking only.
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(|event| event.as_fd())
    }

    /// How long the reactor may sleep while the disk has operations in flight; zero if it must not. It asks after it has polled the disk and
    /// forgotten what the counter had counted, and sleeps until the counter grows.
    #[must_use]
    pub fn longest_sleep(&self) -> Duration {
        if self.is_behind.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        if !self.shared.is_live() {
            return STEP;
        }
        // Another thread that has the queue may be taking answers for this disk.
        match self.queue.attempt().map_or(Rest::No, |queue| queue.rest()) {
            Rest::Soon => STEP,
            Rest::UntilSignalled if self.event.is_some() => SLEEP_MAX,
            Rest::UntilSignalled | Rest::No => Duration::ZERO,
        }
    }
}
