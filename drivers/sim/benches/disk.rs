//! What a simulated disk costs the host: the simulator's millions of histories are made of these.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use twinlog_device::{BlockDevice, BlockPool, Persistence, Prng, SharedBlock, Token, Wait};
use twinlog_sim::{Agenda, MediumConfig, SimDisk, SimMedium, SimWorld};

/// Operations per measured batch: a queue's depth.
const BATCH: u64 = 32;

struct Rig {
    world: SimWorld,
    medium: SimMedium,
    agenda: Agenda,
    disk: SimDisk,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let medium = SimMedium::new(&world, MediumConfig::new("disk", 1 << 18));
        let agenda = Agenda::new(&world);
        let disk = medium.open(&agenda);
        Self { world, medium, agenda, disk }
    }

    fn finish(&mut self, count: u64) {
        let mut completions = Vec::new();
        while (completions.len() as u64) < count {
            self.agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            self.disk.poll(&mut completions);
        }
        black_box(completions);
    }

    fn write(&mut self, block: &SharedBlock, first: u64) {
        for index in 0..BATCH {
            // A stride spreads the blocks over the sparse table.
            let place = (first + index * 97) % 512;
            self.disk.write(Token(index), place, vec![block.clone()], Persistence::Volatile);
        }
        self.finish(BATCH);
    }
}

fn benchmarks(criterion: &mut Criterion) {
    let pool = BlockPool::new(256).expect("a small mapping");
    let block = pool.allocate_zeroed().expect("the first").freeze();
    let mut group = criterion.benchmark_group("simulated disk");
    group.bench_function("world made, opened, dropped", |bencher| bencher.iter(|| black_box(Rig::new(1).world.now())));
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("4 KiB writes, flushed", |bencher| {
        let (mut rig, mut first) = (Rig::new(1), 0);
        bencher.iter(|| {
            first += 1;
            rig.write(&block, first);
            rig.disk.flush(Token(0));
            rig.finish(1);
        });
    });
    group.bench_function("4 KiB reads", |bencher| {
        let mut rig = Rig::new(1);
        rig.write(&block, 0);
        bencher.iter(|| {
            for index in 0..BATCH {
                let buffer = pool.allocate().expect("few are used");
                rig.disk.read(Token(index), index * 97 % 512, vec![buffer]);
            }
            rig.finish(BATCH);
        });
    });
    group.bench_function("a history: world, 32 writes, power cut, digest", |bencher| {
        bencher.iter(|| {
            let mut rig = Rig::new(1);
            rig.write(&block, 0);
            rig.medium.power_cut(&mut Prng::new(2));
            black_box(rig.medium.digest())
        });
    });
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
