//! Structured logs of a node, on standard error. What is logged and how comes from the configuration and the command line, never from
//! the environment.

use super::events::EventLog;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing_subscriber::{filter::LevelFilter, fmt, layer::Layer, layer::SubscriberExt, util::SubscriberInitExt};

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

/// Sends this process's events to standard error from now on, and keeps the newest. A second call changes nothing.
#[expect(clippy::disallowed_methods, reason = "a process's life is named by when it began")]
pub fn start(level: LogLevel, format: LogFormat) -> EventLog {
    let filter = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let events = EventLog::new(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    let kept = events.clone().with_filter(LevelFilter::INFO);
    // Fails only when a subscriber is installed already: then that one stays.
    let _installed_before = tracing_subscriber::registry().with(lines).with(kept).try_init();
    events
}
