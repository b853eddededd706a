//! `twinlog doctor`: what this machine offers and lacks, and what a node that is to run on it needs, with the command that mends each thing.
//!
//! Facts are gathered by trying (a ring is made, a file is opened with O_DIRECT) where that is possible without harm, and read from
//! `/proc` and `/sys` elsewhere. What a fact means is decided by pure functions of the facts.

mod bare_metal;
mod configured;

use super::{
    args::DoctorArgs,
    compose,
    device::Machine,
    output::{Exit, Failure, Output},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
        utsname::uname,
    },
    unistd::geteuid,
};
use serde::Serialize;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};
use twinlog::{
    base::limits::CONNECTIONS_MAX,
    control::{config, size::show_bytes},
};

/// Oldest kernel with everything that the io_uring driver asks for (DEFER_TASKRUN came with 6.1).
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Space that `twinlog up` with its defaults can come to use: the volume, the log, and room for copies.
const FREE_BYTES_WANTED: u64 = 5 << 30;
/// Files that a node with all its connections opens: two per connection in the worst case, and devices, log, sockets.
const FILES_WANTED: u64 = 2 * CONNECTIONS_MAX as u64 + 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Good.
    Ok,
    /// Needed, and missing or too small.
    Lacking,
    /// Not needed; would help if it were there.
    Optional,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What it is for.
    why: &'static str,
    /// The command that mends it, or empty.
    mend: String,
}

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
}

/// Examines the machine. Ends with 3 when something needed is lacking.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> Result<Exit, Failure> {
    let absolute =
        std::path::absolute(&args.dir).map_err(|error| Failure::system("find", args.dir.display(), &error))?;
    let directory = existing(&absolute);
    let mut checks = vec![
        kernel(&uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()),
        io_uring(),
        direct(&directory),
        space(&directory),
        bare_metal::locked_memory(limit(Resource::RLIMIT_MEMLOCK), geteuid().is_root()),
        open_files(limit(Resource::RLIMIT_NOFILE)),
        cpus(),
        governor(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref()),
        persistent_memory(),
    ];
    checks.extend(bare_metal::checks(&Machine::this()));
    if let Some(file) = &args.config {
        checks.extend(configured::checks(&config::load(file)?, file));
    }
    let lacking = checks.iter().any(|check| check.state == State::Lacking);
    let report = Report { checks };
    output.show(&report, || text(&report.checks))?;
    Ok(if lacking { Exit::Degraded } else { Exit::Done })
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.state {
            State::Ok => "ok      ",
            State::Lacking => "LACKING ",
            State::Optional => "optional",
        };
        let written = writeln!(text, "{mark}  {:<18} {}", check.name, check.found);
        let written = written.and_then(|()| match (check.state, check.mend.as_str()) {
            (State::Ok, _) => Ok(()),
            (_, "") => writeln!(text, "{:30}{}", "", check.why),
            (_, mend) => writeln!(text, "{:30}{}\n{:30}-> {mend}", "", check.why, ""),
        });
        written.expect("a String takes everything");
    }
    text
}

fn check(name: &'static str, state: State, found: impl Into<String>, why: &'static str, mend: &str) -> Check {
    Check { name, state, found: found.into(), why, mend: mend.to_owned() }
}

fn wanted(good: bool) -> State {
    if good { State::Ok } else { State::Lacking }
}

fn useful(there: bool) -> State {
    if there { State::Ok } else { State::Optional }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn entries(path: &str) -> Vec<String> {
    let Ok(directory) = fs::read_dir(path) else { return Vec::new() };
    directory.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Soft limit; `None` when it cannot be read.
fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft)
}

/// `path`, or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn kernel(release: &str) -> Check {
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let why = "the io_uring driver uses what came with Linux 6.1";
    check("kernel", wanted(version >= KERNEL_MIN), release, why, "install a kernel of 6.1 or newer")
}

fn io_uring() -> Check {
    let why = "disks, log and sockets go through it";
    match compose::try_io_uring() {
        Ok(found) => check("io_uring", State::Ok, found, why, ""),
        Err(error) => {
            let disabled = read("/proc/sys/kernel/io_uring_disabled").is_some_and(|value| value != "0");
            let mend = if disabled {
                "sysctl kernel.io_uring_disabled=0"
            } else {
                "in a container: allow io_uring_setup, io_uring_enter and io_uring_register (seccomp)"
            };
            check("io_uring", State::Lacking, error, why, mend)
        }
    }
}

fn direct(directory: &Path) -> Check {
    let why = "devices and logs that are files bypass the page cache, so that a crash of the machine loses what a disk would lose";
    let place = directory.display();
    match compose::try_direct(directory) {
        Ok(()) => check("O_DIRECT", State::Ok, format!("works in {place}"), why, ""),
        Err(error) => check(
            "O_DIRECT",
            State::Lacking,
            format!("does not work in {place}: {error}"),
            why,
            "use a directory on ext4, xfs or btrfs",
        ),
    }
}

fn space(directory: &Path) -> Check {
    let why = "`twinlog up` with its defaults uses up to 5 GiB";
    let place = directory.display();
    match statvfs(directory) {
        Ok(facts) => {
            let free = facts.blocks_available().saturating_mul(facts.fragment_size());
            let mend = "free space, or give `twinlog up` another directory or a smaller --size";
            check(
                "space",
                wanted(free >= FREE_BYTES_WANTED),
                format!("{} free in {place}", show_bytes(free)),
                why,
                mend,
            )
        }
        Err(error) => check("space", State::Lacking, format!("unknown in {place}: {error}"), why, ""),
    }
}

fn open_files(limit: Option<u64>) -> Check {
    let found = limit.map_or("unknown".to_owned(), |files| files.to_string());
    let enough = limit.is_some_and(|files| files >= FILES_WANTED);
    check(
        "open files",
        wanted(enough),
        found,
        "each client connection is a file",
        &format!("ulimit -n {FILES_WANTED}, or LimitNOFILE= in the systemd unit"),
    )
}

fn cpus() -> Check {
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let why = "one for each reactor, and one for everything else";
    check("cpus", useful(count >= 2), format!("{count} usable"), why, "give the machine or the container two or more")
}

fn governor(governor: Option<&str>) -> Check {
    let why = "a CPU that saves power answers late";
    match governor {
        Some("performance") => check("cpu governor", State::Ok, "performance", why, ""),
        Some(other) => check("cpu governor", State::Optional, other, why, "cpupower frequency-set -g performance"),
        None => check("cpu governor", State::Ok, "none (a virtual machine, or fixed frequency)", why, ""),
    }
}

fn persistent_memory() -> Check {
    let devices: Vec<String> =
        entries("/dev").into_iter().filter(|name| name.starts_with("pmem") || name.starts_with("dax")).collect();
    let why = "a log on it answers writes without a system call";
    if devices.is_empty() {
        return check("persistent memory", State::Optional, "none", why, "");
    }
    let found =
        devices.iter().map(|name| format!("{name}: {}", compose::persistence_domain(&Path::new("/dev").join(name))));
    check("persistent memory", State::Ok, found.collect::<Vec<_>>().join("; "), why, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, state) in [
            ("6.1.0-18-amd64", State::Ok),
            ("6.18.44", State::Ok),
            ("10.0", State::Ok),
            ("5.19.0", State::Lacking),
            ("6.0.9", State::Lacking),
            ("", State::Lacking),
            ("99999999999.1", State::Lacking),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn what_lacks_comes_with_its_remedy() {
        let limits = [
            open_files(Some(FILES_WANTED - 1)),
            open_files(None),
            governor(Some("powersave")),
            bare_metal::locked_memory(Some(8 << 20), false),
        ];
        assert!(limits.iter().all(|check| check.state != State::Ok && !check.mend.is_empty()));
        assert_eq!(open_files(Some(FILES_WANTED)).state, State::Ok);
        assert_eq!(bare_metal::locked_memory(Some(8 << 20), true).state, State::Ok);
        let shown = text(&limits[..1]);
        assert!(shown.starts_with("LACKING   open files"), "{shown}");
        assert!(shown.contains("-> ulimit -n 640"), "{shown}");
    }

    #[test]
    fn the_nearest_directory_is_examined() {
        assert_eq!(existing(Path::new("/proc/self/no/such/thing")), Path::new("/proc/self"));
    }
}
