//! Messages of the transmission phase.

use super::{ErrorCode, STATE_HOLE, STATE_ZERO, STRING_BYTES_MAX};
use crate::node::request::Extent;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

const REPLY_FLAG_DONE: u16 = 1 << 0;

const REPLY_NONE: u16 = 0;
const REPLY_OFFSET_DATA: u16 = 1;
const REPLY_OFFSET_HOLE: u16 = 2;
const REPLY_BLOCK_STATUS: u16 = 5;
const REPLY_BLOCK_STATUS_EXT: u16 = 6;
const REPLY_ERROR: u16 = (1 << 15) | 1;
const REPLY_ERROR_OFFSET: u16 = (1 << 15) | 2;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestBytes {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedRequestBytes {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

#[derive(Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct SimpleReplyBytes {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct StructuredReplyBytes {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

#[derive(Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct ExtendedReplyBytes {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

const _: () = assert!(size_of::<RequestBytes>() == 28);
const _: () = assert!(size_of::<ExtendedRequestBytes>() == 32);
const _: () = assert!(size_of::<SimpleReplyBytes>() == 16);
const _: () = assert!(size_of::<StructuredReplyBytes>() == 20);
const _: () = assert!(size_of::<ExtendedReplyBytes>() == 32);

/// Which messages a session has negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// A request's header, whichever its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length_bytes: u64,
}

/// Bytes that are not a request of the negotiated form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRequest;

impl ReplyStyle {
    /// Bytes of a request's header.
    pub(crate) const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => size_of::<RequestBytes>(),
            Self::Extended => size_of::<ExtendedRequestBytes>(),
        }
    }
}

/// The request at the start of `input`, once its header is there.
pub(crate) fn parse_request(style: ReplyStyle, input: &[u8]) -> Result<Option<RequestHeader>, BadRequest> {
    let (magic, expected, header) = match style {
        ReplyStyle::Simple | ReplyStyle::Structured => {
            let Ok((bytes, _)) = RequestBytes::read_from_prefix(input) else { return Ok(None) };
            let header = RequestHeader {
                flags: bytes.flags.get(),
                command: bytes.command.get(),
                cookie: bytes.cookie.get(),
                offset: bytes.offset.get(),
                length_bytes: u64::from(bytes.length.get()),
            };
            (bytes.magic.get(), REQUEST_MAGIC, header)
        }
        ReplyStyle::Extended => {
            let Ok((bytes, _)) = ExtendedRequestBytes::read_from_prefix(input) else { return Ok(None) };
            let header = RequestHeader {
                flags: bytes.flags.get(),
                command: bytes.command.get(),
                cookie: bytes.cookie.get(),
                offset: bytes.offset.get(),
                length_bytes: bytes.length.get(),
            };
            (bytes.magic.get(), EXTENDED_REQUEST_MAGIC, header)
        }
    };
    if magic == expected { Ok(Some(header)) } else { Err(BadRequest) }
}

/// The whole payload of an extended block status request: the effect length and the contexts it is limited to.
pub(crate) fn parse_payload_contexts(payload: &[u8]) -> Option<(u64, &[U32])> {
    let (length, contexts) = U64::read_from_prefix(payload).ok()?;
    Some((length.get(), <[U32]>::ref_from_bytes(contexts).ok()?))
}

/// What all chunks of a reply have in common, taken from its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkHeader {
    pub(crate) style: ReplyStyle,
    pub(crate) cookie: u64,
    /// The request's offset: extended replies repeat it.
    pub(crate) offset: u64,
}

impl ChunkHeader {
    fn write(self, output: &mut Vec<u8>, kind: u16, done: bool, length: u32) {
        let flags = U16::new(if done { REPLY_FLAG_DONE } else { 0 });
        match self.style {
            ReplyStyle::Simple => unreachable!("simple replies have no chunks"),
            ReplyStyle::Structured => {
                let bytes = StructuredReplyBytes {
                    magic: STRUCTURED_REPLY_MAGIC.into(),
                    flags,
                    kind: kind.into(),
                    cookie: self.cookie.into(),
                    length: length.into(),
                };
                output.extend_from_slice(bytes.as_bytes());
            }
            ReplyStyle::Extended => {
                let bytes = ExtendedReplyBytes {
                    magic: EXTENDED_REPLY_MAGIC.into(),
                    flags,
                    kind: kind.into(),
                    cookie: self.cookie.into(),
                    offset: self.offset.into(),
                    length: u64::from(length).into(),
                };
                output.extend_from_slice(bytes.as_bytes());
            }
        }
    }
}

/// Appends a simple reply; zero is success. The data of a read follows it.
pub(crate) fn write_simple(output: &mut Vec<u8>, cookie: u64, error: Option<ErrorCode>) {
    let error = error.map_or(0, |code| code as u32);
    let bytes = SimpleReplyBytes { magic: SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() };
    output.extend_from_slice(bytes.as_bytes());
}

/// Appends a last chunk that says nothing but success.
pub(crate) fn write_done(output: &mut Vec<u8>, chunk: ChunkHeader) {
    chunk.write(output, REPLY_NONE, true, 0);
}

/// Appends the head of a data chunk; `length` bytes of data follow it.
pub(crate) fn write_offset_data_header(output: &mut Vec<u8>, chunk: ChunkHeader, done: bool, offset: u64, length: u32) {
    chunk.write(output, REPLY_OFFSET_DATA, done, length + 8);
    output.extend_from_slice(U64::new(offset).as_bytes());
}

/// Appends a chunk that stands for `length` zeroes.
pub(crate) fn write_hole(output: &mut Vec<u8>, chunk: ChunkHeader, done: bool, offset: u64, length: u32) {
    chunk.write(output, REPLY_OFFSET_HOLE, done, 12);
    output.extend_from_slice(U64::new(offset).as_bytes());
    output.extend_from_slice(U32::new(length).as_bytes());
}

/// Appends a last chunk with the allocation of consecutive ranges, as many as the caller bounds.
pub(crate) fn write_block_status(output: &mut Vec<u8>, chunk: ChunkHeader, context: u32, extents: &[Extent]) {
    let count = u32::try_from(extents.len()).expect("the caller bounds the extents");
    let state = |extent: &Extent| if extent.allocated { 0 } else { STATE_HOLE | STATE_ZERO };
    if chunk.style == ReplyStyle::Extended {
        chunk.write(output, REPLY_BLOCK_STATUS_EXT, true, 8 + 16 * count);
        output.extend_from_slice([U32::new(context), U32::new(count)].as_bytes());
        for extent in extents {
            let status = U64::new(u64::from(state(extent)));
            output.extend_from_slice([U64::new(extent.length_bytes), status].as_bytes());
        }
    } else {
        chunk.write(output, REPLY_BLOCK_STATUS, true, 4 + 8 * count);
        output.extend_from_slice(U32::new(context).as_bytes());
        for extent in extents {
            let length = u32::try_from(extent.length_bytes).expect("no extent is longer than a compact request");
            output.extend_from_slice([U32::new(length), U32::new(state(extent))].as_bytes());
        }
    }
}

/// Appends a last chunk with an error, its text for people, and the byte of the export where it happened, if one is known.
pub(crate) fn write_error(output: &mut Vec<u8>, chunk: ChunkHeader, error: ErrorCode, text: &str, offset: Option<u64>) {
    let text = shorten(text);
    let text_bytes = u16::try_from(text.len()).expect("cut to 4096 bytes");
    let (kind, fixed_bytes) = if offset.is_some() { (REPLY_ERROR_OFFSET, 14) } else { (REPLY_ERROR, 6) };
    chunk.write(output, kind, true, fixed_bytes + u32::from(text_bytes));
    output.extend_from_slice(U32::new(error as u32).as_bytes());
    output.extend_from_slice(U16::new(text_bytes).as_bytes());
    output.extend_from_slice(text.as_bytes());
    if let Some(offset) = offset {
        output.extend_from_slice(U64::new(offset).as_bytes());
    }
}

/// As much of `text` as a string of the protocol may hold.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
