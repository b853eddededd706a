//! Compare and Write, byte by byte: two commands that are performed as one, or not at all.

use crate::host::{BLOCK, Bench, Queue, SIZE, op};
use crate::support::memory_service::MemoryService;
use std::time::Duration;
use twinlog::{base::BlockSize, node::request::VolumeError};

const FIRST: u8 = 1;
const SECOND: u8 = 2;
const FAILED: u16 = 0x09;
const MISSING: u16 = 0x0a;
const DIFFERS: u16 = 0x285;

fn start(digests: bool) -> (Bench, Queue, Queue) {
    let mut bench = Bench::new();
    let (admin, id) = bench.admin(digests);
    let io = bench.io(id, 1, digests);
    (bench, admin, io)
}

fn id_of(entry: &[u8; 64]) -> u16 {
    u16::from_le_bytes([entry[2], entry[3]])
}

fn half(io: &mut Queue, opcode: u8, fuse: u8, first: u64, count: u64) -> [u8; 64] {
    let mut entry = io.blocks(opcode, first, count, 0);
    entry[1] |= fuse;
    entry
}

/// A compare and a write of block `at` as one operation.
fn pair(io: &mut Queue, at: u64) -> [[u8; 64]; 2] {
    [half(io, op::COMPARE, FIRST, at, 1), half(io, op::WRITE, SECOND, at, 1)]
}

/// Sends commands with a block each, and returns how they have ended.
fn send(bench: &mut Bench, io: &mut Queue, entries: &[([u8; 64], u8)], in_capsule: bool) -> Vec<Option<u16>> {
    for (entry, byte) in entries {
        let bytes = io.capsule(*entry, Some(&[*byte; 4096]), in_capsule);
        bench.net.client_send(io.connection, &bytes);
    }
    bench.serve(io);
    entries.iter().map(|(entry, _)| io.answers.remove(&id_of(entry)).map(|answer| answer.status)).collect()
}

fn byte_at(bench: &mut Bench, io: &mut Queue, at: u64) -> u8 {
    let read = io.blocks(op::READ, at, 1, 0);
    let data = bench.run(io, read, None, false).data;
    assert!(data.iter().all(|&byte| byte == data[0]));
    data[0]
}

#[test]
fn a_block_is_written_if_it_holds_what_is_compared() {
    for (digests, in_capsule) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut bench, _admin, mut io) = start(digests);
        for (expected, new, statuses) in [(0, 1, [0, 0]), (0, 2, [DIFFERS, FAILED]), (1, 3, [0, 0])] {
            let [compare, write] = pair(&mut io, 5);
            let answers = send(&mut bench, &mut io, &[(compare, expected), (write, new)], in_capsule);
            assert_eq!(answers, statuses.map(Some), "{expected} {new}");
        }
        assert_eq!(byte_at(&mut bench, &mut io, 5), 3);
        // Several at once, of which each finds what the one before has written.
        let mut entries = Vec::new();
        for (expected, new) in [(3, 4), (4, 5), (5, 6)] {
            let [compare, write] = pair(&mut io, 5);
            entries.extend([(compare, expected), (write, new)]);
        }
        bench.service.room = 1;
        assert_eq!(send(&mut bench, &mut io, &entries, in_capsule), [Some(0); 6]);
        assert_eq!(byte_at(&mut bench, &mut io, 5), 6);
    }
}

#[test]
fn a_half_without_the_other_is_refused() {
    for in_capsule in [false, true] {
        let (mut bench, _admin, mut io) = start(false);
        let plain = io.blocks(op::WRITE, 1, 1, 0);
        let [compare, write] = pair(&mut io, 0);
        let answers = send(&mut bench, &mut io, &[(write, 9)], in_capsule);
        assert_eq!(answers, [Some(MISSING)], "no first one");
        io.to_send.clear();
        let answers = send(&mut bench, &mut io, &[(compare, 0), (plain, 7)], in_capsule);
        assert_eq!(answers, [Some(MISSING), Some(0)], "no second one");
        let [first, _] = pair(&mut io, 0);
        let [other, write] = pair(&mut io, 0);
        let answers = send(&mut bench, &mut io, &[(first, 0), (other, 0), (write, 8)], in_capsule);
        assert_eq!(answers, [Some(MISSING), Some(0), Some(0)], "the second first one has one");
        assert_eq!((byte_at(&mut bench, &mut io, 0), byte_at(&mut bench, &mut io, 1)), (8, 7));
        // A first one waits for as long as its host does.
        let [compare, write] = pair(&mut io, 0);
        assert_eq!(send(&mut bench, &mut io, &[(compare, 8)], in_capsule), [None]);
        bench.pass(Duration::from_secs(100));
        let answers = send(&mut bench, &mut io, &[(write, 10)], in_capsule);
        assert_eq!(
            (answers, io.answers.remove(&id_of(&compare)).map(|answer| answer.status)),
            (vec![Some(0)], Some(0))
        );
        assert_eq!(byte_at(&mut bench, &mut io, 0), 10);
    }
}

#[test]
fn halves_that_do_not_fit_are_refused_and_nothing_is_written() {
    for in_capsule in [false, true] {
        let (mut bench, _admin, mut io) = start(true);
        let end = SIZE / BLOCK;
        let compare = |io: &mut Queue, at| half(io, op::COMPARE, FIRST, at, 1);
        let write = |io: &mut Queue, at| half(io, op::WRITE, SECOND, at, 1);
        let mut elsewhere = write(&mut io, 0);
        elsewhere[4] = 2;
        let mut reserved = write(&mut io, 0);
        reserved[1] |= 3;
        for (entries, statuses) in [
            ([compare(&mut io, 0), write(&mut io, 1)], [2, 2]),
            ([compare(&mut io, 0), elsewhere], [FAILED, 0x0b]),
            ([compare(&mut io, end), write(&mut io, end)], [0x80, FAILED]),
            ([half(&mut io, op::WRITE, FIRST, 0, 1), write(&mut io, 0)], [2, FAILED]),
            ([compare(&mut io, 0), half(&mut io, op::COMPARE, SECOND, 0, 1)], [2, 2]),
            ([compare(&mut io, 0), reserved], [MISSING, 2]),
        ] {
            let entries = entries.map(|entry| (entry, 0));
            assert_eq!(send(&mut bench, &mut io, &entries, in_capsule), statuses.map(Some));
            io.to_send.clear();
        }
        // More than is atomic.
        let long = half(&mut io, op::COMPARE, FIRST, 0, 2);
        assert_eq!(bench.run(&mut io, long, Some(&[0; 8192]), in_capsule).status, 0x14);
        let second = half(&mut io, op::WRITE, SECOND, 0, 2);
        assert_eq!(bench.run(&mut io, second, Some(&[0; 8192]), in_capsule).status, FAILED);
        io.to_send.clear();
        assert_eq!(bench.service.submitted_count, 0);
        assert_eq!(bench.service.blocks_free(), 4096);
    }
}

#[test]
fn what_the_volume_says_is_said_of_both() {
    let (mut bench, _admin, mut io) = start(false);
    for (error, statuses) in [
        (VolumeError::NoSpace, [0, 0x81]),
        (VolumeError::ReservationConflict, [0x83, FAILED]),
        (VolumeError::ShuttingDown, [0x300, FAILED]),
    ] {
        bench.service.poison = Some((0..BLOCK, error));
        let [compare, write] = pair(&mut io, 0);
        assert_eq!(send(&mut bench, &mut io, &[(compare, 0), (write, 1)], true), statuses.map(Some));
    }
}

/// One half's data comes damaged, or it is aborted: the other one fails with it.
#[test]
fn what_ends_one_half_ends_the_other() {
    let (mut bench, mut admin, mut io) = start(true);
    for damaged in 0..2 {
        let entries = pair(&mut io, 0);
        for (place, entry) in entries.iter().enumerate() {
            let mut bytes = io.capsule(*entry, Some(&[0; 4096]), true);
            if place == damaged {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            bench.net.client_send(io.connection, &bytes);
        }
        bench.serve(&mut io);
        let statuses = entries.map(|entry| io.answers.remove(&id_of(&entry)).map(|answer| answer.status));
        assert_eq!((statuses[damaged], statuses[1 - damaged]), (Some(0x22), Some(FAILED)));
    }
    // The volume has no room: what waits for it is aborted.
    bench.service.room = 0;
    let entries = pair(&mut io, 0);
    assert_eq!(send(&mut bench, &mut io, &entries.map(|entry| (entry, 0)), true), [None, None]);
    bench.abort(&mut admin, &entries[1]);
    bench.pass(Duration::from_millis(300));
    bench.pass(Duration::from_millis(300));
    bench.serve(&mut io);
    let statuses = entries.map(|entry| io.answers.remove(&id_of(&entry)).map(|answer| answer.status));
    assert_eq!(statuses, [Some(FAILED), Some(7)]);
    assert_eq!((bench.service.submitted_count, bench.service.blocks_free()), (0, 4096));
}

/// Of a namespace in blocks of 512 bytes it is one of those: the rest of the pool's block stays what it is.
#[test]
fn a_block_of_512_bytes_is_compared_and_written() {
    let service = MemoryService::new(1, 4096, &[("unseen", BLOCK), ("vol", SIZE)]).in_blocks(BlockSize::Bytes512);
    let mut bench = Bench::with(service, Vec::new());
    let (_admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    io.block_bytes = 512;
    for (expected, new, statuses) in [(0, 1, [0, 0]), (0, 2, [DIFFERS, FAILED]), (1, 3, [0, 0])] {
        for (entry, byte) in pair(&mut io, 9).into_iter().zip([expected, new]) {
            let bytes = io.capsule(entry, Some(&[byte; 512]), true);
            bench.net.client_send(io.connection, &bytes);
        }
        bench.serve(&mut io);
        let answers = std::mem::take(&mut io.answers).into_values().map(|answer| answer.status);
        assert_eq!(answers.collect::<Vec<_>>(), statuses);
    }
    let read = io.blocks(op::READ, 8, 8, 0);
    let data = bench.run(&mut io, read, None, false).data;
    let parts: Vec<u8> = data.chunks(512).map(|part| part[0]).collect();
    assert_eq!(parts, [0, 3, 0, 0, 0, 0, 0, 0]);
    let long = half(&mut io, op::COMPARE, FIRST, 8, 2);
    assert_eq!(bench.run(&mut io, long, Some(&[0; 1024]), true).status, 0x14, "more than ACWU");
}

/// Of a first half the digest is still to come: it is neither aborted nor ended by a node that stops before that has come.
#[test]
fn a_first_half_ends_when_its_digest_has_come() {
    for stops in [false, true] {
        let (mut bench, mut admin, mut io) = start(true);
        let entries = pair(&mut io, 0);
        let [compare, write] = entries.map(|entry| io.capsule(entry, Some(&[0; 4096]), true));
        let (most, digest) = compare.split_at(compare.len() - 4);
        bench.net.client_send(io.connection, most);
        bench.serve(&mut io);
        if stops {
            bench.server.stop(bench.now);
        } else {
            bench.abort(&mut admin, &entries[0]);
        }
        bench.pass(Duration::from_millis(300));
        bench.pass(Duration::from_millis(300));
        bench.serve(&mut io);
        assert!(io.answers.is_empty());
        bench.net.client_send(io.connection, digest);
        if !stops {
            bench.net.client_send(io.connection, &write);
        }
        bench.serve(&mut io);
        let statuses = entries.map(|entry| io.answers.remove(&id_of(&entry)).map(|answer| answer.status));
        assert_eq!(statuses, if stops { [Some(0x300), None] } else { [Some(0), Some(0)] });
    }
}

/// The node stops, and takes no more commands: a first half that waits is answered by then, and its host takes another path.
#[test]
fn a_first_half_does_not_hold_up_a_node_that_stops() {
    let (mut bench, _admin, mut io) = start(false);
    let [compare, _] = pair(&mut io, 0);
    assert_eq!(send(&mut bench, &mut io, &[(compare, 0)], true), [None]);
    bench.server.stop(bench.now);
    bench.serve(&mut io);
    assert_eq!(io.answers.remove(&id_of(&compare)).map(|answer| answer.status), Some(0x300));
    assert!(bench.server.is_stopped());
}
