//! One host's connection: a queue, from the first unit to the last.
//!
//! A session is a value: it moves only when [`Session::run`], [`Session::deliver`] or [`Session::look`] is called, a bounded number of steps each time.
//!
//! ```text
//! ICReq, ICResp --> no queue --Connect--> admin queue, or I/O queue --> the host closes, or its controller ends
//!                                |
//!                                +--violation--> C2HTermReq, close
//! ```
//!
//! # Invariants
//!
//! 1. Units are taken in order, one at a time; what cannot go on stays in the connection's input, and the host feels it. A host never has more commands in
//!    flight than its queue has entries: one that sends more breaks the protocol.
//! 2. A write of which the data is in its capsule has its memory before the capsule is taken. For one of which it is not, memory is found first and the host is
//!    asked for the data then, never with the last memory there is: so what waits for data never keeps what has its data from going on.
//! 3. What waits for memory, for the volume, or for the host to take its replies waits in order: data that has come whole (`to_submit`) apart from data that is
//!    to be asked for (`to_receive`), of which neither waits for the other.
//! 4. Every command is answered exactly once, when nothing of it is in flight any more. Data that came damaged is never written.
//! 5. At most [`CONNECTION_BYTES_MAX`] bytes each are being written, and being read or waiting to be sent.
//!
//! # Time-outs
//!
//! A host may be silent for as long as its keep-alive time-out says; without one, for ever. It may not rest where others wait for it: see [`Patience`].

mod authenticate;
mod fused;
mod late;

use super::{
    access::AccessView,
    admin::{ADMIN_IN_CAPSULE_BYTES_MAX, Abort, Admin, Answer, ENTRIES_MAX, IN_CAPSULE_BYTES_MAX},
    auth::Exchange,
    controllers::{Member, QUEUES_MAX, Refused},
    gate::Gates,
    health::Tally,
    hosts::Host,
    io::{self, Request, Transfer, Work},
    target::{DISCOVERY, Target},
    wire::{
        auth,
        command::{
            CONNECT_BYTES, Command, Completion, Connect, ConnectFault, IN_CAPSULE, IN_TRANSPORT, Status, fabrics,
            opcode,
        },
        log::Access,
        pdu::{self, Agreement, Body, DIGEST_BYTES, Fatal, Part, Unit},
        reservation,
    },
};
use crate::{
    base::{HostId, ObjectId, checksum, limits::CONNECTION_BYTES_MAX},
    node::request::{Payload, ReplyData, RequestTag, VolumeError, VolumeRequest, VolumeService},
    serve::{
        slots::Slots,
        turn::{Next, Pace, Patience, Ran, Turn, each_run, runs_bytes, send_runs},
    },
};
use fused::{Half, Pairing};
use sha2::{Digest as _, Sha256};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{ConnectionState, Nanos, Unread};
use zerocopy::{
    IntoBytes,
    little_endian::{U16, U64},
};

/// Longest time from the first byte to a queue.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Steps of one turn; a step takes one unit's header, what has arrived of its data, or starts one command.
const STEPS_PER_TURN: usize = 64;

/// Attribute of a Connect: the host does without flow control of its submission queue.
const NO_FLOW_CONTROL: u8 = 1 << 2;

/// SQHD without flow control (base 2.0, section 6.3).
const NO_HEAD: u16 = 0xffff;

/// A command in flight.
#[derive(Debug)]
struct Active {
    command: Command,
    job: Job,
    sink: Sink,
    received_bytes: u32,
    expected_bytes: u32,
    /// Bytes of its payload, once there is one.
    held_bytes: u64,
    /// The host was asked for the data, under the slot's number.
    is_asked: bool,
    /// Its place among all commands of the session.
    number: u64,
    /// Where it begins in the stream.
    position: u64,
    /// A volume has been asked for all of it, or the first of its steps.
    is_submitted: bool,
    /// Whether it is half of a fused operation.
    half: Half,
    /// Something went wrong on the way: the status to answer with once nothing is in flight.
    failure: Option<Status>,
}

impl Active {
    /// Whether the volume is still to be asked for something, and nothing is to come from the host before.
    fn is_due(&self) -> bool {
        let Job::Volume(request) = &self.job else { return false };
        let is_left = !self.is_submitted || request.has_steps();
        self.has_come() && self.failure.is_none() && is_left
    }

    /// Whether all its data is there.
    fn has_come(&self) -> bool {
        self.received_bytes >= self.expected_bytes
    }

    /// Which volume it is about, if it is about one.
    fn volume(&self) -> Option<ObjectId> {
        match &self.job {
            Job::Volume(request) => Some(request.volume),
            Job::Connect | Job::AuthenticationSend | Job::Refused => None,
        }
    }
}

#[derive(Debug)]
enum Job {
    /// Waits for its data.
    Connect,
    /// The same.
    AuthenticationSend,
    /// Refused; its data, if any, is thrown away.
    Refused,
    Volume(Request),
}

/// Where a command's data goes.
#[derive(Debug)]
enum Sink {
    Nowhere,
    Bytes(Vec<u8>),
    Blocks(Payload),
    /// Stands for what a volume is to be compared with: were it kept, compares could have all the memory and wait for more, to read into.
    Compared(Box<Sha256>),
}

#[derive(Debug)]
enum Intake {
    Header,
    /// Receives data of a command.
    Data {
        slot: u16,
        remaining_bytes: u32,
        digest: Option<u32>,
    },
    /// The digest of data that has come.
    Digest {
        slot: u16,
        digest: u32,
    },
    Ended,
}

/// What the connection is.
#[derive(Debug)]
enum Role {
    Unconnected,
    Admin(Box<Admin>),
    Io(Member),
}

/// A session.
#[derive(Debug)]
pub(in crate::serve) struct Session {
    target: Arc<Target>,
    /// `None` before the first unit.
    agreement: Option<Agreement>,
    role: Role,
    access: AccessView,
    /// The host whose queue it is, and by which entry of the list it came.
    host: Option<(String, Arc<Host>)>,
    /// What a host with a secret has to go through.
    exchange: Option<Box<Exchange>>,
    /// An Authentication Receive that waits, with its length.
    fetching: Option<(u16, u32)>,
    /// The same to reservations.
    host_id: Option<HostId>,
    intake: Intake,
    commands: Slots<Active>,
    pairing: Pairing,
    /// Commands that were taken.
    command_count: u64,
    to_submit: VecDeque<u16>,
    to_receive: VecDeque<u16>,
    /// Which changes have arrived recently enough, and those that are refused when that is known.
    gates: Gates,
    parked: Vec<u16>,
    /// Bytes of payloads that were allocated for the commands in flight.
    write_bytes: u64,
    /// Bytes that the volumes are asked to read.
    read_bytes: u64,
    entries: u16,
    head: u16,
    has_flow_control: bool,
    opened_at: Nanos,
    now: Nanos,
    patience: Patience,
    starved: bool,
    /// What was moved, and is not in the node's sums yet.
    tally: Tally,
}

impl Session {
    /// A host has connected to a node that reaches its pools by `access`.
    pub(in crate::serve) fn new(target: Arc<Target>, access: AccessView, now: Nanos) -> Self {
        Self {
            target,
            agreement: None,
            role: Role::Unconnected,
            access,
            host: None,
            host_id: None,
            exchange: None,
            fetching: None,
            intake: Intake::Header,
            commands: Slots::default(),
            pairing: Pairing::default(),
            command_count: 0,
            to_submit: VecDeque::new(),
            to_receive: VecDeque::new(),
            gates: Gates::default(),
            parked: Vec::new(),
            write_bytes: 0,
            read_bytes: 0,
            entries: 1,
            head: 0,
            has_flow_control: true,
            opened_at: now,
            now,
            patience: Patience::new(now),
            starved: false,
            tally: Tally::default(),
        }
    }

    /// The connection has ended.
    pub(in crate::serve) fn end(&mut self) {
        self.target.traffic.add(&mut self.tally);
        match std::mem::replace(&mut self.role, Role::Unconnected) {
            Role::Unconnected => {}
            Role::Admin(admin) => admin.end(&self.target),
            Role::Io(member) => self.target.controllers.leave(member),
        }
    }

    /// Whether the queue's controller has ended. While the node stops its queues end each in its own time.
    fn is_orphan<N, S>(&self, turn: &Turn<'_, N, S>) -> bool {
        !turn.stopping && matches!(self.role, Role::Io(member) if !self.target.controllers.is_member(member, self.now))
    }

    /// How the session ends before it begins anything more of what has come: its host has closed its end, and may have sent that again on another path; or was silent
    /// for so long that it has given this one up. What is in flight is answered to nobody.
    fn end_of<N: Unread, S>(&self, turn: &Turn<'_, N, S>) -> Option<Next> {
        let is_silent = matches!(&self.role, Role::Admin(admin) if admin.is_silent(self.now));
        match turn.net.state(turn.connection) {
            ConnectionState::Failed => Some(Next::Abort),
            _ if is_silent || self.is_orphan(turn) => Some(Next::Abort),
            ConnectionState::InputEnded => Some(Next::Close),
            ConnectionState::Open | ConnectionState::Connecting => None,
        }
    }

    /// Takes up to [`STEPS_PER_TURN`] steps.
    pub(in crate::serve) fn run<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos) -> Ran {
        self.now = now;
        if let Some(next) = self.end_of(turn) {
            return Ran { progressed: true, next };
        }
        self.open_gates(turn);
        self.stop_waiting_for_half(turn);
        match self.steps(turn, now) {
            // The next turn brings it forward.
            Ran { next: Next::Rest | Next::Again, .. } if self.gates.is_counting() => {
                Ran { progressed: true, next: Next::Again }
            }
            ran => ran,
        }
    }

    fn steps<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos) -> Ran {
        let mut progressed = false;
        for _ in 0..STEPS_PER_TURN {
            let pace = match self.step(turn) {
                Ok(pace) => pace,
                Err(fatal) => {
                    let head: Vec<u8> = turn.input().iter().copied().take(pdu::COMMON_BYTES + 64).collect();
                    turn.send(|output| pdu::write_termination(output, fatal, &head));
                    self.intake = Intake::Ended;
                    Pace::WaitsForRoom
                }
            };
            self.starved = pace == Pace::WaitsForClient;
            let next = match pace {
                Pace::Went => {
                    progressed = true;
                    self.patience.renew(now);
                    continue;
                }
                Pace::Violation => Next::Abort,
                _ if matches!(self.intake, Intake::Ended) => Next::Close,
                _ if turn.stopping && self.commands.is_empty() && turn.unsent_bytes() == 0 => Next::Close,
                Pace::WaitsForClient => Next::Rest,
                Pace::WaitsForRoom => Next::Again,
            };
            return Ran { progressed: progressed || matches!(next, Next::Close | Next::Abort), next };
        }
        Ran { progressed, next: Next::Again }
    }

    /// What time alone has brought about. `pressed`: memory is short.
    pub(in crate::serve) fn look<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        now: Nanos,
        pressed: bool,
    ) -> Next {
        self.now = now;
        self.target.traffic.add(&mut self.tally);
        self.patience.look(turn.net.unsent_bytes(turn.connection), now);
        let is_asked = self.commands.iter().any(|active| active.is_asked);
        let is_receiving = !matches!(self.intake, Intake::Header) || !turn.input().is_empty();
        let half_sent = self.starved && (is_asked || is_receiving);
        let is_unwelcome = !self.is_welcome() || self.is_late(now);
        if is_unwelcome
            || self.is_orphan(turn)
            || self.patience.is_over(half_sent, self.write_bytes > 0, (now, pressed))
        {
            return Next::Abort;
        }
        self.heed_abort(turn);
        match &mut self.role {
            Role::Unconnected if now.since(self.opened_at) > HANDSHAKE => Next::Abort,
            Role::Admin(admin) if admin.is_silent(now) => Next::Abort,
            Role::Admin(admin) => {
                admin.watch(&self.target, turn.service);
                let ended = admin.ended_abort(&self.target, now);
                if let Some((id, is_aborted)) = ended {
                    self.end_abort(turn, id, is_aborted);
                }
                self.tell(turn);
                Next::Rest
            }
            _ => Next::Rest,
        }
    }

    /// The pools are reached by `access` now: the host is told.
    pub(in crate::serve) fn announce<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        access: AccessView,
    ) {
        self.access = access;
        if let Role::Admin(admin) = &mut self.role {
            admin.set_access(access);
        }
        self.tell(turn);
    }

    /// Whether hosts were told that this volume cannot be reached here.
    fn is_inaccessible(&self, volume: ObjectId) -> bool {
        let mut groups = (1..).zip(self.access);
        groups.any(|(id, access)| id == self.target.group_of(volume) && access == Access::Inaccessible)
    }

    /// Answers event requests for which there are events.
    fn tell<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) {
        while let Role::Admin(admin) = &mut self.role {
            let Some((id, result)) = admin.next_event() else { return };
            self.respond(turn, id, Status::SUCCESS, result);
        }
    }

    fn step<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Result<Pace, Fatal> {
        if self.submit_next(turn) || self.ask_next(turn) || self.give_next(turn) {
            return Ok(Pace::Went);
        }
        let pace = match self.intake {
            Intake::Header => self.take_unit(turn)?,
            Intake::Data { .. } => self.receive(turn),
            Intake::Digest { .. } => self.check_digest(turn),
            Intake::Ended => Pace::WaitsForRoom,
        };
        let waits = !self.to_submit.is_empty() || !self.to_receive.is_empty() || self.fetching.is_some();
        Ok(if waits && pace == Pace::WaitsForClient { Pace::WaitsForRoom } else { pace })
    }

    fn take_unit<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Result<Pace, Fatal> {
        if turn.input().is_empty() {
            return Ok(Pace::WaitsForClient);
        }
        if turn.unsent_bytes() >= CONNECTION_BYTES_MAX {
            return Ok(Pace::WaitsForRoom);
        }
        let Some(unit) = pdu::parse(turn.input(), self.agreement)? else { return Ok(Pace::WaitsForClient) };
        match unit.body {
            Body::IcRequest(agreement) => {
                turn.net.consume(turn.connection, unit.head_bytes);
                self.agreement = Some(agreement);
                turn.send(|output| pdu::write_ic_response(output, agreement));
                Ok(Pace::Went)
            }
            Body::HostTerminates(_) => Ok(Pace::Violation),
            // What comes while the node stops waits in vain; the host finds another path, or this one when it is back.
            Body::Command(_) if turn.stopping => Ok(Pace::WaitsForClient),
            Body::Command(entry) => self.take_command(turn, &unit, &Command::parse(&entry)),
            Body::HostData { command, tag, offset, is_last } => {
                self.take_data(turn, &unit, (command, tag), (offset, is_last))
            }
        }
    }

    /// Data that was asked for.
    fn take_data<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        unit: &Unit,
        (command, tag): (u16, u16),
        (offset, is_last): (u32, bool),
    ) -> Result<Pace, Fatal> {
        let active = self.commands.get(tag).filter(|active| active.is_asked).ok_or(Fatal::InvalidHeader(10))?;
        if active.command.id.get() != command {
            return Err(Fatal::InvalidHeader(8));
        }
        let end = u64::from(offset) + u64::from(unit.data_bytes);
        let is_whole = end == u64::from(active.expected_bytes);
        if offset != active.received_bytes || end > u64::from(active.expected_bytes) || (is_last && !is_whole) {
            return Err(Fatal::OutOfRange);
        }
        turn.net.consume(turn.connection, unit.head_bytes);
        self.expect(unit, tag);
        Ok(Pace::Went)
    }

    /// The data of `unit` follows, for the command in `slot`.
    fn expect(&mut self, unit: &Unit, slot: u16) {
        let digest = unit.has_data_digest.then_some(0);
        self.intake = Intake::Data { slot, remaining_bytes: unit.data_bytes, digest };
    }

    /// Bytes of data that a capsule may carry.
    fn in_capsule_bytes_max(&self) -> u32 {
        if matches!(self.role, Role::Io(_)) { IN_CAPSULE_BYTES_MAX } else { ADMIN_IN_CAPSULE_BYTES_MAX }
    }

    fn take_command<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        unit: &Unit,
        command: &Command,
    ) -> Result<Pace, Fatal> {
        if unit.data_bytes > self.in_capsule_bytes_max() {
            return Err(Fatal::LimitExceeded);
        }
        if self.commands.len() >= usize::from(self.entries) {
            return Err(Fatal::Sequence);
        }
        let is_paired = self.check_half(turn, command);
        let planned = is_paired.and_then(|()| self.plan(turn, command)).and_then(|(job, transfer)| {
            self.check_fit(command, &job)?;
            let data = Data::of(command, transfer, unit.data_bytes)?;
            Ok((job, data))
        });
        let (job, data, failure) = match planned {
            Ok((Plan::Job(job), data)) => (job, data, None),
            Ok((Plan::Admin, _)) => {
                self.take(turn, unit);
                self.perform(turn, command);
                return Ok(Pace::Went);
            }
            Ok((Plan::AuthenticationReceive(length), _)) => {
                self.take(turn, unit);
                self.fetch(turn, command.id.get(), length);
                return Ok(Pace::Went);
            }
            Err(status) if unit.data_bytes == 0 => {
                self.take(turn, unit);
                self.refuse_half(turn, command, status);
                self.answer(turn, command, status, 0);
                return Ok(Pace::Went);
            }
            Err(status) => (Job::Refused, Data::InCapsule(unit.data_bytes), Some(status)),
        };
        let mut active = Active {
            command: *command,
            job,
            sink: Sink::Nowhere,
            received_bytes: 0,
            expected_bytes: data.bytes(),
            held_bytes: 0,
            is_asked: false,
            number: self.command_count + 1,
            position: turn.net.received_bytes(turn.connection) - turn.input().len() as u64,
            is_submitted: false,
            half: Half::None,
            failure,
        };
        if matches!(data, Data::InCapsule(_)) && !Self::furnish(turn.service, &mut active, &mut self.write_bytes) {
            return Ok(Pace::WaitsForRoom);
        }
        self.take(turn, unit);
        self.command_count += 1;
        let slot = self.commands.insert(active);
        match failure {
            Some(status) => self.refuse_half(turn, command, status),
            None => self.join_halves(command, slot),
        }
        match data {
            Data::InCapsule(_) => self.expect(unit, slot),
            Data::Asked(_) => self.to_receive.push_back(slot),
            Data::None => self.to_submit.push_back(slot),
        }
        Ok(Pace::Went)
    }

    /// A capsule's head leaves the input, and its entry the submission queue.
    fn take<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, unit: &Unit) {
        turn.net.consume(turn.connection, unit.head_bytes);
        self.head = (self.head + 1) % self.entries;
    }

    /// What a command is, and its data.
    fn plan<N, S: VolumeService>(&self, turn: &Turn<'_, N, S>, command: &Command) -> Result<(Plan, Transfer), Status> {
        match (&self.role, command.fabrics()) {
            (Role::Unconnected, Some(fabrics::CONNECT)) => {
                Ok((Plan::Job(Job::Connect), Transfer::FromHost(CONNECT_BYTES, CONNECT_BYTES)))
            }
            (Role::Unconnected, _) | (_, Some(fabrics::CONNECT)) => Err(Status::SEQUENCE_ERROR),
            (_, Some(fabrics::AUTHENTICATION_SEND | fabrics::AUTHENTICATION_RECEIVE)) if self.exchange.is_some() => {
                plan_authentication(command)
            }
            _ if self.exchange.as_ref().is_some_and(|exchange| !exchange.is_proven()) => {
                Err(Status::AUTHENTICATION_REQUIRED)
            }
            (Role::Admin(admin), _) => match Request::of_feature(&self.target, turn.service, command) {
                Some(request) if admin.has_namespaces() => Ok((Plan::Job(Job::Volume(request?)), Transfer::None)),
                _ => Ok((Plan::Admin, Transfer::None)),
            },
            (Role::Io(_), Some(_)) => Err(Status::INVALID_FIELD),
            (Role::Io(_), None) => {
                let request = Request::new(&self.target, turn.service, command)?;
                if self.is_inaccessible(request.volume) {
                    return Err(Status::ACCESS_INACCESSIBLE);
                }
                let transfer = request.transfer(command);
                Ok((Plan::Job(Job::Volume(request)), transfer))
            }
        }
    }

    /// Gives a command a place for its data, if there is one now. Returns whether there is.
    fn furnish<S: VolumeService>(service: &S, active: &mut Active, write_bytes: &mut u64) -> bool {
        match &active.job {
            Job::Refused => {}
            Job::Volume(Request { work: Work::Compare, .. }) => active.sink = Sink::Compared(Box::default()),
            Job::Volume(Request { work: Work::Write { .. }, range, .. }) => {
                let Some(payload) = Payload::allocate(service.blocks(), range.clone()) else { return false };
                active.sink = Sink::Blocks(payload);
                active.held_bytes = u64::from(active.expected_bytes);
                *write_bytes += active.held_bytes;
            }
            // At most 4 KiB.
            Job::Connect | Job::AuthenticationSend | Job::Volume(_) => {
                active.sink = Sink::Bytes(vec![0; active.expected_bytes as usize])
            }
        }
        true
    }

    fn receive<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Data { slot, remaining_bytes, digest } = &mut self.intake else {
            unreachable!("called in this state")
        };
        let input = turn.net.input(turn.connection);
        if input.is_empty() {
            return Pace::WaitsForClient;
        }
        let active = self.commands.get_mut(*slot);
        let count = u32::try_from(input.len()).map_or(*remaining_bytes, |there| there.min(*remaining_bytes));
        let bytes = &input[..count as usize];
        match &mut active.sink {
            Sink::Nowhere => {}
            Sink::Bytes(place) => place[active.received_bytes as usize..][..bytes.len()].copy_from_slice(bytes),
            Sink::Blocks(payload) => payload.fill(u64::from(active.received_bytes), bytes),
            Sink::Compared(sum) => sum.update(bytes),
        }
        if let Some(digest) = digest {
            *digest = pdu::digest(*digest, bytes);
        }
        active.received_bytes += count;
        *remaining_bytes -= count;
        let (slot, is_over, digest) = (*slot, *remaining_bytes == 0, *digest);
        turn.net.consume(turn.connection, count as usize);
        match digest {
            _ if !is_over => {}
            Some(digest) => self.intake = Intake::Digest { slot, digest },
            None => self.end_unit(turn, slot),
        }
        Pace::Went
    }

    fn check_digest<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Digest { slot, digest } = self.intake else { unreachable!("called in this state") };
        let Some(said) = turn.input().first_chunk::<DIGEST_BYTES>() else { return Pace::WaitsForClient };
        if u32::from_le_bytes(*said) != digest {
            self.commands.get_mut(slot).failure.get_or_insert(Status::TRANSPORT_ERROR);
        }
        turn.net.consume(turn.connection, DIGEST_BYTES);
        self.end_unit(turn, slot);
        Pace::Went
    }

    /// The data of a unit has come.
    fn end_unit<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16) {
        self.intake = Intake::Header;
        let active = self.commands.get_mut(slot);
        if active.received_bytes < active.expected_bytes {
            return;
        }
        active.is_asked = false;
        if let Some(status) = active.failure {
            self.finish(turn, slot, status, 0);
            return;
        }
        let Active { job, sink, command, .. } = active;
        match (job, sink) {
            (Job::Connect, Sink::Bytes(data)) => {
                let connect = command.connect(data);
                let (status, result) = match connect.and_then(|connect| self.connect(&connect)) {
                    Ok(controller) => (Status::SUCCESS, u32::from(controller) | self.demand()),
                    Err(ConnectFault { status, place }) => (status, place),
                };
                self.finish(turn, slot, status, u64::from(result));
            }
            (Job::AuthenticationSend, Sink::Bytes(data)) => {
                let data = std::mem::take(data);
                self.authenticate(turn, slot, &data);
            }
            (Job::Volume(request), Sink::Bytes(data)) => {
                match request.take_data((&self.target, turn.service), command, data) {
                    Ok(()) => self.to_submit.push_back(slot),
                    Err(status) => self.finish(turn, slot, status, 0),
                }
            }
            _ => self.line_up(slot),
        }
    }

    /// Makes the connection a queue. Returns the controller.
    fn connect(&mut self, connect: &Connect) -> Result<u16, ConnectFault> {
        if connect.size == 0 || connect.size >= ENTRIES_MAX {
            return Err(ConnectFault::command(44));
        }
        let admitted = self.target.admit(&connect.host);
        let entry = admitted.ok_or(ConnectFault { status: Status::CONNECT_HOST, place: 1 << 16 | 512 })?;
        let is_discovery = connect.subsystem == DISCOVERY;
        if !is_discovery && connect.subsystem != self.target.subsystem() {
            return Err(ConnectFault::data(256));
        }
        let host = checksum(u64::from(is_discovery), &[connect.host.as_bytes(), &connect.host_id].concat());
        let busy = ConnectFault { status: Status::CONNECT_BUSY, place: 0 };
        let controller = match connect.queue {
            0 if connect.controller != u16::MAX => return Err(ConnectFault::data(16)),
            0 => {
                let claim = self.target.controllers.claim(&connect.host, host, is_discovery).ok_or(busy)?;
                if let Some(host) = HostId::new(connect.host_id).filter(|_| !is_discovery) {
                    self.target.controllers.name_host(&claim, host);
                }
                let admin = Admin::new(claim, connect, is_discovery, self.access, self.now);
                let controller = admin.controller();
                admin.tell_heard(&self.target);
                self.role = Role::Admin(Box::new(admin));
                controller
            }
            queue if is_discovery || queue > QUEUES_MAX => return Err(ConnectFault::command(42)),
            queue => {
                let member =
                    self.target.controllers.join(connect.controller, host, queue).map_err(|refused| match refused {
                        Refused::Unknown => ConnectFault::data(16),
                        Refused::Foreign => ConnectFault { status: Status::CONNECT_HOST, place: 1 << 16 | 512 },
                        Refused::Disabled => ConnectFault { status: Status::SEQUENCE_ERROR, place: 0 },
                        Refused::Taken => ConnectFault::command(42),
                    })?;
                self.role = Role::Io(member);
                connect.controller
            }
        };
        self.host_id = HostId::new(connect.host_id);
        self.entries = connect.size + 1;
        self.head = 1;
        self.has_flow_control = connect.attributes & NO_FLOW_CONTROL == 0;
        self.welcome(&connect.host, entry, is_discovery);
        Ok(controller)
    }

    /// Performs a command of the admin queue.
    fn perform<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, command: &Command) {
        let Role::Admin(admin) = &mut self.role else { unreachable!("planned as one") };
        let id = command.id.get();
        if command.opcode == opcode::ABORT && admin.is_enabled() {
            let abort = admin.abort(&self.target, command, self.now);
            admin.tell_heard(&self.target);
            match abort {
                Abort::Event(request) => {
                    self.respond(turn, request, Status::ABORTED, 0);
                    self.end_abort(turn, id, true);
                }
                Abort::TooLate => self.end_abort(turn, id, false),
                Abort::Waits => {}
                Abort::TooMany => self.answer(turn, command, Status::TOO_MANY_ABORTS, 0),
            }
            return;
        }
        let answer = admin.execute(&self.target, turn.service, command, self.now);
        admin.tell_heard(&self.target);
        match answer {
            Answer::Done(status, result) => self.answer(turn, command, status, result),
            Answer::Held => {}
            Answer::Data(data) => {
                let there = command.data.length.get();
                let length = u32::try_from(data.len()).map_or(there, |length| length.min(there));
                if command.data.kind != IN_TRANSPORT || length == 0 {
                    self.answer(turn, command, Status::DESCRIPTOR_INVALID, 0);
                    return;
                }
                self.send_block(turn, id, &data[..length as usize]);
            }
        }
        self.tell(turn);
    }

    /// Answers an Abort: bit 0 says that the command was not aborted.
    fn end_abort<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, id: u16, is_aborted: bool) {
        self.respond(turn, id, Status::SUCCESS, u64::from(!is_aborted));
    }

    /// Gives up the command that the host wants aborted, unless a volume has it or the host is about to send its data.
    fn heed_abort<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        let Role::Io(member) = self.role else { return };
        let Some(id) = self.target.controllers.wanted_abort(member) else { return };
        let is_it = |slot: &u16| self.commands.get(*slot).is_some_and(|active| active.command.id.get() == id);
        let slot = self.abortable().find(is_it);
        if let Some(slot) = slot {
            self.to_submit.retain(|waiting| *waiting != slot);
            self.to_receive.retain(|waiting| *waiting != slot);
            self.finish(turn, slot, Status::ABORTED, 0);
        }
        self.target.controllers.end_abort(member, id, slot.is_some());
    }

    /// Asks a volume for the next thing, if there is room. Returns whether anything was done.
    fn submit_next<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> bool {
        let Some(&slot) = self.to_submit.front() else { return false };
        let Some(pass) = self.pass_of(turn, slot) else {
            self.to_submit.retain(|waiting| *waiting != slot);
            return true;
        };
        let unsent_bytes = turn.unsent_bytes();
        let active = self.commands.get_mut(slot);
        let Job::Volume(request) = &mut active.job else { unreachable!("nothing else waits for a volume") };
        let reads = matches!(request.work, Work::Read | Work::Compare | Work::Verify);
        let read_bytes = if reads { (request.range.end - request.range.start).min(io::TRANSFER_BYTES_MAX) } else { 0 };
        let has_room = self.read_bytes + unsent_bytes + read_bytes <= CONNECTION_BYTES_MAX || read_bytes == 0;
        if !has_room || !turn.service.has_room(request.volume) {
            return false;
        }
        self.to_submit.pop_front();
        active.is_submitted = true;
        let volume = request.volume;
        let operation = match request.work {
            Work::Write { durable } => Some(self.take_write(slot, durable)),
            _ => request.next(),
        };
        let Some(operation) = operation else {
            self.finish(turn, slot, Status::SUCCESS, 0);
            return true;
        };
        self.read_bytes += read_bytes;
        let tag = RequestTag { session: turn.connection.0, request: u64::from(slot) << 32 | read_bytes };
        turn.service.submit(VolumeRequest { tag, volume, host: self.host_id, pass, operation });
        true
    }

    /// Asks the host for the data of the next command that waits for memory, if there is some. Returns whether anything was done.
    fn ask_next<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> bool {
        let Some(&slot) = self.to_receive.front() else { return false };
        let active = self.commands.get_mut(slot);
        let has_room = self.write_bytes + u64::from(active.expected_bytes) <= CONNECTION_BYTES_MAX;
        let is_short = turn.service.blocks().is_short();
        if !has_room || is_short || !Self::furnish(turn.service, active, &mut self.write_bytes) {
            return false;
        }
        self.to_receive.pop_front();
        active.is_asked = true;
        let part = Part { command: active.command.id.get(), offset: 0, length: active.expected_bytes };
        let agreement = self.agreement.unwrap_or_default();
        turn.send(|output| pdu::write_ready_to_transfer(output, agreement, slot, part));
        true
    }

    /// Whether the last step could go on only with more input.
    pub(in crate::serve) fn is_starved(&self) -> bool {
        self.starved
    }

    /// The newest command that was taken.
    pub(in crate::serve) fn newest_command(&self) -> u64 {
        self.command_count
    }

    /// Whether volumes were asked for everything of the commands up to `newest` whose data has come.
    pub(in crate::serve) fn has_submitted(&self, newest: u64) -> bool {
        !self.commands.iter().any(|active| active.number <= newest && self.is_due(active))
    }

    /// Takes the engine's reply to a request of this session.
    pub(in crate::serve) fn deliver<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        tag: u64,
        result: Result<ReplyData, VolumeError>,
    ) -> Next {
        let slot = u16::try_from(tag >> 32).expect("made by submit_next");
        self.read_bytes -= tag & u64::from(u32::MAX);
        let active = self.commands.get_mut(slot);
        let id = active.command.id.get();
        let Job::Volume(request) = &active.job else { unreachable!("nothing else asks a volume") };
        match result {
            // Whether it was performed only asking again can tell: to the host it is as if the node had died.
            Err(VolumeError::Interrupted(_)) => return Next::Abort,
            Err(VolumeError::Late(pass)) => {
                let volume = request.volume;
                self.refused(turn, slot, (volume, pass));
            }
            Err(error) => self.finish_failed(turn, slot, &error),
            Ok(_) if request.has_steps() => self.to_submit.push_back(slot),
            Ok(ReplyData::Data(runs)) if request.work == Work::Compare => {
                let Sink::Compared(expected) = std::mem::replace(&mut active.sink, Sink::Nowhere) else {
                    unreachable!("its data has come")
                };
                let mut read = Sha256::new();
                each_run(&runs, |bytes| read.update(bytes));
                let is_equal = read.finalize() == expected.finalize();
                let status = if is_equal { Status::SUCCESS } else { Status::COMPARE_FAILURE };
                self.finish(turn, slot, status, 0);
            }
            Ok(ReplyData::Data(runs)) => {
                let length = u32::try_from(runs_bytes(&runs)).expect("at most a transfer");
                assert_eq!(
                    u64::from(length),
                    request.range.end - request.range.start,
                    "a read returns what was asked for"
                );
                self.tally.performed(request);
                self.remove(slot);
                self.send_data_header(turn, id, length);
                send_runs(turn.net, turn.connection, &runs);
                let mut digest = 0;
                if self.agreement.unwrap_or_default().data_digest {
                    each_run(&runs, |bytes| digest = pdu::digest(digest, bytes));
                }
                self.end_data(turn, id, digest);
            }
            Ok(ReplyData::Reservation(state)) => match request.work {
                Work::Report(bytes) => {
                    let mut page = reservation::report(&state);
                    page.resize(bytes as usize, 0);
                    self.remove(slot);
                    self.send_block(turn, id, &page);
                }
                _ => self.finish(turn, slot, Status::SUCCESS, u64::from(state.persists)),
            },
            Ok(_) => self.finish_done(turn, slot),
        }
        Next::Again
    }

    /// Answers a command with data that is no volume's.
    fn send_block<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, id: u16, block: &[u8]) {
        self.send_data_header(turn, id, u32::try_from(block.len()).expect("at most a transfer"));
        turn.net.send(turn.connection, block);
        self.end_data(turn, id, pdu::digest(0, block));
    }

    fn send_data_header<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, command: u16, length: u32) {
        let agreement = self.agreement.unwrap_or_default();
        let part = Part { command, offset: 0, length };
        turn.send(|output| pdu::write_data_header(output, agreement, part, !self.has_flow_control));
    }

    /// What follows data that was sent: its digest, and a response unless the data's unit has said that all is well.
    fn end_data<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, id: u16, digest: u32) {
        if self.agreement.unwrap_or_default().data_digest {
            turn.net.send(turn.connection, &digest.to_le_bytes());
        }
        if self.has_flow_control {
            self.respond(turn, id, Status::SUCCESS, 0);
        }
    }

    /// Ends the command in `slot`.
    fn finish<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, status: Status, result: u64) {
        let active = self.remove(slot);
        if let Job::Volume(request) = &active.job
            && status.is_success()
        {
            self.tally.performed(request);
        }
        self.answer(turn, &active.command, status, result);
        self.end_half(turn, (slot, active.half), status);
    }

    /// Answers a command, and remembers how it went.
    fn answer<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, command: &Command, status: Status, result: u64) {
        match &self.role {
            Role::Io(member) if status.is_logged() => {
                self.tally.failed(status);
                self.target.controllers.report(*member, command, status);
            }
            Role::Admin(admin) if status.is_logged() => admin.report(&self.target, command, status),
            _ => {}
        }
        self.respond(turn, command.id.get(), status, result);
    }

    fn remove(&mut self, slot: u16) -> Active {
        let active = self.commands.remove(slot);
        self.write_bytes -= active.held_bytes;
        active
    }

    fn respond<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, id: u16, status: Status, result: u64) {
        let queue = match self.role {
            Role::Io(member) => member.queue,
            Role::Admin(_) | Role::Unconnected => 0,
        };
        let completion = Completion {
            result: U64::new(result),
            head: U16::new(if self.has_flow_control { self.head } else { NO_HEAD }),
            queue: U16::new(queue),
            id: U16::new(id),
            status: U16::new(status.field()),
        };
        let agreement = self.agreement.unwrap_or_default();
        let bytes: [u8; 16] = completion.as_bytes().try_into().expect("an entry has 16 bytes");
        turn.send(|output| pdu::write_response(output, agreement, &bytes));
    }
}

/// What an Authentication Send or Receive is, and its data.
fn plan_authentication(command: &Command) -> Result<(Plan, Transfer), Status> {
    let length = auth::length_of(command).ok_or(Status::INVALID_FIELD)?;
    match command.takes_data() {
        true => Ok((Plan::Job(Job::AuthenticationSend), Transfer::FromHost(length, length))),
        false => Ok((Plan::AuthenticationReceive(length), Transfer::ToHost(length))),
    }
}

/// What becomes of a command.
#[derive(Debug)]
enum Plan {
    /// It needs time.
    Job(Job),
    /// It is performed at once.
    Admin,
    /// It is answered when there is something to give, of this length.
    AuthenticationReceive(u32),
}

/// How a command's data comes.
#[derive(Clone, Copy, Debug)]
enum Data {
    None,
    InCapsule(u32),
    Asked(u32),
}

impl Data {
    fn bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::InCapsule(bytes) | Self::Asked(bytes) => bytes,
        }
    }

    /// Holds a command's descriptor against the data that it should have, of which `in_capsule` bytes are in its capsule (TCP transport 1.0, section 3.5).
    fn of(command: &Command, transfer: Transfer, in_capsule: u32) -> Result<Self, Status> {
        let described = command.data.length.get();
        match (transfer, command.data.kind) {
            (Transfer::None, _) if in_capsule == 0 => Ok(Self::None),
            (Transfer::None, _) => Err(Status::DATA_LENGTH_INVALID),
            (Transfer::ToHost(wanted), IN_TRANSPORT) if in_capsule == 0 && described == wanted => Ok(Self::None),
            (Transfer::FromHost(least, most), IN_CAPSULE | IN_TRANSPORT) if !(least..=most).contains(&described) => {
                Err(Status::DATA_LENGTH_INVALID)
            }
            (Transfer::FromHost(..), IN_CAPSULE) if command.data.address.get() != 0 => Err(Status::OFFSET_INVALID),
            (Transfer::FromHost(..), IN_CAPSULE) if in_capsule == described => Ok(Self::InCapsule(described)),
            (Transfer::FromHost(..), IN_TRANSPORT) if in_capsule == 0 => Ok(Self::Asked(described)),
            (_, IN_CAPSULE | IN_TRANSPORT) => Err(Status::DATA_LENGTH_INVALID),
            _ => Err(Status::DESCRIPTOR_INVALID),
        }
    }
}
