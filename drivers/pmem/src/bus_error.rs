//! Memory that is not there any more, met in the middle of a copy, becomes an error of that copy.
//!
//! A load of a line that the memory has lost (poison), and any access to a page of a file that was cut short, raises `SIGBUS` at the instruction
//! itself. The handler puts zeroed memory of its own in the place of the whole mapping, notes that the mapping has failed, and lets the instruction
//! run again; whoever copied looks at the note afterwards, and throws away what it has read.
//!
//! # Invariants
//!
//! 1. The handler helps a thread only inside [`Window::guard`], and only for an address in the window that is guarded there: a thread says by a variable of
//!    its own what it accesses, so no other thread's doing can confuse it. Every other `SIGBUS` gets the action that was there before.
//! 2. The note is made before the memory is replaced. So another thread that has stored anything to the replacement sees the note when it looks after its
//!    fence, and reports no such bytes as persisted.
//! 3. The handler calls what is a bare system call, touches atomics, and restores the error number.
//! 4. A window that has failed stays so; its address range stays mapped until the mapping is dropped.

// A signal handler gets and uses raw pointers.
#![expect(unsafe_code, reason = "signal handling")]

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
};
use std::{
    cell::Cell,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering, compiler_fence},
    },
};

/// The address range of a mapping, and whether it has failed.
#[derive(Debug)]
pub(crate) struct Window {
    base: usize,
    length: usize,
    failed: AtomicBool,
}

thread_local! {
    /// What this thread accesses; null outside of [`Window::guard`].
    static GUARDED: Cell<*const Window> = const { Cell::new(ptr::null()) };
}

/// What was done about `SIGBUS` before; set once the handler is installed.
static BEFORE: OnceLock<SigAction> = OnceLock::new();

impl Window {
    /// A window on `length` mapped bytes at `base`.
    ///
    /// # Safety
    /// The range is a whole mapping that belongs to the caller, who reads and writes it only while it is guarded, keeps nothing in it that must not turn to
    /// zeroes, and unmaps it after the last guard.
    pub(crate) unsafe fn new(base: usize, length: usize, _handler: Installed) -> Self {
        Self { base, length, failed: AtomicBool::new(false) }
    }

    /// Whether memory was missing.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Does `access` to the window; afterwards [`Self::has_failed`] tells whether it met memory all along.
    pub(crate) fn guard<T>(&self, access: impl FnOnce() -> T) -> T {
        let _guarded = Guarded(GUARDED.replace(self));
        // The handler runs on this thread, between any two instructions of `access`: they must not be moved out of here.
        compiler_fence(Ordering::SeqCst);
        let result = access();
        compiler_fence(Ordering::SeqCst);
        result
    }

    fn contains(&self, address: usize) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset < self.length)
    }

    /// Puts zeroes in the place of everything; false when the kernel refuses.
    fn replace(&self) -> bool {
        self.failed.store(true, Ordering::SeqCst);
        let place = ptr::with_exposed_provenance_mut(self.base);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the whole range is a mapping that belongs to this window (promise to `new`); nothing but guarded copies has pointers into it.
        let replaced = unsafe { libc::mmap(place, self.length, protection, flags, -1, 0) };
        replaced != libc::MAP_FAILED
    }
}

/// Ends a guard; holds what was guarded before.
struct Guarded(*const Window);

impl Drop for Guarded {
    fn drop(&mut self) {
        GUARDED.set(self.0);
    }
}

/// The handler is installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installed(());

/// Installs the handler, once per process.
pub(crate) fn install() -> Result<Installed, Errno> {
    static INSTALLED: OnceLock<Result<Installed, Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // On the stack for signals, as the one of the standard library that it replaces.
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::SigAction(on_bus_error), flags, SigSet::empty());
        // SAFETY: the handler keeps to what is safe in one (invariant 3).
        let before = unsafe { sigaction(Signal::SIGBUS, &action) }?;
        BEFORE.set(before).expect("this closure runs once");
        Ok(Installed(()))
    })
}

extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let error = Errno::last_raw();
    if !recover(info) {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let before = BEFORE.get().unwrap_or(&default);
        // SAFETY: it was in force before, or is the default.
        let restored = unsafe { sigaction(Signal::SIGBUS, before) };
        // Comes when this handler returns: also for a signal that another process has sent, which no instruction repeats.
        if restored.is_err() || raise(Signal::SIGBUS).is_err() {
            std::process::abort();
        }
    }
    Errno::set_raw(error);
}

/// Whether the faulting instruction may run again.
fn recover(info: *const libc::siginfo_t) -> bool {
    let window = GUARDED.get();
    if window.is_null() {
        return false;
    }
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid description.
    let info = unsafe { &*info };
    // SAFETY: the guard that set the pointer borrows the window, and this thread is inside that guard.
    let window = unsafe { &*window };
    if info.si_code <= 0 {
        return false; // sent by a process
    }
    // SAFETY: a SIGBUS of the kernel's has an address.
    let address = unsafe { info.si_addr() }.addr();
    window.contains(address) && window.replace()
}
