//! A result for the terminal.

use std::fmt::Write as _;

use super::{ClassReport, Rate, Report, Verify};
use crate::{
    proof::Findings,
    readback::Reading,
    units::{show_bytes, show_count, show_latency},
};

/// A shorter time without an answer is not worth a line.
const PAUSE_SHOWN_SECONDS: f64 = 0.1;

/// The report as lines of text.
pub(crate) fn render(report: &Report) -> String {
    let mut text = format!("{}\n", report.target);
    text.push_str(&rate("acknowledged", &report.acknowledged));
    if let Some(durable) = &report.durable {
        text.push_str(&rate("durable", durable));
    }
    text.push_str(&latencies(&report.classes));
    let cpu = &report.cpu;
    let used = (cpu.user_seconds, cpu.system_seconds, cpu.microseconds_per_op);
    line(
        &mut text,
        "processor",
        &format!("{:.2} s user, {:.2} s system, {:.2} us per request (this tool's own)", used.0, used.1, used.2),
    );
    if report.backlog > 0 {
        line(
            &mut text,
            "not sent",
            &format!("{} requests were due and not sent: the target is slower than --rate", report.backlog),
        );
    }
    for error in &report.errors {
        line(&mut text, "errors", &format!("{} x {}", error.count, error.message));
    }
    let longest = report.longest_pause_seconds;
    if !report.pauses.is_empty() {
        line(&mut text, "reconnected", &format!("{} times", report.pauses.len()));
    }
    if let Some(pause) = report.pauses.iter().max_by(|one, other| one.seconds.total_cmp(&other.seconds)) {
        let (seconds, detection, rest) =
            (pause.seconds, pause.detection_seconds, pause.seconds - pause.detection_seconds);
        let parts = format!("{seconds:.3} s: {detection:.3} s until it was noticed, {rest:.3} s until the next answer");
        line(&mut text, "longest loss", &parts);
    }
    if longest >= PAUSE_SHOWN_SECONDS || !report.pauses.is_empty() {
        line(&mut text, "longest pause", &format!("{longest:.3} s without an answer"));
    }
    if let Some(verify) = &report.verify {
        text.push_str(&verified(verify));
    }
    let reason = report.end_reason.as_deref().unwrap_or("");
    match report.end {
        "finished" => {}
        "lost" => line(&mut text, "ended", &format!("the connection was lost: {reason}")),
        "journal" => line(&mut text, "ended", &format!("the journal could not be written: {reason}")),
        end => line(&mut text, "ended", end),
    }
    text
}

/// Findings as lines, each with place, expectation and content.
pub(crate) fn findings(findings: &Findings) -> String {
    let mut text = String::new();
    for finding in &findings.first {
        let promise = finding.promise.map(|promise| format!(" ({promise})")).unwrap_or_default();
        let (offset, length) = (finding.offset, finding.length);
        let what = format!("byte {offset}, {length} bytes: expected {}, found {}", finding.expected, finding.found);
        line(&mut text, &finding.kind.to_uppercase(), &format!("{what}{promise}"));
    }
    let count = findings.count();
    let shown = findings.first.len() as u64;
    if count > shown {
        line(&mut text, "", &format!("and {} more", count - shown));
    }
    if count > 0 {
        let Findings { lost_acknowledged, lost_fua, lost_flushed, other, .. } = findings;
        let counts = format!(
            "{lost_acknowledged} acknowledged only, {lost_fua} with FUA, {lost_flushed} flushed; {other} wrong otherwise"
        );
        line(&mut text, "lost", &format!("sectors: {counts}"));
    }
    text
}

/// What a read-back covered.
pub(crate) fn reading(reading: &Reading) -> String {
    let torn = match reading.torn_cells {
        0 => String::new(),
        torn => format!(", {torn} of them cut in the middle of an unanswered write"),
    };
    format!("{} read back, {} written units{torn}", show_bytes(reading.bytes as f64), reading.written_cells)
}

fn verified(verify: &Verify) -> String {
    let mut text = String::new();
    let result = if verify.findings.count() == 0 { "all as they must be" } else { "NOT as they must be" };
    line(&mut text, "verified", &format!("{} sectors, {result}", verify.examined_sectors));
    if let Some(read_back) = &verify.read_back {
        line(&mut text, "", &reading(read_back));
    }
    text.push_str(&findings(&verify.findings));
    text
}

fn rate(name: &str, rate: &Rate) -> String {
    let mut text = String::new();
    let (iops, bytes) = (show_count(rate.iops), show_bytes(rate.bytes_per_second));
    line(&mut text, name, &format!("{iops} IOPS  {bytes}/s  ({} requests in {:.3} s)", rate.ops, rate.seconds));
    text
}

fn latencies(classes: &[ClassReport]) -> String {
    let mut text = String::new();
    if classes.is_empty() {
        return text;
    }
    let row = |cells: [&str; 9]| cells.iter().map(|cell| format!("{cell:>11}")).collect::<String>();
    line(&mut text, "latency", &row(["requests", "min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"]));
    for class in classes {
        let latency = &class.latency_ns;
        let mean = std::time::Duration::try_from_secs_f64(latency.mean / 1e9).map_or(0, crate::units::nanoseconds);
        let values =
            [latency.min, mean, latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99, latency.max];
        let shown = values.map(show_latency);
        let mut cells = [""; 9];
        let requests = class.rate.ops.to_string();
        cells[0] = &requests;
        for (cell, value) in cells[1..].iter_mut().zip(&shown) {
            *cell = value;
        }
        line(&mut text, class.kind, &row(cells));
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "{name:<13} {value}").expect("a string takes every byte");
}
