//! Reads a whole region and judges every sector: the end of a verifying run, and the proof after a crash.

use std::time::{Duration, Instant};

use crate::{
    engine::{Completion, Engine, Kind, Lost, Request, Wait},
    live::Live,
    proof::{Finding, Proof},
    units::{bytes, index},
};

/// Which promises a target is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Level {
    /// Every acknowledged write must be there.
    Acknowledged,
    /// Only writes with FUA, and those before an answered flush: what the NBD protocol promises of a volatile cache.
    Durable,
}

/// How a region is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadBack {
    pub(crate) depth: usize,
    /// Bytes per read: whole cells that fit into a slot.
    pub(crate) block_bytes: u64,
    pub(crate) level: Level,
    /// The target is lost when it answers nothing for so long.
    pub(crate) stall: Duration,
}

/// What was read, beside the proof's findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Reading {
    pub(crate) bytes: u64,
    /// Cells to which at least one write was sent.
    pub(crate) written_cells: u64,
    /// Cells whose sectors are of different versions: unanswered writes that were cut, which no level forbids.
    pub(crate) torn_cells: u64,
}

/// Reads the proof's region through `engine`, which has no request in flight. Findings go to the proof.
pub(crate) fn read_back(
    engine: &mut impl Engine,
    proof: &mut Proof,
    how: ReadBack,
    live: &mut Live,
) -> Result<Reading, Lost> {
    let region = *proof.model.region();
    let mut reading = Reading::default();
    let mut ranges = vec![(0, 0); how.depth];
    let mut free: Vec<usize> = (0..how.depth).rev().collect();
    let mut cursor = 0;
    let mut done: Vec<Completion> = Vec::with_capacity(how.depth);
    let mut answered = Instant::now();
    while cursor < region.size_bytes || free.len() < how.depth {
        while cursor < region.size_bytes
            && let Some(slot) = free.pop()
        {
            let length = how.block_bytes.min(region.size_bytes - cursor);
            ranges[slot] = (region.offset + cursor, length);
            engine.submit(Request { slot, kind: Kind::Read, fua: false, offset: region.offset + cursor, length });
            cursor += length;
        }
        let now = Instant::now();
        if now > answered + how.stall {
            return Err(Lost(format!("no answer for {} s", how.stall.as_secs())));
        }
        engine.turn(Wait::Until(now + Duration::from_millis(100)), &mut done)?;
        for Completion { slot, errno } in done.drain(..) {
            answered = Instant::now();
            let (offset, length) = ranges[slot];
            reading.bytes += length;
            if errno == 0 {
                judge(engine.buffer(slot), proof, (offset, length), how.level, &mut reading);
            } else {
                proof.findings.add(unreadable(offset, length, errno));
            }
            free.push(slot);
        }
        live.read_back(reading.bytes, region.size_bytes);
    }
    Ok(reading)
}

fn judge(data: &[u8], proof: &mut Proof, (offset, length): (u64, u64), level: Level, reading: &mut Reading) {
    let region = *proof.model.region();
    let first = region.range(offset, length).start;
    for (number, data) in data[..index(length)].chunks_exact(index(region.cell_bytes)).enumerate() {
        let position = offset + bytes(number) * region.cell_bytes;
        let floor = match level {
            Level::Acknowledged => proof.model.floors(position, region.cell_bytes)[0],
            Level::Durable => proof.model.durable(first + number).0,
        };
        let examined = proof.examine_cell(position, data, floor);
        reading.torn_cells += u64::from(examined.torn);
        reading.written_cells += u64::from(proof.model.touched(first + number));
    }
}

fn unreadable(offset: u64, length: u64, errno: i32) -> Finding {
    let found = format!("error {errno} ({})", std::io::Error::from_raw_os_error(errno));
    Finding { offset, length, kind: "unreadable", promise: None, expected: "readable bytes".to_owned(), found }
}
