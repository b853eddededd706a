//! Counters and latencies, for people.

use crate::node::admin::OperationStatus;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Largest latency told apart: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Counters of one kind of operation.
#[derive(Clone, Debug, Default)]
pub struct OperationFigures {
    count: u64,
    bytes: u64,
    total_ns: u64,
    /// `None` before the first operation: most volumes of most nodes see few kinds of them.
    latencies: Option<Histogram<u64>>,
}

/// No latencies yet. Two significant digits: 1 % resolution in some 20 KiB.
fn no_latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(100, LATENCY_NS_MAX, 2).expect("bounds that the crate allows")
}

impl OperationFigures {
    /// One operation has ended.
    pub fn record(&mut self, bytes: u64, latency: Duration) {
        self.count += 1;
        self.bytes += bytes;
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.total_ns = self.total_ns.saturating_add(latency_ns);
        self.latencies.get_or_insert_with(no_latencies).saturating_record(latency_ns);
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> OperationStatus {
        let Some(latencies) = &self.latencies else { return OperationStatus::default() };
        OperationStatus {
            count: self.count,
            bytes: self.bytes,
            p50_ns: latencies.value_at_quantile(0.5),
            p99_ns: latencies.value_at_quantile(0.99),
            p999_ns: latencies.value_at_quantile(0.999),
            p9999_ns: latencies.value_at_quantile(0.9999),
            max_ns: latencies.max(),
            total_ns: self.total_ns,
        }
    }
}

/// Counters of one volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeFigures {
    /// Reads.
    pub reads: OperationFigures,
    /// Changes.
    pub writes: OperationFigures,
}
