//! Two nodes of a pair over encrypted connections: they come together, and somebody between them does not.

use std::time::Duration;
use twinlog::{
    base::{Epoch, Incarnation, PairId, PoolId, PortionId, Prng},
    changelog::PortionRole,
    pair::{
        auth::PairKey,
        decide::Word,
        interconnect::Interconnect,
        link::{Event, Link, LinkConfig, Timing},
        way::LinkWay,
        wire::{Message, PoolFacts, PoolState, RefusalReason},
    },
};
use twinlog_device::{ConnectionId, NetAddress, Network, Wait};
use twinlog_sim::{Agenda, PathPlan, SimListener, SimNet, SimPath, SimWorld};
use twinlog_tls::TlsNetwork;

const POOL: PoolId = PoolId(1);

fn address(name: &str) -> NetAddress {
    NetAddress::Unix(name.into())
}

fn config(node: usize, key: u8) -> LinkConfig {
    let names = ["a", "b"].map(str::to_owned);
    let role = [PortionRole::Own, PortionRole::Mirror][node];
    let facts =
        PoolFacts { pool: POOL, role, portion: PortionId(1), ring_bytes: 1 << 20, unit_bytes: 512, lane_count: 2 };
    LinkConfig {
        name: names[node].clone(),
        partner: names[1 - node].clone(),
        pair: PairId(1),
        key: PairKey::new([key; 32]),
        configuration: 1,
        incarnation: Incarnation(1 + node as u128),
        pools: vec![facts],
        addresses: vec![address("/b")],
        timing: Timing::default(),
    }
}

fn open(world: &SimWorld) -> (Agenda, SimNet, SimListener) {
    let agenda = Agenda::new(world);
    let (net, listener) = SimNet::open(&agenda);
    (agenda, net, listener)
}

struct Node {
    agenda: Agenda,
    net: TlsNetwork<SimNet>,
    link: Link,
    heard: Vec<Message>,
}

impl Node {
    fn turn(&mut self) {
        self.agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        self.link.poll(&mut self.net, self.agenda.world().now());
        while let Some(event) = self.link.next_event(&mut self.net) {
            if let Event::Frame { message, .. } = event {
                self.heard.push(message);
            }
        }
        self.link.flush(&mut self.net);
    }

    fn refusal(&self) -> Option<RefusalReason> {
        self.link.status().refusal.map(|(_, refusal)| refusal.reason)
    }
}

struct Pair {
    world: SimWorld,
    nodes: [Node; 2],
    listener: SimListener,
}

impl Pair {
    fn new(keys: [u8; 2]) -> Self {
        let world = SimWorld::new(1);
        let [(a, first, _), (b, second, listener)] = [open(&world), open(&world)];
        let node = |agenda, net, index: usize| Node {
            agenda,
            net: TlsNetwork::new(net).expect("random numbers"),
            link: Link::new(config(index, keys[index]), Prng::new(index as u64), world.now()),
            heard: Vec::new(),
        };
        let nodes = [node(a, first, 0), node(b, second, 1)];
        Self { world, nodes, listener }
    }

    /// The listening node can be reached at `name`.
    fn path(&self, name: &str) -> SimPath {
        let path = SimPath::new(&self.world, &address(name), PathPlan::default());
        path.listen(&self.listener, 0);
        path
    }

    fn until(&mut self, what: &str, mut meanwhile: impl FnMut(), is_so: impl Fn(&[Node; 2]) -> bool) {
        let end = self.world.now() + Duration::from_secs(20);
        while !is_so(&self.nodes) {
            assert!(self.world.now() < end, "in vain: {what}");
            self.nodes.iter_mut().for_each(Node::turn);
            meanwhile();
        }
    }
}

fn word() -> Message {
    Message::PoolState(PoolState { word: Word::Serving, portion: Some(PortionId(7)), expected: vec![] })
}

#[test]
fn nodes_with_the_same_key_come_together() {
    let mut pair = Pair::new([1, 1]);
    let _path = pair.path("/b");
    pair.until("both are up", || {}, |nodes| nodes.iter().all(|node| node.link.is_up()));
    let Node { link, net, .. } = &mut pair.nodes[0];
    link.send(net, (POOL, Epoch(1)), &word(), &[]).expect("there is room");
    pair.until("it is heard", || {}, |nodes| nodes[1].heard == [word()]);
}

/// A node of the pair that does not encrypt, against one that does: `clear` is the one that does not.
fn one_in_the_clear(clear: usize) {
    let world = SimWorld::new(2);
    let [(a, first, _), (b, second, listener)] = [open(&world), open(&world)];
    let path = SimPath::new(&world, &address("/b"), PathPlan::default());
    path.listen(&listener, 0);
    let mut links = [0, 1].map(|node| Link::new(config(node, 1), Prng::new(node as u64), world.now()));
    let (mut plain, hidden) = if clear == 0 { (first, second) } else { (second, first) };
    let mut hidden = TlsNetwork::new(hidden).expect("random numbers");
    let knows = |link: &Link| {
        let refusal = link.status().refusal;
        refusal.is_some_and(|(_, refusal)| refusal.reason == RefusalReason::Encryption)
    };
    let end = world.now() + Duration::from_secs(20);
    while !links.iter().all(knows) {
        assert!(world.now() < end, "in vain: both know why {:?}", links.each_ref().map(|link| link.status()));
        for agenda in [&a, &b] {
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
        links[clear].poll(&mut plain, world.now());
        while links[clear].next_event(&mut plain).is_some() {}
        links[1 - clear].poll(&mut hidden, world.now());
        while links[1 - clear].next_event(&mut hidden).is_some() {}
    }
    assert!(links.iter().all(|link| !link.is_up()));
    let [first, second] = links;
    let (in_clear, encrypting) = if clear == 0 { (first, second) } else { (second, first) };
    for said in [LinkWay::new(plain, in_clear).refusal(), LinkWay::new(hidden, encrypting).refusal()] {
        let [why, mending] = said.expect("they know");
        assert!(mending.contains("[pair] encrypt"), "{why}: {mending}");
    }
}

#[test]
fn nodes_that_do_not_both_encrypt_know_why_they_are_no_pair() {
    one_in_the_clear(0);
    one_in_the_clear(1);
}

#[test]
fn a_node_without_the_key_is_refused() {
    let mut pair = Pair::new([1, 2]);
    let _path = pair.path("/b");
    let refused = |nodes: &[Node; 2]| nodes.iter().all(|node| node.refusal() == Some(RefusalReason::Key));
    pair.until("both know why", || {}, refused);
    assert!(pair.nodes.iter().all(|node| !node.link.is_up()));
}

/// Somebody to whom node a connects, who connects to node b, and passes on every byte between them, decrypted and encrypted again.
struct Middle {
    agenda: Agenda,
    net: TlsNetwork<SimNet>,
    wires: Vec<[ConnectionId; 2]>,
    _path: SimPath,
    passed: u64,
}

impl Middle {
    fn new(world: &SimWorld) -> Self {
        let (agenda, net, listener) = open(world);
        let path = SimPath::new(world, &address("/b"), PathPlan::default());
        path.listen(&listener, 0);
        let net = TlsNetwork::new(net).expect("random numbers");
        Self { agenda, net, wires: Vec::new(), _path: path, passed: 0 }
    }

    fn turn(&mut self) {
        self.agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        self.net.poll(&mut Vec::new());
        while let Some(accepted) = self.net.accept() {
            let onward = self.net.connect(&address("/really-b"));
            self.wires.push([accepted.connection, onward]);
        }
        for [first, second] in &self.wires {
            for (from, to) in [(first, second), (second, first)] {
                let bytes = self.net.input(*from).to_vec();
                self.net.consume(*from, bytes.len());
                self.net.send(*to, &bytes);
                self.passed += bytes.len() as u64;
            }
        }
    }
}

#[test]
fn somebody_in_the_middle_who_passes_everything_on_is_refused() {
    let mut pair = Pair::new([1, 1]);
    let _path = pair.path("/really-b");
    let mut middle = Middle::new(&pair.world);
    let refused = |nodes: &[Node; 2]| nodes.iter().all(|node| node.refusal() == Some(RefusalReason::Key));
    pair.until("both know why", || middle.turn(), refused);
    assert!(pair.nodes.iter().all(|node| !node.link.is_up()));
    assert!(middle.passed > 800, "both hellos and both proofs were passed on");
}
