//! A volume as its shard sees it: the tree of the newest consistency point, and up to two generations of changes on top.
//!
//! ```text
//! lookup:   active  -->  frozen  -->  tree on disk
//!           changes      changes      everything that the newest
//!           since the    that the     consistency point contains
//!           last freeze  CP writes
//! ```
//!
//! A consistency point freezes the active generation, writes it, and when it is durable the frozen generation is dropped and
//! the new tree takes its place: until then every lookup finds the old tree and its overlay unchanged.
//!
//! # A volume that is offline
//!
//! ```text
//!              hold                  pass_held ... end_held          thaw
//! online ------------> offline -----------------------------> ending ------> online
//!         recovery: a record        the held records are              the consistency point is
//!         cannot be performed       performed, in order               durable: nothing is held
//! ```
//!
//! Held records are a small log of their own, and what is performed of them moves its start in the same consistency point that contains it (rule
//! R6). Nobody reads or changes the volume until that is over.

use crate::{
    base::{
        BlockSize, CpNumber, Lsn, ObjectId,
        limits::{BLOCK_BYTES, TREE_FANOUT},
        planted,
    },
    format::{
        chain::{Subtree, chain_blocks},
        object::{Offline, OfflineCause, VolumeRecord},
        record::OwnedRecord,
        reference::{BlockKey, BlockRef},
        reservation::Reservation,
        superblock::TreeRoot,
    },
    pool::tree::{Dirty, DirtyBlock, DirtyLookup, Walker, levels_for, missing_node, span},
};
use std::{borrow::Borrow, ops::Range, rc::Rc};
use twinlog_device::{BlockBuf, SharedBlock};

/// What the overlay says of a block.
#[derive(Debug)]
pub enum Overlay {
    /// Nothing: the tree on disk decides.
    Below,
    /// Freed, by a record that ends here.
    Hole(Lsn),
    /// Written, by a record that ends here.
    Block(SharedBlock, Lsn),
}

/// A generation that a consistency point is writing.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// Its changes.
    pub dirty: Rc<Dirty>,
    /// The volume's description at the freeze.
    pub record: VolumeRecord,
    /// Records held by the recovery that this consistency point ends.
    pub held: Rc<Dirty>,
    /// What held the records of a volume that is offline no more.
    pub released: Option<Subtree>,
}

/// A volume.
#[derive(Debug)]
pub struct Volume {
    record: VolumeRecord,
    active: Dirty,
    /// Whether the description changed in the active generation.
    changed: bool,
    frozen: Option<Frozen>,
    /// Blocks of records that recovery holds in the active generation.
    held: Dirty,
    released: Option<Subtree>,
    is_offline: bool,
    /// End of the newest record that changed the reservation since the volume was opened.
    reservation_lsn: Lsn,
}

impl Volume {
    /// A volume that the newest consistency point contains.
    #[must_use]
    pub fn open(record: VolumeRecord) -> Self {
        let is_offline = record.offline.is_some();
        let (active, held) = (Dirty::default(), Dirty::default());
        let reservation_lsn = Lsn(0);
        Self { record, active, changed: false, frozen: None, held, released: None, is_offline, reservation_lsn }
    }

    /// A volume that was just made: empty.
    #[must_use]
    pub fn create(
        id: ObjectId,
        name: String,
        (size_bytes, block_size): (u64, BlockSize),
        (cp, time_ns): (CpNumber, u64),
    ) -> Self {
        let levels = levels_for(size_bytes / BLOCK_BYTES);
        let record = VolumeRecord {
            id,
            name,
            size_bytes,
            block_size,
            levels,
            root: BlockRef::default(),
            allocated_blocks: 0,
            created_cp: cp,
            created_ns: time_ns,
            offline: None,
            reservation: Box::default(),
        };
        Self { changed: true, ..Self::open(record) }
    }

    /// Its description; `root` is the tree of the newest consistency point.
    #[must_use]
    pub fn record(&self) -> &VolumeRecord {
        &self.record
    }

    /// Blocks of its size.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.record.size_bytes / BLOCK_BYTES
    }

    /// Levels that its tree will have.
    #[must_use]
    pub fn levels(&self) -> u8 {
        levels_for(self.block_count()).max(self.record.levels)
    }

    /// What the generations in memory say of a block.
    #[must_use]
    pub fn overlay(&self, index: u64) -> Overlay {
        let frozen = self.frozen.as_ref().map(|frozen| &*frozen.dirty);
        let older = frozen.filter(|_| planted::is("frozen-before-active"));
        for dirty in older.into_iter().chain(std::iter::once(&self.active)).chain(frozen) {
            match dirty.lookup(index) {
                DirtyLookup::Unknown => {}
                DirtyLookup::Hole(lsn) => return Overlay::Hole(lsn),
                DirtyLookup::Block(block) => return Overlay::Block(block.data.clone(), block.lsn),
            }
        }
        Overlay::Below
    }

    /// Walks to what the tree on disk says of blocks.
    #[must_use]
    pub fn walker<N: Borrow<SharedBlock>>(&self) -> Walker<N> {
        Walker::new(self.tree())
    }

    fn tree(&self) -> TreeRoot {
        TreeRoot { root: self.record.root, levels: self.record.levels }
    }

    /// A node that writing blocks `range`, or freeing them, will copy, and that `cached` does not have; and the block that it leads to.
    pub fn missing_path(
        &self,
        range: &Range<u64>,
        is_freed: bool,
        mut cached: impl FnMut(BlockKey) -> Option<SharedBlock>,
    ) -> Option<(BlockRef, u64)> {
        let tree = self.tree();
        let mut missing = |index: u64| {
            // Nodes of which nothing is left are cut off unread.
            let is_cut = |level: &u8| {
                let first = index / span(*level) * span(*level);
                is_freed && range.start <= first && first + span(*level) <= range.end
            };
            let level = (1..=tree.levels).find(|level| !is_cut(level))?;
            missing_node(&tree, index, level, &mut cached).map(|node| (node, index))
        };
        let last = range.end.checked_sub(1).filter(|&last| last >= range.start)?;
        if is_freed {
            return missing(range.start).or_else(|| missing(last));
        }
        // Where something was written since the last freeze, the path was at hand then.
        let indices = (range.start / span(1)..=last / span(1)).map(|node| (node * span(1)).max(range.start));
        indices.filter(|&index| !self.active.copies_path(index)).find_map(missing)
    }

    /// The first block at or after `index` that a generation in memory has written: below it, the tree's holes are holes.
    #[must_use]
    pub fn next_change(&self, index: u64) -> u64 {
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.dirty.next_block(index));
        let active = self.active.next_block(index);
        active.into_iter().chain(frozen).min().unwrap_or(u64::MAX)
    }

    /// End of the newest record by which a generation in memory freed any of `range`; zero when none did.
    #[must_use]
    pub fn freed_lsn(&self, range: &Range<u64>) -> Lsn {
        let frozen = self.frozen.as_ref().map(|frozen| &*frozen.dirty);
        let generations = std::iter::once(&self.active).chain(frozen);
        generations.filter_map(|dirty| dirty.freed_lsn(range)).max().unwrap_or(Lsn(0))
    }

    /// Blocks to reserve before `count` blocks from `first` are written: an upper bound.
    #[must_use]
    pub fn write_cost(&self, first: u64, count: u64) -> u64 {
        if count == 1 {
            return self.active.insert_cost(first, self.levels());
        }
        let nodes: u64 = (1..=self.levels()).map(|level| count / span(level) + 2).sum();
        count + nodes
    }

    /// Blocks to reserve before a range is freed.
    #[must_use]
    pub fn free_cost(&self) -> u64 {
        Dirty::free_cost(self.levels())
    }

    /// Blocks of the lists that freeing a range takes beyond its nodes: at each end up to 127 blocks of a node are freed one by one, and
    /// up to 127 subtrees of each node above are cut off, of which a list block holds some hundred. Three times, as the lists are written
    /// now and kept back twice.
    #[must_use]
    pub fn free_list_cost(&self) -> u64 {
        let nodes_above = u64::from(self.levels()).saturating_sub(1);
        let subtrees = usize::try_from(nodes_above * 2 * (TREE_FANOUT - 1)).expect("a few levels");
        3 * (1 + chain_blocks::<Subtree>(subtrees) as u64)
    }

    /// A block was written. Returns how the reservation grew.
    pub fn write(&mut self, index: u64, data: SharedBlock, lsn: Lsn) -> u64 {
        assert!(index < self.block_count(), "checked at admission");
        let before = self.active.reserved_blocks();
        let levels = self.levels();
        self.active.insert(index, DirtyBlock { data, lsn }, levels);
        self.active.reserved_blocks() - before
    }

    /// A range of blocks was freed. Returns how the reservation grew.
    pub fn free(&mut self, range: &Range<u64>, lsn: Lsn) -> u64 {
        let before = self.active.reserved_blocks();
        let levels = self.levels();
        self.active.free(range, lsn, levels);
        self.active.reserved_blocks() - before
    }

    /// The size was changed; what lies beyond a smaller size has been freed by the caller.
    pub fn resize(&mut self, size_bytes: u64) {
        self.record.size_bytes = size_bytes;
        self.changed = true;
    }

    /// Who has registered, and who holds it reserved.
    #[must_use]
    pub fn reservation(&self) -> &Reservation {
        &self.record.reservation
    }

    /// Where the lane must be stable before anything is answered that the reservation has decided.
    #[must_use]
    pub fn reservation_lsn(&self) -> Lsn {
        self.reservation_lsn
    }

    /// Registrants and reservation have become this, by a record that ends at `lsn`.
    pub fn reserve(&mut self, reservation: Reservation, lsn: Lsn) {
        *self.record.reservation = reservation;
        self.reservation_lsn = lsn;
        self.changed |= !planted::is("reservation-not-in-cp");
    }

    /// Both nodes have lost power: a reservation that does not survive that is gone.
    pub fn lose_power(&mut self) {
        let before = self.record.reservation.clone();
        self.record.reservation.lose_power();
        self.changed |= self.record.reservation != before;
    }

    /// Whether the next consistency point has something to write.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        (self.changed && !planted::is("resize-not-in-cp")) || !self.active.is_empty()
    }

    /// Begins a new generation; the old one is for a consistency point to write.
    pub fn freeze(&mut self) -> Frozen {
        assert!(self.frozen.is_none(), "one consistency point at a time");
        let frozen = Frozen {
            dirty: Rc::new(std::mem::take(&mut self.active)),
            record: self.record.clone(),
            held: Rc::new(std::mem::take(&mut self.held)),
            released: self.released.take(),
        };
        self.changed = false;
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// The frozen generation is durable as `tree`, and its held records, if it has any, in `held`.
    pub fn thaw(&mut self, tree: TreeRoot, held: Option<TreeRoot>) {
        let frozen = self.frozen.take().expect("a consistency point thaws what it froze");
        self.is_offline &= frozen.record.offline.is_some();
        if let (Some(offline), Some(held)) = (&mut self.record.offline, held) {
            offline.held = held;
        }
        self.record.root = tree.root;
        self.record.levels = tree.levels;
        self.record.allocated_blocks = u64::from(tree.root.aux());
    }

    /// What held records and is not in a consistency point's reap list yet.
    #[must_use]
    pub fn released(&self) -> Option<Subtree> {
        self.released
    }

    /// Whether nobody may use the volume: records are held, or the consistency point that contains the last of them is not durable yet.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.is_offline
    }

    /// Holds a record, which stands in the log as `bytes`, together with those that came before: the first one cannot be performed, because of
    /// `cause`. `place` has room for the blocks that `hold_blocks` says. Returns how the reservation grew.
    pub fn hold(&mut self, record: &OwnedRecord, cause: OfflineCause, bytes: &[u8], place: Vec<BlockBuf>) -> u64 {
        let mut offline = self.record.offline.unwrap_or(Offline {
            cause,
            lane: record.lane,
            lsn: record.lsn,
            records: 0,
            start_bytes: 0,
            end_bytes: 0,
            held: TreeRoot { root: BlockRef::default(), levels: 1 },
        });
        assert_eq!(place.len() as u64, self.hold_blocks(bytes.len() as u64), "as much as was asked for");
        let before = self.held.reserved_blocks();
        let start = self.hold_start(&offline);
        let end = start + bytes.len() as u64;
        let levels = levels_for(end.div_ceil(BLOCK_BYTES)).max(offline.held.levels);
        let small = |number: u64| usize::try_from(number).expect("inside a record or a block");
        for (index, mut block) in (start / BLOCK_BYTES..).zip(place) {
            block.fill(0);
            if let DirtyLookup::Block(known) = self.held.lookup(index) {
                block.copy_from_slice(&*known.data);
            }
            let (first, last) = (start.max(index * BLOCK_BYTES), end.min((index + 1) * BLOCK_BYTES));
            let within = small(first - index * BLOCK_BYTES)..small(last - index * BLOCK_BYTES);
            block[within].copy_from_slice(&bytes[small(first - start)..small(last - start)]);
            self.held.insert(index, DirtyBlock { data: block.freeze(), lsn: record.end }, levels);
        }
        offline.records += 1;
        offline.end_bytes = end;
        self.record.offline = Some(offline);
        (self.is_offline, self.changed) = (true, true);
        self.held.reserved_blocks() - before
    }

    /// Blocks of memory that holding a record of `record_bytes` takes.
    #[must_use]
    pub fn hold_blocks(&self, record_bytes: u64) -> u64 {
        let start = self.record.offline.as_ref().map_or(0, |offline| self.hold_start(offline));
        (start + record_bytes).div_ceil(BLOCK_BYTES) - start / BLOCK_BYTES
    }

    /// Where the next held record begins: behind the last one, in a block of its own if that one's lies in a consistency point.
    fn hold_start(&self, offline: &Offline) -> u64 {
        if self.held.is_empty() { offline.end_bytes.next_multiple_of(BLOCK_BYTES) } else { offline.end_bytes }
    }

    /// The first held record was performed; the next one begins at `start_bytes`.
    pub fn pass_held(&mut self, start_bytes: u64) {
        self.skip_held(start_bytes);
        let offline = self.record.offline.as_mut().expect("records are held");
        offline.records -= 1;
    }

    /// The next held record begins at `start_bytes`.
    pub fn skip_held(&mut self, start_bytes: u64) {
        let offline = self.record.offline.as_mut().expect("records are held");
        assert!(offline.start_bytes < start_bytes && start_bytes <= offline.end_bytes, "records follow each other");
        offline.start_bytes = start_bytes;
        self.changed = true;
    }

    /// The first held record, which stood in the log at `lsn`, cannot be performed, because of `cause`.
    pub fn keep_held(&mut self, lsn: Lsn, cause: OfflineCause) {
        let offline = self.record.offline.as_mut().expect("records are held");
        (offline.lsn, offline.cause) = (lsn, cause);
        self.changed = true;
    }

    /// Nothing is held any more, once the next consistency point is durable.
    pub fn end_held(&mut self) {
        let Offline { held: TreeRoot { root, levels }, .. } = self.record.offline.take().expect("records are held");
        self.released = Some(Subtree { root, levels });
        self.changed = true;
    }
}
