//! The NVMe driver on a real controller: the suite of every block device, data that the kernel's driver reads afterwards, and load to be killed under.

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use twinlog_device::{
    BlockBuf, BlockDevice as _, BlockPool, Nanos, Persistence, Token,
    conformance::{self, BlockHarness},
};
use twinlog_nvme::{Clock, Controller, ControllerOptions, ControllerState, NvmeDisk};
use twinlog_pci::{PciError, PciFunction};
use twinlog_vfio::{UioFunction, VfioFunction};

const NAMESPACE: u32 = 1;
const BLOCKS: u32 = 1024;
const BLOCK_BYTES: usize = twinlog_memory::BLOCK_BYTES;
pub(super) const OPTIONS: ControllerOptions = ControllerOptions {
    disk_count: 2,
    queue_depth: 32,
    interrupts: true,
    // Emulation on a loaded machine.
    command_timeout: Duration::from_secs(60),
    abort_timeout: Duration::from_secs(20),
    admin_timeout: Duration::from_secs(60),
    host_id: None,
    ignores_fua: false,
};
/// Between two looks at the controller. Emulated, it needs the processor that would spin.
const TURN: Duration = Duration::from_micros(200);
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Of one transfer when a file is written.
const COPY_BLOCKS: usize = 32;
/// Operations after which load counts as load.
const BUSY_COUNT: u64 = 1000;

/// What to do.
#[derive(clap::Args, Debug)]
pub struct NvmeArgs {
    /// Of the controller on the PCI buses
    address: String,
    /// What it must say that its serial is
    #[arg(long)]
    serial: String,
    /// Through uio_pci_generic, not VFIO
    #[arg(long)]
    uio: bool,
    /// What must confine it: a word of what the driver says
    #[arg(long, value_name = "WORD")]
    confined_by: String,
    /// Only write this file's content to the namespace, from its first block on, durably
    #[arg(long)]
    copy: Option<PathBuf>,
    /// Only compare the namespace with this file's content
    #[arg(long, conflicts_with = "copy")]
    compare: Option<PathBuf>,
    /// Only put load on it until killed; this file is made when there is load
    #[arg(long, conflicts_with = "copy")]
    forever: Option<PathBuf>,
}

pub(super) fn run(args: &NvmeArgs) -> Result<()> {
    if args.uio {
        drive(args, UioFunction::open, BlockPool::in_huge_pages)
    } else {
        drive(args, VfioFunction::open, BlockPool::new)
    }
}

fn drive<F: PciFunction>(
    args: &NvmeArgs,
    open: fn(&str) -> Result<F, PciError>,
    make_pool: fn(u32) -> std::io::Result<BlockPool>,
) -> Result<()> {
    let new = || Disks::new(args.address.clone(), open, make_pool(BLOCKS)?);
    let mut disks = new()?;
    let identity = disks.controller()?.identity().context("a controller that serves was identified")?;
    println!("{identity:?}");
    ensure!(identity.serial == args.serial, "serial {:?} and not {:?}", identity.serial, args.serial);
    let confined_by = disks.disks[0].health().and_then(|health| health.confined_by).context("a controller can say")?;
    super::pci::expect_confined(&args.address, confined_by, &args.confined_by)?;
    if let Some(path) = &args.copy {
        return disks.copy(&fs::read(path)?);
    }
    if let Some(path) = &args.compare {
        return disks.compare(&fs::read(path)?);
    }
    if let Some(path) = &args.forever {
        return disks.load(path);
    }
    drop(disks);
    conformance::block_device(|| new().expect("the controller serves"));
    let mut disks = new()?;
    ensure!(disks.controller()?.reset_count() == 0, "it had to be reset");
    println!("it does what every block device must");
    disks.close();
    ensure!(disks.pool.free_count() == disks.pool.block_count(), "blocks were lost");
    Ok(())
}

pub(super) struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Nanos {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
        Nanos(u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The disks on one namespace.
struct Disks<F: PciFunction> {
    address: String,
    open: fn(&str) -> Result<F, PciError>,
    pool: BlockPool,
    disks: Vec<NvmeDisk<F, Monotonic>>,
    controller: Option<Controller<F>>,
    /// Sleeps that the controller ended.
    signal_count: u64,
}

impl<F: PciFunction> Disks<F> {
    fn new(address: String, open: fn(&str) -> Result<F, PciError>, pool: BlockPool) -> Result<Self> {
        let mut disks = Self { address, open, pool, disks: Vec::new(), controller: None, signal_count: 0 };
        disks.start()?;
        Ok(disks)
    }

    fn controller(&self) -> Result<&Controller<F>> {
        self.controller.as_ref().context("it is closed")
    }

    fn start(&mut self) -> Result<()> {
        self.close();
        let function = (self.open)(&self.address)?;
        let controller = Controller::start(function, &[&self.pool], OPTIONS, Monotonic.now())?;
        let start = Instant::now();
        loop {
            match controller.poll(Monotonic.now()) {
                ControllerState::Live => break,
                ControllerState::Starting if start.elapsed() < PATIENCE => thread::sleep(TURN),
                state => bail!("{}: {state:?}", self.address),
            }
        }
        for _ in 0..OPTIONS.disk_count {
            self.disks.push(controller.open(NAMESPACE, Monotonic)?);
        }
        self.controller = Some(controller);
        Ok(())
    }

    fn close(&mut self) {
        self.disks.clear();
        self.controller = None;
    }

    /// Writes `bytes` from the first block on, durably, in large transfers whose memory is in two pieces: QEMU's controller gets them as scatter
    /// gather lists.
    fn copy(&mut self, bytes: &[u8]) -> Result<()> {
        for (index, part) in (0..).zip(bytes.chunks(COPY_BLOCKS * BLOCK_BYTES)) {
            let mut blocks = self.pool.allocate_many(part.len().div_ceil(BLOCK_BYTES)).context("blocks are free")?;
            blocks.sort_by_key(|block| block.as_ptr());
            let count = blocks.len();
            blocks.rotate_left(count / 2);
            for (block, part) in blocks.iter_mut().zip(part.chunks(BLOCK_BYTES)) {
                block.fill(0);
                block[..part.len()].copy_from_slice(part);
            }
            let blocks = blocks.into_iter().map(BlockBuf::freeze).collect();
            self.disks[0].write(Token(index), index * COPY_BLOCKS as u64, blocks, Persistence::Durable);
            self.one()?;
        }
        Ok(())
    }

    /// Reads from the first block on, and finds `bytes` there.
    fn compare(&mut self, bytes: &[u8]) -> Result<()> {
        for (index, part) in (0..).zip(bytes.chunks(BLOCK_BYTES)) {
            let block = self.pool.allocate().context("a block is free")?;
            self.disks[0].read(Token(index), index, vec![block]);
            let blocks = self.one()?;
            ensure!(blocks[0][..part.len()] == *part, "block {index} holds something else");
        }
        Ok(())
    }

    /// Waits for the one operation in flight.
    fn one(&mut self) -> Result<Vec<BlockBuf>> {
        let start = Instant::now();
        let mut completions = Vec::new();
        while completions.is_empty() {
            ensure!(start.elapsed() < PATIENCE, "an operation does not end");
            self.disks[0].poll(&mut completions);
            thread::sleep(TURN);
        }
        let completion = completions.swap_remove(0);
        completion.result?;
        Ok(completion.blocks)
    }

    /// Reads and writes without an end, with both queues full.
    fn load(&mut self, path: &Path) -> Result<()> {
        let mut completions = Vec::new();
        let mut count = 0;
        loop {
            for disk in &mut self.disks {
                while disk.room() > 0 {
                    let Some(block) = self.pool.allocate() else { break };
                    let place = count * 7 % disk.info().block_count;
                    if count % 2 == 0 {
                        disk.read(Token(count), place, vec![block]);
                    } else {
                        disk.write(Token(count), place, vec![block.freeze()], Persistence::Volatile);
                    }
                    count += 1;
                }
                disk.poll(&mut completions);
            }
            for completion in completions.drain(..) {
                completion.result?;
            }
            if count >= BUSY_COUNT && !path.exists() {
                fs::write(path, "busy")?;
            }
            thread::sleep(TURN);
        }
    }
}

impl<F: PciFunction> Drop for Disks<F> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<F: PciFunction> BlockHarness for Disks<F> {
    type Device = NvmeDisk<F, Monotonic>;

    fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    fn queue_count(&self) -> usize {
        self.disks.len()
    }

    fn device(&mut self, queue: usize) -> &mut Self::Device {
        &mut self.disks[queue]
    }

    /// Sleeps until the controller signals, where it can.
    fn turn(&mut self) {
        let is_idle = |disk: &NvmeDisk<F, Monotonic>| disk.room() == disk.info().queue_depth as usize;
        let busy = || self.disks.iter().filter(|disk| !is_idle(disk)).map(NvmeDisk::watch);
        let counters: Vec<_> = busy().collect();
        let mut events: Vec<_> =
            counters.iter().filter_map(|watch| Some(PollFd::new(watch.event()?, PollFlags::POLLIN))).collect();
        if events.is_empty() {
            return thread::sleep(TURN);
        }
        // Nobody else waits for these counters, so that reading one is forgetting it.
        for event in counters.iter().filter_map(|watch| watch.event()) {
            let _was_zero = nix::unistd::read(event, &mut [0; 8]);
        }
        let sleep = counters.iter().map(|watch| watch.longest_sleep()).min().unwrap_or_default();
        let limit = PollTimeout::try_from(sleep).unwrap_or(PollTimeout::MAX);
        self.signal_count += u64::from(poll(&mut events, limit).is_ok_and(|ready| ready > 0));
    }

    fn reopen(&mut self) {
        self.start().expect("the controller serves again");
        println!("{} sleeps were ended by an interrupt", self.signal_count);
    }
}
