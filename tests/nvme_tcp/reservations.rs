//! Reservation commands of two hosts, byte by byte.

use crate::host::{Answer, BLOCK, Bench, Queue, op};

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
    assert_eq!(bench.ask(admin, op::LOG, &[15 << 16 | 0x80], 0, 64).data, vec![0; 64]);
    assert_eq!(hosts.report(2, 64).data[9], 1);
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
