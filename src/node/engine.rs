//! One reactor's part of a node: its I/O, its shards, the coordinator if it is reactor 0, and the way between them.
//!
//! # Who is where
//!
//! Lane `l` is served by reactor `l mod reactors`; the coordinator lives on reactor 0. A volume belongs to the lane `id mod lanes`. The
//! number of lanes is fixed when the pool is made, the number of reactors may differ at every start.
//!
//! # Invariants
//!
//! 1. Messages between two parties arrive in order, whether both live here or not. A request that goes straight to a shard of this reactor
//!    overtakes none: it does so only when nothing is in line before it. So what was handed on before, as a sweep counts it, comes first.
//! 2. A mailbox that is full delays messages, it never loses one. What can be under way is bounded by the requests in flight.
//! 3. One turn does a bounded amount of work.

use super::{
    admin::{AdminCall, AdminReply, AdminRequest},
    memory::MemoryShares,
    request::{
        NOTICES_MAX, OfflineAt, Reach, RequestTag, ReservationNotice, VolumeError, VolumeInfo, VolumeReply,
        VolumeRequest, VolumeService, VolumeShape,
    },
    shard::{Shard, ShardOptions, ShardOwners},
};
use crate::{
    alloc::budget::Budget,
    base::{
        LaneIndex, ObjectId, ReactorIndex,
        limits::{BLOCK_BYTES, LANES_MAX},
        planted,
    },
    changelog::lane::MirrorItem,
    cp::{
        coordinator::{Coordinator, CoordinatorEvent, Owners, PoolState},
        message::{Grant, MirrorOrder, ToCoordinator, ToShard},
        mirroring::MirrorProgress,
    },
    format::superblock::Superblock,
    pool::io::{Io, IoEvent},
    reactor::mailbox::{Mailbox, MailboxSender, SendError},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use twinlog_device::{BlockDevice, BlockPool, LogMemory, Nanos, Shares};

mod admin;
mod grow;
#[cfg(test)]
mod tests;

/// What reactors tell each other.
#[derive(Debug)]
pub enum ReactorMessage {
    /// For a shard of the receiver.
    Shard(LaneIndex, ToShard),
    /// For the coordinator.
    Coordinator(ToCoordinator),
    /// A client's request to a volume of the receiver, from this reactor.
    Request(ReactorIndex, VolumeRequest),
    /// The reply to such a request.
    Reply(VolumeReply),
    /// The volumes that exist, and the number of lanes.
    Volumes(Vec<VolumeInfo>, u16),
    /// For the partner's portion of a lane.
    Mirror(LaneIndex, MirrorItem),
    /// For the partner's hosts.
    Notice(ReservationNotice),
    /// The sender has heard of that.
    VolumesKnown,
    /// Tell reactor 0 how you are.
    StatusQuery(u64),
    /// How the sender is.
    Status(u64, Box<super::admin::ReactorReport>),
    /// The node is shutting down, or hands the pool over: refuse new requests.
    Stopping,
    /// The sender refuses new requests and has answered every old one.
    Drained,
    /// Open this device, to be the pool's last.
    OpenDevice(String),
    /// The sender has opened it, and how many blocks it has.
    DeviceOpened(Result<u64, String>),
    /// It does not join: close it. The pool has this many devices.
    CloseDevice(usize),
    /// The pool closes: refuse new requests, and say when none is in flight.
    Close,
    /// The sender has no request in flight in the closing pool, and makes none any more.
    Quiet,
    /// Nobody sends anything more: let go of the devices.
    LetGo,
    /// A reactor has no part of the pool, for this reason: it is not opened.
    NotOpened(String),
}

/// Bounds of one reactor.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Dirty blocks of one shard: see [`ShardOptions::dirty_blocks_max`].
    pub dirty_blocks_max: u64,
    /// Requests of one reactor's clients in flight.
    pub requests_max: usize,
    /// Blocks that the cache leaves free.
    pub free_blocks_low: usize,
    /// Who may have how many blocks.
    pub shares: Shares,
}

impl EngineLimits {
    /// Bounds for a node with `blocks` memory blocks and `lanes` lanes: see [the division of memory](super::memory).
    #[must_use]
    pub fn for_memory(blocks: u64, lanes: u64) -> Self {
        let MemoryShares { pool, dirty_blocks_max, free_blocks_low } = MemoryShares::new(blocks, lanes);
        Self { dirty_blocks_max, requests_max: 4096, free_blocks_low, shares: pool }
    }
}

/// What a reactor's engine is made of.
pub struct EngineParts<D, L> {
    /// Which reactor.
    pub index: ReactorIndex,
    /// Number of reactors.
    pub reactor_count: u16,
    /// The pool's devices, as this reactor reaches them.
    pub devices: Vec<D>,
    /// The lanes that this reactor serves.
    pub lanes: Vec<(LaneIndex, L)>,
    /// Memory.
    pub blocks: BlockPool,
    /// The pool's budget, shared by all reactors.
    pub budget: Budget,
    /// Bounds.
    pub limits: EngineLimits,
    /// The right to open the pool.
    pub grant: Grant,
    /// Where messages for this reactor arrive.
    pub mailbox: Mailbox<ReactorMessage>,
    /// The way to every reactor, by index; the own place is not used.
    pub peers: Vec<MailboxSender<ReactorMessage>>,
    /// Shared by the pool's engines on all reactors: the count of those that have not let go of the devices.
    pub holders: Arc<()>,
}

/// What reactor 0 tells of the pool's mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolMirrorNews {
    /// The partner's portion has everything that was answered: the register may say so.
    InStep,
    /// What the partner says of its portion cannot be: it is no mirror any more.
    Lost(String),
}

/// How far the end of an open pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    /// It is not asked for.
    #[default]
    No,
    /// New requests are refused; this reactor waits until none is in flight.
    Quieting,
    /// Reactor 0 was told so.
    Quiet,
    /// Nobody sends anything more.
    LettingGo,
}

/// Notices that wait to be taken: all that the shards have.
pub const ENGINE_NOTICES_MAX: usize = LANES_MAX * NOTICES_MAX;

const COORDINATOR: Owners = Owners { main: 0, update: 1 };
const CHECK_OWNER: u16 = 2;
const GROW_OWNER: u16 = 3;
const SHARD_OWNERS: u16 = 4;

fn shard_owners(position: usize) -> ShardOwners {
    let first = SHARD_OWNERS + 2 * u16::try_from(position).expect("at most LANES_MAX");
    ShardOwners { requests: first, cp: first + 1 }
}

/// One reactor's part of a node.
pub struct Engine<D: BlockDevice, L: LogMemory> {
    index: ReactorIndex,
    reactor_count: u16,
    lane_count: u16,
    limits: EngineLimits,
    blocks: BlockPool,
    budget: Budget,
    io: Io<D>,
    shards: Vec<Shard<L>>,
    coordinator: Option<Coordinator>,
    admin: admin::Admin,
    volumes: BTreeMap<ObjectId, VolumeInfo>,
    /// Lists of volumes that have come; zero: the pool is not open yet.
    volumes_version: u64,
    mailbox: Mailbox<ReactorMessage>,
    peers: Vec<MailboxSender<ReactorMessage>>,
    outgoing: Vec<VecDeque<ReactorMessage>>,
    local: VecDeque<ReactorMessage>,
    replies: VecDeque<VolumeReply>,
    in_flight: usize,
    is_stopping: bool,
    /// Whether reactor 0 was told that nothing is in flight here any more.
    is_drained: bool,
    connections: u64,
    device_wanted: Option<String>,
    busy_ns: u64,
    cpu: Option<u64>,
    started: Option<Nanos>,
    turns: u64,
    closing: Closing,
    /// On reactor 0: reactors that are quiet.
    quiet: u16,
    /// On reactor 0: what goes to the partner. Bounded by what each lane keeps.
    mirror_items: VecDeque<(LaneIndex, MirrorItem)>,
    mirror_news: VecDeque<PoolMirrorNews>,
    /// For hosts of this node, of the shards of this reactor.
    notices: VecDeque<ReservationNotice>,
    /// On reactor 0: for the partner's hosts, of all shards.
    partner_notices: VecDeque<ReservationNotice>,
    /// The last field: let go after the devices.
    holders: Arc<()>,
}

impl<D: BlockDevice, L: LogMemory> Engine<D, L> {
    /// Opens the pool: recovery begins with the first turn.
    #[must_use]
    pub fn open(parts: EngineParts<D, L>) -> Self {
        let EngineParts {
            index,
            reactor_count,
            devices,
            lanes,
            blocks,
            budget,
            limits,
            grant,
            mailbox,
            peers,
            holders,
        } = parts;
        let mut io = Io::new(devices, blocks.clone(), limits.free_blocks_low);
        let shard = |(position, (lane, log)): (usize, (LaneIndex, L))| {
            let owners = shard_owners(position);
            let dirty_blocks_max = limits.dirty_blocks_max;
            Shard::new(log, ShardOptions { lane, owners, budget: budget.clone(), dirty_blocks_max })
        };
        let shards = lanes.into_iter().enumerate().map(shard).collect();
        blocks.set_shares(limits.shares);
        io.hold_for(COORDINATOR.main);
        let is_first = index == ReactorIndex(0);
        let coordinator = is_first.then(|| Coordinator::open(&mut io, COORDINATOR, budget.clone(), grant));
        Self {
            index,
            reactor_count,
            lane_count: 1,
            limits,
            blocks,
            budget,
            io,
            shards,
            coordinator,
            admin: admin::Admin::default(),
            volumes: BTreeMap::new(),
            volumes_version: 0,
            mailbox,
            outgoing: peers.iter().map(|_| VecDeque::new()).collect(),
            peers,
            local: VecDeque::new(),
            replies: VecDeque::new(),
            in_flight: 0,
            is_stopping: false,
            is_drained: false,
            connections: 0,
            device_wanted: None,
            busy_ns: 0,
            cpu: None,
            started: None,
            turns: 0,
            closing: Closing::No,
            quiet: 0,
            mirror_items: VecDeque::new(),
            mirror_news: VecDeque::new(),
            notices: VecDeque::new(),
            partner_notices: VecDeque::new(),
            holders,
        }
    }

    /// A reactor that could not get its devices or lanes, for this reason. The pool is not opened then; but the other reactors may have their parts of it
    /// already, and let go of them only in order, in which this one takes its place.
    #[must_use]
    pub fn refuse(parts: EngineParts<D, L>, reason: &str) -> Self {
        let mut engine = Self::open(EngineParts { devices: Vec::new(), lanes: Vec::new(), ..parts });
        let reason = format!("reactor {}: {reason}", engine.index.0);
        engine.post(ReactorIndex(0), ReactorMessage::NotOpened(reason));
        engine
    }

    /// Which reactor.
    #[must_use]
    pub fn index(&self) -> ReactorIndex {
        self.index
    }

    /// How the pool stands, on reactor 0.
    #[must_use]
    pub fn pool_state(&self) -> Option<&PoolState> {
        self.coordinator.as_ref().map(Coordinator::state)
    }

    /// Whether this reactor knows the volumes: recovery is complete.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        match self.pool_state() {
            Some(state) => *state == PoolState::Serving,
            None => self.has_opened(),
        }
    }

    /// Whether recovery was completed, whatever has happened since: clients can be answered.
    #[must_use]
    pub fn has_opened(&self) -> bool {
        self.volumes_version > 0
    }

    /// Grows with every change of what [`volumes`](VolumeService::volumes) returns.
    #[must_use]
    pub fn volumes_version(&self) -> u64 {
        self.volumes_version
    }

    /// Whether what is submitted now is performed, and not refused because the pool is not open yet, not any more, or handed over.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        let has_stopped = matches!(self.pool_state(), Some(PoolState::Stopped(_)));
        self.has_opened() && !has_stopped && !self.is_stopping && !self.is_closing()
    }

    /// The coordinator, on reactor 0.
    #[must_use]
    pub fn coordinator(&self) -> Option<&Coordinator> {
        self.coordinator.as_ref()
    }

    /// Whether a stop that was asked for is complete, on reactor 0.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.admin.is_stopped()
    }

    /// Stops the pool in order, on reactor 0: new requests are refused, what was admitted is answered, and a last consistency point leaves
    /// nothing in the log. The end is [`Engine::is_stopped`].
    pub fn drain(&mut self) {
        let (reply, _nobody_waits) = crossbeam_channel::bounded(1);
        self.call(AdminCall { request: AdminRequest::Stop, reply });
    }

    /// What the partner's hosts are to be told next, on reactor 0: no later than what shows it is answered there.
    pub fn next_partner_notice(&mut self) -> Option<ReservationNotice> {
        self.partner_notices.pop_front()
    }

    /// What goes to the partner's portion next, on reactor 0.
    pub fn next_mirror_item(&mut self) -> Option<(LaneIndex, MirrorItem)> {
        self.mirror_items.pop_front()
    }

    /// What has become of the mirror, on reactor 0.
    pub fn next_mirror_news(&mut self) -> Option<PoolMirrorNews> {
        self.mirror_news.pop_front()
    }

    /// What the partner says of a lane: it has acknowledged, or was reached again.
    pub fn order_mirror(&mut self, lane: LaneIndex, order: MirrorOrder) {
        self.post(self.reactor_of(lane), ReactorMessage::Shard(lane, ToShard::Mirror(order)));
    }

    /// How far the mirror is, on reactor 0.
    #[must_use]
    pub fn mirror_progress(&self) -> Option<&MirrorProgress> {
        self.coordinator.as_ref().map(Coordinator::mirror)
    }

    /// The coordinator, on reactor 0.
    pub fn coordinator_mut(&mut self) -> Option<&mut Coordinator> {
        self.coordinator.as_mut()
    }

    /// Closes the pool, on reactor 0: it stops for `reason` wherever it is, every request is answered, and every reactor lets go of its
    /// devices. What was answered is in the log or on the disks. To leave nothing in the log, stop it in order before.
    pub fn close(&mut self, reason: &str) {
        let coordinator = self.coordinator.as_mut().expect("the coordinator lives on reactor 0");
        if self.closing == Closing::No {
            coordinator.stop(reason.to_owned());
            self.closing = Closing::Quieting;
            self.broadcast(|| ReactorMessage::Close);
            // At once: what becomes stable in this turn is not answered by this reactor any more.
            if !planted::is("closed-pool-answers") {
                self.route();
            }
        }
    }

    /// Whether the pool closes: requests are refused.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing != Closing::No
    }

    /// Whether this reactor's part of a pool that closes can be dropped. On reactor 0: whether all others have been.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let is_last = self.index != ReactorIndex(0) || Arc::strong_count(&self.holders) == 1;
        let is_idle = !self.io.is_busy() && self.local.is_empty() && self.outgoing.iter().all(VecDeque::is_empty);
        self.closing == Closing::LettingGo && is_last && is_idle
    }

    /// For `status`: open client connections of this reactor.
    pub fn set_connections(&mut self, count: u64) {
        self.connections = count;
    }

    /// For `status`: how long this reactor did not sleep since it started.
    pub fn set_busy_ns(&mut self, busy_ns: u64) {
        self.busy_ns = busy_ns;
    }

    /// For `status`: the CPU that this reactor is bound to.
    pub fn set_cpu(&mut self, cpu: Option<u64>) {
        self.cpu = cpu;
    }

    /// A device that this reactor must open, by the name that a person gave: answer with [`Engine::device_opened`].
    pub fn wanted_device(&mut self) -> Option<String> {
        self.device_wanted.take()
    }

    /// The device that was wanted, or why it cannot be opened.
    pub fn device_opened(&mut self, device: Result<D, String>) {
        let result = device.map(|device| {
            let blocks = device.info().block_count;
            self.io.add_device(device);
            blocks
        });
        self.post(ReactorIndex(0), ReactorMessage::DeviceOpened(result));
    }

    /// An order of the control side. Only reactor 0 takes them.
    pub fn call(&mut self, call: AdminCall) {
        assert!(self.coordinator.is_some(), "control talks to reactor 0");
        self.admin_call(call);
    }

    /// A turn begins, in which requests may be submitted before [`Self::poll`].
    pub fn begin_turn(&mut self, now: Nanos, wall_clock_ns: u64) {
        self.shards.iter_mut().for_each(|shard| shard.begin_turn(now, wall_clock_ns));
    }

    /// One turn: takes what arrived, goes on with everything, hands out what is to be done. Returns whether anything was.
    pub fn poll(&mut self, now: Nanos, wall_clock_ns: u64) -> bool {
        self.begin_turn(now, wall_clock_ns);
        self.turns += 1;
        let started = *self.started.get_or_insert(now);
        assert!(started <= now, "the clock is monotonic");
        let mut busy = self.receive();
        self.io.poll();
        busy |= self.dispatch(now);
        if let Some(coordinator) = &mut self.coordinator {
            busy |= coordinator.step(&mut self.io, now, wall_clock_ns);
        }
        for shard in &mut self.shards {
            busy |= shard.poll(&mut self.io);
        }
        busy |= self.route();
        if self.is_stopping && self.in_flight == 0 && !std::mem::replace(&mut self.is_drained, true) {
            self.post(ReactorIndex(0), ReactorMessage::Drained);
        }
        self.close_step();
        self.admin_step(now);
        self.io.poll();
        busy |= self.dispatch(now);
        busy | self.send() | self.has_work()
    }

    /// When `poll` has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let coordinator = self.coordinator.as_ref().and_then(Coordinator::next_deadline);
        self.shards.iter().filter_map(Shard::next_deadline).chain(coordinator).min()
    }

    /// Whether something goes on that needs turns without waiting for anybody.
    fn has_work(&self) -> bool {
        let outgoing = self.outgoing.iter().any(|queue| !queue.is_empty());
        outgoing
            || !self.local.is_empty()
            || self.coordinator.as_ref().is_some_and(|coordinator| coordinator.is_busy(&self.io))
            || self.admin.is_busy(&self.io)
            || self.is_closing()
    }

    /// Goes on with the end of the pool. Only what is in flight keeps a reactor from being quiet: its shards have stopped.
    fn close_step(&mut self) {
        let is_quiet = self.in_flight == 0 && self.shards.iter().all(Shard::is_stopped);
        if self.closing == Closing::Quieting && is_quiet {
            self.closing = Closing::Quiet;
            self.post(ReactorIndex(0), ReactorMessage::Quiet);
        }
    }

    fn reactor_is_quiet(&mut self) {
        self.quiet += 1;
        if self.quiet == self.reactor_count {
            self.broadcast(|| ReactorMessage::LetGo);
        }
    }

    fn reactor_of(&self, lane: LaneIndex) -> ReactorIndex {
        ReactorIndex(lane.0 % self.reactor_count)
    }

    fn lane_of(&self, id: ObjectId) -> LaneIndex {
        LaneIndex::of(id, usize::from(self.lane_count))
    }

    fn post(&mut self, to: ReactorIndex, message: ReactorMessage) {
        if to == self.index {
            self.local.push_back(message);
        } else {
            self.outgoing[usize::from(to.0)].push_back(message);
        }
    }

    fn broadcast(&mut self, message: impl Fn() -> ReactorMessage) {
        for index in 0..self.reactor_count {
            self.post(ReactorIndex(index), message());
        }
    }

    fn receive(&mut self) -> bool {
        let mut busy = false;
        while let Some(message) = self.mailbox.receive() {
            busy = true;
            self.deliver(message);
        }
        busy
    }

    fn deliver(&mut self, message: ReactorMessage) {
        match message {
            ReactorMessage::Shard(lane, message) => {
                let shard = self.shards.iter_mut().find(|shard| shard.lane_index() == lane);
                match shard {
                    Some(shard) => shard.receive(message),
                    None => self.missing_lane(lane, &message),
                }
            }
            ReactorMessage::Coordinator(message) => {
                self.coordinator.as_mut().expect("the coordinator lives on reactor 0").receive(message);
            }
            ReactorMessage::Request(origin, request) => self.begin(origin, request),
            ReactorMessage::Reply(reply) => self.end(reply),
            ReactorMessage::Volumes(volumes, lane_count) => {
                self.volumes = volumes.into_iter().map(|volume| (volume.id, volume)).collect();
                self.lane_count = lane_count;
                self.volumes_version += 1;
                self.post(ReactorIndex(0), ReactorMessage::VolumesKnown);
            }
            ReactorMessage::Mirror(lane, item) => self.mirror_items.push_back((lane, item)),
            ReactorMessage::Notice(_) if planted::is("notices-stay-here") => {}
            ReactorMessage::Notice(notice) => keep(&mut self.partner_notices, notice),
            ReactorMessage::VolumesKnown => self.admin.volumes_known(),
            ReactorMessage::StatusQuery(call) => {
                let report = Box::new(self.report());
                self.post(ReactorIndex(0), ReactorMessage::Status(call, report));
            }
            ReactorMessage::Status(call, report) => self.admin.status_arrived(call, *report),
            ReactorMessage::Stopping => {
                self.is_stopping = true;
                self.shards.iter_mut().for_each(Shard::interrupt_onlines);
            }
            ReactorMessage::Drained => self.admin.reactor_drained(),
            ReactorMessage::OpenDevice(name) => self.device_wanted = Some(name),
            ReactorMessage::DeviceOpened(result) => self.device_arrived(result),
            ReactorMessage::CloseDevice(count) => self.io.keep_devices(count),
            ReactorMessage::Close if self.closing == Closing::No => self.closing = Closing::Quieting,
            // Reactor 0 has closed it.
            ReactorMessage::Close => {}
            ReactorMessage::Quiet => self.reactor_is_quiet(),
            ReactorMessage::LetGo => self.closing = Closing::LettingGo,
            ReactorMessage::NotOpened(reason) => {
                self.coordinator.as_mut().expect("the coordinator lives on reactor 0").stop(reason);
            }
        }
    }

    /// Gives a request to the shard that serves its volume.
    fn begin(&mut self, origin: ReactorIndex, request: VolumeRequest) {
        let lane = self.lane_of(request.volume);
        match self.shards.iter_mut().find(|shard| shard.lane_index() == lane) {
            Some(shard) => shard.submit(&mut self.io, origin, request),
            None => {
                let reply = VolumeReply { tag: request.tag, result: Err(VolumeError::NoSuchVolume) };
                self.answer(origin, reply);
            }
        }
    }

    /// Sends a reply to where its request came from.
    fn answer(&mut self, origin: ReactorIndex, reply: VolumeReply) {
        if origin == self.index {
            self.end(reply);
        } else {
            self.post(origin, ReactorMessage::Reply(reply));
        }
    }

    /// A request of this reactor's clients is answered.
    fn end(&mut self, reply: VolumeReply) {
        self.in_flight -= 1;
        self.replies.push_back(reply);
    }

    /// The configuration does not have a lane of the pool (requirement 100: a mismatch is refused).
    fn missing_lane(&mut self, lane: LaneIndex, message: &ToShard) {
        if matches!(message, ToShard::Open(_)) {
            let reason = format!("the pool has a lane {lane} that the configured change log lacks");
            self.post(ReactorIndex(0), ReactorMessage::Coordinator(ToCoordinator::Failed { lane, reason }));
        }
    }

    fn dispatch(&mut self, now: Nanos) -> bool {
        let mut busy = false;
        while let Some(event) = self.io.next_event() {
            busy = true;
            let tag = match &event {
                IoEvent::Fetched { tag, .. } | IoEvent::Done { tag, .. } => *tag,
            };
            match tag.owner {
                CHECK_OWNER => self.admin.check_event(event),
                GROW_OWNER => self.grow_event(event),
                owner if owner < SHARD_OWNERS => {
                    let coordinator = self.coordinator.as_mut().expect("its I/O is made on reactor 0");
                    coordinator.event(&mut self.io, event, now);
                }
                owner => self.shards[usize::from((owner - SHARD_OWNERS) / 2)].event(event),
            }
        }
        busy
    }

    /// Carries messages and replies between the parties of this reactor until none is left.
    fn route(&mut self) -> bool {
        let mut busy = false;
        loop {
            for position in 0..self.shards.len() {
                let lane = self.shards[position].lane_index();
                while let Some(item) = self.shards[position].next_mirror_item() {
                    self.post(ReactorIndex(0), ReactorMessage::Mirror(lane, item));
                }
                while let Some(message) = self.shards[position].next_message() {
                    self.post(ReactorIndex(0), ReactorMessage::Coordinator(message));
                }
                // In front of every reply that shows what they tell of.
                while let Some(notice) = self.shards[position].next_notice() {
                    keep(&mut self.notices, notice);
                    self.post(ReactorIndex(0), ReactorMessage::Notice(notice));
                }
                while let Some((origin, reply)) = self.shards[position].next_reply() {
                    busy = true;
                    self.answer(origin, reply);
                }
            }
            while let Some(event) = self.coordinator.as_mut().and_then(Coordinator::next_event) {
                self.coordinator_event(event);
            }
            if self.local.is_empty() {
                return busy;
            }
            busy = true;
            while let Some(message) = self.local.pop_front() {
                self.deliver(message);
            }
        }
    }

    fn coordinator_event(&mut self, event: CoordinatorEvent) {
        match event {
            CoordinatorEvent::Shard(lane, message) => {
                self.post(self.reactor_of(lane), ReactorMessage::Shard(lane, message));
            }
            CoordinatorEvent::Volumes => {
                let coordinator = self.coordinator.as_ref().expect("it sent the event");
                let volumes: Vec<_> = coordinator
                    .volumes()
                    .values()
                    .map(|volume| VolumeInfo {
                        id: volume.id,
                        name: volume.name.clone(),
                        size_bytes: volume.size_bytes,
                        block_size: volume.block_size,
                        offline: volume.offline.map(|offline| OfflineAt {
                            lane: offline.lane,
                            lsn: offline.lsn,
                            why: offline.cause.to_string(),
                        }),
                    })
                    .collect();
                let lanes = coordinator.superblock().map_or(1, Superblock::lane_count);
                self.broadcast(|| ReactorMessage::Volumes(volumes.clone(), lanes));
                self.admin.volumes_told(self.reactor_count);
            }
            CoordinatorEvent::VolumeDone(call, volume) => {
                let id = volume.as_ref().ok().and_then(Option::as_ref).map(|record| record.id);
                let reactor = id.map_or(0, |id| self.reactor_of(self.lane_of(id)).0);
                self.admin.volume_done(call, volume, reactor);
            }
            CoordinatorEvent::Durable(cp) => self.admin.durable(cp),
            CoordinatorEvent::Joined(result) => self.device_joined(result),
            CoordinatorEvent::MirrorInStep => self.mirror_news.push_back(PoolMirrorNews::InStep),
            CoordinatorEvent::MirrorLost(reason) => self.mirror_news.push_back(PoolMirrorNews::Lost(reason)),
            CoordinatorEvent::Serving => tracing::info!("the pool serves"),
            CoordinatorEvent::Stopped(reason) => {
                if self.is_closing() {
                    tracing::info!(%reason, "the pool is closed");
                } else {
                    tracing::error!(%reason, "the pool has stopped");
                }
                self.admin.pool_stopped(&reason);
            }
        }
    }

    fn send(&mut self) -> bool {
        let mut busy = false;
        for (queue, peer) in self.outgoing.iter_mut().zip(&self.peers) {
            while let Some(message) = queue.pop_front() {
                match peer.send(message) {
                    Ok(()) => busy = true,
                    Err(SendError::Full(_)) if planted::is("mailbox-loses") => {}
                    Err(SendError::Full(message)) => {
                        queue.push_front(message);
                        break;
                    }
                    Err(SendError::Closed(_)) => {}
                }
            }
        }
        busy
    }

    fn refusal(&self, tag: RequestTag) -> Option<VolumeReply> {
        self.is_stopping.then_some(VolumeReply { tag, result: Err(VolumeError::ShuttingDown) })
    }
}

impl<D: BlockDevice, L: LogMemory> VolumeService for Engine<D, L> {
    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn volumes(&self) -> Vec<VolumeInfo> {
        let mut volumes: Vec<_> = self.volumes.values().cloned().collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    fn volume(&self, name: &str) -> Option<VolumeInfo> {
        let named = self.volumes.values().find(|volume| volume.name == name);
        named.or_else(|| self.volumes.values().next().filter(|_| name.is_empty())).cloned()
    }

    fn shape(&self, id: ObjectId) -> Option<VolumeShape> {
        self.volumes.get(&id).map(VolumeInfo::shape)
    }

    fn reach(&self, _volume: ObjectId) -> Reach {
        if self.takes_requests() { Reach::Here } else { Reach::Nobody }
    }

    fn openings(&self) -> [u64; 2] {
        [1, 0]
    }

    fn has_room(&self, _volume: ObjectId) -> bool {
        self.in_flight < self.limits.requests_max
    }

    fn submit(&mut self, request: VolumeRequest) {
        if let Some(reply) = self.refusal(request.tag) {
            self.replies.push_back(reply);
            return;
        }
        self.in_flight += 1;
        let to = self.reactor_of(self.lane_of(request.volume));
        // With nothing ahead of it a request of this reactor's goes straight to its shard, as it would at the next turn.
        if to == self.index && self.local.is_empty() && self.mailbox.is_empty() {
            self.begin(self.index, request);
        } else {
            self.post(to, ReactorMessage::Request(self.index, request));
        }
    }

    /// What has been submitted here is in line to be performed.
    fn abandon(&mut self, _session: u64) {}

    fn has_handed_on(&self) -> bool {
        self.local.is_empty() && self.outgoing.iter().all(VecDeque::is_empty)
    }

    fn poll_reply(&mut self) -> Option<VolumeReply> {
        self.replies.pop_front()
    }

    fn poll_notice(&mut self) -> Option<ReservationNotice> {
        self.notices.pop_front()
    }
}

/// They are taken in every turn, and in one turn there are never so many; of a node without a front end that tells hosts nobody takes them.
fn keep(notices: &mut VecDeque<ReservationNotice>, notice: ReservationNotice) {
    if notices.len() < ENGINE_NOTICES_MAX {
        notices.push_back(notice);
    }
}
