//! What `twinlog doctor` says of driving NVMe controllers without the kernel's driver. None of it is needed by io_uring.

use super::{
    super::device::{IOMMUFD, Machine, iommu_count, iommu_remedy},
    Check, State, check, useful,
};
use nix::unistd::{AccessFlags, access};
use twinlog::control::{config::MemoryConfig, size::show_bytes};

const WHY: &str = "for NVMe controllers that a program drives itself; io_uring does not need it";

pub(super) fn checks(machine: &Machine) -> [Check; 5] {
    [iommu(machine), vfio(machine), iommufd(machine), groups(machine), huge_pages(machine)]
}

fn iommu(machine: &Machine) -> Check {
    let count = iommu_count(machine);
    let groups = machine.names("sys/kernel/iommu_groups").len();
    let found = match count {
        0 => "none active".to_owned(),
        _ => format!("{count} active, {groups} group(s)"),
    };
    check("iommu", useful(count > 0 && groups > 0), found, WHY, iommu_remedy(machine))
}

fn vfio(machine: &Machine) -> Check {
    let parts = [
        ("vfio-pci", "sys/bus/pci/drivers/vfio-pci"),
        ("vfio_iommu_type1", "sys/module/vfio_iommu_type1"),
        ("/dev/vfio/vfio", "dev/vfio/vfio"),
    ];
    let missing: Vec<&str> = parts.iter().filter(|(_, path)| !machine.exists(path)).map(|(name, _)| *name).collect();
    let found = if missing.is_empty() { "loaded".to_owned() } else { format!("missing: {}", missing.join(", ")) };
    let mend = "`modprobe -a vfio-pci vfio_iommu_type1`; at each boot: those names in /etc/modules-load.d/twinlog.conf";
    check("vfio-pci", useful(missing.is_empty()), found, WHY, mend)
}

/// The kernel's newer way, which a node takes where it can, and does without where it cannot.
fn iommufd(machine: &Machine) -> Check {
    let why = "another way through VFIO, taken where /dev/iommu and the controller's own node can be opened; its container does as well";
    let none = "Linux 6.6 or newer with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, and `modprobe iommufd`; Debian's kernels have neither";
    if !machine.exists(IOMMUFD) {
        return check("iommufd", State::Optional, "no /dev/iommu: the container is used", why, none);
    }
    let names = machine.names("dev/vfio/devices");
    let nodes: Vec<String> = names.iter().map(|name| format!("dev/vfio/devices/{name}")).collect();
    let closed: Vec<String> = [IOMMUFD.to_owned()]
        .iter()
        .chain(&nodes)
        .filter(|node| !may_open(machine, node))
        .map(|node| format!("/{node}"))
        .collect();
    let (state, found) = match (closed.is_empty(), names.is_empty()) {
        (false, _) => (State::Optional, format!("not for this user: {}", closed.join(", "))),
        (true, true) => (State::Ok, "/dev/iommu may be opened; no controller is bound".to_owned()),
        (true, false) => (State::Ok, format!("/dev/iommu and {} may be opened", names.join(", "))),
    };
    check("iommufd", state, found, why, "twinlog device bind SERIAL --user NAME")
}

fn may_open(machine: &Machine, node: &str) -> bool {
    access(&machine.path(node), AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}

fn groups(machine: &Machine) -> Check {
    let names = machine.names("dev/vfio");
    let groups: Vec<String> = names.into_iter().filter(|name| name.parse::<u32>().is_ok()).collect();
    let is_closed = |name: &&String| !may_open(machine, &format!("dev/vfio/{name}"));
    let closed: Vec<&str> = groups.iter().filter(is_closed).map(String::as_str).collect();
    let (state, found) = match (groups.is_empty(), closed.is_empty()) {
        (true, _) => (State::Optional, "none: no controller is bound".to_owned()),
        (false, true) => (State::Ok, format!("{} may be opened", groups.join(", "))),
        (false, false) => (State::Optional, format!("not for this user: /dev/vfio/{}", closed.join(", "))),
    };
    check("vfio groups", state, found, WHY, "twinlog device bind SERIAL --user NAME")
}

/// Both for pinned memory of io_uring and for what a device may reach through VFIO, which counts as locked.
pub(super) fn locked_memory(limit: Option<u64>, root: bool) -> Check {
    let wanted_bytes = MemoryConfig::default().limit.bytes();
    let enough = root || limit.is_some_and(|bytes| bytes >= wanted_bytes);
    let found = match limit {
        _ if root => "unlimited (root)".to_owned(),
        Some(u64::MAX) => "unlimited".to_owned(),
        Some(bytes) => show_bytes(bytes),
        None => "unknown".to_owned(),
    };
    let why =
        "for `pinned = true` in [memory] of node.toml, which saves a page lookup per operation; the default needs none";
    let mend =
        "LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`, or memlock in /etc/security/limits.conf";
    check("locked memory", useful(enough), found, why, mend)
}

fn huge_pages(machine: &Machine) -> Check {
    let meminfo = machine.lines("proc/meminfo");
    let figure = |key: &str| -> u64 {
        let line = meminfo.iter().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (free, kib) = (figure("HugePages_Free"), figure("Hugepagesize"));
    let found = format!("{free} free of {}", show_bytes(kib.saturating_mul(1024)));
    let why =
        "uio_pci_generic needs them; VFIO can do without, and translates faster with them; io_uring does not use them";
    check("huge pages", useful(free > 0), found, why, "sysctl vm.nr_hugepages=256")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }
        let machine = Machine::to_look_at(directory.path());
        (directory, machine)
    }

    #[test]
    fn a_bare_machine_is_told_what_it_lacks() {
        let (_directory, machine) =
            machine(&[("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n"), ("proc/meminfo", "nonsense")]);
        let checks = checks(&machine);
        assert!(checks.iter().all(|check| check.state == State::Optional && !check.mend.is_empty()), "{checks:?}");
        assert!(checks[0].mend.contains("AMD-Vi"), "{:?}", checks[0]);
        assert_eq!(checks[1].found, "missing: vfio-pci, vfio_iommu_type1, /dev/vfio/vfio");
        assert!(checks[2].found.contains("no /dev/iommu") && checks[2].mend.contains("CONFIG_IOMMUFD"), "{checks:?}");
    }

    #[test]
    fn a_prepared_machine_is_good() {
        let (_directory, machine) = machine(&[
            ("sys/class/iommu/dmar0", ""),
            ("sys/kernel/iommu_groups/3/type", "DMA"),
            ("sys/bus/pci/drivers/vfio-pci/new_id", ""),
            ("sys/module/vfio_iommu_type1/refcnt", "0"),
            ("dev/vfio/vfio", ""),
            ("dev/vfio/3", ""),
            ("dev/iommu", ""),
            ("dev/vfio/devices/vfio0", ""),
            ("proc/meminfo", "HugePages_Total:      12\nHugePages_Free:       7\nHugepagesize:       2048 kB\n"),
        ]);
        let checks = checks(&machine);
        assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:?}");
        assert_eq!(checks[0].found, "1 active, 1 group(s)");
        assert_eq!(checks[2].found, "/dev/iommu and vfio0 may be opened");
        assert_eq!(checks[4].found, "7 free of 2.00 MiB");
    }
    #[test]
    fn who_may_not_open_a_node_of_iommufd_is_told_which() {
        let (directory, machine) = machine(&[("dev/iommu", "")]);
        let found = || iommufd(&machine).found;
        assert_eq!(found(), "/dev/iommu may be opened; no controller is bound");
        // A link to nothing can be opened by nobody, not even by root.
        let devices = directory.path().join("dev/vfio/devices");
        fs::create_dir_all(&devices).expect("made");
        std::os::unix::fs::symlink("nothing", devices.join("vfio7")).expect("linked");
        assert_eq!(found(), "not for this user: /dev/vfio/devices/vfio7");
        assert_eq!(iommufd(&machine).state, State::Optional, "the container does as well");
    }
}
