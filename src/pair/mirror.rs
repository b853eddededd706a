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
        self.lanes.iter_mut().try_for_each(MirrorLane::poll)
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
