//! Sweeps: what lies unread at this node's sockets is taken in before something that came another way is performed.
//!
//! A host that gives a connection up sends what was not answered on it again on another one, and goes on there. What it has sent on the first may still
//! lie in this machine, and must not be performed after what was answered since. So a change that comes from the partner, and whatever comes over a new
//! connection, waits for a *sweep* that is ordered when it comes: every reactor takes in what lay at its clients' connections by then, or ends them, and
//! hands it on to where it is performed. [The argument](../../docs/decisions/0019-late-commands-are-swept.md) has no clock in it.
//!
//! # Invariants
//!
//! 1. A sweep counts at a reactor only if the reactor began it after it was ordered.
//! 2. Who waits says so before it looks whether a sweep is done, and who does its part says so before it looks who waits; all in one order (`SeqCst`), so that one
//!    of the two sees the other.
//! 3. A reactor counts as swept without one only if it has no client and nothing that was submitted by one is still on its way.

use crate::reactor::Waker;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// A sweep that was ordered. Later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// One reactor.
struct Place {
    waker: Arc<dyn Waker>,
    /// It has clients, or something of theirs that is not handed on. Written by the reactor.
    is_busy: AtomicBool,
    /// It waits for a sweep. Written by the reactor.
    is_waiting: AtomicBool,
    /// The newest sweep that it has done. Written by the reactor.
    swept: AtomicU64,
}

/// The sweeps of a node. Without reactors there is nothing to sweep.
#[derive(Default)]
pub struct Sweeps {
    ordered: AtomicU64,
    /// The forwarder, which is at the first reactor, waits for one.
    forwarder_waits: AtomicBool,
    places: Vec<Place>,
}

impl fmt::Debug for Sweeps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sweeps").field("ordered", &self.ordered).finish_non_exhaustive()
    }
}

impl Sweeps {
    /// Of reactors that are woken so.
    #[must_use]
    pub fn new(wakers: &[Arc<dyn Waker>]) -> Self {
        let place = |waker: &Arc<dyn Waker>| Place {
            waker: Arc::clone(waker),
            is_busy: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            swept: AtomicU64::new(0),
        };
        Self { places: wakers.iter().map(place).collect(), ..Self::default() }
    }

    /// Orders a sweep: of what lies at this node's connections now.
    pub fn order(&self) -> Ticket {
        let ticket = self.ordered.fetch_add(1, Ordering::SeqCst) + 1;
        let busy = self.places.iter().filter(|place| place.is_busy.load(Ordering::SeqCst));
        busy.for_each(|place| place.waker.wake());
        Ticket(ticket)
    }

    /// Says whether the forwarder waits for one: it is woken then whenever a reactor has done its part.
    pub fn set_forwarder_waits(&self, waits: bool) {
        if self.forwarder_waits.load(Ordering::Relaxed) != waits {
            self.forwarder_waits.store(waits, Ordering::SeqCst);
        }
    }

    /// Wakes whoever waits, but for `reactor`.
    fn wake_all_but(&self, reactor: usize) {
        let forwarder_waits = self.forwarder_waits.load(Ordering::SeqCst);
        for (index, place) in self.places.iter().enumerate().filter(|(index, _)| *index != reactor) {
            if place.is_waiting.load(Ordering::SeqCst) || (index == 0 && forwarder_waits) {
                place.waker.wake();
            }
        }
    }

    /// Whether every reactor has done it.
    #[must_use]
    pub fn is_done(&self, Ticket(ticket): Ticket) -> bool {
        let is_done =
            |place: &Place| place.swept.load(Ordering::SeqCst) >= ticket || !place.is_busy.load(Ordering::SeqCst);
        self.places.iter().all(is_done)
    }
}

/// One reactor's part in the sweeps of its node. When it is dropped the reactor has no clients any more.
#[derive(Debug)]
pub struct ReactorSweeps {
    sweeps: Arc<Sweeps>,
    reactor: usize,
    is_busy: bool,
}

impl ReactorSweeps {
    /// Of the reactor of this index.
    #[must_use]
    pub fn new(sweeps: Arc<Sweeps>, reactor: usize) -> Self {
        assert!(reactor < sweeps.places.len(), "a reactor of this node");
        Self { sweeps, reactor, is_busy: false }
    }

    fn place(&self) -> &Place {
        &self.sweeps.places[self.reactor]
    }

    /// Orders a sweep.
    #[must_use]
    pub fn order(&self) -> Ticket {
        self.sweeps.order()
    }

    /// Whether every reactor has done it.
    #[must_use]
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.sweeps.is_done(ticket)
    }

    /// The newest that was ordered.
    #[must_use]
    pub fn ordered(&self) -> Ticket {
        Ticket(self.sweeps.ordered.load(Ordering::SeqCst))
    }

    /// The newest that this reactor has done.
    #[must_use]
    pub fn swept(&self) -> Ticket {
        Ticket(self.place().swept.load(Ordering::SeqCst))
    }

    /// Says whether it has clients, or something of theirs that is not handed on.
    pub fn set_busy(&mut self, is_busy: bool) {
        if self.is_busy != is_busy {
            self.is_busy = is_busy;
            self.place().is_busy.store(is_busy, Ordering::SeqCst);
            if !is_busy {
                self.sweeps.wake_all_but(self.reactor);
            }
        }
    }

    /// It has done this sweep.
    pub fn finish(&self, Ticket(ticket): Ticket) {
        self.place().swept.store(ticket, Ordering::SeqCst);
        self.sweeps.wake_all_but(self.reactor);
    }

    /// Says whether it waits for one: it is woken then whenever another reactor has done its part.
    pub fn set_waiting(&self, is_waiting: bool) {
        if self.place().is_waiting.load(Ordering::Relaxed) != is_waiting {
            self.place().is_waiting.store(is_waiting, Ordering::SeqCst);
        }
    }
}

impl Drop for ReactorSweeps {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Waker for Woken {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_sweep_is_done_when_every_reactor_with_clients_has_done_it_or_a_later_one() {
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.clone().map(|woken| woken as Arc<dyn Waker>);
        let sweeps = Arc::new(Sweeps::new(&wakers));
        let mut reactors = [0, 1].map(|index| ReactorSweeps::new(Arc::clone(&sweeps), index));
        assert!(sweeps.is_done(sweeps.order()), "nobody has clients");
        reactors[1].set_busy(true);
        let (first, second) = (sweeps.order(), sweeps.order());
        assert!(!sweeps.is_done(first) && reactors[1].ordered() == second && reactors[1].swept() < first);
        assert_eq!(woken[1].0.load(Ordering::Relaxed), 2, "who has clients is woken for each");
        reactors[0].set_waiting(true);
        reactors[1].finish(second);
        assert!(sweeps.is_done(first) && sweeps.is_done(second));
        assert_eq!(woken[0].0.load(Ordering::Relaxed), 1, "whoever waits for it is woken");
        reactors[0].set_waiting(false);
        reactors[1].finish(second);
        assert_eq!(woken[0].0.load(Ordering::Relaxed), 1, "and nobody else");
        sweeps.set_forwarder_waits(true);
        reactors[1].finish(second);
        assert_eq!(woken[0].0.load(Ordering::Relaxed), 2);
        let third = sweeps.order();
        assert!(!sweeps.is_done(third));
        drop(reactors);
        assert!(sweeps.is_done(third), "a reactor that has ended has no clients");
    }
}
