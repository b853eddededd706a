//! A full pool and a full log, on a real process: what does not fit is refused with the protocol's own error and loses nothing, what is
//! freed comes back, and a node that is killed while it is full comes back full and whole.

use crate::common::{
    self, Target, command,
    nbd::{BLOCK_STATUS, Client, FLUSH, FUA, READ, Request, TRIM, WRITE, WRITE_ZEROES},
    pause_ms,
};
use std::{
    collections::BTreeSet,
    fs::{self, File},
};

/// The protocol's number for a full device.
const NO_SPACE: u32 = 28;
/// A volume far larger than the pool.
const THIN: &str = "thin";
const THIN_BYTES: u64 = 4 << 30;
/// Small, so that it fills quickly.
const POOL_BYTES: u64 = 64 << 20;
const CHUNK: u32 = 1 << 20;
/// Polls of 50 ms until something is taken for broken: 60 s.
const POLLS_MAX: usize = 1200;

fn connect(target: &Target, name: &str, size_bytes: u64) -> Client {
    Client::connect(&target.socket(), name, size_bytes).expect("the target answers")
}

fn call(client: &mut Client, command: u16, offset: u64, length: u32, data: Vec<u8>) -> u32 {
    let request = Request { command, flags: 0, offset, length, data };
    client.call(&request).expect("the target answers").error
}

/// What chunk `index` holds in its `version`.
fn content(index: u64, version: u8) -> Vec<u8> {
    let stamp = (index << 8 | u64::from(version)).to_le_bytes();
    stamp.repeat(CHUNK as usize / stamp.len())
}

fn write(client: &mut Client, index: u64, version: u8) -> u32 {
    call(client, WRITE, index * u64::from(CHUNK), CHUNK, content(index, version))
}

/// Reads chunk `index` and says which of `versions` it holds.
fn version(client: &mut Client, index: u64, versions: &[u8]) -> u8 {
    let request =
        Request { command: READ, flags: 0, offset: index * u64::from(CHUNK), length: CHUNK, data: Vec::new() };
    let mut reply = client.call(&request).expect("the target answers");
    assert_eq!(reply.error, 0, "chunk {index}");
    reply.pieces.sort();
    let read: Vec<u8> = reply.pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let found = versions.iter().find(|version| read == content(index, **version));
    *found.unwrap_or_else(|| panic!("chunk {index} holds none of its versions {versions:?}: {:?}", &read[..16]))
}

/// Writes chunks from `first` on until one does not fit; returns the one that did not.
fn fill(client: &mut Client, first: u64, version: u8) -> u64 {
    for index in first..THIN_BYTES / u64::from(CHUNK) {
        match write(client, index, version) {
            0 => {}
            NO_SPACE => return index,
            error => panic!("chunk {index}: error {error}, not ENOSPC"),
        }
    }
    panic!("a pool of 64 MiB takes 4 GiB");
}

/// Tries until it succeeds: what was freed comes back with the next consistency points.
fn soon(what: &str, mut attempt: impl FnMut() -> bool) {
    for _ in 0..POLLS_MAX {
        if attempt() {
            return;
        }
        pause_ms(50);
    }
    panic!("it takes for ever until {what}");
}

/// A node whose pool has [`POOL_BYTES`], with a volume `vol-a` of 16 MiB.
fn small_pool() -> Target {
    let mut target = Target::start_with("16MiB", &["--log-size", "8MiB"]);
    target.stop();
    let (home, disk) = (target.data().join("a"), target.data().join("disks/pool-a.img"));
    let empty = File::create(disk).and_then(|file| file.set_len(POOL_BYTES));
    empty.and_then(|()| fs::write(home.join("first-start"), "16MiB")).expect("our own files");
    let mut create = command(env!("CARGO_BIN_EXE_twinlog"), &["pool", "create", "--config"]);
    common::succeed(create.arg(home.join("node.toml")).arg("--overwrite").arg(home.join("log")));
    target.restart();
    target
}

fn is_whole(target: &Target) {
    let report = target.twinlog(&["pool", "check"]);
    assert_eq!(report["problems"], serde_json::json!([]));
}

#[test]
fn a_full_pool_refuses_keeps_what_it_has_and_takes_more_when_space_is_freed() {
    let mut target = small_pool();
    let _made = target.twinlog(&["volume", "create", THIN, "4GiB"]);
    let mut client = connect(&target, THIN, THIN_BYTES);
    let end = fill(&mut client, 0, 1);
    assert!(end > 40 && end < 64, "a pool of 64 MiB takes {end} MiB");
    println!("full after {end} MiB");
    // Full: everything that needs no space works, and an overwrite happens whole or not at all.
    for index in [0, 1, end / 2, end - 1] {
        assert_eq!(version(&mut client, index, &[1]), 1);
    }
    let mut replaced = BTreeSet::new();
    for index in [3, 5, end / 3] {
        match write(&mut client, index, 2) {
            0 => drop(replaced.insert(index)),
            error => assert_eq!(error, NO_SPACE),
        }
    }
    assert_eq!(call(&mut client, FLUSH, 0, 0, Vec::new()), 0);
    assert_eq!(call(&mut client, BLOCK_STATUS, 0, 64 << 20, Vec::new()), 0);
    assert_eq!(call(&mut client, WRITE_ZEROES, (end + 9) << 20, CHUNK, Vec::new()), 0, "zeroes need no space there");
    let status = target.status();
    assert_eq!(status["status"]["state"], "serving", "{status}");
    // Killed while it is full, it comes back full, with everything.
    drop(client);
    for _ in 0..2 {
        target.kill();
        target.restart();
    }
    let mut client = connect(&target, THIN, THIN_BYTES);
    for index in 0..end {
        let versions: &[u8] = if replaced.contains(&index) { &[2] } else { &[1] };
        version(&mut client, index, versions);
    }
    is_whole(&target);
    // What is freed comes back, all of it.
    let half = end / 2;
    let freed = u32::try_from(half << 20).expect("less than 4 GiB");
    soon("a discard fits", || call(&mut client, TRIM, 0, freed, Vec::new()) == 0);
    soon("space comes back", || write(&mut client, end, 3) == 0);
    let mut next = end + 1;
    soon("all space comes back", || {
        next = fill(&mut client, next, 3);
        next >= end + half * 3 / 4
    });
    for index in (half..end).chain(end..next) {
        let versions: &[u8] = if index >= end {
            &[3]
        } else if replaced.contains(&index) {
            &[2]
        } else {
            &[1]
        };
        version(&mut client, index, versions);
    }
    // A volume can be deleted from a full pool, and another one gets its space.
    drop(client);
    let deleted = target.twinlog(&["volume", "delete", THIN, "--yes"]);
    assert!(deleted["error"].is_null(), "{deleted}");
    let mut other = connect(&target, "vol-a", 16 << 20);
    for index in 0..16 {
        soon("the other volume has room", || write(&mut other, index, 4) == 0);
    }
    (0..16).for_each(|index| assert_eq!(version(&mut other, index, &[4]), 4));
    is_whole(&target);
    target.kill();
    target.restart();
    let mut other = connect(&target, "vol-a", 16 << 20);
    (0..16).for_each(|index| assert_eq!(version(&mut other, index, &[4]), 4));
}

#[test]
fn a_log_that_is_always_full_slows_clients_down_and_refuses_nothing() {
    const VOLUME_BYTES: u64 = 64 << 20;
    const IN_FLIGHT: u64 = 8;
    let mut target = Target::start_with("64MiB", &["--log-size", "8MiB"]);
    // Thirty times what the log holds, as fast as it is taken; then killed in the middle, with a log that is as full as it gets.
    for (version_now, total, kill) in [(1, 240, false), (2, 40, true), (3, 64, false)] {
        let mut client = connect(&target, "vol-a", VOLUME_BYTES);
        let (mut sent, mut answered, mut open) = (0, BTreeSet::new(), Vec::new());
        while (answered.len() as u64) < total {
            while sent < total.max(64) && sent - (answered.len() as u64) < IN_FLIGHT {
                let (chunk, flags) = (sent % 64, if sent % 16 == 0 { FUA } else { 0 });
                let data = content(chunk, version_now);
                let request = Request { command: WRITE, flags, offset: chunk * u64::from(CHUNK), length: CHUNK, data };
                client.send(sent, &request).expect("the target takes it");
                sent += 1;
            }
            let reply = client.receive(&mut open).expect("the target answers");
            assert_eq!(reply.error, 0, "a full log is no reason to refuse");
            assert!(answered.insert(reply.cookie), "one reply each");
        }
        drop(client);
        if kill {
            target.kill();
            target.restart();
        }
        let mut client = connect(&target, "vol-a", VOLUME_BYTES);
        for chunk in 0..64 {
            let was_answered = answered.iter().any(|cookie| cookie % 64 == chunk);
            let versions = if was_answered { vec![version_now] } else { vec![version_now, version_now - 1] };
            version(&mut client, chunk, &versions);
        }
    }
    is_whole(&target);
}
