//! The interconnect of a pair: one value at each node, which moves when it is polled.
//!
//! The node with the lesser name connects to each address of its partner; each address is a **path**, and a connection on it a
//! **channel**. Everything between the first channel that is open and the last one that is lost is a **session**.
//!
//! ```text
//! connecting node, per path:   Resting --due--> Connecting --> Greeting --> Proving --> Agreeing --> Open
//!                                 ^                 |              |           |           |          |
//!                                 +---- back-off ---+--- lost -----+-----------+-----------+----------+
//! listening node, per channel:                                 Greeting --> Proving --> Agreeing --> Open --> gone
//!
//! session:   down --first channel open: Up--> up --last channel lost: Down--> down
//! ```
//!
//! # Invariants
//!
//! 1. Nothing of a frame is delivered before its author has proved that it knows the pair's key, and both hellos agree.
//! 2. A frame is delivered at most once, and only within the session in which it was sent. The connecting node numbers sessions; the listening
//!    node ends its own when a new number arrives, and refuses one that it has ended.
//! 3. Frames of one lane arrive in the order in which they were sent, as long as no [`Event::PathDown`] intervenes; so do asks, states
//!    of pools and notices. Requests and replies have no order.
//! 4. When a node has reported [`Event::PathDown`], nothing that it sent on that path is delivered after anything that it sends from then
//!    on: the partner closes the path before it takes the next frame ([`Message::PathClosed`]), which every channel that is open carries at
//!    once, and one that opens later before anything else. So what may have been lost can be sent again.
//! 5. Everything is bounded: unsent bytes per channel, channels of strangers and what they can send, frames per turn, events.
//! 6. Time in which nobody looked is nobody's silence: a node that was stopped for a while does not blame its partner.
//!
//! # What happens when
//!
//! | what | then |
//! |---|---|
//! | one of two paths dies | `PathDown`; lanes that were bound to it are free, acknowledgements are repeated on the other one |
//! | a path opens for one node alone, and is lost | `PathDown` at the other one too, when it hears of that: what was sent on it never arrived |
//! | nothing is heard on a path for [`Timing::silence`] | it is closed |
//! | the partner restarts, or loses all paths | `Down`, then `Up` with a new session |
//! | key, names, pair, configuration, pools or version differ | refused by name, at both nodes; tried again at the longest interval |
//! | strangers connect | they may say hello, up to [`HANDSHAKES_MAX`] of them at a time, for [`Timing::handshake`]; what they say ends nothing, and while a session is up nobody hears of it |
//! | the layer above takes few frames, or none | the others wait, and the partner is slowed down; it stays alive |

mod agree;
mod channel;
mod dial;
mod flows;
mod session;
mod status;

pub use status::{LinkStatus, PathPhase, PathStatus};

use super::{
    auth::PairKey,
    wire::{Ack, FrameError, Hello, Kind, Message, Outgoing, PoolFacts, Refusal, Role},
};
use crate::base::{Epoch, Incarnation, PairId, PoolId, Prng};
use channel::{Arrived, Channel};
use dial::Dial;
use flows::{Acks, Flows};
use session::Session;
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};
use thiserror::Error;
use twinlog_device::{ConnectionFailure, ConnectionId, Lent, Nanos, NetAddress, Network, SharedBlock};

/// Paths between two nodes.
pub const PATHS_MAX: usize = 4;

/// Connections that may be saying hello at the same time: twice the paths, for the partner's old and new ones.
pub const HANDSHAKES_MAX: usize = 2 * PATHS_MAX;

/// Connections that the listening node's network takes. Those that were refused linger for some seconds: they shall not keep the partner out.
pub const CONNECTIONS_MAX: usize = 16 * HANDSHAKES_MAX;

/// Bytes that may wait for the kernel on one channel: with them on their way, the partner is busy for some milliseconds on any network.
pub const UNSENT_BYTES_MAX: usize = 4 << 20;

/// Frames that one turn takes.
const FRAMES_PER_TURN: usize = 256;

/// Events that may wait for the caller before nothing more is looked at.
const EVENTS_MAX: usize = 256;

/// How long an interconnect waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats on a path.
    pub heartbeat: Duration,
    /// A path on which nothing is heard for so long is closed.
    pub silence: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// From then on for hello, proof and welcome.
    pub handshake: Duration,
    /// Between two attempts to connect: the first, and the longest. Each is twice the one before; half of it is drawn.
    pub retry: [Duration; 2],
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            silence: Duration::from_secs(1),
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            retry: [Duration::from_millis(100), Duration::from_secs(3)],
        }
    }
}

/// What a node knows of its pair.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Its own name.
    pub name: String,
    /// Its partner's: the lesser of both connects.
    pub partner: String,
    /// Which pair.
    pub pair: PairId,
    /// What only the two of them know.
    pub key: PairKey,
    /// Checksum of everything that both must have configured alike.
    pub configuration: u64,
    /// This life of the process.
    pub incarnation: Incarnation,
    /// Every pool of the pair, with this node's portion of it.
    pub pools: Vec<PoolFacts>,
    /// The partner's addresses, one for each path, the same order at all times; for the node that connects.
    pub addresses: Vec<NetAddress>,
    /// How long it waits for what.
    pub timing: Timing,
}

/// Why a path was lost.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Loss {
    /// Nothing came, or no answer.
    #[error("nothing was heard for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The partner has closed it.
    #[error("the other node has closed the connection")]
    Ended,
    /// The network has failed.
    #[error("{0}")]
    Broken(ConnectionFailure),
    /// Bytes that are no frame.
    #[error("{0}")]
    Damaged(FrameError),
    /// A frame at the wrong time.
    #[error("a {0:?} came where none may")]
    Unexpected(Kind),
    /// The partner cannot use it any more.
    #[error("the other node has lost this path")]
    GivenUp,
    /// The partner has connected on this path again.
    #[error("the other node has connected again")]
    Replaced,
    /// The session is over for the partner.
    #[error("the other node has begun a new session")]
    SessionOver,
    /// The partner's process is another one.
    #[error("the other node has started again")]
    Restarted,
    /// One of the nodes does not go on.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// This node stops.
    #[error("this node stops")]
    Stopping,
}

/// What the layer above hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session begins: the partner's hello. What was said in an earlier one is forgotten by both.
    Up(Box<Hello>),
    /// A path of the session can be used.
    PathUp {
        /// Which.
        path: u8,
    },
    /// A path was lost. What was sent on it and is not acknowledged may not have arrived: send it again, from what acknowledgements say.
    PathDown {
        /// Which.
        path: u8,
        /// Why.
        loss: Loss,
    },
    /// The session has ended: no path is left.
    Down {
        /// Why the last one was lost.
        loss: Loss,
    },
    /// The nodes do not go on with each other; told once until the reason changes or a session begins, at most every
    /// [`Timing::retry`].
    Refused {
        /// It is the other node that refuses.
        by_partner: bool,
        /// Why.
        refusal: Refusal,
    },
    /// A mirrored lane has come so far at the partner.
    Acknowledged(Ack),
    /// A frame; [`Link::payload`] has the bytes that belong to it, until the next call that changes anything.
    Frame {
        /// The path that it came on.
        path: u8,
        /// The pool that it is about.
        pool: PoolId,
        /// The epoch at which the partner has that pool.
        epoch: Epoch,
        /// What it says.
        message: Message,
    },
}

/// A frame that the caller has.
#[derive(Clone, Copy, Debug)]
struct Delivered {
    connection: ConnectionId,
    frame_bytes: usize,
    payload_bytes: usize,
}

/// Part of a payload to be sent.
#[derive(Clone, Debug)]
pub enum PayloadPart<'a> {
    /// Copied.
    Bytes(&'a [u8]),
    /// Sent where they lie.
    Shared(&'a Arc<Vec<u8>>, Range<usize>),
    /// Part of a block, sent where it lies.
    Block(&'a SharedBlock, Range<usize>),
}

impl PayloadPart<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(bytes, range) => &bytes[range.clone()],
            Self::Block(block, range) => &block[range.clone()],
        }
    }
}

/// A frame was not sent: no path is open, or the one that it must take, or every one, has [`UNSENT_BYTES_MAX`] waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the interconnect has no room for a frame")]
pub struct NoRoom;

/// The interconnect of one node.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    role: Role,
    prng: Prng,
    now: Nanos,
    channels: Vec<Channel>,
    /// Of the connecting node: one for each path.
    dials: Vec<Dial>,
    session: Option<Session>,
    /// Of the connecting node: the session that is, or is to begin.
    session_number: u64,
    /// Of the listening node: the last session that has ended.
    ended: Option<Session>,
    connection_count: u64,
    challenge_count: u64,
    flows: Flows,
    acks: Acks,
    /// The newest channel of each path that this session has lost; zero: none.
    lost: [u64; PATHS_MAX],
    events: VecDeque<Event>,
    /// The frame that the caller has: gone with the next call.
    delivered: Option<Delivered>,
    /// Channel that is looked at first.
    cursor: usize,
    /// Frames that this turn may still take.
    budget: usize,
    history: status::History,
    is_stopped: bool,
    /// Grows with everything that is done.
    activity: u64,
    scratch: Vec<u8>,
    ready: Vec<ConnectionId>,
    taken_acks: Vec<Ack>,
}

impl Link {
    /// An interconnect that has not begun. `prng` is seeded by chance, except in simulations.
    ///
    /// # Panics
    /// When both nodes have the same name, there are too many paths, or silence is shorter than four heartbeats.
    #[must_use]
    pub fn new(config: LinkConfig, prng: Prng, now: Nanos) -> Self {
        assert_ne!(config.name, config.partner, "the nodes of a pair have different names");
        assert!(config.addresses.len() <= PATHS_MAX, "at most {PATHS_MAX} paths");
        assert!(
            config.timing.heartbeat * 4 <= config.timing.silence,
            "a path has several heartbeats' time to be heard"
        );
        let role = if config.name < config.partner { Role::Connects } else { Role::Listens };
        let dials = match role {
            Role::Connects => Dial::each(&config.addresses, &config.timing, now),
            Role::Listens => Vec::new(),
        };
        Self {
            history: status::History::new(&config, role),
            config,
            role,
            prng,
            now,
            channels: Vec::new(),
            dials,
            session: None,
            session_number: 1,
            ended: None,
            connection_count: 0,
            challenge_count: 0,
            flows: Flows::default(),
            acks: Acks::default(),
            lost: [0; PATHS_MAX],
            events: VecDeque::new(),
            delivered: None,
            cursor: 0,
            budget: 0,
            is_stopped: false,
            activity: 0,
            scratch: Vec::new(),
            ready: Vec::new(),
            taken_acks: Vec::new(),
        }
    }

    /// Does one bounded turn: looks after connections and time, and sends what is due. The caller then takes every
    /// [event](Self::next_event). `net` belongs to this link alone. Returns whether anything was done.
    pub fn poll<N: Network>(&mut self, net: &mut N, now: Nanos) -> bool {
        self.finish_delivery(net);
        self.excuse(now);
        self.budget = FRAMES_PER_TURN;
        let before = self.activity;
        net.poll(&mut self.ready);
        self.activity += self.ready.len() as u64;
        self.ready.clear();
        if self.events.len() < EVENTS_MAX {
            self.accept(net);
            self.look(net);
            self.dial(net);
        }
        self.beat(net);
        self.flush(net);
        self.activity != before
    }

    /// Counts time in which nobody looked for nobody (invariant 6).
    fn excuse(&mut self, now: Nanos) {
        let unseen = now.since(self.now);
        // While a channel is open, a caller that is well comes back for its heartbeats.
        if unseen > self.config.timing.silence / 2 {
            self.channels.iter_mut().for_each(|channel| channel.heard_at = channel.heard_at + unseen);
        }
        self.now = now;
    }

    /// The next thing that has happened. `None`: nothing more before the next [`poll`](Self::poll).
    pub fn next_event<N: Network>(&mut self, net: &mut N) -> Option<Event> {
        self.finish_delivery(net);
        let (connection, frame) = loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let connection = self.next_ready(net)?;
            if let Some(frame) = self.take_frame(net, connection) {
                break (connection, frame);
            }
        };
        let Arrived { pool, epoch, message, frame_bytes, payload_bytes, .. } = frame;
        self.delivered = Some(Delivered { connection, frame_bytes, payload_bytes });
        let path = self.channel(connection).map_or(0, |channel| channel.path);
        Some(Event::Frame { path, pool, epoch, message })
    }

    /// The bytes that belong to the frame that was just given, where they were received.
    #[must_use]
    pub fn payload<'a, N: Network>(&self, net: &'a N) -> &'a [u8] {
        let Some(Delivered { connection, frame_bytes, payload_bytes }) = self.delivered else { return &[] };
        &net.input(connection)[frame_bytes - payload_bytes..frame_bytes]
    }

    /// The same bytes, for longer than until the next call.
    #[must_use]
    pub fn lend<N: Network>(&self, net: &N) -> Lent {
        let Some(Delivered { connection, frame_bytes, payload_bytes }) = self.delivered else { return Lent::new([]) };
        net.lend(connection, frame_bytes - payload_bytes..frame_bytes)
    }

    fn finish_delivery<N: Network>(&mut self, net: &mut N) {
        if let Some(delivered) = self.delivered.take()
            && let Some(channel) = self.channel_mut(delivered.connection)
        {
            channel.consume(net, delivered.frame_bytes);
        }
    }

    /// Whether [`send`](Self::send) would take such a frame now.
    #[must_use]
    pub fn has_room<N: Network>(&self, net: &N, pool: PoolId, message: &Message) -> bool {
        self.channel_for(net, pool, message).is_some()
    }

    /// Sends a frame about a pool, at the epoch at which this node has it. Acknowledgements that wait ride on it.
    ///
    /// # Errors
    /// When there is no room: the caller keeps it.
    ///
    /// # Panics
    /// When the message is one of the link's own.
    pub fn send<N: Network>(
        &mut self,
        net: &mut N,
        (pool, epoch): (PoolId, Epoch),
        message: &Message,
        payload: &[PayloadPart<'_>],
    ) -> Result<(), NoRoom> {
        assert!(message.kind().names_pool(), "{:?} is the link's own", message.kind());
        let index = self.channel_for(net, pool, message).ok_or(NoRoom)?;
        let bytes: Vec<&[u8]> = payload.iter().map(PayloadPart::bytes).collect();
        self.acks.take(&mut self.taken_acks);
        let outgoing = Outgoing { pool, epoch, acks: &self.taken_acks, message };
        let channel = &mut self.channels[index];
        channel.send_frame(net, &outgoing, &bytes, &mut self.scratch);
        self.flows.note_sent((pool, epoch), message, channel.number);
        let connection = channel.connection;
        for part in payload {
            match part {
                PayloadPart::Bytes(bytes) => net.send(connection, bytes),
                PayloadPart::Shared(bytes, range) => net.send_shared(connection, bytes, range.clone()),
                PayloadPart::Block(block, range) => net.send_block(connection, block, range.clone()),
            }
        }
        Ok(())
    }

    /// Tells the partner how far a lane is durable here: with the next frame, or by [`flush`](Self::flush). The newest of each lane
    /// is repeated when a path is lost. Without a session it goes nowhere: a new one begins with new positions.
    pub fn acknowledge(&mut self, ack: Ack) {
        if self.session.is_some() {
            self.acks.put(ack);
        }
    }

    /// Sends acknowledgements that wait: before the machine's turn, so that they do not wait for the next one.
    pub fn flush<N: Network>(&mut self, net: &mut N) {
        while self.acks.are_waiting() {
            let Some(index) = self.best_channel(net) else { return };
            if net.unsent_bytes(self.channels[index].connection) >= 2 * UNSENT_BYTES_MAX {
                return;
            }
            self.acks.take(&mut self.taken_acks);
            let (pool, epoch) = (PoolId(0), Epoch(0));
            let outgoing = Outgoing { pool, epoch, acks: &self.taken_acks, message: &Message::Acknowledgement };
            self.channels[index].send_frame(net, &outgoing, &[], &mut self.scratch);
        }
    }

    /// The open channel with the least to send, and among equals the fastest.
    fn best_channel<N: Network>(&self, net: &N) -> Option<usize> {
        let open = self.channels.iter().enumerate().filter(|(_, channel)| channel.is_open());
        let cost = |channel: &Channel| (net.unsent_bytes(channel.connection), channel.round_trip, channel.path);
        open.min_by_key(|(_, channel)| cost(channel)).map(|(index, _)| index)
    }

    /// Bytes that wait on the channel with the fewest of them; `None`: no channel is open.
    #[must_use]
    pub fn unsent_bytes<N: Network>(&self, net: &N) -> Option<usize> {
        self.best_channel(net).map(|index| net.unsent_bytes(self.channels[index].connection))
    }

    /// The channel that a message takes, if it has room.
    fn channel_for<N: Network>(&self, net: &N, pool: PoolId, message: &Message) -> Option<usize> {
        let index = match self.flows.bound_to(pool, message) {
            Some(number) => self.channels.iter().position(|channel| channel.is_open() && channel.number == number)?,
            None => self.best_channel(net)?,
        };
        (net.unsent_bytes(self.channels[index].connection) < UNSENT_BYTES_MAX).then_some(index)
    }

    /// When [`poll`](Self::poll) has something to do even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let timing = &self.config.timing;
        let of_channel = |channel: &Channel| match channel.phase {
            channel::Phase::Connecting => channel.opened_at + timing.connect,
            channel::Phase::Open => channel.beat_due.min(channel.heard_at + timing.silence),
            _ => channel.opened_at + timing.handshake,
        };
        let dials = self.dials.iter().filter(|_| !self.is_stopped).filter_map(Dial::due);
        self.channels.iter().map(of_channel).chain(dials).min()
    }

    /// Says farewell on every path and connects no more.
    pub fn stop<N: Network>(&mut self, net: &mut N) {
        self.is_stopped = true;
        self.leave(net);
    }

    /// Whether a session is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// The number of the session that is up: the same at both nodes.
    #[must_use]
    pub fn session(&self) -> Option<u64> {
        self.session.map(|session| session.number)
    }

    fn channel(&self, connection: ConnectionId) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.connection == connection)
    }

    fn channel_mut(&mut self, connection: ConnectionId) -> Option<&mut Channel> {
        self.channels.iter_mut().find(|channel| channel.connection == connection)
    }
}

#[cfg(test)]
mod tests;
