//! A guest with a node inside that loses its power under load, again and again, and what proves that nothing answered was lost.
//!
//! The load runs on the host: `twinlog-load` keeps its journal of acknowledged writes where no cut reaches it, and proves after each
//! boot that all of them are there.

use super::{Lab, remains::Remains};
use crate::{
    disk::{self, Disk, Loss, Power, Served, Slot},
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
/// The same for a disk that only stands still for a moment, again and again.
const CAPTURE_PAUSE_MS_MAX: usize = 1000;
/// The disk that has the change log; others are the pool's.
pub(super) const LOG: &str = "log";
const POLL: Duration = Duration::from_millis(20);
/// Of NBD, inside the guest.
const PORT: u16 = 10809;
/// Of one event in `twinlog-load`'s journal.
const EVENT_BYTES: u64 = 32;
/// So much of a journal shows that the load has begun.
const FIRST_BYTES: u64 = 64 * EVENT_BYTES;
/// Of `twinlog-load`: the connection was lost, which is what a cut looks like.
const EXIT_LOST: i32 = 3;

/// A disk of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    /// Its serial number, where it has one.
    pub(super) name: &'static str,
    pub(super) size_bytes: u64,
    pub(super) slot: Slot,
}

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
    drives: Vec<Drive>,
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
    /// A machine with disks.
    pub(super) fn new(lab: &'a Lab, machine: Machine, drives: &[Drive]) -> Result<Self> {
        if !lab.load.is_file() {
            bail!(host::Missing(format!("no {}: run `cargo build -p twinlog-load`", lab.load.display())));
        }
        let power = Arc::new(Power::default());
        let disks = drives.iter().map(|drive| Disk::new(&lab.folder.join(drive.name), drive.size_bytes, &power));
        let disks = disks.collect::<Result<_>>()?;
        Ok(Self {
            lab,
            machine,
            drives: drives.to_vec(),
            disks,
            power,
            port: free_port()?,
            random: Random::new(lab.seed),
        })
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
            total += loss;
        }
        let running = self.boot()?;
        self.prove()?;
        drop(running);
        self.lab.say(format_args!("together: {total}"));
        if total.lost == 0 {
            bail!("no cut lost anything: nothing was tested");
        }
        Ok(())
    }

    /// Switches the guest on and waits until its node serves.
    fn boot(&mut self) -> Result<Running> {
        let mut served = Vec::new();
        let mut machine = self.machine.clone();
        for (drive, disk) in self.drives.iter().zip(self.disks.drain(..)) {
            let disk = disk.serve(&self.machine.folder.join(drive.name))?;
            machine.devices.extend(disk.devices(drive.name, drive.slot));
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

    fn journal_bytes(&self) -> u64 {
        fs::metadata(self.journal()).map_or(0, |metadata| metadata.len())
    }

    /// Puts load on the node, and waits until it has begun.
    fn begin(&self, guest: &Guest, round: u32) -> Result<Child> {
        let before = self.journal_bytes();
        let mut command = self.load()?;
        command.args(["--bs", "512-16k", "--qd", "8", "--connections", "2", "--zero", "5", "--trim", "5"]);
        command.args(["--warmup", "0", "--time", "3600", "--seed", &(self.lab.seed + u64::from(round)).to_string()]);
        let mut load = command.arg("--journal").arg(self.journal()).spawn().context("starting twinlog-load")?;
        let start = Instant::now();
        while self.journal_bytes() < before + FIRST_BYTES {
            if let Some(status) = load.try_wait()? {
                bail!("twinlog-load ended with {status}, see load.log\n{}", guest.logs());
            }
            if start.elapsed() > PATIENCE {
                bail!("the load does not begin\n{}", guest.logs());
            }
            thread::sleep(POLL);
        }
        Ok(load)
    }

    /// Lets the disks stand still, after a while, with one of the next writes to the disk `at`. Says when that was.
    fn hold(&mut self, running: &Running, at: usize, pause_ms_max: usize) -> Result<String> {
        let pause = self.random.below(pause_ms_max);
        thread::sleep(Duration::from_millis(u64::try_from(pause)?));
        let writes = 1 + self.random.below(WRITES_MAX);
        running.disks[at].hold_after(u64::try_from(writes)?);
        let start = Instant::now();
        while !self.power.is_held() {
            if start.elapsed() > PATIENCE {
                bail!("the node does not write\n{}", running.guest.logs());
            }
            thread::sleep(POLL);
        }
        Ok(format!("after {pause} ms of load at write {writes} to the {}", self.drives[at].name))
    }

    /// Puts load on the node and cuts the power in the middle of it.
    fn load_and_cut(&mut self, mut running: Running, round: u32, cut: Cut) -> Result<Loss> {
        let before = self.journal_bytes();
        let load = self.begin(&running.guest, round)?;
        let moment = match cut {
            Cut::AnyTime => {
                let pause = self.random.below(PAUSE_MS_MAX);
                thread::sleep(Duration::from_millis(u64::try_from(pause)?));
                format!("after {pause} ms of load")
            }
            Cut::AtWrite(at) => self.hold(&running, at, PAUSE_MS_MAX)?,
        };
        running.guest.cut()?;
        let loss = self.switched_off(running, load, round)?;
        let events = (self.journal_bytes() - before) / EVENT_BYTES;
        self.lab.say(format_args!("round {round}: cut {moment}; {events} events in the journal; {loss}"));
        Ok(loss)
    }

    /// The disks of a machine that has lost its power lose what was not flushed; `load` must have noticed.
    fn switched_off(&mut self, running: Running, mut load: Child, round: u32) -> Result<Loss> {
        running.guest.no_iommu_fault()?;
        self.power.go();
        let status = ended(&mut load)?;
        if status != Some(EXIT_LOST) {
            bail!("a power cut should look like a lost connection to twinlog-load, not like {status:?}; see load.log");
        }
        let mut loss = Loss::default();
        for disk in running.disks {
            let mut disk = disk.join()?;
            loss += disk.cut(&mut self.random, loses_all(round))?;
            self.disks.push(disk);
        }
        self.power.reset();
        Ok(loss)
    }

    /// Boots once and puts load on the node; in the middle of it the disks stand still `count` times, with one of the next writes to the disk that
    /// `at` says. A copy of them loses what was not flushed, and must be what a power cut may leave, see [`Remains`]. At the end the power really
    /// goes, and the machine `again` goes on.
    pub(super) fn capture(&mut self, again: Machine, count: u32, at: impl Fn(u32) -> usize) -> Result<()> {
        let mut running = self.boot()?;
        if self.lab.disks_lie {
            self.power.lie();
        }
        let mut load = self.begin(&running.guest, 0)?;
        let mut lossy_count = vec![0; self.drives.len()];
        for number in 1..=count {
            let moment = self.hold(&running, at(number), CAPTURE_PAUSE_MS_MAX)?;
            let remains = Remains::new(self.lab, number)?;
            let paths: Vec<PathBuf> = self.drives.iter().map(|drive| remains.path(drive.name)).collect();
            let disks = disk::capture(&running.disks, &paths)?;
            // What was answered is in it, what was not is announced: nothing is answered before the disks go on.
            fs::copy(self.journal(), remains.path("journal"))?;
            self.power.reset();
            self.lab.say(format_args!(
                "cut point {number}: {moment}; {} events in the journal",
                self.journal_bytes() / EVENT_BYTES
            ));
            for ((drive, mut disk), lossy_count) in self.drives.iter().zip(disks).zip(&mut lossy_count) {
                let loss = disk.cut(&mut self.random, loses_all(number))?;
                self.lab.say(format_args!("cut point {number}: {}: {loss}", drive.name));
                *lossy_count += u32::from(loss.lost > 0);
            }
            remains.prove(&self.pool()).with_context(|| format!("cut point {number}"))?;
            if let Some(status) = load.try_wait()? {
                bail!("twinlog-load ended with {status}, see load.log\n{}", running.guest.logs());
            }
        }
        let moment = self.hold(&running, at(count + 1), CAPTURE_PAUSE_MS_MAX)?;
        running.guest.cut()?;
        let loss = self.switched_off(running, load, count + 1)?;
        self.lab.say(format_args!("the power is cut {moment}: {loss}"));
        self.machine = again;
        running = self.boot()?;
        self.prove()?;
        drop(running);
        let lossy = self.drives.iter().zip(&lossy_count).map(|(drive, count)| format!("{count} from {}", drive.name));
        self.lab
            .say(format_args!("{count} cut points; something was lost at {}", lossy.collect::<Vec<_>>().join(", ")));
        if lossy_count.contains(&0) {
            bail!("a disk never lost anything: it was not tested");
        }
        Ok(())
    }

    /// Names of the disks that are the pool's.
    fn pool(&self) -> Vec<&'static str> {
        self.drives.iter().map(|drive| drive.name).filter(|name| *name != LOG).collect()
    }
}

/// Whether nothing of what is volatile survives a cut. Else each sector does by lot.
fn loses_all(number: u32) -> bool {
    !number.is_multiple_of(2)
}

/// Starts a process and waits for its exit code.
fn wait(command: &mut Command) -> Result<Option<i32>> {
    let mut process = command.spawn().with_context(|| format!("starting {command:?}"))?;
    ended(&mut process)
}

/// The exit code of a process that ends soon; it is killed if it does not.
pub(super) fn ended(process: &mut Child) -> Result<Option<i32>> {
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
