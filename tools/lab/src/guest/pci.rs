//! Drives an NVMe controller just far enough to prove a way to a PCI function: registers, memory for DMA, a block pool, interrupts, reset.
//!
//! It speaks the admin queue only (NVM Express Base Specification 2.0, chapter 3), with one command at a time: Identify, whose answer holds
//! the serial, so that a byte that came to the wrong place is seen.

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};
use twinlog_memory::BlockPool;
use twinlog_pci::{DmaMemory as _, PciFunction, PoolMap, Registers as _};
use twinlog_vfio::{UioFunction, VfioFunction};

const CLASS_NVME: u32 = 0x01_0802;
/// Registers.
const CAPABILITIES: usize = 0x00;
const VERSION: usize = 0x08;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1C;
const ADMIN_SIZES: usize = 0x24;
const ADMIN_COMMANDS: usize = 0x28;
const ADMIN_ANSWERS: usize = 0x30;
const DOORBELLS: usize = 0x1000;
/// Commands of 2^6 bytes, answers of 2^4, pages of 4 KiB, NVM command set, on.
const ENABLED: u32 = (6 << 16) | (4 << 20) | 1;
const READY: u32 = 1;
const IDENTIFY: u64 = 6;
const ENTRIES: usize = 16;
/// Of Identify's answer.
const PAGE: usize = 4096;
const SERIAL: std::ops::Range<usize> = 4..24;
/// Emulation on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than the default limit of locked memory, so that a process without the right to it is seen.
const POOL_BLOCKS: u32 = 16 << 8;

/// What to do.
#[derive(clap::Args, Debug)]
pub struct PciArgs {
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
    /// When all is proved, write this file and go on asking the controller until killed
    #[arg(long)]
    forever: Option<std::path::PathBuf>,
    /// When all is proved, let the controller write to memory that is no longer mapped for it
    #[arg(long)]
    stray: bool,
    /// When all is proved, write this file and wait until the kernel wants the controller back
    #[arg(long)]
    until_removed: Option<std::path::PathBuf>,
}

pub(super) fn run(args: &PciArgs) -> Result<()> {
    if args.uio {
        exercise(&UioFunction::open(&args.address)?, &BlockPool::in_huge_pages(POOL_BLOCKS)?, args)
    } else {
        exercise(&VfioFunction::open(&args.address)?, &BlockPool::new(POOL_BLOCKS)?, args)
    }
}

/// Fails unless what is said to confine a function has this word.
pub(super) fn expect_confined(address: &str, said: &str, word: &str) -> Result<()> {
    println!("confined by {said}");
    ensure!(said.split(' ').any(|part| part == word), "{address} is confined by {said}, not by {word}");
    Ok(())
}

fn exercise<F: PciFunction>(function: &F, pool: &BlockPool, args: &PciArgs) -> Result<()> {
    let identity = function.identity();
    ensure!(identity.class == CLASS_NVME && identity.address == args.address, "{identity:?}");
    expect_confined(&args.address, function.confined_by(), &args.confined_by)?;
    ensure!(function.map_window(9).is_err(), "a window that is none");
    let map = function.map_pool(pool)?;
    let event = if function.vector_count() > 0 { Some(function.interrupt(0)?) } else { None };
    ensure!(function.interrupt(function.vector_count()).is_err(), "a vector that is none");
    let mut controller = Controller::new(function, event)?;
    println!(
        "version {:#x}, capabilities {:#x}, {} vectors",
        controller.window.read_u32(VERSION),
        controller.capabilities(),
        function.vector_count()
    );
    for round in 0..3 {
        controller.start()?;
        controller.try_memory(&args.serial)?;
        controller.try_pool(&map, &args.serial)?;
        function.reset()?;
        let after = (controller.window.read_u32(CONFIGURATION), controller.window.read_u32(STATUS) & READY);
        ensure!(after == (0, 0), "registers after reset {round}: {after:?}");
        ensure!(!function.is_removed(), "nobody removes it");
    }
    controller.start()?;
    if let Some(path) = &args.forever {
        forever(&mut controller, &args.serial, path)?;
    }
    if let Some(path) = &args.until_removed {
        // It cannot be reset while the kernel waits for it: closing it does that.
        return until_removed(function, path);
    }
    if args.stray {
        let memory = function.allocate(PAGE)?;
        let place = memory.bus_address();
        drop(memory);
        // Whether it answers is its own matter; the kernel's log tells what the IOMMU did.
        println!("a write to {place:#x}, which is mapped no longer: {:?}", controller.identify(place));
    }
    function.reset()?;
    println!("all is as it must be");
    Ok(())
}

fn forever<F: PciFunction>(controller: &mut Controller<'_, F>, serial: &str, path: &Path) -> Result<()> {
    for count in 0_u64.. {
        controller.try_memory(serial)?;
        if count == 100 {
            fs::write(path, "busy")?;
        }
    }
    Ok(())
}

fn until_removed<F: PciFunction>(function: &F, path: &Path) -> Result<()> {
    fs::write(path, "waiting")?;
    let start = Instant::now();
    while !function.is_removed() {
        ensure!(start.elapsed() < PATIENCE, "the kernel did not say that the controller is removed");
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(function.is_removed(), "it stays true");
    println!("the kernel wants it back");
    Ok(())
}

/// The admin queue of a controller.
struct Controller<'a, F: PciFunction> {
    function: &'a F,
    window: F::Registers,
    commands: F::Memory,
    answers: F::Memory,
    event: Option<OwnedFd>,
    /// Commands since the start.
    count: usize,
}

impl<'a, F: PciFunction> Controller<'a, F> {
    fn new(function: &'a F, event: Option<OwnedFd>) -> Result<Self> {
        let window = function.map_window(0)?;
        ensure!(window.length_bytes() >= DOORBELLS + 8, "a window of {} bytes", window.length_bytes());
        let (commands, answers) = (function.allocate(ENTRIES * 64)?, function.allocate(ENTRIES * 16)?);
        Ok(Self { function, window, commands, answers, event, count: 0 })
    }

    fn capabilities(&self) -> u64 {
        self.window.read_u64(CAPABILITIES)
    }

    fn start(&mut self) -> Result<()> {
        self.count = 0;
        self.answers.clear(0, ENTRIES * 16);
        let last = u32::try_from(ENTRIES - 1)?;
        self.window.write_u32(ADMIN_SIZES, last << 16 | last);
        self.window.write_u64(ADMIN_COMMANDS, self.commands.bus_address());
        self.window.write_u64(ADMIN_ANSWERS, self.answers.bus_address());
        self.window.write_u32(CONFIGURATION, ENABLED);
        let start = Instant::now();
        while self.window.read_u32(STATUS) & READY == 0 {
            ensure!(start.elapsed() < PATIENCE, "the controller does not start: {:#x}", self.window.read_u32(STATUS));
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Asks for the controller's identity, to be written to a place on the bus; gives the status of the answer.
    fn identify(&mut self, place: u64) -> Result<u64> {
        let (slot, turn) = (self.count % ENTRIES, self.count / ENTRIES);
        self.count += 1;
        let command = slot * 64;
        self.commands.clear(command, 64);
        self.commands.store(command, IDENTIFY | (slot as u64) << 16, Ordering::Relaxed);
        self.commands.store(command + 24, place, Ordering::Relaxed);
        // Of the controller itself.
        self.commands.store(command + 40, 1, Ordering::Relaxed);
        let next = u32::try_from((slot + 1) % ENTRIES)?;
        let stride = 4 << ((self.capabilities() >> 32) & 0xF);
        self.window.write_u32(DOORBELLS, next);
        let phase = u64::from(turn % 2 == 0);
        let start = Instant::now();
        if let Some(event) = &self.event {
            let mut events = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut events, PollTimeout::try_from(PATIENCE.as_millis())?)?;
            ensure!(ready == 1, "no interrupt came");
            nix::unistd::read(event, &mut [0; 8])?;
        }
        loop {
            // Status and phase in the upper half, the command's number below.
            let answer = self.answers.load(slot * 16 + 8, Ordering::Acquire);
            if answer >> 48 & 1 == phase {
                ensure!(answer >> 32 & 0xFFFF == slot as u64, "an answer to another command: {answer:#x}");
                self.window.write_u32(DOORBELLS + stride, next);
                return Ok(answer >> 49);
            }
            ensure!(start.elapsed() < PATIENCE, "no answer came");
            thread::yield_now();
        }
    }

    fn try_memory(&mut self, serial: &str) -> Result<()> {
        let memory = self.function.allocate(PAGE)?;
        let status = self.identify(memory.bus_address())?;
        let mut bytes = [0; PAGE];
        memory.read(0, &mut bytes);
        check(&bytes, status, serial).context("identity in memory of its own")
    }

    fn try_pool(&mut self, map: &PoolMap, serial: &str) -> Result<()> {
        let mut blocks = Vec::new();
        while let Some(block) = map.pool().allocate() {
            blocks.push(block);
        }
        let neighbours = [blocks.len() - 1, 0];
        for index in neighbours {
            let mut block = blocks.swap_remove(index);
            block.fill(0xEE);
            let block = block.into_device();
            let place = map.bus_address(block.address()).context("the block is the pool's")?;
            let status = self.identify(place)?;
            let block = block.take_back();
            check(&block[..], status, serial).context("identity in a block of the pool")?;
        }
        Ok(())
    }
}

fn check(bytes: &[u8], status: u64, serial: &str) -> Result<()> {
    let found = String::from_utf8_lossy(&bytes[SERIAL]).trim().to_owned();
    if status != 0 || found != serial {
        bail!("status {status:#x}, serial {found:?} and not {serial:?}");
    }
    Ok(())
}
