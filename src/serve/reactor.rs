//! The loop of one reactor: the engine, a front end and the machine take turns until the node is told to stop.
//!
//! ```text
//! control calls -> engine -> front end's sessions -> idle policy -> one turn of the machine (at most one system call) -> ...
//! ```
//!
//! The daemon gives each reactor a thread that calls [`Reactor::run`]; the simulator calls [`Reactor::poll_once`] of all reactors
//! from one thread. What ships is what is simulated.
//!
//! # The end
//!
//! 1. Reactor 0 gets the order to stop: every engine refuses new requests, every front end answers what it owes and closes.
//! 2. The last consistency point is durable, and reactor 0 has no client left (or they got their time): it raises `ended` and leaves.
//! 3. The others leave when `ended` is raised and their own clients are gone. A crash between any of these steps is a crash: the log has it all.

use super::NbdServer;
use crate::{
    cp::coordinator::PoolState,
    node::{admin::AdminCall, engine::Engine, request::VolumeService},
    reactor::{Idle, Mailbox, Waker},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use twinlog_device::{Nanos, Network, Platform, Wait};

/// Opens the device of a name, or says why not.
pub type OpenDevice<D> = Box<dyn FnMut(&str) -> Result<D, String>>;

/// What a reactor asks of its front end: a value that moves when it is polled.
pub trait FrontEnd<N: Network> {
    /// Does one bounded turn. Returns whether anything moved.
    fn poll<S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool;

    /// Begins to stop: what is in flight is answered, new clients and requests are refused.
    fn stop(&mut self, now: Nanos);

    /// Whether it was stopped and every client has left.
    fn is_stopped(&self) -> bool;

    /// Clients connected now.
    fn connection_count(&self) -> usize;
}

impl<N: Network> FrontEnd<N> for NbdServer {
    fn poll<S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        NbdServer::poll(self, net, service, now)
    }

    fn stop(&mut self, now: Nanos) {
        NbdServer::stop(self, now);
    }

    fn is_stopped(&self) -> bool {
        NbdServer::is_stopped(self)
    }

    fn connection_count(&self) -> usize {
        NbdServer::connection_count(self)
    }
}

/// What a reactor is made of.
pub struct ReactorParts<P: Platform, F> {
    /// The machine.
    pub platform: P,
    /// The node's part that lives here.
    pub engine: Engine<P::Disk, P::Log>,
    /// The clients' connections.
    pub net: P::Net,
    /// The front end.
    pub front: F,
    /// How it waits.
    pub idle: Idle,
    /// Orders of the control threads; reactor 0 has it.
    pub calls: Option<Mailbox<AdminCall>>,
    /// Opens a device that joins the pool. The one call of the loop that may block: the file is opened and locked.
    pub open_device: OpenDevice<P::Disk>,
    /// Raised by reactor 0 when the node has stopped; shared by all.
    pub ended: Arc<AtomicBool>,
    /// The other reactors, to tell them.
    pub peers: Vec<Arc<dyn Waker>>,
}

/// One reactor: everything that runs on it.
pub struct Reactor<P: Platform, F> {
    parts: ReactorParts<P, F>,
    started: Nanos,
    slept: Duration,
    /// Whether the machine's last turn has finished anything.
    finished: bool,
}

impl<P: Platform, F: FrontEnd<P::Net>> Reactor<P, F> {
    /// A reactor that has not had a turn.
    #[must_use]
    pub fn new(parts: ReactorParts<P, F>) -> Self {
        let started = parts.platform.now();
        Self { parts, started, slept: Duration::ZERO, finished: false }
    }

    /// Runs until the node has stopped. Returns why the pool stopped before it was told to, if it did.
    pub fn run(mut self) -> Option<String> {
        while self.poll_once() {}
        self.failure()
    }

    /// One bounded turn, which may wait for the machine. False once the node has stopped: there are no more turns.
    pub fn poll_once(&mut self) -> bool {
        let now = self.parts.platform.now();
        let worked = self.turn() | self.finished;
        if self.is_done() {
            return false;
        }
        let ReactorParts { platform, engine, idle, .. } = &mut self.parts;
        let wait = idle.wait(now, worked, platform.should_sleep(), engine.next_deadline());
        self.finished = self.parts.platform.turn(wait);
        let later = self.parts.platform.now();
        if matches!(wait, Wait::UpTo(_)) {
            self.slept += later.since(now);
        }
        let busy = later.since(self.started).saturating_sub(self.slept);
        self.parts.engine.set_connections(self.parts.front.connection_count() as u64);
        self.parts.engine.set_busy_ns(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX));
        true
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine<P::Disk, P::Log> {
        &self.parts.engine
    }

    /// Why the pool stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match self.parts.engine.pool_state() {
            Some(PoolState::Stopped(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    /// One bounded turn of everything that is not the machine. Returns whether anything was done.
    fn turn(&mut self) -> bool {
        let ReactorParts { platform, engine, net, front, calls, open_device, .. } = &mut self.parts;
        let (now, wall_clock_ns) = (platform.now(), platform.wall_clock_ns());
        let mut worked = false;
        while let Some(call) = calls.as_ref().and_then(Mailbox::receive) {
            engine.call(call);
            worked = true;
        }
        worked |= engine.poll(now, wall_clock_ns);
        while let Some(name) = engine.wanted_device() {
            let device = open_device(&name);
            engine.device_opened(device);
            worked = true;
        }
        // Before the pool is open nobody knows the volumes: clients wait, instead of hearing that there are none. After it has stopped
        // they hear that it has.
        if engine.has_opened() || engine.is_stopping() {
            worked |= front.poll(net, engine, now);
        }
        if engine.is_stopping() {
            front.stop(now);
        }
        worked
    }

    fn is_done(&self) -> bool {
        let ReactorParts { engine, front, calls, ended, peers, .. } = &self.parts;
        if !front.is_stopped() {
            return false;
        }
        if calls.is_none() {
            return ended.load(Ordering::Acquire);
        }
        if engine.is_stopped() {
            ended.store(true, Ordering::Release);
            for peer in peers {
                peer.wake();
            }
        }
        engine.is_stopped()
    }
}
