//! The functions of expressions, on values.

use std::sync::Arc;

use crate::{
    budget::Budget,
    function::{Function, name_of},
    node::{Fault, Node},
    number, time,
    value::Value,
};

/// The longest text that is read as a number or a time: as many digits as a double may need, and few enough that reading it
/// costs no more than other steps.
const PARSED_BYTES_MAX: usize = 1024;

/// Why a function has no result.
enum Refused {
    /// It does not take values of these types.
    Types,
    Problem(&'static str),
    Fault(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

pub(crate) fn call(budget: &mut Budget, node: &Node, function: Function, arguments: &[Value]) -> Result<Value, Fault> {
    let result = match arguments {
        [value] => unary(budget, node, function, value),
        _ => text(budget, node, function, arguments),
    };
    let name = name_of(function);
    result.map_err(|refused| match refused {
        Refused::Types => node.no_overload(name, &arguments.iter().collect::<Vec<_>>()),
        Refused::Problem(problem) => node.fault(format!("{name}: {problem}")),
        Refused::Fault(fault) => fault,
    })
}

fn unary(budget: &mut Budget, node: &Node, function: Function, value: &Value) -> Result<Value, Refused> {
    const RANGE: Refused = Refused::Problem("the value is out of range");
    if let (
        Function::Double | Function::Duration | Function::Int | Function::Timestamp | Function::Uint,
        Value::String(text),
    ) = (function, value)
        && text.len() > PARSED_BYTES_MAX
    {
        return Err(Refused::Problem("the text is too long for a number or a time"));
    }
    match (function, value) {
        (Function::Size, Value::String(text)) => {
            budget.spend_bytes(node, text.len())?;
            Ok(length(text.chars().count()))
        }
        (Function::Size, Value::Bytes(bytes)) => Ok(length(bytes.len())),
        (Function::Size, Value::List(list)) => Ok(length(list.len())),
        (Function::Size, Value::Map(map)) => Ok(length(map.len())),
        (Function::LowerAscii | Function::UpperAscii | Function::Trim, Value::String(text)) => {
            budget.allocate(node, text.len())?;
            Ok(match function {
                Function::LowerAscii => Value::String(text.to_ascii_lowercase().into()),
                Function::UpperAscii => Value::String(text.to_ascii_uppercase().into()),
                _ => Value::string(text.trim()),
            })
        }
        (Function::Join, Value::List(_)) => text(budget, node, function, &[value.clone(), Value::string("")]),
        (Function::Type, _) => Ok(Value::Type(value.type_name())),
        (Function::Dyn, _) => Ok(value.clone()),
        (Function::Bool, Value::Bool(_))
        | (Function::Bytes, Value::Bytes(_))
        | (Function::Double, Value::Double(_))
        | (Function::Duration, Value::Duration(_))
        | (Function::Int, Value::Int(_))
        | (Function::String, Value::String(_))
        | (Function::Timestamp, Value::Timestamp(_))
        | (Function::Uint, Value::Uint(_)) => Ok(value.clone()),
        (Function::Bool, Value::String(text)) => match text.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(Refused::Problem("the text is not a bool")),
        },
        (Function::Bytes, Value::String(text)) => {
            budget.allocate(node, text.len())?;
            Ok(Value::Bytes(text.as_bytes().to_vec().into()))
        }
        #[allow(clippy::cast_precision_loss)]
        (Function::Double, Value::Int(value)) => Ok(Value::Double(*value as f64)),
        #[allow(clippy::cast_precision_loss)]
        (Function::Double, Value::Uint(value)) => Ok(Value::Double(*value as f64)),
        (Function::Double, Value::String(text)) => {
            let parsed = text.parse().map(Value::Double);
            parsed.map_err(|_| Refused::Problem("the text is not a number"))
        }
        (Function::Int, Value::Uint(value)) => i64::try_from(*value).map(Value::Int).map_err(|_| RANGE),
        (Function::Int, Value::Double(value)) => {
            let whole = number::truncate(*value).and_then(|value| i64::try_from(value).ok());
            whole.map(Value::Int).ok_or(RANGE)
        }
        (Function::Int, Value::String(text)) => {
            text.parse().map(Value::Int).map_err(|_| Refused::Problem("the text is not an int"))
        }
        (Function::Int, Value::Timestamp(time)) => Ok(Value::Int(time.as_second())),
        (Function::Uint, Value::Int(value)) => u64::try_from(*value).map(Value::Uint).map_err(|_| RANGE),
        (Function::Uint, Value::Double(value)) => {
            let whole = number::truncate(*value).and_then(|value| u64::try_from(value).ok());
            whole.map(Value::Uint).ok_or(RANGE)
        }
        (Function::Uint, Value::String(text)) => {
            text.parse().map(Value::Uint).map_err(|_| Refused::Problem("the text is not a uint"))
        }
        (Function::String, Value::Bool(value)) => Ok(Value::string(if *value { "true" } else { "false" })),
        (Function::String, Value::Int(value)) => Ok(Value::string(&value.to_string())),
        (Function::String, Value::Uint(value)) => Ok(Value::string(&value.to_string())),
        (Function::String, Value::Double(value)) => Ok(Value::string(&value.to_string())),
        (Function::String, Value::Timestamp(time)) => Ok(Value::string(&time.to_string())),
        (Function::String, Value::Duration(duration)) => Ok(Value::string(&time::duration_text(*duration))),
        (Function::String, Value::Bytes(bytes)) => {
            budget.allocate(node, bytes.len())?;
            let text = std::str::from_utf8(bytes).map(Value::string);
            text.map_err(|_| Refused::Problem("the bytes are not UTF-8"))
        }
        (Function::Timestamp, Value::String(text)) => {
            time::timestamp(text).ok_or(Refused::Problem("the text is not an RFC 3339 time"))
        }
        (Function::Timestamp, Value::Int(seconds)) => time::of_seconds(*seconds).ok_or(RANGE),
        (Function::Duration, Value::String(text)) => {
            time::duration(text).ok_or(Refused::Problem("the text is not a duration such as 1h30m or 1.5s"))
        }
        (Function::Time(part), Value::Timestamp(time)) => Ok(time::part_of(*time, part, None)),
        (Function::Time(part), Value::Duration(duration)) => {
            time::part_of_duration(*duration, part).ok_or(Refused::Types)
        }
        _ => Err(Refused::Types),
    }
}

fn text(budget: &mut Budget, node: &Node, function: Function, arguments: &[Value]) -> Result<Value, Refused> {
    match (function, arguments) {
        (
            Function::Contains | Function::StartsWith | Function::EndsWith,
            [Value::String(text), Value::String(part)],
        ) => {
            budget.spend_bytes(node, text.len() + part.len())?;
            Ok(Value::Bool(match function {
                Function::Contains => memchr::memmem::find(text.as_bytes(), part.as_bytes()).is_some(),
                Function::StartsWith => text.starts_with(part.as_ref()),
                _ => text.ends_with(part.as_ref()),
            }))
        }
        (Function::Replace, [Value::String(text), Value::String(from), Value::String(to)]) => {
            budget.spend_bytes(node, text.len())?;
            let count = text.matches(from.as_ref()).count();
            budget.spend(node, count as u64)?;
            budget.allocate(node, text.len().saturating_add(count.saturating_mul(to.len())))?;
            Ok(Value::String(text.replace(from.as_ref(), to).into()))
        }
        (Function::Split, [Value::String(text), Value::String(separator)]) => {
            budget.spend_bytes(node, text.len())?;
            let count = text.matches(separator.as_ref()).count() + 1;
            budget.spend(node, count as u64)?;
            budget.allocate(node, text.len().saturating_add(count.saturating_mul(2 * size_of::<Value>())))?;
            Ok(Value::list(if separator.is_empty() {
                text.chars().map(|character| Value::string(character.encode_utf8(&mut [0; 4]))).collect()
            } else {
                text.split(separator.as_ref()).map(Value::string).collect()
            }))
        }
        (Function::Join, [Value::List(list), Value::String(separator)]) => {
            let texts = list.iter().map(|element| match element {
                Value::String(text) => Some(text.as_ref()),
                _ => None,
            });
            let texts: Vec<&str> = texts.collect::<Option<_>>().ok_or(Refused::Types)?;
            let separators = separator.len().saturating_mul(texts.len());
            budget.spend(node, texts.len() as u64)?;
            budget.allocate(node, texts.iter().map(|text| text.len()).fold(separators, usize::saturating_add))?;
            Ok(Value::String(texts.join(separator).into()))
        }
        (Function::Substring, [Value::String(text), Value::Int(from)]) => {
            budget.allocate(node, text.len())?;
            substring(text, *from, None)
        }
        (Function::Substring, [Value::String(text), Value::Int(from), Value::Int(to)]) => {
            budget.allocate(node, text.len())?;
            substring(text, *from, Some(*to))
        }
        (Function::Time(part), [Value::Timestamp(time), Value::String(zone)]) => {
            let offset =
                time::offset(zone).ok_or(Refused::Problem("a time zone is UTC or an offset such as +01:00"))?;
            Ok(time::part_of(*time, part, Some(offset)))
        }
        _ => Err(Refused::Types),
    }
}

/// The characters `from..to`.
fn substring(text: &Arc<str>, from: i64, to: Option<i64>) -> Result<Value, Refused> {
    const OUTSIDE: Refused = Refused::Problem("the text is shorter than that");
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let from = usize::try_from(from).map_err(|_| OUTSIDE)?;
    let start = ends.by_ref().nth(from).ok_or(OUTSIDE)?;
    let end = match to {
        None => text.len(),
        Some(to) => match usize::try_from(to).ok().and_then(|to| to.checked_sub(from)).ok_or(OUTSIDE)? {
            0 => start,
            count => ends.nth(count - 1).ok_or(OUTSIDE)?,
        },
    };
    text.get(start..end).map(Value::string).ok_or(OUTSIDE)
}

fn length(length: usize) -> Value {
    Value::Int(i64::try_from(length).unwrap_or(i64::MAX))
}
