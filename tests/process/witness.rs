//! A pair of real processes whose registers a witness keeps: it is killed and started again, the nodes lose each other, a node dies. Nobody serves twice, and
//! nothing that was answered is lost.

#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the machine's clock")]

use crate::common::{
    self,
    pair::{Pair, end_load, load, prove},
    pause_ms,
    witness::moved,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Longer than a node's lease, with the default `deadline_ms`.
const LEASE_AND_MORE: Duration = Duration::from_secs(6);

fn serves(pair: &Pair, node: &str) -> bool {
    pair.status(node).is_some_and(|status| status["status"]["state"] == "serving")
}

/// The row that decides about pool `pool` at a node.
fn row(pair: &Pair, node: &str, pool: &str) -> String {
    let status = pair.status(node).unwrap_or_default();
    let pools = status["status"]["pair"]["pools"].as_array().cloned().unwrap_or_default();
    let row = pools.iter().find(|found| found["name"] == pool).and_then(|found| found["row"].as_str());
    row.unwrap_or_default().to_owned()
}

fn prove_at(pair: &Pair, node: &str, journal: &Path) {
    prove(&pair.uri(node, "vol-a"), journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn a_witness_that_is_back_in_time_is_not_missed_and_one_that_is_not_stops_both() {
    let (pair, mut witness, _cable) = moved(&[], &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 5);
    for _ in 0..3 {
        witness.kill();
        witness.restart();
        // On a machine so slow that a lease ended meanwhile, they have claimed their pools again.
        pair.until("both serve", || (serves(&pair, "a") && serves(&pair, "b")).then_some(()));
    }
    witness.kill();
    pair.until("nobody serves without an arbiter", || (!serves(&pair, "a") && !serves(&pair, "b")).then_some(()));
    witness.restart();
    end_load(&mut load);
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}

#[test]
fn nodes_that_lose_each_other_and_the_witness_do_not_both_serve_a_pool() {
    let (pair, mut witness, cable) = moved(&[], &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 6);
    pause_ms(500);
    cable.cut(true);
    pair.until("each serves alone", || {
        (row(&pair, "a", "a") == "alone" && row(&pair, "b", "b") == "alone").then_some(())
    });
    let start = Instant::now();
    while start.elapsed() < LEASE_AND_MORE {
        assert!(
            serves(&pair, "a") && !pair.has_taken_over("b"),
            "its heartbeat at the witness goes on\n{}",
            pair.said()
        );
        pause_ms(100);
    }
    witness.kill();
    pair.until("nobody serves without an arbiter", || (!serves(&pair, "a") && !serves(&pair, "b")).then_some(()));
    witness.restart();
    pair.until("each serves alone again", || (serves(&pair, "a") && serves(&pair, "b")).then_some(()));
    assert!(!pair.has_taken_over("b") && !pair.has_taken_over("a"), "{}", pair.said());
    cable.cut(false);
    end_load(&mut load);
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}

#[test]
fn a_node_that_dies_is_taken_over_when_its_lease_has_ended() {
    let (pair, _witness, _cable) = moved(&["--no-restart"], &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 7);
    pause_ms(700);
    pair.signal("a", "KILL");
    load.wait().expect("a child of ours");
    pair.until_taken_over("b");
    prove_at(&pair, "b", &journal);
    let explained = pair.run("b", &["pair", "explain"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("its lease has ended"), "{explained:?}");
}

/// With leases alone. The disks are safe on one machine whatever happens, as their locks are held by whoever has a pool open; what is shown is that a node that was taken
/// over while it stood still ends itself before it writes anything.
#[test]
fn a_node_that_stood_still_over_its_lease_ends_itself_before_it_writes() {
    let (pair, _witness, _cable) = moved(&[], &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 8);
    pause_ms(700);
    let stopped = pair.pid("a");
    pair.signal("a", "STOP");
    pair.until("b is the owner", || {
        let status = pair.status("b")?;
        (status["status"]["pair"]["pools"][1]["owner"] == "b").then_some(())
    });
    // It was not killed: leases stop nobody.
    common::signal(stopped, "CONT");
    load.wait().expect("a child of ours");
    pair.until("it has ended itself", || pair.said().contains("node a died by SIGABRT").then_some(()));
    assert!(pair.said().contains("this node stood still over the end of its lease"), "{}", pair.said());
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}
