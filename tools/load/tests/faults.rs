//! The tester tested: servers that lose, damage and misplace data, lie or go away, and what the program says about each.

mod support;

use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    time::Duration,
};

use support::{Fault, Run, Server, command, load};

const SIZE: usize = 1 << 20;
/// 64 writes of 4 KiB, one after the other: each block is written once, so that nothing hides a fault.
const ONCE: &str = "--rw write --size 256k --ops 64 --warmup 0 --qd 8";

/// A run that writes with a journal and without any check of its own, then a proof.
fn prove_after(fault: Fault, arguments: &str, proof: &str) -> Run {
    let server = Server::start(SIZE, fault);
    let journal = server.path("j");
    let written = server.load(&format!("{arguments} --journal {journal}"));
    assert!(written.code == 0 || written.code == 3, "{written:?}");
    server.heal();
    server.load(&format!("--prove {journal} {proof}"))
}

#[test]
fn a_good_server_passes_on_every_transport_and_with_every_request() {
    let mixed = "--rw randrw --mix 40 --bs 512-16k --size 512k --zero 10 --trim 5 --fua=30 --flush-every 50 --warmup 0 --ops 3000";
    let unaligned = "--rw randrw --bs 100-5000 --align 50 --size 500k --warmup 0 --ops 2000";
    for server in [Server::start(SIZE, Fault::None), Server::start_tcp(SIZE)] {
        for (number, load) in [mixed, unaligned].into_iter().enumerate() {
            for connections in [1, 3] {
                let journal = server.path(&format!("j{number}-{connections}"));
                let run = server.load(&format!("{load} --verify --connections {connections} --journal {journal}"));
                run.ends(0).says("all as they must be");
                server.load(&format!("--prove {journal} --connections 2 --qd 3")).ends(0).says("PROVEN");
                server.load(&format!("--prove {journal} --level durable")).ends(0).says("PROVEN");
            }
        }
    }
}

#[test]
fn verification_finds_every_wrong_content() {
    let faults =
        [Fault::LoseWrite(60), Fault::FlipBit(60), Fault::Misdirect(60), Fault::LoseTail(60), Fault::StaleReads(60)];
    for fault in faults {
        Server::start(SIZE, fault).load(&format!("{ONCE} --verify")).ends(1).says("NOT as they must be");
    }
}

#[test]
fn a_proof_finds_every_wrong_content_and_names_it() {
    let cases = [
        (Fault::LoseWrite(60), "LOST"),
        (Fault::FlipBit(60), "DAMAGED"),
        (Fault::Misdirect(60), "MISPLACED"),
        (Fault::LoseTail(60), "LOST"),
        (Fault::StaleReads(60), "LOST"),
    ];
    for (fault, name) in cases {
        prove_after(fault, ONCE, "").ends(1).says(name).says("LOST: the target breaks its promise");
    }
}

#[test]
fn a_finding_names_place_expectation_and_content() {
    let server = Server::start(SIZE, Fault::LoseWrite(3));
    let journal = server.path("j");
    server.load(&format!("--rw write --size 12k --ops 3 --warmup 0 --qd 1 --journal {journal}")).ends(0);
    let run = server.load(&format!("--prove {journal}")).ends(1);
    let run = run.says("byte 8192, 512 bytes: expected version 3, found zeroes (flushed)");
    run.says("sectors: 0 acknowledged only, 0 with FUA, 8 flushed; 0 wrong otherwise");
    let json = server.load(&format!("--prove {journal} -o json")).ends(1).json();
    assert_eq!((json["schema_version"].as_u64(), json["verdict"].as_str()), (Some(1), Some("lost")));
    assert_eq!(json["findings"]["first"][0]["offset"], 8192);
}

#[test]
fn a_lost_unaligned_tail_is_found() {
    let odd = "--rw write --bs 1000 --size 64000 --ops 64 --warmup 0";
    prove_after(Fault::LoseTail(40), odd, "").ends(1).says("DAMAGED");
}

#[test]
fn zeroes_a_sector_short_or_long_are_found() {
    let zeroing = "--rw randwrite --size 256k --zero 30 --warmup 0 --ops 300 --fill --verify";
    for fault in [Fault::ShortZero(1), Fault::LongZero(1)] {
        Server::start(SIZE, fault).load(zeroing).ends(1).says("NOT as they must be");
    }
    // The requests are always the same, one after the other: of a handful of trims, all could have a later write hide what they did.
    let trimming = "--rw randwrite --size 256k --trim 10 --warmup 0 --ops 100 --qd 1 --seed 1 --fill --verify";
    Server::start(SIZE, Fault::LongZero(1)).load(trimming).ends(1).says("NOT as they must be");
}

#[test]
fn what_was_never_written_must_not_appear() {
    let server = Server::start(SIZE, Fault::None);
    let blank = "--rw write --size 64k --ops 4 --warmup 0 --verify --blank";
    server.load(blank).ends(0);
    server.alter(|content| content[50_000] = 1);
    server.load(blank).ends(1).says("expected zeroes (never written)");
    server.load(&blank.replace("--blank", "")).ends(0);
}

#[test]
fn acknowledged_fua_and_flushed_are_told_apart_after_a_crash() {
    // 64 different blocks, a quarter with FUA, a flush after every 20, the crash at the 51st change: 40 are flushed.
    let load = "--rw write --size 256k --ops 200 --warmup 0 --qd 1 --fua=25 --flush-every 20 --seed 1";
    let lost = |fault, proof: &str| prove_after(fault, load, proof);
    lost(Fault::Crash(51), "").ends(1).says("(acknowledged)").says("0 with FUA, 0 flushed");
    lost(Fault::Crash(51), "--level durable").ends(0).says("PROVEN: no durable write was lost");
    lost(Fault::CrashWithoutFua(51), "--level durable").ends(1).says("(FUA)").says("0 flushed; 0 wrong");
    lost(Fault::CrashWithoutFlush(51), "--level durable").ends(1).says("(flushed)").says("0 acknowledged only");
    lost(Fault::Cut(51), "").ends(0).says("PROVEN");
}

#[test]
fn a_lost_connection_ends_the_run_with_its_own_code_and_a_whole_journal() {
    let server = Server::start(SIZE, Fault::Cut(500));
    let journal = server.path("j");
    let run = server
        .load(&format!("--rw randwrite --size 256k --time 60 --warmup 0 --verify --connections 2 --journal {journal}"));
    run.ends(3).says("the target was lost").says("ended         the connection was lost");
    server.load(&format!("--prove {journal}")).ends(0).says("PROVEN");
    server.load(&format!("--size 256k --ops 100 --warmup 0 --verify --journal {journal}")).ends(0);
    server.load(&format!("--prove {journal}")).ends(0).says("PROVEN");
    server.alter(|content| content[..262_144].fill(0));
    server.load(&format!("--prove {journal}")).ends(1);
}

#[test]
fn reconnection_sends_unanswered_requests_once_more() {
    for connections in [1, 2] {
        let server = Server::start(SIZE, Fault::Cut(300));
        let load = "--rw randwrite --size 256k --ops 1000 --warmup 0 --verify --reconnect 20 -o json";
        let json = server.load(&format!("{load} --connections {connections}")).ends(0).json();
        assert_eq!((json["acknowledged"]["ops"].as_u64(), json["end"].as_str()), (Some(1000), Some("finished")));
        let pauses = json["pauses"].as_array().unwrap();
        let again: u64 = pauses.iter().map(|pause| pause["sent_again"].as_u64().unwrap()).sum();
        assert!(!pauses.is_empty() && again > 0, "{pauses:?}");
        assert!(json["longest_pause_seconds"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn an_alternate_server_is_tried_when_the_first_is_gone() {
    let (gone, other) = (Server::start(SIZE, Fault::Gone(100)), Server::start(SIZE, Fault::None));
    let load = format!("--rw randwrite --ops 1000 --warmup 0 --reconnect 20 -o json --alternate {}", other.uri());
    let json = gone.load(&load).ends(0).json();
    assert_eq!((json["acknowledged"]["ops"].as_u64(), json["end"].as_str()), (Some(1000), Some("finished")));
    gone.load(&load).ends(0);
    gone.load("--reconnect 1 --alternate /a/file").ends(2).says("is no NBD export");
}

#[test]
fn moments_are_marked_in_the_report() {
    let server = Server::start(SIZE, Fault::None);
    let (marks, report) = (server.path("marks"), server.path("report.html"));
    let load = format!("--ops 100 --warmup 0 --report {report} --marks {marks}");
    server.load(&load).ends(2).says("No such file");
    std::fs::write(&marks, "0.5 long ago\n\n").unwrap();
    server.load(&load).ends(0);
    assert!(!std::fs::read_to_string(&report).unwrap().contains("long ago"), "outside the picture");
    std::fs::write(&marks, "soon\n").unwrap();
    server.load(&load).ends(2).says("`soon` is not");
}

#[test]
fn reconnection_to_a_server_that_lost_data_is_a_finding() {
    let load = "--rw randrw --size 64k --time 60 --warmup 0 --verify --reconnect 20";
    Server::start(SIZE, Fault::Crash(300)).load(load).ends(1).says("LOST");
}

#[test]
fn a_server_that_stays_away_or_never_was_is_given_up() {
    let server = Server::start(SIZE, Fault::Gone(100));
    server.load("--time 60 --warmup 0 --reconnect 0.3").ends(3).says("the target was lost");
    let nowhere = server.path("nowhere");
    load(&format!("nbd+unix:///vol?socket={nowhere}"), "--reconnect 0.1").ends(3).says("connecting to");
    load("nbd+unix:///other?socket=/nonexistent", "").ends(3).says("No such file");
}

#[test]
fn a_server_that_breaks_the_protocol_or_falls_silent_is_lost() {
    let broken = |fault| Server::start(SIZE, fault).load("--time 60 --warmup 0 --timeout 60").ends(3);
    broken(Fault::WrongCookie(50)).says("a reply to a request that is not open");
    broken(Fault::WrongMagic(50)).says("a reply with magic");
    broken(Fault::Refuse(50, 108)).says("the server is shutting down");
    let silent = Server::start(SIZE, Fault::Stall(50, 5000)).load("--time 60 --warmup 0 --timeout 0.5");
    silent.ends(3).says("no answer for 0.5 s");
}

#[test]
fn failed_requests_are_counted_and_do_not_confuse_verification() {
    let load = "--rw randrw --size 64k --ops 500 --warmup 0 --verify";
    let refused = |arguments: &str| Server::start(SIZE, Fault::Refuse(50, 28)).load(arguments);
    refused(load).ends(1).says("1 x No space left on device").says("ended         errors");
    refused(&format!("{load} --max-errors 1")).ends(1).says("1 x No space").says("all as they must be");
}

#[test]
fn an_open_loop_charges_a_stall_to_every_request_that_was_due() {
    // The server stands still for 600 ms; 1000 requests per second were due.
    let server = Server::start(SIZE, Fault::Stall(200, 600));
    let json = server.load("--rate 1000 --time 1.5 --warmup 0 --qd 4 -o json").ends(0).json();
    let write = json["classes"].as_array().unwrap().iter().find(|class| class["kind"] == "write").unwrap();
    let table = write["percentiles"].as_array().unwrap();
    let slow = table.iter().find(|row| row[1].as_u64().unwrap() > 200_000_000).unwrap();
    let share = 1.0 - slow[0].as_f64().unwrap() / 100.0;
    let requests = write["ops"].as_f64().unwrap();
    assert!(share * requests > 200.0, "400 requests were due in the first 400 ms of the stall: {share} of {requests}");
}

#[test]
fn a_killed_load_leaves_a_journal_that_proves() {
    let server = Server::start(SIZE, Fault::None);
    let journal = server.path("j");
    let arguments = format!("--rw randwrite --size 256k --time 60 --warmup 0 --journal {journal}");
    for _ in 0..3 {
        let mut child = command(server.uri(), &arguments).spawn().unwrap();
        let before = std::fs::metadata(&journal).map_or(0, |meta| meta.len());
        while std::fs::metadata(&journal).map_or(0, |meta| meta.len()) < before + 100_000 {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        server.load(&format!("--prove {journal}")).ends(0).says("PROVEN");
    }
    server.alter(|content| content[4096..8192].fill(0));
    server.load(&format!("--prove {journal}")).ends(1).says("byte 4096");
}

#[test]
fn a_damaged_or_foreign_journal_is_a_matter_of_usage() {
    let server = Server::start(SIZE, Fault::None);
    let journal = server.path("j");
    server.load(&format!("{ONCE} --journal {journal}")).ends(0);
    server.load(&format!("--prove {}", server.path("none"))).ends(2).says("No such file");
    server.load(&format!("{ONCE} --bs 8k --journal {journal}")).ends(2).says("the journal is about");
    Server::start(SIZE / 8, Fault::None).load(&format!("--prove {journal}")).ends(2).says("the target has");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&journal).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(500)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(500)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    server.load(&format!("--prove {journal}")).ends(2).says("damaged at byte 480");
}

#[test]
fn impossible_wishes_are_a_matter_of_usage() {
    let server = Server::start(SIZE, Fault::None);
    for wish in ["--size 2m", "--bs 64m", "--rw nothing", "--offset 2m", "--bs 2m", "--verify --bs 16", "--time"] {
        server.load(wish).ends(2);
    }
}
