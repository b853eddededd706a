//! What an operator has given up: changes that were answered and kept, and that never happen now.

use super::{Candidate, Model, Segment, Write, index};
use crate::pattern::{Fill, WriteId, matches};
use std::ops::Range;
use twinlog::base::ObjectId;

impl Model {
    /// The writes whose changes these are, the last one first. Of a change, which stand here in the order in which they were performed: the bytes that it
    /// changes, and what it puts there, which is nothing for zeroes. Of writes that cannot be told apart the last ones that can lie there. `None`: one of
    /// them is nobody's.
    #[must_use]
    pub fn writes_of(&self, volume: ObjectId, changes: &[(Range<u64>, Option<&[u8]>)]) -> Option<Vec<WriteId>> {
        let of = |range: &Range<u64>, fill: Fill| -> Vec<WriteId> {
            let is_one = |write: &Write| write.volume == volume && write.range == *range && write.fill == fill;
            let all = (0..).map(WriteId).zip(&self.writes).skip(1);
            all.filter(|(_, write)| is_one(write) && !write.is_void).map(|(id, _)| id).collect()
        };
        let by_bytes = |(range, bytes): &(Range<u64>, Option<&[u8]>)| {
            let bytes = (*bytes)?;
            of(range, Fill::Pattern).into_iter().find(|id| matches(*id, Fill::Pattern, range.start, bytes))
        };
        let by_bytes: Vec<Option<WriteId>> = changes.iter().map(by_bytes).collect();
        let mut found = Vec::new();
        for (place, (range, bytes)) in changes.iter().enumerate().rev() {
            let one = if bytes.is_some() {
                by_bytes[place].filter(|id| !found.contains(id))
            } else {
                // What was settled when somebody asked for one of these lies before that one.
                let behind = by_bytes[..place].iter().flatten().map(|&id| self.writes[index(id)].submitted).max();
                let mut zeroes = of(range, Fill::Zeroes);
                zeroes.retain(|id| Some(self.writes[index(*id)].settled) > behind && !found.contains(id));
                // Of what cannot be told apart, what was answered is rather among them.
                let is_answered = |write: &Write| !write.is_pending && !write.is_doubtful;
                let answered = zeroes.iter().rfind(|id| is_answered(&self.writes[index(**id)]));
                answered.or(zeroes.last()).copied()
            };
            found.push(one?);
        }
        Some(found)
    }

    /// An operator has given up these writes of a volume: what it holds is as if they had never been, and everything else that was answered is there.
    pub fn give_up(&mut self, id: ObjectId, given_up: &[WriteId]) {
        for write in given_up {
            self.writes[index(*write)].is_void = true;
        }
        self.at_crash.retain(|write| !given_up.contains(write));
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
