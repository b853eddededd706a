//! What one history is made of, drawn from its seed: sizes are tiny, so that rings wrap and pools fill within a few requests.

use crate::fault::Damage;
use twinlog_device::{DurabilityClass, Prng};
use twinlog_sim::{LogShape, MediumConfig};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// In what blocks hosts address the volume of this name: of either size some, and each history knows it without keeping it.
#[must_use]
pub fn block_bytes_of(name: &str) -> u64 {
    if name.bytes().next().is_some_and(|first| first % 2 == 0) { 4096 } else { 512 }
}

/// One history.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Blocks of each device.
    pub device_blocks: Vec<u64>,
    /// Whether there is a further disk, empty, that the pool can grow by: as large as the first.
    pub has_spare: bool,
    /// Lanes of the pool.
    pub lanes: u16,
    /// Most reactors that a life has.
    pub reactors_max: u16,
    /// Messages that wait between two reactors: so few that the bound is met.
    pub messages_max: usize,
    /// Blocks of each lane's ring.
    pub ring_blocks: u64,
    /// Whether log memory is persistent memory; else a file.
    pub is_pmem: bool,
    /// Blocks that may wait for their persist.
    pub pending_blocks: u64,
    /// What the log outlives.
    pub durability: DurabilityClass,
    /// Blocks of memory.
    pub memory_blocks: u32,
    /// Bytes of a disk's sector.
    pub sector_bytes: u32,
    /// Unflushed blocks that a disk's cache holds.
    pub cache_blocks_max: usize,
    /// Longest latency of a disk and of the log.
    pub latency_ns: (u64, u64),
    /// How many times longer reads of disks take.
    pub read_slowness: u64,
    /// Blocks of the largest volume.
    pub volume_blocks_max: u64,
    /// Volumes at most.
    pub volumes_max: usize,
    /// Whether clients speak NBD; else they call the engine.
    pub is_nbd: bool,
    /// Clients.
    pub sessions: usize,
    /// Requests in flight.
    pub depth: usize,
    /// Lives before the last one.
    pub lives: u32,
    /// Requests of a life, at most.
    pub requests_max: u64,
    /// Longest write.
    pub write_bytes_max: u64,
    /// Whether writes may begin and end anywhere; else on sectors of 512 bytes.
    pub any_byte: bool,
    /// Whether every write is of one whole block: then records are of one length, and those of a torn tail may fit behind new ones.
    pub is_uniform: bool,
    /// Whether the workload tries to fill the pool.
    pub fills_pool: bool,
    /// Whether devices report errors in some lives.
    pub has_errors: bool,
    /// What is done to data behind the engine's back, in this history.
    pub damage: Option<Damage>,
    /// What the fault model lacks, to see whether that is noticed.
    pub weakness: Option<Weakness>,
}

impl Setup {
    /// Draws a history.
    #[must_use]
    pub fn draw(prng: &mut Prng) -> Self {
        let lanes = if prng.chance(1, 3) { 2 } else { 1 };
        let durability = match prng.below(16) {
            0 => DurabilityClass::Volatile,
            1 | 2 => DurabilityClass::Process,
            _ => DurabilityClass::Durable,
        };
        let fills_pool = prng.chance(1, 24);
        let damage = (prng.chance(1, 5) && durability == DurabilityClass::Durable).then(|| *prng.pick(&Damage::ALL));
        let ring_blocks = prng.between(4, 24);
        let requests_max = *prng.pick(&[4, 12, 30]);
        // Short lives are many: crash upon crash.
        let lives = prng.between(1, if requests_max == 4 { 6 } else { 3 });
        let (disk_ns, log_ns) = (prng.between(1000, 8000), prng.between(500, 5000));
        let mut setup = Self {
            device_blocks: if prng.chance(1, 5) { vec![1024, 1024] } else { vec![1024] },
            has_spare: false,
            lanes,
            reactors_max: if prng.chance(1, 3) { 2 } else { 1 },
            messages_max: *prng.pick(&[1, 2, 8]),
            ring_blocks,
            is_pmem: prng.chance(1, 3),
            pending_blocks: *prng.pick(&[1, 2, 8, 1024]),
            durability,
            memory_blocks: if fills_pool { 1024 } else { 384 },
            sector_bytes: *prng.pick(&[512, 512, 4096]),
            cache_blocks_max: *prng.pick(&[4, 64, 4096]),
            latency_ns: (disk_ns, log_ns),
            read_slowness: *prng.pick(&[1, 1, 1, 20]),
            volume_blocks_max: *prng.pick(&[4, 12, 40]),
            volumes_max: index(prng.between(1, 3)),
            is_nbd: prng.chance(1, 6),
            sessions: index(prng.between(1, 3)),
            depth: index(prng.between(1, 6)),
            lives: u32::try_from(lives).expect("small"),
            requests_max,
            write_bytes_max: (ring_blocks / 4 * BLOCK).min(24 << 10),
            any_byte: prng.chance(1, 3),
            is_uniform: prng.chance(1, 4),
            fills_pool,
            has_errors: damage.is_none() && prng.chance(1, 4),
            damage,
            weakness: None,
        };
        setup.has_spare = prng.chance(1, 2);
        setup
    }

    /// One node without faults: a disk, a lane in a file, one reactor, clients that call the engine. Tests change what they are about.
    #[must_use]
    pub fn plain(durability: DurabilityClass) -> Self {
        Self {
            device_blocks: vec![1024],
            has_spare: false,
            lanes: 1,
            reactors_max: 1,
            messages_max: 8,
            ring_blocks: 64,
            is_pmem: false,
            pending_blocks: 1024,
            durability,
            memory_blocks: 384,
            sector_bytes: 512,
            cache_blocks_max: 4096,
            latency_ns: (8000, 5000),
            read_slowness: 1,
            volume_blocks_max: 64,
            volumes_max: 3,
            is_nbd: false,
            sessions: 1,
            depth: 6,
            lives: 1,
            requests_max: 30,
            write_bytes_max: 24 << 10,
            any_byte: true,
            is_uniform: false,
            fills_pool: false,
            has_errors: false,
            damage: None,
            weakness: None,
        }
    }

    /// Whether an answer alone makes a change outlive every crash.
    #[must_use]
    pub fn answers_last(&self) -> bool {
        self.durability == DurabilityClass::Durable
    }

    /// Whether hosts may reserve volumes: where answers outlive crashes, clients have identities, and nothing else fills the pool or damages it.
    #[must_use]
    pub fn has_hosts(&self) -> bool {
        let is_plain = self.damage.is_none() && self.weakness.is_none() && !self.fills_pool;
        is_plain && !self.is_nbd && self.answers_last()
    }

    /// Makes the history weaker.
    pub fn weaken(&mut self, weakness: Weakness) {
        self.weakness = Some(weakness);
        match weakness {
            // A persist that fails is torn, too.
            Weakness::NoErrors | Weakness::WholeLog => self.has_errors = false,
            Weakness::NoDamage => self.damage = None,
            Weakness::RoomyPool => self.fills_pool = false,
            Weakness::NoPowerCut | Weakness::NoCrash => {}
        }
    }

    /// The disk with this index; the spare one comes last.
    #[must_use]
    pub fn medium(&self, position: usize) -> MediumConfig {
        let block_count = *self.device_blocks.get(position).unwrap_or(&self.device_blocks[0]);
        let mut config = MediumConfig::new(&format!("disk-{position}"), block_count);
        config.info.sector_bytes = self.sector_bytes;
        config.latency_ns = (500, self.latency_ns.0);
        config.read_slowness = self.read_slowness;
        config.cache_blocks_max = self.cache_blocks_max;
        config
    }

    /// The log memory of a lane.
    #[must_use]
    pub fn log(&self) -> LogShape {
        log_shape(self.durability, self.is_pmem, (self.ring_blocks, self.pending_blocks), self.latency_ns.1)
    }
}

/// A fault model that is weaker than it should be: the run must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// Power is never lost.
    NoPowerCut,
    /// Nothing is ever lost of a log's unfinished persists.
    WholeLog,
    /// Every life ends in order.
    NoCrash,
    /// Devices never report errors.
    NoErrors,
    /// Data is never damaged.
    NoDamage,
    /// Pools never fill.
    RoomyPool,
}

impl Weakness {
    /// Every weakness.
    pub const ALL: [Self; 6] =
        [Self::NoPowerCut, Self::WholeLog, Self::NoCrash, Self::NoErrors, Self::NoDamage, Self::RoomyPool];

    /// Classes of faults that do not matter any more: how the weakness is noticed.
    #[must_use]
    pub fn silences(self) -> &'static [&'static str] {
        match self {
            Self::NoPowerCut => &["power cut", "cached write lost", "torn write"],
            Self::WholeLog => &["log store lost", "torn log persist"],
            Self::NoCrash => &[
                "power cut",
                "crash at a durable step",
                "landing at a durable step",
                "crash in recovery",
                "crash in growth",
            ],
            Self::NoErrors => {
                &["read error", "write error", "device gone", "no space", "log persist error", "log read error"]
            }
            Self::NoDamage => &["bit rot", "lost write", "misdirected write", "log bit rot", "unperformable record"],
            Self::RoomyPool => &["full pool"],
        }
    }

    /// Name and what is missing.
    #[must_use]
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::NoPowerCut => ("weak: no power cut", "a power cut is only the end of a process"),
            Self::WholeLog => ("weak: whole log", "a crash lands every unfinished persist of a log"),
            Self::NoCrash => ("weak: no crash", "every life ends in order"),
            Self::NoErrors => ("weak: no errors", "devices never report errors"),
            Self::NoDamage => ("weak: no damage", "data is never damaged"),
            Self::RoomyPool => ("weak: roomy pool", "pools never fill"),
        }
    }
}

/// A number as an index.
#[must_use]
pub fn index(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}

/// The log memory of a lane: in blocks its ring, and what a file may have in flight; and the longest latency of a file.
pub(crate) fn log_shape(
    durability: DurabilityClass,
    is_pmem: bool,
    (ring_blocks, pending_blocks): (u64, u64),
    latency_ns_max: u64,
) -> LogShape {
    let size_bytes = (1 + ring_blocks) * BLOCK;
    if is_pmem {
        return LogShape { durability, ..LogShape::pmem(size_bytes) };
    }
    let pending_bytes_max = pending_blocks * BLOCK;
    LogShape { latency_ns: (200, latency_ns_max), durability, pending_bytes_max, ..LogShape::file(size_bytes) }
}
