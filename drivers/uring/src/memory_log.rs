//! Log memory in plain memory: lost with the process. For tests, benchmarks, and pairs whose owners accept it.

#![expect(clippy::disallowed_types, reason = "one log at a time uses a region: nobody waits")]

use std::sync::{Arc, Mutex, PoisonError};
use twinlog_device::{DurabilityClass, LogCompletion, LogInfo, LogMemory, Token, prefer_huge_pages};
use twinlog_pmem::copy_past_caches;

/// Operations that may wait for the next poll: the persists that the contract of [`LogMemory::persist`] allows.
const OPERATIONS_MAX: usize = 8;

/// The bytes of a lane, which outlive the reactor that uses them: a node of a pair keeps its portion while ownership of the pool moves.
#[derive(Clone)]
pub struct MemoryRegion {
    name: String,
    /// Used by one log at a time, so nobody ever waits for it.
    bytes: Arc<Mutex<Vec<u8>>>,
    size_bytes: u64,
}

impl MemoryRegion {
    /// `size_bytes` of zeroes, a multiple of 4096.
    ///
    /// # Panics
    /// When the size is zero or odd: sizes are checked where they are configured.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        assert!(size_bytes > 0 && size_bytes.is_multiple_of(4096), "a region has whole blocks");
        let mut bytes = vec![0; usize::try_from(size_bytes).expect("a 64-bit machine")];
        prefer_huge_pages(&mut bytes);
        Self { name: name.to_owned(), bytes: Arc::new(Mutex::new(bytes)), size_bytes }
    }
}

/// One lane in plain memory. Whoever sleeps between an operation and the next poll wraps it in [`AtOnce`](crate::AtOnce).
pub struct MemoryLog {
    info: LogInfo,
    region: MemoryRegion,
    finished: Vec<LogCompletion>,
}

impl MemoryLog {
    /// The lane in a region.
    #[must_use]
    pub fn new(region: &MemoryRegion) -> Self {
        let info = LogInfo {
            name: region.name.clone(),
            backend: "memory",
            size_bytes: region.size_bytes,
            unit_bytes: 64,
            atomic_bytes: 8,
            durability: DurabilityClass::Volatile,
            pending_bytes_max: region.size_bytes,
        };
        Self { info, region: region.clone(), finished: Vec::with_capacity(OPERATIONS_MAX) }
    }

    /// The bytes; a thread that panicked ended the process.
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.region.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&mut self, token: Token, bytes: Vec<u8>) {
        assert!(self.room() > 0, "the caller asks for room first");
        self.finished.push(LogCompletion { token, result: Ok(bytes) });
    }

    fn place(offset_bytes: u64, length_bytes: usize) -> std::ops::Range<usize> {
        let offset = usize::try_from(offset_bytes).expect("a 64-bit machine");
        offset..offset.checked_add(length_bytes).expect("a range of memory")
    }
}

impl LogMemory for MemoryLog {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        self.info.pending_bytes_max
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        // Nobody reads them again, but a recovery.
        copy_past_caches(&mut self.bytes()[Self::place(offset_bytes, bytes.len())], bytes);
    }

    fn persist(&mut self, token: Token) {
        self.finish(token, Vec::new());
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.finished.len()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let bytes = self.bytes()[Self::place(offset_bytes, length_bytes)].to_vec();
        self.finish(token, bytes);
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.finished);
    }
}
