//! Latencies and their course over time: one histogram per kind of request, one point per interval.
//!
//! Latencies are in nanoseconds with three significant digits, from the intended send time (the actual one in a closed loop) to the
//! answer. Recording allocates only when a new interval begins.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::{engine::Kind, units::nanoseconds};

/// Longer latencies are recorded as this: one hour, in nanoseconds.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// The shortest interval of the series.
const INTERVAL: Duration = Duration::from_millis(100);
/// The most points: an hour at the shortest interval. Longer runs get longer intervals.
const POINTS_LIMIT: u32 = 36_000;

/// One interval of the time series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Point {
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) max_ns: u64,
}

/// All requests of one kind.
pub(crate) struct Class {
    pub(crate) kind: Kind,
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) latency: Histogram<u64>,
}

/// What a run measured.
pub(crate) struct Measure {
    pub(crate) classes: Vec<Class>,
    pub(crate) points: Vec<Point>,
    pub(crate) interval: Duration,
    current: Point,
    current_latency: Histogram<u64>,
    current_end: Instant,
}

impl Measure {
    /// A measurement that starts at `start` and is expected to take `planned`.
    pub(crate) fn new(start: Instant, planned: Duration) -> Self {
        let classes = Kind::ALL.map(|kind| Class { kind, ops: 0, bytes: 0, latency: histogram(3) });
        let interval = INTERVAL.max(planned / POINTS_LIMIT);
        Self {
            classes: Vec::from(classes),
            points: Vec::new(),
            interval,
            current: Point::default(),
            current_latency: histogram(2),
            current_end: start + interval,
        }
    }

    /// Records one answer.
    pub(crate) fn record(&mut self, kind: Kind, bytes: u64, latency: Duration, now: Instant) {
        self.advance(now);
        let latency_ns = nanoseconds(latency);
        let class = &mut self.classes[position(kind)];
        class.ops += 1;
        class.bytes += bytes;
        class.latency.saturating_record(latency_ns);
        if kind != Kind::Flush {
            self.current.ops += 1;
            self.current.bytes += bytes;
            self.current_latency.saturating_record(latency_ns);
        }
    }

    /// Closes every interval that ended before `now`.
    pub(crate) fn advance(&mut self, now: Instant) {
        while now >= self.current_end && self.points.len() < 2 * POINTS_LIMIT as usize {
            self.close();
            self.current_end += self.interval;
        }
    }

    /// Closes the last interval.
    pub(crate) fn finish(&mut self) {
        if self.current.ops > 0 {
            self.close();
        }
    }

    /// Answers and bytes of all kinds but flush.
    pub(crate) fn total(&self) -> (u64, u64) {
        let counted = self.classes.iter().filter(|class| class.kind != Kind::Flush);
        counted.fold((0, 0), |(ops, bytes), class| (ops + class.ops, bytes + class.bytes))
    }

    fn close(&mut self) {
        if self.current.ops == 0 {
            self.points.push(Point::default());
            return;
        }
        let latency = &self.current_latency;
        let (p50_ns, p99_ns) = (latency.value_at_quantile(0.5), latency.value_at_quantile(0.99));
        self.points.push(Point { p50_ns, p99_ns, max_ns: latency.max(), ..self.current });
        self.current = Point::default();
        self.current_latency.reset();
    }
}

fn position(kind: Kind) -> usize {
    Kind::ALL.iter().position(|other| *other == kind).expect("all kinds are listed")
}

fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, digits).expect("the bounds are constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_land_in_their_interval_and_silence_gives_empty_points() {
        let start = Instant::now();
        let mut measure = Measure::new(start, Duration::from_secs(1));
        let at = |ms| start + Duration::from_millis(ms);
        measure.record(Kind::Write, 4096, Duration::from_micros(10), at(50));
        measure.record(Kind::Read, 512, Duration::from_micros(20), at(99));
        measure.record(Kind::Flush, 0, Duration::from_micros(20), at(99));
        measure.record(Kind::Write, 4096, Duration::from_secs(7200), at(350));
        measure.finish();
        let ops: Vec<_> = measure.points.iter().map(|point| (point.ops, point.bytes)).collect();
        assert_eq!(ops, [(2, 4608), (0, 0), (0, 0), (1, 4096)]);
        assert!(measure.points[3].max_ns >= LONGEST_NS, "longer latencies are kept at the bound");
        assert_eq!(measure.total(), (3, 8704));
    }

    #[test]
    fn long_runs_have_a_bounded_number_of_points() {
        let start = Instant::now();
        let mut measure = Measure::new(start, Duration::from_secs(10 * 3600));
        assert_eq!(measure.interval, Duration::from_secs(1));
        measure.advance(start + Duration::from_secs(30 * 24 * 3600));
        assert_eq!(measure.points.len(), 2 * POINTS_LIMIT as usize);
    }
}
