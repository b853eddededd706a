//! The oracle of data: which bytes a volume may return, now and after a crash.
//!
//! # Theory
//!
//! A volume is cut into segments of bytes with the same history. A segment has **candidates**: writes of which each may be the one whose
//! bytes a read returns. Time is a counter of events. A write is *settled* once it has certainly happened: it was answered, or a read has
//! returned it (rule R5: what was read never vanishes), or whoever had it in hand is gone, or has ended it with an error: then it may also be that it
//! never happens.
//!
//! A volume has bytes without end, of which its size shows the first. A resize to `s` writes zeroes from byte `s` on, as far as bytes are
//! concerned: a smaller size cuts off what lies beyond, and what a larger size adds is empty. So a resize is under way, is answered and
//! crashes as any other write does, and what is in flight beside it needs no rule of its own. Only the size itself is more than bytes:
//! whoever submits a request keeps the sizes that were possible while it was in flight.
//!
//! # Rules (register linearizability per byte)
//!
//! 1. When a write `w` is answered, every candidate that was settled before `w` was submitted is dead: certainly overwritten, since `w` was settled.
//! 2. When a read that was submitted at `r` returns `w`, every other candidate is dead since `w` was settled, at the latest now, if it was itself settled
//!    before `r`, or before `w` was submitted.
//! 3. A read that was submitted at `r` may return a candidate that lives, or died after `r`; nothing else. If one of them was not settled
//!    at `r`, each block by itself may be of another candidate: blocks are fetched from disks while writes go on. The same is true of a read after a
//!    crash beside which a node lives with writes in hand.
//! 4. After a crash that keeps the log, exactly the living candidates are possible; after one that loses the log, everything that no
//!    *lasting* write has overwritten: one that a flush, FUA or a consistency point has made durable.
//! 5. A change of at most one record is atomic across a crash: bytes of a write that was not answered, and in the same range bytes that
//!    it has certainly overwritten, are a change half applied.
//! 6. A compare-and-write is a read and a write with nothing in between: see `exchange.rs`.
//! 7. A change that was refused never happens: nothing may have read it before. Nor does one that was given up ([`Model::give_up`]).
//!
//! Rules 1 to 3 decide: where every write has bytes of its own, they refuse exactly the histories that no order of operations explains. Two writes
//! cannot be put in order when each had to come before the other, and that is all that can go wrong with a register (Gibbons and Korach, Testing shared
//! memories, 1997): `w` comes before `v` when the first answer that proves `w` came before the last question that led to `v`, be it of a read or of the
//! write itself. `linearizable.rs` compares with a search through all orders.
//!
//! Different writes can have the same bytes (zeroes). A read that fits several candidates proves only what is true of all of them.

mod exchange;
mod given_up;
pub mod reservation;

pub use given_up::{Change, GivenUp};

use crate::pattern::{Fill, WriteId, matches};
use std::{collections::BTreeMap, fmt, ops::Range};
use twinlog::base::{ObjectId, limits::BLOCK_BYTES};

/// What the model found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataOracle {
    /// A read returned what was overwritten before it began.
    StaleRead,
    /// After a crash an answered change is gone, or one that had been read.
    Lost,
    /// After a crash a change is there in part.
    HalfApplied,
    /// Bytes that nobody wrote there.
    Corrupt,
    /// A change was refused after a read had returned it.
    Undone,
    /// A change that had been read was performed once more, over what is newer.
    Twice,
    /// A compare-and-write was answered as no order explains.
    Exchanged,
}

impl fmt::Display for DataOracle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::StaleRead => "stale read",
            Self::Lost => "answered change lost",
            Self::HalfApplied => "change half applied",
            Self::Corrupt => "corrupt data",
            Self::Undone => "refused change read",
            Self::Twice => "change performed twice",
            Self::Exchanged => "comparison wrong",
        })
    }
}

/// What is wrong, and a sentence.
pub type DataFault = (DataOracle, String);

/// One of the writes that a segment may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    write: WriteId,
    /// When it was certainly overwritten; `u64::MAX`: it was not.
    dead_at: u64,
    /// Whether something durable has overwritten it.
    is_buried: bool,
}

impl Candidate {
    fn new(write: WriteId) -> Self {
        Self { write, dead_at: u64::MAX, is_buried: false }
    }

    fn is_alive(&self) -> bool {
        self.dead_at == u64::MAX
    }
}

#[derive(Clone, Debug)]
struct Segment {
    start: u64,
    end: u64,
    candidates: Vec<Candidate>,
}

/// A write of the history.
#[derive(Clone, Debug)]
struct Write {
    volume: ObjectId,
    range: Range<u64>,
    fill: Fill,
    submitted: u64,
    /// `u64::MAX`: it may not have happened yet.
    settled: u64,
    /// Whether a read has returned it before it was answered.
    was_read: bool,
    is_pending: bool,
    /// It was asked for again and is not answered: it may happen once more, whatever was read.
    is_repeated: bool,
    /// It was, and may have happened twice.
    was_asked_again: bool,
    /// Of an exchange: whose bytes it is to find.
    expected: Option<WriteId>,
    /// Of an exchange that has found them: whatever was asked for since comes after it. `u64::MAX`: nothing is known.
    bound: u64,
    /// It ended with an error, or a crash found it unanswered or lost the log that it was in: settled, and it may have never happened.
    is_doubtful: bool,
    /// It never happens: it was refused or given up.
    is_void: bool,
    /// It, or another one that cannot be told from it, was given up: its answer proves nothing.
    may_be_void: bool,
}

impl Write {
    /// Whatever was asked for from then on comes after it.
    fn precedes_from(&self) -> u64 {
        self.settled.min(self.bound)
    }
}

/// A volume's possible content.
#[derive(Clone, Debug)]
pub struct VolumeModel {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether a consistency point contains it.
    pub is_lasting: bool,
    segments: Vec<Segment>,
}

/// How much of the past a crash takes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing that was answered.
    Unanswered,
    /// What was not made durable by a flush, FUA or consistency point.
    NotLasting,
}

/// The model of all volumes.
#[derive(Debug)]
pub struct Model {
    volumes: BTreeMap<ObjectId, VolumeModel>,
    /// Volumes that were deleted in this life: requests that were in flight then may still be answered.
    gone: BTreeMap<ObjectId, VolumeModel>,
    writes: Vec<Write>,
    now: u64,
    /// Submission times of reads in flight, and of exchanges.
    reads: Vec<u64>,
    /// Exchanges that were done.
    exchanged: Vec<exchange::Exchanged>,
    /// Whether an answer alone makes a change outlive every crash.
    answers_last: bool,
    /// Writes that were not settled, or not lasting, at the last crash: judged when everything has been read again.
    at_crash: Vec<WriteId>,
    /// When everything was read after the last crash: older writes are decided.
    recovered_at: u64,
    /// When the last crash was.
    crashed_at: u64,
    /// When what does not last was lost: what was there before may be there again from then on.
    lost_at: u64,
    /// Bytes compared.
    pub verified_bytes: u64,
}

impl Model {
    /// No volumes. `answers_last`: the log outlives every crash.
    #[must_use]
    pub fn new(answers_last: bool) -> Self {
        let zeroes = Write {
            volume: ObjectId(0),
            range: 0..u64::MAX,
            fill: Fill::Zeroes,
            submitted: 0,
            settled: 0,
            was_read: false,
            is_pending: false,
            is_repeated: false,
            was_asked_again: false,
            expected: None,
            bound: u64::MAX,
            is_doubtful: false,
            is_void: false,
            may_be_void: false,
        };
        Self {
            volumes: BTreeMap::new(),
            gone: BTreeMap::new(),
            writes: vec![zeroes],
            now: 0,
            reads: Vec::new(),
            exchanged: Vec::new(),
            answers_last,
            at_crash: Vec::new(),
            recovered_at: 0,
            crashed_at: 0,
            lost_at: 0,
            verified_bytes: 0,
        }
    }

    /// The volumes.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<ObjectId, VolumeModel> {
        &self.volumes
    }

    /// A volume was made: zeroes.
    pub fn create(&mut self, id: ObjectId, name: &str, size_bytes: u64) {
        let segments = vec![Segment { start: 0, end: u64::MAX, candidates: vec![Candidate::new(WriteId(0))] }];
        let mut volume = VolumeModel { name: name.to_owned(), size_bytes, is_lasting: self.answers_last, segments };
        // What is under way for one of this number, which was lost, may find this one.
        let waiting = (0..).map(WriteId).zip(&self.writes).filter(|(_, write)| write.volume == id && write.is_pending);
        for (write, Write { range, .. }) in waiting {
            volume.cut(range).for_each(|segment| segment.candidates.push(Candidate::new(write)));
        }
        self.volumes.insert(id, volume);
    }

    /// A volume is gone.
    pub fn delete(&mut self, id: ObjectId) {
        self.gone.extend(self.volumes.remove_entry(&id));
    }

    /// A volume is about to get another size: returns the write that cuts off what lies beyond.
    pub fn begin_resize(&mut self, id: ObjectId, size_bytes: u64) -> WriteId {
        self.begin_write(id, size_bytes..u64::MAX, Fill::Zeroes)
    }

    /// A volume has another size.
    pub fn end_resize(&mut self, cut: WriteId) {
        self.end_write(cut, false);
        let Write { volume, range, .. } = &self.writes[index(cut)];
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.size_bytes = range.start;
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write is about to be submitted; returns its id. `range` are the bytes that it changes, which may be none.
    pub fn begin_write(&mut self, volume: ObjectId, range: Range<u64>, fill: Fill) -> WriteId {
        let submitted = self.tick();
        let id = WriteId(u32::try_from(self.writes.len()).expect("histories are short"));
        let write = Write {
            volume,
            range,
            fill,
            submitted,
            settled: u64::MAX,
            was_read: false,
            is_pending: true,
            is_repeated: false,
            was_asked_again: false,
            expected: None,
            bound: u64::MAX,
            is_doubtful: false,
            is_void: false,
            may_be_void: false,
        };
        if let Some(volume) = self.volumes.get_mut(&write.volume) {
            for segment in volume.cut(&write.range) {
                segment.candidates.push(Candidate::new(id));
            }
        }
        self.writes.push(write);
        id
    }

    /// A write was answered with success; `is_lasting`: durably, whatever happens.
    pub fn end_write(&mut self, id: WriteId, is_lasting: bool) {
        let now = self.tick();
        let write = &mut self.writes[index(id)];
        write.settled = write.settled.min(now);
        (write.is_pending, write.is_repeated) = (false, false);
        if write.is_void || write.may_be_void {
            return;
        }
        let (volume, range) = (write.volume, write.range.clone());
        self.overwrite(volume, &range, id, is_lasting || self.answers_last);
    }

    /// Rule 1 for `id` in `range`.
    fn overwrite(&mut self, volume: ObjectId, range: &Range<u64>, id: WriteId, is_lasting: bool) {
        let (by, oldest_read, answers_last) = (self.happened_by(id), self.oldest_read(), self.answers_last);
        let Some(volume) = find(&mut self.volumes, &mut self.gone, volume) else { return };
        let writes = &self.writes;
        let submitted = writes[index(id)].submitted;
        for segment in volume.meeting(range) {
            let mut has_changed = false;
            for candidate in &mut segment.candidates {
                let is_news = candidate.dead_at > by || (is_lasting && !candidate.is_buried);
                if is_news && candidate.write != id && writes[index(candidate.write)].precedes_from() <= submitted {
                    candidate.dead_at = candidate.dead_at.min(by);
                    candidate.is_buried |= is_lasting;
                    has_changed = true;
                }
            }
            if has_changed {
                segment
                    .candidates
                    .retain(|candidate| candidate.dead_at > oldest_read || !(answers_last || candidate.is_buried));
            }
        }
        volume.join(range);
    }

    /// By when a write has certainly happened, and if it was before the last loss of what did not last, has come back.
    fn happened_by(&self, id: WriteId) -> u64 {
        self.writes[index(id)].settled.max(self.lost_at).min(self.now)
    }

    /// A write was refused: it never happens.
    ///
    /// # Errors
    /// It had been read (rule 7).
    pub fn refuse_write(&mut self, id: WriteId) -> Result<(), DataFault> {
        let Write { volume, range, was_read, .. } = &self.writes[index(id)];
        if *was_read {
            let what = format!("object {volume}: write {} of bytes {range:?} was refused, and had been read", id.0);
            return Err((DataOracle::Undone, what));
        }
        self.withdraw(id);
        Ok(())
    }

    /// Who had a write in hand has ended it with an error: it has happened by now or never will, and the next crash tells which.
    pub fn doubt_write(&mut self, id: WriteId) {
        let now = self.tick();
        let write = &mut self.writes[index(id)];
        (write.settled, write.is_doubtful) = (write.settled.min(now), true);
    }

    /// A write that was not answered is asked for again, over another path: until its answer it may happen once more.
    pub fn ask_again(&mut self, id: WriteId) {
        self.tick();
        let write = &mut self.writes[index(id)];
        (write.settled, write.was_read, write.is_repeated) = (u64::MAX, false, true);
        write.was_asked_again = true;
        let range = write.range.clone();
        let Some(volume) = self.volumes.get_mut(&write.volume) else { return };
        for segment in volume.cut(&range) {
            segment.candidates.retain(|candidate| candidate.write != id);
            segment.candidates.push(Candidate::new(id));
        }
    }

    /// Bytes where a write that is under way has certainly happened, and been overwritten since.
    #[must_use]
    pub fn replaced(&self, id: WriteId) -> Vec<Range<u64>> {
        let Write { volume, range, was_read, .. } = &self.writes[index(id)];
        let Some(volume) = self.volumes.get(volume).filter(|_| *was_read) else { return Vec::new() };
        let is_dead = |segment: &&Segment| {
            let is_possible = |candidate: &Candidate| candidate.write == id && candidate.is_alive();
            !segment.part(range).is_empty() && !segment.candidates.iter().any(is_possible)
        };
        volume.segments.iter().filter(is_dead).map(|segment| segment.part(range)).collect()
    }

    /// Whether bytes of a volume from `offset` are those of a write.
    #[must_use]
    pub fn is_of(&self, id: WriteId, offset: u64, bytes: &[u8]) -> bool {
        matches(id, self.writes[index(id)].fill, offset, bytes)
    }

    /// A write was not submitted after all.
    pub fn withdraw(&mut self, id: WriteId) {
        self.end_looking(id);
        let write = &mut self.writes[index(id)];
        (write.is_pending, write.is_void) = (false, true);
        let (volume, range) = (write.volume, write.range.clone());
        let Some(volume) = find(&mut self.volumes, &mut self.gone, volume) else { return };
        for segment in volume.meeting(&range) {
            segment.candidates.retain(|candidate| candidate.write != id);
        }
    }

    /// A read, flush or consistency point is about to be submitted: returns the time.
    pub fn begin(&mut self) -> u64 {
        let now = self.tick();
        self.reads.push(now);
        now
    }

    /// What [`Self::begin`] began is over.
    pub fn end(&mut self, began: u64) {
        let position = self.reads.iter().position(|&read| read == began).expect("it was begun");
        self.reads.swap_remove(position);
    }

    /// A consistency point contains every volume.
    pub fn all_last(&mut self) {
        self.volumes.values_mut().for_each(|volume| volume.is_lasting = true);
    }

    /// A flush or consistency point that began at `began` is done: what was settled then lasts, in `volume` or everywhere.
    pub fn flushed(&mut self, volume: Option<ObjectId>, began: u64) {
        if self.answers_last {
            return;
        }
        if volume.is_none() {
            self.all_last();
        }
        let writes = &self.writes;
        let oldest_read = self.reads.iter().copied().min().unwrap_or(self.now);
        let chosen = self.volumes.iter_mut().filter(|(id, _)| volume.is_none_or(|only| only == **id));
        for segment in chosen.flat_map(|(_, volume)| &mut volume.segments) {
            // One that may have never happened outlives nothing: where nobody could read after the crash, both may be there.
            let settled = segment.candidates.iter().filter(|candidate| {
                let write = &writes[index(candidate.write)];
                write.settled <= began && !write.is_doubtful
            });
            let newest = settled.map(|candidate| writes[index(candidate.write)].submitted).max().unwrap_or(0);
            for candidate in &mut segment.candidates {
                let older = &writes[index(candidate.write)];
                candidate.is_buried |= older.settled <= newest && older.submitted < newest;
            }
            segment.candidates.retain(|candidate| candidate.dead_at > oldest_read || !candidate.is_buried);
        }
    }

    /// A read that began at `began` returned `bytes` from `offset`.
    ///
    /// # Errors
    /// What it should not have returned.
    pub fn check_read(&mut self, id: ObjectId, offset: u64, bytes: &[u8], began: u64) -> Result<(), DataFault> {
        let now = self.tick();
        self.verified_bytes += bytes.len() as u64;
        let Some(volume) = find(&mut self.volumes, &mut self.gone, id) else { return Ok(()) };
        let range = offset..offset + bytes.len() as u64;
        let (mut seen, mut found) = (Vec::new(), Vec::new());
        let (writes, lost_at) = (&self.writes, self.lost_at);
        for segment in volume.meeting(&range) {
            let part = segment.part(&range);
            let bytes = &bytes[small(part.start - offset)..small(part.end - offset)];
            let possible = segment.candidates.iter().filter(|candidate| candidate.dead_at > began);
            let possible = possible.map(|candidate| candidate.write);
            let find_in = |start: u64, bytes: &[u8], found: &mut Vec<WriteId>| {
                let before = found.len();
                found.extend(possible.clone().filter(|id| matches(*id, writes[index(*id)].fill, start, bytes)));
                found.len() > before
            };
            found.clear();
            // Beside a write under way each block by itself is of before or after it: the read fetches blocks from a disk that goes on.
            if !find_in(part.start, bytes, &mut found) && possible.clone().any(|id| writes[index(id)].settled > began) {
                let blocks = part.start / BLOCK_BYTES..part.end.div_ceil(BLOCK_BYTES);
                let mut pieces =
                    blocks.map(|block| part.start.max(block * BLOCK_BYTES)..part.end.min((block + 1) * BLOCK_BYTES));
                let are_all = pieces.all(|piece| {
                    let bytes = &bytes[small(piece.start - part.start)..small(piece.end - part.start)];
                    find_in(piece.start, bytes, &mut found)
                });
                if !are_all {
                    found.clear();
                }
            }
            if found.is_empty() {
                let what = explain(writes, id, part.start, bytes);
                let oracle = if what.is_some() { DataOracle::StaleRead } else { DataOracle::Corrupt };
                let what = what.unwrap_or_else(|| "nothing that was ever written there".to_owned());
                return Err((oracle, format!("object {id}, bytes {part:?}: the read returned {what}")));
            }
            // Rule 2. Where several fit, what is true of each.
            let of_found = || found.iter().map(|id| &writes[index(*id)]);
            let asked = of_found().map(|write| write.submitted).min().unwrap_or(0);
            let by = of_found().map(|write| write.settled).max().unwrap_or(u64::MAX).max(lost_at).min(now);
            for candidate in segment.candidates.iter_mut().filter(|candidate| candidate.dead_at > by) {
                let other = &writes[index(candidate.write)];
                let came_before = other.settled <= began || other.precedes_from() <= asked;
                if came_before && !found.contains(&candidate.write) {
                    candidate.dead_at = by;
                }
            }
            if let [only] = found[..] {
                seen.push(only);
            }
        }
        self.settle(&seen, now);
        Ok(())
    }

    /// The process is gone: whatever was in flight has happened by now, or never will.
    pub fn crash(&mut self, loss: Loss) {
        self.reads.clear();
        self.crash_beside(loss, &[]);
    }

    /// The same of a process beside which another one lives: its changes `writes`, and reads that have not ended, are still in flight.
    pub fn crash_beside(&mut self, loss: Loss, writes: &[WriteId]) {
        let now = self.tick();
        self.crashed_at = now;
        if loss == Loss::NotLasting {
            self.lost_at = now;
            self.forget_exchanges();
        }
        self.gone.clear();
        for (id, write) in (0..).zip(&mut self.writes) {
            if writes.contains(&WriteId(id)) {
                if loss == Loss::NotLasting {
                    // What was read of it may be lost, and it is performed again.
                    (write.settled, write.was_read) = (u64::MAX, false);
                }
                continue;
            }
            let may_be_lost = loss == Loss::NotLasting && write.submitted > self.recovered_at;
            // A crash in recovery leaves those of the crash before to be judged.
            if (write.is_pending || may_be_lost) && !self.at_crash.contains(&WriteId(id)) {
                self.at_crash.push(WriteId(id));
            }
            write.is_doubtful |= write.is_pending || may_be_lost;
            if write.is_pending {
                write.is_pending = false;
                write.settled = write.settled.min(now);
                if write.expected.is_some() {
                    self.reads.retain(|read| *read != write.submitted);
                }
            }
        }
        let answers_last = self.answers_last;
        let oldest_read = self.oldest_read();
        for segment in self.volumes.values_mut().flat_map(|volume| &mut volume.segments) {
            match loss {
                // What is dead and not buried can come back with the next crash, if that one loses the log.
                Loss::Unanswered => {
                    segment
                        .candidates
                        .retain(|candidate| candidate.dead_at > oldest_read || !(answers_last || candidate.is_buried));
                }
                Loss::NotLasting => {
                    segment.candidates.retain(|candidate| !candidate.is_buried);
                    segment.candidates.iter_mut().for_each(|candidate| candidate.dead_at = u64::MAX);
                }
            }
        }
    }

    /// The process ended in order: nothing is in flight, everything lasts.
    pub fn stopped(&mut self) {
        self.crash(Loss::Unanswered);
        self.at_crash.clear();
        self.all_last();
    }

    /// A read after a crash, that began at `began`: what it returns is what is there. What is in flight beside it may still happen.
    ///
    /// # Errors
    /// What cannot be there.
    pub fn check_recovered(&mut self, id: ObjectId, offset: u64, bytes: &[u8], began: u64) -> Result<(), DataFault> {
        let now = self.tick();
        self.verified_bytes += bytes.len() as u64;
        let (oldest_read, answers_last, crashed_at) = (self.oldest_read(), self.answers_last, self.crashed_at);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(()) };
        let range = offset..offset + bytes.len() as u64;
        let writes = &self.writes;
        let fits = |candidate: &Candidate, start: u64, bytes: &[u8]| {
            matches(candidate.write, writes[index(candidate.write)].fill, start, bytes)
        };
        // Rule 3: beside a write under way each block is judged by itself.
        let torn = volume.cut(&range).filter(|segment| {
            let bytes = &bytes[small(segment.start - offset)..small(segment.end - offset)];
            let mut possible = segment.candidates.iter().filter(|candidate| candidate.dead_at > began);
            let is_beside_a_write = possible.clone().any(|candidate| writes[index(candidate.write)].settled > began);
            is_beside_a_write && !possible.any(|candidate| fits(candidate, segment.start, bytes))
        });
        let torn: Vec<_> = torn.map(|segment| segment.start..segment.end).collect();
        for segment in torn {
            for block in segment.start / BLOCK_BYTES + 1..segment.end.div_ceil(BLOCK_BYTES) {
                volume.split(block * BLOCK_BYTES);
            }
        }
        let mut seen = Vec::new();
        for segment in volume.cut(&range) {
            let bytes = &bytes[small(segment.start - offset)..small(segment.end - offset)];
            let start = segment.start;
            let fits = |candidate: &Candidate| fits(candidate, start, bytes);
            let held = segment.candidates.clone();
            let mut found = held.iter().filter(|candidate| candidate.dead_at > began && fits(candidate));
            let (first, second) = (found.next(), found.next());
            // What the recovery has found lasts. What was under way beside the crash, and came after it, hides that, and may be lost yet.
            let is_found = |candidate: &Candidate| writes[index(candidate.write)].settled <= crashed_at;
            let lasts = answers_last || first.into_iter().chain(second).chain(found).all(is_found);
            for candidate in &mut segment.candidates {
                if !fits(candidate) && writes[index(candidate.write)].settled <= began {
                    candidate.dead_at = candidate.dead_at.min(now);
                    candidate.is_buried |= lasts;
                }
            }
            segment.candidates.retain(|candidate| candidate.dead_at > oldest_read || !candidate.is_buried);
            if let (Some(only), None) = (first, second) {
                seen.push(only.write);
            }
            if first.is_none() {
                let (part, held) = (segment.start..segment.end, format!("{held:?}"));
                let what = explain(&self.writes, id, part.start, bytes);
                let oracle = if what.is_some() { DataOracle::Lost } else { DataOracle::Corrupt };
                let what = what.unwrap_or_else(|| "nothing that was ever written there".to_owned());
                return Err((
                    oracle,
                    format!("object {id}, bytes {part:?}: after the crash they are {what}, not {held}"),
                ));
            }
        }
        self.settle(&seen, now);
        Ok(())
    }

    /// Reads have returned these writes: they have happened.
    fn settle(&mut self, seen: &[WriteId], now: u64) {
        for &id in seen {
            let write = &mut self.writes[index(id)];
            if write.settled == u64::MAX && !write.is_repeated {
                (write.settled, write.was_read) = (now, true);
            }
        }
    }

    /// What died before it concerns nobody any more.
    fn oldest_read(&self) -> u64 {
        self.reads.iter().copied().min().unwrap_or(self.now)
    }

    /// Everything was read again after the crash. Recovery ends with a consistency point, so what is there now lasts.
    ///
    /// # Errors
    /// A change that is there in part (rule 5).
    pub fn judge_crash(&mut self) -> Result<(), DataFault> {
        self.judge_crash_but(None)
    }

    /// The same when one volume was not read, since it is offline: it is judged after a later reading.
    ///
    /// # Errors
    /// A change that is there in part (rule 5).
    pub fn judge_crash_but(&mut self, unread: Option<ObjectId>) -> Result<(), DataFault> {
        for id in std::mem::take(&mut self.at_crash) {
            let write = &self.writes[index(id)];
            if Some(write.volume) == unread {
                self.at_crash.push(id);
                continue;
            }
            let Some(volume) = self.volumes.get_mut(&write.volume) else { continue };
            let (mut is_there, mut is_missing) = (write.was_read && self.answers_last, None);
            // What lies beyond the size was not read.
            let range = write.range.start..write.range.end.min(volume.size_bytes);
            for segment in volume.meeting(&range) {
                let mut alive = segment.candidates.iter().filter(|candidate| candidate.is_alive());
                if let (Some(&Candidate { write: found, .. }), None) = (alive.next(), alive.next()) {
                    is_there |= found == id;
                    if found != id && self.writes[index(found)].settled <= write.submitted {
                        is_missing = Some((segment.start, found));
                    }
                }
            }
            if let (true, Some((at, found))) = (is_there, is_missing) {
                let what = format!(
                    "write {} of bytes {:?} is there, but at {at} is the older write {}",
                    id.0, write.range, found.0
                );
                return Err((DataOracle::HalfApplied, format!("object {}: {what}", write.volume)));
            }
        }
        let (oldest_read, answers_last) = (self.oldest_read(), self.answers_last);
        for (_, volume) in self.volumes.iter_mut().filter(|(id, _)| Some(**id) != unread) {
            for segment in &mut volume.segments {
                segment
                    .candidates
                    .retain(|candidate| candidate.dead_at > oldest_read || !(answers_last || candidate.is_buried));
            }
            volume.empty_beyond_size();
            volume.join(&(0..u64::MAX));
        }
        self.recovered_at = self.tick();
        self.all_last();
        Ok(())
    }
}

/// A volume that exists, or did when a request was submitted.
fn find<'a>(
    volumes: &'a mut BTreeMap<ObjectId, VolumeModel>,
    gone: &'a mut BTreeMap<ObjectId, VolumeModel>,
    id: ObjectId,
) -> Option<&'a mut VolumeModel> {
    volumes.get_mut(&id).or_else(|| gone.get_mut(&id))
}

/// Which of all writes that ever covered the place the bytes are from.
fn explain(writes: &[Write], volume: ObjectId, offset: u64, bytes: &[u8]) -> Option<String> {
    let range = offset..offset + bytes.len() as u64;
    let covers = |write: &Write| {
        let own = write.volume == volume || write.volume == ObjectId(0);
        own && write.range.start <= range.start && write.range.end >= range.end
    };
    let of = (0..).zip(writes).filter(|(_, write)| covers(write));
    let names: Vec<String> = of
        .filter(|(id, write)| matches(WriteId(*id), write.fill, offset, bytes))
        .map(|(id, write)| match write.fill {
            Fill::Zeroes => format!("zeroes (write {id})"),
            Fill::Pattern => format!("write {id}"),
        })
        .collect();
    (!names.is_empty()).then(|| names.join(" or "))
}

fn index(id: WriteId) -> usize {
    id.0 as usize
}

fn small(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}

impl Segment {
    fn part(&self, range: &Range<u64>) -> Range<u64> {
        self.start.max(range.start)..self.end.min(range.end)
    }
}

impl VolumeModel {
    /// Segments that meet `range`.
    fn meeting(&mut self, range: &Range<u64>) -> impl Iterator<Item = &mut Segment> {
        let first = self.segments.partition_point(|segment| segment.end <= range.start);
        let end = self.segments.partition_point(|segment| segment.start < range.end);
        let end = if range.is_empty() { first } else { end };
        self.segments[first..end.max(first)].iter_mut()
    }

    /// Divides the segment that has bytes before and after `bound`, if one has.
    fn split(&mut self, bound: u64) {
        let place = self.segments.partition_point(|segment| segment.end <= bound);
        if let Some(segment) = self.segments.get_mut(place).filter(|segment| segment.start < bound) {
            let mut tail = segment.clone();
            segment.end = bound;
            tail.start = bound;
            self.segments.insert(place + 1, tail);
        }
    }

    /// Segments of exactly `range`.
    fn cut(&mut self, range: &Range<u64>) -> impl Iterator<Item = &mut Segment> {
        self.split(range.start);
        self.split(range.end);
        let (first, end) = (
            self.segments.partition_point(|segment| segment.start < range.start),
            self.segments.partition_point(|segment| segment.start < range.end),
        );
        let end = if range.is_empty() { first } else { end };
        self.segments[first..end].iter_mut()
    }

    /// Nothing is under way: what lies beyond the size is zeroes.
    fn empty_beyond_size(&mut self) {
        let beyond = self.size_bytes..u64::MAX;
        for segment in self.cut(&beyond) {
            segment.candidates = vec![Candidate::new(WriteId(0))];
        }
    }

    /// Joins neighbours with the same history: those that meet `range`, and the ones beside it.
    fn join(&mut self, range: &Range<u64>) {
        let first = self.segments.partition_point(|segment| segment.end < range.start);
        let end = self.segments.partition_point(|segment| segment.start <= range.end);
        let mut kept = first;
        for next in first + 1..end {
            let [before, after] = [kept, next].map(|place| &self.segments[place]);
            if before.candidates == after.candidates {
                self.segments[kept].end = self.segments[next].end;
            } else {
                kept += 1;
                self.segments.swap(kept, next);
            }
        }
        self.segments.drain((kept + 1).min(end)..end);
    }
}

#[cfg(test)]
mod linearizable;
#[cfg(test)]
mod tests;
