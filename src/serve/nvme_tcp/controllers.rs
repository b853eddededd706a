//! The controllers of one node. A controller is a host's admin queue with its I/O queues; each queue is a connection, which the kernel gives to any of the
//! reactors. This table is all that they share: atomics, no locks.
//!
//! # Invariants
//!
//! 1. A controller's place is written by the reactor that has its admin queue; other reactors only set and clear bits of queues.
//! 2. An I/O queue belongs to one *life* of its controller: from one enabling to the next reset, or to the loss of the admin queue. Lives are numbered and
//!    never used again while the process lives, so what belongs to an earlier one is seen as such by whoever looks.
//!
//! ```text
//! free --claim--> claimed --enable--> alive (a life, and a bit for each I/O queue) --disable--> claimed --release--> free
//! ```

use super::{
    notices::NOTIFICATIONS_MAX,
    wire::{
        command::{Command, NAME_BYTES_MAX, Status},
        log::{ERRORS_MAX, ErrorEntry, Notification},
    },
};
use crate::{base::HostId, node::admin::HostStatus};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use twinlog_device::Nanos;

/// Controllers of one node: as many as it may have connections.
const CONTROLLERS_MAX: usize = crate::base::limits::CONNECTIONS_MAX;

/// I/O queues of one controller: a bit each, beside the number of its life.
pub(super) const QUEUES_MAX: u16 = 32;

/// Bytes of a host's name are kept in this many words.
const NAME_WORDS: usize = NAME_BYTES_MAX.div_ceil(8);

const LIFE_SHIFT: u32 = 32;

/// An abort of a command at an I/O queue, between the reactors of the two queues: the queue and the command's id below it.
///
/// ```text
/// none (zero) --admin queue--> wanted --I/O queue--> done, or too late --admin queue--> none
/// ```
mod abort {
    pub(super) const WANTED: u64 = 1 << 32;
    pub(super) const DONE: u64 = 2 << 32;
    pub(super) const TOO_LATE: u64 = 3 << 32;

    /// The command that is wanted.
    pub(super) fn of(queue: u16, id: u16) -> u64 {
        WANTED | u64::from(queue) << 16 | u64::from(id)
    }
}

#[derive(Debug)]
struct Place {
    /// Zero: free.
    claim: AtomicU64,
    /// The life in the upper half, zero while it is not enabled; I/O queues in the lower.
    state: AtomicU64,
    /// Whose it is, as one number.
    host: AtomicU64,
    is_discovery: AtomicU32,
    /// When the host will have been silent for too long, in nanoseconds; zero: never. Written by the reactor of the admin queue.
    silent_at: AtomicU64,
    /// The host's name, filled with zeroes, for people.
    name: [AtomicU64; NAME_WORDS],
    abort: AtomicU64,
    /// Commands that have failed, and the newest of those that the admin queue has not collected.
    error_count: AtomicU64,
    errors: (Sender<ErrorEntry>, Receiver<ErrorEntry>),
    /// The host's identifier; zeroes while there is none.
    host_id: [AtomicU64; 2],
    /// What the host is to be told, and how much of it found no room here.
    notifications: (Sender<Notification>, Receiver<Notification>),
    lost: AtomicU64,
}

impl Place {
    fn new() -> Self {
        Self {
            claim: AtomicU64::new(0),
            state: AtomicU64::new(0),
            host: AtomicU64::new(0),
            is_discovery: AtomicU32::new(0),
            silent_at: AtomicU64::new(0),
            name: [const { AtomicU64::new(0) }; NAME_WORDS],
            abort: AtomicU64::new(0),
            error_count: AtomicU64::new(0),
            errors: bounded(ERRORS_MAX),
            host_id: [const { AtomicU64::new(0) }; 2],
            notifications: bounded(NOTIFICATIONS_MAX),
            lost: AtomicU64::new(0),
        }
    }

    fn report(&self, queue: u16, command: &Command, status: Status) {
        let count = self.error_count.fetch_add(1, Ordering::Relaxed) + 1;
        let (first_block, _) = command.blocks();
        let (command, namespace) = (command.id.get(), command.namespace.get());
        let error = ErrorEntry { count, queue, command, status: status.field(), namespace, first_block };
        if let Err(full) = self.errors.0.try_send(error) {
            // The newest are of interest, and an admin queue that is busy is not waited for.
            let _oldest = self.errors.1.try_recv();
            let _ = self.errors.0.try_send(full.into_inner());
        }
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Controllers {
    places: Vec<Place>,
    claims: AtomicU64,
    lives: AtomicU32,
    /// The controller of the first place.
    first: u16,
}

/// A controller, to the session that has its admin queue.
#[derive(Debug)]
pub(super) struct Claim {
    index: usize,
    /// CNTLID.
    pub(super) controller: u16,
}

/// An I/O queue of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    index: usize,
    life: u32,
    /// Its number, from 1.
    pub(super) queue: u16,
}

/// Why an I/O queue cannot be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No such controller.
    Unknown,
    /// It is another host's.
    Foreign,
    /// It is not enabled.
    Disabled,
    /// There is a queue of this number.
    Taken,
}

impl Controllers {
    /// No controllers yet; the first will be called `first`.
    pub(super) fn new(first: u16) -> Self {
        let places = std::iter::repeat_with(Place::new).take(CONTROLLERS_MAX).collect();
        Self { places, claims: AtomicU64::new(1), lives: AtomicU32::new(1), first }
    }

    /// A new controller for the host called `name`, `host` as one number. `None`: there are too many.
    pub(super) fn claim(&self, name: &str, host: u64, is_discovery: bool) -> Option<Claim> {
        let number = self.claims.fetch_add(1, Ordering::Relaxed);
        // In turn, so that a name that was just let go is not somebody else's at once.
        let start = usize::try_from(number).unwrap_or(0);
        let index = (0..CONTROLLERS_MAX).map(|step| (start + step) % CONTROLLERS_MAX).find(|&index| {
            let claim = &self.places[index].claim;
            claim.compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let place = &self.places[index];
        let mut words = [[0; 8]; NAME_WORDS];
        words.as_flattened_mut().iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        for (word, bytes) in place.name.iter().zip(words) {
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        // What a former controller here has left.
        place.abort.store(0, Ordering::Relaxed);
        place.errors.1.try_iter().for_each(drop);
        place.error_count.store(0, Ordering::Relaxed);
        place.is_discovery.store(u32::from(is_discovery), Ordering::Relaxed);
        place.silent_at.store(0, Ordering::Relaxed);
        place.host_id.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        place.host.store(host, Ordering::Release);
        let offset = u16::try_from(index).expect("fewer than 2^16");
        Some(Claim { index, controller: self.first + offset })
    }

    /// The host of a controller with namespaces, by the name that reservations know it by.
    pub(super) fn name_host(&self, claim: &Claim, host: HostId) {
        for (word, number) in self.places[claim.index].host_id.iter().zip(words_of(host)) {
            word.store(number, Ordering::Release);
        }
    }

    /// Each controller of the host that lives is to tell it this.
    pub(super) fn notify(&self, host: HostId, notification: Notification) {
        let words = words_of(host);
        for place in &self.places {
            let is_theirs = place.host_id.iter().zip(words).all(|(word, own)| word.load(Ordering::Acquire) == own);
            let is_alive = life_of(place.state.load(Ordering::Acquire)) != 0;
            if is_theirs && is_alive && place.notifications.0.try_send(notification).is_err() {
                place.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// So much was lost of what some hosts were to be told: each controller of a host that lives counts it.
    pub(super) fn lose(&self, lost: u64) {
        for place in &self.places {
            let has_host = place.host_id.iter().any(|word| word.load(Ordering::Acquire) != 0);
            if has_host && life_of(place.state.load(Ordering::Acquire)) != 0 {
                place.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }

    /// What the controller's host is to be told, and how much was lost.
    pub(super) fn collect_notifications(&self, claim: &Claim) -> (Vec<Notification>, u64) {
        let place = &self.places[claim.index];
        let lost = place.lost.swap(0, Ordering::Relaxed);
        (place.notifications.1.try_iter().take(NOTIFICATIONS_MAX).collect(), lost)
    }

    /// Begins a life, without I/O queues.
    pub(super) fn enable(&self, claim: &Claim) {
        // What an earlier life has left.
        self.collect_notifications(claim);
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        self.places[claim.index].state.store(u64::from(life) << LIFE_SHIFT, Ordering::Release);
    }

    /// The host has been heard: it will have been silent for too long then, or never. Whoever looks after that finds that its controller has ended, whether
    /// or not the reactor of its admin queue has had a turn.
    pub(super) fn expect(&self, claim: &Claim, silent_at: Option<Nanos>) {
        self.places[claim.index].silent_at.store(silent_at.map_or(0, |at| at.0.max(1)), Ordering::Release);
    }

    /// Ends it: its I/O queues end when they look.
    pub(super) fn disable(&self, claim: &Claim) {
        self.places[claim.index].state.store(0, Ordering::Release);
    }

    /// The controller is gone.
    pub(super) fn release(&self, claim: &Claim) {
        self.disable(claim);
        self.places[claim.index].claim.store(0, Ordering::Release);
    }

    /// Connects I/O queue `queue` (1 to [`QUEUES_MAX`]) of `host`.
    pub(super) fn join(&self, controller: u16, host: u64, queue: u16) -> Result<Member, Refused> {
        let index = usize::from(controller.checked_sub(self.first).ok_or(Refused::Unknown)?);
        let place = self.places.get(index).ok_or(Refused::Unknown)?;
        if place.claim.load(Ordering::Acquire) == 0 {
            return Err(Refused::Unknown);
        }
        let mut state = place.state.load(Ordering::Acquire);
        loop {
            let life = life_of(state);
            if place.host.load(Ordering::Acquire) != host {
                return Err(Refused::Foreign);
            }
            if life == 0 {
                return Err(Refused::Disabled);
            }
            if state & bit(queue) != 0 {
                return Err(Refused::Taken);
            }
            match place.state.compare_exchange(state, state | bit(queue), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Member { index, life, queue }),
                Err(now) => state = now,
            }
        }
    }

    /// Whether the queue's controller lives the same life, and has heard of its host in time.
    pub(super) fn is_member(&self, member: Member, now: Nanos) -> bool {
        let place = &self.places[member.index];
        let silent_at = place.silent_at.load(Ordering::Acquire);
        self.is_of_this_life(member) && (silent_at == 0 || now.0 <= silent_at)
    }

    fn is_of_this_life(&self, member: Member) -> bool {
        life_of(self.places[member.index].state.load(Ordering::Acquire)) == member.life
    }

    /// A command of I/O queue `queue` is to be aborted. Returns whether there is such a queue.
    pub(super) fn want_abort(&self, claim: &Claim, queue: u16, id: u16) -> bool {
        let place = &self.places[claim.index];
        let is_there = (1..=QUEUES_MAX).contains(&queue) && place.state.load(Ordering::Acquire) & bit(queue) != 0;
        if is_there {
            place.abort.store(abort::of(queue, id), Ordering::Release);
        }
        is_there
    }

    /// The command of this queue that is to be aborted.
    pub(super) fn wanted_abort(&self, member: Member) -> Option<u16> {
        let wanted = self.places[member.index].abort.load(Ordering::Acquire);
        let [low, high, ..] = wanted.to_le_bytes();
        let id = u16::from_le_bytes([low, high]);
        (wanted == abort::of(member.queue, id)).then_some(id)
    }

    /// What became of it.
    pub(super) fn end_abort(&self, member: Member, id: u16, is_aborted: bool) {
        let outcome = if is_aborted { abort::DONE } else { abort::TOO_LATE };
        let place = &self.places[member.index].abort;
        // Otherwise nobody waits for it any more.
        let _ = place.compare_exchange(abort::of(member.queue, id), outcome, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the command was aborted; `None` while its queue has not said, unless that is waited for no longer.
    pub(super) fn take_abort(&self, claim: &Claim, is_over: bool) -> Option<bool> {
        let place = &self.places[claim.index].abort;
        let now = place.load(Ordering::Acquire);
        let has_ended = is_over || now == abort::DONE || now == abort::TOO_LATE;
        has_ended.then(|| place.swap(0, Ordering::AcqRel) == abort::DONE)
    }

    /// A command of an I/O queue has failed.
    pub(super) fn report(&self, member: Member, command: &Command, status: Status) {
        if self.is_of_this_life(member) {
            self.places[member.index].report(member.queue, command, status);
        }
    }

    /// A command of the admin queue has failed.
    pub(super) fn report_admin(&self, claim: &Claim, command: &Command, status: Status) {
        self.places[claim.index].report(0, command, status);
    }

    /// Commands of the controller that have failed, and those of them that were not collected before.
    pub(super) fn collect_errors(&self, claim: &Claim) -> (u64, impl Iterator<Item = ErrorEntry> + '_) {
        let place = &self.places[claim.index];
        (place.error_count.load(Ordering::Relaxed), place.errors.1.try_iter())
    }

    /// The queue's connection has ended.
    pub(super) fn leave(&self, member: Member) {
        let change = |state| (life_of(state) == member.life).then_some(state & !bit(member.queue));
        // Otherwise nobody knows it any more.
        let _ = self.places[member.index].state.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// Those there are, for people.
    pub(super) fn hosts(&self) -> Vec<HostStatus> {
        let status = |(place, controller): (&Place, u16)| {
            let claim = place.claim.load(Ordering::Acquire);
            let words: Vec<[u8; 8]> =
                place.name.iter().map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
            let state = place.state.load(Ordering::Acquire);
            let queues = state & u64::from(u32::MAX);
            let is_discovery = place.is_discovery.load(Ordering::Relaxed) != 0;
            // Another one's by now: the next look shows it whole.
            let is_whole = claim != 0 && place.claim.load(Ordering::Acquire) == claim;
            let name = String::from_utf8_lossy(words.as_flattened());
            is_whole.then(|| HostStatus {
                host: name.trim_end_matches('\0').to_owned(),
                controller,
                queues: queues.count_ones(),
                is_discovery,
            })
        };
        self.places.iter().zip(self.first..).filter_map(status).collect()
    }
}

fn words_of(host: HostId) -> [u64; 2] {
    let [high, low] = [0, 8].map(|at| host.bytes()[at..at + 8].try_into().expect("half of it"));
    [u64::from_le_bytes(high), u64::from_le_bytes(low)]
}

fn life_of(state: u64) -> u32 {
    u32::try_from(state >> LIFE_SHIFT).expect("the upper half")
}

fn bit(queue: u16) -> u64 {
    assert!((1..=QUEUES_MAX).contains(&queue), "the caller bounds it");
    1 << (queue - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_belong_to_one_life_of_one_host_s_controller() {
        let controllers = Controllers::new(0x8000);
        let claim = controllers.claim("nqn.2014-08.a", 7, false).expect("there is room");
        let id = claim.controller;
        assert_eq!(controllers.join(id, 7, 1), Err(Refused::Disabled));
        controllers.enable(&claim);
        assert_eq!(controllers.join(id, 8, 1), Err(Refused::Foreign));
        assert_eq!(controllers.join(0x7fff, 7, 1), Err(Refused::Unknown));
        assert_eq!(controllers.join(id + 1, 7, 1), Err(Refused::Unknown));
        assert_eq!(controllers.join(0xffff, 7, 1), Err(Refused::Unknown));
        let first = controllers.join(id, 7, 1).expect("enabled");
        let last = controllers.join(id, 7, QUEUES_MAX).expect("enabled");
        assert_eq!(controllers.join(id, 7, 1), Err(Refused::Taken));
        let is_member = |member| controllers.is_member(member, Nanos(5));
        assert!(is_member(first) && is_member(last));
        controllers.expect(&claim, Some(Nanos(4)));
        assert!(!is_member(first) && !is_member(last), "the host was silent for too long");
        controllers.expect(&claim, Some(Nanos(5)));
        assert!(is_member(first));
        let [host] = &controllers.hosts()[..] else { panic!("one host") };
        assert_eq!((host.host.as_str(), host.controller, host.queues), ("nqn.2014-08.a", id, 2));
        controllers.leave(first);
        let first = controllers.join(id, 7, 1).expect("it has left");
        controllers.disable(&claim);
        controllers.enable(&claim);
        assert!(!is_member(first));
        let again = controllers.join(id, 7, 1).expect("a new life");
        controllers.leave(first);
        assert!(is_member(again) && controllers.join(id, 7, 1) == Err(Refused::Taken));
        controllers.release(&claim);
        assert!(!is_member(again) && controllers.hosts().is_empty());
    }

    #[test]
    fn what_nobody_knows_the_host_of_is_lost_to_all_that_live() {
        let controllers = Controllers::new(1);
        let host = HostId::new([7; 16]).expect("not zero");
        let claims: [Claim; 3] =
            std::array::from_fn(|_| controllers.claim("nqn.2014-08.a", 1, false).expect("there is room"));
        let [alive, disabled, discovery] = &claims;
        [alive, disabled].into_iter().for_each(|claim| controllers.name_host(claim, host));
        [alive, discovery].into_iter().for_each(|claim| controllers.enable(claim));
        controllers.lose(3);
        let notification = Notification { namespace: 1, kind: 1 };
        (0..=NOTIFICATIONS_MAX).for_each(|_| controllers.notify(host, notification));
        assert_eq!(controllers.collect_notifications(alive), (vec![notification; NOTIFICATIONS_MAX], 4));
        for claim in [alive, disabled, discovery] {
            assert_eq!(controllers.collect_notifications(claim), (vec![], 0));
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let controllers = Controllers::new(1);
        let claims: Vec<_> = std::iter::from_fn(|| controllers.claim("nqn.2014-08.a", 1, true)).collect();
        assert_eq!(claims.len(), CONTROLLERS_MAX);
        let mut ids: Vec<u16> = claims.iter().map(|claim| claim.controller).collect();
        ids.sort_unstable();
        assert_eq!((ids[0], ids[CONTROLLERS_MAX - 1]), (1, 256));
        controllers.release(&claims[5]);
        assert_eq!(
            controllers.claim("nqn.2014-08.b", 1, true).map(|claim| claim.controller),
            Some(claims[5].controller)
        );
    }
}
