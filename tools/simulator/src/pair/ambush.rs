//! Trouble that waits for its moment. What takes a few turns of thousands is hardly ever hit by what comes at any time: a pool that is being opened, a
//! register that is about to change, a reply that is on its way.

use super::{History, arbiter::Reach, setup::FenceKind};
use std::{collections::VecDeque, time::Duration};
use twinlog::{
    format::register::{MirrorState, Register},
    node::admin::AdminRequest,
};
use twinlog_device::Nanos;
use twinlog_sim::Direction;

/// How a register changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It says in sync.
    InSync,
    /// It says stale.
    Stale,
    /// It names another owner.
    Moves,
}

impl Change {
    /// What a change is, if it is one of these.
    pub(super) fn of(old: &Register, new: &Register) -> Option<Self> {
        match (old.mirror, new.mirror) {
            _ if old.owner != new.owner => Some(Self::Moves),
            (MirrorState::Stale, MirrorState::InSync(_)) => Some(Self::InSync),
            (MirrorState::InSync(_), MirrorState::Stale) => Some(Self::Stale),
            _ => None,
        }
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A node begins to open a pool.
    Opens,
    /// A node begins to serve one.
    Serves,
    /// A change of a register is on its way to the arbiter.
    Asked(Change),
    /// It was made.
    Made(Change),
    /// The pool is served at home, its log is in step, both nodes run.
    IsWell,
    /// A change of data was read and overwritten, and who asked for it has no answer yet.
    Replaced,
    /// A node begins to take a pool's disk away from the other one.
    Fences,
}

/// What happens then. The owner is who the register names by that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    OwnerDies,
    /// Its process, and the network says so.
    OwnerIsKilled,
    OwnerStarts,
    OtherDies,
    OtherStarts,
    BothDie,
    OwnerIsIsolated,
    /// It does not reach the arbiter.
    OwnerIsLost,
    OwnerStandsStill,
    OtherStandsStill,
    OwnerGoesOn,
    /// No node stands still any more.
    EverybodyGoesOn,
    /// The other node's log of the pool is slow.
    OtherLogIsSlow,
    DiskIsSlow,
    /// Nothing passes between the nodes.
    Cut,
    /// The connections of one path break.
    Break,
    /// Packets are lost now and then, and what follows them on the same path waits.
    Lossy,
    /// An operator wants the pool at the other node.
    Takeover,
    /// An operator wants a consistency point.
    Checkpoint,
    /// The owner dies, and a block rots that a record in its log needs.
    Rot,
    /// Clients ask for nothing new.
    Rest,
    /// They do again.
    Work,
    /// Everything is well again.
    Heal,
}

/// One thing that happens: when its moment has come, and then so many turns and so much time later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    moment: Option<Moment>,
    turns: u64,
    time: Duration,
    act: Act,
}

impl Step {
    /// At once.
    pub(super) fn now(act: Act) -> Self {
        Self { moment: None, turns: 0, time: Duration::ZERO, act }
    }

    /// So many turns after the step before.
    pub(super) fn after_turns(turns: u64, act: Act) -> Self {
        Self { turns, ..Self::now(act) }
    }

    /// So long after the step before.
    pub(super) fn after(time: Duration, act: Act) -> Self {
        Self { time, ..Self::now(act) }
    }

    /// So many turns after a moment.
    pub(super) fn at(moment: Moment, turns: u64, act: Act) -> Self {
        Self { moment: Some(moment), ..Self::after_turns(turns, act) }
    }
}

/// Trouble that waits, one step after the other.
#[derive(Clone, Debug)]
pub(super) struct Ambush {
    /// Of which pool; `None`: the one whose moment comes first.
    pool: Option<usize>,
    steps: VecDeque<Step>,
    /// When the step before was done, or its moment had come.
    turn: u64,
    at: Nanos,
}

impl History {
    /// Lies in wait with these steps.
    pub(super) fn lay(&mut self, pool: Option<usize>, steps: impl IntoIterator<Item = Step>) {
        let steps = steps.into_iter().collect();
        self.ambush = Some(Ambush { pool, steps, turn: self.figures.turns, at: self.site.world.now() });
    }

    /// Something will happen when a moment has come; often the moment is brought about.
    pub(super) fn lie_in_ambush(&mut self, pool: usize) {
        let asked = [Change::InSync, Change::Stale, Change::Moves].map(Moment::Asked);
        let made = [Change::InSync, Change::InSync, Change::Stale, Change::Moves].map(Moment::Made);
        let mut moments = [[Moment::Opens, Moment::Serves].as_slice(), &asked, &made].concat();
        if self.setup.fence == FenceKind::Reservation {
            moments.extend([Moment::Fences; 3]);
        }
        let acts = [Act::OwnerDies, Act::OwnerDies, Act::OtherDies, Act::BothDie, Act::OwnerIsIsolated];
        let (moment, act, turns_max) =
            (*self.prng.pick(&moments), *self.prng.pick(&acts), *self.prng.pick(&[2, 20, 200]));
        let turns = self.prng.below(turns_max);
        if act == Act::BothDie {
            // Any moment will do.
            return self.lay(Some(pool), [Step::after_turns(turns, act)]);
        }
        self.lay(None, [Step::at(moment, turns, act)]);
        if let Some(server) = self.pools[pool].server.filter(|_| self.prng.chance(1, 2)) {
            let is_dark = self.prng.chance(1, 2);
            self.die(server, is_dark);
        }
    }

    /// A moment of a pool has come.
    pub(super) fn moment(&mut self, pool: usize, moment: Moment) {
        let now = (self.figures.turns, self.site.world.now());
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.pool.is_none_or(|meant| meant == pool)) else {
            return;
        };
        if let Some(step) = ambush.steps.front_mut().filter(|step| step.moment == Some(moment)) {
            step.moment = None;
            ambush.pool = Some(pool);
            (ambush.turn, ambush.at) = now;
        }
    }

    /// Looks whether somebody asks for a change of a register.
    pub(super) fn look_at_requests(&mut self) {
        let asked = std::mem::take(&mut self.site.desk.borrow_mut().asked);
        for (old, new) in asked {
            let pool = (0..2).find(|&pool| super::pool_id(pool) == new.pool);
            if let (Some(pool), Some(change)) = (pool, Change::of(&old, &new)) {
                self.moment(pool, Moment::Asked(change));
            }
        }
    }

    /// Time goes on for what waits.
    pub(super) fn wait_in_ambush(&mut self) {
        if self.ambush.is_none() && self.returns == [None; 2] {
            return;
        }
        for node in 0..2 {
            if self.returns[node].take_if(|turn| *turn <= self.figures.turns).is_some() {
                self.come_back(node);
            }
        }
        for pool in 0..2 {
            if self.awaits(Moment::Replaced) && self.pools[pool].has_replaced() {
                self.moment(pool, Moment::Replaced);
            }
            if self.awaits(Moment::IsWell) && self.is_well_at_home(pool) {
                self.moment(pool, Moment::IsWell);
            }
        }
        let (turn, now) = (self.figures.turns, self.site.world.now());
        while let Some(Ambush { pool: Some(pool), steps, turn: since, at }) = &mut self.ambush {
            let Some(step) = steps.front() else { break };
            if step.moment.is_some() || turn - *since < step.turns || now.since(*at) < step.time {
                return;
            }
            let (pool, act) = (*pool, step.act);
            steps.pop_front();
            (*since, *at) = (turn, now);
            self.act(pool, act);
        }
        if self.ambush.as_ref().is_some_and(|ambush| ambush.steps.is_empty()) {
            self.ambush = None;
        }
    }

    fn awaits(&self, moment: Moment) -> bool {
        let step = self.ambush.as_ref().and_then(|ambush| ambush.steps.front());
        step.is_some_and(|step| step.moment == Some(moment))
    }

    fn act(&mut self, pool: usize, act: Act) {
        let Some(owner) = self.stories[pool].owner(pool) else { return };
        let other = 1 - owner;
        let is_dark = self.prng.chance(1, 2);
        self.note(|_| format!("ambush: {act:?}"));
        self.disturb();
        match act {
            Act::OwnerDies => self.die(owner, is_dark),
            Act::OwnerIsKilled => self.die(owner, false),
            Act::OwnerStarts => self.come_back(owner),
            Act::OtherDies => self.die(other, is_dark),
            Act::OtherStarts => self.come_back(other),
            Act::BothDie => {
                (0..2).for_each(|node| self.die(node, is_dark));
                // The log that was a mirror has to show what it is worth.
                self.returns[other] = Some(self.figures.turns);
            }
            Act::OwnerIsIsolated => self.isolate(owner),
            Act::OwnerIsLost => self.site.desk.borrow_mut().reach[owner] = Reach::Lost,
            Act::OwnerStandsStill => self.pause(owner, true),
            Act::OtherStandsStill => self.pause(other, true),
            Act::OwnerGoesOn => self.go_on(owner),
            Act::EverybodyGoesOn => (0..2).for_each(|node| self.go_on(node)),
            Act::OtherLogIsSlow => {
                let longest_ns = u64::try_from(self.setup.detection.as_nanos()).expect("some milliseconds");
                self.site.logs[other][pool].iter().for_each(|log| log.set_latency_ns(longest_ns / 3, longest_ns));
                self.is_well = false;
            }
            Act::DiskIsSlow => self.slow_disk(pool),
            Act::Cut => {
                self.site.paths.iter().for_each(|path| Direction::BOTH.into_iter().for_each(|way| path.cut(way)))
            }
            Act::Break => self.prng.pick(&self.site.paths).break_connections(),
            Act::Lossy => {
                self.is_slow = true;
                let plan = self.setup.lossy_path();
                self.site.paths.iter().for_each(|path| path.set_plan(plan));
            }
            Act::Takeover => self.order_of(other, AdminRequest::PairTakeover { pool: name(pool), force: false }),
            Act::Checkpoint => self.order_of(owner, AdminRequest::Checkpoint),
            Act::Rot => self.rot(pool),
            Act::Rest => self.is_resting = true,
            Act::Work => self.is_resting = false,
            Act::Heal => self.heal(),
        }
    }

    /// A node does not stand still any more.
    fn go_on(&mut self, node: usize) {
        if self.is_paused[node] {
            self.pause(node, false);
        }
    }

    /// An operator's order to a node. Whatever is answered: what counts is what becomes of the pools.
    pub(super) fn order_of(&self, node: usize, request: AdminRequest) {
        if let Some(process) = &self.processes[node] {
            let _answer = process.node.call(request);
        }
    }

    /// Somebody starts a node, if that is what it lacks.
    fn come_back(&mut self, node: usize) {
        if self.processes[node].is_none() && self.may_start[node] {
            self.start(node);
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

fn name(pool: usize) -> Option<String> {
    Some(super::NAMES[pool].to_owned())
}
