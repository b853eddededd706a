//! The interconnect as the controller uses it: messages about pools over a [`Link`] and the connections of this reactor.

use super::{
    interconnect::{Event, Interconnect, Message, Partner, Paths, PoolWord},
    link::{self, Link, PathPhase, PayloadPart},
    seam::Carrier,
    wire::{self, PoolState},
};
use crate::base::{Epoch, PoolId};
use std::collections::VecDeque;
use twinlog_device::{Lent, Nanos, Network};

/// Batches that wait for room before the caller is told to wait.
const WAITING_MAX: usize = 16;

/// Bytes that wait on a channel above which requests and replies are held back: the rest of what it takes is left to batches.
const FORWARD_UNSENT_MAX: usize = link::UNSENT_BYTES_MAX / 4;

/// The way to the partner over connections of this reactor.
pub struct LinkWay<N> {
    net: N,
    link: Link,
    /// What could not be sent yet, in order: batches, and of everything else the newest of each pool or lane.
    waiting: VecDeque<Message>,
}

impl<N: Network> LinkWay<N> {
    /// A way over `link`, which has `net` for itself.
    #[must_use]
    pub fn new(net: N, link: Link) -> Self {
        Self { net, link, waiting: VecDeque::new() }
    }

    /// What an event of the link means to the caller: an event without the bytes of a message; `None`: nothing.
    fn translate(&mut self, event: link::Event) -> Option<Translated> {
        match event {
            link::Event::Up(hello) => {
                let unit_bytes = hello.pools.iter().map(|facts| (facts.pool, facts.unit_bytes)).collect();
                Some(Translated::Up(Partner { incarnation: hello.incarnation, unit_bytes }))
            }
            link::Event::Down { loss } => {
                self.waiting.clear();
                Some(Translated::Down(loss.to_string()))
            }
            link::Event::PathUp { path } => {
                tracing::info!(path, "a path to the partner can be used");
                None
            }
            link::Event::PathDown { path, loss } => {
                tracing::warn!(path, %loss, "a path to the partner is lost");
                // As if it had been sent there: on another path it would come after what its sender says again.
                self.waiting.clear();
                Some(Translated::PathLost)
            }
            link::Event::Refused { by_partner, refusal } => {
                tracing::error!(by_partner, %refusal, "the nodes are no pair");
                None
            }
            link::Event::Acknowledged(ack) => Some(Translated::Message(Message::Mirrored(ack))),
            link::Event::Frame { pool, epoch, message, .. } => heard((pool, epoch), message).map(Translated::Message),
        }
    }

    /// Sends what waits, as far as there is room.
    fn send_waiting(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            if !self.try_send(&message) {
                return self.waiting.push_front(message);
            }
        }
    }

    /// Whether the message has gone.
    fn try_send(&mut self, message: &Message) -> bool {
        let (at, frame) = match message {
            Message::Word(word) => ((word.pool, word.epoch), wire::Message::PoolState(state_of(word))),
            Message::Begin { pool, lane, epoch, start } => {
                ((*pool, *epoch), wire::Message::MirrorBegin { lane: *lane, start: *start })
            }
            Message::Write { pool, lane, epoch, start, end, bytes } => {
                let frame = wire::Message::MirrorWrite { lane: *lane, start: *start, end: *end };
                let payload = [PayloadPart::Shared(bytes, 0..bytes.len())];
                return self.link.send(&mut self.net, (*pool, *epoch), &frame, &payload).is_ok();
            }
            Message::Mirrored(ack) => {
                self.link.acknowledge(*ack);
                return true;
            }
            Message::Refused { pool, epoch, refusal } => {
                ((*pool, *epoch), wire::Message::MirrorRefusal(refusal.clone()))
            }
            Message::Volumes { pool, epoch, list } => ((*pool, *epoch), wire::Message::Volumes(list.clone())),
            Message::Notices { pool, epoch, notices } => ((*pool, *epoch), wire::Message::Notices(notices.clone())),
            Message::Request { pool, epoch, request, bytes } => {
                let payload = [PayloadPart::Shared(bytes, 0..bytes.len())];
                let frame = wire::Message::Request(*request);
                return self.link.send(&mut self.net, (*pool, *epoch), &frame, &payload).is_ok();
            }
            Message::Reply { pool, epoch, reply, bytes } => {
                let payload = [PayloadPart::Shared(bytes, 0..bytes.len())];
                let frame = wire::Message::Reply(*reply);
                return self.link.send(&mut self.net, (*pool, *epoch), &frame, &payload).is_ok();
            }
            Message::Ask { pool, epoch } => ((*pool, *epoch), wire::Message::Ask),
        };
        self.link.send(&mut self.net, at, &frame, &[]).is_ok()
    }
}

/// An event whose bytes are still to be found.
enum Translated {
    Up(Partner),
    PathLost,
    Down(String),
    Message(Message<()>),
}

/// What a frame says, if this program has a use for it.
fn heard((pool, epoch): (PoolId, Epoch), message: wire::Message) -> Option<Message<()>> {
    match message {
        wire::Message::PoolState(PoolState { word, portion, expected }) => {
            Some(Message::Word(PoolWord { pool, word, epoch, portion, expected }))
        }
        wire::Message::MirrorBegin { lane, start } => Some(Message::Begin { pool, lane, epoch, start }),
        wire::Message::MirrorWrite { lane, start, end } => {
            Some(Message::Write { pool, lane, epoch, start, end, bytes: () })
        }
        wire::Message::MirrorRefusal(refusal) => Some(Message::Refused { pool, epoch, refusal }),
        wire::Message::Ask => Some(Message::Ask { pool, epoch }),
        wire::Message::Volumes(list) => Some(Message::Volumes { pool, epoch, list }),
        wire::Message::Request(request) => Some(Message::Request { pool, epoch, request, bytes: () }),
        wire::Message::Reply(reply) => Some(Message::Reply { pool, epoch, reply, bytes: () }),
        wire::Message::Notices(notices) => Some(Message::Notices { pool, epoch, notices }),
        other => {
            tracing::debug!(?other, "a frame that this program has no use for");
            None
        }
    }
}

/// A word as the frame says it.
fn state_of(word: &PoolWord) -> PoolState {
    PoolState { word: word.word, portion: word.portion, expected: word.expected.clone() }
}

/// Whether `newer` makes a message of the same kind that still waits superfluous.
pub(super) fn replaces(newer: &Message, waiting: &Message) -> bool {
    let is_same_kind = match (newer, waiting) {
        (Message::Refused { refusal: newer, .. }, Message::Refused { refusal: waiting, .. }) => {
            newer.lane == waiting.lane
        }
        (Message::Mirrored(newer), Message::Mirrored(waiting)) => newer.lane == waiting.lane,
        (Message::Word(_), Message::Word(_)) | (Message::Ask { .. }, Message::Ask { .. }) => true,
        _ => false,
    };
    is_same_kind && newer.pool() == waiting.pool()
}

impl<N: Network> Interconnect for LinkWay<N> {
    fn poll(&mut self, now: Nanos) -> bool {
        self.link.poll(&mut self.net, now)
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let translated = loop {
            let event = self.link.next_event(&mut self.net)?;
            if let Some(translated) = self.translate(event) {
                break translated;
            }
        };
        Some(match translated {
            Translated::Up(partner) => Event::Up(partner),
            Translated::PathLost => Event::PathLost,
            Translated::Down(reason) => Event::Down(reason),
            Translated::Message(message) => Event::Message(message.map(|()| self.link.payload(&self.net))),
        })
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    fn has_room_to_forward(&self) -> bool {
        let unsent = self.link.unsent_bytes(&self.net);
        self.waiting.is_empty() && unsent.is_some_and(|bytes| bytes < FORWARD_UNSENT_MAX)
    }

    fn send(&mut self, message: Message) {
        if !self.link.is_up() {
            return;
        }
        // An acknowledgement waits within the link, the newest of each lane.
        let is_first = self.waiting.is_empty() || matches!(message, Message::Mirrored(_));
        if is_first && self.try_send(&message) {
            return;
        }
        match self.waiting.iter_mut().find(|waiting| replaces(&message, waiting)) {
            Some(waiting) => *waiting = message,
            None => self.waiting.push_back(message),
        }
    }

    fn flush(&mut self) {
        // Not before all that was lost has been told.
        self.send_waiting();
        self.link.flush(&mut self.net);
    }

    fn paths(&self) -> Paths {
        let status = self.link.status();
        let open = || status.paths.iter().filter(|path| path.phase == PathPhase::Open);
        Paths {
            up: open().count(),
            all: status.paths.len(),
            round_trip: open().filter_map(|path| path.round_trip).min().unwrap_or_default(),
        }
    }

    fn refusal(&self) -> Option<[String; 2]> {
        let (by_partner, refusal) = self.link.status().refusal?;
        let by = if by_partner { "the partner says" } else { "this node says" };
        Some([format!("{by}: {}", refusal.text), refusal.reason.mending().to_owned()])
    }
}

impl<N: Network> Carrier for LinkWay<N> {
    fn lend(&self) -> Lent {
        self.link.lend(&self.net)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.link.next_deadline()
    }
}
