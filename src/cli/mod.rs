//! The command line.
//!
//! [`args`] says what can be written, [`output`] how results and errors look and which exit code they give; every other file is one
//! group of commands. [`compose`] is the only file of the program that names concrete drivers.

mod args;
mod client;
mod compose;
mod demo;
mod device;
mod doctor;
mod events;
mod foreign;
mod host;
mod layout;
mod offline;
mod output;
mod pair;
mod place;
mod ports;
mod provision;
mod serve;
mod status;
mod superblocks;
mod supervise;
mod up;
mod witness;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use output::{Exit, Failure, Output, OutputFormat};
use place::Place;
use std::{process::ExitCode, time::Duration};

/// Runs the command that the program was called with.
pub(crate) fn main() -> ExitCode {
    #[cfg(feature = "planted-bugs")]
    plant();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help, --version; or wrong arguments, in text: exit code 0 or 2.
        Err(error) if !error.use_stderr() || !wants_json() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            return Output::new(OutputFormat::Json).fail(&Failure::new(Exit::Usage, message, "twinlog --help"));
        }
    };
    if let Command::Load { arguments } = cli.command {
        return twinlog_load::run(arguments);
    }
    let output = Output::new(cli.output);
    let place = Place::of(&cli.command);
    match run(cli.command, &output) {
        Ok(exit) => exit.into(),
        Err(failure) => output.fail(&Failure { hint: place.complete(&failure.hint), ..failure }),
    }
}

/// Puts the planted bug in force that the environment names.
#[cfg(feature = "planted-bugs")]
#[expect(clippy::disallowed_methods, reason = "whoever tests a test chooses the bug for every process of it")]
fn plant() {
    if let Ok(bug) = std::env::var("TWINLOG_PLANTED_BUG") {
        twinlog::base::planted::choose_for_process(bug);
    }
}

/// Waits, on a thread of its own or for a person's terminal; never on a reactor.
#[expect(clippy::disallowed_methods, reason = "nothing here is the engine")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Whether arguments that could not be understood ask for JSON.
fn wants_json() -> bool {
    let arguments: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let is_option = |word: &String| word == "-o" || word == "--output";
    arguments.windows(2).any(|pair| is_option(&pair[0]) && pair[1].starts_with("json"))
        || arguments
            .iter()
            .any(|word| ["-ojson", "-o=json", "--output=json"].iter().any(|option| word.starts_with(option)))
}

fn run(command: Command, output: &Output) -> Result<Exit, Failure> {
    match command {
        Command::Up(args) => up::run(&args, output),
        Command::Demo(args) => demo::run(&args, output),
        Command::Load { .. } => unreachable!("it has its own output and exit codes"),
        Command::Serve(args) => serve::run(&args),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Events(args) => events::run(&args, output),
        Command::Status(args) => status::run(&args, output),
        Command::Pool(command) => client::pool(command, output),
        Command::Volume(command) => client::volume(command, output),
        Command::Host(command) => host::run(command, output),
        Command::Pair(command) => pair::run(command, output),
        Command::Witness(args) => witness::run(&args, output),
        Command::Device(command) => device::run(command, output),
        Command::Log(command) => offline::log(command, output),
        Command::Inspect(args) => offline::inspect(&args, output),
        Command::Completions { shell } => completions(shell, output),
        Command::Version => version(output),
    }
}

fn completions(shell: clap_complete::Shell, output: &Output) -> Result<Exit, Failure> {
    #[derive(serde::Serialize)]
    struct Completions {
        script: String,
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "twinlog", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    output.show(&Completions { script: script.clone() }, || script)?;
    Ok(Exit::Done)
}

fn version(output: &Output) -> Result<Exit, Failure> {
    #[derive(serde::Serialize)]
    struct Version {
        version: &'static str,
        commit: &'static str,
    }
    let version = Version { version: env!("CARGO_PKG_VERSION"), commit: twinlog::COMMIT };
    output.show(&version, || format!("twinlog {} ({})\n", version.version, version.commit))?;
    Ok(Exit::Done)
}
