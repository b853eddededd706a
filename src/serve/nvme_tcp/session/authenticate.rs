//! A session whose host has to authenticate itself.

use super::{Intake, Role, Session};
use crate::serve::{
    nvme_tcp::{
        auth::{Exchange, Given, Taken},
        hosts::Host,
        wire::{command::Status, pdu},
    },
    turn::Turn,
};
use std::sync::Arc;
use twinlog_device::{Nanos, Unread};

/// Result of a Connect: the host has to authenticate itself before anything else (AUTHREQ.ATR; base 2.0, section 6.3).
const AUTHENTICATION_REQUIRED: u32 = 1 << 17;

impl Session {
    /// The queue belongs to the host called `name`, which came by `entry`. Discovery says where others are, and demands no proof.
    pub(super) fn welcome(&mut self, name: &str, entry: Arc<Host>, is_discovery: bool) {
        if entry.secret.is_some() && !is_discovery {
            let exchange = Exchange::new(Arc::clone(&entry), self.target.subsystem(), self.now);
            self.exchange = Some(Box::new(exchange));
        }
        self.host = Some((name.to_owned(), entry));
    }

    /// What the result of a Connect demands.
    pub(super) fn demand(&self) -> u32 {
        if self.exchange.is_some() { AUTHENTICATION_REQUIRED } else { 0 }
    }

    /// Whether the host could still connect as it did.
    pub(super) fn is_welcome(&self) -> bool {
        self.host.as_ref().is_none_or(|(name, entry)| self.target.hosts.is_admitted(name, self.host_id, entry))
    }

    /// Whether the host takes too long to authenticate itself.
    pub(super) fn is_late(&self, now: Nanos) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.is_overdue(now))
    }

    /// Takes the message that the command in `slot` has brought.
    pub(super) fn authenticate<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, data: &[u8]) {
        self.shows_life();
        let exchange = self.exchange.as_mut().expect("planned with one");
        let taken = exchange.take(self.target.means(), data, self.now);
        self.finish(turn, slot, Status::SUCCESS, 0);
        if taken == Taken::Doubted {
            self.intake = Intake::Ended;
        }
    }

    /// The command `id` fetches what there is, up to `length` bytes.
    pub(super) fn fetch<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, id: u16, length: u32) {
        self.shows_life();
        if self.fetching.is_some() {
            self.respond(turn, id, Status::SEQUENCE_ERROR, 0);
            return;
        }
        self.fetching = Some((id, length));
    }

    /// Gives what is fetched, if it is there. Returns whether anything was done.
    pub(super) fn give_next<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) -> bool {
        let Some((id, length)) = self.fetching else { return false };
        let given = self.exchange.as_mut().expect("planned with one").give();
        let message = match &given {
            Given::Later => return false,
            Given::Nothing => None,
            Given::Message(message) | Given::Last(message) => Some(message),
        };
        self.fetching = None;
        let length = length as usize;
        match message.filter(|message| message.len() <= length) {
            Some(message) => {
                let mut data = message.clone();
                data.resize(length, 0);
                self.send_data_header(turn, id, u32::try_from(length).expect("it was one"));
                turn.net.send(turn.connection, &data);
                self.end_data(turn, id, pdu::digest(0, &data));
            }
            None if message.is_some() => self.respond(turn, id, Status::INVALID_FIELD, 0),
            None => self.respond(turn, id, Status::SEQUENCE_ERROR, 0),
        }
        if matches!(given, Given::Last(_)) {
            self.intake = Intake::Ended;
        }
        true
    }

    /// Until it may send a keep alive, this shows that the host lives.
    fn shows_life(&mut self) {
        if let Role::Admin(admin) = &mut self.role {
            admin.revive(self.now);
        }
    }
}
