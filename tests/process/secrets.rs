//! Hosts with secrets at real nodes: `twinlog-load` authenticates itself, at each queue and each time that a path is opened again, or is told why it cannot.

use crate::{
    common::{
        command, load_tool, outcome,
        pair::{Pair, prove_with},
        pause_ms, signal,
    },
    nvme::{discovered, end, finish, load, uri},
};
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-8333-9444-555555555555";

/// A file of the pair's folder that only its owner can read.
fn keep(pair: &Pair, name: &str, text: &str) -> PathBuf {
    let path = pair.folder.path().join(name);
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
    path
}

/// The files with a host's secret and the controller's, which both nodes have, and the options that name them.
struct Secrets {
    own: PathBuf,
    controller: PathBuf,
}

impl Secrets {
    /// Makes new ones at node a, and gives them to node b.
    fn introduce(pair: &Pair) -> Self {
        let made = pair.run("a", &["host", "add", HOST, "--new-secret", "--new-controller-secret", "-o", "json"]);
        let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        let [own, controller] =
            ["secret", "controller_secret"].map(|name| keep(pair, name, made[name].as_str().expect("a secret")));
        let secrets = Self { own, controller };
        secrets.add(pair, "b", true);
        secrets
    }

    /// Adds the host to a node, or replaces what it has there.
    fn add(&self, pair: &Pair, node: &str, is_mutual: bool) {
        let options = self.options(is_mutual);
        let words: Vec<&str> = ["host", "add", HOST].into_iter().chain(options.iter().map(String::as_str)).collect();
        let added = pair.run(node, &words);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    }

    /// Of `twinlog host add` and of the load tool: they are called the same.
    fn options(&self, is_mutual: bool) -> Vec<String> {
        let own = format!("--secret-file={}", self.own.display());
        let controller = format!("--controller-secret-file={}", self.controller.display());
        if is_mutual { vec![own, controller] } else { vec![own] }
    }
}

/// What the load tool says when it cannot connect with these options.
fn refusal(uri: &str, options: &[String], code: i32) -> String {
    let arguments = [&[uri.to_owned(), "--ops=1".into()], options].concat();
    let refused = outcome(&mut command(load_tool().to_str().expect("plain"), &arguments));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(code), "{said}");
    assert!(!said.contains("DHHC-1:0"), "no secret is repeated: {said}");
    said
}

/// Options as [`load`] takes them.
fn words(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

#[test]
fn a_host_with_its_secret_is_let_in_at_every_queue_of_both_nodes() {
    let pair = Pair::start();
    let secrets = Secrets::introduce(&pair);
    for node in 0..2 {
        for (is_mutual, options) in [(false, ""), (true, "&digest=both"), (true, "&capsule=no")] {
            let journal = pair.folder.path().join(format!("journal-{node}{is_mutual}{}", options.len()));
            let uri = discovered(&pair, node, "vol-a", &format!("&hostnqn={HOST}{options}"));
            let options = secrets.options(is_mutual);
            let more = [&["--ops=200", "--time=300", "--bs=4k-1m", "--align=4k", "--size=16m"], &words(&options)[..]];
            finish(load(&uri, &journal, 5, &more.concat()), &pair);
            prove_with(&uri, &journal, &options).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
        }
    }
    for hash in ["sha256", "sha384", "sha512"] {
        for group in ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"] {
            let uri = uri(&pair, "vol-a", &format!("&hostnqn={HOST}&hmac={hash}&dhgroup={group}"));
            let arguments = [&[uri, "--rw=randread".into(), "--ops=1".into()], &secrets.options(true)[..]].concat();
            let read = outcome(&mut command(load_tool().to_str().expect("plain"), &arguments));
            assert!(read.status.success(), "{hash} {group}: {}", String::from_utf8_lossy(&read.stderr));
        }
    }
}

#[test]
fn a_host_that_cannot_prove_itself_is_told_why() {
    let pair = Pair::start();
    let secrets = Secrets::introduce(&pair);
    let uri = uri(&pair, "vol-a", &format!("&hostnqn={HOST}"));
    assert!(refusal(&uri, &[], 3).contains("demands authentication: give --secret-file FILE"));
    let exchanged = Secrets { own: secrets.controller.clone(), controller: secrets.own.clone() };
    let said = refusal(&uri, &exchanged.options(false), 3);
    assert!(said.contains("the secret in --secret-file is not the one that it has for this host's name"), "{said}");
    let other = "DHHC-1:00:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQHMnzFi:";
    let other = Secrets { own: secrets.own.clone(), controller: keep(&pair, "other", other) };
    let said = refusal(&uri, &other.options(true), 3);
    assert!(said.contains("it does not know the secret in --controller-secret-file"), "{said}");
    let stranger = uri.replace("hostnqn=nqn.2014-08.", "hostnqn=nqn.2015-08.");
    assert!(refusal(&stranger, &secrets.options(false), 3).contains("this host is not allowed"));
    // A node that has no secret of its own, then one that demands none.
    ["a", "b"].iter().for_each(|node| secrets.add(&pair, node, false));
    assert!(refusal(&uri, &secrets.options(true), 3).contains("or it has none for --controller-secret-file"));
    for node in ["a", "b"] {
        assert!(pair.run(node, &["host", "add", HOST]).status.success());
    }
    let said = refusal(&uri, &secrets.options(true), 3);
    assert!(said.contains("demands no authentication, so nothing shows"), "{said}");
    // What was wrong before anybody was asked.
    let nameless = uri.split("&hostnqn=").next().expect("a URI");
    assert!(refusal(nameless, &secrets.options(false), 2).contains("hostnqn= in the URI"));
    assert!(refusal(&pair.uri("a", "vol-a"), &secrets.options(false), 2).contains("for targets of nvme-tcp"));
    fs::set_permissions(&secrets.own, Permissions::from_mode(0o644)).expect("set");
    assert!(refusal(&uri, &secrets.options(false), 2).contains("chmod 600"));
}

#[test]
fn a_host_is_let_in_with_its_own_identifier_alone() {
    const ID: &str = "11111111-2222-4333-8444-555555555555";
    let pair = Pair::start();
    let other = HOST.replace("555555555555", "666666666666");
    for node in ["a", "b"] {
        assert!(pair.run(node, &["host", "add", HOST, "--host-id", ID]).status.success());
        assert!(pair.run(node, &["host", "add", &other]).status.success());
    }
    let refused = pair.run("a", &["host", "add", &other, "--host-id", ID]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has the identifier of host"));
    let listed = pair.run("a", &["host", "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(ID));
    let [own, other] = [HOST, &other].map(|name| uri(&pair, "vol-a", &format!("&hostnqn={name}")));
    for uri in [own.clone(), format!("{other}&hostid={ID}")] {
        assert!(refusal(&uri, &[], 3).contains("this host is not allowed"));
    }
    for uri in [format!("{own}&hostid={ID}"), other] {
        let read = outcome(&mut command(
            load_tool().to_str().expect("plain"),
            &[uri, "--rw=randread".into(), "--ops=1".into()],
        ));
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    }
}

#[test]
fn a_host_with_a_secret_survives_the_death_of_each_node() {
    let pair = Pair::start();
    let secrets = Secrets::introduce(&pair);
    let options = secrets.options(true);
    let uri = uri(&pair, "vol-a", &format!("&hostnqn={HOST}"));
    let journal = pair.folder.path().join("journal");
    let more = [&["--time=900", "--bs=4k-64k", "--reconnect=300"], &words(&options)[..]].concat();
    let mut load = load(&uri, &journal, 11, &more);
    for victim in ["a", "b"] {
        pause_ms(700);
        assert!(load.try_wait().expect("a child of ours").is_none(), "the load goes on");
        pair.signal(victim, "KILL");
        // The second time only the path is left that was opened, and authenticated, again.
        pair.until_ok();
    }
    pause_ms(300);
    signal(load.id(), "TERM");
    end(load, "interrupted", &pair);
    prove_with(&uri, &journal, &options).unwrap_or_else(|said| panic!("{said}\n{}", pair.said()));
}
