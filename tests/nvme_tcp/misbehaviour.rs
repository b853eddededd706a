//! Hosts that break the protocol, lie, stall or flood harm themselves only.

use crate::{
    host::{BLOCK, Bench, Queue, SIZE, ic_request, op},
    support::{byte_net::Closed, memory_service::MemoryService},
};
use std::time::Duration;

fn start(digests: bool) -> (Bench, Queue, Queue) {
    let mut bench = Bench::new();
    let (admin, id) = bench.admin(digests);
    let io = bench.io(id, 1, digests);
    (bench, admin, io)
}

/// Sends `bytes`. The code of the termination request that comes back before the connection is closed.
fn terminated(bench: &mut Bench, queue: &mut Queue, bytes: &[u8]) -> Option<u16> {
    bench.net.client_send(queue.connection, bytes);
    bench.serve(queue);
    assert_eq!(bench.closed(queue), Some(Closed::Gracefully));
    queue.terminated
}

#[test]
fn what_is_no_unit_ends_the_connection_with_its_reason() {
    let (mut bench, _admin, _io) = start(false);
    let mut queue = bench.open(false);
    assert_eq!(terminated(&mut bench, &mut queue, &[9; 24]), Some(1), "not a host's");
    let mut queue = bench.open(false);
    assert_eq!(terminated(&mut bench, &mut queue, &ic_request(false)), Some(2), "a second time");
    let mut queue = bench.open(true);
    let mut capsule = queue.unit(4, &[0; 64], &[]);
    capsule[20] ^= 1;
    assert_eq!(terminated(&mut bench, &mut queue, &capsule), Some(3), "a wrong digest");
    let mut queue = bench.open(false);
    let data = queue.host_data(0, 0, 0, &[1; 8]);
    assert_eq!(terminated(&mut bench, &mut queue, &data), Some(1), "nobody asked for it");
    let mut queue = bench.open(false);
    let capsule = queue.unit(4, &[0; 64], &vec![0; 8193]);
    assert_eq!(terminated(&mut bench, &mut queue, &capsule), Some(5), "more than fits");
    let queue = bench.open(false);
    let ends = queue.unit(2, &[0; 16], &[]);
    bench.net.client_send(queue.connection, &ends);
    assert_eq!(bench.closed(&queue), Some(Closed::Aborted), "the host has ended it");
}

#[test]
fn data_that_was_not_asked_for_ends_the_connection() {
    for (tag_wrong, offset, length, code) in [(true, 0, 4096, 1), (false, 1, 4096, 4), (false, 0, 65536 + 1, 4)] {
        let (mut bench, _admin, mut io) = start(false);
        let write = io.blocks(op::WRITE, 0, 16, 0);
        let id = u16::from_le_bytes([write[2], write[3]]);
        let capsule = io.capsule(write, Some(&vec![1; 65536]), false);
        bench.net.client_send(io.connection, &capsule);
        bench.settle();
        let asked = bench.net.client_take(io.connection, usize::MAX);
        assert_eq!((asked.len(), asked[0]), (24, 9));
        let tag = u16::from_le_bytes([asked[10], asked[11]]) + u16::from(tag_wrong);
        let data = io.host_data(id, tag, offset, &vec![1; length]);
        assert_eq!(terminated(&mut bench, &mut io, &data), Some(code));
        assert_eq!(bench.service.blocks_free(), 4096, "every block is back");
        assert_eq!(bench.service.submitted_count, 0, "nothing was written");
    }
}

#[test]
fn damaged_data_is_not_written_and_the_host_may_try_again() {
    let (mut bench, _admin, mut io) = start(true);
    let data = vec![7; 8192];
    for in_capsule in [true, false] {
        let write = io.blocks(op::WRITE, 0, 2, 0);
        let id = u16::from_le_bytes([write[2], write[3]]);
        let mut bytes = io.capsule(write, Some(&data), in_capsule);
        if !in_capsule {
            bench.net.client_send(io.connection, &bytes);
            bench.settle();
            let asked = bench.net.client_take(io.connection, usize::MAX);
            bytes = io.host_data(id, u16::from_le_bytes([asked[10], asked[11]]), 0, &data);
        }
        let place = bytes.len() - 100;
        bytes[place] ^= 4;
        bench.net.client_send(io.connection, &bytes);
        bench.serve(&mut io);
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(0x22));
    }
    assert_eq!(bench.service.submitted_count, 0);
    let write = io.blocks(op::WRITE, 0, 2, 0);
    assert_eq!(bench.run(&mut io, write, Some(&data), true).status, 0);
}

#[test]
fn more_commands_than_the_queue_has_entries_end_the_connection() {
    let (mut bench, _admin, mut io) = start(false);
    bench.service.hold = true;
    let mut bytes = Vec::new();
    for _ in 0..32 {
        let read = io.blocks(op::READ, 0, 1, 0);
        bytes.extend(io.capsule(read, None, false));
    }
    bench.net.client_send(io.connection, &bytes);
    bench.settle();
    assert_eq!((bench.closed(&io), bench.service.pending_count()), (None, 32));
    let read = io.blocks(op::READ, 0, 1, 0);
    let one_more = io.capsule(read, None, false);
    bench.net.client_send(io.connection, &one_more);
    assert_eq!(bench.closed(&io), Some(Closed::Gracefully));
    bench.service.hold = false;
    bench.settle();
}

#[test]
fn a_host_that_stalls_is_dropped_and_sooner_while_memory_is_short() {
    // The host owes data that it was asked for.
    let (mut bench, admin, mut io) = start(false);
    let write = io.blocks(op::WRITE, 0, 16, 0);
    let capsule = io.capsule(write, Some(&vec![1; 65536]), false);
    bench.net.client_send(io.connection, &capsule);
    bench.settle();
    bench.pass(Duration::from_secs(299));
    assert_eq!(bench.closed(&io), None);
    bench.pass(Duration::from_secs(2));
    assert_eq!((bench.closed(&io), bench.closed(&admin)), (Some(Closed::Aborted), None));
    assert_eq!(bench.service.blocks_free(), 4096);
    // A connection that never becomes a queue.
    let queue = bench.open(false);
    bench.pass(Duration::from_secs(61));
    assert_eq!(bench.closed(&queue), Some(Closed::Aborted));
}

#[test]
fn what_waits_for_its_data_never_takes_the_last_memory() {
    // 64 blocks: two hosts ask to write more than there is, and send nothing.
    let mut bench = Bench::with(MemoryService::new(1, 64, &[("unseen", BLOCK), ("vol", SIZE)]), Vec::new());
    let (_admin, id) = bench.admin(false);
    let mut greedy = bench.io(id, 1, false);
    let mut bytes = Vec::new();
    for first in 0..20 {
        let write = greedy.blocks(op::WRITE, first * 8, 4, 0);
        bytes.extend(greedy.capsule(write, Some(&vec![1; 16384]), false));
    }
    bench.net.client_send(greedy.connection, &bytes);
    for _ in 0..100 {
        bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
    }
    assert!(bench.service.blocks_free() > 0, "some are left");
    let mut other = bench.io(id, 2, false);
    let write = other.blocks(op::WRITE, 900, 1, 0);
    let bytes = other.capsule(write, Some(&vec![2; 4096]), true);
    bench.net.client_send(other.connection, &bytes);
    for _ in 0..100 {
        bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
    }
    let answer = bench.net.client_take(other.connection, usize::MAX);
    assert_eq!((answer.len(), answer[0]), (24, 5), "served");
    // And the greedy one is when it sends what it was asked for.
    let mut out = Vec::new();
    for _ in 0..2000 {
        bench.net.client_send(greedy.connection, &out);
        bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
        let bytes = bench.net.client_take(greedy.connection, usize::MAX);
        out = greedy.take(&bytes);
    }
    assert_eq!(greedy.answers.len(), 20);
    assert_eq!(bench.service.blocks_free(), 64);
}

#[test]
fn a_host_that_reads_without_taking_the_answers_is_bounded() {
    let (mut bench, _admin, mut io) = start(false);
    let write = io.blocks(op::WRITE, 0, 256, 0);
    assert_eq!(bench.run(&mut io, write, Some(&vec![3; 1 << 20]), false).status, 0);
    let mut bytes = Vec::new();
    for _ in 0..32 {
        let read = io.blocks(op::READ, 0, 256, 0);
        bytes.extend(io.capsule(read, None, false));
    }
    bench.net.client_send(io.connection, &bytes);
    bench.settle();
    assert!(bench.net.waiting_bytes(io.connection) <= 9 << 20, "eight, and headers");
    bench.serve(&mut io);
    assert_eq!(io.answers.len(), 32);
    assert!(io.answers.values().all(|answer| answer.data == vec![3; 1 << 20]));
}

#[test]
fn a_host_that_drops_in_the_middle_leaves_nothing() {
    let (mut bench, _admin, mut io) = start(false);
    let write = io.blocks(op::WRITE, 0, 4, 0);
    let capsule = io.capsule(write, Some(&vec![1; 16384]), true);
    for cut in [1, 7, 8, 71, 72, 73, 16000] {
        bench.net.client_send(io.connection, &capsule[..cut]);
        bench.settle();
        bench.net.client_drop(io.connection);
        assert_eq!(bench.closed(&io), Some(Closed::Aborted));
        assert_eq!(bench.service.blocks_free(), 4096);
        let controller = bench.server.hosts()[0].controller;
        io = bench.io(controller, 1, false);
    }
    bench.net.client_send(io.connection, &capsule[..100]);
    bench.net.client_end(io.connection);
    assert_eq!(bench.closed(&io), Some(Closed::Gracefully));
    assert_eq!((bench.service.submitted_count, bench.service.blocks_free()), (0, 4096));
}
