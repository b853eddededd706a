//! `twinlog demo`: a pair on this machine, a node killed under load, and a report of what its client noticed.
//!
//! ```text
//! make and start a pair --> load with verify on node a's socket --> kill node a --> node b serves --> a is back, gets its pool
//!                                   |                                                                        |
//!                                   +------ the client goes to node b's socket when a's is lost              v
//!                                                                   stop  <-- prove by the journal  <-- the load ends
//! ```
//!
//! Everything is done by the programs that a user runs: `up`, `load` and the admin API, as processes.

use super::{
    args::DemoArgs,
    layout::{Layout, make_directory, write_durably},
    output::{Exit, Failure, Output},
    pause,
    place::{shell_word, socket_uri},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use twinlog::{
    control::client::AdminClient,
    node::admin::{AdminReply, AdminRequest, NodeStatus},
};

/// The load is measured for so long before the node is killed.
const BEFORE_KILL: Duration = Duration::from_secs(5);
/// How long anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
const VOLUME: &str = "vol-a";

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Writes that were answered with success.
    acknowledged_writes: u64,
    /// Answered writes that were not there at the end.
    lost_sectors: u64,
    /// Longest time in which the client got no answer.
    longest_pause_seconds: f64,
    /// From the kill until the partner served the pool.
    takeover_seconds: f64,
    /// Records that the partner performed from its log.
    replayed_records: u64,
    /// From the kill until the killed node served its pool again.
    back_home_seconds: f64,
    /// Requests that failed.
    errors: u64,
    /// The page with pictures.
    report: PathBuf,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs, output: &Output) -> Result<Exit, Failure> {
    prepare(&args.dir)?;
    output.say("making a pair of nodes, a and b, on this machine");
    let mut demo = Demo::start(args, output)?;
    let result = demo.perform(args.time);
    let stopped = demo.stop();
    let report = result?;
    stopped?;
    output.show(&report, || text(&report))?;
    Ok(if report.lost_sectors == 0 && report.errors == 0 { Exit::Done } else { Exit::Error })
}

/// An empty directory that says whose it is. One of an earlier demo is removed; anything else is left alone.
fn prepare(dir: &Path) -> Result<(), Failure> {
    let marker = dir.join("demo");
    if dir.exists() {
        if !marker.exists() {
            let message = format!("{} is there, and is not of an earlier demo", dir.display());
            return Err(Failure::new(Exit::Refused, message, "twinlog demo ANOTHER-DIRECTORY"));
        }
        fs::remove_dir_all(dir).map_err(|error| Failure::system("remove", dir.display(), &error))?;
    }
    make_directory(dir)?;
    write_durably(&marker, "`twinlog demo` may remove this directory\n")
}

/// The processes of the demo. They end with it, however it ends.
struct Demo<'a> {
    dir: &'a Path,
    output: &'a Output,
    pair: Process,
    marks: File,
}

impl<'a> Demo<'a> {
    fn start(args: &'a DemoArgs, output: &'a Output) -> Result<Self, Failure> {
        let dir = args.dir.as_path();
        let marks = dir.join("marks");
        let marks = OpenOptions::new().create(true).append(true).open(&marks);
        let marks = marks.map_err(|error| Failure::system("write in", dir.display(), &error))?;
        let pair = dir.join("pair");
        let words = ["up".as_ref(), pair.as_os_str(), "--size=256MiB".as_ref(), "--log-size=64MiB".as_ref()];
        let pair = Process::start(&words, &dir.join("up.log"))?;
        Ok(Self { dir, output, pair, marks })
    }

    fn perform(&mut self, seconds: u64) -> Result<Report, Failure> {
        self.until("both nodes are in step", || {
            ["a", "b"].iter().all(|node| self.status(node).is_some_and(|status| is_in_sync(&status))).then_some(())
        })?;
        self.output.say(&format!("random writes to {VOLUME} through node a, every one verified"));
        let mut load = self.load(seconds)?;
        pause(BEFORE_KILL);

        let mut report = Report { report: self.dir.join("report.html"), ..Report::default() };
        let killed = self.now();
        self.kill_node_a()?;
        self.mark("node a killed")?;
        self.output.say("node a is killed (SIGKILL)");
        report.replayed_records = self.until("node b serves pool a", || {
            let pool = self.status("b")?.pair?.taken_over?;
            (pool.state == "serving").then_some(pool.replayed_records)
        })?;
        report.takeover_seconds = killed.elapsed().as_secs_f64();
        self.mark("b serves")?;
        let (took, replayed) = (report.takeover_seconds, report.replayed_records);
        self.output.say(&format!("node b serves pool a after {took:.2} s, {replayed} record(s) replayed from its log"));
        self.until("node a serves its pool again", || (self.status("a")?.state == "serving").then_some(()))?;
        report.back_home_seconds = killed.elapsed().as_secs_f64();
        self.mark("a serves again")?;
        self.output.say(&format!("node a is back and has its pool again after {:.1} s", report.back_home_seconds));

        load.wait(Duration::from_secs(seconds) + PATIENCE)?;
        let measured = self.json("load.json")?;
        report.acknowledged_writes = measured["acknowledged"]["ops"].as_u64().unwrap_or_default();
        report.longest_pause_seconds = measured["longest_pause_seconds"].as_f64().unwrap_or_default();
        let errors = measured["errors"].as_array().into_iter().flatten();
        report.errors = errors.filter_map(|error| error["count"].as_u64()).sum();
        if measured["end"] != "finished" {
            let message = format!("the load ended early: {}", measured["end_reason"]);
            return Err(Failure::new(Exit::Error, message, see(&self.dir.join("load.log"))));
        }
        report.lost_sectors = self.prove()?;
        Ok(report)
    }

    /// Starts the load on node a, with node b as the other way.
    fn load(&self, seconds: u64) -> Result<Process, Failure> {
        let (a, b) = (self.uri("a"), self.uri("b"));
        let (seconds, report) = (format!("--time={seconds}"), self.file("--report=", "report.html"));
        let (marks, journal) = (self.file("--marks=", "marks"), self.file("--journal=", "journal"));
        let words = [
            "load",
            &a,
            "--alternate",
            &b,
            "--reconnect=60",
            "--rw=randwrite",
            "--bs=4k",
            "--qd=4",
            "--warmup=0",
            "--verify",
            "-o",
            "json",
            &seconds,
            &report,
            &marks,
            &journal,
        ];
        Process::start_to(&words, &self.dir.join("load.json"), &self.dir.join("load.log"))
    }

    /// Reads everything back and compares it with the journal; the sectors that are not as they must be.
    fn prove(&self) -> Result<u64, Failure> {
        let (uri, journal) = (self.uri("a"), self.file("--prove=", "journal"));
        let words = ["load", &uri, &journal, "-o", "json"];
        Process::start_to(&words, &self.dir.join("proof.json"), &self.dir.join("proof.log"))?.wait(PATIENCE)?;
        let proof = self.json("proof.json")?;
        let wrong = |name: &str| proof["findings"][name].as_u64().unwrap_or_default();
        let lost = ["lost_acknowledged", "lost_fua", "lost_flushed", "other"].map(wrong).iter().sum();
        if lost == 0 && proof["verdict"] != "proven" {
            let hint = see(&self.dir.join("proof.log"));
            return Err(Failure::new(Exit::Error, "the proof could not be made", hint));
        }
        Ok(lost)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.pair.signal(Signal::SIGTERM);
        self.pair.wait(PATIENCE)
    }

    fn kill_node_a(&self) -> Result<(), Failure> {
        let file = Layout::new(&self.dir.join("pair"), "a").pid();
        let text = fs::read_to_string(&file).map_err(|error| Failure::system("read", file.display(), &error))?;
        let pid = text.lines().next().and_then(|line| line.parse().ok());
        let pid =
            pid.ok_or_else(|| Failure::new(Exit::Error, format!("{} holds no process id", file.display()), ""))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .map_err(|error| Failure::system("kill", format_args!("process {pid}"), &error.into()))
    }

    fn status(&self, node: &str) -> Option<Box<NodeStatus>> {
        let mut client = AdminClient::connect(&Layout::new(&self.dir.join("pair"), node).admin()).ok()?;
        match client.call(&AdminRequest::Status).ok()? {
            AdminReply::Status(status) => Some(status),
            _ => None,
        }
    }

    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> Result<T, Failure> {
        let start = self.now();
        while start.elapsed() < PATIENCE {
            if let Some(found) = look() {
                return Ok(found);
            }
            pause(POLL);
        }
        let hint = see(&self.dir.join("up.log"));
        Err(Failure::new(Exit::Error, format!("waited in vain until {what}"), hint))
    }

    /// For the pictures: this happened just now.
    fn mark(&self, label: &str) -> Result<(), Failure> {
        let time = wall_clock().as_secs_f64();
        writeln!(&self.marks, "{time:.3} {label}")
            .map_err(|error| Failure::system("write in", self.dir.display(), &error))
    }

    fn json(&self, name: &str) -> Result<Value, Failure> {
        let path = self.dir.join(name);
        let text = fs::read_to_string(&path).map_err(|error| Failure::system("read", path.display(), &error))?;
        serde_json::from_str(&text).map_err(|error| {
            let hint = see(&path.with_extension("log"));
            Failure::new(Exit::Error, format!("{} is no result: {error}", path.display()), hint)
        })
    }

    fn uri(&self, node: &str) -> String {
        socket_uri(VOLUME, &Layout::new(&self.dir.join("pair"), node).nbd())
    }

    fn file(&self, option: &str, name: &str) -> String {
        format!("{option}{}", self.dir.join(name).display())
    }

    #[expect(clippy::disallowed_methods, reason = "what a person waits for")]
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A child that runs this program. Killed when it is dropped before it ended.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with all its output in `log`.
    fn start<S: AsRef<std::ffi::OsStr>>(words: &[S], log: &Path) -> Result<Self, Failure> {
        Self::start_to(words, log, log)
    }

    fn start_to<S: AsRef<std::ffi::OsStr>>(words: &[S], result: &Path, log: &Path) -> Result<Self, Failure> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|error| Failure::system("write", path.display(), &error))
        };
        let program = std::env::current_exe().map_err(|error| Failure::system("find", "this program", &error))?;
        let mut command = Command::new(&program);
        command.args(words).stdin(Stdio::null()).stdout(open(result)?).stderr(open(log)?);
        let child = command.spawn().map_err(|error| Failure::system("start", program.display(), &error))?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are positive i32"));
        // It may have ended by itself; waiting tells.
        let _ended = kill(pid, signal);
    }

    /// Waits until it has ended.
    fn wait(&mut self, limit: Duration) -> Result<(), Failure> {
        let mut left = limit;
        loop {
            let ended = self.child.try_wait().map_err(|error| Failure::system("wait for", "a process", &error))?;
            if ended.is_some() {
                return Ok(());
            }
            if left.is_zero() {
                return Err(Failure::new(Exit::Error, "a process of the demo does not end", see(&self.log)));
            }
            left = left.saturating_sub(POLL);
            pause(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // The supervisor ends its nodes when it is told to.
            self.signal(Signal::SIGTERM);
            if self.wait(PATIENCE).is_err() {
                self.signal(Signal::SIGKILL);
            }
        }
    }
}

fn see(log: &Path) -> String {
    format!("see {}", log.display())
}

fn is_in_sync(status: &NodeStatus) -> bool {
    let is_final = |pair: &twinlog::node::admin::PairStatus| pair.pools.iter().all(|pool| pool.is_final);
    status.state == "serving" && status.pair.as_ref().is_some_and(is_final)
}

#[expect(clippy::disallowed_methods, reason = "moments are matched with those of the load tool, another process")]
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn text(report: &Report) -> String {
    let verdict =
        if report.lost_sectors == 0 { "nothing that was answered was lost" } else { "ANSWERED DATA WAS LOST" };
    let lines = [
        ("writes acknowledged", report.acknowledged_writes.to_string(), "each read back at the end and compared"),
        ("sectors lost", report.lost_sectors.to_string(), verdict),
        ("failed requests", report.errors.to_string(), ""),
        ("longest pause", format!("{:.2} s", report.longest_pause_seconds), "in which the client got no answer"),
        ("takeover", format!("{:.2} s", report.takeover_seconds), "from the kill until node b served pool a"),
        ("records replayed", report.replayed_records.to_string(), "answered before, and not on the disk yet"),
        ("back at home", format!("{:.1} s", report.back_home_seconds), "from the kill until node a served it again"),
    ];
    let mut text = "\nA node was killed under load.\n\n".to_owned();
    for (name, value, meaning) in lines {
        text.push_str(format!("  {name:<20} {value:>10}   {meaning}").trim_end());
        text.push('\n');
    }
    text + &format!("\nLatency over time, with these moments marked: {}\n", shell_word(&report.report))
}
