//! The partner's mirror of a pool that this node owns: whether it follows the lanes, what goes there next, and what has arrived.

use super::flight::Flight;
use crate::{
    base::{LaneIndex, Lsn, PoolId, PortionId, planted},
    changelog::lane::MirrorItem,
    node::figures::OperationFigures,
    pair::interconnect::Message,
};
use std::time::Duration;
use twinlog_device::Nanos;

/// Where one lane's mirror is.
#[derive(Clone, Copy, Default)]
struct LaneMirror {
    /// The position that goes to the partner next; `None`: the lane's mirror has not begun.
    next: Option<Lsn>,
    /// What the partner has acknowledged since it is attached.
    acknowledged: Option<Lsn>,
    /// What it has acknowledged before, since the interconnect is up.
    early: Option<Lsn>,
}

/// What this node knows of the mirror.
pub(super) struct MirrorSession {
    lanes: Vec<LaneMirror>,
    flight: Flight,
    /// Whether the partner's mirror takes what the lanes hand out.
    pub(super) is_attached: bool,
    /// The partner's portion that this node's lanes are mirrored to: what it is in step with, the register may name.
    pub(super) follower: Option<PortionId>,
    /// The mirror is in step, and the register is to say so.
    pub(super) is_in_step: bool,
    /// Why the partner's portion is no mirror although the interconnect is up.
    pub(super) lost: Option<String>,
    /// A mirror that acknowledged nothing is not tried again before.
    rests_until: Nanos,
    is_resting: bool,
}

impl MirrorSession {
    pub(super) fn new(lane_count: u16) -> Self {
        Self {
            lanes: vec![LaneMirror::default(); usize::from(lane_count)],
            flight: Flight::new(lane_count),
            is_attached: false,
            follower: None,
            is_in_step: false,
            lost: None,
            rests_until: Nanos(0),
            is_resting: false,
        }
    }

    pub(super) fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Whether the partner's portion cannot be used for now.
    pub(super) fn is_unusable(&self) -> bool {
        self.lost.is_some() || self.is_resting
    }

    /// The partner was recognised: what was found and heard before does not count.
    pub(super) fn meet_partner(&mut self) {
        self.lost = None;
        self.lanes.iter_mut().for_each(|lane| lane.early = None);
    }

    /// Mirroring begins, in the partner's portion `follower`.
    pub(super) fn begin(&mut self, follower: Option<PortionId>) {
        (self.is_attached, self.follower) = (true, follower);
        self.lanes.iter_mut().for_each(|lane| (lane.next, lane.acknowledged) = (None, None));
    }

    /// The mirror goes on where the partner expects it. Returns what it has acknowledged already.
    pub(super) fn attach(&mut self, expected: &[Option<Lsn>]) -> Vec<(LaneIndex, Lsn)> {
        self.is_attached = true;
        self.flight.forget();
        let mut early = Vec::new();
        for ((index, lane), &expected) in (0..).map(LaneIndex).zip(&mut self.lanes).zip(expected) {
            early.extend(lane.early.map(|durable| (index, durable)));
            *lane = LaneMirror { next: expected, acknowledged: expected, early: None };
        }
        early.retain(|&(lane, durable)| !planted::is("early-acknowledgement-dropped") && self.note(lane, durable));
        early
    }

    /// What is not acknowledged may be lost. Returns what each lane goes on from.
    pub(super) fn resend(&mut self) -> impl Iterator<Item = (LaneIndex, Option<Lsn>)> + '_ {
        self.flight.forget();
        let again = |lane: &mut LaneMirror| {
            lane.next = lane.acknowledged;
            lane.next
        };
        (0..).map(LaneIndex).zip(self.lanes.iter_mut().map(again))
    }

    /// The message that carries a batch, unless the partner has it or cannot take it yet: after a reconnect batches that were handed out
    /// before meet those that are sent again.
    pub(super) fn message(
        &mut self,
        pool: PoolId,
        (lane, item): (LaneIndex, MirrorItem),
        now: Nanos,
    ) -> Option<Message> {
        let LaneMirror { next, acknowledged, .. } = self.lanes.get_mut(lane.index())?;
        match item {
            MirrorItem::Begin { epoch, start } => {
                // Said again to a partner that has begun it changes nothing there.
                *next = Some(start).max(*acknowledged);
                Some(Message::Begin { pool, lane, epoch, start })
            }
            MirrorItem::Write { epoch, start, end, bytes } => {
                if *next != Some(start) {
                    return None;
                }
                *next = Some(end);
                self.flight.sent(lane, (end, bytes.len()), now);
                Some(Message::Write { pool, lane, epoch, start, end, bytes })
            }
        }
    }

    /// The partner has everything of a lane before `durable`. Returns whether the lane is to hear of it now: before it is attached it does when
    /// it is.
    pub(super) fn hear(&mut self, lane: LaneIndex, durable: Lsn, now: Nanos) -> bool {
        let is_news = self.note(lane, durable);
        if is_news {
            self.flight.acknowledged(lane, durable, now);
        }
        is_news
    }

    fn note(&mut self, lane: LaneIndex, durable: Lsn) -> bool {
        let Some(lane) = self.lanes.get_mut(lane.index()) else { return false };
        // An older word may come later, on another path.
        if self.is_attached {
            lane.acknowledged = lane.acknowledged.max(Some(durable));
            // What was to be sent again may have arrived after all.
            lane.next = lane.next.max(Some(durable));
        } else {
            lane.early = lane.early.max(Some(durable));
        }
        self.is_attached
    }

    /// Whether something was sent that has not been acknowledged for `patience`: then it rests for so many times that.
    pub(super) fn gives_up(&mut self, now: Nanos, patience: Duration, rest_factor: u32) -> bool {
        let is_silent = self.is_attached && self.flight.oldest().is_some_and(|at| now.since(at) >= patience);
        if is_silent {
            self.rests_until = now + patience * rest_factor;
            self.flight.forget();
        }
        self.is_resting = now < self.rests_until;
        is_silent
    }

    /// There is no mirror.
    pub(super) fn end(&mut self) {
        self.lost = None;
        (self.is_attached, self.follower, self.is_in_step) = (false, None, false);
        self.lanes.fill(LaneMirror::default());
        self.flight.forget();
    }

    /// Bytes that were sent and not acknowledged.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.flight.waiting_bytes()
    }

    pub(super) fn figures(&self) -> &OperationFigures {
        self.flight.figures()
    }
}
