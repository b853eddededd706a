//! How this node's controllers reach the two pools, and that hosts hear of a change before they see it.
//!
//! Each reactor sees for itself who serves a pool, in its own turn. A pool's access is the best that any of them sees, so that a takeover which arrives at the
//! reactors one after the other is one change. A host's admin queue and its I/O queues are at any of them: see I2.
//!
//! ```text
//! comes up --> inaccessible --served here--> optimized <--takeover, giveback--> non-optimized <--served by the partner-- inaccessible
//!                   ^                            |                                   |
//!                   +------ nobody has served it for ACCESS_CHANGE, so far its commands have waited ------+
//! ```
//!
//! # Invariants
//!
//! 1. A pool is inaccessible until this node has seen it served: a path that comes up promises nothing.
//! 2. No reactor gives its sessions an answer while one of the others has yet to look after the last change that any of them has seen: by then every event
//!    request that could be answered was.
//! 3. A pool that stops being served is called what it was for [`ACCESS_CHANGE`], in which commands wait: a takeover is one change for its hosts, and none for
//!    those that know nothing of access states. After that they are refused, so that hosts keep them, and no queue's time-out runs.
//!
//! A reactor that does not have its turns delays the others' answers at such a change; it does so with every command of its own.

use super::{
    target::{GROUPS, Target},
    wire::log::Access,
};
use crate::{base::limits::LANES_MAX, node::request::Reach};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};
use twinlog_device::Nanos;

/// ANATT: how long a change of access takes at most. A takeover has its detection time and its replay: seconds.
pub(super) const ACCESS_CHANGE: Duration = Duration::from_secs(10);

/// Reactors of a node: at most as many as lanes.
const SEATS_MAX: usize = LANES_MAX;

/// The access of each group.
pub(in crate::serve) type AccessView = [Access; GROUPS];

/// Before anything is known.
pub(in crate::serve) const UNPROVEN: AccessView = [Access::Inaccessible; GROUPS];

/// What one reactor sees.
#[derive(Debug, Default)]
struct Seat {
    is_taken: AtomicBool,
    /// [`packed`]; the reactor writes it.
    view: AtomicU8,
    /// The last change after which the reactor has looked, and told its hosts.
    looked: AtomicU64,
}

/// What the reactors see; shared by them.
#[derive(Debug)]
pub(super) struct Views {
    seats: Vec<Seat>,
    /// Changes of any view.
    changes: AtomicU64,
    /// How often a pool was seen to be served by the partner that was not before.
    partner_came: AtomicU64,
}

impl Default for Views {
    fn default() -> Self {
        let seats = std::iter::repeat_with(Seat::default).take(SEATS_MAX).collect();
        Self { seats, changes: AtomicU64::new(0), partner_came: AtomicU64::new(0) }
    }
}

impl Views {
    /// How often the partner has begun to serve a pool, as any reactor saw it: its port is worth a look.
    pub(super) fn partner_came(&self) -> u64 {
        self.partner_came.load(Ordering::Relaxed)
    }

    fn taken(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.is_taken.load(Ordering::SeqCst))
    }
}

/// One reactor's part.
#[derive(Debug)]
pub(in crate::serve) struct Lookout {
    target: Arc<Target>,
    seat: usize,
    own: AccessView,
    /// Since when nobody has served each pool.
    unserved_since: [Option<Nanos>; GROUPS],
    /// What the reactor's hosts were told, after which change.
    told: AccessView,
    looked: Option<u64>,
    /// The last change that was seen to be settled.
    settled: Option<u64>,
}

impl Lookout {
    /// A reactor that has not looked yet.
    ///
    /// # Panics
    /// When there are more reactors than a node can have.
    pub(in crate::serve) fn new(target: Arc<Target>) -> Self {
        let take = |seat: &Seat| !seat.is_taken.swap(true, Ordering::SeqCst);
        let seat = target.views.seats.iter().position(take).expect("as many seats as a node can have reactors");
        let (own, told) = (UNPROVEN, UNPROVEN);
        Self { target, seat, own, unserved_since: [None; GROUPS], told, looked: None, settled: None }
    }

    /// What the hosts of this reactor were told.
    pub(in crate::serve) fn told(&self) -> AccessView {
        self.told
    }

    /// Looks where requests go now. Returns whether what this reactor sees has changed: the others have to look, too.
    pub(in crate::serve) fn see(&mut self, reach: [Reach; GROUPS], now: Nanos) -> bool {
        let mut own = self.own;
        for ((access, since), reach) in own.iter_mut().zip(&mut self.unserved_since).zip(reach) {
            match reach {
                Reach::Here => (*access, *since) = (Access::Optimized, None),
                Reach::Partner => (*access, *since) = (Access::NonOptimized, None),
                Reach::Nobody if now.since(*since.get_or_insert(now)) >= ACCESS_CHANGE => {
                    *access = Access::Inaccessible;
                }
                Reach::Nobody => {}
            }
        }
        let is_news = own != self.own;
        if is_news {
            let views = &self.target.views;
            let is_back = |(now, before)| now == Access::NonOptimized && before != now;
            if own.into_iter().zip(self.own).any(is_back) {
                views.partner_came.fetch_add(1, Ordering::Relaxed);
            }
            self.own = own;
            views.seats[self.seat].view.store(packed(own), Ordering::SeqCst);
            views.changes.fetch_add(1, Ordering::SeqCst);
        }
        is_news
    }

    /// What this reactor's hosts must be told now, if it differs from what they were, with the change to be [told](Self::tell).
    pub(in crate::serve) fn news(&self) -> Option<(u64, AccessView)> {
        let views = &self.target.views;
        let changes = views.changes.load(Ordering::SeqCst);
        if self.looked == Some(changes) {
            return None;
        }
        let best = |all: AccessView, seat: &Seat| best_of(all, unpacked(seat.view.load(Ordering::SeqCst)));
        Some((changes, views.taken().fold(UNPROVEN, best)))
    }

    /// The hosts of this reactor have been told what was [news](Self::news).
    pub(in crate::serve) fn tell(&mut self, (changes, view): (u64, AccessView)) {
        (self.told, self.looked) = (view, Some(changes));
        self.target.views.seats[self.seat].looked.store(changes, Ordering::SeqCst);
    }

    /// Whether all reactors have told their hosts of every change (invariant 2).
    pub(in crate::serve) fn is_settled(&mut self) -> bool {
        let views = &self.target.views;
        let changes = views.changes.load(Ordering::SeqCst);
        if self.settled != Some(changes) && views.taken().all(|seat| seat.looked.load(Ordering::SeqCst) >= changes) {
            self.settled = Some(changes);
        }
        self.settled == Some(changes)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        let views = &self.target.views;
        let seat = &views.seats[self.seat];
        seat.view.store(packed(UNPROVEN), Ordering::SeqCst);
        seat.looked.store(0, Ordering::SeqCst);
        seat.is_taken.store(false, Ordering::SeqCst);
        views.changes.fetch_add(1, Ordering::SeqCst);
    }
}

/// How good an access is; zero: not at all.
fn rank(access: Access) -> u8 {
    match access {
        Access::Inaccessible => 0,
        Access::NonOptimized => 1,
        Access::Optimized => 2,
    }
}

fn best_of(a: AccessView, b: AccessView) -> AccessView {
    std::array::from_fn(|group| if rank(b[group]) > rank(a[group]) { b[group] } else { a[group] })
}

/// Two bits for each group.
fn packed([first, second]: AccessView) -> u8 {
    rank(first) | rank(second) << 2
}

fn unpacked(bits: u8) -> AccessView {
    [bits, bits >> 2].map(|bits| match bits & 0b11 {
        0 => Access::Inaccessible,
        1 => Access::NonOptimized,
        _ => Access::Optimized,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::PoolId, serve::nvme_tcp::TargetParts};
    use Access::{Inaccessible, NonOptimized, Optimized};
    use Reach::{Here, Nobody, Partner};

    fn target() -> Arc<Target> {
        let address = "127.0.0.1:4420".parse().expect("an address");
        let (home, partner) = (PoolId(7), Some(PoolId(9)));
        Arc::new(Target::new(TargetParts { home, partner, address, partner_address: None, hosts: Vec::new() }))
    }

    fn look(lookout: &mut Lookout, reach: [Reach; GROUPS], now: Nanos) -> AccessView {
        lookout.see(reach, now);
        lookout.news().into_iter().for_each(|news| lookout.tell(news));
        lookout.told()
    }

    #[test]
    fn views_are_packed_and_unpacked() {
        for first in [Inaccessible, NonOptimized, Optimized] {
            for second in [Inaccessible, NonOptimized, Optimized] {
                assert_eq!(unpacked(packed([first, second])), [first, second]);
            }
        }
    }

    #[test]
    fn a_pool_is_inaccessible_until_it_is_served_and_when_nobody_has_for_long() {
        let mut lookout = Lookout::new(target());
        let at = |after: Duration| Nanos(1) + after;
        let second = Duration::from_secs(1);
        assert_eq!(look(&mut lookout, [Nobody, Nobody], at(second)), [Inaccessible; 2]);
        assert_eq!(look(&mut lookout, [Here, Partner], at(second)), [Optimized, NonOptimized]);
        assert_eq!(look(&mut lookout, [Nobody, Nobody], at(2 * second)), [Optimized, NonOptimized]);
        assert_eq!(look(&mut lookout, [Nobody, Here], at(11 * second)), [Optimized, Optimized]);
        assert_eq!(look(&mut lookout, [Nobody, Nobody], at(12 * second)), [Inaccessible, Optimized]);
        assert_eq!(look(&mut lookout, [Partner, Nobody], at(13 * second)), [NonOptimized, Optimized]);
    }

    #[test]
    fn a_change_is_settled_when_every_reactor_has_looked_since() {
        let target = target();
        let mut lookouts = [(); 2].map(|()| Lookout::new(Arc::clone(&target)));
        for lookout in &mut lookouts {
            look(lookout, [Partner; 2], Nanos(1));
        }
        assert!(!lookouts[0].is_settled(), "it has not looked since the other one has seen it");
        look(&mut lookouts[0], [Partner; 2], Nanos(1));
        assert!(lookouts[0].is_settled());
        // One has the pool before the other has.
        assert_eq!(look(&mut lookouts[1], [Here, Partner], Nanos(2)), [Optimized, NonOptimized]);
        assert!(!lookouts[1].is_settled());
        assert_eq!(look(&mut lookouts[0], [Partner; 2], Nanos(2)), [Optimized, NonOptimized], "told all the same");
        assert!(lookouts[1].is_settled());
        // A reactor that has ended keeps nobody waiting, and counts for nothing.
        let [mut first, second] = lookouts;
        drop(second);
        assert_eq!(look(&mut first, [Partner; 2], Nanos(3)), [NonOptimized; 2]);
        assert!(first.is_settled());
    }
}
