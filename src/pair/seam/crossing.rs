//! One half's end of the two mailboxes, and its knowledge of the room in the one that it sends to.

use super::{Amount, Limits};
use crate::{
    base::planted,
    reactor::mailbox::{Mailbox, MailboxSender, SendError},
};

/// What lies in a mailbox.
#[derive(Debug)]
pub(super) struct Envelope<T> {
    /// All that the sender has taken until then.
    taken: Amount,
    item: Option<T>,
}

/// The end.
#[derive(Debug)]
pub(super) struct Crossing<Out, In> {
    pub(super) limits: Limits,
    sender: MailboxSender<Envelope<Out>>,
    mailbox: Mailbox<Envelope<In>>,
    sent: Amount,
    /// Of what was sent: what the other half has said that it has taken.
    arrived: Amount,
    taken: Amount,
    /// Of what was taken: what the other half was told.
    said: Amount,
}

impl<Out, In> Crossing<Out, In> {
    pub(super) fn new(limits: Limits, sender: MailboxSender<Envelope<Out>>, mailbox: Mailbox<Envelope<In>>) -> Self {
        let none = Amount::default();
        Self { limits, sender, mailbox, sent: none, arrived: none, taken: none, said: none }
    }

    /// What was sent and, as far as is known, not taken.
    pub(super) fn waiting(&self) -> Amount {
        self.sent.since(self.arrived)
    }

    pub(super) fn has_room(&self) -> bool {
        let Limits { count_max: count, bytes_max: bytes, .. } = self.limits;
        !self.waiting().reaches(Amount { count, bytes }) || planted::is("seam-bound-not-kept")
    }

    /// Sends; the caller has seen that there is room.
    pub(super) fn send(&mut self, item: Out, bytes: u64) {
        self.sent.add(bytes);
        self.put(Some(item));
    }

    /// The next envelope's item, if there is an envelope, and if it has one.
    pub(super) fn receive(&mut self) -> Option<Option<In>> {
        let Envelope { taken, item } = self.mailbox.receive()?;
        self.arrived = taken;
        Some(item)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.mailbox.is_empty()
    }

    /// Something that was received is done with, as far as room is concerned.
    pub(super) fn take(&mut self, bytes: u64) {
        self.taken.add(bytes);
    }

    /// Tells the other half what was taken, if it may wait for that.
    pub(super) fn say(&mut self) {
        if self.taken.since(self.said).reaches(self.limits.said_after()) && !planted::is("seam-room-not-said") {
            self.put(None);
        }
    }

    fn put(&mut self, item: Option<Out>) {
        self.said = self.taken;
        match self.sender.send(Envelope { taken: self.taken, item }) {
            // The other half has ended, and the node with it.
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(SendError::Full(_)) => unreachable!("no half sends more than the other one has room for"),
        }
    }
}
