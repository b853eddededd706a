//! `twinlog up`: makes a node on the first start, then runs it under a supervisor in the foreground.

use super::{
    args::UpArgs,
    layout::{Layout, ProcessLock, make_directory, write_durably},
    output::{Exit, Failure, Output, unexpected},
    provision,
    supervise::{Supervisor, say},
};
use std::{fs, io, net::SocketAddr, path::Path};
use twinlog::{
    control::{
        client::AdminClient,
        config::{self, LogConfig, MetricsConfig, NbdConfig, NodeConfig, PoolConfig, ReactorsConfig},
        size::ByteSize,
    },
    node::admin::{AdminReply, AdminRequest},
};

/// The node of this release; the partner's name will be `b`.
const NODE: &str = "a";
/// The node's volume.
const VOLUME: &str = "vol-a";
const SIZE_DEFAULT: ByteSize = ByteSize(4 << 30);
const LOG_SIZE_DEFAULT: ByteSize = ByteSize(256 << 20);

/// Runs until stopped.
pub(crate) fn run(args: &UpArgs, output: &Output) -> Result<Exit, Failure> {
    let layout = Layout::new(&args.dir, NODE);
    make_directory(&layout.dir)?;
    let _lock = ProcessLock::acquire(&layout.lock(), &format!("`twinlog up {}`", args.dir.display()))?;
    if args.single {
        say("one node, as asked for by --single: its log is not mirrored");
    } else {
        say("one node: pairs come with a later release; its log is not mirrored");
    }
    if layout.config().exists() {
        check_options(args, &layout)?;
        say(&format!("found node {NODE} in {}", layout.home().display()));
    } else {
        make(args, &layout, output)?;
    }
    Supervisor { layout: &layout, restart: !args.no_restart, on_first_serving: introduce }.run()
}

/// What the options say, for a new directory.
fn configuration(args: &UpArgs, layout: &Layout) -> NodeConfig {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let reactors = ReactorsConfig { count: args.reactors.unwrap_or(1), ..ReactorsConfig::default() };
    let mut memory = config::MemoryConfig::default();
    memory.limit = ByteSize(memory.limit.bytes().max(config::MEMORY_BYTES_MIN * reactors.count as u64));
    NodeConfig {
        name: layout.node.clone(),
        admin: "admin.sock".into(),
        nbd: NbdConfig { tcp: args.port.map(loopback).into_iter().collect(), ..NbdConfig::default() },
        metrics: MetricsConfig::default(),
        reactors,
        memory,
        log: LogConfig {
            backend: config::LogBackend::File,
            path: Some("log".into()),
            size: args.log_size.unwrap_or(LOG_SIZE_DEFAULT),
            allow_volatile: false,
        },
        pool: PoolConfig { name: NODE.to_owned(), devices: vec![format!("../disks/pool-{NODE}.img").into()] },
        logging: config::LoggingConfig::default(),
    }
}

/// Makes everything that a new directory needs. Interrupted, it leaves no `node.toml`, and the next start begins anew.
///
/// 1. log and device: what an interrupted start left is removed first; nothing can be in it, since no node was ever started;
/// 2. `first-start`, with the size of the volume that is made when the node serves;
/// 3. `node.toml`, whole or not at all.
fn make(args: &UpArgs, layout: &Layout, output: &Output) -> Result<(), Failure> {
    make_directory(&layout.home())?;
    make_directory(&layout.disks())?;
    let size = args.size.unwrap_or(SIZE_DEFAULT);
    let text = config::to_text(&configuration(args, layout));
    let home =
        std::path::absolute(layout.home()).map_err(|error| Failure::system("find", layout.home().display(), &error))?;
    let config = config::parse(&text, &layout.config(), &home)?;
    say(&format!("making node {NODE} in {}", layout.home().display()));
    for path in config.pool.devices.iter().chain(&config.log.path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::system("remove", path.display(), &error));
            }
            _ => {}
        }
    }
    provision::make_image(&config.pool.devices[0], provision::image_bytes(size.bytes()))?;
    provision::make_log_and_pool(&config, &[], output)?;
    write_durably(&layout.first_start(), &size.to_string())?;
    write_durably(&layout.config(), &text)
}

/// Refuses options that a directory made earlier contradicts.
fn check_options(args: &UpArgs, layout: &Layout) -> Result<(), Failure> {
    let config = config::load(&layout.config())?;
    let port = |port: &u16| config.nbd.tcp.iter().any(|address| address.port() == *port);
    let wrong = if args.log_size.is_some_and(|size| size != config.log.size) {
        Some(("--log-size", "log.size"))
    } else if args.reactors.is_some_and(|count| count != config.reactors.count) {
        Some(("--reactors", "reactors.count"))
    } else if args.port.is_some_and(|wanted| !port(&wanted)) {
        Some(("--port", "nbd.tcp"))
    } else {
        None
    };
    if let Some((option, key)) = wrong {
        let file = layout.config();
        let message =
            format!("{option} differs from {key} in {}, which was written when the directory was made", file.display());
        return Err(Failure::new(Exit::Usage, message, format!("leave {option} out, or edit {key} there")));
    }
    if args.size.is_some() && !layout.first_start().exists() {
        say(&format!("--size is not used: {VOLUME} was made earlier; see `twinlog volume resize`"));
    }
    Ok(())
}

/// Makes the volume if this is the first start, and says how to connect.
fn introduce(layout: &Layout, client: &mut AdminClient) -> Result<(), Failure> {
    let marker = layout.first_start();
    if marker.exists() {
        make_volume(&marker, client)?;
    }
    let config = config::load(&layout.config())?;
    say("serving");
    let volumes = match client.call(&AdminRequest::VolumeList)? {
        AdminReply::Volumes { volumes } => volumes,
        other => return Err(unexpected(other)),
    };
    for volume in &volumes {
        let (name, size) = (&volume.name, ByteSize(volume.size_bytes));
        say(&format!("  {name} ({size})  nbd+unix:///{name}?socket={}", layout.nbd().display()));
        for address in &config.nbd.tcp {
            say(&format!("  {name} ({size})  nbd://{address}/{name}"));
        }
    }
    let dir = layout.dir.display();
    let first = volumes.first().map_or(VOLUME, |volume| volume.name.as_str());
    say(&format!("  try: nbdinfo 'nbd+unix:///{first}?socket={}'", layout.nbd().display()));
    say(&format!("  try: twinlog status --dir {dir}"));
    Ok(())
}

fn make_volume(marker: &Path, client: &mut AdminClient) -> Result<(), Failure> {
    let text = fs::read_to_string(marker).map_err(|error| Failure::system("read", marker.display(), &error))?;
    let size: ByteSize = text
        .parse()
        .map_err(|error| Failure::new(Exit::Error, format!("{}: {error}", marker.display()), "remove the file"))?;
    let there = match client.call(&AdminRequest::VolumeList)? {
        AdminReply::Volumes { volumes } => volumes.iter().any(|volume| volume.name == VOLUME),
        other => return Err(unexpected(other)),
    };
    if !there {
        match client.call(&AdminRequest::VolumeCreate { name: VOLUME.to_owned(), size_bytes: size.bytes() })? {
            AdminReply::Volumes { .. } | AdminReply::Done => {}
            other => return Err(unexpected(other)),
        }
    }
    fs::remove_file(marker).map_err(|error| Failure::system("remove", marker.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn args(line: &str) -> UpArgs {
        match Cli::try_parse_from(line.split(' ')).expect("good").command {
            Command::Up(args) => args,
            other => panic!("another command: {other:?}"),
        }
    }

    #[test]
    fn options_become_a_configuration_that_is_accepted() {
        let args = args("twinlog up d --log-size 64MiB --reactors 8 --port 10809");
        let text = config::to_text(&configuration(&args, &Layout::new(Path::new("d"), NODE)));
        let config = config::parse(&text, Path::new("node.toml"), Path::new("/d/a")).expect("within every bound");
        assert_eq!((config.reactors.count, config.log.size), (8, ByteSize(64 << 20)));
        assert_eq!(config.nbd.tcp, ["127.0.0.1:10809".parse().expect("an address")]);
    }

    #[test]
    fn options_that_contradict_an_old_directory_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(directory.path(), NODE);
        make_directory(&layout.home()).expect("made");
        let text = config::to_text(&configuration(&args("twinlog up d --port 10809"), &layout));
        write_durably(&layout.config(), &text).expect("written");
        for good in ["twinlog up d", "twinlog up d --port 10809 --reactors 1 --log-size 256MiB --size 9GiB"] {
            check_options(&args(good), &layout).expect(good);
        }
        for bad in ["--port 10810", "--reactors 2", "--log-size 1GiB"] {
            let failure = check_options(&args(&format!("twinlog up d {bad}")), &layout).expect_err(bad);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("node.toml"), "{}", failure.message);
        }
    }
}
