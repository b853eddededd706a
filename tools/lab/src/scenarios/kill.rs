//! The node is killed under a guest's file system.

use super::Lab;
use crate::{initramfs::Contents, node::Node, random::Random};
use anyhow::{Context as _, Result, bail};
use std::{thread, time::Duration};

const PAYLOAD: &str = include_str!("../../guest/nbd-kill.sh");
/// Software emulation on a loaded machine, and requests that wait for their server.
const PATIENCE: Duration = Duration::from_secs(300);
/// The node is killed at a random instant within so long after the load has gone on.
const PAUSE_MS_MAX: usize = 3000;

pub(super) fn ext4(lab: &Lab) -> Result<()> {
    let mut random = Random::new(lab.seed);
    let mut node = Node::start(&lab.twinlog, &lab.folder.join("node"), "256MiB")?;
    let settings = format!("port={}\nseed={}\n", node.port, lab.seed);
    let contents = Contents {
        payload: PAYLOAD,
        modules: vec!["nbd", "crc32c_generic", "ext4"],
        programs: vec!["mkfs.ext4", "e2fsck"],
        binaries: vec![lab.own.clone()],
        files: [("lab/settings".to_owned(), settings.into_bytes())].into(),
    };
    let mut guest = lab.boot("guest", &contents)?;
    guest.event("load", PATIENCE)?;
    let mut replayed = 0;
    for round in 1..=lab.rounds {
        let pause = random.below(PAUSE_MS_MAX);
        thread::sleep(Duration::from_millis(u64::try_from(pause)?));
        node.kill()?;
        let status = node.status();
        let records = status["status"]["replayed_records"].as_u64().context("the node counts replayed records")?;
        replayed += records;
        guest.tell("killed")?;
        let steps = guest.event("alive", PATIENCE)?;
        lab.say(format_args!(
            "round {round}: killed after {pause} ms, {records} records replayed; the guest goes on, {steps} steps"
        ));
    }
    guest.tell("stop")?;
    guest.succeed(PATIENCE)?;
    if replayed == 0 {
        bail!("no kill found a change that was only in the log: nothing was tested");
    }
    node.check()
}
