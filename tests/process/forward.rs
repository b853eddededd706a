//! Clients of a pair connect to either node: each exports every volume, and whoever is connected to a node that lives sees no error when the
//! other one dies, and when the pool goes back.
//!
//! ```text
//! TWINLOG_FORWARD_ROUNDS=50 TWINLOG_SEED=7 cargo test --release --test process forward::
//! ```

use crate::common::{
    self, command, installed, load_tool, number,
    pair::{Pair, prove},
    pause_ms, run,
};
use std::{
    fs::{self, File},
    path::Path,
    process::Child,
};
use twinlog::base::Prng;

/// A program that runs beside what happens to the pair, and what it says.
struct Beside {
    child: Child,
    said: std::path::PathBuf,
}

impl Beside {
    fn start(pair: &Pair, program: &str, arguments: &[String]) -> Self {
        let said = pair.folder.path().join("said");
        let file = File::create(&said).expect("a file of ours");
        let mut command = command(program, arguments);
        command.stdout(file.try_clone().expect("a handle")).stderr(file);
        Self { child: command.spawn().expect("coreutils' timeout can be started"), said }
    }

    /// Load with proof for so many seconds. It fails when a single request does.
    fn load(pair: &Pair, (node, volume): (&str, &str), journal: &Path, (seed, seconds): (u64, u64)) -> Self {
        let arguments = [
            pair.uri(node, volume),
            "--rw=randrw".into(),
            "--bs=512-64k".into(),
            "--align=512".into(),
            "--qd=8".into(),
            format!("--time={seconds}"),
            "--warmup=0".into(),
            "--verify".into(),
            format!("--seed={seed}"),
            format!("--journal={}", journal.display()),
        ];
        Self::start(pair, load_tool().to_str().expect("plain"), &arguments)
    }

    fn must_succeed(mut self, pair: &Pair) {
        let status = self.child.wait().expect("a child of ours");
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        assert!(status.success(), "{status}: {said}\n{}", pair.said());
    }
}

#[test]
fn each_socket_exports_every_volume_of_the_pair() {
    let pair = Pair::start();
    if !installed(&["nbdinfo", "nbdcopy", "cmp"]) {
        return;
    }
    let made = pair.run("a", &["volume", "create", "extra", "8MiB"]);
    assert!(made.status.success(), "{made:?}");
    let names = |node: &str| {
        let uri = format!("nbd+unix:///?socket={}", pair.dir().join(node).join("nbd.sock").display());
        let listed: serde_json::Value =
            serde_json::from_str(&run("nbdinfo", &["--json", "--list", &uri])).expect("JSON");
        let exports = listed["exports"].as_array().expect("a list").clone();
        let name = |export: &serde_json::Value| export["export-name"].as_str().expect("a name").to_owned();
        let mut names: Vec<String> = exports.iter().map(name).collect();
        names.sort();
        names
    };
    for node in ["a", "b"] {
        pair.until("all volumes are listed", || (names(node) == ["extra", "vol-a", "vol-b"]).then_some(()));
        let own: serde_json::Value =
            serde_json::from_str(&run("nbdinfo", &["--json", &pair.uri(node, "")])).expect("JSON");
        let size = own["exports"][0]["export-size"].as_u64();
        assert_eq!(size, Some(64 << 20), "the empty name is the own volume");
    }
    // Written at one node, read at the other.
    let (source, copy) = (pair.folder.path().join("source"), pair.folder.path().join("copy"));
    let mut prng = Prng::new(5);
    let bytes: Vec<u8> = (0..8 << 20).map(|_| u8::try_from(prng.below(256)).expect("a byte")).collect();
    fs::write(&source, bytes).expect("there is room");
    let (source, copy) = (source.to_str().expect("plain"), copy.to_str().expect("plain"));
    run("nbdcopy", &[source, &pair.uri("b", "extra")]);
    run("nbdcopy", &[&pair.uri("a", "extra"), copy]);
    run("cmp", &[source, copy]);
}

#[test]
fn load_at_the_survivor_hears_no_error() {
    let seed = common::seed();
    let rounds = number("TWINLOG_FORWARD_ROUNDS").unwrap_or(2);
    println!("seed {seed}, {rounds} rounds");
    let mut prng = Prng::new(seed);
    let pair = Pair::start();
    for round in 0..rounds {
        let (victim, survivor) = if prng.chance(1, 2) { ("a", "b") } else { ("b", "a") };
        let volume = format!("vol-{victim}");
        let journal = pair.folder.path().join(format!("journal-{victim}"));
        // Long enough for the takeover, for the partner's return, and for the pool's.
        let load = Beside::load(&pair, (survivor, &volume), &journal, (prng.below(1 << 60), 14));
        let instant = prng.between(200, 2500);
        pause_ms(instant);
        pair.signal(victim, "KILL");
        println!("round {round}: {victim} killed after {instant} ms");
        load.must_succeed(&pair);
        pair.until_ok();
        for node in [victim, survivor] {
            prove(&pair.uri(node, &volume), &journal)
                .unwrap_or_else(|said| panic!("seed {seed} round {round}, at {node}: {said}\n{}", pair.said()));
        }
    }
}

#[test]
fn load_at_either_node_survives_that_the_pool_moves_by_command() {
    let pair = Pair::start();
    for (node, seed) in [("a", 3), ("b", 4)] {
        let journal = pair.folder.path().join(format!("journal-{node}"));
        let load = Beside::load(&pair, (node, "vol-a"), &journal, (seed, 10));
        pause_ms(1000);
        let moved = pair.run("b", &["pair", "takeover", "a"]);
        assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
        pause_ms(1000);
        let back = pair.run("b", &["pair", "giveback", "a"]);
        assert!(back.status.success(), "{back:?}\n{}", pair.said());
        load.must_succeed(&pair);
        pair.until_ok();
        for place in ["a", "b"] {
            prove(&pair.uri(place, "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
        }
    }
}

#[test]
fn fio_and_qemu_at_the_survivor_notice_nothing() {
    if !installed(&["fio", "qemu-io"]) {
        return;
    }
    let pair = Pair::start();
    let uri = pair.uri("b", "vol-a");
    let job = [
        "--name=job",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--size=32M",
        "--iodepth=16",
        "--rate_iops=600",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    let job = job.iter().map(|option| (*option).to_owned()).chain([format!("--uri={uri}")]);
    let fio = Beside::start(&pair, "fio", &job.collect::<Vec<_>>());
    pause_ms(700);
    pair.signal("a", "KILL");
    fio.must_succeed(&pair);
    pair.until_ok();
    let steps = [
        "write -P 7 100 1M",
        "sleep 3000",
        "read -P 7 100 1M",
        "write -z -u 4096 64k",
        "flush",
        "read -P 0 4096 64k",
        "read -P 7 100 3996",
    ];
    let commands = steps.iter().flat_map(|step| ["-c".to_owned(), (*step).to_owned()]);
    let arguments: Vec<String> = ["-f", "raw"].map(str::to_owned).into_iter().chain(commands).chain([uri]).collect();
    let qemu = Beside::start(&pair, "qemu-io", &arguments);
    pause_ms(1500);
    pair.signal("a", "KILL");
    let said = qemu.said.clone();
    qemu.must_succeed(&pair);
    let said = fs::read_to_string(said).expect("a file of ours");
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    pair.until_ok();
}
