//! One connection: what lies between its two ends, and what each end has done.

use super::path::PathState;
use crate::world::Agenda;
use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// Bytes that wait in each direction between the two ends.
pub(super) const SOCKET_BYTES: usize = 128 * 1024;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that has connected.
    Connecting = 0,
    /// The one that has accepted.
    Listening = 1,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Connecting => Self::Listening,
            Self::Listening => Self::Connecting,
        }
    }
}

/// What has become of an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Open,
    /// Sends no more; still receives.
    Ended,
    /// Closed after what it has sent.
    Gone,
    /// Vanished, and its machine says so: what it has sent may be lost.
    Reset,
    /// Vanished together with its machine: nobody says anything.
    Dark,
}

/// What one end has sent.
#[derive(Default)]
pub(super) struct Pipe {
    /// Not yet taken by the other end.
    pub(super) bytes: VecDeque<u8>,
    /// Taken, but the sender's kernel has not heard of it: the way back is cut.
    pub(super) unacknowledged_bytes: usize,
}

impl Pipe {
    /// Bytes that the sender's kernel still takes.
    pub(super) fn room(&self) -> usize {
        SOCKET_BYTES - self.bytes.len() - self.unacknowledged_bytes
    }
}

/// A connection, shared by its ends.
#[derive(Default)]
pub(super) struct Stream {
    pipes: [Pipe; 2],
    ends: [End; 2],
    /// Whose sleep ends when something happens to an end; a client of a test has none.
    agendas: [Option<Agenda>; 2],
    /// What it runs over, if nodes are connected; clients are always near.
    pub(super) path: Option<Rc<PathState>>,
    /// How often the machine of each end had started when the connection began.
    pub(super) starts: [u64; 2],
}

pub(super) type SharedStream = Rc<RefCell<Stream>>;

impl Stream {
    pub(super) fn shared() -> SharedStream {
        Rc::new(RefCell::new(Self::default()))
    }

    /// What `side` has sent.
    pub(super) fn sent_by(&mut self, side: Side) -> &mut Pipe {
        &mut self.pipes[side as usize]
    }

    pub(super) fn end(&self, side: Side) -> End {
        self.ends[side as usize]
    }

    pub(super) fn attach(&mut self, side: Side, agenda: &Agenda) {
        self.agendas[side as usize] = Some(agenda.clone());
    }

    /// Ends the sleep of the reactor at `side`.
    pub(super) fn wake(&self, side: Side) {
        if let Some(agenda) = &self.agendas[side as usize] {
            agenda.wake();
        }
    }

    /// `side` leaves; who has left stays gone.
    pub(super) fn leave(&mut self, side: Side, end: End) {
        if matches!(self.end(side), End::Open | End::Ended) {
            self.ends[side as usize] = end;
            self.wake(side.other());
        }
    }

    /// The connection breaks somewhere in the middle: both ends see a reset.
    pub(super) fn break_apart(&mut self) {
        for side in [Side::Connecting, Side::Listening] {
            self.leave(side, End::Reset);
        }
    }

    /// Whether what `side` sends arrives now.
    pub(super) fn passes_from(&self, side: Side) -> bool {
        self.path.as_ref().is_none_or(|path| !path.is_cut(side))
    }

    /// Whether the machine of an end that went dark is there again, and knows nothing of this connection.
    pub(super) fn has_restarted(&self, side: Side) -> bool {
        self.path.as_ref().is_some_and(|path| path.starts(side) != self.starts[side as usize])
    }
}

/// Takes the first `count` bytes of `source`, in whole slices: byte by byte a simulated network is slow.
pub(super) fn carry(source: &mut VecDeque<u8>, count: usize, mut take: impl FnMut(&[u8])) {
    let (head, tail) = source.as_slices();
    let first = count.min(head.len());
    take(&head[..first]);
    take(&tail[..count - first]);
    source.drain(..count);
}
