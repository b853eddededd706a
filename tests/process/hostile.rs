//! Clients that stall, flood, vanish or lie, against a real process: a well-behaved client beside them loses nothing and is never
//! refused, memory stays within its bound, and when they have gone nothing of them is left.
//!
//! `tests/nbd/misbehaviour.rs` shows the same promises one by one, in virtual time; here they hold together, on real sockets.

use crate::common::{
    self, Target, command,
    nbd::{Client, FLUSH, READ, REQUEST_MAGIC, Request, WRITE},
    number, pause_ms,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};
use twinlog::base::Prng;

const VOLUME: &str = "64MiB";
const VOLUME_BYTES: u64 = 64 << 20;
/// The volume that hostile clients use: the well-behaved one must find its own bytes as it left them.
const OTHER: &str = "other";

/// Documented: the default `limit` of 384 MiB, and what a process needs beside it.
const MEMORY_KIB_MAX: u64 = 512 << 10;

/// How long they go on: `TWINLOG_HOSTILE_SECONDS`, or this.
const SECONDS: u64 = 12;

/// Hostile clients of each kind at a time: `TWINLOG_HOSTILE_CLIENTS`, or this.
const CLIENTS: u64 = 3;

fn connect(socket: &Path) -> Option<Client> {
    Client::connect(socket, OTHER, VOLUME_BYTES).ok()
}

fn header(command: u16, offset: u64, length: u32) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &[0, 0],
        &command.to_be_bytes(),
        &7_u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    parts.concat()
}

/// Sends all of `bytes`, unless the server has hung up or takes no more for a while.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _refused = stream.set_write_timeout(Some(Duration::from_millis(500)));
    let _hung_up = stream.write_all(bytes);
}

/// Asks for much and takes nothing.
fn takes_nothing(socket: &Path, _: &mut Prng) {
    let Some(client) = connect(socket) else { return };
    let mut stream = client.into_stream();
    send(&mut stream, &header(READ, 0, 32 << 20).repeat(64));
    pause_ms(2000);
}

/// Sends half of a large write and rests.
fn stalls_in_a_write(socket: &Path, prng: &mut Prng) {
    let Some(client) = connect(socket) else { return };
    let mut stream = client.into_stream();
    send(&mut stream, &header(WRITE, 0, 32 << 20));
    send(&mut stream, &vec![7; 1 << 20]);
    pause_ms(prng.between(500, 3000));
}

/// Leaves in the middle of a payload, again and again.
fn vanishes(socket: &Path, prng: &mut Prng) {
    for _ in 0..20 {
        let Some(client) = connect(socket) else { return };
        let mut stream = client.into_stream();
        send(&mut stream, &header(WRITE, prng.below(VOLUME_BYTES / 2), 4 << 20));
        send(&mut stream, &vec![9; usize::try_from(prng.below(3 << 20)).expect("small")]);
    }
}

/// More requests than anybody answers in one go, half of them wrong; takes some of the replies.
fn floods(socket: &Path, prng: &mut Prng) {
    let Some(client) = connect(socket) else { return };
    let mut stream = client.into_stream();
    let pair = [header(99, 0, 0), header(FLUSH, 0, 0)].concat();
    let mut replies = vec![0; 64 << 10];
    for _ in 0..prng.between(10, 60) {
        send(&mut stream, &pair.repeat(500));
        let _refused = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _some = stream.read(&mut replies);
    }
}

/// Lengths that are not true, before and after the handshake.
fn lies(socket: &Path, prng: &mut Prng) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    let option = |number: u32, length: u32| {
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes(), &[0xFF; 200]].concat()
    };
    send(&mut stream, &3_u32.to_be_bytes());
    send(&mut stream, &option(*prng.pick(&[1, 3, 6, 7, 8, 9, 10, 99]), *prng.pick(&[u32::MAX, 1 << 30, 8192, 201])));
    send(&mut stream, &vec![0xFF; 1 << 20]);
    if let Some(client) = connect(socket) {
        let mut stream = client.into_stream();
        send(&mut stream, &header(WRITE, u64::MAX, u32::MAX));
        send(&mut stream, &vec![1; 1 << 20]);
    }
}

/// Megabytes of nothing in particular, in either phase.
fn babbles(socket: &Path, prng: &mut Prng) {
    let mut noise = vec![0; 4 << 20];
    prng.fill(&mut noise);
    let before = UnixStream::connect(socket).ok();
    let after = connect(socket).map(Client::into_stream);
    for mut stream in before.into_iter().chain(after) {
        send(&mut stream, &noise);
    }
}

type Hostile = fn(&Path, &mut Prng);

const KINDS: [(&str, Hostile); 6] = [
    ("takes nothing", takes_nothing),
    ("stalls in a write", stalls_in_a_write),
    ("vanishes", vanishes),
    ("floods", floods),
    ("lies", lies),
    ("babbles", babbles),
];

/// A load that verifies what it reads for `seconds`, with its journal.
fn good_client(target: &Target, seconds: u64) -> Child {
    let journal = format!("--journal={}", target.scratch().join("journal").display());
    let time = format!("--time={seconds}");
    let load = [
        &target.uri(),
        "--rw=randrw",
        "--bs=4k-64k",
        "--qd=8",
        "--warmup=0",
        "--verify",
        "-o",
        "json",
        &time,
        &journal,
    ];
    let mut load = command(common::load_tool().to_str().expect("plain"), &load);
    load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coreutils' timeout can be started")
}

/// Lets hostile clients of every kind loose for `seconds`; counts what each kind did, and the node's largest memory on the way.
fn let_loose(target: &Target, seed: u64, seconds: u64) -> u64 {
    let (stop, rounds) = (AtomicBool::new(false), KINDS.map(|_| AtomicU64::new(0)));
    let (socket, mut largest_kib) = (target.socket(), 0);
    thread::scope(|scope| {
        for (index, (_, act)) in KINDS.iter().enumerate() {
            for client in 0..number("TWINLOG_HOSTILE_CLIENTS").unwrap_or(CLIENTS) {
                let (stop, rounds, socket) = (&stop, &rounds[index], &socket);
                let mut prng = Prng::new(seed ^ (client << 32) ^ index as u64);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        act(socket, &mut prng);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        for _ in 0..seconds * 4 {
            pause_ms(250);
            largest_kib = largest_kib.max(target.node_kib("VmRSS"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for ((name, _), rounds) in KINDS.iter().zip(&rounds) {
        let rounds = rounds.load(Ordering::Relaxed);
        println!("{name}: {rounds} rounds");
        assert!(rounds > 0, "nobody {name}");
    }
    largest_kib
}

#[test]
fn hostile_clients_harm_nobody_else() {
    let seed = common::seed();
    println!("seed {seed}");
    let target = Target::start(VOLUME);
    let _made = target.twinlog(&["volume", "create", OTHER, VOLUME]);
    let mut filled = Client::connect(&target.socket(), OTHER, VOLUME_BYTES).expect("the target answers");
    for offset in (0..VOLUME_BYTES).step_by(8 << 20) {
        let data = vec![5; 8 << 20];
        let request = Request { command: WRITE, flags: 0, offset, length: 8 << 20, data };
        assert_eq!(filled.call(&request).expect("the target answers").error, 0);
    }
    drop(filled);
    let seconds = number("TWINLOG_HOSTILE_SECONDS").unwrap_or(SECONDS);
    let load = good_client(&target, seconds);
    let largest_kib = let_loose(&target, seed, seconds);
    let load = load.wait_with_output().expect("a child of ours");
    let complaint = String::from_utf8_lossy(&load.stderr);
    assert!(load.status.success(), "seed {seed}: the well-behaved client: {}\n{complaint}", load.status);
    let report: serde_json::Value = serde_json::from_slice(&load.stdout).expect("JSON");
    let (ops, read) = (&report["acknowledged"]["ops"], &report["classes"][0]["latency_ns"]);
    println!(
        "node's memory at most {largest_kib} KiB; the load had {ops} replies, the slowest read {} ns",
        read["max"]
    );
    assert!(largest_kib < MEMORY_KIB_MAX, "seed {seed}: the node grew to {largest_kib} KiB");
    // Nothing of them is left: the last acts of the node's own end with the next consistency point.
    let status = target.status();
    assert_eq!(status["verdict"], "OK", "{status}");
    let report = target.twinlog(&["pool", "check"]);
    assert_eq!(report["problems"], serde_json::json!([]), "seed {seed}");
    let journal = format!("--prove={}", target.scratch().join("journal").display());
    common::run(common::load_tool().to_str().expect("plain"), &[target.uri(), journal]);
}

#[test]
fn connections_past_the_limit_are_refused_and_those_within_it_served() {
    let target = Target::start(VOLUME);
    let mut good = Client::connect(&target.socket(), "vol-a", VOLUME_BYTES).expect("the target answers");
    let flush = Request { command: FLUSH, flags: 0, offset: 0, length: 0, data: Vec::new() };
    let held: Vec<_> = (0..400).map(|_| UnixStream::connect(target.socket())).collect();
    let mut told = 0;
    for _ in 0..50 {
        assert_eq!(good.call(&flush).expect("served").error, 0);
        told += u64::from(Client::connect(&target.socket(), "vol-a", VOLUME_BYTES).is_err());
    }
    assert!(told > 0, "the limit of 256 connections is none");
    drop(held);
    let served = |_| {
        Client::connect(&target.socket(), "vol-a", VOLUME_BYTES).is_ok() || {
            pause_ms(50);
            false
        }
    };
    assert!((0..200).any(served), "closed connections make room");
    assert_eq!(good.call(&flush).expect("served").error, 0);
}

fn admin_socket(target: &Target) -> PathBuf {
    target.data().join("a/admin.sock")
}

/// One line to the admin socket and what comes back, which may be nothing.
fn ask(target: &Target, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(admin_socket(target)).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let _hung_up = stream.write_all(bytes);
    let _hung_up = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    // A server that hangs up before it has read everything resets the connection, after its answer.
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_admin_socket_answers_nonsense_with_words_and_goes_on() {
    let target = Target::start(VOLUME);
    let mut prng = Prng::new(11);
    let mut noise = vec![0; 8 << 20];
    prng.fill(&mut noise);
    let deep = [b"[".repeat(20_000), b"\n".to_vec()].concat();
    let long =
        [&b"{\"call\":\"volume-create\",\"name\":\""[..], &b"x".repeat(1 << 20), b"\",\"size_bytes\":4096}\n"].concat();
    for (what, bytes) in [("noise", noise), ("depth", deep), ("length", long), ("zeroes", vec![0; 1 << 20])] {
        let answer = ask(&target, &bytes);
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains("\"reply\":\"refused\""), "{what}: {first:?}");
    }
    let wrong = [
        (r#"{"call":"volume-create","name":"a/b","size_bytes":4096}"#, "a/b"),
        (r#"{"call":"volume-create","name":"","size_bytes":4096}"#, ""),
        (r#"{"call":"volume-create","name":"x","size_bytes":0}"#, "size"),
        (r#"{"call":"volume-create","name":"x","size_bytes":18446744073709551615}"#, "size"),
        (r#"{"call":"volume-create","name":"x","size_bytes":4097}"#, "size"),
        (r#"{"call":"volume-create","name":"x","size_bytes":1125899906846976}"#, "size"),
        (r#"{"call":"volume-create","name":"x","size_bytes":-4096}"#, "-4096"),
        (r#"{"call":"volume-create","name":"x","size_bytes":4096,"force":true}"#, "force"),
        (r#"{"call":"volume-resize","name":"vol-a","size_bytes":1}"#, "size"),
        (r#"{"call":"volume-resize","name":"nobody","size_bytes":4096}"#, "nobody"),
        (r#"{"call":"volume-delete","name":"\u0000"}"#, ""),
        (r#"{"call":"pool-grow","device":""}"#, ""),
        (r#"{"call":"pool-grow","device":"/dev/null"}"#, "/dev/null"),
        (r#"{"call":"pool-grow","device":"/etc/passwd"}"#, "passwd"),
        (r#"{"call":"pool-grow","device":"/nowhere/\u0000x"}"#, ""),
        ("7", ""),
        ("", ""),
        ("\u{feff}{}", ""),
    ];
    for (line, named) in wrong {
        let answer = ask(&target, &[line.as_bytes(), b"\n"].concat());
        assert!(answer.contains("\"reply\":\"refused\"") && answer.contains(named), "{line}: {answer}");
    }
    // One of the largest size is no nonsense; half a line and silence are nobody's business.
    let held: Vec<_> = (0..8).map(|_| UnixStream::connect(admin_socket(&target)).expect("somebody listens")).collect();
    held.iter().for_each(|mut stream| stream.write_all(b"{\"call\":").expect("there is room"));
    let answer = ask(&target, b"{\"call\":\"volume-create\",\"name\":\"x\",\"size_bytes\":1125899906842624}\n");
    assert!(answer.contains("\"reply\":\"volumes\""), "{answer}");
    assert_eq!(target.status()["status"]["state"], "serving");
    assert_eq!(ask(&target, b"{\"call\":\"volume-list\"}").matches("\"size_bytes\"").count(), 2, "vol-a and x");
}

#[test]
fn the_metrics_port_answers_nonsense_and_does_not_wait_for_the_slow() {
    let mut target = Target::start(VOLUME);
    target.stop();
    let config = target.data().join("a/node.toml");
    let text = std::fs::read_to_string(&config).expect("there");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a free port");
    std::fs::write(&config, text.replace("[metrics]", &format!("[metrics]\naddress = \"{port}\""))).expect("written");
    target.restart();
    let get = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(port).expect("somebody listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let _hung_up = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let good = || get(b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(good().starts_with("HTTP/1.1 200 OK\r\n"));
    let mut noise = vec![0; 4 << 20];
    Prng::new(3).fill(&mut noise);
    for bytes in [noise, [&b"GET /"[..], &b"x".repeat(1 << 20)].concat(), vec![b'\n'; 1 << 20]] {
        let answer = get(&bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert!(get(b"GET /else HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(get(b"DELETE /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    // Clients that never finish their request: others wait for some of them a bounded time, and the node for none.
    let slow: Vec<_> = (0..40).map(|_| TcpStream::connect(port).expect("somebody listens")).collect();
    slow.iter().for_each(|mut stream| stream.write_all(b"GET /met").expect("there is room"));
    assert!(good().starts_with("HTTP/1.1 200 OK\r\n"), "forty slow clients do not shut the port");
    assert_eq!(target.status()["status"]["state"], "serving");
}
