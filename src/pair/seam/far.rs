//! The half that carries: a poller with a thread, or a turn of the simulator, of its own.

use super::{Carrier, News, Order, Standing, bytes_of, crossing::Crossing};
use crate::{
    base::planted,
    pair::interconnect::{Event, Message},
};
use std::{collections::VecDeque, time::Duration};
use twinlog_device::{Lent, Nanos};

/// How often people's view is looked at for news.
const STANDING_PAUSE: Duration = Duration::from_secs(1);

/// What a far half is made of, beside its carrier: it goes to the thread that polls it.
#[derive(Debug)]
pub struct FarEnd(pub(super) Crossing<News, Order>);

/// The far half of a seam.
pub struct Far<C> {
    carrier: C,
    crossing: Crossing<News, Order>,
    /// Beginnings and losses that were told.
    generation: u64,
    /// Orders that were received and not handed to the carrier.
    held: VecDeque<(u64, Message)>,
    /// When the near half was last heard of.
    heard_at: Nanos,
    /// What the near half was told last.
    told_room: bool,
    told: Standing,
    standing_due: Nanos,
    /// Nothing is done until the near half is heard of again.
    is_still: bool,
}

/// An event whose bytes are still to be lent.
enum Untold {
    Turn(News),
    Message(Message<()>),
}

impl<C: Carrier> Far<C> {
    /// The far half of a seam, before its first turn.
    #[must_use]
    pub fn new(FarEnd(crossing): FarEnd, carrier: C, now: Nanos) -> Self {
        Self {
            carrier,
            crossing,
            generation: 0,
            held: VecDeque::new(),
            heard_at: now,
            told_room: false,
            told: Standing::default(),
            standing_due: now,
            is_still: false,
        }
    }

    /// One bounded turn. Returns whether anything was done.
    pub fn poll(&mut self, now: Nanos) -> bool {
        let mut is_busy = self.receive(now);
        let is_silent = now.since(self.heard_at) >= self.crossing.limits.patience;
        self.is_still = is_silent && !planted::is("seam-speaks-for-the-dead");
        if self.is_still {
            return is_busy;
        }
        is_busy |= self.carrier.poll(now);
        let before = self.generation;
        let (has_told, is_all) = self.tell();
        is_busy |= has_told;
        if is_all || planted::is("seam-losses-not-awaited") {
            is_busy |= self.hand_over();
        }
        self.carrier.flush();
        self.tell_state(now, self.generation != before);
        self.crossing.say();
        is_busy
    }

    /// When [`poll`](Self::poll) has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        // While it stands still only the near half can change that.
        if self.is_still { None } else { self.carrier.next_deadline() }
    }

    /// Takes what the near half has sent: all of it, for it says how much room there is.
    fn receive(&mut self, now: Nanos) -> bool {
        let mut is_any = false;
        while let Some(order) = self.crossing.receive() {
            is_any = true;
            match order {
                Some(Order::Send { generation, message }) => self.held.push_back((generation, message)),
                Some(Order::Alive) => self.crossing.take(0),
                None => {}
            }
        }
        if is_any {
            self.heard_at = now;
        }
        is_any
    }

    /// Tells what has happened, as far as there is room. Returns whether there was anything, and whether that was all.
    fn tell(&mut self) -> (bool, bool) {
        let mut is_any = false;
        let mut overtaken = None;
        while self.crossing.has_room() {
            let Some(event) = self.carrier.next_event() else {
                self.tell_overtaken(overtaken);
                return (is_any, true);
            };
            is_any = true;
            let untold = match event {
                Event::Up(partner) => Untold::Turn(News::Up(partner)),
                Event::PathLost => Untold::Turn(News::PathLost),
                Event::Down(reason) => Untold::Turn(News::Down(reason)),
                Event::Message(message) => Untold::Message(message.map(|_| ())),
            };
            match untold {
                Untold::Turn(News::PathLost) if planted::is("seam-loss-told-last") => overtaken = Some(News::PathLost),
                Untold::Turn(news) => {
                    self.generation += 1;
                    self.crossing.send(news, 0);
                }
                Untold::Message(message) => {
                    let message: Message<Lent> = message.map(|()| self.carrier.lend());
                    let bytes = bytes_of(&message);
                    self.crossing.send(News::Message(message), bytes);
                }
            }
        }
        self.tell_overtaken(overtaken);
        (is_any, false)
    }

    /// A planted bug's.
    fn tell_overtaken(&mut self, overtaken: Option<News>) {
        if let Some(news) = overtaken {
            self.generation += 1;
            self.crossing.send(news, 0);
        }
    }

    /// Gives the carrier what was ordered, as far as it has room. All that it has lost was told: what was ordered before that was heard of is void.
    fn hand_over(&mut self) -> bool {
        let mut is_any = false;
        while let Some((generation, _)) = self.held.front() {
            let is_void = *generation != self.generation && !planted::is("seam-generation-not-compared");
            if !is_void && !self.carrier.has_room() {
                break;
            }
            let Some((_, message)) = self.held.pop_front() else { break };
            self.crossing.take(bytes_of(&message));
            is_any = true;
            if !is_void {
                self.carrier.send(message);
            }
        }
        is_any
    }

    /// Tells how much room there is, and how everything stands, if that is news.
    fn tell_state(&mut self, now: Nanos, has_changed: bool) {
        let has_room = self.carrier.has_room_to_forward();
        if has_room != self.told_room && self.crossing.has_room() {
            self.told_room = has_room;
            self.crossing.send(News::RoomToForward(has_room), 0);
        }
        if (has_changed || now >= self.standing_due) && self.crossing.has_room() {
            self.standing_due = now + STANDING_PAUSE;
            let standing = Standing { paths: self.carrier.paths(), refusal: self.carrier.refusal() };
            if standing != self.told {
                self.told.clone_from(&standing);
                self.crossing.send(News::Standing(standing), 0);
            }
        }
    }
}
