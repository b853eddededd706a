//! What the lab's own program does inside a guest: `twinlog-lab guest ...`, called by payloads.

mod attach;
mod exerciser;
mod files;
mod log;
mod netlink;
mod nvme;
mod pace;
mod pci;
mod speed;

use anyhow::Result;
use clap::Subcommand;
use std::{path::PathBuf, time::Duration};

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
    /// Attach an NBD export to the kernel, and replace connections that break
    Attach {
        /// HOST:PORT
        address: String,
        /// Name of the export
        #[arg(long)]
        export: String,
        /// Of the device: 0 is /dev/nbd0
        #[arg(long, default_value_t = 0)]
        index: u32,
        /// How many connections
        #[arg(long, default_value_t = 2)]
        connections: usize,
    },
    /// Drive an NVMe controller far enough to prove a way to a PCI function
    Pci(pci::PciArgs),
    /// Run the NVMe driver on a controller: the suite of every block device
    Nvme(nvme::NvmeArgs),
    /// Read at random through the NVMe driver, and print how many blocks of 4 KiB a second
    NvmeSpeed(speed::SpeedArgs),
    /// Write and read a part of a block device at an even pace, and say how long it paused
    Pace(pace::PaceArgs),
    /// Write, rewrite and remove files, each step made durable
    WriteFiles {
        /// The folder, which is made
        folder: PathBuf,
        /// Of the random numbers
        #[arg(long)]
        seed: u64,
        /// Ends when this file appears
        #[arg(long)]
        stop: PathBuf,
        /// Gets what must be there at the end
        #[arg(long)]
        list: PathBuf,
        /// Gets a line for each step
        #[arg(long)]
        progress: PathBuf,
        /// Milliseconds between two steps
        #[arg(long, default_value_t = 0)]
        rest_ms: u64,
    },
    /// Run the conformance suite of change logs
    ConformLog {
        /// A file on a DAX file system, which is made, or a device-DAX node, which is overwritten
        path: PathBuf,
    },
    /// Find lost bytes in a log
    LoseLog {
        /// The file, of 256 KiB at least
        path: PathBuf,
        /// Where its disk keeps the list
        list: PathBuf,
        /// Of 512 bytes, of the disk, at which the file begins
        #[arg(long)]
        sector: u64,
    },
    /// Prove that the files are there
    VerifyFiles {
        /// The folder
        folder: PathBuf,
        /// As for `write-files`
        #[arg(long)]
        seed: u64,
        /// As from `write-files`
        #[arg(long)]
        list: PathBuf,
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
        Tool::Attach { address, export, index, connections } => attach::run(address, export, *index, *connections),
        Tool::Pci(args) => pci::run(args),
        Tool::Nvme(args) => nvme::run(args),
        Tool::NvmeSpeed(args) => speed::run(args),
        Tool::Pace(args) => pace::run(args),
        Tool::WriteFiles { folder, seed, stop, list, progress, rest_ms } => {
            files::write(folder, *seed, stop, (list, progress), Duration::from_millis(*rest_ms))
        }
        Tool::ConformLog { path } => log::conform(path),
        Tool::LoseLog { path, list, sector } => log::lose(path, *sector, list),
        Tool::VerifyFiles { folder, seed, list } => files::verify(folder, *seed, list),
    }
}
