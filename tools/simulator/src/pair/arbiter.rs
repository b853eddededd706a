//! The simulated arbiter: registers that change only as a whole, requests on their way to it, answers on their way back.
//!
//! Requests of one node are performed in their order, each at a drawn time after it was made. A request can be lost before it is performed, or its
//! answer after; either way the node hears at last that nobody knows. A change whose end nobody knows can also be made late, long after that,
//! if the register is still the one that it was made from. What a process asked for that has ended is performed or not.

use super::lease::Sight;
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};
use twinlog::{
    base::PoolId,
    format::register::Register,
    pair::arbiter::{Answer, Arbiter, SwapOutcome},
};
use twinlog_device::{Nanos, Prng};
use twinlog_sim::{Agenda, SimWorld};

/// How a node reaches the arbiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// Well.
    #[default]
    Good,
    /// Not at all, as a rule.
    Lost,
    /// Now and then an answer is lost, or a change made late.
    Deaf,
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Read(PoolId),
    Swap(Option<Register>, Register),
    Beat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It never arrives.
    Lost,
    /// It is performed, and the answer is lost.
    Unheard,
    /// It is performed long after it was given up.
    Late,
}

struct Request {
    node: usize,
    /// The process that made it.
    life: u64,
    asked: Nanos,
    due: Nanos,
    ask: Ask,
    fate: Fate,
}

/// How often each fault of the arbiter happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ArbiterCounts {
    /// Requests that never arrived.
    pub(super) lost: u64,
    /// Changes that were made and whose author did not hear of it.
    pub(super) unheard_swaps: u64,
    /// Changes that were made after their author had given them up.
    pub(super) late_swaps: u64,
    /// Late changes that found another register.
    pub(super) late_refused: u64,
    /// Changes of a process that had ended.
    pub(super) posthumous: u64,
}

/// The arbiter.
pub(super) struct Desk {
    world: SimWorld,
    prng: Prng,
    /// The registers.
    pub(super) registers: BTreeMap<PoolId, Register>,
    /// Whether one was changed since somebody looked.
    pub(super) has_changed: bool,
    beats: [u64; 2],
    seen: [u64; 2],
    lives: [u64; 2],
    /// What each node knows of the other one's beats.
    pub(super) sights: [Sight; 2],
    /// The life of each node that beat last.
    beat_lives: [u64; 2],
    /// The life of each node that renews nothing, and until when.
    marks: [Option<(u64, Nanos)>; 2],
    requests: VecDeque<Request>,
    /// Changes that were asked for, for who lies in wait.
    pub(super) asked: Vec<(Register, Register)>,
    answers: [VecDeque<(Nanos, Answer)>; 2],
    /// How each node reaches it.
    pub(super) reach: [Reach; 2],
    /// After this long a node gives a request up: half of a lease, and twice what is a break in what it sees of the other one.
    timeout: Duration,
    /// When the beat was asked for whose answer each node heard last.
    pub(super) beat_heard: [Nanos; 2],
    /// How often what went wrong.
    pub(super) counts: ArbiterCounts,
}

impl Desk {
    /// An arbiter without registers.
    #[must_use]
    pub(super) fn new(world: &SimWorld, prng: Prng, timeout: Duration) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            world: world.clone(),
            prng,
            registers: BTreeMap::new(),
            has_changed: false,
            beats: [0; 2],
            seen: [0; 2],
            lives: [0; 2],
            sights: Default::default(),
            beat_lives: [0; 2],
            marks: [None; 2],
            requests: VecDeque::new(),
            asked: Vec::new(),
            answers: Default::default(),
            reach: [Reach::Good; 2],
            timeout,
            beat_heard: [Nanos(0); 2],
            counts: ArbiterCounts::default(),
        }))
    }

    /// A process of `node` starts.
    pub(super) fn begin_life(&mut self, node: usize) {
        self.answers[node].clear();
        self.beat_heard[node] = Nanos(0);
        self.seen[node] = self.beats[1 - node];
        self.sights[node] = Sight::default();
    }

    /// The process of `node` has ended: some of what it asked for was on its way.
    pub(super) fn end_life(&mut self, node: usize) {
        self.lives[node] += 1;
        self.answers[node].clear();
        let prng = &mut self.prng;
        self.requests.retain(|request| request.node != node || request.fate == Fate::Late || prng.chance(1, 2));
    }

    /// A node sees no beat of the other one for `lease`: it marks that life, which renews nothing from now on, and looks once more. Whether that lease has ended.
    pub(super) fn mark(&mut self, node: usize, lease: Duration) -> bool {
        let (other, now) = (1 - node, self.world.now());
        let sight = &mut self.sights[node];
        if self.reach[node] != Reach::Good {
            sight.lose();
            return false;
        }
        let theirs = self.beats[other];
        let is_same = sight.is_of(theirs);
        sight.look(theirs, now, self.timeout / 2);
        let is_over = is_same && sight.is_over(now, lease);
        self.marks[other] = is_over.then_some((self.beat_lives[other], now + lease));
        is_over
    }

    /// Both nodes reach it, and what is late is late no longer.
    pub(super) fn heal(&mut self) {
        self.reach = [Reach::Good; 2];
        let now = self.world.now();
        self.requests.iter_mut().for_each(|request| request.due = request.due.min(now));
    }

    /// Whether a change of a pool's register is on its way.
    pub(super) fn is_changing(&self, pool: PoolId) -> bool {
        self.requests.iter().any(|request| matches!(request.ask, Ask::Swap(_, new) if new.pool == pool))
    }

    fn ask(&mut self, node: usize, agenda: &Agenda, ask: Ask) {
        let now = self.world.now();
        let is_swap = matches!(ask, Ask::Swap(..));
        if let Ask::Swap(Some(old), new) = ask {
            self.asked.push((old, new));
        }
        let fate = match (self.reach[node], self.prng.below(8)) {
            (Reach::Good, _) => Fate::Answered,
            (Reach::Lost, 0) | (Reach::Deaf, 1 | 2) => Fate::Unheard,
            (Reach::Lost, 1) | (Reach::Deaf, 3) if is_swap => Fate::Late,
            (Reach::Deaf, 0) | (Reach::Lost, _) => Fate::Lost,
            (Reach::Deaf, _) => Fate::Answered,
        };
        let last = self.requests.iter().rev().find(|request| request.node == node && request.fate != Fate::Late);
        let way = Duration::from_nanos(self.prng.between(1000, 40_000));
        let due = (now + way).max(last.map_or(now, |last| last.due));
        let due = match fate {
            Fate::Late => now + self.timeout * u32::try_from(self.prng.between(1, 12)).expect("small"),
            _ => due,
        };
        if fate != Fate::Answered {
            // It gives up, whatever becomes of the request.
            let reason = "the arbiter does not answer".to_owned();
            let answer = match ask {
                Ask::Read(pool) => Answer::Read(pool, Err(reason)),
                Ask::Swap(_, new) => Answer::Swapped(new.pool, SwapOutcome::Unknown(reason)),
                Ask::Beat => Answer::Beat(Err(reason)),
            };
            self.answer(node, now + self.timeout, answer);
            agenda.at(now + self.timeout);
        }
        agenda.at(due + Duration::from_nanos(40_000));
        self.requests.push_back(Request { node, life: self.lives[node], asked: now, due, ask, fate });
    }

    fn answer(&mut self, node: usize, at: Nanos, answer: Answer) {
        let answers = &mut self.answers[node];
        let place = answers.iter().position(|(due, _)| *due > at).unwrap_or(answers.len());
        answers.insert(place, (at, answer));
    }

    /// Performs what has arrived.
    pub(super) fn step(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let now = self.world.now();
        while let Some(place) = self.next_due(now) {
            let request = self.requests.remove(place).expect("found");
            self.perform(&request);
        }
    }

    fn next_due(&self, now: Nanos) -> Option<usize> {
        let due = self.requests.iter().enumerate().filter(|(_, request)| request.due <= now);
        due.min_by_key(|(place, request)| (request.due, *place)).map(|(place, _)| place)
    }

    fn perform(&mut self, request: &Request) {
        let Request { node, life, asked, due, ask, fate } = *request;
        let is_posthumous = life != self.lives[node];
        if fate != Fate::Answered && !is_posthumous {
            self.sights[node].lose();
        }
        if fate == Fate::Lost {
            self.counts.lost += 1;
            return;
        }
        let answer = match ask {
            Ask::Read(pool) => Answer::Read(pool, Ok(self.registers.get(&pool).copied())),
            Ask::Beat => {
                self.beats[node] += 1;
                self.beat_lives[node] = life;
                let theirs = self.beats[1 - node];
                let has_changed = std::mem::replace(&mut self.seen[node], theirs) != theirs;
                let now = self.world.now();
                let is_marked = self.marks[node].is_some_and(|(marked, until)| marked == life && now < until);
                if fate == Fate::Answered && !is_posthumous {
                    self.sights[node].look(theirs, now, self.timeout / 2);
                    self.beat_heard[node] = if is_marked { self.beat_heard[node] } else { asked };
                }
                Answer::Beat(if is_marked {
                    Err("the partner has fenced this node".to_owned())
                } else {
                    Ok(has_changed)
                })
            }
            Ask::Swap(old, new) => {
                let now = self.registers.get(&new.pool).copied();
                let is_made = now == old;
                if is_made {
                    self.registers.insert(new.pool, new);
                    self.has_changed = true;
                }
                self.counts.unheard_swaps += u64::from(is_made && fate == Fate::Unheard);
                self.counts.late_swaps += u64::from(is_made && fate == Fate::Late);
                self.counts.late_refused += u64::from(!is_made && fate == Fate::Late);
                self.counts.posthumous += u64::from(is_made && is_posthumous);
                let outcome = if is_made { SwapOutcome::Done(new) } else { SwapOutcome::Changed(now) };
                Answer::Swapped(new.pool, outcome)
            }
        };
        if fate == Fate::Answered && !is_posthumous {
            let back = Duration::from_nanos(self.prng.between(1000, 40_000));
            self.answer(node, due + back, answer);
        }
    }
}

/// A node's way to it.
pub(super) struct SimArbiter {
    desk: Rc<RefCell<Desk>>,
    agenda: Agenda,
    node: usize,
}

impl SimArbiter {
    /// The way of the process of `agenda` at `node`.
    #[must_use]
    pub(super) fn new(desk: &Rc<RefCell<Desk>>, agenda: &Agenda, node: usize) -> Self {
        Self { desk: desk.clone(), agenda: agenda.clone(), node }
    }

    fn ask(&self, ask: Ask) {
        self.desk.borrow_mut().ask(self.node, &self.agenda, ask);
    }
}

impl Arbiter for SimArbiter {
    fn read(&mut self, pool: PoolId) {
        self.ask(Ask::Read(pool));
    }

    fn compare_and_swap(&mut self, old: Option<Register>, new: Register) {
        self.ask(Ask::Swap(old, new));
    }

    fn beat(&mut self, _time_ns: u64) {
        self.ask(Ask::Beat);
    }

    fn poll(&mut self) -> Option<Answer> {
        let mut desk = self.desk.borrow_mut();
        desk.step();
        let now = desk.world.now();
        let answers = &mut desk.answers[self.node];
        answers.front().filter(|(due, _)| *due <= now)?;
        answers.pop_front().map(|(_, answer)| answer)
    }
}
