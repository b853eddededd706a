//! Making a ring: what the kernel has is used, what it lacks is left out.

use super::{Core, RingError, RingFacts, RingOptions, Target};
use crate::{clock, waker::Waker};
use io_uring::{IoUring, Probe, opcode};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
};
use twinlog_device::BlockPool;

/// Largest buffer that the kernel registers: 1 GiB.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// Smallest submission queue: what does not fit waits in line.
const ENTRIES_MIN: u32 = 8;

/// Places for buffers of drivers (staging memory of file logs) behind those of the block pool.
const EXTRA_BUFFERS: u32 = 16;

/// `IORING_REGISTER_RING_FDS` and `IORING_UNREGISTER_RING_FDS` of the kernel's `linux/io_uring.h`.
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

pub(super) fn core(options: &RingOptions, pool: &BlockPool) -> Result<Core, RingError> {
    let (uring, deferred_completions) = build(options.entries)?;
    for (present, name) in [
        (uring.params().is_feature_ext_arg(), "waiting with a time limit"),
        (uring.params().is_feature_nodrop(), "keeping completions that do not fit"),
        (uring.params().is_feature_native_workers(), "native workers"),
    ] {
        if !present {
            return Err(RingError::TooOld(name));
        }
    }
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe)?;
    let registered_files = register_files(&uring, options.files_max);
    let buffers = if options.register_buffers { Buffers::register(&uring, pool) } else { Buffers::default() };
    let registered_ring = register_ring(&uring);
    // Neither is an operation of its own; they came with the operation `Socket`.
    let linux_5_19 = probe.is_supported(opcode::Socket::CODE);
    let facts = RingFacts {
        deferred_completions,
        registered_files,
        registered_buffers: buffers.pool_count > 0,
        scattered_registered_buffers: probe.is_supported(opcode::ReadvFixed::CODE),
        multishot_accept: linux_5_19,
        poll_first: linux_5_19,
        registered_ring: registered_ring.is_some(),
    };
    let mut core = Core {
        registered_ring,
        uring,
        facts,
        backlog: VecDeque::new(),
        mailboxes: Vec::new(),
        hooks: Vec::new(),
        free_files: if registered_files { (0..options.files_max).rev().collect() } else { Vec::new() },
        buffers,
        waker: Waker::new()?,
        rearm_waker: true,
        ready: false,
        now: clock::monotonic(),
        enters: 0,
    };
    // Arms the waker, and shows here rather than later if the kernel refuses to be entered.
    core.exchange(None);
    Ok(core)
}

/// A ring, as large as `entries` if the memory that this user may lock is enough for it, and whether completions are deferred.
fn build(entries: u32) -> Result<(IoUring, bool), RingError> {
    let mut entries = entries.max(ENTRIES_MIN);
    loop {
        match build_sized(entries) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && entries > ENTRIES_MIN => {
                entries = (entries / 2).max(ENTRIES_MIN);
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => return Err(RingError::Refused(error)),
                Some(libc::ENOMEM) => return Err(RingError::Memory(error)),
                _ => return Err(RingError::Io(error)),
            },
            Ok(built) => return Ok(built),
        }
    }
}

/// The ring with the newest set of flags that the kernel takes.
fn build_sized(entries: u32) -> io::Result<(IoUring, bool)> {
    // Room for a completion of everything that is queued, several times over: overflow works, but slowly.
    let completions = entries.saturating_mul(4);
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for level in (0..3).rev() {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions).dontfork();
        if level >= 1 {
            // Linux 5.19: no interrupts for completions; a flag says when to enter.
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        }
        if level >= 2 {
            // Linux 6.1: completions are prepared when we enter, in our own time.
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        match builder.build(entries) {
            Ok(uring) => return Ok((uring, level >= 2)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn register_files(uring: &IoUring, count: u32) -> bool {
    let submitter = uring.submitter();
    if submitter.register_files_sparse(count).is_ok() {
        return true;
    }
    // Before Linux 5.19 a sparse table is written out.
    submitter.register_files(&vec![-1; count as usize]).is_ok()
}

/// The kernel's `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Registers the ring's own descriptor (Linux 5.18) and returns its index: entering then needs no look-up of the descriptor. The registration belongs
/// to the thread and holds the ring, so that it ends with [`unregister_ring`] and not with the descriptor.
fn register_ring(uring: &IoUring) -> Option<u32> {
    let data = u64::try_from(uring.as_raw_fd()).expect("an open descriptor is not negative");
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data };
    (update_ring(uring, REGISTER_RING_FDS, &mut update) == 1).then_some(update.offset)
}

/// Lets go of the ring, which ends when its descriptor is closed: until then the kernel may keep files of operations that are over, and so their locks.
pub(super) fn unregister_ring(uring: &IoUring, index: u32) {
    let mut update = RingUpdate { offset: index, reserved: 0, data: 0 };
    update_ring(uring, UNREGISTER_RING_FDS, &mut update);
}

/// Returns how many were updated; negative if the kernel refuses.
fn update_ring(uring: &IoUring, operation: u32, update: &mut RingUpdate) -> i64 {
    // SAFETY: the argument is the kernel's structure, one of them, and lives during the call.
    unsafe {
        libc::syscall(libc::SYS_io_uring_register, uring.as_raw_fd(), operation, std::ptr::from_mut(update), 1_u32)
    }
}

impl Core {
    /// A place for `descriptor` in the registered table, if there is one.
    pub(super) fn register_file(&mut self, descriptor: RawFd) -> Option<Target> {
        let slot = self.free_files.pop()?;
        if self.uring.submitter().register_files_update(slot, &[descriptor]).is_err() {
            self.free_files.push(slot);
            return None;
        }
        Some(Target { number: i32::try_from(slot).expect("the table is small"), registered: true })
    }

    pub(super) fn unregister_file(&mut self, target: Target) {
        let slot = u32::try_from(target.number).expect("a registered target is an index");
        let cleared = self.uring.submitter().register_files_update(slot, &[-1]);
        // A place that could not be cleared is never used again.
        if cleared.is_ok() {
            self.free_files.push(slot);
        }
    }

    /// Registers memory of a driver, which stays valid until [`Self::unregister_buffer`] (or the ring's end).
    pub(crate) fn register_buffer(&mut self, address: *mut u8, length: usize) -> Option<u16> {
        let Self { uring, buffers, .. } = self;
        let slot = buffers.free.pop()?;
        if update_buffer(uring, slot, address, length).is_err() {
            buffers.free.push(slot);
            return None;
        }
        Some(slot)
    }

    pub(crate) fn unregister_buffer(&mut self, slot: u16) {
        if update_buffer(&self.uring, slot, std::ptr::null_mut(), 0).is_ok() {
            self.buffers.free.push(slot);
        }
    }
}

fn update_buffer(uring: &IoUring, slot: u16, address: *mut u8, length: usize) -> io::Result<()> {
    let vector = [libc::iovec { iov_base: address.cast(), iov_len: length }];
    // SAFETY: the kernel pins the pages, so even memory that is freed too early could not be reused below an operation; and the
    // drivers unregister theirs before they free it.
    unsafe { uring.submitter().register_buffers_update(u32::from(slot), &vector, None) }
}

/// The table of registered buffers: the block pool in parts of at most 1 GiB, then places for drivers.
#[derive(Default)]
pub(super) struct Buffers {
    base: usize,
    length: usize,
    pool_count: u16,
    free: Vec<u16>,
}

impl Buffers {
    fn register(uring: &IoUring, pool: &BlockPool) -> Self {
        let (base, length) = pool.region();
        let Ok(pool_count) = u16::try_from(length.div_ceil(BUFFER_BYTES_MAX)) else { return Self::default() };
        let count = u32::from(pool_count) + EXTRA_BUFFERS;
        // Sparse tables came with Linux 5.19; without one no buffer is registered.
        if uring.submitter().register_buffers_sparse(count).is_err() {
            return Self::default();
        }
        for index in 0..pool_count {
            let offset = usize::from(index) * BUFFER_BYTES_MAX;
            let part = (length - offset).min(BUFFER_BYTES_MAX);
            if update_buffer(uring, index, base.wrapping_add(offset), part).is_err() {
                // RLIMIT_MEMLOCK, most likely. Without the pool the rest is not worth its places.
                let _ = uring.submitter().unregister_buffers();
                return Self::default();
            }
        }
        let last = pool_count + u16::try_from(EXTRA_BUFFERS).expect("a small constant");
        Self { base: base.addr(), length, pool_count, free: (pool_count..last).rev().collect() }
    }

    /// The registered part of the pool that contains all of `length` bytes at `address`.
    pub(super) fn index(&self, address: *const u8, length: usize) -> Option<u16> {
        let offset = address.addr().checked_sub(self.base)?;
        if self.pool_count == 0 || length == 0 || offset.checked_add(length)? > self.length {
            return None;
        }
        let (first, last) = (offset / BUFFER_BYTES_MAX, (offset + length - 1) / BUFFER_BYTES_MAX);
        if first == last { u16::try_from(first).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_one_part_of_the_pool_is_registered() {
        let base = 1 << 40;
        let buffers = Buffers { base, length: 3 << 30, pool_count: 3, free: Vec::new() };
        let at = |offset: usize| std::ptr::without_provenance::<u8>(base + offset);
        assert_eq!(buffers.index(at(0), 4096), Some(0));
        assert_eq!(buffers.index(at((1 << 30) - 4096), 4096), Some(0));
        assert_eq!(buffers.index(at((1 << 30) - 4096), 8192), None, "a part's end lies between");
        assert_eq!(buffers.index(at(2 << 30), 1 << 30), Some(2));
        assert_eq!(buffers.index(at(2 << 30), (1 << 30) + 1), None, "beyond the pool");
        assert_eq!(buffers.index(at(0).wrapping_sub(4096), 4096), None, "before the pool");
        assert_eq!(Buffers::default().index(at(0), 4096), None);
    }
}
