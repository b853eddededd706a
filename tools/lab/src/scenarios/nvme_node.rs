//! A node with its pool on an NVMe controller that it drives itself, behind an IOMMU, loses its power under load.
//!
//! The log is on a disk that loses what was not flushed. The controller's disk loses nothing: QEMU's controller ignores FUA.

use super::{
    Lab, nvme,
    station::{Cut, NODE, Station},
};
use crate::{initramfs::Contents, machine::Machine};
use anyhow::Result;

const PAYLOAD: &str = include_str!("../../guest/nvme-node.sh");
const SERIAL: &str = "LAB0";
/// The log is 16 MiB and its headers.
const DISKS: [(&str, u64); 1] = [("log", 17 << 20)];

pub(super) fn power_cut(lab: &Lab) -> Result<()> {
    let devices = controller(lab)?;
    let mut station = Station::new(lab, machine(lab, "first", &devices)?, &DISKS)?;
    station.run(machine(lab, "again", &devices)?, |_| Cut::AtWrite(0))
}

fn machine(lab: &Lab, name: &str, devices: &[String]) -> Result<Machine> {
    let first = if name == "first" { "yes" } else { "no" };
    let settings = format!("first={first}\ncontroller={SERIAL}\n");
    let contents = Contents {
        payload: PAYLOAD,
        modules: vec!["nvme", "vfio_pci", "vfio_iommu_type1"],
        binaries: vec![lab.twinlog.clone()],
        files: [("lab/settings".to_owned(), settings.into_bytes()), ("lab/node.sh".to_owned(), NODE.into())].into(),
        ..Contents::default()
    };
    let mut machine = lab.machine(name, &contents)?;
    machine.memory_mib = 640;
    machine.has_iommu = true;
    machine.devices = devices.to_vec();
    Ok(machine)
}

/// A controller with two namespaces: the pool begins on the first, and grows by the second.
fn controller(lab: &Lab) -> Result<Vec<String>> {
    let mut devices = nvme::controller(lab, 0, None)?;
    devices.extend(["-drive".to_owned(), nvme::drive(lab, "second")?]);
    devices.extend(["-device".to_owned(), format!("nvme-ns,drive=disk-second,bus={SERIAL},nsid=2")]);
    Ok(devices)
}
