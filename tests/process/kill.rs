//! No answered write is lost: real processes, killed at random instants.
//!
//! A round is: `twinlog-load` writes, trims and zeroes with a journal of what was answered; the target gets SIGKILL at a random
//! instant; it starts again, in some rounds to be killed once more while it recovers; `twinlog-load --prove` reads everything back
//! and compares it with the journal. Rounds go on with the pool that the last one left, until a new one is begun.
//!
//! The page cache outlives a process, so this shows what a crash of the process can do, and no loss of power: that
//! is the simulator's part.
//!
//! ```text
//! cargo test --release --test process kill:: -- --ignored --nocapture       200 rounds
//! TWINLOG_KILL_ROUNDS=1000 TWINLOG_SEED=7 cargo test --release ...        more of them, from a given seed
//! ```

use crate::common::{self, Target, command, load_tool, number, outcome, pause_ms};
use std::{path::Path, process::Stdio};
use twinlog::base::Prng;

/// A pool is used for so many rounds: long enough for trees to grow old, short enough for journals to stay small.
const ROUNDS_PER_POOL: u64 = 20;

/// Exit code of `twinlog-load` when the connection is lost.
const CONNECTION_LOST: i32 = 3;

/// The load: by round, a little of everything or small writes only.
fn arguments(prng: &mut Prng, journal: &Path) -> Vec<String> {
    let sizes = *prng.pick(&["512-64k", "4k", "4k-256k", "512-20k", "64k-1m"]);
    let depth = *prng.pick(&[1, 8, 32, 128]);
    let connections = if depth >= 8 { prng.between(1, 4) } else { 1 };
    let mut arguments: Vec<String> =
        ["--rw", "randrw", "--mix", "20", "--time", "300", "--warmup", "0", "--verify", "--align=512", "--bs", sizes]
            .map(String::from)
            .into();
    arguments.push(format!("--qd={depth}"));
    arguments.push(format!("--connections={connections}"));
    arguments.push(format!("--seed={}", prng.below(1 << 60)));
    if prng.chance(1, 2) {
        arguments.extend(["--zero=5", "--trim=5", "--fua=5", "--flush-every=200"].map(String::from));
    }
    arguments.push(format!("--journal={}", journal.display()));
    arguments
}

/// Kills a loaded target `rounds` times and proves after each that nothing answered was lost.
fn kill_rounds(rounds: u64) {
    let seed = common::seed();
    println!("seed {seed}, {rounds} rounds");
    let mut prng = Prng::new(seed);
    let mut pool: Option<Target> = None;
    let mut early = 0;
    for round in 0..rounds {
        if round % ROUNDS_PER_POOL == 0 {
            pool = Some(Target::start("128MiB"));
        }
        let target = pool.as_mut().expect("made in the first round");
        let journal = target.scratch().join("journal");
        let load_tool = load_tool().to_str().expect("plain");

        let load = arguments(&mut prng, &journal);
        let mut load = command(load_tool, &[&[target.uri()], load.as_slice()].concat());
        let load =
            load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coreutils' timeout can be started");
        // Short instants find half-done openings, long ones consistency points.
        let instant = if prng.chance(1, 2) { prng.between(1, 400) } else { prng.between(400, 2500) };
        pause_ms(instant);
        target.kill();
        let load = load.wait_with_output().expect("a child of ours");
        let complaint = String::from_utf8_lossy(&load.stderr);
        assert_eq!(
            load.status.code(),
            Some(CONNECTION_LOST),
            "seed {seed} round {round}: the load ended otherwise: {complaint}"
        );

        while prng.chance(1, 3) {
            target.launch();
            pause_ms(prng.below(150));
            target.kill();
            early += 1;
        }
        target.restart();
        // The load may not have come as far as its journal.
        if journal.exists() {
            let proof = outcome(&mut command(load_tool, &[target.uri(), format!("--prove={}", journal.display())]));
            let said = String::from_utf8_lossy(&proof.stdout).into_owned() + &String::from_utf8_lossy(&proof.stderr);
            assert!(
                proof.status.success(),
                "seed {seed} round {round}, killed after {instant} ms: {}\n{said}",
                proof.status
            );
            println!("round {round}: killed after {instant} ms: {}", said.lines().next().unwrap_or_default());
        }
    }
    println!("{rounds} rounds, {early} further kills during recovery: no answered write was lost");
}

#[test]
fn no_answered_write_is_lost() {
    kill_rounds(8);
}

#[test]
#[ignore = "takes ten minutes"]
fn no_answered_write_is_lost_in_many_rounds() {
    kill_rounds(number("TWINLOG_KILL_ROUNDS").unwrap_or(200));
}

#[test]
fn a_clean_stop_leaves_nothing_to_replay() {
    let mut target = Target::start("64MiB");
    let journal = format!("--journal={}", target.scratch().join("journal").display());
    let load_tool = load_tool().to_str().expect("plain");
    let load = [target.uri(), "--bs=4k".into(), "--ops=2000".into(), "--time=60".into(), "--verify".into(), journal];
    common::run(load_tool, &load);
    target.stop();
    target.restart();
    let journal = format!("--prove={}", target.scratch().join("journal").display());
    common::run(load_tool, &[target.uri(), journal]);
}
