//! Receives into blocks, and receives that wait until the turn ends.
//!
//! A reader that has looked at what came may know that data comes next, and where to: so a receive is handed to the kernel at the end of the turn, and until
//! then it can be withdrawn for one that goes to blocks first ([`recvmsg(2)`]). That one is never told to wait for all of its bytes (`MSG_WAITALL`): those would be
//! neither in the socket nor received, and whoever asks how much lies unread would be told too little.
//!
//! [`recvmsg(2)`]: https://man7.org/linux/man-pages/man2/recvmsg.2.html

// Entries name headers and vectors by address.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

use super::{Operation, operation_index, outbox::VECTOR_MAX};
use crate::ring::{BeforeEnter, Core};
use io_uring::squeue::Entry;
use twinlog_device::{BlockBuf, Landing};

/// A landing of which something is still to come. It belongs to the receive in flight, if there is one: nobody looks at its bytes.
pub(super) struct Flight {
    landing: Landing,
    vector: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
}

impl Flight {
    pub(super) fn new(landing: Landing) -> Self {
        // SAFETY: a header of zeroes and null pointers is a valid, empty one.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        Self { landing, vector: Vec::new(), header }
    }

    pub(super) fn landing(&self) -> &Landing {
        &self.landing
    }

    /// The header of a receive into what is left, and then into `tail`.
    pub(super) fn message(&mut self, tail: *mut u8, tail_bytes: usize) -> *mut libc::msghdr {
        self.vector.clear();
        for part in self.landing.left_mut() {
            let (base, length) = (part.as_mut_ptr(), part.len());
            match self.vector.last_mut() {
                // Neighbours in memory are one element.
                Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => last.iov_len += length,
                _ => self.vector.push(libc::iovec { iov_base: base.cast(), iov_len: length }),
            }
        }
        // What does not fit into one receive is the next one's.
        self.vector.truncate(VECTOR_MAX);
        if self.vector.len() < VECTOR_MAX {
            self.vector.push(libc::iovec { iov_base: tail.cast(), iov_len: tail_bytes });
        }
        self.header.msg_iov = self.vector.as_mut_ptr();
        self.header.msg_iovlen = self.vector.len();
        &raw mut *self.header
    }

    /// A receive has brought `count` bytes; returns how many of them went to the tail.
    pub(super) fn advance(&mut self, count: usize) -> usize {
        self.landing.advance(count)
    }

    /// The blocks, when no receive is in flight.
    pub(super) fn into_blocks(self) -> Vec<BlockBuf> {
        self.landing.into_blocks()
    }
}

/// Receives of this turn.
pub(super) struct Receives {
    port: u16,
    /// In order, each with its slot; what is empty was withdrawn.
    entries: Vec<(u32, Option<Entry>)>,
    /// By slot: where its newest receive stands, or stood in an earlier turn.
    places: Vec<u32>,
}

impl Receives {
    pub(super) fn new(port: u16) -> Self {
        Self { port, entries: Vec::new(), places: Vec::new() }
    }

    /// Queues a receive for the end of the turn.
    ///
    /// # Safety
    /// As for [`Core::push`]; until then it can be [withdrawn](Self::withdraw).
    pub(super) unsafe fn queue(&mut self, slot: u32, entry: Entry) {
        let index = slot as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, 0);
        }
        self.places[index] = u32::try_from(self.entries.len()).expect("a turn has far fewer receives");
        self.entries.push((slot, Some(entry)));
    }

    /// Takes a slot's receive back; whether the kernel does not have it already.
    pub(super) fn withdraw(&mut self, slot: u32) -> bool {
        let place = self.places.get(slot as usize).map_or(0, |place| *place as usize);
        // In an earlier turn it stood where another slot's stands now, or nothing.
        let own = self.entries.get_mut(place).filter(|(queued, _)| *queued == slot);
        own.and_then(|(_, entry)| entry.take()).is_some()
    }
}

impl BeforeEnter for Receives {
    fn before_enter(&mut self, core: &mut Core) {
        for (slot, entry) in self.entries.drain(..) {
            let Some(entry) = entry else { continue };
            // SAFETY: what the entry names stays valid until its event: promised when it was queued.
            unsafe { core.push(self.port, operation_index(Operation::Receive, slot), entry) };
        }
    }
}
