//! A run that is ended and resumed is the run that was not.

use std::{fs, process::Command};
use twinlog_simulator::{
    resume,
    run::{self, Mode, Plan, Summary},
};

/// Without what depends on real time.
fn timeless(summary: &Summary) -> Summary {
    let (seconds, cpu_seconds, histories_per_second, histories_per_cpu_second) = (0.0, 0.0, 0.0, 0.0);
    Summary { seconds, cpu_seconds, histories_per_second, histories_per_cpu_second, ..summary.clone() }
}

#[test]
fn a_resumed_run_has_the_sum_of_one_that_was_never_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.json");
    let plan = Plan { mode: Mode::Node, seed: 5, histories: 12, jobs: 2, twice: false };
    let whole = run::run(&plan, &Summary::new(&plan), |_| {});
    assert_eq!(whole.histories, 12);
    // What every moment leaves is a run that can go on, whichever thread was ahead.
    let mut sums = Vec::new();
    run::run(&plan, &resume::load(&path, &plan).unwrap(), |sum| sums.push(sum.clone()));
    assert_eq!(sums.iter().map(|sum| sum.histories).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    for sum in [&sums[0], &sums[6], &sums[11]] {
        resume::store(&path, sum).unwrap();
        let before = resume::load(&path, &plan).unwrap();
        assert_eq!(before.histories, sum.histories);
        assert_eq!(timeless(&run::run(&plan, &before, |_| {})), timeless(&whole));
    }
}

#[test]
fn another_run_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.json");
    let plan = Plan { mode: Mode::Node, seed: 5, histories: 1, jobs: 1, twice: false };
    resume::store(&path, &Summary::new(&plan)).unwrap();
    for other in [Plan { seed: 6, ..plan }, Plan { twice: true, ..plan }] {
        let error = format!("{:#}", resume::load(&path, &other).unwrap_err());
        assert!(error.contains("run.json cannot be resumed: "), "{error}");
    }
    resume::store(&path, &Summary { commit: "another".to_owned(), ..Summary::new(&plan) }).unwrap();
    let error = format!("{:#}", resume::load(&path, &plan).unwrap_err());
    assert!(error.contains("it is of commit another"), "{error}");
    fs::write(&path, "{").unwrap();
    assert!(resume::load(&path, &plan).is_err());
}

#[test]
fn the_program_goes_on_from_its_file() {
    for mode in [&[][..], &["--pair"]] {
        let dir = tempfile::tempdir().unwrap();
        let run = |histories: &str, is_resumable: bool| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog-simulator"));
            command
                .current_dir(dir.path())
                .args(["--seed", "9", "--output", "json", "--histories", histories])
                .args(mode);
            if is_resumable {
                command.args(["--resume", "run.json"]);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice::<Summary>(&output.stdout).unwrap()
        };
        assert_eq!(run("3", true).histories, 3);
        let (resumed, whole) = (run("8", true), run("8", false));
        assert_eq!(timeless(&resumed), timeless(&whole));
        assert_eq!(timeless(&run("8", true)), timeless(&resumed), "nothing is left to do");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
