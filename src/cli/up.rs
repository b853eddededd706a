//! `twinlog up`: makes a pair on the first start, or a single node, then runs it under a supervisor in the foreground.

use super::{
    args::UpArgs,
    layout::{Layout, ProcessLock, make_directory, write_durably},
    output::{Exit, Failure, Output, unexpected},
    place::{shell_word, socket_uri},
    ports::Ports,
    provision,
    supervise::Supervisor,
};
use serde::Serialize;
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use twinlog::{
    base::limits::{BLOCK_BYTES, VOLUME_BYTES_MAX},
    control::{
        client::AdminClient,
        config::{
            self, LogConfig, MetricsConfig, NbdConfig, NodeConfig, NvmeTcpConfig, PairConfig, PoolConfig,
            ReactorsConfig,
        },
        size::ByteSize,
    },
    node::admin::{AdminReply, AdminRequest, NvmeTcpStatus, VolumeStatus},
};

/// The nodes of a pair, which are also the names of their pools. A single node is the first.
const NODES: [&str; 2] = ["a", "b"];
const SIZE_DEFAULT: ByteSize = ByteSize(4 << 30);
const LOG_SIZE_DEFAULT: ByteSize = ByteSize(256 << 20);

/// The volume that `up` makes in a node's pool.
fn volume_of(node: &str) -> String {
    format!("vol-{node}")
}

/// Runs until stopped.
pub(crate) fn run(args: &UpArgs, output: &Output) -> Result<Exit, Failure> {
    let pair = NODES.map(|node| Layout::new(&args.dir, node));
    let [first, second] = &pair;
    make_directory(&first.dir)?;
    let _lock = ProcessLock::acquire(&first.lock(), &format!("`twinlog up {}`", shell_word(&args.dir)))?;
    // The first node's configuration is written last, whatever is made.
    let is_single = if first.config().exists() {
        let is_single = config::load(&first.config())?.pair.is_none();
        if args.single && !is_single {
            let message = format!("{} holds a pair", args.dir.display());
            return Err(Failure::new(Exit::Usage, message, "leave --single out, or give another directory"));
        }
        is_single
    } else {
        args.single
    };
    let layouts = if is_single { &pair[..1] } else { &pair[..] };
    if is_single {
        output.say("one node: its log is not mirrored");
    }
    if first.config().exists() {
        for layout in layouts {
            remove(&layout.making())?;
            check_options(args, layout, output)?;
            output.say(&format!("found node {} in {}", layout.node, layout.home().display()));
        }
    } else if is_single {
        make(args, first, None, output)?;
        finish(first)?;
    } else {
        make(args, first, Some(second), output)?;
        make(args, second, Some(first), output)?;
        make_shared(first)?;
        for layout in layouts {
            provision::make_mirror(&drafted(layout)?, output)?;
        }
        finish(second)?;
        finish(first)?;
    }
    let ports = ports(args, layouts, output)?;
    let nvme_tcp = ports.as_ref().map_or(&[][..], |ports| &ports.addresses[..]);
    Supervisor { layouts, nvme_tcp, restart: !args.no_restart, on_first_serving: introduce, output }.run()
}

/// Where the nodes serve NVMe/TCP, unless their configurations say it, nobody wants it, or it cannot be.
fn ports(args: &UpArgs, layouts: &[Layout], output: &Output) -> Result<Option<Ports>, Failure> {
    for layout in layouts {
        if args.no_nvme || config::load(&layout.config())?.nvme_tcp.is_some() {
            return Ok(None);
        }
    }
    let ports = Ports::take(layouts.len(), &layouts[0].nvme_ports());
    Ok(ports.inspect_err(|error| output.say(&format!("NVMe/TCP is not served: no port for it: {error}"))).ok())
}

/// What the options say, for a new directory.
fn configuration(args: &UpArgs, layout: &Layout, partner: Option<&Layout>) -> NodeConfig {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    // The second node of a pair listens at the port after the first one's.
    let offset = u16::from(layout.node != NODES[0]);
    let port = args.port.map(|port| loopback(port.saturating_add(offset)));
    let nvme_tcp = args.nvme.map(|port| NvmeTcpConfig {
        listen: loopback(port.saturating_add(offset)),
        partner: partner.map(|_| loopback(port.saturating_add(1 - offset))),
        hosts: Vec::new(),
        hosts_file: Some("hosts.toml".into()),
        allow_remote: false,
    });
    let reactors = ReactorsConfig { count: args.reactors.unwrap_or(1), ..ReactorsConfig::default() };
    let mut memory = config::MemoryConfig::default();
    memory.limit = ByteSize(memory.limit.bytes().max(config::MEMORY_BYTES_MIN * reactors.count as u64));
    let log = |path: &str| LogConfig {
        backend: config::LogBackend::File,
        path: Some(path.into()),
        size: args.log_size.unwrap_or(LOG_SIZE_DEFAULT),
        allow_volatile: false,
    };
    let pool =
        |node: &str| PoolConfig { name: node.to_owned(), devices: vec![format!("../disks/pool-{node}.img").into()] };
    NodeConfig {
        name: layout.node.clone(),
        admin: "admin.sock".into(),
        nbd: NbdConfig { tcp: port.into_iter().collect(), ..NbdConfig::default() },
        nvme_tcp,
        metrics: MetricsConfig::default(),
        reactors,
        memory,
        log: log("log"),
        pool: pool(&layout.node),
        nvme: config::NvmeConfig::default(),
        pair: partner.map(|partner| PairConfig::on_one_machine(&partner.node)),
        partner_pool: partner.map(|partner| pool(&partner.node)),
        mirror: partner.map(|_| log("mirror")),
        logging: config::LoggingConfig::default(),
    }
}

/// Makes everything that a node of a new directory needs. Interrupted before [`finish`], it leaves no `node.toml`, and the next start
/// begins anew.
///
/// 1. `making`: until `node.toml` is there, nothing here can hold data;
/// 2. log and device, after what an interrupted start left has been removed. Without `making`, files that are there belong to a node
///    whose `node.toml` was lost, and are left alone;
/// 3. `first-start`, with the size of the volume that is made when the node serves;
/// 4. the configuration, as `node.toml.draft`.
fn make(args: &UpArgs, layout: &Layout, partner: Option<&Layout>, output: &Output) -> Result<(), Failure> {
    let size = args.size.unwrap_or(SIZE_DEFAULT);
    if size.bytes() == 0 || !size.bytes().is_multiple_of(BLOCK_BYTES) || size.bytes() > VOLUME_BYTES_MAX {
        let message =
            format!("--size {size} is not a multiple of {BLOCK_BYTES} bytes up to {}", ByteSize(VOLUME_BYTES_MAX));
        return Err(Failure::new(Exit::Usage, message, "twinlog up --size 4GiB"));
    }
    make_directory(&layout.home())?;
    make_directory(&layout.disks())?;
    let text = config::to_text(&configuration(args, layout, partner));
    let home =
        std::path::absolute(layout.home()).map_err(|error| Failure::system("find", layout.home().display(), &error))?;
    let config = config::parse(&text, &layout.config(), &home)?;
    output.say(&format!("making node {} in {}", layout.node, layout.home().display()));
    let mirror = config.mirror.iter().flat_map(|mirror| &mirror.path);
    for path in config.pool.devices.iter().chain(&config.log.path).chain(mirror).filter(|path| path.exists()) {
        if !layout.making().exists() {
            let (path, config) = (path.display(), layout.config());
            let message =
                format!("{path} is there and {} is not: a node whose configuration was lost?", config.display());
            return Err(Failure::new(
                Exit::Refused,
                message,
                "restore node.toml, or give another directory, or remove the files",
            ));
        }
        remove(path)?;
    }
    write_durably(&layout.making(), "")?;
    remove(&layout.config())?;
    provision::make_image(&config.pool.devices[0], provision::image_bytes(size.bytes()))?;
    provision::make_log_and_pool(&config, &[], output)?;
    write_durably(&layout.first_start(), &size.to_string())?;
    write_durably(&layout.draft(), &text)
}

/// The configuration of a node that is being made.
fn drafted(layout: &Layout) -> Result<NodeConfig, Failure> {
    Ok(config::load(&layout.draft())?)
}

/// What both nodes of a pair share: the secret, and the registers.
fn make_shared(layout: &Layout) -> Result<(), Failure> {
    let config = drafted(layout)?;
    let pair = config.pair.as_ref().expect("a pair is being made");
    remove(&pair.key)?;
    let mailbox = pair.mailbox.as_ref().expect("up configures one");
    remove(mailbox)?;
    provision::make_key(&pair.key)?;
    provision::make_mailbox(mailbox, [&config.name, &pair.partner])
}

/// The node is made: its configuration becomes valid, whole or not at all.
fn finish(layout: &Layout) -> Result<(), Failure> {
    fs::rename(layout.draft(), layout.config())
        .and_then(|()| fs::File::open(layout.home())?.sync_all())
        .map_err(|error| Failure::system("write", layout.config().display(), &error))?;
    remove(&layout.making())
}

/// Removes a file that may be there.
fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::system("remove", path.display(), &error)),
        _ => Ok(()),
    }
}

/// Refuses options that a directory made earlier contradicts.
fn check_options(args: &UpArgs, layout: &Layout, output: &Output) -> Result<(), Failure> {
    let config = config::load(&layout.config())?;
    let offset = u16::from(layout.node != NODES[0]);
    let port = |port: &u16| config.nbd.tcp.iter().any(|address| address.port() == port.saturating_add(offset));
    let nvme =
        |port: u16| config.nvme_tcp.as_ref().is_some_and(|hosts| hosts.listen.port() == port.saturating_add(offset));
    let wrong = if args.log_size.is_some_and(|size| size != config.log.size) {
        Some(("--log-size", "log.size"))
    } else if args.reactors.is_some_and(|count| count != config.reactors.count) {
        Some(("--reactors", "reactors.count"))
    } else if args.port.is_some_and(|wanted| !port(&wanted)) {
        Some(("--port", "nbd.tcp"))
    } else if args.nvme.is_some_and(|wanted| !nvme(wanted)) {
        Some(("--nvme", "nvme_tcp.listen"))
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
        let volume = volume_of(&layout.node);
        output.say(&format!("--size is not used: {volume} was made earlier; see `twinlog volume resize`"));
    }
    Ok(())
}

#[derive(Serialize)]
struct Serving {
    event: &'static str,
    admin: PathBuf,
    volumes: Vec<Export>,
    /// Addresses for NVMe/TCP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nvme_tcp: Vec<String>,
}

#[derive(Serialize)]
struct Export {
    name: String,
    size_bytes: u64,
    uris: Vec<String>,
}

/// Makes the volumes if this is the first start, and says how to connect.
fn introduce(layouts: &[Layout], output: &Output) -> Result<(), Failure> {
    let (mut volumes, mut fronts) = (Vec::new(), Vec::new());
    for layout in layouts {
        let mut client = AdminClient::connect(&layout.admin())?;
        let marker = layout.first_start();
        if marker.exists() {
            make_volume(&marker, &volume_of(&layout.node), &mut client)?;
        }
        let nbd = config::load(&layout.config())?.nbd;
        let listed = match client.call(&AdminRequest::VolumeList)? {
            AdminReply::Volumes { volumes } => volumes,
            other => return Err(unexpected(other)),
        };
        volumes.extend(listed.into_iter().map(|volume: VolumeStatus| {
            let (name, size_bytes) = (volume.name, volume.size_bytes);
            let socket = socket_uri(&name, &layout.nbd());
            let tcp = nbd.tcp.iter().map(|address| format!("nbd://{address}/{name}"));
            Export { uris: std::iter::once(socket).chain(tcp).collect(), name, size_bytes }
        }));
        match client.call(&AdminRequest::Status)? {
            AdminReply::Status(status) => fronts.extend(status.nvme_tcp),
            other => return Err(unexpected(other)),
        }
    }
    let first = &layouts[0];
    let nvme_tcp: Vec<String> = fronts.iter().map(|front| front.listen.clone()).collect();
    for export in &mut volumes {
        export.uris.extend(namespace_uri(&fronts, &export.name));
    }
    let serving = Serving { event: "serving", admin: first.admin(), volumes, nvme_tcp };
    output.event(&serving, || {
        let mut text = "twinlog: serving\n".to_owned();
        for Export { name, size_bytes, uris } in &serving.volumes {
            for uri in uris {
                text.push_str(&format!("twinlog:   {name} ({})  {uri}\n", ByteSize(*size_bytes)));
            }
        }
        for address in &serving.nvme_tcp {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
            text.push_str(&format!("twinlog:   NVMe/TCP at {address}: nvme discover -t tcp -a {host} -s {port}\n"));
        }
        if let Some(uri) = serving.volumes.first().and_then(|volume| volume.uris.last()) {
            text.push_str(&format!("twinlog:   load, which overwrites the volume: twinlog load '{uri}' --verify\n"));
        }
        if let Some(uri) = serving.volumes.first().and_then(|volume| volume.uris.first()) {
            text.push_str(&format!("twinlog:   try: nbdinfo '{uri}'\n"));
        }
        text.push_str(&format!("twinlog:   try: twinlog status --dir {}\n", shell_word(&first.dir)));
        text
    });
    Ok(())
}

/// How `twinlog load` reaches a volume by NVMe/TCP, over every node.
fn namespace_uri(fronts: &[NvmeTcpStatus], volume: &str) -> Option<String> {
    let mut namespaces = fronts.iter().flat_map(|front| &front.namespaces);
    let id = namespaces.find(|namespace| namespace.volume == volume)?.id;
    let addresses: Vec<&str> = fronts.iter().map(|front| front.listen.as_str()).collect();
    Some(format!("nvme-tcp://{}/?nsid={id}", addresses.join(",")))
}

fn make_volume(marker: &Path, name: &str, client: &mut AdminClient) -> Result<(), Failure> {
    let text = fs::read_to_string(marker).map_err(|error| Failure::system("read", marker.display(), &error))?;
    let size: ByteSize = text
        .parse()
        .map_err(|error| Failure::new(Exit::Error, format!("{}: {error}", marker.display()), "remove the file"))?;
    let there = match client.call(&AdminRequest::VolumeList)? {
        AdminReply::Volumes { volumes } => volumes.iter().any(|volume| volume.name == name),
        other => return Err(unexpected(other)),
    };
    if !there {
        match client.call(&AdminRequest::VolumeCreate {
            name: name.to_owned(),
            size_bytes: size.bytes(),
            block_bytes: 4096,
        })? {
            AdminReply::Volumes { .. } | AdminReply::Done => {}
            other => return Err(unexpected(other)),
        }
    }
    remove(marker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        args::{Cli, Command},
        output::OutputFormat,
    };
    use clap::Parser;

    fn args(line: &str) -> UpArgs {
        match Cli::try_parse_from(line.split(' ')).expect("good").command {
            Command::Up(args) => args,
            other => panic!("another command: {other:?}"),
        }
    }

    #[test]
    fn options_become_a_configuration_that_is_accepted() {
        let args = args("twinlog up d --log-size 64MiB --reactors 8 --port 10809 --nvme 4420");
        let text = config::to_text(&configuration(&args, &Layout::new(Path::new("d"), "a"), None));
        let config = config::parse(&text, Path::new("node.toml"), Path::new("/d/a")).expect("within every bound");
        assert_eq!((config.reactors.count, config.log.size), (8, ByteSize(64 << 20)));
        assert_eq!(config.nbd.tcp, ["127.0.0.1:10809".parse().expect("an address")]);
        let [a, b] = ["a", "b"].map(|node| Layout::new(Path::new("d"), node));
        let both = [configuration(&args, &a, Some(&b)), configuration(&args, &b, Some(&a))];
        let ports = both.map(|config| {
            let NvmeTcpConfig { listen, partner, .. } = config.nvme_tcp.expect("asked for");
            (listen.port(), partner.map(|partner| partner.port()))
        });
        assert_eq!(ports, [(4420, Some(4421)), (4421, Some(4420))]);
    }

    #[test]
    fn options_that_contradict_an_old_directory_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(directory.path(), "a");
        make_directory(&layout.home()).expect("made");
        let text = config::to_text(&configuration(&args("twinlog up d --port 10809"), &layout, None));
        write_durably(&layout.config(), &text).expect("written");
        let output = Output::new(OutputFormat::Text);
        for good in ["twinlog up d", "twinlog up d --port 10809 --reactors 1 --log-size 256MiB --size 9GiB"] {
            check_options(&args(good), &layout, &output).expect(good);
        }
        for bad in ["--port 10810", "--reactors 2", "--log-size 1GiB", "--nvme 4420"] {
            let failure = check_options(&args(&format!("twinlog up d {bad}")), &layout, &output).expect_err(bad);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("node.toml"), "{}", failure.message);
        }
    }

    #[test]
    fn files_without_a_configuration_are_left_alone_unless_they_were_being_made() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(directory.path(), "a");
        let image = layout.disks().join("pool-a.img");
        make_directory(&layout.disks()).expect("made");
        fs::write(&image, b"somebody's data").expect("written");
        let output = Output::new(OutputFormat::Json);
        let small = args("twinlog up d --size 1MiB --log-size 8MiB");
        assert_eq!(make(&small, &layout, None, &output).expect_err("data").exit, Exit::Refused);
        assert_eq!(fs::read(&image).expect("there"), b"somebody's data");
        write_durably(&layout.making(), "").expect("written");
        make(&small, &layout, None, &output).expect("an interrupted first start");
        finish(&layout).expect("finished");
        assert!(layout.config().exists() && layout.first_start().exists() && !layout.making().exists());
    }

    #[test]
    fn a_volume_size_that_cannot_be_is_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(directory.path(), "a");
        for size in ["0", "4095", "1048577GiB"] {
            let failure =
                make(&args(&format!("twinlog up d --size {size}")), &layout, None, &Output::new(OutputFormat::Json));
            assert_eq!(failure.expect_err(size).exit, Exit::Usage);
        }
        assert!(!layout.home().exists());
    }
}
