//! All block I/O of one reactor: verified reads through the cache, writes, flushes.
//!
//! # Invariants
//!
//! 1. A block enters the cache, and reaches a caller of [`Io::fetch`], only after its checksum matched its reference.
//! 2. Every fetch, write, flush and raw read ends in exactly one event for each caller's tag.
//! 3. Nothing is lost for want of room: what a device or the block pool cannot take now waits here, in order.
//! 4. The newest `HELD_MAX` blocks that were fetched for the held owner stay in memory, whatever others need: who asks for the blocks
//!    of a walk again and again until all are there at once comes to an end.
//!
//! Fetches of the same block are joined; fetches of neighbouring blocks become one device read.

use super::cache::Cache;
use crate::{
    base::{BlockAddress, FixedMap, planted},
    format::reference::{BlockKey, BlockRef},
};
use std::collections::{BTreeMap, VecDeque};
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceError, Persistence, SharedBlock, Token,
};

/// Blocks held for the owner that walks by asking again: two fetches ahead of reaping, and several times the longest path.
const HELD_MAX: usize = 64;
/// Part of what the cache leaves free that it has for itself when there is no more: nodes that every request needs.
const FLOOR_PART: usize = 8;

/// Who waits, and for what: returned with the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The component of the reactor.
    pub owner: u16,
    /// The component's own number.
    pub id: u64,
}

/// The end of something that was asked of [`Io`].
#[derive(Debug)]
pub enum IoEvent {
    /// A fetched block, or why it cannot be had.
    Fetched {
        /// Who asked.
        tag: Tag,
        /// Which block.
        key: BlockKey,
        /// The verified block, or a sentence.
        result: Result<SharedBlock, String>,
    },
    /// The end of a write, a flush or a raw read (whose blocks are unverified).
    Done {
        /// Who asked.
        tag: Tag,
        /// The blocks of a raw read, or the first error.
        result: Result<Vec<BlockBuf>, DeviceError>,
    },
}

struct Fetch {
    reference: BlockRef,
    waiters: Vec<Tag>,
    /// Whether somebody will read it again: it goes into the cache.
    is_kept: bool,
}

enum Request {
    Fetch(Vec<BlockRef>, Vec<BlockBuf>),
    Read(Tag, u64, Vec<BlockBuf>),
    Write(Tag, u64, Vec<SharedBlock>, Persistence),
    Flush(Tag),
    Discard(Tag, BlockRange),
}

enum Pending {
    Fetch(Vec<BlockRef>),
    Part(Tag),
}

struct Disk<D> {
    device: D,
    backlog: VecDeque<Request>,
    pending: FixedMap<u64, Pending>,
}

/// Counters of what devices did wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Blocks whose bytes did not match their reference.
    pub checksum_errors: u64,
    /// Operations that a device refused or failed.
    pub device_errors: u64,
}

/// Parts of one write or flush that are still under way.
struct Group {
    parts: usize,
    blocks: Vec<BlockBuf>,
    error: Option<DeviceError>,
}

/// All block I/O of one reactor.
pub struct Io<D> {
    disks: Vec<Disk<D>>,
    blocks: BlockPool,
    cache: Cache,
    held: Cache,
    held_owner: Option<u16>,
    fetches: BTreeMap<BlockKey, Fetch>,
    queued: Vec<BlockKey>,
    groups: FixedMap<Tag, Group>,
    events: VecDeque<IoEvent>,
    completions: Vec<BlockCompletion>,
    next_token: u64,
    free_blocks_low: usize,
    counters: IoCounters,
}

impl<D: BlockDevice> Io<D> {
    /// I/O to `devices`, in the order of the pool's device table, with memory from `blocks`. The cache gives memory back when fewer
    /// than `free_blocks_low` blocks are free.
    #[must_use]
    pub fn new(devices: Vec<D>, blocks: BlockPool, free_blocks_low: usize) -> Self {
        let disk = |device| Disk { device, backlog: VecDeque::new(), pending: FixedMap::default() };
        Self {
            disks: devices.into_iter().map(disk).collect(),
            blocks,
            cache: Cache::default(),
            held: Cache::default(),
            held_owner: None,
            fetches: BTreeMap::new(),
            queued: Vec::new(),
            groups: FixedMap::default(),
            events: VecDeque::new(),
            completions: Vec::new(),
            next_token: 0,
            free_blocks_low,
            counters: IoCounters::default(),
        }
    }

    /// Holds the newest blocks that are fetched for `owner` in memory (invariant 4).
    pub fn hold_for(&mut self, owner: u16) {
        self.held_owner = Some(owner);
    }

    /// Adds a device after the last one.
    pub fn add_device(&mut self, device: D) {
        self.disks.push(Disk { device, backlog: VecDeque::new(), pending: FixedMap::default() });
    }

    /// Removes devices that were added after the first `count`; nothing is under way on them.
    pub fn keep_devices(&mut self, count: usize) {
        let idle = |disk: &Disk<D>| disk.pending.is_empty() && disk.backlog.is_empty();
        assert!(self.disks[count..].iter().all(idle), "only an idle device can go");
        self.disks.truncate(count);
    }

    /// The devices, in order.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = &D> {
        self.disks.iter().map(|disk| &disk.device)
    }

    /// The devices, to be put in the order of the pool's device table.
    pub fn reorder(&mut self, order: &[usize]) {
        assert_eq!(order.len(), self.disks.len(), "every device keeps a place");
        let mut disks: Vec<_> = std::mem::take(&mut self.disks).into_iter().map(Some).collect();
        self.disks = order.iter().map(|&index| disks[index].take().expect("an order names each device once")).collect();
    }

    /// Where blocks come from.
    #[must_use]
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> IoCounters {
        self.counters
    }

    /// A block with unspecified content, taken from the cache if need be.
    pub fn allocate(&mut self) -> Option<BlockBuf> {
        self.evict_until(BlockPool::allocate)
    }

    /// The same, also from what the block pool keeps for what cannot wait.
    pub fn allocate_kept(&mut self) -> Option<BlockBuf> {
        self.evict_until(BlockPool::allocate_kept)
    }

    fn evict_until(&mut self, allocate: impl Fn(&BlockPool) -> Option<BlockBuf>) -> Option<BlockBuf> {
        loop {
            if let Some(block) = allocate(&self.blocks) {
                return Some(block);
            }
            if !self.cache.evict() {
                return None;
            }
        }
    }

    /// The block, if it is in memory.
    pub fn cached(&self, key: BlockKey) -> Option<&SharedBlock> {
        self.held.get(key).or_else(|| self.cache.get(key))
    }

    /// Has the processor load what [`Self::cached`] will look at in the cache, for those who look for many.
    pub fn look_ahead(&self, key: BlockKey) {
        self.cache.look_ahead(key);
    }

    /// Puts a block that was just written into the cache.
    pub fn remember(&mut self, key: BlockKey, block: SharedBlock) {
        self.cache.insert(key, block);
    }

    /// The block, or `None` and later an [`IoEvent::Fetched`] for `tag`.
    pub fn fetch(&mut self, reference: &BlockRef, tag: Tag) -> Option<SharedBlock> {
        assert!(!reference.is_hole(), "a hole has no block to fetch");
        if let Some(block) = self.cached(reference.key()) {
            return Some(block.clone());
        }
        self.queue(reference, tag).is_kept = true;
        None
    }

    /// Reads the block from its device even if it is in the cache, and leaves the cache as it is: for proofs. The end is an
    /// [`IoEvent::Fetched`] for `tag`.
    pub fn fetch_from_medium(&mut self, reference: &BlockRef, tag: Tag) {
        assert!(!reference.is_hole(), "a hole has no block to fetch");
        self.queue(reference, tag);
    }

    fn queue(&mut self, reference: &BlockRef, tag: Tag) -> &mut Fetch {
        let key = reference.key();
        let fetch = self.fetches.entry(key).or_insert_with(|| {
            self.queued.push(key);
            Fetch { reference: *reference, waiters: Vec::new(), is_kept: false }
        });
        if !fetch.waiters.contains(&tag) {
            fetch.waiters.push(tag);
        }
        fetch
    }

    /// Reads `count` blocks of one device, unverified: for superblocks and labels.
    pub fn read_raw(&mut self, tag: Tag, device: usize, first: u64, count: usize) {
        let buffers: Option<Vec<_>> = (0..count).map(|_| self.allocate_kept()).collect();
        let buffers = buffers.expect("the block pool is larger than a superblock");
        self.begin_part(tag);
        self.disks[device].backlog.push_back(Request::Read(tag, first, buffers));
    }

    /// Writes consecutive blocks. Several writes under one tag end in one event.
    pub fn write(&mut self, tag: Tag, address: BlockAddress, blocks: Vec<SharedBlock>, persistence: Persistence) {
        let device = address.device();
        let at_once = self.disks[device].device.info().transfer_blocks_max as usize;
        let mut first = address.block();
        let mut rest = blocks;
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(at_once));
            let part = std::mem::replace(&mut rest, tail);
            self.begin_part(tag);
            let length = part.len() as u64;
            self.disks[device].backlog.push_back(Request::Write(tag, first, part, persistence));
            first += length;
        }
    }

    /// Flushes the first `device_count` devices: those after them do not belong to the pool yet.
    pub fn flush(&mut self, tag: Tag, device_count: usize) {
        for device in 0..device_count {
            self.begin_part(tag);
            self.disks[device].backlog.push_back(Request::Flush(tag));
        }
    }

    /// Tells a device that blocks are not needed any more.
    pub fn discard(&mut self, tag: Tag, address: BlockAddress, count: u64) {
        self.begin_part(tag);
        let range = BlockRange { first: address.block(), count };
        self.disks[address.device()].backlog.push_back(Request::Discard(tag, range));
    }

    /// Hands requests to the devices and collects what has finished. Call it once per turn of the loop.
    pub fn poll(&mut self) {
        let floor = self.free_blocks_low / FLOOR_PART;
        while self.blocks.free_count() < self.free_blocks_low && self.cache.len() > floor && self.cache.evict() {}
        self.queue_fetches();
        for index in 0..self.disks.len() {
            self.start(index);
            self.finish(index);
            // What there is room for now: not every end of an operation is an event, which alone would bring a turn.
            self.start(index);
        }
    }

    /// The next event, if one is ready.
    pub fn next_event(&mut self) -> Option<IoEvent> {
        self.events.pop_front()
    }

    /// Whether a device has something in hand, whose end gives the reactor a turn.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.disks.iter().any(|disk| !disk.pending.is_empty())
    }

    /// Whether operations are under way or waiting.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.fetches.is_empty() || !self.groups.is_empty() || !self.events.is_empty()
    }

    /// Blocks in the cache.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.cache.len() + self.held.len()
    }

    fn begin_part(&mut self, tag: Tag) {
        let group = self.groups.entry(tag).or_insert(Group { parts: 0, blocks: Vec::new(), error: None });
        group.parts += 1;
    }

    /// Turns queued fetches into reads of consecutive blocks, as far as memory allows.
    fn queue_fetches(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let mut queued = std::mem::take(&mut self.queued);
        queued.sort_unstable();
        let mut next = 0;
        while next < queued.len() {
            let first = queued[next].address;
            if first.device() >= self.disks.len() {
                let reason = format!("the reference points to device {}, which the pool does not have", first.device());
                self.deliver(queued[next], &Err(reason));
                next += 1;
                continue;
            }
            let at_once = self.disks[first.device()].device.info().transfer_blocks_max as usize;
            let adjoins = |(position, key): (usize, &BlockKey)| key.address.0 == first.0 + position as u64;
            let run = queued[next..].iter().take(at_once).enumerate().take_while(|&pair| adjoins(pair)).count();
            // As many as there is memory for: a long run must not wait for more than that.
            let buffers: Vec<_> = std::iter::from_fn(|| self.allocate()).take(run).collect();
            let run = buffers.len();
            if run == 0 {
                break;
            }
            let references = queued[next..next + run].iter().map(|key| self.fetches[key].reference).collect();
            self.disks[first.device()].backlog.push_back(Request::Fetch(references, buffers));
            next += run;
        }
        queued.drain(..next);
        self.queued.append(&mut queued);
    }

    fn start(&mut self, index: usize) {
        let disk = &mut self.disks[index];
        while !disk.backlog.is_empty() && disk.device.room() > 0 {
            let Some(request) = disk.backlog.pop_front() else { break };
            self.next_token += 1;
            let token = Token(self.next_token);
            let pending = match request {
                Request::Fetch(references, buffers) => {
                    let first = references[0].address().block();
                    let beyond = first + buffers.len() as u64 > disk.device.info().block_count;
                    if beyond {
                        for reference in &references {
                            let error = Err("the reference points beyond its device".to_owned());
                            Self::deliver_to(&mut self.fetches, &mut self.events, reference.key(), &error);
                        }
                        continue;
                    }
                    disk.device.read(token, first, buffers);
                    Pending::Fetch(references)
                }
                Request::Read(tag, first, buffers) => {
                    disk.device.read(token, first, buffers);
                    Pending::Part(tag)
                }
                Request::Write(tag, first, blocks, persistence) => {
                    disk.device.write(token, first, blocks, persistence);
                    Pending::Part(tag)
                }
                Request::Flush(tag) => {
                    disk.device.flush(token);
                    Pending::Part(tag)
                }
                Request::Discard(tag, range) => {
                    disk.device.discard(token, range);
                    Pending::Part(tag)
                }
            };
            disk.pending.insert(token.0, pending);
        }
    }

    fn finish(&mut self, index: usize) {
        let mut completions = std::mem::take(&mut self.completions);
        self.disks[index].device.poll(&mut completions);
        if completions.is_empty() {
            self.completions = completions;
            return;
        }
        for completion in completions.drain(..) {
            self.counters.device_errors += u64::from(completion.result.is_err());
            match self.disks[index]
                .pending
                .remove(&completion.token.0)
                .expect("a driver returns only tokens it was given")
            {
                Pending::Fetch(references) => self.finish_fetch(&references, completion),
                Pending::Part(tag) => self.finish_part(tag, completion),
            }
        }
        self.completions = completions;
    }

    fn finish_fetch(&mut self, references: &[BlockRef], completion: BlockCompletion) {
        if let (Err(error), [first, second, ..]) = (&completion.result, references) {
            // One bad block must not take its neighbours along: read them one by one.
            assert_ne!(first, second, "joined fetches are of different blocks");
            tracing::debug!(%error, "reading block by block");
            let device = first.address().device();
            for (reference, buffer) in references.iter().zip(completion.blocks) {
                self.disks[device].backlog.push_back(Request::Fetch(vec![*reference], vec![buffer]));
            }
            return;
        }
        for (reference, buffer) in references.iter().zip(completion.blocks) {
            let result = match &completion.result {
                Err(error) => Err(error.to_string()),
                Ok(()) if reference.matches(&buffer) || planted::is("checksum-not-verified") => Ok(buffer.freeze()),
                Ok(()) => {
                    self.counters.checksum_errors += 1;
                    Err(format!("checksum of block {} does not match", reference.address()))
                }
            };
            if let Ok(block) = &result {
                self.keep(reference.key(), block);
            }
            self.deliver(reference.key(), &result);
        }
    }

    /// Keeps a block that was read, where those who wait for it want it.
    fn keep(&mut self, key: BlockKey, block: &SharedBlock) {
        let Some(fetch) = self.fetches.get(&key).filter(|fetch| fetch.is_kept) else { return };
        if self.held_owner.is_some_and(|owner| fetch.waiters.iter().any(|tag| tag.owner == owner)) {
            // Before the new one comes: it is not used yet, and would be the first to go.
            while self.held.len() >= HELD_MAX && self.held.evict() {}
            self.held.insert(key, block.clone());
        } else {
            self.cache.insert(key, block.clone());
        }
    }

    fn deliver(&mut self, key: BlockKey, result: &Result<SharedBlock, String>) {
        Self::deliver_to(&mut self.fetches, &mut self.events, key, result);
    }

    fn deliver_to(
        fetches: &mut BTreeMap<BlockKey, Fetch>,
        events: &mut VecDeque<IoEvent>,
        key: BlockKey,
        result: &Result<SharedBlock, String>,
    ) {
        let fetch = fetches.remove(&key).expect("a fetch is delivered once");
        events.extend(fetch.waiters.into_iter().map(|tag| IoEvent::Fetched { tag, key, result: result.clone() }));
    }

    fn finish_part(&mut self, tag: Tag, completion: BlockCompletion) {
        let group = self.groups.get_mut(&tag).expect("a part belongs to a group");
        group.parts -= 1;
        group.blocks.extend(completion.blocks);
        if let Err(error) = completion.result
            && !planted::is("write-error-ignored")
        {
            group.error.get_or_insert(error);
        }
        if group.parts == 0 {
            let group = self.groups.remove(&tag).expect("looked up above");
            let result = group.error.map_or(Ok(group.blocks), Err);
            self.events.push_back(IoEvent::Done { tag, result });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CpNumber;
    use std::time::Duration;
    use twinlog_device::{BLOCK_BYTES, Wait};
    use twinlog_sim::{Agenda, Fault, MediumConfig, SimMedium, SimWorld};

    /// The end of the read that fails is no event, and the disk may have nothing else in hand: nobody else brings a turn in which its blocks would be asked for.
    #[test]
    fn blocks_are_read_one_by_one_from_the_turn_that_finds_the_error() {
        let world = SimWorld::new(1);
        let agenda = Agenda::new(&world);
        let medium = SimMedium::new(&world, MediumConfig::new("disk", 64));
        medium.arm(Fault::ReadError, 0);
        let mut io = Io::new(vec![medium.open(&agenda)], BlockPool::new(64).expect("a small mapping"), 0);
        for block in [3, 4] {
            let reference = BlockRef::new(BlockAddress::new(0, block), CpNumber(1), &[0; BLOCK_BYTES]);
            assert!(io.fetch(&reference, Tag { owner: 0, id: block }).is_none());
        }
        let mut arrived = 0;
        while arrived < 2 {
            io.poll();
            while let Some(event) = io.next_event() {
                assert!(matches!(event, IoEvent::Fetched { result: Ok(_), .. }), "only the common read has failed");
                arrived += 1;
            }
            assert!(arrived == 2 || io.is_awaited(), "after {arrived} blocks");
            agenda.turn(Wait::UpTo(Duration::from_secs(1)));
        }
        assert_eq!(io.counters().device_errors, 1);
    }
}
