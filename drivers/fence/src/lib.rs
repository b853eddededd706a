//! How one node makes certain that another writes no more: by killing the process that holds a lock, or by a command of the user's.
//!
//! Each program that is started has every lock of the process that starts it, from its fork until it becomes that program: locks belong to open files
//! (`fcntl(2)`), and a child has its parent's. Who examines locks meets that child too, for microseconds.

mod command;
mod process;

pub use command::{Agent, Outcome, Running};
pub use process::Holder;
