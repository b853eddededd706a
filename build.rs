//! Stamps the version and commit into the program and refuses targets that the formats do not support.
#![expect(clippy::disallowed_methods, reason = "cargo talks to build scripts through the environment")]
use std::{env, path::Path, process::Command};

fn main() {
    let width = env::var("CARGO_CFG_TARGET_POINTER_WIDTH").unwrap_or_default();
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").unwrap_or_default();
    assert!(
        width == "64" && os == "linux" && endian == "little",
        "Twinlog runs on 64-bit little-endian Linux only: log positions are 64 bits wide, drivers are Linux interfaces, \
         and log memory is shared in its little-endian form (target: {os}, {width} bits, {endian} endian)"
    );
    println!("cargo:rerun-if-changed=build.rs");
    // Both change with the commit that is checked out; git knows where they lie, in a linked work tree too.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rustc-env=TWINLOG_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
}

/// What git prints, or `None` where there is no git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit that is built, with `+` appended when tracked files differ from it.
fn commit() -> Option<String> {
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { hash } else { format!("{hash}+") })
}
