//! The supervisor: starts the processes of one node or of a pair, has the first volumes made, starts a node again when it dies, stops all
//! when asked to.
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
//! * The node dies: it is started again at once, and its recovery replays its log. A node of a pair waits [`PARTNER_FIRST`], so that its partner serves
//!   on meanwhile. One that dies [`EARLY_DEATHS_MAX`] times in a row before it serves is given up. One that ends with "usage" or "refused", or with an error before it served, is not started again: nothing would change.
//!   Its partner serves on; the supervisor ends with that node's error when no other is left.
//! * The supervisor dies: the kernel sends the node SIGTERM, and it stops cleanly.
//! * SIGTERM, SIGINT or SIGHUP: the node gets SIGTERM and [`STOP_WAIT_MAX`] to take its last consistency point; a second signal, or the end of that time, kills it.
//!   That loses nothing: it is what the log is for.

use super::{
    layout::Layout,
    output::{Exit, Failure, Output},
    pause,
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
    net::SocketAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
    time::Duration,
};
use twinlog::{
    control::client::AdminClient,
    node::admin::{AdminReply, AdminRequest, NodeStatus, PairStatus},
};

/// How often a starting node is asked whether it serves.
const START_POLL: Duration = Duration::from_millis(50);
/// How often a node is asked whose pool has failed: somebody may stop it.
const FAILED_POLL: Duration = Duration::from_secs(5);
/// Deaths in a row before "serving" after which the node is given up.
const EARLY_DEATHS_MAX: u32 = 5;
/// Wait before a node of a pair is started again: its partner needs 0.1 s to take the pool over, and that is sooner than any start serves. A node that
/// came back within that time would open its pool itself, and both would have lost time.
const PARTNER_FIRST: Duration = Duration::from_secs(1);
/// Wait before the second start after an early death; it doubles with each further one.
const RESTART_WAIT: Duration = Duration::from_millis(200);
/// Time that a node gets to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

/// What `up` wants of the supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor<'a> {
    /// One node, or the two of a pair.
    pub(crate) layouts: &'a [Layout],
    /// Where each node serves NVMe/TCP, in their order; none: where its configuration says.
    pub(crate) nvme_tcp: &'a [SocketAddr],
    /// Whether a node that died is started again.
    pub(crate) restart: bool,
    /// Called once, when every node serves for the first time.
    pub(crate) on_first_serving: fn(&[Layout], &Output) -> Result<(), Failure>,
    pub(crate) output: &'a Output,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Somebody wants the end.
    Stop,
    /// A child changed state.
    Child,
    /// The time is over.
    Timeout,
}

/// What a node is doing, as far as the supervisor knows.
enum State {
    /// Its process has not answered "serving" yet; with the time until it is asked again.
    Starting(Child, Duration),
    /// It has served.
    Serving(Child),
    /// It died before it served, and is started again when this much time has passed.
    Waiting(Duration),
    /// It is left dead, or was asked to stop by somebody else.
    Ended,
}

/// One node.
struct Watched<'a> {
    layout: &'a Layout,
    state: State,
    /// Deaths in a row before it served.
    early_deaths: u32,
    /// Whether it was started again.
    is_restarted: bool,
    /// Whether a failure of its pool was said.
    said_failed: bool,
}

impl Supervisor<'_> {
    /// Runs until asked to stop, or until a node is given up.
    pub(crate) fn run(&self) -> Result<Exit, Failure> {
        let events = signals().map_err(|error| Failure::system("watch signals of", "this process", &error))?;
        let mut nodes = Vec::new();
        for layout in self.layouts {
            let state = State::Starting(self.spawn(layout)?, START_POLL);
            nodes.push(Watched { layout, state, early_deaths: 0, is_restarted: false, said_failed: false });
        }
        let result = self.watch(&mut nodes, &events);
        self.stop(&mut nodes, &events)?;
        result
    }

    /// Accompanies the nodes until somebody wants the end, or none of them is left.
    fn watch(&self, nodes: &mut [Watched<'_>], events: &Receiver<i32>) -> Result<Exit, Failure> {
        let mut introduced = false;
        let mut given_up = None;
        loop {
            let patience = nodes.iter().filter_map(Watched::patience).min();
            let event = next_event(events, patience);
            if event == Event::Stop {
                return Ok(Exit::Done);
            }
            let passed = passed(&event, patience);
            for node in &mut *nodes {
                if let Err(failure) = self.look_at(node, passed) {
                    given_up = Some(self.give_up(node, failure)?);
                }
            }
            if !introduced && nodes.iter().all(|node| matches!(node.state, State::Serving(_))) {
                introduced = self.introduce(nodes)?;
            }
            if nodes.iter().all(|node| matches!(node.state, State::Ended)) {
                match given_up {
                    Some(failure) => return Err(failure),
                    None if self.restart => return Ok(Exit::Done),
                    None => {}
                }
            }
        }
    }

    fn spawn(&self, layout: &Layout) -> Result<Child, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::system("find", "this program", &error))?;
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(layout.config());
        command.arg("--pid-file").arg(layout.pid());
        command.arg("--supervisor").arg(std::process::id().to_string());
        for (other, address) in self.layouts.iter().zip(self.nvme_tcp) {
            let option = if other.node == layout.node { "--nvme-listen" } else { "--nvme-partner" };
            command.arg(option).arg(address.to_string());
        }
        // A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the node in order.
        command.process_group(0);
        command.spawn().map_err(|error| Failure::system("start", program.display(), &error))
    }

    /// Leaves a node dead that cannot be started again; another one may serve on.
    ///
    /// # Errors
    /// Its process runs, and cannot be watched any more.
    fn give_up(&self, node: &mut Watched<'_>, failure: Failure) -> Result<Failure, Failure> {
        if node.child().is_some() {
            return Err(failure);
        }
        node.state = State::Ended;
        if self.layouts.len() > 1 {
            let Failure { message, hint, .. } = &failure;
            self.output.say(&format!("{message}; it is left dead ({hint})"));
        }
        Ok(failure)
    }

    /// Returns false when a node died meanwhile: it is started again, and introduced then.
    fn introduce(&self, nodes: &mut [Watched<'_>]) -> Result<bool, Failure> {
        let Err(failure) = (self.on_first_serving)(self.layouts, self.output) else { return Ok(true) };
        for node in nodes {
            if let State::Serving(child) = &mut node.state
                && ended_soon(child)?.is_some()
            {
                return Ok(false);
            }
        }
        Err(failure)
    }

    /// Follows one node; `passed` is the time since it was looked at, at least.
    fn look_at(&self, node: &mut Watched<'_>, passed: Duration) -> Result<(), Failure> {
        match &mut node.state {
            State::Starting(child, _) | State::Serving(child) => {
                let ended = child.try_wait().map_err(|error| Failure::system("wait for", "a node", &error))?;
                match ended {
                    Some(status) => self.died(node, status),
                    None => {
                        self.ask(node);
                        Ok(())
                    }
                }
            }
            State::Waiting(left) => {
                *left = left.saturating_sub(passed);
                if left.is_zero() {
                    node.state = State::Starting(self.spawn(node.layout)?, START_POLL);
                }
                Ok(())
            }
            State::Ended => Ok(()),
        }
    }

    /// Asks a node that has not served yet how it is.
    fn ask(&self, node: &mut Watched<'_>) {
        let State::Starting(_, patience) = &mut node.state else { return };
        let Some(status) = status_of(node.layout) else { return };
        let name = &node.layout.node;
        if status.state == "failed" && !std::mem::replace(&mut node.said_failed, true) {
            self.output.say(&format!("node {name} does not serve: {}", status.reason));
            *patience = FAILED_POLL;
        }
        if is_up(&status) {
            if node.is_restarted || node.said_failed {
                let replayed = status.replayed_records;
                self.output.say(&format!("node {name} serves again, {replayed} record(s) replayed"));
            }
            (node.early_deaths, node.said_failed) = (0, false);
            let State::Starting(child, _) = std::mem::replace(&mut node.state, State::Ended) else { return };
            node.state = State::Serving(child);
        }
    }

    /// A node's process has ended: it is started again, left dead, or the reason why that would be of no use.
    fn died(&self, node: &mut Watched<'_>, status: ExitStatus) -> Result<(), Failure> {
        let served = matches!(node.state, State::Serving(_));
        let name = &node.layout.node;
        node.state = State::Ended;
        if is_final(name, status, served)? {
            self.output.say(&format!("node {name} was asked to stop"));
            return Ok(());
        }
        let how = describe(status);
        if !self.restart {
            self.output.say(&format!("node {name} {how}; it is left dead (--no-restart). Ctrl-C ends"));
            return Ok(());
        }
        node.early_deaths = if served { 0 } else { node.early_deaths + 1 };
        if node.early_deaths >= EARLY_DEATHS_MAX {
            let message = format!("node {name} {how}, {EARLY_DEATHS_MAX} times in a row before it served");
            let hint = "its messages above; `twinlog doctor`; `twinlog log verify`";
            return Err(Failure::new(Exit::Error, message, hint));
        }
        self.output.say(&format!("node {name} {how}; starting it again"));
        node.is_restarted = true;
        let wait = match node.early_deaths {
            0 if self.layouts.len() > 1 => PARTNER_FIRST,
            0 | 1 => Duration::ZERO,
            deaths => RESTART_WAIT * (1 << deaths),
        };
        node.state = State::Waiting(wait);
        self.look_at(node, Duration::ZERO)
    }

    /// Stops the nodes: asks, waits, and kills those that do not stop or when the person asks again.
    fn stop(&self, nodes: &mut [Watched<'_>], events: &Receiver<i32>) -> Result<(), Failure> {
        let mut children: Vec<&mut Child> = nodes.iter_mut().filter_map(Watched::child).collect();
        if children.is_empty() {
            return Ok(());
        }
        let unheard = |error: &io::Error| Failure::system("stop", "a node", error);
        self.output.say("stopping; a second Ctrl-C kills what still runs, which loses nothing");
        for child in &children {
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive i32"));
            match kill(pid, Signal::SIGTERM) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(unheard(&error.into())),
            }
        }
        let mut left = STOP_WAIT_MAX;
        loop {
            let mut running = false;
            for child in &mut children {
                running |= child.try_wait().map_err(|error| unheard(&error))?.is_none();
            }
            if !running {
                return Ok(());
            }
            left = left.saturating_sub(START_POLL);
            if left.is_zero() {
                let limit = STOP_WAIT_MAX.as_secs();
                self.output.say(&format!("what did not stop within {limit} s is killed, which loses nothing"));
            }
            if left.is_zero() || next_event(events, Some(START_POLL)) == Event::Stop {
                for child in &mut children {
                    child.kill().map_err(|error| unheard(&error))?;
                    child.wait().map_err(|error| unheard(&error))?;
                }
            }
        }
    }
}

impl Watched<'_> {
    /// After how long it is to be looked at although no signal came.
    fn patience(&self) -> Option<Duration> {
        match &self.state {
            State::Starting(_, patience) => Some(*patience),
            State::Waiting(left) => Some(*left),
            State::Serving(_) | State::Ended => None,
        }
    }

    fn child(&mut self) -> Option<&mut Child> {
        match &mut self.state {
            State::Starting(child, _) | State::Serving(child) => Some(child),
            State::Waiting(_) | State::Ended => None,
        }
    }
}

/// Whether the node was asked to stop by somebody else.
///
/// # Errors
/// It ended in a way that a new start would repeat.
fn is_final(name: &str, status: ExitStatus, served: bool) -> Result<bool, Failure> {
    let above = "see its message above";
    match status.code() {
        Some(0) => Ok(true),
        Some(2) => Err(Failure::new(Exit::Usage, format!("node {name} does not accept its configuration"), above)),
        Some(4) => Err(Failure::new(Exit::Refused, format!("node {name} refused to start"), above)),
        Some(1) if !served => Err(Failure::new(Exit::Error, format!("node {name} could not start"), above)),
        _ => Ok(false),
    }
}

/// Whether the node does what it should: serve its pool, or leave that to its partner, which has taken it over.
fn is_up(status: &NodeStatus) -> bool {
    let is_taken_over = |pair: &PairStatus| pair.pools.first().is_some_and(|own| own.owner == pair.partner);
    status.state == "serving" || (status.state == "standby" && status.pair.as_ref().is_some_and(is_taken_over))
}

fn status_of(layout: &Layout) -> Option<Box<NodeStatus>> {
    let mut client = AdminClient::connect(&layout.admin()).ok()?;
    match client.call(&AdminRequest::Status).ok()? {
        AdminReply::Status(status) => Some(status),
        _ => None,
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

/// Time that has certainly passed when `event` ended a wait: none if a signal did, of a child that was stopped or goes on as well.
fn passed(event: &Event, patience: Option<Duration>) -> Duration {
    patience.filter(|_| *event == Event::Timeout).unwrap_or_default()
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
    fn a_signal_does_not_shorten_the_wait_before_a_start() {
        let (signals, events) = bounded(1);
        signals.send(SIGCHLD).expect("it has room");
        let event = next_event(&events, Some(PARTNER_FIRST));
        assert_eq!(passed(&event, Some(PARTNER_FIRST)), Duration::ZERO);
        let short = Some(Duration::from_millis(1));
        assert_eq!(passed(&next_event(&events, short), short), Duration::from_millis(1));
    }

    #[test]
    fn deaths_are_named() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "died by SIGKILL");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
    }
}
