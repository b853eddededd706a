//! The engine on a simulated machine: the paths that every day takes. The deep search is the simulator's (`tools/simulator`).

use super::*;
use crate::{
    base::{Epoch, PoolId, PortionId},
    changelog::Format,
    format::lane_header::{LaneIdentity, PortionRole},
    node::{
        admin::CheckReport,
        request::{DataRun, Extent, Payload, ReplyData, VolumeOperation},
    },
    pool::superblocks::{CreatePool, first_superblock},
    reactor::mailbox::{Waker, mailbox},
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use twinlog_device::{Platform, Prng, Wait};
use twinlog_sim::{
    Agenda, Fault, FaultPlan, LogMedium, LogShape, MediumConfig, SimDisk, SimLog, SimMedium, SimPlatform, SimWorld,
};

mod compare;
mod damage;
mod forwarded;
mod grow;
mod memory;
mod mirror;
mod offline;
mod order;
mod reservation;
mod space;

/// Wakes a reactor that has a message.
#[derive(Default)]
struct Alarm(AtomicBool);
impl Waker for Alarm {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A machine with a pool, which engines come and go on.
struct Machine {
    world: SimWorld,
    media: Vec<SimMedium>,
    logs: Vec<LogMedium>,
    memory_blocks: u32,
    /// The reactor that has no part of the pool.
    refuses: Option<u16>,
    prng: Prng,
}

/// One running node of a [`Machine`]: one engine per reactor.
struct Node {
    platforms: Vec<SimPlatform<SimLog>>,
    engines: Vec<Engine<SimDisk, SimLog>>,
    replies: BTreeMap<u64, Result<ReplyData, VolumeError>>,
    next_request: u64,
    /// Until when each reactor sleeps, unless something wakes it.
    asleep: Vec<Option<Nanos>>,
    alarms: Vec<Arc<Alarm>>,
}

impl Machine {
    fn new(seed: u64, device_blocks: &[u64], lanes: u16, ring_bytes: u64) -> Self {
        let disk = |(index, blocks): (usize, &u64)| MediumConfig::new(&format!("disk-{index}"), *blocks);
        Self::made_of(seed, device_blocks.iter().enumerate().map(disk), lanes, LogShape::file(4096 + ring_bytes))
    }

    fn made_of(seed: u64, disks: impl IntoIterator<Item = MediumConfig>, lanes: u16, log: LogShape) -> Self {
        let world = SimWorld::new(seed);
        let media = disks.into_iter().map(|disk| SimMedium::new(&world, disk)).collect();
        let logs = (0..lanes).map(|_| LogMedium::new(&world, "log", log)).collect();
        let machine = Self { media, logs, memory_blocks: 4096, refuses: None, prng: Prng::new(seed), world };
        machine.create_pool(lanes);
        machine
    }

    fn create_pool(&self, lanes: u16) {
        let agenda = Agenda::new(&self.world);
        let blocks = BlockPool::new(256).expect("a small mapping");
        let devices: Vec<_> = self.media.iter().map(|medium| medium.open(&agenda)).collect();
        let sizes: Vec<_> = (1..).zip(&devices).map(|(id, device)| (id, device.info().block_count)).collect();
        let mut io = Io::new(devices, blocks, 16);
        let superblock = first_superblock(PoolId(7), "a", &sizes, lanes, 0);
        let mut create = CreatePool::new(&mut io, 0, superblock, false);
        let mut is_done = false;
        while !is_done {
            io.poll();
            while let Some(event) = io.next_event() {
                is_done |= create.event(&mut io, event).expect("the devices are empty and sound");
            }
            agenda.turn(Wait::UpTo(Duration::from_millis(1)));
        }
        for (lane, log) in (0..).zip(&self.logs) {
            let identity =
                LaneIdentity { pool: PoolId(7), role: PortionRole::Own, lane: LaneIndex(lane), lane_count: lanes };
            let mut format = Format::new(log.open(&agenda), &identity, PortionId(9));
            while !format.poll().expect("the log is sound") {
                agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            }
        }
    }

    fn start(&self, reactor_count: u16) -> Node {
        let mut node = self.boot(reactor_count);
        node.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
        node
    }

    /// A node that has not had a single turn.
    fn boot(&self, reactor_count: u16) -> Node {
        self.boot_granted(reactor_count, Grant::SINGLE)
    }

    fn boot_granted(&self, reactor_count: u16, grant: Grant) -> Node {
        let blocks = BlockPool::new(self.memory_blocks).expect("a small mapping");
        let (budget, holders) = (Budget::default(), Arc::new(()));
        let alarms: Vec<Arc<Alarm>> = (0..reactor_count).map(|_| Arc::default()).collect();
        let (peers, mailboxes): (Vec<_>, Vec<_>) = alarms.iter().map(|alarm| mailbox(64, alarm.clone() as _)).unzip();
        let (platforms, engines, asleep) = (Vec::new(), Vec::new(), vec![None; usize::from(reactor_count)]);
        let mut node = Node { platforms, engines, replies: BTreeMap::new(), next_request: 0, asleep, alarms };
        for (index, mailbox) in (0..).zip(mailboxes) {
            let agenda = Agenda::new(&self.world);
            let own = |(lane, log): (u16, &LogMedium)| {
                (lane % reactor_count == index).then(|| (LaneIndex(lane), log.open(&agenda)))
            };
            let parts = EngineParts {
                index: ReactorIndex(index),
                reactor_count,
                devices: self.media.iter().map(|medium| medium.open(&agenda)).collect(),
                lanes: (0..).zip(&self.logs).filter_map(own).collect(),
                blocks: blocks.clone(),
                budget: budget.clone(),
                limits: EngineLimits::for_memory(u64::from(self.memory_blocks), self.logs.len() as u64),
                grant,
                mailbox,
                peers: peers.clone(),
                holders: holders.clone(),
            };
            let opens = self.refuses != Some(index);
            node.engines.push(if opens { Engine::open(parts) } else { Engine::refuse(parts, "no memory") });
            node.platforms.push(SimPlatform::new(agenda, blocks.clone()));
        }
        node
    }

    /// Ends the node as a power cut does.
    fn power_cut(&mut self, node: Node) {
        drop(node);
        self.media.iter().for_each(|medium| medium.power_cut(&mut self.prng));
        self.logs.iter().for_each(|log| log.power_cut(&mut self.prng));
    }
}

impl Node {
    /// A turn of every reactor that is awake. A reactor without work sleeps until its timer, an event of its own or a message: one that
    /// sleeps with work to do is seen as lost time.
    fn turn(&mut self) {
        let first = self.asleep.iter().flatten().min().filter(|_| self.asleep.iter().all(Option::is_some)).copied();
        for (index, (platform, engine)) in self.platforms.iter_mut().zip(&mut self.engines).enumerate() {
            let sleep = first.map(|until| until - platform.now()).filter(|_| index == 0);
            let is_due = platform.turn(sleep.map_or(Wait::No, Wait::UpTo));
            let is_called = self.alarms[index].0.swap(false, Ordering::Relaxed);
            if self.asleep[index].is_some_and(|until| platform.now() < until) && !is_due && !is_called {
                continue;
            }
            let now = platform.now();
            let busy = engine.poll(now, platform.wall_clock_ns());
            while let Some(reply) = engine.poll_reply() {
                assert!(self.replies.insert(reply.tag.request, reply.result).is_none(), "one reply for each request");
            }
            let latest = now + Duration::from_secs(1);
            self.asleep[index] = (!busy).then(|| engine.next_deadline().map_or(latest, |at| at.min(latest)));
        }
    }

    fn run_until(&mut self, what: &str, mut is_done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..200_000 {
            if is_done(self) {
                return;
            }
            self.turn();
        }
        panic!(
            "it takes for ever until {what}; phase {:?}, state {:?}",
            self.engines[0].coordinator().map(Coordinator::phase),
            self.failure()
        );
    }

    /// Closes the pool on every reactor, reactor 0 last.
    fn close_all(&mut self) {
        self.engines[0].close("test");
        let mut open = self.engines.len();
        self.run_until("every reactor lets go", |node| {
            // All but reactor 0 can be dropped as soon as they are ready.
            while open > 1 && node.engines[open - 1].is_closed() {
                node.engines.pop();
                node.platforms.pop();
                open -= 1;
            }
            open == 1 && node.engines[0].is_closed()
        });
    }

    fn failure(&self) -> Option<String> {
        match self.engines[0].pool_state() {
            Some(PoolState::Stopped(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    fn admin(&mut self, request: AdminRequest) -> AdminReply {
        let (reply, replies) = crossbeam_channel::bounded(1);
        self.engines[0].call(AdminCall { request, reply });
        self.asleep[0] = None;
        let mut answer = None;
        self.run_until("control has its answer", |_| {
            answer = replies.try_recv().ok();
            answer.is_some()
        });
        answer.expect("waited for")
    }

    fn create(&mut self, name: &str, size_bytes: u64) -> ObjectId {
        let reply = self.admin(AdminRequest::VolumeCreate { name: name.to_owned(), size_bytes, block_bytes: 4096 });
        assert!(matches!(reply, AdminReply::Volumes { .. }), "{reply:?}");
        self.volume(name)
    }

    fn volume(&self, name: &str) -> ObjectId {
        self.engines[0].volume(name).expect("it exists").id
    }

    fn begin(&mut self, reactor: usize, volume: ObjectId, operation: VolumeOperation) -> u64 {
        self.next_request += 1;
        let tag = RequestTag { session: 1, request: self.next_request };
        self.asleep[reactor] = None;
        self.engines[reactor].submit(VolumeRequest { tag, volume, host: None, pass: None, operation });
        self.next_request
    }

    fn end(&mut self, request: u64) -> Result<ReplyData, VolumeError> {
        self.run_until("the request is answered", |node| node.replies.contains_key(&request));
        self.replies.remove(&request).expect("waited for")
    }

    fn write(&mut self, volume: ObjectId, offset: u64, bytes: &[u8]) -> Result<ReplyData, VolumeError> {
        let request = self.begin_write(volume, offset, bytes);
        self.end(request)
    }

    fn begin_write(&mut self, volume: ObjectId, offset: u64, bytes: &[u8]) -> u64 {
        let range = offset..offset + bytes.len() as u64;
        let mut payload = Payload::allocate(self.engines[0].blocks(), range).expect("memory is large enough");
        payload.fill(0, bytes);
        let reactor = usize::try_from(offset).expect("small") % self.engines.len();
        self.begin(reactor, volume, VolumeOperation::Write { payload, durable: false })
    }

    fn read(&mut self, volume: ObjectId, range: Range<u64>) -> Result<Vec<u8>, VolumeError> {
        let request = self.begin(0, volume, VolumeOperation::Read(range));
        let ReplyData::Data(runs) = self.end(request)? else { panic!("a read returns data") };
        let mut bytes = Vec::new();
        for run in runs {
            match run {
                DataRun::Block(block, part) => bytes.extend_from_slice(&block[part]),
                DataRun::Zeroes(length) => bytes.resize(bytes.len() + usize::try_from(length).expect("small"), 0),
            }
        }
        Ok(bytes)
    }

    fn extents(&mut self, volume: ObjectId, range: Range<u64>) -> Vec<Extent> {
        let request = self.begin(0, volume, VolumeOperation::BlockStatus { range, extents_max: 100 });
        let Ok(ReplyData::Extents(extents)) = self.end(request) else { panic!("block status returns extents") };
        extents
    }

    fn checkpoint(&mut self) {
        assert_eq!(self.admin(AdminRequest::Checkpoint), AdminReply::Done);
    }

    fn check(&mut self) {
        let AdminReply::Report(report) = self.admin(AdminRequest::PoolCheck) else { panic!("a check reports") };
        assert_eq!(report.problems, Vec::<String>::new());
        assert!(report.verified_blocks > 0 || report == CheckReport::default());
    }
}

#[test]
fn orders_that_come_before_the_pool_is_open_wait_for_it() {
    let machine = Machine::new(6, &[4096], 2, MIB);
    let mut node = machine.boot(2);
    let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
    assert_eq!(status.state, "opening");
    node.create("early", MIB);
    let mut node = machine.boot(1);
    let AdminReply::Volumes { volumes } = node.admin(AdminRequest::VolumeList) else { panic!("a list") };
    assert_eq!(volumes[0].name, "early");
    assert_eq!(machine.boot(1).admin(AdminRequest::Checkpoint), AdminReply::Done);
}

/// A client may reach any reactor as soon as the order is answered.
#[test]
fn a_volume_order_is_answered_when_every_reactor_knows_of_it() {
    let machine = Machine::new(3, &[2048], 2, 64 << 10);
    let mut node = machine.start(2);
    // Volume 1 lies on lane 1, volume 2 on lane 0: the other reactor has no part in it.
    node.create("first", 4096);
    let (reply, replies) = crossbeam_channel::bounded(1);
    let request = AdminRequest::VolumeCreate { name: "second".to_owned(), size_bytes: 4096, block_bytes: 4096 };
    node.engines[0].call(AdminCall { request, reply });
    for _ in 0..1000 {
        node.platforms[0].turn(Wait::UpTo(Duration::from_micros(10)));
        let now = node.platforms[0].now();
        node.engines[0].poll(now, 0);
    }
    assert!(node.engines[0].volume("second").is_some() && node.engines[1].volume("second").is_none());
    assert!(replies.try_recv().is_err(), "the other reactor has not heard of it");
    node.run_until("control has its answer", |_| replies.try_recv().is_ok());
    assert!(node.engines[1].volume("second").is_some());
}

/// It is chosen once: replayed from the log, read from the pool, and a size that is none is refused.
#[test]
fn the_size_of_a_volume_s_blocks_outlives_the_node() {
    let machine = Machine::new(9, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let make = |name: &str, block_bytes| {
        let name = name.to_owned();
        AdminRequest::VolumeCreate { name, size_bytes: MIB, block_bytes }
    };
    for block_bytes in [0, 511, 1024, 8192] {
        assert!(matches!(node.admin(make("none", block_bytes)), AdminReply::Refused { .. }), "{block_bytes}");
    }
    assert!(matches!(node.admin(make("fine", 512)), AdminReply::Volumes { .. }));
    node.create("plain", MIB);
    for _ in 0..3 {
        let size = |name| node.engines[0].volume(name).expect("it exists").block_size.bytes();
        assert_eq!((size("fine"), size("plain")), (512, 4096));
        node = machine.start(1);
    }
}

#[test]
fn status_shows_no_volume_before_it_exists() {
    for reactors in 1..=2 {
        let machine = Machine::new(7, &[4096], 2, MIB);
        let mut node = machine.start(reactors);
        let (reply, made) = crossbeam_channel::bounded(1);
        let request = AdminRequest::VolumeCreate { name: "vol".to_owned(), size_bytes: MIB, block_bytes: 4096 };
        node.engines[0].call(AdminCall { request, reply });
        while made.is_empty() {
            let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
            let AdminReply::Volumes { volumes } = node.admin(AdminRequest::VolumeList) else { panic!("a list") };
            assert!(status.volumes.len() <= volumes.len(), "{reactors} reactor(s): {status:?}");
        }
        let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
        assert_eq!(status.volumes.len(), 1);
    }
}

#[test]
fn a_stop_under_load_leaves_nothing_to_replay() {
    for seed in 0..20 {
        let machine = Machine::new(seed, &[8192], 2, MIB);
        let mut node = machine.start(1 + u16::try_from(seed % 2).expect("small"));
        let volumes = [node.create("one", 4 * MIB), node.create("two", 4 * MIB)];
        let mut prng = Prng::new(seed);
        let (reply, stopped) = crossbeam_channel::bounded(1);
        let mut reply = Some(reply);
        let (stop_at, mut wanted) = (prng.between(1, 200), BTreeMap::new());
        for number in 0..400 {
            let (volume, block) = (*prng.pick(&volumes), number % 300);
            let request =
                node.begin_write(volume, block * 4096, &[u8::try_from(number % 251).expect("small") + 1; 4096]);
            wanted.insert(request, (volume, block, number));
            if number == stop_at
                && let Some(reply) = reply.take()
            {
                node.engines[0].call(AdminCall { request: AdminRequest::Stop, reply });
            }
            if prng.chance(1, 8) {
                node.turn();
            }
        }
        node.run_until("it has stopped", |_| !stopped.is_empty());
        node.turn();
        let mut expected = BTreeMap::new();
        for (request, (volume, block, number)) in wanted {
            match node.replies.remove(&request).expect("every request is answered") {
                Ok(_) => drop(expected.insert((volume, block), number)),
                Err(error) => assert_eq!(error, VolumeError::ShuttingDown),
            }
        }
        assert!(!expected.is_empty());
        drop(node);
        let mut node = machine.start(1);
        let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
        assert_eq!(status.replayed_records, 0, "seed {seed}");
        for ((volume, block), number) in expected {
            let byte = u8::try_from(number % 251).expect("small") + 1;
            assert_eq!(node.read(volume, block * 4096..(block + 1) * 4096).expect("readable"), [byte; 4096]);
        }
    }
}

/// Found by the simulator: reactor 0 left at once when the pool failed during a stop, with answers that had not gone to other reactors.
#[test]
fn a_stop_of_a_pool_that_fails_waits_until_every_reactor_has_its_answers() {
    let machine = Machine::new(4, &[4096], 1, MIB);
    let mut node = machine.start(2);
    let volume = node.create("vol", MIB);
    machine.logs[0].fail_persist_after(0);
    // More than the way between two reactors takes at once.
    let requests = 0..100;
    for block in requests.clone() {
        let range = block * 4096..(block + 1) * 4096;
        let zeroes = VolumeOperation::WriteZeroes { range, may_free: false, durable: false };
        node.begin(1, volume, zeroes);
    }
    let (reply, replies) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::Stop, reply });
    node.asleep[0] = None;
    node.run_until("the pool has stopped", |node| node.engines[0].is_stopped());
    assert!(node.failure().is_some_and(|reason| reason.contains("log")), "{:?}", node.failure());
    assert!(matches!(replies.try_recv(), Ok(AdminReply::Refused { .. })));
    assert_eq!(node.replies.len() as u64, requests.end, "the rest is lost when reactor 0 leaves");
    assert!(node.replies.values().any(|reply| matches!(reply, Err(VolumeError::Stopped(_)))));
}

/// A request that comes to a reactor that has slept is as old as the turn in which it comes, before the engine's own part of that turn too.
#[test]
fn latencies_do_not_contain_the_sleep_before_the_request() {
    let machine = Machine::new(9, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    let platform = &mut node.platforms[0];
    let before = platform.now();
    while platform.now() < before + Duration::from_secs(1) {
        platform.turn(Wait::UpTo(Duration::from_secs(1)));
    }
    let (now, wall_clock_ns) = (platform.now(), platform.wall_clock_ns());
    node.engines[0].begin_turn(now, wall_clock_ns);
    node.read(volume, 0..4096).expect("a hole");
    let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
    let reads = &status.volumes[0].reads;
    assert!(reads.count == 1 && reads.max_ns < 500_000_000, "{reads:?}");
}

/// Found by the simulator: block status told of a discard that was not stable yet where holes of the tree lay before it, and a power cut
/// brought the blocks back.
#[test]
fn block_status_tells_nothing_that_a_power_cut_could_take_back() {
    let machine = Machine::new(5, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    node.write(volume, 4096, &[1; 4096]).expect("there is room");
    machine.logs[0].set_latency_ns(1_000_000, 1_000_000);
    let discard = node.begin(0, volume, VolumeOperation::Discard { range: 4096..12_288, durable: false });
    node.turn();
    assert!(!node.replies.contains_key(&discard), "the log is slow");
    assert_eq!(node.extents(volume, 0..MIB), [Extent { length_bytes: MIB, allocated: false }], "it is performed");
    assert!(
        matches!(node.replies.get(&discard), Some(Ok(ReplyData::Done))),
        "and stable, or a power cut takes it back"
    );
}

#[test]
fn a_pool_that_is_being_opened_can_be_stopped() {
    let machine = Machine::new(1, &[4096], 2, MIB);
    let mut node = machine.boot(2);
    assert_eq!(node.admin(AdminRequest::Stop), AdminReply::Done);
    assert!(node.engines[0].is_stopped());
}

#[test]
fn a_cache_hint_larger_than_memory_holds_nothing_up() {
    let machine = Machine::new(3, &[16_384], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 32 * MIB);
    for chunk in 0..96 {
        node.write(volume, chunk * MIB / 4, &vec![7; 1 << 18]).expect("there is room");
    }
    let hint = node.begin(0, volume, VolumeOperation::Cache(0..24 * MIB));
    assert!(matches!(node.end(hint), Ok(ReplyData::Done)));
    node.write(volume, 0, &[8; 4096]).expect("there is room");
    node.checkpoint();
}

#[test]
fn a_consistency_point_is_timed_when_it_is_durable() {
    let machine = Machine::new(21, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    node.checkpoint();
    node.write(volume, 0, &[1; 4096]).expect("there is room");
    let cp_at = |node: &Node| node.engines[0].coordinator().expect("it is open").figures().cp_at;
    let before = cp_at(&node);
    let (reply, committed) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::Checkpoint, reply });
    node.asleep[0] = None;
    node.run_until("it is committed", |node| node.engines[0].coordinator().map(Coordinator::phase) == Some("commit"));
    assert_eq!(cp_at(&node), before, "a power cut would take it");
    let asked_at = machine.world.now();
    node.run_until("it is durable", |_| !committed.is_empty());
    assert!(cp_at(&node) > asked_at, "flushes take time");
}

#[test]
fn a_reactor_that_sleeps_when_it_may_takes_its_part_of_a_consistency_point_at_once() {
    let machine = Machine::new(4, &[16_384], 2, 16 * MIB);
    let mut node = machine.start(2);
    let volume = node.create("vol", 32 * MIB);
    assert_eq!(volume.0 % 2, 1);
    for chunk in 0..32 {
        node.write(volume, chunk * MIB / 4, &vec![7; 1 << 18]).expect("there is room");
    }
    let before = machine.world.now();
    node.checkpoint();
    let took = machine.world.now() - before;
    assert!(took < Duration::from_secs(1), "{took:?} for 2048 blocks: a reactor slept with work to do");
    drop(node);
    let before = machine.world.now();
    drop(machine.start(2));
    assert!(machine.world.now() - before < Duration::from_secs(1));
}

#[test]
fn a_device_that_fails_under_a_consistency_point_of_two_lanes_stops_the_pool_and_no_more() {
    for skipped in 0..30 {
        let machine = Machine::new(skipped, &[4096], 2, MIB);
        let mut node = machine.start(2);
        let volumes = [node.create("one", 4 * MIB), node.create("two", 4 * MIB)];
        for block in 0..64 {
            node.write(volumes[0], block * 8192, &[1; 4096]).expect("there is room");
            node.write(volumes[1], block * 8192, &[2; 4096]).expect("there is room");
        }
        machine.media[0].arm(Fault::WriteError, skipped % 8);
        let reply = node.admin(AdminRequest::Checkpoint);
        assert!(matches!(reply, AdminReply::Refused { .. } | AdminReply::Done), "{reply:?}");
        for _ in 0..1000 {
            node.turn();
        }
        drop(node);
        machine.media[0].repair();
        let mut node = machine.start(1);
        assert_eq!(node.read(volumes[1], 0..4096), Ok(vec![2; 4096]));
    }
}

#[test]
fn a_long_change_lets_others_pass_between_its_records() {
    let machine = Machine::new(5, &[65_536], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 128 * MIB);
    let range = 0..96 * MIB;
    let long = node.begin(0, volume, VolumeOperation::WriteZeroes { range, may_free: false, durable: false });
    node.write(volume, 100 * MIB, &[1; 4096]).expect("there is room");
    assert!(!node.replies.contains_key(&long), "96 MiB of zeroes are written before one block");
    node.end(long).expect("there is room");
}

#[test]
fn damage_anywhere_on_a_disk_is_named_and_never_served() {
    let mut refused = 0;
    let mut unreadable = 0;
    for seed in 0..60 {
        let mut machine = Machine::new(seed, &[2048], 1, MIB);
        let mut node = machine.start(1);
        let volume = node.create("vol", 4 * MIB);
        for block in 0..100 {
            node.write(volume, block * 8192, &[u8::try_from(block).expect("small") + 1; 4096]).expect("there is room");
        }
        assert_eq!(node.admin(AdminRequest::Stop), AdminReply::Done);
        machine.power_cut(node);
        let mut prng = Prng::new(seed);
        let written = machine.media[0].written_blocks();
        let damaged: Vec<u64> = (0..prng.between(1, 4)).map(|_| *prng.pick(&written)).collect();
        for &block in &damaged {
            machine.media[0].flip_bit(block, prng.below(4096 * 8));
        }
        let mut node = machine.start(1);
        if let Some(reason) = node.failure() {
            refused += 1;
            assert!(reason.contains("block") || reason.contains("superblock"), "{reason}");
            continue;
        }
        for block in 0..100 {
            match node.read(volume, block * 8192..block * 8192 + 4096) {
                Ok(bytes) => {
                    assert!(bytes.iter().all(|&byte| u64::from(byte) == block + 1), "seed {seed}, block {block}")
                }
                Err(error) => {
                    unreadable += 1;
                    assert!(matches!(error, VolumeError::Unreadable { .. }), "{error}");
                }
            }
        }
    }
    assert!(refused > 0 && unreadable > 0, "{refused} refused, {unreadable} unreadable: damage must be seen both ways");
}

#[test]
fn a_check_finds_damage_behind_the_cache_and_says_whose_bytes_it_is() {
    let machine = Machine::new(8, &[2048], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 4 * MIB);
    // The pool's own blocks need no CP of their own later: what is written next are the volume's blocks and the way to them.
    node.checkpoint();
    let before = machine.media[0].written_blocks();
    node.write(volume, 5 * 4096, &[0xab; 8192]).expect("there is room");
    node.checkpoint();
    node.check();
    assert_eq!(node.read(volume, 5 * 4096..7 * 4096).expect("readable"), vec![0xab; 8192]);
    let fresh: Vec<u64> =
        machine.media[0].written_blocks().into_iter().filter(|block| !before.contains(block)).collect();
    let mut found = Vec::new();
    for request in [AdminRequest::PoolCheck, AdminRequest::PoolScrub] {
        for &block in &fresh {
            machine.media[0].flip_bit(block, 7);
            let AdminReply::Report(report) = node.admin(request.clone()) else { panic!("a report") };
            machine.media[0].flip_bit(block, 7);
            let read = node.read(volume, 5 * 4096..7 * 4096).expect("the cache has it");
            assert_eq!(read, vec![0xab; 8192]);
            assert_eq!(report.damaged.is_empty(), !report.problems.iter().any(|line| line.starts_with("volume vol,")));
            found.extend(report.damaged.iter().map(|damaged| (damaged.offset_bytes, damaged.length_bytes)));
            assert!(report.damaged.iter().all(|damaged| damaged.volume == "vol"), "{report:?}");
        }
        node.check();
        // The nodes above them, of 128 blocks and of the whole volume; both data blocks.
        found.sort_unstable();
        let all = [(0, 128 * 4096), (0, 4 * MIB), (5 * 4096, 4096), (6 * 4096, 4096)];
        assert_eq!(std::mem::take(&mut found), all);
    }
    fresh.iter().for_each(|&block| assert!(machine.media[0].flip_bit(block, 9)));
    let AdminReply::Report(report) = node.admin(AdminRequest::PoolScrub) else { panic!("a report") };
    assert!(report.problems.len() > 1, "{report:?}");
}

#[test]
fn an_idle_node_gives_freed_space_back_and_then_rests() {
    let machine = Machine::new(9, &[8192], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 16 * MIB);
    for part in 0..256 {
        node.write(volume, part << 16, &[1; 1 << 16]).expect("there is room");
    }
    node.checkpoint();
    let request = node.begin(0, volume, VolumeOperation::Discard { range: 0..15 * MIB, durable: false });
    node.end(request).expect("there is room");
    node.checkpoint();
    let state = |node: &mut Node| {
        let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
        (status.pool.cp, status.pool.deferred_bytes)
    };
    let (cp, deferred) = state(&mut node);
    assert!(deferred > 14 * MIB, "{deferred} bytes wait");
    let rest = |node: &mut Node, seconds: u64| {
        let until = node.platforms[0].now() + Duration::from_secs(seconds);
        node.run_until("time has passed", |node| node.platforms[0].now() >= until);
    };
    rest(&mut node, 11);
    let (settled, deferred) = state(&mut node);
    assert!(settled > cp && settled <= cp + 2 && deferred < MIB, "CP {cp} to {settled}, {deferred} bytes wait");
    rest(&mut node, 15);
    assert_eq!(state(&mut node), (settled, deferred), "an idle node is idle");
    node.check();
}

#[test]
fn a_device_joins_while_the_pool_serves() {
    let mut machine = Machine::new(5, &[1024], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 64 * MIB);
    node.write(volume, 0, &[1; 4096]).expect("there is room");
    let second = SimMedium::new(&machine.world, MediumConfig::new("disk-1", 8192));
    let device = second.open(node.platforms[0].agenda());
    let (reply, replies) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::PoolGrow { device: "disk-1".to_owned() }, reply });
    node.run_until("the device is wanted", |node| node.engines[0].wanted_device().is_some());
    node.engines[0].device_opened(Ok(device));
    let mut answer = None;
    node.run_until("control has its answer", |_| {
        answer = replies.try_recv().ok();
        answer.is_some()
    });
    assert_eq!(answer, Some(AdminReply::Done));
    for block in 0..4000 {
        node.write(volume, block * 4096, &[2; 4096]).expect("the pool has grown");
    }
    node.check();
    machine.power_cut(node);
    machine.media.push(second);
    let mut node = machine.start(1);
    assert_eq!(node.failure(), None);
    assert_eq!(node.read(volume, 3999 * 4096..4000 * 4096).expect("readable"), vec![2; 4096]);
    node.check();
}

const MIB: u64 = 1 << 20;

#[test]
fn a_write_is_read_back_before_and_after_its_consistency_point() {
    let machine = Machine::new(1, &[4096], 1, 2 * MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    assert_eq!(node.read(volume, 0..8192).expect("readable"), vec![0; 8192]);
    node.write(volume, 1000, &[7; 5000]).expect("there is room");
    let mut expected = vec![0; 8192];
    expected[1000..6000].fill(7);
    assert_eq!(node.read(volume, 0..8192).expect("readable"), expected);
    node.checkpoint();
    assert_eq!(node.read(volume, 0..8192).expect("readable"), expected);
    node.check();
    let extents = node.extents(volume, 0..MIB);
    assert_eq!(extents[0], Extent { length_bytes: 8192, allocated: true });
    assert_eq!(extents[1], Extent { length_bytes: MIB - 8192, allocated: false });
}

#[test]
fn answered_writes_survive_power_cuts() {
    for seed in 0..20 {
        let mut machine = Machine::new(seed, &[4096, 2048], 2, MIB);
        let mut model: BTreeMap<(usize, u64), u8> = BTreeMap::new();
        for round in 0..4_u8 {
            let mut node = machine.start(1 + u16::from(round % 2));
            assert_eq!(node.failure(), None);
            let names = ["one", "two", "three"];
            let volumes: Vec<_> = if round == 0 {
                names.iter().map(|name| node.create(name, 4 * MIB)).collect()
            } else {
                names.iter().map(|name| node.volume(name)).collect()
            };
            for (&(volume, block), &value) in &model {
                let bytes = node.read(volumes[volume], block * 4096..(block + 1) * 4096).expect("readable");
                assert!(
                    bytes.iter().all(|&byte| byte == value),
                    "seed {seed}, round {round}: block {block} of volume {volume}"
                );
            }
            node.check();
            let mut prng = Prng::new(seed * 100 + u64::from(round));
            for step in 0..120 {
                let (volume, block) = (usize::try_from(prng.below(3)).expect("small"), prng.below(1024));
                let value = u8::try_from(prng.between(1, 255)).expect("a byte");
                if prng.chance(1, 6) {
                    let range = block * 4096..(block + 1) * 4096;
                    let request = node.begin(0, volumes[volume], VolumeOperation::Discard { range, durable: false });
                    node.end(request).expect("there is room");
                    model.insert((volume, block), 0);
                } else {
                    node.write(volumes[volume], block * 4096, &[value; 4096]).expect("there is room");
                    model.insert((volume, block), value);
                }
                if step % 50 == 49 {
                    node.checkpoint();
                }
            }
            machine.power_cut(node);
        }
    }
}

#[test]
fn a_full_pool_refuses_writes_and_takes_them_again_after_a_discard() {
    let machine = Machine::new(3, &[1024], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 16 * MIB);
    let mut written = 0;
    let refused = loop {
        match node.write(volume, written * 4096, &[1; 4096]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, VolumeError::NoSpace);
    assert!(written > 800, "only {written} of 1024 blocks could be used");
    node.check();
    let range = 0..written * 4096;
    let request = node.begin(0, volume, VolumeOperation::Discard { range, durable: false });
    node.end(request).expect("a discard needs no space to speak of");
    for block in 0..500 {
        node.write(volume, block * 4096, &[2; 4096]).expect("space was freed");
    }
    node.check();
}

#[test]
fn volumes_are_made_resized_and_deleted_across_power_cuts() {
    let mut machine = Machine::new(4, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let keep = node.create("keep", MIB);
    let gone = node.create("gone", MIB);
    node.write(keep, 0, &[1; 8192]).expect("there is room");
    node.write(gone, 0, &[2; 8192]).expect("there is room");
    node.checkpoint();
    assert_eq!(node.admin(AdminRequest::VolumeDelete { name: "gone".to_owned() }), AdminReply::Done);
    let grown = AdminRequest::VolumeResize { name: "keep".to_owned(), size_bytes: 64 * MIB };
    assert!(matches!(node.admin(grown), AdminReply::Volumes { .. }));
    node.write(keep, 64 * MIB - 4096, &[3; 4096]).expect("it has grown");
    machine.power_cut(node);
    let mut node = machine.start(1);
    assert!(node.engines[0].volume("gone").is_none());
    assert_eq!(node.read(keep, 0..8192).expect("readable"), vec![1; 8192]);
    assert_eq!(node.read(keep, 64 * MIB - 4096..64 * MIB).expect("readable"), vec![3; 4096]);
    let shrunk = AdminRequest::VolumeResize { name: "keep".to_owned(), size_bytes: 4096 };
    assert!(matches!(node.admin(shrunk), AdminReply::Volumes { .. }));
    assert_eq!(node.read(keep, 0..8192), Err(VolumeError::OutOfRange));
    (0..4).for_each(|_| node.checkpoint());
    node.check();
    let AdminReply::Volumes { volumes } = node.admin(AdminRequest::VolumeList) else { panic!("a list") };
    assert_eq!(volumes.len(), 1);
    let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
    assert_eq!((status.state.as_str(), status.lanes.len()), ("serving", 1));
    assert_eq!(node.admin(AdminRequest::Stop), AdminReply::Done);
    assert!(node.engines[0].is_stopped());
}
