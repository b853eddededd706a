//! A whole pool on a damaged disk, opened and used by the real engine.
//!
//! The disk is that of a small pool with a history. An input changes some of its bytes; then, unless it says otherwise, every checksum
//! on the way up to the superblock is made right again, so that the engine believes what it reads. Whatever it reads then, it serves,
//! or refuses, or stops with a reason: it does not panic, and it comes to an end.

use super::{
    ram::{Blocks, RamDisk, RamLog, Region},
    take,
};
use std::{cell::RefCell, rc::Rc, sync::Arc};
use twinlog::{
    alloc::budget::Budget,
    base::{BlockAddress, CpNumber, LaneIndex, ObjectId, PoolId, PortionId, ReactorIndex, checksum},
    changelog::{Format, LaneIdentity, PortionRole},
    cp::{coordinator::PoolState, message::Grant},
    format::{
        reference::BlockRef,
        superblock::{Superblock, TreeRoot, slot_blocks},
    },
    node::{
        admin::{AdminCall, AdminReply, AdminRequest},
        engine::{Engine, EngineLimits, EngineParts},
        request::{Payload, RequestTag, VolumeOperation, VolumeRequest, VolumeService},
    },
    pool::{
        io::Io,
        superblocks::{CreatePool, first_superblock},
    },
    reactor::mailbox::{Waker, mailbox},
};
use twinlog_device::{BLOCK_BYTES, BlockBytes, BlockPool, Nanos, Prng};
use zerocopy::IntoBytes;

const DISK_BLOCKS: u64 = 1024;
const LOG_BYTES: usize = 4096 + (64 << 10);
const MEMORY_BLOCKS: u32 = 1024;
/// Turns until something that should end is taken for endless.
const TURNS_MAX: usize = 30_000;

struct NoSleep;
impl Waker for NoSleep {
    fn wake(&self) {}
}

/// The engine on its disk, with a clock that runs ahead while nothing moves.
struct Node {
    engine: Engine<RamDisk, RamLog>,
    now: Nanos,
    request: u64,
}

impl Node {
    fn open(disk: &Blocks, log: &Region) -> Option<Self> {
        let blocks = BlockPool::new(MEMORY_BLOCKS).expect("a small mapping");
        let (peer, mailbox) = mailbox(64, Arc::new(NoSleep));
        let parts = EngineParts {
            index: ReactorIndex(0),
            reactor_count: 1,
            devices: vec![RamDisk::new(disk)],
            lanes: vec![(LaneIndex(0), RamLog::new(log))],
            blocks,
            budget: Budget::default(),
            limits: EngineLimits::for_memory(u64::from(MEMORY_BLOCKS), 1),
            grant: Grant::SINGLE,
            mailbox,
            peers: vec![peer],
            holders: Arc::default(),
        };
        let engine = Engine::open(parts);
        let mut node = Self { engine, now: Nanos(0), request: 0 };
        node.until(|node| node.engine.is_serving()).then_some(node)
    }

    /// Turns until `is_done`; false if the pool has stopped.
    fn until(&mut self, mut is_done: impl FnMut(&mut Self) -> bool) -> bool {
        for _ in 0..TURNS_MAX {
            if matches!(self.engine.pool_state(), Some(PoolState::Stopped(reason)) if !reason.is_empty()) {
                return false;
            }
            if is_done(self) {
                return true;
            }
            let busy = self.engine.poll(self.now, 1);
            let deadline = self.engine.next_deadline().filter(|_| !busy);
            self.now = Nanos(deadline.map_or(self.now.0, |deadline| deadline.0).max(self.now.0 + 20_000));
        }
        panic!("the engine comes to no end");
    }

    fn admin(&mut self, request: AdminRequest) -> Option<AdminReply> {
        let (reply, replies) = crossbeam_channel::bounded(1);
        self.engine.call(AdminCall { request, reply });
        let mut answer = None;
        self.until(|_| {
            answer = replies.try_recv().ok();
            answer.is_some()
        });
        answer
    }

    /// One operation and its end, whatever it is.
    fn perform(&mut self, volume: ObjectId, operation: VolumeOperation) -> bool {
        self.request += 1;
        let tag = RequestTag { session: 1, request: self.request };
        self.engine.submit(VolumeRequest { tag, volume, host: None, pass: None, operation });
        self.until(|node| node.engine.poll_reply().is_some())
    }

    fn write(&mut self, volume: ObjectId, offset: u64, bytes: &[u8]) -> bool {
        let range = offset..offset + bytes.len() as u64;
        let Some(mut payload) = Payload::allocate(self.engine.blocks(), range) else { return true };
        payload.fill(0, bytes);
        self.perform(volume, VolumeOperation::Write { payload, durable: false })
    }
}

/// A pool with a history, as its disk and its log were when it stopped; and its blocks in use, children before parents.
struct Template {
    disk: Vec<Option<Box<BlockBytes>>>,
    log: Vec<u8>,
    used: Vec<(usize, Kind)>,
    superblock: Superblock,
}

/// Where a block has references.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Node,
    Objects,
    Freed,
    Reap,
}

thread_local! {
    static TEMPLATE: Template = Template::make();
}

fn shared<T>(value: T) -> Rc<RefCell<T>> {
    Rc::new(RefCell::new(value))
}

impl Template {
    fn make() -> Self {
        let (disk, log) =
            (shared(vec![None; usize::try_from(DISK_BLOCKS).expect("small")]), shared(vec![0; LOG_BYTES]));
        let mut io = Io::new(vec![RamDisk::new(&disk)], BlockPool::new(64).expect("a small mapping"), 8);
        let superblock = first_superblock(PoolId(7), "a", &[(1, DISK_BLOCKS)], 1, 0);
        let mut create = CreatePool::new(&mut io, 0, superblock, false);
        let mut is_done = false;
        while !is_done {
            io.poll();
            while let Some(event) = io.next_event() {
                is_done |= create.event(&mut io, event).expect("an empty disk");
            }
        }
        let identity = LaneIdentity { pool: PoolId(7), role: PortionRole::Own, lane: LaneIndex(0), lane_count: 1 };
        let mut format = Format::new(RamLog::new(&log), &identity, PortionId(9));
        while !format.poll().expect("sound memory") {}
        Self::live(&disk, &log);
        let (disk, log) = (disk.borrow().clone(), log.borrow().clone());
        let superblock = newest(&disk);
        let mut template = Self { disk, log, used: Vec::new(), superblock };
        let Superblock { object_table, space_map, freed, reap, .. } = template.superblock.clone();
        template.tree(&object_table, true);
        template.tree(&space_map, false);
        template.list(freed, Kind::Freed);
        template.list(reap, Kind::Reap);
        template
    }

    /// Writes, frees, deletes, and takes consistency points.
    fn live(disk: &Blocks, log: &Region) {
        let mut node = Node::open(disk, log).expect("a new pool");
        for (name, size_bytes) in [("vol", 2 << 20), ("deep", 1 << 40), ("gone", 1 << 20)] {
            let request = AdminRequest::VolumeCreate { name: name.to_owned(), size_bytes, block_bytes: 4096 };
            assert!(matches!(node.admin(request), Some(AdminReply::Volumes { .. })));
        }
        let mut prng = Prng::new(5);
        for round in 0..3 {
            for name in ["vol", "deep", "gone"] {
                let Some(volume) = node.engine.volume(name) else { continue };
                for _ in 0..10 {
                    let offset = prng.below(volume.size_bytes.min(200 << 20) - 8192);
                    assert!(node.write(volume.id, offset, &vec![round + 1; 6000]));
                }
                let discard = VolumeOperation::Discard { range: 0..16_384, durable: false };
                assert!(node.perform(volume.id, discard));
            }
            if round == 1 {
                let deleted = node.admin(AdminRequest::VolumeDelete { name: "gone".to_owned() });
                assert_eq!(deleted, Some(AdminReply::Done));
            }
            assert_eq!(node.admin(AdminRequest::Checkpoint), Some(AdminReply::Done));
        }
        // Some changes are only in the log.
        let volume = node.engine.volume("vol").expect("made above");
        (0..5).for_each(|index| assert!(node.write(volume.id, index * 100_000, b"only in the log")));
    }

    fn tree(&mut self, tree: &TreeRoot, is_table: bool) {
        if tree.root.is_hole() {
            return;
        }
        let block = index(tree.root.address());
        let bytes = self.disk[block].clone().expect("written");
        if tree.levels > 0 {
            for child in twinlog::format::reference::node(&bytes) {
                self.tree(&TreeRoot { root: *child, levels: tree.levels - 1 }, is_table);
            }
        } else if is_table {
            let objects = twinlog::format::object::records(&bytes).iter().filter_map(|record| record.verify().ok()?);
            for volume in objects.filter_map(twinlog::format::object::Object::into_volume) {
                self.tree(&TreeRoot { root: volume.root, levels: volume.levels }, false);
            }
        }
        let leaf = if is_table { Kind::Objects } else { Kind::Data };
        self.used.push((block, if tree.levels > 0 { Kind::Node } else { leaf }));
    }

    fn list(&mut self, first: BlockRef, kind: Kind) {
        if !first.is_hole() {
            let block = index(first.address());
            let next = self.disk[block].as_ref().expect("written")[16..48].to_vec();
            self.list(zerocopy::FromBytes::read_from_bytes(&next[..]).expect("a reference has 32 bytes"), kind);
            self.used.push((block, kind));
        }
    }
}

fn index(address: BlockAddress) -> usize {
    usize::try_from(address.block()).expect("small")
}

fn newest(disk: &[Option<Box<BlockBytes>>]) -> Superblock {
    let places = [CpNumber(0), CpNumber(1)].into_iter().flat_map(|cp| slot_blocks(cp, DISK_BLOCKS));
    let verify = |place: u64| {
        let bytes = disk[usize::try_from(place).expect("small")].as_ref()?;
        Superblock::verify(bytes, place).ok().map(|(superblock, _)| superblock)
    };
    places.filter_map(verify).max_by_key(|superblock| superblock.cp).expect("a pool")
}

/// Makes the checksum of the reference at `at` in `bytes` right for the block that it names now, if there is one.
fn mend(disk: &[Option<Box<BlockBytes>>], bytes: &mut BlockBytes, at: usize) {
    let number = |from: usize| u64::from_le_bytes(take::<8>(&bytes[from..]).0);
    let (address, birth) = (BlockAddress(number(at)), CpNumber(number(at + 8)));
    let is_present = bytes[at + 28] & 1 != 0;
    let block = (is_present && address.device() == 0).then(|| disk.get(index(address))).flatten();
    if let Some(Some(block)) = block {
        let reference = BlockRef::new(address, birth, block);
        bytes[at + 16..at + 24].copy_from_slice(&reference.as_bytes()[16..24]);
    }
}

/// Mends every reference of a block that was of `kind` before it was changed.
fn mend_block(disk: &mut [Option<Box<BlockBytes>>], (block, kind): (usize, Kind)) {
    let Some(mut bytes) = disk[block].clone() else { return };
    let places = match kind {
        Kind::Data => return,
        Kind::Node => (0..BLOCK_BYTES).step_by(32),
        Kind::Objects => (48..BLOCK_BYTES).step_by(256),
        Kind::Freed => (16..17).step_by(1),
        Kind::Reap => (48..BLOCK_BYTES - 40).step_by(40),
    };
    if kind == Kind::Reap {
        mend(disk, &mut bytes, 16);
    }
    for at in places {
        mend(disk, &mut bytes, at);
    }
    disk[block] = Some(bytes);
}

/// Bytes: one that says whether checksums are mended, then changes of six bytes each: which block (1), where in it (2), how (1), what (2).
pub(crate) fn pool(data: &[u8]) -> bool {
    TEMPLATE.with(|template| damaged_pool(template, data))
}

fn damaged_pool(template: &Template, data: &[u8]) -> bool {
    let ([mode], data) = take::<1>(data);
    let mut disk = template.disk.clone();
    let mut log = template.log.clone();
    let own = slot_blocks(template.superblock.cp, DISK_BLOCKS).map(|place| usize::try_from(place).expect("small"));
    for change in data.chunks_exact(6).take(12) {
        let [which, low, high, how, first, second] = take::<6>(change).0;
        let at = usize::from(u16::from_le_bytes([low, high]));
        if which == 255 {
            let at = at % log.len();
            log[at] ^= first;
            continue;
        }
        let targets = template.used.len() + 1;
        let target = usize::from(which) % targets;
        let block = template.used.get(target).map_or(own[0], |(block, _)| *block);
        let (other, _) = template.used[usize::from(first) % template.used.len()];
        let other = disk[other].clone().expect("in use");
        let bytes = disk[block].as_mut().expect("in use");
        let at = at % BLOCK_BYTES;
        alter(bytes, at, (how, first, second), &other);
    }
    if mode % 8 != 7 {
        for &block in &template.used {
            mend_block(&mut disk, block);
        }
        let mut bytes = disk[own[0]].clone().expect("a superblock");
        for at in [112, 144, 176, 208] {
            mend(&disk, &mut bytes, at);
        }
        for place in own {
            let number = place as u64;
            bytes[40..48].copy_from_slice(&number.to_le_bytes());
            let sum = checksum(number, &bytes[..BLOCK_BYTES - 8]);
            bytes[BLOCK_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
            disk[place] = Some(bytes.clone());
        }
    }
    use_pool(&shared(disk), &shared(log))
}

/// Changes bytes as an input says: a byte, a number that is a bound, a reference from elsewhere, a bit.
fn alter(bytes: &mut BlockBytes, at: usize, (how, first, second): (u8, u8, u8), other: &BlockBytes) {
    let eight = at / 8 * 8;
    match how % 6 {
        0 => bytes[at] = first,
        1 => bytes[at] ^= 1 << (first % 8),
        2 => bytes[eight..eight + 8].copy_from_slice(&u64::from(u16::from_le_bytes([first, second])).to_le_bytes()),
        3 => {
            let edges = [0, 1, 15, 16, DISK_BLOCKS - 1, DISK_BLOCKS, 1 << 47, 1 << 48, 1 << 50, 1 << 63, u64::MAX];
            let edge = edges[usize::from(first) % edges.len()];
            bytes[eight..eight + 8].copy_from_slice(&edge.to_le_bytes());
        }
        4 => {
            let (to, from) = (at / 32 * 32, usize::from(second) % 128 * 32);
            bytes[to..to + 32].copy_from_slice(&other[from..from + 32]);
        }
        _ => bytes[at..(at + usize::from(second)).min(BLOCK_BYTES)].fill(first),
    }
}

/// Opens the pool and does a little of everything. True if it served and a check finds it whole.
fn use_pool(disk: &Blocks, log: &Region) -> bool {
    let Some(mut node) = Node::open(disk, log) else { return false };
    // The answer comes after the volumes have become known to front ends.
    let Some(AdminReply::Volumes { .. }) = node.admin(AdminRequest::VolumeList) else { return false };
    let volumes = node.engine.volumes();
    for volume in volumes.iter().take(4) {
        let end = volume.size_bytes;
        let last = end.saturating_sub(8192)..end;
        let operations = [
            VolumeOperation::Read(0..end.min(256 << 10)),
            VolumeOperation::Read(last.clone()),
            VolumeOperation::BlockStatus { range: 0..end, extents_max: 64 },
            VolumeOperation::Cache(0..end.min(64 << 10)),
            VolumeOperation::Discard { range: last, durable: false },
            VolumeOperation::WriteZeroes { range: 0..end.min(20_000), may_free: true, durable: false },
        ];
        for operation in operations {
            if !node.perform(volume.id, operation) {
                return false;
            }
        }
        if !node.write(volume.id, 4096.min(end / 2), &[9; 4096]) {
            return false;
        }
    }
    let mut whole = false;
    let orders = [
        AdminRequest::Status,
        AdminRequest::PoolCheck,
        AdminRequest::Checkpoint,
        AdminRequest::VolumeCreate { name: "new".to_owned(), size_bytes: 1 << 30, block_bytes: 4096 },
        AdminRequest::VolumeResize { name: "vol".to_owned(), size_bytes: 4096 },
        AdminRequest::VolumeDelete { name: "deep".to_owned() },
        AdminRequest::Checkpoint,
        AdminRequest::Checkpoint,
        AdminRequest::Stop,
    ];
    for order in orders {
        match node.admin(order) {
            Some(AdminReply::Report(report)) => whole = report.problems.is_empty(),
            Some(_) => {}
            None => return false,
        }
    }
    // What the check found whole stays whole.
    if whole && let Some(mut again) = Node::open(disk, log) {
        let report = again.admin(AdminRequest::PoolCheck);
        assert!(matches!(&report, Some(AdminReply::Report(report)) if report.problems.is_empty()), "{report:?}");
    }
    whole
}
