//! The change log: lanes of records in log memory.
//!
//! | file | what it is |
//! |---|---|
//! | [`header`] | a lane's header: formatting, and reading which portion a region belongs to |
//! | [`ring`] | positions and offsets; where a lane goes on after a recovery |
//! | [`lane`] | one lane in use: append, persist, mirror, trim |
//! | [`mirror`] | the mirror of a lane at the other node: takes, persists and acknowledges its batches |
//! | [`scan`] | one lane at recovery: every record above the applied position, and proof that no answered one is missing |
//! | [`throttle`] | when to checkpoint, and how much to slow down changes as a lane fills |
//! | [`inspect`] | the same for people: an offline, read-only view of a portion file |
//!
//! `docs/change-log.md` states the theory: invariants, crash outcomes, and what cannot be told apart.

pub mod header;
pub mod inspect;
pub mod lane;
pub mod mirror;
mod persists;
mod reader;
pub mod ring;
pub mod scan;
pub mod throttle;

pub use crate::format::{
    lane_header::{LaneHeader, LaneHeaderError, LaneIdentity, PortionRole},
    record::{Draft, FLAG_BLOCKS_512, FLAG_KEEP_ALLOCATED, OwnedRecord, RecordFault, RecordKind, record_bytes},
};
pub use header::{Format, ReadHeader};
pub use lane::{Lane, LaneTuning, MirrorItem, MirrorMode, MirroringError};
pub use mirror::{MirrorFigures, MirrorLane, MirrorRefusal};
pub use ring::{Ring, head_after_recovery};
pub use scan::{EndReason, Hole, HoleKind, Scan, ScanEnd, ScanError, ScanStart, ScanStep};
