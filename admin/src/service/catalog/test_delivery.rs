//! A test delivery, which is not part of the log.

use bytes::Bytes;
use jiff::Timestamp;
use tonic::Status;
use weft_catalog::edit::record;
use weft_nats::event::{Event, JSON, StoredEvent};
use weft_proto::{
    ids::{EventId, InvalidId, SequenceNumber, StreamSeq, WorkflowId},
    v1,
};

use super::mutation::{Mutation, of_edit};
use crate::{
    convert::class_name,
    deliveries::Deliveries,
    error::{Code, refuse},
    service::state::LogState,
};

/// The type of a test delivery, by which receivers may ignore it.
const TYPE: &str = "weft.test";
/// Its workflow and its source.
const WORKFLOW: &str = "weft-test";
const SOURCE: &str = "weft";
/// Its default data.
const EXAMPLE: &[u8] = br#"{"message":"a test delivery; nothing happened"}"#;
/// Media type of its data if it is not JSON.
const BYTES: &str = "application/octet-stream";

/// Makes the delivery and records its result; a recorded result is returned.
///
/// # Errors
///
/// INVALID_ENTRY: there is no destination.
pub(super) async fn deliver(
    log: &LogState,
    deliveries: &dyn Deliveries,
    mutation: &Mutation,
    subscription: &v1::Subscription,
    data: Vec<u8>,
) -> Result<v1::TestSubscriptionResponse, Status> {
    let event = event(data, Timestamp::now()).map_err(|problem| refuse(Code::Internal, problem.to_string()))?;
    let attempt = deliveries.deliver(subscription, event).await;
    let attempt = attempt.map_err(|problem| refuse(Code::InvalidEntry, problem))?;
    let test = result(&attempt);
    let edit = v1::CatalogEdit { test: Some(test.clone()), ..mutation.edit() };
    record(&log.connection, log.layout, mutation.stamp(), 0, edit).await.map_err(of_edit)?;
    Ok(answer(test))
}

/// The answer for a test's result.
pub(super) fn answer(test: v1::TestResult) -> v1::TestSubscriptionResponse {
    let v1::TestResult { delivered, outcome, http_status, message, duration_ms } = test;
    v1::TestSubscriptionResponse { delivered, outcome, http_status, message, duration_ms }
}

fn result(attempt: &v1::Attempt) -> v1::TestResult {
    let delivered = attempt.class() == v1::AttemptClass::Delivered;
    let message = match delivered {
        true => format!("the receiver answered {}", attempt.status),
        false => attempt.error.clone(),
    };
    v1::TestResult {
        delivered,
        outcome: class_name(attempt.class()).to_owned(),
        http_status: attempt.status,
        message,
        duration_ms: u64::try_from(attempt.ended_at_ms - attempt.started_at_ms).unwrap_or_default(),
    }
}

/// An event with number 0: no workflow has one.
fn event(data: Vec<u8>, now: Timestamp) -> Result<StoredEvent, InvalidId> {
    let payload = if data.is_empty() { Bytes::from_static(EXAMPLE) } else { Bytes::from(data) };
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&payload).is_ok();
    let event = Event {
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
    };
    Ok(StoredEvent { seq: StreamSeq(0), stored_at: now, event })
}
