//! Stamps what is written, journals it, and judges what is read: the model at work during a run.

use std::io;

use crate::{
    engine::Kind,
    journal::{Event, Header, Journal, Record},
    model::{Model, Promise},
    stamp::{Found, examine, sector_bytes, stamp},
    units::{bytes, index},
    workload::{Choice, change},
};

/// How many findings are kept in full; a run stops there.
pub(crate) const FINDINGS_LIMIT: usize = 20;

/// One sector that does not hold what it may hold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Finding {
    /// The first byte of the sector in the target, and its length.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// `lost`, `damaged`, `misplaced`, `never-written` or `unreadable`.
    pub(crate) kind: &'static str,
    /// What had been promised about a lost or damaged sector.
    pub(crate) promise: Option<&'static str>,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// All findings; the first ones in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Findings {
    pub(crate) first: Vec<Finding>,
    /// Sectors of each kind.
    pub(crate) lost_acknowledged: u64,
    pub(crate) lost_fua: u64,
    pub(crate) lost_flushed: u64,
    pub(crate) other: u64,
}

impl Findings {
    /// The number of wrong sectors.
    pub(crate) fn count(&self) -> u64 {
        self.lost_acknowledged + self.lost_fua + self.lost_flushed + self.other
    }

    /// Takes a finding.
    pub(crate) fn add(&mut self, finding: Finding) {
        let counter = match finding.promise {
            Some(name) if name == Promise::Fua.name() => &mut self.lost_fua,
            Some(name) if name == Promise::Flushed.name() => &mut self.lost_flushed,
            Some(_) => &mut self.lost_acknowledged,
            None => &mut self.other,
        };
        *counter += 1;
        if self.first.len() < FINDINGS_LIMIT {
            self.first.push(finding);
        }
    }
}

/// The model with everything that feeds it.
pub(crate) struct Proof {
    pub(crate) header: Header,
    pub(crate) model: Model,
    pub(crate) findings: Findings,
    /// Sectors that were examined.
    pub(crate) examined: u64,
    sector: u64,
    journal: Option<Journal>,
    version: u64,
    /// One bit per cell: a change of it is in flight.
    busy: Vec<u64>,
}

impl Proof {
    /// A proof that goes on after version `last_version`.
    pub(crate) fn new(header: Header, model: Model, journal: Option<Journal>, last_version: u64) -> Self {
        let words = index(header.region.cells().div_ceil(64));
        let sector = sector_bytes(header.region.cell_bytes);
        let findings = Findings::default();
        Self { header, model, findings, examined: 0, sector, journal, version: last_version, busy: vec![0; words] }
    }

    /// Whether no change of the same cells is in flight.
    pub(crate) fn may_start(&self, choice: &Choice) -> bool {
        !choice.kind.changes()
            || self
                .header
                .region
                .range(choice.offset, choice.length)
                .all(|cell| self.busy[cell / 64] & 1 << (cell % 64) == 0)
    }

    /// Prepares a request: stamps what it writes into `data` and journals it, or notes what a read must find at least. Gives its version.
    pub(crate) fn begin(&mut self, choice: &Choice, data: &mut [u8], floors: &mut Vec<u64>) -> u64 {
        let Choice { kind, fua, offset, length } = *choice;
        if kind == Kind::Read {
            floors.clear();
            floors.extend_from_slice(self.model.floors(offset, length));
            return 0;
        }
        self.version += 1;
        let version = self.version;
        match change(kind) {
            Some(change) => {
                self.set_busy(choice, true);
                self.model.issue(version, offset, length, change);
                self.note(&Record { event: Event::Issued(change), fua, version, offset, length });
            }
            None => self.note(&Record::bare(Event::FlushIssued, version)),
        }
        if kind == Kind::Write {
            stamp(&mut data[..index(length)], self.sector, self.header.run, (offset, version));
        }
        version
    }

    /// Takes a request's answer; a read's data and floors are judged.
    pub(crate) fn end(&mut self, choice: &Choice, version: u64, errno: i32, read: (&[u8], &[u64])) {
        let Choice { kind, fua, offset, length } = *choice;
        match (change(kind), errno) {
            (Some(change), 0) => {
                self.set_busy(choice, false);
                self.model.acknowledge(version, offset, length);
                self.note(&Record { event: Event::Acknowledged(change), fua, version, offset, length });
            }
            (Some(change), _) => {
                self.set_busy(choice, false);
                self.note(&Record { event: Event::Failed(change), fua, version, offset, length });
            }
            (None, 0) if kind == Kind::Flush => self.note(&Record::bare(Event::Flushed, version)),
            (None, 0) => self.judge_read(offset, &read.0[..index(length)], read.1),
            (None, _) => {}
        }
    }

    /// Notes that a connection was lost.
    pub(crate) fn session(&mut self) {
        self.note(&Record::bare(Event::Session, 0));
    }

    /// Hands the journal's new records to the kernel.
    pub(crate) fn write_out(&mut self) -> io::Result<()> {
        self.journal.as_mut().map_or(Ok(()), Journal::write_out)
    }

    /// The finding about one sector, if it may not hold what it holds.
    fn judge(&self, address: u64, cell: usize, floor: u64, found: Found) -> Option<Finding> {
        let model = &self.model;
        if model.allows(cell, floor, found) {
            return None;
        }
        let (kind, lost) = match found {
            Found::Misplaced { .. } => ("misplaced", false),
            Found::Version(version) if version > floor => ("never-written", false),
            Found::Foreign if floor == 0 => ("never-written", false),
            Found::Version(_) | Found::Zeroes | Found::Foreign => ("lost", true),
            Found::Unstamped => ("damaged", true),
        };
        let (durable, by) = model.durable(cell);
        let promised = if durable > 0 && !model.allows(cell, durable, found) { by } else { Promise::Acknowledged };
        let promise = (lost && floor > 0).then_some(promised.name());
        Some(Finding {
            offset: address,
            length: self.sector,
            kind,
            promise,
            expected: model.expected(cell, floor),
            found: describe(found),
        })
    }

    /// Judges what a read found, and takes what it saw as floors for later reads.
    fn judge_read(&mut self, offset: u64, data: &[u8], floors: &[u64]) {
        for (number, floor) in floors.iter().enumerate() {
            let cell_bytes = self.header.region.cell_bytes;
            let start = bytes(number) * cell_bytes;
            let examined = self.examine_cell(offset + start, &data[index(start)..index(start + cell_bytes)], *floor);
            if let Some(oldest) = examined.oldest {
                self.model.observe(self.header.region.range(offset + start, cell_bytes).start, oldest);
            }
        }
    }

    /// Examines every sector of one cell, which starts at `position`.
    pub(crate) fn examine_cell(&mut self, position: u64, data: &[u8], floor: u64) -> Examined {
        let cell = self.header.region.range(position, self.header.region.cell_bytes).start;
        let mut versions = (u64::MAX, 0);
        for (number, sector) in data.chunks_exact(index(self.sector)).enumerate() {
            let address = position + bytes(number) * self.sector;
            let found = examine(sector, self.header.run, address);
            let version = if let Found::Version(version) = found { version } else { 0 };
            versions = (versions.0.min(version), versions.1.max(version));
            self.examined += 1;
            if let Some(finding) = self.judge(address, cell, floor, found) {
                self.findings.add(finding);
            }
        }
        Examined { oldest: (versions.0 > 0).then_some(versions.0), torn: versions.0 != versions.1 }
    }

    fn set_busy(&mut self, choice: &Choice, busy: bool) {
        for cell in self.header.region.range(choice.offset, choice.length) {
            let bit = 1 << (cell % 64);
            assert!((self.busy[cell / 64] & bit == 0) == busy, "changes of one cell do not overlap");
            self.busy[cell / 64] ^= bit;
        }
    }

    fn note(&mut self, record: &Record) {
        if let Some(journal) = &mut self.journal {
            journal.append(record);
        }
    }
}

/// What the sectors of one cell turned out to be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Examined {
    /// The oldest version, when every sector has one.
    pub(crate) oldest: Option<u64>,
    /// The sectors are of different versions.
    pub(crate) torn: bool,
}

fn describe(found: Found) -> String {
    match found {
        Found::Zeroes => "zeroes".to_owned(),
        Found::Version(version) => format!("version {version}"),
        Found::Misplaced { address, version } => format!("version {version} of the sector at byte {address}"),
        Found::Foreign => "a stamp of another run".to_owned(),
        Found::Unstamped => "bytes without a valid stamp".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Region;

    const REGION: Region = Region { offset: 0, size_bytes: 8192, cell_bytes: 1024 };

    fn proof() -> Proof {
        let header = Header { run: 5, seed: 0, region: REGION, blank: false };
        Proof::new(header, Model::new(REGION, false), None, 0)
    }

    fn choice(kind: Kind, offset: u64) -> Choice {
        Choice { kind, fua: false, offset, length: 1024 }
    }

    /// Writes one cell and gives its bytes.
    fn write(proof: &mut Proof, offset: u64) -> Vec<u8> {
        let mut data = vec![0; 1024];
        let choice = choice(Kind::Write, offset);
        let version = proof.begin(&choice, &mut data, &mut Vec::new());
        proof.end(&choice, version, 0, (&[], &[]));
        data
    }

    /// Reads one cell as `data` and gives the kinds of findings.
    fn read(proof: &mut Proof, offset: u64, data: &[u8]) -> Vec<&'static str> {
        let mut floors = Vec::new();
        let choice = choice(Kind::Read, offset);
        proof.begin(&choice, &mut [], &mut floors);
        proof.end(&choice, 0, 0, (data, &floors));
        std::mem::take(&mut proof.findings).first.iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn each_way_of_being_wrong_has_its_name() {
        let mut proof = proof();
        let old = write(&mut proof, 0);
        let new = write(&mut proof, 0);
        let other = write(&mut proof, 1024);
        assert!(read(&mut proof, 0, &new).is_empty());
        assert_eq!(read(&mut proof, 0, &old), ["lost", "lost"]);
        assert_eq!(read(&mut proof, 0, &[0; 1024]), ["lost", "lost"]);
        assert_eq!(read(&mut proof, 0, &other), ["misplaced", "misplaced"]);
        let mut flipped = new;
        flipped[600] ^= 4;
        assert_eq!(read(&mut proof, 0, &flipped), ["damaged"]);
        let mut invented = vec![0; 1024];
        stamp(&mut invented, 512, 5, (2048, 9));
        assert_eq!(read(&mut proof, 2048, &invented), ["never-written", "never-written"]);
    }

    #[test]
    fn a_read_may_see_a_write_in_flight_and_then_no_older_one() {
        let mut proof = proof();
        let old = write(&mut proof, 0);
        let mut new = vec![0; 1024];
        let pending = choice(Kind::Write, 0);
        let version = proof.begin(&pending, &mut new, &mut Vec::new());
        assert!(!proof.may_start(&choice(Kind::Zero, 0)) && proof.may_start(&choice(Kind::Read, 0)));
        assert!(read(&mut proof, 0, &old).is_empty());
        let torn = [&new[..512], &old[512..]].concat();
        assert!(read(&mut proof, 0, &torn).is_empty() && read(&mut proof, 0, &old).is_empty());
        assert!(read(&mut proof, 0, &new).is_empty());
        assert_eq!(read(&mut proof, 0, &old), ["lost", "lost"], "what was seen may not vanish");
        proof.end(&pending, version, 5, (&[], &[]));
        assert!(proof.may_start(&choice(Kind::Zero, 0)));
    }

    #[test]
    fn a_read_that_was_sent_before_an_acknowledgement_may_see_the_older_version() {
        let mut proof = proof();
        let old = write(&mut proof, 0);
        let mut floors = Vec::new();
        proof.begin(&choice(Kind::Read, 0), &mut [], &mut floors);
        write(&mut proof, 0);
        proof.end(&choice(Kind::Read, 0), 0, 0, (&old, &floors));
        assert_eq!(proof.findings.count(), 0);
    }
}
