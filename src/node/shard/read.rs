//! Reads and block status: what the generations in memory and the tree on disk say.

use super::{
    Shard,
    request::{Arrived, Kind, Request, Slot, Slots},
};
use crate::{
    base::{Lsn, limits::BLOCK_BYTES, planted},
    format::reference::BlockKey,
    fs::volume::{Overlay, Volume},
    node::request::{DataRun, DataRuns, Extent, ReplyData, VolumeError},
    pool::{io::Io, tree::Walk},
};
use std::ops::Range;
use twinlog_device::{BLOCK_BYTES as BLOCK, BlockDevice, LogMemory, SharedBlock};

/// Blocks that one block status request looks at; what lies beyond is left for the client's next request.
const STATUS_BLOCKS_MAX: u64 = 1 << 18;

fn blocks(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

impl<L: LogMemory> Shard<L> {
    /// A read goes on in the next turn of the lane, with all that have come until then. Where its first block lies comes from memory meanwhile.
    pub(super) fn line_up_read<D: BlockDevice>(&mut self, io: &Io<D>, id: u64) {
        self.reads.push(id);
        let request = self.requests.get_mut(id).expect("the caller looked it up");
        if let Some(volume) = self.volumes.get(&request.volume) {
            let arrived = &request.arrived;
            volume.walker().look_ahead(request.range().start / BLOCK_BYTES, |key| at_hand(arrived, io, key));
        }
    }

    /// Goes on with the reads that have lined up. To find a block is to wait for memory, several times over: what all of them will look at is touched first, so
    /// that they wait together.
    pub(super) fn take_reads<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        let mut reads = std::mem::take(&mut self.reads);
        for &id in &reads {
            self.locate_read(io, id);
        }
        // On its own: the less there is between two of these, the more of them the processor waits for at once.
        for &id in &reads {
            let Some(Request { kind: Kind::Read { slots, .. }, .. }) = self.requests.get_mut(id) else { continue };
            for slot in slots {
                if let Slot::At(reference) = slot {
                    io.look_ahead(reference.key());
                }
            }
        }
        for id in reads.drain(..) {
            self.take_read(io, id);
        }
        self.reads = reads;
    }

    /// Finds where the blocks of a read lie, as far as nodes are at hand, and fetches the rest.
    fn locate_read<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) {
        let tag = self.tag(id);
        let Some(request) = self.requests.get_mut(id) else { return };
        let Kind::Read { range, slots, .. } = &mut request.kind else { unreachable!("a read") };
        let Some(volume) = self.volumes.get(&request.volume) else { return self.refuse(id, VolumeError::NoSuchVolume) };
        let indices = blocks(range);
        if slots.is_empty() {
            request.lsn = overlay(volume, indices.clone(), slots).max(volume.reservation_lsn());
        }
        let arrived = &request.arrived;
        let (mut walker, mut missing) = (volume.walker(), Vec::new());
        let mut index = indices.start;
        while index < indices.end {
            let position = usize::try_from(index - indices.start).expect("inside a request");
            let Slot::Below = slots[position] else {
                index += 1;
                continue;
            };
            match walker.walk(index, |key| at_hand(arrived, io, key)) {
                Walk::Hole(_) => slots[position] = Slot::Hole,
                Walk::Found(reference) | Walk::Missing(reference)
                    if let Some(Err(reason)) = arrived.get(&reference.key()) =>
                {
                    let reason = reason.clone();
                    return self.refuse(id, VolumeError::Unreadable { block: index, reason });
                }
                Walk::Found(reference) => slots[position] = Slot::At(reference),
                Walk::Missing(node) => {
                    missing.push(node);
                    // The same node serves its neighbours.
                    index = index.next_multiple_of(crate::base::limits::TREE_FANOUT).max(index + 1) - 1;
                }
            }
            index += 1;
        }
        for node in missing {
            let _ = io.fetch(&node, tag);
        }
    }

    /// Takes the blocks of a read, as far as they are at hand, and fetches the rest.
    fn take_read<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) {
        let tag = self.tag(id);
        let Some(request) = self.requests.get_mut(id) else { return };
        let Kind::Read { slots, is_hint, .. } = &mut request.kind else { unreachable!("a read") };
        let mut is_complete = true;
        let mut cached = Vec::new();
        for slot in slots {
            let reference = match slot {
                Slot::At(reference) => *reference,
                Slot::Below => {
                    is_complete = false;
                    continue;
                }
                Slot::Hole | Slot::Block(_) => continue,
            };
            let known = at_hand(&request.arrived, io, reference.key()).cloned();
            *slot = match known.or_else(|| io.fetch(&reference, tag)) {
                // A hint keeps nothing: the block is in the cache now, as long as there is room for it.
                Some(_) if *is_hint => {
                    cached.push(reference.key());
                    Slot::Hole
                }
                Some(block) => Slot::Block(block),
                None => {
                    is_complete = false;
                    Slot::Below
                }
            };
        }
        for key in cached {
            request.arrived.remove(&key);
        }
        if is_complete {
            let lsn = if planted::is("read-unstable") { Lsn(0) } else { request.lsn };
            self.answer_when_stable(lsn, id);
        }
    }

    /// Everything that a read returns is stable: answer.
    pub(super) fn finish_read(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let Kind::Read { range, slots, is_hint } = &mut request.kind else { unreachable!("a read") };
        if *is_hint {
            return self.end(id, Ok(ReplyData::Done));
        }
        let mut runs = DataRuns::with_capacity(slots.len());
        let loan = request.loan.as_mut().expect("a read borrows before it begins");
        let first = range.start / BLOCK_BYTES;
        for (index, slot) in (first..).zip(slots.drain(..)) {
            let start = range.start.max(index * BLOCK_BYTES) - index * BLOCK_BYTES;
            let end = range.end.min((index + 1) * BLOCK_BYTES) - index * BLOCK_BYTES;
            match (slot, runs.last_mut()) {
                (Slot::Block(block), _) => {
                    let small = |number: u64| usize::try_from(number).expect("inside a block");
                    assert!(small(end) <= BLOCK);
                    runs.push(DataRun::Block(loan.attach(block), small(start)..small(end)));
                }
                (_, Some(DataRun::Zeroes(length))) => *length += end - start,
                _ => runs.push(DataRun::Zeroes(end - start)),
            }
        }
        self.end(id, Ok(ReplyData::Data(runs)));
    }

    /// Collects extents, as far as nodes are at hand, and fetches the next node.
    pub(super) fn advance_status<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) {
        let tag = self.tag(id);
        let request = self.requests.get_mut(id).expect("the caller looked it up");
        let Kind::Status { range, next, extents_max, extents, lsn } = &mut request.kind else { unreachable!("status") };
        let Some(volume) = self.volumes.get(&request.volume) else { return self.refuse(id, VolumeError::NoSuchVolume) };
        let indices = blocks(range);
        *lsn = volume.reservation_lsn().max(*lsn);
        let mut walker = volume.walker();
        let looked_at_most = indices.end.min(indices.start + STATUS_BLOCKS_MAX);
        while *next < indices.end {
            let arrived = &request.arrived;
            let (until, allocated) = match volume.overlay(*next) {
                Overlay::Block(_, at) => {
                    *lsn = at.max(*lsn);
                    (*next + 1, !planted::is("status-ignores-changes"))
                }
                Overlay::Hole(at) => {
                    *lsn = at.max(*lsn);
                    (*next + 1, false)
                }
                Overlay::Below => {
                    let ask = |key| at_hand(arrived, io, key).cloned();
                    match walker.walk(*next, ask) {
                        Walk::Hole(until) => {
                            let until = until.min(volume.next_change(*next)).min(indices.end);
                            // Some of these may have been freed in memory: the answer tells of that, too.
                            *lsn = volume.freed_lsn(&(*next..until)).max(*lsn);
                            (until, false)
                        }
                        Walk::Found(_) => (*next + 1, true),
                        Walk::Missing(node) => {
                            if let Some(Err(reason)) = arrived.get(&node.key()) {
                                let (block, reason) = (*next, reason.clone());
                                return self.refuse(id, VolumeError::Unreadable { block, reason });
                            }
                            let _ = io.fetch(&node, tag);
                            let mut path = Vec::new();
                            let known = |key| arrived.get(&key).and_then(|result| result.clone().ok());
                            let _ = volume.walker().walk(*next, |key| known(key).inspect(|_| path.push(key)));
                            // What lies behind is not needed again, and a long range has many nodes.
                            request.arrived.retain(|key, _| path.contains(key));
                            return;
                        }
                    }
                }
            };
            let until = until.clamp(*next + 1, indices.end);
            let start = range.start.max(*next * BLOCK_BYTES);
            let length_bytes = range.end.min(until * BLOCK_BYTES) - start;
            let is_full = extents.len() == *extents_max;
            match extents.last_mut() {
                Some(last) if last.allocated == allocated => last.length_bytes += length_bytes,
                _ if is_full => break,
                _ => extents.push(Extent { length_bytes, allocated }),
            }
            *next = until;
            if *next >= looked_at_most && !extents.is_empty() {
                break;
            }
        }
        let lsn = *lsn;
        self.answer_when_stable(lsn, id);
    }

    /// Everything that a block status tells is stable: answer.
    pub(super) fn finish_status(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let Kind::Status { extents, .. } = &mut request.kind else { unreachable!("status") };
        let extents = std::mem::take(extents);
        self.end(id, Ok(ReplyData::Extents(extents)));
    }
}

/// A block that was fetched for a request, or is in the cache.
fn at_hand<'a, D: BlockDevice>(arrived: &'a Arrived, io: &'a Io<D>, key: BlockKey) -> Option<&'a SharedBlock> {
    arrived.get(&key).and_then(|result| result.as_ref().ok()).or_else(|| io.cached(key))
}

/// What the generations in memory say of each block; returns the newest position among them.
fn overlay(volume: &Volume, indices: Range<u64>, slots: &mut Slots) -> Lsn {
    let mut newest = Lsn(0);
    for index in indices {
        slots.push(match volume.overlay(index) {
            Overlay::Below => Slot::Below,
            Overlay::Hole(lsn) => {
                newest = newest.max(lsn);
                Slot::Hole
            }
            Overlay::Block(block, lsn) => {
                newest = newest.max(lsn);
                Slot::Block(block)
            }
        });
    }
    newest
}
