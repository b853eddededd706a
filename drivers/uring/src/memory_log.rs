//! Log memory in plain memory: lost with the process. For tests, benchmarks, and pairs whose owners accept it.

use twinlog_device::{DurabilityClass, LogCompletion, LogInfo, LogMemory, Token};

/// Operations that may wait for the next poll: the persists that the contract of [`LogMemory::persist`] allows.
const OPERATIONS_MAX: usize = 8;

/// One lane in plain memory. Whoever sleeps between an operation and the next poll wraps it in [`AtOnce`](crate::AtOnce).
pub struct MemoryLog {
    info: LogInfo,
    bytes: Vec<u8>,
    finished: Vec<LogCompletion>,
}

impl MemoryLog {
    /// `size_bytes` of zeroes, a multiple of 4096.
    ///
    /// # Panics
    /// When the size is zero or odd: sizes are checked where they are configured.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        assert!(size_bytes > 0 && size_bytes.is_multiple_of(4096), "a region has whole blocks");
        let info = LogInfo {
            name: name.to_owned(),
            backend: "memory",
            size_bytes,
            unit_bytes: 64,
            atomic_bytes: 8,
            durability: DurabilityClass::Volatile,
            pending_bytes_max: size_bytes,
        };
        let bytes = vec![0; usize::try_from(size_bytes).expect("a 64-bit machine")];
        Self { info, bytes, finished: Vec::with_capacity(OPERATIONS_MAX) }
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
        self.bytes[Self::place(offset_bytes, bytes.len())].copy_from_slice(bytes);
    }

    fn persist(&mut self, token: Token) {
        self.finish(token, Vec::new());
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.finished.len()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let bytes = self.bytes[Self::place(offset_bytes, length_bytes)].to_vec();
        self.finish(token, bytes);
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.finished);
    }
}
