//! The engine's end of one connection.

use super::{
    path::{Answer, PathState},
    stream::{End, SharedStream, Side, Stream, carry},
};
use crate::world::Agenda;
use std::{collections::VecDeque, time::Duration};
use twinlog_device::{BlockBuf, ConnectionFailure, ConnectionState, Landing, Nanos, Prng};

/// Bytes of input that wait for the engine, unless it asks for more.
const INPUT_BYTES: usize = 128 * 1024;

/// Longest time that a piece of a client's stream is on its way, in nanoseconds.
const LATENCY_MAX_NS: u64 = 20_000;

/// How long a machine tries to connect: Linux gives up after six repetitions, 127 seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(127);

/// How long a node that has closed waits for the other end: as `twinlog-uring` does.
const LINGERING_LIMIT: Duration = Duration::from_secs(2);

/// What moves bytes: when, and how many at once.
pub(super) struct Hands<'a> {
    agenda: &'a Agenda,
    prng: &'a mut Prng,
}

impl<'a> Hands<'a> {
    pub(super) fn new(agenda: &'a Agenda, prng: &'a mut Prng) -> Self {
        Self { agenda, prng }
    }

    fn now(&self) -> Nanos {
        self.agenda.world().now()
    }

    /// Whether the next piece has arrived; otherwise it is on its way from now on, and the reactor will wake for it.
    fn has_arrived(&mut self, due: &mut Option<Nanos>, path: Option<&PathState>) -> bool {
        let now = self.now();
        match *due {
            Some(at) if at <= now => {
                *due = None;
                true
            }
            Some(_) => false,
            None => {
                let at = Nanos(now.0 + self.latency_ns(path));
                *due = Some(at);
                self.agenda.at(at);
                false
            }
        }
    }

    fn latency_ns(&mut self, path: Option<&PathState>) -> u64 {
        let Some(path) = path else { return self.prng.between(1, LATENCY_MAX_NS) };
        let plan = path.plan.get();
        let latency_ns = self.prng.between(plan.latency_ns[0], plan.latency_ns[1]);
        if plan.lost_one_in == 0 || !self.prng.chance(1, plan.lost_one_in) {
            return latency_ns;
        }
        path.count(|counts| counts.lost += 1);
        latency_ns + self.prng.below(plan.resent_after_ns_max + 1)
    }

    /// Length of the next piece of at most `maximum` bytes: often all, sometimes a few, never none.
    fn piece(&mut self, maximum: usize) -> usize {
        match self.prng.below(8) {
            0 => 1,
            1 => usize::try_from(self.prng.between(1, maximum.min(64) as u64)).expect("below a usize"),
            2 => usize::try_from(self.prng.between(1, maximum as u64)).expect("below a usize"),
            _ => maximum,
        }
    }

    /// Whether the connection breaks with the piece that arrives now.
    fn breaks(&mut self, path: Option<&PathState>) -> bool {
        path.is_some_and(|path| {
            let one_in = path.plan.get().broken_one_in;
            one_in > 0 && self.prng.chance(1, one_in)
        })
    }
}

/// The engine's end.
pub(super) struct Connection {
    stream: SharedStream,
    side: Side,
    input: Vec<u8>,
    consumed: usize,
    received_bytes: u64,
    /// Where what arrives next goes.
    landing: Option<Landing>,
    input_bytes_max: usize,
    unsent: VecDeque<u8>,
    state: ConnectionState,
    failure: Option<ConnectionFailure>,
    /// When it was asked for.
    began: Nanos,
    /// When the next pieces arrive, if any are on their way; while connecting, the answer.
    input_due: Option<Nanos>,
    output_due: Option<Nanos>,
    /// When a connection that is closed ends in any case.
    lingers_until: Option<Nanos>,
}

impl Connection {
    pub(super) fn accepted(stream: SharedStream) -> Self {
        Self {
            stream,
            side: Side::Listening,
            input: Vec::new(),
            consumed: 0,
            received_bytes: 0,
            landing: None,
            input_bytes_max: INPUT_BYTES,
            unsent: VecDeque::new(),
            state: ConnectionState::Open,
            failure: None,
            began: Nanos(0),
            input_due: None,
            output_due: None,
            lingers_until: None,
        }
    }

    pub(super) fn connecting(stream: SharedStream, now: Nanos) -> Self {
        let state = ConnectionState::Connecting;
        Self { side: Side::Connecting, state, began: now, ..Self::accepted(stream) }
    }

    pub(super) fn stream(&self) -> &SharedStream {
        &self.stream
    }

    pub(super) fn side(&self) -> Side {
        self.side
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.state
    }

    pub(super) fn failure(&self) -> Option<ConnectionFailure> {
        self.failure
    }

    pub(super) fn input(&self) -> &[u8] {
        &self.input[self.consumed..]
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// What has been sent counts as arrived.
    pub(super) fn unread_bytes(&self) -> u64 {
        match self.state {
            ConnectionState::Failed => 0,
            _ => self.stream.borrow_mut().sent_by(self.side.other()).bytes.len() as u64,
        }
    }

    pub(super) fn widen_input(&mut self, count: usize) {
        self.input_bytes_max = self.input_bytes_max.max(count);
    }

    /// Drops input; whether there is more to come.
    pub(super) fn consume(&mut self, count: usize) -> bool {
        self.consumed += count;
        assert!(self.consumed <= self.input.len(), "only what has arrived can be consumed");
        if self.consumed == self.input.len() {
            self.input.clear();
            self.consumed = 0;
        }
        !self.stream.borrow_mut().sent_by(self.side.other()).bytes.is_empty()
    }

    /// Has what arrives next go into blocks, if all that has arrived was consumed and more can come.
    pub(super) fn land(&mut self, landing: Landing) -> Result<(), Landing> {
        assert!(self.input().is_empty() && self.landing.is_none(), "one landing at a time, behind the input");
        if self.state != ConnectionState::Open {
            return Err(landing);
        }
        self.landing = Some(landing);
        Ok(())
    }

    pub(super) fn landed_bytes(&self) -> usize {
        self.landing.as_ref().map_or(0, Landing::landed_bytes)
    }

    pub(super) fn take_landed(&mut self) -> Option<Vec<BlockBuf>> {
        self.landing.take_if(|landing| landing.left_bytes() == 0).map(Landing::into_blocks)
    }

    /// Takes bytes to be sent; whether anybody may get them.
    pub(super) fn queue(&mut self, bytes: &[u8]) -> bool {
        let has_not_failed = self.state != ConnectionState::Failed;
        if has_not_failed {
            self.unsent.extend(bytes);
        }
        has_not_failed
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// Brings a connection forward that is being closed: once nothing is left to send its other end learns so. Between nodes the end lingers
    /// until the other one leaves too, or for a while: whoever closes with unread input would have the last words lost. Returns whether it is gone.
    pub(super) fn proceed_closing(&mut self, agenda: &Agenda) -> bool {
        let has_failed = self.state == ConnectionState::Failed;
        if !has_failed && !self.unsent.is_empty() {
            return false;
        }
        self.input.clear();
        self.consumed = 0;
        self.landing = None;
        let now = agenda.world().now();
        let stream = self.stream.clone();
        let mut stream = stream.borrow_mut();
        if stream.path.is_some() && !has_failed {
            stream.leave(self.side, End::Ended);
            let until = *self.lingers_until.get_or_insert_with(|| {
                agenda.at(now + LINGERING_LIMIT);
                now + LINGERING_LIMIT
            });
            if now < until && stream.end(self.side.other()) == End::Open {
                return false;
            }
        }
        stream.leave(self.side, End::Gone);
        true
    }

    /// Moves what has arrived; returns whether the engine should look.
    pub(super) fn pump(&mut self, hands: &mut Hands) -> bool {
        match self.state {
            ConnectionState::Failed => return false,
            ConnectionState::Connecting => return self.pump_connecting(hands),
            ConnectionState::Open | ConnectionState::InputEnded => {}
        }
        if self.is_quiet() {
            return false;
        }
        let stream = self.stream.clone();
        let stream = &mut *stream.borrow_mut();
        if self.meets_reset(stream, hands) {
            self.fail(ConnectionFailure::Reset);
            return true;
        }
        let mut is_ready = self.pump_input(stream, hands);
        is_ready |= self.pump_output(stream, hands);
        // Whatever can still move puts its next piece on the way, or a reactor that waits would not come back for it.
        if self.state != ConnectionState::Failed {
            let path = stream.path.clone();
            if self.input_due.is_none() && self.arriving_bytes(stream) > 0 {
                hands.has_arrived(&mut self.input_due, path.as_deref());
            }
            if self.output_due.is_none() && self.leaving_bytes(stream) > 0 {
                hands.has_arrived(&mut self.output_due, path.as_deref());
            }
        }
        is_ready
    }

    /// Whether both ends are there and nothing is on its way: then nothing can move.
    fn is_quiet(&self) -> bool {
        let (mut stream, peer) = (self.stream.borrow_mut(), self.side.other());
        self.unsent.is_empty()
            && stream.end(peer) == End::Open
            && stream.sent_by(peer).bytes.is_empty()
            && stream.sent_by(self.side).unacknowledged_bytes == 0
    }

    fn pump_connecting(&mut self, hands: &mut Hands) -> bool {
        let path = self.stream.borrow().path.clone();
        if !hands.has_arrived(&mut self.input_due, path.as_deref()) {
            return false;
        }
        match path.map_or(Answer::Refused, |path| path.answer(&self.stream)) {
            Answer::Listening => self.state = ConnectionState::Open,
            Answer::Refused => self.fail(ConnectionFailure::Refused),
            Answer::Silence if hands.now().since(self.began) >= CONNECT_LIMIT => {
                self.fail(ConnectionFailure::TimedOut);
            }
            Answer::Silence => {
                // Tried again after a second, as the kernel does at first.
                let at = hands.now() + Duration::from_secs(1);
                self.input_due = Some(at);
                hands.agenda.at(at);
                return false;
            }
        }
        true
    }

    /// Whether the other end, or its machine, says now that the connection is no more.
    fn meets_reset(&mut self, stream: &mut Stream, hands: &mut Hands) -> bool {
        let peer = self.side.other();
        if !stream.passes_from(peer) {
            return false;
        }
        let is_reset = match stream.end(peer) {
            End::Reset => true,
            // A machine that has started again knows nothing of the connection, and says so when something comes.
            End::Dark => {
                let is_asked = !stream.sent_by(self.side).bytes.is_empty() && stream.passes_from(self.side);
                is_asked && stream.has_restarted(peer)
            }
            End::Open | End::Ended | End::Gone => false,
        };
        is_reset && hands.has_arrived(&mut self.input_due, stream.path.clone().as_deref())
    }

    fn pump_input(&mut self, stream: &mut Stream, hands: &mut Hands) -> bool {
        let (peer, path) = (self.side.other(), stream.path.clone());
        let mut is_ready = false;
        let piece = self.arriving_bytes(stream);
        if piece > 0 && hands.has_arrived(&mut self.input_due, path.as_deref()) {
            if hands.breaks(path.as_deref()) {
                path.as_ref().expect("only paths break").break_apart(stream);
            }
            self.input.drain(..self.consumed);
            self.consumed = 0;
            let is_heard = stream.passes_from(self.side);
            let pipe = stream.sent_by(peer);
            let count = hands.piece(piece);
            carry(&mut pipe.bytes, count, |bytes| {
                let rest = self.landing.as_mut().map_or(bytes, |landing| landing.fill(bytes));
                self.input.extend_from_slice(rest);
            });
            self.received_bytes += count as u64;
            pipe.unacknowledged_bytes = if is_heard { 0 } else { pipe.unacknowledged_bytes + count };
            if path.is_some() {
                // There is room again.
                stream.wake(peer);
            }
            is_ready = true;
        }
        let has_ended = !matches!(stream.end(peer), End::Open | End::Dark) && stream.passes_from(peer);
        if has_ended && stream.sent_by(peer).bytes.is_empty() && self.state == ConnectionState::Open {
            self.state = ConnectionState::InputEnded;
            is_ready = true;
        }
        is_ready
    }

    fn pump_output(&mut self, stream: &mut Stream, hands: &mut Hands) -> bool {
        let (peer, path) = (self.side.other(), stream.path.clone());
        if stream.passes_from(peer) {
            // What was taken is acknowledged at the latest now.
            stream.sent_by(self.side).unacknowledged_bytes = 0;
        }
        let piece = self.leaving_bytes(stream);
        if piece == 0 || !hands.has_arrived(&mut self.output_due, path.as_deref()) {
            return false;
        }
        let is_answered = stream.passes_from(self.side) && stream.passes_from(peer);
        if stream.end(peer) == End::Gone && is_answered {
            self.fail(ConnectionFailure::Reset);
            return true;
        }
        let pipe = stream.sent_by(self.side);
        carry(&mut self.unsent, hands.piece(piece), |bytes| pipe.bytes.extend(bytes));
        if path.is_some() {
            stream.wake(peer);
        }
        true
    }

    /// Bytes that can arrive now, if they are there.
    fn arriving_bytes(&self, stream: &mut Stream) -> usize {
        let peer = self.side.other();
        if !stream.passes_from(peer) {
            return 0;
        }
        let room = self.input_bytes_max.saturating_sub(self.input.len() - self.consumed);
        room.min(stream.sent_by(peer).bytes.len())
    }

    /// Bytes that the kernel takes now.
    fn leaving_bytes(&self, stream: &mut Stream) -> usize {
        self.unsent.len().min(stream.sent_by(self.side).room())
    }

    fn fail(&mut self, failure: ConnectionFailure) {
        self.state = ConnectionState::Failed;
        self.failure = Some(failure);
        self.unsent.clear();
    }
}
