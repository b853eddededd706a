//! One client's connection: first the handshake, then requests, then the farewell.
//!
//! A session is a value: it moves only when [`Session::run`] or [`Session::deliver`] is called, a bounded number of steps each time.
//!
//! ```text
//! Negotiating --GO, EXPORT_NAME--> Transmitting --DISC, or the client sends no more--> close, once all is answered and sent
//!      |                                |
//!      +--ABORT--> close                +--violation, lost connection, overdue--> abort
//! ```
//!
//! # Time-outs
//!
//! A client may rest between requests for ever. It may not rest where others wait for it: the handshake has a deadline; a client that
//! leaves a request half sent, or replies unread, is dropped after [`STALL`], and after [`STALL_PRESSED`] when the memory that
//! it holds is short.

use super::{
    negotiate::{Negotiation, Refusal, Verdict},
    transmission::{Pace, Transmission, Turn},
};
use crate::{
    base::limits::CONNECTION_BYTES_MAX,
    node::request::{ReplyData, VolumeError, VolumeService},
};
use std::time::Duration;
use twinlog_device::{ConnectionId, ConnectionState, Nanos, Network};

/// Longest handshake: a person at a protocol shell has time to type.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(60);

/// Longest handshake of a client that is refused.
pub(super) const HANDSHAKE_REFUSED: Duration = Duration::from_secs(5);

/// How long a client may leave a request half sent or replies unread: a virtual machine that is paused for a snapshot returns before.
pub(super) const STALL: Duration = Duration::from_secs(300);

/// The same while memory is short and this client holds some of it.
pub(super) const STALL_PRESSED: Duration = Duration::from_secs(5);

/// Steps of one turn; a step takes one option, one request, or what has arrived of one payload.
const STEPS_PER_TURN: usize = 64;

/// What a session's owner does after a turn of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Call again when something has happened to the connection.
    Rest,
    /// Call again in the next turn.
    Again,
    /// Close the connection when everything has been sent.
    Close,
    /// Close it now.
    Abort,
}

/// One turn of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// Something was taken or sent.
    pub(super) progressed: bool,
    pub(super) next: Next,
}

#[derive(Debug)]
enum Phase {
    Negotiating(Negotiation),
    Transmitting(Transmission),
    /// The client has said farewell.
    Over,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    phase: Phase,
    refused: bool,
    opened_at: Nanos,
    /// When the client last sent or took something.
    progress_at: Nanos,
    /// Unsent bytes when they were last looked at.
    unsent_bytes: usize,
    /// The last step could go on only with more input.
    starved: bool,
    /// Steps were left to do, or wait for the engine. Written by the owner: the session is in its queue.
    pub(super) queued: bool,
}

impl Session {
    pub(super) fn new(refusal: Option<Refusal>, now: Nanos) -> Self {
        Self {
            phase: Phase::Negotiating(Negotiation::new(refusal)),
            refused: refusal.is_some(),
            opened_at: now,
            progress_at: now,
            unsent_bytes: 0,
            starved: false,
            queued: false,
        }
    }

    /// This client is over the limit of connections.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Refuses everything from now on.
    pub(super) fn stop(&mut self) {
        if let Phase::Negotiating(negotiation) = &mut self.phase {
            negotiation.refuse(Refusal::Stopping);
        }
    }

    /// Takes up to [`STEPS_PER_TURN`] steps.
    pub(super) fn run<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos) -> Ran {
        let mut progressed = false;
        if turn.net.state(turn.connection) == ConnectionState::Failed {
            return Ran { progressed: true, next: Next::Abort };
        }
        for _ in 0..STEPS_PER_TURN {
            let pace = self.step(turn);
            self.starved = pace == Pace::WaitsForClient;
            let next = match pace {
                Pace::Went => {
                    progressed = true;
                    self.progress_at = now;
                    continue;
                }
                Pace::Violation => Next::Abort,
                Pace::WaitsForRoom if self.is_over() => Next::Close,
                Pace::WaitsForRoom => Next::Again,
                Pace::WaitsForClient if turn.net.state(turn.connection) == ConnectionState::InputEnded => {
                    self.end_input(turn);
                    if self.is_over() { Next::Close } else { Next::Again }
                }
                Pace::WaitsForClient if turn.stopping && self.may_leave(turn) => Next::Close,
                Pace::WaitsForClient => Next::Rest,
            };
            return Ran { progressed: progressed || matches!(next, Next::Close | Next::Abort), next };
        }
        Ran { progressed, next: Next::Again }
    }

    fn step<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let negotiation = match &mut self.phase {
            Phase::Over => return Pace::WaitsForRoom,
            Phase::Transmitting(transmission) => return transmission.step(turn),
            Phase::Negotiating(negotiation) => negotiation,
        };
        if turn.net.unsent_bytes(turn.connection) as u64 >= CONNECTION_BYTES_MAX {
            return Pace::WaitsForRoom;
        }
        turn.scratch.clear();
        let step = negotiation.step(turn.net.input(turn.connection), turn.service, turn.scratch);
        turn.net.consume(turn.connection, step.consumed_bytes);
        if !turn.scratch.is_empty() {
            turn.net.send(turn.connection, turn.scratch);
        }
        match step.verdict {
            Verdict::Go => Pace::Went,
            Verdict::Wait if step.consumed_bytes > 0 => Pace::Went,
            Verdict::Wait => Pace::WaitsForClient,
            Verdict::Abort => Pace::Violation,
            Verdict::Enter(export) => {
                self.phase = Phase::Transmitting(Transmission::new(export));
                Pace::Went
            }
            Verdict::Close => {
                self.phase = Phase::Over;
                Pace::Went
            }
        }
    }

    /// Takes the engine's reply to a request of this session.
    pub(super) fn deliver<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        request: u64,
        result: Result<ReplyData, VolumeError>,
    ) -> Next {
        let Phase::Transmitting(transmission) = &mut self.phase else { unreachable!("no request before the export") };
        // The protocol has no error that means "ask again": clients do so when a connection is lost.
        if let Err(VolumeError::Interrupted(_)) = result {
            return Next::Abort;
        }
        match transmission.deliver(turn, request, result) {
            Pace::Violation => Next::Abort,
            _ => Next::Again,
        }
    }

    /// Whether the client must be dropped because others wait for it. `pressed`: memory is short.
    pub(super) fn is_overdue<N: Network>(
        &mut self,
        net: &N,
        connection: ConnectionId,
        now: Nanos,
        pressed: bool,
    ) -> bool {
        let unsent_bytes = net.unsent_bytes(connection);
        if unsent_bytes < self.unsent_bytes {
            self.progress_at = now;
        }
        self.unsent_bytes = unsent_bytes;
        let Phase::Transmitting(transmission) = &self.phase else {
            return now.since(self.opened_at) > if self.refused { HANDSHAKE_REFUSED } else { HANDSHAKE };
        };
        let half_sent = self.starved && transmission.has_part_of_request(net.input(connection));
        if unsent_bytes == 0 && !half_sent {
            return false;
        }
        let holds_memory = unsent_bytes > 0 || transmission.holds_blocks();
        now.since(self.progress_at) > if pressed && holds_memory { STALL_PRESSED } else { STALL }
    }

    fn end_input<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) {
        match &mut self.phase {
            Phase::Transmitting(transmission) => transmission.end_input(turn),
            Phase::Negotiating(_) | Phase::Over => self.phase = Phase::Over,
        }
    }

    /// Nothing more will be taken, and everything taken has been answered.
    fn is_over(&self) -> bool {
        match &self.phase {
            Phase::Negotiating(_) => false,
            Phase::Transmitting(transmission) => transmission.is_over(),
            Phase::Over => true,
        }
    }

    /// Nothing is left to be said to this client when the server stops.
    fn may_leave<N: Network, S: VolumeService>(&self, turn: &Turn<'_, N, S>) -> bool {
        let sent = turn.net.unsent_bytes(turn.connection) == 0;
        match &self.phase {
            Phase::Negotiating(_) | Phase::Over => true,
            Phase::Transmitting(transmission) => sent && transmission.is_at_rest(),
        }
    }
}
