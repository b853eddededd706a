//! Every parser, against bytes that nobody meant.
//!
//! The bodies in `bodies` are what `tools/fuzz` gives to libFuzzer, for hours; here each gets a fixed number of inputs, made from
//! valid ones by a seeded hand, in a second or two (`TWINLOG_FUZZ_TIMES=1000` for more, `TWINLOG_SEED` for others). A failure prints the input: put it into a file and give that to the target.

#![expect(clippy::disallowed_methods, reason = "how much and from which seed comes from the environment")]

#[path = "../nbd/support/mod.rs"]
#[allow(dead_code, reason = "the part that a fuzzed session needs")]
mod support;

mod bodies;
mod mutate;
mod seeds;

use bodies::TARGETS;
use twinlog_device::Prng;

/// Prints the input that a body did not survive.
struct Witness<'a>(&'a str, &'a [u8]);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("target {} does not survive {} bytes: {hex}", self.0, self.1.len());
        }
    }
}

/// Runs `cases` inputs through the target called `name`.
fn fuzz(name: &str, cases: u64) {
    let (_, body) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target of the table");
    let seeds = seeds::of(name);
    let run = |input: &[u8]| {
        let _witness = Witness(name, input);
        body(input)
    };
    // What is valid must be taken for valid, or the mutations below show nothing.
    let understood = seeds.iter().filter(|seed| run(seed)).count();
    assert!(understood * 2 >= seeds.len(), "{name}: {understood} of {} valid inputs are understood", seeds.len());
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let mut prng = Prng::new(number("TWINLOG_SEED").unwrap_or(0x7717_0001));
    for _ in 0..cases * number("TWINLOG_FUZZ_TIMES").unwrap_or(1) {
        let input = mutate::mutate(&mut prng, &seeds);
        run(&input);
    }
}

#[test]
fn nbd_handshakes() {
    fuzz("nbd-handshake", 3000);
}

#[test]
fn nbd_sessions() {
    fuzz("nbd-session", 1000);
}

#[test]
fn nvme_tcp_units() {
    fuzz("nvme-tcp-unit", 20_000);
}

#[test]
fn nvme_tcp_sessions() {
    fuzz("nvme-tcp-session", 1000);
}

#[test]
fn authentication_of_nvme_tcp_hosts() {
    fuzz("nvme-tcp-authentication", 3000);
}

#[test]
fn records() {
    fuzz("record", 20_000);
}

#[test]
fn lanes() {
    fuzz("lane", 2000);
}

#[test]
fn frames_of_the_interconnect() {
    fuzz("link-frame", 20_000);
}

#[test]
fn sessions_of_the_interconnect() {
    fuzz("link-session", 150);
}

#[test]
fn superblocks() {
    fuzz("superblock", 3000);
}

#[test]
fn blocks() {
    fuzz("block", 3000);
}

#[test]
fn pools() {
    fuzz("pool", 100);
}

/// Inputs that once were not survived.
#[test]
fn inputs_that_were_not_survived() {
    let inputs = [
        // A node with the last address that there is, freed: the sum with its count overflowed.
        ("pool", "00036545d7ff5f1126a663fd32610000e4d903"),
    ];
    for (name, hex) in inputs {
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
        let input: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let (_, body) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target of the table");
        body(&input);
    }
}

#[test]
fn configurations() {
    fuzz("config", 4000);
}

#[test]
fn admin_lines() {
    fuzz("admin", 10_000);
}

#[test]
fn messages_of_a_witness_and_its_nodes() {
    fuzz("witness", 20_000);
}

#[test]
fn sizes() {
    fuzz("size", 20_000);
}

#[test]
fn reports_of_reservations() {
    fuzz("reservation-report", 20_000);
}

#[test]
fn reservations_of_volumes() {
    fuzz("reservation-state", 20_000);
}

#[test]
fn servers_of_the_load_tool() {
    fuzz("load-handshake", 20_000);
    fuzz("load-replies", 5000);
}

#[test]
fn nvme_targets_of_the_load_tool() {
    fuzz("load-nvme-open", 5000);
    fuzz("load-nvme-answers", 5000);
    fuzz("load-nvme-authentication", 2000);
}

#[test]
fn journals_and_arguments_of_the_load_tool() {
    fuzz("load-journal", 5000);
    fuzz("load-target", 20_000);
}

#[test]
fn every_target_has_its_program_and_its_test() {
    let manifest = include_str!("../../tools/fuzz/Cargo.toml");
    let tests = include_str!("main.rs");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "tools/fuzz has no target {name}");
        assert!(tests.contains(&format!("fuzz(\"{name}\", ")), "no test runs {name}");
        assert!(!seeds::of(name).is_empty(), "{name} has no valid input to begin with");
    }
}
