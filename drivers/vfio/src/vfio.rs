//! A function through VFIO, confined by IOMMUFD or by a container ([`Confinement`]).
//!
//! Each function has an address space of its own: what is mapped for one, no other one can reach. A pool that several functions use is locked, and
//! counts against RLIMIT_MEMLOCK, once for each.
//!
//! # Life
//!
//! ```text
//! open: function, confined -> REQ event -> bus master
//!   map_window, allocate, map_pool, interrupt, reset: in any order, from any thread
//! last clone, window and memory dropped: function and what confines it are closed in this order; the kernel resets the function
//! ```
//!
//! # Failure cases
//!
//! - The kernel wants the function back (it is taken out, or unbound): [`PciFunction::is_removed`] says so, the kernel waits, and a reset fails with
//!   EAGAIN. Dropping the function is what ends its access to memory then.
//! - A write of the function to memory that is not mapped for it goes nowhere; the kernel logs a fault (`DMAR` on Intel), and this process is not told.

#![expect(
    clippy::disallowed_types,
    reason = "setting up a device is rare and may wait; no operation on data takes the lock"
)]

use crate::{
    Memory, Window, abi, checked,
    config::Config,
    confinement::Confinement,
    memory::{Mapping, Owner, keep_from_children},
    refused,
    space::Space,
};
use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        mman::{MmapAdvise, madvise},
    },
};
use std::{
    any::Any,
    fmt,
    fs::File,
    io,
    num::NonZeroUsize,
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use twinlog_memory::{BlockPool, HUGE_PAGE_BYTES};
use twinlog_pci::{Identity, PAGE_BYTES, PciError, PciFunction, PoolMap};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};

/// Interrupt vectors of a function that are used at most: each takes one of the some 200 of a processor, used or not.
const VECTORS_MAX: u32 = 64;
/// Registers windows of a function.
const WINDOWS: u8 = 6;

/// A PCI function that this process has through VFIO. A clone is the same function.
#[derive(Clone)]
pub struct VfioFunction(Arc<Function>);

/// Closed from the first field on.
struct Function {
    identity: Identity,
    device: File,
    confinement: Confinement,
    /// Where configuration space begins in `device`.
    config_start: u64,
    has_reset: bool,
    vector_count: u32,
    /// Incremented when the kernel wants the function back.
    wanted_back: EventFd,
    is_removed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    space: Space,
    /// Pools that the function may reach, each with its place on the bus: invariant 2 of the crate.
    pools: Vec<(BlockPool, u64)>,
    /// Whether the kernel has set the vectors up.
    has_vectors: bool,
}

impl VfioFunction {
    /// Opens the function at a PCI address, which `vfio-pci` has. It is reset, and may access memory from here on.
    ///
    /// # Errors
    /// When no IOMMU confines it, another process has it, or the kernel refuses otherwise.
    pub fn open(address: &str) -> Result<Self, PciError> {
        checked(address)?;
        let failed = |action: &'static str| move |error: io::Error| refused(address, action, error);
        let (device, confinement) = Confinement::open(address).map_err(failed("open it"))?;
        Self::of(address, device, confinement).map_err(failed("set it up"))
    }

    fn of(address: &str, device: File, confinement: Confinement) -> io::Result<Self> {
        let info = abi::device_info(&device)?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::other("the kernel says that it is no PCI function"));
        }
        let config_start = abi::region_info(&device, VFIO_PCI_CONFIG_REGION_INDEX)?.offset;
        let config = Config { file: &device, start: config_start };
        let identity = config.identity(address)?;
        let wanted_back = new_event()?;
        set_events(&device, VFIO_PCI_REQ_IRQ_INDEX, 0, &[wanted_back.as_raw_fd()])?;
        let vector_count = abi::irq_info(&device, VFIO_PCI_MSIX_IRQ_INDEX)?.count.min(VECTORS_MAX);
        let space = Space::new(confinement.ranges()?);
        config.enable()?;
        Ok(Self(Arc::new(Function {
            identity,
            device,
            confinement,
            config_start,
            has_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            vector_count,
            wanted_back,
            is_removed: AtomicBool::new(false),
            state: Mutex::new(State { space, pools: Vec::new(), has_vectors: false }),
        })))
    }

    fn refused(&self, action: &str, error: impl Into<io::Error>) -> PciError {
        refused(&self.0.identity.address, action, error)
    }
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VfioFunction({})", self.0.identity.address)
    }
}

impl PciFunction for VfioFunction {
    type Registers = Window;
    type Memory = Memory;

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn confined_by(&self) -> &'static str {
        self.0.confinement.interface().name()
    }

    fn map_window(&self, window: u8) -> Result<Window, PciError> {
        let none = || PciError::NoWindow { address: self.0.identity.address.clone(), window };
        if window >= WINDOWS {
            return Err(none());
        }
        let failed = |error: io::Error| self.refused("map its registers", error);
        let info = abi::region_info(&self.0.device, window.into()).map_err(failed)?;
        let length = usize::try_from(info.size).ok().and_then(NonZeroUsize::new);
        let length = length.filter(|_| info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0).ok_or_else(none)?;
        let offset = i64::try_from(info.offset).map_err(|_| none())?;
        let owner: Arc<dyn Any + Send + Sync> = self.0.clone();
        Window::map(&self.0.device, offset, length, owner).map_err(failed)
    }

    fn allocate(&self, length_bytes: usize) -> Result<Memory, PciError> {
        let failed = |error: io::Error| self.refused("lock memory for it", error);
        let mapping = Mapping::new(length_bytes, false).map_err(failed)?;
        // SAFETY: the mapping lives until `Memory` is dropped, which unmaps it from the function first, and it is reached by atomics.
        let place = unsafe { self.0.map(mapping.address(), mapping.length_bytes(), PAGE_BYTES as u64) };
        Ok(Memory::new(mapping, place.map_err(failed)?, self.0.clone()))
    }

    fn map_pool(&self, pool: &BlockPool) -> Result<PoolMap, PciError> {
        let (base, length) = pool.region();
        let known = |state: &State| {
            state.pools.iter().find(|(known, _)| known.region() == (base, length)).map(|(_, place)| *place)
        };
        if let Some(place) = known(&self.0.state()) {
            return Ok(PoolMap::contiguous(pool, place));
        }
        let failed =
            |error: io::Error| self.refused(&format!("lock {} MiB of the block pool for it", length >> 20), error);
        let base = NonNull::new(base).expect("a mapping");
        keep_from_children(base, length).map_err(failed)?;
        // SAFETY: it changes the size of pages, not what is in them. Without huge pages it works, too.
        let _slower = unsafe { madvise(base.cast(), length, MmapAdvise::MADV_HUGEPAGE) };
        // SAFETY: the pool is kept below until what confines the function is closed; its blocks are written by the function only while their handles
        // say so.
        let place = unsafe { self.0.map(base, length, HUGE_PAGE_BYTES as u64) }.map_err(failed)?;
        self.0.state().pools.push((pool.clone(), place));
        Ok(PoolMap::contiguous(pool, place))
    }

    fn vector_count(&self) -> u32 {
        self.0.vector_count
    }

    fn interrupt(&self, vector: u32) -> Result<OwnedFd, PciError> {
        if vector >= self.0.vector_count {
            return Err(PciError::NoVector { address: self.0.identity.address.clone(), vector });
        }
        let failed = |error: io::Error| self.refused("set up its interrupts", error);
        let mut state = self.0.state();
        if !state.has_vectors {
            // All at once, none of them heard: kernels before 6.5 cannot add vectors later.
            let none = vec![-1; self.0.vector_count as usize];
            set_events(&self.0.device, VFIO_PCI_MSIX_IRQ_INDEX, 0, &none).map_err(failed)?;
            state.has_vectors = true;
        }
        let event = new_event().map_err(failed)?;
        set_events(&self.0.device, VFIO_PCI_MSIX_IRQ_INDEX, vector, &[event.as_raw_fd()]).map_err(failed)?;
        Ok(event.into())
    }

    fn reset(&self) -> Result<(), PciError> {
        if !self.0.has_reset {
            return Err(self.refused("reset it", io::Error::other("it has no reset of its own")));
        }
        let config = Config { file: &self.0.device, start: self.0.config_start };
        let done = abi::reset(&self.0.device).and_then(|()| config.enable());
        done.map_err(|error| self.refused("reset it", error))
    }

    fn is_removed(&self) -> bool {
        // Never blocks; an error but for "not yet" cannot come.
        if self.0.wanted_back.read().is_ok() {
            self.0.is_removed.store(true, Ordering::Relaxed);
        }
        self.0.is_removed.load(Ordering::Relaxed)
    }
}

impl Function {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes memory known to the function; the place on the bus is as far from a multiple of `alignment` as the memory is, so that the IOMMU
    /// can translate whole huge pages.
    ///
    /// # Safety
    /// The memory stays mapped, and is used as memory that a device writes, until [`Self::forget`] or until this function is closed.
    unsafe fn map(&self, base: NonNull<u8>, length_bytes: usize, alignment: u64) -> io::Result<u64> {
        let (address, length) = (base.addr().get() as u64, length_bytes as u64);
        let mut state = self.state();
        let place = state.space.take(length, alignment, address & (alignment - 1));
        let place = place.ok_or_else(|| io::Error::from(Errno::ENOSPC))?;
        // SAFETY: the caller's promise.
        let mapped = unsafe { self.confinement.map(address, place, length) };
        if mapped.is_err() {
            state.space.give_back(place, length);
        }
        mapped.map(|()| place)
    }
}

impl Owner for Function {
    fn forget(&self, bus_address: u64, length_bytes: usize) {
        let length = length_bytes as u64;
        let mut state = self.state();
        // Where the kernel refuses, the pages stay the function's until it is closed, and their place is not used again.
        if self.confinement.unmap(bus_address, length).is_ok() {
            state.space.give_back(bus_address, length);
        }
    }
}

fn new_event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

fn set_events(device: &File, index: u32, start: u32, events: &[i32]) -> io::Result<()> {
    abi::set_irqs(device, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, start, events)
}
