//! A lane and its mirror by chance, against a plain list: two nodes, a link that delays, cuts, loses and repeats, crashes of either or both,
//! takeovers, givebacks and returns. What the owner could answer is found, byte by byte, by whoever opens the pool next.
//!
//! The model plays the register and the superblock, which always tell the truth; everything else may fail at any step.

use crate::support::{IDENTITY, MIRROR, any_change, formatted_as, index, open, pass, scan_log_as, shapes, wipe};
use std::{collections::VecDeque, time::Duration};
use twinlog::{
    base::{Epoch, Lsn, Prng},
    changelog::{
        Draft, Lane, LaneIdentity, LaneTuning, MirrorItem, MirrorLane, MirrorMode, MirrorRefusal, OwnedRecord, ScanEnd,
        record_bytes,
    },
};
use twinlog_sim::{LogMedium, SimLog, SimWorld};

/// A change as the test remembers it.
#[derive(Clone, Debug)]
struct Change {
    lsn_min: Lsn,
    end: Lsn,
    epoch: Epoch,
    draft: Draft,
    payload: Vec<u8>,
}

/// A node's portion of the log: one lane.
struct Portion {
    medium: LogMedium,
    identity: LaneIdentity,
}

#[derive(Clone, Copy, Debug)]
struct Register {
    epoch: Epoch,
    owner: usize,
    in_sync: bool,
}

#[derive(Clone, Copy, Debug)]
struct Superblock {
    applied: Lsn,
    epoch: Epoch,
}

/// What is on its way between the nodes.
#[derive(Default)]
struct Link {
    is_up: bool,
    /// A write was lost on the way: the mirror refuses those after it, until the link is made anew.
    has_lost: bool,
    items: VecDeque<MirrorItem>,
    /// The last one that was delivered.
    former: Option<MirrorItem>,
    acknowledgements: VecDeque<Lsn>,
}

/// An owner that was taken over from and does not know; what it can answer must lie before `limit`.
struct Fenced {
    lane: Lane<SimLog>,
    acknowledgements: VecDeque<Lsn>,
    limit: Lsn,
}

/// How often what was seen.
#[derive(Debug, Default)]
struct Counts {
    restarts: u64,
    takeovers: u64,
    givebacks: u64,
    returns: u64,
    resends: u64,
    lost_mirrors: u64,
    gaps: u64,
    repetitions: u64,
    recovered: u64,
    compared: u64,
}

impl Counts {
    fn all(&self) -> [u64; 10] {
        let Self { restarts, takeovers, givebacks, returns, resends, .. } = *self;
        let Self { lost_mirrors, gaps, repetitions, recovered, compared, .. } = *self;
        [restarts, takeovers, givebacks, returns, resends, lost_mirrors, gaps, repetitions, recovered, compared]
    }
}

struct Pair {
    prng: Prng,
    portions: [Portion; 2],
    tuning: LaneTuning,
    register: Register,
    superblock: Superblock,
    /// The owner's.
    lane: Lane<SimLog>,
    /// The other node's; `None` while that is down.
    mirror: Option<MirrorLane<SimLog>>,
    link: Link,
    fenced: Option<Fenced>,
    /// Where mirroring started.
    start: Lsn,
    /// Changes above the superblock's applied position, oldest first.
    changes: Vec<Change>,
    /// What the owner could answer, at most.
    answered: Lsn,
    counts: Counts,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed);
        let size_bytes = 4096 * prng.between(3, 12);
        let mut portion = |identity| {
            let shape = *prng.pick(&shapes(size_bytes));
            Portion { medium: formatted_as(&world, shape, &identity), identity }
        };
        let portions = [portion(IDENTITY), portion(MIRROR)];
        let tuning = LaneTuning {
            persists_in_flight_max: index(prng.between(1, 8)),
            persist_bytes_max: 4096 * prng.between(1, 4),
            mark_after: Duration::from_nanos(prng.between(1, 10_000)),
        };
        let epoch = Epoch(1);
        let lane = Lane::open_tuned(open(&portions[0].medium), IDENTITY, epoch, Lsn(0), tuning);
        Self {
            prng,
            portions,
            tuning,
            register: Register { epoch, owner: 0, in_sync: false },
            superblock: Superblock { applied: Lsn(0), epoch },
            lane,
            mirror: None,
            link: Link::default(),
            fenced: None,
            start: Lsn(0),
            changes: Vec::new(),
            answered: Lsn(0),
            counts: Counts::default(),
        }
    }

    fn step(&mut self) {
        match self.prng.below(1000) {
            0..250 => self.append(),
            250..430 => self.turn_owner(),
            430..550 => self.send(),
            550..680 => self.deliver(),
            680..790 => self.turn_mirror(),
            790..870 => self.hear(),
            870..920 => self.checkpoint(),
            920..935 => self.repeat(),
            935..940 => self.lose(),
            940..948 => self.cut(),
            948..988 => self.control(),
            988..990 => self.crash_other(),
            990..994 => self.give_back(),
            994..996 => self.take_over_alive(),
            _ => self.crash(),
        }
        self.answered = self.answered.max(self.lane.stable());
        let (applied, durable, stable, appended) =
            (self.lane.applied(), self.lane.durable(), self.lane.stable(), self.lane.appended());
        assert!(stable <= durable && durable <= appended && applied <= appended);
        assert!(appended.0 - applied.min(durable).0 <= self.lane.ring_bytes());
    }

    fn other(&self) -> usize {
        1 - self.register.owner
    }

    fn append(&mut self) {
        let largest = (self.lane.ring_bytes() / 2).max(64);
        let (draft, payload) = any_change(&mut self.prng, largest);
        if !self.lane.room_for(payload.len() as u64) {
            return;
        }
        let (lsn_min, epoch) = (self.lane.appended(), self.lane.epoch());
        let end = self.lane.append(&draft, &[&payload]);
        self.changes.push(Change { lsn_min, end, epoch, draft, payload });
    }

    fn turn_owner(&mut self) {
        let medium = &self.portions[self.register.owner].medium;
        medium.set_latency_ns(0, self.prng.below(2000));
        let now = pass(medium, self.prng.below(1500));
        self.lane.poll(now).expect("no fault was asked for");
        if let Some(fenced) = &mut self.fenced {
            fenced.lane.poll(now).expect("no fault was asked for");
            while let Some(lsn) = fenced.acknowledgements.pop_front() {
                fenced.lane.mirrored(lsn).expect("it was sent");
            }
            let stable = fenced.lane.stable();
            assert!(stable <= fenced.limit, "a fenced owner answers up to {stable}, beyond {}", fenced.limit);
        }
    }

    fn turn_mirror(&mut self) {
        let medium = &self.portions[self.other()].medium;
        medium.set_latency_ns(0, self.prng.below(4000));
        pass(medium, self.prng.below(1500));
        let Some(mirror) = &mut self.mirror else { return };
        mirror.poll().expect("no fault was asked for");
        if self.link.is_up {
            self.link.acknowledgements.extend(mirror.durable());
        }
    }

    fn send(&mut self) {
        if self.link.is_up
            && let Some(item) = self.lane.next_mirror_item()
        {
            self.link.items.push_back(item);
        }
    }

    fn deliver(&mut self) {
        let Some(item) = self.link.items.pop_front() else { return };
        self.link.former = Some(item.clone());
        let mirror = self.mirror.as_mut().expect("the link is up");
        match offer(mirror, &item) {
            Ok(()) => {}
            Err(MirrorRefusal::Gap { .. }) if self.link.has_lost => {
                self.counts.gaps += 1;
                self.cut();
            }
            Err(refusal) => panic!("an honest owner is refused: {refusal}"),
        }
    }

    fn hear(&mut self) {
        if let Some(lsn) = self.link.acknowledgements.pop_front() {
            self.lane.mirrored(lsn).expect("it was sent");
        }
    }

    /// The network delivers something twice.
    fn repeat(&mut self) {
        if let (Some(item), Some(mirror)) = (&self.link.former, &mut self.mirror)
            && !self.link.has_lost
        {
            offer(mirror, item).expect("a repetition is no fault");
            self.counts.repetitions += 1;
        }
    }

    fn lose(&mut self) {
        if let Some(MirrorItem::Write { .. }) = self.link.items.front() {
            self.link.items.pop_front();
            self.link.has_lost = true;
        }
    }

    fn cut(&mut self) {
        self.link = Link::default();
    }

    /// A superblock becomes durable: it contains some changes, durable in the log or not.
    fn checkpoint(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        if self.prng.chance(1, 4) {
            self.compare();
        }
        let count = index(self.prng.between(1, self.changes.len() as u64));
        let last = &self.changes[count - 1];
        let everything = count == self.changes.len() && self.prng.chance(1, 2);
        self.superblock = match everything {
            true => Superblock { applied: self.lane.appended(), epoch: self.lane.epoch() },
            false => Superblock { applied: last.end, epoch: last.epoch },
        };
        self.changes.drain(..count);
        if self.prng.chance(4, 5) {
            self.lane.trim(self.superblock.applied);
        }
    }

    /// The controller does the next thing, or something else that it may.
    fn control(&mut self) {
        let other = self.other();
        if self.fenced.is_some() {
            // It ends before its node does anything else.
            return self.crash_other();
        }
        if self.mirror.is_none() {
            let portion = &self.portions[other];
            self.mirror = Some(MirrorLane::open(open(&portion.medium), portion.identity, self.register.epoch));
        }
        if !self.link.is_up && self.prng.chance(2, 3) {
            self.reconnect();
            return;
        }
        match self.lane.mirror_mode() {
            MirrorMode::Off if self.link.is_up => self.start = self.start_mirroring(),
            MirrorMode::Streaming if self.superblock.applied >= self.start => self.lane.require_mirror(),
            MirrorMode::Required if !self.register.in_sync && self.lane.is_caught_up() => {
                self.next_epoch(true);
                self.counts.returns += 1;
            }
            MirrorMode::Streaming | MirrorMode::Required if !self.link.is_up => self.go_alone(),
            _ => {}
        }
    }

    fn next_epoch(&mut self, in_sync: bool) {
        self.register.epoch = Epoch(self.register.epoch.0 + 1);
        self.register.in_sync = in_sync;
        self.lane.set_epoch(self.register.epoch);
    }

    fn start_mirroring(&mut self) -> Lsn {
        let unit_bytes = self.portions[self.other()].medium.shape().unit_bytes;
        self.lane.start_mirroring(unit_bytes)
    }

    fn go_alone(&mut self) {
        if self.register.in_sync {
            self.next_epoch(false);
        }
        self.lane.stop_mirroring();
        self.link.items.clear();
    }

    fn reconnect(&mut self) {
        let mirror = self.mirror.as_ref().expect("the caller has made sure");
        self.link.is_up = true;
        match self.lane.resend_from(mirror.expected()) {
            Ok(()) => self.counts.resends += u64::from(self.lane.mirror_mode() != MirrorMode::Off),
            Err(_) => {
                self.counts.lost_mirrors += 1;
                self.go_alone();
            }
        }
    }

    /// Both portions hold the same bytes.
    fn compare(&mut self) {
        let Some(mirrored) = self.lane.mirrored_lsn() else { return };
        let [own, mirror] = [self.register.owner, self.other()].map(|node| self.portions[node].medium.image());
        let (until, from) = (mirrored.min(self.lane.durable()), self.start.max(self.superblock.applied));
        for change in self.changes.iter().filter(|change| change.lsn_min >= from && change.end <= until) {
            let total = record_bytes(change.payload.len() as u64);
            let place = index(4096 + (change.end.0 - total) % self.lane.ring_bytes());
            let range = place..place + index(total);
            assert!(own[range.clone()] == mirror[range], "the record before {} differs", change.end);
            self.counts.compared += 1;
        }
    }

    /// Ends the process of a node, or its power.
    fn crash_node(&mut self, node: usize) {
        let medium = &self.portions[node].medium;
        if self.prng.chance(1, 5) {
            medium.land_all()
        } else {
            medium.power_cut(&mut self.prng)
        }
        medium.set_latency_ns(0, 0);
    }

    fn crash_other(&mut self) {
        if self.mirror.take().is_some() || self.fenced.take().is_some() {
            self.crash_node(self.other());
            self.cut();
        }
    }

    /// The owner dies, perhaps its partner as well, perhaps its log is lost for ever.
    fn crash(&mut self) {
        let owner = self.register.owner;
        self.crash_node(owner);
        if self.prng.chance(1, 3) {
            self.crash_other();
        }
        self.cut();
        let is_lost = self.register.in_sync && self.prng.chance(1, 5);
        if is_lost {
            wipe(&self.portions[owner].medium, &self.portions[owner].identity);
        }
        if self.register.in_sync && (is_lost || self.prng.chance(1, 2)) {
            self.name_other()
        } else {
            self.claim()
        }
        let log = self.log_of_owner();
        self.recover(log);
    }

    /// The partner takes over while the owner lives, cut off from everything but its own log.
    fn take_over_alive(&mut self) {
        if !self.register.in_sync {
            return;
        }
        let acknowledgements = std::mem::take(&mut self.link.acknowledgements);
        self.cut();
        self.name_other();
        let log = self.log_of_owner();
        let (lane, limit) = self.recover(log);
        self.fenced = Some(Fenced { lane, acknowledgements, limit });
    }

    /// The owner hands the pool over: everything is in its last consistency point, and its portion becomes the mirror.
    fn give_back(&mut self) {
        if self.fenced.is_some() || self.lane.mirror_mode() != MirrorMode::Off {
            return;
        }
        self.crash_other();
        while !self.lane.is_idle() {
            self.turn_owner();
        }
        self.superblock = Superblock { applied: self.lane.appended(), epoch: self.lane.epoch() };
        self.changes.clear();
        self.name_other();
        self.register.in_sync = true;
        let log = open(&self.portions[self.register.owner].medium);
        let (lane, _) = self.recover(log);
        let _log: SimLog = lane.into_log();
        self.counts.givebacks += 1;
    }

    fn claim(&mut self) {
        self.register.epoch = Epoch(self.register.epoch.0 + 1);
        self.counts.restarts += 1;
    }

    fn name_other(&mut self) {
        let epoch = Epoch(self.register.epoch.0 + 1);
        self.register = Register { epoch, owner: self.other(), in_sync: false };
        self.counts.takeovers += 1;
    }

    /// The owner's portion, for its recovery. A mirror lane in it is closed first.
    fn log_of_owner(&mut self) -> SimLog {
        let medium = &self.portions[self.register.owner].medium;
        let is_mirror =
            |mirror: &mut MirrorLane<SimLog>| *mirror.identity() == self.portions[self.register.owner].identity;
        let Some(mut mirror) = self.mirror.take_if(is_mirror) else { return open(medium) };
        mirror.close();
        for item in self.link.former.iter().chain(&self.link.items) {
            assert_eq!(offer(&mut mirror, item), Err(MirrorRefusal::Closed));
        }
        while !mirror.is_idle() {
            pass(medium, 1000);
            mirror.poll().expect("no fault was asked for");
        }
        mirror.into_log()
    }

    /// Opens the pool from the owner's portion (rule R10). Returns the former owner's lane, and where the scan ended.
    fn recover(&mut self, mut log: SimLog) -> (Lane<SimLog>, Lsn) {
        loop {
            let identity = self.portions[self.register.owner].identity;
            let Superblock { applied, epoch } = self.superblock;
            self.portions[self.register.owner].medium.set_latency_ns(0, 0);
            let (records, end, scanned) = scan_log_as(log, &identity, applied, epoch).expect("a readable lane");
            self.judge(&records, &end);
            if self.prng.chance(1, 4) {
                // The recovery is cut short before its superblock, and begins again, perhaps at the other node.
                drop(scanned);
                if self.register.in_sync && self.prng.chance(1, 2) {
                    self.name_other()
                } else {
                    self.claim()
                }
                log = self.log_of_owner();
                continue;
            }
            self.counts.recovered += records.len() as u64;
            self.superblock = Superblock { applied: end.new_head, epoch: self.register.epoch };
            self.changes.clear();
            self.answered = end.new_head;
            let lane = Lane::open_tuned(scanned, identity, self.register.epoch, end.new_head, self.tuning);
            let former = std::mem::replace(&mut self.lane, lane);
            if self.register.in_sync {
                self.start = self.start_mirroring();
                self.lane.require_mirror();
            }
            return (former, end.end);
        }
    }

    fn judge(&self, records: &[OwnedRecord], end: &ScanEnd) {
        assert_eq!(end.hole, None, "nothing was damaged");
        assert!(end.end >= self.answered, "the scan ends at {}, answered was up to {}", end.end, self.answered);
        let must = self.changes.iter().filter(|change| change.end <= self.answered).count();
        assert!(records.len() >= must, "{} of {must} answered changes came back", records.len());
        assert!(records.len() <= self.changes.len(), "a change came back that is none");
        for (record, change) in records.iter().zip(&self.changes) {
            assert_eq!((record.end, record.epoch, record.draft), (change.end, change.epoch, change.draft));
            assert!(record.lsn >= change.lsn_min);
            assert_eq!(record.payload, change.payload);
        }
    }
}

fn offer(mirror: &mut MirrorLane<SimLog>, item: &MirrorItem) -> Result<(), MirrorRefusal> {
    match item {
        MirrorItem::Begin { epoch, start } => mirror.begin(*epoch, *start),
        MirrorItem::Write { epoch, start, end, bytes } => mirror.write(*epoch, *start, *end, bytes),
    }
}

#[test]
pub(crate) fn what_was_answered_is_found_by_whoever_opens_the_pool_next() {
    let mut sums = [0; 10];
    for seed in 0..200 {
        let mut pair = Pair::new(seed);
        for _ in 0..2000 {
            pair.step();
        }
        for (sum, count) in sums.iter_mut().zip(pair.counts.all()) {
            *sum += count;
        }
    }
    assert!(sums.iter().all(|&sum| sum > 50), "{sums:?}");
}
