//! What a power cut has left of a guest's disks, and a node of this machine that recovers from it.
//!
//! The disks are plain files here, which the node reaches through io_uring, whatever drove them in the guest: what is on them is tested, and a
//! recovery takes a second where a guest's takes half a minute.

use super::{Lab, station};
use crate::host;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(20);
/// Of a node that recovers, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder with the disks, as a cut has left them, and with the load's journal.
pub(super) struct Remains<'a> {
    lab: &'a Lab,
    folder: PathBuf,
}

/// A node, killed when this is dropped.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Remains<'a> {
    /// An empty folder.
    pub(super) fn new(lab: &'a Lab, number: u32) -> Result<Self> {
        let folder = lab.folder.join(format!("cut-{number}"));
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { lab, folder })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Proves that the pool on the disks of these names is whole before and after recovery, and that every write is there that the journal says
    /// was acknowledged. What passed is removed.
    pub(super) fn prove(self, pool: &[&str]) -> Result<()> {
        let devices = pool.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let log = station::LOG;
        let config = format!(
            "name = \"a\"\n[memory]\nlimit = \"96MiB\"\n[log]\nbackend = \"file\"\npath = \"{log}\"\nsize = \"16MiB\"\n\
             [pool]\nname = \"a\"\ndevices = [{devices}]\n"
        );
        fs::write(self.path("node.toml"), config)?;
        self.succeed(self.twinlog(&["log", "verify", "--config", "node.toml"])?)?;
        self.succeed(self.twinlog(&["pool", "check", "--config", "node.toml"])?)?;
        let node = self.serve()?;
        self.succeed(self.twinlog(&["pool", "check", "--admin", "admin.sock"])?)?;
        let mut load = self.command(&self.lab.load)?;
        load.args(["nbd+unix:///vol-a?socket=nbd.sock", "--prove", "journal"]);
        self.succeed(load)?;
        drop(node);
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }

    fn serve(&self) -> Result<Node> {
        let serve = self.twinlog(&["serve", "--config", "node.toml"])?.spawn().context("starting twinlog")?;
        let mut node = Node(serve);
        let start = Instant::now();
        loop {
            let mut status = Command::new(&self.lab.twinlog);
            status.args(["status", "-o", "json", "--admin", "admin.sock"]).current_dir(&self.folder);
            let says: Value = serde_json::from_slice(&status.stdin(Stdio::null()).output()?.stdout).unwrap_or_default();
            if says["status"]["state"] == "serving" {
                return Ok(node);
            }
            if let Some(end) = node.0.try_wait()? {
                bail!("twinlog ended: {end}\n{}", self.said());
            }
            if start.elapsed() > PATIENCE {
                bail!("the node does not serve; it says {says}\n{}", self.said());
            }
            thread::sleep(POLL);
        }
    }

    /// A command in the folder, which says what it says in the file `said`.
    fn command(&self, program: &std::path::Path) -> Result<Command> {
        let said = File::options().create(true).append(true).open(self.path("said"))?;
        let mut command = host::mortal(program);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        Ok(command)
    }

    fn twinlog(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(&self.lab.twinlog)?;
        command.args(arguments);
        Ok(command)
    }

    fn succeed(&self, mut command: Command) -> Result<()> {
        let status = command.status().with_context(|| format!("starting {command:?}"))?;
        if !status.success() {
            bail!("{command:?}: {status}\n{}", self.said());
        }
        Ok(())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap_or_default()
    }
}
