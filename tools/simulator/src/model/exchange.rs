//! Compare-and-writes, called exchanges here: what their answers say of the order of writes.
//!
//! An exchange that was done has found what it expects, and nothing came between that and its own write. So it is a read that returned what it expects, and a
//! write; beyond that it has its **place**: of all writes of these bytes it comes next after the one that it found. With bytes of their own:
//!
//! 1. Who expects the same write finds it only once: of two exchanges that overlap one was refused.
//! 2. What comes after the write that was found comes after the exchange. So the exchange is over when that has happened, though both were asked for at the same time.
//!
//! One that was refused because the bytes differ has never happened, and there was a moment while it was under way at which they were not what it expects.
//!
//! Zeroes have no writer that can be told from another one: an exchange of zeroes is a read and a write to the model. So is one that expects a write which may
//! have been performed more than once. Of one that was asked for before a crash that lost answered changes nothing is demanded, nor of one that was given up:
//! what it found may be gone.

use super::{DataFault, DataOracle, Model, Write, WriteId, find, index};
use crate::{
    pattern::{Fill, content, matches},
    setup::BLOCK,
};
use std::ops::Range;
use twinlog::base::{ObjectId, Prng};

/// Fewer bytes may be alike though two different writes have written them.
const LENGTH_MIN: u64 = 16;

/// An exchange that was done.
#[derive(Clone, Debug)]
pub(super) struct Exchanged {
    volume: ObjectId,
    range: Range<u64>,
    found: WriteId,
    by: WriteId,
}

impl Exchanged {
    fn meets(&self, other: &Self) -> bool {
        let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
        self.volume == other.volume && self.found == other.found && self.by != other.by && overlaps
    }
}

impl Model {
    /// An exchange is about to be submitted: `range`, which lies in one block, is to be of `expected`, and becomes of the id that is returned. Zero stands for zeroes.
    pub fn begin_exchange(&mut self, volume: ObjectId, range: Range<u64>, expected: WriteId) -> WriteId {
        let id = self.begin_write(volume, range, Fill::Pattern);
        let write = &mut self.writes[index(id)];
        write.expected = Some(expected);
        // It looks at the bytes as a read does.
        self.reads.push(write.submitted);
        id
    }

    /// An exchange was answered with success; `is_lasting`: durably.
    ///
    /// # Errors
    /// No order explains that.
    pub fn end_exchange(&mut self, id: WriteId, is_lasting: bool) -> Result<(), DataFault> {
        let Write { volume, range, submitted, expected, is_void, may_be_void, .. } = self.writes[index(id)].clone();
        let expected = expected.expect("begun as an exchange");
        if submitted < self.lost_at || is_void || may_be_void {
            self.end_looking(id);
            self.end_write(id, is_lasting);
            return Ok(());
        }
        let read = self.check_read(volume, range.start, &content(expected, &range), submitted);
        read.map_err(|(_, what)| (DataOracle::Exchanged, format!("write {} was performed, and {what}", id.0)))?;
        self.end_looking(id);
        self.end_write(id, is_lasting);
        let found = &self.writes[index(expected)];
        let is_of_its_own = expected != WriteId(0) && range.end - range.start >= LENGTH_MIN;
        let is_sure = !found.was_asked_again && !found.is_void && !self.writes[index(id)].is_doubtful;
        if is_of_its_own && is_sure { self.take_place(id, expected, is_lasting) } else { Ok(()) }
    }

    /// An exchange comes next after what it has found.
    fn take_place(&mut self, id: WriteId, found: WriteId, is_lasting: bool) -> Result<(), DataFault> {
        let Write { volume, range, .. } = self.writes[index(id)].clone();
        let exchanged = Exchanged { volume, range: range.clone(), found, by: id };
        if let Some(other) = self.exchanged.iter().find(|other| other.meets(&exchanged)) {
            let what =
                format!("writes {} and {} of bytes {range:?} have both found write {}", other.by.0, id.0, found.0);
            return Err((DataOracle::Exchanged, format!("object {volume}: {what}")));
        }
        self.exchanged.push(exchanged);
        // What was asked for before that may be what the one that was found has found itself.
        let happened_at = self.writes[index(found)].settled;
        self.writes[index(id)].bound = happened_at;
        self.bury(volume, &range, found, (self.happened_by(id), is_lasting || self.answers_last));
        let later = |&(number, write): &(u32, &Write)| {
            let is_other = WriteId(number) != id && WriteId(number) != found && write.volume == volume;
            let has_happened = !write.is_void && !write.is_doubtful && write.settled < u64::MAX;
            is_other && has_happened && !write.is_repeated && write.submitted >= happened_at
        };
        let later: Vec<u32> = (0..).zip(&self.writes).filter(later).map(|(number, _)| number).collect();
        for number in later {
            let Range { start, end } = self.writes[index(WriteId(number))].range;
            let both = start.max(range.start)..end.min(range.end);
            self.bury(volume, &both, id, (self.happened_by(WriteId(number)), false));
        }
        Ok(())
    }

    /// A write is over in `range` since `by`.
    fn bury(&mut self, volume: ObjectId, range: &Range<u64>, id: WriteId, (by, is_lasting): (u64, bool)) {
        if range.start >= range.end {
            return;
        }
        let Some(volume) = find(&mut self.volumes, &mut self.gone, volume) else { return };
        let candidates = volume.cut(range).flat_map(|segment| &mut segment.candidates);
        for candidate in candidates.filter(|candidate| candidate.write == id) {
            candidate.dead_at = candidate.dead_at.min(by);
            candidate.is_buried |= is_lasting;
        }
    }

    /// An exchange was refused because the bytes differ: it never happens.
    ///
    /// # Errors
    /// They were what it expects all the time, or it had been read.
    pub fn differs(&mut self, id: WriteId) -> Result<(), DataFault> {
        let Write { volume: object, range, submitted, expected, .. } = self.writes[index(id)].clone();
        let expected = expected.expect("begun as an exchange");
        let Some(volume) = find(&mut self.volumes, &mut self.gone, object) else { return self.refuse_write(id) };
        let mut may_differ = false;
        for segment in volume.meeting(&range) {
            let part = segment.part(&range);
            let bytes = content(expected, &part);
            let possible = segment.candidates.iter().filter(|candidate| candidate.dead_at > submitted);
            let mut others = possible.map(|candidate| candidate.write).filter(|&other| other != id);
            may_differ |= others.any(|other| !matches(other, self.writes[index(other)].fill, part.start, &bytes));
        }
        if !may_differ && submitted > self.lost_at {
            let what = format!(
                "write {} of bytes {range:?} was refused, and they were of write {} all the time",
                id.0, expected.0
            );
            return Err((DataOracle::Exchanged, format!("object {object}: {what}")));
        }
        self.refuse_write(id)
    }

    /// A write that was asked for again, on another path, was refused, because bytes differ or a reservation forbids it: it has happened by now or never will,
    /// as who asked for it can find out by reading.
    pub fn refused_when_repeated(&mut self, id: WriteId) {
        self.doubt_write(id);
        self.end_looking(id);
    }

    /// An exchange looks no more.
    pub(super) fn end_looking(&mut self, id: WriteId) {
        let Write { submitted, expected, .. } = &self.writes[index(id)];
        if expected.is_some()
            && let Some(position) = self.reads.iter().position(|read| read == submitted)
        {
            self.reads.swap_remove(position);
        }
    }

    /// What was found, and by whom, may have been lost.
    pub(super) fn forget_exchanges(&mut self) {
        self.exchanged.clear();
        self.writes.iter_mut().for_each(|write| write.bound = u64::MAX);
    }

    /// Bytes of a volume for an exchange, which lie in one block, and a write of which they may be. `are_whole`: a whole block.
    pub fn draw_exchange(&self, volume: ObjectId, prng: &mut Prng, are_whole: bool) -> Option<(Range<u64>, WriteId)> {
        let volume = self.volumes.get(&volume)?;
        let blocks = volume.size_bytes / BLOCK;
        // Most of them meet in the first blocks.
        let near = if prng.chance(3, 4) { blocks.min(2) } else { blocks };
        let block = prng.below(near);
        let whole = block * BLOCK..(block + 1) * BLOCK;
        let at = whole.start + if are_whole { 0 } else { prng.below(BLOCK / 512) * 512 };
        let segment = volume.segments.iter().find(|segment| (segment.start..segment.end).contains(&at))?;
        let range = if are_whole { whole } else { segment.part(&whole) };
        let is_settled = |&id: &WriteId| self.writes[index(id)].settled < u64::MAX;
        let alive = segment.candidates.iter().filter(|candidate| candidate.is_alive());
        let alive: Vec<WriteId> = alive.map(|candidate| candidate.write).collect();
        let newest = alive.iter().copied().max();
        let expected = match prng.below(8) {
            0 => Some(WriteId(u32::try_from(prng.below(self.writes.len() as u64)).expect("histories are short"))),
            1 | 2 => newest,
            _ => alive.iter().copied().filter(is_settled).max().or(newest),
        };
        let is_pattern = |&id: &WriteId| self.writes[index(id)].fill == Fill::Pattern;
        let expected = expected.map(|id| Some(id).filter(is_pattern).unwrap_or(WriteId(0)));
        (range.end - range.start >= LENGTH_MIN).then_some((range, expected?))
    }
}
