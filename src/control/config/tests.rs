//! What a person sees who mistypes, and that no bound is off by one.

use super::*;
use std::time::Duration;

const GOOD: &str = r#"
name = "a"
[log]
path = "log"
[pool]
name = "a"
devices = ["disk"]
"#;

fn read(text: &str) -> Result<NodeConfig, ConfigError> {
    parse(text, Path::new("node.toml"), Path::new("/data/a"))
}

fn broken(text: &str) -> (String, String) {
    let error = read(text).expect_err(text);
    (error.to_string(), error.hint)
}

/// `GOOD` with `line` put below `[table]`.
fn with(table: &str, line: &str) -> String {
    let header = format!("[{table}]\n");
    if GOOD.contains(&header) {
        GOOD.replace(&header, &format!("{header}{line}\n"))
    } else {
        format!("{GOOD}{header}{line}\n")
    }
}

#[test]
fn the_shortest_file_gets_defaults_and_absolute_paths() {
    let config = read(GOOD).expect("good");
    assert_eq!(config.admin, Path::new("/data/a/admin.sock"));
    assert_eq!(config.nbd.unix, [Path::new("/data/a/nbd.sock")]);
    assert_eq!(config.log.path.as_deref(), Some(Path::new("/data/a/log")));
    assert_eq!((config.log.backend, config.log.size.bytes()), (LogBackend::File, 256 << 20));
    assert_eq!(config.reactors.count, 1);
    assert!(config.memory.limit.bytes() < 512 << 20);
    assert_eq!(config.metrics.address, None);
}

#[test]
fn what_is_written_is_read_back() {
    let mut config = read(GOOD).expect("good");
    config.metrics.address = Some("127.0.0.1:9745".parse().expect("an address"));
    config.reactors = ReactorsConfig { count: 2, cpus: vec![0, 3], idle: IdlePolicy::Busy };
    assert_eq!(read(&to_text(&config)), Ok(config));
}

#[test]
fn the_list_of_keys_is_that_of_the_types() {
    let mut config = read(GOOD).expect("good");
    let address: SocketAddr = "127.0.0.1:9745".parse().expect("an address");
    config.metrics.address = Some(address);
    let hosts = vec!["nqn.2014-08.org.nvmexpress:uuid:1".to_owned()];
    config.nvme_tcp = Some(NvmeTcpConfig {
        listen: address,
        partner: Some(address),
        hosts,
        hosts_file: Some("hosts.toml".into()),
        allow_remote: true,
    });
    let mut pair = PairConfig::on_one_machine("b");
    (pair.tcp, pair.partner_tcp, pair.fence_command) = (vec![address], vec![address], vec!["fence".to_owned()]);
    (pair.witness, pair.fence_options) = (Some("h:1".to_owned()), [("ip".to_owned(), "1".to_owned())].into());
    pair.interconnect_cpu = Some(3);
    config.pair = Some(pair);
    (config.partner_pool, config.mirror) = (Some(config.pool.clone()), Some(config.log.clone()));
    let table: toml::Table = to_text(&config).parse().expect("TOML");
    for (name, keys) in keys::KEYS {
        let written = if name.is_empty() { &table } else { table[name].as_table().expect("a table") };
        let written: Vec<&str> = written.keys().map(String::as_str).collect();
        let mut listed = keys.to_vec();
        listed.sort_unstable();
        let mut sorted = written.clone();
        sorted.sort_unstable();
        assert_eq!(listed, sorted, "[{name}]");
    }
}

#[test]
fn a_mistyped_key_names_its_line_and_the_key_that_was_meant() {
    assert_eq!(
        broken(&with("log", "szie = \"1GiB\"")),
        ("node.toml:4: unknown key `szie` in [log]".to_owned(), "did you mean `size`?".to_owned())
    );
    assert_eq!(
        broken(&format!("{GOOD}[reactor]\ncount = 2\n")),
        ("node.toml:8: unknown key `reactor`".to_owned(), "did you mean `reactors`?".to_owned())
    );
    assert_eq!(broken(&with("log", "allow-volatile = true")).1, "did you mean `allow_volatile`?");
    assert_eq!(broken(&with("log", "idle = \"busy\"")).1, "`idle` belongs in [reactors]");
    assert_eq!(broken(&with("memory", "xyzzy = 1")).1, "known here: limit, pinned");
}

#[test]
fn a_value_of_the_wrong_kind_names_its_line() {
    let (message, _) = broken(&with("log", "size = \"4GB\""));
    assert!(message.starts_with("node.toml:4: `4GB` has no unit"), "{message}");
    let (message, _) = broken(&with("log", "backend = \"disk\""));
    assert!(message.starts_with("node.toml:4: unknown variant `disk`"), "{message}");
    let (message, _) = broken(&format!("{GOOD}name = [\n"));
    assert!(message.starts_with("node.toml:"), "{message}");
    let (message, _) = broken("log = 3\nname = \"a\"\n");
    assert!(message.starts_with("node.toml:1:"), "{message}");
    assert!(broken("").0.contains("missing field `name`"));
}

#[test]
fn another_machine_reaches_nothing_unless_asked_for() {
    let (message, hint) = broken(&with("nbd", "tcp = [\"127.0.0.1:1\", \"0.0.0.0:10809\"]"));
    assert!(message.starts_with("node.toml:9: nbd.tcp: 0.0.0.0:10809"), "{message}");
    assert!(hint.contains("allow_remote = true"));
    read(&with("nbd", "tcp = [\"0.0.0.0:10809\"]\nallow_remote = true")).expect("asked for");
    read(&with("nbd", "tcp = [\"[::1]:10809\"]")).expect("loopback");
    assert!(broken(&with("metrics", "address = \"10.0.0.1:9\"")).0.contains("loopback only"));
}

#[test]
fn a_volatile_log_must_be_asked_for() {
    let volatile = GOOD.replace("path = \"log\"", "backend = \"memory\"");
    let (message, hint) = broken(&volatile);
    assert!(message.starts_with("node.toml:4: log.backend"), "{message}");
    assert!(hint.contains("allow_volatile = true"));
    read(&volatile.replace("\"memory\"", "\"memory\"\nallow_volatile = true")).expect("asked for");
    assert!(broken(&GOOD.replace("path = \"log\"", "")).0.contains("needs a `path`"));
}

#[test]
fn bounds_hold_at_the_bound() {
    let verdict = |table: &str, line: &str| read(&with(table, line)).map(|_| ()).map_err(|error| error.message);
    for good in ["size = \"8MiB\"", "size = \"1TiB\""] {
        assert_eq!(verdict("log", good), Ok(()));
    }
    for bad in ["size = \"8188KiB\"", "size = \"1048577MiB\"", "size = 16777217"] {
        assert!(verdict("log", bad).expect_err(bad).starts_with("log.size"));
    }
    assert_eq!(verdict("reactors", "count = 6"), Ok(()));
    for bad in ["count = 0", "count = 17", "cpus = [0, 1]", "cpus = [1024]", "count = 2\ncpus = [1, 1]"] {
        assert!(verdict("reactors", bad).expect_err(bad).starts_with("reactors."));
    }
    assert!(verdict("reactors", "count = 7").expect_err("384 MiB / 7").starts_with("memory.limit"));
    assert_eq!(verdict("memory", "limit = \"64MiB\""), Ok(()));
    assert!(verdict("memory", "limit = \"63MiB\"").expect_err("below").starts_with("memory.limit"));
    assert!(verdict("nbd", "unix = []").expect_err("no address").starts_with("nbd"));
    assert!(verdict("nbd", "unix = [\"admin.sock\"]").expect_err("taken").contains("same socket"));
    let path = |length: usize| format!("unix = [\"/{}\"]", "x".repeat(length - 1));
    assert_eq!(verdict("nbd", &path(106)), Ok(()));
    assert!(verdict("nbd", &path(107)).expect_err("too long").contains("107 bytes"));
}

#[test]
fn names_and_devices_are_checked() {
    let name = |name: &str| read(&GOOD.replacen("\"a\"", &format!("{name:?}"), 1)).map(|_| ());
    assert_eq!(name(&"n".repeat(64)), Ok(()));
    for bad in ["", "-a", "a b", "é", &"n".repeat(65)] {
        name(bad).expect_err(bad);
    }
    let devices = |list: &str| read(&GOOD.replace("[\"disk\"]", list)).map(|_| ()).map_err(|error| error.message);
    assert!(devices("[]").expect_err("none").contains("0 devices"));
    assert!(devices("[\"d\", \"d\"]").expect_err("twice").contains("named twice"));
    assert!(devices("[\"log\"]").expect_err("the log").contains("also the log"));
}

#[test]
fn nvme_namespaces_stand_beside_paths_where_a_pool_has_its_devices() {
    let text = GOOD.replace("[\"disk\"]", "[\"nvme:S1/1\", \"disk\", \"nvme:S1/2\", \"./nvme:x\"]");
    let config = read(&text).expect("good");
    let names = ["nvme:S1", "/data/a/disk", "nvme:S1/2", "/data/a/nvme:x"];
    assert_eq!(config.pool.devices, names.map(PathBuf::from));
    let refused = |text: &str, old: &str, new: &str| read(&text.replace(old, new)).expect_err(new).message;
    assert!(refused(GOOD, "[\"disk\"]", "[\"nvme:S1\", \"nvme:S1/1\"]").contains("named twice"));
    assert!(refused(GOOD, "[\"disk\"]", "[\"nvme:S1/0\"]").contains("number of a namespace"));
    assert!(refused(GOOD, "path = \"log\"", "path = \"nvme:S1\"").contains("only a pool's devices"));
    assert!(refused(PAIR, "mailbox = \"m\"", "mailbox = \"nvme:S1/2\"").contains("only a pool's devices"));
}

#[test]
fn fua_is_trusted_unless_the_file_says_otherwise() {
    let fua = |line: &str| read(&with("nvme", line)).map(|config| config.nvme.fua);
    assert_eq!(read(GOOD).expect("good").nvme, NvmeConfig { fua: Fua::Trust });
    for (line, expected) in [("", Fua::Trust), ("fua = \"trust\"", Fua::Trust), ("fua = \"flush\"", Fua::Flush)] {
        assert_eq!(fua(line), Ok(expected));
    }
    for word in ["honoured", "Flush", "flush ", ""] {
        let (message, _) = broken(&with("nvme", &format!("fua = \"{word}\"")));
        let expected = format!("node.toml:9: unknown variant `{word}`, expected `trust` or `flush`");
        assert_eq!(message, expected);
    }
    assert!(broken(&with("nvme", "fua = false")).0.starts_with("node.toml:9: "));
    assert_eq!(broken(&with("nvme", "FUA = \"flush\"")).1, "did you mean `fua`?");
}

#[test]
fn namespaces_of_a_pair_need_a_fence_that_keeps_the_partners_writes_away() {
    let with = |devices: [&str; 2], lines: &str| {
        let text = PAIR.replace("[\"d\"]", devices[0]).replace("[\"e\"]", devices[1]);
        text.replace("[partner_pool]", &format!("{lines}[partner_pool]"))
    };
    let (nvme, file) = (["[\"nvme:S1\"]", "[\"nvme:S1/2\"]"], "[\"d\"]");
    for devices in [nvme, [nvme[0], file], [file, nvme[1]]] {
        for kind in ["lock", "process", "lease"] {
            let (message, hint) = broken(&with(devices, &format!("fence = [\"{kind}\"]\n")));
            assert!(message.contains(&format!("`{kind}` ")) && message.contains("over newer data"), "{message}");
            assert!(hint.contains("reservation") && hint.contains("command"), "{hint}");
        }
        assert!(broken(&with(devices, "")).0.contains("`lock`"), "the default is no fence for them");
        read(&with(devices, "fence = [\"command\"]\nfence_command = [\"f\"]\n")).expect("it switches machines off");
        read(&with(devices, "fence = [\"lease\"]\naccept_in_flight_io = true\n")).expect("it was accepted");
    }
    let reservation = "fence = [\"reservation\"]\n";
    assert!(read(&with(nvme, reservation)).expect("good").pair.expect("there").reserves());
    let both = "fence = [\"command\", \"reservation\"]\nfence_command = [\"f\"]\n";
    read(&with(nvme, both)).expect("one after the other");
    for devices in [[nvme[0], file], [file, nvme[1]], [file, "[\"e\"]"]] {
        assert!(broken(&with(devices, reservation)).0.contains("is none"), "{devices:?}");
    }
    let remote = "partner_tcp = [\"10.0.0.2:1\"]\n";
    let witness = with(nvme, &format!("{remote}{reservation}")).replace("mailbox = \"m\"", "witness = \"h:1\"");
    read(&witness).expect("between machines too");
}

#[test]
fn a_device_is_added_to_the_text_and_nothing_else_changes() {
    let text = GOOD.replace("[\"disk\"]", "[ # mine\n  \"disk\", # first\n]") + "# the end\n";
    let grown = with_device(&text, Path::new("/d/odd \"name\"")).expect("a configuration");
    assert!(grown.contains("# mine\n") && grown.contains(", # first\n") && grown.ends_with("# the end\n"), "{grown}");
    let config = read(&grown).expect("still good");
    assert_eq!(config.pool.devices, [Path::new("/data/a/disk"), Path::new("/d/odd \"name\"")]);
    assert_eq!(with_device("name = 3", Path::new("d")), None);
    assert_eq!(with_device("[pool]\ndevices = []", Path::new("d")), None, "there is no pool without devices");
}

/// A node of a pair.
const PAIR: &str = "name = \"a\"\n[log]\npath = \"log\"\n[pool]\nname = \"a\"\ndevices = [\"d\"]\n\
    [pair]\npartner = \"b\"\nunix = [\"s\"]\npartner_unix = [\"t\"]\nkey = \"k\"\nmailbox = \"m\"\n\
    [partner_pool]\nname = \"b\"\ndevices = [\"e\"]\n[mirror]\npath = \"mirror\"\n";

#[test]
fn a_giveback_by_command_only_can_be_configured() {
    let giveback = |line: &str| {
        let config = read(&PAIR.replace("unix = [\"s\"]", &format!("{line}unix = [\"s\"]"))).expect("good");
        config.pair.expect("there").giveback()
    };
    assert_eq!(giveback(""), Some(Duration::from_secs(5)));
    assert_eq!(giveback("giveback_after_s = 7\n"), Some(Duration::from_secs(7)));
    assert_eq!(giveback("giveback_after_s = 0\n"), None);
}

#[test]
fn registers_and_locks_in_a_file_are_for_nodes_on_one_machine() {
    let lease = "fence = [\"lease\"]\n";
    let here = "tcp = [\"127.0.0.1:1\"]\npartner_tcp = [\"[::1]:2\"]\n";
    let there = ["allow_remote = true\ntcp = [\"0.0.0.0:1\"]\n", "partner_tcp = [\"10.0.0.2:1\"]\n"];
    let with = |lines: &str| PAIR.replace("[partner_pool]", &format!("{lines}[partner_pool]"));
    read(&with(here)).expect("both are on this machine");
    // The node that listens may name no address of its partner.
    for remote in there {
        let lines = format!("{remote}{lease}accept_in_flight_io = true\n");
        let (message, hint) = broken(&with(&lines));
        assert!(message.contains("`mailbox` is safe between nodes of one machine only"), "{message}");
        assert!(hint.contains("twinlog witness"), "{hint}");
        let witness = |lines: &str| with(lines).replace("mailbox = \"m\"", "witness = \"h:1\"");
        read(&witness(&lines)).expect("a witness may be asked from anywhere");
        assert!(broken(&witness(remote)).0.contains("`lock` needs the locks of a mailbox"));
    }
}

#[test]
fn a_lease_is_no_fence_between_machines_unless_what_it_lets_through_is_accepted() {
    let witness = PAIR.replace("mailbox = \"m\"", "witness = \"h:1\"");
    let with = |lines: &str| witness.replace("[partner_pool]", &format!("{lines}[partner_pool]"));
    let command = "fence = [\"command\", \"lease\"]\nfence_command = [\"f\"]\n";
    for remote in ["allow_remote = true\ntcp = [\"0.0.0.0:1\"]\n", "partner_tcp = [\"10.0.0.2:1\"]\n"] {
        for fence in ["fence = [\"lease\"]\n", command] {
            let (message, hint) = broken(&with(&format!("{remote}{fence}")));
            assert!(message.contains("may land after the takeover, over newer data"), "{message}");
            assert!(hint.contains("fence = [\"command\"]") && hint.contains("accept_in_flight_io = true"), "{hint}");
            let accepted = format!("{remote}{fence}accept_in_flight_io = true\n");
            assert!(read(&with(&accepted)).expect("accepted").pair.expect("there").accept_in_flight_io);
        }
        read(&with(&format!("{remote}{}", command.replace(", \"lease\"", "")))).expect("it switches machines off");
    }
    // On one machine the locks of the devices last as long as the writes.
    read(&with("fence = [\"lease\"]\npartner_tcp = [\"127.0.0.1:1\"]\n")).expect("one machine");
}

#[test]
fn a_pair_is_configured_whole_and_without_contradictions() {
    let config = read(PAIR).expect("good");
    let pair = config.pair.as_ref().expect("there");
    assert_eq!((pair.deadline_ms, pair.giveback_after_s, pair.fence.as_slice()), (1000, 5, &[FenceKind::Lock][..]));
    assert_eq!(read(&to_text(&config)).expect("what is written is read back"), config);
    let without = |from: &str, to: &str| broken(&PAIR.replace(from, to)).0;
    assert!(without("[mirror]\npath = \"mirror\"\n", "").contains("belong together"));
    assert!(without("partner = \"b\"", "partner = \"a\"").contains("this node itself"));
    assert!(without("devices = [\"e\"]", "devices = [\"d\"]").contains("own pool too"));
    assert!(without("path = \"mirror\"", "path = \"log\"").contains("also the node's own log"));
    assert!(without("path = \"mirror\"", "path = \"mirror\"\nsize = \"512MiB\"").contains("differs from log.size"));
    assert!(without("unix = [\"s\"]", "deadline_ms = 99\nunix = [\"s\"]").contains("outside 100"));
    assert!(without("unix = [\"s\"]", "request_wait_s = 0\nunix = [\"s\"]").contains("outside 1 to"));
    assert!(without("unix = [\"s\"]", "fence = []\nunix = [\"s\"]").contains("without a fence"));
    assert!(without("unix = [\"s\"]", "fence = [\"command\"]\nunix = [\"s\"]").contains("disagree"));
    assert!(without("unix = [\"s\"]", "tcp = [\"10.0.0.1:1\"]\nunix = [\"s\"]").contains("other machines"));
    assert!(without("partner_unix = [\"t\"]\n", "").contains("0 addresses for the partner"));
    assert!(without("mailbox = \"m\"\n", "").contains("one of the two is needed"));
    assert!(without("mailbox = \"m\"\n", "mailbox = \"m\"\nwitness = \"h:1\"\n").contains("one of the two is needed"));
    for address in ["h", "h:", ":1", "h:0", "h:65536", "h h:1"] {
        let witness = format!("witness = \"{address}\"\nfence = [\"lease\"]\n");
        assert!(without("mailbox = \"m\"\n", &witness).contains("no host and port"), "{address}");
    }
    assert!(without("mailbox = \"m\"\n", "witness = \"h:1\"\n").contains("`lock` needs the locks of a mailbox"));
    read(&PAIR.replace("mailbox = \"m\"\n", "witness = \"h:1\"\nfence = [\"lease\"]\n")).expect("good");
    let options = "fence = [\"command\"]\nfence_command = [\"f\"]\nfence_options = { ip = \"1\" }\nunix = [\"s\"]";
    let config = read(&PAIR.replace("unix = [\"s\"]", options)).expect("good");
    assert_eq!(read(&to_text(&config)).expect("what is written is read back"), config);
    assert!(without("unix = [\"s\"]", &options.replace("ip =", "\"i p\" =")).contains("no option of a fence agent"));
    assert!(without("unix = [\"s\"]", &options.replace("\"1\"", "\"1\\n2\"")).contains("more than one line"));
    let placed = |lines: &str| PAIR.replace("unix = [\"s\"]", &format!("{lines}\nunix = [\"s\"]"));
    let config = read(&placed("interconnect = \"thread\"\ninterconnect_cpu = 3")).expect("good");
    assert_eq!(read(&to_text(&config)).expect("what is written is read back"), config);
    assert!(broken(&placed("interconnect = \"reactor\"\ninterconnect_cpu = 3")).0.contains("no thread of its own"));
    assert!(broken(&placed("interconnect_cpu = 1024")).0.contains("beyond 1023"));
    let shared = placed("interconnect_cpu = 3") + "[reactors]\ncpus = [3]\n";
    assert!(broken(&shared).0.contains("CPU 3 is a reactor's"));
    assert!(without("unix = [\"s\"]", "fence_limit_s = 0\nunix = [\"s\"]").contains("outside 1"));
}

#[test]
fn hosts_of_other_machines_are_named() {
    let listen = |line: &str| with("nvme_tcp", line);
    let local = read(&listen("listen = \"127.0.0.1:4420\"")).expect("good").nvme_tcp.expect("configured");
    assert!(local.hosts.is_empty() && !local.allow_remote);
    let host = "\nhosts = [\"nqn.2014-08.org.nvmexpress:uuid:1\"]";
    let remote = format!("listen = \"192.0.2.1:4420\"{host}");
    assert!(broken(&listen(&remote)).0.contains("can be reached from other machines"));
    let allowed = format!("{remote}\nallow_remote = true");
    assert_eq!(read(&listen(&allowed)).expect("good").nvme_tcp.expect("configured").hosts.len(), 1);
    assert!(broken(&listen(&allowed.replace(host, ""))).0.contains("no host can ever connect"));
    let kept =
        read(&listen(&allowed.replace(host, "\nhosts_file = \"h\""))).expect("good").nvme_tcp.expect("configured");
    assert!(kept.hosts.is_empty() && kept.hosts_file.is_some_and(|path| path.is_absolute()));
    assert!(broken(&listen(&allowed.replace("nqn.", "iqn."))).0.contains("is not a qualified name"));
    for bad in ["0.0.0.0:4420", "127.0.0.1:0"] {
        assert!(broken(&listen(&format!("listen = \"{bad}\""))).0.contains("not an address"), "{bad}");
    }
    assert!(broken(&listen("listen = \"127.0.0.1:4420\"\npartner = \"127.0.0.1:4421\"")).0.contains("no partner"));
}
