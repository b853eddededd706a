//! Requests of this node's clients to a pool that is not open here, or was not when they came.
//!
//! ```text
//!            owner serves             reply
//! Waiting ----------------> Sent --------------> answered
//!  |  ^                      |
//!  |  +--- link lost, or refused unperformed ---+   (after a lost link a change is *unsure* until its name is found, or not)
//!  |
//!  +--- this node serves --> Performing -------> answered
//!  +--- nobody serves for too long ------------> answered with an error
//! ```
//!
//! A change keeps its name, and the slot of it, until it is answered ([`ForwardId`]).

use super::convert::{Sender, name_of, next_part, request_of, result_of};
use crate::{
    base::{
        Epoch, ForwardId, ForwardedChanges, LaneIndex, ObjectId, PoolId, ReactorIndex, forwarded::forward_slots,
        planted,
    },
    node::{
        engine::Engine,
        forward::{Forward, ToHub, ToPort},
        pools::PoolSlot,
        request::{
            Payload, ReplyData, RequestTag, VolumeError, VolumeOperation, VolumeReply, VolumeRequest, VolumeService,
            WAITED_SESSION,
        },
    },
    pair::{
        interconnect::{Interconnect, Message},
        wire::{Reply, Request},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};
use twinlog_device::{BlockDevice, BlockPool, LogMemory, Nanos};

/// Requests of one pool that may be with the partner at a time: as many as there are names of changes.
pub(super) const SENT_MAX: usize = 256;
/// Bytes that they may carry, there or back: eight of the largest.
pub(super) const SENT_BYTES_MAX: u64 = 8 << 20;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Sent,
    Performing,
}

/// What a request waits for before it can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// A slot of its lane: requests of other lanes go on.
    ForName,
    /// Room or memory: what came later waits as well.
    ForRoom,
}

/// A name, and the slot that it takes in its lane.
#[derive(Clone, Copy, Debug)]
struct Name {
    id: u64,
    place: Option<(usize, usize)>,
}

/// A request.
struct Entry {
    from: ReactorIndex,
    slot: PoolSlot,
    /// As its port counts them.
    bytes: u64,
    tag: RequestTag,
    volume: ObjectId,
    sender: Sender,
    /// `None` while it is performed here.
    operation: Option<VolumeOperation>,
    phase: Phase,
    /// Of the part that is sent.
    name: Option<Name>,
    /// Where the bytes of a read go.
    buffer: Option<Payload>,
    /// Its client is gone, and may have asked for it again over another path: unless it is under way it never will be.
    is_abandoned: bool,
    since: Nanos,
}

impl Entry {
    fn sent_bytes(&self) -> u64 {
        match &self.operation {
            Some(operation) if operation.carries_bytes() => {
                let part = next_part(operation);
                part.end - part.start
            }
            _ => 0,
        }
    }

    /// What is asked for next, if it is a change: its bytes, and whether it is about the reservation.
    fn change(&self) -> Option<(Range<u64>, bool)> {
        let operation = self.operation.as_ref().filter(|operation| operation.is_change())?;
        Some((next_part(operation), matches!(operation, VolumeOperation::Reserve(_))))
    }

    /// Whether both are changes whose order shows, of two sessions: one may be the other, asked for again.
    fn may_be_repeated_by(&self, later: &Self) -> bool {
        let is_of_another = (self.from, self.tag.session) != (later.from, later.tag.session);
        if !is_of_another || self.volume != later.volume {
            return false;
        }
        let (Some((bytes, reserves)), Some((later_bytes, later_reserves))) = (self.change(), later.change()) else {
            return false;
        };
        bytes.start < later_bytes.end && later_bytes.start < bytes.end || (reserves && later_reserves)
    }
}

/// One pool's requests: a pool that stands still at the partner has nothing of the other one's.
struct Lot {
    pool: PoolId,
    /// Keys of those that wait, in the order in which they came.
    waiting: BTreeSet<u64>,
    /// Who waits for which reply.
    sent: BTreeMap<u64, u64>,
    sent_bytes: u64,
    /// Free slots of each lane.
    free: Vec<Vec<usize>>,
}

/// All of them.
pub(super) struct Client {
    entries: BTreeMap<u64, Entry>,
    lots: [Lot; 2],
    next_key: u64,
    next_number: u64,
    /// What goes to the ports.
    pub(super) done: Vec<(ReactorIndex, ToPort)>,
    /// Something waits for memory.
    pub(super) is_starved: bool,
}

impl Client {
    /// Nothing has come yet. Names are numbered from `first_number`, which is random.
    pub(super) fn new(pools: [(PoolId, u16); 2], first_number: u64) -> Self {
        let lot = |(pool, lane_count): (PoolId, u16)| {
            let lanes = usize::from(lane_count);
            let free = vec![(0..forward_slots(lanes)).collect(); lanes];
            Lot { pool, waiting: BTreeSet::new(), sent: BTreeMap::new(), sent_bytes: 0, free }
        };
        Self {
            entries: BTreeMap::new(),
            lots: pools.map(lot),
            next_key: 0,
            next_number: first_number,
            done: Vec::new(),
            is_starved: false,
        }
    }

    /// A request has come.
    pub(super) fn take(&mut self, message: ToHub, now: Nanos) {
        let Forward { from, slot, bytes, request } = match message {
            ToHub::Request(forward) => forward,
            ToHub::Abandoned(from, session) => return self.abandon((from, session)),
        };
        let VolumeRequest { tag, volume, host, pass, operation } = request;
        let sender = Sender { host, pass };
        let key = self.next_key;
        self.next_key += 1;
        let (phase, operation) = (Phase::Waiting, Some(operation));
        let (name, buffer, is_abandoned) = (None, None, false);
        let since = now;
        let entry =
            Entry { from, slot, bytes, tag, volume, sender, operation, phase, name, buffer, is_abandoned, since };
        self.entries.insert(key, entry);
        self.lots[slot.index()].waiting.insert(key);
    }

    /// Nobody waits for the requests of a session any more. One that waits is not performed. What an earlier asking of it has done, or is doing, is before
    /// everything that is asked for from now on.
    fn abandon(&mut self, session: (ReactorIndex, u64)) {
        if planted::is("abandoned-is-performed") {
            return;
        }
        for entry in self.entries.values_mut() {
            entry.is_abandoned |= (entry.from, entry.tag.session) == session;
        }
        PoolSlot::ALL.into_iter().for_each(|slot| self.drop_abandoned(slot));
    }

    fn drop_abandoned(&mut self, slot: PoolSlot) {
        self.give_up(slot, &VolumeError::ShuttingDown, |entry| entry.is_abandoned);
    }

    /// What is with the partner may not have arrived, or its reply may not: it is asked for again, by the same name.
    pub(super) fn recall(&mut self, slot: PoolSlot, now: Nanos) {
        let keys: Vec<u64> = self.lots[slot.index()].sent.values().copied().collect();
        for key in keys {
            self.call_back(key, now);
        }
        self.drop_abandoned(slot);
    }

    /// A request waits again, by its name.
    fn call_back(&mut self, key: u64, now: Nanos) {
        let entry = self.entries.get_mut(&key).expect("it is under way");
        let lot = &mut self.lots[entry.slot.index()];
        if entry.phase == Phase::Sent {
            let name = entry.name.expect("what is sent has a name");
            lot.sent.remove(&name.id);
            lot.sent_bytes -= entry.sent_bytes();
        }
        (entry.phase, entry.since) = (Phase::Waiting, now);
        entry.buffer = None;
        lot.waiting.insert(key);
        if planted::is("asked-again-by-a-new-name") {
            self.forget_name(key);
        }
    }

    /// This node has opened the pool, which contains the changes of these names: who has one of them is answered.
    pub(super) fn resolve(&mut self, slot: PoolSlot, contained: &[ForwardedChanges], now: Nanos) {
        self.recall(slot, now);
        let keys: Vec<u64> = self.lots[slot.index()].waiting.iter().copied().collect();
        for key in keys {
            let entry = self.entries.get_mut(&key).expect("it waits");
            let Some(name) = entry.name else { continue };
            let is_contained = name.place.is_some_and(|(lane, _)| {
                let id = ForwardId::of(name.id).expect("changes have such names");
                contained.get(lane).is_some_and(|changes| changes.contains(id))
            });
            if is_contained && !is_forgotten(entry.operation.as_ref()) {
                self.part_is_done(key, Ok(ReplyData::Done), now);
            } else {
                self.forget_name(key);
            }
        }
    }

    /// Hands what waits to this node's own engine.
    pub(super) fn perform<D: BlockDevice, L: LogMemory>(&mut self, slot: PoolSlot, engine: &mut Engine<D, L>) -> bool {
        let mut is_any = false;
        while let Some(&key) = self.lots[slot.index()].waiting.first() {
            let entry = self.entries.get_mut(&key).expect("it waits");
            if !engine.has_room(entry.volume) {
                return is_any;
            }
            self.lots[slot.index()].waiting.remove(&key);
            entry.phase = Phase::Performing;
            let operation = entry.operation.take().expect("it has not been performed");
            let tag = RequestTag { session: WAITED_SESSION, request: key };
            let Sender { host, pass } = entry.sender;
            engine.submit(VolumeRequest { tag, volume: entry.volume, host, pass, operation });
            is_any = true;
        }
        is_any
    }

    /// The own engine's reply.
    pub(super) fn performed(&mut self, reply: VolumeReply) {
        self.answer(reply.tag.request, reply.result);
    }

    /// Sends what waits to the owner, as far as there is room.
    pub(super) fn send(
        &mut self,
        (slot, epoch): (PoolSlot, Epoch),
        way: &mut dyn Interconnect,
        blocks: &BlockPool,
    ) -> bool {
        let mut is_any = false;
        let has_room = |lot: &Lot, way: &dyn Interconnect| way.has_room_to_forward() && lot.sent.len() < SENT_MAX;
        let lot = &self.lots[slot.index()];
        if lot.waiting.is_empty() || !has_room(lot, way) {
            return is_any;
        }
        let keys: Vec<u64> = lot.waiting.iter().copied().take(SENT_MAX).collect();
        for key in keys {
            if !has_room(&self.lots[slot.index()], way) {
                return is_any;
            }
            if self.would_overtake(slot, key) {
                continue;
            }
            let (request, bytes) = match self.prepare(key, blocks) {
                Ok(prepared) => prepared,
                Err(Held::ForName) => continue,
                // Smaller and younger ones would take the room again and again.
                Err(Held::ForRoom) => return is_any,
            };
            let entry = self.entries.get_mut(&key).expect("it waits");
            entry.phase = Phase::Sent;
            let lot = &mut self.lots[slot.index()];
            lot.sent_bytes += entry.sent_bytes();
            lot.sent.insert(request.id, key);
            lot.waiting.remove(&key);
            let pool = lot.pool;
            way.send(Message::Request { pool, epoch, request, bytes: Arc::new(bytes) });
            if planted::is("answered-when-sent") && self.entries[&key].operation.as_ref().expect("sent").is_change() {
                self.call_back(key, Nanos(0));
                self.part_is_done(key, Ok(ReplyData::Done), Nanos(0));
            }
            is_any = true;
        }
        is_any
    }

    /// Whether a change that may be the same one, from a connection that its client has left, is with the owner, or came before and waits. Frames have no order between paths of
    /// the interconnect, and that one must not be performed after what the client is answered now.
    fn would_overtake(&self, slot: PoolSlot, key: u64) -> bool {
        let later = &self.entries[&key];
        let lot = &self.lots[slot.index()];
        let mut earlier = lot.sent.values().chain(lot.waiting.range(..key)).map(|key| &self.entries[key]);
        !planted::is("repeated-change-overtakes") && earlier.any(|entry| entry.may_be_repeated_by(later))
    }

    /// The frame of a request, if it has a name and memory for its reply, and the window has room for it.
    fn prepare(&mut self, key: u64, blocks: &BlockPool) -> Result<(Request, Vec<u8>), Held> {
        let entry = self.entries.get_mut(&key).expect("it waits");
        let lot = &mut self.lots[entry.slot.index()];
        let operation = entry.operation.as_ref().expect("it has not been performed");
        if lot.sent_bytes > 0 && lot.sent_bytes + entry.sent_bytes() > SENT_BYTES_MAX {
            return Err(Held::ForRoom);
        }
        if let VolumeOperation::Read(range) = operation {
            entry.buffer = Payload::allocate(blocks, range.clone());
            if entry.buffer.is_none() {
                self.is_starved = true;
                return Err(Held::ForRoom);
            }
        }
        if entry.name.is_none() {
            let name = new_name(lot, &mut self.next_number, entry);
            entry.name = Some(name.ok_or(Held::ForName)?);
        }
        let name = entry.name.expect("given just now");
        let operation = entry.operation.as_ref().expect("it has not been performed");
        let (request, bytes) = request_of(name.id, (entry.volume, entry.sender), operation);
        assert!(name_of(&request, crate::base::limits::FORWARD_SLOTS).is_ok(), "the partner understands it");
        Ok((request, bytes))
    }

    /// The partner's reply. Returns whether it refuses the request unperformed: whoever is asked again at once would say the same.
    pub(super) fn hear(&mut self, slot: PoolSlot, (reply, bytes): (&Reply, &[u8]), now: Nanos) -> bool {
        // A reply that comes again, or to a request that was given up, is nobody's.
        let Some(&key) = self.lots[slot.index()].sent.get(&reply.id) else { return false };
        if !reply.status.is_final() {
            // Whether an earlier asking has performed it is not known by this.
            self.call_back(key, now);
            self.drop_abandoned(slot);
            return true;
        }
        let entry = self.entries.get_mut(&key).expect("it is under way");
        let operation = entry.operation.as_ref().expect("it has not been performed");
        let result = result_of(operation, (reply, bytes), entry.buffer.take());
        let result = result.unwrap_or_else(|| {
            tracing::error!(?reply, "the partner's reply is none to the request");
            Err(VolumeError::Stopped("the partner's reply is none to the request".to_owned()))
        });
        self.call_back(key, now);
        self.part_is_done(key, result, now);
        false
    }

    /// A part of a request has ended: it is answered, or its next part waits.
    fn part_is_done(&mut self, key: u64, result: Result<ReplyData, VolumeError>, now: Nanos) {
        let entry = self.entries.get_mut(&key).expect("it waits");
        if let (Ok(_), Some(operation)) = (&result, &mut entry.operation) {
            let part = next_part(operation);
            if let VolumeOperation::WriteZeroes { range, .. } = operation
                && part.end < range.end
            {
                range.start = part.end;
                entry.since = now;
                if !entry.is_abandoned {
                    return self.forget_name(key);
                }
            }
        }
        self.answer(key, result);
    }

    /// Gives up waiting for a pool that nobody has served since `unserved_since`.
    pub(super) fn expire(&mut self, slot: PoolSlot, unserved_since: Nanos, (now, deadline): (Nanos, Duration)) {
        let is_over = |entry: &Entry| now.since(entry.since.max(unserved_since)) >= deadline;
        self.give_up(slot, &VolumeError::Unserved(deadline), is_over);
    }

    /// The node stops: nothing waits any more.
    pub(super) fn stop(&mut self) {
        for slot in PoolSlot::ALL {
            self.give_up(slot, &VolumeError::ShuttingDown, |_| true);
        }
    }

    fn give_up(&mut self, slot: PoolSlot, error: &VolumeError, is_over: impl Fn(&Entry) -> bool) {
        let waiting = self.lots[slot.index()].waiting.iter().copied();
        if waiting.len() == 0 {
            return;
        }
        let keys: Vec<u64> = waiting.filter(|key| is_over(&self.entries[key])).collect();
        keys.into_iter().for_each(|key| self.answer(key, Err(error.clone())));
    }

    /// Whether something waits for a pool.
    pub(super) fn is_waiting(&self, slot: PoolSlot) -> bool {
        !self.lots[slot.index()].waiting.is_empty()
    }

    fn answer(&mut self, key: u64, result: Result<ReplyData, VolumeError>) {
        self.forget_name(key);
        let Some(entry) = self.entries.remove(&key) else { return };
        self.lots[entry.slot.index()].waiting.remove(&key);
        let reply = VolumeReply { tag: entry.tag, result };
        self.done.push((entry.from, ToPort::Reply { slot: entry.slot, bytes: entry.bytes, reply }));
    }

    /// The slot of a name may be used again: nobody asks for the change any more.
    fn forget_name(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if let Some(Name { place: Some((lane, place)), .. }) = entry.name.take() {
            self.lots[entry.slot.index()].free[lane].push(place);
        }
    }
}

/// Planted bugs.
fn is_forgotten(operation: Option<&VolumeOperation>) -> bool {
    let is_compared = matches!(operation, Some(VolumeOperation::CompareAndWrite { .. }));
    planted::is("names-forgotten-at-takeover") || (is_compared && planted::is("compared-again"))
}

/// A name for a request; `None` while every slot of a change's lane is taken.
fn new_name(lot: &mut Lot, next_number: &mut u64, entry: &Entry) -> Option<Name> {
    let operation = entry.operation.as_ref().expect("it has not been performed");
    let place = if operation.is_change() {
        let lane = LaneIndex::of(entry.volume, lot.free.len()).index();
        let place = lot.free[lane].pop()?;
        if planted::is("slot-taken-twice") {
            lot.free[lane].push(place);
        }
        Some((lane, place))
    } else {
        None
    };
    *next_number = next_number.wrapping_add(1);
    let id = ForwardId::new(*next_number, place.map_or(0, |(_, slot)| slot)).bits();
    Some(Name { id: if place.is_some() { id } else { ForwardId::unlike(id) }, place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::{
        forward::stub::Sent,
        wire::{ReplyContent, ReplyStatus},
    };

    const LARGE: u64 = 1 << 20;

    fn client() -> (Client, BlockPool) {
        let blocks = BlockPool::new(4096).expect("a small mapping");
        (Client::new([(PoolId(7), 1), (PoolId(8), 1)], 1), blocks)
    }

    fn take(client: &mut Client, slot: PoolSlot, bytes: u64) {
        let tag = RequestTag { session: 1, request: client.next_key };
        let request = VolumeRequest {
            tag,
            volume: ObjectId(1),
            host: None,
            pass: None,
            operation: VolumeOperation::Read(0..bytes),
        };
        client.take(ToHub::Request(Forward { from: ReactorIndex(0), slot, bytes, request }), Nanos(0));
    }

    #[test]
    fn a_pool_that_stands_still_takes_nothing_of_the_other_one_s_window() {
        let (mut client, blocks) = client();
        let mut way = Sent::default();
        (0..2 * SENT_BYTES_MAX / LARGE).for_each(|_| take(&mut client, PoolSlot::Home, LARGE));
        client.send((PoolSlot::Home, Epoch(1)), &mut way, &blocks);
        assert_eq!(way.requests().count() as u64, SENT_BYTES_MAX / LARGE);
        take(&mut client, PoolSlot::Partner, LARGE);
        client.send((PoolSlot::Partner, Epoch(1)), &mut way, &blocks);
        assert_eq!(way.requests().count() as u64, SENT_BYTES_MAX / LARGE + 1);
    }

    #[test]
    fn a_large_request_does_not_starve_behind_small_younger_ones() {
        let (mut client, blocks) = client();
        let take = |client: &mut Client, bytes: u64| take(client, PoolSlot::Partner, bytes);
        let mut way = Sent::default();
        // The window has room for half of the next one.
        (0..SENT_BYTES_MAX / LARGE - 1).for_each(|_| take(&mut client, LARGE));
        take(&mut client, LARGE / 2);
        take(&mut client, LARGE);
        (0..4).for_each(|_| take(&mut client, 4096));
        client.send((PoolSlot::Partner, Epoch(1)), &mut way, &blocks);
        let count = way.requests().count();
        assert_eq!(count as u64, SENT_BYTES_MAX / LARGE, "the large one is the next, and does not fit");
        let first = way.requests().next().expect("it was sent").id;
        let reply = Reply { id: first, status: ReplyStatus::NoSuchVolume, content: ReplyContent::Nothing, detail: 0 };
        client.hear(PoolSlot::Partner, (&reply, &[]), Nanos(0));
        client.send((PoolSlot::Partner, Epoch(1)), &mut way, &blocks);
        assert_eq!(way.requests().nth(count).map(|request| request.length_bytes), Some(LARGE));
        assert_eq!(way.requests().count(), count + 5, "and the small ones after it");
    }

    fn discard(client: &mut Client, session: u64, range: Range<u64>) {
        let tag = RequestTag { session, request: client.next_key };
        let operation = VolumeOperation::Discard { range, durable: false };
        let request = VolumeRequest { tag, volume: ObjectId(1), host: None, pass: None, operation };
        let (from, slot, bytes) = (ReactorIndex(0), PoolSlot::Partner, 0);
        client.take(ToHub::Request(Forward { from, slot, bytes, request }), Nanos(0));
    }

    /// Sends what may go; where all that was sent until now begins.
    fn offsets(client: &mut Client, way: &mut Sent, blocks: &BlockPool) -> Vec<u64> {
        client.send((PoolSlot::Partner, Epoch(1)), way, blocks);
        way.requests().map(|request| request.offset_bytes).collect()
    }

    /// The request that was sent as number `number` is performed.
    fn done(client: &mut Client, way: &Sent, number: usize) {
        let id = way.requests().nth(number).expect("it was sent").id;
        let reply = Reply { id, status: ReplyStatus::Done, content: ReplyContent::Nothing, detail: 0 };
        client.hear(PoolSlot::Partner, (&reply, &[]), Nanos(0));
    }

    /// A change of one session that is with the owner, and what others ask for meanwhile.
    #[test]
    fn a_change_that_is_asked_for_again_does_not_overtake_the_one_that_was_left() {
        let (mut client, blocks) = client();
        let mut way = Sent::default();
        discard(&mut client, 1, 0..8192);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0]);
        discard(&mut client, 2, 4096..8192);
        discard(&mut client, 2, 8192..12_288);
        discard(&mut client, 1, 0..4096);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0, 8192, 0], "a session does not repeat itself");
        done(&mut client, &way, 0);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0, 8192, 0, 4096]);
    }

    /// Session 1 was left with a change that waits for one of session 3: what session 2 asks for meets only the one that waits.
    #[test]
    fn a_change_that_is_asked_for_again_does_not_overtake_one_that_waits() {
        let (mut client, blocks) = client();
        let mut way = Sent::default();
        discard(&mut client, 3, 0..4096);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0]);
        discard(&mut client, 1, 0..8192);
        discard(&mut client, 2, 4096..8192);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0]);
        done(&mut client, &way, 0);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0, 0]);
        done(&mut client, &way, 1);
        assert_eq!(offsets(&mut client, &mut way, &blocks), [0, 0, 4096]);
    }

    /// What waits for an owner is not performed when its client is gone; what is with the owner ends there, and is not asked for again.
    #[test]
    fn what_was_abandoned_is_not_asked_for() {
        let (mut client, blocks) = client();
        let mut way = Sent::default();
        take(&mut client, PoolSlot::Home, 4096);
        client.send((PoolSlot::Home, Epoch(1)), &mut way, &blocks);
        take(&mut client, PoolSlot::Home, 4096);
        take(&mut client, PoolSlot::Partner, 4096);
        client.take(ToHub::Abandoned(ReactorIndex(0), 2), Nanos(0));
        client.take(ToHub::Abandoned(ReactorIndex(1), 1), Nanos(0));
        assert!(client.done.is_empty() && client.is_waiting(PoolSlot::Home), "those are others");
        client.take(ToHub::Abandoned(ReactorIndex(0), 1), Nanos(0));
        assert_eq!(client.done.len(), 2, "the one that is with the owner has no end yet");
        assert!(!client.is_waiting(PoolSlot::Home) && !client.is_waiting(PoolSlot::Partner));
        client.recall(PoolSlot::Home, Nanos(0));
        assert_eq!(client.done.len(), 3, "the link is lost");
        client.send((PoolSlot::Home, Epoch(1)), &mut way, &blocks);
        assert_eq!(way.requests().count(), 1);
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn planted_bugs_are_found() {
        let bugs: [(&str, fn()); 3] = [
            ("abandoned-is-performed", what_was_abandoned_is_not_asked_for),
            ("repeated-change-overtakes", a_change_that_is_asked_for_again_does_not_overtake_one_that_waits),
            ("repeated-change-overtakes", a_change_that_is_asked_for_again_does_not_overtake_the_one_that_was_left),
        ];
        for (bug, test) in bugs {
            planted::choose(bug);
            let is_found = std::panic::catch_unwind(test).is_err();
            planted::choose("");
            assert!(is_found, "{bug}");
        }
    }
}
