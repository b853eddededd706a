//! The driver of change logs on the guest's persistent memory.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};
use twinlog_device::{
    DeviceErrorKind, DurabilityClass, LogCompletion, LogMemory as _, Token,
    conformance::{self, LogHarness},
};
use twinlog_pmem::{PmemFile, PmemLog};

const REGION_BYTES: u64 = 256 << 10;
const FILE_BYTES: u64 = 1 << 20;

struct Harness {
    path: PathBuf,
    log: Option<PmemLog>,
}

impl Harness {
    fn open(&mut self) {
        self.log = None;
        self.log = Some(PmemLog::open(&self.path, 0, REGION_BYTES).expect("it can be mapped"));
    }
}

impl LogHarness for Harness {
    type Log = PmemLog;

    fn log(&mut self) -> &mut PmemLog {
        self.log.as_mut().expect("it is open")
    }

    fn turn(&mut self) {}

    fn reopen(&mut self) -> bool {
        self.open();
        true
    }
}

/// Runs the conformance suite on a file, which is made, or a device-DAX node, whose first bytes are overwritten.
pub(super) fn conform(path: &Path) -> Result<()> {
    make(path)?;
    let file = PmemFile::open(path)?;
    println!("{}: {}, {}", path.display(), file.durability(), file.domain());
    ensure!(file.durability() == DurabilityClass::Durable, "persistent memory is durable");
    drop(file);
    conformance::log_memory(|| {
        let mut harness = Harness { path: path.to_owned(), log: None };
        harness.open();
        harness
    });
    Ok(())
}

fn make(path: &Path) -> Result<()> {
    let is_node = fs::metadata(path).is_ok_and(|facts| facts.file_type().is_char_device());
    if !is_node && !path.exists() {
        twinlog_file::create_log_file(path, FILE_BYTES, |_| ())?;
    }
    Ok(())
}

fn one(log: &mut PmemLog) -> Result<LogCompletion> {
    let mut completions = Vec::new();
    log.poll(&mut completions);
    completions.pop().context("operations on memory end at once")
}

fn read(log: &mut PmemLog, block: u64) -> Result<Option<DeviceErrorKind>> {
    log.read(Token(0), block * 4096, 4096);
    Ok(one(log)?.result.err().map(|error| error.kind))
}

/// Lets the kernel believe that blocks of the file are lost, which begins at `sector` of the disk with this list, while it is open and before: they are
/// errors, and this process lives.
pub(super) fn lose(path: &Path, sector: u64, list: &Path) -> Result<()> {
    let lose = |block: u64| fs::write(list, format!("{} 8\n", sector + block * 8)).context("adding to the bad blocks");
    lose(2)?;
    let file = PmemFile::open(path)?;
    ensure!(file.bad_ranges().first() == Some(&(8192..12288)), "bad ranges {:?}", file.bad_ranges());
    let mut log = PmemLog::new(&file, 0, REGION_BYTES)?;
    for block in 0..4 {
        let lost = (block == 2).then_some(DeviceErrorKind::Medium);
        let found = read(&mut log, block)?;
        ensure!(found == lost, "block {block}: {found:?}");
    }
    // Not in the list when it was read, and not mapped yet: the kernel says so with a signal.
    lose(16)?;
    let found = read(&mut log, 16)?;
    ensure!(found == Some(DeviceErrorKind::Medium), "a block that was lost later: {found:?}");
    log.persist(Token(1));
    ensure!(one(&mut log)?.result.is_err(), "a failed log persists nothing");
    println!("known and unknown lost bytes are errors");
    Ok(())
}
