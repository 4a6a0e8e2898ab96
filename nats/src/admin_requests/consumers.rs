//! Consumers for subscribers: what they may configure, and how many there may be.
//!
//! A consumer could deliver to any subject of the stream's account, and a stream takes a limited number of them, which
//! the readers of gateways, workers and admins need as well. NATS limits neither by user, so an admin creates them.

use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    connect::Connection,
    server::Role,
    subject::{Layout, TAIL_REQUESTS},
};

/// Consumers of subscribers on one stream: a third of what it takes.
const CONSUMERS_MAX: usize = 300;
/// How long the server keeps a consumer that its subscriber does not ask: what ordered consumers of the client libraries
/// configure.
const INACTIVE_MAX: Duration = Duration::from_secs(5 * 60);
/// The same where the subscriber says nothing.
const INACTIVE_DEFAULT: Duration = Duration::from_secs(60);
/// JetStream's code for a consumer whose configuration is refused.
const REFUSED: u32 = 10_012;
/// JetStream's code for too many consumers.
const LIMIT_REACHED: u32 = 10_026;

/// A subscriber's request to create a consumer.
#[derive(Debug, PartialEq)]
struct Create {
    /// The rest of the API's subject after `CONSUMER.CREATE.`.
    place: String,
    stream: String,
    body: Value,
}

/// An answer that refuses a request in JetStream's form.
pub(super) fn refusal(code: u16, problem: &str) -> Bytes {
    error(code, REFUSED, problem)
}

fn error(code: u16, err_code: u32, problem: &str) -> Bytes {
    let answer = json!({
        "type": "io.nats.jetstream.api.v1.consumer_create_response",
        "error": { "code": code, "err_code": err_code, "description": problem },
    });
    answer.to_string().into()
}

/// Creates a consumer for a subscriber, if that may be. The answer is the server's.
pub(super) async fn create(admin: &Connection, layout: Layout, request: &Message) -> Bytes {
    let create = match Create::parse(layout, &request.subject, &request.payload) {
        Ok(create) => create,
        Err(problem) => return refusal(400, &problem),
    };
    let names = async {
        let subject = admin.api_subject(format_args!("CONSUMER.NAMES.{}", create.stream));
        let answer = admin.client().request(subject, Bytes::new()).await.map_err(|error| error.to_string())?;
        serde_json::from_slice::<Names>(&answer.payload).map_err(|error| error.to_string())
    };
    match names.await {
        Ok(names) if names.consumers.iter().filter(|name| !is_readers(name)).count() >= CONSUMERS_MAX => {
            return error(400, LIMIT_REACHED, "maximum number of subscribers' consumers reached");
        }
        Ok(_) => {}
        Err(problem) => return refusal(503, &problem),
    }
    let subject = admin.api_subject(format_args!("CONSUMER.CREATE.{}", create.place));
    match admin.client().request(subject, create.body.to_string().into()).await {
        Ok(answer) => answer.payload,
        Err(problem) => refusal(503, &problem.to_string()),
    }
}

/// An answer of `CONSUMER.NAMES`. One page holds more names than a stream takes consumers.
#[derive(serde::Deserialize)]
struct Names {
    #[serde(default)]
    consumers: Vec<String>,
}

/// Whether a consumer's name is that of a reader of Weft: `<name>-<32 hexadecimal digits>`.
fn is_readers(name: &str) -> bool {
    let number = name.rsplit_once('-').map(|(_, number)| number);
    number.is_some_and(|number| number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Create {
    fn parse(layout: Layout, subject: &str, payload: &[u8]) -> Result<Self, String> {
        let prefix = format!("{TAIL_REQUESTS}.CONSUMER.CREATE.");
        let place = subject.strip_prefix(&prefix).ok_or("only consumers can be created")?;
        let mut tokens = place.split('.');
        let stream = tokens.next().unwrap_or_default();
        if !layout.all().any(|shard| layout.events_stream(shard) == stream) {
            return Err(format!("{stream} is not a stream of events"));
        }
        let mut body: Map<String, Value> =
            serde_json::from_slice(payload).map_err(|error| format!("not a JSON object: {error}"))?;
        let config = match body.get_mut("config") {
            Some(Value::Object(config)) => config,
            _ => return Err("config is missing".into()),
        };
        let in_config = config.get("name").and_then(Value::as_str);
        if tokens.next().into_iter().chain(in_config).any(is_readers) {
            return Err("the name is of the form that Weft's own readers have; choose another".into());
        }
        restrict(config)?;
        Ok(Self { place: place.to_owned(), stream: stream.to_owned(), body: body.into() })
    }
}

/// Refuses what would reach beyond the subscriber, and bounds what the consumer costs.
fn restrict(config: &mut Map<String, Value>) -> Result<(), String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
    if !["", "none"].contains(&text("ack_policy")) {
        return Err("ack_policy must be \"none\": subscribers cannot acknowledge; use an ordered consumer".into());
    }
    if config.get("durable_name").is_some_and(|name| name.as_str() != Some("")) {
        return Err("durable consumers are not available; use an ordered consumer and keep your position".into());
    }
    let inbox = format!("{}.", Role::Tail.inbox_prefix());
    if let Some(subject) = config.get("deliver_subject") {
        let literal = |subject: &str| !subject.split('.').any(|token| ["", "*", ">"].contains(&token));
        match subject.as_str() {
            Some("") => {}
            Some(subject) if subject.starts_with(&inbox) && literal(subject) => {}
            _ => return Err(format!("deliver_subject must be an inbox, {inbox}…")),
        }
    }
    let threshold = config.get("inactive_threshold").and_then(Value::as_u64).filter(|nanos| *nanos > 0);
    let threshold = threshold.map_or(INACTIVE_DEFAULT, |nanos| Duration::from_nanos(nanos).min(INACTIVE_MAX));
    config.insert("inactive_threshold".into(), (threshold.as_nanos() as u64).into());
    config.insert("mem_storage".into(), true.into());
    config.insert("num_replicas".into(), 1.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(subject: &str, config: Value) -> Result<Create, String> {
        let body = json!({ "stream_name": "EVENTS", "config": config }).to_string();
        Create::parse(Layout::new(1), subject, body.as_bytes())
    }

    #[test]
    fn a_consumer_is_bounded_and_the_rest_of_its_configuration_kept() {
        let subject = "tail.CONSUMER.CREATE.EVENTS.mine.events.order-42";
        let ordered = json!({ "name": "mine", "ack_policy": "none", "filter_subject": "events.order-42" });
        let create = parse(subject, ordered).unwrap();
        assert_eq!((create.place.as_str(), create.stream.as_str()), ("EVENTS.mine.events.order-42", "EVENTS"));
        let config = &create.body["config"];
        assert_eq!(config["filter_subject"], "events.order-42");
        assert_eq!((&config["mem_storage"], &config["num_replicas"]), (&json!(true), &json!(1)));
        assert_eq!(config["inactive_threshold"], 60_000_000_000u64);
        for (asked, given) in [(1u64, 1u64), (0, 60_000_000_000), (u64::MAX, 300_000_000_000)] {
            let create = parse("tail.CONSUMER.CREATE.EVENTS", json!({ "inactive_threshold": asked })).unwrap();
            assert_eq!(create.body["config"]["inactive_threshold"], given, "{asked}");
        }
        parse("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": "_INBOX.abc.1" })).unwrap();
    }

    #[test]
    fn what_would_reach_beyond_the_subscriber_is_refused() {
        let name = format!("worker-{}", "0af".repeat(11).get(..32).unwrap());
        for (subject, config) in [
            ("tail.CONSUMER.CREATE.OUTCOMES.x", json!({})),
            ("tail.CONSUMER.CREATE", json!({})),
            ("tail.STREAM.DELETE.EVENTS", json!({})),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": "$KV.weft_catalog.source.shop" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": "$JS.API.STREAM.DELETE.EVENTS" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": "_INBOX" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": "_INBOX.>" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "deliver_subject": 1 })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "durable_name": "d" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "ack_policy": "explicit" })),
            ("tail.CONSUMER.CREATE.EVENTS", json!({ "name": name.clone() })),
            ("tail.CONSUMER.CREATE.EVENTS", json!(null)),
        ] {
            assert!(parse(subject, config.clone()).is_err(), "{subject} {config}");
        }
        assert!(parse(&format!("tail.CONSUMER.CREATE.EVENTS.{name}"), json!({})).is_err());
        assert!(Create::parse(Layout::new(1), "tail.CONSUMER.CREATE.EVENTS", b"[").is_err());
    }
}
