//! What one history of a pair is made of, drawn from its seed. Time limits are some thousand times shorter than those of real pairs, so
//! that a lease ends within a few hundred turns.

use super::{aim::Aim, forced::Lost};
use crate::setup::{BLOCK, index, log_shape};
use std::time::Duration;
use twinlog_device::{DurabilityClass, Prng};
use twinlog_sim::{LogShape, MediumConfig, PathPlan};

/// Blocks of a pool's disk.
pub(super) const DISK_BLOCKS: u64 = 1024;

/// Reactors of a node, at most.
pub(super) const REACTORS_MAX: usize = 2;

/// How a node makes sure that its partner has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FenceKind {
    /// By the lock of the partner's process alone.
    Lock,
    /// A command switches the partner's machine off.
    PowerOff,
    /// Its lease has ended, and it has lost the reservation of the pool's disk.
    Reservation,
}

/// How clients are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// They are at the engine's own interface.
    None,
    /// Over the sessions of NBD.
    Nbd,
    /// As hosts of NVMe/TCP.
    Hosts,
}

/// What can go wrong in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// A node's process ends.
    Kill,
    /// A node's machine loses its power.
    Dark,
    /// Both nodes and the disks lose their power.
    Blackout,
    /// The interconnect is cut, in one direction or both.
    Cut,
    /// Connections of the interconnect break.
    Break,
    /// The interconnect loses packets and is slow.
    Slow,
    /// A node does not reach the arbiter.
    ArbiterLost,
    /// Answers of the arbiter are lost, or its changes are made late.
    ArbiterDeaf,
    /// A node gets no turns.
    Pause,
    /// Commands of an operator: takeover, giveback.
    Command,
    /// Reads or writes of a disk fail.
    DiskError,
    /// A disk is slow.
    DiskSlow,
    /// Reads or writes of a log fail.
    LogError,
    /// A log stands still.
    LogSlow,
    /// A log is lost while its node is down.
    LogLost,
    /// A node reaches neither its partner nor the arbiter.
    Isolated,
    /// A node's process ends and is started again at once.
    Restart,
    /// Something happens a few turns after a pool is opened, or its register changed.
    Ambush,
    /// An operator gives up what only a lost log has.
    Forced,
    /// A node cannot open a pool's devices for a while.
    Unopenable,
    /// A block rots that a record in the log needs.
    Rot,
}

impl Trouble {
    /// Every kind but the last two, which are drawn after everything else: histories without it stay what they were.
    pub(super) const ALL: [Self; 19] = [
        Self::Kill,
        Self::Dark,
        Self::Blackout,
        Self::Cut,
        Self::Break,
        Self::Slow,
        Self::ArbiterLost,
        Self::ArbiterDeaf,
        Self::Pause,
        Self::Command,
        Self::DiskError,
        Self::DiskSlow,
        Self::LogError,
        Self::LogSlow,
        Self::LogLost,
        Self::Isolated,
        Self::Restart,
        Self::Ambush,
        Self::Forced,
    ];
}

/// An interconnect beside the reactors, and the seam between them. Small ones are full all the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeamSetup {
    /// Messages that wait.
    pub(super) count_max: u64,
    /// Their bytes.
    pub(super) bytes_max: u64,
    /// In how many of eight turns the interconnect is passed over.
    pub(super) laziness: u64,
}

/// One history.
#[derive(Clone, Debug)]
pub(super) struct PairSetup {
    /// Lanes of each pool.
    pub(super) lanes: u16,
    /// Reactors of each node.
    pub(super) reactors: [u16; 2],
    /// Messages that wait for one reactor.
    pub(super) messages_max: usize,
    /// Blocks of each lane's ring.
    pub(super) ring_blocks: u64,
    /// Whether a node's log memory is persistent memory; else a file.
    pub(super) is_pmem: [bool; 2],
    /// Blocks that may wait for their persist.
    pub(super) pending_blocks: u64,
    /// Blocks of memory of a node.
    pub(super) memory_blocks: u32,
    /// Bytes of a disk's sector.
    pub(super) sector_bytes: u32,
    /// Unflushed blocks that a disk's cache holds.
    pub(super) cache_blocks_max: usize,
    /// Longest latency of a disk and of a log.
    pub(super) latency_ns: (u64, u64),
    /// Paths of the interconnect.
    pub(super) paths: usize,
    /// Longest time that a piece is on its way.
    pub(super) path_ns: u64,
    /// Without a sign of the partner for this long it counts as gone.
    pub(super) detection: Duration,
    /// Whether a pool that was taken over is given back by itself.
    pub(super) gives_back: bool,
    /// Whether operators order every pool home as soon as they can.
    pub(super) is_hasty: bool,
    /// How nodes are fenced.
    pub(super) fence: FenceKind,
    /// Whether disks keep reservations when they lose their power.
    pub(super) keeps_reservations: bool,
    /// What goes wrong.
    pub(super) troubles: Vec<Trouble>,
    /// What operators lose for good.
    pub(super) lost: Lost,
    /// What it is aimed at, beside them.
    pub(super) aim: Option<Aim>,
    /// Whether reactors spin for a while before they wait, as they do on real machines. Most histories do without: turns in which nothing is done show
    /// little, and cost as much as others.
    pub(super) spins: bool,
    /// How often something does.
    pub(super) events: u64,
    /// Turns between two of them, at most.
    pub(super) gap_turns: u64,
    /// Volumes of each pool, at most.
    pub(super) volumes_max: u64,
    /// Blocks of the largest volume.
    pub(super) volume_blocks_max: u64,
    /// Requests in flight in each pool, from the clients of each node.
    pub(super) depth: usize,
    /// Whether only the node that serves has clients. What waits at the other one is performed as soon as it serves, and may overwrite what the takeover has
    /// lost before anybody looks.
    pub(super) is_one_sided: bool,
    /// How many detection times a request waits for a pool that nobody serves.
    pub(super) deadline: u32,
    /// The interconnect is polled beside the reactors; none: it is on the first reactor.
    pub(super) seam: Option<SeamSetup>,
    /// Longest write.
    pub(super) write_bytes_max: u64,
    /// Whether writes may begin and end anywhere; else on sectors of 512 bytes.
    pub(super) any_byte: bool,
    /// How clients are connected.
    pub(super) sessions: Sessions,
    /// Whether every write is of one whole block: then records of a torn or void tail may fit behind new ones.
    pub(super) is_uniform: bool,
}

impl PairSetup {
    /// Whether hosts may reserve volumes: where nothing that was answered is given up or held.
    pub(super) fn has_hosts(&self) -> bool {
        !self.troubles.contains(&Trouble::Forced) && !self.troubles.contains(&Trouble::Rot)
    }

    /// Draws a history.
    #[must_use]
    pub(super) fn draw(prng: &mut Prng) -> Self {
        let lanes = if prng.chance(1, 4) { 2 } else { 1 };
        // Short ones wrap and fill all the time; in long ones a takeover has much to perform, and fewer consistency points cost time.
        let ring_blocks = if prng.chance(1, 2) { prng.between(6, 24) } else { prng.between(24, 96) };
        // Few kinds of trouble in each history: each meets itself more often.
        let share = prng.between(1, 3);
        let mut troubles: Vec<Trouble> = Trouble::ALL.into_iter().filter(|_| prng.chance(share, 4)).collect();
        // What lies in wait finds what nothing else does.
        if prng.chance(1, 2) {
            troubles.extend([Trouble::Ambush; 2]);
        }
        if troubles.is_empty() {
            troubles.push(*prng.pick(&Trouble::ALL));
        }
        let mut reactors = || if prng.chance(1, 6) { 2 } else { 1 };
        let reactors = [reactors(), reactors()];
        let (disk_ns, log_ns) = (prng.between(1000, 8000), prng.between(500, 5000));
        let mut setup = Self {
            lanes,
            reactors,
            messages_max: *prng.pick(&[2, 8]),
            ring_blocks,
            is_pmem: [prng.chance(1, 3), prng.chance(1, 3)],
            pending_blocks: *prng.pick(&[2, 8, 1024]),
            memory_blocks: 768,
            sector_bytes: *prng.pick(&[512, 4096]),
            cache_blocks_max: *prng.pick(&[4, 64, 4096]),
            latency_ns: (disk_ns, log_ns),
            paths: if prng.chance(1, 3) { 2 } else { 1 },
            path_ns: prng.between(2000, 30_000),
            detection: Duration::from_micros(prng.between(800, 3000)),
            gives_back: prng.chance(2, 3),
            is_hasty: prng.chance(1, 4),
            fence: *prng.pick(&[FenceKind::Lock, FenceKind::PowerOff]),
            keeps_reservations: true,
            troubles,
            lost: *prng.pick(&[Lost::Log, Lost::Machine]),
            aim: None,
            spins: false,
            events: prng.between(2, 12),
            gap_turns: *prng.pick(&[40, 240, 800]),
            volumes_max: prng.between(1, 2),
            volume_blocks_max: *prng.pick(&[4, 12, 24]),
            depth: index(prng.between(1, 4)),
            is_one_sided: prng.chance(1, 4),
            deadline: *prng.pick(&[10, 100, 1000]),
            seam: None,
            write_bytes_max: 16 << 10,
            any_byte: prng.chance(1, 3),
            sessions: Sessions::None,
            is_uniform: prng.chance(1, 3),
        };
        if prng.chance(1, 4) {
            setup.troubles.push(Trouble::Unopenable);
        }
        if prng.chance(1, 3) {
            prng.pick(&Aim::ALL).prepare(&mut setup);
        }
        setup.spins = prng.chance(1, 16);
        setup.seam = prng.chance(1, 2).then(|| SeamSetup {
            count_max: *prng.pick(&[1, 4, 64]),
            bytes_max: *prng.pick(&[1 << 10, 32 << 10, 2 << 20]),
            laziness: *prng.pick(&[0, 0, 4, 7]),
        });
        setup.write_bytes_max = setup.write_bytes_max.min(setup.ring_blocks / 4 * BLOCK);
        setup.draw_rot(prng);
        setup.draw_reservation(prng);
        setup
    }

    /// In every fourth history blocks rot; what is given up by force is another story.
    fn draw_rot(&mut self, prng: &mut Prng) {
        if prng.chance(1, 4) && !self.troubles.contains(&Trouble::Forced) {
            self.troubles.extend([Trouble::Rot; 6]);
            match prng.below(4) {
                0 => {}
                1 => (self.aim, self.events) = (None, self.events.max(4)),
                _ => Aim::Held.prepare(self),
            }
            self.write_bytes_max = self.write_bytes_max.min(self.ring_blocks / 4 * BLOCK);
        }
    }

    /// In every sixth history reservations of the disks are the fence.
    fn draw_reservation(&mut self, prng: &mut Prng) {
        if prng.below(6) == 3 {
            (self.fence, self.keeps_reservations) = (FenceKind::Reservation, prng.chance(3, 4));
            if self.aim != Some(Aim::Held) && prng.chance(1, 2) {
                Aim::Fenced.prepare(self);
            }
        }
    }

    /// A pool's disk.
    #[must_use]
    pub(super) fn medium(&self, name: &str) -> MediumConfig {
        let mut config = MediumConfig::new(name, DISK_BLOCKS);
        config.info.sector_bytes = self.sector_bytes;
        config.latency_ns = (500, self.latency_ns.0);
        config.cache_blocks_max = self.cache_blocks_max;
        config.keeps_reservations = self.keeps_reservations;
        config
    }

    /// The log memory of a lane at a node.
    #[must_use]
    pub(super) fn log(&self, node: usize) -> LogShape {
        let blocks = (self.ring_blocks, self.pending_blocks);
        log_shape(DurabilityClass::Durable, self.is_pmem[node], blocks, self.latency_ns.1)
    }

    /// A path when all is well.
    #[must_use]
    pub(super) fn path(&self) -> PathPlan {
        PathPlan { latency_ns: [1000, self.path_ns], resent_after_ns_max: 200_000, ..PathPlan::default() }
    }

    /// A path that is slow and loses packets.
    #[must_use]
    pub(super) fn slow_path(&self) -> PathPlan {
        let resent_after_ns_max = u64::try_from(self.detection.as_nanos()).expect("some milliseconds");
        PathPlan { latency_ns: [1000, self.path_ns * 10], lost_one_in: 6, resent_after_ns_max, broken_one_in: 400 }
    }

    /// A path that loses a packet now and then: what follows it waits, and the other paths go on.
    #[must_use]
    pub(super) fn lossy_path(&self) -> PathPlan {
        let resent_after_ns_max = u64::try_from(self.detection.as_nanos()).expect("some milliseconds");
        PathPlan { lost_one_in: 12, resent_after_ns_max, ..self.path() }
    }

    /// A path whose connections break again and again.
    #[must_use]
    pub(super) fn breaking_path(&self) -> PathPlan {
        PathPlan { broken_one_in: 60, ..self.path() }
    }
}
