//! What a node of a given configuration needs: its files, and for one of a pair the ways to its partner, to the arbiter and to the fence. Nothing is
//! changed, and the partner's pool is not touched: a fence agent is asked with `action=monitor`.

use super::{Check, State, check, useful, wanted};
use crate::cli::{
    compose,
    device::{Machine, Place, place},
    output::Exit,
};
use nix::unistd::{AccessFlags, access};
use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};
use twinlog::control::config::{FenceKind, InterconnectPlace, LogBackend, LogConfig, NodeConfig, NvmeName, PairConfig};
use twinlog_device::DurabilityClass;

/// How long an address may take to answer.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Examines what the node of `config`, which is written in `file`, needs.
pub(super) fn checks(config: &NodeConfig, file: &Path) -> Vec<Check> {
    let create = match config.pair {
        Some(_) => format!("twinlog pair create --config {}", file.display()),
        None => format!("twinlog pool create --config {}", file.display()),
    };
    let devices = |name, pool: &[PathBuf], why| -> Vec<Check> {
        pool.iter().map(|path| device(name, path, why, &create)).collect()
    };
    let mut checks = devices("device", &config.pool.devices, "it holds the node's own pool");
    if let Some(pool) = &config.partner_pool {
        checks.extend(devices(
            "partner's device",
            &pool.devices,
            "without it this node cannot take the partner's pool over",
        ));
    }
    checks.extend(log("log", &config.log, &create));
    checks.extend(config.mirror.iter().flat_map(|mirror| log("mirror", mirror, &create)));
    if let Some(pair) = &config.pair {
        checks.extend(of_pair(pair, &create));
        checks.push(interconnect(config, pair));
    }
    checks
}

fn log(name: &'static str, config: &LogConfig, create: &str) -> Option<Check> {
    let why = "answered changes are in it until they are on the disks";
    match (&config.path, config.backend) {
        (Some(path), LogBackend::File) => Some(storage(name, path, why, create)),
        (Some(path), LogBackend::Pmem) => Some(mapped(name, path, why, create)),
        _ => None,
    }
}

/// A file or device-DAX node that is mapped: what survives a power cut in it, and whether all of it can be read.
fn mapped(name: &'static str, path: &Path, why: &'static str, create: &str) -> Check {
    if !path.exists() {
        return storage(name, path, why, create);
    }
    let found = |what: &str| format!("{} {what}", path.display());
    match compose::try_pmem(path) {
        Ok(facts) if facts.bad_bytes > 0 => {
            let what = format!("has lost {} bytes (bad blocks)", facts.bad_bytes);
            let mend = "ndctl clear-errors NAMESPACE, which loses what lies around them, then make the log anew";
            check(name, State::Lacking, found(&what), why, mend)
        }
        Ok(facts) => {
            let what = format!("is {}: {}", facts.durability, facts.domain);
            check(
                name,
                useful(facts.durability == DurabilityClass::Durable),
                found(&what),
                why,
                "a DAX file system or device-DAX on persistent memory",
            )
        }
        Err(failure) if failure.exit == Exit::Refused => check(
            name,
            State::Optional,
            failure.message,
            why,
            "if it is the node: `twinlog status` shows what the log is",
        ),
        Err(failure) => check(name, State::Lacking, failure.message, why, &failure.hint),
    }
}

/// A pool's device.
fn device(name: &'static str, path: &Path, why: &'static str, create: &str) -> Check {
    let Some(Ok(namespace)) = NvmeName::of(path) else { return storage(name, path, why, create) };
    let serial = &namespace.serial;
    // It is not opened: the node may have it.
    match place(&Machine::this(), serial) {
        Err(failure) => check(name, State::Lacking, failure.message, why, &failure.hint),
        Ok(Place { address, nodes }) => {
            let at = |what: String| format!("{namespace} is at {address}, {what}");
            let opened = nodes.iter().map(|nodes| may_open(nodes)).reduce(|best, next| best.or(next));
            match opened.unwrap_or_else(|| Err("and has no node".to_owned())) {
                Ok(node) => check(name, State::Ok, at(format!("by {node}")), why, ""),
                Err(refused) => {
                    let mend = format!("as root: twinlog device bind {serial} --user USER");
                    check(name, State::Lacking, at(refused), why, &mend)
                }
            }
        }
    }
}

/// Whether this user may open all of them: the last of them, or why not.
fn may_open(nodes: &[PathBuf]) -> Result<String, String> {
    for node in nodes {
        let may = access(node, AccessFlags::R_OK | AccessFlags::W_OK);
        may.map_err(|error| format!("and {} cannot be opened: {error}", node.display()))?;
    }
    Ok(nodes.last().map_or_else(String::new, |node| node.display().to_string()))
}

/// A file or block device that this user must be able to read and write.
fn storage(name: &'static str, path: &Path, why: &'static str, create: &str) -> Check {
    let found = |what: &str| format!("{} {what}", path.display());
    let kind = match path.metadata() {
        Ok(facts) if facts.file_type().is_block_device() => "is a block device",
        Ok(facts) if facts.is_file() => "is a file",
        Ok(_) => {
            return check(name, State::Lacking, found("is neither a file nor a block device"), why, "name another one");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return check(name, State::Lacking, found("is not there"), why, create);
        }
        Err(error) => return check(name, State::Lacking, found(&format!("cannot be looked at: {error}")), why, ""),
    };
    match access(path, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => check(name, State::Ok, found(kind), why, ""),
        Err(error) => {
            let mend = format!("chown or chmod {}, or run this as the node's user", path.display());
            check(name, State::Lacking, found(&format!("{kind}, and cannot be written: {error}")), why, &mend)
        }
    }
}

fn of_pair(pair: &PairConfig, create: &str) -> Vec<Check> {
    let mut checks = vec![key(&pair.key)];
    if let Some(mailbox) = &pair.mailbox {
        checks.push(storage("mailbox", mailbox, "the registers of both pools are in it", create));
    }
    if let Some(witness) = &pair.witness {
        let why = "without it nobody knows who may serve: both nodes stop when their leases end";
        let mend = "start it: `twinlog witness`; let firewalls pass its port";
        checks.push(match reach(witness) {
            Ok(address) => check("witness", State::Ok, format!("answers at {address}"), why, ""),
            Err(error) => check("witness", State::Lacking, format!("{witness} is not reached: {error}"), why, mend),
        });
    }
    for address in &pair.partner_tcp {
        checks.push(partner(&address.to_string(), TcpStream::connect_timeout(address, CONNECT_MAX).err()));
    }
    for socket in &pair.partner_unix {
        checks.push(partner(&socket.display().to_string(), UnixStream::connect(socket).err()));
    }
    let ways = pair.partner_tcp.len() + pair.partner_unix.len();
    if pair.partner_unix.is_empty() {
        let why = "two networks between the nodes: when one is lost, mirroring goes on over the other";
        let found = format!("{ways} address(es) of the partner");
        checks.push(check(
            "paths",
            useful(ways > 1),
            found,
            why,
            "tcp and partner_tcp in [pair]: a second address each",
        ));
    }
    checks.extend(pair.fence.contains(&FenceKind::Command).then(|| fence(pair)));
    checks
}

/// Where the interconnect runs; a thread that has to share a CPU with a reactor makes both slower.
fn interconnect(config: &NodeConfig, pair: &PairConfig) -> Check {
    let why = "a log record leaves for the partner while the reactor goes on, if there is a CPU for that";
    let auto = PairConfig { interconnect: InterconnectPlace::Auto, interconnect_cpu: None, ..pair.clone() };
    let has_cpu = compose::has_interconnect_thread(config, &auto);
    let (found, is_well) = match compose::has_interconnect_thread(config, pair) {
        true if has_cpu => (compose::interconnect_words(pair), true),
        true => (format!("{}, which has no CPU for itself", compose::interconnect_words(pair)), false),
        false => ("reactor 0".to_owned(), true),
    };
    check("interconnect", useful(is_well), format!("runs on {found}"), why, "interconnect = \"auto\" in [pair]")
}

fn key(path: &Path) -> Check {
    let why = "the nodes know each other by it";
    match compose::read_key(path) {
        Ok(_) => check("key", State::Ok, format!("{} is one", path.display()), why, ""),
        Err(failure) => check("key", State::Lacking, failure.message, why, &failure.hint),
    }
}

/// The first address of a name that takes connections.
fn reach(name: &str) -> io::Result<SocketAddr> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in name.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(_) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn partner(address: &str, error: Option<io::Error>) -> Check {
    let why = "changes are mirrored over it; the partner need not run now";
    match error {
        None => check("partner", State::Ok, format!("answers at {address}"), why, ""),
        Some(error) => {
            let found = format!("{address} is not reached: {error}");
            check("partner", State::Optional, found, why, "start the partner; let firewalls pass its port")
        }
    }
}

/// Whether the agent can do its work, as far as it says.
fn fence(pair: &PairConfig) -> Check {
    let why = "a partner that is not reached is switched off with it before its pool is taken over";
    let program = pair.fence_command.first().map_or("", String::as_str);
    if pair.fence_options.contains_key("action") {
        let found = format!("{program} is not tried: fence_options say which action it has");
        return check("fence", State::Optional, found, why, "try it by hand");
    }
    let outcome = match compose::try_fence(pair) {
        Ok(outcome) => outcome,
        Err(error) => {
            return check(
                "fence",
                State::Lacking,
                format!("{program} cannot be started: {error}"),
                why,
                "fence_command in [pair]",
            );
        }
    };
    let found = format!("{program}, asked with action=monitor: {}", outcome.said);
    check("fence", wanted(outcome.confirmed), found, why, "mend what it says; its options are fence_options in [pair]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_serves_is_named_with_the_reason() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("loopback");
        assert_eq!(reach(&free.to_string()).expect_err("closed again").kind(), io::ErrorKind::ConnectionRefused);
        let found = partner("b:1", Some(io::ErrorKind::TimedOut.into()));
        assert_eq!((found.state, found.found.as_str()), (State::Optional, "b:1 is not reached: timed out"));
    }

    #[test]
    fn a_mapped_log_is_named_by_its_class() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        assert_eq!(mapped("log", &path, "", "make it").mend, "make it");
        std::fs::write(&path, [0; 4096]).expect("written");
        let found = mapped("log", &path, "", "");
        assert_eq!(found.state, State::Optional);
        assert!(found.found.contains("no known persistence domain"), "{}", found.found);
    }

    #[test]
    fn storage_that_is_missing_or_of_another_kind_is_lacking() {
        let missing = storage("log", Path::new("/no/such"), "", "make it");
        assert_eq!((missing.state, missing.mend.as_str()), (State::Lacking, "make it"));
        assert_eq!(storage("log", Path::new("/proc"), "", "").state, State::Lacking);
        assert_eq!(storage("log", Path::new("/proc/self/comm"), "", "").state, State::Ok);
    }
}
