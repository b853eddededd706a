//! A pair is made on two machines that share a directory, interrupted wherever it can be, and never at the cost of data.

use super::*;
use crate::cli::output::OutputFormat;
use std::{fs::OpenOptions, os::unix::fs::FileExt};
use tempfile::TempDir;
use twinlog::{
    base::{CpNumber, PoolId},
    format::superblock::slot_blocks,
    pool::superblocks::first_superblock,
};

const DEVICE_BYTES: u64 = 16 << 20;

struct Machines {
    directory: TempDir,
    output: Output,
}

impl Machines {
    /// Two nodes with empty devices, two each, and a key.
    fn new() -> Self {
        let machines = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            output: Output::new(OutputFormat::Json),
        };
        for name in ["a0", "a1", "b0", "b1"] {
            provision::make_image(&machines.path(name), DEVICE_BYTES).expect("made");
        }
        provision::make_key(&machines.path("pair.key")).expect("made");
        machines
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, name: &str) -> NodeConfig {
        let partner = if name == "a" { "b" } else { "a" };
        let text = format!(
            "name = \"{name}\"\n[reactors]\ncount = 2\n[log]\npath = \"log-{name}\"\nsize = \"16MiB\"\n\
             [pool]\nname = \"{name}\"\ndevices = [\"{name}0\", \"{name}1\"]\n\
             [pair]\npartner = \"{partner}\"\ntcp = [\"127.0.0.1:1\"]\npartner_tcp = [\"127.0.0.1:2\"]\nkey = \"pair.key\"\n\
             mailbox = \"mailbox\"\nfence = [\"lease\"]\n\
             [partner_pool]\nname = \"{partner}\"\ndevices = [\"{partner}0\", \"{partner}1\"]\n\
             [mirror]\npath = \"mirror-{name}\"\nsize = \"16MiB\"\n"
        );
        config::parse(&text, Path::new("node.toml"), self.directory.path()).expect("good")
    }

    fn create(&self, name: &str) -> Result<Vec<&'static str>, Failure> {
        let config = self.config(name);
        let (Some(pair), Some(mirror)) = (&config.pair, &config.mirror) else { unreachable!("of a pair") };
        let parts = make(&config, pair, mirror, &self.output)?;
        Ok(parts.into_iter().map(|part| part.state).collect())
    }

    fn refused(&self, name: &str) -> String {
        let before = self.content();
        let failure = self.create(name).expect_err("refused");
        assert_eq!(failure.exit, Exit::Refused, "{}", failure.message);
        assert!(!failure.hint.is_empty());
        assert!(before == self.content(), "nothing was written: {}", failure.message);
        failure.message
    }

    fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.directory.path()).expect("there").map(|entry| entry.expect("there").path());
        let mut content: Vec<_> = entries.map(|path| (path.clone(), fs::read(&path).expect("a file"))).collect();
        content.sort();
        content
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.path(name)).expect("opened");
        file.write_all_at(bytes, offset).expect("written");
    }
}

const MADE: [&str; 5] = ["there", "made", "made", "made", "made"];
const THERE: [&str; 5] = ["there"; 5];

#[test]
fn each_machine_makes_its_own_part_once() {
    let machines = Machines::new();
    // In any order; the mailbox is the lesser node's.
    assert_eq!(machines.create("b").expect("new"), ["there", "made", "made", "made", "made by the partner"]);
    assert!(!machines.path("mailbox").exists());
    assert_eq!(machines.create("a").expect("new"), MADE);
    let before = machines.content();
    assert_eq!(
        (machines.create("a").expect("again"), machines.create("b").expect("again")),
        (THERE.into(), THERE.into())
    );
    assert!(before == machines.content());
}

#[test]
fn what_was_interrupted_is_made_again() {
    let machines = Machines::new();
    // While the log, the mirror or the mailbox was written.
    machines.write("log-a", 0, &[0; 8192]);
    machines.write("mirror-a", 0, &[0; 4096]);
    machines.write("mailbox", 0, &[]);
    assert_eq!(machines.create("a").expect("goes on"), MADE);
    // After the log was formatted, before any superblock.
    let config = machines.config("a");
    for device in &config.pool.devices {
        fs::remove_file(device).expect("there");
        provision::make_image(device, DEVICE_BYTES).expect("made");
    }
    assert_eq!(machines.create("a").expect("goes on"), ["there", "made", "made", "there", "there"]);
    // Between the superblocks of two devices.
    fs::remove_file(&config.pool.devices[1]).expect("there");
    provision::make_image(&config.pool.devices[1], DEVICE_BYTES).expect("made");
    assert_eq!(machines.create("a").expect("goes on"), ["there", "made", "made", "there", "there"]);
    assert_eq!(machines.create("a").expect("again"), THERE);
}

#[test]
fn data_is_refused_wherever_it_lies() {
    for name in ["a0", "a1", "log-a", "mirror-a", "mailbox"] {
        for byte in [0, 5000, DEVICE_BYTES - 1] {
            let machines = Machines::new();
            machines.write(name, byte, b"x");
            let said = machines.refused("a");
            assert!(said.contains(name) && said.contains("data"), "{said}");
        }
    }
}

#[test]
fn a_log_with_records_is_refused_when_its_pool_is_missing() {
    let machines = Machines::new();
    machines.create("a").expect("new");
    machines.write("log-a", 9000, b"a record");
    assert_eq!(machines.create("a").expect("its pool is there"), THERE);
    for device in &machines.config("a").pool.devices {
        fs::remove_file(device).expect("there");
        provision::make_image(device, DEVICE_BYTES).expect("made");
    }
    assert!(machines.refused("a").contains("holds a log with records (byte 9000)"));
    // The second lane's header is none, its records are.
    machines.write("log-a", 9000, &[0; 8]);
    machines.write("log-a", (8 << 20) + 4096, b"x");
    assert!(machines.refused("a").contains("byte 8392704"));
}

#[test]
fn a_pool_that_was_served_is_refused_without_its_log_and_under_another_name() {
    let machines = Machines::new();
    let config = machines.config("a");
    machines.create("a").expect("new");
    fs::remove_file(machines.path("log-a")).expect("there");
    assert_eq!(machines.create("a").expect("nobody has served it")[1], "made");
    // Served: its newest superblock is not the first one.
    let found = superblocks::assemble(&Devices::offline(config.nvme), &config.pool.devices).expect("made").superblock;
    for (index, name) in [(0, "a0"), (1, "a1")] {
        let block = slot_blocks(CpNumber(2), DEVICE_BYTES / BLOCK_BYTES)[0];
        let served = Superblock { cp: CpNumber(2), ..found.clone() };
        machines.write(name, block * BLOCK_BYTES, &served.encode(index, block));
    }
    assert_eq!(machines.create("a").expect("with its log"), THERE);
    fs::rename(machines.path("log-a"), machines.path("lost")).expect("there");
    assert!(machines.refused("a").contains("was served, and"));
    // The partner's devices by mistake.
    let other = Machines::new();
    for index in [0, 1_u16] {
        let table = [(1, DEVICE_BYTES / BLOCK_BYTES), (2, DEVICE_BYTES / BLOCK_BYTES)];
        let block = slot_blocks(CpNumber(1), DEVICE_BYTES / BLOCK_BYTES)[0];
        let bytes = first_superblock(PoolId(7), "b", &table, 2, 0).encode(index, block);
        other.write(&format!("a{index}"), block * BLOCK_BYTES, &bytes);
    }
    assert!(other.refused("a").contains("hold pool b"));
}

#[test]
fn a_superblock_that_is_damaged_is_no_interruption() {
    let machines = Machines::new();
    machines.create("a").expect("new");
    fs::remove_file(machines.path("log-a")).expect("there");
    // It may have been a later one.
    let block = slot_blocks(CpNumber(2), DEVICE_BYTES / BLOCK_BYTES)[0];
    machines.write("a1", block * BLOCK_BYTES, b"TWLPOOL1 or so");
    assert!(machines.refused("a").contains("was served"));
}

#[test]
fn an_own_log_is_no_mirror_and_another_pairs_mailbox_is_not_this_ones() {
    let machines = Machines::new();
    machines.create("b").expect("new");
    fs::copy(machines.path("log-b"), machines.path("mirror-a")).expect("copied");
    assert!(machines.refused("a").contains("is the own log of pool"));
    fs::remove_file(machines.path("mirror-a")).expect("there");
    provision::make_mailbox(&machines.path("mailbox"), ["a", "c"]).expect("made");
    assert!(machines.refused("a").contains("the pair a, c"));
}

#[test]
fn a_block_device_is_no_mailbox() {
    let machines = Machines::new();
    let mode = nix::sys::stat::Mode::S_IRUSR;
    let node = nix::sys::stat::mknod(&machines.path("mailbox"), nix::sys::stat::SFlag::S_IFBLK, mode, 0);
    if node.is_err() {
        eprintln!("SKIPPED: a device's node needs root");
        return;
    }
    let failure = machines.create("a").expect_err("a device");
    assert!(failure.exit == Exit::Refused && failure.message.contains("block device"), "{}", failure.message);
    assert!(!machines.path("log-a").exists());
}

#[test]
fn without_the_key_the_command_says_where_it_comes_from() {
    let machines = Machines::new();
    fs::remove_file(machines.path("pair.key")).expect("there");
    let failure = machines.create("a").expect_err("no key");
    assert!(failure.hint.contains("twinlog pair configure"), "{}", failure.hint);
    assert!(!machines.path("log-a").exists());
}
