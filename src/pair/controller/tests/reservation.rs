//! Reservations of a pair: what a host was answered holds at both nodes, and after either is lost.

use super::*;
#[cfg(feature = "planted-bugs")]
use crate::base::planted;
use crate::{
    base::{HostId, Pass},
    format::reservation::{Reservation, ReservationKind},
    fs::reservation::{RegisterAction, ReservationCommand},
};
use ReservationKind::WriteExclusive;

pub(super) fn host(number: u8) -> HostId {
    HostId::new([number; 16]).expect("not zero")
}

pub(super) fn register(key: u64) -> ReservationCommand {
    ReservationCommand::Register { action: RegisterAction::Register { key }, persists: None }
}

impl Pair {
    /// A host's request about `vol-a`, at a node.
    pub(super) fn begin_as(&mut self, node: usize, number: u8, pass: Option<Pass>, operation: VolumeOperation) -> u64 {
        let request = self.prng.next_u64();
        let pools = &mut self.node(node).pools;
        let volume = pools.volume("vol-a").expect("it is listed").id;
        let tag = RequestTag { session: 1, request };
        pools.submit(VolumeRequest { tag, volume, host: Some(host(number)), pass, operation });
        request
    }

    /// The same to its end, and once more if it is refused as late.
    fn ask_as(
        &mut self,
        node: usize,
        number: u8,
        operation: impl Fn(&mut Self) -> VolumeOperation,
    ) -> Result<ReplyData, VolumeError> {
        let mut pass = None;
        loop {
            let asked = operation(self);
            let request = self.begin_as(node, number, pass, asked);
            match self.end(node, request) {
                Err(VolumeError::Late(next)) if pass.is_none() => pass = Some(next),
                result => return result,
            }
        }
    }

    pub(super) fn block(&mut self, node: usize, value: u8) -> VolumeOperation {
        let mut payload = Payload::allocate(self.node(node).pools.blocks(), 0..4096).expect("memory is large enough");
        payload.fill(0, &[value; 4096]);
        VolumeOperation::Write { payload, durable: false }
    }

    /// A host's command about the reservation of `vol-a`, at a node.
    pub(super) fn reserve(&mut self, node: usize, number: u8, command: ReservationCommand) -> Option<VolumeError> {
        self.ask_as(node, number, |_| VolumeOperation::Reserve(command)).err()
    }

    fn write_as(&mut self, node: usize, number: u8) -> Option<VolumeError> {
        self.ask_as(node, number, |pair| pair.block(node, number)).err()
    }

    fn reservation(&mut self, node: usize) -> Reservation {
        let request = self.begin_as(node, 9, None, VolumeOperation::Reservation);
        let Ok(ReplyData::Reservation(state)) = self.end(node, request) else { panic!("a report returns the state") };
        *state
    }

    /// Both nodes say the same of who may write, and of who has registered.
    fn is_held_at(&mut self, nodes: &[usize], state: &Reservation) {
        for &node in nodes {
            assert_eq!(self.reservation(node), *state, "at {node}");
            assert_eq!(self.write_as(node, 1), Some(VolumeError::ReservationConflict), "at {node}");
            assert_eq!(self.write_as(node, 2), None, "at {node}");
            let request = self.begin_write(node, "vol-a", 1, 7);
            assert_eq!(
                self.end(node, request).err(),
                Some(VolumeError::ReservationConflict),
                "without a host, at {node}"
            );
        }
    }
}

#[test]
fn a_reservation_holds_at_both_nodes_through_takeover_and_giveback() {
    let mut pair = Pair::with_volume(51);
    assert_eq!(pair.reserve(0, 1, register(1)), None);
    assert_eq!(pair.reserve(1, 2, register(2)), None, "through the node that does not serve");
    assert_eq!(pair.reserve(1, 2, ReservationCommand::Acquire { key: 2, kind: WriteExclusive }), None);
    let state = pair.reservation(0);
    assert!(state.is_holder(host(2)) && state.generation == 2 && !state.persists);
    pair.is_held_at(&[0, 1], &state);
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    pair.is_held_at(&[1], &state);
    pair.start(0);
    pair.until_in_sync();
    pair.is_held_at(&[0, 1], &state);
    // What preempts at one node fences off at both, and after the next takeover.
    let preempt = ReservationCommand::Preempt { key: 1, preempted: 2, kind: WriteExclusive, aborts: false };
    assert_eq!(pair.reserve(1, 1, preempt), None);
    for node in 0..2 {
        assert_eq!(pair.write_as(node, 2), Some(VolumeError::ReservationConflict));
        assert_eq!(pair.write_as(node, 1), None);
    }
    pair.kill(0);
    pair.until("b serves pool a again", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.write_as(1, 2), Some(VolumeError::ReservationConflict));
    assert_eq!(pair.write_as(1, 1), None);
    let state = pair.reservation(1);
    assert!(state.is_holder(host(1)) && state.registrant(host(2)).is_none());
}

/// A command that was with the owner when it died is performed once, whoever serves next; or it is refused, never performed, and asked for again.
#[test]
fn a_command_that_outlives_the_owner_is_performed_once() {
    for turns in (0..40).step_by(3) {
        let mut pair = Pair::with_volume(100 + turns);
        let pass = pair.pass_for(1, 3);
        let request = pair.begin_as(1, 3, Some(pass), VolumeOperation::Reserve(register(5)));
        pair.turns(turns);
        pair.kill(0);
        match pair.end(1, request) {
            Err(VolumeError::Late(_)) => assert_eq!(pair.reserve(1, 3, register(5)), None, "after {turns} turns"),
            result => assert!(result.is_ok(), "after {turns} turns"),
        }
        let state = pair.reservation(1);
        assert_eq!((state.generation, state.registrants.len()), (1, 1), "after {turns} turns");
    }
}

/// A change is asked for twice, as after a lost path, is refused, and its client is told. Then the volume is free, and what was asked the second time arrives.
#[test]
fn what_was_refused_is_not_performed_when_it_arrives_again() {
    let mut pair = Pair::with_volume(52);
    assert_eq!(pair.reserve(0, 1, register(1)), None);
    assert_eq!(pair.reserve(0, 1, ReservationCommand::Acquire { key: 1, kind: WriteExclusive }), None);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Request { .. }));
    let write = pair.begin_write(1, "vol-a", 0, 3);
    pair.turns(50);
    pair.wire.borrow_mut().lose_path();
    pair.turns(50);
    pair.wire.borrow_mut().is_late = None;
    let mut asked = std::mem::take(&mut pair.wire.borrow_mut().late);
    assert_eq!(asked.len(), 2);
    let again = asked.split_off(1);
    pair.wire.borrow_mut().late = asked;
    pair.wire.borrow_mut().deliver_late();
    assert_eq!(pair.end(1, write).err(), Some(VolumeError::ReservationConflict));
    assert_eq!(pair.reserve(0, 1, ReservationCommand::Clear { key: 1 }), None);
    pair.write(0, "vol-a", 0, 4);
    pair.wire.borrow_mut().late = again;
    pair.wire.borrow_mut().deliver_late();
    pair.turns(50);
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(1, "vol-a", 0)), (4, 4));
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_planted_refusal_that_is_forgotten_is_found() {
    planted::choose("refusal-forgotten");
    let is_found = std::panic::catch_unwind(what_was_refused_is_not_performed_when_it_arrives_again).is_err();
    planted::choose("");
    assert!(is_found);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_a_pair_s_reservations_are_found() {
    for bug in ["forwarded-host-forgotten", "forwarded-not-held-against-reservations", "replay-skips-reservations"] {
        planted::choose(bug);
        let test = a_reservation_holds_at_both_nodes_through_takeover_and_giveback;
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
