//! One pool as its clients and the world outside see it: who serves it, what is in flight, what its volumes may hold.

use crate::{clients::Ask, model::Model, pattern::WriteId, setup::BLOCK};
use crossbeam_channel::Receiver;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};
use twinlog::{base::ObjectId, node::admin::AdminReply};

/// A request under way.
pub(super) struct Flying {
    pub(super) ask: Ask,
    pub(super) volume: ObjectId,
    pub(super) write: Option<WriteId>,
    pub(super) began: u64,
    /// It belongs to the verification after an opening.
    pub(super) is_verification: bool,
}

/// An order under way.
pub(super) enum Order {
    Create { name: String, size_bytes: u64 },
    Checkpoint { began: u64 },
    Check,
}

/// How far clients are with a pool that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Every byte is read, and nothing else is done.
    Reading(VecDeque<(ObjectId, Range<u64>)>),
    /// The pool is checked.
    Checking,
    /// Clients work.
    Working,
}

/// A pool from outside.
pub(super) struct Watch {
    pub(super) model: Model,
    /// The node that serves it, while one does.
    pub(super) server: Option<usize>,
    pub(super) phase: Phase,
    /// Which nodes have its devices open.
    pub(super) open_at: [bool; 2],
    pub(super) flying: BTreeMap<u64, Flying>,
    pub(super) order: Option<(Order, Receiver<AdminReply>)>,
    /// A volume that was being made when the pool was closed.
    pub(super) uncertain: Option<(String, u64)>,
    /// Changes answered since it is served.
    pub(super) answered: u64,
    /// Openings that were verified.
    pub(super) openings: u64,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            model: Model::new(true),
            server: None,
            phase: Phase::Working,
            open_at: [false; 2],
            flying: BTreeMap::new(),
            order: None,
            uncertain: None,
            answered: 0,
            openings: 0,
        }
    }

    /// Whether clients work, and nothing waits.
    pub(super) fn is_at_rest(&self) -> bool {
        self.server.is_some() && self.phase == Phase::Working && self.flying.is_empty() && self.order.is_none()
    }

    /// What is to be read when the pool was opened.
    pub(super) fn everything(&self) -> VecDeque<(ObjectId, Range<u64>)> {
        let step = 16 * BLOCK;
        let parts = |(&id, volume): (&ObjectId, &crate::model::VolumeModel)| {
            let size_bytes = volume.size_bytes;
            let part = move |first: u64| (id, first * step..((first + 1) * step).min(size_bytes));
            (0..size_bytes.div_ceil(step)).map(part)
        };
        self.model.volumes().iter().flat_map(parts).collect()
    }

    /// Nobody serves the pool any more, and nobody answers what was asked. Returns the requests that nobody has answered.
    pub(super) fn end(&mut self) -> Vec<u64> {
        self.server = None;
        self.model.crash(crate::model::Loss::Unanswered);
        if let Some((Order::Create { name, size_bytes }, _)) = self.order.take() {
            self.uncertain = Some((name, size_bytes));
        }
        std::mem::take(&mut self.flying).into_keys().collect()
    }
}
