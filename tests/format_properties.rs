//! Properties of every structure that outlives the process: what is encoded is decoded as the same, for thousands of values drawn from
//! a seed, and no single flipped bit of what carries a checksum is taken for whole.

use std::path::Path;
use twinlog::{
    base::{
        BlockAddress, BlockSize, CpNumber, Epoch, ForwardId, ForwardedChanges, HostId, LaneIndex, Lsn, ObjectId,
        PoolId, PortionId, Prng, limits::CHANGE_BYTES_MAX,
    },
    changelog::{
        Draft, FLAG_KEEP_ALLOCATED, LaneHeader, LaneIdentity, PortionRole, RecordFault, RecordKind, record_bytes,
    },
    control::{
        config::{self, LogBackend, NodeConfig},
        size::ByteSize,
    },
    format::{
        chain::{AddressRange, ChainEntry, Subtree, decode_chain_block, encode_chain_block, entries_per_block},
        lane_header::RawLaneHeader,
        object::{Object, ObjectRecord, Offline, OfflineCause, VolumeRecord},
        record::{RawRecord, RecordExpected, RecordHeader, RecordPlace},
        reference::BlockRef,
        reservation::{Held, Registrant, Reservation, ReservationKind},
        superblock::{PoolDevice, Superblock, TreeRoot},
    },
    node::admin::AdminRequest,
    reactor::IdlePolicy,
};
use twinlog_device::{BLOCK_BYTES, BlockBytes};
use zerocopy::{FromBytes, IntoBytes};

/// Values of each structure.
const CASES: usize = 2000;

fn small(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

/// A number of any magnitude, bounds more often than chance would have it.
fn number(prng: &mut Prng, max: u64) -> u64 {
    match prng.below(4) {
        0 => 0,
        1 => max,
        2 => prng.between(0, max.min(300)),
        _ if max == u64::MAX => prng.next_u64(),
        _ => prng.between(0, max),
    }
}

fn address(prng: &mut Prng) -> BlockAddress {
    let device = u16::try_from(prng.below(32)).expect("small");
    BlockAddress::new(device, number(prng, BlockAddress::DEVICE_BLOCKS_MAX - 1))
}

fn reference(prng: &mut Prng) -> BlockRef {
    if prng.chance(1, 4) {
        return BlockRef::default();
    }
    let mut bytes = [0; BLOCK_BYTES];
    prng.fill(&mut bytes[..64]);
    let aux = u32::try_from(number(prng, u64::from(u32::MAX))).expect("bounded");
    BlockRef::new(address(prng), CpNumber(number(prng, u64::MAX)), &bytes).with_aux(aux)
}

fn tree(prng: &mut Prng) -> TreeRoot {
    TreeRoot { root: reference(prng), levels: u8::try_from(prng.below(7)).expect("small") }
}

fn name(prng: &mut Prng) -> String {
    let letters = b"abcXYZ019-_.";
    let length = *prng.pick(&[1, 2, 17, 63, 64]);
    (0..length).map(|at| char::from(if at == 0 { b'n' } else { *prng.pick(letters) })).collect()
}

fn forwarded(prng: &mut Prng, lane_count: usize) -> ForwardedChanges {
    let mut changes = ForwardedChanges::none(lane_count);
    for slot in (0..changes.slots().len()).filter(|slot| slot % 3 == 0) {
        changes.note(ForwardId::new(prng.next_u64(), slot).bits());
    }
    changes
}

fn superblock(prng: &mut Prng) -> Superblock {
    let block_count = |prng: &mut Prng| prng.between(1024, (1 << 48) - 1);
    let count = prng.between(1, 32);
    let devices: Vec<PoolDevice> = (0..count)
        .map(|_| PoolDevice {
            id: u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64()),
            block_count: block_count(prng),
            plex: u16::try_from(prng.below(2)).expect("small"),
        })
        .collect();
    let blocks = devices.iter().map(|device| device.block_count).sum();
    let lane_count = usize::try_from(prng.between(1, 16)).expect("small");
    let forwarded = (0..lane_count).map(|_| forwarded(prng, lane_count)).collect();
    Superblock {
        pool: PoolId(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())),
        name: name(prng),
        cp: CpNumber(prng.between(1, u64::MAX - 1)),
        epoch: Epoch(number(prng, u64::MAX)),
        time_ns: number(prng, u64::MAX),
        next_object: ObjectId(number(prng, u64::MAX)),
        free_blocks: number(prng, blocks),
        deferred_blocks: number(prng, blocks),
        object_table: tree(prng),
        space_map: tree(prng),
        freed: reference(prng),
        reap: reference(prng),
        applied: (0..lane_count).map(|_| Lsn(number(prng, u64::MAX))).collect(),
        forwarded,
        has_offline: prng.chance(1, 2),
        has_reservations: prng.chance(1, 2),
        devices,
    }
}

#[test]
fn superblocks_survive_the_round_trip() {
    let mut prng = Prng::new(1);
    for _ in 0..CASES {
        let (value, place) = (superblock(&mut prng), number(&mut prng, 1 << 47));
        let device = u16::try_from(prng.below(value.devices.len() as u64)).expect("small");
        assert_eq!(Superblock::verify(&value.encode(device, place), place), Ok((value, device)));
    }
}

fn identity(prng: &mut Prng) -> LaneIdentity {
    let lane_count = u16::try_from(prng.between(1, 16)).expect("small");
    LaneIdentity {
        pool: PoolId(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())),
        role: *prng.pick(&[PortionRole::Own, PortionRole::Mirror]),
        lane: LaneIndex(u16::try_from(prng.below(u64::from(lane_count))).expect("small")),
        lane_count,
    }
}

#[test]
fn lane_headers_survive_the_round_trip_and_no_flipped_bit_does() {
    let mut prng = Prng::new(2);
    for _ in 0..CASES {
        let (identity, ring_bytes) = (identity(&mut prng), 4096 * prng.between(1, 1 << 40));
        let portion = PortionId(u128::from(prng.between(1, u64::MAX)) << prng.below(65));
        let raw = RawLaneHeader::new(&identity, portion, ring_bytes);
        let read = LaneHeader::read(raw.as_bytes(), ring_bytes + 4096);
        assert_eq!(read, Ok(LaneHeader { identity, portion, ring_bytes }));
    }
    let mut bytes = RawLaneHeader::new(&identity(&mut prng), PortionId(1), 4096).as_bytes().to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(LaneHeader::read(&bytes, 8192).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(LaneHeader::read(&bytes, 8192).is_ok() && LaneHeader::read(&bytes[..4095], 8192).is_err());
}

/// A change of any kind at any place, with its payload.
fn change(prng: &mut Prng) -> (Draft, Vec<u8>) {
    let kind = *prng.pick(&RecordKind::ALL[1..]);
    let max = 1 << 50;
    let mut draft = Draft {
        kind,
        object: ObjectId(number(prng, u64::MAX)),
        offset_bytes: 0,
        argument: 0,
        flags: 0,
        time_ns: number(prng, u64::MAX),
        request_id: number(prng, u64::MAX),
    };
    let mut payload_bytes = 0;
    match kind {
        RecordKind::Pad | RecordKind::Mark => (draft.object, draft.request_id) = (ObjectId(0), 0),
        RecordKind::Block => {
            payload_bytes = 4096 * prng.between(1, 4);
            draft.offset_bytes = number(prng, (max - payload_bytes) / 4096) * 4096;
        }
        RecordKind::Write => {
            payload_bytes = *prng.pick(&[1, 127, 128, 129, 4000, CHANGE_BYTES_MAX]);
            draft.offset_bytes = number(prng, max - payload_bytes);
        }
        RecordKind::Discard | RecordKind::WriteZeroes => {
            draft.argument = number(prng, max - 1) + 1;
            draft.offset_bytes = number(prng, max - draft.argument);
            draft.flags = if kind == RecordKind::WriteZeroes { *prng.pick(&[0, FLAG_KEEP_ALLOCATED]) } else { 0 };
        }
        RecordKind::Create => (draft.argument, payload_bytes) = (number(prng, max), prng.between(1, 64)),
        RecordKind::Resize => draft.argument = number(prng, max),
        RecordKind::Delete => {}
        RecordKind::Reserve => payload_bytes = 16 + 24 * number(prng, 128),
    }
    let mut payload = vec![0; small(payload_bytes)];
    let filled = payload.len().min(500);
    prng.fill(&mut payload[..filled]);
    (draft, payload)
}

fn place(prng: &mut Prng, identity: &LaneIdentity) -> RecordPlace {
    let lsn = prng.below(1 << 54) * 128;
    let stable_lsn = Lsn(number(prng, lsn));
    RecordPlace {
        pool: identity.pool,
        lane: identity.lane,
        epoch: Epoch(number(prng, u64::MAX)),
        lsn: Lsn(lsn),
        stable_lsn,
    }
}

fn encode(place: &RecordPlace, draft: &Draft, payload: &[u8]) -> Vec<u8> {
    let mut body = payload.to_vec();
    body.resize(payload.len().next_multiple_of(128), 0);
    let mut bytes = RawRecord::new(place, draft, payload.len() as u64, &body).as_bytes().to_vec();
    bytes.extend(body);
    bytes
}

#[test]
fn records_survive_the_round_trip() {
    let mut prng = Prng::new(3);
    for _ in 0..CASES {
        let identity = identity(&mut prng);
        let (place, (draft, payload)) = (place(&mut prng, &identity), change(&mut prng));
        let bytes = encode(&place, &draft, &payload);
        assert_eq!(bytes.len() as u64, record_bytes(payload.len() as u64));
        let expected = RecordExpected { pool: identity.pool, lane: identity.lane };
        let header = RecordHeader::read(&bytes, &expected).expect("whole");
        assert_eq!((header.draft, header.lsn, header.epoch), (draft, place.lsn, place.epoch));
        assert_eq!((header.stable_lsn, header.end), (place.stable_lsn, Lsn(place.lsn.0 + bytes.len() as u64)));
        assert_eq!(header.payload(&bytes[128..]), Ok(&payload[..]));
        let other = RecordExpected { pool: PoolId(!identity.pool.0), ..expected };
        assert_eq!(RecordHeader::read(&bytes, &other), Err(RecordFault::OtherPool));
    }
}

#[test]
fn no_flipped_bit_of_a_record_is_taken_for_whole() {
    let mut prng = Prng::new(4);
    for _ in 0..60 {
        let identity = identity(&mut prng);
        let (place, (draft, mut payload)) = (place(&mut prng, &identity), change(&mut prng));
        payload.truncate(4096);
        if draft.kind == RecordKind::Block {
            payload.resize(4096, 7);
        }
        let mut bytes = encode(&place, &draft, &payload);
        let expected = RecordExpected { pool: identity.pool, lane: identity.lane };
        // All bits of the header and of what follows it; of a longer body one bit of every byte.
        for bit in 0..bytes.len() * 8 {
            if bit >= 256 * 8 && bit % 8 != (bit / 8) % 8 {
                continue;
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = RecordHeader::read(&bytes, &expected).and_then(|header| header.payload(&bytes[128..]).map(drop));
            assert!(read.is_err(), "{draft:?}: bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

fn chains<E: ChainEntry + PartialEq + std::fmt::Debug>(prng: &mut Prng, entry: impl Fn(&mut Prng) -> E) {
    for _ in 0..CASES {
        let count = number(prng, entries_per_block::<E>() as u64 - 1) + 1;
        let entries: Vec<E> = (0..count).map(|_| entry(prng)).collect();
        let next = reference(prng);
        let mut block = [0xAA; BLOCK_BYTES];
        encode_chain_block(&mut block, &entries, next);
        assert_eq!(decode_chain_block::<E>(&block), Ok((entries, next)));
    }
}

#[test]
fn lists_survive_the_round_trip() {
    let mut prng = Prng::new(5);
    chains(&mut prng, |prng| {
        let first = BlockAddress::new(u16::try_from(prng.below(32)).expect("small"), prng.below(1 << 47));
        AddressRange { first, count: number(prng, (1 << 47) - 2) + 1 }
    });
    chains(&mut prng, |prng| {
        let root = loop {
            let root = reference(prng);
            if !root.is_hole() {
                break root;
            }
        };
        Subtree { root, levels: u8::try_from(prng.below(7)).expect("small") }
    });
}

fn offline(prng: &mut Prng) -> Offline {
    let root = loop {
        let root = reference(prng);
        if !root.is_hole() {
            break root;
        }
    };
    let start_bytes = number(prng, 1 << 30) * 128;
    let blocks = number(prng, u64::MAX);
    Offline {
        cause: *prng.pick(&[OfflineCause::Unreadable(blocks), OfflineCause::BeyondEnd, OfflineCause::Invalid]),
        lane: LaneIndex(u16::try_from(prng.below(16)).expect("small")),
        lsn: Lsn(number(prng, u64::MAX)),
        records: number(prng, u64::MAX - 1) + 1,
        start_bytes,
        end_bytes: start_bytes + 128 * prng.between(1, 1 << 30),
        held: TreeRoot { root, levels: u8::try_from(prng.between(1, 6)).expect("small") },
    }
}

fn reservation(prng: &mut Prng) -> Reservation {
    let mut hosts: Vec<[u8; 16]> = (0..number(prng, 128)).map(|_| [0; 16]).collect();
    hosts.iter_mut().for_each(|host| prng.fill(host));
    hosts.sort_unstable();
    hosts.dedup();
    let hosts = hosts.into_iter().filter_map(HostId::new);
    let registrants: Vec<Registrant> = hosts.map(|host| Registrant { host, key: prng.next_u64() }).collect();
    let kind = *prng.pick(&ReservationKind::ALL);
    let held = prng
        .chance(2, 3)
        .then(|| registrants.last())
        .flatten()
        .map(|last| Held { kind, holder: (!kind.is_of_all()).then_some(last.host) });
    Reservation {
        generation: u32::try_from(number(prng, 1 << 20)).expect("small"),
        persists: prng.chance(1, 2),
        held,
        registrants,
    }
}

#[test]
fn volumes_survive_the_round_trip() {
    let mut prng = Prng::new(6);
    for _ in 0..CASES {
        let volume = VolumeRecord {
            id: ObjectId(number(&mut prng, u64::MAX - 1) + 1),
            name: name(&mut prng),
            size_bytes: (number(&mut prng, (1 << 38) - 1) + 1) * 4096,
            block_size: *prng.pick(&BlockSize::ALL),
            levels: u8::try_from(prng.between(1, 6)).expect("small"),
            root: reference(&mut prng),
            allocated_blocks: number(&mut prng, u64::MAX),
            created_cp: CpNumber(number(&mut prng, u64::MAX)),
            created_ns: number(&mut prng, u64::MAX),
            offline: prng.chance(1, 2).then(|| offline(&mut prng)),
            reservation: Box::new(reservation(&mut prng)),
        };
        let record = ObjectRecord::volume(&volume);
        let again = ObjectRecord::read_from_bytes(record.as_bytes()).expect("256 bytes");
        let head = volume.reservation.head();
        assert_eq!(Reservation::read(&volume.reservation.to_bytes()), Ok((*volume.reservation).clone()));
        let without = VolumeRecord { reservation: Box::default(), ..volume };
        assert_eq!(again.verify(), Ok(Some(Object::Volume(Box::new(without), head))));
    }
}

#[test]
fn a_reference_refuses_every_flipped_bit_of_its_block_and_every_other_place() {
    let mut prng = Prng::new(7);
    let mut bytes: BlockBytes = [0; BLOCK_BYTES];
    prng.fill(&mut bytes);
    for block in [[0; BLOCK_BYTES], bytes] {
        let mut block = block;
        let (address, birth) = (BlockAddress::new(3, 99), CpNumber(5));
        let reference = BlockRef::new(address, birth, &block);
        for bit in 0..BLOCK_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(!reference.matches(&block), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(reference.matches(&block));
        // A misdirected or lost write: the same bytes, for another place or time.
        for other in 1..200 {
            assert_ne!(reference, BlockRef::new(BlockAddress::new(3, 99 + other), birth, &block));
            let moved = BlockRef::new(BlockAddress::new(3, 99 ^ other), birth, &block).as_bytes()[16..24].to_vec();
            let later = BlockRef::new(address, CpNumber(5 + other), &block).as_bytes()[16..24].to_vec();
            assert!(moved != reference.as_bytes()[16..24] && later != reference.as_bytes()[16..24], "{other}");
        }
    }
}

#[test]
fn requests_sizes_and_configurations_survive_the_round_trip() {
    let mut prng = Prng::new(8);
    for _ in 0..CASES {
        let size = ByteSize(number(&mut prng, u64::MAX));
        assert_eq!(size.to_string().parse(), Ok(size));
        let mut text = vec![0; small(prng.below(40))];
        prng.fill(&mut text);
        let name = String::from_utf8_lossy(&text).into_owned();
        let size_bytes = number(&mut prng, u64::MAX);
        for request in [
            AdminRequest::VolumeCreate { name: name.clone(), size_bytes, block_bytes: 4096 },
            AdminRequest::VolumeResize { name: name.clone(), size_bytes },
            AdminRequest::VolumeDelete { name: name.clone() },
            AdminRequest::VolumeOnline { name: name.clone(), accept_loss: prng.chance(1, 2) },
            AdminRequest::PoolGrow { device: name },
        ] {
            let line = serde_json::to_vec(&request).expect("plain data");
            assert!(!line.contains(&b'\n'));
            assert_eq!(serde_json::from_slice::<AdminRequest>(&line).expect("read back"), request);
        }
    }
    let read = |text: &str| config::parse(text, Path::new("node.toml"), Path::new("/data"));
    let base = read("name = \"a\"\n[log]\npath = \"log\"\n[pool]\nname = \"a\"\ndevices = [\"d\"]\n").expect("good");
    for _ in 0..300 {
        let reactors = prng.between(1, 4);
        let mut config: NodeConfig = base.clone();
        config.name = name(&mut prng);
        config.reactors.count = small(reactors);
        config.reactors.idle = *prng.pick(&[IdlePolicy::Adaptive, IdlePolicy::Busy]);
        config.memory.limit = ByteSize(prng.between(64 * reactors, 4096) << 20);
        config.log.backend = *prng.pick(&[LogBackend::File, LogBackend::Pmem]);
        config.log.size = ByteSize(prng.between(8 * reactors, 1 << 20) << 20);
        config.pool.devices = (0..prng.between(1, 32)).map(|at| format!("/d \"{at}\"\\é").into()).collect();
        config.nbd.tcp =
            (0..prng.below(3)).map(|port| ([127, 0, 0, 1], u16::try_from(port).expect("small")).into()).collect();
        assert_eq!(read(&config::to_text(&config)), Ok(config));
    }
}
