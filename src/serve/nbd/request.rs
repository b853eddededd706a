//! From a request's header to what is asked of the volume, or to the error that answers it.
//!
//! Everything that can be refused is refused here, from the header alone and before anything is reserved: a table of what each command
//! allows, and the protocol document's error for each way to break it.

use super::{
    codec::{ErrorCode, ReplyStyle, RequestHeader, command, command_flag},
    negotiate::Export,
};
use crate::{
    base::limits::{BLOCK_BYTES, CHANGE_BYTES_MAX, REQUEST_BYTES_MAX},
    node::request::VolumeError,
};
use std::{borrow::Cow, ops::Range};

/// A valid request, its range apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read { unfragmented: bool },
    Write { durable: bool },
    Flush,
    Trim { durable: bool },
    Cache,
    WriteZeroes { durable: bool, may_free: bool },
    BlockStatus { one: bool },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    /// For people.
    pub(super) text: Cow<'static, str>,
    /// The byte of the export where it happened, if that is known.
    pub(super) offset: Option<u64>,
}

impl Failure {
    pub(super) const fn new(code: ErrorCode, text: &'static str) -> Self {
        Self { code, text: Cow::Borrowed(text), offset: None }
    }

    /// The protocol's error for the engine's, in reply to `command` on `range`.
    pub(super) fn from_volume(error: &VolumeError, command: Command, range: &Range<u64>) -> Self {
        let code = match error {
            VolumeError::OutOfRange if command.grows() => ErrorCode::NoSpace,
            VolumeError::OutOfRange => ErrorCode::Invalid,
            VolumeError::NoSpace => ErrorCode::NoSpace,
            VolumeError::NoSuchVolume
            | VolumeError::Unreadable { .. }
            | VolumeError::Stopped(_)
            | VolumeError::Interrupted(_)
            // Clients of NBD have no passes, and none is asked of them.
            | VolumeError::Late(_)
            | VolumeError::Offline(_)
            | VolumeError::Unserved(_) => ErrorCode::Io,
            VolumeError::ShuttingDown => ErrorCode::Shutdown,
            VolumeError::ReservationConflict
            | VolumeError::ReservationInvalid
            | VolumeError::RegistrantsFull
            | VolumeError::Differs
            | VolumeError::Preempted => ErrorCode::NotPermitted,
        };
        let offset = match error {
            VolumeError::Unreadable { block, .. } if range.start < range.end => {
                Some(block.saturating_mul(BLOCK_BYTES).clamp(range.start, range.end - 1))
            }
            _ => None,
        };
        Self { code, text: Cow::Owned(error.to_string()), offset }
    }
}

impl Command {
    /// "Error values": writing beyond the end is `ENOSPC`, everything else there `EINVAL`.
    const fn grows(self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. })
    }
}

/// Bytes of the payload that follows a request's header. A write always has one: with extended headers its flag should say
/// so too, but QEMU (seen with 10.0) sends writes without it, and to refuse them would lose the stream in their payload.
pub(super) fn payload_bytes(style: ReplyStyle, header: &RequestHeader) -> u64 {
    let said = style == ReplyStyle::Extended && header.flags & command_flag::PAYLOAD_LEN != 0;
    if said || header.command == command::WRITE { header.length_bytes } else { 0 }
}

/// Decides what `header` asks for of a volume of `size_bytes` (`None`: it was deleted). For a block status request with a payload,
/// `length_bytes` is the effect length.
pub(super) fn check(export: &Export, size_bytes: Option<u64>, header: &RequestHeader) -> Result<Command, Failure> {
    let Some(size_bytes) = size_bytes else {
        return Err(Failure { code: ErrorCode::Io, text: VolumeError::NoSuchVolume.to_string().into(), offset: None });
    };
    let invalid = |text| Err(Failure::new(ErrorCode::Invalid, text));
    let flag = |bit: u16| header.flags & bit != 0;
    let durable = flag(command_flag::FUA);
    let structured = export.style != ReplyStyle::Simple;
    let extended = export.style == ReplyStyle::Extended;
    let extended_payload = if extended { command_flag::PAYLOAD_LEN } else { 0 };
    let (command, flags) = match header.command {
        command::READ => {
            let unfragmented = flag(command_flag::DF);
            (Command::Read { unfragmented }, if structured { command_flag::DF } else { 0 })
        }
        command::WRITE => (Command::Write { durable }, extended_payload),
        command::FLUSH => (Command::Flush, 0),
        command::TRIM => (Command::Trim { durable }, 0),
        command::CACHE => (Command::Cache, 0),
        command::WRITE_ZEROES => {
            let may_free = !flag(command_flag::NO_HOLE);
            (Command::WriteZeroes { durable, may_free }, command_flag::NO_HOLE | command_flag::FAST_ZERO)
        }
        command::BLOCK_STATUS => {
            (Command::BlockStatus { one: flag(command_flag::REQ_ONE) }, command_flag::REQ_ONE | extended_payload)
        }
        _ => return invalid("this server does not know the command"),
    };
    if header.flags & !(flags | command_flag::FUA) != 0 {
        return invalid("the command does not have this flag");
    }
    check_range(export, size_bytes, header, command)?;
    Ok(command)
}

fn check_range(export: &Export, size_bytes: u64, header: &RequestHeader, command: Command) -> Result<(), Failure> {
    if command == Command::Flush {
        let zero = header.offset == 0 && header.length_bytes == 0;
        return if zero {
            Ok(())
        } else {
            Err(Failure::new(ErrorCode::Invalid, "a flush has neither offset nor length"))
        };
    }
    let end = header.offset.checked_add(header.length_bytes);
    if end.is_none_or(|end| end > size_bytes) {
        let code = if command.grows() { ErrorCode::NoSpace } else { ErrorCode::Invalid };
        return Err(Failure::new(code, "the range lies beyond the end of the volume"));
    }
    match command {
        Command::Read { .. } if header.length_bytes > u64::from(REQUEST_BYTES_MAX) => {
            let code = if export.style == ReplyStyle::Simple { ErrorCode::Invalid } else { ErrorCode::Overflow };
            Err(Failure::new(code, "a read is at most 32 MiB long"))
        }
        Command::BlockStatus { .. } if !export.allocation_context => {
            Err(Failure::new(ErrorCode::Invalid, "no metadata context is selected for this volume"))
        }
        Command::BlockStatus { .. } if header.length_bytes == 0 => {
            Err(Failure::new(ErrorCode::Invalid, "no status describes zero bytes"))
        }
        _ => Ok(()),
    }
}

/// Part `index` of a read or write of `range`: parts end at block boundaries, have at most [`CHANGE_BYTES_MAX`] bytes, and
/// touch no more blocks than that many bytes have.
pub(super) fn part(range: &Range<u64>, index: u16) -> Range<u64> {
    let base = range.start - range.start % BLOCK_BYTES;
    let cut = |index: u64| base.saturating_add(index * CHANGE_BYTES_MAX);
    let start = cut(u64::from(index)).max(range.start);
    start..cut(u64::from(index) + 1).min(range.end)
}

/// How many parts a read or write of `range` has.
pub(super) fn part_count(range: &Range<u64>) -> u16 {
    let base = range.start - range.start % BLOCK_BYTES;
    u16::try_from((range.end - base).div_ceil(CHANGE_BYTES_MAX)).expect("33 parts for the largest request")
}

const _: () = assert!(CHANGE_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
