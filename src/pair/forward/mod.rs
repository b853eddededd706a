//! The forwarder of a node of a pair: requests at either node reach the node that serves the pool. It lives on reactor 0, beside the
//! controller, and is a value that moves when it is polled.
//!
//! ```text
//! front ends --port--> client ---frames---> partner's server --> its engine
//!                         |
//!                         +--- the pool is served here after all ---> engine
//! ```
//!
//! # Invariants
//!
//! 1. A request is answered exactly once, and a change is performed at most once, whatever happens between the two nodes: see decision 0008.
//! 2. A change is answered `Done` only by a node that has the pool open and finds it stable there.
//! 3. A request is sent only to a partner that says that it serves the pool, and performed only by a node whose engine takes requests, of a frame
//!    that was sent in this ownership or a later one.
//! 4. While nobody serves the pool requests wait, for at most the deadline. What is with the partner has no deadline: it is the partner's.
//! 5. Everything is bounded: what waits, by the ports; what is with the partner, in number and bytes; what came from it, likewise; each for one
//!    pool, so that one which stands still does not hold up the other. Memory for a read's
//!    reply is there before the read is sent, so nothing that arrives ever waits for memory in front of batches and acknowledgements.
//!
//! # What happens when
//!
//! | what | then |
//! |---|---|
//! | the owner dies, this node takes over | changes whose names the pool contains are answered, everything else is performed here |
//! | the owner dies and is back before that | everything is asked for again; the owner knows the names that its pool contains |
//! | the link is lost, the owner lives | the same after the next session begins |
//! | a path is lost, others are left | everything is asked for again, once: the partner closes the path before it takes what follows. It knows what it has in hand, and drops what arrives when its slot is another change's |
//! | the pool is handed over, in either direction | the former owner answers what it has admitted and refuses the rest unperformed; that goes to the next owner |
//! | the partner's pool fails | what it has in hand is unsure, and waits for the next owner |
//! | this node dies | its clients are gone; its names are found by nobody |

mod client;
mod convert;
mod notices;
mod server;
#[cfg(test)]
mod stub;

use super::{
    controller::{Controller, ForwardEvent},
    interconnect::{Interconnect, Message},
    wire::{VOLUMES_PER_FRAME_MAX, VolumeEntry, Volumes},
};
use crate::{
    base::{Incarnation, PoolId, ReactorIndex, planted},
    node::{
        engine::Engine,
        forward::{ToHub, ToPort},
        pools::{PoolSlot, Pools},
        request::{FORWARDED_SESSION, OfflineAt, VolumeInfo, VolumeService},
        sweep::Sweeps,
    },
    reactor::mailbox::{Mailbox, MailboxSender, SendError},
};
use client::Client;
use notices::{Inbox, Outbox};
use server::Server;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use twinlog_device::{BlockDevice, LogMemory, Nanos};

/// Volumes of a partner's pool that are listened to.
const VOLUMES_MAX: usize = 1 << 20;

/// How long the forwarder waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A request for a pool that nobody serves, before it is answered with an error.
    pub deadline: Duration,
    /// Clients for the volumes of a pool, after the node's start, before they hear that there are none.
    pub list_wait: Duration,
    /// After a refusal the partner is asked again when its word about the pool has had time to come.
    pub refused_pause: Duration,
    /// Who waits for memory, or for room in a mailbox, looks again after this long.
    pub starved_pause: Duration,
}

impl Timing {
    /// Of a real pair, whose requests wait for `deadline`.
    #[must_use]
    pub fn with_deadline(deadline: Duration) -> Self {
        Self {
            deadline,
            list_wait: Duration::from_secs(5),
            refused_pause: Duration::from_millis(5),
            starved_pause: Duration::from_millis(1),
        }
    }

    /// Who waits for somebody's word looks again this often.
    fn look(&self) -> Duration {
        self.deadline.min(self.list_wait / 20)
    }
}

/// What a forwarder is made of.
pub struct ForwarderParts {
    /// The pools' ids and lanes: the own one, the partner's.
    pub pools: [(PoolId, u16); 2],
    /// Where the ports' requests arrive.
    pub mailbox: Mailbox<ToHub>,
    /// The ports, by reactor.
    pub ports: Vec<MailboxSender<ToPort>>,
    /// How long it waits for what.
    pub timing: Timing,
    /// Where names begin: random.
    pub first_number: u64,
    /// Of this node's clients.
    pub sweeps: Arc<Sweeps>,
}

/// Who serves a pool, as far as its requests are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Here,
    There,
    /// Since then.
    Nowhere(Nanos),
}

/// A pool.
struct Side {
    pool: PoolId,
    service: Service,
    /// The partner is not asked before.
    pause_until: Nanos,
    /// The volumes, as far as they are known.
    list: Option<Arc<Vec<VolumeInfo>>>,
    /// A list that is not complete.
    part: Vec<VolumeInfo>,
    /// Which version of the own engine's list the partner was told in this session, and the ports.
    told: Option<u64>,
    listed: Option<u64>,
    /// What hosts are to be told of reservations: the partner's, and this node's.
    outbox: Outbox,
    inbox: Inbox,
}

/// The forwarder.
pub struct Forwarder {
    mailbox: Mailbox<ToHub>,
    ports: Vec<(MailboxSender<ToPort>, VecDeque<ToPort>)>,
    timing: Timing,
    sides: [Side; 2],
    client: Client,
    server: Server,
    is_up: bool,
    /// The life of the partner's process that was met last.
    partner: Option<Incarnation>,
    born: Option<Nanos>,
    now: Nanos,
}

impl Forwarder {
    /// A forwarder that has heard of nothing yet.
    #[must_use]
    pub fn new(parts: ForwarderParts) -> Self {
        let ForwarderParts { pools, mailbox, ports, timing, first_number, sweeps } = parts;
        let ids = pools.map(|(pool, _)| pool);
        let side = |pool| Side {
            pool,
            service: Service::Nowhere(Nanos(0)),
            pause_until: Nanos(0),
            list: None,
            part: Vec::new(),
            told: None,
            listed: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
        };
        Self {
            mailbox,
            ports: ports.into_iter().map(|port| (port, VecDeque::new())).collect(),
            timing,
            sides: ids.map(side),
            client: Client::new(pools, first_number),
            server: Server::new(ids, sweeps),
            is_up: false,
            partner: None,
            born: None,
            now: Nanos(0),
        }
    }

    /// One bounded turn, after the controller's. What it has for the ports leaves with [`post`](Self::post): what has come from the partner for hosts is told
    /// before. Returns whether anything was done.
    pub fn poll<D: BlockDevice, L: LogMemory>(
        &mut self,
        controller: &mut Controller<L>,
        pools: &mut Pools<D, L>,
        way: &mut dyn Interconnect,
        now: Nanos,
    ) -> bool {
        self.now = now;
        let born = *self.born.get_or_insert(now);
        (self.client.is_starved, self.server.is_starved) = (false, false);
        self.server.look_at_sweeps();
        let mut is_busy = self.follow(controller, pools);
        is_busy |= self.hear(controller, pools);
        is_busy |= self.take_replies(pools);
        while let Some(message) = self.mailbox.receive() {
            is_busy = true;
            self.client.take(message, now);
        }
        is_busy |= self.serve(controller, pools, way);
        // In front of the replies that show what they tell of.
        is_busy |= self.tell_notices(controller, pools, way);
        is_busy |= self.server.poll(pools, way);
        self.tell_volumes(controller, pools, way);
        let (age, list_wait) = (now.since(born), self.timing.list_wait);
        self.stop_waiting_for_lists(age >= list_wait || (age >= list_wait / 2 && is_alone(controller, pools)));
        is_busy
    }

    /// Hands the ports what the engines have done in this turn: an answer leaves in the turn in which it was found that it may be given.
    pub fn deliver<D: BlockDevice, L: LogMemory>(&mut self, pools: &mut Pools<D, L>) -> bool {
        self.take_replies(pools) && self.post()
    }

    fn take_replies<D: BlockDevice, L: LogMemory>(&mut self, pools: &mut Pools<D, L>) -> bool {
        let mut is_any = false;
        while let Some((slot, reply)) = pools.next_hub_reply() {
            is_any = true;
            if reply.tag.session == FORWARDED_SESSION {
                self.server.performed(slot, reply);
            } else {
                self.client.performed(reply);
            }
        }
        is_any
    }

    /// When [`poll`](Self::poll) has something to do even if nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let is_starved = self.client.is_starved || self.server.is_starved;
        let is_untold = self.is_up && self.sides.iter().any(|side| side.outbox.is_waiting());
        let is_held = is_untold || self.server.is_busy() || self.ports.iter().any(|(_, waiting)| !waiting.is_empty());
        let soon = (is_starved || is_held).then(|| self.now + self.timing.starved_pause);
        let paused = |slot: &PoolSlot| self.client.is_waiting(*slot);
        let pauses = PoolSlot::ALL.into_iter().filter(paused).map(|slot| {
            let side = &self.sides[slot.index()];
            let until = side.pause_until;
            if until > self.now { until } else { self.now + self.timing.look() }
        });
        let lists = self.sides.iter().any(|side| side.list.is_none()).then(|| self.now + self.timing.look());
        soon.into_iter().chain(pauses).chain(lists).min()
    }

    /// Who serves which pool; what is unsure is resolved as soon as this node does.
    fn follow<D: BlockDevice, L: LogMemory>(&mut self, controller: &Controller<L>, pools: &Pools<D, L>) -> bool {
        let mut is_news = false;
        for slot in PoolSlot::ALL {
            let engine = pools.engine(slot);
            self.server.follow(slot, engine);
            let side = &mut self.sides[slot.index()];
            let service = if engine.is_some_and(Engine::takes_requests) {
                Service::Here
            } else if controller.served_by_partner(slot).is_some() {
                Service::There
            } else if let Service::Nowhere(since) = side.service {
                Service::Nowhere(since)
            } else {
                Service::Nowhere(self.now)
            };
            if service == side.service {
                continue;
            }
            is_news = true;
            let (was_there, is_there) = (side.service == Service::There, service == Service::There);
            side.service = service;
            if was_there != is_there {
                for (_, waiting) in &mut self.ports {
                    waiting.push_back(ToPort::ServedByPartner(slot, is_there));
                }
            }
            match service {
                Service::Here => self.client.resolve(slot, self.server.contained(slot), self.now),
                // What it had in hand when it stopped serving was answered, or is asked for again.
                Service::There => self.client.recall(slot, self.now),
                Service::Nowhere(_) => {}
            }
        }
        is_news
    }

    fn hear<D: BlockDevice, L: LogMemory>(&mut self, controller: &mut Controller<L>, pools: &mut Pools<D, L>) -> bool {
        let mut is_busy = false;
        while let Some(event) = controller.next_forward_event() {
            is_busy = true;
            match event {
                ForwardEvent::Up(partner) => {
                    self.is_up = true;
                    self.meet(partner);
                    self.begin_session();
                }
                ForwardEvent::Down => {
                    self.is_up = false;
                    self.sides.iter_mut().for_each(|side| side.outbox.part());
                    self.begin_session();
                }
                ForwardEvent::PathLost => {
                    self.recall_all();
                    self.sides.iter_mut().for_each(|side| side.told = None);
                }
                ForwardEvent::Message(message) => self.hear_message(message, pools),
            }
        }
        is_busy
    }

    /// Nothing of what a process of the partner's was told, or has told, is another one's.
    fn meet(&mut self, partner: Incarnation) {
        if self.partner.replace(partner) != Some(partner) && !planted::is("notices-of-a-former-life") {
            for side in &mut self.sides {
                side.outbox.begin();
                side.inbox.begin();
            }
        }
    }

    fn begin_session(&mut self) {
        self.server.disconnect();
        self.recall_all();
        for side in &mut self.sides {
            side.told = None;
            side.part.clear();
        }
    }

    fn recall_all(&mut self) {
        PoolSlot::ALL.into_iter().for_each(|slot| self.client.recall(slot, self.now));
        if !planted::is("notices-not-said-again") {
            self.sides.iter_mut().for_each(|side| side.outbox.recall());
        }
    }

    fn hear_message<D: BlockDevice, L: LogMemory>(&mut self, message: Message, pools: &mut Pools<D, L>) {
        let Some(slot) = PoolSlot::ALL.into_iter().find(|slot| self.sides[slot.index()].pool == message.pool()) else {
            return;
        };
        match message {
            Message::Request { epoch, request, bytes, .. } => self.server.hear(slot, epoch, request, bytes),
            Message::Reply { reply, bytes, .. } => {
                let is_refused = self.client.hear(slot, (&reply, &bytes), self.now);
                if is_refused {
                    self.sides[slot.index()].pause_until = self.now + self.timing.refused_pause;
                }
            }
            Message::Volumes { list, .. } => self.hear_volumes(slot, list),
            Message::Notices { notices, .. } => {
                let (lost, new) = self.sides[slot.index()].inbox.take(notices);
                pools.notify(slot, lost, new);
            }
            _ => {}
        }
    }

    /// Lets what waits go where the pool is served.
    fn serve<D: BlockDevice, L: LogMemory>(
        &mut self,
        controller: &Controller<L>,
        pools: &mut Pools<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        if pools.is_stopping() {
            self.client.stop();
        }
        let (mut is_busy, blocks) = (false, pools.blocks().clone());
        for slot in PoolSlot::ALL {
            let side = &self.sides[slot.index()];
            match side.service {
                Service::Here => {
                    let engine = pools.engine_mut(slot);
                    is_busy |= engine.is_some_and(|engine| self.client.perform(slot, engine));
                }
                Service::There if self.is_up && self.now >= side.pause_until => {
                    if let Some(epoch) = controller.served_by_partner(slot) {
                        is_busy |= self.client.send((slot, epoch), way, &blocks);
                    }
                }
                Service::There => {}
                Service::Nowhere(since) => self.client.expire(slot, since, (self.now, self.timing.deadline)),
            }
        }
        is_busy
    }

    /// Tells the partner what its hosts are to be told of reservations, also of a pool that this node has had until now.
    fn tell_notices<D: BlockDevice, L: LogMemory>(
        &mut self,
        controller: &Controller<L>,
        pools: &mut Pools<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        while let Some((slot, notice)) = pools.next_partner_notice() {
            self.sides[slot.index()].outbox.add(notice);
        }
        let mut is_busy = false;
        for slot in PoolSlot::ALL {
            let (epoch, side) = (controller.epoch(slot), &mut self.sides[slot.index()]);
            while self.is_up
                && epoch.0 > 0
                && way.has_room_to_forward()
                && let Some(notices) = side.outbox.next_frame()
            {
                way.send(Message::Notices { pool: side.pool, epoch, notices });
                is_busy = true;
            }
        }
        is_busy
    }

    /// Tells the partner and the ports of the volumes of pools that are open here.
    fn tell_volumes<D: BlockDevice, L: LogMemory>(
        &mut self,
        controller: &Controller<L>,
        pools: &Pools<D, L>,
        way: &mut dyn Interconnect,
    ) {
        for slot in PoolSlot::ALL {
            let side = &mut self.sides[slot.index()];
            let Some(engine) = pools.engine(slot).filter(|engine| engine.has_opened()) else {
                (side.told, side.listed) = (None, None);
                continue;
            };
            let version = Some(engine.volumes_version());
            if side.listed != version {
                side.listed = version;
                self.list(slot, engine.volumes());
            }
            let side = &mut self.sides[slot.index()];
            let epoch = controller.epoch(slot);
            if side.told != version && self.is_up && way.has_room_to_forward() && epoch.0 > 0 {
                side.told = version;
                for list in frames_of(&engine.volumes()) {
                    way.send(Message::Volumes { pool: side.pool, epoch, list });
                }
            }
        }
    }

    /// What the partner says of a pool that it has open.
    fn hear_volumes(&mut self, slot: PoolSlot, list: Volumes) {
        let side = &mut self.sides[slot.index()];
        if side.listed.is_some() {
            // This node has it open itself: the partner's word is old.
            return;
        }
        if list.first == 0 {
            side.part.clear();
        }
        if side.part.len() as u64 != u64::from(list.first) || side.part.len() > VOLUMES_MAX {
            side.part.clear();
            return;
        }
        let why = || "the node that serves it says why".to_owned();
        let info = |entry: VolumeEntry| VolumeInfo {
            id: entry.id,
            name: entry.name,
            size_bytes: entry.size_bytes,
            block_size: entry.block_size,
            offline: entry.offline.map(|(lane, lsn)| OfflineAt { lane, lsn, why: why() }),
        };
        side.part.extend(list.entries.into_iter().map(info));
        if side.part.len() as u64 == u64::from(list.total_count) {
            let volumes = std::mem::take(&mut side.part);
            self.list(slot, volumes);
        }
    }

    /// Tells the ports of a pool's volumes.
    fn list(&mut self, slot: PoolSlot, volumes: Vec<VolumeInfo>) {
        let volumes = Arc::new(volumes);
        self.sides[slot.index()].list = Some(volumes.clone());
        for (_, waiting) in &mut self.ports {
            waiting.push_back(ToPort::Volumes(slot, volumes.clone()));
        }
    }

    /// Clients that wait for the volumes of a pool that nobody tells hear that there are none.
    fn stop_waiting_for_lists(&mut self, is_over: bool) {
        for slot in PoolSlot::ALL {
            if is_over && self.sides[slot.index()].list.is_none() {
                self.list(slot, Vec::new());
            }
        }
    }

    /// Hands the ports what is theirs. Returns whether anything was.
    pub fn post(&mut self) -> bool {
        for (reactor, message) in self.client.done.drain(..) {
            let ReactorIndex(index) = reactor;
            self.ports[usize::from(index)].1.push_back(message);
        }
        let mut is_busy = false;
        for (port, waiting) in &mut self.ports {
            while let Some(message) = waiting.pop_front() {
                match port.send(message) {
                    Ok(()) => is_busy = true,
                    Err(SendError::Full(message)) => {
                        waiting.push_front(message);
                        break;
                    }
                    // The reactor has ended, and its clients are gone.
                    Err(SendError::Closed(_)) => {}
                }
            }
        }
        is_busy
    }
}

/// Whether the partner is away, and no pool is on its way here.
fn is_alone<D: BlockDevice, L: LogMemory>(controller: &Controller<L>, pools: &Pools<D, L>) -> bool {
    let is_opening =
        PoolSlot::ALL.into_iter().any(|slot| pools.engine(slot).is_some_and(|engine| !engine.has_opened()));
    controller.is_partner_away() && !is_opening
}

fn frames_of(volumes: &[VolumeInfo]) -> Vec<Volumes> {
    let count = |number: usize| u32::try_from(number).expect("memory does not hold so many volumes");
    let entry = |volume: &VolumeInfo| VolumeEntry {
        id: volume.id,
        size_bytes: volume.size_bytes,
        block_size: volume.block_size,
        offline: volume
            .offline
            .as_ref()
            .filter(|_| !planted::is("offline-not-told"))
            .map(|offline| (offline.lane, offline.lsn)),
        name: volume.name.clone(),
    };
    let starts = (0..volumes.len().max(1)).step_by(VOLUMES_PER_FRAME_MAX);
    let frame = |first: usize| Volumes {
        total_count: count(volumes.len()),
        first: count(first),
        entries: volumes.iter().skip(first).take(VOLUMES_PER_FRAME_MAX).map(entry).collect(),
    };
    starts.map(frame).collect()
}
