//! What identify returns (base 5.17.2, nvm 4.1.5).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

/// Identify controller (CNS 01h); only what is used has a name.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// Vendor (VID) and subsystem vendor.
    pub vendor: [U16; 2],
    /// Serial number, ASCII with spaces at the end.
    pub serial: [u8; 20],
    /// Model, the same.
    pub model: [u8; 40],
    /// Firmware, the same.
    pub firmware: [u8; 8],
    reserved_72: [u8; 5],
    /// Logarithm of the largest transfer in pages; zero for no limit (MDTS, byte 77).
    pub transfer_shift_max: u8,
    /// Identifier of the controller in its subsystem (CNTLID).
    pub controller_id: U16,
    /// Version (VER).
    pub version: U32,
    /// Time to come back from runtime D3, microseconds (RTD3R).
    pub resume_us: U32,
    /// Time a shutdown takes, microseconds; zero for not said (RTD3E, byte 88).
    pub shutdown_us: U32,
    /// Optional asynchronous events (OAES).
    pub events: U32,
    /// Attributes: [`attribute`] (CTRATT, byte 96).
    pub attributes: U32,
    reserved_100: [u8; 158],
    /// Aborts at the same time, less one (ACL, byte 258).
    pub aborts_max: u8,
    /// Asynchronous event requests at the same time, less one (AERL).
    pub events_max: u8,
    reserved_260: [u8; 10],
    /// Longest pause while a firmware is activated, in units of 100 ms; zero for not said (MTFA, byte 270).
    pub activation_units: U16,
    reserved_272: [u8; 240],
    /// Sizes of queue entries: submission and completion, logarithms, smallest in the low and largest in the high nibble (byte 512).
    pub entry_shifts: [u8; 2],
    reserved_514: [u8; 2],
    /// Number of namespaces (NN, byte 516).
    pub namespace_max: U32,
    /// Optional commands: [`once`] (ONCS, byte 520).
    pub commands: U16,
    reserved_522: [u8; 3],
    /// Volatile write cache: bit 0 says that there is one (VWC, byte 525).
    pub write_cache: u8,
    /// Logical blocks written atomically in normal operation, less one (AWUN).
    pub atomic_normal: U16,
    /// The same over a power failure (AWUPF, byte 528).
    pub atomic_power_fail: U16,
    reserved_530: [u8; 6],
    /// Scatter gather lists: bits 0 and 1 say whether there are any, and with addresses of what alignment (SGLS, byte 536).
    pub sgls: U32,
    reserved_540: [u8; 3556],
}

const _: () = assert!(size_of::<IdentifyController>() == 4096);
const _: () = assert!(std::mem::offset_of!(IdentifyController, transfer_shift_max) == 77);
const _: () = assert!(std::mem::offset_of!(IdentifyController, shutdown_us) == 88);
const _: () = assert!(std::mem::offset_of!(IdentifyController, attributes) == 96);
const _: () = assert!(std::mem::offset_of!(IdentifyController, aborts_max) == 258);
const _: () = assert!(std::mem::offset_of!(IdentifyController, activation_units) == 270);
const _: () = assert!(std::mem::offset_of!(IdentifyController, entry_shifts) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, commands) == 520);
const _: () = assert!(std::mem::offset_of!(IdentifyController, write_cache) == 525);
const _: () = assert!(std::mem::offset_of!(IdentifyController, atomic_power_fail) == 528);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sgls) == 536);

/// Bits of [`IdentifyController::commands`].
pub mod once {
    /// Dataset management.
    pub const DATASET: u16 = 1 << 2;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
}

/// Bits of [`IdentifyController::attributes`].
pub mod attribute {
    /// Host identifiers of 128 bits.
    pub const WIDE_HOST_ID: u32 = 1;
}

/// One format of logical blocks (nvm figure 98).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// Bytes of metadata for each logical block (MS).
    pub metadata_bytes: U16,
    /// Logarithm of the bytes of a logical block (LBADS).
    pub data_shift: u8,
    /// Relative performance.
    pub performance: u8,
}

/// Identify namespace (CNS 00h); only what is used has a name.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Logical blocks (NSZE); zero for a namespace that is not active.
    pub size: U64,
    /// Logical blocks that may be allocated (NCAP).
    pub capacity: U64,
    /// Logical blocks that are allocated (NUSE).
    pub used: U64,
    /// Features (NSFEAT): bit 1 says that the namespace has atomic limits of its own.
    pub features: u8,
    /// Number of formats, less one (NLBAF).
    pub format_max: u8,
    /// Which format is in use: bits 0 to 3, and 5 and 6 above them (FLBAS).
    pub format: u8,
    reserved_27: [u8; 3],
    /// Sharing (NMIC): bit 0 says that several controllers may have the namespace.
    pub sharing: u8,
    /// Reservation capabilities (RESCAP, byte 31).
    pub reservations: u8,
    reserved_32: [u8; 2],
    /// Logical blocks written atomically in normal operation, less one (NAWUN, byte 34).
    pub atomic_normal: U16,
    /// The same over a power failure (NAWUPF).
    pub atomic_power_fail: U16,
    reserved_38: [u8; 66],
    /// Globally unique identifier; zero for none (NGUID, byte 104).
    pub guid: [u8; 16],
    /// Extended unique identifier; zero for none (EUI64).
    pub eui64: [u8; 8],
    /// Formats (byte 128).
    pub formats: [LbaFormat; 64],
    reserved_384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, reservations) == 31);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, atomic_power_fail) == 36);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, guid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, formats) == 128);

/// Active namespaces (CNS 02h): ascending, zeroes at the end.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceList(pub [U32; 1024]);
