//! Answers of the admin in the form that commands print.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::value::RawValue;
use weft_nats::envelope::is_json;
use weft_proto::{v1, words::word};

use super::{
    json,
    output::{self, Row},
    terminal,
};

mod explain;
mod listed;
mod orders;
mod time;

pub use explain::Explanation;
pub use listed::ListedEvent;
pub use orders::{DeadLetterCount, Lane, Ordered, Plan, Replay, Workflow};
pub use time::{Time, when};

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn text_or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Characters of a payload that people get; the other formats have all of it.
const DATA_CHARS: usize = 4096;
/// Characters of a receiver's answer that people get.
const RESPONSE_CHARS: usize = 300;

/// The beginning of a text, marked where it is cut.
fn beginning(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} bytes in all; -o json has them)", &text[..at], text.len()),
    }
}

/// An event, in the form of its envelope.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    event_id: String,
    sequence_number: u64,
    workflow_id: String,
    previous_event_id: Option<String>,
    r#type: String,
    source: String,
    time: Option<Time>,
    received_at: Option<Time>,
    delivery_id: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    erased: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Event {
    /// When the gateway accepted it.
    pub fn received_at(&self) -> Option<Time> {
        self.received_at
    }

    /// The headings of [`line`](Self::line).
    pub fn headings() -> String {
        format!("{:<24}  {:<24} {:>6}  {:<24} {:<12} EVENT", "RECEIVED", "WORKFLOW", "SEQ", "TYPE", "SOURCE")
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{}  {:<24} {:>6}  {:<24} {:<12} {}",
            text_or_dash(self.received_at.as_ref()),
            terminal::line(&self.workflow_id),
            self.sequence_number,
            terminal::line(&self.r#type),
            terminal::line(&self.source),
            self.event_id
        )
    }

    /// The payload for people, in one line.
    fn shown_data(&self) -> String {
        if self.erased {
            return "erased".to_owned();
        }
        if let Some(data) = &self.data {
            return beginning(&json::compact(data.get()), DATA_CHARS);
        }
        let Some(base64) = &self.data_base64 else { return "-".to_owned() };
        let bytes = STANDARD.decode(base64).unwrap_or_default();
        let content_type = self.data_content_type.as_deref().unwrap_or_default();
        match std::str::from_utf8(&bytes) {
            Ok(text) if content_type.starts_with("text/") => beginning(text, DATA_CHARS),
            _ => format!("{} bytes of {content_type}; -o json has them as base64", bytes.len()),
        }
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let json = is_json(&event.data_content_type)
            .then(|| std::str::from_utf8(&event.data).ok())
            .flatten()
            .and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let base64 = json.is_none() && !event.data.is_empty();
        Self {
            time: Time::of(event.time.as_ref()),
            received_at: Time::of(event.received_at.as_ref()),
            erased: event.erased,
            event_id: event.event_id,
            sequence_number: event.sequence_number,
            workflow_id: event.workflow_id,
            previous_event_id: event.previous_event_id,
            r#type: event.r#type,
            source: event.source,
            delivery_id: event.delivery_id,
            data: json,
            data_content_type: base64.then_some(event.data_content_type),
            data_base64: base64.then(|| STANDARD.encode(&event.data)),
        }
    }
}

/// Delivery of an event to one subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    subscription: String,
    status: &'static str,
    run: u64,
    attempt_count: u32,
    settled_at: Option<Time>,
    /// The operator who resolved, discarded or skipped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_by: Option<String>,
    /// The operator's words for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_reason: Option<String>,
    next_attempt_at: Option<Time>,
    attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    number: u32,
    started_at: Option<Time>,
    ended_at: Option<Time>,
    outcome: &'static str,
    status: Option<u32>,
    error: Option<String>,
    response: Option<String>,
    next_attempt_at: Option<Time>,
    /// When the connection was ready and the request was written to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_at: Option<Time>,
    /// When the head of the response came.
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_at: Option<Time>,
    /// It used up no retry.
    uncounted: bool,
    /// Number of events of the batch that was attempted.
    batch_events: Option<u32>,
}

impl From<v1::EventDelivery> for Delivery {
    fn from(delivery: v1::EventDelivery) -> Self {
        Self {
            settled_at: Time::of(delivery.settled_at.as_ref()),
            next_attempt_at: Time::of(delivery.next_attempt_at.as_ref()),
            settled_by: given(delivery.settled_by),
            settled_reason: given(delivery.settled_reason),
            subscription: delivery.subscription,
            status: word::<v1::DeliveryStatus>(delivery.status),
            run: delivery.run,
            attempt_count: delivery.attempt_count,
            attempts: delivery.attempts.into_iter().map(Attempt::from).collect(),
        }
    }
}

impl From<v1::DeliveryAttempt> for Attempt {
    fn from(attempt: v1::DeliveryAttempt) -> Self {
        Self {
            number: attempt.number,
            started_at: Time::of(attempt.started_at.as_ref()),
            ended_at: Time::of(attempt.ended_at.as_ref()),
            next_attempt_at: Time::of(attempt.next_attempt_at.as_ref()),
            connected_at: Time::of(attempt.connected_at.as_ref()),
            answered_at: Time::of(attempt.answered_at.as_ref()),
            outcome: word::<v1::AttemptClass>(attempt.outcome),
            uncounted: attempt.uncounted,
            batch_events: (attempt.batch_events != 0).then_some(attempt.batch_events),
            status: (attempt.status != 0).then_some(attempt.status),
            error: (!attempt.error.is_empty()).then_some(attempt.error),
            response: (!attempt.response.is_empty()).then(|| String::from_utf8_lossy(&attempt.response).into_owned()),
        }
    }
}

/// One event with what became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventWithDeliveries {
    #[serde(flatten)]
    event: Event,
    status: &'static str,
    stored_at: Option<Time>,
    deliveries: Vec<Delivery>,
}

impl EventWithDeliveries {
    /// From the admin's answer; `None` when it holds no event.
    pub fn new(answer: v1::GetEventResponse) -> Option<Self> {
        Some(Self {
            event: answer.event?.into(),
            status: word::<v1::EventStatus>(answer.status),
            stored_at: Time::of(answer.stored_at.as_ref()),
            deliveries: answer.deliveries.into_iter().map(Delivery::from).collect(),
        })
    }

    /// For people: the event, its deliveries, their attempts, and all stages on one scale of time.
    pub fn human(&self) -> String {
        let event = &self.event;
        let status = match self.status {
            "unrouted" => format!("unrouted: no subscription takes {} from source {}", event.r#type, event.source),
            status => status.to_owned(),
        };
        let text = output::fields([
            ("event", event.event_id.clone()),
            ("workflow", format!("{} #{}", event.workflow_id, event.sequence_number)),
            ("previous", text_or_dash(event.previous_event_id.as_ref())),
            ("type", event.r#type.clone()),
            ("source", event.source.clone()),
            ("delivery id", text_or_dash(event.delivery_id.as_ref())),
            ("time", when(event.time.as_ref())),
            ("received", when(event.received_at.as_ref())),
            ("stored", when(self.stored_at.as_ref())),
            ("status", status),
            ("data", event.shown_data()),
        ]);
        if self.deliveries.is_empty() {
            return text;
        }
        let rows = self
            .deliveries
            .iter()
            .flat_map(|delivery| std::iter::once(delivery.row()).chain(delivery.attempts.iter().map(Attempt::row)));
        let table = output::table(&["SUBSCRIPTION", "RUN", "STATUS", "ATTEMPT", "AT", "TOOK", "RESULT"], rows);
        let stages = listed::waterfall(event, self.stored_at, &self.deliveries);
        [Some(text), Some(table), stages].into_iter().flatten().collect::<Vec<_>>().join("\n\n")
    }
}

impl Delivery {
    /// Where it stands, for people.
    fn row(&self) -> Vec<String> {
        let result = match (&self.settled_by, &self.settled_reason) {
            (Some(by), Some(reason)) => format!("by {by}: {reason}"),
            (Some(by), None) => format!("by {by}"),
            (None, _) if self.settled_at.is_none() && self.next_attempt_at.is_some() => "next attempt".to_owned(),
            (None, _) => String::new(),
        };
        vec![
            self.subscription.clone(),
            match (self.run, &self.settled_by) {
                (0, _) => "live",
                (_, Some(_)) if self.attempt_count == 0 => "closed",
                _ => "replay",
            }
            .to_owned(),
            self.status.to_owned(),
            String::new(),
            when(self.settled_at.as_ref().or(self.next_attempt_at.as_ref())),
            String::new(),
            result,
        ]
    }
}

impl Attempt {
    fn row(&self) -> Vec<String> {
        let took = match (self.started_at, self.ended_at) {
            (Some(from), Some(to)) => format!("{} ms", to.0.duration_since(from.0).as_millis()),
            _ => String::new(),
        };
        let result = [
            Some(self.error.clone().unwrap_or_else(|| self.outcome.to_owned())),
            self.batch_events.map(|events| format!("in a batch of {events}")),
            self.uncounted.then(|| "(used up no retry)".to_owned()),
            self.response.as_ref().map(|answer| format!("answer: {}", beginning(answer, RESPONSE_CHARS))),
        ];
        vec![
            String::new(),
            String::new(),
            String::new(),
            self.number.to_string(),
            when(self.ended_at.as_ref()),
            took,
            result.into_iter().flatten().collect::<Vec<_>>().join(" "),
        ]
    }
}

/// A receiver that is away or held.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receiver {
    state: &'static str,
    since: Option<Time>,
    reason: String,
    next_attempt_at: Option<Time>,
    shard: u32,
}

impl From<v1::Receiver> for Receiver {
    fn from(receiver: v1::Receiver) -> Self {
        Self {
            since: Time::of(receiver.since.as_ref()),
            next_attempt_at: Time::of(receiver.next_attempt_at.as_ref()),
            state: word::<v1::ReceiverCondition>(receiver.state),
            reason: receiver.reason,
            shard: receiver.shard,
        }
    }
}

impl Receiver {
    /// For people, as the end of a sentence about the subscription's receiver.
    pub fn human(&self) -> String {
        let (since, next) = (when(self.since.as_ref()), when(self.next_attempt_at.as_ref()));
        match self.state {
            "paused" => "is not called while the subscription is paused".to_owned(),
            "held" => format!("cannot be called since {since} ({}); tried again at {next}", self.reason),
            state => format!("is {state} since {since} ({}); called again at {next}", self.reason),
        }
    }
}

/// A dead letter.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// `<subscription>:<eventId>`.
    pub id: String,
    event_id: String,
    subscription: String,
    workflow_id: String,
    sequence_number: u64,
    r#type: String,
    source: String,
    reason: &'static str,
    attempts: u32,
    last_status: Option<u32>,
    last_error: Option<String>,
    first_failed_at: Option<Time>,
    dead_lettered_at: Option<Time>,
    status: &'static str,
    /// The operator who resolved, discarded or redrove it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_by: Option<String>,
    /// The operator's words for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_reason: Option<String>,
    /// Why DLQ has no copy of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_missing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Event>,
}

impl DeadLetter {
    /// A dead letter with its event, as it was.
    pub fn with_event(letter: v1::DeadLetter, event: Option<v1::Event>) -> Self {
        Self {
            first_failed_at: Time::of(letter.first_failed_at.as_ref()),
            dead_lettered_at: Time::of(letter.dead_lettered_at.as_ref()),
            id: letter.id,
            event_id: letter.event_id,
            subscription: letter.subscription,
            workflow_id: letter.workflow_id,
            sequence_number: letter.sequence_number,
            r#type: letter.r#type,
            source: letter.source,
            reason: word::<v1::DeadLetterReason>(letter.reason),
            attempts: letter.attempts,
            last_status: (letter.last_status != 0).then_some(letter.last_status),
            last_error: (!letter.last_error.is_empty()).then_some(letter.last_error),
            status: word::<v1::DeadLetterStatus>(letter.status),
            settled_by: given(letter.settled_by),
            settled_reason: given(letter.settled_reason),
            copy_missing: (!letter.copy_missing.is_empty()).then_some(letter.copy_missing),
            event: event.map(Event::from),
        }
    }
}

impl DeadLetter {
    /// For people: everything about it, and the beginning of its payload.
    pub fn human(&self) -> String {
        let mut rows = vec![
            ("id", self.id.clone()),
            ("event", self.event_id.clone()),
            ("subscription", self.subscription.clone()),
            ("workflow", format!("{} #{}", self.workflow_id, self.sequence_number)),
            ("type", self.r#type.clone()),
            ("source", self.source.clone()),
            ("reason", self.reason.to_owned()),
            ("attempts", self.attempts.to_string()),
            ("last status", text_or_dash(self.last_status.as_ref())),
            ("last error", text_or_dash(self.last_error.as_ref())),
            ("first failed", when(self.first_failed_at.as_ref())),
            ("dead-lettered", when(self.dead_lettered_at.as_ref())),
            ("status", self.status.to_owned()),
        ];
        rows.extend(self.settled_by.clone().map(|by| ("by", by)));
        rows.extend(self.settled_reason.clone().map(|reason| ("because", reason)));
        rows.extend(self.copy_missing.clone().map(|why| ("no copy", why)));
        rows.extend(self.event.as_ref().map(|event| ("data", event.shown_data())));
        output::fields(rows)
    }
}

impl From<v1::DeadLetter> for DeadLetter {
    fn from(letter: v1::DeadLetter) -> Self {
        Self::with_event(letter, None)
    }
}

impl Row for DeadLetter {
    const HEADINGS: &'static [&'static str] =
        &["ID", "WORKFLOW", "SEQ", "TYPE", "REASON", "ATTEMPTS", "LAST", "DEAD-LETTERED", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let last = self.last_status.map(|status| status.to_string()).or_else(|| self.last_error.clone());
        vec![
            self.id.clone(),
            self.workflow_id.clone(),
            self.sequence_number.to_string(),
            self.r#type.clone(),
            self.reason.to_owned(),
            self.attempts.to_string(),
            text_or_dash(last.as_ref()),
            when(self.dead_lettered_at.as_ref()),
            if self.copy_missing.is_some() { format!("{} (no copy)", self.status) } else { self.status.to_owned() },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(content_type: &str, data: &'static [u8]) -> v1::Event {
        v1::Event {
            event_id: "e".into(),
            sequence_number: 7,
            received_at: Some(prost_types::Timestamp { seconds: 0, nanos: 5_000_000 }),
            data: bytes::Bytes::from_static(data),
            data_content_type: content_type.into(),
            ..v1::Event::default()
        }
    }

    /// The sender's spelling of its numbers reaches the operator, too.
    #[test]
    fn json_stays_as_it_was_sent() {
        let text = serde_json::to_string(&Event::from(event("application/json", b"{\"a\": 1.50}"))).unwrap();
        assert!(text.contains(r#""data":{"a": 1.50}"#), "{text}");
        assert!(text.contains(r#""sequenceNumber":7"#), "{text}");
        assert!(text.contains(r#""receivedAt":"1970-01-01T00:00:00.005Z""#), "{text}");
    }

    #[test]
    fn what_is_not_json_is_base64() {
        for (content_type, data) in [("text/plain", &b"hello"[..]), ("application/json", b"{"), ("x", b"\xff")] {
            let value = serde_json::to_value(Event::from(event(content_type, data))).unwrap();
            assert_eq!(value["dataBase64"], STANDARD.encode(data));
            assert_eq!(value.get("data"), None);
        }
        let value = serde_json::to_value(Event::from(event("application/json", b""))).unwrap();
        assert!(["data", "dataBase64", "dataContentType"].iter().all(|name| value.get(name).is_none()), "{value}");
    }
}
