//! The result of a run: one structure for JSON, text and the page with pictures.

pub(crate) mod html;
mod svg;
pub(crate) mod text;

use std::time::Duration;

use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2Serializer},
};
use serde::Serialize;

use crate::{
    load::{End, Outcome, Pause},
    measure::{Class, Point},
    proof::Findings,
    readback::Reading,
    units::per_second,
};

/// Counts changes of the JSON's meaning.
pub(crate) const SCHEMA_VERSION: u32 = 1;
/// Ticks of the percentile table between each halving of the distance to 100 %.
const TICKS: u32 = 5;

/// A whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema_version: u32,
    pub(crate) tool: &'static str,
    pub(crate) version: &'static str,
    pub(crate) target: String,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// The command line, without the program's name.
    pub(crate) arguments: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) end: &'static str,
    pub(crate) end_reason: Option<String>,
    /// Requests that were acknowledged, by the time until the last acknowledgement.
    pub(crate) acknowledged: Rate,
    /// The same requests, by the time until the final flush was answered; null without one.
    pub(crate) durable: Option<Rate>,
    pub(crate) classes: Vec<ClassReport>,
    pub(crate) series: Series,
    pub(crate) errors: Vec<ErrorCount>,
    pub(crate) verify: Option<Verify>,
    pub(crate) pauses: Vec<Pause>,
    /// The longest time without an answer while requests were in flight, whatever the reason.
    pub(crate) longest_pause_seconds: f64,
    /// What happened meanwhile, as `--marks` says.
    pub(crate) marks: Vec<Mark>,
    /// Open loop: requests that were due and never sent.
    pub(crate) backlog: u64,
    pub(crate) cpu: Cpu,
}

/// Work by time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
}

/// One kind of request.
#[derive(Debug, Serialize)]
pub(crate) struct ClassReport {
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) rate: Rate,
    pub(crate) latency_ns: Latency,
    /// Pairs of percentile and latency in nanoseconds, up to the maximum.
    pub(crate) percentiles: Vec<(f64, u64)>,
    /// The histogram in HdrHistogram's V2 encoding, base64.
    pub(crate) histogram_v2: String,
}

/// The usual figures, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) min: u64,
    pub(crate) mean: f64,
    pub(crate) stdev: f64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) p99_99: u64,
    pub(crate) max: u64,
}

/// The course over time.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) interval_ms: u64,
    pub(crate) points: Vec<Point>,
}

/// How often an error occurred.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorCount {
    pub(crate) errno: i32,
    pub(crate) message: String,
    pub(crate) count: u64,
}

/// What verification found.
#[derive(Debug, Serialize)]
pub(crate) struct Verify {
    pub(crate) examined_sectors: u64,
    /// The read-back at the end; null when the run was cut short.
    pub(crate) read_back: Option<Reading>,
    pub(crate) findings: Findings,
}

/// Processor time of this tool.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Cpu {
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
    pub(crate) microseconds_per_op: f64,
}

/// What a report takes beside the outcome.
#[derive(Debug)]
pub(crate) struct Circumstances {
    pub(crate) target: String,
    pub(crate) started: u64,
    pub(crate) arguments: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) cpu: Cpu,
    pub(crate) verify: Option<Verify>,
    pub(crate) marks: Vec<Mark>,
}

/// A moment that is marked in the pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Mark {
    /// Since the measurement began.
    pub(crate) at_seconds: f64,
    pub(crate) label: String,
}

impl Report {
    /// The report about `outcome`.
    pub(crate) fn new(outcome: &Outcome, about: Circumstances) -> Self {
        let total = outcome.measure.total();
        let (end, end_reason) = describe(&outcome.end);
        let classes = outcome.measure.classes.iter().filter(|class| class.ops > 0);
        Self {
            schema_version: SCHEMA_VERSION,
            tool: "twinlog-load",
            version: env!("CARGO_PKG_VERSION"),
            target: about.target,
            started: about.started,
            arguments: about.arguments,
            seed: about.seed,
            end,
            end_reason,
            acknowledged: Rate::new(total, outcome.acknowledged_in),
            durable: outcome.durable_in.map(|elapsed| Rate::new(total, elapsed)),
            classes: classes.map(|class| ClassReport::new(class, outcome.acknowledged_in)).collect(),
            series: Series {
                interval_ms: u64::try_from(outcome.measure.interval.as_millis()).unwrap_or(u64::MAX),
                points: outcome.measure.points.clone(),
            },
            errors: outcome.errors.iter().map(|(errno, count)| ErrorCount::new(*errno, *count)).collect(),
            verify: about.verify,
            pauses: outcome.pauses.clone(),
            longest_pause_seconds: outcome.longest_pause.as_secs_f64(),
            marks: about.marks,
            backlog: outcome.backlog,
            cpu: about.cpu,
        }
    }
}

impl Rate {
    /// `ops` and `bytes` by the time they took.
    pub(crate) fn new((ops, bytes): (u64, u64), elapsed: Duration) -> Self {
        let (iops, bytes_per_second) = (per_second(ops, elapsed), per_second(bytes, elapsed));
        Self { ops, bytes, seconds: elapsed.as_secs_f64(), iops, bytes_per_second }
    }
}

impl ClassReport {
    fn new(class: &Class, elapsed: Duration) -> Self {
        let histogram = &class.latency;
        let percentiles =
            histogram.iter_quantiles(TICKS).map(|step| (step.quantile_iterated_to() * 100.0, step.value_iterated_to()));
        Self {
            kind: class.kind.name(),
            rate: Rate::new((class.ops, class.bytes), elapsed),
            latency_ns: Latency::new(histogram),
            percentiles: percentiles.collect(),
            histogram_v2: encode(histogram),
        }
    }
}

impl Latency {
    fn new(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            mean: histogram.mean(),
            stdev: histogram.stdev(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
        }
    }
}

impl ErrorCount {
    fn new(errno: i32, count: u64) -> Self {
        Self { errno, message: std::io::Error::from_raw_os_error(errno).to_string(), count }
    }
}

fn describe(end: &End) -> (&'static str, Option<String>) {
    match end {
        End::Finished => ("finished", None),
        End::Interrupted => ("interrupted", None),
        End::Errors => ("errors", None),
        End::Findings => ("findings", None),
        End::Lost(reason) => ("lost", Some(reason.clone())),
        End::Journal(reason) => ("journal", Some(reason.clone())),
    }
}

fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .expect("memory takes every byte, and counts fit into the encoding");
    base64(&bytes)
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_usize, |word, byte| word << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let symbol = if digit <= chunk.len() { ALPHABET[word >> (18 - 6 * digit) & 63] } else { b'=' };
            text.push(char::from(symbol));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hdrhistogram::serialization::Deserializer;

    use super::*;
    use crate::{engine::Kind, measure::Measure};

    fn outcome() -> Outcome {
        let start = Instant::now();
        let mut measure = Measure::new(start, Duration::from_secs(1));
        for number in 1..=1000_u64 {
            let now = start + Duration::from_micros(number * 1000);
            measure.record(Kind::Write, 4096, Duration::from_micros(number), now);
        }
        measure.record(Kind::Flush, 0, Duration::from_millis(3), start + Duration::from_secs(1));
        measure.finish();
        let pause = Pause { at_seconds: 0.2, seconds: 0.05, detection_seconds: 0.01, sent_again: 3 };
        Outcome {
            end: End::Lost("gone <now>".to_owned()),
            measure,
            acknowledged_in: Duration::from_secs(1),
            durable_in: Some(Duration::from_secs(2)),
            answers: 1000,
            errors: [(28, 2)].into(),
            pauses: vec![pause],
            longest_pause: Duration::from_millis(50),
            backlog: 7,
        }
    }

    fn report() -> Report {
        let marks = vec![Mark { at_seconds: 0.5, label: "a <died>".to_owned() }];
        let (target, arguments, cpu) = ("<t>".to_owned(), Vec::new(), Cpu::default());
        let about = Circumstances { target, started: 1, arguments, seed: 2, cpu, verify: None, marks };
        Report::new(&outcome(), about)
    }

    #[test]
    fn json_has_rates_percentiles_and_the_series() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["schema_version"], 1);
        assert_eq!(json["acknowledged"]["iops"], 1000.0);
        assert_eq!(json["durable"]["iops"], 500.0);
        assert_eq!((json["end"].as_str(), json["errors"][0]["errno"].as_i64()), (Some("lost"), Some(28)));
        let write = &json["classes"][0];
        let p99 = write["latency_ns"]["p99"].as_u64().unwrap();
        assert!((989_000..=991_000).contains(&p99), "{p99}");
        let table = write["percentiles"].as_array().unwrap();
        assert_eq!(table.last().unwrap()[0], 100.0);
        let points = json["series"]["points"].as_array().unwrap();
        assert_eq!(points.iter().map(|point| point["ops"].as_u64().unwrap()).sum::<u64>(), 1000);
        assert_eq!((points.len(), json["series"]["interval_ms"].as_u64()), (11, Some(100)));
    }

    #[test]
    fn the_encoded_histogram_is_the_histogram() {
        let outcome = outcome();
        let mut bytes = Vec::new();
        let histogram = &outcome.measure.classes[1].latency;
        V2Serializer::new().serialize(histogram, &mut bytes).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(&read, histogram);
        assert_eq!(encode(histogram), base64(&bytes));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn text_and_page_name_what_matters() {
        let report = report();
        let text = text::render(&report);
        for part in [
            "acknowledged",
            "durable",
            "p99.99",
            "1000 IOPS",
            "gone <now>",
            "No space left",
            "longest pause",
            "7 requests",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let page = html::render(&report);
        assert_eq!(page.matches("a &lt;died&gt;").count(), 2, "in both pictures over time");
        assert!(page.contains("&lt;t&gt;") && page.contains("gone &lt;now&gt;") && !page.contains("<t>"));
        assert!(
            page.matches("<svg").count() == 3 && !page.contains("http://") && !page.contains("https://"),
            "self-contained"
        );
    }
}
