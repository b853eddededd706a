//! A result as one page: no script, nothing loaded from elsewhere.

use std::time::{Duration, UNIX_EPOCH};

use super::{
    Report,
    svg::{Line, Plot, Tick, round_ticks},
    text,
};
use crate::{
    measure::Point,
    units::{show_count, show_latency},
};

/// More points than this are drawn in groups.
const POINTS_LIMIT: usize = 900;

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.3em; } h2 { font-size: 1.05em; margin: 1.6em 0 .3em; font-weight: 600; }
pre { overflow-x: auto; padding: .8em; border: 1px solid #8884; border-radius: 6px; font-size: 12.5px; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; }
.grid { stroke: #8884; } .mark { stroke: currentColor; stroke-dasharray: 2 3; } polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.c0 { stroke: #1f77b4; color: #1f77b4; } .c1 { stroke: #e67e22; color: #e67e22; } .c2 { stroke: #c0392b; color: #c0392b; }
.dashed { stroke-dasharray: 4 4; }
.c3 { stroke: #27ae60; color: #27ae60; } .c4 { stroke: #8e44ad; color: #8e44ad; }
.key span { margin-right: 1.2em; } .key b { font-weight: 600; }
";
const CLASSES: [&str; 5] = ["c0", "c1", "c2", "c3", "c4"];

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let title = format!("twinlog-load: {}", report.target);
    let command = format!("twinlog-load {}", report.arguments.join(" "));
    let sections = [
        section("Requests per second", &[("c0", "acknowledged")], &throughput(report)),
        section("Latency over time", &[("c0", "p50"), ("c1", "p99"), ("c2", "max")], &latency(report)),
        section("Latency by percentile", &kinds(report), &percentiles(report)),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body><h1>{}</h1><p>{}</p><pre class=\"command\">{}</pre><pre>{}</pre>{}</body></html>\n",
        escape(&title),
        escape(&title),
        escape(&format!("{}, {} {}, seed {}", started(report), report.tool, report.version, report.seed)),
        escape(&command),
        escape(&text::render(report)),
        sections.concat(),
    )
}

fn section(title: &str, key: &[(&str, &str)], plot: &Plot) -> String {
    let key: String =
        key.iter().map(|(class, name)| format!("<span class=\"{class}\"><b>&#9472; {name}</b></span>")).collect();
    format!("<h2>{title}</h2><div class=\"key\">{key}</div>{}", plot.render())
}

fn kinds(report: &Report) -> Vec<(&'static str, &'static str)> {
    CLASSES.into_iter().zip(report.classes.iter().map(|class| class.kind)).collect()
}

fn throughput(report: &Report) -> Plot {
    let scale = 1000.0 / report.series.interval_ms.max(1) as f64;
    let points =
        grouped(report, |group| group.iter().map(|point| point.ops as f64).sum::<f64>() / group.len() as f64 * scale);
    let top = points.iter().map(|(_, value)| *value).fold(1.0, f64::max) * 1.05;
    over_time(vec![Line { class: "c0", points }], report, round_ticks(top, show_count), (0.0, top))
}

fn latency(report: &Report) -> Plot {
    let of = |class: &'static str, field: fn(&Point) -> u64| Line {
        class,
        points: grouped(report, |group| logarithm(group.iter().map(field).max().unwrap_or(0)))
            .into_iter()
            .filter(|(_, value)| *value > 0.0)
            .collect(),
    };
    // Of fewer than a hundred requests the 99th percentile is the largest: the dashes of the one let the other be seen.
    let lines =
        vec![of("c0", |point| point.p50_ns), of("c1", |point| point.p99_ns), of("c2 dashed", |point| point.max_ns)];
    let (ticks, y) = decades(&lines);
    over_time(lines, report, ticks, y)
}

fn percentiles(report: &Report) -> Plot {
    let lines: Vec<Line> = CLASSES
        .into_iter()
        .zip(&report.classes)
        .map(|(class, kind)| Line {
            class,
            points: kind
                .percentiles
                .iter()
                .map(|(percentile, value)| (nines(*percentile), logarithm(*value)))
                .collect(),
        })
        .collect();
    let (y_ticks, y) = decades(&lines);
    let x_ticks =
        [0.0, 90.0, 99.0, 99.9, 99.99, 99.999].map(|percentile| (nines(percentile), format!("{percentile} %")));
    Plot { lines, x_ticks: x_ticks.to_vec(), y_ticks, marks: Vec::new(), x: (0.0, 5.3), y }
}

fn over_time(lines: Vec<Line>, report: &Report, y_ticks: Vec<Tick>, y: (f64, f64)) -> Plot {
    let seconds = whole_points(report).len() as f64 * report.series.interval_ms as f64 / 1000.0;
    let marks = report.marks.iter().filter(|mark| (0.0..=seconds).contains(&mark.at_seconds));
    let marks = marks.map(|mark| (mark.at_seconds, escape(&mark.label))).collect();
    Plot { lines, x_ticks: round_ticks(seconds, |value| format!("{value} s")), y_ticks, marks, x: (0.0, seconds), y }
}

/// One value per point of the series, or per group of points when there are very many; the first is the time in seconds.
fn grouped(report: &Report, value: impl Fn(&[Point]) -> f64) -> Vec<(f64, f64)> {
    let points = whole_points(report);
    let size = points.len().div_ceil(POINTS_LIMIT).max(1);
    let step = size as f64 * report.series.interval_ms as f64 / 1000.0;
    points.chunks(size).enumerate().map(|(number, group)| ((number as f64 + 0.5) * step, value(group))).collect()
}

/// The points but for a last one that the end of the run cut short, which would look like a drop.
fn whole_points(report: &Report) -> &[Point] {
    let points = &report.series.points;
    let end = |number: usize| (number + 1) as f64 * report.series.interval_ms as f64 / 1000.0;
    let whole = (0..points.len()).take_while(|number| end(*number) <= report.acknowledged.seconds).count();
    &points[..whole.max(points.len().min(1))]
}

/// Ticks at the powers of ten that `lines` span, and their range.
fn decades(lines: &[Line]) -> (Vec<Tick>, (f64, f64)) {
    let values = || lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value));
    let (first, last) = (values().fold(f64::MAX, f64::min).min(12.0).floor(), values().fold(0.0, f64::max).ceil());
    let steps = (0_u32..=13).filter(|power| (first..=last).contains(&f64::from(*power)));
    (steps.map(|power| (f64::from(power), show_latency(10_u64.pow(power)))).collect(), (first, last))
}

fn logarithm(nanoseconds: u64) -> f64 {
    if nanoseconds == 0 { 0.0 } else { (nanoseconds as f64).log10() }
}

/// 90 % is 1, 99 % is 2, 99.9 % is 3; 100 % is the right edge.
fn nines(percentile: f64) -> f64 {
    if percentile >= 100.0 { 5.3 } else { -(1.0 - percentile / 100.0).log10() }
}

fn started(report: &Report) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(report.started))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
