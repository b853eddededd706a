//! A driver and a controller that breaks the specification in every way, from a seed.
//!
//! Whatever the controller does: no panic, no endless wait, no access to memory that was not its own, every operation completes exactly
//! once, and no block is lost unless neither the controller nor its function could be stopped. Where the controller behaves, every
//! operation succeeds and every read returns what was written.
//!
//! `TWINLOG_FUZZ_TIMES` runs more histories, `TWINLOG_SEED` begins at another seed; a history that fails is one seed.

#![expect(clippy::disallowed_methods, reason = "how much and from which seed comes from the environment")]

use crate::support::{Rig, TURNS_MAX};
use std::{collections::BTreeMap, time::Duration};
use twinlog_device::{BlockCompletion, BlockDevice, BlockRange, Persistence, Prng, Token};
use twinlog_nvme::{
    Controller, ControllerOptions, ControllerState, Failure, Reservation, ReservationKind, Unsupported,
    model::{Mischief, ModelConfig, ModelNamespace},
};

/// Histories of an ordinary test run.
const HISTORIES: u64 = 3000;

/// Blocks of a namespace.
const BLOCKS: u64 = 24;

/// As this driver is told, and as it has it from the specification and by itself.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
const UNIT: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Turns from the end of a pause until the driver has surely seen that.
const CALM_MIN: u64 = 10;

/// What is expected of a block: the byte that fills it.
type Content = BTreeMap<u64, u8>;

/// The same for the blocks of one read; none where anything may come.
type Known = Vec<Option<u8>>;

struct History {
    rig: Rig,
    prng: Prng,
    behaves: bool,
    /// Turns that a good controller's pauses take at most, by its own word; none where it never pauses.
    pause_turns_max: Option<u64>,
    /// Operations in flight; of reads what each block holds, as far as it is known.
    flying: BTreeMap<Token, Option<Known>>,
    content: Content,
    next: u64,
    succeeded: u64,
    failed: u64,
    /// Pauses of a good controller.
    paused: u64,
}

fn config(seed: u64, prng: &mut Prng, mischief: Mischief) -> ModelConfig {
    let mut config = ModelConfig::new(seed);
    let shape = |id, prng: &mut Prng| ModelNamespace {
        id,
        block_count: BLOCKS,
        lba_shift: u8::try_from(prng.between(9, 12)).expect("small"),
    };
    config.namespaces =
        (0..prng.between(1, 3)).map(|index| shape(1 + 3 * u32::try_from(index).expect("small"), prng)).collect();
    config.queue_entries_max = u32::try_from(prng.between(2, 12)).expect("small");
    config.queues_max = u16::try_from(prng.between(1, 3)).expect("small");
    config.doorbell_shift = u8::try_from(prng.below(3)).expect("small");
    config.transfer_shift_max = u8::try_from(prng.below(4)).expect("small");
    config.has_write_cache = prng.chance(3, 4);
    config.has_sgls = prng.chance(1, 2);
    if prng.chance(1, 4) {
        (config.model, config.ignores_fua) = ("QEMU NVMe Ctrl", true);
    }
    config.delay_max = prng.below(6);
    // Nothing, up to ten seconds, or longer than the driver believes.
    config.activation_units = *prng.pick(&[0, 1, 20, 100, u16::MAX]);
    config.mischief = mischief;
    config
}

impl History {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let behaves = prng.chance(1, 4);
        let mischief = if behaves { Mischief::default() } else { Mischief::draw(&mut prng) };
        // Half of the bad ones behave until they serve.
        let is_late = prng.chance(1, 2);
        let config = config(seed, &mut prng, if is_late { Mischief::default() } else { mischief });
        let units = config.activation_units;
        let mut rig = Rig::new(config, 128);
        rig.step = Duration::from_millis(prng.between(50, 500));
        let patience_min = COMMAND_TIMEOUT + ABORT_TIMEOUT;
        let patience = (UNIT * units.into()).min(PAUSE_MAX).max(patience_min);
        let pause_turns_max = u64::try_from(patience.as_nanos() / rig.step.as_nanos()).expect("small");
        let pause_turns_max = (behaves && prng.chance(1, 2)).then_some(pause_turns_max);
        if pause_turns_max.is_some() {
            // Before it has said for how long, the driver has this much patience.
            let turns_max = u64::try_from(patience_min.as_nanos() / rig.step.as_nanos()).expect("small");
            rig.model.activate_firmware(prng.between(0, turns_max));
        }
        let options = ControllerOptions {
            disk_count: u16::try_from(prng.between(1, 3)).expect("small"),
            queue_depth: u16::try_from(prng.between(1, 8)).expect("small"),
            interrupts: false,
            command_timeout: COMMAND_TIMEOUT,
            abort_timeout: ABORT_TIMEOUT,
            admin_timeout: ADMIN_TIMEOUT,
            host_id: prng.chance(1, 2).then_some([7; 16]),
            ignores_fua: prng.chance(1, 4),
        };
        let controller = Controller::start(rig.model.function(), &[&rig.pool], options, rig.time.get());
        if let Ok(controller) = controller {
            let state = rig.settle(&controller);
            // A queue may be too short for all disks that have to share it.
            let too_short = ControllerState::Failed(Failure::Unsupported(Unsupported::QueueSize));
            assert!(
                !behaves || state == ControllerState::Live || state == too_short,
                "a good controller serves: {state:?}"
            );
            if state == ControllerState::Live {
                for _ in 0..options.disk_count {
                    rig.disks.extend(controller.open(1, rig.time.clone()).ok());
                }
            }
            rig.controller = Some(controller);
        }
        rig.model.set_mischief(mischief);
        let (flying, content) = (BTreeMap::new(), BTreeMap::new());
        Self { rig, prng, behaves, pause_turns_max, flying, content, next: 0, succeeded: 0, failed: 0, paused: 0 }
    }

    /// Queues one operation on blocks that no other one in flight touches: each slot of eight blocks is one disk's.
    fn operate(&mut self, disk: usize) {
        let info = self.rig.disks[disk].info().clone();
        let slice = info.block_count / 3;
        let base = slice * disk as u64;
        let is_idle = self.rig.disks[disk].room() == info.queue_depth as usize;
        let count = self.prng.between(1, u64::from(info.transfer_blocks_max).min(4).min(slice.max(1)));
        let first = if self.behaves {
            base + self.prng.below(slice - count + 1)
        } else {
            self.prng.below(info.block_count + 1)
        };
        let token = Token(self.next);
        self.next += 1;
        let length = usize::try_from(count).expect("small");
        let mut expected = None;
        match self.prng.below(8) {
            0 if !self.behaves && self.prng.chance(1, 2) => {
                let kind = ReservationKind::WriteExclusive;
                let reservation = *self.prng.pick(&[
                    Reservation::Report,
                    Reservation::Register { key: 1, persists: None },
                    Reservation::Preempt { key: 1, victim: 2, kind, aborts: true },
                ]);
                self.rig.disks[disk].reserve(token, reservation);
            }
            0 => self.rig.disks[disk].flush(token),
            1 if is_idle || !self.behaves => {
                self.rig.disks[disk].discard(token, BlockRange { first, count });
                self.content.retain(|block, _| !(first..first + count).contains(block));
            }
            2 if is_idle || !self.behaves => {
                self.rig.disks[disk].write_zeroes(token, BlockRange { first, count });
                self.content.extend((first..first + count).map(|block| (block, 0)));
            }
            3..=5 if is_idle || !self.behaves => {
                let byte = self.prng.next_u64().to_le_bytes()[0];
                let Some(mut blocks) = self.rig.pool.allocate_many(length) else { return };
                blocks.iter_mut().for_each(|block| block.fill(byte));
                let sources = blocks.into_iter().map(twinlog_device::BlockBuf::freeze).collect();
                let persistence = if self.prng.chance(1, 2) { Persistence::Durable } else { Persistence::Volatile };
                self.rig.disks[disk].write(token, first, sources, persistence);
                self.content.extend((first..first + count).map(|block| (block, byte)));
            }
            _ => {
                let Some(mut targets) = self.rig.pool.allocate_many(length) else { return };
                targets.iter_mut().for_each(|block| block.fill(0xEE));
                self.rig.disks[disk].read(token, first, targets);
                // What a write in flight is about to change is not known, nor what was discarded.
                let known = |block| if is_idle { self.content.get(&block).copied() } else { None };
                expected = Some((first..first + count).map(known).collect());
            }
        }
        self.flying.insert(token, expected);
    }

    fn take(&mut self, completion: BlockCompletion) {
        let expected = self.flying.remove(&completion.token).expect("an operation completes once");
        match &completion.result {
            Ok(()) => self.succeeded += 1,
            Err(error) => {
                self.failed += 1;
                assert!(!self.behaves, "a good controller does everything: {error}");
            }
        }
        let Some(expected) = expected else {
            assert!(completion.blocks.is_empty(), "only reads give blocks");
            return;
        };
        assert_eq!(completion.blocks.len(), expected.len(), "a read gives its blocks back, or others");
        if self.behaves {
            for (block, expected) in completion.blocks.iter().zip(expected) {
                assert!(
                    expected.is_none_or(|byte| block.iter().all(|&found| found == byte)),
                    "a read finds what was written"
                );
            }
        }
    }

    fn run(&mut self) {
        let count = self.prng.between(1, 40);
        let mut left = count;
        let mut completions = Vec::new();
        // In a pause and shortly after it there is no other one: the driver would take the two for one that is too long.
        let mut calm = 0_u64;
        for _ in 0..TURNS_MAX {
            calm = calm.saturating_sub(1);
            if let (Some(turns_max), true) = (self.pause_turns_max, calm == 0 && self.prng.chance(1, 20)) {
                let turns = self.prng.between(0, turns_max);
                self.rig.model.activate_firmware(turns);
                self.paused += 1;
                calm = turns + CALM_MIN;
            }
            for disk in 0..self.rig.disks.len() {
                while left > 0 && self.rig.disks[disk].room() > 0 && self.prng.chance(1, 2) {
                    left -= 1;
                    self.operate(disk);
                }
                self.rig.disks[disk].poll(&mut completions);
                completions.drain(..).for_each(|completion| self.take(completion));
            }
            self.rig.turn();
            if left == 0 && self.flying.is_empty() {
                return;
            }
        }
        panic!("{} operations never completed", self.flying.len());
    }

    fn end(mut self) -> [u64; 3] {
        self.rig.model.set_mischief(Mischief::default());
        let state = self.rig.controller.as_ref().map(|controller| self.rig.settle(controller));
        let faults = self.rig.model.dma_faults();
        assert_eq!(faults, [], "memory is reached as the driver allowed");
        if self.behaves {
            self.rig.expect_no_fault();
            let reset_count = self.rig.controller.as_ref().map_or(0, Controller::reset_count);
            assert_eq!(reset_count, 0, "a good controller is never reset");
        }
        // The last chance to stop it is when the driver goes.
        let may_lose = state == Some(ControllerState::Failed(Failure::Unstoppable))
            || state == Some(ControllerState::Failed(Failure::Gone));
        self.rig.close();
        let (free, all) = (self.rig.pool.free_count(), self.rig.pool.block_count());
        assert!(may_lose || free == all, "{free} of {all} blocks are left, {state:?}");
        [self.succeeded, self.failed, self.paused]
    }
}

/// Prints the seed of a history that fails.
struct Witness(u64);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the history of TWINLOG_SEED={} fails", self.0);
        }
    }
}

#[test]
fn no_controller_breaks_the_driver() {
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("TWINLOG_SEED").unwrap_or(0);
    // None at all runs the one history of the seed.
    let count = (HISTORIES * number("TWINLOG_FUZZ_TIMES").unwrap_or(1)).max(1);
    let (mut operations, mut served, mut failed, mut never, mut paused) = (0, 0, 0, 0, 0);
    for seed in first..first + count {
        let _witness = Witness(seed);
        let mut history = History::new(seed);
        never += u64::from(history.rig.disks.is_empty());
        if !history.rig.disks.is_empty() {
            history.run();
        }
        operations += history.next;
        let [succeeded, errors, pauses] = history.end();
        served += succeeded;
        failed += errors;
        paused += pauses;
    }
    println!(
        "{count} histories, {operations} operations: {served} succeeded, {failed} failed; {never} controllers never served; good ones paused {paused} times"
    );
    let has_all = served > failed && failed > count && never > count / 20 && paused > count / 20;
    assert!(count < 100 || has_all, "the mixture shows everything");
}
