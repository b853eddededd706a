//! Orders of the control side on reactor 0: what waits for what.

use super::{
    AdminCall, AdminReply, AdminRequest, BLOCK_BYTES, CHECK_OWNER, Coordinator, Engine, PoolState, ReactorMessage,
    grow::Growing,
};
use crate::{
    base::{BlockSize, CpNumber, ObjectId},
    cp::{check::Check, message::VolumeChange},
    format::object::VolumeRecord,
    node::admin::{DeviceStatus, NodeStatus, PoolStatus, ReactorReport, ReactorStatus, VolumeStatus},
    pool::io::{Io, IoEvent, Tag},
};
use crossbeam_channel::Sender;
use std::collections::BTreeMap;
use twinlog_device::{BlockDevice, LogMemory, Nanos};

/// A status that other reactors contribute to.
struct Gathering {
    reply: Sender<AdminReply>,
    /// Only the volumes are asked for.
    only_volumes: bool,
    reports: Vec<ReactorReport>,
}

/// A check or scrub in progress.
struct Checking {
    reply: Sender<AdminReply>,
    work: &'static str,
    /// `None` until the coordinator holds frees.
    check: Option<Box<Check>>,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Admin {
    /// Calls that came before the pool was open, in their order. Bounded by the callers: each waits for its answer.
    early: Vec<AdminCall>,
    volume_calls: BTreeMap<u64, Sender<AdminReply>>,
    /// Calls that are done, and their answers: given when every reactor has heard, so that a client finds on any of them what was answered.
    done_calls: Vec<(Sender<AdminReply>, AdminReply)>,
    /// Reactors that have not heard of a change of the volumes yet, summed over the changes.
    unheard: u32,
    statuses: BTreeMap<u64, Gathering>,
    next_status: u64,
    /// Callers that wait for a consistency point with at least this number.
    checkpoints: Vec<(CpNumber, Sender<AdminReply>)>,
    checking: Option<Checking>,
    /// The caller of a stop, and the consistency point that ends it.
    stop: Option<(Sender<AdminReply>, Option<CpNumber>)>,
    stopped: bool,
    /// Reactors that have answered every request since they refuse new ones.
    drained: u16,
    pub(super) growing: Option<Growing>,
}

pub(super) fn refused(message: &str, hint: &str) -> AdminReply {
    AdminReply::Refused { message: message.to_owned(), hint: hint.to_owned() }
}

/// A caller that has gone away needs no answer.
pub(super) fn answer(reply: &Sender<AdminReply>, with: AdminReply) {
    let _ = reply.try_send(with);
}

impl Admin {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a step has something to do although nothing arrives. A check whose reads are on their way does not.
    pub(super) fn is_busy<D: BlockDevice>(&self, io: &Io<D>) -> bool {
        (self.checking.is_some() && !io.is_awaited()) || (self.stop.is_some() && !self.stopped)
    }

    pub(super) fn reactor_drained(&mut self) {
        self.drained += 1;
    }

    pub(super) fn status_arrived(&mut self, call: u64, report: ReactorReport) {
        if let Some(gathering) = self.statuses.get_mut(&call) {
            gathering.reports.push(report);
        }
    }

    pub(super) fn check_event(&mut self, event: IoEvent) {
        if let Some(check) = self.checking.as_mut().and_then(|checking| checking.check.as_mut()) {
            check.event(event);
        }
    }

    /// A volume call has ended; `reactor` serves the volume.
    pub(super) fn volume_done(&mut self, call: u64, volume: Result<Option<VolumeRecord>, String>, reactor: u16) {
        let Some(reply) = self.volume_calls.remove(&call) else { return };
        let with = match volume {
            Ok(None) => AdminReply::Done,
            Ok(Some(record)) => AdminReply::Volumes { volumes: vec![VolumeStatus::of(&record, reactor)] },
            Err(message) => refused(&message, "twinlog status"),
        };
        self.done_calls.push((reply, with));
    }

    /// So many reactors are being told of a change of the volumes.
    pub(super) fn volumes_told(&mut self, reactors: u16) {
        self.unheard += u32::from(reactors);
    }

    /// One of them has heard.
    pub(super) fn volumes_known(&mut self) {
        self.unheard -= 1;
        if self.unheard == 0 {
            self.answer_done_calls();
        }
    }

    fn answer_done_calls(&mut self) {
        self.done_calls.drain(..).for_each(|(reply, with)| answer(&reply, with));
    }

    pub(super) fn durable(&mut self, cp: CpNumber) {
        self.checkpoints.retain(|(wanted, reply)| {
            if *wanted <= cp {
                answer(reply, AdminReply::Done);
            }
            *wanted > cp
        });
        if let Some((reply, Some(wanted))) = &self.stop
            && *wanted <= cp
        {
            answer(reply, AdminReply::Done);
            self.stopped = true;
        }
    }

    /// Nothing that waits for the pool will come any more.
    pub(super) fn pool_stopped(&mut self, reason: &str) {
        self.answer_done_calls();
        let waiting = std::mem::take(&mut self.checkpoints).into_iter().map(|(_, reply)| reply);
        let calls = std::mem::take(&mut self.volume_calls).into_values();
        let checking = self.checking.take().map(|checking| checking.reply);
        let growing = self.growing.take().map(|growing| growing.reply);
        for reply in waiting.chain(calls).chain(checking).chain(growing) {
            answer(&reply, refused(&format!("the pool has stopped: {reason}"), "twinlog status"));
        }
        // One that waits for requests goes on waiting: their answers are on the way to other reactors.
        if let Some((reply, Some(_))) = &self.stop {
            answer(reply, no_last_cp(reason));
            self.stopped = true;
        }
    }
}

/// The answer to a stop that cannot leave everything in a consistency point.
fn no_last_cp(reason: &str) -> AdminReply {
    let message = format!("the node ends without a last consistency point: the pool has stopped: {reason}");
    refused(&message, "start it again: the log has every change that was answered, if it is durable")
}

impl<D: BlockDevice, L: LogMemory> Engine<D, L> {
    pub(super) fn admin_call(&mut self, call: AdminCall) {
        let needs_pool = !matches!(call.request, AdminRequest::Status | AdminRequest::Progress | AdminRequest::Stop);
        if needs_pool && self.pool_state() == Some(&PoolState::Opening) {
            return self.admin.early.push(call);
        }
        let AdminCall { request, reply } = call;
        match request {
            AdminRequest::Status => self.begin_status(reply, false),
            AdminRequest::VolumeList => self.begin_status(reply, true),
            AdminRequest::VolumeCreate { name, size_bytes, block_bytes } => match BlockSize::from_bytes(block_bytes) {
                Some(block_size) => {
                    let change = VolumeChange::Create { name: name.clone(), size_bytes, block_size, time_ns: 0 };
                    self.volume_call(&name, change, reply);
                }
                None => {
                    let message = format!("{block_bytes} bytes is no size of blocks: 4096 or 512");
                    answer(&reply, refused(&message, "twinlog volume create --block-size 512"));
                }
            },
            AdminRequest::VolumeResize { name, size_bytes } => {
                self.volume_call(&name, VolumeChange::Resize(size_bytes), reply);
            }
            AdminRequest::VolumeDelete { name } => self.volume_call(&name, VolumeChange::Delete, reply),
            AdminRequest::VolumeOnline { name, accept_loss } => self.online_call(&name, accept_loss, reply),
            AdminRequest::Checkpoint => match self.ask_for_cp() {
                Ok(wanted) => self.admin.checkpoints.push((wanted, reply)),
                Err(message) => answer(&reply, refused(&message, "twinlog status")),
            },
            AdminRequest::PoolCheck => self.begin_check("check", reply),
            AdminRequest::PoolScrub => self.begin_check("scrub", reply),
            AdminRequest::PoolGrow { device } => self.begin_grow(device, reply),
            AdminRequest::Progress => answer(&reply, self.progress()),
            AdminRequest::Stop => self.begin_stop(reply),
            AdminRequest::HostList | AdminRequest::HostAdd { .. } | AdminRequest::HostRemove { .. } => {
                answer(&reply, refused("this node has no hosts", "twinlog status"));
            }
            AdminRequest::Events { .. }
            | AdminRequest::PairTakeover { .. }
            | AdminRequest::PairGiveback { .. }
            | AdminRequest::PairDrain => {
                answer(&reply, refused("this node has no partner", "twinlog status"));
            }
        }
    }

    pub(super) fn admin_step(&mut self, now: Nanos) {
        let complete: Vec<u64> = self
            .admin
            .statuses
            .iter()
            .filter(|(_, gathering)| gathering.reports.len() == usize::from(self.reactor_count))
            .map(|(&call, _)| call)
            .collect();
        for call in complete {
            let gathering = self.admin.statuses.remove(&call).expect("just found");
            let status = self.status(gathering.reports, now);
            let with = if gathering.only_volumes {
                AdminReply::Volumes { volumes: status.volumes }
            } else {
                AdminReply::Status(Box::new(status))
            };
            answer(&gathering.reply, with);
        }
        if self.pool_state() != Some(&PoolState::Opening) {
            std::mem::take(&mut self.admin.early).into_iter().for_each(|call| self.admin_call(call));
        }
        self.check_step();
        self.stop_step();
    }

    /// How this reactor is.
    pub(super) fn report(&self) -> ReactorReport {
        ReactorReport {
            lanes: self.shards.iter().filter_map(crate::node::shard::Shard::lane_status).collect(),
            volumes: self.shards.iter().flat_map(|shard| shard.volume_status(self.index.0)).collect(),
            checksum_errors: self.io.counters().checksum_errors,
            cached_blocks: self.io.cached_blocks() as u64,
            reactor: ReactorStatus {
                reactor: self.index.0,
                turns: self.turns,
                busy_ns: self.busy_ns,
                connections: self.connections,
                cpu: self.cpu,
            },
        }
    }

    fn volume_call(&mut self, name: &str, change: VolumeChange, reply: Sender<AdminReply>) {
        if self.admin.stop.is_some() {
            // It might come after the last consistency point, and nobody reads the log of a pool that was handed over.
            return answer(&reply, refused("the pool is shutting down, or handed over", "twinlog status"));
        }
        let coordinator = self.coordinator.as_mut().expect("reactor 0 takes calls");
        match coordinator.change_volume(name, change) {
            Ok(call) => drop(self.admin.volume_calls.insert(call, reply)),
            Err(message) => answer(&reply, refused(&message, "twinlog volume list")),
        }
    }

    fn online_call(&mut self, name: &str, accept_loss: bool, reply: Sender<AdminReply>) {
        if self.admin.stop.is_some() {
            return answer(&reply, refused("the pool is shutting down, or handed over", "twinlog status"));
        }
        let coordinator = self.coordinator.as_mut().expect("reactor 0 takes calls");
        match coordinator.online(name, accept_loss) {
            Ok(call) => drop(self.admin.volume_calls.insert(call, reply)),
            Err(message) => answer(&reply, refused(&message, "twinlog volume list")),
        }
    }

    fn begin_status(&mut self, reply: Sender<AdminReply>, only_volumes: bool) {
        let call = self.admin.next_status;
        self.admin.next_status += 1;
        self.admin.statuses.insert(call, Gathering { reply, only_volumes, reports: Vec::new() });
        self.broadcast(|| ReactorMessage::StatusQuery(call));
    }

    /// Asks for a consistency point that contains everything until now. Returns its number.
    pub(super) fn ask_for_cp(&mut self) -> Result<CpNumber, String> {
        let coordinator = self.coordinator.as_mut().expect("reactor 0 takes calls");
        let superblock = coordinator.superblock().filter(|_| *coordinator.state() == PoolState::Serving);
        let Some(superblock) = superblock else { return Err("the pool does not serve".to_owned()) };
        let next = superblock.cp.next();
        // One in progress may have frozen before now: the one after it certainly contains everything.
        let wanted = if coordinator.phase() == "idle" { next } else { next.next() };
        coordinator.want();
        Ok(wanted)
    }

    fn begin_check(&mut self, work: &'static str, reply: Sender<AdminReply>) {
        if let Some(checking) = &self.admin.checking {
            let message = format!("a {} is in progress", checking.work);
            return answer(&reply, refused(&message, "twinlog status"));
        }
        self.admin.checking = Some(Checking { reply, work, check: None });
    }

    fn check_step(&mut self) {
        let (Some(checking), Some(coordinator)) = (&mut self.admin.checking, &mut self.coordinator) else { return };
        let Some(check) = &mut checking.check else {
            if let Some(superblock) = coordinator.hold_frees() {
                checking.check = Some(Box::new(Check::new(superblock, Tag { owner: CHECK_OWNER, id: 0 })));
            } else if *coordinator.state() != PoolState::Serving {
                answer(&checking.reply, refused("the pool does not serve", "twinlog pool check --config FILE"));
                self.admin.checking = None;
            }
            return;
        };
        if !coordinator.holds_frees() {
            let message =
                format!("the pool is too full for a {}: what it reads through is needed for writes", checking.work);
            answer(
                &checking.reply,
                refused(&message, "free some space, or stop the node and `twinlog pool check --config FILE`"),
            );
            self.admin.checking = None;
            return;
        }
        if let Some(report) = check.step(&mut self.io) {
            coordinator.release_frees();
            answer(&checking.reply, AdminReply::Report(report));
            self.admin.checking = None;
        }
    }

    fn progress(&self) -> AdminReply {
        let checking = self.admin.checking.as_ref();
        let (done_blocks, total_blocks) =
            checking.and_then(|checking| checking.check.as_ref()).map_or((0, 0), |check| check.progress());
        let work = checking.map_or("", |checking| checking.work).to_owned();
        AdminReply::Progress { work, done_blocks, total_blocks }
    }

    fn begin_stop(&mut self, reply: Sender<AdminReply>) {
        self.broadcast(|| ReactorMessage::Stopping);
        self.admin.stop = Some((reply, None));
    }

    /// Goes on with a stop. The last consistency point is asked for when every reactor has answered what it had accepted: it contains
    /// every answered change, and the next start has nothing to replay. A pool that is not open yet is left as it is: the next
    /// start begins where this one did. One that has failed waits for the reactors too: reactor 0 may leave after a stop, and carries
    /// the answers of its shards until then.
    fn stop_step(&mut self) {
        if self.admin.stopped || !matches!(self.admin.stop, Some((_, None))) {
            return;
        }
        let is_opening = self.pool_state() == Some(&PoolState::Opening);
        let has_calls = !self.admin.volume_calls.is_empty() || !self.admin.done_calls.is_empty();
        if !is_opening && (self.admin.drained < self.reactor_count || has_calls) {
            return;
        }
        let wanted = self.ask_for_cp().ok();
        let without = match self.pool_state() {
            Some(PoolState::Stopped(reason)) => no_last_cp(reason),
            _ => AdminReply::Done,
        };
        let Some((reply, place)) = &mut self.admin.stop else { return };
        *place = wanted;
        if wanted.is_none() {
            answer(reply, without);
            self.admin.stopped = true;
        }
    }

    fn status(&self, mut reports: Vec<ReactorReport>, now: Nanos) -> NodeStatus {
        let coordinator = self.coordinator.as_ref().expect("reactor 0 takes calls");
        reports.sort_by_key(|report| report.reactor.reactor);
        let (state, reason) = match coordinator.state() {
            PoolState::Opening => ("opening", String::new()),
            PoolState::Serving if self.is_stopping => ("stopping", String::new()),
            PoolState::Serving => ("serving", String::new()),
            PoolState::Stopped(reason) => ("failed", reason.clone()),
        };
        let all = self.blocks.block_count() as u64;
        let free = self.blocks.free_count() as u64;
        let cached = reports.iter().map(|report| report.cached_blocks).sum::<u64>().min(all - free);
        // A shard knows a new volume before its record is stable; it exists when the coordinator knows it, for every caller at once.
        let exists = |mut volume: VolumeStatus| {
            volume.size_bytes = coordinator.volumes().get(&ObjectId(volume.id))?.size_bytes;
            Some(volume)
        };
        let mut volumes: Vec<_> = reports.iter().flat_map(|report| report.volumes.clone()).filter_map(exists).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let checksum_errors = reports.iter().map(|report| report.checksum_errors).sum();
        NodeStatus {
            state: state.to_owned(),
            reason,
            pool: self.pool_status(coordinator, checksum_errors, now),
            lanes: reports.iter().flat_map(|report| report.lanes.clone()).collect(),
            volumes,
            memory_used_bytes: (all - free - cached) * BLOCK_BYTES,
            memory_cached_bytes: cached * BLOCK_BYTES,
            memory_limit_bytes: all * BLOCK_BYTES,
            memory_resident_bytes: 0,
            reactors: reports.into_iter().map(|report| report.reactor).collect(),
            uptime_ns: self.started.map_or(0, |started| (now.0).saturating_sub(started.0)),
            replayed_records: coordinator.figures().replayed_records,
            pair: None,
            hosts: Vec::new(),
            nvme_tcp: None,
        }
    }

    fn pool_status(&self, coordinator: &Coordinator, checksum_errors: u64, now: Nanos) -> PoolStatus {
        let Some(superblock) = coordinator.superblock() else { return PoolStatus::default() };
        let figures = coordinator.figures();
        let ns = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let device = |device: &D| DeviceStatus {
            name: device.info().name.clone(),
            size_bytes: device.info().block_count * BLOCK_BYTES,
            durability: device.info().durability.to_string(),
            health: device.health().map(Into::into),
        };
        PoolStatus {
            name: superblock.name.clone(),
            id: superblock.pool.to_string(),
            epoch: superblock.epoch.0,
            cp: superblock.cp.0,
            cp_age_ns: ns(now.since(figures.cp_at)),
            cp_duration_ns: ns(figures.cp_duration),
            cp_phase: coordinator.phase().to_owned(),
            size_bytes: coordinator.geometry().usable_blocks() * BLOCK_BYTES,
            free_bytes: u64::try_from(self.budget.available()).unwrap_or(0) * BLOCK_BYTES,
            deferred_bytes: coordinator.deferred_blocks() * BLOCK_BYTES,
            provisioned_bytes: coordinator.volumes().values().map(|volume| volume.size_bytes).sum(),
            checksum_errors,
            devices: self.io.devices().map(device).collect(),
        }
    }
}
