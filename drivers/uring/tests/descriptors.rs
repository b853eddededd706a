//! A process that has no file descriptors left. Alone in its program, because the limit is the whole process's.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::Duration,
};
use twinlog_device::{BlockPool, Network, Wait};
use twinlog_uring::{ListenAddress, Listener, Ring, RingOptions, UringNetwork};

#[test]
fn clients_wait_until_there_are_descriptors_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("socket");
    let pool = BlockPool::new(1).expect("a small pool");
    let ring = Ring::new(RingOptions::default(), &pool).expect("io_uring");
    let listener = Listener::bind(&ListenAddress::Unix { path: path.clone(), mode: 0o600 }).expect("a free name");
    let clients = [(); 3].map(|()| UnixStream::connect(&path).expect("it listens"));
    // From here on there is one free descriptor. The kernel looks at the limit when an accept is queued.
    let lowest = std::fs::File::open("/dev/null").expect("a descriptor").as_raw_fd();
    let limit = u64::try_from(lowest).expect("not negative") + 1;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("a lower limit");
    let mut network = UringNetwork::new(&ring, vec![listener], 8).expect("a network");
    let wait = Wait::UpTo(Duration::from_millis(1));
    let served = loop {
        if let Some(accepted) = network.accept() {
            break accepted.connection;
        }
        ring.turn(wait);
    };
    let before = ring.enter_count();
    for _ in 0..200 {
        ring.turn(Wait::No);
        assert!(network.accept().is_none(), "nobody can be accepted");
    }
    assert!(ring.enter_count() - before < 50, "the listener rests instead of trying all the time");
    network.send(served, b"still here");
    let mut received = [0; 10];
    while network.unsent_bytes(served) > 0 {
        ring.turn(wait);
        network.poll(&mut Vec::new());
    }
    std::io::Read::read_exact(&mut &clients[0], &mut received).expect("connected clients are served on");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the old limit");
    let mut accepted = 0;
    while accepted < 2 {
        ring.turn(wait);
        accepted += usize::from(network.accept().is_some());
    }
}
