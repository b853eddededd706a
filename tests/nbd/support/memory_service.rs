//! A volume service in memory: the reference that sessions are tested against, and, on request, a deliberately broken one.
//!
//! It keeps the contract of [`VolumeService`] to the letter and in the worst way: replies come in an order drawn from a seed, as many
//! turns late as the test says, and reads wait while the pool of blocks is empty.

use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};
use twinlog::{
    base::{BlockSize, HostId, LaneIndex, Lsn, ObjectId, Pass, Prng, limits::BLOCK_BYTES},
    format::reservation::Reservation,
    fs::reservation::{Access, Refused, ReservationCommand},
    node::request::{
        DataRun, DataRuns, Extent, OfflineAt, Reach, ReplyData, ReservationNotice, VolumeError, VolumeInfo,
        VolumeOperation, VolumeReply, VolumeRequest, VolumeService, VolumeShape,
    },
};
use twinlog_device::{BlockBytes, BlockPool};

/// What a service does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Now and then a write is answered and never done.
    LostWrite,
    /// Now and then a write goes to the next block.
    MisdirectedWrite,
    /// Now and then a bit of what is written flips.
    BitFlip,
    /// A discard takes 512 bytes more than it should.
    TrimTooLong,
    /// Zeroing leaves the last 512 bytes as they were.
    ZeroesTooShort,
    /// The part of a write after its last whole block is dropped.
    LostTail,
    /// Now and then data is reported as a hole.
    LyingExtents,
    /// FUA is taken for an ordinary write.
    ForgottenFua,
    /// A flush is answered and not done.
    ForgottenFlush,
}

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Every answered change.
    WriteThrough,
    /// Every change that was flushed or FUA, and any subset of the others.
    WriteBack,
}

type Blocks = BTreeMap<u64, Box<BlockBytes>>;

/// A change that a crash may lose.
#[derive(Clone, Debug)]
enum Change {
    Bytes(u64, Vec<u8>),
    Free(Range<u64>),
    Zero(Range<u64>, bool),
}

#[derive(Debug, Default)]
struct Volume {
    name: String,
    size_bytes: u64,
    block_size: BlockSize,
    blocks: Blocks,
    /// What a crash leaves for certain, and what it may leave in addition.
    stable: Blocks,
    volatile: Vec<Change>,
    reservation: Reservation,
}

/// The service.
pub(crate) struct MemoryService {
    pool: BlockPool,
    volumes: Vec<Volume>,
    pending: Vec<VolumeRequest>,
    prng: Prng,
    bug: Option<Bug>,
    cache: Cache,
    /// Most requests that wait at a time.
    pub(crate) room: usize,
    /// Requests wait until this is taken away.
    pub(crate) hold: bool,
    /// Polls in this many that answer nothing although something waits.
    pub(crate) idle_of_eight: u64,
    /// The error of every request that touches these bytes.
    pub(crate) poison: Option<(Range<u64>, VolumeError)>,
    /// The volume of this name is offline.
    pub(crate) offline: Option<&'static str>,
    /// Where requests are said to go.
    pub(crate) reach: Reach,
    /// How often each pool is said to have been opened here.
    pub(crate) openings: [u64; 2],
    /// The pass without which changes are refused, by a node behind this one.
    pub(crate) pass: Option<Pass>,
    /// What hosts are to be told.
    pub(crate) notices: VecDeque<ReservationNotice>,
    /// Requests submitted so far.
    pub(crate) submitted_count: u64,
}

#[expect(dead_code, reason = "the bugs wait for the model checker that must find them")]
impl MemoryService {
    /// The same, with these blocks in every volume.
    pub(crate) fn in_blocks(mut self, block_size: BlockSize) -> Self {
        self.volumes.iter_mut().for_each(|volume| volume.block_size = block_size);
        self
    }

    /// Volumes by name and size, on a pool of `block_count` blocks.
    pub(crate) fn new(seed: u64, block_count: u32, volumes: &[(&str, u64)]) -> Self {
        let volumes =
            volumes.iter().map(|&(name, size_bytes)| Volume { name: name.to_owned(), size_bytes, ..Volume::default() });
        Self {
            pool: BlockPool::new(block_count).expect("a mapping"),
            volumes: volumes.collect(),
            pending: Vec::new(),
            prng: Prng::new(seed),
            bug: None,
            cache: Cache::WriteThrough,
            room: 1024,
            hold: false,
            idle_of_eight: 0,
            poison: None,
            offline: None,
            reach: Reach::Here,
            openings: [1, 0],
            pass: None,
            notices: VecDeque::new(),
            submitted_count: 0,
        }
    }

    /// The same with a bug.
    pub(crate) fn broken(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    /// The same with another promise about crashes.
    pub(crate) fn cached(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Gives the volume `index` another size; `None` deletes it.
    pub(crate) fn resize(&mut self, index: usize, size_bytes: Option<u64>) {
        match size_bytes {
            Some(size_bytes) => self.volumes[index].size_bytes = size_bytes,
            None => self.volumes.truncate(index),
        }
    }

    /// Blocks of the pool that nobody holds.
    pub(crate) fn blocks_free(&self) -> usize {
        self.pool.free_count()
    }

    /// Requests that wait.
    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Loses what waits, and what the cache holds, in part.
    pub(crate) fn crash(&mut self) {
        self.pending.clear();
        for volume in &mut self.volumes {
            if self.cache == Cache::WriteThrough {
                continue;
            }
            let mut blocks = volume.stable.clone();
            for change in volume.volatile.drain(..) {
                if self.prng.chance(1, 2) {
                    apply(&mut blocks, &change);
                }
            }
            volume.stable.clone_from(&blocks);
            volume.blocks = blocks;
        }
    }

    /// The volume's bytes.
    pub(crate) fn content(&self, volume: usize, range: Range<u64>) -> Vec<u8> {
        read_bytes(&self.volumes[volume].blocks, &range)
    }

    fn is(&mut self, bug: Bug, numerator: u64, denominator: u64) -> bool {
        self.bug == Some(bug) && self.prng.chance(numerator, denominator)
    }

    fn change(&mut self, index: usize, change: Change, durable: bool) {
        let durable = durable && self.bug != Some(Bug::ForgottenFua);
        let volume = &mut self.volumes[index];
        apply(&mut volume.blocks, &change);
        if self.cache == Cache::WriteBack {
            volume.volatile.push(change);
            if durable {
                volume.settle();
            }
        }
    }

    fn perform(&mut self, request: VolumeRequest) -> Result<ReplyData, VolumeError> {
        if let Some(pass) = self.pass.filter(|pass| request.operation.is_change() && request.pass != Some(*pass)) {
            return Err(VolumeError::Late(pass));
        }
        let index = usize::try_from(request.volume.0).map_err(|_| VolumeError::NoSuchVolume)?;
        let size_bytes = self.volumes.get(index).ok_or(VolumeError::NoSuchVolume)?.size_bytes;
        let range = range_of(&request.operation);
        if range.end > size_bytes {
            return Err(VolumeError::OutOfRange);
        }
        if let Some((poisoned, error)) = &self.poison
            && poisoned.start < range.end
            && range.start < poisoned.end
        {
            return Err(error.clone());
        }
        let access = match request.operation {
            VolumeOperation::Read(_) | VolumeOperation::BlockStatus { .. } | VolumeOperation::Cache(_) => Access::Read,
            VolumeOperation::Reserve(command) => return self.reserve(index, request.host, command),
            VolumeOperation::Reservation => {
                return Ok(ReplyData::Reservation(Box::new(self.volumes[index].reservation.clone())));
            }
            _ => Access::Write,
        };
        if !self.volumes[index].reservation.allows(request.host, access) {
            return Err(VolumeError::ReservationConflict);
        }
        match request.operation {
            VolumeOperation::Reserve(_) | VolumeOperation::Reservation => unreachable!("performed above"),
            VolumeOperation::Read(range) => Ok(ReplyData::Data(self.read(index, &range))),
            VolumeOperation::BlockStatus { range, extents_max } => {
                Ok(ReplyData::Extents(self.extents(index, &range, extents_max)))
            }
            VolumeOperation::Cache(_) => Ok(ReplyData::Done),
            VolumeOperation::Flush => {
                if self.bug != Some(Bug::ForgottenFlush) {
                    self.volumes[index].settle();
                }
                Ok(ReplyData::Done)
            }
            VolumeOperation::CompareAndWrite { expected, payload, .. }
                if Sha256::digest(read_bytes(&self.volumes[index].blocks, &payload.range()))[..] != expected =>
            {
                Err(VolumeError::Differs)
            }
            VolumeOperation::Write { payload, durable } | VolumeOperation::CompareAndWrite { payload, durable, .. } => {
                self.write(index, payload.range().start, payload.to_vec(), durable, size_bytes);
                Ok(ReplyData::Done)
            }
            VolumeOperation::Discard { mut range, durable } => {
                if self.bug == Some(Bug::TrimTooLong) && range.end + 512 <= size_bytes {
                    let extra = Change::Zero(range.end..range.end + 512, false);
                    self.change(index, extra, durable);
                }
                range.start = range.start.next_multiple_of(BLOCK_BYTES);
                if range.end < size_bytes {
                    range.end -= range.end % BLOCK_BYTES;
                }
                if range.start < range.end {
                    self.change(index, Change::Free(range), durable);
                }
                Ok(ReplyData::Done)
            }
            VolumeOperation::WriteZeroes { mut range, may_free, durable } => {
                if self.bug == Some(Bug::ZeroesTooShort) {
                    range.end = range.end.saturating_sub(512).max(range.start);
                }
                self.change(index, Change::Zero(range, may_free), durable);
                Ok(ReplyData::Done)
            }
        }
    }

    fn reserve(
        &mut self,
        index: usize,
        host: Option<HostId>,
        command: ReservationCommand,
    ) -> Result<ReplyData, VolumeError> {
        let host = host.ok_or(VolumeError::ReservationInvalid)?;
        let place = &mut self.volumes[index].reservation;
        let decided = place.decide(host, command).map_err(|refused| match refused {
            Refused::Conflict => VolumeError::ReservationConflict,
            Refused::Invalid => VolumeError::ReservationInvalid,
            Refused::Full => VolumeError::RegistrantsFull,
        })?;
        *place = decided.next.unwrap_or_else(|| place.clone());
        let volume = ObjectId(index as u64);
        let notice = |(host, notice)| ReservationNotice { host, volume, notice };
        self.notices.extend(decided.notices.into_iter().map(notice));
        Ok(ReplyData::Done)
    }

    fn write(&mut self, index: usize, mut start: u64, mut bytes: Vec<u8>, durable: bool, size_bytes: u64) {
        if self.is(Bug::LostWrite, 1, 8) {
            return;
        }
        let length = bytes.len() as u64;
        if start + BLOCK_BYTES + length <= size_bytes && self.is(Bug::MisdirectedWrite, 1, 8) {
            start += BLOCK_BYTES;
        }
        if self.is(Bug::BitFlip, 1, 8) {
            let place = small(self.prng.below(length));
            bytes[place] ^= 1 << self.prng.below(8);
        }
        let tail = (start + length) % BLOCK_BYTES;
        if self.bug == Some(Bug::LostTail) && tail < length {
            bytes.truncate(small(length - tail));
        }
        self.change(index, Change::Bytes(start, bytes), durable);
    }

    fn read(&self, index: usize, range: &Range<u64>) -> DataRuns {
        let blocks = &self.volumes[index].blocks;
        let mut runs = DataRuns::new();
        for (block, within) in pieces(range) {
            let run = match blocks.get(&block) {
                None => DataRun::Zeroes(within.len() as u64),
                Some(bytes) => {
                    let mut copy = self.pool.allocate().expect("counted before");
                    copy.copy_from_slice(&bytes[..]);
                    DataRun::Block(copy.freeze(), within)
                }
            };
            match (runs.last_mut(), run) {
                (Some(DataRun::Zeroes(before)), DataRun::Zeroes(more)) => *before += more,
                (_, run) => runs.push(run),
            }
        }
        runs
    }

    fn extents(&mut self, index: usize, range: &Range<u64>, extents_max: usize) -> Vec<Extent> {
        let lie = self.is(Bug::LyingExtents, 1, 2);
        let blocks = &self.volumes[index].blocks;
        let mut extents: Vec<Extent> = Vec::new();
        for (block, within) in pieces(range) {
            let allocated = blocks.contains_key(&block) && !lie;
            let length_bytes = within.len() as u64;
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.allocated == allocated => last.length_bytes += length_bytes,
                _ if full => break,
                _ => extents.push(Extent { length_bytes, allocated }),
            }
        }
        extents
    }

    /// Blocks that a read of `range` needs from the pool.
    fn blocks_to_read(&self, request: &VolumeRequest) -> usize {
        let VolumeOperation::Read(range) = &request.operation else { return 0 };
        let Some(volume) = self.volumes.get(usize::try_from(request.volume.0).unwrap_or(usize::MAX)) else { return 0 };
        pieces(range).filter(|(block, _)| volume.blocks.contains_key(block)).count()
    }
}

impl Volume {
    fn settle(&mut self) {
        for change in self.volatile.drain(..) {
            apply(&mut self.stable, &change);
        }
    }
}

impl VolumeService for MemoryService {
    fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    fn volumes(&self) -> Vec<VolumeInfo> {
        let info = |(index, volume): (u64, &Volume)| VolumeInfo {
            id: ObjectId(index),
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            block_size: volume.block_size,
            offline: self.offline.filter(|name| *name == volume.name).map(|_| OfflineAt {
                lane: LaneIndex(2),
                lsn: Lsn(4480),
                why: "block 7 cannot be read".to_owned(),
            }),
        };
        (0..).zip(&self.volumes).map(info).collect()
    }

    fn volume(&self, name: &str) -> Option<VolumeInfo> {
        if name.is_empty() {
            return self.volumes().into_iter().next();
        }
        self.volumes().into_iter().find(|volume| volume.name == name)
    }

    fn shape(&self, id: ObjectId) -> Option<VolumeShape> {
        let volume = self.volumes.get(usize::try_from(id.0).ok()?)?;
        Some(VolumeShape { size_bytes: volume.size_bytes, block_size: volume.block_size })
    }

    fn reach(&self, _volume: ObjectId) -> Reach {
        self.reach
    }

    fn openings(&self) -> [u64; 2] {
        self.openings
    }

    fn has_room(&self, _volume: ObjectId) -> bool {
        self.pending.len() < self.room
    }

    fn submit(&mut self, request: VolumeRequest) {
        assert!(self.has_room(request.volume), "the front end asks before it submits");
        use VolumeOperation::{Flush, Reservation, Reserve};
        if !matches!(request.operation, Flush | Reserve(_) | Reservation) {
            assert!(!range_of(&request.operation).is_empty(), "no operation is empty");
        }
        if let VolumeOperation::Read(range) | VolumeOperation::Cache(range) = &request.operation {
            assert!(range.end - range.start <= 1 << 20, "what is read takes the memory of a part at most");
        }
        self.submitted_count += 1;
        self.pending.push(request);
    }

    fn abandon(&mut self, _session: u64) {}

    fn has_handed_on(&self) -> bool {
        true
    }

    fn poll_notice(&mut self) -> Option<ReservationNotice> {
        self.notices.pop_front()
    }

    fn poll_reply(&mut self) -> Option<VolumeReply> {
        if self.hold || self.pending.is_empty() || self.prng.chance(self.idle_of_eight, 8) {
            return None;
        }
        let index = small(self.prng.below(self.pending.len() as u64));
        if self.blocks_to_read(&self.pending[index]) > self.pool.free_count() {
            return None;
        }
        let request = self.pending.swap_remove(index);
        Some(VolumeReply { tag: request.tag, result: self.perform(request) })
    }
}

fn small(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}

fn range_of(operation: &VolumeOperation) -> Range<u64> {
    match operation {
        VolumeOperation::Write { payload, .. } | VolumeOperation::CompareAndWrite { payload, .. } => payload.range(),
        VolumeOperation::Flush | VolumeOperation::Reserve(_) | VolumeOperation::Reservation => 0..0,
        VolumeOperation::Read(range)
        | VolumeOperation::Cache(range)
        | VolumeOperation::Discard { range, .. }
        | VolumeOperation::WriteZeroes { range, .. }
        | VolumeOperation::BlockStatus { range, .. } => range.clone(),
    }
}

/// The blocks of `range`, each with the part of it that the range covers.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
    let Range { start, end } = *range;
    (start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
        let base = block * BLOCK_BYTES;
        (block, small(start.max(base) - base)..small(end.min(base + BLOCK_BYTES) - base))
    })
}

fn apply(blocks: &mut Blocks, change: &Change) {
    match change {
        Change::Bytes(start, bytes) => {
            let mut rest = &bytes[..];
            for (block, within) in pieces(&(*start..start + bytes.len() as u64)) {
                let (now, after) = rest.split_at(within.len());
                blocks.entry(block).or_insert_with(|| Box::new([0; 4096]))[within].copy_from_slice(now);
                rest = after;
            }
        }
        Change::Free(range) => {
            for (block, _) in pieces(range) {
                blocks.remove(&block);
            }
        }
        Change::Zero(range, may_free) => {
            for (block, within) in pieces(range) {
                if *may_free && within.len() as u64 == BLOCK_BYTES {
                    blocks.remove(&block);
                } else if !*may_free {
                    blocks.entry(block).or_insert_with(|| Box::new([0; 4096]))[within].fill(0);
                } else if let Some(bytes) = blocks.get_mut(&block) {
                    bytes[within].fill(0);
                }
            }
        }
    }
}

fn read_bytes(blocks: &Blocks, range: &Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (block, within) in pieces(range) {
        match blocks.get(&block) {
            Some(block) => bytes.extend_from_slice(&block[within]),
            None => bytes.resize(bytes.len() + within.len(), 0),
        }
    }
    bytes
}
