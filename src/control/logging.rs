//! Structured logs of a node, on standard error. What is logged and how comes from the configuration and the command line, never from
//! the environment.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{filter::LevelFilter, fmt};

/// Least important level that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Only what stopped something.
    Error,
    /// And what will, unless somebody acts.
    Warn,
    /// And changes of state.
    #[default]
    Info,
    /// And what leads to them.
    Debug,
    /// And every step.
    Trace,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends this process's events to standard error from now on. A second call changes nothing.
pub fn start(level: LogLevel, format: LogFormat) {
    let filter = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = fmt().with_max_level(filter).with_writer(std::io::stderr).with_target(false);
    // Fails only when a subscriber is installed already: then that one stays.
    let _installed_before = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
