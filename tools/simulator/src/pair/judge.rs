//! The oracle of the fence in the disks, and what drives it.

use super::{
    History,
    ambush::Moment,
    found, lines,
    setup::FenceKind,
    site::{LEASE_FACTOR, NAMES},
};
use crate::history::{Oracle, Violation};

impl History {
    /// Nodes go on with taking disks.
    pub(super) fn take_disks(&mut self) -> Result<(), Violation> {
        let Some(namespaces) = self.site.namespaces.clone() else { return Ok(()) };
        namespaces.borrow_mut().is_still = self.is_paused;
        namespaces.borrow_mut().step();
        let begun = std::mem::take(&mut namespaces.borrow_mut().begun);
        for pool in begun {
            self.note(|_| format!("the disk of pool {} is to be taken away", NAMES[pool]));
            self.moment(pool, Moment::Fences);
        }
        (0..2).try_for_each(|pool| self.judge_disk(pool))
    }

    /// No change of a node that was fenced reaches the disk; and nobody is fenced whose lease lasts.
    fn judge_disk(&self, pool: usize) -> Result<(), Violation> {
        let (medium, name) = (&self.site.media[pool], NAMES[pool]);
        if medium.reservation_counts().trespasses > 0 {
            let what = format!("pool {name}: a change of a node reached the disk that was taken away from it before");
            return Err(found(Oracle::Fence, what));
        }
        let now = self.site.world.now();
        for node in (0..2).filter(|&node| medium.take_refused(node).is_some()) {
            let lease = self.setup.detection * LEASE_FACTOR;
            if now < self.site.desk.borrow().beat_heard[node] + lease && self.pools[pool].server == Some(node) {
                let what = format!("pool {name}: the disk was taken away from {}, whose lease lasts", NAMES[node]);
                return Err(found(Oracle::Fence, what));
            }
        }
        Ok(())
    }

    /// Whether a pool's disk takes no changes of a node that has it open.
    pub(super) fn has_lost_disk(&self, pool: usize, node: usize) -> bool {
        self.setup.fence == FenceKind::Reservation && self.site.media[pool].holder() != Some(node)
    }

    /// Adds what was counted of reservations.
    pub(super) fn count_reservations(&mut self) {
        let Some(namespaces) = self.site.namespaces.clone() else { return };
        let counts = namespaces.borrow().counts;
        let media = [0, 1].map(|pool: usize| self.site.media[pool].reservation_counts());
        let refused = media.iter().map(|counts| counts.refused).sum();
        let aborted = media.iter().fold((0, 0), |sum, counts| (sum.0 + counts.aborted.0, sum.1 + counts.aborted.1));
        let both = |count| (count, count);
        let all = [
            (lines::DISK_TAKEN, counts.fenced),
            (lines::DISK_ABORTED, aborted),
            (lines::DISK_REFUSED, both(refused)),
            (lines::DISK_ANEW, both(counts.anew)),
            (lines::DISK_DARK, both(counts.dark)),
            (lines::DISK_LATER, both(counts.later)),
            (lines::DISK_LOST, both(counts.lost)),
            (lines::DISK_UNHEARD, counts.unheard),
            (lines::DISK_UNPROVEN, both(counts.unproven)),
            (lines::DISK_DIED, both(counts.died_between)),
        ];
        for (name, count) in all {
            self.tally.count_named(name, count);
        }
    }
}
