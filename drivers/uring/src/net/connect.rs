//! Connecting: a socket of our own is led to where somebody listens, by the ring like everything else.
//!
//! A connect in flight is cancelled before its socket is shut: the kernel tries a connect that it has parked once more when the
//! socket changes, and a socket that was shut in the middle would begin anew.

// Entries name the address by its place in memory.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

use super::{Connection, Operation, Phase, Socket, UringNetwork, operation_index, prepare_tcp};
use io_uring::opcode;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, socket},
};
use std::net::SocketAddr;
use twinlog_device::{ConnectionFailure, ConnectionId, ConnectionState, NetAddress};

/// An address as the kernel reads it.
pub(super) enum KernelAddress {
    Unix(UnixAddr),
    Inet(SockaddrStorage),
}

impl KernelAddress {
    fn new(address: &NetAddress) -> Result<Self, Errno> {
        Ok(match address {
            NetAddress::Unix(path) => Self::Unix(UnixAddr::new(path)?),
            NetAddress::Tcp(address) => Self::Inet(SockaddrStorage::from(*address)),
        })
    }

    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::Unix(address) => (address.as_ptr().cast(), address.len()),
            Self::Inet(address) => (address.as_ptr(), address.len()),
        }
    }
}

/// What an error of the operating system means for a connection.
pub(super) fn failure_of(error: i32) -> ConnectionFailure {
    match error {
        // No socket file, or one that nobody listens on.
        libc::ECONNREFUSED | libc::ENOENT => ConnectionFailure::Refused,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => ConnectionFailure::Unreachable,
        libc::ETIMEDOUT => ConnectionFailure::TimedOut,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => ConnectionFailure::Reset,
        other => ConnectionFailure::Os(other),
    }
}

fn open_socket(address: &NetAddress) -> Result<std::os::fd::OwnedFd, Errno> {
    let family = match address {
        NetAddress::Unix(_) => AddressFamily::Unix,
        NetAddress::Tcp(SocketAddr::V4(_)) => AddressFamily::Inet,
        NetAddress::Tcp(SocketAddr::V6(_)) => AddressFamily::Inet6,
    };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

impl UringNetwork {
    /// Starts to connect; what goes wrong at once is shown like what goes wrong later.
    pub(super) fn start_connect(&mut self, address: &NetAddress) -> ConnectionId {
        let slot = self.outgoing_slot();
        let id = self.new_id(slot);
        let opened = KernelAddress::new(address).and_then(|kernel| Ok((kernel, open_socket(address)?)));
        let (socket, connecting) = match opened {
            Ok((kernel, descriptor)) => (Ok(Socket::new(self.port.ring(), descriptor)), Some(Box::new(kernel))),
            Err(error) => (Err(error), None),
        };
        self.outbox.borrow_mut().open(slot, socket.as_ref().ok().map(Socket::target));
        let failure = socket.as_ref().err().map(|error| failure_of(*error as i32));
        let mut connection = Connection::new(id, socket.ok());
        connection.named = true;
        connection.state = ConnectionState::Connecting;
        connection.connecting = connecting;
        self.connections[slot as usize] = Some(connection);
        match failure {
            Some(failure) => {
                self.lose(slot, failure);
                // No completion will end the next sleep.
                self.port.ring().set_ready();
            }
            None => self.queue_connect(slot),
        }
        id
    }

    fn queue_connect(&mut self, slot: u32) {
        let connection = self.at(slot);
        let target = connection.socket.as_ref().expect("a connection without one has failed").target();
        let (address, length) = connection.connecting.as_ref().expect("set by the caller").parts();
        let entry = opcode::Connect::new(target.fd(), address, length).build();
        // SAFETY: the address lies on the heap and stays until the event; the port is dropped before it.
        unsafe { self.port.push(operation_index(Operation::Connect, slot), target.seal(entry)) };
    }

    pub(super) fn on_connect(&mut self, slot: u32, result: i32) {
        let connection = self.at(slot);
        let address = connection.connecting.take();
        if connection.phase == Phase::Ending {
            return;
        }
        if result < 0 {
            return self.lose(slot, failure_of(-result));
        }
        connection.state = ConnectionState::Open;
        if let (Some(socket), Some(KernelAddress::Inet(_))) = (&connection.socket, address.as_deref()) {
            prepare_tcp(&socket.descriptor);
        }
        self.outbox.borrow_mut().release(slot);
        self.mark(slot);
        self.receive(slot);
    }

    /// Asks the kernel to give up; the event comes in any case.
    pub(super) fn cancel_connect(&self, slot: u32) {
        self.port.ring().core().cancel(self.port.number(), operation_index(Operation::Connect, slot));
    }
}
