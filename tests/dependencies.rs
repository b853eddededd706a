//! What this program is linked from: `.deny.toml` is the policy, and this holds its rules about licences, sources and banned crates without a
//! further tool. What it does not look at, advisories and doubled versions, `cargo deny check` does.

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Every package of the lock file that is built for one of `targets`, as cargo describes it.
fn packages(targets: &[String]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version=1", "--locked"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(targets.iter().map(|target| format!("--filter-platform={target}")));
    let output = command.stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", output.status);
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(metadata["packages"].take()).expect("a list")
}

fn policy() -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deny.toml");
    fs::read_to_string(path).expect("part of the repository").parse().expect("TOML")
}

/// The strings of an array in the policy; of a table in it, its name.
fn list(policy: &toml::Table, section: &str, key: &str) -> Vec<String> {
    let items = policy[section][key].as_array().expect("an array");
    let name = |item: &toml::Value| item.as_str().or_else(|| item["name"].as_str()).expect("a name").to_owned();
    items.iter().map(name).collect()
}

/// Whether an SPDX expression offers a choice that is allowed. Older packages write `/` for `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "+WITH+");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any(&mut rest, allowed) && rest.is_empty()
}

fn any(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut is_one = all(words, allowed);
    while let ["OR", rest @ ..] = words {
        *words = rest;
        is_one |= all(words, allowed);
    }
    is_one
}

fn all(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut is_each = one(words, allowed);
    while let ["AND", rest @ ..] = words {
        *words = rest;
        is_each &= one(words, allowed);
    }
    is_each
}

fn one(words: &mut &[&str], allowed: &[String]) -> bool {
    let Some((word, rest)) = words.split_first() else { return false };
    *words = rest;
    if *word != "(" {
        return allowed.contains(&word.replace("+WITH+", " WITH "));
    }
    let inside = any(words, allowed);
    let Some((")", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) else { return false };
    *words = rest;
    inside
}

#[test]
fn expressions_are_read_as_spdx_has_them() {
    let allowed = ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for expression in [
        "MIT",
        "Unlicense/MIT",
        "GPL-3.0 OR MIT",
        "(GPL-3.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
    ] {
        assert!(is_allowed(expression, &allowed), "{expression}");
    }
    for expression in
        ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT WITH LLVM-exception", "(MIT", "MIT)", ""]
    {
        assert!(!is_allowed(expression, &allowed), "{expression}");
    }
}

#[test]
fn every_dependency_is_public_and_may_be_linked() {
    let policy = policy();
    let licences = list(&policy, "licenses", "allow");
    let registries = list(&policy, "sources", "allow-registry");
    let banned = list(&policy, "bans", "deny");
    let mut problems = Vec::new();
    for package in packages(&list(&policy, "graph", "targets")) {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, source, licence) = (text("name"), text("source"), text("license"));
        let is_own = source.is_empty();
        if !is_own && !registries.iter().any(|registry| source == format!("registry+{registry}")) {
            problems.push(format!("{name} comes from {source}"));
        }
        if !is_allowed(&licence, &licences) {
            problems.push(format!("{name} is under '{licence}'"));
        }
        if banned.contains(&name) {
            problems.push(format!("{name} is banned"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
