//! What a pair of real processes does when its partner or its arbiter stands still, is damaged, or is cut off: nobody serves twice, nothing that was
//! answered is lost, and what can go on goes on.

#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the machine's clock")]

use crate::common::{
    self,
    pair::{Pair, end_load, load, prove},
    pause_ms,
};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// Heartbeats of a node in more than a lease: it has one every quarter of the detection time, and the lease is four detection times.
const LEASE_AND_MORE_BEATS: u32 = 20;

fn mailbox(pair: &Pair) -> File {
    File::options().read(true).write(true).open(pair.dir().join("disks/mailbox")).expect("up has made it")
}

/// A stopped process that was about to change a register has these blocks locked.
fn lock_registers(mailbox: &File) {
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    let lock = libc::flock {
        l_type: narrow(libc::F_WRLCK),
        l_whence: narrow(libc::SEEK_SET),
        l_start: 4 * 4096,
        l_len: 0,
        l_pid: 0,
    };
    let start = Instant::now();
    while fcntl(mailbox, FcntlArg::F_OFD_SETLK(&lock)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "nodes lock it for moments only");
        pause_ms(1);
    }
}

/// Waits until both nodes have written so many heartbeats to the mailbox.
fn until_beaten(pair: &Pair, mailbox: &File, count: u32) {
    let mut seen: [(u32, [u8; 4096]); 2] = [(0, [0; 4096]); 2];
    pair.until("both nodes have beaten", || {
        for (block, (count, last)) in (1..).zip(&mut seen) {
            let mut beat = [0; 4096];
            mailbox.read_exact_at(&mut beat, block * 4096).expect("it is there");
            *count += u32::from(beat != *last);
            *last = beat;
        }
        seen.iter().all(|(beats, _)| *beats > count).then_some(())
    });
}

fn serves(pair: &Pair, node: &str) -> bool {
    pair.status(node).is_some_and(|status| status["status"]["state"] == "serving")
}

#[test]
fn a_lock_of_the_mailbox_that_is_never_released_stops_nobody_from_serving() {
    let pair = Pair::start();
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 3);
    let mailbox = mailbox(&pair);
    lock_registers(&mailbox);
    // Reads and heartbeats need no lock: as long as they go on, leases are renewed, however slow the machine is.
    until_beaten(&pair, &mailbox, LEASE_AND_MORE_BEATS);
    // A change of a register waits for it, for a bounded time, and is made when it is free again.
    pair.signal("b", "KILL");
    pause_ms(3000);
    drop(mailbox);
    end_load(&mut load);
    pair.until_ok();
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn a_damaged_register_stops_its_own_pool_only() {
    // A killed node stays dead: nobody but its partner can serve its pool again.
    let pair = Pair::start_in(Pair::start().stop(), &["--no-restart"]);
    // Both slots of the first register are written by now; whose it is depends on which node came first.
    mailbox(&pair).write_all_at(b"damage", 4 * 4096 + 100).expect("written");
    let hurt = |node: &str| {
        let status = pair.status(node)?;
        let pools = status["status"]["pair"]["pools"].as_array()?.clone();
        let is_hurt = |pool: &&serde_json::Value| pool["trouble"].as_str().is_some_and(|why| why.contains("damaged"));
        let names: Vec<String> =
            pools.iter().filter(is_hurt).filter_map(|pool| pool["name"].as_str().map(str::to_owned)).collect();
        (!names.is_empty()).then_some(names)
    };
    let found = pair.until("the damage is found", || hurt("a"));
    pause_ms(1000);
    assert_eq!([hurt("a"), hurt("b")], [Some(found.clone()), Some(found.clone())], "both see the same");
    let [stops] = &found[..] else { panic!("one pool is hurt, not {found:?}\n{}", pair.said()) };
    let (goes_on, other) = if stops == "a" { ("b", "a") } else { ("a", "b") };
    // The pool with the whole register changes hands as ever; no older generation of the damaged one is believed.
    pair.signal(goes_on, "KILL");
    pair.until_taken_over(other);
    assert_eq!(hurt(other), Some(found));
}

/// The state that the kernel shows of a process (proc(5), stat); none when it has been waited for. What it is called may hold anything, but comes first.
fn state_of(process: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The node of the pool's home is stopped under load; its partner kills it, and takes over what it has answered.
fn stands_still(pair: &Pair, victim: &str, survivor: &str, instant_ms: u64) {
    let volume = format!("vol-{victim}");
    let journal = pair.folder.path().join(format!("journal-{victim}"));
    let mut load = load(&pair.uri(victim, &volume), &journal, instant_ms);
    pause_ms(instant_ms);
    let stopped = pair.pid(victim);
    pair.signal(victim, "STOP");
    let server = pair.until_served_again(victim, survivor);
    load.wait().expect("a child of ours");
    // Whoever serves now, the process that was stopped is dead: nothing that it had in hand can come to the disks any more.
    let state = state_of(stopped);
    assert!(matches!(state, None | Some('Z')), "process {stopped} lives: {state:?}\n{}", pair.said());
    prove(&pair.uri(server, &volume), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
    pair.until_ok();
    prove(&pair.uri(victim, &volume), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn a_node_that_stands_still_is_killed_and_taken_over() {
    let pair = Pair::start();
    for (victim, survivor, instant_ms) in [("a", "b", 700), ("b", "a", 300)] {
        stands_still(&pair, victim, survivor, instant_ms);
    }
    let explained = pair.run("a", &["pair", "explain"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("was killed and has ended"), "{explained:?}");
}

#[test]
fn a_fence_command_that_hangs_is_killed_and_shown() {
    let folder = Pair::start().stop();
    for node in ["a", "b"] {
        let path = folder.path().join("data").join(node).join("node.toml");
        let text = std::fs::read_to_string(&path).expect("up has made it");
        let script = r#"["sh", "-c", "echo no answer from the switch; sleep 300 & sleep 300"]"#;
        let fence = format!("fence = [\"command\"]\nfence_command = {script}");
        let text = text.replace("fence_limit_s = 60", "fence_limit_s = 1");
        std::fs::write(&path, text.replace("fence = [\"lock\", \"process\"]", &fence)).expect("written");
    }
    let pair = Pair::start_in(folder, &["--no-restart"]);
    pair.signal("b", "KILL");
    let explained = || String::from_utf8_lossy(&pair.run("a", &["pair", "explain"]).stdout).into_owned();
    let shown = pair.until("the hanging command is shown", || Some(explained()).filter(|text| text.contains("killed")));
    assert!(shown.contains("it was killed after 1 s; it said: no answer from the switch"), "{shown}");
    let status = pair.run("a", &["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("no answer from the switch"), "{status:?}");
    assert!(!pair.has_taken_over("a"), "no fence has confirmed");
}

/// Both nodes refuse; an operator gives up what only the other node's log may have, which is nothing after a stop in order.
fn refuses_until_forced(pair: &Pair) {
    let explained = |node| String::from_utf8_lossy(&pair.run(node, &["pair", "explain"]).stdout).into_owned();
    for node in ["a", "b"] {
        let refuses = |text: &String| text.matches("register outdated").count() == 2;
        let text = pair.until("the arbiter is not believed", || Some(explained(node)).filter(refuses));
        assert!(text.contains("twinlog pair takeover --force") && text.contains("was served at epoch"), "{text}");
    }
    pause_ms(1500);
    assert!(!serves(pair, "a") && !serves(pair, "b"), "{}", pair.said());
    for node in ["a", "b"] {
        let forced = pair.run(node, &["pair", "takeover", node, "--force", "--yes"]);
        assert!(forced.status.success(), "{forced:?}\n{}", pair.said());
    }
    pair.until_ok();
}

#[test]
fn a_mailbox_of_another_time_is_refused_until_an_operator_decides() {
    let pair = Pair::start();
    let older = std::fs::read(pair.dir().join("disks/mailbox")).expect("up has made it");
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 4);
    pause_ms(500);
    for node in ["a", "b"] {
        let moved = pair.run(node, &["pair", "takeover"]);
        assert!(moved.status.success(), "{moved:?}\n{}", pair.said());
        pair.until_ok();
    }
    end_load(&mut load);
    let folder = pair.stop();
    let place = folder.path().join("data/disks/mailbox");
    std::fs::write(&place, older).expect("restored from a backup, as it were");
    let pair = Pair::launch(folder, &[]);
    refuses_until_forced(&pair);
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));

    let folder = pair.stop();
    let config = folder.path().join("data/a/node.toml");
    let make = || {
        let arguments = ["pair", "mailbox", "--config", config.to_str().expect("plain")];
        common::outcome(&mut common::command(env!("CARGO_BIN_EXE_twinlog"), &arguments))
    };
    assert_eq!(make().status.code(), Some(4), "one that is there is not touched");
    std::fs::remove_file(folder.path().join("data/disks/mailbox")).expect("there");
    let made = make();
    assert!(made.status.success(), "{made:?}");
    let pair = Pair::launch(folder, &[]);
    refuses_until_forced(&pair);
    prove(&pair.uri("a", "vol-a"), &journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}
