//! Two hosts in one guest, each with a path to each node of a pair on the host. They reserve a namespace, and the node that serves it is killed and comes back.

use super::{
    Lab,
    nbd::PATIENCE,
    nvme_tcp::{self, OTHER, OTHER_ID},
};
use crate::{
    machine::Guest,
    pair::{NAMES, Pair, address},
};
use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;

const PAYLOAD: &str = include_str!("../../guest/nvme-reserve.sh");

pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut pair = Pair::start(&lab.twinlog, &lab.folder.join("pair"), "64MiB")?;
    // The kernel passes no command of `ioctl` to a controller with several namespaces, and one to a namespace takes whichever path it likes.
    pair.ask(1, &json!({ "call": "volume-delete", "name": "vol-b" }))?;
    let hosts = format!("other={OTHER}\nother_id={OTHER_ID}\n");
    let settings = format!("port={}\nfirst={}\nsecond={}\n{hosts}", pair.port, address(0), address(1));
    let mut machine = nvme_tcp::machine(lab, &nvme_tcp::contents(lab, PAYLOAD, &settings))?;
    machine.networks = NAMES.len();
    let mut guest = machine.boot()?;
    kill_between(&mut pair, &mut guest, ["reserved", "seen"])?;
    kill_between(&mut pair, &mut guest, ["preempted", "released"])?;
    guest.succeed(PATIENCE)?;
    pair.check()
}

/// Node a is dead from the one event to the other.
fn kill_between(pair: &mut Pair, guest: &mut Guest, [from, to]: [&str; 2]) -> Result<()> {
    guest.event(from, PATIENCE)?;
    pair.wait_until_home()?;
    pair.signal(0, Signal::SIGKILL)?;
    pair.wait_for_end(0)?;
    pair.wait_until_taken_over(1)?;
    guest.tell("taken over")?;
    guest.event(to, PATIENCE)?;
    pair.restart(0)?;
    pair.wait_until_home()?;
    guest.tell("back")
}
