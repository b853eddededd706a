//! Requests and their ends as frames say them, and back.

use crate::{
    base::{
        ForwardId, HostId, ObjectId, Pass,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
        planted,
    },
    format::reservation::Reservation,
    node::request::{DataRun, DataRuns, Extent, Payload, ReplyData, VolumeError, VolumeOperation},
    pair::wire::{
        EXTENTS_MAX, Reply, ReplyContent, ReplyStatus, Request, RequestKind, TEXT_BYTES_MAX, extents_of, pass_of,
        read_command, write_command, write_extent, write_pass,
    },
};
use smallvec::smallvec;
use std::ops::Range;
use twinlog_device::{BLOCK_BYTES as BLOCK, BlockPool};

/// Whose a request is, and what lets the owner perform it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sender {
    pub(super) host: Option<HostId>,
    pub(super) pass: Option<Pass>,
}

/// What of a request is forwarded next: a record's worth, so that it is performed whole or not at all.
pub(super) fn next_part(operation: &VolumeOperation) -> Range<u64> {
    match operation {
        VolumeOperation::WriteZeroes { range, may_free: false, .. } => {
            let end = range.start / BLOCK_BYTES * BLOCK_BYTES + CHANGE_BYTES_MAX;
            range.start..end.min(range.end)
        }
        VolumeOperation::Read(range)
        | VolumeOperation::Cache(range)
        | VolumeOperation::Discard { range, .. }
        | VolumeOperation::WriteZeroes { range, .. }
        | VolumeOperation::BlockStatus { range, .. } => range.clone(),
        VolumeOperation::Write { payload, .. } | VolumeOperation::CompareAndWrite { payload, .. } => payload.range(),
        VolumeOperation::Flush | VolumeOperation::Reserve(_) | VolumeOperation::Reservation => 0..0,
    }
}

/// The frame that asks for the next part of a request of `sender` to `volume`.
pub(super) fn request_of(
    id: u64,
    (volume, sender): (ObjectId, Sender),
    operation: &VolumeOperation,
) -> (Request, Vec<u8>) {
    let part = next_part(operation);
    let (kind, durable) = match operation {
        VolumeOperation::Read(_) => (RequestKind::Read, false),
        VolumeOperation::Write { durable, .. } => (RequestKind::Write, *durable),
        VolumeOperation::CompareAndWrite { durable, .. } => (RequestKind::CompareAndWrite, *durable),
        VolumeOperation::Flush => (RequestKind::Flush, false),
        VolumeOperation::Discard { durable, .. } => (RequestKind::Discard, *durable),
        // Its records are in one lane: what makes the last one survive power loss does so for all before it.
        VolumeOperation::WriteZeroes { durable, range, .. } => {
            (RequestKind::WriteZeroes, *durable && part.end == range.end)
        }
        VolumeOperation::BlockStatus { .. } => (RequestKind::BlockStatus, false),
        VolumeOperation::Cache(_) => (RequestKind::Cache, false),
        VolumeOperation::Reserve(_) => (RequestKind::Reserve, false),
        VolumeOperation::Reservation => (RequestKind::Reservation, false),
    };
    let extents_max = match operation {
        VolumeOperation::BlockStatus { extents_max, .. } => {
            u32::try_from((*extents_max).min(EXTENTS_MAX)).expect("bounded just now")
        }
        _ => 0,
    };
    let request = Request {
        id,
        volume,
        host: sender.host,
        pass: sender.pass.filter(|_| kind.is_change() && sender.host.is_some()),
        kind,
        durable,
        may_free: matches!(operation, VolumeOperation::WriteZeroes { may_free: true, .. }),
        offset_bytes: part.start,
        length_bytes: part.end - part.start,
        extents_max,
    };
    let bytes = match operation {
        VolumeOperation::Write { payload, .. } => payload.to_vec(),
        VolumeOperation::CompareAndWrite { expected, payload, .. } => [&expected[..], &payload.to_vec()].concat(),
        VolumeOperation::Reserve(command) => write_command(*command),
        _ => Vec::new(),
    };
    (request, bytes)
}

/// The name of a change that a frame asks for; `Err`: it is none that this program would send, whatever it was meant to be.
pub(super) fn name_of(request: &Request, slots: usize) -> Result<Option<ForwardId>, ()> {
    let end = request.offset_bytes + request.length_bytes;
    let one_record = request.offset_bytes / BLOCK_BYTES * BLOCK_BYTES + CHANGE_BYTES_MAX >= end;
    let id = ForwardId::of(request.id);
    match request.kind {
        RequestKind::Write | RequestKind::CompareAndWrite => {
            id.filter(|id| id.slot() < slots && one_record).map(Some).ok_or(())
        }
        RequestKind::WriteZeroes => {
            id.filter(|id| id.slot() < slots && (one_record || request.may_free)).map(Some).ok_or(())
        }
        RequestKind::Discard | RequestKind::Reserve => id.filter(|id| id.slot() < slots).map(Some).ok_or(()),
        // The longest read of a front end has as many blocks as a change.
        RequestKind::Read | RequestKind::Cache if !one_record => Err(()),
        _ => {
            if id.is_none() {
                Ok(None)
            } else {
                Err(())
            }
        }
    }
}

/// What a frame asks for; `None` while there is no memory for it.
pub(super) fn operation_of(request: &Request, bytes: &[u8], blocks: &BlockPool) -> Option<VolumeOperation> {
    let range = request.offset_bytes..request.offset_bytes + request.length_bytes;
    let durable = request.durable;
    Some(match request.kind {
        RequestKind::Read => VolumeOperation::Read(range),
        RequestKind::Write => {
            let mut payload = Payload::allocate(blocks, range)?;
            payload.fill(0, bytes);
            VolumeOperation::Write { payload, durable }
        }
        RequestKind::CompareAndWrite => {
            let (expected, bytes) = bytes.split_first_chunk().expect("checked where it was read");
            let mut payload = Payload::allocate(blocks, range)?;
            payload.fill(0, bytes);
            VolumeOperation::CompareAndWrite { expected: *expected, payload, durable }
        }
        RequestKind::Flush => VolumeOperation::Flush,
        RequestKind::Discard => VolumeOperation::Discard { range, durable },
        RequestKind::WriteZeroes => VolumeOperation::WriteZeroes { range, may_free: request.may_free, durable },
        RequestKind::BlockStatus => {
            let extents_max = usize::try_from(request.extents_max).expect("checked where it was read");
            VolumeOperation::BlockStatus { range, extents_max }
        }
        RequestKind::Cache => VolumeOperation::Cache(range),
        RequestKind::Reserve => VolumeOperation::Reserve(read_command(bytes).expect("checked where it was read")),
        RequestKind::Reservation => VolumeOperation::Reservation,
    })
}

/// A reply without payload.
pub(super) fn bare_reply(id: u64, status: ReplyStatus) -> (Reply, Vec<u8>) {
    (Reply { id, status, content: ReplyContent::Nothing, detail: 0 }, Vec::new())
}

/// The frame that says how a request has ended.
pub(super) fn reply_of(id: u64, result: Result<ReplyData, VolumeError>) -> (Reply, Vec<u8>) {
    let done = |content, detail, bytes| (Reply { id, status: ReplyStatus::Done, content, detail }, bytes);
    match result {
        Ok(ReplyData::Done) => bare_reply(id, ReplyStatus::Done),
        Ok(ReplyData::Data(runs)) => {
            let is_zero = runs.iter().all(|run| matches!(run, DataRun::Zeroes(_)));
            let bytes = bytes_of(&runs);
            if is_zero {
                done(ReplyContent::Zeroes, bytes.len() as u64, Vec::new())
            } else {
                done(ReplyContent::Bytes, 0, bytes)
            }
        }
        Ok(ReplyData::Extents(extents)) => {
            let mut bytes = Vec::new();
            extents.iter().for_each(|extent| write_extent(extent.length_bytes, extent.allocated, &mut bytes));
            done(ReplyContent::Extents, 0, bytes)
        }
        Ok(ReplyData::Reservation(state)) => done(ReplyContent::Reservation, 0, state.to_bytes()),
        Err(error) => {
            let (status, detail, text) = match &error {
                VolumeError::NoSuchVolume => return bare_reply(id, ReplyStatus::NoSuchVolume),
                VolumeError::OutOfRange => return bare_reply(id, ReplyStatus::OutOfRange),
                VolumeError::NoSpace => return bare_reply(id, ReplyStatus::NoSpace),
                VolumeError::ShuttingDown => return bare_reply(id, ReplyStatus::ShuttingDown),
                VolumeError::Unreadable { block, reason } => (ReplyStatus::Unreadable, *block, reason.as_str()),
                VolumeError::Stopped(reason) | VolumeError::Interrupted(reason) => {
                    (ReplyStatus::Stopped, 0, reason.as_str())
                }
                VolumeError::Offline(_) if planted::is("offline-refused-as-elsewhere") => {
                    return bare_reply(id, ReplyStatus::NotOwner);
                }
                VolumeError::Offline(reason) => (ReplyStatus::Offline, 0, reason.as_str()),
                VolumeError::Unserved(_) => return bare_reply(id, ReplyStatus::NotOwner),
                VolumeError::ReservationConflict => return bare_reply(id, ReplyStatus::ReservationConflict),
                VolumeError::ReservationInvalid => return bare_reply(id, ReplyStatus::ReservationInvalid),
                VolumeError::RegistrantsFull => return bare_reply(id, ReplyStatus::RegistrantsFull),
                VolumeError::Preempted => return bare_reply(id, ReplyStatus::Preempted),
                VolumeError::Differs => return bare_reply(id, ReplyStatus::Differs),
                VolumeError::Late(pass) => {
                    let (status, content) = (ReplyStatus::Late, ReplyContent::Pass);
                    return (Reply { id, status, content, detail: 0 }, write_pass(*pass));
                }
            };
            let text = shortened(text).to_vec();
            (Reply { id, status, content: ReplyContent::Text, detail }, text)
        }
    }
}

/// As much of a text as a frame takes.
fn shortened(text: &str) -> &[u8] {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text.as_bytes()[..end]
}

fn bytes_of(runs: &[DataRun]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in runs {
        match run {
            DataRun::Block(block, part) => bytes.extend_from_slice(&block[part.clone()]),
            DataRun::Zeroes(length) => {
                bytes.resize(bytes.len() + usize::try_from(*length).expect("inside a request"), 0);
            }
        }
    }
    bytes
}

/// How a request for `part` of `operation` has ended; `buffer` is where the bytes of a read go. `None`: the reply is none to this request.
pub(super) fn result_of(
    operation: &VolumeOperation,
    (reply, bytes): (&Reply, &[u8]),
    buffer: Option<Payload>,
) -> Option<Result<ReplyData, VolumeError>> {
    let text = || String::from_utf8_lossy(bytes).into_owned();
    let error = match reply.status {
        ReplyStatus::Done => return done_of(operation, (reply, bytes), buffer).map(Ok),
        ReplyStatus::NoSuchVolume => VolumeError::NoSuchVolume,
        ReplyStatus::OutOfRange => VolumeError::OutOfRange,
        ReplyStatus::NoSpace => VolumeError::NoSpace,
        ReplyStatus::Unreadable => VolumeError::Unreadable { block: reply.detail, reason: text() },
        ReplyStatus::Stopped | ReplyStatus::NotOwner => VolumeError::Stopped(text()),
        ReplyStatus::Offline => VolumeError::Offline(text()),
        ReplyStatus::ShuttingDown => VolumeError::ShuttingDown,
        ReplyStatus::ReservationConflict => VolumeError::ReservationConflict,
        ReplyStatus::ReservationInvalid => VolumeError::ReservationInvalid,
        ReplyStatus::RegistrantsFull => VolumeError::RegistrantsFull,
        ReplyStatus::Preempted => VolumeError::Preempted,
        ReplyStatus::Differs => VolumeError::Differs,
        ReplyStatus::Late => VolumeError::Late(pass_of(bytes)?),
    };
    Some(Err(error))
}

fn done_of(operation: &VolumeOperation, (reply, bytes): (&Reply, &[u8]), buffer: Option<Payload>) -> Option<ReplyData> {
    match (operation, reply.content) {
        (VolumeOperation::Read(range), ReplyContent::Bytes) if bytes.len() as u64 == range.end - range.start => {
            let mut buffer = buffer?;
            buffer.fill(0, bytes);
            Some(ReplyData::Data(runs_of(buffer)))
        }
        (VolumeOperation::Read(range), ReplyContent::Zeroes) if reply.detail == range.end - range.start => {
            Some(ReplyData::Data(smallvec![DataRun::Zeroes(reply.detail)]))
        }
        (VolumeOperation::BlockStatus { extents_max, .. }, ReplyContent::Extents) => {
            let extents = extents_of(bytes)?.map(|(length_bytes, allocated)| Extent { length_bytes, allocated });
            let extents: Vec<Extent> = extents.collect();
            (extents.len() <= *extents_max).then_some(ReplyData::Extents(extents))
        }
        (VolumeOperation::Reservation, ReplyContent::Reservation) => {
            Some(ReplyData::Reservation(Box::new(Reservation::read(bytes).ok()?)))
        }
        (VolumeOperation::Read(_) | VolumeOperation::BlockStatus { .. } | VolumeOperation::Reservation, _) => None,
        (_, ReplyContent::Nothing) => Some(ReplyData::Done),
        _ => None,
    }
}

fn runs_of(payload: Payload) -> DataRuns {
    let range = payload.range();
    let first = range.start - range.start % BLOCK_BYTES;
    let small = |number: u64| usize::try_from(number).expect("inside a block");
    let starts = (first..).step_by(BLOCK);
    let run = |(block, start): (twinlog_device::BlockBuf, u64)| {
        let within = small(range.start.max(start) - start)..small(range.end.min(start + BLOCK_BYTES) - start);
        DataRun::Block(block.freeze(), within)
    };
    payload.into_blocks().into_iter().zip(starts).map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::{base::Epoch, fs::reservation::ReservationCommand};

    const BLOCKS: u32 = 1024;

    fn payload(blocks: &BlockPool, range: Range<u64>) -> Payload {
        let mut payload = Payload::allocate(blocks, range.clone()).expect("memory is large enough");
        let bytes: Vec<u8> = range.map(|at| u8::try_from(at % 251).expect("small")).collect();
        payload.fill(0, &bytes);
        payload
    }

    /// What arrives is what was asked for, whatever its alignment.
    #[test]
    fn requests_and_replies_survive_the_round_trip() {
        let blocks = BlockPool::new(BLOCKS).expect("a small mapping");
        let sender = Sender { host: HostId::new([7; 16]), pass: Some(Pass { epoch: Epoch(2), number: 1 }) };
        for range in [0..1, 4095..4097, 100..9000, 4096..12_288, 4095..4095 + (1 << 20) - 4095] {
            let write = VolumeOperation::Write { payload: payload(&blocks, range.clone()), durable: true };
            let id = ForwardId::new(9, 3);
            let (request, bytes) = request_of(id.bits(), (ObjectId(4), sender), &write);
            assert_eq!((request.host, request.pass), (sender.host, sender.pass));
            assert_eq!(name_of(&request, 4), Ok(Some(id)));
            assert_eq!(name_of(&request, 3), Err(()), "no such slot");
            let Some(VolumeOperation::Write { payload: arrived, durable: true }) =
                operation_of(&request, &bytes, &blocks)
            else {
                panic!("a durable write")
            };
            assert_eq!((arrived.range(), arrived.to_vec()), (range.clone(), bytes.clone()));
            let read = VolumeOperation::Read(range.clone());
            assert_eq!(request_of(1, (ObjectId(4), sender), &read).0.pass, None, "reads need none");
            let (reply, sent) = reply_of(7, Ok(ReplyData::Data(runs_of(arrived))));
            let buffer = Payload::allocate(&blocks, range.clone());
            let Some(Ok(ReplyData::Data(runs))) = result_of(&read, (&reply, &sent), buffer) else { panic!("data") };
            assert_eq!(bytes_of(&runs), bytes);
            let zeroes = reply_of(7, Ok(ReplyData::Data(smallvec![DataRun::Zeroes(range.end - range.start)])));
            assert!(zeroes.1.is_empty(), "zeroes are told, not sent");
            assert!(result_of(&read, (&zeroes.0, &zeroes.1), None).is_some_and(|result| result.is_ok()));
            assert!(result_of(&read, (&reply, &sent[1..]), None).is_none(), "another length");
        }
    }

    #[test]
    fn a_compare_and_write_survives_the_round_trip() {
        let blocks = BlockPool::new(BLOCKS).expect("a small mapping");
        let sender = Sender { host: HostId::new([9; 16]), pass: Some(Pass { epoch: Epoch(2), number: 1 }) };
        let (expected, range) = ([3; 32], 4096 + 512..4096 + 1024);
        let payload = payload(&blocks, range.clone());
        let compare = VolumeOperation::CompareAndWrite { expected, payload, durable: true };
        let id = ForwardId::new(9, 3);
        let (request, bytes) = request_of(id.bits(), (ObjectId(4), sender), &compare);
        assert!(compare.is_change() && request.kind.is_change());
        assert!(name_of(&request, 4) == Ok(Some(id)) && name_of(&request, 3).is_err());
        assert_eq!((request.host, request.pass), (sender.host, sender.pass));
        let Some(VolumeOperation::CompareAndWrite { expected: sum, payload: arrived, durable: true }) =
            operation_of(&request, &bytes, &blocks)
        else {
            panic!("a durable compare-and-write")
        };
        assert_eq!((sum, arrived.range(), arrived.to_vec()), (expected, range, bytes[32..].to_vec()));
        let (reply, sent) = reply_of(id.bits(), Ok(ReplyData::Done));
        assert!(matches!(result_of(&compare, (&reply, &sent), None), Some(Ok(ReplyData::Done))));
    }

    #[test]
    fn reservations_survive_the_round_trip() {
        let blocks = BlockPool::new(BLOCKS).expect("a small mapping");
        let sender = Sender { host: HostId::new([9; 16]), pass: Some(Pass { epoch: Epoch(2), number: 1 }) };
        let command = ReservationCommand::Clear { key: 77 };
        let id = ForwardId::new(9, 3);
        let reserve = VolumeOperation::Reserve(command);
        let (request, bytes) = request_of(id.bits(), (ObjectId(4), sender), &reserve);
        assert!(reserve.is_change() && request.kind.is_change());
        assert!(name_of(&request, 4) == Ok(Some(id)) && name_of(&request, 3).is_err());
        assert_eq!((request.host, request.pass), (sender.host, sender.pass));
        let arrived = operation_of(&request, &bytes, &blocks);
        assert!(matches!(arrived, Some(VolumeOperation::Reserve(arrived)) if arrived == command));
        let (request, bytes) = request_of(5, (ObjectId(4), sender), &VolumeOperation::Reservation);
        assert!(bytes.is_empty() && name_of(&request, 4) == Ok(None));
        let state = Reservation { generation: 4, ..Reservation::default() };
        let (reply, sent) = reply_of(5, Ok(ReplyData::Reservation(Box::new(state.clone()))));
        let result = result_of(&VolumeOperation::Reservation, (&reply, &sent), None);
        assert!(matches!(result, Some(Ok(ReplyData::Reservation(arrived))) if *arrived == state));
        assert!(result_of(&VolumeOperation::Flush, (&reply, &sent), None).is_none());
    }

    #[test]
    fn errors_survive_the_round_trip() {
        for error in [
            VolumeError::NoSuchVolume,
            VolumeError::OutOfRange,
            VolumeError::NoSpace,
            VolumeError::Unreadable { block: 7, reason: "wrong checksum".to_owned() },
            VolumeError::Stopped("ü".repeat(100)),
            VolumeError::Offline("the record".to_owned()),
            VolumeError::ShuttingDown,
            VolumeError::ReservationConflict,
            VolumeError::ReservationInvalid,
            VolumeError::RegistrantsFull,
            VolumeError::Preempted,
            VolumeError::Differs,
            VolumeError::Late(Pass { epoch: Epoch(3), number: 9 }),
        ] {
            let (reply, bytes) = reply_of(1, Err(error.clone()));
            let result = result_of(&VolumeOperation::Flush, (&reply, &bytes), None);
            assert_eq!(result.and_then(Result::err), Some(error));
        }
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn a_planted_refusal_as_elsewhere_is_found() {
        planted::choose("offline-refused-as-elsewhere");
        let is_found = std::panic::catch_unwind(errors_survive_the_round_trip).is_err();
        planted::choose("");
        assert!(is_found);
    }

    #[test]
    fn long_zeroes_that_keep_their_blocks_go_record_by_record() {
        let zeroes = |may_free| VolumeOperation::WriteZeroes { range: 100..5 << 20, may_free, durable: true };
        let (request, _) = request_of(ForwardId::new(1, 0).bits(), (ObjectId(1), Sender::default()), &zeroes(false));
        assert_eq!((request.offset_bytes, request.length_bytes, request.durable), (100, (1 << 20) - 100, false));
        assert!(name_of(&request, 1).is_ok());
        assert!(name_of(&Request { length_bytes: 1 << 20, ..request }, 1).is_err(), "two records");
        let (request, _) = request_of(ForwardId::new(1, 0).bits(), (ObjectId(1), Sender::default()), &zeroes(true));
        assert_eq!((request.length_bytes, request.durable), ((5 << 20) - 100, true));
        assert!(name_of(&request, 1).is_ok());
    }
}
