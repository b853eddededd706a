//! The kernel's nbd client in a guest, a node on the host.

use super::Lab;
use crate::{initramfs::Contents, machine::Guest, node::Node};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::time::Duration;

const KERNEL: &str = include_str!("../../guest/nbd-kernel.sh");
const FILESYSTEM: &str = include_str!("../../guest/nbd-filesystem.sh");

/// Software emulation on a loaded machine: ten times what was seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// The payloads write 12 and 16 MiB and give them back; meanwhile a file system writes some of its own.
const FREED_BYTES: u64 = 11 << 20;

pub(super) fn kernel(lab: &Lab) -> Result<()> {
    let contents =
        Contents { payload: KERNEL, modules: vec!["nbd"], programs: vec!["nbd-client"], ..Contents::default() };
    serve(lab, "256MiB", contents, "256")
}

pub(super) fn ext4(lab: &Lab) -> Result<()> {
    // ext4 asks for the checksum at run time.
    let modules = vec!["nbd", "crc32c_generic", "ext4"];
    let programs = vec!["nbd-client", "mkfs.ext4", "e2fsck"];
    let contents = Contents { payload: FILESYSTEM, modules, programs, ..Contents::default() };
    serve(lab, "256MiB", contents, "ext4")
}

pub(super) fn xfs(lab: &Lab) -> Result<()> {
    let modules = vec!["nbd", "crc32c_generic", "xfs"];
    let programs = vec!["nbd-client", "mkfs.xfs", "xfs_repair"];
    let contents = Contents { payload: FILESYSTEM, modules, programs, ..Contents::default() };
    // The smallest that mkfs.xfs makes is 300 MiB.
    serve(lab, "512MiB", contents, "xfs")
}

/// Runs a payload against a node, and watches the pool while the payload fills the volume and gives the space back.
fn serve(lab: &Lab, size: &str, mut contents: Contents, argument: &str) -> Result<()> {
    let node = Node::start(&lab.twinlog, &lab.folder.join("node"), size)?;
    let settings = format!("port={}\nargument={argument}\nseed={}\n", node.port, lab.seed);
    contents.files.insert("lab/settings".to_owned(), settings.into_bytes());
    contents.binaries.push(lab.own.clone());
    let mut guest = lab.boot("guest", &contents)?;
    give_back(lab, &mut guest, &node, |_| Ok(()))?;
    guest.succeed(PATIENCE)?;
    let status = node.status();
    if status["status"]["pool"]["checksum_errors"] != 0 {
        bail!("the node found damage: {status}");
    }
    node.check()
}

/// Watches the pool while the payload fills the volume and gives the space back. Once it is filled, `look` sees the node's status.
pub(super) fn give_back(lab: &Lab, guest: &mut Guest, node: &Node, look: impl Fn(&Value) -> Result<()>) -> Result<()> {
    guest.event("filled", PATIENCE)?;
    look(&node.status())?;
    let full = allocated_bytes(node)?;
    guest.tell("empty")?;
    guest.event("emptied", PATIENCE)?;
    let left = allocated_bytes(node)?;
    if full < left + FREED_BYTES {
        bail!("the guest gave back more than {FREED_BYTES} bytes; of {full} allocated ones {left} are left");
    }
    lab.say(format_args!("{full} bytes allocated; {left} when the guest had given space back"));
    guest.tell("end")
}

/// What the volume takes in the pool, all that was written included.
fn allocated_bytes(node: &Node) -> Result<u64> {
    node.checkpoint()?;
    let status = node.status();
    status["status"]["volumes"][0]["allocated_bytes"].as_u64().with_context(|| format!("the node says {status}"))
}
