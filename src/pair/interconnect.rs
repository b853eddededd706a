//! What the two nodes of a pair tell each other, and what an interconnect must do with it.
//!
//! # Contract of [`Interconnect`]
//!
//! 1. `Up` comes when the partner has been recognised, `Down` when no path to it is left; messages come between them only.
//! 2. Messages arrive whole and at most once. Those of one lane arrive in the order in which they were sent as long as no path is lost; so do
//!    the words, asks, refusals and notices about one pool. Between these there is no order: each says all that its reader must know.
//! 3. What was sent before `Down`, or on a path that is lost, may or may not have arrived. Whoever must know says it again.
//! 4. Memory is bounded: no batch is sent while `has_room` is false. Everything else waits once: a later word, acknowledgement or refusal takes
//!    the place of the one before.
//! 5. Requests, their replies and notices are sent only while `has_room_to_forward`, which leaves room for batches: those hold up every client of the
//!    pool. Requests and replies keep no order, neither among each other nor with other messages.

use crate::{
    base::{Epoch, Incarnation, LaneIndex, Lsn, PoolId, PortionId},
    pair::{
        decide::Word,
        wire::{Ack, MirrorRefusal, Notices, Reply, Request, Volumes},
    },
};
use std::{sync::Arc, time::Duration};
use twinlog_device::Nanos;

/// What a node says of a pool, again whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolWord {
    /// Which pool.
    pub pool: PoolId,
    /// What the sender does with it.
    pub word: Word,
    /// The epoch of the register that the sender has read.
    pub epoch: Epoch,
    /// The sender's portion, if it has one.
    pub portion: Option<PortionId>,
    /// What each lane of its mirror expects next; empty unless the sender mirrors the pool.
    pub expected: Vec<Option<Lsn>>,
}

/// A message to the partner, or from it: then the bytes that belong to it are borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<B = Arc<Vec<u8>>> {
    /// What the sender does with a pool.
    Word(PoolWord),
    /// A lane's mirror begins anew.
    Begin {
        /// Which pool.
        pool: PoolId,
        /// Which lane.
        lane: LaneIndex,
        /// The owner's epoch.
        epoch: Epoch,
        /// First position.
        start: Lsn,
    },
    /// A batch of a lane.
    Write {
        /// Which pool.
        pool: PoolId,
        /// Which lane.
        lane: LaneIndex,
        /// The owner's epoch.
        epoch: Epoch,
        /// First position.
        start: Lsn,
        /// Position after the last record.
        end: Lsn,
        /// The records.
        bytes: B,
    },
    /// How far a lane of the sender's mirror is.
    Mirrored(Ack),
    /// The sender's mirror did not take something.
    Refused {
        /// Which pool.
        pool: PoolId,
        /// The highest epoch that the sender knows of.
        epoch: Epoch,
        /// Which lane, and why.
        refusal: MirrorRefusal,
    },
    /// Hand the pool over.
    Ask {
        /// Which pool.
        pool: PoolId,
        /// The epoch of the register that the sender has read.
        epoch: Epoch,
    },
    /// Volumes of a pool that the sender serves.
    Volumes {
        /// Which pool.
        pool: PoolId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The list, or a part of it.
        list: Volumes,
    },
    /// A request to the owner of a pool.
    Request {
        /// Which pool.
        pool: PoolId,
        /// The epoch in which the receiver has said that it serves the pool.
        epoch: Epoch,
        /// What is asked for.
        request: Request,
        /// The bytes of a write.
        bytes: B,
    },
    /// The end of such a request.
    Reply {
        /// Which pool.
        pool: PoolId,
        /// The epoch of the request.
        epoch: Epoch,
        /// What came of it.
        reply: Reply,
        /// Its payload.
        bytes: B,
    },
    /// What the receiver's hosts are to be told of reservations.
    Notices {
        /// Of which pool.
        pool: PoolId,
        /// Its epoch, as far as the sender knows.
        epoch: Epoch,
        /// What.
        notices: Notices,
    },
}

impl<B> Message<B> {
    /// The pool that it is about.
    #[must_use]
    pub fn pool(&self) -> PoolId {
        match self {
            Self::Word(word) => word.pool,
            Self::Begin { pool, .. }
            | Self::Write { pool, .. }
            | Self::Mirrored(Ack { pool, .. })
            | Self::Refused { pool, .. }
            | Self::Ask { pool, .. }
            | Self::Volumes { pool, .. }
            | Self::Request { pool, .. }
            | Self::Reply { pool, .. }
            | Self::Notices { pool, .. } => *pool,
        }
    }

    /// The same with other bytes.
    pub fn map<C>(self, change: impl FnOnce(B) -> C) -> Message<C> {
        match self {
            Self::Word(word) => Message::Word(word),
            Self::Begin { pool, lane, epoch, start } => Message::Begin { pool, lane, epoch, start },
            Self::Write { pool, lane, epoch, start, end, bytes } => {
                Message::Write { pool, lane, epoch, start, end, bytes: change(bytes) }
            }
            Self::Mirrored(ack) => Message::Mirrored(ack),
            Self::Refused { pool, epoch, refusal } => Message::Refused { pool, epoch, refusal },
            Self::Ask { pool, epoch } => Message::Ask { pool, epoch },
            Self::Volumes { pool, epoch, list } => Message::Volumes { pool, epoch, list },
            Self::Request { pool, epoch, request, bytes } => {
                Message::Request { pool, epoch, request, bytes: change(bytes) }
            }
            Self::Reply { pool, epoch, reply, bytes } => Message::Reply { pool, epoch, reply, bytes: change(bytes) },
            Self::Notices { pool, epoch, notices } => Message::Notices { pool, epoch, notices },
        }
    }
}

/// The partner, as it says of itself when it is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Unit of stores of its log memory for each pool, in bytes.
    pub unit_bytes: Vec<(PoolId, u32)>,
}

/// What the interconnect tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The partner was recognised.
    Up(Partner),
    /// A path was lost and others are left: what was sent on it may not have arrived.
    PathLost,
    /// No path is left, for this reason.
    Down(String),
    /// The partner says something; the bytes lie where they were received.
    Message(Message<&'a [u8]>),
}

/// The state of the paths, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Those that work.
    pub up: usize,
    /// Those that are configured.
    pub all: usize,
    /// Newest round trip of a heartbeat.
    pub round_trip: Duration,
}

/// The way to the partner.
pub trait Interconnect {
    /// Goes on for one turn. Returns whether anything moved.
    fn poll(&mut self, now: Nanos) -> bool;

    /// The next thing to tell. `None`: nothing more before the next `poll`.
    fn next_event(&mut self) -> Option<Event<'_>>;

    /// Whether a further batch can be sent now.
    fn has_room(&self) -> bool;

    /// Whether a request, a reply to one, a list of volumes or notices can be sent now.
    fn has_room_to_forward(&self) -> bool {
        self.has_room()
    }

    /// Sends a message. While the interconnect is down it is dropped.
    fn send(&mut self, message: Message);

    /// Sends what waits for the next message, before the machine's turn.
    fn flush(&mut self);

    /// How the paths are.
    fn paths(&self) -> Paths;

    /// Why the nodes do not come together although they reach each other, and what mends it; none: nothing speaks against it.
    fn refusal(&self) -> Option<[String; 2]> {
        None
    }
}
