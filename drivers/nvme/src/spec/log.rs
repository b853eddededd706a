//! Log pages (base 5.16.1) and asynchronous events (base 5.2).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64, U128},
};

/// SMART / health information (log page 02h).
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HealthLog {
    /// What is critical: bit 0 spare, 1 temperature, 2 reliability, 3 read-only, 4 volatile memory backup, 5 persistent memory.
    pub critical_warning: u8,
    /// Temperature in kelvin.
    pub temperature_k: U16,
    /// Spare that is left, percent.
    pub spare_percent: u8,
    /// Spare below which it is critical, percent.
    pub spare_threshold_percent: u8,
    /// Endurance used, percent; may exceed 100.
    pub used_percent: u8,
    reserved_6: [u8; 26],
    /// Units of 1000 x 512 bytes read, and written.
    pub data_units: [U128; 2],
    /// Commands: reads, and writes.
    pub host_commands: [U128; 2],
    /// Minutes busy.
    pub busy_minutes: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Hours powered.
    pub power_on_hours: U128,
    /// Power losses without a shutdown.
    pub unsafe_shutdowns: U128,
    /// Errors of media or data integrity that were not recovered.
    pub media_errors: U128,
    /// Entries of the error log over the controller's life.
    pub error_entries: U128,
    reserved_192: [u8; 320],
}

const _: () = assert!(size_of::<HealthLog>() == 512);
const _: () = assert!(std::mem::offset_of!(HealthLog, media_errors) == 160);

/// One entry of the error log (log page 01h).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Number of the error; zero for an entry that is not used.
    pub number: U64,
    /// Queue of the command.
    pub queue: U16,
    /// Identifier of the command.
    pub command_id: U16,
    /// Its status, phase in bit 0.
    pub status_and_phase: U16,
    /// Which byte and bit of the command is wrong.
    pub place: U16,
    /// First logical block with an error.
    pub lba: U64,
    /// Namespace.
    pub namespace: U32,
    reserved_28: [u8; 36],
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// Dword 0 of a completed asynchronous event request (base figure 145).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsynchronousEvent(pub u32);

impl AsynchronousEvent {
    /// Notice: namespaces were attached, detached, resized or formatted.
    pub const NAMESPACES_CHANGED: [u8; 2] = [2, 0];
    /// Notice: a firmware is being activated.
    pub const FIRMWARE_STARTING: [u8; 2] = [2, 1];

    /// What it is about: bits 0 to 2 the type, 8 to 15 which of this type.
    #[must_use]
    pub fn kind(self) -> [u8; 2] {
        let [kind, information, ..] = self.0.to_le_bytes();
        [kind & 7, information]
    }

    /// The log page that tells more, and that must be read to hear of further events of this kind.
    #[must_use]
    pub fn log_page(self) -> u8 {
        self.0.to_le_bytes()[2]
    }
}
