//! NVMe controllers that a program in the guest drives itself.

use super::Lab;
use crate::{initramfs::Contents, machine::Machine};
use anyhow::{Context as _, Result};
use std::{fs::File, time::Duration};

const VFIO: &str = include_str!("../../guest/nvme-vfio.sh");
const UIO: &str = include_str!("../../guest/nvme-uio.sh");

/// Software emulation on a loaded machine: ten times what was seen.
const PATIENCE: Duration = Duration::from_secs(900);
const DISK_BYTES: u64 = 256 << 20;
/// The user in the guest that drives controllers without being root.
pub(super) const USERS: &[u8] = b"root:x:0:0::/root:/bin/sh\ntwinlog:x:990:990::/:/bin/sh\n";

pub(super) fn vfio(lab: &Lab) -> Result<()> {
    let modules = vec!["nvme", "vfio_pci", "vfio_iommu_type1", "crc32c_generic", "ext4"];
    let programs = vec!["mkfs.ext4", "setpriv"];
    let mut machine = machine(lab, Contents { payload: VFIO, modules, programs, ..Contents::default() })?;
    machine.has_iommu = true;
    for (index, port) in [None, None, Some("hot"), Some("warm")].into_iter().enumerate() {
        let devices = controller(lab, index, port)?;
        machine.devices.extend(devices);
    }
    machine.devices.extend(subsystem(lab)?);
    let mut guest = machine.boot()?;
    guest.event("remove", PATIENCE)?;
    guest.unplug("LAB2")?;
    guest.event("remove-loaded", PATIENCE)?;
    guest.unplug("LAB3")?;
    guest.succeed(PATIENCE)
}

pub(super) fn uio(lab: &Lab) -> Result<()> {
    let modules = vec!["nvme", "vfio_pci", "uio_pci_generic"];
    let mut machine = machine(lab, Contents { payload: UIO, modules, ..Contents::default() })?;
    machine.kernel_arguments = "hugepages=32".to_owned();
    machine.devices = controller(lab, 0, None)?;
    machine.boot()?.succeed(PATIENCE)
}

fn machine(lab: &Lab, contents: Contents) -> Result<Machine> {
    let files = [("etc/passwd".to_owned(), USERS.to_vec())].into();
    let contents = Contents { binaries: vec![lab.twinlog.clone(), lab.own.clone()], files, ..contents };
    lab.machine("guest", &contents)
}

/// A controller with the serial LAB0 and so on, with one namespace; `port`: behind a slot of that name, out of which it can be taken.
pub(super) fn controller(lab: &Lab, index: usize, port: Option<&str>) -> Result<Vec<String>> {
    let serial = format!("LAB{index}");
    let mut devices = vec!["-drive".to_owned(), drive(lab, &serial)?, "-device".to_owned()];
    if let Some(port) = port {
        devices.extend([format!("pcie-root-port,id={port},chassis={index},slot={index}"), "-device".to_owned()]);
    }
    let bus = port.map(|port| format!(",bus={port}")).unwrap_or_default();
    devices.push(format!("nvme,id={serial},serial={serial}{bus}"));
    devices.extend(["-device".to_owned(), format!("nvme-ns,drive=disk-{serial},bus={serial},nsid=1")]);
    Ok(devices)
}

/// Two controllers with the serial SHARED, the ports of one subsystem, and a namespace that both reach.
fn subsystem(lab: &Lab) -> Result<Vec<String>> {
    let devices = [
        "nvme-subsys,id=shared,nqn=shared",
        "nvme,id=left,serial=SHARED,subsys=shared",
        "nvme,id=right,serial=SHARED,subsys=shared",
        "nvme-ns,drive=disk-SHARED,bus=right,nsid=1,shared=on",
    ];
    let devices = devices.into_iter().flat_map(|device| ["-device".to_owned(), device.to_owned()]);
    Ok(["-drive".to_owned(), drive(lab, "SHARED")?].into_iter().chain(devices).collect())
}

/// An empty disk.
pub(super) fn drive(lab: &Lab, name: &str) -> Result<String> {
    let image = lab.folder.join(format!("{name}.img"));
    File::create(&image)?.set_len(DISK_BYTES).with_context(|| format!("making {}", image.display()))?;
    Ok(format!("file={},if=none,id=disk-{name},format=raw", image.display()))
}
