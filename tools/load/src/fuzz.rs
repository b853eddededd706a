//! The parsers of this crate for fuzzers: each takes any bytes, asserts what must hold, and says whether it understood them.
//!
//! They are public for `tests/fuzz` and `tools/fuzz` of the project, and are no interface of anything else.

mod nvme;

pub use nvme::{answers as nvme_answers, authentication as nvme_authentication, open as nvme_open};

use std::{
    io::{Cursor, Read, Write},
    os::unix::net::UnixStream,
};

use crate::{
    journal::{
        Event, HEADER_BYTES, Header, RECORD_BYTES, Record, decode_header, encode_header, encode_record,
        record_checksum, replay_from,
    },
    model::{Change, Region},
    nbd::{connection::receive_anything, handshake::negotiate},
    target::parse_target,
    units::{bytes, parse_blocks, parse_duration, parse_size},
};

/// Bytes that one call hands to a socket: what every socket holds.
const SOCKET_BYTES: usize = 32 << 10;
/// Cells of a fuzzed journal's region: its model takes memory for each.
const CELLS_MAX: u64 = 1 << 12;

/// A server that says `input` whatever it hears.
struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a server says while an export is opened.
#[must_use]
pub fn handshake(data: &[u8]) -> bool {
    match negotiate(&mut Script(Cursor::new(data)), "vol") {
        Ok(geometry) => {
            assert!(geometry.size_bytes <= 1 << 62 && geometry.block_bytes.is_power_of_two());
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 100_000, "a message is for people");
            false
        }
    }
}

/// What a server replies to four open requests.
#[must_use]
pub fn replies(data: &[u8]) -> bool {
    let Ok((client, mut server)) = UnixStream::pair() else { return false };
    if server.write_all(&data[..data.len().min(SOCKET_BYTES)]).is_err() {
        return false;
    }
    drop(server);
    receive_anything(client) > 0
}

/// A journal: one byte that says whether checksums are made right, then the file.
#[must_use]
pub fn journal(data: &[u8]) -> bool {
    let Some((mend, file)) = data.split_first() else { return false };
    let mut file = file.to_vec();
    if mend % 2 == 1 && file.len() >= HEADER_BYTES {
        mend_journal(&mut file);
    }
    let header = file.first_chunk::<HEADER_BYTES>().and_then(decode_header);
    if header.is_some_and(|header| header.region.cells() > CELLS_MAX) {
        return false;
    }
    match replay_from(|| Ok(Cursor::new(&file[..]))) {
        Ok(replay) => {
            assert!(replay.totals.records <= bytes(file.len() / RECORD_BYTES));
            assert!(replay.totals.flushed <= replay.totals.acknowledged);
            replay.totals.records > 0
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn mend_journal(file: &mut [u8]) {
    let (head, records) = file.split_at_mut(HEADER_BYTES);
    let sum = twox_hash::XxHash3_64::oneshot(&head[..56]);
    head[56..].copy_from_slice(&sum.to_le_bytes());
    let Some(header) = head.first_chunk::<HEADER_BYTES>().and_then(decode_header) else { return };
    for (number, record) in records.chunks_exact_mut(RECORD_BYTES).enumerate() {
        let sum = record_checksum(&header, bytes(number), &record[..24]);
        record[24..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// What stands on the command line: a target, a size, a range of sizes, a duration.
#[must_use]
pub fn target(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let named = parse_target(&text);
    if let Ok(target) = &named {
        assert!(!target.to_string().is_empty());
    }
    let size = parse_size(&text);
    if let Ok(blocks) = parse_blocks(&text) {
        assert!(blocks.min > 0 && blocks.min <= blocks.max && blocks.max <= 32 << 20);
    }
    let duration = parse_duration(&text);
    named.is_ok() || size.is_ok() || duration.is_ok()
}

/// Valid inputs of each of the above, by name.
#[must_use]
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "handshake" => {
            let greeting = [b"NBDMAGICIHAVEOPT".as_slice(), &3_u16.to_be_bytes()].concat();
            let export = [&[0, 0], (1_u64 << 30).to_be_bytes().as_slice(), &[1, 0x6D]].concat();
            let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0].to_vec();
            let go = [greeting.clone(), option_reply(3, &export), option_reply(3, &sizes), option_reply(1, &[])];
            let plain = [greeting.clone(), option_reply(0x8000_0001, b"what?"), export[2..].to_vec()];
            vec![go.concat(), plain.concat()]
        }
        "replies" => {
            let reply = |slot: u64, errno: u32| {
                [&0x6744_6698_u32.to_be_bytes()[..], &errno.to_be_bytes(), &(1 << 32 | slot).to_be_bytes()].concat()
            };
            let read = |slot| [reply(slot, 0), vec![7; 512]].concat();
            vec![
                [read(1), reply(3, 0), read(0), reply(2, 28)].concat(),
                [reply(0, 5), reply(2, 0), read(1)].concat(),
                [reply(3, 0), reply(2, 108)].concat(),
            ]
        }
        "nvme-open" => nvme::opens(),
        "nvme-answers" => nvme::answers_seeds(),
        "nvme-authentication" => nvme::authentications(),
        "journal" => journals(),
        "target" => {
            let texts = [
                "nbd://localhost/vol-a",
                "nbd://[::1]:10809/a%20b",
                "nbd+unix:///vol?socket=run%2Fnbd.sock",
                "nvme-tcp://127.0.0.1,[::1]:4421/?nsid=3&digest=both",
                "nvme-tcp://h/?hostnqn=nqn.2014-08.x&hmac=sha384&dhgroup=ffdhe3072",
                "./file",
                "512-64k",
                "1.5s",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        }
        _ => Vec::new(),
    }
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short");
    let numbers = [7, kind, length].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &numbers, data].concat()
}

fn journals() -> Vec<Vec<u8>> {
    let region = Region { offset: 4096, size_bytes: 64 << 10, cell_bytes: 512 };
    let header = Header { run: 1, seed: 2, region, blank: true };
    let ranged = |event, version| Record { event, fua: version % 2 == 0, version, offset: 8192, length: 1024 };
    let mut events = vec![Record::bare(Event::Session, 0)];
    for version in 1..6 {
        let change = [Change::Write, Change::Zero, Change::Trim][crate::units::index(version) % 3];
        events.push(ranged(Event::Issued(change), version));
        events.push(Record::bare(Event::FlushIssued, version));
        events.push(ranged(if version == 4 { Event::Failed(change) } else { Event::Acknowledged(change) }, version));
        events.push(Record::bare(Event::Flushed, version));
    }
    let mut file = encode_header(&header).to_vec();
    for (number, record) in events.iter().enumerate() {
        file.extend(encode_record(&header, bytes(number), record));
    }
    [0, 1].map(|mend| [&[mend], &file[..]].concat()).to_vec()
}
