//! A pair of nodes on this machine, of which the lab itself runs each: it can kill one, stop it, ask it to end, start it again, and cut what joins them.
//!
//! `twinlog up` makes it and its first volumes. Then the lab takes the place of the supervisor, and of the interconnect, which goes through a [`Relay`].

use crate::{
    host,
    node::{ask, free_port},
    relay::Relay,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const POLL: Duration = Duration::from_millis(20);
/// Starting, recovering, bringing logs in step, and giving a pool back, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The nodes' names, which are their pools' too.
pub const NAMES: [&str; 2] = ["a", "b"];

/// Both nodes; what is called `node` here is 0 or 1.
#[derive(Debug)]
pub struct Pair {
    twinlog: PathBuf,
    folder: PathBuf,
    nodes: [Option<Child>; 2],
    /// The interconnect.
    pub interconnect: Relay,
    /// Of NVMe/TCP, each node at its own address, see [`address`].
    pub port: u16,
}

/// Where a node awaits hosts: an address of its own, so that hosts can have a network for each.
#[must_use]
pub fn address(node: usize) -> String {
    format!("127.0.0.{}", 2 + node)
}

impl Pair {
    /// Makes a pair in `folder`, each node with a volume `vol-NAME` of `size`, and waits until both serve and their logs are in step.
    ///
    /// # Errors
    ///
    /// They do not.
    pub fn start(twinlog: &Path, folder: &Path, size: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let port = free_port()?;
        make(twinlog, folder, size, port)?;
        let interconnect = Relay::start(&folder.join("interconnect"), &folder.join("d/b/pair.sock"))?;
        let mut pair =
            Self { twinlog: twinlog.to_owned(), folder: folder.to_owned(), nodes: [None, None], interconnect, port };
        // Node a kills a partner that stands still, node b waits for one.
        pair.configure(1, "\"lock\", \"process\"", "\"lock\"")?;
        // Of a pair the lesser name connects.
        pair.configure(0, "\"../b/pair.sock\"", "\"../../interconnect\"")?;
        for node in 0..NAMES.len() {
            for (number, port) in [port, port + 1].into_iter().enumerate() {
                let listen = format!("{}:{}", address(number), pair.port);
                pair.configure(node, &format!("127.0.0.1:{port}"), &listen)?;
            }
            pair.configure(node, "giveback_after_s = 5", "giveback_after_s = 1")?;
            pair.restart(node)?;
        }
        pair.wait_until_home()?;
        Ok(pair)
    }

    fn home(&self, node: usize) -> PathBuf {
        self.folder.join("d").join(NAMES[node])
    }

    /// Changes a node's configuration, which it reads when it is started.
    fn configure(&self, node: usize, from: &str, to: &str) -> Result<()> {
        let path = self.home(node).join("node.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(text.contains(from), "{} does not say {from}", path.display());
        fs::write(&path, text.replace(from, to)).with_context(|| format!("writing {}", path.display()))
    }

    /// Starts a node that does not run.
    ///
    /// # Errors
    ///
    /// The system cannot.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join(format!("{}.log", NAMES[node])))?;
        let mut command = host::mortal(&self.twinlog);
        command.arg("serve").arg("--config").arg(self.home(node).join("node.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.nodes[node] = Some(command.spawn().context("starting twinlog")?);
        Ok(())
    }

    /// Sends a node a signal.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn signal(&self, node: usize, signal: Signal) -> Result<()> {
        let process = self.nodes[node].as_ref().with_context(|| format!("node {} runs", NAMES[node]))?;
        kill(Pid::from_raw(i32::try_from(process.id())?), signal).with_context(|| format!("sending {signal}"))
    }

    /// Waits until a node's process has ended.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn wait_for_end(&mut self, node: usize) -> Result<()> {
        let mut process = self.nodes[node].take().with_context(|| format!("node {} runs", NAMES[node]))?;
        let start = Instant::now();
        while process.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                let _ = process.kill();
                bail!("node {} does not end", NAMES[node]);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// What a node says of itself; null while it does not answer.
    #[must_use]
    pub fn status(&self, node: usize) -> Value {
        self.ask(node, &json!({ "call": "status" })).unwrap_or_default()
    }

    /// Asks a node over its admin socket.
    ///
    /// # Errors
    ///
    /// It does not answer, or refuses.
    pub fn ask(&self, node: usize, request: &Value) -> Result<Value> {
        ask(&self.home(node).join("admin.sock"), request)
    }

    /// Waits until `node` serves its partner's pool.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn wait_until_taken_over(&self, node: usize) -> Result<()> {
        self.wait(&format!("node {} has not taken over", NAMES[node]), || {
            self.status(node)["pair"]["taken_over"]["state"] == "serving"
        })
    }

    /// Waits until no node hears of its partner.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn wait_until_cut(&self) -> Result<()> {
        let is_cut = |node: usize| self.status(node)["pair"]["link"] != "up";
        self.wait("the nodes still hear of each other", || is_cut(0) && is_cut(1))
    }

    /// Waits until both pools are served at home and each node's log is in step with its mirror.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn wait_until_home(&self) -> Result<()> {
        let is_home = |node: usize| {
            let status = self.status(node);
            let pools = status["pair"]["pools"].as_array();
            status["state"] == "serving"
                && pools.is_some_and(|pools| pools.len() == 2 && pools.iter().all(|pool| pool["is_final"] == true))
        };
        self.wait("the pair is not as it should be", || is_home(0) && is_home(1))
    }

    fn wait(&self, complaint: &str, is_there: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_there() {
            if start.elapsed() > PATIENCE {
                bail!("after {PATIENCE:?} {complaint}: {} {}", self.status(0), self.status(1));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Seconds from `since` until the first event of a node that `is_it`.
    ///
    /// # Errors
    ///
    /// The node does not answer.
    pub fn seconds_until(&self, node: usize, since: SystemTime, is_it: impl Fn(&Value) -> bool) -> Result<Option<f64>> {
        let since_ns = u64::try_from(since.duration_since(UNIX_EPOCH)?.as_nanos())?;
        let mut after = 0;
        loop {
            let answer = self.ask(node, &json!({ "call": "events", "after": after }))?;
            let events = answer["events"].as_array().context("events are a list")?;
            for event in events {
                let later_ns = event["time_ns"].as_u64().unwrap_or_default().saturating_sub(since_ns);
                if later_ns > 0 && is_it(event) {
                    return Ok(Some(Duration::from_nanos(later_ns).as_secs_f64()));
                }
            }
            match events.last().and_then(|event| event["sequence"].as_u64()) {
                Some(last) if answer["last"].as_u64().is_some_and(|all| last < all) => after = last,
                _ => return Ok(None),
            }
        }
    }

    /// What a volume takes in its pool, all that was written included.
    ///
    /// # Errors
    ///
    /// The node does not answer, or has no such volume.
    pub fn allocated_bytes(&self, node: usize, volume: &str) -> Result<u64> {
        self.ask(node, &json!({ "call": "checkpoint" }))?;
        let answer = self.ask(node, &json!({ "call": "volume-list" }))?;
        let found = answer["volumes"].as_array().and_then(|all| all.iter().find(|one| one["name"] == volume));
        found.and_then(|volume| volume["allocated_bytes"].as_u64()).with_context(|| format!("no {volume} in {answer}"))
    }

    /// Proves that both pools are whole, and that no node has found damage.
    ///
    /// # Errors
    ///
    /// One is not.
    pub fn check(&self) -> Result<()> {
        for (node, name) in NAMES.iter().enumerate() {
            let output = Command::new(&self.twinlog)
                .args(["pool", "check", "-o", "json", "--node", name, "--dir"])
                .arg(self.folder.join("d"))
                .stdin(Stdio::null())
                .output()
                .context("starting twinlog")?;
            ensure!(output.status.success(), "pool {name}: {}", String::from_utf8_lossy(&output.stdout));
            let status = self.status(node);
            ensure!(status["pool"]["checksum_errors"] == 0, "node {name} found damage: {status}");
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Has `twinlog up` make everything, and ends it when both nodes have served.
fn make(twinlog: &Path, folder: &Path, size: &str, port: u16) -> Result<()> {
    let output = File::create(folder.join("up.log"))?;
    let mut command = host::mortal(twinlog);
    command.args(["up", "-o", "json", "--size", size, "--log-size", "64MiB", "--reactors", "2"]);
    command.args(["--nvme", &port.to_string()]).arg(folder.join("d"));
    let mut supervisor =
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn().context("starting twinlog")?;
    let start = Instant::now();
    let said = || fs::read_to_string(folder.join("up.log")).unwrap_or_default();
    while !said().contains("\"serving\"") {
        if start.elapsed() > PATIENCE || supervisor.try_wait()?.is_some() {
            let _ = supervisor.kill();
            bail!("twinlog up does not serve:\n{}", said());
        }
        thread::sleep(POLL);
    }
    kill(Pid::from_raw(i32::try_from(supervisor.id())?), Signal::SIGTERM).context("ending twinlog up")?;
    let status = supervisor.wait()?;
    ensure!(status.success(), "twinlog up ended with {status}:\n{}", said());
    Ok(())
}
