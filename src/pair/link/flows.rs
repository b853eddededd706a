//! Which way frames go, and which acknowledgements wait.
//!
//! Frames of one lane go over one channel as long as any of them is unacknowledged, so that they arrive in the order of their positions; an
//! idle lane is free to move. States of pools, asks, refusals and notices stay on one channel for the same reason. Requests and replies have no
//! order.

use crate::{
    base::{Epoch, LaneIndex, PoolId},
    pair::wire::{ACKS_MAX, Ack, Message},
};
use std::collections::BTreeMap;

type LaneKey = (PoolId, LaneIndex);

/// Where a lane's frames go.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The channel's number.
    channel: u64,
    /// Of the newest frame: acknowledgements of another epoch say nothing.
    epoch: Epoch,
    /// Position after the last batch that was sent.
    sent: u64,
    acknowledged: u64,
}

/// The order that a message keeps with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Lane(LaneKey),
    Pools,
    Free,
}

fn flow_of(pool: PoolId, message: &Message) -> Flow {
    match message {
        Message::MirrorBegin { lane, .. } | Message::MirrorWrite { lane, .. } => Flow::Lane((pool, *lane)),
        Message::Request(_) | Message::Reply(_) => Flow::Free,
        _ => Flow::Pools,
    }
}

/// The ways of one session.
#[derive(Debug, Default)]
pub(super) struct Flows {
    lanes: BTreeMap<LaneKey, Lane>,
    pools: Option<u64>,
}

impl Flows {
    /// The channel that a message must take, if it is not free.
    pub(super) fn bound_to(&self, pool: PoolId, message: &Message) -> Option<u64> {
        match flow_of(pool, message) {
            Flow::Lane(key) => {
                let busy = |lane: &&Lane| lane.acknowledged < lane.sent;
                self.lanes.get(&key).filter(busy).map(|lane| lane.channel)
            }
            Flow::Pools => self.pools,
            Flow::Free => None,
        }
    }

    /// A message goes over `channel`.
    pub(super) fn note_sent(&mut self, (pool, epoch): (PoolId, Epoch), message: &Message, channel: u64) {
        match flow_of(pool, message) {
            Flow::Lane(key) => {
                let lane = self.lanes.entry(key).or_insert(Lane { channel, epoch, sent: 0, acknowledged: 0 });
                (lane.channel, lane.epoch) = (channel, epoch);
                match message {
                    Message::MirrorWrite { end, .. } => lane.sent = end.0,
                    // Whatever was on its way before means nothing from here on, and what follows must not overtake this.
                    Message::MirrorBegin { start, .. } => (lane.sent, lane.acknowledged) = (start.0 + 1, start.0),
                    _ => {}
                }
            }
            Flow::Pools => self.pools = Some(channel),
            Flow::Free => {}
        }
    }

    pub(super) fn note_acknowledged(&mut self, ack: &Ack) {
        if let Some(lane) = self.lanes.get_mut(&(ack.pool, ack.lane)).filter(|lane| lane.epoch == ack.epoch) {
            lane.acknowledged = lane.acknowledged.max(ack.durable.0);
        }
    }

    /// A channel is no more: what was bound to it is free, and will be sent again.
    pub(super) fn forget_channel(&mut self, channel: u64) {
        self.lanes.retain(|_, lane| lane.channel != channel);
        self.pools = self.pools.filter(|&pools| pools != channel);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The newest acknowledgement of every lane, and which of them the partner has not been sent.
#[derive(Debug, Default)]
pub(super) struct Acks {
    newest: BTreeMap<LaneKey, (Ack, bool)>,
    waiting_count: usize,
}

impl Acks {
    pub(super) fn put(&mut self, ack: Ack) {
        let before = self.newest.insert((ack.pool, ack.lane), (ack, true));
        self.waiting_count += usize::from(!before.is_some_and(|(_, waits)| waits));
    }

    pub(super) fn are_waiting(&self) -> bool {
        self.waiting_count > 0
    }

    /// Takes as many as one frame carries.
    pub(super) fn take(&mut self, taken: &mut Vec<Ack>) {
        taken.clear();
        if self.waiting_count == 0 {
            return;
        }
        for (ack, waits) in self.newest.values_mut().filter(|(_, waits)| *waits).take(ACKS_MAX) {
            *waits = false;
            taken.push(*ack);
        }
        self.waiting_count -= taken.len();
    }

    /// What was sent may have been lost: all of them are sent again.
    pub(super) fn repeat(&mut self) {
        self.newest.values_mut().for_each(|(_, waits)| *waits = true);
        self.waiting_count = self.newest.len();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lsn;

    const POOL: PoolId = PoolId(1);
    const AT: (PoolId, Epoch) = (POOL, Epoch(1));

    fn write(lane: u16, end: u64) -> Message {
        Message::MirrorWrite { lane: LaneIndex(lane), start: Lsn(end - 128), end: Lsn(end) }
    }

    fn ack(lane: u16, durable: u64) -> Ack {
        Ack { pool: POOL, lane: LaneIndex(lane), epoch: Epoch(1), durable: Lsn(durable), expected: Lsn(durable) }
    }

    #[test]
    fn a_lane_stays_on_its_channel_until_everything_is_acknowledged() {
        let mut flows = Flows::default();
        assert_eq!(flows.bound_to(POOL, &write(0, 128)), None);
        flows.note_sent(AT, &write(0, 128), 7);
        flows.note_sent(AT, &write(0, 256), 7);
        flows.note_acknowledged(&ack(0, 128));
        assert_eq!(flows.bound_to(POOL, &write(0, 384)), Some(7));
        assert_eq!(flows.bound_to(POOL, &write(1, 384)), None, "lanes are bound one by one");
        assert_eq!(flows.bound_to(PoolId(2), &write(0, 384)), None);
        flows.note_acknowledged(&Ack { epoch: Epoch(2), ..ack(0, 256) });
        assert_eq!(flows.bound_to(POOL, &write(0, 384)), Some(7), "another epoch says nothing");
        flows.note_acknowledged(&ack(0, 256));
        assert_eq!(flows.bound_to(POOL, &write(0, 384)), None, "an idle lane may move");
        flows.note_sent(AT, &write(0, 384), 8);
        flows.forget_channel(7);
        assert_eq!(flows.bound_to(POOL, &write(0, 512)), Some(8));
        flows.forget_channel(8);
        assert_eq!(flows.bound_to(POOL, &write(0, 512)), None);
    }

    #[test]
    fn nothing_overtakes_the_beginning_of_a_lane() {
        let mut flows = Flows::default();
        flows.note_sent(AT, &Message::MirrorBegin { lane: LaneIndex(0), start: Lsn(4096) }, 7);
        flows.note_acknowledged(&ack(0, 4096));
        assert_eq!(flows.bound_to(POOL, &write(0, 4224)), Some(7), "an old acknowledgement does not free it");
        flows.note_sent(AT, &write(0, 4224), 7);
        flows.note_acknowledged(&ack(0, 4224));
        assert_eq!(flows.bound_to(POOL, &write(0, 4352)), None);
    }

    #[test]
    fn the_newest_acknowledgement_of_each_lane_waits_once() {
        let (mut acks, mut taken) = (Acks::default(), Vec::new());
        for durable in 1..=3 {
            (0..70).for_each(|lane| acks.put(ack(lane, durable * 128)));
        }
        let mut all = Vec::new();
        for expected in [ACKS_MAX, 70 - ACKS_MAX, 0] {
            assert_eq!(acks.are_waiting(), expected > 0);
            acks.take(&mut taken);
            assert_eq!(taken.len(), expected);
            all.append(&mut taken);
        }
        assert!(all.iter().all(|ack| ack.durable == Lsn(384)));
        acks.repeat();
        acks.put(ack(3, 512));
        acks.take(&mut taken);
        assert_eq!((taken.len(), taken[3].durable), (ACKS_MAX, Lsn(512)));
        acks.clear();
        assert!(!acks.are_waiting());
    }
}
