//! The controller's registers, by name.

use crate::spec::{Capabilities, Configuration, ControllerStatus, doorbell, offset};
use twinlog_pci::Registers;

/// Registers of one controller. Clones are the same.
#[derive(Clone)]
pub(crate) struct Controls<R> {
    window: R,
    stride: usize,
}

impl<R: Registers> Controls<R> {
    /// The registers in `window`, which is not shorter than the doorbells of the admin queue.
    pub(crate) fn new(window: R) -> Option<Self> {
        if window.length_bytes() <= offset::DOORBELLS {
            return None;
        }
        let stride = Capabilities(window.read_u64(offset::CAP)).doorbell_stride();
        let controls = Self { window, stride };
        (controls.queue_max() >= 1).then_some(controls)
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities(self.window.read_u64(offset::CAP))
    }

    pub(crate) fn status(&self) -> ControllerStatus {
        ControllerStatus(self.window.read_u32(offset::CSTS))
    }

    pub(crate) fn configuration(&self) -> Configuration {
        Configuration(self.window.read_u32(offset::CC))
    }

    pub(crate) fn configure(&self, configuration: Configuration) {
        self.window.write_u32(offset::CC, configuration.0);
    }

    /// Tells where the admin queues are, with `entries` each. Only while the controller is not ready (base 3.5.1).
    pub(crate) fn set_admin_queues(&self, entries: u16, submission: u64, completion: u64) {
        let size = u32::from(entries - 1);
        self.window.write_u32(offset::AQA, size << 16 | size);
        self.window.write_u64(offset::ASQ, submission);
        self.window.write_u64(offset::ACQ, completion);
    }

    /// No interrupts by a pin.
    pub(crate) fn mask_interrupts(&self) {
        self.window.write_u32(offset::INTMS, u32::MAX);
    }

    /// The highest queue number whose doorbells lie in the window; zero is the admin queue.
    pub(crate) fn queue_max(&self) -> u16 {
        let pairs = (self.window.length_bytes() - offset::DOORBELLS) / (2 * self.stride);
        u16::try_from(pairs.saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// Says how far queue `id` is filled, or emptied.
    pub(crate) fn ring(&self, id: u16, is_completion: bool, index: u16) {
        self.window.write_u32(doorbell(id, is_completion, self.stride), u32::from(index));
    }
}
