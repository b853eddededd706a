//! A pair of real processes whose registers a witness keeps: it is killed and started again, the nodes lose each other, a node dies. Nobody serves twice, and
//! nothing that was answered is lost.
//!
//! The pair is one of `twinlog up`, moved from its mailbox to a witness as an operator would: both nodes stopped, mailbox and key copied into the witness'
//! directory, `node.toml` changed. The interconnect goes through a proxy of the test, which can be cut.

#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the machine's clock")]

mod common;

use common::{
    PATIENCE,
    pair::{Pair, end_load, load, prove},
    pause_ms,
};
use std::{
    fs::{self, File},
    io,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Longer than a node's lease, with the default `deadline_ms`.
const LEASE_AND_MORE: Duration = Duration::from_secs(6);

/// A running `twinlog witness`; it is killed when dropped.
struct Witness {
    directory: PathBuf,
    address: String,
    process: Child,
}

impl Witness {
    fn start(directory: PathBuf) -> Self {
        let (process, address) = Self::spawn(&directory, "127.0.0.1:0");
        Self { directory, address, process }
    }

    fn spawn(directory: &Path, listen: &str) -> (Child, String) {
        let place = directory.join("out");
        let out = File::create(&place).expect("a folder of ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(["witness", "--listen", listen, "--dir"]).arg(directory).stdin(Stdio::null());
        command.stdout(out.try_clone().expect("a handle")).stderr(out);
        let mut process = command.spawn().expect("the program under test starts");
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(&place).expect("made above");
            let line = said.lines().find(|line| line.contains("listens at"));
            if let Some(address) = line.and_then(|line| line.split_whitespace().last()) {
                return (process, address.to_owned());
            }
            let is_gone = !matches!(process.try_wait(), Ok(None));
            assert!(!is_gone && start.elapsed() < PATIENCE, "the witness does not listen: {said}");
            pause_ms(10);
        }
    }

    fn kill(&mut self) {
        self.process.kill().expect("a child of ours");
        self.process.wait().expect("a child of ours");
    }

    fn restart(&mut self) {
        let (process, address) = Self::spawn(&self.directory, &self.address);
        assert_eq!(address, self.address);
        self.process = process;
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The way from node a to node b.
struct Cable {
    address: String,
    is_cut: Arc<AtomicBool>,
}

impl Cable {
    fn new(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if let (false, Ok(far)) = (cut.load(Ordering::Acquire), UnixStream::connect(&socket)) {
                    Self::carry(near, far, Arc::clone(&cut));
                }
            }
        });
        Self { address, is_cut }
    }

    fn carry(near: TcpStream, far: UnixStream, cut: Arc<AtomicBool>) {
        let (mut near_in, mut far_in) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        let (mut near_out, mut far_out) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        let end = |near: &TcpStream, far: &UnixStream| {
            // Either end may have gone already.
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        };
        let ends = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        std::thread::spawn(move || {
            let _ = io::copy(&mut near_in, &mut far_out);
            end(&ends.0, &ends.1);
        });
        let ends = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        std::thread::spawn(move || {
            let _ = io::copy(&mut far_in, &mut near_out);
            end(&ends.0, &ends.1);
        });
        std::thread::spawn(move || {
            while !cut.load(Ordering::Acquire) {
                pause_ms(10);
            }
            end(&near, &far);
        });
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Release);
    }
}

/// A pair that was moved to a witness, with the way between its nodes.
fn moved(options: &[&str]) -> (Pair, Witness, Cable) {
    let folder = Pair::start().stop();
    let data = folder.path().join("data");
    let directory = folder.path().join("witness");
    fs::create_dir(&directory).expect("a folder of ours");
    fs::copy(data.join("pair.key"), directory.join("ab.key")).expect("copied");
    fs::rename(data.join("disks/mailbox"), directory.join("ab.mailbox")).expect("moved");
    let witness = Witness::start(directory);
    let cable = Cable::new(data.join("b/pair.sock"));
    for node in ["a", "b"] {
        let path = data.join(node).join("node.toml");
        let mut text = fs::read_to_string(&path).expect("up has made it");
        let mut replace = |from: &str, to: &str| {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        };
        replace("mailbox = \"../disks/mailbox\"", &format!("witness = \"{}\"", witness.address));
        replace("fence = [\"lock\", \"process\"]", "fence = [\"lease\"]");
        if node == "a" {
            replace("partner_unix = [\"../b/pair.sock\"]", &format!("partner_tcp = [\"{}\"]", cable.address));
        }
        fs::write(&path, text).expect("written");
    }
    (Pair::start_in(folder, options), witness, cable)
}

fn serves(pair: &Pair, node: &str) -> bool {
    pair.status(node).is_some_and(|status| status["status"]["state"] == "serving")
}

/// The row that decides about pool `pool` at a node.
fn row(pair: &Pair, node: &str, pool: &str) -> String {
    let status = pair.status(node).unwrap_or_default();
    let pools = status["status"]["pair"]["pools"].as_array().cloned().unwrap_or_default();
    let row = pools.iter().find(|found| found["name"] == pool).and_then(|found| found["row"].as_str());
    row.unwrap_or_default().to_owned()
}

fn prove_at(pair: &Pair, node: &str, journal: &Path) {
    prove(&pair.uri(node, "vol-a"), journal).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}

#[test]
fn a_witness_that_is_back_in_time_is_not_missed_and_one_that_is_not_stops_both() {
    let (pair, mut witness, _cable) = moved(&[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 5);
    for _ in 0..3 {
        witness.kill();
        witness.restart();
        // On a machine so slow that a lease ended meanwhile, they have claimed their pools again.
        pair.until("both serve", || (serves(&pair, "a") && serves(&pair, "b")).then_some(()));
    }
    witness.kill();
    pair.until("nobody serves without an arbiter", || (!serves(&pair, "a") && !serves(&pair, "b")).then_some(()));
    witness.restart();
    end_load(&mut load);
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}

#[test]
fn nodes_that_lose_each_other_and_the_witness_do_not_both_serve_a_pool() {
    let (pair, mut witness, cable) = moved(&[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 6);
    pause_ms(500);
    cable.cut(true);
    pair.until("each serves alone", || {
        (row(&pair, "a", "a") == "alone" && row(&pair, "b", "b") == "alone").then_some(())
    });
    let start = Instant::now();
    while start.elapsed() < LEASE_AND_MORE {
        assert!(
            serves(&pair, "a") && !pair.has_taken_over("b"),
            "its heartbeat at the witness goes on\n{}",
            pair.said()
        );
        pause_ms(100);
    }
    witness.kill();
    pair.until("nobody serves without an arbiter", || (!serves(&pair, "a") && !serves(&pair, "b")).then_some(()));
    witness.restart();
    pair.until("each serves alone again", || (serves(&pair, "a") && serves(&pair, "b")).then_some(()));
    assert!(!pair.has_taken_over("b") && !pair.has_taken_over("a"), "{}", pair.said());
    cable.cut(false);
    end_load(&mut load);
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}

#[test]
fn a_node_that_dies_is_taken_over_when_its_lease_has_ended() {
    let (pair, _witness, _cable) = moved(&["--no-restart"]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 7);
    pause_ms(700);
    pair.signal("a", "KILL");
    load.wait().expect("a child of ours");
    pair.until_taken_over("b");
    prove_at(&pair, "b", &journal);
    let explained = pair.run("b", &["pair", "explain"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("its lease has ended"), "{explained:?}");
}

/// With leases alone. The disks are safe on one machine whatever happens, as their locks are held by whoever has a pool open; what is shown is that a node that was taken
/// over while it stood still ends itself before it writes anything.
#[test]
fn a_node_that_stood_still_over_its_lease_ends_itself_before_it_writes() {
    let (pair, _witness, _cable) = moved(&[]);
    let journal = pair.folder.path().join("journal");
    let mut load = load(&pair.uri("a", "vol-a"), &journal, 8);
    pause_ms(700);
    let stopped = pair.pid("a");
    pair.signal("a", "STOP");
    pair.until("b is the owner", || {
        let status = pair.status("b")?;
        (status["status"]["pair"]["pools"][1]["owner"] == "b").then_some(())
    });
    // It was not killed: leases stop nobody.
    common::signal(stopped, "CONT");
    load.wait().expect("a child of ours");
    pair.until("it has ended itself", || pair.said().contains("node a died by SIGABRT").then_some(()));
    assert!(pair.said().contains("this node stood still over the end of its lease"), "{}", pair.said());
    pair.until_ok();
    prove_at(&pair, "a", &journal);
}
