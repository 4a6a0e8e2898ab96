//! Numbers: arithmetic and comparison of `int`, `uint` and `double`, also mixed. Nothing wraps around.

use std::cmp::Ordering;

use crate::{
    operator::Operator,
    value::{BEYOND, Value},
};

/// Why an operation has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It does not take these types.
    Types,
    /// The result is out of range.
    Overflow,
    DivisionByZero,
}

/// A number with its exact value.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Double(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Int(value) => Some(Self::Whole((*value).into())),
            Value::Uint(value) => Some(Self::Whole((*value).into())),
            Value::Double(value) => Some(Self::Double(*value)),
            _ => None,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn as_double(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Double(value) => value,
        }
    }
}

/// The order of two numbers by their exact values; `None` where one is not a number.
pub(crate) fn compare(one: &Value, other: &Value) -> Option<Option<Ordering>> {
    Some(match (Number::of(one)?, Number::of(other)?) {
        (Number::Whole(one), Number::Whole(other)) => Some(one.cmp(&other)),
        (Number::Double(one), Number::Double(other)) => one.partial_cmp(&other),
        (Number::Whole(one), Number::Double(other)) => compare_whole(one, other),
        (Number::Double(one), Number::Whole(other)) => compare_whole(other, one).map(Ordering::reverse),
    })
}

#[allow(clippy::cast_possible_truncation)]
fn compare_whole(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double >= BEYOND {
        return Some(Ordering::Less);
    }
    if double <= -BEYOND {
        return Some(Ordering::Greater);
    }
    let truncated = double.trunc();
    Some(whole.cmp(&(truncated as i128)).then_with(|| truncated.partial_cmp(&double).unwrap_or(Ordering::Equal)))
}

/// The integer nearest to zero; `None` if it is out of range.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn truncate(value: f64) -> Option<i128> {
    (value.abs() < BEYOND).then(|| value.trunc() as i128)
}

/// `+ - * / %` of numbers. Of an `int` and a `uint` the result is an `int` if one holds it; with a double it is a double.
pub(crate) fn arithmetic(operator: Operator, one: &Value, other: &Value) -> Result<Value, Problem> {
    let (Some(left), Some(right)) = (Number::of(one), Number::of(other)) else { return Err(Problem::Types) };
    let (Number::Whole(left), Number::Whole(right)) = (left, right) else {
        return doubles(operator, left.as_double(), right.as_double());
    };
    // The product of two 64-bit integers fits.
    let result = match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide | Operator::Modulo if right == 0 => return Err(Problem::DivisionByZero),
        Operator::Divide => left / right,
        Operator::Modulo => left % right,
        _ => return Err(Problem::Types),
    };
    match (one, other) {
        (Value::Int(_), Value::Int(_)) => i64::try_from(result).ok().map(Value::Int),
        (Value::Uint(_), Value::Uint(_)) => u64::try_from(result).ok().map(Value::Uint),
        _ => Value::of_whole(result),
    }
    .ok_or(Problem::Overflow)
}

fn doubles(operator: Operator, one: f64, other: f64) -> Result<Value, Problem> {
    Ok(Value::Double(match operator {
        Operator::Add => one + other,
        Operator::Subtract => one - other,
        Operator::Multiply => one * other,
        Operator::Divide => one / other,
        _ => return Err(Problem::Types),
    }))
}
