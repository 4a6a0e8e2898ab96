//! Failed authentications, counted for each network.
//!
//! A key is always verified, so a caller with a valid key is served also from a network with many failures. Beyond the
//! limit an invalid key is answered RESOURCE_EXHAUSTED. The log gets one warning a minute for each network.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use weft_serve::network;

/// Period in which failures are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of a network in this period before they are limited.
const FAILURES_MAX: u32 = 60;
/// Maximum number of tracked networks. Beyond it the oldest windows are evicted.
const NETWORKS_MAX: usize = 10_000;

/// Failed authentications, by network.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<Option<IpAddr>, Window>>);

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    failures: u32,
}

/// Consequence of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// It is the first of its network in this minute.
    pub first: bool,
    /// The network is over its limit.
    pub limited: bool,
}

impl Failures {
    /// Counts a failure of a client; `None`: its address is not known.
    pub fn note(&self, client: Option<IpAddr>, now: Instant) -> Noted {
        let mut networks = self.0.lock();
        let network = client.map(network);
        if networks.len() >= NETWORKS_MAX && !networks.contains_key(&network) {
            make_room(&mut networks, now);
        }
        let window = networks.entry(network).or_insert(Window { since: now, failures: 0 });
        if now.saturating_duration_since(window.since) >= WINDOW {
            *window = Window { since: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        Noted { first: window.failures == 1, limited: window.failures > FAILURES_MAX }
    }
}

/// Forgets what has passed, and the older half where that is not enough.
fn make_room(networks: &mut HashMap<Option<IpAddr>, Window>, now: Instant) {
    networks.retain(|_, window| now.saturating_duration_since(window.since) < WINDOW);
    if networks.len() >= NETWORKS_MAX {
        let mut starts: Vec<_> = networks.values().map(|window| window.since).collect();
        starts.sort_unstable();
        let middle = starts[starts.len() / 2];
        networks.retain(|_, window| window.since > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_network_is_warned_of_once_a_minute_and_limited() {
        let (failures, start) = (Failures::default(), Instant::now());
        let first = failures.note(address("2001:db8::1"), start);
        assert_eq!(first, Noted { first: true, limited: false });
        for _ in 1..FAILURES_MAX {
            assert_eq!(failures.note(address("2001:db8::2"), start), Noted { first: false, limited: false });
        }
        assert_eq!(failures.note(address("2001:db8::3"), start), Noted { first: false, limited: true });
        assert!(failures.note(address("192.0.2.1"), start).first, "another network");
        assert!(!failures.note(address("::ffff:192.0.2.1"), start).first, "the same network, mapped");
        assert_eq!(failures.note(address("2001:db8::1"), start + WINDOW), Noted { first: true, limited: false });
    }

    #[test]
    fn the_networks_are_bounded() {
        let (failures, start) = (Failures::default(), Instant::now());
        for number in 0..NETWORKS_MAX as u32 + 10 {
            let at = start + Duration::from_micros(number.into());
            failures.note(Some(IpAddr::from(number.to_be_bytes())), at);
        }
        assert!(failures.0.lock().len() <= NETWORKS_MAX);
        let latest = IpAddr::from((NETWORKS_MAX as u32 + 9).to_be_bytes());
        assert!(!failures.note(Some(latest), start).first, "the newest are remembered");
    }
}
