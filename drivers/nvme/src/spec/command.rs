//! Queue entries (base 3.3.3) and the commands this driver gives.

use super::Status;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

/// Number of a command.
pub type Opcode = u8;

/// Number of a feature.
pub type FeatureId = u8;

/// Flags of a command that is not fused and uses PRPs (base 3.3.3.1, FUSE and PSDT zero).
pub const FUSED_NONE: u8 = 0;

/// Flags of one that uses an SGL (PSDT 01b: the metadata, of which there are none, would be in one piece).
pub const USES_SGL: u8 = 1 << 6;

/// Types of SGL descriptors (base 4.1.2), with a subtype of zero: the address is one.
pub mod sgl_type {
    /// A piece of the data.
    pub const DATA_BLOCK: u8 = 0x0;
    /// A list of descriptors of which none names another list.
    pub const LAST_SEGMENT: u8 = 0x3;
}

/// A descriptor of memory (base 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    /// Where it begins.
    pub address: U64,
    /// Bytes in the lower half; type and subtype in the upper and lower half of the last byte; zeroes between.
    pub length_and_type: U64,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

impl SglDescriptor {
    /// A descriptor of `length` bytes at `address`.
    #[must_use]
    pub fn new(kind: u8, address: u64, length: u32) -> Self {
        Self { address: U64::new(address), length_and_type: U64::new(u64::from(length) | u64::from(kind) << 60) }
    }

    /// As it lies in memory, in words.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.address.get(), self.length_and_type.get()]
    }
}

/// Admin commands (base 5).
pub mod admin_opcode {
    use super::Opcode;
    /// Delete I/O submission queue.
    pub const DELETE_SUBMISSION: Opcode = 0x00;
    /// Create I/O submission queue.
    pub const CREATE_SUBMISSION: Opcode = 0x01;
    /// Get log page.
    pub const GET_LOG_PAGE: Opcode = 0x02;
    /// Delete I/O completion queue.
    pub const DELETE_COMPLETION: Opcode = 0x04;
    /// Create I/O completion queue.
    pub const CREATE_COMPLETION: Opcode = 0x05;
    /// Identify.
    pub const IDENTIFY: Opcode = 0x06;
    /// Abort.
    pub const ABORT: Opcode = 0x08;
    /// Set features.
    pub const SET_FEATURES: Opcode = 0x09;
    /// Asynchronous event request.
    pub const EVENT: Opcode = 0x0C;
}

/// I/O commands (nvm 3).
pub mod io_opcode {
    use super::Opcode;
    /// Flush.
    pub const FLUSH: Opcode = 0x00;
    /// Write.
    pub const WRITE: Opcode = 0x01;
    /// Read.
    pub const READ: Opcode = 0x02;
    /// Write zeroes.
    pub const WRITE_ZEROES: Opcode = 0x08;
    /// Dataset management.
    pub const DATASET: Opcode = 0x09;
    /// Reservation register (base 7.3).
    pub const RESERVATION_REGISTER: Opcode = 0x0D;
    /// Reservation report (base 7.5).
    pub const RESERVATION_REPORT: Opcode = 0x0E;
    /// Reservation acquire (base 7.2).
    pub const RESERVATION_ACQUIRE: Opcode = 0x11;
    /// Reservation release (base 7.4).
    pub const RESERVATION_RELEASE: Opcode = 0x15;
}

/// What identify asks for: CNS (base 5.17).
pub mod identify_kind {
    /// One namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// The controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces above a number.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
}

/// Features (base 5.27.1).
pub mod feature {
    use super::FeatureId;
    /// Number of queues.
    pub const QUEUES: FeatureId = 0x07;
    /// Which asynchronous events are reported.
    pub const EVENTS: FeatureId = 0x0B;
    /// The host's identifier.
    pub const HOST_ID: FeatureId = 0x81;
}

/// Log pages (base 5.16.1).
pub mod log_page {
    /// Errors.
    pub const ERROR: u8 = 0x01;
    /// SMART / health.
    pub const HEALTH: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Namespaces whose attributes changed.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
}

/// A command as it lies in a submission queue (base 3.3.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubmissionEntry {
    /// What to do.
    pub opcode: Opcode,
    /// [`FUSED_NONE`] or [`USES_SGL`].
    pub flags: u8,
    /// Comes back with the completion.
    pub command_id: U16,
    /// Namespace, zero for none.
    pub namespace: U32,
    /// Command dwords 2 and 3: reserved.
    pub reserved: [U32; 2],
    /// Place of the metadata: none here.
    pub metadata: U64,
    /// Data pointers: PRP 1 and 2, or an [`SglDescriptor`].
    pub data: [U64; 2],
    /// Command dwords 10 to 15.
    pub arguments: [U32; 6],
}

const _: () = assert!(size_of::<SubmissionEntry>() == 64);

impl SubmissionEntry {
    /// A command without data; its identifier comes later.
    #[must_use]
    pub fn new(opcode: Opcode, namespace: u32, arguments: [u32; 6]) -> Self {
        Self {
            opcode,
            flags: FUSED_NONE,
            command_id: U16::ZERO,
            namespace: U32::new(namespace),
            reserved: [U32::ZERO; 2],
            metadata: U64::ZERO,
            data: [U64::ZERO; 2],
            arguments: arguments.map(U32::new),
        }
    }

    /// The same with data pointers.
    #[must_use]
    pub fn with_data(mut self, data: [u64; 2]) -> Self {
        self.data = data.map(U64::new);
        self
    }

    /// The same with the data that a descriptor names.
    #[must_use]
    pub fn with_sgl(mut self, descriptor: SglDescriptor) -> Self {
        self.flags |= USES_SGL;
        self.with_data(descriptor.words())
    }

    /// Read, write or write zeroes of `count` (1 to 65536) logical blocks from `first` (nvm 3.2.4, 3.2.6, 3.2.8).
    #[must_use]
    pub fn transfer(opcode: Opcode, namespace: u32, first: u64, count: u32, is_durable: bool) -> Self {
        assert!((1..=1 << 16).contains(&count), "a command has 1 to 65536 logical blocks");
        let [low, high] = halves(first);
        Self::new(opcode, namespace, [low, high, (count - 1) | u32::from(is_durable) << 30, 0, 0, 0])
    }
}

/// The lower and upper half.
pub(crate) fn halves(value: u64) -> [u32; 2] {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).expect("32 bits");
    [half(value), half(value >> 32)]
}

/// An answer as it lies in a completion queue (base 3.3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompletionEntry {
    /// Dword 0: specific to the command.
    pub result: U32,
    /// Dword 1: specific to the command.
    pub result_high: U32,
    /// Where the controller's reading of the submission queue stands.
    pub submission_head: U16,
    /// Which submission queue.
    pub submission_id: U16,
    /// The command's identifier.
    pub command_id: U16,
    /// Bit 0 is the phase; above it the status.
    pub status_and_phase: U16,
}

const _: () = assert!(size_of::<CompletionEntry>() == 16);

impl CompletionEntry {
    /// How the command ended.
    #[must_use]
    pub fn status(&self) -> Status {
        Status(self.status_and_phase.get() >> 1)
    }
}

/// One range of a dataset management command (nvm 3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeallocateRange {
    /// Hints: none.
    pub attributes: U32,
    /// Logical blocks.
    pub count: U32,
    /// First logical block.
    pub first: U64,
}

const _: () = assert!(size_of::<DeallocateRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_laid_out_as_specified() {
        let mut entry =
            SubmissionEntry::transfer(io_opcode::WRITE, 3, 0x1_0000_0002, 8, true).with_data([0x1000, 0x2000]);
        entry.command_id = U16::new(0xABCD);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..8], [0x01, 0, 0xCD, 0xAB, 3, 0, 0, 0]);
        assert_eq!(bytes[24..40], [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..52], [2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x40]);
    }

    #[test]
    fn a_descriptor_is_laid_out_as_specified() {
        let descriptor = SglDescriptor::new(sgl_type::LAST_SEGMENT, 0x1122_3344_5566_7788, 0x99AA_BBC0);
        let entry = SubmissionEntry::transfer(io_opcode::READ, 1, 0, 1, false).with_sgl(descriptor);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..2], [0x02, 0x40]);
        assert_eq!(bytes[24..32], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[32..40], [0xC0, 0xBB, 0xAA, 0x99, 0, 0, 0, 0x30]);
    }

    #[test]
    #[should_panic = "1 to 65536"]
    fn a_transfer_has_blocks() {
        let _ = SubmissionEntry::transfer(io_opcode::READ, 1, 0, 0, false);
    }
}
