//! A model of a namespace beside the front end: commands drawn from a seed, many in flight, byte streams split anywhere, memory that runs short; and volumes
//! with planted defects, each of which must be found.

use crate::{
    host::{BLOCK, Bench, Queue, op},
    support::memory_service::{Bug, MemoryService},
};
use std::collections::BTreeMap;
use twinlog::base::BlockSize;
use twinlog_device::Prng;

/// Blocks of the volume here.
const BLOCKS: u64 = 512;
/// Memory: enough for the longest command, and little enough to run short.
const POOL_BLOCKS: u32 = 400;
const COMMANDS: usize = 400;

/// A command in flight: its blocks are nobody else's until it is answered, unless both only read.
struct Sent {
    range: std::ops::Range<u64>,
    changes: bool,
    status: u16,
    /// What a read returns.
    data: Option<Vec<u8>>,
}

struct Model {
    prng: Prng,
    block_bytes: u64,
    content: Vec<u8>,
    sent: BTreeMap<u16, Sent>,
    version: u8,
}

impl Model {
    fn slice(&mut self, range: &std::ops::Range<u64>) -> &mut [u8] {
        let at = |block: u64| usize::try_from(block * self.block_bytes).expect("it fits");
        &mut self.content[at(range.start)..at(range.end)]
    }

    /// Of these blocks those are zero that are given back: whole blocks of the pool.
    fn free(&mut self, range: &std::ops::Range<u64>) {
        let each = BLOCK / self.block_bytes;
        let start = range.start.next_multiple_of(each);
        self.slice(&(start..(range.end / each * each).max(start))).fill(0);
    }

    /// A command that fits beside those in flight, as bytes.
    fn draw(&mut self, io: &mut Queue) -> Option<Vec<u8>> {
        let count = if self.prng.chance(1, 8) { self.prng.between(1, 256) } else { self.prng.between(1, 8) };
        let first = self.prng.below(BLOCKS + 1 - count.min(BLOCKS));
        let range = first..first + count;
        let kind = *self.prng.pick(&[
            op::READ,
            op::READ,
            op::WRITE,
            op::WRITE,
            op::WRITE,
            op::COMPARE,
            op::WRITE_ZEROES,
            op::DEALLOCATE,
            op::VERIFY,
            op::FLUSH,
        ]);
        let changes = matches!(kind, op::WRITE | op::WRITE_ZEROES | op::DEALLOCATE);
        let touches = |sent: &Sent| sent.range.start < range.end && range.start < sent.range.end;
        if self.sent.len() >= 30 || self.sent.values().any(|sent| touches(sent) && (changes || sent.changes)) {
            return None;
        }
        let flags = if self.prng.chance(1, 4) { 1 << 30 } else { 0 } | if self.prng.chance(1, 2) { 1 << 25 } else { 0 };
        let mut entry = io.blocks(kind, first, count, flags);
        let id = u16::from_le_bytes([entry[2], entry[3]]);
        let mut sent = Sent { range: range.clone(), changes, status: 0, data: None };
        let in_capsule = count <= 4 && self.prng.chance(3, 4);
        let data = match kind {
            op::READ => {
                sent.data = Some(self.slice(&range).to_vec());
                None
            }
            op::WRITE => {
                self.version = self.version.wrapping_add(1).max(1);
                let version = self.version;
                let place = self.slice(&range);
                for (at, byte) in place.iter_mut().enumerate() {
                    *byte = version ^ u8::try_from(at / 509 % 256).expect("it fits");
                }
                Some(place.to_vec())
            }
            op::COMPARE => {
                let mut data = self.slice(&range).to_vec();
                if self.prng.chance(1, 3) {
                    let place = usize::try_from(self.prng.below(data.len() as u64)).expect("it fits");
                    data[place] ^= 0x10;
                    sent.status = 0x285;
                }
                Some(data)
            }
            op::WRITE_ZEROES => {
                self.slice(&range).fill(0);
                None
            }
            op::DEALLOCATE => {
                self.free(&range);
                let mut data = vec![0; 16];
                data[4..8].copy_from_slice(&u32::try_from(count).expect("it fits").to_le_bytes());
                data[8..16].copy_from_slice(&first.to_le_bytes());
                entry[40..52].fill(0);
                entry[44] = 4;
                Some(data)
            }
            op::FLUSH => {
                entry[40..52].fill(0);
                sent.range = 0..0;
                None
            }
            _ => None,
        };
        self.sent.insert(id, sent);
        Some(io.capsule(entry, data.as_deref(), in_capsule || kind == op::DEALLOCATE))
    }

    /// Holds the answers against what they should be.
    fn check(&mut self, io: &mut Queue) -> Result<usize, String> {
        let answers = std::mem::take(&mut io.answers);
        let count = answers.len();
        for (id, answer) in answers {
            let sent = self.sent.remove(&id).ok_or_else(|| format!("nobody sent {id}"))?;
            if answer.status != sent.status {
                return Err(format!("{id} of {:?}: status {:#x}, not {:#x}", sent.range, answer.status, sent.status));
            }
            if sent.data.as_ref().is_some_and(|data| *data != answer.data) {
                return Err(format!("{id}: blocks {:?} are not as they were written", sent.range));
            }
        }
        Ok(count)
    }
}

/// Drives a volume and the model of it, side by side.
fn drive(seed: u64, block_size: BlockSize, bug: Option<Bug>) -> Result<(), String> {
    let block_bytes = block_size.bytes();
    let volumes = [("unseen", BLOCK), ("vol", BLOCKS * block_bytes)];
    let service = MemoryService::new(seed, POOL_BLOCKS, &volumes).in_blocks(block_size);
    let mut bench = Bench::with(
        match bug {
            Some(bug) => service.broken(bug),
            None => service,
        },
        Vec::new(),
    );
    let mut prng = Prng::new(seed);
    let digests = prng.chance(1, 2);
    let (_admin, id) = bench.admin(digests);
    let mut io = bench.io(id, 1, digests);
    io.block_bytes = block_bytes;
    io.piece_bytes = *prng.pick(&[512, 4096, 65536, usize::MAX]);
    bench.service.idle_of_eight = prng.below(7);
    let content = vec![0; usize::try_from(BLOCKS * block_bytes).expect("it fits")];
    let mut model = Model { prng, block_bytes, content, sent: BTreeMap::new(), version: 0 };
    let mut bits = Prng::new(seed ^ 0x5eed);
    let (mut waiting, mut answered, mut turns) = (Vec::new(), 0, 0);
    while answered < COMMANDS || !model.sent.is_empty() {
        for _ in 0..bits.between(0, 5) {
            if answered + model.sent.len() < COMMANDS
                && let Some(bytes) = model.draw(&mut io)
            {
                waiting.extend(bytes);
            }
        }
        bench.serve_bits(&mut io, &mut waiting, &mut bits);
        answered += model.check(&mut io)?;
        turns += 1;
        if turns > 200_000 || bench.net.closed(io.connection).is_some() {
            return Err(format!("stuck or closed after {answered} answers, {:?}", io.terminated));
        }
    }
    // Everything, at the end.
    for first in (0..BLOCKS).step_by(256) {
        let read = io.blocks(op::READ, first, 256, 0);
        let data = bench.run(&mut io, read, None, false).data;
        if data != model.slice(&(first..first + 256)) {
            return Err(format!("blocks from {first} are not as they were written"));
        }
    }
    assert_eq!(bench.service.blocks_free(), POOL_BLOCKS as usize, "every block is back");
    Ok(())
}

#[test]
fn a_sound_volume_passes() {
    for (seed, block_size) in (0..30).zip(BlockSize::ALL.into_iter().cycle()) {
        drive(seed, block_size, None).unwrap_or_else(|difference| panic!("seed {seed}: {difference}"));
    }
}

#[test]
fn every_planted_bug_is_found() {
    let bugs = [Bug::LostWrite, Bug::MisdirectedWrite, Bug::BitFlip, Bug::TrimTooLong, Bug::ZeroesTooShort];
    for block_size in BlockSize::ALL {
        for bug in bugs {
            let found = (0..10).find(|&seed| drive(seed, block_size, Some(bug)).is_err());
            assert!(found.is_some(), "{bug:?} is not found in blocks of {} bytes", block_size.bytes());
        }
    }
}
