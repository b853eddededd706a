//! Payloads that the network receives straight into their blocks: what a session does while it knows that the bytes to come are data.
//!
//! ```text
//! the input is used up --begin--> Incoming --step, with every piece that arrives--> the payload has its blocks again
//!                           +--the rest is small, or the network cannot--> the session copies what becomes input
//! ```

use super::turn::Turn;
use crate::node::request::Payload;
use std::ops::Range;
use twinlog_device::Network;

/// The least that is received this way. A write of 4 KiB lies whole in the input nearly always, with many others, and costs what it did. One of 128 KiB costs the
/// server 8 % less than copied (docs/performance.md); where between them the gain begins was not told from the noise.
const LANDING_BYTES_MIN: u64 = 16 << 10;

/// A part of a payload that the network receives; the payload's blocks are there.
#[derive(Debug)]
pub(super) struct Incoming {
    part: Range<u64>,
    /// Bytes of it that had arrived when it was last looked at.
    landed_bytes: usize,
}

/// What has arrived of a part since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landed {
    Nothing,
    Partly,
    /// All of it is there, and the payload has its blocks again.
    Whole,
}

impl Incoming {
    /// Has the network receive bytes `part` of `payload`, which are the next to come. `None`: the payload is as it was.
    pub(super) fn begin<N: Network, S>(
        turn: &mut Turn<'_, N, S>,
        payload: &mut Payload,
        part: Range<u64>,
    ) -> Option<Self> {
        if part.end - part.start < LANDING_BYTES_MIN {
            return None;
        }
        match turn.net.land(turn.connection, payload.lend_part(part.clone())) {
            Ok(()) => Some(Self { part, landed_bytes: 0 }),
            Err(landing) => {
                payload.restore(landing.into_blocks());
                None
            }
        }
    }

    /// Looks at what has arrived.
    pub(super) fn step<N: Network, S>(&mut self, turn: &mut Turn<'_, N, S>, payload: &mut Payload) -> Landed {
        if let Some(blocks) = turn.net.take_landed(turn.connection) {
            payload.restore(blocks);
            return Landed::Whole;
        }
        let landed_bytes = turn.net.landed_bytes(turn.connection);
        let before = std::mem::replace(&mut self.landed_bytes, landed_bytes);
        if landed_bytes > before { Landed::Partly } else { Landed::Nothing }
    }

    /// Which bytes of the payload.
    pub(super) fn part(&self) -> Range<u64> {
        self.part.clone()
    }
}
