//! All NBD connections of one reactor.
//!
//! # Invariants
//!
//! 1. Each session gets the same bounded number of steps per turn, in the order in which they asked for it: a client that floods waits
//!    for its next turn like everybody else.
//! 2. A reply from the engine is routed by its tag, which names the connection; connection numbers are never used again, so the reply
//!    to a request whose client has gone finds nobody.
//! 3. There are at most `connections_max` clients, and [`REFUSED_MAX`] more that are told so and leave.

use super::{
    codec::greeting,
    negotiate::Refusal,
    session::{Next, Session},
    transmission::Turn,
};
use crate::{base::FixedMap, node::request::VolumeService};
use std::{collections::VecDeque, time::Duration};
use twinlog_device::{ConnectionId, Nanos, Network};

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

/// The NBD front end of one reactor: a value that moves when [`poll`](Self::poll) is called.
#[derive(Debug)]
pub struct NbdServer {
    connections_max: usize,
    sessions: FixedMap<ConnectionId, Session>,
    refused_count: usize,
    /// Sessions that have something to do, or wait for the engine.
    queue: VecDeque<ConnectionId>,
    /// Empty between turns.
    ready: Vec<ConnectionId>,
    scratch: Vec<u8>,
    looked_at: Nanos,
    stopping_since: Option<Nanos>,
}

impl NbdServer {
    /// A server for at most `connections_max` clients at a time.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            sessions: FixedMap::default(),
            refused_count: 0,
            queue: VecDeque::new(),
            ready: Vec::new(),
            scratch: Vec::new(),
            looked_at: Nanos::default(),
            stopping_since: None,
        }
    }

    /// Clients connected now, those that are being refused included.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.sessions.len()
    }

    /// Does one bounded turn: accepts clients, delivers what `service` has answered, and lets each session that can move do so.
    /// Returns whether anything moved; if nothing did, nothing will before `net` or `service` has news, or `now` has grown by a quarter
    /// of a second (for time-outs only).
    pub fn poll<N: Network, S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        let mut progressed = self.accept(net, now);
        progressed |= self.deliver(net, service);
        let mut ready = std::mem::take(&mut self.ready);
        net.poll(&mut ready);
        for connection in ready.drain(..) {
            self.enqueue(connection);
        }
        self.ready = ready;
        for _ in 0..self.queue.len() {
            let connection = self.queue.pop_front().expect("counted above");
            progressed |= self.run(net, service, connection, now);
        }
        if now.since(self.looked_at) >= LOOK {
            self.looked_at = now;
            progressed |= self.drop_overdue(net, service, now);
        }
        progressed
    }

    /// Begins to stop: requests in flight are answered, new ones and new clients refused, and connections closed as soon as nothing
    /// is owed to them, or after [`STOP_GRACE`].
    pub fn stop(&mut self, now: Nanos) {
        if self.stopping_since.is_some() {
            return;
        }
        self.stopping_since = Some(now);
        let connections: Vec<ConnectionId> = self.sessions.keys().copied().collect();
        for connection in connections {
            self.sessions.get_mut(&connection).expect("listed just now").stop();
            self.enqueue(connection);
        }
    }

    /// Whether it was stopped and every client has left.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping_since.is_some() && self.sessions.is_empty()
    }

    fn accept<N: Network>(&mut self, net: &mut N, now: Nanos) -> bool {
        for count in 0..ACCEPTS_PER_TURN {
            let Some(accepted) = net.accept() else { return count > 0 };
            let served_count = self.sessions.len() - self.refused_count;
            let refusal = (served_count >= self.connections_max).then_some(Refusal::Full);
            if self.stopping_since.is_some() || (refusal.is_some() && self.refused_count >= REFUSED_MAX) {
                net.close(accepted.connection, true);
                continue;
            }
            self.refused_count += usize::from(refusal.is_some());
            net.send(accepted.connection, &greeting());
            let replaced = self.sessions.insert(accepted.connection, Session::new(refusal, now));
            assert!(replaced.is_none(), "connection numbers are never used again");
            self.enqueue(accepted.connection);
        }
        true
    }

    fn deliver<N: Network, S: VolumeService>(&mut self, net: &mut N, service: &mut S) -> bool {
        for count in 0..REPLIES_PER_TURN {
            let Some(reply) = service.poll_reply() else { return count > 0 };
            let connection = ConnectionId(reply.tag.session);
            let Some(session) = self.sessions.get_mut(&connection) else { continue };
            let stopping = self.stopping_since.is_some();
            let mut turn = Turn { net, service, connection, scratch: &mut self.scratch, stopping };
            match session.deliver(&mut turn, reply.tag.request, reply.result) {
                Next::Abort => self.end(net, connection, true),
                _ => self.enqueue(connection),
            }
        }
        true
    }

    fn run<N: Network, S: VolumeService>(
        &mut self,
        net: &mut N,
        service: &mut S,
        connection: ConnectionId,
        now: Nanos,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&connection) else { return false };
        session.queued = false;
        let stopping = self.stopping_since.is_some();
        let mut turn = Turn { net, service, connection, scratch: &mut self.scratch, stopping };
        let ran = session.run(&mut turn, now);
        match ran.next {
            Next::Rest => {}
            Next::Again => self.enqueue(connection),
            Next::Close => self.end(net, connection, false),
            Next::Abort => self.end(net, connection, true),
        }
        ran.progressed
    }

    fn drop_overdue<N: Network, S: VolumeService>(&mut self, net: &mut N, service: &S, now: Nanos) -> bool {
        let pressed = service.blocks().is_short();
        let out_of_grace = self.stopping_since.is_some_and(|since| now.since(since) > STOP_GRACE);
        let overdue: Vec<ConnectionId> = self
            .sessions
            .iter_mut()
            .filter_map(|(&connection, session)| {
                let overdue = session.is_overdue(net, connection, now, pressed) || out_of_grace;
                overdue.then_some(connection)
            })
            .collect();
        for &connection in &overdue {
            self.end(net, connection, true);
        }
        if self.stopping_since.is_some() {
            // Sent bytes make a session ready to leave, and not every driver reports the last of them.
            let connections: Vec<ConnectionId> = self.sessions.keys().copied().collect();
            connections.into_iter().for_each(|connection| self.enqueue(connection));
        }
        !overdue.is_empty()
    }

    fn enqueue(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection)
            && !session.queued
        {
            session.queued = true;
            self.queue.push_back(connection);
        }
    }

    fn end<N: Network>(&mut self, net: &mut N, connection: ConnectionId, abort: bool) {
        let session = self.sessions.remove(&connection).expect("only sessions end");
        self.refused_count -= usize::from(session.is_refused());
        net.close(connection, abort);
    }
}
