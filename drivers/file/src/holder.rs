//! Who has a file, for the message to a person. Best effort: processes of other users cannot be looked into.

use nix::sys::stat::{major, minor};
use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What is said of somebody who cannot be seen: a process of another user, or none any more.
pub(crate) const UNKNOWN: &str = "another process";

/// The process that holds a lock on the file: its `fdinfo` shows the lock with the file's device and inode.
pub(crate) fn of_lock(metadata: &Metadata) -> String {
    let (device, inode) = (metadata.dev(), metadata.ino());
    let place = format!(" {:02x}:{:02x}:{inode} ", major(device), minor(device));
    let holds = |text: String| text.lines().any(|line| line.starts_with("lock:") && line.contains(&place));
    find(|process| {
        let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
        files.flatten().any(|file| fs::read_to_string(file.path()).is_ok_and(holds))
    })
}

/// The user of a block device that the kernel calls busy: a mount, or a process that has it open.
pub(crate) fn of_device(metadata: &Metadata) -> String {
    let device = metadata.rdev();
    let number = format!(" {}:{} ", major(device), minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(mount) = mounts.lines().find(|line| line.contains(&number)) {
        // Fields: mount id, parent id, device number, root, mount point, ...
        return format!("a mount at {}", mount.split(' ').nth(4).unwrap_or("an unknown place"));
    }
    find(|process| {
        let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
        files.flatten().any(|file| fs::metadata(file.path()).is_ok_and(|open| open.rdev() == device))
    })
}

/// The first process for which `matches` holds.
fn find(matches: impl Fn(&Path) -> bool) -> String {
    let Ok(processes) = fs::read_dir("/proc") else { return UNKNOWN.to_owned() };
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && matches(&process.path()) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("process {name} ({})", command.trim());
        }
    }
    UNKNOWN.to_owned()
}
