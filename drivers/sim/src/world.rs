//! One world: virtual time, the seed, durable steps, and the count of faults.
//!
//! Time moves only in a reactor's turn: by a little in every turn, and to the next event of any reactor when one waits.

use crate::{
    fault::{Fault, FaultCounts},
    net::PathState,
};
use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use twinlog_device::{Nanos, NetAddress, Prng, Wait};

/// Virtual time that a turn of the loop takes, in nanoseconds: a loop that never waits still sees time pass.
const TURN_NS: u64 = 500;

/// What everything simulated shares. Clones are handles of the same world.
#[derive(Clone)]
pub struct SimWorld(Rc<Shared>);

struct Shared {
    now: Cell<u64>,
    prng: RefCell<Prng>,
    steps: Cell<u64>,
    /// Steps that may happen; `u64::MAX` means all.
    steps_max: Cell<u64>,
    crashed: Cell<bool>,
    faults: FaultCounts,
    agendas: RefCell<Vec<Weak<Events>>>,
    paths: RefCell<BTreeMap<NetAddress, Weak<PathState>>>,
}

impl SimWorld {
    /// A world that is determined by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Shared {
            now: Cell::new(0),
            prng: RefCell::new(Prng::new(seed)),
            steps: Cell::new(0),
            steps_max: Cell::new(u64::MAX),
            crashed: Cell::new(false),
            faults: FaultCounts::default(),
            agendas: RefCell::new(Vec::new()),
            paths: RefCell::default(),
        }))
    }

    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos(self.0.now.get())
    }

    /// A generator of its own for a part of the world.
    #[must_use]
    pub fn fork_prng(&self) -> Prng {
        self.0.prng.borrow_mut().fork()
    }

    /// Durable steps so far: sectors of disks and units of logs that became durable, flushes and persists that completed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// Lets `steps` durable steps happen, counted from the world's beginning; the attempt at a further one is the crash, after which
    /// nothing becomes durable and nothing completes until [`Self::recover`].
    pub fn crash_at_step(&self, steps: u64) {
        self.0.steps_max.set(steps);
    }

    /// Whether the crash that [`Self::crash_at_step`] asked for has happened.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.0.crashed.get()
    }

    /// Ends a crash, after every medium's power was cut: durable steps happen again, without limit.
    pub fn recover(&self) {
        self.0.steps_max.set(u64::MAX);
        self.0.crashed.set(false);
    }

    /// Asks for `count` durable steps; returns how many of them happen. Fewer than `count` mean that the world has crashed.
    pub fn durable_steps(&self, count: u64) -> u64 {
        let allowed = self.0.steps_max.get().saturating_sub(self.0.steps.get());
        let granted = if self.crashed() { 0 } else { count.min(allowed) };
        self.0.steps.set(self.0.steps.get() + granted);
        if granted < count {
            self.0.crashed.set(true);
        }
        granted
    }

    /// Counts a fault that was injected.
    pub fn count_fired(&self, fault: Fault) {
        self.0.faults.fired(fault);
    }

    /// Counts an operation whose outcome a fault has changed.
    pub fn count_mattered(&self, fault: Fault) {
        self.0.faults.mattered(fault);
    }

    /// How often a fault was injected, and how often it mattered.
    #[must_use]
    pub fn faults(&self, fault: Fault) -> (u64, u64) {
        self.0.faults.of(fault)
    }

    /// Notes what leads to an address.
    pub(crate) fn add_path(&self, address: &NetAddress, path: &Rc<PathState>) {
        let before = self.0.paths.borrow_mut().insert(address.clone(), Rc::downgrade(path));
        assert!(before.is_none_or(|before| before.strong_count() == 0), "one path leads to {address}");
    }

    /// What leads to an address, if anything does.
    pub(crate) fn path(&self, address: &NetAddress) -> Option<Rc<PathState>> {
        self.0.paths.borrow().get(address).and_then(Weak::upgrade)
    }

    /// Moves the clock to the next event of any reactor, `latest` at most; never back.
    fn advance(&self, latest: u64) {
        let mut next = latest;
        self.0.agendas.borrow().iter().filter_map(Weak::upgrade).for_each(|events| next = next.min(events.next()));
        self.0.now.set(self.0.now.get().max(next));
    }
}

/// When something happens for one reactor. Its devices put their completions here; it lives as long as the last of them. Clones are
/// handles of the same agenda.
#[derive(Clone)]
pub struct Agenda {
    world: SimWorld,
    events: Rc<Events>,
}

struct Events {
    due: RefCell<BinaryHeap<Reverse<u64>>>,
    /// The end of the reactor's wait, or the time of a turn without one; `u64::MAX` before its first turn.
    deadline: Cell<u64>,
    /// What it has read the clock as: when its last turn ended, or it was roused since.
    clock: Cell<u64>,
    /// It has read the clock and not had its turn since.
    is_up: Cell<bool>,
    /// Raised by a [`SimWaker`], lowered by the reactor's next turn.
    woken: Arc<AtomicBool>,
    /// Nobody polls the reactor: its events hold back no other.
    is_still: Cell<bool>,
}

/// Ends the sleep of one reactor, for whoever is no device of it: mailboxes need it to be `Send`.
#[derive(Clone, Debug)]
pub struct SimWaker(Arc<AtomicBool>);

impl SimWaker {
    /// Ends the reactor's sleep, or its next one.
    pub fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Events {
    fn next(&self) -> u64 {
        if self.is_still.get() {
            return u64::MAX;
        }
        if self.woken.load(Ordering::Relaxed) {
            return 0;
        }
        self.due.borrow().peek().map_or(u64::MAX, |due| due.0).min(self.deadline.get())
    }
}

impl Agenda {
    /// The agenda of a new reactor.
    #[must_use]
    pub fn new(world: &SimWorld) -> Self {
        let events = Rc::new(Events {
            due: RefCell::default(),
            deadline: Cell::new(u64::MAX),
            clock: Cell::new(world.0.now.get()),
            is_up: Cell::new(true),
            woken: Arc::default(),
            is_still: Cell::new(false),
        });
        let mut agendas = world.0.agendas.borrow_mut();
        agendas.retain(|agenda| agenda.strong_count() > 0);
        agendas.push(Rc::downgrade(&events));
        Self { world: world.clone(), events }
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &SimWorld {
        &self.world
    }

    /// Notes that something happens at `due`: a waiting reactor wakes then.
    pub fn at(&self, due: Nanos) {
        self.events.due.borrow_mut().push(Reverse(due.0));
    }

    /// What ends a sleep of this reactor.
    #[must_use]
    pub fn waker(&self) -> SimWaker {
        SimWaker(self.events.woken.clone())
    }

    /// Whether the reactor gets no turns for a while, or never again: then time goes on without it. When it goes on it does not know how long that was.
    pub fn stand_still(&self, is_still: bool) {
        if is_still {
            self.rouse();
        }
        self.events.is_still.set(is_still);
    }

    /// Whether the reactor would have a turn now: it does not wait, or its wait is over.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.events.is_up.get() || self.events.next() <= self.world.0.now.get()
    }

    /// The reactor's wait is over, and it reads the clock; unless it has done so.
    pub fn rouse(&self) {
        if !self.events.is_up.replace(true) {
            self.events.clock.set(self.world.0.now.get());
        }
    }

    /// The time that the reactor knows of.
    #[must_use]
    pub fn clock(&self) -> Nanos {
        Nanos(self.events.clock.get())
    }

    /// The time that the reactor would know of in a turn that came now.
    #[must_use]
    pub fn next_clock(&self) -> Nanos {
        if self.events.is_up.get() { self.clock() } else { self.world.now() }
    }

    /// Notes that something has happened now.
    pub fn wake(&self) {
        self.at(self.world.now());
    }

    /// One turn of the reactor's loop: time passes, to the next event of any reactor when this one waits. Returns whether anything of
    /// this reactor is due.
    pub fn turn(&self, wait: Wait) -> bool {
        let shared = &self.world.0;
        shared.now.set(shared.now.get().saturating_add(TURN_NS));
        // It comes back then at the latest: until it does no other reactor may sleep past that.
        let deadline = match wait {
            Wait::No => self.world.now(),
            Wait::UpTo(limit) => self.world.now() + limit,
        };
        self.events.deadline.set(deadline.0);
        if wait != Wait::No {
            self.world.advance(deadline.0);
        }
        let now = self.world.now();
        self.events.clock.set(now.0);
        let is_any = self.take_due();
        self.events.is_up.set(is_any || deadline <= now);
        is_any
    }

    /// Removes the events that are due; returns whether there were any.
    fn take_due(&self) -> bool {
        let now = self.world.now().0;
        let mut due = self.events.due.borrow_mut();
        let before = due.len();
        while due.peek().is_some_and(|due| due.0 <= now) {
            due.pop();
        }
        self.events.woken.swap(false, Ordering::Relaxed) | (due.len() < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn exactly_the_granted_steps_happen() {
        let world = SimWorld::new(1);
        assert_eq!(world.durable_steps(3), 3);
        world.crash_at_step(5);
        assert_eq!(world.durable_steps(2), 2);
        assert!(!world.crashed(), "the crash is the attempt at a further step");
        assert_eq!((world.durable_steps(2), world.durable_steps(1)), (0, 0));
        assert!(world.crashed());
        assert_eq!(world.steps(), 5);
        world.recover();
        assert_eq!(world.durable_steps(1), 1);
    }

    #[test]
    fn time_goes_on_without_a_reactor_that_stands_still() {
        let world = SimWorld::new(1);
        let (first, second) = (Agenda::new(&world), Agenda::new(&world));
        second.at(Nanos(30_000));
        second.stand_still(true);
        first.turn(Wait::UpTo(Duration::from_nanos(100_000)));
        assert_eq!(world.now(), Nanos(100_500));
        second.stand_still(false);
        assert!(second.turn(Wait::No), "what was due meanwhile is found");
    }

    #[test]
    fn a_reactor_is_due_when_its_wait_is_over_and_reads_the_clock_then() {
        let world = SimWorld::new(1);
        let (first, second) = (Agenda::new(&world), Agenda::new(&world));
        let wait = |ns| Wait::UpTo(Duration::from_nanos(ns));
        second.at(Nanos(2000));
        first.turn(wait(1000));
        assert!(first.is_due() && second.is_due(), "its wait is over; the other has had no turn");
        second.turn(wait(100_000));
        assert_eq!(
            (world.now(), second.clock()),
            (Nanos(2000), Nanos(2000)),
            "nobody passes the end of another's wait"
        );
        first.turn(wait(1_000_000));
        assert!(!first.is_due() && second.is_due());
        second.turn(wait(50_000));
        assert_eq!((first.clock(), world.now()), (Nanos(102_000), Nanos(152_500)));
        first.waker().wake();
        assert!(first.is_due(), "woken");
        first.rouse();
        assert_eq!(first.clock(), world.now());
        second.turn(Wait::No);
        first.turn(wait(1_000_000));
        let before = world.now();
        first.stand_still(true);
        second.turn(wait(100_000));
        first.stand_still(false);
        first.rouse();
        assert!(first.is_due() && world.now() > before);
        assert_eq!(first.clock(), before, "who stood still does not know for how long");
    }

    #[test]
    fn time_stops_at_the_next_event_of_any_reactor() {
        let world = SimWorld::new(1);
        let (first, second) = (Agenda::new(&world), Agenda::new(&world));
        let wait = |ns| Wait::UpTo(Duration::from_nanos(ns));
        second.at(Nanos(30_000));
        first.at(Nanos(50_000));
        assert!(!first.turn(wait(40_000)));
        assert_eq!(world.now(), Nanos(30_000));
        assert!(second.turn(Wait::No) && !second.turn(wait(1_000_000)));
        assert_eq!(world.now(), Nanos(40_500), "nobody passes the end of another reactor's wait");
        assert!(first.turn(wait(1_000_000)));
        assert_eq!(world.now(), Nanos(50_000));
        second.at(Nanos(60_000));
        second.waker().wake();
        assert!(!first.turn(wait(1_000_000)), "the sleep that ends is another's");
        assert_eq!(world.now(), Nanos(50_500));
        assert!(second.turn(wait(1_000_000)), "woken");
        assert_eq!(world.now(), Nanos(51_000));
        drop(second);
        assert!(!first.turn(wait(20_000)));
        assert_eq!(world.now(), Nanos(71_500), "a reactor that is gone holds nobody back");
        let third = Agenda::new(&world);
        assert!(!first.turn(Wait::No) && !third.turn(wait(1_000_000)));
        assert_eq!(world.now(), Nanos(72_500), "nobody sleeps past a reactor that does not wait");
        assert!(!first.turn(Wait::No));
        assert_eq!(world.now(), Nanos(73_000), "a loop that never waits still sees time pass");
    }
}
