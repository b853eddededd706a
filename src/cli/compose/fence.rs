//! The fences that are configured, tried in their order.
//!
//! | kind | confirms when |
//! |---|---|
//! | `lock` | the partner's process has ended: its lock in the mailbox is free |
//! | `process` | the process of this machine that holds that lock was killed and has ended: [`twinlog_fence::Holder`] |
//! | `lease` | the partner has given no sign of life at the arbiter for as long as a lease lasts: [`super::partner_beats`] |
//! | `reservation` | its lease has ended, as above, and it has lost the reservation of the pool's namespaces: [`super::reservation`] |
//! | `command` | the program of `fence_command` has ended with 0 in time: [`twinlog_fence::Agent`] |

use super::{
    Shared,
    registers::{ArbiterFence, ArbiterFences},
    reservation,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::Ordering},
    thread::Builder,
    time::Duration,
};
use twinlog::{
    base::{Epoch, PoolId},
    control::config::{FenceKind, PairConfig},
    node::pools::PoolSlot,
    pair::{
        decide::Fence,
        fence::{FenceAnswer, Fencer},
    },
    reactor::Waker,
};
use twinlog_fence::{Agent, Outcome};

/// Asks whether the command of a configuration could do its work; the partner is left alone.
pub(crate) fn try_fence(config: &PairConfig) -> io::Result<Outcome> {
    agent(config).start("monitor").map(|mut running| running.wait())
}

/// The command of a configuration.
fn agent(config: &PairConfig) -> Agent<'_> {
    Agent {
        command: &config.fence_command,
        options: &config.fence_options,
        partner: &config.partner,
        limit: Duration::from_secs(config.fence_limit_s),
    }
}

/// A fence that is being tried.
struct Trial {
    pool: PoolId,
    epoch: Epoch,
    /// Kinds that have not been tried.
    left: VecDeque<FenceKind>,
    /// The one that is being tried.
    trying: Option<FenceKind>,
    is_probe: bool,
    /// What those have found that were tried.
    said: Vec<String>,
}

/// The configured fences of a node.
pub(super) struct Fences {
    config: PairConfig,
    shared: Arc<Shared>,
    arbiter: ArbiterFences,
    /// One at a time: the partner is one node, whatever pool asks.
    trial: Option<Trial>,
    /// At most one probe and one fence for each pool.
    waiting: VecDeque<Trial>,
    /// From the threads that wait for commands and controllers.
    outcomes: (Sender<Outcome>, Receiver<Outcome>),
    /// Of trials that have ended; at most one for each that was asked for.
    answers: VecDeque<FenceAnswer>,
    waker: Arc<dyn Waker>,
}

impl Fences {
    pub(super) fn new(
        config: &PairConfig,
        shared: &Arc<Shared>,
        arbiter: ArbiterFences,
        waker: Arc<dyn Waker>,
    ) -> Self {
        let (waiting, answers) = (VecDeque::new(), VecDeque::new());
        let (config, shared) = (config.clone(), Arc::clone(shared));
        Self { config, shared, arbiter, trial: None, waiting, outcomes: bounded(1), answers, waker }
    }

    /// Tries the next kind of the trial; without one it ends.
    fn go_on(&mut self) {
        let Some(trial) = self.trial.as_mut() else { return };
        let (pool, epoch) = (trial.pool, trial.epoch);
        trial.trying = trial.left.pop_front();
        match trial.trying {
            Some(FenceKind::Lock) => self.arbiter.fence(pool, epoch, ArbiterFence::Lock),
            Some(FenceKind::Process) => self.arbiter.fence(pool, epoch, ArbiterFence::Process),
            Some(FenceKind::Lease | FenceKind::Reservation) => self.arbiter.fence(pool, epoch, ArbiterFence::Lease),
            Some(FenceKind::Command) => {
                if let Err(error) = self.start_command() {
                    self.tell(&format!("it cannot be started: {error}"));
                    self.go_on();
                }
            }
            None => {
                let result = if trial.is_probe { Fence::Held } else { Fence::Failed };
                self.end(result);
            }
        }
    }

    fn end(&mut self, result: Fence) {
        let Some(Trial { pool, epoch, is_probe, said, .. }) = self.trial.take() else { return };
        // A look that confirms nothing is repeated for ever, and is no news.
        let said = if is_probe && result != Fence::Confirmed { String::new() } else { said.join("; ") };
        if !said.is_empty() {
            tracing::warn!(partner = self.config.partner, result = result.words(), said, "fence");
        }
        self.answers.push_back(FenceAnswer { pool, epoch, result, said });
        self.trial = self.waiting.pop_front();
        self.go_on();
    }

    /// What the kind that was tried has found.
    fn tell(&mut self, words: &str) {
        if let Some(trial) = &mut self.trial {
            let kind = trial.trying.map_or("", FenceKind::word);
            trial.said.push(format!("{kind}: {words}"));
        }
    }

    fn start_command(&self) -> io::Result<()> {
        tracing::warn!(partner = self.config.partner, command = ?self.config.fence_command, "fencing the partner");
        let mut running = agent(&self.config).start("off")?;
        self.spawn(move || running.wait())
    }

    /// Takes the pool's namespaces away from the partner, whose lease has ended.
    fn start_preempting(&self, pool: PoolId, epoch: Epoch) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.spawn(move || {
            let slot = PoolSlot::ALL.into_iter().find(|slot| shared.held(*slot).portion.pool() == pool);
            match reservation::fence(&shared, slot.expect("one of this node's pools"), epoch) {
                Ok(()) => Outcome { confirmed: true, said: "its namespaces take no writes of it any more".to_owned() },
                Err(failure) => Outcome { confirmed: false, said: failure.message },
            }
        })
    }

    fn spawn(&self, work: impl FnOnce() -> Outcome + Send + 'static) -> io::Result<()> {
        let (waker, done) = (Arc::clone(&self.waker), self.outcomes.0.clone());
        let accompany = move || {
            // Nobody waits when the node is ending.
            let _gone = done.send(work());
            waker.wake();
        };
        Builder::new().name("fence".to_owned()).spawn(accompany).map(drop)
    }

    /// What the kind that is tried has come to; whether it confirms.
    fn found(&mut self) -> Option<bool> {
        if let Some(answer) = self.arbiter.poll() {
            self.tell(&answer.said);
            let confirmed = answer.result == Fence::Confirmed;
            let is_half = self.trial.as_ref().is_some_and(|trial| trial.trying == Some(FenceKind::Reservation));
            if !(confirmed && is_half) {
                return Some(confirmed);
            }
            return match self.start_preempting(answer.pool, answer.epoch) {
                Ok(()) => None,
                Err(error) => {
                    self.tell(&format!("no thread: {error}"));
                    Some(false)
                }
            };
        }
        let Outcome { confirmed, said } = self.outcomes.1.try_recv().ok()?;
        self.tell(&said);
        Some(confirmed)
    }

    fn start(&mut self, trial: Trial) {
        let key = |trial: &Trial| (trial.pool, trial.epoch, trial.is_probe);
        match &self.trial {
            // Its answer comes.
            Some(running) if key(running) == key(&trial) => {}
            Some(_) => {
                // What a pool asks again takes the place of what it asked before.
                self.waiting.retain(|waiting| (waiting.pool, waiting.is_probe) != (trial.pool, trial.is_probe));
                self.waiting.push_back(trial);
            }
            None => {
                self.trial = Some(trial);
                self.go_on();
            }
        }
    }
}

impl Fencer for Fences {
    fn probe(&mut self, pool: PoolId, epoch: Epoch) {
        let left = self.config.fence.iter().copied().filter(|kind| *kind == FenceKind::Lock).collect();
        self.start(Trial { pool, epoch, left, trying: None, is_probe: true, said: Vec::new() });
    }

    fn fence(&mut self, pool: PoolId, epoch: Epoch) {
        let left = self.config.fence.iter().copied().collect();
        self.start(Trial { pool, epoch, left, trying: None, is_probe: false, said: Vec::new() });
    }

    fn poll(&mut self) -> Option<FenceAnswer> {
        match self.found() {
            Some(true) => self.end(Fence::Confirmed),
            Some(false) => self.go_on(),
            None => {}
        }
        self.answers.pop_front()
    }

    fn lost(&mut self) -> Option<PoolId> {
        let lost = |slot: &PoolSlot| self.shared.holds[slot.index()].is_lost.swap(false, Ordering::AcqRel);
        PoolSlot::ALL.into_iter().find(lost).map(|slot| self.shared.held(slot).portion.pool())
    }
}
