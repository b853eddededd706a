//! NVMe/TCP between real processes: `twinlog-load` as a multipath host of a pair that loses a node.
//!
//! A host has a path to each node, over several queues. It writes with a journal of what was answered; the node that serves the volume gets SIGKILL or is
//! stopped for a while; the host goes on by the other path without an error; the pool comes back; and the journal proves that nothing answered was lost.
//!
//! ```text
//! cargo test --release --test process nvme:: -- --ignored --nocapture       50 rounds
//! TWINLOG_PAIR_ROUNDS=1000 TWINLOG_SEED=7 cargo test --release ...        more of them, from a given seed
//! ```

use crate::common::{
    self, command, load_command, load_tool, number,
    nvme::{BLOCK, DIFFERS, Host},
    outcome,
    pair::{Pair, prove},
    pause_ms, signal,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};
use twinlog::base::Prng;

const VOLUMES: [&str; 2] = ["vol-a", "vol-b"];

/// How a volume is reached over both nodes, as `up` says it, with options.
pub(super) fn uri(pair: &Pair, volume: &str, options: &str) -> String {
    let said = pair.said();
    let line = said.lines().find(|line| line.contains(&format!("{volume} (")) && line.contains("nvme-tcp://"));
    let uri = line.and_then(|line| line.split_whitespace().last()).unwrap_or_else(|| panic!("no address in {said}"));
    format!("{uri}&kato=2{options}")
}

/// The same by the discovery service of one node.
pub(super) fn discovered(pair: &Pair, node: usize, volume: &str, options: &str) -> String {
    let ports = fs::read_to_string(pair.dir().join("nvme-ports")).expect("up has written it");
    let address = ports.lines().nth(node).expect("an address for each node");
    let uri = uri(pair, volume, options);
    format!("nvme-tcp://{address}/{}", uri.rsplit('/').next().expect("the part behind the addresses"))
}

/// A load of every kind of request; `more` says how long, and of which sizes.
pub(super) fn load(uri: &str, journal: &Path, seed: u64, more: &[&str]) -> Child {
    let arguments = [
        uri.to_owned(),
        "--rw=randrw".into(),
        "--mix=30".into(),
        "--qd=16".into(),
        "--connections=2".into(),
        "--warmup=0".into(),
        "--flush-every=100".into(),
        "--zero=5".into(),
        "--trim=5".into(),
        "--fua=5".into(),
        "--verify".into(),
        "-o=json".into(),
        format!("--seed={seed}"),
        format!("--journal={}", journal.display()),
    ];
    let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
    let mut load = load_command(&[&arguments[..], &more].concat());
    load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coreutils' timeout can be started")
}

/// Waits for a load that must have met no error; its report.
pub(super) fn finish(load: Child, pair: &Pair) -> Value {
    end(load, "finished", pair)
}

/// Waits for a load that must have met no error and have ended for this reason; its report.
pub(super) fn end(load: Child, reason: &str, pair: &Pair) -> Value {
    let output = load.wait_with_output().expect("a child of ours");
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}: {}\n{}\n{}", output.status, words(&output.stdout), words(&output.stderr), pair.said());
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((report["end"].as_str(), report["errors"].as_array().map(Vec::len)), (Some(reason), Some(0)), "{said}");
    report
}

#[test]
fn both_nodes_serve_every_namespace_in_every_way_that_data_can_go() {
    let pair = Pair::start();
    for (node, volume) in VOLUMES.into_iter().enumerate() {
        for (number, options) in ["", "&digest=both", "&capsule=no", "&capsule=no&digest=both"].iter().enumerate() {
            let journal = pair.folder.path().join(format!("journal-{node}-{number}"));
            // By the node that has it, and by the one that has not.
            let uri = discovered(&pair, (node + number) % 2, volume, options);
            let more = ["--ops=200", "--time=300", "--bs=4k-1m", "--align=4k", "--size=16m"];
            let report = finish(load(&uri, &journal, 5, &more), &pair);
            assert!(report["classes"].as_array().is_some_and(|classes| classes.len() == 5), "every kind: {report}");
            prove(&uri, &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
        }
    }
}

#[test]
fn a_volume_in_blocks_of_512_bytes_is_served_by_both_nodes() {
    let pair = Pair::start();
    let made = pair.run("a", &["volume", "create", "fine", "16MiB", "--block-size", "512"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let id = pair.until("both nodes know of it", || {
        let id = |node| {
            let status = pair.status(node)?;
            let namespaces = status["status"]["nvme_tcp"]["namespaces"].as_array()?;
            namespaces.iter().find(|one| one["volume"] == "fine")?["id"].as_u64()
        };
        id("b").and(id("a"))
    });
    for node in 0..2 {
        let journal = pair.folder.path().join(format!("journal-{node}"));
        let address = discovered(&pair, node, "vol-a", "");
        let (address, _) = address.split_once('?').expect("a URI with options");
        let uri = format!("{address}?nsid={id}&kato=2");
        let more = ["--ops=300", "--time=300", "--bs=512-64k", "--align=512"];
        finish(load(&uri, &journal, 7, &more), &pair);
        prove(&uri, &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
    }
    let refused = pair.run("a", &["volume", "create", "odd", "16MiB", "--block-size", "1024"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn who_names_no_namespace_is_told_which_there_are() {
    let pair = Pair::start();
    let uri = discovered(&pair, 0, "vol-a", "");
    let uri = uri.split('?').next().expect("a URI");
    pair.until("node a knows both volumes", || {
        let refused = outcome(&mut command(load_tool().to_str().expect("plain"), &[uri, "--ops=1"]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(3), "{said}");
        (said.contains("?nsid=1 (") && said.contains("?nsid=2 (")).then_some(())
    });
    // Until a node has seen who serves its partner's pool, it does not say that it leads there.
    let status = pair.until("the access is known", || {
        let status = pair.status("a")?;
        let namespaces = status["status"]["nvme_tcp"]["namespaces"].as_array()?;
        namespaces.iter().all(|one| one["access"] != "inaccessible").then_some(status)
    });
    let front = &status["status"]["nvme_tcp"];
    let namespaces = front["namespaces"].as_array().expect("two volumes");
    let access = |volume: &str| namespaces.iter().find(|one| one["volume"] == volume).map(|one| &one["access"]);
    assert_eq!(access("vol-a").and_then(Value::as_str), Some("optimized"), "{status}");
    assert_eq!(access("vol-b").and_then(Value::as_str), Some("non-optimized"), "{status}");
    let text = String::from_utf8_lossy(&pair.run("a", &["status"]).stdout).into_owned();
    assert!(text.contains("NVMe/TCP") && text.contains("is vol-a, optimized"), "{text}");
}

fn rounds(count: u64) {
    let seed = common::seed();
    println!("seed {seed}, {count} rounds");
    let mut prng = Prng::new(seed);
    let pair = Pair::start();
    for round in 0..count {
        let (victim, volume) = (*prng.pick(&["a", "b"]), *prng.pick(&VOLUMES));
        let journal = pair.folder.path().join(format!("journal-{volume}"));
        let uri = uri(&pair, volume, "");
        let seed_of_load = prng.below(1 << 60);
        let mut load = load(&uri, &journal, seed_of_load, &["--time=4", "--bs=4k-64k", "--reconnect=60"]);
        let instant = prng.between(300, 1500);
        pause_ms(instant);
        assert!(load.try_wait().expect("a child of ours").is_none(), "the load goes on");
        pair.signal(victim, "KILL");
        let report = finish(load, &pair);
        let pause = &report["longest_pause_seconds"];
        println!("round {round}: {victim} killed after {instant} ms under {volume}: pause of {pause} s");
        prove(&uri, &journal).unwrap_or_else(|said| panic!("seed {seed} round {round}: {said}\n{}", pair.said()));
        pair.until_ok();
        prove(&uri, &journal).unwrap_or_else(|said| panic!("seed {seed}, given back: {said}\n{}", pair.said()));
    }
}

#[test]
fn a_host_with_both_paths_survives_the_death_of_a_node() {
    rounds(3);
}

#[test]
#[ignore = "takes half an hour"]
fn a_host_with_both_paths_survives_many_deaths() {
    rounds(number("TWINLOG_PAIR_ROUNDS").unwrap_or(50));
}

/// A pool that moves by command: the host hears of it, and follows.
#[test]
fn a_host_follows_a_pool_that_is_moved() {
    let pair = Pair::start();
    let journal = pair.folder.path().join("journal");
    // An answer that is late because the machine is busy is no path that is lost.
    let uri = uri(&pair, "vol-a", "").replace("kato=2", "kato=60");
    let mut load = load(&uri, &journal, 9, &["--time=900", "--bs=4k-64k"]);
    pause_ms(500);
    let moved = pair.run("b", &["pair", "takeover", "a"]);
    assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
    pause_ms(1000);
    assert!(load.try_wait().expect("a child of ours").is_none(), "the load goes on");
    signal(load.id(), "TERM");
    let report = end(load, "interrupted", &pair);
    assert_eq!(report["pauses"].as_array().map(Vec::len), Some(0), "no path was lost: {report}");
    pair.until_ok();
    prove(&uri, &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

/// The ways to a volume: one over each node.
pub(crate) struct Ways {
    addresses: [String; 2],
    subsystem: String,
    namespace: u32,
}

impl Ways {
    pub(crate) fn to(pair: &Pair, volume: &str) -> Self {
        let uri = uri(pair, volume, "");
        let (_, options) = uri.split_once('?').expect("a URI with options");
        let subsystem = pair.until("the node has a subsystem", || {
            Some(pair.status("a")?["status"]["nvme_tcp"]["subsystem"].as_str()?.to_owned())
        });
        let namespace = options.split('&').find_map(|option| option.strip_prefix("nsid=")?.parse().ok());
        let namespace = namespace.expect("the namespace is named");
        let ports = fs::read_to_string(pair.dir().join("nvme-ports")).expect("up has written it");
        let mut lines = ports.lines().map(str::to_owned);
        let addresses = [0, 1].map(|_| lines.next().expect("a line for each node"));
        Self { addresses, subsystem, namespace }
    }

    /// The host `number` connects to a node, 0 or 1.
    pub(crate) fn connect(&self, node: usize, number: u8) -> Host {
        let address = &self.addresses[node];
        Host::connect(address, &self.subsystem, (number, self.namespace))
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }
}

/// A host at each node, numbered from 1, for a volume.
pub(crate) fn hosts_of(pair: &Pair, volume: &str) -> [Host; 2] {
    let ways = Ways::to(pair, volume);
    [ways.connect(0, 1), ways.connect(1, 2)]
}

/// The block that a counter lies in.
fn block_of(count: u64) -> Vec<u8> {
    count.to_le_bytes().repeat(BLOCK / 8)
}

/// Whether a status says that the path is to blame: the command is to be sent again. It was not performed; after 302h, which a node that has waited in vain says, it
/// may have been.
pub(crate) fn is_of_path(status: u16) -> bool {
    (0x300..0x400).contains(&status)
}

/// A counter's value.
fn count_at(host: &mut Host) -> u64 {
    loop {
        match host.read(0).expect("the node lives") {
            Ok(block) => {
                let count = u64::from_le_bytes(*block.first_chunk().expect("a block"));
                assert_eq!(block, block_of(count), "a block is whole");
                return count;
            }
            Err(status) => assert!(is_of_path(status), "{status:#x}"),
        }
        pause_ms(5);
    }
}

/// What becomes of a compare-and-write by which a counter goes from `expected` to `new`; sent again while the path is to blame.
fn exchange(host: &mut Host, expected: u64, new: u64) -> [u16; 2] {
    loop {
        let statuses = host.compare_and_write(0, &block_of(expected), &block_of(new)).expect("the node lives");
        if !is_of_path(statuses[0]) {
            return statuses;
        }
        assert_eq!(statuses[1], DIFFERS[1]);
        pause_ms(5);
    }
}

#[test]
fn both_nodes_compare_and_write_the_same_block() {
    let pair = Pair::start();
    let mut hosts = hosts_of(&pair, "vol-a");
    let start = count_at(&mut hosts[1]);
    assert_eq!(start, 0);
    for count in 0..20 {
        let at = usize::try_from(count % 2).expect("small");
        assert_eq!(exchange(&mut hosts[at], count, count + 1), [0, 0], "{count}");
        assert_eq!(exchange(&mut hosts[at], count, 99), DIFFERS, "{count}");
        assert_eq!(exchange(&mut hosts[1 - at], count, 99), DIFFERS, "{count}");
        assert_eq!((count_at(&mut hosts[0]), count_at(&mut hosts[1])), (count + 1, count + 1));
    }
}

/// The host at the node that forwards counts; the node that serves is killed under it. What had been performed there is known by its name: nothing is compared
/// with what it has written itself, and each step of the counter is answered once.
#[test]
fn a_counter_loses_no_step_when_the_node_that_serves_is_killed() {
    let pair = Pair::start();
    let [mut local, mut remote] = hosts_of(&pair, "vol-a");
    let is_over = AtomicBool::new(false);
    let steps = std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(exchange(&mut remote, count, count + 1), [0, 0], "step {count}: nobody else counts");
                count += 1;
            }
            count
        });
        pause_ms(700);
        pair.signal("a", "KILL");
        pair.until_served_again("a", "b");
        pause_ms(300);
        is_over.store(true, Ordering::Relaxed);
        counting.join().expect("every step was answered")
    });
    assert!(steps > 0 && count_at(&mut remote) == steps, "{steps} steps");
    assert!(local.read(0).is_err(), "its node was killed");
    pair.until_ok();
    let [mut local, mut remote] = hosts_of(&pair, "vol-a");
    assert_eq!((count_at(&mut local), count_at(&mut remote)), (steps, steps));
}
