//! A record of a pair that cannot be performed, on real processes: both nodes die under load, a block of one volume's tree is damaged on the pool's device, and
//! that volume is offline at whichever node serves the pool, named by the record's position at both; nothing else is. When the block is whole again
//! `twinlog volume online` brings back everything that was answered.

use crate::common::{
    self, command,
    disk::Disk,
    nbd::{Client, Request, WRITE},
    outcome,
    pair::{Pair, end_load, load, prove},
    pause_ms, signal,
};
use serde_json::Value;
use std::{path::PathBuf, process::Output};
use tempfile::TempDir;

const SIZE: [&str; 4] = ["--size", "64MiB", "--log-size", "16MiB"];
/// Fewer changes than this are hardly any to perform.
const CHANGES_MIN: u64 = 20;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn disk(folder: &TempDir) -> Disk {
    Disk::open(&folder.path().join("data/disks/pool-a.img"))
}

fn journal(folder: &TempDir, volume: &str) -> PathBuf {
    folder.path().join(format!("journal-{volume}"))
}

/// Ends both nodes, and who would start them again.
fn kill(mut pair: Pair) -> TempDir {
    signal(pair.supervisor.id(), "STOP");
    let nodes = ["a", "b"].map(|node| pair.pid(node));
    nodes.iter().for_each(|&pid| signal(pid, "KILL"));
    signal(pair.supervisor.id(), "KILL");
    let _status = pair.supervisor.wait().expect("a child of ours");
    std::mem::replace(&mut pair.folder, common::folder())
}

/// Changes in the home node's log of its pool that no consistency point contains.
fn changes_to_perform(folder: &TempDir) -> u64 {
    let dir = folder.path().join("data");
    let place = ["log", "verify", "-o", "json", "--node", "a", "--dir", dir.to_str().expect("plain")];
    let output = outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &place));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let lanes = verdict["lanes"].as_array().cloned().unwrap_or_default();
    lanes.iter().filter_map(|lane| lane["changes"].as_u64()).sum()
}

/// A pair whose nodes have both died under load on a volume of each of two kinds: the log has changes of both that are to be performed.
fn both_dead_under_load() -> TempDir {
    let mut pair = Pair::start();
    let made = pair.run("a", &["volume", "create", "good", "64MiB"]);
    assert!(made.status.success(), "{made:?}");
    // A tree whose nodes are needed by whatever is written.
    let mut client = Client::connect(&pair.dir().join("a/nbd.sock"), "vol-a", 64 << 20).expect("it is exported");
    for offset in (0..64 << 20).step_by(4 << 20) {
        let request = Request { command: WRITE, flags: 0, offset, length: 8192, data: vec![1; 8192] };
        assert_eq!(client.call(&request).expect("it answers").error, 0);
    }
    drop(client);
    for round in 0..10 {
        // The other node's clients go there too: their changes have names.
        let mut loads = [("vol-a", "b", 1), ("good", "a", 2)].map(|(volume, node, seed)| {
            load(&pair.uri(node, volume), &journal(&pair.folder, volume), seed + 10 * round)
        });
        pause_ms(1500);
        let folder = kill(pair);
        loads.iter_mut().for_each(end_load);
        if changes_to_perform(&folder) >= CHANGES_MIN && disk(&folder).volumes().len() == 2 {
            return folder;
        }
        pair = Pair::start_in(folder, &SIZE);
    }
    panic!("ten times a consistency point came just before the nodes died");
}

/// Of a volume that is offline what the status of the node that serves it says: its position, and how much is held.
fn held(pair: &Pair, node: &str) -> Option<(u64, u64)> {
    let status = pair.status(node)?["status"].clone();
    let all = [&status["volumes"], &status["pair"]["taken_over"]["volumes"]].map(|part| part.as_array().cloned());
    let volume = all.into_iter().flatten().flatten().find(|volume| volume["name"] == "vol-a")?;
    Some((volume["offline"]["lsn"].as_u64()?, volume["offline"]["held_records"].as_u64()?))
}

/// The volume is offline, as both nodes say wherever it is asked for, and the other one is not.
fn is_offline_everywhere(pair: &Pair, server: &str, (lsn, records): (u64, u64)) {
    assert_eq!(held(pair, server), Some((lsn, records)), "{}", pair.said());
    let position = format!("at position {lsn}");
    for node in ["a", "b"] {
        pair.until("both have heard of it", || {
            let status = said(&pair.run(node, &["status"]));
            let is_named = status.contains("volume vol-a") && status.contains("offline") && status.contains(&position);
            (is_named && !status.starts_with("OK")).then_some(())
        });
        let refused = prove(&pair.uri(node, "vol-a"), &journal(&pair.folder, "vol-a"));
        let refused = refused.expect_err("nobody reads a volume that is offline");
        assert!(refused.contains("offline") && refused.contains(&position), "at {node}: {refused}");
        prove(&pair.uri(node, "good"), &journal(&pair.folder, "good"))
            .unwrap_or_else(|said| panic!("at {node}: {said}\n{}", pair.said()));
    }
    let shown = said(&pair.run(server, &["volume", "show", "vol-a"]));
    assert!(shown.contains(&position), "{shown}");
}

#[test]
fn a_record_that_no_node_can_perform_costs_one_volume_for_a_while() {
    let folder = both_dead_under_load();
    let disk = disk(&folder);
    let volume = disk.volumes().into_iter().find(|volume| volume.name == "vol-a").expect("it is there");
    let place = volume.root.address().block() * 4096 + 100;
    disk.flip(place, 4);

    let pair = Pair::launch(folder, &SIZE);
    // While the pool is being opened more and more is held.
    let serves = || pair.status("a").is_some_and(|status| status["status"]["state"] == "serving");
    let found = pair.until("the volume is offline", || held(&pair, "a").filter(|_| serves()));
    let found = held(&pair, "a").unwrap_or(found);
    assert!(found.1 > 0, "{found:?}");
    is_offline_everywhere(&pair, "a", found);

    // The partner keeps it until somebody wants it back, as soon as it is in step.
    pair.until("the partner has the pool", || {
        let drained = pair.run("a", &["pair", "drain"]);
        (drained.status.success() && pair.has_taken_over("b")).then_some(())
    });
    is_offline_everywhere(&pair, "b", found);
    let refused = pair.run("b", &["volume", "online", "vol-a"]);
    let why = said(&refused);
    assert!(!refused.status.success() && why.contains(&found.0.to_string()), "{why}");
    let told = pair.run("b", &["volume", "online", "vol-a", "--accept-loss"]);
    let loss = format!("nothing was dropped: {} record(s)", found.1);
    assert!(told.status.code() == Some(4) && said(&told).contains(&loss), "{told:?}");
    is_offline_everywhere(&pair, "b", found);

    disk.flip(place, 4);
    let online = pair.run("b", &["volume", "online", "vol-a"]);
    assert!(online.status.success() && said(&online).contains("online"), "{online:?}\n{}", pair.said());
    let all_is_there = |node: &str| {
        for volume in ["vol-a", "good"] {
            prove(&pair.uri(node, volume), &journal(&pair.folder, volume))
                .unwrap_or_else(|said| panic!("{volume} at {node}: {said}\n{}", pair.said()));
        }
    };
    ["a", "b"].iter().for_each(|node| all_is_there(node));
    pair.until("both nodes say OK or as much as after a takeover", || {
        let given = pair.run("b", &["pair", "giveback"]);
        (given.status.success() || !pair.has_taken_over("b")).then_some(())
    });
    pair.until_ok();
    ["a", "b"].iter().for_each(|node| all_is_there(node));
    let check = pair.run("a", &["pool", "check"]);
    assert!(check.status.success(), "{check:?}");
}
