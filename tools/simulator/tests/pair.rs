//! Histories of the pair: the first are clean, and the same seed gives the same bytes. Its bank of planted bugs is run by the simulator itself (`--bank --pair`).

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
