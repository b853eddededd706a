//! Controller registers (base 3.1.3) and doorbells (pcie 3.1.2).

/// Byte offsets.
pub mod offset {
    /// Capabilities, 8 bytes.
    pub const CAP: usize = 0x00;
    /// Version.
    pub const VS: usize = 0x08;
    /// Interrupt mask set.
    pub const INTMS: usize = 0x0C;
    /// Configuration.
    pub const CC: usize = 0x14;
    /// Status.
    pub const CSTS: usize = 0x1C;
    /// Admin queue attributes.
    pub const AQA: usize = 0x24;
    /// Admin submission queue base, 8 bytes.
    pub const ASQ: usize = 0x28;
    /// Admin completion queue base, 8 bytes.
    pub const ACQ: usize = 0x30;
    /// First doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// Offset of a doorbell: submission tail, or completion head, of queue `id`, with `stride` bytes between doorbells.
#[must_use]
pub fn doorbell(id: u16, is_completion: bool, stride: usize) -> usize {
    offset::DOORBELLS + (2 * usize::from(id) + usize::from(is_completion)) * stride
}

fn bits(value: u64, low: u32, count: u32) -> u16 {
    u16::try_from((value >> low) & ((1 << count) - 1)).expect("at most sixteen bits are asked for")
}

/// CAP (base 3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Entries of the largest I/O queue (MQES is this less one).
    #[must_use]
    pub fn queue_entries_max(self) -> u32 {
        u32::from(bits(self.0, 0, 16)) + 1
    }

    /// Longest time until ready or not ready, in units of 500 ms (TO).
    #[must_use]
    pub fn timeout_units(self) -> u16 {
        bits(self.0, 24, 8)
    }

    /// Bytes between doorbells (DSTRD).
    #[must_use]
    pub fn doorbell_stride(self) -> usize {
        4 << bits(self.0, 32, 4)
    }

    /// Whether there is the NVM command set (CSS bit 0).
    #[must_use]
    pub fn has_nvm_commands(self) -> bool {
        bits(self.0, 37, 1) == 1
    }

    /// Logarithm of the smallest page, in units of 4 KiB (MPSMIN).
    #[must_use]
    pub fn page_shift_min(self) -> u16 {
        bits(self.0, 48, 4)
    }
}

/// CC (base 3.1.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Enabled; NVM command set, 4 KiB pages, round robin; entries of 64 and 16 bytes.
    pub const ENABLED: Self = Self(1 | 6 << 16 | 4 << 20);
    /// Not enabled, all else zero.
    pub const DISABLED: Self = Self(0);

    /// Whether the controller is to process commands (EN).
    #[must_use]
    pub fn is_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same, announcing a normal shutdown (SHN = 01b).
    #[must_use]
    pub fn shutting_down(self) -> Self {
        Self(self.0 & !(3 << 14) | 1 << 14)
    }

    /// Whether a shutdown is announced.
    #[must_use]
    pub fn is_shutting_down(self) -> bool {
        self.0 >> 14 & 3 != 0
    }
}

/// CSTS (base 3.1.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// The controller is not there any more: reads return all ones.
    #[must_use]
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// Ready to process commands (RDY).
    #[must_use]
    pub fn is_ready(self) -> bool {
        self.0 & 1 == 1
    }

    /// The controller cannot go on (CFS).
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self.0 & 2 == 2
    }

    /// Processes no commands for a while, as when it activates a firmware (PP).
    #[must_use]
    pub fn is_paused(self) -> bool {
        self.0 >> 5 & 1 == 1
    }

    /// Shutdown is complete (SHST = 10b).
    #[must_use]
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        // MQES 1023, CQR, TO 15 (7.5 s), DSTRD 1, NVM command set, MPSMIN 2.
        let cap = Capabilities(1023 | 1 << 16 | 15 << 24 | 1 << 32 | 1 << 37 | 2 << 48);
        assert_eq!((cap.queue_entries_max(), cap.timeout_units(), cap.doorbell_stride()), (1024, 15, 8));
        assert!(cap.has_nvm_commands() && cap.page_shift_min() == 2);
        assert_eq!(Configuration::ENABLED.0, 0x0046_0001);
        assert_eq!(Configuration::ENABLED.shutting_down().0, 0x0046_4001);
        assert!(ControllerStatus(0b1001).is_shut_down() && ControllerStatus(0b1001).is_ready());
        assert!(ControllerStatus(0b10_0001).is_paused() && !ControllerStatus(0b01_1111).is_paused());
        assert!(!ControllerStatus(0b0101).is_shut_down() && ControllerStatus(2).is_fatal());
        assert_eq!((doorbell(0, false, 4), doorbell(1, true, 4), doorbell(2, false, 16)), (0x1000, 0x100C, 0x1040));
    }
}
