//! Positions in a lane's endless stream and offsets in the region that holds its newest part.
//!
//! # Where a lane goes on after a recovery
//!
//! Recovery ends with a consistency point whose applied position is the lane's new head. That head must lie beyond every
//! position that any record left in the ring carries: else a record of the torn tail (never answered, perhaps even discarded
//! by a partner that took over) could one day follow the newest record without a gap and rise again.
//!
//! A record is appended only while its end is at most one ring beyond the applied position of a durable superblock, so
//! no record in the ring ends beyond `applied + ring <= end + ring`, where `end >= applied` is where the scan ended. The new
//! head is that bound, with `end` rounded up to whole blocks first, so that the lane begins on a unit of any log
//! memory. The ring offset stays the same: a lap is skipped, not space.

use crate::{
    base::{Lsn, limits::BLOCK_BYTES, planted},
    format::{lane_header::LANE_HEADER_BYTES, record::RECORD_ALIGN},
};

/// No lane reaches this position, so that sums of positions and ring sizes never overflow: 2^62 bytes are 100 years at 1 GiB/s.
pub const LSN_MAX: Lsn = Lsn(1 << 62);

/// The ring of a lane: how positions map to offsets of its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    bytes: u64,
}

impl Ring {
    /// The ring of a region of `region_bytes`, or `None` when that is no multiple of 4096 or leaves no block for a ring.
    #[must_use]
    pub fn of_region(region_bytes: u64) -> Option<Self> {
        let bytes = region_bytes.checked_sub(LANE_HEADER_BYTES)?;
        let good = bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes < LSN_MAX.0;
        good.then_some(Self { bytes })
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Offset in the region of the byte at `lsn`.
    #[must_use]
    pub fn region_offset(self, lsn: Lsn) -> u64 {
        LANE_HEADER_BYTES + lsn.0 % self.bytes
    }

    /// Bytes from `lsn` to the end of the ring, where a new lap begins: 1 to the whole ring.
    #[must_use]
    pub fn bytes_before_wrap(self, lsn: Lsn) -> u64 {
        self.bytes - lsn.0 % self.bytes
    }

    /// Whether a record may begin at `lsn`.
    #[must_use]
    pub fn may_begin(lsn: Lsn) -> bool {
        lsn.0.is_multiple_of(RECORD_ALIGN) && lsn < LSN_MAX
    }
}

/// The position where a lane goes on whose scan ended at `end`: see the head of this file.
#[must_use]
pub fn head_after_recovery(end: Lsn, ring_bytes: u64) -> Lsn {
    let lap = if planted::is("head-not-beyond-stale-records") { 0 } else { ring_bytes };
    Lsn(end.0.next_multiple_of(BLOCK_BYTES)).plus(lap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_head_keeps_its_offset_and_passes_every_old_position() {
        let ring = Ring::of_region(4096 + 8 * 4096).expect("a small ring");
        for end in (0..40 * 4096).step_by(128) {
            let head = head_after_recovery(Lsn(end), ring.bytes());
            assert!(head.0 >= end + ring.bytes());
            assert!(head.0.is_multiple_of(BLOCK_BYTES));
            assert_eq!(ring.region_offset(head), ring.region_offset(Lsn(end.next_multiple_of(BLOCK_BYTES))));
        }
    }

    #[test]
    fn regions_without_room_for_a_ring_are_refused() {
        for region_bytes in [0, 1, 4095, 4096, 4097, 8191, 8193, u64::MAX, 1 << 63] {
            assert_eq!(Ring::of_region(region_bytes), None, "{region_bytes}");
        }
        assert_eq!(Ring::of_region(8192).map(Ring::bytes), Some(4096));
    }
}
