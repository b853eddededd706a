//! Physical region pages: how a command names the memory of its data (base 4.1.1).
//!
//! One page is PRP 1; two are PRP 1 and 2; of more, PRP 2 is the address of a list of all but the first. A list lies in memory that
//! belongs to the slot of the command; since it holds at most [`LIST_ENTRIES`] addresses it ends in the page in which it begins, and the
//! rule that a full page's last entry names the next page never applies.

use crate::spec::PAGE_BYTES;
use std::sync::atomic::Ordering;
use twinlog_pci::{DmaMemory, WORD_BYTES};

/// Most pages of one command: 1 MiB, the size from which disks are no quicker.
pub(crate) const PAGES_MAX: usize = 256;

/// Addresses of a slot's list.
pub(crate) const LIST_ENTRIES: usize = PAGES_MAX;

/// Bytes of a slot's list: half a page.
pub(crate) const LIST_BYTES: usize = LIST_ENTRIES * WORD_BYTES;

const _: () = assert!(PAGE_BYTES.is_multiple_of(LIST_BYTES));

/// The data pointers for `pages`, 1 to [`PAGES_MAX`], with a list at byte `offset` of `memory` where one is needed.
pub(crate) fn describe(
    memory: &impl DmaMemory,
    offset: usize,
    mut pages: impl ExactSizeIterator<Item = u64>,
) -> [u64; 2] {
    let count = pages.len();
    assert!((1..=PAGES_MAX).contains(&count), "a command has 1 to {PAGES_MAX} pages");
    let mut next = || pages.next().expect("counted above");
    match count {
        1 => [next(), 0],
        2 => [next(), next()],
        _ => {
            let first = next();
            for index in 0..count - 1 {
                memory.store(offset + index * WORD_BYTES, next(), Ordering::Relaxed);
            }
            [first, memory.bus_address() + offset as u64]
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// Memory of a controller that is not there.
    pub(crate) struct Plain(pub(crate) Vec<AtomicU64>);

    impl DmaMemory for Plain {
        fn words(&self) -> &[AtomicU64] {
            &self.0
        }

        fn bus_address(&self) -> u64 {
            0x8000_0000
        }
    }

    /// Reads data pointers as base 4.1.1 has them, for data that begins on a page.
    fn walk(memory: &Plain, data: [u64; 2], count: usize) -> Vec<u64> {
        let mut pages = vec![data[0]];
        let mut place = data[1];
        if count <= 2 {
            pages.extend((count == 2).then_some(place));
            return pages;
        }
        while pages.len() < count {
            let offset = usize::try_from(place - memory.bus_address()).expect("inside the memory");
            let entry = memory.load(offset, Ordering::Relaxed);
            let is_last_of_page = (offset + WORD_BYTES).is_multiple_of(PAGE_BYTES);
            if is_last_of_page && pages.len() + 1 < count {
                place = entry;
            } else {
                pages.push(entry);
                place += WORD_BYTES as u64;
            }
        }
        pages
    }

    #[test]
    fn every_number_of_pages_is_read_back_in_every_slot() {
        let memory = Plain((0..4 * LIST_ENTRIES).map(|_| AtomicU64::new(u64::MAX)).collect());
        for slot in 0..4 {
            for count in 1..=PAGES_MAX {
                memory.clear(0, memory.length_bytes());
                let pages: Vec<u64> = (1..=count as u64).map(|page| page * 0x1_0001_0000).collect();
                let data = describe(&memory, slot * LIST_BYTES, pages.iter().copied());
                assert_eq!(walk(&memory, data, count), pages);
                let used = |word: usize| memory.load(word * WORD_BYTES, Ordering::Relaxed) != 0;
                let listed: Vec<usize> = (0..4 * LIST_ENTRIES).filter(|&word| used(word)).collect();
                let expected = if count > 2 { count - 1 } else { 0 };
                assert_eq!(listed, (slot * LIST_ENTRIES..).take(expected).collect::<Vec<_>>(), "its own list only");
            }
        }
    }

    #[test]
    #[should_panic = "1 to 256 pages"]
    fn too_many_pages_are_refused() {
        let memory = Plain((0..LIST_ENTRIES).map(|_| AtomicU64::new(0)).collect());
        let _ = describe(&memory, 0, (0..PAGES_MAX + 1).map(|page| page as u64));
    }

    #[test]
    #[should_panic = "1 to 256 pages"]
    fn no_page_is_refused() {
        let _ = describe(&Plain(Vec::new()), 0, std::iter::empty::<u64>());
    }
}
