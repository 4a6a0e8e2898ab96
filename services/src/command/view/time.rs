//! Times as they are printed: by RFC 3339, and for people how long ago.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A time, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub struct Time(pub Timestamp);

impl Time {
    /// The time of a message; `None` when it has none or none that exists.
    pub fn of(time: Option<&prost_types::Timestamp>) -> Option<Self> {
        let time = time?;
        Timestamp::new(time.seconds, time.nanos).ok().map(Self)
    }

    /// For people: how far from `now`.
    fn age(self, now: Timestamp) -> String {
        let seconds = now.duration_since(self.0).as_secs();
        match seconds {
            0 => "now".to_owned(),
            1.. => format!("{} ago", span(seconds.unsigned_abs())),
            _ => format!("in {}", span(seconds.unsigned_abs())),
        }
    }
}

/// Two digits or three, of the unit that gives them.
fn span(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / MINUTE),
        7_200..172_800 => format!("{}h", seconds / HOUR),
        _ => format!("{}d", seconds / DAY),
    }
}

/// A time and its age, for people; a dash where there is none.
pub fn when(time: Option<&Time>) -> String {
    match (time, Timestamp::try_from(SystemTime::now())) {
        (None, _) => "-".to_owned(),
        (Some(time), Ok(now)) => format!("{time} ({})", time.age(now)),
        (Some(time), Err(_)) => time.to_string(),
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let now: Timestamp = "2026-11-21T02:00:00Z".parse().unwrap();
        for (time, age) in [
            ("2026-11-21T01:59:59.1Z", "now"),
            ("2026-11-21T01:59:15Z", "45s ago"),
            ("2026-11-21T01:00:00Z", "60m ago"),
            ("2026-11-20T00:00:00Z", "26h ago"),
            ("2026-09-01T00:00:00Z", "81d ago"),
            ("0001-01-01T00:00:00Z", "739940d ago"),
            ("2026-11-21T02:00:07Z", "in 7s"),
            ("2026-11-21T04:30:00Z", "in 2h"),
        ] {
            assert_eq!(Time(time.parse().unwrap()).age(now), age, "{time}");
        }
    }
}
