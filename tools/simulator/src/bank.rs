//! The bank: planted bugs of the engine, each of which some oracle must find; and weakened fault models, each of which must be noticed.

use crate::{
    history::{self, Violation, Watch},
    pair,
    run::{Mode, Plan, guarded, now, seed_of},
    setup::{Setup, Weakness},
};
use anyhow::{Context, ensure};
use serde::Serialize;
use std::{
    fmt::Write,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};
use twinlog::base::{Prng, planted};

/// Histories after which a weakened fault model must show in the counts.
const WEAK_HISTORIES: u64 = 2000;

/// A planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    /// Its name.
    pub name: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// Who finds it.
    pub finder: Finder,
}

/// Who finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// Histories, by any oracle.
    Histories,
    /// A test, as the engine around the bug hides it from every history, or nearly (`head-not-beyond-stale-records` showed after 25 402):
    /// what runs the test.
    Test(&'static str),
}

pub(crate) const fn bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what, finder: Finder::Histories }
}

/// A bug of the change log that the rest of the engine, or of the pair, makes up for.
pub(crate) const fn lane_bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what, finder: Finder::Test("cargo test --features planted-bugs --test changelog planted") }
}

/// A bug of the controller that the interconnect makes up for, or nearly.
pub(crate) const fn controller_bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what, finder: Finder::Test("cargo test --features planted-bugs --lib planted") }
}

/// A bug that breaks a requirement of `docs/claims.md` without harm to what histories compare.
pub(crate) const fn claims_bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what, finder: Finder::Test("cargo test --features planted-bugs --test claims planted") }
}

/// Every bug.
pub const BUGS: &[Bug] = &[
    bug("acknowledge-early", "a change is answered when it was appended, not when it is durable"),
    claims_bug("answers-wait-for-disks", "a change is answered when a consistency point contains it"),
    claims_bug("any-log-taken", "a lane is taken whose header names another pool"),
    bug("applied-too-far", "the superblock names a position beyond what it contains"),
    bug("cache-ignores-birth", "cached blocks are known by address only"),
    bug("checksum-not-verified", "a block is served whatever its checksum"),
    bug("commit-without-flush", "the superblock is written before what it reaches is durable"),
    bug("compare-not-done", "a compare-and-write does not compare"),
    bug("compared-when-it-comes", "a compare-and-write is compared before those in front of it are performed"),
    bug("cp-waiters-forgotten", "flushes that wait for a consistency point are not answered"),
    bug("delete-not-in-cp", "the object table keeps deleted volumes"),
    bug("discard-a-block-too-long", "a discard frees a block more"),
    bug("durable-before-persisted", "a position counts as durable when its persist begins"),
    bug("durable-inside-record", "a position in the middle of a record counts as durable"),
    bug("edge-not-merged", "the old bytes around an unaligned write are lost"),
    bug("flush-ignored", "a flush is answered like a change"),
    bug("forgets-offline-at-cp", "a consistency point does not say that a volume is offline"),
    bug("free-too-early", "blocks are used again one consistency point too early"),
    bug("frozen-before-active", "reads look at the older generation first"),
    bug("fua-ignored", "FUA is answered like any change"),
    lane_bug("head-not-beyond-stale-records", "a lane goes on where records of a torn tail may follow"),
    bug("held-records-dropped", "a volume that was offline comes back without what was held"),
    bug("hole-not-searched", "recovery does not look beyond the first damaged record"),
    bug("list-blocks-leak", "the blocks of the freed list are never freed"),
    bug("log-error-ignored", "a failed persist counts as done"),
    bug("mailbox-loses", "a message that finds a full mailbox is dropped"),
    bug("mark-forgotten", "a quiet lane does not prove its newest record"),
    claims_bug("no-block-descriptors", "the log holds whole blocks as requests"),
    bug("object-id-reused", "recovery forgets the ids of volumes made since the consistency point"),
    bug("offline-volume-answers", "a volume that is offline takes requests"),
    lane_bug("overwrite-in-flight", "the ring is written where a persist is under way"),
    bug("performs-later-records-of-an-offline-volume", "recovery holds only the records that it cannot perform"),
    bug("preemption-not-counted", "the generation stays when a host is preempted"),
    bug("read-unstable", "a read is answered before what it returns is durable"),
    bug("reap-leaks-nodes", "nodes of freed subtrees are never freed"),
    bug("record-body-not-checked", "a record is performed whatever its payload's checksum"),
    bug("record-position-not-compared", "a record of an earlier lap is taken for a new one"),
    bug("recovery-does-not-advance", "recovery's consistency point names the old position"),
    bug("replay-forgets-blocks", "recovery makes every volume in blocks of 4096 bytes"),
    bug("replay-skips-discards", "recovery does not perform discards"),
    bug("replay-skips-reservations", "recovery does not perform records of reservations"),
    bug("replies-lost-at-stop", "requests in flight are not answered when the pool stops"),
    bug("reservation-decided-for-anybody", "a command about a reservation is decided as one host's, whoever sends it"),
    bug("reservation-forgotten", "changes are admitted without space"),
    bug("reservation-not-enforced", "a reservation keeps nobody out"),
    bug("reservation-not-in-cp", "a reservation alone does not make a volume dirty"),
    bug("reservation-told-too-early", "a command about a reservation is answered before its record is durable"),
    bug("resize-keeps-tail", "shrinking frees nothing"),
    bug("resize-not-in-cp", "a new size alone does not make a volume dirty"),
    bug("space-waiters-forgotten", "changes that wait for space are dropped"),
    bug("status-ignores-changes", "block status shows new blocks as holes"),
    bug("superblock-volatile", "the superblock is left in the device's cache"),
    bug("superblocks-unordered", "open and commit do not wait for one superblock before they write the next"),
    bug("trim-everything", "the log is given back beyond the consistency point"),
    bug("unused-space-leaks", "places that a consistency point did not need stay in use"),
    bug("write-error-ignored", "a failed write counts as done"),
];

/// How a bug was found.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name, or that of the weakness.
    pub bug: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// Who found it; `None`: nobody.
    pub oracle: Option<String>,
    /// Histories that it took.
    pub histories: u64,
    /// Seconds that they took, on one thread.
    pub seconds: f64,
    /// The seed of the last one.
    pub seed: u64,
    /// What was found.
    pub finding: String,
}

/// Puts a bug in force for histories of this thread.
///
/// # Errors
/// There is no such bug.
pub fn choose(name: &str) -> anyhow::Result<()> {
    planted::choose(known(name)?.name);
    Ok(())
}

fn known(name: &str) -> anyhow::Result<Bug> {
    let mut all = BUGS.iter().chain(pair::bugs::BUGS).chain(pair::hosts::bugs::BUGS);
    all.find(|known| known.name == name).copied().with_context(|| format!("no planted bug is called {name}"))
}

/// One row of the bank to be.
#[derive(Clone, Copy)]
enum Task {
    Hunt(Bug),
    Weaken(Weakness),
}

/// Runs the whole bank, or one bug of it: each must be found within the histories of `plan`. `tell` hears each row when it is there.
///
/// # Errors
/// There is no such bug.
pub fn run(plan: Plan, only: Option<&str>, mut tell: impl FnMut(&Row)) -> anyhow::Result<Vec<Row>> {
    ensure!(plan.jobs > 0, "at least one thread is needed");
    let tasks: Vec<Task> = match only {
        // By name it is hunted even where a test finds it sooner.
        Some(name) => vec![Task::Hunt(Bug { finder: Finder::Histories, ..known(name)? })],
        None if plan.mode == Mode::Pair => pair::bugs::BUGS.iter().copied().map(Task::Hunt).collect(),
        None if plan.mode == Mode::Hosts => pair::hosts::bugs::BUGS.iter().copied().map(Task::Hunt).collect(),
        None => BUGS.iter().copied().map(Task::Hunt).chain(Weakness::ALL.map(Task::Weaken)).collect(),
    };
    let next = AtomicUsize::new(0);
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        let (sender, found) = mpsc::channel();
        for _ in 0..plan.jobs {
            let (sender, next, tasks) = (sender.clone(), &next, &tasks);
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(place) else { break };
                    let began = now();
                    let mut row = match *task {
                        Task::Hunt(bug) => hunt(plan, bug),
                        Task::Weaken(weakness) => weaken(plan.seed, weakness),
                    };
                    row.seconds = began.elapsed().as_secs_f64();
                    if sender.send((place, row)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        rows.extend(found.iter().inspect(|(_, row)| tell(row)));
    });
    rows.sort_by_key(|(place, _)| *place);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Runs histories with a bug in force until an oracle speaks.
fn hunt(Plan { mode, seed, histories, .. }: Plan, Bug { name, what, finder }: Bug) -> Row {
    let mut row = Row { bug: name, what, oracle: None, histories: 0, seconds: 0.0, seed, finding: String::new() };
    if let Finder::Test(command) = finder {
        (row.oracle, row.finding) = (Some("a test".to_owned()), command.to_owned());
        return row;
    }
    planted::choose(name);
    for index in 0..histories {
        row.histories = index + 1;
        row.seed = seed_of(seed, index);
        let outcome = mode.run_one(row.seed, Watch::Verdict);
        let Some(Violation { oracle, what }) = outcome.violation else { continue };
        planted::choose("");
        let is_clean = mode.run_one(row.seed, Watch::Verdict).violation.is_none();
        row.oracle = is_clean.then(|| oracle.to_string());
        row.finding = if is_clean { what } else { format!("this history fails without the bug too: {what}") };
        break;
    }
    planted::choose("");
    row
}

/// Runs histories with a weaker fault model until it is clear that some class does not matter any more.
fn weaken(seed: u64, weakness: Weakness) -> Row {
    planted::choose("");
    let mut tally = crate::fault::Tally::default();
    let (bug, what) = weakness.describe();
    let (histories, finding) = (WEAK_HISTORIES, String::new());
    let mut row = Row { bug, what, oracle: None, histories, seconds: 0.0, seed, finding };
    for index in 0..WEAK_HISTORIES {
        let seed = seed_of(seed, index);
        let mut prng = Prng::new(seed);
        let mut setup = Setup::draw(&mut prng);
        setup.weaken(weakness);
        let outcome = guarded(seed, || history::run_as(seed, setup, Watch::Verdict));
        tally.add(&outcome.tally);
    }
    let idle = tally.idle();
    let loud: Vec<&str> = weakness.silences().iter().copied().filter(|class| !idle.contains(class)).collect();
    row.oracle = loud.is_empty().then(|| "counts".to_owned());
    row.finding = if loud.is_empty() {
        format!("never mattered: {}", idle.join(", "))
    } else {
        format!("still mattered: {}", loud.join(", "))
    };
    row
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text =
        format!("{:<32} {:<24} {:>9} {:>8}  {}\n", "planted bug", "found by", "histories", "seconds", "what is wrong");
    for row in rows {
        let oracle = row.oracle.as_deref().unwrap_or("NOBODY");
        let Row { bug, histories, seconds, what, .. } = row;
        let _ = writeln!(text, "{bug:<32} {oracle:<24} {histories:>9} {seconds:>8.1}  {what}");
    }
    for Row { bug, finding, .. } in rows.iter().filter(|row| row.oracle.is_none()) {
        let _ = writeln!(text, "NOT FOUND: {bug}{}{finding}", if finding.is_empty() { "" } else { ": " });
    }
    let found = rows.iter().filter(|row| row.oracle.is_some()).count();
    let _ = writeln!(text, "{found} of {} found", rows.len());
    text
}
