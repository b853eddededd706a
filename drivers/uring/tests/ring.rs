//! The ring itself: waking, sleeping, and the number of system calls.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use twinlog_device::{BlockDevice, BlockPool, LogMemory, Platform, Token, Wait};
use twinlog_uring::{AtOnce, DiskOptions, FileDisk, MemoryLog, MemoryRegion, Ring, RingOptions, UringPlatform};

/// Long enough that a test which sleeps through it is seen to hang.
const LONG: Wait = Wait::UpTo(Duration::from_secs(600));

fn ring() -> Ring {
    Ring::new(RingOptions::default(), &BlockPool::new(64).expect("a small pool")).expect("io_uring")
}

#[test]
fn a_waker_ends_a_sleep() {
    let ring = ring();
    let waker = ring.waker();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| waker.wake());
            assert!(ring.turn(LONG), "the turn says that there is a reason");
        }
    });
}

#[test]
fn calls_before_a_sleep_count_as_one() {
    let ring = ring();
    let waker = ring.waker();
    for _ in 0..1000 {
        waker.wake();
    }
    assert!(ring.turn(LONG), "a call before the sleep prevents it");
    assert!(!ring.turn(Wait::No), "it is answered once");
    assert!(!ring.turn(Wait::UpTo(Duration::from_millis(1))));
}

#[test]
fn no_message_is_slept_over() {
    // A counter as mailbox: every value that was posted before a call is seen without another call.
    let ring = ring();
    let posted = AtomicU64::new(0);
    let count = 20_000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (waker, posted) = (ring.waker(), &posted);
            scope.spawn(move || {
                for index in 0..count / 2 {
                    posted.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                    if index % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
        while posted.load(Ordering::Relaxed) < count {
            ring.turn(LONG);
        }
    });
}

#[test]
fn an_idle_turn_makes_no_system_call() {
    let ring = ring();
    ring.turn(Wait::No);
    let before = ring.enter_count();
    for _ in 0..100 {
        assert!(!ring.turn(Wait::No));
    }
    assert_eq!(ring.enter_count(), before);
    ring.turn(Wait::UpTo(Duration::from_millis(1)));
    assert_eq!(ring.enter_count(), before + 1, "a sleep is one");
}

#[test]
fn a_turn_hands_everything_over_in_one_system_call() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("disk");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a file");
    let pool = BlockPool::new(256).expect("a small pool");
    // A small ring too: what does not fit waits in line, and everything completes.
    for (entries, enters) in [(1024, 1), (8, 16)] {
        let ring = Ring::new(RingOptions { entries, ..RingOptions::default() }, &pool).expect("io_uring");
        let mut disk = FileDisk::open(&ring, &path, DiskOptions::default()).expect("nobody has it");
        ring.turn(Wait::No);
        let before = ring.enter_count();
        let depth = disk.room();
        for token in 0..depth as u64 {
            disk.read(Token(token), token, pool.allocate_many(1).expect("blocks"));
        }
        ring.turn(Wait::No);
        assert!(ring.enter_count() - before <= enters, "{} of {enters}", ring.enter_count() - before);
        let mut completions = Vec::new();
        while completions.len() < depth {
            ring.turn(LONG);
            disk.poll(&mut completions);
        }
        assert!(completions.iter().all(|completion| completion.result.is_ok()));
    }
}

#[test]
fn a_turn_does_not_sleep_over_a_log_that_needs_no_kernel() {
    let ring = ring();
    let mut log = AtOnce::new(&ring, MemoryLog::new(&MemoryRegion::new("memory", 4096)));
    log.store(0, &[1; 64]);
    log.persist(Token(1));
    assert!(ring.turn(LONG));
    let mut completions = Vec::new();
    log.poll(&mut completions);
    assert_eq!(completions.len(), 1);
}

#[test]
fn the_clock_stands_within_a_turn_and_goes_on_with_the_next() {
    let mut platform = UringPlatform::new(ring());
    let before = platform.now();
    platform.turn(Wait::UpTo(Duration::from_millis(2)));
    let after = platform.now();
    assert!(after > before && platform.now() == after);
    assert!(platform.wall_clock_ns() > 1_700_000_000_000_000_000, "we live after 2023");
}

#[test]
fn a_ring_without_registered_files_serves() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("disk");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a file");
    let pool = BlockPool::new(64).expect("a small pool");
    let ring = Ring::new(RingOptions { files_max: 0, ..RingOptions::default() }, &pool).expect("io_uring");
    assert!(!ring.facts().registered_files);
    let mut disk = FileDisk::open(&ring, &path, DiskOptions::default()).expect("nobody has it");
    disk.flush(Token(1));
    let mut completions = Vec::new();
    while completions.is_empty() {
        ring.turn(LONG);
        disk.poll(&mut completions);
    }
    assert_eq!(completions[0].result, Ok(()));
}

/// The kernel has 16 places for registered rings in a thread; one that is never given up holds its ring, and files of that ring, until the thread ends.
#[test]
fn a_ring_that_is_dropped_is_let_go() {
    let registered = ring().facts().registered_ring;
    for round in 0..40 {
        assert_eq!(ring().facts().registered_ring, registered, "round {round}");
    }
}
