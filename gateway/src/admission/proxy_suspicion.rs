//! Detection of a proxy that is not trusted: nearly all requests come from one address although no proxy is configured, so all
//! of its clients share the limits of one address.

use std::{net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics;

/// Requests that are looked at together: fewer say little.
const WINDOW: u32 = 1000;
/// An address that makes more than this part of them stands out, in percent.
const SHARE_MAX: u32 = 90;
/// Between two warnings.
const PAUSE: Duration = Duration::from_secs(3600);

/// Counts requests by address where no proxy is trusted.
#[derive(Debug, Default)]
pub(super) struct ProxySuspicion {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    requests: u32,
    /// The only address that can have made more than half of them: each request of another takes one of its away.
    candidate: Option<IpAddr>,
    ahead: u32,
    /// The candidate's requests since it became the candidate: with so large a share that is with the first ones.
    own: u32,
    warned_at: Option<Instant>,
}

/// Result of a full window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Finding {
    address: IpAddr,
    /// In percent.
    share: u32,
    warn: bool,
}

impl ProxySuspicion {
    /// Takes note of a request.
    pub fn note(&self, address: IpAddr) {
        let found = self.window.lock().note(address, Instant::now());
        let Some(Finding { address, share, warn }) = found else { return };
        ::metrics::gauge!(metrics::LARGEST_ADDRESS_SHARE).set(f64::from(share) / 100.0);
        if warn {
            tracing::warn!(
                %address,
                "{share} % of the last {WINDOW} requests came from one address; if it is a proxy's, name it in [gateway] \
                 trusted_proxies: until then all of its clients share the limits of one address"
            );
        }
    }
}

impl Window {
    fn note(&mut self, address: IpAddr, now: Instant) -> Option<Finding> {
        self.requests += 1;
        if self.ahead == 0 {
            (self.candidate, self.own) = (Some(address), 0);
        }
        if self.candidate == Some(address) {
            self.ahead += 1;
            self.own += 1;
        } else {
            self.ahead -= 1;
        }
        if self.requests < WINDOW {
            return None;
        }
        let (address, share) = (self.candidate?, self.own * 100 / WINDOW);
        let paused = self.warned_at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        let warn = share > SHARE_MAX && !paused;
        *self = Self { warned_at: if warn { Some(now) } else { self.warned_at }, ..Self::default() };
        Some(Finding { address, share, warn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings of `windows` full windows whose `n`th request comes from the address that `of` gives.
    fn findings(window: &mut Window, at: Instant, windows: u32, of: impl Fn(u32) -> u8) -> Vec<Finding> {
        let address = |n| IpAddr::from([10, 0, 0, of(n)]);
        (0..windows * WINDOW).filter_map(|n| window.note(address(n), at)).collect()
    }

    /// An address with more than nine tenths of the requests causes a warning, once an hour, in any order of requests; one with
    /// less does not.
    #[test]
    fn an_address_that_makes_nearly_all_requests_is_warned_of_once_an_hour() {
        let (mut window, start) = (Window::default(), Instant::now());
        let some = |n: u32| if n.is_multiple_of(20) { (n % 200) as u8 + 2 } else { 1 };
        let found = findings(&mut window, start, 3, some);
        assert!(
            found.iter().all(|found| found.address == IpAddr::from([10, 0, 0, 1]) && found.share > 90),
            "{found:?}"
        );
        assert_eq!(found.iter().map(|found| found.warn).collect::<Vec<_>>(), [true, false, false]);
        let later = start + PAUSE;
        assert!(findings(&mut window, later - Duration::from_secs(1), 1, some).iter().all(|found| !found.warn));
        assert!(findings(&mut window, later, 1, some)[0].warn);

        let others: [fn(u32) -> u8; 4] =
            [|n| (n % 2) as u8, |n| (n % 10 / 9) as u8, |n| n as u8, |n| u8::from(n % WINDOW < 150)];
        for of in others {
            let found = findings(&mut Window::default(), start, 2, of);
            assert!(found.iter().all(|found| !found.warn && found.share <= 90), "{found:?}");
        }
    }
}
