//! The loop of an interconnect that has a thread of its own: the far half of a [seam](crate::pair::seam) and its machine take turns.
//!
//! ```text
//! far half -> idle policy -> one turn of the machine (at most one system call) -> ...
//! ```
//!
//! It ends when reactor 0 has raised the node's end: by then everything is said, and what still waits is of no use to anybody.

use super::reactor::NodeEnd;
use crate::{
    pair::seam::{Carrier, Far},
    reactor::Idle,
};
use std::sync::Arc;
use twinlog_device::Platform;

/// What such an interconnect is made of.
pub struct InterconnectParts<P, C> {
    /// The machine.
    pub platform: P,
    /// Sessions and channels, over the machine's network.
    pub far: Far<C>,
    /// How it waits.
    pub idle: Idle,
    /// How far the end of the node is.
    pub end: Arc<NodeEnd>,
}

/// The interconnect as a poller of its own.
pub struct InterconnectLoop<P, C> {
    parts: InterconnectParts<P, C>,
    /// Whether the machine's last turn has finished anything.
    finished: bool,
}

impl<P: Platform, C: Carrier> InterconnectLoop<P, C> {
    /// An interconnect that has not had a turn.
    #[must_use]
    pub fn new(parts: InterconnectParts<P, C>) -> Self {
        Self { parts, finished: false }
    }

    /// Runs until the node has stopped.
    pub fn run(mut self) {
        while self.poll_once() {}
    }

    /// One bounded turn, which may wait for the machine. False once the node has stopped: there are no more turns.
    pub fn poll_once(&mut self) -> bool {
        let InterconnectParts { platform, far, idle, end } = &mut self.parts;
        if end.has_ended() {
            return false;
        }
        let now = platform.now();
        let worked = far.poll(now) | self.finished;
        let wait =
            idle.wait(now, worked, platform.should_sleep(), far.next_deadline()).at_most(platform.longest_sleep());
        if !end.serves_or_ends(|| platform.now()) {
            // The reactors end too, and the process with them.
            return false;
        }
        self.finished = platform.turn(wait);
        true
    }
}
