//! Stamps the version and commit into the program and refuses targets that the formats do not support.
#![expect(clippy::disallowed_methods, reason = "cargo talks to build scripts through the environment")]
use std::{env, process::Command};

fn main() {
    let width = env::var("CARGO_CFG_TARGET_POINTER_WIDTH").unwrap_or_default();
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").unwrap_or_default();
    assert!(
        width == "64" && os == "linux" && endian == "little",
        "Twinlog runs on 64-bit little-endian Linux only: log positions are 64 bits wide, drivers are Linux interfaces, \
         and log memory is shared in its little-endian form (target: {os}, {width} bits, {endian} endian)"
    );
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    println!("cargo:rustc-env=TWINLOG_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
}

/// The commit that is built, with `+` appended when tracked files differ from it.
fn commit() -> Option<String> {
    let run = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = run(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = run(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { hash } else { format!("{hash}+") })
}
