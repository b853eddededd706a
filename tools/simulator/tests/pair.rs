//! Histories of the pair: the first are clean, the same seed gives the same bytes, and with the feature `planted-bugs` those bugs are found that
//! few histories find. The others of its bank take longer than anybody has waited (docs/testing.md).

use twinlog_simulator::{
    history::Watch,
    run::{Mode, seed_of},
};

/// The first histories of a run are clean.
#[test]
fn a_pair_survives_what_is_drawn_for_it() {
    for index in 0..6 {
        let outcome = Mode::Pair.run_one(seed_of(1, index), Watch::Verdict);
        assert!(outcome.violation.is_none(), "history {index}: {:?}", outcome.violation);
    }
}

/// The same seed gives the same bytes.
#[test]
fn a_pair_is_deterministic() {
    let digest = || Mode::Pair.run_one(7, Watch::Digest).digest;
    assert_eq!(digest(), digest());
}

/// A run with a bug in force has it in force in all its threads: one without it is clean, and proves nothing.
#[cfg(feature = "planted-bugs")]
#[test]
fn a_chosen_bug_is_in_force_in_every_thread() {
    use twinlog_simulator::run::{Plan, Summary, run};
    twinlog::base::planted::choose("answered-when-sent");
    let plan = Plan { mode: Mode::Pair, seed: 1, histories: 4, jobs: 2, twice: false };
    let summary = run(&plan, &Summary::new(&plan), |_| {});
    twinlog::base::planted::choose("");
    assert!(!summary.failures.is_empty());
}

/// The rarest took 84 histories of seed 1.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_the_pair_are_found() {
    use twinlog::base::planted;
    for bug in [
        "answered-when-sent",
        "asked-again-by-a-new-name",
        "attached-by-words-only",
        "discard-skipped",
        "earlier-session-not-awaited",
        "fence-failed-for-ever",
        "fence-not-awaited",
        "lease-ignored",
        "mirror-acknowledges-early",
        "name-not-compared",
        "name-not-noted",
        "names-not-in-superblock",
        "open-without-claim",
        "resend-forgets",
        "slot-taken-twice",
        "stable-without-mirror",
        "superblocks-unordered",
        "takeover-while-stale",
        "unknown-is-done",
        "void-log-kept",
        "word-epoch-not-compared",
    ] {
        planted::choose(bug);
        let is_found = (0..200).any(|index| Mode::Pair.run_one(seed_of(1, index), Watch::Verdict).violation.is_some());
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
