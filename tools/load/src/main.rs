//! `twinlog-load`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    twinlog_load::main()
}
