//! Compare and write: a change that is performed if its bytes are what the client expects.
//!
//! # Invariants
//!
//! 1. The bytes are compared in the step that appends the record, with everything at hand that the record needs: what has to wait after it was compared is
//!    compared anew. So nothing comes between the look and the write, whichever clients, nodes and reactors the changes of the block come from.
//! 2. Replay compares nothing: a record is there because the bytes were what was expected, and it is an ordinary write.
//! 3. That the bytes differ is answered when everything in the lane up to then is stable: no client hears of bytes that a crash may take back.
//! 4. A change that the partner forwards, and asks for again after it was performed, is known by its name
//!    ([decision 0008](../../../docs/decisions/0008-a-pool-remembers-forwarded-changes.md)): it is never compared with what it has written itself.

use super::{
    change::{Obstacle, Reading, old_block, within},
    request::Request,
};
use crate::{
    base::{limits::BLOCK_BYTES, planted},
    fs::volume::{Overlay, Volume},
    node::request::{ContentSum, VolumeError},
};
use sha2::{Digest as _, Sha256};
use std::ops::Range;
use twinlog_device::{BlockDevice, SharedBlock};

/// Whether the bytes of `range`, a whole block of the pool or part of one, have this sum; `None`: they may be any.
///
/// # Errors
/// They have another one, or have to be read first.
pub(super) fn compare<D: BlockDevice>(
    volume: &Volume,
    range: &Range<u64>,
    expected: Option<&ContentSum>,
    reading: &mut Reading<'_, D>,
) -> Result<(), Obstacle> {
    let Some(expected) = expected else { return Ok(()) };
    let index = range.start / BLOCK_BYTES;
    assert!(range.end <= (index + 1) * BLOCK_BYTES, "front ends and forwarders ask for no more");
    let block = old_block(volume, index, reading)?.ok_or(Obstacle::Fetch)?;
    if sum(block.as_ref(), within(range, index)) == *expected || planted::is("compare-not-done") {
        Ok(())
    } else {
        Err(Obstacle::Forbidden(VolumeError::Differs))
    }
}

/// SHA-256 of `part` of a block; `None` is a hole.
fn sum(block: Option<&SharedBlock>, part: Range<usize>) -> ContentSum {
    match block {
        Some(block) => Sha256::digest(&block[part]).into(),
        None => Sha256::digest(vec![0; part.len()]).into(),
    }
}

/// A planted bug: what is in memory is compared when the request comes, in front of those that wait to be performed.
pub(super) fn compare_early(volume: &Volume, request: &mut Request) {
    let range = request.range();
    let index = range.start / BLOCK_BYTES;
    if planted::is("compared-when-it-comes")
        && let (Some(expected), Overlay::Block(block, _)) = (&request.expected, volume.overlay(index))
        && sum(Some(&block), within(&range, index)) == **expected
    {
        request.expected = None;
    }
}
