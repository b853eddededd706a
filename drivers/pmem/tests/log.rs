//! Mapped files as log memory: the conformance suite, and what is particular to mappings.

use std::path::{Path, PathBuf};
use tempfile::TempDir;
use twinlog_device::{
    DeviceError, DeviceErrorKind, DurabilityClass, LogMemory, Token,
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

#[test]
fn any_bytes_of_a_file_are_read() {
    let mut harness = Harness::new(&std::env::temp_dir());
    harness.log().store(0, &[7; 64]);
    harness.log().persist(Token(0));
    harness.log = None;
    let file = PmemFile::open(&harness.path()).expect("nobody has it");
    let mut bytes = [1; 71];
    file.read_at(OFFSET_BYTES - 3, &mut bytes).expect("in the file");
    assert!(bytes[..3] == [0; 3] && bytes[3..67] == [7; 64] && bytes[67..] == [0; 4]);
    file.read_at(file.size_bytes() - 71, &mut bytes).expect("in the file");
    assert_eq!(bytes, [0; 71]);
    for offset in [file.size_bytes() - 70, u64::MAX] {
        file.read_at(offset, &mut bytes).expect_err("beyond the end");
    }
}

/// The result of the one operation that has finished.
fn result(log: &mut PmemLog) -> Result<Vec<u8>, DeviceError> {
    let mut completions = Vec::new();
    log.poll(&mut completions);
    assert_eq!(completions.len(), 1);
    completions.pop().expect("one").result
}

/// Two lanes of a file that is then cut short in the second.
fn cut_short() -> (Harness, [PmemLog; 2]) {
    let mut harness = Harness::new(&std::env::temp_dir());
    harness.log = None;
    let file = PmemFile::open(&harness.path()).expect("nobody has it");
    let lanes = [0, 64 << 10].map(|offset| PmemLog::new(&file, offset, 64 << 10).expect("a region"));
    let other = std::fs::File::options().write(true).open(harness.path()).expect("there");
    other.set_len(64 << 10).expect("shorter");
    (harness, lanes)
}

fn is_medium(result: Result<Vec<u8>, DeviceError>) -> bool {
    result.is_err_and(|error| error.kind == DeviceErrorKind::Medium)
}

#[test]
fn a_read_of_memory_that_is_gone_is_an_error_and_the_end_of_the_file() {
    let (_harness, [mut first, mut second]) = cut_short();
    first.read(Token(0), 0, 4096);
    assert_eq!(result(&mut first).expect("still there"), [0; 4096]);
    second.read(Token(1), 0, 4096);
    assert!(is_medium(result(&mut second)));
    for lane in [&mut first, &mut second] {
        lane.read(Token(2), 0, 4096);
        assert!(is_medium(result(lane)), "zeroes of the replacement are never returned");
        lane.store(0, &[1; 64]);
        lane.persist(Token(3));
        assert!(is_medium(result(lane)), "nothing is persisted any more");
    }
}

#[test]
fn a_store_to_memory_that_is_gone_fails_its_persist_and_those_of_other_lanes() {
    let (harness, [mut first, mut second]) = cut_short();
    first.store(0, &[1; 64]);
    first.persist(Token(0));
    result(&mut first).expect("still there");
    first.store(64, &[2; 64]);
    second.store(32 << 10, &[3; 4096]);
    second.persist(Token(1));
    assert!(is_medium(result(&mut second)));
    first.persist(Token(2));
    assert!(is_medium(result(&mut first)), "nobody knows whether its store came before or after");
    drop((first, second));
    let content = std::fs::read(harness.path()).expect("there");
    assert_eq!(content[..64], [1; 64], "what was persisted is in the file");
}

/// Names the test below to the process that it starts.
const CHILD: &str = "a_bus_error_elsewhere_ends_the_process";

#[test]
fn a_bus_error_elsewhere_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    if std::env::args().any(|argument| argument == "--nocapture") {
        let (_harness, [mut log, _]) = cut_short();
        // The handler is in force, and has nothing guarded.
        log.read(Token(0), 0, 4096);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).expect("our own process");
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).expect("our own process");
        return;
    }
    let own = std::env::current_exe().expect("a program");
    let output = std::process::Command::new(own).args(["--exact", CHILD, "--nocapture"]).output().expect("started");
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}
