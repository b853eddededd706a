//! Named scenarios, and what they share.

mod bare_metal;
mod kill;
mod nbd;
mod nvdimm;
mod nvme;
mod nvme_faults;
mod nvme_multipath;
mod nvme_node;
mod nvme_pair;
mod nvme_reserve;
mod nvme_tcp;
mod power;
mod remains;
mod speed;
mod station;

use crate::{
    host,
    initramfs::Contents,
    kernel::{self, Kernel},
    machine::{Guest, Machine},
    modules::Modules,
};
use anyhow::Result;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// One thing that can be tested.
#[derive(Debug)]
pub struct Scenario {
    /// What the command line calls it.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Programs of this machine that it needs beyond those of every guest.
    pub programs: &'static [&'static str],
    run: fn(&Lab) -> Result<()>,
}

/// All of them.
pub const SCENARIOS: [Scenario; 19] = [
    Scenario {
        name: "nbd-kernel",
        about: "the kernel's nbd client with two connections: limits, patterns, discard, write-zeroes, flush",
        programs: &["nbd-client"],
        run: nbd::kernel,
    },
    Scenario {
        name: "nbd-ext4",
        about: "ext4 on the kernel's nbd client: a tree of files, an exerciser, fstrim that frees the pool, e2fsck",
        programs: &["nbd-client", "mkfs.ext4", "e2fsck"],
        run: nbd::ext4,
    },
    Scenario {
        name: "nbd-xfs",
        about: "the same with xfs and xfs_repair",
        programs: &["nbd-client", "mkfs.xfs", "xfs_repair"],
        run: nbd::xfs,
    },
    Scenario {
        name: "nbd-kill",
        about: "the node is killed again and again under a guest's ext4, which waits for it and goes on",
        programs: &["mkfs.ext4", "e2fsck"],
        run: kill::ext4,
    },
    Scenario {
        name: "nvme-tcp",
        about: "the kernel's NVMe/TCP initiator: discovery, two queues, digests, fio, ext4, discard, a resize, new connections",
        programs: &["nvme", "fio", "mkfs.ext4", "e2fsck"],
        run: nvme_tcp::run,
    },
    Scenario {
        name: "nvme-multipath",
        about: "the same with a path to each node of a pair: nodes are killed, stopped and started anew, networks are cut",
        programs: &["nvme", "fio", "mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair"],
        run: nvme_multipath::run,
    },
    Scenario {
        name: "nvme-reserve",
        about: "two hosts with a path to each node of a pair each: one reserves, the node dies and comes back, the other preempts",
        programs: &["nvme", "fio", "mkfs.ext4", "e2fsck"],
        run: nvme_reserve::run,
    },
    Scenario {
        name: "nvme-auth",
        about: "the same with secrets: in-band authentication right, wrong and in both directions, a host that is removed",
        programs: &["nvme", "fio", "mkfs.ext4", "e2fsck"],
        run: nvme_tcp::authentication,
    },
    Scenario {
        name: "nvme-vfio",
        about: "NVMe controllers behind an IOMMU: bound by `twinlog device`, driven, killed, given back, removed",
        programs: &["mkfs.ext4", "setpriv"],
        run: nvme::vfio,
    },
    Scenario {
        name: "nvme-uio",
        about: "an NVMe controller without an IOMMU: refused for VFIO, driven through uio_pci_generic",
        programs: &[],
        run: nvme::uio,
    },
    Scenario {
        name: "nvme-node",
        about: "the same as power-cut with the pool on an NVMe controller that the node drives, behind an IOMMU",
        programs: &["setpriv"],
        run: nvme_node::power_cut,
    },
    Scenario {
        name: "nvme-faults",
        about: "the disk of a controller that a node drives is slow, fails, does not answer, is taken out and put back",
        programs: &["awk"],
        run: nvme_faults::run,
    },
    Scenario {
        name: "nvme-pair",
        about: "a pair in two guests that drive controllers with the same namespaces: one is cut off, taken over from, comes back",
        programs: &["ndctl", "mkfs.ext4"],
        run: nvme_pair::pair,
    },
    Scenario {
        name: "bare-metal",
        about: "the guide for NVMe drives as it is written, command by command, from three bare machines to a pair that serves",
        programs: &["install", "mkfs.ext4", "useradd"],
        run: bare_metal::guide,
    },
    Scenario {
        name: "nvme-cuts",
        about: "what 8 power cuts for each round would leave of that pool and its log under load, recovered and proved each time",
        programs: &[],
        run: nvme_node::cut_points,
    },
    Scenario {
        name: "nvme-speed",
        about: "figures, no test: random reads through that driver and through the kernel's, in one guest",
        programs: &["fio"],
        run: speed::run,
    },
    Scenario {
        name: "power-cut",
        about: "a guest with a node inside loses its power under load, on disks that lose what was not flushed",
        programs: &[],
        run: power::power_cut,
    },
    Scenario {
        name: "nvdimm-file",
        about: "two NVDIMMs: the log's conformance suite, lost bytes, and power cuts of a node with its log in a DAX file",
        programs: &["ndctl", "mkfs.ext4", "filefrag"],
        run: nvdimm::file,
    },
    Scenario {
        name: "nvdimm-device",
        about: "the same with the log on a device-DAX node",
        programs: &["ndctl", "mkfs.ext4", "filefrag"],
        run: nvdimm::device,
    },
];

/// The scenario of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// What a scenario runs with.
#[derive(Debug)]
pub struct Lab {
    /// The program under test.
    pub twinlog: PathBuf,
    /// The load tool, beside it.
    pub load: PathBuf,
    /// Where this scenario's files are.
    pub folder: PathBuf,
    /// Of everything random.
    pub seed: u64,
    /// How often something is killed or cut.
    pub rounds: u32,
    /// Whether disks, from the first load on, answer flushes without performing them: a scenario that cuts power must then fail.
    pub disks_lie: bool,
    /// QEMU's accelerator.
    pub accelerator: String,
    /// Whether scenarios fail where anything but IOMMUFD confines a controller.
    pub must_be_iommufd: bool,
    /// This program, for the guest.
    pub own: PathBuf,
    modules: Modules,
    kernel: PathBuf,
    is_user_mode: bool,
}

impl Lab {
    /// Finds what every scenario needs. `cache` keeps the unpacked kernel between runs.
    ///
    /// # Errors
    ///
    /// The kernel's files cannot be read.
    pub fn new(kernel: &Kernel, cache: &Path, twinlog: PathBuf, folder: PathBuf) -> Result<Self> {
        Ok(Self {
            load: twinlog.with_file_name("twinlog-load"),
            twinlog,
            folder,
            seed: 1,
            rounds: 3,
            disks_lie: false,
            accelerator: "tcg,thread=multi,tb-size=256".to_owned(),
            must_be_iommufd: false,
            own: std::env::current_exe()?,
            modules: kernel.modules.as_deref().map(Modules::find).transpose()?.unwrap_or_default(),
            is_user_mode: kernel.modules.is_none(),
            kernel: kernel.bootable(cache)?,
        })
    }

    /// Tells people how the scenario fares, beside others that run at the same time.
    fn say(&self, what: impl fmt::Display) {
        let name = self.folder.file_name().unwrap_or_default();
        println!("{}: {what}", name.display());
    }

    /// Packs a guest's file system.
    fn machine(&self, name: &str, contents: &Contents) -> Result<Machine> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let initramfs = folder.join("initramfs");
        contents.pack(&self.modules, &initramfs)?;
        Ok(Machine {
            kernel: self.kernel.clone(),
            is_user_mode: self.is_user_mode,
            initramfs,
            accelerator: self.accelerator.clone(),
            memory_mib: 512,
            processors: 1,
            networks: 1,
            forwarded: Vec::new(),
            has_iommu: false,
            // What the kernel does not know is a variable of its first process, and of the payload.
            kernel_arguments: if self.must_be_iommufd { "iommufd=1" } else { "" }.to_owned(),
            devices: Vec::new(),
            nvdimms: None,
            folder,
        })
    }

    fn boot(&self, name: &str, contents: &Contents) -> Result<Guest> {
        self.machine(name, contents)?.boot()
    }
}

impl Scenario {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// Something is not as it must be; or [`host::Missing`], and nothing was tested.
    pub fn run(&self, lab: &Lab) -> Result<()> {
        host::programs(self.programs)?;
        (self.run)(lab)
    }
}

/// The kernel for guests: the one given, else the one unpacked in `cache`, else the machine's own.
///
/// # Errors
///
/// There is none.
pub fn kernel(given: Option<&Path>, cache: &Path) -> Result<Kernel> {
    let found = match given {
        Some(folder) => kernel::find(&[folder.to_owned()]),
        None => kernel::find(&[cache.join("kernel"), PathBuf::from("/")]),
    };
    found.map_err(|error| host::Missing(error.to_string()).into())
}
