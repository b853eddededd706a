//! All connections of one reactor, whatever they speak.
//!
//! # Invariants
//!
//! 1. Each session gets the same bounded number of steps per turn, in the order in which they asked for it: a client that floods waits
//!    for its next turn like everybody else.
//! 2. A reply from the engine is routed by its tag, which names the connection; connection numbers are never used again, so the reply
//!    to a request whose client has gone finds nobody.
//! 3. There are at most `connections_max` clients. Of those beyond, [`REFUSED_MAX`] that speak NBD are told so and leave; the others find a closed
//!    connection.
//! 4. Hosts are told of a change of access before any reactor gives an answer that shows it ([`Lookout`]).
//! 5. What had arrived when this node began to serve a pool is no host's change there any more: see `nvme_tcp/gate.rs`.
//! 6. Nothing of a client is taken before a [sweep](super::sweeper) that is ordered when it connects.

use super::{
    nbd,
    nvme_tcp::{self, Lookout, Target, UNPROVEN},
    sweeper::{LIMIT, Sweeper},
    turn::{Next, Ran, Turn},
};
use crate::{
    base::{FixedMap, planted},
    node::{
        admin::{HostStatus, NvmeTcpStatus},
        pools::PoolSlot,
        request::{ReplyData, VolumeError, VolumeReply, VolumeService},
        sweep::ReactorSweeps,
    },
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{Accepted, ConnectionId, Nanos, Network, Unread};

/// Clients over the limit that are refused with words at the same time; further ones find a closed connection.
const REFUSED_MAX: usize = 16;

/// Connections accepted per turn.
const ACCEPTS_PER_TURN: usize = 16;

/// Engine replies delivered per turn: more than all requests that one client may have in flight.
const REPLIES_PER_TURN: usize = 512;

/// How often clients' time-outs are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How long clients have to take their last replies when the server stops.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Hosts that speak NVMe/TCP.
#[derive(Clone, Debug)]
pub struct NvmeTcp {
    /// What they find.
    pub target: Arc<Target>,
    /// The first listener for them: that and all later ones.
    pub first_listener: usize,
}

/// One client's session, in its protocol.
#[derive(Debug)]
enum Session {
    Nbd(nbd::Session),
    NvmeTcp(Box<nvme_tcp::Session>),
}

#[derive(Debug)]
struct Client {
    session: Session,
    /// It is over the limit of connections.
    refused: bool,
    /// It is in the queue.
    queued: bool,
}

impl Session {
    fn stop(&mut self) {
        match self {
            Self::Nbd(session) => session.stop(),
            Self::NvmeTcp(_) => {}
        }
    }

    fn run<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos) -> Ran {
        match self {
            Self::Nbd(session) => session.run(turn, now),
            Self::NvmeTcp(session) => session.run(turn, now),
        }
    }

    fn deliver<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        request: u64,
        result: Result<ReplyData, VolumeError>,
    ) -> Next {
        match self {
            Self::Nbd(session) => session.deliver(turn, request, result),
            Self::NvmeTcp(session) => session.deliver(turn, request, result),
        }
    }

    /// Whether it has done all that it can with what has come, and waits for its client.
    fn is_starved(&self) -> bool {
        match self {
            Self::Nbd(session) => session.is_starved(),
            Self::NvmeTcp(session) => session.is_starved(),
        }
    }

    /// The newest command that was taken.
    fn newest_command(&self) -> u64 {
        match self {
            // What is taken is submitted.
            Self::Nbd(_) => 0,
            Self::NvmeTcp(session) => session.newest_command(),
        }
    }

    /// Whether everything of the commands up to `newest` that can be submitted has been.
    fn has_submitted(&self, newest: u64) -> bool {
        match self {
            Self::Nbd(_) => true,
            Self::NvmeTcp(session) => session.has_submitted(newest),
        }
    }

    /// What time alone has brought about.
    fn look<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos, pressed: bool) -> Next {
        match self {
            Self::Nbd(session) => {
                let is_overdue = session.is_overdue(turn.net, turn.connection, now, pressed);
                if is_overdue { Next::Abort } else { Next::Rest }
            }
            Self::NvmeTcp(session) => session.look(turn, now, pressed),
        }
    }
}

/// The front end of one reactor: a value that moves when [`poll`](Self::poll) is called.
#[derive(Debug)]
pub struct Server {
    connections_max: usize,
    nvme_tcp: Option<NvmeTcp>,
    /// None: there is nothing that clients could overtake.
    sweeper: Option<Sweeper>,
    /// How often pools were opened here, as far as sessions know.
    openings: [u64; 2],
    clients: FixedMap<ConnectionId, Client>,
    refused_count: usize,
    /// Clients that have something to do, or wait for the engine.
    queue: VecDeque<ConnectionId>,
    /// Empty between turns.
    ready: Vec<ConnectionId>,
    scratch: Vec<u8>,
    looked_at: Nanos,
    /// How pools are reached, as hosts were told; from the first turn, if there may be hosts.
    lookout: Option<Lookout>,
    /// Waits until the hosts of all reactors have been told.
    held: Option<VolumeReply>,
    /// Other reactors have to tell theirs.
    has_news: bool,
    stopping_since: Option<Nanos>,
}

impl Server {
    /// A server for at most `connections_max` clients at a time, which all speak NBD.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            nvme_tcp: None,
            sweeper: None,
            openings: [0; 2],
            clients: FixedMap::default(),
            refused_count: 0,
            queue: VecDeque::new(),
            ready: Vec::new(),
            scratch: Vec::new(),
            looked_at: Nanos::default(),
            lookout: None,
            held: None,
            has_news: false,
            stopping_since: None,
        }
    }

    /// The same, with hosts at some of its listeners.
    #[must_use]
    pub fn with_nvme_tcp(self, nvme_tcp: Option<NvmeTcp>) -> Self {
        Self { nvme_tcp, ..self }
    }

    /// The same, one of several whose connections are swept together.
    #[must_use]
    pub fn with_sweeps(self, sweeps: ReactorSweeps) -> Self {
        Self { sweeper: Some(Sweeper::new(sweeps)), ..self }
    }

    /// The hosts of this node, whichever reactor they are at.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostStatus> {
        self.nvme_tcp.as_ref().map_or_else(Vec::new, |nvme_tcp| nvme_tcp.target.hosts())
    }

    /// What hosts find at this node.
    #[must_use]
    pub fn nvme_tcp_status<S: VolumeService>(&self, service: &S) -> Option<NvmeTcpStatus> {
        let access = self.lookout.as_ref().map_or(UNPROVEN, Lookout::told);
        self.nvme_tcp.as_ref().map(|nvme_tcp| nvme_tcp.target.status(service, access))
    }

    /// Clients connected now, those that are being refused included.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.clients.len()
    }

    /// Hands what hosts are to be told of reservations to their controllers, at whichever reactor: those look by themselves.
    pub fn tell<S: VolumeService>(&self, service: &mut S) {
        let target = self.nvme_tcp.as_ref().map(|nvme_tcp| &nvme_tcp.target);
        let lost = service.take_lost_notices();
        if let Some(target) = target.filter(|_| lost > 0) {
            target.lose_notices(lost);
        }
        while let Some(notice) = service.poll_notice() {
            if let Some(target) = target {
                target.notify(&notice);
            }
        }
    }

    /// Does one bounded turn: accepts clients, delivers what `service` has answered, and lets each session that can move do so.
    /// Returns whether anything moved; if nothing did, nothing will before `net` or `service` has news, or `now` has grown by a quarter
    /// of a second (for time-outs only).
    pub fn poll<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        let mut progressed = self.begin_turn(service);
        self.notice_openings(net, service);
        progressed |= self.announce(net, service, now);
        progressed |= self.accept(net, now);
        self.tell(service);
        progressed |= self.deliver(net, service, now);
        self.take_ready(net);
        if let Some(sweeper) = &mut self.sweeper {
            sweeper.mark(net);
        }
        for _ in 0..self.queue.len() {
            let connection = self.queue.pop_front().expect("counted above");
            progressed |= self.run(net, service, connection, now);
        }
        if now.since(self.looked_at) >= LOOK {
            self.looked_at = now;
            progressed |= self.look(net, service, now);
        }
        progressed | self.sweep(net, service, now)
    }

    /// Takes what `net` has to say, for a later turn: clients wait.
    pub fn take_events<N: Network>(&mut self, net: &mut N) {
        self.take_ready(net);
    }

    fn take_ready<N: Network>(&mut self, net: &mut N) {
        let mut ready = std::mem::take(&mut self.ready);
        net.poll(&mut ready);
        for connection in ready.drain(..) {
            self.enqueue(connection);
        }
        self.ready = ready;
    }

    /// What was submitted in earlier turns may have reached its queues; who waited for that goes on.
    fn begin_turn<S: VolumeService>(&mut self, service: &S) -> bool {
        let Some(sweeper) = &mut self.sweeper else { return false };
        let is_empty = self.clients.is_empty();
        let has_handed_on = (is_empty || sweeper.is_handing_on()) && service.has_handed_on();
        let mut progressed = sweeper.begin_turn(is_empty, has_handed_on);
        while let Some(connection) = self.sweeper.as_mut().and_then(Sweeper::release) {
            self.enqueue(connection);
            progressed = true;
        }
        progressed
    }

    /// Tells hosts' sessions of pools that this node has begun to serve: before the network's turn, after which they count.
    fn notice_openings<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S) {
        let before = std::mem::replace(&mut self.openings, service.openings());
        if before == self.openings || planted::is("opening-not-noticed") {
            return;
        }
        let is_new = |slot: &PoolSlot| before[slot.index()] != self.openings[slot.index()];
        let slots: Vec<PoolSlot> = PoolSlot::ALL.into_iter().filter(is_new).collect();
        let mut connections: Vec<ConnectionId> = self.clients.keys().copied().collect();
        connections.sort_unstable();
        let stopping = self.stopping_since.is_some();
        for connection in connections {
            let client = self.clients.get_mut(&connection).expect("listed just now");
            let Session::NvmeTcp(session) = &mut client.session else { continue };
            let turn =
                Turn { net: &mut *net, service: &mut *service, connection, scratch: &mut self.scratch, stopping };
            slots.iter().for_each(|slot| session.pool_opened(&turn, *slot));
            self.enqueue(connection);
        }
    }

    /// Brings a sweep forward, or begins one.
    fn sweep<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        let Some(sweeper) = &mut self.sweeper else { return false };
        let clients = &self.clients;
        sweeper.pass(net, |lying, is_consumed| {
            let client = &clients[&lying.connection];
            let has_taken = lying.last.is_some() || is_consumed || (!client.queued && client.session.is_starved());
            has_taken && client.session.has_submitted(*lying.last.get_or_insert(client.session.newest_command()))
        });
        while let Some(connection) = self.sweeper.as_ref().and_then(|sweeper| sweeper.overdue(now)) {
            tracing::warn!(limit = ?LIMIT, "a client's connection ends: it keeps others waiting for what it has sent");
            self.end(net, service, connection, true);
        }
        let Some(sweeper) = &mut self.sweeper else { return false };
        sweeper.end_turn(net, self.clients.keys().copied(), now)
    }

    /// Begins to stop: requests in flight are answered, new ones and new clients refused, and connections closed as soon as nothing
    /// is owed to them, or after [`STOP_GRACE`].
    pub fn stop(&mut self, now: Nanos) {
        if self.stopping_since.is_some() {
            return;
        }
        self.stopping_since = Some(now);
        let connections: Vec<ConnectionId> = self.clients.keys().copied().collect();
        for connection in connections {
            self.clients.get_mut(&connection).expect("listed just now").session.stop();
            self.enqueue(connection);
        }
    }

    /// Whether the front ends of other reactors have something to tell their hosts, since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Whether it was stopped and every client has left.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping_since.is_some() && self.clients.is_empty()
    }

    fn accept<N: Network>(&mut self, net: &mut N, now: Nanos) -> bool {
        for count in 0..ACCEPTS_PER_TURN {
            let Some(Accepted { connection, listener, .. }) = net.accept() else { return count > 0 };
            let hosts = self.nvme_tcp.as_ref().filter(|hosts| listener >= hosts.first_listener);
            let refused = self.clients.len() - self.refused_count >= self.connections_max;
            let is_heard = !refused || (hosts.is_none() && self.refused_count < REFUSED_MAX);
            if self.stopping_since.is_some() || !is_heard {
                net.close(connection, true);
                continue;
            }
            let session = match hosts {
                Some(hosts) => {
                    let access = self.lookout.as_ref().map_or(UNPROVEN, Lookout::told);
                    Session::NvmeTcp(Box::new(nvme_tcp::Session::new(Arc::clone(&hosts.target), access, now)))
                }
                None => Session::Nbd(nbd::Session::new(net, connection, refused, now)),
            };
            self.refused_count += usize::from(refused);
            let replaced = self.clients.insert(connection, Client { session, refused, queued: false });
            assert!(replaced.is_none(), "connection numbers are never used again");
            if let Some(sweeper) = self.sweeper.as_mut().filter(|_| !refused) {
                sweeper.hold(connection);
            }
            self.enqueue(connection);
        }
        true
    }

    /// Tells hosts when pools are reached otherwise than before (invariant 4).
    fn announce<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        let Self { nvme_tcp, lookout, clients, scratch, stopping_since, .. } = self;
        let Some(NvmeTcp { target, .. }) = nvme_tcp else { return false };
        let lookout = lookout.get_or_insert_with(|| Lookout::new(Arc::clone(target)));
        self.has_news |= lookout.see(target.reach(service), now);
        let Some(news @ (_, access)) = lookout.news() else { return false };
        let mut connections: Vec<ConnectionId> = Vec::new();
        if access != lookout.told() {
            connections.extend(clients.keys());
            connections.sort_unstable();
        }
        let stopping = stopping_since.is_some();
        for connection in connections {
            let client = clients.get_mut(&connection).expect("listed just now");
            let Session::NvmeTcp(session) = &mut client.session else { continue };
            let mut turn = Turn { net: &mut *net, service: &mut *service, connection, scratch, stopping };
            session.announce(&mut turn, access);
        }
        lookout.tell(news);
        true
    }

    fn deliver<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        for count in 0..REPLIES_PER_TURN {
            let Some(reply) = self.held.take().or_else(|| service.poll_reply()) else { return count > 0 };
            // It may have come together with the change that it shows.
            self.announce(net, service, now);
            if self.lookout.as_mut().is_some_and(|lookout| !lookout.is_settled()) {
                self.held = Some(reply);
                return true;
            }
            let connection = ConnectionId(reply.tag.session);
            let Some(client) = self.clients.get_mut(&connection) else { continue };
            let stopping = self.stopping_since.is_some();
            let mut turn = Turn { net, service, connection, scratch: &mut self.scratch, stopping };
            match client.session.deliver(&mut turn, reply.tag.request, reply.result) {
                Next::Abort => self.end(net, service, connection, true),
                _ => self.enqueue(connection),
            }
        }
        true
    }

    fn run<N: Unread, S: VolumeService>(
        &mut self,
        net: &mut N,
        service: &mut S,
        connection: ConnectionId,
        now: Nanos,
    ) -> bool {
        let Some(client) = self.clients.get_mut(&connection) else { return false };
        client.queued = false;
        if self.sweeper.as_ref().is_some_and(|sweeper| sweeper.is_held(connection)) {
            return false;
        }
        let stopping = self.stopping_since.is_some();
        let mut turn = Turn { net, service, connection, scratch: &mut self.scratch, stopping };
        let ran = client.session.run(&mut turn, now);
        match ran.next {
            Next::Rest => {}
            Next::Again => self.enqueue(connection),
            Next::Close => self.end(net, service, connection, false),
            Next::Abort => self.end(net, service, connection, true),
        }
        ran.progressed
    }

    fn look<N: Unread, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        let pressed = service.blocks().is_short();
        let stopping = self.stopping_since.is_some();
        let out_of_grace = self.stopping_since.is_some_and(|since| now.since(since) > STOP_GRACE);
        let connections: Vec<ConnectionId> = self.clients.keys().copied().collect();
        let mut worked = false;
        for connection in connections {
            let client = self.clients.get_mut(&connection).expect("listed just now");
            let mut turn =
                Turn { net: &mut *net, service: &mut *service, connection, scratch: &mut self.scratch, stopping };
            match client.session.look(&mut turn, now, pressed) {
                Next::Rest if !out_of_grace => continue,
                Next::Again if !out_of_grace => self.enqueue(connection),
                Next::Close if !out_of_grace => self.end(net, service, connection, false),
                _ => self.end(net, service, connection, true),
            }
            worked = true;
        }
        if self.stopping_since.is_some() {
            // Sent bytes make a session ready to leave, and not every driver reports the last of them.
            let connections: Vec<ConnectionId> = self.clients.keys().copied().collect();
            connections.into_iter().for_each(|connection| self.enqueue(connection));
        }
        worked
    }

    fn enqueue(&mut self, connection: ConnectionId) {
        if let Some(client) = self.clients.get_mut(&connection)
            && !client.queued
        {
            client.queued = true;
            self.queue.push_back(connection);
        }
    }

    fn end<N: Unread, S: VolumeService>(
        &mut self,
        net: &mut N,
        service: &mut S,
        connection: ConnectionId,
        abort: bool,
    ) {
        service.abandon(connection.0);
        let client = self.clients.remove(&connection).expect("only clients end");
        self.refused_count -= usize::from(client.refused);
        if let Some(sweeper) = &mut self.sweeper {
            sweeper.forget(connection);
        }
        if let Session::NvmeTcp(mut session) = client.session {
            session.end();
        }
        net.close(connection, abort);
    }
}
