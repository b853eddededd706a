//! Commands of an I/O queue.

use crate::{
    host::{BLOCK, Bench, Queue, SIZE, op},
    support::{byte_net::Closed, memory_service::MemoryService},
};
use std::time::Duration;
use twinlog::{
    base::BlockSize,
    node::request::{Payload, VolumeError, VolumeService as _},
};

const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;

fn start(digests: bool) -> (Bench, Queue, Queue) {
    let mut bench = Bench::new();
    let (admin, id) = bench.admin(digests);
    let io = bench.io(id, 1, digests);
    (bench, admin, io)
}

fn pattern(count: u64) -> Vec<u8> {
    (0..count * BLOCK).map(|at| u8::try_from((at / 7 + at / 4096) % 251).expect("it fits")).collect()
}

#[test]
fn what_is_written_is_read_in_and_out_of_capsules() {
    for digests in [false, true] {
        let (mut bench, _admin, mut io) = start(digests);
        for (first, count, in_capsule, piece) in [
            (0, 1, true, 1),
            (1, 4, true, 1),
            (8, 1, false, 512),
            (16, 256, false, 4096),
            (300, 256, false, usize::MAX),
        ] {
            io.piece_bytes = piece;
            let data = pattern(count);
            let write = io.blocks(op::WRITE, first, count, FUA);
            assert_eq!(bench.run(&mut io, write, Some(&data), in_capsule).status, 0);
            let read = io.blocks(op::READ, first, count, 0);
            assert_eq!(bench.run(&mut io, read, None, false).data, data);
            let compare = io.blocks(op::COMPARE, first, count, 0);
            assert_eq!(bench.run(&mut io, compare, Some(&data), in_capsule).status, 0);
            let mut other = data.clone();
            *other.last_mut().expect("it fits") ^= 1;
            let compare = io.blocks(op::COMPARE, first, count, 0);
            assert_eq!(bench.run(&mut io, compare, Some(&other), in_capsule).status, 0x285);
        }
        let read = io.blocks(op::READ, 1000, 8, 0);
        assert_eq!(bench.run(&mut io, read, None, false).data, vec![0; 8 << 12], "never written");
        let free = bench.service.blocks_free();
        assert_eq!(free, 4096, "every block is back");
    }
}

#[test]
fn flush_zeroes_verify_and_deallocate() {
    let (mut bench, _admin, mut io) = start(true);
    let write = io.blocks(op::WRITE, 0, 64, 0);
    assert_eq!(bench.run(&mut io, write, Some(&pattern(64)), false).status, 0);
    let mut flush = io.entry(op::FLUSH);
    flush[4] = 1;
    assert_eq!(bench.run(&mut io, flush, None, false).status, 0);
    for (first, flags) in [(0, 0), (8, DEALLOCATE | FUA)] {
        let zeroes = io.blocks(op::WRITE_ZEROES, first, 8, flags);
        assert_eq!(bench.run(&mut io, zeroes, None, false).status, 0);
    }
    let verify = io.blocks(op::VERIFY, 0, SIZE / BLOCK, 0);
    assert_eq!(bench.run(&mut io, verify, None, false).status, 0);
    // Two ranges of three, in data that is as long as the kernel sends it.
    let mut ranges = vec![0; 4096];
    for (place, first) in [(0, 20_u64), (16, 30), (32, 40)] {
        (ranges[place + 4], ranges[place + 8]) = (4, u8::try_from(first).expect("it fits"));
    }
    let mut deallocate = io.entry(op::DEALLOCATE);
    (deallocate[4], deallocate[40], deallocate[44]) = (1, 1, 4);
    assert_eq!(bench.run(&mut io, deallocate, Some(&ranges), true).status, 0);
    let mut advice = io.entry(op::DEALLOCATE);
    (advice[4], advice[40], advice[44]) = (1, 2, 3);
    assert_eq!(bench.run(&mut io, advice, Some(&ranges[..48]), false).status, 0);
    let mut expected = pattern(64);
    for (from, to) in [(0, 16), (20, 24), (30, 34)] {
        expected[from * 4096..to * 4096].fill(0);
    }
    let read = io.blocks(op::READ, 0, 64, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, expected);
}

#[test]
fn what_lies_beyond_the_end_and_what_is_too_long_is_refused() {
    let (mut bench, _admin, mut io) = start(false);
    let end = SIZE / BLOCK;
    for (first, count, status) in
        [(end - 1, 1, 0), (end - 1, 2, 0x80), (end, 1, 0x80), (u64::MAX, 1, 0x80), (0, 257, 2)]
    {
        let read = io.blocks(op::READ, first, count, 0);
        assert_eq!(bench.run(&mut io, read, None, false).status, status, "{first} {count}");
        let verify = io.blocks(op::VERIFY, first, count, 0);
        let status = if status == 2 { 0 } else { status };
        assert_eq!(bench.run(&mut io, verify, None, false).status, status);
        let zeroes = io.blocks(op::WRITE_ZEROES, first, count, 0);
        assert_eq!(bench.run(&mut io, zeroes, None, false).status, status);
    }
    let write = io.blocks(op::WRITE, end, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&pattern(1)), true).status, 0x80, "its data is skipped");
    let write = io.blocks(op::WRITE, end, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&pattern(1)), false).status, 0x80);
    io.to_send.clear();
    let mut ranges = vec![0; 16];
    ranges[4] = 2;
    ranges[8..16].copy_from_slice(&(end - 1).to_le_bytes());
    let mut deallocate = io.entry(op::DEALLOCATE);
    (deallocate[4], deallocate[44]) = (1, 4);
    assert_eq!(bench.run(&mut io, deallocate, Some(&ranges), true).status, 0x80);
    let mut elsewhere = io.blocks(op::READ, 0, 1, 0);
    elsewhere[4] = 2;
    assert_eq!(bench.run(&mut io, elsewhere, None, false).status, 0x0b);
    let mut fused = io.blocks(op::READ, 0, 1, 0);
    fused[1] |= 1;
    assert_eq!(bench.run(&mut io, fused, None, false).status, 2);
    let unknown = io.blocks(0x10, 0, 1, 0);
    assert_eq!(bench.run(&mut io, unknown, None, false).status, 1);
}

#[test]
fn descriptors_that_disagree_with_the_data_are_refused_and_the_data_skipped() {
    let (mut bench, _admin, mut io) = start(true);
    let data = pattern(2);
    let write = io.blocks(op::WRITE, 0, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&data), true).status, 0x0f, "more than its blocks");
    let write = io.blocks(op::WRITE, 0, 3, 0);
    assert_eq!(bench.run(&mut io, write, Some(&data), true).status, 0x0f, "less");
    let mut write = io.blocks(op::WRITE, 0, 2, 0);
    write[24] = 4;
    assert_eq!(bench.run(&mut io, write, Some(&data), true).status, 0x16, "an offset");
    let mut read = io.blocks(op::READ, 0, 2, 0);
    read[33] = 0;
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x0f);
    let mut read = io.blocks(op::READ, 0, 2, 0);
    read[39] = 0x20;
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x11);
    let read = io.blocks(op::READ, 0, 2, 0);
    assert_eq!(bench.run(&mut io, read, Some(&data), true).status, 0x0f, "data with a read");
    let read = io.blocks(op::READ, 0, 2, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, vec![0; 8192], "nothing was written");
    assert_eq!(bench.closed(&io), None);
}

#[test]
fn the_engine_s_errors_have_the_protocol_s_numbers() {
    let errors = [
        (VolumeError::NoSuchVolume, 0x0b),
        (VolumeError::OutOfRange, 0x80),
        (VolumeError::NoSpace, 0x81),
        (VolumeError::Unreadable { block: 0, reason: "rot".to_owned() }, 0x281),
        (VolumeError::Stopped("gone".to_owned()), 0x06),
        (VolumeError::Offline("held".to_owned()), 0x82),
        (VolumeError::Unserved(Duration::from_secs(30)), 0x302),
        (VolumeError::ShuttingDown, 0x300),
        (VolumeError::ReservationConflict, 0x83),
        (VolumeError::ReservationInvalid, 0x02),
        (VolumeError::RegistrantsFull, 0x06),
        (VolumeError::Preempted, 0x1b),
        (VolumeError::Differs, 0x285),
    ];
    let (mut bench, _admin, mut io) = start(false);
    for (error, status) in errors {
        bench.service.poison = Some((0..BLOCK, error));
        let write = io.blocks(op::WRITE, 0, 1, 0);
        assert_eq!(bench.run(&mut io, write, Some(&pattern(1)), false).status, status);
        let read = io.blocks(op::READ, 0, 1, 0);
        assert_eq!(bench.run(&mut io, read, None, false).status, status);
        let verify = io.blocks(op::VERIFY, 0, 300, 0);
        assert_eq!(bench.run(&mut io, verify, None, false).status, status);
    }
    bench.service.poison = Some((0..BLOCK, VolumeError::Interrupted("taken over".to_owned())));
    let read = io.blocks(op::READ, 0, 1, 0);
    let bytes = io.capsule(read, None, false);
    bench.net.client_send(io.connection, &bytes);
    assert_eq!(bench.closed(&io), Some(Closed::Aborted), "only asking again can tell");
}

#[test]
fn stopping_answers_what_is_in_flight_and_closes() {
    let service = MemoryService::new(1, 4096, &[("unseen", BLOCK), ("vol", SIZE)]);
    let mut bench = Bench::with(service, Vec::new());
    let (admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    bench.service.hold = true;
    let write = io.blocks(op::WRITE, 0, 1, 0);
    let bytes = io.capsule(write, Some(&pattern(1)), true);
    bench.net.client_send(io.connection, &bytes);
    bench.settle();
    bench.server.stop(bench.now);
    bench.settle();
    assert_eq!((bench.closed(&admin), bench.closed(&io)), (Some(Closed::Gracefully), None));
    bench.service.hold = false;
    bench.serve(&mut io);
    assert_eq!(io.answers.len(), 1);
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.closed(&io), Some(Closed::Gracefully));
    assert!(bench.server.is_stopped());
}

#[test]
fn what_no_volume_has_yet_can_be_aborted() {
    let (mut bench, mut admin, mut io) = start(false);
    let id_of = |entry: [u8; 64]| u16::from_le_bytes([entry[2], entry[3]]);
    let wait = Duration::from_millis(300);
    // The first is at a volume, the second waits for room there, the third for memory.
    (bench.service.hold, bench.service.room) = (true, 1);
    let [at_volume, waiting] = [0, 1].map(|first| io.blocks(op::READ, first, 1, 0));
    let unasked = io.blocks(op::WRITE, 2, 4, 0);
    let held = Payload::allocate(bench.service.blocks(), 0..(4096 - 2) * BLOCK).expect("almost all memory");
    for (entry, data) in [(at_volume, None), (waiting, None), (unasked, Some(vec![1; 16384]))] {
        let bytes = io.capsule(entry, data.as_deref(), false);
        bench.net.client_send(io.connection, &bytes);
    }
    bench.serve(&mut io);
    for (entry, is_aborted) in [(at_volume, false), (waiting, true), (unasked, true), (waiting, false)] {
        let abort = bench.abort(&mut admin, &entry);
        let second = bench.abort(&mut admin, &entry);
        assert_eq!(admin.answers.remove(&second).map(|answer| answer.status), Some(0x103), "one at a time");
        bench.pass(wait);
        bench.pass(wait);
        bench.serve(&mut admin);
        let answer = admin.answers.remove(&abort).expect("the queue has said");
        assert_eq!((answer.status, answer.result), (0, u64::from(!is_aborted)));
        bench.serve(&mut io);
        let answered = io.answers.remove(&id_of(entry)).map(|answer| answer.status);
        assert_eq!(answered, is_aborted.then_some(7));
    }
    // What was at the volume ends as ever, and nothing of the others is left.
    (bench.service.hold, bench.service.room) = (false, 1024);
    drop(held);
    bench.serve(&mut io);
    assert_eq!(io.answers.remove(&id_of(at_volume)).map(|answer| answer.status), Some(0));
    assert_eq!((bench.service.submitted_count, bench.service.blocks_free()), (1, 4096));
    // A queue that there is not, and one that has gone before it could say.
    let mut abort = admin.entry(op::ABORT);
    abort[40] = 9;
    assert_eq!(bench.run(&mut admin, abort, None, false).result, 1);
    let abort = bench.abort(&mut admin, &at_volume);
    bench.net.client_drop(io.connection);
    bench.pass(Duration::from_secs(1));
    bench.pass(wait);
    bench.serve(&mut admin);
    assert_eq!(admin.answers.remove(&abort).map(|answer| answer.result), Some(1));
}

/// A namespace in blocks of 512 bytes: everything that counts blocks counts those, and what a host is told of its larger blocks below.
#[test]
fn a_namespace_of_512_byte_blocks_counts_in_them() {
    let volumes = [("unseen", BLOCK), ("vol", SIZE)];
    let mut bench = Bench::with(MemoryService::new(1, 4096, &volumes).in_blocks(BlockSize::Bytes512), Vec::new());
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    io.block_bytes = 512;
    let page = bench.ask(&mut admin, op::IDENTIFY, &[0], 1, 4096).data;
    assert_eq!(page[..8], (SIZE / 512).to_le_bytes());
    assert_eq!((page[24], page[25], page[26]), (0b1_1011, 1, 1), "own units count; the second of two formats");
    assert_eq!(page[34..40], [7, 0, 7, 0, 0, 0], "a block of the pool is written whole");
    assert_eq!(page[64..76], [7, 0, 7, 0, 7, 0, 7, 0, 7, 0, 0, 0], "and preferred");
    assert_eq!(page[128..136], [0, 0, 12, 0, 0, 0, 9, 1]);

    let end = SIZE / 512;
    let sector = |value: u8| vec![value; 512];
    for (place, value) in [(1, 7), (end - 1, 9)] {
        let write = io.blocks(op::WRITE, place, 1, 0);
        assert_eq!(bench.run(&mut io, write, Some(&sector(value)), true).status, 0);
    }
    let read = io.blocks(op::READ, 0, 3, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, [sector(0), sector(7), sector(0)].concat());
    let read = io.blocks(op::READ, end - 1, 1, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, sector(9));
    for (first, count) in [(end, 1), (end - 1, 2)] {
        for opcode in [op::READ, op::WRITE_ZEROES, op::VERIFY] {
            let beyond = io.blocks(opcode, first, count, 0);
            assert_eq!(bench.run(&mut io, beyond, None, false).status, 0x80);
        }
    }
    // 1 MiB, wherever it begins.
    let most = vec![3; 1 << 20];
    let write = io.blocks(op::WRITE, 3, 2048, 0);
    assert_eq!(bench.run(&mut io, write, Some(&most), false).status, 0);
    let compare = io.blocks(op::COMPARE, 3, 2048, 0);
    assert_eq!(bench.run(&mut io, compare, Some(&most), false).status, 0);
    let beyond = io.blocks(op::READ, 3, 2049, 0);
    assert_eq!(bench.run(&mut io, beyond, None, false).status, 2, "more than MDTS");
    let zeroes = io.blocks(op::WRITE_ZEROES, 4, 1, 0);
    assert_eq!(bench.run(&mut io, zeroes, None, false).status, 0);
    let read = io.blocks(op::READ, 3, 3, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, [sector(3), sector(0), sector(3)].concat());
}
