//! Data of writes that is received straight into its blocks.

use crate::support::{
    Bench,
    byte_net::Closed,
    wire::{self, Style, bytes},
};
use std::time::Duration;
use twinlog::node::request::VolumeError;
use twinlog_device::ConnectionId;

/// Bytes of a request of the simple and the structured style.
const HEAD: usize = 28;

const MIB: usize = 1 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at / 7 + at / 4096) % 251).expect("it fits")).collect()
}

fn send_cut(bench: &mut Bench, client: ConnectionId, sent: &[u8], cuts: &[usize]) {
    let mut begin = 0;
    for end in cuts.iter().copied().chain([sent.len()]) {
        bench.net.client_send(client, &sent[begin..end]);
        bench.settle();
        begin = end;
    }
}

#[test]
fn a_write_that_is_cut_anywhere_is_written_whole() {
    // Two parts and a bit, neither the first nor the last of them whole blocks.
    let (offset, data) = (1000_u64, pattern(2 * MIB + 70_000));
    let first_part = HEAD + MIB - 1000;
    let whole = bytes![wire::write(0, 1, offset, &data), wire::request(0, wire::FLUSH, 2, 0, 0)];
    for (cuts, is_landing) in [
        (vec![HEAD - 1], false),
        (vec![HEAD + 1], true),
        (vec![HEAD + 3096], true),
        (vec![HEAD + 512, HEAD + 513, first_part - 1, first_part + 1], true),
        (vec![first_part - (16 << 10)], true),
        (vec![first_part - (16 << 10) + 1], false),
        (vec![first_part], false),
        (vec![first_part + 5, whole.len() - HEAD - 1], true),
        (vec![first_part + MIB + 5, whole.len() - HEAD, whole.len() - 1], true),
    ] {
        let mut bench = Bench::new();
        let client = bench.enter(Style::Simple);
        send_cut(&mut bench, client, &whole, &cuts);
        let mut replies = bench.receive(client);
        if replies[8] == 2 || replies[15] == 2 {
            replies.rotate_left(16);
        }
        assert_eq!(replies, bytes![wire::simple(0, 1, &[]), wire::simple(0, 2, &[])], "cut at {cuts:?}");
        let written = bench.service.content(0, 0..offset + data.len() as u64 + 1);
        assert!(written == bytes![[0; 1000], data, [0]], "cut at {cuts:?}");
        assert_eq!(bench.net.landing_count() > 0, is_landing, "cut at {cuts:?}");
    }
}

#[test]
fn a_part_that_never_lands_whole_is_not_written_and_holds_nothing() {
    let whole = wire::write(0, 1, 0, &vec![5; 2 * MIB]);
    for is_ended in [false, true] {
        for (cut, written) in [(HEAD + 1, 0), (HEAD + MIB - 1, 0), (HEAD + MIB + 1, MIB), (whole.len() - 1, MIB)] {
            let mut bench = Bench::new();
            let client = bench.enter(Style::Simple);
            let other = bench.enter(Style::Simple);
            send_cut(&mut bench, client, &whole[..cut], &[HEAD + 1]);
            assert!(bench.net.landing_count() > 0);
            if is_ended {
                bench.net.client_end(client);
                assert_eq!(bench.closed(client), Some(Closed::Gracefully));
            } else {
                bench.net.client_drop(client);
                assert_eq!(bench.closed(client), Some(Closed::Aborted));
            }
            let content = bench.service.content(0, 0..2 * MIB as u64);
            assert!(content == [vec![5; written], vec![0; 2 * MIB - written]].concat(), "cut at {cut}");
            assert_eq!(bench.service.blocks_free(), 16 << 10, "every block is back");
            assert_eq!(bench.closed(other), None);
        }
    }
}

#[test]
fn an_error_of_another_part_fails_a_write_whose_data_is_landing() {
    let mut bench = Bench::new();
    let client = bench.enter(Style::Simple);
    bench.service.poison = Some((0..1, VolumeError::Stopped("gone".to_owned())));
    let whole = wire::write(0, 1, 0, &vec![6; 2 * MIB]);
    send_cut(&mut bench, client, &whole, &[HEAD + MIB + 1]);
    assert_eq!((bench.net.landing_count(), bench.service.submitted_count), (1, 1), "only the first part is tried");
    assert_eq!(bench.receive(client), wire::simple(wire::EIO, 1, &[]));
    assert_eq!(bench.service.blocks_free(), 16 << 10, "every block is back");
    assert_eq!(bench.exchange(client, &wire::request(0, wire::FLUSH, 2, 0, 0)), wire::simple(0, 2, &[]));
}

#[test]
fn a_client_whose_data_keeps_landing_is_waited_for_and_one_that_stops_is_not() {
    let mut bench = Bench::new();
    let client = bench.enter(Style::Simple);
    let whole = wire::write(0, 1, 0, &vec![5; MIB]);
    send_cut(&mut bench, client, &whole[..HEAD + 2], &[HEAD + 1]);
    assert_eq!(bench.net.landing_count(), 1);
    bench.pass(Duration::from_secs(200));
    bench.net.client_send(client, &[5]);
    assert_eq!(bench.closed(client), None);
    bench.pass(Duration::from_secs(200));
    assert_eq!(bench.closed(client), None, "it went on");
    bench.pass(Duration::from_secs(101));
    assert_eq!(bench.closed(client), Some(Closed::Aborted));
    assert_eq!(bench.service.blocks_free(), 16 << 10);
}
