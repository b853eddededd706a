//! Payloads that the network receives straight into their blocks: what a session does while it knows that the bytes to come are data.
//!
//! ```text
//! the input is used up --begin--> Incoming --step, with every piece that arrives--> the payload again
//!                           +--the rest is small, or the network cannot--> the session copies what becomes input
//! ```

use super::turn::Turn;
use crate::node::request::Payload;
use std::ops::Range;
use twinlog_device::Network;

/// The least that is received this way. A write of 4 KiB lies whole in the input nearly always, with many others, and costs what it did. One of 128 KiB costs the
/// server 8 % less than copied (docs/performance.md); where between them the gain begins was not told from the noise.
const LANDING_BYTES_MIN: u64 = 16 << 10;

/// A payload of which the network receives a part.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The payload's bytes of the volume.
    range: Range<u64>,
    part: Range<u64>,
    /// Bytes of the part that had arrived when it was last looked at.
    landed_bytes: usize,
}

/// What has arrived of a part since it was last looked at.
#[derive(Debug)]
pub(super) enum Landed {
    Nothing,
    Partly,
    /// All of it: the payload is back.
    Whole(Payload),
}

impl Incoming {
    /// Has the network receive bytes `part` of `payload`, which are the next to come.
    ///
    /// # Errors
    /// Gives the payload back when that is not worth it, or the network cannot.
    pub(super) fn begin<N: Network, S>(
        turn: &mut Turn<'_, N, S>,
        payload: Payload,
        part: Range<u64>,
    ) -> Result<Self, Payload> {
        if part.end - part.start < LANDING_BYTES_MIN {
            return Err(payload);
        }
        let range = payload.range();
        match turn.net.land(turn.connection, payload.into_landing(part.clone())) {
            Ok(()) => Ok(Self { range, part, landed_bytes: 0 }),
            Err(landing) => Err(Payload::new(range, landing.into_blocks())),
        }
    }

    /// Looks at what has arrived. After the whole there is nothing more to look at.
    pub(super) fn step<N: Network, S>(&mut self, turn: &mut Turn<'_, N, S>) -> Landed {
        if let Some(blocks) = turn.net.take_landed(turn.connection) {
            return Landed::Whole(Payload::new(self.range.clone(), blocks));
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
