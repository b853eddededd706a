//! Who may have how many blocks of memory, and why nobody waits for ever.
//!
//! A node has a fixed number `M` of blocks for everything ([`BlockPool`](twinlog_device::BlockPool)). Each is in exactly one share, however
//! many handles it has: the first of these that one of its handles is counted in.
//!
//! | share | at most | who counts | given back |
//! |---|---|---|---|
//! | clients: payloads until they are logged; blocks that a read reads and returns, and the nodes on the way to them | M/4 | the block pool: loans | when the reply has been sent, the payload logged |
//! | changes: what a change reads before it can be logged | M/32 more | the block pool: loans | when it is logged or refused |
//! | dirty: logged blocks and every node that writing them takes, from the moment the change is reserved, not from when the node is made | 9/16 M, over all lanes | shards: `reserved_active + reserved_frozen` | when the consistency point is durable |
//! | kept: superblocks | M/16, at most [`KEPT_BLOCKS`] | the block pool: only `allocate_kept` takes them | when written |
//! | the rest, M/8 or more less what is kept: maps, lists, object table, blocks under way to consistency points, the cache | | | |
//!
//! # Invariants
//!
//! 1. A share is taken whole before any of it is used: a read takes its part before it fetches its first block. So nobody holds a part
//!    of what it needs and waits for the rest of it.
//! 2. The cache has what nobody else needs: it is evicted before anybody waits.
//! 3. Who waits for whom:
//!
//! ```text
//! reads, payloads --> clients' share --> replies taken by clients (a client that takes none is dropped, see serve)
//!        |                          \-> payloads logged --> changes' share, dirty share, lane
//!        v                                                        |
//!    devices  <---- consistency points  <-------------------------+
//! ```
//!
//! Nothing points back to clients from below: a consistency point waits only for devices and for the rest, of which nobody above
//! takes anything. So it ends, and with it the dirty share and the lane become free.

use twinlog_device::Shares;

/// Blocks kept for superblocks: 32 devices' copies of one kind, the head and tail of a joining device (18), and one for each
/// reactor that looked at the same time, doubled.
pub const KEPT_BLOCKS: usize = 128;

/// Part of memory that the cache leaves free for whoever comes: an eighth.
const LOW_PART: u64 = 8;

/// The division of one node's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShares {
    /// What the block pool counts.
    pub pool: Shares,
    /// Dirty blocks of one lane.
    pub dirty_blocks_max: u64,
    /// Blocks that the cache leaves free.
    pub free_blocks_low: usize,
}

impl MemoryShares {
    /// Divides `blocks` among the shares, for a pool with `lanes` lanes.
    #[must_use]
    pub fn new(blocks: u64, lanes: u64) -> Self {
        let small = |number: u64| usize::try_from(number).expect("a pool of blocks fits memory");
        let pool = Shares {
            clients_max: small(blocks / 4),
            changes_max: small(blocks / 32),
            kept: small(blocks / 16).min(KEPT_BLOCKS),
        };
        Self { pool, dirty_blocks_max: blocks * 9 / 16 / lanes, free_blocks_low: small(blocks / LOW_PART) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_an_eighth_of_memory() {
        for blocks in [1024, 16_384, 98_304, 1 << 22] {
            for lanes in 1..=16 {
                let shares = MemoryShares::new(blocks, lanes);
                let lent = (shares.pool.clients_max + shares.pool.changes_max) as u64;
                assert!(lent + lanes * shares.dirty_blocks_max + blocks / 8 <= blocks, "{blocks} blocks: {shares:?}");
            }
        }
    }
}
