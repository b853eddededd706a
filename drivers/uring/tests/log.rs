//! Log memory of every backend: the conformance suite, and what is particular to files.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use twinlog_device::{
    BlockPool, DeviceError, DurabilityClass, LogCompletion, LogMemory, Token, Wait,
    conformance::{self, LogHarness},
};
use twinlog_uring::{
    Access, AnyLog, AtOnce, Cache, FileLog, MemoryLog, MemoryRegion, PmemLog, Ring, RingOptions, StorageFile,
    create_log_file,
};

const REGION_BYTES: u64 = 1 << 20;
/// The region begins behind something else, which must stay as it is.
const OFFSET_BYTES: u64 = 8192;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    File,
    Memory,
    Pmem,
}

struct Harness {
    // Goes before the ring's other users.
    log: Option<AnyLog>,
    ring: Ring,
    backend: Backend,
    directory: TempDir,
}

impl Harness {
    fn new(parent: &Path, backend: Backend, register_buffers: bool) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a writable directory");
        create_log_file(&directory.path().join("log"), OFFSET_BYTES + REGION_BYTES + 4096, |_| ()).expect("space");
        let pool = BlockPool::new(16).expect("a small pool");
        let ring = Ring::new(RingOptions { register_buffers, ..RingOptions::default() }, &pool).expect("io_uring");
        let mut harness = Self { log: None, ring, backend, directory };
        harness.open();
        harness
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn open(&mut self) {
        self.log = None;
        let (ring, path) = (&self.ring, self.path());
        self.log = Some(match self.backend {
            Backend::File => AnyLog::File(FileLog::open(ring, &path, OFFSET_BYTES, REGION_BYTES).expect("a region")),
            Backend::Memory => {
                AnyLog::Memory(AtOnce::new(ring, MemoryLog::new(&MemoryRegion::new("memory", REGION_BYTES))))
            }
            Backend::Pmem => {
                let log = PmemLog::open(&path, OFFSET_BYTES, REGION_BYTES).expect("a region");
                AnyLog::Pmem(AtOnce::new(ring, log))
            }
        });
    }
}

impl LogHarness for Harness {
    type Log = AnyLog;

    fn log(&mut self) -> &mut AnyLog {
        self.log.as_mut().expect("it is open")
    }

    fn turn(&mut self) {
        self.ring.turn(Wait::UpTo(Duration::from_millis(1)));
    }

    fn reopen(&mut self) -> bool {
        let survives = self.log().info().durability > DurabilityClass::Volatile;
        if !survives {
            // What is volatile may be gone: for the suite it is.
            self.log = None;
            std::fs::remove_file(self.path()).expect("it exists");
            create_log_file(&self.path(), OFFSET_BYTES + REGION_BYTES + 4096, |_| ()).expect("space");
        }
        self.open();
        survives
    }

    /// A file that is open for reading only refuses to be written.
    fn fail_next_persist(&mut self) -> bool {
        if self.backend != Backend::File {
            return false;
        }
        self.log = None;
        let file = StorageFile::open(&self.path(), Access::ReadOnly, Cache::Bypass).expect("nobody has it");
        let log = FileLog::new(&self.ring, &file, OFFSET_BYTES, REGION_BYTES).expect("a region");
        self.log = Some(AnyLog::File(log));
        true
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.log = None;
        let bytes = std::fs::read(self.path()).expect("it exists");
        let outside = bytes[..8192].iter().chain(&bytes[8192 + (1 << 20)..]);
        assert!(std::thread::panicking() || outside.into_iter().all(|&byte| byte == 0), "the region's neighbours stay");
    }
}

fn shm() -> Option<&'static Path> {
    let shm = Path::new("/dev/shm");
    tempfile::tempdir_in(shm).is_ok().then_some(shm)
}

#[test]
fn a_file_conforms() {
    conformance::log_memory(|| Harness::new(&std::env::temp_dir(), Backend::File, false));
}

#[test]
fn a_file_with_registered_buffers_conforms() {
    conformance::log_memory(|| Harness::new(&std::env::temp_dir(), Backend::File, true));
}

#[test]
fn a_file_in_memory_conforms() {
    if let Some(shm) = shm() {
        conformance::log_memory(|| Harness::new(shm, Backend::File, false));
    }
}

#[test]
fn memory_conforms() {
    conformance::log_memory(|| Harness::new(&std::env::temp_dir(), Backend::Memory, false));
}

#[test]
fn a_mapped_file_conforms() {
    conformance::log_memory(|| Harness::new(&std::env::temp_dir(), Backend::Pmem, false));
    if let Some(shm) = shm() {
        conformance::log_memory(|| Harness::new(shm, Backend::Pmem, false));
    }
}

#[test]
#[should_panic(expected = "room")]
fn a_file_refuses_an_operation_without_room() {
    conformance::log_memory_overfilled(&mut Harness::new(&std::env::temp_dir(), Backend::File, false));
}

#[test]
#[should_panic(expected = "room")]
fn memory_refuses_an_operation_without_room() {
    conformance::log_memory_overfilled(&mut Harness::new(&std::env::temp_dir(), Backend::Memory, false));
}

#[test]
#[should_panic(expected = "room")]
fn a_mapping_refuses_an_operation_without_room() {
    conformance::log_memory_overfilled(&mut Harness::new(&std::env::temp_dir(), Backend::Pmem, false));
}

#[test]
fn what_is_in_memory_is_called_volatile() {
    let Some(shm) = shm() else { return };
    for backend in [Backend::File, Backend::Memory, Backend::Pmem] {
        let mut harness = Harness::new(shm, backend, false);
        assert_eq!(harness.log().info().durability, DurabilityClass::Volatile);
    }
}

/// Polls until one operation more has completed; what completed with it is kept for the next call.
fn complete(harness: &mut Harness, kept: &mut Vec<LogCompletion>) -> Result<Vec<u8>, DeviceError> {
    while kept.is_empty() {
        harness.turn();
        harness.log().poll(kept);
    }
    kept.remove(0).result
}

#[test]
fn a_log_that_was_cut_short_is_an_error_and_no_hang() {
    let mut harness = Harness::new(&std::env::temp_dir(), Backend::File, false);
    let file = std::fs::OpenOptions::new().write(true).open(harness.path()).expect("it exists");
    file.set_len(OFFSET_BYTES + 4096).expect("it can be cut");
    harness.log().read(Token(1), 0, 8192);
    let error = complete(&mut harness, &mut Vec::new()).expect_err("half of it is gone");
    assert_eq!((error.operation, error.first, error.count), ("read", 0, 2));
    file.set_len(OFFSET_BYTES + REGION_BYTES + 4096).expect("it can grow");
}

#[test]
fn a_write_that_wraps_around_the_staging_buffer_arrives_whole() {
    // Persists of 3/8 of the buffer, always one of them in flight, so that the buffer never starts over from its front.
    let mut harness = Harness::new(&std::env::temp_dir(), Backend::File, false);
    let part = usize::try_from(REGION_BYTES * 3 / 8).expect("small");
    let bytes = |tag: u64| -> Vec<u8> {
        (0..part as u64 / 8).flat_map(|word| (word.wrapping_mul(0x9E37_79B9) ^ tag << 40).to_le_bytes()).collect()
    };
    let half = REGION_BYTES / 2;
    let mut kept = Vec::new();
    harness.log().store(0, &bytes(0));
    harness.log().persist(Token(0));
    for tag in 1..30 {
        harness.log().store(tag % 2 * half, &bytes(tag));
        harness.log().persist(Token(tag));
        // The one before is reported; this one may still be in flight.
        assert_eq!(complete(&mut harness, &mut kept), Ok(Vec::new()));
    }
    assert_eq!(complete(&mut harness, &mut kept), Ok(Vec::new()));
    for tag in [28, 29] {
        harness.log().read(Token(tag), tag % 2 * half, part);
        let read = complete(&mut harness, &mut kept).expect("inside the region");
        assert!(read == bytes(tag), "persist {tag} arrives whole");
    }
}
