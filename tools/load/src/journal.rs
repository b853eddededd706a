//! The journal of a run: every change before it is sent, every acknowledgement after it came.
//!
//! ```text
//! header, 64 bytes   magic "TWLLOAD1", then u64: run, seed, region offset, region size, cell bytes, flags (1 = blank), XXH3 of bytes 0..56
//! record, 32 bytes   event u8, change u8, fua u8, zero u8, length in cells u32, version u64, offset in bytes u64, XXH3 of bytes 0..24
//! ```
//!
//! Little-endian. A record's checksum is seeded with the run and the record's number, so that no record passes for another.
//!
//! # Invariants
//!
//! 1. The record of a change is in the page cache before the change is sent: `write_out` comes before the engine's turn. A change that
//!    the target holds is therefore always known, also when this process is killed.
//! 2. An acknowledgement is recorded after it came and before anything newer is sent. One that a kill of this process prevents makes
//!    the proof weaker by that write, never wrong.
//! 3. A flush covers what was acknowledged, in journal order, before its issue. A loss of the connection ends a session: what was not
//!    flushed until then is never counted as flushed, because a server that crashed may have dropped it.
//! 4. A tail shorter than a record is what a kill leaves: it is cut off. Any other damage is an error that names the byte.
//!
//! It is not synchronised to the disk: it survives the death of processes, not that of the machine that runs the load.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
};

use twox_hash::XxHash3_64;

use crate::{
    model::{CELLS_LIMIT, Change, Model, Promise, Region},
    prng::mix,
    stamp::STAMP_BYTES,
    units::bytes,
};

const MAGIC: &[u8; 8] = b"TWLLOAD1";
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const RECORD_BYTES: usize = 32;
/// Read ahead: two thousand records.
const READ_BYTES: usize = 64 << 10;
const FLAG_BLANK: u64 = 1;
/// Flushes in flight at one time: no more than there are slots.
const OPEN_FLUSHES_LIMIT: usize = crate::engine::SLOTS_LIMIT;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a journal of twinlog-load, or its header is damaged")]
    Header,
    #[error("it is damaged at byte {0}")]
    Damaged(u64),
}

/// What a journal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) run: u64,
    pub(crate) seed: u64,
    pub(crate) region: Region,
    pub(crate) blank: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A change is about to be sent.
    Issued(Change),
    /// A change was acknowledged.
    Acknowledged(Change),
    /// A change was answered with an error: it may or may not be there.
    Failed(Change),
    /// A flush is about to be sent.
    FlushIssued,
    /// A flush was answered.
    Flushed,
    /// A process began to use the journal, or a connection was lost.
    Session,
}

/// One event with its range; zero where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) event: Event,
    pub(crate) fua: bool,
    pub(crate) version: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Record {
    /// An event that concerns no range.
    pub(crate) fn bare(event: Event, version: u64) -> Self {
        Self { event, fua: false, version, offset: 0, length: 0 }
    }
}

/// A journal that is being written.
pub(crate) struct Journal {
    file: File,
    header: Header,
    records: u64,
    pending: Vec<u8>,
}

impl Journal {
    /// Starts a journal in a new file.
    pub(crate) fn create(path: &Path, header: Header) -> Result<Self, JournalError> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&encode_header(&header))?;
        Ok(Self::started(file, header, 0))
    }

    /// Goes on with a journal of which `records` whole records were read; cuts off a torn tail.
    pub(crate) fn resume(path: &Path, header: Header, records: u64) -> Result<Self, JournalError> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let end = bytes(HEADER_BYTES) + records * bytes(RECORD_BYTES);
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(Self::started(file, header, records))
    }

    /// Takes a record; it reaches the file with the next `write_out`.
    pub(crate) fn append(&mut self, record: &Record) {
        self.pending.extend(encode_record(&self.header, self.records, record));
        self.records += 1;
    }

    /// Hands everything that was appended to the kernel, in one system call.
    pub(crate) fn write_out(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.file.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }

    fn started(file: File, header: Header, records: u64) -> Self {
        let mut journal = Self { file, header, records, pending: Vec::with_capacity(1 << 20) };
        journal.append(&Record::bare(Event::Session, 0));
        journal
    }
}

/// What the records of a journal add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Totals {
    pub(crate) issued: u64,
    pub(crate) acknowledged: u64,
    /// Acknowledged with FUA.
    pub(crate) fua: u64,
    /// Acknowledged and covered by a flush.
    pub(crate) flushed: u64,
    pub(crate) failed: u64,
    #[serde(skip)]
    pub(crate) records: u64,
    #[serde(skip)]
    pub(crate) last_version: u64,
}

/// A journal that was read back.
pub(crate) struct Replay {
    pub(crate) header: Header,
    pub(crate) model: Model,
    pub(crate) totals: Totals,
}

/// Reads a journal into the model of what must and what may be on the target. Reads the file twice, in constant memory beside the model:
/// first to learn which flushes were answered, then to build.
pub(crate) fn replay(path: &Path) -> Result<Replay, JournalError> {
    replay_from(|| File::open(path))
}

/// The same of any source that can be read twice.
pub(crate) fn replay_from<R: Read>(open: impl Fn() -> io::Result<R>) -> Result<Replay, JournalError> {
    let covered = flush_points(&mut Reader::new(open()?)?)?;
    let mut reader = Reader::new(open()?)?;
    let mut model = Model::new(reader.header.region, reader.header.blank);
    let mut totals = Totals::default();
    let mut session = 0;
    while let Some(record) = reader.next()? {
        let Record { version, offset, length, .. } = record;
        totals.last_version = totals.last_version.max(version);
        match record.event {
            Event::Session => session += 1,
            Event::Issued(change) => {
                totals.issued += 1;
                model.issue(version, offset, length, change);
            }
            Event::Acknowledged(_) => {
                totals.acknowledged += 1;
                model.acknowledge(version, offset, length);
                if record.fua {
                    totals.fua += 1;
                    model.harden(version, offset, length, Promise::Fua);
                }
                if reader.records < covered[session] {
                    totals.flushed += 1;
                    model.harden(version, offset, length, Promise::Flushed);
                }
            }
            Event::Failed(_) => totals.failed += 1,
            Event::FlushIssued | Event::Flushed => {}
        }
    }
    totals.records = reader.records;
    Ok(Replay { header: reader.header, model, totals })
}

/// For each session, the place of the last flush that was answered in it: what was acknowledged before that place is flushed.
fn flush_points<R: Read>(reader: &mut Reader<R>) -> Result<Vec<u64>, JournalError> {
    let mut points = vec![0];
    let mut open: Vec<(u64, u64)> = Vec::new();
    while let Some(record) = reader.next()? {
        match record.event {
            Event::Session => {
                points.push(0);
                open.clear();
            }
            Event::FlushIssued if open.len() == OPEN_FLUSHES_LIMIT => {
                return Err(JournalError::Damaged(reader.position()));
            }
            Event::FlushIssued => open.push((record.version, reader.records)),
            Event::Flushed => {
                if let Some(at) = open.iter().position(|(version, _)| *version == record.version) {
                    let (_, place) = open.swap_remove(at);
                    let point = points.last_mut().expect("never empty");
                    *point = place.max(*point);
                }
            }
            _ => {}
        }
    }
    Ok(points)
}

/// Reads records in order.
struct Reader<R> {
    source: BufReader<R>,
    header: Header,
    records: u64,
}

impl<R: Read> Reader<R> {
    fn new(source: R) -> Result<Self, JournalError> {
        let mut source = BufReader::with_capacity(READ_BYTES, source);
        let mut bytes = [0; HEADER_BYTES];
        source.read_exact(&mut bytes).map_err(|_| JournalError::Header)?;
        Ok(Self { source, header: decode_header(&bytes).ok_or(JournalError::Header)?, records: 0 })
    }

    /// The next record; none at the end or at a torn tail.
    fn next(&mut self) -> Result<Option<Record>, JournalError> {
        let mut record = [0; RECORD_BYTES];
        match self.source.read_exact(&mut record) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let decoded =
            decode_record(&self.header, self.records, &record).ok_or(JournalError::Damaged(self.position()))?;
        self.records += 1;
        Ok(Some(decoded))
    }

    /// The byte at which the next record starts.
    fn position(&self) -> u64 {
        bytes(HEADER_BYTES) + self.records * bytes(RECORD_BYTES)
    }
}

pub(crate) fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let Region { offset, size_bytes, cell_bytes } = header.region;
    let flags = if header.blank { FLAG_BLANK } else { 0 };
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    for (at, field) in [header.run, header.seed, offset, size_bytes, cell_bytes, flags].into_iter().enumerate() {
        bytes[8 + at * 8..16 + at * 8].copy_from_slice(&field.to_le_bytes());
    }
    let sum = XxHash3_64::oneshot(&bytes[..56]);
    bytes[56..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

pub(crate) fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
    let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte]));
    let region = Region { offset: field(3), size_bytes: field(4), cell_bytes: field(5) };
    let sound = &bytes[..8] == MAGIC
        && field(7) == XxHash3_64::oneshot(&bytes[..56])
        && field(6) <= FLAG_BLANK
        && (STAMP_BYTES as u64..=32 << 20).contains(&region.cell_bytes)
        && region.size_bytes.is_multiple_of(region.cell_bytes)
        && (1..=CELLS_LIMIT).contains(&region.cells())
        && region.offset.checked_add(region.size_bytes).is_some_and(|end| end <= 1 << 62);
    sound.then(|| Header { run: field(1), seed: field(2), region, blank: field(6) == FLAG_BLANK })
}

pub(crate) fn encode_record(header: &Header, number: u64, record: &Record) -> [u8; RECORD_BYTES] {
    let change = |change: Change| match change {
        Change::Write => 1,
        Change::Zero => 2,
        Change::Trim => 3,
    };
    let (kind, change) = match record.event {
        Event::Issued(kind) => (1, change(kind)),
        Event::Acknowledged(kind) => (2, change(kind)),
        Event::Failed(kind) => (3, change(kind)),
        Event::FlushIssued => (4, 0),
        Event::Flushed => (5, 0),
        Event::Session => (6, 0),
    };
    let cells = u32::try_from(record.length / header.region.cell_bytes).expect("requests are at most 32 MiB");
    let mut bytes = [0; RECORD_BYTES];
    bytes[..3].copy_from_slice(&[kind, change, u8::from(record.fua)]);
    bytes[4..8].copy_from_slice(&cells.to_le_bytes());
    bytes[8..16].copy_from_slice(&record.version.to_le_bytes());
    bytes[16..24].copy_from_slice(&record.offset.to_le_bytes());
    let sum = record_checksum(header, number, &bytes[..24]);
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode_record(header: &Header, number: u64, bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
    let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    if field(24) != record_checksum(header, number, &bytes[..24]) || bytes[2] > 1 || bytes[3] != 0 {
        return None;
    }
    let change = match bytes[1] {
        1 => Some(Change::Write),
        2 => Some(Change::Zero),
        3 => Some(Change::Trim),
        _ => None,
    };
    let event = match bytes[0] {
        1 => Event::Issued(change?),
        2 => Event::Acknowledged(change?),
        3 => Event::Failed(change?),
        4 => Event::FlushIssued,
        5 => Event::Flushed,
        6 => Event::Session,
        _ => return None,
    };
    let length = (field(0) >> 32) * header.region.cell_bytes;
    let record = Record { event, fua: bytes[2] == 1, version: field(8), offset: field(16), length };
    let ranged = matches!(event, Event::Issued(_) | Event::Acknowledged(_) | Event::Failed(_));
    let sound = if ranged { header.region.covers(record.offset, length) } else { record.offset == 0 && length == 0 };
    (sound && record.version < 1 << 62).then_some(record)
}

pub(crate) fn record_checksum(header: &Header, number: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(mix(header.run ^ mix(number)), bytes)
}

#[cfg(test)]
mod tests;
