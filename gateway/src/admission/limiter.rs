//! One limit, counted for each key on its own.

use std::{hash::Hash, time::Duration};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::{StateInformationMiddleware, StateSnapshot},
};

use super::{
    limit_state::LimitState,
    rate::Rate,
    two_generation_map::{Asked, Generations},
};

/// Keys of one generation, of which there are two: some MiB, and more addresses than one attacker has.
const KEYS_MAX: usize = 32 * 1024;

/// Counts by key.
#[derive(Debug)]
pub(super) struct Limiter<K: Hash + Eq + Clone, C: Clock = MonotonicClock> {
    limiter: RateLimiter<Asked<K>, Generations<K>, C, StateInformationMiddleware>,
}

/// One request too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// How the key stands.
    pub limit_state: LimitState,
    /// When the next one may come.
    pub wait: Duration,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// `None` where there is no limit.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        rate.quota().map(|quota| Self::with(quota, KEYS_MAX, MonotonicClock))
    }
}

impl<K: Hash + Eq + Clone, C: Clock> Limiter<K, C> {
    fn with(quota: Quota, keys_max: usize, clock: C) -> Self {
        Self { limiter: RateLimiter::new(quota, Generations::new(keys_max), clock) }
    }

    /// Counts one request; how the key stands after it.
    pub(super) fn take(&self, key: K) -> Result<LimitState, Exceeded> {
        self.check(&Asked::Take(key), 0)
    }

    /// Whether one more could be counted; how the key stands before it.
    pub(super) fn look(&self, key: K) -> Result<LimitState, Exceeded> {
        self.check(&Asked::Look(key), 1)
    }

    /// `untaken` of what the limiter has subtracted is still there.
    fn check(&self, asked: &Asked<K>, untaken: u32) -> Result<LimitState, Exceeded> {
        match self.limiter.check_key(asked) {
            Ok(state) => Ok(limit_state(&state, untaken)),
            Err(until) => Err(self.exceeded(&until)),
        }
    }

    fn exceeded(&self, until: &NotUntil<C::Instant>) -> Exceeded {
        let quota = until.quota();
        let wait = until.wait_time_from(self.limiter.clock().now());
        let reset_in = wait + quota.burst_size_replenished_in().saturating_sub(quota.replenish_interval());
        Exceeded { limit_state: LimitState { limit: quota.burst_size().get(), remaining: 0, reset_in }, wait }
    }
}

fn limit_state(state: &StateSnapshot, untaken: u32) -> LimitState {
    let quota = state.quota();
    let limit = quota.burst_size().get();
    let remaining = state.remaining_burst_capacity().saturating_add(untaken).min(limit);
    LimitState { limit, remaining, reset_in: quota.replenish_interval().saturating_mul(limit - remaining) }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    fn limiter(rate: &str) -> (Limiter<u8, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let quota = rate.parse::<Rate>().unwrap().quota().unwrap();
        (Limiter::with(quota, 4, clock.clone()), clock)
    }

    /// The whole number at once, then one at a time as the period brings it back.
    #[test]
    fn a_limit_is_used_up_and_comes_back() {
        let (limiter, clock) = limiter("3/min");
        for remaining in [2, 1, 0] {
            assert_eq!(limiter.look(1).unwrap().remaining, remaining + 1);
            assert_eq!(limiter.take(1).unwrap().remaining, remaining);
        }
        let exceeded = limiter.take(1).unwrap_err();
        assert_eq!((exceeded.wait, exceeded.limit_state.reset_in), (Duration::from_secs(20), Duration::from_secs(60)));
        assert_eq!(limiter.look(1).unwrap_err(), exceeded);
        assert_eq!(limiter.take(2).unwrap().remaining, 2, "another key");
        clock.advance(exceeded.wait - Duration::from_millis(1));
        assert!(limiter.take(1).is_err());
        clock.advance(Duration::from_millis(1));
        assert_eq!(limiter.take(1).unwrap().remaining, 0);
        assert!(limiter.take(1).is_err());
        clock.advance(Duration::from_secs(60));
        let full = limiter.look(1).unwrap();
        assert_eq!((full.limit, full.remaining, full.reset_in), (3, 3, Duration::ZERO));
    }

    proptest! {
        /// However requests come: in any time no more than the number and what that time brings back, and who waits as long as
        /// told is taken.
        #[test]
        fn never_more_than_the_rate(pauses in prop::collection::vec(0u64..3_000, 1..200)) {
            const COUNT: u64 = 10;
            let (limiter, clock) = limiter("10/s");
            let (mut taken, mut elapsed) = (0, 0);
            for pause in pauses {
                clock.advance(Duration::from_millis(pause));
                elapsed += pause;
                let could = limiter.look(1).is_ok();
                match limiter.take(1) {
                    Ok(_) => taken += 1,
                    Err(exceeded) => {
                        prop_assert!(exceeded.wait > Duration::ZERO && exceeded.wait <= Duration::from_millis(100));
                    }
                }
                prop_assert_eq!(could, limiter.look(1).is_ok() || could);
                prop_assert!(taken <= COUNT + elapsed * COUNT / 1000);
            }
        }
    }
}
