//! Reactors that sleep until the controller signals: no answer is slept over, however the controller's turns fall between theirs.

use crate::support::{Rig, Sleep};
use std::time::Duration;
use twinlog_device::{BlockDevice, DeviceErrorKind, Persistence, Prng, Token};
use twinlog_nvme::{
    ControllerOptions, ControllerState,
    model::{Mischief, ModelConfig},
};

/// The steps of a reactor that is about to sleep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    ListenThenLook,
    /// What must be found to be wrong.
    LookThenListen,
}

/// Operations of one reactor in a history.
const OPERATIONS: usize = 12;
/// Turns in which a controller that behaves has answered everything and signalled it.
const QUIET: usize = 200;

struct Reactor {
    disk: usize,
    sleep: Sleep,
    is_asleep: bool,
    /// Turns of the controller in the present sleep.
    asleep_turns: usize,
    left: usize,
    busy: usize,
}

struct History {
    rig: Rig,
    prng: Prng,
    order: Order,
    reactors: Vec<Reactor>,
}

impl History {
    fn new(seed: u64, order: Order) -> Self {
        let mut prng = Prng::new(seed);
        let mut config = ModelConfig::new(seed);
        config.vector_count = u32::try_from(prng.between(1, 4)).expect("small");
        config.spares_signals = prng.chance(1, 2);
        config.delay_max = prng.between(0, 6);
        // With fewer queues than reactors, some are looked at.
        config.queues_max = if prng.chance(1, 4) { 2 } else { 8 };
        let mut rig = Rig::new(config, 128);
        // Time stands still: only a signal ends a sleep.
        rig.step = Duration::ZERO;
        let count = u16::try_from(prng.between(1, 3)).expect("small");
        let options = ControllerOptions { disk_count: count, queue_depth: 4, interrupts: true, ..Default::default() };
        assert_eq!(rig.start(options), ControllerState::Live);
        let reactor = |rig: &mut Rig| {
            let disk = rig.open(1);
            let sleep = Sleep::new(&rig.disks[disk..]);
            Reactor { disk, sleep, is_asleep: false, asleep_turns: 0, left: OPERATIONS, busy: 0 }
        };
        let reactors = (0..count).map(|_| reactor(&mut rig)).collect();
        Self { rig, prng, order, reactors }
    }

    /// Lets the controller go on for some turns, or none.
    fn breathe(&mut self) {
        for _ in 0..self.prng.below(4) {
            self.rig.turn();
        }
    }

    /// One turn of a reactor that is awake.
    fn turn(&mut self, index: usize) {
        let mut completions = Vec::new();
        let disk = self.reactors[index].disk;
        while self.reactors[index].left > 0 && self.rig.disks[disk].room() > 0 && self.prng.chance(1, 2) {
            let block = self.prng.below(4000);
            let buffer = self.rig.pool.allocate_zeroed().expect("a free block");
            match self.prng.chance(1, 2) {
                true => self.rig.disks[disk].read(Token(1), block, vec![buffer]),
                false => self.rig.disks[disk].write(Token(1), block, vec![buffer.freeze()], Persistence::Volatile),
            }
            self.reactors[index].left -= 1;
            self.reactors[index].busy += 1;
        }
        self.breathe();
        self.rig.disks[disk].poll(&mut completions);
        assert!(completions.iter().all(|completion| completion.result.is_ok()));
        self.reactors[index].busy -= completions.len();
        if self.reactors[index].busy == 0 || !completions.is_empty() {
            return;
        }
        self.breathe();
        let watch = self.rig.disks[disk].watch();
        if self.order == Order::LookThenListen {
            self.reactors[index].is_asleep = !watch.longest_sleep().is_zero();
            self.breathe();
            self.reactors[index].sleep.listen();
        } else if !watch.longest_sleep().is_zero() {
            self.reactors[index].sleep.listen();
            self.breathe();
            self.reactors[index].is_asleep = !watch.longest_sleep().is_zero();
        }
    }

    /// Whether everything ended.
    fn run(&mut self) -> bool {
        while self.reactors.iter().any(|reactor| reactor.left + reactor.busy > 0) {
            let index = usize::try_from(self.prng.below(self.reactors.len() as u64)).expect("small");
            let reactor = &mut self.reactors[index];
            if reactor.is_asleep && !reactor.sleep.is_over() {
                reactor.asleep_turns += 1;
                if reactor.asleep_turns > QUIET {
                    return false;
                }
                self.rig.turn();
                continue;
            }
            (reactor.is_asleep, reactor.asleep_turns) = (false, 0);
            self.turn(index);
        }
        self.rig.expect_no_fault();
        true
    }
}

#[test]
fn no_answer_is_slept_over() {
    let mut slept = 0;
    for seed in 0..2000 {
        let mut history = History::new(seed, Order::ListenThenLook);
        assert!(history.run(), "seed {seed}: a reactor sleeps over an answer");
        slept += history.reactors.iter().map(|reactor| reactor.sleep.over_count()).sum::<u64>();
    }
    assert!(slept > 2000, "reactors do sleep: {slept} times");
}

#[test]
fn a_look_before_listening_would_be_found_out() {
    assert!((0..200).any(|seed| !History::new(seed, Order::LookThenListen).run()));
}

fn rig(config: ModelConfig) -> Rig {
    let mut rig = Rig::new(config, 64);
    let options = ControllerOptions { interrupts: true, ..ControllerOptions::default() };
    assert_eq!(rig.start(options), ControllerState::Live);
    rig.open(1);
    rig
}

fn read(rig: &mut Rig) {
    let block = rig.pool.allocate().expect("a free block");
    rig.disks[0].read(Token(1), 1, vec![block]);
}

#[test]
fn without_vectors_answers_are_looked_for() {
    let mut rig = rig(ModelConfig::new(1));
    let watch = rig.disks[0].watch();
    assert!(watch.event().is_none());
    read(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    assert_eq!(watch.longest_sleep(), Duration::ZERO);
}

#[test]
fn what_the_queue_has_not_heard_of_keeps_its_reactor_awake() {
    let mut rig = rig(ModelConfig { vector_count: 2, ..ModelConfig::new(1) });
    let watch = rig.disks[0].watch();
    read(&mut rig);
    assert_eq!(watch.longest_sleep(), Duration::ZERO);
    rig.disks[0].poll(&mut Vec::new());
    assert!(!watch.longest_sleep().is_zero());
    assert!(rig.one(0).result.is_ok());
}

#[test]
fn a_signal_that_is_lost_costs_a_look() {
    let mut rig = rig(ModelConfig { vector_count: 2, ..ModelConfig::new(1) });
    rig.model.set_mischief(Mischief { lost_signal: 1000, ..Mischief::default() });
    let mut sleep = Sleep::new(&rig.disks);
    read(&mut rig);
    let watch = rig.disks[0].watch();
    let mut completions = Vec::new();
    rig.disks[0].poll(&mut completions);
    sleep.listen();
    (0..QUIET).for_each(|_| rig.turn());
    assert!(!sleep.is_over() && watch.longest_sleep().is_zero(), "it is there, and nobody said so");
    rig.disks[0].poll(&mut completions);
    assert!(completions[0].result.is_ok());
}

/// A reset takes time that no signal ends; afterwards the vectors signal as before.
#[test]
fn after_a_reset_the_controller_signals_again() {
    let mut rig = rig(ModelConfig { vector_count: 2, ..ModelConfig::new(1) });
    read(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    rig.model.fail();
    rig.step = Duration::from_millis(20);
    assert_eq!(rig.one(0).result.map_err(|error| error.kind), Ok::<(), DeviceErrorKind>(()));
    assert_eq!(rig.controller().reset_count(), 1);
    let mut sleep = Sleep::new(&rig.disks);
    sleep.listen();
    read(&mut rig);
    let mut completions = Vec::new();
    rig.disks[0].poll(&mut completions);
    for _ in 0..QUIET {
        rig.turn();
    }
    assert!(sleep.is_over());
    assert!(rig.one(0).result.is_ok());
    rig.expect_no_fault();
}
