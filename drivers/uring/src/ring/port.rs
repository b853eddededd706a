//! A driver's share of the ring.

use super::{Core, Mailbox, Ring, Target};
use crate::clock;
use io_uring::squeue::Entry;
use std::{
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// How long one wait for the kernel's last operations lasts at most, and how long they may take before the process gives up.
const DRAIN_STEP: Duration = Duration::from_secs(1);
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// The end of an operation, or one result of an operation that goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// The driver's own index of the operation.
    pub(crate) index: u32,
    /// What the system call would return; negative error number otherwise.
    pub(crate) result: i32,
    /// The operation goes on and will have further events.
    pub(crate) more: bool,
}

/// A driver's number on the ring. Declared before the memory of the driver's operations, so that it is dropped, and the kernel
/// has finished, before that memory goes.
pub(crate) struct Port {
    ring: Ring,
    number: u16,
}

impl Port {
    pub(crate) fn open(ring: &Ring) -> Self {
        let mut core = ring.core();
        let number = core.mailboxes.iter().position(Option::is_none).unwrap_or(core.mailboxes.len());
        let mailbox = Some(Mailbox { events: Vec::with_capacity(64), in_flight: 0, assisted: 0 });
        if number == core.mailboxes.len() {
            core.mailboxes.push(mailbox);
        } else {
            core.mailboxes[number] = mailbox;
        }
        drop(core);
        let number = u16::try_from(number).expect("a reactor has fewer drivers than 65536");
        Self { ring: ring.clone(), number }
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Queues an entry for the next turn.
    ///
    /// # Safety
    /// As for [`Core::push`].
    #[expect(unsafe_code, reason = "passes the promise of its caller on")]
    pub(crate) unsafe fn push(&self, index: u32, entry: Entry) {
        // SAFETY: the caller's promise is `Core::push`'s.
        unsafe { self.ring.core().push(self.number, index, entry) };
    }

    /// Swaps what has arrived into `events`, which is empty.
    pub(crate) fn take_events(&self, events: &mut Vec<Event>) {
        debug_assert!(events.is_empty(), "events that were taken are handled");
        let mut core = self.ring.core();
        std::mem::swap(&mut self.mailbox(&mut core).events, events);
    }

    /// One operation more is in flight that a thread of the kernel has to finish.
    pub(crate) fn begin_assisted(&self) {
        self.mailbox(&mut self.ring.core()).assisted += 1;
    }

    /// One of those has finished.
    pub(crate) fn end_assisted(&self) {
        self.mailbox(&mut self.ring.core()).assisted -= 1;
    }

    fn mailbox<'a>(&self, core: &'a mut Core) -> &'a mut Mailbox {
        core.mailboxes[usize::from(self.number)].as_mut().expect("an open port has its mailbox")
    }

    /// Waits until none of this port's operations is in flight; other ports' events stay in their mailboxes.
    pub(crate) fn drain(&self) {
        let mut core = self.ring.core();
        let give_up = clock::monotonic() + DRAIN_MAX;
        while clock::monotonic() < give_up {
            if self.mailbox(&mut core).in_flight == 0 {
                return;
            }
            core.exchange(Some(DRAIN_STEP));
        }
        // Its memory must not be freed while a device may still write to it, and nothing can stop that device.
        eprintln!("twinlog: a device has not finished its operations within two minutes; giving up");
        std::process::abort();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.drain();
        self.ring.core().mailboxes[usize::from(self.number)] = None;
    }
}

/// A descriptor's place in the registered table, given back by drop; the descriptor itself belongs to someone else.
pub(crate) struct RegisteredFile {
    ring: Ring,
    target: Target,
}

impl RegisteredFile {
    /// Registers the descriptor, or uses it as it is when there is no room.
    pub(crate) fn new(ring: &Ring, descriptor: &impl AsFd) -> Self {
        let raw = descriptor.as_fd().as_raw_fd();
        let target = ring.core().register_file(raw).unwrap_or(Target::plain(raw));
        Self { ring: ring.clone(), target }
    }

    pub(crate) fn target(&self) -> Target {
        self.target
    }
}

impl Drop for RegisteredFile {
    fn drop(&mut self) {
        if self.target.registered {
            self.ring.core().unregister_file(self.target);
        }
    }
}
