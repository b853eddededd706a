//! One reactor's part in a [sweep](crate::node::sweep): what lay at its clients' connections when it began is taken in and handed on.
//!
//! ```text
//! ordered --> counting: what lies unread at each connection --turn of the machine--> taking: each is read up to there, and its commands go on their way
//!                                                                                          |
//!                                 done <-- everything submitted has reached its queue <-- handing on
//! ```
//!
//! A connection that takes longer than [`LIMIT`] is ended: its client keeps it from going on, or waits for another pool. What was not begun of it by
//! then never is.
//!
//! A new connection waits for a sweep of its own (*held*) before anything of it is taken: a client that reconnects has given another connection up. What
//! others order meanwhile does not include it while it is the one that waits longest, so no two wait for each other.

use crate::{
    base::planted,
    node::sweep::{ReactorSweeps, Ticket},
};
use std::time::Duration;
use twinlog_device::{ConnectionId, Nanos, Unread};

/// How long a connection may hold up a sweep. Whoever waits has sent a command over another path, where hosts wait 30 s and more for an answer; what a
/// client may have sent, some MiB in its socket, is taken in within this even by a pool that takes 2 MB/s.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A connection that is being swept.
#[derive(Debug)]
pub(super) struct Lying {
    pub(super) connection: ConnectionId,
    /// Bytes that were unread when that was last asked for.
    unread: u64,
    /// What lay there when the sweep began is within so many bytes of the stream. Asked for again it grows no larger, and comes within what is there.
    mark: u64,
    /// Once it is: the newest command that there was then.
    pub(super) last: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Counting,
    Taking,
    HandingOn,
}

#[derive(Debug)]
struct Sweep {
    target: Ticket,
    began: Nanos,
    stage: Stage,
    left: Vec<Lying>,
}

/// The part.
#[derive(Debug)]
pub(super) struct Sweeper {
    sweeps: ReactorSweeps,
    sweep: Option<Sweep>,
    /// Connections that wait for a sweep, the longest first.
    held: Vec<(ConnectionId, Ticket)>,
}

impl Sweeper {
    pub(super) fn new(sweeps: ReactorSweeps) -> Self {
        Self { sweeps, sweep: None, held: Vec::new() }
    }

    /// A client has connected: nothing of it is taken before a sweep.
    pub(super) fn hold(&mut self, connection: ConnectionId) {
        self.sweeps.set_busy(true);
        if planted::is("connection-not-held") {
            return;
        }
        // Before it is ordered, so that nobody ends it without a word.
        self.sweeps.set_waiting(true);
        self.held.push((connection, self.sweeps.order()));
    }

    pub(super) fn is_held(&self, connection: ConnectionId) -> bool {
        self.held.iter().any(|(held, _)| *held == connection)
    }

    /// The next connection that waits no more.
    pub(super) fn release(&mut self) -> Option<ConnectionId> {
        let position = self.held.iter().position(|(_, ticket)| self.sweeps.is_done(*ticket))?;
        let (connection, _) = self.held.remove(position);
        self.sweeps.set_waiting(!self.held.is_empty());
        Some(connection)
    }

    /// A connection has ended.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.held.retain(|(held, _)| *held != connection);
        self.sweeps.set_waiting(!self.held.is_empty());
        if let Some(sweep) = &mut self.sweep {
            sweep.left.retain(|lying| lying.connection != connection);
        }
    }

    /// Whether a sweep waits for nothing but what was submitted.
    pub(super) fn is_handing_on(&self) -> bool {
        self.sweep.as_ref().is_some_and(|sweep| sweep.stage == Stage::HandingOn)
    }

    /// Before anything else of a turn: `has_handed_on` is what was submitted in earlier ones. Returns whether a sweep is done.
    pub(super) fn begin_turn(&mut self, is_empty: bool, has_handed_on: bool) -> bool {
        if is_empty && has_handed_on {
            self.sweep = None;
            self.sweeps.set_busy(false);
        }
        let is_over = |sweep: &mut Sweep| sweep.stage == Stage::HandingOn && has_handed_on;
        let done = self.sweep.take_if(is_over);
        done.as_ref().inspect(|sweep| self.sweeps.finish(sweep.target));
        done.is_some()
    }

    /// After the network's turn: what lay unread when that was asked for in the turn before is now known to be within so many bytes.
    pub(super) fn mark(&mut self, net: &impl Unread) {
        let Some(sweep) = self.sweep.as_mut().filter(|sweep| sweep.stage != Stage::HandingOn) else { return };
        for lying in &mut sweep.left {
            lying.mark = lying.mark.min(net.received_bytes(lying.connection) + lying.unread);
        }
        sweep.stage = Stage::Taking;
    }

    /// Asks `is_passed` of every connection of which all that lay there has been received, with whether it is consumed.
    pub(super) fn pass(&mut self, net: &impl Unread, mut is_passed: impl FnMut(&mut Lying, bool) -> bool) {
        let Some(sweep) = self.sweep.as_mut().filter(|sweep| sweep.stage == Stage::Taking) else { return };
        sweep.left.retain_mut(|lying| {
            let received = net.received_bytes(lying.connection);
            if received < lying.mark {
                lying.unread = net.unread_bytes(lying.connection);
                return true;
            }
            !is_passed(lying, net.consumed_bytes(lying.connection) >= lying.mark)
        });
        if sweep.left.is_empty() {
            sweep.stage = Stage::HandingOn;
        }
    }

    /// A connection that has held up the sweep for too long.
    pub(super) fn overdue(&self, now: Nanos) -> Option<ConnectionId> {
        let sweep = self.sweep.as_ref().filter(|sweep| sweep.stage == Stage::Taking)?;
        let mut left = sweep.left.iter().filter(|_| now.since(sweep.began) > LIMIT);
        left.find(|lying| !self.is_held(lying.connection)).map(|lying| lying.connection)
    }

    /// At the end of a turn: begins a sweep that was ordered. Returns whether one goes on that the next turn brings forward.
    pub(super) fn end_turn(
        &mut self,
        net: &impl Unread,
        connections: impl Iterator<Item = ConnectionId>,
        now: Nanos,
    ) -> bool {
        let swept = self.sweeps.swept();
        let ordered = self.held.iter().map(|(_, ticket)| *ticket).find(|ticket| *ticket > swept);
        let target = ordered.unwrap_or_else(|| self.sweeps.ordered());
        if self.sweep.is_none() && target > swept {
            let waits = |connection: &ConnectionId| {
                self.held.iter().any(|(held, ticket)| held == connection && *ticket >= target)
            };
            let lying =
                |connection| Lying { connection, unread: net.unread_bytes(connection), mark: u64::MAX, last: None };
            let mut left: Vec<_> = connections.filter(|connection| !waits(connection)).map(lying).collect();
            left.sort_unstable_by_key(|lying| lying.connection);
            self.sweep = Some(Sweep { target, began: now, stage: Stage::Counting, left });
        }
        let is_counted = |lying: &Lying| net.received_bytes(lying.connection) >= lying.mark;
        self.sweep.as_ref().is_some_and(|sweep| sweep.stage != Stage::Taking || !sweep.left.iter().all(is_counted))
    }
}
