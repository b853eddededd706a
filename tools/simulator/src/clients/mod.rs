//! Clients: what they ask, what they hear, and the two ways between them and the engine.
//!
//! A [`Port`] is a front end without a protocol: requests go to the engine's own interface, which is fast. An NBD
//! [`Session`](nbd::Session) goes through the real front end over a simulated network.

pub mod nbd;
pub mod nvme;

use sha2::{Digest as _, Sha256};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
};
use twinlog::{
    base::{HostId, ObjectId, Pass},
    format::reservation::Reservation,
    node::request::{
        DataRun, Extent, Payload, ReplyData, RequestTag, VolumeError, VolumeOperation, VolumeReply, VolumeRequest,
        VolumeService,
    },
    serve::{FrontEnd, Server},
};
use twinlog_device::{BlockPool, Nanos, Unread};
use twinlog_sim::SimWaker;

use crate::{
    model::{
        Model,
        reservation::{Deed, host_id},
    },
    pattern::{self, Fill, WriteId},
    setup::BLOCK,
};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Return the bytes.
    Read(Range<u64>),
    /// Write the pattern of an id.
    Write(Range<u64>, WriteId, bool),
    /// Write the pattern of the second id if the bytes, which lie in one block, are those of the first one.
    Exchange(Range<u64>, WriteId, WriteId, bool),
    /// Free.
    Discard(Range<u64>, bool),
    /// Zero; the middle flag: blocks may be freed.
    Zero(Range<u64>, bool, bool),
    /// Make lasting what was answered.
    Flush,
    /// Tell what is allocated.
    Status(Range<u64>),
    /// What a host does with the volume's reservation.
    Reserve(u8, Deed),
}

impl Ask {
    /// Where the bytes end that it is about; 0 when it is about none.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        self.range().end
    }

    /// The bytes that it is about.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Read(range)
            | Self::Write(range, ..)
            | Self::Exchange(range, ..)
            | Self::Discard(range, _)
            | Self::Zero(range, ..)
            | Self::Status(range) => range.clone(),
            Self::Flush | Self::Reserve(..) => 0..0,
        }
    }

    /// Tells the model of it, before it is sent: of a write its id and nothing else, of anything else when it began. A write gets its id here.
    pub(crate) fn begin(&mut self, model: &mut Model, volume: ObjectId) -> (Option<WriteId>, u64) {
        match self {
            Self::Write(range, id, _) => {
                *id = model.begin_write(volume, range.clone(), Fill::Pattern);
                (Some(*id), 0)
            }
            Self::Exchange(range, expected, id, _) => {
                *id = model.begin_exchange(volume, range.clone(), *expected);
                (Some(*id), 0)
            }
            Self::Discard(range, _) => {
                let whole = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
                let whole = whole.start..whole.end.max(whole.start);
                (Some(model.begin_write(volume, whole, Fill::Zeroes)), 0)
            }
            Self::Zero(range, ..) => (Some(model.begin_write(volume, range.clone(), Fill::Zeroes)), 0),
            Self::Read(_) | Self::Flush | Self::Status(_) | Self::Reserve(..) => (None, model.begin()),
        }
    }
}

/// What began with [`Ask::begin`] was not sent after all.
pub(crate) fn withdraw(model: &mut Model, begun: (Option<WriteId>, u64)) {
    match begun {
        (Some(write), _) => model.withdraw(write),
        (None, began) => model.end(began),
    }
}

/// What a client hears.
#[derive(Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// The bytes of a read.
    Data(Vec<u8>),
    /// Extents.
    Extents(Vec<Extent>),
    /// Who has registered.
    Reservation(Box<Reservation>),
    /// Not done.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such volume.
    NoVolume,
    /// Beyond the volume's end.
    Beyond,
    /// The pool is full.
    NoSpace,
    /// A block cannot be read, or the pool has stopped; over NBD, which does not tell these apart, no such volume as well.
    Failed(String),
    /// Nobody has served the pool for too long.
    Unserved,
    /// The node is shutting down.
    ShuttingDown,
    /// A reservation forbids it.
    Reserved,
    /// Its host was preempted, and what it had under way was ended.
    Preempted,
    /// A host's change that has not come straight to the owner was without a pass.
    Late,
    /// The bytes are not what is expected.
    Differs,
}

/// Requests and replies of one reactor, without a protocol. It is every host's connection: what is submitted arrives at once, so a pass serves for whatever is submitted
/// after the refusal that brought it.
pub struct Port {
    state: RefCell<PortState>,
    waker: SimWaker,
}

#[derive(Default)]
struct PortState {
    outgoing: VecDeque<VolumeRequest>,
    incoming: VecDeque<VolumeReply>,
    in_flight: usize,
    is_stopping: bool,
    /// What hosts may use for their changes of a volume.
    passes: BTreeMap<(HostId, ObjectId), Pass>,
    /// Whose changes are under way.
    changes: BTreeMap<u64, (HostId, ObjectId)>,
}

impl Port {
    /// A port whose reactor is woken by `waker`.
    #[must_use]
    pub fn new(waker: SimWaker) -> Rc<Self> {
        Rc::new(Self { state: RefCell::default(), waker })
    }

    /// Submits a request of a host (0: of nobody that can register); false while memory is short.
    #[must_use]
    pub fn submit(&self, blocks: &BlockPool, (id, host): (u64, u8), volume: ObjectId, ask: &Ask) -> bool {
        let operation = match ask.clone() {
            Ask::Read(range) => VolumeOperation::Read(range),
            Ask::Write(range, write, durable) => {
                let Some(payload) = payload_of(blocks, range, write) else { return false };
                VolumeOperation::Write { payload, durable }
            }
            Ask::Exchange(range, expected, write, durable) => {
                let expected = Sha256::digest(pattern::content(expected, &range)).into();
                let Some(payload) = payload_of(blocks, range, write) else { return false };
                VolumeOperation::CompareAndWrite { expected, payload, durable }
            }
            Ask::Discard(range, durable) => VolumeOperation::Discard { range, durable },
            Ask::Zero(range, may_free, durable) => VolumeOperation::WriteZeroes { range, may_free, durable },
            Ask::Flush => VolumeOperation::Flush,
            Ask::Reserve(host, deed) => {
                deed.command(host).map_or(VolumeOperation::Reservation, VolumeOperation::Reserve)
            }
            Ask::Status(range) => VolumeOperation::BlockStatus { range, extents_max: 8 },
        };
        let tag = RequestTag { session: 0, request: id };
        let host = host_id(host);
        let mut state = self.state.borrow_mut();
        let key = host.filter(|_| operation.is_change()).map(|host| (host, volume));
        let pass = key.and_then(|key| state.passes.get(&key).copied());
        state.changes.extend(key.map(|key| (id, key)));
        state.outgoing.push_back(VolumeRequest { tag, volume, host, pass, operation });
        self.waker.wake();
        true
    }

    /// The next answer, with the id of its request.
    #[must_use]
    pub fn answer(&self) -> Option<(u64, Answer)> {
        let mut state = self.state.borrow_mut();
        let reply = state.incoming.pop_front()?;
        let key = state.changes.remove(&reply.tag.request);
        if let Err(VolumeError::Late(pass)) = &reply.result {
            state.passes.insert(key.expect("a host's change"), *pass);
        }
        let answer = match reply.result {
            Ok(ReplyData::Done) => Answer::Done,
            Ok(ReplyData::Data(runs)) => Answer::Data(bytes_of(&runs)),
            Ok(ReplyData::Extents(extents)) => Answer::Extents(extents),
            Ok(ReplyData::Reservation(state)) => Answer::Reservation(state),
            Err(error) => Answer::Refused(match error {
                VolumeError::NoSuchVolume => Refusal::NoVolume,
                VolumeError::OutOfRange => Refusal::Beyond,
                VolumeError::NoSpace => Refusal::NoSpace,
                VolumeError::Unreadable { .. }
                | VolumeError::Stopped(_)
                | VolumeError::Interrupted(_)
                | VolumeError::Offline(_)
                | VolumeError::RegistrantsFull => Refusal::Failed(error.to_string()),
                VolumeError::ReservationConflict | VolumeError::ReservationInvalid => Refusal::Reserved,
                VolumeError::Preempted => Refusal::Preempted,
                VolumeError::Late(_) => Refusal::Late,
                VolumeError::Unserved(_) => Refusal::Unserved,
                VolumeError::ShuttingDown => Refusal::ShuttingDown,
                VolumeError::Differs => Refusal::Differs,
            }),
        };
        Some((reply.tag.request, answer))
    }
}

/// The pattern of a write, as the engine wants it; `None` while memory is short.
fn payload_of(blocks: &BlockPool, range: Range<u64>, write: WriteId) -> Option<Payload> {
    let mut payload = Payload::allocate(blocks, range.clone())?;
    let mut position = 0;
    while position < range.end - range.start {
        let part = payload.part_mut(position);
        pattern::fill(write, range.start + position, part);
        position += part.len() as u64;
    }
    Some(payload)
}

fn bytes_of(runs: &[DataRun]) -> Vec<u8> {
    let length = |run: &DataRun| match run {
        DataRun::Block(_, part) => part.len(),
        DataRun::Zeroes(length) => crate::setup::index(*length),
    };
    let mut bytes = Vec::with_capacity(runs.iter().map(length).sum());
    for run in runs {
        match run {
            DataRun::Block(block, part) => bytes.extend_from_slice(&block[part.clone()]),
            DataRun::Zeroes(length) => bytes.resize(bytes.len() + crate::setup::index(*length), 0),
        }
    }
    bytes
}

/// The front end of a simulated reactor.
pub enum Front {
    /// The real one.
    Nbd(Box<Server>),
    /// None: a port.
    Direct(Rc<Port>),
}

impl<N: Unread> FrontEnd<N> for Front {
    fn poll<S: VolumeService>(&mut self, net: &mut N, service: &mut S, now: Nanos) -> bool {
        match self {
            Self::Nbd(server) => server.poll(net, service, now),
            Self::Direct(port) => {
                let mut state = port.state.borrow_mut();
                let mut moved = false;
                while let Some(request) = state.outgoing.front()
                    && service.has_room(request.volume)
                    && let Some(request) = state.outgoing.pop_front()
                {
                    state.in_flight += 1;
                    service.submit(request);
                    moved = true;
                }
                while let Some(reply) = service.poll_reply() {
                    state.in_flight -= 1;
                    state.incoming.push_back(reply);
                    moved = true;
                }
                moved
            }
        }
    }

    fn take_events(&mut self, net: &mut N) {
        match self {
            Self::Nbd(server) => server.take_events(net),
            Self::Direct(_) => {}
        }
    }

    fn take_news(&mut self) -> bool {
        match self {
            Self::Nbd(server) => server.take_news(),
            Self::Direct(_) => false,
        }
    }

    fn stop(&mut self, now: Nanos) {
        match self {
            Self::Nbd(server) => server.stop(now),
            Self::Direct(port) => port.state.borrow_mut().is_stopping = true,
        }
    }

    fn is_stopped(&self) -> bool {
        match self {
            Self::Nbd(server) => server.is_stopped(),
            Self::Direct(port) => {
                let state = port.state.borrow();
                state.is_stopping && state.in_flight == 0 && state.outgoing.is_empty()
            }
        }
    }

    fn connection_count(&self) -> usize {
        match self {
            Self::Nbd(server) => server.connection_count(),
            Self::Direct(_) => 0,
        }
    }
}
