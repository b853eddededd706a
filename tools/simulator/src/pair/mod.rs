//! The pair in one thread: two nodes of the parts that ship, with real interconnect sessions over a simulated network, shared disks, a log
//! of each pool at each node, an arbiter and fences that fail; clients that follow whoever serves; and oracles outside of it all.
//!
//! # Life cycle
//!
//! ```text
//! new site --> start both --> safety: something goes wrong, again and again --> heal everything --> liveness: both pools are served at
//!                             while clients work; after every opening of a                          home, in step; a node dies, the other
//!                             pool every byte is read and the pool is checked                       serves both; everything is verified
//! ```
//!
//! # Invariants
//!
//! 1. Everything is drawn from the seed; two runs of one seed are the same to the last byte.
//! 2. The oracles use nothing of the nodes but their answers, which engines exist, and the registers as the arbiter has them.
//! 3. What one pool's clients were answered is there after every opening, by whichever node, and what was read once never vanishes.
//! 4. Two nodes never have a pool open at the same time, unless one of them has lost the reservation of its disk; only the node that the register names answers, and not after its lease has ended.

mod aim;
mod ambush;
mod arbiter;
#[cfg(feature = "planted-bugs")]
pub mod bugs;
mod clients;
mod fence;
mod forced;
mod hardware;
mod held;
pub mod hosts;
mod judge;
mod lease;
mod lines;
#[cfg(test)]
mod named;
mod namespaces;
mod opener;
mod setup;
mod site;
mod trouble;
mod watch;

use crate::{
    exchanging::Exchanging,
    fault::Tally,
    history::{self, Figures, Oracle, Outcome, Violation},
    reserving::Reserving,
};
use ambush::{Ambush, Moment};
use arbiter::Reach;
use crossbeam_channel::Receiver;
use fence::Blow;
use forced::Forced;
use held::Rot;
use lines::Story;
use setup::{FenceKind, PairSetup, Trouble};
use site::{NAMES, Process, Site, pool_id, slot_of};
use std::time::Duration;
use twinlog::{
    cp::mirroring::MirrorProgress,
    format::register::{MirrorState, Side},
    node::{
        admin::{AdminReply, AdminRequest},
        pools::PoolSlot,
    },
};
use twinlog_device::{Nanos, Prng, Wait};
use twinlog_sim::Agenda;
use watch::{Phase, Watch};

/// Turns in which everything that waits for nothing but time must have come.
const PATIENCE_TURNS: u64 = 60_000;
/// Turns in which the steps of an aim come about, or will not.
const AIM_TURNS: u64 = 15_000;
/// A request that was under way for so many detection times in which all was well has been forgotten: twice what a mirror that stands still costs.
const PATIENCE_FACTOR: u32 = 30;

/// How the names of the classes begin that are lines of the failure table in `docs/pair.md`.
pub const LINE: &str = "line: ";

fn found(oracle: Oracle, what: impl Into<String>) -> Violation {
    Violation { oracle, what: what.into() }
}

/// A history being run.
pub struct History {
    setup: PairSetup,
    /// In half of the histories.
    exchanging: Option<Exchanging>,
    site: Site,
    prng: Prng,
    processes: [Option<Process>; 2],
    is_paused: [bool; 2],
    paused_at: [Nanos; 2],
    /// Since when the liveness phase has found everything as it should be.
    well_since: Option<Nanos>,
    /// Whether an operator starts a node that is down.
    may_start: [bool; 2],
    pools: [Watch; 2],
    stories: [Story; 2],
    /// What an operator waits to hear of each node.
    looks: [Option<Receiver<AdminReply>>; 2],
    /// Trouble that waits for its moment.
    ambush: Option<Ambush>,
    /// From which turn on a supervisor starts each node again.
    returns: [Option<u64>; 2],
    /// A forced takeover in the making.
    forced: Option<Forced>,
    /// What has rotted of each pool.
    rots: [Option<Rot>; 2],
    /// Everything has healed for good.
    is_ending: bool,
    next_id: u64,
    /// Clients ask for nothing new.
    is_resting: bool,
    /// The interconnect is slow, loses packets, or breaks again and again.
    is_slow: bool,
    /// Disks and logs are as they should be.
    is_well: bool,
    /// The time that each node knew of in its last turn, and in the one before.
    clocks: [[Nanos; 2]; 2],
    tally: Tally,
    figures: Figures,
    digest: u64,
    has_digest: bool,
    is_traced: bool,
}

/// Names of everything that is counted.
#[must_use]
pub fn tally() -> Tally {
    Tally::of(lines::ALL.into_iter())
}

/// Runs the history of `seed`.
#[must_use]
pub fn run(seed: u64, watch: history::Watch) -> Outcome {
    let mut prng = Prng::new(seed);
    let setup = PairSetup::draw(&mut prng);
    let mut history = History::new(seed, setup, watch);
    let result = history.all();
    history.outcome(seed, result)
}

impl History {
    fn new(seed: u64, setup: PairSetup, watch: history::Watch) -> Self {
        let site = Site::new(seed, &setup);
        let answers_last = !setup.troubles.contains(&Trouble::Forced);
        let hosts = |pool| setup.has_hosts().then(|| Reserving::draw(seed ^ pool)).flatten();
        let pools = [0, 1].map(|pool| Watch::new(answers_last, hosts(pool)));
        let history = Self {
            exchanging: Exchanging::draw(seed),
            prng: Prng::new(seed ^ 0x5EED),
            setup,
            site,
            processes: [None, None],
            is_paused: [false; 2],
            paused_at: [Nanos(0); 2],
            well_since: None,
            may_start: [true; 2],
            pools,
            stories: [Story::default(); 2],
            looks: [None, None],
            ambush: None,
            returns: [None, None],
            forced: None,
            rots: [None, None],
            is_ending: false,
            next_id: 0,
            is_resting: false,
            is_slow: false,
            is_well: true,
            clocks: [[Nanos(0); 2]; 2],
            tally: tally(),
            figures: Figures::default(),
            digest: 0,
            has_digest: watch != history::Watch::Verdict,
            is_traced: watch == history::Watch::Trace,
        };
        history.note(|history| format!("{:?}", history.setup));
        history
    }

    fn outcome(mut self, seed: u64, result: Result<(), Violation>) -> Outcome {
        self.figures.verified_bytes = self.pools.iter().map(|pool| pool.model.verified_bytes).sum();
        self.count_world();
        let world = &self.site.world;
        let media = if self.has_digest { self.site.digest() } else { 0 };
        let end = media ^ world.now().0 ^ world.steps() << 20;
        Outcome { seed, violation: result.err(), digest: self.digest ^ end, figures: self.figures, tally: self.tally }
    }

    fn note(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            println!("{:>12} {}", self.site.world.now().0, line(self));
        }
    }

    fn all(&mut self) -> Result<(), Violation> {
        self.start(0);
        self.start(1);
        if self.prng.chance(7, 8) {
            self.until("both pools are served at home, in step", Self::is_converged)?;
        }
        for _ in 0..self.setup.events {
            if self.prng.chance(1, 3) {
                self.rest()?;
            }
            // Now and then one thing comes on top of the other.
            let turns_max = if self.prng.chance(1, 3) { 20 } else { self.setup.gap_turns };
            for _ in 0..self.prng.between(1, turns_max) {
                self.turn()?;
            }
            self.something_goes_wrong();
            self.wait_for_aim()?;
        }
        let turns = self.prng.between(1, self.setup.gap_turns);
        for _ in 0..turns {
            self.turn()?;
        }
        while self.forced.is_some_and(Forced::is_alone) {
            self.turn()?;
        }
        self.end_well()
    }

    /// Clients rest for a while: what is under way comes to its end, which takes time and few turns.
    fn rest(&mut self) -> Result<(), Violation> {
        let until = self.site.world.now() + self.within(6);
        while self.site.world.now() < until {
            self.turn_with(false)?;
        }
        Ok(())
    }

    /// Until the steps of its aim are done, or are no use any more.
    fn wait_for_aim(&mut self) -> Result<(), Violation> {
        let until = self.figures.turns + AIM_TURNS;
        while self.setup.aim.is_some() && self.ambush.is_some() && self.figures.turns < until {
            self.turn()?;
        }
        Ok(())
    }

    /// Everything heals, and everything must work.
    fn end_well(&mut self) -> Result<(), Violation> {
        self.is_ending = true;
        self.heal();
        self.until("all is healed, and both pools are served at home, in step", Self::is_converged)?;
        while self.take_everything_up()? {
            self.until("what was given up is served at home again, in step", Self::is_converged)?;
        }
        let node = crate::setup::index(self.prng.below(2));
        self.may_start[node] = false;
        if self.prng.chance(1, 3) {
            // It stands still before it ends, so that fences may fail first.
            self.pause(node, true);
            let until = self.site.world.now() + self.setup.detection * 3;
            while self.site.world.now() < until {
                self.turn_with(true)?;
            }
        }
        self.die(node, false);
        let other = 1 - node;
        self.until("one node is left, and serves both pools", |history| {
            history.pools.iter().all(|pool| pool.server == Some(other) && pool.is_at_rest())
        })?;
        if self.prng.chance(3, 4) {
            // How a pair comes home again is seen before, too: it takes an eighth of the time, and finds one bug of 25.
            return Ok(());
        }
        self.may_start[node] = true;
        self.until("both nodes run again, and both pools are served at home, in step", Self::is_converged)
    }

    /// Whether everything is as it should be, and has been for longer than a node may not know yet what its partner lacks, or that a mirror was lost.
    fn is_converged(&mut self) -> bool {
        let now = self.site.world.now();
        let is_well =
            (0..2).all(|pool| self.is_well_at_home(pool) && !self.site.desk.borrow().is_changing(pool_id(pool)));
        if !is_well {
            self.well_since = None;
        }
        let is_settled = is_well && now.since(*self.well_since.get_or_insert(now)) >= self.setup.detection * 2;
        is_settled && self.pools.iter().all(Watch::is_at_rest) && self.rots.iter().all(Option::is_none)
    }

    /// Whether it is served at home and its log is in step.
    fn is_well_at_home(&self, pool: usize) -> bool {
        if self.pools[pool].server != Some(pool) || self.pools[pool].phase != Phase::Working {
            return false;
        }
        let desk = self.site.desk.borrow();
        let is_registered = desk
            .registers
            .get(&pool_id(pool))
            .is_some_and(|register| register.owner == Side::Home && matches!(register.mirror, MirrorState::InSync(_)));
        let engine = self.processes[pool].as_ref().and_then(|process| process.node.reactor(0));
        let engine = engine.and_then(|reactor| reactor.pools().engine(PoolSlot::Home));
        let is_mirrored = engine.is_some_and(|engine| engine.mirror_progress() == Some(&MirrorProgress::InStep));
        is_registered && is_mirrored
    }

    /// Turns until `done`, which must be soon. Clients work on for a while, and an operator looks after both nodes.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), Violation> {
        let began = self.site.world.now();
        let time = self.setup.detection * 300;
        let mut turns = 0;
        let mut is_resting = false;
        self.well_since = None;
        while !done(self) {
            turns += 1;
            // Clients stop after a while, so that what is to come to rest does.
            is_resting |= turns > 150;
            self.turn_with(!is_resting)?;
            if turns % 500 == 0 {
                self.look_after();
            }
            if turns > PATIENCE_TURNS && self.site.world.now().since(began) > time {
                return Err(found(Oracle::Liveness, format!("it takes for ever until {what}: {}", self.describe())));
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Violation> {
        if self.setup.is_hasty && self.figures.turns.is_multiple_of(64) {
            self.order_home();
        }
        self.turn_with(!self.is_resting)
    }

    /// One turn of everything; what is answered goes to the models.
    fn turn_with(&mut self, works: bool) -> Result<(), Violation> {
        self.figures.turns += 1;
        self.look_at_requests();
        self.wait_in_ambush();
        self.site.desk.borrow_mut().step();
        self.take_disks()?;
        while let Some(blow) = self.next_blow() {
            self.strike(blow);
        }
        self.look_at_registers()?;
        self.wait_in_ambush();
        self.look_at_forced();
        let first = crate::setup::index(self.prng.below(2));
        let mut is_any = false;
        for node in [first, 1 - first] {
            if self.is_paused[node] {
                continue;
            }
            let Some(process) = &mut self.processes[node] else { continue };
            let now = self.site.world.now();
            let Some(clock) = process.poll(&mut self.prng) else { continue };
            let is_overdue = process.is_overdue(now);
            self.clocks[node] = [clock, self.clocks[node][0]];
            is_any = true;
            if is_overdue {
                self.tell(lines::OVERDUE, true);
                self.restart(node);
                continue;
            }
            if self.site.world.crashed() {
                self.die(node, false);
                self.site.world.recover();
                continue;
            }
            self.collect(node)?;
            self.follow(node)?;
        }
        if !is_any {
            // Time passes although nobody has anything to do.
            Agenda::new(&self.site.world).turn(Wait::UpTo(Duration::from_micros(50)));
        }
        for pool in 0..2 {
            self.look_for_calm(pool);
            self.look_at_rot(pool)?;
            self.lead(pool, works)?;
            self.look_for_waiting(pool)?;
        }
        Ok(())
    }

    /// Nothing waits for long while all is well.
    fn look_for_waiting(&self, pool: usize) -> Result<(), Violation> {
        let (watch, now) = (&self.pools[pool], self.site.world.now());
        let patience = self.setup.detection * PATIENCE_FACTOR;
        if now.since(watch.calm_since) < patience {
            return Ok(());
        }
        match watch.flying.values().find(|flying| now.since(flying.since) >= patience) {
            Some(flying) => {
                let (name, ask) = (NAMES[pool], &flying.ask);
                Err(found(
                    Oracle::Liveness,
                    format!("pool {name}: {ask:?} waits, and all has been well for {patience:?}"),
                ))
            }
            None => Ok(()),
        }
    }

    /// Whether nothing keeps requests at either node from the one that serves.
    fn look_for_calm(&mut self, pool: usize) {
        let is_calm = self.pools[pool].server.is_some()
            && self.processes.iter().all(Option::is_some)
            && self.is_paused == [false; 2]
            && !self.is_slow
            && self.is_well
            && !self.is_cut()
            && self.site.desk.borrow().reach == [Reach::Good; 2];
        if !is_calm {
            self.pools[pool].calm_since = self.site.world.now();
        }
    }

    fn next_blow(&self) -> Option<Blow> {
        self.site.fences.borrow_mut().step()
    }

    /// A fence does what it does.
    fn strike(&mut self, blow: Blow) {
        self.note(|_| format!("{} is fenced: {:?}", NAMES[blow.victim], blow.kind));
        self.tell(lines::FENCED, true);
        if blow.kind == FenceKind::PowerOff {
            self.die(blow.victim, true);
        }
    }

    fn start(&mut self, node: usize) {
        self.note(|_| format!("{} starts", NAMES[node]));
        self.figures.lives += 1;
        self.processes[node] = Some(self.site.start(node));
    }

    /// A process ends, with its machine if `is_dark`.
    fn die(&mut self, node: usize, is_dark: bool) {
        let Some(process) = self.processes[node].take() else { return };
        self.note(|_| format!("{} {}", NAMES[node], if is_dark { "goes dark" } else { "is killed" }));
        let has_work = self.pools.iter().any(|pool| !pool.flying.is_empty());
        self.tell(if is_dark { lines::POWER } else { lines::KILL }, has_work);
        self.tell_death(node, is_dark);
        if is_dark {
            process.go_dark();
        }
        drop(process);
        self.forget_forced(node);
        self.is_paused[node] = false;
        let mut prng = self.prng.fork();
        let is_alone = [0, 1].map(|pool| !self.pools[pool].open_at[1 - node]);
        self.site.end_process((node, is_dark), is_alone, &mut prng);
        for pool in 0..2 {
            self.pools[pool].open_at[node] = false;
            if self.pools[pool].server == Some(node) {
                self.pools[pool].end();
            }
            self.pools[pool].lose_clients(node);
        }
    }

    /// What has become of the pools at a node.
    fn follow(&mut self, node: usize) -> Result<(), Violation> {
        for (pool, name) in NAMES.into_iter().enumerate() {
            let slot = slot_of(node, pool);
            let Some(process) = &self.processes[node] else { return Ok(()) };
            let count = process.node.reactor_count();
            let engine =
                |reactor: usize| process.node.reactor(reactor).and_then(|reactor| reactor.pools().engine(slot));
            let is_open = (0..count).any(|reactor| engine(reactor).is_some());
            let has_first = engine(0).is_some();
            let serves =
                |reactor: usize| engine(reactor).is_some_and(|engine| engine.is_serving() && !engine.is_closing());
            let is_serving = (0..count).all(serves);
            let has_lost = [0, 1].map(|node| self.has_lost_disk(pool, node));
            let watch = &mut self.pools[pool];
            let was_open = std::mem::replace(&mut watch.open_at[node], is_open);
            if was_open && !is_open {
                watch.part(node);
            }
            if is_open && watch.open_at[1 - node] {
                if has_lost[0] == has_lost[1] {
                    return Err(found(Oracle::TwoOwners, format!("both nodes have pool {name} open")));
                }
                // Who has lost the disk stands still, or closes the pool.
                if watch.server.is_some_and(|server| has_lost[server]) {
                    watch.end();
                }
            }
            if is_open && !was_open {
                let portion = self.site.portion_at_rest(node, pool);
                self.pools[pool].used.extend(portion);
                self.moment(pool, Moment::Opens);
            }
            let watch = &mut self.pools[pool];
            if watch.server == Some(node) && !has_first {
                watch.end();
                self.note(|_| format!("{} has closed pool {name}", NAMES[node]));
                self.tell_close(node);
            } else if watch.server.is_none() && is_serving && !has_lost[node] {
                self.note(|_| format!("{} serves pool {name}", NAMES[node]));
                self.tell_service(pool, node);
                self.begin_service(pool, node)?;
                self.moment(pool, Moment::Serves);
            }
        }
        Ok(())
    }

    /// An operator starts what was fenced, and gives back what is served away from home where nobody else does.
    fn look_after(&mut self) {
        for pool in 0..2 {
            self.operate(pool);
            if self.processes[pool].is_none() && self.may_start[pool] {
                self.start(pool);
            }
        }
        if !self.setup.gives_back {
            self.order_home();
        }
    }

    /// An operator gives back what is served away from home.
    fn order_home(&mut self) {
        for pool in 0..2 {
            if self.pools[pool].server == Some(1 - pool)
                && let Some(process) = &self.processes[1 - pool]
            {
                // The answer comes when it comes; what counts is where the pool is served.
                let _answer = process.node.call(AdminRequest::PairGiveback { pool: None });
            }
        }
    }

    /// How everything stands, for a failure's report.
    fn describe(&mut self) -> String {
        let replies: Vec<_> = [0, 1]
            .map(|node| self.processes[node].as_ref().and_then(|process| process.node.call(AdminRequest::Status)))
            .into();
        for _ in 0..2000 {
            if self.turn_with(false).is_err() {
                break;
            }
        }
        let mut text = String::new();
        for (node, replies) in replies.into_iter().enumerate() {
            match replies.and_then(|replies| replies.try_recv().ok()) {
                Some(AdminReply::Status(status)) => {
                    let pools = status.pair.map(|pair| pair.pools).unwrap_or_default();
                    let rows: Vec<_> = pools
                        .iter()
                        .map(|pool| format!("{}: {} ({}; {})", pool.name, pool.row, pool.open, pool.trouble))
                        .collect();
                    text += &format!("{} [{}] ", NAMES[node], rows.join(", "));
                }
                other => text += &format!("{} {other:?} ", NAMES[node]),
            }
        }
        for pool in &self.pools {
            let phase = match &pool.phase {
                Phase::Reading(left) => format!("reading, {} left", left.len()),
                phase => format!("{phase:?}"),
            };
            text += &format!(
                "(server {:?}, {phase}, {} in flight, order {}) ",
                pool.server,
                pool.flying.len(),
                pool.order.is_some()
            );
        }
        text
    }
}
