//! Foreign data is never overwritten without being asked for by name: whatever command meets it, it is named, and stays as it was.

use crate::common::{command, folder, installed, outcome, run, signal};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};
use tempfile::TempDir;

const DEVICE_BYTES: u64 = 64 << 20;

/// A folder with a configuration of one device, `disk`, and a log, `log`, which are not there yet.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: folder() };
        let text = "name = \"a\"\n[log]\npath = \"log\"\nsize = \"8MiB\"\n[pool]\nname = \"a\"\ndevices = [\"disk\"]\n";
        fs::write(place.path("node.toml"), text).expect("our own folder is writable");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn twinlog(&self, arguments: &[&str]) -> Output {
        let mut command = command(env!("CARGO_BIN_EXE_twinlog"), arguments);
        outcome(command.arg("--config").arg(self.path("node.toml")))
    }

    /// An empty device.
    fn blank(&self) -> PathBuf {
        let path = self.path("disk");
        File::create(&path).and_then(|file| file.set_len(DEVICE_BYTES)).expect("a sparse file");
        path
    }

    /// Neither `pool create` nor `serve` writes to what lies at `disk`; the first exits with 4 and names `what` and the way to insist.
    fn is_left_alone(&self, what: &str) {
        let before = fs::read(self.path("disk")).expect("there");
        let said = refusal(&self.twinlog(&["pool", "create"]));
        for word in [what, &self.path("disk").display().to_string(), "--overwrite"] {
            assert!(said.contains(word), "{what}: `{word}` is missing: {said}");
        }
        let served = self.twinlog(&["serve"]);
        assert!(!served.status.success(), "{what}: {served:?}");
        assert!(fs::read(self.path("disk")).expect("there") == before, "{what} was changed");
        assert!(!self.path("log").exists(), "{what}: a log was made for nothing");
    }
}

/// What a command said that was refused for safety.
fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    said
}

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("there");
    file.write_all_at(bytes, offset).expect("written");
}

#[test]
fn a_real_file_system_is_named_and_left_alone() {
    if !installed(&["mke2fs"]) {
        return;
    }
    let place = Place::new();
    let disk = place.blank();
    run("mke2fs", &["-q".as_ref(), "-F".as_ref(), "-t".as_ref(), "ext4".as_ref(), disk.as_os_str()]);
    place.is_left_alone("ext4");
    // Asked for by name, it goes; asked for by another name, nothing does.
    let other = place.path("other");
    let wrong = place.twinlog(&["pool", "create", "--overwrite", other.to_str().expect("plain")]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let right = place.twinlog(&["pool", "create", "--overwrite", disk.to_str().expect("plain")]);
    assert!(right.status.success(), "{right:?}");
    // And now it is a pool, with a log, which are left alone as well.
    let said = refusal(&place.twinlog(&["pool", "create"]));
    assert!(said.contains("a device of pool a ("), "{said}");
    let again = place.twinlog(&["pool", "create", "--overwrite", disk.to_str().expect("plain")]);
    let said = refusal(&again);
    assert!(said.contains("a change log of Twinlog"), "{said}");
}

#[test]
fn labels_partitions_and_unknown_bytes_are_left_alone() {
    let cases: [(&str, u64, &[u8]); 8] = [
        ("an XFS file system", 0, b"XFSB"),
        ("a btrfs file system", 65_600, b"_BHRfS_M"),
        ("a GPT partition table", 512, b"EFI PART"),
        ("a DOS partition table", 510, b"\x55\xaa"),
        ("a physical volume of LVM", 512, b"LABELONE"),
        ("a member of a ZFS pool", (128 << 10) + 1024, &0x00ba_b10c_u64.to_le_bytes()),
        ("data (byte 33554432)", 32 << 20, b"in the middle of a disk image"),
        ("data (byte 67108863)", DEVICE_BYTES - 1, b"x"),
    ];
    let place = Place::new();
    for (what, offset, bytes) in cases {
        put(&place.blank(), offset, bytes);
        place.is_left_alone(what);
    }
    // A log that is somebody else's file.
    place.blank();
    fs::write(place.path("log"), vec![b'x'; 8 << 20]).expect("written");
    let said = refusal(&place.twinlog(&["pool", "create"]));
    assert!(said.contains("/log holds data (byte 0)"), "{said}");
    assert!(fs::read(place.path("log")).expect("there") == vec![b'x'; 8 << 20]);
    assert!(fs::read(place.path("disk")).expect("there").iter().all(|&byte| byte == 0), "no half of a pool is made");
}

#[test]
fn a_device_of_another_pool_is_not_served() {
    let (first, second) = (Place::new(), Place::new());
    for place in [&first, &second] {
        place.blank();
        let made = place.twinlog(&["pool", "create"]);
        assert!(made.status.success(), "{made:?}");
    }
    // The log of one, the device of the other.
    fs::copy(second.path("disk"), first.path("disk")).expect("copied");
    let before = fs::read(first.path("disk")).expect("there");
    // The node stays, to say in its status why it does not serve.
    let mut serve = command(env!("CARGO_BIN_EXE_twinlog"), &["serve", "--config"]);
    let mut served = serve.arg(first.path("node.toml")).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut said = BufReader::new(served.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("the log holds lane 0")), "it says why it does not serve");
    signal(served.id(), "TERM");
    served.wait().expect("a child of ours");
    assert!(fs::read(first.path("disk")).expect("there") == before, "nothing was written");
    // Both devices in one configuration.
    let config = first.path("node.toml");
    let text = fs::read_to_string(&config).expect("there");
    let both = text.replace("[\"disk\"]", &format!("[\"disk\", \"{}\"]", second.path("disk").display()));
    fs::write(&config, both).expect("written");
    let made = Place::new();
    made.blank();
    assert!(made.twinlog(&["pool", "create"]).status.success());
    fs::copy(made.path("disk"), first.path("disk")).expect("copied");
    let said = refusal(&first.twinlog(&["serve"]));
    assert!(said.contains("belongs to pool a ("), "{said}");
}

#[test]
fn up_leaves_files_alone_that_it_did_not_make() {
    let folder = folder();
    let dir = folder.path().join("d");
    for (name, bytes) in [("disks/pool-a.img", 1 << 20), ("a/log", 4096)] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("our own folder is writable");
        fs::write(&path, vec![b'x'; bytes]).expect("written");
        let mut up = command(env!("CARGO_BIN_EXE_twinlog"), &["up", "--single", "--size", "16MiB"]);
        let said = refusal(&outcome(up.arg(&dir)));
        assert!(said.contains(name), "{said}");
        assert_eq!(fs::read(&path).expect("there"), vec![b'x'; bytes]);
        fs::remove_file(path).expect("ours");
    }
}
