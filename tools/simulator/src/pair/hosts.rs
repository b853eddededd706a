//! Hosts with two paths to a pair. A host that waits too long for an answer gives its path up, sends what was not answered again on the other one, and goes on
//! there; its farewell comes at once, late, or never. Nodes and single reactors stand still for less than a lease, so that what lies at the first path may
//! be found after what came over the second was answered. The exact oracle of linearizability sees what a late command does.
//!
//! Hosts of NVMe/TCP go from any node to the other one, and pools change hands beneath them. Clients of NBD have no identity by which the owner could know what they have left at the
//! node that forwards: they prefer the node where the pool is at home, go back there when nothing is under way, and have no history in which that changes.
//!
//! In one of four histories hosts of NVMe/TCP reserve the volume, over whichever path they use (`hosts/reserve.rs`). At the end of those a host with a path to each
//! node is told over both of them, once, of each end of its registration (`hosts/tell.rs`).
//!
//! # Invariants
//!
//! 1. Everything goes through the real sessions over a simulated network.
//! 2. A command that is sent again may be performed at each of its places, until it is answered; then never more.

#[cfg(feature = "planted-bugs")]
pub mod bugs;
mod reserve;
mod tell;

use super::{
    found,
    setup::{FenceKind, PairSetup, Sessions},
    site::{NAMES, Process, Site, target},
};
use crate::{
    clients::{Answer, Ask, Refusal, nbd, nvme},
    exchanging::Exchanging,
    fault::Tally,
    history::{self, Figures, Oracle, Outcome, Violation},
    model::Model,
    pattern::WriteId,
    reserving::Reserving,
    setup::{BLOCK, index},
};
use crossbeam_channel::Receiver;
use std::time::Duration;
use twinlog::{
    base::{ObjectId, checksum},
    node::admin::{AdminReply, AdminRequest},
};
use twinlog_device::{Nanos, Prng, Wait};
use twinlog_sim::Agenda;

/// The volume.
const VOLUME: &str = "shared";
/// Turns in which hosts work, at most.
const TURNS_MAX: u64 = 20_000;
/// Turns in which everything must have been answered.
const PATIENCE_TURNS: u64 = 400_000;
/// A host gives a path up that has commands under way.
const GIVEN_UP: &str = "host gives a path up";
/// What lies there is found later.
const FOUND_LATE: &str = "commands lie at a path given up";
/// A node stands still.
const PAUSED: &str = "node stands still";
/// One of a node's reactors does.
const STARVED: &str = "reactor stands still";
/// The same, when the path leads to the node that forwards.
const GIVEN_UP_THERE: &str = "host gives up the path that forwards";
/// The pool goes to the other node.
const HANDED_OVER: &str = "pool changes hands";
/// A command about the reservation lies at a path that was given up, and is sent again.
const RESERVED_AGAIN: &str = "reservation command is sent again";
/// A reservation keeps a host out.
const KEPT_OUT: &str = "reservation keeps a host out";
/// A host is told of the end of its registration by the node that does not serve.
const TOLD_THERE: &str = "host is told by the node that forwards";

/// Names of everything that is counted.
#[must_use]
pub fn tally() -> Tally {
    let all =
        [GIVEN_UP, GIVEN_UP_THERE, FOUND_LATE, PAUSED, STARVED, HANDED_OVER, RESERVED_AGAIN, KEPT_OUT, TOLD_THERE];
    Tally::of(all.into_iter())
}

/// A command that is not answered.
struct Command {
    id: u64,
    ask: Ask,
    write: Option<WriteId>,
    began: u64,
    /// When it was sent on the path that its host uses now.
    sent: Option<Nanos>,
    /// It was sent on another one before.
    is_repeated: bool,
    /// It has been sent.
    was_sent: bool,
    /// It lies where it was sent last, and may be performed there.
    is_left: bool,
}

/// A path of a host.
enum Session {
    Nbd(nbd::Session),
    Nvme(nvme::Session),
}

impl Session {
    fn is_open(&self) -> bool {
        match self {
            Self::Nbd(session) => session.is_open(),
            Self::Nvme(session) => session.is_open(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Nbd(session) => session.is_closed(),
            Self::Nvme(session) => session.is_closed(),
        }
    }

    fn send(&mut self, id: u64, ask: &Ask) {
        match self {
            Self::Nbd(session) => session.send(id, ask),
            Self::Nvme(session) => session.send(id, ask),
        }
    }

    fn poll(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<(), String> {
        match self {
            Self::Nbd(session) => session.poll(answers),
            Self::Nvme(session) => session.poll(answers),
        }
    }

    fn reset(self) {
        match self {
            Self::Nbd(session) => drop(session.reset()),
            Self::Nvme(session) => session.reset(),
        }
    }
}

/// A host.
struct Host {
    /// By which its node knows it; `None`: it speaks NBD.
    number: Option<u8>,
    /// The node that it uses.
    at: usize,
    session: Option<Session>,
    commands: Vec<Command>,
    /// How long it waits for an answer; who speaks NBD, of the node that it prefers.
    time_out: Duration,
    /// Connections that it has given up, and that do not know it.
    left: Vec<Session>,
}

/// What stands still, and until when.
struct Still {
    node: usize,
    /// None: all of the node.
    reactor: Option<usize>,
    until: Nanos,
}

/// A history.
struct History {
    setup: PairSetup,
    site: Site,
    prng: Prng,
    processes: [Process; 2],
    still: Vec<Still>,
    /// Before this no node stands still again.
    rests_until: [Nanos; 2],
    /// Whether the pool goes from one node to the other, and the last order that it should.
    changes_hands: bool,
    order: Option<Receiver<AdminReply>>,
    model: Model,
    /// Hosts of NVMe/TCP compare and write, in half of the histories.
    exchanging: Option<Exchanging>,
    /// They reserve the volume, in a quarter of them.
    reserving: Option<Reserving>,
    volume: ObjectId,
    size_bytes: u64,
    hosts: Vec<Host>,
    next_id: u64,
    tally: Tally,
    figures: Figures,
    digest: u64,
    is_traced: bool,
}

/// Runs the history of `seed`.
#[must_use]
pub fn run(seed: u64, watch: history::Watch) -> Outcome {
    let mut prng = Prng::new(seed);
    let setup = draw(&mut prng);
    let mut site = Site::new(seed, &setup);
    let processes = [site.start(0), site.start(1)];
    let mut history = History {
        exchanging: (setup.sessions == Sessions::Hosts).then(|| Exchanging::draw(seed)).flatten(),
        reserving: (setup.sessions == Sessions::Hosts).then(|| Reserving::draw(seed)).flatten(),
        changes_hands: setup.sessions == Sessions::Hosts && prng.chance(1, 2),
        order: None,
        hosts: (0..u8::try_from(prng.between(1, 3)).expect("few"))
            .map(|number| Host::new(&setup, &mut prng, number))
            .collect(),
        size_bytes: prng.between(1, 4) * BLOCK,
        prng,
        setup,
        site,
        processes,
        still: Vec::new(),
        rests_until: [Nanos(0); 2],
        model: Model::new(true),
        volume: ObjectId(0),
        next_id: 0,
        tally: tally(),
        figures: Figures::default(),
        digest: 0,
        is_traced: watch == history::Watch::Trace,
    };
    let result = history.all();
    history.figures.lives = 2;
    history.figures.verified_bytes = history.model.verified_bytes;
    let media = if watch == history::Watch::Verdict { 0 } else { history.site.digest() };
    let digest = history.digest ^ media ^ history.site.world.now().0;
    Outcome { seed, violation: result.err(), digest, figures: history.figures, tally: history.tally }
}

/// A pair that stays whole. Its clients are hosts of NVMe/TCP, or speak NBD.
fn draw(prng: &mut Prng) -> PairSetup {
    let mut setup = PairSetup::draw(prng);
    setup.troubles.clear();
    setup.aim = None;
    setup.fence = FenceKind::Lock;
    setup.sessions = if prng.chance(3, 4) { Sessions::Hosts } else { Sessions::Nbd };
    let has_hosts = setup.sessions == Sessions::Hosts;
    setup.any_byte = !has_hosts && prng.chance(1, 2);
    let second = if has_hosts { 3 } else { 1 };
    setup.reactors = [if prng.chance(3, 4) { 2 } else { 1 }, if prng.chance(second, 4) { 2 } else { 1 }];
    setup
}

impl Host {
    fn new(setup: &PairSetup, prng: &mut Prng, number: u8) -> Self {
        let time_out = setup.detection / u32::try_from(prng.between(2, 8)).expect("few");
        Self {
            number: (setup.sessions == Sessions::Hosts).then_some(number),
            at: 0,
            session: None,
            commands: Vec::new(),
            time_out,
            left: Vec::new(),
        }
    }
}

impl History {
    fn note(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            println!("{:>12} {}", self.site.world.now().0, line(self));
        }
    }

    fn all(&mut self) -> Result<(), Violation> {
        self.note(|history| format!("{:?}", history.setup));
        self.make_volume()?;
        let changes = self.prng.between(20, 120);
        let last = self.figures.turns + TURNS_MAX;
        while self.figures.answered_changes < changes && self.figures.turns < last {
            if self.prng.chance(1, 60) {
                self.stand_still();
            }
            if self.changes_hands && self.prng.chance(1, 400) {
                self.hand_over();
            }
            self.turn(true)?;
        }
        self.heal();
        self.until("every command is answered", |history| history.hosts.iter().all(|host| host.commands.is_empty()))?;
        let everything = Ask::Read(0..self.size_bytes);
        (0..self.hosts.len()).for_each(|host| self.begin(host, everything.clone()));
        self.report_all();
        self.until("everything is read", |history| history.hosts.iter().all(|host| host.commands.is_empty()))?;
        if self.reserving.is_some() { self.tell_all() } else { Ok(()) }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let last = self.figures.turns + PATIENCE_TURNS;
        while !done(self) {
            if self.figures.turns > last {
                return Err(found(Oracle::Liveness, format!("it takes for ever until {what}")));
            }
            self.turn(false)?;
        }
        Ok(())
    }

    fn make_volume(&mut self) -> Result<(), Violation> {
        self.until("the pool is served", |history| history.processes[0].node.is_serving())?;
        let request =
            AdminRequest::VolumeCreate { name: VOLUME.to_owned(), size_bytes: self.size_bytes, block_bytes: 4096 };
        let replies = self.processes[0].node.call(request).expect("nobody else orders anything");
        self.until("the volume is made, and every reactor of both nodes knows it", |history| {
            !replies.is_empty() && history.processes.iter().all(|process| process.node.knows_volume(VOLUME))
        })?;
        match replies.try_recv() {
            Ok(AdminReply::Volumes { volumes }) if !volumes.is_empty() => {
                self.volume = ObjectId(volumes[0].id);
                self.model.create(self.volume, VOLUME, self.size_bytes);
                Ok(())
            }
            reply => Err(found(Oracle::Volumes, format!("the volume was ordered, and the answer is {reply:?}"))),
        }
    }

    /// Orders the pool to the node that does not serve it.
    fn hand_over(&mut self) {
        if self.order.as_ref().is_some_and(|order| order.is_empty()) {
            return;
        }
        let serves = self.processes[0].node.is_serving();
        let request = match serves {
            true => AdminRequest::PairTakeover { pool: Some(NAMES[0].to_owned()), force: false },
            false => AdminRequest::PairGiveback { pool: Some(NAMES[0].to_owned()) },
        };
        self.note(|_| format!("{request:?}"));
        let has_work = self.hosts.iter().any(|host| !host.commands.is_empty());
        self.count(HANDED_OVER, has_work);
        self.order = self.processes[1].node.call(request);
    }

    /// A node, or one reactor of it, gets no turns for less than a lease. A reactor that has nothing to do with the lease may do so for longer.
    fn stand_still(&mut self) {
        // Where only the owner's hosts may leave something, it is there.
        let busy = if self.setup.sessions == Sessions::Hosts { index(self.prng.below(2)) } else { 0 };
        let has_second = self.setup.reactors[busy] > 1;
        let (node, reactor, parts) = match self.prng.below(8) {
            0..=5 if has_second => (busy, Some(1), self.prng.between(32, 320)),
            6 => (index(self.prng.below(2)), Some(0), self.prng.between(1, 64)),
            _ => (index(self.prng.below(2)), None, self.prng.between(1, 128)),
        };
        let now = self.site.world.now();
        if self.still.iter().any(|still| still.node == node) || now < self.rests_until[node] {
            return;
        }
        let time = self.setup.detection / 64 * u32::try_from(parts).expect("few");
        self.rests_until[node] = now + time + self.setup.detection * 2;
        self.note(|_| format!("{} stands still: {reactor:?}, for {time:?}", NAMES[node]));
        let has_work = self.hosts.iter().any(|host| !host.commands.is_empty());
        self.count(if reactor.is_some() { STARVED } else { PAUSED }, has_work);
        match reactor {
            Some(reactor) => self.processes[node].starve(reactor, true),
            None => self.processes[node].stand_still(true),
        }
        self.still.push(Still { node, reactor, until: now + time });
    }

    fn count(&mut self, name: &'static str, mattered: bool) {
        self.tally.count_named(name, (1, u64::from(mattered)));
    }

    /// Whatever has stood still for long enough goes on.
    fn go_on(&mut self, now: Nanos) {
        let processes = &self.processes;
        self.still.retain(|still| {
            if still.until > now {
                return true;
            }
            match still.reactor {
                Some(reactor) => processes[still.node].starve(reactor, false),
                None => processes[still.node].stand_still(false),
            }
            false
        });
    }

    fn heal(&mut self) {
        self.note(|_| "everything heals".to_owned());
        self.still.iter_mut().for_each(|still| still.until = Nanos(0));
        self.hosts.iter_mut().for_each(|host| host.left.clear());
    }

    fn turn(&mut self, works: bool) -> Result<(), Violation> {
        self.figures.turns += 1;
        self.go_on(self.site.world.now());
        self.site.desk.borrow_mut().step();
        // The lock of a process that lives is never free.
        while self.site.fences.borrow_mut().step().is_some() {}
        let first = index(self.prng.below(2));
        let mut is_any = false;
        for node in [first, 1 - first] {
            if !self.still.iter().any(|still| still.node == node && still.reactor.is_none()) {
                is_any |= self.processes[node].poll(&mut self.prng).is_some();
            }
        }
        if !is_any {
            Agenda::new(&self.site.world).turn(Wait::UpTo(Duration::from_micros(50)));
        }
        for host in 0..self.hosts.len() {
            self.go_on_with(host, works)?;
        }
        Ok(())
    }

    /// A turn of a host.
    fn go_on_with(&mut self, host: usize, works: bool) -> Result<(), Violation> {
        self.connect(host);
        let mut answers = Vec::new();
        if let Some(session) = &mut self.hosts[host].session {
            session.poll(&mut answers).map_err(|what| found(Oracle::Protocol, what))?;
        }
        for (id, answer) in answers {
            self.answered(host, id, answer)?;
        }
        if self.hosts[host].session.as_ref().is_some_and(Session::is_closed) {
            self.leave(host, false);
        }
        if works && self.hosts[host].commands.len() < self.setup.depth && self.prng.chance(1, 4) {
            let exchange = self.exchanging.as_mut();
            let exchange = exchange.and_then(|exchanging| exchanging.draw_ask(&self.model, self.volume, true));
            let ask = self.draw_ask();
            let ask = self.draw_deed(host).or(exchange).unwrap_or(ask);
            self.begin(host, ask);
        }
        self.send(host);
        self.lose_patience(host);
        if self.prng.chance(1, 200) {
            self.hosts[host].left.pop();
        }
        Ok(())
    }

    fn connect(&mut self, host: usize) {
        let at = self.hosts[host].at;
        // A namespace has no name to ask for before there is one.
        let is_unknown = self.hosts[host].number.is_some() && self.volume == ObjectId(0);
        if self.hosts[host].session.is_some() || is_unknown {
            return;
        }
        let reactor = index(self.prng.below(u64::from(self.setup.reactors[at])));
        if let Some(listener) = self.processes[at].node.listener(reactor) {
            let choice = self.prng.chance(1, 2);
            let session = match self.hosts[host].number {
                None => Session::Nbd(nbd::Session::connect(listener, self.volume, VOLUME, choice)),
                Some(number) => {
                    // Odd in the pool with the lower identity.
                    let namespace = u32::try_from(2 * self.volume.0 - 1).expect("the first volume");
                    let subsystem = target(at).subsystem().to_owned();
                    Session::Nvme(nvme::Session::connect(listener, &subsystem, (number, namespace), choice))
                }
            };
            self.note(|_| format!("host {host} connects to reactor {reactor} of {}", NAMES[at]));
            self.hosts[host].session = Some(session);
        }
    }

    /// The host is at no path: what was not answered is to be sent again.
    fn leave(&mut self, host: usize, keeps: bool) {
        let host = &mut self.hosts[host];
        host.commands.iter_mut().for_each(|command| command.is_left |= command.sent.take().is_some());
        let session = host.session.take();
        host.left.extend(session.filter(|_| keeps));
    }

    /// Gives up a path on which an answer takes too long, and goes back when nothing is under way.
    fn lose_patience(&mut self, number: usize) {
        let now = self.site.world.now();
        let host = &self.hosts[number];
        let may_leave = host.number.is_some();
        if may_leave && host.commands.is_empty() && self.prng.chance(1, 40) {
            self.leave(number, false);
            self.hosts[number].at = 1 - self.hosts[number].at;
            return;
        }
        let host = &self.hosts[number];
        if host.at == 1 && !may_leave {
            if host.commands.is_empty() && self.prng.chance(1, 8) {
                self.leave(number, false);
                self.hosts[number].at = 0;
            }
            return;
        }
        let is_late = |command: &Command| command.sent.is_some_and(|sent| now.since(sent) > host.time_out);
        if !host.commands.iter().any(is_late) || !self.may_send_again(number) {
            return;
        }
        let has_changes = host.commands.iter().any(|command| command.write.is_some());
        let farewell = self.prng.below(4);
        self.note(|_| format!("host {number} gives its path up, farewell {farewell}"));
        self.count(GIVEN_UP, has_changes);
        if may_leave {
            let forwards = self.hosts[number].at == usize::from(self.processes[0].node.is_serving());
            self.count(GIVEN_UP_THERE, has_changes && forwards);
        }
        self.count(FOUND_LATE, has_changes && farewell > 0);
        match farewell {
            0 => {
                self.hosts[number].session.take().into_iter().for_each(Session::reset);
                self.leave(number, false);
            }
            // The end of the stream comes behind everything that was sent.
            1 => self.leave(number, false),
            _ => self.leave(number, true),
        }
        // Now and then it tries the same node again.
        let at = if may_leave { self.hosts[number].at } else { 0 };
        self.hosts[number].at = if self.prng.chance(3, 4) { 1 - at } else { at };
    }

    fn draw_ask(&mut self) -> Ask {
        let grain = if self.setup.any_byte && self.prng.chance(1, 2) { 512 } else { BLOCK };
        let units = self.size_bytes / grain;
        let first = self.prng.below(units);
        // As long as a record of the smallest log may be.
        let most = (self.setup.write_bytes_max / grain).clamp(1, 3);
        let range = first * grain..(first + self.prng.between(1, (units - first).min(most))) * grain;
        match self.prng.below(10) {
            0..=4 => Ask::Write(range, WriteId(0), false),
            5 => Ask::Zero(range, self.prng.chance(1, 2), false),
            _ => Ask::Read(range),
        }
    }

    fn begin(&mut self, host: usize, mut ask: Ask) {
        let (write, began) = ask.begin(&mut self.model, self.volume);
        self.next_id += 1;
        let id = self.next_id;
        self.note(|_| format!("  {id}: host {host}: {ask:?}"));
        if let Some(reserving) = &mut self.reserving {
            reserving.begin((id, reserve::number_of(host)), self.volume, &ask, write);
        }
        self.hosts[host].commands.push(Command {
            id,
            ask,
            write,
            began,
            sent: None,
            is_repeated: false,
            was_sent: false,
            is_left: false,
        });
    }

    /// Sends what is not on its way.
    fn send(&mut self, number: usize) {
        let now = self.site.world.now();
        self.repeat_deeds(number);
        let host = &mut self.hosts[number];
        let Some(session) = host.session.as_mut().filter(|session| session.is_open()) else { return };
        for command in host.commands.iter_mut().filter(|command| command.sent.is_none()) {
            command.is_repeated |= std::mem::replace(&mut command.was_sent, true);
            let reserving = self.reserving.as_mut().filter(|_| command.is_repeated);
            // Of a host that is kept out by now nothing happens any more, wherever it was sent.
            let may_happen = reserving.is_none_or(|reserving| reserving.attempt_again(command.id, self.volume));
            if let Some(write) = command.write.filter(|_| command.is_repeated && may_happen) {
                self.model.ask_again(write);
            }
            session.send(command.id, &command.ask);
            command.sent = Some(now);
        }
    }

    fn answered(&mut self, host: usize, id: u64, answer: Answer) -> Result<(), Violation> {
        let position = self.hosts[host].commands.iter().position(|command| command.id == id);
        let Some(position) = position else {
            return Err(found(Oracle::Protocol, format!("command {id} was answered twice")));
        };
        self.digest = self.digest.rotate_left(7) ^ id ^ self.site.world.now().0;
        if let Answer::Refused(Refusal::Failed(_) | Refusal::Unserved | Refusal::ShuttingDown) = answer {
            self.note(|_| format!("  {id}: {answer:?}"));
            // A path error: it is sent again.
            self.hosts[host].commands[position].sent = None;
            self.come_back((host, position), &answer);
            return Ok(());
        }
        let Command { ask, write, began, is_repeated, .. } = self.hosts[host].commands.remove(position);
        self.note(|_| format!("  {id}: {ask:?} is answered"));
        if let Some(reserving) = &mut self.reserving {
            reserving.end(id, self.volume, (&ask, &answer), &mut self.model)?;
        }
        match (answer, write, ask) {
            (Answer::Done | Answer::Reservation(_), None, Ask::Reserve(..)) => {
                self.model.end(began);
                Ok(())
            }
            (Answer::Refused(Refusal::Reserved | Refusal::Preempted), write, _) if self.reserving.is_some() => {
                self.kept_out(write, began, is_repeated)
            }
            (Answer::Done, Some(write), Ask::Exchange(..)) => {
                let result = self.model.end_exchange(write, false);
                self.figures.answered_changes += 1;
                self.figures.exchanges += 1;
                result.map_err(|(oracle, what)| found(Oracle::Data(oracle), what))
            }
            (Answer::Refused(Refusal::Differs), Some(write), Ask::Exchange(..)) => {
                self.figures.differences += 1;
                if is_repeated {
                    // Where it was sent first it may have been performed: then what differs is its own.
                    self.model.refused_when_repeated(write);
                    return Ok(());
                }
                self.model.differs(write).map_err(|(oracle, what)| found(Oracle::Data(oracle), what))
            }
            (Answer::Done, Some(write), _) => {
                self.model.end_write(write, false);
                self.figures.answered_changes += 1;
                Ok(())
            }
            (Answer::Data(bytes), None, Ask::Read(range)) => {
                self.figures.reads += 1;
                self.digest ^= checksum(range.start, &bytes);
                let result = self.model.check_read(self.volume, range.start, &bytes, began);
                self.model.end(began);
                result.map_err(|(oracle, what)| found(Oracle::Data(oracle), what))
            }
            (answer, _, ask) => Err(found(Oracle::Error, format!("{ask:?} was answered with {answer:?}"))),
        }
    }
}
