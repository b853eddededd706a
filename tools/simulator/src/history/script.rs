//! A life by script, which a crash ends at one exact durable step: for tests that try every step.
//!
//! # Life cycle
//!
//! ```text
//! new machine --> recover --> script --(step n)--> crash --> recover --(step m)--> crash --> recover, verify
//!                                                                                              |
//!                        recover, verify <-- crash, nothing in flight <-- work, verify <-------+
//! ```
//!
//! The script is the same to the last byte in every run, so its n-th durable step is always the same one. What a crash leaves of the
//! rest (a [`Crash`] says what may be left) is drawn from the seed and n.

use super::{Ending, Halt, History, Outcome, Violation, Watch};
use crate::{
    clients::Ask,
    model::reservation::Deed,
    pattern::WriteId,
    reserving::Reserving,
    setup::{BLOCK, Setup},
};
use std::ops::Range;
use twinlog::base::ObjectId;
use twinlog_device::Prng;

/// What clients and operators do. Requests are sent without waiting for each other; an order waits for the order before it.
#[derive(Clone, Debug)]
pub enum Act {
    /// Make a volume of so many blocks.
    Create(&'static str, u64),
    /// Give a volume another size, in blocks.
    Resize(&'static str, u64),
    /// Delete a volume.
    Delete(&'static str),
    /// Write bytes.
    Write(&'static str, Range<u64>),
    /// Write bytes with FUA.
    WriteDurably(&'static str, Range<u64>),
    /// Discard bytes.
    Discard(&'static str, Range<u64>),
    /// Write zeroes; the flag: blocks may be freed.
    Zero(&'static str, Range<u64>, bool),
    /// Read bytes.
    Read(&'static str, Range<u64>),
    /// Flush a volume.
    Flush(&'static str),
    /// A host does something with a volume's reservation. In such a script every request is of some host.
    Reserve(&'static str, u8, Deed),
    /// Take a consistency point.
    Checkpoint,
    /// Let the spare disk join the pool.
    Grow,
    /// Let every reactor have so many turns: what was asked before is under way.
    Turns(u32),
    /// Wait until everything has its answer.
    Settle,
    /// Wait, and then for so long that every lane has proved its newest record.
    Rest,
}

/// Where a life ends, and what of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Durable steps of the script that happen before.
    pub steps: u64,
    /// Whether the power goes; else only the process, and what the devices cache stays.
    pub with_power: bool,
    /// Whether what was not durable yet can land, each part or not; else nothing of it does.
    pub may_land: bool,
    /// Durable steps of the recovery that follows, after which there is another crash.
    pub recovery_steps: u64,
    /// Whether that one takes the power.
    pub recovery_with_power: bool,
}

impl Crash {
    /// The process ends when everything is over.
    const NONE: Self = Self {
        steps: u64::MAX,
        with_power: false,
        may_land: false,
        recovery_steps: u64::MAX,
        recovery_with_power: false,
    };
}

/// What came of a script.
#[derive(Debug)]
pub struct ScriptOutcome {
    /// What was wrong, if anything.
    pub violation: Option<Violation>,
    /// Durable steps of the script.
    pub steps: u64,
    /// Durable steps of the recovery after it.
    pub recovery_steps: u64,
    /// Whether the script ended before the crash.
    pub is_complete: bool,
    /// Whether the recovery was crashed before its end.
    pub was_recovery_crashed: bool,
    /// Whether a log that did not outlive the crash left a hole, and recovery refused to open the pool without its records.
    pub was_refused: bool,
    /// A number that differs when anything differs.
    pub digest: u64,
}

/// Runs a script on a machine as `setup` says; without a crash, to its end.
#[must_use]
pub fn run_script(setup: &Setup, script: &[Act], crash: Option<Crash>, is_traced: bool) -> ScriptOutcome {
    let watch = if is_traced { Watch::Trace } else { Watch::Digest };
    let mut history = History::new(SEED, setup.clone(), watch);
    let has_hosts = script.iter().any(|act| matches!(act, Act::Reserve(..)));
    history.reserving = has_hosts.then(|| Reserving::new(SEED));
    let mut outcome = ScriptOutcome {
        violation: None,
        steps: 0,
        recovery_steps: 0,
        is_complete: false,
        was_recovery_crashed: false,
        was_refused: false,
        digest: 0,
    };
    let result = match history.scripted(script, crash, &mut outcome) {
        Ok(()) => Ok(()),
        Err(Halt::Found(violation)) => Err(violation),
        Err(Halt::Stopped(_)) => {
            outcome.was_refused = true;
            Ok(())
        }
        Err(Halt::Crash) => unreachable!("no further crash is planned"),
    };
    let Outcome { violation, digest, .. } = history.outcome(SEED, result);
    ScriptOutcome { violation, digest, ..outcome }
}

/// The seed of every script's world: what is tried is in the script and the crash.
const SEED: u64 = 0xC4A5;

impl History {
    fn scripted(&mut self, script: &[Act], crash: Option<Crash>, outcome: &mut ScriptOutcome) -> Result<(), Halt> {
        let world = self.cluster.world.clone();
        self.recover()?;
        let begun = world.steps();
        let crash = crash.unwrap_or(Crash::NONE);
        world.crash_at_step(begun.saturating_add(crash.steps));
        outcome.is_complete = unless_crashed(self.acts(script))?;
        outcome.steps = world.steps() - begun;
        self.prng = Prng::new(SEED ^ crash.steps << 2 ^ u64::from(crash.with_power) << 1 ^ u64::from(crash.may_land));
        self.crash_as(crash.with_power, crash.may_land);
        let begun = world.steps();
        world.crash_at_step(begun.saturating_add(crash.recovery_steps));
        outcome.was_recovery_crashed = !unless_crashed(self.recover())?;
        outcome.recovery_steps = world.steps() - begun;
        if outcome.was_recovery_crashed {
            self.crash_as(crash.recovery_with_power, crash.may_land);
            self.recover()?;
        }
        world.recover();
        self.work_on()?;
        self.crash_as(!crash.recovery_with_power, crash.may_land);
        self.recover()?;
        self.stop()
    }

    fn crash_as(&mut self, with_power: bool, may_land: bool) {
        if may_land {
            // Then the crash is no end of the world: what was not durable can become so.
            self.cluster.world.recover();
        }
        self.end_process(if with_power { Ending::PowerCut } else { Ending::Kill }, false);
    }

    fn acts(&mut self, script: &[Act]) -> Result<(), Halt> {
        for act in script {
            self.act(act)?;
        }
        self.finish_requests()
    }

    fn act(&mut self, act: &Act) -> Result<(), Halt> {
        let is_order = matches!(act, Act::Create(..) | Act::Resize(..) | Act::Delete(_) | Act::Checkpoint | Act::Grow);
        if is_order {
            self.until(|history| history.order.is_none())?;
        }
        match act {
            Act::Create(name, blocks) => self.create(name, blocks * BLOCK),
            Act::Resize(name, blocks) => self.resize(self.volume(name), blocks * BLOCK),
            Act::Delete(name) => self.delete(self.volume(name)),
            Act::Write(name, range) => return self.send(name, Ask::Write(range.clone(), WriteId(0), false)),
            Act::WriteDurably(name, range) => return self.send(name, Ask::Write(range.clone(), WriteId(0), true)),
            Act::Discard(name, range) => return self.send(name, Ask::Discard(range.clone(), false)),
            Act::Zero(name, range, may_free) => return self.send(name, Ask::Zero(range.clone(), *may_free, false)),
            Act::Read(name, range) => return self.send(name, Ask::Read(range.clone())),
            Act::Flush(name) => return self.send(name, Ask::Flush),
            Act::Reserve(name, host, deed) => return self.send(name, Ask::Reserve(*host, *deed)),
            Act::Checkpoint => self.ask_checkpoint(),
            Act::Grow => self.grow(),
            Act::Turns(count) => return (0..*count).try_for_each(|_| self.turn()),
            Act::Settle => return self.finish_requests(),
            Act::Rest => return self.rest(),
        }
        Ok(())
    }

    fn volume(&self, name: &str) -> ObjectId {
        let named = self.model.volumes().iter().find(|(_, volume)| volume.name == name);
        named.map(|(&id, _)| id).expect("the script settles what it builds on")
    }

    fn send(&mut self, name: &str, ask: Ask) -> Result<(), Halt> {
        let volume = self.volume(name);
        self.until(|history| history.fly(0, volume, ask.clone(), false))
    }

    /// The recovered pool is used: every volume, and a consistency point.
    fn work_on(&mut self) -> Result<(), Halt> {
        let volumes: Vec<ObjectId> = self.model.volumes().keys().copied().collect();
        for volume in volumes {
            self.until(|history| history.fly(0, volume, Ask::Write(100..BLOCK, WriteId(0), false), false))?;
        }
        self.finish_requests()?;
        self.checkpoint()?;
        self.check_pool()
    }
}

/// Whether something came to its own end; else to the planned crash.
fn unless_crashed(result: Result<(), Halt>) -> Result<bool, Halt> {
    match result {
        Err(Halt::Crash) => Ok(false),
        result => result.map(|()| true),
    }
}
