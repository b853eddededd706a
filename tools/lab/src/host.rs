//! What the lab needs of the machine that it runs on: programs, and the packages that bring them.

use anyhow::{Context as _, Result, bail};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Programs by the Debian package that brings them, where the names differ.
const PACKAGES: [(&str, &str); 15] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("filefrag", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("xz", "xz-utils"),
    ("ip", "iproute2"),
    ("ldd", "libc-bin"),
    ("install", "coreutils"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("useradd", "passwd"),
];

/// Where Debian keeps what is meant for root, which need not be in `PATH`.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Where a program lies.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The package that brings a program.
fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

/// Where each program lies.
///
/// # Errors
///
/// Some are missing: the message is the command that installs them.
pub fn programs(names: &[&str]) -> Result<Vec<PathBuf>> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() {
        let mut packages: Vec<&str> = missing.iter().map(|name| package(name)).collect();
        packages.sort_unstable();
        packages.dedup();
        bail!(Missing(format!("missing {}: run `apt-get install {}`", missing.join(", "), packages.join(" "))));
    }
    Ok(names.iter().filter_map(|name| program(name)).collect())
}

/// This machine lacks something; nothing was tested.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// What a command prints.
///
/// # Errors
///
/// It cannot be started, or fails; the message holds what it complained about.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command that the kernel kills when the lab's process dies, however it dies.
#[must_use]
pub fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_as_a_command() {
        assert!(programs(&["sh"]).unwrap()[0].ends_with("sh"));
        let error = programs(&["sh", "no-such-program", "no-such-other"]).unwrap_err();
        assert!(error.downcast_ref::<Missing>().is_some());
        assert!(error.to_string().ends_with("`apt-get install no-such-other no-such-program`"), "{error}");
        assert_eq!(package("e2fsck"), "e2fsprogs");
    }
}
