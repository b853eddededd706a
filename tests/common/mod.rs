//! What tests of real processes share: a running target, and foreign programs beside it.
//!
//! Every program runs under `timeout`, so a target that hangs fails a test instead of stopping the run. A program that is not
//! installed makes its tests skip with a message; with `CI` set they fail, so that nothing is skipped where it counts.

#![allow(dead_code, reason = "each test file uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "tests of real processes live in real time, on a real machine")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread::{panicking, sleep},
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub(crate) mod disk;
pub(crate) mod nbd;
pub(crate) mod nvme;
pub(crate) mod pair;
pub(crate) mod witness;

/// How long a target may take to answer, or to die. Only a limit: a good one needs a fraction of a second. A planted bug may make it wait in vain.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(feature = "planted-bugs") { 60 } else { 300 });

/// Seconds that one foreign program may run: longer than what it waits for, twice.
const PROGRAM_SECONDS_MAX: &str = if cfg!(feature = "planted-bugs") { "240" } else { "900" };

/// Where Debian keeps each program that the tests use.
const PACKAGES: [(&str, &str); 12] = [
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("cmp", "diffutils"),
    ("cp", "coreutils"),
];

/// System folders first: a private Python ahead of them in `PATH` would not find the system's libnbd.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = PROGRAM_FOLDERS.iter().map(PathBuf::from);
    system.chain(env::split_paths(&path)).map(|folder| folder.join(program)).find(|place| place.is_file())
}

/// Whether all `programs` are installed. If not, says how to get them; where `CI` is set that is a failure.
#[must_use]
pub(crate) fn installed(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    let package = |name| PACKAGES.iter().find(|(program, _)| *program == name).map_or(name, |(_, package)| *package);
    let packages: Vec<&str> = missing.iter().copied().map(package).collect();
    skip(&format!("{} not found: sudo apt-get install {}", missing.join(", "), packages.join(" ")));
    false
}

/// Says why a test is left out; where `CI` is set that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(env::var_os("CI").is_none(), "{why}");
    // The test runner would keep what `eprintln!` says of a test that passes.
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
}

/// A foreign program under `timeout`, its input empty. At its limit all that it has started ends as well.
#[must_use]
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Command {
    under_timeout(&[], program, arguments)
}

/// The load tool, to which a signal comes once: without `--foreground` what `timeout` gets comes to the program, and once more to its whole group. The tool ends at once,
/// without a report, when it is told twice.
#[must_use]
pub(crate) fn load_command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    under_timeout(&["--foreground"], load_tool().to_str().expect("plain"), arguments)
}

fn under_timeout<S: AsRef<OsStr>>(options: &[&str], program: &str, arguments: &[S]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(options)
        .args(["--kill-after=10", PROGRAM_SECONDS_MAX])
        .arg(find(program).unwrap_or_else(|| program.into()));
    command.args(arguments).stdin(Stdio::null());
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = PROGRAM_FOLDERS.iter().map(PathBuf::from).chain(env::split_paths(&path));
    command.env("PATH", env::join_paths(folders).expect("no folder of PATH holds a colon"));
    command
}

/// Sends a signal to a process that is there: `TERM`, `KILL`, `STOP` or `CONT`.
pub(crate) fn signal(pid: u32, name: &str) {
    let signal: Signal = format!("SIG{name}").parse().expect("a signal's name");
    let pid = Pid::from_raw(i32::try_from(pid).expect("process ids are positive i32"));
    kill(pid, signal).unwrap_or_else(|error| panic!("process {pid} takes {signal}: {error}"));
}

/// Runs a command to its end and returns what it did.
#[must_use]
pub(crate) fn outcome(command: &mut Command) -> Output {
    command.output().expect("coreutils' timeout can be started")
}

/// Runs a foreign program that must succeed, and returns what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    succeed(&mut command(program, arguments))
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = outcome(command);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{printed}\n{complaint}", output.status);
    printed
}

/// A folder for one test, on the disk that the build lies on: not a tmpfs, which would hide what disks do.
#[must_use]
pub(crate) fn folder() -> TempDir {
    // A Unix socket's path has at most 107 bytes; a folder takes 11 of them, the longest socket below it 20.
    let build = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let place = if build.as_os_str().len() <= 70 { build.to_owned() } else { env::temp_dir() };
    tempfile::Builder::new().prefix("t").rand_bytes(8).tempdir_in(place).expect("the build folder is writable")
}

/// The seed of a test: the one in `TWINLOG_SEED`, or a new one. Print it first.
#[must_use]
pub(crate) fn seed() -> u64 {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").subsec_nanos();
    number("TWINLOG_SEED").unwrap_or_else(|| (u64::from(std::process::id()) << 32) | u64::from(now()))
}

/// A number from the environment.
#[must_use]
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// The load tool, built in the profile of this test.
pub(crate) fn load_tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_twinlog")).parent().expect("programs lie in the profile's folder");
        let profile = folder.file_name().and_then(OsStr::to_str).expect("profiles have plain names");
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "twinlog-load", "--profile", profile]);
        succeed(build.current_dir(env!("CARGO_MANIFEST_DIR")));
        folder.join("twinlog-load")
    })
}

/// A target as a user runs it: `twinlog up --single`, with one volume `vol-a`. It is killed when dropped; what it printed
/// is shown if the test failed.
pub(crate) struct Target {
    folder: TempDir,
    size: String,
    options: Vec<String>,
    process: Option<Child>,
}

impl Target {
    /// Creates a volume of `size` (as for `--size`) and serves it.
    #[must_use]
    pub(crate) fn start(size: &str) -> Self {
        Self::start_with(size, &[])
    }

    /// The same with further options of `up`.
    #[must_use]
    pub(crate) fn start_with(size: &str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut target = Self { folder: folder(), size: size.to_owned(), options, process: None };
        target.restart();
        target
    }

    /// Starts it again, after `kill` or `stop`, and waits until it has said how to connect.
    pub(crate) fn restart(&mut self) {
        if let Err(said) = self.try_restart() {
            panic!("the target ended: {said}\n{}", self.printed());
        }
    }

    /// The same where it may have reason not to serve.
    ///
    /// # Errors
    /// What it said before it ended, or why its node does not serve; it is killed then.
    pub(crate) fn try_restart(&mut self) -> Result<(), String> {
        let before = self.printed().len();
        self.launch();
        let start = Instant::now();
        while !self.printed()[before..].contains(&self.uri()) {
            let process = self.process.as_mut().expect("just started");
            if let Some(status) = process.try_wait().expect("a child of ours") {
                self.process = None;
                return Err(format!("{status}: {}", &self.printed()[before..]));
            }
            let said = &self.printed()[before..];
            if said.contains("does not serve: ") {
                self.kill();
                return Err(said.to_owned());
            }
            assert!(start.elapsed() < PATIENCE, "the target does not serve\n{}", self.printed());
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts it and does not wait.
    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let output = File::options().create(true).append(true).open(self.log()).expect("our own folder is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(["up", "--single", "--size", &self.size]).args(&self.options).arg(self.data());
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a file of ours")).stderr(output);
        self.process = Some(command.spawn().expect("the program under test starts"));
    }

    /// SIGKILL to everything at one instant: the supervisor is halted first, so that it neither starts the node again nor, by
    /// its own death, has it stop cleanly.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let supervisor = identity(&process);
        kill(supervisor, Signal::SIGSTOP).expect("a child of ours");
        let nodes = children(supervisor);
        for node in &nodes {
            // It may have died by itself.
            let _ = kill(*node, Signal::SIGKILL);
        }
        process.kill().expect("a child of ours");
        process.wait().expect("a child of ours");
        let start = Instant::now();
        while nodes.iter().any(|node| is_alive(*node)) {
            assert!(start.elapsed() < PATIENCE, "a node outlives SIGKILL");
            sleep(Duration::from_millis(1));
        }
    }

    /// What the kernel says of the node's process in a line of `status` that begins with `key`, in KiB.
    #[must_use]
    pub(crate) fn node_kib(&self, key: &str) -> u64 {
        let nodes = children(identity(self.process.as_ref().expect("it runs")));
        let node = nodes.first().expect("the supervisor has a node");
        let text = fs::read_to_string(format!("/proc/{node}/status")).expect("it lives");
        let line = text.lines().find(|line| line.starts_with(key)).expect("every kernel says this");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }

    /// SIGKILL to the node alone; the supervisor lives.
    pub(crate) fn kill_node(&self) {
        let process = self.process.as_ref().expect("it runs");
        for node in children(identity(process)) {
            kill(node, Signal::SIGKILL).expect("a child of a child of ours");
        }
    }

    /// SIGTERM, and waits for the end: a clean stop.
    pub(crate) fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill(identity(&process), Signal::SIGTERM).expect("a child of ours");
        let start = Instant::now();
        loop {
            if let Some(status) = process.try_wait().expect("a child of ours") {
                assert!(status.success(), "stopped with {status}\n{}", self.printed());
                return;
            }
            assert!(start.elapsed() < PATIENCE, "SIGTERM does not stop the target\n{}", self.printed());
            sleep(Duration::from_millis(5));
        }
    }

    /// The folder that `up` keeps everything in.
    #[must_use]
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    /// A folder for the test's own files.
    #[must_use]
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The NBD socket.
    #[must_use]
    pub(crate) fn socket(&self) -> PathBuf {
        self.data().join("a/nbd.sock")
    }

    /// How NBD clients name the volume.
    #[must_use]
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///vol-a?socket={}", self.socket().display())
    }

    /// Runs `twinlog ... --dir DIR -o json`, which must succeed or find something, and returns what it says.
    #[must_use]
    pub(crate) fn twinlog(&self, arguments: &[&str]) -> serde_json::Value {
        let mut command = command(env!("CARGO_BIN_EXE_twinlog"), arguments);
        let output = outcome(command.args(["-o", "json", "--dir"]).arg(self.data()));
        let complaint = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?} {complaint}"))
    }

    /// `twinlog status`, or null while the node does not answer at all.
    #[must_use]
    pub(crate) fn status(&self) -> serde_json::Value {
        let mut command = command(env!("CARGO_BIN_EXE_twinlog"), &["status", "-o", "json", "--dir"]);
        serde_json::from_slice(&outcome(command.arg(self.data())).stdout).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// What it printed since the first start.
    #[must_use]
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if panicking() {
            eprintln!("---- the target printed:\n{}----", self.printed());
        }
        self.kill();
    }
}

fn identity(process: &Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).expect("process ids are small"))
}

/// The processes that `parent`'s main thread has started and not yet waited for.
fn children(parent: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    assert!(list.is_ok() || !is_alive(parent), "the kernel does not show children (CONFIG_PROC_CHILDREN)");
    list.unwrap_or_default().split_whitespace().map(|word| Pid::from_raw(word.parse().expect("a process id"))).collect()
}

/// Whether a process still runs, or holds what it had open. A dead one that nobody has waited for does neither; but the main
/// thread of a killed process can be dead before the others are.
fn is_alive(process: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any character.
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    threads > 1 || !matches!(state, None | Some("Z" | "X"))
}

/// Lets what runs beside the test go on for a while.
pub(crate) fn pause_ms(milliseconds: u64) {
    sleep(Duration::from_millis(milliseconds));
}
