//! Valid inputs of each target: what mutations begin with, and the first corpus of libFuzzer.

use crate::{
    bodies::{
        lane::{IDENTITY, RING_BYTES},
        nvme_tcp::capsule,
    },
    support::wire::{self, bytes, option},
};
use twinlog::{
    base::{
        BlockAddress, BlockSize, CpNumber, Epoch, ForwardId, ForwardedChanges, HostId, Incarnation, LaneIndex, Lsn,
        ObjectId, PairId, Pass, PoolId, PortionId, Prng,
    },
    changelog::{Draft, FLAG_KEEP_ALLOCATED, PortionRole, RecordKind, record_bytes},
    control::admin::{ReplyLine, SCHEMA_VERSION},
    format::{
        chain::{AddressRange, Subtree, encode_chain_block},
        object::{ObjectRecord, Offline, OfflineCause, VolumeRecord, records_mut},
        record::{RawRecord, RecordPlace},
        reference::{BlockRef, node_mut},
        reservation::{Held, Registrant, Reservation, ReservationKind},
        superblock::{PoolDevice, Superblock, TreeRoot},
    },
    fs::reservation::{Notice, ReservationCommand},
    node::{
        admin::{AdminReply, AdminRequest, CheckReport, NodeStatus, VolumeStatus},
        request::ReservationNotice,
    },
    pair::{
        decide::Word,
        wire::{
            Ack, Heartbeat, Hello, Message, MirrorRefusal, MirrorRefusalReason, Notices, Outgoing, PoolFacts,
            PoolState, Refusal, RefusalReason, Reply, ReplyContent, ReplyStatus, Request, RequestKind, Role, Seal,
            VolumeEntry, Volumes, write_command, write_extent, write_pass,
        },
    },
};
use twinlog_device::BLOCK_BYTES;
use zerocopy::IntoBytes;

/// The valid inputs of target `name`.
pub(crate) fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "nbd-handshake" => handshakes(),
        "nbd-session" => sessions(),
        "nvme-tcp-unit" => nvme_tcp_units(),
        "nvme-tcp-session" => nvme_tcp_sessions(),
        "nvme-tcp-authentication" => nvme_tcp_authentications(),
        "record" => records(),
        "lane" => lanes(),
        "link-frame" => frames(),
        "link-session" => link_sessions(),
        "superblock" => superblocks(),
        "block" => blocks(),
        "pool" => pools(),
        "config" => configurations(),
        "admin" => admin_lines(),
        "size" => {
            ["0", "4096", "4096B", "4k", "4 KiB", "256MiB", " 4gib ", "16T", "16777215TiB", "1 GiB", "7", "\"8MiB\""]
                .map(|text| text.as_bytes().to_vec())
                .to_vec()
        }
        "witness" => crate::bodies::witness::seeds(),
        "reservation-report" => crate::bodies::reservation::seeds(),
        "reservation-state" => reservation_states(),
        _ => name.strip_prefix("load-").map_or_else(Vec::new, twinlog_load::fuzz::seeds),
    }
}

fn handshakes() -> Vec<Vec<u8>> {
    let go = |name: &str| option(7, &wire::go(name, &[0, 1, 2, 3]));
    let flags = wire::client_flags(3);
    let query = wire::meta_query("vol", &["base:allocation"]);
    let all = wire::meta_query("", &["base:", "other:x", "base:allocation"]);
    let read = wire::request(0, wire::READ, 1, 0, 4096);
    let sent = [
        bytes![flags, go("vol"), read],
        bytes![flags, option(8, &[]), option(10, &query), go("vol"), read],
        bytes![flags, option(11, &[]), option(9, &all), option(10, &all), option(6, &wire::go("other", &[])), go("")],
        bytes![flags, option(3, &[]), option(5, &[]), option(2, &[])],
        bytes![flags, option(1, b"vol"), wire::write(wire::FUA, 1, 512, b"written")],
        bytes![wire::client_flags(0), option(1, b"")],
        bytes![flags, option(6, &wire::go("nobody", &[])), option(99, &[1; 100]), option(2, &[])],
        bytes![flags, option(7, &wire::go(&"n".repeat(4096), &[3; 100]))],
    ];
    sent.iter().flat_map(|bytes| [0, 1, 30].map(|pieces| [&[pieces], &bytes[..]].concat())).collect()
}

fn sessions() -> Vec<Vec<u8>> {
    let mut prng = Prng::new(3);
    let mut all = Vec::new();
    for style in [0, 1, 2, 129, 130, 131] {
        for _ in 0..4 {
            let mut script = vec![style, *prng.pick(&[0, 0, 1, 7]), *prng.pick(&[0, 3, 6])];
            for _ in 0..prng.between(1, 12) {
                let mut request = [0; 8];
                prng.fill(&mut request);
                // A known command other than the farewell, and known flags.
                request[0] = *prng.pick(&[0, 1, 3, 4, 5, 6, 7]);
                request[1] = *prng.pick(&[0, 0, 0, 1, 2, 4, 8]);
                request[7] = 0;
                script.extend(request);
            }
            all.push(script);
        }
        all.push(bytes![[style, 0, 0], [1, 0, 6, 0, 0, 7, 0, 0], [0, 0, 6, 0, 0, 7, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]]);
    }
    all
}

/// A submission entry for namespace 1: opcode, dword 10 and dword 12 by their lowest bytes, length and kind of its data.
fn nvme_entry(opcode: u8, first: u8, count: u8, length: u32, kind: u8) -> [u8; 64] {
    let mut entry = [0; 64];
    (entry[0], entry[1], entry[2], entry[4]) = (opcode, 0x40, first ^ opcode, 1);
    (entry[39], entry[40], entry[48]) = (kind, first, count);
    entry[32..36].copy_from_slice(&length.to_le_bytes());
    entry
}

fn nvme_tcp_units() -> Vec<Vec<u8>> {
    let entry = nvme_entry(1, 3, 1, 8192, 1);
    let mut open = [0; 128];
    (open[2], open[4], open[11]) = (128, 128, 3);
    let data = bytes![[6, 0, 24, 24, 40, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0], [9; 16]];
    let ends = bytes![[2, 0, 24, 0, 24, 0, 0, 0], [1; 16]];
    vec![
        bytes![[0], open],
        bytes![[4], capsule(&entry, &[7; 8192])],
        bytes![[4], capsule(&entry, &[])],
        bytes![[4], data],
        bytes![[7], ends],
    ]
}

fn nvme_tcp_authentications() -> Vec<Vec<u8>> {
    let negotiate = |hash, group| {
        let mut message = [0; 72];
        (message[4], message[7], message[8], message[10], message[11]) = (9, 1, 1, 1, 1);
        (message[12], message[42]) = (hash, group);
        message
    };
    let reply = |has_challenge, element: &[u8]| {
        let length = u8::try_from(element.len()).expect("short");
        bytes![[1, 2, 0, 0, 9, 0, 32, 0, has_challenge, 0, length, 0, 5, 0, 0, 0], [6; 32], [7; 32], element]
    };
    vec![
        bytes![[0], negotiate(1, 0)],
        bytes![[0], negotiate(3, 5)],
        bytes![[1], reply(0, &[])],
        bytes![[1], reply(1, &[])],
        bytes![[1], reply(1, &[9; 16])],
        bytes![[1], [1, 4, 0, 0, 9, 0, 0, 0]],
        bytes![[1], [0, 0xf0, 0, 0, 9, 0, 1, 1]],
    ]
}

fn nvme_tcp_sessions() -> Vec<Vec<u8>> {
    let io = |opcode, first, count, length, kind, data: &[u8]| {
        capsule(&nvme_entry(opcode, first, count, length, kind), data)
    };
    let write = io(1, 3, 1, 8192, 1, &[7; 8192]);
    let asked = io(1, 8, 7, 32768, 0x5a, &[]);
    let answer =
        bytes![[6, 4, 24, 24, 24, 128, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0], vec![5; 32768]];
    let read = io(2, 3, 1, 8192, 0x5a, &[]);
    let rest = bytes![
        io(0, 0, 0, 0, 0, &[]),
        io(8, 0, 4, 0, 0, &[]),
        io(0x0c, 0, 63, 0, 0, &[]),
        io(5, 3, 1, 8192, 1, &[7; 8192])
    ];
    let mut deallocate = nvme_entry(9, 0, 0, 16, 1);
    deallocate[44] = 4;
    let trim = capsule(&deallocate, &[0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let admin = bytes![
        io(6, 1, 0, 4096, 0x5a, &[]),
        io(6, 2, 0, 4096, 0x5a, &[]),
        io(0x0c, 0, 0, 0, 0, &[]),
        io(0x0a, 7, 0, 0, 0, &[])
    ];
    let logs = [1, 2, 4, 5, 0x0c, 0x12].map(|page| {
        let mut log = nvme_entry(2, page, 0, 4096, 0x5a);
        (log[42], log[43]) = (0xff, 3);
        capsule(&log, &[])
    });
    // Of the event request, and of a command at an I/O queue that is not there.
    let mut abort = nvme_entry(8, 0, 0, 0, 0);
    abort[42] = 0x0c;
    let aborts = bytes![capsule(&abort, &[]), io(8, 1, 0, 0, 0, &[])];
    // Halves of fused operations: two that belong together, then one whose second does not come, and one whose first is missing.
    let fused = |opcode, fuse, in_capsule| {
        let mut entry = nvme_entry(opcode, 3, 0, 4096, if in_capsule { 1 } else { 0x5a });
        entry[1] |= fuse;
        capsule(&entry, if in_capsule { &[0; 4096] } else { &[] })
    };
    let pair = bytes![fused(5, 1, true), fused(1, 2, true)];
    let halves =
        bytes![fused(5, 1, true), write, fused(1, 2, false), fused(5, 1, false), fused(1, 2, true), fused(5, 1, true)];
    let scripts = [
        bytes![pair, read],
        bytes![pair, halves, pair],
        bytes![write, read],
        bytes![asked, answer, read],
        bytes![rest, trim, read],
        bytes![write, write, asked, answer],
    ];
    let io = scripts.iter().flat_map(|script| [0, 7, 200].map(|pieces| bytes![[pieces, pieces % 5, 1], script]));
    io.chain([0, 9].map(|pieces| bytes![[pieces, 0, 0], admin, logs.concat(), aborts])).collect()
}

/// A frame of every kind that a session has.
fn frames() -> Vec<Vec<u8>> {
    let text = || "the log memory has failed".to_owned();
    let lane = LaneIndex(1);
    let refusal = MirrorRefusal { lane, reason: MirrorRefusalReason::Gap, expected: Lsn(256), text: text() };
    let state = PoolState { word: Word::Mirroring, portion: Some(PortionId(8)), expected: vec![Some(Lsn(128)), None] };
    let entry = VolumeEntry {
        id: ObjectId(1),
        size_bytes: 1 << 30,
        block_size: BlockSize::Bytes512,
        offline: Some((LaneIndex(3), Lsn(77_056))),
        name: "vol".to_owned(),
    };
    let request = |kind: RequestKind, length_bytes| Request {
        id: 7,
        volume: ObjectId(3),
        host: HostId::new([8; 16]),
        pass: kind.is_change().then_some(Pass { epoch: Epoch(3), number: 1 }),
        kind,
        durable: true,
        may_free: false,
        offset_bytes: 512,
        length_bytes,
        extents_max: 0,
    };
    let notice = ReservationNotice {
        host: HostId::new([8; 16]).expect("not zero"),
        volume: ObjectId(3),
        notice: Notice::ReservationReleased,
    };
    let mut extents = Vec::new();
    write_extent(4096, true, &mut extents);
    write_extent(8192, false, &mut extents);
    let (status, detail) = (ReplyStatus::Done, 0);
    let reply = |content| Message::Reply(Reply { id: 8, status, content, detail });
    let late = Message::Reply(Reply { id: 8, status: ReplyStatus::Late, content: ReplyContent::Pass, detail });
    let messages: Vec<(Message, Vec<u8>)> = vec![
        (Message::Hello(Box::new(hello())), vec![]),
        (Message::Proof([3; 32]), vec![]),
        (Message::Welcome, vec![]),
        (Message::Refusal(Refusal { reason: RefusalReason::Pools, text: text() }), vec![]),
        (Message::Heartbeat(Heartbeat { sent_ns: 1, echo_ns: 2, held_ns: 3 }), vec![]),
        (Message::PathClosed { path: 1, connection: 4 }, vec![]),
        (Message::Acknowledgement, vec![]),
        (Message::MirrorBegin { lane, start: Lsn(4096) }, vec![]),
        (Message::MirrorWrite { lane, start: Lsn(4096), end: Lsn(8192) }, vec![1; 256]),
        (Message::MirrorRefusal(refusal), vec![]),
        (Message::PoolState(state), vec![]),
        (Message::Ask, vec![]),
        (Message::Volumes(Volumes { total_count: 9, first: 7, entries: vec![entry] }), vec![]),
        (Message::Request(request(RequestKind::Write, 100)), vec![5; 100]),
        (Message::Request(request(RequestKind::CompareAndWrite, 512)), vec![6; 32 + 512]),
        (Message::Request(request(RequestKind::Flush, 0)), vec![]),
        (Message::Request(request(RequestKind::Reserve, 0)), write_command(ReservationCommand::Clear { key: 7 })),
        (reply(ReplyContent::Reservation), reservation().to_bytes()),
        (reply(ReplyContent::Bytes), vec![4; 77]),
        (reply(ReplyContent::Extents), extents),
        (late, write_pass(Pass { epoch: Epoch(3), number: 2 })),
        (Message::Notices(Notices { first: 8, entries: vec![notice; 2] }), vec![]),
    ];
    let ack = Ack { pool: PoolId(1), lane, epoch: Epoch(2), durable: Lsn(128), expected: Lsn(256) };
    let frame = |(message, payload): &(Message, Vec<u8>)| {
        let names = message.kind().names_pool();
        let (pool, epoch) = if names { (PoolId(1), Epoch(2)) } else { Default::default() };
        // What is mended, tag, number.
        let mut bytes = vec![1, 0, 0];
        let acks = [ack];
        Outgoing { pool, epoch, acks: &acks, message }.write(&mut Seal::default(), &[payload], &mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    };
    messages.iter().map(frame).collect()
}

fn hello() -> Hello {
    let facts = PoolFacts {
        pool: PoolId(1),
        role: PortionRole::Own,
        portion: PortionId(2),
        ring_bytes: 8 << 20,
        unit_bytes: 4096,
        lane_count: 2,
    };
    Hello {
        role: Role::Connects,
        path: 1,
        features_required: 0,
        pair: PairId(3),
        configuration: 4,
        incarnation: Incarnation(5),
        session: 6,
        connection: 7,
        challenge: [8; 32],
        name: "node-a".to_owned(),
        partner: "node-b".to_owned(),
        pools: vec![facts, facts],
    }
}

/// Steps of four bytes: words, batches, acknowledgements, pauses, and what the one in the middle does.
fn link_sessions() -> Vec<Vec<u8>> {
    let mut prng = Prng::new(4);
    (0..24)
        .map(|_| {
            let steps = 4 * prng.between(2, 40);
            let mut script = vec![0; usize::try_from(steps).expect("small")];
            prng.fill(&mut script);
            script.extend([0, 0, 0, 0, 0, 0, 0, 1]);
            script
        })
        .collect()
}

fn place(lsn: u64) -> RecordPlace {
    let stable = lsn / 2 / 128 * 128;
    RecordPlace { pool: IDENTITY.pool, lane: IDENTITY.lane, epoch: Epoch(1), lsn: Lsn(lsn), stable_lsn: Lsn(stable) }
}

fn reservation() -> Reservation {
    let host = |number: u8| HostId::new([number; 16]).expect("not zero");
    let registrants = (1..=12).map(|number| Registrant { host: host(number), key: u64::from(number) }).collect();
    let held = Some(Held { kind: ReservationKind::ExclusiveAccess, holder: Some(host(2)) });
    Reservation { generation: 9, persists: true, held, registrants }
}

/// A state, a command of the interconnect, and a host's with its data, behind the number of the parser.
fn reservation_states() -> Vec<Vec<u8>> {
    let kind = ReservationKind::WriteExclusiveAll;
    let preempt = ReservationCommand::Preempt { key: 7, preempted: 9, kind, aborts: true };
    let mut acquire = [0; 64];
    (acquire[0], acquire[40], acquire[41]) = (0x11, 1, 6);
    vec![
        bytes![[0], reservation().to_bytes()],
        bytes![[0], Reservation::default().to_bytes()],
        bytes![[1], write_command(preempt)],
        bytes![[2], acquire, [7; 16]],
    ]
}

/// A change of each kind.
fn changes() -> Vec<(Draft, Vec<u8>)> {
    let draft = |kind, offset_bytes, argument| Draft {
        kind,
        object: ObjectId(1),
        offset_bytes,
        argument,
        flags: 0,
        time_ns: 5,
        request_id: 6,
    };
    vec![
        (draft(RecordKind::Write, 777, 0), vec![1; 300]),
        (draft(RecordKind::Block, 8192, 0), vec![2; 4096]),
        (draft(RecordKind::Discard, 5, 9000), vec![]),
        (Draft { flags: FLAG_KEEP_ALLOCATED, ..draft(RecordKind::WriteZeroes, 4096, 4096) }, vec![]),
        (draft(RecordKind::Create, 0, 1 << 30), b"vol-b".to_vec()),
        (draft(RecordKind::Resize, 0, 1 << 20), vec![]),
        (draft(RecordKind::Reserve, 0, 0), reservation().to_bytes()),
        (draft(RecordKind::Delete, 0, 0), vec![]),
        (Draft { object: ObjectId(0), request_id: 0, ..draft(RecordKind::Mark, 0, 0) }, vec![]),
    ]
}

fn record(lsn: u64, draft: &Draft, payload: &[u8]) -> Vec<u8> {
    let mut body = payload.to_vec();
    body.resize(payload.len().next_multiple_of(128), 0);
    bytes![RawRecord::new(&place(lsn), draft, payload.len() as u64, &body).as_bytes(), body]
}

fn records() -> Vec<Vec<u8>> {
    let all = changes();
    let mended = all.iter().map(|(draft, payload)| bytes![[1], record(1280, draft, payload)]);
    mended.chain([bytes![[2], RawRecord::pad(&place(128), 7, 512).as_bytes()]]).collect()
}

/// Rings with a history: first lap, full, after a lap, with a torn tail.
fn lanes() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (first, count, mend) in [(0, 6, 3), (0, 40, 3), (1, 13, 3), (0, 9, 1), (2, 3, 0)] {
        let mut ring = vec![0; RING_BYTES];
        let mut lsn = first * RING_BYTES;
        for (draft, payload) in changes().iter().cycle().take(count) {
            let length = usize::try_from(record_bytes(payload.len() as u64)).expect("small");
            let left = RING_BYTES - lsn % RING_BYTES;
            let at = lsn % RING_BYTES;
            let bytes = if length > left {
                let mut pad = RawRecord::pad(&place(lsn as u64), 1, left as u64).as_bytes().to_vec();
                pad.resize(left, 0);
                pad
            } else {
                record(lsn as u64, draft, payload)
            };
            ring[at..at + bytes.len()].copy_from_slice(&bytes);
            lsn += bytes.len();
        }
        let laps = u8::try_from(first.max(lsn / RING_BYTES * usize::from(first > 0))).expect("few");
        all.push(bytes![[0, 0, laps, 1, mend], ring]);
    }
    all
}

fn sample() -> Superblock {
    let reference = BlockRef::new(BlockAddress::new(0, 20), CpNumber(8), &[0; BLOCK_BYTES]);
    Superblock {
        pool: PoolId(1 << 100),
        name: "a".to_owned(),
        cp: CpNumber(9),
        epoch: Epoch(2),
        time_ns: 3,
        next_object: ObjectId(4),
        free_blocks: 5,
        deferred_blocks: 6,
        object_table: TreeRoot { root: reference, levels: 1 },
        space_map: TreeRoot { root: reference.with_aux(77), levels: 1 },
        freed: reference,
        reap: BlockRef::default(),
        applied: vec![Lsn(128), Lsn(1 << 40)],
        forwarded: vec![ForwardedChanges::none(2); 2],
        has_offline: false,
        has_reservations: false,
        devices: vec![PoolDevice { id: 8, block_count: 4096, plex: 0 }; 3],
    }
}

fn superblocks() -> Vec<Vec<u8>> {
    let mut forwarded = ForwardedChanges::none(16);
    (0..16).for_each(|slot| forwarded.note(ForwardId::new(9, slot).bits()));
    let full = Superblock {
        name: "n".repeat(64),
        applied: vec![Lsn(1); 16],
        forwarded: vec![forwarded; 16],
        has_offline: true,
        has_reservations: true,
        devices: vec![PoolDevice { id: 9, block_count: 1024, plex: 0 }; 32],
        ..sample()
    };
    vec![bytes![[0, 1, 0], sample().encode(1, 1)], bytes![[3, 2, 0], full.encode(31, 2)]]
}

fn blocks() -> Vec<Vec<u8>> {
    let reference = BlockRef::new(BlockAddress::new(1, 99), CpNumber(7), &[1; BLOCK_BYTES]);
    let mut freed = [0; BLOCK_BYTES];
    encode_chain_block(&mut freed, &[AddressRange { first: BlockAddress::new(1, 5), count: 9 }; 40], reference);
    let mut reap = [0; BLOCK_BYTES];
    encode_chain_block(&mut reap, &[Subtree { root: reference, levels: 2 }; 5], BlockRef::default());
    let mut objects = [0; BLOCK_BYTES];
    let mut registrants = [ObjectRecord::free(); 2];
    for (id, slot) in (1..).zip(records_mut(&mut objects).iter_mut().skip(1).step_by(2)) {
        let volume = VolumeRecord {
            id: ObjectId(id),
            name: format!("vol-{id}"),
            size_bytes: id << 30,
            block_size: if id == 2 { BlockSize::Bytes512 } else { BlockSize::Bytes4096 },
            levels: 4,
            root: reference,
            allocated_blocks: 9,
            created_cp: CpNumber(2),
            created_ns: 5,
            offline: (id == 3).then_some(Offline {
                cause: OfflineCause::Unreadable(7),
                lane: LaneIndex(1),
                lsn: Lsn(1 << 20),
                records: 3,
                start_bytes: 0,
                end_bytes: 9 * 128,
                held: TreeRoot { root: reference, levels: 1 },
            }),
            reservation: Box::new(if id == 5 { reservation() } else { Reservation::default() }),
        };
        if id == 5 {
            registrants = [0, 1].map(|part| ObjectRecord::registrants(&volume, part));
        }
        *slot = ObjectRecord::volume(&volume);
    }
    (records_mut(&mut objects)[0], records_mut(&mut objects)[2]) = (registrants[1], registrants[0]);
    let mut nodes = [0; BLOCK_BYTES];
    node_mut(&mut nodes)[3] = reference.with_aux(3);
    vec![freed.to_vec(), reap.to_vec(), objects.to_vec(), nodes.to_vec()]
}

/// Changes that change nothing that matters, for the mutations to grow from.
fn pools() -> Vec<Vec<u8>> {
    let nothing = [vec![0], vec![7], vec![0, 0, 0, 0, 5, 0, 0]];
    let data = (0..4).map(|target| vec![0, target, 100, 1, 0, 77, 0]);
    nothing.into_iter().chain(data).collect()
}

fn configurations() -> Vec<Vec<u8>> {
    let short = "name = \"a\"\n[log]\npath = \"log\"\n[pool]\nname = \"a\"\ndevices = [\"disk\"]\n";
    let long = "# mine\nname = \"node-1\"\nadmin = \"/run/admin.sock\"\n[nbd]\nunix = [\"nbd.sock\"]\n\
                tcp = [\"127.0.0.1:10809\", \"[::1]:1\"]\nallow_remote = false\n[metrics]\naddress = \"127.0.0.1:9745\"\n\
                [reactors]\ncount = 2\ncpus = [0, 1]\nidle = \"busy\"\n[memory]\nlimit = \"512MiB\"\npinned = false\n\
                [log]\nbackend = \"file\"\npath = \"log\"\nsize = \"64MiB\"\nallow_volatile = false\n\
                [pool]\nname = \"a\"\ndevices = [ \"/dev/sda\", # first\n '../d' ]\n[logging]\nlevel = \"info\"\nformat = \"json\"\n";
    vec![
        short.into(),
        long.into(),
        short.replace("path = \"log\"", "backend = \"memory\"\nallow_volatile = true").into(),
    ]
}

fn admin_lines() -> Vec<Vec<u8>> {
    let name = || "vol-a".to_owned();
    let requests = [
        AdminRequest::Status,
        AdminRequest::VolumeCreate { name: name(), size_bytes: 1 << 30, block_bytes: 4096 },
        AdminRequest::VolumeList,
        AdminRequest::VolumeResize { name: name(), size_bytes: u64::MAX },
        AdminRequest::VolumeDelete { name: name() },
        AdminRequest::VolumeOnline { name: name(), accept_loss: true },
        AdminRequest::Checkpoint,
        AdminRequest::PoolCheck,
        AdminRequest::PoolGrow { device: "/dev/\"odd\"\n".to_owned() },
        AdminRequest::Stop,
    ];
    let status = NodeStatus { volumes: vec![VolumeStatus::default()], ..NodeStatus::default() };
    let replies = [
        AdminReply::Done,
        AdminReply::Status(Box::new(status)),
        AdminReply::Report(CheckReport::default()),
        AdminReply::Refused { message: "no".to_owned(), hint: String::new() },
        AdminReply::Progress { work: "check".to_owned(), done_blocks: 1, total_blocks: 2 },
    ];
    let requests = requests.iter().map(|request| serde_json::to_vec(request).expect("plain data"));
    let line = |reply| serde_json::to_vec(&ReplyLine { schema_version: SCHEMA_VERSION, reply }).expect("plain data");
    requests.chain(replies.into_iter().map(line)).collect()
}
