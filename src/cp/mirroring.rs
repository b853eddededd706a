//! Bringing the mirror of a pool in step, from the coordinator's side.
//!
//! # States
//!
//! ```text
//!        start            every lane has          a consistency point that      every lane has
//!                         started                 froze later is durable        caught up
//! Off ---------> Starting ---------> Covering ---------------------> Requiring ---------> InStep
//!  ^                                                                                        |
//!  +----------------------- alone: the register says so durably ---------------------------+
//! ```
//!
//! # Why it is enough
//!
//! What a lane holds before its start is in the consistency point; what it holds after is at the partner, from the moment at which every lane
//! has caught up. So at `InStep` the partner could take over without losing an answered change, and the register may say so. Until then it says
//! stale, and answers wait for nobody; from `Requiring` on they wait for the partner as well.

use super::message::MirrorOrder;
use crate::base::{CpNumber, LaneIndex};
use std::collections::BTreeSet;

/// How far the mirror is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MirrorProgress {
    /// Nothing is mirrored.
    #[default]
    Off,
    /// Lanes that have not started.
    Starting(BTreeSet<LaneIndex>),
    /// The consistency point with this number contains everything that is not mirrored.
    Covering(CpNumber),
    /// Lanes that have not caught up.
    Requiring(BTreeSet<LaneIndex>),
    /// The partner has everything that was answered.
    InStep,
}

impl MirrorProgress {
    /// As `status` names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting(_) => "starting",
            Self::Covering(_) => "waiting for a consistency point",
            Self::Requiring(_) => "catching up",
            Self::InStep => "in step",
        }
    }

    /// A lane has started. Returns whether it was the last.
    pub fn started(&mut self, lane: LaneIndex) -> bool {
        let Self::Starting(lanes) = self else { return false };
        lanes.remove(&lane) && lanes.is_empty()
    }

    /// A consistency point is durable. The order for every lane that follows from it.
    pub fn durable(&mut self, cp: CpNumber, lanes: &[LaneIndex]) -> Option<MirrorOrder> {
        match self {
            Self::Covering(wanted) if *wanted <= cp => {
                *self = Self::Requiring(lanes.iter().copied().collect());
                Some(MirrorOrder::Require)
            }
            _ => None,
        }
    }

    /// A lane has caught up. Returns whether it was the last: the mirror is in step.
    pub fn caught_up(&mut self, lane: LaneIndex) -> bool {
        let Self::Requiring(lanes) = self else { return false };
        let is_last = lanes.remove(&lane) && lanes.is_empty();
        if is_last {
            *self = Self::InStep;
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_in_step_after_a_consistency_point_and_the_last_lane() {
        let lanes = [LaneIndex(0), LaneIndex(1)];
        let mut progress = MirrorProgress::Starting(lanes.into());
        assert!(!progress.started(lanes[1]) && !progress.started(lanes[1]), "once each");
        assert_eq!(progress.durable(CpNumber(9), &lanes), None, "it froze before the last lane had started");
        assert!(progress.started(lanes[0]));
        progress = MirrorProgress::Covering(CpNumber(11));
        assert_eq!(progress.durable(CpNumber(10), &lanes), None);
        assert_eq!(progress.durable(CpNumber(11), &lanes), Some(MirrorOrder::Require));
        assert!(!progress.caught_up(lanes[0]));
        assert!(progress.caught_up(lanes[1]));
        assert_eq!(progress, MirrorProgress::InStep);
        assert!(!progress.caught_up(lanes[1]), "told once");
    }
}
