//! Paths that fail and come back: what was sent arrives in its order, once, and nothing that was acknowledged has to be sent again.

use super::{puppet::Puppet, *};
use crate::base::LaneIndex;
use std::collections::BTreeMap;

type Key = (PoolId, LaneIndex);

fn keys() -> impl Iterator<Item = Key> {
    POOLS.into_iter().flat_map(|pool| (0..2).map(move |lane| (pool, LaneIndex(lane))))
}

/// The owner's side of a lane: batches that are not acknowledged.
#[derive(Default)]
struct Source {
    /// End of each batch by its start.
    batches: BTreeMap<u64, u64>,
    appended: u64,
    acknowledged: u64,
    /// Start of the batch that is sent next.
    next: u64,
}

/// The mirror's side of a lane.
#[derive(Default)]
struct Target {
    expected: u64,
    /// Serial of the newest frame of the session.
    serial: u64,
}

/// Node 0 mirrors four lanes to node 1, and both say words about both pools.
struct Mirroring {
    pair: Pair,
    prng: Prng,
    sources: BTreeMap<Key, Source>,
    targets: BTreeMap<Key, Target>,
    /// Frames that were sent; each has its number.
    serial: u64,
    words: u64,
    /// The newest word that each node has heard of each pool in this session.
    heard: [[u64; 2]; 2],
    downs: u64,
    path_downs: u64,
    repetitions: u64,
    path_of_lane: BTreeMap<Key, u8>,
}

impl Mirroring {
    fn new(seed: u64, path_count: usize) -> Self {
        Self {
            pair: Pair::up(seed, path_count),
            prng: Prng::new(seed),
            sources: keys().map(|key| (key, Source::default())).collect(),
            targets: keys().map(|key| (key, Target::default())).collect(),
            serial: 0,
            words: 0,
            heard: [[0; 2]; 2],
            downs: 0,
            path_downs: 0,
            repetitions: 0,
            path_of_lane: BTreeMap::new(),
        }
    }

    fn append(&mut self) {
        let key = *self.prng.pick(&keys().collect::<Vec<_>>());
        let bytes = 128 * self.prng.between(1, 16);
        let source = self.sources.get_mut(&key).expect("every lane");
        source.batches.insert(source.appended, source.appended + bytes);
        source.appended += bytes;
    }

    /// Sends what has room.
    fn send(&mut self) {
        let node = &mut self.pair.nodes[0];
        for (&(pool, lane), source) in &mut self.sources {
            while let Some((&start, &end)) = source.batches.range(source.next..).next() {
                self.serial += 1;
                let mut payload = vec![0; usize::try_from(end - start).expect("small")];
                payload[..8].copy_from_slice(&self.serial.to_le_bytes());
                let payload = Arc::new(payload);
                let message = Message::MirrorWrite { lane, start: Lsn(start), end: Lsn(end) };
                let part = PayloadPart::Shared(&payload, 0..payload.len());
                if node.link.send(&mut node.net, (pool, EPOCH), &message, &[part]).is_err() {
                    break;
                }
                source.next = end;
            }
        }
    }

    fn say(&mut self) {
        self.words += 1;
        let (node, pool) = (self.words % 2, self.words / 2 % 2);
        // Without a path nobody hears it.
        let _unsent = self.pair.nodes[usize::from(node == 1)].send_word(usize::from(pool == 1), self.words);
    }

    fn acknowledge(&mut self, key: Key) {
        let expected = Lsn(self.targets[&key].expected);
        let ack = Ack { pool: key.0, lane: key.1, epoch: EPOCH, durable: expected, expected };
        self.pair.nodes[1].link.acknowledge(ack);
    }

    fn hear(&mut self) {
        for node in 0..2 {
            for told in std::mem::take(&mut self.pair.nodes[node].told) {
                match told {
                    Told::Event(event) => self.hear_event(node, &event),
                    Told::Frame { pool, message: Message::MirrorWrite { lane, start, end }, payload, path } => {
                        assert_eq!(node, 1, "only one of them is a mirror");
                        self.path_of_lane.insert((pool, lane), path);
                        self.hear_batch((pool, lane), (start.0, end.0), &payload);
                    }
                    Told::Frame { pool, message, .. } => {
                        let newest = &mut self.heard[node][usize::from(pool == POOLS[1])];
                        let number = number_of(&message);
                        assert!(number > *newest, "word {number} about {pool} after {newest}");
                        *newest = number;
                    }
                }
            }
        }
    }

    fn hear_batch(&mut self, key: Key, (start, end): (u64, u64), payload: &[u8]) {
        let target = self.targets.get_mut(&key).expect("every lane");
        let serial = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
        assert!(serial > target.serial, "{key:?}: frame {serial} after frame {}", target.serial);
        target.serial = serial;
        assert!(start <= target.expected, "{key:?}: a batch at {start}, and {} is expected", target.expected);
        assert!(start == target.expected || end <= target.expected, "{key:?}: half a repetition");
        self.repetitions += u64::from(end <= target.expected);
        target.expected = target.expected.max(end);
        self.acknowledge(key);
    }

    fn hear_event(&mut self, node: usize, event: &Event) {
        match event {
            Event::Up(_) => {
                self.heard[node] = [0; 2];
                if node == 0 {
                    for (key, source) in &mut self.sources {
                        source.next = self.targets[key].expected;
                    }
                } else {
                    self.targets.values_mut().for_each(|target| target.serial = 0);
                    keys().for_each(|key| self.acknowledge(key));
                }
            }
            Event::Down { .. } => self.downs += 1,
            Event::PathDown { .. } if node == 0 => {
                self.path_downs += 1;
                self.sources.values_mut().for_each(|source| source.next = source.acknowledged);
            }
            Event::Acknowledged(ack) => {
                let (durable, target) = (ack.durable.0, &self.targets[&(ack.pool, ack.lane)]);
                assert!(durable <= target.expected, "nothing is acknowledged before it has arrived");
                let source = self.sources.get_mut(&(ack.pool, ack.lane)).expect("every lane");
                source.acknowledged = source.acknowledged.max(durable);
                source.next = source.next.max(source.acknowledged);
                source.batches.retain(|_, end| *end > source.acknowledged);
            }
            _ => {}
        }
    }

    fn turn(&mut self) {
        self.send();
        self.pair.turn();
        self.hear();
    }

    fn misfortune(&mut self) {
        let path = self.prng.pick(&self.pair.paths).clone();
        match self.prng.below(10) {
            0 => path.cut(Direction::ToListener),
            1 => path.cut(Direction::FromListener),
            2 => Direction::BOTH.into_iter().for_each(|direction| path.cut(direction)),
            3 => path.break_connections(),
            4 => {
                let (lost_one_in, broken_one_in) = (self.prng.between(5, 200), self.prng.between(20, 2000));
                path.set_plan(PathPlan { lost_one_in, broken_one_in, ..PathPlan::default() });
            }
            5 => path.set_plan(PathPlan::default()),
            6 => self.pair.nodes.iter_mut().for_each(|node| node.takes = 1),
            7 => self.pair.nodes.iter_mut().for_each(|node| node.takes = usize::MAX),
            _ => path.heal(),
        }
    }

    /// Until everything that was appended is acknowledged.
    fn drain(&mut self) {
        let end = self.pair.world.now() + Duration::from_secs(30);
        let is_drained = |source: &Source| source.acknowledged == source.appended;
        while !self.sources.values().all(is_drained) {
            assert!(self.pair.world.now() < end, "everything arrives in the end: {:?}", self.pair.statuses());
            self.turn();
        }
        for (key, source) in &self.sources {
            assert_eq!(self.targets[key].expected, source.appended);
        }
    }
}

fn misfortunes(seed: u64, path_count: usize) -> Mirroring {
    let mut mirroring = Mirroring::new(seed, path_count);
    for step in 0..6000 {
        if mirroring.prng.chance(1, 3) {
            mirroring.append();
        }
        if mirroring.prng.chance(1, 20) {
            mirroring.say();
        }
        if mirroring.prng.chance(1, 150) {
            mirroring.misfortune();
        }
        if step % 50 == 0 {
            // Silence needs time to be noticed.
            let end = mirroring.pair.world.now() + Duration::from_millis(mirroring.prng.below(80));
            while mirroring.pair.world.now() < end {
                mirroring.turn();
            }
        }
        mirroring.turn();
    }
    for path in &mirroring.pair.paths {
        path.heal();
        path.set_plan(PathPlan::default());
    }
    mirroring.pair.nodes.iter_mut().for_each(|node| node.takes = usize::MAX);
    mirroring.drain();
    mirroring.pair.until_open(path_count);
    mirroring.pair.can_talk();
    mirroring
}

#[test]
fn whatever_becomes_of_paths_nothing_is_lost_doubled_or_out_of_order() {
    let (mut downs, mut path_downs, mut repetitions) = (0, 0, 0);
    for seed in 0..24 {
        let path_count = usize::try_from(1 + seed % 3).expect("few");
        let mirroring = misfortunes(seed, path_count);
        downs += mirroring.downs;
        path_downs += mirroring.path_downs;
        repetitions += mirroring.repetitions;
    }
    assert!(downs > 20 && path_downs > 100 && repetitions > 100, "{downs} {path_downs} {repetitions}");
}

#[test]
fn when_one_of_two_paths_dies_the_other_takes_its_frames() {
    let mut mirroring = Mirroring::new(1, 2);
    (0..200).for_each(|_| mirroring.append());
    mirroring.drain();
    let dead = *mirroring.path_of_lane.values().next().expect("batches went somewhere");
    Direction::BOTH.into_iter().for_each(|direction| mirroring.pair.paths[usize::from(dead)].cut(direction));
    (0..200).for_each(|_| mirroring.append());
    mirroring.drain();
    assert!(mirroring.path_of_lane.values().all(|&path| path != dead));
    assert_eq!((mirroring.downs, mirroring.path_downs), (0, 1), "the session goes on");
    mirroring.pair.paths[usize::from(dead)].heal();
    mirroring.pair.until_open(2);
}

#[test]
fn a_path_that_opens_later_tells_which_ones_were_lost_before() {
    const LAST: u64 = 5000;
    let quick =
        Timing { connect: Duration::from_millis(100), retry: [Duration::from_millis(50); 2], ..Timing::default() };
    let configs = [0, 1].map(|node| LinkConfig { timing: quick, ..config(node, 3) });
    let mut pair = Pair::with(7, configs);
    Direction::BOTH.into_iter().for_each(|direction| pair.paths[2].cut(direction));
    pair.until("two are open", |pair| pair.nodes.iter().all(|node| node.open_paths() == 2));
    pair.nodes[0].send_word(0, 1).expect("there is room");
    let path_of = |pair: &Pair| {
        pair.nodes[1].told.iter().find_map(|told| match told {
            Told::Frame { path, .. } => Some(usize::from(*path)),
            Told::Event(_) => None,
        })
    };
    pair.until("it is heard", |pair| path_of(pair).is_some());
    let first = path_of(&pair).expect("it was heard");
    let second = 1 - first;

    // Node 1 is slow to take what lies on the first path. Node 0 hears nothing there any more, and gives it up.
    pair.nodes[1].takes = 1;
    (2..LAST).for_each(|number| pair.nodes[0].send_word(0, number).expect("there is room"));
    pair.paths[first].cut(Direction::FromListener);
    pair.run(Duration::from_millis(900));
    // What it says of that goes over the second one, where nothing arrives.
    pair.paths[second].cut(Direction::ToListener);
    pair.until("it has given up the first", |pair| pair.nodes[0].open_paths() == 1);
    pair.paths[2].heal();
    pair.until("the third is open", |pair| pair.nodes[0].open_paths() == 2);
    pair.paths[second].break_connections();
    pair.until("it has lost the second", |pair| pair.nodes[0].open_paths() == 1);
    let is_open = pair.nodes[1].link.status().paths[first].phase == PathPhase::Open;
    assert!(is_open, "node 1 has not heard of that");

    // So what may have been lost is said again, on the only path that is left.
    pair.nodes[0].send_word(0, LAST).expect("there is room");
    pair.nodes[1].takes = usize::MAX;
    let is_last = |told: &Told| matches!(told, Told::Frame { message, .. } if *message == word(LAST));
    pair.until("it is heard", |pair| pair.nodes[1].told.iter().any(is_last));
    pair.run(Duration::from_millis(100));
    let words = pair.nodes[1].told.iter().filter_map(|told| match told {
        Told::Frame { message, .. } => Some(number_of(message)),
        Told::Event(_) => None,
    });
    let words: Vec<u64> = words.collect();
    assert!((words.len() as u64) < LAST, "{} words of {LAST}: something was lost", words.len());
    assert_eq!(words.last(), Some(&LAST), "and does not come after all");
    assert_eq!(pair.nodes[0].link.session(), Some(1));
}

/// The partner hears our welcome, may send, and loses the path before its own welcome arrives: whoever waits for what was sent must ask again.
#[test]
fn a_path_that_only_the_partner_had_open_is_lost_too() {
    for breaks_first in [false, true] {
        let mut pair = Pair::without_a(3);
        let mut first = Puppet::connect(&pair, config(0, 2));
        first.enter(&mut pair, 1);
        let mut second = Puppet::connect(&pair, config(0, 2));
        let hello = Hello { path: 1, ..second.hello(1, 78) };
        second.send(&Message::Hello(Box::new(hello)));
        assert!(matches!(second.next(&mut pair), Some(Message::Hello(_))));
        second.prove(&mut pair);
        assert_eq!(second.next(&mut pair), Some(Message::Welcome));
        if breaks_first {
            drop(second);
            pair.run(Duration::from_millis(10));
        }
        let loss_count = |pair: &Pair| {
            let is_loss = |told: &&Told| matches!(told, Told::Event(Event::PathDown { path: 1, .. }));
            pair.nodes[1].told.iter().filter(is_loss).count()
        };
        assert_eq!(loss_count(&pair), 0);
        first.send(&Message::PathClosed { path: 1, connection: 78 });
        pair.until("the loss is told", |pair| loss_count(pair) == 1);
        first.send(&Message::PathClosed { path: 1, connection: 78 });
        pair.run(Duration::from_millis(10));
        assert_eq!(loss_count(&pair), 1, "and once only");
        assert!(pair.nodes[1].link.is_up());
    }
}

#[test]
fn a_cut_in_one_direction_is_noticed_by_both() {
    for direction in Direction::BOTH {
        let mut pair = Pair::up(2, 1);
        pair.paths[0].cut(direction);
        let begun = pair.world.now();
        pair.until("both know", |pair| pair.nodes.iter().all(|node| !node.link.is_up()));
        let silence = Timing::default().silence;
        assert!(pair.world.now().since(begun) < silence * 3, "{direction:?}");
        pair.paths[0].heal();
        pair.until_open(1);
        pair.can_talk();
    }
}

#[test]
fn a_node_that_starts_again_begins_a_session_without_anything_of_the_last() {
    for (seed, node) in [(3, 0), (4, 1)] {
        let mut pair = Pair::up(seed, 2);
        let session = pair.nodes[node].link.session();
        for number in 0..50 {
            pair.nodes[1 - node].send_word(0, number).expect("there is room");
        }
        pair.restart(node, LinkConfig { incarnation: Incarnation(99), ..config(node, 2) });
        pair.until("the partner knows", |pair| !pair.nodes[1 - node].link.is_up());
        pair.until_open(2);
        pair.can_talk();
        let survivor = &pair.nodes[1 - node];
        let is_new = |event: &Event| matches!(event, Event::Up(hello) if hello.incarnation == Incarnation(99));
        assert!(survivor.saw(is_new), "it is told which life it talks to");
        let old = |told: &Told| matches!(told, Told::Frame { message, .. } if number_of(message) < 50);
        assert!(!pair.nodes[node].told.iter().any(old), "nothing that was said to the former life arrives");
        assert!(node == 0 || survivor.link.session() > session, "the connecting node numbers sessions");
    }
}

#[test]
fn a_node_that_was_stopped_for_a_while_does_not_blame_its_partner() {
    let mut pair = Pair::up(5, 1);
    // Node 1 is not polled; node 0 is, and hears nothing.
    let until = pair.world.now() + Duration::from_millis(900);
    while pair.world.now() < until {
        pair.nodes[0].turn();
    }
    pair.run(Duration::from_secs(3));
    let lost = |event: &Event| matches!(event, Event::PathDown { .. });
    assert!(pair.nodes.iter().all(|node| !node.saw(lost)));
    pair.can_talk();
}

#[test]
fn a_node_that_stops_says_so_on_every_path() {
    for node in 0..2 {
        let mut pair = Pair::up(6, 2);
        let Node { link, net, .. } = &mut pair.nodes[node];
        link.stop(net);
        pair.until("the partner has heard", |pair| !pair.nodes[1 - node].link.is_up());
        let losses = pair.nodes[1 - node].told.iter().filter_map(|told| match told {
            Told::Event(Event::PathDown { loss, .. }) => Some(loss),
            _ => None,
        });
        let losses: Vec<&Loss> = losses.collect();
        assert_eq!(losses.len(), 2);
        let is_farewell =
            |loss: &&Loss| matches!(loss, Loss::Refused(refusal) if refusal.reason == RefusalReason::Stopping);
        assert!(is_farewell(&losses[0]), "the connection lingers until the last word has gone: {losses:?}");
        pair.run(Duration::from_secs(5));
        assert!(pair.nodes.iter().all(|node| node.open_paths() == 0), "nobody connects to who stops");
    }
}
