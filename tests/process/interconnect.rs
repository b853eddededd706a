//! Strangers on the interconnect of a pair of real processes: while a client writes, others connect to the node that listens and say nothing,
//! half a greeting, or anything. The pair mirrors on, nobody takes anything over, and nothing that was answered is lost.

use crate::common::{
    self, number,
    pair::{Pair, end_load, load, prove},
    pause_ms,
};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};
use twinlog::base::Prng;

/// How long they go on: `TWINLOG_HOSTILE_SECONDS`, or this.
const SECONDS: u64 = 8;

/// The hello that the node says to everybody.
fn hello_of(stream: &mut UnixStream) -> Vec<u8> {
    let _refused = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut hello = vec![0; 4096];
    let count = stream.read(&mut hello).unwrap_or(0);
    hello.truncate(count);
    hello
}

fn says_nothing(stream: &mut UnixStream, prng: &mut Prng) {
    pause_ms(prng.between(1, 300));
    let _hello = hello_of(stream);
}

fn babbles(stream: &mut UnixStream, prng: &mut Prng) {
    let mut noise = vec![0; 1 << 20];
    prng.fill(&mut noise);
    let _hung_up = stream.write_all(&noise);
}

/// Begins like a frame, and goes on as nothing does.
fn begins_well(stream: &mut UnixStream, prng: &mut Prng) {
    let mut frame = vec![0; usize::try_from(prng.between(5, 2000)).expect("small")];
    prng.fill(&mut frame);
    frame[..5].copy_from_slice(b"TWLF\x01");
    let _hung_up = stream.write_all(&frame);
    let _hello = hello_of(stream);
}

/// Says what the node says, whole, in part, or with a bit flipped.
fn parrots(stream: &mut UnixStream, prng: &mut Prng) {
    let mut hello = hello_of(stream);
    if hello.is_empty() {
        return;
    }
    let last = hello.len() as u64 - 1;
    match prng.below(3) {
        0 => {}
        1 => hello.truncate(usize::try_from(prng.below(last)).expect("small")),
        _ => hello[usize::try_from(prng.below(last)).expect("small")] ^= 1 << prng.below(8),
    }
    let _hung_up = stream.write_all(&hello);
    pause_ms(prng.between(0, 100));
    let _more = hello_of(stream);
}

type Hostile = fn(&mut UnixStream, &mut Prng);

const KINDS: [(&str, Hostile); 4] =
    [("says nothing", says_nothing), ("babbles", babbles), ("begins well", begins_well), ("parrots", parrots)];

fn let_loose(socket: &Path, seed: u64, seconds: u64) {
    let (stop, rounds) = (AtomicBool::new(false), KINDS.map(|_| AtomicU64::new(0)));
    thread::scope(|scope| {
        for client in 0..8_u64 {
            let index = usize::try_from(client % 4).expect("small");
            let ((_, act), rounds, stop) = (KINDS[index], &rounds[index], &stop);
            let mut prng = Prng::new(seed ^ (client << 32));
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // One that is not taken tries again.
                    if let Ok(mut stream) = UnixStream::connect(socket) {
                        act(&mut stream, &mut prng);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        pause_ms(seconds * 1000);
        stop.store(true, Ordering::Relaxed);
    });
    for ((name, _), rounds) in KINDS.iter().zip(&rounds) {
        println!("{name}: {} rounds", rounds.load(Ordering::Relaxed));
        assert!(rounds.load(Ordering::Relaxed) > 0, "nobody {name}");
    }
}

/// Epoch and takeovers of each pool as `node` sees them: a mirror that is lost changes the epoch.
fn ownership(pair: &Pair, node: &str) -> Vec<(u64, u64)> {
    let status = pair.status(node).expect("it answers");
    let pools = status["status"]["pair"]["pools"].as_array().expect("pools").clone();
    let number = |pool: &serde_json::Value, key: &str| pool[key].as_u64().expect("a number");
    pools.iter().map(|pool| (number(pool, "epoch"), number(pool, "takeovers"))).collect()
}

#[test]
fn strangers_on_the_interconnect_disturb_nobody() {
    let seed = common::seed();
    println!("seed {seed}");
    // A mirror that a busy machine holds up is not lost.
    let pair = Pair::start_with("deadline_ms = 1000", "deadline_ms = 4000");
    let journal = pair.folder.path().join("journal");
    let before = ["a", "b"].map(|node| ownership(&pair, node));
    let mut load = load(&pair.uri("a", "vol-a"), &journal, seed >> 8);
    pause_ms(300);
    // Node b listens.
    let_loose(&pair.dir().join("b/pair.sock"), seed, number("TWINLOG_HOSTILE_SECONDS").unwrap_or(SECONDS));
    let after = ["a", "b"].map(|node| ownership(&pair, node));
    assert_eq!(before, after, "seed {seed}: no mirror was lost and nothing changed hands\n{}", pair.said());
    assert!(matches!(load.try_wait(), Ok(None)), "the client goes on");
    // A node that starts again while they go on finds its partner.
    pair.signal("a", "KILL");
    let_loose(&pair.dir().join("b/pair.sock"), seed + 1, 3);
    end_load(&mut load);
    pair.until_ok();
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("seed {seed}: {said}\n{}", pair.said()));
}

#[test]
fn a_pair_that_encrypts_mirrors_and_takes_over() {
    let seed = common::seed();
    println!("seed {seed}");
    let mut pair = Pair::start();
    common::signal(pair.supervisor.id(), "TERM");
    assert!(pair.supervisor.wait().expect("a child of ours").success(), "{}", pair.said());
    for node in ["a", "b"] {
        let path = pair.dir().join(node).join("node.toml");
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains("encrypt = false"), "{text}");
        fs::write(&path, text.replace("encrypt = false", "encrypt = true")).expect("ours");
    }
    let folder = std::mem::replace(&mut pair.folder, common::folder());
    drop(pair);
    let pair = Pair::start_in(folder, &[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, seed >> 8);
    pause_ms(1500);
    pair.signal("a", "KILL");
    let server = pair.until_served_again("a", "b");
    end_load(&mut load);
    prove(&pair.uri(server, "vol-a"), &journal).unwrap_or_else(|said| panic!("seed {seed}: {said}\n{}", pair.said()));
    pair.until_ok();
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("seed {seed}: {said}\n{}", pair.said()));
}
