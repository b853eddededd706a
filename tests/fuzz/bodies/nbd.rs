//! NBD: any bytes as a client's, through the real server and its session state machine, on a volume in memory.

use crate::support::{
    Bench,
    byte_net::Closed,
    memory_service::MemoryService,
    wire::{self, Style},
};
use std::collections::BTreeMap;
use twinlog::base::limits::CONNECTION_BYTES_MAX;
use twinlog_device::ConnectionId;

/// Blocks of memory: enough for the largest write to the volume and its reads, and little enough to run short.
const POOL_BLOCKS: u32 = 700;
/// Bytes of the volume `vol`: few, so that a fuzzer does not spend its time with copying; and, where an input says so, more than one
/// part of a request.
const VOLUME_BYTES: [u64; 2] = [48 << 10, (1 << 20) + 4096];
/// Bytes that may wait for a client beyond the limit: the reply during which it is reached, and headers.
const SLACK_BYTES: u64 = 64 << 10;

fn bench(volume_bytes: u64) -> Bench {
    Bench::with_service(MemoryService::new(1, POOL_BLOCKS, &[("vol", volume_bytes), ("other", 4096 * 3 + 5)]))
}

/// Sends `bytes` in pieces, takes everything that comes, and returns it.
fn converse(bench: &mut Bench, client: ConnectionId, bytes: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut received = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        bench.net.client_send(client, piece);
        bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
        assert!(bench.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + SLACK_BYTES);
        if bench.net.closed(client).is_some() {
            break;
        }
    }
    loop {
        bench.settle();
        assert!(bench.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + SLACK_BYTES);
        let bytes = bench.net.client_take(client, usize::MAX);
        if bytes.is_empty() {
            return received;
        }
        received.extend_from_slice(&bytes);
    }
}

/// Whatever one client did: another one is served, and once the first has gone, nothing of it is left.
fn farewell(bench: &mut Bench, client: ConnectionId) {
    let other = bench.enter(Style::Simple);
    assert_eq!(bench.exchange(other, &wire::request(0, wire::FLUSH, 7, 0, 0)), wire::simple(0, 7, &[]));
    if bench.closed(client).is_none() {
        bench.net.client_drop(client);
        assert_eq!(bench.closed(client), Some(Closed::Aborted));
    }
    assert_eq!(bench.server.connection_count(), 1);
    assert_eq!(bench.service.blocks_free(), POOL_BLOCKS as usize, "every block is back");
}

/// Bytes: one for the size of pieces, then what the client sends from its first byte on.
pub(crate) fn handshake(data: &[u8]) -> bool {
    let Some((pieces, bytes)) = data.split_first() else { return false };
    let mut bench = bench(VOLUME_BYTES[0]);
    let client = bench.connect();
    let piece_bytes = if *pieces == 0 { usize::MAX } else { usize::from(*pieces) };
    let received = converse(&mut bench, client, bytes, piece_bytes);
    // Everything that the server says in a handshake begins with its magic number.
    let spoke = received.len() >= 8;
    farewell(&mut bench, client);
    spoke
}

/// What the script of a session sends.
struct Script {
    style: Style,
    volume_bytes: u64,
    bytes: Vec<u8>,
    /// Requests by cookie, with the bytes that a simple reply without an error carries.
    sent: BTreeMap<u64, u32>,
    /// From here on the server may see other requests than those meant.
    is_astray: bool,
    says_farewell: bool,
}

/// Bytes: style, and whether the volume is large (1), size of pieces (1), lateness of the engine (1), then requests of eight bytes each.
pub(crate) fn session(data: &[u8]) -> bool {
    let ([style, pieces, idle], data) = super::take::<3>(data);
    let volume_bytes = VOLUME_BYTES[usize::from(style / 128)];
    let style = [Style::Simple, Style::Structured, Style::Extended][usize::from(style % 3)];
    let (bytes, sent, is_astray, says_farewell) = (Vec::new(), BTreeMap::new(), false, false);
    let mut script = Script { style, volume_bytes, bytes, sent, is_astray, says_farewell };
    for request in data.chunks_exact(8).take(200) {
        script.add(request);
    }
    let mut bench = bench(volume_bytes);
    bench.service.idle_of_eight = u64::from(idle % 8);
    let client = bench.enter(style);
    let piece_bytes = if pieces == 0 { usize::MAX } else { usize::from(pieces) * 200 };
    let received = converse(&mut bench, client, &script.bytes, piece_bytes);
    let closed = bench.closed(client);
    let replies = if style == Style::Simple { simple(&received, &script.sent) } else { chunks(&received, style) };
    if !script.is_astray {
        let replies = replies.expect("replies follow the protocol");
        assert_eq!(closed, script.says_farewell.then_some(Closed::Gracefully), "nobody broke the protocol");
        let answered: Vec<u64> = replies.keys().copied().collect();
        let sent: Vec<u64> = script.sent.keys().copied().collect();
        assert_eq!(answered, sent, "each request has one reply");
    }
    farewell(&mut bench, client);
    !script.is_astray && !script.sent.is_empty()
}

impl Script {
    /// Adds the request that eight bytes stand for: mostly one that is almost right.
    fn add(&mut self, word: &[u8]) {
        let style = self.style;
        let [kind, flags, place, offset, more, length, longer, last] = super::take::<8>(word).0;
        if self.says_farewell || self.bytes.len() as u64 > 4 * self.volume_bytes {
            return;
        }
        if kind > 250 {
            self.is_astray = true;
            self.bytes.extend_from_slice(&word[1..]);
            return;
        }
        let command = if kind < 240 { u16::from(kind % 8) } else { u16::from_le_bytes([last, kind]) };
        let (flags, offset, length) = (
            if last < 240 { u16::from(flags) & 0x3F } else { u16::from_le_bytes([flags, last]) },
            places(self.volume_bytes, place, u64::from(u16::from_le_bytes([offset, more]))),
            lengths(self.volume_bytes, place, u64::from(u16::from_le_bytes([length, longer]))),
        );
        let cookie = self.sent.len() as u64;
        let short = u32::try_from(length).unwrap_or(u32::MAX);
        if style == Style::Extended {
            self.bytes.extend(wire::extended_request(flags, command, cookie, offset, length));
        } else {
            self.bytes.extend(wire::request(flags, command, cookie, offset, short));
        }
        if command == wire::DISC {
            self.says_farewell = true;
            // A farewell that announces a payload is a lie, and may be answered by hanging up.
            self.is_astray |= style == Style::Extended && flags & wire::PAYLOAD_LEN != 0;
            return;
        }
        self.sent.insert(cookie, if command == wire::READ { short } else { 0 });
        let has_payload = command == wire::WRITE || (style == Style::Extended && flags & wire::PAYLOAD_LEN != 0);
        if has_payload {
            let wanted = if style == Style::Extended { length } else { u64::from(short) };
            let given = wanted.min(2 << 20);
            self.bytes.resize(self.bytes.len() + usize::try_from(given).expect("two MiB"), kind);
            self.is_astray |= given < wanted || wanted > 32 << 20;
        }
    }
}

/// Offsets: anywhere in the volume, or about its bounds.
fn places(volume_bytes: u64, place: u8, number: u64) -> u64 {
    match place % 8 {
        0 => volume_bytes,
        1 => volume_bytes.saturating_sub(number),
        2 => (volume_bytes - 32_768).wrapping_add(number),
        3 => number << 48,
        4 => number * 512 % volume_bytes,
        5 => number * 4096 % volume_bytes,
        _ => number,
    }
}

/// Lengths: small, whole blocks, the whole volume, about the bounds.
fn lengths(volume_bytes: u64, place: u8, number: u64) -> u64 {
    match place / 8 % 16 {
        0 => 0,
        1 => volume_bytes,
        2 => (32 << 20) + number % 3 - 1,
        3 => u64::from(u32::MAX),
        4 => number << 48,
        5 => number * 16,
        6 => volume_bytes.saturating_sub(number),
        7 | 8 => number / 4096 * 4096,
        9 | 10 => number % 1024,
        _ => number,
    }
}

/// Simple replies by cookie; an error if they are not such.
fn simple(mut bytes: &[u8], sent: &BTreeMap<u64, u32>) -> Result<BTreeMap<u64, u32>, String> {
    let mut replies = BTreeMap::new();
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_at_checked(16).ok_or("half a reply")?;
        if header[..4] != wire::u32be(0x6744_6698) {
            return Err(format!("magic {header:x?}"));
        }
        let error = u32::from_be_bytes(super::take::<4>(&header[4..]).0);
        let cookie = u64::from_be_bytes(super::take::<8>(&header[8..]).0);
        let data_bytes = if error == 0 { *sent.get(&cookie).ok_or("a reply to nobody")? as usize } else { 0 };
        let (_, rest) = rest.split_at_checked(data_bytes).ok_or("half the data of a read")?;
        if replies.insert(cookie, error).is_some() {
            return Err(format!("two replies to {cookie}"));
        }
        bytes = rest;
    }
    Ok(replies)
}

/// Structured or extended replies by cookie; an error if they are not such.
fn chunks(mut bytes: &[u8], style: Style) -> Result<BTreeMap<u64, u32>, String> {
    let mut replies = BTreeMap::new();
    while !bytes.is_empty() {
        let header_bytes = if style == Style::Extended { 32 } else { 20 };
        let (header, rest) = bytes.split_at_checked(header_bytes).ok_or("half a chunk")?;
        let magic = if style == Style::Extended { 0x6e8a_278c } else { 0x668e_33ef };
        if header[..4] != wire::u32be(magic) {
            return Err(format!("magic {header:x?}"));
        }
        let cookie = u64::from_be_bytes(super::take::<8>(&header[8..]).0);
        let length = match style {
            Style::Extended => u64::from_be_bytes(super::take::<8>(&header[24..]).0),
            _ => u64::from(u32::from_be_bytes(super::take::<4>(&header[16..]).0)),
        };
        let length = usize::try_from(length).map_err(|_| "a huge chunk")?;
        let (_, rest) = rest.split_at_checked(length).ok_or("half a payload")?;
        let is_done = header[5] & 1 != 0;
        if is_done && replies.insert(cookie, 0).is_some() {
            return Err(format!("two replies to {cookie}"));
        }
        bytes = rest;
    }
    Ok(replies)
}
