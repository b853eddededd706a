//! Connections on the ring: Unix and TCP sockets, accepted from clients or made to the partner.
//!
//! # Life of a connection
//!
//! ```text
//!   accepted --accept()--> Serving --close(abort)--------------------------> Ending --> gone
//!   connect() ---------------^ |                                               ^
//!                              +--close--> Sending --all sent--> Lingering ----+
//! ```
//!
//! - *Serving*: a receive is in flight while the inbox has room, a send while there is something to send; before either, the connect
//!   of a connection that we have made ourselves.
//! - *Sending*: the caller is gone; what is queued goes out. Without progress for [`SENDING_LIMIT`] it ends.
//! - *Lingering*: our side is shut; what still comes is thrown away until the client closes, at most for [`LINGERING_LIMIT`]. Closing a
//!   TCP socket with unread input would reset it, and the client might lose the last reply.
//! - *Ending*: both sides are shut; the kernel's last operations come back, then the slot is free.
//!
//! # Invariants
//!
//! 1. A slot is used again only when none of its operations is in flight, so an event always belongs to the slot's connection.
//! 2. A connection that was accepted counts against the limit until its slot is free. A client beyond the limit is disconnected at once.
//!    Connections of our own making have slots behind those, as many as the caller opens.
//!
//! # Failure cases
//!
//! - No descriptors or memory for new connections: the listener rests for [`RETRY_AFTER`], connected clients are served on.
//! - A client that resets, or stops reading or sending, affects its own slot only.

// Entries name buffers by address, and accepted descriptors come as numbers.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

mod connect;
mod inbox;
mod landing;
mod listener;
mod outbox;

pub use listener::{ListenAddress, ListenError, Listener};

use crate::ring::{BeforeEnter, Event, Port, RegisteredFile, Ring, Target};
use connect::{KernelAddress, failure_of};
use inbox::{Inbox, Room};
use io_uring::{opcode, types};
use landing::Receives;
use nix::sys::socket::{
    Shutdown, SockaddrStorage, getpeername, getsockopt, setsockopt, shutdown,
    sockopt::{KeepAlive, PeerCredentials, TcpKeepIdle, TcpKeepInterval, TcpNoDelay},
};
use outbox::Outbox;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use twinlog_device::{
    Accepted, BlockBuf, ConnectionFailure, ConnectionId, ConnectionState, Landing, Lent, Nanos, NetAddress, Network,
    SharedBlock, Unread, net::INPUT_BYTES_MAX,
};

/// How long a connection that is to be closed may make no progress in sending.
const SENDING_LIMIT: Duration = Duration::from_secs(30);
/// How long a client may take to close its side after ours is shut.
const LINGERING_LIMIT: Duration = Duration::from_secs(2);
/// How long a listener rests when the machine has no descriptor or memory for a connection.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// `IORING_RECVSEND_POLL_FIRST` of the kernel's `linux/io_uring.h`.
const RECEIVE_POLL_FIRST: u16 = 1;

/// A client that has been silent for this long, in seconds, is asked whether it is still there, and asked again after each interval.
const KEEPALIVE_SECONDS: [u32; 2] = [60, 10];

/// Bits of a connection's id that are its slot; the rest counts connections.
const SLOT_BITS: u32 = 16;

/// Most slots of one network.
const SLOTS_MAX: usize = 1 << SLOT_BITS;

nix::ioctl_read_bad!(unread_bytes, libc::FIONREAD, libc::c_int);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Receive = 0,
    Send = 1,
    Accept = 2,
    Retry = 3,
    Connect = 4,
}

/// The port's index of an operation of a slot (or of a listener).
fn operation_index(operation: Operation, slot: u32) -> u32 {
    slot << 3 | operation as u32
}

fn operation_of(index: u32) -> (Operation, u32) {
    let operation = match index & 7 {
        0 => Operation::Receive,
        1 => Operation::Send,
        2 => Operation::Accept,
        3 => Operation::Retry,
        _ => Operation::Connect,
    };
    (operation, index >> 3)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Sending { unsent_bytes: usize, until: Nanos },
    Lingering { until: Nanos },
    Ending,
}

struct Socket {
    // Declared before the descriptor: the table's entry goes before the descriptor can be used again.
    registered: RegisteredFile,
    descriptor: OwnedFd,
}

impl Socket {
    fn new(ring: &Ring, descriptor: OwnedFd) -> Self {
        Self { registered: RegisteredFile::new(ring, &descriptor), descriptor }
    }

    fn target(&self) -> Target {
        self.registered.target()
    }

    /// What lies in the kernel's buffer (`FIONREAD`, tcp(7), unix(7)).
    fn unread_bytes(&self) -> u64 {
        let mut count = 0;
        // SAFETY: the kernel writes one integer, which lives until the call returns.
        let result = unsafe { unread_bytes(self.descriptor.as_raw_fd(), &raw mut count) };
        // Only a socket that listens has none to tell.
        result.map_or(0, |_| u64::try_from(count).unwrap_or(0))
    }

    fn shut(&self, how: Shutdown) {
        // Fails only when the peer has gone, which ends the operations too.
        let _ = shutdown(self.descriptor.as_raw_fd(), how);
    }
}

struct Connection {
    /// `None` when the machine had none for it: then it has failed.
    socket: Option<Socket>,
    id: ConnectionId,
    inbox: Inbox,
    state: ConnectionState,
    failure: Option<ConnectionFailure>,
    phase: Phase,
    /// Where to, while a connect is in flight.
    connecting: Option<Box<KernelAddress>>,
    /// The caller knows it.
    named: bool,
    /// Something has changed since the last poll.
    changed: bool,
}

impl Connection {
    fn new(id: ConnectionId, socket: Option<Socket>) -> Self {
        Self {
            socket,
            id,
            inbox: Inbox::new(),
            state: ConnectionState::Open,
            failure: None,
            phase: Phase::Serving,
            connecting: None,
            named: false,
            changed: false,
        }
    }
}

struct ListenerSlot {
    registered: RegisteredFile,
    listener: Listener,
    multishot: bool,
}

/// The connections of one reactor.
pub struct UringNetwork {
    // First, so that it is dropped, and the kernel has finished, before buffers and sockets go.
    port: Port,
    outbox: Rc<RefCell<Outbox>>,
    receives: Rc<RefCell<Receives>>,
    connections: Vec<Option<Connection>>,
    /// Slots that belong to accepted connections; the others are behind them.
    accepted_slots: u32,
    free: Vec<u32>,
    free_outgoing: Vec<u32>,
    listeners: Vec<ListenerSlot>,
    accepted: VecDeque<Accepted>,
    changed: Vec<ConnectionId>,
    /// Slots in a phase other than serving.
    closing: Vec<u32>,
    connection_count: u64,
    refused_count: u64,
    retry_after: Box<types::Timespec>,
    /// [`RECEIVE_POLL_FIRST`] where the kernel has it, else zero.
    poll_first: u16,
    events: Vec<Event>,
}

impl UringNetwork {
    /// A network that accepts from `listeners` up to `connections_max` (1 to 65536) connections at a time.
    ///
    /// # Errors
    /// None today; reserved for kernels that refuse what is set up here.
    pub fn new(ring: &Ring, listeners: Vec<Listener>, connections_max: usize) -> io::Result<Self> {
        let slots = connections_max.clamp(1, SLOTS_MAX);
        let slot_count = u32::try_from(slots).expect("at most 65536");
        let port = Port::open(ring);
        let outbox = Rc::new(RefCell::new(Outbox::new(port.number(), slots)));
        let receives = Rc::new(RefCell::new(Receives::new(port.number())));
        ring.add_hook(receives.clone());
        ring.add_hook(outbox.clone());
        let multishot = ring.facts().multishot_accept;
        let listeners = listeners.into_iter().map(|listener| {
            let registered = RegisteredFile::new(ring, &listener);
            ListenerSlot { registered, listener, multishot }
        });
        let mut network = Self {
            port,
            outbox,
            receives,
            connections: (0..slots).map(|_| None).collect(),
            accepted_slots: slot_count,
            free: (0..slot_count).rev().collect(),
            free_outgoing: Vec::new(),
            listeners: listeners.collect(),
            accepted: VecDeque::new(),
            changed: Vec::new(),
            closing: Vec::new(),
            connection_count: 0,
            refused_count: 0,
            retry_after: Box::new(types::Timespec::from(RETRY_AFTER)),
            poll_first: if ring.facts().poll_first { RECEIVE_POLL_FIRST } else { 0 },
            events: Vec::new(),
        };
        for listener in 0..network.listeners.len() {
            network.arm_accept(u32::try_from(listener).expect("few listeners"));
        }
        Ok(network)
    }

    /// Stops listening: no further client is accepted; connected ones are served on. The sockets close, and their files go, when
    /// every other clone of the listeners is gone too.
    pub fn unlisten(&mut self) {
        let count = u32::try_from(self.listeners.len()).expect("few listeners");
        let mut core = self.port.ring().core();
        for listener in 0..count {
            core.cancel(self.port.number(), operation_index(Operation::Accept, listener));
            core.cancel(self.port.number(), operation_index(Operation::Retry, listener));
        }
        drop(core);
        self.listeners.clear();
    }

    /// Connections that exist now, those that are being closed included.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    /// Clients that were turned away because of the limit.
    #[must_use]
    pub fn refused_count(&self) -> u64 {
        self.refused_count
    }

    fn arm_accept(&mut self, index: u32) {
        let Some(slot) = self.listeners.get(index as usize) else { return };
        let target = slot.registered.target();
        let entry = if slot.multishot {
            opcode::AcceptMulti::new(target.fd()).flags(libc::SOCK_CLOEXEC).build()
        } else {
            let nowhere = std::ptr::null_mut();
            opcode::Accept::new(target.fd(), nowhere, std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build()
        };
        // SAFETY: the entry names no memory.
        unsafe { self.port.push(operation_index(Operation::Accept, index), target.seal(entry)) };
    }

    fn rest(&mut self, index: u32) {
        let entry = opcode::Timeout::new(&raw const *self.retry_after).build();
        // SAFETY: the time lies on the heap, never changes, and the port is dropped before it.
        unsafe { self.port.push(operation_index(Operation::Retry, index), entry) };
    }

    fn on_accept(&mut self, index: u32, event: Event) {
        if event.result >= 0 {
            // SAFETY: the kernel made this descriptor for this event, and nobody else knows it.
            let socket = unsafe { OwnedFd::from_raw_fd(event.result) };
            self.admit(index, socket);
        }
        if event.more {
            return;
        }
        match -event.result {
            libc::ECANCELED => {}
            libc::EINVAL => {
                // A kernel that accepts one at a time; or a socket that does not listen any more, which then rests.
                let multishot = self.listeners.get_mut(index as usize).map(|slot| std::mem::take(&mut slot.multishot));
                if multishot == Some(true) { self.arm_accept(index) } else { self.rest(index) }
            }
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => self.rest(index),
            // Accepted one, or a client that was gone before it was accepted.
            _ => self.arm_accept(index),
        }
    }

    fn admit(&mut self, listener: u32, socket: OwnedFd) {
        let Some(source) = self.listeners.get(listener as usize) else { return };
        let Some(slot) = self.free.pop() else {
            self.refused_count += 1;
            return;
        };
        let peer = match source.listener.address() {
            ListenAddress::Tcp(_) => prepare_tcp(&socket),
            ListenAddress::Unix { .. } => name_unix(&socket),
        };
        let id = self.new_id(slot);
        let socket = Socket::new(self.port.ring(), socket);
        self.outbox.borrow_mut().open(slot, Some(socket.target()));
        self.outbox.borrow_mut().release(slot);
        self.connections[slot as usize] = Some(Connection::new(id, Some(socket)));
        self.accepted.push_back(Accepted { connection: id, listener: listener as usize, peer });
        self.receive(slot);
    }

    fn new_id(&mut self, slot: u32) -> ConnectionId {
        self.connection_count += 1;
        ConnectionId(self.connection_count << SLOT_BITS | u64::from(slot))
    }

    /// A slot for a connection of our own making.
    fn outgoing_slot(&mut self) -> u32 {
        self.free_outgoing.pop().unwrap_or_else(|| {
            assert!(self.connections.len() < SLOTS_MAX, "the caller bounds the connections that it opens");
            self.connections.push(None);
            self.outbox.borrow_mut().add_slot();
            u32::try_from(self.connections.len() - 1).expect("at most 65536")
        })
    }

    fn at(&mut self, slot: u32) -> &mut Connection {
        self.connections[slot as usize].as_mut().expect("operations belong to the slot's connection (invariant 1)")
    }

    /// Queues a receive when there is room for it and none in flight or queued.
    fn receive(&mut self, slot: u32) {
        let connection = self.at(slot);
        if connection.state != ConnectionState::Open || connection.phase == Phase::Ending {
            return;
        }
        let Some(target) = connection.socket.as_ref().map(Socket::target) else { return };
        let Some(room) = connection.inbox.begin() else { return };
        // When there was nothing left in the socket, waiting at once saves an attempt that most likely finds nothing.
        let has_drained = connection.inbox.has_drained();
        let poll_first = if has_drained { self.poll_first } else { 0 };
        let entry = match room {
            Room::Input(address, length) => opcode::Recv::new(target.fd(), address, length).ioprio(poll_first).build(),
            Room::Landing(header) => opcode::RecvMsg::new(target.fd(), header).ioprio(poll_first).build(),
        };
        // SAFETY: the inbox keeps this part of its buffer, and the landing with its vector and header, for the receive until it is told of its end; the port
        // is dropped before the inbox.
        unsafe { self.receives.borrow_mut().queue(slot, target.seal(entry)) };
    }

    fn on_receive(&mut self, slot: u32, result: i32) {
        let connection = self.at(slot);
        let count = usize::try_from(result).unwrap_or(0);
        connection.inbox.end(count);
        match result {
            1.. => {}
            // A failure that a send has met is final.
            0 if connection.state == ConnectionState::Failed => return,
            0 => connection.state = ConnectionState::InputEnded,
            _ if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                return self.receive(slot);
            }
            error => return self.lose(slot, failure_of(-error)),
        }
        if connection.phase != Phase::Serving {
            connection.inbox.discard();
        }
        self.mark(slot);
        self.receive(slot);
    }

    fn on_send(&mut self, slot: u32, result: i32) {
        let sent = self.outbox.borrow_mut().sent(slot, result);
        if let Err(error) = sent {
            return self.lose(slot, failure_of(error));
        }
        self.mark(slot);
    }

    /// The connection is broken: nothing more comes or goes.
    fn lose(&mut self, slot: u32, failure: ConnectionFailure) {
        let connection = self.at(slot);
        connection.state = ConnectionState::Failed;
        connection.failure.get_or_insert(failure);
        self.outbox.borrow_mut().fail(slot);
        self.mark(slot);
    }

    /// Names the connection in the next poll, once the caller knows it.
    fn mark(&mut self, slot: u32) {
        let connection = self.at(slot);
        let newly = !std::mem::replace(&mut connection.changed, true);
        let (id, report) = (connection.id, newly && connection.named && connection.phase == Phase::Serving);
        if report {
            self.changed.push(id);
        }
    }

    /// Handles what has happened since the last time.
    fn pump(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.port.take_events(&mut events);
        for event in events.drain(..) {
            match operation_of(event.index) {
                (Operation::Receive, slot) => self.on_receive(slot, event.result),
                (Operation::Send, slot) => self.on_send(slot, event.result),
                (Operation::Accept, listener) => self.on_accept(listener, event),
                (Operation::Retry, listener) => self.arm_accept(listener),
                (Operation::Connect, slot) => self.on_connect(slot, event.result),
            }
        }
        self.events = events;
        for index in (0..self.closing.len()).rev() {
            let slot = self.closing[index];
            if self.proceed(slot) {
                self.closing.swap_remove(index);
            }
        }
    }

    /// Brings a closing connection forward; whether it is gone.
    fn proceed(&mut self, slot: u32) -> bool {
        let now = self.port.ring().now();
        let unsent_now = self.outbox.borrow().unsent_bytes(slot);
        let connection = self.at(slot);
        let failed = connection.state == ConnectionState::Failed;
        match connection.phase {
            Phase::Serving => unreachable!("only closing connections are listed"),
            Phase::Sending { .. } if failed => self.end(slot),
            Phase::Sending { .. } if unsent_now == 0 => {
                connection.socket.as_ref().inspect(|socket| socket.shut(Shutdown::Write));
                connection.phase = Phase::Lingering { until: now + LINGERING_LIMIT };
                connection.inbox.discard();
                self.receive(slot);
                return self.proceed(slot);
            }
            Phase::Sending { unsent_bytes, .. } if unsent_now < unsent_bytes => {
                connection.phase = Phase::Sending { unsent_bytes: unsent_now, until: now + SENDING_LIMIT };
            }
            Phase::Sending { until, .. } if now >= until => self.end(slot),
            Phase::Lingering { until } if connection.state != ConnectionState::Open || now >= until => self.end(slot),
            Phase::Sending { .. } | Phase::Lingering { .. } | Phase::Ending => {}
        }
        let connection = self.at(slot);
        let quiet = !connection.inbox.is_receiving() && connection.connecting.is_none();
        if quiet && connection.phase == Phase::Ending && !self.outbox.borrow().is_flying(slot) {
            self.outbox.borrow_mut().close(slot);
            self.connections[slot as usize] = None;
            let free = if slot < self.accepted_slots { &mut self.free } else { &mut self.free_outgoing };
            free.push(slot);
            return true;
        }
        false
    }

    /// Ends the operations in flight.
    fn end(&mut self, slot: u32) {
        self.at(slot).phase = Phase::Ending;
        self.stop_operations(slot);
        self.outbox.borrow_mut().fail(slot);
    }

    /// Shuts both directions, or gives up a connect; either ends what is in flight.
    fn stop_operations(&self, slot: u32) {
        let Some(connection) = &self.connections[slot as usize] else { return };
        if connection.connecting.is_some() {
            self.cancel_connect(slot);
        } else if let Some(socket) = &connection.socket {
            socket.shut(Shutdown::Both);
        }
    }

    /// The slot of a connection that the caller may use.
    fn slot(&self, connection: ConnectionId) -> u32 {
        let slot = u32::try_from(connection.0 % SLOTS_MAX as u64).expect("masked");
        let found = self.connections.get(slot as usize).and_then(Option::as_ref);
        let valid = found.is_some_and(|found| found.id == connection && found.phase == Phase::Serving);
        assert!(valid, "an id is invalid once its connection was closed");
        slot
    }

    fn get(&self, connection: ConnectionId) -> &Connection {
        let slot = self.slot(connection);
        self.connections[slot as usize].as_ref().expect("`slot` has looked")
    }
}

/// Sets what a request protocol wants, and names the client.
fn prepare_tcp(socket: &OwnedFd) -> String {
    // None of these options is needed to serve the client.
    let _ = setsockopt(socket, TcpNoDelay, &true);
    let _ = setsockopt(socket, KeepAlive, &true);
    let _ = setsockopt(socket, TcpKeepIdle, &KEEPALIVE_SECONDS[0]);
    let _ = setsockopt(socket, TcpKeepInterval, &KEEPALIVE_SECONDS[1]);
    getpeername::<SockaddrStorage>(socket.as_raw_fd()).map_or_else(|_| "tcp".to_owned(), |peer| peer.to_string())
}

fn name_unix(socket: &OwnedFd) -> String {
    getsockopt(socket, PeerCredentials)
        .map_or_else(|_| "unix".to_owned(), |peer| format!("process {} of user {}", peer.pid(), peer.uid()))
}

impl Network for UringNetwork {
    fn accept(&mut self) -> Option<Accepted> {
        if self.accepted.is_empty() {
            self.pump();
        }
        let accepted = self.accepted.pop_front()?;
        let slot = u32::try_from(accepted.connection.0 % SLOTS_MAX as u64).expect("masked");
        let connection = self.at(slot);
        connection.named = true;
        if connection.changed {
            self.changed.push(accepted.connection);
            self.port.ring().set_ready();
        }
        Some(accepted)
    }

    fn connect(&mut self, address: &NetAddress) -> ConnectionId {
        self.start_connect(address)
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        self.pump();
        for index in 0..self.changed.len() {
            let slot = self.slot(self.changed[index]);
            self.at(slot).changed = false;
        }
        ready.append(&mut self.changed);
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        self.get(connection).state
    }

    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure> {
        self.get(connection).failure
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        self.get(connection).inbox.input()
    }

    fn lend(&self, connection: ConnectionId, range: Range<usize>) -> Lent {
        self.get(connection).inbox.lend(range)
    }

    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize) {
        assert!(count_bytes <= INPUT_BYTES_MAX, "input that waits is bounded");
        let slot = self.slot(connection);
        self.at(slot).inbox.widen(count_bytes);
        self.receive(slot);
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        let slot = self.slot(connection);
        self.at(slot).inbox.consume(count_bytes);
        self.receive(slot);
    }

    fn land(&mut self, connection: ConnectionId, landing: Landing) -> Result<(), Landing> {
        let slot = self.slot(connection);
        let is_open = self.at(slot).state == ConnectionState::Open;
        if !is_open || !self.receives.borrow_mut().withdraw(slot) {
            return Err(landing);
        }
        let inbox = &mut self.at(slot).inbox;
        inbox.withdraw();
        inbox.land(landing);
        self.receive(slot);
        Ok(())
    }

    fn landed_bytes(&self, connection: ConnectionId) -> usize {
        self.get(connection).inbox.landed_bytes()
    }

    fn take_landed(&mut self, connection: ConnectionId) -> Option<Vec<BlockBuf>> {
        let slot = self.slot(connection);
        self.at(slot).inbox.take_landed()
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let slot = self.slot(connection);
        self.outbox.borrow_mut().send(slot, bytes);
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        let slot = self.slot(connection);
        self.outbox.borrow_mut().send_block(slot, block, range);
    }

    fn send_shared(&mut self, connection: ConnectionId, bytes: &Arc<Vec<u8>>, range: Range<usize>) {
        let slot = self.slot(connection);
        self.outbox.borrow_mut().send_shared(slot, bytes, range);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        self.outbox.borrow().unsent_bytes(self.slot(connection))
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        let slot = self.slot(connection);
        self.changed.retain(|&other| other != connection);
        let now = self.port.ring().now();
        let unsent_bytes = self.outbox.borrow().unsent_bytes(slot);
        if abort || (unsent_bytes == 0 && self.at(slot).connecting.is_some()) {
            self.end(slot);
        } else {
            let connection = self.at(slot);
            connection.phase = Phase::Sending { unsent_bytes, until: now + SENDING_LIMIT };
            connection.inbox.discard();
            self.receive(slot);
        }
        if !self.proceed(slot) {
            self.closing.push(slot);
        }
    }
}

impl Unread for UringNetwork {
    fn received_bytes(&self, connection: ConnectionId) -> u64 {
        self.get(connection).inbox.received_bytes()
    }

    fn unread_bytes(&self, connection: ConnectionId) -> u64 {
        let connection = self.get(connection);
        // What the kernel has taken out of the socket has its completion already, which the next turn brings.
        connection
            .socket
            .as_ref()
            .filter(|_| connection.state != ConnectionState::Failed)
            .map_or(0, Socket::unread_bytes)
    }
}

impl Drop for UringNetwork {
    fn drop(&mut self) {
        let hooks: [Rc<RefCell<dyn BeforeEnter>>; 2] = [self.receives.clone(), self.outbox.clone()];
        hooks.iter().for_each(|hook| self.port.ring().remove_hook(hook));
        self.unlisten();
        for slot in 0..self.connections.len() {
            self.stop_operations(u32::try_from(slot).expect("at most 65536"));
        }
        self.port.drain();
        // Clients that were accepted meanwhile are disconnected, rather than left hanging.
        self.pump();
        self.port.drain();
    }
}
