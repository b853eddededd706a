//! libnbd's programs against a running target: `nbdinfo`, `nbdcopy`, and scripts in `nbdsh`.

use crate::common::{self, Target, folder, installed, run};
use std::{fs, path::Path};
use twinlog::base::Prng;

/// What the scripts in `tests/nbdsh/` agree on.
const VOLUME: &str = "64MiB";
const VOLUME_BYTES: usize = 64 << 20;

/// Runs a script of `tests/nbdsh/` with a connection `h` to the volume. A script fails by an assertion or exception.
fn script(name: &str) {
    if !installed(&["nbdsh"]) {
        return;
    }
    let target = Target::start(VOLUME);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbdsh").join(name);
    // nbdsh itself would print the exception without the place that it came from.
    let code = format!(
        "import sys, traceback\ntry: exec(compile(open({path:?}).read(), {name:?}, 'exec'))\n\
         except BaseException: traceback.print_exc(); sys.exit(1)"
    );
    run("nbdsh", &["--base-allocation", "--uri", &target.uri(), "--command", &code]);
}

#[test]
fn nbdinfo_sees_one_volume_with_every_capability() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let target = Target::start(VOLUME);
    let printed = run("nbdinfo", &["--json", &target.uri()]);
    let info: serde_json::Value = serde_json::from_str(&printed).expect("nbdinfo prints JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["TLS"], false);
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "vol-a");
    assert_eq!(export["export-size"], VOLUME_BYTES);
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for capability in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[format!("can_{capability}")], true, "can_{capability}");
    }
    assert_eq!(export["is_rotational"], false);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);
}

#[test]
fn nbdinfo_lists_the_volumes() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let target = Target::start(VOLUME);
    let uri = format!("nbd+unix:///?socket={}", target.socket().display());
    let printed = run("nbdinfo", &["--json", "--list", &uri]);
    let info: serde_json::Value = serde_json::from_str(&printed).expect("nbdinfo prints JSON");
    let exports = info["exports"].as_array().expect("a list");
    let names: Vec<&str> = exports.iter().filter_map(|export| export["export-name"].as_str()).collect();
    assert_eq!(names, ["vol-a"]);
    // The empty name is the node's own volume.
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), VOLUME_BYTES.to_string());
}

#[test]
fn nbdcopy_gets_back_what_it_put_in() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let target = Target::start(VOLUME);
    let folder = folder();
    let (source, result) = (folder.path().join("in"), folder.path().join("out"));
    // Data, holes and runs of zeroes, in pieces of every alignment.
    let seed = common::seed();
    println!("seed {seed}");
    let mut prng = Prng::new(seed);
    let mut bytes = vec![0; VOLUME_BYTES];
    let mut start = 0;
    while start < bytes.len() {
        let length = usize::try_from(prng.between(1, 3 << 20)).expect("small").min(bytes.len() - start);
        if prng.chance(2, 3) {
            prng.fill(&mut bytes[start..start + length]);
        }
        start += length;
    }
    fs::write(&source, &bytes).expect("our own folder is writable");
    let (source, result) = (source.to_str().expect("plain"), result.to_str().expect("plain"));
    run("nbdcopy", &["--flush", "--connections=4", source, &target.uri()]);
    run("nbdcopy", &["--connections=4", &target.uri(), result]);
    assert!(fs::read(result).expect("nbdcopy wrote it") == bytes, "the copy differs (seed {seed})");
    // From volume to pipe, in order, over one connection.
    run("nbdcopy", &["--synchronous", &target.uri(), "null:"]);
}

#[test]
fn bytes_at_any_alignment() {
    script("alignment.py");
}

#[test]
fn zeroes_and_trims_and_what_is_allocated() {
    script("allocation.py");
}

#[test]
fn several_connections_see_one_volume() {
    script("connections.py");
}

#[test]
fn errors_leave_the_connection_usable() {
    script("errors.py");
}
