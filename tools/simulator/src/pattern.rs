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

/// Bytes that lie side by side: those up to the first whole word of the volume, whole words, and the rest.
fn split(offset: u64, length: usize) -> (usize, usize) {
    let head = index(offset.next_multiple_of(8) - offset).min(length);
    (head, head + (length - head) / 8 * 8)
}

/// Puts the bytes of write `id` at byte `offset` of a volume into `bytes`.
pub fn fill(id: WriteId, offset: u64, bytes: &mut [u8]) {
    let (head, tail) = split(offset, bytes.len());
    let at = |position: usize| offset + position as u64;
    for position in (0..head).chain(tail..bytes.len()) {
        bytes[position] = word_bytes(id, at(position) / 8)[index(at(position) % 8)];
    }
    let first = at(head) / 8;
    for (word, part) in (first..).zip(bytes[head..tail].as_chunks_mut::<8>().0) {
        *part = word_bytes(id, word);
    }
}

/// The bytes of write `id` in `range` of a volume; of write 0 zeroes.
#[must_use]
pub fn content(id: WriteId, range: &std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; index(range.end - range.start)];
    if id != WriteId(0) {
        fill(id, range.start, &mut bytes);
    }
    bytes
}

/// Whether `bytes` at `offset` are those of write `id`, filled as `fill`.
#[must_use]
pub fn matches(id: WriteId, fill: Fill, offset: u64, bytes: &[u8]) -> bool {
    if fill == Fill::Zeroes {
        return are_zeroes(bytes);
    }
    let (head, tail) = split(offset, bytes.len());
    let at = |position: usize| offset + position as u64;
    let first = at(head) / 8;
    (0..head)
        .chain(tail..bytes.len())
        .all(|position| bytes[position] == word_bytes(id, at(position) / 8)[index(at(position) % 8)])
        && (first..).zip(bytes[head..tail].as_chunks::<8>().0).all(|(word, part)| *part == word_bytes(id, word))
}

/// Most of what is ever compared is zeroes, so this goes by many bytes at once.
fn are_zeroes(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<128>();
    let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    chunks.iter().all(|chunk| is_zero(chunk)) && is_zero(rest)
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

    #[test]
    fn every_place_of_a_difference_is_seen() {
        for (offset, length) in [(0, 0), (3, 2), (3, 300), (8, 256), (4095, 1), (129, 135)] {
            let (mut bytes, mut zeroes) = (vec![0; length], vec![0; length]);
            fill(WriteId(9), offset, &mut bytes);
            assert!(
                matches(WriteId(9), Fill::Pattern, offset, &bytes) && matches(WriteId(0), Fill::Zeroes, 0, &zeroes)
            );
            for position in 0..length {
                bytes[position] ^= 4;
                zeroes[position] ^= 4;
                assert!(!matches(WriteId(9), Fill::Pattern, offset, &bytes));
                assert!(!matches(WriteId(0), Fill::Zeroes, 0, &zeroes));
                bytes[position] ^= 4;
                zeroes[position] ^= 4;
            }
        }
    }
}
