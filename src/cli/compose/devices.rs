//! The devices of pools by their configured names: paths of files and block devices, and namespaces of NVMe controllers that this process drives.
//!
//! # Invariants
//!
//! 1. A controller is opened when the first of its namespaces is wanted, once in a process, and shut down with the last use of this.
//! 2. It reaches the memory of this value's blocks and no other: who has queues to its namespaces takes blocks from there.

#![expect(clippy::disallowed_types, reason = "taken when a device is opened, never while requests are served")]

use super::{
    no_memory,
    nvme::{self, Namespace, Reader},
    offline::OFFLINE_BLOCKS,
    storage::{in_use, patiently},
};
use crate::cli::{
    output::{Exit, Failure},
    superblocks::{self, ReadAt},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};
use twinlog::{
    base::limits::BLOCK_BYTES,
    control::config::{NodeConfig, NvmeConfig, NvmeName},
    reactor::IdlePolicy,
};
use twinlog_device::BlockPool;
use twinlog_nvme::{Controller, ControllerOptions, HostId};
use twinlog_uring::{Access, Cache, StorageFile};
use twinlog_vfio::VfioFunction;

/// A device that is open; each reactor makes its queue to it.
#[derive(Clone)]
pub(super) enum Opened {
    File(StorageFile),
    Nvme(Namespace),
}

impl Opened {
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes(),
            Self::Nvme(namespace) => namespace.size_bytes(),
        }
    }
}

/// A device that is read by a thread that waits.
pub(crate) enum Medium {
    File(File),
    Nvme(Box<Reader>),
}

impl ReadAt for Medium {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => ReadAt::read_exact_at(file, bytes, offset),
            Self::Nvme(reader) => reader.read_exact_at(bytes, offset),
        }
    }

    fn as_file(&self) -> Option<&File> {
        match self {
            Self::File(file) => Some(file),
            Self::Nvme(_) => None,
        }
    }
}

/// Opens devices by their names.
pub(crate) struct Devices {
    blocks: OnceLock<BlockPool>,
    /// How controllers are used.
    options: ControllerOptions,
    /// By serial.
    controllers: Mutex<BTreeMap<String, Controller<VfioFunction>>>,
}

impl Devices {
    /// For commands that work without a node; memory is taken when it is needed.
    pub(crate) fn offline(config: NvmeConfig) -> Self {
        Self::new(OnceLock::new(), nvme::options(1, IdlePolicy::Busy, None, config))
    }

    /// For a node whose reactors have `blocks`; `host` is who it is to controllers, where it reserves namespaces.
    pub(super) fn of_node(blocks: &BlockPool, config: &NodeConfig, host: Option<HostId>) -> Self {
        let reactor_count = u16::try_from(config.reactors.count).expect("bounded by the configuration");
        let options = nvme::options(reactor_count, config.reactors.idle, host, config.nvme);
        Self::new(OnceLock::from(blocks.clone()), options)
    }

    fn new(blocks: OnceLock<BlockPool>, options: ControllerOptions) -> Self {
        Self { blocks, options, controllers: Mutex::default() }
    }

    /// The memory that its controllers reach.
    pub(super) fn blocks(&self) -> Result<&BlockPool, Failure> {
        if let Some(blocks) = self.blocks.get() {
            return Ok(blocks);
        }
        let made = BlockPool::new(OFFLINE_BLOCKS).map_err(no_memory)?;
        Ok(self.blocks.get_or_init(|| made))
    }

    /// Opens a device to be read and written; files are locked for that. Waits for what a dying process still holds.
    pub(super) fn open(&self, name: &Path, access: Access) -> Result<Opened, Failure> {
        match namespace(name)? {
            Some(name) => self.namespace(name).map(Opened::Nvme),
            None => {
                let open = || StorageFile::open(name, access, Cache::Bypass);
                Ok(Opened::File(patiently(open, in_use)?))
            }
        }
    }

    /// Opens a device to be read by a thread that waits, whoever else has the file; and says how many whole blocks it has.
    pub(crate) fn read(&self, name: &Path) -> Result<(Medium, u64), Failure> {
        match namespace(name)? {
            Some(name) => {
                let reader = self.namespace(name)?.reader(self.blocks()?)?;
                let block_count = reader.size_bytes() / BLOCK_BYTES;
                Ok((Medium::Nvme(Box::new(reader)), block_count))
            }
            None => superblocks::open(name).map(|(file, block_count)| (Medium::File(file), block_count)),
        }
    }

    fn namespace(&self, name: NvmeName) -> Result<Namespace, Failure> {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let controller = match controllers.get(&name.serial) {
            Some(controller) => controller.clone(),
            None => {
                let controller = nvme::start(&name, self.blocks()?, self.options)?;
                controllers.insert(name.serial.clone(), controller.clone());
                controller
            }
        };
        Ok(Namespace::new(name, controller))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let controllers = self.controllers.get_mut().unwrap_or_else(PoisonError::into_inner);
        controllers.values().for_each(nvme::shut_down);
    }
}

/// The namespace that is meant, if it is no path.
fn namespace(name: &Path) -> Result<Option<NvmeName>, Failure> {
    let read = NvmeName::of(name).transpose();
    read.map_err(|why| Failure::new(Exit::Usage, format!("{}: {why}", name.display()), "nvme:SERIAL, or nvme:SERIAL/2"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlog::control::config;

    #[test]
    fn what_is_configured_of_fua_holds_with_a_node_and_without_one() {
        let blocks = BlockPool::new(1).expect("a small mapping");
        for (lines, ignores_fua) in
            [("", false), ("[nvme]\nfua = \"trust\"\n", false), ("[nvme]\nfua = \"flush\"\n", true)]
        {
            let text =
                format!("name = \"a\"\n[log]\npath = \"log\"\n[pool]\nname = \"a\"\ndevices = [\"nvme:S\"]\n{lines}");
            let config = config::parse(&text, Path::new("node.toml"), Path::new("/")).expect("good");
            for devices in [Devices::of_node(&blocks, &config, None), Devices::offline(config.nvme)] {
                assert_eq!(devices.options.ignores_fua, ignores_fua, "{lines}");
            }
        }
    }
}
