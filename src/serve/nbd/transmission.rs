//! The transmission phase: requests in, replies out, for one connection.
//!
//! # Invariants
//!
//! 1. Requests are taken in order, one at a time; what cannot go on stays in the connection's input, and the client feels it. Nothing
//!    a client sends makes this grow: at most [`REQUESTS_PER_CONNECTION_MAX`] requests are in flight, and at most
//!    [`CONNECTION_BYTES_MAX`] bytes of payload are being written, being read, or waiting to be sent.
//! 2. A read, a write or a hint to read becomes parts of at most 1 MiB. A payload moves from the input straight into its part's blocks; a part of a
//!    read leaves as soon as the engine has it. So a request of 32 MiB needs the memory of a few parts.
//! 3. Every request is answered exactly once, when no part of it is in flight any more; if a part failed, with the first error.
//! 4. A reply that the protocol does not let us interleave (several parts in a simple reply, or in one data chunk) is
//!    *streamed*: it begins when nothing else is in flight, and nothing else begins until it has ended.
//! 5. What of a write has been received whole is written even when the rest never comes: the client was told nothing about it.
//!
//! # Life cycle of the intake
//!
//! ```text
//!            +--> Write ---> (failed) ---> Discard --+
//! Header ----+--> Read                               +--> Header --> ... --> Ended
//!            +--> Stream                             |     (DISC, or the client sends no more)
//!            +--> Discard (refused, with payload) ---+
//! ```

use super::{
    codec::{
        ChunkHeader, ErrorCode, ReplyStyle, RequestHeader, command, command_flag, parse_payload_contexts,
        parse_request, write_block_status, write_done, write_error, write_offset_data_header, write_simple,
    },
    data::{clip, send_chunks},
    negotiate::{ALLOCATION_CONTEXT_ID, Export},
    request::{Command, Failure, check, part, part_count, payload_bytes},
};
use crate::{
    base::limits::{CHANGE_BYTES_MAX, CONNECTION_BYTES_MAX, REQUEST_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX},
    node::request::{
        DataRun, Payload, ReplyData, RequestTag, VolumeError, VolumeOperation, VolumeRequest, VolumeService,
    },
    serve::{
        landing::{Incoming, Landed},
        slots::Slots,
        turn::{Pace, Turn, runs_bytes, send_runs, send_zeroes},
    },
};
use std::ops::Range;
use twinlog_device::Network;

/// Most extents of one reply: 16 bytes each make 64 KiB. A client asks again from where they end.
pub(super) const EXTENTS_MAX: usize = 4096;

/// Bytes of an extended block status request's payload that names the one context there is; any other is refused.
const CONTEXT_PAYLOAD_BYTES: usize = 12;

const _: () = assert!(CHANGE_BYTES_MAX <= CONNECTION_BYTES_MAX, "one part always fits");
const _: () = assert!(REQUESTS_PER_CONNECTION_MAX <= u16::MAX as usize, "a slot fits its part of a tag");

#[derive(Debug)]
enum Intake {
    Header,
    /// Receives a write's payload. `part` is being filled, or comes next.
    Write {
        slot: u16,
        part: u16,
        filling: Option<Filling>,
    },
    /// The network receives the rest of a part into its blocks.
    Landing {
        slot: u16,
        part: u16,
        incoming: Incoming,
    },
    /// Submits the parts of a read, or of a hint to read, from `part` on.
    Read {
        slot: u16,
        part: u16,
    },
    /// Streams a reply; `part` is submitted when `waits`, else comes next.
    Stream {
        slot: u16,
        part: u16,
        waits: bool,
    },
    /// Throws away the rest of a payload.
    Discard {
        remaining_bytes: u64,
        then: Then,
    },
    Ended,
}

#[derive(Debug)]
struct Filling {
    payload: Payload,
    filled_bytes: u64,
}

/// What happens after a payload was thrown away.
#[derive(Debug)]
enum Then {
    /// The refused request is answered.
    Refuse(RequestHeader, Failure),
    /// The failed write is answered as soon as none of its parts is in flight.
    Finish(u16),
}

/// A request in flight.
#[derive(Debug)]
struct Request {
    header: RequestHeader,
    command: Command,
    parts_in_flight: u16,
    /// No further part will be submitted.
    submitted: bool,
    failure: Option<Failure>,
}

impl Request {
    fn range(&self) -> Range<u64> {
        let length_bytes = match self.command {
            // A hint, which the protocol lets a server take in part: no more than a read, however much a client plans.
            Command::Cache => self.header.length_bytes.min(u64::from(REQUEST_BYTES_MAX)),
            _ => self.header.length_bytes,
        };
        self.header.offset..self.header.offset + length_bytes
    }

    fn chunk(&self, style: ReplyStyle) -> ChunkHeader {
        ChunkHeader { style, cookie: self.header.cookie, offset: self.header.offset }
    }
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub(super) struct Transmission {
    export: Export,
    intake: Intake,
    requests: Slots<Request>,
    /// Bytes of the parts of reads and writes that are submitted.
    bytes_in_flight: u64,
}

impl Transmission {
    pub(super) fn new(export: Export) -> Self {
        Self { export, intake: Intake::Header, requests: Slots::default(), bytes_in_flight: 0 }
    }

    /// No request will be taken and none is in flight.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.intake, Intake::Ended) && self.requests.is_empty()
    }

    /// Nothing is in flight, and no request has been taken in part.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.intake, Intake::Header) && self.requests.is_empty()
    }

    /// The client has sent a part of a request, of which `input` is the unread rest, and owes the other.
    pub(super) fn has_part_of_request(&self, input: &[u8]) -> bool {
        match self.intake {
            Intake::Header => !input.is_empty(),
            Intake::Write { .. } | Intake::Landing { .. } | Intake::Discard { .. } => true,
            Intake::Read { .. } | Intake::Stream { .. } | Intake::Ended => false,
        }
    }

    /// Blocks of the pool wait here for the client to send more.
    pub(super) fn holds_blocks(&self) -> bool {
        matches!(self.intake, Intake::Write { filling: Some(_), .. } | Intake::Landing { .. })
    }

    /// The client sends no more, and `step` waits for it: a request that came in part never comes whole.
    pub(super) fn end_input<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) {
        if let Intake::Write { slot, .. }
        | Intake::Landing { slot, .. }
        | Intake::Discard { then: Then::Finish(slot), .. } = std::mem::replace(&mut self.intake, Intake::Ended)
        {
            let request = self.requests.get_mut(slot);
            request.submitted = true;
            request.failure.get_or_insert(Failure::new(ErrorCode::Invalid, "the payload ended early"));
            self.finish_if_done(turn, slot);
        }
    }

    /// Takes one step with what the client has sent.
    pub(super) fn step<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        match self.intake {
            Intake::Header => self.take_header(turn),
            Intake::Write { .. } => self.receive(turn),
            Intake::Landing { .. } => self.take_landed(turn),
            Intake::Read { slot, part } => self.submit_read(turn, slot, part),
            Intake::Stream { slot, part, waits } => self.stream(turn, slot, part, waits),
            Intake::Discard { .. } => self.discard(turn),
            Intake::Ended => Pace::WaitsForRoom,
        }
    }

    fn take_header<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let full = self.requests.len() >= REQUESTS_PER_CONNECTION_MAX || turn.unsent_bytes() >= CONNECTION_BYTES_MAX;
        if turn.input().is_empty() {
            return Pace::WaitsForClient;
        }
        if full || !turn.service.has_room(self.export.volume) {
            return Pace::WaitsForRoom;
        }
        let style = self.export.style;
        let mut header = match parse_request(style, turn.input()) {
            Ok(Some(header)) => header,
            Ok(None) => return Pace::WaitsForClient,
            Err(_) => return Pace::Violation,
        };
        let mut payload_bytes = payload_bytes(style, &header);
        if payload_bytes > u64::from(REQUEST_BYTES_MAX) {
            return Pace::Violation;
        }
        let mut header_bytes = style.request_bytes();
        let mut result = Ok(());
        if header.command == command::BLOCK_STATUS && payload_bytes == CONTEXT_PAYLOAD_BYTES as u64 {
            let end = header_bytes + CONTEXT_PAYLOAD_BYTES;
            let Some(payload) = turn.input().get(header_bytes..end) else { return Pace::WaitsForClient };
            result = apply_context_payload(&mut header, payload);
            (header_bytes, payload_bytes) = (end, 0);
        } else if header.command == command::BLOCK_STATUS && payload_bytes > 0 {
            result = Err(Failure::new(ErrorCode::Invalid, "the payload does not name the one metadata context"));
        }
        turn.net.consume(turn.connection, header_bytes);
        if header.command == command::DISC {
            self.intake = Intake::Ended;
            return Pace::Went;
        }
        if turn.stopping {
            result = Err(Failure::new(ErrorCode::Shutdown, "the server is being stopped"));
        }
        let size_bytes = turn.service.size_bytes(self.export.volume);
        match result.and_then(|()| check(&self.export, size_bytes, &header)) {
            Ok(command) => self.admit(turn, header, command),
            Err(failure) if payload_bytes == 0 => self.refuse(turn, &header, &failure),
            Err(failure) => {
                self.intake = Intake::Discard { remaining_bytes: payload_bytes, then: Then::Refuse(header, failure) };
            }
        }
        Pace::Went
    }

    /// Starts a valid request.
    fn admit<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        header: RequestHeader,
        command: Command,
    ) {
        let mut request = Request { header, command, parts_in_flight: 0, submitted: false, failure: None };
        let range = request.range();
        if range.is_empty() && command != Command::Flush {
            self.answer(turn, &request);
            return;
        }
        let operation = match command {
            Command::Read { unfragmented } => {
                let whole = unfragmented || self.export.style == ReplyStyle::Simple;
                let slot = self.requests.insert(request);
                self.intake = if whole && part_count(&range) > 1 {
                    Intake::Stream { slot, part: 0, waits: false }
                } else {
                    Intake::Read { slot, part: 0 }
                };
                return;
            }
            Command::Write { .. } => {
                let slot = self.requests.insert(request);
                self.intake = Intake::Write { slot, part: 0, filling: None };
                return;
            }
            Command::Cache => {
                let slot = self.requests.insert(request);
                self.intake = Intake::Read { slot, part: 0 };
                return;
            }
            Command::Flush => VolumeOperation::Flush,
            Command::Trim { durable } => VolumeOperation::Discard { range, durable },
            Command::WriteZeroes { durable, may_free } => VolumeOperation::WriteZeroes { range, may_free, durable },
            Command::BlockStatus { one } => {
                VolumeOperation::BlockStatus { range, extents_max: if one { 1 } else { EXTENTS_MAX } }
            }
        };
        request.submitted = true;
        let slot = self.requests.insert(request);
        self.submit(turn, slot, 0, operation);
    }

    fn submit<N, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        part: u16,
        operation: VolumeOperation,
    ) {
        self.requests.get_mut(slot).parts_in_flight += 1;
        let tag = RequestTag { session: turn.connection.0, request: u64::from(slot) << 16 | u64::from(part) };
        turn.service.submit(VolumeRequest { tag, volume: self.export.volume, host: None, pass: None, operation });
    }

    fn receive<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Write { slot, part: index, filling } = &mut self.intake else {
            unreachable!("called in this state")
        };
        let (slot, index) = (*slot, *index);
        let request = self.requests.get_mut(slot);
        let range = part(&request.range(), index);
        let part_bytes = range.end - range.start;
        let mut filled_bytes = filling.as_ref().map_or(0, |filling| filling.filled_bytes);
        if request.failure.is_some() {
            request.submitted = true;
            let remaining_bytes = request.range().end - range.start - filled_bytes;
            self.intake = Intake::Discard { remaining_bytes, then: Then::Finish(slot) };
            return Pace::Went;
        }
        let input = turn.net.input(turn.connection);
        if input.is_empty() && filled_bytes < part_bytes {
            self.land(turn);
            return Pace::WaitsForClient;
        }
        if !turn.service.has_room(self.export.volume) {
            return Pace::WaitsForRoom;
        }
        if filling.is_none() {
            if self.bytes_in_flight + part_bytes > CONNECTION_BYTES_MAX {
                return Pace::WaitsForRoom;
            }
            let Some(payload) = Payload::allocate(turn.service.blocks(), range) else { return Pace::WaitsForRoom };
            *filling = Some(Filling { payload, filled_bytes: 0 });
        }
        let current = filling.as_mut().expect("filled just now");
        let take = usize::try_from(part_bytes - filled_bytes).map_or(input.len(), |wanted| wanted.min(input.len()));
        current.payload.fill(filled_bytes, &input[..take]);
        turn.net.consume(turn.connection, take);
        filled_bytes += take as u64;
        current.filled_bytes = filled_bytes;
        if filled_bytes == part_bytes {
            let payload = filling.take().expect("filled just now").payload;
            self.submit_write(turn, slot, index, payload);
        }
        Pace::Went
    }

    /// Has the network receive the rest of a part into its blocks, if it has some, and that is worth it and can be.
    fn land<N: Network, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        let Intake::Write { slot, part, filling } = &mut self.intake else { return };
        let Some(Filling { payload, filled_bytes }) = filling.take() else { return };
        let range = payload.range();
        match Incoming::begin(turn, payload, filled_bytes..range.end - range.start) {
            Ok(incoming) => self.intake = Intake::Landing { slot: *slot, part: *part, incoming },
            Err(payload) => *filling = Some(Filling { payload, filled_bytes }),
        }
    }

    /// Takes back what has landed.
    fn take_landed<N: Network, S>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Landing { slot, part, incoming } = &mut self.intake else { unreachable!("called in this state") };
        let payload = match incoming.step(turn) {
            Landed::Nothing => return Pace::WaitsForClient,
            Landed::Partly => return Pace::Went,
            Landed::Whole(payload) => payload,
        };
        let filling = Some(Filling { payload, filled_bytes: incoming.part().end });
        self.intake = Intake::Write { slot: *slot, part: *part, filling };
        Pace::Went
    }

    fn submit_write<N, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        index: u16,
        payload: Payload,
    ) {
        let request = self.requests.get_mut(slot);
        let Command::Write { durable } = request.command else { unreachable!("only writes have payloads") };
        let range = payload.range();
        request.submitted = range.end == request.range().end;
        self.intake =
            if request.submitted { Intake::Header } else { Intake::Write { slot, part: index + 1, filling: None } };
        self.bytes_in_flight += range.end - range.start;
        self.submit(turn, slot, index, VolumeOperation::Write { payload, durable });
    }

    /// Whether a part of a read may start: its bytes will wait to be sent.
    fn has_room_to_read<N: Network, S: VolumeService>(&self, turn: &Turn<'_, N, S>, range: &Range<u64>) -> bool {
        let waiting_bytes = self.bytes_in_flight + turn.unsent_bytes();
        turn.service.has_room(self.export.volume) && waiting_bytes + (range.end - range.start) <= CONNECTION_BYTES_MAX
    }

    fn submit_read<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, index: u16) -> Pace {
        let request = self.requests.get_mut(slot);
        let range = part(&request.range(), index);
        if request.failure.is_some() {
            request.submitted = true;
            self.intake = Intake::Header;
            self.finish_if_done(turn, slot);
            return Pace::Went;
        }
        if !self.has_room_to_read(turn, &range) {
            return Pace::WaitsForRoom;
        }
        let request = self.requests.get_mut(slot);
        request.submitted = range.end == request.range().end;
        self.intake = if request.submitted { Intake::Header } else { Intake::Read { slot, part: index + 1 } };
        self.bytes_in_flight += range.end - range.start;
        let is_hint = request.command == Command::Cache;
        let operation = if is_hint { VolumeOperation::Cache(range) } else { VolumeOperation::Read(range) };
        self.submit(turn, slot, index, operation);
        Pace::Went
    }

    fn stream<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        index: u16,
        waits: bool,
    ) -> Pace {
        let request = self.requests.get_mut(slot);
        let range = part(&request.range(), index);
        let failed = request.failure.is_some();
        if waits || self.requests.len() > 1 || !self.has_room_to_read(turn, &range) {
            return Pace::WaitsForRoom;
        }
        if failed {
            // The data chunk was announced with its length: zeroes fill it, and the error follows.
            send_zeroes(turn.net, turn.connection, range.end - range.start);
            self.end_part_of_stream(turn, slot, index, &range);
            return Pace::Went;
        }
        self.intake = Intake::Stream { slot, part: index, waits: true };
        self.bytes_in_flight += range.end - range.start;
        self.submit(turn, slot, index, VolumeOperation::Read(range));
        Pace::Went
    }

    fn discard<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>) -> Pace {
        let Intake::Discard { remaining_bytes, .. } = &mut self.intake else { unreachable!("called in this state") };
        let available = turn.net.input(turn.connection).len();
        if available == 0 && *remaining_bytes > 0 {
            return Pace::WaitsForClient;
        }
        let take = usize::try_from(*remaining_bytes).map_or(available, |remaining| remaining.min(available));
        turn.net.consume(turn.connection, take);
        *remaining_bytes -= take as u64;
        if *remaining_bytes > 0 {
            return Pace::Went;
        }
        let Intake::Discard { then, .. } = std::mem::replace(&mut self.intake, Intake::Header) else {
            unreachable!("called in this state")
        };
        match then {
            Then::Refuse(header, failure) => self.refuse(turn, &header, &failure),
            Then::Finish(slot) => self.finish_if_done(turn, slot),
        }
        Pace::Went
    }

    /// Takes the engine's reply to a part of a request of this connection.
    pub(super) fn deliver<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        tag: u64,
        result: Result<ReplyData, VolumeError>,
    ) -> Pace {
        let slot = u16::try_from(tag >> 16).expect("made by submit");
        let index = u16::try_from(tag & u64::from(u16::MAX)).expect("sixteen bits");
        let request = self.requests.get_mut(slot);
        request.parts_in_flight -= 1;
        let range = part(&request.range(), index);
        if matches!(request.command, Command::Read { .. } | Command::Write { .. } | Command::Cache) {
            self.bytes_in_flight -= range.end - range.start;
        }
        if matches!(self.intake, Intake::Stream { slot: streamed, waits: true, .. } if streamed == slot) {
            return self.deliver_to_stream(turn, slot, index, result);
        }
        let last = request.submitted && request.parts_in_flight == 0;
        match result {
            // A client of this protocol asks for no reservation.
            Ok(ReplyData::Done | ReplyData::Reservation(_)) => {}
            Ok(ReplyData::Data(runs)) => {
                assert_eq!(runs_bytes(&runs), range.end - range.start, "a read returns what was asked for");
                let done = last && request.failure.is_none();
                send_read_part(turn, request, self.export.style, &runs, (range.start, done));
                if done {
                    self.requests.remove(slot);
                    return Pace::Went;
                }
            }
            Ok(ReplyData::Extents(extents)) => {
                let chunk = request.chunk(self.export.style);
                let extents = clip(&extents, request.header.length_bytes);
                turn.send(|output| write_block_status(output, chunk, ALLOCATION_CONTEXT_ID, &extents));
                self.requests.remove(slot);
                return Pace::Went;
            }
            Err(error) => {
                let failure = Failure::from_volume(&error, request.command, &request.range());
                request.failure.get_or_insert(failure);
            }
        }
        self.finish_if_done(turn, slot);
        Pace::Went
    }

    fn deliver_to_stream<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        index: u16,
        result: Result<ReplyData, VolumeError>,
    ) -> Pace {
        let style = self.export.style;
        let request = self.requests.get_mut(slot);
        let whole = request.range();
        let range = part(&whole, index);
        match result {
            Ok(ReplyData::Data(runs)) => {
                assert_eq!(runs_bytes(&runs), range.end - range.start, "a read returns what was asked for");
                if index == 0 {
                    let (cookie, chunk) = (request.header.cookie, request.chunk(style));
                    let length = u32::try_from(whole.end - whole.start).expect("at most 32 MiB");
                    turn.send(|output| match style {
                        ReplyStyle::Simple => write_simple(output, cookie, None),
                        _ => write_offset_data_header(output, chunk, false, whole.start, length),
                    });
                }
                send_runs(turn.net, turn.connection, &runs);
            }
            Ok(ReplyData::Done | ReplyData::Extents(_) | ReplyData::Reservation(_)) => {
                unreachable!("a read returns data")
            }
            Err(error) => {
                request.failure = Some(Failure::from_volume(&error, request.command, &whole));
                if index == 0 {
                    request.submitted = true;
                    self.intake = Intake::Header;
                    self.finish_if_done(turn, slot);
                    return Pace::Went;
                }
                if style == ReplyStyle::Simple {
                    // Success was announced: the protocol knows no other way out.
                    return Pace::Violation;
                }
                send_zeroes(turn.net, turn.connection, range.end - range.start);
            }
        }
        self.end_part_of_stream(turn, slot, index, &range);
        Pace::Went
    }

    fn end_part_of_stream<N: Network, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        index: u16,
        range: &Range<u64>,
    ) {
        let request = self.requests.get_mut(slot);
        if range.end < request.range().end {
            self.intake = Intake::Stream { slot, part: index + 1, waits: false };
            return;
        }
        self.intake = Intake::Header;
        request.submitted = true;
        if self.export.style == ReplyStyle::Simple {
            self.requests.remove(slot);
        } else {
            self.finish_if_done(turn, slot);
        }
    }

    /// Answers a request of which no part is in flight and none will be.
    fn finish_if_done<N: Network, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16) {
        let request = self.requests.get_mut(slot);
        // A write whose payload is still coming is answered when it has come.
        let discarding =
            matches!(self.intake, Intake::Discard { then: Then::Finish(discarded), .. } if discarded == slot);
        if !request.submitted || request.parts_in_flight > 0 || discarding {
            return;
        }
        let request = self.requests.remove(slot);
        self.answer(turn, &request);
    }

    /// Sends the final reply to a request without data.
    fn answer<N: Network, S: VolumeService>(&self, turn: &mut Turn<'_, N, S>, request: &Request) {
        if let Some(failure) = &request.failure {
            self.refuse(turn, &request.header, failure);
            return;
        }
        let chunk = request.chunk(self.export.style);
        turn.send(|output| match chunk.style {
            ReplyStyle::Simple => write_simple(output, chunk.cookie, None),
            _ => write_done(output, chunk),
        });
    }

    /// Sends an error as the final reply.
    fn refuse<N: Network, S: VolumeService>(
        &self,
        turn: &mut Turn<'_, N, S>,
        header: &RequestHeader,
        failure: &Failure,
    ) {
        let chunk = ChunkHeader { style: self.export.style, cookie: header.cookie, offset: header.offset };
        turn.send(|output| match chunk.style {
            ReplyStyle::Simple => write_simple(output, chunk.cookie, Some(failure.code)),
            _ => write_error(output, chunk, failure.code, &failure.text, failure.offset),
        });
    }
}

/// Sends a part of a read that is not streamed: the whole reply, or chunks of it.
fn send_read_part<N: Network, S: VolumeService>(
    turn: &mut Turn<'_, N, S>,
    request: &Request,
    style: ReplyStyle,
    runs: &[DataRun],
    (start, done): (u64, bool),
) {
    match (style, request.command) {
        (ReplyStyle::Simple, _) => {
            assert!(done, "a simple reply of several parts is streamed");
            turn.send(|output| write_simple(output, request.header.cookie, None));
            send_runs(turn.net, turn.connection, runs);
        }
        (_, command) => {
            let whole = command == Command::Read { unfragmented: true };
            send_chunks(turn, request.chunk(style), runs, start, (whole, done));
        }
    }
}

/// Takes the effect length from a block status request's payload, which must name the one context there is.
fn apply_context_payload(header: &mut RequestHeader, payload: &[u8]) -> Result<(), Failure> {
    let bad = Failure::new(ErrorCode::Invalid, "the payload does not name the one metadata context");
    let (length_bytes, contexts) = parse_payload_contexts(payload).ok_or_else(|| bad.clone())?;
    if !matches!(contexts, [context] if context.get() == ALLOCATION_CONTEXT_ID) {
        return Err(bad);
    }
    header.length_bytes = length_bytes;
    header.flags &= !command_flag::PAYLOAD_LEN;
    Ok(())
}
