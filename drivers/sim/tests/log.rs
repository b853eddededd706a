//! Simulated log memory keeps the contracts of every log memory, and its faults are counted where they matter.

use std::time::Duration;
use twinlog_device::{
    DeviceErrorKind, LogMemory, Prng, Token, Wait,
    conformance::{self, LogHarness},
};
use twinlog_sim::{Agenda, Fault, LogMedium, LogShape, SimLog, SimWorld};

struct Region {
    medium: LogMedium,
    agenda: Agenda,
    log: SimLog,
    prng: Prng,
}

impl Region {
    fn new(seed: u64, shape: LogShape) -> Self {
        let world = SimWorld::new(seed);
        let medium = LogMedium::new(&world, "simulated log", shape);
        let agenda = Agenda::new(&world);
        let log = medium.open(&agenda);
        Self { medium, agenda, log, prng: world.fork_prng() }
    }
}

impl LogHarness for Region {
    type Log = SimLog;

    fn log(&mut self) -> &mut SimLog {
        &mut self.log
    }

    fn turn(&mut self) {
        self.agenda.turn(Wait::UpTo(Duration::from_millis(1)));
    }

    fn reopen(&mut self) -> bool {
        self.power_cut()
    }

    fn power_cut(&mut self) -> bool {
        self.medium.power_cut(&mut self.prng);
        self.agenda = Agenda::new(&self.medium.world());
        self.log = self.medium.open(&self.agenda);
        true
    }

    fn fail_next_persist(&mut self) -> bool {
        self.medium.fail_persist_after(0);
        true
    }
}

fn shapes() -> [LogShape; 3] {
    let size_bytes = 256 << 10;
    let odd =
        LogShape { unit_bytes: 4096, atomic_bytes: 512, pending_bytes_max: 64 << 10, ..LogShape::file(size_bytes) };
    [LogShape::pmem(size_bytes), LogShape::file(size_bytes), odd]
}

#[test]
fn conforms() {
    for shape in shapes() {
        let mut seed = 0;
        conformance::log_memory(|| {
            seed += 1;
            Region::new(seed, shape)
        });
    }
}

#[test]
#[should_panic(expected = "room")]
fn an_operation_without_room_is_a_defect_of_the_caller() {
    conformance::log_memory_overfilled(&mut Region::new(1, LogShape::file(64 << 10)));
}

#[test]
fn exactly_the_granted_steps_become_durable() {
    for steps in 0..=5 {
        let mut region = Region::new(steps, LogShape::pmem(4096));
        let world = region.medium.world();
        region.log.store(0, &[7; 256]);
        region.log.persist(Token(1));
        world.crash_at_step(steps);
        let mut completions = Vec::new();
        region.log.poll(&mut completions);
        // Four units and the persist itself.
        assert_eq!((completions.len(), world.crashed()), (usize::from(steps == 5), steps < 5));
        region.medium.power_cut(&mut region.prng);
        let new = region.medium.image().iter().filter(|&&byte| byte == 7).count() as u64;
        assert_eq!(new, 64 * steps.min(4));
    }
}

#[test]
fn every_class_of_fault_fires_and_matters() {
    let classes = [
        Fault::LogLost,
        Fault::LogTorn,
        Fault::LogUnanswered,
        Fault::LogRot,
        Fault::LogPersistError,
        Fault::LogReadError,
    ];
    let mut seen = [(0, 0); 6];
    for seed in 0..20 {
        let mut region = Region::new(seed, LogShape::file(64 << 10));
        region.log.store(0, &[1; 2048]);
        region.log.persist(Token(0));
        region.log.store(2048, &[2; 2048]);
        region.power_cut();
        region.medium.rot(5, 1);
        region.medium.fail_read_after(1);
        let mut completions = Vec::new();
        for token in 0..2 {
            region.log.read(Token(token), 0, 4096);
        }
        region.medium.fail_persist_after(0);
        region.log.store(4096, &[3; 512]);
        region.log.persist(Token(2));
        while completions.len() < 3 {
            region.turn();
            region.log.poll(&mut completions);
        }
        let kinds: Vec<_> = completions.into_iter().map(|done| done.result.err().map(|error| error.kind)).collect();
        assert_eq!(kinds, [None, Some(DeviceErrorKind::Medium), Some(DeviceErrorKind::Medium)]);
        for (class, seen) in classes.into_iter().zip(&mut seen) {
            let (fired, mattered) = region.medium.world().faults(class);
            *seen = (seen.0 + fired, seen.1 + mattered);
        }
    }
    assert!(seen.iter().all(|&(fired, mattered)| fired > 0 && mattered > 0), "{seen:?}");
}

#[test]
fn rot_that_is_overwritten_does_not_matter() {
    let mut region = Region::new(1, LogShape::pmem(4096));
    region.medium.rot(100, 4);
    region.log.store(64, &[1; 64]);
    region.log.persist(Token(1));
    region.log.read(Token(2), 0, 4096);
    let mut completions = Vec::new();
    region.log.poll(&mut completions);
    assert_eq!(completions.len(), 2);
    assert_eq!(region.medium.world().faults(Fault::LogRot), (1, 0));
}
