//! What hosts are to be told of reservations reaches both nodes, once each.

use super::{
    reservation::{host, register},
    *,
};
#[cfg(feature = "planted-bugs")]
use crate::base::planted;
use crate::{
    format::reservation::{Reservation, ReservationKind::WriteExclusive},
    fs::reservation::{Notice, ReservationCommand},
    node::{pools::PARTNER_BIT, request::ReservationNotice},
};

impl Pair {
    /// Host 2, at `node`, ends the registration that host 1 gets before, through the other one.
    fn preempt_at(&mut self, node: usize) {
        assert_eq!(self.reserve(1 - node, 1, register(1)), None);
        assert_eq!(self.reserve(node, 2, register(2)), None);
        assert_eq!(self.reserve(1 - node, 1, ReservationCommand::Acquire { key: 1, kind: WriteExclusive }), None);
        let preempt = ReservationCommand::Preempt { key: 2, preempted: 1, kind: WriteExclusive, aborts: false };
        assert_eq!(self.reserve(node, 2, preempt), None);
        assert_eq!(self.reserve(node, 2, ReservationCommand::Clear { key: 2 }), None);
    }

    /// What the hosts of a node are told of `vol-a`, after a while.
    fn told(&mut self, node: usize) -> Vec<Notice> {
        self.turns(50);
        let pools = &mut self.node(node).pools;
        let volume = pools.volume("vol-a").expect("it is listed").id;
        assert_eq!(pools.take_lost_notices(), 0, "at {node}");
        let notice = |notice: ReservationNotice| {
            assert_eq!((notice.host, notice.volume), (host(1), volume), "at {node}");
            assert_eq!(volume.0 & PARTNER_BIT != 0, node == 1, "by the name that it has there");
            notice.notice
        };
        std::iter::from_fn(|| pools.poll_notice()).map(notice).collect()
    }
}

const PREEMPTED: [Notice; 1] = [Notice::RegistrationPreempted];

#[test]
fn hosts_of_both_nodes_are_told_once() {
    let mut pair = Pair::with_volume(61);
    for node in [0, 1] {
        pair.preempt_at(node);
        assert_eq!((pair.told(0), pair.told(1)), (PREEMPTED.to_vec(), PREEMPTED.to_vec()), "asked for at {node}");
    }
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    pair.start(0);
    pair.until("both are in sync with b as the owner", |pair| {
        pair.serves(1, PoolSlot::Partner) && pair.wire.borrow().is_up
    });
    pair.preempt_at(0);
    assert_eq!(
        (pair.told(0), pair.told(1)),
        (PREEMPTED.to_vec(), PREEMPTED.to_vec()),
        "by the node that has taken over"
    );
    pair.until_in_sync();
    pair.preempt_at(1);
    assert_eq!(
        (pair.told(0), pair.told(1)),
        (PREEMPTED.to_vec(), PREEMPTED.to_vec()),
        "and by the one it is given back to"
    );
}

/// Who reads the state over the node that forwards has been told of it there: of what the owner sends, the notice comes first.
#[test]
fn a_host_is_told_before_the_other_node_shows_it() {
    let mut pair = Pair::with_volume(62);
    assert_eq!(pair.reserve(1, 1, register(1)), None);
    assert_eq!(pair.reserve(0, 2, register(2)), None);
    let is_kept = |message: &Message| matches!(message, Message::Reply { .. } | Message::Notices { .. });
    pair.wire.borrow_mut().is_late = Some(is_kept);
    for turn in 0..60 {
        if turn == 20 {
            pair.begin_as(0, 2, None, VolumeOperation::Reserve(ReservationCommand::Clear { key: 2 }));
        }
        pair.begin_as(1, 1, None, VolumeOperation::Reservation);
        pair.turns(1);
    }
    let wire = pair.wire.borrow();
    let is_shown = |(_, message): &(usize, Message)| match message {
        Message::Reply { bytes, .. } => Reservation::read(bytes).expect("a state").registrants.is_empty(),
        _ => false,
    };
    let told = wire.late.iter().position(|(node, message)| *node == 1 && matches!(message, Message::Notices { .. }));
    let shown = wire.late.iter().position(is_shown);
    let before = wire.late.iter().filter(|sent| matches!(sent.1, Message::Reply { .. }) && !is_shown(sent)).count();
    assert!(before > 0 && told.is_some() && told < shown, "{before} {told:?} {shown:?}");
}

#[test]
fn what_may_have_been_lost_is_said_again_and_told_once() {
    let mut pair = Pair::with_volume(63);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Notices { .. }));
    pair.preempt_at(0);
    assert_eq!((pair.told(0), pair.told(1)), (PREEMPTED.to_vec(), vec![]), "it lies on a path");
    pair.wire.borrow_mut().is_late = None;
    pair.wire.borrow_mut().lose_path();
    assert_eq!(pair.told(1), PREEMPTED);
    pair.wire.borrow_mut().deliver_late();
    pair.wire.borrow_mut().lose_path();
    assert_eq!(pair.told(1), []);
}

#[test]
fn what_happens_while_the_link_is_cut_is_told_when_it_is_mended() {
    let mut pair = Pair::with_volume(64);
    assert_eq!(pair.reserve(1, 1, register(1)), None);
    assert_eq!(pair.reserve(0, 2, register(2)), None);
    pair.cut(true);
    assert_eq!(pair.reserve(0, 2, ReservationCommand::Clear { key: 2 }), None);
    assert_eq!((pair.told(0), pair.told(1)), (vec![Notice::ReservationPreempted], vec![]));
    pair.cut(false);
    pair.until_in_sync();
    assert_eq!((pair.told(0), pair.told(1)), (vec![], vec![Notice::ReservationPreempted]));
    pair.cut(true);
    pair.cut(false);
    pair.until_in_sync();
    pair.preempt_at(1);
    assert_eq!((pair.told(0), pair.told(1)), (PREEMPTED.to_vec(), PREEMPTED.to_vec()), "and nothing again");
}

/// Its hosts have connected since, and what they were told before is not known.
#[test]
fn a_node_that_starts_hears_nothing_of_what_was_before() {
    let mut pair = Pair::with_volume(65);
    pair.preempt_at(0);
    pair.kill(1);
    pair.turns(50);
    pair.start(1);
    pair.until_in_sync();
    assert_eq!((pair.told(0), pair.told(1)), (PREEMPTED.to_vec(), vec![]));
    pair.preempt_at(0);
    assert_eq!((pair.told(0), pair.told(1)), (PREEMPTED.to_vec(), PREEMPTED.to_vec()), "nothing is missing in between");
}

/// Its hosts may have been connected already.
#[test]
fn a_node_that_starts_while_the_link_is_cut_hears_what_came_since() {
    let mut pair = Pair::with_volume(66);
    assert_eq!(pair.reserve(1, 1, register(1)), None);
    assert_eq!(pair.reserve(0, 2, register(2)), None);
    pair.cut(true);
    pair.turns(50);
    pair.kill(1);
    pair.start(1);
    pair.turns(50);
    assert_eq!(pair.reserve(0, 2, ReservationCommand::Clear { key: 2 }), None);
    pair.turns(50);
    pair.cut(false);
    pair.until_in_sync();
    assert_eq!((pair.told(0), pair.told(1)), (vec![Notice::ReservationPreempted], vec![Notice::ReservationPreempted]));
}

/// A host at the other node was connected all the time.
#[test]
fn an_owner_that_starts_while_the_link_is_cut_tells_what_it_has_done() {
    let mut pair = Pair::with_volume(67);
    assert_eq!(pair.reserve(1, 1, register(1)), None);
    assert_eq!(pair.reserve(0, 2, register(2)), None);
    pair.cut(true);
    pair.until("a serves alone", |pair| pair.serves(0, PoolSlot::Home));
    pair.turns(2000);
    pair.kill(0);
    pair.start(0);
    pair.until("a serves alone again", |pair| pair.serves(0, PoolSlot::Home));
    assert_eq!(pair.reserve(0, 2, ReservationCommand::Clear { key: 2 }), None);
    pair.turns(50);
    pair.cut(false);
    pair.until_in_sync();
    assert_eq!((pair.told(0), pair.told(1)), (vec![Notice::ReservationPreempted], vec![Notice::ReservationPreempted]));
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_notices_are_found() {
    let bugs: [(&'static str, fn()); 3] = [
        ("notices-not-said-again", what_may_have_been_lost_is_said_again_and_told_once),
        ("notices-told-again", what_may_have_been_lost_is_said_again_and_told_once),
        ("notices-of-a-former-life", a_node_that_starts_hears_nothing_of_what_was_before),
    ];
    for (bug, test) in bugs {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
