//! The simulated fences: the lock of the partner's process, and a command; and a node's way to all of them. That of reservations is in [`super::namespaces`].

use super::{namespaces::Namespaces, setup::FenceKind};
use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};
use twinlog::{
    base::{Epoch, PoolId},
    pair::{
        decide::Fence,
        fence::{FenceAnswer, Fencer},
    },
};
use twinlog_device::{Nanos, Prng};
use twinlog_sim::{Agenda, SimWorld};

/// One use of a fence, on its way.
struct Strike {
    author: usize,
    /// Who asked for it has ended.
    is_orphan: bool,
    due: Nanos,
    pool: PoolId,
    epoch: Epoch,
    /// It only looks.
    is_probe: bool,
}

/// What the world has to do to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blow {
    /// Which node.
    pub(super) victim: usize,
    /// How.
    pub(super) kind: FenceKind,
}

/// Everything about fences that outlives processes.
pub(super) struct Fences {
    world: SimWorld,
    prng: Prng,
    kind: FenceKind,
    /// Whether each node's process runs: it holds its lock.
    pub(super) lives: [bool; 2],
    /// Whether each node's machine is dark: nobody sees its locks.
    is_dark: [bool; 2],
    /// Whether each node is cut off by a fence.
    pub(super) is_isolated: [bool; 2],
    strikes: VecDeque<Strike>,
    answers: [VecDeque<(Nanos, FenceAnswer)>; 2],
}

impl Fences {
    /// Fences of this kind.
    #[must_use]
    pub(super) fn new(world: &SimWorld, prng: Prng, kind: FenceKind) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            world: world.clone(),
            prng,
            kind,
            lives: [false; 2],
            is_dark: [false; 2],
            is_isolated: [false; 2],
            strikes: VecDeque::new(),
            answers: Default::default(),
        }))
    }

    /// The process of `node` starts.
    pub(super) fn begin_life(&mut self, node: usize) {
        (self.lives[node], self.is_dark[node]) = (true, false);
        self.forget(node);
    }

    /// The process of `node` ends, with its machine if `is_dark`.
    pub(super) fn end_life(&mut self, node: usize, is_dark: bool) {
        (self.lives[node], self.is_dark[node]) = (false, is_dark);
        self.forget(node);
    }

    fn forget(&mut self, node: usize) {
        self.is_isolated[node] = false;
        self.answers[node].clear();
        // A command that runs goes on; who asked for it does not hear of it.
        self.strikes.iter_mut().filter(|strike| strike.author == node).for_each(|strike| strike.is_orphan = true);
    }

    /// The next fence that is due: what is to be done, if anything.
    pub(super) fn step(&mut self) -> Option<Blow> {
        let now = self.world.now();
        while let Some(place) = self.strikes.iter().position(|strike| strike.due <= now) {
            let strike = self.strikes.remove(place).expect("found");
            let victim = 1 - strike.author;
            // No lock is looked at where reservations fence.
            let is_unseen = self.is_dark[victim] || self.kind == FenceKind::Reservation;
            let (result, blow) = if strike.is_probe && (self.lives[victim] || is_unseen) {
                (Fence::Held, None)
            } else if !self.lives[victim] {
                (Fence::Confirmed, None)
            } else if self.kind == FenceKind::Lock || self.prng.chance(1, 8) {
                (Fence::Failed, None)
            } else {
                (Fence::Confirmed, Some(Blow { victim, kind: self.kind }))
            };
            let Strike { author, is_orphan, pool, epoch, .. } = strike;
            let at = now + Duration::from_nanos(self.prng.between(1000, 20_000));
            if !is_orphan {
                self.answers[author].push_back((at, FenceAnswer { pool, epoch, result, said: String::new() }));
            }
            if blow.is_some() {
                return blow;
            }
        }
        None
    }

    fn ask(&mut self, author: usize, agenda: &Agenda, pool: PoolId, epoch: Epoch, is_probe: bool) {
        let longest = if is_probe { 10_000 } else { 300_000 };
        let due = self.world.now() + Duration::from_nanos(self.prng.between(1000, longest));
        agenda.at(due);
        agenda.at(due + Duration::from_nanos(20_000));
        self.strikes.push_back(Strike { author, is_orphan: false, due, pool, epoch, is_probe });
    }
}

/// A node's fences.
pub(super) struct SimFencer {
    fences: Rc<RefCell<Fences>>,
    /// Where reservations fence.
    namespaces: Option<Rc<RefCell<Namespaces>>>,
    agenda: Agenda,
    node: usize,
}

impl SimFencer {
    /// Those of the process of `agenda` at `node`.
    #[must_use]
    pub(super) fn new(
        fences: &Rc<RefCell<Fences>>,
        namespaces: Option<&Rc<RefCell<Namespaces>>>,
        agenda: &Agenda,
        node: usize,
    ) -> Self {
        Self { fences: fences.clone(), namespaces: namespaces.cloned(), agenda: agenda.clone(), node }
    }
}

impl Fencer for SimFencer {
    fn probe(&mut self, pool: PoolId, epoch: Epoch) {
        self.fences.borrow_mut().ask(self.node, &self.agenda, pool, epoch, true);
    }

    fn fence(&mut self, pool: PoolId, epoch: Epoch) {
        match &self.namespaces {
            Some(namespaces) => namespaces.borrow_mut().fence(self.node, &self.agenda, (pool, epoch)),
            None => self.fences.borrow_mut().ask(self.node, &self.agenda, pool, epoch, false),
        }
    }

    fn poll(&mut self) -> Option<FenceAnswer> {
        let taken = self.namespaces.as_ref().and_then(|namespaces| namespaces.borrow_mut().next_answer(self.node));
        if taken.is_some() {
            return taken;
        }
        let mut fences = self.fences.borrow_mut();
        let now = fences.world.now();
        let answers = &mut fences.answers[self.node];
        answers.front().filter(|(due, _)| *due <= now)?;
        answers.pop_front().map(|(_, answer)| answer)
    }

    fn lost(&mut self) -> Option<PoolId> {
        self.namespaces.as_ref()?.borrow_mut().lost(self.node)
    }
}
