//! One I/O queue after its Connect: commands go out many per system call, answers come in many per system call.
//!
//! Nothing here blocks, and nothing is allocated per request once the buffers have grown. A read's data goes from the socket into its slot where it is wanted
//! (verification), and is received and dropped where it is not.
//!
//! # Invariants
//!
//! 1. An answer is believed only when its id is that of a command in flight in this very queue.
//! 2. Data of a command that reads comes in order, and all of it before it counts as done.
//! 3. A target may ask for each byte of a command that writes once, in order, and for more only when what it asked for has been sent: so what waits to be
//!    sent is bounded by the requests in flight.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::UnixStream,
};

use super::{
    table::{Place, Table, Verdict},
    wire::{Agreement, Answer, Command, Data, Head, Status, Unit, WireError, decode, opcode, range},
};
use crate::{
    engine::{Buffers, Completion, Kind, Lost, Request},
    stream::Stream,
    units::index,
};

/// Receive buffer: 63 units with 4 KiB of data per system call, small enough to stay in a core's second-level cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// Units per `writev`: three slices each, less than half of Linux's limit of 1024 slices.
const BATCH: usize = 128;

/// A unit to be sent: its head, data of a slot, the data's digest.
struct Outgoing {
    head: Head,
    slot: usize,
    from: u64,
    length: u64,
    digest: Option<[u8; 4]>,
    /// The data was asked for.
    is_granted: bool,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        self.head.bytes().len() + index(self.length) + self.digest.map_or(0, |digest| digest.len())
    }
}

/// What is being received.
#[derive(Clone, Copy)]
enum Intake {
    Head,
    /// Data of a command that reads.
    Data {
        id: u16,
        remaining: u64,
        digest: u32,
        success: bool,
    },
    /// The digest of data that has come.
    Digest {
        id: u16,
        digest: u32,
        success: bool,
    },
}

/// What a queue's commands are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Commands in flight.
    pub(super) depth: usize,
    /// Data of writes that goes into their capsules.
    pub(super) in_capsule: u32,
    pub(super) namespace: u32,
    /// A power of two.
    pub(super) block_bytes: u64,
}

/// What answers lead to.
pub(super) struct Outcomes<'a> {
    pub(super) done: &'a mut Vec<Completion>,
    /// Slots whose command is to be sent once more, with the queue's path.
    pub(super) again: &'a mut Vec<(usize, usize, Status)>,
}

/// An I/O queue.
pub(super) struct Queue {
    stream: Stream,
    agreement: Agreement,
    place: Place,
    depth: usize,
    in_capsule: u64,
    namespace: u32,
    block_log: u32,
    outgoing: VecDeque<Outgoing>,
    /// Bytes of the first of them that are gone already.
    sent_bytes: usize,
    received: Vec<u8>,
    head: usize,
    tail: usize,
    intake: Intake,
    in_flight: usize,
}

impl Queue {
    /// A queue that has been connected.
    pub(super) fn new((stream, agreement): (Stream, Agreement), place: Place, shape: Shape) -> io::Result<Self> {
        stream.set_nonblocking()?;
        Ok(Self {
            stream,
            agreement,
            place,
            depth: shape.depth,
            in_capsule: u64::from(shape.in_capsule),
            namespace: shape.namespace,
            block_log: shape.block_bytes.trailing_zeros(),
            outgoing: VecDeque::new(),
            sent_bytes: 0,
            received: vec![0; RECEIVE_BYTES],
            head: 0,
            tail: 0,
            intake: Intake::Head,
            in_flight: 0,
        })
    }

    /// Whether it takes another command.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.depth
    }

    /// Commands without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the socket has not yet taken everything.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The socket, to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Makes a slot's request a command, and appends it to what is to be sent.
    pub(super) fn begin(&mut self, request: Request, table: &mut Table) {
        let Request { slot, kind, length, .. } = request;
        let is_asked = kind == Kind::Write && length > self.in_capsule;
        let id = table.start(slot, self.place, is_asked.then_some(0));
        self.in_flight += 1;
        let (command, ranges) = self.command(&request, id);
        let (mut head, mut in_capsule, mut digest) = (Head::command(&command, &self.agreement), 0, None);
        if let Some(ranges) = ranges {
            head.append(&ranges);
            digest = self.digest(&ranges);
        } else if kind == Kind::Write && !is_asked {
            in_capsule = length;
            digest = self.digest(table.payload(slot, 0, length));
        }
        self.outgoing.push_back(Outgoing { head, slot, from: 0, length: in_capsule, digest, is_granted: false });
    }

    fn digest(&self, data: &[u8]) -> Option<[u8; 4]> {
        self.agreement.data_digest.then(|| crc32c::crc32c(data).to_le_bytes())
    }

    /// The submission entry for a request, and the ranges that are its data.
    fn command(&self, request: &Request, id: u16) -> (Command, Option<[u8; 16]>) {
        let Request { kind, fua, offset, length, .. } = *request;
        let code = match kind {
            Kind::Read => opcode::READ,
            Kind::Write => opcode::WRITE,
            Kind::Zero => opcode::WRITE_ZEROES,
            Kind::Trim => opcode::DATASET_MANAGEMENT,
            Kind::Flush => opcode::FLUSH,
        };
        let mut command = Command::new(code, self.namespace);
        command.id = id;
        let (first, count) = (offset >> self.block_log, length >> self.block_log);
        let short = |length: u64| u32::try_from(length).expect("requests are at most 32 MiB");
        match kind {
            Kind::Flush => {}
            Kind::Trim => {
                command.data = Data::InCapsule(16);
                // Attribute: deallocate. One range.
                command.words[1] = 1 << 2;
                return (command, Some(range(first, short(count))));
            }
            _ => {
                command.words[0] = short(first & u64::from(u32::MAX));
                command.words[1] = short(first >> 32);
                command.words[2] = short(count - 1) | u32::from(fua) << 30;
            }
        }
        command.data = match kind {
            Kind::Read => Data::InTransport(short(length)),
            Kind::Write if length > self.in_capsule => Data::InTransport(short(length)),
            Kind::Write => Data::InCapsule(short(length)),
            _ => Data::None,
        };
        (command, None)
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self, table: &mut Table) -> Result<(), Lost> {
        while !self.outgoing.is_empty() {
            match self.send_batch(table) {
                Ok(0) => return Err(Lost("the target takes no more bytes".to_owned())),
                Ok(count) => self.advance(count, table),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost(format!("sending failed: {error}"))),
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, table: &Table) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 3 * BATCH];
        let mut used = 0;
        let mut skip = self.sent_bytes;
        for unit in self.outgoing.iter().take(BATCH) {
            let digest = unit.digest.as_ref().map_or(&[][..], |digest| &digest[..]);
            let parts = [unit.head.bytes(), table.payload(unit.slot, unit.from, unit.length), digest];
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                let gone = skip.min(part.len());
                skip -= gone;
                if gone < part.len() {
                    slices[used] = IoSlice::new(&part[gone..]);
                    used += 1;
                }
            }
        }
        self.stream.write_vectored(&slices[..used])
    }

    /// Drops `count` sent bytes from what is to be sent.
    fn advance(&mut self, count: usize, table: &mut Table) {
        self.sent_bytes += count;
        while let Some(unit) = self.outgoing.front() {
            let length = unit.bytes();
            if self.sent_bytes < length {
                return;
            }
            if unit.is_granted
                && let Some(flight) = table.flight(unit.slot)
            {
                flight.unsent = flight.unsent.saturating_sub(1);
            }
            self.sent_bytes -= length;
            self.outgoing.pop_front();
        }
    }

    /// Receives everything that is there, and says what it leads to. Returns whether anything came.
    pub(super) fn receive(&mut self, table: &mut Table, outcomes: &mut Outcomes<'_>) -> Result<bool, Lost> {
        let mut came = false;
        loop {
            let (count, room) = match self.receive_once(table) {
                Ok((0, _)) => return Err(Lost("the target closed the connection".to_owned())),
                Ok(counts) => counts,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(came),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Lost(format!("receiving failed: {error}"))),
            };
            came = true;
            self.parse(table, outcomes).map_err(|error| Lost(error.to_string()))?;
            if count < room {
                return Ok(came);
            }
        }
    }

    /// One system call; the bytes that came and the bytes that could have come.
    fn receive_once(&mut self, table: &mut Table) -> io::Result<(usize, usize)> {
        self.received.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
        let direct = match self.intake {
            Intake::Data { id, remaining, .. } if self.tail == 0 => self.room(table, id, remaining),
            _ => None,
        };
        let free = &mut self.received[self.tail..];
        let Some(rest) = direct else {
            let room = free.len();
            let count = self.stream.read(free)?;
            self.tail += count;
            return Ok((count, room));
        };
        let (wanted, room) = (rest.len(), rest.len() + free.len());
        let count = self.stream.read_vectored(&mut [IoSliceMut::new(rest), IoSliceMut::new(free)])?;
        let straight = count.min(wanted);
        self.tail += count - straight;
        let Intake::Data { id, remaining, digest, .. } = &mut self.intake else { unreachable!("seen above") };
        let flight = table.find(*id, self.place).expect("data of a command in flight");
        let (slot, from) = (flight.request.slot, flight.received);
        flight.received += straight as u64;
        *remaining -= straight as u64;
        if self.agreement.data_digest {
            *digest = crc32c::crc32c_append(*digest, table.payload(slot, from, straight as u64));
        }
        Ok((count, room))
    }

    /// Where the next `length` bytes of a command's data belong, if they are wanted.
    fn room<'a>(&self, table: &'a mut Table, id: u16, length: u64) -> Option<&'a mut [u8]> {
        let flight = table.find(id, self.place)?;
        let (slot, from) = (flight.request.slot, flight.received);
        table.room(slot, from, length)
    }

    /// Takes everything that is complete out of the received bytes.
    fn parse(&mut self, table: &mut Table, outcomes: &mut Outcomes<'_>) -> Result<(), WireError> {
        loop {
            match self.intake {
                Intake::Data { .. } => {
                    if !self.take_data(table, outcomes)? {
                        return Ok(());
                    }
                }
                Intake::Digest { id, digest, success } => {
                    let Some(said) = self.received[self.head..self.tail].first_chunk::<4>() else { return Ok(()) };
                    if u32::from_le_bytes(*said) != digest {
                        return Err(WireError("a data digest that does not fit the data".to_owned()));
                    }
                    self.head += 4;
                    self.end_data(id, success, table, outcomes)?;
                }
                Intake::Head => {
                    let Some((unit, head)) = decode(&self.received[self.head..self.tail], &self.agreement)? else {
                        return Ok(());
                    };
                    self.head += head;
                    self.take_unit(unit, table, outcomes)?;
                }
            }
        }
    }

    fn take_unit(&mut self, unit: Unit, table: &mut Table, outcomes: &mut Outcomes<'_>) -> Result<(), WireError> {
        match unit {
            Unit::Answer(answer) => self.end(answer, table, outcomes),
            Unit::Data { id, offset, length, last, success } => {
                let flight = self.find(id, table)?;
                let end = u64::from(offset) + u64::from(length);
                let is_next = flight.request.kind == Kind::Read && u64::from(offset) == flight.received;
                if !is_next || end > flight.request.length || (last && end != flight.request.length) {
                    return Err(WireError(format!("data of {length} bytes at byte {offset} of command {id:#06x}")));
                }
                self.intake = Intake::Data { id, remaining: u64::from(length), digest: 0, success };
                Ok(())
            }
            Unit::Wanted { id, tag, offset, length } => self.grant((id, tag), offset, length, table),
            Unit::Terminated { reason, place } => {
                Err(WireError(format!("it says that we did, and ends the connection: reason {reason}, byte {place}")))
            }
        }
    }

    /// Takes data of a command that reads. Returns whether the unit's is whole.
    fn take_data(&mut self, table: &mut Table, outcomes: &mut Outcomes<'_>) -> Result<bool, WireError> {
        let Intake::Data { id, remaining, mut digest, success } = self.intake else {
            unreachable!("called in this state")
        };
        let there = self.tail - self.head;
        let count = usize::try_from(remaining).map_or(there, |remaining| remaining.min(there));
        let source = &self.received[self.head..self.head + count];
        if let Some(room) = self.room(table, id, count as u64) {
            room.copy_from_slice(source);
        }
        if self.agreement.data_digest {
            digest = crc32c::crc32c_append(digest, source);
        }
        self.head += count;
        self.find(id, table)?.received += count as u64;
        let remaining = remaining - count as u64;
        self.intake = Intake::Data { id, remaining, digest, success };
        if remaining > 0 {
            return Ok(false);
        }
        match self.agreement.data_digest {
            true => self.intake = Intake::Digest { id, digest, success },
            false => self.end_data(id, success, table, outcomes)?,
        }
        Ok(true)
    }

    /// The data of a unit has come; with `success` it answers its command.
    fn end_data(
        &mut self,
        id: u16,
        success: bool,
        table: &mut Table,
        outcomes: &mut Outcomes<'_>,
    ) -> Result<(), WireError> {
        self.intake = Intake::Head;
        match success {
            true => self.end(Answer { result: 0, id, status: Status::SUCCESS }, table, outcomes),
            false => Ok(()),
        }
    }

    /// A command is answered.
    fn end(&mut self, answer: Answer, table: &mut Table, outcomes: &mut Outcomes<'_>) -> Result<(), WireError> {
        let flight = self.find(answer.id, table)?;
        let Request { slot, kind, length, .. } = flight.request;
        if kind == Kind::Read && answer.status.is_success() && flight.received != length {
            return Err(WireError(format!("a read of {length} bytes that is done after {}", flight.received)));
        }
        self.in_flight -= 1;
        match table.finish(slot, answer.status) {
            Verdict::Done(completion) => outcomes.done.push(completion),
            Verdict::Again(status) => outcomes.again.push((slot, self.place.seat, status)),
        }
        Ok(())
    }

    /// The target asks for data of a command that writes.
    fn grant(&mut self, (id, tag): (u16, u16), offset: u32, length: u32, table: &mut Table) -> Result<(), WireError> {
        let unit_limit = self.agreement.unit_limit;
        let flight = self.find(id, table)?;
        let end = u64::from(offset) + u64::from(length);
        let is_next = flight.granted == Some(u64::from(offset)) && flight.unsent == 0;
        if !is_next || length == 0 || end > flight.request.length {
            return Err(WireError(format!("a request for {length} bytes from byte {offset} of command {id:#06x}")));
        }
        flight.granted = Some(end);
        flight.unsent = length.div_ceil(unit_limit);
        let slot = flight.request.slot;
        let mut from = offset;
        let mut left = length;
        while left > 0 {
            let count = left.min(unit_limit);
            left -= count;
            let head = Head::host_data((id, tag), (from, count), left == 0, &self.agreement);
            let digest = self.digest(table.payload(slot, u64::from(from), u64::from(count)));
            let (start, length) = (u64::from(from), u64::from(count));
            self.outgoing.push_back(Outgoing { head, slot, from: start, length, digest, is_granted: true });
            // The last one's end may be 2^32 exactly, and is not used.
            from = from.saturating_add(count);
        }
        Ok(())
    }

    fn find<'a>(&self, id: u16, table: &'a mut Table) -> Result<&'a mut super::table::Flight, WireError> {
        let unknown = || WireError(format!("an answer to a command that is not open ({id:#06x})"));
        table.find(id, self.place).ok_or_else(unknown)
    }
}

/// Receives what a target sends over `stream` to four open commands: a read of 512 bytes and one of 8192, a write that is asked for, a flush. Returns how many
/// of them it completes, each at most once, before it is lost.
pub(crate) fn receive_anything(stream: UnixStream, digests: bool) -> usize {
    let agreement = Agreement::simple(digests);
    let place = Place { seat: 0, queue: 0 };
    let shape = Shape { depth: 4, in_capsule: 0, namespace: 1, block_bytes: 512 };
    let mut queue = Queue::new((Stream::Unix(stream), agreement), place, shape).expect("a socket of ours");
    queue.received.truncate(4096);
    let mut table = Table::new(Buffers::new(4, 8192), 4, true);
    let kinds = [(Kind::Read, 512), (Kind::Read, 8192), (Kind::Write, 8192), (Kind::Flush, 0)];
    for (slot, (kind, length)) in kinds.into_iter().enumerate() {
        let request = Request { slot, kind, fua: false, offset: 0, length };
        table.add(request);
        queue.begin(request, &mut table);
    }
    let (mut done, mut again) = (Vec::new(), Vec::new());
    loop {
        let mut outcomes = Outcomes { done: &mut done, again: &mut again };
        // A target that has gone takes nothing; what it said before still counts.
        let _gone = queue.send(&mut table);
        match queue.receive(&mut table, &mut outcomes) {
            Ok(true) if done.len() < 4 => {}
            _ => break,
        }
    }
    let mut ended: Vec<usize> = done.iter().map(|completion| completion.slot).collect();
    ended.extend(again.iter().map(|(slot, ..)| slot));
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), done.len() + again.len(), "a command ends once");
    done.len()
}
