//! The half of a fence that is about what a node says: the end of its lease, as the other node sees it at the arbiter.
//!
//! Each node's beats tell it of the other's. When that one's beat has not changed for a lease and an eighth of one, watched without a break, the node leaves a mark for
//! that life and looks once more. From then on a beat of the marked life renews nothing. Why that is enough: `src/cli/compose/partner_beats.rs`, whose rules these are.

use super::arbiter::Desk;
use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};
use twinlog::base::{Epoch, PoolId};
use twinlog_device::Nanos;
use twinlog_sim::{Agenda, SimWorld};

/// A trial that has not come to an end after so many leases is given up.
const TRIAL_LEASES_MAX: u32 = 3;

/// What a node knows of the other one's beats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sight {
    /// The newest.
    seen: u64,
    /// Since when it has been that.
    since: Nanos,
    /// When it was looked at last; none: there was a break.
    looked: Option<Nanos>,
}

impl Sight {
    /// A beat of the node's own has found the other's; `break_min` without a look is a break.
    pub(super) fn look(&mut self, theirs: u64, now: Nanos, break_min: Duration) {
        let is_break = self.looked.is_none_or(|at| now.since(at) >= break_min);
        self.looked = Some(now);
        if is_break || self.seen != theirs {
            (self.seen, self.since) = (theirs, now);
        }
    }

    /// A call at the arbiter has failed.
    pub(super) fn lose(&mut self) {
        self.looked = None;
    }

    /// Whether the other node's beat was the same for so long, watched all the time.
    pub(super) fn is_over(&self, now: Nanos, lease: Duration) -> bool {
        self.looked.is_some() && now.since(self.since) >= lease
    }

    /// Whether what was seen last is the newest.
    pub(super) fn is_of(&self, theirs: u64) -> bool {
        self.seen == theirs
    }
}

/// What a trial has come to.
pub(super) enum Verdict {
    /// The other node's lease has ended, and cannot be renewed.
    Over(Agenda),
    /// It lives, or nobody knows.
    Unknown(Agenda),
}

struct Trial {
    target: (PoolId, Epoch),
    agenda: Agenda,
    /// Since when it is tried, and which beat it began with.
    begun: Option<(Nanos, u64)>,
}

/// Fences of both nodes that wait for the end of a lease: of each node one after the other.
pub(super) struct Trials {
    world: SimWorld,
    desk: Rc<RefCell<Desk>>,
    /// With what clocks may differ.
    lease: Duration,
    of: [VecDeque<Trial>; 2],
}

impl Trials {
    /// None yet; `lease` is what nodes count with.
    #[must_use]
    pub(super) fn new(world: &SimWorld, desk: &Rc<RefCell<Desk>>, lease: Duration) -> Self {
        Self { world: world.clone(), desk: desk.clone(), lease: lease + lease / 8, of: Default::default() }
    }

    /// Begins; what a pool asks again takes the place of what it asked before.
    pub(super) fn ask(&mut self, node: usize, agenda: &Agenda, target: (PoolId, Epoch)) {
        let trials = &mut self.of[node];
        if trials.front().is_some_and(|trial| trial.target == target) {
            return;
        }
        let mut place = 0;
        trials.retain(|trial| {
            place += 1;
            place == 1 || trial.target.0 != target.0
        });
        trials.push_back(Trial { target, agenda: agenda.clone(), begun: None });
        agenda.wake();
    }

    /// The process of a node has ended.
    pub(super) fn forget(&mut self, node: usize) {
        self.of[node].clear();
    }

    /// The next one that has come to its end: whose, of what, and what it is.
    pub(super) fn step(&mut self, is_still: [bool; 2]) -> Option<(usize, (PoolId, Epoch), Verdict)> {
        for node in (0..2).filter(|&node| !is_still[node]) {
            let Some(was_watched) = self.is_at_end(node) else { continue };
            let Trial { target, agenda, .. } = self.of[node].pop_front()?;
            let is_over = was_watched && self.desk.borrow_mut().mark(node, self.lease);
            return Some((node, target, if is_over { Verdict::Over(agenda) } else { Verdict::Unknown(agenda) }));
        }
        None
    }

    /// Whether the trial of a node is at its end, and if so, whether the other node's beat was the same for so long.
    fn is_at_end(&mut self, node: usize) -> Option<bool> {
        let (now, lease) = (self.world.now(), self.lease);
        let sight = self.desk.borrow().sights[node];
        let trial = self.of[node].front_mut()?;
        let (since, seen) = *trial.begun.get_or_insert_with(|| {
            // The other node's process may be the only one that has anything to do meanwhile.
            [1, TRIAL_LEASES_MAX].into_iter().for_each(|leases| trial.agenda.at(now + lease * leases));
            (now, sight.seen)
        });
        if sight.seen != seen {
            return Some(false);
        }
        if sight.is_over(now, lease) {
            return Some(true);
        }
        (now.since(since) >= lease * TRIAL_LEASES_MAX).then_some(false)
    }
}
