//! One request after another on a part of a block device, past the page cache: writes, and reads that are compared with what was written. It says how long
//! requests took: a pause of the device is one that took long.

use crate::random::Random;
use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::OFlag,
    time::{ClockId, clock_gettime},
};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const BLOCK_BYTES: usize = 4096;
/// Between two requests: an emulated processor has other things to do.
const REST: Duration = Duration::from_millis(20);
/// A line of the progress is about so much.
const WINDOW: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(clap::Args, Debug)]
pub struct PaceArgs {
    /// The block device
    device: PathBuf,
    /// Where its part begins, in bytes
    #[arg(long)]
    offset: u64,
    /// How many blocks of 4 KiB it has
    #[arg(long, default_value_t = 512)]
    blocks: usize,
    /// Of the random numbers
    #[arg(long)]
    seed: u64,
    /// Ends when this file appears
    #[arg(long)]
    stop: PathBuf,
    /// Gets a line for each 0.2 s or longer pause: seconds since the machine was started, and of the longest request
    #[arg(long)]
    progress: PathBuf,
}

/// The part of the device, and what it must hold.
struct Part<'a> {
    args: &'a PaceArgs,
    device: File,
    /// How often each block was written; its content follows from that.
    versions: Vec<u64>,
    memory: Memory,
}

/// Twice a block, so that an aligned one lies within: what goes past the page cache must be aligned.
struct Memory(Vec<u8>);

impl Memory {
    fn block(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK_BYTES);
        &mut self.0[start..start + BLOCK_BYTES]
    }
}

impl Part<'_> {
    fn offset(&self, block: usize) -> Result<u64> {
        Ok(self.args.offset + u64::try_from(block * BLOCK_BYTES)?)
    }

    fn content(&self, block: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK_BYTES];
        let seed = self.args.seed ^ (u64::try_from(block)? << 32) ^ self.versions[block];
        Random::new(seed).fill(&mut bytes);
        Ok(bytes)
    }

    fn write(&mut self, block: usize) -> Result<()> {
        self.versions[block] += 1;
        let (content, offset) = (self.content(block)?, self.offset(block)?);
        self.memory.block().copy_from_slice(&content);
        self.device.write_all_at(self.memory.block(), offset).context("writing")
    }

    /// Nothing is known of a block that was never written.
    fn compare(&mut self, block: usize) -> Result<()> {
        if self.versions[block] == 0 {
            return Ok(());
        }
        let (content, offset) = (self.content(block)?, self.offset(block)?);
        self.device.read_exact_at(self.memory.block(), offset).context("reading")?;
        ensure!(self.memory.block() == content, "it does not hold version {}", self.versions[block]);
        Ok(())
    }
}

/// Goes on until it is told to stop; then reads everything once more.
pub(super) fn run(args: &PaceArgs) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(&args.device);
    let device = device.with_context(|| format!("opening {}", args.device.display()))?;
    let memory = Memory(vec![0; 2 * BLOCK_BYTES]);
    let mut part = Part { args, device, versions: vec![0; args.blocks], memory };
    let mut progress = File::create(&args.progress)?;
    let mut random = Random::new(args.seed);
    let mut count = 0_u64;
    let (mut window, mut longest) = (Instant::now(), Duration::ZERO);
    while !args.stop.exists() {
        let block = random.below(args.blocks);
        let is_write = random.below(3) > 0;
        let start = Instant::now();
        let done = if is_write { part.write(block) } else { part.compare(block) };
        done.with_context(|| format!("{}, block {block}, request {count}", args.device.display()))?;
        count += 1;
        longest = longest.max(start.elapsed());
        if window.elapsed() >= WINDOW {
            let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
            progress.write_all(format!("{:.3} {:.3}\n", now.as_secs_f64(), longest.as_secs_f64()).as_bytes())?;
            (window, longest) = (Instant::now(), Duration::ZERO);
        }
        thread::sleep(REST);
    }
    for block in 0..args.blocks {
        part.compare(block).with_context(|| format!("{}, block {block}, at the end", args.device.display()))?;
    }
    println!("{}: {count} requests, all as they must be", args.device.display());
    Ok(())
}
