//! The seam: an [`Interconnect`] that runs on a thread of its own, and its near half on the reactor that uses it.
//!
//! ```text
//!  controller, forwarder --> Near ==orders==> Far --> sessions, channels, sockets
//!  on reactor 0              Near <==news==== Far     on their own thread
//! ```
//!
//! The near half does what its callers wait for: it puts messages into a mailbox, and takes events out of another one. The far half polls what
//! carries the messages ([`Carrier`]), which knows nothing of the seam. Nothing but the two mailboxes is shared, so the other half is woken by whatever it
//! has to know, and what ships is what the simulator polls in any order.
//!
//! # Invariants
//!
//! 1. Orders and news each arrive in the order in which they were sent, once.
//! 2. An order says how many beginnings and losses (`Up`, `PathLost`, `Down`) the near half had heard of. The far half drops it if it has told more, and
//!    hands nothing over while anything that the carrier has to tell is untold. So a message that was sent before a loss was heard of counts as sent
//!    on what is lost: it arrives in no later session, and on no other path after what its sender says again (contract 3 of
//!    [`Interconnect`], promises 2 and 3 of `docs/interconnect.md`).
//! 3. What is in a mailbox and not taken is bounded, in number and bytes ([`Limits`]). Who has no room keeps what he has; the far half leaves
//!    frames with the network, and the partner is slowed down.
//! 4. The far half takes every envelope at once, whatever the carrier has room for: what an envelope says of room waits for nothing.
//! 5. The bytes of a message lie where they were received until the near half has done with them ([`Lent`]).
//! 6. The far half speaks for the near one: it stands still when that has not been heard of for [`Limits::patience`]. A partner
//!    hears nothing of a node whose reactor hangs.
//!
//! # Room
//!
//! Each half counts what it has sent, and what the other one has said that it has taken; every envelope says that. Who has taken a quarter of what may
//! wait and had nothing to send says so in an envelope of its own. So who has no room is always told: when all that fills it is taken, that is
//! more than a quarter. Between two takings of the other half at most `UPDATES_MAX` such envelopes can be sent, and the mailboxes have room for them.

mod crossing;
mod far;
mod near;
#[cfg(test)]
mod tests;

pub use far::{Far, FarEnd};
pub use near::Near;

use super::interconnect::{Interconnect, Message, Partner, Paths};
use crate::reactor::{Waker, mailbox};
use crossing::Crossing;
use std::{ops::Deref, sync::Arc, time::Duration};
use twinlog_device::{Lent, Nanos};

/// What an interconnect can beyond the trait that its users know, so that it can be a far half.
pub trait Carrier: Interconnect {
    /// The bytes of the message that was told last, for longer than until the next call.
    fn lend(&self) -> Lent;

    /// When `poll` has something to do even if nothing arrives.
    fn next_deadline(&self) -> Option<Nanos>;
}

/// What bounds a seam.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Orders, and news, that wait.
    pub count_max: u64,
    /// Their bytes; one that begins below this bound may end beyond it.
    pub bytes_max: u64,
    /// For so long the far half goes on without a sign of the near one, which gives four in that time if it has turns.
    pub patience: Duration,
}

impl Limits {
    /// Of a node whose partner counts as gone after `detection`: 64 batches and 2 MiB are more than reactor and thread hand over in one of each other's
    /// turns; a reactor has a turn in every quarter of the detection time.
    #[must_use]
    pub fn with_detection(detection: Duration) -> Self {
        Self { count_max: 64, bytes_max: 2 << 20, patience: detection / 2 }
    }

    /// Who has taken so much, and had nothing to send, says so.
    fn said_after(&self) -> Amount {
        Amount { count: self.count_max.div_ceil(4), bytes: self.bytes_max.div_ceil(4) }
    }
}

/// Envelopes that only say how much was taken, and that the other half has not taken: at most four quarters of the number, four of the bytes, and
/// one for the message that goes beyond these.
const UPDATES_MAX: u64 = 9;

/// How much has crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    count: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
    }

    fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, bytes: self.bytes - earlier.bytes }
    }

    fn reaches(self, bound: Self) -> bool {
        self.count >= bound.count || self.bytes >= bound.bytes
    }
}

/// What the near half wants.
#[derive(Debug)]
enum Order {
    /// Nothing: it has turns.
    Alive,
    /// That a message is sent.
    Send {
        /// Beginnings and losses that it had heard of.
        generation: u64,
        message: Message,
    },
}

/// What the far half tells.
#[derive(Debug)]
enum News {
    Up(Partner),
    PathLost,
    Down(String),
    Message(Message<Lent>),
    /// Whether there is room for requests and replies.
    RoomToForward(bool),
    Standing(Standing),
}

/// How the interconnect stands, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    paths: Paths,
    refusal: Option<[String; 2]>,
}

/// Bytes of a message's payload.
fn bytes_of<B: Deref<Target: AsRef<[u8]>>>(message: &Message<B>) -> u64 {
    match message {
        Message::Write { bytes, .. } | Message::Request { bytes, .. } | Message::Reply { bytes, .. } => {
            (**bytes).as_ref().len() as u64
        }
        _ => 0,
    }
}

/// A seam: its near half, and what its far half is made of. `near` and `far` end the sleep of whoever polls each half.
#[must_use]
pub fn seam(limits: Limits, near: Arc<dyn Waker>, far: Arc<dyn Waker>) -> (Near, FarEnd) {
    assert!(limits.count_max > 0 && limits.bytes_max > 0, "something can cross");
    let bound = usize::try_from(limits.count_max + UPDATES_MAX).expect("few");
    let (orders, ordered) = mailbox(bound, far);
    let (news, told) = mailbox(bound, near);
    (Near::new(Crossing::new(limits, orders, told)), FarEnd(Crossing::new(limits, news, ordered)))
}
