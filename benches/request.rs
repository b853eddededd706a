//! Requests through the engine: admission, log, apply, reply, and the consistency points that follow; and the recovery of a pool whose log is to be
//! replayed. On devices that cost nothing.

mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use support::{Machine, Node};
use twinlog::node::request::{Payload, RequestTag, VolumeOperation, VolumeRequest, VolumeService as _};
use twinlog_device::Prng;

const BLOCK_BYTES: u64 = 4096;
/// Blocks of the volume that requests go to: 64 MiB, which the cache holds.
const BLOCKS: u64 = 16_384;
const DEPTH: u64 = 32;

fn operation(node: &Node, block: u64, blocks: u64, is_write: bool) -> VolumeOperation {
    let range = block * BLOCK_BYTES..(block + blocks) * BLOCK_BYTES;
    if is_write {
        let payload = Payload::allocate(node.engine.blocks(), range).expect("memory is large enough");
        VolumeOperation::Write { payload, durable: false }
    } else {
        VolumeOperation::Read(range)
    }
}

/// Answers `DEPTH` requests of `blocks` blocks each at random places.
fn round(node: &mut Node, prng: &mut Prng, blocks: u64, is_write: bool) {
    for request in 0..DEPTH {
        let block = prng.below(BLOCKS / blocks) * blocks;
        let operation = operation(node, block, blocks, is_write);
        let tag = RequestTag { session: 0, request };
        node.engine.submit(VolumeRequest { tag, volume: node.volume, host: None, pass: None, operation });
    }
    let mut answered = 0;
    while answered < DEPTH {
        node.turn();
        while let Some(reply) = node.engine.poll_reply() {
            reply.result.expect("there is room, and nothing fails");
            answered += 1;
        }
    }
}

fn requests(criterion: &mut Criterion) {
    for (name, is_write) in [("read from the cache", false), ("write", true)] {
        let mut group = criterion.benchmark_group(name);
        for blocks in [1, 32] {
            let (mut node, mut prng) = (Node::start(), Prng::new(1));
            for _ in 0..BLOCKS / DEPTH {
                round(&mut node, &mut prng, 1, true);
            }
            group.throughput(Throughput::Elements(DEPTH));
            group.bench_function(format!("{} KiB, depth {DEPTH}", blocks * 4), |bencher| {
                bencher.iter(|| round(&mut node, &mut prng, blocks, is_write));
            });
        }
        group.finish();
    }
}

/// Blocks that are in the log alone when the node dies: 16 MiB of its 64, fewer than a consistency point would be made for.
const REPLAYED: u64 = 4096;

fn replays(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Bytes(REPLAYED * BLOCK_BYTES));
    group.sample_size(20);
    group.bench_function("4 KiB records, until the pool serves", |bencher| {
        bencher.iter_batched(
            || {
                let machine = Machine::new();
                let (mut node, mut prng) = (Node::start_on(&machine), Prng::new(1));
                (0..REPLAYED / DEPTH).for_each(|_| round(&mut node, &mut prng, 1, true));
                machine
            },
            |machine| {
                let mut node = machine.open();
                while !node.engine.is_serving() {
                    node.turn();
                }
                let replayed =
                    node.engine.coordinator().map_or(0, |coordinator| coordinator.figures().replayed_records);
                assert_eq!(replayed, REPLAYED + 1, "the writes, and the volume's beginning");
                node
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, requests, replays);
criterion_main!(benches);
