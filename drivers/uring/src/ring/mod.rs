//! The ring that everything of one reactor shares.
//!
//! Every driver on the ring has a [`Port`]: what it queues carries the port's number and an index of its own, and what the kernel
//! returns for it waits in the port's mailbox until the driver polls. So completions find their driver without a table.
//!
//! ```text
//!   driver --push(index, entry)--> submission queue --io_uring_enter--> kernel
//!   driver <--take_events--- port's mailbox <---reap--- completion queue <---+
//! ```
//!
//! # Failure cases
//!
//! - The kernel refuses a feature: the next lower way is taken, and [`Ring::facts`] says which ways are in use.
//! - The kernel is short of memory in `enter` (`EAGAIN`, `EBUSY`): entries stay queued and the next turn tries again.
//! - The completion queue overflows: the kernel keeps the rest (`NODROP`) and gives it out in the following turns.

// Entries carry raw addresses, and the kernel interface is made of system calls: this is where they meet.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

mod port;
mod setup;

pub(crate) use port::{Event, Port, RegisteredFile};

use crate::{clock, waker::Waker};
use io_uring::{IoUring, cqueue, opcode, squeue::Entry, types};
use setup::Buffers;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    time::Duration,
};
use thiserror::Error;
use twinlog_device::{BlockPool, Nanos, Wait};

/// `user_data` of the poll that waits for the waker. Ports are numbered from zero and never reach it.
const WAKER_DATA: u64 = u64::MAX;
/// `user_data` of cancellations, whose own result does not matter.
const CANCEL_DATA: u64 = u64::MAX - 1;

/// Flags of `io_uring_enter`, from the kernel's `linux/io_uring.h`.
const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// How large a ring is and what it registers.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue: what one turn hands over in one system call. A power of two, 8 to 32768; less when this user
    /// may not lock the memory for it.
    pub entries: u32,
    /// Files and connections that can be registered; more work too, each operation a little slower.
    pub files_max: u32,
    /// Whether to pin the block pool and the logs' staging buffers for the kernel: saves looking up pages in every operation, but
    /// takes the pool's whole size as resident memory at once. Where the kernel refuses (`RLIMIT_MEMLOCK`) it is left out.
    pub register_buffers: bool,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { entries: 1024, files_max: 1024, register_buffers: false }
    }
}

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// io_uring is switched off or forbidden.
    #[error(
        "the kernel refuses io_uring ({0}): see kernel.io_uring_disabled, and the seccomp profile if this is a container"
    )]
    Refused(io::Error),
    /// The kernel's io_uring is too old.
    #[error("the kernel's io_uring lacks {0}: Linux 5.15 or later is needed")]
    TooOld(&'static str),
    /// Not even a small ring fits.
    #[error("no memory for io_uring ({0}): this user may lock too little of it, see `ulimit -l`")]
    Memory(io::Error),
    /// Another system call failed.
    #[error("cannot set up io_uring: {0}")]
    Io(#[from] io::Error),
}

/// Which ways the kernel offers and the ring uses, for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingFacts {
    /// Completions are prepared in the reactor's own turn (`SINGLE_ISSUER`, `DEFER_TASKRUN`; Linux 6.1).
    pub deferred_completions: bool,
    /// The table of files is registered.
    pub registered_files: bool,
    /// The block pool is registered.
    pub registered_buffers: bool,
    /// A registered buffer can be read and written in pieces (Linux 6.15).
    pub scattered_registered_buffers: bool,
    /// One entry accepts many connections (Linux 5.19).
    pub multishot_accept: bool,
    /// A receive can be told to wait before it tries (Linux 5.19).
    pub poll_first: bool,
    /// The ring's own descriptor is registered.
    pub registered_ring: bool,
}

/// Something that queues entries of its own just before the kernel is entered.
pub(crate) trait BeforeEnter {
    fn before_enter(&mut self, core: &mut Core);
}

struct Mailbox {
    events: Vec<Event>,
    in_flight: usize,
    /// Operations in flight that a thread of the kernel has to finish: see [`Ring::is_assisted`].
    assisted: usize,
}

pub(crate) struct Core {
    uring: IoUring,
    /// Index of the ring's own registered descriptor, for `ENTER_REGISTERED_RING`.
    registered_ring: Option<u32>,
    facts: RingFacts,
    /// Entries that found the submission queue full, in order.
    backlog: VecDeque<Entry>,
    /// By port number; `None` is a free number.
    mailboxes: Vec<Option<Mailbox>>,
    hooks: Vec<Rc<RefCell<dyn BeforeEnter>>>,
    free_files: Vec<u32>,
    buffers: Buffers,
    waker: Waker,
    /// The waker's poll has to be armed.
    rearm_waker: bool,
    /// A completion waits that needs no kernel.
    ready: bool,
    now: Nanos,
    enters: u64,
}

/// The io_uring of one reactor. Clones are handles of the same ring; it cannot leave its thread.
#[derive(Clone)]
pub struct Ring {
    core: Rc<RefCell<Core>>,
    pool: BlockPool,
}

impl Ring {
    /// A ring for the calling thread, which is the only one that can use it.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it, or has one older than Linux 5.15.
    pub fn new(options: RingOptions, pool: &BlockPool) -> Result<Self, RingError> {
        let core = setup::core(&options, pool)?;
        Ok(Self { core: Rc::new(RefCell::new(core)), pool: pool.clone() })
    }

    /// What wakes the reactor from other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.core.borrow().waker.clone()
    }

    /// Which ways are in use.
    #[must_use]
    pub fn facts(&self) -> RingFacts {
        self.core.borrow().facts.clone()
    }

    /// The memory that blocks come from.
    #[must_use]
    pub fn blocks(&self) -> &BlockPool {
        &self.pool
    }

    /// The monotonic clock at the last turn.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.core.borrow().now
    }

    /// System calls that entered the ring so far.
    #[must_use]
    pub fn enter_count(&self) -> u64 {
        self.core.borrow().enters
    }

    /// Whether an operation is in flight that a thread of the kernel finishes: a flush, a discard, a durable write to a file.
    #[must_use]
    pub fn is_assisted(&self) -> bool {
        self.core.borrow().mailboxes.iter().flatten().any(|mailbox| mailbox.assisted > 0)
    }

    /// One turn, as [`twinlog_device::Platform::turn`] describes it.
    pub fn turn(&self, wait: Wait) -> bool {
        let core = &mut *self.core.borrow_mut();
        let hooks = std::mem::take(&mut core.hooks);
        for hook in &hooks {
            hook.borrow_mut().before_enter(core);
        }
        core.hooks = hooks;
        core.turn(wait)
    }

    /// Tells the ring that a completion waits which needs no kernel: the next turn does not sleep.
    pub(crate) fn set_ready(&self) {
        self.core.borrow_mut().ready = true;
    }

    pub(crate) fn add_hook(&self, hook: Rc<RefCell<dyn BeforeEnter>>) {
        self.core.borrow_mut().hooks.push(hook);
    }

    pub(crate) fn remove_hook(&self, hook: &Rc<RefCell<dyn BeforeEnter>>) {
        self.core.borrow_mut().hooks.retain(|other| !Rc::ptr_eq(other, hook));
    }

    pub(crate) fn core(&self) -> std::cell::RefMut<'_, Core> {
        self.core.borrow_mut()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(index) = self.registered_ring {
            setup::unregister_ring(&self.uring, index);
        }
    }
}

impl Core {
    /// Queues an entry for the next turn.
    ///
    /// # Safety
    /// Everything that the entry names (buffers, vectors, headers) must stay valid until the event for (`port`, `index`) has been
    /// taken, or until the port has been drained.
    pub(crate) unsafe fn push(&mut self, port: u16, index: u32, entry: Entry) {
        let mailbox = self.mailboxes[usize::from(port)].as_mut().expect("the port is open");
        mailbox.in_flight += 1;
        let entry = entry.user_data(u64::from(port) << 32 | u64::from(index));
        // SAFETY: the caller's promise is this function's own.
        unsafe { self.push_raw(entry) };
    }

    /// As [`Self::push`], for entries that carry their final `user_data`.
    unsafe fn push_raw(&mut self, entry: Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: what the entry names stays valid (caller's promise).
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Asks the kernel to cancel an operation; its event comes in any case.
    pub(crate) fn cancel(&mut self, port: u16, index: u32) {
        let target = u64::from(port) << 32 | u64::from(index);
        let entry = opcode::AsyncCancel::new(target).build().user_data(CANCEL_DATA);
        // SAFETY: a cancellation names no memory.
        unsafe { self.push_raw(entry) };
    }

    /// An entry that reads or writes `length` bytes at `address`, through the registered buffers when they contain it.
    pub(crate) fn buffer_index(&self, address: *const u8, length: usize) -> Option<u16> {
        self.buffers.index(address, length)
    }

    pub(crate) fn facts(&self) -> &RingFacts {
        &self.facts
    }

    fn turn(&mut self, wait: Wait) -> bool {
        let mut found = std::mem::take(&mut self.ready) | self.waker.take();
        match wait {
            Wait::UpTo(limit) if !found && !limit.is_zero() && !self.has_mail() => {
                let limit = if self.waker.fall_asleep() { limit } else { Duration::ZERO };
                found |= self.exchange(Some(limit));
                self.waker.stay_awake();
            }
            Wait::No | Wait::UpTo(_) => found |= self.exchange(None),
        }
        found |= self.waker.take();
        self.now = clock::monotonic();
        found
    }

    /// Whether a driver has events that it has not taken yet.
    fn has_mail(&self) -> bool {
        self.mailboxes.iter().flatten().any(|mailbox| !mailbox.events.is_empty())
    }

    /// Submits what is queued, collects what has finished; sleeps until something has when a limit is given.
    fn exchange(&mut self, limit: Option<Duration>) -> bool {
        if std::mem::take(&mut self.rearm_waker) {
            self.arm_waker();
        }
        let (queued, wanted) = {
            let queue = self.uring.submission();
            (queue.len(), queue.taskrun() || queue.cq_overflow())
        };
        if queued > 0 || wanted || limit.is_some_and(|limit| !limit.is_zero()) {
            self.enter(queued, limit);
        }
        let mut found = self.reap();
        // Only a turn that queued more than the submission queue holds comes here.
        while !self.backlog.is_empty() {
            self.refill();
            let queued = self.uring.submission().len();
            let before = self.backlog.len();
            self.enter(queued, None);
            found |= self.reap();
            self.refill();
            if self.backlog.len() == before {
                // The kernel is short of memory: the next turn goes on.
                break;
            }
        }
        found
    }

    fn refill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised when the entry was pushed.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn enter(&mut self, queued: usize, limit: Option<Duration>) {
        self.enters += 1;
        let limit = limit.filter(|limit| !limit.is_zero());
        let timespec = types::Timespec::from(limit.unwrap_or_default());
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        let descriptor = self.registered_ring.map_or(i64::from(self.uring.as_raw_fd()), i64::from);
        let registered = if self.registered_ring.is_some() { ENTER_REGISTERED_RING } else { 0 };
        let (wanted, flags, pointer, size) = match limit {
            Some(_) => (1_u32, ENTER_EXT_ARG, (&raw const arguments).cast::<u8>(), size_of_val(&arguments)),
            None => (0, 0, std::ptr::null(), 0),
        };
        let flags = flags | registered | ENTER_GETEVENTS;
        // SAFETY: the ring's descriptor is open, the argument (if any) lives on this stack, and every queued entry was promised to
        // be valid when it was pushed.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, descriptor, queued, wanted, flags, pointer, size) };
        if result >= 0 {
            return;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error().unwrap_or_default() {
            // A signal; the time is over; short of memory or completions to be taken first: the next turn tries again.
            libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY | libc::ENOMEM => {}
            _ => panic!("io_uring_enter with valid arguments on the ring's own thread cannot fail: {error}"),
        }
    }

    /// Moves completions to their ports.
    fn reap(&mut self) -> bool {
        let mut found = false;
        let Self { uring, mailboxes, waker, rearm_waker, .. } = self;
        for completion in uring.completion() {
            match completion.user_data() {
                CANCEL_DATA => continue,
                WAKER_DATA => {
                    waker.silence();
                    *rearm_waker = true;
                }
                data => {
                    let (port, index) = ((data >> 32) as usize, u32::try_from(data & u64::from(u32::MAX)));
                    let mailbox = mailboxes[port].as_mut().expect("a port waits for its operations before it closes");
                    let more = cqueue::more(completion.flags());
                    mailbox.in_flight -= usize::from(!more);
                    let index = index.expect("masked to 32 bits");
                    mailbox.events.push(Event { index, result: completion.result(), more });
                }
            }
            found = true;
        }
        found
    }

    fn arm_waker(&mut self) {
        let readable = u32::try_from(libc::POLLIN).expect("a positive constant");
        let entry = opcode::PollAdd::new(types::Fd(self.waker.event_fd()), readable).build().user_data(WAKER_DATA);
        // SAFETY: a poll names no memory.
        unsafe { self.push_raw(entry) };
    }
}

/// The descriptor of an operation: an index into the registered table, or a file descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    number: i32,
    registered: bool,
}

impl Target {
    pub(crate) fn plain(descriptor: RawFd) -> Self {
        Self { number: descriptor, registered: false }
    }

    pub(crate) fn fd(self) -> types::Fd {
        types::Fd(self.number)
    }

    /// The entry with the flag that says how its descriptor is meant.
    pub(crate) fn seal(self, entry: Entry) -> Entry {
        if self.registered { entry.flags(io_uring::squeue::Flags::FIXED_FILE) } else { entry }
    }
}
