//! Hosts that reserve the volume, over whichever path they use. The judge is the [account](crate::model::reservation) of the other histories: it knows that a
//! command which lies at a path that was given up may be performed there too, until the one that was sent after it is answered.

use super::{Command, History, KEPT_OUT, RESERVED_AGAIN};
use crate::{
    clients::{Answer, Ask, Refusal},
    history::{Oracle, Violation},
    model::reservation::Deed,
    pair::found,
    pattern::WriteId,
};

/// By which a host is known to reservations: its key, and each byte of its identifier.
pub(super) fn number_of(host: usize) -> u8 {
    u8::try_from(host + 1).expect("few")
}

impl History {
    /// Now and then a command about the reservation.
    pub(super) fn draw_deed(&mut self, host: usize) -> Option<Ask> {
        self.reserving.as_mut()?.draw_own_deed(number_of(host), self.volume)
    }

    /// At the end every host asks who has registered.
    pub(super) fn report_all(&mut self) {
        if self.reserving.is_some() {
            (0..self.hosts.len()).for_each(|host| self.begin(host, Ask::Reserve(number_of(host), Deed::Report)));
        }
    }

    /// A host keeps its path while more commands about the reservation would be sent again than the judge can follow.
    pub(super) fn may_send_again(&self, host: usize) -> bool {
        let is_deed = |command: &&Command| matches!(command.ask, Ask::Reserve(_, deed) if deed != Deed::Report);
        let again = self.hosts[host].commands.iter().filter(is_deed).count();
        again == 0 || self.reserving.as_ref().is_none_or(|reserving| reserving.has_room_for(again, self.volume))
    }

    /// Those of a host's commands about the reservation that are about to be sent again, while what was sent before lies elsewhere.
    pub(super) fn repeat_deeds(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        let (Some(reserving), true) = (&mut self.reserving, host.session.as_ref().is_some_and(|path| path.is_open()))
        else {
            return;
        };
        let mut repeated = 0;
        for command in host.commands.iter_mut().filter(|command| command.sent.is_none()) {
            let is_left = std::mem::take(&mut command.is_left);
            let is_deed = matches!(command.ask, Ask::Reserve(_, deed) if deed != Deed::Report);
            if is_left && is_deed {
                self.next_id += 1;
                reserving.ask_again((command.id, self.next_id), self.volume);
                repeated += 1;
            }
        }
        (0..repeated).for_each(|_| self.count(RESERVED_AGAIN, true));
    }

    /// A command was refused because of its path. Where nobody serves the pool it may have been performed all the same: a host gives up one about the reservation.
    pub(super) fn come_back(&mut self, (host, position): (usize, usize), answer: &Answer) {
        let command = &self.hosts[host].commands[position];
        let Some(reserving) = &mut self.reserving else { return };
        if !matches!(answer, Answer::Refused(Refusal::Unserved)) {
            reserving.come_back(command.id, self.volume);
        } else if matches!(command.ask, Ask::Reserve(..)) {
            reserving.lose(command.id, self.volume);
            self.model.end(command.began);
            self.hosts[host].commands.remove(position);
        }
    }

    /// A reservation keeps a request out; whether that was right is known already.
    pub(super) fn kept_out(&mut self, write: Option<WriteId>, began: u64, is_repeated: bool) -> Result<(), Violation> {
        self.count(KEPT_OUT, write.is_some());
        match write {
            None => self.model.end(began),
            // Where it was sent first it may have been performed.
            Some(write) if is_repeated => self.model.refused_when_repeated(write),
            Some(write) => {
                let refused = self.model.refuse_write(write);
                refused.map_err(|(oracle, what)| found(Oracle::Data(oracle), what))?;
            }
        }
        Ok(())
    }
}
