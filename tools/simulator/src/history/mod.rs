//! One history: several lives of a node, each ended by a crash or in order, and a last one in which everything must work.
//!
//! # Life cycle
//!
//! ```text
//! new machine --> life: start, recover, verify all, work --+--> last life: heal, verify, work, everything answers, CP, check, stop,
//!                  ^                                       |               start once more and verify
//!                  +--- kill, power cut, or clean stop <---+
//! ```
//!
//! # Invariants
//!
//! 1. Everything is drawn from the seed; two runs of one seed are the same to the last byte.
//! 2. The oracles use nothing of the engine but its answers.
//! 3. An error of the engine is accepted only where a fault of this life excuses it ([`Excuse`]).

mod damage;
mod offline;
mod recovery;
mod replies;
pub mod script;
mod work;

use crate::{
    clients::{Ask, nbd},
    cluster::{Cluster, Machine, Node},
    exchanging::Exchanging,
    fault::{Class, Damage, Excuse, Tally},
    model::{DataOracle, Loss, Model},
    pattern::WriteId,
    reserving::Reserving,
    setup::{Setup, Weakness},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
use twinlog::{base::ObjectId, node::admin::AdminReply};
use twinlog_device::{Prng, Wait};
use twinlog_sim::{Agenda, Fault, FaultPlan, LogMedium};

/// Turns in which something must happen: a client that waits for longer waits for ever.
const PATIENCE: u64 = 40_000;
/// Turns of a history, of which the usual one takes two thousand: one that never waits, and never comes to its end, must be seen too.
const TURNS_MAX: u64 = 2_000_000;

/// What found something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oracle {
    /// The data of volumes.
    Data(DataOracle),
    /// `pool check`: reachable = allocated, no double use, every checksum true.
    Check,
    /// Everything is answered, and recovery ends.
    Liveness,
    /// No error without a fault that excuses it.
    Error,
    /// Volumes are made, resized and deleted as answered.
    Volumes,
    /// Damage is found and named.
    Damage,
    /// Registrations and reservations are kept, and keep others out.
    Reservations,
    /// The protocol's own rules.
    Protocol,
    /// The engine's own assertions.
    Assertion,
    /// Two nodes have a pool open, or one answers that does not own it.
    TwoOwners,
    /// A node answers after its lease has ended.
    Lease,
    /// A change of a node that was fenced reaches the disk; or who may serve is fenced.
    Fence,
}

impl fmt::Display for Oracle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Data(oracle) => return oracle.fmt(formatter),
            Self::Check => "pool check",
            Self::Liveness => "liveness",
            Self::Error => "error without a fault",
            Self::Volumes => "set of volumes",
            Self::Damage => "damage not named",
            Self::Reservations => "reservations",
            Self::Protocol => "protocol",
            Self::Assertion => "assertion",
            Self::TwoOwners => "two owners",
            Self::Lease => "lease over",
            Self::Fence => "fence",
        })
    }
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Who found it.
    pub oracle: Oracle,
    /// A sentence.
    pub what: String,
}

/// Why a life goes no further.
pub(crate) enum Halt {
    /// The planned crash.
    Crash,
    /// The pool has stopped, and a fault excuses it.
    Stopped(String),
    /// An oracle.
    Found(Violation),
}

impl From<(DataOracle, String)> for Halt {
    fn from((oracle, what): (DataOracle, String)) -> Self {
        found(Oracle::Data(oracle), what)
    }
}

pub(crate) fn found(oracle: Oracle, what: impl Into<String>) -> Halt {
    Halt::Found(Violation { oracle, what: what.into() })
}

/// How a life ends, unless it ends earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Kill,
    PowerCut,
    CleanStop,
}

/// What one history did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Lives.
    pub lives: u64,
    /// Changes that were answered with success.
    pub answered_changes: u64,
    /// Of these, compare-and-writes.
    pub exchanges: u64,
    /// Compare-and-writes that found other bytes.
    pub differences: u64,
    /// Reads that were compared.
    pub reads: u64,
    /// Bytes that were compared.
    pub verified_bytes: u64,
    /// Records that recoveries performed.
    pub replayed_records: u64,
    /// Pool checks.
    pub checks: u64,
    /// Recoveries that ended with verified volumes.
    pub recoveries: u64,
    /// Disks that joined a pool, and were answered.
    pub joined_disks: u64,
    /// Histories that ended because unrepairable damage was named and the pool refused.
    pub refused_for_damage: u64,
    /// Turns of all reactors.
    pub turns: u64,
}

impl Figures {
    /// Adds another history's.
    pub fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.answered_changes += other.answered_changes;
        self.exchanges += other.exchanges;
        self.differences += other.differences;
        self.reads += other.reads;
        self.verified_bytes += other.verified_bytes;
        self.replayed_records += other.replayed_records;
        self.checks += other.checks;
        self.recoveries += other.recoveries;
        self.joined_disks += other.joined_disks;
        self.refused_for_damage += other.refused_for_damage;
        self.turns += other.turns;
    }
}

/// What a history is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// What is wrong, if anything.
    Verdict,
    /// That, and a digest: every byte that was read or lies on a medium at the end is summed, which takes a tenth of the time.
    Digest,
    /// All this, and everything that happens is printed.
    Trace,
}

/// What came of a history.
#[derive(Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What was wrong, if anything.
    pub violation: Option<Violation>,
    /// What it did.
    pub figures: Figures,
    /// Faults.
    pub tally: Tally,
    /// A number that differs when anything differs; with [`Watch::Verdict`], when any answer or its time does.
    pub digest: u64,
}

/// A request under way.
struct Flying {
    ask: Ask,
    volume: ObjectId,
    write: Option<WriteId>,
    began: u64,
    sizes: Sizes,
    /// It belongs to the verification after a recovery.
    is_verification: bool,
    /// The turn in which it was sent.
    turn: u64,
}

/// What a volume may have been while a request to it was under way. Only what lies beyond the smallest size may be refused, and
/// what lies beyond the largest must be.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    smallest: u64,
    largest: u64,
    may_be_gone: bool,
}

impl Sizes {
    fn exactly(size_bytes: u64) -> Self {
        Self { smallest: size_bytes, largest: size_bytes, may_be_gone: false }
    }

    /// An order that may be carried out meanwhile.
    fn beside(&mut self, order: &Order, volume: ObjectId) {
        match order {
            Order::Resize { id, size_bytes, .. } if *id == volume => {
                self.smallest = self.smallest.min(*size_bytes);
                self.largest = self.largest.max(*size_bytes);
            }
            Order::Delete { id } if *id == volume => self.may_be_gone = true,
            _ => {}
        }
    }
}

/// An order to the control side under way.
enum Order {
    Create {
        name: String,
        size_bytes: u64,
    },
    Resize {
        id: ObjectId,
        size_bytes: u64,
        cut: WriteId,
    },
    Delete {
        id: ObjectId,
    },
    /// The spare disk joins the pool.
    Grow,
    Checkpoint {
        began: u64,
    },
    Check,
    Status,
    List,
    /// A volume that is offline comes back.
    Online,
    Stop,
}

impl Order {
    /// Whether it changes what the pool is, so that a crash leaves it done or not.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Resize { .. } | Self::Delete { .. } | Self::Grow)
    }
}

/// A history being run.
pub struct History {
    setup: Setup,
    cluster: Cluster,
    prng: Prng,
    model: Model,
    node: Option<Node>,
    sessions: Vec<Option<nbd::Session>>,
    flying: BTreeMap<u64, Flying>,
    next_id: u64,
    order: Option<(Order, crossbeam_channel::Receiver<AdminReply>)>,
    /// The last answer to `List`.
    listed: Option<Vec<(ObjectId, String, u64)>>,
    /// An order whose effect a crash has made uncertain.
    uncertain: Option<Order>,
    excuse: Excuse,
    /// Turns left before the planned crash.
    turns_left: u64,
    /// Whether what is not durable at a planned durable step can land.
    lands_at_step: bool,
    is_recovering: bool,
    is_stopping: bool,
    is_steady: bool,
    /// The life ended quietly: every lane has proved its newest record.
    has_rested: bool,
    /// The volume that is offline.
    offline: Option<ObjectId>,
    /// Whether what keeps it offline has not healed.
    refuses_online: bool,
    /// A read failed in this life's verification.
    unreadable: Option<String>,
    quiet_turns: u64,
    tally: Tally,
    figures: Figures,
    digest: u64,
    watch: Watch,
    /// In histories with hosts that reserve volumes.
    reserving: Option<Reserving>,
    /// In half of those whose clients have more than NBD.
    exchanging: Option<Exchanging>,
}

/// Runs the history of `seed`.
#[must_use]
pub fn run(seed: u64, watch: Watch) -> Outcome {
    let mut prng = Prng::new(seed);
    let setup = Setup::draw(&mut prng);
    run_as(seed, setup, watch)
}

/// Runs a history with a setup that is not drawn.
#[must_use]
pub fn run_as(seed: u64, setup: Setup, watch: Watch) -> Outcome {
    let mut history = History::new(seed, setup, watch);
    let result = history.lives();
    history.outcome(seed, result)
}

impl History {
    fn new(seed: u64, setup: Setup, watch: Watch) -> Self {
        let cluster = Cluster::new(seed, &setup);
        let model = Model::new(setup.answers_last());
        let reserving = setup.has_hosts().then(|| Reserving::draw(seed)).flatten();
        let exchanging = (!setup.is_nbd).then(|| Exchanging::draw(seed)).flatten();
        let history = Self {
            reserving,
            exchanging,
            prng: Prng::new(seed ^ 0x5EED),
            sessions: (0..setup.sessions).map(|_| None).collect(),
            setup,
            cluster,
            model,
            node: None,
            flying: BTreeMap::new(),
            next_id: 0,
            order: None,
            listed: None,
            uncertain: None,
            excuse: Excuse::default(),
            turns_left: u64::MAX,
            lands_at_step: false,
            is_recovering: false,
            is_stopping: false,
            is_steady: false,
            has_rested: false,
            offline: None,
            refuses_online: false,
            unreadable: None,
            quiet_turns: 0,
            tally: Tally::default(),
            figures: Figures::default(),
            digest: 0,
            watch,
        };
        history.note(|history| format!("{:?}", history.setup));
        history
    }

    fn outcome(mut self, seed: u64, result: Result<(), Violation>) -> Outcome {
        let world = &self.cluster.world;
        self.figures.verified_bytes = self.model.verified_bytes;
        self.tally.add_world(world);
        let media = if self.watch == Watch::Verdict { 0 } else { self.machine().digest() };
        let end = media ^ world.now().0 ^ world.steps() << 20;
        Outcome { seed, violation: result.err(), digest: self.digest ^ end, figures: self.figures, tally: self.tally }
    }

    fn note(&self, line: impl FnOnce(&Self) -> String) {
        if self.watch == Watch::Trace {
            // At once: a panic must not take it along.
            println!("{:>12} {}", self.cluster.world.now().0, line(self));
        }
    }

    fn machine(&self) -> &Machine {
        &self.cluster.machines[0]
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("a life has a node")
    }

    fn is_damaged(&self) -> bool {
        self.setup.damage.is_some() && Damage::was_done(&self.cluster.world)
    }

    fn lives(&mut self) -> Result<(), Violation> {
        for life in 0..self.setup.lives {
            self.life(life)?;
            self.between_lives()?;
        }
        self.last_life()
    }

    /// One life, to its end.
    fn life(&mut self, life: u32) -> Result<(), Violation> {
        self.figures.lives += 1;
        self.excuse.read = false;
        self.excuse.stop = false;
        let mut ending = match self.prng.below(8) {
            0 => Ending::CleanStop,
            1..=4 => Ending::PowerCut,
            _ => Ending::Kill,
        };
        self.plan_faults();
        self.plan_crash();
        match self.setup.weakness {
            Some(Weakness::NoPowerCut) if ending == Ending::PowerCut => ending = Ending::Kill,
            Some(Weakness::NoCrash) => {
                ending = Ending::CleanStop;
                self.turns_left = u64::MAX;
                self.cluster.world.recover();
            }
            _ => {}
        }
        let requests = self.prng.between(1, self.setup.requests_max);
        let halt = self.live(requests, ending == Ending::CleanStop);
        self.note(|history| format!("life {life} ends: {ending:?}, phase {}", history.node().phase()));
        match halt {
            Ok(()) if ending == Ending::CleanStop => {
                self.end_process(Ending::Kill, true);
                Ok(())
            }
            Ok(()) | Err(Halt::Crash) => {
                self.end_process(if ending == Ending::PowerCut { ending } else { Ending::Kill }, false);
                Ok(())
            }
            Err(Halt::Stopped(reason)) => {
                self.note(|_| format!("the pool has stopped: {reason}"));
                self.end_process(if ending == Ending::PowerCut { ending } else { Ending::Kill }, false);
                Ok(())
            }
            Err(Halt::Found(violation)) => Err(violation),
        }
    }

    fn live(&mut self, requests: u64, stops: bool) -> Result<(), Halt> {
        self.recover()?;
        self.work(requests)?;
        if self.setup.damage == Some(Damage::LogRot) {
            self.rest()?;
        }
        if stops { self.stop() } else { Ok(()) }
    }

    fn plan_crash(&mut self) {
        self.turns_left = u64::MAX;
        match self.prng.below(4) {
            0 => {
                let steps = self.cluster.world.steps() + self.prng.below(600);
                self.cluster.world.crash_at_step(steps);
                self.lands_at_step = self.prng.chance(1, 2);
            }
            1 => self.turns_left = self.prng.between(1, 150),
            2 => self.turns_left = self.prng.between(1, 2000),
            _ => {}
        }
    }

    /// Draws what goes wrong in this life.
    fn plan_faults(&mut self) {
        let mut plan = FaultPlan::default();
        if self.prng.chance(1, 4) {
            plan = plan.with(Fault::SlowOperation, 30_000);
        }
        match self.setup.damage {
            Some(Damage::Rot) => plan = plan.with(Fault::BitRot, 20_000),
            Some(Damage::LostWrite) => plan = plan.with(Fault::LostWrite, 20_000),
            Some(Damage::MisdirectedWrite) => plan = plan.with(Fault::MisdirectedWrite, 20_000),
            Some(Damage::RotAtRest | Damage::LogRot) | None => {}
        }
        self.machine().set_faults(&plan);
        if self.setup.has_errors && self.prng.chance(2, 3) {
            self.plan_error();
        }
    }

    /// Arms one error of a device.
    fn plan_error(&mut self) {
        let (skipped, lane) = (self.prng.below(60), self.prng.below(u64::from(self.setup.lanes)));
        let disk = self.prng.below(self.machine().disks().len() as u64);
        let medium = self.machine().media[crate::setup::index(disk)].clone();
        let log = self.machine().logs[crate::setup::index(lane)].clone();
        self.excuse.stop = true;
        match self.prng.below(6) {
            0 => {
                medium.arm(Fault::ReadError, skipped / 2);
                self.excuse.read = true;
            }
            1 => medium.arm(Fault::WriteError, skipped),
            2 => {
                medium.arm(Fault::DeviceGone, skipped);
                self.excuse.read = true;
            }
            3 => medium.arm(Fault::NoSpace, skipped),
            4 => log.fail_persist_after(skipped / 2),
            _ => log.fail_read_after(skipped % 4),
        }
    }

    /// Ends the process, in order or not, and tells the model.
    fn end_process(&mut self, ending: Ending, in_order: bool) {
        let at_step = self.cluster.world.crashed();
        let had_work = !self.flying.is_empty() || self.order.is_some();
        let (is_recovering, is_process) = (self.is_recovering, ending == Ending::Kill);
        // Clients go with the node: their ends are closed before anything else happens.
        self.sessions.iter_mut().for_each(|session| *session = None);
        self.node = None;
        let lands = at_step && self.lands_at_step;
        if lands {
            // Then the crash is no end of the world: what was not durable can become so.
            self.cluster.world.recover();
        }
        let mut prng = self.prng.fork();
        if self.setup.weakness == Some(Weakness::WholeLog) {
            self.machine().logs.iter().for_each(LogMedium::land_all);
        }
        let before = self.log_images(ending);
        if is_process {
            self.machine().process_kill(&mut prng)
        } else {
            self.machine().power_cut(&mut prng)
        }
        self.cluster.world.recover();
        let loss = self.lose_log(before, ending, &mut prng);
        self.machine().renew_log();
        if in_order {
            self.model.stopped();
        } else {
            self.model.crash(loss);
            let class = if is_process { Class::Kill } else { Class::PowerCut };
            self.tally.count(class, had_work);
            if at_step {
                self.tally.count(if lands { Class::StepLanding } else { Class::StepCrash }, had_work);
            }
            if is_recovering {
                self.tally.count(Class::CrashInRecovery, true);
            }
            if let Some((order, _)) = self.order.take()
                && order.is_lasting()
            {
                if matches!(order, Order::Grow) {
                    let is_written =
                        self.machine().media.last().is_some_and(|spare| !spare.written_blocks().is_empty());
                    self.tally.count(Class::CrashInGrowth, is_written);
                }
                self.uncertain = Some(order);
            }
        }
        for (id, flying) in std::mem::take(&mut self.flying) {
            self.reserving.iter_mut().for_each(|reserving| reserving.lose(id, flying.volume));
        }
        self.order = None;
        self.machine().heal();
        self.settle_clock();
    }

    /// A little time passes while nothing runs.
    fn settle_clock(&self) {
        Agenda::new(&self.cluster.world).turn(Wait::No);
    }

    /// What the log held at the start of the life, where a power cut can bring it back.
    fn log_images(&self, ending: Ending) -> Vec<Vec<u8>> {
        let is_lost = ending == Ending::PowerCut && self.setup.durability == twinlog_device::DurabilityClass::Process;
        if is_lost { self.machine().logs.iter().map(|log| log.image()).collect() } else { Vec::new() }
    }

    /// Takes from a log what does not outlive the crash.
    fn lose_log(&mut self, images: Vec<Vec<u8>>, ending: Ending, prng: &mut Prng) -> Loss {
        use twinlog_device::DurabilityClass;
        match (self.setup.durability, ending) {
            (DurabilityClass::Durable, _) | (DurabilityClass::Process, Ending::Kill) => Loss::Unanswered,
            (DurabilityClass::Volatile, _) => {
                self.tally.count(Class::LogNotKept, !self.flying.is_empty() || self.figures.answered_changes > 0);
                Loss::NotLasting
            }
            (DurabilityClass::Process, _) => {
                let mut has_lost = false;
                for (log, mut image) in self.machine().logs.iter().zip(images) {
                    // Pages that the kernel had not written are as they were made: zeroes, or an older lap.
                    for page in image.chunks_mut(4096).skip(1) {
                        if prng.chance(1, 2) {
                            has_lost |= page.iter().any(|&byte| byte != 0);
                            page.fill(0);
                        }
                    }
                    log.restore(&image);
                }
                self.excuse.hole |= has_lost;
                self.tally.count(Class::LogNotKept, has_lost);
                Loss::NotLasting
            }
        }
    }

    /// Everything heals, and everything must work.
    fn last_life(&mut self) -> Result<(), Violation> {
        self.figures.lives += 2;
        self.excuse.read = false;
        self.excuse.stop = false;
        self.turns_left = u64::MAX;
        let halt = self.end_well();
        match halt {
            Err(Halt::Found(violation)) => return Err(violation),
            Err(Halt::Crash) => unreachable!("no crash is planned"),
            Err(Halt::Stopped(reason)) => {
                self.note(|_| format!("the pool has stopped: {reason}"));
                self.figures.refused_for_damage += 1;
            }
            Ok(()) => {}
        }
        self.end_process(Ending::Kill, false);
        Ok(())
    }

    fn end_well(&mut self) -> Result<(), Halt> {
        self.recover()?;
        self.work(4)?;
        self.finish_requests()?;
        if self.setup.fills_pool && !self.is_damaged() {
            self.empty_and_use_again()?;
        }
        self.checkpoint()?;
        self.check_pool()?;
        self.stop()?;
        let is_weak = self.setup.weakness == Some(Weakness::NoPowerCut);
        self.end_process(if is_weak { Ending::Kill } else { Ending::PowerCut }, true);
        self.recover()
    }
}
