//! A flipped bit anywhere in superblock, block or log is found and named, and never served as data: on the files of a real node.
//!
//! For every kind of structure, bits at places drawn from a seed are flipped in the files of a stopped node. Offline, `pool check` must
//! name the block. Online, whatever a client then reads is what was written, or an error.

use crate::common::{
    self, Target, command,
    disk::Disk,
    nbd::{Client, FLUSH, READ, Request, TRIM, WRITE},
    outcome, pause_ms,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};
use twinlog::{
    base::{BlockAddress, CpNumber, Prng},
    control::client::AdminClient,
    format::{
        chain::{AddressRange, ChainEntry, Subtree, decode_chain_block},
        reference::BlockRef,
        superblock::{Superblock, TreeRoot, slot_blocks},
    },
    node::admin::{AdminReply, AdminRequest},
};
use twinlog_device::BLOCK_BYTES;

const VOLUME: &str = "16MiB";
const VOLUME_BYTES: u64 = 16 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of the volume that are read back: all that was written lies there.
const USED_BYTES: u64 = 6 << 20;
/// One request of the comparison.
const READ_BYTES: u32 = 64 << 10;

/// Blocks of a pool by what they are.
type Kinds = BTreeMap<&'static str, Vec<u64>>;

/// A stopped node with copies of its files, so that each damage begins with the same.
struct Patient {
    target: Target,
    /// What the first bytes of the volume hold.
    content: Vec<u8>,
}

fn connect(target: &Target) -> Client {
    Client::connect(&target.socket(), "vol-a", VOLUME_BYTES).expect("the target answers")
}

fn call(client: &mut Client, command: u16, offset: u64, length: u32, data: Vec<u8>) {
    let request = Request { command, flags: 0, offset, length, data };
    assert_eq!(client.call(&request).expect("the target answers").error, 0);
}

fn checkpoint(target: &Target) {
    let mut admin = AdminClient::connect(&target.data().join("a/admin.sock")).expect("the node listens");
    assert_eq!(admin.call(&AdminRequest::Checkpoint).expect("answered"), AdminReply::Done);
}

/// Writes at places drawn from a seed, and keeps `content` in step.
fn write_some(client: &mut Client, prng: &mut Prng, content: &mut [u8], count: usize) {
    for _ in 0..count {
        let length = usize::try_from(prng.between(1, 20_000)).expect("small");
        let offset = usize::try_from(prng.below(USED_BYTES - 20_000)).expect("small");
        let mut data = vec![0; length];
        prng.fill(&mut data);
        content[offset..offset + length].copy_from_slice(&data);
        call(client, WRITE, offset as u64, u32::try_from(length).expect("small"), data);
    }
}

impl Patient {
    /// A node that has written, trimmed, and taken several consistency points.
    fn new(seed: u64) -> Self {
        let target = Target::start_with(VOLUME, &["--log-size", "8MiB"]);
        let _made = target.twinlog(&["volume", "create", "beside", "1GiB"]);
        let mut prng = Prng::new(seed);
        let mut content = vec![0; usize::try_from(USED_BYTES).expect("small")];
        let mut client = connect(&target);
        for round in 0..3 {
            write_some(&mut client, &mut prng, &mut content, 120);
            let hole = round * 171 * BLOCK_BYTES;
            content[hole..hole + 40_960].fill(0);
            call(&mut client, TRIM, hole as u64, 40_960, Vec::new());
            content[hole..hole + 8192].fill(3);
            call(&mut client, WRITE, hole as u64, 8192, vec![3; 8192]);
            checkpoint(&target);
        }
        Self { target, content }
    }

    fn disk(&self) -> PathBuf {
        self.target.data().join("disks/pool-a.img")
    }

    fn log(&self) -> PathBuf {
        self.target.data().join("a/log")
    }

    fn copies(&self) -> [(PathBuf, PathBuf); 2] {
        let copy = |name| self.target.scratch().join(name);
        [(self.disk(), copy("disk-copy")), (self.log(), copy("log-copy"))]
    }

    /// Keeps the files as they are now.
    fn keep(&self) {
        for (file, copy) in self.copies() {
            common::run("cp", &["--sparse=always".into(), file, copy]);
        }
    }

    /// Brings back what was kept.
    fn restore(&self) {
        for (file, copy) in self.copies() {
            common::run("cp", &["--sparse=always".into(), copy, file]);
        }
    }

    /// Starts the node. Everything that it then serves is right, or an error; says how many bytes were errors.
    ///
    /// # Errors
    /// What it said instead of serving.
    fn serves(&mut self, what: &str) -> Result<u64, String> {
        self.target.try_restart()?;
        let mut client = connect(&self.target);
        let mut unreadable = 0;
        for offset in (0..USED_BYTES).step_by(READ_BYTES as usize) {
            if !self.compare(&mut client, offset, READ_BYTES, what) {
                let blocks = (offset..offset + u64::from(READ_BYTES)).step_by(BLOCK_BYTES);
                let bad = |&block: &u64| !self.compare(&mut client, block, 4096, what);
                unreadable += BLOCK * blocks.filter(bad).count() as u64;
            }
        }
        Ok(unreadable)
    }

    /// Reads a range and compares it; false if it is an error.
    fn compare(&self, client: &mut Client, offset: u64, length: u32, what: &str) -> bool {
        let request = Request { command: READ, flags: 0, offset, length, data: Vec::new() };
        let reply = client.call(&request).expect("the node answers");
        if reply.error != 0 {
            return false;
        }
        let mut pieces = reply.pieces;
        pieces.sort();
        let read: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let start = usize::try_from(offset).expect("small");
        assert!(read == self.content[start..start + length as usize], "{what}: wrong data at byte {offset}");
        true
    }

    /// `pool check` of the stopped node.
    fn check(&self) -> (Option<i32>, Value, String) {
        let config = self.target.data().join("a/node.toml");
        let mut check = command(env!("CARGO_BIN_EXE_twinlog"), &["pool", "check", "-o", "json", "--config"]);
        let output = outcome(check.arg(config));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
    }
}

fn flip(path: &Path, offset: u64, mask: u8) {
    Disk::open(path).flip(offset, mask);
}

/// Flips a bit of `block`, drawn from `prng`; returns how to flip it back.
fn flip_in_block(path: &Path, block: u64, prng: &mut Prng) -> (u64, u8) {
    let (offset, mask) = (block * BLOCK + prng.below(BLOCK), 1 << prng.below(8));
    flip(path, offset, mask);
    (offset, mask)
}

/// Finds out what every block of a pool is, from its newest superblock down.
struct Census {
    disk: Disk,
    kinds: Kinds,
}

impl Census {
    fn take(path: &Path) -> (Kinds, Superblock) {
        let mut census = Self { disk: Disk::open(path), kinds: Kinds::new() };
        let newest = census.disk.newest_superblock();
        census.tree(&newest.object_table, ["node of the object table", "objects"]);
        for volume in census.disk.volumes() {
            let tree = TreeRoot { root: volume.root, levels: volume.levels };
            census.tree(&tree, ["node of a volume", "data"]);
        }
        census.tree(&newest.space_map, ["node of the space map", "bitmap"]);
        census.list::<AddressRange>("freed list", newest.freed);
        census.list::<Subtree>("reap list", newest.reap);
        (census.kinds, newest)
    }

    fn tree(&mut self, tree: &TreeRoot, names: [&'static str; 2]) {
        let Self { disk, kinds } = self;
        disk.walk(tree, &mut |reference, level, _| {
            kinds.entry(names[usize::from(level == 0)]).or_default().push(reference.address().block());
        });
    }

    fn list<E: ChainEntry>(&mut self, name: &'static str, mut next: BlockRef) {
        while !next.is_hole() {
            let block = next.address().block();
            self.kinds.entry(name).or_default().push(block);
            next = decode_chain_block::<E>(&self.disk.read(block)).expect("whole").1;
        }
    }
}

#[test]
fn a_flipped_bit_in_any_block_is_named_by_an_offline_check() {
    let mut patient = Patient::new(1);
    patient.target.kill();
    let (kinds, _) = Census::take(&patient.disk());
    println!("{:?}", kinds.iter().map(|(name, blocks)| (*name, blocks.len())).collect::<Vec<_>>());
    for name in [
        "node of the object table",
        "objects",
        "node of a volume",
        "data",
        "node of the space map",
        "bitmap",
        "freed list",
    ] {
        assert!(kinds.contains_key(name), "the pool has no {name}: {kinds:?}");
    }
    let mut prng = Prng::new(2);
    assert_eq!(patient.check().0, Some(0));
    for (name, blocks) in &kinds {
        for _ in 0..6 {
            let block = *prng.pick(blocks);
            let (offset, mask) = flip_in_block(&patient.disk(), block, &mut prng);
            let (code, report, said) = patient.check();
            assert_eq!(code, Some(3), "{name} {block}: {said}");
            let problems = report["problems"].as_array().expect("a list");
            let address = BlockAddress::new(0, block).to_string();
            let named = |problem: &Value| problem.as_str().is_some_and(|line| line.contains(&address));
            assert!(problems.iter().any(named), "{name}, block {address}: {said}");
            flip(&patient.disk(), offset, mask);
        }
    }
    assert_eq!(patient.check().0, Some(0), "every bit was flipped back");
}

#[test]
fn a_flipped_bit_in_any_block_is_never_served() {
    let mut patient = Patient::new(3);
    patient.target.stop();
    patient.keep();
    let (kinds, _) = Census::take(&patient.disk());
    let mut prng = Prng::new(4);
    let (mut served, mut refused) = (0, 0);
    for (name, blocks) in &kinds {
        for _ in 0..2 {
            let block = *prng.pick(blocks);
            let what = format!("{name}, block {block}");
            let _place = flip_in_block(&patient.disk(), block, &mut prng);
            match patient.serves(&what) {
                Ok(unreadable) => {
                    served += 1;
                    let readable = ["node of the space map", "bitmap", "freed list", "reap list"].contains(name);
                    assert!(readable || unreadable > 0 || *name == "node of a volume", "{what}: nobody noticed");
                    assert!(
                        *name != "data" || unreadable == BLOCK,
                        "{what}: {unreadable} bytes are lost with one block"
                    );
                    if unreadable > 0 {
                        let status = patient.target.status();
                        assert!(status["status"]["pool"]["checksum_errors"].as_u64() > Some(0), "{what}: {status}");
                        let report = patient.target.twinlog(&["pool", "check"]);
                        assert!(report["damaged"][0]["volume"].is_string(), "{what}: {report}");
                    }
                }
                Err(said) => {
                    refused += 1;
                    let address = BlockAddress::new(0, block).to_string();
                    assert!(said.contains(&address) && said.contains("checksum"), "{what}: {said}");
                }
            }
            patient.target.kill();
            patient.restore();
        }
    }
    println!("served with errors where they belong: {served}, refused by name: {refused}");
    assert_eq!(patient.serves("whole again"), Ok(0));
}

#[test]
fn superblocks_are_found_damaged_and_the_others_serve() {
    let mut patient = Patient::new(5);
    // Changes that only the log holds: an older superblock must find them there, or say that it cannot.
    let mut client = connect(&patient.target);
    write_some(&mut client, &mut Prng::new(6), &mut patient.content, 20);
    call(&mut client, FLUSH, 0, 0, Vec::new());
    pause_ms(200);
    patient.target.kill();
    patient.keep();
    let (_, newest) = Census::take(&patient.disk());
    let blocks = newest.devices[0].block_count;
    let (new, old) = (slot_blocks(newest.cp, blocks), slot_blocks(CpNumber(newest.cp.0 + 1), blocks));
    let all = [new, old].concat();
    let cases: [(&str, Vec<u64>); 7] = [
        ("head of the newest", vec![new[0]]),
        ("tail of the newest", vec![new[1]]),
        ("head of the other", vec![old[0]]),
        ("both of the other", old.to_vec()),
        ("both of the newest", new.to_vec()),
        ("all but one of the newest", vec![new[0], old[0], old[1]]),
        ("all", all),
    ];
    let mut prng = Prng::new(7);
    for (what, places) in cases {
        for _ in 0..2 {
            for place in &places {
                flip_in_block(&patient.disk(), *place, &mut prng);
            }
            let inspected = patient.target.twinlog(&["inspect"]);
            let damaged = |copy: &&Value| !matches!(copy["state"].as_str(), Some("whole"));
            let named = inspected["copies"].as_array().expect("a list").iter().filter(damaged);
            let named: Vec<u64> = named.filter_map(|copy| copy["block"].as_u64()).collect();
            assert_eq!(named.len(), places.len(), "{what}: {inspected}");
            assert!(places.iter().all(|place| named.contains(place)), "{what}: {inspected}");
            match patient.serves(what) {
                Ok(unreadable) => assert_eq!((unreadable, places.len() < 4), (0, true), "{what}"),
                Err(said) => {
                    let is_reason = said.contains("superblock") || said.contains("hole") || said.contains("newer");
                    assert!(is_reason && places.len() >= 2, "{what}: {said}");
                }
            }
            patient.target.kill();
            patient.restore();
        }
    }
    assert_eq!(patient.serves("whole again"), Ok(0));
}

#[test]
fn a_flipped_bit_in_the_log_is_harmless_or_named() {
    let mut patient = Patient::new(8);
    // A consistency point may come between the changes and the kill: tried again.
    let records = (0..20).find_map(|round| {
        let mut client = connect(&patient.target);
        write_some(&mut client, &mut Prng::new(100 + round), &mut patient.content, 40);
        // Quiet for a moment: the lane writes its mark, which proves the last of them.
        pause_ms(200);
        patient.target.kill();
        let verdict = patient.target.twinlog(&["log", "verify"]);
        let from = verdict["lanes"][0]["from_lsn"].as_u64().expect("a position");
        if verdict["lanes"][0]["changes"].as_u64() >= Some(20) {
            let shown = patient.target.twinlog(&["log", "show", "--last", "100000"]);
            let rows = shown["lanes"][0]["rows"].as_array().expect("a list").clone();
            let above = |row: &Value| row["row"] == "record" && row["lsn"].as_u64() >= Some(from);
            return Some(rows.into_iter().filter(above).collect::<Vec<_>>());
        }
        patient.target.restart();
        None
    });
    let records = records.expect("in twenty tries some changes were only in the log");
    patient.keep();
    let mut prng = Prng::new(9);
    let (mut served, mut refused) = (0, 0);
    let log_bytes = File::open(patient.log()).and_then(|file| file.metadata()).expect("there").len();
    for case in 0..24 {
        let record = prng.pick(&records);
        let number = |key: &str| record[key].as_u64().expect("a number");
        let (start, length) = (number("region_offset_bytes"), number("end_lsn") - number("lsn"));
        let is_change = !["pad", "mark"].contains(&record["kind"].as_str().expect("a name"));
        let (what, offset) = match case % 4 {
            0 => ("the header of a record", start + prng.below(128)),
            1 | 2 => ("a record", start + prng.below(length)),
            _ => ("anywhere", prng.below(log_bytes)),
        };
        let mask = 1 << prng.below(8);
        let what = format!("{what}: {} at {}, byte {offset}", record["kind"], number("lsn"));
        flip(&patient.log(), offset, mask);
        match patient.serves(&what) {
            Ok(unreadable) => {
                served += 1;
                assert_eq!(unreadable, 0, "{what}");
                assert!(case % 4 == 3 || !is_change, "{what}: an answered change was damaged and nobody noticed");
            }
            Err(said) => {
                refused += 1;
                let named = said.contains("hole at position") || said.contains("header of the lane is damaged");
                assert!(named && said.contains("lane 0"), "{what}: {said}");
                let verdict = patient.target.twinlog(&["log", "verify"]);
                assert!(verdict["lanes"][0]["hole"].is_string() || verdict["error"].is_string(), "{what}: {verdict}");
            }
        }
        patient.target.kill();
        patient.restore();
    }
    println!("harmless: {served}, refused by name: {refused}");
    assert!(served > 0 && refused > 5, "{served} harmless, {refused} named");
    assert_eq!(patient.serves("whole again"), Ok(0));
}

#[test]
fn a_mapped_log_that_is_cut_short_fails_the_pool_and_not_the_process() {
    let mut target = Target::start(VOLUME);
    target.stop();
    let config = target.data().join("a/node.toml");
    let text = std::fs::read_to_string(&config).expect("there");
    assert!(text.contains("backend = \"file\""), "{text}");
    std::fs::write(&config, text.replace("backend = \"file\"", "backend = \"pmem\"")).expect("writable");
    target.restart();
    let mut client = connect(&target);
    let write = |offset| Request { command: WRITE, flags: 0, offset, length: 4096, data: vec![7; 4096] };
    assert_eq!(client.call(&write(0)).expect("the target answers").error, 0);
    // Only the lane's header is left: the next store raises SIGBUS.
    File::options().write(true).open(target.data().join("a/log")).and_then(|file| file.set_len(4096)).expect("there");
    let answer = client.call(&write(8192));
    assert!(answer.is_err() || answer.is_ok_and(|reply| reply.error != 0), "a change without a log is not answered");
    let status = target.status().to_string();
    assert!(status.contains("the medium failed"), "{status}");
}
