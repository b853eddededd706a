//! Files as disks: the conformance suite on every kind of file system and way of access that is at hand.

use std::{path::Path, time::Duration};
use tempfile::TempDir;
use twinlog_device::{
    BLOCK_BYTES, BlockDevice, BlockPool, Wait,
    conformance::{self, BlockHarness},
};
use twinlog_uring::{Access, Cache, FileDisk, Ring, RingOptions, StorageFile};

/// Four of the largest transfers, and a few blocks more.
const BLOCK_COUNT: u64 = 4 * 256 + 7;
const QUEUE_DEPTH: u32 = 16;
/// Two queues' depth, two of the largest transfers, and the suite's own.
const POOL_BLOCKS: u32 = 2 * QUEUE_DEPTH + 3 * 256 + 256;

struct Harness {
    // Queues go before the ring's other users.
    queues: Vec<FileDisk>,
    ring: Ring,
    pool: BlockPool,
    cache: Cache,
    directory: TempDir,
}

impl Harness {
    fn new(parent: &Path, cache: Cache, register_buffers: bool) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a writable directory");
        let file = std::fs::File::create(directory.path().join("disk")).expect("a file");
        file.set_len(BLOCK_COUNT * BLOCK_BYTES as u64 + 100).expect("a sparse file, with a part of a block at its end");
        let pool = BlockPool::new(POOL_BLOCKS).expect("a small pool");
        let ring = Ring::new(RingOptions { register_buffers, ..RingOptions::default() }, &pool).expect("io_uring");
        let mut harness = Self { queues: Vec::new(), ring, pool, cache, directory };
        harness.reopen();
        harness
    }
}

impl BlockHarness for Harness {
    type Device = FileDisk;

    fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    fn queue_count(&self) -> usize {
        self.queues.len()
    }

    fn device(&mut self, queue: usize) -> &mut FileDisk {
        &mut self.queues[queue]
    }

    fn turn(&mut self) {
        self.ring.turn(Wait::UpTo(Duration::from_millis(1)));
    }

    fn reopen(&mut self) {
        self.queues.clear();
        let path = self.directory.path().join("disk");
        let file = StorageFile::open(&path, Access::Exclusive, self.cache).expect("nobody has it");
        let queue = || FileDisk::new(&self.ring, &file, QUEUE_DEPTH).expect("a file of many blocks");
        self.queues = vec![queue(), queue()];
    }
}

#[test]
fn a_file_conforms() {
    conformance::block_device(|| Harness::new(&std::env::temp_dir(), Cache::Bypass, false));
}

#[test]
fn a_file_with_registered_buffers_conforms() {
    // Where the kernel does not let us pin memory this is the test above once more.
    conformance::block_device(|| Harness::new(&std::env::temp_dir(), Cache::Bypass, true));
}

#[test]
fn a_buffered_file_conforms() {
    conformance::block_device(|| Harness::new(&std::env::temp_dir(), Cache::Kernel, false));
}

#[test]
fn a_file_in_memory_conforms() {
    let shm = Path::new("/dev/shm");
    if tempfile::tempdir_in(shm).is_ok() {
        conformance::block_device(|| Harness::new(shm, Cache::Bypass, false));
    }
}

#[test]
#[should_panic(expected = "room")]
fn an_operation_without_room_is_refused() {
    conformance::block_device_overfilled(&mut Harness::new(&std::env::temp_dir(), Cache::Bypass, false));
}

#[test]
#[should_panic(expected = "1 to 256 blocks")]
fn a_transfer_that_is_too_long_is_refused() {
    conformance::block_device_oversized(&mut Harness::new(&std::env::temp_dir(), Cache::Bypass, false));
}

#[test]
#[should_panic(expected = "1 to 256 blocks")]
fn a_transfer_of_no_block_is_refused() {
    conformance::block_device_without_blocks(&mut Harness::new(&std::env::temp_dir(), Cache::Bypass, false));
}

#[test]
fn a_disk_may_go_while_it_works() {
    let mut harness = Harness::new(&std::env::temp_dir(), Cache::Bypass, false);
    for round in 0..20 {
        for token in 0..u64::from(QUEUE_DEPTH) {
            let blocks = harness.pool.allocate_many(8).expect("blocks");
            harness.queues[0].read(twinlog_device::Token(token), token * 8, blocks);
        }
        if round % 2 == 0 {
            harness.turn();
        }
        harness.reopen();
        assert_eq!(harness.pool.free_count(), harness.pool.block_count(), "its blocks come back");
    }
}
