//! A node on this machine, or a pair, as `twinlog up` runs it.

use crate::host;
use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(20);
/// Making, starting, recovering and stopping a node are short; a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The running node with its supervisor.
#[derive(Debug)]
pub struct Node {
    twinlog: PathBuf,
    folder: PathBuf,
    supervisor: Child,
    /// Of its NBD server, on the loopback address.
    pub port: u16,
}

/// A port of the loopback address that nobody uses now.
///
/// # Errors
///
/// There is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Asks a node over its admin socket.
///
/// # Errors
///
/// It does not answer, or refuses.
pub fn ask(socket: &Path, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{request}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(|| format!("waiting for the answer to {request}"))?;
    let answer: Value = serde_json::from_str(&line).with_context(|| format!("{request}: {line:?}"))?;
    if answer["reply"] == "refused" { bail!("{request}: {line}") } else { Ok(answer) }
}

impl Node {
    /// Makes a node with one volume in `folder` and waits until it serves.
    ///
    /// # Errors
    ///
    /// It does not serve; the message holds what it printed.
    pub fn start(twinlog: &Path, folder: &Path, size: &str) -> Result<Self> {
        Self::start_with(twinlog, folder, size, &["--single"])
    }

    /// The same with these options of `up`: without `--single` a pair, of which node a is meant by everything here.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(twinlog: &Path, folder: &Path, size: &str, options: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let port = free_port()?;
        let output = File::create(folder.join("node.log"))?;
        let mut command = host::mortal(twinlog);
        command.args(["up", "--size", size, "--log-size", "64MiB", "--port", &port.to_string()]);
        command.args(options);
        command.arg(folder.join("d")).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let supervisor = command.spawn().context("starting twinlog")?;
        let mut node = Self { twinlog: twinlog.to_owned(), folder: folder.to_owned(), supervisor, port };
        node.wait_for("serves", |status| status["status"]["state"] == "serving")?;
        Ok(node)
    }

    /// What `twinlog status` says, or null while the node does not answer.
    #[must_use]
    pub fn status(&self) -> Value {
        self.status_by(&["status"])
    }

    fn status_by(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).output();
        output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default()
    }

    /// The same of a pair's node b.
    #[must_use]
    pub fn partner_status(&self) -> Value {
        self.status_by(&["status", "--node", "b"])
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.twinlog);
        command.args(arguments).args(["-o", "json", "--dir"]).arg(self.folder.join("d")).stdin(Stdio::null());
        command
    }

    /// Takes a consistency point and waits for it.
    ///
    /// # Errors
    ///
    /// The node does not answer, or refuses.
    pub fn checkpoint(&self) -> Result<()> {
        ask(&self.folder.join("d/a/admin.sock"), &json!({ "call": "checkpoint" })).map(drop)
    }

    /// Waits until `status` shows something.
    ///
    /// # Errors
    ///
    /// It takes too long, or the supervisor ends.
    pub fn wait_for(&mut self, what: &str, is_there: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let status = self.status();
            if is_there(&status) {
                return Ok(status);
            }
            if let Some(end) = self.supervisor.try_wait()? {
                bail!("twinlog ended: {end}\n{}", self.printed());
            }
            if start.elapsed() > PATIENCE {
                bail!("after {PATIENCE:?} the node still not {what}; it says {status}\n{}", self.printed());
            }
            thread::sleep(POLL);
        }
    }

    fn identity(&self) -> Result<i32> {
        let path = self.folder.join("d/a/pid");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
    }

    /// SIGKILL to the node's own process, and waits until its supervisor has started another that serves.
    ///
    /// # Errors
    ///
    /// It does not come back.
    pub fn kill(&mut self) -> Result<()> {
        let old = self.identity()?;
        kill(Pid::from_raw(old), Signal::SIGKILL).context("killing the node")?;
        let start = Instant::now();
        while self.identity().is_ok_and(|new| new == old) {
            if start.elapsed() > PATIENCE {
                bail!("the supervisor does not start the node again\n{}", self.printed());
            }
            thread::sleep(POLL);
        }
        self.wait_for("serves again", |status| status["status"]["state"] == "serving")?;
        Ok(())
    }

    /// Proves that the pool is whole: reachable = allocated, every checksum true.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn check(&self) -> Result<()> {
        self.run(&["pool", "check"])
    }

    /// Runs a command of `twinlog` on the node.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).output().context("starting twinlog")?;
        if !output.status.success() {
            bail!("twinlog {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stdout));
        }
        Ok(())
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.folder.join("node.log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The node ends with its supervisor.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}
