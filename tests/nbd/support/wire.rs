//! The protocol's bytes, from its document and not from the server's codec.

/// Which messages were negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ESHUTDOWN: u32 = 108;

pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;
pub(crate) const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// Concatenates parts of a message.
macro_rules! bytes {
    ($($part:expr),* $(,)?) => {{
        let mut all: Vec<u8> = Vec::new();
        $(all.extend_from_slice(&$part[..]);)*
        all
    }};
}
pub(crate) use bytes;

pub(crate) fn u16be(number: u16) -> [u8; 2] {
    number.to_be_bytes()
}

pub(crate) fn u32be(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

pub(crate) fn u64be(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(crate) fn length(bytes: &[u8]) -> [u8; 4] {
    u32be(u32::try_from(bytes.len()).expect("short"))
}

/// `NBDMAGIC`, `IHAVEOPT`, fixed newstyle and no zeroes.
pub(crate) fn greeting() -> Vec<u8> {
    bytes![b"NBDMAGIC", b"IHAVEOPT", u16be(3)]
}

pub(crate) fn client_flags(flags: u32) -> Vec<u8> {
    u32be(flags).to_vec()
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    bytes![b"IHAVEOPT", u32be(option), length(data), data]
}

pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    bytes![[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9], u32be(option), u32be(kind), length(data), data]
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) fn go(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = bytes![length(name.as_bytes()), name.as_bytes(), u16be(u16::try_from(requests.len()).expect("few"))];
    requests.iter().for_each(|&request| data.extend(u16be(request)));
    data
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32be(u32::try_from(queries.len()).expect("few"));
    let mut data = bytes![length(name.as_bytes()), name.as_bytes(), count];
    for query in queries {
        data.extend(bytes![length(query.as_bytes()), query.as_bytes()]);
    }
    data
}

/// A compact request.
pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    bytes![u32be(0x2560_9513), u16be(flags), u16be(command), u64be(cookie), u64be(offset), u32be(length)]
}

/// An extended request.
pub(crate) fn extended_request(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    bytes![u32be(0x21e4_1c71), u16be(flags), u16be(command), u64be(cookie), u64be(offset), u64be(length)]
}

/// A compact write.
pub(crate) fn write(flags: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::from_be_bytes(length(payload));
    bytes![request(flags, WRITE, cookie, offset, length), payload]
}

/// A simple reply.
pub(crate) fn simple(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    bytes![u32be(0x6744_6698), u32be(error), u64be(cookie), data]
}

/// A structured chunk.
pub(crate) fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    bytes![u32be(0x668e_33ef), u16be(u16::from(done)), u16be(kind), u64be(cookie), length(payload), payload]
}

/// An extended chunk.
pub(crate) fn extended_chunk(done: bool, kind: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let size = u64::from(u32::from_be_bytes(length(payload)));
    bytes![u32be(0x6e8a_278c), u16be(u16::from(done)), u16be(kind), u64be(cookie), u64be(offset), u64be(size), payload]
}

pub(crate) const NONE: u16 = 0;
pub(crate) const OFFSET_DATA: u16 = 1;
pub(crate) const OFFSET_HOLE: u16 = 2;
pub(crate) const STATUS: u16 = 5;
pub(crate) const STATUS_EXT: u16 = 6;
pub(crate) const ERROR: u16 = 0x8001;
pub(crate) const ERROR_OFFSET: u16 = 0x8002;

/// Payload of a data chunk.
pub(crate) fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    bytes![u64be(offset), bytes]
}

/// Payload of a hole chunk.
pub(crate) fn hole(offset: u64, length: u32) -> Vec<u8> {
    bytes![u64be(offset), u32be(length)]
}

/// Payload of an error chunk.
pub(crate) fn error(code: u32, text: &str) -> Vec<u8> {
    bytes![u32be(code), u16be(u16::try_from(text.len()).expect("short")), text.as_bytes()]
}
