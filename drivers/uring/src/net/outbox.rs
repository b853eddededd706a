//! What connections have to send.
//!
//! Everything that a caller queues between two turns goes out in one `sendmsg`: copied bytes, blocks and shared bytes mixed, the latter
//! two without a copy. While a batch is with the kernel, the next one is collected; before a connection is open, all of it waits.
//!
//! ```text
//!   send, send_block --> collecting --before the kernel is entered--> flying --> gone
//! ```
//!
//! # Invariants
//!
//! 1. While a batch flies, nothing of it changes: not its bytes, its blocks, its vector, nor the header that names the vector.
//! 2. A sender is in `dirty` once exactly when it has something to hand over, collected or the rest of a batch, nothing in flight, and is
//!    not held.

// Entries name headers and vectors by address.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

use super::{Operation, operation_index};
use crate::ring::{BeforeEnter, Core, Target};
use io_uring::opcode;
use std::{ops::Range, sync::Arc};
use twinlog_device::SharedBlock;

/// Most elements of one `sendmsg` or `recvmsg`: `UIO_MAXIOV` of the kernel. What is longer goes in several.
pub(super) const VECTOR_MAX: usize = 1024;

/// Memory that an idle sender keeps for copied bytes.
const KEPT_BYTES: usize = 64 << 10;

enum Part {
    /// Copied bytes.
    Bytes(Range<usize>),
    /// Bytes of the block with this index.
    Block(usize, Range<usize>),
    /// Bytes of the shared bytes with this index.
    Shared(usize, Range<usize>),
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    blocks: Vec<SharedBlock>,
    shared: Vec<Arc<Vec<u8>>>,
    parts: Vec<Part>,
}

impl Batch {
    fn clear(&mut self) {
        self.parts.clear();
        self.blocks.clear();
        self.shared.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
    }
}

/// The sending side of one connection.
struct Sender {
    target: Target,
    collecting: Batch,
    flying: Batch,
    vector: Vec<libc::iovec>,
    /// Elements of `vector` that have been sent whole.
    sent_elements: usize,
    header: Box<libc::msghdr>,
    in_flight: bool,
    /// The connection is not open yet.
    is_held: bool,
    /// In `dirty`.
    is_listed: bool,
    unsent_bytes: usize,
    failed: bool,
}

impl Sender {
    fn new(target: Target) -> Self {
        // SAFETY: a header of zeroes and null pointers is a valid, empty one.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        let (collecting, flying) = Default::default();
        Self {
            target,
            collecting,
            flying,
            vector: Vec::new(),
            sent_elements: 0,
            header,
            in_flight: false,
            is_held: true,
            is_listed: false,
            unsent_bytes: 0,
            failed: false,
        }
    }

    /// Turns what was collected into a batch that flies.
    fn take_off(&mut self) {
        std::mem::swap(&mut self.collecting, &mut self.flying);
        self.sent_elements = 0;
        self.vector.clear();
        let Batch { bytes, blocks, shared, parts } = &self.flying;
        let element = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.vector.extend(parts.iter().map(|part| match part {
            Part::Bytes(range) => element(&bytes[range.clone()]),
            Part::Block(index, range) => element(&blocks[*index][range.clone()]),
            Part::Shared(index, range) => element(&shared[*index][range.clone()]),
        }));
    }

    /// Skips `count` bytes that the kernel has taken; whether the batch is gone.
    fn advance(&mut self, mut count: usize) -> bool {
        self.unsent_bytes -= count;
        while let Some(element) = self.vector.get_mut(self.sent_elements) {
            if count < element.iov_len {
                element.iov_base = element.iov_base.wrapping_byte_add(count);
                element.iov_len -= count;
                return false;
            }
            count -= element.iov_len;
            self.sent_elements += 1;
        }
        assert_eq!(count, 0, "the kernel takes no more than it was given");
        true
    }

    fn has_collected(&self) -> bool {
        !self.collecting.parts.is_empty()
    }

    fn drop_everything(&mut self) {
        self.collecting.clear();
        self.flying.clear();
        self.vector.clear();
        (self.sent_elements, self.unsent_bytes) = (0, 0);
    }
}

/// The senders of one network, by connection slot.
pub(super) struct Outbox {
    port: u16,
    senders: Vec<Option<Sender>>,
    dirty: Vec<u32>,
}

impl Outbox {
    pub(super) fn new(port: u16, slots: usize) -> Self {
        Self { port, senders: (0..slots).map(|_| None).collect(), dirty: Vec::with_capacity(slots) }
    }

    /// One slot more.
    pub(super) fn add_slot(&mut self) {
        self.senders.push(None);
    }

    /// A sender that keeps what it gets until it is released, or drops it when there is no socket to send it to.
    pub(super) fn open(&mut self, slot: u32, target: Option<Target>) {
        let mut sender = Sender::new(target.unwrap_or(Target::plain(-1)));
        sender.failed = target.is_none();
        self.senders[slot as usize] = Some(sender);
    }

    /// The connection is open: what was kept goes, and what comes.
    pub(super) fn release(&mut self, slot: u32) {
        let sender = self.sender(slot);
        sender.is_held = false;
        if sender.has_collected() {
            self.list(slot);
        }
    }

    /// Forgets a sender that has nothing in flight.
    pub(super) fn close(&mut self, slot: u32) {
        let sender = self.senders[slot as usize].take();
        assert!(sender.is_none_or(|sender| !sender.in_flight), "the kernel has finished");
        self.dirty.retain(|&other| other != slot);
    }

    fn sender(&mut self, slot: u32) -> &mut Sender {
        self.senders[slot as usize].as_mut().expect("the connection is open")
    }

    pub(super) fn unsent_bytes(&self, slot: u32) -> usize {
        self.senders[slot as usize].as_ref().map_or(0, |sender| sender.unsent_bytes)
    }

    pub(super) fn is_flying(&self, slot: u32) -> bool {
        self.senders[slot as usize].as_ref().is_some_and(|sender| sender.in_flight)
    }

    /// Queues a copy of `bytes`.
    pub(super) fn send(&mut self, slot: u32, bytes: &[u8]) {
        self.collect(slot, bytes.len(), |batch| {
            let start = batch.bytes.len();
            batch.bytes.extend_from_slice(bytes);
            match batch.parts.last_mut() {
                Some(Part::Bytes(last)) => last.end = batch.bytes.len(),
                _ => batch.parts.push(Part::Bytes(start..batch.bytes.len())),
            }
        });
    }

    /// Queues a part of a block.
    pub(super) fn send_block(&mut self, slot: u32, block: &SharedBlock, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= block.len(), "the part lies in the block");
        self.collect(slot, range.len(), |batch| {
            batch.parts.push(Part::Block(batch.blocks.len(), range));
            batch.blocks.push(block.clone());
        });
    }

    /// Queues a part of shared bytes.
    pub(super) fn send_shared(&mut self, slot: u32, bytes: &Arc<Vec<u8>>, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= bytes.len(), "the part lies in the bytes");
        self.collect(slot, range.len(), |batch| {
            batch.parts.push(Part::Shared(batch.shared.len(), range));
            batch.shared.push(bytes.clone());
        });
    }

    fn collect(&mut self, slot: u32, length: usize, add: impl FnOnce(&mut Batch)) {
        let sender = self.sender(slot);
        if length == 0 || sender.failed {
            return;
        }
        add(&mut sender.collecting);
        sender.unsent_bytes += length;
        self.list(slot);
    }

    /// Has the sender go on with the next turn, unless the kernel has to finish first or the connection is not open.
    fn list(&mut self, slot: u32) {
        let sender = self.sender(slot);
        if !sender.in_flight && !sender.is_held && !std::mem::replace(&mut sender.is_listed, true) {
            self.dirty.push(slot);
        }
    }

    /// A `sendmsg` has ended; returns its error, if it is one that ends the connection.
    pub(super) fn sent(&mut self, slot: u32, result: i32) -> Result<(), i32> {
        let sender = self.sender(slot);
        sender.in_flight = false;
        if sender.failed {
            sender.drop_everything();
            return Ok(());
        }
        let gone = match usize::try_from(result) {
            Ok(count) => sender.advance(count),
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => false,
            Err(_) => {
                self.fail(slot);
                return Err(-result);
            }
        };
        if gone {
            sender.flying.clear();
        }
        if !gone || sender.has_collected() {
            self.list(slot);
        }
        Ok(())
    }

    /// Nothing more is sent; what is queued is dropped as soon as the kernel is done with it.
    pub(super) fn fail(&mut self, slot: u32) {
        self.dirty.retain(|&other| other != slot);
        let sender = self.sender(slot);
        sender.is_listed = false;
        sender.failed = true;
        if sender.in_flight {
            sender.collecting.clear();
        } else {
            sender.drop_everything();
        }
    }
}

impl BeforeEnter for Outbox {
    fn before_enter(&mut self, core: &mut Core) {
        let Self { port, senders, dirty } = self;
        for slot in dirty.drain(..) {
            let sender = senders[slot as usize].as_mut().expect("closing a sender takes it off the list");
            assert!(!sender.in_flight, "one batch flies at a time");
            sender.is_listed = false;
            if sender.sent_elements == sender.vector.len() {
                sender.take_off();
            }
            let left = &mut sender.vector[sender.sent_elements..];
            sender.header.msg_iov = left.as_mut_ptr();
            sender.header.msg_iovlen = left.len().min(VECTOR_MAX);
            // MSG_WAITALL: the kernel goes on by itself when the socket takes only a part.
            let flags = u32::try_from(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).expect("positive constants");
            let message = opcode::SendMsg::new(sender.target.fd(), &raw const *sender.header).flags(flags).build();
            sender.in_flight = true;
            // SAFETY: header, vector, bytes, blocks and shared bytes stay as they are while the batch flies (invariant 1); the header is on the
            // heap; the network's port is dropped before the outbox.
            unsafe { core.push(*port, operation_index(Operation::Send, slot), sender.target.seal(message)) };
        }
    }
}
