//! One consistency point, from the freeze to the durable superblock: each phase of the [module's](crate::cp) diagram is a function.

use super::{Coordinator, CoordinatorEvent, PoolState};
use crate::{
    alloc::{geometry::Geometry, space_map::Ready},
    base::{CpNumber, Epoch, LaneIndex, planted},
    changelog::throttle::CHECKPOINT_AGE,
    cp::{
        lists::{ListWriter, push_joined, total},
        map::{MapResult, MapUpdate},
        message::{ShardReport, ToShard},
    },
    format::{
        chain::{AddressRange, Subtree, entries_per_block},
        reference::{BlockKey, BlockRef, node},
        superblock::TreeRoot,
    },
    fs::directory::ObjectUpdate,
    pool::{
        io::{Io, IoEvent, Tag},
        superblocks::CommitSuperblock,
        tree::{Aux, TreeUpdate},
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};
use twinlog_device::{BlockDevice, Nanos};

/// Nodes of cut-off subtrees that one consistency point frees: together up to 2 GiB of data.
const REAP_NODES_MAX: usize = 4096;
/// Nodes of cut-off subtrees fetched ahead.
const REAP_AHEAD: usize = 32;
/// Cut-off subtrees that are kept although their root cannot be read: one block of the reap list.
const UNREADABLE_MAX: usize = entries_per_block::<Subtree>();

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
pub(super) struct Run {
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

impl Run {
    /// Name of the phase in progress.
    pub(super) fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Gather => "gather",
            Phase::Reap { .. } => "reap",
            Phase::Directory(_) => "directory",
            Phase::Map(_) => "map",
            Phase::Lists(_) => "lists",
            Phase::Commit(_) => "commit",
        }
    }

    /// A shard needs places.
    pub(super) fn wants_space(&mut self, lane: LaneIndex, blocks: u64) {
        self.space_wanted.push_back((lane, blocks));
    }

    /// A shard has written what it froze.
    pub(super) fn has_written(&mut self, lane: LaneIndex, report: ShardReport) {
        self.reports.insert(lane, report);
    }
}

impl Coordinator {
    /// Begins a consistency point.
    pub(super) fn start(&mut self, now: Nanos) {
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

    /// An I/O event of the one in progress.
    pub(super) fn run_event<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        event: IoEvent,
        now: Nanos,
    ) -> Result<(), String> {
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
            return update.expect("only the update's own phases have such events").event(event);
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

    /// Whether the one in progress waits for shards alone, whose messages give the reactor a turn.
    pub(super) fn awaits_shards(&self) -> bool {
        let awaits = |run: &Run| matches!(run.phase, Phase::Gather) && run.space_wanted.is_empty();
        self.run.as_ref().is_some_and(awaits)
    }

    /// Goes on with the one in progress. Returns whether anything was done.
    pub(super) fn run_step<D: BlockDevice>(&mut self, io: &mut Io<D>, wall_clock_ns: u64) -> Result<bool, String> {
        let run = self.run.as_mut().expect("called with one");
        match &mut run.phase {
            Phase::Gather => self.gather(io),
            Phase::Reap { .. } => self.reap_step(io),
            Phase::Directory(_) => self.directory_step(io),
            Phase::Map(map) => {
                let worked = map.step(io, &mut self.space)?;
                if map.is_done() {
                    self.begin_lists();
                }
                Ok(worked)
            }
            Phase::Lists(lists) => {
                let owner = self.owners.main;
                let mut tag = || {
                    lists.next_write += 1;
                    Tag { owner, id: lists.next_write }
                };
                let begun = lists.freed.step(io, &mut tag) + lists.reap.step(io, &mut tag);
                lists.writes += begun;
                if let (Some(freed), Some(reap), 0) =
                    (lists.freed.first_block(), lists.reap.first_block(), lists.writes)
                {
                    self.commit(io, wall_clock_ns, (freed, reap));
                    return Ok(true);
                }
                Ok(begun > 0)
            }
            Phase::Commit(_) => Ok(false),
        }
    }

    /// Grants space, and waits until every shard has written.
    fn gather<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<bool, String> {
        let lane_count = self.superblock.as_ref().expect("opened").applied.len();
        let run = self.run.as_mut().expect("called with one");
        let mut worked = false;
        while let Some(&(lane, blocks)) = run.space_wanted.front() {
            match self.space.ensure(io, Tag { owner: self.owners.main, id: 0 }, blocks) {
                Ready::Pending => return Ok(worked),
                Ready::Never => return Err(format!("{blocks} blocks were reserved and are not there")),
                Ready::Yes => {}
            }
            let ranges = self.space.allocate(blocks);
            run.allocated_blocks += blocks;
            run.space_wanted.pop_front();
            self.events.push_back(CoordinatorEvent::Shard(lane, ToShard::Space(ranges)));
            worked = true;
        }
        if run.reports.len() < lane_count {
            return Ok(worked);
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
                    volume.offline = record.offline;
                    volume.reservation.clone_from(&record.reservation);
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
        Ok(true)
    }

    /// Frees subtrees that were cut off, depth first: a bounded number of nodes, and not more ranges than the freed list has space kept for.
    fn reap_step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<bool, String> {
        let run = self.run.as_mut().expect("called with one");
        let Phase::Reap { nodes, ranges_max } = &mut run.phase else { unreachable!("called in this phase") };
        let tag = Tag { owner: self.owners.main, id: 0 };
        for subtree in self.reap.iter().rev().take(REAP_AHEAD).filter(|subtree| subtree.levels > 0) {
            let _ = io.fetch(&subtree.root, tag);
        }
        let before = *nodes;
        for _ in 0..REAP_AHEAD {
            let is_enough = *nodes >= REAP_NODES_MAX || run.freed.len() >= *ranges_max;
            let Some(subtree) = self.reap.last().copied().filter(|_| !is_enough) else {
                run.phase = Phase::Directory(None);
                return Ok(true);
            };
            if subtree.levels > 0 {
                let Some(block) = io.fetch(&subtree.root, tag) else { return Ok(*nodes > before) };
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
        Ok(true)
    }

    /// Writes the changed blocks of the object table.
    fn directory_step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<bool, String> {
        let run = self.run.as_mut().expect("called with one");
        let Phase::Directory(update) = &mut run.phase else { unreachable!("called in this phase") };
        let Some(update) = update else {
            if !self.directory.is_dirty() {
                return self.begin_map().map(|()| true);
            }
            if let Some((dirty, levels)) = self.directory.take_dirty(|| io.allocate()) {
                let purpose = (self.owners.update, Aux::Blocks);
                run.phase =
                    Phase::Directory(Some(TreeUpdate::new(run.object_table, levels, Rc::new(dirty), run.cp, purpose)));
                return Ok(true);
            }
            return Ok(false);
        };
        let worked = update.step(io, 64);
        if update.is_ready() {
            let needed = update.needed_blocks();
            match self.space.ensure(io, Tag { owner: self.owners.main, id: 0 }, needed) {
                Ready::Pending => {}
                Ready::Never => return Err("no space is left for the object table".to_owned()),
                Ready::Yes => {
                    run.allocated_blocks += needed;
                    update.grant(self.space.allocate(needed));
                    return Ok(true);
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
            return self.begin_map().map(|()| true);
        }
        Ok(worked)
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
        next.has_offline = self.directory.has_offline();
        next.has_reservations = self.directory.has_reservations();
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
