//! What lies between a node that connects and a node that listens: latency, lost packets, cuts, breaks.
//!
//! A path is named by the address that is listened at. It outlives the processes at its ends: each process that listens there says so with
//! [`SimPath::listen`], and whoever connects to the address goes over it.
//!
//! # What TCP makes of faults
//!
//! | fault | what the ends see |
//! |---|---|
//! | a lost packet | a piece, and what follows it, arrives late |
//! | a cut in one direction | nothing arrives there; the other way goes on until the sender's kernel has no room, as nothing is acknowledged |
//! | a cut connection that heals | everything arrives, late |
//! | a break | both ends fail, at different times; of what was on its way a part arrives |
//! | a process that ends | the other end sees the end of the stream, or a failure |
//! | a machine that goes dark | nothing; once it runs again, what is sent to it is answered by a reset |
//! | nobody listens; the machine is dark, or a direction is cut | connecting is refused; waits |

use super::{
    SimListener,
    stream::{End, SharedStream, Side, Stream},
};
use crate::world::SimWorld;
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};
use twinlog_device::NetAddress;

/// A direction of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who connects.
    ToListener,
    /// To who connects.
    FromListener,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::ToListener, Self::FromListener];

    fn sender(self) -> Side {
        match self {
            Self::ToListener => Side::Connecting,
            Self::FromListener => Side::Listening,
        }
    }
}

/// How a path behaves by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPlan {
    /// Shortest and longest time that a piece of a stream is on its way.
    pub latency_ns: [u64; 2],
    /// One piece in so many is lost and sent again; zero: none.
    pub lost_one_in: u64,
    /// How long it takes until a lost piece has been sent again, at most.
    pub resent_after_ns_max: u64,
    /// A connection breaks with one piece in so many; zero: never.
    pub broken_one_in: u64,
}

impl Default for PathPlan {
    /// A good network: 20 to 100 microseconds, nothing lost, nothing broken.
    fn default() -> Self {
        Self { latency_ns: [20_000, 100_000], lost_one_in: 0, resent_after_ns_max: 400_000_000, broken_one_in: 0 }
    }
}

/// How often faults of a path happened, and how often they mattered: something was on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// Pieces that were sent again. They always matter.
    pub lost: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Of them, with bytes on their way.
    pub broken_mattered: u64,
    /// Directions that were cut.
    pub cut: u64,
    /// Pieces that waited for a cut to heal, and connections that could not be made.
    pub cut_mattered: u64,
}

/// The part of a path that streams refer to.
pub(crate) struct PathState {
    pub(super) plan: Cell<PathPlan>,
    cut: [Cell<bool>; 2],
    /// Who listens, if anybody does.
    listener: RefCell<Option<(SimListener, usize)>>,
    /// Who connected last.
    connector: RefCell<Option<SimListener>>,
    /// How often the machine of each end has started.
    starts: [Cell<u64>; 2],
    streams: RefCell<Vec<Weak<RefCell<Stream>>>>,
    pub(super) counts: Cell<PathCounts>,
}

/// What connecting over a path comes to.
pub(super) enum Answer {
    /// Somebody listens.
    Listening,
    /// The machine is there, and nobody listens.
    Refused,
    /// Nothing comes back.
    Silence,
}

impl PathState {
    pub(super) fn is_cut(&self, sender: Side) -> bool {
        self.cut[sender as usize].get()
    }

    pub(super) fn starts(&self, side: Side) -> u64 {
        self.starts[side as usize].get()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut PathCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// A process connects over this path: `own` names it.
    pub(super) fn begin(self: &Rc<Self>, own: &SimListener, stream: &SharedStream) {
        let mut connector = self.connector.borrow_mut();
        if connector.as_ref().is_none_or(|known| !known.is_of_same_process(own)) {
            self.note_start(Side::Connecting);
            *connector = Some(own.clone());
        }
        let mut streams = self.streams.borrow_mut();
        streams.retain(|known| known.strong_count() > 0);
        streams.push(Rc::downgrade(stream));
        let mut stream = stream.borrow_mut();
        stream.path = Some(self.clone());
        stream.starts = [self.starts(Side::Connecting), self.starts(Side::Listening)];
    }

    /// What a process that connects hears now; when somebody listens, the connection waits there to be accepted.
    pub(super) fn answer(&self, stream: &SharedStream) -> Answer {
        if self.is_cut(Side::Connecting) || self.is_cut(Side::Listening) {
            self.count(|counts| counts.cut_mattered += 1);
            return Answer::Silence;
        }
        let listener = self.listener.borrow();
        let Some((listener, index)) = &*listener else { return Answer::Refused };
        stream.borrow_mut().starts[Side::Listening as usize] = self.starts(Side::Listening);
        listener.offer(*index, stream)
    }

    fn note_start(&self, side: Side) {
        let starts = &self.starts[side as usize];
        starts.set(starts.get() + 1);
        self.wake();
    }

    fn each(&self, mut act: impl FnMut(&mut Stream)) {
        let streams: Vec<SharedStream> = self.streams.borrow().iter().filter_map(Weak::upgrade).collect();
        for stream in streams {
            act(&mut stream.borrow_mut());
        }
    }

    /// Both ends of every connection look again.
    fn wake(&self) {
        self.each(|stream| {
            stream.wake(Side::Connecting);
            stream.wake(Side::Listening);
        });
    }

    /// Breaks a connection.
    pub(super) fn break_apart(&self, stream: &mut Stream) {
        let is_whole =
            [Side::Connecting, Side::Listening].iter().any(|&side| matches!(stream.end(side), End::Open | End::Ended));
        if !is_whole {
            return;
        }
        let on_its_way = [Side::Connecting, Side::Listening].iter().any(|&side| !stream.sent_by(side).bytes.is_empty());
        self.count(|counts| {
            counts.broken += 1;
            counts.broken_mattered += u64::from(on_its_way);
        });
        stream.break_apart();
    }
}

/// A path to one address. Clones are handles of the same path; it lives as long as one of them.
#[derive(Clone)]
pub struct SimPath(Rc<PathState>);

impl SimPath {
    /// A path to `address`, at which nobody listens yet.
    ///
    /// # Panics
    /// When the world has a path to this address.
    #[must_use]
    pub fn new(world: &SimWorld, address: &NetAddress, plan: PathPlan) -> Self {
        let state = Rc::new(PathState {
            plan: Cell::new(plan),
            cut: [Cell::new(false), Cell::new(false)],
            listener: RefCell::new(None),
            connector: RefCell::new(None),
            starts: [Cell::new(0), Cell::new(0)],
            streams: RefCell::new(Vec::new()),
            counts: Cell::new(PathCounts::default()),
        });
        world.add_path(address, &state);
        Self(state)
    }

    /// From now on the process of `listener` listens here: what connects is accepted as from its listener number `index`.
    pub fn listen(&self, listener: &SimListener, index: usize) {
        *self.0.listener.borrow_mut() = Some((listener.clone(), index));
        self.0.note_start(Side::Listening);
    }

    /// Changes how the path behaves.
    pub fn set_plan(&self, plan: PathPlan) {
        self.0.plan.set(plan);
    }

    /// Lets nothing pass in one direction.
    pub fn cut(&self, direction: Direction) {
        if !self.0.cut[direction.sender() as usize].replace(true) {
            self.0.count(|counts| counts.cut += 1);
        }
    }

    /// Ends every cut.
    pub fn heal(&self) {
        for direction in Direction::BOTH {
            self.0.cut[direction.sender() as usize].set(false);
        }
        self.0.wake();
    }

    /// Whether a direction is cut.
    #[must_use]
    pub fn is_cut(&self, direction: Direction) -> bool {
        self.0.is_cut(direction.sender())
    }

    /// Breaks every connection that runs over it.
    pub fn break_connections(&self) {
        self.0.each(|stream| self.0.break_apart(stream));
    }

    /// How often faults happened here.
    #[must_use]
    pub fn counts(&self) -> PathCounts {
        self.0.counts.get()
    }
}
