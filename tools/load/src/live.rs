//! What a person sees while a run goes on: one line on standard error, only on a terminal, and messages that stay.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    load::Pace,
    measure::Measure,
    units::{per_second, show_bytes, show_count, show_latency},
};

/// Between two updates of the line.
const PERIOD: Duration = Duration::from_millis(250);

/// The line, if there is a terminal for it.
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    drawn: Instant,
    total: (u64, u64),
}

impl Live {
    /// A line on standard error, if that is a terminal and `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{bar:24} {percent:>3} % {wide_msg}").expect("the template is a constant");
            ProgressBar::new(1000).with_style(style)
        });
        Self { bar, drawn: Instant::now(), total: (0, 0) }
    }

    /// Shows the course of a run.
    pub(crate) fn load(&mut self, now: Instant, start: Instant, measure: &Measure, pace: Pace) {
        let before = self.total;
        let Some((bar, elapsed)) = self.due(now) else { return };
        let total = measure.total();
        let (ops, bytes) = (total.0.saturating_sub(before.0), total.1.saturating_sub(before.1));
        let latency = measure.points.last().copied().unwrap_or_default();
        let planned = pace.warmup + pace.time;
        bar.set_position(permille(now.saturating_duration_since(start), planned));
        let message = if now < start + pace.warmup {
            "warm-up".to_owned()
        } else {
            let (iops, rate) = (show_count(per_second(ops, elapsed)), show_bytes(per_second(bytes, elapsed)));
            format!("{iops} IOPS  {rate}/s  p50 {}  p99 {}", show_latency(latency.p50_ns), show_latency(latency.p99_ns))
        };
        bar.set_message(message);
        self.total = total;
    }

    /// Shows how far a read-back came.
    pub(crate) fn read_back(&mut self, bytes: u64, of: u64) {
        if let Some((bar, _)) = self.due(Instant::now()) {
            bar.set_position(bytes.saturating_mul(1000) / of.max(1));
            bar.set_message(format!("reading back {} of {}", show_bytes(bytes as f64), show_bytes(of as f64)));
        }
    }

    /// Says something that stays on the screen.
    pub(crate) fn say(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => eprintln!("{message}"),
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The bar and the time since its last update, when it is time for the next.
    fn due(&mut self, now: Instant) -> Option<(&ProgressBar, Duration)> {
        let elapsed = now.saturating_duration_since(self.drawn);
        let bar = self.bar.as_ref().filter(|_| elapsed >= PERIOD)?;
        self.drawn = now;
        Some((bar, elapsed))
    }
}

fn permille(part: Duration, whole: Duration) -> u64 {
    u64::try_from(part.as_millis() * 1000 / whole.as_millis().max(1)).unwrap_or(u64::MAX).min(1000)
}
