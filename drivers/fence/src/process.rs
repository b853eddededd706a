//! The process that holds a lock of a file: found by the kernel's own list of its locks, and killed without a doubt about who it is.
//!
//! # Invariants
//!
//! 1. A process is known by a handle (pidfd), never by its number alone: the kernel gives a number to another process once its process has ended, a handle
//!    never names another one. That the process of the handle holds the lock is read after the handle was made, and the signal reaches that process or none.
//! 2. Only a process that holds exactly the lock in question is found. What cannot be looked into (another user's, another machine's) is not found, and so not
//!    killed; whoever asked has to try something else.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

/// A process that holds a lock.
#[derive(Debug)]
pub struct Holder {
    handle: OwnedFd,
    /// Number and name, for people.
    name: String,
}

impl Holder {
    /// Every other process of this machine that has locked exactly these bytes of `file` for itself. This process must have a lock of its own on the file: the
    /// kernel's words for it say how the file is called in such lists.
    ///
    /// # Errors
    ///
    /// This process has no lock on the file, or the kernel shows no processes.
    pub fn find(file: &File, bytes: &Range<u64>) -> io::Result<Vec<Self>> {
        let own = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let place = own.lines().find_map(Lock::parse).map(|lock| lock.file.to_owned());
        let place = place.ok_or_else(|| io::Error::other("this process has no lock on the file"))?;
        let mut found = Vec::new();
        for process in fs::read_dir("/proc")?.flatten() {
            let number = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(pid) = number.and_then(Pid::from_raw) else { continue };
            if pid != rustix::process::getpid() && holds(&process.path(), &place, bytes) {
                found.extend(Self::identify(pid, &process.path(), &place, bytes));
            }
        }
        Ok(found)
    }

    /// The process, if it still holds the lock once nothing can be mistaken for it.
    fn identify(pid: Pid, process: &Path, place: &str, bytes: &Range<u64>) -> Option<Self> {
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let name = format!("process {} ({})", pid.as_raw_nonzero(), command.trim());
        holds(process, place, bytes).then_some(Self { handle, name })
    }

    /// Its number and its program's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends it by SIGKILL, which a stopped process does not survive either.
    ///
    /// # Errors
    ///
    /// It is another user's.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            // It has ended already.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Whether it has ended, with all its threads.
    pub fn has_ended(&self) -> bool {
        let mut handles = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        poll(&mut handles, PollTimeout::ZERO).is_ok_and(|ready| ready == 1)
    }
}

/// Whether the process has the lock.
fn holds(process: &Path, place: &str, bytes: &Range<u64>) -> bool {
    let is_it = |text: String| {
        let mut locks = text.lines().filter_map(Lock::parse);
        locks.any(|lock| lock.file == place && lock.is_exclusive && lock.bytes == *bytes)
    };
    let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
    files.flatten().any(|file| fs::read_to_string(file.path()).is_ok_and(is_it))
}

/// A lock of an open file, as `/proc/PID/fdinfo/FD` shows it (Linux Documentation/filesystems/proc.rst, 3.8).
struct Lock<'a> {
    is_exclusive: bool,
    /// Device and inode.
    file: &'a str,
    bytes: Range<u64>,
}

impl<'a> Lock<'a> {
    /// `lock:  1: OFDLCK  ADVISORY  WRITE -1 fd:01:1234 4096 8191`
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
        if words.next()? != "OFDLCK" {
            return None;
        }
        let is_exclusive = words.nth(1)? == "WRITE";
        let file = words.nth(1)?;
        let first = words.next()?.parse().ok()?;
        let last = match words.next()? {
            "EOF" => i64::MAX as u64,
            last => last.parse().ok()?,
        };
        Some(Self { is_exclusive, file, bytes: first..last + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_as_the_kernel_writes_them() {
        let lock = Lock::parse("lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:01:77 4096 8191").expect("a lock");
        assert_eq!((lock.is_exclusive, lock.file, lock.bytes), (true, "fe:01:77", 4096..8192));
        let lock = Lock::parse("lock:\t2: OFDLCK ADVISORY  READ -1 fe:01:77 0 EOF").expect("a lock");
        assert_eq!((lock.is_exclusive, lock.bytes.end), (false, 1 << 63));
        for other in ["pos:\t0", "lock:\t1: POSIX  ADVISORY  WRITE 12 fe:01:77 0 EOF", "lock:\t1: OFDLCK", "lock:", ""]
        {
            assert!(Lock::parse(other).is_none(), "{other}");
        }
    }
}
