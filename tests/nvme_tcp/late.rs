//! Commands of hosts that may have gone to another path: what lies here is taken in before what came another way, or never begun.

use crate::{
    host::{Answer, Bench, Queue, ic_request, op},
    landing::asked,
    support::byte_net::Closed,
};
use std::{sync::Arc, time::Duration};
use twinlog::{
    base::{Epoch, Pass},
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

/// Internal Path Error.
const AGAIN: u16 = 0x300;

fn pass(number: u64) -> Pass {
    Pass { epoch: Epoch(2), number }
}

/// A block, written with this byte: the bytes that the host sends, and the command's id.
fn write(io: &mut Queue, first: u64, byte: u8, in_capsule: bool) -> (Vec<u8>, u16) {
    let entry = io.blocks(op::WRITE, first, 1, 0);
    let id = u16::from_le_bytes([entry[2], entry[3]]);
    (io.capsule(entry, Some(&[byte; 4096]), in_capsule), id)
}

/// Sends such a write and waits for its status.
fn written(bench: &mut Bench, io: &mut Queue, first: u64, byte: u8) -> u16 {
    let (bytes, id) = write(io, first, byte, true);
    bench.net.client_send(io.connection, &bytes);
    bench.serve(io);
    io.answers.remove(&id).expect("it is answered").status
}

fn read(bench: &mut Bench, io: &mut Queue, first: u64) -> u8 {
    let entry = io.blocks(op::READ, first, 1, 0);
    let Answer { status, data, .. } = bench.run(io, entry, None, false);
    assert_eq!((status, data.len()), (0, 4096), "reads need nothing");
    data[0]
}

/// The volume is served by the other node, which asks for passes.
fn forwarding() -> (Bench, Queue) {
    let (mut bench, _sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    let io = bench.io(id, 1, false);
    bench.service.pass = Some(pass(1));
    (bench, io)
}

#[test]
fn a_change_that_is_refused_is_accepted_when_it_comes_again() {
    let (mut bench, mut io) = forwarding();
    for number in 1..4_u8 {
        bench.service.pass = Some(pass(u64::from(number)));
        assert_eq!((written(&mut bench, &mut io, 0, 7), read(&mut bench, &mut io, 0)), (AGAIN, number - 1));
        assert_eq!(written(&mut bench, &mut io, 0, number), 0, "once is enough");
        assert_eq!(written(&mut bench, &mut io, 1, 9), 0, "and the pass is kept");
        assert_eq!(read(&mut bench, &mut io, 0), number);
    }
    for expected in [AGAIN, 0] {
        let mut zeroes = io.blocks(op::WRITE_ZEROES, 0, 1, 0);
        zeroes[4] = 3;
        assert_eq!(bench.run(&mut io, zeroes, None, false).status, expected, "another namespace");
    }
}

/// What lay unread when the pass came may be what its host has replaced at the other node: every change of it is refused, and none performed.
#[test]
fn what_had_arrived_before_the_pass_is_not_performed_with_it() {
    for in_capsule in [true, false] {
        let (mut bench, mut io) = forwarding();
        bench.service.hold = true;
        let mut ids = Vec::new();
        for first in 0..30 {
            // The first is on its way to the other node when the others come, of which the driver cannot hold all.
            let (bytes, id) = write(&mut io, first, 5, in_capsule || first == 0);
            bench.net.client_send(io.connection, &bytes);
            if first == 0 {
                bench.settle();
            }
            ids.push(id);
        }
        bench.service.hold = false;
        bench.serve(&mut io);
        for id in ids {
            assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(AGAIN));
        }
        assert!((0..30).all(|first| read(&mut bench, &mut io, first) == 0));
        for first in 0..30 {
            assert_eq!(written(&mut bench, &mut io, first, 6), 0);
        }
    }
}

/// Each connection has a stream of its own.
#[test]
fn a_pass_of_one_connection_is_not_used_for_what_lies_at_another() {
    let (mut bench, mut io) = forwarding();
    let (_admin, id) = bench.admin(false);
    let mut other = bench.io(id, 1, false);
    assert_eq!((written(&mut bench, &mut io, 0, 1), written(&mut bench, &mut io, 0, 1)), (AGAIN, 0));
    assert_eq!((written(&mut bench, &mut other, 0, 2), read(&mut bench, &mut io, 0)), (AGAIN, 1));
    assert_eq!((written(&mut bench, &mut other, 0, 2), read(&mut bench, &mut io, 0)), (0, 2));
}

/// The other node served until now, and may have answered what came after that there.
#[test]
fn what_had_arrived_before_a_takeover_is_not_performed_after_it() {
    let (mut bench, _sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    assert_eq!(written(&mut bench, &mut io, 0, 1), 0);
    // One has been taken, and waits for room; others lie there.
    bench.service.room = 0;
    let mut ids = Vec::new();
    for first in 0..30 {
        let (bytes, id) = write(&mut io, first, 2, true);
        bench.net.client_send(io.connection, &bytes);
        ids.push(id);
        if first == 0 {
            bench.settle();
        }
    }
    bench.service.openings = [2, 0];
    bench.service.room = 1024;
    bench.serve(&mut io);
    for id in ids {
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(AGAIN));
    }
    assert_eq!((read(&mut bench, &mut io, 0), read(&mut bench, &mut io, 1)), (1, 0));
    assert_eq!((written(&mut bench, &mut io, 0, 3), read(&mut bench, &mut io, 0)), (0, 3));
    // A connection that comes later, and the other pool's volumes, have nothing to wait for.
    let mut later = bench.io(id, 2, false);
    assert_eq!(written(&mut bench, &mut later, 0, 4), 0);
    bench.service.openings = [2, 1];
    assert_eq!(written(&mut bench, &mut io, 0, 5), 0);
}

/// Bytes of a write whose data lands, the header of its unit, and of the data what has landed so far.
const LANDING: (usize, usize, usize) = (64 << 10, 24, 5000);

/// The data of a write of sevens lands, and not all of it has come: the command's id, and what its host has not sent.
fn half_landed(bench: &mut Bench, io: &mut Queue) -> (u16, Vec<u8>) {
    let (bytes, head, landed) = LANDING;
    let before = bench.net.landing_count();
    let (id, tag) = asked(bench, io, 0, bytes);
    let mut unit = io.host_data(id, tag, 0, &vec![7; bytes]);
    let rest = unit.split_off(head + landed);
    for part in [&unit[..head], &unit[head..]] {
        bench.net.client_send(io.connection, part);
        bench.settle();
    }
    assert_eq!(bench.net.landing_count() - before, 1, "it lands");
    (id, rest)
}

#[test]
fn a_sweep_waits_for_what_has_landed_and_for_nothing_that_is_still_to_come() {
    let (mut bench, sweeps) = swept();
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    let (_, rest) = half_landed(&mut bench, &mut io);
    let sweep = sweeps.order();
    bench.settle();
    assert!(sweeps.is_done(sweep), "a command of which a part is missing is none");
    // All of it is there when the next one is ordered, and nobody has looked at it.
    bench.service.room = 0;
    bench.net.client_send(io.connection, &rest);
    let sweep = sweeps.order();
    bench.settle();
    assert!(!sweeps.is_done(sweep) && bench.service.submitted_count == 0, "it has come");
    bench.service.room = 1024;
    bench.settle();
    assert!(sweeps.is_done(sweep) && bench.service.submitted_count == 1);
}

#[test]
fn a_write_that_lands_while_its_pool_is_taken_over_is_not_performed_after_it() {
    // The rest comes before anybody has looked at the takeover, or later.
    for is_late in [false, true] {
        let (mut bench, _sweeps) = swept();
        let (_admin, id) = bench.admin(false);
        let mut io = bench.io(id, 1, false);
        let (id, rest) = half_landed(&mut bench, &mut io);
        bench.service.openings = [2, 0];
        if is_late {
            bench.settle();
        }
        bench.net.client_send(io.connection, &rest);
        bench.serve(&mut io);
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(AGAIN), "later: {is_late}");
        assert_eq!(read(&mut bench, &mut io, 0), 0, "it began before");
        let (id, rest) = half_landed(&mut bench, &mut io);
        bench.net.client_send(io.connection, &rest);
        bench.serve(&mut io);
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(0), "and this one after it");
        assert_eq!(read(&mut bench, &mut io, 0), 7);
    }
}

/// The pass comes with the refusal of a small write, while the data of a large one lands.
#[test]
fn a_write_that_lands_when_a_pass_comes_is_not_performed_with_it() {
    let (mut bench, mut io) = forwarding();
    bench.service.hold = true;
    let (small, small_id) = write(&mut io, 20, 5, true);
    bench.net.client_send(io.connection, &small);
    bench.settle();
    let (id, rest) = half_landed(&mut bench, &mut io);
    bench.service.hold = false;
    bench.settle();
    bench.net.client_send(io.connection, &rest);
    bench.serve(&mut io);
    let statuses = [small_id, id].map(|id| io.answers.remove(&id).map(|answer| answer.status));
    assert_eq!((statuses, read(&mut bench, &mut io, 0)), ([Some(AGAIN); 2], 0));
    let (id, rest) = half_landed(&mut bench, &mut io);
    bench.net.client_send(io.connection, &rest);
    bench.serve(&mut io);
    assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(0), "and this one is");
    assert_eq!(read(&mut bench, &mut io, 0), 7);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    use twinlog::base::planted;
    let bugs: [(&str, fn()); 3] = [
        ("connection-not-held", a_new_connection_waits_for_what_lies_at_others),
        ("pass-for-all-that-lies-here", what_had_arrived_before_the_pass_is_not_performed_with_it),
        ("opening-not-noticed", what_had_arrived_before_a_takeover_is_not_performed_after_it),
    ];
    for (bug, test) in bugs {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
