//! NVMe over TCP: a host with every path to one namespace. One thread moves the bytes; paths are opened by threads of their own, because that takes
//! time.
//!
//! ```text
//! goal         what the URI asks for
//! wire         bytes <-> units, commands, answers; pure
//! auth         a host proves who it is, if it has to
//! link         a few commands without an order: how queues begin, and what admin queues stay
//! controller   a path is opened: controller, namespace, I/O queues
//! discovery    which subsystem there is, and where
//! table        what the slots are doing
//! queue        an I/O queue: many commands per system call
//! path         a controller with its queues, its health, its access
//! ```
//!
//! # Invariants
//!
//! 1. A command is in one queue of one path. It goes to another path only when its own is lost, or when its own has answered that the path is to blame: as a
//!    multipath host does it.
//! 2. Of the paths that can be used the optimized one is preferred (asymmetric namespace access), then the one in use.
//! 3. A path that is lost is opened again for as long as the host lives; one that leads to another namespace, or to one of another size, is refused.
//! 4. [`Lost`] is told when no path is open; [`Engine::recover`] then waits for the first to come back.

pub(crate) mod auth;
pub(crate) mod controller;
pub(crate) mod discovery;
pub(crate) mod goal;
pub(crate) mod link;
mod path;
pub(crate) mod queue;
mod table;
pub(crate) mod wire;

use std::{
    collections::VecDeque,
    os::fd::AsFd as _,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    engine::{Buffers, Completion, Engine, Geometry, Lost, Request, Switch, Unopened, Wait},
    stream::Stream,
    target::Address,
};
use auth::keys::Keys;
use controller::{Access, Opened, Parties};
use goal::{Goal, Host, PATHS_LIMIT};
use link::LinkError;
use path::Path;
use queue::Outcomes;
use table::Table;
use wire::Status;

/// The most I/O queues of a path: one bit each in a mask.
pub(crate) const QUEUES_LIMIT: usize = 64;
/// Between two attempts to open a path.
const RETRY: Duration = Duration::from_millis(50);
/// How long the first path that is open waits for the others at the start.
const COMPANY: Duration = Duration::from_secs(1);
/// How long the start may take.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// How often admin queues are looked at while I/O keeps the host busy.
const TEND_PERIOD: Duration = Duration::from_millis(5);
/// The longest wait while something may happen that no socket tells: a path that is being opened, or rests.
const WATCH_PERIOD: Duration = Duration::from_millis(20);
/// The most switches that are kept until they are asked for.
const SWITCHES_LIMIT: usize = 64;

/// What is the same for every path.
#[derive(Debug)]
struct Plan {
    goal: Goal,
    host: Host,
    keys: Option<Keys>,
    subsystem: String,
    queues: u16,
}

type Opening = Receiver<Result<Opened<Stream>, LinkError>>;

enum State {
    Open(Box<Path>),
    Opening(Opening),
    Closed { again_at: Instant },
}

/// An address of the subsystem.
struct Seat {
    address: Address,
    state: State,
    /// Why it was lost, or cannot be opened.
    reason: String,
}

impl Seat {
    fn path(&self) -> Option<&Path> {
        if let State::Open(path) = &self.state { Some(path) } else { None }
    }

    fn path_mut(&mut self) -> Option<&mut Path> {
        if let State::Open(path) = &mut self.state { Some(path) } else { None }
    }
}

/// A host with the paths to one namespace.
pub(crate) struct NvmeEngine {
    plan: Arc<Plan>,
    seats: Vec<Seat>,
    /// The path in use.
    current: Option<usize>,
    geometry: Geometry,
    identity: ([u8; 16], [u8; 16]),
    table: Table,
    /// Slots whose command no queue has.
    waiting: VecDeque<usize>,
    tended_at: Instant,
    again: Vec<(usize, usize, Status)>,
    switches: VecDeque<Switch>,
}

impl NvmeEngine {
    /// Opens every path that there is with `queues` I/O queues each (1 to [`QUEUES_LIMIT`]); one is enough. `keys` are for a target that wants to know who the
    /// host is; `seed` draws the host's identity.
    pub(crate) fn open(goal: &Goal, keys: Option<&Keys>, queues: u16, seed: u64) -> Result<Self, Unopened> {
        assert!((1..=QUEUES_LIMIT).contains(&usize::from(queues)), "checked by the command line");
        let host = goal.host(seed);
        let (subsystem, addresses) = match &goal.subsystem {
            Some(name) => (name.clone(), goal.addresses.clone()),
            None => find(goal, &host, keys)?,
        };
        let plan = Arc::new(Plan { goal: goal.clone(), host, keys: keys.cloned(), subsystem, queues });
        let now = Instant::now();
        let closed = |address| Seat { address, state: State::Closed { again_at: now }, reason: String::new() };
        let seats: Vec<Seat> = addresses.into_iter().take(PATHS_LIMIT).map(closed).collect();
        let mut engine = Self {
            plan,
            seats,
            current: None,
            geometry: NOTHING,
            identity: Default::default(),
            table: Table::new(Buffers::new(0, 0), 0, false),
            waiting: VecDeque::new(),
            tended_at: now,
            again: Vec::new(),
            switches: VecDeque::new(),
        };
        engine.gather(now)?;
        Ok(engine)
    }

    /// Opens the paths for the first time.
    fn gather(&mut self, begun: Instant) -> Result<(), Unopened> {
        let mut openings: Vec<Option<Opening>> =
            self.seats.iter().map(|seat| Some(open_path(&self.plan, &seat.address))).collect();
        let (mut first, mut may_come) = (None, false);
        while openings.iter().any(Option::is_some) {
            let now = Instant::now();
            for (number, entry) in openings.iter_mut().enumerate() {
                let Some(result) = entry.as_ref().and_then(arrived) else { continue };
                *entry = None;
                may_come |= matches!(result, Err(LinkError::Io(_) | LinkError::Silent | LinkError::Closed));
                self.settle(number, result, now);
                if self.seats[number].path().is_some() {
                    first.get_or_insert(now);
                }
            }
            if first.is_some_and(|first| now > first + COMPANY) || now > begun + OPEN_LIMIT {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        for (seat, opening) in self.seats.iter_mut().zip(openings) {
            if let Some(opening) = opening {
                seat.state = State::Opening(opening);
            }
        }
        match first {
            Some(_) => Ok(()),
            None => Err(Unopened { lost: self.reason(), may_come }),
        }
    }

    /// Gives the engine its slots; `keep_data` says whether what is read is wanted.
    pub(crate) fn with_slots(mut self, buffers: Buffers, count: usize, keep_data: bool) -> Self {
        self.table = Table::new(buffers, count, keep_data);
        self
    }

    /// Takes the result of an attempt to open the path of `seat`.
    fn settle(&mut self, number: usize, result: Result<Opened<Stream>, LinkError>, now: Instant) {
        let is_first = self.geometry == NOTHING;
        let seat = &mut self.seats[number];
        seat.state = State::Closed { again_at: now + RETRY };
        let opened = match result {
            Ok(opened) if is_first => {
                (self.geometry, self.identity) = (opened.facts.geometry.clone(), opened.facts.identity);
                opened
            }
            Ok(opened) => {
                let facts = &opened.facts;
                if facts.geometry != self.geometry || facts.identity != self.identity {
                    seat.reason = format!("another namespace is there, or it has changed: {:?}", facts.geometry);
                    return;
                }
                opened
            }
            Err(error) => {
                seat.reason = error.to_string();
                return;
            }
        };
        match Path::new(opened, number, now) {
            Ok(path) => seat.state = State::Open(Box::new(path)),
            Err(error) => seat.reason = error.to_string(),
        }
    }

    /// Takes paths that have been opened, and opens those that are closed.
    fn adopt(&mut self, now: Instant) {
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            match &seat.state {
                State::Open(_) => {}
                State::Closed { again_at } if *again_at <= now => {
                    seat.state = State::Opening(open_path(&self.plan, &seat.address));
                }
                State::Closed { .. } => {}
                State::Opening(opening) => {
                    if let Some(result) = arrived(opening) {
                        self.settle(number, result, now);
                    }
                }
            }
        }
    }

    /// Serves the admin queues, and what else goes by time.
    fn tend(&mut self, now: Instant) -> Result<(), Lost> {
        self.tended_at = now;
        self.adopt(now);
        let keep_alive = self.plan.goal.keep_alive;
        for number in 0..self.seats.len() {
            let tended = self.seats[number].path_mut().map(|path| path.tend(now, keep_alive));
            if let Some(Err(lost)) = tended {
                self.lose(number, lost, now);
            }
        }
        self.check()
    }

    /// Whether there is a path at all.
    fn check(&self) -> Result<(), Lost> {
        match self.seats.iter().any(|seat| seat.path().is_some()) {
            true => Ok(()),
            false => Err(self.reason()),
        }
    }

    /// Why there is no path.
    fn reason(&self) -> Lost {
        let reasons: Vec<String> = self.seats.iter().map(|seat| format!("{}: {}", seat.address, seat.reason)).collect();
        Lost(reasons.join("; "))
    }

    /// The path of `seat` is gone: what it has not answered goes another way.
    fn lose(&mut self, number: usize, Lost(reason): Lost, now: Instant) {
        self.seats[number].state = State::Closed { again_at: now };
        let evicted = self.table.evict(number);
        let again = evicted.len();
        self.waiting.extend(evicted);
        let others = self.seats.iter().any(|seat| seat.path().is_some());
        if others && self.switches.len() < SWITCHES_LIMIT {
            let what = format!("path {} lost ({reason})", self.seats[number].address);
            self.switches.push_back(Switch { at: now, what, again });
        }
        self.seats[number].reason = reason;
        if self.current == Some(number) {
            self.current = None;
        }
    }

    /// The path for new commands (invariant 2).
    fn choose(&mut self, now: Instant) -> Option<usize> {
        let current = self.current;
        let usable = self.seats.iter().enumerate().filter_map(|(number, seat)| {
            let path = seat.path().filter(|path| path.is_usable(now))?;
            Some((path.facts.access, current != Some(number), number))
        });
        self.current = usable.min().map(|(.., number)| number);
        self.current
    }

    /// Gives queues what waits for one.
    fn dispatch(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let Some(path) = self.choose(now).and_then(|number| self.seats[number].path_mut()) else { return };
        while let Some(&slot) = self.waiting.front() {
            let Some(queue) = path.queue_for(slot) else { break };
            self.waiting.pop_front();
            let request = self.table.flight(slot).expect("it was submitted").request;
            queue.begin(request, &mut self.table);
        }
    }

    /// Sends on every queue, receives on those in `ready`, and deals with what comes of it.
    fn exchange(&mut self, ready: &[u64; PATHS_LIMIT], now: Instant, done: &mut Vec<Completion>) -> Result<(), Lost> {
        for (number, ready) in ready.iter().enumerate().take(self.seats.len()) {
            let Some(path) = self.seats[number].path_mut() else { continue };
            let mut outcomes = Outcomes { done: &mut *done, again: &mut self.again };
            if let Err(lost) = path.exchange(*ready, now, &mut self.table, &mut outcomes) {
                self.lose(number, lost, now);
            }
        }
        for (slot, seat, status) in self.again.drain(..) {
            self.waiting.push_back(slot);
            if let Some(path) = self.seats[seat].path_mut() {
                path.refuse(status, now);
            }
        }
        self.check()
    }

    /// Waits until sockets have something to say, or `deadline`; the queues of each path that have, as bits, and whether an admin queue has.
    fn wait(&self, deadline: Instant) -> Result<([u64; PATHS_LIMIT], bool), Lost> {
        let mut polled = Vec::with_capacity(self.seats.len() * (usize::from(self.plan.queues) + 1));
        let mut places = Vec::with_capacity(polled.capacity());
        let flags = |sending| if sending { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        for (number, path) in self.seats.iter().enumerate().filter_map(|(number, seat)| Some((number, seat.path()?))) {
            let admin = path.admin();
            polled.push(PollFd::new(admin.stream().as_fd(), flags(admin.wants_to_send())));
            places.push((number, 0));
            for (bit, queue) in path.queues.iter().enumerate() {
                polled.push(PollFd::new(queue.fd(), flags(queue.wants_to_send())));
                places.push((number, 1_u64 << bit));
            }
        }
        let is_settled = self.seats.iter().all(|seat| seat.path().is_some()) && self.waiting.is_empty();
        let limit = if is_settled { Duration::from_secs(3600) } else { WATCH_PERIOD };
        let timeout = deadline.saturating_duration_since(Instant::now()).min(limit);
        let (mut ready, mut admin) = ([0; PATHS_LIMIT], false);
        match ppoll(&mut polled, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) => {
                let told = polled.iter().zip(places).filter(|(poll, _)| poll.any() != Some(false));
                told.for_each(|(_, (seat, bit))| {
                    ready[seat] |= bit;
                    admin |= bit == 0;
                });
                Ok((ready, admin))
            }
            Err(Errno::EINTR) => Ok((ready, admin)),
            Err(error) => Err(Lost(format!("waiting failed: {error}"))),
        }
    }

    /// The paths, for people.
    pub(crate) fn paths(&self) -> Vec<String> {
        let show = |seat: &Seat| match seat.path().map(|path| path.facts.access) {
            Some(Access::Optimized) => format!("{} (optimized)", seat.address),
            Some(Access::NonOptimized) => format!("{} (non-optimized)", seat.address),
            Some(Access::Closed) => format!("{} (inaccessible)", seat.address),
            None => format!("{} (not connected: {})", seat.address, seat.reason),
        };
        self.seats.iter().map(show).collect()
    }
}

impl Engine for NvmeEngine {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(self.table.is_free(slot), "the slot is free");
        self.table.buffers.slot_mut(slot)
    }

    fn submit(&mut self, request: Request) {
        self.table.add(request);
        self.waiting.push_back(request.slot);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let (before, now) = (done.len(), Instant::now());
        if now > self.tended_at + TEND_PERIOD {
            self.tend(now)?;
        }
        // Right after sending, only commands of earlier turns can have been answered; without any, receiving is a wasted system call.
        let mut earlier = [0; PATHS_LIMIT];
        for (bits, seat) in earlier.iter_mut().zip(&self.seats) {
            *bits = seat.path().map_or(0, Path::busy);
        }
        self.dispatch(now);
        self.exchange(&earlier, now, done)?;
        let Wait::Until(deadline) = wait else { return Ok(()) };
        if done.len() > before {
            return Ok(());
        }
        let (ready, admin) = self.wait(deadline)?;
        let now = Instant::now();
        if admin || now > self.tended_at + TEND_PERIOD {
            self.tend(now)?;
        }
        self.dispatch(now);
        self.exchange(&ready, now, done)
    }

    fn abandon(&mut self) {
        for number in 0..self.seats.len() {
            if self.seats[number].path().is_some() {
                self.lose(number, Lost("given up".to_owned()), Instant::now());
            }
        }
        self.switches.clear();
    }

    fn recover(&mut self) -> Result<usize, Lost> {
        self.adopt(Instant::now());
        self.check().map(|()| self.waiting.len())
    }

    fn switched(&mut self) -> Option<Switch> {
        self.switches.pop_front()
    }
}

/// Before anything is known of the namespace.
const NOTHING: Geometry = Geometry {
    size_bytes: 0,
    block_bytes: 512,
    request_limit_bytes: 512,
    read_only: true,
    can_flush: false,
    can_fua: false,
    can_trim: false,
    can_zero: false,
    multi_conn: false,
};

/// Asks the addresses in turn which subsystem there is, and where.
fn find(goal: &Goal, host: &Host, keys: Option<&Keys>) -> Result<(String, Vec<Address>), Unopened> {
    let (mut reasons, mut may_come) = (Vec::new(), false);
    for address in &goal.addresses {
        let found = Stream::connect(address).map_err(LinkError::from);
        match found.and_then(|stream| discovery::discover(stream, host, keys)) {
            Ok(found) => return Ok((found.subsystem, found.addresses)),
            Err(error) => {
                may_come |= matches!(error, LinkError::Io(_) | LinkError::Silent | LinkError::Closed);
                reasons.push(format!("{address}: {error}"));
            }
        }
    }
    Err(Unopened { lost: Lost(format!("discovery failed: {}", reasons.join("; "))), may_come })
}

/// Opens a path in a thread of its own.
fn open_path(plan: &Arc<Plan>, address: &Address) -> Opening {
    let (sender, receiver) = channel();
    let (plan, address) = (Arc::clone(plan), address.clone());
    thread::spawn(move || {
        let mut dial = || Stream::connect(&address).map_err(LinkError::from);
        let parties = Parties { host: &plan.host, subsystem: &plan.subsystem, keys: plan.keys.as_ref() };
        let opened = controller::open(&mut dial, &plan.goal, parties, plan.queues);
        // Nobody waits for it any more when the program ends.
        let _ = sender.send(opened);
    });
    receiver
}

/// The result of an attempt, when it is there.
fn arrived(opening: &Opening) -> Option<Result<Opened<Stream>, LinkError>> {
    match opening.try_recv() {
        Ok(result) => Some(result),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Err(LinkError::Closed)),
    }
}
