//! A lock that the path of an operation only tries.
//!
//! A controller is shared by the reactors that have disks on it: whoever polls first drives it, and who finds it driven just now goes on with
//! its own work. Where several disks share a queue the same holds for the queue. Only opening and closing a disk wait.

#![expect(clippy::disallowed_types, reason = "tried, not waited for, by everything that a reactor does in a turn")]

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) fn new(content: T) -> Self {
        Self(Mutex::new(content))
    }

    /// The content, unless another thread has it just now.
    pub(crate) fn attempt(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            // A panic ends the process in production; in a test its own message is the one to see.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The content, as soon as no other thread has it.
    pub(crate) fn wait(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
