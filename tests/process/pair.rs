//! A pair of real processes on one machine: what is answered survives the death of a node, and the pool comes back to its home.
//!
//! A round is: `twinlog-load` writes to a volume with a journal of what was answered; the node that serves it gets SIGKILL at a random
//! instant; the partner takes the pool over; `twinlog-load --prove` reads everything back there and compares it with the journal; the
//! dead node, started again by its supervisor, gets its pool back. On a machine so loaded that the dead node is back before its partner
//! has seen it die, it opens its pool itself, and the proof is made there.
//!
//! ```text
//! cargo test --release --test process pair:: -- --ignored --nocapture       200 rounds, half of them with an interconnect on a thread
//! TWINLOG_PAIR_ROUNDS=1000 TWINLOG_SEED=7 cargo test --release ...        more of them, from a given seed
//! ```

use crate::common::{
    self, command, number, outcome,
    pair::{Pair, end_load, load, prove},
    pause_ms,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};
use twinlog::base::Prng;

fn takeover_rounds(rounds: u64, interconnect: &str) {
    let seed = common::seed();
    println!("seed {seed}, {rounds} rounds, interconnect on a {interconnect}");
    let mut prng = Prng::new(seed);
    let pair = Pair::start_with_interconnect(interconnect);
    for round in 0..rounds {
        let (victim, survivor) = if prng.chance(1, 2) { ("a", "b") } else { ("b", "a") };
        let volume = format!("vol-{victim}");
        let journal = pair.folder.path().join(format!("journal-{victim}"));
        let mut load = load(&pair.uri(victim, &volume), &journal, prng.below(1 << 60));
        let instant = prng.between(20, 1200);
        pause_ms(instant);
        pair.signal(victim, "KILL");
        load.wait().expect("a child of ours");
        let server = pair.until_served_again(victim, survivor);
        if journal.exists() {
            let said = prove(&pair.uri(server, &volume), &journal);
            let said = said.unwrap_or_else(|said| panic!("seed {seed} round {round}: {said}\n{}", pair.said()));
            let first = said.lines().next().unwrap_or_default();
            println!("round {round}: {victim} killed after {instant} ms, {server} serves: {first}");
        }
        pair.until_ok();
        if journal.exists() {
            prove(&pair.uri(victim, &volume), &journal)
                .unwrap_or_else(|said| panic!("seed {seed} round {round}, given back: {said}\n{}", pair.said()));
        }
    }
}

#[test]
fn no_answered_write_is_lost_when_a_node_dies() {
    takeover_rounds(3, "reactor");
}

#[test]
fn no_answered_write_is_lost_when_a_node_dies_whose_interconnect_has_a_thread() {
    takeover_rounds(3, "thread");
}

#[test]
#[ignore = "takes an hour"]
fn no_answered_write_is_lost_in_many_takeovers() {
    let rounds = number("TWINLOG_PAIR_ROUNDS").unwrap_or(200);
    takeover_rounds(rounds / 2, "reactor");
    takeover_rounds(rounds - rounds / 2, "thread");
}

#[test]
fn a_pair_stops_in_order_and_starts_again_with_everything() {
    let pair = Pair::start();
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 7);
    pause_ms(500);
    let folder = pair.stop();
    load.wait().expect("a child of ours");
    let pair = Pair::start_in(folder, &[]);
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn pools_move_by_command_without_loss() {
    let pair = Pair::start();
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 9);
    pause_ms(500);
    let moved = pair.run("b", &["pair", "takeover", "a"]);
    assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
    pair.until_taken_over("b");
    // Its connection goes on, at the node that does not serve the pool any more.
    end_load(&mut load);
    prove(&pair.uri("b", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
    let events = pair.run("b", &["events", "-o", "jsonl"]);
    let lines = String::from_utf8_lossy(&events.stdout).into_owned();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_claim = |event: &&Value| event["event"] == "register" && event["fields"]["pool"] == "a";
    assert!(events.iter().any(|event| is_claim(&event)), "{lines}");
    let explained = pair.run("b", &["pair", "explain"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("pool a:"), "{explained:?}");
    pair.until_ok();
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
    let refused = pair.run("b", &["pair", "takeover", "a", "--force"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
}

/// The home node loses its way to a device; its partner has its own.
#[test]
fn a_pool_that_its_home_node_cannot_open_is_served_by_its_partner() {
    let folder = Pair::start().stop();
    let link = folder.path().join("data/disks/link");
    symlink("pool-a.img", &link).expect("a folder of ours");
    let path = folder.path().join("data/a/node.toml");
    let text = fs::read_to_string(&path).expect("up has made it");
    let own = "devices = [\"../disks/pool-a.img\"]";
    assert!(text.contains(own), "{text}");
    fs::write(&path, text.replacen(own, "devices = [\"../disks/link\"]", 1)).expect("written");

    let pair = Pair::start_in(folder, &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("b", "vol-a"), &journal, 12);
    let command = |node: &str, words: &[&str]| pair.run(node, words);
    let taken = command("b", &["pair", "takeover", "a"]);
    assert!(taken.status.success(), "{taken:?}");
    fs::remove_file(&link).expect("there");
    // Given back by time, it fails there and comes back.
    let explained = |node: &str| String::from_utf8_lossy(&command(node, &["pair", "explain"]).stdout).into_owned();
    let is_kept = || explained("b").contains("pool a: in sync, kept").then_some(());
    pair.until("the partner keeps it", is_kept);
    let text = pair.until("the home node knows", || {
        Some(explained("a")).filter(|text| text.contains("pool a: standby, given up"))
    });
    for said in ["No such file", "mend what the trouble names", "by command only"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let status = command("a", &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.starts_with("TAKEN-OVER") && status.contains("No such file"), "{status}");
    let refused = command("a", &["pair", "takeover", "a"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("could not be opened"), "{refused:?}");
    pair.until("the partner keeps it", is_kept);

    symlink("pool-a.img", &link).expect("a folder of ours");
    let taken = command("a", &["pair", "takeover", "a"]);
    assert!(taken.status.success(), "{taken:?}");
    pair.until_ok();
    end_load(&mut load);
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn a_node_that_cannot_be_started_again_does_not_stop_its_partner() {
    let mut pair = Pair::start();
    let config = pair.dir().join("a/node.toml");
    let good = fs::read_to_string(&config).expect("up has made it");
    fs::write(&config, good.replace("[pool]", "[pol]")).expect("written");
    pair.signal("a", "KILL");
    pair.until_taken_over("b");
    pair.until("a is given up", || pair.said().contains("node a does not accept its configuration").then_some(()));
    assert!(pair.has_taken_over("b"), "{}", pair.said());
    assert!(matches!(pair.supervisor.try_wait(), Ok(None)), "up watches b\n{}", pair.said());
    // When no node is left it ends, with the error.
    pair.signal("b", "TERM");
    let status = pair.supervisor.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(2), "{}", pair.said());
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = Pair::start().stop();
    let (key, config) = (folder.path().join("data/pair.key"), folder.path().join("data/a/node.toml"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let arguments = ["serve", "--config", config.to_str().expect("plain")];
    let refused = outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &arguments));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("chmod 600"), "{refused:?}");
}
