//! `twinlog device`: the NVMe controllers of this machine, and which of them a program drives instead of the kernel.

mod bind;
mod controller;
mod machine;
mod place;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use bind::{UserDriver, iommu_remedy};
pub(crate) use controller::{IOMMUFD, iommu_count};
pub(crate) use machine::{Machine, PciAddress};
pub(crate) use place::{Place, place};

use super::{
    args::DeviceCommand,
    output::{Exit, Failure, Output},
};
use bind::Bound;
use controller::{Controller, Identity, Namespace};
use serde::Serialize;
use std::fmt::Write;
use twinlog::control::size::show_bytes;

#[derive(Serialize)]
struct List {
    iommu_count: usize,
    controllers: Vec<Controller>,
}

/// Runs a command about devices.
pub(crate) fn run(command: DeviceCommand, output: &Output) -> Result<Exit, Failure> {
    let machine = Machine::this();
    match command {
        DeviceCommand::List => {
            let list = List { iommu_count: iommu_count(&machine), controllers: controller::all(&machine) };
            output.show(&list, || text(&list))?;
        }
        DeviceCommand::Bind(args) => {
            let bound = bind::bind(&machine, &args)?;
            output.show(&bound, || bound_text(&bound, args.driver))?;
        }
        DeviceCommand::Unbind(args) => {
            let bound = bind::unbind(&machine, &args)?;
            output.show(&bound, || format!("{} ({}) is the kernel's again\n", bound.serial, bound.address))?;
        }
    }
    Ok(Exit::Done)
}

fn bound_text(bound: &Bound, driver: UserDriver) -> String {
    let mut text = format!("{} ({}) is bound to {}: {}\n", bound.serial, bound.address, bound.driver, bound.node);
    if driver == UserDriver::Uio {
        text.push_str(
            "UNSAFE: no IOMMU confines it; a defect of the device or of its driver can overwrite any memory\n",
        );
    }
    text
}

fn text(list: &List) -> String {
    if list.controllers.is_empty() {
        return "no NVMe controller on this machine's PCI buses\n".to_owned();
    }
    let mut text = format!("{:<20}  {:<12}  {:<15}  {:<9}  MODEL\n", "SERIAL", "ADDRESS", "DRIVER", "IOMMU");
    for controller in &list.controllers {
        controller_text(&mut text, controller).expect("a String takes everything");
    }
    if list.iommu_count == 0 {
        text.push_str("no IOMMU is active: `twinlog doctor`\n");
    }
    text
}

fn controller_text(text: &mut String, controller: &Controller) -> std::fmt::Result {
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let driver = controller.driver.as_deref().unwrap_or("none");
    let group =
        controller.iommu_group.as_ref().map_or_else(|| "none".to_owned(), |group| format!("group {}", group.number));
    let (serial, address, model) = (known(&controller.serial), &controller.address, known(&controller.model));
    writeln!(text, "{serial:<20}  {address:<12}  {driver:<15}  {group:<9}  {model}", address = address.as_str())?;
    for other in controller.iommu_group.iter().flat_map(|group| &group.others) {
        let driver = other.driver.as_deref().unwrap_or("no driver");
        let blocks = if other.blocks { ", which keeps the group from vfio-pci" } else { "" };
        writeln!(text, "  in its group: {} ({driver}{blocks})", other.address)?;
    }
    if driver == UserDriver::Uio.name() {
        writeln!(text, "  UNSAFE: no IOMMU confines it")?;
    }
    if let Some(node) = &controller.iommufd_node {
        writeln!(text, "  by IOMMUFD: {node}")?;
    }
    match controller.identity {
        Identity::Kernel => {}
        Identity::Remembered => writeln!(text, "  serial as the kernel's driver read it, before it was bound")?,
        Identity::Unknown => {
            writeln!(text, "  to learn its serial, give it to the kernel: `twinlog device unbind {address}`")?
        }
    }
    controller.namespaces.iter().try_for_each(|namespace| namespace_text(text, namespace))
}

fn namespace_text(text: &mut String, namespace: &Namespace) -> std::fmt::Result {
    let uses: Vec<&str> = namespace.uses.iter().map(|found| found.what.as_str()).collect();
    let uses = if uses.is_empty() { "not in use".to_owned() } else { uses.join("; ") };
    writeln!(text, "  {:<10}  {:>10}  {uses}", namespace.name, show_bytes(namespace.size_bytes))
}
