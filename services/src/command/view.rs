//! What the admin answers, as the commands print it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use weft_nats::envelope::is_json;
use weft_proto::v1;

use super::output::Row;

mod orders;

pub use orders::{DeadLetterCount, Lane, Ordered, Plan, Replay, Workflow};

/// A time, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub struct Time(pub Timestamp);

impl Time {
    /// The time of a message; `None` when it has none or none that exists.
    pub fn of(time: Option<&prost_types::Timestamp>) -> Option<Self> {
        let time = time?;
        Timestamp::new(time.seconds, time.nanos).ok().map(Self)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn text_or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
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

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{}  {:<24} {:>6}  {:<24} {:<12} {}",
            text_or_dash(self.received_at.as_ref()),
            self.workflow_id,
            self.sequence_number,
            self.r#type,
            self.source,
            self.event_id
        )
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let json = is_json(&event.data_content_type)
            .then(|| std::str::from_utf8(&event.data).ok())
            .flatten()
            .and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let base64 = json.is_none();
        Self {
            time: Time::of(event.time.as_ref()),
            received_at: Time::of(event.received_at.as_ref()),
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

/// What became of an event at one subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    subscription: String,
    status: String,
    run: u64,
    attempt_count: u32,
    settled_at: Option<Time>,
    next_attempt_at: Option<Time>,
    attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    number: u32,
    started_at: Option<Time>,
    ended_at: Option<Time>,
    outcome: String,
    status: Option<u32>,
    error: Option<String>,
    response: Option<String>,
    next_attempt_at: Option<Time>,
    /// It used up no retry.
    uncounted: bool,
}

impl From<v1::Delivery> for Delivery {
    fn from(delivery: v1::Delivery) -> Self {
        Self {
            settled_at: Time::of(delivery.settled_at.as_ref()),
            next_attempt_at: Time::of(delivery.next_attempt_at.as_ref()),
            subscription: delivery.subscription,
            status: delivery.status,
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
            outcome: attempt.outcome,
            uncounted: attempt.uncounted,
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
    status: String,
    deliveries: Vec<Delivery>,
}

impl EventWithDeliveries {
    /// From the admin's answer; `None` when it holds no event.
    pub fn new(answer: v1::GetEventResponse) -> Option<Self> {
        Some(Self {
            event: answer.event?.into(),
            status: answer.status,
            deliveries: answer.deliveries.into_iter().map(Delivery::from).collect(),
        })
    }

    /// For people: the event, its deliveries, their attempts.
    pub fn human(&self) -> String {
        let event = &self.event;
        let mut text = format!(
            "event      {}\nworkflow   {} #{}\nprevious   {}\ntype       {}\nsource     {}\nreceived   {}\nstatus     {}\n",
            event.event_id,
            event.workflow_id,
            event.sequence_number,
            text_or_dash(event.previous_event_id.as_ref()),
            event.r#type,
            event.source,
            text_or_dash(event.received_at.as_ref()),
            self.status,
        );
        if let Some(data) = &event.data {
            text.push_str(&format!("data       {}\n", data.get()));
        }
        let rows = self.deliveries.iter().flat_map(|delivery| {
            let settled = vec![
                delivery.subscription.clone(),
                delivery.status.clone(),
                String::new(),
                text_or_dash(delivery.settled_at.as_ref().or(delivery.next_attempt_at.as_ref())),
                String::new(),
            ];
            let attempts = delivery.attempts.iter().map(|attempt| {
                vec![
                    String::new(),
                    String::new(),
                    attempt.number.to_string(),
                    text_or_dash(attempt.ended_at.as_ref()),
                    [
                        Some(attempt.outcome.clone()),
                        attempt.status.map(|status| status.to_string()),
                        attempt.error.clone(),
                        attempt.uncounted.then(|| "(used up no retry)".to_owned()),
                    ]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(" "),
                ]
            });
            std::iter::once(settled).chain(attempts)
        });
        let table = super::output::table(&["SUBSCRIPTION", "STATUS", "ATTEMPT", "AT", "OUTCOME"], rows);
        format!("{text}{table}")
    }
}

/// A receiver that is away or held.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receiver {
    state: String,
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
            state: receiver.state,
            reason: receiver.reason,
            shard: receiver.shard,
        }
    }
}

impl Receiver {
    /// For people, as the end of a sentence about the subscription's receiver.
    pub fn human(&self) -> String {
        let (since, next) = (text_or_dash(self.since.as_ref()), text_or_dash(self.next_attempt_at.as_ref()));
        match self.state.as_str() {
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
    reason: String,
    attempts: u32,
    last_status: Option<u32>,
    last_error: Option<String>,
    first_failed_at: Option<Time>,
    dead_lettered_at: Option<Time>,
    status: String,
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
            reason: letter.reason,
            attempts: letter.attempts,
            last_status: (letter.last_status != 0).then_some(letter.last_status),
            last_error: (!letter.last_error.is_empty()).then_some(letter.last_error),
            status: letter.status,
            copy_missing: (!letter.copy_missing.is_empty()).then_some(letter.copy_missing),
            event: event.map(Event::from),
        }
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
            self.reason.clone(),
            self.attempts.to_string(),
            text_or_dash(last.as_ref()),
            text_or_dash(self.dead_lettered_at.as_ref()),
            if self.copy_missing.is_some() { format!("{} (no copy)", self.status) } else { self.status.clone() },
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
    }
}
