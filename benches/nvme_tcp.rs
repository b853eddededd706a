//! The NVMe/TCP front end with the engine behind it: bytes of a host in, bytes of answers out.
//!
//! ```text
//! cargo bench --bench nvme_tcp                                                          time
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured*' \
//!     target/release/deps/nvme_tcp-HASH --count read                                    instructions of 9,600 reads; or: write
//! callgrind_annotate --inclusive=yes callgrind.out.*
//! ```
//!
//! Counted is what the node does: front end, engine, and the simulated network and disk, whose functions are to be subtracted.

mod support;

use criterion::{Criterion, Throughput, criterion_group};
use std::sync::Arc;
use support::Node;
use twinlog::{
    base::PoolId,
    serve::{
        NvmeTcp, Server,
        nvme_tcp::{Target, TargetParts},
    },
};
use twinlog_device::{Platform as _, Prng};
use twinlog_sim::{SimClient, SimNet};

const BLOCK_BYTES: u32 = 4096;
/// Blocks of the volume that commands go to: 64 MiB.
const BLOCKS: u64 = 16_384;
const DEPTH: u16 = 32;
/// Rounds of `DEPTH` commands for `--count`.
const COUNTED_ROUNDS: u64 = 300;
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
/// Bytes of a C2HData with a block, and of a CapsuleResp.
const DATA_BYTES: usize = 24 + BLOCK_BYTES as usize;
const RESPONSE_BYTES: usize = 24;

/// A node with a host that has an admin queue and an I/O queue.
struct Served {
    node: Node,
    server: Server,
    net: SimNet,
    subsystem: String,
    /// Admin queue and I/O queue.
    clients: Vec<SimClient>,
    received: Vec<u8>,
    /// Turns are measured.
    counts: bool,
}

impl Served {
    fn start() -> Self {
        let node = Node::start();
        let (net, listener) = SimNet::open(node.platform.agenda());
        let address = "127.0.0.1:4420".parse().expect("an address");
        let parts = TargetParts { home: PoolId(1), partner: None, address, partner_address: None, hosts: Vec::new() };
        let target = Arc::new(Target::new(parts));
        let subsystem = target.subsystem().to_owned();
        let server = Server::new(16).with_nvme_tcp(Some(NvmeTcp { target, first_listener: 0 }));
        let clients = vec![listener.connect(0), listener.connect(0)];
        let mut served = Self { node, server, net, subsystem, clients, received: Vec::new(), counts: false };
        let controller = served.connect(0, 0xffff);
        // CC: enabled, entries of 64 and 16 bytes.
        let mut enable = entry(0x7f, 0, 0);
        enable[44] = 0x14;
        enable[48..52].copy_from_slice(&0x0046_0001_u32.to_le_bytes());
        served.exchange(0, &capsule(&enable, &[]), RESPONSE_BYTES);
        served.connect(1, controller);
        served
    }

    /// A turn of which the instructions are counted.
    #[inline(never)]
    fn measured(&mut self) {
        self.turn();
    }

    /// One turn of the node.
    fn turn(&mut self) {
        self.server.poll(&mut self.net, &mut self.node.engine, self.node.platform.now());
        self.node.turn();
    }

    /// Sends to a queue, and waits for so many bytes; those.
    fn exchange(&mut self, queue: usize, bytes: &[u8], answer_bytes: usize) -> &[u8] {
        self.received.clear();
        let mut sent = 0;
        while self.received.len() < answer_bytes {
            sent += self.clients[queue].send(&bytes[sent..]);
            if self.counts {
                self.measured()
            } else {
                self.turn()
            }
            self.clients[queue].receive(&mut self.received);
        }
        &self.received
    }

    /// Makes a connection a queue without flow control; its controller.
    fn connect(&mut self, queue: u8, controller: u16) -> u16 {
        let mut request = vec![0; 128];
        (request[2], request[4]) = (128, 128);
        self.exchange(usize::from(queue), &request, 128);
        let mut connect = entry(0x7f, 0, 1024);
        (connect[4], connect[42], connect[44], connect[46], connect[39]) = (1, queue, 127, 4, 1);
        let mut data = vec![0; 1024];
        data[16..18].copy_from_slice(&controller.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        data[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
        let answer = self.exchange(usize::from(queue), &capsule(&connect, &data), RESPONSE_BYTES);
        assert_eq!(answer[22..24], [0, 0], "connected");
        u16::from_le_bytes([answer[8], answer[9]])
    }

    /// Answers `DEPTH` commands at random places.
    fn round(&mut self, prng: &mut Prng, is_write: bool) {
        let payload = [0x5a; BLOCK_BYTES as usize];
        let namespace = u32::try_from(self.node.volume.0 * 2 - 1).expect("a small number");
        let mut commands = Vec::with_capacity((72 + payload.len()) * usize::from(DEPTH));
        for id in 0..DEPTH {
            let mut command = entry(if is_write { 1 } else { 2 }, id, BLOCK_BYTES);
            // The namespace follows from the volume's id: every second number is the partner's.
            command[4..8].copy_from_slice(&namespace.to_le_bytes());
            command[39] = if is_write { 1 } else { 0x5a };
            command[40..48].copy_from_slice(&prng.below(BLOCKS).to_le_bytes());
            commands.extend(capsule(&command, if is_write { &payload } else { &[] }));
        }
        let answer_bytes = if is_write { RESPONSE_BYTES } else { DATA_BYTES };
        let answers = self.exchange(1, &commands, answer_bytes * usize::from(DEPTH));
        assert!(is_write || answers[0] == 7, "data");
        assert!(!is_write || answers.chunks_exact(RESPONSE_BYTES).all(|answer| answer[22..24] == [0, 0]), "success");
    }
}

/// A submission entry for so many bytes of data.
fn entry(opcode: u8, id: u16, length: u32) -> [u8; 64] {
    let mut entry = [0; 64];
    (entry[0], entry[1]) = (opcode, 1 << 6);
    entry[2..4].copy_from_slice(&id.to_le_bytes());
    entry[32..36].copy_from_slice(&length.to_le_bytes());
    entry
}

fn capsule(entry: &[u8; 64], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(72 + data.len()).expect("short");
    let offset = if data.is_empty() { 0 } else { 72 };
    [&[4, 0, 72, offset], &length.to_le_bytes()[..], entry, data].concat()
}

/// A volume whose blocks have all been written.
fn filled() -> (Served, Prng) {
    let (mut served, mut prng) = (Served::start(), Prng::new(1));
    for _ in 0..BLOCKS / u64::from(DEPTH) {
        served.round(&mut prng, true);
    }
    (served, prng)
}

fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nvme_tcp");
    group.throughput(Throughput::Elements(u64::from(DEPTH)));
    for (name, is_write) in [("read", false), ("write", true)] {
        let (mut served, mut prng) = filled();
        group.bench_function(format!("{name} 4 KiB, depth {DEPTH}"), |bencher| {
            bencher.iter(|| served.round(&mut prng, is_write));
        });
    }
    group.finish();
}

criterion_group!(benches, commands);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(place) = arguments.iter().position(|word| word == "--count") {
        let is_write = arguments.get(place + 1).is_some_and(|word| word == "write");
        let (mut served, mut prng) = filled();
        served.counts = true;
        (0..COUNTED_ROUNDS).for_each(|_| served.round(&mut prng, is_write));
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
