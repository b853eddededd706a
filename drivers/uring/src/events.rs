//! Event counters of other drivers (eventfd), which end a reactor's sleep.
//!
//! The counters are collected in an epoll instance, and a poll of that one is armed in the ring before the reactor sleeps. While it is awake
//! a counter that grows costs it nothing.
//!
//! Nobody reads the counters: several reactors may wait for the same one, and whoever read it would take the signal from the others. Each
//! epoll instance is told of every signal by itself (edge-triggered), and forgets with [`Events::listen`].

// A poll is an entry for the kernel.
#![expect(unsafe_code, reason = "submission entries are the kernel's interface")]

use crate::{
    Ring,
    ring::{Event, Port},
};
use io_uring::{opcode, types};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// Signals that are forgotten in one system call.
const BATCH: usize = 16;

/// The poll's index at its port.
const POLL: u32 = 0;

/// What ends the sleep of one reactor.
pub struct Events {
    port: Port,
    epoll: Rc<Epoll>,
    is_armed: bool,
    arrived: Vec<Event>,
}

/// A counter that a reactor waits for, until this is dropped.
pub struct Listened {
    epoll: Rc<Epoll>,
    event: OwnedFd,
}

impl Events {
    /// For the reactor of `ring`; it waits for nothing yet.
    ///
    /// # Errors
    /// When the kernel refuses an epoll instance.
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let epoll = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        Ok(Self { port: Port::open(ring), epoll, is_armed: false, arrived: Vec::new() })
    }

    /// Waits for `event`, too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, event: BorrowedFd<'_>) -> io::Result<Listened> {
        // A descriptor of its own: an epoll instance has each only once.
        let event = event.try_clone_to_owned()?;
        self.epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        Ok(Listened { epoll: Rc::clone(&self.epoll), event })
    }

    /// Forgets every signal so far. One that comes later ends the sleep of the ring's next turn, or keeps it from falling asleep.
    pub fn listen(&mut self) {
        self.settle();
        let mut signals = [EpollEvent::empty(); BATCH];
        // An error here is one that the poll below meets, too: then the turn does not sleep.
        while self.epoll.wait(&mut signals, EpollTimeout::ZERO) == Ok(BATCH) {}
        if !self.is_armed {
            let readable = u32::try_from(libc::POLLIN).expect("a positive constant");
            let entry = opcode::PollAdd::new(types::Fd(self.epoll.0.as_raw_fd()), readable).build();
            // SAFETY: a poll names no memory.
            unsafe { self.port.push(POLL, entry) };
            self.is_armed = true;
        }
    }

    /// Takes note of a poll that has ended: a ring does not sleep over it.
    pub fn settle(&mut self) {
        self.port.take_events(&mut self.arrived);
        if self.arrived.drain(..).next().is_some() {
            self.is_armed = false;
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.is_armed {
            // The port, which is dropped next, waits for its end.
            self.port.ring().core().cancel(self.port.number(), POLL);
        }
    }
}

impl Drop for Listened {
    fn drop(&mut self) {
        // It is there: added above, and open.
        let _gone = self.epoll.delete(&self.event);
    }
}
