//! Messages of the handshake.

use super::{FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, STRING_BYTES_MAX, reply};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of the client's answer to the greeting.
pub(crate) const CLIENT_FLAGS_BYTES: usize = 4;
/// Bytes before an option's data.
pub(crate) const OPTION_HEADER_BYTES: usize = size_of::<OptionHeaderBytes>();
/// Zeroes after the reply to `NBD_OPT_EXPORT_NAME`, unless the client asked to leave them out.
const EXPORT_NAME_ZEROES: usize = 124;

const INFO_EXPORT: u16 = 0;
/// Information request: the canonical name.
const INFO_NAME: u16 = 1;
/// Information request: a text for people.
const INFO_DESCRIPTION: u16 = 2;
/// Information request: size constraints.
const INFO_BLOCK_SIZE: u16 = 3;

#[derive(Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct GreetingBytes {
    init_magic: U64,
    option_magic: U64,
    flags: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OptionHeaderBytes {
    magic: U64,
    option: U32,
    length: U32,
}

#[derive(Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct OptionReplyBytes {
    magic: U64,
    option: U32,
    kind: U32,
    length: U32,
}

const _: () = assert!(size_of::<GreetingBytes>() == 18);
const _: () = assert!(OPTION_HEADER_BYTES == 16);
const _: () = assert!(size_of::<OptionReplyBytes>() == 20);

/// What the server says first.
pub(crate) fn greeting() -> [u8; 18] {
    let bytes = GreetingBytes {
        init_magic: INIT_MAGIC.into(),
        option_magic: OPTION_MAGIC.into(),
        flags: (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).into(),
    };
    zerocopy::transmute!(bytes)
}

/// The client's flags, once its four bytes are there.
pub(crate) fn parse_client_flags(input: &[u8]) -> Option<u32> {
    U32::read_from_prefix(input).ok().map(|(flags, _)| flags.get())
}

/// An option's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub(crate) option: u32,
    /// Bytes of data that follow.
    pub(crate) length_bytes: u32,
}

/// Bytes that are not an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadOption;

/// The header at the start of `input`, once its 16 bytes are there.
pub(crate) fn parse_option_header(input: &[u8]) -> Result<Option<OptionHeader>, BadOption> {
    let Ok((header, _)) = OptionHeaderBytes::read_from_prefix(input) else { return Ok(None) };
    if header.magic.get() != OPTION_MAGIC {
        return Err(BadOption);
    }
    Ok(Some(OptionHeader { option: header.option.get(), length_bytes: header.length.get() }))
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_description: bool,
    pub(crate) wants_block_size: bool,
}

/// Parses the whole data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) fn parse_export_request(data: &[u8]) -> Option<ExportRequest<'_>> {
    let (name, rest) = parse_string(data)?;
    let (count, rest) = U16::read_from_prefix(rest).ok()?;
    let requests = <[U16]>::ref_from_bytes(rest).ok()?;
    if requests.len() != usize::from(count.get()) {
        return None;
    }
    let wants = |kind: u16| requests.iter().any(|request| request.get() == kind);
    Some(ExportRequest {
        name,
        wants_name: wants(INFO_NAME),
        wants_description: wants(INFO_DESCRIPTION),
        wants_block_size: wants(INFO_BLOCK_SIZE),
    })
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`, reduced to what can matter: there is one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetaContextRequest<'a> {
    pub(crate) name: &'a str,
    /// How many queries there were.
    pub(crate) query_count: u32,
    /// One of them was `base:allocation`.
    pub(crate) allocation: bool,
    /// One of them was `base:`, the wildcard.
    pub(crate) base_wildcard: bool,
}

/// The name of the one metadata context.
const ALLOCATION_CONTEXT: &str = "base:allocation";

/// Parses the whole data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) fn parse_meta_context_request(data: &[u8]) -> Option<MetaContextRequest<'_>> {
    let (name, rest) = parse_string(data)?;
    let (count, mut rest) = U32::read_from_prefix(rest).ok()?;
    let mut request = MetaContextRequest { name, query_count: count.get(), allocation: false, base_wildcard: false };
    for _ in 0..count.get() {
        // Ends at the first query that is not there: a count that lies costs nothing.
        let (query, after) = parse_string(rest)?;
        request.allocation |= query == ALLOCATION_CONTEXT;
        request.base_wildcard |= query == "base:";
        rest = after;
    }
    rest.is_empty().then_some(request)
}

/// A string with its length before it.
fn parse_string(data: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = U32::read_from_prefix(data).ok()?;
    let length = usize::try_from(length.get()).ok()?;
    if length > STRING_BYTES_MAX {
        return None;
    }
    let (string, rest) = rest.split_at_checked(length)?;
    Some((str::from_utf8(string).ok().filter(|string| !string.contains('\0'))?, rest))
}

/// Appends a reply to `option` with `data`.
pub(crate) fn option_reply(output: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("replies are made of a name, a text and a few integers");
    let header = OptionReplyBytes {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        length: length.into(),
    };
    output.extend_from_slice(header.as_bytes());
    for part in data {
        output.extend_from_slice(part);
    }
}

/// Appends an entry of the list of exports.
pub(crate) fn write_server_reply(output: &mut Vec<u8>, option: u32, name: &str, description: &str) {
    let length = U32::new(u32::try_from(name.len()).expect("names are short"));
    option_reply(output, option, reply::SERVER, &[length.as_bytes(), name.as_bytes(), description.as_bytes()]);
}

/// One piece of information about an export.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InfoReply<'a> {
    Export { size_bytes: u64, flags: u16 },
    Name(&'a str),
    Description(&'a str),
    BlockSize { min_bytes: u32, preferred_bytes: u32, payload_bytes_max: u32 },
}

/// Appends a piece of information about an export.
pub(crate) fn write_info_reply(output: &mut Vec<u8>, option: u32, info: InfoReply<'_>) {
    let mut write = |kind: u16, data: &[&[u8]]| {
        let kind = U16::new(kind);
        let mut parts = vec![kind.as_bytes()];
        parts.extend_from_slice(data);
        option_reply(output, option, reply::INFO, &parts);
    };
    match info {
        InfoReply::Export { size_bytes, flags } => {
            write(INFO_EXPORT, &[U64::new(size_bytes).as_bytes(), U16::new(flags).as_bytes()]);
        }
        InfoReply::Name(name) => write(INFO_NAME, &[name.as_bytes()]),
        InfoReply::Description(text) => write(INFO_DESCRIPTION, &[text.as_bytes()]),
        InfoReply::BlockSize { min_bytes, preferred_bytes, payload_bytes_max } => {
            let sizes = [U32::new(min_bytes), U32::new(preferred_bytes), U32::new(payload_bytes_max)];
            write(INFO_BLOCK_SIZE, &[sizes.as_bytes()]);
        }
    }
}

/// Appends the one metadata context under `context`.
pub(crate) fn write_meta_context_reply(output: &mut Vec<u8>, option: u32, context: u32) {
    option_reply(output, option, reply::META_CONTEXT, &[U32::new(context).as_bytes(), ALLOCATION_CONTEXT.as_bytes()]);
}

/// Appends the reply to `NBD_OPT_EXPORT_NAME`.
pub(crate) fn write_export_name_reply(output: &mut Vec<u8>, size_bytes: u64, flags: u16, zeroes: bool) {
    output.extend_from_slice(U64::new(size_bytes).as_bytes());
    output.extend_from_slice(U16::new(flags).as_bytes());
    if zeroes {
        output.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
    }
}
