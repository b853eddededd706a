//! The requirements of `docs/claims.md`, each by its number, on real processes: first those that one node can show, then those that take a pair.
//!
//! A test carries the numbers of all the requirements that it shows. What a second set of devices for one pool would show is not here:
//! a pool has one set.

mod common;

use common::{
    Target, command,
    nbd::{Client, READ, Request, TRIM, WRITE, WRITE_ZEROES},
    pair::Pair,
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

/// What block `index` of a test holds.
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
        let mut load = load.spawn().expect("the load tool starts");
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
        write(client, 1 << 20, vec![3; 8192]);
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
    assert_eq!(read(&mut client, 1 << 20, 8192), vec![0; 8192]);
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
    let refusal = Client::connect(&one.socket(), "vol-a", VOLUME_BYTES).map(drop).expect_err("no client gets in");
    assert!(!refusal.contains("os error 11"), "clients are sent away, not left waiting: {refusal}");
}

/// The nodes of a pair that `up` starts and does not start again; each serves its own pool, in sync.
fn pair() -> Pair {
    Pair::start_in(common::folder(), &["--size", VOLUME, "--log-size", "16MiB", "--no-restart"])
}

fn connect_to(pair: &Pair, node: &str, volume: &str) -> Client {
    let socket = pair.dir().join(node).join("nbd.sock");
    pair.until("the volume is served", || Client::connect(&socket, volume, VOLUME_BYTES).ok())
}

/// What a killed node's files say of one of its logs.
fn log_of(pair: &Pair, node: &str, arguments: &[&str]) -> Value {
    let said = pair.run(node, &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// The descriptors in what `log show` says: position, kind, object, place, whatever it lists. Marks and pads are no changes.
fn records(shown: &Value) -> Vec<Value> {
    let rows = lane(shown)["rows"].as_array().expect("rows");
    let is_change = |row: &&Value| row["kind"].as_str().is_some_and(|kind| kind != "mark" && kind != "pad");
    rows.iter().filter(is_change).cloned().collect()
}

/// Changes through each node's own volume, and both killed before the disks have them: every descriptor lies in the log of the node that
/// received it and, the same to the byte, in the mirror at its partner. In both directions; blocks and requests.
#[test]
fn claims_77_81_85_94_95_96_98_every_descriptor_lies_at_both_nodes() {
    let pair = pair();
    for (node, volume) in [("a", "vol-a"), ("b", "vol-b")] {
        let mut client = connect_to(&pair, node, volume);
        write(&mut client, 0, vec![1; 8192]);
        write(&mut client, 100_001, vec![2; 333]);
        change(&mut client, WRITE_ZEROES, 100, 200);
    }
    // Neither lives to see the other one dead.
    for signal in ["STOP", "KILL"] {
        for node in ["a", "b"] {
            pair.signal(node, signal);
        }
    }
    for (node, partner) in [("a", "b"), ("b", "a")] {
        pair.until("the killed nodes' files are free", || {
            pair.run(node, &["log", "verify"]).status.success().then_some(())
        });
        let own = records(&log_of(&pair, node, &["log", "show"]));
        let mirror = records(&log_of(&pair, partner, &["log", "show", "--mirror"]));
        let kinds: Vec<&str> = own.iter().filter_map(|row| row["kind"].as_str()).collect();
        assert!(kinds.contains(&"block") && kinds.contains(&"write") && kinds.contains(&"write-zeroes"), "{kinds:?}");
        // The partner's mirror began later: it has no descriptor of what was in a consistency point by then.
        let begins =
            own.iter().position(|row| Some(row) == mirror.first()).expect("the mirror begins with a record of the log");
        assert_eq!(own[begins..], mirror, "the log of {node} and its mirror at {partner}");
        assert!(mirror.len() >= 3, "{mirror:?}");
    }
}

/// A node is killed with changes that only the logs have; its partner performs them from its copy, by the recovery that the node itself
/// would run, and exactly those that the disks do not have: nothing is performed twice by the next recovery either. In both directions.
#[test]
fn claims_77_78_81_82_83_99_105_106_the_partner_performs_exactly_the_rest() {
    for (victim, survivor) in [("a", "b"), ("b", "a")] {
        let (pair, volume) = (pair(), format!("vol-{victim}"));
        let mut client = connect_to(&pair, victim, &volume);
        for index in 0..20_u8 {
            write(&mut client, u64::from(index) * 4096, block(index));
        }
        write(&mut client, 5 * 4096 + 7, vec![99; 10]);
        pair.signal(victim, "KILL");
        pair.until_taken_over(survivor);
        let mut client = connect_to(&pair, survivor, &volume);
        for index in 0..20_u8 {
            let mut expected = block(index);
            if index == 5 {
                expected[7..17].fill(99);
            }
            assert_eq!(read(&mut client, u64::from(index) * 4096, 4096), expected, "block {index} of {volume}");
        }
        // Newer changes at the survivor are not undone by a replay of older ones.
        write(&mut client, 3 * 4096, vec![77; 4096]);
        pair.signal(survivor, "KILL");
        let shown = log_of(&pair, survivor, &["log", "show", "--mirror"]);
        let performed = records(&shown).iter().filter(|row| row["kind"] == "block").count();
        assert!(performed >= 1, "the survivor logs what it serves in its own portion: {shown}");
    }
}

/// The tests tested: each fails when a rule that it guards is broken, in the very processes that users run.
#[cfg(feature = "planted-bugs")]
mod planted {
    use std::process::Command;

    /// A test, and a bug that breaks the rule that it shows.
    const TABLE: [(&str, &str); 9] = [
        ("claims_79_84_88_103_109_110_an_answer_does_not_wait_for_the_disks", "answers-wait-for-disks"),
        ("claims_82_99_102_105_a_restart_performs_exactly_the_rest", "recovery-does-not-advance"),
        ("claims_80_101_the_image_on_disk_is_whole_at_every_kill", "list-blocks-leak"),
        ("claims_83_106_a_recovery_that_is_interrupted_is_repeated_by_the_same_path", "recovery-does-not-advance"),
        ("claims_86_87_107_108_the_log_holds_blocks_and_requests", "no-block-descriptors"),
        ("claims_86_87_107_108_the_log_holds_blocks_and_requests", "replay-skips-discards"),
        ("claim_100_a_pool_refuses_the_log_of_another", "any-log-taken"),
        ("claims_77_81_85_94_95_96_98_every_descriptor_lies_at_both_nodes", "mirror-keeps-nothing"),
        ("claims_77_78_81_82_83_99_105_106_the_partner_performs_exactly_the_rest", "mirror-keeps-nothing"),
    ];

    #[test]
    fn every_claims_test_fails_when_its_rule_is_broken() {
        let own = std::env::current_exe().expect("a test runs");
        for (test, bug) in TABLE {
            let mut command = Command::new(&own);
            command.args(["--exact", test]).env("TWINLOG_PLANTED_BUG", bug);
            let output = command.output().expect("it starts again");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains(&format!("test {test} ... FAILED")), "{test} does not notice {bug}:\n{said}");
            println!("{bug}: noticed by {test}");
        }
    }
}
