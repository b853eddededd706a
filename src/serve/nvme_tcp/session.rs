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

mod answers;
mod authenticate;
mod fused;
mod intake;
mod late;
mod queue;

use super::{
    access::AccessView,
    admin::Admin,
    auth::Exchange,
    controllers::Member,
    gate::Gates,
    health::Tally,
    hosts::Host,
    io::{self, Request, Work},
    target::Target,
    wire::{
        command::{Command, IN_TRANSPORT, Status},
        log::Access,
        pdu::{self, Agreement, Fatal, Part},
    },
};
use crate::{
    base::{HostId, ObjectId, limits::CONNECTION_BYTES_MAX, planted},
    node::request::{Payload, RequestTag, VolumeRequest, VolumeService},
    serve::{
        landing::Incoming,
        slots::Slots,
        turn::{Next, Pace, Patience, Ran, Turn},
    },
};
use fused::{Half, Pairing};
use intake::Plan;
use sha2::Sha256;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{ConnectionState, Nanos, Unread};

/// Longest time from the first byte to a queue.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Steps of one turn; a step takes one unit's header, what has arrived of its data, or starts one command.
const STEPS_PER_TURN: usize = 64;

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
    /// The same, of which the network receives a part now.
    Landing(Incoming),
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
    /// The network receives the rest of a unit's data into the command's payload.
    Landing {
        slot: u16,
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
            Intake::Landing { .. } => self.take_landed(turn),
            Intake::Digest { .. } => self.check_digest(turn),
            Intake::Ended => Pace::WaitsForRoom,
        };
        let waits = !self.to_submit.is_empty() || !self.to_receive.is_empty() || self.fetching.is_some();
        Ok(if waits && pace == Pace::WaitsForClient { Pace::WaitsForRoom } else { pace })
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
        let host = self.host_id.filter(|_| !planted::is("asked-data-is-nobodys") || !self.was_asked_for(slot));
        turn.service.submit(VolumeRequest { tag, volume, host, pass, operation });
        true
    }

    /// Whether a command's data did not come in its capsule.
    fn was_asked_for(&self, slot: u16) -> bool {
        let active = self.commands.get(slot);
        active.is_some_and(|active| active.command.data.kind == IN_TRANSPORT && active.expected_bytes > 0)
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
}
