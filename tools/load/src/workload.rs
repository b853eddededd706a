//! Which request comes next: an endless sequence that the seed determines.

use crate::{
    engine::Kind,
    model::{Change, Region},
    prng::Prng,
    units::BlockRange,
};

/// What the requests are like. Percentages are of 100.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) region: Region,
    /// Lengths; multiples of the region's cell.
    pub(crate) blocks: BlockRange,
    pub(crate) random: bool,
    /// Reads among all requests.
    pub(crate) read_percent: u8,
    /// Zeroes and trims among the changes.
    pub(crate) zero_percent: u8,
    pub(crate) trim_percent: u8,
    /// Changes that carry FUA.
    pub(crate) fua_percent: u8,
    /// One flush after this many changes; zero for none.
    pub(crate) flush_every: u64,
}

/// A request that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kind: Kind,
    pub(crate) fua: bool,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Choice {
    /// A flush.
    pub(crate) const FLUSH: Self = Self { kind: Kind::Flush, fua: false, offset: 0, length: 0 };
}

/// The change that a request of this kind makes.
pub(crate) fn change(kind: Kind) -> Option<Change> {
    match kind {
        Kind::Write => Some(Change::Write),
        Kind::Zero => Some(Change::Zero),
        Kind::Trim => Some(Change::Trim),
        Kind::Read | Kind::Flush => None,
    }
}

/// The sequence.
pub(crate) struct Workload {
    shape: Shape,
    prng: Prng,
    /// Where the next sequential request starts, relative to the region.
    cursor: u64,
    changes: u64,
}

impl Workload {
    /// The sequence that `seed` determines.
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        let Shape { region, blocks, .. } = shape;
        assert!(region.cells() > 0 && blocks.max <= region.size_bytes, "a request fits into the region");
        assert!(
            blocks.min.is_multiple_of(region.cell_bytes) && blocks.max.is_multiple_of(region.cell_bytes),
            "requests are whole cells"
        );
        Self { shape, prng: Prng::new(seed), cursor: 0, changes: 0 }
    }

    /// One write after the other over the whole region, `block` bytes each (fewer at its end), once.
    pub(crate) fn fill(region: Region, block: u64) -> impl FnMut() -> Option<Choice> {
        let mut cursor = 0;
        move || {
            let length = block.min(region.size_bytes - cursor);
            let choice = Choice { kind: Kind::Write, fua: false, offset: region.offset + cursor, length };
            cursor += length;
            (length > 0).then_some(choice)
        }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Choice {
        let Shape { flush_every, read_percent, zero_percent, trim_percent, fua_percent, .. } = self.shape;
        if flush_every > 0 && self.changes == flush_every {
            self.changes = 0;
            return Choice::FLUSH;
        }
        let length = self.length();
        let offset = self.shape.region.offset + self.place(length);
        if self.prng.percent(read_percent) {
            return Choice { kind: Kind::Read, fua: false, offset, length };
        }
        self.changes += 1;
        let fua = self.prng.percent(fua_percent);
        let kind = match self.prng.percent(zero_percent) {
            true => Kind::Zero,
            false if self.prng.percent(trim_percent) => Kind::Trim,
            false => Kind::Write,
        };
        Choice { kind, fua, offset, length }
    }

    fn length(&mut self) -> u64 {
        let BlockRange { min, max } = self.shape.blocks;
        if min == max {
            return min;
        }
        let cell = self.shape.region.cell_bytes;
        min + cell * self.prng.below((max - min) / cell + 1)
    }

    fn place(&mut self, length: u64) -> u64 {
        let Region { size_bytes, cell_bytes, .. } = self.shape.region;
        if self.shape.random {
            return self.prng.below((size_bytes - length) / cell_bytes + 1) * cell_bytes;
        }
        if self.cursor + length > size_bytes {
            self.cursor = 0;
        }
        self.cursor += length;
        self.cursor - length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Region = Region { offset: 1024, size_bytes: 64 * 512, cell_bytes: 512 };

    fn shape(random: bool) -> Shape {
        let blocks = BlockRange { min: 512, max: 4096 };
        let percent = (50, 10, 10, 30);
        Shape {
            region: REGION,
            blocks,
            random,
            read_percent: percent.0,
            zero_percent: percent.1,
            trim_percent: percent.2,
            fua_percent: percent.3,
            flush_every: 5,
        }
    }

    #[test]
    fn requests_are_whole_cells_inside_the_region_and_of_every_kind() {
        for random in [true, false] {
            let mut workload = Workload::new(shape(random), 1);
            let mut seen = [0; 5];
            for _ in 0..5000 {
                let choice = workload.next();
                seen[Kind::ALL.iter().position(|kind| *kind == choice.kind).unwrap()] += 1;
                assert!(choice.kind == Kind::Flush || REGION.covers(choice.offset, choice.length), "{choice:?}");
                assert!(choice.length <= 4096 && (choice.kind.changes() || !choice.fua));
            }
            assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
            let changes: u32 = seen[1] + seen[2] + seen[3];
            assert!(seen[4].abs_diff(changes / 5) <= 1, "one flush after five changes");
        }
    }

    #[test]
    fn every_cell_is_reached_and_one_seed_gives_one_sequence() {
        let mut first = Workload::new(shape(true), 9);
        let mut second = Workload::new(shape(true), 9);
        let mut seen = [false; 64];
        for _ in 0..5000 {
            let choice = first.next();
            assert_eq!(choice, second.next());
            if choice.kind != Kind::Flush {
                seen[REGION.range(choice.offset, choice.length)].fill(true);
            }
        }
        assert_eq!(seen, [true; 64]);
    }

    #[test]
    fn a_fill_covers_the_region_once() {
        let mut next = Workload::fill(REGION, 5 * 512);
        let mut end = REGION.offset;
        while let Some(choice) = next() {
            assert_eq!((choice.kind, choice.offset), (Kind::Write, end));
            end += choice.length;
        }
        assert_eq!(end, REGION.offset + REGION.size_bytes);
    }
}
