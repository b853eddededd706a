//! An NBD client that sends what it is told, several requests at a time, and says exactly what came back.
//!
//! It shares no code with the server or with `twinlog-load`, so that a misreading of the protocol shows.

use super::PATIENCE;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

/// The protocol's number for each command.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;

/// Flags of an extent in `base:allocation`.
pub(crate) const HOLE: u32 = 1;
pub(crate) const ZERO: u32 = 2;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;
pub(crate) const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR_BIT: u16 = 1 << 15;
pub(crate) const CHUNK_DONE: u16 = 1;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) data: Vec<u8>,
}

/// The whole reply to one request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// Zero for success.
    pub(crate) error: u32,
    /// Pieces of a read by offset; a hole is a run of zeroes.
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
    /// Extents of `base:allocation`.
    pub(crate) extents: Vec<(u32, u32)>,
}

/// A connection in the transmission phase.
pub(crate) struct Client {
    stream: UnixStream,
}

type Outcome<T> = Result<T, String>;

fn word16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes[..2].try_into().expect("two bytes"))
}

fn word32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn word64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn length32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_be_bytes()
}

impl Client {
    /// Connects to `export`, with structured replies and `base:allocation`.
    pub(crate) fn connect(socket: &Path, export: &str, size_bytes: u64) -> Outcome<Self> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let mut client = Self { stream };
        let greeting = client.take(18)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(format!("greeting {greeting:?}"));
        }
        client.give(&3_u32.to_be_bytes())?;
        client.option(8, &[])?;
        let name = [&length32(export.as_bytes())[..], export.as_bytes()].concat();
        let query = b"base:allocation";
        let contexts = client.option(10, &[&name[..], &1_u32.to_be_bytes(), &length32(query), query].concat())?;
        if !contexts.iter().any(|(kind, data)| *kind == 4 && data.ends_with(query)) {
            return Err("base:allocation is not offered".to_owned());
        }
        let infos = client.option(7, &[&name[..], &[0, 0]].concat())?;
        let export = infos.iter().find(|(kind, data)| *kind == 3 && data.len() == 12 && word16(data) == 0);
        let (_, export) = export.ok_or("no information about the export")?;
        if word64(&export[2..]) != size_bytes {
            return Err(format!("the export has {} bytes", word64(&export[2..])));
        }
        Ok(client)
    }

    /// Sends an option and returns its replies up to the acknowledgement.
    fn option(&mut self, option: u32, data: &[u8]) -> Outcome<Vec<(u32, Vec<u8>)>> {
        self.give(&[&OPTION_MAGIC[..], &option.to_be_bytes(), &length32(data), data].concat())?;
        let mut replies = Vec::new();
        loop {
            let header = self.take(20)?;
            if word64(&header) != OPTION_REPLY_MAGIC || word32(&header[8..]) != option {
                return Err(format!("reply to option {option}: {header:?}"));
            }
            let kind = word32(&header[12..]);
            let length = word32(&header[16..]) as usize;
            let data = self.take(length)?;
            match kind {
                1 => return Ok(replies),
                2..=4 => replies.push((kind, data)),
                _ => return Err(format!("option {option} refused with {kind:#x}")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).map_err(|error| format!("receiving {count} bytes: {error}"))?;
        Ok(bytes)
    }

    fn give(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.stream.write_all(bytes).map_err(|error| format!("sending {} bytes: {error}", bytes.len()))
    }

    /// The bare connection, to say on it what no client should.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// A second handle of the connection, to send from another thread.
    pub(crate) fn sender(&self) -> Outcome<Self> {
        let stream = self.stream.try_clone().map_err(|error| error.to_string())?;
        Ok(Self { stream })
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, cookie: u64, request: &Request) -> Outcome<()> {
        let mut bytes = Vec::with_capacity(28 + request.data.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(request.flags.to_be_bytes());
        bytes.extend(request.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(request.offset.to_be_bytes());
        bytes.extend(request.length.to_be_bytes());
        bytes.extend(&request.data);
        self.give(&bytes)
    }

    /// Takes chunks until one request is complete. `replies` holds those that are not.
    pub(crate) fn receive(&mut self, replies: &mut Vec<Reply>) -> Outcome<Reply> {
        loop {
            let magic = word32(&self.take(4)?);
            if magic == SIMPLE_MAGIC {
                let rest = self.take(12)?;
                return Ok(Reply { error: word32(&rest), cookie: word64(&rest[4..]), ..Reply::default() });
            }
            if magic != CHUNK_MAGIC {
                return Err(format!("magic {magic:#x}"));
            }
            let header = self.take(16)?;
            let (flags, kind, cookie) = (word16(&header), word16(&header[2..]), word64(&header[4..]));
            let payload = self.take(word32(&header[12..]) as usize)?;
            let index = replies.iter().position(|reply| reply.cookie == cookie).unwrap_or_else(|| {
                replies.push(Reply { cookie, ..Reply::default() });
                replies.len() - 1
            });
            let reply = &mut replies[index];
            match kind {
                0 => {}
                CHUNK_DATA => reply.pieces.push((word64(&payload), payload[8..].to_vec())),
                CHUNK_HOLE => reply.pieces.push((word64(&payload), vec![0; word32(&payload[8..]) as usize])),
                CHUNK_STATUS => {
                    let pairs = payload[4..].chunks_exact(8);
                    reply.extents.extend(pairs.map(|pair| (word32(pair), word32(&pair[4..]))));
                }
                _ if kind & CHUNK_ERROR_BIT != 0 => reply.error = word32(&payload),
                _ => return Err(format!("chunk of kind {kind}")),
            }
            if flags & CHUNK_DONE != 0 {
                return Ok(replies.swap_remove(index));
            }
        }
    }

    /// One request and its reply.
    pub(crate) fn call(&mut self, request: &Request) -> Outcome<Reply> {
        self.send(u64::MAX, request)?;
        self.receive(&mut Vec::new())
    }
}
