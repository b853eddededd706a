//! The NVMe controllers of a machine: who drives each, what its IOMMU group holds, and what its namespaces are used for.

use super::{
    machine::{Machine, PciAddress},
    record::Record,
};
use crate::cli::foreign;
use nix::{errno::Errno, fcntl::OFlag};
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

/// PCI class of an NVMe controller: mass storage, non-volatile memory, NVM Express.
const CLASS_NVME: u64 = 0x01_0802;
/// Bytes of a sector as `size` in sysfs counts them, whatever the device's own are.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// Where IOMMUFD is, below the root: the address spaces of all functions.
pub(crate) const IOMMUFD: &str = "dev/iommu";
/// Drivers that leave the DMA of a group to whoever has its other devices: bridges, and drivers that do none. VFIO accepts these.
const HARMLESS_DRIVERS: [&str; 3] = ["vfio-pci", "pcieport", "pci-stub"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Identity {
    /// The kernel's NVMe driver has it, and says so.
    Kernel,
    /// The kernel's driver said so before the device was bound away; nobody has asked the device since.
    Remembered,
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Controller {
    pub(crate) address: PciAddress,
    /// Vendor, device, and those of the subsystem.
    #[serde(skip)]
    pub(crate) ids: String,
    /// Empty when unknown, as is the serial.
    pub(crate) model: String,
    pub(crate) serial: String,
    pub(crate) identity: Identity,
    pub(crate) driver: Option<String>,
    pub(crate) iommu_group: Option<Group>,
    /// Its own node, where the kernel has IOMMUFD and a program may drive it: what a program opens rather than the group's.
    pub(crate) iommufd_node: Option<String>,
    /// Only while the kernel's driver has it.
    pub(crate) namespaces: Vec<Namespace>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) number: u32,
    /// Whether addresses are translated while a driver of the kernel has the group: everything but `identity`.
    pub(crate) translates: bool,
    pub(crate) others: Vec<Member>,
}

/// Another device of the group.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) driver: Option<String>,
    /// Whether its driver keeps the group from programs.
    pub(crate) blocks: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Namespace {
    /// `nvme0n1`: changes between boots.
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) uses: Vec<Use>,
}

/// What speaks for leaving a namespace alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Use {
    pub(crate) kind: UseKind,
    pub(crate) what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UseKind {
    Mounted,
    Swap,
    /// By a device mapper or RAID device.
    Held,
    /// Somebody has it, or a partition of it, for himself alone.
    Busy,
    /// Somebody's data, which nobody uses at the moment.
    Data,
    /// A device of a pool, or a change log.
    Twinlog,
    /// Nobody can tell what it holds.
    Unreadable,
}

impl UseKind {
    /// In use now: never taken away.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Mounted | Self::Swap | Self::Held | Self::Busy)
    }

    /// Taken away only when the namespace is named for it.
    pub(crate) fn is_foreign(self) -> bool {
        matches!(self, Self::Data | Self::Unreadable)
    }
}

/// Every NVMe controller, in the order of the buses.
pub(crate) fn all(machine: &Machine) -> Vec<Controller> {
    let addresses = machine.names("sys/bus/pci/devices").into_iter().filter_map(|name| name.parse::<PciAddress>().ok());
    let is_nvme = |address: &PciAddress| machine.number(&address.file("class")) == Some(CLASS_NVME);
    addresses.filter(is_nvme).map(|address| controller(machine, address)).collect()
}

/// How many IOMMUs are at work.
pub(crate) fn iommu_count(machine: &Machine) -> usize {
    machine.names("sys/class/iommu").len()
}

fn controller(machine: &Machine, address: PciAddress) -> Controller {
    let id = |name: &str| machine.text(&address.file(name)).unwrap_or_default();
    let ids = ["vendor", "device", "subsystem_vendor", "subsystem_device"].map(id).join(" ");
    let driver = driver(machine, &address);
    let mut found = Controller {
        iommu_group: group(machine, &address),
        iommufd_node: iommufd_node(machine, &address),
        address,
        ids,
        model: String::new(),
        serial: String::new(),
        identity: Identity::Unknown,
        driver,
        namespaces: Vec::new(),
    };
    let kernel_name = machine.names(&found.address.file("nvme")).into_iter().next();
    if let Some(name) = kernel_name.filter(|_| found.driver.as_deref() == Some("nvme")) {
        let place = found.address.file(&format!("nvme/{name}"));
        found.model = machine.text(&format!("{place}/model")).unwrap_or_default();
        // While the kernel's driver starts it, the text is the kernel's way to print nothing: `(efault)`.
        let serial = machine.text(&format!("{place}/serial")).filter(|serial| !serial.starts_with('('));
        found.serial = serial.unwrap_or_default();
        found.identity = if found.serial.is_empty() { Identity::Unknown } else { Identity::Kernel };
        let blocks = machine.names(&place).into_iter().filter_map(|name| block_name(&name));
        found.namespaces = blocks.map(|block| namespace(machine, block)).collect();
    } else if let Some(record) = Record::read(machine, &found) {
        (found.model, found.serial, found.identity) = (record.model, record.serial, Identity::Remembered);
    }
    found
}

/// The node that IOMMUFD wants, as `drivers/vfio` finds it.
pub(crate) fn iommufd_node(machine: &Machine, address: &PciAddress) -> Option<String> {
    let name = machine.names(&address.file("vfio-dev")).into_iter().next()?;
    let node = format!("dev/vfio/devices/{name}");
    (machine.exists(IOMMUFD) && machine.exists(&node)).then(|| format!("/{node}"))
}

pub(crate) fn driver(machine: &Machine, address: &PciAddress) -> Option<String> {
    machine.link(&address.file("driver"))
}

/// The block device of a namespace in a controller's directory: `nvme0n1` itself, or for the path `nvme0c1n1` of one with several paths
/// the device `nvme0n1` that the paths share.
fn block_name(entry: &str) -> Option<String> {
    let numbers = entry.strip_prefix("nvme")?;
    let (before, namespace) = numbers.split_once('n')?;
    let subsystem = before.split_once('c').map_or(before, |(subsystem, _)| subsystem);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(subsystem) && is_number(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

fn group(machine: &Machine, address: &PciAddress) -> Option<Group> {
    let number: u32 = machine.link(&address.file("iommu_group"))?.parse().ok()?;
    let place = format!("sys/kernel/iommu_groups/{number}");
    let others = machine.names(&format!("{place}/devices")).into_iter().filter(|name| name != address.as_str());
    let member = |address: String| {
        let driver = address.parse().ok().and_then(|address| driver(machine, &address));
        let blocks = driver.as_deref().is_some_and(|driver| !HARMLESS_DRIVERS.contains(&driver));
        Member { address, driver, blocks }
    };
    let translates = machine.text(&format!("{place}/type")).is_none_or(|kind| kind != "identity");
    Some(Group { number, translates, others: others.map(member).collect() })
}

fn namespace(machine: &Machine, name: String) -> Namespace {
    let sectors = machine.number(&format!("sys/class/block/{name}/size")).unwrap_or(0);
    let size_bytes = sectors.saturating_mul(SYSFS_SECTOR_BYTES);
    let partitions: Vec<String> =
        machine.names(&format!("sys/class/block/{name}")).into_iter().filter(|part| part.starts_with(&name)).collect();
    let mut uses: Vec<Use> =
        [name.clone()].iter().chain(&partitions).flat_map(|block| live_uses(machine, block)).collect();
    uses.extend(content(machine, &name));
    if !partitions.is_empty() {
        uses.push(Use { kind: UseKind::Data, what: format!("partitions {}", partitions.join(", ")) });
    }
    Namespace { name, size_bytes, uses }
}

/// Who is known to use a disk or a partition.
fn live_uses(machine: &Machine, block: &str) -> Vec<Use> {
    let mut uses = Vec::new();
    let node = format!("/dev/{block}");
    let number = machine.text(&format!("sys/class/block/{block}/dev")).map(|number| format!(" {number} "));
    let source = format!(" {node} ");
    // Fields: mount id, parent id, device number, root, mount point, ... - type, source. btrfs shows a number of its own.
    let is_of = |line: &&String| {
        number.as_ref().is_some_and(|number| line.contains(number.as_str()))
            || line.split_once(" - ").is_some_and(|(_, rest)| rest.contains(&source))
    };
    for mount in machine.lines("proc/self/mountinfo").iter().filter(is_of) {
        let place = mount.split(' ').nth(4).unwrap_or("an unknown place");
        uses.push(Use { kind: UseKind::Mounted, what: format!("{block} is mounted at {place}") });
    }
    let swaps = machine.lines("proc/swaps");
    if swaps.iter().any(|line| line.split_whitespace().next() == Some(&node)) {
        uses.push(Use { kind: UseKind::Swap, what: format!("{block} is swap space") });
    }
    for holder in machine.names(&format!("sys/class/block/{block}/holders")) {
        uses.push(Use { kind: UseKind::Held, what: format!("{block} is part of {holder}") });
    }
    uses
}

/// Opens a disk for this process alone, which the kernel refuses while it or a partition is mounted, held, or open in the same way: also
/// by what cannot be seen from here, such as mounts of a container.
pub(crate) fn claim(machine: &Machine, name: &str) -> Result<File, Use> {
    let path = machine.path(&format!("dev/{name}"));
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(path);
    opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => Use { kind: UseKind::Busy, what: format!("{name} is in use by another program") },
        _ => unreadable(name, &error),
    })
}

fn unreadable(name: &str, error: &io::Error) -> Use {
    Use { kind: UseKind::Unreadable, what: format!("{name} cannot be read: {error}") }
}

/// What lies on a disk.
fn content(machine: &Machine, name: &str) -> Option<Use> {
    let path = machine.path(&format!("dev/{name}"));
    let found = File::open(&path).and_then(|mut file| {
        let bytes = file.seek(SeekFrom::End(0))?;
        foreign::find(&file, &path, bytes, false)
    });
    match found {
        Err(error) => Some(unreadable(name, &error)),
        Ok(found) => found.map(|found| {
            let kind = if found.is_ours { UseKind::Twinlog } else { UseKind::Data };
            Use { kind, what: found.what }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_other_files() {
        for (entry, block) in [
            ("nvme0n1", Some("nvme0n1")),
            ("nvme10n20", Some("nvme10n20")),
            ("nvme2c5n1", Some("nvme2n1")),
            ("nvme0", None),
            ("nvme0n1p1", None),
            ("ng0n1", None),
            ("nvmecn", None),
            ("hwmon1", None),
            ("nvme0n../x", None),
        ] {
            assert_eq!(block_name(entry).as_deref(), block, "{entry}");
        }
    }
}
