//! The command line's side of the admin API.

use super::admin::{Line, ReplyLine, SCHEMA_VERSION, read_line};
use crate::node::admin::{AdminReply, AdminRequest};
use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

/// Longest reply that is read: a status with every volume a pool could reasonably hold.
const REPLY_LINE_BYTES_MAX: usize = 64 << 20;
/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Why a node could not be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no node answers at {}: {source}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the node at {} broke the connection: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It answered something else than a reply.
    #[error("the node at {} does not speak this program's admin API: {reason}", path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What is wrong with its answer.
        reason: String,
    },
}

/// A connection to a node's admin socket.
#[derive(Debug)]
pub struct AdminClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl AdminClient {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) }),
            Err(source) => Err(ClientError::NotRunning { path: path.to_owned(), source }),
        }
    }

    /// Asks and waits for the reply.
    ///
    /// # Errors
    /// Anything but a reply; a refusal is a reply.
    pub fn call(&mut self, request: &AdminRequest) -> Result<AdminReply, ClientError> {
        self.send(request).map_err(|source| self.broken(source))?;
        self.receive()
    }

    /// As [`call`](Self::call), for long work: tells `progress` the blocks done and the blocks in all, several times a second.
    ///
    /// # Errors
    /// As for `call`.
    pub fn call_with_progress(
        &mut self,
        request: &AdminRequest,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<AdminReply, ClientError> {
        let mut observer = Self::connect(&self.path)?;
        self.send(request).map_err(|source| self.broken(source))?;
        self.set_patience(Some(PROGRESS_INTERVAL))?;
        loop {
            match self.stream.fill_buf() {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                _ => break,
            }
            if let AdminReply::Progress { done_blocks, total_blocks, .. } = observer.call(&AdminRequest::Progress)? {
                progress(done_blocks, total_blocks);
            }
        }
        self.set_patience(None)?;
        self.receive()
    }

    fn set_patience(&self, patience: Option<Duration>) -> Result<(), ClientError> {
        self.stream.get_ref().set_read_timeout(patience).map_err(|source| self.broken(source))
    }

    fn send(&mut self, request: &AdminRequest) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        match self.stream.get_mut().write_all(&line) {
            // The node refuses a connection by a line and closes it: the line says more than the broken pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn receive(&mut self) -> Result<AdminReply, ClientError> {
        let line = match read_line(&mut self.stream, REPLY_LINE_BYTES_MAX) {
            Ok(Some(Line::Whole(line))) => line,
            Ok(Some(Line::TooLong)) => return Err(self.foreign("its reply has no end".to_owned())),
            Ok(None) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Err(source) => return Err(self.broken(source)),
        };
        let reply: ReplyLine = serde_json::from_slice(&line).map_err(|error| self.foreign(error.to_string()))?;
        if reply.schema_version != SCHEMA_VERSION {
            let versions = format!("schema version {}, this program has {SCHEMA_VERSION}", reply.schema_version);
            return Err(self.foreign(versions));
        }
        Ok(reply.reply)
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), source }
    }

    fn foreign(&self, reason: String) -> ClientError {
        ClientError::Foreign { path: self.path.clone(), reason }
    }
}
