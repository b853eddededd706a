//! The controller of a node of a pair: turns clocks, words and answers into the inputs of the decision table, and performs what that decides.
//! It lives on reactor 0 and is a value that moves when it is polled.
//!
//! ```text
//!  arbiter's answers --.                                   .--> the arbiter: swap, read
//!  partner's words ----+--> view of each pool --> decide --+--> the engine: open, drain, close, mirror
//!  engine's state -----'                                   '--> the fence; this node's portion; the partner
//! ```
//!
//! # Invariants
//!
//! 1. Nothing about ownership is decided here: every step is an action of [`decide`](fn@super::decide::decide).
//! 2. A swap is made from the register that the decision was made of; while one is at the arbiter no other of the same pool is.
//! 3. A portion has one user at a time: the engine, a mirror, or formatting.
//! 4. Replies go out without a mirror only after the arbiter has said that the register says stale (rule R1): the order to the lanes is given by
//!    the answer to that swap, nowhere else.
//! 5. What the partner sends is taken only by a mirror of the pool that it names, and judged there.

mod act;
mod flight;
mod portion;
mod session;
mod side;
mod status;
#[cfg(test)]
mod tests;

pub use portion::{LocalPortion, OpenLanes};

use super::{
    arbiter::{Answer, Arbiter, SwapOutcome},
    decide::{Beat, Command, Lease, Link, Open, Word},
    fence::{FenceAnswer, Fencer},
    interconnect::{Event, Interconnect, Message},
};
use crate::{
    base::{Epoch, Incarnation, PoolId, planted},
    node::{
        admin::{AdminCall, AdminReply, AdminRequest},
        pools::{PoolOpener, PoolSlot, Pools},
    },
};
pub use side::PairPool;
use side::{Known, Side, Swap};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{BlockDevice, LogMemory, Nanos, Prng};

/// What the partner says, with its bytes where they were received.
type Heard<'a> = Message<&'a [u8]>;

/// What the interconnect tells about requests at the other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardEvent {
    /// The partner is there, in this life of its process.
    Up(Incarnation),
    /// A path was lost and others are left: what was sent on it may not have arrived.
    PathLost,
    /// The partner is not there.
    Down,
    /// Volumes, a request, a reply or notices.
    Message(Message),
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Without a sign of the partner for this long it counts as gone.
    pub detection: Duration,
    /// This node may serve for this long after it has renewed its lease.
    pub lease: Duration,
    /// What failed is tried again after this long.
    pub retry: Duration,
    /// A pool that was taken over is given back when its home node was in step for this long; `None`: by command only.
    pub giveback: Option<Duration>,
}

/// What the controller of a node is made of.
pub struct ControllerParts<L: LogMemory> {
    /// This node's name.
    pub name: String,
    /// Its partner's.
    pub partner: String,
    /// The own pool, then the partner's.
    pub pools: [PairPool<L>; 2],
    /// The registers.
    pub arbiter: Box<dyn Arbiter>,
    /// How the partner is stopped.
    pub fencer: Box<dyn Fencer>,
    /// Time limits.
    pub timing: Timing,
    /// Where ids come from: of portions that are made anew.
    pub prng: Prng,
}

/// The controller.
pub struct Controller<L: LogMemory> {
    name: String,
    partner: String,
    sides: [Side<L>; 2],
    arbiter: Box<dyn Arbiter>,
    fencer: Box<dyn Fencer>,
    timing: Timing,
    prng: Prng,
    /// The partner's life, while the interconnect is up.
    up: Option<Incarnation>,
    /// Since when it is down.
    down_since: Option<Nanos>,
    /// Until when this node may serve.
    lease_until: Nanos,
    /// Whether the partner may act upon the end of the lease alone, see [`Controller::guard_lease`].
    is_lease_guarded: bool,
    /// When the arbiter was last asked for a beat.
    beat_asked: Option<Nanos>,
    beat_is_out: bool,
    /// When the partner's heartbeat at the arbiter last changed.
    partner_beat_at: Option<Nanos>,
    /// What the interconnect tells the forwarder, which takes all of it in every turn.
    forward_events: VecDeque<ForwardEvent>,
    now: Nanos,
    wall_clock_ns: u64,
}

impl<L: LogMemory> Controller<L> {
    /// A controller that knows nothing yet.
    #[must_use]
    pub fn new(parts: ControllerParts<L>) -> Self {
        let ControllerParts { name, partner, pools, arbiter, fencer, timing, prng } = parts;
        let [home, away] = pools;
        Self {
            name,
            partner,
            sides: [Side::new(PoolSlot::Home, home), Side::new(PoolSlot::Partner, away)],
            arbiter,
            fencer,
            timing,
            prng,
            up: None,
            down_since: None,
            lease_until: Nanos(0),
            is_lease_guarded: false,
            beat_asked: None,
            beat_is_out: false,
            partner_beat_at: None,
            forward_events: VecDeque::new(),
            now: Nanos(0),
            wall_clock_ns: 0,
        }
    }

    /// The partner's only certainty may be that the lease has ended. From here on this node stops serving while an eighth of it is left; one that still
    /// has a pool open when it ends stood still, and [`Controller::serves_until`] says when nothing of it may reach the machine any more.
    pub fn guard_lease(&mut self) {
        self.is_lease_guarded = true;
    }

    /// Until when this node may give writes and replies to the machine; `None`: no pool is open, or nobody acts upon that time alone.
    #[must_use]
    pub fn serves_until(&self) -> Option<Nanos> {
        let has_open = self.sides.iter().any(|side| {
            let is_active = matches!(side.open, Open::Opening | Open::Serving | Open::Draining);
            is_active || side.is_closing
        });
        (self.is_lease_guarded && has_open).then_some(self.lease_until)
    }

    /// One bounded turn. Returns whether anything was done.
    pub fn poll<D: BlockDevice>(
        &mut self,
        pools: &mut Pools<D, L>,
        opener: &mut dyn PoolOpener<D, L>,
        way: &mut dyn Interconnect,
        (now, wall_clock_ns): (Nanos, u64),
    ) -> bool {
        (self.now, self.wall_clock_ns) = (now, wall_clock_ns);
        self.down_since.get_or_insert(now);
        let mut busy = self.hear_arbiter(pools);
        busy |= self.beat();
        busy |= self.hear_partner(pools, way);
        busy |= self.hear_fencer();
        for index in 0..self.sides.len() {
            busy |= self.follow_engine(index, pools);
            self.watch_partner(index, pools);
            busy |= self.send_batches(index, pools, way);
            busy |= self.serve_mirror(index, way);
            let seen = (self.link_of(index), self.partner_beat(), self.lease());
            busy |= self.act((index, seen), pools, opener, way);
            self.say(index, pools.is_stopping(), way);
        }
        way.flush();
        busy
    }

    /// When [`Controller::poll`] has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let pauses = if self.link() == Link::Interrupted { act::LOOKS } else { 4 };
        Some(self.now + self.timing.detection / pauses)
    }

    /// The next thing that the interconnect tells about requests at the other node: for the forwarder, in every turn.
    pub fn next_forward_event(&mut self) -> Option<ForwardEvent> {
        self.forward_events.pop_front()
    }

    /// The epoch in which the partner says that it serves a pool, while it does.
    #[must_use]
    pub fn served_by_partner(&self, slot: PoolSlot) -> Option<Epoch> {
        let side = &self.sides[slot.index()];
        let heard = side.heard.as_ref().filter(|_| self.up.is_some())?;
        (heard.word == Word::Serving && heard.epoch != Epoch(0)).then_some(heard.epoch)
    }

    /// The epoch in force of a pool, as far as this node knows; zero: it does not.
    #[must_use]
    pub fn epoch(&self, slot: PoolSlot) -> Epoch {
        self.sides[slot.index()].epoch()
    }

    /// Whether the partner was away for so long that nobody waits for its word any more.
    #[must_use]
    pub fn is_partner_away(&self) -> bool {
        self.link() == Link::Cut
    }

    /// An opening has ended without anything that would have to close.
    pub fn open_failed(&mut self, slot: PoolSlot, reason: String) {
        let (now, retry) = (self.now, self.timing.retry);
        self.side(slot).opening_failed(reason, (now, retry));
    }

    /// An order of the control side that is about the pair; any other is given back.
    pub fn call(&mut self, call: AdminCall) -> Option<AdminCall> {
        let (pool, command) = match &call.request {
            AdminRequest::PairTakeover { pool, force: false } => (pool.clone(), Command::Takeover),
            AdminRequest::PairTakeover { pool, force: true } => (pool.clone(), Command::Forced),
            AdminRequest::PairGiveback { pool } => (pool.clone(), Command::Giveback),
            AdminRequest::PairDrain => (Some(self.sides[0].name.clone()), Command::Drain),
            _ => return Some(call),
        };
        let (now, default) = (self.now, &self.sides[1].name);
        let wanted = pool.unwrap_or_else(|| default.clone());
        match self.sides.iter_mut().find(|side| side.name == wanted) {
            Some(side) => {
                side.answer(refused("another command for this pool has come", "twinlog status"));
                (side.command, side.command_at, side.caller) = (command, now, Some(call.reply));
            }
            None => {
                // A caller that has gone away needs no answer.
                let _ = call.reply.try_send(refused(&format!("no pool is called '{wanted}'"), "twinlog status"));
            }
        }
        None
    }

    fn side(&mut self, slot: PoolSlot) -> &mut Side<L> {
        match slot {
            PoolSlot::Home => &mut self.sides[0],
            PoolSlot::Partner => &mut self.sides[1],
        }
    }

    fn side_of(&mut self, pool: PoolId) -> Option<&mut Side<L>> {
        self.sides.iter_mut().find(|side| side.pool == pool)
    }

    fn link(&self) -> Link {
        match (self.up, self.down_since) {
            (Some(_), _) => Link::Up,
            (None, Some(since)) if self.now.since(since) >= self.timing.detection => Link::Cut,
            (None, _) => Link::Interrupted,
        }
    }

    /// The interconnect as far as one pool is concerned: a partner that says no word over it, or none at this epoch, is not there for it.
    fn link_of(&self, index: usize) -> Link {
        let side = &self.sides[index];
        match self.link() {
            Link::Up if side.unheard_since.is_some_and(|at| self.now.since(at) >= self.timing.detection) => Link::Cut,
            Link::Up if side.heard.is_none() => Link::Interrupted,
            link => link,
        }
    }

    fn partner_beat(&self) -> Beat {
        match self.partner_beat_at {
            Some(at) if self.now.since(at) < self.timing.detection => Beat::Alive,
            _ => Beat::Silent,
        }
    }

    fn lease(&self) -> Lease {
        let guard = if self.is_lease_guarded { self.timing.lease / 8 } else { Duration::ZERO };
        if self.now + guard < self.lease_until || planted::is("lease-ignored") { Lease::Left } else { Lease::Ended }
    }

    /// Renews the lease, and reads the registers with it.
    fn beat(&mut self) -> bool {
        let pause = self.timing.detection / 4;
        let is_due = self.beat_asked.is_none_or(|at| self.now.since(at) >= pause) && !self.beat_is_out;
        for side in &mut self.sides {
            let is_wanted = std::mem::replace(&mut side.wants_read, false) || is_due;
            if is_wanted && side.swap.is_none() && !std::mem::replace(&mut side.is_reading, true) {
                self.arbiter.read(side.pool);
            }
        }
        if !is_due {
            return false;
        }
        (self.beat_asked, self.beat_is_out) = (Some(self.now), true);
        self.arbiter.beat(self.wall_clock_ns);
        true
    }

    fn hear_arbiter<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) -> bool {
        let (mut busy, now) = (false, self.now);
        while let Some(answer) = self.arbiter.poll() {
            busy = true;
            match answer {
                Answer::Beat(Ok(partner_has_changed)) => {
                    self.beat_is_out = false;
                    // A lease that has ended comes back only with a claim: the partner may have acted upon its end.
                    if self.lease() == Lease::Ended {
                        self.sides.iter_mut().for_each(|side| side.is_lease_over |= side.held.is_some());
                    }
                    // The lease counts from when the beat was asked for.
                    self.lease_until = self.beat_asked.unwrap_or(self.now) + self.timing.lease;
                    if partner_has_changed {
                        self.partner_beat_at = Some(self.now);
                    }
                }
                Answer::Beat(Err(reason)) => {
                    self.beat_is_out = false;
                    tracing::warn!(%reason, "the arbiter does not take this node's heartbeat");
                }
                Answer::Read(pool, register) => {
                    let Some(side) = self.side_of(pool) else { continue };
                    side.is_reading = false;
                    if side.swap.is_some() {
                        continue;
                    }
                    match (side.asked, register) {
                        // The very register that was asked for: the change was made, whose end nobody knew.
                        (Some((swap, asked)), Ok(Some(register))) if asked == register => {
                            side.asked = None;
                            side.become_known(register, swap);
                            side.follow_swap(pools, swap, now);
                        }
                        (_, Ok(found)) => side.known = side.believe(found),
                        (_, Err(reason)) => side.known = Known::Unreadable(reason),
                    }
                }
                Answer::Swapped(pool, outcome) => self.swapped(pools, pool, outcome),
            }
        }
        busy
    }

    fn swapped<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, pool: PoolId, outcome: SwapOutcome) {
        let now = self.now;
        let Some(side) = self.side_of(pool) else { return };
        let Some(swap) = side.swap.take() else { return };
        let outcome = match (outcome, side.asked) {
            (SwapOutcome::Unknown(_), Some((_, asked))) if planted::is("unknown-is-done") => SwapOutcome::Done(asked),
            (outcome, _) => outcome,
        };
        match outcome {
            SwapOutcome::Done(register) => {
                side.asked = None;
                tracing::info!(pool = side.name, ?swap, epoch = register.epoch.0, owner = ?register.owner, mirror = ?register.mirror, "register");
                side.become_known(register, swap);
                side.trouble = None;
                side.follow_swap(pools, swap, now);
            }
            SwapOutcome::Changed(register) => {
                side.asked = None;
                side.known = side.believe(register);
                side.trouble = Some("the register was changed by the other node meanwhile".to_owned());
            }
            SwapOutcome::Unknown(reason) => {
                // It may have taken effect: only reading tells.
                side.known = Known::Unreadable(reason.clone());
                side.trouble = Some(reason);
            }
        }
    }

    fn hear_partner<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, way: &mut dyn Interconnect) -> bool {
        let mut busy = false;
        while let Some(event) = way.next_event() {
            busy = true;
            match event {
                Event::Up(partner) => {
                    tracing::info!(partner = self.partner, "the partner is there");
                    (self.up, self.down_since) = (Some(partner.incarnation), None);
                    self.forward_events.push_back(ForwardEvent::Up(partner.incarnation));
                    self.sides.iter_mut().for_each(|side| side.partner_is_there(&partner));
                }
                Event::PathLost => {
                    self.forward_events.push_back(ForwardEvent::PathLost);
                    self.sides.iter_mut().for_each(|side| side.path_is_lost(pools));
                }
                Event::Down(reason) => {
                    tracing::warn!(partner = self.partner, %reason, "the partner is not reached");
                    (self.up, self.down_since) = (None, Some(self.now));
                    self.forward_events.push_back(ForwardEvent::Down);
                    for side in &mut self.sides {
                        side.partner_is_away(pools);
                    }
                }
                Event::Message(message) => {
                    if let Some(reply) = self.hear(pools, message) {
                        way.send(reply);
                    }
                }
            }
        }
        busy
    }

    /// What the partner says about a pool. Returns what is answered at once.
    fn hear<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, message: Heard<'_>) -> Option<Message> {
        if let Heard::Volumes { .. } | Heard::Request { .. } | Heard::Reply { .. } | Heard::Notices { .. } = message {
            let message = message.map(|bytes| Arc::new(bytes.to_vec()));
            self.forward_events.push_back(ForwardEvent::Message(message));
            return None;
        }
        let now = self.now;
        let side = self.side_of(message.pool())?;
        match message {
            Heard::Volumes { .. } | Heard::Request { .. } | Heard::Reply { .. } | Heard::Notices { .. } => {}
            Heard::Word(word) => side.hear_word(pools, word),
            Heard::Begin { lane, epoch, start, .. } => {
                return side.take((lane, epoch), |mirror| mirror.begin(lane, epoch, start));
            }
            Heard::Write { lane, epoch, start, end, bytes, .. } => {
                return side.take((lane, epoch), |mirror| mirror.write(lane, epoch, (start, end), bytes));
            }
            Heard::Mirrored(ack) => side.hear_mirrored(pools, &ack, now),
            Heard::Refused { epoch, refusal, .. } => {
                side.wants_read |= epoch > side.epoch();
                side.lose_mirror(pools, refusal.to_string());
            }
            // Who asks of an earlier or later register than this one asks again when both know the same.
            Heard::Ask { epoch, .. } if epoch != side.epoch() => side.wants_read |= epoch > side.epoch(),
            Heard::Ask { .. } => {
                if side.command == Command::None {
                    side.command = Command::Giveback;
                }
            }
        }
        None
    }

    fn hear_fencer(&mut self) -> bool {
        let (mut busy, now) = (false, self.now);
        while let Some(FenceAnswer { pool, epoch, result, said }) = self.fencer.poll() {
            busy = true;
            let Some(side) = self.side_of(pool) else { continue };
            (side.fence, side.fence_at) = ((epoch, result), now);
            if !said.is_empty() {
                side.fence_said = said;
            }
            side.begun_at = None;
        }
        while let Some(pool) = self.fencer.lost() {
            busy = true;
            let Some(side) = self.side_of(pool) else { continue };
            tracing::warn!(
                pool = side.name,
                "the partner has fenced this node: its devices take no writes of it any more"
            );
            // As if the lease had ended: another may be the owner by now.
            side.is_fenced = true;
            side.is_lease_over |= side.held.is_some();
        }
        busy
    }
}

fn refused(message: &str, hint: &str) -> AdminReply {
    AdminReply::Refused { message: message.to_owned(), hint: hint.to_owned() }
}
