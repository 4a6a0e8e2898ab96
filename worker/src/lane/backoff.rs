//! Retry policies: when a failed attempt is retried.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// The waits between the attempts of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum RetryPolicy {
    /// The n-th retry waits `min(max, base * factor^(n - 1)) * uniform(1 - jitter, 1 + jitter)`.
    Exponential {
        /// Retries after the first attempt.
        max_retries: u32,
        /// Wait before the first retry.
        base: Duration,
        /// Growth; 1 or more.
        factor: f64,
        /// The longest wait before jitter.
        max: Duration,
        /// 0 to 1.
        jitter: f64,
    },
    /// These waits, one for each retry, without jitter.
    Schedule(Vec<Duration>),
}

impl RetryPolicy {
    /// Number of retries after the first attempt.
    pub fn max_retries(&self) -> u32 {
        match self {
            Self::Exponential { max_retries, .. } => *max_retries,
            Self::Schedule(waits) => u32::try_from(waits.len()).unwrap_or(u32::MAX),
        }
    }

    /// The wait before the `retry`-th retry (from 1), without jitter; `None` when there is no such retry.
    pub fn base_delay(&self, retry: u32) -> Option<Duration> {
        if retry == 0 || retry > self.max_retries() {
            return None;
        }
        match self {
            Self::Exponential { base, factor, max, .. } => {
                let exponent = i32::try_from(retry - 1).unwrap_or(i32::MAX);
                let seconds = base.as_secs_f64() * factor.powi(exponent);
                // Also catches infinity and NaN, which from_secs_f64 would panic on.
                Some(if seconds < max.as_secs_f64() { Duration::from_secs_f64(seconds) } else { *max })
            }
            Self::Schedule(waits) => waits.get(retry as usize - 1).copied(),
        }
    }

    /// The wait before the `retry`-th retry, with jitter; `None` when the retries are exhausted. `retry_after`, the receiver's
    /// request, replaces a shorter wait.
    pub fn delay(&self, retry: u32, retry_after: Option<Duration>, rng: &mut impl Rng) -> Option<Duration> {
        let wait = self.base_delay(retry)?;
        let wait = match self {
            Self::Exponential { jitter, .. } if *jitter > 0.0 => {
                wait.mul_f64(rng.random_range(1.0 - jitter..=1.0 + jitter).max(0.0))
            }
            _ => wait,
        };
        Some(retry_after.map_or(wait, |asked| wait.max(asked)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn policy(max_retries: u32, base_ms: u64, factor: f64, max_ms: u64, jitter: f64) -> RetryPolicy {
        RetryPolicy::Exponential {
            max_retries,
            base: Duration::from_millis(base_ms),
            factor,
            max: Duration::from_millis(max_ms),
            jitter,
        }
    }

    #[test]
    fn waits_grow_to_the_cap_and_end() {
        let policy = policy(4, 1000, 2.0, 5000, 0.0);
        let waits: Vec<_> = (0..7).map(|retry| policy.base_delay(retry).map(|wait| wait.as_millis())).collect();
        assert_eq!(waits, [None, Some(1000), Some(2000), Some(4000), Some(5000), None, None]);
    }

    #[test]
    fn a_schedule_has_no_jitter() {
        let policy = RetryPolicy::Schedule(vec![Duration::from_secs(5), Duration::from_secs(300)]);
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(policy.delay(1, None, &mut rng), Some(Duration::from_secs(5)));
        assert_eq!(policy.delay(2, Some(Duration::from_secs(400)), &mut rng), Some(Duration::from_secs(400)));
        assert_eq!(policy.delay(3, None, &mut rng), None);
    }

    proptest! {
        /// L5: every wait is within the policy's bounds, for any values.
        #[test]
        fn waits_stay_within_jitter(
            retry in 1u32..2000, base in 1u64..100_000, factor in 1.0f64..10.0, max in 1u64..10_000_000,
            jitter in 0.0f64..=1.0, seed in any::<u64>(),
        ) {
            let policy = policy(u32::MAX, base, factor, max, jitter);
            let wait = policy.delay(retry, None, &mut StdRng::seed_from_u64(seed)).unwrap().as_secs_f64();
            let center = policy.base_delay(retry).unwrap().as_secs_f64();
            prop_assert!(center <= max as f64 / 1000.0 + 1e-9);
            prop_assert!(wait >= center * (1.0 - jitter) - 1e-6 && wait <= center * (1.0 + jitter) + 1e-6);
        }
    }
}
