//! This node's portion of a pool that its partner owns: a mirror lane for each lane of the owner.
//!
//! # Invariants
//!
//! 1. Acknowledgements are cumulative and per lane; each position is told once, after it is durable.
//! 2. After [`MirrorPortion::close`] nothing is taken any more; its log memory is free once it is idle.

use super::wire::{Ack, MirrorRefusal, MirrorRefusalReason};
use crate::{
    base::{Epoch, LaneIndex, Lsn},
    changelog::{self, LaneIdentity, MirrorLane},
};
use twinlog_device::{DeviceError, DurabilityClass, LogMemory};

/// The mirror of a pool's change log.
#[derive(Debug)]
pub struct MirrorPortion<L> {
    lanes: Vec<MirrorLane<L>>,
    /// What was acknowledged last, by lane.
    told: Vec<Option<Lsn>>,
}

impl<L: LogMemory> MirrorPortion<L> {
    /// Mirrors every lane of a formatted portion, in their order. `epoch` is the highest that this node knows of: nothing older is taken.
    #[must_use]
    pub fn open(lanes: Vec<(LaneIdentity, L)>, epoch: Epoch) -> Self {
        let told = vec![None; lanes.len()];
        let lanes = lanes.into_iter().map(|(identity, log)| MirrorLane::open(log, identity, epoch)).collect();
        Self { lanes, told }
    }

    /// The owner's writes to a lane begin at `start`.
    ///
    /// # Errors
    /// Why not.
    pub fn begin(&mut self, lane: LaneIndex, epoch: Epoch, start: Lsn) -> Result<(), MirrorRefusal> {
        let mirror = self.lanes.get_mut(lane.index()).ok_or_else(|| no_lane(lane))?;
        mirror.begin(epoch, start).map_err(|refusal| refused(lane, &refusal))?;
        self.told[lane.index()] = None;
        Ok(())
    }

    /// A batch of the owner.
    ///
    /// # Errors
    /// Why not.
    pub fn write(&mut self, lane: LaneIndex, epoch: Epoch, at: (Lsn, Lsn), bytes: &[u8]) -> Result<(), MirrorRefusal> {
        let mirror = self.lanes.get_mut(lane.index()).ok_or_else(|| no_lane(lane))?;
        mirror.write(epoch, at.0, at.1, bytes).map_err(|refusal| refused(lane, &refusal))
    }

    /// The highest epoch that any lane has seen.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lanes.iter().map(MirrorLane::epoch).max().unwrap_or_default()
    }

    /// Goes on for one turn.
    ///
    /// # Errors
    /// The log memory's.
    pub fn poll(&mut self) -> Result<(), DeviceError> {
        // All of them: one whose log memory has failed keeps no other from coming to rest.
        self.lanes.iter_mut().map(MirrorLane::poll).fold(Ok(()), Result::and)
    }

    /// The next acknowledgement of what is durable and was not told.
    pub fn next_acknowledgement(&mut self) -> Option<Ack> {
        let news = |(lane, told): (&MirrorLane<L>, &Option<Lsn>)| lane.durable() > *told;
        let index = self.lanes.iter().zip(&self.told).position(news)?;
        let mirror = &self.lanes[index];
        self.told[index] = mirror.durable();
        let LaneIdentity { pool, lane, .. } = *mirror.identity();
        Some(Ack { pool, lane, epoch: mirror.epoch(), durable: mirror.durable()?, expected: mirror.expected()? })
    }

    /// Says everything again: the partner may not have heard it.
    pub fn acknowledge_again(&mut self) {
        self.told.fill(None);
    }

    /// What each lane expects next; `None`: nothing has begun.
    #[must_use]
    pub fn expected(&self) -> Vec<Option<Lsn>> {
        self.lanes.iter().map(MirrorLane::expected).collect()
    }

    /// Whether every lane follows its owner's.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.lanes.iter().all(|lane| lane.expected().is_some())
    }

    /// What its log memory survives.
    #[must_use]
    pub fn durability(&self) -> DurabilityClass {
        self.lanes.iter().map(|lane| lane.info().durability).min().unwrap_or(DurabilityClass::Volatile)
    }

    /// Takes nothing any more.
    pub fn close(&mut self) {
        self.lanes.iter_mut().for_each(MirrorLane::close);
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(MirrorLane::is_idle)
    }
}

fn no_lane(lane: LaneIndex) -> MirrorRefusal {
    let text = "the portion has no such lane".to_owned();
    MirrorRefusal { lane, reason: MirrorRefusalReason::Shape, expected: Lsn(0), text }
}

fn refused(lane: LaneIndex, refusal: &changelog::MirrorRefusal) -> MirrorRefusal {
    use changelog::MirrorRefusal as Cause;
    let (reason, expected) = match refusal {
        Cause::Closed => (MirrorRefusalReason::Closed, Lsn(0)),
        Cause::NotBegun => (MirrorRefusalReason::NotBegun, Lsn(0)),
        Cause::Failed(_) => (MirrorRefusalReason::Failed, Lsn(0)),
        Cause::OldEpoch { .. } => (MirrorRefusalReason::OldEpoch, Lsn(0)),
        Cause::Gap { expected, .. } => (MirrorRefusalReason::Gap, *expected),
        Cause::Misplaced { .. } | Cause::NoRecord { .. } => (MirrorRefusalReason::Shape, Lsn(0)),
        Cause::TooMuch(_) => (MirrorRefusalReason::TooMuch, Lsn(0)),
    };
    MirrorRefusal { lane, reason, expected, text: refusal.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{ObjectId, PoolId, PortionId},
        changelog::{Draft, Format, Lane, MirrorItem, PortionRole, RecordKind},
    };
    use std::time::Duration;
    use twinlog_device::{Nanos, Wait};
    use twinlog_sim::{Agenda, LogMedium, LogShape, SimLog, SimWorld};

    fn formatted(medium: &LogMedium, agenda: &Agenda, identity: &LaneIdentity) -> SimLog {
        let mut format = Format::new(medium.open(agenda), identity, PortionId(1));
        while !format.poll().expect("nothing fails yet") {
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
        format.into_log()
    }

    /// What an owner's lane sends of one record.
    fn batch(identity: LaneIdentity, agenda: &Agenda, medium: &LogMedium) -> (Lsn, Lsn, Vec<u8>) {
        let identity = LaneIdentity { role: PortionRole::Own, ..identity };
        let mut owner = Lane::open_at(formatted(medium, agenda, &identity), identity, Epoch(1), Lsn(0));
        owner.start_mirroring(512);
        let (kind, object) = (RecordKind::Block, ObjectId(1));
        let draft = Draft { kind, object, offset_bytes: 0, argument: 0, flags: 0, time_ns: 0, request_id: 0 };
        owner.append(&draft, &[&[7; 4096]]);
        owner.poll(Nanos(0)).expect("nothing fails");
        while let Some(item) = owner.next_mirror_item() {
            if let MirrorItem::Write { start, end, bytes, .. } = item {
                return (start, end, bytes.to_vec());
            }
        }
        panic!("the record is sent");
    }

    #[test]
    fn a_lane_that_has_failed_keeps_no_other_from_coming_to_rest() {
        let world = SimWorld::new(1);
        let agenda = Agenda::new(&world);
        let media: Vec<_> = (0..4).map(|_| LogMedium::new(&world, "log", LogShape::file(1 << 20))).collect();
        let identity = |lane| LaneIdentity { pool: PoolId(1), role: PortionRole::Mirror, lane, lane_count: 2 };
        let lanes = [LaneIndex(0), LaneIndex(1)];
        let logs = lanes.map(|lane| (identity(lane), formatted(&media[lane.index()], &agenda, &identity(lane))));
        let mut portion = MirrorPortion::open(logs.into(), Epoch(1));
        for lane in lanes {
            let (start, end, bytes) = batch(identity(lane), &agenda, &media[2 + lane.index()]);
            portion.begin(lane, Epoch(1), start).expect("it is open");
            portion.write(lane, Epoch(1), (start, end), &bytes).expect("it follows");
        }
        media[0].fail_persist_after(0);
        media[1].set_latency_ns(50_000_000, 50_000_000);
        let mut failure = None;
        for _ in 0..100 {
            failure = failure.or(portion.poll().err());
            if failure.is_some() {
                portion.close();
            }
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
        assert_eq!(failure.map(|error| error.device), Some("log".to_owned()));
        assert!(portion.is_idle(), "whoever makes the log anew waits for that");
    }
}
