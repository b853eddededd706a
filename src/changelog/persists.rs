//! Persists in flight of one region of log memory, in the order of positions.

use crate::base::{Lsn, planted};
use std::collections::VecDeque;
use twinlog_device::{DeviceError, LogCompletion, LogMemory, Token};

#[derive(Debug)]
struct Flight {
    token: Token,
    /// What is durable once it has ended; `None`: nobody waits for it any more.
    end: Option<Lsn>,
    done: bool,
}

/// The persists in flight. After one has failed, every call that can fails, with the same error.
#[derive(Debug, Default)]
pub(super) struct Persists {
    /// Oldest first.
    flights: VecDeque<Flight>,
    next_token: u64,
    completions: Vec<LogCompletion>,
    failed: Option<DeviceError>,
}

impl Persists {
    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    pub(super) fn check(&self) -> Result<(), DeviceError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Queues a persist of everything stored since the last one; once it has ended, everything before `end` is durable.
    pub(super) fn start<L: LogMemory>(&mut self, log: &mut L, end: Option<Lsn>) {
        let token = Token(self.next_token);
        self.next_token += 1;
        log.persist(token);
        self.flights.push_back(Flight { token, end, done: false });
    }

    /// What is in flight makes no position durable.
    pub(super) fn forget_positions(&mut self) {
        self.flights.iter_mut().for_each(|flight| flight.end = None);
    }

    /// Collects what has ended. Returns the position before which everything is durable, if that is news.
    pub(super) fn collect<L: LogMemory>(&mut self, log: &mut L) -> Result<Option<Lsn>, DeviceError> {
        if self.flights.is_empty() {
            return self.check().map(|()| None);
        }
        log.poll(&mut self.completions);
        for completion in self.completions.drain(..) {
            let flight = self.flights.iter_mut().find(|flight| flight.token == completion.token && !flight.done);
            let flight = flight.expect("the log memory returns each token once");
            flight.done = true;
            if let Err(error) = completion.result
                && !planted::is("log-error-ignored")
            {
                self.failed.get_or_insert(error);
            }
        }
        let mut durable = None;
        while self.flights.front().is_some_and(|flight| flight.done) {
            durable = self.flights.pop_front().and_then(|flight| flight.end).or(durable);
        }
        self.check().map(|()| durable)
    }
}
