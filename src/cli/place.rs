//! Where the node of a command is, so that commands and URIs in messages can be copied and run as they stand.
//!
//! Messages name commands without saying where the node is: "`twinlog pool check`". A [`Place`] adds that, once, at the end of all
//! ways: every command that a text names, alone or in backquotes, gets the `--dir`, `--admin` or `--config` that this call had.

use super::{
    args::{
        CheckArgs, Command, HostCommand, LogCommand, NodeArgs, OfflineArgs, PairCommand, PoolCommand, VolumeCommand,
    },
    layout::Layout,
};
use std::path::Path;
use twinlog::control::config;

/// How to name a node on the command line. Empty where the defaults find it, or nothing is known.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Of `up`.
    directory: String,
    /// Of commands that ask the running node.
    node: String,
    /// Of commands that read the files of a stopped one.
    files: String,
    /// The configuration, for `--config FILE`.
    config: String,
}

impl Place {
    /// The place that the arguments of a command name.
    pub(crate) fn of(command: &Command) -> Self {
        match command {
            Command::Up(args) => Self::of_directory(&args.dir, "a"),
            Command::Serve(args) => Self::of_config(&args.config),
            Command::Status(args) => Self::of_node(&args.node),
            Command::Events(args) => Self::of_node(&args.node),
            Command::Pool(PoolCommand::Create { config, .. })
            | Command::Pool(PoolCommand::Check(CheckArgs { config: Some(config), .. })) => Self::of_config(config),
            Command::Pool(
                PoolCommand::List(node)
                | PoolCommand::Show(node)
                | PoolCommand::Scrub(node)
                | PoolCommand::Grow { node, .. }
                | PoolCommand::Check(CheckArgs { node, .. }),
            ) => Self::of_node(node),
            Command::Volume(
                VolumeCommand::Create { node, .. }
                | VolumeCommand::List(node)
                | VolumeCommand::Show { node, .. }
                | VolumeCommand::Resize { node, .. }
                | VolumeCommand::Online { node, .. }
                | VolumeCommand::Delete { node, .. },
            ) => Self::of_node(node),
            Command::Host(
                HostCommand::Add { node, .. } | HostCommand::List(node) | HostCommand::Remove { node, .. },
            ) => Self::of_node(node),
            Command::Pair(PairCommand::Mailbox { config } | PairCommand::Create { config }) => Self::of_config(config),
            Command::Pair(
                PairCommand::Takeover { node, .. }
                | PairCommand::Giveback { node, .. }
                | PairCommand::Drain(node)
                | PairCommand::Explain(node),
            ) => Self::of_node(node),
            Command::Log(LogCommand::Show { node, .. } | LogCommand::Verify { node, .. }) => Self::of_files(node),
            Command::Inspect(args) => Self::of_files(&args.node),
            Command::Demo(args) => Self::of_directory(&args.dir, "a"),
            Command::Doctor(_)
            | Command::Device(_)
            | Command::Pair(PairCommand::Configure(_))
            | Command::Witness(_)
            | Command::Load { .. }
            | Command::Completions { .. }
            | Command::Version => Self::default(),
        }
    }

    pub(crate) fn of_node(args: &NodeArgs) -> Self {
        match &args.admin {
            Some(socket) => Self { node: format!(" --admin {}", shell_word(socket)), ..Self::default() },
            None => Self::of_directory(&args.dir, &args.node),
        }
    }

    fn of_files(args: &OfflineArgs) -> Self {
        match &args.config {
            Some(config) => Self::of_config(config),
            None => Self::of_directory(&args.dir, &args.node),
        }
    }

    fn of_config(config: &Path) -> Self {
        let file = shell_word(config);
        let admin = config::load(config).map(|config| format!(" --admin {}", shell_word(&config.admin)));
        let files = format!(" --config {file}");
        Self { node: admin.unwrap_or_default(), files, config: file, ..Self::default() }
    }

    fn of_directory(dir: &Path, node: &str) -> Self {
        let config = shell_word(&Layout::new(dir, node).config());
        let is_default = dir == Path::new(super::args::DEFAULT_DIR) && node == "a";
        let word = shell_word(dir);
        let directory = if is_default { String::new() } else { format!(" {word}") };
        let mut flags = if is_default { String::new() } else { format!(" --dir {word}") };
        if node != "a" {
            flags.push_str(&format!(" --node {node}"));
        }
        Self { directory, node: flags.clone(), files: flags, config }
    }

    /// The text with every command in it complete.
    pub(crate) fn complete(&self, text: &str) -> String {
        if text.starts_with("twinlog ") {
            let end = text.find("; ").unwrap_or(text.len());
            return format!("{}{}", self.command(&text[..end]), self.complete(&text[end..]));
        }
        let parts = text.split('`').enumerate();
        let complete = |(index, part): (usize, &str)| if index % 2 == 1 { self.command(part) } else { part.to_owned() };
        parts.map(complete).collect::<Vec<_>>().join("`")
    }

    fn command(&self, command: &str) -> String {
        if command.contains("--config FILE") {
            let file = if self.config.is_empty() { "FILE" } else { &self.config };
            return command.replace("--config FILE", &format!("--config {file}"));
        }
        let flags = match command.split(' ').nth(1).filter(|_| command.starts_with("twinlog ")) {
            Some("status" | "pool" | "volume" | "pair") => &self.node,
            Some("log" | "inspect") => &self.files,
            Some("up") => &self.directory,
            _ => "",
        };
        format!("{command}{flags}")
    }
}

/// A path as one word for a shell.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@%+=,-".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The URI of a volume at an NBD socket, from wherever it is used: the path is absolute.
pub(crate) fn socket_uri(volume: &str, socket: &Path) -> String {
    let absolute = std::path::absolute(socket).map_or_else(|_| socket.to_owned(), |path| config::tidied(&path));
    let path = std::os::unix::ffi::OsStrExt::as_bytes(absolute.as_os_str());
    let encode = |&byte: &u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    format!("nbd+unix:///{volume}?socket={}", path.iter().map(encode).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::Parser;

    fn complete(line: &[&str], text: &str) -> String {
        Place::of(&Cli::try_parse_from(line).expect("good").command).complete(text)
    }

    #[test]
    fn commands_in_messages_can_be_run_as_they_stand() {
        let default = ["twinlog", "status"];
        let spaced = ["twinlog", "pool", "show", "--dir", "my data"];
        let admin = ["twinlog", "volume", "list", "--admin", "/run/a.sock"];
        let up = ["twinlog", "up", "d"];
        for (line, text, expected) in [
            (&default[..], "twinlog volume list", "twinlog volume list"),
            (
                &default,
                "`twinlog pool check --config FILE`",
                "`twinlog pool check --config ./twinlog-data/a/node.toml`",
            ),
            (&spaced, "see `twinlog pool scrub`, or df", "see `twinlog pool scrub --dir 'my data'`, or df"),
            (&spaced, "`twinlog up`; `twinlog doctor`", "`twinlog up 'my data'`; `twinlog doctor`"),
            (&spaced, "twinlog inspect; then think", "twinlog inspect --dir 'my data'; then think"),
            (&admin, "twinlog status", "twinlog status --admin /run/a.sock"),
            (&admin, "twinlog log verify", "twinlog log verify"),
            (&up, "`twinlog log verify`", "`twinlog log verify --dir d`"),
        ] {
            assert_eq!(complete(line, text), expected);
        }
    }

    #[test]
    fn paths_are_quoted_for_shells_and_uris() {
        assert_eq!(shell_word(Path::new("/a/b-1.c")), "/a/b-1.c");
        assert_eq!(shell_word(Path::new("it's")), r"'it'\''s'");
        assert_eq!(shell_word(Path::new("")), "''");
        assert_eq!(
            socket_uri("v", Path::new("/nowhere/x y/ä&/nbd.sock")),
            "nbd+unix:///v?socket=/nowhere/x%20y/%C3%A4%26/nbd.sock"
        );
        let relative = socket_uri("v", Path::new("./d/a/nbd.sock"));
        assert!(relative.starts_with("nbd+unix:///v?socket=/") && relative.ends_with("/d/a/nbd.sock"), "{relative}");
        assert!(!relative.contains("/./"), "{relative}");
    }
}
