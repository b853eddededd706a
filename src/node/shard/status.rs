//! What a shard tells of itself.

use super::{Shard, State};
use crate::node::admin::{LaneStatus, VolumeStatus};
use twinlog_device::LogMemory;

impl<L: LogMemory> Shard<L> {
    /// The lane; `None` while it is not served.
    #[must_use]
    pub fn lane_status(&self) -> Option<LaneStatus> {
        let State::Serving(lane) = &self.state else { return None };
        let pause = self.pause(lane, 4096);
        Some(LaneStatus {
            lane: self.options.lane.0,
            backend: lane.info().backend.to_owned(),
            durability: lane.info().durability.to_string(),
            size_bytes: lane.ring_bytes(),
            used_bytes: lane.used_bytes(),
            head_lsn: lane.appended().0,
            durable_lsn: lane.durable().0,
            applied_lsn: lane.applied().0,
            throttle_ns: u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// The volumes of this shard, served by reactor `reactor`.
    #[must_use]
    pub fn volume_status(&self, reactor: u16) -> Vec<VolumeStatus> {
        let status = |volume: &crate::fs::volume::Volume| {
            let record = volume.record();
            let figures = self.figures.get(&record.id);
            let (reads, writes) =
                figures.map(|figures| (figures.reads.status(), figures.writes.status())).unwrap_or_default();
            VolumeStatus { reads, writes, ..VolumeStatus::of(record, reactor) }
        };
        self.volumes.values().map(status).collect()
    }
}
