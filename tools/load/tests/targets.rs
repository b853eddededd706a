//! Files, a foreign NBD server, and the forms of the result.

mod support;

use std::{
    io::{Seek as _, SeekFrom, Write as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{ALL_FLAGS, Fault, Server, command, foreign, load};

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_is_written_verified_and_proved() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (file, journal) = (path("f"), path("j"));
    for mode in ["", "--buffered"] {
        // One at a time: of a sector that two writes change at once, a disk promises nothing.
        let arguments = "--size 1m --qd 1 --rw randrw --bs 4k-64k --zero 10 --trim 5 --fua=20 --flush-every 30 --warmup 0 --ops 1000 --verify";
        load(&file, &format!("{arguments} --journal {journal}{mode} {mode}")).ends(0).says("all as they must be");
        load(&file, &format!("--prove {journal}{mode} {mode}")).ends(0).says("PROVEN");
    }
    // Behind the tool's back, every block changes: wherever the last run wrote, the proof sees it.
    let mut raw = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    for block in 0..256_u64 {
        raw.seek(SeekFrom::Start(block * 4096 + 700)).unwrap();
        raw.write_all(b"rot").unwrap();
    }
    raw.sync_all().unwrap();
    load(&file, &format!("--prove {journal}--buffered")).ends(1).says("DAMAGED");
}

#[test]
fn a_missing_file_is_not_made_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").display().to_string();
    load(&path, "--ops 1").ends(2).says("No such file");
    load(&path, "--ops 1 --rw randread --size 1m").ends(2);
    assert!(!std::path::Path::new(&path).exists());
    load("/dev/no-such-disk", "--ops 1 --size 1m").ends(2);
}

#[test]
fn a_proof_waits_for_its_target_and_a_load_does_not() {
    let server = Server::start(1 << 20, Fault::None);
    let journal = server.path("journal");
    server.load(&format!("--ops 100 --warmup 0 --journal {journal}")).ends(0);
    // Nobody listens under the name for a while, as after a crash.
    std::fs::rename(server.path("s"), server.path("away")).unwrap();
    server.load("--ops 1").ends(3).says("No such file");
    let mut proof = command(server.uri(), &format!("--prove {journal}")).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(proof.try_wait().unwrap().is_none(), "it waits");
    std::fs::rename(server.path("away"), server.path("s")).unwrap();
    let output = proof.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn json_and_page_hold_the_whole_result() {
    let server = Server::start(1 << 20, Fault::None);
    let page = server.path("page.html");
    let json =
        server.load(&format!("--time 0.5 --warmup 0.1 --rw randrw --seed 9 -o json --report {page}")).ends(0).json();
    assert_eq!(
        (json["schema_version"].as_u64(), json["seed"].as_u64(), json["end"].as_str()),
        (Some(1), Some(9), Some("finished"))
    );
    let ops = json["acknowledged"]["ops"].as_u64().unwrap();
    let classes = json["classes"].as_array().unwrap();
    let counted: u64 =
        classes.iter().filter(|class| class["kind"] != "flush").map(|class| class["ops"].as_u64().unwrap()).sum();
    let points = json["series"]["points"].as_array().unwrap();
    assert!(ops > 0 && counted == ops && points.iter().map(|point| point["ops"].as_u64().unwrap()).sum::<u64>() == ops);
    assert!(
        json["durable"]["seconds"].as_f64() > json["acknowledged"]["seconds"].as_f64(),
        "the flush is inside the clock"
    );
    assert!(classes.iter().all(|class| class["histogram_v2"].as_str().unwrap().starts_with("HISTEw")), "V2 cookie");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("<polyline").count() >= 4 && !page.contains("<script"));
    let quiet = server.load("--time 0.2 --warmup 0 --no-flush -o json").ends(0);
    assert!(
        quiet.json()["durable"].is_null() && quiet.error.is_empty(),
        "no live line without a terminal: {}",
        quiet.error
    );
}

#[test]
fn a_seed_repeats_the_requests_and_a_count_ends_them() {
    let counts = || {
        let server = Server::start(1 << 20, Fault::None);
        let run = server.load("--rw randrw --bs 512-8k --zero 10 --ops 500 --warmup 0 --qd 1 --seed 5 -o json").ends(0);
        let classes = run.json()["classes"].as_array().unwrap().clone();
        classes
            .iter()
            .map(|class| (class["kind"].clone(), class["ops"].clone(), class["bytes"].clone()))
            .collect::<Vec<_>>()
    };
    let first = counts();
    assert_eq!(first, counts());
    let all: u64 = first.iter().filter(|(kind, ..)| kind != "flush").map(|(_, ops, _)| ops.as_u64().unwrap()).sum();
    assert_eq!(all, 500);
}

#[test]
fn a_flush_goes_over_every_connection_that_does_not_speak_for_the_others() {
    for (flags, flushes) in [(ALL_FLAGS, 1), (ALL_FLAGS & !256, 3)] {
        let server = Server::start(1 << 20, Fault::None);
        server.promise(flags);
        server.load("--connections 3 --ops 10 --warmup 0").ends(0);
        assert_eq!(server.flushes(), flushes);
    }
}

#[test]
fn what_an_export_does_not_offer_is_not_used() {
    let server = Server::start(1 << 20, Fault::None);
    server.promise(1);
    for wish in ["--fua", "--flush-every 3", "--zero 1", "--trim 1"] {
        server.load(wish).ends(2).says("does not offer");
    }
    let run = server.load("--ops 10 --warmup 0 -o json").ends(0);
    assert!(run.json()["durable"].is_null() && server.flushes() == 0, "without flush nothing is known to be durable");
    server.promise(1 | 2);
    server.load("--ops 10").ends(2).says("read-only");
    server.load("--ops 10 --warmup 0 --rw randread").ends(0);
}

#[test]
fn an_interrupted_run_drains_flushes_and_reports() {
    let server = Server::start(1 << 20, Fault::None);
    let journal = server.path("j");
    let arguments = format!("--time 60 --warmup 0 -o json --journal {journal}");
    let child = command(server.uri(), &arguments).stdout(Stdio::piped()).spawn().unwrap();
    while std::fs::metadata(&journal).map_or(0, |meta| meta.len()) < 10_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(process, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), json["end"].as_str()), (Some(0), Some("interrupted")));
    assert!(json["durable"]["ops"].as_u64().unwrap() > 0);
    server.load(&format!("--prove {journal} --level durable")).ends(0).says("0 failed");
}

#[test]
fn nbdkit_is_loaded_and_verified() {
    let Some(nbdkit) = foreign("nbdkit", "nbdkit") else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Command::new(nbdkit).args(["-f", "-U"]).arg(&socket).args(["memory", "64M"]).spawn().unwrap();
    let _guard = Guard(server);
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let target = format!("nbd+unix:///?socket={}", socket.display());
    let journal = dir.path().join("j").display().to_string();
    let mixed = "--rw randrw --bs 512-128k --size 16m --zero 5 --trim 5 --fua=10 --flush-every 100 --connections 3 --verify --ops 3000";
    load(&target, &format!("{mixed} --warmup 0 --blank --journal {journal}")).ends(0).says("all as they must be");
    load(&target, &format!("--prove {journal} --connections 2")).ends(0).says("PROVEN");
    load(&target, "--rw randread --ops 1000 --warmup 0 --qd 1").ends(0);
}
