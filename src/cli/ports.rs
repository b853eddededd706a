//! The ports at which `up` lets its nodes serve NVMe/TCP: two that nobody else has, and the same ones as last time if they are free.
//!
//! A port is chosen before the node listens at it, and a node that is started again needs it once more. So each is kept by a name: a Unix socket in the abstract
//! namespace, which the kernel gives to one process at a time and takes back when that dies. Another `up` does not choose a port whose name is taken; other
//! programs are noticed by trying to listen.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    path::Path,
};

/// The port that IANA gave to NVMe over fabrics, for the first node.
const FIRST: u16 = 4420;
/// The last pair of ports that is tried before the kernel is asked for any.
const LAST: u16 = FIRST + 62;
/// Ports of the kernel's choice that are tried for one node.
const TRIES_MAX: usize = 100;

/// Ports that are ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) addresses: Vec<SocketAddr>,
    _names: Vec<UnixListener>,
}

impl Ports {
    /// Takes `count` ports of the loopback address, and writes them to `file`, one address a line: those of the file if they are free, else the usual ones, else
    /// any.
    ///
    /// # Errors
    /// There is no free port, or the file cannot be written.
    pub(crate) fn take(count: usize, file: &Path) -> io::Result<Self> {
        let known = fs::read_to_string(file).unwrap_or_default();
        let known: Vec<u16> =
            known.lines().filter_map(|line| line.parse().ok()).map(|at: SocketAddr| at.port()).collect();
        let usual = (FIRST..=LAST).step_by(2).map(|first| (first..).take(count).collect());
        let mut fixed = std::iter::once(known).filter(|known: &Vec<u16>| known.len() == count).chain(usual);
        let ports = fixed.find_map(|ports| all(&ports)).map_or_else(|| any(count), Ok)?;
        let lines: String = ports.addresses.iter().map(|address| format!("{address}\n")).collect();
        fs::write(file, lines)?;
        Ok(ports)
    }
}

/// All of these ports, if all are free.
fn all(ports: &[u16]) -> Option<Ports> {
    let names = ports.iter().map(|port| claim(*port)).collect::<Option<_>>()?;
    Some(Ports { addresses: ports.iter().copied().map(loopback).collect(), _names: names })
}

/// Ports of the kernel's choice.
fn any(count: usize) -> io::Result<Ports> {
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for _ in 0..TRIES_MAX * count {
        let address = TcpListener::bind(loopback(0))?.local_addr()?;
        if let Some(name) = claim(address.port()) {
            addresses.push(address);
            names.push(name);
        }
        if addresses.len() == count {
            return Ok(Ports { addresses, _names: names });
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// The port's name, if that and the port are free.
fn claim(port: u16) -> Option<UnixListener> {
    let name = UnixAddr::from_abstract_name(format!("twinlog-up-port-{port}")).ok()?;
    let name = UnixListener::bind_addr(&name).ok()?;
    TcpListener::bind(loopback(port)).ok().map(|_| name)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_s_own_and_come_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [file, other] = ["one", "other"].map(|name| directory.path().join(name));
        let before = any(2).expect("ports").addresses;
        fs::write(&file, format!("{}\n{}\n", before[0], before[1])).expect("written");
        let first = Ports::take(2, &file).expect("free again");
        assert_eq!(first.addresses, before, "what is free is kept");
        fs::copy(&file, &other).expect("copied");
        let second = Ports::take(2, &other).expect("others");
        assert!(second.addresses.len() == 2 && before.iter().all(|address| !second.addresses.contains(address)));
        drop(first);
        let _somebody = TcpListener::bind(before[0]).expect("free");
        let moved = Ports::take(2, &file).expect("ports");
        assert!(!moved.addresses.contains(&before[0]), "what somebody else has is not taken");
        fs::write(&file, "nonsense\n").expect("written");
        assert_eq!(Ports::take(1, &file).expect("a port").addresses.len(), 1);
    }

    #[test]
    fn the_kernel_chooses_when_the_usual_ports_are_taken() {
        let ports = any(2).expect("ports");
        assert_eq!(ports.addresses.len(), 2);
        assert!(all(&[ports.addresses[0].port()]).is_none(), "its name is taken");
    }
}
