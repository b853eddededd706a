//! Requests that the partner forwards to a pool which this node has open.
//!
//! A change whose name the pool contains is answered and not performed again. A session's requests begin when those of an earlier one have
//! ended: what the partner asks for again is then either contained, or will never be.
//!
//! A change that is asked for twice may arrive twice, the second time on a slow path, when another one has taken its slot. The slot was
//! free because the partner had its answer: what is older than the newest change that was begun in its slot is dropped. A change that was refused is
//! refused again with the same words, whatever could be said of it now: the partner may have told its client.
//!
//! A client of the partner may have been one of this node before, and given that connection up with a change on it that was not answered. A change begins
//! when what lay at this node's connections as it came has been taken in: after a [sweep](crate::node::sweep).

use super::convert::{bare_reply, name_of, operation_of, reply_of};
use crate::{
    base::{Epoch, ForwardId, ForwardedChanges, LaneIndex, ObjectId, PoolId, planted},
    node::{
        engine::Engine,
        pools::{PoolSlot, Pools},
        request::{FORWARDED_SESSION, RequestTag, VolumeError, VolumeReply, VolumeRequest, VolumeService},
        sweep::{Sweeps, Ticket},
    },
    pair::{
        interconnect::{Interconnect, Message},
        wire::{Reply, ReplyStatus, Request, RequestKind},
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use twinlog_device::{BlockDevice, LogMemory};

/// Frames of one pool that may wait here: what the partner may have sent, and the same again after a lost path.
const ARRIVED_MAX: usize = 2 * super::client::SENT_MAX;

/// A frame that waits.
struct Arrived {
    epoch: Epoch,
    request: Request,
    bytes: Arc<Vec<u8>>,
    /// It waits for this sweep.
    sweep: Option<Ticket>,
}

/// A request that the engine has.
struct InHand {
    epoch: Epoch,
    volume: ObjectId,
    name: Option<ForwardId>,
    /// Its session is over: nobody waits for the reply.
    is_old: bool,
}

/// A change that was begun in this session.
struct Begun {
    name: ForwardId,
    /// Why it was not performed, if it was refused for good.
    refusal: Option<(Reply, Vec<u8>)>,
}

/// What is known of a pool since it was opened here.
struct Opened {
    /// Frames of an earlier one were meant for an earlier ownership.
    epoch: Epoch,
    /// By lane.
    contained: Vec<ForwardedChanges>,
}

/// All of them.
pub(super) struct Server {
    pools: [PoolId; 2],
    sweeps: Arc<Sweeps>,
    opened: [Option<Opened>; 2],
    arrived: [VecDeque<Arrived>; 2],
    /// The newest change that was begun in this session, by lane and slot.
    begun: BTreeMap<(PoolSlot, usize, usize), Begun>,
    /// By the request's id.
    in_hand: BTreeMap<(PoolSlot, u64), InHand>,
    replies: VecDeque<(PoolSlot, Epoch, Reply, Vec<u8>)>,
    /// Something waits for memory.
    pub(super) is_starved: bool,
}

impl Server {
    pub(super) fn new(pools: [PoolId; 2], sweeps: Arc<Sweeps>) -> Self {
        Self {
            pools,
            sweeps,
            opened: [None, None],
            arrived: Default::default(),
            begun: BTreeMap::new(),
            in_hand: BTreeMap::new(),
            replies: VecDeque::new(),
            is_starved: false,
        }
    }

    /// A frame has come.
    pub(super) fn hear(&mut self, slot: PoolSlot, epoch: Epoch, request: Request, bytes: Arc<Vec<u8>>) {
        let arrived = &mut self.arrived[slot.index()];
        if arrived.len() >= ARRIVED_MAX {
            tracing::error!("the partner forwards more requests than it may");
            return;
        }
        let is_change = request.kind.is_change() && !planted::is("change-not-swept");
        let sweep = is_change.then(|| {
            self.sweeps.set_forwarder_waits(true);
            self.sweeps.order()
        });
        arrived.push_back(Arrived { epoch, request, bytes, sweep });
    }

    /// Looks for sweeps that are done: in front of everything else of a turn, so that what they have handed on to the hub is with it when this is used.
    pub(super) fn look_at_sweeps(&mut self) {
        for arrived in &mut self.arrived {
            let done = |arrived: &&mut Arrived| arrived.sweep.is_none_or(|sweep| self.sweeps.is_done(sweep));
            arrived.iter_mut().take_while(done).for_each(|arrived| arrived.sweep = None);
        }
        self.sweeps.set_forwarder_waits(self.arrived.iter().flatten().any(|arrived| arrived.sweep.is_some()));
    }

    /// The session is over.
    pub(super) fn disconnect(&mut self) {
        self.arrived.iter_mut().for_each(VecDeque::clear);
        self.begun.clear();
        self.replies.clear();
        self.in_hand.values_mut().for_each(|in_hand| in_hand.is_old = true);
    }

    /// Looks whether a pool was opened or closed.
    pub(super) fn follow<D: BlockDevice, L: LogMemory>(&mut self, slot: PoolSlot, engine: Option<&Engine<D, L>>) {
        let superblock =
            engine.filter(|engine| engine.has_opened()).and_then(|engine| engine.coordinator()?.superblock());
        let place = &mut self.opened[slot.index()];
        match superblock {
            None => *place = None,
            Some(superblock) if place.is_none() => {
                *place = Some(Opened { epoch: superblock.epoch, contained: superblock.forwarded.clone() });
            }
            Some(_) => {}
        }
    }

    /// Names of the changes that a pool contained when it was opened here, and of those since.
    pub(super) fn contained(&self, slot: PoolSlot) -> &[ForwardedChanges] {
        self.opened[slot.index()].as_ref().map_or(&[], |opened| &opened.contained)
    }

    /// The engine has ended a request.
    pub(super) fn performed(&mut self, slot: PoolSlot, reply: VolumeReply) {
        let id = reply.tag.request;
        let Some(in_hand) = self.in_hand.remove(&(slot, id)) else { return };
        let (volume, name) = (in_hand.volume, in_hand.name);
        if let (Ok(_), Some(name), Some(opened)) = (&reply.result, name, &mut self.opened[slot.index()])
            && !planted::is("name-not-noted")
        {
            let lane = LaneIndex::of(volume, opened.contained.len()).index();
            opened.contained[lane].note(name.bits());
        }
        if in_hand.is_old {
            return;
        }
        let is_refused = reply.result.is_err();
        let (reply, bytes) = match reply.result {
            // Refused before anything was done: it goes to the next owner.
            Err(VolumeError::ShuttingDown) => bare_reply(id, ReplyStatus::NotOwner),
            result => reply_of(id, result),
        };
        if let Some(name) = name.filter(|_| is_refused && reply.status.is_final()) {
            self.note_refusal(slot, name, (reply, bytes.clone()));
        }
        self.replies.push_back((slot, in_hand.epoch, reply, bytes));
    }

    /// The partner's client may hear of a refusal.
    fn note_refusal(&mut self, slot: PoolSlot, name: ForwardId, refusal: (Reply, Vec<u8>)) {
        let begun = self.begun.iter_mut().find(|((of, ..), begun)| *of == slot && begun.name == name);
        if let Some((_, begun)) = begun.filter(|_| !planted::is("refusal-forgotten")) {
            begun.refusal = Some(refusal);
        }
    }

    /// Goes on. Returns whether anything was done.
    pub(super) fn poll<D: BlockDevice, L: LogMemory>(
        &mut self,
        pools: &mut Pools<D, L>,
        way: &mut dyn Interconnect,
    ) -> bool {
        let mut is_busy = false;
        for slot in PoolSlot::ALL {
            let is_past = !self.arrived[slot.index()].is_empty()
                && (!self.awaits_earlier_session(slot) || planted::is("earlier-session-not-awaited"));
            while is_past
                && self.arrived[slot.index()].front().is_some_and(|arrived| arrived.sweep.is_none())
                && let Some(arrived) = self.arrived[slot.index()].pop_front()
            {
                if !self.begin(slot, &arrived, pools) {
                    self.arrived[slot.index()].push_front(arrived);
                    break;
                }
                is_busy = true;
            }
        }
        while !self.replies.is_empty()
            && way.has_room_to_forward()
            && let Some((slot, epoch, reply, bytes)) = self.replies.pop_front()
        {
            way.send(Message::Reply { pool: self.pools[slot.index()], epoch, reply, bytes: Arc::new(bytes) });
            is_busy = true;
        }
        is_busy
    }

    /// Whether something goes on without anything that arrives.
    pub(super) fn is_busy(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Whether requests of a session that is over have not ended yet.
    fn awaits_earlier_session(&self, slot: PoolSlot) -> bool {
        self.in_hand.range((slot, 0)..=(slot, u64::MAX)).any(|(_, in_hand)| in_hand.is_old)
    }

    /// Begins a request, or answers it. False while there is no room or memory for it.
    fn begin<D: BlockDevice, L: LogMemory>(
        &mut self,
        slot: PoolSlot,
        arrived: &Arrived,
        pools: &mut Pools<D, L>,
    ) -> bool {
        let Arrived { epoch, request, bytes, .. } = arrived;
        let epoch = *epoch;
        if self.in_hand.contains_key(&(slot, request.id)) && !planted::is("in-hand-not-looked-up") {
            // Asked for again after a lost path, and not ended yet.
            return true;
        }
        let blocks = pools.blocks().clone();
        let engine = pools.engine_mut(slot).filter(|engine| engine.takes_requests());
        let is_meant = |opened: &&Opened| epoch >= opened.epoch || planted::is("request-epoch-not-compared");
        let opened = self.opened[slot.index()].as_ref().filter(is_meant);
        let (Some(engine), Some(opened)) = (engine, opened) else {
            self.say(slot, epoch, bare_reply(request.id, ReplyStatus::NotOwner));
            return true;
        };
        let lane = LaneIndex::of(request.volume, opened.contained.len()).index();
        let Ok(name) = name_of(request, opened.contained[lane].slots().len()) else {
            tracing::error!(?request, "the partner forwards what cannot be meant");
            self.say(slot, epoch, bare_reply(request.id, ReplyStatus::OutOfRange));
            return true;
        };
        if let Some(name) = name {
            let begun = self.begun.entry((slot, lane, name.slot())).or_insert(Begun { name, refusal: None });
            if name.is_older_than(begun.name) {
                return true;
            }
            if begun.name != name {
                *begun = Begun { name, refusal: None };
            }
            if let Some(refusal) = begun.refusal.clone() {
                self.say(slot, epoch, refusal);
                return true;
            }
        }
        let is_compared_again = request.kind == RequestKind::CompareAndWrite && planted::is("compared-again");
        let is_performed_again = planted::is("name-not-compared") || is_compared_again;
        if name.is_some_and(|name| opened.contained[lane].contains(name)) && !is_performed_again {
            self.say(slot, epoch, bare_reply(request.id, ReplyStatus::Done));
            return true;
        }
        if !engine.has_room(request.volume) {
            return false;
        }
        let Some(operation) = operation_of(request, bytes, &blocks) else {
            self.is_starved = true;
            return false;
        };
        let tag = RequestTag { session: FORWARDED_SESSION, request: request.id };
        let host = request.host.filter(|_| !planted::is("forwarded-host-forgotten"));
        engine.submit(VolumeRequest { tag, volume: request.volume, host, pass: request.pass, operation });
        self.in_hand.insert((slot, request.id), InHand { epoch, volume: request.volume, name, is_old: false });
        true
    }

    fn say(&mut self, slot: PoolSlot, epoch: Epoch, (reply, bytes): (Reply, Vec<u8>)) {
        self.replies.push_back((slot, epoch, reply, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::sweep::ReactorSweeps, pair::forward::stub::Sent, reactor::Waker};
    use twinlog_device::BlockPool;
    use twinlog_sim::{SimDisk, SimLog};

    struct NoWaker;

    impl Waker for NoWaker {
        fn wake(&self) {}
    }

    fn request(id: u64, kind: RequestKind) -> Request {
        Request {
            id,
            volume: ObjectId(1),
            host: None,
            pass: None,
            kind,
            durable: false,
            may_free: false,
            offset_bytes: 0,
            length_bytes: 0,
            extents_max: 0,
        }
    }

    /// What lies at this node's connections may be an earlier change of the same client.
    #[test]
    fn a_change_waits_for_a_sweep_that_is_ordered_when_it_comes() {
        use RequestKind::{CompareAndWrite, Discard, Reserve, Write, WriteZeroes};
        for change in [Write, CompareAndWrite, Discard, WriteZeroes, Reserve] {
            waits_for_a_sweep(change);
        }
    }

    fn waits_for_a_sweep(change: RequestKind) {
        let waker: Arc<dyn Waker> = Arc::new(NoWaker);
        let sweeps = Arc::new(Sweeps::new(&[waker]));
        let mut reactor = ReactorSweeps::new(Arc::clone(&sweeps), 0);
        reactor.set_busy(true);
        let mut pools = Pools::<SimDisk, SimLog>::new(BlockPool::new(64).expect("a small mapping"), None);
        let mut server = Server::new([PoolId(7), PoolId(8)], sweeps);
        let mut way = Sent::default();
        let mut answered = |server: &mut Server| {
            server.look_at_sweeps();
            server.poll(&mut pools, &mut way);
            way.replies().map(|reply| reply.id).collect::<Vec<_>>()
        };
        server.hear(PoolSlot::Home, Epoch(1), request(1, RequestKind::Read), Arc::default());
        let earlier = reactor.ordered();
        server.hear(PoolSlot::Home, Epoch(1), request(2, change), Arc::default());
        server.hear(PoolSlot::Home, Epoch(1), request(3, RequestKind::Read), Arc::default());
        let why = "a read in front of it does not wait; the pool is not open here";
        assert_eq!(answered(&mut server), [1], "{change:?}: {why}");
        reactor.finish(earlier);
        assert_eq!(answered(&mut server), [1], "{change:?}: that one was ordered before");
        reactor.finish(reactor.ordered());
        assert_eq!(answered(&mut server), [1, 2, 3], "{change:?}");
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn planted_bugs_are_found() {
        planted::choose("change-not-swept");
        let is_found = std::panic::catch_unwind(a_change_waits_for_a_sweep_that_is_ordered_when_it_comes).is_err();
        planted::choose("");
        assert!(is_found);
    }

    #[test]
    fn what_one_pool_still_has_in_hand_of_an_earlier_session_does_not_hold_up_the_other() {
        let mut pools = Pools::<SimDisk, SimLog>::new(BlockPool::new(64).expect("a small mapping"), None);
        let mut server = Server::new([PoolId(7), PoolId(8)], Arc::default());
        let volume = ObjectId(1);
        server.in_hand.insert((PoolSlot::Home, 1), InHand { epoch: Epoch(1), volume, name: None, is_old: false });
        server.disconnect();
        let request = |id| request(id, RequestKind::Flush);
        let mut way = Sent::default();
        server.hear(PoolSlot::Home, Epoch(1), request(2), Arc::default());
        server.hear(PoolSlot::Partner, Epoch(1), request(3), Arc::default());
        server.poll(&mut pools, &mut way);
        let answered = |way: &Sent| way.replies().map(|reply| reply.id).collect::<Vec<_>>();
        assert_eq!(answered(&way), [3], "neither pool is open here");
        let tag = RequestTag { session: FORWARDED_SESSION, request: 1 };
        server.performed(PoolSlot::Home, VolumeReply { tag, result: Err(VolumeError::ShuttingDown) });
        server.poll(&mut pools, &mut way);
        assert_eq!(answered(&way), [3, 2], "the old one's reply is nobody's");
    }
}
