//! Asymmetric access: where a pool's commands go, and that hosts hear of it before they see it.

use crate::host::{BLOCK, Bench, Queue, op};
use std::time::Duration;
use twinlog::node::request::Reach;

/// The first group's state, and the changes of the page and of the group.
fn access(bench: &mut Bench, admin: &mut Queue) -> (u8, u8, u8) {
    let page = bench.ask(admin, op::LOG, &[31 << 16 | 0x0c], u32::MAX, 128).data;
    (page[32], page[0], page[24])
}

/// Has the host listen to changes, with a request that waits for one.
fn listen(bench: &mut Bench, admin: &mut Queue) {
    assert_eq!(bench.ask(admin, op::SET, &[0x0b, 1 << 11], 0, 0).status, 0);
    request(bench, admin);
}

fn request(bench: &mut Bench, admin: &mut Queue) {
    let entry = admin.entry(op::EVENT);
    let bytes = admin.capsule(entry, None, false);
    bench.net.client_send(admin.connection, &bytes);
    bench.serve(admin);
    assert!(admin.answers.is_empty(), "it waits");
}

fn read(bench: &mut Bench, io: &mut Queue) -> u16 {
    let read = io.blocks(op::READ, 0, 1, 0);
    bench.run(io, read, None, false).status
}

#[test]
fn a_path_is_inaccessible_until_the_pool_is_seen_to_be_served() {
    let mut bench = Bench::new();
    bench.service.reach = Reach::Nobody;
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    assert_eq!(access(&mut bench, &mut admin), (3, 0, 0), "inaccessible");
    for opcode in [op::FLUSH, op::WRITE_ZEROES, op::VERIFY, op::READ] {
        let command = io.blocks(opcode, 0, 1, 0);
        assert_eq!(bench.run(&mut io, command, None, false).status, 0x302, "{opcode}");
    }
    let write = io.blocks(op::WRITE, 0, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&[1; 4096]), true).status, 0x302, "its data is skipped");
    assert_eq!(bench.service.submitted_count, 0);
    let mut missing = io.blocks(op::READ, 0, 1, 0);
    missing[4] = 2;
    assert_eq!(bench.run(&mut io, missing, None, false).status, 0x0b, "no such namespace anyhow");
    // Identify and the log pages are about the controller, whatever it reaches.
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[0], 1, 4096).data[92], 1);
    listen(&mut bench, &mut admin);
    bench.service.reach = Reach::Partner;
    bench.serve(&mut admin);
    assert_eq!(admin.answers.pop_first().map(|(_, event)| event.result), Some(0x000c_0302));
    assert_eq!(access(&mut bench, &mut admin), (2, 1, 1), "non-optimized");
    assert_eq!(read(&mut bench, &mut io), 0);
}

#[test]
fn a_takeover_is_one_change_and_a_pool_that_nobody_serves_another() {
    let mut bench = Bench::new();
    bench.service.reach = Reach::Partner;
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    listen(&mut bench, &mut admin);
    // The owner dies. Commands wait.
    (bench.service.reach, bench.service.hold) = (Reach::Nobody, true);
    let waits = io.blocks(op::READ, 0, 1, 0);
    let bytes = io.capsule(waits, None, false);
    bench.net.client_send(io.connection, &bytes);
    bench.pass(Duration::from_secs(9));
    assert_eq!(access(&mut bench, &mut admin), (2, 0, 0), "as it was");
    (bench.service.reach, bench.service.hold) = (Reach::Here, false);
    bench.serve(&mut io);
    assert_eq!(io.answers.pop_first().map(|(_, answer)| answer.status), Some(0));
    bench.serve(&mut admin);
    assert_eq!(admin.answers.pop_first().map(|(_, event)| event.result), Some(0x000c_0302));
    assert_eq!(access(&mut bench, &mut admin), (1, 1, 1), "optimized");
    // Nobody serves it for long: what waits goes on waiting, what comes is refused, and the host keeps it.
    request(&mut bench, &mut admin);
    (bench.service.reach, bench.service.hold) = (Reach::Nobody, true);
    let waits = io.blocks(op::READ, 0, 1, 0);
    let bytes = io.capsule(waits, None, false);
    bench.net.client_send(io.connection, &bytes);
    bench.settle();
    bench.pass(Duration::from_secs(10));
    bench.serve(&mut admin);
    assert_eq!(admin.answers.pop_first().map(|(_, event)| event.result), Some(0x000c_0302));
    assert_eq!(access(&mut bench, &mut admin), (3, 2, 2), "inaccessible");
    assert_eq!(read(&mut bench, &mut io), 0x302);
    assert_eq!(bench.service.pending_count(), 1);
    (bench.service.reach, bench.service.hold) = (Reach::Here, false);
    bench.serve(&mut io);
    assert_eq!(io.answers.pop_first().map(|(_, answer)| answer.status), Some(0));
    assert_eq!(read(&mut bench, &mut io), 0);
    // A reset begins to count anew.
    bench.set_property(&mut admin, 0x14, 0);
    bench.set_property(&mut admin, 0x14, 0x0046_0001);
    assert_eq!(access(&mut bench, &mut admin), (1, 0, 0));
}

#[test]
fn a_host_whose_queues_are_at_two_reactors_hears_of_a_change_before_it_sees_it() {
    let mut first = Bench::new();
    let mut second = first.beside();
    for bench in [&mut first, &mut second] {
        bench.service.reach = Reach::Partner;
        bench.settle();
    }
    let (mut admin, id) = first.admin(false);
    let mut io = second.io(id, 1, false);
    listen(&mut first, &mut admin);
    assert_eq!(read(&mut second, &mut io), 0);
    second.server.take_news();
    // The second reactor has the pool before the first one does.
    second.service.reach = Reach::Here;
    let command = io.blocks(op::READ, 0, 1, 0);
    let bytes = io.capsule(command, None, false);
    second.net.client_send(io.connection, &bytes);
    for _ in 0..10 {
        assert!(second.server.poll(&mut second.net, &mut second.service, second.now), "it waits for the first");
    }
    assert!(second.server.take_news(), "which is woken");
    assert!(second.net.client_take(io.connection, usize::MAX).is_empty());
    first.serve(&mut admin);
    assert_eq!(admin.answers.pop_first().map(|(_, event)| event.result), Some(0x000c_0302));
    assert_eq!(access(&mut first, &mut admin), (1, 1, 1), "though it does not perform commands itself yet");
    second.serve(&mut io);
    assert_eq!(io.answers.pop_first().map(|(_, answer)| answer.status), Some(0));
    // The first one follows, which changes nothing more.
    request(&mut first, &mut admin);
    first.service.reach = Reach::Here;
    first.settle();
    second.settle();
    first.serve(&mut admin);
    assert!(admin.answers.is_empty());
    // A reactor that has ended keeps nobody waiting.
    drop(first);
    second.service.reach = Reach::Partner;
    assert_eq!(read(&mut second, &mut io), 0);
}

#[test]
fn the_access_page_counts_namespaces_that_come_and_go() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    bench.service.resize(2, Some(5 * BLOCK));
    bench.pass(Duration::from_millis(300));
    assert_eq!(access(&mut bench, &mut admin), (1, 0, 0), "another size is not in the page");
    bench.service.resize(2, None);
    bench.pass(Duration::from_millis(300));
    assert_eq!(access(&mut bench, &mut admin), (1, 1, 1));
}

#[test]
fn access_follows_from_who_serves_and_is_told_before_it_shows() {
    let mut bench = Bench::new();
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    assert_eq!(bench.ask(&mut admin, op::SET, &[0x0b, 1 << 11], 0, 0).status, 0);
    let state = |bench: &mut Bench, admin: &mut Queue| {
        let page = bench.ask(admin, op::LOG, &[31 << 16 | 0x0c], u32::MAX, 128).data;
        // Of the first group, which both volumes are in, and the second one, which is empty.
        assert_eq!((page[8], page[16], page[20], &page[48..56]), (2, 1, 2, &[1, 0, 0, 0, 3, 0, 0, 0][..]));
        assert_eq!((page[56], page[60]), (2, 0));
        (page[32], page[0])
    };
    assert_eq!(state(&mut bench, &mut admin), (1, 0), "optimized");
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[0], 1, 4096).data[92], 1);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[8], 1, 4096).data[4], 1);
    let groups = bench.ask(&mut admin, op::LOG, &[19 << 16 | 1 << 8 | 0x0c], u32::MAX, 80).data;
    assert_eq!((groups[20], groups[48]), (0, 2), "without namespaces");
    // A read is under way while the pool goes elsewhere.
    bench.service.hold = true;
    let entry = admin.entry(op::EVENT);
    let request = admin.capsule(entry, None, false);
    bench.net.client_send(admin.connection, &request);
    let read = io.blocks(op::READ, 0, 1, 0);
    let bytes = io.capsule(read, None, false);
    bench.net.client_send(io.connection, &bytes);
    bench.settle();
    (bench.service.reach, bench.service.hold) = (Reach::Partner, false);
    bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
    bench.serve(&mut admin);
    let (_, event) = admin.answers.pop_first().expect("told in the same turn");
    assert_eq!(event.result, 0x000c_0302);
    assert_eq!(state(&mut bench, &mut admin), (2, 1), "non-optimized; the page has changed once");
    bench.serve(&mut io);
    assert_eq!(io.answers.len(), 1, "and the command is answered all the same");
}
