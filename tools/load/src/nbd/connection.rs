//! One NBD connection in its transmission phase: requests go out many per system call, replies come in many per system call.
//!
//! Nothing here blocks and nothing is allocated per request. A read's payload goes from the socket into its slot where it is wanted
//! (verification), and is received and dropped where it is not.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use super::{
    handshake::{HandshakeError, negotiate},
    wire::{REPLY_BYTES, REQUEST_BYTES, SHUTDOWN, decode_reply, encode_disconnect, encode_request},
};
use crate::{
    engine::{Buffers, Completion, Geometry, Kind, Lost, Request},
    stream::Stream,
    target::Address,
    units::index,
};

/// Receive buffer: 63 replies of 4 KiB per system call, small enough to stay in a core's second-level cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// Requests per `writev`: two slices each, a quarter of Linux's limit of 1024 slices.
const BATCH: usize = 128;

/// What the slots are doing. Bit `c` of `awaiting` says that connection `c` owes the slot a reply.
pub(super) struct Slots {
    pub(super) buffers: Buffers,
    pub(super) requests: Vec<Option<Request>>,
    pub(super) awaiting: Vec<u64>,
    /// Counts a slot's requests, so that a late or invented reply is told from the right one.
    pub(super) generations: Vec<u32>,
    pub(super) errors: Vec<i32>,
    pub(super) headers: Vec<[u8; REQUEST_BYTES]>,
    /// Whether a read's payload is wanted.
    pub(super) keep_data: bool,
}

impl Slots {
    pub(super) fn new(buffers: Buffers, count: usize, keep_data: bool) -> Self {
        Self {
            buffers,
            requests: vec![None; count],
            awaiting: vec![0; count],
            generations: vec![0; count],
            errors: vec![0; count],
            headers: vec![[0; REQUEST_BYTES]; count],
            keep_data,
        }
    }

    /// Takes a request into its slot.
    pub(super) fn begin(&mut self, request: Request, awaiting: u64) {
        let slot = request.slot;
        assert!(self.requests[slot].is_none(), "a slot carries one request");
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        self.headers[slot] = encode_request(&request, self.cookie(slot));
        self.requests[slot] = Some(request);
        self.awaiting[slot] = awaiting;
        self.errors[slot] = 0;
    }

    fn cookie(&self, slot: usize) -> u64 {
        u64::from(self.generations[slot]) << 32 | slot as u64
    }

    /// The request that a reply on connection `bit` answers.
    fn find(&self, cookie: u64, bit: u64) -> Option<Request> {
        let slot = index(cookie & 0xffff_ffff);
        let request = *self.requests.get(slot)?;
        request.filter(|_| self.awaiting[slot] & bit != 0 && self.cookie(slot) == cookie)
    }

    /// Notes one reply; the request's end when it was the last that is awaited.
    fn finish(&mut self, slot: usize, bit: u64, errno: i32) -> Option<Completion> {
        self.awaiting[slot] &= !bit;
        if errno != 0 {
            self.errors[slot] = errno;
        }
        if self.awaiting[slot] != 0 {
            return None;
        }
        self.requests[slot] = None;
        Some(Completion { slot, errno: self.errors[slot] })
    }
}

/// A read whose payload is arriving.
struct Payload {
    slot: usize,
    filled: usize,
    length: usize,
}

/// One connection.
pub(super) struct Connection {
    stream: Stream,
    /// This connection's bit in [`Slots::awaiting`].
    bit: u64,
    /// Slots to send, in order; `sent_bytes` of the first are gone already.
    queue: VecDeque<usize>,
    sent_bytes: usize,
    received: Vec<u8>,
    head: usize,
    tail: usize,
    payload: Option<Payload>,
}

impl Connection {
    /// Connects and negotiates.
    pub(super) fn open(address: &Address, export: &str, bit: u64) -> Result<(Self, Geometry), HandshakeError> {
        let mut stream = Stream::connect(address)?;
        let geometry = negotiate(&mut stream, export)?;
        Ok((Self::over(stream, bit, RECEIVE_BYTES)?, geometry))
    }

    /// A connection in the transmission phase, with a buffer of `receive_bytes`.
    fn over(stream: Stream, bit: u64, receive_bytes: usize) -> io::Result<Self> {
        stream.set_nonblocking()?;
        let received = vec![0; receive_bytes];
        Ok(Self { stream, bit, queue: VecDeque::new(), sent_bytes: 0, received, head: 0, tail: 0, payload: None })
    }

    /// Appends a slot's request to what is to be sent.
    pub(super) fn enqueue(&mut self, slot: usize) {
        self.queue.push_back(slot);
    }

    /// Whether the socket has not yet taken everything.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self, slots: &Slots) -> Result<(), Lost> {
        while !self.queue.is_empty() {
            match self.send_batch(slots) {
                Ok(0) => return Err(Lost("the server takes no more bytes".to_owned())),
                Ok(count) => self.advance(count, slots),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost(format!("sending failed: {error}"))),
            }
        }
        Ok(())
    }

    /// Receives everything that is there and appends what it completes.
    pub(super) fn receive(&mut self, slots: &mut Slots, done: &mut Vec<Completion>) -> Result<(), Lost> {
        loop {
            let (count, room) = match self.receive_once(slots) {
                Ok((0, _)) => return Err(Lost("the server closed the connection".to_owned())),
                Ok(counts) => counts,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Lost(format!("receiving failed: {error}"))),
            };
            self.parse(slots, done)?;
            if count < room {
                return Ok(());
            }
        }
    }

    /// Tells the server that the client goes; the connection is useless afterwards.
    pub(super) fn disconnect(&mut self) {
        if self.queue.is_empty() {
            // The server may be gone already; there is nobody to tell then.
            let _ = self.stream.write(&encode_disconnect());
        }
    }

    /// The socket, to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn send_batch(&mut self, slots: &Slots) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 2 * BATCH];
        let mut used = 0;
        let mut skip = self.sent_bytes;
        for slot in self.queue.iter().take(BATCH) {
            let header = &slots.headers[*slot];
            slices[used] = IoSlice::new(&header[skip.min(REQUEST_BYTES)..]);
            used += 1;
            let payload = slots.payload(*slot);
            if !payload.is_empty() {
                slices[used] = IoSlice::new(&payload[skip.saturating_sub(REQUEST_BYTES)..]);
                used += 1;
            }
            skip = 0;
        }
        self.stream.write_vectored(&slices[..used])
    }

    /// Drops `count` sent bytes from the queue.
    fn advance(&mut self, count: usize, slots: &Slots) {
        self.sent_bytes += count;
        while let Some(slot) = self.queue.front() {
            let length = REQUEST_BYTES + slots.payload(*slot).len();
            if self.sent_bytes < length {
                return;
            }
            self.sent_bytes -= length;
            self.queue.pop_front();
        }
    }

    /// One system call; the bytes that came and the bytes that could have come.
    fn receive_once(&mut self, slots: &mut Slots) -> io::Result<(usize, usize)> {
        self.received.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
        let free = &mut self.received[self.tail..];
        let mut room = free.len();
        let Some(payload) = self.payload.as_mut().filter(|_| slots.keep_data && self.tail == 0) else {
            let count = self.stream.read(free)?;
            self.tail += count;
            return Ok((count, room));
        };
        let rest = &mut slots.buffers.slot_mut(payload.slot)[payload.filled..payload.length];
        let direct = rest.len();
        room += direct;
        let count = self.stream.read_vectored(&mut [IoSliceMut::new(rest), IoSliceMut::new(free)])?;
        payload.filled += count.min(direct);
        self.tail += count.saturating_sub(direct);
        Ok((count, room))
    }

    /// Takes everything that is complete out of the received bytes.
    fn parse(&mut self, slots: &mut Slots, done: &mut Vec<Completion>) -> Result<(), Lost> {
        loop {
            if let Some(payload) = &mut self.payload {
                let count = (payload.length - payload.filled).min(self.tail - self.head);
                if slots.keep_data {
                    let source = &self.received[self.head..self.head + count];
                    slots.buffers.slot_mut(payload.slot)[payload.filled..payload.filled + count]
                        .copy_from_slice(source);
                }
                self.head += count;
                payload.filled += count;
                if payload.filled < payload.length {
                    return Ok(());
                }
                done.extend(slots.finish(payload.slot, self.bit, 0));
                self.payload = None;
            }
            let Some(header) = self.received[self.head..self.tail].first_chunk::<REPLY_BYTES>() else {
                return Ok(());
            };
            let reply = decode_reply(header).map_err(|error| Lost(error.to_string()))?;
            self.head += REPLY_BYTES;
            let request = slots.find(reply.cookie, self.bit).ok_or_else(|| {
                Lost(format!(
                    "the server broke the NBD protocol: a reply to a request that is not open (cookie {:#x})",
                    reply.cookie
                ))
            })?;
            match (request.kind, reply.errno) {
                (_, SHUTDOWN) => return Err(Lost("the server is shutting down".to_owned())),
                (Kind::Read, 0) => {
                    self.payload = Some(Payload { slot: request.slot, filled: 0, length: index(request.length) });
                }
                (_, errno) => done.extend(slots.finish(request.slot, self.bit, errno)),
            }
        }
    }
}

/// Receives what a server sends over `stream` to four open requests: two reads of 512 bytes, a write, a flush. Returns how many of
/// them it completes, each at most once, before it is lost.
pub(crate) fn receive_anything(stream: UnixStream) -> usize {
    let mut connection = Connection::over(Stream::Unix(stream), 1, 4096).expect("a socket of ours");
    let mut slots = Slots::new(Buffers::new(4, 512), 4, true);
    for (slot, kind) in [Kind::Read, Kind::Read, Kind::Write, Kind::Flush].into_iter().enumerate() {
        let length = if kind == Kind::Flush { 0 } else { 512 };
        slots.begin(Request { slot, kind, fua: false, offset: 0, length }, 1);
    }
    let mut done = Vec::new();
    while connection.receive(&mut slots, &mut done).is_ok() && done.len() < 4 {}
    let mut ended: Vec<usize> = done.iter().map(|completion| completion.slot).collect();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), done.len(), "a request ends once");
    done.len()
}

impl Slots {
    /// What follows a request's header on the wire.
    fn payload(&self, slot: usize) -> &[u8] {
        match &self.requests[slot] {
            Some(request) if request.kind == Kind::Write => &self.buffers.slot(slot)[..index(request.length)],
            _ => &[],
        }
    }
}
