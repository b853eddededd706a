//! The admin API: one JSON object per line on a Unix socket, one reply line per request.
//!
//! ```text
//! -> {"call":"volume-create","name":"v1","size_bytes":1073741824}
//! <- {"schema_version":1,"reply":"volumes","volumes":[...]}
//! ```
//!
//! # Invariants
//!
//! 1. The socket appears under its name with mode 0600 at once; nobody but the owner of the process (and root) can connect.
//! 2. At most [`CONNECTIONS_MAX`] connections, each with one request in flight; further ones get a refusal line and are closed.
//! 3. A request line has at most [`REQUEST_LINE_BYTES_MAX`] bytes. A longer one, or one that is no request, gets a refusal; after a
//!    longer one the connection is closed, since nobody knows where the next line begins.
//! 4. A connection that sends nothing for `SILENCE_MAX`, or takes no reply for `WRITE_WAIT_MAX`, is closed.
//!
//! # Life cycle
//!
//! `AdminServer::start` binds and accepts on a thread of its own; every connection has a thread. Dropping the server removes the socket and
//! ends the accepting thread; connection threads end with their clients or the process.

use super::{events::EventLog, file, hosts::HostBook};
use crate::{
    node::admin::{AdminCall, AdminReply, AdminRequest, SecretText},
    reactor::mailbox::{MailboxSender, SendError},
};
use crossbeam_channel::bounded;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

/// Version of the JSON that this program writes: grows when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;
/// Connections served at the same time.
pub const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request, with its newline. The longest request names a device by a path of 4096 bytes, escaped.
pub const REQUEST_LINE_BYTES_MAX: usize = 32 << 10;
/// How long a connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a client may leave its reply in the socket.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Calls that wait for reactor 0: one per connection, and room for signals and metrics.
pub const CALLS_MAX: usize = 2 * CONNECTIONS_MAX;

/// The node as control threads see it: somebody to ask.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    calls: MailboxSender<AdminCall>,
    events: EventLog,
    hosts: Option<Arc<HostBook>>,
}

impl NodeHandle {
    /// A handle on the reactor that takes calls from this mailbox.
    #[must_use]
    pub fn new(calls: MailboxSender<AdminCall>) -> Self {
        Self { calls, events: EventLog::default(), hosts: None }
    }

    /// The same node, with the events that its process keeps.
    #[must_use]
    pub fn with_events(self, events: EventLog) -> Self {
        Self { events, ..self }
    }

    /// The same node, with hosts that may connect over NVMe/TCP.
    #[must_use]
    pub fn with_hosts(self, hosts: Option<Arc<HostBook>>) -> Self {
        Self { hosts, ..self }
    }

    /// The reply to a request about hosts.
    fn ask_of_hosts(&self, request: &AdminRequest) -> Option<AdminReply> {
        let without = || {
            refused(
                "this node has no front end for NVMe/TCP",
                "[nvme_tcp] in node.toml; twinlog up --nvme PORT makes one",
            )
        };
        let book = self.hosts.as_deref();
        match request {
            AdminRequest::HostList => Some(book.map_or_else(without, HostBook::list)),
            AdminRequest::HostAdd { nqn, id, secret, controller_secret } => {
                let text = |secret: &Option<SecretText>| secret.as_ref().map(|secret| secret.0.clone());
                let (secret, controller_secret) = (text(secret), text(controller_secret));
                let secrets = [secret.as_deref(), controller_secret.as_deref()];
                let add = |book: &HostBook| book.add(nqn, id.as_deref(), secrets);
                Some(book.map_or_else(without, add))
            }
            AdminRequest::HostRemove { nqn } => Some(book.map_or_else(without, |book| book.remove(nqn))),
            _ => None,
        }
    }

    /// Asks and waits for the reply, at most `patience` if given. A node that is gone, full or too slow is a refusal.
    #[must_use]
    pub fn ask(&self, request: AdminRequest, patience: Option<Duration>) -> AdminReply {
        if let AdminRequest::Events { after } = request {
            return self.events.after(after);
        }
        if let Some(reply) = self.ask_of_hosts(&request) {
            return reply;
        }
        let (sender, receiver) = bounded(1);
        match self.calls.send(AdminCall { request, reply: sender }) {
            Err(SendError::Full(_)) => return refused("the node has too many control requests waiting", "try again"),
            Err(SendError::Closed(_)) => return refused("the node has stopped", "twinlog status"),
            Ok(()) => {}
        }
        let reply = match patience {
            Some(patience) => receiver.recv_timeout(patience).map_err(|error| error.is_timeout()),
            None => receiver.recv().map_err(|_| false),
        };
        match reply {
            Ok(AdminReply::Status(mut status)) => {
                status.memory_resident_bytes = resident_bytes();
                AdminReply::Status(status)
            }
            Ok(reply) => reply,
            Err(true) => refused("the node did not answer in time", "twinlog status"),
            Err(false) => refused("the node stopped before it answered", "twinlog status"),
        }
    }
}

/// Memory of this process; zero where the kernel does not tell.
fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kibibytes.unwrap_or(0) << 10
}

fn refused(message: &str, hint: &str) -> AdminReply {
    AdminReply::Refused { message: message.to_owned(), hint: hint.to_owned() }
}

/// A reply as it stands on the wire.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyLine {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The reply.
    #[serde(flatten)]
    pub reply: AdminReply,
}

/// The running server.
#[derive(Debug)]
pub struct AdminServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Listens at `path`, replacing what a dead process left there, and forwards requests to `node`.
    ///
    /// # Errors
    /// The kernel's, when it refuses the socket or the thread.
    pub fn start(path: &Path, node: NodeHandle) -> io::Result<Self> {
        let listener = bind_private(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new().name("admin".to_owned()).spawn(move || accept(&listener, &node, &stopped))?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The connection ends the wait for one. If it fails, somebody removed the socket, and the thread ends with the process.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _gone_already = fs::remove_file(&self.path);
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

/// Binds under a temporary name, restricts it, and moves it into place: I1.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let temporary = file::beside(path);
    file::remove_leftover(&temporary)?;
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, node: &NodeHandle, stop: &AtomicBool) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok(stream) => admit(stream, node, &connections),
            // Out of file descriptors or memory: the next wait may be a busy one, so give the machine time.
            Err(error) => {
                tracing::warn!(%error, "admin connection not accepted");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

/// Gives the connection a thread, or refuses it (I2).
fn admit(mut stream: UnixStream, node: &NodeHandle, connections: &Arc<AtomicUsize>) {
    let bounded = stream.set_read_timeout(Some(SILENCE_MAX)).and(stream.set_write_timeout(Some(WRITE_WAIT_MAX)));
    if bounded.is_err() {
        return;
    }
    if connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
        connections.fetch_sub(1, Ordering::AcqRel);
        let _client_gone = reply(&mut stream, refused("too many admin connections", "close one and try again"));
        return;
    }
    let (node, counted) = (node.clone(), Arc::clone(connections));
    let spawned = Builder::new().name("admin client".to_owned()).spawn(move || {
        if let Err(error) = converse(stream, &node) {
            tracing::debug!(%error, "admin connection ended");
        }
        counted.fetch_sub(1, Ordering::AcqRel);
    });
    if let Err(error) = spawned {
        connections.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "no thread for an admin connection");
    }
}

fn converse(stream: UnixStream, node: &NodeHandle) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(line) = read_line(&mut reader, REQUEST_LINE_BYTES_MAX)? {
        let Line::Whole(line) = line else {
            return reply(&mut writer, refused("the request line is too long", "send one JSON object per line"));
        };
        let answer = match serde_json::from_slice::<AdminRequest>(&line) {
            Ok(request) => node.ask(request, None),
            Err(error) => {
                refused(&format!("not a request: {error}"), "send one JSON object per line, like {\"call\":\"status\"}")
            }
        };
        reply(&mut writer, answer)?;
    }
    Ok(())
}

fn reply(stream: &mut UnixStream, reply: AdminReply) -> io::Result<()> {
    let mut line = serde_json::to_vec(&ReplyLine { schema_version: SCHEMA_VERSION, reply })?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A line of input.
pub(super) enum Line {
    /// Without its newline.
    Whole(Vec<u8>),
    /// Longer than the limit.
    TooLong,
}

/// The next line, `None` at the end of input. A line that ends without a newline is whole.
pub(super) fn read_line(reader: &mut impl BufRead, bytes_max: usize) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let count = reader.take(bytes_max as u64).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if count == bytes_max {
        return Ok(Some(Line::TooLong));
    }
    Ok((count > 0).then_some(Line::Whole(line)))
}

#[cfg(test)]
mod tests;
