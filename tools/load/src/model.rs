//! What may be read where: the model that every read is judged by, live and after a crash.
//!
//! The target's region is divided into cells; every request covers whole cells. Every write, zero and trim has a version, counted
//! from 1 over the whole journal, and no two changes of one cell are in flight together (the load loop sees to that), so the versions
//! of a cell are ordered: the **floor** is the version of its last acknowledged change, and what a read may find is
//!
//! | found | allowed when |
//! |---|---|
//! | version v | floor <= v <= last issued version, or a trim was issued at or after the floor and v <= last issued |
//! | zeroes | a zero or trim was issued at or after the floor, or the cell was never acknowledged |
//! | another run's stamp, or no stamp | the cell was never acknowledged and was not known to be blank, or as for zeroes after a trim |
//! | a stamp that belongs elsewhere | never |
//!
//! # Invariants
//!
//! 1. A read in flight is judged by the floor at its sending and by what was issued until its answer.
//! 2. A version that was read is a floor for later reads (`observe`): nothing that a client saw may vanish, acknowledged or not.
//! 3. The durable floor is that of the changes acknowledged with FUA, or acknowledged before a flush was sent that was answered too.

use crate::{stamp::Found, units::index};

/// The most cells of a region: their state takes 16 bytes each at least, 2 GiB in all.
pub(crate) const CELLS_LIMIT: u64 = 1 << 27;
/// Marks a durable floor that a flush made; without it, FUA did.
const BY_FLUSH: u64 = 1 << 63;

/// Cells of a region: positions are in bytes and multiples of `cell_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
    pub(crate) cell_bytes: u64,
}

impl Region {
    /// The number of cells.
    pub(crate) fn cells(&self) -> u64 {
        self.size_bytes / self.cell_bytes
    }

    /// The cells that a range covers; the range lies inside the region.
    pub(crate) fn range(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let first = (offset - self.offset) / self.cell_bytes;
        index(first)..index(first + length / self.cell_bytes)
    }

    /// Whether a range consists of whole cells of the region.
    pub(crate) fn covers(&self, offset: u64, length: u64) -> bool {
        let relative = offset.checked_sub(self.offset);
        length > 0
            && length.is_multiple_of(self.cell_bytes)
            && relative.is_some_and(|relative| {
                relative.is_multiple_of(self.cell_bytes)
                    && relative.checked_add(length).is_some_and(|end| end <= self.size_bytes)
            })
    }
}

/// What a change does to its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Write,
    Zero,
    Trim,
}

/// How strongly a lost change had been promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// Acknowledged without FUA, and no flush after it was answered.
    Acknowledged,
    /// Acknowledged with FUA.
    Fua,
    /// Acknowledged, then covered by a flush that was answered.
    Flushed,
}

impl Promise {
    /// The word in messages and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Fua => "FUA",
            Self::Flushed => "flushed",
        }
    }
}

/// The state of every cell.
pub(crate) struct Model {
    region: Region,
    /// Unwritten cells are known to read as zeroes.
    blank: bool,
    acknowledged: Vec<u64>,
    issued: Vec<u64>,
    /// The last zero or trim that was issued; empty until there is one.
    zeroed: Vec<u64>,
    trimmed: Vec<u64>,
    /// Durable floors; empty until there is one.
    durable: Vec<u64>,
}

impl Model {
    /// A region of which nothing is known but whether it is `blank`.
    pub(crate) fn new(region: Region, blank: bool) -> Self {
        assert!(region.cells() <= CELLS_LIMIT, "checked by the command line");
        let cells = index(region.cells());
        Self {
            region,
            blank,
            acknowledged: vec![0; cells],
            issued: vec![0; cells],
            zeroed: Vec::new(),
            trimmed: Vec::new(),
            durable: Vec::new(),
        }
    }

    /// The cells.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Notes that a change is about to be sent.
    pub(crate) fn issue(&mut self, version: u64, offset: u64, length: u64, change: Change) {
        let range = self.region.range(offset, length);
        self.issued[range.clone()].fill(version);
        if change != Change::Write {
            lazily(&mut self.zeroed, self.acknowledged.len())[range.clone()].fill(version);
        }
        if change == Change::Trim {
            lazily(&mut self.trimmed, self.acknowledged.len())[range].fill(version);
        }
    }

    /// Notes that a change was acknowledged.
    pub(crate) fn acknowledge(&mut self, version: u64, offset: u64, length: u64) {
        raise(&mut self.acknowledged[self.region.range(offset, length)], version);
    }

    /// Notes that an acknowledged change is durable, by FUA or flush.
    pub(crate) fn harden(&mut self, version: u64, offset: u64, length: u64, promise: Promise) {
        let range = self.region.range(offset, length);
        let mark = if promise == Promise::Flushed { BY_FLUSH } else { 0 };
        for floor in &mut lazily(&mut self.durable, self.acknowledged.len())[range] {
            if version > *floor & !BY_FLUSH {
                *floor = version | mark;
            }
        }
    }

    /// Notes that a read found at least `version` everywhere in a cell.
    pub(crate) fn observe(&mut self, cell: usize, version: u64) {
        raise(&mut self.acknowledged[cell..=cell], version);
    }

    /// The acknowledged floors of a range, to be kept while a read is in flight.
    pub(crate) fn floors(&self, offset: u64, length: u64) -> &[u64] {
        &self.acknowledged[self.region.range(offset, length)]
    }

    /// Whether anything was ever sent to a cell.
    pub(crate) fn touched(&self, cell: usize) -> bool {
        self.issued[cell] > 0
    }

    /// The durable floor of a cell and what made it so.
    pub(crate) fn durable(&self, cell: usize) -> (u64, Promise) {
        let floor = self.durable.get(cell).copied().unwrap_or(0);
        (floor & !BY_FLUSH, if floor & BY_FLUSH == 0 { Promise::Fua } else { Promise::Flushed })
    }

    /// Whether a sector of `cell` may hold `found` when `floor` is the oldest version that may be there.
    pub(crate) fn allows(&self, cell: usize, floor: u64, found: Found) -> bool {
        let at_or_after =
            |versions: &Vec<u64>| versions.get(cell).is_some_and(|version| *version > 0 && *version >= floor);
        match found {
            Found::Version(version) => version <= self.issued[cell] && (version >= floor || at_or_after(&self.trimmed)),
            Found::Zeroes => floor == 0 || at_or_after(&self.zeroed),
            Found::Foreign | Found::Unstamped => !self.blank && (floor == 0 || at_or_after(&self.trimmed)),
            Found::Misplaced { .. } => false,
        }
    }

    /// In words: what a sector of `cell` should have held.
    pub(crate) fn expected(&self, cell: usize, floor: u64) -> String {
        let issued = self.issued[cell];
        match (floor, issued) {
            (0, 0) if self.blank => "zeroes (never written)".to_owned(),
            (0, 0) => "anything but this run's stamps (never written)".to_owned(),
            (0, _) => format!("its former content or version up to {issued}"),
            _ if self.zeroed.get(cell) == Some(&floor) && issued == floor => format!("zeroes (version {floor})"),
            _ if issued == floor => format!("version {floor}"),
            _ => format!("version {floor} to {issued}"),
        }
    }
}

fn lazily(versions: &mut Vec<u64>, cells: usize) -> &mut Vec<u64> {
    if versions.is_empty() {
        versions.resize(cells, 0);
    }
    versions
}

fn raise(floors: &mut [u64], version: u64) {
    for floor in floors {
        *floor = version.max(*floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Region = Region { offset: 8192, size_bytes: 8192, cell_bytes: 1024 };

    fn model(blank: bool) -> Model {
        Model::new(REGION, blank)
    }

    /// Which of all findings are allowed: versions 0 to 4 as bits 0 to 4, zeroes 5, foreign 6, unstamped 7.
    fn allowed(model: &Model, cell: usize, floor: u64) -> u32 {
        let others = [Found::Zeroes, Found::Foreign, Found::Unstamped, Found::Misplaced { address: 0, version: 1 }];
        let all = (0..5).map(Found::Version).chain(others);
        all.enumerate().map(|(bit, found)| u32::from(model.allows(cell, floor, found)) << bit).sum()
    }

    #[test]
    fn a_write_may_be_found_from_issue_and_must_be_from_acknowledgement() {
        let mut model = model(false);
        assert_eq!(allowed(&model, 1, 0), 0b1110_0001, "never written");
        model.issue(1, 8192 + 1024, 1024, Change::Write);
        assert_eq!(allowed(&model, 1, 0), 0b1110_0011);
        model.acknowledge(1, 8192 + 1024, 1024);
        assert_eq!(allowed(&model, 1, 1), 0b0000_0010);
        model.issue(3, 8192, 2048, Change::Write);
        assert_eq!(allowed(&model, 1, 1), 0b0000_1110, "version 2 went elsewhere, and its stamp says so");
        assert_eq!(allowed(&model, 0, 0), 0b1110_1111);
        assert_eq!((model.floors(8192, 3072), model.touched(2)), ([0, 1, 0].as_slice(), false));
    }

    #[test]
    fn zero_and_trim_allow_zeroes_and_a_trim_what_was_there() {
        let mut model = model(false);
        for version in 1..=2 {
            model.issue(version, 8192, 1024, Change::Write);
            model.acknowledge(version, 8192, 1024);
        }
        model.issue(3, 8192, 1024, Change::Zero);
        assert_eq!(allowed(&model, 0, 2), 0b0010_1100);
        model.acknowledge(3, 8192, 1024);
        assert_eq!(allowed(&model, 0, 3), 0b0010_1000);
        model.issue(4, 8192, 1024, Change::Trim);
        assert_eq!(allowed(&model, 0, 3), 0b1111_1111);
        model.issue(5, 8192, 1024, Change::Write);
        model.acknowledge(5, 8192, 1024);
        assert_eq!(allowed(&model, 0, 5), 0, "only version 5, which this test does not try");
    }

    #[test]
    fn blank_cells_hold_zeroes_or_what_was_written() {
        let mut model = model(true);
        assert_eq!(allowed(&model, 7, 0), 0b0010_0001);
        model.issue(2, 8192 + 7 * 1024, 1024, Change::Write);
        assert_eq!(allowed(&model, 7, 0), 0b0010_0111);
    }

    #[test]
    fn durable_floors_remember_what_made_them() {
        let mut model = model(false);
        assert_eq!(model.durable(0).0, 0);
        model.harden(4, 8192, 1024, Promise::Fua);
        model.harden(3, 8192, 2048, Promise::Flushed);
        assert_eq!(model.durable(0), (4, Promise::Fua));
        assert_eq!(model.durable(1), (3, Promise::Flushed));
        model.harden(4, 8192, 1024, Promise::Flushed);
        assert_eq!(model.durable(0), (4, Promise::Fua));
    }

    #[test]
    fn ranges_are_whole_cells_of_the_region() {
        assert!(REGION.covers(8192, 8192) && REGION.covers(15360, 1024));
        for (offset, length) in [
            (8192, 0),
            (8193, 1024),
            (8192, 1000),
            (7168, 1024),
            (15360, 2048),
            (u64::MAX - 1023, 1024),
            (8192, u64::MAX),
        ] {
            assert!(!REGION.covers(offset, length), "{offset} {length}");
        }
    }
}
