//! The fences that are configured, tried in their order.
//!
//! | kind | confirms when |
//! |---|---|
//! | `lock` | the partner's process has ended: its lock in the mailbox is free |
//! | `process` | the process of this machine that holds that lock was killed and has ended: [`super::process`] |
//! | `lease` | the partner has given no sign of life at the arbiter for as long as a lease lasts: [`super::partner_beats`] |
//! | `command` | the program of `fence_command` has ended with 0 in time: [`super::command`] |

use super::{
    command::{self, Outcome},
    registers::{ArbiterFence, ArbiterFences},
};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::{collections::VecDeque, io, sync::Arc, thread::Builder};
use twinlog::{
    base::{Epoch, PoolId},
    control::config::{FenceKind, PairConfig},
    pair::{
        decide::Fence,
        fence::{FenceAnswer, Fencer},
    },
    reactor::Waker,
};

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
    arbiter: ArbiterFences,
    /// One at a time: the partner is one node, whatever pool asks.
    trial: Option<Trial>,
    /// At most one probe and one fence for each pool.
    waiting: VecDeque<Trial>,
    commands: (Sender<Outcome>, Receiver<Outcome>),
    /// Of trials that have ended; at most one for each that was asked for.
    answers: VecDeque<FenceAnswer>,
    waker: Arc<dyn Waker>,
}

impl Fences {
    pub(super) fn new(config: &PairConfig, arbiter: ArbiterFences, waker: Arc<dyn Waker>) -> Self {
        let (waiting, answers) = (VecDeque::new(), VecDeque::new());
        Self { config: config.clone(), arbiter, trial: None, waiting, commands: bounded(1), answers, waker }
    }

    /// Tries the next kind of the trial; without one it ends.
    fn go_on(&mut self) {
        let Some(trial) = self.trial.as_mut() else { return };
        let (pool, epoch) = (trial.pool, trial.epoch);
        trial.trying = trial.left.pop_front();
        match trial.trying {
            Some(FenceKind::Lock) => self.arbiter.fence(pool, epoch, ArbiterFence::Lock),
            Some(FenceKind::Process) => self.arbiter.fence(pool, epoch, ArbiterFence::Process),
            Some(FenceKind::Lease) => self.arbiter.fence(pool, epoch, ArbiterFence::Lease),
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
        let mut running = command::start(&self.config, "off")?;
        let (waker, done) = (Arc::clone(&self.waker), self.commands.0.clone());
        let accompany = move || {
            // Nobody waits when the node is ending.
            let _gone = done.send(running.wait());
            waker.wake();
        };
        Builder::new().name("fence".to_owned()).spawn(accompany).map(drop)
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
        let found = match self.arbiter.poll() {
            Some(answer) => Some((answer.result == Fence::Confirmed, answer.said)),
            None => self.commands.1.try_recv().ok().map(|Outcome { confirmed, said }| (confirmed, said)),
        };
        if let Some((confirmed, said)) = found {
            self.tell(&said);
            if confirmed {
                self.end(Fence::Confirmed);
            } else {
                self.go_on();
            }
        }
        self.answers.pop_front()
    }
}
