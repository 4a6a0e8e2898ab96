//! How many requests of a source are kept. Pure: the time is an argument.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// The most that are kept of one source in any second: enough to see what is wrong, too few to push everything else out of
/// the inbox or to load the log.
pub const PER_SECOND: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Sources that are remembered before those are forgotten of which nothing was kept lately.
const SOURCES_REMEMBERED: usize = 1024;

/// When the last requests of each source were kept.
#[derive(Debug, Default)]
pub struct Pace {
    kept: HashMap<String, VecDeque<Instant>>,
}

impl Pace {
    /// Whether one more of this source may be kept now; if so, it counts.
    pub fn take(&mut self, source: &str, now: Instant) -> bool {
        let recent = |at: &Instant| now.duration_since(*at) < SECOND;
        if self.kept.len() >= SOURCES_REMEMBERED {
            self.kept.retain(|_, times| times.back().is_some_and(recent));
        }
        let times = match self.kept.get_mut(source) {
            Some(times) => times,
            None => self.kept.entry(source.to_owned()).or_default(),
        };
        while times.front().is_some_and(|at| !recent(at)) {
            times.pop_front();
        }
        let granted = times.len() < PER_SECOND;
        if granted {
            times.push_back(now);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sources_do_not_share_their_pace_and_old_ones_are_forgotten() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let granted = (0..1000).filter(|_| pace.take("shop", start)).count();
        assert_eq!(granted, PER_SECOND);
        assert!(pace.take("bank", start));
        assert!(pace.take("shop", start + SECOND));
        for n in 0..SOURCES_REMEMBERED as u32 {
            pace.take(&n.to_string(), start + SECOND * (n + 2));
        }
        assert!(pace.kept.len() < SOURCES_REMEMBERED);
    }

    proptest! {
        /// However requests come, no second has more than its share, and a source that is slow enough loses none.
        #[test]
        fn no_second_has_more(gaps in prop::collection::vec(0u64..300, 1..200)) {
            let (mut pace, mut now) = (Pace::default(), Instant::now());
            let mut kept = Vec::new();
            for gap in &gaps {
                now += Duration::from_millis(*gap);
                if pace.take("shop", now) {
                    kept.push(now);
                }
            }
            for window in kept.windows(PER_SECOND + 1) {
                prop_assert!(window[PER_SECOND] - window[0] >= SECOND);
            }
            if gaps.iter().all(|gap| *gap >= 100) {
                prop_assert_eq!(kept.len(), gaps.len());
            }
        }
    }
}
