//! Reservations as hosts know them: an account of its own of what their commands do, and of what a volume's reservation may be by what was answered.
//!
//! Commands overlap, and what was lost in a crash may have happened or not. So the account keeps every state that explains all answers so far, each with the commands
//! under way that it takes for done. An answer that no state explains is wrong: a registration was lost, or done twice (the generation tells), or a host that is
//! fenced off was let in.

use std::collections::{BTreeMap, BTreeSet};
use twinlog::{
    base::HostId,
    format::reservation::{Held, Registrant, Reservation, ReservationKind},
    fs::reservation::{RegisterAction, ReservationCommand},
};
use twinlog_device::Prng;

use crate::pattern::WriteId;

/// Hosts that there are.
pub const HOSTS: u8 = 3;

/// Commands of one volume that may be under way or lost: their orders are all tried.
pub const PENDING_MAX: usize = 4;

/// Kinds that hosts want: with those that forbid reads, the verification of all bytes would need a holder.
const KINDS: [ReservationKind; 3] =
    [ReservationKind::WriteExclusive, ReservationKind::WriteExclusiveRegistrants, ReservationKind::WriteExclusiveAll];

/// What a host does; its key is its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// Registers; whether what it does from then on survives the loss of power.
    Register(bool),
    /// Ends its registration.
    Unregister,
    /// Acquires.
    Acquire(ReservationKind),
    /// Preempts a host.
    Preempt(u8, ReservationKind),
    /// The same, and ends what that host has under way.
    Abort(u8, ReservationKind),
    /// Releases.
    Release(ReservationKind),
    /// Ends everybody's registration.
    Clear,
    /// Asks who has registered.
    Report,
}

impl Deed {
    /// A deed of any kind.
    #[must_use]
    pub fn draw(prng: &mut Prng) -> Self {
        let kind = *prng.pick(&KINDS);
        match prng.below(24) {
            0..=5 => Self::Register(true),
            6 | 7 => Self::Register(false),
            8 | 9 => Self::Unregister,
            10..=15 => Self::Acquire(kind),
            16 | 17 => Self::Preempt(draw_host(prng), kind),
            18 | 19 => Self::Abort(draw_host(prng), kind),
            20 | 21 => Self::Release(kind),
            22 => Self::Clear,
            _ => Self::Report,
        }
    }

    /// The same; who preempts, preempts `victim`.
    #[must_use]
    pub fn aimed_at(self, victim: u8) -> Self {
        match self {
            Self::Preempt(_, kind) => Self::Preempt(victim, kind),
            Self::Abort(_, kind) => Self::Abort(victim, kind),
            other => other,
        }
    }

    /// What a host asks; `None`: for a report.
    #[must_use]
    pub fn command(self, host: u8) -> Option<ReservationCommand> {
        let key = u64::from(host);
        let register = |action, persists| ReservationCommand::Register { action, persists };
        let preempt = |victim, kind, aborts| {
            let preempted = u64::from(victim);
            ReservationCommand::Preempt { key, preempted, kind, aborts }
        };
        Some(match self {
            Self::Register(persists) => register(RegisterAction::Register { key }, Some(persists)),
            Self::Unregister => register(RegisterAction::Unregister { current: Some(key) }, None),
            Self::Acquire(kind) => ReservationCommand::Acquire { key, kind },
            Self::Preempt(victim, kind) => preempt(victim, kind, false),
            Self::Abort(victim, kind) => preempt(victim, kind, true),
            Self::Release(kind) => ReservationCommand::Release { key, kind },
            Self::Clear => ReservationCommand::Clear { key },
            Self::Report => return None,
        })
    }
}

/// Any host.
pub fn draw_host(prng: &mut Prng) -> u8 {
    u8::try_from(prng.between(1, u64::from(HOSTS))).expect("a few")
}

/// The identifier of a host; 0: of nobody that can register.
#[must_use]
pub fn host_id(host: u8) -> Option<HostId> {
    HostId::new([host; 16])
}

/// A volume's reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    generation: u32,
    persists: bool,
    registered: BTreeSet<u8>,
    /// By a host; by none: by all that have registered.
    held: Option<(ReservationKind, Option<u8>)>,
}

impl State {
    fn is_holder(&self, host: u8) -> bool {
        let Some((_, holder)) = self.held else { return false };
        holder.map_or(self.registered.contains(&host), |holder| holder == host)
    }

    fn may_write(&self, host: u8) -> bool {
        let is_for_registrants = self.held.is_none_or(|(kind, _)| kind != ReservationKind::WriteExclusive);
        self.held.is_none() || self.is_holder(host) || (is_for_registrants && self.registered.contains(&host))
    }

    fn leave(&mut self, host: u8) {
        self.registered.remove(&host);
        let is_empty = self.registered.is_empty();
        self.held = self.held.filter(|(_, holder)| holder.map_or(!is_empty, |holder| holder != host));
    }

    fn hold(&mut self, host: u8, kind: ReservationKind) {
        let is_of_all = kind == ReservationKind::WriteExclusiveAll;
        self.held = Some((kind, (!is_of_all).then_some(host)));
    }

    /// Whether a deed is done, and the state after it.
    fn after(&self, host: u8, deed: Deed) -> (bool, Self) {
        let mut next = self.clone();
        let is_registered = self.registered.contains(&host);
        let counts = !matches!(deed, Deed::Acquire(_) | Deed::Release(_) | Deed::Report);
        let is_done = match deed {
            Deed::Report => true,
            Deed::Register(persists) => {
                next.persists = persists;
                next.registered.insert(host);
                true
            }
            _ if !is_registered => false,
            Deed::Unregister => {
                next.leave(host);
                true
            }
            Deed::Acquire(kind) => match self.held {
                None => {
                    next.hold(host, kind);
                    true
                }
                Some((held, _)) => held == kind && self.is_holder(host),
            },
            Deed::Preempt(victim, kind) | Deed::Abort(victim, kind) => {
                let is_of_holder = self.held.is_some_and(|(_, holder)| holder == Some(victim));
                if is_of_holder && victim != host {
                    next.leave(victim);
                }
                if is_of_holder {
                    next.hold(host, kind);
                } else {
                    next.leave(victim);
                }
                is_of_holder || self.registered.contains(&victim)
            }
            Deed::Release(kind) => match self.held {
                Some((held, _)) if self.is_holder(host) => {
                    next.held = None;
                    held == kind
                }
                _ => true,
            },
            Deed::Clear => {
                (next.held, next.registered) = (None, BTreeSet::new());
                true
            }
        };
        if !is_done {
            return (false, self.clone());
        }
        next.generation += u32::from(counts);
        (true, next)
    }

    fn lose_power(&mut self) {
        if !self.persists {
            (self.held, self.registered) = (None, BTreeSet::new());
        }
    }

    /// As the engine reports it.
    fn reported(&self) -> Reservation {
        let id = |host| host_id(host).expect("hosts count from 1");
        let registrant = |&host: &u8| Registrant { host: id(host), key: u64::from(host) };
        Reservation {
            generation: self.generation,
            persists: self.persists,
            held: self.held.map(|(kind, holder)| Held { kind, holder: holder.map(id) }),
            registrants: self.registered.iter().map(registrant).collect(),
        }
    }
}

/// What a host was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Done.
    Done,
    /// Refused because of the reservation.
    Refused,
    /// Not done, as its host was preempted.
    Aborted,
    /// Refused for another reason, and never done.
    Nothing,
    /// The reservation.
    State(Box<Reservation>),
}

/// How a command that is taken for done has ended, and the state that it has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Ended {
    is_done: bool,
    found: State,
}

/// A state that explains all answers, and the commands under way that are done in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Explanation {
    state: State,
    ended: BTreeMap<u64, Ended>,
}

/// What a host has under way with the volume's data.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    host: u8,
    /// Else it reads, which nobody is kept from here.
    is_change: bool,
    write: Option<WriteId>,
    may_be_done: bool,
    may_be_refused: bool,
    may_be_aborted: bool,
    /// Since it began, an answer has told that its host is kept out.
    is_barred: bool,
    is_lost: bool,
}

/// The account of one volume.
#[derive(Clone, Debug)]
pub struct Account {
    explanations: BTreeSet<Explanation>,
    pending: BTreeMap<u64, (u8, Deed)>,
    lost: BTreeSet<u64>,
    /// Of commands that were sent again: what was sent before, each under a number of its own, and the command whose answer it waits for.
    left: BTreeMap<u64, u64>,
    /// Commands that one under way, or that was, may have ended.
    abortable: BTreeSet<u64>,
    attempts: BTreeMap<u64, Attempt>,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            explanations: BTreeSet::from([Explanation::default()]),
            pending: BTreeMap::new(),
            lost: BTreeSet::new(),
            left: BTreeMap::new(),
            abortable: BTreeSet::new(),
            attempts: BTreeMap::new(),
        }
    }
}

impl Account {
    /// Commands under way or lost, each as often as it was sent.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Whether a command may begin. None does that could let a host in again which is kept out with changes under way: whether those are done before it was
    /// kept out, or after it was let in, could not be told.
    #[must_use]
    pub fn may_begin(&self, host: u8, deed: Deed) -> bool {
        if self.pending.len() >= PENDING_MAX {
            return false;
        }
        let barred = self.attempts.values().filter(|attempt| attempt.is_barred);
        let barred: BTreeSet<u8> = barred.map(|attempt| attempt.host).collect();
        if barred.is_empty() {
            return true;
        }
        let mut after = self.clone();
        after.pending.insert(u64::MAX, (host, deed));
        !after.states().iter().any(|state| barred.iter().any(|&host| state.may_write(host)))
    }

    /// The host that has had a change under way for the longest time, of those that can be preempted.
    #[must_use]
    pub fn busy_host(&self) -> Option<u8> {
        self.attempts.values().find(|attempt| attempt.is_change && attempt.host > 0).map(|attempt| attempt.host)
    }

    /// A command begins.
    pub fn begin(&mut self, id: u64, host: u8, deed: Deed) {
        self.pending.insert(id, (host, deed));
        self.look_for_aborts();
        self.look_at_attempts();
    }

    /// A command was answered.
    ///
    /// # Errors
    /// No state explains the answer.
    pub fn end(&mut self, id: u64, heard: &Heard) -> Result<(), String> {
        let Some(&(host, deed)) = self.pending.get(&id) else { return Ok(()) };
        let fits = |explanation: &Explanation| match (heard, explanation.ended.get(&id)) {
            (Heard::Nothing, ended) => ended.is_none(),
            (Heard::Aborted, ended) => ended.is_none() && self.abortable.contains(&id),
            (_, None) => false,
            (Heard::Done, Some(ended)) => ended.is_done,
            (Heard::Refused, Some(ended)) => !ended.is_done,
            (Heard::State(state), Some(ended)) => ended.found.reported() == **state,
        };
        let explained: BTreeSet<Explanation> = self.reachable().into_iter().filter(fits).collect();
        if explained.is_empty() {
            return Err(format!("{deed:?} of host {host} was answered {heard:?}, and {}", self.tell()));
        }
        self.lost.remove(&id);
        self.explanations = explained;
        self.forget(id);
        // What was sent before has been done beside it, or never will be.
        for copy in self.left_of(id) {
            self.lost.remove(&copy);
            self.left.remove(&copy);
            self.forget(copy);
        }
        Ok(())
    }

    /// A command that is not answered is sent again, over another path. What was sent before is called `copy` from now on: it may be done too, until the
    /// command is answered.
    pub fn ask_again(&mut self, id: u64, copy: u64) {
        let Some(&deed) = self.pending.get(&id) else { return };
        self.pending.insert(copy, deed);
        self.lost.insert(copy);
        self.left.insert(copy, id);
        let renamed = |mut explanation: Explanation| {
            if explanation.ended.remove(&id).is_some() {
                explanation.ended.insert(copy, Ended::default());
            }
            explanation
        };
        self.explanations = std::mem::take(&mut self.explanations).into_iter().map(renamed).collect();
        self.look_for_aborts();
        self.look_at_attempts();
    }

    /// A command has come back undone from the path on which it was sent last.
    pub fn come_back(&mut self, id: u64) {
        self.explanations = self.reachable().into_iter().filter(|way| !way.ended.contains_key(&id)).collect();
    }

    fn left_of(&self, id: u64) -> Vec<u64> {
        self.left.iter().filter(|(_, of)| **of == id).map(|(&copy, _)| copy).collect()
    }

    /// Nobody hears what becomes of a command or a change.
    pub fn lose(&mut self, id: u64) {
        if self.pending.contains_key(&id) {
            self.lost.insert(id);
        }
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.is_lost = true;
        }
    }

    /// What was lost has happened by now, or never will. With the power goes what does not survive that.
    pub fn settle(&mut self, loses_power: bool) {
        self.attempts.retain(|_, attempt| !attempt.is_lost);
        if !self.lost.is_empty() {
            self.explanations = self.reachable();
            std::mem::take(&mut self.lost).into_iter().for_each(|id| self.forget(id));
        }
        if loses_power {
            assert!(self.pending.is_empty(), "nobody waits for an answer");
            let without = |mut explanation: Explanation| {
                explanation.state.lose_power();
                explanation
            };
            self.explanations = std::mem::take(&mut self.explanations).into_iter().map(without).collect();
        }
    }

    /// A host begins to change data, or to read it.
    pub fn attempt(&mut self, id: u64, host: u8, change: Option<Option<WriteId>>) {
        let attempt = Attempt {
            host,
            is_change: change.is_some(),
            write: change.flatten(),
            may_be_done: false,
            may_be_refused: false,
            may_be_aborted: false,
            is_barred: false,
            is_lost: false,
        };
        self.attempts.insert(id, attempt);
        self.look_for_aborts();
        self.look_at_attempts();
    }

    /// It is not answered, and is sent again over another path: the answer will be about that. Returns whether it may still be done.
    pub fn attempt_again(&mut self, id: u64) -> bool {
        let Some(attempt) = self.attempts.get_mut(&id) else { return true };
        (attempt.may_be_done, attempt.may_be_refused, attempt.may_be_aborted) = (false, false, false);
        let is_barred = attempt.is_barred;
        self.look_for_aborts();
        self.look_at_attempts();
        !is_barred
    }

    /// That has ended.
    ///
    /// # Errors
    /// It was done, or refused as of another host, and at no time was that right.
    pub fn end_attempt(&mut self, id: u64, heard: &Heard) -> Result<(), String> {
        let Some(attempt) = self.attempts.remove(&id) else { return Ok(()) };
        let is_right = match heard {
            Heard::Done => attempt.may_be_done || !attempt.is_change,
            Heard::Refused => attempt.may_be_refused && attempt.is_change,
            Heard::Aborted => attempt.may_be_aborted,
            Heard::Nothing | Heard::State(_) => true,
        };
        if is_right {
            return Ok(());
        }
        let what = if attempt.is_change { "change" } else { "read" };
        Err(format!("a {what} of host {} was answered {heard:?}, and {}", attempt.host, self.tell()))
    }

    /// Changes under way whose host is kept out for certain, and was not before: what has not been done of them never will be.
    pub fn bar(&mut self) -> Vec<WriteId> {
        if !self.has_changes() {
            return Vec::new();
        }
        let states = self.states();
        let is_new = |attempt: &&mut Attempt| {
            attempt.is_change && !attempt.is_barred && !states.iter().any(|state| state.may_write(attempt.host))
        };
        let barred = self.attempts.values_mut().filter(is_new);
        barred
            .filter_map(|attempt| {
                attempt.is_barred = true;
                attempt.write
            })
            .collect()
    }

    fn has_changes(&self) -> bool {
        self.attempts.values().any(|attempt| attempt.is_change)
    }

    /// What is under way beside a command that ends it.
    fn look_for_aborts(&mut self) {
        for &(_, deed) in self.pending.values() {
            let Deed::Abort(victim, _) = deed else { continue };
            let theirs = self.attempts.values_mut().filter(|attempt| attempt.host == victim);
            theirs.for_each(|attempt| attempt.may_be_aborted = true);
            let theirs = self.pending.iter().filter(|(_, (host, _))| *host == victim);
            self.abortable.extend(theirs.map(|(&id, _)| id));
        }
    }

    fn look_at_attempts(&mut self) {
        if !self.has_changes() {
            return;
        }
        let states = self.states();
        for attempt in self.attempts.values_mut() {
            attempt.may_be_done |= states.iter().any(|state| state.may_write(attempt.host));
            attempt.may_be_refused |= states.iter().any(|state| !state.may_write(attempt.host));
        }
    }

    /// What the reservation may be now.
    fn states(&self) -> BTreeSet<State> {
        self.reachable().into_iter().map(|explanation| explanation.state).collect()
    }

    fn tell(&self) -> String {
        let states: Vec<&State> = self.explanations.iter().map(|explanation| &explanation.state).take(3).collect();
        format!("the reservation was one of {states:?}, with {:?} under way", self.pending)
    }

    fn forget(&mut self, id: u64) {
        self.pending.remove(&id);
        self.abortable.remove(&id);
        let without = |mut explanation: Explanation| {
            explanation.ended.remove(&id);
            explanation
        };
        self.explanations = std::mem::take(&mut self.explanations).into_iter().map(without).collect();
    }

    /// Every explanation, and every one that commands under way lead to.
    fn reachable(&self) -> BTreeSet<Explanation> {
        let mut reached = self.explanations.clone();
        let mut todo: Vec<Explanation> = reached.iter().cloned().collect();
        while let Some(from) = todo.pop() {
            for (&id, &(host, deed)) in &self.pending {
                if from.ended.contains_key(&id) {
                    continue;
                }
                let (is_done, state) = from.state.after(host, deed);
                let mut ended = from.ended.clone();
                match self.left.get(&id) {
                    // Of those that nobody hears of, which are all the same, the oldest comes first.
                    Some(of) if self.has_older_copy(&from, (id, *of)) => continue,
                    Some(_) => ended.insert(id, Ended::default()),
                    None => ended.insert(id, Ended { is_done, found: from.state.clone() }),
                };
                let next = Explanation { state, ended };
                if reached.insert(next.clone()) {
                    todo.push(next);
                }
            }
        }
        reached
    }

    /// Whether a copy of the same command was sent before `copy`, and is not done.
    fn has_older_copy(&self, explanation: &Explanation, (copy, of): (u64, u64)) -> bool {
        let mut older = self.left.range(..copy).filter(|(_, other)| **other == of);
        older.any(|(older, _)| !explanation.ended.contains_key(older))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReservationKind::WriteExclusive;

    const DONE: Heard = Heard::Done;
    const REFUSED: Heard = Heard::Refused;

    #[test]
    fn what_was_lost_may_have_happened_and_what_was_answered_has() {
        let mut account = Account::default();
        account.begin(1, 1, Deed::Register(true));
        account.begin(2, 2, Deed::Register(true));
        assert!(account.end(1, &DONE).is_ok());
        account.lose(2);
        account.settle(false);
        let mut other = account.clone();
        for (account, heard) in [(&mut account, &DONE), (&mut other, &REFUSED)] {
            account.begin(3, 2, Deed::Acquire(WriteExclusive));
            assert!(account.end(3, heard).is_ok(), "{heard:?}");
        }
        account.begin(4, 1, Deed::Acquire(WriteExclusive));
        assert!(account.end(4, &DONE).is_err(), "host 2 holds it");
        other.begin(4, 1, Deed::Acquire(WriteExclusive));
        assert!(other.end(4, &REFUSED).is_err(), "nobody holds it");
    }

    fn held_by_the_first_of_two() -> Account {
        let mut account = Account::default();
        for (id, host, deed) in
            [(1, 1, Deed::Register(true)), (2, 2, Deed::Register(true)), (3, 1, Deed::Acquire(WriteExclusive))]
        {
            account.begin(id, host, deed);
            assert!(account.end(id, &DONE).is_ok());
        }
        account
    }

    #[test]
    fn a_host_that_was_preempted_writes_nothing_more() {
        let mut account = held_by_the_first_of_two();
        account.attempt(4, 1, Some(Some(WriteId(4))));
        account.begin(5, 2, Deed::Preempt(1, WriteExclusive));
        account.attempt(6, 1, Some(None));
        assert!(account.bar().is_empty(), "the preemption may come later");
        assert!(account.end(5, &DONE).is_ok());
        assert_eq!(account.bar(), [WriteId(4)], "and it is over");
        assert!(!account.may_begin(1, Deed::Register(true)) || !account.may_begin(2, Deed::Clear));
        account.attempt(7, 1, Some(None));
        account.attempt(8, 2, Some(None));
        assert!(account.end_attempt(4, &DONE).is_ok() && account.end_attempt(6, &REFUSED).is_ok());
        assert!(account.end_attempt(7, &DONE).is_err() && account.end_attempt(8, &REFUSED).is_err());
        let registered = BTreeSet::from([2]);
        let held = Some((WriteExclusive, Some(2)));
        let state = State { generation: 3, persists: true, registered, held };
        account.begin(9, 3, Deed::Report);
        let mut again = account.clone();
        assert!(account.end(9, &Heard::State(Box::new(state.reported()))).is_ok());
        let twice = State { generation: 4, ..state };
        assert!(again.end(9, &Heard::State(Box::new(twice.reported()))).is_err(), "something happened twice");
    }
    #[test]
    fn what_a_preempted_host_has_under_way_may_be_ended_and_nothing_else() {
        let mut account = Account::default();
        for (id, host) in [(1, 1), (2, 2)] {
            account.begin(id, host, Deed::Register(true));
            assert!(account.end(id, &DONE).is_ok());
        }
        for (id, host, change) in [(3, 1, Some(None)), (4, 1, None), (5, 3, Some(None))] {
            account.attempt(id, host, change);
        }
        account.begin(6, 1, Deed::Report);
        account.begin(7, 2, Deed::Preempt(1, WriteExclusive));
        assert!(account.clone().end(6, &Heard::Aborted).is_err(), "that one ends nothing");
        assert!(account.end(7, &DONE).is_ok());
        account.begin(8, 1, Deed::Register(true));
        account.begin(9, 2, Deed::Abort(1, WriteExclusive));
        assert!(account.end(6, &Heard::Aborted).is_ok() && account.end(8, &Heard::Aborted).is_ok());
        assert!(account.end(9, &REFUSED).is_ok(), "nobody was there to be preempted");
        assert!(account.end_attempt(3, &Heard::Aborted).is_ok() && account.end_attempt(4, &Heard::Aborted).is_ok());
        assert!(account.end_attempt(5, &Heard::Aborted).is_err());
        account.attempt(10, 1, None);
        assert!(account.end_attempt(10, &Heard::Aborted).is_err(), "it came later");
    }

    #[test]
    fn what_does_not_persist_goes_with_the_power() {
        for persists in [true, false] {
            let mut account = Account::default();
            account.begin(1, 1, Deed::Register(persists));
            assert!(account.end(1, &DONE).is_ok());
            account.settle(false);
            account.begin(2, 1, Deed::Acquire(WriteExclusive));
            assert!(account.end(2, &DONE).is_ok(), "a takeover is no loss of power");
            account.settle(true);
            account.begin(3, 1, Deed::Release(WriteExclusive));
            assert_eq!(account.end(3, &DONE).is_ok(), persists);
        }
    }

    #[test]
    fn what_is_sent_again_may_be_done_at_both_places_until_it_is_answered() {
        let held = Some((WriteExclusive, Some(1)));
        let state = |generation| State { generation, persists: true, registered: BTreeSet::from([1]), held };
        let reported = |generation| Heard::State(Box::new(state(generation).reported()));
        let mut account = Account::default();
        account.begin(1, 1, Deed::Register(true));
        account.ask_again(1, 2);
        account.ask_again(1, 3);
        assert!(account.end(1, &DONE).is_ok());
        account.begin(4, 1, Deed::Acquire(WriteExclusive));
        assert!(account.end(4, &DONE).is_ok());
        for generation in 0..5 {
            let mut account = account.clone();
            account.begin(5, 2, Deed::Report);
            let is_possible = account.end(5, &reported(generation)).is_ok();
            assert_eq!(is_possible, (1..=3).contains(&generation), "done {generation} times");
        }
        // Once it is answered, nothing more happens: what a report has said stays.
        account.begin(5, 2, Deed::Report);
        assert!(account.end(5, &reported(1)).is_ok());
        account.begin(6, 2, Deed::Report);
        assert!(account.end(6, &reported(2)).is_err());
    }

    #[test]
    fn what_comes_back_was_not_done_and_may_have_been_before() {
        let mut account = Account::default();
        account.begin(1, 1, Deed::Register(true));
        account.come_back(1);
        assert!(account.explanations.iter().all(|explanation| explanation.state == State::default()));
        account.begin(2, 1, Deed::Acquire(WriteExclusive));
        assert!(account.end(2, &DONE).is_ok(), "by then it may have been sent again");
        let mut account = Account::default();
        account.begin(1, 1, Deed::Register(true));
        account.ask_again(1, 3);
        account.come_back(1);
        account.begin(4, 2, Deed::Report);
        let registered = State { generation: 1, persists: true, registered: BTreeSet::from([1]), held: None };
        assert!(account.end(4, &Heard::State(Box::new(registered.reported()))).is_ok(), "what was sent first was done");
    }

    #[test]
    fn what_a_preempted_host_sends_again_is_not_done() {
        let mut account = held_by_the_first_of_two();
        account.attempt(4, 1, Some(Some(WriteId(4))));
        assert!(account.attempt_again(4), "nobody keeps it out");
        account.begin(5, 2, Deed::Abort(1, WriteExclusive));
        assert!(account.end(5, &DONE).is_ok());
        let mut once = account.clone();
        assert!(once.end_attempt(4, &DONE).is_ok(), "it was sent before");
        assert_eq!(account.bar(), [WriteId(4)]);
        assert!(!account.attempt_again(4));
        assert!(
            account.clone().end_attempt(4, &DONE).is_err() && account.clone().end_attempt(4, &Heard::Aborted).is_err()
        );
        assert!(account.end_attempt(4, &REFUSED).is_ok());
    }
}
