//! Space that may still be promised, shared by all reactors of a pool.
//!
//! # Invariants
//!
//! 1. `available` = blocks free at the newest durable consistency point - worst-case need of every admitted change that is not yet
//!    in one - blocks kept back for maps. So a consistency point of everything admitted can always be written, and so can a replay
//!    of the log on top of the last one: it takes the same blocks from the same free ones (rule R8).
//! 2. Only the coordinator gives space back, when a consistency point is durable.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// A handle of the budget.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Shares>);

#[derive(Debug, Default)]
struct Shares {
    available: AtomicI64,
    /// What deletions and discards may take when nothing is left for writes.
    urgent: AtomicI64,
    /// Blocks of cut-off subtrees, which come back over as many consistency points as it takes.
    returning: AtomicI64,
}

fn signed(blocks: u64) -> i64 {
    i64::try_from(blocks).expect("a pool has fewer than 2^63 blocks")
}

impl Budget {
    /// Sets everything: when a pool has been opened.
    pub fn reset(&self, available: i64, urgent: u64, returning: u64) {
        self.0.available.store(available, Ordering::Relaxed);
        self.0.urgent.store(signed(urgent), Ordering::Relaxed);
        self.0.returning.store(signed(returning), Ordering::Relaxed);
    }

    /// Takes `blocks`, or nothing.
    #[must_use]
    pub fn reserve(&self, blocks: u64) -> bool {
        self.take(blocks, 0)
    }

    /// Takes `blocks` for a change that sets space free: it may use what is kept back for such changes.
    #[must_use]
    pub fn reserve_urgent(&self, blocks: u64) -> bool {
        self.take(blocks, self.0.urgent.load(Ordering::Relaxed))
    }

    /// Takes `blocks` whether or not they are there: for replay, whose changes were admitted before.
    pub fn reserve_again(&self, blocks: u64) {
        self.0.available.fetch_sub(signed(blocks), Ordering::Relaxed);
    }

    /// Gives space back, or corrects downwards.
    pub fn give_back(&self, blocks: i64) {
        self.0.available.fetch_add(blocks, Ordering::Relaxed);
    }

    /// What is left of cut-off subtrees.
    pub fn set_returning(&self, blocks: u64) {
        self.0.returning.store(signed(blocks), Ordering::Relaxed);
    }

    /// Whether consistency points go on bringing space back.
    #[must_use]
    pub fn is_returning(&self) -> bool {
        self.0.returning.load(Ordering::Relaxed) > 0
    }

    /// Blocks that may still be promised; negative while more is promised than is there (replay of a full pool).
    #[must_use]
    pub fn available(&self) -> i64 {
        self.0.available.load(Ordering::Relaxed)
    }

    fn take(&self, blocks: u64, below_zero: i64) -> bool {
        let blocks = signed(blocks);
        let enough = |available: i64| (available - blocks >= -below_zero).then_some(available - blocks);
        self.0.available.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_can_be_reserved_and_no_more() {
        let budget = Budget::default();
        budget.reset(10, 4, 0);
        assert!(budget.reserve(10));
        assert!(!budget.reserve(1));
        assert!(budget.reserve_urgent(4));
        assert!(!budget.reserve_urgent(1));
        budget.give_back(5);
        assert!(budget.reserve(1) && !budget.reserve(1));
    }
}
