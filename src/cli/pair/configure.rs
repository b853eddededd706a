//! `twinlog pair configure`: writes the configurations of both nodes of a pair on two machines, and their key. It opens no device and makes no log: that is for
//! [`super::create`], on each machine, once a person has read what stands here.
//!
//! Run again it changes nothing: a file that says the same stays, the key always stays, and a file that says anything else is refused.

use crate::cli::{
    args::{ConfigureArgs, Named},
    compose,
    layout::{make_directory, write_durably},
    output::{Exit, Failure, Output},
    place::shell_word,
    provision,
};
use serde::Serialize;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use twinlog::control::{config, size::ByteSize};

/// Where a partner is awaited unless told otherwise; the port after it is what the witness' examples use.
const PORT: u16 = 7116;
const LOG_SIZE_DEFAULT: ByteSize = ByteSize(256 << 20);

/// A node as its arguments describe it.
struct Node<'a> {
    name: &'a str,
    addresses: Vec<SocketAddr>,
    devices: &'a [String],
}

/// Writes what is not there yet.
pub(crate) fn run(args: &ConfigureArgs, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Configured<'a> {
        configurations: [PathBuf; 2],
        key: &'a Path,
    }
    let [first, second] = nodes(args)?;
    if args.fence_command.is_none() && !args.reservation && !args.accept_in_flight_io {
        let message = "it is not said how a machine that does not answer is kept from writing";
        let hint = "--fence-command fence_ipmilan, or another program that switches it off; --reservation, for NVMe namespaces that the nodes drive; or --accept-in-flight-io, which trusts its clock: a write \
                    that its disks have in their queues may land after the takeover, over newer data";
        return Err(Failure::new(Exit::Usage, message, hint));
    }
    let dir = std::path::absolute(&args.dir).map_err(|error| Failure::system("find", args.dir.display(), &error))?;
    let files = [(&first, &second), (&second, &first)].map(|(node, partner)| {
        let text = text(args, node, partner);
        (dir.join(format!("{}.toml", node.name)), text)
    });
    // Everything is looked at before anything is written.
    for (file, text) in &files {
        config::parse(text, file, &dir)?;
        refuse_other(file, text)?;
    }
    make_directory(&dir)?;
    let key = dir.join("pair.key");
    if key.exists() {
        compose::read_key(&key)?;
    } else {
        provision::make_key(&key)?;
    }
    for (file, text) in files.iter().filter(|(file, _)| !file.exists()) {
        write_durably(file, text)?;
    }
    let configurations = files.map(|(file, _)| file);
    let configured = Configured { configurations: configurations.clone(), key: &key };
    output.show(&configured, || next_steps(args, &configurations, &key))?;
    Ok(Exit::Done)
}

/// A configuration that was written or edited before is nobody's to overwrite.
fn refuse_other(file: &Path, text: &str) -> Result<(), Failure> {
    match fs::read_to_string(file) {
        Ok(found) if found == text => Ok(()),
        Ok(_) => {
            let message = format!("{} is there and says something else; nothing was written", file.display());
            Err(Failure::new(Exit::Refused, message, "edit it by hand, or move it away first"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::system("read", file.display(), &error)),
    }
}

fn next_steps(args: &ConfigureArgs, [first, second]: &[PathBuf; 2], key: &Path) -> String {
    let [first, second, key] = [first, second, key].map(shell_word);
    let witness = &args.witness;
    let trial = match (&args.fence_command, args.accept_in_flight_io) {
        (Some(_), false) => "give the fence command its options in both files, and try it before you rely on it",
        (Some(_), true) => {
            "give the fence command its options in both files, and try it before you rely on it: where it fails, and a lease decides, a write \
             that the disks of the node that was lost have in their queues may land later, over newer data"
        }
        (None, false) => {
            "each drive keeps the other machine's writes away: pull one machine's power under load before you rely on it"
        }
        (None, true) => {
            "you have accepted that a write that the disks of a lost node have in their queues may land after the takeover, over newer data; \
             a fence command rules that out"
        }
    };
    format!(
        "{first}, {second} and {key} are there. Read them, then\n  \
           copy {second} and {key} to the other machine; only the node's user may read the key\n  \
           copy {key} to the witness at {witness}, as NAME.key in its directory\n  \
           on this machine:      twinlog pair create --config {first}\n  \
           on the other machine: twinlog pair create --config {second}\n  \
           then start the witness and both nodes\n\
         {trial}\n"
    )
}

/// Both nodes, in the order of their names.
fn nodes<'a>(args: &'a ConfigureArgs) -> Result<[Node<'a>; 2], Failure> {
    let usage = |message: String, hint: &str| Failure::new(Exit::Usage, message, hint);
    let hint = "--node a=192.0.2.1 --devices a=/dev/disk/by-id/ONE --node b=192.0.2.2 --devices b=/dev/disk/by-id/TWO";
    let node = |Named { name, values }: &'a Named| {
        let addresses = values.iter().map(|value| address(value)).collect::<Result<_, _>>();
        let addresses = addresses.map_err(|value| {
            usage(format!("`{value}` is no IP address"), "192.0.2.1, 192.0.2.1:7116 or [2001:db8::1]:7116")
        })?;
        let mut devices = args.devices.iter().filter(|devices| devices.name == *name);
        match (devices.next(), devices.next()) {
            (Some(devices), None) => Ok(Node { name, addresses, devices: &devices.values }),
            _ => Err(usage(format!("--devices {name}=... is needed once"), hint)),
        }
    };
    let mut nodes = args.nodes.iter().map(node).collect::<Result<Vec<_>, Failure>>()?;
    nodes.sort_by_key(|node| node.name);
    let count = args.devices.len();
    match <[Node<'_>; 2]>::try_from(nodes) {
        Ok(nodes) if count == nodes.len() => Ok(nodes),
        _ => Err(usage("a pair is two nodes, each with the devices of its pool".to_owned(), hint)),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let only = text.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    text.parse().or(only).map_err(|_| text.to_owned())
}

/// Words as a list in TOML.
fn list<T: ToString>(words: &[T]) -> String {
    toml::Value::from(words.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
}

fn quoted(word: impl ToString) -> String {
    toml::Value::from(word.to_string()).to_string()
}

/// The configuration of a node, for people to read and to edit.
fn text(args: &ConfigureArgs, node: &Node<'_>, partner: &Node<'_>) -> String {
    let place = |kind: &str, of: &str| quoted(args.state.join(format!("{kind}-{of}")).display());
    let socket = |name: &str| quoted(args.run.join(format!("twinlog-{}", node.name)).join(name).display());
    let size = args.log_size.unwrap_or(LOG_SIZE_DEFAULT);
    format!(
        "\
# Node {name} of a pair on two machines. docs/operating/configuration.md has every key.
name = {quoted_name}
admin = {admin}

[nbd]
unix = [{nbd}]
# For clients on other machines: NBD has no password, so only on a network that nobody else reaches.
# tcp = [\"192.0.2.1:10809\"]
# allow_remote = true

[log]                             # as precious as the disks
path = {log}
size = \"{size}\"

[pool]                            # both machines reach these devices
name = {quoted_name}
devices = {devices}

[pair]
partner = {quoted_partner}
tcp = {tcp}
partner_tcp = {partner_tcp}
allow_remote = true
encrypt = true
key = \"pair.key\"
# the third machine that keeps the pair's registers
witness = {witness}
{fences}

[partner_pool]
name = {quoted_partner}
devices = {partner_devices}

[mirror]                          # of {partner}'s log
path = {mirror}
size = \"{size}\"
",
        name = node.name,
        partner = partner.name,
        quoted_name = quoted(node.name),
        quoted_partner = quoted(partner.name),
        admin = socket("admin.sock"),
        nbd = socket("nbd.sock"),
        log = place("log", node.name),
        mirror = place("mirror", partner.name),
        fences = fences(args, partner.name),
        devices = list(node.devices),
        partner_devices = list(partner.devices),
        witness = quoted(&args.witness),
        tcp = list(&node.addresses),
        partner_tcp = list(&partner.addresses),
    )
}

/// How `partner` is kept from writing, for people to read and to edit.
fn fences(args: &ConfigureArgs, partner: &str) -> String {
    let mut kinds = Vec::new();
    let mut lines = Vec::new();
    if let Some(command) = &args.fence_command {
        kinds.push("command");
        let words: Vec<&str> = command.split_whitespace().collect();
        lines.push(format!("# It ends with 0 only when {partner}'s machine is off, and reads these options: try it."));
        lines.push(format!("fence_command = {}", list(&words)));
        lines.push(
            "# fence_options = { ip = \"192.0.2.7\", username = \"fence\", password_script = \"/etc/twinlog/fence-password\", lanplus = \"1\" }"
                .to_owned(),
        );
    }
    if args.reservation {
        kinds.push("reservation");
        lines.push(format!("# `reservation`: the namespaces refuse what {partner} writes once its lease has ended and this node has taken them."));
    }
    if args.accept_in_flight_io {
        kinds.push("lease");
        lines.push(format!("# `lease` trusts {partner}'s clock. A write that {partner}'s disks have in their queues may land after the takeover,"));
        lines.push("# over newer data: that is accepted here. A fence command rules it out.".to_owned());
        lines.push("accept_in_flight_io = true".to_owned());
    }
    lines.insert(0, format!("fence = {}", list(&kinds)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        args::{Cli, Command, PairCommand},
        output::OutputFormat,
    };
    use clap::Parser;
    use twinlog::control::config::FenceKind;

    fn configured(line: &str, dir: &Path) -> Result<Exit, Failure> {
        let words = ["twinlog", "pair", "configure"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).expect("good").command {
            Command::Pair(PairCommand::Configure(args)) => {
                run(&ConfigureArgs { dir: dir.to_owned(), ..args }, &Output::new(OutputFormat::Json))
            }
            other => panic!("another command: {other:?}"),
        }
    }

    const PAGE: &str = include_str!("../../../docs/operating/two-machines.md");

    /// The command of the page, without its beginning.
    fn documented() -> String {
        let after = PAGE.split("twinlog pair configure").nth(1).expect("the page shows it");
        let command: String =
            after.split("```").next().expect("the block ends").split("\n\n").next().unwrap_or_default().into();
        command.replace('\\', " ")
    }

    #[test]
    fn the_examples_are_what_the_documented_command_writes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        configured(&documented(), directory.path()).expect("the page's command");
        for (name, example) in [
            ("a.toml", include_str!("../../../docs/operating/two-machines/a.toml")),
            ("b.toml", include_str!("../../../docs/operating/two-machines/b.toml")),
        ] {
            let written = fs::read_to_string(directory.path().join(name)).expect("written");
            assert_eq!(written, example, "{name}");
            let config = config::load(&directory.path().join(name)).expect("it is accepted");
            assert!(config.pair.is_some_and(|pair| pair.encrypt && pair.key == directory.path().join("pair.key")));
            // What stands there as a comment is good too.
            let uncommented: String = written
                .lines()
                .map(|line| {
                    line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line).to_owned() + "\n"
                })
                .collect();
            config::parse(&uncommented, Path::new(name), directory.path()).expect("with the options");
        }
    }

    #[test]
    fn run_again_it_changes_nothing_and_overwrites_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let line = "--node b=10.0.0.2,[fd00::2]:9 --node a=10.0.0.1 --devices a=/x,/y --devices b=/z --witness h:1 --fence-command f";
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("there");
        configured(line, directory.path()).expect("new");
        let (config, key) = (read("a.toml"), read("pair.key"));
        fs::remove_file(directory.path().join("b.toml")).expect("interrupted");
        configured(line, directory.path()).expect("goes on");
        assert_eq!((read("a.toml"), read("pair.key")), (config, key));
        assert!(read("b.toml").contains("tcp = [\"10.0.0.2:7116\", \"[fd00::2]:9\"]"), "{}", read("b.toml"));
        let other = configured(&line.replace("/z", "/w"), directory.path()).expect_err("other devices");
        assert_eq!(other.exit, Exit::Refused);
        assert!(!read("b.toml").contains("/w"));
    }

    #[test]
    fn what_is_no_pair_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let dir = directory.path().join("d");
        for line in [
            "--node a=10.0.0.1 --devices a=/x --witness h:1",
            "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --witness h:1",
            "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --devices c=/y --witness h:1",
            "--node a=10.0.0.1 --node a=10.0.0.2 --devices a=/x --devices a=/y --witness h:1",
            "--node a=host --node b=10.0.0.2 --devices a=/x --devices b=/y --witness h:1",
            "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --devices b=/x --witness h:1",
            "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --devices b=/y --witness h",
            "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --devices b=/y --witness h:1 --log-size 1MiB",
        ] {
            let line = format!("{line} --fence-command f");
            assert_eq!(configured(&line, &dir).expect_err(&line).exit, Exit::Usage, "{line}");
            assert!(!dir.exists(), "{line}");
        }
    }

    #[test]
    fn an_operator_chooses_how_a_lost_machine_is_kept_from_writing() {
        let line = "--node a=10.0.0.1 --node b=10.0.0.2 --devices a=/x --devices b=/y --witness h:1";
        let fences = |options: &str| {
            let directory = tempfile::tempdir().expect("a temporary directory");
            configured(&format!("{line} {options}"), directory.path()).map(|_| {
                let pair = config::load(&directory.path().join("a.toml")).expect("it is accepted").pair.expect("there");
                (pair.fence, pair.fence_command, pair.accept_in_flight_io)
            })
        };
        let refused = fences("").expect_err("nothing was chosen");
        assert!(refused.exit == Exit::Usage && refused.hint.contains("over newer data"), "{refused:?}");
        let (command, none) = (vec!["f".to_owned()], Vec::new());
        let chosen = |options| fences(options).expect(options);
        assert_eq!(chosen("--fence-command f"), (vec![FenceKind::Command], command.clone(), false));
        assert_eq!(chosen("--accept-in-flight-io"), (vec![FenceKind::Lease], none, true));
        let both = (vec![FenceKind::Command, FenceKind::Lease], command, true);
        assert_eq!(chosen("--accept-in-flight-io --fence-command f"), both);
        let refused = fences("--reservation").expect_err("files have none");
        assert!(refused.message.contains("`reservation`"), "{refused:?}");
        let line = line.replace("/x", "nvme:S1").replace("/y", "nvme:S1/2");
        let directory = tempfile::tempdir().expect("a temporary directory");
        configured(&format!("{line} --fence-command f --reservation"), directory.path()).expect("good");
        let pair = config::load(&directory.path().join("b.toml")).expect("it is accepted").pair.expect("there");
        assert_eq!(pair.fence, [FenceKind::Command, FenceKind::Reservation]);
    }
}
