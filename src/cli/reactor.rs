//! The loop of one reactor: the engine, the front end and the machine take turns until the node is told to stop.
//!
//! ```text
//! control calls -> engine -> NBD sessions -> idle policy -> one turn of the machine (at most one system call) -> ...
//! ```
//!
//! # The end
//!
//! 1. Reactor 0 gets the order to stop: every engine refuses new requests, every front end answers what it owes and closes.
//! 2. The last consistency point is durable, and reactor 0 has no client left (or they got their time): it raises `ended` and leaves.
//! 3. The others leave when `ended` is raised and their own clients are gone. A crash between any of these steps is a crash: the log has it all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use twinlog::{
    cp::coordinator::PoolState,
    node::{admin::AdminCall, engine::Engine},
    reactor::{Idle, Mailbox, Waker},
    serve::NbdServer,
};
use twinlog_device::{Platform, Wait};

/// Opens the device of a name, or says why not.
pub(crate) type OpenDevice<D> = Box<dyn FnMut(&str) -> Result<D, String>>;

/// Everything that one reactor runs.
pub(crate) struct Reactor<P: Platform> {
    pub(crate) platform: P,
    pub(crate) engine: Engine<P::Disk, P::Log>,
    pub(crate) net: P::Net,
    pub(crate) nbd: NbdServer,
    pub(crate) idle: Idle,
    /// Orders of the control threads; reactor 0 has it.
    pub(crate) calls: Option<Mailbox<AdminCall>>,
    /// Opens a device that joins the pool. The one call of the loop that may block: the file is opened and locked.
    pub(crate) open_device: OpenDevice<P::Disk>,
    /// Raised by reactor 0 when the node has stopped.
    pub(crate) ended: Arc<AtomicBool>,
    /// The other reactors, to tell them.
    pub(crate) peers: Vec<Arc<dyn Waker>>,
}

impl<P: Platform> Reactor<P> {
    /// Runs until the node has stopped. Returns why the pool stopped before it was told to, if it did.
    pub(crate) fn run(mut self) -> Option<String> {
        let started = self.platform.now();
        let mut slept = Duration::ZERO;
        let mut finished = false;
        loop {
            let now = self.platform.now();
            let worked = self.turn() | finished;
            if self.is_done() {
                return self.failure();
            }
            let wait = self.idle.wait(now, worked, self.platform.should_sleep(), self.engine.next_deadline());
            finished = self.platform.turn(wait);
            if matches!(wait, Wait::UpTo(_)) {
                slept += self.platform.now().since(now);
            }
            let busy = self.platform.now().since(started).saturating_sub(slept);
            self.engine.set_connections(self.nbd.connection_count() as u64);
            self.engine.set_busy_ns(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// One bounded turn of everything that is not the machine. Returns whether anything was done.
    fn turn(&mut self) -> bool {
        let (now, wall_clock_ns) = (self.platform.now(), self.platform.wall_clock_ns());
        let mut worked = false;
        while let Some(call) = self.calls.as_ref().and_then(Mailbox::receive) {
            self.engine.call(call);
            worked = true;
        }
        worked |= self.engine.poll(now, wall_clock_ns);
        while let Some(name) = self.engine.wanted_device() {
            let device = (self.open_device)(&name);
            self.engine.device_opened(device);
            worked = true;
        }
        // Before the pool is open nobody knows the volumes: clients wait, instead of hearing that there are none.
        if self.engine.is_serving() || self.engine.is_stopping() {
            worked |= self.nbd.poll(&mut self.net, &mut self.engine, now);
        }
        if self.engine.is_stopping() {
            self.nbd.stop(now);
        }
        worked
    }

    fn is_done(&self) -> bool {
        if !self.nbd.is_stopped() {
            return false;
        }
        if self.calls.is_none() {
            return self.ended.load(Ordering::Acquire);
        }
        if self.engine.is_stopped() {
            self.ended.store(true, Ordering::Release);
            for peer in &self.peers {
                peer.wake();
            }
        }
        self.engine.is_stopped()
    }

    fn failure(&self) -> Option<String> {
        match self.engine.pool_state() {
            Some(PoolState::Stopped(reason)) => Some(reason.clone()),
            _ => None,
        }
    }
}
