//! Formats do not change by accident: what each version wrote lies in `tests/golden`, is read as it was meant, and is what the
//! program writes today. A new version adds a file and leaves the old ones.
//!
//! `cargo test --test format_golden -- --ignored` writes the files of the current versions anew.

use std::{fs, path::PathBuf};
use twinlog::{
    base::{
        BlockAddress, BlockSize, CpNumber, Epoch, ForwardedChanges, HostId, Incarnation, LaneIndex, Lsn, ObjectId,
        PairId, PoolId, PortionId,
    },
    changelog::{
        Draft, EndReason, FLAG_BLOCKS_512, FLAG_KEEP_ALLOCATED, Format, Lane, LaneHeader, LaneIdentity, OwnedRecord,
        PortionRole, RecordKind, Scan, ScanEnd, ScanStart, ScanStep,
    },
    format::{
        chain::{AddressRange, Subtree, decode_chain_block, encode_chain_block},
        object::{Joining, Object, ObjectRecord, Offline, OfflineCause, VolumeRecord, records, records_mut},
        reference::{BlockRef, node, node_mut},
        register::{
            Beat, HEADER_BLOCK, MAILBOX_BLOCKS, MailboxHeader, MirrorState, NodeIndex, Register, Side, register_blocks,
        },
        reservation::{Held, Registrant, Reservation, ReservationKind},
        superblock::{PoolDevice, Superblock, TreeRoot},
    },
};
use twinlog_device::{BLOCK_BYTES, BlockBytes, Nanos};
use twinlog_sim::{Agenda, LogMedium, LogShape, SimLog, SimWorld};

const LANE: LaneIdentity = LaneIdentity {
    pool: PoolId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
    role: PortionRole::Own,
    lane: LaneIndex(1),
    lane_count: 2,
};

const PORTION: PortionId = PortionId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);

/// Position at which the lane of the file begins, near the end of its ring, so that a pad to the end is in it.
const LANE_HEAD: Lsn = Lsn(4 * 16384 - 4096);

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn lane_shape() -> LogShape {
    LogShape { unit_bytes: 512, ..LogShape::pmem(4096 + 16384) }
}

fn open(medium: &LogMedium) -> SimLog {
    medium.open(&Agenda::new(&medium.world()))
}

/// A change of every kind, with its payload.
fn changes() -> Vec<(Draft, Vec<u8>)> {
    let draft = |kind, offset_bytes, argument| Draft {
        kind,
        object: ObjectId(0x0102_0304_0506_0708),
        offset_bytes,
        argument,
        flags: 0,
        time_ns: 1_750_000_000_000_000_001,
        request_id: 0x1112_1314_1516_1718,
    };
    let zeroes = Draft { flags: FLAG_KEEP_ALLOCATED, ..draft(RecordKind::WriteZeroes, 5, 7) };
    vec![
        (draft(RecordKind::Create, 0, 1 << 40), b"vol-a".to_vec()),
        (draft(RecordKind::Write, 0x00aa_bbcc_ddee, 0), (0..200).collect()),
        (draft(RecordKind::Discard, 4096, 8192), vec![]),
        (zeroes, vec![]),
        (draft(RecordKind::Resize, 0, 4096), vec![]),
        (draft(RecordKind::Block, 12_288, 0), (0..=255).cycle().take(4096).collect()),
        (draft(RecordKind::Delete, 0, 0), vec![]),
    ]
}

/// A reservation of 12 registrants: two records of the object table.
fn reservation() -> Reservation {
    let host = |number: u8| HostId::new([number; 16]).expect("not zero");
    let registrants =
        (1..=12).map(|number| Registrant { host: host(number), key: 0x0102_0304_0506_0700 | u64::from(number) });
    let held = Some(Held { kind: ReservationKind::WriteExclusiveRegistrants, holder: Some(host(11)) });
    Reservation { generation: 0x0a0b_0c0d, persists: true, held, registrants: registrants.collect() }
}

/// The same as a change of the log.
fn reserve() -> Vec<(Draft, Vec<u8>)> {
    let [.., (delete, _)] = &changes()[..] else { panic!("a change of every kind") };
    vec![(Draft { kind: RecordKind::Reserve, ..*delete }, reservation().to_bytes())]
}

/// What today's program writes.
fn write_lane(changes: Vec<(Draft, Vec<u8>)>) -> Vec<u8> {
    let medium = LogMedium::new(&SimWorld::new(1), "golden", lane_shape());
    let mut format = Format::new(open(&medium), &LANE, PORTION);
    assert_eq!(format.poll(), Ok(true));
    let mut lane = Lane::open_at(format.into_log(), LANE, Epoch(5), LANE_HEAD);
    for (draft, payload) in changes {
        lane.append(&draft, &[&payload]);
        lane.poll(Nanos(1)).expect("no fault");
        lane.poll(Nanos(1)).expect("no fault");
    }
    lane.poll(lane.next_deadline().expect("a mark is due")).expect("no fault");
    medium.image()
}

fn scan_lane(image: &[u8]) -> (Vec<OwnedRecord>, ScanEnd) {
    let medium = LogMedium::new(&SimWorld::new(1), "golden", lane_shape());
    medium.restore(image);
    let mut scan = Scan::new(open(&medium), ScanStart { identity: LANE, applied: LANE_HEAD, epoch_min: Epoch(5) });
    let mut records = Vec::new();
    for _ in 0..1000 {
        match scan.poll().expect("a golden file is whole") {
            ScanStep::Pending => {}
            ScanStep::Record(record) => records.push(record),
            ScanStep::End(end) => return (records, end),
        }
    }
    panic!("a scan ends");
}

fn judge_lane(image: &[u8], portion: PortionId, changes: &[(Draft, Vec<u8>)]) {
    let header = LaneHeader::read(&image[..4096], image.len() as u64).expect("a golden file is whole");
    assert_eq!((header.identity, header.portion), (LANE, portion));
    let (records, end) = scan_lane(image);
    assert_eq!((end.reason, end.hole, end.epoch), (EndReason::Clean, None, Epoch(5)));
    assert_eq!(records.len(), changes.len());
    for (record, (draft, payload)) in records.iter().zip(changes) {
        assert_eq!((record.draft, &record.payload), (*draft, payload));
    }
    let spans_two_laps = records.iter().any(|record| record.lsn.0 == 4 * 16384);
    assert!(records[0].lsn == LANE_HEAD && (spans_two_laps || changes.len() == 1));
}

/// Lanes had no portion id.
#[test]
fn lane_version_1() {
    let image = fs::read(golden("lane-1.bin")).expect("the file is part of the repository");
    judge_lane(&image, PortionId(0), &changes());
    assert!(image[4096..] == write_lane(changes())[4096..], "the format of records changed: it needs a new version");
}

#[test]
fn lane_version_2() {
    let image = fs::read(golden("lane-2.bin")).expect("the file is part of the repository");
    judge_lane(&image, PORTION, &changes());
    let written = write_lane(changes());
    let differs = written.iter().zip(&image).position(|(new, old)| new != old);
    assert_eq!((differs, written.len()), (None, image.len()), "the format changed: it needs a new version");
}

#[test]
fn lane_version_2_with_a_reservation() {
    let image = fs::read(golden("lane-2-reserve.bin")).expect("the file is part of the repository");
    judge_lane(&image, PORTION, &reserve());
    assert!(write_lane(reserve()) == image, "the format changed: it needs a new version");
}

/// A block of the object table with a volume in blocks of 512 bytes beside one of before there was a choice.
fn write_fine() -> Vec<u8> {
    let mut block = [0; BLOCK_BYTES];
    for (slot, volume) in records_mut(&mut block).iter_mut().zip(fine()) {
        *slot = ObjectRecord::volume(&volume);
    }
    block.to_vec()
}

fn fine() -> [VolumeRecord; 2] {
    [volume(), VolumeRecord { id: ObjectId(9), name: "vol-f".to_owned(), block_size: BlockSize::Bytes512, ..volume() }]
}

#[test]
fn pool_version_1_with_blocks_of_512_bytes() {
    let image = fs::read(golden("pool-1-512.bin")).expect("the file is part of the repository");
    let block: &BlockBytes = image.first_chunk().expect("a block");
    for (slot, volume) in records(block).iter().zip(fine()) {
        assert_eq!(slot.verify(), Ok(Some(object(volume))));
    }
    assert_eq!(write_fine(), image);
}

/// The record that makes such a volume.
fn make_fine() -> Vec<(Draft, Vec<u8>)> {
    let plain = changes().into_iter().find(|(draft, _)| draft.kind == RecordKind::Create);
    let (draft, name) = plain.expect("one is made there");
    vec![(Draft { flags: FLAG_BLOCKS_512, ..draft }, name)]
}

#[test]
fn lane_version_2_with_blocks_of_512_bytes() {
    let image = fs::read(golden("lane-2-512.bin")).expect("the file is part of the repository");
    judge_lane(&image, PORTION, &make_fine());
    assert_eq!(write_lane(make_fine()), image);
}

/// A superblock of a pool with a reservation, and the volume's records in the object table.
fn write_reserved() -> Vec<u8> {
    let mut image = Superblock { has_reservations: true, ..superblock() }.encode(1, 1).to_vec();
    let mut block = [0; BLOCK_BYTES];
    let volume = VolumeRecord { reservation: Box::new(reservation()), ..volume() };
    let slots = records_mut(&mut block);
    slots[9] = ObjectRecord::volume(&volume);
    (slots[2], slots[12]) = (ObjectRecord::registrants(&volume, 1), ObjectRecord::registrants(&volume, 0));
    image.extend_from_slice(&block);
    image
}

#[test]
fn pool_version_1_with_a_reservation() {
    let image = fs::read(golden("pool-1-reserved.bin")).expect("the file is part of the repository");
    let blocks: Vec<BlockBytes> =
        image.chunks(BLOCK_BYTES).map(|block| block.try_into().expect("whole blocks")).collect();
    assert_eq!(Superblock::verify(&blocks[0], 1), Ok((Superblock { has_reservations: true, ..superblock() }, 1)));
    let mut joining = Joining::default();
    for object in records(&blocks[1]).iter().filter_map(|record| record.verify().expect("well formed")) {
        match object {
            Object::Volume(found, head) => {
                assert_eq!(*found, volume());
                joining.head(found.id, head);
            }
            Object::Registrants { volume, part, registrants } => {
                joining.part(volume, part, registrants).expect("each part once");
            }
        }
    }
    let found = joining.finish().expect("whole");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(volume().id, reservation())]);
    assert!(write_reserved() == image, "the format changed: it needs a new version");
}

/// A volume's object in the table, without a reservation.
fn object(volume: VolumeRecord) -> Object {
    let head = Reservation::default().head();
    Object::Volume(Box::new(volume), head)
}

const POOL: PoolId = PoolId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

fn reference(block: u64) -> BlockRef {
    let bytes = [u8::try_from(block % 251).expect("small"); BLOCK_BYTES];
    BlockRef::new(BlockAddress::new(1, block), CpNumber(7), &bytes).with_aux(0x0a0b_0c0d)
}

fn superblock() -> Superblock {
    Superblock {
        pool: POOL,
        name: "golden".to_owned(),
        cp: CpNumber(0x0102),
        epoch: Epoch(3),
        time_ns: 1_750_000_000_000_000_001,
        next_object: ObjectId(9),
        free_blocks: 0x1000,
        deferred_blocks: 0x20,
        object_table: TreeRoot { root: reference(100), levels: 1 },
        space_map: TreeRoot { root: reference(101), levels: 2 },
        freed: reference(102),
        reap: BlockRef::default(),
        applied: vec![Lsn(128), Lsn(1 << 40)],
        forwarded: vec![ForwardedChanges::none(2); 2],
        has_offline: false,
        has_reservations: false,
        devices: vec![
            PoolDevice { id: 5, block_count: 4096, plex: 0 },
            PoolDevice { id: 1 << 100, block_count: 1 << 30, plex: 1 },
        ],
    }
}

fn volume() -> VolumeRecord {
    VolumeRecord {
        id: ObjectId(8),
        name: "vol-a".to_owned(),
        size_bytes: 1 << 40,
        block_size: BlockSize::Bytes4096,
        levels: 4,
        root: reference(103),
        allocated_blocks: 77,
        created_cp: CpNumber(6),
        created_ns: 1_750_000_000_000_000_002,
        offline: None,
        reservation: Box::default(),
    }
}

/// One for each cause.
fn offline_volumes() -> [VolumeRecord; 3] {
    [OfflineCause::Unreadable(0x0708_090a), OfflineCause::BeyondEnd, OfflineCause::Invalid].map(|cause| VolumeRecord {
        offline: Some(Offline {
            cause,
            lane: LaneIndex(3),
            lsn: Lsn(0x1_0203_0480),
            records: 0x0b0c,
            start_bytes: 0x1080,
            end_bytes: 0x0d_0e00,
            held: TreeRoot { root: reference(107), levels: 2 },
        }),
        ..volume()
    })
}

/// A superblock of a pool with volumes that are offline, and their records in the object table.
fn write_offline() -> Vec<u8> {
    let mut image = Superblock { has_offline: true, ..superblock() }.encode(1, 1).to_vec();
    let mut block = [0; BLOCK_BYTES];
    for (slot, volume) in records_mut(&mut block).iter_mut().zip(&offline_volumes()) {
        *slot = ObjectRecord::volume(volume);
    }
    image.extend_from_slice(&block);
    image
}

#[test]
fn pool_version_1_with_offline_volumes() {
    let image = fs::read(golden("pool-1-offline.bin")).expect("the file is part of the repository");
    let blocks: Vec<BlockBytes> =
        image.chunks(BLOCK_BYTES).map(|block| block.try_into().expect("whole blocks")).collect();
    assert_eq!(Superblock::verify(&blocks[0], 1), Ok((Superblock { has_offline: true, ..superblock() }, 1)));
    let found = records(&blocks[1]).iter().map_while(|record| record.verify().expect("well formed"));
    assert_eq!(found.collect::<Vec<_>>(), offline_volumes().map(object));
    assert!(write_offline() == image, "the format changed: it needs a new version");
}

fn ranges() -> Vec<AddressRange> {
    vec![
        AddressRange { first: BlockAddress::new(0, 20), count: 3 },
        AddressRange { first: BlockAddress::new(1, 16), count: 1 },
    ]
}

/// Blocks of every kind that a pool has, one after the other: superblock, node, object table, freed list, reap list.
fn write_pool() -> Vec<u8> {
    let mut image = superblock().encode(1, 1).to_vec();
    let mut block = [0; BLOCK_BYTES];
    node_mut(&mut block)[127] = reference(104);
    image.extend_from_slice(&block);
    let mut block = [0; BLOCK_BYTES];
    records_mut(&mut block)[3] = ObjectRecord::volume(&volume());
    image.extend_from_slice(&block);
    encode_chain_block(&mut block, &ranges(), reference(105));
    image.extend_from_slice(&block);
    encode_chain_block(&mut block, &[Subtree { root: reference(106), levels: 2 }], BlockRef::default());
    image.extend_from_slice(&block);
    image
}

#[test]
fn pool_version_1() {
    let image = fs::read(golden("pool-1.bin")).expect("the file is part of the repository");
    let blocks: Vec<BlockBytes> =
        image.chunks(BLOCK_BYTES).map(|block| block.try_into().expect("whole blocks")).collect();
    assert_eq!(Superblock::verify(&blocks[0], 1), Ok((superblock(), 1)));
    assert_eq!(node(&blocks[1])[127], reference(104));
    assert!(node(&blocks[1])[..127].iter().all(BlockRef::is_hole));
    assert_eq!(records(&blocks[2])[3].verify(), Ok(Some(object(volume()))));
    assert_eq!(records(&blocks[2])[4].verify(), Ok(None));
    assert_eq!(decode_chain_block(&blocks[3]), Ok((ranges(), reference(105))));
    let subtrees = vec![Subtree { root: reference(106), levels: 2 }];
    assert_eq!(decode_chain_block(&blocks[4]), Ok((subtrees, BlockRef::default())));
    assert!(write_pool() == image, "the format changed: it needs a new version");
}

const PAIR: PairId = PairId(0x8899_aabb_ccdd_eeff_0011_2233_4455_6677);

fn mailbox_header() -> MailboxHeader {
    MailboxHeader { pair: PAIR, nodes: ["a".to_owned(), "b".to_owned()] }
}

fn beats() -> [Beat; 2] {
    let first = Beat {
        node: NodeIndex::First,
        incarnation: Incarnation(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        count: 0x1112_1314,
        fences: None,
        time_ns: 1_750_000_000_000_000_003,
    };
    let incarnation = Incarnation(0x2122_2324_2526_2728_292a_2b2c_2d2e_2f30);
    [first, Beat { node: NodeIndex::Second, incarnation, fences: Some(first.incarnation), ..first }]
}

/// Two generations of one register.
fn registers() -> [Register; 2] {
    let in_sync = Register {
        pool: POOL,
        generation: 0x0506,
        epoch: Epoch(0x0507),
        owner: Side::Home,
        portion: PortionId(0x3132_3334_3536_3738_393a_3b3c_3d3e_3f40),
        mirror: MirrorState::InSync(PortionId(0x4142_4344_4546_4748_494a_4b4c_4d4e_4f50)),
        kept: false,
        changed_ns: 1_750_000_000_000_000_004,
    };
    let (generation, epoch) = (in_sync.generation + 1, Epoch(in_sync.epoch.0 + 1));
    [in_sync, Register { generation, epoch, owner: Side::Away, mirror: MirrorState::Stale, ..in_sync }]
}

/// The register of the file, neither the first nor the last.
const REGISTER: usize = 1;

fn write_mailbox() -> Vec<u8> {
    let mut image = vec![0; usize::try_from(MAILBOX_BLOCKS).expect("small") * BLOCK_BYTES];
    let mut put = |block: u64, bytes: BlockBytes| {
        let start = usize::try_from(block).expect("small") * BLOCK_BYTES;
        image[start..start + BLOCK_BYTES].copy_from_slice(&bytes);
    };
    put(HEADER_BLOCK, mailbox_header().encode());
    beats().iter().for_each(|beat| put(beat.node.beat_block(), beat.encode(PAIR)));
    registers().iter().for_each(|register| put(register.block(REGISTER), register.encode(PAIR, REGISTER)));
    image
}

#[test]
fn mailbox_version_1() {
    let image = fs::read(golden("mailbox-1.bin")).expect("the file is part of the repository");
    let blocks: Vec<BlockBytes> =
        image.chunks(BLOCK_BYTES).map(|block| block.try_into().expect("whole blocks")).collect();
    assert_eq!(MailboxHeader::verify(&blocks[0], Some(PAIR)), Ok(mailbox_header()));
    assert_eq!(Beat::verify(&blocks[1], PAIR, NodeIndex::First), Ok(Some(beats()[0])));
    assert_eq!(Beat::verify(&blocks[2], PAIR, NodeIndex::Second), Ok(Some(beats()[1])));
    let [even, odd] = register_blocks(REGISTER);
    assert_eq!((even, odd), (6, 7));
    assert_eq!(Register::newest(&[blocks[6], blocks[7]], PAIR, REGISTER), Ok(Some(registers()[1])));
    assert_eq!(Register::verify(&blocks[6], PAIR, even), Ok(Some(registers()[0])));
    assert_eq!(Register::newest(&[blocks[4], blocks[5]], PAIR, 0), Ok(None));
    assert!(write_mailbox() == image, "the format changed: it needs a new version");
}

#[test]
#[ignore = "writes the golden files of the current versions"]
fn write_golden_files() {
    fs::write(golden("lane-2.bin"), write_lane(changes())).expect("the repository can be written");
    fs::write(golden("lane-2-reserve.bin"), write_lane(reserve())).expect("the repository can be written");
    fs::write(golden("pool-1.bin"), write_pool()).expect("the repository can be written");
    fs::write(golden("pool-1-offline.bin"), write_offline()).expect("the repository can be written");
    fs::write(golden("lane-2-512.bin"), write_lane(make_fine())).expect("the repository can be written");
    fs::write(golden("pool-1-512.bin"), write_fine()).expect("the repository can be written");
    fs::write(golden("pool-1-reserved.bin"), write_reserved()).expect("the repository can be written");
    fs::write(golden("mailbox-1.bin"), write_mailbox()).expect("the repository can be written");
}
