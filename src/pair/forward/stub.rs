//! An interconnect that keeps what it is given.

use crate::pair::{
    interconnect::{Event, Interconnect, Message, Paths},
    wire::{Reply, Request},
};
use twinlog_device::Nanos;

#[derive(Default)]
pub(super) struct Sent(Vec<Message>);

impl Sent {
    pub(super) fn requests(&self) -> impl Iterator<Item = &Request> {
        self.0.iter().filter_map(|message| match message {
            Message::Request { request, .. } => Some(request),
            _ => None,
        })
    }

    pub(super) fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.0.iter().filter_map(|message| match message {
            Message::Reply { reply, .. } => Some(reply),
            _ => None,
        })
    }
}

impl Interconnect for Sent {
    fn poll(&mut self, _now: Nanos) -> bool {
        false
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        None
    }

    fn has_room(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message) {
        self.0.push(message);
    }

    fn flush(&mut self) {}

    fn paths(&self) -> Paths {
        Paths::default()
    }
}
