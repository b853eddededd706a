//! A node drives an NVMe controller whose disk becomes slow, fails reads, fails writes, does not answer, and is taken out.
//!
//! Each time the node names the device and what is wrong with it, no client is ever given wrong data, every acknowledged write is there once the disk is well
//! again, and the node neither panics nor hangs.

use super::{
    Lab,
    station::{self, NODE, PATIENCE},
};
use crate::{host, initramfs::Contents, machine::Guest, node::free_port};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::{
    fs::{self, File},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

const PAYLOAD: &str = include_str!("../../guest/nvme-faults.sh");
const SERIAL: &str = "LAB0";
const LOG_BYTES: u64 = 17 << 20;
const POOL_BYTES: u64 = 256 << 20;
/// Of NBD, inside the guest.
const PORT: u16 = 10809;
const VOLUMES: [&str; 2] = ["vol-a", "vol-b"];
/// Of `twinlog-load`: done; a request failed; the target was lost.
const EXIT_DONE: i32 = 0;
const EXIT_FAILED: i32 = 1;
const EXIT_LOST: i32 = 3;
/// Between two looks at what the node says.
const LOOK: Duration = Duration::from_millis(500);

/// The slot, the throttle and the disks of the controller, by QEMU's names.
const PORT_ID: &str = "hot";
const DISK: &str = "disk";
const GROUP: &str = "pace";
const WELL: &str = "well";
const READS_FAIL: &str = "reads-fail";
const WRITES_FAIL: &str = "writes-fail";

/// The guest and what lies around it.
struct Bench<'a> {
    lab: &'a Lab,
    guest: Guest,
    port: u16,
}

pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut bench = Bench::boot(lab)?;
    bench.run("randrw", "3", &[EXIT_DONE])?;
    bench.expect_well()?;
    let interrupts: u64 = bench.ask("interrupts", "interrupts")?.trim().parse()?;
    ensure!(interrupts > 0, "the reactors wait for the controller's interrupts, and there were none");
    lab.say(format_args!("well: {interrupts} interrupts"));
    bench.slow()?;
    bench.reads_fail()?;
    bench.writes_fail()?;
    bench.no_answer()?;
    bench.taken_out()?;
    bench.guest.tell("end")?;
    bench.guest.succeed(PATIENCE)?;
    bench.guest.no_iommu_fault()
}

impl<'a> Bench<'a> {
    fn boot(lab: &'a Lab) -> Result<Self> {
        let contents = Contents {
            payload: PAYLOAD,
            modules: vec!["nvme", "vfio_pci", "vfio_iommu_type1"],
            binaries: vec![lab.twinlog.clone()],
            files: [
                ("lab/settings".to_owned(), format!("controller={SERIAL}\n").into_bytes()),
                ("lab/node.sh".to_owned(), NODE.into()),
            ]
            .into(),
            ..Contents::default()
        };
        let mut machine = lab.machine("guest", &contents)?;
        (machine.memory_mib, machine.processors, machine.has_iommu) = (768, 2, true);
        machine.devices = devices(lab)?;
        let port = free_port()?;
        machine.forwarded = vec![(port, PORT)];
        let mut guest = machine.boot()?;
        guest.event("serving", PATIENCE)?;
        let bench = Self { lab, guest, port };
        for (name, kind) in [(READS_FAIL, "read"), (WRITES_FAIL, "write")] {
            let error = json!({ "event": "none", "iotype": kind, "errno": 5, "once": false });
            let node = json!({ "driver": "blkdebug", "node-name": name, "image": "image", "inject-error": [error] });
            bench.guest.order("blockdev-add", &node)?;
        }
        Ok(bench)
    }

    /// Tells the payload a word and returns what follows its event.
    fn ask(&mut self, word: &str, event: &str) -> Result<String> {
        self.guest.tell(word)?;
        self.guest.event(event, PATIENCE)
    }

    /// What the node says of itself.
    fn status(&mut self) -> Result<String> {
        self.ask("status", "status")
    }

    fn expect_well(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            if status.starts_with("OK") && !status.contains(SERIAL) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the node is not well: {status}");
            thread::sleep(LOOK);
        }
    }

    /// Waits until the node says all of it.
    fn await_status(&mut self, words: &[&str]) -> Result<String> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            if words.iter().all(|word| status.contains(word)) {
                return Ok(status);
            }
            ensure!(start.elapsed() < PATIENCE, "the node does not say {words:?}: {status}");
            thread::sleep(LOOK);
        }
    }

    /// Puts the controller's namespace on another disk.
    fn put_on(&self, file: &str) -> Result<()> {
        let options = json!({ "driver": "throttle", "node-name": DISK, "throttle-group": GROUP, "file": file });
        self.guest.order("blockdev-reopen", &json!({ "options": [options] }))
    }

    /// Limits the disk; zero is no limit.
    fn pace(&self, what: &str, limit: u64) -> Result<()> {
        let limits = json!({ "path": format!("/objects/{GROUP}"), "property": "limits", "value": { what: limit } });
        self.guest.order("qom-set", &limits)
    }

    fn load(&self, volume: &str, arguments: &[&str]) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.lab.folder.join("load.log"))?;
        let mut command = host::mortal(&self.lab.load);
        command.arg(format!("nbd://127.0.0.1:{}/{volume}", self.port)).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("starting twinlog-load")
    }

    fn journal(&self, volume: &str) -> String {
        self.lab.folder.join(format!("journal-{volume}")).display().to_string()
    }

    /// Puts load on both volumes, which goes on when requests fail.
    fn begin(&self, pattern: &str, seconds: &str) -> Result<Vec<Child>> {
        let start = |volume: &&str| {
            let journal = self.journal(volume);
            let arguments = ["--rw", pattern, "--bs", "512-16k", "--qd", "8", "--connections", "2", "--zero", "5"];
            let more = ["--warmup", "0", "--time", seconds, "--max-errors", "1000000000", "--journal", &journal];
            self.load(volume, &[&arguments[..], &more].concat())
        };
        VOLUMES.iter().map(start).collect()
    }

    /// How the loads end; never with data that must not be.
    fn end(&self, loads: Vec<Child>, allowed: &[i32]) -> Result<Vec<i32>> {
        let mut codes = Vec::new();
        for mut load in loads {
            let code = station::ended(&mut load)?.unwrap_or(-1);
            let log = fs::read_to_string(self.lab.folder.join("load.log")).unwrap_or_default();
            ensure!(!log.contains("NOT as they must be"), "a client was given wrong data: {log}");
            ensure!(allowed.contains(&code), "the load ended with {code}: {log}\n{}", self.guest.logs());
            codes.push(code);
        }
        Ok(codes)
    }

    fn run(&self, pattern: &str, seconds: &str, allowed: &[i32]) -> Result<Vec<i32>> {
        self.end(self.begin(pattern, seconds)?, allowed)
    }

    /// Proves that every acknowledged write is there.
    fn prove(&self) -> Result<()> {
        for volume in VOLUMES {
            let mut proof = self.load(volume, &["--prove", &self.journal(volume)])?;
            if station::ended(&mut proof)? != Some(EXIT_DONE) {
                let log = fs::read_to_string(self.lab.folder.join("load.log")).unwrap_or_default();
                bail!("the proof of {volume} failed\n{log}\n{}", self.guest.logs());
            }
        }
        Ok(())
    }

    /// A slow disk is slow, and nothing else.
    fn slow(&mut self) -> Result<()> {
        self.pace("iops-total", 100)?;
        self.run("randrw", "4", &[EXIT_DONE])?;
        self.pace("iops-total", 0)?;
        self.run("randrw", "1", &[EXIT_DONE])?;
        self.lab.say("slow: every request was answered");
        Ok(())
    }

    /// Reads fail, with a cache that knows nothing; then they do not.
    fn reads_fail(&mut self) -> Result<()> {
        self.ask("restart", "restarted")?;
        self.put_on(READS_FAIL)?;
        let codes = self.run("randread", "2", &[EXIT_DONE, EXIT_FAILED])?;
        ensure!(codes.contains(&EXIT_FAILED), "every read was answered: nothing was tested");
        let status = self.await_status(&["DEGRADED", SERIAL, "read of block", "the medium failed"])?;
        self.lab.say(format_args!("reads fail: {status}"));
        self.put_on(WELL)?;
        self.run("randrw", "2", &[EXIT_DONE])?;
        self.prove()
    }

    /// Writes fail: the pool stops, and is whole once they do not.
    fn writes_fail(&mut self) -> Result<()> {
        let loads = self.begin("randwrite", "600")?;
        self.put_on(WRITES_FAIL)?;
        let status = self.await_status(&["STOPPED", SERIAL, "write of block", "the medium failed"])?;
        self.lab.say(format_args!("writes fail: {status}"));
        self.put_on(WELL)?;
        self.mend(loads)
    }

    /// Nothing is answered: the controller is reset, and serves again.
    fn no_answer(&mut self) -> Result<()> {
        let loads = self.begin("randrw", "600")?;
        self.pace("bps-total", 1)?;
        let status = self.await_status(&["DEGRADED", SERIAL, "it has not answered an operation for"])?;
        self.lab.say(format_args!("no answer: {status}"));
        let status = self.await_status(&[SERIAL, "it was reset 1 time"])?;
        self.pace("bps-total", 0)?;
        self.lab.say(format_args!("no answer: {status}"));
        self.mend(loads)
    }

    /// The controller is taken out under load, and put back.
    fn taken_out(&mut self) -> Result<()> {
        let loads = self.begin("randrw", "600")?;
        thread::sleep(LOOK);
        self.guest.unplug(SERIAL)?;
        let status = self.await_status(&[SERIAL, "the controller is gone"])?;
        self.lab.say(format_args!("taken out: {status}"));
        self.ask("stop", "stopped")?;
        self.end(loads, &[EXIT_FAILED, EXIT_LOST])?;
        // QEMU takes it apart once the guest has let it go.
        let start = Instant::now();
        let controller = json!({ "driver": "nvme", "id": SERIAL, "serial": SERIAL, "bus": PORT_ID, "drive": DISK });
        while let Err(error) = self.guest.order("device_add", &controller) {
            if start.elapsed() > PATIENCE {
                return Err(error.context("the controller does not go"));
            }
            thread::sleep(LOOK);
        }
        self.ask("start", "started")?;
        self.prove()?;
        self.expect_well()
    }

    /// Starts the node anew, as an operator would, and proves that nothing is missing.
    fn mend(&mut self, loads: Vec<Child>) -> Result<()> {
        self.ask("restart", "restarted")?;
        self.end(loads, &[EXIT_FAILED, EXIT_LOST])?;
        self.prove()?;
        self.run("randrw", "1", &[EXIT_DONE])?;
        self.expect_well()
    }
}

/// The log's disk, and a controller in a slot, whose disk can be slowed down and exchanged.
fn devices(lab: &Lab) -> Result<Vec<String>> {
    let image = |name: &str, bytes: u64| {
        let path = lab.folder.join(format!("{name}.img"));
        File::create(&path)?.set_len(bytes).with_context(|| format!("making {}", path.display()))?;
        anyhow::Ok(path.display().to_string())
    };
    let arguments = [
        ("-blockdev", format!("driver=file,node-name=log,filename={}", image("log", LOG_BYTES)?)),
        ("-device", "virtio-blk-pci,drive=log,serial=log".to_owned()),
        ("-blockdev", format!("driver=file,node-name=image,filename={}", image("pool", POOL_BYTES)?)),
        ("-blockdev", format!("driver=blkdebug,node-name={WELL},image=image")),
        ("-object", format!("throttle-group,id={GROUP}")),
        ("-blockdev", format!("driver=throttle,node-name={DISK},throttle-group={GROUP},file={WELL}")),
        ("-device", format!("pcie-root-port,id={PORT_ID},chassis=1,slot=1")),
        ("-device", format!("nvme,id={SERIAL},serial={SERIAL},bus={PORT_ID},drive={DISK}")),
    ];
    Ok(arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect())
}
