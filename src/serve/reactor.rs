//! The loop of one reactor: the pools, a front end and the machine take turns until the node is told to stop.
//!
//! ```text
//! control calls -> pools -> front end's sessions -> idle policy -> one turn of the machine (at most one system call) -> ...
//! ```
//!
//! The daemon gives each reactor a thread that calls [`Reactor::run`]; the simulator calls [`Reactor::poll_once`] of all reactors
//! from one thread. What ships is what is simulated.
//!
//! # The end
//!
//! 1. Reactor 0 gets the order to stop, and raises `stopping`: every pool refuses new requests, every front end answers what it owes and closes.
//! 2. The last consistency point is durable, and reactor 0 has no client left (or they got their time): it raises `ended` and leaves.
//! 3. The others leave when `ended` is raised and their own clients are gone. A crash between any of these steps is a crash: the log has it all.

use super::Server;
use crate::{
    cp::coordinator::PoolState,
    node::{
        admin::{AdminCall, AdminRequest, HostStatus, NvmeTcpStatus, PairStatus},
        engine::Engine,
        pools::{PoolOpener, PoolSlot, Pools},
        request::VolumeService,
    },
    pair::{controller::Controller, forward::Forwarder, interconnect::Interconnect},
    reactor::{Idle, Mailbox, Waker},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use twinlog_device::{BlockDevice, LogMemory, Nanos, Network, Platform, Unread, Wait};

/// Opens the device of a name, or says why not. None while that takes its time: asked again in later turns, one of which it brings about.
pub type OpenDevice<D> = Box<dyn FnMut(&str) -> Option<Result<D, String>>>;

/// What a reactor asks of its front end: a value that moves when it is polled.
pub trait FrontEnd<N: Network> {
    /// Does one bounded turn. Returns whether anything moved.
    fn poll<S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool;

    /// Takes what has happened at the network while clients have to wait, and answers nothing of it: a reactor does not sleep over what it leaves with the machine.
    fn take_events(&mut self, net: &mut N);

    /// Tells hosts what they are to be told of reservations, at whichever reactor they are.
    fn tell<S: VolumeService>(&mut self, _service: &mut S) {}

    /// Whether the front ends of other reactors have to look at something, since this was last asked.
    fn take_news(&mut self) -> bool {
        false
    }

    /// Begins to stop: what is in flight is answered, new clients and requests are refused.
    fn stop(&mut self, now: Nanos);

    /// Whether it was stopped and every client has left.
    fn is_stopped(&self) -> bool;

    /// Clients connected now.
    fn connection_count(&self) -> usize;

    /// The node's hosts, those of other reactors included.
    fn hosts(&self) -> Vec<HostStatus> {
        Vec::new()
    }

    /// What hosts find at this node, if it lets them in.
    fn nvme_tcp_status<S: VolumeService>(&self, _service: &S) -> Option<NvmeTcpStatus> {
        None
    }
}

impl<N: Unread> FrontEnd<N> for Server {
    fn poll<S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        Server::poll(self, net, service, now)
    }

    fn take_events(&mut self, net: &mut N) {
        Server::take_events(self, net);
    }

    fn tell<S: VolumeService>(&mut self, service: &mut S) {
        Server::tell(self, service);
    }

    fn take_news(&mut self) -> bool {
        Server::take_news(self)
    }

    fn stop(&mut self, now: Nanos) {
        Server::stop(self, now);
    }

    fn is_stopped(&self) -> bool {
        Server::is_stopped(self)
    }

    fn connection_count(&self) -> usize {
        Server::connection_count(self)
    }

    fn hosts(&self) -> Vec<HostStatus> {
        Server::hosts(self)
    }

    fn nvme_tcp_status<S: VolumeService>(&self, service: &S) -> Option<NvmeTcpStatus> {
        Server::nvme_tcp_status(self, service)
    }
}

/// How far the end of a node is. Reactor 0 raises the flags, the others follow.
#[derive(Debug, Default)]
pub struct NodeEnd {
    stopping: AtomicBool,
    ended: AtomicBool,
    /// The node's only pool stopped before its volumes were known.
    shut: AtomicBool,
    /// Until when reactors may give anything to the machine, in nanoseconds of their clock; zero: for ever. Reactor 0 writes it.
    serves_until: AtomicU64,
    /// A reactor or the interconnect has seen that time pass and gives nothing to the machine any more: the others must not go on without it.
    overdue: AtomicBool,
}

impl NodeEnd {
    /// Until when anything may be given to the machine; none: for ever.
    pub fn serve_until(&self, until: Option<Nanos>) {
        // Never zero: a lease lasts.
        self.serves_until.store(until.map_or(0, |until| until.0.max(1)), Ordering::Release);
    }

    /// Whether everything is over but what other reactors' clients still take.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether anything may be given to the machine at `now`: this node has not stood still over the end of its lease.
    #[must_use]
    pub fn may_serve(&self, now: impl FnOnce() -> Nanos) -> bool {
        let until = self.serves_until.load(Ordering::Acquire);
        !self.overdue.load(Ordering::Acquire) && (until == 0 || now().0 < until)
    }

    /// The same, for who ends if not: then nobody else may any more, whatever reactor 0 has done meanwhile.
    pub(super) fn serves_or_ends(&self, now: impl FnOnce() -> Nanos) -> bool {
        let serves = self.may_serve(now);
        if !serves {
            self.overdue.store(true, Ordering::Release);
        }
        serves
    }
}

/// The pair's part of reactor 0.
pub struct PairParts<L: LogMemory> {
    /// Who serves which pool.
    pub controller: Controller<L>,
    /// Requests at the node that does not own the pool; none: they are refused there.
    pub forwarder: Option<Forwarder>,
    /// The way to the partner.
    pub way: Box<dyn Interconnect>,
    /// Where it runs, for people.
    pub placement: String,
}

impl<L: LogMemory> PairParts<L> {
    /// When one of them has something to do even if nothing arrives.
    fn next_deadline(&self) -> Option<Nanos> {
        let of_requests = self.forwarder.as_ref().and_then(Forwarder::next_deadline);
        self.controller.next_deadline().into_iter().chain(of_requests).min()
    }

    /// Hands on what this node has answered to requests that had waited for an owner, before front ends have their turn.
    fn deliver<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) -> bool {
        self.forwarder.as_mut().is_some_and(|forwarder| forwarder.deliver(pools))
    }

    /// Lets requests go where their pool is served. Hosts are told what the partner has told before anybody gets a reply that shows it.
    fn forward<D: BlockDevice, N: Network>(
        &mut self,
        pools: &mut Pools<D, L>,
        front: &mut impl FrontEnd<N>,
        now: Nanos,
    ) -> bool {
        let Some(forwarder) = &mut self.forwarder else {
            while self.controller.next_forward_event().is_some() {}
            return false;
        };
        let is_busy = forwarder.poll(&mut self.controller, pools, &mut *self.way, now);
        front.tell(pools);
        is_busy | forwarder.post()
    }
}

/// What a reactor is made of.
pub struct ReactorParts<P: Platform, F> {
    /// The machine.
    pub platform: P,
    /// The node's pools, as far as they live here.
    pub pools: Pools<P::Disk, P::Log>,
    /// The clients' connections.
    pub net: P::Net,
    /// The front end.
    pub front: F,
    /// How it waits.
    pub idle: Idle,
    /// Orders of the control threads; reactor 0 has it.
    pub calls: Option<Mailbox<AdminCall>>,
    /// Opens a device that joins a pool.
    pub open_device: OpenDevice<P::Disk>,
    /// Opens pools.
    pub opener: Box<dyn PoolOpener<P::Disk, P::Log>>,
    /// The partner; reactor 0 of a pair has it.
    pub pair: Option<Box<PairParts<P::Log>>>,
    /// How far the end of the node is; shared by all.
    pub end: Arc<NodeEnd>,
    /// The other reactors, and an interconnect beside them, to tell them.
    pub peers: Vec<Arc<dyn Waker>>,
}

/// One reactor: everything that runs on it.
pub struct Reactor<P: Platform, F> {
    parts: ReactorParts<P, F>,
    started: Nanos,
    slept: Duration,
    /// Whether the machine's last turn has finished anything.
    finished: bool,
    /// Whether it ended because the node's lease had.
    is_overdue: bool,
    /// Devices that pools wait for.
    joining: Vec<(PoolSlot, String)>,
}

impl<P: Platform, F: FrontEnd<P::Net>> Reactor<P, F> {
    /// A reactor that has not had a turn.
    #[must_use]
    pub fn new(parts: ReactorParts<P, F>) -> Self {
        let started = parts.platform.now();
        Self { parts, started, slept: Duration::ZERO, finished: false, is_overdue: false, joining: Vec::new() }
    }

    /// Runs until the node has stopped. Returns why the pool stopped before it was told to, if it did.
    pub fn run(mut self) -> Option<String> {
        while self.poll_once() {}
        assert!(
            !self.is_overdue,
            "this node stood still over the end of its lease, with a pool open: it ends before it writes"
        );
        self.failure()
    }

    /// One bounded turn, which may wait for the machine. False once the node has stopped: there are no more turns.
    pub fn poll_once(&mut self) -> bool {
        let now = self.parts.platform.now();
        self.follow_stop();
        let worked = self.turn() | self.finished;
        if self.is_done() {
            return false;
        }
        let ReactorParts { platform, pools, idle, pair, .. } = &mut self.parts;
        let pair = pair.as_ref().and_then(|pair| pair.next_deadline());
        let deadline = pools.next_deadline().into_iter().chain(pair).min();
        let wait = match idle.wait(now, worked, platform.should_sleep(), deadline) {
            Wait::No => Wait::No,
            wait => wait.at_most(platform.longest_sleep()),
        };
        if self.is_overdue() {
            return false;
        }
        self.finished = self.parts.platform.turn(wait);
        let later = self.parts.platform.now();
        if matches!(wait, Wait::UpTo(_)) {
            self.slept += later.since(now);
        }
        let busy = later.since(self.started).saturating_sub(self.slept);
        let connections = self.parts.front.connection_count() as u64;
        self.parts.pools.set_figures(connections, u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX));
        true
    }

    /// Whether this node stood still over the end of its lease, and a turn of the machine would give it writes and replies that the partner does not expect any
    /// more. It is looked at right before every turn, after everything that the turn would carry was made.
    fn is_overdue(&mut self) -> bool {
        let ReactorParts { pair, end, platform, .. } = &self.parts;
        if let Some(pair) = pair {
            end.serve_until(pair.controller.serves_until());
        }
        self.is_overdue = !end.serves_or_ends(|| platform.now());
        self.is_overdue
    }

    /// Whatever reactor 0 was told, or knows, all do.
    fn follow_stop(&mut self) {
        if self.has_failed_to_open() {
            self.raise(&self.parts.end.shut);
        }
        if self.parts.pools.is_stopping() {
            self.raise(&self.parts.end.stopping);
        } else if self.parts.end.stopping.load(Ordering::Acquire) {
            self.parts.pools.stop();
        }
    }

    /// Whether nobody will ever know the volumes: there is no partner to know them, and the pool stopped before it was open. Reactor 0 knows.
    fn has_failed_to_open(&self) -> bool {
        self.parts.pair.is_none() && !self.parts.pools.has_opened() && self.failure().is_some()
    }

    /// The node's pools.
    #[must_use]
    pub fn pools(&self) -> &Pools<P::Disk, P::Log> {
        &self.parts.pools
    }

    /// The node's pools, for orders to one of them between two turns.
    pub fn pools_mut(&mut self) -> &mut Pools<P::Disk, P::Log> {
        &mut self.parts.pools
    }

    /// Why the node's own pool stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match self.parts.pools.engine(PoolSlot::Home).and_then(Engine::pool_state) {
            Some(PoolState::Stopped(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    /// One bounded turn of everything that is not the machine. Returns whether anything was done.
    fn turn(&mut self) -> bool {
        let ReactorParts { platform, pools, net, front, calls, open_device, opener, pair, peers, end, .. } =
            &mut self.parts;
        let (now, wall_clock_ns) = (platform.now(), platform.wall_clock_ns());
        pools.begin_turn(now, wall_clock_ns);
        let mut worked = false;
        while let Some(call) = calls.as_ref().and_then(Mailbox::receive) {
            if call.request == AdminRequest::Status {
                let nvme_tcp = front.nvme_tcp_status(pools);
                pools.set_hosts(front.hosts(), nvme_tcp);
            }
            // What is not about the pair is about the pools.
            let call = match pair {
                Some(pair) => {
                    if call.request == AdminRequest::Status {
                        let status = pair.controller.status(&*pair.way);
                        pools.set_pair(PairStatus { placement: pair.placement.clone(), ..status });
                    }
                    pair.controller.call(call)
                }
                None => Some(call),
            };
            call.into_iter().for_each(|call| pools.call(call));
            worked = true;
        }
        if let Some(pair) = pair {
            worked |= pair.way.poll(now);
            worked |= pair.controller.poll(pools, &mut **opener, &mut *pair.way, (now, wall_clock_ns));
            worked |= pair.forward(pools, front, now);
        }
        while let Some((slot, opened)) = opener.poll() {
            if let (Err(reason), Some(pair)) = (pools.open(slot, opened), pair.as_mut()) {
                pair.controller.open_failed(slot, reason);
            }
            worked = true;
        }
        worked |= pools.poll(now, wall_clock_ns);
        if let Some(pair) = pair {
            worked |= pair.deliver(pools);
        }
        self.joining.extend(std::iter::from_fn(|| pools.wanted_device()));
        self.joining.retain(|(slot, name)| {
            let Some(device) = open_device(name) else { return true };
            pools.device_opened(*slot, device);
            worked = true;
            false
        });
        // Before the pool is open nobody knows the volumes: clients wait, instead of hearing that there are none. After it has stopped
        // they hear that it has, or are sent away where it never was open.
        let is_shut = pools.is_stopping() || end.shut.load(Ordering::Acquire);
        if pools.has_opened() || is_shut {
            worked |= front.poll(net, pools, now);
            if front.take_news() {
                peers.iter().for_each(|peer| peer.wake());
            }
        } else {
            front.take_events(net);
        }
        // What clients have just asked for leaves in this turn.
        if let Some(pair) = pair.as_mut().filter(|_| worked) {
            worked |= pair.forward(pools, front, now);
        }
        if is_shut {
            front.stop(now);
        }
        worked
    }

    fn is_done(&self) -> bool {
        let ReactorParts { pools, front, calls, end, .. } = &self.parts;
        if !front.is_stopped() {
            return false;
        }
        if calls.is_none() {
            return end.has_ended();
        }
        if pools.is_stopped() {
            self.raise(&end.ended);
        }
        pools.is_stopped()
    }

    /// Raises a flag and has the other reactors look at it.
    fn raise(&self, flag: &AtomicBool) {
        if !flag.swap(true, Ordering::AcqRel) {
            for peer in &self.parts.peers {
                peer.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests;
