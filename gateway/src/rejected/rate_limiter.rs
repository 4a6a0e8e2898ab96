//! Rate limits of the refused requests that are kept. Pure: the time is an argument.
//!
//! The inbox drops its oldest entries when it is full, so a client that fills it hides earlier ones. Unauthenticated requests
//! have a share of the inbox per network and one in all, each of which refills within a day, so that they never push out the
//! refused requests of authenticated senders.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

/// The most that are kept of one source in any second: enough to see what is wrong, too few to load the log.
pub const PER_SECOND: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Sources that are remembered before those are forgotten of which nothing was kept lately.
const SOURCES_REMEMBERED: usize = 1024;
/// Networks that are remembered before those are forgotten that have all of their share back.
const NETWORKS_REMEMBERED: usize = 4096;
/// The part of the inbox that unauthenticated requests may fill in a day, and the part of that of one network.
const UNAUTHENTICATED_PARTS: f64 = 2.0;
const NETWORK_PARTS: f64 = 8.0;
/// In what time a share that was used up has come back.
const SHARE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The sender of a refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Its signature or key was right.
    Authenticated,
    /// Its network, as far as that is known.
    Unauthenticated(Option<IpAddr>),
}

/// A refused request.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'o> {
    /// The source that it was sent to.
    pub source: &'o str,
    /// The sender, by which the request uses up a share of the inbox.
    pub sender: Sender,
    /// Size in the inbox, in bytes.
    pub bytes: usize,
}

/// When the last requests of each source were kept, and what is left of the shares.
#[derive(Debug)]
pub struct RateLimiter {
    kept: HashMap<String, VecDeque<Instant>>,
    /// Share of all unauthenticated requests, in bytes.
    share: f64,
    unauthenticated: Bucket,
    networks: HashMap<IpAddr, Bucket>,
}

/// Bytes that have been used of a share, and when that was so.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    const FULL: Self = Self { used: 0.0, at: None };

    /// Used part of `share` at `now`.
    fn used(&self, share: f64, now: Instant) -> f64 {
        let elapsed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (self.used - share * elapsed.as_secs_f64() / SHARE_TIME.as_secs_f64()).max(0.0)
    }

    fn has(&self, bytes: f64, share: f64, now: Instant) -> bool {
        self.used(share, now) + bytes <= share
    }

    fn take(&mut self, bytes: f64, share: f64, now: Instant) {
        *self = Self { used: self.used(share, now) + bytes, at: Some(now) };
    }
}

impl RateLimiter {
    /// For an inbox of this size.
    pub fn new(inbox_bytes: u64) -> Self {
        let share = inbox_bytes as f64 / UNAUTHENTICATED_PARTS;
        Self { kept: HashMap::new(), share, unauthenticated: Bucket::FULL, networks: HashMap::new() }
    }

    /// Whether one more may be kept now; if so, it counts.
    pub fn take(&mut self, offer: Offer<'_>, now: Instant) -> bool {
        let Sender::Unauthenticated(address) = offer.sender else { return self.take_of_source(offer.source, now) };
        let (bytes, share, part) = (offer.bytes as f64, self.share, self.share / NETWORK_PARTS);
        if self.networks.len() >= NETWORKS_REMEMBERED {
            self.networks.retain(|_, bucket| bucket.used(part, now) > 0.0);
        }
        let network = address.map(weft_serve::network);
        let of_network = network.and_then(|network| self.networks.get(&network)).copied().unwrap_or(Bucket::FULL);
        let room = self.unauthenticated.has(bytes, share, now)
            && (network.is_none() || of_network.has(bytes, part, now))
            && self.networks.len() < NETWORKS_REMEMBERED;
        if !room || !self.take_of_source(offer.source, now) {
            return false;
        }
        self.unauthenticated.take(bytes, share, now);
        if let Some(network) = network {
            self.networks.entry(network).or_insert(Bucket::FULL).take(bytes, part, now);
        }
        true
    }

    fn take_of_source(&mut self, source: &str, now: Instant) -> bool {
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

    fn of(source: &str) -> Offer<'_> {
        Offer { source, sender: Sender::Authenticated, bytes: 1000 }
    }

    /// However many there are without a signature, in a day they fill half of the inbox, and one network a part of that.
    #[test]
    fn unauthenticated_requests_use_at_most_half_of_the_room() {
        let (mut rate_limiter, mut now) = (RateLimiter::new(1_000_000), Instant::now());
        let mut flood = |networks: u8, hours: u64| {
            let mut kept = 0;
            for _ in 0..hours * 3600 {
                now += SECOND;
                for last in 0..networks {
                    let sender = Sender::Unauthenticated(Some(IpAddr::from([192, 0, 2, last])));
                    kept += usize::from(rate_limiter.take(Offer { sender, ..of("shop") }, now));
                }
                assert!(rate_limiter.take(of("shop"), now), "what is authenticated is kept");
            }
            kept
        };
        let one = flood(1, 1);
        assert!((62..=66).contains(&one), "{one}");
        let all = flood(9, 1);
        assert!((455..=490).contains(&all), "{all}");
        let day = flood(9, 24);
        assert!(day <= 510, "{day}");
    }

    #[test]
    fn sources_do_not_share_their_pace_and_old_ones_are_forgotten() {
        let (mut rate_limiter, start) = (RateLimiter::new(u64::MAX), Instant::now());
        let granted = (0..1000).filter(|_| rate_limiter.take(of("shop"), start)).count();
        assert_eq!(granted, PER_SECOND);
        assert!(rate_limiter.take(of("bank"), start));
        assert!(rate_limiter.take(of("shop"), start + SECOND));
        for n in 0..SOURCES_REMEMBERED as u32 {
            rate_limiter.take(of(&n.to_string()), start + SECOND * (n + 2));
        }
        assert!(rate_limiter.kept.len() < SOURCES_REMEMBERED);
    }

    proptest! {
        /// However requests come, no second has more than its share, and a source that is slow enough loses none.
        #[test]
        fn at_most_the_rate_is_kept_in_any_second(gaps in prop::collection::vec(0u64..300, 1..200)) {
            let (mut rate_limiter, mut now) = (RateLimiter::new(u64::MAX), Instant::now());
            let mut kept = Vec::new();
            for gap in &gaps {
                now += Duration::from_millis(*gap);
                if rate_limiter.take(of("shop"), now) {
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
