//! A guest with a node inside loses its power, again and again, on disks that lose what was not flushed.
//!
//! The load runs on the host: `twinlog-load` keeps its journal of acknowledged writes where no cut reaches it, and proves after each
//! boot that all of them are there.

use super::Lab;
use crate::{
    disk::{Disk, Loss, Power, Served},
    host,
    initramfs::Contents,
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

const PAYLOAD: &str = include_str!("../../guest/power-cut.sh");
/// Booting, recovering and checking under emulation, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// The power goes at a random instant within so long after the first requests, and then with one of the next writes.
const PAUSE_MS_MAX: usize = 4000;
const WRITES_MAX: usize = 12;
const POLL: Duration = Duration::from_millis(20);
/// Of NBD, inside the guest.
const PORT: u16 = 10809;
/// The guest's disks: names, which are their serial numbers, and sizes. The log is 16 MiB and its headers.
const DISKS: [(&str, u64); 2] = [("log", 17 << 20), ("pool", 256 << 20)];
/// Of one event in `twinlog-load`'s journal.
const EVENT_BYTES: u64 = 32;
/// So much of a journal shows that the load has begun.
const FIRST_BYTES: u64 = 64 * EVENT_BYTES;
/// Of `twinlog-load`: the connection was lost, which is what a cut looks like.
const EXIT_LOST: i32 = 3;

/// What lives on between the boots.
struct Station<'a> {
    lab: &'a Lab,
    machine: Machine,
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

pub(super) fn power_cut(lab: &Lab) -> Result<()> {
    if !lab.load.is_file() {
        bail!(host::Missing(format!("no {}: run `cargo build -p twinlog-load`", lab.load.display())));
    }
    let power = Arc::new(Power::default());
    let mut disks = Vec::new();
    for (name, size_bytes) in DISKS {
        disks.push(Disk::new(&lab.folder.join(name), size_bytes, &power)?);
    }
    let port = free_port()?;
    let machine = machine(lab, "first", port)?;
    let mut station = Station { lab, machine, disks, power, port, random: Random::new(lab.seed) };
    let mut total = Loss::default();
    for round in 1..=lab.rounds {
        let running = station.boot()?;
        if round > 1 {
            station.prove()?;
        } else {
            // The same machine, and another file system in memory: one that finds its pool.
            station.machine = self::machine(lab, "again", port)?;
            if lab.disks_lie {
                station.power.lie();
            }
        }
        let loss = station.load_and_cut(running, round)?;
        total.volatile += loss.volatile;
        total.lost += loss.lost;
    }
    let running = station.boot()?;
    station.prove()?;
    drop(running);
    println!("  {} sectors were not durable when the power went, {} of them were lost", total.volatile, total.lost);
    if total.lost == 0 {
        bail!("no cut lost anything: nothing was tested");
    }
    Ok(())
}

fn machine(lab: &Lab, name: &str, port: u16) -> Result<Machine> {
    let settings = format!("first={}\n", if name == "first" { "yes" } else { "no" });
    let contents = Contents {
        payload: PAYLOAD,
        binaries: vec![lab.twinlog.clone()],
        files: [("lab/settings".to_owned(), settings.into_bytes())].into(),
        ..Contents::default()
    };
    let mut machine = lab.machine(name, &contents)?;
    machine.forwarded = vec![(port, PORT)];
    machine.memory_mib = 640;
    Ok(machine)
}

impl Station<'_> {
    /// Switches the guest on and waits until its node serves.
    fn boot(&mut self) -> Result<Running> {
        let mut served = Vec::new();
        let mut devices = Vec::new();
        for ((name, _), disk) in DISKS.iter().zip(self.disks.drain(..)) {
            let disk = disk.serve(&self.machine.folder.join(name))?;
            devices.extend(disk.devices(name));
            served.push(disk);
        }
        self.machine.devices = devices;
        let mut guest = self.machine.boot()?;
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
    fn load_and_cut(&mut self, running: Running, round: u32) -> Result<Loss> {
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
        let writes = 1 + self.random.below(WRITES_MAX);
        // The log is written all the time, the pool in consistency points only: half of the cuts go there.
        let at = usize::from(round % 4 >= 2);
        disks[at].go_after(u64::try_from(writes)?);
        let start = Instant::now();
        while !self.power.is_off() {
            if start.elapsed() > PATIENCE {
                bail!("the node does not write\n{}", guest.logs());
            }
            thread::sleep(POLL);
        }
        guest.cut()?;
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
            "  round {round}: cut after {pause} ms of load, at write {writes} to the {}; {events} events in the journal; {} sectors not durable, {} lost",
            DISKS[at].0, loss.volatile, loss.lost
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
