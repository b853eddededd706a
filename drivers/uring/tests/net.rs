//! Sockets on the ring: the conformance suite over Unix and TCP, and what is particular to listeners.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::Duration,
};
use tempfile::TempDir;
use twinlog_device::{
    Accepted, BlockPool, ConnectionFailure, ConnectionState, NetAddress, Network, Wait,
    conformance::{self, ConnectHarness, NetworkHarness},
};
use twinlog_uring::{ListenAddress, Listener, Ring, RingOptions, UringNetwork};

enum Peer {
    Unix(UnixStream),
    Tcp(TcpStream),
}

macro_rules! with {
    ($peer:expr, $stream:ident => $expression:expr) => {
        match $peer {
            Peer::Unix($stream) => $expression,
            Peer::Tcp($stream) => $expression,
        }
    };
}

struct Harness {
    // Goes before the ring's other users.
    network: UringNetwork,
    ring: Ring,
    pool: BlockPool,
    address: ListenAddress,
    directory: TempDir,
}

impl Harness {
    fn unix(connections_max: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = ListenAddress::Unix { path: directory.path().join("socket"), mode: 0o600 };
        Self::new(directory, &address, connections_max)
    }

    fn tcp() -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        Self::new(tempfile::tempdir().expect("a temporary directory"), &ListenAddress::Tcp(any), 16)
    }

    fn new(directory: TempDir, address: &ListenAddress, connections_max: usize) -> Self {
        let pool = BlockPool::new(16).expect("a small pool");
        let ring = Ring::new(RingOptions::default(), &pool).expect("io_uring");
        let listener = Listener::bind(address).expect("a free address");
        let address = listener.address().clone();
        let network = UringNetwork::new(&ring, vec![listener], connections_max).expect("a network");
        Self { network, ring, pool, address, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn accept(&mut self) -> Accepted {
        loop {
            if let Some(accepted) = self.network.accept() {
                return accepted;
            }
            self.turn();
        }
    }
}

impl NetworkHarness for Harness {
    type Network = UringNetwork;
    type Peer = Peer;

    fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    fn network(&mut self) -> &mut UringNetwork {
        &mut self.network
    }

    fn turn(&mut self) {
        self.ring.turn(Wait::UpTo(Duration::from_millis(1)));
    }

    fn connect(&mut self) -> Peer {
        let peer = match &self.address {
            ListenAddress::Unix { path, .. } => Peer::Unix(UnixStream::connect(path).expect("it listens")),
            ListenAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).expect("it listens");
                // What was sent leaves at once.
                stream.set_nodelay(true).expect("a socket");
                Peer::Tcp(stream)
            }
        };
        with!(&peer, stream => stream.set_nonblocking(true)).expect("a socket");
        peer
    }

    fn peer_send(&mut self, peer: &mut Peer, bytes: &[u8]) -> usize {
        match with!(peer, stream => stream.write(bytes)) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => 0,
            Err(error) => panic!("a client sends: {error}"),
        }
    }

    fn peer_receive(&mut self, peer: &mut Peer, bytes: &mut Vec<u8>) -> bool {
        let mut part = [0; 64 << 10];
        match with!(peer, stream => stream.read(&mut part)) {
            Ok(count) => {
                bytes.extend_from_slice(&part[..count]);
                count > 0
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn peer_end(&mut self, peer: &mut Peer) {
        with!(peer, stream => stream.shutdown(Shutdown::Write)).expect("a connected socket");
    }

    fn peer_drop(&mut self, peer: Peer) {
        drop(peer);
    }
}

/// Two networks of one ring; the second listens.
struct Nodes {
    // Go before the ring's other users.
    networks: [UringNetwork; 2],
    ring: Ring,
    pool: BlockPool,
    address: NetAddress,
    deserted: NetAddress,
    _directory: TempDir,
}

impl Nodes {
    fn new(over_tcp: bool) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pool = BlockPool::new(16).expect("a small pool");
        let ring = Ring::new(RingOptions::default(), &pool).expect("io_uring");
        let path = directory.path().join("socket");
        let wanted = match over_tcp {
            true => ListenAddress::Tcp("127.0.0.1:0".parse().expect("an address")),
            false => ListenAddress::Unix { path: path.clone(), mode: 0o600 },
        };
        let listener = Listener::bind(&wanted).expect("a free address");
        let (address, deserted) = match *listener.address() {
            ListenAddress::Tcp(address) => {
                // A port that was free a moment ago.
                let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
                (NetAddress::Tcp(address), NetAddress::Tcp(free))
            }
            ListenAddress::Unix { .. } => (NetAddress::Unix(path.clone()), NetAddress::Unix(path.with_extension("x"))),
        };
        let networks =
            [Vec::new(), vec![listener]].map(|listeners| UringNetwork::new(&ring, listeners, 16).expect("a network"));
        Self { networks, ring, pool, address, deserted, _directory: directory }
    }
}

impl ConnectHarness for Nodes {
    type Network = UringNetwork;

    fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    fn network(&mut self, index: usize) -> &mut UringNetwork {
        &mut self.networks[index]
    }

    fn turn(&mut self) {
        self.ring.turn(Wait::UpTo(Duration::from_millis(1)));
    }

    fn address(&self) -> NetAddress {
        self.address.clone()
    }

    fn deserted_address(&self) -> NetAddress {
        self.deserted.clone()
    }
}

#[test]
fn nodes_connected_by_unix_sockets_conform() {
    conformance::connections(|| Nodes::new(false));
}

#[test]
fn nodes_connected_by_tcp_conform() {
    conformance::connections(|| Nodes::new(true));
}

#[test]
fn a_connect_without_an_answer_is_given_up_and_leaves_nothing_behind() {
    let mut nodes = Nodes::new(true);
    // A network for documentation (RFC 5737): depending on the machine nothing answers, or the network says that it leads nowhere.
    let nowhere = NetAddress::Tcp("192.0.2.1:7000".parse().expect("an address"));
    let connections = [0; 3].map(|_| nodes.networks[0].connect(&nowhere));
    for _ in 0..3 {
        nodes.turn();
        nodes.networks[0].poll(&mut Vec::new());
    }
    assert!(connections.iter().all(|&connection| nodes.networks[0].state(connection) != ConnectionState::Open));
    nodes.networks[0].close(connections[0], true);
    nodes.networks[0].close(connections[1], false);
    while nodes.networks[0].connection_count() > 1 {
        nodes.turn();
        nodes.networks[0].poll(&mut Vec::new());
    }
    // The last one is still being tried, or has failed: dropping the network does not wait for it.
    drop(nodes);
}

#[test]
fn a_socket_whose_queue_is_full_is_waited_for_and_can_be_given_up() {
    let mut nodes = Nodes::new(false);
    let path = nodes.address.clone();
    // Nobody accepts: the networks get no turn of the ring while plain clients fill the queue of the socket.
    let NetAddress::Unix(socket) = &path else { unreachable!("the address of this test") };
    let queue = UnixListener::bind(socket.with_extension("full")).expect("a free name");
    let full = NetAddress::Unix(socket.with_extension("full"));
    nix::sys::socket::listen(&queue, nix::sys::socket::Backlog::new(1).expect("small")).expect("it listens");
    let connections = [0; 6].map(|_| nodes.networks[0].connect(&full));
    for _ in 0..5 {
        nodes.turn();
        nodes.networks[0].poll(&mut Vec::new());
    }
    let states = connections.map(|connection| nodes.networks[0].state(connection));
    assert!(states.contains(&ConnectionState::Open), "the first find room: {states:?}");
    assert!(states[5] != ConnectionState::Open, "the last does not: {states:?}");
    for connection in connections {
        nodes.networks[0].close(connection, true);
    }
    while nodes.networks[0].connection_count() > 0 {
        nodes.turn();
        nodes.networks[0].poll(&mut Vec::new());
    }
}

#[test]
fn an_address_that_cannot_be_fails_at_once_with_its_reason() {
    let mut nodes = Nodes::new(false);
    let connection = nodes.networks[0].connect(&NetAddress::Unix("/x".repeat(100).into()));
    let mut ready = Vec::new();
    nodes.turn();
    nodes.networks[0].poll(&mut ready);
    assert_eq!(ready, [connection]);
    let failure = nodes.networks[0].failure(connection);
    assert_eq!(failure, Some(ConnectionFailure::Os(libc::ENAMETOOLONG)));
    nodes.networks[0].send(connection, b"ignored");
    nodes.networks[0].close(connection, false);
    assert_eq!(nodes.networks[0].connection_count(), 0);
}

#[test]
fn unix_sockets_conform() {
    conformance::network(|| Harness::unix(16));
}

#[test]
fn unread_input_is_counted() {
    conformance::unread(Harness::unix(16), usize::MAX);
    conformance::unread_beside_landings(Harness::unix(16), usize::MAX);
    // Less than any receive window.
    conformance::unread(Harness::tcp(), 16 << 10);
    conformance::unread_beside_landings(Harness::tcp(), 16 << 10);
}

#[test]
fn input_lands_in_blocks() {
    conformance::landing(|| Harness::unix(16));
    conformance::landing(Harness::tcp);
}

#[test]
fn tcp_sockets_conform() {
    conformance::network(Harness::tcp);
}

#[test]
fn a_client_beyond_the_limit_is_turned_away_and_the_others_are_served() {
    let mut harness = Harness::unix(2);
    let mut peers: Vec<_> = (0..2).map(|_| harness.connect()).collect();
    let accepted = [harness.accept(), harness.accept()];
    let mut refused = harness.connect();
    let mut nothing = Vec::new();
    while harness.peer_receive(&mut refused, &mut nothing) {
        harness.turn();
        assert!(harness.network.accept().is_none(), "no third client is accepted");
    }
    assert!(nothing.is_empty() && harness.network.refused_count() == 1);
    assert_eq!(harness.network.connection_count(), 2);
    // A slot that is free again is used again.
    harness.network.close(accepted[0].connection, true);
    drop(peers.remove(0));
    while harness.network.connection_count() == 2 {
        harness.turn();
        harness.network.poll(&mut Vec::new());
    }
    let _third = harness.connect();
    assert_ne!(harness.accept().connection, accepted[0].connection);
}

#[test]
fn a_client_is_named() {
    let mut harness = Harness::unix(2);
    let _peer = harness.connect();
    let process = format!("process {}", std::process::id());
    assert!(harness.accept().peer.contains(&process));
    let mut harness = Harness::tcp();
    let _peer = harness.connect();
    assert!(harness.accept().peer.starts_with("127.0.0.1:"));
}

#[test]
fn unlisten_refuses_new_clients_and_serves_the_old_ones() {
    let mut harness = Harness::unix(4);
    let mut peer = harness.connect();
    let accepted = harness.accept();
    harness.network.unlisten();
    assert!(!harness.path().exists(), "the socket file goes");
    UnixStream::connect(harness.path()).expect_err("nobody listens");
    harness.network.send(accepted.connection, b"still here");
    let mut received = Vec::new();
    while received.len() < 10 {
        harness.turn();
        assert!(harness.peer_receive(&mut peer, &mut received), "the connection stays");
    }
    assert_eq!(received, b"still here");
}

#[test]
fn a_network_that_goes_leaves_nothing_behind() {
    let mut harness = Harness::unix(4);
    let mut peers: Vec<_> = (0..3).map(|_| harness.connect()).collect();
    let connections: Vec<_> = (0..3).map(|_| harness.accept().connection).collect();
    let block = harness.pool.allocate_zeroed().expect("a block").freeze();
    for &connection in &connections {
        // Far more than the socket takes: the send stays in flight.
        for _ in 0..2000 {
            harness.network.send_block(connection, &block, 0..4096);
        }
    }
    harness.turn();
    let Harness { network, pool, directory, .. } = harness;
    drop(network);
    assert!(!directory.path().join("socket").exists());
    drop(block);
    assert_eq!(pool.free_count(), pool.block_count(), "its blocks come back");
    for peer in &mut peers {
        with!(peer, stream => stream.set_nonblocking(false)).expect("a socket");
        let mut received = Vec::new();
        // The end of the stream, or a reset: but no hang.
        let _ = with!(peer, stream => stream.read_to_end(&mut received));
    }
}

#[test]
fn two_reactors_share_a_listener() {
    let mut first = Harness::unix(8);
    let listener = Listener::bind(&ListenAddress::Unix { path: first.directory.path().join("shared"), mode: 0o600 })
        .expect("a free name");
    let path = first.directory.path().join("shared");
    let second_ring = Ring::new(RingOptions::default(), &first.pool).expect("io_uring");
    first.network = UringNetwork::new(&first.ring, vec![listener.clone()], 8).expect("a network");
    let mut second = UringNetwork::new(&second_ring, vec![listener], 8).expect("a network");
    let peers: Vec<_> = (0..6).map(|_| UnixStream::connect(&path).expect("both listen")).collect();
    let mut accepted = 0;
    while accepted < peers.len() {
        first.turn();
        second_ring.turn(Wait::UpTo(Duration::from_millis(1)));
        accepted += usize::from(first.network.accept().is_some()) + usize::from(second.accept().is_some());
    }
    assert_eq!(first.network.connection_count() + second.connection_count(), peers.len());
    drop(first);
    assert!(!path.exists() || second.connection_count() <= peers.len());
    drop(second);
    assert!(!path.exists(), "the last reactor removes the socket file");
}

#[test]
fn a_connection_that_nobody_takes_keeps_nobody_awake_who_has_looked() {
    let mut harness = Harness::unix(16);
    let ListenAddress::Unix { path, .. } = harness.address.clone() else { unreachable!("the address of this test") };
    let mut client = UnixStream::connect(path).expect("it listens");
    client.write_all(b"hello").expect("there is room");
    // First the connection is found, then what it sends.
    let mut sleeps = |what: &str, is_looked: bool| {
        let before = harness.ring.enter_count();
        for _ in 0..20 {
            if is_looked {
                harness.network.poll(&mut Vec::new());
            }
            harness.ring.turn(Wait::UpTo(Duration::from_millis(1)));
        }
        assert_eq!(harness.ring.enter_count() - before >= 15, is_looked, "{what}");
    };
    sleeps("what it leaves with the ring is not slept over", false);
    sleeps("what it has taken is", true);
}
