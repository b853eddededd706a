//! What an append costs, by the way in which it is stored, and what the copy alone does.
//!
//! The file lies in memory (`/dev/shm`): the processor's part is measured, not a DIMM's.

// The bare copy.
#![expect(unsafe_code, reason = "non-temporal stores by hand, to compare with")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{path::Path, time::Duration};
use twinlog_device::{LogMemory, Token};
use twinlog_pmem::{Native, PmemFile, PmemLog, Stores, can_write_back};

/// Larger than the processor's caches of one core, as a log is.
const REGION_BYTES: u64 = 64 << 20;
const LENGTHS: [usize; 6] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];

fn file() -> (tempfile::TempDir, PmemFile) {
    let shm = Path::new("/dev/shm");
    let directory = tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()).expect("a writable directory");
    let path = directory.path().join("log");
    twinlog_file::create_log_file(&path, REGION_BYTES, |_| ()).expect("space");
    let file = PmemFile::open(&path).expect("nobody has it");
    (directory, file)
}

/// Stores and persists `bytes` again and again, around the region.
fn append(log: &mut PmemLog, offset: &mut u64, bytes: &[u8]) {
    log.store(*offset, bytes);
    log.persist(Token(0));
    *offset += bytes.len() as u64;
    if *offset + bytes.len() as u64 > REGION_BYTES {
        *offset = 0;
    }
}

fn appends(criterion: &mut Criterion) {
    let (_directory, file) = file();
    let mut group = criterion.benchmark_group("append");
    for (name, stores) in
        [("past-cache", Stores::NonTemporal), ("written-back", Stores::WrittenBack), ("cached", Stores::Cached)]
    {
        if stores == Stores::WrittenBack && !can_write_back() {
            continue;
        }
        let mut log = PmemLog::with(&file, 0, REGION_BYTES, stores, Native).expect("a region");
        for length in LENGTHS {
            let bytes = vec![7; length];
            let (mut offset, mut completions) = (0, Vec::new());
            group.throughput(Throughput::Bytes(length as u64));
            group.bench_with_input(BenchmarkId::new(name, length), &bytes, |bencher, bytes| {
                bencher.iter(|| {
                    append(&mut log, &mut offset, bytes);
                    log.poll(&mut completions);
                    completions.clear();
                });
            });
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn bare(criterion: &mut Criterion) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let mut memory = vec![0_u128; usize::try_from(REGION_BYTES / 16).expect("small")];
    memory.fill(1); // every page is there
    let lengths = LENGTHS.map(|length| length / 16);
    let mut group = criterion.benchmark_group("bare");
    for length in lengths {
        let source = vec![7_u128; length];
        let mut start = 0;
        group.throughput(Throughput::Bytes(16 * length as u64));
        group.bench_with_input(BenchmarkId::new("past-cache", 16 * length), &source, |bencher, source| {
            bencher.iter(|| {
                for (from, to) in source.iter().zip(&mut memory[start..start + length]) {
                    // SAFETY: readable.
                    let value = unsafe { _mm_loadu_si128(std::ptr::from_ref(from).cast()) };
                    // SAFETY: writable and aligned.
                    unsafe { _mm_stream_si128(std::ptr::from_mut(to).cast::<__m128i>(), value) };
                }
                // SAFETY: every x86-64 processor has it.
                unsafe { _mm_sfence() };
                start = if start + 2 * length > memory.len() { 0 } else { start + length };
            });
        });
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn bare(_criterion: &mut Criterion) {}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = appends, bare
}
criterion_main!(benches);
