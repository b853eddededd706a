//! Binding an NVMe controller to a driver for programs, and giving it back to the kernel's.
//!
//! # Invariants
//!
//! 1. Nothing that is in use is bound away, whatever is asked: mounts, swap, members of other devices, and what anybody has open for himself
//!    alone. Each disk of the controller is claimed (`O_EXCL`) until the kernel's driver has let it go.
//! 2. Somebody's data are bound away only when each namespace that holds such is named for that. Nothing is ever written to a device.
//! 3. With `vfio-pci`, an IOMMU confines the device, and no driver of the kernel has another device of its group.
//! 4. What was asked for by a serial is never done to another controller.
//!
//! # Steps, and what a crash after each leaves
//!
//! | step | after a crash |
//! |---|---|
//! | 1 remember serial and model | nothing has changed |
//! | 2 write `driver_override` | the kernel's driver still has the device |
//! | 3 unbind it | nobody has it; `bind` again goes on, `unbind` goes back |
//! | 4 ask for a probe | bound |
//! | 5 give its nodes to the user | done |
//!
//! `unbind` runs 3, clears 2, then 4, and forgets last. A probe that fails takes all of it back.

use super::{
    controller::{self, Controller, IOMMUFD, Identity, Namespace, Use},
    machine::{Machine, Owner, PciAddress},
    record::Record,
};
use crate::cli::{
    args::{BindArgs, UnbindArgs},
    output::{Exit, Failure},
};
use clap::ValueEnum;
use nix::unistd::User;
use serde::Serialize;
use std::{fs::File, io, time::Duration};

/// How often, 10 ms apart, the kernel is asked for what it makes at once, or within a second or two.
const TRIES: u32 = 200;

/// Drivers that let a program drive a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
pub(crate) enum UserDriver {
    /// An IOMMU confines the device to memory that the program has mapped for it
    #[default]
    #[value(name = "vfio-pci")]
    #[serde(rename = "vfio-pci")]
    Vfio,
    /// UNSAFE: for machines without an IOMMU. A defect of the device, or of the program, can overwrite any memory; the program runs as root
    #[value(name = "uio_pci_generic")]
    #[serde(rename = "uio_pci_generic")]
    Uio,
}

impl UserDriver {
    pub(super) const ALL: [Self; 2] = [Self::Vfio, Self::Uio];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vfio => "vfio-pci",
            Self::Uio => "uio_pci_generic",
        }
    }
}

/// What was done, or found done already.
#[derive(Debug, Serialize)]
pub(crate) struct Bound {
    pub(crate) serial: String,
    pub(crate) address: PciAddress,
    pub(crate) driver: String,
    /// What a program opens; empty for the kernel's driver.
    pub(crate) node: String,
}

/// Binds a controller to a driver for programs; done already counts as done.
pub(crate) fn bind(machine: &Machine, args: &BindArgs) -> Result<Bound, Failure> {
    let user = args.user.as_deref().map(|name| user(args.driver, name)).transpose()?;
    let wanted = args.driver.name();
    let found = named(machine, &args.name, args.controller.as_ref())?;
    let serial = found.serial.clone();
    match found.driver.as_deref() {
        Some(driver) if driver == wanted => {}
        Some("nvme") | None => {
            refuse_memory(machine, &found, args.driver)?;
            let claims =
                found.namespaces.iter().map(|namespace| refuse_uses(machine, namespace, &serial, &args.lose_access_to));
            let claims = claims.collect::<Result<Vec<_>, _>>()?;
            take(machine, &found, wanted, claims)?;
        }
        Some(other) => {
            let message = format!("{} is bound to {other}", shown(&found));
            return Err(Failure::new(
                Exit::Refused,
                message,
                format!("`twinlog device unbind {serial}`, then bind it"),
            ));
        }
    }
    let node = node(machine, &found, args.driver)?;
    if let Some(user) = user {
        give_to(machine, &user, &nodes(machine, &found, args.driver))?;
    }
    Ok(Bound { serial, address: found.address, driver: wanted.to_owned(), node })
}

/// Gives a controller back to the kernel's driver; done already counts as done.
pub(crate) fn unbind(machine: &Machine, args: &UnbindArgs) -> Result<Bound, Failure> {
    let found = match args.name.parse::<PciAddress>() {
        Ok(address) => unknown_at(machine, &address)?,
        Err(_) => named(machine, &args.name, args.controller.as_ref())?,
    };
    match found.driver.as_deref() {
        // An interrupted `bind` may have left it behind.
        Some("nvme") => {
            clear_override(machine, &found.address).map_err(|error| kernel_refused("unbind", &found, &error))?
        }
        Some(driver) if UserDriver::ALL.iter().all(|ours| ours.name() != driver) => {
            let message = format!("{} is bound to {driver}, which this command does not touch", shown(&found));
            return Err(Failure::new(Exit::Refused, message, ""));
        }
        _ => {
            if let Some(process) = user_of(machine, &found) {
                let message = format!("{} is in use by {process}", shown(&found));
                return Err(Failure::new(Exit::Refused, message, "stop that program first"));
            }
            give_back(machine, &found).map_err(|error| kernel_refused("unbind", &found, &error))?;
        }
    }
    let now = started(machine, &found.address);
    if now.as_ref().and_then(|now| now.driver.as_deref()) != Some("nvme") {
        let message = format!("{} is free, but the kernel's NVMe driver did not take it", shown(&found));
        return Err(Failure::new(Exit::Error, message, "`modprobe nvme`, then dmesg"));
    }
    Record::remove(machine, &found).map_err(|error| Failure::system("forget", shown(&found), &error))?;
    let serial = now.map(|now| now.serial).filter(|serial| !serial.is_empty()).unwrap_or(found.serial);
    Ok(Bound { serial, address: found.address, driver: "nvme".to_owned(), node: String::new() })
}

/// A controller, when the kernel's driver has read its serial; or what it has become meanwhile.
fn started(machine: &Machine, address: &PciAddress) -> Option<Controller> {
    let now = || controller::all(machine).into_iter().find(|now| now.address == *address);
    for _ in 0..TRIES {
        match now() {
            Some(starting) if starting.driver.is_some() && starting.serial.is_empty() => {
                crate::cli::pause(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    now()
}

/// The one controller of a serial, or of a name below `/dev/disk/by-id`. Names that change between boots are refused.
fn named(machine: &Machine, name: &str, address: Option<&PciAddress>) -> Result<Controller, Failure> {
    let all = controller::all(machine);
    let by_id = name.strip_prefix("/dev/disk/by-id/").unwrap_or(name);
    let block = Some(by_id).filter(|id| id.starts_with("nvme-") && !id.contains('/'));
    let block = block.and_then(|id| machine.link(&format!("dev/disk/by-id/{id}")));
    let is_named = |found: &&Controller| match &block {
        Some(block) => found.namespaces.iter().any(|namespace| namespace.name == *block),
        None => !found.serial.is_empty() && found.serial == name,
    };
    let mut matching: Vec<Controller> = all.iter().filter(is_named).cloned().collect();
    if matching.is_empty() {
        return Err(unnamed(name, &all));
    }
    if let Some(address) = address {
        matching.retain(|found| found.address == *address);
    }
    match matching.len() {
        1 => Ok(matching.swap_remove(0)),
        0 => Err(Failure::new(
            Exit::Error,
            format!("{name} is not the controller at the address given"),
            "twinlog device list",
        )),
        _ => {
            let places = matching.iter().map(|found| found.address.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("several controllers bear the serial {name}: {places}");
            Err(Failure::new(Exit::Refused, message, "say which with --controller ADDRESS"))
        }
    }
}

/// Why nothing bears this name; whoever used another kind of name is told the right one.
fn unnamed(name: &str, all: &[Controller]) -> Failure {
    let last = name.rsplit('/').next().unwrap_or(name);
    let of = |found: &&Controller| {
        found.address.as_str() == last || found.namespaces.iter().any(|namespace| last.starts_with(&namespace.name))
    };
    let meant = all.iter().find(of);
    if meant.is_none() && !name.starts_with("/dev/") && name.parse::<PciAddress>().is_err() {
        return Failure::new(
            Exit::Error,
            format!("no NVMe controller with the serial {name} is known"),
            "twinlog device list",
        );
    }
    let message = format!("{name} may be another device after the next boot: name the controller by its serial");
    let hint = match meant {
        Some(found) if !found.serial.is_empty() => {
            format!("its serial is {}: is it the one that you mean?", found.serial)
        }
        _ => "twinlog device list".to_owned(),
    };
    Failure::new(Exit::Refused, message, hint)
}

/// A controller whose serial nobody remembers, by its address.
fn unknown_at(machine: &Machine, address: &PciAddress) -> Result<Controller, Failure> {
    match controller::all(machine).into_iter().find(|found| found.address == *address) {
        None => {
            Err(Failure::new(Exit::Error, format!("there is no NVMe controller at {address}"), "twinlog device list"))
        }
        Some(found) if found.identity == Identity::Unknown => Ok(found),
        Some(found) => {
            let message =
                format!("{address} may be another device after the next boot: name the controller by its serial");
            Err(Failure::new(Exit::Refused, message, format!("its serial is {}", found.serial)))
        }
    }
}

/// Refuses what would leave memory unprotected, or cannot work.
fn refuse_memory(machine: &Machine, found: &Controller, driver: UserDriver) -> Result<(), Failure> {
    let refused = |message: String, hint: &str| Err(Failure::new(Exit::Refused, message, hint));
    match (driver, &found.iommu_group) {
        (UserDriver::Vfio, None) => {
            let message = format!("no IOMMU confines {}: with vfio-pci it could not be opened", shown(found));
            refused(message, iommu_remedy(machine))
        }
        (UserDriver::Vfio, Some(group)) => {
            let blocking = group.others.iter().filter(|other| other.blocks);
            let blocking: Vec<String> = blocking
                .map(|other| format!("{} ({})", other.address, other.driver.as_deref().unwrap_or_default()))
                .collect();
            if blocking.is_empty() {
                return Ok(());
            }
            let message = format!(
                "{} shares IOMMU group {} with {}: one IOMMU table confines them all",
                shown(found),
                group.number,
                blocking.join(", ")
            );
            refused(message, "unbind those devices from their drivers, or put the controller into another slot")
        }
        (UserDriver::Uio, Some(group)) if group.translates => {
            let message = format!("an IOMMU confines {}: uio_pci_generic cannot work, and is not needed", shown(found));
            refused(message, "bind it to vfio-pci, which is safe")
        }
        (UserDriver::Uio, _) => Ok(()),
    }
}

/// How to switch an IOMMU on.
pub(crate) fn iommu_remedy(machine: &Machine) -> &'static str {
    if machine.lines("proc/cpuinfo").iter().any(|line| line.starts_with("vendor_id") && line.ends_with("AuthenticAMD"))
    {
        "switch on IOMMU (AMD-Vi) in the firmware's setup; the kernel needs no option, only no amd_iommu=off"
    } else {
        "switch on VT-d in the firmware's setup, add intel_iommu=on to GRUB_CMDLINE_LINUX in /etc/default/grub, `update-grub`, reboot"
    }
}

/// Refuses what is in use, and somebody's data unless the namespace is in `given_up`. Claims the disk for as long as the file lives.
fn refuse_uses(
    machine: &Machine,
    namespace: &Namespace,
    serial: &str,
    given_up: &[String],
) -> Result<Option<File>, Failure> {
    let list = |wanted: fn(&Use) -> bool| -> Vec<&str> {
        namespace.uses.iter().filter(|found| wanted(found)).map(|found| found.what.as_str()).collect()
    };
    let name = &namespace.name;
    let live = list(|found| found.kind.is_live());
    if !live.is_empty() {
        let message = format!("controller {serial} has namespace {name}, which is in use: {}", live.join(", "));
        return Err(Failure::new(Exit::Refused, message, "unmount it, or stop what uses it; no option overrides this"));
    }
    let foreign = list(|found| found.kind.is_foreign());
    let is_given_up = given_up.contains(name);
    if !foreign.is_empty() && !is_given_up {
        let message =
            format!("controller {serial} has namespace {name}, which holds somebody's data: {}", foreign.join(", "));
        let hint = format!(
            "is it the right one? so that this machine's file systems lose access to it: --lose-access-to {name}"
        );
        return Err(Failure::new(Exit::Refused, message, hint));
    }
    match controller::claim(machine, name) {
        Ok(file) => Ok(Some(file)),
        Err(found) if found.kind.is_foreign() && is_given_up => Ok(None),
        Err(found) => {
            Err(Failure::new(Exit::Refused, format!("controller {serial}: {}", found.what), "twinlog device list"))
        }
    }
}

/// Steps 1 to 4; the claims are held until the kernel's driver has let the disks go.
fn take(machine: &Machine, found: &Controller, driver: &str, claims: Vec<Option<File>>) -> Result<(), Failure> {
    if !machine.exists(&format!("sys/bus/pci/drivers/{driver}")) {
        let message = format!("the kernel has no driver {driver} loaded");
        return Err(Failure::new(
            Exit::Error,
            message,
            format!("`modprobe {driver}`; at each boot: a line in /etc/modules-load.d/twinlog.conf"),
        ));
    }
    let kept = Record::of(found).write(machine, found);
    kept.map_err(|error| Failure::system("remember the serial of", shown(found), &error))?;
    let asked = move_to(machine, &found.address, driver);
    drop(claims);
    let now = controller::driver(machine, &found.address);
    if asked.is_ok() && now.as_deref() == Some(driver) {
        return Ok(());
    }
    let error = asked.err().unwrap_or_else(|| io::Error::other(format!("{driver} did not take it")));
    let mut failure = kernel_refused("bind", found, &error);
    if let Err(error) = give_back(machine, found) {
        failure.message.push_str(&format!("; and it could not be given back: {error}"));
    }
    Err(failure)
}

fn move_to(machine: &Machine, address: &PciAddress, driver: &str) -> io::Result<()> {
    machine.write(&address.file("driver_override"), driver)?;
    release(machine, address)?;
    machine.write("sys/bus/pci/drivers_probe", address.as_str())
}

fn give_back(machine: &Machine, found: &Controller) -> io::Result<()> {
    release(machine, &found.address)?;
    clear_override(machine, &found.address)?;
    machine.write("sys/bus/pci/drivers_probe", found.address.as_str())
}

fn clear_override(machine: &Machine, address: &PciAddress) -> io::Result<()> {
    // A line without text.
    machine.write(&address.file("driver_override"), "\n")
}

fn release(machine: &Machine, address: &PciAddress) -> io::Result<()> {
    match controller::driver(machine, address) {
        Some(_) => machine.write(&address.file("driver/unbind"), address.as_str()),
        None => Ok(()),
    }
}

fn kernel_refused(what: &str, found: &Controller, error: &io::Error) -> Failure {
    let hint = if error.kind() == io::ErrorKind::PermissionDenied {
        "run it as root"
    } else {
        "dmesg says why; `twinlog device list` shows what the device has become"
    };
    Failure::new(Exit::Error, format!("cannot {what} {}: {error}", shown(found)), hint)
}

/// What a program opens to drive the device.
fn node(machine: &Machine, found: &Controller, driver: UserDriver) -> Result<String, Failure> {
    for _ in 0..TRIES {
        if let Some(node) = nodes(machine, found, driver).into_iter().next() {
            return Ok(node);
        }
        crate::cli::pause(Duration::from_millis(10));
    }
    let message = format!("{} is bound to {}, but has no node in /dev", shown(found), driver.name());
    Err(Failure::new(Exit::Error, message, "dmesg says why"))
}

/// The nodes that there are now, the one that a program opens first: IOMMUFD's, where the kernel has it, then the group's.
fn nodes(machine: &Machine, found: &Controller, driver: UserDriver) -> Vec<String> {
    let nodes = match driver {
        UserDriver::Vfio => {
            let group = found.iommu_group.as_ref().map(|group| format!("/dev/vfio/{}", group.number));
            [controller::iommufd_node(machine, &found.address), group]
        }
        UserDriver::Uio => [machine.names(&found.address.file("uio")).first().map(|name| format!("/dev/{name}")), None],
    };
    nodes.into_iter().flatten().filter(|node| machine.exists(node.trim_start_matches('/'))).collect()
}

/// Gives a controller's nodes to a user. `/dev/iommu`, which IOMMUFD's need and which opens no device by itself, is for all controllers: his group gets it unless
/// somebody has given it to another one.
fn give_to(machine: &Machine, user: &User, nodes: &[String]) -> Result<(), Failure> {
    let (user, group) = (user.uid.as_raw(), user.gid.as_raw());
    let give = |path: &str, owner: Owner| {
        machine.give(path, owner).map_err(|error| Failure::system("give to the user", format!("/{path}"), &error))
    };
    nodes.iter().try_for_each(|node| give(node.trim_start_matches('/'), (user, group)))?;
    match machine.owner(IOMMUFD) {
        Ok((owner, 0)) => give(IOMMUFD, (owner, group)),
        _ => Ok(()),
    }
}

/// The process that drives a device.
fn user_of(machine: &Machine, found: &Controller) -> Option<String> {
    let nodes: Vec<String> = UserDriver::ALL.iter().flat_map(|driver| nodes(machine, found, *driver)).collect();
    let processes = machine.names("proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let has_open = |process: &String| {
        let files = format!("proc/{process}/fd");
        machine.names(&files).iter().any(|file| {
            let target = std::fs::read_link(machine.path(&format!("{files}/{file}"))).unwrap_or_default();
            nodes.iter().any(|node| target.as_os_str() == node.as_str())
        })
    };
    let process = processes.into_iter().find(has_open)?;
    let command = machine.text(&format!("proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} ({command})"))
}

fn user(driver: UserDriver, name: &str) -> Result<User, Failure> {
    if driver == UserDriver::Uio {
        let message =
            "a program that drives a device through uio_pci_generic looks up physical addresses, which only root may";
        return Err(Failure::new(Exit::Usage, message, "leave --user out, or bind to vfio-pci"));
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Failure::new(
            Exit::Usage,
            format!("there is no user {name}"),
            format!("useradd --system --user-group {name}"),
        )),
        Err(error) => Err(Failure::system("look up the user", name, &error.into())),
    }
}

fn shown(found: &Controller) -> String {
    if found.serial.is_empty() {
        format!("the controller at {}", found.address)
    } else {
        format!("controller {} ({})", found.serial, found.address)
    }
}
