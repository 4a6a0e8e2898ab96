//! `Retry-After`: seconds, or a date of HTTP in any of its three forms (RFC 9110, sections 5.6.7 and 10.2.3).

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Longest wait that a receiver may ask for where its destination names none: a longer one is a mistake, or means never.
pub const MAX_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait that a header asks for at `now`, at most `max`; `None` when it cannot be parsed. A date in the past asks for no
/// wait.
pub fn parse(value: &str, now: Timestamp, max: Duration) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit the type are valid, and too many.
        value.parse().map_or(max, Duration::from_secs)
    } else {
        let at = httpdate::parse_http_date(value).ok()?;
        at.duration_since(SystemTime::from(now)).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(max))
}

/// The time of a `Date` header; `None` when it cannot be parsed.
pub fn date(value: &str) -> Option<Timestamp> {
    Timestamp::try_from(httpdate::parse_http_date(value.trim()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = MAX_DEFAULT;

    fn at_seven(value: &str) -> Option<Duration> {
        parse(value, "2026-11-21T07:00:00Z".parse().unwrap(), MAX)
    }

    #[test]
    fn seconds_are_understood_and_bounded() {
        assert_eq!(at_seven("120"), Some(Duration::from_secs(120)));
        assert_eq!(at_seven(" 0 "), Some(Duration::ZERO));
        assert_eq!(at_seven("86400"), Some(MAX));
        for many in ["86401", "99999999", "18446744073709551616"] {
            assert_eq!(at_seven(many), Some(MAX), "{many}");
        }
    }

    #[test]
    fn every_form_of_a_date_is_understood() {
        let in_90_seconds =
            ["Sat, 21 Nov 2026 07:01:30 GMT", "Saturday, 21-Nov-26 07:01:30 GMT", "Sat Nov 21 07:01:30 2026"];
        for date in in_90_seconds {
            assert_eq!(at_seven(date), Some(Duration::from_secs(90)), "{date}");
        }
        assert_eq!(at_seven("Sat, 21 Nov 2026 06:00:00 GMT"), Some(Duration::ZERO), "a date that has passed");
        assert_eq!(at_seven("Fri, 21 Nov 2127 07:00:00 GMT"), Some(MAX), "a date beyond the longest wait");
    }

    #[test]
    fn the_receivers_own_date_is_understood() {
        let now = date("Sat, 21 Nov 2026 07:00:00 GMT").unwrap();
        assert_eq!(parse("Sat, 21 Nov 2026 07:01:30 GMT", now, MAX), Some(Duration::from_secs(90)));
        assert_eq!(parse("Sat, 21 Nov 2026 07:01:30 GMT", now, Duration::from_secs(7)), Some(Duration::from_secs(7)));
        assert_eq!(date("yesterday"), None);
    }

    #[test]
    fn other_values_are_ignored() {
        for nonsense in ["", "soon", "-5", "+5", "1.5", "5s", "2026-11-21T07:01:30Z", "Sat, 32 Nov 2026 07:00:00 GMT"] {
            assert_eq!(at_seven(nonsense), None, "{nonsense:?}");
        }
    }
}
