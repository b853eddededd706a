//! What can be written on the command line.

use super::{
    device::{PciAddress, UserDriver},
    output::OutputFormat,
};
use clap::{Args, Parser, Subcommand};
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr};
use twinlog::control::size::ByteSize;

/// Where `up` keeps everything unless told otherwise.
pub(crate) const DEFAULT_DIR: &str = "./twinlog-data";

#[derive(Debug, Parser)]
#[command(
    name = "twinlog",
    version,
    about = "A highly available storage target: a write is answered once its record is stable in the change log",
    after_help = "Exit codes: 0 done, 1 error, 2 wrong arguments or configuration, 3 degraded, 4 refused for safety"
)]
pub(crate) struct Cli {
    /// How results and errors are written
    #[arg(short = 'o', long, global = true, value_enum, default_value = "text")]
    pub(crate) output: OutputFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make (once) and run a pair on this machine, in the foreground
    Up(UpArgs),
    /// Kill a node of a pair under load and report what its clients noticed: less than a minute, on this machine
    Demo(DemoArgs),
    /// Put load on a block target, measure it, prove that nothing answered was lost; the same as the program twinlog-load
    #[command(disable_help_flag = true)]
    Load {
        /// As for twinlog-load; `twinlog load --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run one node from its configuration file
    Serve(ServeArgs),
    /// Say what this machine offers and lacks, with the command that mends each thing
    Doctor(DoctorArgs),
    /// Show the verdict, why, what happens now and next, and the figures
    Status(StatusArgs),
    /// Show what has happened on a node; with --follow, what happens
    Events(EventsArgs),
    /// Make, show, check and grow pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Make, show, resize and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Say which hosts may connect over NVMe/TCP, and what they have to prove
    #[command(subcommand)]
    Host(HostCommand),
    /// Move pools between the nodes of a pair, and explain what it does
    #[command(subcommand)]
    Pair(PairCommand),
    /// Keep the registers of pairs that share no disk for them, on a third machine
    Witness(WitnessArgs),
    /// Show this machine's NVMe controllers, and choose which of them a program drives instead of the kernel
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Inspect the change log of a stopped node; reads only
    #[command(subcommand)]
    Log(LogCommand),
    /// Decode the pool's devices of a stopped node; reads only
    Inspect(InspectArgs),
    /// Print a script that completes commands in a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print version and commit
    Version,
}

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Directory that holds the nodes and their disks
    #[arg(default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Size of each volume, such as 4GiB; only when DIR is new [default: 4GiB]
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,
    /// Only one node, not a pair: its log is not mirrored
    #[arg(long)]
    pub(crate) single: bool,
    /// Size of each portion of change log; only when DIR is new [default: 256MiB]
    #[arg(long)]
    pub(crate) log_size: Option<ByteSize>,
    /// Polling loops, one thread each; only when DIR is new [default: 1]
    #[arg(long)]
    pub(crate) reactors: Option<usize>,
    /// Also serve NBD at this TCP port of 127.0.0.1, the second node at the next one; only when DIR is new
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Serve NVMe/TCP always at this port of 127.0.0.1, the second node at the next one; only when DIR is new [default: free ports, 4420 and 4421 if they are]
    #[arg(long)]
    pub(crate) nvme: Option<u16>,
    /// Do not serve NVMe/TCP, which every user of this machine can connect to
    #[arg(long, conflicts_with = "nvme")]
    pub(crate) no_nvme: bool,
    /// Leave a node dead that died
    #[arg(long)]
    pub(crate) no_restart: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Directory for the pair and the report; one of an earlier demo is made anew
    #[arg(default_value = "./twinlog-demo")]
    pub(crate) dir: PathBuf,
    /// How long the load runs, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(20..=600))]
    pub(crate) time: u64,
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The node's configuration
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// File that holds the process id while the node runs; a second node with the same file is refused
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Process that started this one: the node stops when it dies
    #[arg(long, hide = true)]
    pub(crate) supervisor: Option<i32>,
    /// Where hosts connect by NVMe/TCP, on loopback, if the configuration does not say it
    #[arg(long, hide = true)]
    pub(crate) nvme_listen: Option<SocketAddr>,
    /// The same of the partner
    #[arg(long, hide = true, requires = "nvme_listen")]
    pub(crate) nvme_partner: Option<SocketAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct WitnessArgs {
    /// Address and port at which nodes are awaited
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Directory with the key of each pair (NAME.key), in which its registers are kept (NAME.mailbox)
    #[arg(long)]
    pub(crate) dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Directory whose file system is examined
    #[arg(default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,

    /// Also examine what the node of this configuration needs: its files, and for one of a pair partner, arbiter and fence
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
}

/// Finds a running node.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// Directory of `twinlog up`
    #[arg(long, default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Which node of the directory
    #[arg(long, default_value = "a")]
    pub(crate) node: String,
    /// Admin socket of a node that was not started by `up`
    #[arg(long, conflicts_with_all = ["dir", "node"])]
    pub(crate) admin: Option<PathBuf>,
}

/// Finds the files of a stopped node.
#[derive(Args, Debug)]
pub(crate) struct OfflineArgs {
    /// Directory of `twinlog up`
    #[arg(long, default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Which node of the directory
    #[arg(long, default_value = "a")]
    pub(crate) node: String,
    /// Configuration of a node that was not started by `up`
    #[arg(long, conflicts_with_all = ["dir", "node"])]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Only the verdict and what is wrong
    #[arg(short = 'x', long)]
    pub(crate) exceptions: bool,
    /// Show it again every second until interrupted
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Go on until interrupted, over the node's deaths too
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Write an empty pool and its log to the devices that a configuration names
    Create {
        /// The node's configuration
        #[arg(long)]
        config: PathBuf,
        /// Overwrite this device although it holds data; once per device
        #[arg(long, value_name = "DEVICE")]
        overwrite: Vec<PathBuf>,
    },
    /// List the node's pools
    List(NodeArgs),
    /// Show the node's pool
    Show(NodeArgs),
    /// Prove the pool whole: reachable = allocated, no double use, every checksum true
    Check(CheckArgs),
    /// Read and verify every block in use
    Scrub(NodeArgs),
    /// Add a device to the pool
    Grow {
        /// File or block device
        device: PathBuf,
        /// Overwrite the device although it holds data
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Check the devices of a stopped node, named by its configuration; reads only
    #[arg(long, conflicts_with_all = ["dir", "node", "admin"])]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume
    Create {
        /// 1 to 64 letters, digits, `-`, `_`, `.`
        name: String,
        /// Such as 10GiB; a multiple of 4096 bytes
        size: ByteSize,
        /// Blocks in which NVMe/TCP hosts address it: 4096, or 512 for programs that know no others; it stays as it is
        #[arg(long, value_name = "BYTES", default_value = "4096")]
        block_size: ByteSize,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List volumes
    List(NodeArgs),
    /// Show one volume with its figures
    Show {
        /// Which
        name: String,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Change a volume's size while it is in use; shrinking needs --discard
    Resize {
        /// Which
        name: String,
        /// The new size
        size: ByteSize,
        /// Accept that what lies beyond a smaller size is lost
        #[arg(long)]
        discard: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Bring back a volume that is offline: perform the records that are held for it
    Online {
        /// Which
        name: String,
        /// Drop the records instead: answered changes are lost
        #[arg(long)]
        accept_loss: bool,
        /// Needed with --accept-loss
        #[arg(long, requires = "accept_loss")]
        yes: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Delete a volume and its content
    Delete {
        /// Which
        name: String,
        /// Needed: the content is lost
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Let a host connect, or give one that may other secrets and another identifier; each node of a pair keeps its own list
    Add {
        /// The host's qualified name, as in its /etc/nvme/hostnqn
        nqn: String,
        /// The host's identifier, as in its /etc/nvme/hostid: it can use no other, and no other host can use it
        #[arg(long, value_name = "UUID")]
        host_id: Option<String>,
        #[command(flatten)]
        secrets: SecretArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List the hosts that may connect, with fingerprints of their secrets
    List(NodeArgs),
    /// Let a host connect no more; its controllers end within a second
    Remove {
        /// Which
        nqn: String,
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// What a host and the controller prove to each other. No secret stands on a command line, where others can read it.
#[derive(Args, Debug)]
pub(crate) struct SecretArgs {
    /// The host must know the secret in this file (`-`: standard input), as DHHC-1:hh:base64:
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// The host must know a new secret, which is shown once
    #[arg(long, conflicts_with = "secret_file")]
    pub(crate) new_secret: bool,
    /// The controller proves to the host that it knows the secret in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) controller_secret_file: Option<PathBuf>,
    /// The controller proves to the host that it knows a new secret, which is shown once
    #[arg(long, conflicts_with = "controller_secret_file")]
    pub(crate) new_controller_secret: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PairCommand {
    /// Make this node the owner of a pool; its partner hands it over, or is fenced
    Takeover {
        /// Which pool [default: the partner's]
        pool: Option<String>,
        /// Although this node's log may lack answered changes, which are lost then; needs --yes
        #[arg(long)]
        force: bool,
        /// Accept what --force may lose
        #[arg(long, requires = "force")]
        yes: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Hand a pool to the partner
    Giveback {
        /// Which pool [default: the partner's]
        pool: Option<String>,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Before maintenance: hand this node's pools to the partner, which keeps them until `pair giveback` there or `pair takeover` here
    Drain(NodeArgs),
    /// For each pool: who owns it, what this node does about it, why, until when, and what comes next
    Explain(NodeArgs),
    /// Write the configurations and the key of a pair on two machines; no disk is touched
    Configure(ConfigureArgs),
    /// Make what a node of a pair needs on its machine: log, pool, mirror, mailbox; run again, it goes on
    Create {
        /// The node's configuration
        #[arg(long)]
        config: PathBuf,
    },
    /// Make the mailbox that a configuration names, with no register in it yet
    Mailbox {
        /// The configuration of either node
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ConfigureArgs {
    /// Directory for NAME.toml of both nodes, and pair.key
    #[arg(default_value = "/etc/twinlog")]
    pub(crate) dir: PathBuf,
    /// A node, and where its partner reaches it; for both nodes. Two addresses on different networks survive the loss of one
    #[arg(long = "node", required = true, value_name = "NAME=IP[:PORT],...")]
    pub(crate) nodes: Vec<Named>,
    /// The devices of a node's pool, by paths at which both machines reach them; for both nodes
    #[arg(long, required = true, value_name = "NAME=PATH,...")]
    pub(crate) devices: Vec<Named>,
    /// Host and port of the witness that keeps the pair's registers
    #[arg(long)]
    pub(crate) witness: String,
    /// Program, with its arguments, that switches off the partner's machine
    #[arg(long, value_name = "PROGRAM ARGUMENT...")]
    pub(crate) fence_command: Option<String>,
    /// Take over when the partner's lease has ended, after the command or without one: a write that its disks have in their queues may land later, over newer data
    #[arg(long)]
    pub(crate) accept_in_flight_io: bool,
    /// The owner of a pool keeps its partner away by NVMe reservations: devices are nvme:SERIAL, of controllers that know them
    #[arg(long)]
    pub(crate) reservation: bool,
    /// Directory of each machine for its log and its mirror of the partner's
    #[arg(long, default_value = "/var/lib/twinlog")]
    pub(crate) state: PathBuf,
    /// Directory of each machine for the sockets, in twinlog-NAME below it
    #[arg(long, default_value = "/run")]
    pub(crate) run: PathBuf,
    /// Size of a log [default: 256MiB]
    #[arg(long)]
    pub(crate) log_size: Option<ByteSize>,
}

/// `NAME=VALUE,...`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) values: Vec<String>,
}

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, values) = text.split_once('=').ok_or("it has no `=`")?;
        let values: Vec<String> = values.split(',').map(str::to_owned).collect();
        if name.is_empty() || values.iter().any(String::is_empty) {
            return Err("a name or a value is empty");
        }
        Ok(Self { name: name.to_owned(), values })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List every controller: driver, IOMMU group, namespaces and what they are used for
    List,
    /// Take a controller from the kernel's driver for a program; refused while anything on it is in use
    Bind(BindArgs),
    /// Give a controller back to the kernel's driver
    Unbind(UnbindArgs),
}

#[derive(Args, Debug)]
pub(crate) struct BindArgs {
    /// The controller's serial, or its name in /dev/disk/by-id
    #[arg(value_name = "SERIAL")]
    pub(crate) name: String,
    /// What lets the program drive it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) driver: UserDriver,
    /// The user that may drive it: its IOMMU group's node becomes this user's
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Although this namespace holds somebody's data, which nothing on this machine can reach then; once per namespace
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) lose_access_to: Vec<String>,
    /// Which, when several controllers bear the serial
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) controller: Option<PciAddress>,
}

#[derive(Args, Debug)]
pub(crate) struct UnbindArgs {
    /// The controller's serial; its PCI address only when no serial is known
    #[arg(value_name = "SERIAL")]
    pub(crate) name: String,
    /// Which, when several controllers bear the serial
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) controller: Option<PciAddress>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// List the records of every lane
    Show {
        #[command(flatten)]
        node: OfflineArgs,
        /// At most this many of each lane's newest records
        #[arg(long, default_value_t = 1000)]
        last: usize,
        /// The mirror of the partner's log instead of the node's own
        #[arg(long)]
        mirror: bool,
    },
    /// Prove that every record above the applied position is whole
    Verify {
        #[command(flatten)]
        node: OfflineArgs,
        /// The mirror of the partner's log instead of the node's own
        #[arg(long)]
        mirror: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) node: OfflineArgs,
    /// Show only this block, as DEVICE:BLOCK
    #[arg(long)]
    pub(crate) block: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, error::ErrorKind};
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    use twinlog::base::Prng;

    fn parse(line: &str) -> Result<Cli, ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_units_start_what_there_is() {
        for unit in [
            include_str!("../../docs/operating/twinlog@.service"),
            include_str!("../../docs/operating/twinlog-witness.service"),
        ] {
            let line = unit
                .lines()
                .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"))
                .expect("it starts the program");
            let command = parse(&line.replace("%i", "a")).expect(line).command;
            assert!(matches!(command, Command::Serve(_) | Command::Witness(_)), "{command:?}");
        }
    }

    #[test]
    fn up_has_defaults_and_takes_sizes() {
        let Command::Up(args) = parse("twinlog up").expect("good").command else { panic!("another command") };
        assert_eq!((args.dir, args.size, args.port), (PathBuf::from(DEFAULT_DIR), None, None));
        let Command::Up(args) = parse("twinlog up d --size 1GiB --single --no-restart").expect("good").command else {
            panic!("another command")
        };
        assert_eq!((args.size, args.single, args.no_restart), (Some(ByteSize(1 << 30)), true, true));
        assert_eq!(parse("twinlog up --size 1GB").expect_err("no such unit"), ErrorKind::ValueValidation);
    }

    #[test]
    fn the_output_format_stands_anywhere() {
        for line in ["twinlog -o json status", "twinlog status -o json", "twinlog volume list --output json"] {
            assert_eq!(parse(line).expect(line).output, OutputFormat::Json);
        }
        assert_eq!(parse("twinlog status -o xml").expect_err("unknown"), ErrorKind::InvalidValue);
    }

    #[test]
    fn a_node_is_found_in_one_way_only() {
        assert_eq!(parse("twinlog status --dir d --admin s").expect_err("both"), ErrorKind::ArgumentConflict);
        assert_eq!(parse("twinlog log verify --node a --config c").expect_err("both"), ErrorKind::ArgumentConflict);
        parse("twinlog pool check --config c").expect("offline");
        assert_eq!(parse("twinlog serve").expect_err("which?"), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("twinlog sttus").expect_err("no such command"), ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn any_words_are_taken_or_refused_with_words() {
        let words = [
            "up",
            "serve",
            "pool",
            "volume",
            "log",
            "show",
            "create",
            "resize",
            "grow",
            "verify",
            "inspect",
            "status",
            "doctor",
            "--size",
            "--log-size",
            "--port",
            "--reactors",
            "--dir",
            "--admin",
            "--config",
            "--overwrite",
            "--block",
            "--last",
            "--yes",
            "-o",
            "-x",
            "json",
            "a",
            "",
            "-",
            "--",
            "--=",
            "-1",
            "0",
            "4GiB",
            "18446744073709551616",
            "16777216TiB",
            "1e9",
            "65536",
            "0:1",
            "\u{0}",
            "\u{202e}\u{1f4a9}",
            "--size=",
            "--port=-1",
            "%s%n",
            "\n",
        ];
        let mut prng = Prng::new(1);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..2000 {
            let mut line = vec![OsString::from("twinlog")];
            for _ in 0..prng.between(1, 6) {
                let mut word = OsString::from(*prng.pick(&words)).into_vec();
                if prng.chance(1, 10) {
                    // No UTF-8 either.
                    word.extend([0xFF, 0xC0]);
                }
                line.push(OsString::from_vec(word));
            }
            match Cli::try_parse_from(line) {
                Ok(_) => taken += 1,
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        assert!(taken > 20 && refused > 400, "{taken} taken, {refused} refused");
    }
}
