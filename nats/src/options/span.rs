//! Durations as people write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration as people write it: `300ms`, `15s`, `5m`, `8d`. Units as in the humantime crate (`m` is minutes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// `n` days.
    pub const fn days(n: u64) -> Self {
        Self::secs(n * 24 * 60 * 60)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Months and years of humantime are averages; days are what the file was written in.
        let secs = self.0.as_secs();
        if secs > 0 && secs.is_multiple_of(86_400) && self.0.subsec_nanos() == 0 {
            return write!(f, "{}d", secs / 86_400);
        }
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("{text:?} is not a duration such as 300ms, 15s, 5m or 8d: {error}"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Span, serde_json::Error> {
        serde_json::from_value(serde_json::Value::String(text.into()))
    }

    #[test]
    fn a_span_is_written_as_it_was_read() {
        for text in ["300ms", "15s", "5m", "8d", "400d"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for text in ["", "5", "-1s", "soon"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
