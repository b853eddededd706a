//! A block rots that a record in the log needs, while nobody has the pool open. Whoever opens it next cannot perform the record: it holds that and all later
//! ones of the volume, which is offline until an operator orders it online.
//!
//! ```text
//!  the server dies, a --> a node opens the pool --+--> the volume is offline --------------> online --+--> every byte of it is read:
//!  block rots                                     |    every later opening carries what      ^        |    all that was answered is there
//!                                                 |    is held; requests are refused         |        +--> refused, as the block has not
//!                                                 |                                          |        |    healed; or the node dies, or
//!                                                 |                                          +--------+    the pool moves: ordered again
//!                                                 |    online, whatever is lost: exactly what was held is gone
//!                                                 +--> no record needed the block: it heals
//! ```
//!
//! | what is asked of the volume meanwhile, at either node | must be |
//! |---|---|
//! | a request that came when it was known to be offline, until it is ordered online | refused as offline; such a change never happens |
//! | one that came before | answered, if the pool contains it; else the same |
//! | the list of volumes | says that it is offline, at both nodes, as soon as they have had time to hear of it |

use super::{
    History,
    ambush::{Act, Step},
    clients::NOTICE_FACTOR,
    found, lines,
    setup::DISK_BLOCKS,
    site::{NAMES, pool_id},
    watch::{Flying, Phase},
};
use crate::{
    history::{Oracle, Violation},
    model::{Change, GivenUp},
    needs::{Content, Rotten},
    setup::{BLOCK, index},
};
use crossbeam_channel::{Receiver, TryRecvError};
use twinlog::{
    base::{BlockAddress, LaneIndex, Lsn, ObjectId},
    format::{object::Offline, record::OwnedRecord, record::RecordKind},
    node::{
        admin::{AdminReply, AdminRequest, CheckReport},
        engine::Engine,
        request::VolumeService,
    },
};
use twinlog_device::Nanos;

/// An operator acts once in so many turns, on average: soon, or when the pool has changed hands.
const OPERATOR_TURNS: [u64; 2] = [200, 3000];

/// What a volume that is offline waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    lane: LaneIndex,
    lsn: Lsn,
    records: u64,
    start_bytes: u64,
    end_bytes: u64,
}

impl Held {
    fn of(offline: &Offline) -> Self {
        let Offline { lane, lsn, records, start_bytes, end_bytes, .. } = *offline;
        Self { lane, lsn, records, start_bytes, end_bytes }
    }

    /// Whether it is what may be left of `before` when some of it has been performed.
    fn is_left_of(&self, before: &Self) -> bool {
        let is_less = self.records <= before.records && self.start_bytes >= before.start_bytes;
        self.lane == before.lane && self.end_bytes == before.end_bytes && is_less && self.lsn >= before.lsn
    }
}

/// An order to bring the volume online.
struct OnlineOrder {
    /// Where the answer comes, until it has come.
    replies: Option<Receiver<AdminReply>>,
    /// What it gives up, if it does.
    gives_up: Option<GivenUp>,
    /// The block had not healed when it was given: it is meant to be refused, and may have been when the block heals before its answer is heard.
    is_early: bool,
    /// The block had healed, or did so before the answer was heard.
    was_healed: bool,
    /// It was not carried out, and will not be.
    is_refused: bool,
}

/// A block that has rotted, and what has come of it.
pub(super) struct Rot {
    rotten: Rotten,
    is_healed: bool,
    /// In how many turns an operator acts once.
    operator_turns: u64,
    /// Who had the pool open last, or has found the volume offline last.
    node: usize,
    /// What the newest opening has found to be held; `None`: nobody has opened the pool since.
    held: Option<Held>,
    /// Since when, and how many requests there had been.
    since: (Nanos, u64),
    /// Orders since then.
    orders: Vec<OnlineOrder>,
}

impl Rot {
    fn volume(&self) -> ObjectId {
        self.rotten.volume
    }

    /// Whether the newest opening has found the volume offline, and no order since may have changed that.
    fn is_surely_offline(&self) -> bool {
        self.held.is_some() && self.orders.iter().all(|order| order.is_refused)
    }
}

/// Requests to a volume up to this one may have met it offline, or its block rotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aftermath {
    volume: ObjectId,
    last_id: u64,
}

impl History {
    /// The volume that is known to be offline: nobody reads it.
    pub(super) fn offline_volume(&self, pool: usize) -> Option<ObjectId> {
        self.rots[pool].as_ref().filter(|rot| rot.held.is_some()).map(Rot::volume)
    }

    /// Whether a block of the pool's disk is not as it was written.
    pub(super) fn is_rotten(&self, pool: usize) -> bool {
        self.rots[pool].as_ref().is_some_and(|rot| !rot.is_healed)
    }

    /// Whether a volume's name is that of one which is looked after here.
    pub(super) fn is_held_for(&self, name: &str) -> bool {
        let is_named = |pool: usize| {
            let volume = self.rots[pool].as_ref().map(Rot::volume);
            volume.and_then(|id| self.pools[pool].model.volumes().get(&id)).is_some_and(|volume| volume.name == name)
        };
        (0..2).any(is_named)
    }

    /// The server dies, and a block rots that a record in its log needs.
    pub(super) fn rot(&mut self, pool: usize) {
        let watch = &self.pools[pool];
        let is_known = self.rots[pool].is_none() && !watch.may_be_offline && watch.uncertain.is_none();
        let Some(server) = watch.server.filter(|_| is_known && self.forced.is_none()) else { return };
        match self.prng.below(5) {
            0 | 1 => self.die(server, false),
            2 => self.die(server, true),
            3 => self.restart(server),
            _ => {
                (0..2).for_each(|node| self.die(node, false));
                let first = index(self.prng.below(2));
                self.returns[first] = Some(self.figures.turns);
            }
        }
        for node in 0..2 {
            if self.pools[pool].open_at[node] {
                self.die(node, false);
            }
        }
        let disks = std::slice::from_ref(&self.site.media[pool]);
        let model = &self.pools[pool].model;
        let rotten = Content::newest(disks, DISK_BLOCKS).and_then(|content| {
            content.rot(&self.site.logs[server][pool], |id| model.volumes().contains_key(&id), &mut self.prng)
        });
        let Some(rotten) = rotten else { return };
        self.note(|_| {
            let Rotten { block, bit, volume, .. } = &rotten;
            format!("bit {bit} of block {block} rots: volume {volume} of pool {}", NAMES[pool])
        });
        self.tell(lines::UNPERFORMABLE, false);
        let (held, since, orders) = (None, (self.site.world.now(), self.next_id), Vec::new());
        let operator_turns = *self.prng.pick(&OPERATOR_TURNS);
        self.rots[pool] = Some(Rot { rotten, is_healed: false, operator_turns, node: server, held, since, orders });
    }

    /// Everything that rotted is as it was. What is offline stays so.
    pub(super) fn heal_rots(&mut self) {
        (0..2).for_each(|pool| self.heal_rot(pool));
    }

    fn heal_rot(&mut self, pool: usize) {
        if let Some(rot) = self.rots[pool].as_mut().filter(|rot| !rot.is_healed) {
            rot.rotten.heal(std::slice::from_ref(&self.site.media[pool]));
            rot.is_healed = true;
            rot.orders.iter_mut().for_each(|order| order.was_healed |= order.replies.is_some());
            self.note(|_| format!("what rotted of pool {} has healed", NAMES[pool]));
        }
    }

    /// What keeps a volume offline, as the engine of a node that serves says.
    fn offline_at(&self, pool: usize, node: usize) -> Vec<(ObjectId, Held)> {
        let coordinator = self.engine(pool, node).and_then(Engine::coordinator);
        let volumes = coordinator.into_iter().flat_map(|coordinator| coordinator.volumes().values());
        volumes.filter_map(|volume| Some((volume.id, Held::of(&volume.offline?)))).collect()
    }

    /// A node serves a pool: what is held is what must be.
    pub(super) fn meet_offline(&mut self, pool: usize, node: usize) -> Result<(), Violation> {
        let offline = self.offline_at(pool, node);
        let volume = self.rots[pool].as_ref().map(Rot::volume);
        let stranger = offline.iter().find(|(id, _)| Some(*id) != volume);
        if let Some((id, held)) = stranger.filter(|_| !self.pools[pool].may_be_offline) {
            let what =
                format!("volume {id} of pool {} is offline, and nothing of it has rotted: {held:?}", NAMES[pool]);
            return Err(found(Oracle::Damage, what));
        }
        let now = offline.into_iter().find(|(id, _)| Some(*id) == volume).map(|(_, held)| held);
        let Some(rot) = &mut self.rots[pool] else { return Ok(()) };
        let orders = std::mem::take(&mut rot.orders);
        let had = std::mem::replace(&mut rot.node, node);
        let before = std::mem::replace(&mut rot.held, now);
        rot.since = (self.site.world.now(), self.next_id);
        match (before, now) {
            (None, None) => self.end_rot(pool),
            (None, Some(_)) => {
                self.tally.count_named(lines::UNPERFORMABLE, (0, 1));
                let line = if had == node { lines::HELD_BY_OWNER } else { lines::HELD_BY_PARTNER };
                self.tell(line, true);
            }
            (Some(before), Some(now)) => {
                let is_same = before == now;
                if !is_same && (orders.is_empty() || !now.is_left_of(&before)) {
                    let what = format!("pool {}: {before:?} was held, and {now:?} is", NAMES[pool]);
                    return Err(found(Oracle::Damage, what));
                }
                self.tell(lines::CARRIED, had != node);
                if !orders.is_empty() {
                    self.tell(lines::ONLINE_INTERRUPTED, !is_same);
                }
            }
            (Some(before), None) => {
                let Some(order) = orders.into_iter().find(|order| !order.is_refused) else {
                    let what = format!("pool {}: {before:?} was held, and is not, unordered", NAMES[pool]);
                    return Err(found(Oracle::Damage, what));
                };
                self.tell(lines::ONLINE_INTERRUPTED, true);
                self.came_back(pool, &order)?;
            }
        }
        Ok(())
    }

    /// The volume is online, as this order said.
    fn came_back(&mut self, pool: usize, order: &OnlineOrder) -> Result<(), Violation> {
        let Some(rot) = &self.rots[pool] else { return Ok(()) };
        let volume = rot.volume();
        if !order.was_healed && order.gives_up.is_none() {
            let what = format!("volume {volume} of pool {} came back, and its block has not", NAMES[pool]);
            return Err(found(Oracle::Damage, what));
        }
        match &order.gives_up {
            Some(given_up) => {
                self.pools[pool].model.give_up(volume, given_up);
                self.tell(lines::GIVEN_UP, !given_up.is_empty());
            }
            None => self.tell(lines::BROUGHT_BACK, true),
        }
        self.end_rot(pool);
        Ok(())
    }

    /// It is over: the volume is as all others.
    fn end_rot(&mut self, pool: usize) {
        self.heal_rot(pool);
        let Some(rot) = self.rots[pool].take() else { return };
        self.pools[pool].aftermath = Some(Aftermath { volume: rot.volume(), last_id: self.next_id });
    }

    /// Whether a request may be refused as one of a volume that is offline, or since what it needs cannot be read.
    pub(super) fn may_be_held_up(&self, pool: usize, id: u64, flying: &Flying) -> bool {
        let is_rotten = self.rots[pool].as_ref().is_some_and(|rot| rot.volume() == flying.volume);
        let is_late = |after: Aftermath| after.volume == flying.volume && id <= after.last_id;
        is_rotten || self.pools[pool].aftermath.is_some_and(is_late)
    }

    /// A volume that is offline does nothing for anybody: what it does after an order shows that this was carried out, before its answer comes.
    pub(super) fn judge_done(&mut self, pool: usize, id: u64, flying: &Flying) -> Result<(), Violation> {
        let rot = self.rots[pool].as_mut().filter(|rot| rot.volume() == flying.volume && rot.held.is_some());
        let Some(rot) = rot.filter(|rot| id > rot.since.1) else { return Ok(()) };
        let Some(place) = rot.orders.iter().rposition(|order| !order.is_refused) else {
            let (ask, node) = (&flying.ask, NAMES[flying.node]);
            return Err(found(
                Oracle::Damage,
                format!("{ask:?} of a volume that is offline was done for a client of {node}"),
            ));
        };
        let mut order = rot.orders.swap_remove(place);
        self.pools[pool].unheard = order.replies.take();
        self.came_back(pool, &order)?;
        self.read_again(pool, flying.volume);
        Ok(())
    }

    /// An operator, and who hears what was ordered.
    pub(super) fn look_at_rot(&mut self, pool: usize) -> Result<(), Violation> {
        self.hear_online(pool)?;
        self.look_at_lists(pool)?;
        let Some(server) = self.pools[pool].server else { return Ok(()) };
        let Some(rot) = &self.rots[pool] else { return Ok(()) };
        let operator_turns = rot.operator_turns;
        let is_waiting = rot.held.is_some() && rot.orders.iter().all(|order| order.replies.is_none());
        let may_act = is_waiting && !self.is_paused[server] && !self.is_leaving(pool, server);
        self.interrupt_late(pool, server);
        if may_act && (self.is_ending || self.prng.chance(1, operator_turns)) {
            self.order_online(pool, server)?;
        }
        Ok(())
    }

    /// What was ordered is done, and the node dies before it says so.
    fn interrupt_late(&mut self, pool: usize, server: usize) {
        let Some(rot) = &self.rots[pool] else { return };
        let is_waiting = rot.orders.last().is_some_and(|order| order.replies.is_some());
        let is_done = is_waiting && !self.offline_at(pool, server).iter().any(|(id, _)| *id == rot.volume());
        if is_done && !self.is_ending && self.prng.chance(1, 4) {
            self.die(server, false);
        }
    }

    fn order_online(&mut self, pool: usize, server: usize) -> Result<(), Violation> {
        let Some(rot) = &self.rots[pool] else { return Ok(()) };
        let (volume, is_first) = (rot.volume(), rot.orders.is_empty());
        let gives_up = is_first && self.prng.chance(1, 4);
        let gives_up = if gives_up { self.given_up(pool, volume)? } else { None };
        if gives_up.is_none() && (self.is_ending || self.prng.chance(3, 4)) {
            // Whatever else fails is mended by the same people.
            self.mend_hardware();
            self.heal_rot(pool);
        }
        let name = self.pools[pool].model.volumes()[&volume].name.clone();
        self.note(|_| format!("{name} is ordered online at {}: {}", NAMES[server], gives_up.is_some()));
        let request = AdminRequest::VolumeOnline { name, accept_loss: gives_up.is_some() };
        let Some(process) = &self.processes[server] else { return Ok(()) };
        let replies = process.node.call(request);
        let Some(rot) = self.rots[pool].as_mut().filter(|_| replies.is_some()) else { return Ok(()) };
        let was_healed = rot.is_healed;
        let is_early = !was_healed && gives_up.is_none();
        rot.orders.push(OnlineOrder { replies, gives_up, is_early, was_healed, is_refused: false });
        if !self.is_ending && self.prng.chance(2, 3) {
            self.interrupt_soon(pool);
        }
        Ok(())
    }

    /// Something happens while the volume is being brought back.
    fn interrupt_soon(&mut self, pool: usize) {
        if self.prng.chance(1, 2) {
            // Some of it is performed, and contained in a consistency point.
            let (soon, later) = (self.prng.below(6), self.prng.between(5, 60));
            let steps = [Step::after_turns(soon, Act::Checkpoint), Step::after_turns(later, Act::OwnerDies)];
            self.lay(Some(pool), steps);
        } else {
            let acts = [Act::OwnerDies, Act::BothDie, Act::Takeover, Act::OwnerIsIsolated];
            let (act, turns_max) = (*self.prng.pick(&acts), *self.prng.pick(&[4, 12, 60]));
            let turns = self.prng.below(turns_max);
            self.lay(Some(pool), [Step::after_turns(turns, act)]);
        }
    }

    /// What is held of a volume, as writes; `None`: its records cannot be read.
    fn given_up(&self, pool: usize, volume: ObjectId) -> Result<Option<GivenUp>, Violation> {
        let content = Content::newest(std::slice::from_ref(&self.site.media[pool]), DISK_BLOCKS);
        let Some(records) = content.and_then(|content| content.held(pool_id(pool), volume)) else { return Ok(None) };
        let changes: Vec<_> = records.iter().map(change_of).collect();
        let said = self.rots[pool].as_ref().and_then(|rot| rot.held).map_or(0, |held| held.records);
        let writes = self.pools[pool].model.writes_of(volume, &changes);
        if said == records.len() as u64 && writes.is_some() {
            return Ok(writes);
        }
        let what = format!(
            "{said} records are said to be held, {} are, and some of nobody's: {}",
            records.len(),
            writes.is_none()
        );
        Err(found(Oracle::Damage, what))
    }

    fn hear_online(&mut self, pool: usize) -> Result<(), Violation> {
        if let Some(replies) = &self.pools[pool].unheard {
            match replies.try_recv() {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.pools[pool].unheard = None,
                Ok(reply) => {
                    self.pools[pool].unheard = None;
                    self.is_brought_online(pool, reply, false)?;
                }
            }
        }
        let Some(rot) = &mut self.rots[pool] else { return Ok(()) };
        let Some(order) = rot.orders.last_mut() else { return Ok(()) };
        let Some(replies) = &order.replies else { return Ok(()) };
        let reply = match replies.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            // The next opening shows what has become of it.
            Err(TryRecvError::Disconnected) => {
                order.replies = None;
                return Ok(());
            }
            Ok(reply) => reply,
        };
        order.replies = None;
        let (is_early, was_healed) = (order.is_early, order.was_healed);
        let may_be_done = was_healed && self.ends_with_its_node(pool, &reply);
        let is_online = self.is_brought_online(pool, reply, is_early)?;
        let rot = self.rots[pool].as_mut().expect("looked at before");
        if is_online {
            let (order, volume) = (rot.orders.pop().expect("it was heard"), rot.volume());
            self.came_back(pool, &order)?;
            self.read_again(pool, volume);
        } else {
            // What ended with its node may be done at the next opening, also where the block has healed meanwhile.
            rot.orders.last_mut().expect("it was heard").is_refused = is_early && !may_be_done;
            self.tell(lines::ONLINE_REFUSED, is_early);
        }
        Ok(())
    }

    /// Whether an order to bring a volume online was carried out, as its answer says. One that was meant to be refused may be, others need a reason.
    fn is_brought_online(&self, pool: usize, reply: AdminReply, is_meant: bool) -> Result<bool, Violation> {
        let is_excused = is_meant || self.is_excused(pool) || self.ends_with_its_node(pool, &reply);
        match reply {
            AdminReply::Volumes { volumes } if volumes.iter().any(|volume| volume.offline.is_some()) => {
                Err(found(Oracle::Damage, "a volume is online, and is shown as offline"))
            }
            AdminReply::Volumes { .. } => Ok(true),
            AdminReply::Refused { .. } if is_excused => Ok(false),
            AdminReply::Refused { message, .. } => {
                Err(found(Oracle::Error, format!("a volume was not brought online without a fault: {message}")))
            }
            reply => Err(found(Oracle::Protocol, format!("an order got the answer to another: {reply:?}"))),
        }
    }

    /// Whether an order was refused because the node stops, or hands the pool over: it may have been carried out all the same.
    fn ends_with_its_node(&self, pool: usize, reply: &AdminReply) -> bool {
        let AdminReply::Refused { message, .. } = reply else { return false };
        let is_leaving = self.pools[pool].server.is_none_or(|node| self.is_leaving(pool, node));
        is_leaving || message.contains("shutting down") || message.contains("stopp")
    }

    /// Everything of a volume that is online again is read, and judged.
    fn read_again(&mut self, pool: usize, volume: ObjectId) {
        let watch = &mut self.pools[pool];
        if watch.server.is_none() {
            return;
        }
        let mut left =
            if let Phase::Reading(left) = &mut watch.phase { std::mem::take(left) } else { Default::default() };
        left.extend(watch.parts_of(volume));
        watch.phase = Phase::Reading(left);
    }

    /// Both nodes say of a volume that it is offline, when they have had time to hear of it, and nobody waits for it.
    fn look_at_lists(&self, pool: usize) -> Result<(), Violation> {
        let watch = &self.pools[pool];
        let Some(server) = watch.server else { return Ok(()) };
        let Some(rot) = self.rots[pool].as_ref().filter(|rot| rot.is_surely_offline()) else { return Ok(()) };
        let since = Nanos(watch.calm_since.0.max(rot.since.0.0));
        let (now, patience) = (self.site.world.now(), self.setup.detection * NOTICE_FACTOR);
        if now.since(since) < patience {
            return Ok(());
        }
        // A node that has started lets its clients in when it knows the volumes of both pools, or has waited for them for as long again.
        let waits =
            |flying: &&Flying| flying.volume == rot.volume() && now.since(flying.since.max(since)) >= patience * 2;
        if let Some(flying) = watch.flying.values().find(waits) {
            let what = format!("{:?} waits for a volume that is offline, at {}", flying.ask, NAMES[flying.node]);
            return Err(found(Oracle::Liveness, what));
        }
        let name = &watch.model.volumes()[&rot.volume()].name;
        for node in [server, 1 - server] {
            let reactor = self.processes[node].as_ref().and_then(|process| process.node.reactor(0));
            let known = reactor.and_then(|reactor| reactor.pools().volume(name));
            if known.is_some_and(|volume| volume.offline.is_none()) {
                let what = format!("{name} is offline, and {} shows it as any other", NAMES[node]);
                return Err(found(Oracle::Damage, what));
            }
        }
        Ok(())
    }

    /// A check began while a block of a volume that is offline was rotten: it names the block, if that still is, and the volume.
    pub(super) fn judge_damage(&self, pool: usize, report: &CheckReport) -> Result<(), Violation> {
        let Some(rot) = self.rots[pool].as_ref().filter(|rot| !rot.is_healed && rot.is_surely_offline()) else {
            return Ok(());
        };
        let (name, block) = (&self.pools[pool].model.volumes()[&rot.volume()].name, rot.rotten.block);
        let address = BlockAddress::new(0, block).to_string();
        let is_named = report.problems.iter().any(|line| line.contains(name) && line.contains(&address));
        if is_named && report.offline.iter().any(|volume| volume.volume == *name) {
            return Ok(());
        }
        Err(found(Oracle::Damage, format!("block {block} of {name}, which is offline, has rotted: {report:?}")))
    }

    /// A request was refused as one of a volume that is offline.
    pub(super) fn tell_refused_offline(&mut self, flying: &Flying) {
        self.tell(lines::REFUSED_OFFLINE, !flying.is_local);
    }
}

/// The bytes of a volume that a record changes, and what it puts there: nothing for zeroes.
fn change_of(record: &OwnedRecord) -> Change<'_> {
    let draft = &record.draft;
    let start = draft.offset_bytes;
    match draft.kind {
        RecordKind::Block | RecordKind::Write => {
            (start..start + record.payload.len() as u64, Some(record.payload.as_slice()))
        }
        RecordKind::Discard => {
            let whole = start.next_multiple_of(BLOCK)..(start + draft.argument) / BLOCK * BLOCK;
            (whole.start..whole.end.max(whole.start), None)
        }
        _ => (start..start + draft.argument, None),
    }
}
