//! Reservations of a namespace (base 8.19).
//!
//! What becomes of commands that a controller has fetched when their host is preempted (`Device::heed`, and base 8.19):
//!
//! | the action was | they |
//! |---|---|
//! | Preempt and Abort | are aborted before it is answered, with a status of their own |
//! | Preempt | go on: those that are being processed may still change the namespace; the others are refused |

use crate::{
    HostId,
    spec::{RegisteredHost, ReservationHeader, Status},
};
use std::collections::BTreeMap;
use zerocopy::{FromZeros, IntoBytes};

/// A host whose registration another one has ended.
#[derive(Clone, Copy)]
pub(super) struct Preemption {
    pub(super) host: HostId,
    /// Whether its commands are aborted.
    pub(super) aborts: bool,
}

/// Registrations and the reservation.
#[derive(Default)]
pub(super) struct Reservations {
    generation: u32,
    /// Of each host its key, and the controller that it came through.
    keys: BTreeMap<HostId, (u64, u16)>,
    /// Holder and type.
    held: Option<(HostId, u8)>,
    persists: bool,
    /// Every preemption so far, for the controllers of those hosts.
    pub(super) preemptions: Vec<Preemption>,
}

impl Reservations {
    /// Types 3 to 6 let every registrant in.
    fn lets_registrants(kind: u8) -> bool {
        kind >= 3
    }

    fn key(&self, host: HostId) -> Option<u64> {
        self.keys.get(&host).map(|&(key, _)| key)
    }

    fn may(&self, host: HostId, is_exclusive: impl Fn(u8) -> bool) -> bool {
        match self.held {
            None => true,
            Some((holder, kind)) => {
                let is_in = holder == host || (Self::lets_registrants(kind) && self.keys.contains_key(&host));
                is_in || !is_exclusive(kind)
            }
        }
    }

    pub(super) fn may_write(&self, host: HostId) -> bool {
        self.may(host, |_| true)
    }

    pub(super) fn may_read(&self, host: HostId) -> bool {
        self.may(host, |kind| matches!(kind, 2 | 4 | 6))
    }

    pub(super) fn register(
        &mut self,
        (host, controller): (HostId, u16),
        first: u32,
        [current, new]: [u64; 2],
    ) -> Status {
        let known = self.key(host);
        let ignores = first >> 3 & 1 == 1;
        match first & 7 {
            0 if known.is_none_or(|key| key == new) => {
                self.keys.insert(host, (new, controller));
            }
            1 if known.is_some() && (ignores || known == Some(current)) => {
                self.keys.remove(&host);
                self.held = self.held.filter(|(holder, _)| *holder != host);
            }
            2 if known.is_some() && (ignores || known == Some(current)) => {
                self.keys.insert(host, (new, controller));
            }
            0..=2 => return Status::RESERVED,
            _ => return Status::INVALID_FIELD,
        }
        self.generation += 1;
        match first >> 30 {
            2 => self.persists = false,
            3 => self.persists = true,
            _ => {}
        }
        Status::SUCCESS
    }

    pub(super) fn acquire(&mut self, host: HostId, first: u32, [current, victim]: [u64; 2]) -> Status {
        if self.key(host) != Some(current) {
            return Status::RESERVED;
        }
        let kind = first.to_le_bytes()[1];
        if !(1..=6).contains(&kind) {
            return Status::INVALID_FIELD;
        }
        match first & 7 {
            0 => match self.held {
                Some((holder, held)) if holder != host || held != kind => return Status::RESERVED,
                _ => self.held = Some((host, kind)),
            },
            1 | 2 => {
                let holder_falls = self.held.is_none_or(|(holder, _)| self.key(holder) == Some(victim));
                let is_victim =
                    |(&other, &(key, _)): (&HostId, &(u64, u16))| (other != host && key == victim).then_some(other);
                let victims: Vec<_> = self.keys.iter().filter_map(is_victim).collect();
                if victims.is_empty() && !holder_falls {
                    return Status::RESERVED;
                }
                let aborts = first & 7 == 2;
                for host in victims {
                    self.keys.remove(&host);
                    self.preemptions.push(Preemption { host, aborts });
                }
                if holder_falls {
                    self.held = Some((host, kind));
                }
                self.generation += 1;
            }
            _ => return Status::INVALID_FIELD,
        }
        Status::SUCCESS
    }

    pub(super) fn release(&mut self, host: HostId, first: u32, current: u64) -> Status {
        if self.key(host) != Some(current) {
            return Status::RESERVED;
        }
        match first & 7 {
            0 => self.held = self.held.filter(|(holder, _)| *holder != host),
            1 => {
                self.keys.clear();
                self.held = None;
                self.generation += 1;
            }
            _ => return Status::INVALID_FIELD,
        }
        Status::SUCCESS
    }

    /// An extended report of `length_bytes`.
    pub(super) fn report(&self, length_bytes: usize) -> Vec<u8> {
        let mut head = ReservationHeader::new_zeroed();
        head.generation = self.generation.into();
        head.kind = self.held.map_or(0, |(_, kind)| kind);
        head.registered = u16::try_from(self.keys.len()).expect("few hosts").into();
        head.persists = u8::from(self.persists);
        let mut bytes = head.as_bytes().to_vec();
        for (&host, &(key, controller)) in &self.keys {
            let mut entry = RegisteredHost::new_zeroed();
            entry.controller_id = controller.into();
            entry.status = u8::from(self.held.is_some_and(|(holder, _)| holder == host));
            entry.key = key.into();
            entry.host_id = host;
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.resize(length_bytes, 0);
        bytes
    }

    pub(super) fn lose_power(&mut self) {
        if !self.persists {
            *self = Self { preemptions: std::mem::take(&mut self.preemptions), ..Self::default() };
        }
    }
}
