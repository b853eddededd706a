//! The log memory that was chosen at run time.

use crate::{FileLog, MemoryLog, Ring};
use twinlog_device::{LogCompletion, LogInfo, LogMemory, Token};
use twinlog_pmem::PmemLog;

/// Log memory whose operations have finished by the next poll, without the kernel: keeps the ring from sleeping until then.
pub struct AtOnce<L> {
    log: L,
    ring: Ring,
}

impl<L: LogMemory> AtOnce<L> {
    /// `log`, used by the reactor of `ring`.
    pub fn new(ring: &Ring, log: L) -> Self {
        Self { log, ring: ring.clone() }
    }
}

impl<L: LogMemory> LogMemory for AtOnce<L> {
    fn info(&self) -> &LogInfo {
        self.log.info()
    }

    fn room_bytes(&self) -> u64 {
        self.log.room_bytes()
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        self.log.store(offset_bytes, bytes);
    }

    fn persist(&mut self, token: Token) {
        self.log.persist(token);
        self.ring.set_ready();
    }

    fn room(&self) -> usize {
        self.log.room()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        self.log.read(token, offset_bytes, length_bytes);
        self.ring.set_ready();
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        self.log.poll(completions);
    }
}

/// Log memory of any backend.
pub enum AnyLog {
    /// A file or block device.
    File(FileLog),
    /// Plain memory.
    Memory(AtOnce<MemoryLog>),
    /// Mapped persistent memory.
    Pmem(AtOnce<PmemLog>),
}

/// The same expression for whichever log it is.
macro_rules! with {
    ($any:expr, $log:ident => $expression:expr) => {
        match $any {
            AnyLog::File($log) => $expression,
            AnyLog::Memory($log) => $expression,
            AnyLog::Pmem($log) => $expression,
        }
    };
}

impl LogMemory for AnyLog {
    fn info(&self) -> &LogInfo {
        with!(self, log => log.info())
    }

    fn room_bytes(&self) -> u64 {
        with!(self, log => log.room_bytes())
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        with!(self, log => log.store(offset_bytes, bytes));
    }

    fn persist(&mut self, token: Token) {
        with!(self, log => log.persist(token));
    }

    fn room(&self) -> usize {
        with!(self, log => log.room())
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        with!(self, log => log.read(token, offset_bytes, length_bytes));
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        with!(self, log => log.poll(completions));
    }
}
