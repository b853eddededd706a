//! `twinlog up` as a person uses it: real processes, sockets, signals and files.
//!
//! Waiting is bounded and never asserted to be short: a machine may be busy.

#![expect(clippy::disallowed_methods, reason = "tests wait for processes")]

use crate::common::signal;
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use twinlog::{
    control::client::AdminClient,
    node::admin::{AdminReply, AdminRequest},
};

/// Polls of 50 ms until something is taken for broken: 60 s.
const POLLS_MAX: usize = 1200;

fn twinlog(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinlog")).args(arguments).output().expect("the program starts")
}

fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    for _ in 0..POLLS_MAX {
        if let Some(found) = probe() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited in vain: {what}");
}

/// A running `twinlog up`; killed with its node when dropped.
struct Up {
    supervisor: Child,
    dir: String,
}

impl Up {
    fn start(directory: &TempDir, more: &[&str]) -> Self {
        let dir = directory.path().to_str().expect("a plain path").to_owned();
        let log = File::options().create(true).append(true).open(directory.path().join("out")).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(["up", "--single", &dir]).args(more).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        Self { supervisor: command.spawn().expect("the program starts"), dir }
    }

    /// Started for the first time, small.
    fn fresh(directory: &TempDir) -> Self {
        let up = Self::start(directory, &["--size", "64MiB", "--log-size", "8MiB"]);
        up.serving();
        up
    }

    fn run(&self, arguments: &[&str]) -> Output {
        twinlog(&[arguments, &["--dir", &self.dir]].concat())
    }

    /// A command that must succeed, with its JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.said());
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["schema_version"], 1);
        value
    }

    /// Waits until the node serves its volume.
    fn serving(&self) -> Value {
        wait_for(&format!("serving\n{}", self.said()), || {
            let output = self.run(&["status", "-o", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let named = status["status"]["volumes"].as_array().is_some_and(|volumes| !volumes.is_empty());
            (status["status"]["state"] == "serving" && named).then_some(status)
        })
    }

    /// Process of the node itself.
    fn node(&self) -> u32 {
        let text = fs::read_to_string(Path::new(&self.dir).join("a/pid")).expect("a running node has a pid file");
        text.lines().next().and_then(|line| line.parse().ok()).expect("a process id")
    }

    /// Waits for another node process than `old` that serves.
    fn successor(&self, old: u32) -> Value {
        wait_for(&format!("another node than {old}\n{}", self.said()), || (self.node() != old).then_some(()));
        self.serving()
    }

    /// What it wrote so far.
    fn said(&self) -> String {
        fs::read_to_string(Path::new(&self.dir).join("out")).unwrap_or_default()
    }

    fn volumes(&self) -> Vec<String> {
        let list = self.json(&["volume", "list"]);
        let names = list["volumes"].as_array().expect("a list").iter();
        names.map(|volume| volume["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Sends SIGTERM and waits for the end.
    fn stop(mut self) -> ExitStatus {
        signal(self.supervisor.id(), "TERM");
        wait_for("the end of up", || self.supervisor.try_wait().expect("our child"))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Ended already, or the kernel ends the node with its supervisor.
        let _ended = self.supervisor.kill();
        let _ended = self.supervisor.wait();
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn a_first_start_makes_a_volume_and_a_second_one_finds_it() {
    let directory = directory();
    let up = Up::fresh(&directory);
    let status = up.json(&["status"]);
    assert_eq!(status["verdict"], "OK");
    assert!(status["why"].as_str().expect("a reason").contains("single node, log not mirrored"));
    assert_eq!(status["status"]["volumes"][0]["size_bytes"], 64 << 20);
    let text = String::from_utf8(up.run(&["status"]).stdout).expect("UTF-8");
    assert!(text.starts_with("OK  "), "{text}");
    assert!(up.said().contains("nbd+unix:///vol-a?socket="), "{}", up.said());
    up.json(&["volume", "create", "second", "1GiB"]);
    assert_eq!(up.stop().code(), Some(0));

    let up = Up::start(&directory, &[]);
    up.serving();
    assert_eq!(up.volumes(), ["second", "vol-a"]);
    up.json(&["volume", "delete", "vol-a", "--yes"]);
    assert_eq!(up.stop().code(), Some(0));
    assert!(!directory.path().join("a/admin.sock").exists(), "a stopped node leaves no socket");
    let up = Up::start(&directory, &[]);
    up.serving();
    assert_eq!(up.volumes(), ["second"], "the first volume is made on the first start only");
}

#[test]
fn a_node_that_is_killed_comes_back_with_everything() {
    let directory = directory();
    let up = Up::fresh(&directory);
    for round in 0..3 {
        up.json(&["volume", "create", &format!("v{round}"), "1MiB"]);
        let old = up.node();
        signal(old, "KILL");
        up.successor(old);
        assert_eq!(up.volumes().len(), 2 + round);
    }
    let report = up.json(&["pool", "check"]);
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0));
    assert_eq!(up.stop().code(), Some(0));
}

#[test]
fn one_directory_is_served_once_and_a_dead_supervisor_takes_its_node_along() {
    let directory = directory();
    let mut up = Up::fresh(&directory);
    let second = twinlog(&["up", &up.dir]);
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains(&format!("process {}", up.supervisor.id())), "{message}");
    let config = format!("{}/a/node.toml", up.dir);
    let beside = twinlog(&["serve", "--config", &config, "--pid-file", &format!("{}/a/pid", up.dir)]);
    assert_eq!(beside.status.code(), Some(4), "{beside:?}");

    let node = up.node();
    up.supervisor.kill().expect("our child");
    assert_eq!(up.supervisor.wait().expect("our child").signal(), Some(9));
    wait_for("the end of the node", || (!Path::new(&format!("/proc/{node}/fd/0")).exists()).then_some(()));
    let up = Up::start(&directory, &[]);
    up.serving();
    assert_eq!(up.volumes(), ["vol-a"]);
}

#[test]
fn orders_right_after_a_start_or_a_death_wait_for_the_node() {
    let directory = directory();
    let up = Up::start(&directory, &["--size", "64MiB", "--log-size", "8MiB"]);
    // Nothing listens yet: `up` has just begun to make the node.
    wait_for("the supervisor", || directory.path().join("lock").exists().then_some(()));
    up.json(&["volume", "create", "early", "1MiB"]);
    let node = up.node();
    signal(node, "KILL");
    // A process that is being killed may take a connection yet.
    wait_for("its death", || (!Path::new("/proc").join(node.to_string()).exists()).then_some(()));
    assert_eq!(up.json(&["pool", "check"])["problems"].as_array().map(Vec::len), Some(0));
    assert!(up.volumes().contains(&"early".to_owned()));
}

#[test]
fn damage_on_a_disk_is_named_while_the_node_serves_and_when_it_is_stopped() {
    let directory = directory();
    let up = Up::fresh(&directory);
    let mut client = std::os::unix::net::UnixStream::connect(directory.path().join("a/nbd.sock")).expect("it listens");
    let pattern = [0x5a; 4096];
    nbd_write(&mut client, 40960, &pattern);
    up.json(&["volume", "create", "other", "1MiB"]);
    let cp = up.json(&["status"])["status"]["pool"]["cp"].as_u64();
    wait_for("a consistency point", || (up.json(&["status"])["status"]["pool"]["cp"].as_u64() > cp).then_some(()));
    let image = directory.path().join("disks/pool-a.img");
    let content = fs::read(&image).expect("there");
    let places = content.chunks(4096).enumerate().filter(|(_, block)| *block == pattern);
    let places: Vec<u64> = places.map(|(block, _)| block as u64 * 4096).collect();
    assert_eq!(places.len(), 1, "one copy on one disk");
    let file = fs::OpenOptions::new().write(true).open(&image).expect("there");
    file.write_all_at(b"!", places[0] + 100).expect("written");
    let config = format!("{}/a/node.toml", up.dir);
    let expect = |output: Output| {
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.starts_with("DAMAGED  "), "{text}");
        assert!(text.contains("volume vol-a: bytes 40960..45056 cannot be read"), "{text}");
    };
    expect(up.run(&["pool", "check"]));
    expect(up.run(&["pool", "scrub"]));
    let status = up.run(&["status"]);
    assert!(status.stdout.starts_with(b"DEGRADED  pool: "), "{status:?}");
    assert_eq!(up.stop().code(), Some(0));
    expect(twinlog(&["pool", "check", "--config", &config]));
}

/// Writes by the NBD protocol, oldstyle in nothing: negotiation of the default export, one write, its reply.
fn nbd_write(stream: &mut std::os::unix::net::UnixStream, offset: u64, bytes: &[u8]) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    // Fixed newstyle without the trailing zeroes; EXPORT_NAME with an empty name.
    let option = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 1], &[0; 4]].concat();
    stream.write_all(&option).expect("sent");
    let mut export = [0; 10];
    stream.read_exact(&mut export).expect("size and flags");
    let length = u32::try_from(bytes.len()).expect("small").to_be_bytes();
    let request = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0, 0, 1], &[7; 8], &offset.to_be_bytes(), &length, bytes];
    stream.write_all(&request.concat()).expect("sent");
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[4..8], [0; 4], "no error");
}

#[test]
fn no_restart_leaves_a_dead_node_dead() {
    let directory = directory();
    let up = Up::start(&directory, &["--size", "64MiB", "--log-size", "8MiB", "--no-restart"]);
    up.serving();
    signal(up.node(), "KILL");
    wait_for("a word about it", || up.said().contains("left dead").then_some(()));
    let status = up.run(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(status.stdout.starts_with(b"STOPPED"), "{status:?}");
    assert_eq!(up.stop().code(), Some(0));
}

#[test]
fn a_pool_grows_while_it_serves_and_survives_a_kill_right_after() {
    let directory = directory();
    let up = Up::fresh(&directory);
    let before = up.json(&["pool", "show"])["pools"][0]["size_bytes"].as_u64().expect("a size");
    let device = directory.path().join("more.img");
    File::create(&device).and_then(|file| file.set_len(256 << 20)).expect("a sparse file");
    up.json(&["pool", "grow", device.to_str().expect("a plain path")]);
    let old = up.node();
    signal(old, "KILL");
    up.successor(old);
    let after = up.json(&["pool", "show"])["pools"][0]["size_bytes"].as_u64().expect("a size");
    assert!(after > before + (200 << 20), "{before} -> {after}");
    let full = directory.path().join("full.img");
    fs::write(&full, vec![b'x'; 8 << 20]).expect("written");
    let refusal = up.run(&["pool", "grow", full.to_str().expect("a plain path")]);
    assert_eq!(refusal.status.code(), Some(4), "{refusal:?}");
    let config = fs::read_to_string(directory.path().join("a/node.toml")).expect("there");
    assert!(config.contains("more.img") && !config.contains("full.img"), "{config}");
    assert_eq!(fs::read(&full).expect("there"), vec![b'x'; 8 << 20], "foreign data is left alone");
}

#[test]
fn a_pool_does_not_grow_over_anybodys_data() {
    let directory = directory();
    let up = Up::fresh(&directory);
    let device = directory.path().join("foreign.img");
    let shown = device.to_str().expect("a plain path");
    // Labels that lie beside the places of our superblocks, and data in the middle of a file.
    for (what, place, label) in [
        ("btrfs", 65_600, &b"_BHRfS_M"[..]),
        ("md 0.90", (64 << 20) - 65_536, b"\xfc\x4e\x2b\xa9"),
        ("data", 9 << 20, b"x"),
    ] {
        let file = File::create(&device).expect("made");
        file.set_len(64 << 20).and_then(|()| file.write_all_at(label, place)).expect("written");
        let refusal = up.run(&["pool", "grow", shown]);
        assert_eq!(refusal.status.code(), Some(4), "{what}: {refusal:?}");
        let said = String::from_utf8_lossy(&refusal.stderr).into_owned();
        assert!(said.contains(what) && said.contains(shown) && said.contains("--overwrite"), "{said}");
        let mut kept = vec![0; label.len()];
        File::open(&device).and_then(|file| file.read_exact_at(&mut kept, place)).expect("there");
        assert_eq!(kept, label, "what was refused was not touched");
    }
    // The node looks for itself: whoever asks it directly is refused too.
    let file = File::create(&device).expect("made");
    file.set_len(64 << 20).and_then(|()| file.write_all_at(b"_BHRfS_M", 65_600)).expect("written");
    let socket = directory.path().join("a/admin.sock");
    let mut admin = AdminClient::connect(&socket).expect("the node listens");
    let reply = admin.call(&AdminRequest::PoolGrow { device: shown.to_owned() }).expect("answered");
    assert!(matches!(&reply, AdminReply::Refused { message, .. } if message.contains("btrfs")), "{reply:?}");
    let config = fs::read_to_string(directory.path().join("a/node.toml")).expect("there");
    assert!(!config.contains("foreign.img"), "{config}");
    let before = up.json(&["pool", "show"])["pools"][0]["size_bytes"].as_u64().expect("a size");
    up.json(&["pool", "grow", "--overwrite", shown]);
    let after = up.json(&["pool", "show"])["pools"][0]["size_bytes"].as_u64().expect("a size");
    assert!(after > before + (60 << 20), "{before} -> {after}");
}

#[test]
fn destructive_orders_are_refused_unless_confirmed() {
    let directory = directory();
    let up = Up::fresh(&directory);
    assert_eq!(up.run(&["volume", "delete", "vol-a"]).status.code(), Some(4));
    assert_eq!(up.run(&["volume", "resize", "vol-a", "1MiB"]).status.code(), Some(4));
    let missing = up.run(&["volume", "resize", "nobody", "1MiB"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("try: twinlog volume list"), "{missing:?}");
    up.json(&["volume", "resize", "vol-a", "1MiB", "--discard"]);
    assert_eq!(up.json(&["volume", "show", "vol-a"])["volumes"][0]["size_bytes"], 1 << 20);
}

#[test]
fn the_files_of_a_stopped_node_can_be_examined() {
    let directory = directory();
    let up = Up::fresh(&directory);
    let dir = up.dir.clone();
    signal(up.node(), "STOP");
    let busy = twinlog(&["pool", "check", "--config", &format!("{dir}/a/node.toml")]);
    assert_eq!(busy.status.code(), Some(4), "a running node's devices are not checked behind its back: {busy:?}");
    signal(up.node(), "CONT");
    assert_eq!(up.stop().code(), Some(0));
    for arguments in [
        &["pool", "check", "--config", &format!("{dir}/a/node.toml")][..],
        &["log", "verify", "--dir", &dir],
        &["log", "show", "--dir", &dir],
        &["inspect", "--dir", &dir],
        &["inspect", "--dir", &dir, "--block", "0:1"],
    ] {
        let output = twinlog(&[arguments, &["-o", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["schema_version"], 1);
    }
}

#[test]
fn a_node_that_cannot_start_is_not_started_again_and_says_why() {
    let directory = directory();
    assert_eq!(Up::fresh(&directory).stop().code(), Some(0));
    let config = directory.path().join("a/node.toml");
    let good = fs::read_to_string(&config).expect("there");
    let end = |text: &str| {
        fs::write(&config, text).expect("written");
        let mut up = Up::start(&directory, &[]);
        let status = wait_for("the end of up", || up.supervisor.try_wait().expect("our child"));
        (status.code(), up.said())
    };
    let (code, said) = end(&good.replace("[pool]", "[pol]"));
    assert!(code == Some(2) && said.contains("did you mean `pool`?"), "{code:?}: {said}");
    let (code, said) = end(&good.replace("pool-a.img", "pool-b.img"));
    assert!(code == Some(1) && said.contains("pool-b.img"), "{code:?}: {said}");
    let (code, said) = end(&good.replace("\"log\"", "\"gone\""));
    assert!(code == Some(1) && said.contains("could not start"), "{code:?}: {said}");
    fs::write(&config, good).expect("written");
    Up::start(&directory, &[]).serving();
}

#[test]
fn metrics_and_json_logs_are_served_where_the_configuration_says() {
    let directory = directory();
    assert_eq!(Up::fresh(&directory).stop().code(), Some(0));
    let config = directory.path().join("a/node.toml");
    let text = fs::read_to_string(&config).expect("there");
    let text = text.replace("[metrics]", "[metrics]\naddress = \"127.0.0.1:0\"").replace("\"text\"", "\"json\"");
    fs::write(&config, text).expect("written");
    let up = Up::start(&directory, &[]);
    up.serving();
    let address = wait_for("the node says where", || {
        let said = up.said();
        let mut events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find_map(|event| event["metrics"].as_str().map(str::to_owned))
    });
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("twinlog_volume_size_bytes{node=\"a\",volume=\"vol-a\"} 67108864"), "{answer}");
}

#[test]
fn a_log_in_memory_is_never_ok_and_a_clean_stop_loses_nothing() {
    let directory = directory();
    assert_eq!(Up::fresh(&directory).stop().code(), Some(0));
    let config = directory.path().join("a/node.toml");
    let text = fs::read_to_string(&config).expect("there");
    let volatile = text.replace("\"file\"", "\"memory\"").replace("path = \"log\"\n", "");
    fs::write(&config, volatile.replace("allow_volatile = false", "allow_volatile = true")).expect("written");
    let up = Up::start(&directory, &[]);
    assert_eq!(up.serving()["verdict"], "DEGRADED");
    assert_eq!(up.run(&["status"]).status.code(), Some(3));
    up.run(&["volume", "create", "kept", "1MiB"]);
    assert_eq!(up.stop().code(), Some(0));
    let up = Up::start(&directory, &[]);
    up.serving();
    assert_eq!(up.volumes(), ["kept", "vol-a"]);
}

#[test]
fn scripts_learn_from_up_how_to_connect() {
    let directory = directory();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a free port").port();
    let port = port.to_string();
    let up = Up::start(&directory, &["--size", "64MiB", "--log-size", "8MiB", "--port", &port, "-o", "json"]);
    let event = wait_for("the event", || {
        let said = up.said();
        let mut events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["event"] == "serving")
    });
    assert_eq!(event["schema_version"], 1);
    let uris = event["volumes"][0]["uris"].as_array().expect("a list");
    let socket = uris[0].as_str().and_then(|uri| uri.strip_prefix("nbd+unix:///vol-a?socket=")).expect("a Unix socket");
    std::os::unix::net::UnixStream::connect(socket).expect("somebody listens");
    assert_eq!(uris[1], format!("nbd://127.0.0.1:{port}/vol-a"));
    TcpStream::connect(format!("127.0.0.1:{port}")).expect("somebody listens");
    assert_eq!(up.stop().code(), Some(0));
}

/// The first CPU that this process may use.
fn usable_cpu() -> usize {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("the kernel tells");
    (0..1024).find(|cpu| set.is_set(*cpu) == Ok(true)).expect("one at least")
}

#[test]
fn two_reactors_serve_and_restart_with_one() {
    let directory = directory();
    let up = Up::start(&directory, &["--size", "64MiB", "--log-size", "16MiB", "--reactors", "2"]);
    up.serving();
    let other = up.json(&["volume", "create", "other", "64MiB"])["volumes"][0]["reactor"].clone();
    let list = up.json(&["volume", "list"]);
    let reactors: Vec<&Value> =
        list["volumes"].as_array().expect("a list").iter().map(|volume| &volume["reactor"]).collect();
    assert!(reactors.contains(&&other) && reactors[0] != reactors[1], "each reactor has a volume: {list}");
    let status = up.json(&["status"]);
    assert_eq!(status["status"]["reactors"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["status"]["lanes"].as_array().map(Vec::len), Some(2));
    assert_eq!(up.stop().code(), Some(0));
    let config = directory.path().join("a/node.toml");
    let text = fs::read_to_string(&config).expect("there");
    let cpu = usable_cpu();
    let pinned = text.replace("count = 2", "count = 1").replace("cpus = []", &format!("cpus = [{cpu}]"));
    fs::write(&config, pinned).expect("written");
    let up = Up::start(&directory, &[]);
    up.serving();
    let status = up.json(&["status"]);
    assert_eq!(status["status"]["reactors"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["status"]["lanes"].as_array().map(Vec::len), Some(2), "lanes belong to the pool");
    assert_eq!(status["status"]["reactors"][0]["cpu"], cpu);
    let text = String::from_utf8(up.run(&["status"]).stdout).expect("UTF-8");
    assert!(text.contains(&format!("reactor 0 on CPU {cpu} ")), "{text}");
    assert_eq!(up.volumes().len(), 2);
}

/// Connects as the host called `name`. Returns bits 31:16 of the result, what is demanded, or 1 for a fault in the data, and the status.
fn knock(port: u16, subsystem: &str, name: &str) -> (u32, u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let mut bytes = vec![0; 128];
    (bytes[2], bytes[4]) = (128, 128);
    let mut capsule = vec![0; 72 + 1024];
    (capsule[0], capsule[2], capsule[3], capsule[8]) = (4, 72, 72, 0x7f);
    capsule[4..6].copy_from_slice(&1096_u16.to_le_bytes());
    (capsule[12], capsule[41], capsule[47], capsule[52]) = (1, 4, 1, 31);
    capsule[72 + 16..72 + 18].fill(0xff);
    capsule[72 + 256..][..subsystem.len()].copy_from_slice(subsystem.as_bytes());
    capsule[72 + 512..][..name.len()].copy_from_slice(name.as_bytes());
    bytes.extend(capsule);
    stream.write_all(&bytes).expect("sent");
    let mut answer = [0; 128 + 24];
    stream.read_exact(&mut answer).expect("answered");
    let word = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
    (u32::from(word(128 + 10)), word(128 + 22) >> 1 & 0x7ff)
}

#[test]
fn hosts_are_named_while_the_node_runs_and_their_secrets_are_kept_and_not_shown() {
    let (directory, name, other) =
        (directory(), "nqn.2014-08.org.nvmexpress:uuid:1", "nqn.2014-08.org.nvmexpress:uuid:2");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let up = Up::start(&directory, &["--size", "64MiB", "--log-size", "8MiB", "--nvme", &port.to_string()]);
    up.serving();
    let said = up.said();
    let at = said.find("nqn.2014-08.org.nvmexpress:uuid:").expect("the subsystem's name is said");
    let subsystem = &said[at..at + 32 + 36];
    assert_eq!(knock(port, subsystem, other), (0, 0), "open to this machine");
    let added = up.json(&["host", "add", name, "--new-secret"]);
    let secret = added["secret"].as_str().expect("shown once").to_owned();
    let again = |expected: (u32, u16)| {
        assert_eq!(knock(port, subsystem, name), expected);
        assert_eq!(knock(port, subsystem, other).1, 0x184, "not in the list");
    };
    again((2, 0));
    let path = directory.path().join("a/hosts.toml");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&path).expect("read").contains(&secret));
    let bytes = secret.split(':').nth(2).expect("the form of a secret");
    let list = up.json(&["host", "list"]);
    assert_eq!((&list["hosts"][0]["nqn"], list["hosts"][0]["secret"].is_string()), (&Value::from(name), true));
    let events = String::from_utf8_lossy(&up.run(&["events", "-o", "json"]).stdout).into_owned();
    assert!(events.contains("the list of hosts has changed"));
    for shown in [list.to_string(), up.json(&["status"]).to_string(), events, up.said()] {
        assert!(!shown.contains(bytes), "{shown}");
    }
    let node = up.node();
    signal(node, "KILL");
    up.successor(node);
    again((2, 0));
    assert!(up.run(&["host", "remove", name]).status.success());
    again((1, 0x184));
    assert_eq!(up.run(&["host", "remove", name]).status.code(), Some(1));
    assert_eq!(up.run(&["host", "add", "iqn.1"]).status.code(), Some(1));
    assert!(up.stop().success());
}
