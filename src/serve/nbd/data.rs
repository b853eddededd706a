//! What the engine returns, as the bytes of replies.

use super::codec::{ChunkHeader, write_hole, write_offset_data_header};
use crate::{
    node::request::{DataRun, Extent, VolumeService},
    serve::turn::{Turn, runs_bytes, send_runs},
};
use twinlog_device::Network;

/// Sends `runs`, which begin at byte `start` of the export, as chunks: one for each stretch of data or of zeroes, or, when `whole`,
/// a single one. With `done` the last one ends the reply.
pub(super) fn send_chunks<N: Network, S: VolumeService>(
    turn: &mut Turn<'_, N, S>,
    chunk: ChunkHeader,
    runs: &[DataRun],
    start: u64,
    (whole, done): (bool, bool),
) {
    let is_hole = |run: &DataRun| matches!(run, DataRun::Zeroes(_));
    let mut offset = start;
    let mut rest = runs;
    let whole = whole && !runs.iter().all(is_hole);
    while let Some(first) = rest.first() {
        let hole = is_hole(first) && !whole;
        let same = rest.iter().take_while(|run| whole || is_hole(run) == hole).count();
        let (stretch, after) = rest.split_at(same);
        let length = u32::try_from(runs_bytes(stretch)).expect("at most a part of a request");
        let last = done && after.is_empty();
        if hole {
            turn.send(|output| write_hole(output, chunk, last, offset, length));
        } else {
            turn.send(|output| write_offset_data_header(output, chunk, last, offset, length));
            send_runs(turn.net, turn.connection, stretch);
        }
        offset += u64::from(length);
        rest = after;
    }
}

/// The extents within the first `length_bytes`.
pub(super) fn clip(extents: &[Extent], length_bytes: u64) -> Vec<Extent> {
    let mut remaining = length_bytes;
    let mut clipped = Vec::with_capacity(extents.len());
    for extent in extents {
        let length_bytes = extent.length_bytes.min(remaining);
        if length_bytes > 0 {
            clipped.push(Extent { length_bytes, ..*extent });
        }
        remaining -= length_bytes;
    }
    assert!(!clipped.is_empty(), "the engine describes at least one byte");
    clipped
}
