//! Histograms of durations with log-linear buckets: they add up, and a value is known to within 1/32. Pure.
//!
//! Buckets are of microseconds: below 16 one each, above 16 for each power of two.

use std::collections::BTreeMap;

/// Buckets of a power of two, as a power of two.
const PRECISION_BITS: u32 = 4;
/// Number of buckets of a power of two.
const SUB_BUCKETS: u64 = 1 << PRECISION_BITS;
/// Maximum value, in microseconds: 12 days. Larger values count as this one.
const VALUE_MAX: u64 = (1 << 40) - 1;

/// A histogram of durations in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: BTreeMap<u32, u64>,
    sum: u64,
    max: u64,
}

/// As it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::history) struct HistogramRow {
    /// Bucket and count by turns.
    #[prost(uint64, repeated, tag = "1")]
    pub buckets: Vec<u64>,
    #[prost(uint64, tag = "2")]
    pub sum: u64,
    #[prost(uint64, tag = "3")]
    pub max: u64,
}

impl Histogram {
    /// Adds a duration in microseconds; a negative one counts as zero, since two clocks may differ.
    pub fn record(&mut self, micros: i64) {
        let value = u64::try_from(micros).unwrap_or(0).min(VALUE_MAX);
        *self.buckets.entry(bucket_of(value)).or_default() += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Adds another histogram.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// The longest, in seconds.
    pub fn max_seconds(&self) -> f64 {
        seconds(self.max as f64)
    }

    /// The mean, in seconds; 0 if there are none.
    pub fn mean_seconds(&self) -> f64 {
        seconds(self.sum as f64 / self.count().max(1) as f64)
    }

    /// The duration that a part of all durations does not exceed, in seconds; 0 if there are none.
    pub fn quantile_seconds(&self, part: f64) -> f64 {
        let rank = (self.count() as f64 * part).ceil().max(1.0);
        let mut seen = 0;
        for (bucket, count) in &self.buckets {
            seen += count;
            if seen as f64 >= rank {
                return seconds(middle_of(*bucket).min(self.max as f64));
            }
        }
        0.0
    }

    pub(in crate::history) fn to_row(&self) -> Option<HistogramRow> {
        let buckets = self.buckets.iter().flat_map(|(bucket, count)| [u64::from(*bucket), *count]).collect();
        let row = HistogramRow { buckets, sum: self.sum, max: self.max };
        Some(row).filter(|row| !row.buckets.is_empty())
    }

    pub(in crate::history) fn add_row(&mut self, row: &HistogramRow) {
        for pair in row.buckets.chunks_exact(2) {
            if let [bucket, count] = pair {
                *self.buckets.entry(u32::try_from(*bucket).unwrap_or(u32::MAX)).or_default() += count;
            }
        }
        self.sum = self.sum.saturating_add(row.sum);
        self.max = self.max.max(row.max);
    }
}

fn seconds(micros: f64) -> f64 {
    micros / 1e6
}

fn bucket_of(value: u64) -> u32 {
    let exponent = value.checked_ilog2().unwrap_or(0);
    let Some(shift) = exponent.checked_sub(PRECISION_BITS) else { return value as u32 };
    let offset = (value >> shift) - SUB_BUCKETS;
    ((u64::from(shift) + 1) * SUB_BUCKETS + offset) as u32
}

/// The middle of a bucket.
fn middle_of(bucket: u32) -> f64 {
    let (power, offset) = (u64::from(bucket) / SUB_BUCKETS, u64::from(bucket) % SUB_BUCKETS);
    let Some(shift) = power.checked_sub(1).filter(|shift| *shift > 0) else { return f64::from(bucket) };
    let width = 2f64.powi(i32::try_from(shift).unwrap_or(i32::MAX));
    ((SUB_BUCKETS + offset) as f64 + 0.5) * width
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        let mut last = 0;
        for value in 0..100_000_u64 {
            let bucket = bucket_of(value);
            assert!(bucket == last || bucket == last + 1, "{value}: bucket {bucket} after {last}");
            last = bucket;
        }
    }

    proptest! {
        /// Percentiles are at most 1/32 off, also of histograms that were added and stored.
        #[test]
        fn a_percentile_is_nearly_exact(mut values in prop::collection::vec(0_i64..10_000_000_000, 1..200), split in 0_usize..200) {
            let (mut whole, mut stored) = (Histogram::default(), Histogram::default());
            let (left, right) = values.split_at(split.min(values.len()));
            for half in [left, right] {
                let mut part = Histogram::default();
                half.iter().for_each(|value| part.record(*value));
                whole.add(&part);
                if let Some(row) = part.to_row() {
                    stored.add_row(&row);
                }
            }
            prop_assert_eq!(&whole, &stored);
            values.sort_unstable();
            for part in [0.5, 0.9, 0.99, 1.0] {
                let rank = (values.len() as f64 * part).ceil() as usize;
                let exact = values[rank - 1] as f64 / 1e6;
                let read = whole.quantile_seconds(part);
                prop_assert!((read - exact).abs() <= exact / 30.0 + 1e-6, "{} is {}, read as {}", part, exact, read);
            }
            prop_assert_eq!(whole.count(), values.len() as u64);
        }
    }

    #[test]
    fn durations_outside_of_the_range_count_as_its_ends() {
        let mut histogram = Histogram::default();
        histogram.record(-5);
        histogram.record(i64::MAX);
        assert_eq!(histogram.count(), 2);
        assert!((histogram.max_seconds() - VALUE_MAX as f64 / 1e6).abs() < f64::EPSILON);
        assert!(histogram.quantile_seconds(0.5).abs() < f64::EPSILON);
    }
}
