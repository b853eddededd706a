//! `twinlog-simulator`: histories from a seed, a summary, and the command that repeats a failure.

use clap::{Parser, ValueEnum};
use std::{path::PathBuf, process::ExitCode, thread::available_parallelism};
use twinlog_simulator::{
    history::Watch,
    pair::LINE,
    resume::{self, Observer},
    run::{self, Mode, Plan, Summary},
};

/// Faults that matter less often than once in so many histories: only a longer run must show every class; of a pair, every line of its failure table.
const ALL_CLASSES_FROM: u64 = 2000;
/// The same of a pair's other classes, some of which are rarer.
const PAIR_CLASSES_FROM: u64 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the engine in simulated worlds, with crashes and faults, and looks for what must not be.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Histories to run: 1000 if not given. With --bank, those in which a bug must be found: 30000.
    #[arg(long)]
    histories: Option<u64>,
    /// Seed of the first history: a number, or any text, such as a commit's hash.
    #[arg(long, default_value = "1")]
    seed: String,
    /// Threads; one for each core when not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Run every history twice: the same seed must give the same bytes.
    #[arg(long)]
    twice: bool,
    /// Simulate a pair: two nodes, their interconnect, an arbiter and fences.
    #[arg(long)]
    pair: bool,
    /// Simulate hosts that give one path to a pair up and go on over the other.
    #[arg(long, conflicts_with = "pair")]
    hosts: bool,
    /// Keep in this file what is done; where it exists, go on from there. A run that was ended loses a second of work.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Print everything that happens in the first history.
    #[arg(long)]
    trace: bool,
    /// Run the bank of planted bugs instead: each must be found.
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
    let mode = mode(&arguments);
    if arguments.trace {
        return Ok(trace(mode, seed));
    }
    let jobs = jobs(&arguments);
    let plan = Plan { mode, seed, histories: arguments.histories.unwrap_or(1000), jobs, twice: arguments.twice };
    let before = match &arguments.resume {
        Some(path) => resume::load(path, &plan)?,
        None => Summary::new(&plan),
    };
    let mut observer = Observer::new(&plan, &before, arguments.resume.clone());
    let summary = run::run(&plan, &before, |summary| observer.tell(summary));
    observer.end(&summary)?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
        Output::Text => print(&summary),
    }
    let is_good = summary.failures.is_empty() && !summary.idle_classes.iter().any(|class| must_show(&summary, class));
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mode(arguments: &Arguments) -> Mode {
    match (arguments.pair, arguments.hosts) {
        (_, true) => Mode::Hosts,
        (true, _) => Mode::Pair,
        _ => Mode::Node,
    }
}

/// Whether a run like this must have shown a class.
fn must_show(summary: &Summary, class: &str) -> bool {
    let is_common = summary.mode != Mode::Pair || class.starts_with(LINE);
    summary.histories >= if is_common { ALL_CLASSES_FROM } else { PAIR_CLASSES_FROM }
}

fn jobs(arguments: &Arguments) -> usize {
    arguments.jobs.or_else(|| available_parallelism().ok().map(usize::from)).unwrap_or(1)
}

#[cfg(feature = "planted-bugs")]
fn bank(arguments: &Arguments, seed: u64) -> anyhow::Result<ExitCode> {
    let histories = arguments.histories.unwrap_or(30_000);
    let plan = Plan { mode: mode(arguments), seed, histories, jobs: jobs(arguments), twice: false };
    let rows = twinlog_simulator::bank::run(plan, arguments.bug.as_deref(), |row| {
        eprintln!("{}: {}", row.bug, row.oracle.as_deref().unwrap_or("NOT FOUND"));
    })?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => print!("{}", twinlog_simulator::bank::table(&rows)),
    }
    let is_good = rows.iter().all(|row| row.oracle.is_some());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn trace(mode: Mode, seed: u64) -> ExitCode {
    // What the nodes say themselves, between what happens to them.
    let log = tracing_subscriber::fmt().with_env_filter("twinlog=debug").without_time();
    log.with_target(false).with_ansi(false).init();
    let outcome = mode.run_one(seed, Watch::Trace);
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
        "{} histories of commit {} in {:.1} s: {:.0} per second, {:.0} per second of a processor",
        summary.histories,
        summary.commit,
        summary.seconds,
        summary.histories_per_second,
        summary.histories_per_cpu_second
    );
    println!(
        "{} lives, {} verified recoveries, {} records replayed, {} pool checks, {} turns",
        figures.lives, figures.recoveries, figures.replayed_records, figures.checks, figures.turns
    );
    println!(
        "{} answered changes, {} of them compare-and-writes and {} refused since the bytes differed; {} reads, {} MiB compared; {} disks joined; {} histories ended refused, for damage that was named",
        figures.answered_changes,
        figures.exchanges,
        figures.differences,
        figures.reads,
        figures.verified_bytes >> 20,
        figures.joined_disks,
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
        println!("{failure}");
    }
    if summary.gave_up() {
        println!("gave up after {} failures", summary.failures.len());
    }
}
