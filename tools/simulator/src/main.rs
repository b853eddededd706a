//! `twinlog-simulator`: histories from a seed, a summary, and the command that repeats a failure.

use clap::{Parser, ValueEnum};
use std::{process::ExitCode, thread::available_parallelism};
use twinlog_simulator::run::{self, Plan, Summary};

/// Faults that matter less often than once in so many histories: only a longer run must show every class.
const ALL_CLASSES_FROM: u64 = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the engine in simulated worlds, with crashes and faults, and looks for what must not be.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Histories to run.
    #[arg(long, default_value_t = 1000)]
    histories: u64,
    /// Seed of the first history: a number, or any text, such as a commit's hash.
    #[arg(long, default_value = "1")]
    seed: String,
    /// Threads; one for each core when not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Run every history twice: the same seed must give the same bytes.
    #[arg(long)]
    twice: bool,
    /// Print everything that happens in the first history.
    #[arg(long)]
    trace: bool,
    /// Run the bank of planted bugs instead: each must be found within so many histories.
    #[cfg(feature = "planted-bugs")]
    #[arg(long)]
    bank: bool,
    /// Only this planted bug, or history by history with it in force.
    #[cfg(feature = "planted-bugs")]
    #[arg(long)]
    bug: Option<String>,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = run::parse_seed(&arguments.seed);
    if arguments.output == Output::Text {
        println!("seed {seed:#x}");
    }
    run::catch_panics();
    #[cfg(feature = "planted-bugs")]
    if arguments.bank {
        return bank(&arguments, seed);
    }
    #[cfg(feature = "planted-bugs")]
    if let Some(bug) = &arguments.bug {
        twinlog_simulator::bank::choose(bug)?;
    }
    if arguments.trace {
        return Ok(trace(seed));
    }
    let jobs = jobs(&arguments);
    let plan = Plan { seed, histories: arguments.histories, jobs, twice: arguments.twice };
    let summary = run::run(plan, |done, elapsed| {
        if done.is_multiple_of(20_000) {
            eprintln!("{done} histories, {:.0} s", elapsed.as_secs_f64());
        }
    });
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
        Output::Text => print(&summary),
    }
    let is_idle = !summary.idle_classes.is_empty() && summary.histories >= ALL_CLASSES_FROM;
    let is_good = summary.failures.is_empty() && !is_idle;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn jobs(arguments: &Arguments) -> usize {
    arguments.jobs.or_else(|| available_parallelism().ok().map(usize::from)).unwrap_or(1)
}

#[cfg(feature = "planted-bugs")]
fn bank(arguments: &Arguments, seed: u64) -> anyhow::Result<ExitCode> {
    let rows = twinlog_simulator::bank::run(seed, arguments.bug.as_deref(), jobs(arguments))?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => print!("{}", twinlog_simulator::bank::table(&rows)),
    }
    let is_good = rows.iter().all(|row| row.oracle.is_some());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn trace(seed: u64) -> ExitCode {
    let outcome = run::run_one(seed, true);
    match outcome.violation {
        Some(violation) => {
            println!("{}: {}", violation.oracle, violation.what);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn print(summary: &Summary) {
    let figures = &summary.figures;
    println!(
        "{} histories in {:.1} s: {:.0} per second",
        summary.histories, summary.seconds, summary.histories_per_second
    );
    println!(
        "{} lives, {} verified recoveries, {} records replayed, {} pool checks, {} turns",
        figures.lives, figures.recoveries, figures.replayed_records, figures.checks, figures.turns
    );
    println!(
        "{} answered changes, {} reads, {} MiB compared; {} histories ended refused, for damage that was named",
        figures.answered_changes,
        figures.reads,
        figures.verified_bytes >> 20,
        figures.refused_for_damage
    );
    println!("{:<30} {:>12} {:>12}", "fault", "fired", "mattered");
    for (name, count) in &summary.faults.0 {
        println!("{name:<30} {:>12} {:>12}", count.fired, count.mattered);
    }
    if !summary.idle_classes.is_empty() {
        println!("never mattered: {}", summary.idle_classes.join(", "));
    }
    for failure in &summary.failures {
        println!("FAILED {}: {}", failure.oracle, failure.what);
        println!("  repeat: cargo simulator --histories 1 --seed {:#x} --trace", failure.seed);
    }
}
