//! Trouble that waits for its moment. What takes a few turns of thousands is hardly ever hit by what comes at any time: a pool that is being opened, a
//! register that has just changed.

use super::{History, arbiter::Reach};
use twinlog::format::register::{MirrorState, Register};
use twinlog_sim::Direction;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A node begins to open a pool.
    Opens,
    /// A register says in sync.
    InSync,
    /// A register says stale.
    Stale,
    /// A register names another owner.
    Moves,
}

impl Moment {
    /// What a change of a register is.
    pub(super) fn of(old: &Register, new: &Register) -> Option<Self> {
        match (old.mirror, new.mirror) {
            _ if old.owner != new.owner => Some(Self::Moves),
            (MirrorState::Stale, MirrorState::InSync(_)) => Some(Self::InSync),
            (MirrorState::InSync(_), MirrorState::Stale) => Some(Self::Stale),
            _ => None,
        }
    }
}

/// What happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strike {
    OwnerDies,
    OtherDies,
    BothDie,
    OwnerIsIsolated,
}

/// Trouble that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ambush {
    moment: Moment,
    strike: Strike,
    /// Turns from the moment on.
    turns: u64,
    /// Whose moment has come.
    pool: Option<usize>,
}

impl History {
    /// Something will happen when a moment has come; often the moment is brought about.
    pub(super) fn lie_in_ambush(&mut self, pool: usize) {
        let moment = *self.prng.pick(&[Moment::Opens, Moment::InSync, Moment::InSync, Moment::Stale, Moment::Moves]);
        let strikes =
            [Strike::OwnerDies, Strike::OwnerDies, Strike::OtherDies, Strike::BothDie, Strike::OwnerIsIsolated];
        let (strike, turns_max) = (*self.prng.pick(&strikes), *self.prng.pick(&[2, 20, 200]));
        self.ambush = Some(Ambush { moment, strike, turns: self.prng.below(turns_max), pool: None });
        if strike == Strike::BothDie {
            // Any moment will do.
            self.moment(pool, moment);
        } else if let Some(server) = self.pools[pool].server.filter(|_| self.prng.chance(1, 2)) {
            let is_dark = self.prng.chance(1, 2);
            self.die(server, is_dark);
        }
    }

    /// A moment of a pool has come.
    pub(super) fn moment(&mut self, pool: usize, moment: Moment) {
        if let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.moment == moment && ambush.pool.is_none()) {
            ambush.pool = Some(pool);
        }
    }

    /// Time goes on for what waits.
    pub(super) fn wait_in_ambush(&mut self) {
        for node in 0..2 {
            let is_due = self.returns[node].take_if(|turn| *turn <= self.figures.turns).is_some();
            if is_due && self.processes[node].is_none() && self.may_start[node] {
                self.start(node);
            }
        }
        let Some(Ambush { strike, turns, pool: Some(pool), .. }) = &mut self.ambush else { return };
        let (strike, pool) = (*strike, *pool);
        if let Some(left) = turns.checked_sub(1) {
            *turns = left;
            return;
        }
        self.ambush = None;
        let Some(owner) = self.stories[pool].owner(pool) else { return };
        let is_dark = self.prng.chance(1, 2);
        self.note(|_| format!("ambush: {strike:?}"));
        match strike {
            Strike::OwnerDies => self.die(owner, is_dark),
            Strike::OtherDies => self.die(1 - owner, is_dark),
            Strike::BothDie => {
                (0..2).for_each(|node| self.die(node, is_dark));
                // The log that was a mirror has to show what it is worth.
                self.returns[1 - owner] = Some(self.figures.turns);
            }
            Strike::OwnerIsIsolated => self.isolate(owner),
        }
    }

    /// A node's network is gone: it reaches neither its partner nor the arbiter.
    pub(super) fn isolate(&mut self, node: usize) {
        for path in &self.site.paths {
            Direction::BOTH.into_iter().for_each(|direction| path.cut(direction));
        }
        self.site.desk.borrow_mut().reach[node] = Reach::Lost;
    }

    /// A process ends, and its supervisor starts it again, at once or soon.
    pub(super) fn restart(&mut self, node: usize) {
        let turns_max = *self.prng.pick(&[1, 30]);
        let turns = self.prng.below(turns_max);
        self.die(node, false);
        self.returns[node] = Some(self.figures.turns + turns);
    }
}
