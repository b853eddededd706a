//! How the interconnect stands, for people.

use super::{Link, LinkConfig, PATHS_MAX, channel::Phase};
use crate::pair::wire::{Refusal, RefusalReason, Role};
use std::time::Duration;
use twinlog_device::Nanos;

/// How far a path has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathPhase {
    /// No connection.
    Resting,
    /// The network connects.
    Connecting,
    /// Both nodes say who they are.
    Greeting,
    /// Frames pass.
    Open,
}

impl PathPhase {
    /// Its name in `status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Connecting => "connecting",
            Self::Greeting => "greeting",
            Self::Open => "open",
        }
    }
}

/// How one path stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// Which.
    pub path: u8,
    /// The partner's address, or who is connected from there; empty before anybody was.
    pub peer: String,
    /// How far it has come.
    pub phase: PathPhase,
    /// Since when.
    pub since: Nanos,
    /// How long a frame takes there and back.
    pub round_trip: Option<Duration>,
    /// Why it was lost the last time.
    pub last_loss: Option<String>,
}

/// How the interconnect stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Whether a session is up.
    pub is_up: bool,
    /// Every path that is known.
    pub paths: Vec<PathStatus>,
    /// Why the nodes do not go on with each other, and whether it is the partner that says so; none once a session has begun.
    pub refusal: Option<(bool, Refusal)>,
    /// Connections that were refused, by either node.
    pub refused_count: u64,
    /// Connections that said nothing of this protocol.
    pub stranger_count: u64,
}

/// What is remembered of a path beyond its channels.
#[derive(Clone, Debug, Default)]
pub(super) struct PathHistory {
    is_known: bool,
    peer: String,
    since: Nanos,
    last_loss: Option<String>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct History {
    paths: [PathHistory; PATHS_MAX],
    refusal: Option<(bool, Refusal)>,
    /// What was told of that last, and when.
    told: Option<(bool, RefusalReason, Nanos)>,
    pub(super) refused_count: u64,
    pub(super) stranger_count: u64,
}

impl History {
    pub(super) fn new(config: &LinkConfig, role: Role) -> Self {
        let mut history = Self::default();
        if role == Role::Connects {
            for (path, address) in history.paths.iter_mut().zip(&config.addresses) {
                (path.is_known, path.peer) = (true, address.to_string());
            }
        }
        history
    }

    fn path(&mut self, path: u8) -> &mut PathHistory {
        &mut self.paths[usize::from(path) % PATHS_MAX]
    }

    /// A path is open. `peer` is who has connected, when we listen.
    pub(super) fn note_open(&mut self, path: u8, peer: Option<&str>, now: Nanos) {
        (self.refusal, self.told) = (None, None);
        let path = self.path(path);
        (path.is_known, path.since) = (true, now);
        if let Some(peer) = peer {
            path.peer = peer.to_owned();
        }
    }

    /// A path is closed, or could not be opened.
    pub(super) fn note_loss(&mut self, path: u8, was_open: bool, loss: &str, now: Nanos) {
        let path = self.path(path);
        path.last_loss = Some(loss.to_owned());
        if was_open {
            path.since = now;
        }
    }

    /// The nodes do not go on with each other; whether that is to be told: once for each reason in a row, and not more often than every
    /// `rest`, for strangers can be refused as often as they like.
    pub(super) fn note_refusal(&mut self, by_partner: bool, refusal: &Refusal, now: Nanos, rest: Duration) -> bool {
        self.refusal = Some((by_partner, refusal.clone()));
        let news = (by_partner, refusal.reason);
        let is_told = self.told.is_some_and(|(by, reason, at)| (by, reason) == news || now.since(at) < rest);
        if !is_told {
            self.told = Some((news.0, news.1, now));
        }
        !is_told
    }
}

impl Link {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        let known = (0..).zip(&self.history.paths).filter(|(_, path)| path.is_known);
        let status = |(path, history): (u8, &PathHistory)| {
            let channels = self.channels.iter().filter(|channel| channel.path == path && channel.number > 0);
            let channel = channels.max_by_key(|channel| channel.phase);
            let dialled = self.dials.get(usize::from(path)).is_some_and(|dial| dial.connection.is_some());
            PathStatus {
                path,
                peer: history.peer.clone(),
                phase: match channel.map(|channel| channel.phase) {
                    Some(Phase::Open) => PathPhase::Open,
                    Some(Phase::Greeting | Phase::Proving | Phase::Agreeing) => PathPhase::Greeting,
                    Some(Phase::Connecting) => PathPhase::Connecting,
                    None if dialled => PathPhase::Connecting,
                    None => PathPhase::Resting,
                },
                since: history.since,
                round_trip: channel.and_then(|channel| channel.round_trip),
                last_loss: history.last_loss.clone(),
            }
        };
        LinkStatus {
            is_up: self.is_up(),
            paths: known.map(status).collect(),
            refusal: self.history.refusal.clone(),
            refused_count: self.history.refused_count,
            stranger_count: self.history.stranger_count,
        }
    }
}
