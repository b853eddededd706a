//! Negotiation with an NBD server: fixed newstyle with NBD_OPT_GO, or NBD_OPT_EXPORT_NAME where GO is unknown.
//!
//! Structured replies are not asked for: a load tool needs no holes in its reads, and simple replies cost less on both sides.
//! Blocking, over any stream with a time limit; every length from the server is bounded before it is believed.

use std::io::{ErrorKind, Read, Write};

use super::wire::{
    EXPORT_REPLY_BYTES, FIXED_NEWSTYLE, GREETING_BYTES, NO_ZEROES, OPT_EXPORT_NAME, OPT_GO, OPTION_REPLY_BYTES,
    REP_ACK, REP_ERR_UNSUP, REP_ERRORS, REP_INFO, WireError, decode_export, decode_greeting, decode_info,
    decode_option_reply, encode_go, encode_option, unknown_geometry,
};
use crate::engine::Geometry;

/// The longest data of an option reply that is read, in bytes: the protocol's string limit with room for the fields around it.
const REPLY_LIMIT: u32 = 8192;
/// The most replies to one option: a server may send a handful of infos.
const REPLIES_LIMIT: usize = 64;

/// Why an export could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Io(std::io::Error),
    #[error("it accepts the connection and does not answer: still starting, or hanging")]
    Silent,
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the server refuses export `{export}`: {reason}")]
    Refused { export: String, reason: String },
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // What a socket with a time limit says when the time is over.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

/// Opens `export` on a fresh connection; afterwards the stream is in the transmission phase.
pub(crate) fn negotiate(stream: &mut (impl Read + Write), export: &str) -> Result<Geometry, HandshakeError> {
    let flags = decode_greeting(&take::<GREETING_BYTES>(stream)?)?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(WireError("it does not speak fixed newstyle".to_owned()).into());
    }
    stream.write_all(&(FIXED_NEWSTYLE | flags & NO_ZEROES).to_be_bytes())?;
    stream.write_all(&encode_option(OPT_GO, &encode_go(export)))?;
    let mut geometry = unknown_geometry();
    let mut described = false;
    for _ in 0..REPLIES_LIMIT {
        let reply = decode_option_reply(&take::<OPTION_REPLY_BYTES>(stream)?, OPT_GO)?;
        if reply.length_bytes > REPLY_LIMIT {
            return Err(WireError(format!("an option reply of {} bytes", reply.length_bytes)).into());
        }
        let mut data = vec![0; usize::try_from(reply.length_bytes).expect("bounded above")];
        stream.read_exact(&mut data)?;
        match reply.kind {
            REP_INFO => described |= decode_info(&data, &mut geometry)?,
            REP_ACK if described => return Ok(geometry),
            REP_ACK => return Err(WireError("it opened the export without telling its size".to_owned()).into()),
            REP_ERR_UNSUP => return by_name(stream, export, flags),
            kind if kind >= REP_ERRORS => return Err(refusal(export, kind, &data)),
            kind => return Err(WireError(format!("an option reply of unknown type {kind}")).into()),
        }
    }
    Err(WireError(format!("more than {REPLIES_LIMIT} replies to one option")).into())
}

/// The way of servers that do not know NBD_OPT_GO; they hang up when the export does not exist.
fn by_name(stream: &mut (impl Read + Write), export: &str, flags: u32) -> Result<Geometry, HandshakeError> {
    stream.write_all(&encode_option(OPT_EXPORT_NAME, export.as_bytes()))?;
    let mut geometry = unknown_geometry();
    decode_export(&take::<EXPORT_REPLY_BYTES>(stream)?, &mut geometry)?;
    if flags & NO_ZEROES == 0 {
        take::<124>(stream)?;
    }
    Ok(geometry)
}

fn refusal(export: &str, kind: u32, text: &[u8]) -> HandshakeError {
    let meaning = match kind & 0xffff {
        2 => "forbidden by its policy",
        3 => "the request was invalid",
        5 => "it demands TLS, which is not supported",
        6 => "no such export",
        7 => "it is shutting down",
        8 => "it demands knowledge of block sizes",
        _ => "unknown reason",
    };
    let text = String::from_utf8_lossy(text);
    let reason = if text.is_empty() { meaning.to_owned() } else { format!("{meaning} ({})", text.escape_debug()) };
    HandshakeError::Refused { export: export.to_owned(), reason }
}

fn take<const N: usize>(stream: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{prng::Prng, units::index};

    /// A server that says `input` whatever it hears.
    struct Script(std::io::Cursor<Vec<u8>>);

    impl Read for Script {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn run(input: &[u8]) -> Result<Geometry, HandshakeError> {
        negotiate(&mut Script(std::io::Cursor::new(input.to_vec())), "vol")
    }

    fn greeting(flags: u16) -> Vec<u8> {
        [b"NBDMAGICIHAVEOPT".as_slice(), &flags.to_be_bytes()].concat()
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap();
        [
            0x0003_e889_0455_65a9_u64.to_be_bytes().as_slice(),
            &7_u32.to_be_bytes(),
            &kind.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ]
        .concat()
    }

    fn export_info(size: u64) -> Vec<u8> {
        [[0, 0].as_slice(), &size.to_be_bytes(), &1_u16.to_be_bytes()].concat()
    }

    #[test]
    fn go_and_export_name_both_open_an_export() {
        let go = [greeting(3), reply(REP_INFO, &export_info(1 << 30)), reply(REP_ACK, &[])].concat();
        assert_eq!(run(&go).unwrap().size_bytes, 1 << 30);
        let plain = [8192_u64.to_be_bytes().as_slice(), &1_u16.to_be_bytes()].concat();
        let old = [greeting(3), reply(REP_ERR_UNSUP, b"what?"), plain.clone()].concat();
        assert_eq!(run(&old).unwrap().size_bytes, 8192);
        let padded = [greeting(1), reply(REP_ERR_UNSUP, &[]), plain, vec![0; 124]].concat();
        assert_eq!(run(&padded).unwrap().size_bytes, 8192);
        assert!(run(&padded[..padded.len() - 1]).is_err());
    }

    #[test]
    fn refusals_and_endless_answers_end() {
        let refused = run(&[greeting(3), reply(0x8000_0006, b"gone\n")].concat()).unwrap_err().to_string();
        assert_eq!(refused, "the server refuses export `vol`: no such export (gone\\n)");
        let endless = [greeting(3), reply(REP_INFO, &export_info(1)).repeat(65)].concat();
        assert!(run(&endless).unwrap_err().to_string().contains("more than 64"));
        assert!(run(&[greeting(3), reply(REP_ACK, &[])].concat()).is_err());
        assert!(run(&greeting(0)).is_err());
        let at_the_bound = [greeting(3), reply(0x8000_0002, &[b'x'; 8192])].concat();
        assert!(matches!(run(&at_the_bound), Err(HandshakeError::Refused { .. })));
        let beyond = [greeting(3), reply(0x8000_0002, &[b'x'; 8193])].concat();
        assert!(matches!(run(&beyond), Err(HandshakeError::Wire(_))));
    }

    #[test]
    fn garbage_and_every_flipped_bit_end_without_a_panic() {
        let good = [greeting(3), reply(REP_INFO, &export_info(1 << 30)), reply(REP_ACK, &[])].concat();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = run(&bytes);
        }
        let mut prng = Prng::new(3);
        for _ in 0..5000 {
            let mut bytes = good.clone();
            let from = index(prng.below(bytes.len() as u64));
            prng.fill(&mut bytes[from..]);
            let _ = run(&bytes);
        }
    }
}
