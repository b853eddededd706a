//! A connection that carries a few commands without an order: how every queue begins, and what an admin queue stays.
//!
//! Over a stream that blocks, [`Link::call`] waits for an answer; over one that does not, [`Link::post`], [`Link::pump`] and [`Link::take`] never wait. What
//! a target can make this side keep is bounded: data that was asked for, answers to commands in flight, and [`RECEIVED_LIMIT`] of what is not understood yet.

use std::{
    io::{ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use super::wire::{
    Agreement, Answer, Command, Data, Head, INITIALIZATION_BYTES, Unit, WireError, decode, decode_ic_response,
    encode_ic_request,
};
use crate::units::index;

/// The most data of one answer, in bytes.
pub(crate) const DATA_LIMIT: u32 = 16 << 10;
/// The most bytes that wait to be understood: a unit with the most data, its header and digests, and a read more.
const RECEIVED_LIMIT: usize = 64 << 10;
/// Bytes of one read.
const READ_BYTES: usize = 4 << 10;
/// Commands in flight: one of a call, a keep-alive, an event request, a log page.
const CALLS_LIMIT: usize = 8;
/// How long one call may take, however its answer trickles.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Why a path cannot be opened, or is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(std::io::Error),
    #[error("it accepts the connection and does not answer: still starting, or hanging")]
    Silent,
    #[error("the target closed the connection")]
    Closed,
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the target ended the connection: reason {reason}, byte {place}")]
    Terminated { reason: u16, place: u32 },
    /// It does not want to, or cannot.
    #[error("{0}")]
    Refused(String),
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // What a socket with a time limit says when the time is over.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A command in flight.
struct Call {
    id: u16,
    /// The data that came, and how much may come at most.
    data: Vec<u8>,
    limit: u32,
    /// The data is whole.
    is_whole: bool,
}

/// The end of a command.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) data: Vec<u8>,
}

/// A connection.
pub(crate) struct Link<S> {
    stream: S,
    agreement: Agreement,
    /// What one read has brought, and what is not understood yet.
    chunk: Box<[u8]>,
    received: Vec<u8>,
    to_send: Vec<u8>,
    calls: Vec<Call>,
    replies: Vec<Reply>,
    next_id: u16,
}

impl<S: Read + Write> Link<S> {
    /// Exchanges the first units over a stream that blocks.
    pub(crate) fn open(mut stream: S, digests: (bool, bool)) -> Result<Self, LinkError> {
        stream.write_all(&encode_ic_request(digests.0, digests.1))?;
        let mut unit = [0; INITIALIZATION_BYTES];
        stream.read_exact(&mut unit)?;
        let agreement = decode_ic_response(&unit, digests)?;
        let (received, to_send, calls, replies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let chunk = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self { stream, agreement, chunk, received, to_send, calls, replies, next_id: 0 })
    }

    /// The stream, for a queue that has been connected and has nothing under way.
    pub(crate) fn into_queue(self) -> Result<(S, Agreement), LinkError> {
        if !self.received.is_empty() {
            return Err(WireError("bytes that nobody asked for".to_owned()).into());
        }
        Ok((self.stream, self.agreement))
    }

    /// The stream, to be waited for.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether the socket has not yet taken everything.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.to_send.is_empty()
    }

    /// Appends a command to what is to be sent; at most `limit` bytes of data may answer it. Gives its id.
    pub(crate) fn post(&mut self, mut command: Command, limit: u32, data: &[u8]) -> u16 {
        assert!(self.calls.len() < CALLS_LIMIT && limit <= DATA_LIMIT, "the callers are few");
        let id = self.next_id;
        // Ids come round long after their commands have been answered, but for event requests: those keep theirs.
        self.next_id = (id + 1) & 0x7fff;
        while self.calls.iter().any(|call| call.id == self.next_id) {
            self.next_id = (self.next_id + 1) & 0x7fff;
        }
        command.id = id;
        command.data = match data.len() {
            0 if limit == 0 => Data::None,
            0 => Data::InTransport(limit),
            length => Data::InCapsule(u32::try_from(length).expect("a few bytes")),
        };
        self.to_send.extend_from_slice(Head::command(&command, &self.agreement).bytes());
        self.to_send.extend_from_slice(data);
        if self.agreement.data_digest && !data.is_empty() {
            self.to_send.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        }
        self.calls.push(Call { id, data: Vec::new(), limit, is_whole: false });
        id
    }

    /// Sends a command and waits for its answer, whatever its status.
    pub(crate) fn call(&mut self, command: Command, limit: u32, data: &[u8]) -> Result<Reply, LinkError> {
        let begun = Instant::now();
        let id = self.post(command, limit, data);
        self.stream.write_all(&self.to_send)?;
        self.to_send.clear();
        loop {
            if let Some(place) = self.replies.iter().position(|reply| reply.answer.id == id) {
                return Ok(self.replies.swap_remove(place));
            }
            if begun.elapsed() > CALL_LIMIT {
                return Err(LinkError::Silent);
            }
            match self.receive() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => received?,
            }
            self.parse()?;
        }
    }

    /// Sends and receives what can be now, over a stream that does not block. Returns whether anything came.
    pub(crate) fn pump(&mut self) -> Result<bool, LinkError> {
        let mut came = false;
        while !self.to_send.is_empty() {
            match self.stream.write(&self.to_send) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match self.receive() {
                Ok(()) => came = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(came),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            self.parse()?;
        }
    }

    /// An answer that has come.
    pub(crate) fn take(&mut self) -> Option<Reply> {
        self.replies.pop()
    }

    /// One read.
    fn receive(&mut self) -> std::io::Result<()> {
        let count = self.stream.read(&mut self.chunk)?;
        self.received.extend_from_slice(&self.chunk[..count]);
        if count == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Takes every whole unit out of the received bytes.
    fn parse(&mut self) -> Result<(), LinkError> {
        let mut from = 0;
        while let Some((unit, head)) = decode(&self.received[from..], &self.agreement)? {
            let length = match unit {
                Unit::Data { id, offset, length, last, success } => {
                    let whole = head + index(u64::from(length)) + if self.agreement.data_digest { 4 } else { 0 };
                    let call = self.calls.iter_mut().find(|call| call.id == id && !call.is_whole);
                    let call = call.ok_or_else(|| WireError("data of a command that is not open".to_owned()))?;
                    if u64::from(offset) != call.data.len() as u64
                        || offset.checked_add(length).is_none_or(|end| end > call.limit)
                    {
                        return Err(WireError(format!("data of {length} bytes at byte {offset}")).into());
                    }
                    let Some(bytes) = self.received.get(from + head..from + whole) else { break };
                    let (data, digest) = bytes.split_at(index(u64::from(length)));
                    if !digest.is_empty() && crc32c::crc32c(data).to_le_bytes() != digest {
                        return Err(WireError("a data digest that does not fit the data".to_owned()).into());
                    }
                    call.data.extend_from_slice(data);
                    call.is_whole = last;
                    if success {
                        let status = super::wire::Status::SUCCESS;
                        self.finish(Answer { result: 0, id, status })?;
                    }
                    whole
                }
                Unit::Answer(answer) => {
                    self.finish(answer)?;
                    head
                }
                Unit::Wanted { .. } => return Err(WireError("a request for data that it has".to_owned()).into()),
                Unit::Terminated { reason, place } => return Err(LinkError::Terminated { reason, place }),
            };
            from += length;
        }
        self.received.drain(..from.min(self.received.len()));
        match self.received.len() > RECEIVED_LIMIT {
            true => Err(WireError("a unit without an end".to_owned()).into()),
            false => Ok(()),
        }
    }

    fn finish(&mut self, answer: Answer) -> Result<(), LinkError> {
        let place = self.calls.iter().position(|call| call.id == answer.id);
        let place = place.ok_or_else(|| WireError(format!("an answer to no command ({})", answer.id)))?;
        let data = self.calls.swap_remove(place).data;
        self.replies.push(Reply { answer, data });
        Ok(())
    }
}
