//! A function through `uio_pci_generic`. UNSAFE: nothing confines it. For machines without an IOMMU, and for tests.
//!
//! The function is told physical addresses, which `/proc/self/pagemap` tells root. They stay true only for pages that the kernel does not move:
//! huge pages, which it moves only for an operator who takes memory out of the machine. So all memory for the function is huge pages,
//! and a pool must be made of them ([`BlockPool::in_huge_pages`]).

use crate::{
    Memory, Window, checked,
    config::Config,
    memory::{Mapping, Owner},
    refused,
};
use std::{
    any::Any,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::{fd::OwnedFd, unix::fs::FileExt},
    ptr::NonNull,
    sync::{Arc, OnceLock},
};
use twinlog_memory::{BlockPool, HUGE_PAGE_BYTES};
use twinlog_pci::{Identity, PAGE_BYTES, PciError, PciFunction, PoolMap};

/// Bits of an entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
/// What a function that is gone reads as.
const GONE: u16 = 0xFFFF;

/// A PCI function that this process has through `uio_pci_generic`. A clone is the same function.
#[derive(Clone)]
pub struct UioFunction(Arc<Function>);

struct Function {
    identity: Identity,
    config: File,
    /// Held open: the kernel stops the function's access to memory when it is closed, and others see that the function is in use.
    _node: File,
    /// A pool that the function may reach: invariant 2 of the crate.
    pool: OnceLock<BlockPool>,
}

impl Owner for Function {
    /// Nothing can take the right from it.
    fn forget(&self, _bus_address: u64, _length_bytes: usize) {}
}

impl UioFunction {
    /// Opens the function at a PCI address, which `uio_pci_generic` has. It is reset, and may access memory from here on.
    ///
    /// # Errors
    /// When another driver has it, or the kernel refuses: only root may.
    pub fn open(address: &str) -> Result<Self, PciError> {
        checked(address)?;
        let opened = Self::try_open(address).map_err(|error| refused(address, "open it through uio", error))?;
        opened.reset()?;
        Ok(opened)
    }

    fn try_open(address: &str) -> io::Result<Self> {
        let place = format!("/sys/bus/pci/devices/{address}");
        let driver = fs::read_link(format!("{place}/driver"))?;
        if driver.file_name().is_none_or(|name| name != "uio_pci_generic") {
            return Err(io::Error::other("another driver has it"));
        }
        let name = fs::read_dir(format!("{place}/uio"))?.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let node = open(&format!("/dev/{}", name.to_string_lossy()))?;
        let config = open(&format!("{place}/config"))?;
        let identity = Config { file: &config, start: 0 }.identity(address)?;
        Ok(Self(Arc::new(Function { identity, config, _node: node, pool: OnceLock::new() })))
    }

    fn place(&self, name: &str) -> String {
        format!("/sys/bus/pci/devices/{}/{name}", self.0.identity.address)
    }

    fn refused(&self, action: &str, error: impl Into<io::Error>) -> PciError {
        refused(&self.0.identity.address, action, error)
    }
}

fn open(path: &str) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

impl fmt::Debug for UioFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "UioFunction({})", self.0.identity.address)
    }
}

impl PciFunction for UioFunction {
    type Registers = Window;
    type Memory = Memory;

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn confined_by(&self) -> &'static str {
        "nothing"
    }

    fn map_window(&self, window: u8) -> Result<Window, PciError> {
        let none = || PciError::NoWindow { address: self.0.identity.address.clone(), window };
        let file = match OpenOptions::new().read(true).write(true).open(self.place(&format!("resource{window}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
            opened => opened.map_err(|error| self.refused("open its registers", error))?,
        };
        let length = file.metadata().map_err(|error| self.refused("measure its registers", error))?.len();
        let length = usize::try_from(length).ok().and_then(NonZeroUsize::new).ok_or_else(none)?;
        let owner: Arc<dyn Any + Send + Sync> = self.0.clone();
        Window::map(&file, 0, length, owner).map_err(|error| self.refused("map its registers", error))
    }

    fn allocate(&self, length_bytes: usize) -> Result<Memory, PciError> {
        if length_bytes > HUGE_PAGE_BYTES {
            return Err(self.refused("find memory for it", io::Error::other("only one huge page lies in one piece")));
        }
        let failed = |error| self.refused("find a huge page for it (sysctl vm.nr_hugepages=256)", error);
        let mapping = Mapping::new(length_bytes, true).map_err(failed)?;
        let place = frames(mapping.address(), 1).map_err(failed)?[0];
        Ok(Memory::new(mapping, place, self.0.clone()))
    }

    fn map_pool(&self, pool: &BlockPool) -> Result<PoolMap, PciError> {
        let failed = |error: io::Error| self.refused("find the block pool's huge pages", error);
        if !pool.is_huge() {
            return Err(failed(io::Error::other("the pool is not made of huge pages")));
        }
        let (base, length) = pool.region();
        let kept = self.0.pool.get_or_init(|| pool.clone());
        if kept.region() != pool.region() {
            return Err(failed(io::Error::other("it has another pool already")));
        }
        let base = NonNull::new(base).expect("a mapping");
        let pieces = frames(base, length.div_ceil(HUGE_PAGE_BYTES)).map_err(failed)?;
        Ok(PoolMap::scattered(pool, HUGE_PAGE_BYTES, pieces.into()))
    }

    fn vector_count(&self) -> u32 {
        0
    }

    fn interrupt(&self, vector: u32) -> Result<OwnedFd, PciError> {
        Err(PciError::NoVector { address: self.0.identity.address.clone(), vector })
    }

    fn reset(&self) -> Result<(), PciError> {
        let config = Config { file: &self.0.config, start: 0 };
        let done = fs::write(self.place("reset"), "1").and_then(|()| config.enable());
        done.map_err(|error| self.refused("reset it", error))
    }

    fn is_removed(&self) -> bool {
        let config = Config { file: &self.0.config, start: 0 };
        config.identity("").map_or(true, |now| now.vendor == GONE)
    }
}

/// Where huge pages lie in the machine's memory.
fn frames(base: NonNull<u8>, count: usize) -> io::Result<Vec<u64>> {
    assert!(base.addr().get().is_multiple_of(HUGE_PAGE_BYTES), "a huge page begins on its boundary");
    let table = File::open("/proc/self/pagemap")?;
    let frame = |index: usize| {
        let page = (base.addr().get() + index * HUGE_PAGE_BYTES) / PAGE_BYTES;
        let mut entry = [0; 8];
        table.read_exact_at(&mut entry, page as u64 * 8)?;
        physical(u64::from_le_bytes(entry))
    };
    (0..count).map(frame).collect()
}

/// The address that an entry of the table tells.
fn physical(entry: u64) -> io::Result<u64> {
    match (entry & PAGEMAP_PRESENT, entry & PAGEMAP_FRAME) {
        (0, _) => Err(io::Error::other("the page is not in memory")),
        (_, 0) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root learns where a page lies")),
        (_, frame) => Ok(frame * PAGE_BYTES as u64),
    }
}
