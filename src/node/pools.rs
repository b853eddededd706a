//! The pools that one reactor of a node has open: the node's own, and after a takeover its partner's. Front ends see the volumes of
//! both as if there were one pool, and in a pair those of a pool that is not open here too: [`ForwardPort`] has the way to them.
//!
//! # Invariants
//!
//! 1. Front ends see one space of volume ids: ids of the partner's pool carry [`PARTNER_BIT`], which no pool ever gives out.
//! 2. A pool that closes has answered every request before its devices are let go, and reactor 0 lets go last: when reactor 0 says that it
//!    is closed, this node has none of its devices open.
//! 3. A request to a pool of a pair is refused only when the node stops: while this node does not have the pool open it is forwarded.
//! 4. Every order of the control side gets exactly one answer.
//! 5. What hosts are to be told of reservations is told at both nodes, once at each, whichever of them serves the pool.

use super::{
    admin::{
        AdminCall, AdminReply, AdminRequest, HostStatus, NodeStatus, NvmeTcpStatus, OfflineThere, PairStatus,
        PoolStatus,
    },
    engine::{ENGINE_NOTICES_MAX, Engine, EngineParts},
    forward::ForwardPort,
    request::{
        FORWARDED_SESSION, OfflineAt, Reach, ReservationNotice, VolumeError, VolumeInfo, VolumeReply, VolumeRequest,
        VolumeService, VolumeShape, WAITED_SESSION,
    },
};
use crate::{base::ObjectId, cp::message::Grant};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use twinlog_device::{BlockDevice, BlockPool, LogMemory, Nanos};

/// Notices that wait for the front end, or for the hub: what both pools have in one turn.
const NOTICES_KEPT_MAX: usize = 2 * ENGINE_NOTICES_MAX;

/// Marks the ids of volumes of the partner's pool: pools count their objects from 1 and never get this far.
pub const PARTNER_BIT: u64 = 1 << 63;

/// One of the two pools that a node of a pair can have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolSlot {
    /// The pool whose home this node is.
    Home,
    /// The partner's.
    Partner,
}

impl PoolSlot {
    /// Both, the own one first.
    pub const ALL: [Self; 2] = [Self::Home, Self::Partner];

    /// Whose object it is that front ends know by this id.
    #[must_use]
    pub fn of(volume: ObjectId) -> Self {
        if volume.0 & PARTNER_BIT == 0 { Self::Home } else { Self::Partner }
    }

    /// For tables of both.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Home => 0,
            Self::Partner => 1,
        }
    }

    /// The id by which front ends know an object of this pool.
    #[must_use]
    pub fn outside(self, object: ObjectId) -> ObjectId {
        match self {
            Self::Home => object,
            Self::Partner => ObjectId(object.0 | PARTNER_BIT),
        }
    }
}

/// Why a reactor has no part of a pool that was to be opened.
pub enum NotOpened<D, L> {
    /// Nothing was opened on any reactor. Reactor 0 hears it.
    Nowhere(String),
    /// This reactor could not get its devices or lanes; the others may have theirs. With what it has beside them.
    Here(String, Box<EngineParts<D, L>>),
}

impl<D, L> NotOpened<D, L> {
    /// The reason, for people.
    #[must_use]
    pub fn reason(self) -> String {
        match self {
            Self::Nowhere(reason) | Self::Here(reason, _) => reason,
        }
    }
}

/// What comes of opening a pool on one reactor.
pub type OpenedPool<D, L> = (PoolSlot, Result<EngineParts<D, L>, NotOpened<D, L>>);

/// Opens the devices of pools, without making a reactor wait: files that a dying process holds become free only in a while.
pub trait PoolOpener<D, L> {
    /// Begins, for every reactor. Only reactor 0 asks.
    fn begin(&mut self, slot: PoolSlot, grant: Grant);

    /// What has been opened for this reactor, or why it cannot be.
    fn poll(&mut self) -> Option<OpenedPool<D, L>>;
}

/// What several pools contribute to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Status,
    Volumes,
    Stop,
}

/// An order that several pools contribute to.
struct Gathering {
    question: Question,
    reply: Sender<AdminReply>,
    waiting: Vec<(PoolSlot, Receiver<AdminReply>)>,
    arrived: Vec<(PoolSlot, AdminReply)>,
}

/// The open pools of one reactor.
pub struct Pools<D: BlockDevice, L: LogMemory> {
    blocks: BlockPool,
    engines: [Option<Engine<D, L>>; 2],
    /// How often each was opened.
    openings: [u64; 2],
    /// The way to pools that are not open here; none: the node has no partner.
    port: Option<ForwardPort>,
    /// For front ends.
    replies: VecDeque<VolumeReply>,
    /// To requests of the hub, by pool.
    hub_replies: VecDeque<(PoolSlot, VolumeReply)>,
    /// What this node's hosts are to be told, and how much of it was lost.
    notices: VecDeque<ReservationNotice>,
    lost_notices: u64,
    /// For the hub: what the partner's are.
    partner_notices: VecDeque<(PoolSlot, ReservationNotice)>,
    gatherings: Vec<Gathering>,
    /// The pair, as it was when it was last asked for; none: the node has no partner.
    pair: Option<PairStatus>,
    /// The node's hosts, as they were then.
    hosts: Vec<HostStatus>,
    /// The front end that they use, as it was then.
    nvme_tcp: Option<NvmeTcpStatus>,
    is_stopping: bool,
    is_stopped: bool,
    connections: u64,
    busy_ns: u64,
    cpu: Option<u64>,
}

impl<D: BlockDevice, L: LogMemory> Pools<D, L> {
    /// No pool is open yet; `blocks` is the memory of those that will be, `cpu` the processor that this reactor is bound to.
    #[must_use]
    pub fn new(blocks: BlockPool, cpu: Option<u64>) -> Self {
        Self {
            blocks,
            engines: [None, None],
            openings: [0; 2],
            port: None,
            replies: VecDeque::new(),
            hub_replies: VecDeque::new(),
            notices: VecDeque::new(),
            lost_notices: 0,
            partner_notices: VecDeque::new(),
            gatherings: Vec::new(),
            pair: None,
            hosts: Vec::new(),
            nvme_tcp: None,
            is_stopping: false,
            is_stopped: false,
            connections: 0,
            busy_ns: 0,
            cpu,
        }
    }

    /// Gives the reactor its way to pools that are not open here.
    pub fn set_port(&mut self, port: ForwardPort) {
        self.port = Some(port);
    }

    /// What the partner's hosts are to be told next, for the hub.
    pub fn next_partner_notice(&mut self) -> Option<(PoolSlot, ReservationNotice)> {
        self.partner_notices.pop_front()
    }

    /// What this node's hosts are to be told of a pool that the partner serves, of which `lost` did not come.
    pub fn notify(&mut self, slot: PoolSlot, lost: u64, notices: impl IntoIterator<Item = ReservationNotice>) {
        self.lost_notices = self.lost_notices.saturating_add(lost);
        for notice in notices {
            keep(&mut self.notices, &mut self.lost_notices, (slot, notice));
        }
    }

    /// A reply to a request of the hub.
    pub fn next_hub_reply(&mut self) -> Option<(PoolSlot, VolumeReply)> {
        self.hub_replies.pop_front()
    }

    /// Begins to open a pool: recovery goes on with every turn. A reactor that has no part of it has it stop and close on all of them.
    ///
    /// # Errors
    /// Nothing of it was opened on any reactor, for this reason.
    ///
    /// # Panics
    /// When the slot's pool is open.
    pub fn open(&mut self, slot: PoolSlot, opened: Result<EngineParts<D, L>, NotOpened<D, L>>) -> Result<(), String> {
        let mut engine = match opened {
            Ok(parts) => Engine::open(parts),
            Err(NotOpened::Here(reason, parts)) => Engine::refuse(*parts, &reason),
            Err(NotOpened::Nowhere(reason)) => return Err(reason),
        };
        let place = &mut self.engines[slot.index()];
        assert!(place.is_none(), "a pool is opened once");
        engine.set_cpu(self.cpu);
        *place = Some(engine);
        self.openings[slot.index()] += 1;
        Ok(())
    }

    /// The pool of a slot, while it is open.
    #[must_use]
    pub fn engine(&self, slot: PoolSlot) -> Option<&Engine<D, L>> {
        self.engines[slot.index()].as_ref()
    }

    /// The pool of a slot, while it is open.
    pub fn engine_mut(&mut self, slot: PoolSlot) -> Option<&mut Engine<D, L>> {
        self.engines[slot.index()].as_mut()
    }

    /// Whether clients can be answered: the volumes are known, in a pair those of both pools, whatever has happened since.
    #[must_use]
    pub fn has_opened(&self) -> bool {
        let has_opened = |slot: PoolSlot| self.engine(slot).is_some_and(Engine::has_opened);
        let are_known = match &self.port {
            Some(port) => PoolSlot::ALL.into_iter().all(|slot| has_opened(slot) || port.volumes(slot).is_some()),
            None => PoolSlot::ALL.into_iter().any(has_opened),
        };
        self.is_stopping || are_known
    }

    /// Whether the node was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// The node was told to stop, on reactor 0: requests are refused here too.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether a stop that was asked for is complete. Only reactor 0 knows.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// For the next `status`: the pair.
    pub fn set_pair(&mut self, pair: PairStatus) {
        self.pair = Some(pair);
    }

    /// For the next `status`: the node's hosts, and the front end that they use.
    pub fn set_hosts(&mut self, hosts: Vec<HostStatus>, nvme_tcp: Option<NvmeTcpStatus>) {
        (self.hosts, self.nvme_tcp) = (hosts, nvme_tcp);
    }

    /// For `status`: open client connections of this reactor, and how long it did not sleep since it started.
    pub fn set_figures(&mut self, connections: u64, busy_ns: u64) {
        (self.connections, self.busy_ns) = (connections, busy_ns);
        for engine in self.engines.iter_mut().flatten() {
            engine.set_connections(connections);
            engine.set_busy_ns(busy_ns);
        }
    }

    /// A device that this reactor must open, and whose pool wants it: answer with [`Pools::device_opened`].
    pub fn wanted_device(&mut self) -> Option<(PoolSlot, String)> {
        PoolSlot::ALL.into_iter().find_map(|slot| Some((slot, self.engine_mut(slot)?.wanted_device()?)))
    }

    /// The device that was wanted, or why it cannot be opened.
    pub fn device_opened(&mut self, slot: PoolSlot, device: Result<D, String>) {
        if let Some(engine) = self.engine_mut(slot) {
            engine.device_opened(device);
        }
    }

    /// A turn begins, in which requests may be submitted before [`Self::poll`].
    pub fn begin_turn(&mut self, now: Nanos, wall_clock_ns: u64) {
        self.engines.iter_mut().flatten().for_each(|engine| engine.begin_turn(now, wall_clock_ns));
    }

    /// One turn of every open pool. Returns whether anything was done.
    pub fn poll(&mut self, now: Nanos, wall_clock_ns: u64) -> bool {
        let mut busy = false;
        for (slot, place) in PoolSlot::ALL.into_iter().zip(&mut self.engines) {
            let Some(engine) = place else { continue };
            busy |= engine.poll(now, wall_clock_ns);
            while let Some(mut reply) = engine.poll_reply() {
                if let FORWARDED_SESSION | WAITED_SESSION = reply.tag.session {
                    self.hub_replies.push_back((slot, reply));
                    continue;
                }
                if let (Err(VolumeError::Stopped(reason)), Some(_)) = (&mut reply.result, &self.port) {
                    reply.result = Err(VolumeError::Interrupted(std::mem::take(reason)));
                }
                self.replies.push_back(reply);
            }
            while let Some(notice) = engine.poll_notice() {
                keep(&mut self.notices, &mut self.lost_notices, (slot, notice));
            }
            while let Some(notice) = engine.next_partner_notice() {
                // The hub takes them in every turn.
                if self.port.is_some() && self.partner_notices.len() < NOTICES_KEPT_MAX {
                    self.partner_notices.push_back((slot, notice));
                }
            }
            if engine.is_closed() {
                *place = None;
                busy = true;
            }
        }
        while let Some(reply) = self.port.as_mut().and_then(ForwardPort::poll) {
            self.replies.push_back(reply);
        }
        busy | self.gather()
    }

    /// When [`Pools::poll`] has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.engines.iter().flatten().filter_map(Engine::next_deadline).min()
    }

    /// An order of the control side, on reactor 0.
    pub fn call(&mut self, call: AdminCall) {
        match &call.request {
            AdminRequest::Stop => {
                self.is_stopping = true;
                self.ask_all(call, Question::Stop);
            }
            AdminRequest::Status => self.ask_all(call, Question::Status),
            AdminRequest::VolumeList => self.ask_all(call, Question::Volumes),
            AdminRequest::VolumeResize { name, .. }
            | AdminRequest::VolumeDelete { name }
            | AdminRequest::VolumeOnline { name, .. } => {
                let slot = self.volume(name).map_or(PoolSlot::Home, |volume| PoolSlot::of(volume.id));
                self.ask(slot, call);
            }
            AdminRequest::VolumeCreate { name, .. } if self.is_partners(name) => {
                let message = format!("the partner's pool has a volume called '{name}'");
                let hint = "another name: clients find volumes of both pools by name".to_owned();
                // A caller that has gone away needs no answer.
                let _ = call.reply.try_send(AdminReply::Refused { message, hint });
            }
            _ => self.ask(PoolSlot::Home, call),
        }
    }

    fn ask(&mut self, slot: PoolSlot, call: AdminCall) {
        match self.engine_mut(slot) {
            Some(engine) => engine.call(call),
            None => {
                let message = "this node does not have the pool open".to_owned();
                let refused = AdminReply::Refused { message, hint: "twinlog status".to_owned() };
                // A caller that has gone away needs no answer.
                let _ = call.reply.try_send(refused);
            }
        }
    }

    /// Puts the order to every open pool; the caller gets one answer.
    fn ask_all(&mut self, AdminCall { request, reply }: AdminCall, question: Question) {
        let mut waiting = Vec::new();
        for slot in PoolSlot::ALL {
            if let Some(engine) = self.engine_mut(slot) {
                let (sender, receiver) = bounded(1);
                engine.call(AdminCall { request: request.clone(), reply: sender });
                waiting.push((slot, receiver));
            }
        }
        self.gatherings.push(Gathering { question, reply, waiting, arrived: Vec::new() });
    }

    /// Answers orders to which every pool has contributed.
    fn gather(&mut self) -> bool {
        let mut complete = Vec::new();
        self.gatherings.retain_mut(|gathering| {
            let arrived = &mut gathering.arrived;
            gathering.waiting.retain(|(slot, receiver)| match receiver.try_recv() {
                Ok(reply) => {
                    arrived.push((*slot, reply));
                    false
                }
                // A pool that was closed meanwhile contributes nothing.
                Err(error) => !error.is_disconnected(),
            });
            let waits = !gathering.waiting.is_empty();
            if !waits {
                complete.push((gathering.question, gathering.reply.clone(), std::mem::take(arrived)));
            }
            waits
        });
        let is_any = !complete.is_empty();
        for (question, reply, arrived) in complete {
            let answer = match question {
                Question::Status => self.status(arrived),
                Question::Volumes => all_volumes(arrived),
                Question::Stop => {
                    self.is_stopped = true;
                    // A pool that could not be stopped in order says why.
                    let refused = arrived.into_iter().map(|(_, reply)| reply).find(|reply| *reply != AdminReply::Done);
                    refused.unwrap_or(AdminReply::Done)
                }
            };
            // A caller that has gone away needs no answer.
            let _ = reply.try_send(answer);
        }
        is_any
    }

    /// One status from those of the open pools.
    fn status(&self, arrived: Vec<(PoolSlot, AdminReply)>) -> AdminReply {
        let (mut home, mut partner) = (None, None);
        for (slot, reply) in arrived {
            let AdminReply::Status(status) = reply else { return reply };
            match slot {
                PoolSlot::Home => home = Some(status),
                PoolSlot::Partner => partner = Some(status),
            }
        }
        let mut status = home.unwrap_or_else(|| Box::new(self.standby(partner.as_deref())));
        status.hosts.clone_from(&self.hosts);
        status.nvme_tcp.clone_from(&self.nvme_tcp);
        let offline_there = self.offline_there();
        status.pair = self.pair.clone().map(|pair| PairStatus { taken_over: partner, offline_there, ..pair });
        AdminReply::Status(status)
    }

    /// Volumes of pools that are not open here, and that their node says are offline.
    fn offline_there(&self) -> Vec<OfflineThere> {
        let is_there = |slot: &PoolSlot| self.engine(*slot).is_none();
        let volumes = PoolSlot::ALL.into_iter().filter(is_there).flat_map(|slot| self.volumes_of(slot));
        let place = |volume: VolumeInfo| {
            let OfflineAt { lane, lsn, .. } = volume.offline?;
            Some(OfflineThere { volume: volume.name, lane: lane.0, lsn: lsn.0 })
        };
        volumes.filter_map(place).collect()
    }

    /// The status of a node that does not have its own pool open.
    fn standby(&self, partner: Option<&NodeStatus>) -> NodeStatus {
        let own = self.pair.as_ref().and_then(|pair| pair.pools.first());
        let mut status = partner.cloned().unwrap_or_default();
        status.state = if self.is_stopping { "stopping" } else { "standby" }.to_owned();
        status.reason = own.map(|pool| pool.why.clone()).unwrap_or_default();
        status.pool =
            PoolStatus { name: own.map(|pool| pool.name.clone()).unwrap_or_default(), ..PoolStatus::default() };
        (status.lanes, status.volumes, status.replayed_records) = (Vec::new(), Vec::new(), 0);
        status
    }

    /// Whether the pool of a slot takes requests here. Without a partner it refuses them itself.
    fn is_serving(&self, slot: PoolSlot) -> bool {
        let takes =
            |engine: &Engine<D, L>| if self.port.is_some() { engine.takes_requests() } else { !engine.is_closing() };
        self.engine(slot).is_some_and(takes)
    }

    /// Whether the partner's pool has a volume of this name, as far as this node knows.
    fn is_partners(&self, name: &str) -> bool {
        self.volumes_of(PoolSlot::Partner).iter().any(|volume| volume.name == name)
    }

    /// The volumes of a pool, by its own ids.
    fn volumes_of(&self, slot: PoolSlot) -> Vec<VolumeInfo> {
        match self.engine(slot).filter(|engine| engine.has_opened()) {
            Some(engine) => engine.volumes(),
            None => self.port.as_ref().and_then(|port| port.volumes(slot)).unwrap_or_default().to_vec(),
        }
    }

    fn refuse(&mut self, request: &VolumeRequest) {
        let error = if self.is_stopping { VolumeError::ShuttingDown } else { VolumeError::NoSuchVolume };
        self.replies.push_back(VolumeReply { tag: request.tag, result: Err(error) });
    }
}

/// The volumes of all open pools, by name; or a refusal, if there is one.
fn all_volumes(replies: Vec<(PoolSlot, AdminReply)>) -> AdminReply {
    let mut all = Vec::new();
    for (_, reply) in replies {
        match reply {
            AdminReply::Volumes { volumes } => all.extend(volumes),
            other => return other,
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    AdminReply::Volumes { volumes: all }
}

impl<D: BlockDevice, L: LogMemory> VolumeService for Pools<D, L> {
    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn volumes(&self) -> Vec<VolumeInfo> {
        let of = |slot: PoolSlot| {
            self.volumes_of(slot).into_iter().map(move |volume| VolumeInfo { id: slot.outside(volume.id), ..volume })
        };
        let mut volumes: Vec<_> = PoolSlot::ALL.into_iter().flat_map(of).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    fn volume(&self, name: &str) -> Option<VolumeInfo> {
        // The own pool's first; the empty name is nothing else.
        PoolSlot::ALL.into_iter().filter(|slot| *slot == PoolSlot::Home || !name.is_empty()).find_map(|slot| {
            let mut volumes = self.volumes_of(slot).into_iter();
            let volume = if name.is_empty() {
                volumes.min_by_key(|volume| volume.id)?
            } else {
                volumes.find(|volume| volume.name == name)?
            };
            Some(VolumeInfo { id: slot.outside(volume.id), ..volume })
        })
    }

    fn shape(&self, id: ObjectId) -> Option<VolumeShape> {
        let (slot, id) = (PoolSlot::of(id), ObjectId(id.0 & !PARTNER_BIT));
        match self.engine(slot).filter(|engine| engine.has_opened()) {
            Some(engine) => engine.shape(id),
            None => {
                let volumes = self.port.as_ref()?.volumes(slot)?;
                volumes.iter().find(|volume| volume.id == id).map(VolumeInfo::shape)
            }
        }
    }

    fn reach(&self, volume: ObjectId) -> Reach {
        let slot = PoolSlot::of(volume);
        let is_partners = || self.port.as_ref().is_some_and(|port| port.is_served_by_partner(slot));
        match self.is_serving(slot) {
            true => Reach::Here,
            false if is_partners() => Reach::Partner,
            false => Reach::Nobody,
        }
    }

    fn openings(&self) -> [u64; 2] {
        self.openings
    }

    fn has_room(&self, volume: ObjectId) -> bool {
        let slot = PoolSlot::of(volume);
        // Where it will go is decided when it comes: both ways have room for one more.
        self.engine(slot).is_none_or(|engine| engine.has_room(volume))
            && self.port.as_ref().is_none_or(|port| port.has_room(slot))
    }

    fn submit(&mut self, mut request: VolumeRequest) {
        let slot = PoolSlot::of(request.volume);
        request.volume = ObjectId(request.volume.0 & !PARTNER_BIT);
        if self.is_serving(slot)
            && let Some(engine) = self.engine_mut(slot)
        {
            return engine.submit(request);
        }
        match self.port.as_mut().filter(|_| !self.is_stopping) {
            Some(port) => port.submit(slot, request),
            None => self.refuse(&request),
        }
    }

    fn abandon(&mut self, session: u64) {
        if let Some(port) = &mut self.port {
            port.abandon(session);
        }
    }

    fn has_handed_on(&self) -> bool {
        self.engines.iter().flatten().all(Engine::has_handed_on)
            && self.port.as_ref().is_none_or(ForwardPort::has_handed_on)
    }

    fn poll_reply(&mut self) -> Option<VolumeReply> {
        // The hub answers after the pools' turn, and before the front ends'.
        self.replies.pop_front().or_else(|| self.port.as_mut().and_then(ForwardPort::poll))
    }

    fn poll_notice(&mut self) -> Option<ReservationNotice> {
        self.notices.pop_front()
    }

    fn take_lost_notices(&mut self) -> u64 {
        std::mem::take(&mut self.lost_notices)
    }
}

/// Keeps what a front end is to tell its hosts of a pool.
fn keep(notices: &mut VecDeque<ReservationNotice>, lost: &mut u64, (slot, notice): (PoolSlot, ReservationNotice)) {
    if notices.len() < NOTICES_KEPT_MAX {
        notices.push_back(ReservationNotice { volume: slot.outside(notice.volume), ..notice });
    } else {
        *lost = lost.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::HostId, fs::reservation::Notice};
    use twinlog_sim::{SimDisk, SimLog};

    #[test]
    fn notices_that_find_no_room_are_counted() {
        let mut pools = Pools::<SimDisk, SimLog>::new(BlockPool::new(64).expect("a small mapping"), None);
        let host = HostId::new([1; 16]).expect("not zero");
        let notice = |volume| ReservationNotice { host, volume, notice: Notice::ReservationReleased };
        pools.notify(PoolSlot::Partner, 7, (1..=NOTICES_KEPT_MAX as u64).map(|id| notice(ObjectId(id))));
        assert_eq!(pools.take_lost_notices(), 7);
        pools.notify(PoolSlot::Home, 0, [notice(ObjectId(1)); 2]);
        assert_eq!((pools.take_lost_notices(), pools.take_lost_notices()), (2, 0));
        assert_eq!(pools.poll_notice(), Some(notice(ObjectId(1 | PARTNER_BIT))), "by the name that it has outside");
        pools.notify(PoolSlot::Home, 0, [notice(ObjectId(1)); 1]);
        let told: Vec<_> = std::iter::from_fn(|| pools.poll_notice()).collect();
        assert_eq!((told.len(), told.last()), (NOTICES_KEPT_MAX, Some(&notice(ObjectId(1)))));
        assert_eq!(pools.take_lost_notices(), 0);
    }
}
