//! Counters and latencies, for people.

use crate::node::admin::OperationStatus;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Largest latency told apart: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Counters of one kind of operation.
#[derive(Clone, Debug)]
pub struct OperationFigures {
    count: u64,
    bytes: u64,
    total_ns: u64,
    latencies: Histogram<u64>,
}

impl Default for OperationFigures {
    fn default() -> Self {
        // Two significant digits: 1 % resolution in some 20 KiB.
        let latencies = Histogram::new_with_bounds(100, LATENCY_NS_MAX, 2).expect("bounds that the crate allows");
        Self { count: 0, bytes: 0, total_ns: 0, latencies }
    }
}

impl OperationFigures {
    /// One operation has ended.
    pub fn record(&mut self, bytes: u64, latency: Duration) {
        self.count += 1;
        self.bytes += bytes;
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.total_ns = self.total_ns.saturating_add(latency_ns);
        self.latencies.saturating_record(latency_ns);
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> OperationStatus {
        OperationStatus {
            count: self.count,
            bytes: self.bytes,
            p50_ns: self.latencies.value_at_quantile(0.5),
            p99_ns: self.latencies.value_at_quantile(0.99),
            p999_ns: self.latencies.value_at_quantile(0.999),
            p9999_ns: self.latencies.value_at_quantile(0.9999),
            max_ns: self.latencies.max(),
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
