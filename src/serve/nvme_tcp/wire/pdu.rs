//! Protocol data units (NVMe/TCP transport 1.0, section 3.6.2).
//!
//! ```text
//! common header (8) | rest of the header | [header digest (4)] | [padding] | [data] | [data digest (4)]
//! 0                   8            HLEN ^                                  ^ PDO                        ^ PLEN
//! ```

use std::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Bytes of the header that all units begin with.
pub const COMMON_BYTES: usize = 8;
/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;
/// Most bytes that one H2CData unit may carry: a whole transfer.
pub const HOST_DATA_BYTES_MAX: u32 = 1 << 20;
/// The host's alignment of data in units of four bytes, zero's based (HPDA): data begins at most 128 bytes into a unit.
const ALIGNMENT_MAX: u8 = 31;
/// Most bytes of a unit's header that a termination request repeats (section 3.6.2.4).
const TERMINATED_BYTES_MAX: usize = 128;

mod kind {
    pub(super) const IC_REQUEST: u8 = 0x00;
    pub(super) const IC_RESPONSE: u8 = 0x01;
    pub(super) const HOST_TERMINATES: u8 = 0x02;
    pub(super) const TERMINATE: u8 = 0x03;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const RESPONSE: u8 = 0x05;
    pub(super) const HOST_DATA: u8 = 0x06;
    pub(super) const DATA: u8 = 0x07;
    pub(super) const READY_TO_TRANSFER: u8 = 0x09;
}

mod flag {
    pub(super) const HEADER_DIGEST: u8 = 1 << 0;
    pub(super) const DATA_DIGEST: u8 = 1 << 1;
    pub(super) const LAST: u8 = 1 << 2;
    pub(super) const SUCCESS: u8 = 1 << 3;
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Common {
    kind: u8,
    flags: u8,
    header_bytes: u8,
    data_offset: u8,
    unit_bytes: U32,
}

/// ICReq and ICResp (sections 3.6.2.1 and 3.6.2.2).
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Initialization {
    common: Common,
    format: U16,
    /// HPDA of the host, CPDA of the controller.
    alignment: u8,
    digests: u8,
    /// MAXR2T of the host, MAXH2CDATA of the controller.
    max: U32,
    reserved: [u8; 112],
}

/// H2CTermReq and C2HTermReq without the header that they repeat (sections 3.6.2.3 and 3.6.2.4).
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Termination {
    common: Common,
    status: U16,
    information: U32,
    reserved: [u8; 10],
}

/// H2CData, C2HData and R2T (sections 3.6.2.7 to 3.6.2.9).
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Transfer {
    common: Common,
    command: U16,
    tag: U16,
    offset: U32,
    length: U32,
    reserved: [u8; 4],
}

const COMMAND_HEADER_BYTES: usize = COMMON_BYTES + 64;
const RESPONSE_BYTES: usize = COMMON_BYTES + 16;
const TRANSFER_BYTES: usize = size_of::<Transfer>();
const INITIALIZATION_BYTES: usize = size_of::<Initialization>();
const TERMINATION_BYTES: usize = size_of::<Termination>();

const _: () = assert!(size_of::<Common>() == COMMON_BYTES);
const _: () = assert!(INITIALIZATION_BYTES == 128);
const _: () = assert!(TERMINATION_BYTES == 24);
const _: () = assert!(TRANSFER_BYTES == 24);

/// What is wrong with a unit, so that the connection ends: the code in a termination request (FES, section 3.6.2.4), and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// The field at this byte of the header.
    InvalidHeader(u32),
    /// Not what may come now.
    Sequence,
    /// The header's digest is this and should not be.
    HeaderDigest(u32),
    /// Data that was not asked for.
    OutOfRange,
    /// More data than a unit may carry.
    LimitExceeded,
    /// A parameter at this byte that this target does not support.
    Unsupported(u32),
}

impl Fatal {
    fn code(self) -> (u16, u32) {
        match self {
            Self::InvalidHeader(at) => (1, at),
            Self::Sequence => (2, 0),
            Self::HeaderDigest(digest) => (3, digest),
            Self::OutOfRange => (4, 0),
            Self::LimitExceeded => (5, 0),
            Self::Unsupported(at) => (6, at),
        }
    }
}

/// What both ends have agreed on in the first exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Each header is followed by its digest.
    pub header_digest: bool,
    /// Data is followed by its digest.
    pub data_digest: bool,
    /// Units of four bytes at which data for the host begins, less one.
    pub alignment: u8,
}

/// What a unit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The host opens the connection.
    IcRequest(Agreement),
    /// A submission entry.
    Command([u8; 64]),
    /// Part of a transfer that was asked for.
    HostData {
        /// The command's id.
        command: u16,
        /// The tag of the request to transfer.
        tag: u16,
        /// Where in the command's data.
        offset: u32,
        /// Nothing more follows for this request to transfer.
        is_last: bool,
    },
    /// The host ends the connection for this reason (FES).
    HostTerminates(u16),
}

/// A unit without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What it is about.
    pub body: Body,
    /// Bytes up to its data, or of all of it if there is none.
    pub head_bytes: usize,
    /// Bytes of its data.
    pub data_bytes: u32,
    /// Whether a digest follows the data.
    pub has_data_digest: bool,
}

/// CRC-32C, as both digests are computed (section 3.6.1.1), carried on from `sum`; zero to begin.
#[must_use]
pub fn digest(sum: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, bytes)
}

/// The unit that `input` begins with, or `None` while its header has not come whole. `agreement`: what was agreed on; `None` before that, when only an
/// ICReq may come.
///
/// # Errors
/// The connection cannot go on.
pub fn parse(input: &[u8], agreement: Option<Agreement>) -> Result<Option<Unit>, Fatal> {
    let Ok((common, _)) = Common::read_from_prefix(input) else { return Ok(None) };
    let header_bytes = match (common.kind, agreement) {
        (kind::IC_REQUEST, None) => INITIALIZATION_BYTES,
        (kind::HOST_TERMINATES, _) => TERMINATION_BYTES,
        (kind::COMMAND, Some(_)) => COMMAND_HEADER_BYTES,
        (kind::HOST_DATA, Some(_)) => TRANSFER_BYTES,
        (kind::IC_REQUEST | kind::COMMAND | kind::HOST_DATA, _) => return Err(Fatal::Sequence),
        _ => return Err(Fatal::InvalidHeader(0)),
    };
    if usize::from(common.header_bytes) != header_bytes {
        return Err(Fatal::InvalidHeader(2));
    }
    if common.kind == kind::HOST_TERMINATES {
        return Ok(Termination::read_from_prefix(input).ok().map(|(unit, _)| Unit {
            body: Body::HostTerminates(unit.status.get()),
            head_bytes: TERMINATION_BYTES,
            data_bytes: 0,
            has_data_digest: false,
        }));
    }
    let agreement = agreement.unwrap_or_default();
    if (common.flags & flag::HEADER_DIGEST != 0) != agreement.header_digest {
        return Err(Fatal::InvalidHeader(1));
    }
    let frame = frame(&common, header_bytes, agreement)?;
    let Some(head) = input.get(..frame.head_bytes) else { return Ok(None) };
    if agreement.header_digest {
        check_header_digest(head, header_bytes)?;
    }
    Ok(Some(Unit { body: body(&common, head, frame.data_bytes)?, ..frame }))
}

/// Where the parts of a unit lie. Its body is filled in later.
fn frame(common: &Common, header_bytes: usize, agreement: Agreement) -> Result<Unit, Fatal> {
    let digest_bytes = if agreement.header_digest { DIGEST_BYTES } else { 0 };
    let (least_bytes, unit_bytes) = (header_bytes + digest_bytes, common.unit_bytes.get());
    let body = Body::HostTerminates(0);
    let data_offset = usize::from(common.data_offset);
    let has_data_digest = common.flags & flag::DATA_DIGEST != 0;
    if unit_bytes as usize == least_bytes {
        // PDO is reserved when there is no data: hosts send zero or the header's length.
        return match has_data_digest {
            true => Err(Fatal::InvalidHeader(1)),
            false => Ok(Unit { body, head_bytes: least_bytes, data_bytes: 0, has_data_digest }),
        };
    }
    if common.kind == kind::IC_REQUEST {
        return Err(Fatal::InvalidHeader(4));
    }
    if data_offset < least_bytes || !data_offset.is_multiple_of(4) {
        return Err(Fatal::InvalidHeader(3));
    }
    if has_data_digest != agreement.data_digest {
        return Err(Fatal::InvalidHeader(1));
    }
    let around_bytes = u32::from(common.data_offset) + if has_data_digest { 4 } else { 0 };
    match unit_bytes.checked_sub(around_bytes) {
        None | Some(0) => Err(Fatal::InvalidHeader(4)),
        Some(data_bytes) if data_bytes > HOST_DATA_BYTES_MAX => Err(Fatal::LimitExceeded),
        Some(data_bytes) => Ok(Unit { body, head_bytes: data_offset, data_bytes, has_data_digest }),
    }
}

fn check_header_digest(head: &[u8], header_bytes: usize) -> Result<(), Fatal> {
    let (header, rest) = head.split_at_checked(header_bytes).ok_or(Fatal::InvalidHeader(4))?;
    let (said, _) = U32::read_from_prefix(rest).map_err(|_| Fatal::InvalidHeader(4))?;
    let computed = digest(0, header);
    if said.get() == computed { Ok(()) } else { Err(Fatal::HeaderDigest(said.get())) }
}

fn body(common: &Common, head: &[u8], data_bytes: u32) -> Result<Body, Fatal> {
    let short = Fatal::InvalidHeader(4);
    match common.kind {
        kind::IC_REQUEST => {
            let (unit, _) = Initialization::read_from_prefix(head).map_err(|_| short)?;
            if unit.format.get() != 0 {
                return Err(Fatal::Unsupported(8));
            }
            if unit.alignment > ALIGNMENT_MAX {
                return Err(Fatal::InvalidHeader(10));
            }
            Ok(Body::IcRequest(Agreement {
                header_digest: unit.digests & flag::HEADER_DIGEST != 0,
                data_digest: unit.digests & flag::DATA_DIGEST != 0,
                alignment: unit.alignment,
            }))
        }
        kind::COMMAND => {
            let entry = head.get(COMMON_BYTES..COMMAND_HEADER_BYTES).and_then(|entry| entry.try_into().ok());
            entry.map(Body::Command).ok_or(short)
        }
        _ => {
            let (unit, _) = Transfer::read_from_prefix(head).map_err(|_| short)?;
            if unit.length.get() != data_bytes || data_bytes == 0 {
                return Err(Fatal::InvalidHeader(16));
            }
            Ok(Body::HostData {
                command: unit.command.get(),
                tag: unit.tag.get(),
                offset: unit.offset.get(),
                is_last: common.flags & flag::LAST != 0,
            })
        }
    }
}

fn common(kind: u8, flags: u8, header_bytes: usize, (data_offset, unit_bytes): (usize, u32)) -> Common {
    let small = |number: usize| u8::try_from(number).expect("headers are short");
    let (header_bytes, data_offset) = (small(header_bytes), small(data_offset));
    Common { kind, flags, header_bytes, data_offset, unit_bytes: U32::new(unit_bytes) }
}

fn length_of(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("headers are short")
}

/// Appends the header `unit`, and its digest if that was agreed on.
fn write_header(output: &mut Vec<u8>, agreement: Agreement, unit: &(impl IntoBytes + Immutable)) {
    output.extend_from_slice(unit.as_bytes());
    if agreement.header_digest {
        output.extend_from_slice(&digest(0, unit.as_bytes()).to_le_bytes());
    }
}

/// Appends an ICResp.
pub fn write_ic_response(output: &mut Vec<u8>, agreement: Agreement) {
    let bytes = INITIALIZATION_BYTES;
    let header_digest = if agreement.header_digest { flag::HEADER_DIGEST } else { 0 };
    let data_digest = if agreement.data_digest { flag::DATA_DIGEST } else { 0 };
    let unit = Initialization {
        common: common(kind::IC_RESPONSE, 0, bytes, (0, length_of(bytes))),
        format: U16::ZERO,
        alignment: 0,
        digests: header_digest | data_digest,
        max: U32::new(HOST_DATA_BYTES_MAX),
        reserved: [0; 112],
    };
    output.extend_from_slice(unit.as_bytes());
}

/// Appends a C2HTermReq; `head`: the unit that was wrong, as far as it has come.
pub fn write_termination(output: &mut Vec<u8>, fatal: Fatal, head: &[u8]) {
    let (status, information) = fatal.code();
    let repeated = head.get(..TERMINATED_BYTES_MAX).unwrap_or(head);
    let unit_bytes = length_of(TERMINATION_BYTES + repeated.len());
    let unit = Termination {
        common: common(kind::TERMINATE, 0, TERMINATION_BYTES, (0, unit_bytes)),
        status: U16::new(status),
        information: U32::new(information),
        reserved: [0; 10],
    };
    output.extend_from_slice(unit.as_bytes());
    output.extend_from_slice(repeated);
}

/// Flags of a unit whose header has a digest if that was agreed on, and that digest's bytes.
fn header_digest(agreement: Agreement) -> (u8, usize) {
    if agreement.header_digest { (flag::HEADER_DIGEST, DIGEST_BYTES) } else { (0, 0) }
}

/// Appends a CapsuleResp with a completion entry.
pub fn write_response(output: &mut Vec<u8>, agreement: Agreement, completion: &[u8; 16]) {
    #[derive(Immutable, IntoBytes)]
    #[repr(C)]
    struct Response {
        common: Common,
        completion: [u8; 16],
    }
    let (flags, digest_bytes) = header_digest(agreement);
    let unit_bytes = length_of(RESPONSE_BYTES + digest_bytes);
    let common = common(kind::RESPONSE, flags, RESPONSE_BYTES, (0, unit_bytes));
    write_header(output, agreement, &Response { common, completion: *completion });
}

/// Part of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The command's id.
    pub command: u16,
    /// Where in its data.
    pub offset: u32,
    /// How much.
    pub length: u32,
}

/// Appends an R2T: the host shall send this part under `tag`.
pub fn write_ready_to_transfer(output: &mut Vec<u8>, agreement: Agreement, tag: u16, part: Part) {
    let (flags, digest_bytes) = header_digest(agreement);
    let unit_bytes = length_of(TRANSFER_BYTES + digest_bytes);
    let unit = Transfer {
        common: common(kind::READY_TO_TRANSFER, flags, TRANSFER_BYTES, (0, unit_bytes)),
        command: U16::new(part.command),
        tag: U16::new(tag),
        offset: U32::new(part.offset),
        length: U32::new(part.length),
        reserved: [0; 4],
    };
    write_header(output, agreement, &unit);
}

/// Appends a C2HData up to its data: the last of its command. With `success` no response follows. The caller appends the data, and its digest if that was
/// agreed on.
pub fn write_data_header(output: &mut Vec<u8>, agreement: Agreement, part: Part, success: bool) {
    let (mut flags, digest_bytes) = header_digest(agreement);
    let align = 4 * (usize::from(agreement.alignment) + 1);
    let data_offset = (TRANSFER_BYTES + digest_bytes).next_multiple_of(align);
    flags |= flag::LAST | if success { flag::SUCCESS } else { 0 };
    let mut around_bytes = length_of(data_offset);
    if agreement.data_digest {
        flags |= flag::DATA_DIGEST;
        around_bytes += 4;
    }
    let unit = Transfer {
        common: common(kind::DATA, flags, TRANSFER_BYTES, (data_offset, around_bytes + part.length)),
        command: U16::new(part.command),
        tag: U16::ZERO,
        offset: U32::new(part.offset),
        length: U32::new(part.length),
        reserved: [0; 4],
    };
    write_header(output, agreement, &unit);
    output.resize(output.len() + data_offset - TRANSFER_BYTES - digest_bytes, 0);
}

#[cfg(test)]
mod tests;
