//! The one that holds a lock. A program of its own with one test: programs that other tests start would hold the locks of this one too, for a moment.

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{fs::File, ops::Range, process::Command};
use twinlog_fence::Holder;

fn lock(file: &File, bytes: &Range<u64>) {
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    let place = |value: u64| i64::try_from(value).expect("small");
    let lock = libc::flock {
        l_type: narrow(libc::F_WRLCK),
        l_whence: narrow(libc::SEEK_SET),
        l_start: place(bytes.start),
        l_len: place(bytes.end - bytes.start),
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody has it");
}

#[test]
fn only_the_holder_of_that_very_lock_is_found_and_killed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("file");
    let (mine, theirs, nobodys) = (0..10, 10..20, 20..30);
    let file = File::create(&path).expect("made");
    Holder::find(&file, &theirs).expect_err("what is not locked here cannot be recognised");
    lock(&file, &mine);
    // A process that inherits an open file has its locks too.
    let other = File::options().write(true).open(&path).expect("there");
    lock(&other, &theirs);
    let mut child = Command::new("sleep").arg("60").stdin(other).spawn().expect("coreutils' sleep starts");
    assert!(Holder::find(&file, &nobodys).expect("looked").is_empty());
    assert!(Holder::find(&file, &mine).expect("looked").is_empty(), "not itself");
    let found = Holder::find(&file, &theirs).expect("looked");
    let [holder] = &found[..] else { panic!("one process holds it, not {}", found.len()) };
    assert!(holder.name().contains(&child.id().to_string()), "{}", holder.name());
    assert!(!holder.has_ended());
    holder.kill().expect("a child of ours");
    while !holder.has_ended() {
        std::thread::yield_now();
    }
    assert!(!child.wait().expect("a child of ours").success());
    holder.kill().expect("it has ended, and nobody else is meant");
    assert!(Holder::find(&file, &theirs).expect("looked").is_empty());
}
