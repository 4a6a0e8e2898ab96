//! A test delivery, which is not part of the log.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::Status;
use weft_catalog::{
    Snapshot,
    change::{Refusal, draft},
    edit::record,
    entry::Kind,
    explain,
};
use weft_index::history::EventRef;
use weft_nats::event::{Event, JSON, StoredEvent};
use weft_proto::{
    ids::{EventId, InvalidId, SequenceNumber, StreamSeq, WorkflowId},
    internal, v1,
    words::Word as _,
};

use super::mutation::{Mutation, of_edit, of_refusal};
use crate::{
    deliveries::Deliveries,
    error::{Code, of_history, refuse},
    service::state::LogState,
};

/// The type of a test delivery, by which receivers may ignore it.
const TYPE: &str = "weft.test";
/// Its workflow and its source: not that of the mesh's own events, which a subscription takes only by name.
const WORKFLOW: &str = "weft-test";
const SOURCE: &str = "weft-test";
/// Its default data.
const EXAMPLE: &[u8] = br#"{"message":"a test delivery; nothing happened"}"#;
/// Media type of its data if it is not JSON.
const BYTES: &str = "application/octet-stream";

/// Says what becomes of an event, without a call or a record.
///
/// # Errors
///
/// INVALID_ENTRY: there is no destination.
pub(super) async fn plan(
    deliveries: &dyn Deliveries,
    subscription: &v1::Subscription,
    event: StoredEvent,
) -> Result<v1::TestSubscriptionResponse, Status> {
    let mut answer = v1::TestSubscriptionResponse::default();
    match explain(subscription, &event.event) {
        Ok(failed) => {
            answer.matched = true;
            answer.filter_error = failed.unwrap_or_default();
        }
        Err(mismatch) => answer.mismatch = mismatch.to_string(),
    }
    let planned = deliveries.plan(subscription, event).await;
    answer.planned = Some(planned.map_err(|problem| refuse(Code::InvalidEntry, problem))?);
    Ok(answer)
}

/// Records the call, makes the delivery, and records its result, which is added to the answer. A call that is made twice at the
/// same moment, or again after it has broken off, sends once.
///
/// # Errors
///
/// INVALID_ENTRY: there is no destination. LOG_UNAVAILABLE: the call cannot be recorded, and nothing was sent.
pub(super) async fn deliver(
    log: &LogState,
    deliveries: &dyn Deliveries,
    mutation: &Mutation,
    subscription: &v1::Subscription,
    event: StoredEvent,
    planned: v1::TestSubscriptionResponse,
) -> Result<v1::TestSubscriptionResponse, Status> {
    let is_new = record(&log.connection, log.layout, mutation.stamp(), 0, mutation.edit()).await.map_err(of_edit)?;
    if !is_new {
        return Ok(answer(None));
    }
    let attempt = deliveries.deliver(subscription, event).await;
    let attempt = attempt.map_err(|problem| refuse(Code::InvalidEntry, problem))?;
    let test = result(&attempt);
    let edit = internal::CatalogEdit { test: Some(test.clone()), ..mutation.edit() };
    if let Err(error) = record(&log.connection, log.layout, mutation.stamp(), 1, edit).await {
        tracing::warn!(request = mutation.stamp().request_id, %error, "the result of a test delivery is not recorded");
    }
    let v1::TestSubscriptionResponse { matched, mismatch, filter_error, planned, .. } = planned;
    Ok(v1::TestSubscriptionResponse { matched, mismatch, filter_error, planned, ..answer(Some(test)) })
}

/// The answer for a test's result; `None`: it was sent before, and how it ended is not recorded.
pub(super) fn answer(test: Option<internal::TestResult>) -> v1::TestSubscriptionResponse {
    const UNKNOWN: &str =
        "sent before under this request id, with a result that is not known; use another id to send again";
    let unknown = || internal::TestResult { message: UNKNOWN.into(), ..Default::default() };
    let test = test.unwrap_or_else(unknown);
    let internal::TestResult { delivered, outcome, http_status, message, duration_ms } = test;
    v1::TestSubscriptionResponse {
        delivered,
        outcome: v1::AttemptClass::from_word(&outcome).unwrap_or_default().into(),
        http_status,
        message,
        duration_ms,
        sent: true,
        ..Default::default()
    }
}

/// The subscription that a test is about: the stored one, or a definition that is not stored yet.
///
/// # Errors
///
/// NOT_FOUND, INVALID_ENTRY, BAD_QUERY.
pub(super) fn subscription_of(
    snapshot: &Snapshot,
    asked: &v1::TestSubscriptionRequest,
) -> Result<Arc<v1::Subscription>, Status> {
    match &asked.draft {
        Some(_) if asked.send => Err(refuse(Code::BadQuery, "a draft is not sent; store it first")),
        Some(value) => draft(snapshot, value.clone()).map(Arc::new).map_err(|error| of_refusal(&error)),
        None => {
            let missing = || of_refusal(&Refusal::NotFound { kind: Kind::Subscription, name: asked.name.clone() });
            snapshot.subscriptions.get(&asked.name).map(|stored| Arc::clone(&stored.value)).ok_or_else(missing)
        }
    }
}

/// The event that a test is about: a stored one, one that is given, or an example.
///
/// # Errors
///
/// BAD_QUERY, UNKNOWN_EVENT.
pub(super) async fn event_of(log: &LogState, asked: &v1::TestSubscriptionRequest) -> Result<StoredEvent, Status> {
    let now = Timestamp::now();
    if !asked.event_id.is_empty() {
        let named: EventRef =
            asked.event_id.parse().map_err(|problem| refuse(Code::BadQuery, format!("event_id {problem}")))?;
        log.catch_up().await?;
        let unknown = || refuse(Code::UnknownEvent, format!("no event {named} is kept"));
        let found = log.history.event(named).await.map_err(of_history)?.ok_or_else(unknown)?;
        let event = log.event(named.event, found.shard, found.seq, found.dead_letter.as_ref()).await?;
        return Ok(StoredEvent { seq: found.seq, stored_at: now, event: event.ok_or_else(unknown)? });
    }
    let event = if asked.event.is_empty() {
        example(asked.data.clone(), now).map_err(|problem| refuse(Code::Internal, problem.to_string()))?
    } else {
        given(&asked.event, now).map_err(|problem| refuse(Code::BadQuery, format!("event: {problem}")))?
    };
    Ok(StoredEvent { seq: StreamSeq(0), stored_at: now, event })
}

fn result(attempt: &internal::Attempt) -> internal::TestResult {
    let delivered = attempt.class() == v1::AttemptClass::Delivered;
    let message = match delivered {
        true if attempt.status == 0 && attempt.response.is_empty() => "the receiver accepted it".to_owned(),
        true if attempt.status == 0 => {
            format!("the receiver accepted it: {}", String::from_utf8_lossy(&attempt.response))
        }
        true => format!("the receiver answered {}", attempt.status),
        false => attempt.error.clone(),
    };
    internal::TestResult {
        delivered,
        outcome: attempt.class().word().to_owned(),
        http_status: attempt.status,
        message,
        duration_ms: u64::try_from(attempt.ended_at_ms - attempt.started_at_ms).unwrap_or_default(),
    }
}

/// An event as its envelope. What is absent is that of the example.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given<'a> {
    event_id: Option<EventId>,
    sequence_number: Option<SequenceNumber>,
    workflow_id: Option<String>,
    previous_event_id: Option<EventId>,
    r#type: Option<String>,
    source: Option<String>,
    time: Option<Timestamp>,
    received_at: Option<Timestamp>,
    delivery_id: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    data_content_type: Option<String>,
}

fn given(text: &[u8], now: Timestamp) -> Result<Event, String> {
    let given: Given<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let example = example(Vec::new(), now).map_err(|problem| problem.to_string())?;
    let (payload, content_type) = match (given.data, given.data_base64) {
        (Some(data), _) => (Bytes::copy_from_slice(data.get().as_bytes()), JSON.to_owned()),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text).map_err(|error| format!("dataBase64: {error}"))?;
            (bytes.into(), given.data_content_type.unwrap_or_else(|| BYTES.into()))
        }
        (None, None) => (Bytes::new(), JSON.to_owned()),
    };
    let workflow = given.workflow_id.map(WorkflowId::new).transpose().map_err(|problem| problem.to_string())?;
    Ok(Event {
        id: given.event_id.unwrap_or(example.id),
        sequence_number: given.sequence_number.unwrap_or(example.sequence_number),
        workflow: workflow.unwrap_or(example.workflow),
        previous: given.previous_event_id,
        event_type: given.r#type.unwrap_or(example.event_type),
        source: given.source.unwrap_or(example.source),
        time: given.time.unwrap_or(now),
        received_at: given.received_at.unwrap_or(now),
        delivery_id: given.delivery_id,
        content_type,
        payload,
        data_pointer: String::new(),
        verified_by: String::new(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
    })
}

/// An event with number 0: no workflow has one.
fn example(data: Vec<u8>, now: Timestamp) -> Result<Event, InvalidId> {
    let payload = if data.is_empty() { Bytes::from_static(EXAMPLE) } else { Bytes::from(data) };
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&payload).is_ok();
    Ok(Event {
        id: EventId::unique(),
        sequence_number: SequenceNumber(0),
        workflow: WorkflowId::new(WORKFLOW)?,
        previous: None,
        event_type: TYPE.into(),
        source: SOURCE.into(),
        time: now,
        received_at: now,
        delivery_id: None,
        content_type: if json { JSON } else { BYTES }.into(),
        data_pointer: String::new(),
        verified_by: String::new(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: the answer to a test says what is special about it, such as a commit without the fence.
    #[test]
    fn an_answer_without_a_status_holds_the_response() {
        let attempt = |status: u32, response: &[u8]| internal::Attempt {
            class: v1::AttemptClass::Delivered.into(),
            status,
            response: response.to_vec(),
            ..Default::default()
        };
        for (status, response, message) in [
            (200, &b"thanks"[..], "the receiver answered 200"),
            (0, b"", "the receiver accepted it"),
            (0, b"ORDERS: sequence 1", "the receiver accepted it: ORDERS: sequence 1"),
        ] {
            assert_eq!(result(&attempt(status, response)).message, message);
        }
    }
}
