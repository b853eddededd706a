//! Waking a reactor from other threads.
//!
//! A reactor that spins looks at `called` in every turn and costs the caller no system call. One that is about to sleep says so in
//! `sleeping` first; the first caller after that takes the flag back and rings the eventfd, whose poll is armed in the ring.
//!
//! # Why no call is lost
//!
//! The caller writes `called`, then reads `sleeping`; the reactor writes `sleeping`, then reads `called`; all in one total order
//! (`SeqCst`). So at least one of them sees the other: the caller rings, or the reactor does not sleep. What the caller did before
//! `wake` is visible to the reactor after the turn that returns because of it.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[derive(Debug)]
struct Bell {
    /// Set by callers, cleared by the reactor.
    called: AtomicBool,
    /// Set by the reactor before it sleeps, cleared by whoever rings, and by the reactor.
    sleeping: AtomicBool,
    event: EventFd,
}

/// Makes a sleeping reactor's turn return. Calls before the next turn count as one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bell>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Bell { called: AtomicBool::new(false), sleeping: AtomicBool::new(false), event })))
    }

    /// Wakes the reactor, or keeps it from falling asleep. Never blocks; a system call only when the reactor sleeps.
    pub fn wake(&self) {
        self.0.called.store(true, Ordering::SeqCst);
        if self.0.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full: then the reactor is being woken already.
            let _ = self.0.event.write(1);
        }
    }

    /// Whether it was called since the last time this was asked.
    pub(crate) fn take(&self) -> bool {
        // The plain load keeps the cache line shared while nobody calls.
        self.0.called.load(Ordering::Relaxed) && self.0.called.swap(false, Ordering::SeqCst)
    }

    /// Announces that the reactor is about to sleep; returns whether it may.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.0.sleeping.store(true, Ordering::SeqCst);
        let called = self.0.called.load(Ordering::SeqCst);
        if called {
            self.stay_awake();
        }
        !called
    }

    /// The reactor is awake again.
    pub(crate) fn stay_awake(&self) {
        self.0.sleeping.store(false, Ordering::SeqCst);
    }

    pub(crate) fn event_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    /// Makes the eventfd quiet again.
    pub(crate) fn silence(&self) {
        // EAGAIN: already quiet.
        let _ = self.0.event.read();
    }
}
