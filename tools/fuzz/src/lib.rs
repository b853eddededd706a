//! libFuzzer on every parser. The bodies are those of `tests/fuzz`, which also run in `cargo test`; `docs/testing.md` says how to run these.

#![allow(dead_code, reason = "what the seeded tests use and libFuzzer does not")]

#[path = "../../../tests/fuzz/bodies/mod.rs"]
mod bodies;
#[path = "../../../tests/fuzz/seeds.rs"]
mod seeds;
#[path = "../../../tests/nbd/support/mod.rs"]
mod support;

/// Gives `data` to the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) = bodies::TARGETS.iter().find(|(target, _)| *target == name).expect("a target of the table");
    body(data);
}

/// Every target with its valid inputs.
#[must_use]
pub fn corpora() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    bodies::TARGETS.iter().map(|(name, _)| (*name, seeds::of(name))).collect()
}
