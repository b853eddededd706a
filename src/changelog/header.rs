//! A lane's header in log memory: written once, when the lane is made; read to learn which portion a region belongs to.

use crate::{
    base::PortionId,
    changelog::{ring::Ring, scan::ScanError},
    format::lane_header::{LANE_HEADER_BYTES, LaneHeader, LaneIdentity, RawLaneHeader},
};
use twinlog_device::{DeviceError, LogMemory, Token};
use zerocopy::IntoBytes;

const TOKEN: Token = Token(0);

/// The formatting of a lane: its header, durable. The content of the ring stays: records of another pool or of positions
/// below the lane's head mean nothing.
#[derive(Debug)]
pub struct Format<L> {
    log: L,
    done: bool,
}

impl<L: LogMemory> Format<L> {
    /// Starts to format `log`, which has room for a store of one block and a persist. `portion` is drawn once for all lanes of it.
    ///
    /// # Panics
    /// When the log memory is smaller than two blocks, or the portion's id is zero.
    #[must_use]
    pub fn new(mut log: L, identity: &LaneIdentity, portion: PortionId) -> Self {
        let ring = Ring::of_region(log.info().size_bytes).expect("log memory has whole blocks, a header and a ring");
        log.store(0, RawLaneHeader::new(identity, portion, ring.bytes()).as_bytes());
        log.persist(TOKEN);
        Self { log, done: false }
    }

    /// Whether the header is durable.
    ///
    /// # Errors
    /// The log memory's error: the lane is not formatted.
    pub fn poll(&mut self) -> Result<bool, DeviceError> {
        let mut completions = Vec::new();
        self.log.poll(&mut completions);
        for completion in completions {
            assert_eq!(completion.token, TOKEN, "nothing else is in flight");
            completion.result?;
            self.done = true;
        }
        Ok(self.done)
    }

    /// The log memory, formatted.
    ///
    /// # Panics
    /// Before `poll` has returned true.
    #[must_use]
    pub fn into_log(self) -> L {
        assert!(self.done, "formatting has finished");
        self.log
    }
}

/// The header of a formatted lane, being read.
#[derive(Debug)]
pub struct ReadHeader<L> {
    log: L,
    is_asked: bool,
    header: Option<LaneHeader>,
}

impl<L: LogMemory> ReadHeader<L> {
    /// Begins to read the header in `log`, which has nothing in flight.
    #[must_use]
    pub fn new(log: L) -> Self {
        Self { log, is_asked: false, header: None }
    }

    /// The header, once it was read.
    ///
    /// # Errors
    /// When the log memory cannot be read, or its region is no lane.
    pub fn poll(&mut self) -> Result<Option<LaneHeader>, ScanError> {
        if !self.is_asked && self.log.room() > 0 {
            self.log.read(TOKEN, 0, usize::try_from(LANE_HEADER_BYTES).expect("one block"));
            self.is_asked = true;
        }
        let mut completions = Vec::new();
        self.log.poll(&mut completions);
        if let Some(completion) = completions.pop() {
            self.header = Some(LaneHeader::read(&completion.result?, self.log.info().size_bytes)?);
        }
        Ok(self.header)
    }

    /// Whether the read is under way, whose end gives the reactor a turn.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_asked && self.header.is_none()
    }

    /// The log memory.
    ///
    /// # Panics
    /// Before `poll` has returned the header.
    #[must_use]
    pub fn into_log(self) -> L {
        assert!(self.header.is_some(), "the header was read");
        self.log
    }
}
