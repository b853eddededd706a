//! An NVMe controller in software, on the other side of the seam that the driver uses.
//!
//! It lives in this crate, behind the feature `model`, because it speaks the crate's own `spec` and must stay next to what it tests; the
//! tests of other crates that want a controller without hardware turn the feature on. It shares no code with the driver beyond the layout
//! of bytes: lists of pages and pieces, rings and phases are written here a second time, from the specification.
//!
//! - The driver's memory is reached by bus address alone, through what the driver allocated and mapped. Anything else is a [`DmaFault`], as
//!   an IOMMU would report it; so is a write to a block that is not the device's.
//! - What a driver may not do (a doorbell out of range, an identifier in use, queues set while enabled) is a complaint.
//! - A volatile write cache loses any subset of its sectors at a power cut.
//! - [`Mischief`] makes it break the specification, from a seed.
//!
//! It computes in [`Model::turn`] only, and time is counted in turns.

mod admin;
mod bus;
mod device;
mod io;
mod medium;
mod mischief;
mod reservations;
mod signals;

pub use bus::{DmaFault, ModelMemory};
pub use mischief::Mischief;

use bus::Bus;
use device::Device;
use medium::Subsystem;
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use signals::Signals;
use std::{
    cell::RefCell,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};
use twinlog_device::{BlockPool, Prng};
use twinlog_pci::{Identity, PciError, PciFunction, PoolMap, Registers};

/// One namespace of a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelNamespace {
    /// Its number.
    pub id: u32,
    /// Blocks of 4 KiB.
    pub block_count: u64,
    /// Logarithm of the bytes of a logical block.
    pub lba_shift: u8,
}

/// What a model is.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Everything that is drawn comes from here.
    pub seed: u64,
    /// Its namespaces, ascending.
    pub namespaces: Vec<ModelNamespace>,
    /// Entries of the largest queue, at least two.
    pub queue_entries_max: u32,
    /// I/O queue pairs that it grants at most, at least one.
    pub queues_max: u16,
    /// Doorbells lie `4 << doorbell_shift` bytes apart.
    pub doorbell_shift: u8,
    /// Logarithm of the largest transfer in pages; zero for no limit.
    pub transfer_shift_max: u8,
    /// Its model, at most 40 bytes.
    pub model: &'static str,
    /// Whether completed writes may be lost at a power cut.
    pub has_write_cache: bool,
    /// Whether a write with FUA is a write like any other.
    pub ignores_fua: bool,
    /// Whether it knows scatter gather lists.
    pub has_sgls: bool,
    /// Logical blocks that one dataset command may deallocate.
    pub discard_lbas_max: u64,
    /// Turns that a command takes at most.
    pub delay_max: u64,
    /// How long it says that the activation of a firmware takes, in units of 100 ms; zero for nothing.
    pub activation_units: u16,
    /// Whether a firmware's activation goes on over a reset.
    pub pauses_over_resets: bool,
    /// Interrupt vectors.
    pub vector_count: u32,
    /// Whether it leaves a signal out while the driver has not acknowledged an earlier answer of the queue.
    pub spares_signals: bool,
    /// What it does wrong.
    pub mischief: Mischief,
}

impl ModelConfig {
    /// A well-behaved controller with one namespace of 4096 blocks.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            namespaces: vec![ModelNamespace { id: 1, block_count: 4096, lba_shift: 9 }],
            queue_entries_max: 1024,
            queues_max: 8,
            doorbell_shift: 0,
            transfer_shift_max: 8,
            model: "Model controller",
            has_write_cache: true,
            ignores_fua: false,
            has_sgls: false,
            discard_lbas_max: u64::MAX,
            delay_max: 3,
            activation_units: 0,
            pauses_over_resets: false,
            vector_count: 0,
            spares_signals: false,
            mischief: Mischief::default(),
        }
    }
}

/// A controller. Clones are the same one.
#[derive(Clone)]
pub struct Model {
    device: Rc<RefCell<Device>>,
    config: ModelConfig,
}

impl Model {
    /// A controller whose namespaces hold zeroes.
    #[must_use]
    pub fn new(config: ModelConfig) -> Self {
        let subsystem = Rc::new(RefCell::new(Subsystem::new(&config)));
        Self { device: Rc::new(RefCell::new(Device::new(&config, subsystem, 1))), config }
    }

    /// A second controller of the same subsystem, for another host: it has the same namespaces.
    #[must_use]
    pub fn second_controller(&self) -> Self {
        let subsystem = self.device.borrow().subsystem.clone();
        Self { device: Rc::new(RefCell::new(Device::new(&self.config, subsystem, 2))), config: self.config.clone() }
    }

    /// The function, for one driver at a time: what an earlier one had mapped is not mapped any more. The controller goes on with what it was
    /// doing.
    #[must_use]
    pub fn function(&self) -> ModelFunction {
        let mut device = self.device.borrow_mut();
        let bus = Rc::new(RefCell::new(Bus::new(device.prng.fork())));
        device.bus = bus.clone();
        device.signals = Signals::default();
        let identity = Identity { address: "0000:00:00.0".to_owned(), vendor: 0x1B36, device: 0x10, class: 0x01_0802 };
        ModelFunction { device: self.device.clone(), bus, identity }
    }

    /// Lets the controller work for a while.
    pub fn turn(&self) {
        self.device.borrow_mut().turn();
    }

    /// Cuts the power: unflushed and unfinished writes land in any subset of their logical blocks. The controller is off afterwards.
    pub fn power_cut(&self, prng: &mut Prng) {
        self.device.borrow_mut().power_cut(prng);
    }

    /// Accesses to memory that no driver had mapped, or to blocks that were not the device's.
    #[must_use]
    pub fn dma_faults(&self) -> Vec<DmaFault> {
        self.device.borrow().bus.borrow().faults.clone()
    }

    /// What the driver did that the specification forbids.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.device.borrow().complaints.clone()
    }

    /// Commands performed so far: reads, writes, flushes, discards and zeroes.
    #[must_use]
    pub fn performed_count(&self) -> u64 {
        self.device.borrow().performed_count
    }

    /// Commands so far that named their data by a scatter gather list.
    #[must_use]
    pub fn sgl_count(&self) -> u64 {
        self.device.borrow().sgl_count
    }

    /// Reports a health event, as if spare had run low.
    pub fn warn(&self) {
        self.device.borrow_mut().warn();
    }

    /// Reports that namespaces were changed by another host.
    pub fn change_namespaces(&self) {
        self.device.borrow_mut().has_notice = true;
    }

    /// Begins to activate another firmware, for so many turns.
    pub fn activate_firmware(&self, turns: u64) {
        self.device.borrow_mut().activation = Some(turns);
    }

    /// Gives the next firmware properties of its own, from now on.
    pub fn change(&self, change: impl FnOnce(&mut ModelConfig)) {
        let mut device = self.device.borrow_mut();
        change(&mut device.config);
        device.subsystem.borrow_mut().has_write_cache = device.config.has_write_cache;
    }

    /// Takes the function away: registers read as all ones; with `noticed` the kernel says so, too.
    pub fn remove(&self, noticed: bool) {
        let mut device = self.device.borrow_mut();
        device.is_gone = true;
        device.is_removed = noticed;
    }

    /// The kernel asks for the function, which is still there and cannot be reset from then on.
    pub fn ask_back(&self) {
        self.device.borrow_mut().is_removed = true;
    }

    /// Shows the ready bit no more, and goes on.
    pub fn hide_ready(&self) {
        self.device.borrow_mut().hides_ready = true;
    }

    /// Sets the fatal status.
    pub fn fail(&self) {
        self.device.borrow_mut().is_fatal = true;
    }

    /// Changes what it does wrong from now on.
    pub fn set_mischief(&self, mischief: Mischief) {
        self.device.borrow_mut().mischief = mischief;
    }
}

/// A way to a model.
pub struct ModelFunction {
    device: Rc<RefCell<Device>>,
    bus: Rc<RefCell<Bus>>,
    identity: Identity,
}

impl PciFunction for ModelFunction {
    type Registers = ModelRegisters;
    type Memory = ModelMemory;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn confined_by(&self) -> &'static str {
        "a model"
    }

    fn map_window(&self, window: u8) -> Result<ModelRegisters, PciError> {
        match window {
            0 => Ok(ModelRegisters(self.device.clone())),
            _ => Err(PciError::NoWindow { address: self.identity.address.clone(), window }),
        }
    }

    fn allocate(&self, length_bytes: usize) -> Result<ModelMemory, PciError> {
        Ok(ModelMemory::new(&self.bus, length_bytes))
    }

    fn map_pool(&self, pool: &BlockPool) -> Result<PoolMap, PciError> {
        Ok(self.bus.borrow_mut().map_pool(pool))
    }

    fn vector_count(&self) -> u32 {
        self.device.borrow().config.vector_count
    }

    fn interrupt(&self, vector: u32) -> Result<OwnedFd, PciError> {
        let mut device = self.device.borrow_mut();
        if vector >= device.config.vector_count {
            return Err(PciError::NoVector { address: self.identity.address.clone(), vector });
        }
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let listened =
            event.and_then(|event| Ok((event.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?, event)));
        let (own, event) = listened.map_err(|errno| {
            let action = "make an event counter".to_owned();
            PciError::Refused { address: self.identity.address.clone(), action, source: errno.into() }
        })?;
        device.signals.listen(vector, event);
        Ok(own)
    }

    fn reset(&self) -> Result<(), PciError> {
        let mut device = self.device.borrow_mut();
        if device.refuses_reset() {
            let source = std::io::Error::from_raw_os_error(libc::ENOTTY);
            let action = "reset".to_owned();
            return Err(PciError::Refused { address: self.identity.address.clone(), action, source });
        }
        device.reset();
        Ok(())
    }

    fn is_removed(&self) -> bool {
        self.device.borrow().is_removed
    }
}

/// The registers of a model.
#[derive(Clone)]
pub struct ModelRegisters(Rc<RefCell<Device>>);

impl Registers for ModelRegisters {
    fn length_bytes(&self) -> usize {
        device::WINDOW_BYTES
    }

    fn read_u32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= device::WINDOW_BYTES, "a register of four bytes");
        self.0.borrow_mut().read(offset).try_into().expect("a register of four bytes")
    }

    fn read_u64(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= device::WINDOW_BYTES, "a register of eight bytes");
        self.0.borrow_mut().read_wide(offset)
    }

    // A function of its own in every build, so that a profile can tell it from the driver.
    #[inline(never)]
    fn write_u32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= device::WINDOW_BYTES, "a register of four bytes");
        self.0.borrow_mut().write(offset, value.into());
    }

    fn write_u64(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= device::WINDOW_BYTES, "a register of eight bytes");
        self.0.borrow_mut().write(offset, value);
    }
}
