//! From how many messages on a batch is faster than one publish after the other.
//!
//! A publish costs a separate sync, a batch one sync and its staging store: about 0.3 ms against 2.3 ms on one server,
//! 1.2 against 1.1 on three. Both depend on the disk, so the appender measures them: smoothed means of the time that a
//! single publish takes and of the time that a batch takes besides its messages.

use std::time::Duration;

/// Time that one more message adds to a batch, in microseconds: small compared with the measured times.
const BATCH_MESSAGE_US: f64 = 10.0;
/// The weight of a new measurement.
const WEIGHT: f64 = 0.1;
/// A batch is never tried below the first and always from the second on, so that both are measured now and then even
/// after a measurement that was distorted by an unusual state of the disk.
const BOUNDS: (f64, f64) = (2.0, 32.0);

#[derive(Debug)]
pub(super) struct Crossover {
    single_us: f64,
    batch_us: f64,
}

impl Default for Crossover {
    fn default() -> Self {
        Self { single_us: 350.0, batch_us: 2_300.0 }
    }
}

impl Crossover {
    pub fn prefers_batch(&self, messages: usize) -> bool {
        messages as f64 >= (self.batch_us / self.single_us).clamp(BOUNDS.0, BOUNDS.1)
    }

    pub fn singles_took(&mut self, messages: usize, elapsed: Duration) {
        smooth(&mut self.single_us, micros(elapsed) / messages.max(1) as f64);
    }

    pub fn batch_took(&mut self, messages: usize, elapsed: Duration) {
        smooth(&mut self.batch_us, micros(elapsed) - messages as f64 * BATCH_MESSAGE_US);
    }
}

fn micros(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e6
}

/// Moves a mean towards a measurement; the measurement is limited to between a tenth and ten times the mean.
fn smooth(mean: &mut f64, measured: f64) {
    let measured = measured.clamp(*mean / 10.0, *mean * 10.0).max(1.0);
    *mean += (measured - *mean) * WEIGHT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_near_the_measured_crossover() {
        let crossover = Crossover::default();
        assert!(!crossover.prefers_batch(1));
        assert!(!crossover.prefers_batch(6));
        assert!(crossover.prefers_batch(7));
    }

    #[test]
    fn follows_the_disk_within_bounds() {
        let mut replicated = Crossover::default();
        for _ in 0..100 {
            replicated.singles_took(1, Duration::from_micros(1_200));
            replicated.batch_took(8, Duration::from_micros(1_300));
        }
        assert!(replicated.prefers_batch(2));
        assert!(!replicated.prefers_batch(1), "one message needs no batch");
        let mut odd = Crossover::default();
        for _ in 0..1000 {
            odd.batch_took(40, Duration::from_secs(4));
        }
        assert!(odd.prefers_batch(32), "a bad hour of the disk does not end batches for ever");
    }
}
