//! The supervisor: starts the node's process, makes the first volume, starts the node again when it dies, stops it when asked to.
//!
//! ```text
//!            spawn              answers "serving"
//! stopped ----------> starting -------------------> serving
//!    ^                   | dies                        | dies
//!    |                   v                             v
//!    +---- signal --- waiting (longer after each death that came before "serving") --> starting
//! ```
//!
//! # Failure
//!
//! * The node dies: it is started again at once, and its recovery replays its log. One that dies [`EARLY_DEATHS_MAX`] times in a row before it serves is
//!   given up. One that ends with "usage" or "refused", or with an error before it served, is not started again: nothing would change.
//! * The supervisor dies: the kernel sends the node SIGTERM, and it stops cleanly.
//! * SIGTERM, SIGINT or SIGHUP: the node gets SIGTERM and [`STOP_WAIT_MAX`] to take its last consistency point; a second signal, or the end of that time, kills it.
//!   That loses nothing: it is what the log is for.

use super::{
    layout::{Layout, pause},
    output::{Exit, Failure, Output},
};
use crossbeam_channel::{Receiver, bounded};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
    time::Duration,
};
use twinlog::{
    control::client::AdminClient,
    node::admin::{AdminReply, AdminRequest, NodeStatus},
};

/// How often a starting node is asked whether it serves.
const START_POLL: Duration = Duration::from_millis(50);
/// How often a node is asked whose pool has failed: somebody may stop it.
const FAILED_POLL: Duration = Duration::from_secs(5);
/// Deaths in a row before "serving" after which the node is given up.
const EARLY_DEATHS_MAX: u32 = 5;
/// Wait before the second start after an early death; it doubles with each further one.
const RESTART_WAIT: Duration = Duration::from_millis(200);
/// Time that a node gets to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

/// What `up` wants of the supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor<'a> {
    pub(crate) layout: &'a Layout,
    /// Whether a node that died is started again.
    pub(crate) restart: bool,
    /// Called once, when the node serves for the first time.
    pub(crate) on_first_serving: fn(&Layout, &mut AdminClient, &Output) -> Result<(), Failure>,
    pub(crate) output: &'a Output,
}

enum Event {
    /// Somebody wants the end.
    Stop,
    /// A child changed state.
    Child,
    /// The time is over.
    Timeout,
}

/// What became of a node process.
enum Outcome {
    /// It ended, not asked by this supervisor; with whether it had served.
    Died(ExitStatus, bool),
    /// It was stopped because the supervisor was asked to stop.
    Stopped,
}

impl Supervisor<'_> {
    /// Runs until asked to stop, or until the node is given up.
    pub(crate) fn run(&self) -> Result<Exit, Failure> {
        let events = signals().map_err(|error| Failure::system("watch signals of", "this process", &error))?;
        let mut introduced = false;
        let mut early_deaths = 0;
        loop {
            let (status, served) = match self.watch(self.spawn()?, &events, &mut introduced)? {
                Outcome::Stopped => return Ok(Exit::Done),
                Outcome::Died(status, served) => (status, served),
            };
            if let Some(exit) = self.is_final(status, served)? {
                return Ok(exit);
            }
            early_deaths = if served { 0 } else { early_deaths + 1 };
            if !self.restart {
                self.output.say(&format!(
                    "node {} {}; it is left dead (--no-restart). Ctrl-C ends",
                    self.layout.node,
                    describe(status)
                ));
                while !matches!(next_event(&events, None), Event::Stop) {}
                return Ok(Exit::Done);
            }
            if early_deaths >= EARLY_DEATHS_MAX {
                let message = format!(
                    "node {} {}, {early_deaths} times in a row before it served",
                    self.layout.node,
                    describe(status)
                );
                return Err(Failure::new(
                    Exit::Error,
                    message,
                    "its messages above; `twinlog doctor`; `twinlog log verify`",
                ));
            }
            self.output.say(&format!("node {} {}; starting it again", self.layout.node, describe(status)));
            if early_deaths > 1 && matches!(next_event(&events, Some(RESTART_WAIT * (1 << early_deaths))), Event::Stop)
            {
                return Ok(Exit::Done);
            }
        }
    }

    /// Whether the node ended in a way that a new start would repeat.
    fn is_final(&self, status: ExitStatus, served: bool) -> Result<Option<Exit>, Failure> {
        let node = &self.layout.node;
        match status.code() {
            Some(0) => {
                self.output.say(&format!("node {node} was asked to stop"));
                Ok(Some(Exit::Done))
            }
            Some(2) => Err(Failure::new(
                Exit::Usage,
                format!("node {node} does not accept its configuration"),
                "see its message above",
            )),
            Some(4) => {
                Err(Failure::new(Exit::Refused, format!("node {node} refused to start"), "see its message above"))
            }
            Some(1) if !served => {
                Err(Failure::new(Exit::Error, format!("node {node} could not start"), "see its message above"))
            }
            _ => Ok(None),
        }
    }

    fn spawn(&self) -> Result<Child, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::system("find", "this program", &error))?;
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(self.layout.config());
        command.arg("--pid-file").arg(self.layout.pid());
        command.arg("--supervisor").arg(std::process::id().to_string());
        // A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the node in order.
        command.process_group(0);
        command.spawn().map_err(|error| Failure::system("start", program.display(), &error))
    }

    /// Accompanies one node process from its start to its end.
    fn watch(&self, mut child: Child, events: &Receiver<i32>, introduced: &mut bool) -> Result<Outcome, Failure> {
        let (mut served, mut patience) = (false, START_POLL);
        loop {
            let event = next_event(events, (!served).then_some(patience));
            if matches!(event, Event::Stop) {
                self.stop(&mut child, events)?;
                return Ok(Outcome::Stopped);
            }
            if let Some(status) = child.try_wait().map_err(|error| Failure::system("wait for", "the node", &error))? {
                return Ok(Outcome::Died(status, served));
            }
            if served {
                continue;
            }
            let Some((mut client, status)) = self.ask() else { continue };
            if status.state == "failed" && patience == START_POLL {
                self.output.say(&format!("node {} does not serve: {}", self.layout.node, status.reason));
                patience = FAILED_POLL;
            }
            served = status.state == "serving";
            if served && !*introduced {
                match (self.on_first_serving)(self.layout, &mut client, self.output) {
                    Ok(()) => *introduced = true,
                    Err(failure) => {
                        // A node that died meanwhile is started again, and introduced then.
                        if let Some(status) = ended_soon(&mut child)? {
                            return Ok(Outcome::Died(status, served));
                        }
                        self.stop(&mut child, events)?;
                        return Err(failure);
                    }
                }
            } else if served {
                self.output.say(&format!(
                    "node {} serves again, {} record(s) replayed",
                    self.layout.node, status.replayed_records
                ));
            }
        }
    }

    /// Stops the node: asks, waits, and kills it when it does not stop or the person asks again.
    fn stop(&self, child: &mut Child, events: &Receiver<i32>) -> Result<(), Failure> {
        let unheard = |error: &io::Error| Failure::system("stop", "the node", error);
        self.output.say("stopping; a second Ctrl-C kills the node, which loses nothing");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive i32"));
        match kill(pid, Signal::SIGTERM) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(unheard(&error.into())),
        }
        let mut left = STOP_WAIT_MAX;
        while child.try_wait().map_err(|error| unheard(&error))?.is_none() {
            left = left.saturating_sub(START_POLL);
            if left.is_zero() || matches!(next_event(events, Some(START_POLL)), Event::Stop) {
                child.kill().map_err(|error| unheard(&error))?;
                child.wait().map_err(|error| unheard(&error))?;
            }
        }
        Ok(())
    }

    fn ask(&self) -> Option<(AdminClient, Box<NodeStatus>)> {
        let mut client = AdminClient::connect(&self.layout.admin()).ok()?;
        match client.call(&AdminRequest::Status).ok()? {
            AdminReply::Status(status) => Some((client, status)),
            _ => None,
        }
    }
}

/// Signals as they come, in a channel. More than it holds at a time add nothing.
fn signals() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM])?;
    let (sender, receiver) = bounded(16);
    let forward = move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(forward)?;
    Ok(receiver)
}

/// How a process ended whose connection has just broken; `None` if it lives on.
fn ended_soon(child: &mut Child) -> Result<Option<ExitStatus>, Failure> {
    for _ in 0..100 {
        let ended = child.try_wait().map_err(|error| Failure::system("wait for", "the node", &error))?;
        if ended.is_some() {
            return Ok(ended);
        }
        pause(Duration::from_millis(5));
    }
    Ok(None)
}

fn next_event(events: &Receiver<i32>, patience: Option<Duration>) -> Event {
    let signal = match patience {
        Some(patience) => events.recv_timeout(patience).ok(),
        None => events.recv().ok(),
    };
    match signal {
        Some(SIGCHLD) => Event::Child,
        Some(_) => Event::Stop,
        None => Event::Timeout,
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("died by {signal}"),
            Err(_) => format!("died by signal {number}"),
        },
        (Some(code), None) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_named() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "died by SIGKILL");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
    }
}
