//! A guest with a node inside loses its power, on disks that lose what was not flushed.

use super::{
    Lab,
    station::{Cut, Drive, LOG, NODE, Station},
};
use crate::{disk::Slot, initramfs::Contents, machine::Machine};
use anyhow::Result;

const PAYLOAD: &str = include_str!("../../guest/power-cut.sh");
/// The log is 16 MiB and its headers.
const DRIVES: [Drive; 2] = [
    Drive { name: LOG, size_bytes: 17 << 20, slot: Slot::Virtio },
    Drive { name: "pool", size_bytes: 256 << 20, slot: Slot::Virtio },
];

pub(super) fn power_cut(lab: &Lab) -> Result<()> {
    let mut station = Station::new(lab, machine(lab, "first")?, &DRIVES)?;
    // The log is written all the time, the pool in consistency points only: half of the cuts go there.
    station.run(machine(lab, "again")?, |round| Cut::AtWrite(usize::from(round % 4 >= 2)))
}

fn machine(lab: &Lab, name: &str) -> Result<Machine> {
    let settings = format!("first={}\n", if name == "first" { "yes" } else { "no" });
    let contents = Contents {
        payload: PAYLOAD,
        binaries: vec![lab.twinlog.clone()],
        files: [("lab/settings".to_owned(), settings.into_bytes()), ("lab/node.sh".to_owned(), NODE.into())].into(),
        ..Contents::default()
    };
    let mut machine = lab.machine(name, &contents)?;
    machine.memory_mib = 640;
    Ok(machine)
}
