//! Rates as people write them.

use std::{fmt, num::NonZeroU32, str::FromStr};

use governor::Quota;
use serde::{Deserialize, Deserializer};

/// The most requests of a period: beyond a nanosecond apart there is nothing left to limit.
const COUNT_MAX: u32 = 1_000_000_000;

/// `"off"`, or a number of requests per period: `"10/s"`, `"600/min"`, `"5000/h"`.
///
/// The whole number may come at once. After that as many come back as the period brings, evenly: so in any one period at
/// most twice the number, and in the long run never more than the number a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// No limit.
    Off,
    /// A number of requests in a period.
    Limited {
        /// How many.
        count: NonZeroU32,
        /// In which time.
        period: Period,
    },
}

/// A second, a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// `s`
    Second,
    /// `min`
    Minute,
    /// `h`
    Hour,
}

impl Rate {
    /// Requests per minute; 0 is [`Rate::Off`].
    pub const fn per_minute(count: u32) -> Self {
        match NonZeroU32::new(count) {
            Some(count) => Self::Limited { count, period: Period::Minute },
            None => Self::Off,
        }
    }

    /// The quota of the limiter; `None`: no limit.
    pub(super) const fn quota(self) -> Option<Quota> {
        match self {
            Self::Off => None,
            Self::Limited { count, period: Period::Second } => Some(Quota::per_second(count)),
            Self::Limited { count, period: Period::Minute } => Some(Quota::per_minute(count)),
            Self::Limited { count, period: Period::Hour } => Some(Quota::per_hour(count)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Limited { count, period } => {
                let period = match period {
                    Period::Second => "s",
                    Period::Minute => "min",
                    Period::Hour => "h",
                };
                write!(f, "{count}/{period}")
            }
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let wrong =
            || format!("{text:?} is not a rate such as \"10/s\", \"600/min\" or \"5000/h\"; \"off\" is no limit");
        let (count, period) = text.split_once('/').ok_or_else(wrong)?;
        let period = match period {
            "s" => Period::Second,
            "min" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(wrong()),
        };
        let count: NonZeroU32 = count.parse().map_err(|_| wrong())?;
        if count.get() > COUNT_MAX {
            return Err(format!("{text:?} is more than {COUNT_MAX}; say \"off\""));
        }
        Ok(Self::Limited { count, period })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_written_as_it_was_read() {
        for text in ["off", "1/s", "600/min", "60000/min", "5000/h", "1000000000/s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "10", "0/s", "-1/s", "1/m", "1/d", "/s", "1.5/s", "1/s/s", "1000000001/s", "OFF"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
        assert_eq!(Rate::per_minute(0), Rate::Off);
    }
}
