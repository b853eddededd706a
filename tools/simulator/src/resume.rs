//! A long run seen from outside: a line that says how far it is, failures when they are found, and a file from which it can go on.

use crate::run::{Plan, Summary, now};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs,
    io::{ErrorKind, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Between two updates of the line and the file.
const PERIOD: Duration = Duration::from_secs(1);
/// Periods between two lines where there is no terminal.
const QUIET_PERIODS: u32 = 30;

/// What `path` says is done of `plan`; nothing when there is no such file.
///
/// # Errors
/// The file cannot be read, or is of another run.
pub fn load(path: &Path, plan: &Plan) -> anyhow::Result<Summary> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Summary::new(plan)),
        result => result.with_context(|| format!("{} cannot be read", path.display()))?,
    };
    let is_usable = || format!("the run of {} cannot be resumed", path.display());
    let summary: Summary = serde_json::from_slice(&bytes).with_context(is_usable)?;
    summary.must_be_of(plan).with_context(is_usable)?;
    Ok(summary)
}

/// Replaces `path` by what is done.
///
/// # Errors
/// The file cannot be written.
pub fn store(path: &Path, summary: &Summary) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    // In two steps: whoever ends this process in between leaves the old file whole.
    let written = fs::write(&beside, serde_json::to_vec_pretty(summary)?).and_then(|()| fs::rename(&beside, path));
    written.with_context(|| format!("{} cannot be written", path.display()))
}

/// What is told of a run while it goes on.
pub struct Observer {
    bar: ProgressBar,
    is_watched: bool,
    path: Option<PathBuf>,
    began: Instant,
    /// Histories that were done before this process.
    before: u64,
    told: Instant,
    periods: u32,
    failures: usize,
    /// Why the file could not be written.
    error: Option<anyhow::Error>,
}

impl Observer {
    /// Of a run that goes on from `before`, to be kept in `path`. Everything goes to standard error.
    #[must_use]
    pub fn new(plan: &Plan, before: &Summary, path: Option<PathBuf>) -> Self {
        let is_watched = std::io::stderr().is_terminal();
        let bar = if is_watched { ProgressBar::new(plan.histories) } else { ProgressBar::hidden() };
        let style =
            ProgressStyle::with_template("[{bar:30}] {pos}/{len} {wide_msg}").expect("the template is a constant");
        bar.set_style(style);
        bar.set_length(plan.histories);
        let failures = before.failures.len();
        let began = now();
        Self { bar, is_watched, path, began, before: before.histories, told: began, periods: 0, failures, error: None }
    }

    /// A history was added.
    pub fn tell(&mut self, summary: &Summary) {
        for failure in &summary.failures[self.failures..] {
            self.bar.suspend(|| eprintln!("{failure}"));
        }
        self.failures = summary.failures.len();
        let time = now();
        if time - self.told < PERIOD {
            return;
        }
        (self.told, self.periods) = (time, self.periods + 1);
        self.keep(summary);
        let line = self.line(summary, time);
        if self.is_watched {
            self.bar.set_position(summary.histories);
            self.bar.set_message(line);
        } else if self.periods.is_multiple_of(QUIET_PERIODS) {
            eprintln!("{}/{} {line}", summary.histories, self.bar.length().unwrap_or(0));
        }
    }

    fn line(&self, summary: &Summary, time: Instant) -> String {
        let rate = (summary.histories - self.before) as f64 / (time - self.began).as_secs_f64().max(1e-9);
        let left = self.bar.length().unwrap_or(0).saturating_sub(summary.histories) as f64 / rate.max(1e-9);
        let failures = summary.failures.len();
        format!("{rate:.0} per second, {failures} failed, {:.0} min {:.0} s left", (left / 60.0).floor(), left % 60.0)
    }

    fn keep(&mut self, summary: &Summary) {
        if let (Some(path), None) = (&self.path, &self.error) {
            self.error = store(path, summary).err();
        }
    }

    /// The run is over, or has given up.
    ///
    /// # Errors
    /// The file could not be written: the run is whole, and could not have been resumed.
    pub fn end(mut self, summary: &Summary) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        self.keep(summary);
        self.error.map_or(Ok(()), Err)
    }
}
