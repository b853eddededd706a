//! Space that may still be promised, shared by all reactors of a pool.
//!
//! # Invariants
//!
//! 1. `available` = blocks free at the newest durable consistency point - worst-case need of every admitted change that is not yet
//!    in one - its share of the lists - blocks kept back for maps. So a consistency point of everything admitted can always be
//!    written, and so can a replay of the log on top of the last one: it takes the same blocks from the same free ones (rule R8).
//! 2. Only the coordinator gives space back, when a consistency point is durable.

use crate::format::chain::{AddressRange, entries_per_block};
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// Promised blocks for which one more is held: each may replace a block, that is an entry of the freed list, which is written once
/// and kept back twice ([`reserved_for_maps`](super::geometry::reserved_for_maps)).
#[expect(clippy::cast_possible_wrap, reason = "a few hundred")]
const PROMISED_PER_LIST_BLOCK: i64 = entries_per_block::<AddressRange>() as i64 / 3;

/// A handle of the budget.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Shares>);

#[derive(Debug, Default)]
struct Shares {
    /// Free at the newest durable consistency point. Written by the coordinator.
    free: AtomicI64,
    /// Of these, kept back for consistency points. Written by the coordinator.
    kept: AtomicI64,
    /// Of these, promised to changes; those that are replayed are promised whether or not they are there.
    promised: AtomicI64,
    /// Blocks of cut-off subtrees, which come back over as many consistency points as it takes.
    returning: AtomicI64,
}

fn signed(blocks: u64) -> i64 {
    i64::try_from(blocks).expect("a pool has fewer than 2^63 blocks")
}

impl Budget {
    /// Sets everything when a pool has been opened: `free` blocks are free, `kept` of them kept back, nothing is promised.
    pub fn reset(&self, free: u64, kept: u64, returning: u64) {
        self.0.promised.store(0, Ordering::Relaxed);
        self.settle(0, free, kept);
        self.set_returning(returning);
    }

    /// Takes `blocks`, or nothing.
    #[must_use]
    pub fn reserve(&self, blocks: u64) -> bool {
        self.take(blocks, 0)
    }

    /// Takes `blocks` for a change that sets space free: it may use what is kept back for such changes.
    #[must_use]
    pub fn reserve_urgent(&self, blocks: u64) -> bool {
        self.take(blocks, self.urgent())
    }

    /// Takes `blocks` whether or not they are there: for replay, whose changes were admitted before.
    pub fn reserve_again(&self, blocks: u64) {
        self.0.promised.fetch_add(signed(blocks), Ordering::Relaxed);
    }

    /// Gives back what was promised and is not needed.
    pub fn give_back(&self, blocks: i64) {
        self.0.promised.fetch_sub(blocks, Ordering::Relaxed);
    }

    /// A consistency point is durable: it has kept promises of `promised` blocks; `free` are free now, and `kept` of them kept back.
    pub fn settle(&self, promised: u64, free: u64, kept: u64) {
        // In this order nobody sees more than there is.
        self.0.free.store(signed(free), Ordering::Relaxed);
        self.0.kept.store(signed(kept), Ordering::Relaxed);
        self.0.promised.fetch_sub(signed(promised), Ordering::Relaxed);
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

    /// Blocks kept back for consistency points.
    #[must_use]
    pub fn kept(&self) -> u64 {
        u64::try_from(self.0.kept.load(Ordering::Relaxed)).expect("it is stored as one")
    }

    /// Blocks that may still be promised; negative while more is promised or kept back than is there: what consistency points replace
    /// comes back only with the one after the next.
    #[must_use]
    pub fn available(&self) -> i64 {
        self.left(self.0.promised.load(Ordering::Relaxed))
    }

    /// Whether nothing may be promised, not even to changes that set space free: consistency points use up what is kept back for them.
    #[must_use]
    pub fn is_overdrawn(&self) -> bool {
        self.available() < -self.urgent()
    }

    /// What changes that set space free may take when nothing is left for others.
    fn urgent(&self) -> i64 {
        self.0.kept.load(Ordering::Relaxed) / 4
    }

    fn left(&self, promised: i64) -> i64 {
        let lists = (promised + PROMISED_PER_LIST_BLOCK - 1) / PROMISED_PER_LIST_BLOCK;
        self.0.free.load(Ordering::Relaxed) - self.0.kept.load(Ordering::Relaxed) - promised - lists
    }

    fn take(&self, blocks: u64, below_zero: i64) -> bool {
        let blocks = signed(blocks);
        let enough = |promised: i64| (self.left(promised + blocks) >= -below_zero).then_some(promised + blocks);
        self.0.promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_can_be_reserved_and_no_more() {
        let budget = Budget::default();
        // One of the eleven is for the list of what the ten replace.
        budget.reset(27, 16, 0);
        assert!(budget.reserve(10));
        assert!(!budget.reserve(1));
        assert!(budget.reserve_urgent(4));
        assert!(!budget.reserve_urgent(1) && !budget.is_overdrawn());
        budget.give_back(5);
        assert!(budget.reserve(1) && !budget.reserve(1));
        budget.settle(10, 17, 17);
        assert_eq!(budget.available(), 0);
        budget.settle(0, 12, 17);
        assert!(budget.is_overdrawn());
    }

    #[test]
    fn lists_of_many_replaced_blocks_have_their_share() {
        let budget = Budget::default();
        budget.reset(10_000, 0, 0);
        assert!(budget.reserve(9_880) && !budget.reserve(10));
    }
}
