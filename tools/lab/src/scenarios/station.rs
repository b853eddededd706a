//! A guest with a node inside that loses its power under load, again and again, and what proves that nothing answered was lost.
//!
//! The load runs on the host: `twinlog-load` keeps its journal of acknowledged writes where no cut reaches it, and proves after each
//! boot that all of them are there.

use super::Lab;
use crate::{
    disk::{Disk, Loss, Power, Served},
    host,
    machine::{Guest, Machine},
    node::free_port,
    random::Random,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The node inside: its configuration, its pool, its checks; for payloads, as `lab/node.sh`.
pub(super) const NODE: &str = include_str!("../../guest/node.sh");

/// Booting, recovering and checking under emulation, on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// The power goes at a random instant within so long after the first requests, and then with one of the next writes.
const PAUSE_MS_MAX: usize = 4000;
const WRITES_MAX: usize = 12;
const POLL: Duration = Duration::from_millis(20);
/// Of NBD, inside the guest.
const PORT: u16 = 10809;
/// Of one event in `twinlog-load`'s journal.
const EVENT_BYTES: u64 = 32;
/// So much of a journal shows that the load has begun.
const FIRST_BYTES: u64 = 64 * EVENT_BYTES;
/// Of `twinlog-load`: the connection was lost, which is what a cut looks like.
const EXIT_LOST: i32 = 3;

/// When the power goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// With one of the next writes to the disk of that number.
    AtWrite(usize),
    /// At a random instant.
    AnyTime,
}

/// What lives on between the boots.
pub(super) struct Station<'a> {
    lab: &'a Lab,
    machine: Machine,
    names: Vec<&'static str>,
    /// Empty while a guest has them.
    disks: Vec<Disk>,
    power: Arc<Power>,
    /// Of the host, for the guest's NBD server.
    port: u16,
    random: Random,
}

/// A guest that serves, and its disks.
struct Running {
    guest: Guest,
    disks: Vec<Served>,
}

impl<'a> Station<'a> {
    /// A machine with disks: names, which are their serial numbers, and sizes.
    pub(super) fn new(lab: &'a Lab, machine: Machine, disks: &[(&'static str, u64)]) -> Result<Self> {
        if !lab.load.is_file() {
            bail!(host::Missing(format!("no {}: run `cargo build -p twinlog-load`", lab.load.display())));
        }
        let power = Arc::new(Power::default());
        let names = disks.iter().map(|(name, _)| *name).collect();
        let disks = disks.iter().map(|(name, size_bytes)| Disk::new(&lab.folder.join(name), *size_bytes, &power));
        let disks = disks.collect::<Result<_>>()?;
        Ok(Self { lab, machine, names, disks, power, port: free_port()?, random: Random::new(lab.seed) })
    }

    /// Boots, proves, loads and cuts, round after round. From the second boot on the machine is `again`: the same, with another payload.
    pub(super) fn run(&mut self, again: Machine, cut: impl Fn(u32) -> Cut) -> Result<()> {
        let mut again = Some(again);
        let mut total = Loss::default();
        for round in 1..=self.lab.rounds {
            let running = self.boot()?;
            match again.take() {
                Some(again) => {
                    self.machine = again;
                    if self.lab.disks_lie {
                        self.power.lie();
                    }
                }
                None => self.prove()?,
            }
            let loss = self.load_and_cut(running, round, cut(round))?;
            total.volatile += loss.volatile;
            total.lost += loss.lost;
        }
        let running = self.boot()?;
        self.prove()?;
        drop(running);
        println!("  {} sectors were not durable when the power went, {} of them were lost", total.volatile, total.lost);
        if total.lost == 0 {
            bail!("no cut lost anything: nothing was tested");
        }
        Ok(())
    }

    /// Switches the guest on and waits until its node serves.
    fn boot(&mut self) -> Result<Running> {
        let mut served = Vec::new();
        let mut machine = self.machine.clone();
        for (name, disk) in self.names.iter().zip(self.disks.drain(..)) {
            let disk = disk.serve(&self.machine.folder.join(name))?;
            machine.devices.extend(disk.devices(name));
            served.push(disk);
        }
        machine.forwarded = vec![(self.port, PORT)];
        let mut guest = machine.boot()?;
        guest.event("serving", PATIENCE)?;
        Ok(Running { guest, disks: served })
    }

    fn journal(&self) -> PathBuf {
        self.lab.folder.join("journal")
    }

    fn load(&self) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.lab.folder.join("load.log"))?;
        let mut command = host::mortal(&self.lab.load);
        command.arg(format!("nbd://127.0.0.1:{}/vol-a", self.port));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Proves that every acknowledged write is there.
    fn prove(&self) -> Result<()> {
        let status = wait(self.load()?.arg("--prove").arg(self.journal()))?;
        if status != Some(0) {
            let log = fs::read_to_string(self.lab.folder.join("load.log")).unwrap_or_default();
            bail!("the proof ended with {status:?}\n{log}");
        }
        Ok(())
    }

    /// Puts load on the node and cuts the power in the middle of it.
    fn load_and_cut(&mut self, running: Running, round: u32, cut: Cut) -> Result<Loss> {
        let Running { mut guest, disks } = running;
        let journal = self.journal();
        let journal_bytes = || fs::metadata(&journal).map_or(0, |metadata| metadata.len());
        let before = journal_bytes();
        let mut command = self.load()?;
        command.args(["--bs", "512-16k", "--qd", "8", "--connections", "2", "--zero", "5", "--trim", "5"]);
        command.args(["--warmup", "0", "--time", "600", "--seed", &(self.lab.seed + u64::from(round)).to_string()]);
        let mut load = command.arg("--journal").arg(&journal).spawn().context("starting twinlog-load")?;
        let start = Instant::now();
        while journal_bytes() < before + FIRST_BYTES {
            if let Some(status) = load.try_wait()? {
                bail!("twinlog-load ended with {status}, see load.log\n{}", guest.logs());
            }
            if start.elapsed() > PATIENCE {
                bail!("the load does not begin\n{}", guest.logs());
            }
            thread::sleep(POLL);
        }
        let pause = self.random.below(PAUSE_MS_MAX);
        thread::sleep(Duration::from_millis(u64::try_from(pause)?));
        let moment = match cut {
            Cut::AnyTime => "at no particular write".to_owned(),
            Cut::AtWrite(at) => {
                let writes = 1 + self.random.below(WRITES_MAX);
                disks[at].go_after(u64::try_from(writes)?);
                let start = Instant::now();
                while !self.power.is_off() {
                    if start.elapsed() > PATIENCE {
                        bail!("the node does not write\n{}", guest.logs());
                    }
                    thread::sleep(POLL);
                }
                format!("at write {writes} to the {}", self.names[at])
            }
        };
        guest.cut()?;
        guest.no_iommu_fault()?;
        self.power.reset();
        let status = ended(&mut load)?;
        if status != Some(EXIT_LOST) {
            bail!("a power cut should look like a lost connection to twinlog-load, not like {status:?}; see load.log");
        }
        let mut loss = Loss::default();
        for disk in disks {
            let mut disk = disk.join()?;
            let one = disk.cut(&mut self.random, round % 2 == 1)?;
            loss.volatile += one.volatile;
            loss.lost += one.lost;
            self.disks.push(disk);
        }
        let events = (journal_bytes() - before) / EVENT_BYTES;
        println!(
            "  round {round}: cut after {pause} ms of load, {moment}; {events} events in the journal; {} sectors not durable, {} lost",
            loss.volatile, loss.lost
        );
        Ok(loss)
    }
}

/// Starts a process and waits for its exit code.
fn wait(command: &mut Command) -> Result<Option<i32>> {
    let mut process = command.spawn().with_context(|| format!("starting {command:?}"))?;
    ended(&mut process)
}

/// The exit code of a process that ends soon; it is killed if it does not.
fn ended(process: &mut Child) -> Result<Option<i32>> {
    let start = Instant::now();
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(status.code());
        }
        if start.elapsed() > PATIENCE {
            process.kill()?;
            process.wait()?;
            bail!("twinlog-load does not end");
        }
        thread::sleep(POLL);
    }
}
