//! What the sessions of all protocols have in common: a turn of one, its pace, its patience, and data on its way to a client.

use crate::node::request::DataRun;
use std::time::Duration;
use twinlog_device::{ConnectionId, Nanos, Network};

/// How long a client may leave a request half sent or replies unread: a virtual machine that is paused for a snapshot returns before.
const STALL: Duration = Duration::from_secs(300);

/// The same while memory is short and this client holds some of it.
const STALL_PRESSED: Duration = Duration::from_secs(5);

/// Zeroes are sent in pieces of this many bytes.
pub(super) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What one turn of a session works with.
pub(super) struct Turn<'a, N, S> {
    pub(super) net: &'a mut N,
    pub(super) service: &'a mut S,
    pub(super) connection: ConnectionId,
    /// Empty between uses.
    pub(super) scratch: &'a mut Vec<u8>,
    /// New requests are refused.
    pub(super) stopping: bool,
}

impl<N: Network, S> Turn<'_, N, S> {
    /// Sends what `write` appends.
    pub(super) fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        write(self.scratch);
        self.net.send(self.connection, self.scratch);
    }

    pub(super) fn input(&self) -> &[u8] {
        self.net.input(self.connection)
    }

    pub(super) fn unsent_bytes(&self) -> u64 {
        self.net.unsent_bytes(self.connection) as u64
    }
}

/// How a session goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once.
    Went,
    /// With more input.
    WaitsForClient,
    /// When the engine has room, memory or a reply, or output has been sent.
    WaitsForRoom,
    /// Not at all: the client broke a rule that leaves no way to go on.
    Violation,
}

/// What a session's owner does after a turn of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Call again when something has happened to the connection.
    Rest,
    /// Call again in the next turn.
    Again,
    /// Close the connection when everything has been sent.
    Close,
    /// Close it now.
    Abort,
}

/// One turn of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// Something was taken or sent.
    pub(super) progressed: bool,
    /// What now.
    pub(super) next: Next,
}

/// How long a client has kept others waiting.
#[derive(Debug)]
pub(super) struct Patience {
    /// When the client last sent or took something.
    progress_at: Nanos,
    /// Unsent bytes when they were last looked at.
    unsent_bytes: usize,
}

impl Patience {
    pub(super) fn new(now: Nanos) -> Self {
        Self { progress_at: now, unsent_bytes: 0 }
    }

    /// The client has sent something that was taken.
    pub(super) fn renew(&mut self, now: Nanos) {
        self.progress_at = now;
    }

    /// Looks at what waits to be sent.
    pub(super) fn look(&mut self, unsent_bytes: usize, now: Nanos) {
        if unsent_bytes < self.unsent_bytes {
            self.progress_at = now;
        }
        self.unsent_bytes = unsent_bytes;
    }

    /// Whether a client that owes something, `half_sent` or what it does not read, has kept others waiting too long. `holds_blocks`: memory waits for it;
    /// `pressed`: memory is short.
    pub(super) fn is_over(&self, half_sent: bool, holds_blocks: bool, (now, pressed): (Nanos, bool)) -> bool {
        let unsent = self.unsent_bytes > 0;
        let limit = if pressed && (unsent || holds_blocks) { STALL_PRESSED } else { STALL };
        (unsent || half_sent) && now.since(self.progress_at) > limit
    }
}

fn run_bytes(run: &DataRun) -> u64 {
    match run {
        DataRun::Block(_, range) => range.len() as u64,
        DataRun::Zeroes(length) => *length,
    }
}

/// Bytes that `runs` stand for.
pub(super) fn runs_bytes(runs: &[DataRun]) -> u64 {
    runs.iter().map(run_bytes).sum()
}

/// Sends the bytes of `runs`, zeroes included.
pub(super) fn send_runs<N: Network>(net: &mut N, connection: ConnectionId, runs: &[DataRun]) {
    for run in runs {
        match run {
            DataRun::Block(block, range) => net.send_block(connection, block, range.clone()),
            DataRun::Zeroes(length) => send_zeroes(net, connection, *length),
        }
    }
}

/// Sends `length_bytes` zeroes, at most a part of a request.
pub(super) fn send_zeroes<N: Network>(net: &mut N, connection: ConnectionId, length_bytes: u64) {
    each_piece(length_bytes, |piece| net.send(connection, piece));
}

/// Gives `length_bytes` zeroes to `take`, in pieces.
fn each_piece(length_bytes: u64, mut take: impl FnMut(&[u8])) {
    let mut remaining = usize::try_from(length_bytes).expect("at most a part of a request");
    while remaining > 0 {
        let piece = remaining.min(ZEROES.len());
        take(&ZEROES[..piece]);
        remaining -= piece;
    }
}

/// Gives the bytes of `runs` to `take`, in pieces, zeroes included.
pub(super) fn each_run(runs: &[DataRun], mut take: impl FnMut(&[u8])) {
    for run in runs {
        match run {
            DataRun::Block(block, range) => take(&block[range.clone()]),
            DataRun::Zeroes(length) => each_piece(*length, &mut take),
        }
    }
}
