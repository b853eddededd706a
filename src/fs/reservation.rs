//! What hosts do with a volume's reservation, and what a reservation lets them do (NVMe base 2.0, section 8.19): a pure state machine.
//!
//! ```text
//!                 register                     acquire
//! no registrant -----------> registrant(s) <-------------> held by one registrant, or by all of them
//!       ^                         |          release,            |
//!       |                         |          unregistered        | preempt: others are unregistered,
//!       +-------------------------+------------------------------+ and the one that asks holds it
//!          unregister the last one, clear
//! ```
//!
//! # Invariants
//!
//! 1. What is decided depends on the state, the host and the command alone, so that replay, the owner and the next owner agree.
//! 2. A command that is refused has changed nothing.
//! 3. What comes out satisfies [`Reservation::check`].

use crate::{
    base::{HostId, limits::REGISTRANTS_MAX, planted},
    format::reservation::{Held, Registrant, Reservation, ReservationKind},
};

/// What a host asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationCommand {
    /// Reservation Register, in its three actions (base 2.0, section 7.3).
    Register {
        /// Which.
        action: RegisterAction,
        /// CPTPL: whether the state is to survive the loss of power from now on; `None`: as before.
        persists: Option<bool>,
    },
    /// Reservation Acquire, action acquire (section 7.2).
    Acquire {
        /// The host's key.
        key: u64,
        /// What it wants to hold.
        kind: ReservationKind,
    },
    /// Reservation Acquire, actions preempt, and preempt and abort.
    Preempt {
        /// The host's key.
        key: u64,
        /// Whose registrations go.
        preempted: u64,
        /// What the host wants to hold, if the holder is among them.
        kind: ReservationKind,
        /// Whether commands of those hosts that are under way end.
        aborts: bool,
    },
    /// Reservation Release, action release (section 7.4).
    Release {
        /// The host's key.
        key: u64,
        /// What it holds.
        kind: ReservationKind,
    },
    /// The same, action clear: everybody's registration goes.
    Clear {
        /// The host's key.
        key: u64,
    },
    /// Feature Reservation Persistence (section 5.27.1.26).
    SetPersistence(bool),
}

/// RREGA. A current key of `None` is not looked at (IEKEY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterAction {
    /// Registers with a key.
    Register {
        /// The key.
        key: u64,
    },
    /// Ends the registration.
    Unregister {
        /// The key that the host has.
        current: Option<u64>,
    },
    /// Changes the key.
    Replace {
        /// The key that the host has.
        current: Option<u64>,
        /// The key that it is to have.
        key: u64,
    },
}

/// What a command has brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// The state now; `None`: as it was.
    pub next: Option<Reservation>,
    /// Hosts of which what is under way ends.
    pub aborted: Vec<HostId>,
    /// What hosts are to be told, the one that has asked never.
    pub notices: Vec<(HostId, Notice)>,
}

/// What a host is told of what another one has done (section 8.19.1).
///
/// The numbers are those of the log page (section 5.16.1.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Notice {
    /// Its registration was preempted.
    RegistrationPreempted = 1,
    /// A reservation in which it had a part was released, or has become one of another kind.
    ReservationReleased = 2,
    /// Registrations and reservation were cleared.
    ReservationPreempted = 3,
}

impl Notice {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::RegistrationPreempted, Self::ReservationReleased, Self::ReservationPreempted];

    /// The one with this number.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&notice| notice as u8 == byte)
    }
}

/// Kinds that let registrants in, with one holder.
const OF_REGISTRANTS: [ReservationKind; 2] =
    [ReservationKind::WriteExclusiveRegistrants, ReservationKind::ExclusiveAccessRegistrants];
/// Kinds that all registrants hold.
const OF_ALL: [ReservationKind; 2] = [ReservationKind::WriteExclusiveAll, ReservationKind::ExclusiveAccessAll];

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The host is no registrant, its key is another one, or somebody else holds the volume.
    Conflict,
    /// It asks for what cannot be.
    Invalid,
    /// There are [`REGISTRANTS_MAX`] registrants.
    Full,
}

/// What a command does with the volume (NVM command set 1.0, section 2.3: read and write groups).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read, Compare, Verify.
    Read,
    /// Write, Write Zeroes, Dataset Management, Flush.
    Write,
}

impl Reservation {
    /// Whether `host` may do this now; `None` is a client that cannot register.
    #[must_use]
    pub fn allows(&self, host: Option<HostId>, access: Access) -> bool {
        use ReservationKind::{
            ExclusiveAccess, ExclusiveAccessAll, ExclusiveAccessRegistrants, WriteExclusive, WriteExclusiveAll,
            WriteExclusiveRegistrants,
        };
        let Some(Held { kind, .. }) = self.held else { return true };
        if host.is_some_and(|host| self.is_holder(host)) || planted::is("reservation-not-enforced") {
            return true;
        }
        let is_registrant = host.is_some_and(|host| self.registrant(host).is_some());
        match kind {
            WriteExclusive => access == Access::Read,
            ExclusiveAccess => false,
            WriteExclusiveRegistrants | WriteExclusiveAll => access == Access::Read || is_registrant,
            ExclusiveAccessRegistrants | ExclusiveAccessAll => is_registrant,
        }
    }

    /// Decides a command of `host`.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn decide(&self, host: HostId, command: ReservationCommand) -> Result<Decided, Refused> {
        let mut next = self.clone();
        let mut aborted = Vec::new();
        match command {
            ReservationCommand::Register { action, persists } => {
                next.register(host, action)?;
                next.persists = persists.unwrap_or(next.persists);
                next.count();
            }
            ReservationCommand::Acquire { key, kind } => {
                self.identify(host, key)?;
                next.acquire(host, kind)?;
            }
            ReservationCommand::Preempt { key, preempted, kind, aborts } => {
                self.identify(host, key)?;
                next.preempt(host, preempted, kind)?;
                if !planted::is("preemption-not-counted") {
                    next.count();
                }
                if aborts {
                    let gone = |registrant: &&Registrant| next.registrant(registrant.host).is_none();
                    aborted = self.registrants.iter().filter(gone).map(|registrant| registrant.host).collect();
                }
            }
            ReservationCommand::Release { key, kind } => {
                self.identify(host, key)?;
                next.release(host, kind)?;
            }
            ReservationCommand::Clear { key } => {
                self.identify(host, key)?;
                (next.held, next.registrants) = (None, Vec::new());
                next.count();
            }
            ReservationCommand::SetPersistence(persists) => next.persists = persists,
        }
        let notices = self.notices(&next, host, command);
        let next = Some(next).filter(|next| next != self);
        Ok(Decided { next, aborted, notices })
    }

    /// Who is told what when a command of `host` has made `next` of this state (sections 8.19.3 to 8.19.8).
    fn notices(&self, next: &Self, host: HostId, command: ReservationCommand) -> Vec<(HostId, Notice)> {
        let others = |state: &Self| -> Vec<HostId> {
            state.registrants.iter().map(|registrant| registrant.host).filter(|other| *other != host).collect()
        };
        let all = |state: &Self, notice: Notice| -> Vec<(HostId, Notice)> {
            others(state).into_iter().map(|other| (other, notice)).collect()
        };
        let kind = self.held.map(|held| held.kind);
        let is_kind = |kinds: &[ReservationKind]| kind.is_some_and(|kind| kinds.contains(&kind));
        let is_released = next.held.is_none();
        match command {
            ReservationCommand::Preempt { .. } => {
                let gone = others(self).into_iter().filter(|other| next.registrant(*other).is_none());
                let mut notices: Vec<_> = gone.map(|other| (other, Notice::RegistrationPreempted)).collect();
                if kind.is_some() && next.held.map(|held| held.kind) != kind {
                    notices.extend(all(next, Notice::ReservationReleased));
                }
                notices
            }
            ReservationCommand::Register { .. } if is_released && is_kind(&OF_REGISTRANTS) => {
                all(next, Notice::ReservationReleased)
            }
            ReservationCommand::Release { .. } if is_released && (is_kind(&OF_REGISTRANTS) || is_kind(&OF_ALL)) => {
                all(next, Notice::ReservationReleased)
            }
            ReservationCommand::Clear { .. } => all(self, Notice::ReservationPreempted),
            _ => Vec::new(),
        }
    }

    /// Both nodes have lost power: what does not survive that is gone.
    pub fn lose_power(&mut self) {
        if !self.persists {
            (self.held, self.registrants) = (None, Vec::new());
        }
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether the host is a registrant with this key.
    fn identify(&self, host: HostId, key: u64) -> Result<(), Refused> {
        let registrant = self.registrant(host).ok_or(Refused::Conflict)?;
        if registrant.key == key { Ok(()) } else { Err(Refused::Conflict) }
    }

    fn register(&mut self, host: HostId, action: RegisterAction) -> Result<(), Refused> {
        let known = self.registrant(host).map(|registrant| registrant.key);
        let fits = |current: Option<u64>| known.is_some() && current.is_none_or(|key| known == Some(key));
        match action {
            // A host has one key: with that it may register again.
            RegisterAction::Register { key } if known.is_some_and(|known| known != key) => Err(Refused::Conflict),
            RegisterAction::Register { key } => self.set_key(host, key),
            RegisterAction::Unregister { current } if fits(current) => {
                self.unregister(|registrant| registrant.host == host);
                Ok(())
            }
            // Without a look at the key it succeeds whether or not there is one (IEKEY, base 2.0, figure 401).
            RegisterAction::Replace { current, key } if fits(current) || current.is_none() => self.set_key(host, key),
            RegisterAction::Unregister { .. } | RegisterAction::Replace { .. } => Err(Refused::Conflict),
        }
    }

    fn set_key(&mut self, host: HostId, key: u64) -> Result<(), Refused> {
        match self.registrants.binary_search_by_key(&host, |registrant| registrant.host) {
            Ok(place) => {
                if let Some(registrant) = self.registrants.get_mut(place) {
                    registrant.key = key;
                }
            }
            Err(_) if self.registrants.len() >= REGISTRANTS_MAX => return Err(Refused::Full),
            Err(place) => self.registrants.insert(place, Registrant { host, key }),
        }
        Ok(())
    }

    /// Ends registrations, and with the holder's, or the last of all holders', the reservation. Returns whether there were some.
    fn unregister(&mut self, is_gone: impl Fn(&Registrant) -> bool) -> bool {
        let before = self.registrants.len();
        self.registrants.retain(|registrant| !is_gone(registrant));
        let is_left = |held: &Held| match held.holder {
            Some(holder) => self.registrant(holder).is_some(),
            None => !self.registrants.is_empty(),
        };
        self.held = self.held.filter(is_left);
        self.registrants.len() < before
    }

    fn acquire(&mut self, host: HostId, kind: ReservationKind) -> Result<(), Refused> {
        match self.held {
            None => {
                self.hold(host, kind);
                Ok(())
            }
            Some(held) if held.kind == kind && self.is_holder(host) => Ok(()),
            Some(_) => Err(Refused::Conflict),
        }
    }

    fn hold(&mut self, host: HostId, kind: ReservationKind) {
        self.held = Some(Held { kind, holder: (!kind.is_of_all()).then_some(host) });
    }

    /// Section 8.19.7.
    fn preempt(&mut self, host: HostId, preempted: u64, kind: ReservationKind) -> Result<(), Refused> {
        let of_holder = match self.held {
            None => false,
            Some(Held { holder: None, .. }) => preempted == 0,
            Some(Held { holder: Some(holder), .. }) => {
                let key = self.registrant(holder).map(|registrant| registrant.key);
                if preempted == 0 && key != Some(0) {
                    return Err(Refused::Invalid);
                }
                key == Some(preempted)
            }
        };
        if of_holder {
            let is_all = self.held.is_some_and(|held| held.holder.is_none());
            self.unregister(|registrant| registrant.host != host && (is_all || registrant.key == preempted));
            self.hold(host, kind);
            return Ok(());
        }
        if self.unregister(|registrant| registrant.key == preempted) { Ok(()) } else { Err(Refused::Conflict) }
    }

    fn release(&mut self, host: HostId, kind: ReservationKind) -> Result<(), Refused> {
        match self.held {
            Some(held) if self.is_holder(host) && held.kind != kind => Err(Refused::Invalid),
            Some(_) if self.is_holder(host) => {
                self.held = None;
                Ok(())
            }
            // Who holds nothing has nothing to release, and that is no error.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
