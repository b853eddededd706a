//! How results and errors look, and which exit code they give.

use clap::ValueEnum;
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};
use twinlog::{
    control::{admin::SCHEMA_VERSION, client::ClientError, config::ConfigError},
    node::admin::AdminReply,
};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// One JSON object with `schema_version`, errors too.
    Json,
    /// The same on one line; of what comes one after the other, each on a line of its own.
    Jsonl,
}

/// Exit codes of every command. Wrong arguments end with 2 before a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0
    Done,
    /// 1
    Error,
    /// 2: wrong arguments or configuration.
    Usage,
    /// 3: it works, with less protection than it should have.
    Degraded,
    /// 4: refused, because it could lose or overwrite data.
    Refused,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::Degraded => 3,
            Self::Refused => 4,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do its work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What failed, why, and of which object.
    pub(crate) message: String,
    /// The next command to try, or empty.
    pub(crate) hint: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Display, hint: impl Display) -> Self {
        Self { exit, message: message.to_string(), hint: hint.to_string() }
    }

    /// An operation of the operating system on `object` failed.
    pub(crate) fn system(what: &str, object: impl Display, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "run it as the owner of the node's files, or give another directory",
            io::ErrorKind::StorageFull => "free space, or give another directory: `df -h`",
            io::ErrorKind::NotFound => "check the path",
            _ => "twinlog doctor",
        };
        Self::new(Exit::Error, format!("cannot {what} {object}: {error}"), hint)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, &error, &error.hint)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::NotRunning { .. } => {
                "start it: `twinlog up`; or name another one: --dir DIR or --admin SOCKET; a stopped one is examined by `twinlog pool check --config FILE`"
            }
            ClientError::Broken { .. } => "twinlog status",
            ClientError::Foreign { .. } => "use the twinlog program of the node's own version",
        };
        Self::new(Exit::Error, &error, hint)
    }
}

/// Takes a reply that is not the wanted one as a failure.
pub(crate) fn unexpected(reply: AdminReply) -> Failure {
    match reply {
        AdminReply::Refused { message, hint } => Failure::new(Exit::Error, message, hint),
        other => Failure::new(
            Exit::Error,
            format!("the node answered something else than was asked: {other:?}"),
            "twinlog version",
        ),
    }
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    format: OutputFormat,
}

#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

#[derive(Serialize)]
struct Versioned<'a, T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl Output {
    pub(crate) fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format != OutputFormat::Text
    }

    /// Whether a moving picture makes sense: a person looks at standard error.
    pub(crate) fn is_watched(&self) -> bool {
        !self.is_json() && io::stderr().is_terminal()
    }

    /// Writes a result: `content` as a JSON object, or the text.
    pub(crate) fn show(&self, content: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let bytes = match self.format {
            OutputFormat::Text => text(),
            OutputFormat::Json => json(content)?,
            OutputFormat::Jsonl => json_line(content),
        };
        write_out(&bytes)
    }

    /// A line about what goes on, for a command that runs for long.
    pub(crate) fn say(&self, line: &str) {
        self.event(&Message { message: line }, || format!("twinlog: {line}\n"));
    }

    /// What goes on: a JSON object on a line of its own, or the text.
    pub(crate) fn event(&self, content: &impl Serialize, text: impl FnOnce() -> String) {
        let line = match self.format {
            OutputFormat::Text => text(),
            OutputFormat::Json | OutputFormat::Jsonl => json_line(content),
        };
        // Nobody is left to tell when it cannot be written.
        let _unheard = write_out(&line);
    }

    /// Writes an error and gives the exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        #[derive(Serialize)]
        struct Error<'a> {
            error: &'a str,
            hint: &'a str,
            exit_code: u8,
        }
        let (error, hint, exit_code) = (failure.message.as_str(), failure.hint.as_str(), failure.exit.code());
        // Nobody is left to tell when the error cannot be written.
        let _unheard = match (self.format, json(&Error { error, hint, exit_code })) {
            (OutputFormat::Jsonl, _) => write_out(&json_line(&Error { error, hint, exit_code })).map_err(|_| ()),
            (OutputFormat::Json, Ok(text)) => write_out(&text).map_err(|_| ()),
            _ if hint.is_empty() => writeln!(io::stderr(), "twinlog: {error}").map_err(|_| ()),
            _ => writeln!(io::stderr(), "twinlog: {error}\n  try: {hint}").map_err(|_| ()),
        };
        failure.exit.into()
    }
}

fn json_line(content: &impl Serialize) -> String {
    let versioned = Versioned { schema_version: SCHEMA_VERSION, content };
    serde_json::to_string(&versioned).map(|line| line + "\n").unwrap_or_default()
}

fn json(content: &impl Serialize) -> Result<String, Failure> {
    let versioned = Versioned { schema_version: SCHEMA_VERSION, content };
    let text = serde_json::to_string_pretty(&versioned);
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Error, format!("cannot write JSON: {error}"), ""))
}

fn write_out(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // `twinlog status | head -1` is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("write to", "standard output", &error))
        }
        _ => Ok(()),
    }
}
