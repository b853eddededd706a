//! The half that the controller and the forwarder use.

use super::{News, Order, Standing, bytes_of, crossing::Crossing};
use crate::{
    base::planted,
    pair::{
        interconnect::{Event, Interconnect, Message, Paths},
        way::replaces,
    },
};
use std::collections::VecDeque;
use twinlog_device::{Lent, Nanos};

/// Events that one turn takes at most, as of an interconnect on the reactor.
const EVENTS_PER_TURN: usize = 256;

/// The near half of a seam.
pub struct Near {
    crossing: Crossing<Order, News>,
    is_up: bool,
    /// Beginnings and losses that were heard of.
    generation: u64,
    has_room_to_forward: bool,
    standing: Standing,
    /// What found no room, in order; of everything but batches the newest of each pool or lane.
    late: VecDeque<Message>,
    /// The bytes of the message that was told last.
    lent: Option<Lent>,
    /// Events that this turn may still take.
    budget: usize,
    /// When the far half was last sent anything.
    sent_at: Option<Nanos>,
    now: Nanos,
}

impl Near {
    pub(super) fn new(crossing: Crossing<Order, News>) -> Self {
        Self {
            crossing,
            is_up: false,
            generation: 0,
            has_room_to_forward: false,
            standing: Standing::default(),
            late: VecDeque::new(),
            lent: None,
            budget: 0,
            sent_at: None,
            now: Nanos(0),
        }
    }

    /// The next thing that the caller has to hear of; what only this half needs to know is noted.
    fn receive(&mut self) -> Option<News> {
        loop {
            let Some(news) = self.crossing.receive()? else { continue };
            let bytes = if let News::Message(message) = &news { bytes_of(message) } else { 0 };
            self.crossing.take(bytes);
            match news {
                News::RoomToForward(has_room) => self.has_room_to_forward = has_room,
                News::Standing(standing) => self.standing = standing,
                News::Up(_) | News::PathLost | News::Down(_) | News::Message(_) => return Some(news),
            }
        }
    }

    /// What was sent before is void, and is said again by whoever must know that it arrives.
    fn begin_generation(&mut self, is_up: bool) {
        (self.is_up, self.generation) = (is_up, self.generation + 1);
        self.late.clear();
    }

    fn put(&mut self, message: Message) {
        let bytes = bytes_of(&message);
        self.crossing.send(Order::Send { generation: self.generation, message }, bytes);
        self.sent_at = Some(self.now);
    }

    /// Sends what found no room, as far as there is room now.
    fn send_late(&mut self) -> bool {
        let before = self.late.len();
        while self.crossing.has_room()
            && let Some(message) = self.late.pop_front()
        {
            self.put(message);
        }
        self.late.len() < before
    }

    /// Messages that wait for room.
    #[cfg(test)]
    pub(super) fn late_count(&self) -> usize {
        self.late.len()
    }
}

impl Interconnect for Near {
    fn poll(&mut self, now: Nanos) -> bool {
        (self.now, self.budget) = (now, EVENTS_PER_TURN);
        let has_sent = self.send_late();
        // Where there is no room the far half hears of this one anyway.
        let is_due = self.sent_at.is_none_or(|at| now.since(at) >= self.crossing.limits.patience / 4);
        if is_due && self.crossing.has_room() {
            self.crossing.send(Order::Alive, 0);
            self.sent_at = Some(now);
        }
        has_sent || !self.crossing.is_empty()
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        self.lent = None;
        let news = if self.budget > 0 { self.receive() } else { None };
        let Some(news) = news else {
            self.crossing.say();
            return None;
        };
        self.budget -= 1;
        Some(match news {
            News::Up(partner) => {
                self.begin_generation(true);
                Event::Up(partner)
            }
            News::PathLost => {
                self.begin_generation(true);
                Event::PathLost
            }
            News::Down(reason) => {
                self.begin_generation(false);
                Event::Down(reason)
            }
            News::Message(message) => {
                let lent = &mut self.lent;
                Event::Message(message.map(|bytes| &**lent.insert(bytes)))
            }
            News::RoomToForward(_) | News::Standing(_) => unreachable!("noted when it was received"),
        })
    }

    fn has_room(&self) -> bool {
        self.late.is_empty() && self.crossing.has_room()
    }

    fn has_room_to_forward(&self) -> bool {
        // Half of the room is left to batches.
        let (waiting, limits) = (self.crossing.waiting(), &self.crossing.limits);
        let is_half_empty = waiting.count < limits.count_max.div_ceil(2) && waiting.bytes < limits.bytes_max / 2;
        self.is_up && self.has_room_to_forward && self.late.is_empty() && is_half_empty
    }

    fn send(&mut self, message: Message) {
        if !self.is_up {
            return;
        }
        if (self.late.is_empty() || planted::is("seam-late-overtaken")) && self.crossing.has_room() {
            return self.put(message);
        }
        if planted::is("seam-late-dropped") {
            return;
        }
        match self.late.iter_mut().find(|waiting| replaces(&message, waiting)) {
            Some(waiting) => *waiting = message,
            None => self.late.push_back(message),
        }
    }

    fn flush(&mut self) {
        self.send_late();
    }

    fn paths(&self) -> Paths {
        self.standing.paths
    }

    fn refusal(&self) -> Option<[String; 2]> {
        self.standing.refusal.clone()
    }
}
