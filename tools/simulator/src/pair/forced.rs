//! Takeovers that an operator forces, told what may be lost: exactly that may be, and nothing else.
//!
//! ```text
//!   none --> alone: its partner is gone, the owner    --> lost: the owner dies, its log  --> none: the register is forced, the one that
//!            is to say stale and to serve a while alone   for good or with its machine        was gone may come back
//! ```
//!
//! | what is lost for good | who is told to serve | what it says may be lost | what must be there |
//! |---|---|---|---|
//! | the owner's log | the owner, with an empty log | what was answered since the last consistency point | what such a point contains |
//! | the owner's machine | the other node, whose log was in step once | what only the partner's log has | that, and what was answered while both were in step |
//!
//! The operator acts when the node's status says that this is what helps, not before.

use super::{
    History, found,
    lines::{self, Story},
    site::NAMES,
};
use crate::{
    history::{Oracle, Violation},
    model::Loss,
};
use twinlog::{
    format::register::{MirrorState, Register},
    node::admin::{AdminRequest, PairPoolStatus},
};
use twinlog_sim::Direction;

/// Turns after which the owner has gone stale, or other trouble keeps it from that.
const ALONE_TURNS: u64 = 6000;

/// What is lost for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The log of the owner.
    Log,
    /// The machine of the owner.
    Machine,
}

/// A forced takeover in the making.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forced {
    pool: usize,
    /// Who owns the pool alone.
    owner: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Its partner is gone; before this turn its server dies, if it serves alone by then.
    Alone { until: u64 },
    /// It has lost its log, or its machine.
    Lost { answered: u64 },
}

impl Forced {
    /// Whether the owner is to be left alone first.
    pub(super) fn is_alone(self) -> bool {
        matches!(self.step, Step::Alone { .. })
    }

    /// Who is told to serve.
    fn heir(&self, lost: Lost) -> usize {
        if lost == Lost::Log { self.owner } else { 1 - self.owner }
    }
}

impl History {
    /// A pool's owner is left alone, for the worse to come.
    pub(super) fn begin_forced(&mut self, pool: usize) {
        let Some(owner) = self.pools[pool].server.filter(|_| self.forced.is_none()) else { return };
        if self.processes.iter().any(Option::is_none) {
            return;
        }
        match self.setup.lost {
            Lost::Log => {
                self.may_start[1 - owner] = false;
                self.die(1 - owner, true);
            }
            Lost::Machine => {
                let cut = |path: &twinlog_sim::SimPath| Direction::BOTH.into_iter().for_each(|way| path.cut(way));
                self.site.paths.iter().for_each(cut);
            }
        }
        let until = self.figures.turns + self.prng.between(ALONE_TURNS / 2, ALONE_TURNS);
        self.forced = Some(Forced { pool, owner, step: Step::Alone { until } });
    }

    /// Goes on with it.
    pub(super) fn look_at_forced(&mut self) {
        let Some(Forced { pool, owner, step: Step::Alone { until } }) = self.forced else { return };
        let is_alone = self.pools[pool].server == Some(owner) && self.counts_alone(pool, owner);
        let is_over = self.figures.turns >= until;
        // A few changes are answered alone first, or none.
        if is_alone && (is_over || self.prng.chance(1, 500)) {
            self.lose_owner(pool, owner);
        } else if is_over {
            self.end_forced();
        }
    }

    /// Whether the register says that the owner's log alone counts, and the other node is as it was when that began.
    fn counts_alone(&self, pool: usize, owner: usize) -> bool {
        let desk = self.site.desk.borrow();
        let register = desk.registers.get(&super::pool_id(pool));
        let is_stale = register.is_some_and(|register| register.mirror == MirrorState::Stale);
        let is_heir_there = match self.setup.lost {
            Lost::Log => true,
            Lost::Machine => self.is_cut() && self.stories[pool].has_kept_mirror(),
        };
        is_stale
            && is_heir_there
            && self.stories[pool].owner(pool) == Some(owner)
            && !desk.is_changing(super::pool_id(pool))
    }

    fn lose_owner(&mut self, pool: usize, owner: usize) {
        let answered = self.pools[pool].answered;
        self.forced = Some(Forced { pool, owner, step: Step::Lost { answered } });
        self.die(owner, true);
        match self.setup.lost {
            Lost::Log => {
                self.site.renew_portion(owner, pool);
                self.start(owner);
            }
            Lost::Machine => self.may_start[owner] = false,
        }
    }

    /// Nothing is forced any more: whoever is down may come back.
    pub(super) fn end_forced(&mut self) {
        self.forced = None;
        self.may_start = [true; 2];
    }

    /// The nodes reach each other again: what a mirror holds may be made anew.
    pub(super) fn forget_mirrors(&mut self) {
        self.stories.iter_mut().for_each(Story::forget_mirror);
        if self.setup.lost == Lost::Machine && self.forced.is_some_and(Forced::is_alone) {
            self.end_forced();
        }
    }

    /// A node has died: a plan that counted on it is given up. Whatever was ordered of it may still come true.
    pub(super) fn forget_forced(&mut self, node: usize) {
        let Some(forced) = self.forced else { return };
        let is_needed = match forced.step {
            Step::Alone { .. } => node == forced.owner || self.setup.lost == Lost::Machine,
            Step::Lost { .. } => self.setup.lost == Lost::Machine && node == forced.heir(Lost::Machine),
        };
        if is_needed {
            self.end_forced();
        }
    }

    /// What the operator orders of a node, if its status says that it helps.
    pub(super) fn force(&mut self, node: usize, pools: &[PairPoolStatus]) {
        let Some(forced @ Forced { pool, step: Step::Lost { .. }, .. }) = self.forced else { return };
        let is_offered = |status: &&PairPoolStatus| status.name == NAMES[pool] && status.next.contains("--force");
        if node == forced.heir(self.setup.lost) && pools.iter().any(|status| is_offered(&status)) {
            self.note(|_| format!("{} is told to take pool {} whatever is lost", NAMES[node], NAMES[pool]));
            let request = AdminRequest::PairTakeover { pool: Some(NAMES[pool].to_owned()), force: true };
            let Some(process) = &self.processes[node] else { return };
            self.pools[pool].may_be_forced = true;
            // What counts is the register.
            let _answer = process.node.call(request);
        }
    }

    /// Whether a register was forced, which alone may lose an answered change; and rule R7: a log that its owner has lost the pool with counts no more.
    pub(super) fn judge_register(&mut self, pool: usize, old: &Register, new: &Register) -> Result<(), Violation> {
        let void = &self.pools[pool].void;
        let mirror = if let MirrorState::InSync(portion) = new.mirror { Some(portion) } else { None };
        if void.contains(&new.portion) || mirror.is_some_and(|portion| void.contains(&portion)) {
            let what = format!("the register of pool {} names a log that was to be made anew", NAMES[pool]);
            return Err(found(Oracle::TwoOwners, what));
        }
        // Who never had it open has only what the other node has sent.
        let was_used = new.owner != old.owner && self.pools[pool].used.remove(&old.portion);
        if was_used && mirror != Some(old.portion) {
            self.pools[pool].void.insert(old.portion);
        }
        let is_handed_over = new.owner != old.owner && mirror == Some(old.portion);
        if is_handed_over && self.pools[pool].refused_in == Some(self.pools[pool].services) {
            let what = format!("requests to pool {} were refused, and it was handed over in order", NAMES[pool]);
            return Err(found(Oracle::Error, what));
        }
        let keeps = new.portion == old.portion || old.mirror == MirrorState::InSync(new.portion);
        if keeps || mirror == Some(old.portion) {
            return Ok(());
        }
        let answered = match self.forced.filter(|forced| forced.pool == pool) {
            Some(Forced { step: Step::Lost { answered }, .. }) => answered,
            // Who was told died, and what it asked for was on its way.
            _ if self.pools[pool].may_be_forced => 0,
            _ => {
                let what = format!("the register of pool {} was forced, and nobody has ordered it", NAMES[pool]);
                return Err(found(Oracle::TwoOwners, what));
            }
        };
        let waiting = self.pools[pool].waiting();
        self.pools[pool].model.crash_beside(Loss::NotLasting, &waiting);
        self.pools[pool].was_forced = true;
        let line = if self.setup.lost == Lost::Log { lines::FORCED_LOG } else { lines::FORCED_MACHINE };
        self.tell(line, answered > 0);
        self.end_forced();
        Ok(())
    }
}
