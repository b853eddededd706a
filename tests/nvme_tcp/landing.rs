//! Data that is received straight into its blocks: cut anywhere, several commands in turn, damaged, and never coming whole.

use crate::{
    host::{BLOCK, Bench, Queue, SIZE, op},
    support::{byte_net::Closed, memory_service::MemoryService},
};
use std::time::Duration;
use twinlog::base::BlockSize;

/// The least rest of a unit's data that lands, and what is copied at most.
const LEAST: usize = 16 << 10;

/// Bytes before the data of an H2CData unit, with its digest.
const HEAD: usize = 24;

fn start(digests: bool) -> (Bench, Queue, Queue) {
    let volumes = [("unseen", BLOCK), ("vol", SIZE)];
    let mut bench = Bench::with(MemoryService::new(1, 4096, &volumes).in_blocks(BlockSize::Bytes512), Vec::new());
    let (admin, id) = bench.admin(digests);
    let mut io = bench.io(id, 1, digests);
    io.block_bytes = 512;
    (bench, admin, io)
}

fn pattern(bytes: usize, tag: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at / 7 + at / 4096 + tag) % 251).expect("it fits")).collect()
}

/// A write of which the target has asked for the data: its id and the tag of the transfer.
pub(crate) fn asked(bench: &mut Bench, io: &mut Queue, first: u64, bytes: usize) -> (u16, u16) {
    let write = io.blocks(op::WRITE, first, bytes as u64 / io.block_bytes, 0);
    let id = u16::from_le_bytes([write[2], write[3]]);
    let capsule = io.capsule(write, Some(&vec![0; bytes]), false);
    bench.net.client_send(io.connection, &capsule);
    bench.settle();
    let asked = bench.net.client_take(io.connection, usize::MAX);
    assert_eq!(asked[0], 9, "an R2T");
    (id, u16::from_le_bytes([asked[10], asked[11]]))
}

/// Sends `bytes` cut at `cuts`, each piece when all that came before has been taken.
fn send_cut(bench: &mut Bench, io: &Queue, bytes: &[u8], cuts: &[usize]) {
    let mut begin = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        bench.net.client_send(io.connection, &bytes[begin..end]);
        bench.settle();
        begin = end;
    }
}

fn expect_written(bench: &mut Bench, io: &mut Queue, first: u64, data: &[u8]) {
    let read = io.blocks(op::READ, first, data.len() as u64 / 512, 0);
    assert!(bench.run(io, read, None, false).data == data, "what was sent is written");
}

#[test]
fn data_that_is_cut_anywhere_is_written_whole() {
    // The data begins in the middle of a block of the pool, and ends in one.
    let (first, length) = (3, LEAST + 4096);
    for digests in [false, true] {
        let (mut bench, _admin, mut io) = start(digests);
        let head = HEAD + if digests { 4 } else { 0 };
        let after = head + length;
        let cuts = [
            (vec![head - 1], 0, "in the header"),
            (vec![head], 1, "before the data"),
            (vec![head + 1], 1, "behind its first byte"),
            (vec![head + 512], 1, "in a block"),
            (vec![head + 2560], 1, "at a block's end"),
            (vec![head + 4096], 1, "with as much to come as lands"),
            (vec![head + 4097], 0, "with a byte less"),
            (vec![head + 10, head + 11, head + 12, head + 4000, after - 1], 1, "often"),
            (vec![head, after - 1], 1, "before the last byte"),
            (vec![head, after], 1, "behind it"),
        ];
        for (number, (cuts, landings, what)) in cuts.into_iter().enumerate() {
            let data = pattern(length, number);
            let (id, tag) = asked(&mut bench, &mut io, first, length);
            let before = bench.net.landing_count();
            let mut unit = io.host_data(id, tag, 0, &data);
            // The next command comes with the last bytes.
            let flush = io.entry(op::FLUSH);
            let flush_id = u16::from_le_bytes([flush[2], flush[3]]);
            unit.extend(io.capsule(flush, None, false));
            send_cut(&mut bench, &io, &unit, &cuts);
            bench.serve(&mut io);
            let statuses = [id, flush_id].map(|id| io.answers.remove(&id).map(|answer| answer.status));
            assert_eq!(statuses[0], Some(0), "cut {what}, digests {digests}");
            assert!(statuses[1].is_some(), "what follows is a command again: cut {what}");
            assert_eq!(bench.net.landing_count() - before, landings, "cut {what}, digests {digests}");
            expect_written(&mut bench, &mut io, first, &data);
        }
        assert_eq!(bench.service.blocks_free(), 4096, "every block is back");
    }
}

#[test]
fn units_of_several_commands_land_in_turn() {
    let (mut bench, _admin, mut io) = start(true);
    let (length, part) = (96 << 10, 32 << 10);
    let firsts = [0, 1001, 2002];
    let data: Vec<Vec<u8>> = (0..3).map(|tag| pattern(length, 50 * tag)).collect();
    let names = firsts.map(|first| asked(&mut bench, &mut io, first, length));
    for round in 0..3 {
        for (index, (id, tag)) in names.into_iter().enumerate() {
            let unit = io.host_data(id, tag, round * part, &data[index][round * part..][..part]);
            send_cut(&mut bench, &io, &unit, &[9, 100 + 5000 * index, 20_000]);
        }
    }
    bench.serve(&mut io);
    assert_eq!(bench.net.landing_count(), 9, "each unit");
    for (index, (id, _)) in names.into_iter().enumerate() {
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(0));
        expect_written(&mut bench, &mut io, firsts[index], &data[index]);
    }
}

#[test]
fn data_that_was_damaged_where_it_landed_is_not_written() {
    let (mut bench, _admin, mut io) = start(true);
    let length = 64 << 10;
    // In the part that was copied, in that which landed, in the digest.
    for place in [HEAD + 4 + 50, HEAD + 4 + 30_000, HEAD + 4 + length + 1] {
        let (id, tag) = asked(&mut bench, &mut io, 5, length);
        let mut unit = io.host_data(id, tag, 0, &pattern(length, 1));
        unit[place] ^= 16;
        send_cut(&mut bench, &io, &unit, &[HEAD + 4 + 100, 40_000]);
        bench.serve(&mut io);
        assert_eq!(io.answers.remove(&id).map(|answer| answer.status), Some(0x22), "damaged at byte {place}");
    }
    assert_eq!((bench.net.landing_count(), bench.service.submitted_count), (3, 0));
    assert_eq!(bench.service.blocks_free(), 4096, "every block is back");
}

#[test]
fn what_never_lands_whole_is_not_written_and_holds_nothing() {
    let length = 64 << 10;
    for is_ended in [false, true] {
        for cut in [0, 1, 5000, length - LEAST, length - 1] {
            let (mut bench, _admin, mut io) = start(false);
            let (id, tag) = asked(&mut bench, &mut io, 5, length);
            let unit = io.host_data(id, tag, 0, &pattern(length, 1));
            send_cut(&mut bench, &io, &unit[..HEAD + cut], &[HEAD]);
            assert_eq!(bench.net.landing_count(), 1, "the data lands");
            if is_ended {
                bench.net.client_end(io.connection);
                assert_eq!(bench.closed(&io), Some(Closed::Gracefully));
            } else {
                bench.net.client_drop(io.connection);
                assert_eq!(bench.closed(&io), Some(Closed::Aborted));
            }
            assert_eq!((bench.service.submitted_count, bench.service.blocks_free()), (0, 4096), "cut at {cut}");
        }
    }
}

#[test]
fn a_host_whose_data_keeps_landing_is_waited_for_and_one_that_stops_is_not() {
    let (mut bench, _admin, mut io) = start(false);
    let length = 64 << 10;
    let (id, tag) = asked(&mut bench, &mut io, 5, length);
    let unit = io.host_data(id, tag, 0, &pattern(length, 1));
    send_cut(&mut bench, &io, &unit[..HEAD + 1], &[HEAD]);
    for byte in &unit[HEAD + 1..HEAD + 5] {
        bench.pass(Duration::from_secs(200));
        bench.net.client_send(io.connection, &[*byte]);
        assert_eq!(bench.closed(&io), None);
    }
    bench.pass(Duration::from_secs(301));
    assert_eq!(bench.closed(&io), Some(Closed::Aborted));
    assert_eq!((bench.service.submitted_count, bench.service.blocks_free()), (0, 4096));
}
