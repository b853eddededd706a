//! What happens to media between two lives.

use super::{Halt, History, Oracle, Order, Violation, found};
use crate::{
    fault::{Class, Damage, Excuse},
    setup::{Weakness, index},
};
use std::time::Duration;
use twinlog::{
    base::checksum,
    changelog::inspect::{Inspector, Row},
};

/// Quiet time after which a lane has certainly written its mark.
const REST: Duration = Duration::from_millis(12);

impl History {
    /// Lets the node be quiet until every lane has proved its newest record.
    pub(super) fn rest(&mut self) -> Result<(), Halt> {
        self.finish_requests()?;
        self.node.as_mut().expect("a life has a node").hurry();
        let end = self.cluster.world.now() + REST;
        let mut turns = 0;
        self.until(|history| {
            turns += 1;
            turns > 100 && history.cluster.world.now() >= end
        })?;
        self.has_rested = true;
        Ok(())
    }

    /// Damage at rest, and poison.
    pub(super) fn between_lives(&mut self) -> Result<(), Violation> {
        match self.setup.damage {
            Some(Damage::RotAtRest) => self.rot_at_rest(),
            // Twice could hit the newest record and the mark that proves it.
            Some(Damage::LogRot) if self.has_rested && !self.is_damaged() => self.rot_log(),
            // Which disks a start needs is not known then.
            None if matches!(self.uncertain, Some(Order::Grow)) => {}
            None if self.setup.answers_last() && self.prng.chance(1, 12) => return self.poison(),
            None if self.may_rot_a_need() && self.prng.chance(1, 4) => return self.rot_what_a_record_needs(),
            _ => {}
        }
        Ok(())
    }

    /// Whether all that a volume that goes offline can lead to is known here.
    fn may_rot_a_need(&self) -> bool {
        let is_known = self.setup.answers_last() && self.uncertain.is_none() && !self.setup.fills_pool;
        is_known && self.setup.weakness != Some(Weakness::NoDamage)
    }

    fn rot_at_rest(&mut self) {
        let disk = index(self.prng.below(self.machine().disks().len() as u64));
        let written = self.machine().disks()[disk].written_blocks();
        if written.is_empty() {
            // A disk that was about to join.
            return;
        }
        for _ in 0..self.prng.between(1, 3) {
            let (block, bit) = (*self.prng.pick(&written), self.prng.below(32_768));
            self.machine().disks()[disk].flip_bit(block, bit);
            self.note(|_| format!("bit {bit} of block {block} of disk {disk} flips"));
        }
    }

    fn rot_log(&mut self) {
        let lane = index(self.prng.below(self.machine().logs.len() as u64));
        let size_bytes = self.machine().logs[lane].shape().size_bytes;
        let (offset, bit) = (self.prng.below(size_bytes), self.prng.below(8));
        self.machine().logs[lane].rot(offset, 1 << bit);
        self.note(|_| format!("bit {bit} of byte {offset} of lane {lane} flips"));
    }

    /// Puts a whole record into the log that cannot be performed. The node must say so; then the old record comes back.
    fn poison(&mut self) -> Result<(), Violation> {
        let lane = index(self.prng.below(self.machine().logs.len() as u64));
        let log = self.machine().logs[lane].clone();
        let image = log.image();
        let read = |offset: u64, buffer: &mut [u8]| {
            let start = index(offset);
            buffer.copy_from_slice(&image[start..start + buffer.len()]);
            Ok(())
        };
        let Ok(mut inspector) = Inspector::open(read, image.len() as u64) else { return Ok(()) };
        let mut newest = None;
        let looked = inspector.rows(|row| {
            if let Row::Record(record) = row
                && record.whole
                && ["block", "write", "discard", "write-zeroes"].contains(&record.kind)
            {
                newest = Some(record);
            }
            true
        });
        let (Ok(()), Some(record)) = (looked, newest) else { return Ok(()) };
        let mut poisoned = image.clone();
        let start = index(record.region_offset_bytes);
        poisoned[start + 40..start + 48].copy_from_slice(&999_999_u64.to_le_bytes());
        let sum = checksum(record.lsn, &poisoned[start..start + 120]);
        poisoned[start + 120..start + 128].copy_from_slice(&sum.to_le_bytes());
        log.restore(&poisoned);
        self.note(|_| format!("the record at {} of lane {lane} is poisoned", record.lsn));
        self.meet_poison(record.end_lsn, &image, lane)
    }

    fn meet_poison(&mut self, end_lsn: u64, image: &[u8], lane: usize) -> Result<(), Violation> {
        self.excuse = Excuse { stop: true, ..Excuse::default() };
        self.turns_left = u64::MAX;
        let uncertain = self.uncertain.take();
        self.node = Some(self.machine().start(1));
        self.quiet_turns = 0;
        self.is_recovering = true;
        let halt = self.until(|history| history.node().is_serving());
        self.is_recovering = false;
        self.uncertain = uncertain;
        let reason = match halt {
            // A consistency point contained the record: nothing replays it.
            Ok(()) => None,
            Err(Halt::Stopped(reason)) => Some(reason),
            Err(Halt::Found(violation)) => return Err(violation),
            Err(Halt::Crash) => unreachable!("no crash is planned"),
        };
        self.tally.count(Class::PoisonedRecord, reason.is_some());
        let keeps = self.uncertain.take();
        self.end_again();
        self.uncertain = keeps;
        if let Some(reason) = reason {
            if !reason.contains(&end_lsn.to_string()) {
                let Halt::Found(violation) = found(Oracle::Damage, format!("a poisoned record is not named: {reason}"))
                else {
                    unreachable!("made by found")
                };
                return Err(violation);
            }
            self.machine().logs[lane].restore(image);
        }
        Ok(())
    }

    /// Ends a process that changed nothing that a client could know of.
    pub(super) fn end_again(&mut self) {
        self.node = None;
        let mut prng = self.prng.fork();
        self.machine().process_kill(&mut prng);
        self.order = None;
    }
}
