//! Stamped sectors: what a sector says about itself, so that any read proves what it is.
//!
//! ```text
//! byte  0  run       u64  the journal's or process's random identity: content of another run is foreign
//!       8  address   u64  the sector's byte position in the target: a misdirected write gives itself away
//!      16  version   u64  the number of the write, counted from 1: a lost write leaves an older one
//!      24  checksum  u64  XXH3 of bytes 0..24 and of 32.., mixed, so that one flipped bit is seen
//!      32  body           words that depend on all three: a lost tail of any length leaves bytes of another version
//! ```
//!
//! Little-endian. A sector has 512 bytes, or is as long as the cell where cells are no multiple of that (unaligned workloads).

use twox_hash::XxHash3_64;

use crate::{
    prng::mix,
    units::{bytes, index},
};

/// The shortest sector that carries a stamp, in bytes.
pub(crate) const STAMP_BYTES: usize = 32;
/// The usual sector.
const SECTOR_BYTES: u64 = 512;

/// What a sector turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Only zeroes.
    Zeroes,
    /// A whole stamp of this run, at its place.
    Version(u64),
    /// A whole stamp of this run that belongs elsewhere.
    Misplaced { address: u64, version: u64 },
    /// A whole stamp of another run.
    Foreign,
    /// None of these: damaged, torn, or never stamped.
    Unstamped,
}

/// The sector length for cells of `cell_bytes`.
pub(crate) fn sector_bytes(cell_bytes: u64) -> u64 {
    if cell_bytes.is_multiple_of(SECTOR_BYTES) { SECTOR_BYTES } else { cell_bytes }
}

/// Stamps `data`, which starts at `address`, sector by sector.
pub(crate) fn stamp(data: &mut [u8], sector: u64, run: u64, (mut address, version): (u64, u64)) {
    for bytes in data.chunks_exact_mut(index(sector)) {
        stamp_sector(bytes, run, address, version);
        address += sector;
    }
}

/// Reads one sector that lies at `address`.
pub(crate) fn examine(sector: &[u8], run: u64, address: u64) -> Found {
    let Some((header, body)) = sector.split_first_chunk::<STAMP_BYTES>() else { return Found::Unstamped };
    let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    if field(24) != checksum(&header[..24], body) {
        return if sector.iter().all(|byte| *byte == 0) { Found::Zeroes } else { Found::Unstamped };
    }
    match (field(0) == run, field(8) == address) {
        (true, true) => Found::Version(field(16)),
        (true, false) => Found::Misplaced { address: field(8), version: field(16) },
        (false, _) => Found::Foreign,
    }
}

fn stamp_sector(sector: &mut [u8], run: u64, address: u64, version: u64) {
    let (header, body) = sector.split_first_chunk_mut::<STAMP_BYTES>().expect("sectors have room for a stamp");
    let mut word = mix(run ^ mix(address ^ mix(version)));
    let mut chunks = body.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    }
    let rest = chunks.into_remainder();
    let length = rest.len();
    rest.copy_from_slice(&word.to_le_bytes()[..length]);
    header[0..8].copy_from_slice(&run.to_le_bytes());
    header[8..16].copy_from_slice(&address.to_le_bytes());
    header[16..24].copy_from_slice(&version.to_le_bytes());
    let sum = checksum(&header[..24], body);
    header[24..].copy_from_slice(&sum.to_le_bytes());
}

/// The sums of header and body in one. The body's is unseeded, because XXH3 derives a new secret for each seed of a long input. Never
/// zero for a sector of zeroes (tested).
fn checksum(header: &[u8], body: &[u8]) -> u64 {
    mix(XxHash3_64::oneshot(body) ^ XxHash3_64::oneshot_with_seed(bytes(body.len()), header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_says_what_it_is() {
        for sector in [32, 33, 100, 512] {
            let mut data = vec![0; index(sector) * 3];
            stamp(&mut data, sector, 7, (1000, 42));
            for (at, bytes) in data.chunks(index(sector)).enumerate() {
                let address = 1000 + sector * at as u64;
                assert_eq!(examine(bytes, 7, address), Found::Version(42));
                assert_eq!(examine(bytes, 8, address), Found::Foreign);
                assert_eq!(examine(bytes, 7, 5), Found::Misplaced { address, version: 42 });
            }
        }
        assert_eq!(examine(&[0; 512], 7, 0), Found::Zeroes);
        assert_eq!(examine(&[0; 32], 0, 0), Found::Zeroes);
        assert_eq!(examine(&[1; 31], 7, 0), Found::Unstamped);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut data = [0; 512];
        stamp(&mut data, 512, 7, (4096, 42));
        for bit in 0..data.len() * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(examine(&data, 7, 4096), Found::Unstamped, "bit {bit}");
            data[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_lost_tail_is_seen() {
        let (mut old, mut new) = ([0; 100], [0; 100]);
        stamp(&mut old, 100, 7, (0, 1));
        stamp(&mut new, 100, 7, (0, 2));
        for kept in 17..100 {
            let mixed = [&new[..kept], &old[kept..]].concat();
            assert_eq!(examine(&mixed, 7, 0), Found::Unstamped, "{kept} bytes kept");
        }
    }

    #[test]
    fn sectors_divide_cells() {
        assert_eq!((sector_bytes(4096), sector_bytes(512), sector_bytes(100), sector_bytes(768)), (512, 512, 100, 768));
    }
}
