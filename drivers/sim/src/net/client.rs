//! Where clients and nodes connect to one [`SimNet`](super::SimNet), and the clients of tests.

use super::{
    path::Answer,
    stream::{End, SharedStream, Side, Stream, carry},
};
use crate::{fault::Fault, world::Agenda};
use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// Whether a process takes connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    #[default]
    Listening,
    /// The process has ended; its machine runs.
    Ended,
    /// The machine is dark.
    Dark,
}

/// Connections that wait to be accepted.
#[derive(Default)]
pub(super) struct Pending {
    queue: VecDeque<(usize, SharedStream)>,
    presence: Presence,
}

/// Where clients connect to one [`SimNet`](super::SimNet). Clones are handles of the same listeners.
#[derive(Clone)]
pub struct SimListener {
    agenda: Agenda,
    pending: Rc<RefCell<Pending>>,
}

/// A client's end of a connection. Dropping it is a disconnect.
pub struct SimClient {
    agenda: Agenda,
    stream: SharedStream,
}

impl SimListener {
    pub(super) fn new(agenda: &Agenda, pending: Rc<RefCell<Pending>>) -> Self {
        Self { agenda: agenda.clone(), pending }
    }

    /// Connects a client. When the process has ended, the client sees the end of its stream at once.
    #[must_use]
    pub fn connect(&self, listener: usize) -> SimClient {
        let stream = Stream::shared();
        if !matches!(self.offer(listener, &stream), Answer::Listening) {
            stream.borrow_mut().leave(Side::Listening, End::Gone);
        }
        SimClient { agenda: self.agenda.clone(), stream }
    }

    /// The machine of this process loses its power: when the [`SimNet`](super::SimNet) goes, now or later, no other node hears of it.
    pub fn go_dark(&self) {
        self.pending.borrow_mut().presence = Presence::Dark;
    }

    pub(super) fn is_of_same_process(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.pending, &other.pending)
    }

    /// Lets a connection wait to be accepted, if somebody accepts.
    pub(super) fn offer(&self, listener: usize, stream: &SharedStream) -> Answer {
        let mut pending = self.pending.borrow_mut();
        match pending.presence {
            Presence::Listening => {
                pending.queue.push_back((listener, stream.clone()));
                self.agenda.wake();
                Answer::Listening
            }
            Presence::Ended => Answer::Refused,
            Presence::Dark => Answer::Silence,
        }
    }

    pub(super) fn take(&self) -> Option<(usize, SharedStream)> {
        self.pending.borrow_mut().queue.pop_front()
    }

    /// The process ends; returns in which way, and what still waited.
    pub(super) fn end(&self) -> (Presence, Vec<SharedStream>) {
        let mut pending = self.pending.borrow_mut();
        if pending.presence == Presence::Listening {
            pending.presence = Presence::Ended;
        }
        (pending.presence, pending.queue.drain(..).map(|(_, stream)| stream).collect())
    }
}

impl SimClient {
    /// Sends as many of `bytes` as there is room for; returns how many. None after either end has closed.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut stream = self.stream.borrow_mut();
        if stream.end(Side::Listening) != End::Open || stream.end(Side::Connecting) != End::Open {
            return 0;
        }
        let pipe = stream.sent_by(Side::Connecting);
        let count = bytes.len().min(pipe.room());
        pipe.bytes.extend(&bytes[..count]);
        if count > 0 {
            self.agenda.wake();
        }
        count
    }

    /// Appends what has arrived to `bytes`; false once nothing more will come.
    pub fn receive(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut stream = self.stream.borrow_mut();
        let pipe = stream.sent_by(Side::Listening);
        let is_full = pipe.room() == 0;
        let count = pipe.bytes.len();
        carry(&mut pipe.bytes, count, |part| bytes.extend_from_slice(part));
        if is_full {
            self.agenda.wake();
        }
        stream.end(Side::Listening) == End::Open
    }

    /// Sends no more; still receives.
    pub fn end(&mut self) {
        self.leave(End::Ended);
    }

    /// Goes away without a word; what was sent and has not arrived is lost.
    pub fn reset(self) {
        self.leave(End::Reset);
    }

    fn leave(&self, end: End) {
        let mut stream = self.stream.borrow_mut();
        let before = stream.end(Side::Connecting);
        if !matches!(before, End::Open | End::Ended) {
            return;
        }
        let is_served = stream.end(Side::Listening) == End::Open;
        let on_its_way = [Side::Connecting, Side::Listening].iter().any(|&side| !stream.sent_by(side).bytes.is_empty());
        stream.leave(Side::Connecting, end);
        if end != End::Ended && is_served {
            if before == End::Open {
                self.agenda.world().count_fired(Fault::Disconnect);
                if on_its_way {
                    self.agenda.world().count_mattered(Fault::Disconnect);
                }
            }
            stream.sent_by(Side::Listening).bytes.clear();
        }
        self.agenda.wake();
    }
}

impl Drop for SimClient {
    fn drop(&mut self) {
        self.leave(End::Gone);
    }
}
