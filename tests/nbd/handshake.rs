//! Every option, byte for byte.

use crate::support::{
    Bench, SIZE,
    byte_net::Closed,
    wire::{self, bytes, option, option_reply, u16be, u32be, u64be},
};

/// Transmission flags without structured replies: all but READ_ONLY, ROTATIONAL, SEND_DF and the extensions'.
const FLAGS: u16 = 0b1101_0110_1101;
const SEND_DF: u16 = 1 << 7;
const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
const VOL: &str = "Twinlog volume vol, 67108864 bytes";
const OTHER: &str = "Twinlog volume other, 12293 bytes";

fn info_export(option: u32, size: u64, flags: u16) -> Vec<u8> {
    option_reply(option, 3, &bytes![u16be(0), u64be(size), u16be(flags)])
}

fn ack(option: u32) -> Vec<u8> {
    option_reply(option, 1, &[])
}

/// A client in option haggling.
fn haggling(bench: &mut Bench) -> twinlog_device::ConnectionId {
    let client = bench.connect();
    assert_eq!(bench.exchange(client, &wire::client_flags(3)), b"");
    client
}

#[track_caller]
fn expect_reply(bench: &mut Bench, client: twinlog_device::ConnectionId, sent: &[u8], expected: &[u8]) {
    let reply = bench.exchange(client, sent);
    assert!(reply == expected, "sent {sent:02x?}\nexpected {expected:02x?}\nreceived {reply:02x?}");
}

#[test]
fn export_name_enters_with_and_without_zeroes() {
    for (flags, zeroes) in [(1, 124), (3, 0), (0, 124)] {
        let mut bench = Bench::new();
        let client = bench.connect();
        let sent = bytes![wire::client_flags(flags), option(1, b"vol")];
        expect_reply(&mut bench, client, &sent, &bytes![u64be(SIZE), u16be(FLAGS), vec![0; zeroes]]);
        let read = wire::request(0, wire::READ, 9, SIZE - 2, 2);
        expect_reply(&mut bench, client, &read, &wire::simple(0, 9, &[0, 0]));
    }
}

#[test]
fn export_name_of_nothing_ends_the_session() {
    for name in ["nothing", "vol\0", "VOL"] {
        let mut bench = Bench::new();
        let client = haggling(&mut bench);
        expect_reply(&mut bench, client, &option(1, name.as_bytes()), &[]);
        assert_eq!(bench.closed(client), Some(Closed::Aborted));
    }
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    expect_reply(&mut bench, client, &option(1, &[0xff, 0xfe]), &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn unknown_client_flags_end_the_session() {
    let mut bench = Bench::new();
    let client = bench.connect();
    expect_reply(&mut bench, client, &wire::client_flags(4 | 3), &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn a_client_without_fixed_newstyle_has_only_export_name() {
    let mut bench = Bench::new();
    let client = bench.connect();
    expect_reply(&mut bench, client, &bytes![wire::client_flags(0), option(3, &[])], &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn abort_is_acknowledged_and_closes() {
    for data in [&b""[..], b"with data"] {
        let mut bench = Bench::new();
        let client = haggling(&mut bench);
        expect_reply(&mut bench, client, &option(2, data), &ack(2));
        assert_eq!(bench.closed(client), Some(Closed::Gracefully));
    }
}

#[test]
fn list_names_every_volume() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let expected = bytes![
        option_reply(3, 2, &bytes![u32be(3), b"vol", VOL.as_bytes()]),
        option_reply(3, 2, &bytes![u32be(5), b"other", OTHER.as_bytes()]),
        ack(3)
    ];
    expect_reply(&mut bench, client, &option(3, &[]), &expected);
    expect_reply(&mut bench, client, &option(3, b"x"), &option_reply(3, wire::ERR_INVALID, b"this option has no data"));
    expect_reply(&mut bench, client, &option(3, &[]), &expected);
}

#[test]
fn a_volume_that_is_offline_is_neither_listed_nor_entered() {
    let mut bench = Bench::new();
    bench.service.offline = Some("vol");
    let client = haggling(&mut bench);
    let listed = bytes![option_reply(3, 2, &bytes![u32be(5), b"other", OTHER.as_bytes()]), ack(3)];
    expect_reply(&mut bench, client, &option(3, &[]), &listed);
    let why = "the volume is offline: the record of log lane 2 at position 4480 could not be performed: block 7 \
               cannot be read: see `twinlog status`";
    for number in [6, 7] {
        // The empty name is the first volume.
        for name in ["vol", ""] {
            let refused = option_reply(number, wire::ERR_POLICY, why.as_bytes());
            expect_reply(&mut bench, client, &option(number, &wire::go(name, &[])), &refused);
        }
    }
    bench.service.offline = None;
    expect_reply(&mut bench, client, &option(7, &wire::go("vol", &[])), &bytes![info_export(7, SIZE, FLAGS), ack(7)]);
    let mut bench = Bench::new();
    bench.service.offline = Some("vol");
    let client = haggling(&mut bench);
    expect_reply(&mut bench, client, &option(1, b"vol"), &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn info_tells_what_is_asked_and_go_enters() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let everything = |option| {
        bytes![
            info_export(option, SIZE, FLAGS),
            option_reply(option, 3, &bytes![u16be(1), b"vol"]),
            option_reply(option, 3, &bytes![u16be(2), VOL.as_bytes()]),
            option_reply(option, 3, &bytes![u16be(3), u32be(1), u32be(4096), u32be(32 << 20)]),
            ack(option)
        ]
    };
    // The empty name is the first volume; unknown and repeated requests change nothing.
    expect_reply(&mut bench, client, &option(6, &wire::go("", &[1, 2, 3])), &everything(6));
    expect_reply(&mut bench, client, &option(6, &wire::go("vol", &[3, 99, 2, 1, 1])), &everything(6));
    expect_reply(
        &mut bench,
        client,
        &option(6, &wire::go("other", &[])),
        &bytes![info_export(6, 12293, FLAGS), ack(6)],
    );
    expect_reply(&mut bench, client, &option(7, &wire::go("vol", &[3, 1, 2])), &everything(7));
    let flush = wire::request(0, wire::FLUSH, 1, 0, 0);
    expect_reply(&mut bench, client, &flush, &wire::simple(0, 1, &[]));
}

#[test]
fn info_and_go_refuse_bad_data() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let invalid = |option| option_reply(option, wire::ERR_INVALID, b"the option's lengths do not fit together");
    let long_name = "n".repeat(4097);
    for option_number in [6, 7] {
        for bad in [
            &[][..],
            &u32be(0),
            &bytes![u32be(3), b"vol"],
            &bytes![u32be(3), b"vol", u16be(1)],
            &bytes![u32be(3), b"vol", u16be(0), b"x"],
            &bytes![u32be(3), b"vol", u16be(0), u16be(3)],
            &bytes![u32be(u32::MAX), b"vol", u16be(0)],
            &bytes![u32be(4), b"vol", u16be(0)],
            &wire::go("v\0l", &[]),
            &bytes![u32be(2), [0xc3, 0x28], u16be(0)],
            &wire::go(&long_name, &[]),
        ] {
            expect_reply(&mut bench, client, &option(option_number, bad), &invalid(option_number));
        }
        let unknown = option_reply(option_number, wire::ERR_UNKNOWN, b"no volume has this name");
        expect_reply(&mut bench, client, &option(option_number, &wire::go("nothing", &[1])), &unknown);
        // A name of the greatest length is looked for.
        expect_reply(&mut bench, client, &option(option_number, &wire::go(&long_name[1..], &[])), &unknown);
    }
    expect_reply(&mut bench, client, &option(7, &wire::go("vol", &[])), &bytes![info_export(7, SIZE, FLAGS), ack(7)]);
}

#[test]
fn structured_replies_and_extended_headers_change_the_flags() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let info = option(6, &wire::go("vol", &[]));
    expect_reply(&mut bench, client, &option(8, b"x"), &option_reply(8, wire::ERR_INVALID, b"this option has no data"));
    expect_reply(&mut bench, client, &info, &bytes![info_export(6, SIZE, FLAGS), ack(6)]);
    expect_reply(&mut bench, client, &option(8, &[]), &ack(8));
    expect_reply(&mut bench, client, &option(8, &[]), &ack(8));
    expect_reply(&mut bench, client, &info, &bytes![info_export(6, SIZE, FLAGS | SEND_DF), ack(6)]);
    expect_reply(
        &mut bench,
        client,
        &option(11, b"x"),
        &option_reply(11, wire::ERR_INVALID, b"this option has no data"),
    );
    expect_reply(&mut bench, client, &option(11, &[]), &ack(11));
    let text = b"extended headers are in force already";
    expect_reply(&mut bench, client, &option(8, &[]), &option_reply(8, wire::ERR_EXT_HEADER_REQD, text));
    expect_reply(&mut bench, client, &info, &bytes![info_export(6, SIZE, FLAGS | SEND_DF), ack(6)]);
    let query = option(10, &wire::meta_query("vol", &["base:allocation"]));
    let context = option_reply(10, 4, &bytes![u32be(1), b"base:allocation"]);
    expect_reply(&mut bench, client, &query, &bytes![context, ack(10)]);
    let flags = FLAGS | SEND_DF | BLOCK_STATUS_PAYLOAD;
    expect_reply(&mut bench, client, &info, &bytes![info_export(6, SIZE, flags), ack(6)]);
    // Extended headers rule out the old way in.
    expect_reply(&mut bench, client, &option(1, b"vol"), &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn metadata_contexts_are_listed_and_selected() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let listed = bytes![option_reply(9, 4, &bytes![u32be(0), b"base:allocation"]), ack(9)];
    let lists: [(&[&str], &[u8]); 6] = [
        (&[], &listed),
        (&["base:"], &listed),
        (&["base:allocation"], &listed),
        (&["base:allocation", "base:"], &listed),
        (&["x-else:", "base:nothing", "nocolon", ""], &ack(9)),
        (&["x-else:", "base:allocation"], &listed),
    ];
    for (queries, expected) in lists {
        expect_reply(&mut bench, client, &option(9, &wire::meta_query("vol", queries)), expected);
    }
    let select = |name, queries: &[&str]| option(10, &wire::meta_query(name, queries));
    let early =
        option_reply(10, wire::ERR_INVALID, b"metadata contexts need structured replies or extended headers first");
    expect_reply(&mut bench, client, &select("vol", &["base:allocation"]), &early);
    expect_reply(&mut bench, client, &option(8, &[]), &ack(8));
    let selected = bytes![option_reply(10, 4, &bytes![u32be(1), b"base:allocation"]), ack(10)];
    expect_reply(&mut bench, client, &select("vol", &["base:allocation", "base:allocation"]), &selected);
    expect_reply(&mut bench, client, &select("vol", &["base:"]), &ack(10));
    expect_reply(&mut bench, client, &select("vol", &[]), &ack(10));
    for number in [9, 10] {
        let unknown = option_reply(number, wire::ERR_UNKNOWN, b"no volume has this name");
        expect_reply(&mut bench, client, &option(number, &wire::meta_query("nothing", &[])), &unknown);
        let good = wire::meta_query("vol", &["base:allocation"]);
        let invalid = option_reply(number, wire::ERR_INVALID, b"the queries' lengths do not fit");
        let lying_count = bytes![u32be(3), b"vol", u32be(u32::MAX)];
        for bad in [&good[..good.len() - 1], &bytes![good, b"x"], &lying_count, b"", &u32be(4096)] {
            expect_reply(&mut bench, client, &option(number, bad), &invalid);
        }
    }
}

#[test]
fn a_context_counts_only_for_the_volume_it_was_selected_for() {
    let status = wire::request(0, wire::BLOCK_STATUS, 5, 0, 4096);
    let selections: [(&[(&str, &str)], bool); 4] = [
        (&[("vol", "base:allocation")], true),
        (&[("other", "base:allocation")], false),
        (&[("vol", "base:allocation"), ("nothing", "base:allocation")], false),
        (&[("", "base:allocation")], true),
    ];
    for (selected, works) in selections {
        let mut bench = Bench::new();
        let client = haggling(&mut bench);
        bench.exchange(client, &option(8, &[]));
        for (name, query) in selected {
            bench.exchange(client, &option(10, &wire::meta_query(name, &[query])));
        }
        bench.exchange(client, &option(7, &wire::go("vol", &[])));
        let expected = if works {
            wire::chunk(true, wire::STATUS, 5, &bytes![u32be(1), u32be(4096), u32be(3)])
        } else {
            let text = "no metadata context is selected for this volume";
            wire::chunk(true, wire::ERROR, 5, &wire::error(wire::EINVAL, text))
        };
        expect_reply(&mut bench, client, &status, &expected);
    }
}

#[test]
fn tls_and_unknown_options_are_refused_and_their_data_skipped() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    let tls = option_reply(5, wire::ERR_UNSUP, b"this server has no TLS");
    expect_reply(&mut bench, client, &option(5, &[]), &tls);
    expect_reply(&mut bench, client, &option(5, b"x"), &option_reply(5, wire::ERR_INVALID, b"this option has no data"));
    for number in [0, 4, 12, 77, u32::MAX] {
        let unsup = option_reply(number, wire::ERR_UNSUP, b"this server does not know the option");
        expect_reply(&mut bench, client, &option(number, &vec![0x49; 200_000]), &unsup);
    }
    expect_reply(&mut bench, client, &option(2, &[]), &ack(2));
}

#[test]
fn option_lengths_at_their_bounds() {
    const LOOKED_AT: usize = 32 << 10;
    const SKIPPED: usize = 1 << 20;
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    // The longest list of queries that is looked at, and one byte more.
    let mut queries = wire::meta_query("vol", &[]);
    queries.resize(LOOKED_AT, 0);
    let invalid = option_reply(9, wire::ERR_INVALID, b"the queries' lengths do not fit");
    expect_reply(&mut bench, client, &option(9, &queries), &invalid);
    let big = |number| option_reply(number, wire::ERR_TOO_BIG, b"the option is longer than 32 KiB");
    for number in [3, 5, 6, 7, 8, 9, 10, 11] {
        expect_reply(&mut bench, client, &option(number, &vec![0; LOOKED_AT + 1]), &big(number));
        expect_reply(&mut bench, client, &option(number, &vec![0; SKIPPED]), &big(number));
    }
    // Whoever announces more than that is not waited for.
    let header = bytes![b"IHAVEOPT", u32be(6), u32be(u32::try_from(SKIPPED).expect("small") + 1)];
    expect_reply(&mut bench, client, &header, &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn a_wrong_magic_ends_the_session() {
    let mut bench = Bench::new();
    let client = haggling(&mut bench);
    expect_reply(&mut bench, client, &bytes![b"IHAVEOPX", u32be(3), u32be(0)], &[]);
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
}

#[test]
fn a_handshake_may_arrive_byte_by_byte() {
    let mut bench = Bench::new();
    let client = bench.connect();
    let sent = bytes![
        wire::client_flags(3),
        option(77, b"unknown"),
        option(8, &[]),
        option(10, &wire::meta_query("vol", &["base:allocation"])),
        option(7, &wire::go("vol", &[])),
        wire::request(0, wire::READ, 1, 4, 3)
    ];
    let received: Vec<u8> = sent.iter().flat_map(|&byte| bench.exchange(client, &[byte])).collect();
    let expected = bytes![
        option_reply(77, wire::ERR_UNSUP, b"this server does not know the option"),
        ack(8),
        option_reply(10, 4, &bytes![u32be(1), b"base:allocation"]),
        ack(10),
        info_export(7, SIZE, FLAGS | SEND_DF),
        ack(7),
        wire::chunk(true, wire::OFFSET_HOLE, 1, &wire::hole(4, 3))
    ];
    assert_eq!(received, expected);
}
