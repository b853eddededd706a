//! What the load loop asks of a target: slots of memory, requests without waiting, and turns that move bytes.
//!
//! # Invariants
//!
//! 1. A slot carries at most one request; its memory belongs to the request from `submit` until its completion is reported.
//! 2. `submit` makes no system call; `turn` sends everything that was submitted, as far as the target takes it.
//! 3. Every submitted request completes exactly once, with an error number (0 is success), unless `turn` returns [`Lost`].
//! 4. After [`Lost`] the unanswered requests stay known: `recover` opens the target again and sends each once more.

use std::time::Instant;

use crate::units::index;

/// Alignment of every slot: what O_DIRECT may demand of memory.
const ALIGNMENT: usize = 4096;
/// The most memory that slots may take, in bytes.
pub(crate) const MEMORY_LIMIT: u64 = 1 << 30;

/// The most requests in flight.
pub(crate) const SLOTS_LIMIT: usize = 4096;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Zero,
    Trim,
    Flush,
}

impl Kind {
    /// All kinds, in the order of their indices.
    pub(crate) const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Zero, Self::Trim, Self::Flush];

    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Trim => "trim",
            Self::Flush => "flush",
        }
    }

    /// Whether it changes the target's content.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Trim)
    }
}

/// One request. `offset` and `length` are in bytes and lie inside the target; both are zero for a flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) slot: usize,
    pub(crate) kind: Kind,
    pub(crate) fua: bool,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The end of a request: an error number of Linux, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) slot: usize,
    pub(crate) errno: i32,
}

/// The target as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) size_bytes: u64,
    /// Requests must start and end at multiples of this.
    pub(crate) block_bytes: u64,
    /// No request may be longer.
    pub(crate) request_limit_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) can_flush: bool,
    pub(crate) can_fua: bool,
    pub(crate) can_trim: bool,
    pub(crate) can_zero: bool,
    /// Whether several connections see one coherent volume.
    pub(crate) multi_conn: bool,
}

/// How long a turn may wait when nothing has completed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Never,
    Until(Instant),
}

/// The target went away; says how.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lost(pub(crate) String);

/// Why a target cannot be opened.
pub(crate) struct Unopened {
    /// In words.
    pub(crate) lost: Lost,
    /// Whether it may come yet: nobody answers, but nobody refuses.
    pub(crate) may_come: bool,
}

/// A way to the target was lost, and another one is taken: nothing is to be done about it.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    /// When it was noticed.
    pub(crate) at: Instant,
    pub(crate) what: String,
    /// Requests that are sent once more.
    pub(crate) again: usize,
}

/// A target under load.
pub(crate) trait Engine {
    /// Size, limits and abilities.
    fn geometry(&self) -> &Geometry;
    /// The memory of a slot that has no request.
    fn buffer(&mut self, slot: usize) -> &mut [u8];
    /// Takes a request.
    fn submit(&mut self, request: Request);
    /// Sends, receives, and appends what completed to `done`; waits only while nothing has.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Lost>;
    /// Gives up every connection, so that `recover` opens them all again.
    fn abandon(&mut self);
    /// One attempt to open what was lost; the number of requests that will be sent once more.
    fn recover(&mut self) -> Result<usize, Lost>;
    /// The next switch to another way that has not been told yet.
    fn switched(&mut self) -> Option<Switch> {
        None
    }
}

/// The memory of all slots: one allocation, every slot aligned to a page.
pub(crate) struct Buffers {
    memory: Vec<u8>,
    start: usize,
    slot_bytes: usize,
    stride: usize,
}

impl Buffers {
    /// Memory for `slots` slots of `slot_bytes` each, at most [`MEMORY_LIMIT`] together (checked by the command line).
    pub(crate) fn new(slots: usize, slot_bytes: usize) -> Self {
        let stride = slot_bytes.next_multiple_of(ALIGNMENT);
        assert!(stride.checked_mul(slots).is_some_and(|total| total <= 2 * index(MEMORY_LIMIT)), "slots fit in memory");
        let memory = vec![0; stride * slots + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, slot_bytes, stride }
    }

    /// One slot's memory.
    pub(crate) fn slot(&self, slot: usize) -> &[u8] {
        &self.memory[self.start + slot * self.stride..][..self.slot_bytes]
    }

    /// One slot's memory, to be changed.
    pub(crate) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[self.start + slot * self.stride..][..self.slot_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_and_apart() {
        let mut buffers = Buffers::new(3, 5000);
        for slot in 0..3 {
            assert_eq!(buffers.slot(slot).as_ptr().align_offset(ALIGNMENT), 0);
            buffers.slot_mut(slot).fill(u8::try_from(slot).unwrap());
        }
        for slot in 0..3 {
            assert!(buffers.slot(slot).len() == 5000 && buffers.slot(slot).iter().all(|b| usize::from(*b) == slot));
        }
    }
}
