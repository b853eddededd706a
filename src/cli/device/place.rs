//! Where a node reaches a controller that it drives: found by serial, bound to `vfio-pci`. The driver proves afterwards that it is the one.

use super::{
    UserDriver,
    controller::{self, Controller, IOMMUFD},
    machine::Machine,
};
use crate::cli::{
    output::{Exit, Failure},
    place::shell_word,
};
use std::path::{Path, PathBuf};

/// A controller that a program can open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// On the PCI buses.
    pub(crate) address: String,
    /// What the node's user must be able to open: all of one of these, IOMMUFD's before the group's.
    pub(crate) nodes: Vec<Vec<PathBuf>>,
}

/// The place of the one controller with `serial` that is bound to `vfio-pci`.
pub(crate) fn place(machine: &Machine, serial: &str) -> Result<Place, Failure> {
    let bind = format!("as root: twinlog device bind {} --user USER", shell_word(Path::new(serial)));
    let mut found: Vec<Controller> =
        controller::all(machine).into_iter().filter(|found| found.serial == serial).collect();
    if found.is_empty() {
        let message = format!("no NVMe controller with the serial {serial} is known");
        return Err(Failure::new(Exit::Error, message, "twinlog device list"));
    }
    let is_bound = |found: &Controller| found.driver.as_deref() == Some(UserDriver::Vfio.name());
    if !found.iter().any(is_bound) {
        let (address, driver) = (&found[0].address, found[0].driver.as_deref().unwrap_or("no driver"));
        let message = format!("controller {serial} ({address}) is bound to {driver}, not to vfio-pci");
        let hint =
            if driver == UserDriver::Uio.name() { format!("twinlog device unbind {serial}; {bind}") } else { bind };
        return Err(Failure::new(Exit::Error, message, hint));
    }
    found.retain(is_bound);
    let addresses = found.iter().map(|found| found.address.as_str()).collect::<Vec<_>>().join(", ");
    match found.as_slice() {
        [Controller { iommu_group: Some(group), iommufd_node, .. }] => {
            let iommufd = iommufd_node.iter().map(|node| vec![IOMMUFD, node.trim_start_matches('/')]);
            let group = format!("dev/vfio/{}", group.number);
            let nodes = iommufd.chain([vec![group.as_str()]]);
            let nodes = nodes.map(|nodes| nodes.into_iter().map(|node| machine.path(node)).collect()).collect();
            Ok(Place { address: addresses, nodes })
        }
        [_] => {
            let message = format!("no IOMMU confines controller {serial} ({addresses})");
            Err(Failure::new(Exit::Error, message, "twinlog doctor"))
        }
        _ => {
            let message = format!("several controllers that bear the serial {serial} are bound: {addresses}");
            Err(Failure::new(
                Exit::Refused,
                message,
                "give all but one back: twinlog device unbind SERIAL --controller ADDRESS",
            ))
        }
    }
}
