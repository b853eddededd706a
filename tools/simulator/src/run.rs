//! Many histories: seeds, threads, panics as findings, and the sum of everything.

use crate::{
    fault::Tally,
    history::{self, Figures, Oracle, Outcome, Violation, Watch},
    pair,
};
use anyhow::ensure;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};
use twinlog::base::checksum;

/// The distance between the seeds of consecutive histories: the golden ratio, so that all of them differ in many bits.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

thread_local! {
    /// What the last panic of this thread said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of histories for their report, instead of printing them.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("a panic without words");
        PANIC.with(|panic| *panic.borrow_mut() = format!("{place}: {text}"));
    }));
}

/// The seed that a person gave: a number, or any other text, such as a commit's hash.
#[must_use]
pub fn parse_seed(text: &str) -> u64 {
    let hexadecimal = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    hexadecimal.or_else(|| text.parse().ok()).unwrap_or_else(|| checksum(0, text.as_bytes()))
}

/// The seed of history `index` of a run; that of history 0 is the run's.
#[must_use]
pub fn seed_of(run: u64, index: u64) -> u64 {
    run.wrapping_add(index.wrapping_mul(SEED_STEP))
}

/// What is simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One node and its disks.
    #[default]
    Node,
    /// A pair.
    Pair,
    /// A pair, and hosts that go from one node to the other.
    Hosts,
}

impl Mode {
    /// Runs one history; a panic is a violation.
    #[must_use]
    pub fn run_one(self, seed: u64, watch: Watch) -> Outcome {
        guarded(seed, || match self {
            Self::Node => history::run(seed, watch),
            Self::Pair => pair::run(seed, watch),
            Self::Hosts => pair::hosts::run(seed, watch),
        })
    }

    fn tally(self) -> Tally {
        match self {
            Self::Node => Tally::default(),
            Self::Pair => pair::tally(),
            Self::Hosts => pair::hosts::tally(),
        }
    }
}

/// Runs `body`, the history of `seed`; a panic is a violation.
pub fn guarded(seed: u64, body: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Outcome {
        seed,
        violation: Some(Violation { oracle: Oracle::Assertion, what: PANIC.with(|panic| panic.borrow().clone()) }),
        figures: Figures::default(),
        tally: Tally::of(std::iter::empty()),
        digest: 0,
    })
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of what.
    pub mode: Mode,
    /// The first history's seed.
    pub seed: u64,
    /// Histories.
    pub histories: u64,
    /// Threads.
    pub jobs: usize,
    /// Run each history twice and compare.
    pub twice: bool,
}

/// The sum of a run, or of as much of it as is done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this structure.
    pub schema_version: u32,
    /// What was run: the commit that it was built from.
    pub commit: String,
    /// Of what.
    pub mode: Mode,
    /// The run's seed.
    pub seed: u64,
    /// Whether every history was run twice.
    pub twice: bool,
    /// Histories that were run: the first so many of the run.
    pub histories: u64,
    /// Those with a violation.
    pub failures: Vec<Failure>,
    /// Seconds.
    pub seconds: f64,
    /// Seconds of processors, of all threads.
    pub cpu_seconds: f64,
    /// Histories per second, of all threads.
    pub histories_per_second: f64,
    /// Histories per second of one processor.
    pub histories_per_cpu_second: f64,
    /// What the histories did.
    pub figures: Figures,
    /// Faults by class.
    pub faults: Tally,
    /// Classes that never mattered.
    #[serde(skip_deserializing)]
    pub idle_classes: Vec<&'static str>,
}

/// A history with a violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Of what.
    pub mode: Mode,
    /// Its seed.
    pub seed: u64,
    /// Who found it.
    pub oracle: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "FAILED {}: {}", self.oracle, self.what)?;
        let flag = match self.mode {
            Mode::Node => "",
            Mode::Pair => " --pair",
            Mode::Hosts => " --hosts",
        };
        write!(formatter, "  repeat: cargo simulator{flag} --histories 1 --seed {:#x} --trace", self.seed)
    }
}

/// Version of [`Summary`].
const SCHEMA_VERSION: u32 = 3;

/// Failures after which a run gives up: what breaks a few histories must not keep the others from being counted, and what breaks most
/// of them is known by then.
const FAILURES_MAX: usize = 100;

impl Summary {
    /// Nothing is done of `plan`.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let commit = twinlog::COMMIT.to_owned();
        let Plan { mode, seed, twice, .. } = *plan;
        let faults = mode.tally();
        Self { schema_version: SCHEMA_VERSION, commit, mode, seed, twice, faults, ..Self::default() }
    }

    /// Whether `plan` can go on from here.
    ///
    /// # Errors
    /// What differs.
    pub fn must_be_of(&self, plan: &Plan) -> anyhow::Result<()> {
        ensure!(self.schema_version == SCHEMA_VERSION, "it is of another version of this program");
        let commit = twinlog::COMMIT;
        ensure!(self.commit == commit, "it is of commit {}, and this program of {commit}", self.commit);
        ensure!(self.mode == plan.mode, "the two are of different kinds of histories");
        ensure!(self.seed == plan.seed, "it is of seed {:#x}, not {:#x}", self.seed, plan.seed);
        ensure!(self.twice == plan.twice, "one of the two runs every history twice");
        Ok(())
    }

    /// Whether so many histories failed that no more are run.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.failures.len() >= FAILURES_MAX
    }

    fn take(&mut self, outcome: Outcome, is_same: bool) {
        self.histories += 1;
        self.figures.add(&outcome.figures);
        self.faults.add(&outcome.tally);
        let (mode, seed) = (self.mode, outcome.seed);
        if let Some(Violation { oracle, what }) = outcome.violation {
            self.failures.push(Failure { mode, seed, oracle: oracle.to_string(), what });
        }
        if !is_same {
            let what = "two runs of the same seed differ".to_owned();
            self.failures.push(Failure { mode, seed, oracle: "determinism".to_owned(), what });
        }
    }

    /// Fills in what follows from the rest, when a run that began with `before` has lasted so long.
    fn sum_up(&mut self, before: &Self, seconds: f64, cpu_seconds: f64) {
        self.seconds = before.seconds + seconds;
        self.cpu_seconds = before.cpu_seconds + cpu_seconds;
        self.histories_per_second = self.histories as f64 / self.seconds.max(1e-9);
        self.histories_per_cpu_second = self.histories as f64 / self.cpu_seconds.max(1e-9);
        self.idle_classes = self.faults.idle();
    }
}

/// A history that has been run, with its index.
type Finished = (u64, Outcome, bool);

/// Runs what is left of a plan after `before`. `tell` hears the sum whenever a history joins it: always in their order, so a sum is that of
/// the first so many histories, and nothing is lost or doubled by whoever goes on from it.
pub fn run(plan: &Plan, before: &Summary, mut tell: impl FnMut(&Summary)) -> Summary {
    let (started, cpu_before) = (now(), cpu_seconds());
    let (next, enough) = (AtomicU64::new(before.histories), AtomicBool::new(false));
    let mut summary = before.clone();
    std::thread::scope(|scope| {
        let (sender, outcomes) = mpsc::sync_channel::<Finished>(1024);
        for _ in 0..plan.jobs {
            let (sender, next, enough) = (sender.clone(), &next, &enough);
            #[cfg(feature = "planted-bugs")]
            let bug = twinlog::base::planted::chosen();
            scope.spawn(move || {
                #[cfg(feature = "planted-bugs")]
                twinlog::base::planted::choose(bug);
                work(plan, next, enough, &sender);
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        for (index, outcome, is_same) in outcomes {
            early.insert(index, (outcome, is_same));
            while !summary.gave_up()
                && let Some((outcome, is_same)) = early.remove(&summary.histories)
            {
                summary.take(outcome, is_same);
                summary.sum_up(before, started.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
                tell(&summary);
            }
            enough.store(summary.gave_up(), Ordering::Relaxed);
        }
    });
    summary.sum_up(before, started.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
    summary
}

/// One thread of a run.
fn work(plan: &Plan, next: &AtomicU64, enough: &AtomicBool, finished: &mpsc::SyncSender<Finished>) {
    while !enough.load(Ordering::Relaxed) {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= plan.histories {
            break;
        }
        let seed = seed_of(plan.seed, index);
        let watch = if plan.twice { Watch::Digest } else { Watch::Verdict };
        let outcome = plan.mode.run_one(seed, watch);
        let is_same = !plan.twice || plan.mode.run_one(seed, watch).digest == outcome.digest;
        if finished.send((index, outcome, is_same)).is_err() {
            break;
        }
    }
}

/// Seconds that this process has had of processors.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("asked for as the manual says");
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// The real time.
#[expect(clippy::disallowed_methods, reason = "the rate of histories is real time")]
pub fn now() -> Instant {
    Instant::now()
}
