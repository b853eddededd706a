//! What reservation report returns (base 7.5).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

/// Head of a report.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReservationHeader {
    /// Grows with every change of registrations (GEN).
    pub generation: U32,
    /// Type of the reservation; zero for none (RTYPE).
    pub kind: u8,
    /// Hosts that are registered (REGCTL, bytes 5 and 6).
    pub registered: U16,
    reserved_7: [u8; 2],
    /// Whether it persists through power loss (PTPLS).
    pub persists: u8,
    reserved_10: [u8; 54],
}

/// One registered host of an extended report.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisteredHost {
    /// Controller it is registered through (CNTLID).
    pub controller_id: U16,
    /// Bit 0: it holds the reservation (RCSTS).
    pub status: u8,
    reserved_3: [u8; 5],
    /// Its key.
    pub key: U64,
    /// Its identifier.
    pub host_id: [u8; 16],
    reserved_32: [u8; 32],
}

const _: () = assert!(size_of::<ReservationHeader>() == 64);
const _: () = assert!(size_of::<RegisteredHost>() == 64);
