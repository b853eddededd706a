//! Connections by themselves: clients, and two nodes over a path.

use super::*;
use crate::{fault::Fault, world::SimWorld};
use std::time::Duration;
use twinlog_device::{Nanos, Wait};

struct Rig {
    world: SimWorld,
    agenda: Agenda,
    net: SimNet,
    listener: SimListener,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let agenda = Agenda::new(&world);
        let (net, listener) = SimNet::open(&agenda);
        Self { world, agenda, net, listener }
    }

    fn connect(&mut self) -> (ConnectionId, SimClient) {
        let client = self.listener.connect(1);
        let accepted = self.net.accept().expect("a client waits");
        assert_eq!(accepted.listener, 1);
        (accepted.connection, client)
    }

    /// Turns until something is ready.
    fn ready(&mut self) -> Vec<ConnectionId> {
        let mut ready = Vec::new();
        while ready.is_empty() {
            assert!(self.world.now() < Nanos(1_000_000_000), "something happens within a second");
            self.agenda.turn(Wait::UpTo(Duration::from_millis(10)));
            self.net.poll(&mut ready);
        }
        ready
    }
}

#[test]
fn a_waiting_reactor_wakes_for_its_clients() {
    let mut rig = Rig::new(1);
    let long = Wait::UpTo(Duration::from_secs(3600));
    let mut client = rig.listener.connect(0);
    assert!(rig.agenda.turn(long));
    let connection = rig.net.accept().expect("a client waits").connection;
    client.send(b"hello");
    while rig.net.input(connection).len() < 5 {
        assert!(rig.agenda.turn(long));
        rig.net.poll(&mut Vec::new());
    }
    rig.net.send(connection, b"world");
    let mut received = Vec::new();
    while received.len() < 5 {
        assert!(rig.agenda.turn(long));
        rig.net.poll(&mut Vec::new());
        client.receive(&mut received);
    }
    client.end();
    assert!(rig.agenda.turn(long));
    rig.net.poll(&mut Vec::new());
    assert_eq!(rig.net.state(connection), ConnectionState::InputEnded);
    assert!(rig.world.now() < Nanos(1_000_000), "nothing waited for the end of an hour");
}

#[test]
fn a_reset_loses_what_was_on_its_way() {
    let mut rig = Rig::new(1);
    let (connection, mut client) = rig.connect();
    client.send(b"never seen");
    client.reset();
    assert_eq!(rig.ready(), [connection]);
    assert_eq!(rig.net.state(connection), ConnectionState::Failed);
    assert!(rig.net.input(connection).is_empty());
    assert_eq!(rig.world.faults(Fault::Disconnect), (1, 1));
    rig.net.send(connection, b"nobody listens");
    assert_eq!(rig.net.unsent_bytes(connection), 0);
    rig.net.close(connection, false);
}

#[test]
fn a_client_that_closes_has_sent_what_it_sent() {
    let mut rig = Rig::new(1);
    let (connection, mut client) = rig.connect();
    client.send(b"last words");
    drop(client);
    while rig.net.state(connection) == ConnectionState::Open {
        rig.ready();
    }
    assert_eq!(rig.net.state(connection), ConnectionState::InputEnded);
    assert_eq!(rig.net.input(connection), b"last words");
}

#[test]
fn the_end_of_the_process_ends_every_stream() {
    let mut rig = Rig::new(1);
    let (_, mut client) = rig.connect();
    let mut waiting = rig.listener.connect(0);
    drop(rig.net);
    let mut late = rig.listener.connect(0);
    for client in [&mut client, &mut waiting, &mut late] {
        assert!(!client.receive(&mut Vec::new()));
        assert_eq!(client.send(b"x"), 0);
    }
}

#[test]
fn the_seed_cuts_streams_into_pieces() {
    fn pieces(seed: u64) -> Vec<usize> {
        let mut rig = Rig::new(seed);
        let (connection, mut client) = rig.connect();
        client.send(&[7; 10_000]);
        let mut pieces = Vec::new();
        while pieces.iter().sum::<usize>() < 10_000 {
            rig.ready();
            let count = rig.net.input(connection).len();
            rig.net.consume(connection, count);
            pieces.push(count);
        }
        pieces
    }
    assert_eq!(pieces(3), pieces(3));
    assert!((0..20).any(|seed| pieces(seed).len() > 1));
    assert!((0..20).any(|seed| pieces(seed).len() == 1));
}

/// Two nodes and a path from the first to the second.
struct Pair {
    agendas: [Agenda; 2],
    nets: [SimNet; 2],
    listeners: [SimListener; 2],
    world: SimWorld,
    path: SimPath,
}

fn address() -> NetAddress {
    NetAddress::Tcp("10.0.0.2:7000".parse().expect("an address"))
}

impl Pair {
    fn new(seed: u64, plan: PathPlan) -> Self {
        let world = SimWorld::new(seed);
        let path = SimPath::new(&world, &address(), plan);
        let agendas = [Agenda::new(&world), Agenda::new(&world)];
        let [(first, first_listener), (second, second_listener)] =
            [SimNet::open(&agendas[0]), SimNet::open(&agendas[1])];
        path.listen(&second_listener, 3);
        Self { agendas, nets: [first, second], listeners: [first_listener, second_listener], world, path }
    }

    fn turn(&mut self) {
        for (agenda, net) in self.agendas.iter().zip(&mut self.nets) {
            agenda.turn(Wait::UpTo(Duration::from_millis(100)));
            net.poll(&mut Vec::new());
        }
    }

    fn turn_for(&mut self, time: Duration) {
        let end = self.world.now() + time;
        while self.world.now() < end {
            self.turn();
        }
    }

    /// Turns until `done`.
    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.world.now() + Duration::from_secs(300);
        while !done(self) {
            assert!(self.world.now() < end, "it happens within five minutes");
            self.turn();
        }
    }

    fn connect(&mut self) -> [ConnectionId; 2] {
        let connecting = self.nets[0].connect(&address());
        assert_eq!(self.nets[0].state(connecting), ConnectionState::Connecting);
        let mut accepted = None;
        self.until(|pair| {
            accepted = accepted.take().or_else(|| pair.nets[1].accept());
            accepted.is_some() && pair.nets[0].state(connecting) == ConnectionState::Open
        });
        let accepted = accepted.expect("seen above");
        assert_eq!(accepted.listener, 3);
        [connecting, accepted.connection]
    }

    fn state(&self, node: usize, connection: ConnectionId) -> ConnectionState {
        self.nets[node].state(connection)
    }

    fn arrived(&self, node: usize, connection: ConnectionId) -> usize {
        self.nets[node].input(connection).len()
    }
}

#[test]
fn a_cut_delays_what_is_sent_and_stops_who_sends_without_an_answer() {
    let mut pair = Pair::new(1, PathPlan::default());
    let [first, second] = pair.connect();
    pair.path.cut(Direction::ToListener);
    pair.nets[0].send(first, b"question");
    pair.nets[1].widen_input(second, 1 << 20);
    pair.nets[0].widen_input(first, 1 << 20);
    pair.nets[1].send(second, &vec![1; 1 << 20]);
    pair.turn_for(Duration::from_secs(60));
    assert_eq!(pair.arrived(1, second), 0, "nothing passes the cut");
    assert_eq!(pair.arrived(0, first), stream::SOCKET_BYTES, "without acknowledgements a sender stops");
    assert_eq!((pair.state(0, first), pair.state(1, second)), (ConnectionState::Open, ConnectionState::Open));
    pair.path.heal();
    pair.until(|pair| pair.arrived(1, second) == 8 && pair.arrived(0, first) == 1 << 20);
    assert_eq!(pair.nets[1].input(second), b"question");
    assert_eq!(pair.path.counts().cut, 1);
}

#[test]
fn connecting_over_a_cut_waits_and_ends_as_the_kernel_ends_it() {
    let mut pair = Pair::new(2, PathPlan::default());
    pair.path.cut(Direction::FromListener);
    let healed = pair.nets[0].connect(&address());
    pair.turn_for(Duration::from_secs(10));
    assert_eq!(pair.state(0, healed), ConnectionState::Connecting);
    pair.path.heal();
    pair.until(|pair| pair.state(0, healed) == ConnectionState::Open);
    pair.path.cut(Direction::ToListener);
    let never = pair.nets[0].connect(&address());
    pair.until(|pair| pair.state(0, never) == ConnectionState::Failed);
    assert_eq!(pair.nets[0].failure(never), Some(ConnectionFailure::TimedOut));
    assert!(pair.path.counts().cut_mattered > 0);
}

#[test]
fn nobody_listens_where_no_process_is() {
    let mut pair = Pair::new(3, PathPlan::default());
    let elsewhere = pair.nets[0].connect(&NetAddress::Unix("/nowhere".into()));
    let (net, _) = SimNet::open(&pair.agendas[1]);
    pair.nets[1] = net;
    let refused = pair.nets[0].connect(&address());
    for connection in [elsewhere, refused] {
        pair.until(|pair| pair.state(0, connection) == ConnectionState::Failed);
        assert_eq!(pair.nets[0].failure(connection), Some(ConnectionFailure::Refused));
    }
}

#[test]
fn a_break_loses_a_part_at_the_end_and_nothing_else() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut pair = Pair::new(seed, PathPlan::default());
        let [first, second] = pair.connect();
        let sent: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        pair.nets[0].send(first, &sent);
        pair.turn_for(Duration::from_micros(seed * 20));
        pair.path.break_connections();
        pair.until(|pair| {
            pair.state(0, first) == ConnectionState::Failed && pair.state(1, second) == ConnectionState::Failed
        });
        assert_eq!(pair.nets[1].failure(second), Some(ConnectionFailure::Reset));
        let arrived = pair.nets[1].input(second);
        assert!(sent.starts_with(arrived), "what arrives is a beginning of what was sent");
        lost += usize::from(arrived.len() < sent.len());
        assert_eq!(pair.path.counts().broken, 1);
    }
    assert!((1..20).contains(&lost), "{lost} of 20 breaks lose something");
}

#[test]
fn a_machine_that_goes_dark_is_not_noticed_until_it_runs_again() {
    let mut pair = Pair::new(5, PathPlan::default());
    let [first, second] = pair.connect();
    pair.nets[1].send(second, b"last words");
    pair.until(|pair| pair.arrived(0, first) == 10);
    pair.listeners[1].go_dark();
    let (net, listener) = SimNet::open(&pair.agendas[1]);
    pair.nets[1] = net;
    pair.turn_for(Duration::from_secs(60));
    pair.nets[0].send(first, b"is anybody there?");
    let asked = pair.nets[0].connect(&address());
    pair.turn_for(Duration::from_secs(60));
    assert_eq!(pair.state(0, first), ConnectionState::Open, "silence says nothing");
    assert_eq!(pair.state(0, asked), ConnectionState::Connecting);
    pair.path.listen(&listener, 0);
    pair.until(|pair| pair.state(0, first) == ConnectionState::Failed && pair.state(0, asked) == ConnectionState::Open);
    assert_eq!(pair.nets[0].failure(first), Some(ConnectionFailure::Reset));
}

#[test]
fn a_node_that_connected_and_went_dark_is_noticed_when_it_has_connected_again() {
    let mut pair = Pair::new(6, PathPlan::default());
    let [_, half_open] = pair.connect();
    pair.listeners[0].go_dark();
    let (net, listener) = SimNet::open(&pair.agendas[0]);
    (pair.nets[0], pair.listeners[0]) = (net, listener);
    pair.nets[1].send(half_open, b"hello?");
    pair.turn_for(Duration::from_secs(10));
    assert_eq!(pair.state(1, half_open), ConnectionState::Open);
    pair.connect();
    pair.until(|pair| pair.state(1, half_open) == ConnectionState::Failed);
}

#[test]
fn the_end_of_a_process_ends_its_streams() {
    let mut pair = Pair::new(7, PathPlan::default());
    let [first, second] = pair.connect();
    pair.nets[0].send(first, b"done");
    pair.until(|pair| pair.arrived(1, second) == 4);
    pair.nets[0] = SimNet::open(&pair.agendas[0]).0;
    pair.until(|pair| pair.state(1, second) == ConnectionState::InputEnded);
    pair.nets[1].send(second, b"thanks");
    pair.until(|pair| pair.state(1, second) == ConnectionState::Failed);
}

#[test]
fn the_last_words_of_who_closes_arrive_while_the_other_end_talks() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, PathPlan::default());
        let [first, second] = pair.connect();
        pair.nets[0].send(first, &[1; 1000]);
        pair.nets[1].send(second, b"goodbye");
        pair.nets[1].close(second, false);
        pair.until(|pair| pair.arrived(0, first) == 7 && pair.state(0, first) == ConnectionState::InputEnded);
        pair.nets[0].close(first, false);
        pair.turn_for(Duration::from_secs(1));
        assert!(pair.nets.iter().all(|net| net.closing.is_empty()), "both ends are gone");
    }
}

#[test]
fn lost_packets_and_breaks_are_drawn_from_the_seed() {
    let plan = PathPlan { lost_one_in: 20, broken_one_in: 200, ..PathPlan::default() };
    let run = |seed| {
        let mut pair = Pair::new(seed, plan);
        let mut connections = pair.connect();
        let mut seen = Vec::new();
        for round in 0..200_u32 {
            if pair.state(0, connections[0]) == ConnectionState::Failed {
                connections = pair.connect();
            }
            pair.nets[0].send(connections[0], &round.to_le_bytes());
            pair.turn_for(Duration::from_millis(2));
            let arrived = pair.nets[1].input(connections[1]).len();
            pair.nets[1].consume(connections[1], arrived);
            seen.push((pair.world.now(), arrived));
        }
        (seen, pair.path.counts())
    };
    let (seen, counts) = run(1);
    assert_eq!((seen, counts), run(1), "the same seed, the same bytes at the same times");
    assert!(counts.lost > 0 && counts.broken > 0 && counts.broken_mattered <= counts.broken, "{counts:?}");
    assert_ne!(run(1).0, run(2).0);
}
