//! A node with its pool on an NVMe controller that it drives itself, behind an IOMMU, loses its power under load.
//!
//! The controller's namespaces and the log lie on disks of the lab's, which lose what was not flushed at one common instant. QEMU's controller ignores FUA:
//! the driver knows, and flushes.

use super::{
    Lab, nvme,
    station::{Cut, Drive, LOG, NODE, Station},
};
use crate::{disk::Slot, initramfs::Contents, machine::Machine};
use anyhow::Result;

const PAYLOAD: &str = include_str!("../../guest/nvme-node.sh");
const SERIAL: &str = "LAB0";
/// The log is 16 MiB and its headers. The pool begins on the first namespace, and grows by the second.
const DRIVES: [Drive; 3] = [
    Drive { name: LOG, size_bytes: 17 << 20, slot: Slot::Virtio },
    Drive { name: "pool", size_bytes: 128 << 20, slot: Slot::Namespace(SERIAL, 1) },
    Drive { name: "pool-2", size_bytes: 128 << 20, slot: Slot::Namespace(SERIAL, 2) },
];
/// For each of the lab's rounds.
const CUT_POINTS: u32 = 8;

pub(super) fn power_cut(lab: &Lab) -> Result<()> {
    let mut station = Station::new(lab, machine(lab, "first")?, &DRIVES)?;
    station.run(machine(lab, "again")?, |round| Cut::AtWrite(disk(round)))
}

pub(super) fn cut_points(lab: &Lab) -> Result<()> {
    let mut station = Station::new(lab, machine(lab, "first")?, &DRIVES)?;
    station.capture(machine(lab, "again")?, CUT_POINTS * lab.rounds, disk)
}

/// With which disk's write: the log's in the one half, the namespaces' in the other. What is lost, all or by lot, changes more quickly.
fn disk(number: u32) -> usize {
    [0, 0, 1, 2][usize::try_from(number / 2 % 4).expect("small")]
}

fn machine(lab: &Lab, name: &str) -> Result<Machine> {
    let first = if name == "first" { "yes" } else { "no" };
    let settings = format!("first={first}\ncontroller={SERIAL}\n");
    let contents = Contents {
        payload: PAYLOAD,
        modules: vec!["nvme", "vfio_pci", "vfio_iommu_type1"],
        binaries: vec![lab.twinlog.clone()],
        programs: vec!["setpriv"],
        files: [
            ("lab/settings".to_owned(), settings.into_bytes()),
            ("lab/node.sh".to_owned(), NODE.into()),
            ("etc/passwd".to_owned(), nvme::USERS.into()),
        ]
        .into(),
    };
    let mut machine = lab.machine(name, &contents)?;
    machine.memory_mib = 640;
    machine.has_iommu = true;
    machine.devices = ["-device".to_owned(), format!("nvme,id={SERIAL},serial={SERIAL}")].into();
    Ok(machine)
}
