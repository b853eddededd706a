//! Reservations between real processes: what a host at one node is told of what a host at the other one has done.
//!
//! The command goes to the node that does not serve the volume, over the interconnect to the one that does, and what it means to others must come from there to
//! the controllers of those.

use crate::{
    common::{
        nvme::{ACQUIRE, Host, Notification, REGISTER, RELEASE, RESERVATION_EVENT},
        pair::Pair,
        pause_ms,
    },
    nvme::{hosts_of, is_of_path},
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

/// `actor`, at the node that forwards, does whatever others hear of; `listener`, at the node that serves, hears of it. `before`: how much it has heard.
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

/// Of a volume of each node, so that either is the one that forwards.
#[test]
fn a_host_is_told_of_what_comes_over_the_other_node() {
    let pair = Pair::start();
    let [mut at_a, mut at_b] = hosts_of(&pair, "vol-a");
    tells(&mut at_a, &mut at_b, 0);
    let [mut at_a, mut at_b] = hosts_of(&pair, "vol-b");
    tells(&mut at_b, &mut at_a, 0);
}

/// The hosts keep their connections while the pool changes hands: who was at the node that forwards is at the one that serves then.
#[test]
fn a_host_is_told_by_the_node_that_has_taken_the_pool_over() {
    // The pool goes home when it is told to.
    let pair = Pair::start_with("giveback_after_s = 5", "giveback_after_s = 0");
    let [mut at_a, mut at_b] = hosts_of(&pair, "vol-a");
    tells(&mut at_a, &mut at_b, 0);
    let moved = pair.run("b", &["pair", "takeover", "a"]);
    assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
    tells(&mut at_b, &mut at_a, 0);
    pair.until("the pool is given back", || pair.run("b", &["pair", "giveback", "a"]).status.success().then_some(()));
    pair.until_ok();
    tells(&mut at_a, &mut at_b, 3);
}
