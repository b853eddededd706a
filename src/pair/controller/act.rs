//! What is decided is done, and what comes of it is followed.

use super::{
    Controller, Swap, Timing, refused,
    side::{Known, Side},
};
use crate::{
    base::{Epoch, LaneIndex, Lsn, PortionId, limits::BLOCK_BYTES, planted},
    cp::{
        coordinator::{Coordinator, PoolState},
        message::{Grant, MirrorOrder},
        mirroring::MirrorProgress,
    },
    format::register::{MirrorState, Register},
    node::{
        admin::AdminReply,
        engine::{Engine, PoolMirrorNews},
        pools::{PoolOpener, Pools},
    },
    pair::{
        decide::{Action, Beat, Command, Decision, Fence, Lease, Link, Open, Owner, Portion, Replies, View, Word},
        interconnect::{Interconnect, Message, Partner, PoolWord},
        mirror::MirrorPortion,
        ownership,
        wire::{Ack, MirrorRefusal, MirrorRefusalReason},
    },
};
use std::time::Duration;
use twinlog_device::{BlockDevice, LogMemory, Nanos};

/// A mirror that acknowledges nothing for so many detection times is given up: its node lives, and its log's device stands still.
const ACKNOWLEDGE_FACTOR: u32 = 2;
/// After so many times that, it is tried again.
const REST_FACTOR: u32 = 10;
/// Batches that one turn hands to the interconnect at most.
const BATCHES_PER_TURN: usize = 64;

/// Fences that have failed are tried again after so many retry intervals.
const FENCE_PAUSE: u32 = 20;
/// The lock of a partner that does not answer is looked at so many times in the detection time: its connections may end before its process has.
pub(super) const LOOKS: u32 = 16;

/// A pool is given up when so many openings have failed one after the other: a hiccup moves no pool.
const OPENINGS_MAX: u32 = 5;
/// What was given up is claimed again after so many retry intervals: the partner needs some messages to take it over.
const OPEN_PAUSE: u32 = 4;

/// A takeover that was asked for is void if it could not be carried out for so many retry intervals and twice the detection time.
const COMMAND_PATIENCE: u32 = 120;

impl<L: LogMemory> Side<L> {
    /// The arbiter has made a change of this node's. A pool that was closed while the change was under way has to be claimed anew.
    pub(super) fn become_known(&mut self, register: Register, swap: Swap) {
        let is_open = matches!(self.open, Open::Opening | Open::Serving | Open::Draining);
        let is_closed = matches!(swap, Swap::GoStale | Swap::GoInSync) && !is_open;
        self.held = (register.owner == self.me() && !is_closed).then_some(register.epoch);
        self.epoch_seen = self.epoch_seen.max(register.epoch);
        self.known = Known::Register(register);
    }

    /// What follows from a change of the register that this node made.
    pub(super) fn follow_swap<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, swap: Swap, now: Nanos) {
        let epoch = self.epoch();
        if matches!(swap, Swap::Claim | Swap::TakeOver) && self.open == Open::Yielded {
            self.open = Open::Closed;
        }
        match swap {
            Swap::Claim => self.is_lease_over = false,
            Swap::TakeOver => {
                self.is_lease_over = false;
                self.takeovers += 1;
                self.given_up_by = self.yielding.take();
            }
            Swap::GoStale => {
                if let Some(coordinator) = self.coordinator(pools) {
                    coordinator.mirror_is_stale(epoch);
                }
                self.mirror.end();
                self.replies = Replies::Alone;
            }
            Swap::GoInSync => {
                self.mirror.is_in_step = false;
                if let Some(coordinator) = self.coordinator(pools) {
                    coordinator.mirror_is_in_sync(epoch);
                }
            }
            Swap::HandOver => {
                self.open = Open::Closed;
                self.has_own_records = true;
                self.answer(AdminReply::Done);
            }
        }
        self.begun_at = None;
        self.decided = self.decided.map(|(decision, _)| (decision, now));
    }

    /// The partner was recognised: it says its words anew.
    pub(super) fn partner_is_there(&mut self, partner: &Partner) {
        self.unheard_since = None;
        self.partner_life = Some(partner.incarnation);
        let unit = partner.unit_bytes.iter().find(|(pool, _)| *pool == self.pool);
        self.partner_unit_bytes = unit.map_or(0, |&(_, bytes)| bytes);
        // It lives, or lives again: what fences have found does not count any more.
        self.fence = (Epoch(0), Fence::NotTried);
        self.heard = None;
        self.said = None;
        self.mirror.meet_partner();
        if let Some(mirror) = self.portion.mirror() {
            mirror.acknowledge_again();
        }
    }

    /// What was sent on a path that is lost is sent again on those that are left.
    pub(super) fn path_is_lost<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) {
        if let Some(engine) = pools.engine_mut(self.slot).filter(|_| self.mirror.is_attached) {
            self.mirror.resend().for_each(|(lane, from)| engine.order_mirror(lane, MirrorOrder::Resend(from)));
        }
        self.said = None;
        if let Some(mirror) = self.portion.mirror() {
            mirror.acknowledge_again();
        }
    }

    /// No path to the partner is left. A mirror that is not in step yet has to begin anew.
    pub(super) fn partner_is_away<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) {
        self.heard = None;
        self.mirror.is_attached = false;
        self.abandon_resync(pools);
    }

    /// What the partner says of the pool. The first word after a reconnect says where its mirror goes on.
    pub(super) fn hear_word<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, word: PoolWord) {
        let is_ready = matches!(word.word, Word::Standby | Word::Mirroring);
        self.wants_read |= word.epoch > self.epoch();
        if !is_ready {
            self.mirror.is_attached = false;
            self.abandon_resync(pools);
        }
        self.heard = Some(word);
        if self.partner_portion().is_some_and(|theirs| Some(theirs) != self.mirror.follower) {
            self.lose_mirror(pools, "it is another one than mirroring began with".to_owned());
        }
        self.attach(pools);
    }

    /// Goes on with the partner's mirror where its word says, if it is mirrored and that has not been done. Returns whether it was. The word
    /// may come before the engine is there, and the engine before the word.
    fn attach<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) -> bool {
        let (Some(engine), Some(heard)) = (pools.engine_mut(self.slot), &self.heard) else { return false };
        let is_mirrored = engine.mirror_progress().is_some_and(|progress| *progress != MirrorProgress::Off);
        let is_ready = matches!(heard.word, Word::Standby | Word::Mirroring) && self.mirror.lost.is_none();
        if self.mirror.is_attached || !is_mirrored || !is_ready {
            return false;
        }
        let lane_count = self.mirror.lane_count();
        let is_whole = heard.expected.len() == lane_count;
        let expected = if is_whole { heard.expected.clone() } else { vec![None; lane_count] };
        for (lane, expected) in (0..).map(LaneIndex).zip(&expected) {
            engine.order_mirror(lane, MirrorOrder::Resend(*expected));
        }
        for (lane, durable) in self.mirror.attach(&expected) {
            engine.order_mirror(lane, MirrorOrder::Mirrored(durable));
        }
        true
    }

    /// The owner's batches, or their beginning: the mirror takes them. Returns the answer if it does not.
    pub(super) fn take(
        &mut self,
        (lane, epoch): (LaneIndex, Epoch),
        give: impl FnOnce(&mut MirrorPortion<L>) -> Result<(), MirrorRefusal>,
    ) -> Option<Message> {
        let (taken, seen) = match self.portion.mirror() {
            Some(mirror) => (give(mirror), mirror.epoch()),
            None => (Err(not_mirrored(lane)), Epoch(0)),
        };
        if self.portion.is_mirroring() {
            // What it holds from here on is the owner's.
            self.has_own_records = false;
        }
        let refusal = taken.err()?;
        Some(Message::Refused { pool: self.pool, epoch: epoch.max(seen).max(self.epoch()), refusal })
    }

    /// The partner's mirror has come so far.
    pub(super) fn hear_mirrored<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, ack: &Ack, now: Nanos) {
        if self.mirror.hear(ack.lane, ack.durable, now)
            && let Some(engine) = pools.engine_mut(self.slot)
        {
            engine.order_mirror(ack.lane, MirrorOrder::Mirrored(ack.durable));
        }
    }

    /// The partner's portion is no mirror: it is told to begin anew once the register says stale.
    pub(super) fn lose_mirror<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>, reason: String) {
        let is_mirrored =
            self.coordinator(pools).is_some_and(|coordinator| *coordinator.mirror() != MirrorProgress::Off);
        if is_mirrored {
            tracing::warn!(pool = self.name, %reason, "the partner's log is no mirror any more");
            self.mirror.is_attached = false;
            self.abandon_resync(pools);
            self.mirror.lost = (self.replies == Replies::Mirrored).then_some(reason);
        }
    }

    /// Ends bringing the mirror in step, as long as no reply waits for it.
    fn abandon_resync<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) {
        let held = self.held;
        if let (Some(epoch), Some(coordinator)) = (held, self.coordinator(pools))
            && matches!(coordinator.mirror(), MirrorProgress::Starting(_) | MirrorProgress::Covering(_))
        {
            coordinator.mirror_is_stale(epoch);
            self.mirror.end();
        }
    }

    /// An opening has ended without anything that would have to close, and is tried again: what the pool needs may be in use for a while. Once too often, the pool is
    /// given up at this epoch: this process holds it no more until it claims it again, so the partner may take it over.
    pub(super) fn opening_failed(&mut self, reason: String, (now, retry): (Nanos, Duration)) {
        tracing::error!(pool = self.name, %reason, "the pool could not be opened");
        self.portion.give_back();
        // If it becomes another's, what its portion holds is of an ownership that is over.
        self.has_own_records = true;
        self.openings_failed += 1;
        (self.open, self.open_rests_until) = (Open::Closed, now + retry);
        if self.openings_failed >= OPENINGS_MAX {
            tracing::warn!(pool = self.name, "given up until it is claimed again");
            (self.open, self.open_rests_until) = (Open::Yielded, now + retry * OPEN_PAUSE);
            self.held = None;
            if matches!(self.command, Command::Takeover | Command::Forced) {
                self.answer(refused(&format!("the pool could not be opened: {reason}"), "twinlog pair explain"));
            }
        }
        self.open_failure = reason;
    }

    /// What was given up is claimed again after a while; at once when the partner has had it and hands it over. Returns whether the state has changed.
    fn follow_openings(&mut self, owner: Owner, now: Nanos) -> bool {
        let has_failed = self.openings_failed >= OPENINGS_MAX;
        let before = self.open;
        if owner == Owner::Partner {
            self.given_up_by = None;
        }
        match (owner, before) {
            (Owner::Partner, Open::Closed | Open::Yielded) if has_failed => {
                (self.open, self.open_rests_until) = (Open::Yielded, now);
            }
            (Owner::Held | Owner::Unclaimed, Open::Yielded) if now >= self.open_rests_until => {
                self.open = Open::Closed;
            }
            _ => {}
        }
        self.open != before
    }

    /// What a fence could not confirm may be so after a while: then it is tried again.
    fn forget_fence(&mut self, link: Link, now: Nanos, timing: &Timing) {
        let pause = match self.fence.1 {
            Fence::Failed if !planted::is("fence-failed-for-ever") => timing.retry * FENCE_PAUSE,
            Fence::Held if link == Link::Interrupted => timing.detection / LOOKS,
            Fence::NotTried | Fence::Held | Fence::Confirmed | Fence::Failed => return,
        };
        if now.since(self.fence_at) >= pause {
            self.fence.1 = Fence::NotTried;
        }
    }

    fn coordinator<'a, D: BlockDevice>(&self, pools: &'a mut Pools<D, L>) -> Option<&'a mut Coordinator> {
        pools.engine_mut(self.slot)?.coordinator_mut().filter(|coordinator| *coordinator.state() == PoolState::Serving)
    }

    /// Begins to hand the pool over: it ends with a last consistency point.
    fn drain<D: BlockDevice>(&mut self, pools: &mut Pools<D, L>) -> bool {
        let Some(engine) = pools.engine_mut(self.slot) else { return false };
        self.open = Open::Draining;
        if planted::is("giveback-without-drain") {
            self.close(engine, "the pool is handed over", Open::Drained);
        } else {
            engine.drain();
        }
        true
    }

    /// Closes the pool where it is; `then` is what the node does with it afterwards.
    fn close<D: BlockDevice>(&mut self, engine: &mut Engine<D, L>, reason: &str, then: Open) {
        if !std::mem::replace(&mut self.is_closing, true) {
            self.after_close = then;
            engine.close(reason);
        }
    }
}

impl<L: LogMemory> Controller<L> {
    /// What has become of the engine of a pool.
    pub(super) fn follow_engine<D: BlockDevice>(&mut self, index: usize, pools: &mut Pools<D, L>) -> bool {
        let now = self.now;
        let side = &mut self.sides[index];
        let Some(engine) = pools.engine_mut(side.slot) else {
            let is_over = std::mem::replace(&mut side.is_closing, false);
            if is_over {
                side.portion.give_back();
                side.open = side.after_close;
                // If it becomes another's, what its portion holds is of an ownership that is over. Whose it is by now this node may hear later.
                side.has_own_records = true;
                side.held = side.held.filter(|_| side.open == Open::Drained);
                side.is_lease_over &= side.held.is_some();
                side.mirror.end();
            }
            return is_over;
        };
        let before = side.open;
        match engine.pool_state() {
            Some(PoolState::Serving) if side.open == Open::Opening => {
                side.open = Open::Serving;
                side.openings_failed = 0;
                side.alone_since = now;
            }
            Some(PoolState::Stopped(reason)) if !side.is_closing => {
                let reason = reason.clone();
                side.trouble = Some(reason.clone());
                let then = if side.is_fenced { Open::Closed } else { Open::Failed };
                side.close(engine, &reason, then);
            }
            _ => {}
        }
        if side.open == Open::Draining && engine.is_stopped() && !side.is_closing {
            side.close(engine, "the pool is handed over", Open::Drained);
        }
        let mut lost = None;
        while let Some(news) = engine.next_mirror_news() {
            match news {
                PoolMirrorNews::InStep => side.mirror.is_in_step = true,
                PoolMirrorNews::Lost(reason) => lost = Some(reason),
            }
        }
        let progress = engine.mirror_progress().cloned().unwrap_or_default();
        side.replies = match progress {
            MirrorProgress::Off | MirrorProgress::Starting(_) | MirrorProgress::Covering(_) => Replies::Alone,
            MirrorProgress::Requiring(_) | MirrorProgress::InStep => Replies::Mirrored,
        };
        if side.open == Open::Serving && side.replies == Replies::Alone {
            let since = now.since(std::mem::replace(&mut side.alone_since, now));
            side.unmirrored_ns += u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        } else {
            side.alone_since = now;
        }
        if let Some(reason) = lost {
            // News of a mirror that was given up meanwhile means nothing.
            side.lose_mirror(pools, reason);
        }
        let has_moved = side.open != before;
        has_moved | (!planted::is("attached-by-words-only") && side.attach(pools))
    }

    /// Notes since when the partner says no word over a pool at this epoch, and gives up a mirror that acknowledges nothing.
    pub(super) fn watch_partner<D: BlockDevice>(&mut self, index: usize, pools: &mut Pools<D, L>) {
        let (now, detection) = (self.now, self.timing.detection);
        let side = &mut self.sides[index];
        let is_heard = side.heard.as_ref().is_some_and(|heard| heard.epoch == side.epoch());
        side.unheard_since = if is_heard { None } else { Some(side.unheard_since.unwrap_or(now)) };
        let patience = detection * ACKNOWLEDGE_FACTOR;
        if side.mirror.gives_up(now, patience, REST_FACTOR) {
            side.lose_mirror(pools, format!("its log has acknowledged nothing for {patience:?}"));
        }
    }

    /// Hands the lanes' batches to the interconnect.
    pub(super) fn send_batches<D: BlockDevice>(
        &mut self,
        index: usize,
        pools: &mut Pools<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        let now = self.now;
        let side = &mut self.sides[index];
        let Some(engine) = pools.engine_mut(side.slot) else { return false };
        for sent in 0..BATCHES_PER_TURN {
            if side.mirror.is_attached && !way.has_room() {
                return sent > 0;
            }
            let Some((lane, item)) = engine.next_mirror_item() else { return sent > 0 };
            // Without a mirror it is dropped: the lane keeps it, and hands it out again.
            if side.mirror.is_attached
                && let Some(message) = side.mirror.message(side.pool, (lane, item), now)
            {
                way.send(message);
            }
        }
        true
    }

    /// Goes on with this node's portion of a pool that it does not own.
    pub(super) fn serve_mirror(&mut self, index: usize, way: &mut dyn Interconnect) -> bool {
        let side = &mut self.sides[index];
        let mut busy = false;
        if side.portion.poll() {
            side.has_own_records = false;
            busy = true;
        }
        busy | acknowledge(side, way)
    }

    /// Tells the partner what this node does with the pool, if that has changed.
    pub(super) fn say(&mut self, index: usize, is_stopping: bool, way: &mut dyn Interconnect) {
        let side = &mut self.sides[index];
        if self.up.is_none() {
            return;
        }
        let word = if is_stopping { Word::Leaving } else { side.own_word() };
        let (epoch, portion) = (side.epoch(), side.portion.id());
        let is_known =
            side.said.as_ref().is_some_and(|said| (said.word, said.epoch, said.portion) == (word, epoch, portion));
        if epoch != Epoch(0) && !is_known {
            let said = PoolWord { pool: side.pool, word, epoch, portion, expected: side.portion.expected() };
            way.send(Message::Word(said.clone()));
            side.said = Some(said);
        }
    }

    /// Decides, and does what is decided, with what the node sees beside the pool itself. Returns whether something was begun.
    pub(super) fn act<D: BlockDevice>(
        &mut self,
        (index, (link, beat, lease)): (usize, (Link, Beat, Lease)),
        pools: &mut Pools<D, L>,
        opener: &mut dyn PoolOpener<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        let now = self.now;
        let side = &mut self.sides[index];
        side.forget_fence(link, now, &self.timing);
        side.lapse_command(now, &self.timing);
        let mut view = side.view(link, beat, lease);
        if side.follow_openings(view.owner, now) {
            view = side.view(link, beat, lease);
        }
        let decision = side.decide(&view);
        if side.decided.is_none_or(|(before, _)| before != decision) {
            let (name, action) = (decision.name(), decision.action().words());
            // What is waited for `status` says at any time; what is done, and where it ends, is history.
            if matches!(decision.action(), Action::Wait | Action::Probe) {
                tracing::debug!(pool = side.name, decision = name, action, "decided");
            } else {
                tracing::info!(pool = side.name, decision = name, action, "decided");
            }
            side.decided = Some((decision, now));
            side.begun_at = None;
        }
        // A node that stops begins nothing, but what it owes its clients may still wait for a mirror that is gone.
        let is_due = !pools.is_stopping() || matches!(decision.action(), Action::GoStale | Action::StopServing);
        if !is_due {
            return false;
        }
        self.end_command(index, &view, decision);
        let side = &mut self.sides[index];
        if view.owner == Owner::Partner
            && view.portion == Portion::Usable
            && matches!(side.open, Open::Closed | Open::Drained | Open::Yielded)
            && !matches!(decision.action(), Action::TakeOver | Action::ForceTakeOver | Action::Discard)
        {
            side.portion.begin_mirror(side.epoch());
        }
        let waits = side.begun_at.is_some_and(|at| now.since(at) < self.timing.retry);
        // Rule R2 waits for nobody, and not for an arbiter that does not answer.
        if (side.swap.is_some() || waits) && decision.action() != Action::StopServing {
            return false;
        }
        let begun = self.perform(index, decision.action(), pools, opener, way);
        if begun {
            self.sides[index].begun_at = Some(now);
        }
        begun
    }

    fn perform<D: BlockDevice>(
        &mut self,
        index: usize,
        action: Action,
        pools: &mut Pools<D, L>,
        opener: &mut dyn PoolOpener<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        let time_ns = self.wall_clock_ns;
        let side = &mut self.sides[index];
        let (me, register, portion) = (side.me(), side.register().copied(), side.portion.id());
        match action {
            Action::Rest | Action::Wait | Action::Refuse => false,
            Action::Claim => self.claim(index),
            Action::Open => self.open(index, opener),
            Action::Probe => {
                self.fencer.probe(side.pool, side.epoch());
                true
            }
            Action::Fence => {
                self.fencer.fence(side.pool, side.epoch());
                true
            }
            Action::TakeOver => {
                let (Some(register), Some(portion)) = (register, portion) else { return false };
                side.portion.close_mirror()
                    && self.swap(
                        index,
                        Swap::TakeOver,
                        Some(register),
                        ownership::take_over(&register, me, portion, time_ns),
                    )
            }
            Action::ForceTakeOver => self.force(index),
            Action::GoStale => match register {
                Some(register) => {
                    if planted::is("alone-before-stale") {
                        side.follow_swap(pools, Swap::GoStale, Nanos(0));
                    }
                    self.swap(index, Swap::GoStale, Some(register), ownership::go_stale(&register, me, time_ns))
                }
                None => false,
            },
            Action::Resync => self.resync(index, pools),
            Action::Drain => side.drain(pools),
            Action::GiveBack => match (register, side.partner_portion()) {
                (Some(register), Some(theirs)) => {
                    let next = ownership::hand_over(&register, me, theirs, side.command == Command::Drain, time_ns);
                    self.swap(index, Swap::HandOver, Some(register), next)
                }
                _ => false,
            },
            Action::StopServing => match pools.engine_mut(side.slot) {
                Some(engine) => {
                    side.close(engine, "this node does not own the pool any more", Open::Closed);
                    true
                }
                None => false,
            },
            Action::Discard => self.discard(index),
            Action::Ask => {
                way.send(Message::Ask { pool: side.pool, epoch: side.epoch() });
                true
            }
        }
    }

    /// Makes this node's portion anew, once nobody uses it.
    fn discard(&mut self, index: usize) -> bool {
        let side = &mut self.sides[index];
        if planted::is("discard-skipped") {
            side.has_own_records = false;
            return true;
        }
        if !side.portion.close_mirror() {
            return false;
        }
        side.portion.format(PortionId(draw(&mut self.prng)));
        true
    }

    fn claim(&mut self, index: usize) -> bool {
        let time_ns = self.wall_clock_ns;
        let side = &self.sides[index];
        let Some(portion) = side.portion.id() else { return false };
        let next = match side.register() {
            Some(register) => ownership::claim(register, side.me(), portion, time_ns),
            None => ownership::create(side.pool, Epoch(side.epoch_seen.0 + 1), portion, time_ns),
        };
        self.swap(index, Swap::Claim, side.register().copied(), next)
    }

    /// Has the pool's devices opened; its engine goes on with this node's portion.
    fn open<D: BlockDevice>(&mut self, index: usize, opener: &mut dyn PoolOpener<D, L>) -> bool {
        let now = self.now;
        let side = &mut self.sides[index];
        let (Some(register), Some(epoch)) = (side.register().copied(), side.held) else { return false };
        if now < side.open_rests_until || !side.portion.close_mirror() {
            return false;
        }
        let is_mirrored = matches!(register.mirror, MirrorState::InSync(_));
        side.portion.lend();
        side.mirror.follower = match register.mirror {
            MirrorState::InSync(theirs) => Some(theirs),
            MirrorState::Stale => None,
        };
        side.open = Open::Opening;
        side.is_fenced = false;
        side.replies = if is_mirrored { Replies::Mirrored } else { Replies::Alone };
        // A pair never takes both its nodes for lost: what that would end, a host can end itself, and what fences a host off is not given up on a guess.
        let is_power_on = planted::is("takeover-loses-power");
        opener.begin(side.slot, Grant { role: side.role(), epoch, is_mirrored, is_power_on });
        true
    }

    /// Brings the partner's log in step; where it is already, nothing is left to do but to send.
    fn resync<D: BlockDevice>(&mut self, index: usize, pools: &mut Pools<D, L>) -> bool {
        let time_ns = self.wall_clock_ns;
        let side = &mut self.sides[index];
        let unit_bytes = side.partner_unit_bytes;
        let is_unit = unit_bytes.is_power_of_two() && u64::from(unit_bytes) <= BLOCK_BYTES;
        let largest = u32::try_from(BLOCK_BYTES).expect("a block is small");
        let (register, theirs) = (side.register().copied(), side.partner_portion());
        let Some(coordinator) = side.coordinator(pools) else { return false };
        if *coordinator.mirror() == MirrorProgress::Off {
            coordinator.start_mirroring(if is_unit { unit_bytes } else { largest });
            side.mirror.begin(theirs);
            return true;
        }
        match (register, theirs.filter(|_| theirs == side.mirror.follower)) {
            (Some(register), Some(theirs))
                if (side.mirror.is_in_step || planted::is("in-sync-too-early"))
                    && register.mirror == MirrorState::Stale =>
            {
                let next = ownership::go_in_sync(&register, side.me(), theirs, time_ns);
                self.swap(index, Swap::GoInSync, Some(register), next)
            }
            _ => false,
        }
    }

    fn force(&mut self, index: usize) -> bool {
        let time_ns = self.wall_clock_ns;
        let side = &mut self.sides[index];
        if !side.portion.close_mirror() {
            return false;
        }
        let Some(portion) = side.portion.id() else {
            side.portion.format(PortionId(draw(&mut self.prng)));
            return true;
        };
        match side.known {
            Known::Register(register) | Known::Outdated(Some(register)) => {
                let next = ownership::force(&register, side.me(), portion, side.epoch_seen, time_ns);
                self.swap(index, Swap::TakeOver, Some(register), next)
            }
            Known::Unreadable(_) | Known::Absent | Known::Outdated(None) => {
                let first = ownership::create(side.pool, Epoch(side.epoch_seen.0 + 1), portion, time_ns);
                self.swap(index, Swap::TakeOver, None, first)
            }
        }
    }

    fn swap(&mut self, index: usize, swap: Swap, old: Option<Register>, new: Register) -> bool {
        let side = &mut self.sides[index];
        (side.swap, side.asked) = (Some(swap), Some((swap, new)));
        if swap == Swap::TakeOver {
            side.yielding = side.yielding_life();
        }
        if swap == Swap::HandOver {
            // From here on the partner may own the pool, whatever this node hears: to keep it, it claims it anew.
            side.held = None;
        }
        self.arbiter.compare_and_swap(old, new);
        true
    }

    /// A command ends when what it wants is so, or is refused; and a giveback is wanted when the home node was in step for long enough.
    fn end_command(&mut self, index: usize, view: &View, decision: Decision) {
        let (now, giveback) = (self.now, self.timing.giveback);
        let is_refused = decision.action() == Action::Refuse && self.sides[index].command != Command::None;
        let refusal = is_refused.then(|| {
            let names = self.names(index);
            refused(&decision.why(&names), &decision.next(&names))
        });
        let side = &mut self.sides[index];
        let since = side.decided.map_or(now, |(_, since)| since);
        match side.command {
            Command::None => {
                let is_due = giveback.is_some_and(|delay| now.since(since) >= delay);
                if decision.name() == "in sync, away" && is_due {
                    side.command = Command::Giveback;
                }
            }
            Command::Takeover | Command::Forced if view.owner == Owner::Held && side.open == Open::Serving => {
                side.answer(AdminReply::Done);
            }
            Command::Drain
                if view.owner == Owner::Partner && !side.register().is_some_and(|register| register.kept) =>
            {
                let message =
                    "the partner serves this node's pool already, and gives it back when this node is in step";
                side.answer(refused(message, "`twinlog pair takeover` for it, then drain again"));
            }
            Command::Giveback | Command::Drain if view.owner == Owner::Partner => side.answer(AdminReply::Done),
            // Without a caller too: what a timer or the partner asked for is asked for again when it can be done.
            _ => {
                if let Some(refusal) = refusal {
                    side.answer(refusal);
                }
            }
        }
    }
}

pub(super) fn command_patience(timing: &Timing) -> Duration {
    timing.retry * COMMAND_PATIENCE + timing.detection * 2
}

fn not_mirrored(lane: LaneIndex) -> MirrorRefusal {
    let text = "this node does not mirror the pool at present".to_owned();
    MirrorRefusal { lane, reason: MirrorRefusalReason::Closed, expected: Lsn(0), text }
}

/// Tells the owner how far its mirror is, if that is news.
fn acknowledge<L: LogMemory>(side: &mut Side<L>, way: &mut dyn Interconnect) -> bool {
    let Some(mirror) = side.portion.mirror() else { return false };
    let mut is_news = false;
    while let Some(ack) = mirror.next_acknowledgement() {
        way.send(Message::Mirrored(ack));
        is_news = true;
    }
    is_news
}

/// An id that nobody else draws.
fn draw(prng: &mut twinlog_device::Prng) -> u128 {
    u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())
}
