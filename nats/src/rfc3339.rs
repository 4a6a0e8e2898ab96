//! Times in the form of RFC 3339, by its grammar: nothing less (`2026-11-21T02:00Z`), nothing else of ISO 8601.

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::Offset,
};

/// Why a text is not such a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rfc3339Error {
    /// It has another form, or names a day or a time of day that does not exist.
    #[error("is not a time such as 2026-11-21T02:00:00Z or 2026-11-21T03:00:00.5+01:00 (RFC 3339)")]
    Malformed,
    /// It is a time, but later than any that can be kept.
    #[error("is later than 9999-12-30T22:00:00Z, the last time that can be kept")]
    TooLate,
}

/// Reads `date-time` of RFC 3339, section 5.6. `T` and `Z` may be lower-case. Of the fraction nine digits count. A leap
/// second (`:60`) is accepted where UTC can have one, at the end of a minute 23:59, and read as second 59.
///
/// # Errors
///
/// [`Rfc3339Error`].
pub fn parse(text: &str) -> Result<Timestamp, Rfc3339Error> {
    read(text.as_bytes()).ok_or(Rfc3339Error::Malformed).and_then(|read| {
        let time = read.offset.to_timestamp(read.local).map_err(|_| Rfc3339Error::TooLate)?;
        // Seconds of a day, of times before 1970, too.
        let second_of_day = time.as_second().rem_euclid(86_400);
        if read.leap && second_of_day != 86_399 { Err(Rfc3339Error::Malformed) } else { Ok(time) }
    })
}

struct Read {
    local: DateTime,
    offset: Offset,
    /// The second was written as 60.
    leap: bool,
}

/// `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`.
fn read(text: &[u8]) -> Option<Read> {
    let (fixed, mut rest) = text.split_at_checked(19)?;
    let separators = [(4, b"-".as_slice()), (7, b"-"), (10, b"Tt"), (13, b":"), (16, b":")];
    if separators.iter().any(|(at, allowed)| !allowed.contains(&fixed[*at])) {
        return None;
    }
    let number = |from: usize, to: usize| digits(&fixed[from..to]);
    let date = Date::new(number(0, 4)?, small(number(5, 7)?)?, small(number(8, 10)?)?).ok()?;
    let second = small(number(17, 19)?)?;
    let leap = second == 60;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let len = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if len == 0 {
            return None;
        }
        let nine = fraction[..len].iter().chain(std::iter::repeat(&b'0')).take(9);
        nanos = nine.fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0'));
        rest = &fraction[len..];
    }
    let second = if leap { 59 } else { second };
    let time = Time::new(small(number(11, 13)?)?, small(number(14, 16)?)?, second, nanos).ok()?;
    Some(Read { local: DateTime::from_parts(date, time), offset: offset(rest)?, leap })
}

/// `Z`, or a sign, hours and minutes.
fn offset(text: &[u8]) -> Option<Offset> {
    let (sign, hours, minutes) = match text {
        b"Z" | b"z" => return Some(Offset::UTC),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => (*sign, digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    if hours > 23 || minutes > 59 {
        return None;
    }
    let seconds = (i32::from(hours) * 60 + i32::from(minutes)) * 60;
    Offset::from_seconds(if sign == b'-' { -seconds } else { seconds }).ok()
}

/// At most four digits.
fn digits(text: &[u8]) -> Option<i16> {
    text.iter().try_fold(0i16, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i16::from(byte - b'0')))
}

fn small(number: i16) -> Option<i8> {
    i8::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_grammar_and_nothing_else() {
        let midnight: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        for text in [
            "2026-11-21T00:00:00Z",
            "2026-11-21t00:00:00z",
            "2026-11-21T00:00:00+00:00",
            "2026-11-21T00:00:00-00:00",
            "2026-11-21T05:30:00+05:30",
            "2026-11-20T14:00:00-10:00",
            "2026-11-21T23:59:00+23:59",
            "2026-11-21T00:00:00.0Z",
            "2026-11-21T00:00:00.000000000000000000001Z",
        ] {
            assert_eq!(parse(text), Ok(midnight), "{text}");
        }
        for text in [
            "",
            "now",
            "2026-11-21",
            "2026-11-21T00:00:00",
            "2026-11-21T00:00Z",
            "2026-11-21T00Z",
            "2026-11-21 00:00:00Z",
            "20261121T000000Z",
            "2026-W47-6T00:00:00Z",
            "2026-325T00:00:00Z",
            "2026-11-21T00:00:00,5Z",
            "2026-11-21T00:00:00.Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T00:60:00Z",
            "2026-11-21T00:00:61Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-21T00:00:00+0530",
            "2026-11-21T00:00:00+05",
            "2026-11-21T00:00:00+24:00",
            "2026-11-21T00:00:00+00:60",
            "2026-11-21T00:00:00Z[UTC]",
            "2026-11-21T00:00:00[UTC]",
            "2026-11-21T00:00:00ZZ",
            " 2026-11-21T00:00:00Z",
            "+2026-11-21T00:00:00Z",
            "-2026-11-21T00:00:00Z",
            "2026-11-21T00:00:00−01:00",
            "２026-11-21T00:00:00Z",
        ] {
            assert_eq!(parse(text), Err(Rfc3339Error::Malformed), "{text:?}");
        }
    }

    #[test]
    fn fractions_have_nanoseconds() {
        assert_eq!(parse("1970-01-01T00:00:00.5Z").unwrap().as_nanosecond(), 500_000_000);
        assert_eq!(parse("1970-01-01T00:00:00.1234567899Z").unwrap().as_nanosecond(), 123_456_789);
        assert_eq!(parse("1969-12-31T23:59:59.25Z").unwrap().as_nanosecond(), -750_000_000);
    }

    #[test]
    fn a_leap_second_is_where_utc_can_have_one() {
        let last = parse("2016-12-31T23:59:59Z").unwrap();
        assert_eq!(parse("2016-12-31T23:59:60Z"), Ok(last));
        assert_eq!(parse("1990-12-31T15:59:60-08:00"), parse("1990-12-31T23:59:59Z"));
        for text in ["2016-12-31T23:58:60Z", "2016-12-31T23:59:60+01:00", "2016-12-31T12:00:60Z"] {
            assert_eq!(parse(text), Err(Rfc3339Error::Malformed), "{text}");
        }
    }

    #[test]
    fn the_earliest_and_latest_times_are_read() {
        assert!(parse("0000-01-01T00:00:00Z").is_ok());
        assert!(parse("0000-01-01T00:00:00+23:59").is_ok());
        assert_eq!(parse("9999-12-31T23:59:59Z"), Err(Rfc3339Error::TooLate));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(second in -62_000_000_000i64..250_000_000_000, nanos in 0i32..1_000_000_000) {
            let time = Timestamp::new(second, nanos).unwrap();
            prop_assert_eq!(parse(&time.to_string()), Ok(time));
        }

        /// The time of an accepted text is the one that an independent parser reads.
        #[test]
        fn another_parser_agrees(
            text in "(00|19|20|99)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9][Tt][0-2][0-9]:[0-5][0-9]:[0-6][0-9]\
                     (\\.[0-9]{1,9})?([Zz]|[+-][0-2][0-9]:[0-5][0-9])",
        ) {
            if let Ok(time) = parse(&text) {
                prop_assert_eq!(text.parse::<Timestamp>().ok(), Some(time));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", form in "[0-9+:.TtZz-]{0,40}") {
            let _ = (parse(&text), parse(&form));
        }
    }
}
