//! `Retry-After`: seconds, or a date of HTTP (RFC 9110, section 10.2.3).

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};

/// The longest wait that a receiver may ask for: beyond a day it is a mistake, or means never.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait that a header asks for at `now`; `None` when it says nothing that can be understood.
pub fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(MAX));
    }
    let at = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO).min(MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_understood() {
        let now: Timestamp = "2026-11-21T07:00:00Z".parse().unwrap();
        assert_eq!(parse("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(parse("Sat, 21 Nov 2026 07:01:30 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(parse("Sat, 21 Nov 2026 06:00:00 GMT", now), Some(Duration::ZERO), "a date that has passed");
        assert_eq!(parse("99999999", now), Some(MAX));
        for nonsense in ["", "soon", "-5", "1.5"] {
            assert_eq!(parse(nonsense, now), None, "{nonsense:?}");
        }
    }
}
