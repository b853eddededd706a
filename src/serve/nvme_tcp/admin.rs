//! One controller: its properties, and the commands of its admin queue.
//!
//! ```text
//! Connect --> disabled --CC.EN--> enabled (a life of the table: I/O queues may join) --CC.EN cleared, or shutdown--> disabled
//! ```
//!
//! # Invariants
//!
//! 1. Without `CC.EN` only properties can be read and written.
//! 2. An event is sent once, when the host has a request for one outstanding, and not again before the host has read the log page that says more.
//! 3. A host that is silent for longer than its keep-alive time-out is gone: the session ends the controller with all its queues.

use super::{
    access::{ACCESS_CHANGE, AccessView},
    controllers::{Claim, QUEUES_MAX},
    io,
    notices::Notices,
    target::{GROUPS, NAMESPACE_MAX, NAMESPACES_MAX, Namespace, Target},
    wire::{
        command::{Command, Connect, IN_TRANSPORT, Status, fabrics, feature, opcode},
        identify::{self, cns},
        log::{self, AccessGroup, ErrorEntry, Health},
        reservation,
    },
};
use crate::{
    base::{BlockSize, limits::BLOCK_BYTES},
    node::request::VolumeService,
};
use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};
use twinlog_device::Nanos;
use zerocopy::{
    FromZeros, IntoBytes,
    little_endian::{U16, U32, U64},
};

/// Entries of a submission queue: CAP.MQES is one less.
pub(super) const ENTRIES_MAX: u16 = 128;
/// Bytes of data that a capsule of an I/O queue may carry: larger writes are asked for, so that their memory is there before they come.
pub(super) const IN_CAPSULE_BYTES_MAX: u32 = 16 << 10;
/// The same of the admin queue (TCP transport 1.0, section 3.2: 8 KiB).
pub(super) const ADMIN_IN_CAPSULE_BYTES_MAX: u32 = 8 << 10;
/// Event requests that wait at a time; AERL is one less.
const EVENT_REQUESTS_MAX: usize = 4;
/// Units of KAS: 100 ms. A time-out is noticed within a second.
const KEEP_ALIVE_UNITS: u16 = 10;
/// How much later than its time-out a host is given up: one granule, by which hosts may round.
const KEEP_ALIVE_SLACK: Duration = Duration::from_secs(1);
/// CAP.TO and CRTO in units of 500 ms: enabling takes no time here.
const READY_TIMEOUT: u64 = 20;

/// How long an I/O queue has to say what became of an abort: four looks.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// Admin commands of an I/O controller.
const COMMANDS: [u8; 7] = [
    opcode::GET_LOG_PAGE,
    opcode::IDENTIFY,
    opcode::ABORT,
    opcode::SET_FEATURES,
    opcode::GET_FEATURES,
    opcode::ASYNC_EVENT_REQUEST,
    opcode::KEEP_ALIVE,
];

/// Features of an I/O controller.
const KNOWN_FEATURES: [u8; 12] = [
    feature::ARBITRATION,
    feature::POWER_MANAGEMENT,
    feature::TEMPERATURE_THRESHOLD,
    feature::ERROR_RECOVERY,
    feature::VOLATILE_WRITE_CACHE,
    feature::NUMBER_OF_QUEUES,
    feature::WRITE_ATOMICITY,
    feature::ASYNC_EVENT_CONFIGURATION,
    feature::KEEP_ALIVE_TIMER,
    feature::HOST_IDENTIFIER,
    feature::RESERVATION_NOTICE_MASK,
    feature::RESERVATION_PERSISTENCE,
];

/// Those that are set for each namespace alone.
const OF_NAMESPACES: [u8; 2] = [feature::RESERVATION_NOTICE_MASK, feature::RESERVATION_PERSISTENCE];

/// Log pages by kind of controller.
const LOGS: [&[u8]; 2] = [
    &[
        log::id::SUPPORTED,
        log::id::ERRORS,
        log::id::SMART,
        log::id::FIRMWARE,
        log::id::CHANGED_NAMESPACES,
        log::id::EFFECTS,
        log::id::ACCESS,
        log::id::FEATURES,
        log::id::MANAGEMENT,
        log::id::RESERVATION,
    ],
    &[log::id::SUPPORTED, log::id::DISCOVERY],
];

/// Properties (base 2.0, section 3.1.3).
mod property {
    pub(super) const CAPABILITIES: u32 = 0x00;
    pub(super) const VERSION: u32 = 0x08;
    pub(super) const CONFIGURATION: u32 = 0x14;
    pub(super) const STATUS: u32 = 0x1c;
    pub(super) const READY_TIMEOUTS: u32 = 0x68;
}

/// Controller configuration and status.
mod bits {
    pub(super) const ENABLE: u32 = 1 << 0;
    /// Command set, page size and arbitration: zero is the one of each that there is.
    pub(super) const CHOICES: u32 = 0b0011_1111_1111_0000;
    pub(super) const SHUTDOWN: u32 = 0b11 << 14;
    /// Bytes of entries, as powers of two: 64 and 16.
    pub(super) const ENTRIES: u32 = 0xff << 16;
    pub(super) const ENTRIES_GOOD: u32 = 0x46 << 16;
    pub(super) const READY: u32 = 1 << 0;
    pub(super) const FATAL: u32 = 1 << 1;
    pub(super) const SHUTDOWN_COMPLETE: u32 = 0b10 << 2;
}

/// What an event is about. Its bit is the same in OAES and in the event configuration (base 2.0, figure 275); without one it is always sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    bit: u32,
    /// Type, information, and the log page (base 2.0, section 5.2.1).
    result: u32,
    page: u8,
}

/// The events, the more urgent first; the last one is of discovery controllers, the others are of I/O controllers.
const EVENTS: [Event; 4] = [
    Event { bit: 1 << 11, result: 0x000c_0302, page: log::id::ACCESS },
    Event { bit: 1 << 8, result: 0x0004_0002, page: log::id::CHANGED_NAMESPACES },
    // Of the I/O command set; what the host does not want to hear it masks.
    Event { bit: 0, result: 0x0080_0006, page: log::id::RESERVATION },
    Event { bit: 1 << 31, result: 0x0070_f002, page: log::id::DISCOVERY },
];
const ACCESS_CHANGED: usize = 0;
const NAMESPACES_CHANGED: usize = 1;
const RESERVATION_CHANGED: usize = 2;
const DISCOVERY_CHANGED: usize = 3;

/// An event of one kind, as far as it is the host's business.
#[derive(Clone, Copy, Debug, Default)]
struct Notice {
    is_pending: bool,
    /// The host was told and has not read the page yet.
    is_told: bool,
}

/// How a command ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Now, with this result.
    Done(Status, u64),
    /// Now, with this data, if it has where to go ([`check_room`]).
    Data(Vec<u8>),
    /// When there is an event.
    Held,
}

impl Answer {
    fn result(result: u32) -> Self {
        Self::Done(Status::SUCCESS, u64::from(result))
    }
}

impl From<Result<Self, Status>> for Answer {
    fn from(result: Result<Self, Status>) -> Self {
        result.unwrap_or_else(|status| Self::Done(status, 0))
    }
}

/// What becomes of an Abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// The event request of this id is answered as aborted, before it.
    Event(u16),
    /// Its command is not here, or goes on.
    TooLate,
    /// Its command's queue is asked.
    Waits,
    /// Another one is under way.
    TooMany,
}

/// Features whose value the host sets and nothing here depends on.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    arbitration: u32,
    power: u32,
    temperature: u32,
    recovery: u32,
    atomicity: u32,
}

impl Kept {
    fn place(&mut self, feature: u8) -> Option<&mut u32> {
        Some(match feature {
            feature::ARBITRATION => &mut self.arbitration,
            feature::POWER_MANAGEMENT => &mut self.power,
            feature::TEMPERATURE_THRESHOLD => &mut self.temperature,
            feature::ERROR_RECOVERY => &mut self.recovery,
            feature::WRITE_ATOMICITY => &mut self.atomicity,
            _ => return None,
        })
    }
}

/// A controller.
#[derive(Debug)]
pub(super) struct Admin {
    is_discovery: bool,
    claim: Claim,
    host_id: [u8; 16],
    configuration: u32,
    status: u32,
    keep_alive_ms: u32,
    alive_at: Nanos,
    events: u32,
    event_requests: Vec<u16>,
    /// An Abort whose command is at an I/O queue, and since when it waits.
    abort: Option<(u16, Nanos)>,
    notices: [Notice; EVENTS.len()],
    /// How each group is reached, as the host was last told; how often a group has changed since the reset, and any of them.
    access: AccessView,
    group_changes: [u64; GROUPS],
    access_changes: u64,
    /// Namespaces as the host knows them: as they were when it was last told.
    known: Vec<Namespace>,
    changed: BTreeSet<u32>,
    /// The discovery log as the host was last told of it.
    generation: u64,
    /// Commands that have failed, the newest first.
    errors: VecDeque<ErrorEntry>,
    kept: Kept,
    reservations: Notices,
}

impl Admin {
    /// The controller that `connect` has made, of a node that reaches its pools by `access`.
    pub(super) fn new(claim: Claim, connect: &Connect, is_discovery: bool, access: AccessView, now: Nanos) -> Self {
        Self {
            is_discovery,
            claim,
            host_id: connect.host_id,
            configuration: 0,
            status: 0,
            keep_alive_ms: connect.keep_alive_ms,
            alive_at: now,
            events: 0,
            event_requests: Vec::new(),
            abort: None,
            notices: Default::default(),
            access,
            group_changes: [0; GROUPS],
            access_changes: 0,
            known: Vec::new(),
            changed: BTreeSet::new(),
            generation: 0,
            errors: VecDeque::new(),
            kept: Kept::default(),
            reservations: Notices::default(),
        }
    }

    /// CNTLID.
    pub(super) fn controller(&self) -> u16 {
        self.claim.controller
    }

    /// The admin queue is gone, and the controller with it.
    pub(super) fn end(&self, target: &Target) {
        target.controllers.release(&self.claim);
    }

    /// Whether the host has been silent for too long (invariant 3).
    pub(super) fn is_silent(&self, now: Nanos) -> bool {
        self.silent_at().is_some_and(|at| now > at)
    }

    fn silent_at(&self) -> Option<Nanos> {
        let limit = Duration::from_millis(u64::from(self.keep_alive_ms)) + KEEP_ALIVE_SLACK;
        (self.keep_alive_ms > 0).then(|| self.alive_at + limit)
    }

    /// Tells the controller's other queues until when its host has been heard.
    pub(super) fn tell_heard(&self, target: &Target) {
        target.controllers.expect(&self.claim, self.silent_at());
    }

    /// The host has shown that it lives.
    pub(super) fn revive(&mut self, now: Nanos) {
        self.alive_at = now;
    }

    /// Whether it takes commands about namespaces.
    pub(super) fn has_namespaces(&self) -> bool {
        self.is_enabled() && !self.is_discovery
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.status & bits::READY != 0
    }

    /// Looks whether the volumes, or the discovery log, are as the host knows them.
    pub(super) fn watch<S: VolumeService>(&mut self, target: &Target, service: &S) {
        self.collect_errors(target);
        if !self.is_enabled() {
            return;
        }
        self.collect_notifications(target);
        if self.is_discovery {
            let before = std::mem::replace(&mut self.generation, target.generation());
            self.notices[DISCOVERY_CHANGED].is_pending |= self.generation != before;
            return;
        }
        let now = target.namespaces(service);
        if now == self.known {
            return;
        }
        let differs = |old: &[Namespace], new: &Namespace| !old.contains(new);
        let changed = now.iter().filter(|namespace| differs(&self.known, namespace));
        let gone = self.known.iter().filter(|namespace| differs(&now, namespace));
        self.changed.extend(changed.chain(gone).map(|namespace| namespace.id));
        let members = |all: &[Namespace], group: u32| {
            let of = |namespace: &&Namespace| target.group_of(namespace.volume) == group;
            all.iter().filter(of).map(|namespace| namespace.id).collect::<Vec<_>>()
        };
        let is_changed = [1, 2].map(|group| members(&now, group) != members(&self.known, group));
        self.count_changes(is_changed);
        self.known = now;
        self.notices[NAMESPACES_CHANGED].is_pending = true;
    }

    /// A command of this queue has failed.
    pub(super) fn report(&self, target: &Target, command: &Command, status: Status) {
        target.controllers.report_admin(&self.claim, command, status);
    }

    /// Takes what has failed at any queue. Returns how many commands have so far.
    fn collect_errors(&mut self, target: &Target) -> u64 {
        let (count, new) = target.controllers.collect_errors(&self.claim);
        for error in new {
            self.errors.truncate(log::ERRORS_MAX - 1);
            self.errors.push_front(error);
        }
        count
    }

    /// Takes what the host is to be told of reservations.
    fn collect_notifications(&mut self, target: &Target) {
        let (new, lost) = target.controllers.collect_notifications(&self.claim);
        for notification in new {
            self.notices[RESERVATION_CHANGED].is_pending |= self.reservations.add(notification);
        }
        self.reservations.lose(lost);
    }

    /// The pools are reached by `access` now.
    pub(super) fn set_access(&mut self, access: AccessView) {
        let before = std::mem::replace(&mut self.access, access);
        if self.is_discovery || !self.is_enabled() || access == before {
            return;
        }
        self.count_changes(std::array::from_fn(|group| access[group] != before[group]));
        self.notices[ACCESS_CHANGED].is_pending = true;
    }

    /// Counts a change of the access log page, in which these groups have changed (base 2.0, section 5.16.1.13).
    fn count_changes(&mut self, is_changed: [bool; GROUPS]) {
        self.access_changes += u64::from(is_changed.contains(&true));
        for (changes, is_changed) in self.group_changes.iter_mut().zip(is_changed) {
            *changes += u64::from(is_changed);
        }
    }

    /// An event request that can be answered: its id, and the result.
    pub(super) fn next_event(&mut self) -> Option<(u16, u64)> {
        let is_due = |(event, notice): &(Event, &mut Notice)| {
            notice.is_pending && !notice.is_told && self.events & event.bit == event.bit
        };
        let (event, notice) = EVENTS.into_iter().zip(&mut self.notices).find(is_due)?;
        if self.event_requests.is_empty() {
            return None;
        }
        *notice = Notice { is_pending: false, is_told: true };
        Some((self.event_requests.remove(0), u64::from(event.result)))
    }

    /// Performs a command.
    pub(super) fn execute<S: VolumeService>(
        &mut self,
        target: &Target,
        service: &S,
        command: &Command,
        now: Nanos,
    ) -> Answer {
        match command.fabrics() {
            Some(fabrics::PROPERTY_GET) => return self.get_property(command).into(),
            Some(fabrics::PROPERTY_SET) => return self.set_property(target, service, command).into(),
            Some(_) => return Answer::Done(Status::INVALID_FIELD, 0),
            None if !self.is_enabled() => return Answer::Done(Status::SEQUENCE_ERROR, 0),
            None => {}
        }
        // Everything that the host asks for shows that it lives, though only one command is for that.
        self.alive_at = now;
        match command.opcode {
            opcode::KEEP_ALIVE => Answer::result(0),
            opcode::IDENTIFY => self.identify(target, service, command).into(),
            opcode::GET_LOG_PAGE => self.log_page(target, service, command).into(),
            opcode::GET_FEATURES => self.get_features(target, service, command).into(),
            opcode::SET_FEATURES => self.set_features(target, service, command).into(),
            opcode::ASYNC_EVENT_REQUEST if self.event_requests.len() >= EVENT_REQUESTS_MAX => {
                Answer::Done(Status::TOO_MANY_EVENT_REQUESTS, 0)
            }
            opcode::ASYNC_EVENT_REQUEST => {
                self.event_requests.push(command.id.get());
                Answer::Held
            }
            _ => Answer::Done(Status::INVALID_OPCODE, 0),
        }
    }

    /// An Abort (base 2.0, section 5.1). At this queue only event requests are here long enough to be found; an I/O queue looks for the command when it has its
    /// turn, and gives up what it has not given to a volume.
    pub(super) fn abort(&mut self, target: &Target, command: &Command, now: Nanos) -> Abort {
        let [queue_low, queue_high, id_low, id_high] = command.word(10).to_le_bytes();
        let (queue, id) = (u16::from_le_bytes([queue_low, queue_high]), u16::from_le_bytes([id_low, id_high]));
        if queue == 0 {
            let place = self.event_requests.iter().position(|&request| request == id);
            return place.map_or(Abort::TooLate, |place| Abort::Event(self.event_requests.remove(place)));
        }
        if self.abort.is_some() {
            return Abort::TooMany;
        }
        if !target.controllers.want_abort(&self.claim, queue, id) {
            return Abort::TooLate;
        }
        self.abort = Some((command.id.get(), now));
        Abort::Waits
    }

    /// An Abort that has ended: its id, and whether its command was aborted.
    pub(super) fn ended_abort(&mut self, target: &Target, now: Nanos) -> Option<(u16, bool)> {
        let (id, since) = self.abort?;
        let is_aborted = target.controllers.take_abort(&self.claim, now.since(since) >= ABORT_PATIENCE)?;
        self.abort = None;
        Some((id, is_aborted))
    }

    fn get_property(&self, command: &Command) -> Result<Answer, Status> {
        let is_long = command.word(10) & 0b111 == 1;
        let (long, value) = match command.word(11) {
            property::CAPABILITIES => (true, capabilities()),
            property::VERSION => (false, u64::from(identify::VERSION)),
            property::CONFIGURATION => (false, u64::from(self.configuration)),
            property::STATUS => (false, u64::from(self.status)),
            property::READY_TIMEOUTS => (false, READY_TIMEOUT),
            _ => return Err(Status::INVALID_FIELD),
        };
        if long == is_long { Ok(Answer::Done(Status::SUCCESS, value)) } else { Err(Status::INVALID_FIELD) }
    }

    fn set_property<S: VolumeService>(
        &mut self,
        target: &Target,
        service: &S,
        command: &Command,
    ) -> Result<Answer, Status> {
        if command.word(10) & 0b111 != 0 || command.word(11) != property::CONFIGURATION {
            return Err(Status::INVALID_FIELD);
        }
        let (before, now) = (self.configuration, command.word(12));
        self.configuration = now;
        let was_enabled = self.status & (bits::READY | bits::FATAL) != 0;
        if now & bits::ENABLE == 0 && before & bits::ENABLE != 0 {
            self.reset(target);
            self.status = 0;
        } else if now & bits::ENABLE != 0 && !was_enabled {
            let is_good = now & bits::CHOICES == 0 && (self.is_discovery || now & bits::ENTRIES == bits::ENTRIES_GOOD);
            self.status = if is_good { bits::READY } else { bits::FATAL };
            if is_good {
                (self.known, self.generation) = (target.namespaces(service), target.generation());
                target.controllers.enable(&self.claim);
            }
        }
        if now & bits::SHUTDOWN != 0 {
            // Nothing is kept here that a shutdown would have to write.
            self.status |= bits::SHUTDOWN_COMPLETE;
        }
        Ok(Answer::result(0))
    }

    fn reset(&mut self, target: &Target) {
        target.controllers.disable(&self.claim);
        // Outstanding event requests end without an answer (base 2.0, section 3.7.2).
        self.event_requests.clear();
        self.abort = None;
        (self.events, self.notices, self.kept) = (0, Default::default(), Kept::default());
        self.reservations = Notices::default();
        (self.group_changes, self.access_changes) = ([0; GROUPS], 0);
        self.changed.clear();
    }

    fn identify<S: VolumeService>(&self, target: &Target, service: &S, command: &Command) -> Result<Answer, Status> {
        let [structure, ..] = command.word(10).to_le_bytes();
        let [.., command_set] = command.word(11).to_le_bytes();
        let id = command.namespace.get();
        if structure == cns::CONTROLLER {
            return Ok(Answer::Data(self.identify_controller(target).as_bytes().to_vec()));
        }
        let is_of_set =
            matches!(structure, cns::NAMESPACE_OF_SET | cns::CONTROLLER_OF_SET | cns::ACTIVE_NAMESPACES_OF_SET);
        // The NVM command set is the one there is.
        if self.is_discovery || (is_of_set && command_set != 0) {
            return Err(Status::INVALID_FIELD);
        }
        let is_valid = (1..=NAMESPACE_MAX).contains(&id);
        let found = || target.find(service, id);
        let data = match structure {
            cns::ACTIVE_NAMESPACES | cns::ACTIVE_NAMESPACES_OF_SET if id <= NAMESPACE_MAX => {
                let ids = target.namespaces(service).into_iter().map(|namespace| namespace.id);
                identify::namespace_list(ids.filter(|other| *other > id))
            }
            cns::CONTROLLER_OF_SET => identify::zeroes(),
            cns::NAMESPACE if is_valid => found().map_or_else(identify::zeroes, |found| describe(target, found)),
            cns::DESCRIPTORS | cns::NAMESPACE_INDEPENDENT | cns::NAMESPACE_OF_SET if is_valid => {
                let namespace = found().ok_or(Status::INVALID_NAMESPACE)?;
                match structure {
                    cns::DESCRIPTORS => {
                        let (nguid, uuid) = target.names_of(namespace.volume);
                        identify::descriptors(&nguid, &uuid)
                    }
                    cns::NAMESPACE_OF_SET => identify::zeroes(),
                    _ => {
                        let mut described = identify::IndependentNamespace::new_zeroed();
                        (described.features, described.shared, described.status) = (FEATURES, 1, 1);
                        described.reservations = reservation::CAPABILITIES;
                        described.access_group = U32::new(target.group_of(namespace.volume));
                        described.as_bytes().to_vec()
                    }
                }
            }
            cns::ACTIVE_NAMESPACES
            | cns::ACTIVE_NAMESPACES_OF_SET
            | cns::NAMESPACE
            | cns::DESCRIPTORS
            | cns::NAMESPACE_INDEPENDENT
            | cns::NAMESPACE_OF_SET => return Err(Status::INVALID_NAMESPACE),
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(Answer::Data(data))
    }

    fn identify_controller(&self, target: &Target) -> identify::Controller {
        let name = if self.is_discovery { super::target::DISCOVERY } else { target.subsystem() };
        let mut controller = identify::Controller::new(name, target.serial());
        controller.controller = U16::new(self.claim.controller);
        controller.transfer_pages_log = io::TRANSFER_PAGES_LOG;
        controller.event_requests = u8::try_from(EVENT_REQUESTS_MAX - 1).expect("a few");
        controller.keep_alive = U16::new(KEEP_ALIVE_UNITS);
        controller.commands_max = U16::new(ENTRIES_MAX);
        // SGLs with any alignment, an offset in the capsule's, and the transport's own data block.
        controller.descriptors = U32::new(1 | 1 << 20 | 1 << 21);
        controller.kind = 2;
        // Offsets into log pages.
        controller.logs = 1 << 2;
        controller.attributes = U32::new(1 << 0);
        let [own @ .., of_discovery] = EVENTS.map(|event| event.bit);
        if self.is_discovery {
            controller.events = U32::new(of_discovery);
            return controller;
        }
        controller.kind = 1;
        // Several controllers, and access that is not the same through all.
        controller.multipath = 1 << 1 | 1 << 3;
        controller.events = U32::new(own.into_iter().sum());
        // Optimized, non-optimized and inaccessible; a namespace stays in its group.
        controller.access = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 6;
        controller.access_change_s = u8::try_from(ACCESS_CHANGE.as_secs()).expect("seconds");
        let groups = U32::new(u32::try_from(GROUPS).expect("two"));
        (controller.access_group_max, controller.access_groups) = (groups, groups);
        controller.logs |= 1 << 1 | 1 << 5;
        controller.error_entries = u8::try_from(log::ERRORS_MAX - 1).expect("a few");
        controller.firmware_updates = 1 << 1 | 1 << 0;
        controller.entry_bytes_log = [0x66, 0x44];
        controller.namespace_max = U32::new(NAMESPACE_MAX);
        controller.namespaces_max = U32::new(u32::try_from(NAMESPACES_MAX).expect("a list"));
        controller.commands = U16::new(io::OPTIONAL_COMMANDS);
        controller.fused = U16::new(io::FUSED_OPERATIONS);
        // There is a cache to be flushed, and one namespace at a time.
        controller.write_cache = 0b101;
        controller.command_capsule = U32::new((64 + IN_CAPSULE_BYTES_MAX) / 16);
        controller.response_capsule = U32::new(1);
        controller.descriptors_max = 1;
        controller
    }

    fn log_page<S: VolumeService>(
        &mut self,
        target: &Target,
        service: &S,
        command: &Command,
    ) -> Result<Answer, Status> {
        let word = command.word(10);
        let [page, ..] = word.to_le_bytes();
        if !LOGS[usize::from(self.is_discovery)].contains(&page) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        let keeps_event = word & 1 << 15 != 0;
        let count = u64::from(command.word(11) & 0xffff) << 16 | u64::from(word >> 16);
        let offset = u64::from(command.word(13)) << 32 | u64::from(command.word(12));
        // A read that fails takes nothing off a page.
        let wanted = usize::try_from((count + 1) * log::DWORD_BYTES).map_err(|_| Status::INVALID_FIELD)?;
        if wanted > usize::try_from(io::TRANSFER_BYTES_MAX).expect("a megabyte") {
            return Err(Status::INVALID_FIELD);
        }
        check_room(command, wanted)?;
        let content = match page {
            log::id::SUPPORTED => log::supported(LOGS[usize::from(self.is_discovery)]),
            log::id::ERRORS => {
                self.collect_errors(target);
                log::errors(self.errors.iter())
            }
            log::id::SMART => log::smart(&self.health(target, service)),
            log::id::FIRMWARE => log::firmware(),
            log::id::EFFECTS => log::effects(&COMMANDS, &io::COMMANDS),
            log::id::FEATURES => log::features(&KNOWN_FEATURES),
            log::id::MANAGEMENT => log::management(),
            log::id::CHANGED_NAMESPACES => self.changed_namespaces(),
            log::id::RESERVATION => {
                self.collect_notifications(target);
                self.reservations.page()
            }
            // Bit 0 of the specific field: the groups only.
            log::id::ACCESS => log::access(self.access_changes, &self.groups(target, service, word & 1 << 8 == 0)),
            _ => log::discovery(target.generation(), &target.ports(), ENTRIES_MAX),
        };
        let start = usize::try_from(offset).ok().filter(|start| *start < content.len() && start.is_multiple_of(4));
        let content = content.get(start.ok_or(Status::INVALID_FIELD)?..).unwrap_or_default();
        if let Some(event) = EVENTS.iter().position(|event| event.page == page && !keeps_event) {
            self.notices[event].is_told = false;
            if event == NAMESPACES_CHANGED {
                self.changed.clear();
            }
        }
        if page == log::id::RESERVATION && offset == 0 {
            self.reservations.pass();
            self.notices[RESERVATION_CHANGED].is_pending = !self.reservations.is_empty();
        }
        // A page is as long as it is: what was asked for beyond its end is zero.
        let mut data = content.to_vec();
        data.resize(wanted, 0);
        Ok(Answer::Data(data))
    }

    fn health<S: VolumeService>(&mut self, target: &Target, service: &S) -> Health {
        let is_degraded = service.volumes().iter().any(|volume| volume.offline.is_some());
        Health { is_degraded, errors: self.collect_errors(target), ..target.traffic.health() }
    }

    /// The groups, with their namespaces if they are `listed`.
    fn groups<S: VolumeService>(&self, target: &Target, service: &S, listed: bool) -> Vec<AccessGroup> {
        let all = if listed { target.namespaces(service) } else { Vec::new() };
        let group = |(id, (access, changes))| {
            let own = all.iter().filter(|namespace| target.group_of(namespace.volume) == id);
            AccessGroup { id, changes, access, namespaces: own.map(|namespace| namespace.id).collect() }
        };
        (1..).zip(self.access.into_iter().zip(self.group_changes)).map(group).collect()
    }

    /// Those that have changed since the page was last read; too many to list are said with one id that means all (base 2.0, section 5.16.1.5).
    fn changed_namespaces(&self) -> Vec<u8> {
        if self.changed.len() > identify::LIST_MAX {
            return identify::namespace_list([u32::MAX]);
        }
        identify::namespace_list(self.changed.iter().copied())
    }

    fn get_features<S: VolumeService>(
        &mut self,
        target: &Target,
        service: &S,
        command: &Command,
    ) -> Result<Answer, Status> {
        let [id, select, ..] = command.word(10).to_le_bytes();
        // Current, default and saved values, and what can be done with them.
        match select & 0b111 {
            0 => {}
            // Changeable, and whether for each namespace alone.
            3 => {
                let is_own = u32::from(OF_NAMESPACES.contains(&id)) << 1;
                return Ok(Answer::result(if self.is_changeable(id)? { 1 << 2 | is_own } else { 0 }));
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        if let Some(place) = self.kept.place(id).filter(|_| !self.is_discovery) {
            return Ok(Answer::result(*place));
        }
        let count = u32::from(QUEUES_MAX - 1);
        Ok(match id {
            feature::RESERVATION_NOTICE_MASK if !self.is_discovery => {
                let namespace = command.namespace.get();
                if namespace == u32::MAX {
                    return Err(Status::INVALID_FIELD);
                }
                target.find(service, namespace).ok_or(Status::INVALID_NAMESPACE)?;
                Answer::result(self.reservations.mask(namespace))
            }
            feature::KEEP_ALIVE_TIMER => Answer::result(self.keep_alive_ms),
            feature::ASYNC_EVENT_CONFIGURATION => Answer::result(self.events),
            feature::HOST_IDENTIFIER => Answer::Data(self.host_id.to_vec()),
            feature::VOLATILE_WRITE_CACHE if !self.is_discovery => Answer::result(1),
            feature::NUMBER_OF_QUEUES if !self.is_discovery => Answer::result(count << 16 | count),
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Whether the host may set the feature.
    fn is_changeable(&mut self, id: u8) -> Result<bool, Status> {
        match id {
            feature::KEEP_ALIVE_TIMER | feature::ASYNC_EVENT_CONFIGURATION => Ok(true),
            feature::HOST_IDENTIFIER => Ok(false),
            _ if self.is_discovery => Err(Status::INVALID_FIELD),
            feature::NUMBER_OF_QUEUES | feature::RESERVATION_PERSISTENCE | feature::RESERVATION_NOTICE_MASK => Ok(true),
            feature::VOLATILE_WRITE_CACHE => Ok(false),
            _ => self.kept.place(id).map(|_| true).ok_or(Status::INVALID_FIELD),
        }
    }

    fn set_features<S: VolumeService>(
        &mut self,
        target: &Target,
        service: &S,
        command: &Command,
    ) -> Result<Answer, Status> {
        let [id, ..] = command.word(10).to_le_bytes();
        let value = command.word(11);
        if command.word(10) >> 31 != 0 {
            // Nothing is saved over a reset.
            return Err(Status::INVALID_FIELD);
        }
        if !self.is_changeable(id)? {
            return match id {
                feature::HOST_IDENTIFIER => Err(Status::SEQUENCE_ERROR),
                _ if value & 1 == 1 => Ok(Answer::result(0)),
                _ => Err(Status::NOT_CHANGEABLE),
            };
        }
        if let Some(place) = self.kept.place(id) {
            *place = value;
            return Ok(Answer::result(0));
        }
        match id {
            feature::KEEP_ALIVE_TIMER => self.keep_alive_ms = value,
            feature::ASYNC_EVENT_CONFIGURATION => self.events = value,
            feature::RESERVATION_NOTICE_MASK => self.mask(&target.namespaces(service), command)?,
            // Number of queues: less one of each kind; 0xffff is none that can be.
            _ => {
                let (submission, completion) = (value & 0xffff, value >> 16);
                if submission == 0xffff || completion == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                let count = submission.min(completion).min(u32::from(QUEUES_MAX - 1));
                return Ok(Answer::result(count << 16 | count));
            }
        }
        Ok(Answer::result(0))
    }

    /// The host does not want to hear of some things, in one namespace or in all that there are.
    fn mask(&mut self, namespaces: &[Namespace], command: &Command) -> Result<(), Status> {
        let there: Vec<u32> = namespaces.iter().map(|namespace| namespace.id).collect();
        let id = command.namespace.get();
        let set = if id == u32::MAX { there.clone() } else { vec![id] };
        if !set.iter().all(|id| there.contains(id)) {
            return Err(Status::INVALID_NAMESPACE);
        }
        self.reservations.set_masks(&there, &set, command.word(11));
        Ok(())
    }
}

/// Whether data of `wanted` bytes has where to go (TCP transport 1.0, section 3.5).
pub(super) fn check_room(command: &Command, wanted: usize) -> Result<(), Status> {
    match command.data.kind {
        IN_TRANSPORT if command.data.length.get() as usize >= wanted => Ok(()),
        IN_TRANSPORT => Err(Status::DATA_LENGTH_INVALID),
        _ => Err(Status::DESCRIPTOR_INVALID),
    }
}

/// NSFEAT: thin provisioning, and names that are never used again.
const FEATURES: u8 = 1 << 0 | 1 << 3;
/// NSFEAT: the namespace's own atomic units count, and what it says of preferred granularities.
const FINE_FEATURES: u8 = 1 << 1 | 1 << 4;

fn describe(target: &Target, namespace: Namespace) -> Vec<u8> {
    let mut described = identify::Namespace::new_zeroed();
    let blocks = U64::new(namespace.blocks);
    (described.blocks, described.capacity, described.used) = (blocks, blocks, blocks);
    (described.features, described.shared) = (FEATURES, 1);
    described.reservations = reservation::CAPABILITIES;
    described.access_group = U32::new(target.group_of(namespace.volume));
    // Deallocated blocks read as zeroes, and write zeroes can deallocate.
    described.deallocated = 0b1001;
    (described.nguid, _) = target.names_of(namespace.volume);
    let formats = (0..).zip(BlockSize::ALL);
    for ((performance, size), format) in formats.zip(&mut described.lba_formats) {
        *format = U32::new(u32::from(size.shift()) << 16 | performance << 24);
    }
    let place = BlockSize::ALL.iter().position(|size| *size == namespace.block_size).expect("one of all");
    described.formatted = u8::try_from(place).expect("one of two");
    described.formats = u8::try_from(BlockSize::ALL.len() - 1).expect("two");
    // The pool's blocks are larger: parts of one are read and written whole, and deallocated only together.
    let together = BLOCK_BYTES / namespace.block_size.bytes() - 1;
    if together > 0 {
        let together = U16::new(u16::try_from(together).expect("at most 7"));
        described.features |= FINE_FEATURES;
        (described.atomic, described.preferred) = ([together; 2], [together; 5]);
    }
    described.as_bytes().to_vec()
}

/// CAP (base 2.0, section 3.1.3.1): entries, contiguous queues, time-out, the NVM command set, pages of 4 KiB, ready with or without media.
fn capabilities() -> u64 {
    let contiguous = 1 << 16;
    let (nvm, ready_with_media) = (1 << 37, 1 << 59);
    u64::from(ENTRIES_MAX - 1) | contiguous | READY_TIMEOUT << 24 | nvm | ready_with_media
}
