//! What one history is made of, drawn from its seed: sizes are tiny, so that rings wrap and pools fill within a few requests.

use crate::fault::Damage;
use twinlog_device::{DurabilityClass, Prng};
use twinlog_sim::{LogShape, MediumConfig};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// One history.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Blocks of each device.
    pub device_blocks: Vec<u64>,
    /// Lanes of the pool.
    pub lanes: u16,
    /// Most reactors that a life has.
    pub reactors_max: u16,
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
        let (disk_ns, log_ns) = (prng.between(1000, 8000), prng.between(500, 5000));
        Self {
            device_blocks: if prng.chance(1, 5) { vec![1024, 1024] } else { vec![1024] },
            lanes,
            reactors_max: if prng.chance(1, 3) { 2 } else { 1 },
            ring_blocks,
            is_pmem: prng.chance(1, 3),
            pending_blocks: *prng.pick(&[1, 2, 8, 1024]),
            durability,
            memory_blocks: if fills_pool { 1024 } else { 384 },
            sector_bytes: *prng.pick(&[512, 512, 4096]),
            cache_blocks_max: *prng.pick(&[4, 64, 4096]),
            latency_ns: (disk_ns, log_ns),
            volume_blocks_max: *prng.pick(&[4, 12, 40]),
            volumes_max: index(prng.between(1, 3)),
            is_nbd: prng.chance(1, 6),
            sessions: index(prng.between(1, 3)),
            depth: index(prng.between(1, 6)),
            lives: u32::try_from(prng.between(1, 3)).expect("small"),
            requests_max: *prng.pick(&[4, 12, 30]),
            write_bytes_max: (ring_blocks / 4 * BLOCK).min(24 << 10),
            any_byte: prng.chance(1, 3),
            fills_pool,
            has_errors: damage.is_none() && prng.chance(1, 4),
            damage,
            weakness: None,
        }
    }

    /// Whether an answer alone makes a change outlive every crash.
    #[must_use]
    pub fn answers_last(&self) -> bool {
        self.durability == DurabilityClass::Durable
    }

    /// Makes the history weaker.
    pub fn weaken(&mut self, weakness: Weakness) {
        self.weakness = Some(weakness);
        match weakness {
            Weakness::NoErrors => self.has_errors = false,
            Weakness::NoDamage => self.damage = None,
            Weakness::RoomyPool => self.fills_pool = false,
            Weakness::NoPowerCut | Weakness::WholeLog | Weakness::NoCrash => {}
        }
    }

    /// The disk with this index.
    #[must_use]
    pub fn medium(&self, position: usize) -> MediumConfig {
        let mut config = MediumConfig::new(["disk-0", "disk-1"][position], self.device_blocks[position]);
        config.info.sector_bytes = self.sector_bytes;
        config.latency_ns = (500, self.latency_ns.0);
        config.cache_blocks_max = self.cache_blocks_max;
        config
    }

    /// The log memory of a lane.
    #[must_use]
    pub fn log(&self) -> LogShape {
        let size_bytes = (1 + self.ring_blocks) * BLOCK;
        let durability = self.durability;
        if self.is_pmem {
            LogShape { durability, ..LogShape::pmem(size_bytes) }
        } else {
            let pending_bytes_max = self.pending_blocks * BLOCK;
            LogShape {
                latency_ns: (200, self.latency_ns.1),
                durability,
                pending_bytes_max,
                ..LogShape::file(size_bytes)
            }
        }
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
