//! Random operations on one file or block device beside a model in memory, after the idea of NeXT's `fsx`.
//!
//! Every read is compared with the model, byte by byte. Reads come from the page cache or, after the cache has been written out and dropped,
//! from the device: the second kind is what tests the target.
//!
//! | operation | file | block device |
//! |---|---|---|
//! | write, read | any byte | any byte (through the page cache) |
//! | write out, drop the cache, read all | yes | yes |
//! | truncate, up or down | yes | no |
//! | punch a hole | any byte | a discard of whole blocks, which Twinlog reads as zeroes |
//! | zero a range | any byte | whole blocks; write-zeroes where the kernel's client knows it, else zeroes are written |

use crate::{host, random::Random};
use anyhow::{Context as _, Result, bail};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, FileTypeExt as _},
    path::{Path, PathBuf},
    process::Command,
};

/// The largest single write: some pages and some blocks of any file system.
const CHUNK_BYTES_MAX: usize = 128 << 10;
/// Ranges on a device are in units of its largest usual logical block.
const DEVICE_UNIT: usize = 4096;

/// A file and what it must hold.
struct Exerciser {
    file: File,
    path: PathBuf,
    model: Vec<u8>,
    /// Of the file at most, of the device always.
    size_max: usize,
    is_device: bool,
    random: Random,
}

/// Does `count` operations, then reads all from the device once more.
pub(super) fn run(path: &Path, size_max: usize, count: u32, seed: u64) -> Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let is_device = path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    if !is_device {
        options.create_new(true);
    }
    let file = options.open(path).with_context(|| format!("opening {}", path.display()))?;
    let model = if is_device { vec![0; size_max] } else { Vec::new() };
    let mut exerciser =
        Exerciser { file, path: path.to_owned(), model, size_max, is_device, random: Random::new(seed) };
    if is_device {
        exerciser.file.read_exact_at(&mut exerciser.model, 0).context("reading the device")?;
    }
    for index in 0..count {
        exerciser.step().with_context(|| format!("{} with seed {seed}, operation {index}", path.display()))?;
    }
    exerciser.reread().with_context(|| format!("{} with seed {seed}, at the end", path.display()))?;
    println!("{}: {count} operations with seed {seed}, all as they must be", path.display());
    Ok(())
}

impl Exerciser {
    fn step(&mut self) -> Result<()> {
        match self.random.below(16) {
            0..=5 => self.write(),
            6..=9 => self.read(),
            10 => self.reread(),
            11 | 12 if self.is_device => self.discard(),
            11 | 12 => self.zero(FallocateFlags::FALLOC_FL_PUNCH_HOLE),
            13 => self.zero(FallocateFlags::FALLOC_FL_ZERO_RANGE),
            14 if self.is_device => self.read(),
            14 => self.truncate(),
            _ => self.file.sync_data().context("fdatasync"),
        }
    }

    /// A random range in `0..bound`, whole units on a device; empty only when `bound` is zero.
    fn range(&mut self, bound: usize, unit: usize) -> (usize, usize) {
        let units = bound / unit;
        if units == 0 {
            return (0, 0);
        }
        let start = self.random.below(units);
        let length = 1 + self.random.below((units - start).min(CHUNK_BYTES_MAX / unit));
        (start * unit, (start + length) * unit)
    }

    fn write(&mut self) -> Result<()> {
        let (start, end) = self.range(self.size_max, 1);
        let mut bytes = vec![0; end - start];
        self.random.fill(&mut bytes);
        self.file.write_all_at(&bytes, offset(start)).with_context(|| format!("writing {start}..{end}"))?;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[start..end].copy_from_slice(&bytes);
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let (start, end) = self.range(self.model.len(), 1);
        self.compare(start, end)
    }

    fn compare(&self, start: usize, end: usize) -> Result<()> {
        let mut bytes = vec![0; end - start];
        self.file.read_exact_at(&mut bytes, offset(start)).with_context(|| format!("reading {start}..{end}"))?;
        let expected = &self.model[start..end];
        if let Some(at) = bytes.iter().zip(expected).position(|(found, expected)| found != expected) {
            let wrong = bytes.iter().zip(expected).filter(|(found, expected)| found != expected).count();
            bail!(
                "byte {} is {:#04x} and must be {:#04x}; {wrong} bytes of {start}..{end} differ",
                start + at,
                bytes[at],
                expected[at]
            );
        }
        Ok(())
    }

    /// Writes out, drops the cache, and compares everything with what comes from the device.
    fn reread(&mut self) -> Result<()> {
        self.file.sync_all().context("fsync")?;
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("dropping the cache")?;
        if !self.is_device {
            let length = self.file.metadata()?.len();
            if length != offset(self.model.len()) {
                bail!("the file has {length} bytes and must have {}", self.model.len());
            }
        }
        self.compare(0, self.model.len())
    }

    fn zero(&mut self, mode: FallocateFlags) -> Result<()> {
        let (start, end) = self.range(self.model.len(), if self.is_device { DEVICE_UNIT } else { 1 });
        if start == end {
            return Ok(());
        }
        let signed = |number: usize| i64::try_from(number).expect("sizes are small");
        fallocate(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, signed(start), signed(end - start))
            .with_context(|| format!("{mode:?} at {start}..{end}"))?;
        self.model[start..end].fill(0);
        Ok(())
    }

    /// By the program of that name: the kernel has no other call for it than an ioctl.
    fn discard(&mut self) -> Result<()> {
        let (start, end) = self.range(self.size_max, DEVICE_UNIT);
        let mut command = Command::new("blkdiscard");
        command.args(["-o", &start.to_string(), "-l", &(end - start).to_string()]).arg(&self.path);
        host::output(&mut command)?;
        self.model[start..end].fill(0);
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let size = self.random.below(self.size_max);
        self.file.set_len(offset(size)).with_context(|| format!("truncating to {size}"))?;
        self.model.resize(size, 0);
        Ok(())
    }
}

fn offset(at: usize) -> u64 {
    u64::try_from(at).expect("a size fits into 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_system_passes() {
        let folder = tempfile::tempdir().unwrap();
        run(&folder.path().join("file"), 1 << 20, 500, 7).unwrap();
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let file = tempfile::tempfile().unwrap();
        let mut exerciser = Exerciser {
            file,
            path: PathBuf::new(),
            model: Vec::new(),
            size_max: 1 << 20,
            is_device: false,
            random: Random::new(3),
        };
        exerciser.write().unwrap();
        exerciser.reread().unwrap();
        let last = exerciser.model.len() - 1;
        exerciser.file.write_all_at(&[!exerciser.model[last]], offset(last)).unwrap();
        let error = exerciser.reread().unwrap_err().to_string();
        assert!(error.contains(&format!("byte {last} is")), "{error}");
    }
}
