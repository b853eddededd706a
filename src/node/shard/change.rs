//! Changes: admission, the record, and their effect on the volume. Replay performs records through the very same functions.
//!
//! A change enters the lane in records of at most [`CHANGE_BYTES_MAX`] of payload; each record is atomic across a crash. Before a
//! record is appended, in this order: its range lies in the volume; what it merges with is at hand; memory, space and lane have room;
//! the throttle lets it pass. After that nothing can fail.

use super::{
    Shard, State,
    compare::compare,
    loan::borrow_for_change,
    request::{Change, Kind, Request, Source},
};
use crate::{
    alloc::budget::Budget,
    base::{
        BlockSize, CpNumber, Lsn, ObjectId,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
        planted,
    },
    cp::message::VolumeChange,
    format::{
        record::{Draft, FLAG_BLOCKS_512, FLAG_KEEP_ALLOCATED, RecordKind, record_bytes},
        reference::{BlockKey, BlockRef},
    },
    fs::volume::{Overlay, Volume},
    node::request::VolumeError,
    pool::{
        io::{Io, Tag},
        tree::{Walk, levels_for},
    },
};
use std::{collections::BTreeMap, ops::Range, time::Duration};
use twinlog_device::{BlockBuf, BlockDevice, Loan, LogMemory, SharedBlock};

/// Consistency points that a change waits for space before it is refused: the first contains what was freed, the second marks it free,
/// the third is for what was admitted meanwhile.
const SPACE_TRIES_MAX: u8 = 3;

/// What stands in a change's way.
pub(super) enum Obstacle {
    /// Blocks are on their way.
    Fetch,
    /// The lane, memory or the throttle: everybody waits.
    Wait,
    /// Space: this one waits for consistency points.
    Space,
    /// It cannot be done.
    Refused(VolumeError),
    /// What the lane holds forbids it, a reservation or bytes that are not what the client expects: that can be told when it is stable.
    Forbidden(VolumeError),
}

/// Old content of a block at the edge of an unaligned range.
pub(super) type Old = Option<SharedBlock>;

/// How a change reads what it needs to know.
pub(super) struct Reading<'a, D> {
    io: &'a mut Io<D>,
    tag: Tag,
    /// What has been read for it.
    arrived: &'a BTreeMap<BlockKey, Result<SharedBlock, String>>,
    /// `None`: it reads whether or not clients have borrowed all there is, one record at a time.
    loan: Option<&'a mut Option<Loan>>,
}

impl<D: BlockDevice> Reading<'_, D> {
    /// The block, if it is in memory.
    fn known(&mut self, key: BlockKey) -> Option<SharedBlock> {
        let arrived = self.arrived.get(&key).and_then(|result| result.as_ref().ok().cloned());
        arrived.or_else(|| self.io.cached(key).cloned())
    }

    /// Reads the nodes that writing blocks `range`, or freeing them, will copy: an unreadable one is refused here, where it costs one
    /// request, and not found by the consistency point, where it costs the pool.
    fn path(&mut self, volume: &Volume, range: &Range<u64>, is_freed: bool) -> Result<(), Obstacle> {
        match volume.missing_path(range, is_freed, |key| self.known(key)) {
            None => Ok(()),
            Some((node, index)) => {
                self.fetch(volume, index, &node)?;
                Err(Obstacle::Fetch)
            }
        }
    }

    /// Has a block fetched that is not known, unless it is known to be unreadable.
    fn fetch(&mut self, volume: &Volume, index: u64, reference: &BlockRef) -> Result<(), Obstacle> {
        if let Some(Err(reason)) = self.arrived.get(&reference.key()) {
            return Err(Obstacle::Refused(VolumeError::Unreadable { block: index, reason: reason.clone() }));
        }
        if let Some(loan) = &mut self.loan {
            borrow_for_change(self.io, volume, loan)?;
        }
        let _ = self.io.fetch(reference, self.tag);
        Ok(())
    }
}

/// The record of a change that is to be performed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// There is none yet.
    New,
    /// It stands in the log, and ends here: its space was promised when it was admitted.
    Replayed(Lsn),
    /// It was held while its volume was offline, and ended here: its space is promised anew.
    Held(Lsn),
}

impl Entry {
    pub(super) fn end(self) -> Option<Lsn> {
        match self {
            Self::New => None,
            Self::Replayed(end) | Self::Held(end) => Some(end),
        }
    }
}

/// The part of a change that one record carries, with everything that its performance needs.
enum Step {
    /// Blocks with their index, ready to be shared, and the range that the record's payload covers.
    Write(u64, Vec<BlockBuf>, Range<u64>),
    /// Whole blocks to free.
    Free(Range<u64>),
    /// Edge blocks with zeroes merged in, whole blocks to free, and whether they stay allocated.
    Zero(Vec<(u64, BlockBuf)>, Range<u64>, bool),
}

impl<L: LogMemory> Shard<L> {
    /// A change takes its place in the admission queue.
    pub(super) fn line_up(&mut self, request: Request) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        let id = self.requests.insert(Request { arrival, ..request });
        self.admission.push_back(id);
    }

    /// Lets changes into the lane, in order, as far as there is room. What waits for something lets others pass, but none that overlaps it: of two
    /// changes of the same bytes the one that was submitted first is performed first.
    pub(super) fn admit<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        self.admission.extend(self.behind.drain(..));
        for _ in 0..super::APPENDS_PER_TURN {
            let Some(&id) = self.admission.front() else { return };
            if self.would_overtake(id) {
                self.step_aside(id);
                self.behind.push_back(id);
                continue;
            }
            match self.try_append(io, id, Entry::New) {
                Ok(true) => {
                    self.leave_line(id);
                    let Some(request) = self.requests.get_mut(id) else { continue };
                    let lsn = request.lsn;
                    self.answer_when_stable(lsn, id);
                }
                // A long one lets the others pass between its records.
                Ok(false) => {
                    self.step_aside(id);
                    self.admission.push_back(id);
                }
                Err(Obstacle::Fetch) => {
                    self.step_aside(id);
                    self.requests.get_mut(id).expect("it was tried").is_parked = true;
                }
                Err(Obstacle::Wait) => return,
                Err(Obstacle::Space) => {
                    self.step_aside(id);
                    self.space_waiters.push_back(id);
                    self.want_cp();
                }
                Err(Obstacle::Refused(error)) => {
                    self.leave_line(id);
                    self.refuse(id, error);
                }
                Err(Obstacle::Forbidden(error)) => {
                    self.leave_line(id);
                    self.refuse_when_stable(id, error);
                }
            }
        }
    }

    /// The first change of the queue lets others pass.
    fn step_aside(&mut self, id: u64) {
        self.admission.pop_front();
        let arrival = self.requests.get_mut(id).map(|request| request.arrival);
        self.out_of_line.extend(arrival.map(|arrival| (arrival, id)));
    }

    /// The first change of the queue is done with.
    fn leave_line(&mut self, id: u64) {
        self.admission.pop_front();
        self.leave_place(id);
    }

    /// Nobody waits behind it any more.
    pub(super) fn leave_place(&mut self, id: u64) {
        if let Some(request) = self.requests.get_mut(id) {
            self.out_of_line.remove(&request.arrival);
        }
    }

    /// Whether a change that came before this one and meets it has not been performed.
    fn would_overtake(&mut self, id: u64) -> bool {
        if self.out_of_line.is_empty() || planted::is("overlapping-change-overtakes") {
            return false;
        }
        let Some(request) = self.requests.get_mut(id) else { return false };
        let (scope, arrival) = (request.scope(), request.arrival);
        let requests = &mut self.requests;
        let meets = |older: u64| requests.get_mut(older).is_some_and(|older| older.scope().meets(&scope));
        self.out_of_line.range(..arrival).map(|(_, &older)| older).any(meets)
    }

    /// A consistency point is durable: whoever waits for space may try again.
    pub(super) fn retry_space_waiters(&mut self) {
        for id in std::mem::take(&mut self.space_waiters).into_iter().rev() {
            if planted::is("space-waiters-forgotten") {
                continue;
            }
            let Some(request) = self.requests.get_mut(id) else { continue };
            if !self.options.budget.is_returning() {
                request.space_tries += 1;
            }
            if request.space_tries > SPACE_TRIES_MAX {
                self.leave_place(id);
                self.refuse(id, VolumeError::NoSpace);
            } else {
                self.admission.push_front(id);
            }
        }
    }

    /// Begins a change of a volume as a whole.
    pub(super) fn submit_volume_change(&mut self, call: u64, id: ObjectId, change: VolumeChange) {
        let flush = crate::node::request::VolumeOperation::Flush;
        let mut request = Request::new(Source::Volume(call), id, flush, self.now);
        request.kind = Kind::Change { change: Change::Volume(change), durable: false };
        if let State::Stopped(reason) = &self.state {
            let error = VolumeError::Stopped(reason.clone());
            return self.reply(request.ended(), Err(error));
        }
        self.line_up(request);
    }

    /// Performs the next record of a change; a new one is appended before. True when that was the last.
    pub(super) fn try_append<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        id: u64,
        entry: Entry,
    ) -> Result<bool, Obstacle> {
        let Some(place) = self.requests.get_mut(id) else { return Ok(true) };
        let mut request = std::mem::replace(place, Request::placeholder());
        let result = self.append_part(io, id, &mut request, entry);
        let is_done = matches!(request.kind, Kind::Change { change: Change::Done, .. });
        *self.requests.get_mut(id).expect("it was there") = request;
        result.map(|()| is_done)
    }

    fn append_part<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        id: u64,
        request: &mut Request,
        entry: Entry,
    ) -> Result<(), Obstacle> {
        if matches!(request.kind, Kind::Change { change: Change::Reserve(_) | Change::SetReservation(_), .. }) {
            return self.append_reservation(id, request, entry);
        }
        let is_judged = matches!(entry, Entry::New) && !planted::is("reservation-judged-on-arrival");
        if is_judged && !self.allows(request) {
            return Err(Obstacle::Forbidden(VolumeError::ReservationConflict));
        }
        let range = request.range();
        let tag = Tag { owner: self.options.owners.requests, id };
        let loan = matches!(entry, Entry::New).then_some(&mut request.loan);
        let mut reading = Reading { io, tag, arrived: &request.arrived, loan };
        let Kind::Change { change, .. } = &mut request.kind else { unreachable!("only changes are appended") };
        if let Change::Volume(volume_change) = change {
            let volume_change = volume_change.clone();
            if let (VolumeChange::Resize(size_bytes), Some(volume)) =
                (&volume_change, self.volumes.get(&request.volume))
            {
                reading.path(volume, &(size_bytes / BLOCK_BYTES..volume.block_count()), true)?;
                if levels_for(size_bytes / BLOCK_BYTES) > volume.record().levels {
                    // The root becomes the child of a new one.
                    reading.path(volume, &(0..1), false)?;
                }
            }
            request.lsn = self.perform_on_volume(request.volume, &volume_change, entry)?;
            *change = Change::Done;
            return Ok(());
        }
        let Some(volume) = self.volumes.get(&request.volume) else {
            return Err(Obstacle::Refused(VolumeError::NoSuchVolume));
        };
        if range.end > volume.record().size_bytes {
            return Err(Obstacle::Refused(VolumeError::OutOfRange));
        }
        compare(volume, &range, request.expected.as_deref(), &mut reading)?;
        let part = next_part(change, &range);
        if matches!(change, Change::Discard(_)) && whole_blocks(&part).is_empty() {
            *change = Change::Done;
            return Ok(());
        }
        read_paths(volume, change, &part, &mut reading)?;
        let edges = match change {
            Change::Discard(_) => Vec::new(),
            _ => old_edges(volume, &part, &mut reading)?,
        };
        let (cost, is_urgent) = cost(volume, change, &part);
        let frees = matches!(change, Change::Discard(_) | Change::Zero(_, false));
        let lists = if frees { volume.free_list_cost() } else { 0 };
        let payload = if matches!(change, Change::Write(..)) { part.end - part.start } else { 0 };
        let (lists, pause) = self.promise(entry, payload, (cost, lists, is_urgent))?;
        let step = match self.prepare(io, change, &part, edges) {
            Ok(step) => step,
            Err(obstacle) => {
                self.options.budget.give_back(i64::try_from(cost + lists).expect("bounded by the request"));
                return Err(obstacle);
            }
        };
        let request_id = request.source.record_id(id);
        let draft = self.draft(request.volume, change, &part, request_id);
        self.forwarded.note(draft.request_id);
        request.lsn = self.append(&draft, &step, entry);
        let taken = self.perform(request.volume, step, request.lsn);
        assert!(taken <= cost, "{taken} blocks were taken where {cost} were reserved");
        self.options.budget.give_back(i64::try_from(cost - taken).expect("bounded by the request"));
        self.reserved_active += taken;
        self.reserved_lists += lists;
        self.oldest_change.get_or_insert(self.now);
        self.pace.passed(self.now, pause);
        request.arrived.clear();
        request.loan = None;
        advance(change, part.end);
        Ok(())
    }

    /// Promises the space of a record, and what its lists may take. Returns the latter, and how much the record is to be delayed.
    fn promise(
        &mut self,
        entry: Entry,
        payload: u64,
        (cost, lists, is_urgent): (u64, u64, bool),
    ) -> Result<(u64, Duration), Obstacle> {
        let mut pause = Duration::ZERO;
        match entry {
            Entry::New => {
                pause = self.check_room(payload, cost)?;
                self.check_pace(pause)?;
            }
            Entry::Held(_) => self.check_memory(cost)?,
            Entry::Replayed(_) => {
                self.options.budget.reserve_again(cost);
                return Ok((0, pause));
            }
        }
        Ok((reserve(&self.options.budget, (cost, lists), is_urgent)?, pause))
    }

    /// Whether lane and memory have room for a record with a payload of so many bytes; returns how much it is to be delayed.
    pub(super) fn check_room(&mut self, payload: u64, cost: u64) -> Result<Duration, Obstacle> {
        let State::Serving(lane) = &self.state else { return Err(Obstacle::Wait) };
        let has_space = lane.has_space_for(payload);
        self.check_memory(cost)?;
        if !has_space {
            self.want_cp();
            return Err(Obstacle::Wait);
        }
        let State::Serving(lane) = &self.state else { return Err(Obstacle::Wait) };
        if !lane.room_for(payload) {
            return Err(Obstacle::Wait);
        }
        Ok(self.pause(lane, record_bytes(payload)))
    }

    /// Whether memory has room for so many dirty blocks more.
    pub(super) fn check_memory(&mut self, cost: u64) -> Result<(), Obstacle> {
        if self.reserved_active + self.reserved_frozen + cost > self.options.dirty_blocks_max {
            self.want_cp();
            return Err(Obstacle::Wait);
        }
        Ok(())
    }

    /// Whether the throttle lets a record pass that is delayed by `pause`.
    fn check_pace(&mut self, pause: Duration) -> Result<(), Obstacle> {
        self.throttled_until = self.pace.next_at(pause);
        if self.throttled_until > self.now { Err(Obstacle::Wait) } else { Ok(()) }
    }

    /// Merges edges and takes the memory that the step needs.
    fn prepare<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        change: &mut Change,
        part: &Range<u64>,
        edges: Vec<(u64, Old)>,
    ) -> Result<Step, Obstacle> {
        let first = part.start / BLOCK_BYTES;
        match change {
            Change::Write(_, blocks) => {
                let count = part.end.div_ceil(BLOCK_BYTES) - first;
                let mut blocks: Vec<_> = blocks.take(usize::try_from(count).expect("inside a request")).collect();
                for (index, old) in edges {
                    let position = usize::try_from(index - first).expect("inside a request");
                    merge_outside(&mut blocks[position], within(part, index), old.as_ref());
                }
                Ok(Step::Write(first, blocks, part.clone()))
            }
            Change::Discard(_) => {
                let mut whole = whole_blocks(part);
                whole.end += u64::from(planted::is("discard-a-block-too-long"));
                Ok(Step::Free(whole))
            }
            Change::Zero(_, keep) => {
                let mut merged = Vec::new();
                for (index, old) in edges {
                    // The edge of a hole stays a hole.
                    let Some(old) = old else { continue };
                    let mut block = io.allocate().ok_or(Obstacle::Wait)?;
                    block.copy_from_slice(&*old);
                    block[within(part, index)].fill(0);
                    merged.push((index, block));
                }
                if *keep && self.zero_block.is_none() {
                    let mut zero = io.allocate().ok_or(Obstacle::Wait)?;
                    zero.fill(0);
                    self.zero_block = Some(zero.freeze());
                }
                Ok(Step::Zero(merged, whole_blocks(part), *keep))
            }
            _ => unreachable!("they have no parts"),
        }
    }

    fn draft(&self, object: ObjectId, change: &Change, part: &Range<u64>, request_id: u64) -> Draft {
        let aligned = part.start.is_multiple_of(BLOCK_BYTES)
            && part.end.is_multiple_of(BLOCK_BYTES)
            && !planted::is("no-block-descriptors");
        let (kind, argument, flags) = match change {
            Change::Write(..) if aligned => (RecordKind::Block, 0, 0),
            Change::Write(..) => (RecordKind::Write, 0, 0),
            Change::Discard(_) => (RecordKind::Discard, part.end - part.start, 0),
            Change::Zero(_, keep) => {
                (RecordKind::WriteZeroes, part.end - part.start, if *keep { FLAG_KEEP_ALLOCATED } else { 0 })
            }
            _ => unreachable!("they have no parts"),
        };
        Draft { kind, object, offset_bytes: part.start, argument, flags, time_ns: self.wall_clock_ns, request_id }
    }

    /// Puts the record into the lane, unless it is there already. Returns the position after it.
    fn append(&mut self, draft: &Draft, step: &Step, entry: Entry) -> Lsn {
        if let Some(end) = entry.end() {
            return end;
        }
        let State::Serving(lane) = &mut self.state else { unreachable!("room was checked in a serving lane") };
        match step {
            Step::Write(first, blocks, part) => {
                let parts: Vec<&[u8]> =
                    (*first..).zip(blocks).map(|(index, block)| &block[within(part, index)]).collect();
                lane.append(draft, &parts)
            }
            Step::Free(_) | Step::Zero(..) => lane.append(draft, &[]),
        }
    }

    /// Performs a record on its volume. Returns how the reservation of the active generation grew.
    fn perform(&mut self, id: ObjectId, step: Step, lsn: Lsn) -> u64 {
        let volume = self.volumes.get_mut(&id).expect("looked up before");
        match step {
            Step::Write(first, blocks, _) => {
                (first..).zip(blocks).map(|(index, block)| volume.write(index, block.freeze(), lsn)).sum()
            }
            Step::Free(range) => volume.free(&range, lsn),
            Step::Zero(edges, whole, keep) => {
                let mut taken = 0;
                if !whole.is_empty() && keep {
                    let zero = self.zero_block.clone().expect("prepared");
                    taken += whole.map(|index| volume.write(index, zero.clone(), lsn)).sum::<u64>();
                } else if !whole.is_empty() {
                    taken += volume.free(&whole, lsn);
                }
                taken + edges.into_iter().map(|(index, block)| volume.write(index, block.freeze(), lsn)).sum::<u64>()
            }
        }
    }

    /// Makes, resizes or deletes a volume. Returns the position after the record.
    fn perform_on_volume(&mut self, id: ObjectId, change: &VolumeChange, entry: Entry) -> Result<Lsn, Obstacle> {
        let is_there = self.volumes.contains_key(&id);
        if is_there == matches!(change, VolumeChange::Create { .. }) {
            return Err(Obstacle::Refused(VolumeError::NoSuchVolume));
        }
        if let (Entry::New, VolumeChange::Resize(_)) = (entry, change)
            && let Some(reason) = self.offline_reason(id)
        {
            return Err(Obstacle::Refused(VolumeError::Offline(reason)));
        }
        let frees = |volume: &Volume| volume.free_cost() + volume.free_list_cost();
        let cost = match change {
            VolumeChange::Resize(_) => self.volumes.get(&id).map_or(0, frees) + 8,
            VolumeChange::Create { .. } | VolumeChange::Delete => {
                self.volumes.get(&id).map_or(0, Volume::free_cost) + 8
            }
        };
        let (kind, argument, name) = match change {
            VolumeChange::Create { name, size_bytes, .. } => (RecordKind::Create, *size_bytes, name.as_bytes()),
            VolumeChange::Resize(size_bytes) => (RecordKind::Resize, *size_bytes, &[][..]),
            VolumeChange::Delete => (RecordKind::Delete, 0, &[][..]),
        };
        match entry {
            Entry::New => {
                self.check_room(name.len() as u64, cost)?;
                reserve(&self.options.budget, (cost, 0), matches!(change, VolumeChange::Delete))?;
            }
            Entry::Replayed(_) => self.options.budget.reserve_again(cost),
            Entry::Held(_) => drop(reserve(&self.options.budget, (cost, 0), false)?),
        }
        let time_ns = self.wall_clock_ns;
        let flags = match change {
            VolumeChange::Create { block_size: BlockSize::Bytes512, .. } => FLAG_BLOCKS_512,
            _ => 0,
        };
        let draft = Draft { kind, object: id, offset_bytes: 0, argument, flags, time_ns, request_id: 0 };
        let lsn = entry.end().unwrap_or_else(|| {
            let State::Serving(lane) = &mut self.state else { unreachable!("room was checked in a serving lane") };
            lane.append(&draft, if name.is_empty() { &[] } else { std::slice::from_ref(&name) })
        });
        self.reserved_active += cost;
        self.oldest_change.get_or_insert(self.now);
        match change {
            VolumeChange::Create { name, size_bytes, block_size, time_ns: recorded_ns } => {
                let time_ns = if *recorded_ns == 0 { time_ns } else { *recorded_ns };
                let born = (CpNumber(self.cp_number.0 + 1), time_ns);
                self.volumes.insert(id, Volume::create(id, name.clone(), (*size_bytes, *block_size), born));
            }
            VolumeChange::Resize(size_bytes) => {
                let volume = self.volumes.get_mut(&id).expect("looked up before");
                let (old, new) = (volume.block_count(), size_bytes / BLOCK_BYTES);
                if new < old {
                    // Covered by `free_cost` above.
                    let _ = if planted::is("resize-keeps-tail") { 0 } else { volume.free(&(new..old), lsn) };
                }
                volume.resize(*size_bytes);
            }
            VolumeChange::Delete => {
                self.deleted.extend(self.volumes.remove(&id));
                self.figures.remove(&id);
            }
        }
        Ok(lsn)
    }
}

/// Reserves blocks for a change and for its lists; returns the latter. What is kept back for urgent changes has room for the lists of the
/// few that it has room for.
pub(super) fn reserve(budget: &Budget, (blocks, lists): (u64, u64), is_urgent: bool) -> Result<u64, Obstacle> {
    if planted::is("reservation-forgotten") {
        budget.reserve_again(blocks);
        return Ok(0);
    }
    if budget.reserve(blocks + lists) {
        Ok(lists)
    } else if is_urgent && budget.reserve_urgent(blocks) {
        Ok(0)
    } else {
        Err(Obstacle::Space)
    }
}

/// The range of the next record.
fn next_part(change: &Change, range: &Range<u64>) -> Range<u64> {
    let end = match change {
        Change::Write(..) | Change::Zero(_, true) => {
            (range.start / BLOCK_BYTES * BLOCK_BYTES + CHANGE_BYTES_MAX).min(range.end)
        }
        _ => range.end,
    };
    range.start..end
}

/// What is left of a change once its range up to `end` has been appended.
fn advance(change: &mut Change, end: u64) {
    let rest = match change {
        Change::Write(range, _) | Change::Discard(range) | Change::Zero(range, _) => range,
        _ => return,
    };
    rest.start = end;
    if rest.is_empty() {
        *change = Change::Done;
    }
}

/// Blocks that `range` covers whole.
pub(super) fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    let start = range.start.div_ceil(BLOCK_BYTES);
    start..(range.end / BLOCK_BYTES).max(start)
}

/// The bytes of block `index` that lie in `range`.
pub(super) fn within(range: &Range<u64>, index: u64) -> Range<usize> {
    let first = index * BLOCK_BYTES;
    let small = |number: u64| usize::try_from(number).expect("inside a block");
    small(range.start.max(first) - first)..small(range.end.min(first + BLOCK_BYTES) - first)
}

/// Worst-case blocks of a record, and whether it may use what is kept back for changes that free space.
fn cost(volume: &Volume, change: &Change, part: &Range<u64>) -> (u64, bool) {
    let first = part.start / BLOCK_BYTES;
    let count = part.end.div_ceil(BLOCK_BYTES) - first;
    match change {
        Change::Write(..) | Change::Zero(_, true) => (volume.write_cost(first, count), false),
        Change::Zero(_, false) => (volume.free_cost() + 2 * volume.write_cost(first, 2), false),
        Change::Discard(_) => (volume.free_cost(), true),
        _ => unreachable!("they have no parts"),
    }
}

/// Reads the nodes that a record's consistency point will copy.
fn read_paths<D: BlockDevice>(
    volume: &Volume,
    change: &Change,
    part: &Range<u64>,
    reading: &mut Reading<'_, D>,
) -> Result<(), Obstacle> {
    match change {
        Change::Discard(_) | Change::Zero(_, false) => reading.path(volume, &whole_blocks(part), true),
        _ => reading.path(volume, &(part.start / BLOCK_BYTES..part.end.div_ceil(BLOCK_BYTES)), false),
    }
}

/// The old content of the blocks that `part` covers only in part: at most two.
fn old_edges<D: BlockDevice>(
    volume: &Volume,
    part: &Range<u64>,
    reading: &mut Reading<'_, D>,
) -> Result<Vec<(u64, Old)>, Obstacle> {
    let mut edges = Vec::new();
    let mut is_complete = true;
    let (first, last) = (part.start / BLOCK_BYTES, (part.end - 1) / BLOCK_BYTES);
    for index in [first, last] {
        let is_whole = within(part, index) == (0..twinlog_device::BLOCK_BYTES);
        if is_whole || edges.last().is_some_and(|(known, _)| *known == index) {
            continue;
        }
        match old_block(volume, index, reading)? {
            Some(old) => edges.push((index, old)),
            None => is_complete = false,
        }
    }
    if is_complete { Ok(edges) } else { Err(Obstacle::Fetch) }
}

/// The old content of a block: `None` while something is on its way.
pub(super) fn old_block<D: BlockDevice>(
    volume: &Volume,
    index: u64,
    reading: &mut Reading<'_, D>,
) -> Result<Option<Old>, Obstacle> {
    match volume.overlay(index) {
        Overlay::Hole(_) => return Ok(Some(None)),
        Overlay::Block(block, _) => return Ok(Some(Some(block))),
        Overlay::Below => {}
    }
    match volume.walker().walk(index, |key| reading.known(key)) {
        Walk::Hole(_) => return Ok(Some(None)),
        Walk::Missing(node) => reading.fetch(volume, index, &node)?,
        Walk::Found(reference) => match reading.known(reference.key()) {
            Some(block) => return Ok(Some(Some(block))),
            None => reading.fetch(volume, index, &reference)?,
        },
    }
    Ok(None)
}

/// Gives `block` its old content outside of `new`.
fn merge_outside(block: &mut BlockBuf, new: Range<usize>, old: Option<&SharedBlock>) {
    for outside in [0..new.start, new.end..twinlog_device::BLOCK_BYTES] {
        match old {
            Some(old) if !planted::is("edge-not-merged") => block[outside.clone()].copy_from_slice(&old[outside]),
            _ => block[outside].fill(0),
        }
    }
}
