//! Connecting, and the admin queue.

use crate::{
    host::{BLOCK, Bench, DISCOVERY, HOST, SIZE, op},
    support::{byte_net::Closed, memory_service::MemoryService},
};
use std::time::Duration;

#[test]
fn a_controller_is_what_the_kernel_s_initiator_asks_for() {
    let mut bench = Bench::new();
    let (mut admin, id) = bench.admin(false);
    let capabilities = bench.property(&mut admin, 0, true).result;
    assert_eq!((capabilities & 0xffff, capabilities >> 37 & 1, capabilities >> 48 & 0xff), (127, 1, 0));
    assert_eq!(bench.property(&mut admin, 8, false).result, 0x0002_0000);
    assert_eq!(bench.property(&mut admin, 0x1c, false).result, 1, "ready");
    let page = bench.ask(&mut admin, op::IDENTIFY, &[1], 0, 4096).data;
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("it fits"));
    assert_eq!(page.len(), 4096);
    assert_eq!(u16::from_le_bytes([page[78], page[79]]), id);
    assert_eq!((page[76], page[77], page[111], page[512], page[513], page[525]), (0b1010, 8, 1, 0x66, 0x44, 5));
    assert_eq!((page[342], page[343], word(344), word(348)), (10, 0b100_0111, 2, 2), "two groups");
    assert_eq!((word(80), word(92), word(516), word(540)), (0x0002_0000, 1 << 8 | 1 << 11, 0xffff_fffd, 1024));
    assert_eq!((word(1792), word(1796), word(536) & 1), ((64 + 16384) / 16, 1, 1));
    assert_eq!(u16::from_le_bytes([page[320], page[321]]), 10, "keep alive by the second");
    let name = bench.target.subsystem().to_owned();
    assert_eq!((&page[768..768 + name.len()], page[768 + name.len()]), (name.as_bytes(), 0));
    let queues = bench.ask(&mut admin, op::SET, &[7, 0x0003_0001], 0, 0);
    assert_eq!((queues.status, queues.result), (0, 0x0001_0001));
    assert_eq!(bench.ask(&mut admin, op::SET, &[7, 0xffff_0001], 0, 0).status, 2);
    assert_eq!(bench.ask(&mut admin, op::ALIVE, &[], 0, 0).status, 0);
    assert_eq!(bench.ask(&mut admin, 0x55, &[], 0, 0).status, 1);
}

/// What the host's descriptor has no room for is refused, not cut: part of a structure could pass for all of it.
#[test]
fn data_that_has_no_place_to_go_is_refused() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    for (opcode, word, bytes) in [(op::IDENTIFY, 1_u32, 4096_u32), (op::IDENTIFY, 2, 4096), (op::GET, 0x81, 16)] {
        for (there, kind, status) in [
            (0, 0x5a, 0x0f),
            (bytes - 1, 0x5a, 0x0f),
            (bytes, 0x01, 0x11),
            (bytes, 0, 0x11),
            (bytes, 0x5a, 0),
            (bytes + 1, 0x5a, 0),
        ] {
            let mut entry = admin.entry(opcode);
            entry[32..36].copy_from_slice(&there.to_le_bytes());
            entry[39] = kind;
            entry[40..44].copy_from_slice(&word.to_le_bytes());
            let answer = bench.run(&mut admin, entry, None, false);
            assert_eq!(answer.status, status, "{opcode:#x} {word:#x}: room for {there} bytes, kind {kind:#x}");
            assert_eq!(answer.data.len(), if status == 0 { bytes as usize } else { 0 });
        }
    }
}

#[test]
fn namespaces_are_the_volumes() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(true);
    let list = bench.ask(&mut admin, op::IDENTIFY, &[2], 0, 4096).data;
    assert_eq!((list.len(), &list[..12]), (4096, &[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[2], 1, 4096).data[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    let page = bench.ask(&mut admin, op::IDENTIFY, &[0], 1, 4096).data;
    assert_eq!(page[..8], (SIZE / BLOCK).to_le_bytes());
    assert_eq!((page[30], page[33], page[130]), (1, 9, 12));
    let names = bench.ask(&mut admin, op::IDENTIFY, &[3], 1, 4096).data;
    assert_eq!((names[0], &names[4..20], names[20]), (2, &page[104..120], 3));
    let other = bench.ask(&mut admin, op::IDENTIFY, &[3], 3, 4096).data;
    assert_ne!(names, other);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[3], 2, 4096).status, 0x0b);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[0], 2, 4096).data, vec![0; 4096], "not active");
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[0], 0, 4096).status, 0x0b);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[6], 0, 4096).data, vec![0; 4096]);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[8], 1, 4096).data[14], 1);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[5, 1 << 24], 1, 4096).status, 2, "another command set");
}

#[test]
fn a_change_of_the_volumes_is_an_event_and_a_log_page() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    assert_eq!(bench.ask(&mut admin, op::SET, &[0x0b, 1 << 8], 0, 0).status, 0);
    let entry = admin.entry(op::EVENT);
    let request = admin.capsule(entry, None, false);
    bench.net.client_send(admin.connection, &request);
    bench.serve(&mut admin);
    assert!(admin.answers.is_empty());
    bench.service.resize(2, Some(5 * BLOCK));
    bench.pass(Duration::from_millis(300));
    bench.serve(&mut admin);
    let (_, event) = admin.answers.pop_first().expect("told");
    assert_eq!(event.result, 0x0004_0002);
    // Once, until the page was read.
    let entry = admin.entry(op::EVENT);
    let request = admin.capsule(entry, None, false);
    bench.net.client_send(admin.connection, &request);
    bench.service.resize(2, None);
    bench.pass(Duration::from_millis(300));
    bench.serve(&mut admin);
    assert!(admin.answers.is_empty());
    let page = bench.ask(&mut admin, op::LOG, &[1023 << 16 | 4], u32::MAX, 4096).data;
    assert_eq!(page[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    bench.serve(&mut admin);
    let (_, event) = admin.answers.pop_first().expect("what has changed since");
    assert_eq!(event.result, 0x0004_0002);
}

#[test]
fn log_pages_are_read_in_parts_and_unknown_ones_refused() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    let pages = [(0, 1024), (1, 4096), (2, 512), (3, 512), (4, 4096), (5, 4096), (0x12, 1024), (0x13, 4096)];
    for (page, bytes) in pages {
        let whole = bench.ask(&mut admin, op::LOG, &[(bytes / 4 - 1) << 16 | page], u32::MAX, bytes);
        assert_eq!((whole.status, whole.data.len()), (0, bytes as usize), "{page}");
        let rest = bench.ask(&mut admin, op::LOG, &[7 << 16 | page, 0, 32], u32::MAX, 32).data;
        assert_eq!(rest, whole.data[32..64]);
        assert_eq!(bench.ask(&mut admin, op::LOG, &[7 << 16 | page, 0, bytes], u32::MAX, 32).status, 2);
        assert_eq!(bench.ask(&mut admin, op::LOG, &[7 << 16 | page, 0, 2], u32::MAX, 32).status, 2);
    }
    assert_eq!(bench.ask(&mut admin, op::LOG, &[7 << 16 | 0x70], u32::MAX, 32).status, 0x109);
    assert_eq!(bench.ask(&mut admin, op::LOG, &[0xffff << 16 | 2, 0xffff], u32::MAX, 32).status, 2);
}

#[test]
fn features_are_kept_and_the_others_refused() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    for feature in [1, 2, 4, 5, 0x0a, 0x0b, 0x0f] {
        assert_eq!(bench.ask(&mut admin, op::SET, &[feature, 3000], 0, 0).status, 0);
        assert_eq!(bench.ask(&mut admin, op::GET, &[feature], 0, 0).result, 3000);
        assert_eq!(bench.ask(&mut admin, op::GET, &[3 << 8 | feature], 0, 0).result, 4);
        assert_eq!(bench.ask(&mut admin, op::SET, &[1 << 31 | feature, 1], 0, 0).status, 2, "nothing is saved");
    }
    assert_eq!(bench.ask(&mut admin, op::GET, &[6], 0, 0).result, 1);
    assert_eq!(bench.ask(&mut admin, op::SET, &[6, 0], 0, 0).status, 0x10e);
    assert_eq!(bench.ask(&mut admin, op::GET, &[0x81], 0, 16).data, [1; 16]);
    assert_eq!(bench.ask(&mut admin, op::SET, &[0x81], 0, 0).status, 0x0c);
    assert_eq!(bench.ask(&mut admin, op::GET, &[0x55], 0, 0).status, 2);
}

#[test]
fn an_event_request_can_be_aborted_and_a_fifth_is_refused() {
    let mut bench = Bench::new();
    let (mut admin, _) = bench.admin(false);
    let first = admin.entry(op::EVENT);
    let id = u32::from(u16::from_le_bytes([first[2], first[3]]));
    let mut bytes = admin.capsule(first, None, false);
    for _ in 0..3 {
        let entry = admin.entry(op::EVENT);
        bytes.extend(admin.capsule(entry, None, false));
    }
    bench.net.client_send(admin.connection, &bytes);
    bench.serve(&mut admin);
    assert_eq!(bench.ask(&mut admin, op::EVENT, &[], 0, 0).status, 0x105);
    assert_eq!(bench.ask(&mut admin, op::ABORT, &[id << 16], 0, 0).result, 0);
    assert_eq!(admin.answers.pop_first().expect("aborted").1.status, 7);
    assert_eq!(bench.ask(&mut admin, op::ABORT, &[id << 16], 0, 0).result, 1);
    assert_eq!(bench.ask(&mut admin, op::ABORT, &[(id + 1) << 16 | 1], 0, 0).result, 1, "of another queue");
}

#[test]
fn the_discovery_service_names_both_nodes() {
    let mut bench = Bench::new();
    let mut queue = bench.open(false);
    assert_eq!(bench.connect(&mut queue, 0, 0xffff, DISCOVERY, 0).status, 0);
    assert_eq!(bench.ask(&mut queue, op::LOG, &[0x70], 0, 4).status, 0x0c, "not enabled");
    bench.set_property(&mut queue, 0x14, 1);
    let page = bench.ask(&mut queue, op::IDENTIFY, &[1], 0, 4096).data;
    assert_eq!((page[111], &page[768..768 + DISCOVERY.len()]), (2, DISCOVERY.as_bytes()));
    assert_eq!(bench.ask(&mut queue, op::IDENTIFY, &[2], 0, 4096).status, 2);
    let log = bench.ask(&mut queue, op::LOG, &[1023 << 16 | 0x70], 0, 4096).data;
    assert_eq!(log[8], 3);
    let text = |entry: usize, at: usize| {
        let field = &log[1024 * (entry + 1) + at..][..256];
        String::from_utf8_lossy(field).trim_end_matches(['\0', ' ']).to_owned()
    };
    assert_eq!([text(1, 256), text(2, 256)], [bench.target.subsystem(), bench.target.subsystem()]);
    assert_eq!([text(1, 512), text(2, 512)], ["127.0.0.1", "127.0.0.1"]);
    assert_eq!([&log[2048 + 32..2048 + 36], &log[3072 + 32..3072 + 36]], [b"4420", b"4421"]);
    let mut io = bench.open(false);
    assert_ne!(bench.connect(&mut io, 1, 1, DISCOVERY, 0).status, 0, "it has no I/O queues");
    assert_eq!(bench.ask(&mut queue, op::LOG, &[2], 0, 4).status, 0x109);
}

#[test]
fn a_connect_that_is_wrong_says_where() {
    let mut bench = Bench::new();
    let name = bench.target.subsystem().to_owned();
    let (_admin, id) = bench.admin(false);
    let mut queue = bench.open(false);
    let wrong = |bench: &mut Bench, queue: &mut _, number, controller, name: &str| {
        let answer = bench.connect(queue, number, controller, name, 0);
        (answer.status, answer.result)
    };
    assert_eq!(bench.ask(&mut queue, op::IDENTIFY, &[1], 0, 4096).status, 0x0c, "not connected");
    assert_eq!(wrong(&mut bench, &mut queue, 0, 0xffff, "nqn.2014-08.other"), (0x182, 1 << 16 | 256));
    assert_eq!(wrong(&mut bench, &mut queue, 0, 5, &name), (0x182, 1 << 16 | 16));
    assert_eq!(wrong(&mut bench, &mut queue, 1, id + 1, &name), (0x182, 1 << 16 | 16));
    assert_eq!(wrong(&mut bench, &mut queue, 33, id, &name), (0x182, 42));
    let size = |bench: &mut Bench, queue: &mut _, size| {
        let answer = bench.connect_as(queue, (0, size), 0xffff, (&name, HOST), 0);
        (answer.status, answer.result)
    };
    assert_eq!(size(&mut bench, &mut queue, 0), (0x182, 44));
    assert_eq!(size(&mut bench, &mut queue, 128), (0x182, 44));
    let other = "nqn.2014-08.org.nvmexpress:uuid:other";
    let foreign = bench.connect_as(&mut queue, (1, 31), id, (&name, other), 0);
    assert_eq!(foreign.status, 0x184, "another host's controller");
    assert_eq!(bench.connect(&mut queue, 1, id, &name, 0).status, 0);
    assert_eq!(bench.connect(&mut queue, 2, id, &name, 0).status, 0x0c, "it is connected");
    let mut second = bench.open(false);
    assert_eq!(wrong(&mut bench, &mut second, 1, id, &name), (0x182, 42), "taken");
    let [host] = &bench.server.hosts()[..] else { panic!("one controller") };
    assert_eq!((host.host.as_str(), host.controller, host.queues), (HOST, id, 1));
}

#[test]
fn a_host_that_is_not_in_the_list_is_refused() {
    let service = MemoryService::new(1, 64, &[("unseen", BLOCK), ("vol", SIZE)]);
    let mut bench = Bench::with(service, vec![HOST.to_owned()]);
    let name = bench.target.subsystem().to_owned();
    let mut queue = bench.open(false);
    for name in [name.as_str(), DISCOVERY] {
        let other = bench.connect_as(&mut queue, (0, 31), 0xffff, (name, "nqn.2014-08.org.x:y"), 0);
        assert_eq!((other.status, other.result), (0x184, 1 << 16 | 512));
    }
    assert_eq!(bench.connect(&mut queue, 0, 0xffff, &name, 0).status, 0);
}

#[test]
fn a_controller_ends_with_its_admin_queue_its_reset_and_its_host_s_silence() {
    let mut bench = Bench::new();
    // Reset.
    let (mut admin, id) = bench.admin(false);
    let io = bench.io(id, 1, false);
    bench.set_property(&mut admin, 0x14, 0x0046_0000);
    assert_eq!(bench.property(&mut admin, 0x1c, false).result, 0);
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.closed(&io), Some(Closed::Aborted));
    assert_eq!(bench.ask(&mut admin, op::ALIVE, &[], 0, 0).status, 0x0c);
    bench.set_property(&mut admin, 0x14, 0x0046_0001);
    // The admin queue is lost.
    let io = bench.io(id, 1, false);
    bench.net.client_drop(admin.connection);
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.closed(&io), Some(Closed::Aborted));
    assert!(bench.server.hosts().is_empty());
    // Shutdown.
    let (mut admin, _) = bench.admin(false);
    bench.set_property(&mut admin, 0x14, 0x0046_4001);
    assert_eq!(bench.property(&mut admin, 0x1c, false).result, 0b1001);
    // Silence.
    let name = bench.target.subsystem().to_owned();
    let mut silent = bench.open(false);
    assert_eq!(bench.connect(&mut silent, 0, 0xffff, &name, 5000).status, 0);
    bench.set_property(&mut silent, 0x14, 0x0046_0001);
    for _ in 0..5 {
        bench.pass(Duration::from_secs(4));
        assert_eq!(bench.ask(&mut silent, op::ALIVE, &[], 0, 0).status, 0);
    }
    bench.pass(Duration::from_millis(6100));
    assert_eq!(bench.closed(&silent), Some(Closed::Aborted));
    assert_eq!(bench.closed(&admin), None, "it has no time-out");
    // Fatal configuration.
    bench.set_property(&mut admin, 0x14, 0);
    bench.set_property(&mut admin, 0x14, 0x0046_0011);
    assert_eq!(bench.property(&mut admin, 0x1c, false).result, 2);
}
