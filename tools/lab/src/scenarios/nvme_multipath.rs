//! The kernel's NVMe/TCP initiator in a guest with a path to each node of a pair on the host, while everything between and behind the paths breaks and is
//! mended.
//!
//! The guest has a network for each node. The lab runs the nodes, see [`Pair`]; it kills, stops and ends them, cuts a network of the guest's, and the
//! interconnect by its relay. For each [`Phase`] the guest puts load on both pools and says how long they paused, twice: when it is harmed and goes on, and when
//! all is mended.

use super::{Lab, nbd::PATIENCE, nvme_tcp};
use crate::{
    machine::Guest,
    pair::{NAMES, Pair, address},
};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, SystemTime},
};

const PAYLOAD: &str = include_str!("../../guest/nvme-multipath.sh");

const MIB: u64 = 1 << 20;
/// Of the volumes that hold file systems: ext4 in the first pool, xfs in the other, for which this is about the smallest.
const EXT_MIB: u64 = 256;
const XFS_MIB: u64 = 320;
/// What ext4's volume grows to.
const GROWN_MIB: u64 = 384;
/// The payload writes 12 MiB more into each volume and gives them back; meanwhile a file system writes some of its own.
const FREED_BYTES: u64 = 11 << 20;
/// Longer than the keep-alive time-out, in seconds, that the payload asks for.
const LONG: Duration = Duration::from_secs(9);
/// Shorter than the deadline by which a node misses its partner.
const SHORT: Duration = Duration::from_millis(400);

/// What happens to the pair, and how it is made good again. `harm` ends when the guest's requests should go on, and names the node that serves both pools then.
struct Phase {
    name: &'static str,
    harm: fn(&mut Stage<'_>) -> Result<Option<usize>>,
    mend: fn(&mut Stage<'_>) -> Result<()>,
    /// About how long it takes, for the load.
    seconds: u32,
}

const PHASES: [Phase; 9] = [
    Phase { name: "node a is killed, and started again", harm: kill, mend: start_a, seconds: 9 },
    Phase {
        name: "node a's machine loses its power, and gets it back",
        harm: cut_power,
        mend: restore_power,
        seconds: 12,
    },
    Phase { name: "the network to node a is cut", harm: cut_network, mend: mend_network, seconds: 12 },
    Phase { name: "the interconnect is cut", harm: cut_interconnect, mend: mend_interconnect, seconds: 5 },
    Phase { name: "both are cut, the interconnect is mended", harm: cut_both, mend: mend_network, seconds: 12 },
    Phase { name: "node b stands still for a moment", harm: nap, mend: nothing, seconds: 2 },
    Phase { name: "node b stands still, and is killed for it", harm: stop, mend: start_b, seconds: 9 },
    Phase { name: "node b is stopped in order, and started again", harm: end, mend: start_b, seconds: 9 },
    Phase { name: "node a stands still, nobody kills it, and it goes on", harm: doze, mend: nothing, seconds: 12 },
];

struct Stage<'a> {
    lab: &'a Lab,
    pair: &'a mut Pair,
    guest: &'a mut Guest,
    /// When the node that is to blame was harmed.
    harmed_at: SystemTime,
}

pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut pair = Pair::start(&lab.twinlog, &lab.folder.join("pair"), "512MiB")?;
    let settings = format!(
        "port={}\nfirst={}\nsecond={}\next={}\nxfs={}\ngrown={}\n",
        pair.port,
        address(0),
        address(1),
        EXT_MIB * MIB,
        XFS_MIB * MIB,
        GROWN_MIB * MIB
    );
    let mut contents = nvme_tcp::contents(lab, PAYLOAD, &settings);
    contents.modules.push("xfs");
    contents.programs.extend(["resize2fs", "mkfs.xfs", "xfs_repair"]);
    let mut machine = nvme_tcp::machine(lab, &contents)?;
    // Both networks end at this machine; the guest sends each node's packets through one of them.
    machine.networks = NAMES.len();
    let mut guest = machine.boot()?;
    guest.event("connected", PATIENCE)?;
    for (node, name, size_mib) in [(0, "ext", EXT_MIB), (1, "xfs", XFS_MIB)] {
        pair.ask(node, &json!({ "call": "volume-create", "name": name, "size_bytes": size_mib * MIB }))?;
    }
    guest.tell("made")?;
    guest.event("ready", PATIENCE)?;
    let phases = || (0..lab.rounds).flat_map(|_| &PHASES);
    for phase in phases() {
        let mut stage = Stage { lab, pair: &mut pair, guest: &mut guest, harmed_at: SystemTime::now() };
        stage.perform(phase).with_context(|| phase.name)?;
    }
    guest.tell("end")?;
    give_back(lab, &mut guest, &pair)?;
    guest.event("grow", PATIENCE)?;
    pair.ask(0, &json!({ "call": "volume-resize", "name": "ext", "size_bytes": GROWN_MIB * MIB }))?;
    guest.succeed(PATIENCE)?;
    pair.check()
}

/// Watches the pools while the guest removes what it has written.
fn give_back(lab: &Lab, guest: &mut Guest, pair: &Pair) -> Result<()> {
    let volumes = [(0, "vol-a"), (0, "ext"), (1, "xfs")];
    let measure = || volumes.iter().map(|(node, name)| pair.allocated_bytes(*node, name)).collect::<Result<Vec<_>>>();
    guest.event("filled", PATIENCE)?;
    let full = measure()?;
    guest.tell("empty")?;
    guest.event("emptied", PATIENCE)?;
    for ((left, full), (_, name)) in measure()?.into_iter().zip(full).zip(volumes) {
        ensure!(full >= left + FREED_BYTES, "of {full} bytes of {name} {left} are left");
        lab.say(format_args!("{name}: {full} bytes allocated; {left} when the guest had given space back"));
    }
    guest.tell("go on")
}

impl Stage<'_> {
    fn perform(&mut self, phase: &Phase) -> Result<()> {
        self.guest.tell(&format!("phase {} {}", phase.seconds, phase.name))?;
        self.guest.event("loaded", PATIENCE)?;
        self.harmed_at = SystemTime::now();
        let server = (phase.harm)(self)?;
        let server = server.map(address).unwrap_or_default();
        self.guest.tell(&format!("harmed {server}"))?;
        let harmed = self.guest.event("seen", PATIENCE)?;
        self.lab.say(format_args!("{}: I/O paused for {harmed}", phase.name));
        (phase.mend)(self)?;
        self.pair.wait_until_home()?;
        self.guest.tell("mended")?;
        let mended = self.guest.event("done", PATIENCE)?;
        self.lab.say(format_args!("{}, made good: I/O paused for {mended}", phase.name));
        Ok(())
    }

    /// Waits until a node serves both pools, and says what it has noticed, and when.
    fn taken_over(&self, node: usize) -> Result<Option<usize>> {
        self.pair.wait_until_taken_over(node)?;
        let until = |is_it: &dyn Fn(&Value) -> bool| self.pair.seconds_until(node, self.harmed_at, is_it);
        let lost = until(&|event| event["event"] == "the partner is not reached")?;
        let owner = until(&|event| event["event"] == "register" && event["fields"]["pool"] == NAMES[1 - node])?;
        let serves = until(&|event| event["event"] == "the pool serves")?;
        let words = |seconds: Option<f64>| seconds.map_or("?".to_owned(), |seconds| format!("{seconds:.3} s"));
        self.lab.say(format_args!(
            "node {}: misses its partner after {}, is the owner after {}, serves after {}",
            NAMES[node],
            words(lost),
            words(owner),
            words(serves)
        ));
        Ok(Some(node))
    }

    fn link(&self, node: usize, is_up: bool) -> Result<()> {
        self.guest.link(node, is_up)
    }
}

fn nothing(_: &mut Stage<'_>) -> Result<()> {
    Ok(())
}

fn kill(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.signal(0, Signal::SIGKILL)?;
    stage.pair.wait_for_end(0)?;
    stage.taken_over(1)
}

/// The host is told nothing.
fn cut_power(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.link(0, false)?;
    kill(stage)
}

fn restore_power(stage: &mut Stage<'_>) -> Result<()> {
    stage.link(0, true)?;
    stage.pair.restart(0)
}

fn start_a(stage: &mut Stage<'_>) -> Result<()> {
    stage.pair.restart(0)
}

fn start_b(stage: &mut Stage<'_>) -> Result<()> {
    stage.pair.restart(1)
}

fn cut_network(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.link(0, false)?;
    Ok(None)
}

fn mend_network(stage: &mut Stage<'_>) -> Result<()> {
    stage.link(0, true)
}

fn cut_interconnect(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.interconnect.cut();
    stage.pair.wait_until_cut()?;
    Ok(None)
}

fn mend_interconnect(stage: &mut Stage<'_>) -> Result<()> {
    stage.pair.interconnect.mend();
    Ok(())
}

/// Pool a is served, and the guest cannot reach it.
fn cut_both(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.link(0, false)?;
    stage.pair.interconnect.cut();
    thread::sleep(LONG);
    mend_interconnect(stage)?;
    Ok(None)
}

fn nap(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.signal(1, Signal::SIGSTOP)?;
    thread::sleep(SHORT);
    stage.pair.signal(1, Signal::SIGCONT)?;
    Ok(None)
}

fn stop(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.signal(1, Signal::SIGSTOP)?;
    stage.pair.wait_for_end(1)?;
    stage.taken_over(0)
}

fn end(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.signal(1, Signal::SIGTERM)?;
    stage.pair.wait_for_end(1)?;
    stage.taken_over(0)
}

/// Its partner may not take over: pool a pauses until node a goes on.
fn doze(stage: &mut Stage<'_>) -> Result<Option<usize>> {
    stage.pair.signal(0, Signal::SIGSTOP)?;
    thread::sleep(LONG);
    stage.pair.signal(0, Signal::SIGCONT)?;
    Ok(None)
}
