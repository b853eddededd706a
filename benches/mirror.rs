//! What mirroring costs beyond the log itself: batches of an owner's lane as frames of the interconnect, through two links and a network in
//! memory, into the mirror lane at the other node, and the acknowledgements back.
//!
//! The network takes no time and its copies are those of the kernel on a real one, so the figures are what a processor spends.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{cell::RefCell, ops::Range, rc::Rc};
use twinlog::{
    base::{Epoch, Incarnation, LaneIndex, Lsn, ObjectId, PairId, PoolId, PortionId, Prng},
    changelog::{Draft, Format, Lane, LaneIdentity, MirrorItem, PortionRole, RecordKind},
    pair::{
        auth::PairKey,
        interconnect::{Event, Interconnect, Message},
        link::{Link, LinkConfig, Timing},
        mirror::MirrorPortion,
        way::LinkWay,
        wire::PoolFacts,
    },
};
use twinlog_device::{
    Accepted, ConnectionFailure, ConnectionId, ConnectionState, Nanos, NetAddress, Network, SharedBlock,
};
use twinlog_tls::TlsNetwork;
use twinlog_uring::{MemoryLog, MemoryRegion};

const POOL: PoolId = PoolId(1);
const EPOCH: Epoch = Epoch(1);
const LANE: LaneIndex = LaneIndex(0);
const RING_BYTES: u64 = 64 << 20;

/// What both ends of the one connection have sent.
#[derive(Default)]
struct Cable {
    sent: [Vec<u8>; 2],
    is_connected: bool,
    waits: bool,
}

/// One end of it.
struct End {
    cable: Rc<RefCell<Cable>>,
    index: usize,
    input: Vec<u8>,
    consumed: usize,
}

const CONNECTION: ConnectionId = ConnectionId(1);

impl End {
    fn pair() -> [Self; 2] {
        let cable = Rc::<RefCell<Cable>>::default();
        [0, 1].map(|index| Self { cable: cable.clone(), index, input: Vec::new(), consumed: 0 })
    }
}

impl Network for End {
    fn accept(&mut self) -> Option<Accepted> {
        let mut cable = self.cable.borrow_mut();
        (self.index == 1 && std::mem::take(&mut cable.waits)).then(|| Accepted {
            connection: CONNECTION,
            listener: 0,
            peer: "a".to_owned(),
        })
    }

    fn connect(&mut self, _: &NetAddress) -> ConnectionId {
        let mut cable = self.cable.borrow_mut();
        assert!(!cable.is_connected, "nothing breaks here");
        (cable.is_connected, cable.waits) = (true, true);
        CONNECTION
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        let sent = &mut self.cable.borrow_mut().sent[1 - self.index];
        if !sent.is_empty() {
            self.input.drain(..self.consumed);
            self.consumed = 0;
            self.input.append(sent);
            ready.push(CONNECTION);
        }
    }

    fn state(&self, _: ConnectionId) -> ConnectionState {
        ConnectionState::Open
    }

    fn failure(&self, _: ConnectionId) -> Option<ConnectionFailure> {
        None
    }

    fn input(&self, _: ConnectionId) -> &[u8] {
        &self.input[self.consumed..]
    }

    fn widen_input(&mut self, _: ConnectionId, _: usize) {}

    fn consume(&mut self, _: ConnectionId, count_bytes: usize) {
        self.consumed += count_bytes;
    }

    fn send(&mut self, _: ConnectionId, bytes: &[u8]) {
        self.cable.borrow_mut().sent[self.index].extend_from_slice(bytes);
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        self.send(connection, &block[range]);
    }

    fn unsent_bytes(&self, _: ConnectionId) -> usize {
        0
    }

    fn close(&mut self, _: ConnectionId, _: bool) {
        unreachable!("nobody leaves");
    }
}

fn identity(role: PortionRole) -> LaneIdentity {
    LaneIdentity { pool: POOL, role, lane: LANE, lane_count: 1 }
}

fn log(role: PortionRole) -> MemoryLog {
    let region = MemoryRegion::new("log", 4096 + RING_BYTES);
    let mut format = Format::new(MemoryLog::new(&region), &identity(role), PortionId(1));
    while !format.poll().expect("memory does not fail") {}
    format.into_log()
}

fn config(node: usize) -> LinkConfig {
    let names = ["a", "b"].map(str::to_owned);
    let role = [PortionRole::Own, PortionRole::Mirror][node];
    let facts =
        PoolFacts { pool: POOL, role, portion: PortionId(1), ring_bytes: RING_BYTES, unit_bytes: 64, lane_count: 1 };
    LinkConfig {
        name: names[node].clone(),
        partner: names[1 - node].clone(),
        pair: PairId(1),
        key: PairKey::new([1; 32]),
        configuration: 1,
        incarnation: Incarnation(1 + node as u128),
        pools: vec![facts],
        addresses: vec![NetAddress::Unix("/b".into())],
        timing: Timing::default(),
    }
}

struct Pair {
    owner: Lane<MemoryLog>,
    mirror: MirrorPortion<MemoryLog>,
    ways: [Box<dyn Interconnect>; 2],
    now: Nanos,
    records: u64,
}

impl Pair {
    fn new(encrypt: bool) -> Self {
        let way = |(node, end): (usize, End)| -> Box<dyn Interconnect> {
            let link = Link::new(config(node), Prng::new(node as u64), Nanos(0));
            if encrypt {
                Box::new(LinkWay::new(TlsNetwork::new(end).expect("random numbers"), link))
            } else {
                Box::new(LinkWay::new(end, link))
            }
        };
        let [first, second] = End::pair();
        let mut owner = Lane::open_at(log(PortionRole::Own), identity(PortionRole::Own), EPOCH, Lsn(0));
        let mirror = (identity(PortionRole::Mirror), log(PortionRole::Mirror));
        owner.start_mirroring(64);
        owner.require_mirror();
        let mut pair = Self {
            owner,
            mirror: MirrorPortion::open(vec![mirror], EPOCH),
            ways: [way((0, first)), way((1, second))],
            now: Nanos(0),
            records: 0,
        };
        let mut is_up = false;
        while !is_up {
            pair.ways[1].poll(pair.now);
            while pair.ways[1].next_event().is_some() {}
            pair.ways[0].poll(pair.now);
            while let Some(event) = pair.ways[0].next_event() {
                is_up |= matches!(event, Event::Up(_));
            }
        }
        pair
    }

    /// Appends `count` records of `bytes` each, and waits until they are stable: durable in both logs.
    fn append(&mut self, count: u64, block: &[u8]) {
        for _ in 0..count {
            self.records += 1;
            let (kind, object) = (RecordKind::Block, ObjectId(1));
            let offset_bytes = self.records % 1024 * 1024 * 1024;
            let draft =
                Draft { kind, object, offset_bytes, argument: 0, flags: 0, time_ns: 0, request_id: self.records };
            self.owner.append(&draft, &[block]);
        }
        while self.owner.stable() < self.owner.appended() {
            self.turn();
        }
        self.owner.trim(self.owner.appended());
    }

    fn turn(&mut self) {
        self.now = Nanos(self.now.0 + 1000);
        let now = self.now;
        self.owner.poll(now).expect("memory does not fail");
        while let Some(item) = self.owner.next_mirror_item() {
            let (pool, lane) = (POOL, LANE);
            self.ways[0].send(match item {
                MirrorItem::Begin { epoch, start } => Message::Begin { pool, lane, epoch, start },
                MirrorItem::Write { epoch, start, end, bytes } => {
                    Message::Write { pool, lane, epoch, start, end, bytes }
                }
            });
        }
        self.ways[0].flush();
        self.ways[1].poll(now);
        while let Some(event) = self.ways[1].next_event() {
            match event {
                Event::Message(Message::Begin { lane, epoch, start, .. }) => {
                    self.mirror.begin(lane, epoch, start).expect("it follows");
                }
                Event::Message(Message::Write { lane, epoch, start, end, bytes, .. }) => {
                    self.mirror.write(lane, epoch, (start, end), bytes).expect("it follows");
                }
                _ => {}
            }
        }
        self.mirror.poll().expect("memory does not fail");
        while let Some(ack) = self.mirror.next_acknowledgement() {
            self.ways[1].send(Message::Mirrored(ack));
        }
        self.ways[1].flush();
        self.ways[0].poll(now);
        while let Some(event) = self.ways[0].next_event() {
            if let Event::Message(Message::Mirrored(ack)) = event {
                self.owner.mirrored(ack.durable).expect("it was sent");
            }
        }
    }
}

/// The same records without a mirror: what is to be subtracted.
fn alone(count: u64, block: &[u8], lane: &mut Lane<MemoryLog>, records: &mut u64) {
    for _ in 0..count {
        *records += 1;
        let (kind, object, request_id) = (RecordKind::Block, ObjectId(1), *records);
        let draft = Draft { kind, object, offset_bytes: 0, argument: 0, flags: 0, time_ns: 0, request_id };
        lane.append(&draft, &[block]);
    }
    while lane.stable() < lane.appended() {
        lane.poll(Nanos(0)).expect("memory does not fail");
    }
    lane.trim(lane.appended());
}

fn mirroring(criterion: &mut Criterion) {
    for (count, bytes) in [(1, 4096), (32, 4096), (4, 1 << 20)] {
        let block = vec![0x5a; bytes];
        let name = format!("{count} x {} KiB", bytes >> 10);
        let mut group = criterion.benchmark_group("mirror");
        group.throughput(Throughput::Bytes(count * bytes as u64));
        for (encrypt, how) in [(false, "mirrored"), (true, "mirrored, encrypted")] {
            let mut pair = Pair::new(encrypt);
            group.bench_function(format!("{name}, {how}"), |bencher| bencher.iter(|| pair.append(count, &block)));
        }
        let mut lane = Lane::open_at(log(PortionRole::Own), identity(PortionRole::Own), EPOCH, Lsn(0));
        let mut records = 0;
        group.bench_function(format!("{name}, alone"), |bencher| {
            bencher.iter(|| alone(count, &block, &mut lane, &mut records));
        });
        group.finish();
    }
}

criterion_group!(benches, mirroring);
criterion_main!(benches);
