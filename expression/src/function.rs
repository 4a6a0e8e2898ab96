//! Names of functions, and how each is called.

use crate::time;

/// A function but for macros and `matches`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    UpperAscii,
    Trim,
    Replace,
    Split,
    Join,
    Substring,
    Type,
    Dyn,
    Bool,
    Bytes,
    Double,
    Duration,
    Int,
    String,
    Timestamp,
    Uint,
    Time(time::Part),
}

/// How a function is called: `f(x)`, `x.f()`, or both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Global,
    Member,
    Both,
}

/// The functions: name, style, smallest and largest number of arguments with the value that a member is called on.
const FUNCTIONS: [(&str, Function, Style, usize, usize); 31] = [
    ("size", Function::Size, Style::Both, 1, 1),
    ("contains", Function::Contains, Style::Member, 2, 2),
    ("startsWith", Function::StartsWith, Style::Member, 2, 2),
    ("endsWith", Function::EndsWith, Style::Member, 2, 2),
    ("lowerAscii", Function::LowerAscii, Style::Member, 1, 1),
    ("upperAscii", Function::UpperAscii, Style::Member, 1, 1),
    ("trim", Function::Trim, Style::Member, 1, 1),
    ("replace", Function::Replace, Style::Member, 3, 3),
    ("split", Function::Split, Style::Member, 2, 2),
    ("join", Function::Join, Style::Member, 1, 2),
    ("substring", Function::Substring, Style::Member, 2, 3),
    ("type", Function::Type, Style::Global, 1, 1),
    ("dyn", Function::Dyn, Style::Global, 1, 1),
    ("bool", Function::Bool, Style::Global, 1, 1),
    ("bytes", Function::Bytes, Style::Global, 1, 1),
    ("double", Function::Double, Style::Global, 1, 1),
    ("duration", Function::Duration, Style::Global, 1, 1),
    ("int", Function::Int, Style::Global, 1, 1),
    ("string", Function::String, Style::Global, 1, 1),
    ("timestamp", Function::Timestamp, Style::Global, 1, 1),
    ("uint", Function::Uint, Style::Global, 1, 1),
    ("getFullYear", Function::Time(time::Part::FullYear), Style::Member, 1, 2),
    ("getMonth", Function::Time(time::Part::Month), Style::Member, 1, 2),
    ("getDate", Function::Time(time::Part::Date), Style::Member, 1, 2),
    ("getDayOfMonth", Function::Time(time::Part::DayOfMonth), Style::Member, 1, 2),
    ("getDayOfWeek", Function::Time(time::Part::DayOfWeek), Style::Member, 1, 2),
    ("getDayOfYear", Function::Time(time::Part::DayOfYear), Style::Member, 1, 2),
    ("getHours", Function::Time(time::Part::Hours), Style::Member, 1, 2),
    ("getMinutes", Function::Time(time::Part::Minutes), Style::Member, 1, 2),
    ("getSeconds", Function::Time(time::Part::Seconds), Style::Member, 1, 2),
    ("getMilliseconds", Function::Time(time::Part::Milliseconds), Style::Member, 1, 2),
];

/// The function of a call with this number of arguments, the value of a member call included.
pub(crate) fn find(name: &str, is_member: bool, arguments: usize) -> Result<Function, String> {
    let Some((_, function, style, fewest, most)) = FUNCTIONS.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("unknown function {name}"));
    };
    match style {
        Style::Global if is_member => return Err(format!("{name} is called as {name}(…)")),
        Style::Member if !is_member => return Err(format!("{name} is called as x.{name}(…)")),
        _ => {}
    }
    if (*fewest..=*most).contains(&arguments) {
        Ok(*function)
    } else {
        Err(format!("{name} does not take {} arguments", arguments - usize::from(is_member)))
    }
}

/// The name of a function.
pub(crate) fn name_of(function: Function) -> &'static str {
    FUNCTIONS.iter().find(|(_, known, ..)| *known == function).map_or("", |(name, ..)| name)
}
