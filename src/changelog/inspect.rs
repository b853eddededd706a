//! An offline, read-only view of one lane for people: the library half of `twinlog log show|verify`.
//!
//! It reads a region through a plain function, writes nothing, and judges with the code of recovery ([`Scan`]).
//!
//! # What is shown
//!
//! The newest record (highest epoch, then highest position) ends at `newest`. Everything that can be above an applied position lies in the
//! lap before that: `newest - ring .. newest`. Records are shown in the order of positions; what is no whole record of its position is
//! shown as a gap. A gap before the first record is normal: records partly overwritten, or the lap that a recovery skipped. A later gap
//! is a torn tail or damage, which [`Inspector::verify`] tells apart as far as anyone can.

use crate::{
    base::{Epoch, Lsn},
    changelog::{
        reader::RingReader,
        ring::{LSN_MAX, Ring},
        scan::{EndReason, Scan, ScanError, ScanStart, ScanStep},
    },
    format::{
        lane_header::{LANE_HEADER_BYTES, LaneHeader, LaneHeaderError, PortionRole},
        record::{
            RECORD_ALIGN, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RawRecord, RecordExpected, RecordFault, RecordHeader,
        },
    },
};
use serde::Serialize;
use std::io;
use twinlog_device::{DeviceError, DeviceErrorKind, DurabilityClass, LogCompletion, LogInfo, LogMemory, Token};

/// Whose lane a region is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneRow {
    /// Pool id, 32 hexadecimal digits.
    pub pool: String,
    /// `own` or `mirror`.
    pub role: &'static str,
    /// Portion id, 32 hexadecimal digits; zeroes when it was formatted by a program that knew of none.
    pub portion: String,
    /// The lane.
    pub lane: u16,
    /// Lanes of the portion.
    pub lane_count: u16,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Position after the newest record; zero when there is none.
    pub newest_lsn: u64,
}

/// Part of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "row", rename_all = "kebab-case")]
pub enum Row {
    /// A record.
    Record(RecordRow),
    /// Positions without a whole record.
    Gap {
        /// First position.
        lsn: u64,
        /// Position after the last.
        end_lsn: u64,
    },
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordRow {
    /// Its position.
    pub lsn: u64,
    /// Position of the next.
    pub end_lsn: u64,
    /// Where it begins in the region, in bytes.
    pub region_offset_bytes: u64,
    /// Its kind.
    pub kind: &'static str,
    /// Whether header and payload are whole; otherwise the payload is damaged.
    pub whole: bool,
    /// Its author's epoch.
    pub epoch: u64,
    /// Records before this position were stable when it was made.
    pub stable_lsn: u64,
    /// The object it changes.
    pub object: u64,
    /// First byte that it changes.
    pub offset_bytes: u64,
    /// Length or size, by kind.
    pub argument: u64,
    /// Flags, by kind.
    pub flags: u16,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The request that it came with.
    pub request_id: u64,
}

/// What [`Inspector::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Where it began.
    pub from_lsn: u64,
    /// Whole changes from there on.
    pub changes: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Position after the last whole record.
    pub end_lsn: u64,
    /// Highest epoch of a record.
    pub epoch: u64,
    /// `clean`, `torn-tail`, `older-epoch` or `full`.
    pub end: &'static str,
    /// What lies at the end, in words; empty when it is clean or full.
    pub detail: String,
    /// Proof that a record is missing which may have been answered.
    pub hole: Option<String>,
}

/// One lane under inspection. `read` fills a buffer from an offset of the region.
#[derive(Debug)]
pub struct Inspector<R> {
    read: R,
    region_bytes: u64,
    header: LaneHeader,
    ring: Ring,
    newest: Lsn,
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> Inspector<R> {
    /// Reads the lane header and looks for the newest record: reads the whole region once.
    ///
    /// # Errors
    /// When the region cannot be read or is no lane.
    pub fn open(mut read: R, region_bytes: u64) -> Result<Self, ScanError> {
        let ring = Ring::of_region(region_bytes).ok_or(LaneHeaderError::NotALane)?;
        let mut block = vec![0; usize::try_from(LANE_HEADER_BYTES).expect("one block")];
        read(0, &mut block).map_err(|error| device_error(0, LANE_HEADER_BYTES, &error))?;
        let header = LaneHeader::read(&block, region_bytes)?;
        let mut inspector = Self { read, region_bytes, header, ring, newest: Lsn(0) };
        inspector.newest = inspector.find_newest()?;
        Ok(inspector)
    }

    /// Whose lane it is.
    #[must_use]
    pub fn lane(&self) -> LaneRow {
        let identity = &self.header.identity;
        LaneRow {
            pool: identity.pool.to_string(),
            role: match identity.role {
                PortionRole::Own => "own",
                PortionRole::Mirror => "mirror",
            },
            portion: self.header.portion.to_string(),
            lane: identity.lane.0,
            lane_count: identity.lane_count,
            ring_bytes: self.ring.bytes(),
            newest_lsn: self.newest.0,
        }
    }

    /// Calls `show` with everything in the newest lap, in the order of positions, until it returns false.
    ///
    /// # Errors
    /// When the region cannot be read.
    pub fn rows(&mut self, mut show: impl FnMut(Row) -> bool) -> Result<(), ScanError> {
        let (from, expected) = (self.oldest(), self.expected());
        let (ring, newest) = (self.ring, self.newest);
        let mut reader = self.reader(from, newest);
        let (mut position, mut gap) = (from, from);
        while position < newest {
            fill(&mut reader, position)?;
            let Some(row) = record_row(&reader, position, ring, &expected) else {
                position = position.plus(RECORD_ALIGN);
                continue;
            };
            if gap < position && !show(Row::Gap { lsn: gap.0, end_lsn: position.0 }) {
                return Ok(());
            }
            position = Lsn(row.end_lsn);
            gap = position;
            if !show(Row::Record(row)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Judges the lane as recovery would, from `applied` of a superblock with `epoch_min`. Without it, from the oldest record that can
    /// matter: then damage is also found where a consistency point has already made it harmless.
    ///
    /// # Errors
    /// When the region cannot be read, or holds a record that this program cannot perform.
    pub fn verify(&mut self, applied: Option<(Lsn, Epoch)>) -> Result<Verdict, ScanError> {
        let (from, epoch_min) = match applied {
            Some(given) => given,
            None => self.oldest_record()?,
        };
        let start = ScanStart { identity: self.header.identity, applied: from, epoch_min };
        let mut scan = Scan::new(self.memory(), start);
        let (mut changes, mut payload_bytes) = (0, 0);
        let end = loop {
            match scan.poll()? {
                ScanStep::Pending => {}
                ScanStep::Record(record) => {
                    changes += 1;
                    payload_bytes += record.payload.len() as u64;
                }
                ScanStep::End(end) => break end,
            }
        };
        let (word, detail) = match end.reason {
            EndReason::Clean => ("clean", String::new()),
            EndReason::TornTail(fault) => ("torn-tail", fault.to_string()),
            EndReason::OlderEpoch(epoch) => ("older-epoch", RecordFault::OlderEpoch(epoch).to_string()),
            EndReason::Full => ("full", String::new()),
        };
        Ok(Verdict {
            from_lsn: from.0,
            changes,
            payload_bytes,
            end_lsn: end.end.0,
            epoch: end.epoch.0,
            end: word,
            detail,
            hole: end.hole.map(|hole| hole.to_string()),
        })
    }

    /// Start of the newest lap.
    fn oldest(&self) -> Lsn {
        Lsn(self.newest.0.saturating_sub(self.ring.bytes()))
    }

    fn oldest_record(&mut self) -> Result<(Lsn, Epoch), ScanError> {
        let mut found = (self.newest, Epoch(0));
        self.rows(|row| match row {
            Row::Record(row) => {
                found = (Lsn(row.lsn), Epoch(row.epoch));
                false
            }
            Row::Gap { .. } => true,
        })?;
        Ok(found)
    }

    fn expected(&self) -> RecordExpected {
        RecordExpected { pool: self.header.identity.pool, lane: self.header.identity.lane }
    }

    fn find_newest(&mut self) -> Result<Lsn, ScanError> {
        let (expected, ring) = (self.expected(), self.ring);
        let mut reader = self.reader(Lsn(0), Lsn(ring.bytes()));
        let mut newest = (Epoch(0), Lsn(0));
        let mut slot = Lsn(0);
        while slot.0 < ring.bytes() {
            fill(&mut reader, slot)?;
            let bytes = reader.exactly(slot, RECORD_HEADER_BYTES).unwrap_or(&[]);
            if RawRecord::looks_like_one(bytes) {
                match RecordHeader::read(bytes, &expected) {
                    Ok(header) if header.lsn.0 % ring.bytes() == slot.0 && header.end < LSN_MAX => {
                        newest = newest.max((header.epoch, header.end));
                    }
                    _ => {}
                }
            }
            slot = slot.plus(RECORD_ALIGN);
        }
        Ok(newest.1)
    }

    fn memory(&mut self) -> Offline<&mut R> {
        Offline::new(&mut self.read, self.region_bytes)
    }

    fn reader(&mut self, from: Lsn, limit: Lsn) -> RingReader<Offline<&mut R>> {
        let ring = self.ring;
        RingReader::new(self.memory(), ring, from, limit)
    }
}

/// Reads until the longest record at `position` is buffered, or everything is.
fn fill<L: LogMemory>(reader: &mut RingReader<L>, position: Lsn) -> Result<(), ScanError> {
    while (reader.bytes(position).len() as u64) < RECORD_BYTES_MAX && !reader.finished() {
        reader.release(position);
        reader.pump()?;
    }
    Ok(())
}

fn record_row<L: LogMemory>(
    reader: &RingReader<L>,
    position: Lsn,
    ring: Ring,
    expected: &RecordExpected,
) -> Option<RecordRow> {
    let header = RecordHeader::read(reader.exactly(position, RECORD_HEADER_BYTES)?, expected).ok()?;
    let total = header.end.0 - header.lsn.0;
    if header.lsn != position || total > ring.bytes_before_wrap(position) {
        return None;
    }
    let body = reader.exactly(position.plus(RECORD_HEADER_BYTES), header.body_bytes());
    Some(RecordRow {
        lsn: header.lsn.0,
        end_lsn: header.end.0,
        region_offset_bytes: ring.region_offset(header.lsn),
        kind: header.draft.kind.name(),
        whole: body.is_some_and(|body| header.payload(body).is_ok()),
        epoch: header.epoch.0,
        stable_lsn: header.stable_lsn.0,
        object: header.draft.object.0,
        offset_bytes: header.draft.offset_bytes,
        argument: header.draft.argument,
        flags: header.draft.flags,
        payload_bytes: header.payload_bytes,
        time_ns: header.draft.time_ns,
        request_id: header.draft.request_id,
    })
}

/// Log memory that can only be read, through a function that does not wait.
#[derive(Debug)]
struct Offline<R> {
    read: R,
    info: LogInfo,
    completions: Vec<LogCompletion>,
}

impl<R> Offline<R> {
    fn new(read: R, size_bytes: u64) -> Self {
        let info = LogInfo {
            name: "region".to_owned(),
            backend: "file",
            size_bytes,
            unit_bytes: 4096,
            atomic_bytes: 8,
            durability: DurabilityClass::Durable,
            pending_bytes_max: 0,
        };
        Self { read, info, completions: Vec::new() }
    }
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> LogMemory for Offline<R> {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        0
    }

    fn store(&mut self, _offset_bytes: u64, _bytes: &[u8]) {
        unreachable!("there is never room for a store");
    }

    fn persist(&mut self, token: Token) {
        let error = device_error(0, 0, &io::Error::from(io::ErrorKind::PermissionDenied));
        self.completions.push(LogCompletion { token, result: Err(error) });
    }

    fn room(&self) -> usize {
        usize::from(self.completions.is_empty())
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let mut bytes = vec![0; length_bytes];
        let result = (self.read)(offset_bytes, &mut bytes)
            .map(|()| bytes)
            .map_err(|error| device_error(offset_bytes, length_bytes as u64, &error));
        self.completions.push(LogCompletion { token, result });
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.completions);
    }
}

fn device_error(offset_bytes: u64, length_bytes: u64, error: &io::Error) -> DeviceError {
    let block = LANE_HEADER_BYTES;
    DeviceError {
        device: "log region".to_owned(),
        operation: "read",
        first: offset_bytes / block,
        count: length_bytes / block,
        kind: error.raw_os_error().map_or(DeviceErrorKind::Medium, DeviceErrorKind::Os),
    }
}
