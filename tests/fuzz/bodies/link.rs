//! The interconnect: one frame, and two nodes between which somebody sits who can change, drop, repeat and invent frames.

use super::take;
use crate::support::byte_net::ByteNet;
use std::{collections::VecDeque, time::Duration};
use twinlog::{
    base::{
        Epoch, Incarnation, LaneIndex, Lsn, PairId, PoolId, PortionId, Prng, checksum, checksum::checksum_of_parts,
    },
    changelog::PortionRole,
    pair::{
        auth::PairKey,
        decide::Word,
        link::{Event, Link, LinkConfig, NoRoom, PathPhase, PayloadPart, Timing, UNSENT_BYTES_MAX},
        wire::{
            Ack, FRAME_BYTES_MAX, GREETING_BYTES_MAX, HEADER_BYTES, Message, Outgoing, PoolFacts, PoolState, Role,
            Seal, SealedFrame,
        },
    },
};
use twinlog_device::{ConnectionId, Nanos, NetAddress};

fn seal(tag: u64, sequence: u64) -> Seal {
    let mut seal = Seal::default();
    seal.bind(tag);
    (0..sequence).for_each(|_| seal.advance());
    seal
}

/// Makes the length and the checksums of a frame right: what a fuzzer cannot guess.
fn mend(bytes: &mut [u8], tag: u64, sequence: u64) {
    let (header, body) = bytes.split_at_mut(HEADER_BYTES);
    header[8..12].copy_from_slice(&u32::try_from(body.len()).expect("short").to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[48..56].copy_from_slice(&checksum(tag ^ sequence, body).to_le_bytes());
    let sum = checksum(tag ^ sequence, &header[..56]);
    header[56..64].copy_from_slice(&sum.to_le_bytes());
}

/// Bytes: what is mended (1), tag and number of the frame (2), then the frame.
pub(crate) fn frame(data: &[u8]) -> bool {
    let ([mended, tag, sequence], data) = take::<3>(data);
    let mut bytes = data.to_vec();
    let (tag, sequence) = (u64::from(tag), u64::from(sequence));
    if mended & 1 != 0 && bytes.len() >= HEADER_BYTES {
        mend(&mut bytes, tag, sequence);
    }
    let frame_bytes_max = if mended & 2 != 0 { GREETING_BYTES_MAX } else { FRAME_BYTES_MAX };
    let sealed = match SealedFrame::read(&bytes, seal(tag, sequence), frame_bytes_max) {
        Ok(Some(sealed)) => sealed,
        Ok(None) => return false,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let length = sealed.frame_bytes();
    assert!(length <= bytes.len() && length <= frame_bytes_max);
    let Ok(frame) = sealed.open() else { return false };
    // There is one way to write what it says.
    let outgoing = Outgoing { pool: frame.pool, epoch: frame.epoch, acks: &frame.acks, message: &frame.message };
    let mut written = Vec::new();
    outgoing.write(&mut seal(tag, sequence), &[frame.payload], &mut written);
    written.extend_from_slice(frame.payload);
    assert_eq!(written, bytes[..length]);
    true
}

const POOL: PoolId = PoolId(1);
const EPOCH: Epoch = Epoch(2);

fn config(node: usize) -> LinkConfig {
    let names = ["a", "b"].map(str::to_owned);
    let role = [PortionRole::Own, PortionRole::Mirror][node];
    let facts =
        PoolFacts { pool: POOL, role, portion: PortionId(1), ring_bytes: 1 << 20, unit_bytes: 512, lane_count: 2 };
    LinkConfig {
        name: names[node].clone(),
        partner: names[1 - node].clone(),
        pair: PairId(1),
        key: PairKey::new([1; 32]),
        configuration: 1,
        incarnation: Incarnation(1 + node as u128),
        pools: vec![facts],
        addresses: ["/0", "/1"].map(|path| NetAddress::Unix(path.into())).to_vec(),
        timing: Timing::default(),
    }
}

struct Node {
    net: ByteNet,
    link: Link,
    is_up: bool,
    takes_nothing: bool,
    /// The newest word that was heard in this session.
    heard: u64,
    frames: u64,
}

impl Node {
    fn new(node: usize) -> Self {
        let link = Link::new(config(node), Prng::new(node as u64), Nanos(0));
        Self { net: ByteNet::default(), link, is_up: false, takes_nothing: false, heard: 0, frames: 0 }
    }

    fn poll(&mut self, now: Nanos, is_astray: bool) {
        self.link.poll(&mut self.net, now);
        if self.takes_nothing {
            return;
        }
        while let Some(event) = self.link.next_event(&mut self.net) {
            match event {
                Event::Up(_) => {
                    assert!(!std::mem::replace(&mut self.is_up, true), "a session begins once");
                    self.heard = 0;
                }
                Event::Down { .. } => assert!(std::mem::replace(&mut self.is_up, false), "a session ends once"),
                Event::Frame { message, .. } => {
                    assert!(self.is_up, "frames come within a session");
                    self.frames += 1;
                    if let Message::PoolState(PoolState { portion: Some(PortionId(number)), .. }) = message {
                        let number = u64::try_from(number).unwrap_or(0);
                        assert!(is_astray || number > self.heard, "word {number} after {}", self.heard);
                        self.heard = number;
                    }
                }
                _ => {}
            }
            let bound = 3 * UNSENT_BYTES_MAX;
            assert!(self.link.status().paths.len() <= 2 || is_astray);
            assert!((1..=self.net.connection_count()).all(|id| self.unsent(id) <= bound), "what waits is bounded");
        }
        self.link.flush(&mut self.net);
        assert_eq!(self.is_up, self.link.is_up());
    }

    fn unsent(&self, id: u64) -> usize {
        let connection = ConnectionId(id);
        if self.net.closed(connection).is_some() { 0 } else { self.net.waiting_bytes(connection) }
    }

    fn say(&mut self, number: u64) -> Result<(), NoRoom> {
        let portion = Some(PortionId(u128::from(number)));
        let state = PoolState { word: Word::Serving, portion, expected: vec![None, Some(Lsn(128))] };
        self.link.send(&mut self.net, (POOL, EPOCH), &Message::PoolState(state), &[])
    }

    fn send_batch(&mut self, lane: u16, start: u64) {
        let (lane, start, end) = (LaneIndex(lane), Lsn(start), Lsn(start + 256));
        let part = PayloadPart::Bytes(&[9; 256]);
        // Without room it is not sent.
        let _full = self.link.send(&mut self.net, (POOL, EPOCH), &Message::MirrorWrite { lane, start, end }, &[part]);
    }
}

/// What the one in the middle does with the next frame that passes.
enum Act {
    Change { at: u16, by: u8 },
    Kind(u8),
    Drop,
    Repeat,
    Corrupt { at: u16 },
    Invent { kind: u8, body: Vec<u8> },
}

/// One direction of a connection, as the one in the middle sees it.
#[derive(Default)]
struct Passage {
    bytes: Vec<u8>,
    arriving: Seal,
    arrived: u64,
    passed: u64,
    tag: u64,
    hello: Vec<u8>,
}

struct Middle {
    nodes: [Node; 2],
    now: Nanos,
    /// The connection at each node, and what passes from each.
    wires: Vec<([ConnectionId; 2], [Passage; 2])>,
    seen: u64,
    acts: [VecDeque<Act>; 2],
    words: u64,
    /// Something was passed on that the other node has not said.
    is_astray: bool,
}

impl Middle {
    fn new() -> Self {
        Self {
            nodes: [Node::new(0), Node::new(1)],
            now: Nanos(0),
            wires: Vec::new(),
            seen: 0,
            acts: Default::default(),
            words: 0,
            is_astray: false,
        }
    }

    fn turn(&mut self) {
        let (now, is_astray) = (self.now, self.is_astray);
        self.nodes.iter_mut().for_each(|node| node.poll(now, is_astray));
        while self.seen < self.nodes[0].net.connection_count() {
            self.seen += 1;
            let at_b = self.nodes[1].net.new_client();
            self.wires.push(([ConnectionId(self.seen), at_b], Default::default()));
        }
        let mut wires = std::mem::take(&mut self.wires);
        wires.retain_mut(|(ids, passages)| {
            for from in 0..2 {
                self.pass(*ids, passages, from);
            }
            let has_closed = |node: usize| self.nodes[node].net.closed(ids[node]).is_some();
            let gone = [has_closed(0), has_closed(1)];
            for node in (0..2).filter(|&node| gone[1 - node] && !gone[node]) {
                self.nodes[node].net.client_end(ids[node]);
            }
            gone != [true; 2]
        });
        self.wires.append(&mut wires);
    }

    /// Passes on what one node has said on a connection, frame by frame.
    fn pass(&mut self, ids: [ConnectionId; 2], passages: &mut [Passage; 2], from: usize) {
        let to = 1 - from;
        let taken = self.nodes[from].net.client_take(ids[from], usize::MAX);
        passages[from].bytes.extend_from_slice(&taken);
        let mut output = Vec::new();
        loop {
            let passage = &passages[from];
            let sealed = SealedFrame::read(&passage.bytes, passage.arriving, FRAME_BYTES_MAX);
            let Some(length) = sealed.expect("nodes send frames").map(|sealed| sealed.frame_bytes()) else { break };
            let frame: Vec<u8> = passages[from].bytes.drain(..length).collect();
            let passage = &mut passages[from];
            passage.arriving.advance();
            passage.arrived += 1;
            self.act(passage, from, frame, &mut output);
            // From the third frame on they are bound to both hellos, as each node has sent and heard them.
            if passages[from].arrived == 2 {
                let role = [Role::Connects, Role::Listens][from];
                let tag = checksum_of_parts(role as u64, passages.iter().map(|passage| passage.hello.as_slice()));
                passages[from].arriving.bind(tag);
                passages[from].tag = tag;
            }
        }
        if self.nodes[to].net.closed(ids[to]).is_none() && !output.is_empty() {
            self.nodes[to].net.client_send(ids[to], &output);
        }
    }

    fn act(&mut self, passage: &mut Passage, from: usize, mut frame: Vec<u8>, output: &mut Vec<u8>) {
        // The proofs are over the hellos: who changes those gets nowhere, and the one in the middle loses count.
        let act = if passage.arrived > 2 { self.acts[from].pop_front() } else { None };
        if passage.arrived == 1 {
            passage.hello.clone_from(&frame);
        }
        let mut forward = |bytes: &mut Vec<u8>, passage: &mut Passage| {
            mend(bytes, passage.tag, passage.passed);
            passage.passed += 1;
            output.extend_from_slice(bytes);
        };
        self.is_astray |= !matches!(act, None | Some(Act::Drop | Act::Corrupt { .. }));
        match act {
            None => forward(&mut frame, passage),
            Some(Act::Drop) => {}
            Some(Act::Change { at, by }) => {
                let at = usize::from(at) % frame.len();
                frame[at] ^= by;
                forward(&mut frame, passage);
            }
            Some(Act::Kind(kind)) => {
                frame[5] = kind;
                forward(&mut frame, passage);
            }
            Some(Act::Repeat) => {
                forward(&mut frame, passage);
                forward(&mut frame, passage);
            }
            Some(Act::Corrupt { at }) => {
                forward(&mut frame, passage);
                let at = output.len() - 1 - usize::from(at) % frame.len();
                output[at] ^= 1;
            }
            Some(Act::Invent { kind, body }) => {
                forward(&mut frame, passage);
                let mut invented = frame[..HEADER_BYTES].to_vec();
                invented[5] = kind;
                invented[6] = 0;
                let names: u8 = if kind >= 8 { 1 } else { 0 };
                invented[24..48].fill(0);
                (invented[24], invented[40]) = (names, names);
                invented.extend_from_slice(&body);
                forward(&mut invented, passage);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            self.turn();
            self.turn();
        }
    }

    /// Does what four bytes stand for. `data` is what follows.
    fn step(&mut self, word: [u8; 4], data: &[u8]) {
        let [kind, a, b, c] = word;
        let (node, at) = (usize::from(c & 1), u16::from_le_bytes([a, b]));
        self.words += 1;
        match kind % 16 {
            // Without a path nobody hears it.
            0..=2 => drop(self.nodes[node].say(self.words)),
            3 => self.nodes[node].send_batch(u16::from(a) % 2, u64::from(b) * 256),
            4 => {
                let (lane, durable) = (LaneIndex(u16::from(a) % 2), Lsn(u64::from(b) * 256));
                self.nodes[node].link.acknowledge(Ack { pool: POOL, lane, epoch: EPOCH, durable, expected: durable });
            }
            5 => self.wait(Duration::from_millis(u64::from(a) * 10)),
            6 => self.acts[node].push_back(Act::Change { at, by: c | 1 }),
            7 => self.acts[node].push_back(Act::Kind(a % 20)),
            8 => self.acts[node].push_back(Act::Drop),
            9 => self.acts[node].push_back(Act::Repeat),
            10 => self.acts[node].push_back(Act::Corrupt { at }),
            11 => {
                let body = data[..data.len().min(usize::from(b))].to_vec();
                self.acts[node].push_back(Act::Invent { kind: a % 20, body });
            }
            12 => self.break_wire(usize::from(a), c),
            13 => self.nodes[node].takes_nothing = a & 1 != 0,
            _ => {}
        }
        self.turn();
    }

    fn break_wire(&mut self, index: usize, how: u8) {
        if self.wires.is_empty() {
            return;
        }
        let (ids, _) = self.wires.remove(index % self.wires.len());
        for (node, id) in self.nodes.iter_mut().zip(ids) {
            if node.net.closed(id).is_none() {
                if how & 2 == 0 { node.net.client_end(id) } else { node.net.client_drop(id) }
            }
        }
    }
}

/// Bytes: steps of four bytes each.
pub(crate) fn session(data: &[u8]) -> bool {
    let mut middle = Middle::new();
    middle.wait(Duration::from_millis(200));
    assert!(middle.nodes.iter().all(|node| node.is_up), "two nodes come together");
    for at in (0..data.len().min(400)).step_by(4) {
        let (word, rest) = take::<4>(&data[at..]);
        middle.step(word, rest);
    }
    let frames: u64 = middle.nodes.iter().map(|node| node.frames).sum();
    // Nobody in the middle any more: they find together again.
    middle.acts.iter_mut().for_each(VecDeque::clear);
    middle.nodes.iter_mut().for_each(|node| node.takes_nothing = false);
    middle.wait(Duration::from_secs(12));
    for node in 0..2 {
        let status = middle.nodes[node].link.status();
        let open = status.paths.iter().filter(|path| path.phase == PathPhase::Open).count();
        assert_eq!(open, 2, "{status:?}");
        middle.nodes[node].heard = 0;
        middle.nodes[1 - node].say(u64::MAX >> 1).expect("there is room");
        middle.wait(Duration::from_millis(100));
        assert_eq!(middle.nodes[node].heard, u64::MAX >> 1, "node {node} hears");
    }
    frames > 0
}
