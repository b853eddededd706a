//! What requests borrow of memory before they read: see [the division of memory](crate::node::memory).

use super::{
    Shard,
    change::Obstacle,
    request::{Kind, Request},
};
use crate::{
    base::limits::BLOCK_BYTES,
    fs::volume::Volume,
    pool::{io::Io, tree::span},
};
use std::{ops::Range, time::Duration};
use twinlog_device::{BlockDevice, LogMemory};

/// How often a request that waits for memory is tried again when nothing else brings a turn: another reactor's reply that is
/// sent wakes nobody here.
pub(super) const RETRY: Duration = Duration::from_millis(1);

/// Nodes on the way from the root to blocks `indices`, at most.
fn path_blocks(volume: &Volume, indices: &Range<u64>) -> u64 {
    let count = indices.end - indices.start;
    (1..=volume.levels()).map(|level| if count == 1 { 1 } else { count / span(level) + 2 }).sum()
}

/// Blocks that a request holds at once, at most.
fn need(volume: &Volume, request: &Request) -> usize {
    let range = request.range();
    let indices = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
    let blocks = match &request.kind {
        Kind::Read { .. } => indices.end - indices.start + path_blocks(volume, &indices),
        // One path at a time.
        Kind::Status { .. } => u64::from(volume.levels()),
        Kind::Flush | Kind::Report(_) | Kind::Change { .. } => 0,
    };
    usize::try_from(blocks).unwrap_or(usize::MAX)
}

impl<L: LogMemory> Shard<L> {
    /// Whether a request has the memory that it reads into. If not it waits for it, behind those who came before.
    pub(super) fn has_loan<D: BlockDevice>(&mut self, io: &Io<D>, id: u64) -> bool {
        let is_first = self.loan_waiters.is_empty();
        let Some(request) = self.requests.get_mut(id) else { return true };
        let reads = matches!(request.kind, Kind::Read { .. } | Kind::Status { .. });
        if !reads || request.loan.is_some() || (is_first && self.borrow_for(io, id)) {
            return true;
        }
        self.loan_waiters.push_back(id);
        false
    }

    /// Goes on with requests that wait for memory, first come, first served.
    pub(super) fn retry_loans<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        while let Some(&id) = self.loan_waiters.front() {
            if !self.borrow_for(io, id) {
                return;
            }
            self.loan_waiters.pop_front();
            self.advance(io, id);
        }
    }

    fn borrow_for<D: BlockDevice>(&mut self, io: &Io<D>, id: u64) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return true };
        // Of a volume that is gone nothing is read.
        let blocks = self.volumes.get(&request.volume).map_or(0, |volume| need(volume, request));
        request.loan = io.blocks().lend(blocks);
        request.loan.is_some()
    }
}

/// Lets a change read: the paths to what its next record is about, which meets up to three nodes of the lowest level, and the blocks
/// at both ends.
pub(super) fn borrow_for_change<D: BlockDevice>(
    io: &Io<D>,
    volume: &Volume,
    loan: &mut Option<twinlog_device::Loan>,
) -> Result<(), Obstacle> {
    if loan.is_none() {
        *loan = io.blocks().lend_to_change(2 * (usize::from(volume.levels()) + 2));
    }
    if loan.is_some() { Ok(()) } else { Err(Obstacle::Wait) }
}
