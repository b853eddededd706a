//! One pool as its clients and the world outside see it: who serves it, what is in flight, what its volumes may hold.

use super::held::Aftermath;
use crate::{
    clients::Ask,
    model::{Model, VolumeModel, reservation::Deed},
    pattern::WriteId,
    reserving::Reserving,
    setup::BLOCK,
};
use crossbeam_channel::Receiver;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};
use twinlog::{
    base::{ObjectId, PortionId},
    node::admin::AdminReply,
};
use twinlog_device::Nanos;

/// A request under way.
pub(super) struct Flying {
    pub(super) ask: Ask,
    pub(super) volume: ObjectId,
    pub(super) write: Option<WriteId>,
    pub(super) began: u64,
    /// Where its client is connected.
    pub(super) node: usize,
    /// As that node counts.
    pub(super) since: Nanos,
    /// How often the pool had been opened then.
    pub(super) services: u64,
    /// That node served the pool when it was asked.
    pub(super) is_local: bool,
    /// That node has closed the pool since: after so many services.
    pub(super) parted: Option<u64>,
    /// Another node served the pool when it was asked, or has begun to, and does not any more.
    pub(super) has_outlived: bool,
    /// A forced takeover has lost its volume: another one may have got its number since.
    pub(super) has_lost_volume: bool,
    /// It belongs to the verification after an opening.
    pub(super) is_verification: bool,
}

/// An order under way.
pub(super) enum Order {
    Create {
        name: String,
        size_bytes: u64,
    },
    Checkpoint {
        began: u64,
    },
    /// Whether a block of the pool was rotten when it began.
    Check {
        was_rotten: bool,
    },
}

/// How far clients are with a pool that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Every byte is read, and every reservation reported; nothing else is done.
    Reading(VecDeque<(ObjectId, Ask)>),
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
    /// In histories with hosts that reserve its volumes.
    pub(super) reserving: Option<Reserving>,
    pub(super) order: Option<(Order, Receiver<AdminReply>)>,
    /// A volume that was being made when the pool was closed.
    pub(super) uncertain: Option<(String, u64)>,
    /// Changes answered since it is served.
    pub(super) answered: u64,
    /// Times that it was opened.
    pub(super) services: u64,
    /// Since then a node serves it and nothing goes wrong.
    pub(super) calm_since: Nanos,
    /// Openings that were verified.
    pub(super) openings: u64,
    /// An operator has given up what only a lost log has.
    pub(super) may_be_forced: bool,
    /// It was forced since it was verified last: what no consistency point contains may be gone.
    pub(super) was_forced: bool,
    /// Logs that a node owned the pool with when the other one took it over: what they hold counts no more.
    pub(super) void: BTreeSet<PortionId>,
    /// Logs with which a node has had the pool open since it became its owner: they may hold what it has written.
    pub(super) used: BTreeSet<PortionId>,
    /// In this service a request was refused as one that its node cannot end.
    pub(super) refused_in: Option<u64>,
    /// It was opened while its disk or its logs failed: a volume may be offline until an operator orders it online.
    pub(super) may_be_offline: bool,
    /// A volume that was offline, or a block that has healed.
    pub(super) aftermath: Option<Aftermath>,
    /// The answer to an order to bring it online that was seen to be carried out before.
    pub(super) unheard: Option<Receiver<AdminReply>>,
    /// Changes under way that had been read and overwritten before the pool was opened, and were not there when it was: where.
    pub(super) replaced: Vec<(WriteId, ObjectId, Range<u64>)>,
    /// Before this turn errors may come from its disk or its logs.
    pub(super) excused_until: u64,
}

impl Watch {
    /// A pool without volumes. `answers_last`: nothing that was answered is ever given up.
    pub(super) fn new(answers_last: bool, reserving: Option<Reserving>) -> Self {
        Self {
            model: Model::new(answers_last),
            server: None,
            phase: Phase::Working,
            open_at: [false; 2],
            flying: BTreeMap::new(),
            reserving,
            order: None,
            uncertain: None,
            answered: 0,
            services: 0,
            calm_since: Nanos(0),
            openings: 0,
            may_be_forced: false,
            was_forced: false,
            void: BTreeSet::new(),
            used: BTreeSet::new(),
            refused_in: None,
            may_be_offline: false,
            aftermath: None,
            unheard: None,
            replaced: Vec::new(),
            excused_until: 0,
        }
    }

    /// Whether clients work, and nothing waits.
    pub(super) fn is_at_rest(&self) -> bool {
        self.server.is_some() && self.phase == Phase::Working && self.flying.is_empty() && self.order.is_none()
    }

    /// The pool is checked again, unless something is to be read first.
    pub(super) fn look_again(&mut self) {
        if self.phase == Phase::Checking {
            self.phase = Phase::Reading(VecDeque::new());
        }
    }

    /// What is to be asked when the pool was opened: every byte and the reservation of every volume but one that is offline.
    pub(super) fn everything_but(&self, offline: Option<ObjectId>) -> VecDeque<(ObjectId, Ask)> {
        let ids = || self.model.volumes().keys().filter(|id| Some(**id) != offline);
        let reports = self.reserving.iter().flat_map(|_| ids().map(|&id| (id, Ask::Reserve(1, Deed::Report))));
        reports.chain(ids().flat_map(|&id| self.parts_of(id))).collect()
    }

    /// A volume in parts that are read.
    pub(super) fn parts_of(&self, id: ObjectId) -> Vec<(ObjectId, Ask)> {
        let step = 16 * BLOCK;
        let size_bytes = self.model.volumes().get(&id).map_or(0, |volume| volume.size_bytes);
        let part = |first: u64| (id, Ask::Read(first * step..((first + 1) * step).min(size_bytes)));
        (0..size_bytes.div_ceil(step)).map(part).collect()
    }

    /// The node that served the pool does not any more.
    pub(super) fn end(&mut self) {
        let server = self.server.take();
        match self.order.take() {
            Some((Order::Create { name, size_bytes }, _)) => self.uncertain = Some((name, size_bytes)),
            Some((Order::Checkpoint { began }, _)) => self.model.end(began),
            Some((Order::Check { .. }, _)) | None => {}
        }
        for flying in self.flying.values_mut() {
            flying.has_outlived |= Some(flying.node) != server;
        }
    }

    /// A node has closed the pool, and lives: its clients hear from the next one that serves, or that this one could not answer.
    pub(super) fn part(&mut self, node: usize) {
        for flying in self.flying.values_mut().filter(|flying| flying.node == node) {
            (flying.parted, flying.is_verification) = (Some(self.services), false);
        }
    }

    /// The clients of a node are gone. What they have changed may happen as long as somebody has the pool open.
    pub(super) fn lose_clients(&mut self, node: usize) {
        let is_lost = |flying: &Flying| flying.node == node;
        for flying in self.flying.values().filter(|flying| is_lost(flying) && flying.write.is_none()) {
            self.model.end(flying.began);
        }
        for (&id, flying) in self.flying.iter().filter(|(_, flying)| is_lost(flying)) {
            self.reserving.iter_mut().for_each(|reserving| reserving.lose(id, flying.volume));
        }
        self.flying.retain(|_, flying| !is_lost(flying));
    }

    /// A node has opened the pool: what nobody waits for any more has happened, or never will.
    pub(super) fn begin(&mut self, node: usize) {
        (self.server, self.answered) = (Some(node), 0);
        self.services += 1;
        let waiting = self.waiting();
        self.model.crash_beside(crate::model::Loss::Unanswered, &waiting);
        self.reserving.iter_mut().for_each(|reserving| reserving.settle(false));
    }

    /// A volume is gone that a forced takeover has lost.
    pub(super) fn lose_volume(&mut self, id: ObjectId) {
        self.model.delete(id);
        self.flying.values_mut().filter(|flying| flying.volume == id).for_each(|flying| flying.has_lost_volume = true);
    }

    /// Whether a request's volume may not be there: a forced takeover has lost it, which its clients may hear before the pool is seen to be served.
    pub(super) fn may_have_lost_volume(&self, flying: &Flying) -> bool {
        let is_in_doubt = |volume: &VolumeModel| self.was_forced && !volume.is_lasting;
        flying.has_lost_volume || self.model.volumes().get(&flying.volume).is_none_or(is_in_doubt)
    }

    /// Changes that somebody waits for.
    pub(super) fn waiting(&self) -> Vec<WriteId> {
        self.flying.values().filter_map(|flying| flying.write).collect()
    }

    /// Whether a change of the other node's clients was read and overwritten, and is not answered.
    pub(super) fn has_replaced(&self) -> bool {
        let is_forwarded = |flying: &&Flying| !flying.is_local && self.server.is_some_and(|node| node != flying.node);
        let mut writes = self.flying.values().filter(is_forwarded).filter_map(|flying| flying.write);
        writes.any(|write| !self.model.replaced(write).is_empty())
    }

    /// Requests in flight of a node's clients.
    pub(super) fn depth(&self, node: usize) -> usize {
        self.flying.values().filter(|flying| flying.node == node).count()
    }
}
