//! The NBD front end with the engine behind it: bytes of a client in, bytes of replies out.

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::Node;
use twinlog::serve::Server;
use twinlog_device::{Platform as _, Prng};
use twinlog_sim::{SimClient, SimNet};

const BLOCK_BYTES: u32 = 4096;
/// Blocks of the volume that requests go to: 64 MiB.
const BLOCKS: u64 = 16_384;
const DEPTH: u16 = 32;
/// NBD protocol: request and simple reply headers, bytes.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;

/// A node with one client in the transmission phase.
struct Served {
    node: Node,
    server: Server,
    net: SimNet,
    client: SimClient,
    received: Vec<u8>,
}

impl Served {
    fn start() -> Self {
        let node = Node::start();
        let (net, listener) = SimNet::open(node.platform.agenda());
        let client = listener.connect(0);
        let mut served = Self { node, server: Server::new(16), net, client, received: Vec::new() };
        served.handshake();
        served
    }

    fn turn(&mut self) {
        self.server.poll(&mut self.net, &mut self.node.engine, self.node.platform.now());
        self.node.turn();
        self.client.receive(&mut self.received);
    }

    /// Fixed newstyle without zeroes, then the option EXPORT_NAME with the empty name.
    fn handshake(&mut self) {
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(0_u32.to_be_bytes());
        assert_eq!(self.client.send(&hello), hello.len());
        while self.received.len() < 18 + 10 {
            self.turn();
        }
        self.received.clear();
    }

    /// Answers `DEPTH` requests at random places.
    fn round(&mut self, prng: &mut Prng, is_write: bool) {
        let payload = [0x5a; BLOCK_BYTES as usize];
        let mut requests = Vec::with_capacity((REQUEST_BYTES + payload.len()) * usize::from(DEPTH));
        for cookie in 0..DEPTH {
            requests.extend(0x2560_9513_u32.to_be_bytes());
            requests.extend(0_u16.to_be_bytes());
            requests.extend(u16::from(is_write).to_be_bytes());
            requests.extend(u64::from(cookie).to_be_bytes());
            requests.extend((prng.below(BLOCKS) * u64::from(BLOCK_BYTES)).to_be_bytes());
            requests.extend(BLOCK_BYTES.to_be_bytes());
            if is_write {
                requests.extend(payload);
            }
        }
        let reply_bytes = REPLY_BYTES + if is_write { 0 } else { payload.len() };
        let mut sent = 0;
        while self.received.len() < reply_bytes * usize::from(DEPTH) {
            sent += self.client.send(&requests[sent..]);
            self.turn();
        }
        self.received.clear();
    }
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nbd");
    group.throughput(Throughput::Elements(u64::from(DEPTH)));
    for (name, is_write) in [("read", false), ("write", true)] {
        let (mut served, mut prng) = (Served::start(), Prng::new(1));
        for _ in 0..BLOCKS / u64::from(DEPTH) {
            served.round(&mut prng, true);
        }
        group.bench_function(format!("{name} 4 KiB, depth {DEPTH}"), |bencher| {
            bencher.iter(|| served.round(&mut prng, is_write));
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
