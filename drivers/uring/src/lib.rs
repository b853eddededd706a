//! Files, block devices and sockets through one io_uring per reactor.
//!
//! ```text
//!   FileDisk   FileLog   UringNetwork   Waker (other threads)
//!       \         |         /             |
//!        +------ Ring -----+--------------+      one per reactor, made on the reactor's own thread
//!                 |
//!        one io_uring_enter per turn of the loop
//! ```
//!
//! # Invariants
//!
//! 1. **Memory outlives the operation.** Memory that an operation in flight names belongs to the driver that queued it, and a
//!    driver's `Port` is dropped before that memory: it waits until the kernel has finished.
//! 2. **One thread.** A ring and everything on it stay on the thread that made it (the types are not `Send`); the kernel is told so
//!    (`SINGLE_ISSUER`). Only a [`Waker`] may go elsewhere.
//! 3. **One system call.** Queuing writes to shared memory only; [`Ring::turn`] makes the one `io_uring_enter`, and none at all when
//!    nothing is queued, nothing has finished and it may not sleep.
//! 4. **No sleep over work.** `turn` does not sleep while a completion waits to be polled, whether it came from the kernel or needs
//!    none (memory logs, refused operations), nor after a [`Waker`] was called.
//!
//! # How to put one together
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use twinlog_device::{BlockPool, Platform, Wait};
//! use twinlog_uring::{AnyLog, DiskOptions, FileDisk, FileLog, ListenAddress, Listener, Ring, RingOptions, UringNetwork, UringPlatform};
//!
//! let pool = BlockPool::new(4096)?;
//! let ring = Ring::new(RingOptions::default(), &pool)?;
//! let disk = FileDisk::open(&ring, Path::new("disk"), DiskOptions::default())?;
//! let log = AnyLog::File(FileLog::open(&ring, Path::new("log"), 0, 64 << 20)?);
//! let listener = Listener::bind(&ListenAddress::Unix { path: "socket".into(), mode: 0o600 })?;
//! let net = UringNetwork::new(&ring, vec![listener], 256)?;
//! let waker = ring.waker();
//! let mut platform = UringPlatform::new(ring);
//! platform.turn(Wait::No);
//! # Ok(())
//! # }
//! ```

mod any_log;
mod buffer;
mod clock;
mod disk;
mod events;
mod file_log;
mod memory_log;
mod net;
mod platform;
mod ring;
mod waker;

pub use any_log::{AnyLog, AtOnce};
pub use clock::monotonic;
pub use disk::{DiskOptions, FileDisk};
pub use events::{Events, Listened};
pub use file_log::FileLog;
pub use memory_log::{MemoryLog, MemoryRegion};
pub use net::{ListenAddress, ListenError, Listener, UringNetwork};
pub use platform::UringPlatform;
pub use ring::{Ring, RingError, RingFacts, RingOptions};
pub use twinlog_file::{Access, Cache, FileError, FileKind, StorageFile, create_log_file};
pub use twinlog_pmem::{PersistenceDomain, PmemFile, PmemLog};
pub use waker::Waker;
