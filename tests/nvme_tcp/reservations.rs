//! Reservation commands of two hosts, byte by byte.

use crate::host::{Answer, BLOCK, Bench, Queue, op};
use std::time::Duration;

/// Types, as RTYPE says them.
const WRITE_EXCLUSIVE: u32 = 1;
const EXCLUSIVE_ACCESS: u32 = 2;
const EXCLUSIVE_ACCESS_ALL: u32 = 6;
const CONFLICT: u16 = 0x83;
/// Dword 10 of Register: do not look at the key; set and clear persistence.
const IGNORE_KEY: u32 = 1 << 3;
const PERSIST: u32 = 3 << 30;

struct Hosts {
    bench: Bench,
    admin: Vec<Queue>,
    io: Vec<Queue>,
}

/// Hosts 1 and 2, each with an admin queue and an I/O queue.
fn hosts(digests: bool) -> Hosts {
    let mut bench = Bench::new();
    let (mut admin, mut io) = (Vec::new(), Vec::new());
    for number in 1..=2 {
        bench.host_id = number;
        let (queue, id) = bench.admin(digests);
        admin.push(queue);
        io.push(bench.io(id, 1, digests));
    }
    Hosts { bench, admin, io }
}

impl Hosts {
    fn reserve(&mut self, host: usize, opcode: u8, options: u32, keys: &[u64]) -> u16 {
        let queue = &mut self.io[host - 1];
        let mut entry = queue.entry(opcode);
        entry[4] = 1;
        entry[40..44].copy_from_slice(&options.to_le_bytes());
        let data: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        self.bench.run(queue, entry, Some(&data), host == 1).status
    }

    fn register(&mut self, host: usize, key: u64) -> u16 {
        self.reserve(host, op::REGISTER, PERSIST, &[0, key])
    }

    fn report(&mut self, host: usize, bytes: u32) -> Answer {
        self.bench.ask(&mut self.io[host - 1], op::REPORT, &[bytes / 4 - 1, 1], 1, bytes)
    }

    fn write(&mut self, host: usize) -> u16 {
        let queue = &mut self.io[host - 1];
        let write = queue.blocks(op::WRITE, 0, 1, 0);
        self.bench.run(queue, write, Some(&[u8::try_from(host).expect("small"); 4096]), true).status
    }

    fn read(&mut self, host: usize) -> u16 {
        let queue = &mut self.io[host - 1];
        let read = queue.blocks(op::READ, 0, 1, 0);
        self.bench.run(queue, read, None, false).status
    }
}

#[test]
fn two_hosts_register_acquire_preempt_release_and_report() {
    for digests in [false, true] {
        let mut hosts = hosts(digests);
        assert_eq!(hosts.report(1, 64).data, vec![0; 64]);
        assert_eq!((hosts.register(1, 0xa1), hosts.register(2, 0xa2)), (0, 0));
        assert_eq!(hosts.register(2, 0xa3), CONFLICT, "another key");
        assert_eq!(hosts.reserve(1, op::ACQUIRE, WRITE_EXCLUSIVE << 8, &[0xa2, 0]), CONFLICT, "somebody else's key");
        assert_eq!(hosts.reserve(1, op::ACQUIRE, WRITE_EXCLUSIVE << 8, &[0xa1, 0]), 0);
        assert_eq!((hosts.write(1), hosts.write(2), hosts.read(2)), (0, CONFLICT, 0));
        let page = hosts.report(2, 256).data;
        // Generation 2, write exclusive, two registrants, which persist.
        assert_eq!(page[..10], [2, 0, 0, 0, 1, 2, 0, 0, 0, 1]);
        assert_eq!((&page[64..67], page[72], &page[80..96]), (&[0xff, 0xff, 1][..], 0xa1, &[1; 16][..]));
        assert_eq!((&page[128..131], page[136], &page[144..160]), (&[0xff, 0xff, 0][..], 0xa2, &[2; 16][..]));
        assert_eq!(page[192..], [0; 64]);
        assert_eq!(hosts.report(2, 64).data, page[..64]);
        // Preempt and abort: the other way round now.
        assert_eq!(hosts.reserve(2, op::ACQUIRE, EXCLUSIVE_ACCESS << 8 | 2, &[0xa2, 0xa1]), 0);
        assert_eq!((hosts.write(1), hosts.read(1), hosts.write(2)), (CONFLICT, CONFLICT, 0));
        assert_eq!(hosts.bench.service.content(1, 0..1), [2]);
        assert_eq!(hosts.reserve(2, op::RELEASE, WRITE_EXCLUSIVE << 8, &[0xa2]), 2, "another type");
        assert_eq!(hosts.reserve(1, op::RELEASE, EXCLUSIVE_ACCESS << 8, &[0xa1]), CONFLICT, "no registrant");
        assert_eq!(hosts.reserve(2, op::RELEASE, EXCLUSIVE_ACCESS << 8, &[0xa2]), 0);
        assert_eq!(hosts.write(1), 0);
        // Replace and unregister, without a look at the key.
        assert_eq!(hosts.reserve(2, op::REGISTER, 2 | IGNORE_KEY, &[7, 0xb2]), 0);
        assert_eq!(hosts.reserve(2, op::REGISTER, 1, &[0xa2, 0]), CONFLICT);
        assert_eq!(hosts.reserve(2, op::ACQUIRE, EXCLUSIVE_ACCESS_ALL << 8, &[0xb2, 0]), 0);
        assert_eq!(hosts.read(1), CONFLICT);
        assert_eq!(hosts.register(1, 0xa1), 0);
        assert_eq!(hosts.read(1), 0, "every registrant is a holder");
        assert_eq!(hosts.reserve(1, op::RELEASE, 1, &[0xa1]), 0, "clear");
        assert_eq!(hosts.report(1, 64).data[4..7], [0; 3]);
    }
}

#[test]
fn fields_of_reservation_commands_are_checked() {
    let mut hosts = hosts(true);
    assert_eq!(hosts.register(1, 0xa1), 0);
    let wrong: [(u8, u32, &[u64]); 9] = [
        (op::REGISTER, 3, &[0, 1]),
        (op::REGISTER, 1 << 30, &[0, 1]),
        (op::ACQUIRE, 0, &[0xa1, 0]),
        (op::ACQUIRE, 7 << 8, &[0xa1, 0]),
        (op::ACQUIRE, 1 << 8 | 3, &[0xa1, 0]),
        (op::ACQUIRE, 1 << 8 | IGNORE_KEY, &[0xa1, 0]),
        (op::RELEASE, 1 << 8 | 2, &[0xa1]),
        (op::RELEASE, 1 << 8 | IGNORE_KEY, &[0xa1]),
        (op::RELEASE, 0, &[0xa1]),
    ];
    for (opcode, options, keys) in wrong {
        assert_eq!(hosts.reserve(1, opcode, options, keys), 2, "{opcode:#x} {options:#x}");
    }
    assert_eq!(hosts.reserve(1, op::REGISTER, 0, &[0]), 0x0f, "half of the data");
    assert_eq!(hosts.reserve(1, op::RELEASE, 1, &[0xa1, 0]), 0x0f, "too much");
    let io = &mut hosts.io[0];
    assert_eq!(hosts.bench.ask(io, op::REPORT, &[15, 0], 1, 64).status, 0x24, "identifiers of 64 bits");
    assert_eq!(hosts.bench.ask(io, op::REPORT, &[15, 1], 2, 64).status, 0x0b, "no such namespace");
    assert_eq!(hosts.bench.ask(io, op::REPORT, &[1 << 18, 1], 1, (1 << 20) + 4).status, 2, "longer than a transfer");
    assert_eq!(hosts.bench.ask(io, op::REPORT, &[15, 1], 1, 32).status, 0x0f, "less room than it asks for");
}

#[test]
fn namespaces_and_features_tell_of_reservations() {
    let mut hosts = hosts(false);
    let admin = &mut hosts.admin[0];
    let bench = &mut hosts.bench;
    let namespace = bench.ask(admin, op::IDENTIFY, &[0], 1, 4096).data;
    let controller = bench.ask(admin, op::IDENTIFY, &[1], 0, 4096).data;
    assert_eq!((namespace[31], controller[520] & 1 << 5), (0xff, 1 << 5));
    let (mask, persistence) = (0x82, 0x83);
    assert_eq!(bench.ask(admin, op::GET, &[persistence], 1, 0), Answer::default());
    assert_eq!(bench.ask(admin, op::SET, &[persistence, 1], 1, 0).status, 0);
    assert_eq!(bench.ask(admin, op::GET, &[persistence], 1, 0).result, 1);
    assert_eq!(bench.ask(admin, op::GET, &[persistence | 3 << 8], 1, 0).result, 0b110);
    assert_eq!(bench.ask(admin, op::GET, &[persistence], 2, 0).status, 0x0b);
    assert_eq!(bench.ask(admin, op::SET, &[persistence | 1 << 31, 0], 1, 0).status, 2, "nothing is saved");
    assert_eq!(bench.ask(admin, op::SET, &[mask, 0b1110], 1, 0).status, 0);
    assert_eq!(bench.ask(admin, op::GET, &[mask], 1, 0).result, 0b1110);
    assert_eq!(bench.ask(admin, op::GET, &[mask], 3, 0).result, 0, "of another namespace");
    assert_eq!(bench.ask(admin, op::GET, &[mask], u32::MAX, 0).status, 2);
    assert_eq!(bench.ask(admin, op::GET, &[mask], 2, 0).status, 0x0b);
    assert_eq!(bench.ask(admin, op::SET, &[mask, 0], 2, 0).status, 0x0b);
    assert_eq!(bench.ask(admin, op::SET, &[mask, 0b100], u32::MAX, 0).status, 0);
    assert_eq!([1, 3].map(|id| bench.ask(admin, op::GET, &[mask], id, 0).result), [0b100; 2]);
    assert_eq!(bench.ask(admin, op::GET, &[mask | 3 << 8], 1, 0).result, 0b110);
    assert_eq!(bench.ask(admin, op::LOG, &[15 << 16 | 0x80], 0, 64).data, vec![0; 64]);
    assert_eq!(hosts.report(2, 64).data[9], 1);
}

/// Event and log page that say that a host may read of its reservations.
const EVENT: u64 = 0x0080_0006;
const LOG: u32 = 15 << 16 | 0x80;

impl Hosts {
    /// A host asks to be told.
    fn listen(&mut self, host: usize) {
        let admin = &mut self.admin[host - 1];
        let entry = admin.entry(op::EVENT);
        let request = admin.capsule(entry, None, false);
        self.bench.net.client_send(admin.connection, &request);
        self.bench.serve(admin);
    }

    /// What a host was told by now.
    fn told(&mut self, host: usize) -> Option<u64> {
        self.bench.pass(Duration::from_millis(300));
        let admin = &mut self.admin[host - 1];
        self.bench.serve(admin);
        admin.answers.pop_first().map(|(_, event)| event.result)
    }

    /// The page that a host reads: count, kind, how many are behind it, namespace.
    fn page(&mut self, host: usize) -> [u64; 4] {
        let page = self.bench.ask(&mut self.admin[host - 1], op::LOG, &[LOG], 0, 64).data;
        let number =
            |range: std::ops::Range<usize>| page[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        assert_eq!((number(10..12), &page[16..]), (0, &[0; 48][..]));
        [number(0..8), number(8..9), number(9..10), number(12..16)]
    }
}

#[test]
fn a_host_is_told_of_what_others_do_with_its_registration() {
    let mut hosts = hosts(false);
    assert_eq!((hosts.register(1, 5), hosts.register(2, 6)), (0, 0));
    (1..=2).for_each(|host| hosts.listen(host));
    assert_eq!((hosts.told(1), hosts.told(2)), (None, None));
    let registrants_only = 3 << 8;
    assert_eq!(hosts.reserve(1, op::ACQUIRE, registrants_only, &[5, 0]), 0);
    assert_eq!(hosts.reserve(1, op::RELEASE, registrants_only, &[5]), 0);
    assert_eq!((hosts.told(1), hosts.told(2)), (None, Some(EVENT)), "not who has done it");
    // Told once, until the page was read; then of what is behind it.
    hosts.listen(2);
    assert_eq!(hosts.reserve(1, op::RELEASE, 1, &[5]), 0, "clear");
    assert_eq!(hosts.told(2), None);
    let too_long = [LOG, 4];
    assert_eq!(hosts.bench.ask(&mut hosts.admin[1], op::LOG, &too_long, 0, 64).status, 2);
    assert_eq!(hosts.page(2), [1, 2, 1, 1]);
    assert_eq!(hosts.told(2), Some(EVENT));
    assert_eq!((hosts.page(2), hosts.page(2), hosts.page(1)), ([2, 3, 0, 1], [0; 4], [0; 4]));
    hosts.listen(2);
    assert_eq!(hosts.told(2), None);
    assert_eq!((hosts.register(1, 5), hosts.register(2, 6)), (0, 0));
    assert_eq!(hosts.reserve(2, op::ACQUIRE, WRITE_EXCLUSIVE << 8, &[6, 0]), 0);
    assert_eq!(hosts.reserve(1, op::ACQUIRE, EXCLUSIVE_ACCESS << 8 | 1, &[5, 6]), 0, "preempt");
    assert_eq!(hosts.told(2), Some(EVENT));
    assert_eq!(hosts.page(2), [3, 1, 0, 1]);
}

#[test]
fn what_a_host_masks_it_is_not_told_and_a_reset_forgets_all() {
    let mut hosts = hosts(false);
    let clear = |hosts: &mut Hosts| {
        assert_eq!((hosts.register(1, 5), hosts.register(2, 6)), (0, 0));
        assert_eq!(hosts.reserve(1, op::RELEASE, 1, &[5]), 0);
    };
    hosts.listen(2);
    let mask = |hosts: &mut Hosts, bits| {
        assert_eq!(hosts.bench.ask(&mut hosts.admin[1], op::SET, &[0x82, bits], 1, 0).status, 0);
    };
    mask(&mut hosts, 1 << 3);
    clear(&mut hosts);
    assert_eq!((hosts.told(2), hosts.page(2)), (None, [0; 4]));
    mask(&mut hosts, 1 << 1);
    clear(&mut hosts);
    assert_eq!(hosts.told(2), Some(EVENT));
    // Nobody reads: the newest that waits tells how many were lost.
    (0..70).for_each(|_| clear(&mut hosts));
    assert_eq!(hosts.page(2), [1, 3, 63, 1]);
    (0..62).for_each(|_| assert_eq!(hosts.page(2)[1], 3));
    assert_eq!((hosts.page(2), hosts.page(2)), ([71, 3, 0, 1], [0; 4]));
    clear(&mut hosts);
    for configuration in [0, 0x0046_0001] {
        assert_eq!(hosts.bench.set_property(&mut hosts.admin[1], 0x14, configuration).status, 0);
    }
    assert_eq!(hosts.page(2), [0; 4]);
    assert_eq!(hosts.bench.ask(&mut hosts.admin[1], op::GET, &[0x82], 1, 0).result, 0);
}

/// What is refused because of where its data should go has told nothing.
#[test]
fn a_page_that_has_no_place_to_go_keeps_what_it_has_to_tell() {
    let mut hosts = hosts(false);
    assert_eq!((hosts.register(1, 5), hosts.register(2, 6)), (0, 0));
    hosts.listen(2);
    assert_eq!(hosts.reserve(1, op::RELEASE, 1, &[5]), 0, "clear");
    assert_eq!(hosts.told(2), Some(EVENT));
    hosts.listen(2);
    // Bytes, kind: of no data, too short, in the capsule, another controller's, none known.
    for (bytes, kind, status) in
        [(0_u32, 0x5a, 0x0f), (60, 0x5a, 0x0f), (64, 0x01, 0x11), (64, 0x40, 0x11), (64, 0, 0x11)]
    {
        let admin = &mut hosts.admin[1];
        let mut entry = admin.entry(op::LOG);
        entry[32..36].copy_from_slice(&bytes.to_le_bytes());
        entry[39] = kind;
        entry[40..44].copy_from_slice(&LOG.to_le_bytes());
        assert_eq!(hosts.bench.run(admin, entry, None, false).status, status, "{bytes} bytes, kind {kind:#x}");
    }
    assert_eq!(hosts.told(2), None, "it has not read the page yet");
    assert_eq!(hosts.page(2), [1, 3, 0, 1]);
}

/// A volume's blocks are nothing that a reservation command touches.
#[test]
fn what_a_registrant_writes_stays_through_reservations() {
    let mut hosts = hosts(false);
    assert_eq!((hosts.write(2), hosts.register(1, 5), hosts.register(2, 6)), (0, 0, 0));
    for kind in 1..=6 {
        assert_eq!(hosts.reserve(1, op::ACQUIRE, kind << 8, &[5, 0]), 0);
        let is_shared = kind > 2;
        assert_eq!(hosts.write(2) == 0, is_shared, "type {kind}");
        assert_eq!(hosts.read(2) == 0, is_shared || kind == 1, "type {kind}");
        let mut flush = hosts.io[1].entry(op::FLUSH);
        flush[4] = 1;
        assert_eq!(hosts.bench.run(&mut hosts.io[1], flush, None, false).status == 0, is_shared, "type {kind}");
        assert_eq!(hosts.reserve(1, op::RELEASE, kind << 8, &[5]), 0);
    }
    assert_eq!(hosts.bench.service.content(1, 0..BLOCK), vec![2; 4096]);
}
