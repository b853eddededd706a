//! A node's way to the registers of its pair: calls to a thread that may wait, and its answers.
//!
//! | thread | the registers are |
//! |---|---|
//! | [`super::mailbox_worker`] | in a file that both nodes reach |
//! | [`super::witness_client`] | at a process on a third machine |
//!
//! # Invariants
//!
//! 1. Nobody waits for the thread. Calls are bounded; one for which there is no room, as the thread stands still, is answered at once: nobody could be asked.
//! 2. Every call has one answer.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    thread::Builder,
    time::{Duration, Instant},
};
use twinlog::{
    base::{Epoch, PoolId},
    format::register::Register,
    pair::{
        arbiter::{Answer, Arbiter, SwapOutcome},
        decide::Fence,
        fence::FenceAnswer,
    },
    reactor::Waker,
};

/// Calls that wait for the thread: a read and a change for each pool, a beat, a fence; and then as many again.
pub(super) const CALLS_MAX: usize = 32;
const STANDS_STILL: &str = "the arbiter's thread does not answer: its disk or its connection stands still";

/// What the thread is asked.
pub(super) enum Call {
    Read(PoolId),
    Swap(Option<Register>, Register),
    Beat(u64),
    Fence(PoolId, Epoch, ArbiterFence),
}

/// What can be done at the arbiter to know that the partner has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArbiterFence {
    /// Look at the lock of its process.
    Lock,
    /// Kill the process that has that lock, if it is one of this machine.
    Process,
    /// Wait for the end of its lease.
    Lease,
}

/// What the thread answers.
pub(super) enum Reply {
    Arbiter(Answer),
    Fence(FenceAnswer),
}

/// The answer to a call for a fence.
pub(super) fn fenced(pool: PoolId, epoch: Epoch, result: Fence, said: impl Into<String>) -> Reply {
    Reply::Fence(FenceAnswer { pool, epoch, result, said: said.into() })
}

#[expect(clippy::disallowed_methods, reason = "on threads of their own, beside the engine")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// What runs on the thread.
pub(super) trait Worker: Send + 'static {
    /// Answers a call, or begins what it asks for.
    fn perform(&mut self, call: Call) -> Option<Reply>;

    /// Goes on with what was begun; one answer, if there is one.
    fn go_on(&mut self) -> Option<Reply>;

    /// How long it may wait for the next call; `None`: nothing was begun.
    fn patience(&self) -> Option<Duration>;
}

/// The registers, as the controller uses them.
pub(super) struct Registers {
    calls: Sender<Call>,
    answers: Receiver<Answer>,
    /// Answers to calls for which there was no room; at most one for each that the controller waits for.
    refused: VecDeque<Answer>,
}

/// The fences at the arbiter.
pub(super) struct ArbiterFences {
    calls: Sender<Call>,
    answers: Receiver<FenceAnswer>,
    refused: VecDeque<FenceAnswer>,
}

/// Starts the thread; its answers wake `waker`.
pub(super) fn start(mut worker: impl Worker, waker: Arc<dyn Waker>) -> io::Result<(Registers, ArbiterFences)> {
    let (calls, called) = bounded::<Call>(CALLS_MAX);
    let (answer, answers) = bounded(CALLS_MAX);
    let (fence, fences) = bounded(CALLS_MAX);
    let tell = move |reply| {
        // Whoever has asked takes as many answers as questions were asked; when it is gone, the node is ending.
        let _gone = match reply {
            Reply::Arbiter(reply) => answer.send(reply).is_err(),
            Reply::Fence(reply) => fence.send(reply).is_err(),
        };
        waker.wake();
    };
    let serve = move || {
        loop {
            let call = match worker.patience() {
                None => called.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => called.recv_timeout(patience),
            };
            match call {
                Ok(call) => worker.perform(call).into_iter().for_each(&tell),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Some(reply) = worker.go_on() {
                tell(reply);
            }
        }
    };
    Builder::new().name("arbiter".to_owned()).spawn(serve)?;
    let registers = Registers { calls: calls.clone(), answers, refused: VecDeque::new() };
    Ok((registers, ArbiterFences { calls, answers: fences, refused: VecDeque::new() }))
}

impl Registers {
    /// Asks the thread; `refusal` is the answer when it does not come along.
    fn ask(&mut self, call: Call, refusal: impl FnOnce(String) -> Answer) {
        if self.calls.try_send(call).is_err() {
            self.refused.push_back(refusal(STANDS_STILL.to_owned()));
        }
    }
}

impl Arbiter for Registers {
    fn read(&mut self, pool: PoolId) {
        self.ask(Call::Read(pool), |reason| Answer::Read(pool, Err(reason)));
    }

    fn compare_and_swap(&mut self, old: Option<Register>, new: Register) {
        self.ask(Call::Swap(old, new), |reason| Answer::Swapped(new.pool, SwapOutcome::Unknown(reason)));
    }

    fn beat(&mut self, time_ns: u64) {
        self.ask(Call::Beat(time_ns), |reason| Answer::Beat(Err(reason)));
    }

    fn poll(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok().or_else(|| self.refused.pop_front())
    }
}

impl ArbiterFences {
    /// Asks for one kind of fence.
    pub(super) fn fence(&mut self, pool: PoolId, epoch: Epoch, kind: ArbiterFence) {
        if self.calls.try_send(Call::Fence(pool, epoch, kind)).is_err() {
            let said = STANDS_STILL.to_owned();
            self.refused.push_back(FenceAnswer { pool, epoch, result: Fence::Held, said });
        }
    }

    /// The next answer.
    pub(super) fn poll(&mut self) -> Option<FenceAnswer> {
        self.answers.try_recv().ok().or_else(|| self.refused.pop_front())
    }
}

/// What every arbiter does, whatever it is: one suite for all.
#[cfg(test)]
pub(super) mod conformance;
