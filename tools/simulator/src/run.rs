//! Many histories: seeds, threads, panics as findings, and the sum of everything.

use crate::{
    fault::Tally,
    history::{self, Figures, Oracle, Outcome, Violation},
};
use serde::Serialize;
use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
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

/// Runs one history; a panic is a violation.
#[must_use]
pub fn run_one(seed: u64, is_traced: bool) -> Outcome {
    guarded(seed, || history::run(seed, is_traced))
}

/// Runs `body`, the history of `seed`; a panic is a violation.
pub fn guarded(seed: u64, body: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Outcome {
        seed,
        violation: Some(Violation { oracle: Oracle::Assertion, what: PANIC.with(|panic| panic.borrow().clone()) }),
        figures: Figures::default(),
        tally: Tally::default(),
        digest: 0,
    })
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first history's seed.
    pub seed: u64,
    /// Histories.
    pub histories: u64,
    /// Threads.
    pub jobs: usize,
    /// Run each history twice and compare.
    pub twice: bool,
}

/// The sum of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Version of this structure.
    pub schema_version: u32,
    /// The run's seed.
    pub seed: u64,
    /// Histories that were run.
    pub histories: u64,
    /// Of these, with a violation.
    pub failures: Vec<Failure>,
    /// Seconds.
    pub seconds: f64,
    /// Histories per second, of all threads.
    pub histories_per_second: f64,
    /// What the histories did.
    pub figures: Figures,
    /// Faults by class.
    pub faults: Tally,
    /// Classes that never mattered.
    pub idle_classes: Vec<&'static str>,
}

/// A history with a violation.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Who found it.
    pub oracle: String,
    /// What.
    pub what: String,
}

/// Failures after which a run gives up.
const FAILURES_MAX: usize = 20;

/// Runs a plan; `tell` hears the number of histories done, now and then.
pub fn run(plan: Plan, mut tell: impl FnMut(u64, Duration)) -> Summary {
    let started = now();
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut summary = Summary { schema_version: 1, seed: plan.seed, ..Summary::default() };
    std::thread::scope(|scope| {
        let (sender, outcomes) = mpsc::sync_channel::<(Outcome, bool)>(1024);
        for _ in 0..plan.jobs {
            let (sender, next, enough) = (sender.clone(), &next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= plan.histories {
                        break;
                    }
                    let seed = seed_of(plan.seed, index);
                    let outcome = run_one(seed, false);
                    let is_same = !plan.twice || run_one(seed, false).digest == outcome.digest;
                    if sender.send((outcome, is_same)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (outcome, is_same) in outcomes {
            take(&mut summary, outcome, is_same);
            if summary.failures.len() >= FAILURES_MAX {
                enough.store(true, Ordering::Relaxed);
            }
            if summary.histories.is_multiple_of(1000) {
                tell(summary.histories, started.elapsed());
            }
        }
    });
    summary.seconds = started.elapsed().as_secs_f64();
    summary.histories_per_second = summary.histories as f64 / summary.seconds.max(1e-9);
    summary.idle_classes = summary.faults.idle();
    summary
}

fn take(summary: &mut Summary, outcome: Outcome, is_same: bool) {
    summary.histories += 1;
    summary.figures.add(&outcome.figures);
    summary.faults.add(&outcome.tally);
    let seed = outcome.seed;
    if let Some(Violation { oracle, what }) = outcome.violation {
        summary.failures.push(Failure { seed, oracle: oracle.to_string(), what });
    }
    if !is_same {
        let what = "two runs of the same seed differ".to_owned();
        summary.failures.push(Failure { seed, oracle: "determinism".to_owned(), what });
    }
}

#[expect(clippy::disallowed_methods, reason = "the rate of histories is real time")]
fn now() -> Instant {
    Instant::now()
}
