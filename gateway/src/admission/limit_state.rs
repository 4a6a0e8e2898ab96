//! State of a limit for a caller, as each answer reports it.

use std::{cmp::Ordering, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// State of one limit of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitState {
    /// Requests that may come at once.
    pub limit: u32,
    /// How many of them are left.
    pub remaining: u32,
    /// When all of them are there again.
    pub reset_in: Duration,
}

impl LimitState {
    /// The one that binds sooner.
    pub(super) fn tighter(self, other: Self) -> Self {
        match self.remaining.cmp(&other.remaining).then(self.limit.cmp(&other.limit)) {
            Ordering::Greater => other,
            Ordering::Less | Ordering::Equal => self,
        }
    }

    /// Writes the headers; the reset is a whole unix second, never too early.
    pub(super) fn write(self, headers: &mut HeaderMap, now: Timestamp) {
        let reset = u128::try_from(now.as_millisecond()).unwrap_or(0) + self.reset_in.as_millis();
        let reset = u64::try_from(reset.div_ceil(1000)).unwrap_or(u64::MAX);
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(reset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_is_told() {
        let limit_state = |limit, remaining| LimitState { limit, remaining, reset_in: Duration::from_millis(1) };
        let (narrow, wide) = (limit_state(600, 3), limit_state(60_000, 4));
        assert_eq!(narrow.tighter(wide), narrow);
        assert_eq!(wide.tighter(narrow), narrow);
        assert_eq!(limit_state(2, 0).tighter(limit_state(1, 0)), limit_state(1, 0));
        let mut headers = HeaderMap::new();
        narrow.write(&mut headers, Timestamp::from_millisecond(10_000).unwrap());
        let text = |name: &HeaderName| headers[name].to_str().unwrap().to_owned();
        assert_eq!([text(&LIMIT), text(&REMAINING), text(&RESET)], ["600", "3", "11"]);
    }
}
