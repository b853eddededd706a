//! Openings that fail.

use super::*;

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
    let (begun, since) = (pair.node(0).opener.begun, pair.node(0).platform.now());
    let retry = Duration::from_millis(20);
    pair.until("time has passed", |pair| pair.node(0).platform.now().since(since) >= 5 * retry);
    let tries = pair.node(0).opener.begun - begun;
    assert!((1..=6).contains(&tries), "{tries} in the time of five");
    assert_eq!(pair.node(0).controller.sides[0].trouble.as_deref(), Some("in use"));
    pair.node(0).opener.fails = OpenFails::Not;
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 7);
}
