//! The fault model: each class does what it says, is counted when it fires, and counted again only when it matters.

use std::time::Duration;
use twinlog_device::{
    BLOCK_BYTES, BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceErrorKind, Persistence, Prng, SharedBlock,
    Token, Wait,
};
use twinlog_sim::{Agenda, Fault, FaultPlan, MediumConfig, SimDisk, SimMedium, SimWorld};

const SECTOR_BYTES: usize = 512;

/// One disk, used one operation at a time.
struct Rig {
    world: SimWorld,
    medium: SimMedium,
    agenda: Agenda,
    disk: SimDisk,
    blocks: BlockPool,
    prng: Prng,
}

impl Rig {
    fn new(seed: u64) -> Self {
        Self::with(seed, MediumConfig::new("disk", 1024))
    }

    fn with(seed: u64, config: MediumConfig) -> Self {
        let world = SimWorld::new(seed);
        let medium = SimMedium::new(&world, config);
        let agenda = Agenda::new(&world);
        let disk = medium.open(&agenda);
        let prng = world.fork_prng();
        Self { world, medium, agenda, disk, blocks: BlockPool::new(64).expect("a small mapping"), prng }
    }

    fn block(&self, value: u8) -> SharedBlock {
        let mut block = self.blocks.allocate().expect("few are used");
        block.fill(value);
        block.freeze()
    }

    /// The next completion, if there is one before the world crashes.
    fn complete(&mut self) -> Option<BlockCompletion> {
        let mut completions = Vec::new();
        while completions.is_empty() {
            self.agenda.turn(Wait::UpTo(Duration::from_secs(1)));
            self.disk.poll(&mut completions);
            if self.world.crashed() {
                return None;
            }
        }
        completions.pop()
    }

    fn result(&mut self) -> Result<(), DeviceErrorKind> {
        self.complete().expect("no crash was asked for").result.map_err(|error| error.kind)
    }

    fn start_write(&mut self, block: u64, value: u8, persistence: Persistence) {
        let bytes = self.block(value);
        self.disk.write(Token(0), block, vec![bytes], persistence);
    }

    fn write(&mut self, block: u64, value: u8) -> Result<(), DeviceErrorKind> {
        self.start_write(block, value, Persistence::Volatile);
        self.result()
    }

    fn flush(&mut self) {
        self.disk.flush(Token(0));
        self.result().expect("flushes do not fail here");
    }

    /// First byte of each sector.
    fn read(&mut self, block: u64) -> Result<[u8; BLOCK_BYTES / SECTOR_BYTES], DeviceErrorKind> {
        let buffer = self.blocks.allocate().expect("few are used");
        self.disk.read(Token(0), block, vec![buffer]);
        let completion = self.complete().expect("no crash was asked for");
        completion.result.map_err(|error| error.kind)?;
        Ok(std::array::from_fn(|sector| completion.blocks[0][sector * SECTOR_BYTES]))
    }

    fn expect(&mut self, block: u64, value: u8) {
        assert_eq!(self.read(block), Ok([value; 8]));
    }

    fn reopen(&mut self) {
        self.agenda = Agenda::new(&self.world);
        self.disk = self.medium.open(&self.agenda);
    }

    fn power_cut(&mut self) {
        self.medium.power_cut(&mut self.prng);
        self.world.recover();
        self.reopen();
    }

    fn process_kill(&mut self) {
        self.medium.process_kill(&mut self.prng);
        self.reopen();
    }
}

#[test]
fn a_read_error_hits_one_read() {
    let mut rig = Rig::new(1);
    rig.write(3, 7).unwrap();
    rig.medium.arm(Fault::ReadError, 1);
    rig.expect(3, 7);
    assert_eq!(rig.read(3), Err(DeviceErrorKind::Medium));
    rig.expect(3, 7);
    assert_eq!(rig.world.faults(Fault::ReadError), (1, 1));
}

#[test]
fn a_write_error_leaves_old_and_new_sectors() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..100 {
        let mut rig = Rig::new(seed);
        rig.write(3, 1).unwrap();
        rig.medium.arm(Fault::WriteError, 0);
        assert_eq!(rig.write(3, 2), Err(DeviceErrorKind::Medium));
        match rig.read(3).unwrap() {
            [1, 1, 1, 1, 1, 1, 1, 1] => old += 1,
            [2, 2, 2, 2, 2, 2, 2, 2] => new += 1,
            sectors => {
                assert!(sectors.iter().all(|value| [1, 2].contains(value)));
                torn += 1;
            }
        }
        rig.write(3, 3).unwrap();
        rig.expect(3, 3);
        assert_eq!(rig.world.faults(Fault::WriteError), (1, 1));
    }
    assert!(old > 0 && new > 0 && torn > 0, "{old} old, {new} new, {torn} torn");
}

#[test]
fn bit_rot_flips_one_bit_and_matters_when_it_is_read() {
    let mut rig = Rig::new(1);
    rig.write(3, 0).unwrap();
    rig.flush();
    let before = rig.medium.digest();
    assert!(rig.medium.flip_bit(3, 8 * 512 + 1));
    assert!(!rig.medium.flip_bit(4, 0), "what was never written cannot rot");
    assert_ne!(rig.medium.digest(), before);
    assert_eq!(rig.world.faults(Fault::BitRot), (1, 0));
    assert_eq!(rig.read(3), Ok([0, 2, 0, 0, 0, 0, 0, 0]));
    assert_eq!(rig.world.faults(Fault::BitRot), (1, 1));
    rig.read(3).unwrap();
    assert_eq!(rig.world.faults(Fault::BitRot), (1, 1), "one fault matters once");
    // A drawn one strikes a block that was written before; overwritten before anybody reads it, it does not matter.
    rig.medium.arm(Fault::BitRot, 0);
    rig.write(3, 5).unwrap();
    rig.write(3, 6).unwrap();
    rig.expect(3, 6);
    assert_eq!(rig.world.faults(Fault::BitRot), (2, 1));
}

#[test]
fn a_lost_write_says_that_it_is_done() {
    let mut rig = Rig::new(1);
    rig.write(3, 1).unwrap();
    rig.medium.arm(Fault::LostWrite, 0);
    rig.write(3, 2).unwrap();
    assert_eq!(rig.world.faults(Fault::LostWrite), (1, 0));
    rig.expect(3, 1);
    assert_eq!(rig.world.faults(Fault::LostWrite), (1, 1));
    // The loss of bytes that were there already changes nothing.
    rig.medium.arm(Fault::LostWrite, 0);
    rig.write(3, 1).unwrap();
    rig.expect(3, 1);
    assert_eq!(rig.world.faults(Fault::LostWrite), (2, 1));
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed);
        for block in 10..14 {
            rig.write(block, 1).unwrap();
        }
        rig.medium.arm(Fault::MisdirectedWrite, 0);
        rig.write(20, 2).unwrap();
        rig.expect(20, 0);
        assert_eq!(rig.world.faults(Fault::MisdirectedWrite), (1, 1), "the block that was meant is old");
        let hit: Vec<_> = (10..14).filter(|&block| rig.read(block) == Ok([2; 8])).collect();
        assert_eq!(hit.len(), 1, "one block that was written before is destroyed");
        assert_eq!(rig.world.faults(Fault::MisdirectedWrite), (1, 2));
    }
}

/// Found by the simulator: damage that no fault was counted for.
#[test]
fn a_misdirected_write_that_a_crash_ends_has_fired() {
    let mut rig = Rig::new(1);
    rig.write(3, 1).unwrap();
    rig.write(4, 2).unwrap();
    rig.medium.arm(Fault::MisdirectedWrite, 0);
    rig.world.crash_at_step(rig.world.steps() + 3);
    rig.start_write(4, 9, Persistence::Durable);
    assert!(rig.complete().is_none(), "the world crashes before the last sector");
    assert_eq!(rig.world.faults(Fault::MisdirectedWrite).0, 1);
}

#[test]
fn a_misdirected_write_stays_on_the_device() {
    let mut config = MediumConfig::new("tiny", 4);
    config.info.transfer_blocks_max = 4;
    for seed in 0..20 {
        let mut rig = Rig::with(seed, config.clone());
        rig.write(3, 1).unwrap();
        rig.medium.set_faults(FaultPlan::default().with(Fault::MisdirectedWrite, 1_000_000));
        for count in 1..=4 {
            let blocks = (0..count).map(|_| rig.block(2)).collect();
            rig.disk.write(Token(0), 0, blocks, Persistence::Durable);
            rig.result().unwrap();
        }
    }
}

#[test]
fn a_slow_operation_is_overtaken() {
    let mut rig = Rig::new(1);
    rig.medium.arm(Fault::SlowOperation, 0);
    rig.start_write(1, 1, Persistence::Volatile);
    for token in 1..4 {
        rig.disk.flush(Token(token));
    }
    let tokens: Vec<_> = (0..4).map(|_| rig.complete().unwrap().token).collect();
    assert_eq!(tokens[3], Token(0));
    assert_eq!(rig.world.faults(Fault::SlowOperation), (1, 1));
}

#[test]
fn a_device_that_is_gone_stays_gone() {
    let mut rig = Rig::new(1);
    rig.write(1, 1).unwrap();
    rig.flush();
    rig.medium.arm(Fault::DeviceGone, 0);
    assert_eq!(rig.read(1), Err(DeviceErrorKind::Gone));
    assert_eq!(rig.write(1, 2), Err(DeviceErrorKind::Gone));
    rig.power_cut();
    assert_eq!(rig.read(1), Err(DeviceErrorKind::Gone), "a restart does not mend it");
    rig.medium.repair();
    rig.expect(1, 1);
    assert_eq!(rig.world.faults(Fault::DeviceGone), (1, 3));
}

#[test]
fn a_write_without_space_changes_nothing() {
    let mut rig = Rig::new(1);
    rig.write(1, 1).unwrap();
    rig.medium.arm(Fault::NoSpace, 0);
    assert_eq!(rig.write(1, 2), Err(DeviceErrorKind::NoSpace));
    rig.expect(1, 1);
    assert_eq!(rig.world.faults(Fault::NoSpace), (1, 1));
}

#[test]
fn rates_draw_every_class() {
    let mut rig = Rig::new(1);
    let rates = FaultPlan::DRAWN.into_iter().filter(|&fault| fault != Fault::DeviceGone);
    rig.medium.set_faults(rates.fold(FaultPlan::default(), |plan, fault| plan.with(fault, 100_000)));
    for round in 0..2000_u64 {
        let _drawn = rig.write(round % 50, round.to_le_bytes()[0]);
        let _drawn = rig.read(round * 7 % 50);
    }
    for fault in FaultPlan::DRAWN.into_iter().filter(|&fault| fault != Fault::DeviceGone) {
        let (fired, mattered) = rig.world.faults(fault);
        assert!((50..800).contains(&fired), "{fault} fired {fired} times");
        // One operation at a time: nothing can overtake a slow one.
        assert!(mattered > 20 || fault == Fault::SlowOperation, "{fault} mattered {mattered} times");
    }
}

#[test]
fn an_unflushed_write_may_be_lost_torn_or_kept_and_a_flushed_one_never() {
    let (mut lost, mut torn, mut kept) = (0, 0, 0);
    for seed in 0..200 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.write(2, 1).unwrap();
        rig.flush();
        rig.write(2, 2).unwrap();
        rig.power_cut();
        rig.expect(1, 1);
        let sectors = rig.read(2).unwrap();
        let (fired_lost, fired_torn) = (rig.world.faults(Fault::CacheLost), rig.world.faults(Fault::TornWrite));
        match sectors.iter().filter(|&&value| value == 2).count() {
            0 if fired_torn == (0, 0) => {
                assert_eq!(fired_lost, (1, 1));
                lost += 1;
            }
            8 => {
                assert_eq!(fired_lost, (0, 0));
                kept += 1;
            }
            _ => {
                assert_eq!(fired_torn, (1, 1));
                torn += 1;
            }
        }
    }
    assert!(lost > 20 && torn > 5 && kept > 20, "{lost} lost, {torn} torn, {kept} kept");
}

#[test]
fn unflushed_writes_survive_in_any_order() {
    let mut newer_without_older = 0;
    for seed in 0..200 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.write(2, 1).unwrap();
        rig.power_cut();
        newer_without_older += u32::from(rig.read(1) == Ok([0; 8]) && rig.read(2) == Ok([1; 8]));
    }
    assert!(newer_without_older > 5, "{newer_without_older} of 200");
}

#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_queued() {
    let mut lost = 0;
    for seed in 0..200 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.start_write(2, 1, Persistence::Volatile);
        rig.disk.flush(Token(0));
        rig.result().unwrap();
        rig.result().unwrap();
        rig.power_cut();
        rig.expect(1, 1);
        lost += u32::from(rig.read(2) == Ok([0; 8]));
    }
    assert!(lost > 20, "a write in flight beside a flush was lost {lost} of 200 times");
}

#[test]
fn a_durable_write_outlives_older_cached_ones() {
    for seed in 0..100 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.start_write(1, 2, Persistence::Durable);
        rig.result().unwrap();
        if seed % 2 == 0 {
            rig.flush();
        }
        rig.power_cut();
        rig.expect(1, 2);
    }
}

#[test]
fn a_write_in_flight_at_a_power_cut_is_torn_by_sector() {
    let (mut old, mut torn, mut new) = (0, 0, 0);
    for seed in 0..200 {
        let mut rig = Rig::new(seed);
        rig.start_write(1, 1, Persistence::Durable);
        rig.power_cut();
        match rig.read(1).unwrap().iter().map(|&value| u32::from(value)).sum() {
            0 => old += 1,
            8 => {
                assert_eq!(rig.world.faults(Fault::UnansweredWrite), (1, 1));
                new += 1;
            }
            _ => torn += 1,
        }
    }
    assert!(old > 20 && torn > 5 && new > 20, "{old} old, {torn} torn, {new} new");
}

#[test]
fn a_kill_keeps_what_has_completed() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..200 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.start_write(2, 1, Persistence::Durable);
        rig.process_kill();
        rig.expect(1, 1);
        match rig.read(2).unwrap() {
            [0, 0, 0, 0, 0, 0, 0, 0] => old += 1,
            [1, 1, 1, 1, 1, 1, 1, 1] => new += 1,
            _ => {}
        }
        // What completed before the kill is still volatile: a flush by the next process makes it durable.
        rig.flush();
        rig.power_cut();
        rig.expect(1, 1);
    }
    assert!(old > 20 && new > 20, "{old} old, {new} new");
}

#[test]
fn a_crash_at_every_step_leaves_exactly_the_steps_before_it() {
    /// Two durable writes, two volatile ones, a flush; returns the number of operations that completed.
    fn history(rig: &mut Rig) -> usize {
        let mut completed = 0;
        for (block, persistence) in [
            (0, Persistence::Durable),
            (1, Persistence::Volatile),
            (2, Persistence::Volatile),
            (3, Persistence::Durable),
        ] {
            rig.start_write(block, 1, persistence);
            completed += usize::from(rig.complete().is_some());
            if rig.world.crashed() {
                return completed;
            }
        }
        rig.disk.flush(Token(0));
        completed + usize::from(rig.complete().is_some())
    }
    let mut rig = Rig::new(1);
    assert_eq!(history(&mut rig), 5);
    // Four blocks of eight sectors and the end of the flush.
    assert_eq!(rig.world.steps(), 33);
    for steps in 0..33 {
        let mut rig = Rig::new(1);
        rig.world.crash_at_step(steps);
        let completed = history(&mut rig);
        assert!(rig.world.crashed(), "step {steps}");
        assert_eq!(rig.world.steps(), steps);
        rig.power_cut();
        let landed: u64 =
            (0..4).map(|block| rig.read(block).unwrap().iter().map(|&value| u64::from(value)).sum::<u64>()).sum();
        assert_eq!(landed, steps.min(32), "what landed is what was granted");
        assert_eq!(
            completed,
            if steps < 8 {
                0
            } else if steps < 16 {
                3
            } else {
                4
            },
            "step {steps}"
        );
    }
    let mut rig = Rig::new(1);
    rig.world.crash_at_step(33);
    assert_eq!(history(&mut rig), 5, "a history that needs no further step does not crash");
}

#[test]
fn a_full_cache_makes_the_oldest_write_durable() {
    let mut config = MediumConfig::new("disk", 1024);
    config.cache_blocks_max = 2;
    for seed in 0..50 {
        let mut rig = Rig::with(seed, config.clone());
        for block in 0..3 {
            rig.write(block, 1).unwrap();
        }
        rig.power_cut();
        rig.expect(0, 1);
    }
}

#[test]
fn discarded_blocks_may_hold_anything_and_stay_that_way() {
    let (mut junk, mut zero, mut kept) = (0, 0, 0);
    for seed in 0..100 {
        let mut rig = Rig::new(seed);
        rig.write(1, 1).unwrap();
        rig.write(2, 1).unwrap();
        rig.disk.discard(Token(0), BlockRange { first: 1, count: 1 });
        rig.result().unwrap();
        rig.flush();
        let sectors = rig.read(1).unwrap();
        match sectors[0] {
            0 => zero += 1,
            1 => kept += 1,
            _ => junk += 1,
        }
        rig.expect(2, 1);
        rig.power_cut();
        assert_eq!(rig.read(1), Ok(sectors), "an older cached write does not come back");
    }
    assert!(junk > 5 && zero > 5 && kept > 5, "{junk} junk, {zero} zero, {kept} kept");
}

#[test]
fn a_huge_disk_costs_what_is_written() {
    let mut config = MediumConfig::new("huge", 1 << 38);
    config.latency_ns = (0, 0);
    let mut rig = Rig::with(1, config);
    for block in [0, 1 << 28, (1 << 38) - 1] {
        rig.write(block, 9).unwrap();
        rig.expect(block, 9);
    }
    rig.disk.discard(Token(0), BlockRange { first: 0, count: 1 << 38 });
    rig.result().unwrap();
    assert_eq!(rig.medium.written_blocks(), [0, 1 << 28, (1 << 38) - 1]);
}

#[test]
fn one_seed_gives_one_history() {
    fn history(seed: u64) -> (u64, u64, Vec<(u64, u64)>) {
        let mut rig = Rig::new(seed);
        let mut choice = Prng::new(seed);
        rig.medium.set_faults(FaultPlan::default().with(Fault::BitRot, 20_000).with(Fault::LostWrite, 20_000));
        for _ in 0..300 {
            match choice.below(40) {
                0 => rig.power_cut(),
                1 => rig.process_kill(),
                2 => rig.start_write(choice.below(64), 1, Persistence::Durable),
                3..6 => rig.disk.flush(Token(0)),
                _ => rig.start_write(choice.below(64), choice.next_u64().to_le_bytes()[0], Persistence::Volatile),
            }
            if rig.disk.room() < 28 {
                rig.complete();
            }
        }
        rig.power_cut();
        (rig.medium.digest(), rig.world.now().0, Fault::ALL.iter().map(|&fault| rig.world.faults(fault)).collect())
    }
    for seed in 0..10 {
        assert_eq!(history(seed), history(seed));
        assert_ne!(history(seed).0, history(seed + 1).0);
    }
}
