//! `[[subscription]]` as people write it, and the subscription of the catalog that it stands for.

use std::time::Duration;

use serde::Deserialize;
use weft_catalog::default_retry;
use weft_gateway::admission::{Period, Rate};
use weft_nats::{options::Span, rfc3339};
use weft_proto::{
    ids::EventId,
    v1::{self, Batch, OnExhausted, Retry, Subscription},
};

use super::{DesiredSubscription, KeyPath, Problem, Secrets, Start, destination::DestinationForm, source::millis};

#[derive(Debug, Deserialize)]
pub(super) struct SubscriptionForm {
    name: String,
    #[serde(default = "all_types")]
    types: Vec<String>,
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    filter: String,
    #[serde(default)]
    transform: String,
    destination: DestinationForm,
    #[serde(default)]
    batch: BatchForm,
    #[serde(default = "timeout")]
    timeout: Span,
    #[serde(default = "concurrency")]
    concurrency: u32,
    #[serde(default = "rate")]
    rate: Rate,
    #[serde(default)]
    retry: RetryForm,
    #[serde(default)]
    on_exhausted: ExhaustedForm,
    #[serde(default = "ordered")]
    ordered: bool,
    #[serde(default = "start")]
    start: String,
}

fn all_types() -> Vec<String> {
    vec!["*".into()]
}

const fn timeout() -> Span {
    Span::secs(15)
}

const fn concurrency() -> u32 {
    64
}

const fn rate() -> Rate {
    Rate::Off
}

const fn ordered() -> bool {
    true
}

fn start() -> String {
    "now".into()
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct BatchForm {
    max_events: u32,
}

impl Default for BatchForm {
    fn default() -> Self {
        Self { max_events: 1 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct RetryForm {
    max_retries: u32,
    base: Span,
    factor: f64,
    max: Span,
    jitter: f64,
    schedule: Vec<Span>,
}

impl Default for RetryForm {
    fn default() -> Self {
        let Retry { max_retries, base_ms, factor, max_ms, jitter, schedule_ms: _ } = default_retry();
        let span = |ms| Span(Duration::from_millis(ms));
        Self { max_retries, base: span(base_ms), factor, max: span(max_ms), jitter, schedule: Vec::new() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExhaustedForm {
    #[default]
    DeadLetter,
    Block,
}

impl SubscriptionForm {
    /// The subscription, with its secrets.
    pub(super) fn into_subscription(
        self,
        path: &KeyPath,
        secrets: &mut Secrets,
    ) -> Result<DesiredSubscription, Problem> {
        let start = parse_start(&self.start).map_err(|problem| (path.key("start"), problem))?;
        let on_exhausted = match self.on_exhausted {
            ExhaustedForm::DeadLetter => OnExhausted::DeadLetter,
            ExhaustedForm::Block => OnExhausted::Block,
        };
        let value = Subscription {
            uid: Vec::new(),
            name: self.name,
            types: self.types,
            sources: self.sources,
            destination: Some(self.destination.into_destination(&path.key("destination"), secrets)?),
            timeout_ms: millis(self.timeout),
            concurrency: self.concurrency,
            retry: Some(self.retry.into_retry()),
            on_exhausted: on_exhausted.into(),
            ordered: Some(self.ordered),
            starts: Vec::new(),
            paused: false,
            pause_reason: String::new(),
            created_at_ms: 0,
            rate: into_rate(self.rate),
            filter: self.filter,
            transform: self.transform,
            batch: (self.batch.max_events != 1).then_some(Batch { max_events: self.batch.max_events }),
        };
        Ok(DesiredSubscription { value, start })
    }
}

impl RetryForm {
    fn into_retry(self) -> Retry {
        Retry {
            max_retries: self.max_retries,
            base_ms: millis(self.base),
            factor: self.factor,
            max_ms: millis(self.max),
            jitter: self.jitter,
            schedule_ms: self.schedule.into_iter().map(millis).collect(),
        }
    }
}

/// The rate as the catalog has it; `None`: no limit.
pub(crate) fn into_rate(rate: Rate) -> Option<v1::Rate> {
    let Rate::Limited { count, period } = rate else { return None };
    let period_ms = match period {
        Period::Second => 1000,
        Period::Minute => 60 * 1000,
        Period::Hour => 60 * 60 * 1000,
    };
    Some(v1::Rate { count: count.get(), period_ms })
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "now" => return Ok(Start::Now),
        "beginning" => return Ok(Start::Beginning),
        _ => {}
    }
    if let Ok(id) = text.parse::<EventId>() {
        return Ok(Start::Behind(id));
    }
    rfc3339::parse(text).map(Start::At).map_err(|_| {
        format!("{text:?} is neither now, beginning, an event id, nor a time such as 2026-11-21T02:00:00Z (RFC 3339)")
    })
}
