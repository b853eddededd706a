//! Two nodes with shared disks, a log each, an interconnect, an arbiter and a fence, in one thread: what the pair does when something fails.
//! The deep search is the simulator's; these are the lines of the failure table.

use super::*;

mod commands;
mod compare;
mod forward;
mod late;
mod notices;
mod opening;
mod partner;
mod reservation;
use crate::{
    alloc::budget::Budget,
    base::{LaneIndex, PortionId, ReactorIndex},
    changelog::{Format, LaneIdentity, PortionRole},
    cp::message::Grant,
    format::register::{MirrorState, Register},
    node::{
        engine::{EngineLimits, EngineParts},
        forward::{ForwardPort, MESSAGES_MAX},
        pools::{NotOpened, OpenedPool},
        request::{
            DataRun, Payload, ReplyData, RequestTag, VolumeError, VolumeOperation, VolumeRequest, VolumeService,
        },
    },
    pair::{
        decide::Fence,
        forward::{Forwarder, ForwarderParts, Timing as ForwardTiming},
        interconnect::{Partner, Paths},
    },
    pool::{
        io::Io,
        superblocks::{CreatePool, first_superblock},
    },
    reactor::mailbox::{Waker, mailbox},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};
use twinlog_device::{BlockPool, Platform, Wait};
use twinlog_sim::{Agenda, LogMedium, LogShape, MediumConfig, SimDisk, SimLog, SimMedium, SimPlatform, SimWorld};

const MEMORY_BLOCKS: u32 = 2048;
const RING_BYTES: u64 = 64 * 4096;
/// How long requests wait for a pool that nobody serves.
const WAIT: Duration = Duration::from_secs(5);
const NAMES: [&str; 2] = ["a", "b"];

fn pool_id(index: usize) -> PoolId {
    PoolId(7 + index as u128)
}

/// The registers, and each node's heartbeat.
#[derive(Default)]
struct Registers {
    /// Answers to beats are kept back.
    holds_beats: bool,
    registers: BTreeMap<PoolId, Register>,
    beats: [u64; 2],
    is_unreachable: bool,
    /// As a disk that stands still: nothing is answered any more, not even with an error.
    is_silent: bool,
    /// Of these nodes every question fails.
    is_unreachable_for: [bool; 2],
    /// Changes are made, and nobody hears of it.
    loses_answers: bool,
    /// Nothing becomes in sync, and nobody hears of it.
    loses_in_sync: bool,
}

struct TestArbiter {
    registers: Rc<RefCell<Registers>>,
    node: usize,
    seen: u64,
    answers: VecDeque<Answer>,
}

impl Arbiter for TestArbiter {
    fn read(&mut self, pool: PoolId) {
        let registers = self.registers.borrow();
        let answer = if registers.is_unreachable || registers.is_unreachable_for[self.node] {
            Err("unreachable".to_owned())
        } else {
            Ok(registers.registers.get(&pool).copied())
        };
        self.answers.push_back(Answer::Read(pool, answer));
    }

    fn compare_and_swap(&mut self, old: Option<Register>, new: Register) {
        let mut registers = self.registers.borrow_mut();
        let now = registers.registers.get(&new.pool).copied();
        let outcome = if registers.is_unreachable || registers.is_unreachable_for[self.node] {
            SwapOutcome::Unknown("unreachable".to_owned())
        } else if registers.loses_in_sync && matches!(new.mirror, MirrorState::InSync(_)) {
            SwapOutcome::Unknown("lost".to_owned())
        } else if now == old {
            registers.registers.insert(new.pool, new);
            if registers.loses_answers { SwapOutcome::Unknown("lost".to_owned()) } else { SwapOutcome::Done(new) }
        } else {
            SwapOutcome::Changed(now)
        };
        self.answers.push_back(Answer::Swapped(new.pool, outcome));
    }

    fn beat(&mut self, _time_ns: u64) {
        let mut registers = self.registers.borrow_mut();
        if registers.is_unreachable || registers.is_unreachable_for[self.node] {
            return self.answers.push_back(Answer::Beat(Err("unreachable".to_owned())));
        }
        registers.beats[self.node] += 1;
        let theirs = registers.beats[1 - self.node];
        let has_changed = std::mem::replace(&mut self.seen, theirs) != theirs;
        self.answers.push_back(Answer::Beat(Ok(has_changed)));
    }

    fn poll(&mut self) -> Option<Answer> {
        if self.registers.borrow().is_silent {
            return None;
        }
        let holds = self.registers.borrow().holds_beats;
        let next = self.answers.iter().position(|answer| !holds || !matches!(answer, Answer::Beat(_)))?;
        self.answers.remove(next)
    }
}

/// A fence that knows.
struct TestFencer {
    partner_lives: Rc<Cell<bool>>,
    answers: VecDeque<FenceAnswer>,
    /// A pool whose devices refuse this node's writes.
    lost: Rc<Cell<Option<PoolId>>>,
}

impl TestFencer {
    fn new(partner_lives: &Rc<Cell<bool>>, lost: &Rc<Cell<Option<PoolId>>>) -> Self {
        Self { partner_lives: partner_lives.clone(), answers: VecDeque::new(), lost: lost.clone() }
    }
}

impl Fencer for TestFencer {
    fn probe(&mut self, pool: PoolId, epoch: Epoch) {
        let result = if self.partner_lives.get() { Fence::Held } else { Fence::Confirmed };
        self.answers.push_back(FenceAnswer { pool, epoch, result, said: String::new() });
    }

    fn fence(&mut self, pool: PoolId, epoch: Epoch) {
        let result = if self.partner_lives.get() { Fence::Failed } else { Fence::Confirmed };
        self.answers.push_back(FenceAnswer { pool, epoch, result, said: String::new() });
    }

    fn poll(&mut self) -> Option<FenceAnswer> {
        self.answers.pop_front()
    }

    fn lost(&mut self) -> Option<PoolId> {
        self.lost.take()
    }
}

/// What happens at one end of the wire.
enum Told {
    Up(Incarnation),
    Down,
    PathLost,
    Message(Message),
}

/// One node's end of the wire.
#[derive(Default)]
struct End {
    events: VecDeque<Told>,
}

/// The wire: up while both nodes are there and nobody has cut it.
#[derive(Default)]
struct Wire {
    ends: [End; 2],
    lives: [Option<Incarnation>; 2],
    is_cut: bool,
    is_up: bool,
    /// What takes the slow one of two paths.
    is_late: Option<fn(&Message) -> bool>,
    /// What lies there, with the node that it goes to.
    late: Vec<(usize, Message)>,
}

impl Wire {
    /// A path is lost and another one is left.
    fn lose_path(&mut self) {
        self.ends.iter_mut().for_each(|end| end.events.push_back(Told::PathLost));
    }

    /// Everything takes the fast path from now on, and what lay on the slow one arrives.
    fn deliver_late(&mut self) {
        self.is_late = None;
        for (node, message) in self.late.drain(..) {
            self.ends[node].events.push_back(Told::Message(message));
        }
    }

    fn settle(&mut self) {
        let should = !self.is_cut && self.lives.iter().all(Option::is_some);
        if should != self.is_up {
            self.is_up = should;
            for node in 0..2 {
                let event = match self.lives[1 - node] {
                    Some(life) if should => Told::Up(life),
                    _ => Told::Down,
                };
                if !should {
                    self.ends[node].events.retain(|event| !matches!(event, Told::Message(_)));
                }
                self.ends[node].events.push_back(event);
            }
        }
    }
}

struct TestWay {
    wire: Rc<RefCell<Wire>>,
    node: usize,
    /// Bytes of the message that was told last.
    bytes: Arc<Vec<u8>>,
}

impl Interconnect for TestWay {
    fn poll(&mut self, _now: Nanos) -> bool {
        false
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let told = self.wire.borrow_mut().ends[self.node].events.pop_front()?;
        Some(match told {
            Told::Up(incarnation) => {
                let unit_bytes = vec![(pool_id(0), 4096), (pool_id(1), 4096)];
                Event::Up(Partner { incarnation, unit_bytes })
            }
            Told::Down => Event::Down("cut".to_owned()),
            Told::PathLost => Event::PathLost,
            Told::Message(message) => Event::Message(message.map(|bytes| {
                self.bytes = bytes;
                self.bytes.as_slice()
            })),
        })
    }

    fn has_room(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message) {
        let mut wire = self.wire.borrow_mut();
        if wire.is_late.is_some_and(|is_late| is_late(&message)) {
            wire.late.push((1 - self.node, message));
        } else if wire.is_up {
            wire.ends[1 - self.node].events.push_back(Told::Message(message));
        }
    }

    fn flush(&mut self) {}

    fn paths(&self) -> Paths {
        Paths::default()
    }
}

struct NoWaker;
impl Waker for NoWaker {
    fn wake(&self) {}
}

/// What outlives the nodes.
struct Pair {
    world: SimWorld,
    /// By pool.
    media: [SimMedium; 2],
    /// By node, then by pool.
    logs: [[LogMedium; 2]; 2],
    /// The id of each portion, as its header would say.
    portions: [[Rc<Cell<PortionId>>; 2]; 2],
    registers: Rc<RefCell<Registers>>,
    wire: Rc<RefCell<Wire>>,
    lives: [Rc<Cell<bool>>; 2],
    lost: [Rc<Cell<Option<PoolId>>>; 2],
    nodes: [Option<Node>; 2],
    prng: Prng,
    /// What the superblocks say to a node that starts.
    epoch_min: Epoch,
}

struct TestOpener {
    agenda: Agenda,
    blocks: BlockPool,
    media: [SimMedium; 2],
    logs: [LogMedium; 2],
    node: usize,
    ready: VecDeque<(PoolSlot, Grant)>,
    fails: OpenFails,
    begun: u32,
    /// At which epoch each opening was begun.
    epochs: Vec<Epoch>,
    polls: u32,
}

/// Where an opening fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OpenFails {
    #[default]
    Not,
    /// Before anything was opened.
    Nowhere,
    /// On a reactor, when it was opened for it.
    Here,
}

/// Which pool a slot of a node is.
fn pool_of(node: usize, slot: PoolSlot) -> usize {
    if slot == PoolSlot::Home { node } else { 1 - node }
}

impl PoolOpener<SimDisk, SimLog> for TestOpener {
    fn begin(&mut self, slot: PoolSlot, grant: Grant) {
        self.begun += 1;
        self.epochs.push(grant.epoch);
        self.ready.push_back((slot, grant));
    }

    fn poll(&mut self) -> Option<OpenedPool<SimDisk, SimLog>> {
        self.polls += 1;
        // As the daemon's, whose thread answers turns later.
        if self.fails == OpenFails::Nowhere && !self.polls.is_multiple_of(4) {
            return None;
        }
        let (slot, grant) = self.ready.pop_front()?;
        let pool = pool_of(self.node, slot);
        let (peer, mailbox) = mailbox(64, Arc::new(NoWaker));
        let parts = EngineParts {
            index: ReactorIndex(0),
            reactor_count: 1,
            devices: vec![self.media[pool].open(&self.agenda)],
            lanes: vec![(LaneIndex(0), self.logs[pool].open(&self.agenda))],
            blocks: self.blocks.clone(),
            budget: Budget::default(),
            limits: EngineLimits::for_memory(u64::from(MEMORY_BLOCKS), 2),
            grant,
            mailbox,
            peers: vec![peer],
            holders: Arc::new(()),
        };
        let opened = match self.fails {
            OpenFails::Not => Ok(parts),
            OpenFails::Nowhere => Err(NotOpened::Nowhere("in use".to_owned())),
            OpenFails::Here => Err(NotOpened::Here("no memory".to_owned(), Box::new(parts))),
        };
        Some((slot, opened))
    }
}

struct Node {
    platform: SimPlatform<SimLog>,
    pools: Pools<SimDisk, SimLog>,
    controller: Controller<SimLog>,
    forwarder: Forwarder,
    opener: TestOpener,
    way: TestWay,
    replies: BTreeMap<u64, Result<ReplyData, VolumeError>>,
}

impl Node {
    fn turn(&mut self) {
        self.platform.turn(Wait::UpTo(Duration::from_micros(200)));
        let (now, wall) = (self.platform.now(), self.platform.wall_clock_ns());
        self.controller.poll(&mut self.pools, &mut self.opener, &mut self.way, (now, wall));
        self.forwarder.poll(&mut self.controller, &mut self.pools, &mut self.way, now);
        self.forwarder.post();
        while let Some((slot, parts)) = self.opener.poll() {
            if let Err(reason) = self.pools.open(slot, parts) {
                self.controller.open_failed(slot, reason);
            }
        }
        self.pools.poll(now, wall);
        while let Some(reply) = self.pools.poll_reply() {
            let before = self.replies.insert(reply.tag.request, reply.result);
            assert!(before.is_none(), "one reply for each request");
        }
    }

    fn row(&self, slot: PoolSlot) -> &'static str {
        let index = if slot == PoolSlot::Home { 0 } else { 1 };
        self.controller.sides[index].decided.map_or("", |(decision, _)| decision.name())
    }
}

impl Pair {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let medium = |name: &str| SimMedium::new(&world, MediumConfig::new(name, 2048));
        let media = NAMES.map(medium);
        let log = || LogMedium::new(&world, "log", LogShape::file(4096 + RING_BYTES));
        let logs = [[log(), log()], [log(), log()]];
        let mut prng = Prng::new(seed);
        let mut id = || Rc::new(Cell::new(PortionId(u128::from(prng.next_u64()))));
        let portions = [[id(), id()], [id(), id()]];
        let registers = Rc::default();
        let lives = [Rc::new(Cell::new(false)), Rc::new(Cell::new(false))];
        let pair = Self {
            world,
            media,
            logs,
            portions,
            registers,
            wire: Rc::default(),
            lives,
            lost: Default::default(),
            nodes: [None, None],
            prng: Prng::new(seed),
            epoch_min: Epoch(1),
        };
        pair.make();
        pair
    }

    fn make(&self) {
        let agenda = Agenda::new(&self.world);
        for (pool, medium) in self.media.iter().enumerate() {
            let blocks = BlockPool::new(256).expect("a small mapping");
            let mut io = Io::new(vec![medium.open(&agenda)], blocks, 16);
            let superblock = first_superblock(pool_id(pool), NAMES[pool], &[(1, 2048)], 1, 0);
            let mut create = CreatePool::new(&mut io, 0, superblock, false);
            let mut is_done = false;
            while !is_done {
                io.poll();
                while let Some(event) = io.next_event() {
                    is_done |= create.event(&mut io, event).expect("empty and sound");
                }
                agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            }
        }
        for node in 0..2 {
            for pool in 0..2 {
                let (log, id) = (&self.logs[node][pool], self.portions[node][pool].get());
                let mut format = Format::new(log.open(&agenda), &identity(node, pool), id);
                while !format.poll().expect("sound") {
                    agenda.turn(Wait::UpTo(Duration::from_millis(1)));
                }
            }
        }
    }

    fn start(&mut self, node: usize) {
        let agenda = Agenda::new(&self.world);
        let blocks = BlockPool::new(MEMORY_BLOCKS).expect("a small mapping");
        let platform = SimPlatform::new(agenda.clone(), blocks.clone());
        let pair_pool = |slot| {
            let pool = pool_of(node, slot);
            let (log, agenda) = (self.logs[node][pool].clone(), agenda.clone());
            let open: OpenLanes<SimLog> = Box::new(move || Ok(vec![(identity(node, pool), log.open(&agenda))]));
            PairPool {
                pool: pool_id(pool),
                name: NAMES[pool].to_owned(),
                lane_count: 1,
                epoch_min: self.epoch_min,
                portion: LocalPortion::new(Some(self.portions[node][pool].get()), open),
            }
        };
        let life = Incarnation(u128::from(self.prng.next_u64()) | 1);
        self.lives[node].set(true);
        let controller = Controller::new(ControllerParts {
            name: NAMES[node].to_owned(),
            partner: NAMES[1 - node].to_owned(),
            pools: [pair_pool(PoolSlot::Home), pair_pool(PoolSlot::Partner)],
            arbiter: Box::new(TestArbiter {
                registers: self.registers.clone(),
                node,
                seen: 0,
                answers: VecDeque::new(),
            }),
            fencer: Box::new(TestFencer::new(&self.lives[1 - node], &self.lost[node])),
            timing: Timing {
                detection: Duration::from_millis(100),
                lease: Duration::from_millis(400),
                retry: Duration::from_millis(20),
                giveback: Some(Duration::from_millis(200)),
            },
            prng: Prng::new(self.prng.next_u64()),
        });
        let (to_hub, hub) = mailbox(MESSAGES_MAX, Arc::new(NoWaker));
        let (to_port, from_hub) = mailbox(MESSAGES_MAX, Arc::new(NoWaker));
        let forwarder = Forwarder::new(ForwarderParts {
            pools: PoolSlot::ALL.map(|slot| (pool_id(pool_of(node, slot)), 1)),
            mailbox: hub,
            ports: vec![to_port],
            timing: ForwardTiming::with_deadline(WAIT),
            first_number: self.prng.next_u64(),
            sweeps: Arc::default(),
        });
        let mut pools = Pools::new(blocks.clone(), None);
        pools.set_port(ForwardPort::new((ReactorIndex(0), 1), to_hub, from_hub, &blocks));
        self.nodes[node] = Some(Node {
            platform,
            pools,
            forwarder,
            controller,
            opener: TestOpener {
                agenda,
                blocks,
                media: self.media.clone(),
                logs: self.logs[node].clone(),
                node,
                ready: VecDeque::new(),
                fails: OpenFails::default(),
                begun: 0,
                epochs: Vec::new(),
                polls: 0,
            },
            way: TestWay { wire: self.wire.clone(), node, bytes: Arc::default() },
            replies: BTreeMap::new(),
        });
        self.wire.borrow_mut().lives[node] = Some(life);
        self.wire.borrow_mut().settle();
    }

    fn started(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.start(0);
        pair.start(1);
        pair.until_in_sync();
        pair
    }

    /// One whose node 0 serves `vol-a`, which node 1 knows.
    fn with_volume(seed: u64) -> Self {
        let mut pair = Self::started(seed);
        pair.create(0, "vol-a");
        pair.until("the volume is listed", |pair| pair.node(1).pools.volume("vol-a").is_some());
        pair
    }

    /// Ends a node's process: what it had in memory is gone, its portions and the disks keep what they have.
    fn kill(&mut self, node: usize) {
        if let Some(dead) = self.nodes[node].take() {
            for side in &dead.controller.sides {
                // What the header on the medium says.
                if let Some(id) = side.portion.id() {
                    self.portions[node][pool_of(node, side.slot)].set(id);
                }
            }
        }
        for (pool, medium) in self.media.iter().enumerate() {
            let slot = if pool == node { PoolSlot::Partner } else { PoolSlot::Home };
            let survivor = self.nodes[1 - node].as_ref();
            // Nobody but the owner has the disks open.
            if survivor.is_none_or(|survivor| survivor.pools.engine(slot).is_none()) {
                medium.process_kill(&mut self.prng);
            }
        }
        self.logs[node].iter().for_each(|log| log.power_cut(&mut self.prng));
        self.lives[node].set(false);
        self.wire.borrow_mut().lives[node] = None;
        self.wire.borrow_mut().settle();
    }

    fn cut(&mut self, is_cut: bool) {
        self.wire.borrow_mut().is_cut = is_cut;
        self.wire.borrow_mut().settle();
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..60_000 {
            if is_so(self) {
                return;
            }
            for node in self.nodes.iter_mut().flatten() {
                node.turn();
            }
            self.nobody_serves_twice();
        }
        let rows: Vec<_> = self
            .nodes
            .iter()
            .flatten()
            .flat_map(|node| PoolSlot::ALL.map(|slot| (node.controller.name.clone(), slot, node.row(slot))))
            .collect();
        panic!("it takes for ever until {what}: {rows:?} {:?}", self.registers.borrow().registers);
    }

    /// No pool is served by both nodes.
    fn nobody_serves_twice(&self) {
        for (pool, name) in NAMES.iter().enumerate() {
            let serves = |node: usize| {
                let slot = if node == pool { PoolSlot::Home } else { PoolSlot::Partner };
                let engine = self.nodes[node].as_ref().and_then(|node| node.pools.engine(slot));
                engine.is_some_and(|engine| engine.is_serving() && !engine.is_closing())
            };
            assert!(!(serves(0) && serves(1)), "both nodes serve pool {name}");
        }
        self.in_sync_is_said_of_mirrors_only();
    }

    /// A node says that a pool is in sync only while its partner's portion follows its lanes, and replies wait for it.
    fn in_sync_is_said_of_mirrors_only(&self) {
        for side in self.nodes.iter().flatten().flat_map(|node| &node.controller.sides) {
            let says = side.decided.is_some_and(|(decision, _)| decision.name().starts_with("in sync"));
            let follows = side.mirror.is_attached && side.replies == crate::pair::decide::Replies::Mirrored;
            assert!(!says || follows || side.is_closing, "pool {}: attached {}", side.name, side.mirror.is_attached);
        }
    }

    fn until_in_sync(&mut self) {
        self.until("both pools are served at home, in sync", |pair| {
            let at_home = |node: &Option<Node>| {
                node.as_ref().is_some_and(|node| {
                    node.row(PoolSlot::Home) == "in sync" && node.row(PoolSlot::Partner) == "standby, in sync"
                })
            };
            pair.nodes.iter().all(at_home)
        });
    }

    fn create(&mut self, node: usize, name: &str) {
        let (reply, replies) = crossbeam_channel::bounded(1);
        let request = AdminRequest::VolumeCreate { name: name.to_owned(), size_bytes: 1 << 20, block_bytes: 4096 };
        self.node(node).pools.call(AdminCall { request, reply });
        self.until("a volume is made", |_| !replies.is_empty());
        let answer = replies.try_recv().expect("waited for");
        assert!(matches!(answer, AdminReply::Volumes { .. }), "{answer:?}");
    }

    /// Gives an order that is about the pair, and waits for its end.
    fn commanded(&mut self, node: usize, request: AdminRequest) -> AdminReply {
        let (reply, replies) = crossbeam_channel::bounded(1);
        assert!(self.node(node).controller.call(AdminCall { request, reply }).is_none(), "it is about the pair");
        self.until("the command ends", |_| !replies.is_empty());
        replies.try_recv().expect("waited for")
    }

    fn node(&mut self, node: usize) -> &mut Node {
        self.nodes[node].as_mut().expect("it lives")
    }

    fn begin_write(&mut self, node: usize, volume: &str, block: u64, value: u8) -> u64 {
        let request = self.prng.next_u64();
        let node = self.node(node);
        let id = node.pools.volume(volume).expect("it is there").id;
        let range = block * 4096..(block + 1) * 4096;
        let mut payload = Payload::allocate(node.pools.blocks(), range).expect("memory is large enough");
        payload.fill(0, &[value; 4096]);
        let operation = VolumeOperation::Write { payload, durable: false };
        node.pools.submit(VolumeRequest {
            tag: RequestTag { session: 1, request },
            volume: id,
            host: None,
            pass: None,
            operation,
        });
        request
    }

    fn end(&mut self, node: usize, request: u64) -> Result<ReplyData, VolumeError> {
        self.until("a request is answered", |pair| pair.node(node).replies.contains_key(&request));
        self.node(node).replies.remove(&request).expect("waited for")
    }

    fn write(&mut self, node: usize, volume: &str, block: u64, value: u8) {
        let request = self.begin_write(node, volume, block, value);
        self.end(node, request).expect("it is served");
    }

    fn read(&mut self, node: usize, volume: &str, block: u64) -> u8 {
        let request = self.prng.next_u64();
        let place = self.node(node);
        let id = place.pools.volume(volume).expect("it is there").id;
        let operation = VolumeOperation::Read(block * 4096..(block + 1) * 4096);
        place.pools.submit(VolumeRequest {
            tag: RequestTag { session: 1, request },
            volume: id,
            host: None,
            pass: None,
            operation,
        });
        let Ok(ReplyData::Data(runs)) = self.end(node, request) else { panic!("it can be read") };
        match &runs[0] {
            DataRun::Block(block, range) => {
                assert!(block[range.clone()].iter().all(|byte| *byte == block[range.start]), "one write's bytes");
                block[range.start]
            }
            DataRun::Zeroes(_) => 0,
        }
    }

    fn serves(&self, node: usize, slot: PoolSlot) -> bool {
        let engine = self.nodes[node].as_ref().and_then(|node| node.pools.engine(slot));
        engine.is_some_and(|engine| engine.is_serving() && !engine.is_closing())
    }
}

fn identity(node: usize, pool: usize) -> LaneIdentity {
    let role = if node == pool { PortionRole::Own } else { PortionRole::Mirror };
    LaneIdentity { pool: pool_id(pool), role, lane: LaneIndex(0), lane_count: 1 }
}

#[test]
fn a_new_pair_serves_both_pools_in_sync() {
    let mut pair = Pair::started(1);
    pair.create(0, "vol-a");
    pair.create(1, "vol-b");
    pair.write(0, "vol-a", 3, 7);
    pair.write(1, "vol-b", 3, 8);
    assert_eq!((pair.read(0, "vol-a", 3), pair.read(1, "vol-b", 3)), (7, 8));
}

#[test]
fn a_node_that_dies_is_taken_over_and_gets_its_pool_back() {
    let mut pair = Pair::started(2);
    pair.create(0, "vol-a");
    for block in 0..40 {
        pair.write(0, "vol-a", block, u8::try_from(block + 1).expect("small"));
    }
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    for block in 0..40 {
        assert_eq!(pair.read(1, "vol-a", block), u8::try_from(block + 1).expect("small"));
    }
    pair.write(1, "vol-a", 0, 99);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(0, "vol-a", 39)), (99, 40));
    pair.write(0, "vol-a", 1, 98);
    pair.kill(0);
    pair.until("b serves pool a again", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!((pair.read(1, "vol-a", 0), pair.read(1, "vol-a", 1)), (99, 98));
}

#[test]
fn a_drained_node_gets_its_pool_back_by_command_only() {
    let mut pair = Pair::started(40);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    assert_eq!(pair.commanded(0, AdminRequest::PairDrain), AdminReply::Done);
    pair.until("b keeps pool a", |pair| pair.node(1).row(PoolSlot::Partner) == "in sync, kept");
    assert_eq!(pair.node(0).row(PoolSlot::Home), "standby, drained");
    // It is switched off and on again; the giveback delay passes.
    pair.kill(0);
    pair.write(1, "vol-a", 0, 2);
    pair.start(0);
    pair.until("b has a mirror again", |pair| pair.node(1).row(PoolSlot::Partner) == "in sync, kept");
    pair.turns(5_000);
    assert!(pair.serves(1, PoolSlot::Partner) && !pair.serves(0, PoolSlot::Home));
    assert_eq!(pair.commanded(0, AdminRequest::PairDrain), AdminReply::Done, "it is so already");
    let back = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: false };
    assert_eq!(pair.commanded(0, back), AdminReply::Done);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 2);
}

#[test]
fn a_keeper_that_dies_is_taken_over_by_the_node_that_was_drained() {
    let mut pair = Pair::started(41);
    pair.create(0, "vol-a");
    assert_eq!(pair.commanded(0, AdminRequest::PairDrain), AdminReply::Done);
    pair.until("b keeps pool a", |pair| pair.node(1).row(PoolSlot::Partner) == "in sync, kept");
    pair.write(1, "vol-a", 0, 3);
    pair.kill(1);
    pair.until("a serves it again", |pair| pair.serves(0, PoolSlot::Home));
    assert_eq!(pair.read(0, "vol-a", 0), 3);
    pair.start(1);
    pair.until_in_sync();
}

#[test]
fn a_cut_interconnect_is_no_reason_to_take_over() {
    let mut pair = Pair::started(3);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    pair.cut(true);
    let waits = pair.begin_write(0, "vol-a", 1, 2);
    pair.end(0, waits).expect("alone, after the register says stale");
    pair.until("both serve alone", |pair| {
        pair.node(0).row(PoolSlot::Home) == "alone" && pair.node(1).row(PoolSlot::Home) == "alone"
    });
    assert!(!pair.serves(1, PoolSlot::Partner));
    // Who served alone holds the truth: the other one does not take over.
    pair.kill(0);
    pair.until("b knows", |pair| pair.node(1).row(PoolSlot::Partner) == "owner lost, alone");
    pair.cut(false);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(0, "vol-a", 1)), (1, 2));
}

/// What the mirror has acknowledged counts, whether its owner has heard its word or not: nothing else may follow that would acknowledge more.
#[test]
fn a_write_is_answered_when_the_link_is_lost_for_a_moment() {
    let mut pair = Pair::started(8);
    pair.create(0, "vol-a");
    for turns in 0..40 {
        let waits = pair.begin_write(0, "vol-a", 0, 1);
        pair.turns(turns);
        pair.cut(true);
        pair.turns(turns % 3);
        pair.cut(false);
        pair.end(0, waits).expect("the mirror is in step");
    }
}

/// Bugs that histories of the simulator do not show, as the head of its bank of the pair explains.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    use crate::base::planted;
    let bugs: [(_, fn()); 3] = [
        ("early-acknowledgement-dropped", a_write_is_answered_when_the_link_is_lost_for_a_moment),
        ("request-epoch-not-compared", forward::a_change_of_an_ownership_that_is_over_is_not_performed),
        ("stale-while-the-lock-is-held", partner::a_partner_that_lives_keeps_its_mirror_through_a_short_silence),
    ];
    for (bug, test) in bugs {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}

/// A word that was on its way on a path that is lost is said again: clients of the other node wait for it.
#[test]
fn what_was_said_on_a_lost_path_is_said_again() {
    let mut pair = Pair::started(18);
    pair.create(0, "vol-a");
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    pair.wire.borrow_mut().is_late =
        Some(|message| matches!(message, Message::Word(word) if (word.pool, word.word) == (pool_id(0), Word::Serving)));
    pair.start(0);
    pair.until("a serves pool a, in sync", |pair| pair.node(0).row(PoolSlot::Home) == "in sync");
    assert!(!pair.wire.borrow().late.is_empty());
    pair.wire.borrow_mut().is_late = None;
    pair.wire.borrow_mut().late.clear();
    pair.wire.borrow_mut().lose_path();
    pair.write(1, "vol-a", 0, 1);
}

/// The register says in sync of the portion that was brought in step, and of none that has come in its place.
#[test]
fn a_replaced_log_is_not_said_to_be_in_sync() {
    let mut pair = Pair::started(19);
    pair.create(0, "vol-a");
    pair.registers.borrow_mut().loses_in_sync = true;
    pair.cut(true);
    pair.write(0, "vol-a", 0, 1);
    pair.cut(false);
    pair.until("the mirror is in step", |pair| pair.node(0).controller.sides[0].mirror.is_in_step);
    pair.write(0, "vol-a", 0, 2);
    // The next look at the register finds that it still says stale, together with everything that the partner's next life says.
    pair.until("the register is read", |pair| {
        let side = &pair.node(0).controller.sides[0];
        side.is_reading && matches!(side.known, Known::Unreadable(_))
    });
    pair.registers.borrow_mut().loses_in_sync = false;
    pair.kill(1);
    let before = pair.portions[1][0].get();
    pair.start(1);
    // What its log holds counts for nothing while the register says stale: it makes it anew.
    let says = |pair: &mut Pair| {
        let word = pair.node(1).controller.sides[1].said.clone();
        word.is_some_and(|word| word.word == Word::Standby && word.portion != Some(before))
    };
    for _ in 0..1000 {
        pair.node(1).turn();
    }
    assert!(says(&mut pair), "{:?}", pair.node(1).controller.sides[1].said);
    for _ in 0..100 {
        pair.node(0).turn();
        let mirror = pair.registers.borrow().registers[&pool_id(0)].mirror;
        assert_eq!(mirror, MirrorState::Stale, "the new log has been sent nothing");
    }
    pair.until_in_sync();
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 2);
}

#[test]
fn mirroring_counts_as_standby_until_this_nodes_lanes_have_gone_on() {
    use crate::pair::decide::{Replies, Word};
    let mut pair = Pair::started(13);
    let side = &mut pair.node(0).controller.sides[0];
    let word = |side: &Side<SimLog>| side.view(Link::Up, Beat::Alive, Lease::Left).word;
    assert_eq!(word(side), Word::Mirroring, "in sync");
    side.mirror.is_attached = false;
    assert_eq!(word(side), Word::Standby, "what it follows is not known");
    (side.mirror.is_attached, side.replies) = (true, Replies::Alone);
    assert_eq!(word(side), Word::Standby, "no reply waits for it");
}

#[test]
fn a_word_that_comes_before_the_engine_is_no_mirror_in_step() {
    let mut pair = Pair::started(12);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    let epoch = |pair: &Pair| pair.registers.borrow().registers[&pool_id(0)].epoch;
    let before = epoch(&pair);
    // It is back before its partner has looked.
    pair.kill(0);
    pair.start(0);
    while epoch(&pair) == before {
        pair.node(0).turn();
    }
    // The partner reads the claim, and says its word, before its author has heard of the claim's end.
    let says = |pair: &mut Pair| {
        let word = pair.node(1).controller.sides[1].said.clone();
        word.is_some_and(|word| word.epoch > before)
    };
    while !says(&mut pair) {
        pair.node(1).turn();
    }
    let word = pair.node(1).controller.sides[1].said.clone().expect("waited for").word;
    assert_eq!(word, Word::Mirroring, "its portion follows what an earlier life has sent");
    pair.node(0).turn();
    assert_ne!(pair.node(0).row(PoolSlot::Home), "in sync");
    pair.until_in_sync();
    pair.write(0, "vol-a", 0, 2);
    assert_eq!(pair.read(0, "vol-a", 0), 2);
}

#[test]
fn a_lease_that_has_ended_comes_back_only_with_a_claim() {
    let mut pair = Pair::started(8);
    pair.create(0, "vol-a");
    pair.registers.borrow_mut().holds_beats = true;
    let left = |pair: &mut Pair| {
        let node = pair.node(0);
        node.controller.lease_until.since(node.platform.now())
    };
    pair.until("the lease is about to end", |pair| left(pair) < Duration::from_millis(5));
    // Node a stands still over the end of its lease; the answer to its last beat, which would renew it, comes before it looks.
    let epoch = pair.node(0).controller.sides[0].held.expect("it serves");
    let until = pair.node(0).controller.lease_until;
    while pair.node(1).platform.now() <= until {
        pair.node(1).turn();
    }
    pair.registers.borrow_mut().holds_beats = false;
    pair.node(0).turn();
    assert_eq!(pair.node(0).row(PoolSlot::Home), "lease over", "the partner may have acted upon its end");
    pair.until_in_sync();
    assert!(pair.node(0).controller.sides[0].held.expect("it serves again") > epoch);
}

/// Its first refused write may be noticed by the engine, which stops, or by the fence: the pool is another's, and has not failed.
#[test]
fn an_owner_that_was_fenced_closes_its_pool_and_follows_the_register() {
    for stops in [false, true] {
        let mut pair = Pair::started(13);
        pair.create(0, "vol-a");
        pair.write(0, "vol-a", 0, 1);
        let side = &pair.node(0).controller.sides[0];
        let (pool, epoch) = (side.pool, side.held.expect("it serves"));
        pair.lost[0].set(Some(pool));
        if stops {
            let engine = pair.node(0).pools.engine_mut(PoolSlot::Home).expect("open");
            engine.coordinator_mut().expect("reactor 0").stop("a write was refused".to_owned());
        }
        pair.until("its pool is closed", |pair| pair.node(0).pools.engine(PoolSlot::Home).is_none());
        assert_ne!(pair.node(0).controller.sides[0].open, Open::Failed, "stops: {stops}");
        pair.until_in_sync();
        assert!(pair.node(0).controller.sides[0].held.expect("it serves again") > epoch, "by a claim");
        assert_eq!(pair.read(0, "vol-a", 0), 1);
    }
}

/// Rule R7, for a node that lives: it has mirrored its pool and owned it again, closes it at the end of its lease, and hears later that its partner has taken it over.
#[test]
fn a_former_owner_that_lives_makes_its_portion_anew() {
    let mut pair = Pair::with_volume(14);
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    pair.start(0);
    pair.until_in_sync();
    pair.write(0, "vol-a", 0, 1);
    let own = pair.node(0).controller.sides[0].portion.id().expect("it is there");
    pair.registers.borrow_mut().is_unreachable_for[0] = true;
    pair.cut(true);
    pair.until("its pool is closed", |pair| pair.node(0).pools.engine(PoolSlot::Home).is_none());
    // That its lease has ended is what the fence confirms.
    pair.lives[0].set(false);
    pair.until("b serves pool a again", |pair| pair.serves(1, PoolSlot::Partner));
    pair.write(1, "vol-a", 0, 2);
    pair.lives[0].set(true);
    pair.registers.borrow_mut().is_unreachable_for[0] = false;
    pair.cut(false);
    pair.until_in_sync();
    assert_ne!(
        pair.node(0).controller.sides[0].portion.id(),
        Some(own),
        "what it held is of an ownership that is over"
    );
    assert_eq!(pair.read(0, "vol-a", 0), 2);
}

#[test]
fn a_guarded_node_has_closed_its_pools_before_its_lease_ends() {
    let mut pair = Pair::started(11);
    pair.create(0, "vol-a");
    pair.node(0).controller.guard_lease();
    let until = pair.node(0).controller.serves_until().expect("a pool is open");
    pair.write(0, "vol-a", 0, 1);
    assert!(pair.node(0).controller.serves_until().expect("a pool is open") >= until, "it renews its lease");
    pair.registers.borrow_mut().is_unreachable = true;
    pair.until("its pool is closed", |pair| pair.node(0).controller.serves_until().is_none());
    let node = pair.node(0);
    assert!(
        node.platform.now() < node.controller.lease_until,
        "nothing of it is on its way when the partner takes over"
    );
    pair.registers.borrow_mut().is_unreachable = false;
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 1);
}

#[test]
fn registers_of_another_time_are_not_believed() {
    let mut pair = Pair::started(9);
    pair.create(0, "vol-a");
    let older = pair.registers.borrow().registers.clone();
    pair.write(0, "vol-a", 0, 1);
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    pair.write(1, "vol-a", 0, 2);
    // Whoever restores the mailbox from a backup gives the pool back to a log that lacks what b has answered.
    pair.registers.borrow_mut().registers = older;
    pair.until("b stops", |pair| !pair.serves(1, PoolSlot::Partner));
    pair.until("b refuses", |pair| pair.node(1).row(PoolSlot::Partner) == "register outdated");
    let newest = pair.node(1).controller.sides[1].epoch_seen;
    pair.epoch_min = newest;
    pair.start(0);
    pair.until("a refuses", |pair| pair.node(0).row(PoolSlot::Home) == "register outdated");
    let node = pair.node(0);
    let status = node.controller.status(&node.way);
    assert!(status.pools[0].trouble.contains("and the pool was served at epoch"), "{:?}", status.pools[0]);
    assert!(status.pools[0].next.contains("twinlog pair takeover --force"), "{:?}", status.pools[0]);
    // What only b's log has is given up.
    let (reply, replies) = crossbeam_channel::bounded(1);
    let request = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: true };
    assert!(pair.node(0).controller.call(AdminCall { request, reply }).is_none());
    pair.until("the command ends", |_| !replies.is_empty());
    assert_eq!(replies.try_recv().expect("waited for"), AdminReply::Done);
    pair.until("a serves", |pair| pair.serves(0, PoolSlot::Home));
    assert!(pair.node(0).controller.sides[0].epoch() > newest);
}

#[test]
fn no_register_of_a_pool_that_was_served_is_no_new_pool() {
    let mut pair = Pair::started(10);
    pair.create(0, "vol-a");
    pair.kill(0);
    pair.kill(1);
    pair.registers.borrow_mut().registers.clear();
    pair.epoch_min = Epoch(3);
    pair.start(0);
    pair.start(1);
    pair.until("both refuse", |pair| {
        let refuses =
            |node: usize, slot| pair.nodes[node].as_ref().is_some_and(|node| node.row(slot) == "register outdated");
        (0..2).all(|node| PoolSlot::ALL.into_iter().all(|slot| refuses(node, slot)))
    });
    assert!(pair.registers.borrow().registers.is_empty());
}

#[test]
fn a_fence_that_failed_is_tried_again() {
    let mut pair = Pair::started(7);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    pair.kill(0);
    // It is dead, and no fence can tell.
    pair.lives[0].set(true);
    pair.until("b refuses", |pair| pair.node(1).row(PoolSlot::Partner) == "fence failed");
    pair.lives[0].set(false);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 1);
}

/// An operator reads it before pulling a plug.
#[test]
fn no_takeover_is_promised_that_is_refused() {
    let mut pair = Pair::started(20);
    pair.create(0, "vol-a");
    let promise = |pair: &mut Pair| {
        let node = pair.node(1);
        node.controller.status(&node.way).pools[1].if_dies[1].clone()
    };
    assert_eq!(promise(&mut pair), "b takes over; nothing that was answered is lost");
    pair.kill(0);
    // It is dead, and no fence can tell.
    pair.lives[0].set(true);
    pair.until("b refuses", |pair| pair.node(1).row(PoolSlot::Partner) == "fence failed");
    assert_eq!(promise(&mut pair), "b takes over only when a fence can tell that a does not serve it");
}

#[test]
fn both_die_and_come_back_one_after_the_other() {
    let mut pair = Pair::started(4);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    pair.kill(0);
    pair.kill(1);
    pair.start(1);
    pair.until("b serves both", |pair| pair.serves(1, PoolSlot::Home) && pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 1);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 1);
}

#[test]
fn an_owner_without_the_arbiter_stops_when_its_lease_ends() {
    let mut pair = Pair::started(5);
    pair.create(0, "vol-a");
    pair.registers.borrow_mut().is_unreachable = true;
    pair.cut(true);
    pair.until("nobody serves", |pair| !pair.serves(0, PoolSlot::Home) && !pair.serves(1, PoolSlot::Home));
    pair.registers.borrow_mut().is_unreachable = false;
    pair.cut(false);
    pair.until_in_sync();
}

/// Both are told to stop at the same instant, and one is faster: the other's last replies wait for a mirror that is gone.
#[test]
fn a_node_that_stops_beside_its_partner_still_answers() {
    let mut pair = Pair::started(7);
    pair.create(0, "vol-a");
    pair.kill(1);
    let waits = pair.begin_write(0, "vol-a", 0, 1);
    let (reply, _replies) = crossbeam_channel::bounded(1);
    pair.node(0).pools.call(AdminCall { request: AdminRequest::Stop, reply });
    pair.end(0, waits).expect("alone, after the register says stale");
    pair.until("a has stopped", |pair| pair.node(0).pools.is_stopped());
}

/// The mailbox's disk stands still while a change of the register is on its way: the lease ends all the same (rule R2).
#[test]
fn an_owner_whose_change_of_the_register_is_never_answered_stops_when_its_lease_ends() {
    let mut pair = Pair::started(15);
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    pair.registers.borrow_mut().is_silent = true;
    pair.cut(true);
    let waits = pair.begin_write(0, "vol-a", 1, 2);
    pair.until("nobody serves", |pair| !pair.serves(0, PoolSlot::Home) && !pair.serves(1, PoolSlot::Home));
    let result = pair.end(0, waits);
    assert!(matches!(result, Err(VolumeError::Interrupted(_))), "whoever serves next tells: {result:?}");
    pair.registers.borrow_mut().is_silent = false;
    pair.cut(false);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 1);
}

/// The partner lives and its log's device stands still: the owner goes on alone, and does not try again at once.
#[test]
fn a_mirror_that_acknowledges_nothing_stops_nobody() {
    let mut pair = Pair::started(16);
    pair.create(0, "vol-a");
    pair.logs[1][0].set_latency_ns(1 << 60, 1 << 60);
    for block in 0..20 {
        pair.write(0, "vol-a", block, 7);
    }
    assert_eq!(pair.node(0).row(PoolSlot::Home), "alone");
}

/// The partner is there and knows no register: its arbiter does not answer it. Nobody waits for its word for ever.
#[test]
fn a_partner_that_says_no_word_over_a_pool_counts_as_lost() {
    let mut pair = Pair::started(17);
    pair.create(0, "vol-a");
    pair.registers.borrow_mut().is_unreachable_for[1] = true;
    pair.kill(1);
    pair.start(1);
    let waits = pair.begin_write(0, "vol-a", 1, 2);
    pair.end(0, waits).expect("alone, after the register says stale");
    pair.registers.borrow_mut().is_unreachable_for[1] = false;
    pair.until_in_sync();
}

#[test]
fn changes_of_the_register_whose_end_nobody_heard_are_found_by_reading() {
    let mut pair = Pair::new(6);
    pair.registers.borrow_mut().loses_answers = true;
    pair.start(0);
    pair.start(1);
    pair.until_in_sync();
    pair.create(0, "vol-a");
    pair.write(0, "vol-a", 0, 1);
    pair.kill(0);
    pair.until("b serves pool a", |pair| pair.serves(1, PoolSlot::Partner));
    assert_eq!(pair.read(1, "vol-a", 0), 1);
    pair.start(0);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 1);
}

#[test]
fn no_answered_write_is_lost_whatever_dies_in_whichever_order() {
    for seed in 100..130 {
        let mut pair = Pair::started(seed);
        pair.create(0, "vol-a");
        let mut answered = BTreeMap::new();
        let mut value = 0_u8;
        for _ in 0..6 {
            for _ in 0..pair.prng.below(12) {
                let serving =
                    (0..2).find(|&node| pair.serves(node, if node == 0 { PoolSlot::Home } else { PoolSlot::Partner }));
                let Some(node) = serving else { break };
                value = value.wrapping_add(1).max(1);
                let block = pair.prng.below(50);
                let request = pair.begin_write(node, "vol-a", block, value);
                if pair.end(node, request).is_ok() {
                    answered.insert(block, value);
                } else {
                    answered.remove(&block);
                }
            }
            match pair.prng.below(4) {
                0 => pair.kill(0),
                1 => pair.kill(1),
                2 => pair.cut(true),
                _ => {}
            }
            let turns = pair.prng.below(3000);
            for _ in 0..turns {
                for node in pair.nodes.iter_mut().flatten() {
                    node.turn();
                }
                pair.nobody_serves_twice();
            }
            pair.cut(false);
            for node in 0..2 {
                if pair.nodes[node].is_none() && pair.prng.chance(2, 3) {
                    pair.start(node);
                }
            }
            if pair.nodes.iter().all(Option::is_none) {
                pair.start(0);
                pair.start(1);
            }
        }
        for node in 0..2 {
            if pair.nodes[node].is_none() {
                pair.start(node);
            }
        }
        pair.until_in_sync();
        for (block, value) in answered {
            assert_eq!(pair.read(0, "vol-a", block), value, "seed {seed}, block {block}");
        }
    }
}
