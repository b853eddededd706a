//! A command that switches the partner off, with the interface of the fence agents of ClusterLabs: options are lines `KEY=VALUE` on standard input, exit
//! code 0 says that it is done (<https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md>).
//!
//! # Invariants
//!
//! 1. It ends: a command that is not done in time is killed with everything that it has started in its process group.
//! 2. What it prints, to standard output or error, is kept up to [`OUTPUT_BYTES_MAX`], the end of it. A process that it leaves behind with these open holds
//!    nobody up.

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    io::{self, PipeReader, Read, Write, pipe},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// Bytes of output that are kept: a screen of text.
const OUTPUT_BYTES_MAX: usize = 2048;
/// How often a command is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long a killed command is waited for: one that waits for a device may not end at once.
const KILL_WAIT_MAX: Duration = Duration::from_secs(5);

/// How a command has ended.
#[derive(Debug)]
pub struct Outcome {
    /// With 0, in time.
    pub confirmed: bool,
    /// How, and what it printed.
    pub said: String,
}

/// A command as it is configured. Its options may have a password in them: it has no `Debug`, nor has a command that runs.
#[derive(Clone, Copy)]
pub struct Agent<'a> {
    /// The program, and its arguments; at least the program.
    pub command: &'a [String],
    /// What it is told besides what is said of the machine that is meant.
    pub options: &'a BTreeMap<String, String>,
    /// The machine that is meant.
    pub partner: &'a str,
    /// How long it may take.
    pub limit: Duration,
}

/// A command that runs.
pub struct Running {
    child: Child,
    input: String,
    output: PipeReader,
    limit: Duration,
}

impl Agent<'_> {
    /// Starts the command, to do `action`: `off`, or `monitor`, which leaves the machine alone.
    ///
    /// # Errors
    ///
    /// No program is named, or it cannot be started.
    pub fn start(&self, action: &str) -> io::Result<Running> {
        let (program, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let (output, writer) = pipe()?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut command = Command::new(program);
        // A group of its own, which can be killed as one.
        command.args(arguments).process_group(0).stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        Ok(Running { child, input: self.input(action), output, limit: self.limit })
    }

    /// What it reads. Agents name the machine that is meant by `plug`, older ones by `port`; a cluster manager adds `nodename`.
    fn input(&self, action: &str) -> String {
        let own = [("action", action), ("nodename", self.partner), ("plug", self.partner), ("port", self.partner)];
        let own = own.into_iter().filter(|(key, _)| !self.options.contains_key(*key));
        let given = self.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        own.chain(given).map(|(key, value)| format!("{key}={value}\n")).collect()
    }
}

impl Running {
    /// Waits until it has ended, or its time is over.
    pub fn wait(&mut self) -> Outcome {
        if let Some(mut input) = self.child.stdin.take() {
            // A program that does not read its input needs none of it.
            let _unread = input.write_all(self.input.as_bytes());
        }
        let mut printed = Vec::new();
        let (confirmed, how) = match self.ended(self.limit, &mut printed) {
            Ok(Some(status)) => (status.success(), format!("it ended with {status}")),
            Ok(None) => (false, format!("it was killed after {} s{}", self.limit.as_secs(), self.kill(&mut printed))),
            Err(error) => (false, format!("it cannot be followed: {error}")),
        };
        let printed = String::from_utf8_lossy(&printed);
        let printed = printed.trim();
        let said = if printed.is_empty() { how } else { format!("{how}; it said: {printed}") };
        Outcome { confirmed, said }
    }

    /// Follows it for some time; its status, if it has ended.
    #[expect(clippy::disallowed_methods, reason = "on a thread that has nothing else to do")]
    fn ended(&mut self, limit: Duration, printed: &mut Vec<u8>) -> io::Result<Option<ExitStatus>> {
        let mut waited = Duration::ZERO;
        loop {
            let status = self.child.try_wait()?;
            self.read(printed);
            if status.is_some() || waited >= limit {
                return Ok(status);
            }
            thread::sleep(POLL);
            waited += POLL;
        }
    }

    /// Kills its group; what is to be added about that.
    fn kill(&mut self, printed: &mut Vec<u8>) -> &'static str {
        let group = i32::try_from(self.child.id()).expect("process ids are small");
        // It has not been waited for: its number is still its own.
        let told = killpg(Pid::from_raw(group), Signal::SIGKILL);
        match (told, self.ended(KILL_WAIT_MAX, printed)) {
            (Ok(()), Ok(Some(_))) => "",
            _ => ", and has not ended",
        }
    }

    /// Takes what it has printed.
    fn read(&mut self, printed: &mut Vec<u8>) {
        let mut bytes = [0; OUTPUT_BYTES_MAX];
        // Bounded: a command that prints faster than this waits for the next look.
        for _ in 0..16 {
            match self.output.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(count) => printed.extend_from_slice(&bytes[..count]),
            }
            let surplus = printed.len().saturating_sub(OUTPUT_BYTES_MAX);
            printed.drain(..surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn outcome(script: &str, limit_s: u64, options: &[(&str, &str)]) -> Outcome {
        let command = ["sh", "-c", script].map(str::to_owned);
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let limit = Duration::from_secs(limit_s);
        let agent = Agent { command: &command, options: &options, partner: "b", limit };
        agent.start("off").expect("sh starts").wait()
    }

    #[test]
    fn an_agent_reads_its_options_and_is_believed() {
        let outcome = outcome("cat; exit 0", 60, &[("ip", "192.0.2.1"), ("port", "7")]);
        assert!(outcome.confirmed);
        for line in ["action=off", "nodename=b", "plug=b", "ip=192.0.2.1", "port=7"] {
            assert!(outcome.said.lines().any(|said| said.ends_with(line)), "{line} in {}", outcome.said);
        }
        assert!(!outcome.said.contains("port=b"));
    }

    #[test]
    fn no_command_is_none() {
        let agent = Agent { command: &[], options: &BTreeMap::new(), partner: "b", limit: Duration::from_secs(1) };
        assert_eq!(agent.start("off").err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn one_that_fails_says_why() {
        let outcome = outcome("echo no such plug >&2; exit 3", 60, &[]);
        assert!(!outcome.confirmed);
        assert!(outcome.said.contains("3") && outcome.said.contains("no such plug"), "{}", outcome.said);
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_has_started() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let place = directory.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; echo waiting; sleep 300", place.display());
        let outcome = outcome(&script, 1, &[]);
        assert!(!outcome.confirmed && outcome.said.contains("killed after 1 s; it said: waiting"), "{}", outcome.said);
        let pid = fs::read_to_string(&place).expect("written");
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        // It may not have been waited for yet.
        let is_gone = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")) || !stat.exists();
        while !is_gone() {
            thread::yield_now();
        }
    }

    #[test]
    fn what_it_leaves_behind_or_prints_without_end_holds_nobody_up() {
        let outcome = outcome("sleep 20 & i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done", 60, &[]);
        assert!(outcome.confirmed);
        assert!(outcome.said.len() < 2 * OUTPUT_BYTES_MAX && outcome.said.ends_with("line 2999"), "{}", outcome.said);
    }
}
