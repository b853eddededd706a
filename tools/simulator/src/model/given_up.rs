//! What an operator has given up: changes that were answered and kept, and that never happen now.

use super::{Candidate, Model, Segment, Write, index};
use crate::pattern::{Fill, WriteId, matches};
use std::ops::Range;
use twinlog::base::ObjectId;

/// A change that is given up: the bytes that it changes, and what it puts there, which is nothing for zeroes.
pub type Change<'a> = (Range<u64>, Option<&'a [u8]>);

/// Whose changes are given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// These writes never happen.
    pub never: Vec<WriteId>,
    /// Some of these do not, and nothing tells which: zeroes have no bytes of their own.
    pub perhaps: Vec<WriteId>,
}

impl GivenUp {
    /// Whether there is nothing to give up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.never.is_empty() && self.perhaps.is_empty()
    }
}

impl Model {
    /// The writes whose changes these are, which stand here in the order in which they were performed. `None`: one of them is nobody's.
    #[must_use]
    pub fn writes_of(&self, volume: ObjectId, changes: &[Change<'_>]) -> Option<GivenUp> {
        let of = |range: &Range<u64>, fill: Fill| -> Vec<WriteId> {
            let is_one = |write: &Write| write.volume == volume && write.range == *range && write.fill == fill;
            let all = (0..).map(WriteId).zip(&self.writes).skip(1);
            all.filter(|(_, write)| is_one(write) && !write.is_void).map(|(id, _)| id).collect()
        };
        let by_bytes = |(range, bytes): &Change<'_>| {
            let bytes = (*bytes)?;
            of(range, Fill::Pattern).into_iter().find(|id| matches(*id, Fill::Pattern, range.start, bytes))
        };
        let by_bytes: Vec<Option<WriteId>> = changes.iter().map(by_bytes).collect();
        // All that is held came after all that is not.
        let is_kept = |(id, write): &(WriteId, &Write)| {
            let has_happened = !write.is_void && !write.is_doubtful && write.settled < u64::MAX;
            let is_told_apart = write.volume == volume && write.fill == Fill::Pattern;
            has_happened && is_told_apart && !by_bytes.contains(&Some(*id))
        };
        let kept = (0..).map(WriteId).zip(&self.writes).filter(is_kept).map(|(_, write)| write.submitted).max();
        let mut given_up = GivenUp::default();
        for (place, (range, bytes)) in changes.iter().enumerate() {
            if bytes.is_some() {
                given_up.never.push(by_bytes[place].filter(|id| !given_up.never.contains(id))?);
                continue;
            }
            // What was settled when somebody asked for one of these lies before that one.
            let behind = by_bytes[..place].iter().flatten().map(|&id| self.writes[index(id)].submitted);
            let behind = behind.chain(kept).max();
            let mut zeroes = of(range, Fill::Zeroes);
            zeroes.retain(|id| Some(self.writes[index(*id)].settled) > behind);
            let is_like = |change: &&Change<'_>| change.1.is_none() && change.0 == *range;
            let count = changes[place..].iter().filter(is_like).count();
            if zeroes.len() < count {
                return None;
            }
            let whose = if zeroes.len() == count { &mut given_up.never } else { &mut given_up.perhaps };
            whose.extend(zeroes);
        }
        for ids in [&mut given_up.never, &mut given_up.perhaps] {
            ids.sort_unstable();
            ids.dedup();
        }
        given_up.perhaps.retain(|id| !given_up.never.contains(id));
        Some(given_up)
    }

    /// An operator has given up these writes of a volume: what it holds is as if they had never been, and everything else that was answered is there.
    pub fn give_up(&mut self, id: ObjectId, given_up: &GivenUp) {
        for write in &given_up.never {
            self.writes[index(*write)].is_void = true;
        }
        for write in &given_up.perhaps {
            let write = &mut self.writes[index(*write)];
            (write.is_doubtful, write.may_be_void) = (true, true);
        }
        self.at_crash.retain(|write| !given_up.never.contains(write) && !given_up.perhaps.contains(write));
        self.forget_exchanges();
        let writes = &self.writes;
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.segments = vec![Segment { start: 0, end: u64::MAX, candidates: vec![Candidate::new(WriteId(0))] }];
        for (name, write) in (0..).map(WriteId).zip(writes).filter(|(_, write)| write.volume == id && !write.is_void) {
            volume.cut(&write.range).for_each(|segment| segment.candidates.push(Candidate::new(name)));
        }
        for segment in &mut volume.segments {
            let names: Vec<WriteId> = segment.candidates.iter().map(|candidate| candidate.write).collect();
            let is_overwritten = |candidate: &Candidate| {
                names.iter().filter(|&&name| name != candidate.write).any(|&name| {
                    let newer = &writes[index(name)];
                    let is_answered = !newer.is_pending && !newer.is_doubtful;
                    is_answered && writes[index(candidate.write)].settled <= newer.submitted
                })
            };
            segment.candidates.retain(|candidate| !is_overwritten(candidate));
        }
    }
}
