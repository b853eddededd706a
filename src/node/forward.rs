//! The way of requests to a pool that this reactor's node does not have open: from a port at each reactor to the hub at reactor 0, which sends
//! them to the owner or lets them wait for one, and back.
//!
//! # Invariants
//!
//! 1. Every request that a port takes gets exactly one reply.
//! 2. What a port has under way is bounded for each pool, in requests and in bytes, so that a pool which nobody serves takes neither the
//!    places nor the memory of the other one's clients.
//! 3. A mailbox that is full delays messages, it never loses one.

use super::{
    pools::PoolSlot,
    request::{VolumeInfo, VolumeOperation, VolumeReply, VolumeRequest},
};
use crate::{
    base::ReactorIndex,
    reactor::mailbox::{Mailbox, MailboxSender, SendError},
};
use std::{collections::VecDeque, sync::Arc};
use twinlog_device::{BLOCK_BYTES, BlockPool};

/// Requests of one pool that one reactor's clients may have under way: four deep queues.
pub const REQUESTS_MAX: usize = 256;

/// Messages that wait for the hub, or for one port. Senders keep what does not fit and try again.
pub const MESSAGES_MAX: usize = 4 * REQUESTS_MAX;

/// Part of memory that may wait in one pool's requests: a quarter of the clients' share.
const BYTES_PART: usize = 16;

/// From a port to the hub.
#[derive(Debug)]
pub enum ToHub {
    /// A request.
    Request(Forward),
    /// The session of this number at that reactor is over: nobody waits for its requests.
    Abandoned(ReactorIndex, u64),
}

/// A request on its way to a pool.
#[derive(Debug)]
pub struct Forward {
    /// The port's reactor.
    pub from: ReactorIndex,
    /// The request's pool.
    pub slot: PoolSlot,
    /// Memory that it holds or will hold: the reply repeats it.
    pub bytes: u64,
    /// The request; its volume is named as the pool does.
    pub request: VolumeRequest,
}

/// From the hub to a port.
#[derive(Debug)]
pub enum ToPort {
    /// The end of a request.
    Reply {
        /// Its pool.
        slot: PoolSlot,
        /// As the request said.
        bytes: u64,
        /// The end.
        reply: VolumeReply,
    },
    /// The volumes of a pool.
    Volumes(PoolSlot, Arc<Vec<VolumeInfo>>),
    /// Whether the partner says that it serves a pool: before the first reply that shows it.
    ServedByPartner(PoolSlot, bool),
}

/// What one reactor has under way in a pool.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    requests: usize,
    bytes: u64,
}

/// One reactor's end of the way.
#[derive(Debug)]
pub struct ForwardPort {
    reactor: ReactorIndex,
    hub: MailboxSender<ToHub>,
    mailbox: Mailbox<ToPort>,
    outgoing: VecDeque<ToHub>,
    volumes: [Option<Arc<Vec<VolumeInfo>>>; 2],
    served_by_partner: [bool; 2],
    loads: [Load; 2],
    bytes_max: u64,
}

impl ForwardPort {
    /// The port of `reactor`, one of `reactor_count` that share the memory `blocks`.
    #[must_use]
    pub fn new(
        (reactor, reactor_count): (ReactorIndex, u16),
        hub: MailboxSender<ToHub>,
        mailbox: Mailbox<ToPort>,
        blocks: &BlockPool,
    ) -> Self {
        let bytes_max = (blocks.block_count() / BYTES_PART * BLOCK_BYTES) as u64 / u64::from(reactor_count);
        let (volumes, loads) = ([None, None], [Load::default(); 2]);
        let (outgoing, served_by_partner) = (VecDeque::new(), [false; 2]);
        Self { reactor, hub, mailbox, outgoing, volumes, served_by_partner, loads, bytes_max }
    }

    /// The volumes of a pool, by its own ids, as far as the hub has heard.
    #[must_use]
    pub fn volumes(&self, slot: PoolSlot) -> Option<&[VolumeInfo]> {
        self.volumes[slot.index()].as_deref().map(Vec::as_slice)
    }

    /// Whether the partner says that it serves a pool, as far as the hub has heard.
    #[must_use]
    pub fn is_served_by_partner(&self, slot: PoolSlot) -> bool {
        self.served_by_partner[slot.index()]
    }

    /// Whether a further request may be submitted now. One of the largest size always has its turn.
    #[must_use]
    pub fn has_room(&self, slot: PoolSlot) -> bool {
        let load = self.loads[slot.index()];
        load.requests < REQUESTS_MAX && load.bytes < self.bytes_max
    }

    /// Takes a request.
    pub fn submit(&mut self, slot: PoolSlot, request: VolumeRequest) {
        let bytes = held_bytes(&request.operation);
        let load = &mut self.loads[slot.index()];
        load.requests += 1;
        load.bytes += bytes;
        self.outgoing.push_back(ToHub::Request(Forward { from: self.reactor, slot, bytes, request }));
        self.send();
    }

    /// A session is over. What it has under way is answered all the same, to nobody.
    pub fn abandon(&mut self, session: u64) {
        if self.loads.iter().any(|load| load.requests > 0) {
            self.outgoing.push_back(ToHub::Abandoned(self.reactor, session));
            self.send();
        }
    }

    /// Whether everything that was submitted is with the hub.
    #[must_use]
    pub fn has_handed_on(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// The next reply that has come.
    pub fn poll(&mut self) -> Option<VolumeReply> {
        self.send();
        while let Some(message) = self.mailbox.receive() {
            match message {
                ToPort::Volumes(slot, volumes) => self.volumes[slot.index()] = Some(volumes),
                ToPort::ServedByPartner(slot, is) => self.served_by_partner[slot.index()] = is,
                ToPort::Reply { slot, bytes, reply } => {
                    let load = &mut self.loads[slot.index()];
                    load.requests -= 1;
                    load.bytes -= bytes;
                    return Some(reply);
                }
            }
        }
        None
    }

    fn send(&mut self) {
        while let Some(message) = self.outgoing.pop_front() {
            match self.hub.send(message) {
                Ok(()) => {}
                Err(SendError::Full(message)) => return self.outgoing.push_front(message),
                // The hub's reactor has ended: so does the node.
                Err(SendError::Closed(_)) => {}
            }
        }
    }
}

/// Memory that a request holds while it is under way.
fn held_bytes(operation: &VolumeOperation) -> u64 {
    match operation {
        VolumeOperation::Write { payload, .. } | VolumeOperation::CompareAndWrite { payload, .. } => {
            let range = payload.range();
            range.end - range.start
        }
        VolumeOperation::Read(range) => range.end - range.start,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::ObjectId,
        node::request::{ReplyData, RequestTag},
        reactor::mailbox::{Waker, mailbox},
    };

    struct NoWaker;
    impl Waker for NoWaker {
        fn wake(&self) {}
    }

    #[test]
    fn one_pool_s_requests_take_no_room_of_the_other_s() {
        let blocks = BlockPool::new(1024).expect("a small mapping");
        let (to_hub, hub) = mailbox(2, Arc::new(NoWaker));
        let (to_port, from_hub) = mailbox(4, Arc::new(NoWaker));
        let mut port = ForwardPort::new((ReactorIndex(0), 1), to_hub, from_hub, &blocks);
        let mut count = 0;
        while port.has_room(PoolSlot::Partner) {
            let tag = RequestTag { session: 1, request: count };
            let operation = VolumeOperation::Read(0..64 << 10);
            port.submit(
                PoolSlot::Partner,
                VolumeRequest { tag, volume: ObjectId(1), host: None, pass: None, operation },
            );
            count += 1;
        }
        assert_eq!(count, 4, "a sixteenth of 4 MiB, which the last one may pass");
        assert!(port.has_room(PoolSlot::Home));
        // The hub's mailbox holds two of them: the others follow.
        for request in 0..count {
            let Some(ToHub::Request(message)) = hub.receive() else { panic!("nothing is lost") };
            assert_eq!((message.slot, message.request.tag.request), (PoolSlot::Partner, request));
            let reply = VolumeReply { tag: message.request.tag, result: Ok(ReplyData::Done) };
            to_port.send(ToPort::Reply { slot: message.slot, bytes: message.bytes, reply }).expect("there is room");
            assert_eq!(port.poll().map(|reply| reply.tag.request), Some(request));
        }
        assert!(port.has_room(PoolSlot::Partner) && port.poll().is_none());
        assert_eq!(port.loads[PoolSlot::Partner.index()].bytes, 0);
        let list = vec![VolumeInfo {
            id: ObjectId(3),
            name: "vol".to_owned(),
            size_bytes: 4096,
            block_size: crate::base::BlockSize::default(),
            offline: None,
        }];
        to_port.send(ToPort::Volumes(PoolSlot::Home, Arc::new(list.clone()))).expect("there is room");
        assert!(port.volumes(PoolSlot::Home).is_none() && port.poll().is_none());
        assert_eq!(port.volumes(PoolSlot::Home), Some(&list[..]));
        to_port.send(ToPort::ServedByPartner(PoolSlot::Partner, true)).expect("there is room");
        assert!(port.poll().is_none());
        assert!(port.is_served_by_partner(PoolSlot::Partner) && !port.is_served_by_partner(PoolSlot::Home));
    }
}
