//! The bytes of the NBD protocol, and nothing else: no state, no input or output, no policy.
//!
//! Source of every number and layout is the protocol document (`doc/proto.md` of the reference implementation), and its branch
//! `extension-ext-header` for extended headers. Section names in quotes refer to it. All integers are big-endian.
//!
//! # Invariants
//!
//! 1. Parsers look only at bytes that are there: too few is `None`, never a panic, and nothing is allocated in proportion to a
//!    length that a client merely claims.
//! 2. Whatever a parser returns has been checked for syntax (magic, lengths, UTF-8); its meaning has not.
//! 3. Writers append to a buffer that the caller owns and empties, so a session in its stride allocates nothing.

#![deny(clippy::indexing_slicing)]

mod handshake;
mod message;

pub(super) use handshake::{
    CLIENT_FLAGS_BYTES, ExportRequest, InfoReply, OPTION_HEADER_BYTES, OptionHeader, greeting, option_reply,
    parse_client_flags, parse_export_request, parse_meta_context_request, parse_option_header, write_export_name_reply,
    write_info_reply, write_meta_context_reply, write_server_reply,
};
pub(super) use message::{
    ChunkHeader, ReplyStyle, RequestHeader, parse_payload_contexts, parse_request, write_block_status, write_done,
    write_error, write_hole, write_offset_data_header, write_simple,
};

/// "Handshake flags": the server speaks fixed newstyle.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// "Handshake flags": the server can leave out the 124 zeroes.
pub(super) const FLAG_NO_ZEROES: u16 = 1 << 1;
/// "Client flags": the client speaks fixed newstyle.
pub(super) const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// "Client flags": the client wants the 124 zeroes left out.
pub(super) const FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// "Transmission flags".
pub(super) mod export_flag {
    pub(in super::super) const HAS_FLAGS: u16 = 1 << 0;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const SEND_CACHE: u16 = 1 << 10;
    pub(in super::super) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(in super::super) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// "Option types".
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const STARTTLS: u32 = 5;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
    pub(in super::super) const EXTENDED_HEADERS: u32 = 11;
}

/// "Option reply types".
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(in super::super) const ERR_UNSUP: u32 = ERROR | 1;
    pub(in super::super) const ERR_POLICY: u32 = ERROR | 2;
    pub(in super::super) const ERR_INVALID: u32 = ERROR | 3;
    pub(in super::super) const ERR_UNKNOWN: u32 = ERROR | 6;
    pub(in super::super) const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub(in super::super) const ERR_TOO_BIG: u32 = ERROR | 9;
    pub(in super::super) const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// "Request types".
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const CACHE: u16 = 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// "Command flags".
pub(super) mod command_flag {
    pub(in super::super) const FUA: u16 = 1 << 0;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DF: u16 = 1 << 2;
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 4;
    pub(in super::super) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ErrorCode {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    Shutdown = 108,
}

/// "`base:allocation` metadata context": a hole.
pub(super) const STATE_HOLE: u32 = 1 << 0;
/// "`base:allocation` metadata context": reads as zeroes.
pub(super) const STATE_ZERO: u32 = 1 << 1;

/// "Conventions": no string is longer.
pub(super) const STRING_BYTES_MAX: usize = 4096;
