//! `twinlog-load`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    twinlog_load::run(std::env::args_os().skip(1).collect())
}
