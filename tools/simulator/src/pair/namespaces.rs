//! The fence in the disks themselves: nodes that take the reservations of a pool's disk, command by command, as threads of a process do that may wait.
//!
//! To open a pool a node takes its disk before it reads anything. To fence its partner it waits for the end of the partner's lease ([`super::lease`]), and takes the
//! disk then. What is asked and what follows from a report is what ships (`twinlog::pair::reservation`).
//!
//! | fault | what becomes of it |
//! |---|---|
//! | a command does not arrive | its end is an error; the next report tells |
//! | it is performed, and its answer is lost | the same; a preemption whose end nobody has heard of confirms no fence |
//! | the end of the other node's process is seen by a switch, which is asked after a preemption that nobody has heard of | the fence is confirmed |
//! | a preemption takes its time | who holds the disk changes at once; what it aborts may land until its answer is made, also if that is lost |
//! | the disk is gone, or the node does not reach it for a while | every command fails: the opening, or the fence, does |
//! | the node dies in between | what it had asked for is performed or not; its next life finds what it has left |
//! | it stands still in between | what it had asked for is performed; it goes on later with what it knew |
//!
//! # The oracle
//!
//! When a fence is confirmed at an epoch, or a pool is opened, no change of an earlier opening of the other node reaches the disk any more: the disk counts those that do.

use super::{
    lease::{Trials, Verdict},
    opener::Hindrances,
    site::pool_id,
};
use std::{cell::RefCell, collections::VecDeque, ops::ControlFlow, rc::Rc, time::Duration};
use twinlog::{
    base::{Epoch, PoolId},
    format::register::NodeIndex,
    pair::{
        decide::Fence,
        fence::FenceAnswer,
        reservation::{Ask, Change, Claim, Holder, Seen, Taken, Taking},
    },
};
use twinlog_device::{DeviceErrorKind, Nanos, Prng};
use twinlog_sim::{Aborts, Agenda, ReservationOrder, SimMedium, SimWorld};

/// One command in so many goes wrong; of preemptions more, since their answers say what no report does.
const FAULTS_ONE_IN: u64 = 12;

/// How long a preemption takes to end what it aborts, if it does not end it at once.
const ABORT_NS: (u64, u64) = (10_000, 1_000_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It does not arrive.
    Lost,
    /// It is performed, and nobody hears of it.
    Unheard,
}

/// What becomes of a command, as its node hears it.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It has failed, or nobody knows.
    Failed,
    Done,
    Report(Seen),
}

/// A command on its way.
#[derive(Clone, Copy, Debug)]
struct Command {
    ask: Ask,
    fate: Fate,
    /// When it arrives; then, when its answer does.
    due: Nanos,
    /// It was performed or lost.
    answer: Option<Answer>,
}

/// A preemption that has not ended what it aborts.
#[derive(Clone, Copy, Debug)]
struct Abort {
    victim: usize,
    pool: usize,
    due: Nanos,
}

/// A node that takes a pool's disk.
struct Work {
    node: usize,
    pool: usize,
    epoch: Epoch,
    is_fence: bool,
    taking: Taking,
    command: Option<Command>,
    /// It has registered a key, and not taken the disk yet.
    is_between: bool,
    agenda: Agenda,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NamespaceCounts {
    /// Fences that were confirmed, and those of them whose victim's process lived.
    pub(super) fenced: (u64, u64),
    pub(super) lost: u64,
    /// Answers that were lost, and those of them of commands that have changed something.
    pub(super) unheard: (u64, u64),
    /// Fences that were not confirmed since the end of the preemption was not heard.
    pub(super) unproven: u64,
    /// Commands that failed since the disk was gone or not reached.
    pub(super) dark: u64,
    /// Nodes that ended between their registration and what it was for.
    pub(super) died_between: u64,
    /// Registrations of a node whose earlier key was taken away.
    pub(super) anew: u64,
    /// Fences and openings that found the other node entitled later.
    pub(super) later: u64,
}

/// All of it that outlives processes.
pub(super) struct Namespaces {
    world: SimWorld,
    prng: Prng,
    media: [SimMedium; 2],
    hindrances: Rc<RefCell<Hindrances>>,
    /// Fences that wait for the end of the other node's lease.
    trials: Trials,
    works: Vec<Work>,
    aborts: Vec<Abort>,
    answers: [VecDeque<FenceAnswer>; 2],
    opened: [VecDeque<(usize, Result<(), String>)>; 2],
    /// Of each node, and each pool: whether the other node has taken its key away.
    is_unregistered: [[bool; 2]; 2],
    /// Whether each node's process stands still.
    pub(super) is_still: [bool; 2],
    /// Whether each node's process runs.
    lives: [bool; 2],
    /// Pools that a node has begun to take away from the other one since somebody looked.
    pub(super) begun: Vec<usize>,
    pub(super) counts: NamespaceCounts,
}

impl Namespaces {
    /// Those of two disks.
    #[must_use]
    pub(super) fn new(
        world: &SimWorld,
        prng: Prng,
        media: &[SimMedium; 2],
        (hindrances, trials): (&Rc<RefCell<Hindrances>>, Trials),
    ) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            world: world.clone(),
            prng,
            media: media.clone(),
            hindrances: hindrances.clone(),
            trials,
            works: Vec::new(),
            aborts: Vec::new(),
            answers: Default::default(),
            opened: Default::default(),
            is_unregistered: [[false; 2]; 2],
            is_still: [false; 2],
            lives: [false; 2],
            begun: Vec::new(),
            counts: NamespaceCounts::default(),
        }))
    }

    /// The process of `node` starts.
    pub(super) fn begin_life(&mut self, node: usize) {
        (self.lives[node], self.is_still[node]) = (true, false);
    }

    /// The process of `node` ends: a command that was on its way is performed or not, and nothing follows from it.
    pub(super) fn end_life(&mut self, node: usize) {
        self.lives[node] = false;
        self.trials.forget(node);
        (self.answers[node], self.opened[node]) = Default::default();
        let (mine, others) = std::mem::take(&mut self.works).into_iter().partition(|work| work.node == node);
        self.works = others;
        let mine: Vec<Work> = mine;
        for work in mine {
            if let Some(Command { ask: Ask::Do(change), answer: None, .. }) = work.command
                && self.prng.chance(1, 2)
            {
                let _unheard = self.perform((work.node, work.pool), change);
            }
            self.counts.died_between += u64::from(work.is_between);
        }
    }

    /// Fences the other node from a pool.
    pub(super) fn fence(&mut self, node: usize, agenda: &Agenda, (pool, epoch): (PoolId, Epoch)) {
        let is_running = |work: &Work| work.is_fence && work.node == node && pool_id(work.pool) == pool;
        if !self.works.iter().any(|work| is_running(work) && work.epoch == epoch) {
            self.trials.ask(node, agenda, (pool, epoch));
        }
    }

    /// Takes a pool's disk, to open the pool.
    pub(super) fn open(&mut self, node: usize, agenda: &Agenda, (pool, epoch): (usize, Epoch)) {
        // What an earlier opening has met is over.
        let _earlier = self.media[pool].take_lost(node);
        self.begin(node, agenda, (pool, epoch), false);
    }

    fn begin(&mut self, node: usize, agenda: &Agenda, (pool, epoch): (usize, Epoch), is_fence: bool) {
        let claim = Claim { pool: pool_id(pool), node: NodeIndex::ALL[node], epoch, is_fence };
        let (taking, agenda) = (Taking::new(claim), agenda.clone());
        agenda.wake();
        self.works.push(Work { node, pool, epoch, is_fence, taking, command: None, is_between: false, agenda });
    }

    /// What a fence of `node` has found.
    pub(super) fn next_answer(&mut self, node: usize) -> Option<FenceAnswer> {
        self.answers[node].pop_front()
    }

    /// A pool whose disk was taken, or not, so that it is opened.
    pub(super) fn next_opened(&mut self, node: usize) -> Option<(usize, Result<(), String>)> {
        self.opened[node].pop_front()
    }

    /// A pool of whose disk the other node has taken the reservation, as a refused change of `node` has shown.
    pub(super) fn lost(&mut self, node: usize) -> Option<PoolId> {
        (0..2).find(|&pool| self.media[pool].take_lost(node)).map(pool_id)
    }

    /// Everything that is due happens.
    pub(super) fn step(&mut self) {
        let now = self.world.now();
        for Abort { victim, pool, .. } in self.aborts.extract_if(.., |abort| abort.due <= now) {
            self.media[pool].end_aborts(victim);
        }
        while let Some((node, (pool, epoch), verdict)) = self.trials.step(self.is_still) {
            match verdict {
                Verdict::Over(agenda) => {
                    let index = usize::from(pool != pool_id(0));
                    self.begun.push(index);
                    self.begin(node, &agenda, (index, epoch), true);
                }
                Verdict::Unknown(agenda) => self.answer(node, &agenda, (pool, epoch), Fence::Failed),
            }
        }
        for mut work in std::mem::take(&mut self.works) {
            if self.go_on(&mut work) {
                self.works.push(work);
            }
        }
    }

    fn answer(&mut self, node: usize, agenda: &Agenda, (pool, epoch): (PoolId, Epoch), result: Fence) {
        self.answers[node].push_back(FenceAnswer { pool, epoch, result, said: String::new() });
        agenda.wake();
    }

    /// Goes on with a work; whether it is not at its end.
    fn go_on(&mut self, work: &mut Work) -> bool {
        let now = self.world.now();
        if let Some(mut command) = work.command.filter(|command| command.answer.is_none() && command.due <= now) {
            let (answer, at) = self.arrive(work, command);
            (command.answer, command.due) = (Some(answer), at);
            work.agenda.at(at);
            work.command = Some(command);
        }
        if self.is_still[work.node] {
            return true;
        }
        if let Some(command) = work.command {
            match command.answer.filter(|_| command.due <= now) {
                None => return true,
                Some(Answer::Failed) => {}
                Some(Answer::Done) => work.taking.done(command.ask),
                Some(Answer::Report(seen)) => work.taking.reported(&seen),
            }
        }
        match work.taking.next_ask() {
            ControlFlow::Continue(ask) => {
                let due = now + Duration::from_nanos(self.prng.between(500, 30_000));
                work.agenda.at(due);
                let fate = match (self.prng.below(2 * FAULTS_ONE_IN), ask) {
                    (0, _) => Fate::Lost,
                    (1, _) | (2..=8, Ask::Do(Change::Preempt { .. })) => Fate::Unheard,
                    _ => Fate::Answered,
                };
                work.command = Some(Command { ask, fate, due, answer: None });
                true
            }
            ControlFlow::Break(taken) => {
                self.end(work, taken);
                false
            }
        }
    }

    /// A command arrives at the disk, or does not; what its node hears, and when.
    fn arrive(&mut self, work: &mut Work, command: Command) -> (Answer, Nanos) {
        let (now, node, pool) = (self.world.now(), work.node, work.pool);
        let is_dark = self.hindrances.borrow().is_in_force(node, pool, now);
        if is_dark || command.fate == Fate::Lost {
            *(if is_dark { &mut self.counts.dark } else { &mut self.counts.lost }) += 1;
            return (Answer::Failed, now);
        }
        let (answer, at) = match command.ask {
            Ask::Report => (self.report(node, pool).map_or(Answer::Failed, Answer::Report), now),
            Ask::Do(change) => match self.perform((node, pool), change) {
                Ok(at) => {
                    match change {
                        Change::Register(_) => work.is_between = true,
                        Change::Acquire(_) | Change::Preempt { .. } => work.is_between = false,
                        Change::Replace { .. } => {}
                    }
                    (Answer::Done, at)
                }
                Err(kind) => {
                    self.counts.dark += u64::from(kind == DeviceErrorKind::Gone);
                    (Answer::Failed, now)
                }
            },
        };
        if command.fate == Fate::Unheard {
            let unheard = &mut self.counts.unheard;
            *unheard = (unheard.0 + 1, unheard.1 + u64::from(command.ask != Ask::Report));
            return (Answer::Failed, now);
        }
        (answer, at)
    }

    fn report(&self, node: usize, pool: usize) -> Result<Seen, DeviceErrorKind> {
        let now = self.media[pool].registrations()?;
        let holder = match now.holder {
            None => Holder::Nobody,
            Some(holder) if holder == node => Holder::Mine,
            Some(holder) => now.keys[holder].map_or(Holder::Strange, Holder::Other),
        };
        Ok(Seen { mine: now.keys[node], holder })
    }

    /// Performs a change; when its answer is made.
    fn perform(&mut self, (node, pool): (usize, usize), change: Change) -> Result<Nanos, DeviceErrorKind> {
        let order = match change {
            Change::Register(key) => ReservationOrder::Register { key: key.bits() },
            Change::Replace { current, new } => ReservationOrder::Replace { current, key: new.bits() },
            Change::Acquire(key) => ReservationOrder::Acquire { key: key.bits() },
            Change::Preempt { key, victim, aborts } => {
                let aborts = match (aborts, self.prng.chance(1, 2)) {
                    (false, _) => Aborts::Nothing,
                    (true, false) => Aborts::AtOnce,
                    (true, true) => Aborts::Later,
                };
                ReservationOrder::Preempt { key: key.bits(), victim, aborts }
            }
        };
        self.media[pool].reserve(node, order)?;
        match change {
            Change::Preempt { .. } => self.is_unregistered[1 - node][pool] = true,
            Change::Register(_) => {
                self.counts.anew += u64::from(std::mem::take(&mut self.is_unregistered[node][pool]));
            }
            _ => {}
        }
        let now = self.world.now();
        let ReservationOrder::Preempt { aborts: Aborts::Later, .. } = order else { return Ok(now) };
        let due = now + Duration::from_nanos(self.prng.between(ABORT_NS.0, ABORT_NS.1));
        self.aborts.push(Abort { victim: 1 - node, pool, due });
        Ok(due)
    }

    /// A node holds a disk, or does not.
    fn end(&mut self, work: &Work, taken: Taken) {
        let Work { node, pool, epoch, is_fence, .. } = *work;
        let other = 1 - node;
        // The next fence in order is a switch, which tells that a machine is off.
        let is_switched = taken == Taken::Unproven && !self.lives[other];
        let is_held = taken == Taken::Held || is_switched;
        self.counts.later += u64::from(matches!(taken, Taken::Later(_)));
        self.counts.unproven += u64::from(taken == Taken::Unproven);
        if is_held {
            // A fence is of the owner at its epoch; who opens a pool, of all before.
            self.media[pool].forbid(other, if is_fence { epoch.0 } else { epoch.0 - 1 });
        }
        if is_fence {
            let fenced = &mut self.counts.fenced;
            *fenced = (fenced.0 + u64::from(is_held), fenced.1 + u64::from(is_held && self.lives[other]));
            let result = if is_held { Fence::Confirmed } else { Fence::Failed };
            self.answer(node, &work.agenda, (pool_id(pool), epoch), result);
        } else {
            let result = if is_held { Ok(()) } else { Err(format!("its disk is not to be had: {taken:?}")) };
            self.opened[node].push_back((pool, result));
            work.agenda.wake();
        }
    }
}
