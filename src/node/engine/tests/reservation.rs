//! Reservations: what was answered survives every power cut, and a host that was preempted writes nothing after that was answered.

use super::*;
use crate::{
    base::{ForwardId, HostId},
    format::reservation::{Reservation, ReservationKind},
    fs::reservation::{Notice, RegisterAction, ReservationCommand},
    node::request::{FORWARDED_SESSION, ReservationNotice},
};
use ReservationKind::{ExclusiveAccess, WriteExclusive};

const CONFLICT: Option<VolumeError> = Some(VolumeError::ReservationConflict);

fn host(number: u8) -> HostId {
    HostId::new([number; 16]).expect("not zero")
}

fn register(key: u64) -> ReservationCommand {
    ReservationCommand::Register { action: RegisterAction::Register { key }, persists: Some(true) }
}

fn preempt(kind: ReservationKind, aborts: bool) -> ReservationCommand {
    ReservationCommand::Preempt { key: 2, preempted: 1, kind, aborts }
}

impl Node {
    fn begin_as(&mut self, number: u8, volume: ObjectId, operation: VolumeOperation) -> u64 {
        self.next_request += 1;
        let tag = RequestTag { session: 1, request: self.next_request };
        self.asleep[0] = None;
        self.engines[0].submit(VolumeRequest { tag, volume, host: Some(host(number)), pass: None, operation });
        self.next_request
    }

    /// The error of a request of a host, if it has one.
    fn fault(&mut self, number: u8, volume: ObjectId, operation: VolumeOperation) -> Option<VolumeError> {
        let request = self.begin_as(number, volume, operation);
        self.end(request).err()
    }

    fn reserve(&mut self, number: u8, volume: ObjectId, command: ReservationCommand) -> Option<VolumeError> {
        self.fault(number, volume, VolumeOperation::Reserve(command))
    }

    fn payload(&self, byte: u8) -> VolumeOperation {
        let mut payload = Payload::allocate(self.engines[0].blocks(), 0..4096).expect("memory is large enough");
        payload.fill(0, &[byte; 4096]);
        VolumeOperation::Write { payload, durable: false }
    }

    fn write_as(&mut self, number: u8, volume: ObjectId) -> Option<VolumeError> {
        let write = self.payload(number);
        self.fault(number, volume, write)
    }

    fn reservation(&mut self, volume: ObjectId) -> Reservation {
        let request = self.begin_as(9, volume, VolumeOperation::Reservation);
        let Ok(ReplyData::Reservation(state)) = self.end(request) else { panic!("a report returns the state") };
        *state
    }
}

/// Host 1 holds the volume, host 2 has registered, with their numbers as keys.
fn held(node: &mut Node, volume: ObjectId, kind: ReservationKind) -> Reservation {
    assert_eq!(node.reserve(1, volume, register(1)), None);
    assert_eq!(node.reserve(2, volume, register(2)), None);
    assert_eq!(node.reserve(1, volume, ReservationCommand::Acquire { key: 1, kind }), None);
    node.reservation(volume)
}

#[test]
fn a_reservation_keeps_others_out_and_survives_power_cuts_in_the_log_and_in_the_pool() {
    for with_cp in [false, true] {
        let mut machine = Machine::new(31, &[4096], 2, MIB);
        let mut node = machine.start(2);
        let volume = node.create("vol", MIB);
        node.checkpoint();
        let state = held(&mut node, volume, WriteExclusive);
        assert_eq!((state.generation, state.registrants.len(), state.persists), (2, 2, true));
        if with_cp {
            node.checkpoint();
        }
        for _ in 0..2 {
            assert_eq!(node.write_as(2, volume), CONFLICT);
            assert_eq!(node.write_as(1, volume), None);
            assert_eq!(node.fault(2, volume, VolumeOperation::Flush), CONFLICT);
            assert_eq!(node.fault(2, volume, VolumeOperation::Discard { range: 0..4096, durable: false }), CONFLICT);
            assert_eq!(node.fault(2, volume, VolumeOperation::Read(0..4096)), None);
            assert_eq!(node.write(volume, 0, &[7]).err(), CONFLICT, "a client without an identity");
            machine.power_cut(node);
            node = machine.start(1);
            assert_eq!(node.reservation(volume), state);
            assert_eq!(node.read(volume, 0..1), Ok(vec![1]));
            node.check();
        }
    }
}

#[test]
fn what_is_answered_of_a_reservation_survives_a_power_cut_at_once() {
    for seed in 0..16 {
        let mut machine = Machine::new(seed, &[4096], 1, MIB);
        let mut node = machine.start(1);
        let volume = node.create("vol", MIB);
        node.checkpoint();
        assert_eq!(node.reserve(1, volume, register(1)), None);
        machine.power_cut(node);
        let mut node = machine.start(1);
        assert_eq!(node.reservation(volume).registrants.len(), 1, "seed {seed}");
    }
}

#[test]
fn exclusive_access_is_not_even_read() {
    let machine = Machine::new(32, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    held(&mut node, volume, ExclusiveAccess);
    let status = VolumeOperation::BlockStatus { range: 0..4096, extents_max: 1 };
    assert_eq!(node.fault(2, volume, VolumeOperation::Read(0..4096)), CONFLICT);
    assert_eq!(node.fault(2, volume, status), CONFLICT);
    assert_eq!(node.fault(1, volume, VolumeOperation::Read(0..4096)), None);
    assert_eq!(node.reserve(1, volume, ReservationCommand::Release { key: 1, kind: ExclusiveAccess }), None);
    assert_eq!(node.fault(2, volume, VolumeOperation::Read(0..4096)), None);
    assert_eq!(node.reserve(3, volume, ReservationCommand::Clear { key: 1 }), CONFLICT);
    let release = ReservationCommand::Release { key: 2, kind: WriteExclusive };
    assert_eq!(node.reserve(2, volume, release), None, "who holds nothing");
    assert!(node.reserve(2, volume, ReservationCommand::Clear { key: 2 }).is_none());
    assert!(node.reservation(volume).registrants.is_empty());
}

/// Writes that are under way when their host is preempted are in the volume before that is answered, or refused: in whatever order they are answered.
#[test]
fn a_preempted_host_writes_nothing_that_is_seen_after_the_preemption() {
    for aborts in [false, true] {
        let machine = Machine::new(33, &[4096], 1, MIB);
        let mut node = machine.start(1);
        let volume = node.create("vol", MIB);
        held(&mut node, volume, WriteExclusive);
        let (early, late) = (node.payload(1), node.payload(1));
        let early = node.begin_as(1, volume, early);
        let preempting = node.begin_as(2, volume, VolumeOperation::Reserve(preempt(WriteExclusive, aborts)));
        let late = node.begin_as(1, volume, late);
        let own = node.payload(2);
        let own = node.begin_as(2, volume, own);
        assert!(node.end(early).is_ok(), "it came before");
        assert!(node.end(preempting).is_ok());
        let expected = if aborts { VolumeError::Preempted } else { VolumeError::ReservationConflict };
        assert_eq!(node.end(late).err(), Some(expected));
        assert!(node.end(own).is_ok());
        assert_eq!(node.read(volume, 0..1), Ok(vec![2]));
        assert_eq!(node.write_as(1, volume), CONFLICT);
        let state = node.reservation(volume);
        assert!(state.registrant(host(1)).is_none() && state.is_holder(host(2)));
    }
}

#[test]
fn without_persistence_a_node_that_starts_again_has_no_registrants() {
    let mut machine = Machine::new(34, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    held(&mut node, volume, WriteExclusive);
    assert_eq!(node.reserve(9, volume, ReservationCommand::SetPersistence(false)), None);
    let generation = node.reservation(volume).generation;
    machine.power_cut(node);
    let mut node = machine.start(1);
    let state = node.reservation(volume);
    assert!(state.held.is_none() && state.registrants.is_empty() && state.generation == generation);
    assert_eq!(node.write_as(3, volume), None);
    machine.power_cut(node);
    machine.start(1).check();
}

/// A change that the partner asks for again is known by its name.
#[test]
fn a_forwarded_command_is_remembered_with_its_record() {
    let mut machine = Machine::new(35, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    let id = ForwardId::new(77, 3);
    let forward = |node: &mut Node, pass| {
        let tag = RequestTag { session: FORWARDED_SESSION, request: id.bits() };
        node.asleep[0] = None;
        let operation = VolumeOperation::Reserve(register(5));
        node.engines[0].submit(VolumeRequest { tag, volume, host: Some(host(4)), pass, operation });
        node.end(id.bits())
    };
    let Err(VolumeError::Late(pass)) = forward(&mut node, None) else { panic!("it has no pass") };
    assert!(node.reservation(volume).registrant(host(4)).is_none(), "and is not performed");
    assert!(forward(&mut node, Some(pass)).is_ok());
    machine.power_cut(node);
    let mut node = machine.start(1);
    let superblock = node.engines[0].coordinator().and_then(Coordinator::superblock).expect("the pool is open");
    assert!(superblock.forwarded[0].contains(id) && superblock.has_reservations);
    assert_eq!(node.reservation(volume).registrant(host(4)).map(|registrant| registrant.key), Some(5));
}

/// The most registrants there can be come and go with their volume, with power cuts anywhere.
#[test]
fn many_registrants_lie_in_the_object_table() {
    let mut machine = Machine::new(36, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    let other = node.create("other", MIB);
    for number in 1..=128 {
        assert_eq!(node.reserve(number, volume, register(u64::from(number))), None);
        if number % 16 == 0 {
            node.checkpoint();
        }
    }
    assert_eq!(node.reserve(129, volume, register(1)), Some(VolumeError::RegistrantsFull));
    assert_eq!(node.reserve(129, other, register(1)), None);
    let state = node.reservation(volume);
    machine.power_cut(node);
    let mut node = machine.start(1);
    assert_eq!(node.reservation(volume), state);
    node.check();
    assert_eq!(node.reserve(5, volume, ReservationCommand::Clear { key: 5 }), None);
    node.checkpoint();
    node.check();
    let deleted = node.admin(AdminRequest::VolumeDelete { name: "other".to_owned() });
    assert!(matches!(deleted, AdminReply::Volumes { .. } | AdminReply::Done), "{deleted:?}");
    node.checkpoint();
    machine.power_cut(node);
    let mut node = machine.start(1);
    assert!(node.reservation(volume).registrants.is_empty());
    node.check();
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_reservations_are_found() {
    let survives = a_reservation_keeps_others_out_and_survives_power_cuts_in_the_log_and_in_the_pool as fn();
    let bugs: [(&'static str, fn()); 5] = [
        ("reservation-told-too-early", what_is_answered_of_a_reservation_survives_a_power_cut_at_once),
        ("reservation-not-enforced", survives),
        ("replay-skips-reservations", survives),
        ("reservation-not-in-cp", survives),
        ("registrants-left-in-the-table", many_registrants_lie_in_the_object_table),
    ];
    for (bug, test) in bugs {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}

#[test]
fn a_host_that_was_preempted_is_told_when_the_preemption_is_answered() {
    let machine = Machine::new(37, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    held(&mut node, volume, WriteExclusive);
    assert_eq!(node.engines[0].poll_notice(), None);
    let request = node.begin_as(2, volume, VolumeOperation::Reserve(preempt(ExclusiveAccess, false)));
    assert_eq!(node.engines[0].poll_notice(), None, "nothing is stable yet");
    assert!(node.end(request).is_ok());
    let notice = ReservationNotice { host: host(1), volume, notice: Notice::RegistrationPreempted };
    assert_eq!((node.engines[0].poll_notice(), node.engines[0].poll_notice()), (Some(notice), None));
}
