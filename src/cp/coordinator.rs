//! The coordinator of a pool: one per pool, on one reactor. It owns the superblock, the object table, the space map and the lists, and
//! takes the pool from one consistency point to the next. See the [module](super) for states and invariants.

mod run;

use super::{
    lists::total,
    message::{Grant, MirrorNews, MirrorOrder, ShardOpening, ToCoordinator, ToShard, VolumeChange},
    mirroring::MirrorProgress,
    opening::{OpenPool, Opening},
};
use crate::{
    alloc::{
        budget::Budget,
        geometry::{Geometry, reserved_for_maps},
        space_map::SpaceMap,
    },
    base::{BlockAddress, CpNumber, Epoch, LaneIndex, ObjectId, limits::DEVICES_MAX, planted},
    format::{
        chain::{AddressRange, Subtree},
        object::{VolumeRecord, is_valid_name, is_valid_size},
        superblock::{DEVICE_BLOCKS_MIN, PoolDevice, Superblock, TreeRoot},
    },
    fs::directory::{Directory, VOLUMES_MAX},
    pool::io::{Io, IoEvent},
};
use run::Run;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use twinlog_device::{BlockDevice, Nanos};

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
    /// Of the reap list, what is not tried again before the pool is opened anew: its root could not be read. Bounded.
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
        self.run.as_ref().map_or("idle", Run::phase)
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

    /// Whether [`Coordinator::step`] has something to do although nothing arrives: not while a device or a shard has to end something
    /// first. A reactor that went on turning would keep the processor from those who end it.
    #[must_use]
    pub fn is_busy<D: BlockDevice>(&self, io: &Io<D>) -> bool {
        let may_start = self.wanted && self.to_replay.is_empty() && !matches!(self.state, PoolState::Stopped(_));
        let is_under_way = self.opening.is_some() || self.run.is_some() || may_start;
        is_under_way && !io.is_awaited() && !self.awaits_shards()
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
                check_size(*size_bytes)?;
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
            VolumeChange::Resize(_) | VolumeChange::Delete => {
                if let VolumeChange::Resize(size_bytes) = change {
                    check_size(size_bytes)?;
                }
                (known.ok_or_else(|| format!("no volume is called '{name}'"))?, None)
            }
        };
        self.next_call += 1;
        let call = self.next_call;
        self.calls.insert(call, VolumeCall { id, name });
        self.events.push_back(CoordinatorEvent::Shard(self.lane_of(id), ToShard::Volume { call, id, change }));
        Ok(call)
    }

    /// Begins to perform the held records of a volume that is offline, or to drop them. The end is [`CoordinatorEvent::VolumeDone`] with the returned
    /// number: the volume is online when its consistency point is durable.
    ///
    /// # Errors
    /// A sentence: why it is refused.
    pub fn online(&mut self, name: &str, accept_loss: bool) -> Result<u64, String> {
        if self.state != PoolState::Serving {
            return Err("the pool does not serve yet, or any more".to_owned());
        }
        let volume = self.volumes.values().find(|volume| volume.name == name);
        let volume = volume.ok_or_else(|| format!("no volume is called '{name}'"))?;
        if volume.offline.is_none() {
            return Err(format!("volume '{name}' is online"));
        }
        let id = volume.id;
        self.next_call += 1;
        let call = self.next_call;
        self.calls.insert(call, VolumeCall { id, name: None });
        let order = ToShard::Online { call, id, accept_loss };
        self.events.push_back(CoordinatorEvent::Shard(self.lane_of(id), order));
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
                    run.wants_space(lane, blocks);
                }
            }
            ToCoordinator::Written { lane, report } => {
                if let Some(run) = &mut self.run {
                    run.has_written(lane, *report);
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

    /// Goes on for one turn. Returns whether it did something that there may be more of.
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>, now: Nanos, wall_clock_ns: u64) -> bool {
        if let Some(opening) = &mut self.opening {
            match opening.step(io) {
                Ok(None) => return false,
                Ok(Some(pool)) => self.opened(pool),
                Err(error) => self.stop(error.to_string()),
            }
            return true;
        }
        if matches!(self.state, PoolState::Stopped(_)) {
            return false;
        }
        self.wanted |= self.next_deadline().is_some_and(|at| at <= now);
        if self.run.is_none() && self.wanted && self.to_replay.is_empty() {
            self.start(now);
        }
        if self.run.is_none() {
            return false;
        }
        self.run_step(io, wall_clock_ns).unwrap_or_else(|reason| {
            self.stop(reason);
            true
        })
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
        let count = self.superblock.as_ref().map_or(0, Superblock::lane_count);
        (0..count).map(LaneIndex).collect()
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
        for lane in self.lanes() {
            let own = |volume: &&VolumeRecord| self.lane_of(volume.id) == lane;
            let opening = ShardOpening {
                pool: pool.superblock.pool,
                lane_count: pool.superblock.lane_count(),
                role: self.grant.role,
                epoch_min: pool.superblock.epoch,
                epoch: self.grant.epoch,
                is_mirrored: self.grant.is_mirrored,
                is_power_on: self.grant.is_power_on,
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
}

fn check_size(size_bytes: u64) -> Result<(), String> {
    let text = || format!("{size_bytes} bytes is no size: a multiple of 4096, at most 1 PiB");
    if is_valid_size(size_bytes) { Ok(()) } else { Err(text()) }
}
