//! The model: a volume's bytes, and what is known about the allocation of its blocks.
//!
//! Requests go out in batches whose changes do not overlap anything else of the batch, so their order does not matter and every
//! outcome is certain. The batch is spread over the connections; later reads come over other ones.

use crate::common::nbd::{
    BLOCK_STATUS, CACHE, Client, DF, FLUSH, FUA, HOLE, NO_HOLE, READ, Reply, Request, TRIM, WRITE, WRITE_ZEROES, ZERO,
};
use std::ops::Range;
use twinlog::base::Prng;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// Requests of one batch at most.
const BATCH_MAX: u64 = 24;

/// What block status must say of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allocation {
    /// Never written, or freed as a whole: a hole.
    Hole,
    /// Written: not a hole.
    Data,
    /// Zeroed in part: the server may have noticed that nothing is left of it, or not.
    Either,
}

/// What a volume must contain.
pub(crate) struct Model {
    prng: Prng,
    bytes: Vec<u8>,
    blocks: Vec<Allocation>,
}

type Outcome<T> = Result<T, String>;

impl Model {
    /// A new volume.
    pub(crate) fn new(seed: u64, volume_bytes: usize) -> Self {
        let blocks = vec![Allocation::Hole; volume_bytes / BLOCK];
        Self { prng: Prng::new(seed), bytes: vec![0; volume_bytes], blocks }
    }

    /// One batch: sends, waits for all replies, compares.
    pub(crate) fn step(&mut self, clients: &mut [Client]) -> Outcome<()> {
        let batch = self.batch();
        for reply in exchange(clients, &batch)? {
            let request = usize::try_from(reply.cookie).ok().and_then(|cookie| batch.get(cookie));
            let request = request.ok_or_else(|| format!("a reply to nothing: {}", reply.cookie))?;
            self.finish(request, &reply).map_err(|difference| format!("{}: {difference}", describe(request)))?;
        }
        // Look at what changed over another connection, its neighbours too.
        for request in batch.iter().filter(|request| [WRITE, TRIM, WRITE_ZEROES].contains(&request.command)) {
            let range = range(request);
            let look = range.start.saturating_sub(BLOCK)..(range.end + BLOCK).min(self.bytes.len());
            let client = self.pick(clients.len());
            let check = if self.prng.chance(2, 3) { read(look, 0) } else { status(look) };
            let reply = clients[client].call(&check)?;
            let context = || format!("{} after {}", describe(&check), describe(request));
            self.finish(&check, &reply).map_err(|difference| format!("{}: {difference}", context()))?;
        }
        Ok(())
    }

    /// Compares the whole volume.
    pub(crate) fn check_all(&mut self, client: &mut Client) -> Outcome<()> {
        let mut start = 0;
        while start < self.bytes.len() {
            let end = (start + (1 << 20)).min(self.bytes.len());
            for request in [read(start..end, 0), status(start..end)] {
                let reply = client.call(&request)?;
                self.finish(&request, &reply).map_err(|difference| format!("{}: {difference}", describe(&request)))?;
            }
            start = end;
        }
        Ok(())
    }

    /// Requests, none of whose changes touches what another one reads or changes.
    fn batch(&mut self) -> Vec<Request> {
        let mut batch: Vec<Request> = Vec::new();
        for _ in 0..self.prng.between(1, BATCH_MAX) {
            let request = self.request();
            let block_range = |request: &Request| {
                let range = range(request);
                range.start / BLOCK..range.end.div_ceil(BLOCK)
            };
            let mine = block_range(&request);
            let apart = |other: &Request| {
                let other = block_range(other);
                other.end <= mine.start || mine.end <= other.start
            };
            if request.command == FLUSH || batch.iter().all(apart) {
                batch.push(request);
            }
        }
        batch
    }

    fn request(&mut self) -> Request {
        let place = self.place();
        let (offset, length) = (place.start as u64, u32::try_from(place.len()).expect("small"));
        let fua = if self.prng.chance(1, 10) { FUA } else { 0 };
        let kind = self.prng.below(100);
        let (command, flags) = match kind {
            0..40 => (WRITE, fua),
            40..52 => (WRITE_ZEROES, fua | if self.prng.chance(1, 2) { NO_HOLE } else { 0 }),
            52..66 => (TRIM, fua),
            66..82 => (READ, if self.prng.chance(1, 4) { DF } else { 0 }),
            82..94 => (BLOCK_STATUS, 0),
            94..97 => (CACHE, 0),
            _ => return Request { command: FLUSH, flags: 0, offset: 0, length: 0, data: Vec::new() },
        };
        let mut data = vec![0; if command == WRITE { place.len() } else { 0 }];
        self.prng.fill(&mut data);
        Request { command, flags, offset, length, data }
    }

    /// Where a request goes: near borders of sectors and blocks more often than not, small more often than large.
    fn place(&mut self) -> Range<usize> {
        // Most of the traffic meets in one part of the volume, so that requests hit what others left.
        let part = if self.prng.chance(3, 4) { self.bytes.len() / 16 } else { self.bytes.len() };
        let mut start = self.pick(part);
        let unit = *self.prng.pick(&[1, SECTOR, BLOCK, BLOCK]);
        start = start / unit * unit;
        let length = match self.prng.below(8) {
            0 => self.pick(SECTOR) + 1,
            1..4 => (self.pick(16) + 1) * SECTOR,
            4..6 => (self.pick(16) + 1) * BLOCK,
            6 => self.pick(20 * BLOCK) + 1,
            _ => self.pick(512 << 10) + 1,
        };
        start..(start + length).min(self.bytes.len())
    }

    fn pick(&mut self, bound: usize) -> usize {
        usize::try_from(self.prng.below(bound as u64)).expect("below a usize")
    }

    /// Takes in the reply to a request: applies a change, compares what was read.
    fn finish(&mut self, request: &Request, reply: &Reply) -> Outcome<()> {
        if reply.error != 0 {
            return Err(format!("error {}", reply.error));
        }
        let range = range(request);
        match request.command {
            WRITE => {
                self.bytes[range.clone()].copy_from_slice(&request.data);
                for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    self.blocks[block] = Allocation::Data;
                }
                Ok(())
            }
            TRIM => {
                // Whole blocks become holes; bytes of blocks that are hit in part stay.
                let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
                for block in whole {
                    self.bytes[block * BLOCK..(block + 1) * BLOCK].fill(0);
                    self.blocks[block] = Allocation::Hole;
                }
                Ok(())
            }
            WRITE_ZEROES => {
                self.zero(range, request.flags & NO_HOLE != 0);
                Ok(())
            }
            READ => self.compare(&range, request.flags & DF != 0, reply),
            BLOCK_STATUS => self.compare_status(&range, reply),
            _ => Ok(()),
        }
    }

    fn zero(&mut self, range: Range<usize>, keep: bool) {
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let whole = range.start <= block * BLOCK && (block + 1) * BLOCK <= range.end;
            self.blocks[block] = match (whole, keep, self.blocks[block]) {
                (true, true, _) => Allocation::Data,
                (true, false, _) => Allocation::Hole,
                (false, false, Allocation::Hole) => Allocation::Hole,
                (false, _, _) => Allocation::Either,
            };
        }
        self.bytes[range].fill(0);
    }

    fn compare(&self, range: &Range<usize>, in_one_piece: bool, reply: &Reply) -> Outcome<()> {
        if in_one_piece && reply.pieces.len() != 1 {
            return Err(format!("{} pieces, one was demanded", reply.pieces.len()));
        }
        let mut pieces: Vec<_> = reply.pieces.iter().collect();
        pieces.sort_by_key(|(offset, _)| *offset);
        let mut position = range.start;
        for (offset, data) in pieces {
            if *offset != position as u64 || data.is_empty() || position + data.len() > range.end {
                return Err(format!("a piece of {} bytes at {offset}, expected one at {position}", data.len()));
            }
            let wanted = &self.bytes[position..position + data.len()];
            if data != wanted {
                let index = data.iter().zip(wanted).position(|(found, wanted)| found != wanted).expect("they differ");
                let place = position + index;
                return Err(format!("byte {place} is {:#x}, not {:#x}", data[index], self.bytes[place]));
            }
            position += data.len();
        }
        if position == range.end { Ok(()) } else { Err(format!("bytes from {position} on are missing")) }
    }

    fn compare_status(&self, range: &Range<usize>, reply: &Reply) -> Outcome<()> {
        let mut position = range.start;
        for (length, flags) in &reply.extents {
            if *length == 0 || position >= range.end {
                return Err(format!("an extent of {length} bytes at {position}"));
            }
            // The last extent may reach beyond what was asked.
            let end = (position + *length as usize).min(range.end);
            if flags & ZERO != 0
                && let Some(index) = self.bytes[position..end].iter().position(|byte| *byte != 0)
            {
                return Err(format!("byte {} is said to be zero", position + index));
            }
            for block in position / BLOCK..end.div_ceil(BLOCK) {
                let fits = match self.blocks[block] {
                    Allocation::Hole => flags & HOLE != 0,
                    Allocation::Data => flags & HOLE == 0,
                    Allocation::Either => true,
                };
                if !fits {
                    return Err(format!("block {block} is {:?}, its extent's flags are {flags}", self.blocks[block]));
                }
            }
            position = end;
        }
        if position > range.start { Ok(()) } else { Err("no extents".to_owned()) }
    }
}

/// Sends a batch over all connections at once, and returns the replies. Senders have threads of their own: a server may stop
/// reading requests while nobody takes its replies.
fn exchange(clients: &mut [Client], batch: &[Request]) -> Outcome<Vec<Reply>> {
    let count = clients.len();
    std::thread::scope(|scope| {
        let mut senders = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            let mut sender = client.sender()?;
            let mine = (0..).zip(batch).skip(number).step_by(count);
            senders.push(
                scope.spawn(move || mine.into_iter().try_for_each(|(cookie, request)| sender.send(cookie, request))),
            );
        }
        let mut replies = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            let mut unfinished = Vec::new();
            for _ in batch.iter().skip(number).step_by(count) {
                replies.push(client.receive(&mut unfinished)?);
            }
        }
        for sender in senders {
            sender.join().map_err(|_| "a sender panicked")??;
        }
        Ok(replies)
    })
}

fn range(request: &Request) -> Range<usize> {
    let start = usize::try_from(request.offset).expect("inside the volume");
    start..start + request.length as usize
}

fn at(range: Range<usize>, command: u16, flags: u16) -> Request {
    let length = u32::try_from(range.len()).expect("small");
    Request { command, flags, offset: range.start as u64, length, data: Vec::new() }
}

fn read(range: Range<usize>, flags: u16) -> Request {
    at(range, READ, flags)
}

fn status(range: Range<usize>) -> Request {
    at(range, BLOCK_STATUS, 0)
}

fn describe(request: &Request) -> String {
    let name = match request.command {
        READ => "read",
        WRITE => "write",
        FLUSH => "flush",
        TRIM => "trim",
        CACHE => "cache",
        WRITE_ZEROES => "write-zeroes",
        _ => "block status",
    };
    format!("{name} of {} bytes at {} with flags {:#x}", request.length, request.offset, request.flags)
}
