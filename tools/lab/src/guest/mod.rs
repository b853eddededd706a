//! What the lab's own program does inside a guest: `twinlog-lab guest ...`, called by payloads.

mod exerciser;

use anyhow::Result;
use clap::Subcommand;
use std::path::PathBuf;

/// Tools for payloads.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Random reads, writes, truncations and holes on one file or block device, each read compared with a model in memory
    Exercise {
        /// The file, which is made, or the device
        path: PathBuf,
        /// How many operations
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// The largest size of the file, or how much of the device is used
        #[arg(long, default_value_t = 4 << 20)]
        size: usize,
        /// Of the random numbers
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// Runs one tool.
///
/// # Errors
///
/// What the tool finds wrong.
pub fn run(tool: &Tool) -> Result<()> {
    match tool {
        Tool::Exercise { path, count, size, seed } => exerciser::run(path, *size, *count, *seed),
    }
}
