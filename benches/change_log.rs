//! The change log alone: appending records to a lane in plain memory, and reading them back as a recovery does.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, ObjectId, PoolId, PortionId},
    changelog::{Draft, Format, Lane, LaneIdentity, PortionRole, RecordKind, Scan, ScanStart, ScanStep},
};
use twinlog_device::{LogMemory, Nanos};
use twinlog_sim::{Agenda, LogMedium, LogShape, SimWorld};
use twinlog_uring::{MemoryLog, MemoryRegion};

const IDENTITY: LaneIdentity =
    LaneIdentity { pool: PoolId(1), role: PortionRole::Own, lane: LaneIndex(0), lane_count: 1 };
const RING_BYTES: u64 = 64 << 20;

fn lane() -> Lane<MemoryLog> {
    let mut format = Format::new(MemoryLog::new(&MemoryRegion::new("log", 4096 + RING_BYTES)), &IDENTITY, PortionId(1));
    while !format.poll().expect("memory does not fail") {}
    Lane::open_at(format.into_log(), IDENTITY, Epoch(1), Lsn(0))
}

fn draft(number: u64) -> Draft {
    let (kind, object) = (RecordKind::Block, ObjectId(1));
    Draft { kind, object, offset_bytes: number * 4096, argument: 0, flags: 0, time_ns: 0, request_id: number }
}

/// Appends `count` records of one block, and waits until they are durable.
fn append<L: LogMemory>(lane: &mut Lane<L>, count: u64, block: &[u8]) {
    for number in 0..count {
        lane.append(&draft(number), &[block]);
    }
    while lane.durable() < lane.appended() {
        lane.poll(Nanos(0)).expect("the log memory is sound");
    }
}

fn appends(criterion: &mut Criterion) {
    let block = [0x5a; 4096];
    let mut group = criterion.benchmark_group("append");
    for count in [1, 32] {
        let mut lane = lane();
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} x 4 KiB per persist"), |bencher| {
            bencher.iter(|| {
                append(&mut lane, count, &block);
                lane.trim(lane.appended());
            });
        });
    }
    group.finish();
}

fn recoveries(criterion: &mut Criterion) {
    let ring_bytes = 8 << 20;
    let block = [0x5a; 4096];
    let count = ring_bytes / 4096 * 9 / 10;
    let medium = full_medium(ring_bytes, count, &block);
    let mut group = criterion.benchmark_group("recover");
    group.throughput(Throughput::Bytes(count * 4096));
    group.sample_size(20);
    group.bench_function("a full ring of 4 KiB records", |bencher| {
        bencher.iter(|| {
            let agenda = Agenda::new(&medium.world());
            let start = ScanStart { identity: IDENTITY, applied: Lsn(0), epoch_min: Epoch(1) };
            let mut scan = Scan::new(medium.open(&agenda), start);
            let mut found = 0;
            loop {
                match scan.poll().expect("the ring is whole") {
                    ScanStep::Pending => {}
                    ScanStep::Record(_) => found += 1,
                    ScanStep::End(_) => break,
                }
            }
            assert_eq!(found, count);
        });
    });
    group.finish();
}

/// Simulated persistent memory without latency, whose ring holds `count` records of one block.
fn full_medium(ring_bytes: u64, count: u64, block: &[u8]) -> LogMedium {
    let shape = LogShape { latency_ns: (0, 0), ..LogShape::pmem(4096 + ring_bytes) };
    let medium = LogMedium::new(&SimWorld::new(1), "log", shape);
    let agenda = Agenda::new(&medium.world());
    let mut format = Format::new(medium.open(&agenda), &IDENTITY, PortionId(1));
    while !format.poll().expect("the medium is sound") {}
    append(&mut Lane::open_at(format.into_log(), IDENTITY, Epoch(1), Lsn(0)), count, block);
    medium
}

criterion_group!(benches, appends, recoveries);
criterion_main!(benches);
