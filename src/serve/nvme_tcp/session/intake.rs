//! What a host sends: units in order, commands with what is planned of them, and their data.

use super::{Active, Half, Intake, Job, Role, Session, Sink};
use crate::{
    base::limits::CONNECTION_BYTES_MAX,
    node::request::{Payload, VolumeService},
    serve::{
        landing::{Incoming, Landed},
        nvme_tcp::{
            admin::{ADMIN_IN_CAPSULE_BYTES_MAX, IN_CAPSULE_BYTES_MAX},
            io::{Request, Transfer, Work},
            wire::{
                auth,
                command::{CONNECT_BYTES, Command, ConnectFault, IN_CAPSULE, IN_TRANSPORT, Status, fabrics},
                pdu::{self, Body, DIGEST_BYTES, Fatal, Unit},
            },
        },
        turn::{Pace, Turn},
    },
};
use sha2::Digest as _;
use twinlog_device::Unread;

impl Session {
    pub(super) fn take_unit<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Result<Pace, Fatal> {
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
            position: turn.net.consumed_bytes(turn.connection),
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
    pub(super) fn furnish<S: VolumeService>(service: &S, active: &mut Active, write_bytes: &mut u64) -> bool {
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

    pub(super) fn receive<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Data { slot, remaining_bytes, digest } = &mut self.intake else {
            unreachable!("called in this state")
        };
        let input = turn.net.input(turn.connection);
        if input.is_empty() {
            self.land(turn);
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
            Sink::Landing(_) => unreachable!("it lands, and is no input"),
        }
        if let Some(digest) = digest {
            *digest = pdu::digest(*digest, bytes);
        }
        *remaining_bytes -= count;
        active.received_bytes += count;
        let (slot, is_over, digest) = (*slot, *remaining_bytes == 0, *digest);
        turn.net.consume(turn.connection, count as usize);
        if is_over {
            self.end_data_of(turn, slot, digest);
        }
        Pace::Went
    }

    /// Has the network receive the rest of a unit's data into the payload's blocks, if that is worth it and can be.
    fn land<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        let Intake::Data { slot, remaining_bytes, digest } = self.intake else { return };
        let active = self.commands.get_mut(slot);
        let start = u64::from(active.received_bytes);
        let part = start..start + u64::from(remaining_bytes);
        match std::mem::replace(&mut active.sink, Sink::Nowhere) {
            Sink::Blocks(payload) => match Incoming::begin(turn, payload, part) {
                Ok(incoming) => {
                    active.sink = Sink::Landing(incoming);
                    self.intake = Intake::Landing { slot, digest };
                }
                Err(payload) => active.sink = Sink::Blocks(payload),
            },
            other => active.sink = other,
        }
    }

    /// Takes back what has landed.
    pub(super) fn take_landed<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Landing { slot, mut digest } = self.intake else { unreachable!("called in this state") };
        let active = self.commands.get_mut(slot);
        let Sink::Landing(incoming) = &mut active.sink else { unreachable!("only what has blocks lands") };
        let payload = match incoming.step(turn) {
            Landed::Nothing => return Pace::WaitsForClient,
            Landed::Partly => return Pace::Went,
            Landed::Whole(payload) => payload,
        };
        let part = incoming.part();
        if let Some(digest) = &mut digest {
            payload.each_part(part.clone(), |bytes| *digest = pdu::digest(*digest, bytes));
        }
        active.received_bytes = u32::try_from(part.end).expect("at most a transfer");
        active.sink = Sink::Blocks(payload);
        self.end_data_of(turn, slot, digest);
        Pace::Went
    }

    /// All data of a unit is there; its digest may follow.
    fn end_data_of<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, digest: Option<u32>) {
        match digest {
            Some(digest) => self.intake = Intake::Digest { slot, digest },
            None => self.end_unit(turn, slot),
        }
    }

    pub(super) fn check_digest<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
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
pub(super) enum Plan {
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
