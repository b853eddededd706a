//! A pair of real processes on one machine: `twinlog up` with two nodes, load on a volume, and the proof that nothing answered was lost.

use super::{PATIENCE, command, folder, load_command, load_tool, outcome, pause_ms, signal};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Instant,
};
use tempfile::TempDir;

/// A running `twinlog up` of two nodes.
pub(crate) struct Pair {
    pub(crate) folder: TempDir,
    pub(crate) supervisor: Child,
}

impl Pair {
    pub(crate) fn start() -> Self {
        Self::start_in(folder(), &["--size", "64MiB", "--log-size", "16MiB"])
    }

    /// A pair in whose `node.toml` one text stands in place of another.
    pub(crate) fn start_with(from: &str, to: &str) -> Self {
        let folder = Self::start().stop();
        for node in ["a", "b"] {
            let path = folder.path().join("data").join(node).join("node.toml");
            let text = fs::read_to_string(&path).expect("up has made it");
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replacen(from, to, 1)).expect("written");
        }
        Self::start_in(folder, &[])
    }

    /// A pair whose interconnects run there, as both nodes say.
    pub(crate) fn start_with_interconnect(place: &str) -> Self {
        let pair = Self::start_with("interconnect = \"auto\"", &format!("interconnect = \"{place}\""));
        let words = if place == "thread" { "a thread of its own" } else { "reactor 0" };
        for node in ["a", "b"] {
            let status = pair.status(node).expect("it serves");
            assert_eq!(status["status"]["pair"]["placement"], words, "node {node}");
        }
        pair
    }

    /// Starts what is in a folder, and waits for nothing.
    pub(crate) fn launch(folder: TempDir, options: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(folder.path().join("out")).expect("a file of ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.arg("up").args(options).arg(folder.path().join("data")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        let supervisor = command.spawn().expect("the program under test starts");
        Self { folder, supervisor }
    }

    /// The same, and waits until both nodes say OK.
    pub(crate) fn start_in(folder: TempDir, options: &[&str]) -> Self {
        let pair = Self::launch(folder, options);
        pair.until("the pair is introduced", || pair.said().contains("twinlog: serving").then_some(()));
        pair.until_ok();
        pair
    }

    /// Stops it in order; what is left is its folder.
    pub(crate) fn stop(mut self) -> TempDir {
        signal(self.supervisor.id(), "TERM");
        assert!(self.supervisor.wait().expect("a child of ours").success(), "{}", self.said());
        assert!(!self.said().contains("killed, which loses nothing\n"), "in order: {}", self.said());
        std::mem::replace(&mut self.folder, folder())
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.said());
            pause_ms(20);
        }
    }

    pub(crate) fn run(&self, node: &str, arguments: &[&str]) -> Output {
        let dir = self.dir();
        let place = ["--dir", dir.to_str().expect("plain"), "--node", node];
        outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &[arguments, &place].concat()))
    }

    pub(crate) fn status(&self, node: &str) -> Option<Value> {
        serde_json::from_slice(&self.run(node, &["status", "-o", "json"]).stdout).ok()
    }

    /// Waits until both nodes say OK.
    pub(crate) fn until_ok(&self) {
        self.until("both nodes say OK", || {
            let ok = |node| self.status(node).is_some_and(|status| status["verdict"] == "OK");
            (ok("a") && ok("b")).then_some(())
        });
    }

    pub(crate) fn pid(&self, node: &str) -> u32 {
        let text = fs::read_to_string(self.dir().join(node).join("pid")).expect("a node has a pid file");
        text.lines().next().and_then(|line| line.parse().ok()).expect("a process id")
    }

    pub(crate) fn signal(&self, node: &str, name: &str) {
        signal(self.pid(node), name);
    }

    pub(crate) fn uri(&self, node: &str, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.dir().join(node).join("nbd.sock").display())
    }

    /// Whether `node` serves its partner's pool.
    pub(crate) fn has_taken_over(&self, node: &str) -> bool {
        self.status(node).is_some_and(|status| status["status"]["pair"]["taken_over"]["state"] == "serving")
    }

    pub(crate) fn until_taken_over(&self, node: &str) {
        self.until("the pool is taken over", || self.has_taken_over(node).then_some(()));
    }

    /// Waits until the pool of `victim`, which was killed, is served again; returns by whom.
    pub(crate) fn until_served_again<'a>(&self, victim: &'a str, survivor: &'a str) -> &'a str {
        let is_back = || self.status(victim).is_some_and(|status| status["status"]["state"] == "serving");
        self.until("the pool is served again", || {
            if self.has_taken_over(survivor) {
                return Some(survivor);
            }
            is_back().then_some(victim)
        })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !matches!(self.supervisor.try_wait(), Ok(None)) {
            return;
        }
        // Until it is waited for, its number is its own, even if it has ended.
        signal(self.supervisor.id(), "TERM");
        let start = Instant::now();
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                let _killed = self.supervisor.kill();
            }
            pause_ms(10);
        }
    }
}

pub(crate) fn load(uri: &str, journal: &Path, seed: u64) -> Child {
    load_with(uri, journal, seed, &[])
}

/// The same, with further options.
pub(crate) fn load_with(uri: &str, journal: &Path, seed: u64, options: &[String]) -> Child {
    let arguments = [
        uri.to_owned(),
        "--rw=randwrite".into(),
        "--bs=512-64k".into(),
        "--align=512".into(),
        "--qd=8".into(),
        "--time=300".into(),
        "--warmup=0".into(),
        "--verify".into(),
        format!("--seed={seed}"),
        format!("--journal={}", journal.display()),
    ];
    let mut load = load_command(&[&arguments, options].concat());
    load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("coreutils' timeout can be started")
}

/// Ends a load before its time. SIGKILL would reach `timeout` only, and leave the program itself.
pub(crate) fn end_load(load: &mut Child) {
    signal(load.id(), "TERM");
    load.wait().expect("a child of ours");
}

pub(crate) fn prove(uri: &str, journal: &Path) -> Result<String, String> {
    prove_with(uri, journal, &[])
}

/// The same, with further options.
pub(crate) fn prove_with(uri: &str, journal: &Path, options: &[String]) -> Result<String, String> {
    let arguments = [uri.to_owned(), format!("--prove={}", journal.display())];
    let proof = outcome(&mut command(load_tool().to_str().expect("plain"), &[&arguments, options].concat()));
    let said = String::from_utf8_lossy(&proof.stdout).into_owned() + &String::from_utf8_lossy(&proof.stderr);
    if proof.status.success() { Ok(said) } else { Err(said) }
}
