//! How many random reads of 4 KiB a second the NVMe driver gets from a controller, from one thread that does nothing else.

use super::nvme::{Monotonic, OPTIONS, PATIENCE};
use crate::random::Random;
use anyhow::{Result, bail, ensure};
use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};
use twinlog_device::{BlockDevice as _, BlockPool, Nanos, Token};
use twinlog_nvme::{Clock as _, Controller, ControllerState};
use twinlog_vfio::VfioFunction;

/// What to read.
#[derive(clap::Args, Debug)]
pub struct SpeedArgs {
    /// Of the controller on the PCI buses
    address: String,
    /// Reads in flight
    #[arg(long)]
    depth: u32,
    /// For so long
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// Prints the reads of a second.
pub(super) fn run(args: &SpeedArgs) -> Result<()> {
    let pool = BlockPool::new(args.depth.max(64))?;
    // Read once for each turn, as a reactor does.
    let time: Rc<Cell<Nanos>> = Rc::new(Cell::new(Monotonic.now()));
    let controller = Controller::start(VfioFunction::open(&args.address)?, &[&pool], OPTIONS, time.get())?;
    let start = Instant::now();
    loop {
        match controller.poll(Monotonic.now()) {
            ControllerState::Live => break,
            ControllerState::Starting if start.elapsed() < PATIENCE => {}
            state => bail!("{}: {state:?}", args.address),
        }
    }
    let mut disk = controller.open(1, time.clone())?;
    let depth = usize::try_from(args.depth)?;
    ensure!(depth <= disk.room(), "at most {} reads in flight", disk.room());
    let block_count = usize::try_from(disk.info().block_count)?;
    let mut random = Random::new(1);
    let mut buffers = pool.allocate_many(depth).expect("as many as are in flight");
    let mut completions = Vec::with_capacity(depth);
    let (mut token, mut done) = (0, 0_u64);
    let start = time.get();
    let end = start + Duration::from_secs(args.seconds);
    while time.get() < end {
        time.set(Monotonic.now());
        for buffer in buffers.drain(..) {
            token += 1;
            disk.read(Token(token), random.below(block_count) as u64, vec![buffer]);
        }
        disk.poll(&mut completions);
        for completion in completions.drain(..) {
            completion.result?;
            done += 1;
            buffers.extend(completion.blocks);
        }
    }
    println!("{}", done * 1_000_000_000 / (time.get().0 - start.0));
    while disk.room() < usize::try_from(disk.info().queue_depth)? {
        disk.poll(&mut completions);
    }
    Ok(())
}
