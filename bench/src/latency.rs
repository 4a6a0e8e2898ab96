//! Latencies of many operations, as percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Resolution of one microsecond, up to ten minutes; longer times count as that.
const MICROS_MAX: u64 = 600_000_000;

/// Collects latencies.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    /// Half are below this.
    pub p50_ms: f64,
    /// 95 of 100 are below this.
    pub p95_ms: f64,
    /// 99 of 100 are below this.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Latencies {
    /// None yet.
    ///
    /// # Panics
    ///
    /// Never: the bounds are constants that the histogram takes.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("constant bounds"))
    }

    /// One more.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(MICROS_MAX).max(1));
    }

    /// All of another's.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The share, 0 to 1, of those that took at most so long; 0 of none.
    pub fn share_within(&self, limit: Duration) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let micros = u64::try_from(limit.as_micros()).unwrap_or(MICROS_MAX);
        self.0.percentile_below(micros) / 100.0
    }

    /// The percentiles; zeros of none.
    pub fn percentiles(&self) -> Percentiles {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Percentiles {
            p50_ms: ms(self.0.value_at_quantile(0.5)),
            p95_ms: ms(self.0.value_at_quantile(0.95)),
            p99_ms: ms(self.0.value_at_quantile(0.99)),
            max_ms: ms(self.0.max()),
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_what_is_within() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.share_within(Duration::from_secs(2)), 0.0);
        for seconds in [1, 1, 1, 3] {
            latencies.record(Duration::from_secs(seconds));
        }
        assert_eq!(latencies.share_within(Duration::from_secs(2)), 0.75);
    }
}
