//! The command line.
//!
//! [`args`] says what can be written, [`output`] how results and errors look and which exit code they give; every other file is one
//! group of commands. [`compose`] is the only file of the program that names concrete drivers.

mod args;
mod client;
mod compose;
mod doctor;
mod foreign;
mod layout;
mod offline;
mod output;
mod place;
mod provision;
mod reactor;
mod serve;
mod status;
mod superblocks;
mod supervise;
mod up;

use args::{Cli, Command};
use clap::Parser;
use output::{Failure, Output};
use place::Place;
use std::process::ExitCode;

/// Runs the command that the program was called with.
pub(crate) fn main() -> ExitCode {
    // Ends with exit code 2 when the arguments are wrong, 0 for --help.
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    let place = Place::of(&cli.command);
    match run(cli.command, &output) {
        Ok(exit) => exit.into(),
        Err(failure) => output.fail(&Failure { hint: place.complete(&failure.hint), ..failure }),
    }
}

fn run(command: Command, output: &Output) -> Result<output::Exit, Failure> {
    match command {
        Command::Up(args) => up::run(&args, output),
        Command::Serve(args) => serve::run(&args),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Status(args) => status::run(&args, output),
        Command::Pool(command) => client::pool(command, output),
        Command::Volume(command) => client::volume(command, output),
        Command::Log(command) => offline::log(command, output),
        Command::Inspect(args) => offline::inspect(&args, output),
        Command::Version => version(output),
    }
}

fn version(output: &Output) -> Result<output::Exit, Failure> {
    #[derive(serde::Serialize)]
    struct Version {
        version: &'static str,
        commit: &'static str,
    }
    let version = Version { version: env!("CARGO_PKG_VERSION"), commit: env!("TWINLOG_COMMIT") };
    output.show(&version, || format!("twinlog {} ({})\n", version.version, version.commit))?;
    Ok(output::Exit::Done)
}
