//! The coordinator of a pool: one per pool, on one reactor. It owns the superblock, the object table, the space map and the lists, and
//! takes the pool from one consistency point to the next. See the [module](super) for states and invariants.

use super::{
    lists::{ListWriter, push_joined, total},
    map::{MapResult, MapUpdate},
    message::{Grant, MirrorNews, MirrorOrder, ShardOpening, ShardReport, ToCoordinator, ToShard, VolumeChange},
    mirroring::MirrorProgress,
    opening::{OpenPool, Opening},
};
use crate::{
    alloc::{
        budget::Budget,
        geometry::{Geometry, reserved_for_maps},
        space_map::{Ready, SpaceMap},
    },
    base::{BlockAddress, CpNumber, Epoch, LaneIndex, ObjectId, limits::DEVICES_MAX, planted},
    changelog::throttle::CHECKPOINT_AGE,
    format::{
        chain::{AddressRange, Subtree, entries_per_block},
        object::{VolumeRecord, is_valid_name, is_valid_size},
        reference::{BlockKey, BlockRef, node},
        superblock::{DEVICE_BLOCKS_MIN, PoolDevice, Superblock, TreeRoot},
    },
    fs::directory::{Directory, ObjectUpdate, VOLUMES_MAX},
    pool::{
        io::{Io, IoEvent, Tag},
        superblocks::CommitSuperblock,
        tree::{Aux, TreeUpdate},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};
use twinlog_device::{BlockDevice, Nanos};

/// Nodes of cut-off subtrees that one consistency point frees: together up to 2 GiB of data.
const REAP_NODES_MAX: usize = 4096;
/// Nodes of cut-off subtrees fetched ahead.
const REAP_AHEAD: usize = 32;
/// Cut-off subtrees that are kept although their root cannot be read: one block of the reap list.
const UNREADABLE_MAX: usize = entries_per_block::<Subtree>();

/// Owners of the coordinator's I/O events on its reactor.
#[derive(Clone, Copy, Debug)]
pub struct Owners {
    /// Everything but trees.
    pub main: u16,
    /// Trees that it updates.
    pub update: u16,
}

/// How a pool stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Superblock and maps are being read, or lanes replayed.
    Opening,
    /// Volumes are served.
    Serving,
    /// Nothing more is accepted.
    Stopped(String),
}

enum Phase {
    Gather,
    Reap {
        /// Nodes done.
        nodes: usize,
        /// Length of the freed list at which it is enough.
        ranges_max: usize,
    },
    Directory(Option<TreeUpdate>),
    Map(Box<MapUpdate>),
    Lists(Box<Lists>),
    Commit(CommitSuperblock),
}

/// Both lists being written.
struct Lists {
    freed: ListWriter<AddressRange>,
    reap: ListWriter<Subtree>,
    /// Writes under way.
    writes: usize,
    next_write: u64,
}

/// A consistency point in the making.
struct Run {
    cp: CpNumber,
    /// The epoch in which every lane was when it froze: what it logged since is at least of this one (rule R4).
    epoch: Epoch,
    phase: Phase,
    started: Nanos,
    reports: BTreeMap<LaneIndex, ShardReport>,
    space_wanted: VecDeque<(LaneIndex, u64)>,
    freed: Vec<AddressRange>,
    reap: Vec<Subtree>,
    object_table: TreeRoot,
    /// Whether it frees blocks of volumes, beside the few that every consistency point replaces.
    frees_data: bool,
    allocated_blocks: u64,
    reserved_blocks: u64,
    map: Option<MapResult>,
}

/// A volume call of the control side that waits for its shard.
struct VolumeCall {
    id: ObjectId,
    name: Option<String>,
}

/// What the coordinator tells its reactor.
#[derive(Clone, Debug)]
pub enum CoordinatorEvent {
    /// A message for a shard.
    Shard(LaneIndex, ToShard),
    /// The set of volumes, or one of them, changed.
    Volumes,
    /// A volume call has ended.
    VolumeDone(u64, Result<Option<VolumeRecord>, String>),
    /// A consistency point is durable.
    Durable(CpNumber),
    /// The device of [`Coordinator::join`] belongs to the pool, or why it does not.
    Joined(Result<(), String>),
    /// The pool serves: recovery is complete.
    Serving,
    /// The partner's portion has everything that was answered.
    MirrorInStep,
    /// What the partner says of its portion cannot be.
    MirrorLost(String),
    /// The pool has stopped.
    Stopped(String),
}

/// Figures of the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoordinatorFigures {
    /// When the newest consistency point became durable.
    pub cp_at: Nanos,
    /// How long it took.
    pub cp_duration: Duration,
    /// Changes that recovery performed.
    pub replayed_records: u64,
}

/// The coordinator.
pub struct Coordinator {
    owners: Owners,
    budget: Budget,
    grant: Grant,
    mirror: MirrorProgress,
    state: PoolState,
    opening: Option<Opening>,
    superblock: Option<Superblock>,
    directory: Directory,
    space: SpaceMap,
    freed: Vec<AddressRange>,
    reap: Vec<Subtree>,
    /// Of the reap list, what is not tried again before the pool is opened anew: its root could not be read. At most [`UNREADABLE_MAX`].
    unreadable: Vec<Subtree>,
    list_blocks: Vec<AddressRange>,
    run: Option<Run>,
    wanted: bool,
    /// When another consistency point gives freed space back, if nothing else asks for one before.
    settles_at: Option<Nanos>,
    to_replay: BTreeSet<LaneIndex>,
    volumes: BTreeMap<ObjectId, VolumeRecord>,
    names: BTreeSet<String>,
    next_object: ObjectId,
    calls: BTreeMap<u64, VolumeCall>,
    next_call: u64,
    events: VecDeque<CoordinatorEvent>,
    figures: CoordinatorFigures,
    holds_frees: bool,
    /// A device that joins with the next consistency point.
    joining: Option<PoolDevice>,
    /// Areas whose frees one consistency point clears: what memory has room for.
    clear_areas_max: usize,
}

impl Coordinator {
    /// Starts opening the pool on the devices of `io`; it has stopped at once if one of them is too small.
    pub fn open<D: BlockDevice>(io: &mut Io<D>, owners: Owners, budget: Budget, grant: Grant) -> Self {
        let (opening, failure) = match Opening::new(io, owners.main) {
            Ok(opening) => (Some(opening), None),
            Err(error) => (None, Some(error)),
        };
        let mut coordinator = Self {
            owners,
            budget,
            grant,
            mirror: if grant.is_mirrored { MirrorProgress::InStep } else { MirrorProgress::Off },
            state: PoolState::Opening,
            opening,
            superblock: None,
            directory: Directory::default(),
            space: SpaceMap::new(Geometry::new(&[]), TreeRoot::default()),
            freed: Vec::new(),
            reap: Vec::new(),
            unreadable: Vec::new(),
            list_blocks: Vec::new(),
            run: None,
            wanted: false,
            settles_at: None,
            to_replay: BTreeSet::new(),
            volumes: BTreeMap::new(),
            names: BTreeSet::new(),
            next_object: ObjectId(1),
            calls: BTreeMap::new(),
            next_call: 0,
            events: VecDeque::new(),
            figures: CoordinatorFigures::default(),
            holds_frees: false,
            joining: None,
            clear_areas_max: (io.blocks().block_count() / 64).clamp(1, 1024),
        };
        if let Some(error) = failure {
            coordinator.stop(error.to_string());
        }
        coordinator
    }

    /// How the pool stands.
    #[must_use]
    pub fn state(&self) -> &PoolState {
        &self.state
    }

    /// The newest durable superblock; `None` until it has been read.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblock.as_ref()
    }

    /// Every volume that exists, as of the newest stable change.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<ObjectId, VolumeRecord> {
        &self.volumes
    }

    /// How the pool is cut into areas.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.space.geometry()
    }

    /// Figures for people.
    #[must_use]
    pub fn figures(&self) -> CoordinatorFigures {
        self.figures
    }

    /// Name of the phase in progress, for people.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        match self.run.as_ref().map(|run| &run.phase) {
            None => "idle",
            Some(Phase::Gather) => "gather",
            Some(Phase::Reap { .. }) => "reap",
            Some(Phase::Directory(_)) => "directory",
            Some(Phase::Map(_)) => "map",
            Some(Phase::Lists(_)) => "lists",
            Some(Phase::Commit(_)) => "commit",
        }
    }

    /// Blocks freed that consistency points to come bring back, as far as known.
    #[must_use]
    pub fn deferred_blocks(&self) -> u64 {
        total(&self.freed) + self.reap_blocks()
    }

    fn reap_blocks(&self) -> u64 {
        self.reap.iter().map(|subtree| u64::from(subtree.root.aux())).sum()
    }

    /// The next thing to tell.
    pub fn next_event(&mut self) -> Option<CoordinatorEvent> {
        self.events.pop_front()
    }

    /// Asks for a consistency point: at once, or after the one in progress.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// Keeps every block that the newest consistency point reaches as it is until it is released, so that it can be read through while
    /// later ones are taken: freed blocks stay in the freed list. Ends by itself when consistency points need the space:
    /// [`Coordinator::holds_frees`]. `None` while a consistency point is in progress.
    pub fn hold_frees(&mut self) -> Option<Superblock> {
        let superblock = self.superblock.as_ref().filter(|_| self.run.is_none() && self.state == PoolState::Serving)?;
        self.holds_frees = true;
        Some(superblock.clone())
    }

    /// Lets a device join, which every reactor reaches as the last one and whose superblocks' places are empty, with the next consistency
    /// point that begins to be committed. The end is [`CoordinatorEvent::Joined`].
    ///
    /// # Errors
    /// A sentence: why it is refused.
    pub fn join(&mut self, device: PoolDevice) -> Result<(), String> {
        let superblock = self.superblock.as_ref().filter(|_| self.state == PoolState::Serving);
        let Some(superblock) = superblock else { return Err("the pool does not serve".to_owned()) };
        if superblock.devices.len() >= DEVICES_MAX || self.joining.is_some() {
            return Err(format!("a pool has at most {DEVICES_MAX} devices, and they join one by one"));
        }
        if !(DEVICE_BLOCKS_MIN..BlockAddress::DEVICE_BLOCKS_MAX).contains(&device.block_count) {
            return Err(format!("a device has at least {DEVICE_BLOCKS_MIN} blocks of 4 KiB"));
        }
        self.joining = Some(device);
        self.want();
        Ok(())
    }

    /// Whether freed blocks stay as they are.
    #[must_use]
    pub fn holds_frees(&self) -> bool {
        self.holds_frees
    }

    /// Ends [`Coordinator::hold_frees`].
    pub fn release_frees(&mut self) {
        self.holds_frees = false;
    }

    /// The epoch that the pool is in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.grant.epoch
    }

    /// How far the mirror is.
    #[must_use]
    pub fn mirror(&self) -> &MirrorProgress {
        &self.mirror
    }

    /// Begins to bring the mirror in step, in a portion with this unit. The end is [`CoordinatorEvent::MirrorInStep`].
    ///
    /// # Panics
    /// When the pool does not serve, or is mirrored.
    pub fn start_mirroring(&mut self, unit_bytes: u32) {
        assert_eq!(self.state, PoolState::Serving, "a pool that serves is mirrored");
        assert_eq!(self.mirror, MirrorProgress::Off, "mirroring is ended before it starts anew");
        self.mirror = MirrorProgress::Starting(self.lanes().into_iter().collect());
        self.order_mirror(MirrorOrder::Start { unit_bytes });
    }

    /// The register says that the mirror is in step, at `epoch`.
    pub fn mirror_is_in_sync(&mut self, epoch: Epoch) {
        assert!(epoch >= self.grant.epoch, "epochs do not fall");
        self.grant.epoch = epoch;
        self.order_mirror(MirrorOrder::InSync(epoch));
    }

    /// The register says that the mirror is stale, at `epoch`: answers wait for nobody.
    pub fn mirror_is_stale(&mut self, epoch: Epoch) {
        assert!(epoch >= self.grant.epoch, "epochs do not fall");
        self.grant.epoch = epoch;
        self.mirror = MirrorProgress::Off;
        self.order_mirror(MirrorOrder::Alone(epoch));
    }

    fn order_mirror(&mut self, order: MirrorOrder) {
        for lane in self.lanes() {
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Mirror(order)));
        }
    }

    fn mirror_news(&mut self, lane: LaneIndex, news: MirrorNews) {
        match news {
            MirrorNews::Started => {
                if self.mirror.started(lane) {
                    let cp = self.superblock.as_ref().expect("it serves").cp.next();
                    // One in progress may have frozen before.
                    let covering = if self.run.is_some() { cp.next() } else { cp };
                    self.mirror = MirrorProgress::Covering(covering);
                    self.want();
                }
            }
            MirrorNews::CaughtUp => {
                if self.mirror.caught_up(lane) {
                    self.events.push_back(CoordinatorEvent::MirrorInStep);
                }
            }
            MirrorNews::Lost(reason) => self.events.push_back(CoordinatorEvent::MirrorLost(reason)),
        }
    }

    /// Whether a consistency point is in progress or asked for.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.run.is_some() || self.wanted || self.state == PoolState::Opening
    }

    /// When [`Coordinator::step`] has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.settles_at.filter(|_| self.state == PoolState::Serving && !self.holds_frees)
    }

    /// Begins to make, resize or delete a volume. The end is [`CoordinatorEvent::VolumeDone`] with the returned number.
    ///
    /// # Errors
    /// A sentence: why it is refused.
    pub fn change_volume(&mut self, name: &str, change: VolumeChange) -> Result<u64, String> {
        if self.state != PoolState::Serving {
            return Err("the pool does not serve yet, or any more".to_owned());
        }
        let known = self.volumes.values().find(|volume| volume.name == name).map(|volume| volume.id);
        let (id, name) = match &change {
            VolumeChange::Create { size_bytes, .. } => {
                if !is_valid_name(name) {
                    return Err(format!(
                        "'{name}' is no name: 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit"
                    ));
                }
                if !is_valid_size(*size_bytes) {
                    return Err(format!("{size_bytes} bytes is no size: a multiple of 4096, at most 1 PiB"));
                }
                if known.is_some() || self.names.contains(name) {
                    return Err(format!("a volume called '{name}' exists"));
                }
                if self.volumes.len() + self.calls.len() >= VOLUMES_MAX {
                    return Err(format!("a pool has at most {VOLUMES_MAX} volumes"));
                }
                let id = self.next_object;
                self.next_object = ObjectId(id.0 + 1);
                self.names.insert(name.to_owned());
                (id, Some(name.to_owned()))
            }
            VolumeChange::Resize(size_bytes) if !is_valid_size(*size_bytes) => {
                return Err(format!("{size_bytes} bytes is no size: a multiple of 4096, at most 1 PiB"));
            }
            VolumeChange::Resize(_) | VolumeChange::Delete => {
                (known.ok_or_else(|| format!("no volume is called '{name}'"))?, None)
            }
        };
        self.next_call += 1;
        let call = self.next_call;
        self.calls.insert(call, VolumeCall { id, name });
        self.events.push_back(CoordinatorEvent::Shard(self.lane_of(id), ToShard::Volume { call, id, change }));
        Ok(call)
    }

    /// The lane that a volume's changes go to.
    #[must_use]
    pub fn lane_of(&self, id: ObjectId) -> LaneIndex {
        LaneIndex::of(id, self.superblock.as_ref().map_or(1, |superblock| superblock.applied.len()))
    }

    /// A message from a shard.
    pub fn receive(&mut self, message: ToCoordinator) {
        match message {
            ToCoordinator::Wanted => self.want(),
            ToCoordinator::Replayed { lane, records, volumes, object_max } => {
                self.to_replay.remove(&lane);
                self.figures.replayed_records += records;
                if !planted::is("object-id-reused") {
                    self.next_object = self.next_object.max(ObjectId(object_max.0 + 1));
                }
                self.volumes.extend(volumes.into_iter().map(|volume| (volume.id, volume)));
                self.wanted |= self.to_replay.is_empty();
            }
            ToCoordinator::NeedSpace { lane, blocks } => {
                // After a failure the consistency point is gone, and a shard that has not heard of it yet goes on.
                if let Some(run) = &mut self.run {
                    run.space_wanted.push_back((lane, blocks));
                }
            }
            ToCoordinator::Written { lane, report } => {
                if let Some(run) = &mut self.run {
                    run.reports.insert(lane, *report);
                }
            }
            ToCoordinator::VolumeDone { call, volume } => self.volume_done(call, volume),
            ToCoordinator::Mirror { lane, news } => self.mirror_news(lane, news),
            ToCoordinator::Failed { lane, reason } => self.stop(format!("lane {lane}: {reason}")),
        }
    }

    /// An I/O event of one of the coordinator's owners.
    pub fn event<D: BlockDevice>(&mut self, io: &mut Io<D>, event: IoEvent, now: Nanos) {
        if let Some(opening) = &mut self.opening {
            if let Err(error) = opening.event(io, event) {
                self.stop(error.to_string());
            }
            return;
        }
        if let Err(reason) = self.run_event(io, event, now) {
            self.stop(reason);
        }
    }

    /// Goes on for one turn.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, now: Nanos, wall_clock_ns: u64) {
        if let Some(opening) = &mut self.opening {
            match opening.step(io) {
                Ok(None) => {}
                Ok(Some(pool)) => self.opened(pool),
                Err(error) => self.stop(error.to_string()),
            }
            return;
        }
        if matches!(self.state, PoolState::Stopped(_)) {
            return;
        }
        self.wanted |= self.next_deadline().is_some_and(|at| at <= now);
        if self.run.is_none() && self.wanted && self.to_replay.is_empty() {
            self.start(now);
        }
        if self.run.is_some()
            && let Err(reason) = self.run_step(io, wall_clock_ns)
        {
            self.stop(reason);
        }
    }

    /// Stops the pool: nothing more is written.
    pub fn stop(&mut self, reason: String) {
        if matches!(self.state, PoolState::Stopped(_)) {
            return;
        }
        self.opening = None;
        self.run = None;
        for lane in self.lanes() {
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Stop(reason.clone())));
        }
        self.events.push_back(CoordinatorEvent::Stopped(reason.clone()));
        self.state = PoolState::Stopped(reason);
    }

    fn lanes(&self) -> Vec<LaneIndex> {
        let count = self.superblock.as_ref().map_or(0, |superblock| superblock.applied.len());
        (0..u16::try_from(count).expect("at most LANES_MAX")).map(LaneIndex).collect()
    }

    fn opened(&mut self, pool: OpenPool) {
        self.opening = None;
        if self.grant.epoch == Epoch(0) {
            self.grant.epoch = pool.superblock.epoch;
        }
        let (granted, found) = (self.grant.epoch, pool.superblock.epoch);
        if granted < found {
            return self.stop(format!("the pool is in epoch {found} already, and this node was granted {granted}"));
        }
        let geometry = Geometry::new(&pool.superblock.devices);
        self.next_object = pool.superblock.next_object;
        self.directory = pool.directory;
        self.freed = pool.freed;
        self.reap = pool.reap;
        self.list_blocks = pool.list_blocks;
        self.space = SpaceMap::new(geometry, pool.superblock.space_map);
        self.superblock = Some(pool.superblock.clone());
        self.budget.reset(pool.superblock.free_blocks, self.kept_blocks(), self.reap_blocks());
        let lane_count = u16::try_from(pool.superblock.applied.len()).expect("at most LANES_MAX");
        for lane in self.lanes() {
            let own = |volume: &&VolumeRecord| self.lane_of(volume.id) == lane;
            let opening = ShardOpening {
                pool: pool.superblock.pool,
                lane_count,
                role: self.grant.role,
                epoch_min: pool.superblock.epoch,
                epoch: self.grant.epoch,
                is_mirrored: self.grant.is_mirrored,
                cp: pool.superblock.cp,
                applied: pool.superblock.applied[lane.index()],
                forwarded: pool.superblock.forwarded[lane.index()].clone(),
                volumes: self.directory.volumes().filter(own).cloned().collect(),
            };
            self.to_replay.insert(lane);
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Open(Box::new(opening))));
        }
    }

    /// What consistency points need for the pool as it is now.
    fn kept_blocks(&self) -> u64 {
        reserved_for_maps(self.space.geometry(), self.directory.block_count(), total(&self.list_blocks))
    }

    fn volume_done(&mut self, call: u64, volume: Result<Option<VolumeRecord>, String>) {
        let Some(VolumeCall { id, name }) = self.calls.remove(&call) else { return };
        if let Some(name) = name {
            self.names.remove(&name);
        }
        match &volume {
            Ok(Some(record)) => drop(self.volumes.insert(id, record.clone())),
            Ok(None) => drop(self.volumes.remove(&id)),
            Err(_) => {}
        }
        self.events.push_back(CoordinatorEvent::Volumes);
        self.events.push_back(CoordinatorEvent::VolumeDone(call, volume));
    }

    fn start(&mut self, now: Nanos) {
        self.wanted = false;
        self.settles_at = None;
        // Nothing comes back while frees are held: a pool that is nearly full cannot afford it.
        self.holds_frees &= !self.budget.is_overdrawn();
        let superblock = self.superblock.as_ref().expect("opened");
        let cp = superblock.cp.next();
        self.run = Some(Run {
            cp,
            epoch: self.grant.epoch,
            phase: Phase::Gather,
            started: now,
            reports: BTreeMap::new(),
            space_wanted: VecDeque::new(),
            freed: Vec::new(),
            reap: Vec::new(),
            object_table: superblock.object_table,
            frees_data: false,
            allocated_blocks: 0,
            reserved_blocks: 0,
            map: None,
        });
        for lane in self.lanes() {
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Freeze(cp)));
        }
    }

    fn run_event<D: BlockDevice>(&mut self, io: &mut Io<D>, event: IoEvent, now: Nanos) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let (tag, is_update) = match &event {
            IoEvent::Fetched { tag, .. } | IoEvent::Done { tag, .. } => (*tag, tag.owner == self.owners.update),
        };
        if is_update {
            let update = match &mut run.phase {
                Phase::Directory(update) => update.as_mut(),
                Phase::Map(map) => map.update(),
                _ => None,
            };
            let update = update.expect("only the update's own phases have such events");
            match event {
                IoEvent::Fetched { key, result, .. } => update.fetched(key, result?),
                IoEvent::Done { result, .. } => {
                    result.map_err(|error| error.to_string())?;
                    update.written();
                }
            }
            return Ok(());
        }
        match event {
            // Blocks of the maps arrive through the cache; an unreadable one stops the pool, if it is not freed anyway.
            IoEvent::Fetched { key, result: Err(reason), .. } => self.set_aside(key, reason),
            IoEvent::Fetched { .. } => Ok(()),
            IoEvent::Done { result, .. } => match &mut run.phase {
                Phase::Lists(lists) => {
                    result.map_err(|error| error.to_string())?;
                    lists.writes -= 1;
                    Ok(())
                }
                Phase::Commit(commit) => {
                    if commit.event(io, tag, result).map_err(|error| error.to_string())? {
                        self.committed(now);
                    }
                    Ok(())
                }
                _ => Err("an I/O event that nobody waits for".to_owned()),
            },
        }
    }

    /// Keeps a subtree whose root cannot be read in the reap list, and out of the way of the others: the error may pass, or the block be
    /// repaired.
    fn set_aside(&mut self, root: BlockKey, reason: String) -> Result<(), String> {
        let position = self.reap.iter().position(|subtree| subtree.root.key() == root).ok_or(&reason)?;
        let subtree = self.reap.remove(position);
        if self.unreadable.len() < UNREADABLE_MAX {
            tracing::error!(%reason, "a node of freed blocks cannot be read: they stay in use until it can when the pool is opened");
            self.unreadable.push(subtree);
        } else {
            tracing::error!(%reason, "one more node of freed blocks cannot be read: they stay in use for ever");
        }
        Ok(())
    }

    fn run_step<D: BlockDevice>(&mut self, io: &mut Io<D>, wall_clock_ns: u64) -> Result<(), String> {
        let run = self.run.as_mut().expect("called with one");
        match &mut run.phase {
            Phase::Gather => self.gather(io),
            Phase::Reap { .. } => self.reap_step(io),
            Phase::Directory(_) => self.directory_step(io),
            Phase::Map(map) => {
                if map.step(io, &mut self.space)? {
                    self.begin_lists();
                }
                Ok(())
            }
            Phase::Lists(lists) => {
                let owner = self.owners.main;
                let mut tag = || {
                    lists.next_write += 1;
                    Tag { owner, id: lists.next_write }
                };
                lists.writes += lists.freed.step(io, &mut tag) + lists.reap.step(io, &mut tag);
                if let (Some(freed), Some(reap), 0) =
                    (lists.freed.first_block(), lists.reap.first_block(), lists.writes)
                {
                    self.commit(io, wall_clock_ns, (freed, reap));
                }
                Ok(())
            }
            Phase::Commit(_) => Ok(()),
        }
    }

    /// Grants space, and waits until every shard has written.
    fn gather<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<(), String> {
        let lane_count = self.superblock.as_ref().expect("opened").applied.len();
        let run = self.run.as_mut().expect("called with one");
        while let Some(&(lane, blocks)) = run.space_wanted.front() {
            match self.space.ensure(io, Tag { owner: self.owners.main, id: 0 }, blocks) {
                Ready::Pending => return Ok(()),
                Ready::Never => return Err(format!("{blocks} blocks were reserved and are not there")),
                Ready::Yes => {}
            }
            let ranges = self.space.allocate(blocks);
            run.allocated_blocks += blocks;
            run.space_wanted.pop_front();
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Space(ranges)));
        }
        if run.reports.len() < lane_count {
            return Ok(());
        }
        for report in run.reports.values_mut() {
            run.frees_data |= !report.freed.is_empty();
            run.freed.append(&mut report.freed);
            run.reap.append(&mut report.reap);
            run.reserved_blocks += report.reserved_blocks;
            for range in report.unused.drain(..).filter(|_| !planted::is("unused-space-leaks")) {
                self.space.clear(&range)?;
                run.allocated_blocks -= range.count;
            }
            for update in report.objects.drain(..) {
                if let ObjectUpdate::Put(record) = &update
                    && let Some(volume) = self.volumes.get_mut(&record.id)
                {
                    volume.allocated_blocks = record.allocated_blocks;
                }
                self.directory.apply(update);
            }
        }
        if !planted::is("list-blocks-leak") {
            run.freed.append(&mut self.list_blocks);
        }
        self.reap.append(&mut run.reap);
        let list_blocks = usize::try_from(self.budget.kept() / 4).expect("a small part of the pool");
        let ranges_max = run.freed.len() + list_blocks * entries_per_block::<AddressRange>();
        run.phase = Phase::Reap { nodes: 0, ranges_max };
        Ok(())
    }

    /// Frees subtrees that were cut off, depth first: a bounded number of nodes, and not more ranges than the freed list has space kept for.
    fn reap_step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<(), String> {
        let run = self.run.as_mut().expect("called with one");
        let Phase::Reap { nodes, ranges_max } = &mut run.phase else { unreachable!("called in this phase") };
        let tag = Tag { owner: self.owners.main, id: 0 };
        for subtree in self.reap.iter().rev().take(REAP_AHEAD).filter(|subtree| subtree.levels > 0) {
            let _ = io.fetch(&subtree.root, tag);
        }
        for _ in 0..REAP_AHEAD {
            let is_enough = *nodes >= REAP_NODES_MAX || run.freed.len() >= *ranges_max;
            let Some(subtree) = self.reap.last().copied().filter(|_| !is_enough) else {
                run.phase = Phase::Directory(None);
                return Ok(());
            };
            if subtree.levels > 0 {
                let Some(block) = io.fetch(&subtree.root, tag) else { return Ok(()) };
                self.reap.pop();
                for child in node(&block).iter().filter(|child| !child.is_hole()) {
                    if subtree.levels == 1 {
                        push_joined(&mut run.freed, child.address());
                    } else {
                        self.reap.push(Subtree { root: *child, levels: subtree.levels - 1 });
                    }
                }
            } else {
                self.reap.pop();
            }
            if !planted::is("reap-leaks-nodes") {
                push_joined(&mut run.freed, subtree.root.address());
            }
            *nodes += 1;
            run.frees_data = true;
        }
        Ok(())
    }

    /// Writes the changed blocks of the object table.
    fn directory_step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<(), String> {
        let run = self.run.as_mut().expect("called with one");
        let Phase::Directory(update) = &mut run.phase else { unreachable!("called in this phase") };
        let Some(update) = update else {
            if !self.directory.is_dirty() {
                return self.begin_map();
            }
            if let Some((dirty, levels)) = self.directory.take_dirty(|| io.allocate()) {
                let purpose = (self.owners.update, Aux::Blocks);
                run.phase =
                    Phase::Directory(Some(TreeUpdate::new(run.object_table, levels, Rc::new(dirty), run.cp, purpose)));
            }
            return Ok(());
        };
        update.step(io, 64);
        if update.is_ready() {
            let needed = update.needed_blocks();
            match self.space.ensure(io, Tag { owner: self.owners.main, id: 0 }, needed) {
                Ready::Pending => {}
                Ready::Never => return Err("no space is left for the object table".to_owned()),
                Ready::Yes => {
                    run.allocated_blocks += needed;
                    update.grant(self.space.allocate(needed));
                }
            }
        } else if update.is_done() {
            run.freed.append(&mut update.take_freed());
            let Phase::Directory(Some(update)) = std::mem::replace(&mut run.phase, Phase::Gather) else {
                unreachable!("matched above")
            };
            let result = update.into_result();
            run.object_table = result.tree;
            for range in result.unused {
                self.space.clear(&range)?;
                run.allocated_blocks -= range.count;
            }
            return self.begin_map();
        }
        Ok(())
    }

    fn begin_map(&mut self) -> Result<(), String> {
        let run = self.run.as_mut().expect("called with one");
        let numbers = (run.cp, self.owners.update, Tag { owner: self.owners.main, id: 0 });
        let mut last_freed = self.freed.clone();
        let mut freed = std::mem::take(&mut run.freed);
        // Addresses come from nodes, whose checksums are right: what wrote them may not have been.
        if let Some(range) = freed.iter().find(|range| !self.space.geometry().contains(range.first, range.count)) {
            return Err(format!("a tree names block {}, which the pool does not have for data", range.first));
        }
        if self.holds_frees {
            freed.append(&mut last_freed);
        }
        if planted::is("free-too-early") {
            last_freed.append(&mut freed);
        }
        let reap = self.unreadable.iter().chain(&self.reap).copied().collect();
        let map = MapUpdate::new(&self.space, (numbers, self.clear_areas_max), last_freed, freed, reap)?;
        run.phase = Phase::Map(Box::new(map));
        Ok(())
    }

    fn begin_lists(&mut self) {
        let run = self.run.as_mut().expect("called with one");
        let Phase::Map(map) = std::mem::replace(&mut run.phase, Phase::Gather) else {
            unreachable!("called after the map")
        };
        let result = map.into_result();
        run.allocated_blocks += result.allocated_blocks;
        let freed = ListWriter::new(result.freed.clone(), &result.freed_places, run.cp);
        let reap = ListWriter::new(result.reap.clone(), &result.reap_places, run.cp);
        run.phase = Phase::Lists(Box::new(Lists { freed, reap, writes: 0, next_write: 0 }));
        run.map = Some(result);
    }

    fn commit<D: BlockDevice>(&mut self, io: &mut Io<D>, wall_clock_ns: u64, (freed, reap): (BlockRef, BlockRef)) {
        let run = self.run.as_mut().expect("called with one");
        let map = run.map.as_ref().expect("written before");
        let mut next = self.superblock.clone().expect("opened");
        next.cp = run.cp;
        next.epoch = run.epoch;
        next.time_ns = wall_clock_ns;
        next.next_object = self.next_object;
        next.free_blocks = next.free_blocks + map.cleared_blocks - run.allocated_blocks;
        next.deferred_blocks = total(&map.freed);
        next.object_table = run.object_table;
        next.space_map = map.tree;
        next.freed = freed;
        next.reap = reap;
        for (lane, report) in &run.reports {
            next.applied[lane.index()] = report.applied;
            if let Some(forwarded) = &report.forwarded {
                next.forwarded[lane.index()].clone_from(forwarded);
            }
        }
        run.phase = Phase::Commit(CommitSuperblock::new(io, self.owners.main, next, self.joining));
    }

    fn committed(&mut self, now: Nanos) {
        let run = self.run.take().expect("called with one");
        (self.figures.cp_at, self.figures.cp_duration) = (now, now.since(run.started));
        let Phase::Commit(commit) = run.phase else { unreachable!("called after the commit") };
        let map = run.map.expect("written before");
        let (superblock, joined) = commit.into_parts();
        self.superblock = Some(superblock);
        let is_behind = map.cleared_blocks < total(&self.freed);
        self.freed = map.freed;
        self.list_blocks = map.freed_places.into_iter().chain(map.reap_places).collect();
        self.space.committed(map.tree);
        if let Some(result) = joined {
            self.joined(result.map_err(|error| error.to_string()));
        }
        let free_blocks = self.superblock.as_ref().expect("just stored").free_blocks;
        self.budget.settle(run.reserved_blocks, free_blocks, self.kept_blocks());
        self.budget.set_returning(self.reap_blocks());
        for lane in self.lanes() {
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Durable(run.cp)));
        }
        self.events.push_back(CoordinatorEvent::Durable(run.cp));
        let lanes = self.lanes();
        if let Some(order) = self.mirror.durable(run.cp, &lanes) {
            self.order_mirror(order);
        }
        if self.state == PoolState::Opening {
            self.state = PoolState::Serving;
            self.events.push_back(CoordinatorEvent::Volumes);
            self.events.push_back(CoordinatorEvent::Serving);
        }
        // What is left to reap is space that somebody wants back.
        self.wanted |= !self.reap.is_empty();
        // What this one freed comes back with the next one. If nobody asks for that, it is taken in a while, and frees no data itself.
        self.settles_at = (run.frees_data || is_behind).then(|| now + CHECKPOINT_AGE);
    }

    /// The superblock is durable on a device that joined: its space can be used. Or the device has failed.
    fn joined(&mut self, result: Result<(), String>) {
        self.joining = None;
        if result.is_ok() {
            self.space.grow(Geometry::new(&self.superblock.as_ref().expect("opened").devices));
        }
        self.events.push_back(CoordinatorEvent::Joined(result));
    }
}
