//! Clients that stall, flood, lie or vanish: bounded harm to themselves, none to others.

use crate::support::{
    Bench, SIZE,
    byte_net::Closed,
    memory_service::MemoryService,
    wire::{self, Style, bytes, option, option_reply},
};
use std::time::Duration;
use twinlog::base::{
    Prng,
    limits::{CONNECTION_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX},
};
use twinlog_device::ConnectionId;

const HANDSHAKE: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(300);
const PRESSED: Duration = Duration::from_secs(5);
const A_SECOND: Duration = Duration::from_secs(1);

/// A flush and its reply prove that a client is served.
#[track_caller]
fn expect_served(bench: &mut Bench, client: ConnectionId) {
    assert_eq!(bench.exchange(client, &wire::request(0, wire::FLUSH, 77, 0, 0)), wire::simple(0, 77, &[]));
}

#[test]
fn a_handshake_has_a_deadline_and_a_rest_between_requests_has_none() {
    let mut bench = Bench::new();
    let slow = bench.connect();
    let idle = bench.enter(Style::Simple);
    bench.pass(HANDSHAKE);
    assert_eq!(bench.exchange(slow, &wire::client_flags(3)), b"");
    assert_eq!(bench.closed(slow), None);
    bench.pass(A_SECOND);
    assert_eq!(bench.closed(slow), Some(Closed::Aborted));
    bench.pass(100 * STALL);
    expect_served(&mut bench, idle);
}

#[test]
fn a_request_that_is_half_sent_is_not_waited_for_for_ever() {
    for half in [
        vec![0x25],
        wire::write(0, 1, 0, &[9; 100])[..100].to_vec(),
        wire::write(0, 1, SIZE, b"refused")[..30].to_vec(),
    ] {
        let mut bench = Bench::new();
        let client = bench.enter(Style::Simple);
        bench.exchange(client, &half);
        bench.pass(STALL);
        assert_eq!(bench.closed(client), None);
        bench.pass(A_SECOND);
        assert_eq!(bench.closed(client), Some(Closed::Aborted));
    }
}

#[test]
fn whoever_holds_memory_that_is_short_is_waited_for_less() {
    // The pool has two parts of a request: one client's half-sent write and one client's unread reply hold them.
    let service = MemoryService::new(3, 520, &[("vol", SIZE)]);
    let mut bench = Bench::with_service(service);
    let writer = bench.enter(Style::Simple);
    let late = bench.enter(Style::Simple);
    let half = wire::write(0, 1, 0, &vec![9; 2 << 20]);
    bench.exchange(writer, &half[..100]);
    let second = bench.enter(Style::Simple);
    bench.exchange(second, &half[..100]);
    assert_eq!(bench.service.blocks_free(), 8);
    bench.exchange(late, &wire::write(0, 2, 0, &[1; 50_000]));
    bench.pass(PRESSED - A_SECOND);
    bench.exchange(second, &half[100..200]);
    bench.pass(2 * A_SECOND);
    assert_eq!(bench.closed(writer), Some(Closed::Aborted));
    assert_eq!(bench.closed(second), None, "who goes on is not dropped");
    assert_eq!(bench.receive(late), wire::simple(0, 2, &[]));
}

#[test]
fn replies_that_nobody_takes_are_bounded() {
    for style in [Style::Simple, Style::Structured] {
        let mut bench = Bench::new();
        let client = bench.enter(style);
        let other = bench.enter(Style::Simple);
        bench.exchange(client, &wire::write(0, 1, 0, &vec![9; 32 << 20]));
        let reads: Vec<u8> = (0..3).flat_map(|cookie| wire::request(0, wire::READ, cookie, 0, 32 << 20)).collect();
        bench.net.client_send(client, &reads);
        bench.settle();
        let waiting = bench.net.waiting_bytes(client) as u64;
        assert!(waiting <= CONNECTION_BYTES_MAX + 4096 && waiting > CONNECTION_BYTES_MAX / 2, "{waiting}");
        expect_served(&mut bench, other);
        // Taken in small pieces, everything comes.
        let mut received = 0;
        loop {
            let bytes = bench.net.client_take(client, 3_333_333);
            bench.settle();
            received += bytes.len() as u64;
            assert!(bench.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + 4096);
            if bytes.is_empty() {
                break;
            }
        }
        assert!(received >= 3 * (32 << 20), "{received}");
        bench.net.client_send(client, &reads);
        bench.pass(STALL + A_SECOND);
        bench.pass(STALL + A_SECOND);
        assert_eq!(bench.closed(client), Some(Closed::Aborted), "a client that takes nothing is dropped");
        expect_served(&mut bench, other);
    }
}

#[test]
fn errors_that_nobody_takes_are_bounded() {
    let mut bench = Bench::new();
    let client = bench.enter(Style::Structured);
    let bad: Vec<u8> = (0..150_000).flat_map(|cookie| wire::request(0, 99, cookie, 0, 0)).collect();
    bench.net.client_send(client, &bad);
    bench.settle();
    assert!(bench.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + 4096);
    assert!(bench.net.unread_bytes(client) > 0);
    let one = wire::chunk(true, wire::ERROR, 0, &wire::error(wire::EINVAL, "this server does not know the command"));
    assert_eq!(bench.receive(client).len(), 150_000 * one.len());
}

#[test]
fn options_whose_replies_nobody_takes_are_bounded() {
    let mut bench = Bench::new();
    let client = bench.connect();
    let options: Vec<u8> = (0..200_000).flat_map(|_| option(3, &[])).collect();
    bench.net.client_send(client, &bytes![wire::client_flags(3), options]);
    bench.settle();
    assert!(bench.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + 4096);
    assert!(bench.net.unread_bytes(client) > 0);
}

#[test]
fn requests_in_flight_are_bounded_and_others_go_on() {
    let mut bench = Bench::new();
    let client = bench.enter(Style::Simple);
    let flood: Vec<u8> = (0..2000).flat_map(|cookie| wire::request(0, wire::FLUSH, cookie, 0, 0)).collect();
    bench.service.hold = true;
    bench.net.client_send(client, &flood);
    bench.settle();
    assert_eq!(bench.service.pending_count(), REQUESTS_PER_CONNECTION_MAX);
    bench.service.hold = false;
    assert_eq!(bench.receive(client).len(), 2000 * 16);
    // By bytes: eight parts of a write, each of 1 MiB.
    bench.service.hold = true;
    bench.net.client_send(client, &wire::write(0, 1, 0, &vec![1; 32 << 20]));
    bench.settle();
    assert_eq!(bench.service.pending_count() as u64, CONNECTION_BYTES_MAX >> 20);
    bench.service.hold = false;
    assert_eq!(bench.receive(client), wire::simple(0, 1, &[]));
}

#[test]
fn a_flood_takes_turns_with_everybody_else() {
    let mut bench = Bench::new();
    let flooder = bench.enter(Style::Simple);
    let other = bench.enter(Style::Simple);
    let flood: Vec<u8> = (0..2000).flat_map(|cookie| wire::request(0, 99, cookie, 0, 0)).collect();
    bench.net.client_send(flooder, &flood);
    bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
    bench.net.client_send(other, &wire::request(0, 99, 1, 0, 0));
    bench.server.poll(&mut bench.net, &mut bench.service, bench.now);
    assert_eq!(bench.net.client_take(other, 16), wire::simple(wire::EINVAL, 1, &[]));
    assert!(bench.net.waiting_bytes(flooder) <= 2 * 64 * 16, "64 steps a turn");
}

#[test]
fn an_engine_without_room_stops_the_intake() {
    let mut bench = Bench::new();
    let client = bench.enter(Style::Simple);
    bench.service.room = 3;
    bench.service.hold = true;
    let requests: Vec<u8> = (0..10).flat_map(|cookie| wire::request(0, wire::READ, cookie, cookie, 1)).collect();
    bench.net.client_send(client, &requests);
    bench.settle();
    assert_eq!((bench.service.pending_count(), bench.net.unread_bytes(client)), (3, 7 * 28));
    bench.service.hold = false;
    assert_eq!(bench.receive(client).len(), 10 * 17);
}

#[test]
fn a_client_that_vanishes_leaves_nothing() {
    let whole = bytes![
        wire::request(0, wire::READ, 1, 0, 3 << 20),
        wire::write(0, 2, 4096, &vec![5; 2 << 20]),
        wire::request(0, wire::FLUSH, 3, 0, 0)
    ];
    for style in [Style::Simple, Style::Structured] {
        for hold in [false, true] {
            for cut in [1, 27, 28, 29, 5000, 1 << 20, (1 << 20) + 100, whole.len() - 1, whole.len()] {
                let mut bench = Bench::new();
                let client = bench.enter(style);
                let other = bench.enter(Style::Simple);
                bench.service.hold = hold;
                bench.net.client_send(client, &whole[..cut]);
                bench.settle();
                bench.net.client_drop(client);
                assert_eq!(bench.closed(client), Some(Closed::Aborted));
                bench.service.hold = false;
                expect_served(&mut bench, other);
                assert_eq!(bench.service.blocks_free(), 16 << 10, "every block is back");
                assert_eq!(bench.server.connection_count(), 1);
            }
        }
    }
}

#[test]
fn a_client_that_sends_no_more_gets_its_replies() {
    for style in [Style::Simple, Style::Structured] {
        let mut bench = Bench::new();
        let client = bench.enter(style);
        let sent = bytes![
            wire::write(0, 1, 0, &[5; 5000]),
            wire::request(0, wire::READ, 2, 4999, 3 << 20),
            wire::write(0, 3, 0, &[6; 5000])[..4000]
        ];
        bench.service.idle_of_eight = 5;
        bench.net.client_send(client, &sent);
        bench.net.client_end(client);
        let reply = bench.receive(client);
        // The order of the two is the engine's, so only the lengths are known; the zeroes of the read may come as a hole.
        assert!(reply.len() > if style == Style::Simple { 3 << 20 } else { 64 }, "{style:?}: {}", reply.len());
        assert_eq!(bench.closed(client), Some(Closed::Gracefully));
        assert_eq!(bench.service.content(0, 0..5001), bytes![[5; 5000], [0]], "a write that came in part is not done");
        assert_eq!(bench.service.blocks_free(), 16 << 10);
    }
    let mut bench = Bench::new();
    let client = bench.connect();
    bench.net.client_end(client);
    assert_eq!(bench.closed(client), Some(Closed::Gracefully));
}

#[test]
fn clients_over_the_limit_are_told_so() {
    let mut bench = Bench::new();
    let clients: Vec<ConnectionId> = (0..4).map(|_| bench.enter(Style::Simple)).collect();
    let refused: Vec<ConnectionId> = (0..16).map(|_| bench.connect()).collect();
    let text = b"the server has as many connections as it is allowed";
    let sent = bytes![wire::client_flags(3), option(7, &wire::go("vol", &[]))];
    assert_eq!(bench.exchange(refused[0], &sent), option_reply(7, wire::ERR_POLICY, text));
    assert_eq!(bench.exchange(refused[0], &option(2, &[])), option_reply(2, 1, &[]));
    assert_eq!(bench.closed(refused[0]), Some(Closed::Gracefully));
    assert_eq!(bench.exchange(refused[1], &bytes![wire::client_flags(3), option(1, b"vol")]), b"");
    assert_eq!(bench.closed(refused[1]), Some(Closed::Aborted));
    let (_, _) = (bench.connect(), bench.connect());
    let beyond = bench.net.new_client();
    assert_eq!(bench.closed(beyond), Some(Closed::Aborted), "a flood of refused clients is not talked to");
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.server.connection_count(), 4);
    bench.exchange(clients[0], &wire::request(0, wire::DISC, 0, 0, 0));
    bench.enter(Style::Simple);
    expect_served(&mut bench, clients[3]);
}

#[test]
fn stopping_answers_what_is_in_flight_and_refuses_the_rest() {
    let mut bench = Bench::new();
    let idle = bench.enter(Style::Simple);
    let haggling = bench.connect();
    let busy = bench.enter(Style::Simple);
    let writer = bench.enter(Style::Simple);
    bench.service.hold = true;
    bench.net.client_send(busy, &wire::request(0, wire::FLUSH, 1, 0, 0));
    let write = wire::write(0, 2, 0, &[7; 5000]);
    bench.net.client_send(writer, &write[..3000]);
    bench.settle();
    bench.server.stop(bench.now);
    assert_eq!(bench.closed(idle), Some(Closed::Gracefully));
    assert_eq!(bench.closed(haggling), Some(Closed::Gracefully));
    let late = bench.net.new_client();
    assert_eq!(bench.closed(late), Some(Closed::Aborted));
    let refused = bytes![wire::simple(wire::ESHUTDOWN, 3, &[]), wire::simple(wire::ESHUTDOWN, 4, &[])];
    let more = bytes![wire::request(0, wire::READ, 3, 0, 512), wire::write(0, 4, 0, b"late")];
    assert_eq!(bench.exchange(busy, &more), refused);
    bench.service.hold = false;
    assert_eq!(bench.receive(busy), wire::simple(0, 1, &[]));
    assert!(!bench.server.is_stopped());
    assert_eq!(bench.exchange(writer, &write[3000..]), wire::simple(0, 2, &[]), "what was begun is finished");
    bench.pass(A_SECOND);
    assert_eq!(bench.closed(busy), Some(Closed::Gracefully));
    assert_eq!(bench.closed(writer), Some(Closed::Gracefully));
    assert!(bench.server.is_stopped());
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let mut bench = Bench::new();
    let writer = bench.enter(Style::Simple);
    bench.exchange(writer, &wire::write(0, 2, 0, &[7; 5000])[..3000]);
    bench.server.stop(bench.now);
    bench.pass(twinlog::serve::STOP_GRACE);
    assert!(!bench.server.is_stopped());
    bench.pass(A_SECOND);
    assert_eq!(bench.closed(writer), Some(Closed::Aborted));
    assert!(bench.server.is_stopped());
}

#[test]
fn stopping_tells_clients_that_are_haggling() {
    let mut bench = Bench::new();
    let client = bench.connect();
    bench.net.client_send(client, &bytes![wire::client_flags(3), option(3, &[]), option(2, &[])]);
    bench.server.stop(bench.now);
    let refused = option_reply(3, wire::ERR_SHUTDOWN, b"the server is being stopped");
    assert_eq!(bench.receive(client), bytes![refused, option_reply(2, 1, &[])]);
    assert_eq!(bench.closed(client), Some(Closed::Gracefully));
}

#[test]
fn how_bytes_are_cut_into_pieces_changes_nothing() {
    let mut prng = Prng::new(0x00C4_0B5E);
    for style in [Style::Simple, Style::Structured] {
        // One request at a time is in flight, so that the order of replies does not depend on the engine.
        let mut sent = Vec::new();
        for cookie in 0..60 {
            let offset = prng.below(SIZE / 64);
            let length = u32::try_from(prng.between(1, 3 << 16)).expect("small");
            sent.push(match prng.below(4) {
                0 => wire::write(0, cookie, offset, &vec![u8::try_from(cookie).expect("small"); length as usize]),
                1 => wire::request(0, wire::WRITE_ZEROES, cookie, offset, length),
                2 => wire::write(0, cookie, SIZE - 1, &[1; 100]),
                _ => wire::request(0, wire::READ, cookie, offset, length),
            });
        }
        let run = |cuts: Option<u64>| {
            let mut bench = Bench::new();
            bench.service.room = 1;
            let client = bench.enter(style);
            let mut received = Vec::new();
            let mut prng = Prng::new(cuts.unwrap_or(0));
            for request in &sent {
                let mut rest = &request[..];
                while !rest.is_empty() {
                    let longest =
                        if cuts.is_some() { *prng.pick(&[1, 30, 5000, 70_000]) } else { usize::MAX }.min(rest.len());
                    let cut = if cuts.is_some() { prng.between(1, longest as u64) } else { longest as u64 };
                    let (now, later) = rest.split_at(usize::try_from(cut).expect("small"));
                    bench.net.client_send(client, now);
                    bench.settle();
                    let take =
                        if cuts.is_some() { usize::try_from(prng.below(70_000)).expect("small") } else { usize::MAX };
                    received.extend(bench.net.client_take(client, take));
                    rest = later;
                }
            }
            received.extend(bench.receive(client));
            received
        };
        let whole = run(None);
        for seed in 1..6 {
            assert!(run(Some(seed)) == whole, "{style:?} {seed}");
        }
    }
}
