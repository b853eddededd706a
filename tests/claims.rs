//! The requirements of `docs/claims.md` that one node can show, each by its number, on real processes.
//!
//! What needs a partner is not here yet. A test carries the numbers of all the requirements that it shows.

mod common;

use common::{
    Target, command,
    nbd::{Client, READ, Request, TRIM, WRITE, WRITE_ZEROES},
};
use serde_json::Value;
use std::fs;

const VOLUME: &str = "64MiB";
const VOLUME_BYTES: u64 = 64 << 20;

fn connect(target: &Target) -> Client {
    Client::connect(&target.socket(), "vol-a", VOLUME_BYTES).expect("the target answers")
}

fn request(command: u16, offset: u64, length: u32) -> Request {
    Request { command, flags: 0, offset, length, data: Vec::new() }
}

fn write(client: &mut Client, offset: u64, data: Vec<u8>) {
    let length = u32::try_from(data.len()).expect("small");
    let reply = client.call(&Request { data, ..request(WRITE, offset, length) }).expect("the target answers");
    assert_eq!(reply.error, 0);
}

fn change(client: &mut Client, command: u16, offset: u64, length: u32) {
    assert_eq!(client.call(&request(command, offset, length)).expect("the target answers").error, 0);
}

fn read(client: &mut Client, offset: u64, length: u32) -> Vec<u8> {
    let reply = client.call(&request(READ, offset, length)).expect("the target answers");
    assert_eq!(reply.error, 0);
    reply.pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()
}

/// What each of the blocks of `answered_changes_wait_only_in_the_log` holds.
fn block(index: u8) -> Vec<u8> {
    vec![index + 1; 4096]
}

/// The only lane in what `log` says.
fn lane(said: &Value) -> &Value {
    let lanes = said["lanes"].as_array().expect("lanes");
    assert_eq!(lanes.len(), 1, "one reactor has one lane");
    &lanes[0]
}

/// Makes changes and kills the node before their consistency point; returns what the log then says of the changes above the
/// applied position. A consistency point may come in between: it is tried again.
fn answered_and_killed(target: &mut Target, changes: impl Fn(&mut Client)) -> Value {
    for _ in 0..10 {
        let mut client = connect(target);
        changes(&mut client);
        target.kill();
        let verdict = target.twinlog(&["log", "verify"]);
        if lane(&verdict)["changes"].as_u64().expect("a number") > 0 {
            return verdict;
        }
        target.restart();
    }
    panic!("after ten tries every answered change had reached the disks: do answers wait for them?");
}

#[test]
fn claims_79_84_88_103_109_110_an_answer_does_not_wait_for_the_disks() {
    let mut target = Target::start(VOLUME);
    // Changes were answered, and no consistency point has them: their answers did not wait for one.
    let verdict = answered_and_killed(&mut target, |client| {
        (0..50).for_each(|index| write(client, 4096 * u64::from(index), block(index)))
    });
    assert_eq!(lane(&verdict)["hole"], Value::Null);
}

#[test]
fn claims_82_99_102_105_a_restart_performs_exactly_the_rest() {
    let mut target = Target::start(VOLUME);
    let verdict = answered_and_killed(&mut target, |client| {
        (0..50).for_each(|index| write(client, 4096 * u64::from(index), block(index)))
    });
    // The disks' image names the set of changes that it contains: the log is replayed from there on.
    let inspected = target.twinlog(&["inspect"]);
    assert_eq!(inspected["newest"]["applied_lsn"][0], lane(&verdict)["from_lsn"]);
    target.restart();
    let status = target.status();
    assert_eq!(status["status"]["replayed_records"], lane(&verdict)["changes"]);
    let mut client = connect(&target);
    for index in 0..50 {
        assert_eq!(read(&mut client, 4096 * u64::from(index), 4096), block(index), "block {index}");
    }
    // None twice: what was replayed is in the image now, and the next start finds nothing to do.
    drop(client);
    target.kill();
    target.restart();
    assert_eq!(target.status()["status"]["replayed_records"], 0);
    assert_eq!(read(&mut connect(&target), 4096 * 49, 4096), block(49));
}

#[test]
fn claims_80_101_the_image_on_disk_is_whole_at_every_kill() {
    let mut target = Target::start(VOLUME);
    let load_tool = common::load_tool().to_str().expect("plain");
    for round in 0..6 {
        let load = [target.uri(), "--bs=512-64k".into(), "--trim=10".into(), "--time=60".into(), "--warmup=0".into()];
        let mut load = command(load_tool, &load);
        load.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut load = load.spawn().expect("coreutils' timeout can be started");
        common::pause_ms(100 + 300 * round);
        target.kill();
        load.wait().expect("a child of ours");
        // Offline, by the disks alone: reachable = allocated, no double use, every checksum true; freed blocks that wait for the next consistency point are no problem.
        let config = target.data().join("a/node.toml");
        let mut check = command(env!("CARGO_BIN_EXE_twinlog"), &["pool", "check", "-o", "json", "--config"]);
        let report: Value = serde_json::from_str(&common::succeed(check.arg(config))).expect("JSON");
        assert_eq!(report["problems"], serde_json::json!([]), "round {round}");
        target.restart();
    }
}

#[test]
fn claims_83_106_a_recovery_that_is_interrupted_is_repeated_by_the_same_path() {
    let mut target = Target::start(VOLUME);
    let _ = answered_and_killed(&mut target, |client| {
        (0..50).for_each(|index| write(client, 4096 * u64::from(index), block(index)))
    });
    for milliseconds in [1, 5, 10, 20, 40, 80, 160] {
        target.launch();
        common::pause_ms(milliseconds);
        target.kill();
    }
    target.restart();
    let mut client = connect(&target);
    for index in 0..50 {
        assert_eq!(read(&mut client, 4096 * u64::from(index), 4096), block(index), "block {index}");
    }
}

#[test]
fn claims_86_87_107_108_the_log_holds_blocks_and_requests() {
    let mut target = Target::start(VOLUME);
    let _ = answered_and_killed(&mut target, |client| {
        write(client, 0, vec![1; 8192]);
        write(client, 100_001, vec![2; 333]);
        change(client, TRIM, 1 << 20, 1 << 20);
        change(client, WRITE_ZEROES, 100, 200);
    });
    let shown = target.twinlog(&["log", "show"]);
    let rows = lane(&shown)["rows"].as_array().expect("rows");
    let kinds: Vec<&str> = rows.iter().filter_map(|row| row["kind"].as_str()).collect();
    for kind in ["block", "write", "discard", "write-zeroes"] {
        assert!(kinds.contains(&kind), "{kind} is missing: {kinds:?}");
    }
    target.restart();
    let mut client = connect(&target);
    assert_eq!(read(&mut client, 100, 200), vec![0; 200]);
    assert_eq!(read(&mut client, 300, 7892), vec![1; 7892]);
    assert_eq!(read(&mut client, 100_001, 333), vec![2; 333]);
}

#[test]
fn claim_100_a_pool_refuses_the_log_of_another() {
    let (mut one, mut other) = (Target::start(VOLUME), Target::start(VOLUME));
    one.stop();
    other.stop();
    fs::copy(other.data().join("a/log"), one.data().join("a/log")).expect("both nodes are stopped");
    one.launch();
    let mut node = Value::Null;
    for _ in 0..600 {
        node = one.status();
        if node["status"]["state"] == "failed" {
            break;
        }
        common::pause_ms(100);
    }
    assert_eq!(node["verdict"], "STOPPED", "it must not serve with a log that is not its own: {node}");
    let reason = node["status"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("log") && reason.contains("pool"), "it does not say why: {reason}");
    assert!(Client::connect(&one.socket(), "vol-a", VOLUME_BYTES).is_err(), "no client gets in");
}
