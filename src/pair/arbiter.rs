//! The arbiter of a pair, as its nodes use it: never waited for, asked on changes of mode and by heartbeats only.

use crate::{base::PoolId, format::register::Register};

/// How a change of a register ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// It is durable.
    Done(Register),
    /// Nothing was changed: this is the register now.
    Changed(Option<Register>),
    /// Nobody knows, for this reason: only reading tells.
    Unknown(String),
}

/// What the arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `beat`: whether the partner's has changed since the last one, or why nothing was written.
    Beat(Result<bool, String>),
    /// To `read`.
    Read(PoolId, Result<Option<Register>, String>),
    /// To `compare_and_swap`.
    Swapped(PoolId, SwapOutcome),
}

/// The registers of a pair's pools.
pub trait Arbiter {
    /// Asks for the register of a pool.
    fn read(&mut self, pool: PoolId);

    /// Asks for `new` to replace `old`, if that is the register.
    fn compare_and_swap(&mut self, old: Option<Register>, new: Register);

    /// Asks for this node's heartbeat to be written; `time_ns` is the wall clock.
    fn beat(&mut self, time_ns: u64);

    /// The next answer.
    fn poll(&mut self) -> Option<Answer>;
}
