//! Where `up` keeps things, and how commands find them.
//!
//! ```text
//! DIR/lock                    held by the supervisor; its process id inside
//! DIR/pair.key                the secret that both nodes share
//! DIR/nvme-ports              where the nodes serve NVMe/TCP, one address a line, unless their configurations say it
//! DIR/a/node.toml             written last when DIR is made: without it, nothing here is finished
//! DIR/a/node.toml.draft       becomes node.toml
//! DIR/a/making                while DIR is being made: nothing can be in the files below yet
//! DIR/a/first-start           while the first volume has not been made
//! DIR/a/pid                   held by the node's own process; its process id inside
//! DIR/a/{nbd,admin,pair}.sock sockets for clients, for commands, for the partner
//! DIR/a/log                   change log: the portion of pool a
//! DIR/a/mirror                change log: the mirror of node b's portion of pool b
//! DIR/b/...                   the same of node b
//! DIR/disks/pool-a.img        device of pool a; pool-b.img
//! DIR/disks/mailbox           the registers of both pools
//! ```

use super::{
    args::{NodeArgs, OfflineArgs},
    output::{Exit, Failure},
    pause,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};
use twinlog::control::{client::AdminClient, file};

/// The files of one node below a directory of `up`.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) node: String,
}

impl Layout {
    pub(crate) fn new(dir: &Path, node: &str) -> Self {
        Self { dir: dir.to_owned(), node: node.to_owned() }
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn nvme_ports(&self) -> PathBuf {
        self.dir.join("nvme-ports")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join(&self.node)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.home().join("node.toml")
    }

    pub(crate) fn draft(&self) -> PathBuf {
        self.home().join("node.toml.draft")
    }

    pub(crate) fn making(&self) -> PathBuf {
        self.home().join("making")
    }

    pub(crate) fn first_start(&self) -> PathBuf {
        self.home().join("first-start")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.home().join("pid")
    }

    pub(crate) fn nbd(&self) -> PathBuf {
        self.home().join("nbd.sock")
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.home().join("admin.sock")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }
}

/// How long a node is waited for whose supervisor lives: it starts, or starts again.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between two tries.
const START_POLL: Duration = Duration::from_millis(50);

/// Connects to the node that `args` name.
pub(crate) fn connect(args: &NodeArgs) -> Result<AdminClient, Failure> {
    let socket = args.admin.clone().unwrap_or_else(|| Layout::new(&args.dir, &args.node).admin());
    Ok(AdminClient::connect(&socket)?)
}

/// As [`connect`], but waits for a node that is about to start: one whose supervisor holds the directory.
pub(crate) fn connect_patiently(args: &NodeArgs) -> Result<AdminClient, Failure> {
    let lock = Layout::new(&args.dir, &args.node).lock();
    let mut waited = Duration::ZERO;
    loop {
        match connect(args) {
            Err(_) if args.admin.is_none() && waited < START_WAIT_MAX && is_held(&lock) => pause(START_POLL),
            result => return result,
        }
        waited += START_POLL;
    }
}

/// Whether a process holds the lock file. Takes no lock, not even for a moment: somebody might want it just then.
pub(crate) fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut lock = whole_file(libc::F_RDLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

fn whole_file(kind: i32) -> libc::flock {
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    libc::flock { l_type: narrow(kind), l_whence: narrow(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

/// The configuration file that `args` name.
pub(crate) fn config_of(args: &OfflineArgs) -> PathBuf {
    args.config.clone().unwrap_or_else(|| Layout::new(&args.dir, &args.node).config())
}

/// A file that one process holds, with that process's id inside. Released by the kernel when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    _held: File,
}

impl ProcessLock {
    /// Takes the lock; `who` is what holds it, for the refusal.
    pub(crate) fn acquire(path: &Path, who: &str) -> Result<Self, Failure> {
        let failed = |what, error: &std::io::Error| Failure::system(what, path.display(), error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut held = file.map_err(|error| failed("open", &error))?;
        match fcntl(&held, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(held_by(&mut held, path, who)),
            Err(number) => return Err(failed("lock", &number.into())),
        }
        // The first line is right at every moment: nobody reads an empty file.
        let line = format!("{}\n", std::process::id());
        let write = |held: &File| held.write_all_at(line.as_bytes(), 0).and_then(|()| held.set_len(line.len() as u64));
        write(&held).map_err(|error| failed("write", &error))?;
        Ok(Self { _held: held })
    }
}

fn held_by(file: &mut File, path: &Path, who: &str) -> Failure {
    let mut pid = String::new();
    let known = file.take(32).read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
    let pid = if known {
        format!("process {}", pid.lines().next().unwrap_or_default())
    } else {
        "another process".to_owned()
    };
    let hint = "`twinlog status` shows it; stop it by Ctrl-C in its terminal or SIGTERM to that process";
    Failure::new(Exit::Refused, format!("{who} runs already as {pid} (it holds {})", path.display()), hint)
}

/// Writes a small file whole or not at all.
pub(crate) fn write_durably(path: &Path, text: &str) -> Result<(), Failure> {
    file::replace(path, text.as_bytes(), 0o666).map_err(|error| Failure::system("write", path.display(), &error))
}

/// Makes a directory and what leads to it.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::system("make directory", path.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_names_its_holder() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("lock");
        fs::write(&path, "99999999999999\nleft by a dead process").expect("written");
        let held = ProcessLock::acquire(&path, "this node").expect("free");
        let refusal = ProcessLock::acquire(&path, "this node").expect_err("held");
        assert_eq!(refusal.exit, Exit::Refused);
        assert!(refusal.message.contains(&format!("process {} ", std::process::id())), "{}", refusal.message);
        assert!(is_held(&path));
        drop(held);
        assert!(!is_held(&path) && !is_held(&directory.path().join("nothing")));
        ProcessLock::acquire(&path, "this node").expect("free again");
    }
    #[test]
    fn who_looks_whether_a_lock_is_held_keeps_nobody_from_taking_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("lock");
        drop(ProcessLock::acquire(&path, "this node").expect("free"));
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| (0..5000).all(|_| ProcessLock::acquire(&path, "this node").is_ok()));
            while !taker.is_finished() {
                is_held(&path);
            }
            assert!(taker.join().expect("no panic"), "refused though nobody had it");
        });
    }
}
