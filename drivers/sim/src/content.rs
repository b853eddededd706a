//! What a medium holds: per block the newest completed version, the durable one, and the unflushed writes between them.
//!
//! # Invariants
//!
//! 1. A read sees the newest completed version of a block: contract 4 of block devices.
//! 2. The cache holds every completed volatile write that is not durable yet, in the order of completion.
//! 3. A cached write below its slot's floor is superseded by a durable write or a discard, and never lands.
//! 4. Durable versions change only as far as the world grants steps. Only a power cut lands sectors beyond that, when the world has not
//!    crashed.

use crate::{
    fault::Fault,
    pages::{PageId, Pages, Sectors},
    world::SimWorld,
};
use std::collections::{BTreeMap, VecDeque};
use twinlog_device::{BLOCK_BYTES, BlockBytes, BlockRange, Persistence, Prng, SharedBlock};
use twox_hash::XxHash3_64;

/// Blocks of one area of the sparse block table: 256 bytes of table for the first block that is written near by.
const AREA_BLOCKS: u64 = 64;

/// The world has crashed: nothing more becomes durable, and the operation never completes.
#[derive(Debug)]
pub(crate) struct Crashed;

/// The content of one medium.
pub(crate) struct Content {
    world: SimWorld,
    pages: Pages,
    /// Blocks that were ever written, in the order of their first write.
    slots: Vec<Slot>,
    /// Per area and block: index of the slot plus one; zero for a block that was never written.
    areas: BTreeMap<u64, Box<[u32; 64]>>,
    cache: VecDeque<Cached>,
    cache_blocks_max: usize,
    /// Completed writes and discards.
    sequence: u64,
    sectors_per_block: u64,
}

struct Slot {
    block: u64,
    current: PageId,
    durable: PageId,
    /// Cached writes with a lower sequence never land.
    floor: u64,
    /// The fault that made the current version differ from what it should be.
    taint: Option<Fault>,
}

struct Cached {
    sequence: u64,
    slot: usize,
    page: PageId,
}

impl Content {
    pub(crate) fn new(world: SimWorld, sector_bytes: u32, cache_blocks_max: usize) -> Self {
        Self {
            world,
            pages: Pages::new(sector_bytes),
            slots: Vec::new(),
            areas: BTreeMap::new(),
            cache: VecDeque::new(),
            cache_blocks_max,
            sequence: 0,
            sectors_per_block: (BLOCK_BYTES / sector_bytes as usize) as u64,
        }
    }

    /// Copies the newest completed version of `block`.
    pub(crate) fn read(&mut self, block: u64, into: &mut BlockBytes) {
        let Some(slot) = self.slot(block) else { return into.fill(0) };
        let slot = &mut self.slots[slot];
        into.copy_from_slice(self.pages.bytes(slot.current));
        if let Some(fault) = slot.taint.take() {
            self.world.count_mattered(fault);
        }
    }

    /// The same for whoever looks in from outside.
    pub(crate) fn newest(&self, block: u64) -> Box<BlockBytes> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        if let Some(slot) = self.slot(block) {
            bytes.copy_from_slice(self.pages.bytes(self.slots[slot].current));
        }
        bytes
    }

    /// Completes a write of one block.
    pub(crate) fn write(&mut self, block: u64, bytes: &BlockBytes, persistence: Persistence) -> Result<(), Crashed> {
        let slot = self.slot_or_new(block);
        let page = self.pages.store(bytes);
        self.complete(slot, page, persistence)
    }

    /// The sequence that a flush queued now covers.
    pub(crate) fn mark(&self) -> u64 {
        self.sequence
    }

    /// Makes every write up to `mark` durable, oldest first.
    pub(crate) fn flush(&mut self, mark: u64) -> Result<(), Crashed> {
        while self.cache.front().is_some_and(|cached| cached.sequence <= mark) {
            self.destage()?;
        }
        if self.world.durable_steps(1) == 1 { Ok(()) } else { Err(Crashed) }
    }

    /// Performs a discard: each block that was written keeps its content, or holds zeroes or junk from now on.
    pub(crate) fn discard(&mut self, range: BlockRange, prng: &mut Prng) -> Result<(), Crashed> {
        if self.world.durable_steps(1) == 0 {
            return Err(Crashed);
        }
        self.sequence += 1;
        let blocks = range.first..range.first + range.count;
        for area in self.areas.range(blocks.start / AREA_BLOCKS..=(blocks.end - 1) / AREA_BLOCKS).map(|(_, area)| area)
        {
            for &index in area.iter().filter(|&&index| index > 0) {
                let slot = &mut self.slots[index as usize - 1];
                let page = match prng.below(4) {
                    0 | 1 => PageId::JUNK,
                    2 => PageId::ZERO,
                    _ => continue,
                };
                if blocks.contains(&slot.block) {
                    self.pages.replace(&mut slot.current, page);
                    self.pages.replace(&mut slot.durable, page);
                    (slot.floor, slot.taint) = (self.sequence, None);
                }
            }
        }
        Ok(())
    }

    /// Whether the newest version of `block` is `bytes`.
    pub(crate) fn holds(&self, block: u64, bytes: &BlockBytes) -> bool {
        let page = self.slot(block).map_or(PageId::ZERO, |slot| self.slots[slot].current);
        self.pages.bytes(page) == bytes
    }

    /// Notes that `fault` is why `block` holds what it holds.
    pub(crate) fn taint(&mut self, block: u64, fault: Fault) {
        let slot = self.slot_or_new(block);
        self.slots[slot].taint = Some(fault);
    }

    /// A block that was written some time ago.
    pub(crate) fn some_written_block(&self, prng: &mut Prng) -> Option<u64> {
        (!self.slots.is_empty()).then(|| prng.pick(&self.slots).block)
    }

    /// Blocks that were ever written, ascending.
    pub(crate) fn written_blocks(&self) -> Vec<u64> {
        let indexes = self.areas.values().flat_map(|area| area.iter()).filter(|&&index| index > 0);
        indexes.map(|&index| self.slots[index as usize - 1].block).collect()
    }

    /// Flips a bit of `block`, durably; false when the block holds nothing that could rot.
    pub(crate) fn flip_bit(&mut self, block: u64, bit: u64) -> bool {
        let Some(slot) = self.slot(block) else { return false };
        let slot = &mut self.slots[slot];
        if slot.current.is_fixed() {
            return false;
        }
        // A page that is shared with the cache or the durable version rots there too.
        self.pages.flip(slot.current, bit);
        slot.taint = Some(Fault::BitRot);
        true
    }

    /// Loses power. Cached writes land in any subset of sectors, as do the blocks of `in_flight` writes; nothing does when the world has
    /// crashed.
    pub(crate) fn lose_power(&mut self, prng: &mut Prng, in_flight: &[(u64, SharedBlock)]) {
        let mut fate = Fate::new(prng, self.world.crashed());
        for cached in std::mem::take(&mut self.cache) {
            let slot = &mut self.slots[cached.slot];
            if cached.sequence >= slot.floor {
                let sectors = fate.sectors(&self.pages);
                let differs = !self.pages.same_bytes(slot.durable, cached.page);
                self.pages.merge(&mut slot.durable, cached.page, sectors);
                if sectors == Sectors::NONE {
                    // It matters at once: nothing that is right reads again what no superblock reached.
                    self.world.count_fired(Fault::CacheLost);
                    if differs {
                        self.world.count_mattered(Fault::CacheLost);
                    }
                } else if sectors != self.pages.all_sectors() {
                    self.world.count_fired(Fault::TornWrite);
                    slot.taint = Some(Fault::TornWrite);
                }
            }
            self.pages.release(cached.page);
        }
        for (block, bytes) in in_flight {
            let sectors = fate.sectors(&self.pages);
            if sectors == Sectors::NONE {
                continue;
            }
            let slot = self.slot_or_new(*block);
            let page = self.pages.store(bytes);
            self.pages.merge(&mut self.slots[slot].durable, page, sectors);
            self.pages.release(page);
            let whole = sectors == self.pages.all_sectors();
            let fault = if whole { Fault::UnansweredWrite } else { Fault::TornWrite };
            self.world.count_fired(fault);
            self.slots[slot].taint = Some(fault);
        }
        self.forget_what_is_not_durable();
    }

    /// Completes some sectors of a write that is not answered as done; counts them as `fault` where one is named.
    pub(crate) fn write_partly(
        &mut self,
        prng: &mut Prng,
        blocks: &[(u64, SharedBlock)],
        fault: Option<Fault>,
    ) -> Result<(), Crashed> {
        let mut fate = Fate::new(prng, self.world.crashed());
        for (block, bytes) in blocks {
            let sectors = fate.sectors(&self.pages);
            if sectors == Sectors::NONE {
                continue;
            }
            let differs = !self.holds(*block, bytes);
            self.write_sectors(*block, bytes, sectors)?;
            if let Some(fault) = fault {
                self.world.count_fired(fault);
                if differs {
                    self.taint(*block, fault);
                }
            }
        }
        Ok(())
    }

    /// A number that differs when any durable byte differs.
    pub(crate) fn digest(&self) -> u64 {
        // The sum does not depend on the order in which blocks were first written. Zeroes count as nothing, written or not.
        self.slots.iter().fold(0, |sum, slot| {
            if self.pages.same_bytes(slot.durable, PageId::ZERO) {
                return sum;
            }
            sum.wrapping_add(XxHash3_64::oneshot_with_seed(slot.block, self.pages.bytes(slot.durable)))
        })
    }

    fn slot(&self, block: u64) -> Option<usize> {
        let index = self.areas.get(&(block / AREA_BLOCKS))?[area_index(block)];
        (index as usize).checked_sub(1)
    }

    fn slot_or_new(&mut self, block: u64) -> usize {
        let area = self.areas.entry(block / AREA_BLOCKS).or_insert_with(|| Box::new([0; 64]));
        let index = &mut area[area_index(block)];
        if *index == 0 {
            let (current, durable) = (self.pages.share(PageId::ZERO), self.pages.share(PageId::ZERO));
            self.slots.push(Slot { block, current, durable, floor: 0, taint: None });
            *index = u32::try_from(self.slots.len()).expect("a simulated medium stays below 2^32 written blocks");
        }
        *index as usize - 1
    }

    /// Completes a write of some sectors of a block, as a volatile one.
    fn write_sectors(&mut self, block: u64, bytes: &BlockBytes, sectors: Sectors) -> Result<(), Crashed> {
        let slot = self.slot_or_new(block);
        let new = self.pages.store(bytes);
        let mut page = self.pages.share(self.slots[slot].current);
        self.pages.merge(&mut page, new, sectors);
        self.pages.release(new);
        self.complete(slot, page, Persistence::Volatile)
    }

    /// Makes `page`, which is counted for this, the newest version of a slot.
    fn complete(&mut self, index: usize, page: PageId, persistence: Persistence) -> Result<(), Crashed> {
        self.sequence += 1;
        let slot = &mut self.slots[index];
        slot.taint = None;
        self.pages.release(std::mem::replace(&mut slot.current, page));
        match persistence {
            Persistence::Durable => {
                self.land(index, page)?;
                self.slots[index].floor = self.sequence;
            }
            Persistence::Volatile => {
                self.pages.share(page);
                self.cache.push_back(Cached { sequence: self.sequence, slot: index, page });
                if self.cache.len() > self.cache_blocks_max {
                    self.destage()?;
                }
            }
        }
        Ok(())
    }

    /// Makes the oldest cached write durable.
    fn destage(&mut self) -> Result<(), Crashed> {
        let cached = self.cache.pop_front().expect("the caller has seen one");
        let landed =
            if cached.sequence < self.slots[cached.slot].floor { Ok(()) } else { self.land(cached.slot, cached.page) };
        self.pages.release(cached.page);
        landed
    }

    fn land(&mut self, slot: usize, page: PageId) -> Result<(), Crashed> {
        let granted = self.world.durable_steps(self.sectors_per_block);
        self.pages.merge(&mut self.slots[slot].durable, page, Sectors::first(granted));
        if granted == self.sectors_per_block { Ok(()) } else { Err(Crashed) }
    }

    fn forget_what_is_not_durable(&mut self) {
        for slot in &mut self.slots {
            if slot.current != slot.durable {
                if self.pages.same_bytes(slot.current, slot.durable) {
                    slot.taint = None;
                }
                self.pages.replace(&mut slot.current, slot.durable);
            }
        }
    }
}

fn area_index(block: u64) -> usize {
    usize::try_from(block % AREA_BLOCKS).expect("below 64")
}

/// What becomes of each block at one power cut or kill.
struct Fate<'a> {
    prng: &'a mut Prng,
    /// How many of four untorn blocks land, drawn once: some cuts lose nearly everything, others nearly nothing.
    quarters: u64,
    nothing: bool,
}

impl<'a> Fate<'a> {
    fn new(prng: &'a mut Prng, nothing: bool) -> Self {
        Self { quarters: prng.between(0, 4), prng, nothing }
    }

    /// The sectors of the next block that land: one block in eight is torn.
    fn sectors(&mut self, pages: &Pages) -> Sectors {
        if self.nothing {
            return Sectors::NONE;
        }
        if self.prng.chance(1, 8) {
            pages.all_sectors().masked(self.prng.next_u64())
        } else if self.prng.chance(self.quarters, 4) {
            pages.all_sectors()
        } else {
            Sectors::NONE
        }
    }
}
