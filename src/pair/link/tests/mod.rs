//! Two nodes on a simulated network, and strangers beside them: what a session promises whatever happens to its paths, and that nobody
//! without the key disturbs it.

mod bounds;
mod hostile;
mod paths;
mod puppet;
mod refusals;

use super::*;
use crate::{
    base::{Lsn, PortionId},
    changelog::PortionRole,
    pair::{
        decide::Word,
        wire::{PoolState, RefusalReason},
    },
};
use twinlog_device::Wait;
use twinlog_sim::{Agenda, Direction, PathPlan, SimListener, SimNet, SimPath, SimWorld};

const POOLS: [PoolId; 2] = [PoolId(1), PoolId(2)];
const EPOCH: Epoch = Epoch(3);
const KEY: [u8; 32] = [7; 32];

fn address(path: usize) -> NetAddress {
    NetAddress::Unix(format!("/path-{path}").into())
}

fn facts(pool: usize, role: PortionRole) -> PoolFacts {
    PoolFacts { pool: POOLS[pool], role, portion: PortionId(9), ring_bytes: 8 << 20, unit_bytes: 4096, lane_count: 2 }
}

/// Node 0 is `a`, which connects; node 1 is `b`.
fn config(node: usize, path_count: usize) -> LinkConfig {
    let names = ["a", "b"].map(str::to_owned);
    let roles = [PortionRole::Own, PortionRole::Mirror];
    LinkConfig {
        name: names[node].clone(),
        partner: names[1 - node].clone(),
        pair: PairId(5),
        key: PairKey::new(KEY),
        configuration: 6,
        incarnation: Incarnation(1 + node as u128),
        pools: vec![facts(0, roles[node]), facts(1, roles[1 - node])],
        addresses: (0..path_count).map(address).collect(),
        timing: Timing::default(),
    }
}

/// What a node was told, its frames' bytes copied.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Event(Event),
    Frame { path: u8, pool: PoolId, message: Message, payload: Vec<u8> },
}

struct Node {
    agenda: Agenda,
    net: SimNet,
    listener: SimListener,
    link: Link,
    told: Vec<Told>,
    /// Frames that it takes in a turn; the others wait.
    takes: usize,
}

impl Node {
    fn new(world: &SimWorld, config: LinkConfig, seed: u64) -> Self {
        let agenda = Agenda::new(world);
        let (net, listener) = SimNet::open(&agenda);
        let link = Link::new(config, Prng::new(seed), world.now());
        Self { agenda, net, listener, link, told: Vec::new(), takes: usize::MAX }
    }

    /// One turn, after a sleep that ends when the link or the network wants it.
    fn turn(&mut self) {
        let now = self.agenda.world().now();
        let longest = Duration::from_millis(20);
        let sleep = self.link.next_deadline().map_or(longest, |due| due.since(now).min(longest));
        self.agenda.turn(Wait::UpTo(sleep));
        self.link.poll(&mut self.net, self.agenda.world().now());
        let mut taken = 0;
        while taken < self.takes
            && let Some(event) = self.link.next_event(&mut self.net)
        {
            self.told.push(match event {
                Event::Frame { path, pool, message, .. } => {
                    taken += 1;
                    Told::Frame { path, pool, message, payload: self.link.payload(&self.net).to_vec() }
                }
                other => Told::Event(other),
            });
        }
        self.link.flush(&mut self.net);
    }

    fn open_paths(&self) -> usize {
        self.link.status().paths.iter().filter(|path| path.phase == PathPhase::Open).count()
    }

    fn refusal(&self) -> Option<RefusalReason> {
        self.link.status().refusal.map(|(_, refusal)| refusal.reason)
    }

    fn saw(&self, is_it: impl Fn(&Event) -> bool) -> bool {
        self.told.iter().any(|told| matches!(told, Told::Event(event) if is_it(event)))
    }

    fn send_word(&mut self, pool: usize, number: u64) -> Result<(), NoRoom> {
        let message = word(number);
        self.link.send(&mut self.net, (POOLS[pool], EPOCH), &message, &[])
    }
}

/// A word that can be told from others.
fn word(number: u64) -> Message {
    let portion = Some(PortionId(u128::from(number) + 1));
    Message::PoolState(PoolState { word: Word::Serving, portion, expected: Vec::new() })
}

fn number_of(message: &Message) -> u64 {
    match message {
        Message::PoolState(PoolState { portion: Some(portion), .. }) => u64::try_from(portion.0).expect("small") - 1,
        other => panic!("{other:?} is no word of this test"),
    }
}

struct Pair {
    world: SimWorld,
    nodes: [Node; 2],
    paths: Vec<SimPath>,
}

impl Pair {
    fn new(seed: u64, path_count: usize) -> Self {
        Self::with(seed, [config(0, path_count), config(1, path_count)])
    }

    fn with(seed: u64, configs: [LinkConfig; 2]) -> Self {
        let world = SimWorld::new(seed);
        let path_count = configs[0].addresses.len();
        let [a, b] = configs;
        let nodes = [Node::new(&world, a, seed), Node::new(&world, b, seed + 1)];
        let path = |index| SimPath::new(&world, &address(index), PathPlan::default());
        let paths: Vec<SimPath> = (0..path_count).map(path).collect();
        for (index, path) in paths.iter().enumerate() {
            path.listen(&nodes[1].listener, index);
        }
        Self { world, nodes, paths }
    }

    /// A pair whose every path is open.
    fn up(seed: u64, path_count: usize) -> Self {
        let mut pair = Self::new(seed, path_count);
        pair.until_open(path_count);
        pair
    }

    /// A pair whose node `a` cannot connect: the test takes its part.
    fn without_a(seed: u64) -> Self {
        let pair = Self::new(seed, 1);
        pair.paths[0].cut(Direction::ToListener);
        pair
    }

    /// Another process takes the place of a node.
    fn restart(&mut self, node: usize, config: LinkConfig) {
        self.nodes[node] = Node::new(&self.world, config, self.world.now().0);
        if node == 1 {
            for (index, path) in self.paths.iter().enumerate() {
                path.listen(&self.nodes[1].listener, index);
            }
        }
    }

    fn turn(&mut self) {
        self.nodes.iter_mut().for_each(Node::turn);
    }

    fn run(&mut self, time: Duration) {
        let end = self.world.now() + time;
        while self.world.now() < end {
            self.turn();
        }
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = self.world.now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(self.world.now() < end, "a minute is long enough until {what}: {:?}", self.statuses());
            self.turn();
        }
    }

    fn until_open(&mut self, path_count: usize) {
        self.until("every path is open", |pair| pair.nodes.iter().all(|node| node.open_paths() == path_count));
    }

    fn statuses(&self) -> [LinkStatus; 2] {
        [self.nodes[0].link.status(), self.nodes[1].link.status()]
    }

    /// Whether a word that each node says arrives at the other.
    fn can_talk(&mut self) {
        static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 32);
        let number = NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        for node in &mut self.nodes {
            node.send_word(0, number).expect("there is room");
        }
        self.until("both have heard", |pair| {
            pair.nodes.iter().all(|node| {
                let is_it = |told: &Told| matches!(told, Told::Frame { message, .. } if *message == word(number));
                node.told.iter().any(is_it)
            })
        });
    }
}
