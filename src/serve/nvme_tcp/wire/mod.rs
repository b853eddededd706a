//! The bytes of NVMe/TCP, and nothing else: parsers refuse what the specifications do, writers append to a buffer.
//!
//! | file | what it is | where it is specified |
//! |---|---|---|
//! | [`pdu`] | protocol data units, their digests and alignment | NVMe/TCP transport 1.0, section 3.6 |
//! | [`command`] | submission and completion entries, fabrics commands, status codes | NVMe base 2.0, sections 3.3.3, 4.6 and 6 |
//! | [`auth`] | in-band authentication | NVMe base 2.0, section 8.13.5 |
//! | [`identify`] | what controllers and namespaces say of themselves | NVMe base 2.0, section 5.17; NVM command set 1.0, section 4.1.5 |
//! | [`log`] | log pages | NVMe base 2.0, section 5.16 |

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod auth;
pub mod command;
pub mod identify;
pub mod log;
pub mod pdu;
pub mod reservation;

/// `text` as NVMe writes it into a field: left-justified, filled with spaces (base, section 1.4.2).
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    field.iter_mut().zip(text.bytes()).for_each(|(place, letter)| *place = letter);
    field
}

/// `text` as a field that ends with zeroes.
fn terminated<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    field.iter_mut().take(N - 1).zip(text.bytes()).for_each(|(place, letter)| *place = letter);
    field
}
