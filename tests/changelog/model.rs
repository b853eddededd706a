//! Many laps by chance, with crashes, against a plain list: what was durable comes back in order, exactly once.

use crate::support::{IDENTITY, any_change, formatted, index, open, pass, scan, scan_log, shapes};
use std::time::Duration;
use twinlog::{
    base::{Epoch, Lsn, Prng},
    changelog::{Draft, HoleKind, Lane, LaneTuning},
};
use twinlog_sim::{Fault, LogMedium, LogShape, SimLog};

/// A change as the test remembers it.
#[derive(Clone, Debug)]
struct Change {
    lsn_min: Lsn,
    end: Lsn,
    draft: Draft,
    payload: Vec<u8>,
}

/// One life after the other of a lane, and what must come back.
struct Model {
    prng: Prng,
    medium: LogMedium,
    lane: Lane<SimLog>,
    tuning: LaneTuning,
    epoch: Epoch,
    /// Changes above `applied`, oldest first.
    changes: Vec<Change>,
    /// Of the newest superblock; never the lane's own idea of it.
    applied: Lsn,
    /// What a former superblock said, and its epoch: the newest one may be lost.
    former: Option<(Lsn, Epoch)>,
    recovered: u64,
    holes: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let size_bytes = 4096 * prng.between(2, 12);
        let shape: LogShape = *prng.pick(&shapes(size_bytes));
        let medium = formatted(shape);
        let tuning = LaneTuning {
            persists_in_flight_max: index(prng.between(1, 8)),
            persist_bytes_max: 4096 * prng.between(1, 4),
            mark_after: Duration::from_nanos(prng.between(1, 10_000)),
        };
        let lane = Lane::open_tuned(open(&medium), IDENTITY, Epoch(1), Lsn(0), tuning);
        let (epoch, applied) = (Epoch(1), Lsn(0));
        Self { prng, medium, lane, tuning, epoch, changes: Vec::new(), applied, former: None, recovered: 0, holes: 0 }
    }

    fn step(&mut self) {
        match self.prng.below(100) {
            0..50 => self.append(),
            50..85 => self.turn(),
            85..96 => self.checkpoint(),
            96..98 => self.look_back(),
            _ => self.crash(),
        }
        let (applied, durable, appended) = (self.lane.applied(), self.lane.durable(), self.lane.appended());
        assert!(durable <= appended && applied <= appended);
        assert!(appended.0 - applied.min(durable).0 <= self.lane.ring_bytes());
    }

    fn append(&mut self) {
        let largest = (self.lane.ring_bytes() / 2).max(64);
        let (draft, payload) = any_change(&mut self.prng, largest);
        if !self.lane.room_for(payload.len() as u64) {
            return;
        }
        let cut = index(self.prng.below(payload.len() as u64 + 1));
        let lsn_min = self.lane.appended();
        let end = self.lane.append(&draft, &[&payload[..cut], &payload[cut..]]);
        self.changes.push(Change { lsn_min, end, draft, payload });
    }

    fn turn(&mut self) {
        self.medium.set_latency_ns(0, self.prng.below(2000));
        let now = pass(&self.medium, self.prng.below(3000));
        self.lane.poll(now).expect("no fault was asked for");
    }

    /// A superblock becomes durable: it contains some changes, durable in the log or not.
    fn checkpoint(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let count = index(self.prng.between(1, self.changes.len() as u64));
        self.former = Some((self.applied, self.epoch));
        let everything = count == self.changes.len() && self.prng.chance(1, 2);
        self.applied = if everything { self.lane.appended() } else { self.changes[count - 1].end };
        self.changes.drain(..count);
        // The lane hears of it later, or never.
        if self.prng.chance(4, 5) {
            self.lane.trim(self.applied);
        }
    }

    fn crash(&mut self) {
        let durable = self.lane.durable();
        self.medium.power_cut(&mut self.prng);
        self.medium.set_latency_ns(0, 0);
        loop {
            let (records, end, log) = scan_log(open(&self.medium), self.applied, self.epoch).expect("a readable lane");
            assert_eq!(end.hole, None, "nothing was damaged");
            let must = self.changes.iter().filter(|change| change.end <= durable).count();
            assert!(records.len() >= must, "{} of {must} durable changes came back", records.len());
            assert!(records.len() <= self.changes.len(), "a change came back that is none");
            for (record, change) in records.iter().zip(&self.changes) {
                assert_eq!((record.end, record.draft), (change.end, change.draft));
                assert!(record.lsn >= change.lsn_min && record.epoch == self.epoch);
                assert_eq!(record.payload, change.payload);
            }
            self.recovered += records.len() as u64;
            if self.prng.chance(1, 3) {
                // The recovery itself is cut short before its superblock: the next one finds the same.
                drop(log);
                continue;
            }
            if self.prng.chance(1, 4) {
                self.epoch = Epoch(self.epoch.0 + 1);
            }
            self.former = Some((self.applied, self.epoch));
            self.applied = end.new_head;
            self.changes.clear();
            self.lane = Lane::open_tuned(log, IDENTITY, self.epoch, self.applied, self.tuning);
            return;
        }
    }

    /// The newest superblock is lost: recovery from the former one either finds all or proves that it cannot.
    fn look_back(&mut self) {
        let Some((applied, epoch)) = self.former else { return };
        let (records, end, _log) = scan(&self.medium, applied, epoch).expect("a readable lane");
        if let Some(hole) = end.hole {
            self.holes += u64::from(matches!(hole.kind, HoleKind::Overwritten));
            return;
        }
        // No proof: then no durable change of the newest consistency point's future was within reach and left out.
        let durable = self.lane.durable();
        let reach = applied.plus(self.lane.ring_bytes());
        let last = records.last().map_or(applied, |record| record.end);
        let proven = self.changes.iter().rev().find(|change| change.end <= durable && change.lsn_min >= reach);
        assert!(proven.is_none(), "a change beyond {reach} is durable, and the scan ended at {last} in peace");
    }
}

/// A planted bug that needs a rare order of things is looked for ten times as long.
fn seeds() -> u64 {
    if cfg!(feature = "planted-bugs") { 3000 } else { 300 }
}

#[test]
pub(crate) fn every_durable_change_comes_back_in_order_and_once() {
    let (mut recovered, mut holes) = (0, 0);
    let mut mattered = [(Fault::LogLost, 0), (Fault::LogUnanswered, 0), (Fault::LogTorn, 0)];
    for seed in 0..seeds() {
        let mut model = Model::new(seed);
        for _ in 0..400 {
            model.step();
        }
        recovered += model.recovered;
        holes += model.holes;
        for (fault, count) in &mut mattered {
            *count += model.medium.world().faults(*fault).1;
        }
    }
    assert!(recovered > 1000 && holes > 100, "{recovered} recovered, {holes} holes");
    assert!(mattered.iter().all(|&(_, count)| count > 100), "{mattered:?}");
}
