//! Validation of event data by the schemas of its source, and what becomes of an event that fails it.
//!
//! The first rule whose pattern takes the event's type counts; types that no rule takes are free. What is judged is the
//! event's `data`, not the whole body. A repeat is judged as well: one whose schema has become stricter meanwhile is
//! answered by the schema of today, not with its receipt.
//!
//! Judging takes time and memory proportional to the data, so large data is judged on a separate thread, a few at a
//! time; for small data the thread switch would cost more than the judging.

use std::{
    num::NonZero,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use weft_nats::{envelope, event::SCHEMA_INVALID, pattern::pattern_matches};
use weft_proto::v1::{self, SchemaMode};
use weft_schema::{Schema, Violation};

use crate::{
    http::error::{Code, Problem},
    metrics,
    sequencer::NewEvent,
};

#[cfg(test)]
mod tests;

/// Data up to this size is judged where it is, in bytes: some tenths of a millisecond.
const INLINE_BYTES_MAX: usize = 32 * 1024;
/// How long large data waits for its turn: each turn takes some ten milliseconds a MiB.
const TURN_WAIT: Duration = Duration::from_secs(5);
/// Longest interval of log lines for a rule that only warns; the counter has all.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Data of an event whose source pointer finds nothing, as in the envelope.
const NOTHING: Bytes = Bytes::from_static(b"null");

/// Permits to judge large data: one per processor. Clones share them.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(available_parallelism().map_or(1, NonZero::get))))
    }
}

/// The schemas of one source.
#[derive(Debug)]
pub struct Schemas {
    source: String,
    rules: Vec<Rule>,
    turns: Turns,
}

#[derive(Debug)]
struct Rule {
    pattern: String,
    mode: SchemaMode,
    schema: Arc<Schema>,
    logged: Mutex<Option<Instant>>,
}

impl Schemas {
    /// Compiles the schemas of a source.
    ///
    /// # Errors
    ///
    /// One line that says which schema is invalid, and why.
    pub fn compile(source: &v1::Source, turns: Turns) -> Result<Self, String> {
        let rules = source.schemas.iter().enumerate();
        let rules =
            rules.map(|(index, rule)| Rule::compile(rule).map_err(|problem| format!("schema[{index}]: {problem}")));
        Ok(Self { source: source.name.clone(), rules: rules.collect::<Result<_, _>>()?, turns })
    }

    /// Holds the event's data against its schema. Where it is not what that says, the event is let go with a warning, is
    /// marked as quarantined, or is refused, as the rule has it.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `schema_invalid`, or `overloaded` when the turn of large data does not come.
    pub async fn judge(&self, event: &mut NewEvent) -> Result<(), Problem> {
        let Some(rule) = self.rules.iter().find(|rule| pattern_matches(&rule.pattern, &event.event_type)) else {
            return Ok(());
        };
        let Err(violation) = self.check(rule, event).await? else { return Ok(()) };
        let mode = match rule.mode {
            SchemaMode::Warn => "warn",
            SchemaMode::Quarantine => "quarantine",
            SchemaMode::Reject | SchemaMode::Unspecified => "reject",
        };
        ::metrics::counter!(metrics::SCHEMA_VIOLATIONS, "source" => self.source.clone(), "mode" => mode).increment(1);
        match rule.mode {
            SchemaMode::Warn => rule.warn(event, &violation),
            SchemaMode::Quarantine => event.quarantine = Some(format!("{SCHEMA_INVALID}{violation}")),
            SchemaMode::Reject | SchemaMode::Unspecified => {
                let detail = format!("the data is not what the schema of type {:?} says: {violation}", rule.pattern);
                return Err(Problem::new(Code::SchemaInvalid, detail));
            }
        }
        Ok(())
    }

    async fn check(&self, rule: &Rule, event: &NewEvent) -> Result<Result<(), Violation>, Problem> {
        let is_json = envelope::is_json(&event.content_type);
        let data = if is_json {
            envelope::part(&event.payload, &event.data_pointer).unwrap_or(NOTHING)
        } else {
            event.payload.clone()
        };
        if data.len() <= INLINE_BYTES_MAX {
            return Ok(rule.schema.check(&data, is_json));
        }
        let overloaded = || Problem::new(Code::Overloaded, "too many large bodies to validate; send again");
        let turn = timeout(TURN_WAIT, self.turns.0.clone().acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(turn)) = turn else { return Err(overloaded()) };
        let schema = Arc::clone(&rule.schema);
        let judged = spawn_blocking(move || {
            // Also of a sender that has hung up the work is done to its end, and so long takes its turn.
            let _turn = turn;
            schema.check(&data, is_json)
        });
        judged.await.map_err(|error| {
            tracing::error!(source = self.source, %error, "schema validation aborted");
            Problem::new(Code::Internal, "the data could not be validated")
        })
    }
}

impl Rule {
    fn compile(rule: &v1::SchemaRule) -> Result<Self, String> {
        let schema = rule.schema.as_ref().ok_or("has neither a JSON Schema nor a Protobuf message")?;
        let schema = Schema::compile(schema).map_err(|problem| problem.to_string())?;
        Ok(Self { pattern: rule.r#type.clone(), mode: rule.mode(), schema: Arc::new(schema), logged: Mutex::default() })
    }

    /// Says so in the log, unless it has done so lately.
    fn warn(&self, event: &NewEvent, violation: &Violation) {
        let now = Instant::now();
        // Nothing in here can panic half-way through a change.
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
            *logged = Some(now);
            tracing::warn!(
                source = event.source, r#type = event.event_type, event_id = %event.id, %violation,
                "data is not what the schema says"
            );
        }
    }
}
