//! Interrupts: vectors that are signalled some time after an answer was written.

use nix::sys::eventfd::EventFd;
use std::collections::{BTreeMap, BTreeSet};
use twinlog_device::Prng;

/// The vectors of a controller.
#[derive(Default)]
pub(super) struct Signals {
    listeners: BTreeMap<u32, EventFd>,
    /// Vectors that are to be signalled. Several answers may have one signal.
    due: BTreeSet<u32>,
}

impl Signals {
    /// Whether the driver has set up interrupts by message.
    pub(super) fn is_used(&self) -> bool {
        !self.listeners.is_empty()
    }

    pub(super) fn listen(&mut self, vector: u32, event: EventFd) {
        self.listeners.insert(vector, event);
    }

    /// An answer was written whose queue signals `vector`.
    pub(super) fn raise(&mut self, vector: u32) {
        if self.listeners.contains_key(&vector) {
            self.due.insert(vector);
        }
    }

    /// Signals what is due, now or later.
    pub(super) fn turn(&mut self, prng: &mut Prng) {
        self.due.retain(|vector| {
            let is_late = prng.chance(1, 2);
            if let (false, Some(event)) = (is_late, self.listeners.get(vector)) {
                event.write(1).expect("nobody counts so far");
            }
            is_late
        });
    }

    /// The controller was reset: the vectors stay with the function.
    pub(super) fn reset(&mut self) {
        self.due.clear();
    }
}
