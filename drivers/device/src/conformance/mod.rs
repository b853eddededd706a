//! The conformance suite: what every driver of a kind must do, run by each driver's own tests.
//!
//! A driver's test implements the harness trait of its kind and calls the suite:
//!
//! ```ignore
//! #[test]
//! fn conforms() {
//!     conformance::block_device(|| Harness::new());
//! }
//!
//! #[test]
//! #[should_panic]
//! fn refuses_an_operation_without_room() {
//!     conformance::block_device_overfilled(&mut Harness::new());
//! }
//! ```
//!
//! The suite asks `make` for a fresh harness for each of its parts, panics with the contract's words when one is broken, and never
//! measures time: it gives up only after [`TURNS_MAX`] turns of the loop in which nothing happened.

mod block;
mod connect;
mod landing;
mod log;
mod network;
mod pattern;

pub use block::{
    BlockHarness, block_device, block_device_overfilled, block_device_oversized, block_device_without_blocks,
};
pub use connect::{ConnectHarness, connections};
pub use landing::{landing, unread_beside_landings};
pub use log::{LogHarness, log_memory, log_memory_overfilled};
pub use network::{NetworkHarness, network, unread};

/// Turns without any progress after which the suite says that a driver hangs.
pub const TURNS_MAX: usize = 10_000;

/// Lets `driver` turn until `done`, which says whether it is and what has changed since the last time; `what` is the contract that is
/// broken when nothing changes any more.
#[track_caller]
fn turn_until<D>(driver: &mut D, what: &str, turn: fn(&mut D), mut done: impl FnMut(&mut D) -> Option<usize>) {
    let (mut idle_turns, mut progress) = (0, usize::MAX);
    while let Some(now) = done(driver) {
        idle_turns = if now == progress { idle_turns + 1 } else { 0 };
        progress = now;
        assert!(idle_turns < TURNS_MAX, "{what}");
        turn(driver);
    }
}
