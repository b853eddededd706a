//! Commands of hosts that may have gone to another path: what lies here is taken in before what came another way, or never begun.

use crate::{
    host::{Bench, Queue, ic_request, op},
    support::byte_net::Closed,
};
use std::{sync::Arc, time::Duration};
use twinlog::{
    node::sweep::{ReactorSweeps, Sweeps},
    reactor::Waker,
    serve::Server,
};

struct NoWaker;

impl Waker for NoWaker {
    fn wake(&self) {}
}

/// A node of one reactor whose connections are swept.
fn swept() -> (Bench, Arc<Sweeps>) {
    let waker: Arc<dyn Waker> = Arc::new(NoWaker);
    let sweeps = Arc::new(Sweeps::new(&[waker]));
    let mut bench = Bench::new();
    let server = std::mem::replace(&mut bench.server, Server::new(1));
    bench.server = server.with_sweeps(ReactorSweeps::new(Arc::clone(&sweeps), 0));
    (bench, sweeps)
}

/// Sends `count` writes of four blocks each, and waits for no answer.
fn send_writes(bench: &mut Bench, io: &mut Queue, count: u64) {
    for first in 0..count {
        let write = io.blocks(op::WRITE, 4 * first, 4, 0);
        let capsule = io.capsule(write, Some(&[7; 4 * 4096]), true);
        bench.net.client_send(io.connection, &capsule);
    }
}

#[test]
fn what_lies_unread_goes_before_a_change_of_the_partner() {
    let (mut bench, sweeps) = swept();
    assert!(sweeps.is_done(sweeps.order()), "there are no clients");
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    let done = sweeps.order();
    assert!(!sweeps.is_done(done));
    bench.settle();
    assert!(sweeps.is_done(done), "nothing lies there");
    // More than the driver holds, and more than the volume takes.
    bench.service.room = 0;
    send_writes(&mut bench, &mut io, 30);
    let sweep = sweeps.order();
    bench.settle();
    assert!(!sweeps.is_done(sweep) && bench.service.submitted_count == 0);
    (bench.service.room, bench.service.hold) = (20, true);
    bench.settle();
    assert!(!sweeps.is_done(sweep) && bench.service.submitted_count == 20);
    // What comes later, here a command of which a part is missing, holds nothing up.
    let read = io.blocks(op::READ, 0, 1, 0);
    let capsule = io.capsule(read, None, false);
    bench.net.client_send(io.connection, &capsule[..40]);
    bench.service.room = 1024;
    bench.settle();
    assert!(sweeps.is_done(sweep) && bench.service.submitted_count == 30);
    let sweep = sweeps.order();
    bench.settle();
    assert!(sweeps.is_done(sweep), "half a command is none");
}

#[test]
fn who_keeps_others_waiting_for_what_it_has_sent_is_ended() {
    let (mut bench, sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    bench.service.room = 0;
    send_writes(&mut bench, &mut io, 3);
    bench.settle();
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.closed(&io), None, "nobody waits");
    let sweep = sweeps.order();
    bench.settle();
    bench.pass(Duration::from_secs(4));
    assert!(bench.closed(&io).is_none() && !sweeps.is_done(sweep));
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.closed(&io), Some(Closed::Aborted));
    bench.service.room = 1024;
    bench.settle();
    assert!(sweeps.is_done(sweep));
    assert_eq!(bench.service.submitted_count, 0, "it is performed no more");
}

#[test]
fn a_new_connection_waits_for_what_lies_at_others() {
    let (mut bench, _sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    bench.service.room = 0;
    send_writes(&mut bench, &mut io, 2);
    bench.settle();
    let late = [bench.net.new_client(), bench.net.new_client()];
    late.iter().for_each(|late| bench.net.client_send(*late, &ic_request(false)));
    bench.settle();
    assert!(late.iter().all(|late| bench.net.client_take(*late, usize::MAX).is_empty()), "they wait");
    bench.service.room = 1024;
    bench.settle();
    assert_eq!(bench.service.submitted_count, 2);
    assert!(late.iter().all(|late| bench.net.client_take(*late, usize::MAX).len() == 128), "and go on");
}

#[test]
fn what_lies_behind_a_farewell_is_not_begun() {
    let (mut bench, _sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    for farewell in [Closed::Gracefully, Closed::Aborted] {
        let mut io = bench.io(id, 1, false);
        send_writes(&mut bench, &mut io, 2);
        match farewell {
            Closed::Gracefully => bench.net.client_end(io.connection),
            Closed::Aborted => bench.net.client_drop(io.connection),
        }
        assert_eq!(bench.closed(&io), Some(farewell));
        assert_eq!(bench.service.submitted_count, 0);
    }
}

#[test]
fn a_silent_host_s_commands_are_not_begun() {
    let (mut bench, _sweeps) = swept();
    let subsystem = bench.target.subsystem().to_owned();
    let mut admin = bench.open(false);
    let answer = bench.connect(&mut admin, 0, 0xffff, &subsystem, 1000);
    assert_eq!(bench.set_property(&mut admin, 0x14, 0x0046_0001).status, 0);
    let mut io = bench.io(u16::try_from(answer.result).expect("it fits"), 1, false);
    bench.now = bench.now + Duration::from_millis(1900);
    assert_eq!(bench.ask(&mut admin, op::ALIVE, &[], 0, 0).status, 0);
    bench.now = bench.now + Duration::from_millis(1900);
    send_writes(&mut bench, &mut io, 1);
    bench.settle();
    assert_eq!(bench.service.submitted_count, 1, "a second of grace");
    // The node stands still: everything that the host has sent meanwhile is found at once.
    bench.now = bench.now + Duration::from_millis(200);
    send_writes(&mut bench, &mut io, 1);
    let alive = admin.entry(op::ALIVE);
    let capsule = admin.capsule(alive, None, false);
    bench.net.client_send(admin.connection, &capsule);
    assert_eq!(bench.closed(&io), Some(Closed::Aborted));
    assert_eq!(bench.closed(&admin), Some(Closed::Aborted));
    assert_eq!(bench.service.submitted_count, 1);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    use twinlog::base::planted;
    planted::choose("connection-not-held");
    let is_found = std::panic::catch_unwind(a_new_connection_waits_for_what_lies_at_others).is_err();
    planted::choose("");
    assert!(is_found);
}
