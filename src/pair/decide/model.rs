//! A model of a pair and one pool: two processes that act on [`decide`], their register, their portions and the consistency point on the disks.
//!
//! What was answered is not modelled change by change. A portion is *complete* when it holds, together with the newest consistency point,
//! everything that was answered; an answer makes every portion incomplete that has not stored it, a consistency point makes all complete.
//!
//! # What the model leaves open
//!
//! Safety must not rest on time or on what nodes believe of each other, so whatever the table does not pin down can have any value at any
//! time: interconnect and heartbeat; commands; what the partner says, but for its word that it does not have the pool open, which it must have
//! said since the register last changed; the register, which a node may have read long ago. A node can die or fail between any two steps, or
//! do nothing for any time (a paused one is no more than that); an opening can fail, and be tried again or given up; a lease can end at any time; a portion can be lost, or be unreadable for a while, while its
//! node is down; a swap can take effect without its author hearing of it, or later, unless another swap came first.
//!
//! # What is true of the world around it
//!
//! 1. A swap is atomic, and made from the newest register or not at all.
//! 2. A fence confirms only what is so: since the register last changed, the partner's process was dead or its lease had ended. A lease that has
//!    ended comes back only with a claim.
//! 3. A reply leaves only while the lease is not over; the engine looks at it with every reply.
//! 4. A mirror takes frames only from the owner that its node knows, and is closed before its node takes over.

use super::{
    Action, Beat, Command, Fence, Lease, Link, Mirror, Open, Owner, Place, Portion, Replies, View, Word,
    flaw::{Flaw, Setting},
};

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Process {
    Dead,
    Running,
}

/// The epoch that a process holds, compared with the register's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Held {
    No,
    Current,
    Old,
}

/// What a node has read in the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    Nothing,
    /// What it says now.
    Fresh,
    /// What it said once.
    Old(Owner, Mirror),
}

/// How far the partner's portion follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stream {
    None,
    /// From some position on.
    Begun,
    /// It has everything; replies wait for it.
    Caught,
}

/// A change of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Swap {
    Claim,
    GoStale,
    /// The named portion is still there.
    InSync(bool),
    /// The author's portion is still there.
    TakeOver(bool),
    Force(bool),
    /// The receiver's portion is still there.
    GiveBack(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) process: Process,
    pub(super) open: Open,
    pub(super) replies: Replies,
    pub(super) held: Held,
    pub(super) seen: Seen,
    pub(super) lease: bool,
    /// Of this node's log to the partner's portion.
    pub(super) stream: Stream,
    /// This node's portion takes the partner's frames.
    pub(super) receives: bool,
    /// The portion may hold records of an ownership of this node's that is over: since the pool was closed here, or the process began.
    pub(super) has_own_records: bool,
    pub(super) complete: bool,
    /// The portion can be read; one that cannot holds what it held.
    pub(super) readable: bool,
    /// A swap that was sent and can still take effect.
    pub(super) on_its_way: Option<Swap>,
    /// A swap of a serving owner that has taken effect without its hearing of it, and was the last change.
    unheard: Option<Swap>,
    /// Since the register changed, the node has said that it does not have the pool open and will not open it.
    has_yielded: bool,
    /// Since the register changed, the node could not write, if only for a moment.
    was_out: bool,
}

/// The register, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Register {
    pub(super) owner: usize,
    /// The owner still has the portion that the register names as the owner's.
    pub(super) owner_portion_is_there: bool,
    pub(super) mirror: Mirror,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) register: Register,
    pub(super) nodes: [Node; 2],
    /// The newest consistency point contains everything that was answered.
    pub(super) disk: bool,
}

/// What happens next; the number is the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Crash(usize),
    Restart(usize),
    LeaseEnds(usize),
    /// By a flaw only.
    LeaseReturns(usize),
    PortionLost(usize),
    /// The portion can be read no more; or again.
    PortionReadable(usize, bool),
    Failure(usize),
    Read(usize),
    /// A swap that was on its way takes effect.
    Arrives(usize),
    /// Recovery ends, with a consistency point.
    Opened(usize),
    /// It could not begin, and is tried again.
    NotOpened(usize),
    /// It could not begin, once too often.
    GivesUp(usize),
    /// The owner does not rest any more from what it has given up.
    TriesAgain(usize),
    /// The last consistency point is taken.
    Drained(usize),
    Checkpoint(usize),
    Answer(usize),
    /// The node acts on a decision; its swap, if it makes one, is answered.
    Act(usize, Action),
    /// The same, and no answer comes.
    ActUnheard(usize, Action),
}

pub(super) fn is_active(open: Open) -> bool {
    matches!(open, Open::Opening | Open::Serving | Open::Draining)
}

pub(super) fn is_ready(word: Word) -> bool {
    matches!(word, Word::Standby | Word::Mirroring)
}

fn is_answering(open: Open) -> bool {
    matches!(open, Open::Serving | Open::Draining)
}

const UP: Node = Node {
    process: Process::Running,
    open: Open::Closed,
    replies: Replies::Alone,
    held: Held::No,
    seen: Seen::Nothing,
    lease: false,
    stream: Stream::None,
    receives: false,
    has_own_records: true,
    complete: true,
    readable: true,
    on_its_way: None,
    unheard: None,
    has_yielded: false,
    was_out: true,
};

impl World {
    /// A new pool: node 0 is its home.
    pub(super) fn new() -> Self {
        let register = Register { owner: 0, owner_portion_is_there: true, mirror: Mirror::Stale };
        Self { register, nodes: [UP; 2], disk: true }
    }

    /// What node `n` knows of register and portion.
    fn reading(&self, n: usize) -> (Owner, Mirror) {
        match self.nodes[n].seen {
            Seen::Nothing => (Owner::Unreadable, Mirror::Stale),
            Seen::Old(owner, mirror) => (owner, mirror),
            Seen::Fresh if self.register.owner != n => (Owner::Partner, self.register.mirror),
            Seen::Fresh if self.nodes[n].held == Held::Current => (Owner::Held, self.register.mirror),
            Seen::Fresh => (Owner::Unclaimed, self.register.mirror),
        }
    }

    /// Whether node `n` owns a pool that it has given up.
    pub(super) fn rests(&self, n: usize) -> bool {
        self.nodes[n].open == Open::Yielded && matches!(self.reading(n).0, Owner::Held | Owner::Unclaimed)
    }

    /// What its portion can be to it.
    pub(super) fn portions(&self, n: usize) -> &'static [Portion] {
        if !self.nodes[n].readable {
            return &[Portion::Void];
        }
        let usable = match self.reading(n) {
            // It may have been replaced since.
            _ if self.nodes[n].seen != Seen::Fresh => return Portion::ALL,
            (Owner::Partner, mirror) => !self.nodes[n].has_own_records || mirror == Mirror::Named,
            _ => self.register.owner_portion_is_there,
        };
        if usable { &[Portion::Usable] } else { &[Portion::Void] }
    }

    /// What node `n` sees, with an untroubled environment.
    pub(super) fn view(&self, n: usize, portion: Portion, command: Command) -> View {
        let (node, (owner, mirror)) = (&self.nodes[n], self.reading(n));
        View {
            place: if n == 0 { Place::Home } else { Place::Away },
            owner,
            mirror,
            open: node.open,
            replies: node.replies,
            link: Link::Up,
            word: Word::Unknown,
            beat: Beat::Alive,
            fence: Fence::NotTried,
            portion,
            command,
            lease: if node.lease { Lease::Left } else { Lease::Ended },
        }
    }

    /// The word that node `n` says now, if it knows the register as it is.
    pub(super) fn word(&self, n: usize, command: Command) -> Word {
        let node = &self.nodes[n];
        if node.process != Process::Running || node.seen != Seen::Fresh {
            return Word::Unknown;
        }
        let portion = self.portions(n)[0];
        self.view(n, portion, command).own_word(node.receives)
    }

    /// Every node that can speak says its word.
    fn speak(&mut self) {
        for n in 0..2 {
            self.nodes[n].has_yielded |= is_ready(self.word(n, Command::None));
        }
    }

    /// Every action that the table can lead node `n` to.
    fn actions(&self, n: usize, setting: &mut Setting) -> Vec<Action> {
        let (node, partner) = (&self.nodes[n], &self.nodes[1 - n]);
        let is_old = node.seen != Seen::Fresh;
        let (hears, confirms) = (is_old || partner.has_yielded, is_old || partner.was_out);
        let mut actions: Vec<Action> = Vec::new();
        for &portion in self.portions(n) {
            actions.extend(setting.actions(self.view(n, portion, Command::None), hears, confirms));
        }
        actions.sort_unstable();
        actions.dedup();
        actions
    }

    /// Whether node `n` sends a reply if it wants to: its lease, and the mirror where it must wait for that.
    fn can_answer(&self, n: usize, flaw: Flaw) -> bool {
        let (node, partner) = (&self.nodes[n], &self.nodes[1 - n]);
        let mirrored = node.stream == Stream::Caught && partner.receives && partner.process == Process::Running;
        let stable = node.replies == Replies::Alone || mirrored;
        node.process == Process::Running
            && is_answering(node.open)
            && (node.lease || flaw == Flaw::AnswersWithoutLease)
            && stable
    }

    /// What can happen next.
    pub(super) fn events(&self, setting: &mut Setting) -> Vec<Event> {
        let mut events = Vec::new();
        for n in 0..2 {
            let node = &self.nodes[n];
            if node.lease && node.held != Held::No {
                events.push(Event::LeaseEnds(n));
            }
            if !node.lease && node.held != Held::No && setting.flaw == Flaw::LeaseComesBack {
                events.push(Event::LeaseReturns(n));
            }
            if node.on_its_way.is_some() {
                events.push(Event::Arrives(n));
            }
            match node.process {
                Process::Dead => {
                    events.push(Event::Restart(n));
                    events.push(Event::PortionLost(n));
                    events.push(Event::PortionReadable(n, !node.readable));
                }
                Process::Running => {
                    events.push(Event::Crash(n));
                    self.running_events(n, setting, &mut events);
                }
            }
        }
        events
    }

    fn running_events(&self, n: usize, setting: &mut Setting, events: &mut Vec<Event>) {
        let node = &self.nodes[n];
        if node.seen != Seen::Fresh {
            events.push(Event::Read(n));
        }
        if is_active(node.open) {
            events.push(Event::Failure(n));
        }
        if node.open == Open::Opening {
            events.extend([Event::NotOpened(n), Event::GivesUp(n)]);
        }
        if self.rests(n) {
            events.push(Event::TriesAgain(n));
        }
        match node.open {
            Open::Opening if node.lease => events.push(Event::Opened(n)),
            Open::Serving if node.lease && !self.disk => events.push(Event::Checkpoint(n)),
            Open::Draining if node.lease => events.push(Event::Drained(n)),
            _ => {}
        }
        if self.can_answer(n, setting.flaw) {
            events.push(Event::Answer(n));
        }
        for action in self.actions(n, setting) {
            match action {
                Action::Rest | Action::Wait | Action::Refuse | Action::Probe | Action::Fence | Action::Ask => {}
                _ => {
                    events.push(Event::Act(n, action));
                    if self.swap_of(n, action).is_some() && self.nodes.iter().all(|node| node.on_its_way.is_none()) {
                        events.push(Event::ActUnheard(n, action));
                    }
                }
            }
        }
    }

    /// The world after `event`; or what must never be.
    pub(super) fn after(mut self, event: Event, flaw: Flaw) -> Result<Self, &'static str> {
        match event {
            Event::Crash(n) => self.crash(n),
            Event::Restart(n) => self.nodes[n].process = Process::Running,
            Event::LeaseEnds(n) => (self.nodes[n].lease, self.nodes[n].was_out) = (false, true),
            Event::PortionLost(n) => self.lose_portion(n),
            Event::PortionReadable(n, readable) => self.nodes[n].readable = readable,
            Event::Failure(n) => self.close(n, Open::Failed),
            Event::NotOpened(n) => self.close(n, Open::Closed),
            Event::TriesAgain(n) => self.nodes[n].open = Open::Closed,
            Event::GivesUp(n) => {
                self.close(n, Open::Yielded);
                let node = &mut self.nodes[n];
                if flaw != Flaw::YieldsAndOpens {
                    (node.held, node.lease) = (Held::No, false);
                }
            }
            Event::LeaseReturns(n) => self.nodes[n].lease = true,
            Event::Read(n) => {
                self.nodes[n].seen = Seen::Fresh;
                // It reads the very register that it asked for.
                if let Some(swap) = self.nodes[n].unheard.take() {
                    self.learn(n, swap, flaw);
                }
            }
            Event::Arrives(n) => {
                let swap = self.nodes[n].on_its_way.take().expect("the event names a node with a swap");
                self.swap(n, swap, false, flaw)?;
                let waits = is_active(self.nodes[n].open) && matches!(swap, Swap::GoStale | Swap::InSync(_));
                self.nodes[n].unheard = Some(swap).filter(|_| waits);
            }
            Event::Opened(n) => {
                self.nodes[n].open = Open::Serving;
                self.checkpoint(n)?;
            }
            Event::Drained(n) => {
                self.nodes[n].open = Open::Drained;
                if flaw != Flaw::DrainedWithoutCheckpoint {
                    self.checkpoint(n)?;
                }
                self.close(n, Open::Drained);
            }
            Event::Checkpoint(n) => self.checkpoint(n)?,
            Event::Answer(n) => self.answer(n)?,
            Event::Act(n, action) => self.act(n, action, true, flaw)?,
            Event::ActUnheard(n, action) => self.act(n, action, false, flaw)?,
        }
        self.speak();
        self.check(flaw)?;
        Ok(self)
    }

    /// What holds at every moment.
    fn check(&self, flaw: Flaw) -> Result<(), &'static str> {
        let Register { owner, mirror, owner_portion_is_there } = self.register;
        if mirror == Mirror::Named && !self.nodes[1 - owner].complete {
            return Err("the register says in-sync, and the portion that it names lacks an answered change");
        }
        if owner_portion_is_there && !self.nodes[owner].complete {
            return Err("the owner's portion lacks an answered change");
        }
        if self.can_answer(0, flaw) && self.can_answer(1, flaw) {
            return Err("two nodes can answer");
        }
        Ok(())
    }

    fn crash(&mut self, n: usize) {
        let Node { complete, readable, on_its_way, has_yielded, .. } = self.nodes[n];
        // What the portion holds the next process does not know.
        let kept = Node { complete, readable, on_its_way, has_yielded, ..UP };
        self.nodes[n] = Node { process: Process::Dead, ..kept };
        self.nodes[1 - n].stream = Stream::None;
    }

    /// The pool is closed at node `n`, for whatever reason: if it becomes another's, the portion counts no more.
    fn close(&mut self, n: usize, then: Open) {
        (self.nodes[n].open, self.nodes[n].has_own_records) = (then, true);
        self.detach(n);
    }

    /// The log of node `n` does not reach its partner any more.
    fn detach(&mut self, n: usize) {
        self.nodes[n].stream = Stream::None;
        self.nodes[1 - n].receives = false;
    }

    /// Another, empty portion takes the place of node `n`'s, with another id.
    fn lose_portion(&mut self, n: usize) {
        self.nodes[n].complete = self.disk;
        self.nodes[n].readable = true;
        self.nodes[n].has_own_records = self.nodes[n].process == Process::Dead;
        self.detach(1 - n);
        if self.register.owner == n {
            self.register.owner_portion_is_there = false;
        } else if self.register.mirror == Mirror::Named {
            self.register.mirror = Mirror::Other;
        }
        for other in 0..2 {
            let names_it = |owner| (owner == Owner::Partner) == (other == n);
            match &mut self.nodes[other].seen {
                Seen::Old(owner, mirror) if names_it(*owner) && *mirror == Mirror::Named => *mirror = Mirror::Other,
                _ => {}
            }
            let mine = other == n;
            match &mut self.nodes[other].on_its_way {
                Some(Swap::InSync(there) | Swap::GiveBack(there)) if !mine => *there = false,
                Some(Swap::TakeOver(there) | Swap::Force(there)) if mine => *there = false,
                _ => {}
            }
        }
    }

    fn checkpoint(&mut self, n: usize) -> Result<(), &'static str> {
        if is_active(self.nodes[1 - n].open) && self.nodes[1 - n].lease || self.register.owner != n {
            return Err("a node writes to the disks of a pool that is another's");
        }
        if !self.nodes[n].complete {
            return Err("a consistency point is taken without an answered change");
        }
        self.disk = true;
        self.nodes.iter_mut().for_each(|node| node.complete = true);
        Ok(())
    }

    fn answer(&mut self, n: usize) -> Result<(), &'static str> {
        if self.register.owner != n {
            return Err("a node answers for a pool that is another's");
        }
        self.disk = false;
        if self.nodes[n].replies == Replies::Alone {
            self.nodes[1 - n].complete = false;
        }
        Ok(())
    }

    /// The swap by which node `n` begins `action`.
    fn swap_of(&self, n: usize, action: Action) -> Option<Swap> {
        let step = (self.nodes[n].stream, self.reading(n).1);
        match action {
            Action::Claim => Some(Swap::Claim),
            Action::GoStale => Some(Swap::GoStale),
            Action::TakeOver => Some(Swap::TakeOver(true)),
            Action::ForceTakeOver => Some(Swap::Force(true)),
            Action::GiveBack => Some(Swap::GiveBack(true)),
            Action::Resync if step == (Stream::Caught, Mirror::Stale) => Some(Swap::InSync(true)),
            _ => None,
        }
    }

    fn act(&mut self, n: usize, action: Action, is_heard: bool, flaw: Flaw) -> Result<(), &'static str> {
        let unasked = match flaw {
            Flaw::AloneBeforeStale => true,
            Flaw::AloneWithoutSwap => self.reading(n).1 == Mirror::Stale,
            _ => false,
        };
        if action == Action::GoStale && unasked {
            self.nodes[n].replies = Replies::Alone;
            return Ok(());
        }
        if action == Action::ForceTakeOver && !self.nodes[n].readable {
            // It is made anew first.
            self.lose_portion(n);
            return Ok(());
        }
        if let Some(swap) = self.swap_of(n, action) {
            if matches!(swap, Swap::TakeOver(_) | Swap::Force(_)) {
                self.detach(1 - n);
            }
            if self.nodes[n].seen != Seen::Fresh {
                // The arbiter refuses it and says what the register holds now.
                self.nodes[n].seen = Seen::Fresh;
                return Ok(());
            }
            if is_heard {
                return self.swap(n, swap, true, flaw);
            }
            let node = &mut self.nodes[n];
            (node.on_its_way, node.seen) = (Some(swap), Seen::Nothing);
            if matches!(swap, Swap::GiveBack(_)) && flaw != Flaw::KeepsEpochAfterGiveback {
                (node.held, node.lease) = (Held::No, false);
            }
            return Ok(());
        }
        self.act_here(n, action, flaw)
    }

    /// An action that changes no register.
    fn act_here(&mut self, n: usize, action: Action, flaw: Flaw) -> Result<(), &'static str> {
        match action {
            Action::Open => {
                if !self.nodes[n].complete {
                    return Err("a pool is opened with a portion that lacks an answered change");
                }
                self.nodes[n].open = Open::Opening;
            }
            Action::Drain => self.nodes[n].open = Open::Draining,
            Action::StopServing => self.close(n, Open::Closed),
            Action::Discard => self.lose_portion(n),
            Action::Resync => self.resync(n, flaw)?,
            other => unreachable!("{other:?} changes nothing"),
        }
        Ok(())
    }

    fn resync(&mut self, n: usize, flaw: Flaw) -> Result<(), &'static str> {
        let mirror = self.reading(n).1;
        match self.nodes[n].stream {
            Stream::None if self.accepts(1 - n) => {
                self.nodes[1 - n].receives = true;
                self.nodes[1 - n].has_own_records = false;
                let follows = mirror == Mirror::Named && self.nodes[n].replies == Replies::Mirrored;
                self.nodes[n].stream = if follows { Stream::Caught } else { Stream::Begun };
            }
            Stream::Begun if self.nodes[n].lease && self.nodes[n].open == Open::Serving => {
                if flaw != Flaw::InSyncTooEarly {
                    self.checkpoint(n)?;
                }
                (self.nodes[n].stream, self.nodes[n].replies) = (Stream::Caught, Replies::Mirrored);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the mirror at node `n` begins for its partner: the partner is the owner that this node knows, at no older epoch.
    fn accepts(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let knows = self.reading(n).0 == Owner::Partner
            && (node.seen != Seen::Fresh || self.nodes[1 - n].held == Held::Current);
        let is_shut = matches!(node.open, Open::Closed | Open::Drained | Open::Yielded);
        let can = is_shut && self.portions(n).contains(&Portion::Usable);
        node.process == Process::Running && knows && can
    }

    /// The register changes. `is_heard`: its author knows.
    fn swap(&mut self, n: usize, swap: Swap, is_heard: bool, flaw: Flaw) -> Result<(), &'static str> {
        for other in 0..2 {
            let reading = self.reading(other);
            let node = &mut self.nodes[other];
            if node.seen == Seen::Fresh {
                node.seen = Seen::Old(reading.0, reading.1);
            }
            if node.held == Held::Current {
                node.held = Held::Old;
            }
            (node.on_its_way, node.unheard) = (None, None);
            node.has_yielded &= flaw == Flaw::OldWordCounts;
            node.was_out &= flaw == Flaw::OldFenceCounts;
            node.was_out |= node.process == Process::Dead || !node.lease;
        }
        match swap {
            Swap::Claim => {}
            Swap::GoStale => self.register.mirror = Mirror::Stale,
            Swap::InSync(there) => self.register.mirror = if there { Mirror::Named } else { Mirror::Other },
            Swap::TakeOver(there) => {
                self.register = Register { owner: n, owner_portion_is_there: there, mirror: Mirror::Stale };
            }
            Swap::Force(there) => {
                // What the portion lacks is given up: from now on it is what was answered.
                self.register = Register { owner: n, owner_portion_is_there: there, mirror: Mirror::Stale };
                (self.nodes[n].complete, self.nodes[1 - n].complete, self.disk) = (there, false, false);
            }
            Swap::GiveBack(there) => {
                if !self.disk {
                    return Err("a pool is given back with something above its consistency point");
                }
                self.register = Register { owner: 1 - n, owner_portion_is_there: there, mirror: Mirror::Named };
            }
        }
        if is_heard {
            self.learn(n, swap, flaw);
        }
        Ok(())
    }

    /// What the author of a swap does when it hears that the swap was made.
    fn learn(&mut self, n: usize, swap: Swap, flaw: Flaw) {
        let mirror = self.register.mirror;
        let node = &mut self.nodes[n];
        (node.seen, node.held) = (Seen::Fresh, Held::Current);
        match swap {
            Swap::InSync(_) => {}
            Swap::GoStale => {
                node.replies = Replies::Alone;
                self.detach(n);
            }
            Swap::GiveBack(_) => {
                (node.held, node.lease) = (Held::No, false);
                self.detach(n);
            }
            Swap::Claim | Swap::TakeOver(_) | Swap::Force(_) => {
                (node.lease, node.open) = (true, Open::Closed);
                node.was_out &= flaw == Flaw::OldFenceCounts;
                node.replies = if mirror == Mirror::Stale { Replies::Alone } else { Replies::Mirrored };
                self.detach(n);
            }
        }
    }
}
