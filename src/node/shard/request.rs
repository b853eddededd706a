//! Requests under way in a shard.

use super::{Shard, compare::compare_early};
use crate::{
    base::{ForwardId, HostId, Lsn, ObjectId, ReactorIndex, planted},
    cp::message::{ToCoordinator, VolumeChange},
    format::{
        reference::{BlockKey, BlockRef},
        reservation::Reservation,
    },
    fs::reservation::{Access, ReservationCommand},
    node::request::{
        ContentSum, Extent, FORWARDED_SESSION, ReplyData, RequestTag, VolumeError, VolumeOperation, VolumeReply,
    },
    pool::io::Io,
};
use smallvec::SmallVec;
use std::{collections::BTreeMap, ops::Range};
use twinlog_device::{BlockBuf, BlockDevice, Loan, LogMemory, Nanos, SharedBlock};

/// The reactor that a client's request came from.
pub type Origin = ReactorIndex;

/// Who wants an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client's session on a reactor.
    Client(Origin, RequestTag),
    /// The coordinator, about a volume as a whole.
    Volume(u64),
    /// Nobody: the record that ends here is replayed.
    Replay(Lsn),
}

impl Source {
    /// What the records of request `id` of this shard say that they came with: the partner's name of it, if it has one.
    pub(super) fn record_id(self, id: u64) -> u64 {
        match self {
            Self::Client(_, tag) if tag.session == FORWARDED_SESSION => tag.request,
            _ => ForwardId::unlike(id),
        }
    }
}

/// A block of a read.
pub(super) enum Slot {
    /// The tree decides.
    Below,
    /// The block that lies there.
    At(BlockRef),
    /// Zeroes.
    Hole,
    /// This block.
    Block(SharedBlock),
}

/// The blocks of a read: most are of one.
pub(super) type Slots = SmallVec<[Slot; 1]>;

/// Blocks that were fetched for a request, or why they could not be.
pub(super) type Arrived = BTreeMap<BlockKey, Result<SharedBlock, String>>;

/// What is done.
pub(super) enum Kind {
    /// `Read`, and `Cache` when nothing is to be returned.
    Read {
        range: Range<u64>,
        slots: Slots,
        is_hint: bool,
    },
    Status {
        range: Range<u64>,
        /// Next block to look at.
        next: u64,
        extents_max: usize,
        extents: Vec<Extent>,
        lsn: Lsn,
    },
    Flush,
    /// The registrants and the reservation, as they were when it came.
    Report(Box<Reservation>),
    Change {
        change: Change,
        /// Force unit access.
        durable: bool,
    },
}

/// A change, as far as it has not been appended.
pub(super) enum Change {
    /// The rest of the range, and its blocks.
    Write(Range<u64>, std::vec::IntoIter<BlockBuf>),
    Discard(Range<u64>),
    /// The rest of the range, and whether its blocks stay allocated.
    Zero(Range<u64>, bool),
    Volume(VolumeChange),
    /// A host's command about the reservation.
    Reserve(ReservationCommand),
    /// The reservation as a record says it.
    SetReservation(Box<Reservation>),
    /// Everything has been appended.
    Done,
}

/// What a change is about, as far as it has not been appended.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    volume: ObjectId,
    range: Range<u64>,
    is_reservation: bool,
}

impl Scope {
    /// Whether the order of the two shows afterwards: they are of the same bytes, or both say who may change them.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
        self.volume == other.volume && (overlaps || (self.is_reservation && other.is_reservation))
    }
}

/// A request under way.
pub(super) struct Request {
    pub(super) source: Source,
    pub(super) volume: ObjectId,
    /// Whose it is, to reservations.
    pub(super) host: Option<HostId>,
    pub(super) kind: Kind,
    pub(super) started: Nanos,
    pub(super) bytes: u64,
    /// What a change is to find in its range: it is performed only then.
    pub(super) expected: Option<Box<ContentSum>>,
    /// Blocks that were fetched for it, or could not be.
    pub(super) arrived: Arrived,
    pub(super) is_woken: bool,
    /// The memory that those blocks may take, and what the reply holds of the cache or of dirty blocks.
    pub(super) loan: Option<Loan>,
    /// Whether it is a change that left the admission queue until something arrives.
    pub(super) is_parked: bool,
    /// Of a change: its place among all that the shard has taken.
    pub(super) arrival: u64,
    /// Position up to which the lane must be stable before it is answered.
    pub(super) lsn: Lsn,
    /// Consistency points that it has waited for space.
    pub(super) space_tries: u8,
    /// It is refused for this reason, when what decided that is stable.
    pub(super) verdict: Option<Box<VolumeError>>,
}

/// What is left of a request that has ended.
pub(super) struct Ended {
    source: Source,
    volume: ObjectId,
    started: Nanos,
    /// Which way how many bytes went, for the volume's figures.
    moved: Option<(Access, u64)>,
}

impl Request {
    /// A request without a host.
    pub(super) fn new(source: Source, volume: ObjectId, operation: VolumeOperation, started: Nanos) -> Self {
        let length = |range: &Range<u64>| range.end - range.start;
        let change = |change, durable| Kind::Change { change, durable };
        let expected = match &operation {
            VolumeOperation::CompareAndWrite { expected, .. } => Some(Box::new(*expected)),
            _ => None,
        };
        let (kind, bytes) = match operation {
            VolumeOperation::Read(range) => {
                (Kind::Read { slots: Slots::new(), is_hint: false, range: range.clone() }, length(&range))
            }
            VolumeOperation::Cache(range) => (Kind::Read { slots: Slots::new(), is_hint: true, range }, 0),
            VolumeOperation::Write { payload, durable } | VolumeOperation::CompareAndWrite { payload, durable, .. } => {
                let range = payload.range();
                let bytes = length(&range);
                (change(Change::Write(range, payload.into_blocks().into_iter()), durable), bytes)
            }
            VolumeOperation::Flush => (Kind::Flush, 0),
            VolumeOperation::Discard { range, durable } => {
                let bytes = length(&range);
                (change(Change::Discard(range), durable), bytes)
            }
            VolumeOperation::WriteZeroes { range, may_free, durable } => {
                let bytes = length(&range);
                (change(Change::Zero(range, !may_free), durable), bytes)
            }
            VolumeOperation::BlockStatus { range, extents_max } => {
                let next = range.start / crate::base::limits::BLOCK_BYTES;
                (Kind::Status { range, next, extents_max, extents: Vec::new(), lsn: Lsn(0) }, 0)
            }
            VolumeOperation::Reserve(command) => (change(Change::Reserve(command), false), 0),
            VolumeOperation::Reservation => (Kind::Report(Box::default()), 0),
        };
        Self {
            source,
            volume,
            host: None,
            kind,
            started,
            bytes,
            expected,
            arrived: BTreeMap::new(),
            loan: None,
            is_woken: false,
            is_parked: false,
            arrival: 0,
            lsn: Lsn(0),
            space_tries: 0,
            verdict: None,
        }
    }

    /// What it does with the volume's bytes; `None`: it is about the volume.
    pub(super) fn access(&self) -> Option<Access> {
        match &self.kind {
            Kind::Read { .. } | Kind::Status { .. } => Some(Access::Read),
            Kind::Flush => Some(Access::Write),
            Kind::Change { change: Change::Write(..) | Change::Discard(_) | Change::Zero(..), .. } => {
                Some(Access::Write)
            }
            Kind::Report(_) | Kind::Change { .. } => None,
        }
    }

    /// What its reply needs of it.
    pub(super) fn ended(&self) -> Ended {
        let moved = match &self.kind {
            Kind::Read { is_hint: false, .. } => Some((Access::Read, self.bytes)),
            Kind::Change { .. } if self.bytes > 0 => Some((Access::Write, self.bytes)),
            _ => None,
        };
        Ended { source: self.source, volume: self.volume, started: self.started, moved }
    }

    /// Stands where a request was taken from, while it is worked on.
    pub(super) fn placeholder() -> Self {
        Self::new(Source::Replay(Lsn(0)), ObjectId(0), VolumeOperation::Flush, Nanos(0))
    }

    /// What the request is about.
    pub(super) fn scope(&self) -> Scope {
        let is_reservation = matches!(&self.kind, Kind::Change { change: Change::Reserve(_), .. });
        Scope { volume: self.volume, range: self.range(), is_reservation }
    }

    /// The bytes that the request is about; empty for a flush.
    pub(super) fn range(&self) -> Range<u64> {
        match &self.kind {
            Kind::Read { range, .. } | Kind::Status { range, .. } => range.clone(),
            Kind::Change {
                change: Change::Write(range, _) | Change::Discard(range) | Change::Zero(range, _), ..
            } => range.clone(),
            Kind::Flush | Kind::Report(_) | Kind::Change { .. } => 0..0,
        }
    }
}

impl<L: LogMemory> Shard<L> {
    /// Starts a request.
    pub(super) fn begin<D: BlockDevice>(&mut self, io: &mut Io<D>, mut request: Request) {
        let Some(volume) = self.volumes.get(&request.volume) else {
            if matches!(request.kind, Kind::Change { change: Change::Volume(VolumeChange::Create { .. }), .. }) {
                return self.line_up(request);
            }
            return self.reply(request.ended(), Err(VolumeError::NoSuchVolume));
        };
        if let Some(reason) = self.offline_reason(request.volume).filter(|_| !planted::is("offline-volume-answers")) {
            return self.reply(request.ended(), Err(VolumeError::Offline(reason)));
        }
        if request.range().end > volume.record().size_bytes {
            return self.reply(request.ended(), Err(VolumeError::OutOfRange));
        }
        // A change is judged when it enters the lane, in the order of the lane; the rest now.
        let is_change = matches!(request.kind, Kind::Change { .. });
        let is_judged = !is_change || planted::is("reservation-judged-on-arrival");
        if is_judged && !self.allows(&request) {
            let id = self.requests.insert(request);
            self.refuse_when_stable(id, VolumeError::ReservationConflict);
        } else if is_change {
            compare_early(volume, &mut request);
            self.line_up(request);
        } else {
            let id = self.requests.insert(request);
            self.advance(io, id);
        }
    }

    /// Something that a request fetched is there.
    pub(super) fn wake<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.is_woken = false;
        match &request.kind {
            Kind::Change { .. } => {
                if std::mem::take(&mut request.is_parked) {
                    self.admission.push_front(id);
                }
            }
            _ => self.advance(io, id),
        }
    }

    pub(super) fn advance<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) {
        if !self.has_loan(io, id) {
            return;
        }
        let Some(request) = self.requests.get_mut(id) else { return };
        match &request.kind {
            Kind::Read { .. } => self.line_up_read(io, id),
            Kind::Status { .. } => self.advance_status(io, id),
            Kind::Flush => self.begin_flush(id),
            Kind::Report(_) => self.begin_report(id),
            Kind::Change { .. } => unreachable!("changes go through admission"),
        }
    }

    fn begin_flush(&mut self, id: u64) {
        // Another reactor can serve before this lane does: nothing was answered yet that a flush could mean.
        let lsn = if let super::State::Serving(lane) = &self.state { lane.appended() } else { Lsn(0) };
        self.requests.get_mut(id).expect("it has just begun").lsn = lsn;
        self.answer_when_stable(lsn, id);
    }

    /// A request under way ends: its reply goes to where it came from.
    pub(super) fn end(&mut self, id: u64, result: Result<ReplyData, VolumeError>) {
        if let Some(request) = self.requests.get_mut(id) {
            let ended = request.ended();
            self.requests.discard(id);
            self.reply(ended, result);
        }
    }

    /// The reply to a request that has ended goes to where that came from.
    pub(super) fn reply(&mut self, ended: Ended, result: Result<ReplyData, VolumeError>) {
        match ended.source {
            Source::Client(origin, tag) => {
                let latency = self.now.since(ended.started);
                // A volume that was deleted meanwhile has no figures any more.
                if self.volumes.contains_key(&ended.volume) {
                    let figures = self.figures.entry(ended.volume).or_default();
                    match ended.moved {
                        Some((Access::Read, bytes)) => figures.reads.record(bytes, latency),
                        Some((Access::Write, bytes)) => figures.writes.record(bytes, latency),
                        None => {}
                    }
                }
                self.replies.push_back((origin, VolumeReply { tag, result }));
            }
            Source::Volume(call) => {
                let record = self.volumes.get(&ended.volume).map(|volume| volume.record().clone());
                let volume = result.map(|_| record).map_err(|error| error.to_string());
                self.messages.push_back(ToCoordinator::VolumeDone { call, volume });
            }
            Source::Replay(_) => {}
        }
    }

    /// The lane is stable up to the request's position.
    pub(super) fn stable(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if let Some(verdict) = request.verdict.take() {
            return self.refuse(id, *verdict);
        }
        let needs_cp = match &request.kind {
            Kind::Read { .. } => return self.finish_read(id),
            Kind::Status { .. } => return self.finish_status(id),
            Kind::Report(_) => return self.finish_report(id),
            Kind::Flush => !planted::is("flush-ignored"),
            Kind::Change { durable, .. } => *durable && !planted::is("fua-ignored"),
        };
        let lsn = request.lsn;
        let waits = needs_cp && self.is_volatile() || planted::is("answers-wait-for-disks");
        if waits && self.is_above_cp(lsn) {
            self.cp_waiters.insert((lsn, id));
            self.want_cp();
        } else {
            self.finish_change(id);
        }
    }

    fn is_above_cp(&self, lsn: Lsn) -> bool {
        matches!(&self.state, super::State::Serving(lane) if lsn > lane.applied())
    }

    /// A change or flush is done.
    pub(super) fn finish_change(&mut self, id: u64) {
        self.end(id, Ok(ReplyData::Done));
    }

    /// A request cannot be done.
    pub(super) fn refuse(&mut self, id: u64, error: VolumeError) {
        self.end(id, Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::reservation::ReservationCommand;

    fn scope(volume: u64, operation: VolumeOperation) -> Scope {
        Request::new(Source::Replay(Lsn(0)), ObjectId(volume), operation, Nanos(0)).scope()
    }

    /// A command about a reservation has no bytes, and its order among those of its volume decides who holds it.
    #[test]
    fn changes_meet_that_share_bytes_or_are_both_about_the_reservation() {
        let discard = |range| VolumeOperation::Discard { range, durable: false };
        let clear = || VolumeOperation::Reserve(ReservationCommand::Clear { key: 1 });
        let first = scope(1, discard(0..4096));
        for (meets, other) in [
            (true, scope(1, discard(4095..5000))),
            (false, scope(1, discard(4096..5000))),
            (false, scope(2, discard(0..4096))),
            (false, scope(1, clear())),
        ] {
            assert_eq!((first.meets(&other), other.meets(&first)), (meets, meets), "{other:?}");
        }
        assert!(scope(1, clear()).meets(&scope(1, clear())) && !scope(1, clear()).meets(&scope(2, clear())));
    }
}
