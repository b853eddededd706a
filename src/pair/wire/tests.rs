//! The codec: every message there and back, every flipped bit found, every bound held.

#![expect(clippy::indexing_slicing, reason = "a test that is out of bounds fails")]

use super::{hello::BYTES_MAX, *};
use crate::{
    base::{BlockSize, HostId, Incarnation, ObjectId, PairId, Pass, PortionId, Prng},
    changelog::PortionRole,
    format::reservation::Reservation,
    fs::reservation::{Notice, ReservationCommand},
    node::request::ReservationNotice,
    pair::decide::Word,
};

const POOL: PoolId = PoolId(0x77);
const EPOCH: Epoch = Epoch(5);
const PASS: Pass = Pass { epoch: EPOCH, number: 1 << 40 };

fn seal(tag: u64, sequence: u64) -> Seal {
    Seal { tag, sequence }
}

fn facts(number: u128) -> PoolFacts {
    PoolFacts {
        pool: PoolId(number),
        role: if number.is_multiple_of(2) { PortionRole::Own } else { PortionRole::Mirror },
        portion: PortionId(number << 64),
        ring_bytes: 8 << 20,
        unit_bytes: 4096,
        lane_count: 2,
    }
}

fn hello() -> Hello {
    Hello {
        role: Role::Listens,
        path: 1,
        features_required: 0,
        pair: PairId(3),
        configuration: 0xC0FF_EE00,
        incarnation: Incarnation(9 << 70),
        session: 4,
        connection: 11,
        challenge: [0xAB; 32],
        name: "node-b".to_owned(),
        partner: "ä".repeat(32),
        pools: (1..=8).map(facts).collect(),
    }
}

fn request(kind: RequestKind, length_bytes: u64) -> Message {
    let extents_max = if kind == RequestKind::BlockStatus { 7 } else { 0 };
    let (id, volume, offset_bytes) = (1 << 40, ObjectId(3), 513);
    let may_free = kind == RequestKind::WriteZeroes;
    let host = HostId::new([0xa5; 16]);
    let durable = true;
    let pass = kind.is_change().then_some(PASS);
    let request = Request { id, volume, host, pass, kind, durable, may_free, offset_bytes, length_bytes, extents_max };
    Message::Request(request)
}

fn reply(status: ReplyStatus, content: ReplyContent, detail: u64) -> Message {
    Message::Reply(Reply { id: 8, status, content, detail })
}

fn notices(first: u64, count: u64) -> Message {
    let notice = |number: u64| ReservationNotice {
        host: HostId::new([0x5a; 16]).expect("not zero"),
        volume: ObjectId(1 << 40 | number),
        notice: Notice::ALL[usize::try_from(number % 3).expect("small")],
    };
    Message::Notices(Notices { first, entries: (0..count).map(notice).collect() })
}

/// Messages of every kind, each with a payload that fits.
fn samples() -> Vec<(Message, Vec<u8>)> {
    let text = || "the log memory has failed: ENOSPC".to_owned();
    let lane = LaneIndex(15);
    let mut extents = Vec::new();
    write_extent_pair(&mut extents);
    let place = (LaneIndex(3), Lsn(77_056));
    let entry = |id| VolumeEntry {
        id: ObjectId(id),
        size_bytes: 1 << 30,
        block_size: if id % 3 == 0 { BlockSize::Bytes512 } else { BlockSize::Bytes4096 },
        offline: (id % 2 == 0).then_some(place),
        name: format!("vol-{id}"),
    };
    let empty = |message| (message, Vec::new());
    let mut all = vec![
        empty(Message::Hello(Box::new(hello()))),
        empty(Message::Hello(Box::new(Hello { pools: Vec::new(), role: Role::Connects, ..hello() }))),
        empty(Message::Proof([3; 32])),
        empty(Message::Welcome),
        empty(Message::Heartbeat(Heartbeat { sent_ns: 1, echo_ns: 2, held_ns: 3 })),
        empty(Message::PathClosed { path: 3, connection: u64::MAX }),
        empty(Message::Acknowledgement),
        empty(Message::MirrorBegin { lane, start: Lsn(4096) }),
        (Message::MirrorWrite { lane, start: Lsn(0), end: Lsn(8192) }, vec![1; 4096]),
        (Message::MirrorWrite { lane, start: Lsn(1 << 40), end: Lsn((1 << 40) + 128) }, vec![2; 128]),
        empty(Message::Volumes(Volumes { total_count: 9, first: 7, entries: vec![entry(1), entry(2)] })),
        (request(RequestKind::Write, 1000), vec![5; 1000]),
        (request(RequestKind::CompareAndWrite, 512), vec![6; 32 + 512]),
        empty(request(RequestKind::Flush, 0)),
        (request(RequestKind::Reserve, 0), write_command(ReservationCommand::Clear { key: 7 })),
        empty(request(RequestKind::Reservation, 0)),
        (reply(ReplyStatus::Done, ReplyContent::Bytes, 0), vec![4; 777]),
        (reply(ReplyStatus::Done, ReplyContent::Extents, 0), extents),
        (reply(ReplyStatus::Done, ReplyContent::Reservation, 0), Reservation::default().to_bytes()),
        (reply(ReplyStatus::Late, ReplyContent::Pass, 0), write_pass(PASS)),
        (reply(ReplyStatus::NoSpace, ReplyContent::Text, 0), text().into_bytes()),
        empty(reply(ReplyStatus::Unreadable, ReplyContent::Nothing, 12)),
        empty(reply(ReplyStatus::Done, ReplyContent::Zeroes, 4096)),
        empty(Message::Ask),
        empty(notices(1, 1)),
        empty(notices(u64::MAX - 2, 3)),
    ];
    let refusals = RefusalReason::ALL.map(|reason| Message::Refusal(Refusal { reason, text: text() }));
    let kinds = [RequestKind::Read, RequestKind::Discard, RequestKind::WriteZeroes, RequestKind::BlockStatus];
    let mirror = MirrorRefusalReason::ALL
        .map(|reason| Message::MirrorRefusal(MirrorRefusal { lane, reason, expected: Lsn(256), text: text() }));
    all.extend(refusals.into_iter().chain(mirror).map(empty));
    all.extend(kinds.map(|kind| empty(request(kind, 512))));
    for word in [Word::Standby, Word::Mirroring, Word::Starting, Word::Serving, Word::Leaving] {
        let state = |portion, expected| empty(Message::PoolState(PoolState { word, portion, expected }));
        all.push(state(None, Vec::new()));
        all.push(state(Some(PortionId(8)), vec![Some(Lsn(1 << 40)), None, Some(Lsn(0))]));
    }
    all
}

fn write_extent_pair(payload: &mut Vec<u8>) {
    write_extent(4096, true, payload);
    write_extent(1 << 40, false, payload);
}

fn acks(count: u16) -> Vec<Ack> {
    let ack = |index: u16| Ack {
        pool: PoolId(u128::from(index / 16) + 1),
        lane: LaneIndex(index % 16),
        epoch: EPOCH,
        durable: Lsn(128 * u64::from(index)),
        expected: Lsn(1 << 30),
    };
    (0..count).map(ack).collect()
}

fn encode(message: &Message, payload: &[u8], acks: &[Ack], mut seal: Seal) -> Vec<u8> {
    let (pool, epoch) = if message.kind().names_pool() { (POOL, EPOCH) } else { Default::default() };
    let mut bytes = Vec::new();
    // In two parts: where they are cut makes no difference.
    let (head, tail) = payload.split_at(payload.len() / 3);
    Outgoing { pool, epoch, acks, message }.write(&mut seal, &[head, tail], &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

fn decode(bytes: &[u8], seal: Seal) -> Result<Option<Frame<'_>>, FrameError> {
    SealedFrame::read(bytes, seal, FRAME_BYTES_MAX)?.map(SealedFrame::open).transpose()
}

#[test]
fn every_kind_is_there_and_back() {
    let samples = samples();
    for kind in Kind::ALL {
        assert!(samples.iter().any(|(message, _)| message.kind() == kind), "{kind:?} has no sample");
        assert_eq!(Kind::from_byte(kind as u8), Some(kind));
    }
    for (number, (message, payload)) in samples.iter().enumerate() {
        let acks = acks(u16::try_from(number % 5).expect("small"));
        let seal = seal(0x1234_5678_9ABC_DEF0, number as u64);
        let mut bytes = encode(message, payload, &acks, seal);
        let length = bytes.len();
        bytes.extend_from_slice(b"the next frame");
        let sealed = SealedFrame::read(&bytes, seal, FRAME_BYTES_MAX).expect("a frame").expect("a whole one");
        assert_eq!(sealed.frame_bytes(), length);
        let frame = sealed.open().expect("as it was written");
        assert_eq!((&frame.message, frame.payload, &frame.acks), (message, &payload[..], &acks));
        assert_eq!(
            (frame.pool == POOL, frame.epoch == EPOCH),
            (message.kind().names_pool(), message.kind().names_pool())
        );
    }
}

#[test]
fn a_frame_that_is_not_all_there_is_waited_for() {
    for (message, payload) in samples() {
        let bytes = encode(&message, &payload, &acks(2), Seal::default());
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], Seal::default()), Ok(None), "{length} bytes of {message:?}");
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for (message, payload) in samples() {
        let mut bytes = encode(&message, &payload, &acks(1), seal(7, 3));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            decode(&bytes, seal(7, 3)).expect_err("a bit of the frame was flipped");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_frame_belongs_to_its_place() {
    let bytes = encode(&Message::Welcome, &[], &[], seal(7, 3));
    assert!(decode(&bytes, seal(7, 3)).is_ok());
    assert_eq!(decode(&bytes, seal(7, 4)), Err(FrameError::OutOfOrder { expected: 4, found: 3 }));
    assert_eq!(decode(&bytes, seal(8, 3)), Err(FrameError::HeaderDamaged), "of another connection");
}

/// A frame with `change` made to its header or body and every checksum made right again: what a partner with a defect could send.
fn forged(message: &Message, payload: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = encode(message, payload, &acks(1), Seal::default());
    change(&mut bytes);
    reseal(&mut bytes);
    bytes
}

fn reseal(bytes: &mut [u8]) {
    let body = checksum(0, &bytes[HEADER_BYTES..]);
    bytes[48..56].copy_from_slice(&body.to_le_bytes());
    let header = checksum(0, &bytes[..HEADER_CHECKED_BYTES]);
    bytes[HEADER_CHECKED_BYTES..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
}

fn malformed(bytes: &[u8]) -> &'static str {
    match decode(bytes, Seal::default()) {
        Err(FrameError::Malformed(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// Where the fixed part of a forged frame's kind begins: behind one acknowledgement.
const FIXED: usize = HEADER_BYTES + mirror::ACK_BYTES;

#[test]
fn headers_that_cannot_be_are_refused() {
    let change = |at: usize, value: u8| forged(&Message::Welcome, &[], move |bytes| bytes[at] = value);
    assert_eq!(decode(&change(0, b'X'), Seal::default()), Err(FrameError::NotAFrame));
    assert_eq!(decode(b"GET", Seal::default()), Err(FrameError::NotAFrame), "told at the first wrong byte");
    assert_eq!(decode(b"TWL", Seal::default()), Ok(None));
    for version in [0, VERSION - 1, VERSION + 1] {
        assert_eq!(decode(&change(4, version), Seal::default()), Err(FrameError::OtherVersion(version)));
    }
    assert_eq!(decode(&change(5, 0), Seal::default()), Err(FrameError::UnknownKind(0)));
    assert_eq!(decode(&change(5, 17), Seal::default()), Err(FrameError::UnknownKind(17)));
    assert_eq!(malformed(&change(6, 65)), "too many acknowledgements");
    for reserved in [7, 12, 15] {
        assert_eq!(malformed(&change(reserved, 1)), "reserved bytes are not zero");
    }
    for named in [24, 39, 40] {
        assert_eq!(malformed(&change(named, 1)), "pool and epoch do not belong to its kind");
    }
    let begin = Message::MirrorBegin { lane: LaneIndex(0), start: Lsn(0) };
    assert_eq!(malformed(&forged(&begin, &[], |bytes| bytes[40] = 0)), "pool and epoch do not belong to its kind");
    // The length is judged before the body is there, by what the reader allows now.
    let long = forged(&Message::Welcome, &[], |bytes| bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes()));
    assert!(matches!(decode(&long, Seal::default()), Err(FrameError::TooLong { .. })));
    let write = encode(&samples()[8].0, &samples()[8].1, &[], Seal::default());
    let early = SealedFrame::read(&write[..HEADER_BYTES], Seal::default(), GREETING_BYTES_MAX);
    assert!(matches!(early, Err(FrameError::TooLong { max: GREETING_BYTES_MAX, .. })));
}

#[test]
fn acknowledgements_that_cannot_be_are_refused() {
    let change = |at: usize, value: u8| {
        malformed(&forged(&Message::Acknowledgement, &[], move |bytes| bytes[HEADER_BYTES + at] = value))
    };
    assert_eq!(change(24, 1), "a position at which no record can lie");
    assert_eq!(change(31, 0x80), "a position at which no record can lie");
    assert_eq!(change(16, 0), "an acknowledgement of no pool");
    assert_eq!(change(40, 16), "no node has so many lanes");
    assert_eq!(change(43, 1), "reserved bytes are not zero");
    let swapped = forged(&Message::Acknowledgement, &[], |bytes| {
        let (durable, expected) = (Lsn(256), Lsn(128));
        let mut body = Vec::new();
        Ack { durable, expected, ..acks(1)[0] }.write(&mut body);
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(&body);
    });
    assert_eq!(malformed(&swapped), "more is durable than has arrived");
}

#[test]
fn bodies_that_are_too_short_or_too_long_are_refused() {
    for (message, payload) in samples() {
        let takes_rest = !payload.is_empty() || matches!(message.kind(), Kind::Refusal | Kind::MirrorRefusal);
        if !takes_rest {
            let longer = forged(&message, &payload, |bytes| {
                bytes.push(0);
                let body = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
                bytes[8..12].copy_from_slice(&body.to_le_bytes());
            });
            malformed(&longer);
        }
        let length = encode(&message, &payload, &acks(1), Seal::default()).len();
        for cut in 0..(length - HEADER_BYTES).min(400) {
            let mut bytes = encode(&message, &payload, &acks(1), Seal::default());
            bytes.truncate(HEADER_BYTES + cut);
            bytes[8..12].copy_from_slice(&u32::try_from(cut).expect("short").to_le_bytes());
            reseal(&mut bytes);
            // A text, bytes of a read, or a batch can be shorter; nothing else can, and nothing panics.
            let result = decode(&bytes, Seal::default());
            assert!(result.is_err() || cut >= mirror::ACK_BYTES, "{cut} bytes of {message:?}");
        }
    }
}

#[test]
fn messages_that_cannot_be_meant_are_refused() {
    let sample = |wanted: Kind| samples().into_iter().find(|(message, _)| message.kind() == wanted).expect("a sample");
    let change = |kind: Kind, at: usize, value: u8| {
        let (message, payload) = sample(kind);
        malformed(&forged(&message, &payload, move |bytes| bytes[FIXED + at] = value))
    };
    assert_eq!(change(Kind::Hello, 0, 3), "a node connects or listens");
    assert_eq!(change(Kind::Hello, 2, 7), "another number of pools than it says");
    assert_eq!(change(Kind::Hello, 3, 65), "a name is too long");
    assert_eq!(change(Kind::Hello, 3, 0), "bytes behind a name");
    assert_eq!(change(Kind::Hello, 104, 7), "a name cannot be shown");
    assert_eq!(change(Kind::Hello, 104, 0xFF), "a name cannot be shown");
    assert_eq!(change(Kind::Hello, 5, 1), "reserved bytes are not zero");
    assert_eq!(change(Kind::Hello, 232 + 44, 17), "no portion has so many lanes");
    assert_eq!(change(Kind::Hello, 232 + 46, 3), "a portion is the node's own or a mirror");
    assert_eq!(change(Kind::Refusal, 0, 0), "an unknown reason");
    assert_eq!(change(Kind::Refusal, 8, 0x1B), "a text cannot be shown");
    assert_eq!(change(Kind::PathClosed, 9, 1), "reserved bytes are not zero");
    assert_eq!(change(Kind::MirrorBegin, 0, 1), "a position at which no record can lie");
    assert_eq!(change(Kind::MirrorBegin, 8, 16), "no node has so many lanes");
    assert_eq!(change(Kind::MirrorWrite, 9, 0), "a batch that does not fit its place");
    assert_eq!(change(Kind::MirrorRefusal, 10, 9), "an unknown reason");
    assert_eq!(change(Kind::PoolState, 16, 0), "an unknown word about a pool");
    assert_eq!(change(Kind::PoolState, 16, 6), "an unknown word about a pool");
    assert_eq!(change(Kind::PoolState, 17, 1), "another number of lanes than it says");
    assert_eq!(change(Kind::PoolState, 18, 1), "reserved bytes are not zero");
    assert_eq!(change(Kind::Volumes, 4, 8), "more volumes than there are");
    assert_eq!(change(Kind::Volumes, 8 + 15, 0x80), "a volume that cannot be");
    assert_eq!(change(Kind::Request, 32, 11), "an unknown request");
    assert_eq!(change(Kind::Request, 34, 4), "an unknown flag of a request");
    assert_eq!(change(Kind::Request, 34, 2), "a flag of another request");
    assert_eq!(change(Kind::Request, 24, 0), "a payload that is not the request's");
    assert_eq!(change(Kind::Request, 23, 0x80), "a request beyond any volume");
    assert_eq!(change(Kind::Request, 36, 1), "extents of another request, or none");
    assert_eq!(change(Kind::Reply, 16, 15), "an unknown kind of reply");
    assert_eq!(change(Kind::Reply, 16, 1), "a payload that is not the reply's");
    assert_eq!(change(Kind::Reply, 8, 1), "a detail that is not the reply's");
    assert_eq!(change(Kind::Notices, 0, 0), "notices have numbers from 1");
    assert_eq!(change(Kind::Notices, 8 + 24, 0), "a notice of nothing, or to nobody");
    assert_eq!(change(Kind::Notices, 8 + 24, 4), "a notice of nothing, or to nobody");
    assert_eq!(change(Kind::Notices, 8 + 25, 1), "reserved bytes are not zero");
    let nobody = forged(&notices(1, 1), &[], |bytes| bytes[FIXED + 16..FIXED + 32].fill(0));
    assert_eq!(malformed(&nobody), "a notice of nothing, or to nobody");
    let beyond = forged(&notices(1, 2), &[], |bytes| bytes[FIXED..FIXED + 8].fill(0xFF));
    assert_eq!(malformed(&beyond), "notices have numbers from 1");
}

#[test]
fn passes_that_cannot_be_meant_are_refused() {
    let write = (request(RequestKind::Write, 1000), vec![5; 1000]);
    let half = forged(&write.0, &write.1, |bytes| bytes[FIXED + 64..FIXED + 72].fill(0));
    assert_eq!(malformed(&half), "half a pass");
    let nobody = forged(&write.0, &write.1, |bytes| bytes[FIXED + 40..FIXED + 56].fill(0));
    assert_eq!(malformed(&nobody), "a pass of another request");
    let none = forged(&write.0, &write.1, |bytes| bytes[FIXED + 56..FIXED + 72].fill(0));
    let read = forged(&request(RequestKind::Read, 512), &[], |bytes| bytes[FIXED + 64] = 1);
    assert_eq!((decode(&none, Seal::default()).err(), malformed(&read)), (None, "a pass of another request"));
    let late =
        |status, content, payload: &[u8]| malformed(&encode(&reply(status, content, 0), payload, &[], Seal::default()));
    let (pass, other) = (write_pass(PASS), "a pass of another reply, or none");
    assert_eq!(late(ReplyStatus::Done, ReplyContent::Pass, &pass), other);
    assert_eq!(late(ReplyStatus::NoSpace, ReplyContent::Pass, &pass), other);
    assert_eq!(late(ReplyStatus::Late, ReplyContent::Nothing, &[]), other);
    for payload in [&pass[..15], &[0; 16], &[pass.as_slice(), &[0]].concat()] {
        assert_eq!(late(ReplyStatus::Late, ReplyContent::Pass, payload), "a payload that is not the reply's");
    }
}

#[test]
fn every_bound_can_be_reached_and_not_passed() {
    let largest = vec![7; PAYLOAD_BYTES_MAX];
    let end = Lsn(PAYLOAD_BYTES_MAX as u64);
    let write = Message::MirrorWrite { lane: LaneIndex(0), start: Lsn(0), end };
    let bytes = encode(&write, &largest, &acks(64), Seal::default());
    assert!(bytes.len() <= FRAME_BYTES_MAX);
    assert_eq!(decode(&bytes, Seal::default()).expect("a frame").expect("whole").payload, largest);
    let length = PAYLOAD_BYTES_MAX as u64;
    assert!(decode(&encode(&request(RequestKind::Read, length), &[], &[], Seal::default()), Seal::default()).is_ok());
    assert_eq!(
        malformed(&encode(&request(RequestKind::Read, length + 1), &[], &[], Seal::default())),
        "a request that is forwarded in parts"
    );
    let compared = |bytes: u64| {
        let payload = vec![6; usize::try_from(32 + bytes).expect("short")];
        encode(&request(RequestKind::CompareAndWrite, bytes), &payload, &[], Seal::default())
    };
    assert!(decode(&compared(4096 - 513), Seal::default()).is_ok());
    assert_eq!(malformed(&compared(4096 - 512)), "more bytes than are compared at once");
    assert!(
        decode(&encode(&request(RequestKind::Discard, 1 << 49), &[], &[], Seal::default()), Seal::default()).is_ok()
    );
    let offline = Some((LaneIndex(15), Lsn(4096)));
    let entry = VolumeEntry {
        id: ObjectId(1),
        size_bytes: 1 << 50,
        block_size: BlockSize::Bytes512,
        offline,
        name: "n".repeat(64),
    };
    let count = u32::try_from(VOLUMES_PER_FRAME_MAX).expect("small");
    let entries = vec![entry; VOLUMES_PER_FRAME_MAX];
    let volumes = Message::Volumes(Volumes { total_count: count, first: 0, entries });
    assert!(decode(&encode(&volumes, &[], &[], Seal::default()), Seal::default()).is_ok());
    let most = NOTICES_PER_FRAME_MAX as u64;
    let bytes = encode(&notices(u64::MAX - most + 1, most), &[], &[], Seal::default());
    assert!(decode(&bytes, Seal::default()).is_ok());
    let sized = |bytes: &mut Vec<u8>| {
        let body = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
        bytes[8..12].copy_from_slice(&body.to_le_bytes());
    };
    let more = forged(&notices(1, most), &[], |bytes| {
        bytes.extend_from_within(FIXED + 8..FIXED + 40);
        sized(bytes);
    });
    assert_eq!(malformed(&more), "no notices, or too many for a frame");
    let none = forged(&notices(1, 1), &[], |bytes| {
        bytes.truncate(FIXED + 8);
        sized(bytes);
    });
    assert_eq!(malformed(&none), "no notices, or too many for a frame");
    let mut extents = Vec::new();
    (0..EXTENTS_MAX).for_each(|index| write_extent(1, index % 2 == 0, &mut extents));
    assert!(extents_of_count(&extents) == Some(EXTENTS_MAX));
    write_extent(1, true, &mut extents);
    assert_eq!(extents_of_count(&extents), None);
    let state = |lanes| PoolState { word: Word::Mirroring, portion: None, expected: vec![Some(Lsn(128)); lanes] };
    let most = encode(&Message::PoolState(state(LANES_MAX)), &[], &[], Seal::default());
    assert!(decode(&most, Seal::default()).is_ok());
    let more = forged(&Message::PoolState(state(LANES_MAX)), &[], |bytes| {
        bytes[FIXED + 17] += 1;
        bytes.extend_from_slice(&[0; 8]);
        let body = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
        bytes[8..12].copy_from_slice(&body.to_le_bytes());
    });
    assert_eq!(malformed(&more), "no portion has so many lanes");
    let hello = encode(&Message::Hello(Box::new(hello())), &[], &[], Seal::default());
    assert_eq!(hello.len(), HEADER_BYTES + BYTES_MAX);
}

fn extents_of_count(payload: &[u8]) -> Option<usize> {
    extents_of(payload).map(Iterator::count)
}

#[test]
#[should_panic(expected = "a payload of")]
fn a_payload_that_is_too_long_is_not_written() {
    encode(&samples()[8].0, &vec![0; PAYLOAD_BYTES_MAX + 1], &[], Seal::default());
}

#[test]
#[should_panic(expected = "65 acknowledgements")]
fn too_many_acknowledgements_are_not_written() {
    encode(&Message::Acknowledgement, &[], &acks(65), Seal::default());
}

#[test]
fn texts_are_written_so_that_they_are_read() {
    for text in ["x".repeat(1000), "ü".repeat(129), "two\nlines\u{1b}[31m".to_owned(), String::new()] {
        let refusal = Message::Refusal(Refusal { reason: RefusalReason::Key, text });
        let bytes = encode(&refusal, &[], &[], Seal::default());
        let frame = decode(&bytes, Seal::default()).expect("a frame").expect("whole");
        let Message::Refusal(read) = frame.message else { panic!("a refusal") };
        assert!(read.text.len() <= TEXT_BYTES_MAX && !read.text.contains(char::is_control));
    }
}

#[test]
fn arbitrary_bytes_are_no_frame() {
    let mut prng = Prng::new(1);
    for _ in 0..20_000 {
        let mut bytes = vec![0; usize::try_from(prng.below(300)).expect("small")];
        prng.fill(&mut bytes);
        if prng.chance(1, 2) && bytes.len() >= HEADER_BYTES {
            let (kind, acks) = (bytes[5] % 19, bytes[6] % 3);
            bytes[..8].copy_from_slice(&[b'T', b'W', b'L', b'F', VERSION, kind, acks, 0]);
            let body = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
            bytes[8..12].copy_from_slice(&body.to_le_bytes());
            bytes[12..24].fill(0);
            reseal(&mut bytes);
        }
        let _ = decode(&bytes, Seal::default());
    }
}
