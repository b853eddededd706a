//! One call of the program: opens the target, loads or proves, reports, and says with which code to end.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

use crate::{
    cli::{Cli, Output},
    engine::{Engine, Lost, Unopened},
    journal::{Header, Journal, JournalError, Replay, Totals, replay},
    live::Live,
    load::{End, Load, Outcome, Pace},
    model::Model,
    nbd::{NbdEngine, Place},
    nvme::{NvmeEngine, auth::keys::Keys, goal::Goal},
    plan::Plan,
    prng::mix,
    proof::{Findings, Proof},
    readback::{Level, Reading, read_back},
    report::{Circumstances, Cpu, Mark, Report, SCHEMA_VERSION, Verify, html, text},
    target::Target,
    units::nanoseconds,
    uring::{FileEngine, FileOptions},
    workload::Workload,
};

/// Requests failed, or a proof found a loss.
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_LOST: u8 = 3;
/// How long a proof waits for its target, which starts again and recovers.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// Between two attempts to reach a target at the start.
const RETRY: Duration = Duration::from_millis(20);

/// Why nothing could be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Lost(#[from] Lost),
}

impl Failure {
    /// The code to end with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => EXIT_USAGE.into(),
            Self::Lost(_) => EXIT_LOST.into(),
        }
    }
}

/// What a load leaves beside its outcome.
struct Work {
    started: u64,
    proof: Option<Proof>,
    read_back: Option<Reading>,
    cpu: Cpu,
    measured_from: f64,
}

/// What `--prove` prints with `-o json`.
#[derive(serde::Serialize)]
struct ProofReport<'a> {
    schema_version: u32,
    tool: &'static str,
    target: String,
    verdict: &'static str,
    level: &'static str,
    journal: Totals,
    examined_sectors: u64,
    read_back: Reading,
    findings: &'a Findings,
}

/// Does what the command line asks.
pub(crate) fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let known = known_journal(cli)?;
    if cli.secret_file.is_some() && !matches!(cli.target, Target::Nvme(_)) {
        return Err(Failure::Usage("--secret-file is for targets of nvme-tcp".to_owned()));
    }
    match &cli.target {
        Target::Nbd { address, export } => {
            let mut places = vec![(address.clone(), export.clone())];
            for alternate in &cli.alternate {
                let Target::Nbd { address, export } = alternate else {
                    return Err(Failure::Usage(format!("--alternate {alternate} is no NBD export")));
                };
                places.push((address.clone(), export.clone()));
            }
            let engine = connect(cli, places)?;
            let plan = plan(cli, &engine, known.as_ref())?;
            if plan.prove && cli.connections > 1 && !engine.geometry().multi_conn {
                eprintln!(
                    "warning: the server does not promise that several connections see the same data (no MULTI_CONN)"
                );
            }
            perform(cli, engine.with_slots(plan.buffers(), plan.pace.depth, plan.prove), plan, known)
        }
        Target::Nvme(goal) => {
            let engine = connect_nvme(cli, goal)?;
            let plan = plan(cli, &engine, known.as_ref())?;
            if cli.output == Output::Text {
                eprintln!("paths: {}", engine.paths().join(", "));
            }
            perform(cli, engine.with_slots(plan.buffers(), plan.pace.depth, plan.prove), plan, known)
        }
        Target::Path(path) => {
            let options = FileOptions { buffered: cli.buffered, writes: cli.writes(), size_bytes: cli.size };
            let engine = FileEngine::open(path, options, usize::from(cli.qd)).map_err(Failure::Usage)?;
            let plan = plan(cli, &engine, known.as_ref())?;
            perform(cli, engine.with_slots(plan.buffers()), plan, known)
        }
    }
}

/// The journal that is to be proved or continued.
fn known_journal(cli: &Cli) -> Result<Option<Replay>, Failure> {
    let read = |path: &Path| {
        let unusable =
            |error: JournalError| Failure::Usage(format!("the journal {} cannot be used: {error}", path.display()));
        replay(path).map(Some).map_err(unusable)
    };
    match (&cli.prove, &cli.journal) {
        (Some(path), _) => read(path),
        (None, Some(path)) if path.exists() => read(path),
        _ => Ok(None),
    }
}

/// Connects, to the first place that lets it.
fn connect(cli: &Cli, mut places: Vec<Place>) -> Result<NbdEngine, Lost> {
    let several = places.len() > 1;
    patiently(cli, several, || {
        let opened = NbdEngine::open(&places, usize::from(cli.connections));
        places.rotate_left(1);
        opened
    })
}

/// Connects over every path that there is.
fn connect_nvme(cli: &Cli, goal: &Goal) -> Result<NvmeEngine, Failure> {
    if !cli.alternate.is_empty() {
        let message = "--alternate is for NBD: the paths of nvme-tcp are in its URI, or in the discovery log";
        return Err(Failure::Usage(message.to_owned()));
    }
    let seed = mix(nanoseconds(since_1970()) ^ u64::from(std::process::id()) << 40);
    let keys = keys(cli, goal)?;
    Ok(patiently(cli, goal.addresses.len() > 1, || NvmeEngine::open(goal, keys.as_ref(), cli.connections, seed))?)
}

/// What this host proves itself with.
fn keys(cli: &Cli, goal: &Goal) -> Result<Option<Keys>, Failure> {
    let Some(secret) = &cli.secret_file else { return Ok(None) };
    if goal.host.is_none() {
        let message = "--secret-file needs the name of the host whose secret it is: hostnqn= in the URI";
        return Err(Failure::Usage(message.to_owned()));
    }
    let keys = Keys::read(secret, cli.controller_secret_file.as_deref()).map_err(Failure::Usage)?;
    Ok(Some(keys.offering(goal.hash, goal.group)))
}

/// Opens a target. With `--reconnect`, tries for that long; a proof, which comes after a crash, for a minute by itself.
fn patiently<E>(cli: &Cli, several: bool, mut open: impl FnMut() -> Result<E, Unopened>) -> Result<E, Lost> {
    let start = Instant::now();
    let patience = cli.reconnect.or(cli.prove.is_some().then_some(RECOVERY_LIMIT)).unwrap_or_default();
    loop {
        match open() {
            // Where one of several refuses, as a node does that has just started, another may not.
            Err(unopened) if (unopened.may_come || several) && start.elapsed() < patience => {
                std::thread::sleep(RETRY);
            }
            result => return result.map_err(|unopened| unopened.lost),
        }
    }
}

fn plan(cli: &Cli, engine: &impl Engine, known: Option<&Replay>) -> Result<Plan, Failure> {
    let drawn = mix(nanoseconds(since_1970()) ^ u64::from(std::process::id()) << 40);
    let header: Option<Header> = known.map(|known| known.header);
    Plan::new(cli, engine.geometry(), header, (cli.seed.unwrap_or(drawn), mix(drawn))).map_err(Failure::Usage)
}

fn perform<E: Engine>(cli: &Cli, mut engine: E, plan: Plan, known: Option<Replay>) -> Result<ExitCode, Failure> {
    match &cli.prove {
        Some(_) => prove(cli, &mut engine, plan, known.expect("--prove reads a journal or fails")),
        None => load(cli, &mut engine, plan, known),
    }
}

/// Reads everything back and judges it by the journal.
fn prove<E: Engine>(cli: &Cli, engine: &mut E, plan: Plan, known: Replay) -> Result<ExitCode, Failure> {
    let mut live = Live::new(cli.output == Output::Text);
    let mut proof = Proof::new(known.header, known.model, None, 0);
    let read_back = read_back(engine, &mut proof, plan.read_back, &mut live)?;
    live.clear();
    let proven = proof.findings.count() == 0;
    let level = match cli.level {
        Level::Acknowledged => "acknowledged",
        Level::Durable => "durable",
    };
    let totals = known.totals;
    if cli.output == Output::Json {
        let report = ProofReport {
            schema_version: SCHEMA_VERSION,
            tool: "twinlog-load",
            target: cli.target.to_string(),
            verdict: if proven { "proven" } else { "lost" },
            level,
            journal: totals,
            examined_sectors: proof.examined,
            read_back,
            findings: &proof.findings,
        };
        print_json(&report);
    } else {
        let Totals { issued, acknowledged, fua, flushed, failed, .. } = totals;
        println!(
            "journal       {issued} writes sent, {acknowledged} acknowledged ({fua} with FUA, {flushed} flushed), {failed} failed"
        );
        println!("target        {}", text::reading(&read_back));
        print!("{}", text::findings(&proof.findings));
        let promise = if cli.level == Level::Durable { "durable" } else { "acknowledged" };
        println!(
            "{}",
            if proven {
                format!("PROVEN: no {promise} write was lost")
            } else {
                "LOST: the target breaks its promise".to_owned()
            }
        );
    }
    Ok(if proven { ExitCode::SUCCESS } else { EXIT_FAILED.into() })
}

/// Puts load on the target and reports.
fn load<E: Engine>(cli: &Cli, engine: &mut E, plan: Plan, known: Option<Replay>) -> Result<ExitCode, Failure> {
    let stop = interruption()?;
    let started = since_1970().as_secs();
    let mut live = Live::new(cli.output == Output::Text);
    let mut proof = if plan.prove { Some(start_proof(cli, &plan, known)?) } else { None };
    if proof.is_none() {
        scramble(engine, &plan);
    }
    if cli.fill {
        let pace = Pace {
            warmup: Duration::ZERO,
            time: Duration::from_secs(30 * 24 * 3600),
            count: None,
            rate: None,
            in_order: true,
            ..plan.pace
        };
        let mut next = Workload::fill(plan.header.region, plan.fill_bytes);
        let filled = Load::new(engine, proof.as_mut(), pace, &stop).run(&mut next, &mut live);
        if filled.end != End::Finished {
            return finish(
                cli,
                &plan,
                &filled,
                Work { started, proof, read_back: None, cpu: Cpu::default(), measured_from: 0.0 },
            );
        }
    }
    let mut workload = Workload::new(plan.shape, plan.seed);
    let before = cpu_seconds();
    let measured_from = (since_1970() + plan.pace.warmup).as_secs_f64();
    let mut outcome = Load::new(engine, proof.as_mut(), plan.pace, &stop).run(&mut || Some(workload.next()), &mut live);
    let after = cpu_seconds();
    let (user_seconds, system_seconds) = (after.0 - before.0, after.1 - before.1);
    let microseconds_per_op = (user_seconds + system_seconds) * 1e6 / outcome.answers.max(1) as f64;
    let cpu = Cpu { user_seconds, system_seconds, microseconds_per_op };
    let mut reading = None;
    if let Some(proof) =
        proof.as_mut().filter(|_| cli.verify && matches!(outcome.end, End::Finished | End::Interrupted))
    {
        match read_back(engine, proof, plan.read_back, &mut live) {
            Ok(all) => reading = Some(all),
            Err(lost) => outcome.end = End::Lost(lost.0),
        }
    }
    live.clear();
    finish(cli, &plan, &outcome, Work { started, proof, read_back: reading, cpu, measured_from })
}

/// Writes the reports; gives the exit code.
fn finish(cli: &Cli, plan: &Plan, outcome: &Outcome, work: Work) -> Result<ExitCode, Failure> {
    let Work { started, proof, read_back, cpu, measured_from } = work;
    let verify = proof.map(|proof| Verify { examined_sectors: proof.examined, read_back, findings: proof.findings });
    let wrong = verify.as_ref().is_some_and(|verify| verify.findings.count() > 0);
    let marks = cli.marks.as_deref().map_or(Ok(Vec::new()), |path| marks(path, measured_from))?;
    let about = Circumstances {
        target: cli.target.to_string(),
        started,
        arguments: cli.arguments.clone(),
        seed: plan.seed,
        cpu,
        verify,
        marks,
    };
    let report = Report::new(outcome, about);
    match cli.output {
        Output::Json => print_json(&report),
        Output::Text => print!("{}", text::render(&report)),
    }
    if let Some(path) = &cli.report {
        let unwritten = |error| Failure::Usage(format!("the report {} cannot be written: {error}", path.display()));
        std::fs::write(path, html::render(&report)).map_err(unwritten)?;
    }
    let lost = if let End::Lost(reason) = &outcome.end { Some(reason) } else { None };
    if let Some(reason) = lost {
        eprintln!("twinlog-load: the target was lost: {reason}");
    }
    let failed = wrong || !outcome.errors.is_empty() || matches!(outcome.end, End::Journal(_));
    Ok(match (wrong, lost.is_some(), failed) {
        (false, true, _) => EXIT_LOST.into(),
        (_, _, true) => EXIT_FAILED.into(),
        (_, _, false) => ExitCode::SUCCESS,
    })
}

/// The moments in a file, in seconds since `measured_from`.
fn marks(path: &Path, measured_from: f64) -> Result<Vec<Mark>, Failure> {
    let unusable = |reason: &str| Failure::Usage(format!("the marks in {} cannot be used: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
    let mark = |line: &str| {
        let (time, label) = line.split_once(' ')?;
        let time: f64 = time.parse().ok()?;
        Some(Mark { at_seconds: time - measured_from, label: label.trim().to_owned() })
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| mark(line).ok_or_else(|| unusable(&format!("`{line}` is not: SECONDS WORDS")))).collect()
}

/// The model of a fresh run or of a continued journal, and the journal itself.
fn start_proof(cli: &Cli, plan: &Plan, known: Option<Replay>) -> Result<Proof, Failure> {
    let (model, totals) = match known {
        Some(known) => (known.model, Some(known.totals)),
        None => (Model::new(plan.header.region, plan.header.blank), None),
    };
    let journal = match (&cli.journal, totals) {
        (Some(path), Some(totals)) => Some(Journal::resume(path, plan.header, totals.records)),
        (Some(path), None) => Some(Journal::create(path, plan.header)),
        (None, _) => None,
    };
    let journal =
        journal.transpose().map_err(|error| Failure::Usage(format!("the journal cannot be written: {error}")))?;
    Ok(Proof::new(plan.header, model, journal, totals.unwrap_or_default().last_version))
}

/// Gives every slot its own random bytes, so that a target that compresses or recognises zeroes has no easy time.
fn scramble<E: Engine>(engine: &mut E, plan: &Plan) {
    let mut prng = crate::prng::Prng::new(plan.seed);
    (0..plan.pace.depth).for_each(|slot| prng.fill(engine.buffer(slot)));
}

/// A flag that Ctrl-C raises; the second Ctrl-C ends the process.
fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::Usage(format!("signals cannot be handled: {error}")))?;
    }
    Ok(stop)
}

/// User and system time of this process so far.
fn cpu_seconds() -> (f64, f64) {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or((0.0, 0.0), |usage| (seconds(usage.user_time()), seconds(usage.system_time())))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn print_json(value: &impl serde::Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("reports have string keys and finite numbers"));
}
