//! What the engine asks of a machine, as traits; the drivers implement them and the engine is generic over them.
//!
//! # Contracts common to all drivers
//!
//! 1. **Nothing blocks.** Operations are queued by a call and finished by a completion that the caller polls. The one
//!    place that may sleep is [`Platform::turn`], and only when the caller says so.
//! 2. **Buffers belong to the operation** from the call until its completion, which gives them back, error or not.
//! 3. **Tokens** are the caller's; a driver returns each exactly once and never looks inside.
//! 4. **Bounds.** A queue has a depth; the caller asks `room` first. Calling without room is a programming error (panic).
//! 5. **Errors are data.** A device error, a time-out or a removed device is an `Err` in the completion.
//! 6. **Order.** Operations in flight at the same time may be performed in any order. What must be ordered is ordered by
//!    waiting for completions.
//!
//! The [`conformance`] module tests these contracts for every driver.

pub mod block;
pub mod conformance;
pub mod log;
pub mod net;
pub mod platform;
pub mod prng;

pub use block::{
    BlockCompletion, BlockDevice, BlockRange, DeviceError, DeviceErrorKind, DeviceHealth, DeviceInfo, DeviceWear,
    Persistence,
};
pub use log::{DurabilityClass, LogCompletion, LogInfo, LogMemory};
pub use net::{Accepted, ConnectionFailure, ConnectionId, ConnectionState, Landing, Lent, NetAddress, Network, Unread};
pub use platform::{Nanos, Platform, Wait};
pub use prng::Prng;
pub use twinlog_memory::{BLOCK_BYTES, BlockBuf, BlockBytes, BlockPool, Loan, SharedBlock, Shares, prefer_huge_pages};

/// The caller's name for an operation in flight: returned with its completion, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);
