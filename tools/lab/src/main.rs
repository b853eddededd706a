//! `twinlog-lab`: scenarios in virtual machines.

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use std::{
    env, fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};
use twinlog_lab::{
    guest, host, iommufd,
    kernel::{self, Kernel},
    scenarios::{self, Lab, SCENARIOS, Scenario},
    user_mode,
};

/// This machine lacks something, or the arguments are wrong: nothing was tested.
const EXIT_MISSING: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "twinlog-lab",
    version,
    about = "Throw-away virtual machines: real kernels as clients of a node, and nodes whose power is cut",
    after_help = "Exit codes: 0 all passed, 1 a scenario failed, 2 nothing was tested: wrong arguments, or a missing program or kernel"
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the scenarios
    List,
    /// Run scenarios
    Run(RunArgs),
    /// Download Debian's kernel package and unpack it for guests; installs nothing
    Kernel {
        /// Build a kernel that is a process, from Debian's package of its source: a quarter of an hour
        #[arg(long)]
        user_mode: bool,
        /// The same with IOMMUFD, which Debian leaves out: its modules are built from Debian's package of the source, a minute
        #[arg(long, conflicts_with = "user_mode")]
        iommufd: bool,
    },
    /// Tools for use inside a guest
    #[command(hide = true, subcommand)]
    Guest(guest::Tool),
}

#[derive(clap::Args, Debug)]
struct RunArgs {
    /// Names from `list`, or `all`
    #[arg(required = true)]
    names: Vec<String>,
    /// Keep the files of scenarios that passed, too
    #[arg(long)]
    keep: bool,
    /// Folder for the scenarios' files [default: a new one in the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often something is killed or cut, where that happens
    #[arg(long)]
    rounds: Option<u32>,
    /// How many scenarios run at the same time: a guest keeps one processor busy
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Disks that can lose power answer flushes and do not perform them: the scenario must then fail, or it proves nothing
    #[arg(long)]
    disks_lie: bool,
    /// The program under test, with twinlog-load beside it [default: the one beside this program, built first when cargo runs it]
    #[arg(long, value_name = "FILE")]
    twinlog: Option<PathBuf>,
    /// Folder with boot/vmlinuz-* and lib/modules [default: what `kernel` has unpacked, else /]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Boot the kernel that `kernel --user-mode` has built, a process without emulation, in place of QEMU; as root
    #[arg(long, conflicts_with_all = ["kernel", "accelerator"])]
    user_mode: bool,
    /// Boot what `kernel --iommufd` has made; scenarios fail where anything else confines a controller that they look at
    #[arg(long, conflicts_with_all = ["kernel", "user_mode"])]
    iommufd: bool,
    /// QEMU's accelerator; only software emulation has been tried
    #[arg(long)]
    accelerator: Option<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Action::List => {
            list();
            Ok(true)
        }
        Action::Run(args) => run(&args),
        Action::Kernel { user_mode, iommufd } => unpack(user_mode, iommufd),
        Action::Guest(tool) => guest::run(&tool).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("twinlog-lab: {error:#}");
            if error.downcast_ref::<host::Missing>().is_some() { EXIT_MISSING.into() } else { ExitCode::FAILURE }
        }
    }
}

fn list() {
    for scenario in &SCENARIOS {
        println!("{:<12} {}", scenario.name, scenario.about);
    }
}

/// Where the lab keeps what is expensive to make: beside cargo's own results.
fn cache() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("this program lies in a folder of its own")?;
    Ok(target.join("lab"))
}

fn unpack(is_user_mode: bool, has_iommufd: bool) -> Result<bool> {
    let cache = cache()?;
    let kernel = match (is_user_mode, has_iommufd) {
        (true, _) => user_mode::build(&cache.join("user-mode"))?,
        (_, true) => iommufd::build(&cache.join("iommufd"))?,
        _ => kernel::unpack(&cache.join("kernel"))?,
    };
    println!("{} {}", kernel.version, kernel.image.display());
    Ok(true)
}

/// The kernel that the arguments mean.
fn kernel(args: &RunArgs, chosen: &[&Scenario]) -> Result<Kernel> {
    if args.user_mode {
        user_mode::check(chosen, args.jobs)?;
        return user_mode::find(&cache()?.join("user-mode"));
    }
    host::programs(&["qemu-system-x86_64"])?;
    if args.iommufd {
        return iommufd::find(&cache()?.join("iommufd"));
    }
    scenarios::kernel(args.kernel.as_deref(), &cache()?)
}

/// The program under test. Run by cargo, it is built first, so that it is never older than its source.
fn twinlog(given: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.clone());
    }
    let own = env::current_exe()?;
    let folder = own.parent().context("this program lies in a folder")?;
    if let Some(cargo) = env::var_os("CARGO") {
        let profile = folder.file_name().and_then(|name| name.to_str()).context("the folder has the profile's name")?;
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--locked", "--profile", profile]);
        build.args(["-p", "twinlog", "-p", "twinlog-load", "--bin", "twinlog", "--bin", "twinlog-load"]);
        let status = build.status().context("starting cargo")?;
        if !status.success() {
            bail!("twinlog and twinlog-load cannot be built");
        }
    }
    let path = folder.join("twinlog");
    if !path.is_file() {
        bail!(host::Missing(format!(
            "no {}: build it with `cargo build --bin twinlog`, or name it with --twinlog",
            path.display()
        )));
    }
    Ok(path)
}

/// The scenarios that the names mean.
fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names == ["all"] {
        return Ok(SCENARIOS.iter().collect());
    }
    let find = |name: &String| {
        let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        scenarios::find(name)
            .ok_or_else(|| host::Missing(format!("no scenario {name}; there are: {}", known.join(", "))).into())
    };
    names.iter().map(find).collect()
}

/// Whether all passed.
fn run(args: &RunArgs) -> Result<bool> {
    let chosen = chosen(&args.names)?;
    let programs: Vec<&str> = chosen.iter().flat_map(|scenario| scenario.programs).copied().collect();
    host::programs(&[&["busybox", "dash", "ldd", "setpriv", "strip"][..], &programs].concat())?;
    let kernel = kernel(args, &chosen)?;
    let twinlog = twinlog(args.twinlog.as_ref())?;
    if args.user_mode {
        user_mode::join_networks()?;
    }
    let scratch = tempfile::Builder::new().prefix("lab.").tempdir()?;
    let top = args.log.clone().unwrap_or_else(|| scratch.path().to_owned());
    println!("kernel {}, seed {}, files in {}", kernel.version, args.seed, top.display());
    let labs =
        chosen.iter().map(|scenario| prepare(args, scenario, &kernel, &twinlog, &top)).collect::<Result<Vec<_>>>()?;
    let passed = run_all(chosen.into_iter().zip(labs).collect(), args)?;
    if !passed || args.keep {
        let _ = scratch.keep();
    }
    Ok(passed)
}

/// What a scenario runs with, in a folder of its own.
fn prepare(args: &RunArgs, scenario: &Scenario, kernel: &Kernel, twinlog: &Path, top: &Path) -> Result<Lab> {
    let folder = top.join(scenario.name);
    if folder.exists() {
        bail!("{} is there already", folder.display());
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut lab = Lab::new(kernel, &cache()?, twinlog.to_owned(), fs::canonicalize(&folder)?)?;
    lab.seed = args.seed;
    lab.rounds = args.rounds.unwrap_or(lab.rounds);
    lab.disks_lie = args.disks_lie;
    lab.must_be_iommufd = args.iommufd;
    lab.accelerator = args.accelerator.clone().unwrap_or(lab.accelerator);
    Ok(lab)
}

/// Runs as many at a time as are wanted. Whether all passed; one that cannot be tested here ends the run.
fn run_all(labs: Vec<(&Scenario, Lab)>, args: &RunArgs) -> Result<bool> {
    let queue = Mutex::new(labs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut passed = true;
        while let Some((scenario, lab)) = next() {
            passed &= report(scenario, &lab, args.keep)?;
        }
        Ok(passed)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_fold(true, |passed, worker| {
            let result: Result<bool> = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok(passed & result?)
        })
    })
}

/// Runs one and says how it went.
fn report(scenario: &Scenario, lab: &Lab, keep: bool) -> Result<bool> {
    let start = Instant::now();
    println!("{}: {}", scenario.name, scenario.about);
    let result = scenario.run(lab);
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("{}: passed in {seconds:.1} s", scenario.name);
            if !keep {
                fs::remove_dir_all(&lab.folder)?;
            }
            Ok(true)
        }
        Err(error) if error.downcast_ref::<host::Missing>().is_some() => Err(error),
        Err(error) => {
            println!("{}: FAILED after {seconds:.1} s, seed {}: {error:#}", scenario.name, lab.seed);
            println!("{}: its files are in {}", scenario.name, lab.folder.display());
            Ok(false)
        }
    }
}
