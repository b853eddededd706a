//! What goes wrong, and how often it did.

use super::{History, arbiter::Reach, lines, setup::Trouble};
use crate::setup::index;
use twinlog::node::admin::AdminRequest;
use twinlog_sim::{Direction, SimPath};

impl History {
    /// Draws what happens next.
    pub(super) fn something_goes_wrong(&mut self) {
        (0..2).for_each(|node| self.operate(node));
        let pool = index(self.prng.below(2));
        if let Some(aim) = self.setup.aim.filter(|_| self.prng.chance(3, 4)) {
            return self.take_aim(aim, pool);
        }
        let trouble = *self.prng.pick(&self.setup.troubles.clone());
        let node = index(self.prng.below(2));
        // Half of all steps mend something, so that new trouble meets a pair that is well.
        if self.prng.chance(2, 5) {
            return self.mend();
        }
        self.note(|_| format!("{trouble:?}"));
        self.disturb();
        match trouble {
            Trouble::Kill => self.die(node, false),
            Trouble::Dark => self.die(node, true),
            Trouble::Blackout => self.black_out(),
            Trouble::Cut => {
                let directions = self.prng.between(1, 3);
                for path in &self.site.paths {
                    for (bit, direction) in Direction::BOTH.into_iter().enumerate() {
                        if directions >> bit & 1 == 1 {
                            path.cut(direction);
                        }
                    }
                }
            }
            Trouble::Break => {
                let path = index(self.prng.below(self.site.paths.len() as u64));
                self.site.paths[path].break_connections();
                if self.prng.chance(1, 2) {
                    self.is_slow = true;
                    self.site.paths[path].set_plan(self.setup.breaking_path());
                }
            }
            Trouble::Slow => {
                self.is_slow = true;
                let plan = self.setup.slow_path();
                self.site.paths.iter().for_each(|path| path.set_plan(plan));
            }
            Trouble::ArbiterLost => self.lose_arbiter(node, Reach::Lost),
            Trouble::ArbiterDeaf => self.lose_arbiter(node, Reach::Deaf),
            Trouble::Pause => self.pause(node, true),
            Trouble::Command => self.command(node),
            Trouble::DiskError => self.harm_disk(pool),
            Trouble::DiskSlow => self.slow_disk(pool),
            Trouble::LogError => self.harm_log(node, pool),
            Trouble::LogSlow => self.slow_log(node, pool),
            Trouble::LogLost => self.lose_log(node, pool),
            Trouble::Isolated => self.isolate(node),
            Trouble::Restart => self.restart(node),
            Trouble::Ambush => self.lie_in_ambush(pool),
            Trouble::Forced => self.begin_forced(pool),
            Trouble::Unopenable => self.hinder(node, pool),
            Trouble::Rot => self.rot(pool),
        }
    }

    fn lose_arbiter(&mut self, node: usize, reach: Reach) {
        let both = self.prng.chance(1, 2);
        let mut desk = self.site.desk.borrow_mut();
        desk.reach[node] = reach;
        if both {
            desk.reach[1 - node] = reach;
        }
    }

    pub(super) fn pause(&mut self, node: usize, is_paused: bool) {
        if let Some(process) = &self.processes[node] {
            process.stand_still(is_paused);
            self.is_paused[node] = is_paused;
            if is_paused {
                self.paused_at[node] = self.site.world.now();
                self.tell_pause(node);
            } else {
                let time = self.site.world.now().since(self.paused_at[node]);
                self.tell(lines::PAUSE, time > self.setup.detection);
            }
        }
    }

    fn command(&mut self, node: usize) {
        let pool = None;
        let request = match self.prng.below(2) {
            0 => AdminRequest::PairTakeover { pool, force: false },
            _ => AdminRequest::PairGiveback { pool },
        };
        self.order_of(node, request);
    }

    /// Both nodes and the disks lose their power.
    fn black_out(&mut self) {
        let is_any = self.processes.iter().any(Option::is_some);
        self.tell(lines::BLACKOUT, is_any);
        self.die(0, true);
        self.die(1, true);
        let mut prng = self.prng.fork();
        self.site.media.iter().for_each(|medium| medium.power_cut(&mut prng));
        if self.prng.chance(1, 2) {
            let first = index(self.prng.below(2));
            self.returns[first] = Some(self.figures.turns);
        }
    }

    /// One thing that is wrong ends.
    fn mend(&mut self) {
        let node = index(self.prng.below(2));
        match self.prng.below(5) {
            4 => self.mend_hardware(),
            0 => {
                self.forget_mirrors();
                self.site.paths.iter().for_each(SimPath::heal);
            }
            1 => self.site.desk.borrow_mut().reach = [Reach::Good; 2],
            _ if self.processes[node].is_none() && self.may_start[node] => self.start(node),
            _ if self.is_paused[node] => self.pause(node, false),
            _ if self.processes[1 - node].is_none() && self.may_start[1 - node] => self.start(1 - node),
            _ => {
                self.is_slow = false;
                let plan = self.setup.path();
                self.site.paths.iter().for_each(|path| path.set_plan(plan));
            }
        }
        self.disturb();
    }

    /// Something has changed, and the nodes need some time for it.
    pub(super) fn disturb(&mut self) {
        let now = self.site.world.now();
        self.pools.iter_mut().for_each(|pool| pool.calm_since = now);
    }

    /// Everything that is wrong ends.
    pub(super) fn heal(&mut self) {
        self.note(|_| "everything heals".to_owned());
        (self.is_slow, self.is_resting) = (false, false);
        self.disturb();
        self.forget_mirrors();
        let plan = self.setup.path();
        for path in &self.site.paths {
            path.heal();
            path.set_plan(plan);
        }
        self.site.desk.borrow_mut().heal();
        self.mend_hardware();
        self.heal_rots();
        self.ambush = None;
        for node in 0..2 {
            if self.is_paused[node] {
                self.pause(node, false);
            }
            if self.processes[node].is_none() && self.may_start[node] {
                self.start(node);
            }
        }
    }
}
