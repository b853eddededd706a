//! What writes write: bytes that tell which write they are from and where they belong.

/// Names a write of one history; zero is the state of a new volume: zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u32);

/// What a write leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeroes: write-zeroes, discards, and what was never written.
    Zeroes,
    /// The pattern of its id.
    Pattern,
}

/// The eight bytes of write `id` at word `word` of a volume.
fn word_bytes(id: WriteId, word: u64) -> [u8; 8] {
    let mixed = (u64::from(id.0) << 32 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_le_bytes()
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}

/// Puts the bytes of write `id` at byte `offset` of a volume into `bytes`.
pub fn fill(id: WriteId, mut offset: u64, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let within = index(offset % 8);
        let count = bytes.len().min(8 - within);
        let (part, rest) = bytes.split_at_mut(count);
        part.copy_from_slice(&word_bytes(id, offset / 8)[within..within + count]);
        bytes = rest;
        offset += count as u64;
    }
}

/// Whether `bytes` at `offset` are those of write `id`, filled as `fill`.
#[must_use]
pub fn matches(id: WriteId, fill: Fill, mut offset: u64, mut bytes: &[u8]) -> bool {
    if fill == Fill::Zeroes {
        return bytes.iter().all(|&byte| byte == 0);
    }
    while !bytes.is_empty() {
        let within = index(offset % 8);
        let count = bytes.len().min(8 - within);
        let (part, rest) = bytes.split_at(count);
        if *part != word_bytes(id, offset / 8)[within..within + count] {
            return false;
        }
        bytes = rest;
        offset += count as u64;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_knows_its_write_and_its_place() {
        let mut whole = [0; 64];
        fill(WriteId(3), 1000, &mut whole);
        let mut part = [0; 13];
        fill(WriteId(3), 1017, &mut part);
        assert_eq!(whole[17..30], part);
        assert!(matches(WriteId(3), Fill::Pattern, 1017, &part));
        assert!(!matches(WriteId(4), Fill::Pattern, 1017, &part));
        assert!(!matches(WriteId(3), Fill::Pattern, 1009, &part));
        part[12] ^= 1;
        assert!(!matches(WriteId(3), Fill::Pattern, 1017, &part));
        assert!(matches(WriteId(3), Fill::Zeroes, 0, &[0; 9]) && !matches(WriteId(3), Fill::Zeroes, 0, &[0, 1]));
    }
}
