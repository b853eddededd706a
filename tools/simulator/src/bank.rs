//! The bank: planted bugs of the engine, each of which some oracle must find; and weakened fault models, each of which must be noticed.

use crate::{
    history::{self, Violation},
    run::{guarded, seed_of},
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

/// Histories in which a bug must be found.
const HISTORIES_MAX: u64 = 30_000;
/// Histories after which a weakened fault model must show in the counts.
const WEAK_HISTORIES: u64 = 2000;

/// Bugs: name, and what is wrong.
pub const BUGS: [(&str, &str); 41] = [
    ("acknowledge-early", "a change is answered when it was appended, not when it is durable"),
    ("applied-too-far", "the superblock names a position beyond what it contains"),
    ("cache-ignores-birth", "cached blocks are known by address only"),
    ("checksum-not-verified", "a block is served whatever its checksum"),
    ("commit-without-flush", "the superblock is written before what it reaches is durable"),
    ("cp-contains-unstable", "a consistency point contains changes that are not durable in the log"),
    ("cp-waiters-forgotten", "flushes that wait for a consistency point are not answered"),
    ("delete-not-in-cp", "the object table keeps deleted volumes"),
    ("discard-a-block-too-long", "a discard frees a block more"),
    ("durable-before-persisted", "a position counts as durable when its persist begins"),
    ("durable-inside-record", "a position in the middle of a record counts as durable"),
    ("edge-not-merged", "the old bytes around an unaligned write are lost"),
    ("flush-ignored", "a flush is answered like a change"),
    ("free-too-early", "blocks are used again one consistency point too early"),
    ("frozen-before-active", "reads look at the older generation first"),
    ("fua-ignored", "FUA is answered like any change"),
    ("head-not-beyond-stale-records", "a lane goes on where records of a torn tail may follow"),
    ("hole-not-searched", "recovery does not look beyond the first damaged record"),
    ("list-blocks-leak", "the blocks of the freed list are never freed"),
    ("log-error-ignored", "a failed persist counts as done"),
    ("mailbox-loses", "a message that finds a full mailbox is dropped"),
    ("mark-forgotten", "a quiet lane does not prove its newest record"),
    ("object-id-reused", "recovery forgets the ids of volumes made since the consistency point"),
    ("open-without-rewrite", "open trusts what it read, without making it durable"),
    ("overwrite-in-flight", "the ring is written where a persist is under way"),
    ("read-unstable", "a read is answered before what it returns is durable"),
    ("reap-leaks-nodes", "nodes of freed subtrees are never freed"),
    ("record-body-not-checked", "a record is performed whatever its payload's checksum"),
    ("record-position-not-compared", "a record of an earlier lap is taken for a new one"),
    ("recovery-does-not-advance", "recovery's consistency point names the old position"),
    ("replay-skips-discards", "recovery does not perform discards"),
    ("replies-lost-at-stop", "requests in flight are not answered when the pool stops"),
    ("reservation-forgotten", "changes are admitted without space"),
    ("resize-keeps-tail", "shrinking frees nothing"),
    ("resize-not-in-cp", "a new size alone does not make a volume dirty"),
    ("space-waiters-forgotten", "changes that wait for space are dropped"),
    ("status-ignores-changes", "block status shows new blocks as holes"),
    ("superblock-volatile", "the superblock is left in the device's cache"),
    ("trim-everything", "the log is given back beyond the consistency point"),
    ("unused-space-leaks", "places that a consistency point did not need stay in use"),
    ("write-error-ignored", "a failed write counts as done"),
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
    planted::choose(known(name)?.0);
    Ok(())
}

fn known(name: &str) -> anyhow::Result<(&'static str, &'static str)> {
    BUGS.iter().find(|(known, _)| *known == name).copied().with_context(|| format!("no planted bug is called {name}"))
}

/// Runs the whole bank, or one bug of it.
///
/// # Errors
/// There is no such bug.
pub fn run(seed: u64, only: Option<&str>, jobs: usize) -> anyhow::Result<Vec<Row>> {
    ensure!(jobs > 0, "at least one thread is needed");
    let bugs = match only {
        Some(name) => vec![known(name)?],
        None => BUGS.to_vec(),
    };
    let weaknesses = if only.is_some() { &[][..] } else { &Weakness::ALL[..] };
    let next = AtomicUsize::new(0);
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        let (sender, found) = mpsc::channel();
        for _ in 0..jobs {
            let (sender, next, bugs) = (sender.clone(), &next, &bugs);
            scope.spawn(move || {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    let row = match (bugs.get(task), weaknesses.get(task.wrapping_sub(bugs.len()))) {
                        (Some(&bug), _) => hunt(seed, bug),
                        (None, Some(&weakness)) => weaken(seed, weakness),
                        (None, None) => break,
                    };
                    if sender.send((task, row)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        rows.extend(found);
    });
    rows.sort_by_key(|(task, _)| *task);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Runs histories with a bug in force until an oracle speaks.
fn hunt(seed: u64, (bug, what): (&'static str, &'static str)) -> Row {
    planted::choose(bug);
    let mut row = Row { bug, what, oracle: None, histories: 0, seed, finding: String::new() };
    for index in 0..HISTORIES_MAX {
        row.histories = index + 1;
        row.seed = seed_of(seed, index);
        let outcome = guarded(row.seed, || history::run(row.seed, false));
        if let Some(Violation { oracle, what }) = outcome.violation {
            (row.oracle, row.finding) = (Some(oracle.to_string()), what);
            break;
        }
    }
    planted::choose("");
    row
}

/// Runs histories with a weaker fault model until it is clear that some class does not matter any more.
fn weaken(seed: u64, weakness: Weakness) -> Row {
    planted::choose("");
    let mut tally = crate::fault::Tally::default();
    let (bug, what) = weakness.describe();
    let mut row = Row { bug, what, oracle: None, histories: WEAK_HISTORIES, seed, finding: String::new() };
    for index in 0..WEAK_HISTORIES {
        let seed = seed_of(seed, index);
        let mut prng = Prng::new(seed);
        let mut setup = Setup::draw(&mut prng);
        setup.weaken(weakness);
        let outcome = guarded(seed, || history::run_as(seed, setup, false));
        tally.add(&outcome.tally);
    }
    let idle = tally.idle();
    if !idle.is_empty() {
        row.oracle = Some("counts".to_owned());
        row.finding = format!("never mattered: {}", idle.join(", "));
    }
    row
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<32} {:<24} {:>9}  {}\n", "planted bug", "found by", "histories", "what is wrong");
    for row in rows {
        let oracle = row.oracle.as_deref().unwrap_or("NOBODY");
        let _ = writeln!(text, "{:<32} {oracle:<24} {:>9}  {}", row.bug, row.histories, row.what);
    }
    let found = rows.iter().filter(|row| row.oracle.is_some()).count();
    let _ = writeln!(text, "{found} of {} found", rows.len());
    text
}
