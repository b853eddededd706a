//! Mapped files as log memory: the conformance suite, and what is particular to mappings.

use std::path::{Path, PathBuf};
use tempfile::TempDir;
use twinlog_device::{
    DurabilityClass, LogMemory, Token,
    conformance::{self, LogHarness},
};
use twinlog_file::{FileError, create_log_file};
use twinlog_pmem::{PmemFile, PmemLog};

const REGION_BYTES: u64 = 256 << 10;
const OFFSET_BYTES: u64 = 4096;

struct Harness {
    log: Option<PmemLog>,
    directory: TempDir,
}

impl Harness {
    fn new(parent: &Path) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a writable directory");
        let mut harness = Self { log: None, directory };
        harness.create();
        harness
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn create(&mut self) {
        create_log_file(&self.path(), OFFSET_BYTES + REGION_BYTES, |_| ()).expect("space");
        self.open();
    }

    fn open(&mut self) {
        self.log = None;
        self.log = Some(PmemLog::open(&self.path(), OFFSET_BYTES, REGION_BYTES).expect("a region"));
    }
}

impl LogHarness for Harness {
    type Log = PmemLog;

    fn log(&mut self) -> &mut PmemLog {
        self.log.as_mut().expect("it is open")
    }

    fn turn(&mut self) {}

    fn reopen(&mut self) -> bool {
        let survives = self.log().info().durability > DurabilityClass::Volatile;
        if survives {
            self.open();
        } else {
            // What is volatile may be gone: for the suite it is.
            self.log = None;
            std::fs::remove_file(self.path()).expect("it exists");
            self.create();
        }
        survives
    }
}

#[test]
fn a_mapped_file_conforms() {
    conformance::log_memory(|| Harness::new(&std::env::temp_dir()));
}

#[test]
fn a_mapped_file_in_memory_conforms_and_is_volatile() {
    let shm = Path::new("/dev/shm");
    if tempfile::tempdir_in(shm).is_ok() {
        conformance::log_memory(|| Harness::new(shm));
        assert_eq!(Harness::new(shm).log().info().durability, DurabilityClass::Volatile);
    }
}

#[test]
#[should_panic(expected = "room")]
fn an_operation_without_room_is_refused() {
    conformance::log_memory_overfilled(&mut Harness::new(&std::env::temp_dir()));
}

#[test]
fn a_file_that_is_in_use_or_too_short_is_refused() {
    let mut harness = Harness::new(&std::env::temp_dir());
    assert!(matches!(PmemFile::open(&harness.path()), Err(FileError::InUse { .. })));
    harness.log = None;
    let file = PmemFile::open(&harness.path()).expect("nobody has it");
    for (offset, length) in [(0, OFFSET_BYTES + REGION_BYTES + 4096), (64, 4096), (4096, 0), (u64::MAX - 4095, 4096)] {
        assert!(matches!(PmemLog::new(&file, offset, length), Err(FileError::Region { .. })), "{length} at {offset}");
    }
    PmemLog::new(&file, OFFSET_BYTES, REGION_BYTES).expect("a region");
}

#[test]
fn lanes_of_one_file_do_not_touch_each_other() {
    let mut harness = Harness::new(&std::env::temp_dir());
    harness.log = None;
    let file = PmemFile::open(&harness.path()).expect("nobody has it");
    let mut lanes = [0, 8192].map(|offset| PmemLog::new(&file, offset, 8192).expect("a region"));
    for (lane, value) in lanes.iter_mut().zip([1_u8, 2]) {
        lane.store(0, &[value; 8192]);
        lane.persist(Token(0));
    }
    for (lane, value) in lanes.iter_mut().zip([1_u8, 2]) {
        lane.read(Token(1), 0, 8192);
        let mut completions = Vec::new();
        lane.poll(&mut completions);
        let bytes = completions.pop().expect("a read").result.expect("a region in memory");
        assert!(bytes.len() == 8192 && bytes.iter().all(|&byte| byte == value));
    }
}
