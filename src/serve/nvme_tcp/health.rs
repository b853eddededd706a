//! What a node's hosts have moved, for the health log page. Sessions count for themselves and add up now and then: a counter that reactors share costs each of
//! their commands more than the command's own bookkeeping.

use super::{
    io::{Request, Work},
    wire::{command::Status, log::Health},
};
use std::sync::atomic::{AtomicU64, Ordering};

/// What one session has moved since it last added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    reads: u64,
    writes: u64,
    /// Sectors of 512 bytes.
    read_sectors: u64,
    written_sectors: u64,
    media_errors: u64,
}

impl Tally {
    /// A command was performed: reads, compares and verifies count as reads, as they do for a device (base 2.0, section 5.16.1.3).
    pub(super) fn performed(&mut self, request: &Request) {
        match request.work {
            Work::Read | Work::Compare | Work::Verify => {
                (self.reads, self.read_sectors) = (self.reads + 1, self.read_sectors + request.sectors);
            }
            Work::Write { .. } => {
                (self.writes, self.written_sectors) = (self.writes + 1, self.written_sectors + request.sectors);
            }
            _ => {}
        }
    }

    /// A command has failed.
    pub(super) fn failed(&mut self, status: Status) {
        self.media_errors += u64::from(status == Status::UNRECOVERED_READ);
    }
}

/// What all hosts of the node have, since it started.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: AtomicU64,
    writes: AtomicU64,
    read_sectors: AtomicU64,
    written_sectors: AtomicU64,
    media_errors: AtomicU64,
}

impl Traffic {
    /// Adds what a session has counted, and lets it begin anew.
    pub(super) fn add(&self, tally: &mut Tally) {
        let Tally { reads, writes, read_sectors, written_sectors, media_errors } = std::mem::take(tally);
        let pairs = [
            (&self.reads, reads),
            (&self.writes, writes),
            (&self.read_sectors, read_sectors),
            (&self.written_sectors, written_sectors),
            (&self.media_errors, media_errors),
        ];
        for (sum, count) in pairs.into_iter().filter(|(_, count)| *count > 0) {
            sum.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// As the log page has it; what is not about hosts is the caller's.
    pub(super) fn health(&self) -> Health {
        let load = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Health {
            is_degraded: false,
            reads: load(&self.reads),
            writes: load(&self.writes),
            read_sectors: load(&self.read_sectors),
            written_sectors: load(&self.written_sectors),
            media_errors: load(&self.media_errors),
            errors: 0,
        }
    }
}
