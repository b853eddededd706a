//! Requests at the node that does not own the pool: every one of them is answered, and every change performed once.

use super::*;
use crate::node::request::{Extent, Reach};

/// How the pair is mistreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Kill,
    Cut,
    Takeover,
}

impl Pair {
    fn begin_at(&mut self, node: usize, volume: &str, operation: VolumeOperation) -> u64 {
        let request = self.prng.next_u64();
        let node = self.node(node);
        let volume = node.pools.volume(volume).expect("it is listed").id;
        assert!(node.pools.has_room(volume), "tests ask for little");
        node.pools.submit(VolumeRequest {
            tag: RequestTag { session: 1, request },
            volume,
            host: None,
            pass: None,
            operation,
        });
        request
    }

    fn ask(&mut self, node: usize, volume: &str, operation: VolumeOperation) -> Result<ReplyData, VolumeError> {
        let request = self.begin_at(node, volume, operation);
        self.end(node, request)
    }

    fn names(&mut self, node: usize) -> Vec<String> {
        self.node(node).pools.volumes().into_iter().map(|volume| volume.name).collect()
    }

    fn until_listed(&mut self, node: usize, names: &[&str]) {
        self.until("the volumes are listed", |pair| pair.names(node) == names);
    }

    fn command(&mut self, node: usize, request: AdminRequest) {
        let (reply, _nobody_waits) = crossbeam_channel::bounded(1);
        let node = self.node(node);
        let unheard = node.controller.call(AdminCall { request, reply });
        assert!(unheard.is_none(), "it is about the pair");
    }

    pub(super) fn turns(&mut self, count: u64) {
        for _ in 0..count {
            self.nodes.iter_mut().flatten().for_each(Node::turn);
            self.nobody_serves_twice();
        }
    }
}

fn write_of(pair: &mut Pair, node: usize, range: std::ops::Range<u64>, value: u8) -> VolumeOperation {
    let length = usize::try_from(range.end - range.start).expect("small");
    let mut payload = Payload::allocate(pair.node(node).pools.blocks(), range).expect("memory is large enough");
    payload.fill(0, &vec![value; length]);
    VolumeOperation::Write { payload, durable: true }
}

#[test]
fn every_operation_goes_to_the_node_that_serves() {
    let mut pair = Pair::started(21);
    pair.create(0, "vol-a");
    pair.create(1, "vol-b");
    for node in 0..2 {
        pair.until_listed(node, &["vol-a", "vol-b"]);
        let own = pair.node(node).pools.volume("").expect("the own volume");
        assert_eq!(own.name, ["vol-a", "vol-b"][node]);
        assert_eq!(pair.node(node).pools.size_bytes(own.id), Some(1 << 20));
    }
    let (reply, refused) = crossbeam_channel::bounded(1);
    let request = AdminRequest::VolumeCreate { name: "vol-a".to_owned(), size_bytes: 4096, block_bytes: 4096 };
    pair.node(1).pools.call(AdminCall { request, reply });
    assert!(matches!(refused.try_recv(), Ok(AdminReply::Refused { .. })), "names are for both pools");
    let write = write_of(&mut pair, 1, 100..70_000, 7);
    assert!(matches!(pair.ask(1, "vol-a", write), Ok(ReplyData::Done)));
    assert_eq!((pair.read(0, "vol-a", 2), pair.read(1, "vol-a", 2), pair.read(1, "vol-a", 100)), (7, 7, 0));
    assert!(matches!(pair.ask(1, "vol-a", VolumeOperation::Flush), Ok(ReplyData::Done)));
    assert!(matches!(pair.ask(1, "vol-a", VolumeOperation::Cache(0..4096)), Ok(ReplyData::Done)));
    let discard = VolumeOperation::Discard { range: 4096..8192, durable: false };
    assert!(matches!(pair.ask(1, "vol-a", discard), Ok(ReplyData::Done)));
    assert_eq!((pair.read(0, "vol-a", 1), pair.read(1, "vol-a", 2)), (0, 7));
    let zeroes = VolumeOperation::WriteZeroes { range: 0..1 << 20, may_free: false, durable: true };
    assert!(matches!(pair.ask(1, "vol-a", zeroes), Ok(ReplyData::Done)));
    let Ok(ReplyData::Extents(extents)) =
        pair.ask(1, "vol-a", VolumeOperation::BlockStatus { range: 0..1 << 20, extents_max: 9 })
    else {
        panic!("extents")
    };
    assert_eq!(extents, [Extent { length_bytes: 1 << 20, allocated: true }]);
    let beyond = VolumeOperation::Read((1 << 20) - 1..(1 << 20) + 1);
    assert!(matches!(pair.ask(1, "vol-a", beyond), Err(VolumeError::OutOfRange)));
}

#[test]
fn a_node_knows_where_requests_go() {
    let mut pair = Pair::started(30);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    let reach = |pair: &mut Pair, node: usize| {
        let pools = &pair.node(node).pools;
        pools.reach(pools.volume("vol-a").expect("it is listed").id)
    };
    pair.until("both know", |pair| (reach(pair, 0), reach(pair, 1)) == (Reach::Here, Reach::Partner));
    pair.kill(0);
    pair.until("nobody serves", |pair| reach(pair, 1) == Reach::Nobody);
    pair.until("it is taken over", |pair| reach(pair, 1) == Reach::Here);
    pair.start(0);
    pair.until("it is given back", |pair| reach(pair, 1) == Reach::Partner);
}

#[test]
fn volumes_are_listed_as_they_come_and_go() {
    let mut pair = Pair::started(22);
    pair.create(0, "one");
    pair.until_listed(1, &["one"]);
    let write = write_of(&mut pair, 1, 0..4096, 7);
    pair.ask(1, "one", write).expect("it is served");
    let (reply, replies) = crossbeam_channel::bounded(1);
    let request = AdminRequest::VolumeResize { name: "one".to_owned(), size_bytes: 1 << 21 };
    pair.node(0).pools.call(AdminCall { request, reply });
    pair.until("it has grown", |pair| {
        let volume = pair.node(1).pools.volume("one").expect("it is listed");
        volume.size_bytes == 1 << 21
    });
    assert!(!replies.is_empty());
    pair.create(0, "two");
    pair.until_listed(1, &["one", "two"]);
    let id = pair.node(1).pools.volume("one").expect("it is listed").id;
    let (reply, _replies) = crossbeam_channel::bounded(1);
    pair.node(0).pools.call(AdminCall { request: AdminRequest::VolumeDelete { name: "one".to_owned() }, reply });
    pair.until_listed(1, &["two"]);
    assert_eq!(pair.node(1).pools.size_bytes(id), None);
    // A node that starts hears of them before it answers clients.
    pair.kill(1);
    pair.start(1);
    pair.until("clients are answered", |pair| pair.node(1).pools.has_opened());
    assert_eq!(pair.names(1), ["two"]);
}

#[test]
fn clients_of_the_survivor_see_no_error_when_the_owner_dies() {
    let mut pair = Pair::started(23);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    let waits: Vec<u64> = (0..20).map(|block| pair.begin_write(1, "vol-a", block, 3)).collect();
    pair.turns(3);
    pair.kill(0);
    for request in waits {
        pair.end(1, request).expect("it waits for the takeover");
    }
    assert!(pair.serves(1, PoolSlot::Partner));
    assert!((0..20).all(|block| pair.read(1, "vol-a", block) == 3));
    // The pool goes back beneath requests that go on.
    pair.start(0);
    let mut value = 3;
    while !pair.serves(0, PoolSlot::Home) {
        value = value % 200 + 1;
        pair.write(1, "vol-a", 5, value);
        assert_eq!(pair.read(1, "vol-a", 5), value);
    }
    pair.write(1, "vol-a", 6, 9);
    assert_eq!((pair.read(0, "vol-a", 5), pair.read(0, "vol-a", 6)), (value, 9));
    pair.until_in_sync();
}

/// The reply is lost, others write there and are answered, and then it is asked for again.
#[test]
fn a_change_that_is_asked_for_again_is_not_performed_again() {
    let mut pair = Pair::started(26);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    let lost = pair.begin_write(1, "vol-a", 0, 3);
    for _ in 0..3 {
        pair.node(1).turn();
        pair.node(0).turn();
    }
    pair.cut(true);
    assert_eq!(pair.read(0, "vol-a", 0), 3, "it was performed");
    pair.write(0, "vol-a", 0, 4);
    assert!(!pair.node(1).replies.contains_key(&lost));
    pair.cut(false);
    pair.end(1, lost).expect("the owner knows its name");
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(1, "vol-a", 0)), (4, 4));
}

/// A pair with a change of node 1's client, its number, and the frame that it is in, which is on a slow path.
fn with_a_late_change(seed: u64) -> (Pair, u64, Vec<(usize, Message)>) {
    let mut pair = Pair::started(seed);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Request { .. }));
    let change = pair.begin_write(1, "vol-a", 0, 3);
    pair.turns(50);
    pair.wire.borrow_mut().is_late = None;
    let late = std::mem::take(&mut pair.wire.borrow_mut().late);
    assert_eq!(late.len(), 1);
    (pair, change, late)
}

/// What was late arrives.
fn arrives(pair: &mut Pair, late: Vec<(usize, Message)>) {
    pair.wire.borrow_mut().late = late;
    pair.wire.borrow_mut().deliver_late();
    pair.turns(50);
}

/// A change takes the slow path and is asked for again on the fast one; it arrives when the slot of its name is another change's.
#[test]
fn a_change_that_arrives_late_is_not_performed_over_a_newer_one() {
    let (mut pair, late, lies) = with_a_late_change(27);
    pair.wire.borrow_mut().lose_path();
    pair.end(1, late).expect("asked for again");
    pair.write(1, "vol-a", 0, 4);
    arrives(&mut pair, lies);
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(1, "vol-a", 0)), (4, 4));
}

/// A change takes the slow path; when it arrives the pool has gone to the other node, where it was performed, and back.
#[test]
pub(super) fn a_change_of_an_ownership_that_is_over_is_not_performed() {
    let (mut pair, late, lies) = with_a_late_change(29);
    let takeover = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false };
    assert!(matches!(pair.commanded(1, takeover), AdminReply::Done));
    pair.end(1, late).expect("it is served here");
    pair.write(1, "vol-a", 0, 4);
    pair.until("it is given back", |pair| pair.serves(0, PoolSlot::Home));
    arrives(&mut pair, lies);
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(1, "vol-a", 0)), (4, 4));
}

/// The partner closes a lost path before it takes the next frame, so once is enough.
#[test]
fn a_lost_path_has_everything_asked_for_again_once() {
    let mut pair = Pair::started(28);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Request { .. }));
    let late = pair.begin_write(1, "vol-a", 0, 3);
    pair.turns(50);
    pair.wire.borrow_mut().lose_path();
    let begun = pair.node(1).platform.now();
    while pair.node(1).platform.now().since(begun) < Duration::from_secs(4) {
        pair.turns(1);
    }
    assert_eq!(pair.wire.borrow().late.len(), 2);
    pair.wire.borrow_mut().deliver_late();
    pair.end(1, late).expect("it is served");
}

/// The owner performs a change and dies before its reply arrives; another client has replaced it by then. The survivor finds the name in the
/// records that it replays, or in the superblock when a consistency point has the change already.
fn blocks_after_a_takeover(is_in_superblock: bool) -> (u8, u8) {
    let mut pair = Pair::started(27);
    pair.create(0, "vol-a");
    pair.until_listed(1, &["vol-a"]);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Reply { .. }));
    let performed = pair.begin_write(1, "vol-a", 0, 3);
    pair.turns(50);
    assert_eq!(pair.read(0, "vol-a", 0), 3, "it was performed");
    pair.write(0, "vol-a", 0, 4);
    if is_in_superblock {
        let (reply, replies) = crossbeam_channel::bounded(1);
        pair.node(0).pools.call(AdminCall { request: AdminRequest::Checkpoint, reply });
        pair.until("there is a consistency point", |_| !replies.is_empty());
    }
    assert!(!pair.node(1).replies.contains_key(&performed), "nobody knows of it yet");
    pair.kill(0);
    let other = pair.begin_write(1, "vol-a", 1, 5);
    for request in [performed, other] {
        pair.end(1, request).expect("the survivor answers");
    }
    assert!(pair.serves(1, PoolSlot::Partner));
    (pair.read(1, "vol-a", 0), pair.read(1, "vol-a", 1))
}

#[test]
fn names_decide_after_a_takeover() {
    for is_in_superblock in [false, true] {
        assert_eq!(
            blocks_after_a_takeover(is_in_superblock),
            (4, 5),
            "once each, in the superblock: {is_in_superblock}"
        );
    }
}

/// The last consistency point of a pool that is handed over has every volume whose making was answered: its log is not read again.
#[test]
fn a_volume_that_is_made_while_the_pool_is_handed_over_is_there_or_refused() {
    let mut pair = Pair::started(28);
    let mut made = Vec::new();
    for turns in 0..30 {
        // The partner has missed some of the log.
        pair.cut(true);
        pair.until("the owner serves alone", |pair| pair.node(0).row(PoolSlot::Home) == "alone");
        pair.cut(false);
        pair.command(1, AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false });
        pair.turns(turns);
        let (reply, answer) = crossbeam_channel::bounded(1);
        let name = format!("vol-{turns}");
        let request = AdminRequest::VolumeCreate { name: name.clone(), size_bytes: 4096, block_bytes: 4096 };
        pair.node(0).pools.call(AdminCall { request, reply });
        pair.until("the partner serves", |pair| pair.serves(1, PoolSlot::Partner));
        if matches!(answer.try_recv(), Ok(AdminReply::Volumes { .. })) {
            made.push(name);
        }
        let names = pair.names(1);
        assert!(made.iter().all(|name| names.contains(name)), "{turns} turns: {made:?} were made, there are {names:?}");
        pair.until("it is given back", |pair| pair.serves(0, PoolSlot::Home));
        pair.until_in_sync();
    }
    assert!(!made.is_empty(), "some came in time");
}

#[test]
fn clients_of_the_node_that_hands_over_are_forwarded() {
    let mut pair = Pair::started(24);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 1, 1);
    pair.command(1, AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false });
    let mut value = 1;
    while !pair.serves(1, PoolSlot::Partner) {
        value += 1;
        pair.write(0, "vol-a", 1, value);
    }
    pair.write(0, "vol-a", 2, 77);
    assert_eq!((pair.read(1, "vol-a", 1), pair.read(0, "vol-a", 1), pair.read(1, "vol-a", 2)), (value, value, 77));
    pair.until_in_sync();
    assert_eq!((pair.read(0, "vol-a", 1), pair.read(1, "vol-a", 2)), (value, 77));
}

#[test]
fn a_request_to_a_pool_that_nobody_serves_waits_and_then_fails() {
    let mut pair = Pair::started(25);
    pair.create(0, "vol-a");
    pair.create(1, "vol-b");
    pair.until_listed(1, &["vol-a", "vol-b"]);
    // Only the dead node's log has everything: nobody takes over.
    pair.cut(true);
    let waits = pair.begin_write(0, "vol-a", 1, 2);
    pair.end(0, waits).expect("alone, after the register says stale");
    pair.kill(0);
    let early = pair.node(1).platform.now();
    let waits = pair.begin_write(1, "vol-a", 0, 1);
    pair.until("it is given up", |pair| pair.node(1).replies.contains_key(&waits));
    assert!(matches!(pair.end(1, waits), Err(VolumeError::Unserved(WAIT))));
    assert!(pair.node(1).platform.now().since(early) < WAIT + Duration::from_secs(1));
    // The other pool's clients do not notice.
    let waits = pair.begin_write(1, "vol-a", 0, 1);
    pair.write(1, "vol-b", 0, 5);
    assert_eq!(pair.read(1, "vol-b", 0), 5);
    pair.cut(false);
    pair.start(0);
    pair.end(1, waits).expect("it was served in time");
    assert_eq!((pair.read(1, "vol-a", 0), pair.read(1, "vol-a", 1)), (1, 2));
}

/// What is known of one write of a history; times are steps.
struct Written {
    block: u64,
    value: u8,
    node: usize,
    request: u64,
    began: u64,
    ended: Option<u64>,
}

/// What clients see of a few blocks, each written by values that differ.
#[derive(Default)]
struct History {
    writes: Vec<Written>,
    seen: BTreeMap<u64, Vec<u8>>,
    step: u64,
}

impl History {
    fn see(&mut self, began: u64, block: u64, value: u8, what: &str) {
        let seen = self.seen.entry(block).or_default();
        if seen.last() != Some(&value) {
            assert!(!seen.contains(&value), "{what}: block {block} was {seen:?}, and is {value} again");
            seen.push(value);
        }
        let place = |value: u8| self.writes.iter().find(|write| (write.block, write.value) == (block, value));
        let ended = if value == 0 { Some(0) } else { place(value).expect("somebody wrote it").ended };
        for newer in self.writes.iter().filter(|write| write.block == block && write.value != value) {
            let is_lost = newer.ended.is_some_and(|at| at < began) && ended.is_some_and(|at| at < newer.began);
            assert!(!is_lost, "{what}: block {block} is {value}, after {} was answered", newer.value);
        }
    }

    /// Notes which writes were answered. At the survivor all of them succeed.
    fn collect(&mut self, pair: &mut Pair, what: &str) {
        for write in self.writes.iter_mut().filter(|write| write.ended.is_none()) {
            let Some(node) = pair.nodes[write.node].as_mut() else { continue };
            match node.replies.remove(&write.request) {
                Some(Ok(_)) => write.ended = Some(self.step),
                Some(Err(error)) if write.node == 1 => panic!("{what}: a client of the survivor hears: {error}"),
                _ => {}
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a long search is asked for from outside")]
fn history_count() -> u64 {
    let asked = std::env::var("TWINLOG_FORWARD_SEEDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(25)
}

/// Node b lives; node a dies, is cut off and hands over; both have clients of the same blocks. No write takes effect twice, none that was
/// answered is lost, and b's clients see no error.
#[test]
fn forwarded_changes_take_effect_once_whatever_happens() {
    for seed in 1000..1000 + history_count() {
        let mut pair = Pair::started(seed);
        pair.create(0, "vol-a");
        pair.until_listed(1, &["vol-a"]);
        let mut history = History::default();
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            step_through(&mut pair, &mut history, &what);
            let blow = *pair.prng.pick(&[Blow::Kill, Blow::Kill, Blow::Cut, Blow::Cut, Blow::Takeover]);
            match blow {
                Blow::Kill => pair.kill(0),
                Blow::Cut => pair.cut(true),
                Blow::Takeover => {
                    pair.command(1, AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false });
                }
            }
            // Before anybody notices, after the detection time, or after the lease.
            let turns = *pair.prng.pick(&[1, 20, 300, 1500]);
            let turns = pair.prng.below(turns);
            pair.turns(turns);
            pair.cut(false);
            if pair.nodes[0].is_none() {
                pair.start(0);
            }
        }
        pair.until_in_sync();
        pair.turns(100);
        history.step += 1;
        history.collect(&mut pair, &format!("seed {seed}"));
        assert!(
            history.writes.iter().filter(|write| write.node == 1).all(|write| write.ended.is_some()),
            "seed {seed}"
        );
        for block in 0..3 {
            let began = history.step;
            let value = pair.read(1, "vol-a", block);
            history.see(began, block, value, &format!("seed {seed}, at the end"));
        }
    }
}

/// Some writes and reads at both nodes.
fn step_through(pair: &mut Pair, history: &mut History, what: &str) {
    for _ in 0..pair.prng.between(3, 12) {
        history.step += 1;
        let node = if pair.nodes[0].is_some() && pair.prng.chance(1, 3) { 0 } else { 1 };
        let is_listed = pair.node(node).pools.volume("vol-a").is_some();
        let block = pair.prng.below(3);
        if is_listed && pair.prng.chance(1, 3) {
            let began = history.step;
            let value = pair.read(node, "vol-a", block);
            history.step += 1;
            history.see(began, block, value, what);
        } else if is_listed {
            let value = u8::try_from(history.writes.len() % 255 + 1).expect("small");
            let request = pair.begin_write(node, "vol-a", block, value);
            history.writes.push(Written { block, value, node, request, began: history.step, ended: None });
        }
        let turns = *pair.prng.pick(&[1, 2, 5, 40]);
        let turns = pair.prng.below(turns);
        pair.turns(turns);
        history.step += 1;
        history.collect(pair, what);
    }
}
