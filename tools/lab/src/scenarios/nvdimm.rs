//! A guest with two NVDIMMs, made into a DAX file system and a device: the log's conformance suite on both, and then a node that has its log there
//! loses its power.
//!
//! What the guest has stored is in the host's files at once, and survives a killed QEMU: a forgotten fence or write-back is not found here. The
//! shadow memory in `drivers/pmem` finds those.

use super::{
    Lab,
    station::{Cut, Drive, NODE, Station},
};
use crate::{
    disk::Slot,
    initramfs::Contents,
    machine::{Machine, Nvdimms},
};
use anyhow::{Context as _, Result};
use std::fs::File;

const PAYLOAD: &str = include_str!("../../guest/nvdimm.sh");
const DRIVES: [Drive; 1] = [Drive { name: "pool", size_bytes: 256 << 20, slot: Slot::Virtio }];
/// A multiple of 16 MiB, and 2 MiB for the label: else the kernel finds a namespace misaligned.
const NVDIMM_BYTES: u64 = (128 + 2) << 20;
const NAMES: [&str; 2] = ["nvdimm-0", "nvdimm-1"];
const MODULES: [&str; 6] = ["nfit", "nd_pmem", "dax_pmem", "device_dax", "crc32c_generic", "ext4"];

/// The log in a file.
pub(super) fn file(lab: &Lab) -> Result<()> {
    run(lab, "file")
}

/// The log on a device.
pub(super) fn device(lab: &Lab) -> Result<()> {
    run(lab, "device")
}

fn run(lab: &Lab, kind: &str) -> Result<()> {
    for name in NAMES {
        let path = lab.folder.join(name);
        let made = File::create_new(&path).and_then(|file| file.set_len(NVDIMM_BYTES));
        made.with_context(|| format!("making {}", path.display()))?;
    }
    let mut station = Station::new(lab, machine(lab, "first", kind)?, &DRIVES)?;
    // At any instant in the one half, which tests the log; in the other one while the pool is written, in consistency points only.
    let cut = |round: u32| if round.is_multiple_of(2) { Cut::AnyTime } else { Cut::AtWrite(0) };
    station.run(machine(lab, "again", kind)?, cut)
}

fn machine(lab: &Lab, name: &str, kind: &str) -> Result<Machine> {
    let settings = format!("first={}\nkind={kind}\n", if name == "first" { "yes" } else { "no" });
    let contents = Contents {
        payload: PAYLOAD,
        programs: vec!["ndctl", "mkfs.ext4", "filefrag"],
        binaries: vec![lab.twinlog.clone(), lab.own.clone()],
        modules: MODULES.to_vec(),
        files: [("lab/settings".to_owned(), settings.into_bytes()), ("lab/node.sh".to_owned(), NODE.into())].into(),
    };
    let mut machine = lab.machine(name, &contents)?;
    machine.memory_mib = 640;
    machine.nvdimms = Some(Nvdimms { files: NAMES.map(|name| lab.folder.join(name)).into(), size_bytes: NVDIMM_BYTES });
    Ok(machine)
}
