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
//! leaves a request half sent, or replies unread, loses the [`Patience`] of the server, and does so sooner when the memory that it holds is
//! short.

use super::{
    codec::greeting,
    negotiate::{Negotiation, Refusal, Verdict},
    transmission::Transmission,
};
use crate::{
    base::limits::CONNECTION_BYTES_MAX,
    node::request::{ReplyData, VolumeError, VolumeService},
    serve::turn::{Next, Pace, Patience, Ran, Turn},
};
use std::time::Duration;
use twinlog_device::{ConnectionId, ConnectionState, Nanos, Network};

/// Longest handshake: a person at a protocol shell has time to type.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Longest handshake of a client that is refused.
const HANDSHAKE_REFUSED: Duration = Duration::from_secs(5);

/// Steps of one turn; a step takes one option, one request, or what has arrived of one payload.
const STEPS_PER_TURN: usize = 64;

#[derive(Debug)]
enum Phase {
    Negotiating(Negotiation),
    Transmitting(Transmission),
    /// The client has said farewell.
    Over,
}

/// A session.
#[derive(Debug)]
pub(in crate::serve) struct Session {
    phase: Phase,
    refused: bool,
    opened_at: Nanos,
    patience: Patience,
    /// The last step could go on only with more input.
    starved: bool,
}

impl Session {
    /// Greets a client. With `refused` it is over the limit of connections, and told so.
    pub(in crate::serve) fn new<N: Network>(net: &mut N, connection: ConnectionId, refused: bool, now: Nanos) -> Self {
        net.send(connection, &greeting());
        Self {
            phase: Phase::Negotiating(Negotiation::new(refused.then_some(Refusal::Full))),
            refused,
            opened_at: now,
            patience: Patience::new(now),
            starved: false,
        }
    }

    /// Refuses everything from now on.
    pub(in crate::serve) fn stop(&mut self) {
        if let Phase::Negotiating(negotiation) = &mut self.phase {
            negotiation.refuse(Refusal::Stopping);
        }
    }

    /// Takes up to [`STEPS_PER_TURN`] steps.
    pub(in crate::serve) fn run<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, now: Nanos) -> Ran {
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
                    self.patience.renew(now);
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

    /// Whether the last step could go on only with more input.
    pub(in crate::serve) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Takes the engine's reply to a request of this session.
    pub(in crate::serve) fn deliver<N: Network, S: VolumeService>(
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
    pub(in crate::serve) fn is_overdue<N: Network>(
        &mut self,
        net: &N,
        connection: ConnectionId,
        now: Nanos,
        pressed: bool,
    ) -> bool {
        self.patience.look(net.unsent_bytes(connection), now);
        let Phase::Transmitting(transmission) = &self.phase else {
            return now.since(self.opened_at) > if self.refused { HANDSHAKE_REFUSED } else { HANDSHAKE };
        };
        let half_sent = self.starved && transmission.has_part_of_request(net.input(connection));
        self.patience.is_over(half_sent, transmission.holds_blocks(), (now, pressed))
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
