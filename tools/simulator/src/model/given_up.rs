//! What an operator has given up: changes that were answered and kept, and that never happen now.

use super::{Candidate, Model, Segment, Write, index};
use crate::pattern::{Fill, WriteId, matches};
use std::ops::Range;
use twinlog::base::ObjectId;

impl Model {
    /// The writes whose changes these are: the bytes that each changes, and what it puts there, which is nothing for zeroes. Of writes that cannot be told
    /// apart the last ones. `None`: one of them is nobody's.
    #[must_use]
    pub fn writes_of(&self, volume: ObjectId, changes: &[(Range<u64>, Option<&[u8]>)]) -> Option<Vec<WriteId>> {
        let mut found = Vec::new();
        for (range, bytes) in changes.iter().rev() {
            let fits = |id: WriteId, write: &Write| {
                let is_same = write.volume == volume && write.range == *range && !write.is_void;
                let has_bytes = match (write.fill, bytes) {
                    (Fill::Pattern, Some(bytes)) => matches(id, Fill::Pattern, range.start, bytes),
                    (Fill::Zeroes, None) => true,
                    _ => false,
                };
                is_same && has_bytes && !found.contains(&id)
            };
            let newest_first = || (0..).map(WriteId).zip(&self.writes).skip(1).filter(|&(id, write)| fits(id, write));
            // Of what cannot be told apart, what was answered is rather among them.
            let answered = newest_first().filter(|(_, write)| !write.is_pending && !write.is_doubtful).last();
            found.push(answered.or_else(|| newest_first().last())?.0);
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
