//! A connection over a Unix socket or TCP, and how it is opened.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

use crate::target::Address;

/// How long a server may take to let a client in, and for each step of the negotiation.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// What the socket may hold; the kernel takes less where its limits are lower.
const SOCKET_BYTES: usize = 4 << 20;

/// A Unix or TCP stream.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects, for steps that each have a time limit.
    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
                stream.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
                grow(&stream);
                Self::Unix(stream)
            }
            Address::Tcp(host, port) => {
                let stream = connect_tcp(host, *port)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
                stream.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
                Self::Tcp(stream)
            }
        };
        Ok(stream)
    }

    /// Ends the time limits: from now on nothing waits.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
        }
    }
}

/// Asks for large buffers of a Unix socket, whose default holds a few dozen 4 KiB messages. TCP sizes its own. A refusal costs only speed.
fn grow(stream: &UnixStream) {
    let _ = setsockopt(stream, sockopt::SndBuf, &SOCKET_BYTES);
    let _ = setsockopt(stream, sockopt::RcvBuf, &SOCKET_BYTES);
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HANDSHAKE_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read_vectored(slices),
            Self::Tcp(stream) => stream.read_vectored(slices),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write_vectored(slices),
            Self::Tcp(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
