//! The bytes of the NBD protocol that this client speaks: fixed newstyle negotiation and simple replies. Pure functions.
//!
//! Section names in comments are those of the protocol document (`doc/proto.md` of the NBD project).

use crate::engine::{Geometry, Kind, Request};

/// Length of a request header ("Request message").
pub(crate) const REQUEST_BYTES: usize = 28;
/// Length of a reply header ("Simple reply message").
pub(crate) const REPLY_BYTES: usize = 16;
/// Length of the server's greeting ("Newstyle negotiation").
pub(crate) const GREETING_BYTES: usize = 18;
/// Length of an option reply's header.
pub(crate) const OPTION_REPLY_BYTES: usize = 20;
/// The answer to NBD_OPT_EXPORT_NAME, without the 124 zeroes that NBD_FLAG_NO_ZEROES leaves away.
pub(crate) const EXPORT_REPLY_BYTES: usize = 10;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// Every option reply type from here on is an error.
pub(crate) const REP_ERRORS: u32 = 0x8000_0000;
/// NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES, of the server's greeting and of the client's answer.
pub(crate) const FIXED_NEWSTYLE: u32 = 1;
pub(crate) const NO_ZEROES: u32 = 2;
/// NBD_ESHUTDOWN: the server is going away; the request was not done.
pub(crate) const SHUTDOWN: i32 = 108;

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const CMD_FLAG_FUA: u16 = 1;
const CMD_DISC: u16 = 2;
/// What a server that says nothing must take, and what it must not be asked beyond ("Block size constraints").
const DEFAULT_REQUEST_LIMIT: u64 = 32 << 20;

/// Bytes from the server that are not what the protocol allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke the NBD protocol: {0}")]
pub(crate) struct WireError(pub(crate) String);

/// A simple reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) errno: i32,
    pub(crate) cookie: u64,
}

/// An option reply's header; `length_bytes` of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) length_bytes: u32,
}

/// Checks the greeting and gives the server's handshake flags.
pub(crate) fn decode_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<u32, WireError> {
    let mut fields = Fields(bytes);
    if fields.u64()? != GREETING_MAGIC {
        return Err(WireError("no NBD magic in its greeting: is this an NBD server?".to_owned()));
    }
    if fields.u64()? != OPTION_MAGIC {
        return Err(WireError("it speaks the oldstyle negotiation, which is not supported".to_owned()));
    }
    Ok(u32::from(fields.u16()?))
}

/// An option with its data ("Option haggling").
pub(crate) fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("option data is short").to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of NBD_OPT_GO: the export's name and the wish to be told block sizes.
pub(crate) fn encode_go(export: &str) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).expect("export names are bounded").to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(1_u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// Reads the header of an answer to `option`.
pub(crate) fn decode_option_reply(bytes: &[u8; OPTION_REPLY_BYTES], option: u32) -> Result<OptionReply, WireError> {
    let mut fields = Fields(bytes);
    if fields.u64()? != OPTION_REPLY_MAGIC || fields.u32()? != option {
        return Err(WireError("an option reply that answers no option".to_owned()));
    }
    Ok(OptionReply { kind: fields.u32()?, length_bytes: fields.u32()? })
}

/// Reads one information block of NBD_REP_INFO into `geometry`; true when it was NBD_INFO_EXPORT.
pub(crate) fn decode_info(data: &[u8], geometry: &mut Geometry) -> Result<bool, WireError> {
    let mut fields = Fields(data);
    match fields.u16()? {
        INFO_EXPORT => {
            export(&mut fields, geometry)?;
            Ok(true)
        }
        INFO_BLOCK_SIZE => {
            let (minimum, _preferred, maximum) = (fields.u32()?, fields.u32()?, fields.u32()?);
            if !minimum.is_power_of_two() || minimum > 65_536 || maximum < minimum {
                return Err(WireError(format!("impossible block sizes: minimum {minimum}, maximum {maximum}")));
            }
            geometry.block_bytes = u64::from(minimum);
            geometry.request_limit_bytes = u64::from(maximum).min(DEFAULT_REQUEST_LIMIT);
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Reads the answer to NBD_OPT_EXPORT_NAME.
pub(crate) fn decode_export(bytes: &[u8; EXPORT_REPLY_BYTES], geometry: &mut Geometry) -> Result<(), WireError> {
    export(&mut Fields(bytes), geometry)
}

/// What is known of an export before the server speaks of it.
pub(crate) fn unknown_geometry() -> Geometry {
    Geometry {
        size_bytes: 0,
        block_bytes: 1,
        request_limit_bytes: DEFAULT_REQUEST_LIMIT,
        read_only: false,
        can_flush: false,
        can_fua: false,
        can_trim: false,
        can_zero: false,
        multi_conn: false,
    }
}

/// A request's header.
pub(crate) fn encode_request(request: &Request, cookie: u64) -> [u8; REQUEST_BYTES] {
    let kind = match request.kind {
        Kind::Read => 0,
        Kind::Write => 1,
        Kind::Flush => 3,
        Kind::Trim => 4,
        Kind::Zero => 6,
    };
    let flags = if request.fua { CMD_FLAG_FUA } else { 0 };
    request_header(flags, kind, cookie, (request.offset, request.length))
}

/// NBD_CMD_DISC: the client goes.
pub(crate) fn encode_disconnect() -> [u8; REQUEST_BYTES] {
    request_header(0, CMD_DISC, 0, (0, 0))
}

/// Reads a reply's header.
pub(crate) fn decode_reply(bytes: &[u8; REPLY_BYTES]) -> Result<Reply, WireError> {
    let mut fields = Fields(bytes);
    let magic = fields.u32()?;
    if magic != REPLY_MAGIC {
        return Err(WireError(format!("a reply with magic {magic:#010x} instead of {REPLY_MAGIC:#010x}")));
    }
    // An error number beyond 2^31 is still an error: only zero is success.
    let errno = i32::try_from(fields.u32()?).unwrap_or(i32::MAX);
    Ok(Reply { errno, cookie: fields.u64()? })
}

fn request_header(flags: u16, kind: u16, cookie: u64, (offset, length): (u64, u64)) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&u32::try_from(length).expect("requests are at most 32 MiB").to_be_bytes());
    bytes
}

/// Export size and transmission flags ("Transmission flags").
fn export(fields: &mut Fields<'_>, geometry: &mut Geometry) -> Result<(), WireError> {
    let (size_bytes, flags) = (fields.u64()?, fields.u16()?);
    if size_bytes > 1 << 62 {
        return Err(WireError(format!("an export of {size_bytes} bytes")));
    }
    let has = |bit: u16| flags & 1 != 0 && flags & bit != 0;
    geometry.size_bytes = size_bytes;
    geometry.read_only = has(2);
    geometry.can_flush = has(4);
    geometry.can_fua = has(8);
    geometry.can_trim = has(32);
    geometry.can_zero = has(64);
    geometry.multi_conn = has(256);
    Ok(())
}

/// Reads big-endian fields one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) =
            self.0.split_first_chunk().ok_or_else(|| WireError("a message that is too short".to_owned()))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.take().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let request = Request { slot: 0, kind: Kind::Write, fua: true, offset: 0x1122, length: 512 };
        let bytes = encode_request(&request, 0x0102_0304_0506_0708);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..], [0, 0, 0, 0, 0, 0, 0x11, 0x22, 0, 0, 2, 0]);
    }

    #[test]
    fn replies_are_read_and_a_wrong_magic_is_refused() {
        let mut bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(decode_reply(&bytes), Ok(Reply { errno: 28, cookie: 9 }));
        bytes[4] = 0xff;
        assert_eq!(decode_reply(&bytes).map(|reply| reply.errno), Ok(i32::MAX));
        bytes[3] ^= 1;
        assert!(decode_reply(&bytes).is_err());
    }

    #[test]
    fn flags_count_only_with_has_flags() {
        let mut geometry = unknown_geometry();
        let mut bytes = [0, 0, 0, 0, 0, 0, 16, 0, 1, 0b0110_1101];
        decode_export(&bytes, &mut geometry).unwrap();
        assert!(geometry.size_bytes == 4096 && geometry.can_flush && geometry.can_fua && geometry.can_trim);
        assert!(geometry.can_zero && geometry.multi_conn && !geometry.read_only);
        bytes[9] &= !1;
        decode_export(&bytes, &mut geometry).unwrap();
        assert!(!geometry.can_flush && !geometry.multi_conn);
    }

    #[test]
    fn impossible_block_sizes_and_short_infos_are_refused() {
        let info = |min: u32, max: u32| {
            let fields = [min.to_be_bytes(), 4096_u32.to_be_bytes(), max.to_be_bytes()].concat();
            decode_info(&[&[0, 3], fields.as_slice()].concat(), &mut unknown_geometry())
        };
        assert!(info(1, 1).is_ok() && info(512, u32::MAX).is_ok() && info(65_536, 65_536).is_ok());
        assert!(
            info(0, 512).is_err()
                && info(3, 512).is_err()
                && info(131_072, 262_144).is_err()
                && info(4096, 512).is_err()
        );
        let whole = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode_info(&whole, &mut unknown_geometry()), Ok(true));
        assert!((0..12).all(|length| decode_info(&whole[..length], &mut unknown_geometry()).is_err()));
    }
}
