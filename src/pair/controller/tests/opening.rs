//! Openings that fail.

use super::*;
use crate::format::register::Side as PoolSide;

/// Node a starts beside its partner, with both pools in sync, and cannot open its own pool.
fn started_again(fails: OpenFails) -> Pair {
    let mut pair = Pair::started(31);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 7);
    pair.kill(0);
    pair.start(0);
    pair.node(0).opener.fails = fails;
    pair
}

/// The same, until its partner serves the pool, with a's log in step.
fn given_up() -> Pair {
    let mut pair = started_again(OpenFails::Nowhere);
    pair.until("its partner keeps it", |pair| pair.node(1).row(PoolSlot::Partner) == "in sync, kept");
    pair
}

/// Node a alone, whose log alone has everything, and cannot open its own pool.
fn started_alone(seed: u64) -> Pair {
    let mut pair = Pair::started(seed);
    pair.create(0, "vol-a");
    pair.kill(1);
    pair.write(0, "vol-a", 0, 7);
    pair.kill(0);
    pair.start(0);
    pair.node(0).opener.fails = OpenFails::Nowhere;
    pair
}

impl Pair {
    fn owner(&self, pool: usize) -> usize {
        let owner = self.registers.borrow().registers[&pool_id(pool)].owner;
        if owner == PoolSide::Home { pool } else { 1 - pool }
    }

    fn pass(&mut self, time: Duration) {
        let since = self.world.now();
        self.until("time has passed", |pair| pair.world.now().since(since) >= time);
    }

    fn taken_over(&mut self, node: usize) -> u64 {
        self.node(node).controller.sides.iter().map(|side| side.takeovers).sum()
    }
}

#[test]
fn a_pool_that_a_reactor_cannot_open_has_failed_and_is_the_partners() {
    let mut pair = started_again(OpenFails::Here);
    pair.until("the partner serves it", |pair| pair.serves(1, PoolSlot::Partner));
    pair.until("it has failed", |pair| pair.node(0).controller.sides[0].open == Open::Failed);
    let side = &pair.node(0).controller.sides[0];
    assert_eq!(side.trouble.as_deref(), Some("reactor 0: no memory"));
    assert!(side.portion.is_free(), "nobody uses its portion");
    assert!(pair.node(0).pools.engine(PoolSlot::Home).is_none(), "its devices are let go");
    assert_eq!(pair.read(1, "vol-a", 0), 7);
    assert_eq!(pair.node(0).opener.begun, 1, "a failure is final for the life of a process");
    pair.kill(0);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}

#[test]
fn an_opening_that_could_not_begin_is_tried_again_in_peace() {
    let mut pair = started_again(OpenFails::Nowhere);
    pair.until("it was tried", |pair| pair.node(0).opener.begun > 0);
    let begun = pair.node(0).opener.begun;
    // Three retry intervals.
    pair.pass(Duration::from_millis(60));
    let tries = pair.node(0).opener.begun - begun;
    assert!((1..=3).contains(&tries), "{tries} in the time of three");
    assert_eq!(pair.node(0).controller.sides[0].open_trouble(), Some("in use"));
    pair.node(0).opener.fails = OpenFails::Not;
    pair.until_in_sync();
    assert_eq!([pair.taken_over(0), pair.taken_over(1)], [0, 0], "a hiccup moves no pool");
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}

#[test]
fn a_pool_that_cannot_be_opened_is_the_partners_until_its_home_node_is_mended() {
    let mut pair = given_up();
    assert_eq!(pair.node(0).opener.begun, 5);
    assert_eq!(pair.read(1, "vol-a", 0), 7);
    pair.write(1, "vol-a", 0, 8);
    // Longer than the giveback delay: the home node would fail again.
    pair.pass(Duration::from_secs(1));
    assert_eq!((pair.owner(0), pair.node(0).opener.begun), (1, 5));
    let node = pair.node(0);
    let status = node.controller.status(&node.way).pools.swap_remove(0);
    assert_eq!((status.row.as_str(), status.trouble.as_str()), ("standby, given up", "in use"));
    assert!(status.next.starts_with("mend what the trouble names"), "{}", status.next);
    assert!(status.if_dies[1].contains("by command only"), "{:?}", status.if_dies);

    // A command is one try, and its answer says what hinders.
    let takeover = || AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false };
    let answer = pair.commanded(0, takeover());
    let AdminReply::Refused { message, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(message, "the pool could not be opened: in use");
    assert_eq!(pair.node(0).opener.begun, 6);
    pair.until("its partner keeps it", |pair| pair.node(1).row(PoolSlot::Partner) == "in sync, kept");

    pair.node(0).opener.fails = OpenFails::Not;
    let answer = pair.commanded(0, takeover());
    assert!(matches!(answer, AdminReply::Done), "{answer:?}");
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 8);
}

#[test]
fn a_home_node_that_was_restarted_gets_what_it_had_given_up() {
    let mut pair = given_up();
    pair.kill(0);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}

#[test]
fn a_pool_is_not_taken_over_unasked_by_the_node_that_gave_it_up() {
    let mut pair = given_up();
    pair.kill(1);
    pair.pass(Duration::from_secs(1));
    assert_eq!((pair.owner(0), pair.node(0).row(PoolSlot::Home)), (1, "owner silent, given up"));
    // Who comes back finds the register as it was.
    pair.start(1);
    pair.until("the partner serves it again", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 7);
    pair.kill(1);
    pair.node(0).opener.fails = OpenFails::Not;
    let request = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false };
    let answer = pair.commanded(0, request);
    assert!(matches!(answer, AdminReply::Done), "{answer:?}");
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}

/// The disks that both nodes share are gone.
#[test]
fn what_neither_node_can_open_does_not_go_to_and_fro() {
    let mut pair = started_again(OpenFails::Nowhere);
    pair.node(1).opener.fails = OpenFails::Nowhere;
    pair.until("the partner has given it up too", |pair| pair.node(1).row(PoolSlot::Partner) == "given up");
    let begun = pair.node(1).opener.begun;
    pair.pass(Duration::from_secs(1));
    assert_eq!((pair.owner(0), pair.taken_over(0), pair.taken_over(1)), (1, 0, 1), "it has moved once");
    // Four retry intervals of 20 ms lie between two tries.
    let tries = pair.node(1).opener.begun - begun;
    assert!((5..=13).contains(&tries), "{tries} in a second");
    pair.node(1).opener.fails = OpenFails::Not;
    pair.until("it serves", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 7);
}

#[test]
fn an_owner_whose_log_alone_counts_goes_on_trying() {
    let mut pair = started_alone(33);
    pair.until("it was given up", |pair| pair.node(0).row(PoolSlot::Home) == "given up");
    pair.start(1);
    pair.until("its partner says why", |pair| pair.node(1).row(PoolSlot::Partner) == "yielded, stale");
    let begun = pair.node(0).opener.begun;
    let request = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false };
    let answer = pair.commanded(1, request);
    assert!(matches!(answer, AdminReply::Refused { .. }), "{answer:?}");
    pair.until("it is tried", |pair| pair.node(0).opener.begun >= begun + 3);
    assert_eq!((pair.owner(0), pair.taken_over(1)), (0, 0));
    pair.node(0).opener.fails = OpenFails::Not;
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}

#[test]
fn an_operator_can_force_a_pool_that_its_owner_cannot_open() {
    let mut pair = started_alone(35);
    pair.start(1);
    pair.until("its partner hears it", |pair| pair.node(1).row(PoolSlot::Partner) == "standby, opening");
    let request = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: true };
    let answer = pair.commanded(1, request);
    assert!(matches!(answer, AdminReply::Done), "{answer:?}");
    assert!(pair.serves(1, PoolSlot::Partner));
    pair.node(0).opener.fails = OpenFails::Not;
    pair.until("both logs are in step", |pair| pair.node(1).row(PoolSlot::Partner).starts_with("in sync"));
}

/// Rule R3: what an owner says of a pool that it does not have open is a promise for the epoch.
#[test]
fn an_owner_that_gave_a_pool_up_opens_it_only_at_a_later_epoch() {
    let mut pair = started_again(OpenFails::Nowhere);
    // The partner hears it, and can do nothing.
    pair.registers.borrow_mut().is_unreachable_for[1] = true;
    pair.until("it was tried often", |pair| pair.node(0).opener.begun >= 8);
    let epochs = &pair.node(0).opener.epochs;
    assert!(epochs[..5].iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    assert!(epochs[4..].is_sorted_by(|before, after| before < after), "{epochs:?}");
}
