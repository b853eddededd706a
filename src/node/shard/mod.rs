//! A shard: one lane of a pool's change log, the volumes whose changes go there, and the requests to them.
//!
//! # Life of a shard
//!
//! ```text
//! Closed --Open--> Scanning --end of lane--> Replayed --Durable--> Serving --Stop or error--> Stopped
//!                  each record is performed   the consistency       requests are
//!                  by the code that requests   point that ends       answered
//!                  use                         recovery
//! ```
//!
//! # Invariants
//!
//! 1. A change is answered when the lane is stable up to the end of its last record (rule R1), never before.
//! 2. A read returns the content of blocks as it found them when it arrived, and is answered when the lane is stable up to the
//!    newest record among them (rule R5).
//! 3. A change enters the lane only after its worst-case space is reserved, everything it needs to read is at hand, and the nodes
//!    that its consistency point will copy were readable: from then on nothing can refuse it (rule R8).
//! 4. `reserved_active + reserved_frozen` bounds the memory that consistency points will take; with `reserved_lists`, the space.
//! 5. Every request ends in exactly one reply.
//! 6. A volume of which recovery could not perform a record is offline: the record and all later ones of the volume are held, in order, and are
//!    in the consistency point that ends the recovery. What is asked of the volume is refused, until a consistency point contains all of them.
//! 7. A host's change that came through the partner, or has waited for the pool, is performed only with a [`Pass`](crate::base::Pass) that is alive.
//! 8. A request reads only after it has borrowed the memory for all that it holds at once: see [the division of
//!    memory](super::memory).

mod change;
mod compare;
mod loan;
mod mirror;
mod online;
mod pass;
mod read;
mod replay;
mod request;
mod reservation;
mod status;

pub use request::{Origin, Source};

use crate::{
    alloc::budget::Budget,
    base::{CpNumber, Epoch, ForwardedChanges, LaneIndex, Lsn, ObjectId, PoolId, Slab, limits::BLOCK_BYTES, planted},
    changelog::{
        lane::Lane,
        throttle::{Drain, Pace, delay, is_much, should_checkpoint},
    },
    cp::{
        message::{ToCoordinator, ToShard},
        shard::ShardCp,
    },
    format::lane_header::LaneIdentity,
    fs::volume::Volume,
    node::{
        figures::VolumeFigures,
        request::{ReservationNotice, VolumeError, VolumeReply, VolumeRequest},
    },
    pool::io::{Io, IoEvent, Tag},
};
use pass::Passes;
use request::Request;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::Duration,
};
use twinlog_device::{BlockDevice, DeviceError, DurabilityClass, LogMemory, Nanos, SharedBlock};

/// Changes that one turn appends at most.
const APPENDS_PER_TURN: usize = 128;
/// Records that one turn replays at most.
const REPLAYS_PER_TURN: usize = 64;

/// Owners of a shard's I/O events on its reactor.
#[derive(Clone, Copy, Debug)]
pub struct ShardOwners {
    /// Requests.
    pub requests: u16,
    /// Consistency points.
    pub cp: u16,
}

/// What a shard is given at its birth.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Its lane.
    pub lane: LaneIndex,
    /// Its I/O owners.
    pub owners: ShardOwners,
    /// The pool's budget.
    pub budget: Budget,
    /// Bound of `reserved_active + reserved_frozen`.
    pub dirty_blocks_max: u64,
}

/// How far a shard is.
enum State<L: LogMemory> {
    Closed(L),
    Scanning(Box<replay::Replay<L>>),
    Replayed { log: L, identity: LaneIdentity, epoch: Epoch, head: Lsn, is_mirrored: bool },
    Serving(Box<Lane<L>>),
    Stopped(String),
}

/// A shard.
pub struct Shard<L: LogMemory> {
    options: ShardOptions,
    state: State<L>,
    volumes: BTreeMap<ObjectId, Volume>,
    /// Volumes deleted in the active generation.
    deleted: Vec<Volume>,
    figures: BTreeMap<ObjectId, VolumeFigures>,
    requests: Slab<Request>,
    /// Calls that bring volumes back; the first one is under way.
    onlines: VecDeque<online::Online>,
    /// Changes in the order in which they want to enter the lane.
    admission: VecDeque<u64>,
    /// Changes that were taken.
    arrivals: u64,
    /// Those that have left their place in the admission queue and are not appended, by arrival: others may pass, unless they overlap.
    out_of_line: BTreeMap<u64, u64>,
    /// Those of them that wait for nothing but another one.
    behind: VecDeque<u64>,
    space_waiters: VecDeque<u64>,
    /// Requests that wait for memory to read into.
    loan_waiters: VecDeque<u64>,
    /// Reads that go on in the next turn of the lane. One that was woken meanwhile is here twice, and taken once: what it lacks is looked for again, and its
    /// answer ends its key.
    reads: Vec<u64>,
    /// Requests that wait for the lane to be stable up to a position.
    stable_waiters: BinaryHeap<Reverse<(Lsn, u64)>>,
    /// Requests that wait for a consistency point that contains a position.
    cp_waiters: BTreeSet<(Lsn, u64)>,
    woken: Vec<u64>,
    cp: Option<ShardCp>,
    cp_asked: bool,
    cp_number: CpNumber,
    pool: PoolId,
    /// Forwarded changes that were performed, replayed ones included.
    forwarded: ForwardedChanges,
    /// What lets changes of hosts in that did not come straight here.
    passes: Passes,
    /// Whether the coordinator waits for the partner to have everything that may have been answered.
    catches_up: bool,
    reserved_active: u64,
    /// Blocks reserved for the lists of what the active generation frees.
    reserved_lists: u64,
    reserved_frozen: u64,
    oldest_change: Option<Nanos>,
    pace: Pace,
    drain: Drain,
    /// Of the consistency point in progress: what it gives back of the lane.
    frozen_bytes: u64,
    throttled_until: Nanos,
    zero_block: Option<SharedBlock>,
    replies: VecDeque<(Origin, VolumeReply)>,
    /// What hosts are to be told, and behind which record.
    notices: VecDeque<(Lsn, ReservationNotice)>,
    messages: VecDeque<ToCoordinator>,
    now: Nanos,
    wall_clock_ns: u64,
}

impl<L: LogMemory> Shard<L> {
    /// A shard whose lane lies in `log`.
    #[must_use]
    pub fn new(log: L, options: ShardOptions) -> Self {
        Self {
            options,
            state: State::Closed(log),
            volumes: BTreeMap::new(),
            deleted: Vec::new(),
            figures: BTreeMap::new(),
            requests: Slab::default(),
            onlines: VecDeque::new(),
            admission: VecDeque::new(),
            arrivals: 0,
            out_of_line: BTreeMap::new(),
            behind: VecDeque::new(),
            space_waiters: VecDeque::new(),
            loan_waiters: VecDeque::new(),
            stable_waiters: BinaryHeap::new(),
            reads: Vec::new(),
            cp_waiters: BTreeSet::new(),
            woken: Vec::new(),
            cp: None,
            cp_asked: false,
            cp_number: CpNumber(0),
            pool: PoolId(0),
            forwarded: ForwardedChanges::none(1),
            passes: Passes::default(),
            catches_up: false,
            reserved_active: 0,
            reserved_lists: 0,
            reserved_frozen: 0,
            oldest_change: None,
            pace: Pace::default(),
            drain: Drain::default(),
            frozen_bytes: 0,
            throttled_until: Nanos(0),
            zero_block: None,
            replies: VecDeque::new(),
            notices: VecDeque::new(),
            messages: VecDeque::new(),
            now: Nanos(0),
            wall_clock_ns: 0,
        }
    }

    /// Its lane.
    #[must_use]
    pub fn lane_index(&self) -> LaneIndex {
        self.options.lane
    }

    /// Whether it has stopped and answered everything. One that was never opened has nothing to answer.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let is_over = matches!(self.state, State::Stopped(_) | State::Closed(_));
        is_over && self.requests.is_empty() && self.replies.is_empty()
    }

    /// When `poll` has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let State::Serving(lane) = &self.state else { return None };
        let age = self.oldest_change.filter(|_| !self.cp_asked && self.cp.is_none());
        let age = age.map(|oldest| oldest + crate::changelog::throttle::CHECKPOINT_AGE);
        let throttle = (!self.admission.is_empty() && self.throttled_until > self.now).then_some(self.throttled_until);
        let loan = (!self.loan_waiters.is_empty()).then(|| self.now + loan::RETRY);
        let online = (!self.onlines.is_empty()).then(|| self.now + loan::RETRY);
        [lane.next_deadline(), age, throttle, loan, online].into_iter().flatten().min()
    }

    /// The next reply.
    pub fn next_reply(&mut self) -> Option<(Origin, VolumeReply)> {
        self.replies.pop_front()
    }

    /// The next message for the coordinator.
    pub fn next_message(&mut self) -> Option<ToCoordinator> {
        self.messages.pop_front()
    }

    /// A message from the coordinator.
    pub fn receive(&mut self, message: ToShard) {
        match message {
            ToShard::Open(opening) => self.begin_replay(*opening),
            ToShard::Freeze(cp) => self.freeze(cp),
            // After a failure the consistency point is gone, and a coordinator that has not heard of it yet goes on.
            ToShard::Space(ranges) => {
                if let Some(cp) = &mut self.cp {
                    cp.space(ranges);
                }
            }
            ToShard::Durable(cp) => self.durable(cp),
            ToShard::Volume { call, id, change } => self.submit_volume_change(call, id, change),
            ToShard::Online { call, id, accept_loss } => self.begin_online(call, id, accept_loss),
            ToShard::Mirror(order) => self.mirror(order),
            ToShard::Stop(reason) => self.stop(reason),
        }
    }

    /// Takes a request; its reply comes from `next_reply`.
    pub fn submit<D: BlockDevice>(&mut self, io: &mut Io<D>, origin: Origin, request: VolumeRequest) {
        let verdict = self.passes.judge(&request);
        let VolumeRequest { tag, volume, host, operation, .. } = request;
        let request = Request { host, ..Request::new(Source::Client(origin, tag), volume, operation, self.now) };
        if let State::Stopped(reason) = &self.state {
            let error = VolumeError::Stopped(reason.clone());
            return self.reply(request.ended(), Err(error));
        }
        match verdict {
            Ok(()) => self.begin(io, request),
            Err(late) => self.reply(request.ended(), Err(late)),
        }
    }

    /// An I/O event of one of the shard's owners.
    pub fn event(&mut self, event: IoEvent) {
        let tag = match &event {
            IoEvent::Fetched { tag, .. } | IoEvent::Done { tag, .. } => *tag,
        };
        if tag.owner == self.options.owners.requests {
            let IoEvent::Fetched { key, result, .. } = event else { unreachable!("requests only fetch") };
            if tag.id == online::HELD {
                return self.held_arrived(key, result);
            }
            if let Some(request) = self.requests.get_mut(tag.id) {
                request.arrived.insert(key, result);
                if !std::mem::replace(&mut request.is_woken, true) {
                    self.woken.push(tag.id);
                }
            }
            return;
        }
        // After a stop the consistency point is gone, and its I/O is nobody's.
        if let Some(cp) = &mut self.cp
            && let Err(reason) = cp.event(event)
        {
            self.fail(reason);
        }
    }

    /// A turn begins: what is submitted in it is as old as the turn, not as the one before, since which the reactor may have slept.
    pub fn begin_turn(&mut self, now: Nanos, wall_clock_ns: u64) {
        (self.now, self.wall_clock_ns) = (now, wall_clock_ns);
    }

    /// Goes on for one turn. Returns whether a replay or a consistency point goes on that may have more to do: nothing else may bring
    /// the next turn.
    pub fn poll<D: BlockDevice>(&mut self, io: &mut Io<D>) -> bool {
        for id in std::mem::take(&mut self.woken) {
            self.wake(io, id);
        }
        self.retry_loans(io);
        self.take_reads(io);
        let mut worked = false;
        match &self.state {
            State::Scanning(_) => worked = self.replay(io),
            State::Serving(_) => {
                self.serve_turn(io);
                worked = self.online_turn(io);
            }
            State::Closed(_) | State::Replayed { .. } | State::Stopped(_) => {}
        }
        let is_stable = match (&self.state, &self.cp) {
            (State::Serving(lane), Some(cp)) => lane.durable() >= cp.applied(),
            _ => true,
        };
        if let Some(cp) = &mut self.cp {
            let (went_on, message) = cp.step(io, is_stable);
            self.messages.extend(message);
            worked |= went_on;
        }
        worked
    }

    /// A turn of a lane in use.
    fn serve_turn<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        if let Err(error) = self.poll_lane() {
            return self.fail(error.to_string());
        }
        self.admit(io);
        // What was admitted leaves in this turn: nobody waits for a batch to fill.
        if let Err(error) = self.poll_lane() {
            return self.fail(error.to_string());
        }
        self.answer_stable();
        self.tell_caught_up();
        self.consider_checkpoint();
    }

    fn poll_lane(&mut self) -> Result<(), DeviceError> {
        let State::Serving(lane) = &mut self.state else { return Ok(()) };
        lane.poll(self.now)
    }

    fn tag(&self, id: u64) -> Tag {
        Tag { owner: self.options.owners.requests, id }
    }

    /// Asks for a consistency point, once until it begins.
    fn want_cp(&mut self) {
        if !std::mem::replace(&mut self.cp_asked, true) {
            self.messages.push_back(ToCoordinator::Wanted);
        }
    }

    fn consider_checkpoint(&mut self) {
        let State::Serving(lane) = &self.state else { return };
        let oldest = self.oldest_change.filter(|_| lane.has_changes()).map(|at| self.now.since(at));
        let is_full = is_much(self.reserved_active, self.options.dirty_blocks_max);
        if is_full || should_checkpoint(lane.used_bytes(), lane.ring_bytes(), oldest) {
            self.want_cp();
        }
    }

    /// How much the next change of `record_bytes` is delayed: by the lane or by memory, whichever has less left.
    fn pause(&self, lane: &Lane<L>, record_bytes: u64) -> Duration {
        let used = lane.used_bytes();
        let frozen = self.frozen_bytes.min(used);
        let of_lane = delay(used - frozen + self.drain.owed(self.now, frozen), lane.ring_bytes(), record_bytes);
        let blocks = self.reserved_active + self.drain.owed(self.now, self.reserved_frozen);
        of_lane.max(delay(blocks, self.options.dirty_blocks_max, record_bytes))
    }

    fn freeze(&mut self, cp: CpNumber) {
        let applied = match &self.state {
            State::Serving(lane) => lane.appended(),
            State::Replayed { .. } if planted::is("recovery-does-not-advance") => Lsn(0),
            State::Replayed { head, .. } => *head,
            _ => return,
        };
        let applied = if planted::is("applied-too-far") { applied.plus(128) } else { applied };
        self.cp_asked = false;
        self.oldest_change = None;
        let numbers = (cp, self.options.lane, self.options.owners.cp);
        let deleted = std::mem::take(&mut self.deleted);
        let mut shard_cp = ShardCp::freeze(numbers, &mut self.volumes, deleted, applied);
        self.reserved_frozen = std::mem::take(&mut self.reserved_active);
        self.frozen_bytes = if let State::Serving(lane) = &self.state { lane.used_bytes() } else { 0 };
        self.drain.begin(self.now, self.reserved_frozen);
        if !planted::is("names-not-in-superblock") {
            shard_cp.set_forwarded(self.forwarded.clone());
        }
        shard_cp.set_reserved(self.reserved_frozen + std::mem::take(&mut self.reserved_lists));
        self.cp = Some(shard_cp);
    }

    fn durable(&mut self, number: CpNumber) {
        let Some(cp) = self.cp.take() else { return };
        assert_eq!(cp.number(), number, "one consistency point at a time");
        let applied = cp.applied();
        cp.thaw(&mut self.volumes, &mut self.deleted);
        self.drain.end(self.now, self.options.dirty_blocks_max / 16);
        (self.reserved_frozen, self.frozen_bytes) = (0, 0);
        self.cp_number = number;
        if let State::Serving(lane) = &mut self.state {
            lane.trim(applied);
        } else {
            self.serve();
        }
        while let Some(&(lsn, id)) = self.cp_waiters.first().filter(|(lsn, _)| *lsn <= applied) {
            self.cp_waiters.remove(&(lsn, id));
            if !planted::is("cp-waiters-forgotten") {
                self.finish_change(id);
            }
        }
        if !self.cp_waiters.is_empty() {
            self.want_cp();
        }
        self.retry_space_waiters();
        self.end_onlines();
    }

    fn serve(&mut self) {
        let State::Replayed { log, identity, epoch, head, is_mirrored } =
            std::mem::replace(&mut self.state, State::Stopped("changing state".to_owned()))
        else {
            unreachable!("a lane serves after its replay")
        };
        let mut lane = Lane::open_at(log, identity, epoch, head);
        if is_mirrored {
            // The partner's unit is not known yet: it is at most this.
            lane.start_mirroring(u32::try_from(BLOCK_BYTES).expect("a block is small"));
            lane.require_mirror();
        }
        self.state = State::Serving(Box::new(lane));
    }

    /// Whether a durable record does not survive power loss, so that a flush needs a consistency point.
    fn is_volatile(&self) -> bool {
        matches!(&self.state, State::Serving(lane) if lane.info().durability < DurabilityClass::Durable)
    }

    /// Goes on with a request when the lane is stable up to `lsn`.
    fn answer_when_stable(&mut self, lsn: Lsn, id: u64) {
        self.stable_waiters.push(Reverse((lsn, id)));
    }

    fn answer_stable(&mut self) {
        let State::Serving(lane) = &self.state else { return };
        let stable = if planted::is("acknowledge-early") { lane.appended() } else { lane.stable() };
        while let Some(&Reverse((lsn, id))) = self.stable_waiters.peek()
            && lsn <= stable
        {
            self.stable_waiters.pop();
            self.stable(id);
        }
    }

    /// A device or the lane failed: the coordinator stops the pool.
    fn fail(&mut self, reason: String) {
        self.messages.push_back(ToCoordinator::Failed { lane: self.options.lane, reason: reason.clone() });
        self.stop(reason);
    }

    fn stop(&mut self, reason: String) {
        self.cp = None;
        self.admission.clear();
        self.out_of_line.clear();
        self.behind.clear();
        self.onlines.clear();
        self.space_waiters.clear();
        self.loan_waiters.clear();
        self.stable_waiters.clear();
        self.reads.clear();
        self.cp_waiters.clear();
        self.woken.clear();
        for request in self.requests.drain().into_iter().filter(|_| !planted::is("replies-lost-at-stop")) {
            self.reply(request.ended(), Err(VolumeError::Stopped(reason.clone())));
        }
        self.state = State::Stopped(reason);
    }
}
