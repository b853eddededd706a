//! Every command, byte for byte, in each of the three styles of messages.

use crate::support::{
    Bench, SIZE,
    byte_net::Closed,
    wire::{self, Style, bytes, u32be, u64be},
};
use std::time::Duration;
use twinlog::{base::Prng, node::request::VolumeError};
use twinlog_device::ConnectionId;

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const PART: u64 = 1 << 20;

/// One client in the transmission phase.
struct Client {
    bench: Bench,
    connection: ConnectionId,
    style: Style,
}

impl Client {
    fn new(style: Style) -> Self {
        let mut bench = Bench::new();
        let connection = bench.enter(style);
        Self { bench, connection, style }
    }

    /// A request in this client's style; a write's payload follows elsewhere.
    fn request(&self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        if self.style != Style::Extended {
            return wire::request(flags, command, cookie, offset, u32::try_from(length).expect("compact"));
        }
        let payload = if command == wire::WRITE { wire::PAYLOAD_LEN } else { 0 };
        wire::extended_request(flags | payload, command, cookie, offset, length)
    }

    fn chunk(&self, done: bool, kind: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
        match self.style {
            Style::Simple => panic!("simple replies have no chunks"),
            Style::Structured => wire::chunk(done, kind, cookie, payload),
            Style::Extended => wire::extended_chunk(done, kind, cookie, offset, payload),
        }
    }

    fn done(&self, cookie: u64, offset: u64) -> Vec<u8> {
        match self.style {
            Style::Simple => wire::simple(0, cookie, &[]),
            _ => self.chunk(true, wire::NONE, cookie, offset, &[]),
        }
    }

    fn error(&self, cookie: u64, offset: u64, code: u32, text: &str) -> Vec<u8> {
        match self.style {
            Style::Simple => wire::simple(code, cookie, &[]),
            _ => self.chunk(true, wire::ERROR, cookie, offset, &wire::error(code, text)),
        }
    }

    #[track_caller]
    fn expect(&mut self, sent: &[u8], expected: &[u8]) {
        let reply = self.bench.exchange(self.connection, sent);
        if reply != expected {
            let head = |bytes: &[u8]| bytes[..bytes.len().min(96)].to_vec();
            let (style, sent) = (self.style, head(sent));
            let lengths = (expected.len(), reply.len());
            let (expected, reply) = (head(expected), head(&reply));
            panic!("{style:?}: {sent:02x?}\nexpected {expected:02x?}\nreceived {reply:02x?} (lengths {lengths:?})");
        }
    }

    #[track_caller]
    fn expect_done(&mut self, flags: u16, command: u16, offset: u64, length: u64) {
        let sent = self.request(flags, command, 0xC00C1E, offset, length);
        let expected = self.done(0xC00C1E, offset);
        self.expect(&sent, &expected);
    }

    #[track_caller]
    fn expect_error(&mut self, (flags, command): (u16, u16), (offset, length): (u64, u64), code: u32, text: &str) {
        let mut sent = self.request(flags, command, 0xBAD, offset, length);
        if command == wire::WRITE {
            sent.resize(sent.len() + usize::try_from(length).expect("small"), 0xEE);
        }
        let expected = self.error(0xBAD, offset, code, text);
        self.expect(&sent, &expected);
    }

    #[track_caller]
    fn write(&mut self, flags: u16, offset: u64, payload: &[u8]) {
        let sent = bytes![self.request(flags, wire::WRITE, 7, offset, payload.len() as u64), payload];
        let expected = self.done(7, offset);
        self.expect(&sent, &expected);
    }

    /// Reads, whatever the chunks.
    #[track_caller]
    fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let sent = self.request(0, wire::READ, 3, offset, length);
        let reply = self.bench.exchange(self.connection, &sent);
        match self.style {
            Style::Simple => {
                assert_eq!(reply[..16], wire::simple(0, 3, &[]));
                reply[16..].to_vec()
            }
            _ => assemble(self.style, &reply, offset, length),
        }
    }
}

/// Puts the chunks of one successful read together, and checks that they cover it exactly once.
#[track_caller]
fn assemble(style: Style, mut reply: &[u8], offset: u64, length: u64) -> Vec<u8> {
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let small = |number: u64| usize::try_from(number).expect("small");
    let mut bytes = vec![0; small(length)];
    let mut covered = Vec::new();
    let mut done = false;
    while !reply.is_empty() {
        assert!(!done, "nothing follows the last chunk");
        let header_bytes = if style == Style::Extended { 32 } else { 20 };
        let (header, rest) = reply.split_at(header_bytes);
        let size = if style == Style::Extended { number(&header[24..32]) } else { number(&header[16..20]) };
        let (payload, rest) = rest.split_at(small(size));
        done = header[5] & 1 == 1;
        match number(&header[6..8]) {
            0 => assert!(done && payload.is_empty()),
            1 => {
                let start = small(number(&payload[..8]) - offset);
                bytes[start..start + payload.len() - 8].copy_from_slice(&payload[8..]);
                covered.push(start..start + payload.len() - 8);
            }
            2 => {
                let start = small(number(&payload[..8]) - offset);
                covered.push(start..start + small(number(&payload[8..12])));
            }
            other => panic!("unexpected chunk {other:x}"),
        }
        reply = rest;
    }
    assert!(done, "the reply ends");
    covered.sort_by_key(|range| range.start);
    let end = covered.iter().fold(0, |end, range| {
        assert_eq!(end, range.start, "every byte comes once");
        range.end
    });
    assert_eq!(end, bytes.len(), "every byte comes");
    bytes
}

/// Random bytes.
fn pattern(length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("small")];
    Prng::new(length).fill(&mut bytes);
    bytes
}

#[test]
fn what_is_written_is_read_at_any_alignment() {
    for style in STYLES {
        let mut client = Client::new(style);
        for (offset, length) in [
            (0, 1),
            (4095, 2),
            (1, 4095),
            (4096, 4096),
            (513, 70_000),
            (SIZE - 1, 1),
            (SIZE - 5000, 5000),
            (PART - 1, 2),
            (3, PART),
            (4095, 3 * PART + 2),
        ] {
            let payload = pattern(length);
            client.write(if offset % 2 == 0 { wire::FUA } else { 0 }, offset, &payload);
            assert!(client.read(offset, length) == payload, "{style:?} {offset}+{length}");
            assert!(client.bench.service.content(0, offset..offset + length) == payload);
        }
    }
}

#[test]
fn a_request_of_32_mib_passes_and_a_longer_one_does_not() {
    let largest = 32 << 20;
    for style in STYLES {
        let mut client = Client::new(style);
        let payload = pattern(largest);
        client.write(0, 1, &payload);
        assert!(client.read(1, largest) == payload, "{style:?}");
        let code = if style == Style::Simple { wire::EINVAL } else { wire::EOVERFLOW };
        client.expect_error((0, wire::READ), (0, largest + 1), code, "a read is at most 32 MiB long");
        // The payload of a longer write is not waited for.
        let write = client.request(0, wire::WRITE, 1, 0, largest + 1);
        client.expect(&write, &[]);
        assert_eq!(client.bench.closed(client.connection), Some(Closed::Aborted));
    }
}

#[test]
fn reads_tell_holes_from_data() {
    for style in [Style::Structured, Style::Extended] {
        let mut client = Client::new(style);
        let block = pattern(4096);
        client.write(0, 8192, &block);
        let sent = client.request(wire::FUA, wire::READ, 5, 100, 20000);
        let expected = bytes![
            client.chunk(false, wire::OFFSET_HOLE, 5, 100, &wire::hole(100, 8092)),
            client.chunk(false, wire::OFFSET_DATA, 5, 100, &wire::data(8192, &block)),
            client.chunk(true, wire::OFFSET_HOLE, 5, 100, &wire::hole(12288, 7812)),
        ];
        client.expect(&sent, &expected);
    }
}

#[test]
fn an_unfragmented_read_has_one_content_chunk() {
    for style in [Style::Structured, Style::Extended] {
        let mut client = Client::new(style);
        let block = pattern(4096);
        client.write(0, 8192, &block);
        let sent = client.request(wire::DF, wire::READ, 5, 4096, 12288);
        let data = bytes![vec![0; 4096], block, vec![0; 4096]];
        let expected = client.chunk(true, wire::OFFSET_DATA, 5, 4096, &wire::data(4096, &data));
        client.expect(&sent, &expected);
        let sent = client.request(wire::DF, wire::READ, 5, 20480, 4096);
        let expected = client.chunk(true, wire::OFFSET_HOLE, 5, 20480, &wire::hole(20480, 4096));
        client.expect(&sent, &expected);
        // One that has several parts: still one chunk.
        let length = 2 * PART + 77;
        let sent = client.request(wire::DF, wire::READ, 6, 5, length);
        let mut data = vec![0; usize::try_from(length).expect("small")];
        data[8187..8187 + 4096].copy_from_slice(&block);
        let expected = bytes![
            client.chunk(false, wire::OFFSET_DATA, 6, 5, &wire::data(5, &data)),
            client.chunk(true, wire::NONE, 6, 5, &[]),
        ];
        client.expect(&sent, &expected);
    }
    let mut client = Client::new(Style::Simple);
    client.expect_error((wire::DF, wire::READ), (0, 1), wire::EINVAL, "");
}

#[test]
fn trim_zero_cache_and_flush() {
    for style in STYLES {
        let mut client = Client::new(style);
        let payload = pattern(5 * 4096);
        client.write(0, 0, &payload);
        client.expect_done(wire::FUA, wire::FLUSH, 0, 0);
        client.expect_done(0, wire::CACHE, 0, SIZE);
        // A discard frees whole blocks and keeps the rest.
        client.expect_done(wire::FUA, wire::TRIM, 4000, 4096 + 200);
        let mut model = payload.clone();
        model[4096..8192].fill(0);
        assert!(client.read(0, 5 * 4096) == model);
        for (flags, start, end) in [
            (0, 8192, 8292),
            (wire::NO_HOLE | wire::FUA, 12000, 12300),
            (wire::FAST_ZERO, 12287, 16385),
            (wire::FAST_ZERO | wire::NO_HOLE, 20000, 20480),
        ] {
            client.expect_done(flags, wire::WRITE_ZEROES, start, end - start);
            model[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")].fill(0);
            assert!(client.read(0, 5 * 4096) == model, "{style:?} {start}..{end}");
        }
        client.expect_done(0, wire::WRITE_ZEROES, 0, SIZE);
        client.expect_done(0, wire::TRIM, 0, SIZE);
    }
}

#[test]
fn a_hint_takes_no_more_memory_than_a_read() {
    for style in STYLES {
        let mut client = Client::new(style);
        client.expect_done(0, wire::CACHE, 4096, SIZE - 4096);
        assert_eq!(client.bench.service.submitted_count, 32, "the first 32 MiB, in parts of 1 MiB");
        let volume_error = VolumeError::NoSuchVolume;
        client.bench.service.poison = Some((9 << 20..10 << 20, volume_error.clone()));
        client.expect_error((0, wire::CACHE), (0, SIZE), wire::EIO, &volume_error.to_string());
    }
}

#[test]
fn block_status_describes_the_range() {
    for style in [Style::Structured, Style::Extended] {
        let mut client = Client::new(style);
        client.write(0, 8192, &pattern(4096));
        client.expect_done(wire::NO_HOLE, wire::WRITE_ZEROES, 12288, 4096);
        let status = |client: &Client, offset, extents: &[(u32, u32)]| {
            let mut payload = u32be(1).to_vec();
            if style == Style::Extended {
                payload.extend(u32be(u32::try_from(extents.len()).expect("few")));
            }
            for &(length, flags) in extents {
                if style == Style::Extended {
                    payload.extend(bytes![u64be(u64::from(length)), u64be(u64::from(flags))]);
                } else {
                    payload.extend(bytes![u32be(length), u32be(flags)]);
                }
            }
            let kind = if style == Style::Extended { wire::STATUS_EXT } else { wire::STATUS };
            client.chunk(true, kind, 4, offset, &payload)
        };
        let whole = u32::try_from(SIZE).expect("small");
        for (flags, offset, length, extents) in [
            (0, 0, SIZE, vec![(8192, 3), (8192, 0), (whole - 16384, 3)]),
            (wire::FUA, 100, 8193, vec![(8092, 3), (101, 0)]),
            (wire::REQ_ONE, 0, SIZE, vec![(8192, 3)]),
            (wire::REQ_ONE, 8193, 100, vec![(100, 0)]),
            (0, SIZE - 1, 1, vec![(1, 3)]),
        ] {
            let sent = client.request(flags, wire::BLOCK_STATUS, 4, offset, length);
            let expected = status(&client, offset, &extents);
            client.expect(&sent, &expected);
        }
        client.expect_error((0, wire::BLOCK_STATUS), (0, 0), wire::EINVAL, "no status describes zero bytes");
    }
    let mut client = Client::new(Style::Simple);
    client.expect_error((0, wire::BLOCK_STATUS), (0, 512), wire::EINVAL, "");
}

#[test]
fn a_block_status_payload_names_the_context() {
    let mut client = Client::new(Style::Extended);
    let ask = |payload: &[u8], flags| {
        let size = payload.len() as u64;
        bytes![wire::extended_request(flags | wire::PAYLOAD_LEN, wire::BLOCK_STATUS, 4, 512, size), payload]
    };
    let good = bytes![u64be(1024), u32be(1)];
    let expected =
        wire::extended_chunk(true, wire::STATUS_EXT, 4, 512, &bytes![u32be(1), u32be(1), u64be(1024), u64be(3)]);
    client.expect(&ask(&good, 0), &expected);
    client.expect(&ask(&good, wire::REQ_ONE), &expected);
    let text = "the payload does not name the one metadata context";
    let refused = client.error(4, 512, wire::EINVAL, text);
    for bad in [
        bytes![u64be(1024)],
        bytes![u64be(1024), u32be(2)],
        bytes![u64be(1024), u32be(1), u32be(1)],
        vec![1; 11],
        vec![1; 100_000],
    ] {
        client.expect(&ask(&bad, 0), &refused);
    }
    let beyond = client.error(4, 512, wire::EINVAL, "the range lies beyond the end of the volume");
    client.expect(&ask(&bytes![u64be(u64::MAX), u32be(1)], 0), &beyond);
    // Other commands have no payload; what comes is skipped.
    let sent = bytes![wire::extended_request(wire::PAYLOAD_LEN, wire::READ, 8, 0, 70_000), vec![7; 70_000]];
    let refused = client.error(8, 0, wire::EINVAL, "the command does not have this flag");
    client.expect(&sent, &refused);
    // A write has one whether its flag says so or not: QEMU's writes do not.
    let sent = bytes![wire::extended_request(wire::FUA, wire::WRITE, 8, 4096, 4), b"data"];
    let done = client.done(8, 4096);
    client.expect(&sent, &done);
    assert_eq!(client.read(4096, 4), b"data");
    client.expect_done(0, wire::FLUSH, 0, 0);
}

#[test]
fn requests_of_zero_length_do_nothing() {
    for style in STYLES {
        let mut client = Client::new(style);
        for offset in [0, 5, SIZE] {
            for command in [wire::READ, wire::WRITE, wire::TRIM, wire::CACHE, wire::WRITE_ZEROES] {
                client.expect_done(0, command, offset, 0);
            }
        }
        let text = "the range lies beyond the end of the volume";
        client.expect_error((0, wire::READ), (SIZE + 1, 0), wire::EINVAL, text);
        assert_eq!(client.bench.service.submitted_count, 0);
    }
}

#[test]
fn what_lies_beyond_the_end_is_refused() {
    let text = "the range lies beyond the end of the volume";
    for style in STYLES {
        let mut client = Client::new(style);
        let mut commands = vec![
            (wire::READ, wire::EINVAL),
            (wire::WRITE, wire::ENOSPC),
            (wire::TRIM, wire::EINVAL),
            (wire::CACHE, wire::EINVAL),
            (wire::WRITE_ZEROES, wire::ENOSPC),
        ];
        if style != Style::Simple {
            commands.push((wire::BLOCK_STATUS, wire::EINVAL));
        }
        for (command, code) in commands {
            for range in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 4, 70_000)] {
                client.expect_error((0, command), range, code, text);
            }
        }
        assert_eq!(client.bench.service.submitted_count, 0);
        client.expect_done(0, wire::FLUSH, 0, 0);
    }
}

/// A client need not connect again to use what a volume grew by, nor can it use what it shrank by.
#[test]
fn a_resize_counts_for_connections_that_are_open() {
    let beyond = "the range lies beyond the end of the volume";
    for style in STYLES {
        let mut client = Client::new(style);
        client.bench.service.resize(0, Some(SIZE + 8192));
        client.write(0, SIZE - 1, b"across the old end");
        assert_eq!(client.read(SIZE - 1, 18), b"across the old end");
        client.expect_done(0, wire::WRITE_ZEROES, SIZE, 8192);
        client.expect_error((0, wire::WRITE), (SIZE + 8192, 1), wire::ENOSPC, beyond);
        client.bench.service.resize(0, Some(4096));
        client.expect_error((0, wire::READ), (4095, 2), wire::EINVAL, beyond);
        client.expect_error((0, wire::WRITE), (4096, 512), wire::ENOSPC, beyond);
        client.write(0, 4000, &[7; 96]);
        client.bench.service.resize(0, None);
        client.expect_error((0, wire::READ), (0, 1), wire::EIO, "no such volume");
        client.expect_error((0, wire::WRITE), (0, 512), wire::EIO, "no such volume");
        client.expect_error((0, wire::FLUSH), (0, 0), wire::EIO, "no such volume");
    }
}

#[test]
fn every_flag_that_a_command_does_not_have_is_refused() {
    let allowed = |style, command| match command {
        wire::READ if style != Style::Simple => wire::FUA | wire::DF,
        wire::WRITE if style == Style::Extended => wire::FUA | wire::PAYLOAD_LEN,
        wire::WRITE_ZEROES => wire::FUA | wire::NO_HOLE | wire::FAST_ZERO,
        wire::BLOCK_STATUS if style == Style::Extended => wire::FUA | wire::REQ_ONE | wire::PAYLOAD_LEN,
        wire::BLOCK_STATUS => wire::FUA | wire::REQ_ONE,
        _ => wire::FUA,
    };
    for style in STYLES {
        let mut client = Client::new(style);
        for command in
            [wire::READ, wire::WRITE, wire::FLUSH, wire::TRIM, wire::CACHE, wire::WRITE_ZEROES, wire::BLOCK_STATUS]
        {
            for flag in (0..16).map(|bit| 1 << bit) {
                let length = if command == wire::FLUSH { 0 } else { 512 };
                if allowed(style, command) & flag == 0 && !(style == Style::Extended && flag == wire::PAYLOAD_LEN) {
                    let text = "the command does not have this flag";
                    client.expect_error((flag, command), (0, length), wire::EINVAL, text);
                }
            }
        }
        let text = "this server does not know the command";
        for command in [8, 9, 255, u16::MAX] {
            client.expect_error((0, command), (0, 512), wire::EINVAL, text);
        }
        let text = "a flush has neither offset nor length";
        client.expect_error((0, wire::FLUSH), (1, 0), wire::EINVAL, text);
        client.expect_error((0, wire::FLUSH), (0, 1), wire::EINVAL, text);
        assert_eq!(client.bench.service.submitted_count, 0);
    }
}

#[test]
fn the_engines_errors_have_the_protocols_numbers() {
    let unreadable = VolumeError::Unreadable { block: 2, reason: "wrong checksum".to_owned() };
    let cases = [
        (VolumeError::NoSuchVolume, wire::EIO, wire::EIO),
        (VolumeError::OutOfRange, wire::EINVAL, wire::ENOSPC),
        (VolumeError::NoSpace, wire::ENOSPC, wire::ENOSPC),
        (VolumeError::Stopped("the log failed".to_owned()), wire::EIO, wire::EIO),
        (VolumeError::Unserved(Duration::from_secs(30)), wire::EIO, wire::EIO),
        (VolumeError::ShuttingDown, wire::ESHUTDOWN, wire::ESHUTDOWN),
        (VolumeError::ReservationConflict, wire::EPERM, wire::EPERM),
    ];
    for style in STYLES {
        for (error, code, code_of_writes) in &cases {
            let mut client = Client::new(style);
            client.bench.service.poison = Some((8192..8193, error.clone()));
            for command in [wire::READ, wire::TRIM, wire::CACHE] {
                client.expect_error((0, command), (4096, 8192), *code, &error.to_string());
            }
            for command in [wire::WRITE, wire::WRITE_ZEROES] {
                client.expect_error((0, command), (4096, 8192), *code_of_writes, &error.to_string());
            }
            client.write(0, 0, b"elsewhere");
        }
        // An error whose place is known says so, within the request.
        let mut client = Client::new(style);
        client.bench.service.poison = Some((8192..8193, unreadable.clone()));
        for (offset, length, place) in [(4096, 8192, 8192), (8000, 193, 8192), (8192, 1, 8192)] {
            let sent = client.request(0, wire::READ, 2, offset, length);
            let expected = match style {
                Style::Simple => wire::simple(wire::EIO, 2, &[]),
                _ => {
                    let payload = bytes![wire::error(wire::EIO, &unreadable.to_string()), u64be(place)];
                    client.chunk(true, wire::ERROR_OFFSET, 2, offset, &payload)
                }
            };
            client.expect(&sent, &expected);
        }
    }
}

#[test]
fn a_request_that_was_interrupted_ends_the_connection_without_an_answer() {
    for style in STYLES {
        for command in [wire::READ, wire::WRITE_ZEROES, wire::TRIM] {
            let mut client = Client::new(style);
            client.bench.service.poison = Some((8192..8193, VolumeError::Interrupted("taken over".to_owned())));
            let sent = client.request(0, command, 2, 4096, 8192);
            assert_eq!(client.bench.exchange(client.connection, &sent), b"");
            assert_eq!(client.bench.closed(client.connection), Some(Closed::Aborted));
        }
    }
}

#[test]
fn an_error_in_a_later_part_fails_the_whole_request() {
    let error = VolumeError::Stopped("gone".to_owned());
    let length = 4 * PART;
    for style in STYLES {
        let mut client = Client::new(style);
        client.bench.service.poison = Some((2 * PART..2 * PART + 1, error.clone()));
        // Writes: all of the payload is taken, and one error comes back.
        client.expect_error((0, wire::WRITE), (100, length), wire::EIO, &error.to_string());
        let sent = client.request(0, wire::READ, 6, 100, length);
        if style == Style::Simple {
            // Success was announced with the first part: there is no way back.
            let reply = client.bench.exchange(client.connection, &sent);
            assert_eq!(reply.len() as u64, 16 + 2 * PART - 100);
            assert_eq!(client.bench.closed(client.connection), Some(Closed::Aborted));
            continue;
        }
        let reply = client.bench.exchange(client.connection, &sent);
        let end = client.error(6, 100, wire::EIO, &error.to_string());
        assert!(reply.ends_with(&end) && reply.len() > end.len(), "{style:?}");
        // An announced chunk is filled up, then the error follows.
        let sent = client.request(wire::DF, wire::READ, 6, 100, length);
        let data = client.bench.service.content(0, 100..2 * PART);
        let mut data = wire::data(100, &data);
        data.resize(usize::try_from(8 + length).expect("small"), 0);
        let expected = bytes![client.chunk(false, wire::OFFSET_DATA, 6, 100, &data), end];
        client.expect(&sent, &expected);
        client.expect_done(0, wire::FLUSH, 0, 0);
    }
}

#[test]
fn disc_answers_what_is_in_flight_and_closes() {
    for style in STYLES {
        let mut client = Client::new(style);
        let sent = bytes![
            client.request(0, wire::FLUSH, 1, 0, 0),
            client.request(0, wire::DISC, 2, 0, 0),
            client.request(0, wire::FLUSH, 3, 0, 0),
        ];
        let expected = client.done(1, 0);
        client.expect(&sent, &expected);
        assert_eq!(client.bench.closed(client.connection), Some(Closed::Gracefully));
    }
}

#[test]
fn a_wrong_magic_ends_the_session() {
    for style in STYLES {
        let mut client = Client::new(style);
        let mut sent = client.request(0, wire::FLUSH, 1, 0, 0);
        sent[3] ^= 1;
        client.expect(&sent, &[]);
        assert_eq!(client.bench.closed(client.connection), Some(Closed::Aborted));
    }
}

#[test]
fn connections_see_one_coherent_volume() {
    let mut client = Client::new(Style::Structured);
    let second = client.bench.enter(Style::Simple);
    client.write(wire::FUA, 4094, b"seen");
    let reply = client.bench.exchange(second, &wire::request(0, wire::READ, 1, 4094, 4));
    assert_eq!(reply, wire::simple(0, 1, b"seen"));
}
