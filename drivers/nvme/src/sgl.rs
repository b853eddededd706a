//! Scatter gather lists: the other way for a command to name the memory of its data (base 4.1.2), where the controller knows them.
//!
//! A piece of memory of any length is one descriptor of two words; a list of pages ([`crate::prp`]) has a word for each page. So a list of
//! descriptors is the shorter one where blocks lie side by side, and needs no list at all where all of them do: the descriptor of a single piece
//! stands in the command, and the controller reads nothing besides. What is scattered, and what PRPs name without a list (one page or two), has PRPs.
//! Admin commands always have them, as PCIe demands.
//!
//! Descriptors of several pieces lie in one segment, in the memory of the command's slot, which the command names as the last segment.

use crate::spec::{PAGE_BYTES, SglDescriptor, sgl_type};
use std::sync::atomic::Ordering;
use twinlog_pci::{DmaMemory, WORD_BYTES};

/// Pages that PRPs name without a list.
const PRP_PAGES_MAX: usize = 2;

/// Words of a descriptor.
const WORDS: usize = 2;

/// The descriptor for the command of `pages`, with others at byte `offset` of `memory` where several are needed; none if PRPs are shorter.
pub(crate) fn describe(
    memory: &impl DmaMemory,
    offset: usize,
    pages: impl ExactSizeIterator<Item = u64> + Clone,
) -> Option<SglDescriptor> {
    if pages.len() <= PRP_PAGES_MAX {
        return None;
    }
    let prp_words = pages.len() - 1;
    let pieces = Pieces(pages.peekable());
    // No longer than the list of pages, which fits into a slot's memory.
    let count = pieces.clone().take(prp_words / WORDS + 1).count();
    if count == 1 {
        return pieces.last().map(|(address, pages)| SglDescriptor::new(sgl_type::DATA_BLOCK, address, bytes(pages)));
    }
    if count * WORDS > prp_words {
        return None;
    }
    for (index, (address, pages)) in pieces.enumerate() {
        let words = SglDescriptor::new(sgl_type::DATA_BLOCK, address, bytes(pages)).words();
        for (word, value) in words.into_iter().enumerate() {
            memory.store(offset + (index * WORDS + word) * WORD_BYTES, value, Ordering::Relaxed);
        }
    }
    let length = u32::try_from(count * size_of::<SglDescriptor>()).expect("half a page at most");
    Some(SglDescriptor::new(sgl_type::LAST_SEGMENT, memory.bus_address() + offset as u64, length))
}

fn bytes(pages: u32) -> u32 {
    pages * u32::try_from(PAGE_BYTES).expect("a small number")
}

/// Pages as pieces: address, and number of pages that lie side by side from there on.
#[derive(Clone)]
struct Pieces<I: Iterator<Item = u64>>(std::iter::Peekable<I>);

impl<I: Iterator<Item = u64>> Iterator for Pieces<I> {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        let address = self.0.next()?;
        let mut count = 1;
        while self.0.next_if_eq(&(address + u64::from(bytes(count)))).is_some() {
            count += 1;
        }
        Some((address, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prp::{LIST_BYTES, LIST_ENTRIES, PAGES_MAX, tests::Plain};
    use std::sync::atomic::AtomicU64;

    const PAGE: u64 = PAGE_BYTES as u64;

    /// Pages that a descriptor names, read as base 4.1.2 has it; what lies beside the slot's own list is untouched.
    fn walk(memory: &Plain, slot: usize, descriptor: SglDescriptor) -> Vec<u64> {
        let [address, rest] = descriptor.words();
        let length = rest & u64::from(u32::MAX);
        if rest >> 60 == 0 {
            assert_eq!(rest >> 32, 0, "a data block, and nothing else");
            assert_eq!(length % PAGE, 0);
            return (0..length / PAGE).map(|page| address + page * PAGE).collect();
        }
        assert_eq!(rest >> 32, 0x3000_0000, "the last segment");
        assert_eq!(address, memory.bus_address() + (slot * LIST_BYTES) as u64);
        assert!(length.is_multiple_of(16) && length <= LIST_BYTES as u64);
        let first = slot * LIST_ENTRIES;
        let word = |index: usize| memory.0[first + index].load(Ordering::Relaxed);
        let count = usize::try_from(length).expect("small") / WORD_BYTES;
        assert!(memory.0[first + count..].iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert!(memory.0[..first].iter().all(|word| word.load(Ordering::Relaxed) == 0));
        (0..count / WORDS)
            .flat_map(|index| {
                let (address, rest) = (word(index * WORDS), word(index * WORDS + 1));
                assert_eq!(rest >> 32, 0, "a data block");
                (0..rest / PAGE).map(move |page| address + page * PAGE)
            })
            .collect()
    }

    /// Pages in pieces of `piece` each.
    fn scattered(count: usize, piece: usize) -> Vec<u64> {
        (0..count).map(|page| 0x1_0000_0000 * (page / piece) as u64 + (page % piece) as u64 * PAGE).collect()
    }

    #[test]
    fn every_number_of_pages_in_pieces_of_every_size_is_read_back() {
        let mut found = [0; 3];
        for count in 1..=PAGES_MAX {
            for piece in 1..=count {
                let memory = Plain((0..2 * LIST_ENTRIES).map(|_| AtomicU64::new(0)).collect());
                let pages = scattered(count, piece);
                let pieces = count.div_ceil(piece);
                match describe(&memory, LIST_BYTES, pages.iter().copied()) {
                    Some(descriptor) => {
                        assert!(count > 2 && (pieces == 1 || pieces * 2 < count), "{count} pages, {pieces} pieces");
                        assert_eq!(walk(&memory, 1, descriptor), pages);
                        found[usize::from(pieces > 1)] += 1;
                    }
                    None => {
                        assert!(count <= 2 || (pieces > 1 && pieces * 2 > count - 1), "{count} pages, {pieces} pieces");
                        found[2] += 1;
                    }
                }
            }
        }
        assert!(found.iter().all(|&count| count > 100), "{found:?}");
    }

    #[test]
    fn what_lies_side_by_side_only_backwards_is_scattered() {
        let memory = Plain((0..LIST_ENTRIES).map(|_| AtomicU64::new(0)).collect());
        assert_eq!(describe(&memory, 0, [4, 3, 2, 1].map(|page| page * PAGE).into_iter()), None);
        assert_eq!(describe(&memory, 0, [1, 1, 1, 1].map(|page| page * PAGE).into_iter()), None);
    }
}
