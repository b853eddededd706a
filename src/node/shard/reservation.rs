//! Reservations of a shard's volumes: a host's commands become records, and every other command is held against the state that they have made.
//!
//! # Invariants
//!
//! 1. The state that decides is the one that all records before have made, whether or not they are stable. So the order of a preemption and a write is
//!    their order in the lane: a write that came into it before is performed and stable before the preemption is answered, one that comes later is refused.
//! 2. What the state has decided, a refusal too, is answered when the record that made it so is stable: no host hears of a reservation that a crash
//!    may take back.
//! 3. A record carries the whole state. Replay performs it without deciding anything, and whether or not the volume is offline.

use super::{
    Shard, State,
    change::{Entry, Obstacle, reserve},
    request::{Change, Kind, Request, Source},
};
use crate::{
    base::{HostId, Lsn, ObjectId, planted},
    format::{
        object::registrant_parts,
        record::{Draft, RecordKind},
        reservation::Reservation,
    },
    fs::reservation::{Decided, Refused, ReservationCommand},
    node::request::{FORWARDED_SESSION, NOTICES_MAX, ReplyData, ReservationNotice, VolumeError},
};
use twinlog_device::LogMemory;

/// Blocks of the object table that a consistency point copies for one record of it: itself, and the nodes above (128^3 blocks are more than there can be).
const TABLE_PATH_BLOCKS: u64 = 4;

impl From<Refused> for VolumeError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::ReservationConflict,
            Refused::Invalid => Self::ReservationInvalid,
            Refused::Full => Self::RegistrantsFull,
        }
    }
}

impl<L: LogMemory> Shard<L> {
    /// Whether the reservation of its volume lets a request pass now.
    pub(super) fn allows(&self, request: &Request) -> bool {
        let Some(access) = request.access() else { return true };
        let is_forwarded = matches!(request.source, Source::Client(_, tag) if tag.session == FORWARDED_SESSION);
        if is_forwarded && planted::is("forwarded-not-held-against-reservations") {
            return true;
        }
        let volume = self.volumes.get(&request.volume);
        volume.is_none_or(|volume| volume.reservation().allows(request.host, access))
    }

    /// A request is refused because of a reservation, or of what the bytes are.
    pub(super) fn refuse_when_stable(&mut self, id: u64, error: VolumeError) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.lsn = match &self.state {
            State::Serving(lane) if error == VolumeError::Differs => lane.appended(),
            _ => self.volumes.get(&request.volume).map_or(Lsn(0), |volume| volume.reservation_lsn()),
        };
        request.verdict = Some(Box::new(error));
        let lsn = request.lsn;
        self.answer_when_stable(lsn, id);
    }

    /// Takes down what is to be reported.
    pub(super) fn begin_report(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let Some(volume) = self.volumes.get(&request.volume) else { return self.refuse(id, VolumeError::NoSuchVolume) };
        request.kind = Kind::Report(Box::new(volume.reservation().clone()));
        let lsn = volume.reservation_lsn();
        self.answer_when_stable(lsn, id);
    }

    /// What is reported is stable.
    pub(super) fn finish_report(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let Kind::Report(state) = &mut request.kind else { unreachable!("a report") };
        let state = std::mem::take(state);
        self.end(id, Ok(ReplyData::Reservation(state)));
    }

    /// Decides a host's command and appends the record of what came of it, or performs one that is there.
    pub(super) fn append_reservation(&mut self, id: u64, request: &mut Request, entry: Entry) -> Result<(), Obstacle> {
        let Some(volume) = self.volumes.get(&request.volume) else {
            return Err(Obstacle::Refused(VolumeError::NoSuchVolume));
        };
        let before = volume.reservation();
        let Kind::Change { change, durable } = &mut request.kind else { unreachable!("only changes are appended") };
        let decided = match change {
            Change::Reserve(command) => decide(before, request.host, *command)?,
            Change::SetReservation(next) => Decided { next: Some((**next).clone()), ..Decided::default() },
            _ => unreachable!("the caller looked"),
        };
        // What is to survive the loss of power is answered when it does, like a write with force unit access.
        *durable = before.persists || decided.next.as_ref().is_some_and(|next| next.persists);
        request.lsn = volume.reservation_lsn();
        if let Some(next) = decided.next {
            let end = self.put_reservation(request.volume, next, request.source.record_id(id), entry)?;
            if !planted::is("reservation-told-too-early") {
                request.lsn = end;
            }
        }
        let Kind::Change { change, .. } = &mut request.kind else { unreachable!("looked at before") };
        *change = Change::Done;
        self.abort(request.volume, &decided.aborted);
        for (host, notice) in decided.notices {
            // Of more that wait to be stable the newest gives way to the next.
            self.notices.truncate(NOTICES_MAX - 1);
            self.notices.push_back((request.lsn, ReservationNotice { host, volume: request.volume, notice }));
        }
        Ok(())
    }

    /// What a host is to be told next, when it is stable.
    pub fn next_notice(&mut self) -> Option<ReservationNotice> {
        let State::Serving(lane) = &self.state else { return None };
        let (lsn, notice) = *self.notices.front()?;
        if lsn > lane.stable() {
            return None;
        }
        self.notices.pop_front();
        Some(notice)
    }

    /// Promises the space of a new state, appends its record, and makes it the volume's. Returns the position after the record.
    fn put_reservation(
        &mut self,
        id: ObjectId,
        next: Reservation,
        request_id: u64,
        entry: Entry,
    ) -> Result<Lsn, Obstacle> {
        let volume = self.volumes.get(&id).expect("looked up before");
        let registrants = volume.reservation().registrants.len().max(next.registrants.len());
        let cost = (1 + u64::from(registrant_parts(registrants))) * TABLE_PATH_BLOCKS;
        let payload = next.to_bytes();
        match entry {
            Entry::New => {
                self.check_room(payload.len() as u64, cost)?;
                // In a pool that is full a host must still be able to keep others out.
                reserve(&self.options.budget, (cost, 0), true)?;
            }
            Entry::Replayed(_) => self.options.budget.reserve_again(cost),
            Entry::Held(_) => {
                reserve(&self.options.budget, (cost, 0), true)?;
            }
        }
        let kind = RecordKind::Reserve;
        let time_ns = self.wall_clock_ns;
        let draft = Draft { kind, object: id, offset_bytes: 0, argument: 0, flags: 0, time_ns, request_id };
        let lsn = entry.end().unwrap_or_else(|| {
            let State::Serving(lane) = &mut self.state else { unreachable!("room was checked in a serving lane") };
            lane.append(&draft, &[&payload])
        });
        self.reserved_active += cost;
        self.oldest_change.get_or_insert(self.now);
        let volume = self.volumes.get_mut(&id).expect("looked up before");
        match entry {
            Entry::New => {
                self.forwarded.note(request_id);
                volume.reserve(next, lsn);
            }
            // The consistency point that ends the recovery contains it before anything is answered.
            Entry::Replayed(_) | Entry::Held(_) => volume.reserve(next, Lsn(0)),
        }
        Ok(lsn)
    }

    /// Ends what these hosts have under way with a volume and is not in the lane yet.
    fn abort(&mut self, volume: ObjectId, hosts: &[HostId]) {
        if hosts.is_empty() {
            return;
        }
        let is_theirs = |request: &Request| {
            let is_open = match &request.kind {
                Kind::Change { change, .. } => !matches!(change, Change::Done) || planted::is("ended-though-performed"),
                _ => request.verdict.is_none(),
            };
            is_open && request.volume == volume && request.host.is_some_and(|host| hosts.contains(&host))
        };
        for id in self.requests.keys_of(is_theirs) {
            self.leave_place(id);
            self.refuse(id, VolumeError::Preempted);
        }
    }
}

fn decide(before: &Reservation, host: Option<HostId>, command: ReservationCommand) -> Result<Decided, Obstacle> {
    let refused = |refused: Refused| Obstacle::Forbidden(refused.into());
    if planted::is("reservation-decided-for-anybody") {
        let anybody = HostId::new([1; 16]).expect("not zero");
        return before.decide(anybody, command).map_err(refused);
    }
    let host = host.ok_or(Obstacle::Refused(VolumeError::ReservationInvalid))?;
    before.decide(host, command).map_err(refused)
}
