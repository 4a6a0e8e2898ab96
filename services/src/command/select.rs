//! Selection arguments of commands: filters, and a start.

use std::time::SystemTime;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use weft_nats::{
    options::Span,
    rfc3339::{self, Rfc3339Error},
};
use weft_proto::{v1, words::Word};

use crate::failure::Failure;

/// An argument that is one of these values, by its word. For another word the error lists them.
pub fn one_of<W: Word + Send + Sync>(values: &'static [W]) -> impl TypedValueParser<Value = W> {
    let words = PossibleValuesParser::new(values.iter().map(|value| value.word()));
    words.try_map(|word| W::from_word(&word).ok_or("it has no value"))
}

/// Values of a request's field.
pub fn numbers<W: Copy + Into<i32>>(values: &[W]) -> Vec<i32> {
    values.iter().map(|value| (*value).into()).collect()
}

/// Filters of events.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EventFilterArgs {
    /// Only this workflow
    #[arg(long, value_name = "ID")]
    pub workflow: Option<String>,
    /// Only types that match; `*` is any run of characters
    #[arg(long = "type", value_name = "PATTERN")]
    pub event_type: Option<String>,
    /// Only this source
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
}

impl From<EventFilterArgs> for v1::EventFilter {
    fn from(args: EventFilterArgs) -> Self {
        Self {
            workflow_id: args.workflow.unwrap_or_default(),
            r#type: args.event_type.unwrap_or_default(),
            source: args.source.unwrap_or_default(),
        }
    }
}

/// Filters of dead letters.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DeadLetterFilterArgs {
    /// Only this subscription
    #[arg(long, value_name = "NAME")]
    pub subscription: Option<String>,
    /// Of whose events
    #[command(flatten)]
    pub event: EventFilterArgs,
    /// Only this reason
    #[arg(long, value_name = "CODE", value_parser = one_of(v1::DeadLetterReason::ALL))]
    pub reason_code: Option<v1::DeadLetterReason>,
    /// Dead-lettered since: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    pub since: Option<Timestamp>,
    /// Dead-lettered before: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    pub until: Option<Timestamp>,
}

impl DeadLetterFilterArgs {
    /// Whether anything is filtered.
    pub fn is_empty(&self) -> bool {
        let Self { subscription, event, reason_code, since, until } = self;
        let EventFilterArgs { workflow, event_type, source } = event;
        [subscription, workflow, event_type, source].into_iter().all(Option::is_none)
            && reason_code.is_none()
            && since.is_none()
            && until.is_none()
    }

    /// The filter of a request; no statuses mean the open ones.
    pub fn into_filter(self, statuses: &[v1::DeadLetterStatus]) -> v1::DeadLetterFilter {
        v1::DeadLetterFilter {
            subscription: self.subscription.unwrap_or_default(),
            workflow_id: self.event.workflow.unwrap_or_default(),
            r#type: self.event.event_type.unwrap_or_default(),
            source: self.event.source.unwrap_or_default(),
            reason: self.reason_code.unwrap_or_default().into(),
            since: self.since.map(to_proto),
            until: self.until.map(to_proto),
            statuses: numbers(statuses),
        }
    }
}

/// Where a reader of events begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// With what was received then.
    Time(Timestamp),
    /// Behind an event or a cursor.
    Place(String),
}

/// An age (`1h`), a time (RFC 3339), an event id or a cursor.
///
/// # Errors
///
/// Never: what is neither age nor time is for the server to judge.
pub fn parse_since(text: &str) -> Result<Since, String> {
    Ok(parse_moment(text).map_or_else(|_| Since::Place(text.to_owned()), Since::Time))
}

/// An age, counted back from now, or a time.
///
/// # Errors
///
/// When the text is neither.
pub fn parse_moment(text: &str) -> Result<Timestamp, String> {
    let now = || Timestamp::try_from(SystemTime::now());
    match rfc3339::parse(text) {
        Ok(time) => return Ok(time),
        Err(problem @ Rfc3339Error::TooLate) => return Err(format!("{text:?} {problem}")),
        Err(Rfc3339Error::Malformed) => {}
    }
    let age: Span = text.parse().map_err(|_| format!("{text:?} is neither an age such as 1h nor an RFC 3339 time"))?;
    now().and_then(|now| now.checked_sub(age.0)).map_err(|_| format!("{text:?} is before all time"))
}

/// Refuses a selection that is made in no way, or in several: by ids, by filters such as `filter`, or of all.
///
/// # Errors
///
/// [`Failure::Usage`]: what the `verb` wants to know.
pub fn one_way(verb: &str, filter: &str, given: [bool; 3]) -> Result<(), Failure> {
    if given.into_iter().filter(|given| *given).count() == 1 {
        return Ok(());
    }
    Err(Failure::Usage(format!("choose what to {verb}: ids, filters such as {filter}, or --all; one of the three")))
}

/// A time as messages carry it.
pub fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    // Nanoseconds count forward in the message, also before 1970.
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_an_age_a_time_or_a_place() {
        let time = "2026-11-21T02:00:00Z";
        assert_eq!(parse_since(time), Ok(Since::Time(time.parse().unwrap())));
        assert!(matches!(parse_since("90m"), Ok(Since::Time(time)) if time < Timestamp::now()));
        let id = "adc8ac26-5f51-590c-a093-d32f0b5c22c7";
        assert_eq!(parse_since(id), Ok(Since::Place(id.into())));
        assert_eq!(parse_since("2026-11-21t03:00:00+01:00"), Ok(Since::Time(time.parse().unwrap())));
        assert!(parse_moment("soon").is_err() && parse_moment("2026-11-21").is_err());
    }

    #[test]
    fn times_before_1970_keep_their_order() {
        let time = to_proto("1969-12-31T23:59:59.5Z".parse().unwrap());
        assert_eq!((time.seconds, time.nanos), (-1, 500_000_000));
    }
}
