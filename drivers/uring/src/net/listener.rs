//! Listening sockets. Bound once by the process, cloned into every reactor's network.

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
};
use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A socket in the file system.
    Unix {
        /// At most 107 bytes.
        path: PathBuf,
        /// Who may connect: 0o600 for this user, 0o660 for the group too.
        mode: u32,
    },
    /// A TCP port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
        }
    }
}

/// Why nobody can connect there.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A program answers there.
    #[error("another program already listens at {0}")]
    InUse(ListenAddress),
    /// Something else than a socket has the name.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("cannot listen at {address}: {source}")]
    Io {
        /// Where.
        address: ListenAddress,
        /// Why not.
        source: io::Error,
    },
}

#[derive(Debug)]
struct Bound {
    socket: OwnedFd,
    address: ListenAddress,
    /// Device and inode of our socket file: what another program put there since is not ours to remove.
    file: Option<(u64, u64)>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ListenAddress::Unix { path, .. } = &self.address else { return };
        if self.file.is_some() && identity(path) == self.file {
            // A file that is left behind is removed by the next process that listens here.
            let _ = fs::remove_file(path);
        }
    }
}

/// A listening socket. Clones share it; the last one closes it and removes its file.
#[derive(Clone, Debug)]
pub struct Listener(Arc<Bound>);

impl Listener {
    /// Binds and listens. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// When the address is in use or the kernel refuses it.
    pub fn bind(address: &ListenAddress) -> Result<Self, ListenError> {
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => ListenError::InUse(address.clone()),
            _ => ListenError::Io { address: address.clone(), source: error },
        };
        let bound = match address {
            ListenAddress::Unix { path, mode } => {
                remove_stale(path, address)?;
                let socket = listen_unix(path, *mode).map_err(refused)?;
                Bound { socket, address: address.clone(), file: identity(path) }
            }
            ListenAddress::Tcp(wanted) => {
                let socket = TcpListener::bind(wanted).map_err(refused)?;
                let address = ListenAddress::Tcp(socket.local_addr().map_err(refused)?);
                Bound { socket: socket.into(), address, file: None }
            }
        };
        Ok(Self(Arc::new(bound)))
    }

    /// Where it listens; with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.0.address
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino()))
}

/// Removes the socket file of a program that is gone; leaves everything else alone.
fn remove_stale(path: &Path, address: &ListenAddress) -> Result<(), ListenError> {
    let io = |source: io::Error| ListenError::Io { address: address.clone(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => fs::remove_file(path).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // It answers, or we may not ask: both mean that it is somebody's.
        Ok(_) | Err(_) => Err(ListenError::InUse(address.clone())),
    }
}

fn listen_unix(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let name = UnixAddr::new(path)?;
    // The socket file is made with the socket's own mode: at no time may more people connect than wanted.
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &name)?;
    // The umask may have taken away what was wanted.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listen(&socket, Backlog::new(BACKLOG).map_err(|_: Errno| io::Error::from(io::ErrorKind::InvalidInput))?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> ListenAddress {
        ListenAddress::Unix { path: path.to_owned(), mode: 0o600 }
    }

    #[test]
    fn a_socket_file_comes_with_its_mode_and_goes_with_the_last_handle() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&unix(&path)).expect("a free name");
        let mode = fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let clone = listener.clone();
        drop(listener);
        UnixStream::connect(&path).expect("a clone listens");
        drop(clone);
        assert!(!path.exists());
    }

    #[test]
    fn only_stale_sockets_are_replaced() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&unix(&path)).expect("a free name");
        assert!(matches!(Listener::bind(&unix(&path)), Err(ListenError::InUse(_))));
        drop(listener);
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a free name"));
        assert!(path.exists(), "a program that died leaves its socket file");
        let listener = Listener::bind(&unix(&path)).expect("nobody listens there");
        fs::remove_file(&path).expect("a file");
        fs::write(&path, b"somebody's").expect("writable");
        assert!(matches!(Listener::bind(&unix(&path)), Err(ListenError::NotASocket(_))));
        drop(listener);
        assert!(path.exists(), "what is not ours is left alone");
    }

    #[test]
    fn an_address_in_use_is_named() {
        let any = ListenAddress::Tcp("127.0.0.1:0".parse().expect("an address"));
        let listener = Listener::bind(&any).expect("a port of the kernel's choice");
        let error = Listener::bind(listener.address()).expect_err("we listen there");
        assert!(error.to_string().contains("tcp:127.0.0.1:"), "{error}");
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        Listener::bind(&unix(&long)).expect_err("the path is too long for a socket");
    }
}
