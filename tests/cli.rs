//! Commands that need no node: messages, exit codes and JSON as scripts see them.

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use twinlog::control::config;

fn twinlog(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinlog")).args(arguments).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version_and_help_succeed_and_nonsense_is_usage() {
    let version = twinlog(&["version", "-o", "json"]);
    let value: Value = serde_json::from_slice(&version.stdout).expect("JSON");
    assert_eq!((version.status.code(), &value["version"]), (Some(0), &Value::from(env!("CARGO_PKG_VERSION"))));
    assert_eq!(twinlog(&["--help"]).status.code(), Some(0));
    for nonsense in [&["sttus"][..], &[], &["up", "--size", "1GB"], &["volume", "create", "v"]] {
        assert_eq!(twinlog(nonsense).status.code(), Some(2), "{nonsense:?}");
    }
    for line in
        [&["volume", "create", "bad/name", "1GiB"][..], &["volume", "create", "v", "1000"], &["volume", "-o", "json"]]
    {
        let output = twinlog(&[line, &["-o", "json"]].concat());
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((output.status.code(), &value["exit_code"]), (Some(2), &Value::from(2)), "{line:?}");
        assert!(!value["error"].as_str().unwrap_or_default().is_empty(), "{value}");
    }
    let completions = twinlog(&["completions", "bash"]);
    assert_eq!(completions.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&completions.stdout).contains("scrub"), "every command is there");
    let suggestion = twinlog(&["sttus"]);
    assert!(stderr(&suggestion).contains("'status'"), "{suggestion:?}");
}

#[test]
fn errors_name_the_next_command_in_text_and_json() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.to_str().expect("a plain path");
    let text = twinlog(&["volume", "list", "--dir", nowhere]);
    assert_eq!(text.status.code(), Some(1));
    assert!(
        stderr(&text).contains("no node answers at")
            && stderr(&text).contains(&format!("try: start it: `twinlog up {nowhere}`")),
        "{text:?}"
    );
    let json = twinlog(&["volume", "list", "--dir", nowhere, "-o", "json"]);
    let value: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (json.status.code(), &value["exit_code"], &value["schema_version"]),
        (Some(1), &Value::from(1), &Value::from(1))
    );
    let hint = value["hint"].as_str().unwrap_or_default();
    assert!(hint.contains(&format!("`twinlog pool check --config {nowhere}/a/node.toml`")), "{hint}");
    assert_eq!(twinlog(&["status", "--dir", nowhere]).status.code(), Some(1));
    assert_eq!(twinlog(&["log", "verify", "--dir", nowhere]).status.code(), Some(1));
}

#[test]
fn a_configuration_error_has_file_line_and_suggestion() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = directory.path().join("node.toml");
    fs::write(
        &config,
        "name = \"a\"\n[log]\npath = \"log\"\nszie = \"1GiB\"\n[pool]\nname = \"a\"\ndevices = [\"d\"]\n",
    )
    .expect("written");
    let path = config.to_str().expect("a plain path");
    for arguments in
        [&["serve", "--config", path][..], &["pool", "create", "--config", path], &["pool", "check", "--config", path]]
    {
        let output = twinlog(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("node.toml:4: unknown key `szie` in [log]"), "{output:?}");
        assert!(stderr(&output).contains("did you mean `size`?"), "{output:?}");
    }
}

#[test]
fn the_documented_configuration_is_accepted_and_names_every_key() {
    let page = include_str!("../docs/operating/configuration.md");
    let text = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = config::parse(text, Path::new("node.toml"), Path::new("/d/a")).expect("the example is good");
    let all: toml::Table = config::to_text(&config).parse().expect("TOML");
    let example: toml::Table = text.parse().expect("TOML");
    for (name, value) in &all {
        for key in value.as_table().into_iter().flat_map(toml::Table::keys) {
            assert!(example[name].get(key).is_some(), "[{name}] {key} is not documented");
        }
    }
}

#[test]
fn serving_without_a_pool_says_how_to_make_one() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = directory.path().join("node.toml");
    fs::write(
        &config,
        "name = \"a\"\n[log]\npath = \"log\"\nsize = \"8MiB\"\n[pool]\nname = \"a\"\ndevices = [\"d\"]\n",
    )
    .expect("written");
    fs::File::create(directory.path().join("d")).and_then(|file| file.set_len(64 << 20)).expect("made");
    let path = config.to_str().expect("a plain path");
    let output = twinlog(&["serve", "--config", path]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("there is no pool on") && stderr(&output).contains("twinlog pool create"),
        "{output:?}"
    );
    let made = twinlog(&["pool", "create", "--config", path, "-o", "json"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let again = twinlog(&["pool", "create", "--config", path]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
    assert!(stderr(&again).contains("--overwrite"), "{again:?}");
    let check = twinlog(&["pool", "check", "--config", path, "-o", "json"]);
    assert_eq!(check.status.code(), Some(0), "{check:?}");
}

#[test]
fn the_doctor_examines_this_machine_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = twinlog(&["doctor", directory.path().to_str().expect("a plain path"), "-o", "json"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = value["checks"].as_array().expect("a list");
    for name in [
        "kernel",
        "io_uring",
        "O_DIRECT",
        "space",
        "locked memory",
        "open files",
        "cpus",
        "huge pages",
        "iommu",
        "vfio-pci",
        "iommufd",
        "vfio groups",
    ] {
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(!check["found"].as_str().expect("words").is_empty());
    }
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
}

#[test]
fn the_doctor_names_what_a_node_of_a_pair_lacks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = directory.path().to_str().expect("a plain path");
    fs::write(directory.path().join("pool-a.img"), "").expect("ours");
    let addresses = ["--node=a=127.0.0.1", "--node=b=127.0.0.2"];
    let devices = [format!("--devices=a={place}/pool-a.img"), format!("--devices=b={place}/pool-b.img")];
    let agent = format!("{place}/agent");
    let fence = format!("--fence-command=/bin/sh {agent}");
    let more = [format!("--state={place}"), "--witness=127.0.0.3:1".to_owned(), fence];
    let mut words = vec!["pair", "configure", place];
    words.extend(addresses);
    words.extend(devices.iter().chain(&more).map(String::as_str));
    let configured = twinlog(&words);
    assert!(configured.status.success(), "{configured:?}");
    let file = format!("{place}/a.toml");
    fs::write(&agent, "cat; exit 3").expect("ours");
    let output = twinlog(&["doctor", place, "--config", &file, "-o", "json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = value["checks"].as_array().expect("a list");
    let found = |name: &str| -> Vec<(String, String)> {
        let words = |check: &Value, key: &str| check[key].as_str().expect("words").to_owned();
        let named = checks.iter().filter(|check| check["name"] == name);
        named.map(|check| (words(check, "state"), words(check, "found"))).collect()
    };
    let states = |name: &str| found(name).into_iter().map(|(state, _)| state).collect::<Vec<_>>();
    for (name, state) in [
        ("device", "ok"),
        ("partner's device", "lacking"),
        ("log", "lacking"),
        ("witness", "lacking"),
        ("partner", "optional"),
    ] {
        assert_eq!(states(name), [state], "{name}: {:?}", found(name));
    }
    let [(state, said)] = &found("fence")[..] else { panic!("{checks:?}") };
    assert!(state == "lacking" && said.contains("action=monitor") && said.contains("plug=b"), "{said}");
}
