//! `twinlog serve`: one node in this process.

use super::{
    args::ServeArgs,
    compose,
    layout::ProcessLock,
    output::{Exit, Failure},
};
use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::getppid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::thread::Builder;
use twinlog::{
    control::{
        admin::{AdminServer, NodeHandle},
        config::{self, NodeConfig, NvmeTcpConfig},
        events::EventLog,
        logging,
        metrics::MetricsServer,
    },
    node::admin::AdminRequest,
};

/// Reads the configuration and serves until told to stop.
pub(crate) fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    if let Some(supervisor) = args.supervisor {
        die_with(supervisor)?;
    }
    let mut config = config::load(&args.config)?;
    if let Some(listen) = args.nvme_listen.filter(|_| config.nvme_tcp.is_none()) {
        if !listen.ip().is_loopback() {
            let message = format!("--nvme-listen {listen} is not on loopback");
            return Err(Failure::new(Exit::Usage, message, "say it in [nvme_tcp] of the configuration"));
        }
        let hosts_file = Some(config.admin.with_file_name("hosts.toml"));
        let (partner, hosts) = (args.nvme_partner, Vec::new());
        config.nvme_tcp = Some(NvmeTcpConfig { listen, partner, hosts, hosts_file, allow_remote: false });
    }
    let events = logging::start(config.logging.level, config.logging.format);
    abort_on_panic();
    let name = format!("node {}", config.name);
    let _lock = args.pid_file.as_ref().map(|path| ProcessLock::acquire(path, &name)).transpose()?;
    run_node(&config, events)
}

/// Runs the node of `config` until it was stopped by a signal or an admin request.
fn run_node(config: &NodeConfig, events: EventLog) -> Result<Exit, Failure> {
    // Signals that come from here on wait for the node.
    let system = |error: std::io::Error| Failure::system("watch signals of", "this process", &error);
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(system)?;
    let node = compose::start(config)?;
    let _admin = AdminServer::start(&config.admin, node.handle.clone().with_events(events))
        .map_err(|error| Failure::system("listen at", config.admin.display(), &error))?;
    let start_metrics = |address| {
        let server = MetricsServer::start(address, &config.name, node.handle.clone());
        server.map_err(|error| Failure::system("serve metrics at", address, &error))
    };
    let metrics = config.metrics.address.map(start_metrics).transpose()?;
    let address = metrics.as_ref().map(|server| server.address().to_string()).unwrap_or_default();
    tracing::info!(
        node = config.name,
        pid = std::process::id(),
        reactors = config.reactors.count,
        metrics = address,
        "node starts"
    );
    stop_on_signal(signals, node.handle.clone()).map_err(system)?;
    node.wait()?;
    tracing::info!(node = config.name, "node has stopped");
    Ok(Exit::Done)
}

/// Asks the node to stop when a signal comes.
fn stop_on_signal(mut signals: Signals, node: NodeHandle) -> std::io::Result<()> {
    let wait = move || {
        for signal in signals.forever() {
            tracing::info!(signal, "stopping");
            let reply = node.ask(AdminRequest::Stop, None);
            tracing::debug!(?reply, "stopped");
        }
    };
    Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// A broken invariant ends the process at once, whichever thread finds it: what remains would not be trusted.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Has the kernel send SIGTERM when the supervisor dies, or refuses when it is dead already.
fn die_with(supervisor: i32) -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGTERM).map_err(|error| Failure::system("watch", "the supervisor", &error.into()))?;
    if getppid().as_raw() != supervisor {
        return Err(Failure::new(Exit::Error, format!("the supervisor, process {supervisor}, is gone"), "twinlog up"));
    }
    Ok(())
}
