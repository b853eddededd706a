//! `twinlog-load`: throughput, latency, and proof that no acknowledged write was lost.
//!
//! It depends on nothing of the engine, and speaks NBD and NVMe/TCP with code of its own, so that a mistake of the server's codec is not repeated
//! on the other side. Of authentication it shares the arithmetic with the target (`twinlog_chap`), which is held against other implementations.
//!
//! | module | what it is |
//! |---|---|
//! | `cli`, `target`, `units`, `plan` | what is wanted, checked against what the target offers |
//! | `engine`, `nbd`, `nvme`, `uring`, `stream` | the target: slots, requests, turns |
//! | `workload`, `load`, `measure`, `live` | which requests, when, how long they took |
//! | `stamp`, `model`, `journal`, `proof`, `readback` | what may be read where, and what is |
//! | `report`, `session` | the result; one call of the program |
//! | [`fuzz`] | the parsers, for those who feed them anything |

mod cli;
mod engine;
pub mod fuzz;
mod journal;
mod live;
mod load;
mod measure;
mod model;
mod nbd;
mod nvme;
mod plan;
mod prng;
mod proof;
mod readback;
mod report;
mod session;
mod stamp;
mod stream;
mod target;
mod units;
mod uring;
mod workload;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;

/// Runs what `arguments` say, the program's name not among them. A wrong command line ends the process.
#[must_use]
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let parsed = cli::Cli::parse_from(std::iter::once("twinlog-load".into()).chain(arguments));
    match session::run(&cli::Cli { arguments: words, ..parsed }) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("twinlog-load: {failure}");
            failure.exit_code()
        }
    }
}
