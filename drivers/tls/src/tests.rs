//! Two ends over a simulated network, somebody between them, and ends that do not encrypt.

use super::*;
use std::time::Duration;
use twinlog_device::Wait;
use twinlog_sim::{Agenda, PathPlan, SimListener, SimNet, SimPath, SimWorld};

struct Ends {
    world: SimWorld,
    agendas: [Agenda; 2],
    nets: [TlsNetwork<SimNet>; 2],
    _path: SimPath,
}

fn address() -> NetAddress {
    NetAddress::Unix("/b".into())
}

fn open(world: &SimWorld) -> (Agenda, SimNet, SimListener) {
    let agenda = Agenda::new(world);
    let (net, listener) = SimNet::open(&agenda);
    (agenda, net, listener)
}

impl Ends {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let [(first, a, _), (second, b, listener)] = [open(&world), open(&world)];
        let path = SimPath::new(&world, &address(), PathPlan::default());
        path.listen(&listener, 0);
        let nets = [a, b].map(|net| TlsNetwork::new(net).expect("random numbers"));
        Self { world, agendas: [first, second], nets, _path: path }
    }

    fn turn(&mut self) {
        for (agenda, net) in self.agendas.iter().zip(&mut self.nets) {
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            net.poll(&mut Vec::new());
        }
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = self.world.now() + Duration::from_secs(20);
        while !is_so(self) {
            assert!(self.world.now() < end, "in vain: {what}");
            self.turn();
        }
    }

    fn connect(&mut self) -> [ConnectionId; 2] {
        let first = self.nets[0].connect(&address());
        loop {
            self.turn();
            if let Some(accepted) = self.nets[1].accept() {
                let second = accepted.connection;
                self.until("both are open", |ends| {
                    ends.nets[0].state(first) == ConnectionState::Open && ends.nets[1].binding(second).is_some()
                });
                return [first, second];
            }
        }
    }
}

#[test]
fn what_one_end_sends_the_other_one_gets_and_nobody_else_can_read() {
    let mut ends = Ends::new(1);
    let [first, second] = ends.connect();
    assert_eq!(ends.nets[0].binding(first), ends.nets[1].binding(second));
    let text: Vec<u8> = b"change ".iter().copied().cycle().take(3 << 20).collect();
    ends.nets[0].widen_input(first, 4 << 20);
    ends.nets[1].send(second, &text);
    ends.nets[0].send(first, b"hello");
    let mut has_leaked = false;
    while ends.nets[0].input(first).len() < text.len() {
        has_leaked |= ends.nets[0].inner.input(first).windows(14).any(|window| window == b"change change ");
        ends.turn();
    }
    assert_eq!(ends.nets[0].input(first), text);
    assert!(!has_leaked);
    ends.until("the other way", |ends| ends.nets[1].input(second) == b"hello");
    ends.nets[0].consume(first, text.len());
    assert!(ends.nets[0].input(first).is_empty());
}

#[test]
fn who_does_not_read_slows_the_sender_down() {
    let mut ends = Ends::new(2);
    let [first, second] = ends.connect();
    ends.nets[0].send(first, &vec![1; 4 << 20]);
    for _ in 0..20_000 {
        ends.turn();
    }
    let waiting = ends.nets[1].input(second).len();
    assert!((INPUT_BYTES..INPUT_BYTES + (32 << 10)).contains(&waiting), "{waiting}");
    assert!(ends.nets[0].unsent_bytes(first) > 3 << 20);
    let mut taken = 0;
    while taken < 4 << 20 {
        let count = ends.nets[1].input(second).len();
        ends.nets[1].consume(second, count);
        taken += count;
        ends.turn();
    }
    assert_eq!(taken, 4 << 20);
}

#[test]
fn an_end_that_closes_has_said_everything() {
    let mut ends = Ends::new(3);
    let [first, second] = ends.connect();
    ends.nets[0].send(first, b"last words");
    ends.nets[0].close(first, false);
    ends.until("it has ended", |ends| ends.nets[1].state(second) == ConnectionState::InputEnded);
    assert_eq!(ends.nets[1].input(second), b"last words");
}

#[test]
fn every_connection_has_a_binding_of_its_own() {
    let mut ends = Ends::new(4);
    let [first, _] = ends.connect();
    let [other, _] = ends.connect();
    assert_ne!(ends.nets[0].binding(first), ends.nets[0].binding(other));
}

#[test]
fn who_does_not_encrypt_is_noticed_at_both_ends() {
    // A client in the clear.
    let mut ends = Ends::new(5);
    let clear = ends.nets[0].inner.connect(&address());
    ends.nets[0].inner.send(clear, b"TWLF is what a node says that does not encrypt");
    let second = loop {
        ends.turn();
        if let Some(accepted) = ends.nets[1].accept() {
            break accepted.connection;
        }
    };
    ends.until("it has failed", |ends| ends.nets[1].state(second) == ConnectionState::Failed);
    assert_eq!(ends.nets[1].failure(second), Some(ConnectionFailure::Insecure));
    assert_eq!(ends.nets[1].binding(second), None);
    // It is told so, however the connection ends: an alert, and it is fatal.
    ends.nets[1].close(second, true);
    ends.until("the alert has come", |ends| matches!(ends.nets[0].inner.input(clear), [21, 3, _, 0, 2, 2, _]));
    // A server in the clear.
    let mut ends = Ends::new(6);
    let first = ends.nets[0].connect(&address());
    loop {
        ends.turn();
        if let Some(accepted) = ends.nets[1].inner.accept() {
            ends.nets[1].inner.send(accepted.connection, b"TWLF is what a node says that does not encrypt");
        }
        if ends.nets[0].state(first) == ConnectionState::Failed {
            break;
        }
    }
    assert_eq!(ends.nets[0].failure(first), Some(ConnectionFailure::Insecure));
}

/// A flipped bit anywhere in the stream: nothing is taken for what was sent that was not.
#[test]
fn a_changed_byte_ends_the_connection() {
    let mut ends = Ends::new(7);
    let [first, second] = ends.connect();
    // What the other end would have sent under the same keys nobody can make: here are bytes that look like a record.
    let forged = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    ends.nets[0].inner.send(first, &forged);
    ends.until("it has failed", |ends| ends.nets[1].state(second) == ConnectionState::Failed);
    assert_eq!(ends.nets[1].failure(second), Some(ConnectionFailure::Insecure));
    assert!(ends.nets[1].input(second).is_empty());
}

#[test]
fn what_came_before_a_damaged_record_is_taken() {
    for seed in 100..120 {
        let mut ends = Ends::new(seed);
        let [first, second] = ends.connect();
        ends.nets[0].send(first, b"sound");
        ends.nets[0].inner.send(first, &[&[23, 3, 3, 0, 32][..], &[7; 32]].concat());
        ends.until("it has failed", |ends| ends.nets[1].state(second) == ConnectionState::Failed);
        assert_eq!(ends.nets[1].input(second), b"sound", "seed {seed}");
    }
}
