//! What this machine can do through these drivers, without the engine: the floor under every figure of Twinlog.
//!
//! ```text
//! cargo run --release -p twinlog-uring --example floor -- DIRECTORY [SECONDS]
//! ```
//!
//! Compare the first line with fio on the same disk:
//!
//! ```text
//! fio --name=append --directory=DIRECTORY --rw=write --bs=4k --size=256m --direct=1 --sync=dsync --ioengine=psync \
//!     --time_based --runtime=5 --overwrite=1
//! ```

use std::{path::Path, time::Duration};
use twinlog_device::{BLOCK_BYTES, BlockDevice, BlockPool, LogMemory, Nanos, Persistence, Prng, Token, Wait};
use twinlog_uring::{DiskOptions, FileDisk, FileLog, PmemLog, Ring, RingOptions, create_log_file};

const FILE_BYTES: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("which directory?")?;
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let limit = Duration::from_secs(seconds);
    let path = Path::new(&directory).join("twinlog-floor");
    create_log_file(&path, FILE_BYTES, |_| ())?;
    let measured = measure(&path, limit);
    std::fs::remove_file(&path)?;
    measured
}

fn measure(path: &Path, limit: Duration) -> Result<(), Box<dyn std::error::Error>> {
    for register_buffers in [false, true] {
        let pool = BlockPool::new(4096)?;
        let ring = Ring::new(RingOptions { register_buffers, ..RingOptions::default() }, &pool)?;
        println!("{:?}", ring.facts());
        for spin in [true, false] {
            append("file log, 4 KiB durable append", spin, &ring, FileLog::open(&ring, path, 0, FILE_BYTES)?, limit);
        }
        for (depth, persistence) in
            [(1, Persistence::Volatile), (32, Persistence::Volatile), (32, Persistence::Durable)]
        {
            let mut disk = FileDisk::open(&ring, path, DiskOptions::default())?;
            random(
                &format!("disk, 4 KiB random {persistence:?} write, depth {depth}"),
                &ring,
                &mut disk,
                depth,
                limit,
                Some(persistence),
            );
            if persistence == Persistence::Volatile {
                random(&format!("disk, 4 KiB random read, depth {depth}"), &ring, &mut disk, depth, limit, None);
            }
        }
    }
    let pool = BlockPool::new(1)?;
    let ring = Ring::new(RingOptions::default(), &pool)?;
    append("mapped log, 4 KiB append", true, &ring, PmemLog::open(path, 0, FILE_BYTES)?, limit);
    Ok(())
}

/// Appends of 4 KiB, one at a time.
fn append(name: &str, spin: bool, ring: &Ring, mut log: impl LogMemory, limit: Duration) {
    let wait = if spin { Wait::No } else { Wait::UpTo(Duration::from_secs(1)) };
    let bytes = [7; 4096];
    let mut offset = 0;
    let name = format!("{name}, {}, {} class", if spin { "spinning" } else { "sleeping" }, log.info().durability);
    let mut completions = Vec::new();
    run(&name, ring, limit, || {
        log.store(offset, &bytes);
        offset = (offset + 4096) % FILE_BYTES;
        log.persist(Token(0));
        loop {
            log.poll(&mut completions);
            if let Some(completion) = completions.pop() {
                completion.result.expect("the log works");
                return 1;
            }
            ring.turn(wait);
        }
    });
}

/// Random reads, or writes of a given persistence, always `depth` of them in flight.
fn random(name: &str, ring: &Ring, disk: &mut FileDisk, depth: usize, limit: Duration, write: Option<Persistence>) {
    let mut prng = Prng::new(1);
    let count = disk.info().block_count;
    let mut completions = Vec::new();
    let mut in_flight = 0;
    run(name, ring, limit, || {
        while in_flight < depth {
            let first = prng.below(count);
            let blocks = ring.blocks().allocate_many(1).expect("the pool is large enough");
            match write {
                None => disk.read(Token(0), first, blocks),
                Some(persistence) => {
                    let blocks = blocks.into_iter().map(|block| block.freeze()).collect();
                    disk.write(Token(0), first, blocks, persistence);
                }
            }
            in_flight += 1;
        }
        ring.turn(Wait::UpTo(Duration::from_secs(1)));
        disk.poll(&mut completions);
        let finished = completions.len();
        in_flight -= finished;
        assert!(completions.drain(..).all(|completion| completion.result.is_ok()), "the disk works");
        finished as u64
    });
    while in_flight > 0 {
        ring.turn(Wait::No);
        disk.poll(&mut completions);
        in_flight -= completions.drain(..).count();
    }
}

/// Repeats `step`, which returns how many operations it finished, and prints rate and distribution of the steps that finished some.
fn run(name: &str, ring: &Ring, limit: Duration, mut step: impl FnMut() -> u64) {
    ring.turn(Wait::No);
    let start = ring.now();
    let enters = ring.enter_count();
    let processor = processor_ns();
    let (mut operations, mut last, mut steps_ns) = (0, start, Vec::new());
    while last.since(start) < limit {
        let finished = step();
        if finished == 0 {
            continue;
        }
        operations += finished;
        let now = now(ring);
        steps_ns.push(u64::try_from(now.since(last).as_nanos()).unwrap_or(u64::MAX));
        last = now;
    }
    steps_ns.sort_unstable();
    let rate = u128::from(operations) * 1_000_000_000 / last.since(start).as_nanos();
    let at = |per_mille: usize| steps_ns[(steps_ns.len() - 1) * per_mille / 1000] / 1000;
    println!(
        "{name}: {rate}/s ({} KiB/s), us between completions p50 {} p99 {} p99.9 {}; for each {} ns of processor, {:.2} system calls",
        rate * BLOCK_BYTES as u128 / 1024,
        at(500),
        at(990),
        at(999),
        (processor_ns() - processor) / operations,
        (ring.enter_count() - enters) as f64 / operations as f64,
    );
}

/// Processor time of this thread so far.
fn processor_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of every thread");
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

/// The time now: steps that need no turn of the ring do not see its clock move.
fn now(ring: &Ring) -> Nanos {
    ring.turn(Wait::No);
    ring.now()
}
