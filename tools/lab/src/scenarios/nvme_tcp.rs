//! The kernel's NVMe/TCP initiator in a guest, a node on the host.

use super::{
    Lab,
    nbd::{PATIENCE, give_back},
};
use crate::{
    initramfs::Contents,
    machine::Guest,
    node::{Node, free_port},
};
use anyhow::{Result, bail};

const PAYLOAD: &str = include_str!("../../guest/nvme-tcp.sh");
const MULTIPATH: &str = include_str!("../../guest/nvme-multipath.sh");

/// As `nvme gen-hostnqn` makes it, and the identifier that belongs to it.
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:5f0a2c1e-9d3b-4f52-8a7e-3c1d2b4a5968";
const HOST_ID: &str = "5f0a2c1e-9d3b-4f52-8a7e-3c1d2b4a5968";

/// What a guest that is a host has.
fn contents(lab: &Lab, payload: &'static str, settings: &str) -> Contents {
    // The initiator asks for the checksum of digests at run time, and ext4 for its own.
    let modules = vec!["nvme_tcp", "crc32c_generic", "ext4"];
    let programs = vec!["nvme", "fio", "mkfs.ext4", "e2fsck"];
    let mut contents = Contents { payload, modules, programs, ..Contents::default() };
    contents.files.insert("lab/settings".to_owned(), format!("{settings}seed={}\n", lab.seed).into_bytes());
    contents.files.insert("etc/nvme/hostnqn".to_owned(), format!("{HOST}\n").into_bytes());
    contents.files.insert("etc/nvme/hostid".to_owned(), format!("{HOST_ID}\n").into_bytes());
    contents.binaries.push(lab.own.clone());
    contents
}

fn boot(lab: &Lab, contents: &Contents) -> Result<Guest> {
    let mut machine = lab.machine("guest", contents)?;
    machine.memory_mib = 1024;
    // The kernel has no more queues than processors.
    machine.processors = 2;
    machine.boot()
}

/// Both nodes of a pair as paths to one namespace each; one of them is killed under load.
pub(super) fn multipath(lab: &Lab) -> Result<()> {
    let port = free_port()?;
    let mut node = Node::start_with(&lab.twinlog, &lab.folder.join("node"), "128MiB", &["--nvme", &port.to_string()])?;
    let settings = format!("first={port}\nsecond={}\nrounds={}\n", port + 1, lab.rounds);
    let mut guest = boot(lab, &contents(lab, MULTIPATH, &settings))?;
    for _ in 0..lab.rounds {
        guest.event("loaded", PATIENCE)?;
        // Back when it has got its pool back.
        node.kill()?;
        guest.tell("killed")?;
    }
    guest.succeed(PATIENCE)?;
    let partner = node.partner_status();
    let takeovers = partner["status"]["pair"]["pools"][1]["takeovers"].as_u64();
    println!("  {} kills, {takeovers:?} takeovers", lab.rounds);
    if takeovers.is_none_or(|takeovers| takeovers == 0) {
        bail!("nobody took over: nothing was tested: {partner}");
    }
    if node.status()["status"]["pool"]["checksum_errors"] != 0 {
        bail!("the node found damage: {}", node.status());
    }
    Ok(())
}

pub(super) fn run(lab: &Lab) -> Result<()> {
    let port = free_port()?;
    let options = ["--single", "--nvme", &port.to_string(), "--reactors", "2"];
    let node = Node::start_with(&lab.twinlog, &lab.folder.join("node"), "256MiB", &options)?;
    let mut guest = boot(lab, &contents(lab, PAYLOAD, &format!("port={port}\n")))?;
    give_back(&mut guest, &node, |status| {
        let hosts = &status["status"]["hosts"];
        let is_seen = hosts[0]["host"] == HOST && hosts[0]["queues"] == 2 && hosts[1].is_null();
        if is_seen { Ok(()) } else { bail!("the node should show one host with two queues: {hosts}") }
    })?;
    guest.event("resize", PATIENCE)?;
    node.run(&["volume", "resize", "vol-a", "512MiB"])?;
    guest.succeed(PATIENCE)?;
    let status = node.status();
    if !status["status"]["hosts"].is_null() || status["status"]["pool"]["checksum_errors"] != 0 {
        bail!("hosts are left, or the node found damage: {status}");
    }
    node.check()
}
