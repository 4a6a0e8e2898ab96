//! Timestamps and durations.

use jiff::{SignedDuration, Timestamp, civil::Weekday, tz::Offset};

use crate::{number::Problem, operator::Operator, value::Value};

/// Part of a time, as the functions `get…` return it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// A time of RFC 3339.
pub(crate) fn timestamp(text: &str) -> Option<Value> {
    text.parse().ok().map(Value::Timestamp)
}

pub(crate) fn of_seconds(seconds: i64) -> Option<Value> {
    Timestamp::from_second(seconds).ok().map(Value::Timestamp)
}

/// A duration: decimal numbers with units, such as `1h30m`, `-1.5s` or `250ms`.
pub(crate) fn duration(text: &str) -> Option<Value> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Value::Duration(SignedDuration::ZERO));
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = after;
    }
    let total = if is_negative { -total } else { total };
    if text.is_empty() { None } else { SignedDuration::try_from_nanos_i128(total).map(Value::Duration) }
}

/// A decimal number of units, without what is below a nanosecond.
fn nanoseconds(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        total = total.checked_add(i128::from(digit.checked_sub(b'0')?) * place)?;
    }
    Some(total)
}

/// A duration in seconds, such as `5400s` or `0.25s`.
pub(crate) fn duration_text(duration: SignedDuration) -> String {
    let nanos = duration.subsec_nanos().unsigned_abs();
    let sign = if duration.is_negative() { "-" } else { "" };
    let seconds = duration.as_secs().unsigned_abs();
    if nanos == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// An offset from UTC: `UTC`, `+01:00` or `-05:30`.
pub(crate) fn offset(text: &str) -> Option<Offset> {
    if text == "UTC" || text == "Z" {
        return Some(Offset::UTC);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, text.get(1..)?),
        b'+' => (1, text.get(1..)?),
        _ => (1, text),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let two_digits = |text: &str| text.parse::<i32>().ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

/// A part of a time at an offset; without one, UTC. Months, and days of the month, the week and the year count from 0.
pub(crate) fn part_of(time: Timestamp, part: Part, offset: Option<Offset>) -> Value {
    let civil = offset.unwrap_or(Offset::UTC).to_datetime(time);
    Value::Int(match part {
        Part::FullYear => civil.year().into(),
        Part::Month => i64::from(civil.month()) - 1,
        Part::Date => civil.day().into(),
        Part::DayOfMonth => i64::from(civil.day()) - 1,
        Part::DayOfWeek => civil.weekday().since(Weekday::Sunday).into(),
        Part::DayOfYear => i64::from(civil.day_of_year()) - 1,
        Part::Hours => civil.hour().into(),
        Part::Minutes => civil.minute().into(),
        Part::Seconds => civil.second().into(),
        Part::Milliseconds => civil.millisecond().into(),
    })
}

/// The whole duration in a unit; of milliseconds, those within the second.
pub(crate) fn part_of_duration(duration: SignedDuration, part: Part) -> Option<Value> {
    Some(Value::Int(match part {
        Part::Hours => duration.as_hours(),
        Part::Minutes => duration.as_mins(),
        Part::Seconds => duration.as_secs(),
        Part::Milliseconds => i64::from(duration.subsec_millis()),
        _ => return None,
    }))
}

/// `+` and `-` of times and durations.
pub(crate) fn arithmetic(operator: Operator, one: &Value, other: &Value) -> Result<Value, Problem> {
    let result = match (operator, one, other) {
        (Operator::Add, Value::Timestamp(time), Value::Duration(by))
        | (Operator::Add, Value::Duration(by), Value::Timestamp(time)) => {
            time.checked_add(*by).ok().map(Value::Timestamp)
        }
        (Operator::Subtract, Value::Timestamp(time), Value::Duration(by)) => {
            time.checked_sub(*by).ok().map(Value::Timestamp)
        }
        (Operator::Subtract, Value::Timestamp(one), Value::Timestamp(other)) => {
            Some(Value::Duration(one.duration_since(*other)))
        }
        (Operator::Add, Value::Duration(one), Value::Duration(other)) => one.checked_add(*other).map(Value::Duration),
        (Operator::Subtract, Value::Duration(one), Value::Duration(other)) => {
            one.checked_sub(*other).map(Value::Duration)
        }
        _ => return Err(Problem::Types),
    };
    result.ok_or(Problem::Overflow)
}
