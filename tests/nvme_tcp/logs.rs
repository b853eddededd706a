//! Log pages that are about what has happened: errors, health, the discovery log and its event.

use crate::host::{BLOCK, Bench, DISCOVERY, Queue, SIZE, op};
use std::time::Duration;
use twinlog::node::request::{Reach, VolumeError};

/// Sessions add up what they have counted when time passes.
const LOOK: Duration = Duration::from_millis(300);

fn log(bench: &mut Bench, queue: &mut Queue, page: u32, bytes: u32) -> Vec<u8> {
    bench.ask(queue, op::LOG, &[(bytes / 4 - 1) << 16 | page], u32::MAX, bytes).data
}

fn number(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight"))
}

#[test]
fn commands_that_fail_at_any_queue_are_in_the_error_log_of_their_controller() {
    let mut bench = Bench::new();
    let (mut admin, id) = bench.admin(false);
    let (mut other, _) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    let read = io.blocks(op::READ, SIZE / BLOCK, 1, 0);
    let command = [read[2], read[3]];
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x80);
    let page = log(&mut bench, &mut admin, 1, 4096);
    assert_eq!((number(&page, 0), &page[8..10], &page[10..12]), (1, &[1, 0][..], &command[..]));
    // Out of range, not to be tried again; no field is blamed; the first block, the namespace, TCP.
    assert_eq!((&page[12..16], number(&page, 16)), (&[0, 0x81, 0xff, 0xff][..], SIZE / BLOCK));
    assert_eq!((page[24], page[29], &page[64..]), (1, 3, &vec![0; 4032][..]));
    // The newest first, and at most 64.
    for _ in 0..70 {
        assert_eq!(bench.ask(&mut admin, 0x55, &[], 0, 0).status, 1);
        bench.pass(LOOK);
    }
    let page = log(&mut bench, &mut admin, 1, 4096);
    assert_eq!((number(&page, 0), number(&page, 4032), &page[8..10]), (71, 8, &[0, 0][..]));
    assert_eq!(number(&log(&mut bench, &mut admin, 2, 512), 176), 71);
    // What is about the path, or was asked for, is no error; nor has the other controller any.
    bench.service.poison = Some((0..BLOCK, VolumeError::ShuttingDown));
    let read = io.blocks(op::READ, 0, 1, 0);
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x300);
    assert_eq!(number(&log(&mut bench, &mut admin, 2, 512), 176), 71);
    assert_eq!(number(&log(&mut bench, &mut other, 1, 64), 0), 0);
}

#[test]
fn of_a_flood_of_failing_commands_the_newest_are_in_the_log() {
    let mut bench = Bench::new();
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    for _ in 0..10 {
        let mut bytes = Vec::new();
        for _ in 0..30 {
            let read = io.blocks(op::READ, SIZE / BLOCK, 1, 0);
            bytes.extend(io.capsule(read, None, false));
        }
        bench.net.client_send(io.connection, &bytes);
        bench.serve(&mut io);
    }
    assert_eq!(io.answers.len(), 300);
    assert_eq!(number(&log(&mut bench, &mut admin, 2, 512), 176), 300);
    let page = log(&mut bench, &mut admin, 1, 4096);
    assert_eq!((number(&page, 0), number(&page, 4032)), (300, 237), "the newest 64");
}

#[test]
fn the_health_page_adds_up_what_hosts_have_moved_and_met() {
    let mut bench = Bench::new();
    let (mut admin, id) = bench.admin(false);
    let mut io = bench.io(id, 1, false);
    for first in 0..3 {
        let write = io.blocks(op::WRITE, 256 * first, 256, 0);
        assert_eq!(bench.run(&mut io, write, Some(&vec![7; 1 << 20]), false).status, 0);
    }
    for opcode in [op::READ, op::VERIFY, op::WRITE_ZEROES, op::FLUSH] {
        let command = io.blocks(opcode, 0, 256, 0);
        assert_eq!(bench.run(&mut io, command, None, false).status, 0);
    }
    bench.service.poison = Some((0..BLOCK, VolumeError::Unreadable { block: 0, reason: "rot".to_owned() }));
    let read = io.blocks(op::READ, 0, 1, 0);
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x281);
    bench.pass(LOOK);
    let page = log(&mut bench, &mut admin, 2, 512);
    // Thousands of sectors, begun ones too: 2 MiB read or verified, 3 MiB written.
    assert_eq!((number(&page, 32), number(&page, 48)), (5, 7));
    assert_eq!((number(&page, 64), number(&page, 80)), (2, 3));
    assert_eq!((number(&page, 160), number(&page, 176), page[0]), (1, 1, 0));
    // Of a queue that has gone, too; and a volume that is offline is worth a warning.
    let write = io.blocks(op::WRITE, 256, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&vec![7; 4096]), true).status, 0);
    bench.net.client_drop(io.connection);
    bench.settle();
    bench.service.offline = Some("other");
    let page = log(&mut bench, &mut admin, 2, 512);
    assert_eq!((number(&page, 80), page[0]), (4, 0b100));
}

#[test]
fn a_discovery_controller_hears_when_the_partner_is_back() {
    let mut bench = Bench::new();
    let mut queue = bench.open(false);
    assert_eq!(bench.connect(&mut queue, 0, 0xffff, DISCOVERY, 120_000).status, 0);
    bench.set_property(&mut queue, 0x14, 1);
    let before = number(&log(&mut bench, &mut queue, 0x70, 1024), 0);
    assert_eq!(bench.ask(&mut queue, op::SET, &[0x0b, 1 << 31], 0, 0).status, 0);
    let entry = queue.entry(op::EVENT);
    let request = queue.capsule(entry, None, false);
    bench.net.client_send(queue.connection, &request);
    bench.serve(&mut queue);
    bench.pass(LOOK);
    assert!(queue.answers.is_empty(), "nothing has changed");
    bench.service.reach = Reach::Partner;
    bench.pass(LOOK);
    bench.serve(&mut queue);
    assert_eq!(queue.answers.pop_first().map(|(_, event)| event.result), Some(0x0070_f002));
    assert!(number(&log(&mut bench, &mut queue, 0x70, 1024), 0) > before, "the log has a new version");
}
