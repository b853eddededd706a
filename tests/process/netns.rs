//! A pair on two machines, as far as one machine can be two: each node in a network namespace of its own, a witness in a third one, two networks between the
//! nodes and one from each to the witness. It is made as an operator makes it (`pair configure`, `pair create`), encrypts, and has only leases to fence with. Then
//! the networks are slowed, and taken away one after the other, under load at both nodes: nothing stops that need not, nobody serves twice, and nothing answered is lost.

#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the machine's clock")]

use crate::common::{
    PATIENCE, command, folder, installed, outcome,
    pair::{end_load, load, prove},
    pause_ms, run, skip,
};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// `deadline_ms`: twice the default, as a busy machine holds up the path that is left, too.
const DEADLINE_MS: u64 = 2000;
/// Longer than a lease, and than the time after which it counts as ended.
const LEASE_AND_MORE: Duration = Duration::from_millis(6 * DEADLINE_MS);
/// Longer than a mirror may acknowledge nothing before it counts as lost.
const MIRROR_LOSS_AND_MORE_MS: u64 = DEADLINE_MS * 5 / 2;
/// Where both nodes reach the witness: an address of its own, behind either link.
const WITNESS: &str = "10.77.9.9";

/// A cable: in which namespaces its ends are, and their addresses.
type Cable = [(&'static str, &'static str); 2];
const FIRST: Cable = [("a", "10.77.1.1"), ("b", "10.77.1.2")];
const SECOND: Cable = [("a", "10.77.2.1"), ("b", "10.77.2.2")];
const WITNESS_OF_A: Cable = [("a", "10.77.3.1"), ("w", "10.77.3.9")];
const WITNESS_OF_B: Cable = [("b", "10.77.4.1"), ("w", "10.77.4.9")];

/// Namespaces of this test, removed with all that is in them when dropped.
struct Networks(u32);

impl Networks {
    fn name(&self, place: &str) -> String {
        format!("twinlog-{}-{place}", self.0)
    }

    /// An interface's name has at most 15 bytes.
    fn interface(cable: &Cable, end: usize) -> String {
        format!("to-{}-{}", cable[1 - end].0, cable[end].1.split('.').nth(2).unwrap_or_default())
    }

    fn new() -> Self {
        let networks = Self(std::process::id());
        for place in ["a", "b", "w"] {
            run("ip", &["netns", "add", &networks.name(place)]);
            networks.ip(place, &["link", "set", "lo", "up"]);
        }
        for cable in [FIRST, SECOND, WITNESS_OF_A, WITNESS_OF_B] {
            let [near, far] = [0, 1].map(|end| Self::interface(&cable, end));
            let [here, there] = cable.map(|(place, _)| networks.name(place));
            let ends = ["link", "add", &near, "netns", &here, "type", "veth", "peer", "name", &far, "netns", &there];
            run("ip", &ends);
            for (end, (place, address)) in cable.into_iter().enumerate() {
                let interface = Self::interface(&cable, end);
                networks.ip(place, &["address", "add", &format!("{address}/24"), "dev", &interface]);
            }
            networks.plug(&cable, true);
        }
        networks.ip("w", &["address", "add", &format!("{WITNESS}/32"), "dev", "lo"]);
        networks
    }

    /// Runs `ip` in a namespace.
    fn ip(&self, place: &str, arguments: &[&str]) {
        let name = self.name(place);
        run("ip", &[&["-n", &name], arguments].concat());
    }

    /// Takes a cable out, or plugs it in.
    fn plug(&self, cable: &Cable, is_in: bool) {
        for (end, (place, _)) in cable.iter().enumerate() {
            self.ip(place, &["link", "set", &Self::interface(cable, end), if is_in { "up" } else { "down" }]);
        }
        // A route goes with its interface.
        if let ([(place, _), ("w", gateway)], true) = (cable, is_in) {
            self.ip(place, &["route", "replace", &format!("{WITNESS}/32"), "via", gateway]);
        }
    }

    /// Lets a cable carry so many bits per second in each direction; what would wait for longer than 0.4 s is lost.
    fn slow(&self, cable: &Cable, rate: Option<&str>) {
        for (end, (place, _)) in cable.iter().enumerate() {
            let (name, interface) = (self.name(place), Self::interface(cable, end));
            let shape = ["root", "tbf", "burst", "64kb", "latency", "400ms", "rate"];
            match rate {
                Some(rate) => {
                    run("tc", &[&["-n", &name, "qdisc", "replace", "dev", &interface], &shape[..], &[rate]].concat())
                }
                None => run("tc", &["-n", &name, "qdisc", "delete", "dev", &interface, "root"]),
            };
        }
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for place in ["a", "b", "w"] {
            // It may not have been made.
            let _ = outcome(&mut command("ip", &["netns", "del", &self.name(place)]));
        }
    }
}

/// A pair and its witness; they are killed when dropped, before their networks go.
struct Machines {
    processes: Vec<Child>,
    networks: Networks,
    folder: TempDir,
}

impl Machines {
    fn start() -> Self {
        let mut machines = Self { processes: Vec::new(), networks: Networks::new(), folder: folder() };
        let place = |name: &str| machines.folder.path().join(name);
        for node in ["a", "b"] {
            File::create(place(&format!("pool-{node}.img"))).and_then(|file| file.set_len(160 << 20)).expect("ours");
            // As systemd makes it.
            fs::create_dir(place(&format!("twinlog-{node}"))).expect("ours");
        }
        let addresses = |end: usize| format!("{},{}", FIRST[end].1, SECOND[end].1);
        let configure = [
            format!("--node=a={}", addresses(0)),
            format!("--node=b={}", addresses(1)),
            format!("--devices=a={}", place("pool-a.img").display()),
            format!("--devices=b={}", place("pool-b.img").display()),
            format!("--witness={WITNESS}:7117"),
            format!("--state={}", machines.folder.path().display()),
            format!("--run={}", machines.folder.path().display()),
            "--log-size=16MiB".to_owned(),
            "--accept-in-flight-io".to_owned(),
        ];
        let directory = machines.folder.path().display().to_string();
        let configure = configure.iter().map(String::as_str);
        machines.twinlog(&["pair", "configure", &directory].into_iter().chain(configure).collect::<Vec<_>>());
        let witness = place("witness");
        fs::create_dir(&witness).expect("ours");
        fs::copy(place("pair.key"), witness.join("ab.key")).expect("copied");
        let configs = ["a", "b"].map(|node| place(&format!("{node}.toml")).display().to_string());
        for config in &configs {
            let text = fs::read_to_string(config).expect("just written");
            let with_deadline = text.replacen("[pair]\n", &format!("[pair]\ndeadline_ms = {DEADLINE_MS}\n"), 1);
            assert_ne!(with_deadline, text);
            fs::write(config, with_deadline).expect("ours");
            machines.twinlog(&["pair", "create", "--config", config]);
        }
        machines.spawn("w", &["witness", "--listen", "0.0.0.0:7117", "--dir", &witness.display().to_string()]);
        for (node, config) in ["a", "b"].iter().zip(&configs) {
            machines.spawn(node, &["serve", "--config", config]);
        }
        machines.until_ok();
        for node in ["a", "b"] {
            let admin = machines.admin(node);
            machines.twinlog(&["volume", "create", &format!("vol-{node}"), "64MiB", "--admin", &admin]);
        }
        machines
    }

    fn twinlog(&self, arguments: &[&str]) -> String {
        run(env!("CARGO_BIN_EXE_twinlog"), arguments)
    }

    /// Starts the program in a namespace.
    fn spawn(&mut self, place: &str, arguments: &[&str]) {
        let out = File::options().create(true).append(true).open(self.folder.path().join("out")).expect("ours");
        let name = self.networks.name(place);
        // `ip netns exec` becomes the program.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &name, env!("CARGO_BIN_EXE_twinlog")]).args(arguments).stdin(Stdio::null());
        command.stdout(out.try_clone().expect("a handle")).stderr(out);
        self.processes.push(command.spawn().expect("ip starts"));
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    fn socket(&self, node: &str, name: &str) -> PathBuf {
        self.folder.path().join(format!("twinlog-{node}")).join(name)
    }

    fn admin(&self, node: &str) -> String {
        self.socket(node, "admin.sock").display().to_string()
    }

    fn uri(&self, node: &str, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket(node, "nbd.sock").display())
    }

    fn status(&self, node: &str) -> Value {
        let arguments = ["status", "-o", "json", "--admin", &self.admin(node)];
        let output = outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &arguments));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// What `node` says of `pool`, which is called as its home node.
    fn pool(&self, node: &str, pool: &str) -> Value {
        self.status(node)["status"]["pair"]["pools"][usize::from(node != pool)].clone()
    }

    fn serves(&self, node: &str, pool: &str) -> bool {
        self.pool(node, pool)["open"] == "serving"
    }

    fn paths(&self, node: &str) -> (u64, u64) {
        let pair = &self.status(node)["status"]["pair"];
        (pair["paths_up"].as_u64().unwrap_or_default(), pair["paths"].as_u64().unwrap_or_default())
    }

    /// Epoch and takeovers of each node's own pool: whatever a pool goes through changes them.
    fn history(&self) -> [(u64, u64); 2] {
        ["a", "b"].map(|node| {
            let pool = self.pool(node, node);
            let number = |key: &str| pool[key].as_u64().expect("a number");
            (number("epoch"), number("takeovers"))
        })
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.said());
            pause_ms(50);
        }
    }

    fn until_ok(&self) {
        self.until("both nodes say OK", || ["a", "b"].iter().all(|node| self.status(node)["verdict"] == "OK"));
    }

    /// Until both paths carry again and nothing has changed for longer than it takes to notice that something must: what a slow network has
    /// held up shows later.
    fn until_settled(&self) {
        let mut before = self.history();
        self.until("both paths are used and nothing changes", || {
            pause_ms(MIRROR_LOSS_AND_MORE_MS);
            let is_settled = ["a", "b"].iter().all(|node| self.paths(node) == (2, 2)) && self.history() == before;
            before = self.history();
            is_settled
        });
        self.until_ok();
    }

    /// Takes one of both networks out under load, and proves that neither mirror is lost and nothing changes hands.
    fn lose(&self, cable: &Cable) {
        let before = self.history();
        self.networks.plug(cable, false);
        self.until("one path is lost", || ["a", "b"].iter().all(|node| self.paths(node).0 == 1));
        pause_ms(MIRROR_LOSS_AND_MORE_MS);
        assert_eq!(self.history(), before, "no mirror was lost and nothing changed hands\n{}", self.said());
    }

    fn prove(&self, node: &str, volume: &str, journal: &Path) {
        prove(&self.uri(node, volume), journal)
            .unwrap_or_else(|said| panic!("{volume} at {node}: {said}\n{}", self.said()));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whether namespaces can be made. If not, says why; where `CI` is set that is a failure.
fn possible() -> bool {
    if !installed(&["ip", "tc"]) {
        return false;
    }
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        skip("network namespaces need root");
    }
    is_root
}

#[test]
fn two_machines_have_slow_networks_and_lose_them_one_after_the_other() {
    if !possible() {
        return;
    }
    let machines = Machines::start();
    let networks = &machines.networks;
    let journals = ["a", "b"].map(|node| machines.folder.path().join(format!("journal-{node}")));
    let [mut at_a, mut at_b] = [("a", 0), ("b", 1)]
        .map(|(node, index)| load(&machines.uri(node, &format!("vol-{node}")), &journals[index], 11 + index as u64));
    let goes_on = |load: &mut Child| matches!(load.try_wait(), Ok(None));

    // Node a is drained and gets its pool back, as before and after maintenance.
    machines.twinlog(&["pair", "drain", "--admin", &machines.admin("a")]);
    machines.until("b keeps the pool", || machines.pool("b", "a")["row"] == "in sync, kept");
    let explained = machines.twinlog(&["pair", "explain", "--admin", &machines.admin("a")]);
    assert!(explained.contains("owner b, which keeps it"), "{explained}");
    machines.twinlog(&["pair", "takeover", "a", "--admin", &machines.admin("a")]);
    machines.until_ok();
    assert!(goes_on(&mut at_a), "its client has seen a pause only");

    // Slow networks: nothing stops. So slow that heartbeats are late behind what is mirrored: a node may go on alone, and nobody takes over.
    let before = machines.history();
    [FIRST, SECOND].iter().for_each(|cable| networks.slow(cable, Some("100mbit")));
    pause_ms(3000);
    assert_eq!(machines.history(), before, "it mirrors on\n{}", machines.said());
    [FIRST, SECOND].iter().for_each(|cable| networks.slow(cable, Some("2mbit")));
    pause_ms(5000);
    assert!(["a", "b"].iter().all(|node| machines.pool(node, node)["owner"] == *node), "{}", machines.said());
    [FIRST, SECOND].iter().for_each(|cable| networks.slow(cable, None));
    machines.until_ok();
    assert_eq!(machines.history().map(|(_, takeovers)| takeovers), before.map(|(_, takeovers)| takeovers));
    assert!(goes_on(&mut at_a) && goes_on(&mut at_b), "both clients have seen a pause only\n{}", machines.said());

    // One of two networks: nothing stops.
    machines.until_settled();
    machines.lose(&FIRST);
    networks.plug(&FIRST, true);
    machines.until_settled();
    machines.lose(&SECOND);

    // Both: nobody takes over, as both are seen at the witness, and each serves its own pool alone.
    networks.plug(&FIRST, false);
    machines.until("each serves alone", || ["a", "b"].iter().all(|node| machines.pool(node, node)["row"] == "alone"));
    let start = Instant::now();
    while start.elapsed() < LEASE_AND_MORE {
        for (node, partner) in [("a", "b"), ("b", "a")] {
            assert!(machines.serves(node, node) && !machines.serves(node, partner), "{}", machines.said());
        }
        pause_ms(100);
    }
    assert!(goes_on(&mut at_a) && goes_on(&mut at_b), "both clients go on\n{}", machines.said());
    networks.plug(&FIRST, true);
    networks.plug(&SECOND, true);
    machines.until_ok();

    // One node from everything: it stops before its partner begins.
    for cable in [FIRST, SECOND, WITNESS_OF_A] {
        networks.plug(&cable, false);
    }
    machines.until("b serves both pools", || {
        // The locks of the devices, which only nodes on one machine have, would hide a takeover that came too early.
        let [b_owns, a_serves] = [machines.pool("b", "a")["owner"] == "b", machines.serves("a", "a")];
        assert!(!(b_owns && a_serves), "a serves the pool that b has taken over\n{}", machines.said());
        machines.serves("b", "a")
    });
    assert!(goes_on(&mut at_b) && machines.serves("b", "b"), "{}", machines.said());
    end_load(&mut at_a);
    machines.prove("b", "vol-a", &journals[0]);

    // It comes back, and gets its pool.
    for cable in [FIRST, SECOND, WITNESS_OF_A] {
        networks.plug(&cable, true);
    }
    machines.until_ok();
    assert!(machines.serves("a", "a") && goes_on(&mut at_b), "{}", machines.said());
    end_load(&mut at_b);
    machines.prove("a", "vol-a", &journals[0]);
    machines.prove("b", "vol-b", &journals[1]);
}
