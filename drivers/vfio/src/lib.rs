//! Two ways to a PCI function from user space, behind the traits of `twinlog_pci`.
//!
//! | way | confines the function | who may | interrupts |
//! |---|---|---|---|
//! | [`VfioFunction`] | an IOMMU: it reaches what was mapped for it, and nothing else | the user to whom the function's nodes were given | yes |
//! | [`UioFunction`], UNSAFE | nothing: a wrong address overwrites any memory of the machine | root | none |
//!
//! A function gets to either by `twinlog device bind`; nothing here changes who drives it.
//!
//! # Invariants
//!
//! 1. Memory that the function may write is reached through atomics, or is a block of a pool that its handle keeps from everybody; there is no
//!    `&mut` to it, and a register window is used by volatile accesses only.
//! 2. A mapping of memory for the function is alive at least as long as the function can use it: every window and memory holds the function, and
//!    the function holds every pool that it was told of.
//! 3. Offsets and lengths are checked before an address is made of them.
//!
//! # When the process ends
//!
//! With VFIO, however it ends: the kernel stops the function's access to memory and resets it before the pages go to anybody else. With uio, the
//! kernel stops the access too, but after the process's memory has gone: what the function writes in between lands in memory that may be another's.

// Register windows, memory that a device shares, and ioctls.
#![expect(unsafe_code, reason = "mappings, and ioctls of VFIO")]

mod abi;
mod config;
mod confinement;
mod container;
mod iommufd;
mod memory;
mod space;
mod uio;
mod vfio;
mod window;

pub use memory::Memory;
pub use uio::UioFunction;
pub use vfio::VfioFunction;
pub use window::Window;

use std::io;
use twinlog_pci::PciError;

/// Refuses what is no address, before it becomes part of a path: `0000:01:00.0`.
fn checked(address: &str) -> Result<(), PciError> {
    let is_plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.';
    if address.len() <= 16 && address.contains(':') && !address.contains("..") && address.bytes().all(is_plain) {
        return Ok(());
    }
    Err(refused(
        address,
        "open it",
        io::Error::new(io::ErrorKind::InvalidInput, "it is no PCI address, like 0000:01:00.0"),
    ))
}

fn refused(address: &str, action: &str, source: impl Into<io::Error>) -> PciError {
    PciError::Refused { address: address.to_owned(), action: action.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_opens_nothing() {
        for address in ["", "..", "../../x:", "0000:01:00.0/..", "nvme0", "0000:01:00.0000000", "a:..:b"] {
            assert!(checked(address).is_err(), "{address}");
            assert!(VfioFunction::open(address).is_err());
            assert!(UioFunction::open(address).is_err());
        }
        checked("0000:01:00.0").expect("an address");
    }

    #[test]
    fn a_function_that_is_not_there_is_an_error() {
        let error = VfioFunction::open("ffff:ff:1f.7").expect_err("no such function");
        assert!(error.to_string().starts_with("ffff:ff:1f.7: "), "{error}");
        UioFunction::open("ffff:ff:1f.7").expect_err("no such function");
    }
}
