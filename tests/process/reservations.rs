//! Reservations between real processes: what a host at one node is told of what a host at the other one has done.
//!
//! The command is performed by the node that serves the volume, whichever it went to, and what it means to others must come from there to the controllers of
//! those, at both nodes.

use crate::{
    common::{
        nvme::{ACQUIRE, Host, Notification, REGISTER, RELEASE, RESERVATION_EVENT},
        pair::Pair,
        pause_ms,
    },
    nvme::{Ways, hosts_of, is_of_path},
};

/// Types, as RTYPE says them.
const EXCLUSIVE_ACCESS: u32 = 2 << 8;
const REGISTRANTS_ONLY: u32 = 3 << 8;
/// Actions, as RACQA and RRELA say them.
const PREEMPT: u32 = 1;
const CLEAR: u32 = 1;

/// Kinds of notifications.
const REGISTRATION_PREEMPTED: u8 = 1;
const RESERVATION_RELEASED: u8 = 2;
const RESERVATION_PREEMPTED: u8 = 3;

/// A command that must succeed; sent again while the path is to blame.
fn reserve(host: &mut Host, opcode: u8, options: u32, keys: &[u64]) {
    loop {
        let status = host.reserve(opcode, options, keys).expect("the node lives");
        if !is_of_path(status) {
            assert_eq!(status, 0, "{opcode:#x} {options:#x} {keys:x?}");
            return;
        }
        pause_ms(5);
    }
}

/// What `host` is told, as number `count`, by an event and by the page.
fn expect(host: &mut Host, count: u64, kind: u8) {
    assert_eq!(host.told().expect("it is told"), RESERVATION_EVENT);
    let namespace = host.namespace;
    let wanted = Notification { count, kind, behind: 0, namespace };
    assert_eq!(host.notification().expect("the node lives"), Some(wanted));
}

/// `actor`, at one node, does whatever others hear of; `listener`, at the other one, hears of it. `before`: how much it has heard.
fn tells(listener: &mut Host, actor: &mut Host, before: u64) {
    let mut told = before;
    let mut hear = |listener: &mut Host, kind| {
        told += 1;
        expect(listener, told, kind);
    };
    reserve(listener, REGISTER, 0, &[0, 5]);
    reserve(actor, REGISTER, 0, &[0, 6]);
    reserve(listener, ACQUIRE, EXCLUSIVE_ACCESS, &[5, 0]);

    listener.listen().expect("the node lives");
    reserve(actor, ACQUIRE, EXCLUSIVE_ACCESS | PREEMPT, &[6, 5]);
    hear(listener, REGISTRATION_PREEMPTED);
    reserve(actor, RELEASE, EXCLUSIVE_ACCESS, &[6]);

    reserve(listener, REGISTER, 0, &[0, 5]);
    reserve(actor, ACQUIRE, REGISTRANTS_ONLY, &[6, 0]);
    listener.listen().expect("the node lives");
    reserve(actor, RELEASE, REGISTRANTS_ONLY, &[6]);
    hear(listener, RESERVATION_RELEASED);

    listener.listen().expect("the node lives");
    reserve(actor, RELEASE, CLEAR, &[6]);
    hear(listener, RESERVATION_PREEMPTED);

    for host in [listener, actor] {
        assert_eq!(host.notification().expect("the node lives"), None, "nothing else, and nothing to who has done it");
    }
}

/// Of a volume of each node, so that either is the one that forwards what the actor does, and either the one that is told by its partner.
#[test]
fn a_host_is_told_of_what_comes_over_the_other_node() {
    let pair = Pair::start();
    for volume in ["vol-a", "vol-b"] {
        let [mut at_a, mut at_b] = hosts_of(&pair, volume);
        tells(&mut at_a, &mut at_b, 0);
        tells(&mut at_b, &mut at_a, 0);
    }
}

/// The hosts keep their connections while the pool changes hands.
#[test]
fn a_host_is_told_whichever_node_serves_the_pool() {
    // The pool goes home when it is told to.
    let pair = Pair::start_with("giveback_after_s = 5", "giveback_after_s = 0");
    let [mut at_a, mut at_b] = hosts_of(&pair, "vol-a");
    tells(&mut at_a, &mut at_b, 0);
    tells(&mut at_b, &mut at_a, 0);
    let moved = pair.run("b", &["pair", "takeover", "a"]);
    assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
    tells(&mut at_b, &mut at_a, 3);
    tells(&mut at_a, &mut at_b, 3);
    pair.until("the pool is given back", || pair.run("b", &["pair", "giveback", "a"]).status.success().then_some(()));
    pair.until_ok();
    tells(&mut at_a, &mut at_b, 6);
    tells(&mut at_b, &mut at_a, 6);
}

/// The listener is connected to the other node all the time, and to nothing else.
#[test]
fn a_host_is_told_after_the_death_and_the_return_of_the_node_that_serves() {
    let pair = Pair::start();
    let ways = Ways::to(&pair, "vol-a");
    let (mut listener, mut actor) = (ways.connect(1, 2), ways.connect(0, 1));
    tells(&mut listener, &mut actor, 0);
    pair.signal("a", "KILL");
    let serving = usize::from(pair.until_served_again("a", "b") == "b");
    let mut actor = ways.connect(serving, 1);
    tells(&mut listener, &mut actor, 3);
    pair.until_ok();
    let mut actor = ways.connect(0, 1);
    tells(&mut listener, &mut actor, 6);
}

/// A host with a controller at each node is told at both, once.
#[test]
fn a_host_is_told_at_each_of_its_controllers() {
    let pair = Pair::start();
    let ways = Ways::to(&pair, "vol-a");
    let [mut at_a, mut at_b, mut actor] = [(0, 1), (1, 1), (0, 2)].map(|(node, number)| ways.connect(node, number));
    reserve(&mut at_a, REGISTER, 0, &[0, 5]);
    reserve(&mut actor, REGISTER, 0, &[0, 6]);
    for host in [&mut at_a, &mut at_b] {
        host.listen().expect("the node lives");
    }
    reserve(&mut actor, RELEASE, CLEAR, &[6]);
    for mut host in [at_a, at_b] {
        expect(&mut host, 1, RESERVATION_PREEMPTED);
        assert_eq!(host.notification().expect("the node lives"), None);
    }
    assert_eq!(actor.notification().expect("the node lives"), None);
}
