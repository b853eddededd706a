//! What controllers and namespaces say of themselves.

use super::{padded, terminated};
use std::mem::{offset_of, size_of};
use zerocopy::{
    FromZeros, Immutable, IntoBytes,
    little_endian::{U16, U32, U64},
};

/// Bytes of every identify data structure.
pub const IDENTIFY_BYTES: u32 = 4096;

/// Which structure is asked for: CNS (base 2.0, section 5.17.1, figure 273).
pub mod cns {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const DESCRIPTORS: u8 = 0x03;
    pub const NAMESPACE_OF_SET: u8 = 0x05;
    pub const CONTROLLER_OF_SET: u8 = 0x06;
    pub const ACTIVE_NAMESPACES_OF_SET: u8 = 0x07;
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
}

/// NVMe base 2.0, as VS and the controller's VER say it.
pub const VERSION: u32 = 0x0002_0000;

/// The controller (base 2.0, section 5.17.2.1, figure 275).
#[derive(Clone, Debug, FromZeros, Immutable, IntoBytes)]
#[repr(C)]
pub struct Controller {
    vendor: U16,
    subsystem_vendor: U16,
    serial: [u8; 20],
    model: [u8; 40],
    firmware: [u8; 8],
    arbitration_burst: u8,
    oui: [u8; 3],
    /// CMIC: bit 1 several controllers, bit 3 asymmetric namespace access.
    pub multipath: u8,
    /// MDTS: most data of one command, a power of two of pages of 4 KiB.
    pub transfer_pages_log: u8,
    /// CNTLID.
    pub controller: U16,
    version: U32,
    resume_latency: [U32; 2],
    /// OAES.
    pub events: U32,
    /// CTRATT: bit 0, host identifiers of 128 bits.
    pub attributes: U32,
    read_recovery: U16,
    reserved_102: [u8; 9],
    /// CNTRLTYPE: 1 I/O, 2 discovery.
    pub kind: u8,
    fru: [u8; 16],
    retry_delays: [U16; 3],
    reserved_134: [u8; 122],
    admin_commands: U16,
    aborts: u8,
    /// AERL, less one.
    pub event_requests: u8,
    /// FRMW: slots in bits 3:1; bit 0, the first cannot be written.
    pub firmware_updates: u8,
    /// LPA: bit 1 commands supported and effects, bit 2 offsets into logs, bit 5 all lists of what is supported.
    pub logs: u8,
    /// ELPE, less one.
    pub error_entries: u8,
    power_states: u8,
    vendor_commands: u8,
    power_transitions: u8,
    temperatures: [U16; 2],
    reserved_270: [u8; 50],
    /// KAS: granularity of keep alive, in units of 100 ms.
    pub keep_alive: U16,
    reserved_322: [u8; 20],
    /// ANATT: most seconds of a change between access states.
    pub access_change_s: u8,
    /// ANACAP.
    pub access: u8,
    /// ANAGRPMAX.
    pub access_group_max: U32,
    /// NANAGRPID.
    pub access_groups: U32,
    reserved_352: [u8; 160],
    /// SQES and CQES.
    pub entry_bytes_log: [u8; 2],
    /// MAXCMD.
    pub commands_max: U16,
    /// NN: highest id of a namespace.
    pub namespace_max: U32,
    /// ONCS.
    pub commands: U16,
    /// FUSES: bit 0, compare and write.
    pub fused: U16,
    format: u8,
    /// VWC.
    pub write_cache: u8,
    atomic: [U16; 2],
    vendor_io: u8,
    protection: u8,
    /// ACWU: most blocks of a compare and write, less one: one block.
    atomic_compare: U16,
    copy: U16,
    /// SGLS.
    pub descriptors: U32,
    /// MNAN: most namespaces.
    pub namespaces_max: U32,
    reserved_544: [u8; 224],
    subsystem: [u8; 256],
    reserved_1024: [u8; 768],
    /// IOCCSZ: capsules of commands, in units of 16 bytes.
    pub command_capsule: U32,
    /// IORCSZ: those of responses.
    pub response_capsule: U32,
    capsule_offset: U16,
    fabrics: u8,
    /// MSDBD.
    pub descriptors_max: u8,
    optional_fabrics: U16,
    discovery: u8,
    reserved_1807: [u8; 241],
    power: [u8; 1024],
    vendor_specific: [u8; 1024],
}

const _: () = assert!(size_of::<Controller>() == 4096);
const _: () = assert!(offset_of!(Controller, multipath) == 76 && offset_of!(Controller, events) == 92);
const _: () = assert!(offset_of!(Controller, kind) == 111 && offset_of!(Controller, admin_commands) == 256);
const _: () = assert!(offset_of!(Controller, keep_alive) == 320 && offset_of!(Controller, access_change_s) == 342);
const _: () = assert!(offset_of!(Controller, entry_bytes_log) == 512 && offset_of!(Controller, descriptors) == 536);
const _: () = assert!(offset_of!(Controller, fused) == 522 && offset_of!(Controller, atomic_compare) == 532);
const _: () = assert!(offset_of!(Controller, subsystem) == 768 && offset_of!(Controller, command_capsule) == 1792);
const _: () = assert!(offset_of!(Controller, descriptors_max) == 1803 && offset_of!(Controller, power) == 2048);

impl Controller {
    /// What is the same for every controller of a subsystem.
    #[must_use]
    pub fn new(subsystem: &str, serial: &str) -> Self {
        let mut controller = Self::new_zeroed();
        controller.serial = padded(serial);
        controller.model = padded("Twinlog");
        controller.firmware = padded(env!("CARGO_PKG_VERSION"));
        controller.version = U32::new(VERSION);
        controller.subsystem = terminated(subsystem);
        controller
    }
}

/// A namespace (NVM command set 1.0, section 4.1.5.1, figure 97).
#[derive(Clone, Debug, FromZeros, Immutable, IntoBytes)]
#[repr(C)]
pub struct Namespace {
    /// NSZE: blocks.
    pub blocks: U64,
    /// NCAP: blocks that may be allocated.
    pub capacity: U64,
    /// NUSE: blocks that are.
    pub used: U64,
    /// NSFEAT.
    pub features: u8,
    /// NLBAF: formats, less one.
    pub formats: u8,
    /// FLBAS: which of them it has.
    pub formatted: u8,
    reserved_27: [u8; 3],
    /// NMIC: bit 0, several controllers may have it.
    pub shared: u8,
    /// RESCAP.
    pub reservations: u8,
    format_progress: u8,
    /// DLFEAT: what deallocated blocks are read as.
    pub deallocated: u8,
    /// NAWUN, NAWUPF: blocks that are written whole or not at all, less one.
    pub atomic: [U16; 2],
    atomic_compare: U16,
    atomic_boundary: [U16; 3],
    boundary: U16,
    nvm_capacity: [u8; 16],
    /// NPWG, NPWA, NPDG, NPDA, NOWS: what is worth writing and deallocating together, and where it begins, in blocks, less one.
    pub preferred: [U16; 5],
    reserved_74: [u8; 18],
    /// ANAGRPID.
    pub access_group: U32,
    reserved_96: [u8; 8],
    /// NGUID.
    pub nguid: [u8; 16],
    eui64: [u8; 8],
    /// LBAF: a power of two of bytes in bits 23:16, and in bits 25:24 how it performs beside the others: 0 is best.
    pub lba_formats: [U32; 64],
    vendor_specific: [u8; 3712],
}

const _: () = assert!(size_of::<Namespace>() == 4096);
const _: () = assert!(offset_of!(Namespace, shared) == 30 && offset_of!(Namespace, deallocated) == 33);
const _: () = assert!(offset_of!(Namespace, access_group) == 92 && offset_of!(Namespace, nguid) == 104);
const _: () = assert!(offset_of!(Namespace, atomic) == 34 && offset_of!(Namespace, preferred) == 64);
const _: () = assert!(offset_of!(Namespace, lba_formats) == 128 && offset_of!(Namespace, vendor_specific) == 384);

/// A namespace whatever its command set (base 2.0, section 5.17.2.8, figure 280).
#[derive(Clone, Debug, FromZeros, Immutable, IntoBytes)]
#[repr(C)]
pub struct IndependentNamespace {
    /// NSFEAT.
    pub features: u8,
    /// NMIC.
    pub shared: u8,
    /// RESCAP.
    pub reservations: u8,
    format_progress: u8,
    /// ANAGRPID.
    pub access_group: U32,
    reserved_8: [u8; 6],
    /// NSTAT: bit 0, ready.
    pub status: u8,
    reserved_15: [u8; 4081],
}

const _: () = assert!(size_of::<IndependentNamespace>() == 4096);
const _: () = assert!(offset_of!(IndependentNamespace, status) == 14);

/// An empty structure, as bytes.
#[must_use]
pub fn zeroes() -> Vec<u8> {
    vec![0; IDENTIFY_BYTES as usize]
}

/// The list of namespace identification descriptors (base 2.0, section 5.17.2.3): NGUID, UUID and command set of one namespace.
#[must_use]
pub fn descriptors(nguid: &[u8; 16], uuid: &[u8; 16]) -> Vec<u8> {
    let mut list = Vec::with_capacity(IDENTIFY_BYTES as usize);
    for (kind, bytes) in [(2, &nguid[..]), (3, &uuid[..]), (4, &[0])] {
        let length = u8::try_from(bytes.len()).expect("at most 16");
        list.extend_from_slice(&[kind, length, 0, 0]);
        list.extend_from_slice(bytes);
    }
    list.resize(IDENTIFY_BYTES as usize, 0);
    list
}

/// Most entries of a list of namespaces.
pub const LIST_MAX: usize = IDENTIFY_BYTES as usize / 4;

/// A list of namespaces (base 2.0, section 4.6.2): the first [`LIST_MAX`], in order.
#[must_use]
pub fn namespace_list(namespaces: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut list: Vec<u8> = namespaces.into_iter().take(LIST_MAX).flat_map(u32::to_le_bytes).collect();
    list.resize(IDENTIFY_BYTES as usize, 0);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_where_they_must() {
        let all = namespace_list(1..=2000);
        assert_eq!(all.len(), 4096);
        assert_eq!(all[4092..], 1024_u32.to_le_bytes());
        assert_eq!(namespace_list([7])[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
        let list = descriptors(&[1; 16], &[2; 16]);
        assert_eq!((list.len(), &list[..5], &list[20..25]), (4096, &[2, 16, 0, 0, 1][..], &[3, 16, 0, 0, 2][..]));
        assert_eq!(list[40..49], [4, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_controller_s_names_fit() {
        let controller = Controller::new(&"n".repeat(300), &"s".repeat(30));
        let bytes = controller.as_bytes();
        assert_eq!((bytes[4], bytes[23], bytes[24]), (b's', b's', b'T'));
        assert_eq!((bytes[768 + 254], bytes[768 + 255], bytes[82]), (b'n', 0, 2));
    }
}
