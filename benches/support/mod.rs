//! A node of one reactor whose devices cost nothing: simulated disks without latency, log memory in plain memory. What is left to
//! measure is the engine's own work.

use std::{sync::Arc, time::Duration};
use twinlog::{
    alloc::budget::Budget,
    base::{LaneIndex, ObjectId, PoolId, PortionId, ReactorIndex},
    changelog::{Format, LaneIdentity, PortionRole},
    cp::message::Grant,
    node::{
        admin::{AdminCall, AdminReply, AdminRequest},
        engine::{Engine, EngineLimits, EngineParts},
        request::VolumeService as _,
    },
    pool::{
        io::Io,
        superblocks::{CreatePool, first_superblock},
    },
    reactor::{Mailbox, MailboxSender, Waker, mailbox::mailbox},
};
use twinlog_device::{BlockDevice as _, BlockPool, Platform as _, Wait};
use twinlog_sim::{Agenda, MediumConfig, SimDisk, SimMedium, SimPlatform, SimWorld};
use twinlog_uring::{MemoryLog, MemoryRegion};

/// Blocks of memory: 256 MiB.
const MEMORY_BLOCKS: u32 = 65_536;
/// Blocks of the one disk: 2 GiB.
const DISK_BLOCKS: u64 = 524_288;
/// The ring of the one lane: 64 MiB, so that consistency points come often.
const RING_BYTES: u64 = 64 << 20;
const POOL: PoolId = PoolId(1);

struct NoSleep;
impl Waker for NoSleep {
    fn wake(&self) {}
}

/// What outlives a node: its disk and its log's memory.
pub(crate) struct Machine {
    world: SimWorld,
    disk: SimMedium,
    log: MemoryRegion,
}

/// A running node.
pub(crate) struct Node {
    /// The reactor's platform.
    pub(crate) platform: SimPlatform<MemoryLog>,
    /// Its engine.
    pub(crate) engine: Engine<SimDisk, MemoryLog>,
    /// The volume, of 512 MiB.
    pub(crate) volume: ObjectId,
}

impl Machine {
    /// A machine with an empty pool.
    pub(crate) fn new() -> Self {
        let world = SimWorld::new(1);
        let config = MediumConfig { latency_ns: (0, 0), ..MediumConfig::new("disk", DISK_BLOCKS) };
        let (disk, log) = (SimMedium::new(&world, config), MemoryRegion::new("log", 4096 + RING_BYTES));
        create_pool(&disk, &world);
        format(&log);
        Self { world, disk, log }
    }

    /// Begins to open the pool, whose log may have records to replay.
    pub(crate) fn open(&self) -> Node {
        let agenda = Agenda::new(&self.world);
        let blocks = BlockPool::new(MEMORY_BLOCKS).expect("address space");
        let (sender, mailbox): (MailboxSender<_>, Mailbox<_>) = mailbox(64, Arc::new(NoSleep));
        let parts = EngineParts {
            index: ReactorIndex(0),
            reactor_count: 1,
            devices: vec![self.disk.open(&agenda)],
            lanes: vec![(LaneIndex(0), MemoryLog::new(&self.log))],
            blocks: blocks.clone(),
            budget: Budget::default(),
            limits: EngineLimits::for_memory(u64::from(MEMORY_BLOCKS), 1),
            grant: Grant::SINGLE,
            mailbox,
            peers: vec![sender],
            holders: Arc::default(),
        };
        let engine = Engine::open(parts);
        Node { platform: SimPlatform::new(agenda, blocks), engine, volume: ObjectId(0) }
    }
}

impl Node {
    /// A node with an empty pool, serving a new volume.
    pub(crate) fn start() -> Self {
        Self::start_on(&Machine::new())
    }

    /// The same on a machine whose pool is empty.
    pub(crate) fn start_on(machine: &Machine) -> Self {
        let mut node = machine.open();
        node.create_volume();
        node
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self) {
        self.engine.poll(self.platform.now(), self.platform.wall_clock_ns());
        self.platform.turn(Wait::No);
    }

    fn create_volume(&mut self) {
        let (reply, replies) = crossbeam_channel::bounded(1);
        let request = AdminRequest::VolumeCreate { name: "vol".to_owned(), size_bytes: 512 << 20, block_bytes: 4096 };
        self.engine.call(AdminCall { request, reply });
        let answer = loop {
            self.engine.poll(self.platform.now(), self.platform.wall_clock_ns());
            self.platform.turn(Wait::UpTo(Duration::from_millis(1)));
            if let Ok(answer) = replies.try_recv() {
                break answer;
            }
        };
        assert!(matches!(answer, AdminReply::Volumes { .. }), "{answer:?}");
        self.volume = self.engine.volume("vol").expect("just created").id;
    }
}

fn create_pool(medium: &SimMedium, world: &SimWorld) {
    let agenda = Agenda::new(world);
    let device = medium.open(&agenda);
    let superblock = first_superblock(POOL, "a", &[(1, device.info().block_count)], 1, 0);
    let mut io = Io::new(vec![device], BlockPool::new(256).expect("a small mapping"), 16);
    let mut create = CreatePool::new(&mut io, 0, superblock, false);
    let mut is_done = false;
    while !is_done {
        io.poll();
        while let Some(event) = io.next_event() {
            is_done |= create.event(&mut io, event).expect("the disk is empty and sound");
        }
        agenda.turn(Wait::UpTo(Duration::from_millis(1)));
    }
}

/// Makes the lane of the node's pool.
fn format(log: &MemoryRegion) {
    let identity = LaneIdentity { pool: POOL, role: PortionRole::Own, lane: LaneIndex(0), lane_count: 1 };
    let mut format = Format::new(MemoryLog::new(log), &identity, PortionId(1));
    while !format.poll().expect("memory does not fail") {}
}
