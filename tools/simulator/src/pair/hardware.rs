//! Faults of disks and logs, and the operator who looks after what they have stopped.
//!
//! | fault | what it may do to clients | what must hold all the same |
//! |---|---|---|
//! | a disk's write or read fails, or the disk goes away | reads fail; the pool stops at the node that met it, at the other one too while it lasts | nothing answered is lost |
//! | a disk or a log is slow, or stands still | requests wait | the same |
//! | a log's write or read fails | the pool stops at the node that owns it, or is served alone | the same |
//! | a log is lost while its node is down | the other node serves | the same: none is lost without which an answered change is |
//! | a node cannot open a pool's disk | the other node serves, or requests wait | the same; and it moves once |
//!
//! A volume that was taken offline, since a record could not be performed while its disk failed, stays so until people have mended the disk and order it online.
//! A pool that has failed stays so until people have mended what failed and have started the node again: the operator here reads of it in the status, as
//! they do.

use super::{
    History, lines,
    setup::{FenceKind, Trouble},
    site::NAMES,
};
use crate::{history::Violation, setup::index};
use twinlog::{
    base::PortionId,
    format::register::{MirrorState, Side},
    node::admin::{AdminReply, AdminRequest, NodeStatus, PairPoolStatus},
};
use twinlog_sim::{Fault, FaultPlan};

/// Turns for which what failed before everything was mended may still come to clients.
const AFTERMATH_TURNS: u64 = 3000;

impl History {
    /// Whether errors may come from this pool's disk or logs.
    pub(super) fn is_excused(&self, pool: usize) -> bool {
        self.figures.turns < self.pools[pool].excused_until
    }

    /// Something fails of a disk, or it goes away.
    pub(super) fn harm_disk(&mut self, pool: usize) {
        let faults = [Fault::ReadError, Fault::ReadError, Fault::WriteError, Fault::WriteError, Fault::DeviceGone];
        let (fault, skipped) = (*self.prng.pick(&faults), self.prng.below(20));
        self.note(|_| format!("disk {}: {fault} after {skipped}", NAMES[pool]));
        self.site.media[pool].arm(fault, skipped);
        self.is_well = false;
        self.pools[pool].excused_until = u64::MAX;
    }

    /// Some operations of a disk take as long as a partner is waited for.
    pub(super) fn slow_disk(&mut self, pool: usize) {
        self.is_well = false;
        let per_million = u32::try_from(self.prng.between(20_000, 300_000)).expect("below a million");
        self.site.media[pool].set_faults(FaultPlan::default().with(Fault::SlowOperation, per_million));
    }

    /// Something fails of a log.
    pub(super) fn harm_log(&mut self, node: usize, pool: usize) {
        self.is_well = false;
        let lane = index(self.prng.below(u64::from(self.setup.lanes)));
        let log = &self.site.logs[node][pool][lane];
        if self.prng.chance(3, 4) {
            log.fail_persist_after(self.prng.below(12));
        } else {
            log.fail_read_after(self.prng.below(4));
        }
        self.pools[pool].excused_until = u64::MAX;
    }

    /// A log's device stands still for a while, each time that it is asked.
    pub(super) fn slow_log(&mut self, node: usize, pool: usize) {
        self.is_well = false;
        let longest = self.setup.detection * u32::try_from(self.prng.between(1, 6)).expect("small");
        let longest_ns = u64::try_from(longest.as_nanos()).expect("some milliseconds");
        self.site.logs[node][pool].iter().for_each(|log| log.set_latency_ns(longest_ns / 2, longest_ns));
        self.tell(lines::LOG_SLOW, self.pools[pool].server.is_some());
    }

    /// A log is lost while its node is down: another one is in its place.
    pub(super) fn lose_log(&mut self, node: usize, pool: usize) {
        if !self.is_spare(node, pool) {
            return;
        }
        let is_dark = self.prng.chance(1, 2);
        self.die(node, is_dark);
        let was_owner = self.stories[pool].owner(pool) == Some(node);
        self.site.renew_portion(node, pool);
        self.note(|_| format!("{}'s log of pool {} is lost", NAMES[node], NAMES[pool]));
        self.tell(if was_owner { lines::OWN_LOG_LOST } else { lines::MIRROR_LOST }, true);
    }

    /// A node cannot open a pool's disk for a while. Often it is made to try.
    pub(super) fn hinder(&mut self, node: usize, pool: usize) {
        let time = self.setup.detection * u32::try_from(self.prng.between(1, 30)).expect("small");
        let until = self.site.world.now() + time;
        self.site.hindrances.borrow_mut().until[node][pool] = Some(until);
        let Some(server) = self.pools[pool].server.filter(|_| self.prng.chance(3, 4)) else { return };
        if server == node {
            return self.restart(node);
        }
        let Some(process) = &self.processes[server] else { return };
        // What counts is where the pool is served.
        let _answer = process.node.call(AdminRequest::PairGiveback { pool: Some(NAMES[pool].to_owned()) });
    }

    /// Whether every answered change is in the other node's log, as far as the register says: this one can be lost.
    fn is_spare(&self, node: usize, pool: usize) -> bool {
        let desk = self.site.desk.borrow();
        let Some(register) = desk.registers.get(&super::pool_id(pool)) else { return false };
        // What is on its way to the arbiter may make this log the one that counts.
        if desk.is_changing(super::pool_id(pool)) {
            return false;
        }
        let other: Option<PortionId> = self.site.portion_at_rest(1 - node, pool);
        let own = if node == pool { Side::Home } else { Side::Away };
        match register.mirror {
            MirrorState::InSync(portion) if register.owner == own => Some(portion) == other,
            MirrorState::Stale if register.owner == own => false,
            MirrorState::InSync(_) | MirrorState::Stale => Some(register.portion) == other,
        }
    }

    /// Disks and logs work again.
    pub(super) fn mend_hardware(&mut self) {
        self.is_well = true;
        for medium in &self.site.media {
            medium.set_faults(FaultPlan::default());
            medium.repair();
        }
        for node in 0..2 {
            let shape = self.setup.log(node);
            for log in self.site.logs[node].iter().flatten() {
                log.repair();
                log.set_latency_ns(shape.latency_ns.0, shape.latency_ns.1);
            }
        }
        self.site.hindrances.borrow_mut().until = Default::default();
        let until = self.figures.turns + AFTERMATH_TURNS;
        for pool in &mut self.pools {
            pool.excused_until = pool.excused_until.min(until);
        }
    }

    /// An operator looks at what the status of a node has said since the last time, and starts it again where it says that this is what helps.
    pub(super) fn operate(&mut self, node: usize) {
        let Some(process) = &self.processes[node] else {
            // What it said in its last life is history.
            self.looks[node] = None;
            return;
        };
        let next = if self.is_paused[node] { None } else { process.node.call(AdminRequest::Status) };
        let Some(last) = std::mem::replace(&mut self.looks[node], next) else { return };
        let Ok(AdminReply::Status(status)) = last.try_recv() else { return };
        self.bring_online(node, &status);
        let pools = status.pair.map(|pair| pair.pools).unwrap_or_default();
        self.force(node, &pools);
        let is_stopped = |pool: &PairPoolStatus| pool.open == "failed" || self.is_unread(node, pool);
        if pools.iter().any(is_stopped) {
            self.note(|_| format!("{} is mended", NAMES[node]));
            self.mend_hardware();
            self.die(node, false);
            self.start(node);
        }
        let is_given_up = |pool: &&PairPoolStatus| pool.open == "given up" && pool.owner == NAMES[1 - node];
        if let Some(pool) = pools.iter().find(is_given_up) {
            self.take_up(node, &pool.name);
        }
    }

    /// An operator mends what kept changes of a volume from being performed, and orders them to be.
    fn bring_online(&mut self, node: usize, status: &NodeStatus) {
        let taken_over = status.pair.as_ref().and_then(|pair| pair.taken_over.as_ref());
        let volumes = status.volumes.iter().chain(taken_over.iter().flat_map(|status| &status.volumes));
        let offline = volumes.filter(|volume| volume.offline.is_some() && !self.is_held_for(&volume.name));
        let offline: Vec<_> = offline.collect();
        if !offline.is_empty() {
            self.mend_hardware();
        }
        for volume in offline {
            self.note(|_| format!("{} is to be brought online", volume.name));
            self.tell(lines::OFFLINE, true);
            let name = volume.name.clone();
            self.order_of(node, AdminRequest::VolumeOnline { name, accept_loss: false });
        }
    }

    /// An operator mends what kept a node from opening a pool that its partner owns now, and has it restarted, or orders the pool there.
    fn take_up(&mut self, node: usize, pool: &str) {
        self.note(|_| format!("{} can open pool {pool} again", NAMES[node]));
        self.mend_hardware();
        if self.prng.chance(1, 2) {
            self.die(node, false);
            self.start(node);
        } else if let Some(process) = &self.processes[node] {
            let request = AdminRequest::PairTakeover { pool: Some(pool.to_owned()), force: false };
            // What counts is where the pool is served.
            let _answer = process.node.call(request);
        }
    }

    /// An operator looks at both nodes when all is well, as what was given up stays so until people have mended it. Returns whether something was.
    pub(super) fn take_everything_up(&mut self) -> Result<bool, Violation> {
        let mut is_any = false;
        let is_reserved = self.setup.fence == FenceKind::Reservation;
        let may_give_up = is_reserved || self.setup.troubles.contains(&Trouble::Unopenable);
        for node in 0..2 {
            let answer = self.processes[node].as_ref().and_then(|process| process.node.call(AdminRequest::Status));
            let Some(answer) = answer.filter(|_| may_give_up) else { continue };
            while answer.is_empty() && self.processes[node].is_some() {
                self.turn_with(false)?;
            }
            let Ok(AdminReply::Status(status)) = answer.try_recv() else { continue };
            let pools = status.pair.map(|pair| pair.pools).unwrap_or_default();
            if pools.iter().any(|pool| pool.open == "given up") {
                self.die(node, false);
                self.start(node);
                is_any = true;
            }
        }
        Ok(is_any)
    }

    /// Whether a log that its node took for lost is there after all: it can be read by now.
    fn is_unread(&self, node: usize, status: &PairPoolStatus) -> bool {
        let Some(pool) = NAMES.iter().position(|name| *name == status.name) else { return false };
        let desk = self.site.desk.borrow();
        let register = desk.registers.get(&super::pool_id(pool));
        let [own, other] = [node, 1 - node].map(|node| self.site.portion_at_rest(node, pool));
        // Before there is a register it is the only one that there ever was.
        let is_own = || own.is_some() && register.is_none_or(|register| Some(register.portion) == own);
        // A mirror that failed is made anew, unless the owner's log is lost as well.
        let is_last = || {
            let in_sync = register.filter(|register| Some(register.portion) != other).map(|register| register.mirror);
            own.is_some_and(|own| in_sync == Some(MirrorState::InSync(own)))
        };
        match status.row.as_str() {
            "mirror lost" => is_last(),
            row => row.starts_with("own log lost") && is_own(),
        }
    }
}
