//! Reservations of a medium that several hosts reach, as NVMe namespaces have them (base 8.19). There is one kind: Write Exclusive, with which the holder alone
//! changes anything and everybody reads.
//!
//! # What becomes of operations in flight
//!
//! | the host of an operation | before it is performed |
//! |---|---|
//! | has lost the reservation | it is refused; the queue that has met this asks no more, as those of the NVMe driver |
//! | was preempted | as above; of those in flight any may be *under way* and land later, since nothing ends them (base 8.19) |
//! | was preempted, and what it had in flight aborted | each has landed by then, or never will |
//! | the same, by a controller that takes its time | the reservation has changed hands; any may be *under way* until [`SimMedium::end_aborts`], and each has landed then, or never will |
//!
//! A queue that no host has opened is like that of a host without a registration. What has come to a host is never undone: landed writes stay.

use super::{Medium, Operation, Request, SimMedium};
use crate::{disk::SimDisk, world::Agenda};
use twinlog_device::{DeviceErrorKind, Prng};

/// Hosts that reach a medium.
pub const HOSTS_MAX: usize = 2;

/// Whose a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostQueue {
    /// The host, below [`HOSTS_MAX`].
    pub host: usize,
    /// Which opening of it: later ones have higher numbers. For [`SimMedium::forbid`].
    pub opening: u64,
}

/// Registered keys, and who holds the reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registrations {
    /// Of each host.
    pub keys: [Option<u64>; HOSTS_MAX],
    /// The host that holds it.
    pub holder: Option<usize>,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationOrder {
    /// Registers a key.
    Register {
        /// It.
        key: u64,
    },
    /// Replaces the host's key.
    Replace {
        /// What it must be.
        current: u64,
        /// What it becomes.
        key: u64,
    },
    /// Takes what nobody holds.
    Acquire {
        /// The host's key.
        key: u64,
    },
    /// Ends another host's registration, and takes over what it holds.
    Preempt {
        /// The host's key.
        key: u64,
        /// The other one's.
        victim: u64,
        /// What becomes of what that one has in flight.
        aborts: Aborts,
    },
}

/// What a preemption does to operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborts {
    /// Nothing.
    Nothing,
    /// It ends them.
    AtOnce,
    /// It ends them by [`SimMedium::end_aborts`]; the reservation has changed hands before.
    Later,
}

/// How often reservations kept anything from a medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReservationCounts {
    /// Changes that were refused.
    pub refused: u64,
    /// Operations in flight that a preemption ended, and of them those that would have changed something.
    pub aborted: (u64, u64),
    /// Changes that reached the medium although [`SimMedium::forbid`] said that none does.
    pub trespasses: u64,
}

/// The reservation of a medium, and what its use has come to.
#[derive(Default)]
pub(super) struct Reservations {
    now: Registrations,
    counts: ReservationCounts,
    /// The latest opening of each host of which no change lands any more; zero: none.
    forbidden: [u64; HOSTS_MAX],
    /// Of each host, the queue that was refused since somebody asked.
    refused: [Option<HostQueue>; HOSTS_MAX],
    /// The same, for the host itself.
    is_lost: [bool; HOSTS_MAX],
}

impl Registrations {
    fn may_write(&self, host: Option<usize>) -> bool {
        self.holder.is_none_or(|holder| Some(holder) == host)
    }

    /// Performs what is not about commands in flight; whether the specification lets it.
    fn perform(&mut self, host: usize, order: ReservationOrder) -> bool {
        let mine = &mut self.keys[host];
        match order {
            ReservationOrder::Register { key } if mine.is_none_or(|mine| mine == key) => *mine = Some(key),
            ReservationOrder::Replace { current, key } if *mine == Some(current) => *mine = Some(key),
            ReservationOrder::Acquire { key }
                if *mine == Some(key) && self.holder.is_none_or(|holder| holder == host) =>
            {
                self.holder = Some(host);
            }
            ReservationOrder::Preempt { key, victim, .. } if *mine == Some(key) => {
                let Some(other) = self.host_of(host, victim) else { return false };
                self.keys[other] = None;
                if self.holder.is_none_or(|holder| holder == other) {
                    self.holder = Some(host);
                }
            }
            _ => return false,
        }
        true
    }

    /// The other host with this key.
    fn host_of(&self, host: usize, victim: u64) -> Option<usize> {
        (0..HOSTS_MAX).find(|&other| other != host && self.keys[other] == Some(victim))
    }
}

impl SimMedium {
    /// A new queue of a host for the reactor of `agenda`.
    #[must_use]
    pub fn open_for(&self, agenda: &Agenda, host: HostQueue) -> SimDisk {
        assert!(host.host < HOSTS_MAX, "a host that the medium knows");
        let disk = self.open(agenda);
        let queues = &mut self.0.borrow_mut().queues;
        queues.last_mut().expect("it was opened").host = Some(host);
        disk
    }

    /// What a report says.
    ///
    /// # Errors
    /// When the medium is gone.
    pub fn registrations(&self) -> Result<Registrations, DeviceErrorKind> {
        let medium = self.0.borrow();
        if medium.gone { Err(DeviceErrorKind::Gone) } else { Ok(medium.reservations.now) }
    }

    /// Who holds the reservation, for who looks in from outside.
    #[must_use]
    pub fn holder(&self) -> Option<usize> {
        self.0.borrow().reservations.now.holder
    }

    /// Performs what a host asks for.
    ///
    /// # Errors
    /// `Fenced`: the specification does not let it, and nothing has changed; `Gone`: the medium is gone.
    pub fn reserve(&self, host: usize, order: ReservationOrder) -> Result<(), DeviceErrorKind> {
        let medium = &mut *self.0.borrow_mut();
        if medium.gone {
            return Err(DeviceErrorKind::Gone);
        }
        let before = medium.reservations.now;
        if !medium.reservations.now.perform(host, order) {
            return Err(DeviceErrorKind::Fenced);
        }
        if let ReservationOrder::Preempt { victim, aborts, .. } = order
            && let Some(other) = before.host_of(host, victim)
        {
            medium.end_in_flight(other, aborts, |_| true);
        }
        Ok(())
    }

    /// What a preemption of a host has left under way has landed, or never does.
    pub fn end_aborts(&self, host: usize) {
        self.0.borrow_mut().end_in_flight(host, Aborts::AtOnce, |operation| operation.is_under_way);
    }

    /// From now on no change of the host's openings up to this one is to reach the medium: those that do are counted.
    pub fn forbid(&self, host: usize, opening: u64) {
        let forbidden = &mut self.0.borrow_mut().reservations.forbidden[host];
        *forbidden = opening.max(*forbidden);
    }

    /// Whether a host was refused a change since it asked last.
    #[must_use]
    pub fn take_lost(&self, host: usize) -> bool {
        std::mem::take(&mut self.0.borrow_mut().reservations.is_lost[host])
    }

    /// The queue of a host that was refused a change since this was asked last.
    #[must_use]
    pub fn take_refused(&self, host: usize) -> Option<HostQueue> {
        self.0.borrow_mut().reservations.refused[host].take()
    }

    /// How often reservations kept anything from the medium.
    #[must_use]
    pub fn reservation_counts(&self) -> ReservationCounts {
        self.0.borrow().reservations.counts
    }

    /// The process of a host ends: what it has in flight lands or not, if it may, and its queues are closed. Those of the others go on.
    pub fn process_kill_of(&self, host: usize, prng: &mut Prng) {
        let medium = &mut *self.0.borrow_mut();
        let in_flight = medium.take_in_flight(|queue| queue.host.is_some_and(|of| of.host == host));
        medium.land_partly(prng, &in_flight);
    }
}

impl Medium {
    /// Whether a reservation, or what took it away, keeps an operation from being performed.
    pub(super) fn is_kept_out(&mut self, queue: usize, operation: &Operation) -> bool {
        let host = self.queues[queue].host;
        if operation.is_aborted {
            self.reservations.note_refused(host);
            return true;
        }
        if !operation.request.changes() || operation.is_under_way {
            return false;
        }
        let may_write = self.reservations.now.may_write(host.map(|of| of.host));
        if may_write && !self.queues[queue].is_fenced {
            return false;
        }
        self.queues[queue].is_fenced = true;
        self.reservations.counts.refused += 1;
        self.reservations.note_refused(host);
        true
    }

    /// A change reaches the medium.
    pub(super) fn note_change(&mut self, host: Option<HostQueue>) {
        let is_forbidden = host.is_some_and(|of| of.opening <= self.reservations.forbidden[of.host]);
        self.reservations.counts.trespasses += u64::from(is_forbidden);
    }

    /// Whether what a host has in flight may still land when its process has ended.
    pub(super) fn may_land(&self, host: Option<HostQueue>, operation: &Operation) -> bool {
        let may_write = operation.is_under_way || self.reservations.now.may_write(host.map(|of| of.host));
        !operation.is_aborted && operation.result.is_none() && may_write
    }

    /// What a process has left, and may not land, is refused.
    pub(super) fn count_refused(&mut self, operation: &Operation) {
        let is_new = operation.request.changes() && !operation.is_aborted && operation.result.is_none();
        self.reservations.counts.refused += u64::from(is_new);
    }

    /// A host was preempted: what it has in flight has landed, or never does, if that is aborted; else some of it is under way and lands when it does.
    fn end_in_flight(&mut self, host: usize, aborts: Aborts, concerns: impl Fn(&Operation) -> bool) {
        for index in 0..self.queues.len() {
            let Some(of) = self.queues[index].host.filter(|of| of.host == host) else { continue };
            let mut operations = std::mem::take(&mut self.queues[index].operations);
            let left = operations.iter_mut().flatten();
            for operation in left.filter(|operation| operation.result.is_none() && concerns(operation)) {
                let has_begun = !self.gone && self.prng.chance(1, 2);
                let is_write = matches!(operation.request, Request::Write { .. });
                match (has_begun, aborts) {
                    (has_begun, Aborts::Nothing) => operation.is_under_way |= has_begun,
                    (true, Aborts::Later) if is_write => operation.is_under_way = true,
                    (true, Aborts::AtOnce) if is_write => {
                        // A world that has crashed performs nothing any more.
                        operation.result = self.perform(&mut operation.request, Some(of)).ok();
                    }
                    (_, Aborts::AtOnce | Aborts::Later) => {
                        operation.is_aborted = true;
                        let counts = &mut self.reservations.counts.aborted;
                        *counts = (counts.0 + 1, counts.1 + u64::from(operation.request.changes()));
                    }
                }
            }
            self.queues[index].operations = operations;
        }
    }

    /// The power has gone.
    pub(super) fn lose_reservations(&mut self) {
        if !self.config.keeps_reservations {
            self.reservations.now = Registrations::default();
        }
    }
}

impl Reservations {
    fn note_refused(&mut self, host: Option<HostQueue>) {
        if let Some(of) = host {
            (self.refused[of.host], self.is_lost[of.host]) = (Some(of), true);
        }
    }
}
