//! Batches on their way to the partner's mirror: how many bytes wait for its word, and how long that takes.

use crate::{
    base::{LaneIndex, Lsn},
    node::figures::OperationFigures,
};
use std::collections::VecDeque;
use twinlog_device::Nanos;

struct Sent {
    end: Lsn,
    bytes: u64,
    at: Nanos,
}

/// The batches of a pool that were sent and not acknowledged yet, by lane. What the lanes keep bounds them.
pub(super) struct Flight {
    lanes: Vec<VecDeque<Sent>>,
    /// Of those that were acknowledged: from the turn that sent them to the one that heard of them.
    figures: OperationFigures,
}

impl Flight {
    pub(super) fn new(lane_count: u16) -> Self {
        let lanes = (0..lane_count).map(|_| VecDeque::new()).collect();
        Self { lanes, figures: OperationFigures::default() }
    }

    /// A batch that ends at `end` was sent.
    pub(super) fn sent(&mut self, lane: LaneIndex, (end, bytes): (Lsn, usize), now: Nanos) {
        if let Some(lane) = self.lanes.get_mut(lane.index()) {
            lane.push_back(Sent { end, bytes: bytes as u64, at: now });
        }
    }

    /// Everything before `durable` was acknowledged.
    pub(super) fn acknowledged(&mut self, lane: LaneIndex, durable: Lsn, now: Nanos) {
        let Some(lane) = self.lanes.get_mut(lane.index()) else { return };
        let count = lane.partition_point(|sent| sent.end <= durable);
        for sent in lane.drain(..count) {
            self.figures.record(sent.bytes, now.since(sent.at));
        }
    }

    /// Nobody knows what has arrived: the batches are sent again, or the mirror begins anew.
    pub(super) fn forget(&mut self) {
        self.lanes.iter_mut().for_each(VecDeque::clear);
    }

    /// When the oldest batch was sent that is not acknowledged.
    pub(super) fn oldest(&self) -> Option<Nanos> {
        self.lanes.iter().filter_map(|lane| lane.front().map(|sent| sent.at)).min()
    }

    /// Bytes that were sent and not acknowledged.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.lanes.iter().flatten().map(|sent| sent.bytes).sum()
    }

    pub(super) fn figures(&self) -> &OperationFigures {
        &self.figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_cumulative_and_per_lane() {
        let mut flight = Flight::new(2);
        let (first, second, beyond) = (LaneIndex(0), LaneIndex(1), LaneIndex(2));
        flight.sent(first, (Lsn(64), 64), Nanos(1_000));
        flight.sent(first, (Lsn(192), 128), Nanos(2_000));
        flight.sent(second, (Lsn(64), 64), Nanos(3_000));
        flight.sent(beyond, (Lsn(64), 64), Nanos(3_000));
        assert_eq!(flight.waiting_bytes(), 256);
        flight.acknowledged(first, Lsn(191), Nanos(11_000));
        assert_eq!((flight.waiting_bytes(), flight.figures().status().count), (192, 1));
        flight.acknowledged(first, Lsn(192), Nanos(12_000));
        let status = flight.figures().status();
        assert_eq!((status.count, status.bytes, status.total_ns), (2, 192, 20_000));
        flight.forget();
        flight.acknowledged(second, Lsn(64), Nanos(13_000));
        assert_eq!((flight.waiting_bytes(), flight.figures().status().count), (0, 2));
    }
}
