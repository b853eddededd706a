//! The kernel's NVMe/TCP initiator in a guest, a node on the host.

use super::{
    Lab,
    nbd::{PATIENCE, give_back},
};
use crate::{
    initramfs::Contents,
    machine::Machine,
    node::{Node, free_port},
};
use anyhow::{Result, bail};

const LIBRARY: &str = include_str!("../../guest/nvme.sh");
const PAYLOAD: &str = include_str!("../../guest/nvme-tcp.sh");
const AUTHENTICATION: &str = include_str!("../../guest/nvme-auth.sh");

/// As `nvme gen-hostnqn` makes it, and the identifier that belongs to it.
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:5f0a2c1e-9d3b-4f52-8a7e-3c1d2b4a5968";
const HOST_ID: &str = "5f0a2c1e-9d3b-4f52-8a7e-3c1d2b4a5968";

/// Another host, in the same guest.
pub(super) const OTHER: &str = "nqn.2014-08.org.nvmexpress:uuid:0c7d2f4a-6b1e-4d83-9f50-7a2e8c5b1d36";
pub(super) const OTHER_ID: &str = "0c7d2f4a-6b1e-4d83-9f50-7a2e8c5b1d36";

/// What a guest that is a host of NVMe/TCP has.
pub(super) fn contents(lab: &Lab, payload: &'static str, settings: &str) -> Contents {
    // The initiator asks for the checksum of digests at run time, and ext4 for its own.
    let modules = vec!["nvme_tcp", "crc32c_generic", "ext4"];
    let programs = vec!["nvme", "fio", "mkfs.ext4", "e2fsck"];
    let mut contents = Contents { payload, modules, programs, ..Contents::default() };
    contents.files.insert("lab/nvme.sh".to_owned(), LIBRARY.into());
    contents.files.insert("lab/settings".to_owned(), format!("{settings}seed={}\n", lab.seed).into_bytes());
    contents.files.insert("etc/nvme/hostnqn".to_owned(), format!("{HOST}\n").into_bytes());
    contents.files.insert("etc/nvme/hostid".to_owned(), format!("{HOST_ID}\n").into_bytes());
    contents.binaries.push(lab.own.clone());
    contents
}

pub(super) fn machine(lab: &Lab, contents: &Contents) -> Result<Machine> {
    let mut machine = lab.machine("guest", contents)?;
    machine.memory_mib = 1024;
    // The kernel has no more queues than processors.
    machine.processors = 2;
    Ok(machine)
}

pub(super) fn run(lab: &Lab) -> Result<()> {
    let port = free_port()?;
    let options = ["--single", "--nvme", &port.to_string(), "--reactors", "2"];
    let mut node = Node::start_with(&lab.twinlog, &lab.folder.join("node"), "256MiB", &options)?;
    let settings = format!("port={port}\nother={OTHER}\nother_id={OTHER_ID}\n");
    let mut guest = machine(lab, &contents(lab, PAYLOAD, &settings))?.boot()?;
    give_back(lab, &mut guest, &node, |status| {
        let hosts = &status["status"]["hosts"];
        let is_seen = hosts[0]["host"] == HOST && hosts[0]["queues"] == 2 && hosts[1].is_null();
        if is_seen { Ok(()) } else { bail!("the node should show one host with two queues: {hosts}") }
    })?;
    guest.event("resize", PATIENCE)?;
    node.run(&["volume", "resize", "vol-a", "512MiB"])?;
    guest.event("fine", PATIENCE)?;
    node.run(&["volume", "create", "fine", "64MiB", "--block-size", "512"])?;
    guest.event("deleted", PATIENCE)?;
    node.run(&["volume", "delete", "fine", "--yes"])?;
    guest.event("reserved", PATIENCE)?;
    node.kill()?;
    guest.tell("back")?;
    guest.succeed(PATIENCE)?;
    let status = node.wait_for("is without hosts", |status| status["status"]["hosts"].is_null())?;
    if status["status"]["pool"]["checksum_errors"] != 0 {
        bail!("the node found damage: {status}");
    }
    node.check()
}

/// Secrets of 32 bytes, and one that nobody knows.
const SECRET: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const CONTROLLER: &str = "DHHC-1:00:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj/jBqb2:";
const WRONG: &str = "DHHC-1:00:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQHMnzFi:";

/// A host with a secret, at a node that has another one to prove.
pub(super) fn authentication(lab: &Lab) -> Result<()> {
    if lab.modules.resolve(&["nvme_auth"]).is_err() {
        lab.say(
            "not tested: this kernel's host cannot authenticate itself; Debian 12's backports (6.12) can: --kernel DIR",
        );
        return Ok(());
    }
    let port = free_port()?;
    let mut node =
        Node::start_with(&lab.twinlog, &lab.folder.join("node"), "64MiB", &["--single", "--nvme", &port.to_string()])?;
    let file = |name: &str, secret: &str| -> Result<String> {
        let path = lab.folder.join(name);
        std::fs::write(&path, secret)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (secret, controller) = (file("secret", SECRET)?, file("controller", CONTROLLER)?);
    node.run(&["host", "add", HOST, "--secret-file", &secret, "--controller-secret-file", &controller])?;
    let settings = format!("port={port}\nsecret={SECRET}\ncontroller={CONTROLLER}\nwrong={WRONG}\n");
    let mut guest = machine(lab, &contents(lab, AUTHENTICATION, &settings))?.boot()?;
    guest.event("connected", PATIENCE)?;
    node.run(&["host", "remove", HOST])?;
    guest.tell("removed")?;
    guest.succeed(PATIENCE)?;
    node.wait_for("is without hosts", |status| status["status"]["hosts"].is_null())?;
    Ok(())
}
